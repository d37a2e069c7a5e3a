//! Presence callbacks (CONTRACT.md 8, `presence.online` and `presence.offline`): best effort, so they are kept in memory alone, and the highest
//! `version` wins.

use crate::config::Callbacks;
use crate::domain::seat::{DeviceId, UserId};
use crate::domain::time::Timestamp;
use crate::ports::Departure;
use crate::tasks::Tasks;
use crate::traces;
use crate::webhook::client::{Posted, Webhook};
use bytes::Bytes;
use parking_lot::RwLock;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::sleep;
use uuid::Uuid;

/// So much news waits at most; more is lost.
const WAITING_MAX: usize = 10_000;
/// After an attempt has failed, the next ones come so much later.
const AGAIN_AFTER: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];

/// The way to the operator's endpoint, if there is one.
#[derive(Debug)]
pub struct PresenceNews {
    terms: Current,
    waiting: mpsc::Sender<Event>,
    results: Family<ResultLabel, Counter>,
}

/// `None` while nobody is to be told.
type Current = Arc<RwLock<Option<Arc<Terms>>>>;

/// Who is told, and how.
#[derive(Debug)]
struct Terms {
    webhook: Webhook,
    places: Arc<Semaphore>,
    debounce: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// A body, and the id that it has on every attempt.
#[derive(Debug)]
struct Event {
    id: Uuid,
    body: Bytes,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: &'static str,
    timestamp: Timestamp,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    user: &'a UserId,
    device: &'a DeviceId,
    version: u64,
    reason: &'static str,
}

impl PresenceNews {
    /// Nobody is told until [`PresenceNews::set`] says who.
    pub fn start(tasks: &Tasks, registry: &mut Registry) -> Self {
        let results = Family::<ResultLabel, Counter>::default();
        registry.register("presence_callbacks", "Presence callbacks, by what became of them", results.clone());
        let (waiting, events) = mpsc::channel(WAITING_MAX);
        let terms = Current::default();
        let teller = Teller { terms: terms.clone(), tasks: tasks.clone(), results: results.clone() };
        tasks.spawn_essential("callbacks.presence", teller.run(events));
        Self { terms, waiting, results }
    }

    /// From now on by these `callbacks.presence.*`.
    pub fn set(&self, webhook: Option<Webhook>, config: &Callbacks) {
        let (places, debounce) = (Arc::new(Semaphore::new(config.presence.concurrency)), config.presence_debounce);
        *self.terms.write() = webhook.map(|webhook| Arc::new(Terms { webhook, places, debounce }));
    }

    /// `callbacks.presence.debounce_ms`; none if nobody is to be told.
    pub fn debounce(&self) -> Duration {
        self.terms.read().as_ref().map_or(Duration::ZERO, |terms| terms.debounce)
    }

    /// A user's first device has come.
    pub fn arrived(&self, user: &UserId, device: &DeviceId, version: u64) {
        self.tell("presence.online", Data { user, device, version, reason: "connected" });
    }

    /// The last device of a user has been gone for long enough.
    pub fn departed(&self, user: &UserId, device: &DeviceId, version: u64, why: Departure) {
        self.tell("presence.offline", Data { user, device, version, reason: why.as_str() });
    }

    fn tell(&self, kind: &'static str, data: Data<'_>) {
        if self.terms.read().is_none() {
            return;
        }
        let body = serde_json::to_vec(&Body { r#type: kind, timestamp: Timestamp::now(), data }).unwrap_or_default();
        if self.waiting.try_send(Event { id: Uuid::now_v7(), body: body.into() }).is_err() {
            count(&self.results, "lost");
        }
    }
}

fn count(results: &Family<ResultLabel, Counter>, result: &'static str) {
    results.get_or_create_owned(&ResultLabel { result }).inc();
}

/// Tells one event after the other, several at a time.
#[derive(Clone)]
struct Teller {
    terms: Current,
    tasks: Tasks,
    results: Family<ResultLabel, Counter>,
}

impl Teller {
    async fn run(self, mut events: mpsc::Receiver<Event>) {
        loop {
            let event = tokio::select! {
                biased;
                event = events.recv() => event,
                () = self.tasks.drain.cancelled() => None,
            };
            let Some(event) = event else { return };
            let places = self.terms.read().as_ref().map(|terms| terms.places.clone());
            let place = match places {
                Some(places) => places.acquire_owned().await.ok(),
                None => None,
            };
            let teller = self.clone();
            self.tasks.spawn(async move {
                count(&teller.results, teller.tell(&event).await);
                drop(place);
            });
        }
    }

    /// What became of it.
    async fn tell(&self, event: &Event) -> &'static str {
        let mut waits = AGAIN_AFTER.into_iter();
        let mut attempt = 0;
        loop {
            let Some(terms) = self.terms.read().clone() else { return "lost" };
            attempt += 1;
            let traced = traces::attempt("presence", attempt, vec![]);
            let posted = terms.webhook.post(&event.id.to_string(), event.body.clone(), &traced).await;
            drop(traced);
            let Posted::Failed(failure) = posted else { return "told" };
            let wait = waits.next().filter(|_| !failure.abort);
            let goes_on = match wait {
                Some(wait) => tokio::select! {
                    () = sleep(failure.retry_after.unwrap_or(wait).min(AGAIN_AFTER[2])) => true,
                    () = self.tasks.drain.cancelled() => false,
                },
                None => false,
            };
            if !goes_on {
                let (kind, status) = (failure.kind.as_str(), failure.status);
                tracing::warn!(kind, status, "a presence callback was given up");
                return "given_up";
            }
        }
    }
}
