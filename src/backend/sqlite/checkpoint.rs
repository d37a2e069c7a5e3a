//! Moving what the write-ahead log holds into the database, and keeping the log bounded (CONTRACT.md 10.7).
//!
//! A thread of its own copies pages each second while commits go on, so that senders rarely wait for it. But under unbroken load such a
//! passive checkpoint can't rewind the log, so the writer does that between two batches once the log is large.

use super::schema::{BUSY, open_checkpointer};
use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The log is rewound when it is larger.
const WAL_BYTES: u64 = 64 << 20;
/// How long a rewind may wait for a reader or for the other thread's checkpoint; senders wait as long.
const REWIND_WAIT: Duration = Duration::from_millis(20);
/// After one that was in vain.
const REWIND_AGAIN: Duration = Duration::from_millis(200);
/// Between passive checkpoints.
const EVERY: Duration = Duration::from_secs(1);

fn wal_path(database: &Path) -> PathBuf {
    let mut name = OsString::from(database);
    name.push("-wal");
    name.into()
}

fn wal_bytes(wal: &Path) -> u64 {
    fs::metadata(wal).map_or(0, |meta| meta.len())
}

/// The writer's part.
pub(super) struct WalBound {
    wal: PathBuf,
    not_before: Instant,
}

impl WalBound {
    pub fn new(database: &Path) -> Self {
        Self { wal: wal_path(database), not_before: Instant::now() }
    }

    /// Rewinds the log if it is too large and nobody reads from it.
    pub fn keep(&mut self, db: &Connection) -> rusqlite::Result<()> {
        if wal_bytes(&self.wal) < WAL_BYTES || Instant::now() < self.not_before {
            return Ok(());
        }
        db.busy_timeout(REWIND_WAIT)?;
        let busy: bool = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        db.busy_timeout(BUSY)?;
        if busy {
            self.not_before = Instant::now() + REWIND_AGAIN;
        }
        Ok(())
    }
}

/// Tells the checkpointing thread to end.
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
    let wal = wal_path(database);
    let mut db = None;
    while !stop.wait(EVERY) {
        if wal_bytes(&wal) == 0 {
            continue;
        }
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
