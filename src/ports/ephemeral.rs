//! The ephemeral plane: who is online where, and the way between nodes.

use super::{BodyHash, Cause};
use crate::domain::seat::{DeviceId, DeviceState, NodeId, Presence, SeatInfo, UserId};
use crate::domain::time::Timestamp;
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// The ephemeral plane can't be asked now, so presence is unknown: never "offline".
#[derive(Debug, thiserror::Error)]
#[error("the ephemeral plane is away")]
pub struct Away(#[source] pub Cause);

/// Why a device can't be seated.
#[derive(Debug, thiserror::Error)]
pub enum SeatError {
    /// The user has as many devices online as are allowed.
    #[error("the user has {0} devices online already")]
    TooManyDevices(usize),
    /// See [`Away`].
    #[error(transparent)]
    Away(#[from] Away),
}

/// Why an offer has no verdict. This is the fallthrough rule in the type system.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OfferError {
    /// Certainly not taken, now or later: the next seat may be tried.
    #[error("certainly not taken")]
    NotTaken,
    /// It may have been taken: no other seat may be tried.
    #[error("not known whether it was taken")]
    Unknown,
}

/// The result of registering a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seated {
    /// The seat of the same device that it replaces.
    pub replaced: Option<SeatInfo>,
    /// The user was not said to be here before, and is from now on: the presence version to tell that with.
    pub arrival: Option<u64>,
}

/// The result of withdrawing a seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unseated {
    /// It wasn't there.
    Absent,
    /// The user has others.
    One,
    /// It was the user's last; the presence version since then.
    Last(u64),
}

/// Who is online where, idempotency of online-only sends, and stream tickets. All of it may vanish with the plane.
#[async_trait]
pub trait Directory: Send + Sync + 'static {
    /// Registers an open stream.
    ///
    /// A `max_devices`-th+1 device of a user is refused; a replacement never is.
    async fn seat(&self, seat: SeatInfo, max_devices: usize) -> Result<Seated, SeatError>;

    /// Withdraws this very seat, by its node and connection number: a late goodbye never removes a successor. It may be another node's, as
    /// when a device is kicked.
    async fn unseat(&self, seat: &SeatInfo) -> Result<Unseated, Away>;

    /// Takes the news that a user has gone, to be told to the operator: true if the user was said to be here, has no seat, and nothing has
    /// changed since `version`. Of all who ask, on whichever node, one gets it. From then on the next seat is an arrival again.
    async fn take_departure(&self, user: &UserId, version: u64) -> Result<bool, Away>;

    /// Notes activity of a device, and its new state if there is one. The seat as it is now; `None` if the device has none.
    async fn touch(
        &self,
        user: &UserId,
        device: &DeviceId,
        state: Option<DeviceState>,
        at: Timestamp,
    ) -> Result<Option<SeatInfo>, Away>;

    /// The presence of each user, in order. Seats of nodes that are known to be dead are left out.
    async fn locate(&self, users: &[UserId]) -> Result<Vec<Presence>, Away>;

    /// The seats alone of each user, in order: of many users it takes less than their presences.
    async fn seats(&self, users: &[UserId]) -> Result<Vec<Vec<SeatInfo>>, Away> {
        Ok(self.locate(users).await?.into_iter().map(|presence| presence.seats).collect())
    }

    /// Whether who has no seat is offline. Not while the plane has forgotten everything, and nodes are about to say it again.
    fn knows_all(&self) -> bool;

    /// Takes an idempotency key for an online-only send before anything is offered.
    async fn claim_key(&self, key: &str, claim: KeyClaim) -> Result<Claimed, KeyError>;

    /// Remembers the answer of a claimed key; `None` gives the key back, as nothing was sent.
    async fn settle_key(&self, key: &str, answer: Option<Bytes>) -> Result<(), Away>;

    /// What is known of a key, without taking it: the hash of its body.
    async fn peek_key(&self, key: &str) -> Result<Option<BodyHash>, Away>;

    /// Keeps a ticket for one use until it expires.
    async fn put_ticket(&self, digest: [u8; 32], ticket: Ticket) -> Result<(), TicketError>;

    /// Takes a ticket out; `None` if there is none, or it has expired, or it was used.
    async fn take_ticket(&self, digest: [u8; 32], now: Timestamp) -> Result<Option<Ticket>, Away>;

    /// Whether presence can be asked now, and this node hears what others send it.
    async fn check(&self) -> Result<(), Away>;
}

/// What an idempotency key is taken with.
#[derive(Clone, Debug)]
pub struct KeyClaim {
    /// Of the request's body.
    pub body: BodyHash,
    /// From when on the key may be used anew.
    pub expires_at: Timestamp,
    /// The id of the message that is about to be sent.
    pub id: Uuid,
    /// Now, and when that message was accepted.
    pub now: Timestamp,
}

/// The result of claiming a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// It is yours: send, then settle it.
    New,
    /// The first answer to the same body.
    Answered(Bytes),
    /// The same body is being sent at this moment.
    InProgress,
    /// It was used with another body.
    OtherBody,
    /// The node that was sending the same body died before it knew the outcome: it is never sent again.
    Abandoned {
        /// Of the message.
        id: Uuid,
        /// When it was accepted.
        sent_at: Timestamp,
    },
}

/// Why a key can't be claimed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// As many keys as may be remembered are remembered.
    #[error("too many idempotency keys are remembered")]
    Full,
    /// See [`Away`].
    #[error(transparent)]
    Away(#[from] Away),
}

/// Why a ticket can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum TicketError {
    /// As many tickets as may be kept are kept.
    #[error("too many tickets wait to be used")]
    Full,
    /// See [`Away`].
    #[error(transparent)]
    Away(#[from] Away),
}

/// The right to open one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// For whom.
    pub user: UserId,
    /// For which device, if the token named one.
    pub device: Option<DeviceId>,
    /// The ticket is good until then.
    pub expires_at: Timestamp,
    /// The stream ends then: the end of the token that it was drawn on.
    pub stream_until: Timestamp,
}

/// An online-only frame on its way to a seat of another node.
#[derive(Clone, Debug)]
pub struct RemoteOffer {
    /// The seat, by its connection number.
    pub seat: SeatInfo,
    /// The encoded event.
    pub frame: Bytes,
    /// How long it may wait in the seat's queue.
    pub ttl: Duration,
    /// How long it may wait while the user has another device; then it is taken back.
    pub patience: Option<Duration>,
    /// See [`crate::domain::message::Mode::OnlineOnly`].
    pub collapse_key: Option<Arc<str>>,
}

/// What one node tells another without waiting for an answer.
#[derive(Clone, Debug)]
pub enum Notice {
    /// These users have new persisted messages: read the store.
    Stored(Vec<UserId>),
    /// This message is gone from these users' inboxes.
    Recalled(Uuid, Vec<UserId>),
    /// End this stream: it was replaced or kicked.
    Close(SeatInfo, Bye),
    /// A device was active, or said that it is looked at or not, through another node: its seat as the directory now has it.
    Touched(SeatInfo),
}

/// Why a stream ends (CONTRACT.md 4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "each is the contract's word of its name")]
pub enum Bye {
    Replaced,
    TokenExpired,
    Kicked,
    Draining,
    Rotate,
    Unauthorized,
}

impl Bye {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::TokenExpired => "token_expired",
            Self::Kicked => "kicked",
            Self::Draining => "draining",
            Self::Rotate => "rotate",
            Self::Unauthorized => "unauthorized",
        }
    }
}

/// Why a user is not here any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// The last stream has ended.
    Closed,
    /// The last device was sent away by the operator.
    Kicked,
    /// The node that held the last stream has died.
    LeaseExpired,
}

impl Departure {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Kicked => "kicked",
            Self::LeaseExpired => "lease_expired",
        }
    }
}

/// What became of an offered frame at a seat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Handed to the stream.
    Taken,
    /// Certainly not, and never will be.
    Refused(Refusal),
}

/// Why a seat did not take a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Its queue has no room.
    Full,
    /// The stream has ended, or ended before its turn came.
    Closed,
    /// It waited too long.
    Expired,
    /// A newer one with its collapse key took its place.
    Superseded,
    /// It was taken back by the sender.
    Revoked,
}

/// The way between nodes.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// Offers a frame to a seat of another node and waits for the verdict.
    async fn offer(&self, node: &NodeId, offer: RemoteOffer) -> Result<Verdict, OfferError>;

    /// Tells another node something; what can't be told is lost, and heals by the rules of the streams.
    async fn tell(&self, node: &NodeId, notice: Notice) -> Result<(), Away>;

    /// False where this process is all there is, so that nobody need be told of anything.
    fn has_other_nodes(&self) -> bool;

    /// From now on offers and notices for this node go to `door`.
    async fn listen(&self, node: &NodeId, door: Arc<dyn NodeDoor>) -> Result<(), Away>;

    /// This node ends: what it still has in the plane is given back, as far as it can be reached.
    async fn leave(&self, node: &NodeId);
}

/// Where a node takes in what the bus brings.
#[async_trait]
pub trait NodeDoor: Send + Sync + 'static {
    /// Offers to a seat of this node.
    async fn offered(&self, offer: RemoteOffer) -> Result<Verdict, OfferError>;
    /// Heeds a notice.
    async fn noticed(&self, notice: Notice);
    /// Every seat that this node holds now: what the directory should say of it. The plane asks after it may have forgotten some.
    fn seats(&self) -> Vec<SeatInfo>;
    /// Whether this very seat is still held.
    fn holds(&self, seat: &SeatInfo) -> bool;
    /// The plane has withdrawn a user's last seat, whose node died or could not do it in time: this node sees to what follows.
    fn departed(&self, user: &UserId, device: &DeviceId, version: u64, why: Departure);
    /// The plane is reachable again after it was not: notices may have been lost meanwhile.
    fn resumed(&self);
}

/// The ephemeral plane as one.
pub trait Ephemeral: Directory + Bus {}
impl<T: Directory + Bus> Ephemeral for T {}
