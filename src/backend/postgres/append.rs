//! Messages, their places in every inbox, their callbacks and their idempotency keys: a batch of sends in one transaction (CONTRACT.md 10.4, 10.6).
//!
//! Two round trips. The first locks the rows of all users, in the order of their names, and reads what is known of the keys; the second
//! writes everything and commits. As the locks last until the commit, the order of a user's numbers is the order of committing. Users are
//! locked before keys are written, and both in order, so that no two nodes wait for each other.
//!
//! The same batch may be run again, when its connection was lost and it isn't known whether it was committed. The locks make it wait for the
//! end of the earlier transaction; then either its messages are there, and it was, or they aren't, and never will be.

use super::columns::{Result, spots, time};
use super::connect::{Failure, end};
use super::devices::add_users;
use super::partitions::Partitions;
use super::read::named;
use super::rows::{Locked, Rows, Statements};
use super::transaction::Transaction;
use super::writer::Rules;
use crate::backend::durable::forms::made_at;
use crate::backend::durable::recipients::{Spot, encode};
use crate::domain::callback::{Callback, Endpoint};
use crate::domain::message::Cursor;
use crate::domain::seat::UserId;
use crate::domain::time::Timestamp;
use crate::ports::{Append, Appended, BodyHash, Stored};
use deadpool_postgres::Object;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tokio::join;
use tokio_postgres::Row;
use uuid::Uuid;

/// A send, and the ids of its callbacks, which stay the same however often it is run.
#[derive(Debug)]
pub(super) struct Posting {
    pub new: Append,
    pub storage_id: Uuid,
    pub push_ids: Vec<Uuid>,
}

impl Posting {
    /// The callbacks that are leased to the caller when the message is at these places.
    fn leased(&self, places: &[Cursor]) -> Vec<Callback> {
        let new = &self.new;
        let callback = |id, endpoint, recipient, due_at| Callback {
            id,
            endpoint,
            message: new.message.id,
            recalled: false,
            recipient,
            attempts: 0,
            due_at,
        };
        let storage = (new.storage_callback && new.lease.storage)
            .then(|| callback(self.storage_id, Endpoint::Storage, None, new.message.sent_at));
        let mut leased: Vec<_> = storage.into_iter().collect();
        if new.lease.push {
            let to = new.recipients.iter().cloned().zip(places.iter().copied());
            let pushes = to.zip(&new.push_due).zip(&self.push_ids);
            leased.extend(pushes.map(|((to, &due_at), &id)| callback(id, Endpoint::Push, Some(to), due_at)));
        }
        leased
    }

    /// The ids of what may be leased to the caller.
    pub fn leasable(&self) -> impl Iterator<Item = Uuid> {
        let storage = self.new.lease.storage.then_some(self.storage_id);
        storage.into_iter().chain(self.push_ids.iter().copied().filter(|_| self.new.lease.push))
    }

    fn appended(&self, places: &[Cursor]) -> Appended {
        Appended::New(self.stored(places), self.leased(places))
    }

    fn stored(&self, places: &[Cursor]) -> Stored {
        let recipients = self.new.recipients.iter().cloned().zip(places.iter().copied()).collect();
        Stored {
            id: self.new.message.id,
            sent_at: self.new.message.sent_at,
            expires_at: self.new.expires_at,
            recipients,
        }
    }
}

/// Sends that are written together.
pub(super) struct Batch<'a> {
    pub sends: Vec<&'a Posting>,
    pub rules: Rules,
    pub partitions: &'a Partitions,
    /// In the rows of what is leased to the callers.
    pub holder: Uuid,
}

impl Transaction for Batch<'_> {
    /// Per send its answer, or `None` if it has to be run after the others.
    type Done = Vec<Option<Appended>>;

    async fn run(&self, db: &Object, again: bool) -> Result<Self::Done> {
        let times: BTreeSet<_> = self.sends.iter().map(|send| made_at(send.new.message.id)).collect();
        self.partitions.ensure(db, times).await?;
        let recipients = self.sends.iter().flat_map(|send| &send.new.recipients);
        let names: BTreeSet<&str> = recipients.map(UserId::as_str).collect();
        let names: Vec<&str> = names.into_iter().collect();
        for _ in 0..2 {
            match begun(db, self, &names, again).await {
                Ok(Some(answers)) => return Ok(answers),
                // Not within the transaction, as who adds a user must hold no other.
                Ok(None) => {
                    db.batch_execute("ROLLBACK").await?;
                    add_users(db, &names).await?;
                }
                Err(failure) => return end(db, Err(failure)).await,
            }
        }
        Err(Failure::Overtaken)
    }
}

/// `None`: some users are yet to be added.
async fn begun(db: &Object, batch: &Batch<'_>, names: &[&str], again: bool) -> Result<Option<Vec<Option<Appended>>>> {
    let sends = &batch.sends;
    let known = db.prepare_cached(KNOWN).await?;
    let there = db.prepare_cached("SELECT id, recipients FROM message WHERE id = ANY($1)").await?;
    let statements = Statements::prepare(db).await?;
    let keys: Vec<&str> = sends.iter().filter_map(|send| Some(send.new.key.as_ref()?.key.as_str())).collect();
    let ids: Vec<Uuid> = sends.iter().map(|send| send.new.message.id).collect();

    // Sent at once, and done in this order.
    let (begun, locked, known, there) = join!(
        biased;
        db.batch_execute("BEGIN"),
        async { db.query(&statements.lock, &[&names]).await },
        async { if keys.is_empty() { Ok(Vec::new()) } else { db.query(&known, &[&keys]).await } },
        async { if again { db.query(&there, &[&ids]).await } else { Ok(Vec::new()) } },
    );
    begun?;
    let (locked, known, there) = (locked?, known?, there?);
    if locked.len() < names.len() {
        return Ok(None);
    }
    let users = Locked::read(&locked)?;
    let mut making = Making { rules: batch.rules, holder: batch.holder, users, ..Making::default() };
    for row in &known {
        let known = Known { body: body(row)?, expires_at: time(row, 2)?, answer: First::Earlier(row) };
        making.keys.insert(row.try_get(0)?, known);
    }
    let mut done = HashMap::new();
    for row in &there {
        done.insert(row.try_get::<_, Uuid>(0)?, spots(row, 1)?);
    }
    let mut outcomes = Vec::with_capacity(sends.len());
    for (n, send) in sends.iter().enumerate() {
        outcomes.push(match done.get(&send.new.message.id) {
            Some(spots) => Outcome::New(spots.iter().map(|spot| spot.1).collect()),
            None => making.take_in(n, send)?,
        });
    }
    let Making { users, rows, .. } = &mut making;
    rows.draw_up_to(users);
    rows.write(db, &statements).await?;
    let mut answers = Vec::with_capacity(sends.len());
    for (send, outcome) in sends.iter().zip(&outcomes) {
        answers.push(match outcome {
            Outcome::New(places) => Some(send.appended(places)),
            Outcome::Later => None,
            Outcome::OtherBody => Some(Appended::OtherBody),
            Outcome::Repeat(First::Earlier(row)) => Some(first_answer(db, row).await?),
            Outcome::Repeat(First::InBatch(first)) => match &outcomes[*first] {
                Outcome::New(places) => Some(Appended::Repeat(sends[*first].stored(places))),
                Outcome::Later | Outcome::OtherBody | Outcome::Repeat(_) => None,
            },
        });
    }
    Ok(Some(answers))
}

/// Keys that were used, and the answers that they were first given. Whether the answer is still being written can't be told from its list:
/// that of a send to nobody is empty, too.
const KNOWN: &str = "SELECT key, body, expires_at, message, sent_at, message_expires_at, recipients,
                            EXISTS (SELECT 1 FROM fanout f WHERE f.message = i.message)
                     FROM idempotency i WHERE key = ANY($1)";

/// From the columns of [`KNOWN`].
fn body(row: &Row) -> Result<BodyHash> {
    row.try_get::<_, &[u8]>(1)?.try_into().map_err(|_| Failure::Damaged("not a hash"))
}

/// From the columns of [`KNOWN`]: what a repeat gets.
async fn first_answer(db: &Object, row: &Row) -> Result<Appended> {
    if row.try_get(7)? {
        return Ok(Appended::InProgress);
    }
    Ok(Appended::Repeat(Stored {
        id: row.try_get(3)?,
        sent_at: time(row, 4)?,
        expires_at: time(row, 5)?,
        recipients: named(db, &spots(row, 6)?).await?,
    }))
}

/// What a send gets whose key was used and hasn't expired. It locks nothing.
pub(super) async fn answer_to(db: &Object, new: &Append) -> Result<Option<Appended>> {
    let Some(key) = &new.key else { return Ok(None) };
    let known = db.prepare_cached(KNOWN).await?;
    match db.query_opt(&known, &[&[&*key.key].as_slice()]).await? {
        Some(row) if time(&row, 2)? > new.message.sent_at => {
            Ok(Some(if body(&row)? == key.body { first_answer(db, &row).await? } else { Appended::OtherBody }))
        }
        _ => Ok(None),
    }
}

/// What became of a send.
enum Outcome<'a> {
    /// It is written, at these places.
    New(Vec<Cursor>),
    Repeat(First<'a>),
    OtherBody,
    /// It uses a key anew that expires while the batch is made.
    Later,
}

/// Where the answer stands that a repeat gets.
#[derive(Clone, Copy)]
enum First<'a> {
    Earlier(&'a Row),
    InBatch(usize),
}

struct Known<'a> {
    body: BodyHash,
    expires_at: Timestamp,
    answer: First<'a>,
}

/// A batch while it is made.
#[derive(Default)]
struct Making<'a> {
    rules: Rules,
    holder: Uuid,
    users: Locked<'a>,
    keys: BTreeMap<&'a str, Known<'a>>,
    rows: Rows<'a>,
}

impl<'a> Making<'a> {
    fn take_in(&mut self, n: usize, send: &'a Posting) -> Result<Outcome<'a>> {
        let new = &send.new;
        if let Some(key) = &new.key {
            match self.keys.get(key.key.as_str()) {
                Some(known) if known.expires_at > new.message.sent_at => {
                    return Ok(if known.body == key.body { Outcome::Repeat(known.answer) } else { Outcome::OtherBody });
                }
                Some(Known { answer: First::InBatch(_), .. }) => return Ok(Outcome::Later),
                Some(_) => self.rows.expire_key(key, new.message.sent_at),
                None => {}
            }
            let known = Known { body: key.body, expires_at: key.expires_at, answer: First::InBatch(n) };
            self.keys.insert(&key.key, known);
        }
        let places = new.recipients.iter().map(|user| self.users.draw(user)).collect::<Result<Vec<Spot>>>()?;
        self.add_rows(send, &places);
        Ok(Outcome::New(places.into_iter().map(|spot| spot.1).collect()))
    }

    fn add_rows(&mut self, send: &'a Posting, places: &[Spot]) {
        let (new, list) = (&send.new, encode(places));
        let held = |lease: bool| lease.then_some(self.holder);
        if let Some(key) = &new.key {
            self.rows.add_key(key, new, list.clone());
        }
        self.rows.add_message(new, list, self.rules);
        let (message, pushed) = (new.message.id, new.push_due.len());
        self.rows.add_places((message, new.expires_at), places, pushed, self.rules);
        if new.storage_callback {
            let endpoint = (Endpoint::Storage, new.message.sent_at, held(new.lease.storage));
            self.rows.outbox.add(send.storage_id, message, endpoint, None);
        }
        for ((&id, &due_at), &spot) in send.push_ids.iter().zip(&new.push_due).zip(places) {
            self.rows.outbox.add(id, message, (Endpoint::Push, due_at, held(new.lease.push)), Some(spot));
        }
    }
}
