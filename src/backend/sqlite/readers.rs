//! Connections that only read, used on blocking threads, never on the async ones. How many read at a time is bounded; others wait.

use super::schema::open_reader;
use crate::backend::durable::metrics::Metrics;
use crate::backend::durable::queue::closed;
use crate::ports::StoreError;
use parking_lot::Mutex;
use rusqlite::Connection;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// The pool.
pub(super) struct Readers {
    path: PathBuf,
    permits: Arc<Semaphore>,
    idle: Mutex<Idle>,
    metrics: Metrics,
}

/// Connections that nobody uses now. One of an earlier generation isn't taken back.
#[derive(Default)]
struct Idle {
    generation: u64,
    connections: Vec<Connection>,
}

impl Readers {
    pub fn new(path: PathBuf, connections: usize, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { path, permits: Arc::new(Semaphore::new(connections)), idle: Mutex::default(), metrics })
    }

    /// Runs `query` on one state of the database.
    pub async fn read<T, F>(self: &Arc<Self>, query: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| closed())?;
        let pool = Arc::clone(self);
        let result = tokio::task::spawn_blocking(move || {
            let result = pool.run(query);
            drop(permit);
            result
        });
        match result.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                self.metrics.errors.inc();
                Err(StoreError::Unavailable(Box::new(error)))
            }
            Err(lost) => Err(StoreError::Unavailable(Box::new(lost))),
        }
    }

    fn run<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let (generation, idle) = {
            let mut idle = self.idle.lock();
            (idle.generation, idle.connections.pop())
        };
        let db = match idle {
            Some(db) => db,
            None => open_reader(&self.path)?,
        };
        let snapshot = db.unchecked_transaction()?;
        let value = query(&snapshot)?;
        snapshot.finish()?;
        let mut idle = self.idle.lock();
        // A connection whose query failed never comes here: it is closed.
        if idle.generation == generation && !self.permits.is_closed() {
            idle.connections.push(db);
        }
        Ok(value)
    }

    /// Closes what is idle, and what is in use once it is given back: the next reads open the database anew.
    pub fn renew(&self) {
        let mut idle = self.idle.lock();
        idle.generation += 1;
        let old = std::mem::take(&mut idle.connections);
        drop(idle);
        drop(old);
    }

    /// Reads no more.
    pub fn close(&self) {
        self.permits.close();
        self.renew();
    }
}
