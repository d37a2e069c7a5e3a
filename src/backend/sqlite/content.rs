//! What a callback has to say at the moment of its attempt (CONTRACT.md 8): made from the rows each time, never kept.

use super::columns::{MESSAGE, MESSAGE_COLUMNS, message, push, spots, time, trace};
use super::read::{Reader, named};
use crate::domain::callback::{Callback, Endpoint};
use crate::domain::message::PushWish;
use crate::domain::time::Timestamp;
use crate::ports::CallbackContent;
use rusqlite::{Connection, OptionalExtension, Result};
use uuid::Uuid;

/// See [`crate::ports::Store::content`].
pub(super) fn content(db: &Connection, callback: &Callback, inbox_max: u64, now: Timestamp) -> Result<CallbackContent> {
    let content = match (callback.endpoint, &callback.recipient) {
        (Endpoint::Storage, _) if callback.recalled => Some(CallbackContent::Recalled),
        (Endpoint::Storage, _) => stored(db, callback.message)?,
        (Endpoint::Push, Some((user, cursor))) => match Reader::open(db, user, inbox_max, now)? {
            Some(reader) if reader.has(*cursor)? && !reader.is_taken(*cursor)? => {
                pushed(db, callback.message, &reader)?
            }
            _ => None,
        },
        (Endpoint::Push, None) => None,
    };
    Ok(content.unwrap_or(CallbackContent::NotNeeded))
}

/// Also of a message that has left the inboxes.
fn stored(db: &Connection, id: Uuid) -> Result<Option<CallbackContent>> {
    let found = db
        .prepare_cached(&format!(
            "SELECT {MESSAGE}, m.expires_at, m.recipients, m.synced, m.trace FROM message m WHERE m.id = ?1"
        ))?
        .query_row([id.as_bytes()], |row| {
            Ok((
                message(row)?,
                time(row, MESSAGE_COLUMNS)?,
                spots(row, MESSAGE_COLUMNS + 1)?,
                row.get(MESSAGE_COLUMNS + 2)?,
                trace(row, MESSAGE_COLUMNS + 3)?,
            ))
        })
        .optional()?;
    let Some((message, expires_at, spots, synced, trace)) = found else { return Ok(None) };
    Ok(Some(CallbackContent::Stored { message, expires_at, synced, recipients: named(db, &spots)?, trace }))
}

fn pushed(db: &Connection, id: Uuid, reader: &Reader<'_>) -> Result<Option<CallbackContent>> {
    let found = db
        .prepare_cached(&format!("SELECT {MESSAGE}, m.expires_at, m.push, m.trace FROM message m WHERE m.id = ?1"))?
        .query_row([id.as_bytes()], |row| {
            Ok((
                message(row)?,
                time(row, MESSAGE_COLUMNS)?,
                push(row, MESSAGE_COLUMNS + 1)?,
                trace(row, MESSAGE_COLUMNS + 2)?,
            ))
        })
        .optional()?;
    Ok(match found {
        None | Some((_, _, PushWish::Off, _)) => None,
        Some((message, expires_at, push, trace)) => Some(CallbackContent::Push {
            message,
            expires_at,
            push,
            unread: reader.unread()?,
            devices: reader.devices()?,
            trace,
        }),
    })
}
