//! What an operator watches of the callbacks, per endpoint.

use crate::domain::callback::Endpoint;
use crate::domain::time::Timestamp;
use crate::ports::Backlog;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct EndpointLabel {
    endpoint: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct AttemptLabels {
    endpoint: &'static str,
    outcome: &'static str,
}

/// The metrics of all endpoints.
#[derive(Debug)]
pub struct Metrics {
    attempts: Family<AttemptLabels, Counter>,
    seconds: Family<EndpointLabel, Histogram>,
    in_flight: Family<EndpointLabel, Gauge>,
    pending: Family<EndpointLabel, Gauge>,
    dead: Family<EndpointLabel, Gauge>,
    oldest_due_seconds: Family<EndpointLabel, Gauge<f64, AtomicU64>>,
    breaker_open: Family<EndpointLabel, Gauge>,
}

impl Metrics {
    /// Registers them all.
    pub fn new(registry: &mut Registry) -> Self {
        let this = Self {
            attempts: Family::default(),
            // 5 ms to 20 s: the deadline of an attempt is 15 s by default.
            seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.005, 2.0, 13))),
            in_flight: Family::default(),
            pending: Family::default(),
            dead: Family::default(),
            oldest_due_seconds: Family::default(),
            breaker_open: Family::default(),
        };
        registry.register("callback_attempts", "Attempts to tell an endpoint an event", this.attempts.clone());
        registry.register("callback_seconds", "How long attempts took", this.seconds.clone());
        registry.register("callback_in_flight", "Attempts under way", this.in_flight.clone());
        registry.register("callback_pending", "Callbacks that wait or are retried", this.pending.clone());
        registry.register("callback_dead", "Callbacks that were given up", this.dead.clone());
        registry.register(
            "callback_oldest_due_seconds",
            "For how long the oldest pending callback has been due",
            this.oldest_due_seconds.clone(),
        );
        registry.register(
            "callback_breaker_open",
            "1 while the endpoint is taken to be down",
            this.breaker_open.clone(),
        );
        this
    }

    /// Those of one endpoint.
    pub fn of(&self, endpoint: Endpoint) -> EndpointMetrics {
        let label = EndpointLabel { endpoint: endpoint.as_str() };
        let [sent, rejected, failed] = attempts_of(endpoint).map(|label| self.attempts.get_or_create(&label).clone());
        EndpointMetrics {
            sent,
            rejected,
            failed,
            seconds: self.seconds.get_or_create(&label).clone(),
            in_flight: self.in_flight.get_or_create(&label).clone(),
            pending: self.pending.get_or_create(&label).clone(),
            dead: self.dead.get_or_create(&label).clone(),
            oldest_due_seconds: self.oldest_due_seconds.get_or_create(&label).clone(),
            breaker_open: self.breaker_open.get_or_create(&label).clone(),
        }
    }

    /// Shows no more of an endpoint: what it last was would be taken for what it is.
    pub fn forget(&self, endpoint: Endpoint) {
        let label = EndpointLabel { endpoint: endpoint.as_str() };
        for label in attempts_of(endpoint) {
            self.attempts.remove(&label);
        }
        self.seconds.remove(&label);
        for gauge in [&self.in_flight, &self.pending, &self.dead, &self.breaker_open] {
            gauge.remove(&label);
        }
        self.oldest_due_seconds.remove(&label);
    }
}

fn attempts_of(endpoint: Endpoint) -> [AttemptLabels; 3] {
    ["sent", "rejected", "failed"].map(|outcome| AttemptLabels { endpoint: endpoint.as_str(), outcome })
}

/// The metrics of one endpoint.
#[derive(Debug)]
pub struct EndpointMetrics {
    /// Attempts that the endpoint accepted.
    pub sent: Counter,
    /// Attempts that it refused for the event's own sake.
    pub rejected: Counter,
    /// Attempts that failed for the endpoint's sake.
    pub failed: Counter,
    /// How long attempts took.
    pub seconds: Histogram,
    /// Attempts under way.
    pub in_flight: Gauge,
    /// 1 while the breaker is open.
    pub breaker_open: Gauge,
    pending: Gauge,
    dead: Gauge,
    oldest_due_seconds: Gauge<f64, AtomicU64>,
}

impl EndpointMetrics {
    /// Shows what the store has counted.
    pub fn show_backlog(&self, backlog: &Backlog, now: Timestamp) {
        self.pending.set(i64::try_from(backlog.pending).unwrap_or(i64::MAX));
        self.dead.set(i64::try_from(backlog.dead).unwrap_or(i64::MAX));
        self.oldest_due_seconds.set(backlog.oldest_due.map_or(0.0, |due| now.since(due).as_secs_f64()));
    }
}
