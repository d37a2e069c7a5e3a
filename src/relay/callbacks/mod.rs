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

use crate::config::{self, Outlet};
use crate::domain::callback::{Callback, Endpoint};
use crate::domain::retry::Schedule;
use crate::ports::Store;
use crate::tasks::Tasks;
use crate::webhook::client::{SetupError, Webhook};
use crate::webhook::guard::Guard;
use attempt::Courier;
use dispatcher::{Dispatcher, Parts};
use metrics::Metrics;
use prometheus_client::registry::Registry;
use queue::Row;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// So many rows per endpoint are in memory at most: waiting, in flight, or decided on but not yet durably so.
const ROOMS: usize = 2_000;
/// Hand-overs leave so many of them for what is read, or rows that wait for later would keep due ones in the store.
const ROOMS_FOR_READING: usize = 500;

/// An endpoint can't be used as it is configured.
#[derive(Debug, thiserror::Error)]
#[error("callbacks.{}.{source}", endpoint.as_str())]
pub struct StartError {
    endpoint: Endpoint,
    source: SetupError,
}

/// The callbacks of this process: one dispatcher per configured endpoint.
#[derive(Debug)]
pub struct Callbacks {
    storage: Option<Desk>,
    push: Option<Desk>,
    push_grace: Duration,
}

/// The way to a dispatcher.
#[derive(Debug)]
struct Desk {
    rooms: Arc<Semaphore>,
    /// Bounded by the rooms.
    inbox: UnboundedSender<Row>,
    woken: Arc<Notify>,
    courier: Arc<Courier>,
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
    /// Starts a dispatcher for each endpoint that has a URL.
    pub fn start(
        store: &Arc<dyn Store>,
        config: &config::Callbacks,
        schedule: &Schedule,
        tasks: &Tasks,
        registry: &mut Registry,
    ) -> Result<Arc<Self>, StartError> {
        let metrics = Metrics::new(registry);
        let guard = Guard::of(config);
        let open = |endpoint, outlet: &Outlet, batch_max: usize| {
            let Some(url) = outlet.url.clone() else { return Ok(None) };
            let webhook = Webhook::new(url, outlet, guard.clone()).map_err(|source| StartError { endpoint, source })?;
            let courier = Arc::new(Courier { store: Arc::clone(store), webhook, batches: batch_max > 1 });
            let (inbox, rows) = unbounded_channel();
            let rooms = Arc::new(Semaphore::new(ROOMS));
            let desk = Desk { rooms, inbox, woken: Arc::default(), courier: Arc::clone(&courier) };
            let parts = Parts {
                endpoint,
                courier,
                schedule: schedule.clone(),
                concurrency: outlet.concurrency,
                batch_max,
                metrics: metrics.of(endpoint),
                rooms: Arc::clone(&desk.rooms),
                inbox: rows,
                woken: Arc::clone(&desk.woken),
                tasks: tasks.clone(),
            };
            Ok(Some((desk, parts)))
        };
        // Both are made before either runs.
        let storage = open(Endpoint::Storage, &config.storage, config.storage_batch_max)?;
        let push = open(Endpoint::Push, &config.push, 1)?;
        let run = |(desk, parts): (Desk, Parts)| {
            let name = match parts.endpoint {
                Endpoint::Storage => "callbacks.storage",
                Endpoint::Push => "callbacks.push",
            };
            tasks.spawn_essential(name, Dispatcher::new(parts).run());
            desk
        };
        Ok(Arc::new(Self { storage: storage.map(run), push: push.map(run), push_grace: config.push_grace }))
    }

    /// Where an endpoint's callbacks go.
    pub fn webhook(&self, endpoint: Endpoint) -> Option<&Webhook> {
        self.desk(endpoint).map(|desk| &desk.courier.webhook)
    }

    /// Whether the endpoint is to be told anything.
    pub fn is_configured(&self, endpoint: Endpoint) -> bool {
        self.desk(endpoint).is_some()
    }

    /// How long a push waits for a device to take the message, if one is online.
    pub fn push_grace(&self) -> Duration {
        self.push_grace
    }

    /// Reserves room for `n` rows that are about to be appended. Without room the append must not lease them: see [`Callbacks::overflowed`].
    pub fn reserve(&self, endpoint: Endpoint, n: usize) -> Option<Room> {
        let desk = self.desk(endpoint).filter(|desk| !desk.inbox.is_closed())?;
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
        if let Some(desk) = self.desk(endpoint) {
            desk.woken.notify_one();
        }
    }

    fn desk(&self, endpoint: Endpoint) -> Option<&Desk> {
        match endpoint {
            Endpoint::Storage => self.storage.as_ref(),
            Endpoint::Push => self.push.as_ref(),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
