//! The durable plane in PostgreSQL, for any number of nodes (CONTRACT.md 9): a few tasks write sends with group commit, a bounded number of
//! connections does the rest.
//!
//! Nodes meet in the rows alone: who sends to a user locks the user's row ([`append`]), who has a callback stands in it ([`leases`]), and who
//! writes a message to many stands in that message's row until all have it ([`fanout`]).

mod append;
mod columns;
mod connect;
mod content;
mod devices;
mod doctor;
mod fanout;
mod groups;
mod leases;
mod outbox;
mod partitions;
mod read;
mod recall;
mod retention;
mod rows;
mod schema;
mod transaction;
mod writer;

#[cfg(test)]
mod tests;

pub use connect::ConnectError;
pub use doctor::examine;
pub use schema::OpenError;

use super::durable::fanout::{BITE, Worker};
use super::durable::forms::callback_id;
use super::durable::metrics::Metrics;
use super::durable::queue::{Size, append_size, closed};
use crate::config::Secret;
use crate::domain::callback::{Callback, CallbackState, Endpoint, Settlement};
use crate::domain::message::Cursor;
use crate::domain::seat::{DeviceId, GroupId, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{
    Acked, Append, Appended, Backlog, BodyHash, CallbackContent, CallbackEntry, CallbackFilter, Changed, DeviceNote,
    GroupState, MemberChange, MessageStatus, Page, PageLimit, Position, Recalled, Store, StoreError,
};
use crate::tasks::Tasks;
use append::Posting;
use async_trait::async_trait;
use connect::{Connections, run};
use fanout::Fanouts;
use leases::Leases;
use parking_lot::Mutex;
use partitions::Partitions;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use recall::Recall;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;
use uuid::{ContextV7, Uuid};
use writer::{Job, Queue, Rules, Writer};

/// A server that can't be reached when leases are to be given back is not waited for longer: they run out by themselves.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// What the operator may choose, and bounds.
#[derive(Clone, Debug)]
pub struct Options {
    /// A message is kept this long at most.
    pub retention: Duration,
    /// Newest messages kept per user.
    pub inbox_max: u64,
    /// Sends that may wait; more are refused.
    pub queue_jobs: usize,
    /// Bytes of content that may wait; more are refused.
    pub queue_bytes: usize,
    /// Tasks that write sends, each with a connection.
    pub writers: usize,
    /// Connections for everything else.
    pub connections: usize,
    /// What a node holds is given to others when it has been silent for so long.
    pub lease: Duration,
    /// How long a server that can't be reached is waited for at the start.
    pub patience: Duration,
}

impl Options {
    /// With the usual bounds.
    pub fn new(retention: Duration, inbox_max: u64) -> Self {
        Self {
            retention,
            inbox_max,
            queue_jobs: 8_192,
            queue_bytes: 64 << 20,
            writers: 3,
            connections: 12,
            lease: Duration::from_secs(20),
            patience: Duration::from_secs(10),
        }
    }
}

/// The [`Store`] in PostgreSQL. Dropped without having been closed, it leaves its leases to run out.
pub struct PostgresStore {
    db: Connections,
    writers: Connections,
    queue: Arc<Queue>,
    fanouts: Worker<Fanouts>,
    partitions: Arc<Partitions>,
    leases: Arc<Leases>,
    rules: Rules,
    ids: Arc<Mutex<ContextV7>>,
    /// Of this store alone: they have to last until it is closed, which is after the process has drained.
    tasks: Tasks,
}

impl PostgresStore {
    /// Connects to the server, brings the schema up to date and starts the store's tasks.
    pub async fn open(
        url: &Secret,
        options: &Options,
        process: &Tasks,
        registry: &mut Registry,
    ) -> Result<Arc<Self>, OpenError> {
        let config = connect::config(url.expose())?;
        let metrics = Metrics::new(registry);
        let waits = Histogram::new(exponential_buckets(0.000_125, 2.0, 17));
        registry.register("store_connection_seconds", "Time that calls waited for a connection", waits.clone());
        let connections = |most| Connections::new(&config, most, (metrics.clone(), waits.clone()));
        let (db, writers) = (connections(options.connections)?, connections(options.writers)?);
        schema::prepare(&db, &writers, options.patience).await?;
        let leases = Arc::new(Leases::new(options.lease));
        // Before the first row is leased.
        run!(&db, |db| leases.beat(&db))?;
        let writer = Writer {
            connections: writers,
            queue: Queue::new(Size { rows: options.queue_jobs, bytes: options.queue_bytes }, metrics.clone()),
            partitions: Arc::new(Partitions::new(options.retention)),
            leases: Arc::clone(&leases),
            rules: Rules { retention: options.retention, inbox_max: options.inbox_max },
            metrics: metrics.clone(),
            failing: Arc::default(),
        };
        let tasks = Tasks::on_this_runtime();
        for _ in 0..options.writers {
            tasks.spawn_essential("store-writer", writer.clone().run());
        }
        let (keeper, of, stop) = (Arc::clone(&leases), db.clone(), tasks.drain.clone());
        tasks.spawn_essential("store-leases", async move { keeper.keep(&of, &stop).await });
        // If one of them dies, the process drains.
        let (died, drain) = (tasks.drain.clone(), process.drain.clone());
        process.spawn_essential("store", async move {
            tokio::select! {
                () = died.cancelled() => {}
                () = drain.cancelled() => {}
            }
        });
        let ids = Arc::new(Mutex::new(ContextV7::new()));
        let fanouts = Fanouts {
            db: db.clone(),
            partitions: Arc::clone(&writer.partitions),
            leases: Arc::clone(&leases),
            rules: writer.rules,
            ids: Arc::clone(&ids),
        };
        Ok(Arc::new(Self {
            db,
            writers: writer.connections,
            queue: writer.queue,
            fanouts: Worker::start(Arc::new(fanouts)),
            partitions: writer.partitions,
            leases,
            rules: writer.rules,
            ids,
            tasks,
        }))
    }

    /// Does something to its end, even if nobody waits for it any more.
    async fn finish<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.tasks.spawn(async move {
            let _ = reply.send(work.await);
        });
        answer.await.map_err(|_| closed())?
    }

    fn posting(&self, new: Append) -> Posting {
        let ids = self.ids.lock();
        let id = || callback_id(&ids, new.message.sent_at);
        Posting { storage_id: id(), push_ids: new.push_due.iter().map(|_| id()).collect(), new }
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        self.tasks.drain.cancel();
        self.queue.abandon();
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn append(&self, new: Append) -> Result<Appended, StoreError> {
        if new.recipients.len() > BITE {
            let (appended, leased) = self.fanouts.append(new).await?;
            return Ok(match appended {
                Appended::New(stored, _) => Appended::New(stored, leased.take()),
                Appended::Repeat(_) | Appended::InProgress | Appended::OtherBody => appended,
            });
        }
        let size = append_size(&new);
        let (reply, answer) = oneshot::channel();
        self.queue.push(Job { send: self.posting(new), reply }, size)?;
        answer.await.map_err(|_| closed())?
    }

    async fn message(&self, id: Uuid, now: Timestamp) -> Result<Option<MessageStatus>, StoreError> {
        run!(self.db, |db| read::status(&db, id, now))
    }

    async fn recall(
        &self,
        id: Uuid,
        callback: bool,
        lease: bool,
        now: Timestamp,
    ) -> Result<Option<Recalled>, StoreError> {
        let (db, leases, (reply, answer)) = (self.db.clone(), Arc::clone(&self.leases), oneshot::channel());
        let told = callback.then(|| callback_id(&self.ids.lock(), now));
        let holder = lease.then_some(leases.me);
        let mut recall = Recall { id, now, callback: told.map(|told| (told, holder)), in_doubt: None };
        self.tasks.spawn(async move {
            let recalled = match fanout::written(&db, id).await {
                Ok(()) => run!(&db, |db| recall.run(&db)),
                Err(error) => Err(error),
            };
            // What isn't handed over is given back.
            let astray = if matches!(recalled, Ok(None)) { None } else { told.filter(|_| lease) };
            let failed = recalled.is_err();
            if reply.send(recalled).is_err() || failed {
                leases.give_back(astray);
            }
        });
        let recipients = answer.await.map_err(|_| closed())??;
        let made = |id_of_callback| Callback {
            id: id_of_callback,
            endpoint: Endpoint::Storage,
            message: id,
            recalled: true,
            recipient: None,
            attempts: 0,
            due_at: now,
        };
        let callback = told.filter(|_| lease).map(made);
        Ok(recipients.map(|recipients| Recalled { recipients, callback }))
    }

    async fn change_members(&self, group: &GroupId, change: MemberChange, max: usize) -> Result<Changed, StoreError> {
        let (db, group) = (self.db.clone(), group.clone());
        self.finish(async move { run!(&db, |db| groups::change_members(&db, &group, &change, max)) }).await
    }

    async fn delete_group(&self, group: &GroupId) -> Result<bool, StoreError> {
        let (db, group) = (self.db.clone(), group.clone());
        self.finish(async move { run!(&db, |db| groups::delete_group(&db, &group)) }).await
    }

    async fn group(&self, group: &GroupId) -> Result<Option<GroupState>, StoreError> {
        run!(self.db, |db| groups::group(&db, group))
    }

    async fn members(&self, group: &GroupId, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, StoreError> {
        run!(self.db, |db| groups::members(&db, group, after, limit))
    }

    async fn peek_key(&self, key: &str, now: Timestamp) -> Result<Option<BodyHash>, StoreError> {
        run!(self.db, |db| read::peek_key(&db, key, now))
    }

    async fn page(&self, user: &UserId, after: Cursor, limit: PageLimit, now: Timestamp) -> Result<Page, StoreError> {
        run!(self.db, |db| read::page(&db, user, after, limit, (self.rules, now)))
    }

    async fn position(&self, user: &UserId, device: &DeviceId, now: Timestamp) -> Result<Position, StoreError> {
        run!(self.db, |db| read::position(&db, user, device, (self.rules, now)))
    }

    async fn newest(&self, users: &[UserId]) -> Result<Vec<Cursor>, StoreError> {
        run!(self.db, |db| read::newest(&db, users))
    }

    async fn ack(&self, user: &UserId, device: &DeviceId, cursor: Cursor, now: Timestamp) -> Result<Acked, StoreError> {
        let (db, user, device) = (self.db.clone(), user.clone(), device.clone());
        self.finish(async move { run!(&db, |db| devices::ack(&db, &user, &device, cursor, now)) }).await
    }

    async fn note_devices(&self, notes: Vec<DeviceNote>) -> Result<(), StoreError> {
        let db = self.db.clone();
        self.finish(async move { run!(&db, |db| devices::note(&db, &notes)) }).await
    }

    async fn lease_due(&self, endpoint: Endpoint, now: Timestamp, limit: usize) -> Result<Vec<Callback>, StoreError> {
        let (db, leases, (reply, answer)) = (self.db.clone(), Arc::clone(&self.leases), oneshot::channel());
        self.tasks.spawn(async move {
            let leased = run!(&db, |db| outbox::lease_due(&db, &leases, endpoint, now, limit));
            if let Err(Ok(leased)) = reply.send(leased) {
                leases.give_back(leased.into_iter().map(|callback: Callback| callback.id));
            }
        });
        answer.await.map_err(|_| closed())?
    }

    async fn content(&self, callbacks: &[Callback], now: Timestamp) -> Result<Vec<CallbackContent>, StoreError> {
        run!(self.db, |db| content::content(&db, callbacks, (self.rules, now)))
    }

    async fn settle(&self, settlements: Vec<Settlement>, _now: Timestamp) -> Result<(), StoreError> {
        let (db, me) = (self.db.clone(), self.leases.me);
        self.finish(async move { run!(&db, |db| outbox::settle(&db, me, &settlements)) }).await
    }

    async fn callbacks(&self, filter: CallbackFilter) -> Result<Vec<CallbackEntry>, StoreError> {
        run!(self.db, |db| outbox::list(&db, &filter))
    }

    async fn retry(&self, id: Uuid, now: Timestamp) -> Result<bool, StoreError> {
        let db = self.db.clone();
        self.finish(async move { run!(&db, |db| outbox::retry(&db, id, now)) }).await
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
        let db = self.db.clone();
        self.finish(async move {
            let mut total = 0;
            let mut after = Some(Uuid::nil());
            while let Some(last) = after {
                let count;
                (count, after) = run!(&db, |db| outbox::retry_bite(&db, (endpoint, state), last, now))?;
                total += count;
            }
            Ok(total)
        })
        .await
    }

    async fn backlog(&self, endpoint: Endpoint, now: Timestamp) -> Result<Backlog, StoreError> {
        run!(self.db, |db| outbox::backlog(&db, endpoint, now))
    }

    async fn sweep(&self, now: Timestamp) -> Result<bool, StoreError> {
        let (db, partitions, rules) = (self.db.clone(), Arc::clone(&self.partitions), self.rules);
        self.finish(async move { run!(&db, |db| retention::sweep(&db, &partitions, rules, now)) }).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        let (db, leases) = (self.db.clone(), Arc::clone(&self.leases));
        self.finish(async move { run!(&db, |db| leases.beat(&db)) }).await
    }

    async fn close(&self) {
        self.fanouts.close().await;
        self.queue.close();
        self.tasks.drain.cancel();
        self.tasks.finished().await;
        if !matches!(timeout(LAST_WAIT, self.leases.end(&self.db)).await, Ok(Ok(()))) {
            tracing::warn!("leases could not be given back: they run out by themselves");
        }
        self.db.close();
        self.writers.close();
    }
}
