//! [`Relay`], the one handle that every door holds, and its errors.

use super::before_send::BeforeSend;
use super::copies::Copies;
use super::hub::Hub;
use super::metrics::Metrics;
use super::notes::Notes;
use super::presence_news::PresenceNews;
use crate::config;
use crate::domain::message::Cursor;
use crate::domain::seat::NodeId;
use crate::ports::{Away, Ephemeral, KeyError, SeatError, Store, StoreError, TicketError};
use crate::relay::callbacks::Callbacks;
use crate::tasks::Tasks;
use crate::webhook::Webhooks;
use parking_lot::RwLock;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// The relay, cheap to clone.
#[derive(Clone)]
pub struct Relay(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) node: NodeId,
    pub(super) hub: Hub,
    pub(super) plane: Arc<dyn Ephemeral>,
    pub(super) store: Arc<dyn Store>,
    pub(super) callbacks: Arc<Callbacks>,
    pub(super) before_send: BeforeSend,
    pub(super) presence_news: PresenceNews,
    pub(super) notes: Notes,
    pub(super) groups: Copies,
    limits: RwLock<config::Limits>,
    pub(super) stream: config::Stream,
    pub(super) retention: Duration,
    /// `cluster.confirm_timeout_ms`
    pub(super) confirm_timeout: Duration,
    /// Streams may have missed what another node told: they are to be compared with the store.
    pub(super) catch_up: Notify,
    pub(super) tasks: Tasks,
    pub(super) metrics: Metrics,
    draining: AtomicBool,
    sends: AtomicUsize,
}

/// So many sends may be under way at a time; more are refused rather than kept in memory (CONTRACT.md 10.7).
const SENDS_MAX: usize = 10_000;

/// Leave to send so many messages, held until they are answered.
pub struct Admission(Relay, usize);

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.0.sends.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// What a relay is built from.
#[expect(missing_docs, reason = "said by the types")]
pub struct Parts {
    pub node: NodeId,
    pub plane: Arc<dyn Ephemeral>,
    pub store: Arc<dyn Store>,
    pub callbacks: Arc<Callbacks>,
    pub before_send: BeforeSend,
    pub presence_news: PresenceNews,
    pub limits: config::Limits,
    pub stream: config::Stream,
    /// `store.retention_s`: the longest and the usual life of a persisted message.
    pub retention: Duration,
    /// `cluster.confirm_timeout_ms`: how long another node may take to say what became of an offer.
    pub confirm_timeout: Duration,
    pub tasks: Tasks,
    pub metrics: Metrics,
}

/// Why the relay didn't do what it was asked. It knows no status codes: the doors do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Presence can't be known now; nobody was sent anything.
    #[error("presence is unknown at the moment")]
    PresenceUnavailable(#[source] Away),
    /// The store can't be asked now, or has more to do than it can hold.
    #[error("the store is unavailable at the moment")]
    StoreUnavailable(#[source] StoreError),
    /// The node is about to end.
    #[error("this node is draining")]
    Draining,
    /// There is no such thing.
    #[error("{0}")]
    NotFound(&'static str),
    /// The key's first send has not ended.
    #[error("a request with this idempotency key is being worked on")]
    KeyInProgress,
    /// The key's first send had another body.
    #[error("this idempotency key was used with another request")]
    KeyReused,
    /// The user has as many devices online as are allowed.
    #[error("the user has {0} devices online, which is the most")]
    TooManyDevices(usize),
    /// A group would have more members than may be.
    #[error("the group would have more than {0} members")]
    GroupFull(usize),
    /// The operator's own service said no, in these words.
    #[error("{0}")]
    Rejected(String),
    /// A bound of this node is reached.
    #[error("{0}")]
    Overloaded(String),
    /// An ack of what was never given out.
    #[error("the newest cursor is {newest}")]
    AckAhead {
        /// The greatest that can be acknowledged.
        newest: Cursor,
    },
}

impl From<Away> for Error {
    fn from(away: Away) -> Self {
        Self::PresenceUnavailable(away)
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::StoreUnavailable(error)
    }
}

impl From<SeatError> for Error {
    fn from(error: SeatError) -> Self {
        match error {
            SeatError::TooManyDevices(n) => Self::TooManyDevices(n),
            SeatError::Away(away) => away.into(),
        }
    }
}

impl From<KeyError> for Error {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Full => Self::Overloaded(error.to_string()),
            KeyError::Away(away) => away.into(),
        }
    }
}

impl From<TicketError> for Error {
    fn from(error: TicketError) -> Self {
        match error {
            TicketError::Full => Self::Overloaded(error.to_string()),
            TicketError::Away(away) => away.into(),
        }
    }
}

impl Relay {
    /// A relay of these parts; [`Relay::set_callbacks`] says whom it tells, and [`Relay::start`] sets its tasks going.
    pub fn new(parts: Parts) -> Self {
        let Parts {
            node,
            plane,
            store,
            callbacks,
            before_send,
            presence_news,
            limits,
            stream,
            retention,
            confirm_timeout,
            tasks,
            metrics,
        } = parts;
        Self(Arc::new(Inner {
            node,
            hub: Hub::new(&stream),
            plane,
            store,
            callbacks,
            before_send,
            presence_news,
            notes: Notes::default(),
            groups: Copies::default(),
            limits: RwLock::new(limits),
            stream,
            retention,
            confirm_timeout,
            catch_up: Notify::new(),
            tasks,
            metrics,
            draining: AtomicBool::new(false),
            sends: AtomicUsize::new(0),
        }))
    }

    /// Lets so many sends in, to be asked before their body is read.
    pub fn admit(&self, sends: usize) -> Result<Admission, Error> {
        let under_way = self.0.sends.fetch_add(sends, Ordering::Relaxed);
        let admission = Admission(self.clone(), sends);
        if under_way + sends <= SENDS_MAX {
            return Ok(admission);
        }
        Err(Error::Overloaded(format!("{SENDS_MAX} sends are under way on this node, which is the most")))
    }

    /// The name of this node.
    pub fn node(&self) -> &NodeId {
        &self.0.node
    }

    /// The bounds of requests.
    pub fn limits(&self) -> config::Limits {
        *self.0.limits.read()
    }

    /// From now on these.
    pub fn set_limits(&self, limits: config::Limits) {
        *self.0.limits.write() = limits;
    }

    /// From now on these are told and asked, by these `callbacks.*`.
    pub fn set_callbacks(&self, webhooks: Webhooks, config: &config::Callbacks) {
        let Webhooks { storage, push, presence, before_send } = webhooks;
        self.0.callbacks.set(storage, push, config);
        self.0.presence_news.set(presence, config);
        self.0.before_send.set(before_send, config);
    }

    /// `store.retention_s`
    pub fn retention(&self) -> Duration {
        self.0.retention
    }

    /// Who owns what outlives a request.
    pub fn tasks(&self) -> &Tasks {
        &self.0.tasks
    }

    /// From now on new sends and streams are refused.
    pub fn refuse_new(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    /// Whether new sends and streams are refused.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }

    pub(super) fn check_not_draining(&self) -> Result<(), Error> {
        if self.is_draining() { Err(Error::Draining) } else { Ok(()) }
    }

    /// How many streams are open on this node.
    pub fn open_streams(&self) -> usize {
        self.0.hub.len()
    }

    /// What is away now, by name; empty if all is well (CONTRACT.md 9, `/readyz`).
    pub async fn away(&self) -> Vec<&'static str> {
        let (presence, store) = (self.0.plane.check().await.is_err(), self.0.store.check().await.is_err());
        self.0.metrics.presence_away.set(presence.into());
        self.0.metrics.store_away.set(store.into());
        [("presence", presence), ("store", store)].into_iter().filter_map(|(what, away)| away.then_some(what)).collect()
    }
}
