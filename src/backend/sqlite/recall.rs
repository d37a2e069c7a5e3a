//! Taking a message back (CONTRACT.md 7): at once nobody sees it any more, and its numbers are holes. If it had many recipients, its rows are
//! taken out part by part, by [`crate::ports::Store::sweep`].

use super::append::Told;
use super::columns::{spots, state};
use super::leases::Leased;
use super::read::{SHOWN, named};
use super::writer::Writing;
use crate::backend::durable::fanout::BITE;
use crate::backend::durable::forms::number;
use crate::backend::durable::recipients::Spot;
use crate::domain::callback::{CallbackState, Endpoint};
use crate::domain::seat::UserId;
use crate::domain::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, Result, params};
use uuid::Uuid;

/// The result of a recall.
pub(super) enum Outcome {
    /// There is no such message, or not any more.
    Absent,
    /// It has yet to reach some of its recipients: then it can be recalled.
    BeingWritten,
    /// It is done. The callback, if it is leased to the caller.
    Done(Leased),
}

/// Whose inboxes a message is in. It takes long if they are many, so it is no work for the writer.
pub(super) fn recipients(db: &Connection, id: Uuid, now: Timestamp) -> Result<Option<Vec<UserId>>> {
    let found = db
        .prepare_cached(&format!("SELECT m.recipients FROM message m WHERE m.id = ?1 AND {SHOWN}"))?
        .query_row(params![id.as_bytes(), now.as_ms()], |row| spots(row, 0))
        .optional()?;
    let Some(spots) = found else { return Ok(None) };
    Ok(Some(named(db, &spots)?.into_iter().map(|(user, _)| user).collect()))
}

impl Writing<'_> {
    /// See [`crate::ports::Store::recall`].
    pub fn recall(&mut self, id: Uuid, callback: bool, lease: bool, now: Timestamp) -> Result<Outcome> {
        let found = self
            .db
            .prepare_cached(&format!(
                "SELECT m.seq, m.recipients, m.storage_state FROM message m WHERE m.id = ?1 AND {SHOWN}"
            ))?
            .query_row(params![id.as_bytes(), now.as_ms()], |row| Ok((row.get(0)?, spots(row, 1)?, state(row, 2)?)))
            .optional()?;
        let Some((seq, spots, storage)) = found else { return Ok(Outcome::Absent) };
        if self.is_being_written(seq)? {
            return Ok(Outcome::BeingWritten);
        }
        if spots.len() > BITE {
            self.db.prepare_cached("INSERT INTO recalled (message) VALUES (?1)")?.execute([seq])?;
        } else {
            for spot in &spots {
                self.take_out(*spot)?;
            }
            // One that is dead may be tried again by the operator.
            let wanted = matches!(storage, CallbackState::Waiting | CallbackState::Failing | CallbackState::Dead);
            self.forget_or_keep(seq, wanted)?;
        }
        let told = Told { endpoint: Endpoint::Storage, message: id, recalled: true };
        let made = if callback { Some(self.insert_callback(told, now, now, None)?) } else { None };
        Ok(Outcome::Done(Leased::new(self.leases, made.filter(|_| lease).into_iter().collect())))
    }

    /// Unlike expiry it leaves no gap, so `lost_from` stays. Before a user's highest row goes, its number is kept in the user's row.
    pub(super) fn take_out(&self, (user, cursor): Spot) -> Result<()> {
        self.db
            .prepare_cached("UPDATE user SET newest = max(newest, ?2) WHERE id = ?1")?
            .execute(params![user, number(cursor)])?;
        self.db
            .prepare_cached("DELETE FROM inbox WHERE user = ?1 AND cursor = ?2")?
            .execute(params![user, number(cursor)])?;
        Ok(())
    }
}
