//! What the database contains, held against what should be there (`herenow doctor`): read only, beside a process that works with it or not.

use super::schema::{LATEST, open_onlooker};
use super::{FILE, outbox};
use crate::domain::callback::Endpoint;
use crate::domain::finding::{Finding, Level};
use crate::domain::time::Timestamp;
use crate::ports::Leases;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Result, params};
use std::path::Path;
use std::time::{Duration, Instant};

const ABOUT: &str = "store";
/// All of it takes no longer than this: while a statement reads, the write-ahead log can't be begun anew.
const PATIENCE: Duration = Duration::from_secs(60);
/// Steps of SQLite's machine between looks at the clock.
const STEPS: i32 = 100_000;
/// What a node that runs has had this long to do is late.
const LATE: Duration = Duration::from_secs(3_600);
/// A callback that was due for longer is told of.
const OVERDUE: Duration = Duration::from_secs(300);
/// Clocks of one machine don't run back further by themselves.
const FUTURE: Duration = Duration::from_secs(60);
/// The log is cut back to half of this.
const LARGE_LOG: u64 = 128 << 20;

/// What the database is held against.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Now.
    pub now: Timestamp,
    /// `store.retention_s`
    pub retention: Duration,
    /// Those with a URL.
    pub endpoints: Leases,
    /// A node works with it, so that nothing is late for want of one.
    pub in_use: bool,
}

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
    if version != LATEST {
        findings.push(other_version(version));
        return Ok(());
    }
    findings.push(Finding::well(ABOUT, format!("SQLite, schema version {version}")));
    findings.extend(future(&db, expected.now)?);
    for endpoint in Endpoint::ALL {
        findings.extend(backlog(&db, endpoint, expected)?);
    }
    for stray in STRAYS.iter().filter(|stray| expected.in_use || !stray.of_a_running_node) {
        findings.extend(stray.count(&db, expected)?);
    }
    let said: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    findings.push(match said.as_str() {
        "ok" => Finding::well(ABOUT, "every page can be read"),
        _ => Finding::error(ABOUT, format!("it is damaged: {said}"), MEND),
    });
    Ok(())
}

fn other_version(version: usize) -> Finding {
    let found = format!("SQLite, schema version {version}; this herenow knows {LATEST}");
    if version < LATEST {
        Finding::well(ABOUT, format!("{found}, and brings it up to date at the next start"))
    } else {
        Finding::error(ABOUT, found, "run the newer herenow, or restore a backup of before")
    }
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
    let newest = db.query_row(newest, [], |row| super::columns::time(row, 0)).optional()?;
    Ok(newest.filter(|newest| *newest > now.plus(FUTURE)).map(|newest| {
        let found = format!("its newest message is of {newest}, and now it is {now}");
        Finding::warning("clock", found, "the clock was or is wrong: set it, and keep it set (NTP)")
    }))
}

fn backlog(db: &Connection, endpoint: Endpoint, expected: &Expected) -> Result<Vec<Finding>> {
    let about = format!("callbacks.{}", endpoint.as_str());
    let has_url = match endpoint {
        Endpoint::Storage => expected.endpoints.storage,
        Endpoint::Push => expected.endpoints.push,
    };
    let backlog = outbox::backlog(db, endpoint, expected.now)?;
    let mut findings = Vec::new();
    if backlog.pending > 0 && !has_url {
        let found = format!("{} callbacks wait, but no worker makes them: `{about}.url` is not set", backlog.pending);
        findings.push(Finding::warning(&about, found, "set it; else they go when `store.retention_s` is over"));
    } else if let Some(due) = backlog.oldest_due.filter(|due| expected.in_use && due.plus(OVERDUE) < expected.now) {
        let found = format!("{} callbacks wait, the oldest has been due since {due}", backlog.pending);
        let advice = "the endpoint is down or too slow: see `herenow_callback_breaker_open` and docs/operations.md";
        findings.push(Finding::warning(&about, found, advice));
    }
    if backlog.dead > 0 {
        let found = format!("{} callbacks were given up", backlog.dead);
        let advice = format!("GET /v1/callbacks?state=dead&endpoint={} says why", endpoint.as_str());
        findings.push(Finding::warning(&about, found, advice));
    }
    Ok(findings)
}

/// Rows that should not be there.
struct Stray {
    /// Counts them; it may use `given.now`, `given.aged` (beyond the retention) and `given.late`.
    sql: &'static str,
    level: Level,
    /// What they are.
    are: &'static str,
    /// Only a node that runs would have removed them.
    of_a_running_node: bool,
}

const BUG: &str = "report it as a bug, with this text";

const STRAYS: &[Stray] = &[
    Stray {
        sql: "FROM inbox WHERE message NOT IN (SELECT seq FROM message)",
        level: Level::Error,
        are: "inbox rows lead to no message: nobody can read them",
        of_a_running_node: false,
    },
    Stray {
        sql: "FROM (SELECT user FROM inbox UNION ALL SELECT user FROM device UNION ALL SELECT user FROM delivery
              UNION ALL SELECT coalesce(user, 0) FROM outbox WHERE endpoint = 2
              UNION ALL SELECT coalesce(user, 0) FROM dead WHERE endpoint = 2)
              WHERE user NOT IN (SELECT id FROM user)",
        level: Level::Error,
        are: "rows are of users that are not there: nobody can reach them",
        of_a_running_node: false,
    },
    // One beyond the retention is about to go.
    Stray {
        sql: "FROM message, given WHERE storage_state IN (1, 3) AND sent_at > given.aged
              AND id NOT IN (SELECT message FROM outbox WHERE endpoint = 1)",
        level: Level::Error,
        are: "messages wait for a storage callback that is not there: it will never be made",
        of_a_running_node: false,
    },
    Stray {
        sql: "FROM inbox, given WHERE push_state IN (1, 3) AND expires_at > given.now
              AND (user, cursor) NOT IN (SELECT user, cursor FROM outbox WHERE endpoint = 2 AND user IS NOT NULL)",
        level: Level::Error,
        are: "inbox rows wait for a push callback that is not there: it will never be made",
        of_a_running_node: false,
    },
    Stray {
        sql: "FROM message, given WHERE kept = 1 AND sent_at > given.aged AND id NOT IN
              (SELECT message FROM outbox WHERE endpoint = 1 UNION ALL SELECT message FROM dead WHERE endpoint = 1)",
        level: Level::Warning,
        are: "messages are kept for a storage callback that is not there: they go when `store.retention_s` is over",
        of_a_running_node: false,
    },
    Stray {
        sql: "FROM outbox, given WHERE due_at < given.late AND recalled = 0 AND message NOT IN (SELECT id FROM message)",
        level: Level::Warning,
        are: "callbacks are long due, and their message is gone: there is nothing to tell",
        of_a_running_node: true,
    },
    Stray {
        sql: "FROM message, given WHERE brief < given.late OR sent_at < given.aged - (given.now - given.late)",
        level: Level::Warning,
        are: "messages are long past their time and were not removed",
        of_a_running_node: true,
    },
    Stray {
        sql: "FROM idempotency, given WHERE idempotency.expires_at < given.late",
        level: Level::Warning,
        are: "idempotency keys are long past their time and were not removed",
        of_a_running_node: true,
    },
];

impl Stray {
    fn count(&self, db: &Connection, expected: &Expected) -> Result<Option<Finding>> {
        let sql = format!("WITH given(now, aged, late) AS (VALUES (?1, ?2, ?3)) SELECT count(*) {}", self.sql);
        let Expected { now, retention, .. } = expected;
        let given = params![now.as_ms(), now.minus(*retention).as_ms(), now.minus(LATE).as_ms()];
        let count: u64 = db.query_row(&sql, given, |row| row.get(0))?;
        let finding = || Finding { level: self.level, ..Finding::warning(ABOUT, format!("{count} {}", self.are), BUG) };
        Ok((count > 0).then(finding))
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema::open_writer;
    use super::*;
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
