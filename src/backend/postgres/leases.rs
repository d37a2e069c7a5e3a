//! Who holds which callback, when several nodes share them.
//!
//! A leased row names its holder, and a holder says every few seconds that it is alive, by the database's clock: one row is written,
//! however many callbacks the node holds and however long their endpoint takes. So a lease lasts as long as its node lives, and no timeout
//! of an endpoint has to be known here. What a node held that is silent for [`super::Options::lease`] is freed by the others.
//!
//! A node that was only paused may find its rows with another: then both attempt them, which the contract allows (at least once), and
//! the later decision is passed over, as it isn't the holder's.

use super::columns::Result;
use super::connect::{Connections, run};
use crate::domain::callback::Callback;
use crate::ports::StoreError;
use deadpool_postgres::Object;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A holder says so many times per lease that it is alive.
const BEATS: u32 = 5;
/// Rows that are freed at a time.
const FREED: i64 = 2_000;
/// How often all leases are looked at, whether or not somebody died: a node that was paused may have leased rows after it was given up.
const LOOK_EVERY: Duration = Duration::from_secs(300);

/// The clock that nodes compare by, in milliseconds.
macro_rules! database_now {
    () => {
        "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
    };
}

pub(super) use database_now;

/// The leases of this node.
pub(super) struct Leases {
    /// This node in the rows. Another one after each start.
    pub me: Uuid,
    lease: Duration,
    /// Rows that may be leased to this node though nobody here has them.
    astray: Mutex<Vec<Uuid>>,
    called: Notify,
}

impl Leases {
    pub fn new(lease: Duration) -> Self {
        Self { me: Uuid::now_v7(), lease, astray: Mutex::default(), called: Notify::new() }
    }

    /// Frees rows soon: an answer that nobody took, or a commit of which isn't known whether it was made, leaves no callback behind that is
    /// never tried again (CONTRACT.md 10.6).
    pub fn give_back(&self, rows: impl IntoIterator<Item = Uuid>) {
        let mut astray = self.astray.lock();
        astray.extend(rows);
        if !astray.is_empty() {
            self.called.notify_one();
        }
    }

    /// Says that this node is alive; fails if the database can't be written.
    pub async fn beat(&self, db: &Object) -> Result<()> {
        let beat = db
            .prepare_cached(concat!(
                "INSERT INTO holder (id, alive_till) VALUES ($1, ",
                database_now!(),
                " + $2) ON CONFLICT (id) DO UPDATE SET alive_till = excluded.alive_till"
            ))
            .await?;
        let lease = i64::try_from(self.lease.as_millis()).unwrap_or(i64::MAX);
        db.execute(&beat, &[&self.me, &lease]).await?;
        Ok(())
    }

    /// Keeps this node's leases and ends those of the dead, until it is told to stop.
    pub async fn keep(&self, db: &Connections, stop: &CancellationToken) {
        // After an outage of the server every node seems dead. Who could not beat either gives the others time to do it first.
        let (mut well_since, mut looked) = (Instant::now(), Instant::now());
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(self.lease / BEATS) => {}
                () = self.called.notified() => {}
            }
            let may_free = well_since.elapsed() >= self.lease;
            let look = may_free && looked.elapsed() >= LOOK_EVERY;
            match self.tended(db, may_free, look).await {
                Ok(()) if look => looked = Instant::now(),
                Ok(()) => {}
                Err(error) => {
                    well_since = Instant::now();
                    tracing::debug!(%error, "leases can't be renewed");
                    // What is astray would call at once.
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = sleep(self.lease / BEATS) => {}
                    }
                }
            }
        }
    }

    async fn tended(&self, db: &Connections, may_free: bool, look: bool) -> std::result::Result<(), StoreError> {
        run!(db, |db| self.tend(&db, may_free, look))
    }

    async fn tend(&self, db: &Object, may_free: bool, look: bool) -> Result<()> {
        self.beat(db).await?;
        let astray = std::mem::take(&mut *self.astray.lock());
        if let Err(failure) = self.free(db, &astray).await {
            self.give_back(astray);
            return Err(failure);
        }
        if !may_free {
            return Ok(());
        }
        let dead = db.execute(concat!("DELETE FROM holder WHERE alive_till < ", database_now!()), &[]).await?;
        if dead > 0 {
            tracing::info!(nodes = dead, "the callbacks that dead nodes held are tried by others");
        }
        if dead > 0 || look {
            self.free_orphans(db).await?;
        }
        Ok(())
    }

    async fn free(&self, db: &Object, rows: &[Uuid]) -> Result<()> {
        if !rows.is_empty() {
            db.execute("UPDATE outbox SET holder = NULL WHERE id = ANY($1) AND holder = $2", &[&rows, &self.me])
                .await?;
        }
        Ok(())
    }

    async fn free_orphans(&self, db: &Object) -> Result<()> {
        let free = "UPDATE outbox SET holder = NULL WHERE id IN (
                        SELECT o.id FROM outbox o WHERE o.holder IS NOT NULL
                        AND NOT EXISTS (SELECT 1 FROM holder h WHERE h.id = o.holder)
                        LIMIT $1 FOR UPDATE OF o SKIP LOCKED)";
        while db.execute(free, &[&FREED]).await? > 0 {}
        Ok(())
    }

    /// Frees all that this node holds.
    pub async fn end(&self, db: &Connections) -> std::result::Result<(), StoreError> {
        run!(db, |db| self.leave(&db))
    }

    async fn leave(&self, db: &Object) -> Result<()> {
        db.execute("DELETE FROM holder WHERE id = $1", &[&self.me]).await?;
        db.execute("UPDATE outbox SET holder = NULL WHERE holder = $1", &[&self.me]).await?;
        Ok(())
    }
}

/// Callbacks that are leased to a caller. What is not taken out is given back on drop.
pub(super) struct Leased {
    leases: Arc<Leases>,
    callbacks: Vec<Callback>,
}

impl Leased {
    pub fn new(leases: &Arc<Leases>, callbacks: Vec<Callback>) -> Self {
        Self { leases: Arc::clone(leases), callbacks }
    }

    /// Hands them to their holder, who ends the leases by settling.
    pub fn take(mut self) -> Vec<Callback> {
        std::mem::take(&mut self.callbacks)
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        if !self.callbacks.is_empty() {
            self.leases.give_back(self.callbacks.iter().map(|callback| callback.id));
        }
    }
}
