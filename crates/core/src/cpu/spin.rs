//! Threads that spin instead of sleeping while short parallel tasks follow each other.

use rayon::{ThreadPool, Yield};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Spin-loop hints between two searches that found no task.
const HINTS: usize = 10;
/// Spin-loop hints that a run waits for the other threads: some microseconds, as long as waking takes.
const PATIENCE: usize = 1000;

/// Lets the threads of a pool spin during a run.
///
/// A worker must not start spinning inside a task: rayon runs queued jobs while `join` waits, so a spin loop picked up
/// there would deadlock the join. Threads start to spin only while no task is running.
#[derive(Debug, Default)]
pub(super) struct Spinner(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// The number of runs so far.
    last: AtomicU64,
    /// The run during which threads spin; 0 for none.
    run: AtomicU64,
    /// The last run whose tasks may be running.
    begun: AtomicU64,
    /// Threads that spin for it.
    spinning: AtomicUsize,
    /// Other calls from outside the pool whose tasks may be running.
    others: AtomicUsize,
}

impl Spinner {
    /// Runs `work` on the pool, called from inside or outside of it.
    pub(super) fn plain<R: Send>(&self, pool: &ThreadPool, work: impl FnOnce() -> R + Send) -> R {
        if pool.current_thread_index().is_some() {
            return work();
        }
        self.0.others.fetch_add(1, Ordering::AcqRel);
        let _other = OnDrop(|| self.0.others.fetch_sub(1, Ordering::AcqRel));
        pool.install(work)
    }

    /// As [`Spinner::plain`]; the pool's other threads spin until `work` returns, because waking a thread takes longer
    /// than a task of one token's work. Threads spin for one call at a time.
    pub(super) fn run<R: Send>(&self, pool: &ThreadPool, work: impl FnOnce() -> R + Send) -> R {
        let state = &self.0;
        let alone = pool.current_num_threads() == 1 || pool.current_thread_index().is_some();
        let id = if alone { 0 } else { state.last.fetch_add(1, Ordering::Relaxed) + 1 };
        if alone || state.run.compare_exchange(0, id, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return self.plain(pool, work);
        }
        // even if `work` panics
        let _end = OnDrop(|| state.run.store(0, Ordering::Release));
        state.spinning.store(0, Ordering::Relaxed);
        pool.install(|| {
            let (own, shared) = (rayon::current_thread_index(), state.clone());
            rayon::spawn_broadcast(move |thread| {
                // this thread gets the job, too, and runs it when it waits for the others
                if Some(thread.index()) != own {
                    spin(&shared, id);
                }
            });
            let others = pool.current_num_threads() - 1;
            let missing = |_: &usize| state.spinning.load(Ordering::Relaxed) < others;
            (0..PATIENCE).take_while(missing).for_each(|_| std::hint::spin_loop());
            // a thread that is later does not spin
            state.begun.store(id, Ordering::Release);
            work()
        })
    }
}

impl State {
    /// Whether a thread that is to spin for run `id` is in no task, and the run goes on.
    fn may_spin(&self, id: u64) -> bool {
        // if this thread is inside a task, its owner set `begun` or `others` before publishing it, and the acquire load
        // sees that
        self.run.load(Ordering::Acquire) == id
            && self.begun.load(Ordering::Acquire) < id
            && self.others.load(Ordering::Acquire) == 0
    }
}

/// Runs queued tasks until run `id` ends, if this thread may spin.
fn spin(state: &State, id: u64) {
    if !state.may_spin(id) {
        return;
    }
    state.spinning.fetch_add(1, Ordering::Relaxed);
    while state.run.load(Ordering::Acquire) == id {
        // yields to other threads of the system if there is no task
        if rayon::yield_now() != Some(Yield::Executed) {
            (0..HINTS).for_each(|_| std::hint::spin_loop());
        }
    }
}

/// Calls a function when it is dropped.
struct OnDrop<R, F: Fn() -> R>(F);

impl<R, F: Fn() -> R> Drop for OnDrop<R, F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    fn sum(n: usize) -> usize {
        (0..n).into_par_iter().with_min_len(1).sum()
    }

    fn pool(threads: usize) -> ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    #[test]
    fn work_inside_work_and_beside_work_is_done() {
        let (pool, spinner) = (pool(3), Spinner::default());
        let twice =
            || spinner.run(&pool, || sum(1000) + spinner.run(&pool, || sum(10)) + spinner.plain(&pool, || sum(1)));
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| (0..200).map(|_| twice()).sum::<usize>())).collect();
            for thread in threads {
                assert_eq!(thread.join().unwrap(), 200 * (499_500 + 45));
            }
        });
        let state = &spinner.0;
        assert_eq!((state.run.load(Ordering::Acquire), state.others.load(Ordering::Acquire)), (0, 0));
    }

    #[test]
    fn after_a_panic_threads_sleep_and_work_again() {
        let (pool, spinner) = (pool(2), Spinner::default());
        let panics = std::panic::AssertUnwindSafe(|| spinner.run(&pool, || assert_eq!(sum(10), 0, "on purpose")));
        assert!(std::panic::catch_unwind(panics).is_err());
        assert_eq!(spinner.0.run.load(Ordering::Acquire), 0);
        assert_eq!(spinner.run(&pool, || sum(10)), 45);
    }

    #[test]
    fn no_thread_starts_to_spin_inside_a_task() {
        let state = |run: u64, begun: u64, others: usize| State {
            run: run.into(),
            begun: begun.into(),
            others: others.into(),
            ..State::default()
        };
        assert!(state(7, 6, 0).may_spin(7));
        // in a task of this run, in a task of another call, and too late
        for state in [state(7, 7, 0), state(7, 6, 1), state(0, 6, 0), state(8, 6, 0), state(8, 8, 0)] {
            assert!(!state.may_spin(7), "{state:?}");
        }
    }

    #[test]
    fn many_threads_with_little_to_do_come_to_an_end_each_time() {
        let (pool, spinner) = (pool(16), Spinner::default());
        let sums = (0..5000).map(|_| spinner.run(&pool, || sum(64) + sum(64)));
        assert!(sums.into_iter().all(|sum| sum == 2 * 2016));
    }

    /// The states of the threads whose names begin with `prefix`: `S` sleeps.
    #[cfg(target_os = "linux")]
    fn states(prefix: &str) -> String {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
        let state = |stat: String| stat.split_once(&format!("({prefix}"))?.1.split_once(") ")?.1.chars().next();
        stats.filter_map(state).collect()
    }

    /// Whether, after a while, this many threads are not asleep.
    #[cfg(target_os = "linux")]
    fn come(prefix: &str, awake: usize) -> bool {
        let pause = || std::thread::sleep(std::time::Duration::from_millis(5));
        (0..20).any(|_| states(prefix).replace('S', "").len() == awake || (pause(), false).1)
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn other_threads_spin_during_a_run_and_only_then() {
        let pool =
            rayon::ThreadPoolBuilder::new().num_threads(3).thread_name(|i| format!("watch-{i}")).build().unwrap();
        let spinner = Spinner::default();
        // the working thread sees itself running; on a busy machine a thread may start to spin, or fall asleep, late
        let often = |work: &(dyn Fn() -> bool + Sync)| (0..50).any(|_| work());
        assert!(often(&|| come("watch-", 0)));
        let all_spin = || spinner.run(&pool, || spinner.0.spinning.load(Ordering::Relaxed) == 2 && come("watch-", 3));
        assert!((0..100_000).any(|_| all_spin()), "{}", states("watch-"));
        assert!(often(&|| come("watch-", 0)));
        assert!(often(&|| pool.install(|| come("watch-", 1))));
    }

    #[test]
    fn a_single_thread_does_not_spin() {
        let spinner = Spinner::default();
        spinner.run(&pool(1), || assert_eq!(spinner.0.run.load(Ordering::Acquire), 0));
    }
}
