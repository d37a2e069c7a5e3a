//! The bounded queue of what is to be written (CONTRACT.md 10.7). Who writes takes from it whatever has queued while the last commit ran.

use super::metrics::Metrics;
use crate::ports::{Append, StoreError};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Poll;
use tokio::sync::Notify;

/// Jobs that share one commit at most.
const BATCH_JOBS: usize = 512;
/// Rows after which a batch takes no further job, so that what comes after a large one doesn't wait for more of them.
const BATCH_ROWS: usize = 8_192;
/// The same for bytes of content.
const BATCH_BYTES: usize = 8 << 20;

/// How large a job is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub rows: usize,
    pub bytes: usize,
}

impl Size {
    /// Of a row or two.
    pub const SMALL: Self = Self { rows: 1, bytes: 64 };
    /// Of what goes through many rows in bites.
    pub const BITE: Self = Self { rows: 1_000, bytes: 64 };
}

/// Of an append.
pub fn append_size(new: &Append) -> Size {
    let recipients = new.recipients.len();
    Size {
        rows: 2 + recipients + new.push_due.len(),
        bytes: new.message.payload.as_bytes().len() + 512 + recipients * 64,
    }
}

/// The writer has ended.
pub fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".into())
}

/// Jobs that share a commit.
pub struct Batch<J> {
    pub jobs: Vec<J>,
    rows: usize,
    bytes: usize,
}

impl<J> Batch<J> {
    /// One job that shares its commit with none.
    pub fn alone(job: J) -> Self {
        Self { jobs: vec![job], rows: BATCH_ROWS, bytes: 0 }
    }
}

/// Jobs wait here while the last commit runs.
pub struct Queue<J> {
    waiting: Mutex<Waiting<J>>,
    /// Tells a thread that writes.
    arrived: Condvar,
    /// Tells a task that writes.
    woken: Notify,
    max: Size,
    metrics: Metrics,
}

struct Waiting<J> {
    jobs: VecDeque<(J, Size)>,
    bytes: usize,
    closed: bool,
}

impl<J> Queue<J> {
    /// `max.rows` bounds the number of jobs.
    pub fn new(max: Size, metrics: Metrics) -> Arc<Self> {
        let waiting = Waiting { jobs: VecDeque::new(), bytes: 0, closed: false };
        Arc::new(Self { waiting: Mutex::new(waiting), arrived: Condvar::new(), woken: Notify::new(), max, metrics })
    }

    /// Hands a job in, or refuses it at once.
    pub fn push(&self, job: J, size: Size) -> Result<(), StoreError> {
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
    pub fn push_relief(&self, job: J, size: Size) -> Result<(), StoreError> {
        Self::put(&mut self.waiting.lock(), job, size)?;
        self.notice();
        Ok(())
    }

    fn put(waiting: &mut Waiting<J>, job: J, size: Size) -> Result<(), StoreError> {
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
        self.woken.notify_one();
    }

    /// Waits for jobs and takes those that are there; `None` when it is closed and empty. For threads.
    pub fn take(&self) -> Option<Batch<J>> {
        let mut waiting = self.waiting.lock();
        while waiting.jobs.is_empty() {
            if waiting.closed {
                return None;
            }
            self.arrived.wait(&mut waiting);
        }
        Some(self.batch(waiting))
    }

    /// The same for tasks, of which there may be several.
    pub async fn next(&self) -> Option<Batch<J>> {
        loop {
            // One call wakes one task, and is kept if none waits. So who leaves something behind, or ends, wakes the next.
            if let Poll::Ready(taken) = self.try_next() {
                return taken;
            }
            self.woken.notified().await;
        }
    }

    fn try_next(&self) -> Poll<Option<Batch<J>>> {
        let waiting = self.waiting.lock();
        if waiting.jobs.is_empty() {
            if !waiting.closed {
                return Poll::Pending;
            }
            drop(waiting);
            self.woken.notify_one();
            return Poll::Ready(None);
        }
        let batch = self.batch(waiting);
        if !self.waiting.lock().jobs.is_empty() {
            self.woken.notify_one();
        }
        Poll::Ready(Some(batch))
    }

    fn batch(&self, waiting: MutexGuard<'_, Waiting<J>>) -> Batch<J> {
        let mut batch = Batch { jobs: Vec::with_capacity(waiting.jobs.len().min(BATCH_JOBS)), rows: 0, bytes: 0 };
        self.fill(&mut batch, waiting);
        batch
    }

    /// Adds jobs that have arrived meanwhile, if the batch has room; false if there is none to add.
    pub fn add_to(&self, batch: &mut Batch<J>) -> bool {
        let before = batch.jobs.len();
        self.fill(batch, self.waiting.lock());
        batch.jobs.len() > before
    }

    fn fill(&self, batch: &mut Batch<J>, mut waiting: MutexGuard<'_, Waiting<J>>) {
        let before = batch.jobs.len();
        while batch.jobs.len() < BATCH_JOBS && batch.rows < BATCH_ROWS && batch.bytes < BATCH_BYTES {
            let Some((job, size)) = waiting.jobs.pop_front() else { break };
            waiting.bytes -= size.bytes;
            batch.rows += size.rows;
            batch.bytes += size.bytes;
            batch.jobs.push(job);
        }
        drop(waiting);
        self.metrics.queue.dec_by(i64::try_from(batch.jobs.len() - before).unwrap_or(i64::MAX));
    }

    /// Takes no more jobs; those in it are still done.
    pub fn close(&self) {
        self.waiting.lock().closed = true;
        self.arrived.notify_all();
        self.woken.notify_one();
    }

    /// Takes no more jobs and drops those in it, which tells who waits for them.
    pub fn abandon(&self) {
        self.close();
        let left = std::mem::take(&mut self.waiting.lock().jobs);
        drop(left);
    }
}
