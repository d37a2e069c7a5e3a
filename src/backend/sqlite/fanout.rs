//! Sends to many recipients, part by part (CONTRACT.md 6): other jobs are written between any two parts. The parts are found again after a
//! crash, and none is written twice.

use super::append::Told;
use super::columns::{id, spots, time};
use super::jobs::{Queue, relieve, write};
use super::leases::{Leased, Leases};
use super::read::named;
use super::readers::Readers;
use super::writer::Writing;
use crate::backend::durable::fanout::{Begun, Plan, Steps, part};
use crate::backend::durable::queue::{Size, append_size};
use crate::backend::durable::recipients::{Spot, encode};
use crate::domain::callback::Endpoint;
use crate::domain::message::Cursor;
use crate::domain::seat::UserId;
use crate::ports::{Append, Appended, StoreError};
use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Result, params};
use std::iter::repeat_n;
use std::sync::Arc;

/// The steps of a large send, each a job of the writer.
pub(super) struct Fanouts {
    pub queue: Arc<Queue>,
    pub readers: Arc<Readers>,
    pub leases: Arc<Leases>,
}

/// A send that was begun.
pub(super) struct Fanout {
    seq: i64,
    plan: Arc<Plan>,
    /// The places of those who have one: the first so many of the recipients.
    done: Vec<Spot>,
}

#[async_trait]
impl Steps for Fanouts {
    type Fanout = Fanout;
    type Answer = (Appended, Leased);

    async fn begin(&self, new: Append) -> std::result::Result<Begun<Fanout, Self::Answer>, StoreError> {
        let nothing = |answer| Begun::Answered((answer, Leased::new(&self.leases, Vec::new())));
        let new = Arc::new(new);
        if new.key.is_some() {
            // An answer with many recipients takes long to read: the writer does it only if the key was used since.
            let of = Arc::clone(&new);
            if let Some(answer) = self.readers.read(move |db| super::append::answer_to(db, &of)).await? {
                return Ok(nothing(answer));
            }
        }
        let mut nowhere: Vec<Spot> = Vec::with_capacity(new.recipients.len());
        while nowhere.len() < new.recipients.len() {
            let (of, first) = (Arc::clone(&new), nowhere.len());
            let enrolled = write(&self.queue, Size::BITE, move |db| db.enrol(part(&of.recipients, first))).await?;
            nowhere.extend(enrolled.into_iter().map(|user| (user, Cursor::START)));
        }
        let (of, list) = (Arc::clone(&new), encode(&nowhere));
        let size = Size { rows: 3, ..append_size(&new) };
        Ok(match write(&self.queue, size, move |db| db.begin(&of, &list)).await? {
            Begun::Answered(answer) => nothing(answer),
            Begun::New(seq) => Begun::New(Fanout { seq, plan: Arc::new(Plan::of(&new)), done: Vec::new() }),
        })
    }

    async fn bite(&self, fanout: &mut Fanout) -> std::result::Result<bool, StoreError> {
        let (seq, plan, first) = (fanout.seq, Arc::clone(&fanout.plan), fanout.done.len());
        let spots = relieve(&self.queue, Size::BITE, move |db| db.bite(seq, &plan, first)).await?;
        fanout.done.extend(spots);
        Ok(fanout.done.len() < fanout.plan.recipients.len())
    }

    async fn finish(&self, fanout: Fanout) -> std::result::Result<Self::Answer, StoreError> {
        let Fanout { seq, plan, done } = fanout;
        let (of, list) = (Arc::clone(&plan), encode(&done));
        let size = Size { rows: 4, bytes: list.len() * 2 };
        let leased = relieve(&self.queue, size, move |db| db.complete(seq, &of, &list)).await?;
        Ok((Appended::New(plan.stored(&done), Vec::new()), leased))
    }

    async fn left_over(&self) -> std::result::Result<Vec<Fanout>, StoreError> {
        self.readers.read(left_over).await
    }
}

impl Writing<'_> {
    /// Users are never removed, so their row ids stay good although nothing of the message is there yet.
    fn enrol(&mut self, users: &[UserId]) -> Result<Vec<i64>> {
        users.iter().map(|user| Ok(self.user_or_new(user)?.id)).collect()
    }

    /// From here on the message is durable, and certain to reach all (CONTRACT.md 10.4).
    fn begin(&mut self, new: &Append, list: &[u8]) -> Result<Begun<i64, Appended>> {
        if let Some(answer) = super::append::answer_to(self.db, new)? {
            return Ok(Begun::Answered(answer));
        }
        let seq = self.insert_message(new, list)?;
        self.db
            .prepare_cached("INSERT INTO fanout (message, key, storage, pushed, push_due) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![
                seq,
                new.key.as_ref().map(|key| key.key.as_str()),
                new.storage_callback,
                new.push_due.len(),
                new.push_due.iter().max().map_or(0, |due| due.as_ms()),
            ])?;
        if let Some(key) = &new.key {
            self.insert_key(new, key, &[])?;
        }
        Ok(Begun::New(seq))
    }

    /// The places of a part, which it has already if this was done before and the answer was lost.
    fn bite(&mut self, seq: i64, plan: &Plan, first: usize) -> Result<Vec<Spot>> {
        let done = self
            .db
            .prepare_cached("SELECT spots FROM fanout_part WHERE message = ?1 AND first = ?2")?
            .query_row(params![seq, first], |row| spots(row, 0))
            .optional()?;
        if let Some(done) = done {
            return Ok(done);
        }
        let recipients = part(&plan.recipients, first);
        let places = recipients.iter().map(|user| self.draw(user)).collect::<Result<Vec<Spot>>>()?;
        let due = part(&plan.push_due, first);
        self.insert_inbox_rows((seq, plan.expires_at), &places, due.len())?;
        self.insert_pushes((plan.message, plan.sent_at), recipients, &places, due)?;
        self.db
            .prepare_cached("INSERT INTO fanout_part (message, first, spots) VALUES (?1, ?2, ?3)")?
            .execute(params![seq, first, encode(&places)])?;
        Ok(places)
    }

    /// The storage callback that is leased to the caller. None if this was done before and the answer was lost: then it is leased to nobody.
    fn complete(&mut self, seq: i64, plan: &Plan, list: &[u8]) -> Result<Leased> {
        let mut leased = Vec::new();
        if self.db.prepare_cached("DELETE FROM fanout WHERE message = ?1")?.execute([seq])? > 0 {
            self.db.prepare_cached("DELETE FROM fanout_part WHERE message = ?1")?.execute([seq])?;
            self.db.prepare_cached("UPDATE message SET recipients = ?2 WHERE seq = ?1")?.execute(params![seq, list])?;
            if let Some(key) = &plan.key {
                self.db
                    .prepare_cached("UPDATE idempotency SET recipients = ?3 WHERE key = ?1 AND message = ?2")?
                    .execute(params![key, plan.message.as_bytes(), list])?;
            }
            if plan.storage {
                let told = Told { endpoint: Endpoint::Storage, message: plan.message, recalled: false };
                let callback = self.insert_callback(told, plan.sent_at, plan.sent_at, None)?;
                leased.extend(plan.lease.then_some(callback));
            }
        }
        Ok(Leased::new(self.leases, leased))
    }

    /// Whether a message has yet to reach some of its recipients.
    pub fn is_being_written(&self, seq: i64) -> Result<bool> {
        self.db.prepare_cached("SELECT 1 FROM fanout WHERE message = ?1")?.exists([seq])
    }
}

/// Whether the first send with this key has yet to reach some of its recipients.
pub(super) fn is_key_being_written(db: &Connection, key: &str) -> Result<bool> {
    db.prepare_cached("SELECT 1 FROM fanout WHERE key = ?1")?.exists([key])
}

/// The places that a message has got in its inboxes so far, if it has yet to reach some of them.
pub(super) fn places(db: &Connection, seq: i64) -> Result<Vec<Spot>> {
    let mut query = db.prepare_cached("SELECT spots FROM fanout_part WHERE message = ?1 ORDER BY first")?;
    let parts = query.query_map([seq], |row| spots(row, 0))?.collect::<Result<Vec<_>>>()?;
    Ok(parts.concat())
}

/// See [`Steps::left_over`]. This process is all there is, and it asks while it writes none.
fn left_over(db: &Connection) -> Result<Vec<Fanout>> {
    db.prepare_cached(
        "SELECT m.seq, m.id, m.sent_at, m.expires_at, m.recipients, f.pushed, f.push_due, f.storage, f.key
         FROM fanout f JOIN message m ON m.seq = f.message ORDER BY f.message",
    )?
    .query_map([], |row| {
        let seq = row.get(0)?;
        let recipients = named(db, &spots(row, 4)?)?.into_iter().map(|(user, _)| user).collect();
        let plan = Plan {
            message: id(row, 1)?,
            sent_at: time(row, 2)?,
            expires_at: time(row, 3)?,
            recipients,
            push_due: repeat_n(time(row, 6)?, row.get(5)?).collect(),
            storage: row.get(7)?,
            lease: false,
            key: row.get(8)?,
        };
        Ok(Fanout { seq, plan: Arc::new(plan), done: places(db, seq)? })
    })?
    .collect()
}
