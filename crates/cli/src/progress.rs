//! How far long work is, on stderr: a bar when a person watches, plain lines otherwise.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use smalti_pipeline::Progress;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Shows one stage after the other.
pub struct Reporter {
    stage: Option<Stage>,
    on_terminal: bool,
}

struct Stage {
    name: String,
    started: Instant,
    last_line: Instant,
    bar: ProgressBar,
}

impl Reporter {
    pub fn new() -> Self {
        Self { stage: None, on_terminal: std::io::stderr().is_terminal() }
    }

    pub fn pipeline(&mut self, progress: Progress) {
        self.report(progress.stage.name(), progress.done, progress.total);
    }

    /// `done` of `total` units of the stage `name` are done; a new name starts a new stage.
    pub fn report(&mut self, name: &str, done: usize, total: usize) {
        if self.stage.as_ref().is_none_or(|stage| stage.name != name) {
            self.finish();
            self.stage = Some(self.start(name, total));
        }
        let Some(stage) = &mut self.stage else { return };
        stage.bar.set_position(done as u64);
        if done >= total {
            let elapsed = stage.started.elapsed().as_secs_f64();
            stage.bar.finish_and_clear();
            eprintln!("{name}: {total} in {elapsed:.1} s");
            // What follows under the same name is another stage.
            self.stage = None;
        } else if !self.on_terminal && stage.last_line.elapsed() >= LINE_INTERVAL {
            stage.last_line = Instant::now();
            let rate = done as f64 / stage.started.elapsed().as_secs_f64();
            eprintln!("{name}: {done} of {total}, {rate:.1}/s, {:.0} s left", (total - done) as f64 / rate);
        }
    }

    fn start(&self, name: &str, total: usize) -> Stage {
        let target = if self.on_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len}  {per_sec}  {eta} left").unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(total as u64), target).with_style(style).with_message(name.to_string());
        Stage { name: name.to_string(), started: Instant::now(), last_line: Instant::now(), bar }
    }

    fn finish(&mut self) {
        if let Some(stage) = self.stage.take() {
            stage.bar.finish_and_clear();
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.finish();
    }
}
