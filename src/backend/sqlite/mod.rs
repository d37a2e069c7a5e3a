//! The durable plane in one SQLite file, for one process (CONTRACT.md 9): one thread writes with group commit, a few connections read.
//!
//! Who opens it holds the data directory alone: callbacks are leased in memory.

mod append;
mod backup;
mod checkpoint;
mod columns;
mod content;
mod devices;
mod doctor;
mod fanout;
mod groups;
mod jobs;
mod leases;
mod outbox;
mod read;
mod readers;
mod recall;
mod retention;
mod schema;
mod users;
mod writer;

#[cfg(test)]
mod tests;

pub use backup::{BackupError, Copied, backup};
pub use doctor::examine;
pub use schema::OpenError;

use super::durable::fanout::{BITE, Wait, Worker};
use super::durable::metrics::Metrics;
use super::durable::queue::{Size, append_size};
use crate::domain::callback::{Callback, CallbackState, Endpoint, Settlement};
use crate::domain::message::Cursor;
use crate::domain::seat::{DeviceId, GroupId, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{
    Acked, Append, Appended, Backlog, BodyHash, CallbackContent, CallbackEntry, CallbackFilter, Changed, DeviceNote,
    GroupState, MemberChange, MessageStatus, Page, PageLimit, Position, Recalled, Store, StoreError,
};
use async_trait::async_trait;
use checkpoint::Stop;
use fanout::Fanouts;
use jobs::Queue;
use leases::{Leased, Leases};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use readers::Readers;
use std::path::Path;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use uuid::Uuid;
use writer::{Parts, Rules, Writer, Writing};

/// The file in the data directory.
const FILE: &str = "herenow.db";

/// What the operator may choose, and bounds.
#[derive(Clone, Debug)]
pub struct Options {
    /// A message is kept this long at most.
    pub retention: Duration,
    /// Newest messages kept per user.
    pub inbox_max: u64,
    /// Writes that may wait; more are refused.
    pub queue_jobs: usize,
    /// Bytes of content that may wait; more are refused.
    pub queue_bytes: usize,
    /// Reads that run at a time; more wait.
    pub readers: usize,
}

impl Options {
    /// With the usual bounds.
    pub fn new(retention: Duration, inbox_max: u64) -> Self {
        Self { retention, inbox_max, queue_jobs: 8_192, queue_bytes: 64 << 20, readers: 3 }
    }
}

/// The [`Store`] in SQLite. Dropping it closes it.
pub struct SqliteStore {
    queue: Arc<Queue>,
    readers: Arc<Readers>,
    leases: Arc<Leases>,
    fanouts: Worker<Fanouts>,
    inbox_max: u64,
    stop: Arc<Stop>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl SqliteStore {
    /// Opens the database in `dir`, made if there is none, and starts its threads and its task. Within a runtime.
    pub fn open(dir: &Path, options: &Options, registry: &mut Registry) -> Result<Arc<Self>, OpenError> {
        let path = dir.join(FILE);
        let metrics = Metrics::new(registry);
        let queue = Queue::new(Size { rows: options.queue_jobs, bytes: options.queue_bytes }, metrics.clone());
        let readers = Readers::new(path.clone(), options.readers, metrics.clone());
        let leases = Arc::new(Leases::default());
        let parts = Parts {
            rules: Rules { retention: options.retention, inbox_max: options.inbox_max },
            queue: Arc::clone(&queue),
            readers: Arc::clone(&readers),
            leases: Arc::clone(&leases),
            metrics,
        };
        let writer = Writer::open(path.clone(), parts)?;
        let stop = Arc::new(Stop::default());
        let steps = Fanouts { queue: Arc::clone(&queue), readers: Arc::clone(&readers), leases: Arc::clone(&leases) };
        let store = Arc::new(Self {
            queue,
            readers,
            leases,
            fanouts: Worker::start(Arc::new(steps)),
            inbox_max: options.inbox_max,
            stop: Arc::clone(&stop),
            threads: Mutex::default(),
        });
        // Each thread that has started is ended by the store's drop if the next one can't be started.
        store.start("store-writer", move || writer.run())?;
        store.start("store-checkpoint", move || checkpoint::run(&path, &stop))?;
        Ok(store)
    }

    fn start(&self, name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let thread = Builder::new().name(name.into()).spawn(run)?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Does what has been handed in, then ends. Blocks until then.
    fn shut(&self) {
        join(self.end_threads());
    }

    fn end_threads(&self) -> Vec<JoinHandle<()>> {
        self.stop.stop();
        self.queue.close();
        self.readers.close();
        std::mem::take(&mut *self.threads.lock())
    }

    /// Has the writer do something, and waits until it is durable.
    async fn write<T, F>(&self, size: Size, run: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut Writing<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        jobs::write(&self.queue, size, run).await
    }
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        // A panic has been reported by the thread itself.
        let _ = thread.join();
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.shut();
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn append(&self, new: Append) -> Result<Appended, StoreError> {
        let (appended, leased) = if new.recipients.len() > BITE {
            self.fanouts.append(new).await?
        } else {
            self.write(append_size(&new), move |db| db.append(&new)).await?
        };
        Ok(match appended {
            Appended::New(stored, _) => Appended::New(stored, leased.take()),
            Appended::Repeat(_) | Appended::InProgress | Appended::OtherBody => appended,
        })
    }

    async fn message(&self, id: Uuid, now: Timestamp) -> Result<Option<MessageStatus>, StoreError> {
        self.readers.read(move |db| read::status(db, id, now)).await
    }

    async fn recall(
        &self,
        id: Uuid,
        callback: bool,
        lease: bool,
        now: Timestamp,
    ) -> Result<Option<Recalled>, StoreError> {
        let found = self.readers.read(move |db| recall::recipients(db, id, now)).await?;
        let Some(recipients) = found else { return Ok(None) };
        let wait = Wait::begin();
        loop {
            match self.write(Size::BITE, move |db| db.recall(id, callback, lease, now)).await? {
                recall::Outcome::Absent => return Ok(None),
                recall::Outcome::BeingWritten => wait.again().await?,
                recall::Outcome::Done(leased) => {
                    return Ok(Some(Recalled { recipients, callback: leased.take().pop() }));
                }
            }
        }
    }

    async fn change_members(&self, group: &GroupId, change: MemberChange, max: usize) -> Result<Changed, StoreError> {
        let rows = change.add.len() + change.remove.len();
        let (group, size) = (group.clone(), Size { rows, bytes: rows * 128 });
        self.write(size, move |db| db.change_members(&group, &change, max)).await
    }

    async fn delete_group(&self, group: &GroupId) -> Result<bool, StoreError> {
        let group = group.clone();
        self.write(Size::BITE, move |db| db.delete_group(&group)).await
    }

    async fn group(&self, group: &GroupId) -> Result<Option<GroupState>, StoreError> {
        let group = group.clone();
        self.readers.read(move |db| groups::state(db, &group)).await
    }

    async fn members(&self, group: &GroupId, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, StoreError> {
        let (group, after) = (group.clone(), after.cloned());
        self.readers.read(move |db| groups::members(db, &group, after.as_ref(), limit)).await
    }

    async fn peek_key(&self, key: &str, now: Timestamp) -> Result<Option<BodyHash>, StoreError> {
        let key = key.to_owned();
        self.readers.read(move |db| read::peek_key(db, &key, now)).await
    }

    async fn page(&self, user: &UserId, after: Cursor, limit: PageLimit, now: Timestamp) -> Result<Page, StoreError> {
        let (user, seen) = (user.clone(), (self.inbox_max, now));
        self.readers.read(move |db| read::page(db, &user, after, limit, seen)).await
    }

    async fn position(&self, user: &UserId, device: &DeviceId, now: Timestamp) -> Result<Position, StoreError> {
        let (user, device, seen) = (user.clone(), device.clone(), (self.inbox_max, now));
        self.readers.read(move |db| read::position(db, &user, &device, seen)).await
    }

    async fn newest(&self, users: &[UserId]) -> Result<Vec<Cursor>, StoreError> {
        let users = users.to_vec();
        self.readers.read(move |db| read::newest(db, &users)).await
    }

    async fn ack(&self, user: &UserId, device: &DeviceId, cursor: Cursor, now: Timestamp) -> Result<Acked, StoreError> {
        let (user, device) = (user.clone(), device.clone());
        self.write(Size::SMALL, move |db| db.ack(&user, &device, cursor, now)).await
    }

    async fn note_devices(&self, notes: Vec<DeviceNote>) -> Result<(), StoreError> {
        let size = Size { rows: notes.len() * 2, bytes: notes.len() * 128 };
        self.write(size, move |db| notes.iter().try_for_each(|note| db.note(note))).await
    }

    async fn lease_due(&self, endpoint: Endpoint, now: Timestamp, limit: usize) -> Result<Vec<Callback>, StoreError> {
        Ok(self.write(Size::SMALL, move |db| db.lease_due(endpoint, now, limit)).await?.take())
    }

    async fn content(&self, callbacks: &[Callback], now: Timestamp) -> Result<Vec<CallbackContent>, StoreError> {
        let (callbacks, inbox_max) = (callbacks.to_vec(), self.inbox_max);
        let query = move |db: &_| callbacks.iter().map(|c| content::content(db, c, inbox_max, now)).collect();
        self.readers.read(query).await
    }

    async fn settle(&self, settlements: Vec<Settlement>, _now: Timestamp) -> Result<(), StoreError> {
        // Held until the rows are written, or can't be: either way the leases end, so that what wasn't settled is tried again.
        let held = Leased::new(&self.leases, settlements.iter().map(|s| s.callback.clone()).collect());
        let size = Size { rows: settlements.len() * 2, bytes: settlements.len() * 256 };
        let run = move |db: &mut Writing<'_>| {
            let _held = &held;
            settlements.iter().try_for_each(|settlement| db.settle(settlement))
        };
        jobs::relieve(&self.queue, size, run).await
    }

    async fn callbacks(&self, filter: CallbackFilter) -> Result<Vec<CallbackEntry>, StoreError> {
        self.readers.read(move |db| outbox::list(db, &filter)).await
    }

    async fn retry(&self, id: Uuid, now: Timestamp) -> Result<bool, StoreError> {
        self.write(Size::SMALL, move |db| db.retry(id, now)).await
    }

    async fn retry_all(
        &self,
        endpoint: Option<Endpoint>,
        state: CallbackState,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        if !matches!(state, CallbackState::Failing | CallbackState::Dead) {
            return Ok(0);
        }
        let mut total = 0;
        let mut after = Some(Uuid::nil());
        while let Some(last) = after {
            let count;
            (count, after) = self.write(Size::BITE, move |db| db.retry_bite(endpoint, state, last, now)).await?;
            total += count;
        }
        Ok(total)
    }

    async fn backlog(&self, endpoint: Endpoint, now: Timestamp) -> Result<Backlog, StoreError> {
        self.readers.read(move |db| outbox::backlog(db, endpoint, now)).await
    }

    async fn sweep(&self, now: Timestamp) -> Result<bool, StoreError> {
        self.write(Size::BITE, move |db| db.sweep(now)).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.write(Size::SMALL, |db| db.touch()).await
    }

    async fn close(&self) {
        self.fanouts.close().await;
        let threads = self.end_threads();
        let _ = tokio::task::spawn_blocking(move || join(threads)).await;
    }
}
