//! Callbacks that are waiting, failing or dead (CONTRACT.md 10.6): leasing, settling and retrying them, and what the operator sees.

use super::columns::{CALLBACK, CALLBACK_COLUMNS, callback, last_error, state};
use super::leases::Leased;
use super::writer::Writing;
use crate::backend::durable::forms::{endpoint_number, made_at, number, state_number};
use crate::domain::callback::{Callback, CallbackState, Decision, Endpoint, LastError, Settlement};
use crate::domain::time::Timestamp;
use crate::ports::{Backlog, CallbackEntry, CallbackFilter};
use rusqlite::{Connection, OptionalExtension, Result, Row, params};
use uuid::Uuid;

/// Callbacks that one job retries at most, so that senders never wait long for it.
const RETRY_BITE: i64 = 500;

/// The query for callbacks `c` that a retry can move, to be narrowed down.
fn revivable(state: CallbackState) -> String {
    let table = if state == CallbackState::Dead { "dead" } else { "(SELECT * FROM outbox WHERE state = 3)" };
    format!("SELECT {CALLBACK} FROM {table} c LEFT JOIN user u ON u.id = c.user")
}

impl Writing<'_> {
    /// See [`crate::ports::Store::lease_due`].
    pub fn lease_due(&self, endpoint: Endpoint, now: Timestamp, limit: usize) -> Result<Leased> {
        let mut query = self.db.prepare_cached(&format!(
            "SELECT {CALLBACK} FROM outbox c LEFT JOIN user u ON u.id = c.user
             WHERE c.endpoint = ?1 AND c.due_at <= ?2 ORDER BY c.due_at, c.id"
        ))?;
        let mut rows = query.query(params![endpoint_number(endpoint), now.as_ms()])?;
        let mut due = Vec::new();
        while due.len() < limit
            && let Some(row) = rows.next()?
        {
            if !self.leases.holds(super::columns::id(row, 0)?) {
                due.push(callback(row)?);
            }
        }
        Ok(Leased::new(self.leases, due))
    }

    /// See [`crate::ports::Store::settle`]. One whose row isn't there any more is passed over.
    pub fn settle(&mut self, settlement: &Settlement) -> Result<()> {
        let Settlement { callback, attempts, decision } = settlement;
        match decision {
            Decision::Sent => self.finish(callback, CallbackState::Sent, *attempts),
            Decision::NotNeeded => self.finish(callback, CallbackState::NotNeeded, *attempts),
            Decision::Retry(due_at, error) => self.put_off(callback, *attempts, *due_at, error),
            Decision::Dead(error) => self.bury(callback, *attempts, error),
            Decision::Release(due_at, error) => self.release(callback, *due_at, error.as_ref()),
        }
    }

    fn finish(&mut self, callback: &Callback, state: CallbackState, attempts: u32) -> Result<()> {
        if self.remove(callback)? {
            self.mark(callback, state, attempts)?;
            self.drop_if_only_kept_for_storage(callback)?;
        }
        Ok(())
    }

    fn remove(&self, callback: &Callback) -> Result<bool> {
        let gone = self
            .db
            .prepare_cached("DELETE FROM outbox WHERE endpoint = ?1 AND due_at = ?2 AND id = ?3")?
            .execute(params![endpoint_number(callback.endpoint), callback.due_at.as_ms(), callback.id.as_bytes()])?;
        Ok(gone > 0)
    }

    fn put_off(&mut self, callback: &Callback, attempts: u32, due_at: Timestamp, error: &LastError) -> Result<()> {
        let moved = self
            .db
            .prepare_cached(
                "UPDATE outbox SET due_at = ?4, state = ?5, attempts = ?6, error_status = ?7, error_detail = ?8
                 WHERE endpoint = ?1 AND due_at = ?2 AND id = ?3",
            )?
            .execute(params![
                endpoint_number(callback.endpoint),
                callback.due_at.as_ms(),
                callback.id.as_bytes(),
                due_at.as_ms(),
                state_number(CallbackState::Failing),
                attempts,
                error.status,
                error.detail,
            ])?;
        if moved > 0 {
            self.mark(callback, CallbackState::Failing, attempts)?;
        }
        Ok(())
    }

    fn bury(&mut self, callback: &Callback, attempts: u32, error: &LastError) -> Result<()> {
        if !self.remove(callback)? {
            return Ok(());
        }
        let user = match &callback.recipient {
            Some((user, _)) => self.user(user)?.map(|known| known.id),
            None => None,
        };
        self.db
            .prepare_cached("INSERT OR REPLACE INTO dead VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?
            .execute(params![
                callback.id.as_bytes(),
                endpoint_number(callback.endpoint),
                callback.due_at.as_ms(),
                callback.message.as_bytes(),
                user,
                callback.recipient.as_ref().map(|(_, cursor)| number(*cursor)),
                attempts,
                error.status,
                error.detail,
                callback.recalled,
            ])?;
        self.mark(callback, CallbackState::Dead, attempts)
    }

    fn release(&self, callback: &Callback, due_at: Timestamp, error: Option<&LastError>) -> Result<()> {
        self.db
            .prepare_cached(
                "UPDATE outbox SET due_at = ?4, error_status = iif(?6 IS NULL, error_status, ?5),
                                   error_detail = coalesce(?6, error_detail)
                 WHERE endpoint = ?1 AND due_at = ?2 AND id = ?3",
            )?
            .execute(params![
                endpoint_number(callback.endpoint),
                callback.due_at.as_ms(),
                callback.id.as_bytes(),
                due_at.as_ms(),
                error.and_then(|e| e.status),
                error.map(|e| &e.detail),
            ])?;
        Ok(())
    }

    /// Leaves a callback's state where [`crate::ports::Store::message`] finds it.
    fn mark(&mut self, callback: &Callback, state: CallbackState, attempts: u32) -> Result<()> {
        if callback.recalled {
            return Ok(());
        }
        let Some((user, cursor)) = &callback.recipient else {
            self.db
                .prepare_cached("UPDATE message SET storage_state = ?2, storage_attempts = ?3 WHERE id = ?1")?
                .execute(params![callback.message.as_bytes(), state_number(state), attempts])?;
            return Ok(());
        };
        let Some(user) = self.user(user)? else { return Ok(()) };
        self.db
            .prepare_cached("UPDATE inbox SET push_state = ?3, push_attempts = ?4 WHERE user = ?1 AND cursor = ?2")?
            .execute(params![user.id, number(*cursor), state_number(state), attempts])?;
        Ok(())
    }

    fn drop_if_only_kept_for_storage(&self, callback: &Callback) -> Result<()> {
        if callback.endpoint == Endpoint::Storage && !callback.recalled {
            self.db
                .prepare_cached("DELETE FROM message WHERE id = ?1 AND kept = 1")?
                .execute([callback.message.as_bytes()])?;
        }
        Ok(())
    }

    /// See [`crate::ports::Store::retry`].
    pub fn retry(&mut self, id: Uuid, now: Timestamp) -> Result<bool> {
        if self.leases.holds(id) {
            return Ok(false);
        }
        for state in [CallbackState::Failing, CallbackState::Dead] {
            let found = self
                .db
                .prepare_cached(&format!("{} WHERE c.id = ?1", revivable(state)))?
                .query_row([id.as_bytes()], callback)
                .optional()?;
            if let Some(found) = found {
                self.revive(&found, state, now)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A bite of [`crate::ports::Store::retry_all`], after the id `after`: how many, and the last one's id if there may be more.
    pub fn retry_bite(
        &mut self,
        endpoint: Option<Endpoint>,
        state: CallbackState,
        after: Uuid,
        now: Timestamp,
    ) -> Result<(u64, Option<Uuid>)> {
        let bite: Vec<Callback> = self
            .db
            .prepare_cached(&format!(
                "{} WHERE c.id > ?1 AND c.endpoint = coalesce(?2, c.endpoint) ORDER BY c.id LIMIT ?3",
                revivable(state)
            ))?
            .query_map(params![after.as_bytes(), endpoint.map(endpoint_number), RETRY_BITE], callback)?
            .collect::<Result<_>>()?;
        let mut count = 0;
        for found in &bite {
            if !self.leases.holds(found.id) {
                self.revive(found, state, now)?;
                count += 1;
            }
        }
        Ok((count, bite.last().map(|last| last.id)))
    }

    fn revive(&mut self, callback: &Callback, from: CallbackState, now: Timestamp) -> Result<()> {
        if from == CallbackState::Dead {
            self.db
                .prepare_cached(
                    "INSERT INTO outbox (endpoint, due_at, id, message, user, cursor, error_status, error_detail, recalled)
                     SELECT endpoint, ?2, id, message, user, cursor, error_status, error_detail, recalled
                     FROM dead WHERE id = ?1",
                )?
                .execute(params![callback.id.as_bytes(), now.as_ms()])?;
            self.db.prepare_cached("DELETE FROM dead WHERE id = ?1")?.execute([callback.id.as_bytes()])?;
        } else {
            self.db
                .prepare_cached(
                    "UPDATE outbox SET due_at = ?4, state = ?5, attempts = 0
                     WHERE endpoint = ?1 AND due_at = ?2 AND id = ?3",
                )?
                .execute(params![
                    endpoint_number(callback.endpoint),
                    callback.due_at.as_ms(),
                    callback.id.as_bytes(),
                    now.as_ms(),
                    state_number(CallbackState::Waiting),
                ])?;
        }
        self.mark(callback, CallbackState::Waiting, 0)
    }
}

/// See [`crate::ports::Store::callbacks`]. Waiting ones have no index by id, so a page of them reads them all.
pub(super) fn list(db: &Connection, filter: &CallbackFilter) -> Result<Vec<CallbackEntry>> {
    let columns = "id, endpoint, due_at, message, user, cursor, attempts, error_status, error_detail, recalled";
    let pending = format!("SELECT {columns}, state FROM outbox");
    let dead = format!("SELECT {columns}, 4 AS state FROM dead");
    let source = match filter.state {
        None => format!("{pending} UNION ALL {dead}"),
        Some(CallbackState::Waiting) => format!("{pending} WHERE state = 1"),
        Some(CallbackState::Failing) => format!("{pending} WHERE state = 3"),
        Some(CallbackState::Dead) => dead,
        Some(CallbackState::NotNeeded | CallbackState::Sent | CallbackState::Off) => return Ok(Vec::new()),
    };
    db.prepare_cached(&format!(
        "SELECT {CALLBACK}, c.state, c.error_status, c.error_detail
         FROM ({source}) c LEFT JOIN user u ON u.id = c.user
         WHERE c.id > ?1 AND c.endpoint = coalesce(?2, c.endpoint) ORDER BY c.id LIMIT ?3"
    ))?
    .query_map(
        params![
            filter.after.unwrap_or(Uuid::nil()).as_bytes(),
            filter.endpoint.map(endpoint_number),
            i64::try_from(filter.limit).unwrap_or(i64::MAX),
        ],
        entry,
    )?
    .collect()
}

fn entry(row: &Row<'_>) -> Result<CallbackEntry> {
    let callback = callback(row)?;
    Ok(CallbackEntry {
        created_at: made_at(callback.id),
        state: state(row, CALLBACK_COLUMNS)?,
        last_error: last_error(row, CALLBACK_COLUMNS + 1)?,
        callback,
    })
}

/// See [`crate::ports::Store::backlog`].
pub(super) fn backlog(db: &Connection, endpoint: Endpoint, now: Timestamp) -> Result<Backlog> {
    db.prepare_cached(
        "SELECT (SELECT count(*) FROM outbox WHERE endpoint = ?1), (SELECT count(*) FROM dead WHERE endpoint = ?1),
                (SELECT min(due_at) FROM outbox WHERE endpoint = ?1 AND due_at <= ?2)",
    )?
    .query_row(params![endpoint_number(endpoint), now.as_ms()], |row| {
        let oldest_due = row.get::<_, Option<i64>>(2)?.map(Timestamp::from_ms);
        Ok(Backlog { pending: row.get(0)?, dead: row.get(1)?, oldest_due })
    })
}
