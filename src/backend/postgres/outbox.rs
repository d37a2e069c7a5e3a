//! Callbacks that are waiting, failing or dead (CONTRACT.md 10.6): leasing, settling and retrying them, and what the operator sees.
//!
//! A callback is settled by its holder alone, and only as it was leased: by its id and the time at which it was due.

use super::columns::{
    CALLBACK_COLUMNS, Result, attempts_column, callback, callback_columns, detail_column, last_error, state,
};
use super::leases::Leases;
use crate::backend::durable::forms::{endpoint_number, made_at, state_number};
use crate::domain::callback::{Callback, CallbackState, Decision, Endpoint, Settlement};
use crate::domain::time::Timestamp;
use crate::ports::{Backlog, CallbackEntry, CallbackFilter};
use deadpool_postgres::Object;
use tokio_postgres::Row;
use uuid::Uuid;

/// Callbacks that are retried at a time, so that nobody waits long for their rows.
const RETRY_BITE: i64 = 500;

/// Leaves the state of the callbacks `moved` where [`crate::ports::Store::message`] finds it. A message that was kept for its storage
/// callback alone is left to [`FINISH`].
macro_rules! mark {
    () => {
        "pushes AS (
             UPDATE inbox i SET push_state = g.state, push_attempts = g.attempts FROM moved g
             WHERE g.user_id IS NOT NULL AND i.user_id = g.user_id AND i.cursor = g.cursor AND i.message = g.message),
         storages AS (
             UPDATE message m SET storage_state = g.state, storage_attempts = g.attempts FROM moved g
             WHERE g.user_id IS NULL AND NOT g.recalled AND m.id = g.message AND NOT m.kept) "
    };
}

/// See [`crate::ports::Store::lease_due`].
pub(super) async fn lease_due(
    db: &Object,
    leases: &Leases,
    endpoint: Endpoint,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<Callback>> {
    let lease = db
        .prepare_cached(concat!(
            "WITH due AS MATERIALIZED (
                 SELECT id FROM outbox WHERE endpoint = $1 AND due_at <= $2 AND holder IS NULL
                 ORDER BY due_at, id LIMIT $3 FOR UPDATE SKIP LOCKED),
             c AS (UPDATE outbox o SET holder = $4 FROM due WHERE o.id = due.id RETURNING o.*)
             SELECT ",
            callback_columns!(),
            " FROM c LEFT JOIN users u ON u.id = c.user_id ORDER BY c.due_at, c.id"
        ))
        .await?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    // In a transaction: if the answer to its end is lost, it is known by then which rows may be leased.
    let (endpoint, at) = (endpoint_number(endpoint), now.as_ms());
    let begun = async {
        let (begun, rows) = tokio::join!(
            biased;
            db.batch_execute("BEGIN"),
            async { db.query(&lease, &[&endpoint, &at, &limit, &leases.me]).await },
        );
        begun?;
        rows?.iter().map(callback).collect::<Result<Vec<_>>>()
    };
    match begun.await {
        Ok(leased) => match db.batch_execute("COMMIT").await {
            Ok(()) => Ok(leased),
            Err(lost) => {
                leases.give_back(leased.into_iter().map(|callback| callback.id));
                Err(lost.into())
            }
        },
        Err(failure) => {
            if !failure.is_lost() {
                db.batch_execute("ROLLBACK").await?;
            }
            Err(failure)
        }
    }
}

/// Settlements of one kind, by column.
#[derive(Default)]
struct Settled {
    id: Vec<Uuid>,
    was_due_at: Vec<i64>,
    due_at: Vec<i64>,
    state: Vec<i16>,
    attempts: Vec<i32>,
    error_status: Vec<Option<i32>>,
    error_detail: Vec<Option<String>>,
}

impl Settled {
    fn add(&mut self, settlement: &Settlement, state: CallbackState, due_at: Timestamp) {
        let error = match &settlement.decision {
            Decision::Retry(_, error) | Decision::Dead(error) | Decision::Release(_, Some(error)) => Some(error),
            Decision::Sent | Decision::NotNeeded | Decision::Release(_, None) => None,
        };
        self.id.push(settlement.callback.id);
        self.was_due_at.push(settlement.callback.due_at.as_ms());
        self.due_at.push(due_at.as_ms());
        self.state.push(state_number(state));
        self.attempts.push(attempts_column(settlement.attempts));
        self.error_status.push(error.and_then(|error| error.status).map(i32::from));
        self.error_detail.push(error.map(detail_column));
    }

    async fn write(&self, db: &Object, how: &str, me: Uuid) -> Result<()> {
        if self.id.is_empty() {
            return Ok(());
        }
        let how = db.prepare_cached(how).await?;
        db.execute(
            &how,
            &[
                &self.id,
                &self.was_due_at,
                &self.due_at,
                &self.state,
                &self.attempts,
                &self.error_status,
                &self.error_detail,
                &me,
            ],
        )
        .await?;
        Ok(())
    }
}

/// The settlements `t`.
macro_rules! settlements {
    () => {
        "WITH t AS (
             SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::smallint[], $5::integer[], $6::integer[],
                                  $7::text[])
             AS t (id, was_due_at, due_at, state, attempts, error_status, error_detail)), "
    };
}
/// The condition that the row `o` is as it was leased.
macro_rules! as_leased {
    () => {
        "o.id = t.id AND o.due_at = t.was_due_at AND o.holder = $8 "
    };
}

/// Done with. Whatever there is to say of an error is in the row already.
const FINISH: &str = concat!(
    settlements!(),
    "moved AS (DELETE FROM outbox o USING t WHERE ",
    as_leased!(),
    "RETURNING o.message, o.user_id, o.cursor, o.recalled, t.state, t.attempts), ",
    mark!(),
    "DELETE FROM message m USING moved g
     WHERE g.user_id IS NULL AND NOT g.recalled AND m.id = g.message AND m.kept"
);
const PUT_OFF: &str = concat!(
    settlements!(),
    "moved AS (
         UPDATE outbox o SET due_at = t.due_at, state = t.state, attempts = t.attempts, error_status = t.error_status,
                             error_detail = t.error_detail, holder = NULL
         FROM t WHERE ",
    as_leased!(),
    "RETURNING o.message, o.user_id, o.cursor, o.recalled, t.state, t.attempts), ",
    mark!(),
    "SELECT 1"
);
const BURY: &str = concat!(
    settlements!(),
    "moved AS (DELETE FROM outbox o USING t WHERE ",
    as_leased!(),
    "RETURNING o.id, o.endpoint, o.due_at, o.message, o.user_id, o.cursor, o.recalled, t.state, t.attempts, t.error_status,
               t.error_detail), ",
    mark!(),
    "INSERT INTO dead (id, endpoint, due_at, message, user_id, cursor, attempts, error_status, error_detail, recalled)
     SELECT id, endpoint, due_at, message, user_id, cursor, attempts, error_status, error_detail, recalled FROM moved"
);
/// As it was, but for an error if there is one.
const RELEASE: &str = concat!(
    settlements!(),
    "none AS (SELECT 1)
     UPDATE outbox o SET due_at = t.due_at, holder = NULL, error_detail = coalesce(t.error_detail, o.error_detail),
            error_status = CASE WHEN t.error_detail IS NULL THEN o.error_status ELSE t.error_status END
     FROM t WHERE ",
    as_leased!()
);

/// See [`crate::ports::Store::settle`]. One whose row isn't there any more, or isn't this node's, is passed over.
pub(super) async fn settle(db: &Object, me: Uuid, settlements: &[Settlement]) -> Result<()> {
    let [mut finished, mut put_off, mut buried, mut released] = [const { None }; 4];
    let mut finish =
        |s: &Settlement, state| finished.get_or_insert_with(Settled::default).add(s, state, s.callback.due_at);
    for settlement in settlements {
        match settlement.decision {
            Decision::Sent => finish(settlement, CallbackState::Sent),
            Decision::NotNeeded => finish(settlement, CallbackState::NotNeeded),
            Decision::Retry(due_at, _) => {
                put_off.get_or_insert_with(Settled::default).add(settlement, CallbackState::Failing, due_at);
            }
            Decision::Dead(_) => {
                let due_at = settlement.callback.due_at;
                buried.get_or_insert_with(Settled::default).add(settlement, CallbackState::Dead, due_at);
            }
            Decision::Release(due_at, _) => {
                released.get_or_insert_with(Settled::default).add(settlement, CallbackState::Waiting, due_at);
            }
        }
    }
    for (settled, how) in [(finished, FINISH), (put_off, PUT_OFF), (buried, BURY), (released, RELEASE)] {
        if let Some(settled) = settled {
            settled.write(db, how, me).await?;
        }
    }
    Ok(())
}

const REVIVE_FAILING: &str = concat!(
    "WITH moved AS (
         UPDATE outbox o SET due_at = $2, state = 1, attempts = 0
         WHERE o.id = ANY($1) AND o.state = 3 AND o.holder IS NULL
         RETURNING o.message, o.user_id, o.cursor, o.recalled, o.state, o.attempts), ",
    mark!(),
    "SELECT count(*) FROM moved"
);
const REVIVE_DEAD: &str = concat!(
    "WITH gone AS (DELETE FROM dead WHERE id = ANY($1) RETURNING *),
     moved AS (
         INSERT INTO outbox AS o (id, endpoint, due_at, message, user_id, cursor, error_status, error_detail, recalled)
         SELECT id, endpoint, $2, message, user_id, cursor, error_status, error_detail, recalled FROM gone
         RETURNING o.message, o.user_id, o.cursor, o.recalled, o.state, o.attempts), ",
    mark!(),
    "SELECT count(*) FROM moved"
);

async fn revive(db: &Object, how: &str, ids: &[Uuid], now: Timestamp) -> Result<u64> {
    let how = db.prepare_cached(how).await?;
    Ok(db.query_one(&how, &[&ids, &now.as_ms()]).await?.try_get::<_, i64>(0)?.unsigned_abs())
}

/// See [`crate::ports::Store::retry`].
pub(super) async fn retry(db: &Object, id: Uuid, now: Timestamp) -> Result<bool> {
    Ok(revive(db, REVIVE_FAILING, &[id], now).await? + revive(db, REVIVE_DEAD, &[id], now).await? > 0)
}

/// A bite of [`crate::ports::Store::retry_all`], after the id `after`: how many, and the last one's id if there may be more.
pub(super) async fn retry_bite(
    db: &Object,
    (endpoint, state): (Option<Endpoint>, CallbackState),
    after: Uuid,
    now: Timestamp,
) -> Result<(u64, Option<Uuid>)> {
    let (bite, how) = if state == CallbackState::Dead {
        ("SELECT id FROM dead WHERE id > $1 AND endpoint = coalesce($2, endpoint) ORDER BY id LIMIT $3", REVIVE_DEAD)
    } else {
        (
            "SELECT id FROM outbox WHERE id > $1 AND endpoint = coalesce($2, endpoint) AND state = 3
             ORDER BY id LIMIT $3",
            REVIVE_FAILING,
        )
    };
    let bite = db.prepare_cached(bite).await?;
    let rows = db.query(&bite, &[&after, &endpoint.map(endpoint_number), &RETRY_BITE]).await?;
    let ids: Vec<Uuid> = rows.iter().map(|row| row.try_get(0)).collect::<std::result::Result<_, _>>()?;
    let count = if ids.is_empty() { 0 } else { revive(db, how, &ids, now).await? };
    Ok((count, ids.last().copied()))
}

/// See [`crate::ports::Store::callbacks`].
pub(super) async fn list(db: &Object, filter: &CallbackFilter) -> Result<Vec<CallbackEntry>> {
    let pending = matches!(filter.state, None | Some(CallbackState::Waiting | CallbackState::Failing));
    let dead = matches!(filter.state, None | Some(CallbackState::Dead));
    let query = db
        .prepare_cached(concat!(
            "SELECT ",
            callback_columns!(),
            ", c.state, c.error_status, c.error_detail
             FROM ((SELECT id, endpoint, due_at, message, user_id, cursor, attempts, error_status, error_detail, recalled,
                           state
                    FROM outbox WHERE $4 AND id > $1 AND endpoint = coalesce($2, endpoint) AND state = coalesce($6, state)
                    ORDER BY id LIMIT $3)
                   UNION ALL
                   (SELECT id, endpoint, due_at, message, user_id, cursor, attempts, error_status, error_detail, recalled,
                           4::smallint
                    FROM dead WHERE $5 AND id > $1 AND endpoint = coalesce($2, endpoint) ORDER BY id LIMIT $3)) c
             LEFT JOIN users u ON u.id = c.user_id ORDER BY c.id LIMIT $3"
        ))
        .await?;
    let (after, limit) = (filter.after.unwrap_or(Uuid::nil()), i64::try_from(filter.limit).unwrap_or(i64::MAX));
    let (endpoint, state) = (filter.endpoint.map(endpoint_number), filter.state.map(state_number));
    let rows = db.query(&query, &[&after, &endpoint, &limit, &pending, &dead, &state]).await?;
    rows.iter().map(entry).collect()
}

fn entry(row: &Row) -> Result<CallbackEntry> {
    let callback = callback(row)?;
    Ok(CallbackEntry {
        created_at: made_at(callback.id),
        state: state(row, CALLBACK_COLUMNS)?,
        last_error: last_error(row, CALLBACK_COLUMNS + 1)?,
        callback,
    })
}

/// See [`crate::ports::Store::backlog`].
pub(super) async fn backlog(db: &Object, endpoint: Endpoint, now: Timestamp) -> Result<Backlog> {
    let query = db
        .prepare_cached(
            "SELECT count(*), min(due_at) FILTER (WHERE due_at <= $2), (SELECT count(*) FROM dead WHERE endpoint = $1)
             FROM outbox WHERE endpoint = $1",
        )
        .await?;
    let row = db.query_one(&query, &[&endpoint_number(endpoint), &now.as_ms()]).await?;
    Ok(Backlog {
        pending: row.try_get::<_, i64>(0)?.unsigned_abs(),
        dead: row.try_get::<_, i64>(2)?.unsigned_abs(),
        oldest_due: row.try_get::<_, Option<i64>>(1)?.map(Timestamp::from_ms),
    })
}
