//! How long a small kernel takes when the last one was some time ago: what waking threads costs. `cargo run --release -p smalti-kernels --example regions`

use smalti_kernels::product::{self, Sizes};
use smalti_kernels::threads;
use std::time::{Duration, Instant};

const SIDE: usize = 768;
const CALLS: usize = 2001;

fn main() {
    println!("a product of 1x{SIDE} and {SIDE}x{SIDE}, microseconds, medians of {CALLS}");
    for thread_count in [1, threads::limit()] {
        for pause in [0, 5, 20, 60, 1000].map(Duration::from_micros) {
            let median = threads::install(thread_count, || median_after(pause));
            println!("{thread_count} threads, {pause:?} after the last: {:.1}", median.as_secs_f64() * 1e6);
        }
    }
}

fn median_after(pause: Duration) -> Duration {
    let (a, b, mut y) = (vec![0.5; SIDE], vec![0.25; SIDE * SIDE], vec![0.0; SIDE]);
    let one_call = |_| {
        let last = Instant::now();
        while last.elapsed() < pause {}
        let start = Instant::now();
        product::multiply(&a, &b, false, None, Sizes { rows: 1, depth: SIDE, columns: SIDE }, &mut y);
        start.elapsed()
    };
    let mut times: Vec<Duration> = (0..CALLS).map(one_call).collect();
    times.sort();
    times[CALLS / 2]
}
