//! Ctrl-C, a termination by a scheduler, the end of the terminal: the first asks for a stop in good order, the second ends the process at once.

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::Relaxed};

pub struct Interrupt {
    /// Set by the first signal.
    pub asked: Arc<AtomicBool>,
    /// Whether a stop in good order keeps something; until then a signal ends the process as if nobody listened.
    keeps: Arc<AtomicBool>,
    /// The first one's number.
    signal: Arc<AtomicI32>,
}

impl Interrupt {
    /// Answers the first signal with `message`; `keeps`: whether there is something to keep from the start.
    pub fn listen(message: &'static str, keeps: bool) -> anyhow::Result<Self> {
        let interrupt = Self { asked: Arc::default(), keeps: Arc::new(AtomicBool::new(keeps)), signal: Arc::default() };
        let heard = if ignores_hang_up() { vec![SIGINT, SIGTERM] } else { vec![SIGINT, SIGTERM, SIGHUP] };
        let mut signals = Signals::new(heard).context("cannot listen for Ctrl-C")?;
        let Self { asked, keeps, signal: first } = &interrupt;
        let (asked, keeps, first) = (Arc::clone(asked), Arc::clone(keeps), Arc::clone(first));
        std::thread::spawn(move || {
            for signal in signals.forever() {
                if !keeps.load(Relaxed) || asked.load(Relaxed) {
                    end_by(signal);
                }
                first.store(signal, Relaxed);
                asked.store(true, Relaxed);
                smalti_train::say!("{message}");
            }
        });
        Ok(interrupt)
    }

    /// From now on there is something to keep.
    pub fn keep(&self) {
        self.keeps.store(true, Relaxed);
    }

    pub fn asked(&self) -> bool {
        self.asked.load(Relaxed)
    }

    /// Ends the process by the signal that asked for it, if one did: a shell's loop then ends too.
    pub fn end(&self) {
        if self.asked() {
            end_by(self.signal.load(Relaxed));
        }
    }
}

fn end_by(signal: i32) {
    let _ = emulate_default_handler(signal);
    std::process::exit(128 + signal);
}

/// Whether the end of the terminal is nothing to this process, as `nohup` has it; where that cannot be known it stays as it is.
fn ignores_hang_up() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    ignored.is_none_or(|bits| bits >> (SIGHUP - 1) & 1 == 1)
}
