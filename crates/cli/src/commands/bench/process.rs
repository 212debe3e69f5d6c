//! One row in a process of its own, so that its peak of memory is its own, driven line by line: whoever compares two programs lets them take turns.
//!
//! The process prints a line when it is ready (built, and run once to warm up), then one line for each line it reads, and when its input ends one more.
//! All lines are JSON.

use super::Precision;
use super::row::Row;
use crate::output::print_json;
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use smalti_kernels::{InstructionSet, threads};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Instant;

#[derive(Debug, Serialize, Deserialize)]
pub struct Ready {
    pub row: String,
    pub instruction_set: String,
    pub threads: usize,
    /// What one unit is; the numbers below are of one.
    pub unit: String,
    pub flops: f64,
    pub bytes: f64,
}

/// One run, by unit.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Sample {
    pub ms: f64,
    /// Of all threads; `None` where the system does not tell.
    pub cpu_ms: Option<f64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Done {
    /// Most memory the process ever held, MiB.
    pub peak_mb: Option<f64>,
}

/// The other side: measures the row as often as lines come in.
pub fn serve(row: &Row, thread_count: usize) -> anyhow::Result<()> {
    threads::install(thread_count, || {
        let mut prepared = row.prepare();
        (prepared.body)();
        let units = prepared.units as f64;
        print_json(&Ready {
            row: row.name.into(),
            instruction_set: InstructionSet::current().name().into(),
            threads: threads::count(),
            unit: row.unit.into(),
            flops: prepared.flops / units,
            bytes: prepared.bytes / units,
        })?;
        for line in std::io::stdin().lock().lines() {
            line.context("stdin")?;
            let (start, cpu_start) = (Instant::now(), cpu_ms());
            (prepared.body)();
            let ms = start.elapsed().as_secs_f64() * 1e3 / units;
            print_json(&Sample { ms, cpu_ms: cpu_ms().zip(cpu_start).map(|(end, start)| (end - start) / units) })?;
        }
        print_json(&Done { peak_mb: peak_mb() })
    })
}

/// A row that is being measured.
pub struct Measured {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// Its stderr, read as it comes: a full pipe would hold the process up.
    errors: Option<JoinHandle<String>>,
}

impl Measured {
    /// Starts this program again for one row; comes back when it is ready.
    pub fn start(row: &Row, precision: Precision, thread_count: Option<usize>) -> anyhow::Result<(Self, Ready)> {
        let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
        command.args(["bench", "--serve", "--rows", row.name, "--precision", precision.name()]);
        if let Some(count) = thread_count {
            command.args(["--threads", &count.to_string()]);
        }
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot start a process")?;
        let (input, output) = (process.stdin.take(), BufReader::new(process.stdout.take().context("no stdout")?));
        let mut stderr = process.stderr.take().context("no stderr")?;
        let errors = std::thread::spawn(move || {
            let mut said = Vec::new();
            let _ = stderr.read_to_end(&mut said);
            String::from_utf8_lossy(&said).into_owned()
        });
        let mut measured = Self { process, input, output, errors: Some(errors) };
        let ready = measured.answer()?;
        Ok((measured, ready))
    }

    pub fn sample(&mut self) -> anyhow::Result<Sample> {
        // A process that is gone says why on its stderr, which `answer` hands on.
        let _ = self.input.as_mut().map(|input| input.write_all(b"\n").and_then(|()| input.flush()));
        self.answer()
    }

    pub fn finish(mut self) -> anyhow::Result<Done> {
        self.input = None;
        let done = self.answer()?;
        self.process.wait().context("cannot wait for the process")?;
        Ok(done)
    }

    fn answer<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let mut line = String::new();
        if self.output.read_line(&mut line).context("cannot read from the process")? > 0 {
            return serde_json::from_str(&line).with_context(|| format!("an unexpected line: {line}"));
        }
        let status = self.process.wait().context("cannot wait for the process")?;
        let errors = self.errors.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        let said = errors.trim().trim_start_matches("error: ");
        if said.is_empty() { bail!("the process ended with {status}") } else { bail!("{said}") }
    }
}

/// Time that all threads of this process have run. Linux only.
fn cpu_ms() -> Option<f64> {
    let threads = fs::read_dir("/proc/self/task").ok()?;
    let nanoseconds = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Some(nanoseconds.sum::<u64>() as f64 / 1e6)
}

/// Linux only.
fn peak_mb() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes: f64 = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes / 1024.0)
}
