//! What the relay counts. No user, device or message is ever a label.

use crate::domain::message::{Outcome, Summary};
use crate::ports::Refusal;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PlaneLabel {
    plane: &'static str,
}

/// The relay's metrics. The counters of the hot path are looked up once, here.
#[derive(Debug)]
pub struct Metrics {
    outcomes: [Counter; Outcome::ALL.len()],
    refusals: [Counter; 5],
    /// Online-only sends that were answered.
    pub online_only_sends: Counter,
    /// Persisted sends that were answered.
    pub persisted_sends: Counter,
    /// Streams that are open on this node.
    pub streams: Gauge,
    /// Streams that were opened.
    pub streams_opened: Counter,
    /// Pages of the store that streams read to catch up.
    pub catch_up_pages: Counter,
    /// 1 if presence could not be asked when readiness was last asked for.
    pub presence_away: Gauge,
    /// 1 if the store could not be used then.
    pub store_away: Gauge,
    outcome_seconds: Histogram,
}

impl Metrics {
    /// Registers all of them.
    pub fn new(registry: &mut Registry) -> Self {
        let sends = Family::<KindLabel, Counter>::default();
        registry.register("sends", "Sends that were accepted, by kind", sends.clone());
        let outcomes = Family::<OutcomeLabel, Counter>::default();
        registry.register("outcomes", "Recipients of online-only messages, by outcome", outcomes.clone());
        let refusals = Family::<ReasonLabel, Counter>::default();
        registry.register("queue_refusals", "Offers that a seat on this node refused, by reason", refusals.clone());
        let away = Family::<PlaneLabel, Gauge>::default();
        registry.register("away", "1 if this plane was away when /readyz was last asked", away.clone());
        let seconds = Histogram::new(exponential_buckets(0.000_05, 2.0, 16));
        registry.register(
            "outcome_seconds",
            "Time from accepting an online-only message until all outcomes were known or given up",
            seconds.clone(),
        );
        let (streams, opened, pages) = (Gauge::default(), Counter::default(), Counter::default());
        registry.register("streams", "Open streams", streams.clone());
        registry.register("streams_opened", "Streams that were opened", opened.clone());
        registry.register("catch_up_pages", "Pages of the store read by streams", pages.clone());
        Self {
            outcomes: Outcome::ALL.map(|o| outcomes.get_or_create_owned(&OutcomeLabel { outcome: o.as_str() })),
            refusals: REFUSALS.map(|r| refusals.get_or_create_owned(&ReasonLabel { reason: refusal_word(r) })),
            online_only_sends: sends.get_or_create_owned(&KindLabel { kind: "online_only" }),
            persisted_sends: sends.get_or_create_owned(&KindLabel { kind: "persisted" }),
            streams,
            streams_opened: opened,
            catch_up_pages: pages,
            presence_away: away.get_or_create_owned(&PlaneLabel { plane: "presence" }),
            store_away: away.get_or_create_owned(&PlaneLabel { plane: "store" }),
            outcome_seconds: seconds,
        }
    }

    /// The outcomes of one message.
    pub fn outcomes(&self, summary: &Summary) {
        for outcome in Outcome::ALL {
            match summary.of(outcome) {
                0 => {}
                n => drop(self.outcomes[outcome as usize].inc_by(n.into())),
            }
        }
    }

    /// One refusal by a seat of this node.
    pub fn refusal(&self, refusal: Refusal) {
        self.refusals[refusal as usize].inc();
    }

    /// One online-only send was answered.
    pub fn answered(&self, after: Duration) {
        self.online_only_sends.inc();
        self.outcome_seconds.observe(after.as_secs_f64());
    }
}

const REFUSALS: [Refusal; 5] =
    [Refusal::Full, Refusal::Closed, Refusal::Expired, Refusal::Superseded, Refusal::Revoked];

fn refusal_word(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Full => "full",
        Refusal::Closed => "closed",
        Refusal::Expired => "expired",
        Refusal::Superseded => "superseded",
        Refusal::Revoked => "revoked",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_and_reason_is_counted_under_its_own_name() {
        let mut registry = Registry::with_prefix("herenow");
        let metrics = Metrics::new(&mut registry);
        metrics.outcomes(&Summary { superseded: 1, ..Summary::default() });
        metrics.refusal(Refusal::Revoked);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("herenow_outcomes_total{outcome=\"superseded\"} 1"), "{text}");
        assert!(text.contains("herenow_outcomes_total{outcome=\"delivered\"} 0"), "{text}");
        assert!(text.contains("herenow_queue_refusals_total{reason=\"revoked\"} 1"), "{text}");
    }
}
