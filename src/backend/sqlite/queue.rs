//! The bounded queue of what is to be written (CONTRACT.md 10.7), and the jobs in it.

use super::metrics::Metrics;
use super::writer::Writing;
use crate::ports::StoreError;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Jobs that share one commit at most.
const BATCH_JOBS: usize = 512;
/// Rows after which a batch takes no further job, so that what comes after a large one doesn't wait for more of them.
const BATCH_ROWS: usize = 8_192;

/// Something to be written. It may be run more than once, each time in a transaction in which it hasn't run yet.
pub(super) trait Job: Send {
    fn run(&mut self, db: &mut Writing<'_>) -> rusqlite::Result<()>;

    /// Says that its last run is durable, or that nothing of it is.
    fn answer(self: Box<Self>, failure: Option<StoreError>);
}

/// How large a job is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub rows: usize,
    pub bytes: usize,
}

impl Size {
    pub const SMALL: Self = Self { rows: 1, bytes: 64 };
    /// Of what goes through many rows in bites.
    pub const BITE: Self = Self { rows: 1_000, bytes: 64 };
}

/// A [`Job`] made of a function.
pub(super) struct Task<T, F> {
    run: F,
    result: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Task<T, F>
where
    T: Send,
    F: FnMut(&mut Writing<'_>) -> rusqlite::Result<T> + Send,
{
    pub fn new(run: F, reply: oneshot::Sender<Result<T, StoreError>>) -> Self {
        Self { run, result: None, reply }
    }
}

impl<T, F> Job for Task<T, F>
where
    T: Send,
    F: FnMut(&mut Writing<'_>) -> rusqlite::Result<T> + Send,
{
    fn run(&mut self, db: &mut Writing<'_>) -> rusqlite::Result<()> {
        // The result of an earlier run may hold leases.
        self.result = None;
        self.result = Some((self.run)(db)?);
        Ok(())
    }

    fn answer(self: Box<Self>, failure: Option<StoreError>) {
        let Self { run, result, reply } = *self;
        // What the function held, such as leases that it ends, is given back before the caller goes on.
        drop(run);
        let answer = match (failure, result) {
            (None, Some(result)) => Ok(result),
            (Some(failure), _) => Err(failure),
            (None, None) => Err(closed()),
        };
        // Nobody may wait any more; then the result gives back what it holds by being dropped.
        let _ = reply.send(answer);
    }
}

/// The writer has ended.
pub(super) fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".into())
}

/// Jobs that share a commit.
pub(super) struct Batch {
    pub jobs: Vec<Box<dyn Job>>,
    rows: usize,
}

impl Batch {
    /// One job that shares its commit with none.
    pub fn alone(job: Box<dyn Job>) -> Self {
        Self { jobs: vec![job], rows: BATCH_ROWS }
    }
}

/// Jobs wait here while the last commit runs.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    max: Size,
    metrics: Metrics,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<(Box<dyn Job>, Size)>,
    bytes: usize,
    closed: bool,
}

impl Queue {
    /// `max.rows` bounds the number of jobs.
    pub fn new(max: Size, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { waiting: Mutex::default(), arrived: Condvar::new(), max, metrics })
    }

    /// Hands a job in, or refuses it at once.
    pub fn push(&self, job: Box<dyn Job>, size: Size) -> Result<(), StoreError> {
        let mut waiting = self.waiting.lock();
        let full = waiting.jobs.len() >= self.max.rows || waiting.bytes.saturating_add(size.bytes) > self.max.bytes;
        // One that is larger than the queue goes through an empty one.
        if full && !waiting.jobs.is_empty() {
            return Err(StoreError::Overloaded);
        }
        Self::put(&mut waiting, job, size)?;
        drop(waiting);
        self.notice();
        Ok(())
    }

    /// Hands in a job that takes load off the store and is bounded by who hands it in.
    pub fn push_relief(&self, job: Box<dyn Job>, size: Size) -> Result<(), StoreError> {
        Self::put(&mut self.waiting.lock(), job, size)?;
        self.notice();
        Ok(())
    }

    fn put(waiting: &mut Waiting, job: Box<dyn Job>, size: Size) -> Result<(), StoreError> {
        if waiting.closed {
            return Err(closed());
        }
        waiting.bytes += size.bytes;
        waiting.jobs.push_back((job, size));
        Ok(())
    }

    fn notice(&self) {
        self.metrics.queue.inc();
        self.arrived.notify_one();
    }

    /// Waits for jobs and takes those that are there; `None` when it is closed and empty.
    pub fn take(&self) -> Option<Batch> {
        let mut waiting = self.waiting.lock();
        while waiting.jobs.is_empty() {
            if waiting.closed {
                return None;
            }
            self.arrived.wait(&mut waiting);
        }
        let mut batch = Batch { jobs: Vec::with_capacity(waiting.jobs.len().min(BATCH_JOBS)), rows: 0 };
        self.fill(&mut batch, waiting);
        Some(batch)
    }

    /// Adds jobs that have arrived meanwhile, if the batch has room; false if there is none to add.
    pub fn add_to(&self, batch: &mut Batch) -> bool {
        let before = batch.jobs.len();
        self.fill(batch, self.waiting.lock());
        batch.jobs.len() > before
    }

    fn fill(&self, batch: &mut Batch, mut waiting: MutexGuard<'_, Waiting>) {
        let before = batch.jobs.len();
        while batch.jobs.len() < BATCH_JOBS && batch.rows < BATCH_ROWS {
            let Some((job, size)) = waiting.jobs.pop_front() else { break };
            waiting.bytes -= size.bytes;
            batch.rows += size.rows;
            batch.jobs.push(job);
        }
        drop(waiting);
        self.metrics.queue.dec_by(i64::try_from(batch.jobs.len() - before).unwrap_or(i64::MAX));
    }

    /// Takes no more jobs; those in it are still done.
    pub fn close(&self) {
        self.waiting.lock().closed = true;
        self.arrived.notify_all();
    }

    /// Takes no more jobs and drops those in it, which tells who waits for them.
    pub fn abandon(&self) {
        self.close();
        let left = std::mem::take(&mut self.waiting.lock().jobs);
        drop(left);
    }
}
