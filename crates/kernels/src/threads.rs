//! How many threads work, and how work is cut.
//!
//! The count is the process's own limit (`available_parallelism`, which knows affinity and cgroup quotas) unless `install` says less.

mod placement; // which processors helpers run on
mod team; //      helpers that wait awake between regions

use rayon::prelude::*;
use std::cell::OnceCell;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use team::Team;

thread_local! {
    /// The team of the pool that this thread belongs to, if `install` made it.
    static TEAM: OnceCell<Arc<Team>> = const { OnceCell::new() };
}

/// Runs `body` inside a pool of `count` threads (0: as many as this process may use, never more). Kernels inside take their threads from it;
/// entering once around a whole step also saves the hand-over that each parallel region would pay from outside, and between regions the threads wait awake.
pub fn install<R: Send>(count: usize, body: impl FnOnce() -> R + Send) -> R {
    let limit = limit();
    let count = if count == 0 { limit } else { count.min(limit) };
    if rayon::current_thread_index().is_some() && rayon::current_num_threads() == count {
        return body();
    }
    let team = Arc::new(Team::new(count));
    let join = {
        let team = team.clone();
        move |index| {
            team.join(index);
            TEAM.with(|mine| drop(mine.set(team.clone())));
        }
    };
    match rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(|index| format!("kernel-{index}")).start_handler(join).build() {
        Ok(pool) => pool.install(|| {
            team.begin_body();
            body()
        }),
        Err(_) => body(), // no new threads to be had: the caller's own still does the work
    }
}

/// Threads that this process may use at the same time, asked for once: a helper that has been given a processor would hear that it may use that one.
pub fn limit() -> usize {
    static LIMIT: OnceLock<usize> = OnceLock::new();
    *LIMIT.get_or_init(|| std::thread::available_parallelism().map_or(1, |count| count.get()))
}

/// Threads that a kernel called here would use.
pub fn count() -> usize {
    rayon::current_num_threads()
}

/// Calls `task(0..count)`, each once, in any order and on any thread.
pub(crate) fn each(count: usize, task: impl Fn(usize) + Sync + Send) {
    if count <= 1 || rayon::current_num_threads() == 1 {
        return (0..count).for_each(task);
    }
    TEAM.with(|team| match team.get() {
        Some(team) => {
            team.place();
            if !team.share(count, &task) {
                (0..count).into_par_iter().with_max_len(1).for_each(task);
            }
            Team::wake(team);
        }
        None => (0..count).into_par_iter().with_max_len(1).for_each(task),
    });
}

/// Part `index` of `length` elements cut into `count` parts whose sizes differ by one at most.
pub(crate) fn part(length: usize, count: usize, index: usize) -> Range<usize> {
    length * index / count..length * (index + 1) / count
}
