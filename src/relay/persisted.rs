//! The way of a persisted message: one durable transaction, then the answer; live delivery and callbacks go on after it.

use super::frame::{self, Encoded, Frame, message_frame};
use super::handle::{Error, Relay};
use crate::domain::callback::CallbackState;
use crate::domain::callback::Endpoint;
use crate::domain::message::{Cursor, Draft, Message, Mode, PushWish};
use crate::domain::seat::{NodeId, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{
    Append, Appended, CallbackEntry, CallbackFilter, Leases, MessageStatus, Notice, RECIPIENTS_AT_ONCE, Recalled,
    StoreKey, Stored,
};
use crate::traces;
use std::collections::HashMap;
use tokio::time::Instant;
use uuid::Uuid;

const NO_MESSAGE: &str = "no such message: it was online-only, recalled, has expired, or never was";

impl Relay {
    pub(super) async fn send_persisted(
        &self,
        draft: Draft,
        mut users: Vec<UserId>,
        key: Option<StoreKey>,
        now: Timestamp,
    ) -> Result<Appended, Error> {
        let (ttl, push, sync_sender) = match draft.mode {
            Mode::Persisted { ttl, push, sync_sender } => (ttl, push, sync_sender),
            Mode::OnlineOnly { ttl, .. } => (ttl, PushWish::Off, false),
        };
        let message = Message {
            id: Uuid::now_v7(),
            from: draft.from,
            group: draft.to.into_group(),
            kind: draft.kind,
            payload: draft.payload,
            online_only: false,
            sent_at: now,
        };
        let callbacks = &self.0.callbacks;
        let push_due = if push == PushWish::Off { vec![] } else { self.push_due(&users, now).await };
        // The sender's own copy is never pushed: it comes after all that have a time for that.
        let synced = sync_sender && !users.contains(&message.from);
        if synced {
            users.push(message.from.clone());
        }
        let storage_callback = callbacks.is_configured(Endpoint::Storage);
        // Room is taken before the transaction, so that a row is leased to this node only if this node will hold it.
        let storage_room = if storage_callback { callbacks.reserve(Endpoint::Storage, 1) } else { None };
        let push_room = if push_due.is_empty() || users.len() > RECIPIENTS_AT_ONCE {
            None
        } else {
            callbacks.reserve(Endpoint::Push, push_due.len())
        };
        let append = Append {
            message: message.clone(),
            expires_at: now.plus(ttl),
            push,
            recipients: users,
            synced,
            storage_callback,
            lease: Leases { storage: storage_room.is_some(), push: push_room.is_some() },
            push_due: push_due.clone(),
            key,
            trace: draft.trace.as_deref().cloned(),
        };
        let span = traces::append(append.recipients.len());
        let mut appended = traces::within(span, self.0.store.append(append)).await?;
        // CONTRACT.md 10.4: all is durable from here on, and the answer may go out.
        if let Appended::New(stored, leased) = &mut appended {
            self.0.metrics.persisted_sends.inc();
            let (for_storage, for_push): (Vec<_>, Vec<_>) =
                std::mem::take(leased).into_iter().partition(|c| c.endpoint == Endpoint::Storage);
            for (endpoint, wanted, room, rows) in [
                (Endpoint::Storage, storage_callback, storage_room, for_storage),
                (Endpoint::Push, !push_due.is_empty(), push_room, for_push),
            ] {
                match room {
                    Some(room) => room.hand_over(rows),
                    None if wanted => callbacks.overflowed(endpoint),
                    None => {}
                }
            }
            self.deliver_stored(&message, stored, synced);
        }
        if let Appended::Repeat(stored) = &appended {
            self.tell_again(stored);
        }
        Ok(appended)
    }

    /// When each recipient's push is due: at once if no device is online; if that can't be known, after the grace.
    async fn push_due(&self, users: &[UserId], now: Timestamp) -> Vec<Timestamp> {
        if !self.0.callbacks.is_configured(Endpoint::Push) {
            return vec![];
        }
        let later = now.plus(self.0.callbacks.push_grace());
        match self.seats_of_all(users).await {
            Ok(seats) => seats.iter().map(|seats| if seats.is_empty() { now } else { later }).collect(),
            Err(_) => vec![later; users.len()],
        }
    }

    /// Hands a committed message to the open streams: those here get the frame, other nodes are told to read the store.
    fn deliver_stored(&self, message: &Message, stored: &Stored, synced: bool) {
        let now = Instant::now();
        let offer = |user: &UserId, cursor: Cursor, frame: &dyn Fn() -> Frame| {
            let seats = self.0.hub.seats_of(user);
            if !seats.is_empty() {
                let frame = frame();
                for seat in seats {
                    seat.put_persisted(cursor, frame.clone(), now);
                }
            }
        };
        if let [(user, cursor)] = &stored.recipients[..] {
            offer(user, *cursor, &|| message_frame(message, user, Some(*cursor)));
        } else {
            let encoded = Encoded::new(message);
            let to_others = &stored.recipients[..stored.recipients.len() - usize::from(synced)];
            for (user, cursor) in to_others {
                offer(user, *cursor, &|| encoded.for_recipient(user, Some(*cursor)));
            }
            for (user, cursor) in &stored.recipients[to_others.len()..] {
                let to: Vec<UserId> = to_others.iter().map(|(user, _)| user.clone()).collect();
                offer(user, *cursor, &|| encoded.shown_to(&to, Some(*cursor)));
            }
        }
        self.tell_other_nodes(stored.recipients.iter().map(|(user, _)| user.clone()).collect(), Notice::Stored);
    }

    /// A repeat may be all that is known of a send whose node died before it had told anybody.
    fn tell_again(&self, stored: &Stored) {
        let users: Vec<UserId> = stored.recipients.iter().map(|(user, _)| user.clone()).collect();
        self.heed(Notice::Stored(users.clone()));
        self.tell_other_nodes(users, Notice::Stored);
    }

    /// Tells the nodes on which these users have streams, in the background.
    fn tell_other_nodes(&self, users: Vec<UserId>, notice: impl Fn(Vec<UserId>) -> Notice + Send + Sync + 'static) {
        if self.0.plane.has_other_nodes() {
            let relay = self.clone();
            self.0.tasks.spawn(async move { relay.tell_nodes_of(users, notice).await });
        }
    }

    /// What can't be told is lost, and heals by the sequence rule.
    async fn tell_nodes_of(&self, users: Vec<UserId>, notice: impl Fn(Vec<UserId>) -> Notice + Send + Sync) {
        let Ok(seats) = self.0.plane.seats(&users).await else { return };
        let mut by_node: HashMap<NodeId, Vec<UserId>> = HashMap::new();
        for (user, seats) in users.iter().zip(&seats) {
            for seat in seats.iter().filter(|seat| seat.node != self.0.node) {
                let told = by_node.entry(seat.node.clone()).or_default();
                if told.last() != Some(user) {
                    told.push(user.clone());
                }
            }
        }
        for (node, users) in by_node {
            if let Err(error) = self.0.plane.tell(&node, notice(users)).await {
                tracing::debug!(node.id = %node, error = %error, "another node could not be told of a message");
            }
        }
    }

    /// Heeds what another node says.
    pub(super) fn heed(&self, notice: Notice) {
        match notice {
            Notice::Stored(users) => {
                for seat in users.iter().flat_map(|user| self.0.hub.seats_of(user)) {
                    seat.set_behind();
                }
            }
            Notice::Recalled(id, users) => self.show_recall(id, &users),
            Notice::Close(seat, bye) => {
                self.0.hub.end(&seat.user, seat.connection, bye);
            }
            Notice::Touched(seat) => self.note_touched(&seat),
        }
    }

    /// Takes a message back: when this returns, no inbox has it and no push will go (CONTRACT.md 7).
    ///
    /// # Cancel safety
    /// None: run it in a [`super::finish::Finish`].
    pub async fn recall(&self, id: Uuid) -> Result<(), Error> {
        let callbacks = &self.0.callbacks;
        let wanted = callbacks.is_configured(Endpoint::Storage);
        let room = if wanted { callbacks.reserve(Endpoint::Storage, 1) } else { None };
        let recalled = self.0.store.recall(id, wanted, room.is_some(), Timestamp::now()).await?;
        let Recalled { recipients, callback } = recalled.ok_or(Error::NotFound(NO_MESSAGE))?;
        match room {
            Some(room) => room.hand_over(callback.into_iter().collect()),
            None if wanted => callbacks.overflowed(Endpoint::Storage),
            None => {}
        }
        self.show_recall(id, &recipients);
        self.tell_other_nodes(recipients, move |users| Notice::Recalled(id, users));
        Ok(())
    }

    fn show_recall(&self, id: Uuid, users: &[UserId]) {
        let frame = frame::recall(id);
        for seat in users.iter().flat_map(|user| self.0.hub.seats_of(user)) {
            seat.put_recall(id, frame.clone());
        }
    }

    /// A persisted message and how it fares.
    pub async fn message(&self, id: Uuid) -> Result<MessageStatus, Error> {
        let found = self.0.store.message(id, Timestamp::now()).await?;
        found.ok_or(Error::NotFound(NO_MESSAGE))
    }

    /// Lists callbacks that are not done.
    pub async fn callbacks(&self, filter: CallbackFilter) -> Result<Vec<CallbackEntry>, Error> {
        Ok(self.0.store.callbacks(filter).await?)
    }

    /// Tries a failing or dead callback again, now.
    pub async fn retry_callback(&self, id: Uuid) -> Result<(), Error> {
        if !self.0.store.retry(id, Timestamp::now()).await? {
            return Err(Error::NotFound("no callback with this id is failing or dead"));
        }
        self.wake_dispatchers();
        Ok(())
    }

    /// Tries all failing or dead callbacks again, now; returns how many.
    pub async fn retry_callbacks(&self, endpoint: Option<Endpoint>, state: CallbackState) -> Result<u64, Error> {
        let count = self.0.store.retry_all(endpoint, state, Timestamp::now()).await?;
        self.wake_dispatchers();
        Ok(count)
    }

    fn wake_dispatchers(&self) {
        for endpoint in Endpoint::ALL {
            self.0.callbacks.wake(endpoint);
        }
    }
}
