//! The words of the domain as columns, and back. A column that can't be read is an error of its row, never a panic.

use crate::backend::durable::forms::{endpoint_of, push_of, state_of};
use crate::backend::durable::recipients::{Spot, decode};
use crate::domain::callback::{Callback, CallbackState, Endpoint, LastError};
use crate::domain::message::{Cursor, Message, PushWish, RawJson};
use crate::domain::seat::{GroupId, NameError, UserId};
use crate::domain::time::Timestamp;
use crate::domain::trace::TraceContext;
use bytes::Bytes;
use rusqlite::types::Type;
use rusqlite::{Error, Result, Row};
use uuid::Uuid;

/// The columns that [`message`] reads, of the table `m`.
pub(super) const MESSAGE: &str = "m.id, m.sender, m.grp, m.kind, m.payload, m.sent_at";
/// How many those are.
pub(super) const MESSAGE_COLUMNS: usize = 6;

/// The columns that [`callback`] reads, of the tables `c` (the callback) and `u` (its user, if it has one).
pub(super) const CALLBACK: &str = "c.id, c.endpoint, c.message, u.name, c.cursor, c.attempts, c.due_at, c.recalled";
/// How many those are.
pub(super) const CALLBACK_COLUMNS: usize = 8;

#[derive(Debug, thiserror::Error)]
#[error("a damaged row: {0}")]
struct Damaged(&'static str);

fn damaged(column: usize, kind: Type, what: &'static str) -> Error {
    Error::FromSqlConversionFailure(column, kind, Box::new(Damaged(what)))
}

pub(super) fn cursor(row: &Row<'_>, column: usize) -> Result<Cursor> {
    Ok(Cursor::new(row.get(column)?))
}

pub(super) fn time(row: &Row<'_>, column: usize) -> Result<Timestamp> {
    Ok(Timestamp::from_ms(row.get(column)?))
}

pub(super) fn id(row: &Row<'_>, column: usize) -> Result<Uuid> {
    Ok(Uuid::from_bytes(row.get(column)?))
}

/// A name of any kind, read by its `parse`.
pub(super) fn name<T>(row: &Row<'_>, column: usize, parse: fn(&str) -> std::result::Result<T, NameError>) -> Result<T> {
    parse(row.get_ref(column)?.as_str()?).map_err(|e| Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}

pub(super) fn message(row: &Row<'_>) -> Result<Message> {
    let group = match row.get_ref(2)?.as_str_or_null()? {
        Some(_) => Some(name(row, 2, GroupId::parse)?),
        None => None,
    };
    Ok(Message {
        id: id(row, 0)?,
        from: name(row, 1, UserId::parse)?,
        group,
        kind: row.get_ref(3)?.as_str()?.into(),
        payload: RawJson::from_checked(Bytes::copy_from_slice(row.get_ref(4)?.as_blob()?)),
        online_only: false,
        sent_at: time(row, 5)?,
    })
}

pub(super) fn push(row: &Row<'_>, column: usize) -> Result<PushWish> {
    Ok(push_of(row.get_ref(column)?.as_blob_or_null()?))
}

pub(super) fn spots(row: &Row<'_>, column: usize) -> Result<Vec<Spot>> {
    decode(row.get_ref(column)?.as_blob()?).ok_or_else(|| damaged(column, Type::Blob, "no list of recipients"))
}

/// One that can't be read is as none: it is no reason to keep a callback back.
pub(super) fn trace(row: &Row<'_>, column: usize) -> Result<Option<TraceContext>> {
    Ok(row.get_ref(column)?.as_str_or_null()?.and_then(TraceContext::of_column))
}

fn endpoint(row: &Row<'_>, column: usize) -> Result<Endpoint> {
    endpoint_of(row.get(column)?).ok_or_else(|| damaged(column, Type::Integer, "no endpoint"))
}

pub(super) fn state(row: &Row<'_>, column: usize) -> Result<CallbackState> {
    state_of(row.get(column)?).ok_or_else(|| damaged(column, Type::Integer, "no state of a callback"))
}

pub(super) fn callback(row: &Row<'_>) -> Result<Callback> {
    let recipient = match row.get_ref(3)?.as_str_or_null()? {
        Some(_) => Some((name(row, 3, UserId::parse)?, cursor(row, 4)?)),
        None => None,
    };
    Ok(Callback {
        id: id(row, 0)?,
        endpoint: endpoint(row, 1)?,
        message: id(row, 2)?,
        recalled: row.get(7)?,
        recipient,
        attempts: row.get(5)?,
        due_at: time(row, 6)?,
    })
}

/// An error's two columns, the status before the text.
pub(super) fn last_error(row: &Row<'_>, column: usize) -> Result<Option<LastError>> {
    let Some(detail) = row.get(column + 1)? else { return Ok(None) };
    Ok(Some(LastError { status: row.get(column)?, detail }))
}
