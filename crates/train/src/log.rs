//! `log.jsonl`, one JSON object a line, and progress on stderr: a bar on a terminal, plain lines otherwise.

use crate::TrainError;
use crate::recipe::Measures;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use smalti_nn::weights::write_atomically;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

/// A line on stderr, formatted like `eprintln!`. Where it cannot be written (a closed pipe, a log file on a full disk) the work goes on; `eprintln!` would end it.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {
        $crate::log::line(format_args!($($text)*))
    };
}

/// What [`say!`] calls.
pub fn line(text: fmt::Arguments) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Entry {
    /// Means over the steps since the last such line; `seconds` is the time spent training so far.
    Training {
        step: usize,
        losses: Measures,
        learning_rate: f64,
        pictures_per_second: f64,
        seconds: f64,
    },
    Evaluation {
        step: usize,
        measures: Measures,
        seconds: f64,
    },
    /// The run went from `step` back to `to_step`.
    Rollback {
        step: usize,
        to_step: usize,
        reason: String,
        rate_factor: f64,
    },
}

impl Entry {
    pub fn step(&self) -> usize {
        match self {
            Self::Training { step, .. } | Self::Evaluation { step, .. } | Self::Rollback { step, .. } => *step,
        }
    }
}

pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens the log for appending, without the lines after `step`: they tell of work that was lost. A half-written last line goes too.
    pub fn open(path: &Path, step: usize) -> Result<Self, TrainError> {
        let failed = |source| TrainError::io(path, source);
        if path.exists() {
            let kept: Vec<Entry> = read(path)?.into_iter().filter(|entry| entry.step() <= step || matches!(entry, Entry::Rollback { .. })).collect();
            write_atomically(path, |writer| {
                kept.iter().try_for_each(|entry| writeln!(writer, "{}", serde_json::to_string(entry).map_err(std::io::Error::other)?))
            })
            .map_err(failed)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    pub fn write(&mut self, entry: &Entry) -> Result<(), TrainError> {
        let line = serde_json::to_string(entry).map_err(std::io::Error::other).map_err(|source| TrainError::io(&self.path, source))?;
        writeln!(self.file, "{line}").map_err(|source| TrainError::io(&self.path, source))
    }
}

/// Every whole line of a log; a missing file is an empty log, a line cut short by a crash is left out.
pub fn read(path: &Path) -> Result<Vec<Entry>, TrainError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(TrainError::io(path, source)),
    }
}

/// What the person at the terminal sees.
pub struct Display {
    bar: Option<ProgressBar>,
    step_count: usize,
}

impl Display {
    pub fn new(step: usize, step_count: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}  {eta} left").expect("the template is valid");
            let bar = ProgressBar::new(step_count as u64).with_style(style).with_position(step as u64);
            bar.reset_eta();
            bar
        });
        Self { bar, step_count }
    }

    pub fn step(&self, step: usize) {
        if let Some(bar) = &self.bar {
            bar.set_position(step as u64);
        }
    }

    pub fn entry(&self, entry: &Entry, seconds_left: f64) {
        match entry {
            Entry::Training { step, losses, learning_rate, pictures_per_second, .. } => {
                let text = format!("{}  rate {learning_rate:.2e}  {pictures_per_second:.1} pictures/s", figures(losses));
                match &self.bar {
                    Some(bar) => bar.set_message(text),
                    None => crate::say!("step {step}/{}  {text}  {} left", self.step_count, duration(seconds_left)),
                }
            }
            Entry::Evaluation { step, measures, .. } if !measures.is_empty() => self.say(&format!("evaluation at step {step}: {}", figures(measures))),
            Entry::Evaluation { .. } => {}
            Entry::Rollback { step, to_step, reason, rate_factor } => {
                self.say(&format!("step {step}: {reason}; back to step {to_step} with {rate_factor} of the learning rate"));
            }
        }
    }

    /// A line above the bar.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| crate::say!("{text}")),
            None => crate::say!("{text}"),
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn figures(measures: &Measures) -> String {
    let figure = |value: f64| if value != 0.0 && !(1e-3..1e5).contains(&value.abs()) { format!("{value:.2e}") } else { format!("{value:.4}") };
    measures.iter().map(|(name, &value)| format!("{name} {}", figure(value))).collect::<Vec<_>>().join("  ")
}

/// "1h 02m", "3m 20s", "15s".
pub(crate) fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m {seconds:02}s"),
        (hours, minutes, _) => format!("{hours}h {minutes:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(step: usize) -> Entry {
        let losses = Measures::from([("total".to_string(), 0.5)]);
        Entry::Training { step, losses, learning_rate: 1e-3, pictures_per_second: 10.0, seconds: step as f64 }
    }

    #[test]
    fn reopening_drops_lost_steps_and_half_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let mut log = Log::open(&path, 0).unwrap();
        (1..=4).for_each(|step| log.write(&entry(step)).unwrap());
        drop(log);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        write!(file, "{{\"kind\":\"training\",\"st").unwrap();
        let mut log = Log::open(&path, 2).unwrap();
        log.write(&entry(3)).unwrap();
        assert_eq!(read(&path).unwrap(), [entry(1), entry(2), entry(3)]);
    }

    #[test]
    fn durations_read_well() {
        assert_eq!([duration(15.4), duration(200.0), duration(3725.0)], ["15s", "3m 20s", "1h 02m"]);
    }
}
