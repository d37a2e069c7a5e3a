//! The tasks that write sends. Each takes what has queued while its last commit ran, and one commit serves all of it: group commit, without
//! an artificial linger. There are a few, so that a round trip to the database doesn't bound what a node can write.

use super::append::{Batch, Posting};
use super::columns::Result;
use super::connect::{Connections, Failure};
use super::leases::Leases;
use super::partitions::Partitions;
use crate::backend::durable::metrics::Metrics;
use crate::backend::durable::queue;
use crate::ports::{Appended, StoreError};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// The operator's bounds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rules {
    pub retention: Duration,
    /// Newest kept per user.
    pub inbox_max: u64,
}

/// A send that waits to be written, and who waits for it.
pub(super) struct Job {
    pub send: Posting,
    pub reply: oneshot::Sender<std::result::Result<Appended, StoreError>>,
}

/// The queue before the writers.
pub(super) type Queue = queue::Queue<Job>;

/// What each writer has.
#[derive(Clone)]
pub(super) struct Writer {
    pub connections: Connections,
    pub queue: Arc<Queue>,
    pub partitions: Arc<Partitions>,
    pub leases: Arc<Leases>,
    pub rules: Rules,
    pub metrics: Metrics,
    /// The last batch failed, and that was said.
    pub failing: Arc<AtomicBool>,
}

/// An error that all jobs of a batch share.
#[derive(Clone, Debug, thiserror::Error)]
#[error(transparent)]
struct Shared(Arc<dyn Error + Send + Sync>);

impl Writer {
    /// Writes until the queue is closed and empty.
    pub async fn run(self) {
        while let Some(batch) = self.queue.next().await {
            self.serve(batch.jobs).await;
        }
    }

    async fn serve(&self, jobs: Vec<Job>) {
        let started = Instant::now();
        let outcome = self.commit(&jobs).await;
        self.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
        self.metrics.commit_jobs.observe(f64::from(u32::try_from(jobs.len()).unwrap_or(u32::MAX)));
        match outcome {
            Ok(answers) => {
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("the store can write again");
                }
                let mut later = Vec::new();
                for (job, answer) in jobs.into_iter().zip(answers) {
                    match answer {
                        Some(appended) => self.answer(job, Ok(appended)),
                        None => later.push(job),
                    }
                }
                self.serve_singly(later).await;
            }
            // One bad job doesn't fail its neighbours.
            Err(failure) if jobs.len() > 1 && failure.is_of_one() => self.serve_singly(jobs).await,
            Err(failure) => self.fail(jobs, failure),
        }
    }

    async fn serve_singly(&self, jobs: Vec<Job>) {
        for job in jobs {
            match self.commit(std::slice::from_ref(&job)).await {
                Ok(mut answers) => match answers.pop().flatten() {
                    Some(appended) => self.answer(job, Ok(appended)),
                    None => self.fail(vec![job], Failure::Overtaken),
                },
                Err(failure) => self.fail(vec![job], failure),
            }
        }
    }

    async fn commit(&self, jobs: &[Job]) -> Result<Vec<Option<Appended>>> {
        let sends = jobs.iter().map(|job| &job.send).collect();
        let batch = Batch { sends, rules: self.rules, partitions: &self.partitions, holder: self.leases.me };
        self.connections.commit(&batch, &self.partitions).await
    }

    fn answer(&self, job: Job, answer: std::result::Result<Appended, StoreError>) {
        if let Err(Ok(Appended::New(_, leased))) = job.reply.send(answer) {
            // Nobody waits for it any more.
            self.leases.give_back(leased.into_iter().map(|callback| callback.id));
        }
    }

    fn fail(&self, jobs: Vec<Job>, failure: Failure) {
        if !self.failing.swap(true, Ordering::Relaxed) {
            tracing::error!(error = %failure, jobs = jobs.len(), "the store can't write");
        }
        let in_doubt = matches!(failure, Failure::InDoubt(_));
        let shared = match self.connections.failed(failure) {
            StoreError::Unavailable(cause) => Some(Shared(Arc::from(cause))),
            StoreError::Overloaded => None,
        };
        for job in jobs {
            if in_doubt {
                self.leases.give_back(job.send.leasable());
            }
            let answer = shared
                .as_ref()
                .map_or(StoreError::Overloaded, |cause| StoreError::Unavailable(Box::new(cause.clone())));
            self.answer(job, Err(answer));
        }
    }
}
