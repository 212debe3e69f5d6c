//! Where helpers run: on the processors that the body's thread does not run on.
//!
//! Left alone, a thread that is woken often lands on the processor of the one who woke it, and both share it until the system balances its load,
//! milliseconds later, while the next processor has nothing to do. In virtual machines that is common, for a processor that halted counts as taken away by
//! the host. A kernel of two milliseconds then takes seven. Linux only, and only where a pool has a thread for each processor that this process may use:
//! with fewer, two processes would choose the same ones.

#[cfg(target_os = "linux")]
pub(super) use linux::Placement;

#[cfg(target_os = "linux")]
mod linux {
    use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    const NOWHERE: usize = usize::MAX;

    pub struct Placement {
        /// One for each thread of the pool; empty: the system places them.
        pub(super) processors: Vec<usize>,
        /// The pool's threads that have begun, with their numbers there.
        threads: Mutex<Vec<(usize, Pid)>>,
        /// The processor around which all of these are placed.
        around: AtomicUsize,
    }

    impl Placement {
        pub fn new(thread_count: usize) -> Self {
            let allowed = sched_getaffinity(None).unwrap_or_default();
            let processors: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&processor| allowed.is_set(processor)).collect();
            let one_each = processors.len() == thread_count && thread_count > 1;
            Self { processors: if one_each { processors } else { Vec::new() }, threads: Mutex::default(), around: AtomicUsize::new(NOWHERE) }
        }

        /// The calling thread is number `index` of the pool.
        pub fn join(&self, index: usize) {
            let mut threads = self.threads.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            threads.push((index, gettid()));
            self.around.store(NOWHERE, Relaxed);
        }

        /// On the body's thread, which is number `body` of the pool: gives each of the others a processor of its own, if the body's is another than before.
        /// Where the system refuses, they stay.
        pub fn spread(&self, body: usize) {
            if self.processors.is_empty() {
                return;
            }
            let here = sched_getcpu();
            if self.around.load(Relaxed) == here {
                return;
            }
            let threads = self.threads.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let helpers = threads.iter().filter(|(index, _)| *index != body);
            for ((_, thread), &processor) in helpers.zip(self.processors.iter().filter(|&&processor| processor != here)) {
                let mut only = CpuSet::new();
                only.set(processor);
                let _ = sched_setaffinity(Some(*thread), &only);
            }
            self.around.store(here, Relaxed);
        }
    }
}

/// The system places them.
#[cfg(not(target_os = "linux"))]
pub(super) struct Placement;

#[cfg(not(target_os = "linux"))]
impl Placement {
    pub fn new(_: usize) -> Self {
        Self
    }

    pub fn join(&self, _: usize) {}

    pub fn spread(&self, _: usize) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::super::{count, each, install, limit};
    use super::Placement;
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    use std::time::Duration;

    fn allowed() -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap();
        (0..CpuSet::MAX_CPU).filter(|&processor| set.is_set(processor)).collect()
    }

    /// The masks of the pool's threads after helpers have slept and been woken; the body's thread first.
    fn masks(thread_count: usize) -> Vec<Vec<usize>> {
        install(thread_count, || {
            for _ in 0..3 {
                each(64, |_| std::thread::sleep(Duration::from_micros(10)));
                std::thread::sleep(Duration::from_millis(2));
            }
            let body = rayon::current_thread_index();
            let mut masks = rayon::broadcast(|context| (Some(context.index()) != body, allowed()));
            masks.sort();
            masks.into_iter().map(|(_, mask)| mask).collect()
        })
    }

    #[test]
    fn each_helper_has_a_processor_of_its_own_and_the_body_may_go_anywhere() {
        let all = allowed();
        if limit() != all.len() {
            return println!("SKIPPED: a quota allows less time than there are processors; helpers are left to the system");
        }
        let masks = masks(0);
        assert_eq!(masks.len(), all.len());
        assert_eq!(masks[0], all, "threads that the body starts would have one processor");
        let mut taken: Vec<usize> = masks[1..].concat();
        taken.sort();
        taken.dedup();
        assert!(taken.len() == all.len() - 1 && masks[1..].iter().all(|mask| mask.len() == 1), "{masks:?}");
    }

    #[test]
    fn a_pool_with_more_or_fewer_threads_than_processors_is_left_to_the_system() {
        let all = allowed();
        for thread_count in 1..=all.len() + 1 {
            let expected: &[usize] = if thread_count == all.len() && thread_count > 1 { &all } else { &[] };
            assert_eq!(Placement::new(thread_count).processors, expected, "{thread_count} threads");
        }
    }

    /// The body goes from one processor to the next, while helpers are awake and after they have slept.
    #[test]
    fn helpers_make_room_for_a_body_that_moves() {
        let all = allowed();
        if limit() != all.len() || all.len() == 1 {
            return println!("SKIPPED: helpers are left to the system here");
        }
        install(0, || {
            let body = rayon::current_thread_index();
            for pause in [0, 2000] {
                for &processor in &all {
                    let mut only = CpuSet::new();
                    only.set(processor);
                    sched_setaffinity(None, &only).unwrap();
                    std::thread::sleep(Duration::from_micros(pause));
                    (0..2).for_each(|_| each(64, |_| std::thread::sleep(Duration::from_micros(10))));
                    for (index, mask) in rayon::broadcast(|context| (context.index(), allowed())) {
                        assert!(Some(index) == body || !mask.contains(&processor), "thread {index} may still run on processor {processor}: {mask:?}");
                    }
                }
            }
        });
    }

    #[test]
    fn a_placed_helper_knows_how_many_threads_there_may_be() {
        let expected = limit();
        install(0, || {
            each(64, |_| std::thread::sleep(Duration::from_micros(10)));
            assert!(rayon::broadcast(|_| (limit(), count())).iter().all(|found| *found == (expected, expected)));
        });
    }
}
