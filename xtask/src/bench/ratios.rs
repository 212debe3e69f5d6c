//! Medians, torch's best mode, ratios: `ratios.json`.

use super::plan::{self, Pair, START_UP};
use super::samples::{OURS, Samples, TORCH};
use serde::Serialize;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ratio {
    pub row: String,
    pub precision: String,
    pub ours_ms: f64,
    pub torch_ms: f64,
    pub ratio: f64,
    pub ours_mb: Option<f64>,
    pub torch_mb: Option<f64>,
    #[serde(skip)]
    pub mode: &'static str,
    #[serde(skip)]
    pub ours: Summary,
    #[serde(skip)]
    pub torch: Summary,
}

/// The times of one side of a pair.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    pub count: usize,
    pub median_ms: f64,
    pub least_ms: f64,
    pub most_ms: f64,
    pub median_cpu_ms: Option<f64>,
    pub peak_mb: Option<f64>,
    pub gflop: Option<f64>,
    pub mbyte: Option<f64>,
}

impl Summary {
    /// `None` where nothing was measured.
    pub fn of(samples: &Samples, pair: &Pair, side: &str) -> Option<Self> {
        let times: Vec<f64> = samples.side(pair, side).filter_map(|line| line.ms).collect();
        let cpu: Vec<f64> = samples.side(pair, side).filter_map(|line| line.cpu_ms).collect();
        let timed = samples.side(pair, side).find(|line| line.ms.is_some())?;
        Some(Self {
            count: times.len(),
            median_ms: median(&times)?,
            least_ms: times.iter().copied().fold(f64::INFINITY, f64::min),
            most_ms: times.iter().copied().fold(0.0, f64::max),
            median_cpu_ms: median(&cpu),
            peak_mb: samples.side(pair, side).filter_map(|line| line.peak_mb).reduce(f64::max),
            gflop: timed.gflop,
            mbyte: timed.mbyte,
        })
    }
}

/// Between the two middle ones of an even count.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        count if count.is_multiple_of(2) => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
        _ => Some(sorted[middle]),
    }
}

/// Every row that was measured against torch: ours over torch in its best mode, which is the one of the least median. Both medians are of the samples that
/// took turns with each other. A row of which some mode failed counts with the others.
pub fn ratios(samples: &Samples) -> Vec<Ratio> {
    let mut ratios: Vec<Ratio> = Vec::new();
    for pair in plan::pairs() {
        let Some(mode) = pair.mode else { continue };
        let (Some(ours), Some(torch)) = (Summary::of(samples, &pair, OURS), Summary::of(samples, &pair, TORCH)) else { continue };
        let ratio = Ratio {
            row: pair.row.into(),
            precision: pair.precision.into(),
            ours_ms: ours.median_ms,
            torch_ms: torch.median_ms,
            ratio: ours.median_ms / torch.median_ms,
            ours_mb: ours.peak_mb,
            torch_mb: torch.peak_mb,
            mode,
            ours,
            torch,
        };
        match ratios.iter_mut().find(|other| other.row == ratio.row && other.precision == ratio.precision) {
            Some(other) if ratio.torch_ms < other.torch_ms => *other = ratio,
            Some(_) => {}
            None => ratios.push(ratio),
        }
    }
    ratios
}

/// At most how large the ratio shall be.
pub fn target(row: &str, precision: &str) -> f64 {
    match (row, precision) {
        (START_UP, _) => 0.1,
        ("A" | "B", "f32") => 0.8,
        ("A" | "B", _) => 0.5,
        ("D", _) => 0.7,
        (row, _) if row.starts_with("C_") => 0.5,
        _ => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::Sample;
    use super::*;

    fn measured(row: &'static str, precision: &'static str, mode: &'static str, ours: &[f64], torch: &[f64]) -> Vec<Sample> {
        let pair = Pair { row, precision, mode: Some(mode), threads: None };
        let side = |name: &str, times: &[f64], peak: f64| {
            let times = times.iter().enumerate().map(|(repetition, &ms)| Sample { repetition, ms: Some(ms), ..Sample::of(&pair, name) });
            let peak = Sample { peak_mb: Some(peak), ..Sample::of(&pair, name) };
            times.chain([peak]).collect::<Vec<_>>()
        };
        [side(OURS, ours, 300.0), side(TORCH, torch, 900.0)].concat()
    }

    #[test]
    fn a_ratio_is_of_medians_against_the_best_mode() {
        let lines = [
            measured("A", "f32", "f32-nchw", &[5.0, 5.0, 5.0], &[40.0, 10.0, 20.0]),
            measured("A", "f32", "f32-nhwc", &[9.0, 6.0, 100.0], &[12.0, 1.0, 12.0]), // the better mode, though ours was slower beside it
            measured("A", "bf16", "bf16-nhwc", &[1.0, 2.0, 3.0, 4.0], &[10.0, 10.0, 10.0, 10.0]),
            vec![Sample::failed(&Pair { row: "B", precision: "f32", mode: Some("f32-nchw"), threads: None }, "out of memory")],
        ];
        let ratios = ratios(&Samples::of(lines.concat()));
        assert_eq!(ratios.len(), 2, "{ratios:?}");
        let (f32, bf16) = (&ratios[0], &ratios[1]);
        assert_eq!((f32.mode, f32.ours_ms, f32.torch_ms, f32.ratio), ("f32-nhwc", 9.0, 12.0, 0.75));
        assert_eq!((f32.ours.least_ms, f32.ours.most_ms, f32.ours.count), (6.0, 100.0, 3));
        assert_eq!((bf16.precision.as_str(), bf16.ours_ms, bf16.ratio), ("bf16", 2.5, 0.25));
        assert_eq!((f32.ours_mb, f32.torch_mb), (Some(300.0), Some(900.0)));
        let json = serde_json::to_value(&ratios).unwrap();
        let keys: Vec<&str> = json[0].as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = ["row", "precision", "ours_ms", "torch_ms", "ratio", "ours_mb", "torch_mb"];
        expected.sort();
        let mut keys = keys;
        keys.sort();
        assert_eq!(keys, expected);
    }

    #[test]
    fn a_side_that_stands_alone_has_no_ratio() {
        let mut lines = measured("B", "f32", "f32-nchw", &[1.0], &[]);
        lines.retain(|line| line.side == OURS);
        assert!(ratios(&Samples::of(lines)).is_empty());
    }

    #[test]
    fn targets_are_those_of_the_table() {
        assert_eq!(
            [("A", "f32"), ("B", "bf16"), ("C_batch_8", "f32"), ("attention_1024", "bf16"), (START_UP, "f32")].map(|(row, p)| target(row, p)),
            [0.8, 0.5, 0.5, 1.0, 0.1]
        );
    }
}
