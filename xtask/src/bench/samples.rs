//! `raw.csv`: one line for each sample, failure and peak of memory; the whole truth of a run.

use super::plan::Pair;
use anyhow::{Context, Result, bail};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

pub const OURS: &str = "ours";
pub const TORCH: &str = "torch";
const HEADER: &str = "row,precision,threads,mode,side,repetition,ms,cpu_ms,peak_mb,gflop,mbyte,failure";

/// A time, a peak of memory at the end of a process, or a failure.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    pub row: String,
    pub precision: String,
    /// `all`, or how many.
    pub threads: String,
    /// Torch's, for both sides of a pair; empty where ours runs alone.
    pub mode: String,
    pub side: String,
    pub repetition: usize,
    pub ms: Option<f64>,
    pub cpu_ms: Option<f64>,
    pub peak_mb: Option<f64>,
    pub gflop: Option<f64>,
    pub mbyte: Option<f64>,
    pub failure: String,
}

impl Sample {
    pub fn of(pair: &Pair, side: &str) -> Self {
        Self {
            row: pair.row.into(),
            precision: pair.precision.into(),
            threads: threads(pair),
            mode: pair.mode.unwrap_or_default().into(),
            side: side.into(),
            ..Self::default()
        }
    }

    pub fn failed(pair: &Pair, failure: &str) -> Self {
        Self { failure: failure.replace(['\n', '\r', ',', '"'], " "), ..Self::of(pair, "") }
    }

    fn line(&self) -> String {
        let number = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.4}"));
        let numbers = [self.ms, self.cpu_ms, self.peak_mb, self.gflop, self.mbyte].map(number).join(",");
        [&self.row, &self.precision, &self.threads, &self.mode, &self.side, &self.repetition.to_string(), &numbers, &self.failure]
            .map(|text| text.as_str())
            .join(",")
    }

    fn parse(line: &str) -> Result<Self> {
        let fields: Vec<&str> = line.split(',').collect();
        let &[row, precision, threads, mode, side, repetition, ms, cpu_ms, peak_mb, gflop, mbyte, failure] = fields.as_slice() else {
            bail!("expected {} fields, found {}", HEADER.split(',').count(), fields.len())
        };
        let number = |text: &str| if text.is_empty() { Ok(None) } else { text.parse().map(Some).with_context(|| format!("expected a number, found `{text}`")) };
        Ok(Self {
            row: row.into(),
            precision: precision.into(),
            threads: threads.into(),
            mode: mode.into(),
            side: side.into(),
            repetition: repetition.parse().with_context(|| format!("expected a number, found `{repetition}`"))?,
            ms: number(ms)?,
            cpu_ms: number(cpu_ms)?,
            peak_mb: number(peak_mb)?,
            gflop: number(gflop)?,
            mbyte: number(mbyte)?,
            failure: failure.into(),
        })
    }
}

fn threads(pair: &Pair) -> String {
    pair.threads.map_or("all".into(), |threads| threads.to_string())
}

/// The lines, and the file that they are appended to.
pub struct Samples {
    pub lines: Vec<Sample>,
    file: Option<File>,
}

impl Samples {
    /// A new file, or the lines that are there. A last line without its end is what a stopped run left, and dropped.
    pub fn open(path: &Path) -> Result<Self> {
        let text = if path.exists() { std::fs::read_to_string(path).with_context(|| path.display().to_string())? } else { String::new() };
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let lines = Self::parse(whole).with_context(|| path.display().to_string())?;
        let mut file = OpenOptions::new().create(true).append(true).open(path).with_context(|| path.display().to_string())?;
        file.set_len(whole.len() as u64)?;
        if whole.is_empty() {
            writeln!(file, "{HEADER}")?;
        }
        Ok(Self { lines, file: Some(file) })
    }

    fn parse(text: &str) -> Result<Vec<Sample>> {
        let mut lines = text.lines().enumerate();
        match lines.next() {
            None => return Ok(Vec::new()),
            Some((_, HEADER)) => {}
            Some((_, other)) => bail!("line 1: expected `{HEADER}`, found `{other}`"),
        }
        lines.map(|(index, line)| Sample::parse(line).with_context(|| format!("line {}", index + 1))).collect()
    }

    #[cfg(test)]
    pub fn of(lines: Vec<Sample>) -> Self {
        Self { lines, file: None }
    }

    pub fn add(&mut self, sample: Sample) -> Result<()> {
        if let Some(file) = &mut self.file {
            writeln!(file, "{}", sample.line())?;
            file.flush()?;
        }
        self.lines.push(sample);
        Ok(())
    }

    /// The samples of one side of a pair.
    pub fn side<'a>(&'a self, pair: &Pair, side: &'a str) -> impl Iterator<Item = &'a Sample> + use<'a> {
        let (pair, threads) = (*pair, threads(pair));
        let is = move |line: &&Sample| {
            line.row == pair.row
                && line.precision == pair.precision
                && line.mode == pair.mode.unwrap_or_default()
                && line.threads == threads
                && line.side == side
        };
        self.lines.iter().filter(is)
    }

    /// How many times there are.
    pub fn count(&self, pair: &Pair, side: &str) -> usize {
        self.side(pair, side).filter(|line| line.ms.is_some()).count()
    }

    pub fn complete(&self, pair: &Pair, repetitions: usize) -> bool {
        let sides = if pair.mode.is_some() { vec![OURS, TORCH] } else { vec![OURS] };
        let measured = |side: &&str| self.count(pair, side) >= repetitions;
        let remembered = |side: &&str| pair.row == super::plan::START_UP || self.side(pair, side).any(|line| line.peak_mb.is_some());
        sides.iter().all(|side| measured(side) && remembered(side))
    }

    /// Why a pair has no times, if it failed and was not measured later.
    pub fn failure(&self, pair: &Pair) -> Option<&str> {
        self.side(pair, "").last().map(|line| line.failure.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: Pair = Pair { row: "A", precision: "f32", mode: Some("f32-nhwc"), threads: None };

    #[test]
    fn a_stopped_run_goes_on() {
        let folder = std::env::temp_dir().join(format!("xtask-samples-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("raw.csv");
        let mut samples = Samples::open(&path).unwrap();
        let sample = |side: &str, repetition: usize| Sample { repetition, ms: Some(1.5), cpu_ms: Some(2.25), ..Sample::of(&PAIR, side) };
        for repetition in 0..7 {
            samples.add(sample(OURS, repetition)).unwrap();
        }
        samples.add(Sample::failed(&PAIR, "torch: no, \"such\"\nmodule")).unwrap();
        std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + "A,f32,all,f32-n").unwrap(); // stopped in the middle of a line
        let mut samples = Samples::open(&path).unwrap();
        assert_eq!((samples.count(&PAIR, OURS), samples.count(&PAIR, TORCH)), (7, 0));
        assert_eq!(samples.lines[0], sample(OURS, 0));
        assert_eq!(samples.failure(&PAIR), Some("torch: no   such  module"));
        assert!(!samples.complete(&PAIR, 7));
        for repetition in 0..7 {
            samples.add(sample(TORCH, repetition)).unwrap();
        }
        assert!(!samples.complete(&PAIR, 7), "memory is missing");
        for side in [OURS, TORCH] {
            samples.add(Sample { peak_mb: Some(100.0), ..Sample::of(&PAIR, side) }).unwrap();
        }
        assert!(Samples::open(&path).unwrap().complete(&PAIR, 7));
        assert!(!samples.complete(&PAIR, 8) && !samples.complete(&Pair { threads: Some(1), ..PAIR }, 7));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn other_files_are_not_overwritten() {
        assert!(Samples::parse("name,age\n").is_err());
        assert_eq!(format!("{:#}", Samples::parse(&format!("{HEADER}\nA,f32\n")).unwrap_err()), "line 2: expected 12 fields, found 2");
    }
}
