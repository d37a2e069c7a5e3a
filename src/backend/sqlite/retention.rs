//! Forgetting: what has expired leaves in bites that senders hardly notice, and the file gives room back.

use super::columns::{spots, state, time};
use super::writer::Writing;
use crate::backend::durable::forms::{endpoint_number, first_id, number};
use crate::backend::durable::recipients::Spot;
use crate::domain::callback::{CallbackState, Endpoint};
use crate::domain::time::Timestamp;
use rusqlite::{Params, Result, Row, params};
use std::collections::BTreeSet;

/// Rows that a bite removes at most. Senders wait for it.
const BITE_ROWS: usize = 500;
/// Pages that are given back at a time.
const VACUUM_PAGES: i64 = 128;
/// Fewer free pages than this are always kept for new messages.
const SPARE_PAGES: i64 = 1_024;

/// A message that is to be removed: it has expired, or was recalled.
struct Expired {
    seq: i64,
    /// Whose inbox rows are still to be removed.
    spots: Vec<Spot>,
    /// It was recalled before it expired: its numbers become holes.
    recalled: bool,
    /// Its storage callback still needs it.
    wanted: bool,
}

impl Expired {
    fn rows(&self) -> usize {
        1 + self.spots.len()
    }
}

/// How far the removal of a message with many recipients has come: its `seq`, and whose inbox rows are left. In memory only, as removing
/// what is gone already does no harm, while writing it down would write the long list of recipients each time.
pub(super) type Sweeping = Option<(i64, Vec<Spot>)>;

impl Writing<'_> {
    /// See [`crate::ports::Store::sweep`].
    pub fn sweep(&mut self, now: Timestamp) -> Result<bool> {
        let mut left = BITE_ROWS;
        let aged = now.minus(self.rules.retention);
        let mut users = BTreeSet::new();
        for message in self.expired(now, aged)? {
            if left == 0 {
                break;
            }
            self.remove_message(message, &mut left, &mut users)?;
        }
        for user in users {
            self.prune_delivery(user)?;
        }
        self.sweep_keys(now, &mut left)?;
        self.sweep_callbacks(aged, &mut left)?;
        Ok(left == 0 || self.vacuum()?)
    }

    /// About a bite of messages: those that were recalled, those beyond the retention, found by their order of committing, and those that
    /// were to be kept for less. What has yet to reach some of its recipients stays.
    fn expired(&mut self, now: Timestamp, aged: Timestamp) -> Result<Vec<Expired>> {
        const WHOLE: &str = "seq NOT IN (SELECT message FROM fanout) AND seq NOT IN (SELECT message FROM recalled)";
        let mut found = Vec::new();
        self.gather(&mut found, "WHERE seq IN (SELECT message FROM recalled) ORDER BY seq", [], (now, aged))?;
        for message in &mut found {
            message.recalled = true;
        }
        self.gather(&mut found, &format!("WHERE {WHOLE} ORDER BY seq"), [], (aged, aged))?;
        let brief = format!("WHERE brief <= ?1 AND {WHOLE} ORDER BY brief");
        self.gather(&mut found, &brief, [now.as_ms()], (now, aged))?;
        Ok(found)
    }

    /// Adds messages that `which` finds, until one was sent after `until` or they are enough for a bite.
    fn gather(
        &mut self,
        found: &mut Vec<Expired>,
        which: &str,
        bounds: impl Params,
        (until, aged): (Timestamp, Timestamp),
    ) -> Result<()> {
        let sql = format!("SELECT seq, recipients, kept, storage_state, sent_at FROM message {which}");
        let mut query = self.db.prepare_cached(&sql)?;
        let mut rows = query.query(bounds)?;
        let mut rows_found: usize = found.iter().map(Expired::rows).sum();
        while rows_found < BITE_ROWS
            && let Some(row) = rows.next()?
            && time(row, 4)? <= until
        {
            let begun = self.sweeping.take_if(|(seq, _)| row.get(0) == Ok(*seq)).map(|(_, left)| left);
            let message = expired(row, begun, aged)?;
            rows_found += message.rows();
            found.push(message);
        }
        Ok(())
    }

    fn remove_message(&mut self, mut message: Expired, left: &mut usize, users: &mut BTreeSet<i64>) -> Result<()> {
        // From the end, as that leaves the others where they are.
        for spot in message.spots.split_off(message.spots.len().saturating_sub(*left)) {
            if message.recalled {
                self.take_out(spot)?;
            } else {
                self.remove_inbox_row(spot)?;
                users.insert(spot.0);
            }
            *left -= 1;
        }
        if !message.spots.is_empty() {
            *self.sweeping = Some((message.seq, message.spots));
            return Ok(());
        }
        if message.recalled {
            self.db.prepare_cached("DELETE FROM recalled WHERE message = ?1")?.execute([message.seq])?;
        }
        self.forget_or_keep(message.seq, message.wanted)?;
        *left = left.saturating_sub(1);
        Ok(())
    }

    /// Removes a message that has left the inboxes, unless its storage callback still needs it.
    pub(super) fn forget_or_keep(&self, seq: i64, wanted: bool) -> Result<()> {
        let sql = if wanted {
            "UPDATE message SET kept = 1, brief = NULL WHERE seq = ?1"
        } else {
            "DELETE FROM message WHERE seq = ?1"
        };
        self.db.prepare_cached(sql)?.execute([seq])?;
        Ok(())
    }

    /// Before a user's highest row goes, its number is kept in the user's row: no number is ever given out twice.
    fn remove_inbox_row(&self, (user, cursor): Spot) -> Result<()> {
        let gone = self
            .db
            .prepare_cached("DELETE FROM inbox WHERE user = ?1 AND cursor = ?2")?
            .execute(params![user, number(cursor)])?;
        if gone > 0 {
            self.db
                .prepare_cached(
                    "UPDATE user SET newest = max(newest, ?2), lost_from = min(coalesce(lost_from, ?2), ?2)
                     WHERE id = ?1 AND (coalesce(lost_from, ?2 + 1) > ?2
                        OR newest < ?2 AND NOT EXISTS (SELECT 1 FROM inbox WHERE user = ?1 AND cursor > ?2))",
                )?
                .execute(params![user, number(cursor)])?;
        }
        Ok(())
    }

    /// Forgets which devices took what nobody can ask for any more.
    fn prune_delivery(&self, user: i64) -> Result<()> {
        self.db
            .prepare_cached(
                "DELETE FROM delivery WHERE user = ?1
                 AND last < coalesce((SELECT min(cursor) FROM inbox WHERE user = ?1), 9223372036854775807)",
            )?
            .execute([user])?;
        Ok(())
    }

    fn sweep_keys(&self, now: Timestamp, left: &mut usize) -> Result<()> {
        let gone = self
            .db
            .prepare_cached(
                "DELETE FROM idempotency WHERE key IN
                 (SELECT key FROM idempotency WHERE expires_at <= ?1 ORDER BY expires_at LIMIT ?2)",
            )?
            .execute(params![now.as_ms(), *left])?;
        *left -= gone;
        Ok(())
    }

    /// Callbacks whose message is beyond the retention: nobody can be told any more, and the operator has had that long to read of them.
    fn sweep_callbacks(&self, aged: Timestamp, left: &mut usize) -> Result<()> {
        for endpoint in Endpoint::ALL {
            let given_up = self
                .db
                .prepare_cached(
                    "DELETE FROM outbox WHERE endpoint = ?1 AND (due_at, id) IN
                     (SELECT due_at, id FROM outbox WHERE endpoint = ?1 AND due_at <= ?2 ORDER BY due_at LIMIT ?3)",
                )?
                .execute(params![endpoint_number(endpoint), aged.as_ms(), *left])?;
            *left -= given_up;
            if given_up > 0 {
                let endpoint = endpoint.as_str();
                tracing::warn!(
                    endpoint,
                    given_up,
                    "callbacks were never delivered within `store.retention_s` and are gone"
                );
            }
        }
        *left -= self
            .db
            .prepare_cached("DELETE FROM dead WHERE id IN (SELECT id FROM dead WHERE id < ?1 ORDER BY id LIMIT ?2)")?
            .execute(params![first_id(aged).as_bytes(), *left])?;
        Ok(())
    }

    /// Shortens the file if much of it is unused; true if there is more to do.
    fn vacuum(&self) -> Result<bool> {
        let pages = |name: &str| self.db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let spare = SPARE_PAGES.max(pages("page_count")? / 4);
        let free = pages("freelist_count")?;
        if free <= spare {
            return Ok(false);
        }
        let mut vacuum = self.db.prepare(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
        let mut steps = vacuum.query([])?;
        while steps.next()?.is_some() {}
        Ok(free - VACUUM_PAGES > spare)
    }
}

/// Unless it is known whose inbox rows are left, they are those of all recipients.
fn expired(row: &Row<'_>, left: Option<Vec<Spot>>, aged: Timestamp) -> Result<Expired> {
    let kept: bool = row.get(2)?;
    let spots = match left {
        Some(left) => left,
        None if kept => Vec::new(),
        None => spots(row, 1)?,
    };
    let pending = matches!(state(row, 3)?, CallbackState::Waiting | CallbackState::Failing | CallbackState::Dead);
    Ok(Expired { seq: row.get(0)?, spots, recalled: false, wanted: pending && time(row, 4)? > aged })
}
