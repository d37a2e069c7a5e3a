//! A callback: one event that the operator's endpoint must be told (CONTRACT.md 8), and how far that is.

use super::message::Cursor;
use super::seat::UserId;
use super::time::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The operator's URLs that get durable callbacks, each with a dispatcher of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// `callbacks.storage.url`: every persisted message.
    Storage,
    /// `callbacks.push.url`: per recipient that no device took it for.
    Push,
}

impl Endpoint {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Storage, Self::Push];

    /// The word on the wire, in the store's rows and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Storage => "storage",
            Self::Push => "push",
        }
    }
}

/// How far a callback is (CONTRACT.md 7).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CallbackState {
    /// It was due for a push, but a device has taken the message, or it is gone.
    NotNeeded,
    /// It has not been attempted yet.
    Waiting,
    /// The endpoint has accepted it.
    Sent,
    /// An attempt failed, another will follow.
    Failing,
    /// Given up: only a retry by the operator moves it.
    Dead,
    /// No such callback is wanted: no URL is configured, or the message said `push: false`.
    Off,
}

/// A callback row as a dispatcher holds it. The body is made from the store at each attempt, never kept in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Callback {
    /// UUIDv7; the `webhook-id` of every attempt, unless it is told in a batch with others.
    pub id: Uuid,
    /// Where it goes.
    pub endpoint: Endpoint,
    /// The message that it is about.
    pub message: Uuid,
    /// Storage: the message was recalled; else it was stored.
    pub recalled: bool,
    /// Push: the recipient and the place in its inbox.
    pub recipient: Option<(UserId, Cursor)>,
    /// How many attempts count against the schedule so far.
    pub attempts: u32,
    /// When the next attempt is due.
    pub due_at: Timestamp,
}

/// What an attempt that didn't succeed left behind, for the operator to read.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LastError {
    /// The HTTP status, if there was an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// In words: the kind of failure, and the beginning of the answer's text (at most 1 KiB).
    pub detail: String,
}

/// What a dispatcher decides about a leased callback.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Accepted by the endpoint.
    Sent,
    /// Nothing to tell: see [`CallbackState::NotNeeded`].
    NotNeeded,
    /// To be tried again at this time.
    Retry(Timestamp, LastError),
    /// No more attempts.
    Dead(LastError),
    /// Not attempted, or attempted in a way that doesn't count: due again at this time, as it was. An error is noted if there is one.
    Release(Timestamp, Option<LastError>),
}

/// A [`Decision`] on one callback.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settlement {
    /// The callback as it was leased.
    pub callback: Callback,
    /// Attempts that now count against the schedule.
    pub attempts: u32,
    /// What is to become of it.
    pub decision: Decision,
}
