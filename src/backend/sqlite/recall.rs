//! Taking a message back (CONTRACT.md 7): it leaves every inbox in one transaction, and its numbers become holes.

use super::append::Told;
use super::columns::{spots, state};
use super::leases::Leased;
use super::writer::Writing;
use crate::backend::durable::forms::number;
use crate::backend::durable::recipients::Spot;
use crate::domain::callback::{CallbackState, Endpoint};
use crate::domain::time::Timestamp;
use crate::ports::Recalled;
use rusqlite::{OptionalExtension, Result, params};
use uuid::Uuid;

impl Writing<'_> {
    /// See [`crate::ports::Store::recall`]. The callback leased to the caller stands beside the answer.
    pub fn recall(
        &mut self,
        id: Uuid,
        callback: bool,
        lease: bool,
        now: Timestamp,
    ) -> Result<Option<(Recalled, Leased)>> {
        let found = self
            .db
            .prepare_cached(
                "SELECT seq, recipients, storage_state FROM message WHERE id = ?1 AND kept = 0 AND expires_at > ?2",
            )?
            .query_row(params![id.as_bytes(), now.as_ms()], |row| Ok((row.get(0)?, spots(row, 1)?, state(row, 2)?)))
            .optional()?;
        let Some((seq, spots, storage)) = found else { return Ok(None) };
        for spot in &spots {
            self.take_out(*spot)?;
        }
        // One that is dead may be tried again by the operator.
        let wanted = matches!(storage, CallbackState::Waiting | CallbackState::Failing | CallbackState::Dead);
        self.forget_or_keep(seq, wanted)?;
        let told = Told { endpoint: Endpoint::Storage, message: id, recalled: true };
        let made = if callback { Some(self.insert_callback(told, now, now, None)?) } else { None };
        let recipients = super::read::named(self.db, &spots)?.into_iter().map(|(user, _)| user).collect();
        let leased = Leased::new(self.leases, made.filter(|_| lease).into_iter().collect());
        Ok(Some((Recalled { recipients, callback: None }, leased)))
    }

    /// Unlike expiry it leaves no gap, so `lost_from` stays. Before a user's highest row goes, its number is kept in the user's row.
    fn take_out(&self, (user, cursor): Spot) -> Result<()> {
        self.db
            .prepare_cached("UPDATE user SET newest = max(newest, ?2) WHERE id = ?1")?
            .execute(params![user, number(cursor)])?;
        self.db
            .prepare_cached("DELETE FROM inbox WHERE user = ?1 AND cursor = ?2")?
            .execute(params![user, number(cursor)])?;
        Ok(())
    }
}
