//! What the database contains, held against what should be there (`herenow doctor`): read only, beside a process that works with it or not.

use super::schema::{LATEST, open_onlooker};
use super::{FILE, columns, outbox};
use crate::backend::durable::doctor::{
    ABOUT, Expected, KEPT_FOR_NOTHING, NO_PUSH_CALLBACK, NO_STORAGE_CALLBACK, NOTHING_TO_TELL, OF_NO_MESSAGE,
    OF_NO_USER, OLD_KEYS, OLD_MESSAGES, Stray, backlog_findings, other_version,
};
use crate::domain::callback::Endpoint;
use crate::domain::finding::Finding;
use crate::domain::time::Timestamp;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Result};
use std::path::Path;
use std::time::{Duration, Instant};

/// All of it takes no longer than this: while a statement reads, the write-ahead log can't be begun anew.
const PATIENCE: Duration = Duration::from_secs(60);
/// Steps of SQLite's machine between looks at the clock.
const STEPS: i32 = 100_000;
/// Clocks of one machine don't run back further by themselves.
const FUTURE: Duration = Duration::from_secs(60);
/// The log is cut back to half of this.
const LARGE_LOG: u64 = 128 << 20;

/// Looks at the database in `dir`. Blocks.
pub fn examine(dir: &Path, expected: &Expected) -> Vec<Finding> {
    let path = dir.join(FILE);
    if !path.exists() {
        return vec![Finding::well(ABOUT, "SQLite: there is none yet")];
    }
    let mut findings = Vec::new();
    findings.extend(large_log(&dir.join(format!("{FILE}-wal"))));
    if let Err(error) = look(&path, expected, &mut findings) {
        findings.push(if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) {
            let found = format!("it is so large that not all could be looked at within {} s", PATIENCE.as_secs());
            Finding::warning(ABOUT, found, "make a backup (`herenow backup`), which checks what it has copied")
        } else {
            Finding::error(ABOUT, error.to_string(), MEND)
        });
    }
    findings
}

const MEND: &str = "stop herenow, keep a copy of the data directory, and restore a backup";

fn look(path: &Path, expected: &Expected, findings: &mut Vec<Finding>) -> Result<()> {
    let mut db = open_onlooker(path)?;
    let deadline = Instant::now() + PATIENCE;
    db.progress_handler(STEPS, Some(move || Instant::now() > deadline))?;
    let version: usize = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if let Some(other) = other_version("SQLite", version, LATEST) {
        findings.push(other);
        return Ok(());
    }
    findings.push(Finding::well(ABOUT, format!("SQLite, schema version {version}")));
    findings.extend(future(&db, expected.now)?);
    for endpoint in Endpoint::ALL {
        findings.extend(backlog_findings(endpoint, &outbox::backlog(&db, endpoint, expected.now)?, expected));
    }
    for (stray, sql) in STRAYS.iter().filter(|(stray, _)| expected.in_use || !stray.of_a_running_node) {
        let sql = format!("WITH given(now, aged, late) AS (VALUES (?1, ?2, ?3)) SELECT count(*) FROM {sql}");
        findings.extend(stray.finding(db.query_row(&sql, expected.times(), |row| row.get(0))?));
    }
    let said: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    findings.push(match said.as_str() {
        "ok" => Finding::well(ABOUT, "every page can be read"),
        _ => Finding::error(ABOUT, format!("it is damaged: {said}"), MEND),
    });
    Ok(())
}

fn large_log(path: &Path) -> Option<Finding> {
    let bytes = path.metadata().ok()?.len();
    let found = || format!("the write-ahead log has {} MiB", bytes >> 20);
    let advice =
        "something reads an old state: a backup that runs (wait for it), or another program that has the file open";
    (bytes > LARGE_LOG).then(|| Finding::warning(ABOUT, found(), advice))
}

fn future(db: &Connection, now: Timestamp) -> Result<Option<Finding>> {
    let newest = "SELECT sent_at FROM message ORDER BY seq DESC LIMIT 1";
    let newest = db.query_row(newest, [], |row| columns::time(row, 0)).optional()?;
    Ok(newest.filter(|newest| *newest > now.plus(FUTURE)).map(|newest| {
        let found = format!("its newest message is of {newest}, and now it is {now}");
        Finding::warning("clock", found, "the clock was or is wrong: set it, and keep it set (NTP)")
    }))
}

/// Each kind, and from where they are counted. `given.aged` is beyond the retention, `given.late` an hour ago.
const STRAYS: &[(Stray, &str)] = &[
    (OF_NO_MESSAGE, "inbox WHERE message NOT IN (SELECT seq FROM message)"),
    (
        OF_NO_USER,
        "(SELECT user FROM inbox UNION ALL SELECT user FROM device UNION ALL SELECT user FROM delivery
         UNION ALL SELECT coalesce(user, 0) FROM outbox WHERE endpoint = 2
         UNION ALL SELECT coalesce(user, 0) FROM dead WHERE endpoint = 2)
         WHERE user NOT IN (SELECT id FROM user)",
    ),
    // What is beyond the retention is about to go.
    (
        NO_STORAGE_CALLBACK,
        "message, given WHERE storage_state IN (1, 3) AND sent_at > given.aged
         AND id NOT IN (SELECT message FROM outbox WHERE endpoint = 1)",
    ),
    (
        NO_PUSH_CALLBACK,
        "inbox, given WHERE push_state IN (1, 3) AND expires_at > given.now
         AND (user, cursor) NOT IN (SELECT user, cursor FROM outbox WHERE endpoint = 2 AND user IS NOT NULL)",
    ),
    (
        KEPT_FOR_NOTHING,
        "message, given WHERE kept = 1 AND sent_at > given.aged AND id NOT IN
         (SELECT message FROM outbox WHERE endpoint = 1 UNION ALL SELECT message FROM dead WHERE endpoint = 1)",
    ),
    (
        NOTHING_TO_TELL,
        "outbox, given WHERE due_at < given.late AND recalled = 0 AND message NOT IN (SELECT id FROM message)",
    ),
    (OLD_MESSAGES, "message, given WHERE brief < given.late OR sent_at < given.aged - (given.now - given.late)"),
    (OLD_KEYS, "idempotency, given WHERE idempotency.expires_at < given.late"),
];

#[cfg(test)]
mod tests {
    use super::super::schema::open_writer;
    use super::*;
    use crate::domain::finding::Level;
    use crate::ports::Leases;
    use tempfile::TempDir;

    const NOW: i64 = 1_800_000_000_000;

    fn expected(in_use: bool) -> Expected {
        Expected {
            now: Timestamp::from_ms(NOW),
            retention: Duration::from_secs(86_400),
            endpoints: Leases { storage: true, push: true },
            in_use,
        }
    }

    /// A database with a user, a message in their inbox and its two callbacks.
    fn sound() -> (TempDir, Connection) {
        let dir = tempfile::tempdir().unwrap();
        let db = open_writer(&dir.path().join(FILE)).unwrap();
        db.execute_batch(&format!(
            "INSERT INTO user (id, name) VALUES (1, 'bob');
             INSERT INTO message (seq, id, sent_at, expires_at, storage_state, sender, kind, recipients, payload)
               VALUES (1, x'01', {NOW} - 1000, {NOW} + 1000, 1, 'alice', 'chat', x'0101', x'31');
             INSERT INTO inbox (user, cursor, message, expires_at, push_state) VALUES (1, 1, 1, {NOW} + 1000, 1);
             INSERT INTO outbox (endpoint, due_at, id, message) VALUES (1, {NOW} - 1000, x'0a', x'01');
             INSERT INTO outbox (endpoint, due_at, id, message, user, cursor) VALUES (2, {NOW}, x'0b', x'01', 1, 1);"
        ))
        .unwrap();
        (dir, db)
    }

    fn told(dir: &TempDir, expected: &Expected) -> Vec<(Level, String)> {
        let findings = examine(dir.path(), expected).into_iter();
        findings.filter(|f| f.level != Level::Well).map(|f| (f.level, f.found)).collect()
    }

    #[test]
    fn nothing_is_found_where_nothing_is_wrong() {
        let (dir, _db) = sound();
        assert_eq!(told(&dir, &expected(true)), []);
        assert_eq!(told(&tempfile::tempdir().unwrap(), &expected(true)), []);
    }

    #[test]
    fn each_kind_of_stray_row_is_told_by_itself() {
        for (damage, level, part) in [
            (
                "DELETE FROM message; DELETE FROM outbox WHERE endpoint = 1",
                Level::Error,
                "1 inbox rows lead to no message",
            ),
            ("DELETE FROM user", Level::Error, "2 rows are of users that are not there"),
            ("UPDATE outbox SET user = NULL; UPDATE inbox SET push_state = 5", Level::Error, "1 rows are of users"),
            ("DELETE FROM outbox WHERE endpoint = 1", Level::Error, "1 messages wait for a storage callback"),
            ("DELETE FROM outbox WHERE endpoint = 2", Level::Error, "1 inbox rows wait for a push callback"),
            (
                "UPDATE message SET kept = 1, storage_state = 4; DELETE FROM outbox WHERE endpoint = 1",
                Level::Warning,
                "1 messages are kept for a storage callback",
            ),
            ("UPDATE message SET brief = 5", Level::Warning, "1 messages are long past their time"),
            (
                "INSERT INTO idempotency VALUES ('k', x'00', 5, x'01', 1, 1, x'')",
                Level::Warning,
                "1 idempotency keys are long past",
            ),
            (
                "DELETE FROM inbox; DELETE FROM message; UPDATE outbox SET due_at = 1",
                Level::Warning,
                "2 callbacks are long due, and their message is gone",
            ),
            (
                "UPDATE outbox SET due_at = 1 WHERE endpoint = 1",
                Level::Warning,
                "1 callbacks wait, the oldest has been due",
            ),
            (
                "INSERT INTO dead (id, endpoint, due_at, message, attempts) VALUES (x'0c', 1, 1, x'01', 9)",
                Level::Warning,
                "1 callbacks were given up",
            ),
            ("UPDATE message SET sent_at = sent_at + 99000", Level::Warning, "its newest message is of"),
        ] {
            let (dir, db) = sound();
            db.execute_batch(damage).unwrap();
            let told = told(&dir, &expected(true));
            assert!(told.iter().any(|(l, found)| *l == level && found.starts_with(part)), "{damage}: {told:?}");
        }
    }

    #[test]
    fn callbacks_that_no_worker_makes_are_told() {
        let (dir, _db) = sound();
        let without = Expected { endpoints: Leases { storage: true, push: false }, ..expected(true) };
        let told = told(&dir, &without);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].1.contains("1 callbacks wait, but no worker makes them: `callbacks.push.url` is not set"));
    }

    #[test]
    fn without_a_node_nothing_is_late() {
        let (dir, db) = sound();
        db.execute_batch("UPDATE message SET brief = 5; UPDATE outbox SET due_at = 1").unwrap();
        assert_eq!(told(&dir, &expected(false)), []);
    }

    #[test]
    fn another_version_is_told_and_not_looked_into() {
        let (dir, db) = sound();
        db.execute_batch("DELETE FROM message; PRAGMA user_version = 99").unwrap();
        let told = told(&dir, &expected(true));
        assert!(told.len() == 1 && told[0].1.contains("schema version 99; this herenow knows"), "{told:?}");
    }

    #[test]
    fn a_damaged_file_is_told() {
        let (dir, db) = sound();
        drop(db);
        std::fs::write(dir.path().join(FILE), [7; 8_192]).unwrap();
        assert_eq!(told(&dir, &expected(false))[0].0, Level::Error);
    }
}
