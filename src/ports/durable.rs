//! The durable plane: persisted messages, inboxes, groups, and callbacks that are to be made.

use super::{BodyHash, Cause};
use crate::domain::callback::{Callback, CallbackState, Endpoint, LastError, Settlement};
use crate::domain::message::{Cursor, Message, PushWish};
use crate::domain::seat::{DeviceId, GroupId, UserId};
use crate::domain::time::Timestamp;
use crate::domain::trace::TraceContext;
use async_trait::async_trait;
use uuid::Uuid;

/// Why the durable plane didn't do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk or the server failed. Nothing of the call is durable, unless a commit's outcome was lost, or it was a send to many that had
    /// been begun: that is completed as soon as it can be. A repeat with the same idempotency key is safe.
    #[error("the store is away")]
    Unavailable(#[source] Cause),
    /// Its queue is full: try again later.
    #[error("the store has more to write than it can hold")]
    Overloaded,
}

/// A persisted message to more recipients is written part by part, each of so many.
pub const RECIPIENTS_AT_ONCE: usize = 500;

/// A persisted message to be appended, with all that must be durable with it.
#[derive(Clone, Debug)]
pub struct Append {
    /// The message.
    pub message: Message,
    /// Kept until then.
    pub expires_at: Timestamp,
    /// What the push callback is told.
    pub push: PushWish,
    /// Users without duplicates.
    pub recipients: Vec<UserId>,
    /// The sender is the last of the recipients, only to have it in its own inbox too: there it shows to whom it was sent.
    pub synced: bool,
    /// A storage callback is to be made.
    pub storage_callback: bool,
    /// When each recipient's push is due, in their order; those beyond its end get none.
    pub push_due: Vec<Timestamp>,
    /// Lease the new callbacks to the caller, per endpoint, for handing them to a dispatcher at once; but no pushes to more than
    /// [`RECIPIENTS_AT_ONCE`].
    pub lease: Leases,
    /// The sender's idempotency key.
    pub key: Option<StoreKey>,
    /// Comes back with the content of the callbacks.
    pub trace: Option<TraceContext>,
}

/// For which endpoints the caller has room for new callbacks.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "one per endpoint")]
pub struct Leases {
    pub storage: bool,
    pub push: bool,
}

/// An idempotency key of a persisted send.
#[derive(Clone, Debug)]
pub struct StoreKey {
    /// The caller's text.
    pub key: String,
    /// Of the request's body.
    pub body: BodyHash,
    /// From when on the key may be used anew.
    pub expires_at: Timestamp,
}

/// What a send answers, and what a repeat of it answers again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Of the message.
    pub id: Uuid,
    /// When it was accepted.
    pub sent_at: Timestamp,
    /// Kept until then.
    pub expires_at: Timestamp,
    /// Its place in each inbox, in the order of the recipients.
    pub recipients: Vec<(UserId, Cursor)>,
}

/// The result of an append.
#[derive(Clone, Debug)]
pub enum Appended {
    /// It is durable. The callbacks are those leased to the caller.
    New(Stored, Vec<Callback>),
    /// The key was used with the same body: the first answer.
    Repeat(Stored),
    /// The key was used with the same body, and that first send is still being written.
    InProgress,
    /// The key was used with another body.
    OtherBody,
}

/// A message in an inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboxEntry {
    /// Its place.
    pub cursor: Cursor,
    /// What stands there.
    pub message: Message,
    /// In the sender's own inbox by [`Append::synced`]: to whom it was sent. Elsewhere empty.
    pub to: Vec<UserId>,
}

/// What a recall has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recalled {
    /// Whose inboxes it was in.
    pub recipients: Vec<UserId>,
    /// The callback, if it was leased to the caller.
    pub callback: Option<Callback>,
}

/// A change of a group's members.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "two lists, without duplicates and without common members")]
pub struct MemberChange {
    pub add: Vec<UserId>,
    pub remove: Vec<UserId>,
}

/// The result of changing a group's members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Done.
    Done {
        /// Who were no members before.
        added: usize,
        /// Who were.
        removed: usize,
        /// How many there are now.
        members: usize,
    },
    /// There would be more members than may be: nothing was changed.
    TooMany,
}

/// A group that has members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupState {
    /// Another one after every change, also when the group was gone meanwhile.
    pub version: u64,
    /// How many.
    pub members: usize,
}

/// A part of an inbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Ascending. Holes of recalled and expired messages are left out.
    pub entries: Vec<InboxEntry>,
    /// All up to here has been shown, holes included: at least `after`, and the newest number if nothing follows.
    pub next: Cursor,
    /// Something follows `next`.
    pub more: bool,
}

/// Bounds of a page: it ends at whichever is reached first, but has at least one entry if there is one.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "two bounds")]
pub struct PageLimit {
    pub messages: usize,
    pub payload_bytes: usize,
}

/// Where a device stands in its user's inbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The device has acknowledged all up to here; `None` if it never has.
    pub acked: Option<Cursor>,
    /// All up to here is gone, by expiry or `inbox_max` (not by recall alone): a start before it has a gap.
    pub lost_to: Cursor,
    /// The newest number given out.
    pub newest: Cursor,
}

/// The result of an ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acked {
    /// Done; an ack that would move backward does nothing.
    Done,
    /// No message with this number has been given out yet.
    Ahead {
        /// The newest that has.
        newest: Cursor,
    },
}

/// What streams have seen of a device since the last note; gathered, so that one write serves many streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNote {
    /// Whose device.
    pub user: UserId,
    /// Which.
    pub device: DeviceId,
    /// It was online at this time.
    pub seen_at: Timestamp,
    /// Persisted messages `(after, to]` were handed to it.
    pub delivered: Option<(Cursor, Cursor)>,
}

/// A callback's state and how many attempts it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "said by the types")]
pub struct Progress {
    pub state: CallbackState,
    pub attempts: u32,
}

/// How a persisted message fares at one recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecipientStatus {
    /// The recipient.
    pub user: UserId,
    /// Its place in the inbox.
    pub cursor: Cursor,
    /// Devices whose stream it was handed to.
    pub delivered_to: Vec<DeviceId>,
    /// Devices that acknowledged it.
    pub acked_by: Vec<DeviceId>,
    /// Its push callback.
    pub push: Progress,
}

/// A persisted message afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageStatus {
    /// The message.
    pub message: Message,
    /// Kept until then.
    pub expires_at: Timestamp,
    /// See [`Append::synced`].
    pub synced: bool,
    /// Per recipient.
    pub recipients: Vec<RecipientStatus>,
    /// Its storage callback.
    pub storage: Progress,
}

/// What a leased callback has to say at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallbackContent {
    /// `message.stored`.
    Stored {
        /// The message.
        message: Message,
        /// Kept until then.
        expires_at: Timestamp,
        /// See [`Append::synced`].
        synced: bool,
        /// Its place in each inbox.
        recipients: Vec<(UserId, Cursor)>,
        /// As it was appended.
        trace: Option<TraceContext>,
    },
    /// `message.recalled`.
    Recalled,
    /// `message.push`.
    Push {
        /// The message.
        message: Message,
        /// Kept until then.
        expires_at: Timestamp,
        /// What the sender wants pushed; never [`PushWish::Off`].
        push: PushWish,
        /// Messages in the recipient's inbox after the furthest ack of any of their devices.
        unread: u64,
        /// The recipient's known devices, and when each was last online.
        devices: Vec<(DeviceId, Timestamp)>,
        /// As it was appended.
        trace: Option<TraceContext>,
    },
    /// Nothing: a device has taken or acknowledged the message, or it is gone.
    NotNeeded,
}

/// A callback as the operator lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallbackEntry {
    /// The row.
    pub callback: Callback,
    /// `waiting`, `failing` or `dead`.
    pub state: CallbackState,
    /// When it was made.
    pub created_at: Timestamp,
    /// Of the last attempt that failed.
    pub last_error: Option<LastError>,
}

/// Which callbacks to list.
#[derive(Clone, Debug)]
pub struct CallbackFilter {
    /// Of this endpoint only.
    pub endpoint: Option<Endpoint>,
    /// In this state only: `waiting`, `failing` or `dead`; others match nothing.
    pub state: Option<CallbackState>,
    /// Those after this id.
    pub after: Option<Uuid>,
    /// At most so many.
    pub limit: usize,
}

/// What an endpoint still has to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Waiting or failing.
    pub pending: u64,
    /// Given up.
    pub dead: u64,
    /// When the oldest pending one was due; `None` if none is due.
    pub oldest_due: Option<Timestamp>,
}

/// The durable plane. What a call returned `Ok` for survives `kill -9` at the next instant (CONTRACT.md 10.4).
///
/// # Cancel safety
/// A write that was handed in happens even if its future is dropped.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Makes a message, its place in every inbox and its callbacks durable, all or nothing. Numbers are contiguous per user, and their
    /// order is the order of committing. A send to more than [`RECIPIENTS_AT_ONCE`] is written part by part: once it has begun, it is certain that all get it, though
    /// not all at the same time, and its storage callback is made when all have it.
    async fn append(&self, new: Append) -> Result<Appended, StoreError>;

    /// A persisted message and how it fares; `None` if it never was, was recalled or has expired.
    async fn message(&self, id: Uuid, now: Timestamp) -> Result<Option<MessageStatus>, StoreError>;

    /// Takes a message out of every inbox (CONTRACT.md 7): its numbers become holes. With `callback`, a storage callback about it is made, and
    /// with `lease` that is leased to the caller. `None` if there is no such message, or not any more. A storage callback about the message
    /// itself that is still pending keeps the message, for that callback alone.
    async fn recall(
        &self,
        id: Uuid,
        callback: bool,
        lease: bool,
        now: Timestamp,
    ) -> Result<Option<Recalled>, StoreError>;

    /// Changes a group's members, all or nothing. A group exists while it has members; it may have `max`.
    async fn change_members(&self, group: &GroupId, change: MemberChange, max: usize) -> Result<Changed, StoreError>;

    /// Removes all members. False if there were none.
    async fn delete_group(&self, group: &GroupId) -> Result<bool, StoreError>;

    /// A group, if it has members.
    async fn group(&self, group: &GroupId) -> Result<Option<GroupState>, StoreError>;

    /// At most so many of a group's members, in the order of their names' bytes, after this one.
    async fn members(&self, group: &GroupId, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, StoreError>;

    /// The hash that an idempotency key was used with, if it was.
    async fn peek_key(&self, key: &str, now: Timestamp) -> Result<Option<BodyHash>, StoreError>;

    /// A part of an inbox, after `after`.
    async fn page(&self, user: &UserId, after: Cursor, limit: PageLimit, now: Timestamp) -> Result<Page, StoreError>;

    /// Where a device stands.
    async fn position(&self, user: &UserId, device: &DeviceId, now: Timestamp) -> Result<Position, StoreError>;

    /// The newest number of each user, in order.
    async fn newest(&self, users: &[UserId]) -> Result<Vec<Cursor>, StoreError>;

    /// The device has processed all up to `cursor`.
    async fn ack(&self, user: &UserId, device: &DeviceId, cursor: Cursor, now: Timestamp) -> Result<Acked, StoreError>;

    /// Notes what streams have seen. Losing a note to a crash may repeat a push, never lose a message.
    async fn note_devices(&self, notes: Vec<DeviceNote>) -> Result<(), StoreError>;

    /// Leases callbacks of an endpoint that are due and not leased, oldest first. A lease ends by [`Store::settle`], or with its holder.
    async fn lease_due(&self, endpoint: Endpoint, now: Timestamp, limit: usize) -> Result<Vec<Callback>, StoreError>;

    /// What each leased callback has to say now, in order.
    async fn content(&self, callbacks: &[Callback], now: Timestamp) -> Result<Vec<CallbackContent>, StoreError>;

    /// Writes decisions down and ends the leases.
    async fn settle(&self, settlements: Vec<Settlement>, now: Timestamp) -> Result<(), StoreError>;

    /// Lists callbacks that are waiting, failing or dead, in the order of their ids.
    async fn callbacks(&self, filter: CallbackFilter) -> Result<Vec<CallbackEntry>, StoreError>;

    /// Makes a failing or dead callback due now, with its attempts counted anew. False if there is none with this id, or it is leased.
    async fn retry(&self, id: Uuid, now: Timestamp) -> Result<bool, StoreError>;

    /// The same for all of an endpoint (or all endpoints) in a state, `failing` or `dead`; returns how many.
    async fn retry_all(
        &self,
        endpoint: Option<Endpoint>,
        state: CallbackState,
        now: Timestamp,
    ) -> Result<u64, StoreError>;

    /// What an endpoint still has to be told.
    async fn backlog(&self, endpoint: Endpoint, now: Timestamp) -> Result<Backlog, StoreError>;

    /// Removes a bounded bite of what has expired; returns whether there may be more. A message whose storage callback is still
    /// pending leaves the inboxes but is kept for the callback, at most until the store's retention.
    async fn sweep(&self, now: Timestamp) -> Result<bool, StoreError>;

    /// Whether it can write now.
    async fn check(&self) -> Result<(), StoreError>;

    /// Does what was handed in, and refuses what comes later.
    async fn close(&self);
}
