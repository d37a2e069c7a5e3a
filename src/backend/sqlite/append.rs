//! A message, its place in every inbox, its callbacks and its idempotency key: one transaction (CONTRACT.md 10.4, 10.6).

use super::columns::{id, spots, time};
use super::fanout::is_key_being_written;
use super::leases::Leased;
use super::read::{NOT_RECALLED, named};
use super::writer::Writing;
use crate::backend::durable::forms::{callback_id, endpoint_number, number, push_column, state_number};
use crate::backend::durable::recipients::{Spot, encode};
use crate::domain::callback::{Callback, CallbackState, Endpoint};
use crate::domain::message::Cursor;
use crate::domain::seat::UserId;
use crate::domain::time::Timestamp;
use crate::domain::trace::TraceContext;
use crate::ports::{Append, Appended, BodyHash, StoreKey, Stored};
use rusqlite::{CachedStatement, Connection, OptionalExtension, Result, params};
use uuid::Uuid;

/// An inbox is trimmed at every so-manieth message, as removing many neighbours at once costs about as much as removing one. Readers
/// hide what is beyond the bound until then.
const TRIM_EVERY: u64 = 32;

/// The statements of every message, prepared once per batch.
pub(super) struct Inserts<'a> {
    message: CachedStatement<'a>,
    inbox: CachedStatement<'a>,
    outbox: CachedStatement<'a>,
}

impl<'a> Inserts<'a> {
    pub fn new(db: &'a Connection) -> Result<Self> {
        Ok(Self {
            message: db.prepare_cached(
                "INSERT INTO message
                 (id, sent_at, expires_at, brief, storage_state, sender, grp, kind, push, recipients, payload, synced, trace)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            )?,
            inbox: db.prepare_cached(
                "INSERT INTO inbox (user, cursor, message, expires_at, push_state) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?,
            outbox: db.prepare_cached(
                "INSERT INTO outbox (endpoint, due_at, id, message, user, cursor, recalled)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?,
        })
    }
}

/// What a callback is about.
#[derive(Clone, Copy)]
pub(super) struct Told {
    pub endpoint: Endpoint,
    pub message: Uuid,
    pub recalled: bool,
}

impl Writing<'_> {
    /// See [`crate::ports::Store::append`]. The callbacks leased to the caller stand beside the answer.
    pub fn append(&mut self, new: &Append) -> Result<(Appended, Leased)> {
        if let Some(answer) = answer_to(self.db, new)? {
            return Ok((answer, Leased::new(self.leases, Vec::new())));
        }
        let spots = new.recipients.iter().map(|user| self.draw(user)).collect::<Result<Vec<Spot>>>()?;
        let list = encode(&spots);
        let seq = self.insert_message(new, &list)?;
        self.insert_inbox_rows((seq, new.expires_at), &spots, new.push_due.len())?;
        let (id, sent_at) = (new.message.id, new.message.sent_at);
        let mut leased = Vec::new();
        if new.storage_callback {
            let told = Told { endpoint: Endpoint::Storage, message: id, recalled: false };
            let callback = self.insert_callback(told, sent_at, sent_at, None)?;
            leased.extend(new.lease.storage.then_some(callback));
        }
        let pushes = self.insert_pushes((id, sent_at), &new.recipients, &spots, &new.push_due)?;
        if new.lease.push {
            leased.extend(pushes);
        }
        if let Some(key) = &new.key {
            self.insert_key(new, key, &list)?;
        }
        let recipients = new.recipients.iter().cloned().zip(spots.iter().map(|spot| spot.1)).collect();
        let stored =
            Stored { id: new.message.id, sent_at: new.message.sent_at, expires_at: new.expires_at, recipients };
        // The callbacks travel in the guard, lest they stay leased if the commit fails.
        Ok((Appended::New(stored, Vec::new()), Leased::new(self.leases, leased)))
    }

    pub(super) fn insert_message(&mut self, new: &Append, list: &[u8]) -> Result<i64> {
        let message = &new.message;
        let brief = new.expires_at < message.sent_at.plus(self.rules.retention);
        let storage = if new.storage_callback { CallbackState::Waiting } else { CallbackState::Off };
        self.inserts.message.execute(params![
            message.id.as_bytes(),
            message.sent_at.as_ms(),
            new.expires_at.as_ms(),
            brief.then_some(new.expires_at.as_ms()),
            state_number(storage),
            message.from.as_str(),
            message.group.as_ref().map(crate::domain::seat::GroupId::as_str),
            &*message.kind,
            push_column(&new.push),
            list,
            message.payload.as_bytes(),
            new.synced,
            new.trace.as_ref().map(TraceContext::to_column),
        ])?;
        Ok(self.db.last_insert_rowid())
    }

    /// The first `pushed` of them get a push.
    pub(super) fn insert_inbox_rows(
        &mut self,
        (seq, expires_at): (i64, Timestamp),
        spots: &[Spot],
        pushed: usize,
    ) -> Result<()> {
        for (n, &(user, cursor)) in spots.iter().enumerate() {
            let push = if n < pushed { CallbackState::Waiting } else { CallbackState::Off };
            let columns = params![user, number(cursor), seq, expires_at.as_ms(), state_number(push)];
            self.inserts.inbox.execute(columns)?;
            if cursor.get() > self.rules.inbox_max && cursor.get().is_multiple_of(TRIM_EVERY) {
                self.trim(user, Cursor::new(cursor.get() - self.rules.inbox_max))?;
            }
        }
        Ok(())
    }

    /// Removes a user's inbox rows up to `bound`.
    fn trim(&self, user: i64, bound: Cursor) -> Result<()> {
        let oldest: Option<i64> = self
            .db
            .prepare_cached(&format!(
                "SELECT min(cursor) FROM inbox WHERE user = ?1 AND cursor <= ?2 AND {NOT_RECALLED}"
            ))?
            .query_row(params![user, number(bound)], |row| row.get(0))?;
        if let Some(oldest) = oldest {
            self.db
                .prepare_cached("UPDATE user SET lost_from = ?2 WHERE id = ?1 AND coalesce(lost_from, ?2 + 1) > ?2")?
                .execute(params![user, oldest])?;
        }
        self.db
            .prepare_cached("DELETE FROM inbox WHERE user = ?1 AND cursor <= ?2")?
            .execute(params![user, number(bound)])?;
        self.db
            .prepare_cached("DELETE FROM delivery WHERE user = ?1 AND last <= ?2")?
            .execute(params![user, number(bound)])?;
        Ok(())
    }

    /// Adds the pushes of a message to those of the recipients that have a time for it.
    pub(super) fn insert_pushes(
        &mut self,
        (message, sent_at): (Uuid, Timestamp),
        recipients: &[UserId],
        spots: &[Spot],
        due: &[Timestamp],
    ) -> Result<Vec<Callback>> {
        let told = Told { endpoint: Endpoint::Push, message, recalled: false };
        let mut made = Vec::with_capacity(due.len());
        for ((user, &due_at), &spot) in recipients.iter().zip(due).zip(spots) {
            made.push(self.insert_callback(told, sent_at, due_at, Some((user, spot)))?);
        }
        Ok(made)
    }

    /// Adds a callback that was made at `made_at`.
    pub fn insert_callback(
        &mut self,
        told: Told,
        made_at: Timestamp,
        due_at: Timestamp,
        recipient: Option<(&UserId, Spot)>,
    ) -> Result<Callback> {
        let Told { endpoint, message, recalled } = told;
        let id = callback_id(self.ids, made_at);
        self.inserts.outbox.execute(params![
            endpoint_number(endpoint),
            due_at.as_ms(),
            id.as_bytes(),
            message.as_bytes(),
            recipient.map(|(_, (user, _))| user),
            recipient.map(|(_, (_, cursor))| number(cursor)),
            recalled,
        ])?;
        let recipient = recipient.map(|(user, (_, cursor))| (user.clone(), cursor));
        Ok(Callback { id, endpoint, message, recalled, recipient, attempts: 0, due_at })
    }

    pub(super) fn insert_key(&self, new: &Append, key: &StoreKey, list: &[u8]) -> Result<()> {
        self.db.prepare_cached("INSERT OR REPLACE INTO idempotency VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?.execute(
            params![
                key.key,
                key.body,
                key.expires_at.as_ms(),
                new.message.id.as_bytes(),
                new.message.sent_at.as_ms(),
                new.expires_at.as_ms(),
                list,
            ],
        )?;
        Ok(())
    }
}

/// What a send is answered whose key was used and hasn't expired.
pub(super) fn answer_to(db: &Connection, new: &Append) -> Result<Option<Appended>> {
    let Some(key) = &new.key else { return Ok(None) };
    let first = db
        .prepare_cached(
            "SELECT body, message, sent_at, message_expires_at, recipients FROM idempotency
             WHERE key = ?1 AND expires_at > ?2",
        )?
        .query_row(params![key.key, new.message.sent_at.as_ms()], |row| {
            let body: BodyHash = row.get(0)?;
            Ok((body, id(row, 1)?, time(row, 2)?, time(row, 3)?, spots(row, 4)?))
        })
        .optional()?;
    let Some((body, id, sent_at, expires_at, spots)) = first else { return Ok(None) };
    if body != key.body {
        return Ok(Some(Appended::OtherBody));
    }
    if spots.is_empty() && is_key_being_written(db, &key.key)? {
        return Ok(Some(Appended::InProgress));
    }
    Ok(Some(Appended::Repeat(Stored { id, sent_at, expires_at, recipients: named(db, &spots)? })))
}
