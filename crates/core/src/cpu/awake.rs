//! Threads that stay awake while short pieces of parallel work follow each other.

use rayon::{ThreadPool, Yield};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Turns while nothing was found, before a thread lets others run.
const TURNS: usize = 10;
/// Turns that the work waits for the other threads: some microseconds, what waking takes.
const PATIENCE: usize = 1000;

/// Who keeps the threads of a pool awake. A thread that looks for work until a run ends must not do so in the middle of a
/// piece: whoever waits for the piece would wait for ever, because rayon runs what comes while a piece waits for its other
/// half. So threads begin to look only while no piece is under way.
#[derive(Debug, Default)]
pub(super) struct Awake(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// Counts the runs.
    last: AtomicU64,
    /// The run that keeps threads awake; 0 is none.
    run: AtomicU64,
    /// The last run of which pieces may be under way.
    begun: AtomicU64,
    /// Threads that have come to look for its pieces.
    looking: AtomicUsize,
    /// Works from outside of the pool whose pieces may be under way, too.
    others: AtomicUsize,
}

impl Awake {
    /// Runs `work` on the pool, from inside as from outside.
    pub(super) fn plain<R: Send>(&self, pool: &ThreadPool, work: impl FnOnce() -> R + Send) -> R {
        if pool.current_thread_index().is_some() {
            return work();
        }
        self.0.others.fetch_add(1, Ordering::AcqRel);
        let _other = Ends(|| self.0.others.fetch_sub(1, Ordering::AcqRel));
        pool.install(work)
    }

    /// As [`Awake::plain`]; the pool's other threads look for pieces until all is done: one that has fallen asleep takes
    /// longer to wake than a piece of a token's work takes. One work at a time has them do so.
    pub(super) fn run<R: Send>(&self, pool: &ThreadPool, work: impl FnOnce() -> R + Send) -> R {
        let state = &self.0;
        let alone = pool.current_num_threads() == 1 || pool.current_thread_index().is_some();
        let id = if alone { 0 } else { state.last.fetch_add(1, Ordering::Relaxed) + 1 };
        if alone || state.run.compare_exchange(0, id, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return self.plain(pool, work);
        }
        // even if `work` panics
        let _end = Ends(|| state.run.store(0, Ordering::Release));
        state.looking.store(0, Ordering::Relaxed);
        pool.install(|| {
            let (own, shared) = (rayon::current_thread_index(), state.clone());
            rayon::spawn_broadcast(move |thread| {
                // this thread, too, gets one to run when it waits for the others
                if Some(thread.index()) != own {
                    look(&shared, id);
                }
            });
            let others = pool.current_num_threads() - 1;
            let come = |_: &usize| state.looking.load(Ordering::Relaxed) < others;
            (0..PATIENCE).take_while(come).for_each(|_| std::hint::spin_loop());
            // who comes later looks at nothing, and sleeps and wakes as rayon has it
            state.begun.store(id, Ordering::Release);
            work()
        })
    }
}

impl State {
    /// Whether a thread that is asked to look for pieces of run `id` is in none, and the run goes on.
    fn may_look(&self, id: u64) -> bool {
        // whose piece this thread is in had set one of the latter before, and a thread that takes a piece sees that
        self.run.load(Ordering::Acquire) == id
            && self.begun.load(Ordering::Acquire) < id
            && self.others.load(Ordering::Acquire) == 0
    }
}

/// Runs what there is to run until run `id` ends, where a thread may.
fn look(state: &State, id: u64) {
    if !state.may_look(id) {
        return;
    }
    state.looking.fetch_add(1, Ordering::Relaxed);
    while state.run.load(Ordering::Acquire) == id {
        // it lets others run if it finds nothing
        if rayon::yield_now() != Some(Yield::Executed) {
            (0..TURNS).for_each(|_| std::hint::spin_loop());
        }
    }
}

/// Does something when it is dropped.
struct Ends<R, F: Fn() -> R>(F);

impl<R, F: Fn() -> R> Drop for Ends<R, F> {
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
        let (pool, awake) = (pool(3), Awake::default());
        let twice = || awake.run(&pool, || sum(1000) + awake.run(&pool, || sum(10)) + awake.plain(&pool, || sum(1)));
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| (0..200).map(|_| twice()).sum::<usize>())).collect();
            for thread in threads {
                assert_eq!(thread.join().unwrap(), 200 * (499_500 + 45));
            }
        });
        let state = &awake.0;
        assert_eq!((state.run.load(Ordering::Acquire), state.others.load(Ordering::Acquire)), (0, 0));
    }

    #[test]
    fn after_a_panic_threads_sleep_and_work_again() {
        let (pool, awake) = (pool(2), Awake::default());
        let panics = std::panic::AssertUnwindSafe(|| awake.run(&pool, || assert_eq!(sum(10), 0, "on purpose")));
        assert!(std::panic::catch_unwind(panics).is_err());
        assert_eq!(awake.0.run.load(Ordering::Acquire), 0);
        assert_eq!(awake.run(&pool, || sum(10)), 45);
    }

    #[test]
    fn nobody_begins_to_look_in_the_middle_of_a_piece() {
        let state = |run: u64, begun: u64, others: usize| State {
            run: run.into(),
            begun: begun.into(),
            others: others.into(),
            ..State::default()
        };
        assert!(state(7, 6, 0).may_look(7));
        // in a piece of this run, in one of somebody else, and asked too late
        for state in [state(7, 7, 0), state(7, 6, 1), state(0, 6, 0), state(8, 6, 0), state(8, 8, 0)] {
            assert!(!state.may_look(7), "{state:?}");
        }
    }

    #[test]
    fn many_threads_with_little_to_do_come_to_an_end_each_time() {
        let (pool, awake) = (pool(16), Awake::default());
        let sums = (0..5000).map(|_| awake.run(&pool, || sum(64) + sum(64)));
        assert!(sums.into_iter().all(|sum| sum == 2 * 2016));
    }

    /// The states of the threads whose names begin so: `S` sleeps.
    #[cfg(target_os = "linux")]
    fn states(prefix: &str) -> String {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
        let state = |stat: String| stat.split_once(&format!("({prefix}"))?.1.split_once(") ")?.1.chars().next();
        stats.filter_map(state).collect()
    }

    /// Whether, after a while, as many threads are not asleep.
    #[cfg(target_os = "linux")]
    fn come(prefix: &str, awake: usize) -> bool {
        let pause = || std::thread::sleep(std::time::Duration::from_millis(5));
        (0..20).any(|_| states(prefix).replace('S', "").len() == awake || (pause(), false).1)
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn other_threads_are_awake_while_there_is_work_and_only_then() {
        let pool =
            rayon::ThreadPoolBuilder::new().num_threads(3).thread_name(|i| format!("watch-{i}")).build().unwrap();
        let awake = Awake::default();
        // the thread that works sees itself running; where others want the processors a thread may come too late or sleep late
        let often = |work: &(dyn Fn() -> bool + Sync)| (0..50).any(|_| work());
        assert!(often(&|| come("watch-", 0)));
        let all_looked = || awake.run(&pool, || awake.0.looking.load(Ordering::Relaxed) == 2 && come("watch-", 3));
        assert!((0..100_000).any(|_| all_looked()), "{}", states("watch-"));
        assert!(often(&|| come("watch-", 0)));
        assert!(often(&|| pool.install(|| come("watch-", 1))));
    }

    #[test]
    fn a_single_thread_has_nobody_to_keep_awake() {
        let awake = Awake::default();
        awake.run(&pool(1), || assert_eq!(awake.0.run.load(Ordering::Acquire), 0));
    }
}
