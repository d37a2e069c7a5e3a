//! What devices have acknowledged, when they were last online, and what was handed to their streams.

use super::columns::cursor;
use super::writer::Writing;
use crate::backend::durable::forms::number;
use crate::domain::message::Cursor;
use crate::domain::seat::{DeviceId, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{Acked, DeviceNote};
use rusqlite::{Result, params};

impl Writing<'_> {
    /// See [`crate::ports::Store::ack`].
    pub fn ack(&mut self, user: &UserId, device: &DeviceId, acked: Cursor, now: Timestamp) -> Result<Acked> {
        let newest = self.user(user)?.map_or(Cursor::START, |known| known.newest);
        if acked > newest {
            return Ok(Acked::Ahead { newest });
        }
        let user = self.user_or_new(user)?.id;
        self.db
            .prepare_cached(
                "INSERT INTO device (user, device, acked, seen_at) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET acked = max(coalesce(acked, 0), excluded.acked),
                                           seen_at = max(seen_at, excluded.seen_at)",
            )?
            .execute(params![user, device.as_str(), number(acked), now.as_ms()])?;
        Ok(Acked::Done)
    }

    /// See [`crate::ports::Store::note_devices`].
    pub fn note(&mut self, note: &DeviceNote) -> Result<()> {
        let user = self.user_or_new(&note.user)?.id;
        self.db
            .prepare_cached(
                "INSERT INTO device (user, device, seen_at) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET seen_at = max(seen_at, excluded.seen_at)",
            )?
            .execute(params![user, note.device.as_str(), note.seen_at.as_ms()])?;
        match note.delivered {
            Some((after, to)) if to > after => self.note_run(user, &note.device, after.next(), to),
            _ => Ok(()),
        }
    }

    /// Joins a run of delivered cursors with those that it overlaps or continues. Streams go forward, so that is nearly always one.
    fn note_run(&self, user: i64, device: &DeviceId, first: Cursor, last: Cursor) -> Result<()> {
        // What touches the new run: neither ends before its left neighbour nor begins after its right one.
        let touching = params![user, device.as_str(), number(first) - 1, number(last.next())];
        let (least, greatest): (Option<Cursor>, Option<Cursor>) = self
            .db
            .prepare_cached(
                "SELECT min(first), max(last) FROM delivery WHERE user = ?1 AND device = ?2 AND last >= ?3 AND first <= ?4",
            )?
            .query_row(touching, |row| match row.get::<_, Option<i64>>(0)? {
                Some(_) => Ok((Some(cursor(row, 0)?), Some(cursor(row, 1)?))),
                None => Ok((None, None)),
            })?;
        let joined = (least.map_or(first, |c| c.min(first)), greatest.map_or(last, |c| c.max(last)));
        self.db
            .prepare_cached("DELETE FROM delivery WHERE user = ?1 AND device = ?2 AND last >= ?3 AND first <= ?4")?
            .execute(touching)?;
        self.db
            .prepare_cached("INSERT INTO delivery (user, device, first, last) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![user, device.as_str(), number(joined.0), number(joined.1)])?;
        Ok(())
    }
}
