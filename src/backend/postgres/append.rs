//! Messages, their places in every inbox, their callbacks and their idempotency keys: a batch of sends in one transaction (CONTRACT.md 10.4, 10.6).
//!
//! Two round trips. The first locks the rows of all users, in the order of their names, and reads what is known of the keys; the second
//! writes everything and commits. As the locks last until the commit, the order of a user's numbers is the order of committing. Users are
//! locked before keys are written, and both in order, so that no two nodes wait for each other.
//!
//! The same batch may be run again, when its connection was lost and it isn't known whether it was committed. The locks make it wait for the
//! end of the earlier transaction; then either its messages are there, and it was, or they aren't, and never will be.

use super::columns::{Result, spots, time};
use super::connect::Failure;
use super::devices::add_users;
use super::partitions::Partitions;
use super::read::named;
use super::writer::Rules;
use crate::backend::durable::forms::{endpoint_number, made_at, number, push_column, state_number};
use crate::backend::durable::recipients::{Spot, encode};
use crate::domain::callback::{Callback, CallbackState, Endpoint};
use crate::domain::message::Cursor;
use crate::domain::seat::UserId;
use crate::domain::time::Timestamp;
use crate::domain::trace::TraceContext;
use crate::ports::{Append, Appended, BodyHash, StoreKey, Stored};
use deadpool_postgres::Object;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem::take;
use tokio::join;
use tokio_postgres::{Row, Statement};
use uuid::Uuid;

/// What a statement did: so many rows.
type Executed = std::result::Result<u64, tokio_postgres::Error>;

/// An inbox is trimmed at every so-manieth message, as removing many neighbours at once costs about as much as removing one. Readers
/// hide what is beyond the bound until then.
const TRIM_EVERY: u64 = 32;

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

/// How a batch is run.
#[derive(Clone, Copy)]
pub(super) struct Running<'a> {
    pub rules: Rules,
    pub partitions: &'a Partitions,
    /// In the rows of what is leased to the callers.
    pub holder: Uuid,
    /// It was run before, and may have been committed.
    pub again: bool,
}

/// Runs a batch; per send its answer, or `None` if it has to be run after the others.
pub(super) async fn append(db: &Object, sends: &[&Posting], running: Running<'_>) -> Result<Vec<Option<Appended>>> {
    let times: BTreeSet<_> = sends.iter().map(|send| made_at(send.new.message.id)).collect();
    running.partitions.ensure(db, times).await?;
    let names: BTreeSet<&str> = sends.iter().flat_map(|send| send.new.recipients.iter().map(UserId::as_str)).collect();
    let names: Vec<&str> = names.into_iter().collect();
    for _ in 0..2 {
        match begun(db, sends, &names, running).await {
            Ok(Some(answers)) => return Ok(answers),
            // Not within the transaction, as who adds a user must hold no other.
            Ok(None) => {
                db.batch_execute("ROLLBACK").await?;
                add_users(db, &names).await?;
            }
            Err(failure) => {
                if !failure.is_lost() {
                    db.batch_execute("ROLLBACK").await?;
                }
                return Err(failure);
            }
        }
    }
    Err(Failure::Overtaken)
}

/// `None`: some users are yet to be added.
async fn begun(
    db: &Object,
    sends: &[&Posting],
    names: &[&str],
    running: Running<'_>,
) -> Result<Option<Vec<Option<Appended>>>> {
    let lock = db
        .prepare_cached("SELECT name, id, newest FROM users WHERE name = ANY($1) ORDER BY name FOR NO KEY UPDATE")
        .await?;
    let known = db
        .prepare_cached(
            "SELECT key, body, expires_at, message, sent_at, message_expires_at, recipients
             FROM idempotency WHERE key = ANY($1)",
        )
        .await?;
    let there = db.prepare_cached("SELECT id, recipients FROM message WHERE id = ANY($1)").await?;
    let statements = Statements::prepare(db).await?;
    let keys: Vec<&str> = sends.iter().filter_map(|send| Some(send.new.key.as_ref()?.key.as_str())).collect();
    let ids: Vec<Uuid> = sends.iter().map(|send| send.new.message.id).collect();

    // Sent at once, and done in this order.
    let (begun, locked, known, there) = join!(
        biased;
        db.batch_execute("BEGIN"),
        async { db.query(&lock, &[&names]).await },
        async { if keys.is_empty() { Ok(Vec::new()) } else { db.query(&known, &[&keys]).await } },
        async { if running.again { db.query(&there, &[&ids]).await } else { Ok(Vec::new()) } },
    );
    begun?;
    let (locked, known, there) = (locked?, known?, there?);
    if locked.len() < names.len() {
        return Ok(None);
    }
    let mut batch = Batch { rules: running.rules, holder: running.holder, ..Batch::default() };
    for row in &locked {
        batch.users.insert(row.try_get(0)?, (row.try_get(1)?, super::columns::cursor(row, 2)?));
    }
    for row in &known {
        batch.keys.insert(
            row.try_get(0)?,
            Known {
                body: row.try_get::<_, &[u8]>(1)?.try_into().map_err(|_| Failure::Damaged("not a hash"))?,
                expires_at: time(row, 2)?,
                answer: First::Earlier(row),
            },
        );
    }
    let mut done = HashMap::new();
    for row in &there {
        done.insert(row.try_get::<_, Uuid>(0)?, spots(row, 1)?);
    }
    let mut outcomes = Vec::with_capacity(sends.len());
    for (n, send) in sends.iter().enumerate() {
        outcomes.push(match done.get(&send.new.message.id) {
            Some(spots) => Outcome::New(spots.iter().map(|spot| spot.1).collect()),
            None => batch.take_in(n, send)?,
        });
    }
    let Batch { users, rows, .. } = &mut batch;
    rows.draw_up_to(users);
    rows.write(db, &statements).await?;
    let mut answers = Vec::with_capacity(sends.len());
    for (send, outcome) in sends.iter().zip(&outcomes) {
        answers.push(match outcome {
            Outcome::New(places) => Some(send.appended(places)),
            Outcome::Later => None,
            Outcome::OtherBody => Some(Appended::OtherBody),
            Outcome::Repeat(First::Earlier(row)) => Some(Appended::Repeat(stored(db, row).await?)),
            Outcome::Repeat(First::InBatch(first)) => match &outcomes[*first] {
                Outcome::New(places) => Some(Appended::Repeat(sends[*first].stored(places))),
                Outcome::Later | Outcome::OtherBody | Outcome::Repeat(_) => None,
            },
        });
    }
    Ok(Some(answers))
}

/// The answer that a key was first given.
async fn stored(db: &Object, row: &Row) -> Result<Stored> {
    Ok(Stored {
        id: row.try_get(3)?,
        sent_at: time(row, 4)?,
        expires_at: time(row, 5)?,
        recipients: named(db, &spots(row, 6)?).await?,
    })
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
struct Batch<'a> {
    rules: Rules,
    holder: Uuid,
    /// By name: the row's id, and the newest number.
    users: BTreeMap<&'a str, (i64, Cursor)>,
    keys: BTreeMap<&'a str, Known<'a>>,
    rows: Rows<'a>,
}

impl<'a> Batch<'a> {
    fn take_in(&mut self, n: usize, send: &'a Posting) -> Result<Outcome<'a>> {
        let new = &send.new;
        if let Some(key) = &new.key {
            match self.keys.get(key.key.as_str()) {
                Some(known) if known.expires_at > new.message.sent_at => {
                    return Ok(if known.body == key.body { Outcome::Repeat(known.answer) } else { Outcome::OtherBody });
                }
                Some(Known { answer: First::InBatch(_), .. }) => return Ok(Outcome::Later),
                Some(_) => self.rows.expired_keys.push(&key.key),
                None => {}
            }
            let known = Known { body: key.body, expires_at: key.expires_at, answer: First::InBatch(n) };
            self.keys.insert(&key.key, known);
        }
        let places = new.recipients.iter().map(|user| self.draw(user)).collect::<Result<Vec<Spot>>>()?;
        self.rows.add(send, &places, (self.rules, self.holder));
        Ok(Outcome::New(places.into_iter().map(|spot| spot.1).collect()))
    }

    fn draw(&mut self, user: &UserId) -> Result<Spot> {
        let (id, newest) = self.users.get_mut(user.as_str()).ok_or(Failure::Overtaken)?;
        *newest = newest.next();
        Ok((*id, *newest))
    }
}

/// The rows that a batch writes, by column.
#[derive(Default)]
struct Rows<'a> {
    expired_keys: Vec<&'a str>,
    keys: BTreeMap<&'a str, (&'a StoreKey, &'a Append, Vec<u8>)>,
    messages: Messages<'a>,
    inbox: Inbox,
    outbox: Outbox,
    users: Vec<i64>,
    newest: Vec<i64>,
    trimmed: Vec<i64>,
    trimmed_to: Vec<i64>,
}

#[derive(Default)]
struct Messages<'a> {
    id: Vec<Uuid>,
    sent_at: Vec<i64>,
    expires_at: Vec<i64>,
    brief: Vec<Option<i64>>,
    storage_state: Vec<i16>,
    sender: Vec<&'a str>,
    group: Vec<Option<&'a str>>,
    kind: Vec<&'a str>,
    push: Vec<Option<&'a [u8]>>,
    recipients: Vec<Vec<u8>>,
    payload: Vec<&'a [u8]>,
    synced: Vec<bool>,
    trace: Vec<Option<String>>,
}

#[derive(Default)]
struct Inbox {
    user: Vec<i64>,
    cursor: Vec<i64>,
    message: Vec<Uuid>,
    expires_at: Vec<i64>,
    push_state: Vec<i16>,
}

#[derive(Default)]
struct Outbox {
    id: Vec<Uuid>,
    endpoint: Vec<i16>,
    due_at: Vec<i64>,
    message: Vec<Uuid>,
    user: Vec<Option<i64>>,
    cursor: Vec<Option<i64>>,
    holder: Vec<Option<Uuid>>,
}

impl<'a> Rows<'a> {
    fn add(&mut self, send: &'a Posting, places: &[Spot], (rules, holder): (Rules, Uuid)) {
        let (new, message) = (&send.new, &send.new.message);
        let list = encode(places);
        if let Some(key) = &new.key {
            self.keys.insert(&key.key, (key, new, list.clone()));
        }
        let rows = &mut self.messages;
        let storage = if new.storage_callback { CallbackState::Waiting } else { CallbackState::Off };
        let brief = new.expires_at < message.sent_at.plus(rules.retention);
        rows.id.push(message.id);
        rows.sent_at.push(message.sent_at.as_ms());
        rows.expires_at.push(new.expires_at.as_ms());
        rows.brief.push(brief.then_some(new.expires_at.as_ms()));
        rows.storage_state.push(state_number(storage));
        rows.sender.push(message.from.as_str());
        rows.group.push(message.group.as_ref().map(crate::domain::seat::GroupId::as_str));
        rows.kind.push(&message.kind);
        rows.push.push(push_column(&new.push));
        rows.recipients.push(list);
        rows.payload.push(message.payload.as_bytes());
        rows.synced.push(new.synced);
        rows.trace.push(new.trace.as_ref().map(TraceContext::to_column));
        for (n, &(user, cursor)) in places.iter().enumerate() {
            let push = if n < new.push_due.len() { CallbackState::Waiting } else { CallbackState::Off };
            self.inbox.user.push(user);
            self.inbox.cursor.push(number(cursor));
            self.inbox.message.push(message.id);
            self.inbox.expires_at.push(new.expires_at.as_ms());
            self.inbox.push_state.push(state_number(push));
            if cursor.get() > rules.inbox_max && cursor.get().is_multiple_of(TRIM_EVERY) {
                self.trimmed.push(user);
                self.trimmed_to.push(number(Cursor::new(cursor.get() - rules.inbox_max)));
            }
        }
        let held = |lease: bool| lease.then_some(holder);
        if new.storage_callback {
            let endpoint = (Endpoint::Storage, message.sent_at, held(new.lease.storage));
            self.outbox.add(send.storage_id, message.id, endpoint, None);
        }
        for ((&id, &due_at), &spot) in send.push_ids.iter().zip(&new.push_due).zip(places) {
            self.outbox.add(id, message.id, (Endpoint::Push, due_at, held(new.lease.push)), Some(spot));
        }
    }

    /// The newest numbers of those who got one.
    fn draw_up_to(&mut self, users: &BTreeMap<&str, (i64, Cursor)>) {
        let drawn: BTreeSet<i64> = self.inbox.user.iter().copied().collect();
        for (id, newest) in users.values().filter(|(id, _)| drawn.contains(id)) {
            self.users.push(*id);
            self.newest.push(number(*newest));
        }
    }

    /// Everything and the commit, sent at once. If one fails, so does the commit.
    async fn write(&mut self, db: &Object, statements: &Statements) -> Result<()> {
        let keys = Keys::from(take(&mut self.keys));
        let Self { expired_keys, messages: m, inbox: i, outbox: o, users, newest, trimmed, trimmed_to, .. } = self;
        let (expired, keys, messages, inbox, outbox, users, trimmed_inbox, trimmed_delivery, committed) = join!(
            biased;
            async {
                if expired_keys.is_empty() { Ok(0) } else { db.execute(&statements.expired, &[expired_keys]).await }
            },
            keys.write(db, &statements.keys),
            m.write(db, &statements.messages),
            async {
                db.execute(&statements.inbox, &[&i.user, &i.cursor, &i.message, &i.expires_at, &i.push_state]).await
            },
            o.write(db, &statements.outbox),
            async { db.execute(&statements.users, &[users, newest]).await },
            async {
                if trimmed.is_empty() { Ok(0) } else { db.execute(&statements.trim_inbox, &[trimmed, trimmed_to]).await }
            },
            async {
                if trimmed.is_empty() { Ok(0) } else { db.execute(&statements.trim_delivery, &[trimmed, trimmed_to]).await }
            },
            db.batch_execute("COMMIT"),
        );
        for done in [expired, keys, messages, inbox, outbox, users, trimmed_inbox, trimmed_delivery] {
            done?;
        }
        Ok(committed?)
    }
}

impl Messages<'_> {
    async fn write(&self, db: &Object, statement: &Statement) -> Executed {
        let Self {
            id,
            sent_at,
            expires_at,
            brief,
            storage_state,
            sender,
            group,
            kind,
            push,
            recipients,
            payload,
            synced,
            trace,
        } = self;
        db.execute(
            statement,
            &[
                id,
                sent_at,
                expires_at,
                brief,
                storage_state,
                sender,
                group,
                kind,
                push,
                recipients,
                payload,
                synced,
                trace,
            ],
        )
        .await
    }
}

impl Outbox {
    async fn write(&self, db: &Object, statement: &Statement) -> Executed {
        if self.id.is_empty() {
            return Ok(0);
        }
        let Self { id, endpoint, due_at, message, user, cursor, holder } = self;
        db.execute(statement, &[id, endpoint, due_at, message, user, cursor, holder]).await
    }

    fn add(
        &mut self,
        id: Uuid,
        message: Uuid,
        (endpoint, due_at, holder): (Endpoint, Timestamp, Option<Uuid>),
        spot: Option<Spot>,
    ) {
        self.id.push(id);
        self.endpoint.push(endpoint_number(endpoint));
        self.due_at.push(due_at.as_ms());
        self.message.push(message);
        self.user.push(spot.map(|spot| spot.0));
        self.cursor.push(spot.map(|spot| number(spot.1)));
        self.holder.push(holder);
    }
}

/// New keys, in order.
#[derive(Default)]
struct Keys<'a> {
    key: Vec<&'a str>,
    body: Vec<&'a [u8]>,
    expires_at: Vec<i64>,
    message: Vec<Uuid>,
    sent_at: Vec<i64>,
    message_expires_at: Vec<i64>,
    recipients: Vec<Vec<u8>>,
}

impl<'a> From<BTreeMap<&'a str, (&'a StoreKey, &'a Append, Vec<u8>)>> for Keys<'a> {
    fn from(rows: BTreeMap<&'a str, (&'a StoreKey, &'a Append, Vec<u8>)>) -> Self {
        let mut keys = Self::default();
        for (text, (key, new, list)) in rows {
            keys.key.push(text);
            keys.body.push(&key.body);
            keys.expires_at.push(key.expires_at.as_ms());
            keys.message.push(new.message.id);
            keys.sent_at.push(new.message.sent_at.as_ms());
            keys.message_expires_at.push(new.expires_at.as_ms());
            keys.recipients.push(list);
        }
        keys
    }
}

impl Keys<'_> {
    async fn write(&self, db: &Object, statement: &Statement) -> Executed {
        if self.key.is_empty() {
            return Ok(0);
        }
        let Self { key, body, expires_at, message, sent_at, message_expires_at, recipients } = self;
        db.execute(statement, &[key, body, expires_at, message, sent_at, message_expires_at, recipients]).await
    }
}

/// Prepared once per connection.
struct Statements {
    expired: Statement,
    keys: Statement,
    messages: Statement,
    inbox: Statement,
    outbox: Statement,
    users: Statement,
    trim_inbox: Statement,
    trim_delivery: Statement,
}

impl Statements {
    async fn prepare(db: &Object) -> Result<Self> {
        Ok(Self {
            expired: db.prepare_cached("DELETE FROM idempotency WHERE key = ANY($1)").await?,
            // A key that another node writes at this moment makes this wait for its commit, and then fail: the batch is run again and
            // finds it.
            keys: db
                .prepare_cached(
                    "INSERT INTO idempotency (key, body, expires_at, message, sent_at, message_expires_at, recipients)
                     SELECT * FROM unnest($1::text[], $2::bytea[], $3::bigint[], $4::uuid[], $5::bigint[], $6::bigint[],
                                          $7::bytea[])",
                )
                .await?,
            messages: db
                .prepare_cached(
                    "INSERT INTO message (id, sent_at, expires_at, brief, storage_state, sender, grp, kind, push,
                                          recipients, payload, synced, trace)
                     SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::smallint[],
                                          $6::text[], $7::text[], $8::text[], $9::bytea[], $10::bytea[], $11::bytea[],
                                          $12::boolean[], $13::text[])",
                )
                .await?,
            inbox: db
                .prepare_cached(
                    "INSERT INTO inbox (user_id, cursor, message, expires_at, push_state)
                     SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::uuid[], $4::bigint[], $5::smallint[])",
                )
                .await?,
            outbox: db
                .prepare_cached(
                    "INSERT INTO outbox (id, endpoint, due_at, message, user_id, cursor, holder)
                     SELECT * FROM unnest($1::uuid[], $2::smallint[], $3::bigint[], $4::uuid[], $5::bigint[],
                                          $6::bigint[], $7::uuid[])",
                )
                .await?,
            users: db
                .prepare_cached(
                    "UPDATE users u SET newest = t.newest
                     FROM unnest($1::bigint[], $2::bigint[]) AS t (id, newest) WHERE u.id = t.id",
                )
                .await?,
            trim_inbox: db
                .prepare_cached(
                    "DELETE FROM inbox i USING unnest($1::bigint[], $2::bigint[]) AS t (id, bound)
                     WHERE i.user_id = t.id AND i.cursor <= t.bound",
                )
                .await?,
            trim_delivery: db
                .prepare_cached(
                    "DELETE FROM delivery d USING unnest($1::bigint[], $2::bigint[]) AS t (id, bound)
                     WHERE d.user_id = t.id AND d.last <= t.bound",
                )
                .await?,
        })
    }
}
