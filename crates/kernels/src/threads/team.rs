//! Helpers that wait awake between parallel regions.
//!
//! Threads of a pool sleep when there is nothing to do, and the operating system takes 20 to 60 microseconds to wake one: longer than many a kernel runs,
//! and decoding one token calls a hundred of them. So after a region the pool's other threads look out for the next one for a moment, and begin it within
//! a fraction of a microsecond.

use super::placement::Placement;
use std::any::Any;
use std::cell::Cell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a helper looks out for work. Longer than what a network does between two kernels, shorter than anyone would miss the processor.
const LOOK_OUT: Duration = Duration::from_micros(200);
/// Looks between two readings of the clock.
const LOOKS: usize = 32;
/// Looks after which one who waits for others lets them have the processor.
const PATIENCE: usize = 4096;

thread_local! {
    /// Whether this thread is at work on a job. It may then meet a `look_out` in rayon's queues, which would wait for the end of that very job.
    static AT_WORK: Cell<bool> = const { Cell::new(false) };
}

/// The threads of one pool.
pub(super) struct Team {
    /// Threads beside the one that the body runs on.
    helper_count: usize,
    /// The pool's number of the thread that the body runs on, which never waits for work.
    body_thread: AtomicUsize,
    placement: Placement,
    /// What is being shared out; null between regions.
    job: AtomicPtr<Job>,
    /// Whether some thread is sharing out.
    shares: AtomicBool,
    /// Helpers that may be reading `job`, which therefore must not go away.
    inside: AtomicUsize,
    /// Helpers that are awake or have been called.
    awake: AtomicUsize,
}

struct Job {
    /// Lives until `Team::share` returns, whatever the type says.
    task: *const (dyn Fn(usize) + Sync),
    count: usize,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Job {
    /// Takes one index after the other until none is left.
    fn work(&self, before_each: impl Fn()) {
        let _at_work = AtWork(AT_WORK.replace(true));
        while self.next.load(Relaxed) < self.count {
            before_each();
            let index = self.next.fetch_add(1, Relaxed);
            if index >= self.count {
                return;
            }
            // SAFETY: `share` keeps the task alive until nobody is inside.
            unsafe { (*self.task)(index) };
        }
    }
}

impl Team {
    pub fn new(thread_count: usize) -> Self {
        Self {
            helper_count: thread_count.saturating_sub(1),
            body_thread: AtomicUsize::new(0),
            placement: Placement::new(thread_count),
            job: AtomicPtr::default(),
            shares: AtomicBool::default(),
            inside: AtomicUsize::default(),
            awake: AtomicUsize::default(),
        }
    }

    /// The calling thread is number `index` of the pool.
    pub fn join(&self, index: usize) {
        self.placement.join(index);
    }

    /// The calling thread is the one that the body runs on.
    pub fn begin_body(&self) {
        self.body_thread.store(rayon::current_thread_index().unwrap_or(0), Relaxed);
    }

    fn on_body_thread(&self) -> bool {
        rayon::current_thread_index() == Some(self.body_thread.load(Relaxed))
    }

    /// Before helpers that sleep are called.
    pub fn place(&self) {
        if self.awake.load(Relaxed) < self.helper_count && self.on_body_thread() {
            self.placement.spread(self.body_thread.load(Relaxed));
        }
    }

    /// Calls `task(0..count)` on this thread and the helpers that are awake; false, and nothing done, where none is or another thread shares out already.
    pub fn share(&self, count: usize, task: &(dyn Fn(usize) + Sync)) -> bool {
        if self.awake.load(Relaxed) == 0 || self.shares.swap(true, Acquire) {
            return false;
        }
        // SAFETY: only the lifetime changes; nobody reads the job after `Retract` is dropped, below.
        let task = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(task) };
        let job = Job { task, count, next: AtomicUsize::new(0), panic: Mutex::new(None) };
        self.job.store(ptr::from_ref(&job).cast_mut(), SeqCst);
        {
            let _retract = Retract(self); // also where a task panics here
            // The system may move the body to a helper's processor at any time, and would leave both there.
            let on_body_thread = self.on_body_thread();
            job.work(|| {
                if on_body_thread {
                    self.placement.spread(self.body_thread.load(Relaxed))
                }
            });
        }
        if let Some(panic) = job.panic.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            resume_unwind(panic);
        }
        true
    }

    /// Lets all helpers that are not awake look out for the next region; on a thread of the pool.
    pub fn wake(team: &Arc<Self>) {
        while team.awake.load(Relaxed) < team.helper_count {
            team.awake.fetch_add(1, Relaxed);
            let team = team.clone();
            rayon::spawn(move || {
                team.look_out();
                team.awake.fetch_sub(1, Relaxed);
            });
        }
    }

    fn look_out(&self) {
        if self.on_body_thread() || AT_WORK.get() {
            return; // this thread waits for something else, and must not wait here
        }
        let mut since = Instant::now();
        while since.elapsed() < LOOK_OUT {
            for _ in 0..LOOKS {
                if !self.job.load(Relaxed).is_null() {
                    self.help();
                    since = Instant::now();
                }
                spin_loop();
            }
        }
    }

    /// Works on the job if it is still there.
    fn help(&self) {
        // Enter, then look; `Retract` takes away, then looks whether anyone is inside. In the one order of all four (SeqCst) at least one sees the other.
        self.inside.fetch_add(1, SeqCst);
        let job = self.job.load(SeqCst);
        if !job.is_null() {
            // SAFETY: `Retract` lets the job go only when nobody is inside.
            let job = unsafe { &*job };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job.work(|| ()))) {
                job.next.store(job.count, Relaxed);
                *job.panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(panic);
            }
        }
        self.inside.fetch_sub(1, Release);
    }
}

/// Holds what `AT_WORK` was before; also where a task panics, it becomes that again.
struct AtWork(bool);

impl Drop for AtWork {
    fn drop(&mut self) {
        AT_WORK.set(self.0);
    }
}

struct Retract<'a>(&'a Team);

impl Drop for Retract<'_> {
    /// Takes the job away and waits until nobody is at it.
    fn drop(&mut self) {
        self.0.job.store(ptr::null_mut(), SeqCst);
        let mut looks = 0;
        while self.0.inside.load(SeqCst) != 0 {
            looks += 1;
            if looks % PATIENCE == 0 { std::thread::yield_now() } else { spin_loop() }
        }
        self.0.shares.store(false, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{each, install};
    use super::Team;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::sync::mpsc::channel;
    use std::thread::spawn;
    use std::time::Duration;

    /// Thousands of regions of all sizes with pauses of all lengths, so that helpers are met awake, falling asleep and sleeping.
    #[test]
    fn every_index_is_called_once() {
        for threads in [2, 3] {
            install(threads, || {
                for round in 0..3000usize {
                    let calls: Vec<AtomicUsize> = (0..round % 9).map(|_| AtomicUsize::new(0)).collect();
                    each(calls.len(), |index| _ = calls[index].fetch_add(1, Relaxed));
                    assert!(calls.iter().all(|count| count.load(Relaxed) == 1), "round {round}: {calls:?}");
                    if round % 50 == 0 {
                        std::thread::sleep(Duration::from_micros(10 * (round % 41) as u64));
                    }
                }
            });
        }
    }

    #[test]
    fn regions_within_regions_and_from_several_threads_at_once() {
        let sum = AtomicUsize::new(0);
        let add = |value: usize| _ = sum.fetch_add(value, Relaxed);
        install(2, || {
            for _ in 0..200 {
                each(4, |outer| each(5, |inner| add(10 * outer + inner)));
                rayon::join(|| each(3, add), || each(3, add));
            }
        });
        assert_eq!(sum.load(Relaxed), 200 * (5 * 10 * 6 + 4 * 10 + 2 * 3));
    }

    /// As when a thread that waits within a task takes a `look_out` from rayon's queues: the job it would look at ends only when this very task does.
    #[test]
    fn a_thread_at_work_does_not_look_out() {
        let (done, wait) = channel();
        spawn(move || {
            let team = Team::new(2);
            team.awake.store(1, Relaxed);
            assert!(team.share(1, &|_| team.look_out()));
            done.send(()).unwrap();
        });
        assert!(wait.recv_timeout(Duration::from_secs(20)).is_ok(), "it waits for itself");
    }

    #[test]
    fn a_panic_of_any_thread_reaches_the_caller_and_the_team_works_on() {
        install(2, || {
            for round in 0..300 {
                let caught = catch_unwind(AssertUnwindSafe(|| each(8, |index| assert!(index != round % 8, "task {index}"))));
                let message = *caught.unwrap_err().downcast::<String>().unwrap();
                assert_eq!(message, format!("task {}", round % 8));
                let calls = AtomicUsize::new(0);
                each(8, |_| _ = calls.fetch_add(1, Relaxed));
                assert_eq!(calls.into_inner(), 8);
            }
        });
    }
}
