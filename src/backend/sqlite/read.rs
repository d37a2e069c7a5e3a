//! What readers ask: inboxes, positions, a message's status, idempotency keys. Each function sees one state of the database.
//!
//! An entry is there for readers if its row is, it hasn't expired, and it is among the `inbox_max` newest numbers. Sweeping and trimming
//! may come later.

use super::columns::{MESSAGE, MESSAGE_COLUMNS, cursor, message, name, spots, state, time};
use super::users::NEWEST;
use crate::backend::durable::forms::number;
use crate::backend::durable::recipients::Spot;
use crate::domain::callback::CallbackState;
use crate::domain::message::Cursor;
use crate::domain::seat::{DeviceId, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{BodyHash, InboxEntry, MessageStatus, Page, PageLimit, Position, Progress, RecipientStatus};
use rusqlite::{Connection, OptionalExtension, Result, params};
use uuid::Uuid;

/// Of an inbox row: its message was not recalled. Rows of many recipients are taken out after the recall.
pub(super) const NOT_RECALLED: &str = "message NOT IN (SELECT r.message FROM recalled r)";

/// A user as a reader finds it.
pub(super) struct Reader<'a> {
    db: &'a Connection,
    pub user: i64,
    pub newest: Cursor,
    /// The least number that went by expiry or trimming, as far as it has been swept.
    lost_from: Option<Cursor>,
    /// All up to here is trimmed.
    trimmed_to: Cursor,
    now: Timestamp,
}

impl<'a> Reader<'a> {
    /// `None` if there is no such user.
    pub fn open(db: &'a Connection, user: &UserId, inbox_max: u64, now: Timestamp) -> Result<Option<Self>> {
        db.prepare_cached(&format!("SELECT u.id, {NEWEST}, u.lost_from FROM user u WHERE u.name = ?1"))?
            .query_row([user.as_str()], |row| {
                let newest = cursor(row, 1)?;
                Ok(Self {
                    db,
                    user: row.get(0)?,
                    newest,
                    lost_from: row.get::<_, Option<u64>>(2)?.map(Cursor::new),
                    trimmed_to: Cursor::new(newest.get().saturating_sub(inbox_max)),
                    now,
                })
            })
            .optional()
    }

    fn page(&self, after: Cursor, limit: PageLimit) -> Result<Page> {
        let mut query = self.db.prepare_cached(&format!(
            "SELECT {MESSAGE}, i.cursor, iif(m.synced, m.recipients, NULL) FROM inbox i JOIN message m ON m.seq = i.message
             WHERE i.user = ?1 AND i.cursor > ?2 AND i.expires_at > ?3 AND i.{NOT_RECALLED} ORDER BY i.cursor"
        ))?;
        let mut rows = query.query(params![self.user, number(after.max(self.trimmed_to)), self.now.as_ms()])?;
        let mut page = Page { entries: Vec::new(), next: after.max(self.newest), more: false };
        let mut bytes = 0;
        while let Some(row) = rows.next()? {
            let to = match row.get_ref(MESSAGE_COLUMNS + 1)?.as_blob_or_null()? {
                Some(_) => self.sent_to(&spots(row, MESSAGE_COLUMNS + 1)?)?,
                None => Vec::new(),
            };
            let entry = InboxEntry { cursor: cursor(row, MESSAGE_COLUMNS)?, message: message(row)?, to };
            bytes += entry.message.payload.as_bytes().len();
            let full = page.entries.len() >= limit.messages || bytes > limit.payload_bytes;
            if let Some(last) = page.entries.last()
                && full
            {
                page.next = last.cursor;
                page.more = true;
                break;
            }
            page.entries.push(entry);
        }
        Ok(page)
    }

    /// To whom a message was sent that the reader is the last recipient of only because it is the sender's own.
    fn sent_to(&self, spots: &[Spot]) -> Result<Vec<UserId>> {
        match spots.split_last() {
            Some((own, others)) if own.0 == self.user => {
                Ok(named(self.db, others)?.into_iter().map(|(user, _)| user).collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    fn position(&self, device: &DeviceId) -> Result<Position> {
        let acked: Option<Option<u64>> = self
            .db
            .prepare_cached("SELECT acked FROM device WHERE user = ?1 AND device = ?2")?
            .query_row(params![self.user, device.as_str()], |row| row.get(0))
            .optional()?;
        let lost_to = self.lost_to()?;
        Ok(Position { acked: acked.flatten().map(Cursor::new), lost_to, newest: self.newest })
    }

    fn lost_to(&self) -> Result<Cursor> {
        let first: Option<u64> = self
            .db
            .prepare_cached(&format!(
                "SELECT cursor FROM inbox
                 WHERE user = ?1 AND cursor > ?2 AND expires_at > ?3 AND {NOT_RECALLED} ORDER BY cursor LIMIT 1"
            ))?
            .query_row(params![self.user, number(self.trimmed_to), self.now.as_ms()], |row| row.get(0))
            .optional()?;
        let gone_to = first.map_or(self.newest, |first| Cursor::new(first.saturating_sub(1)));
        // Unlike a recalled entry, one that has expired but is still to be swept has its row.
        let lost = self.lost_from.is_some_and(|from| from <= gone_to)
            || self
                .db
                .prepare_cached(&format!("SELECT 1 FROM inbox WHERE user = ?1 AND cursor <= ?2 AND {NOT_RECALLED}"))?
                .exists(params![self.user, number(gone_to)])?;
        Ok(if lost { gone_to } else { Cursor::START })
    }

    /// Whether an entry is there for readers.
    pub fn has(&self, at: Cursor) -> Result<bool> {
        Ok(at > self.trimmed_to
            && self
                .db
                .prepare_cached(&format!(
                    "SELECT 1 FROM inbox WHERE user = ?1 AND cursor = ?2 AND expires_at > ?3 AND {NOT_RECALLED}"
                ))?
                .exists(params![self.user, number(at), self.now.as_ms()])?)
    }

    /// Whether a device has taken an entry, by stream or by ack.
    pub fn is_taken(&self, at: Cursor) -> Result<bool> {
        self.db
            .prepare_cached(
                "SELECT 1 FROM device WHERE user = ?1 AND acked >= ?2 UNION ALL
                 SELECT 1 FROM delivery WHERE user = ?1 AND first <= ?2 AND last >= ?2",
            )?
            .exists(params![self.user, number(at)])
    }

    /// Entries after the furthest ack of any device.
    pub fn unread(&self) -> Result<u64> {
        self.db
            .prepare_cached(&format!(
                "SELECT count(*) FROM inbox WHERE user = ?1 AND expires_at > ?3 AND {NOT_RECALLED}
                 AND cursor > max(?2, coalesce((SELECT max(acked) FROM device WHERE user = ?1), 0))"
            ))?
            .query_row(params![self.user, number(self.trimmed_to), self.now.as_ms()], |row| row.get(0))
    }

    /// The user's devices, and when each was last online.
    pub fn devices(&self) -> Result<Vec<(DeviceId, Timestamp)>> {
        self.db
            .prepare_cached("SELECT device, seen_at FROM device WHERE user = ?1 ORDER BY device")?
            .query_map([self.user], |row| Ok((name(row, 0, DeviceId::parse)?, time(row, 1)?)))?
            .collect()
    }
}

/// See [`crate::ports::Store::page`].
pub(super) fn page(
    db: &Connection,
    user: &UserId,
    after: Cursor,
    limit: PageLimit,
    (inbox_max, now): (u64, Timestamp),
) -> Result<Page> {
    match Reader::open(db, user, inbox_max, now)? {
        Some(reader) => reader.page(after, limit),
        None => Ok(Page { next: after, ..Page::default() }),
    }
}

/// See [`crate::ports::Store::position`].
pub(super) fn position(
    db: &Connection,
    user: &UserId,
    device: &DeviceId,
    (inbox_max, now): (u64, Timestamp),
) -> Result<Position> {
    match Reader::open(db, user, inbox_max, now)? {
        Some(reader) => reader.position(device),
        None => Ok(Position::default()),
    }
}

/// See [`crate::ports::Store::newest`].
pub(super) fn newest(db: &Connection, users: &[UserId]) -> Result<Vec<Cursor>> {
    let mut query = db.prepare_cached(&format!("SELECT {NEWEST} FROM user u WHERE u.name = ?1"))?;
    users
        .iter()
        .map(|user| Ok(query.query_row([user.as_str()], |row| cursor(row, 0)).optional()?.unwrap_or_default()))
        .collect()
}

/// See [`crate::ports::Store::peek_key`].
pub(super) fn peek_key(db: &Connection, key: &str, now: Timestamp) -> Result<Option<BodyHash>> {
    db.prepare_cached("SELECT body FROM idempotency WHERE key = ?1 AND expires_at > ?2")?
        .query_row(params![key, now.as_ms()], |row| row.get(0))
        .optional()
}

/// Row ids as names.
pub(super) fn named(db: &Connection, spots: &[Spot]) -> Result<Vec<(UserId, Cursor)>> {
    let mut query = db.prepare_cached("SELECT name FROM user WHERE id = ?1")?;
    spots.iter().map(|&(user, at)| Ok((query.query_row([user], |row| name(row, 0, UserId::parse))?, at))).collect()
}

/// Of the message `m`: it is there for who asks for it at the time `?2`.
pub(super) const SHOWN: &str = "m.expires_at > ?2 AND m.kept = 0 AND m.seq NOT IN (SELECT r.message FROM recalled r)";

/// See [`crate::ports::Store::message`].
pub(super) fn status(db: &Connection, wanted: Uuid, now: Timestamp) -> Result<Option<MessageStatus>> {
    let found = db
        .prepare_cached(&format!(
            "SELECT {MESSAGE}, m.expires_at, m.recipients, m.storage_state, m.storage_attempts, m.synced, m.seq
             FROM message m WHERE m.id = ?1 AND {SHOWN}"
        ))?
        .query_row(params![wanted.as_bytes(), now.as_ms()], |row| {
            let storage = Progress { state: state(row, MESSAGE_COLUMNS + 2)?, attempts: row.get(MESSAGE_COLUMNS + 3)? };
            let (expires_at, mut spots) = (time(row, MESSAGE_COLUMNS)?, spots(row, MESSAGE_COLUMNS + 1)?);
            if spots.first().is_some_and(|spot| spot.1 == Cursor::START) {
                spots = super::fanout::places(db, row.get(MESSAGE_COLUMNS + 5)?)?;
            }
            Ok((message(row)?, expires_at, spots, storage, row.get(MESSAGE_COLUMNS + 4)?))
        })
        .optional()?;
    let Some((message, expires_at, spots, storage, synced)) = found else { return Ok(None) };
    let mut recipients = Vec::with_capacity(spots.len());
    for ((user, cursor), spot) in named(db, &spots)?.into_iter().zip(spots) {
        recipients.push(recipient_status(db, user, cursor, spot.0)?);
    }
    Ok(Some(MessageStatus { message, expires_at, synced, recipients, storage }))
}

fn recipient_status(db: &Connection, user: UserId, cursor: Cursor, row_id: i64) -> Result<RecipientStatus> {
    let at = params![row_id, number(cursor)];
    let devices = |sql: &str| -> Result<Vec<DeviceId>> {
        db.prepare_cached(sql)?.query_map(at, |row| name(row, 0, DeviceId::parse))?.collect()
    };
    let delivered_to =
        devices("SELECT device FROM delivery WHERE user = ?1 AND first <= ?2 AND last >= ?2 ORDER BY device")?;
    let acked_by = devices("SELECT device FROM device WHERE user = ?1 AND acked >= ?2 ORDER BY device")?;
    let push = db
        .prepare_cached("SELECT push_state, push_attempts FROM inbox WHERE user = ?1 AND cursor = ?2")?
        .query_row(at, |row| Ok(Progress { state: state(row, 0)?, attempts: row.get(1)? }))
        .optional()?;
    // Trimmed: what has left the inbox isn't pushed any more.
    let push = push.unwrap_or(Progress { state: CallbackState::NotNeeded, attempts: 0 });
    Ok(RecipientStatus { user, cursor, delivered_to, acked_by, push })
}
