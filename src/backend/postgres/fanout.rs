//! Sends to many recipients, part by part (CONTRACT.md 6): the users' rows of one part are locked at a time, so other senders wait for no
//! more than that. What was begun is certain to reach all (CONTRACT.md 10.4): the parts are found again after a crash, by this node or
//! another, and none is written twice.
//!
//! The row in `fanout` names the node that writes the message. Each part looks at it under a lock, so a node that was paused, and whose
//! work another has taken over, stops at its next part.

use super::append::answer_to;
use super::columns::{Result, spots, time};
use super::connect::{Connections, Failure, end, run};
use super::devices::add_users;
use super::leases::{Leased, Leases};
use super::partitions::Partitions;
use super::read::named;
use super::rows::{Locked, Rows, Statements};
use super::transaction::Transaction;
use super::writer::Rules;
use crate::backend::durable::fanout::{BITE, Begun, Plan, Steps, Wait, part};
use crate::backend::durable::forms::{callback_id, made_at};
use crate::backend::durable::recipients::{Spot, encode};
use crate::domain::callback::{Callback, Endpoint};
use crate::domain::message::Cursor;
use crate::domain::seat::UserId;
use crate::domain::time::Timestamp;
use crate::ports::{Append, Appended, StoreError};
use async_trait::async_trait;
use deadpool_postgres::Object;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::iter::repeat_n;
use std::sync::Arc;
use tokio::join;
use tokio_postgres::Row;
use uuid::{ContextV7, Uuid};

/// Sends that are taken up at a time, as each is in memory whole.
const TAKEN_UP: i64 = 16;

/// The steps of a large send, each a transaction.
pub(super) struct Fanouts {
    pub db: Connections,
    pub partitions: Arc<Partitions>,
    pub leases: Arc<Leases>,
    pub rules: Rules,
    pub ids: Arc<Mutex<ContextV7>>,
}

/// A send that was begun.
pub(super) struct Fanout {
    plan: Plan,
    /// The places of those who have one: the first so many of the recipients.
    done: Vec<Spot>,
}

#[async_trait]
impl Steps for Fanouts {
    type Fanout = Fanout;
    type Answer = (Appended, Leased);

    async fn begin(&self, new: Append) -> std::result::Result<Begun<Fanout, Self::Answer>, StoreError> {
        let nothing = |answer| Begun::Answered((answer, Leased::new(&self.leases, Vec::new())));
        // Before anybody is enrolled: a repeat names all of them, too.
        if let Some(answer) = run!(self.db, |db| answer_to(&db, &new))? {
            return Ok(nothing(answer));
        }
        let mut nowhere: Vec<Spot> = Vec::with_capacity(new.recipients.len());
        for users in new.recipients.chunks(BITE) {
            let enrolled = run!(self.db, |db| enrol(&db, users))?;
            nowhere.extend(enrolled.into_iter().map(|user| (user, Cursor::START)));
        }
        let beginning = Beginning { fanouts: self, new: &new, list: encode(&nowhere) };
        Ok(match self.commit(&beginning).await? {
            Some(answer) => nothing(answer),
            None => Begun::New(Fanout { plan: Plan::of(&new), done: Vec::new() }),
        })
    }

    async fn bite(&self, fanout: &mut Fanout) -> std::result::Result<bool, StoreError> {
        if fanout.done.len() < fanout.plan.recipients.len() {
            let places = self.commit(&Biting { fanouts: self, fanout }).await?;
            fanout.done.extend(places);
        }
        Ok(fanout.done.len() < fanout.plan.recipients.len())
    }

    async fn finish(&self, fanout: Fanout) -> std::result::Result<Self::Answer, StoreError> {
        let storage = fanout.plan.storage.then(|| Callback {
            id: callback_id(&self.ids.lock(), fanout.plan.sent_at),
            endpoint: Endpoint::Storage,
            message: fanout.plan.message,
            recalled: false,
            recipient: None,
            attempts: 0,
            due_at: fanout.plan.sent_at,
        });
        let leased = Leased::new(&self.leases, storage.iter().filter(|_| fanout.plan.lease).cloned().collect());
        let finishing = Finishing { fanouts: self, fanout: &fanout, storage: storage.map(|callback| callback.id) };
        // If it fails, or was done before and the answer was lost, the callback may be leased although nobody knows of it: it is given back.
        let leased = if self.commit(&finishing).await? { leased } else { Leased::new(&self.leases, Vec::new()) };
        Ok((Appended::New(fanout.plan.stored(&fanout.done), Vec::new()), leased))
    }

    async fn left_over(&self) -> std::result::Result<Vec<Fanout>, StoreError> {
        run!(self.db, |db| left_over(&db, self.leases.me))
    }
}

impl Fanouts {
    async fn commit<T: Transaction>(&self, step: &T) -> std::result::Result<T::Done, StoreError> {
        self.db.commit(step, &self.partitions).await.map_err(|failure| self.db.failed(failure))
    }
}

/// The row ids of users, who are added if they aren't there. Users are never removed, so the ids stay good although nothing of the message
/// is there yet.
async fn enrol(db: &Object, users: &[UserId]) -> Result<Vec<i64>> {
    let mut names: Vec<&str> = users.iter().map(UserId::as_str).collect();
    names.sort_unstable();
    add_users(db, &names).await?;
    let query = db.prepare_cached("SELECT name, id FROM users WHERE name = ANY($1)").await?;
    let rows = db.query(&query, &[&names]).await?;
    let ids: HashMap<&str, i64> =
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_>>()?;
    users.iter().map(|user| ids.get(user.as_str()).copied().ok_or(Failure::Overtaken)).collect()
}

/// Makes the whole intent durable.
struct Beginning<'a> {
    fanouts: &'a Fanouts,
    new: &'a Append,
    /// The recipients, who have no places yet.
    list: Vec<u8>,
}

impl Transaction for Beginning<'_> {
    /// What the key answers instead.
    type Done = Option<Appended>;

    async fn run(&self, db: &Object, again: bool) -> Result<Self::Done> {
        self.fanouts.partitions.ensure(db, [made_at(self.new.message.id)]).await?;
        let answer = answer_to(db, self.new).await?;
        // Looked for last: an earlier run that ends meanwhile would be taken for another's use of the key. One that hasn't ended yet makes
        // this one wait for it, and then fail for its rows, and be run again.
        if again && is_there(db, self.new.message.id).await? {
            return Ok(None);
        }
        if answer.is_some() {
            return Ok(answer);
        }
        match self.write(db).await {
            Ok(()) => Ok(None),
            Err(failure) => end(db, Err(failure)).await,
        }
    }
}

impl Beginning<'_> {
    async fn write(&self, db: &Object) -> Result<()> {
        let Self { fanouts, new, list } = self;
        let statements = Statements::prepare(db).await?;
        let begin = db
            .prepare_cached(
                "INSERT INTO fanout (message, key, storage, pushed, push_due, holder) VALUES ($1, $2, $3, $4, $5, $6)",
            )
            .await?;
        let mut rows = Rows::default();
        rows.add_message(new, list.clone(), fanouts.rules);
        if let Some(key) = &new.key {
            rows.expire_key(key, new.message.sent_at);
            rows.add_key(key, new, Vec::new());
        }
        let key = new.key.as_ref().map(|key| &key.key);
        let pushed = index(new.push_due.len());
        let push_due = new.push_due.iter().max().map_or(0, |due| due.as_ms());
        let (begun, noted, written) = join!(
            biased;
            db.batch_execute("BEGIN"),
            async {
                let row = (&new.message.id, &key, &new.storage_callback, &pushed, &push_due, &fanouts.leases.me);
                db.execute(&begin, &[row.0, row.1, row.2, row.3, row.4, row.5]).await
            },
            rows.write(db, &statements),
        );
        begun?;
        noted?;
        written
    }
}

/// Gives the next part its places. They are those that it has already, if this was done before and the answer was lost.
struct Biting<'a> {
    fanouts: &'a Fanouts,
    fanout: &'a Fanout,
}

impl Transaction for Biting<'_> {
    type Done = Vec<Spot>;

    async fn run(&self, db: &Object, _again: bool) -> Result<Self::Done> {
        match self.write(db).await {
            Ok(Part::Written(places)) => Ok(places),
            Ok(Part::There(places)) => end(db, Ok(places)).await,
            Err(failure) => end(db, Err(failure)).await,
        }
    }
}

enum Part {
    /// And committed.
    Written(Vec<Spot>),
    There(Vec<Spot>),
}

impl Biting<'_> {
    async fn write(&self, db: &Object) -> Result<Part> {
        let Self { fanouts, fanout } = self;
        let statements = Statements::prepare(db).await?;
        let held = db.prepare_cached(HELD).await?;
        let there = db.prepare_cached("SELECT spots FROM fanout_part WHERE message = $1 AND first = $2").await?;
        let note = db.prepare_cached("INSERT INTO fanout_part (message, first, spots) VALUES ($1, $2, $3)").await?;
        let first = fanout.done.len();
        let (recipients, due) = (part(&fanout.plan.recipients, first), part(&fanout.plan.push_due, first));
        let first = index(first);
        let names: Vec<&str> = recipients.iter().map(UserId::as_str).collect();

        // Sent at once, and done in this order, as in a batch.
        let (begun, held, there, locked) = join!(
            biased;
            db.batch_execute("BEGIN"),
            async { db.query_opt(&held, &[&fanout.plan.message]).await },
            async { db.query_opt(&there, &[&fanout.plan.message, &first]).await },
            async { db.query(&statements.lock, &[&names]).await },
        );
        begun?;
        let (held, there, locked) = (held?, there?, locked?);
        if !held.is_some_and(|row| is_holder(&row, &fanouts.leases)) {
            return Err(Failure::TakenOver);
        }
        if let Some(row) = there {
            return Ok(Part::There(spots(&row, 0)?));
        }
        let mut users = Locked::read(&locked)?;
        let places = recipients.iter().map(|user| users.draw(user)).collect::<Result<Vec<Spot>>>()?;
        let mut rows = Rows::default();
        rows.add_places((fanout.plan.message, fanout.plan.expires_at), &places, due.len(), fanouts.rules);
        for (&due_at, &spot) in due.iter().zip(&places) {
            let id = callback_id(&fanouts.ids.lock(), fanout.plan.sent_at);
            rows.outbox.add(id, fanout.plan.message, (Endpoint::Push, due_at, None), Some(spot));
        }
        rows.draw_up_to(&users);
        let list = encode(&places);
        let (noted, written) = join!(
            biased;
            async { db.execute(&note, &[&fanout.plan.message, &first, &list]).await },
            rows.write(db, &statements),
        );
        noted?;
        written?;
        Ok(Part::Written(places))
    }
}

/// Completes a send; false if that was done before.
struct Finishing<'a> {
    fanouts: &'a Fanouts,
    fanout: &'a Fanout,
    /// The callback to be made.
    storage: Option<Uuid>,
}

impl Transaction for Finishing<'_> {
    type Done = bool;

    async fn run(&self, db: &Object, _again: bool) -> Result<Self::Done> {
        db.batch_execute("BEGIN").await?;
        end(db, self.write(db).await).await
    }
}

impl Finishing<'_> {
    async fn write(&self, db: &Object) -> Result<bool> {
        let Self { fanouts, fanout, storage } = self;
        let message = &fanout.plan.message;
        match db.query_opt(HELD, &[message]).await? {
            None => return Ok(false),
            Some(row) if is_holder(&row, &fanouts.leases) => {}
            Some(_) => return Err(Failure::TakenOver),
        }
        let list = encode(&fanout.done);
        db.execute("UPDATE message SET recipients = $2 WHERE id = $1", &[message, &list]).await?;
        if let Some(key) = &fanout.plan.key {
            let answer = "UPDATE idempotency SET recipients = $3 WHERE key = $1 AND message = $2";
            db.execute(answer, &[key, message, &list]).await?;
        }
        if let Some(id) = *storage {
            let mut rows = Rows::default();
            let holder = fanout.plan.lease.then_some(fanouts.leases.me);
            rows.outbox.add(id, fanout.plan.message, (Endpoint::Storage, fanout.plan.sent_at, holder), None);
            rows.outbox.write(db, &Statements::prepare(db).await?.outbox).await?;
        }
        forget(db, &[fanout.plan.message]).await?;
        Ok(true)
    }
}

/// Who writes a message. The lock keeps others from taking it over until the end of the transaction.
const HELD: &str = "SELECT holder FROM fanout WHERE message = $1 FOR UPDATE";

fn is_holder(held: &Row, leases: &Leases) -> bool {
    held.try_get::<_, Uuid>(0).is_ok_and(|holder| holder == leases.me)
}

/// The index of a recipient as a column: no more are in a group than fit.
fn index(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

async fn is_there(db: &Object, message: Uuid) -> Result<bool> {
    Ok(db.query_opt("SELECT 1 FROM message WHERE id = $1", &[&message]).await?.is_some())
}

async fn forget(db: &Object, messages: &[Uuid]) -> Result<()> {
    db.execute("DELETE FROM fanout_part WHERE message = ANY($1)", &[&messages]).await?;
    db.execute("DELETE FROM fanout WHERE message = ANY($1)", &[&messages]).await?;
    Ok(())
}

/// Takes over what nobody writes: this node's own, which it isn't writing while it asks, and what dead nodes left.
async fn left_over(db: &Object, me: Uuid) -> Result<Vec<Fanout>> {
    let take = db
        .prepare_cached(
            "UPDATE fanout SET holder = $1 WHERE message IN (
                 SELECT f.message FROM fanout f
                 WHERE f.holder = $1 OR NOT EXISTS (SELECT 1 FROM holder h WHERE h.id = f.holder)
                 ORDER BY f.message LIMIT $2 FOR UPDATE OF f SKIP LOCKED)
             RETURNING message",
        )
        .await?;
    let taken = db.query(&take, &[&me, &TAKEN_UP]).await?;
    if taken.is_empty() {
        return Ok(Vec::new());
    }
    let taken: Vec<Uuid> = taken.iter().map(|row| row.try_get(0)).collect::<std::result::Result<_, _>>()?;
    let found = db
        .query(
            "SELECT m.id, m.sent_at, m.expires_at, m.recipients, f.pushed, f.push_due, f.storage, f.key
             FROM fanout f JOIN message m ON m.id = f.message WHERE f.message = ANY($1) ORDER BY m.id",
            &[&taken],
        )
        .await?;
    let mut fanouts = Vec::with_capacity(found.len());
    for row in &found {
        fanouts.push(begun_before(db, row).await?);
    }
    // The others' messages have gone with their partition.
    let gone: Vec<Uuid> =
        taken.into_iter().filter(|id| fanouts.iter().all(|fanout| fanout.plan.message != *id)).collect();
    if !gone.is_empty() {
        forget(db, &gone).await?;
    }
    Ok(fanouts)
}

async fn begun_before(db: &Object, row: &Row) -> Result<Fanout> {
    let (message, expires_at) = (row.try_get(0)?, time(row, 2)?);
    let parts = "SELECT spots FROM fanout_part WHERE message = $1 ORDER BY first";
    let parts = db.query(parts, &[&message]).await?;
    let done = parts.iter().map(|row| spots(row, 0)).collect::<Result<Vec<_>>>()?.concat();
    let mut wanted = spots(row, 3)?;
    if expires_at <= Timestamp::now() {
        // Nobody else would ever see it.
        wanted.truncate(done.len());
    }
    let pushed = usize::try_from(row.try_get::<_, i32>(4)?).unwrap_or(0);
    let plan = Plan {
        message,
        sent_at: time(row, 1)?,
        expires_at,
        recipients: named(db, &wanted).await?.into_iter().map(|(user, _)| user).collect(),
        push_due: repeat_n(time(row, 5)?, pushed).collect(),
        storage: row.try_get(6)?,
        lease: false,
        key: row.try_get(7)?,
    };
    Ok(Fanout { plan, done })
}

/// Waits until a message has reached all of its recipients, within bounds.
pub(super) async fn written(connections: &Connections, message: Uuid) -> std::result::Result<(), StoreError> {
    let wait = Wait::begin();
    while run!(connections, |db| is_being_written(&db, message))? {
        wait.again().await?;
    }
    Ok(())
}

async fn is_being_written(db: &Object, message: Uuid) -> Result<bool> {
    let query = db.prepare_cached("SELECT 1 FROM fanout WHERE message = $1").await?;
    Ok(db.query_opt(&query, &[&message]).await?.is_some())
}
