//! `smalti bench`: how fast the operations and networks run on this machine, and what share of its limits they reach.

mod flops; //       how much arithmetic a network is
mod networks; //    rows A, B and C
mod latent_diffusion; // row D
mod operations; //  rows of one operation, and the machine's limits
mod process; //     one row in a process of its own
mod report; //      what was measured, as text and JSON
mod row; //         the rows by name
mod transformer; // the network of row C

use crate::failure::WrongUse;
use crate::output::{print, print_json};
use crate::progress::Reporter;
use anyhow::Context;
use process::{Measured, serve};
use report::{Limits, Measurement, Outcome, Report};
use row::{PEAK_MULTIPLY_ADD, PEAK_TRAFFIC, ROWS, Row, named};
use smalti_nn::precision;

/// Measure how fast operations and networks run on this machine
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// Rows to measure, or families of them such as conv and C [default: all but those about scaling]; --list shows their names
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    rows: Vec<String>,
    /// The numbers that are multiplied
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
    /// How often each row is measured; the median counts
    #[arg(long, value_name = "N", default_value_t = 7)]
    repetitions: usize,
    /// Threads to use, at most the processors there are [default: all]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Name the rows and measure nothing
    #[arg(long)]
    list: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Measure one row, once for each line on stdin; for programs that compare
    #[arg(long, hide = true)]
    serve: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Precision {
    F32,
    Bf16,
}

impl Precision {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    fn of_run(self) -> smalti_nn::Precision {
        match self {
            Self::F32 => smalti_nn::Precision::F32,
            Self::Bf16 => smalti_nn::Precision::Bf16,
        }
    }
}

pub struct Job {
    rows: Vec<&'static Row>,
    precision: Precision,
    repetitions: usize,
    thread_count: Option<usize>,
    what: What,
    json: bool,
}

enum What {
    List,
    Measure,
    Serve,
}

pub fn resolve(flags: Flags) -> anyhow::Result<Job> {
    let Flags { rows, precision, repetitions, threads, list, json, serve } = flags;
    let wrong = |text: String| -> anyhow::Error { WrongUse(text).into() };
    if repetitions == 0 {
        return Err(wrong("--repetitions: expected at least 1, found 0".into()));
    }
    if threads == Some(0) {
        return Err(wrong("--threads: expected at least 1, found 0".into()));
    }
    if let Some(unknown) = rows.iter().find(|name| named(name).is_empty()) {
        return Err(wrong(format!("--rows: expected rows of the benchmark, found `{unknown}`; hint: smalti bench --list names them")));
    }
    let asked: Vec<&str> = rows.iter().flat_map(|name| named(name)).map(|row| row.name).collect();
    let chosen: Vec<&Row> = ROWS.iter().filter(|row| if rows.is_empty() { row.usual || list } else { asked.contains(&row.name) }).collect();
    if serve && chosen.len() != 1 {
        return Err(wrong(format!("--serve: expected one row, found {}", chosen.len())));
    }
    let what = match (list, serve) {
        (true, _) => What::List,
        (_, true) => What::Serve,
        _ => What::Measure,
    };
    Ok(Job { rows: chosen, precision, repetitions, thread_count: threads, what, json })
}

pub fn run(job: Job) -> anyhow::Result<()> {
    match job.what {
        What::List => print(&job.rows.iter().map(|row| row.name).collect::<Vec<_>>().join("\n")),
        What::Serve => precision::within(job.precision.of_run(), || serve(job.rows[0], job.thread_count.unwrap_or(0))),
        What::Measure => {
            let report = measure(&job);
            if job.json {
                print_json(&report)?
            } else {
                print(&report.to_string())?
            }
            let failed = report.rows.iter().filter(|outcome| matches!(outcome, Outcome::Failed { .. })).count();
            if failed == 0 { Ok(()) } else { Err(anyhow::anyhow!("{failed} of {} rows failed", report.rows.len())) }
        }
    }
}

/// The machine's limits first, whatever was asked for: without them a time says little.
fn measure(job: &Job) -> Report {
    let limit_rows = ROWS.iter().filter(|row| row.name == PEAK_MULTIPLY_ADD || PEAK_TRAFFIC.contains(&row.name));
    let others = job.rows.iter().copied().filter(|row| row.name != PEAK_MULTIPLY_ADD && !PEAK_TRAFFIC.contains(&row.name));
    let rows: Vec<&Row> = limit_rows.chain(others).collect();
    let mut reporter = Reporter::new();
    let mut report = Report::new(job.precision.name());
    for (index, row) in rows.iter().enumerate() {
        reporter.report("measuring", index, rows.len());
        let outcome = match measure_row(row, job) {
            Ok(measurement) => Outcome::Measured(measurement),
            Err(error) => Outcome::Failed { row: row.name.into(), failure: format!("{error:#}") },
        };
        report.add(outcome);
    }
    reporter.report("measuring", rows.len(), rows.len());
    report
}

fn measure_row(row: &Row, job: &Job) -> anyhow::Result<Measurement> {
    let (mut measured, ready) = Measured::start(row, job.precision, job.thread_count)?;
    let samples = (0..job.repetitions).map(|_| measured.sample()).collect::<anyhow::Result<Vec<_>>>().with_context(|| row.name)?;
    let done = measured.finish()?;
    Ok(Measurement::new(ready, &samples, done))
}

impl Limits {
    /// Takes what the row says about the machine.
    fn learn(&mut self, measurement: &Measurement) {
        if measurement.row == PEAK_MULTIPLY_ADD {
            self.gflop_per_second = measurement.gflop_per_second();
        }
        if PEAK_TRAFFIC.contains(&measurement.row.as_str()) {
            self.gbyte_per_second = self.gbyte_per_second.max(measurement.gbyte_per_second());
        }
    }
}
