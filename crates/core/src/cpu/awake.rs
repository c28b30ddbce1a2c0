//! Threads that stay awake while short pieces of parallel work follow each other.

use rayon::{ThreadPool, Yield};
use std::sync::atomic::{AtomicBool, Ordering};

/// Turns while nothing was found, before a thread lets others run.
const TURNS: usize = 10;

/// Runs `work` on the pool, whose other threads look for its pieces until all of it is done: one that has fallen asleep
/// takes longer to wake than a piece of a token's work takes. `awake` is set while threads of the pool do so for somebody;
/// who comes in between runs as ever.
pub(super) fn run<R: Send>(pool: &ThreadPool, awake: &AtomicBool, work: impl FnOnce() -> R + Send) -> R {
    if pool.current_num_threads() == 1 || awake.swap(true, Ordering::AcqRel) {
        return pool.install(work);
    }
    let _asleep = Set { flag: awake, to: false };
    let done = AtomicBool::new(false);
    pool.install(|| {
        let own = rayon::current_thread_index();
        rayon::scope(|scope| {
            // set even if `work` panics, or the scope would never end
            let _done = Set { flag: &done, to: true };
            scope.spawn_broadcast(|_, thread| {
                // this thread, too, gets one to run when it waits for the others
                if Some(thread.index()) != own {
                    look(&done);
                }
            });
            work()
        })
    })
}

/// Runs what there is to run until `done`.
fn look(done: &AtomicBool) {
    while !done.load(Ordering::Acquire) {
        // it lets others run if it finds nothing
        if rayon::yield_now() != Some(Yield::Executed) {
            (0..TURNS).for_each(|_| std::hint::spin_loop());
        }
    }
}

/// Sets a flag when it is dropped.
struct Set<'a> {
    flag: &'a AtomicBool,
    to: bool,
}

impl Drop for Set<'_> {
    fn drop(&mut self) {
        self.flag.store(self.to, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    fn sum(n: usize) -> usize {
        (0..n).into_par_iter().with_min_len(1).sum()
    }

    #[test]
    fn work_inside_work_and_beside_work_is_done() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let awake = AtomicBool::new(false);
        let twice = || run(&pool, &awake, || sum(1000) + run(&pool, &awake, || sum(10)));
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| (0..200).map(|_| twice()).sum::<usize>())).collect();
            for thread in threads {
                assert_eq!(thread.join().unwrap(), 200 * (499_500 + 45));
            }
        });
        assert!(!awake.load(Ordering::Acquire));
    }

    #[test]
    fn after_a_panic_threads_sleep_and_work_again() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let awake = AtomicBool::new(false);
        let panics = std::panic::AssertUnwindSafe(|| run(&pool, &awake, || assert_eq!(sum(10), 0, "on purpose")));
        assert!(std::panic::catch_unwind(panics).is_err());
        assert!(!awake.load(Ordering::Acquire));
        assert_eq!(run(&pool, &awake, || sum(10)), 45);
    }

    /// The states of the threads whose names begin so: `S` sleeps.
    #[cfg(target_os = "linux")]
    fn states(prefix: &str) -> String {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
        let state = |stat: String| stat.split_once(&format!("({prefix}"))?.1.split_once(") ")?.1.chars().next();
        stats.filter_map(state).collect()
    }

    /// Waits for as many threads that are not asleep.
    #[cfg(target_os = "linux")]
    fn wait_for(prefix: &str, awake: usize) {
        for _ in 0..1000 {
            if states(prefix).replace('S', "").len() == awake {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("{awake} of these should be awake: {}", states(prefix));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn other_threads_are_awake_while_there_is_work_and_only_then() {
        let pool =
            rayon::ThreadPoolBuilder::new().num_threads(3).thread_name(|i| format!("watch-{i}")).build().unwrap();
        let awake = AtomicBool::new(false);
        // the thread that works sees itself running
        wait_for("watch-", 0);
        run(&pool, &awake, || wait_for("watch-", 3));
        wait_for("watch-", 0);
        pool.install(|| wait_for("watch-", 1));
    }

    #[test]
    fn a_single_thread_has_nobody_to_keep_awake() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let awake = AtomicBool::new(false);
        run(&pool, &awake, || assert!(!awake.load(Ordering::Acquire)));
    }
}
