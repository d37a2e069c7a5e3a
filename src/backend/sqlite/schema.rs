//! How the database is opened: the settings that durability rests on (CONTRACT.md 10.4), and the migrations.

use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use std::path::Path;
use std::time::Duration;

/// The first SQLite without the WAL-reset corruption bug, which checkpointing on a second connection could trigger.
const OLDEST_SQLITE: i32 = 3_051_003;

/// Each brings `user_version` one further.
const MIGRATIONS: &[&str] = &[
    include_str!("../../../migrations/sqlite/0001_messages.sql"),
    include_str!("../../../migrations/sqlite/0002_groups_and_recall.sql"),
    include_str!("../../../migrations/sqlite/0003_trace.sql"),
    include_str!("../../../migrations/sqlite/0004_fanout.sql"),
];

/// The version that they lead to.
pub(super) const LATEST: usize = MIGRATIONS.len();

/// How long a connection waits for another's lock. Only a foreign program, such as a backup, can hold one for long.
pub(super) const BUSY: Duration = Duration::from_secs(5);

/// Why the store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The SQLite that was linked has a bug that can destroy the database.
    #[error("SQLite {0} has a corruption bug that 3.51.3 mended")]
    OldSqlite(&'static str),
    /// A later herenow has written it.
    #[error("the database has schema version {found}, this herenow knows {known}: run the newer herenow")]
    Newer {
        /// In the file.
        found: usize,
        /// The greatest known here.
        known: usize,
    },
    /// The file system can't do what the write-ahead log needs.
    #[error("no write-ahead log on this file system: the journal mode stayed `{0}`")]
    NoWal(String),
    /// A thread can't be started.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Everything else.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

/// Opens the connection that writes, and brings the schema up to date.
pub(super) fn open_writer(path: &Path) -> Result<Connection, OpenError> {
    if rusqlite::version_number() < OLDEST_SQLITE {
        return Err(OpenError::OldSqlite(rusqlite::version()));
    }
    let mut db = Connection::open(path)?;
    db.busy_timeout(BUSY)?;
    // Heeded by a new file only, before it has a table.
    db.execute_batch("PRAGMA auto_vacuum = INCREMENTAL")?;
    let mode: String = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(OpenError::NoWal(mode));
    }
    // FULL: a commit has been fsynced when it returns. The bounds of the log are explained in `checkpoint`. The cache is small, as a
    // commit that has split pages walks all of it; the kernel's cache stands behind it.
    db.execute_batch(
        "PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 16000; PRAGMA journal_size_limit = 67108864;
         PRAGMA cache_size = -8192; PRAGMA mmap_size = 0; PRAGMA temp_store = MEMORY",
    )?;
    db.set_prepared_statement_cache_capacity(64);
    migrate(&mut db, MIGRATIONS)?;
    Ok(db)
}

/// Opens a connection that only reads, from a database that [`open_writer`] has prepared.
pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY)?;
    db.execute_batch(
        "PRAGMA query_only = ON; PRAGMA cache_size = -16384; PRAGMA mmap_size = 0; PRAGMA temp_store = MEMORY",
    )?;
    db.set_prepared_statement_cache_capacity(32);
    Ok(db)
}

/// Opens a connection of a process that looks on beside the one that works with the database, if there is one. It can't write, so it does
/// not even checkpoint at its end; where nobody else is, it leaves an empty log behind.
pub(super) fn open_onlooker(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY)?;
    db.execute_batch("PRAGMA mmap_size = 0; PRAGMA temp_store = MEMORY")?;
    Ok(db)
}

/// Opens a connection for checkpoints.
pub(super) fn open_checkpointer(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.execute_batch("PRAGMA synchronous = FULL; PRAGMA mmap_size = 0; PRAGMA cache_size = -2048")?;
    Ok(db)
}

fn migrate(db: &mut Connection, scripts: &[&str]) -> Result<(), OpenError> {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = tx.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let found = usize::try_from(version).unwrap_or(usize::MAX);
    let Some(missing) = scripts.get(found..) else {
        return Err(OpenError::Newer { found, known: scripts.len() });
    };
    for script in missing {
        tx.execute_batch(script)?;
    }
    tx.pragma_update(None, "user_version", scripts.len())?;
    Ok(tx.commit()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_run_once_and_in_order() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, &["CREATE TABLE a (n)"]).unwrap();
        migrate(&mut db, &["CREATE TABLE a (n)", "ALTER TABLE a ADD COLUMN m; INSERT INTO a VALUES (1, 2)"]).unwrap();
        migrate(&mut db, &["CREATE TABLE a (n)", "ALTER TABLE a ADD COLUMN m; INSERT INTO a VALUES (1, 2)"]).unwrap();
        let rows: i64 = db.query_row("SELECT count(*) FROM a WHERE m = 2", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 1);
    }

    #[test]
    fn a_migration_that_fails_leaves_the_version_and_the_tables_as_they_were() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, &["CREATE TABLE a (n)"]).unwrap();
        assert!(migrate(&mut db, &["", "CREATE TABLE b (n)", "nonsense"]).is_err());
        let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
        let version: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!((tables, version), (1, 1));
    }

    #[test]
    fn the_settings_that_durability_rests_on_are_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let db = open_writer(&dir.path().join("t.db")).unwrap();
        let setting = |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(setting("synchronous"), 2, "FULL");
        assert_eq!(setting("auto_vacuum"), 2, "INCREMENTAL");
        assert_eq!(setting("wal_autocheckpoint"), 16_000);
        let reader = open_reader(&dir.path().join("t.db")).unwrap();
        assert!(reader.execute("DELETE FROM user", []).is_err(), "a reader can't write");
    }
}
