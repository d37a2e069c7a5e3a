//! Moving what the write-ahead log holds into the database, and keeping the log bounded (CONTRACT.md 10.7).
//!
//! A thread of its own copies pages each second while commits go on, so that senders rarely wait for it. But under unbroken load such a
//! passive checkpoint never catches up with the last commit, and only a log that is all copied is begun anew. So the writer's connection
//! copies the rest itself once the log has 16,000 pages (`wal_autocheckpoint`), and the next commit writes over the log's beginning. The
//! file keeps its length: writing over it is far cheaper than growing it again after a truncation (measured: by a third).

use super::schema::open_checkpointer;
use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Between passive checkpoints.
const EVERY: Duration = Duration::from_secs(1);

/// Tells the thread to end.
#[derive(Default)]
pub(super) struct Stop {
    stopped: Mutex<bool>,
    told: Condvar,
}

impl Stop {
    pub fn stop(&self) {
        *self.stopped.lock() = true;
        self.told.notify_all();
    }

    /// Waits; true once it is told to stop.
    fn wait(&self, time: Duration) -> bool {
        let mut stopped = self.stopped.lock();
        if !*stopped {
            self.told.wait_for(&mut stopped, time);
        }
        *stopped
    }
}

/// The thread's loop.
pub(super) fn run(database: &Path, stop: &Arc<Stop>) {
    let mut db = None;
    while !stop.wait(EVERY) {
        if let Err(error) = checkpoint(&mut db, database) {
            tracing::warn!(error = %error, "a checkpoint failed");
            // Never once more on the same handle: see `writer`.
            db = None;
        }
    }
}

fn checkpoint(db: &mut Option<Connection>, database: &Path) -> rusqlite::Result<()> {
    let db = match db {
        Some(db) => db,
        none => none.insert(open_checkpointer(database)?),
    };
    db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}
