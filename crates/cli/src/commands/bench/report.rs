//! What was measured, beside what the machine could do.

use super::process::{Done, Ready, Sample};
use serde::Serialize;
use std::fmt;

#[derive(Debug, Serialize)]
pub struct Report {
    pub precision: &'static str,
    pub instruction_set: String,
    pub threads: usize,
    pub limits: Limits,
    pub rows: Vec<Outcome>,
}

/// The most that was measured on this machine with as many threads.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Limits {
    pub gflop_per_second: f64,
    /// The larger one of reading and of a triad.
    pub gbyte_per_second: f64,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    Measured(Measurement),
    Failed { row: String, failure: String },
}

#[derive(Debug, Serialize)]
pub struct Measurement {
    pub row: String,
    /// Times and amounts are of one: a call, a picture, a step, a token.
    pub unit: String,
    pub median_ms: f64,
    pub least_ms: f64,
    pub most_ms: f64,
    pub median_cpu_ms: Option<f64>,
    pub samples_ms: Vec<f64>,
    pub gflop: f64,
    pub mbyte: f64,
    pub peak_mb: Option<f64>,
    /// The time that arithmetic or memory traffic alone would take at the machine's limit, over the median. `None` until the limits are known.
    pub share_of_limit: Option<f64>,
    pub bound_by: Option<&'static str>,
    #[serde(skip)]
    instruction_set: String,
    #[serde(skip)]
    threads: usize,
}

impl Measurement {
    /// Of at least one sample.
    pub fn new(ready: Ready, samples: &[Sample], done: Done) -> Self {
        let samples_ms: Vec<f64> = samples.iter().map(|sample| sample.ms).collect();
        let cpu_ms: Option<Vec<f64>> = samples.iter().map(|sample| sample.cpu_ms).collect();
        Self {
            row: ready.row,
            unit: ready.unit,
            median_ms: median(&samples_ms),
            least_ms: samples_ms.iter().copied().fold(f64::INFINITY, f64::min),
            most_ms: samples_ms.iter().copied().fold(0.0, f64::max),
            median_cpu_ms: cpu_ms.map(|cpu_ms| median(&cpu_ms)),
            samples_ms,
            gflop: ready.flops / 1e9,
            mbyte: ready.bytes / 1e6,
            peak_mb: done.peak_mb,
            share_of_limit: None,
            bound_by: None,
            instruction_set: ready.instruction_set,
            threads: ready.threads,
        }
    }

    pub fn gflop_per_second(&self) -> f64 {
        self.gflop / self.median_ms * 1e3
    }

    pub fn gbyte_per_second(&self) -> f64 {
        self.mbyte / self.median_ms
    }

    /// What is slower at the machine's limit, arithmetic or traffic, bounds the row.
    fn compare(&mut self, limits: &Limits) {
        if limits.gflop_per_second == 0.0 || limits.gbyte_per_second == 0.0 {
            return;
        }
        let arithmetic_ms = self.gflop / limits.gflop_per_second * 1e3;
        let traffic_ms = self.mbyte / limits.gbyte_per_second;
        self.share_of_limit = Some(arithmetic_ms.max(traffic_ms) / self.median_ms);
        self.bound_by = Some(if arithmetic_ms > traffic_ms { "arithmetic" } else { "memory" });
    }
}

/// The middle of at least one number, between the two middle ones of an even count.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + sorted[middle]) / 2.0 } else { sorted[middle] }
}

impl Report {
    pub fn new(precision: &'static str) -> Self {
        Self { precision, instruction_set: String::new(), threads: 0, limits: Limits::default(), rows: Vec::new() }
    }

    /// Rows that say what the machine can do come before those that are compared with it.
    pub fn add(&mut self, mut outcome: Outcome) {
        if let Outcome::Measured(measurement) = &mut outcome {
            self.limits.learn(measurement);
            measurement.compare(&self.limits);
            self.instruction_set.clone_from(&measurement.instruction_set);
            self.threads = measurement.threads;
        }
        self.rows.push(outcome);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Limits { gflop_per_second, gbyte_per_second } = self.limits;
        writeln!(
            f,
            "{}, {}, {} threads; limits measured: {gflop_per_second:.0} GFLOP/s, {gbyte_per_second:.1} GB/s",
            self.precision, self.instruction_set, self.threads
        )?;
        write!(f, "{:38} {:>10} {:>19} {:>9} {:>9} {:>9} {:>9}", "row", "median ms", "least - most", "GFLOP/s", "GB/s", "of limit", "peak MiB")?;
        for outcome in &self.rows {
            match outcome {
                Outcome::Measured(row) => write!(f, "\n{row}")?,
                Outcome::Failed { row, failure } => write!(f, "\n{row:38} failed: {failure}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let spread = format!("{:.2} - {:.2}", self.least_ms, self.most_ms);
        let rate = |value: f64, digits: usize| if value > 0.0 { format!("{value:.digits$}") } else { "-".into() };
        let share = self.share_of_limit.map_or("-".into(), |share| format!("{:.0}%", 100.0 * share));
        let peak = self.peak_mb.map_or("-".into(), |peak| format!("{peak:.0}"));
        let (gflop, gbyte) = (rate(self.gflop_per_second(), 0), rate(self.gbyte_per_second(), 1));
        write!(f, "{:38} {:>10.2} {spread:>19} {gflop:>9} {gbyte:>9} {share:>9} {peak:>9}", self.row, self.median_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(row: &str, gflop: f64, mbyte: f64, ms: &[f64]) -> Measurement {
        let ready = Ready { row: row.into(), instruction_set: "portable".into(), threads: 2, unit: "call".into(), flops: gflop * 1e9, bytes: mbyte * 1e6 };
        let samples: Vec<Sample> = ms.iter().map(|&ms| Sample { ms, cpu_ms: Some(2.0 * ms) }).collect();
        Measurement::new(ready, &samples, Done { peak_mb: Some(1.0) })
    }

    #[test]
    fn rows_are_compared_with_what_bounds_them() {
        let mut report = Report::new("f32");
        report.add(Outcome::Measured(measurement("peak_multiply_add", 10.0, 0.0, &[100.0]))); // 100 GFLOP/s
        report.add(Outcome::Measured(measurement("peak_triad", 0.0, 100.0, &[10.0]))); // 10 GB/s
        report.add(Outcome::Measured(measurement("peak_read", 0.0, 200.0, &[10.0]))); // 20 GB/s
        report.add(Outcome::Measured(measurement("x", 1.0, 20.0, &[80.0, 20.0, 40.0]))); // 10 ms of arithmetic, 1 ms of traffic
        report.add(Outcome::Measured(measurement("y", 1.0, 400.0, &[40.0, 20.0, 21.0, 19.0]))); // 20 ms of traffic
        let [.., Outcome::Measured(x), Outcome::Measured(y)] = report.rows.as_slice() else { panic!("two rows at the end") };
        assert_eq!((x.median_ms, x.least_ms, x.most_ms, x.median_cpu_ms), (40.0, 20.0, 80.0, Some(80.0)));
        assert!((x.share_of_limit.unwrap() - 0.25).abs() < 1e-9 && x.bound_by == Some("arithmetic"));
        assert_eq!(y.median_ms, 20.5);
        assert!((y.share_of_limit.unwrap() - 20.0 / 20.5).abs() < 1e-9 && y.bound_by == Some("memory"));
    }
}
