//! A process that measures one row each time it reads a line: `smalti bench --serve` and `benchsuite/torch_side.py`.

use super::plan::Pair;
use super::samples::Sample;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Between two measurements. OpenMP's threads look out for milliseconds, ours for a fifth of one.
const REST: Duration = Duration::from_millis(50);

/// Any line that a side prints.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    flops: Option<f64>,
    bytes: Option<f64>,
    ms: Option<f64>,
    cpu_ms: Option<f64>,
    peak_mb: Option<f64>,
}

pub struct Side {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// What it says on its stderr, read as it comes: a full pipe would hold it up.
    errors: Option<JoinHandle<Vec<u8>>>,
    ready: Line,
}

impl Side {
    /// Comes back when the process is built and warm.
    pub fn start(mut command: Command) -> Result<Self> {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = piped.spawn().with_context(|| format!("{command:?}"))?;
        let (input, output) = (process.stdin.take(), BufReader::new(process.stdout.take().context("no stdout")?));
        let mut stderr = process.stderr.take().context("no stderr")?;
        let errors = thread::spawn(move || {
            let mut said = Vec::new();
            let _ = stderr.read_to_end(&mut said);
            said
        });
        let mut side = Self { process, input, output, errors: Some(errors), ready: Line::default() };
        side.ready = side.answer()?;
        Ok(side)
    }

    /// One measurement, when the other side's threads, which look out for more work for a while after theirs, have gone to sleep.
    pub fn sample(&mut self, pair: &Pair, name: &str) -> Result<Sample> {
        thread::sleep(REST);
        // A process that is gone says why on its stderr, which `answer` hands on.
        let _ = self.input.as_mut().map(|input| input.write_all(b"\n").and_then(|()| input.flush()));
        let line = self.answer()?;
        let ms = line.ms.context("expected a time")?;
        let (gflop, mbyte) = (self.ready.flops.map(|flops| flops / 1e9), self.ready.bytes.map(|bytes| bytes / 1e6));
        Ok(Sample { ms: Some(ms), cpu_ms: line.cpu_ms, gflop, mbyte, ..Sample::of(pair, name) })
    }

    /// The most memory that the process held.
    pub fn finish(mut self, pair: &Pair, name: &str) -> Result<Sample> {
        self.input = None;
        let line = self.answer()?;
        self.process.wait()?;
        Ok(Sample { peak_mb: line.peak_mb, ..Sample::of(pair, name) })
    }

    fn answer(&mut self) -> Result<Line> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? > 0 {
            return serde_json::from_str(&line).with_context(|| format!("an unexpected line: {line}"));
        }
        let status = self.process.wait()?;
        let errors = self.errors.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        bail!("{} ({status})", last_line(&errors))
    }
}

impl Drop for Side {
    /// When the other side fails, this one must not go on in the background.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a program said last, which in Python is the error.
pub fn last_line(errors: &[u8]) -> String {
    String::from_utf8_lossy(errors).trim().lines().last().unwrap_or("no message").to_string()
}
