//! What PostgreSQL is, and what it contains, held against what should be there (`herenow doctor`). It only reads.

use super::Options;
use super::connect::{self, Connections, Failure};
use super::leases::database_now;
use super::schema::{CLOCKS_APART, LATEST, OLDEST_SERVER};
use super::{columns::Result, outbox};
use crate::backend::durable::doctor::{
    ABOUT, Expected, KEPT_FOR_NOTHING, NO_PUSH_CALLBACK, NO_STORAGE_CALLBACK, NOTHING_TO_TELL, OF_NO_MESSAGE,
    OF_NO_USER, OLD_KEYS, OLD_MESSAGES, Stray, UNFINISHED, backlog_findings, other_version,
};
use crate::backend::durable::metrics::Metrics;
use crate::config::Secret;
use crate::domain::callback::Endpoint;
use crate::domain::finding::Finding;
use crate::domain::time::Timestamp;
use deadpool_postgres::Object;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;
use tokio::time::timeout;
use tokio_postgres::Row;

/// All of it takes no longer than this.
const PATIENCE: Duration = Duration::from_secs(60);
/// A transaction that is open for longer keeps what was deleted since.
const LONG_TRANSACTION_S: i64 = 600;
/// Fewer dead rows of a table are nothing to speak of.
const MANY_DEAD: i64 = 100_000;

/// Looks at the database of this URL.
pub async fn examine(url: &Secret, expected: Expected) -> Vec<Finding> {
    let mut findings = Vec::new();
    let found = match timeout(PATIENCE, look(url, expected, &mut findings)).await {
        Ok(Ok(())) => return findings,
        Ok(Err(error)) => format!("PostgreSQL can't be used: {error}"),
        Err(_) => format!("not all of PostgreSQL could be looked at within {} s", PATIENCE.as_secs()),
    };
    let advice = "is `store.url` right, does the server run, and may this user do what it must?";
    findings.push(Finding::error(ABOUT, found, advice));
    findings
}

type Looked = std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

async fn look(url: &Secret, expected: Expected, findings: &mut Vec<Finding>) -> Looked {
    // Nobody counts here.
    let counts = (Metrics::new(&mut Registry::default()), Histogram::new([]));
    let db = Connections::new(&connect::config(url.expose())?, 1, counts)?.get().await?;
    db.batch_execute("SET default_transaction_read_only = on").await.map_err(Failure::from)?;
    findings.extend(server(&db, expected.now).await?);
    let is_there = "SELECT to_regclass('schema_version') IS NOT NULL";
    if !one::<bool>(&db, is_there).await? {
        findings.push(Finding::well(ABOUT, "PostgreSQL: there are no tables yet; the first start makes them"));
        return Ok(());
    }
    let version: i32 = one(&db, "SELECT coalesce(max(version), 0) FROM schema_version").await?;
    let version = usize::try_from(version).unwrap_or(0);
    if let Some(other) = other_version("PostgreSQL", version, LATEST) {
        findings.push(other);
        return Ok(());
    }
    findings.push(Finding::well(ABOUT, format!("PostgreSQL, schema version {version}")));
    let nodes: i64 = one(&db, concat!("SELECT count(*) FROM holder WHERE alive_till > ", database_now!())).await?;
    let expected = Expected { in_use: nodes > 0, ..expected };
    findings.extend(room_for(&db, nodes).await?);
    findings.extend(tables(&db, &expected).await?);
    findings.extend(transactions(&db).await?);
    for endpoint in Endpoint::ALL {
        findings.extend(backlog_findings(endpoint, &outbox::backlog(&db, endpoint, expected.now).await?, &expected));
    }
    findings.extend(strays(&db, &expected).await?);
    Ok(())
}

/// The one value of a query.
async fn one<T>(db: &Object, query: &str) -> Result<T>
where
    T: for<'a> tokio_postgres::types::FromSql<'a>,
{
    Ok(db.query_one(query, &[]).await?.try_get(0)?)
}

/// Its version, its clock, and whether what it says is written is on the disk.
async fn server(db: &Object, now: Timestamp) -> Result<Vec<Finding>> {
    let row = db
        .query_one(
            concat!(
                "SELECT current_setting('server_version_num')::int, current_setting('server_version'), ",
                database_now!(),
                ", current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on',
                   current_setting('synchronous_commit'), current_setting('autovacuum') = 'on', pg_is_in_recovery(),
                   has_schema_privilege(current_schema(), 'CREATE')"
            ),
            &[],
        )
        .await?;
    let version: &str = row.try_get(1)?;
    let mut findings = vec![Finding::well(ABOUT, format!("PostgreSQL {version}"))];
    let mut error = |found: String, advice: &str| findings.push(Finding::error(ABOUT, found, advice));
    if row.try_get::<_, i32>(0)? < OLDEST_SERVER {
        error(format!("PostgreSQL {version} is too old"), "14 or later is needed");
    }
    let apart = now.as_ms() - row.try_get::<_, i64>(2)?;
    if apart.abs() > CLOCKS_APART {
        error(format!("its clock and this one differ by {apart} ms"), "keep both set (NTP): messages expire by them");
    }
    if !row.try_get::<_, bool>(3)? {
        error("`fsync` or `full_page_writes` is off: a crash may destroy all".to_owned(), "turn both on");
    }
    let commit: &str = row.try_get(4)?;
    if matches!(commit, "off" | "local" | "remote_write") {
        let found = format!("`synchronous_commit` is {commit}, though herenow sets it to `on` in its sessions");
        error(found, "connect without a pooler that shares sessions, or set it for the user");
    }
    if row.try_get(6)? {
        error("it is a standby".to_owned(), "let `store.url` name the primary, or all hosts");
    } else if !row.try_get::<_, Option<bool>>(7)?.unwrap_or(false) {
        error("the user may not make tables, which each span of time needs".to_owned(), "GRANT CREATE ON SCHEMA");
    }
    if !row.try_get::<_, bool>(5)? {
        let found = "`autovacuum` is off: tables grow without end";
        findings.push(Finding::warning(ABOUT, found, "turn it on"));
    }
    Ok(findings)
}

/// Each node takes so many connections at most.
async fn room_for(db: &Object, nodes: i64) -> Result<Option<Finding>> {
    let Options { writers, connections, .. } = Options::new(Duration::ZERO, 0);
    let each = i64::try_from(writers + connections).unwrap_or(i64::MAX);
    let most: i64 = one(
        db,
        "SELECT least(current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint,
                      (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user))",
    )
    .await?;
    let wanted = each.saturating_mul(nodes.max(1));
    let found = format!("living nodes: {nodes}, which may take {wanted} connections; {most} are allowed");
    Ok(Some(if wanted > most {
        Finding::warning(ABOUT, found, "raise `max_connections`, or the user's limit")
    } else {
        Finding::well(ABOUT, found)
    }))
}

/// Partitions, leases, and rows that are dead but not gone.
async fn tables(db: &Object, expected: &Expected) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let ahead: Option<i64> = one(db, "SELECT max(ends_at) FROM span").await?;
    if expected.in_use && ahead.is_none_or(|ends_at| ends_at <= expected.now.as_ms()) {
        let found = "there is no partition for what is sent now: none was made ahead";
        findings.push(Finding::error(ABOUT, found, "see the nodes' logs: what keeps them from making tables?"));
    }
    let astray = "SELECT count(*) FROM outbox o WHERE holder IS NOT NULL
                  AND NOT EXISTS (SELECT 1 FROM holder h WHERE h.id = o.holder)";
    let astray: i64 = one(db, astray).await?;
    if expected.in_use && astray > 0 {
        let found = format!("{astray} callbacks are leased to nodes that are gone");
        let advice = "a living node frees them within five minutes; if they stay, report it as a bug";
        findings.push(Finding::warning(ABOUT, found, advice));
    }
    let dead = "SELECT relname::text, n_dead_tup FROM pg_stat_user_tables
                WHERE schemaname = current_schema() AND n_dead_tup > $1 AND n_dead_tup > n_live_tup";
    for row in db.query(dead, &[&MANY_DEAD]).await? {
        findings.push(dead_rows(&row)?);
    }
    Ok(findings)
}

fn dead_rows(row: &Row) -> Result<Finding> {
    let (table, dead): (&str, i64) = (row.try_get(0)?, row.try_get(1)?);
    let found = format!("the table {table} has {dead} dead rows, more than living ones");
    Ok(Finding::warning(ABOUT, found, "autovacuum doesn't keep up: is a transaction open for long, or the disk slow?"))
}

/// Those of other users are seen only with `pg_read_all_stats`.
async fn transactions(db: &Object) -> Result<Option<Finding>> {
    let oldest = "SELECT max(extract(epoch FROM clock_timestamp() - xact_start))::bigint FROM pg_stat_activity
                  WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let oldest: Option<i64> = one(db, oldest).await?;
    Ok(oldest.filter(|age| *age > LONG_TRANSACTION_S).map(|age| {
        let found = format!("a transaction has been open for {age} s: nothing deleted since is removed");
        Finding::warning(ABOUT, found, "find it in `pg_stat_activity`, and end it")
    }))
}

async fn strays(db: &Object, expected: &Expected) -> Result<Vec<Finding>> {
    let [now, aged, late] = expected.times();
    let given = format!("WITH given(now, aged, late) AS (VALUES ({now}::bigint, {aged}::bigint, {late}::bigint))");
    let mut findings = Vec::new();
    for (stray, sql) in STRAYS.iter().filter(|(stray, _)| expected.in_use || !stray.of_a_running_node) {
        let count: i64 = one(db, &format!("{given} SELECT count(*) FROM {sql}")).await?;
        findings.extend(stray.finding(count.unsigned_abs()));
    }
    Ok(findings)
}

/// Each kind, and from where they are counted. `given.aged` is beyond the retention, `given.late` an hour ago.
const STRAYS: &[(Stray, &str)] = &[
    // The row of a recalled message is kept.
    (
        OF_NO_MESSAGE,
        "inbox i WHERE i.expires_at > 0 AND NOT EXISTS (SELECT 1 FROM message m WHERE m.id = i.message)",
    ),
    (
        OF_NO_USER,
        "(SELECT user_id FROM inbox UNION ALL SELECT user_id FROM device UNION ALL SELECT user_id FROM delivery
          UNION ALL SELECT user_id FROM outbox WHERE endpoint = 2 UNION ALL SELECT user_id FROM dead WHERE endpoint = 2) r
         WHERE NOT EXISTS (SELECT 1 FROM users u WHERE u.id = r.user_id)",
    ),
    // What is beyond the retention is about to go.
    (
        NO_STORAGE_CALLBACK,
        "message m, given WHERE m.storage_state IN (1, 3) AND m.sent_at > given.aged
         AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.message = m.id AND o.endpoint = 1)
         AND NOT EXISTS (SELECT 1 FROM fanout f WHERE f.message = m.id)",
    ),
    (
        NO_PUSH_CALLBACK,
        "inbox i, given WHERE i.push_state IN (1, 3) AND i.expires_at > given.now
         AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.endpoint = 2 AND o.user_id = i.user_id AND o.cursor = i.cursor)",
    ),
    (
        KEPT_FOR_NOTHING,
        "message m, given WHERE m.kept AND m.sent_at > given.aged
         AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.message = m.id AND o.endpoint = 1)
         AND NOT EXISTS (SELECT 1 FROM dead d WHERE d.message = m.id AND d.endpoint = 1)",
    ),
    (
        NOTHING_TO_TELL,
        "outbox o, given WHERE o.due_at < given.late AND NOT o.recalled
         AND NOT EXISTS (SELECT 1 FROM message m WHERE m.id = o.message)",
    ),
    (OLD_MESSAGES, "message m, given WHERE m.brief < given.late"),
    (UNFINISHED, "fanout f JOIN message m ON m.id = f.message CROSS JOIN given WHERE m.sent_at < given.late"),
    (OLD_KEYS, "idempotency k, given WHERE k.expires_at < given.late"),
];
