//! The words of the domain as columns, and back. A column that can't be read is a failure of its row, never a panic.

use super::connect::Failure;
use crate::backend::durable::forms::{endpoint_of, push_of, state_of};
use crate::backend::durable::recipients::{Spot, decode};
use crate::domain::callback::{Callback, CallbackState, LastError};
use crate::domain::message::{Cursor, Message, PushWish, RawJson};
use crate::domain::seat::{GroupId, NameError, UserId};
use crate::domain::time::Timestamp;
use crate::domain::trace::TraceContext;
use bytes::Bytes;
use tokio_postgres::Row;
use uuid::Uuid;

pub(super) type Result<T> = std::result::Result<T, Failure>;

/// The columns that [`message`] reads, of the table `m`.
macro_rules! message_columns {
    () => {
        "m.id, m.sender, m.grp, m.kind, m.payload, m.sent_at"
    };
}
/// The columns that [`callback`] reads, of the tables `c` (the callback) and `u` (its user, if it has one).
macro_rules! callback_columns {
    () => {
        "c.id, c.endpoint, c.message, u.name, c.cursor, c.attempts, c.due_at, c.recalled"
    };
}
pub(super) use {callback_columns, message_columns};

/// How many columns [`message`] reads.
pub(super) const MESSAGE_COLUMNS: usize = 6;
/// How many columns [`callback`] reads.
pub(super) const CALLBACK_COLUMNS: usize = 8;

pub(super) fn cursor(row: &Row, column: usize) -> Result<Cursor> {
    Ok(Cursor::new(row.try_get::<_, i64>(column)?.unsigned_abs()))
}

pub(super) fn time(row: &Row, column: usize) -> Result<Timestamp> {
    Ok(Timestamp::from_ms(row.try_get(column)?))
}

/// A name of any kind, read by its `parse`.
pub(super) fn name<T>(row: &Row, column: usize, parse: fn(&str) -> std::result::Result<T, NameError>) -> Result<T> {
    parse(row.try_get(column)?).map_err(|_| Failure::Damaged("not a name"))
}

/// From the column `at` on.
pub(super) fn message(row: &Row, at: usize) -> Result<Message> {
    let group = match row.try_get::<_, Option<&str>>(at + 2)? {
        Some(_) => Some(name(row, at + 2, GroupId::parse)?),
        None => None,
    };
    Ok(Message {
        id: row.try_get(at)?,
        from: name(row, at + 1, UserId::parse)?,
        group,
        kind: row.try_get::<_, &str>(at + 3)?.into(),
        payload: RawJson::from_checked(Bytes::copy_from_slice(row.try_get(at + 4)?)),
        online_only: false,
        sent_at: time(row, at + 5)?,
    })
}

/// One that can't be read is as none: it is no reason to keep a callback back.
pub(super) fn trace(row: &Row, column: usize) -> Result<Option<TraceContext>> {
    Ok(row.try_get::<_, Option<&str>>(column)?.and_then(TraceContext::of_column))
}

pub(super) fn push(row: &Row, column: usize) -> Result<PushWish> {
    Ok(push_of(row.try_get(column)?))
}

pub(super) fn spots(row: &Row, column: usize) -> Result<Vec<Spot>> {
    decode(row.try_get(column)?).ok_or(Failure::Damaged("no list of recipients"))
}

pub(super) fn state(row: &Row, column: usize) -> Result<CallbackState> {
    state_of(row.try_get(column)?).ok_or(Failure::Damaged("no state of a callback"))
}

pub(super) fn attempts(row: &Row, column: usize) -> Result<u32> {
    u32::try_from(row.try_get::<_, i32>(column)?).map_err(|_| Failure::Damaged("no count of attempts"))
}

/// Attempts as a column.
pub(super) fn attempts_column(attempts: u32) -> i32 {
    i32::try_from(attempts).unwrap_or(i32::MAX)
}

pub(super) fn callback(row: &Row) -> Result<Callback> {
    let recipient = match row.try_get::<_, Option<&str>>(3)? {
        Some(_) => Some((name(row, 3, UserId::parse)?, cursor(row, 4)?)),
        None => None,
    };
    Ok(Callback {
        id: row.try_get::<_, Uuid>(0)?,
        endpoint: endpoint_of(row.try_get(1)?).ok_or(Failure::Damaged("no endpoint"))?,
        message: row.try_get(2)?,
        recalled: row.try_get(7)?,
        recipient,
        attempts: attempts(row, 5)?,
        due_at: time(row, 6)?,
    })
}

/// An error's two columns, the status before the text.
pub(super) fn last_error(row: &Row, column: usize) -> Result<Option<LastError>> {
    let Some(detail) = row.try_get(column + 1)? else { return Ok(None) };
    let status = row.try_get::<_, Option<i32>>(column)?.and_then(|status| u16::try_from(status).ok());
    Ok(Some(LastError { status, detail }))
}

/// An error's text as a column: a text of PostgreSQL holds no NUL.
pub(super) fn detail_column(error: &LastError) -> String {
    error.detail.replace('\0', "\u{fffd}")
}
