//! Callbacks (CONTRACT.md 8): every event reaches its endpoint at least once, in its own time, and holds up nothing else.
//!
//! A send that is about to append reserves room here first. With room, the append leases the new rows to this process and they are handed
//! over in memory after the commit, so the fast way needs no reading. Without, it leaves them in the store and says that they overflowed.

mod attempt;
mod dispatcher;
mod event;
mod ledger;
mod metrics;
mod queue;

use crate::config;
use crate::domain::callback::{Callback, Endpoint};
use crate::domain::retry::Schedule;
use crate::ports::Store;
use crate::tasks::Tasks;
use crate::webhook::client::Webhook;
use attempt::Courier;
use dispatcher::{Dispatcher, Parts};
use metrics::Metrics;
use parking_lot::RwLock;
use prometheus_client::registry::Registry;
use queue::Row;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

/// So many rows per endpoint are in memory at most: waiting, in flight, or decided on but not yet durably so.
const ROOMS: usize = 2_000;
/// Hand-overs leave so many of them for what is read, or rows that wait for later would keep due ones in the store.
const ROOMS_FOR_READING: usize = 500;

/// The callbacks of this process: one dispatcher per endpoint, which rests while the endpoint isn't configured.
pub struct Callbacks {
    storage: Desk,
    push: Desk,
    push_grace: RwLock<Duration>,
    metrics: Metrics,
    store: Arc<dyn Store>,
}

/// The way to a dispatcher.
#[derive(Debug)]
struct Desk {
    endpoint: Endpoint,
    rooms: Arc<Semaphore>,
    /// Bounded by the rooms.
    inbox: UnboundedSender<Row>,
    woken: Arc<Notify>,
    /// `None` while the endpoint isn't configured.
    courier: watch::Sender<Option<Arc<Courier>>>,
}

/// Room for rows that are about to be appended.
///
/// Rows that were leased and never handed over stay leased until this process ends. So an append that leases must be seen to its end.
#[derive(Debug)]
#[must_use = "room that isn't used keeps others out"]
pub struct Room {
    room: OwnedSemaphorePermit,
    inbox: UnboundedSender<Row>,
}

impl Room {
    /// Hands leased rows to the dispatcher. Room that they don't need is given back.
    pub fn hand_over(mut self, callbacks: Vec<Callback>) {
        for callback in callbacks {
            // Fails only when the process is ending: then the lease ends with it.
            let _ = self.inbox.send(Row::new(callback, self.room.split(1)));
        }
    }
}

impl Callbacks {
    /// Starts the dispatchers. They rest until [`Callbacks::set`] says where the endpoints are.
    pub fn start(store: &Arc<dyn Store>, schedule: &Schedule, tasks: &Tasks, registry: &mut Registry) -> Arc<Self> {
        let open = |endpoint, name| {
            let (inbox, rows) = unbounded_channel();
            let (courier, couriers) = watch::channel(None);
            let rooms = Arc::new(Semaphore::new(ROOMS));
            let desk = Desk { endpoint, rooms, inbox, woken: Arc::default(), courier };
            let parts = Parts {
                endpoint,
                store: Arc::clone(store),
                couriers,
                schedule: schedule.clone(),
                rooms: Arc::clone(&desk.rooms),
                inbox: rows,
                woken: Arc::clone(&desk.woken),
                tasks: tasks.clone(),
            };
            tasks.spawn_essential(name, Dispatcher::new(parts).run());
            desk
        };
        Arc::new(Self {
            storage: open(Endpoint::Storage, "callbacks.storage"),
            push: open(Endpoint::Push, "callbacks.push"),
            push_grace: RwLock::default(),
            metrics: Metrics::new(registry),
            store: Arc::clone(store),
        })
    }

    /// From now on the endpoints are these. What is in flight ends as it was begun. What an endpoint that has gone was still to be told waits
    /// in the store until it is configured again (CONTRACT.md 10.6).
    pub fn set(&self, storage: Option<Webhook>, push: Option<Webhook>, config: &config::Callbacks) {
        *self.push_grace.write() = config.push_grace;
        for (desk, webhook, concurrency, batch_max) in [
            (&self.storage, storage, config.storage.concurrency, config.storage_batch_max),
            (&self.push, push, config.push.concurrency, 1),
        ] {
            if webhook.is_none() {
                self.metrics.forget(desk.endpoint);
            }
            desk.courier.send_replace(webhook.map(|webhook| {
                let (store, metrics) = (Arc::clone(&self.store), self.metrics.of(desk.endpoint));
                Arc::new(Courier { store, webhook, concurrency, batch_max, metrics })
            }));
        }
    }

    /// Whether the endpoint is to be told anything.
    pub fn is_configured(&self, endpoint: Endpoint) -> bool {
        self.desk(endpoint).is_configured()
    }

    /// How long a push waits for a device to take the message, if one is online.
    pub fn push_grace(&self) -> Duration {
        *self.push_grace.read()
    }

    /// Reserves room for `n` rows that are about to be appended. Without room the append must not lease them: see [`Callbacks::overflowed`].
    pub fn reserve(&self, endpoint: Endpoint, n: usize) -> Option<Room> {
        let desk = self.desk(endpoint);
        if !desk.is_configured() || desk.inbox.is_closed() {
            return None;
        }
        if desk.rooms.available_permits() < n.saturating_add(ROOMS_FOR_READING) {
            return None;
        }
        let room = Arc::clone(&desk.rooms).try_acquire_many_owned(u32::try_from(n).ok()?).ok()?;
        Some(Room { room, inbox: desk.inbox.clone() })
    }

    /// Rows were appended without being leased: the store is read for them.
    pub fn overflowed(&self, endpoint: Endpoint) {
        self.wake(endpoint);
    }

    /// Reads the store for rows that are due, as after an operator's retry.
    pub fn wake(&self, endpoint: Endpoint) {
        self.desk(endpoint).woken.notify_one();
    }

    fn desk(&self, endpoint: Endpoint) -> &Desk {
        match endpoint {
            Endpoint::Storage => &self.storage,
            Endpoint::Push => &self.push,
        }
    }
}

impl Desk {
    fn is_configured(&self) -> bool {
        self.courier.borrow().is_some()
    }
}

#[cfg(test)]
pub(super) mod tests;
