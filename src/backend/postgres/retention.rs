//! Forgetting. What is kept for the whole retention goes with its partition; readers hide it from its expiry on. What was to be kept for less
//! is removed in bites, and so are keys and callbacks. Rows that another node is removing are passed by.

use super::columns::{Result, spots, state};
use super::connect::end;
use super::partitions::Partitions;
use super::writer::Rules;
use crate::backend::durable::fanout::BITE;
use crate::backend::durable::forms::{endpoint_of, first_id, number};
use crate::domain::callback::{CallbackState, Endpoint};
use crate::domain::time::Timestamp;
use deadpool_postgres::Object;
use std::time::Duration;
use tokio_postgres::Client;
use uuid::Uuid;

/// Rows that a bite removes at most, but for those of one message.
const BITE_ROWS: i64 = 500;

/// See [`crate::ports::Store::sweep`].
pub(super) async fn sweep(db: &Object, partitions: &Partitions, rules: Rules, now: Timestamp) -> Result<bool> {
    let aged = now.minus(rules.retention);
    partitions.ensure_ahead(db, now).await?;
    let mut more = partitions.drop_oldest(db, aged).await?;
    let mut left = BITE_ROWS;
    db.batch_execute("BEGIN").await?;
    left -= end(db, sweep_brief(db, now).await).await?.min(left);
    left -= sweep_keys(db, now, left).await?;
    left -= sweep_callbacks(db, aged, left).await?;
    left -= sweep_delivery(db, aged, left).await?;
    more |= left == 0;
    Ok(more)
}

/// Messages that were to be kept for less than the retention leave the inboxes, when they have reached all of them. One whose storage callback
/// still needs it is kept for that.
async fn sweep_brief(db: &Client, now: Timestamp) -> Result<i64> {
    let rows = db
        .query(
            "SELECT id, recipients, storage_state FROM message m
             WHERE brief <= $1 AND NOT EXISTS (SELECT 1 FROM fanout f WHERE f.message = m.id)
             ORDER BY brief LIMIT $2 FOR UPDATE OF m SKIP LOCKED",
            &[&now.as_ms(), &BITE_ROWS],
        )
        .await?;
    let (mut places, mut kept, mut gone) = (Vec::new(), Vec::new(), Vec::new());
    let mut count = 0;
    for row in &rows {
        if count >= BITE_ROWS {
            break;
        }
        let id: Uuid = row.try_get(0)?;
        for (user, cursor) in spots(row, 1)? {
            places.push((user, number(cursor), id));
            count += 1;
        }
        let pending = matches!(state(row, 2)?, CallbackState::Waiting | CallbackState::Failing | CallbackState::Dead);
        if pending { &mut kept } else { &mut gone }.push(id);
        count += 1;
    }
    if count == 0 {
        return Ok(0);
    }
    // Few at a time, as for a recall.
    for part in places.chunks(BITE) {
        let (users, (cursors, messages)): (Vec<i64>, (Vec<i64>, Vec<Uuid>)) =
            part.iter().map(|&(user, cursor, message)| (user, (cursor, message))).unzip();
        db.execute(
            "DELETE FROM inbox i USING unnest($1::bigint[], $2::bigint[], $3::uuid[]) AS t (user_id, cursor, message)
             WHERE i.user_id = t.user_id AND i.cursor = t.cursor AND i.message = t.message",
            &[&users, &cursors, &messages],
        )
        .await?;
    }
    db.execute("UPDATE message SET kept = TRUE, brief = NULL WHERE id = ANY($1)", &[&kept]).await?;
    db.execute("DELETE FROM message WHERE id = ANY($1)", &[&gone]).await?;
    Ok(count)
}

async fn sweep_keys(db: &Object, now: Timestamp, left: i64) -> Result<i64> {
    let gone = db
        .execute(
            "DELETE FROM idempotency WHERE key IN (
                 SELECT key FROM idempotency WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED)",
            &[&now.as_ms(), &left],
        )
        .await?;
    Ok(count(gone))
}

/// Callbacks whose message is beyond the retention: nobody can be told any more, and the operator has had that long to read of them. Their
/// ids tell when they were made.
async fn sweep_callbacks(db: &Object, aged: Timestamp, left: i64) -> Result<i64> {
    let made_before = first_id(aged.plus(Duration::from_millis(1)));
    let given_up = db
        .query(
            "DELETE FROM outbox WHERE id IN (
                 SELECT id FROM outbox WHERE id < $1 ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING endpoint",
            &[&made_before, &left],
        )
        .await?;
    let endpoints: Vec<i16> = given_up.iter().map(|row| row.try_get(0)).collect::<std::result::Result<_, _>>()?;
    for endpoint in Endpoint::ALL {
        let given_up = endpoints.iter().filter(|&&number| endpoint_of(number) == Some(endpoint)).count();
        if given_up > 0 {
            let endpoint = endpoint.as_str();
            tracing::warn!(
                endpoint,
                given_up,
                "callbacks were never delivered within `store.retention_s` and are gone"
            );
        }
    }
    let left = left - count(endpoints.len() as u64);
    let dead = db
        .execute(
            "DELETE FROM dead WHERE id IN (
                 SELECT id FROM dead WHERE id < $1 ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED)",
            &[&made_before, &left],
        )
        .await?;
    Ok(count(endpoints.len() as u64 + dead))
}

/// Runs that were last added to before `aged`: all in them is beyond the retention.
async fn sweep_delivery(db: &Object, aged: Timestamp, left: i64) -> Result<i64> {
    let gone = db
        .execute(
            "DELETE FROM delivery WHERE (user_id, device, first) IN (
                 SELECT user_id, device, first FROM delivery WHERE noted_at <= $1 ORDER BY noted_at LIMIT $2
                 FOR UPDATE SKIP LOCKED)",
            &[&aged.as_ms(), &left],
        )
        .await?;
    Ok(count(gone))
}

fn count(rows: u64) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}
