//! How far long work is, on stderr: a bar when a person watches, plain lines otherwise.

use crate::preview;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use smalti_pipeline::Progress;
use smalti_pipeline::text_to_image::Estimate;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Looks take at most this share of the time.
const LOOK_SHARE: f64 = 0.04;
/// Between two looks at least; faster, nobody sees anything.
const LOOK_INTERVAL: Duration = Duration::from_millis(400);
/// How often a second the terminal is drawn anew with pictures in it, which are thousands of characters.
const LOOK_RATE: u8 = 4;
/// Pictures of a look, and what each may take of the terminal.
const LOOK_COUNT: usize = 4;
const LOOK_COLUMNS: usize = 30;
const LOOK_ROWS: usize = 15;

/// Shows one stage after the other.
pub struct Reporter {
    stage: Option<Stage>,
    on_terminal: bool,
    looks: bool,
    last_look: Option<Look>,
}

/// When a look was taken, and how long it took.
struct Look {
    at: Instant,
    cost: Duration,
}

impl Look {
    fn is_old(&self) -> bool {
        self.at.elapsed() >= LOOK_INTERVAL.max(self.cost.mul_f64(1.0 / LOOK_SHARE))
    }
}

struct Stage {
    name: String,
    started: Instant,
    last_line: Instant,
    bar: ProgressBar,
}

impl Reporter {
    pub fn new() -> Self {
        Self { stage: None, on_terminal: std::io::stderr().is_terminal(), looks: false, last_look: None }
    }

    /// With pictures on their way above the bar, where a person watches.
    pub fn with_looks(mut self, when: preview::When) -> Self {
        self.looks = self.on_terminal && when != preview::When::Never;
        self
    }

    /// Shows what the network takes the pictures for, if there was no look lately.
    pub fn estimate(&mut self, estimate: &Estimate) {
        let Some(stage) = self.stage.as_ref().filter(|_| self.looks && self.last_look.as_ref().is_none_or(Look::is_old)) else { return };
        let at = Instant::now();
        let (columns, rows) = terminal_size::terminal_size_of(std::io::stderr()).map_or((80, 24), |(width, height)| (width.0.into(), height.0.into()));
        let count = (columns / LOOK_COLUMNS).clamp(1, LOOK_COUNT);
        let pictures = estimate.pictures(count, 2 * LOOK_ROWS);
        // A picture that cannot be shown, and a terminal of few lines, leave the bar alone.
        let room = usize::saturating_sub(rows, 4).min(LOOK_ROWS);
        if let Some(text) = pictures.filter(|_| room > 2).and_then(|pictures| preview::small(&pictures, columns.saturating_sub(1), room)) {
            stage.bar.set_prefix(text);
        }
        self.last_look = Some(Look { at, cost: at.elapsed() });
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
            smalti_train::say!("{name}: {total} in {elapsed:.1} s");
            // What follows under the same name is another stage.
            self.stage = None;
        } else if !self.on_terminal && stage.last_line.elapsed() >= LINE_INTERVAL {
            stage.last_line = Instant::now();
            let rate = done as f64 / stage.started.elapsed().as_secs_f64();
            smalti_train::say!("{name}: {done} of {total}, {rate:.1}/s, {:.0} s left", (total - done) as f64 / rate);
        }
    }

    fn start(&self, name: &str, total: usize) -> Stage {
        let target = match (self.on_terminal, self.looks) {
            (false, _) => ProgressDrawTarget::hidden(),
            (true, false) => ProgressDrawTarget::stderr(),
            (true, true) => ProgressDrawTarget::stderr_with_hz(LOOK_RATE),
        };
        let style = ProgressStyle::with_template("{prefix}{msg} {bar:30} {pos}/{len}  {per_sec}  {eta} left").unwrap_or_else(|_| ProgressStyle::default_bar());
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
