//! What the operator sees of the store.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Cheap to clone: all clones count into the same.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Jobs that shared one commit.
    pub commit_jobs: Histogram,
    /// From the beginning of a batch to the end of its commit.
    pub commit_seconds: Histogram,
    /// Jobs that wait for the writer.
    pub queue: Gauge,
    /// Batches and reads that failed.
    pub errors: Counter,
}

impl Metrics {
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            commit_jobs: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
            commit_seconds: Histogram::new(exponential_buckets(0.000_125, 2.0, 14)),
            queue: Gauge::default(),
            errors: Counter::default(),
        };
        registry.register("store_commit_jobs", "Writes that shared one commit", metrics.commit_jobs.clone());
        registry.register("store_commit_seconds", "Time that a commit took", metrics.commit_seconds.clone());
        registry.register("store_queue_jobs", "Writes that wait for the writer", metrics.queue.clone());
        registry.register("store_errors", "Commits and reads that failed", metrics.errors.clone());
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_the_manual() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        metrics.errors.inc();
        metrics.commit_jobs.observe(3.0);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in
            ["store_errors_total 1", "store_commit_jobs_sum 3.0", "store_commit_seconds_count 0", "store_queue_jobs 0"]
        {
            assert!(text.lines().any(|found| found == line), "{line} isn't in:\n{text}");
        }
    }
}
