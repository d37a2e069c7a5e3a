//! What the operator sees of Redis and of the way between nodes.

use super::wire::Answer;
use crate::ports::{OfferError, Verdict};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Metrics {
    /// Connections that were made anew after one was lost.
    pub reconnects: Counter,
    /// Times that the seats of this node were compared with the directory.
    pub reconciles: Counter,
    /// Notices that did not get to their node, or found no room here.
    pub lost_notices: Counter,
    /// Offers that came twice, and were dropped.
    pub repeated_offers: Counter,
    /// Offers, replies and notices that were published at once.
    pub batch_parts: Histogram,
    /// How long Redis took to answer.
    pub round_trip_seconds: Histogram,
    offers: [Counter; 4],
}

impl Metrics {
    pub fn new(registry: &mut Registry) -> Self {
        let offers = Family::<ResultLabel, Counter>::default();
        let metrics = Self {
            reconnects: Counter::default(),
            reconciles: Counter::default(),
            lost_notices: Counter::default(),
            repeated_offers: Counter::default(),
            batch_parts: Histogram::new(exponential_buckets(1.0, 2.0, 11)),
            round_trip_seconds: Histogram::new(exponential_buckets(0.000_125, 2.0, 13)),
            offers: ["taken", "refused", "not_taken", "unknown"]
                .map(|result| offers.get_or_create_owned(&ResultLabel { result })),
        };
        registry.register("redis_reconnects", "Connections to Redis made anew", metrics.reconnects.clone());
        registry.register("redis_reconciles", "Times that all seats were compared", metrics.reconciles.clone());
        registry.register("redis_round_trip_seconds", "Time that Redis took", metrics.round_trip_seconds.clone());
        registry.register("bus_lost_notices", "Notices between nodes that were lost", metrics.lost_notices.clone());
        registry.register("bus_repeated_offers", "Offers that came twice", metrics.repeated_offers.clone());
        registry.register("bus_batch_parts", "Offers, replies and notices in one PUBLISH", metrics.batch_parts.clone());
        registry.register("bus_offers", "Offers to other nodes, by result", offers);
        metrics
    }

    /// One offer to another node has come to this.
    pub fn offered(&self, answer: Answer) {
        let n = match answer {
            Ok(Verdict::Taken) => 0,
            Ok(Verdict::Refused(_)) => 1,
            Err(OfferError::NotTaken) => 2,
            Err(OfferError::Unknown) => 3,
        };
        self.offers[n].inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_are_counted_by_what_became_of_them() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        metrics.offered(Err(OfferError::Unknown));
        metrics.offered(Ok(Verdict::Taken));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "bus_offers_total{result=\"taken\"} 1",
            "bus_offers_total{result=\"refused\"} 0",
            "bus_offers_total{result=\"unknown\"} 1",
            "redis_reconnects_total 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} isn't in:\n{text}");
        }
    }
}
