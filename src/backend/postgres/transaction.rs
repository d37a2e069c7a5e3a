//! Transactions that are run until it is known what became of them, within bounds.

use super::columns::Result;
use super::connect::{Connections, Failure};
use super::partitions::Partitions;
use deadpool_postgres::Object;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// After this time one whose connection was lost, or is silent, is given up without knowing whether it was committed.
const PATIENCE: Duration = Duration::from_secs(8);
/// Between attempts; a little longer each time.
const PAUSE: Duration = Duration::from_millis(20);
/// How often one that others were in the way of is run.
const TRIES: u32 = 5;

/// A transaction that finds out by itself what an earlier run of it has done.
pub(super) trait Transaction: Sync {
    type Done: Send;

    /// All of it, its end included. `again`: an earlier run may have been committed.
    fn run(&self, db: &Object, again: bool) -> impl Future<Output = Result<Self::Done>> + Send;
}

impl Connections {
    /// Runs a transaction until it is known what became of it, within bounds.
    pub async fn commit<T: Transaction>(&self, transaction: &T, partitions: &Partitions) -> Result<T::Done> {
        let (started, mut tries, mut again) = (Instant::now(), 0, false);
        loop {
            let failure = match self.get().await {
                Ok(db) => {
                    match self.attempt(db, transaction, again, PATIENCE.saturating_sub(started.elapsed())).await {
                        Ok(done) => return Ok(done),
                        Err(failure) => failure,
                    }
                }
                Err(failure) => failure,
            };
            tries += 1;
            // What is in doubt is looked up as soon as there is a connection.
            again |= failure.is_lost();
            let worth = again || failure.is_passing() && tries < TRIES;
            if !worth || started.elapsed() >= PATIENCE {
                return Err(if again { Failure::InDoubt(Box::new(failure)) } else { failure });
            }
            tracing::debug!(error = %failure, tries, "a transaction is run again");
            partitions.forget();
            sleep(PAUSE.mul_f64(f64::from(tries) * rand::random_range(0.5..1.5))).await;
        }
    }

    async fn attempt<T: Transaction>(
        &self,
        db: Object,
        transaction: &T,
        again: bool,
        time: Duration,
    ) -> Result<T::Done> {
        let done = timeout(time, transaction.run(&db, again)).await.unwrap_or(Err(Failure::Silent));
        if let Err(failure) = &done
            && failure.is_lost()
        {
            self.discard(db, failure);
        }
        done
    }
}
