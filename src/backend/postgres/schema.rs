//! Opening the database: waiting for it, and bringing the schema up to date.

use super::connect::{ConnectError, Connections, Failure, end, keep_sessions};
use super::leases::database_now;
use crate::domain::time::Timestamp;
use crate::ports::StoreError;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

/// Each brings the version one further.
const MIGRATIONS: &[&str] = &[
    include_str!("../../../migrations/postgres/0001_messages.sql"),
    include_str!("../../../migrations/postgres/0002_fanout.sql"),
];
/// The version that they lead to.
pub(super) const LATEST: usize = MIGRATIONS.len();
/// The oldest server that has all that is used: 14.
pub(super) const OLDEST_SERVER: i32 = 140_000;
/// Of the lock that a node holds while it migrates: "herenow" as a number.
const LOCK: i64 = 0x68_6572_656e_6f77;
/// Clocks that differ by more milliseconds are worth a warning.
pub(super) const CLOCKS_APART: i64 = 5_000;
/// Between attempts to reach the server at the start.
const PAUSE: Duration = Duration::from_millis(250);

/// Why the store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No connections can be made, whatever the server does.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server can't be reached, or refuses.
    #[error("PostgreSQL can't be reached: {0}")]
    Unreachable(String),
    /// It lacks what herenow needs.
    #[error("the server's version is {0}: PostgreSQL 14 or later is needed")]
    OldServer(i32),
    /// A pooler in between lends the server's sessions for a transaction or a statement.
    #[error(
        "connections share the server's sessions: a pooler in between must keep them (PgBouncer: `pool_mode = session`)"
    )]
    SharedSessions,
    /// A later herenow has written the schema.
    #[error("the database has schema version {found}, this herenow knows {known}: run the newer herenow")]
    Newer {
        /// In the database.
        found: usize,
        /// The greatest known here.
        known: usize,
    },
    /// The schema can't be brought up to date.
    #[error("the schema can't be brought up to date: {0}")]
    Migration(String),
    /// Everything else.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Waits for the server, for `patience` at most, sees that it is fit, and brings the schema up to date.
pub(super) async fn prepare(
    connections: &Connections,
    writers: &Connections,
    patience: Duration,
) -> Result<(), OpenError> {
    let deadline = Instant::now() + patience;
    let unreachable = |failure: Failure| OpenError::Unreachable(failure.to_string());
    let client = loop {
        match connections.get().await {
            Ok(client) => break client,
            Err(failure) if Instant::now() + PAUSE >= deadline => return Err(unreachable(failure)),
            Err(failure) => {
                tracing::warn!(error = %failure, "PostgreSQL can't be reached yet");
                sleep(PAUSE).await;
            }
        }
    };
    let other = writers.get().await.map_err(unreachable)?;
    if !keep_sessions([&client, &other]).await.map_err(unreachable)? {
        return Err(OpenError::SharedSessions);
    }
    migrate(&client, MIGRATIONS).await
}

async fn migrate(db: &Client, scripts: &[&str]) -> Result<(), OpenError> {
    let broken = |error: tokio_postgres::Error| OpenError::Migration(Failure::from(error).to_string());
    let (version, clock): (i32, i64) = db
        .query_one(concat!("SELECT current_setting('server_version_num')::int, ", database_now!()), &[])
        .await
        .and_then(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .map_err(broken)?;
    let apart = Timestamp::now().as_ms() - clock;
    if apart.abs() > CLOCKS_APART {
        tracing::warn!(
            apart_ms = apart,
            "this clock and the database's differ: messages expire by the clocks of the nodes"
        );
    }
    if version < OLDEST_SERVER {
        return Err(OpenError::OldServer(version));
    }
    db.batch_execute("BEGIN").await.map_err(broken)?;
    let found = end(db, bring_up_to_date(db, scripts).await)
        .await
        .map_err(|failure| OpenError::Migration(failure.to_string()))?;
    if found > scripts.len() {
        return Err(OpenError::Newer { found, known: scripts.len() });
    }
    Ok(())
}

/// Returns the version that was found.
async fn bring_up_to_date(db: &Client, scripts: &[&str]) -> Result<usize, Failure> {
    // Several nodes may start at once: one migrates, the others wait for it.
    db.batch_execute("SET LOCAL statement_timeout = '10min'; SET LOCAL lock_timeout = '10min'").await?;
    db.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    db.batch_execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)").await?;
    let version: Option<i32> = db.query_one("SELECT max(version) FROM schema_version", &[]).await?.try_get(0)?;
    let found = usize::try_from(version.unwrap_or(0)).unwrap_or(0);
    for script in scripts.get(found..).unwrap_or_default() {
        db.batch_execute(script).await?;
    }
    for version in found + 1..=scripts.len() {
        let version = i32::try_from(version).unwrap_or(i32::MAX);
        db.execute("INSERT INTO schema_version VALUES ($1)", &[&version]).await?;
    }
    Ok(found)
}
