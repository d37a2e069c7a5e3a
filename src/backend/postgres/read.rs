//! What readers ask: inboxes, positions, a message's status, idempotency keys.
//!
//! An entry is there for readers if its row is, it hasn't expired, and it is among the `inbox_max` newest numbers. That rows are swept,
//! trimmed or dropped with their partition may come later.

use super::columns::{MESSAGE_COLUMNS, Result, attempts, cursor, message, message_columns, name, spots, state, time};
use super::connect::Failure;
use super::writer::Rules;
use crate::backend::durable::fanout::BITE;
use crate::backend::durable::forms::number;
use crate::backend::durable::recipients::Spot;
use crate::domain::callback::CallbackState;
use crate::domain::message::Cursor;
use crate::domain::seat::{DeviceId, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{BodyHash, InboxEntry, MessageStatus, Page, PageLimit, Position, Progress, RecipientStatus};
use deadpool_postgres::Object;
use std::collections::HashMap;
use tokio_postgres::Row;
use uuid::Uuid;

/// How many of the newest numbers are there, as a column.
pub(super) fn kept(rules: Rules) -> i64 {
    i64::try_from(rules.inbox_max).unwrap_or(i64::MAX)
}

/// See [`crate::ports::Store::page`].
pub(super) async fn page(
    db: &Object,
    user: &UserId,
    after: Cursor,
    limit: PageLimit,
    (rules, now): (Rules, Timestamp),
) -> Result<Page> {
    // One row more than may be shown, if there is one: then something follows. Of the bytes, too, no more than one row beyond.
    let page = db
        .prepare_cached(concat!(
            "SELECT u.newest, m.cursor, ",
            message_columns!(),
            ", m.bytes, m.sent_to, u.id FROM users u
             LEFT JOIN LATERAL (
                 SELECT i.cursor, ",
            message_columns!(),
            ", sum(octet_length(m.payload)) OVER (ORDER BY i.cursor ROWS UNBOUNDED PRECEDING) AS bytes,
                        octet_length(m.payload) AS own, row_number() OVER (ORDER BY i.cursor) AS n,
                        CASE WHEN m.synced THEN m.recipients END AS sent_to
                 FROM inbox i JOIN message m ON m.id = i.message
                 WHERE i.user_id = u.id AND i.cursor > greatest($2, u.newest - $3) AND i.expires_at > $4
                 ORDER BY i.cursor LIMIT $5) m ON m.bytes - m.own <= $6 OR m.n = 2
             WHERE u.name = $1 ORDER BY m.cursor"
        ))
        .await?;
    let most = i64::try_from(limit.messages.max(1).saturating_add(1)).unwrap_or(i64::MAX);
    let bytes = i64::try_from(limit.payload_bytes).unwrap_or(i64::MAX);
    let rows = db.query(&page, &[&user.as_str(), &number(after), &kept(rules), &now.as_ms(), &most, &bytes]).await?;
    let Some(first) = rows.first() else { return Ok(Page { next: after, ..Page::default() }) };
    let mut page = Page { entries: Vec::new(), next: after.max(cursor(first, 0)?), more: false };
    for row in &rows {
        if row.try_get::<_, Option<i64>>(1)?.is_none() {
            break;
        }
        let full = page.entries.len() >= limit.messages || row.try_get::<_, i64>(2 + MESSAGE_COLUMNS)? > bytes;
        if let Some(InboxEntry { cursor, .. }) = page.entries.last()
            && full
        {
            page.next = *cursor;
            page.more = true;
            break;
        }
        let to = sent_to(db, row, 3 + MESSAGE_COLUMNS).await?;
        page.entries.push(InboxEntry { cursor: cursor(row, 1)?, message: message(row, 2)?, to });
    }
    Ok(page)
}

/// To whom a message was sent that the reader is the last recipient of only because it is the sender's own. The reader stands in the column
/// after that of the recipients.
async fn sent_to(db: &Object, row: &Row, column: usize) -> Result<Vec<UserId>> {
    if row.try_get::<_, Option<&[u8]>>(column)?.is_none() {
        return Ok(Vec::new());
    }
    match spots(row, column)?.split_last() {
        Some((own, others)) if own.0 == row.try_get::<_, i64>(column + 1)? => {
            Ok(named(db, others).await?.into_iter().map(|(user, _)| user).collect())
        }
        _ => Ok(Vec::new()),
    }
}

/// See [`crate::ports::Store::position`]. What lies before the first entry that is there is lost, unless all of it was
/// recalled.
pub(super) async fn position(
    db: &Object,
    user: &UserId,
    device: &DeviceId,
    (rules, now): (Rules, Timestamp),
) -> Result<Position> {
    let position = db
        .prepare_cached(
            "SELECT u.newest, d.acked, gone.up_to,
                    (SELECT count(*) FROM inbox i
                     WHERE i.user_id = u.id AND i.cursor <= gone.up_to AND i.expires_at = 0) < gone.up_to
             FROM users u LEFT JOIN device d ON d.user_id = u.id AND d.device = $2
             CROSS JOIN LATERAL (
                 SELECT coalesce((SELECT i.cursor - 1 FROM inbox i
                                  WHERE i.user_id = u.id AND i.cursor > greatest(0, u.newest - $3) AND i.expires_at > $4
                                  ORDER BY i.cursor LIMIT 1), u.newest) AS up_to) gone
             WHERE u.name = $1",
        )
        .await?;
    let found = db.query_opt(&position, &[&user.as_str(), &device.as_str(), &kept(rules), &now.as_ms()]).await?;
    let Some(row) = found else { return Ok(Position::default()) };
    let newest = cursor(&row, 0)?;
    let acked = row.try_get::<_, Option<i64>>(1)?.map(|acked| Cursor::new(acked.unsigned_abs()));
    let lost_to = if row.try_get(3)? { cursor(&row, 2)? } else { Cursor::START };
    Ok(Position { acked, lost_to, newest })
}

/// See [`crate::ports::Store::newest`].
pub(super) async fn newest(db: &Object, users: &[UserId]) -> Result<Vec<Cursor>> {
    let query = db.prepare_cached("SELECT name, newest FROM users WHERE name = ANY($1)").await?;
    let names: Vec<&str> = users.iter().map(UserId::as_str).collect();
    let rows = db.query(&query, &[&names]).await?;
    let found: HashMap<&str, Cursor> =
        rows.iter().map(|row| Ok((row.try_get(0)?, cursor(row, 1)?))).collect::<Result<_>>()?;
    Ok(names.iter().map(|name| found.get(name).copied().unwrap_or_default()).collect())
}

/// See [`crate::ports::Store::peek_key`].
pub(super) async fn peek_key(db: &Object, key: &str, now: Timestamp) -> Result<Option<BodyHash>> {
    let query = db.prepare_cached("SELECT body FROM idempotency WHERE key = $1 AND expires_at > $2").await?;
    let found = db.query_opt(&query, &[&key, &now.as_ms()]).await?;
    let hash = |row: Row| row.try_get::<_, &[u8]>(0)?.try_into().map_err(|_| Failure::Damaged("not a hash"));
    found.map(hash).transpose()
}

/// The names of row ids, for [`with_names`].
pub(super) async fn names_of(db: &Object, ids: &[i64]) -> Result<HashMap<i64, UserId>> {
    let query = db.prepare_cached("SELECT id, name FROM users WHERE id = ANY($1)").await?;
    let rows = db.query(&query, &[&ids]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, name(row, 1, UserId::parse)?))).collect()
}

/// Row ids as names.
pub(super) fn with_names(spots: &[Spot], names: &HashMap<i64, UserId>) -> Result<Vec<(UserId, Cursor)>> {
    let name = |id| names.get(id).cloned().ok_or(Failure::Damaged("a recipient without a row"));
    spots.iter().map(|(id, at)| Ok((name(id)?, *at))).collect()
}

/// The same for one list.
pub(super) async fn named(db: &Object, spots: &[Spot]) -> Result<Vec<(UserId, Cursor)>> {
    let ids: Vec<i64> = spots.iter().map(|spot| spot.0).collect();
    with_names(spots, &names_of(db, &ids).await?)
}

/// See [`crate::ports::Store::message`]. Of a message that hasn't reached all of its recipients yet, those whom it has: their parts' lists, one
/// after the other, are a list.
pub(super) async fn status(db: &Object, wanted: Uuid, now: Timestamp) -> Result<Option<MessageStatus>> {
    let query = db
        .prepare_cached(concat!(
            "SELECT ",
            message_columns!(),
            ", m.expires_at,
               CASE WHEN EXISTS (SELECT 1 FROM fanout f WHERE f.message = m.id)
                    THEN coalesce((SELECT string_agg(p.spots, ''::bytea ORDER BY p.first)
                                   FROM fanout_part p WHERE p.message = m.id), ''::bytea)
                    ELSE m.recipients END,
               m.storage_state, m.storage_attempts, m.synced
             FROM message m WHERE m.id = $1 AND m.expires_at > $2 AND NOT m.kept"
        ))
        .await?;
    let Some(row) = db.query_opt(&query, &[&wanted, &now.as_ms()]).await? else { return Ok(None) };
    let mut fares = Vec::new();
    // Few at a time, as for a recall.
    for part in spots(&row, MESSAGE_COLUMNS + 1)?.chunks(BITE) {
        fares.extend(recipients(db, wanted, part).await?);
    }
    Ok(Some(MessageStatus {
        message: message(&row, 0)?,
        expires_at: time(&row, MESSAGE_COLUMNS)?,
        synced: row.try_get(MESSAGE_COLUMNS + 4)?,
        recipients: fares,
        storage: Progress { state: state(&row, MESSAGE_COLUMNS + 2)?, attempts: attempts(&row, MESSAGE_COLUMNS + 3)? },
    }))
}

async fn recipients(db: &Object, message: Uuid, spots: &[Spot]) -> Result<Vec<RecipientStatus>> {
    let (ids, cursors): (Vec<i64>, Vec<i64>) = spots.iter().map(|&(id, at)| (id, number(at))).unzip();
    let delivered_to = devices_by_user(
        db,
        "SELECT DISTINCT d.user_id, d.device FROM unnest($1::bigint[], $2::bigint[]) AS t (id, cursor)
         JOIN delivery d ON d.user_id = t.id AND d.first <= t.cursor AND d.last >= t.cursor ORDER BY 1, 2",
        (&ids, &cursors),
    )
    .await?;
    let acked_by = devices_by_user(
        db,
        "SELECT d.user_id, d.device FROM unnest($1::bigint[], $2::bigint[]) AS t (id, cursor)
         JOIN device d ON d.user_id = t.id AND d.acked >= t.cursor ORDER BY 1, 2",
        (&ids, &cursors),
    )
    .await?;
    let pushes = db
        .prepare_cached(
            "SELECT i.user_id, i.push_state, i.push_attempts
             FROM unnest($1::bigint[], $2::bigint[], $3::uuid[]) AS t (id, cursor, message)
             JOIN inbox i ON i.user_id = t.id AND i.cursor = t.cursor AND i.message = t.message",
        )
        .await?;
    let mut push_of: HashMap<i64, Progress> = HashMap::new();
    for row in db.query(&pushes, &[&ids, &cursors, &vec![message; ids.len()]]).await? {
        push_of.insert(row.try_get(0)?, Progress { state: state(&row, 1)?, attempts: attempts(&row, 2)? });
    }
    let of = |devices: &HashMap<i64, Vec<DeviceId>>, id| devices.get(&id).cloned().unwrap_or_default();
    let named = named(db, spots).await?;
    Ok(named
        .into_iter()
        .zip(ids)
        .map(|((user, cursor), id)| RecipientStatus {
            user,
            cursor,
            delivered_to: of(&delivered_to, id),
            acked_by: of(&acked_by, id),
            // Trimmed: what has left the inbox isn't pushed any more.
            push: push_of.get(&id).copied().unwrap_or(Progress { state: CallbackState::NotNeeded, attempts: 0 }),
        })
        .collect())
}

async fn devices_by_user(
    db: &Object,
    query: &str,
    (ids, cursors): (&Vec<i64>, &Vec<i64>),
) -> Result<HashMap<i64, Vec<DeviceId>>> {
    let query = db.prepare_cached(query).await?;
    let mut found: HashMap<i64, Vec<DeviceId>> = HashMap::new();
    for row in db.query(&query, &[ids, cursors]).await? {
        found.entry(row.try_get(0)?).or_default().push(name(&row, 1, DeviceId::parse)?);
    }
    Ok(found)
}
