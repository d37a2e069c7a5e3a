//! Presence callbacks (CONTRACT.md 8, `presence.online` and `presence.offline`): best effort, so they are kept in memory alone, and the highest
//! `version` wins.

use crate::config::Callbacks;
use crate::domain::seat::{DeviceId, UserId};
use crate::domain::time::Timestamp;
use crate::ports::Departure;
use crate::tasks::Tasks;
use crate::traces;
use crate::webhook::client::{Failure, Posted, SetupError, Webhook};
use crate::webhook::guard::Guard;
use bytes::Bytes;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};
use tokio::time::sleep;
use uuid::Uuid;

/// So much news waits at most; more is lost.
const WAITING_MAX: usize = 10_000;
/// After an attempt has failed, the next ones come so much later.
const AGAIN_AFTER: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];

/// The way to the operator's endpoint.
#[derive(Debug)]
pub struct PresenceNews {
    debounce: Duration,
    waiting: mpsc::Sender<Event>,
    webhook: Arc<Webhook>,
    results: Family<ResultLabel, Counter>,
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
    /// By `callbacks.presence.*`; `None` if nobody is to be told.
    pub fn start(config: &Callbacks, tasks: &Tasks, registry: &mut Registry) -> Result<Option<Self>, SetupError> {
        let outlet = &config.presence;
        let Some(url) = outlet.url.clone() else { return Ok(None) };
        let guard = Guard::of(config);
        let webhook = Arc::new(Webhook::new(url, outlet, guard)?);
        let results = Family::<ResultLabel, Counter>::default();
        registry.register("presence_callbacks", "Presence callbacks, by what became of them", results.clone());
        let (waiting, events) = mpsc::channel(WAITING_MAX);
        let events = Arc::new(Mutex::new(events));
        for _ in 0..outlet.concurrency {
            let teller = Teller {
                webhook: webhook.clone(),
                events: events.clone(),
                tasks: tasks.clone(),
                results: results.clone(),
            };
            tasks.spawn_essential("callbacks.presence", teller.run());
        }
        Ok(Some(Self { debounce: config.presence_debounce, waiting, webhook, results }))
    }

    /// Where it goes.
    pub fn webhook(&self) -> &Webhook {
        &self.webhook
    }

    /// `callbacks.presence.debounce_ms`
    pub fn debounce(&self) -> Duration {
        self.debounce
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
        let body = serde_json::to_vec(&Body { r#type: kind, timestamp: Timestamp::now(), data }).unwrap_or_default();
        if self.waiting.try_send(Event { id: Uuid::now_v7(), body: body.into() }).is_err() {
            count(&self.results, "lost");
        }
    }
}

fn count(results: &Family<ResultLabel, Counter>, result: &'static str) {
    results.get_or_create_owned(&ResultLabel { result }).inc();
}

/// Tells one event after the other.
struct Teller {
    webhook: Arc<Webhook>,
    events: Arc<Mutex<mpsc::Receiver<Event>>>,
    tasks: Tasks,
    results: Family<ResultLabel, Counter>,
}

impl Teller {
    async fn run(self) {
        loop {
            let next = async { self.events.lock().await.recv().await };
            let event = tokio::select! {
                biased;
                event = next => event,
                () = self.tasks.drain.cancelled() => None,
            };
            let Some(event) = event else { return };
            let result = match self.tell(&event).await {
                Ok(()) => "told",
                Err(failure) => {
                    let (kind, status) = (failure.kind.as_str(), failure.status);
                    tracing::warn!(kind, status, "a presence callback was given up");
                    "given_up"
                }
            };
            count(&self.results, result);
        }
    }

    async fn tell(&self, event: &Event) -> Result<(), Failure> {
        let mut waits = AGAIN_AFTER.into_iter();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let traced = traces::attempt("presence", attempt, vec![]);
            let posted = self.webhook.post(&event.id.to_string(), event.body.clone(), &traced).await;
            drop(traced);
            match posted {
                Posted::Success => return Ok(()),
                Posted::Failed(failure) => {
                    let Some(wait) = waits.next().filter(|_| !failure.abort) else { return Err(failure) };
                    tokio::select! {
                        () = sleep(failure.retry_after.unwrap_or(wait).min(AGAIN_AFTER[2])) => {}
                        () = self.tasks.drain.cancelled() => return Err(failure),
                    }
                }
            }
        }
    }
}
