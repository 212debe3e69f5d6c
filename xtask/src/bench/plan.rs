//! Which rows are measured, against which of torch's modes.

use std::fmt;

pub const PRECISIONS: [&str; 2] = ["f32", "bf16"];
pub const START_UP: &str = "start_up";
/// The most arithmetic, which is measured in each precision, and the most traffic, which has none.
pub const ARITHMETIC: &str = "peak_multiply_add";
pub const TRAFFIC: [&str; 2] = ["peak_triad", "peak_read"];
/// Batches and picture sizes of the rows about scaling; the first of each list is row A.
pub const BATCHES: [&str; 5] = ["A", "A_batch_2", "A_batch_4", "A_batch_8", "A_batch_16"];
pub const SIZES: [&str; 4] = ["A_size_64", "A_size_128", "A", "A_size_512"];
/// Rows whose time with one thread is measured too.
pub const THREADED: [&str; 2] = ["A", "B"];

/// Rows with feature maps, which torch can lay out in two ways.
const MAPS: [&str; 10] = [
    "conv_1x128x128x128_forward",
    "conv_16x32x32x64_forward",
    "conv_1x32x32x512_forward",
    "conv_1x128x128x128_forward_backward",
    "conv_16x32x32x64_forward_backward",
    "conv_1x32x32x512_forward_backward",
    "group_norm_silu_1x256x256x128",
    "A",
    "B",
    "D",
];
const OTHERS: [&str; 5] = ["matmul_4096x512x2048", "attention_1024", "attention_4096", "C_batch_1", "C_batch_8"];

/// A row to measure, beside torch in one mode or alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub row: &'static str,
    pub precision: &'static str,
    pub mode: Option<&'static str>,
    /// `None`: as many as the run has.
    pub threads: Option<usize>,
}

impl Pair {
    /// One of row A's other batches and sizes.
    pub fn is_scaling(&self) -> bool {
        self.row != "A" && BATCHES.iter().chain(&SIZES).any(|row| *row == self.row)
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mode = self.mode.map_or("alone".into(), |mode| format!("against torch {mode}"));
        let threads = self.threads.map_or(String::new(), |threads| format!(", {threads} thread"));
        write!(f, "{} {}{threads}, {mode}", self.row, self.precision)
    }
}

/// All of them, in the order in which they are measured: what matters most first.
pub fn pairs() -> Vec<Pair> {
    let alone = |row: &'static str, precision: &'static str| Pair { row, precision, mode: None, threads: None };
    let mut pairs: Vec<Pair> = PRECISIONS.map(|precision| alone(ARITHMETIC, precision)).to_vec();
    pairs.extend(TRAFFIC.map(|row| alone(row, "f32")));
    for precision in PRECISIONS {
        for row in OTHERS.iter().chain(&MAPS).copied() {
            pairs.extend(modes(row, precision).iter().map(|mode| Pair { mode: Some(mode), ..alone(row, precision) }));
        }
    }
    pairs.push(Pair { mode: Some("f32"), ..alone(START_UP, "f32") });
    for precision in PRECISIONS {
        pairs.extend(THREADED.map(|row| Pair { threads: Some(1), ..alone(row, precision) }));
        pairs.extend(BATCHES.iter().chain(&SIZES).filter(|row| **row != "A").map(|row| alone(row, precision)));
    }
    pairs
}

fn modes(row: &str, precision: &str) -> &'static [&'static str] {
    match (precision, MAPS.contains(&row)) {
        ("f32", false) => &["f32"],
        ("f32", true) => &["f32-nchw", "f32-nhwc"],
        (_, false) => &["bf16", "autocast"],
        // A network in bf16 alone would step weights that are too coarse to learn: B's pure mode is measured, and loses only where it is slower.
        (_, true) => &["bf16-nchw", "bf16-nhwc", "autocast-nchw", "autocast-nhwc"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::arguments::Arguments;

    #[test]
    fn rows_are_found_by_name_and_family() {
        let wanted = |more: &[&str]| -> Vec<String> {
            let words = [&["--torch", "python", "--out", "x"], more].concat();
            let arguments = Arguments::parse(&words).unwrap();
            pairs().iter().filter(|pair| arguments.wants(pair)).map(ToString::to_string).collect()
        };
        assert_eq!(wanted(&[]).len(), pairs().len());
        assert_eq!(
            wanted(&["--rows", "A", "--precision", "f32"]),
            ["A f32, against torch f32-nchw", "A f32, against torch f32-nhwc", "A f32, 1 thread, alone"]
        );
        assert_eq!(wanted(&["--rows", "C", "--precision", "bf16"]).len(), 4);
        assert_eq!(wanted(&["--rows", "conv_1x32x32x512_forward", "--precision", "f32"]).len(), 2);
        assert_eq!(wanted(&["--rows", "A_size_64", "--precision", "f32"]), ["A_size_64 f32, alone"]);
        assert!(Arguments::parse(&["--torch", "python"]).is_err() && Arguments::parse(&["--torch", "python", "--out", "x", "--repetitions", "3"]).is_err());
    }
}
