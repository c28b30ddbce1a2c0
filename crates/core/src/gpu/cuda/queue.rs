//! The thread that calls the driver: a launch costs it several microseconds, in which the caller prepares the next one.
//!
//! Work is done in the order in which it came. What fails is kept, and returned by every later call.

use super::driver::Stream;
use crate::gpu::failure::Failure;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Work for the driver.
type Job = Box<dyn FnOnce(&Stream) -> Result<(), String> + Send>;

/// How long the thread looks for more work before it sleeps: longer than a caller needs between two launches.
const SPIN: Duration = Duration::from_micros(50);

/// Jobs that wait at most: a caller that is further ahead waits, too, so that steps without a read do not pile up.
const AHEAD: usize = 1024;

/// The stream, and the thread that feeds it.
#[derive(Debug)]
pub(super) struct Queue {
    stream: Arc<Stream>,
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Queue {
    /// # Errors
    /// In words, when the system has no thread for it.
    pub(super) fn new(stream: Stream, failure: &Failure) -> Result<Self, String> {
        let stream = Arc::new(stream);
        let (jobs, received) = sync_channel(AHEAD);
        let (own, failure) = (stream.clone(), failure.clone());
        let thread = std::thread::Builder::new().name("cuda".to_owned());
        let thread = thread.spawn(move || work(&own, &received, &failure)).map_err(|e| e.to_string())?;
        Ok(Queue { stream, jobs: Some(jobs), thread: Some(thread) })
    }

    /// Gives the thread work.
    pub(super) fn push(&self, job: impl FnOnce(&Stream) -> Result<(), String> + Send + 'static) {
        // a thread that ended has kept its failure
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(Box::new(job)));
    }

    /// The stream, once all work so far is on it.
    pub(super) fn flushed(&self) -> &Stream {
        let (done, wait) = sync_channel(1);
        self.push(move |_| {
            let _ = done.send(());
            Ok(())
        });
        let _ = wait.recv();
        &self.stream
    }

    /// The stream, for calls that need not wait for the work before.
    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work(stream: &Stream, jobs: &Receiver<Job>, failure: &Failure) {
    // the context belongs to the thread from here on; a failure shows at the first job
    let _ = stream.enter();
    while let Some(job) = next(jobs) {
        if let Err(why) = job(stream) {
            failure.set(format!("the device was lost ({why})"));
        }
    }
}

/// The next job, looked for a while before the thread sleeps; `None` when the queue is closed.
fn next(jobs: &Receiver<Job>) -> Option<Job> {
    let from = Instant::now();
    loop {
        match jobs.try_recv() {
            Ok(job) => return Some(job),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) if from.elapsed() > SPIN => return jobs.recv().ok(),
            Err(TryRecvError::Empty) => std::hint::spin_loop(),
        }
    }
}
