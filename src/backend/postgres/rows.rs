//! The rows that sends write: messages, places in inboxes, callbacks and idempotency keys. Each table's are gathered by column, and go to the
//! server at once.

use super::columns::{Result, cursor};
use super::connect::Failure;
use super::writer::Rules;
use crate::backend::durable::forms::{endpoint_number, number, push_column, state_number};
use crate::backend::durable::recipients::Spot;
use crate::domain::callback::{CallbackState, Endpoint};
use crate::domain::message::Cursor;
use crate::domain::seat::UserId;
use crate::domain::time::Timestamp;
use crate::domain::trace::TraceContext;
use crate::ports::{Append, StoreKey};
use deadpool_postgres::Object;
use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;
use tokio::join;
use tokio_postgres::{Row, Statement};
use uuid::Uuid;

/// What a statement did: so many rows.
type Executed = std::result::Result<u64, tokio_postgres::Error>;

/// An inbox is trimmed at every so-manieth message, as removing many neighbours at once costs about as much as removing one. Readers
/// hide what is beyond the bound until then.
const TRIM_EVERY: u64 = 32;

/// Users whose rows are locked, by name: the row's id, and the newest number.
#[derive(Default)]
pub(super) struct Locked<'a>(BTreeMap<&'a str, (i64, Cursor)>);

impl<'a> Locked<'a> {
    /// From the rows of [`Statements::lock`].
    pub fn read(rows: &'a [Row]) -> Result<Self> {
        rows.iter()
            .map(|row| Ok((row.try_get(0)?, (row.try_get(1)?, cursor(row, 2)?))))
            .collect::<Result<_>>()
            .map(Self)
    }

    /// The next place in a user's inbox.
    pub fn draw(&mut self, user: &UserId) -> Result<Spot> {
        let (id, newest) = self.0.get_mut(user.as_str()).ok_or(Failure::Overtaken)?;
        *newest = newest.next();
        Ok((*id, *newest))
    }
}

/// The rows that a batch writes, by column.
#[derive(Default)]
pub(super) struct Rows<'a> {
    expired_keys: Vec<&'a str>,
    expired_at: Vec<i64>,
    keys: BTreeMap<&'a str, (&'a StoreKey, &'a Append, Vec<u8>)>,
    messages: Messages<'a>,
    inbox: Inbox,
    pub outbox: Outbox,
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

/// New callbacks.
#[derive(Default)]
pub(super) struct Outbox {
    id: Vec<Uuid>,
    endpoint: Vec<i16>,
    due_at: Vec<i64>,
    message: Vec<Uuid>,
    user: Vec<Option<i64>>,
    cursor: Vec<Option<i64>>,
    holder: Vec<Option<Uuid>>,
}

impl<'a> Rows<'a> {
    /// With this list of recipients.
    pub fn add_message(&mut self, new: &'a Append, list: Vec<u8>, rules: Rules) {
        let (rows, message) = (&mut self.messages, &new.message);
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
    }

    /// With this list of recipients in its answer.
    pub fn add_key(&mut self, key: &'a StoreKey, new: &'a Append, list: Vec<u8>) {
        self.keys.insert(&key.key, (key, new, list));
    }

    /// The key may have been used before: what expired by this time makes room.
    pub fn expire_key(&mut self, key: &'a StoreKey, now: Timestamp) {
        self.expired_keys.push(&key.key);
        self.expired_at.push(now.as_ms());
    }

    /// The inbox rows at these places, of which the first `pushed` get a push.
    pub fn add_places(
        &mut self,
        (message, expires_at): (Uuid, Timestamp),
        places: &[Spot],
        pushed: usize,
        rules: Rules,
    ) {
        for (n, &(user, cursor)) in places.iter().enumerate() {
            let push = if n < pushed { CallbackState::Waiting } else { CallbackState::Off };
            self.inbox.user.push(user);
            self.inbox.cursor.push(number(cursor));
            self.inbox.message.push(message);
            self.inbox.expires_at.push(expires_at.as_ms());
            self.inbox.push_state.push(state_number(push));
            if cursor.get() > rules.inbox_max && cursor.get().is_multiple_of(TRIM_EVERY) {
                self.trimmed.push(user);
                self.trimmed_to.push(number(Cursor::new(cursor.get() - rules.inbox_max)));
            }
        }
    }

    /// The newest numbers of those who got one.
    pub fn draw_up_to(&mut self, users: &Locked<'_>) {
        let drawn: BTreeSet<i64> = self.inbox.user.iter().copied().collect();
        for (id, newest) in users.0.values().filter(|(id, _)| drawn.contains(id)) {
            self.users.push(*id);
            self.newest.push(number(*newest));
        }
    }

    /// Everything and the commit, sent at once. If one fails, so does the commit.
    pub async fn write(&mut self, db: &Object, statements: &Statements) -> Result<()> {
        let keys = Keys::from(take(&mut self.keys));
        let Self {
            expired_keys, expired_at, messages: m, inbox: i, outbox: o, users, newest, trimmed, trimmed_to, ..
        } = self;
        let (expired, keys, messages, inbox, outbox, users, trimmed_inbox, trimmed_delivery, committed) = join!(
            biased;
            async {
                if expired_keys.is_empty() { Ok(0) } else { db.execute(&statements.expired, &[expired_keys, expired_at]).await }
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
        if self.id.is_empty() {
            return Ok(0);
        }
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
    pub async fn write(&self, db: &Object, statement: &Statement) -> Executed {
        if self.id.is_empty() {
            return Ok(0);
        }
        let Self { id, endpoint, due_at, message, user, cursor, holder } = self;
        db.execute(statement, &[id, endpoint, due_at, message, user, cursor, holder]).await
    }

    /// With its endpoint, when it is due, and who holds it; a push with the place in its recipient's inbox.
    pub fn add(
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
pub(super) struct Statements {
    /// Locks users, by their names: for [`Locked::read`].
    pub lock: Statement,
    expired: Statement,
    keys: Statement,
    messages: Statement,
    inbox: Statement,
    pub outbox: Statement,
    users: Statement,
    trim_inbox: Statement,
    trim_delivery: Statement,
}

impl Statements {
    pub async fn prepare(db: &Object) -> Result<Self> {
        Ok(Self {
            lock: db
                .prepare_cached(
                    "SELECT name, id, newest FROM users WHERE name = ANY($1) ORDER BY name FOR NO KEY UPDATE",
                )
                .await?,
            // Not one that another node has used anew since it was looked at.
            expired: db
                .prepare_cached(
                    "DELETE FROM idempotency i USING unnest($1::text[], $2::bigint[]) AS t (key, at)
                     WHERE i.key = t.key AND i.expires_at <= t.at",
                )
                .await?,
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
            // A row that is being recalled, perhaps with many others, isn't waited for: the next trimming removes it.
            trim_inbox: db
                .prepare_cached(
                    "DELETE FROM inbox i USING (
                         SELECT o.user_id, o.cursor, o.message FROM unnest($1::bigint[], $2::bigint[]) AS t (id, bound)
                         JOIN inbox o ON o.user_id = t.id AND o.cursor <= t.bound FOR UPDATE OF o SKIP LOCKED) old
                     WHERE i.user_id = old.user_id AND i.cursor = old.cursor AND i.message = old.message",
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
