//! The ephemeral plane of many nodes, in Redis: presence, keys and tickets as keys, and one channel per node as the way between them.
//!
//! `docs/architecture.md`, "Redis: presence and the bus", tells how the files here work together.

mod bus;
mod doctor;
mod inbox;
mod lease;
mod link;
mod lua;
mod metrics;
mod names;
mod once;
mod reconcile;
mod seats;
mod session;
mod wire;

#[cfg(test)]
mod tests;

pub use doctor::examine;

use crate::config;
use crate::domain::seat::{DeviceId, DeviceState, NodeId, Presence, SeatInfo, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{
    Away, BodyHash, Bus, Cause, Claimed, Directory, KeyClaim, KeyError, NodeDoor, Notice, OfferError, RemoteOffer,
    SeatError, Seated, Ticket, TicketError, Unseated, Verdict,
};
use crate::tasks::Tasks;
use async_trait::async_trait;
use bus::{DEAF_AFTER, Outbox};
use bytes::Bytes;
use inbox::{Inbox, WAITING_ENVELOPES};
use lease::{Roll, Run, Standing};
use link::{Link, Server};
use metrics::Metrics;
use names::Names;
use once::Late;
use parking_lot::{Mutex, RwLock};
use prometheus_client::registry::Registry;
use session::Session;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// What Redis has not answered by then it is taken not to answer.
const SLOW: Duration = Duration::from_millis(500);
/// At the start, Redis is waited for so long.
const START_PATIENCE: Duration = Duration::from_secs(5);
/// How long giving all back may take at the end; what is left ends with the lease.
const LAST_WAIT: Duration = Duration::from_secs(2);
/// Between two looks at whether another process has this node's name.
const NAME_PAUSE: Duration = Duration::from_millis(250);

/// See the module's text.
pub struct RedisPlane(Arc<Plane>);

struct Plane {
    server: Server,
    names: Names,
    run: Run,
    lease: Duration,
    /// No other node will ever share this Redis.
    is_alone: bool,
    /// `None` while Redis is away: then everything fails at once, and nothing queues.
    link: RwLock<Option<Link>>,
    standing: Mutex<Standing>,
    roll: watch::Sender<Roll>,
    rolls_begun: AtomicU64,
    nodes_wanted: Notify,
    /// The directory is to be compared with the streams that this node holds.
    reconcile: Notify,
    /// All streams have just been seated.
    seated: Notify,
    door: OnceLock<Arc<dyn NodeDoor>>,
    outbox: Outbox,
    inbox: Inbox,
    /// Until this node listens.
    envelopes: Mutex<Option<mpsc::Receiver<Bytes>>>,
    late: Mutex<Late>,
    left: CancellationToken,
    metrics: Metrics,
    tasks: Tasks,
}

fn away(cause: impl Into<Cause>) -> Away {
    Away(cause.into())
}

impl RedisPlane {
    /// Checks that Redis is there, and fit. The plane can be asked once its node listens.
    pub async fn open(
        redis: &config::Redis,
        cluster: &config::Cluster,
        tasks: &Tasks,
        registry: &mut Registry,
    ) -> Result<Self, Away> {
        let server = Server::new(redis).map_err(away)?;
        session::first_contact(&server, START_PATIENCE).await.map_err(away)?;
        let (send, envelopes) = mpsc::channel(WAITING_ENVELOPES);
        Ok(Self(Arc::new(Plane {
            server,
            names: Names::new(&redis.prefix),
            run: Run::new(cluster.node.clone()),
            lease: cluster.lease,
            is_alone: cluster.single_node,
            link: RwLock::new(None),
            standing: Mutex::default(),
            roll: watch::Sender::new(Roll::unknown()),
            rolls_begun: AtomicU64::new(0),
            nodes_wanted: Notify::new(),
            reconcile: Notify::new(),
            seated: Notify::new(),
            door: OnceLock::new(),
            outbox: Outbox::new(),
            inbox: Inbox::new(send),
            envelopes: Mutex::new(Some(envelopes)),
            late: Mutex::default(),
            left: CancellationToken::new(),
            metrics: Metrics::new(registry),
            tasks: tasks.clone(),
        })))
    }
}

impl Plane {
    fn link(&self) -> Result<Link, Away> {
        self.link.read().clone().ok_or_else(|| away("there is no connection to Redis"))
    }

    fn door(&self) -> Option<Arc<dyn NodeDoor>> {
        self.door.get().cloned()
    }

    /// The process stops, or this node has left.
    async fn ended(&self) {
        tokio::select! {
            () = self.tasks.halt.cancelled() => {}
            () = self.left.cancelled() => {}
        }
    }

    /// Comes in under this node's name, with a lease and with all its streams seated. What fails on the way is tried anew, from the start: Redis
    /// may be slow for a moment, and another process of the name, which would take half of what is for this one, may have just been killed
    /// and linger until the end of its lease.
    async fn come_in(self: &Arc<Self>) -> Result<Session, Away> {
        let until = Instant::now() + self.lease.max(START_PATIENCE);
        loop {
            match self.try_to_come_in().await {
                Ok(session) => return Ok(session),
                Err(trouble) if Instant::now() > until => return Err(trouble),
                // Two that start at the same moment are not to go on meeting.
                Err(_) => sleep(NAME_PAUSE.mul_f64(1.0 + rand::random::<f64>())).await,
            }
        }
    }

    async fn try_to_come_in(self: &Arc<Self>) -> Result<Session, Away> {
        let session = self.subscribe().await.map_err(away)?;
        if session.link().listeners(&self.names.channel(&self.run.node)).await.map_err(away)? != 1 {
            return Err(away(format!("another process runs as node `{}`: see `cluster.node`", self.run.node)));
        }
        self.clear_the_name(session.link()).await?;
        let session = self.begin(session).await.map_err(away)?;
        self.reconcile().await?;
        Ok(session)
    }

    async fn listen(self: &Arc<Self>, door: Arc<dyn NodeDoor>) -> Result<(), Away> {
        let Some(envelopes) = self.envelopes.lock().take() else { return Err(away("this node listens already")) };
        if self.door.set(door).is_err() {
            return Err(away("this node listens already"));
        }
        self.tasks.spawn_essential("redis inbox", self.clone().open_envelopes(envelopes));
        let session = self.come_in().await?;
        self.tasks.spawn_essential("redis", self.clone().keep(session));
        self.tasks.spawn_essential("redis seats", self.clone().keep_seats());
        self.tasks.spawn_essential("redis watch", self.clone().keep_watch());
        Ok(())
    }

    async fn leave(&self) {
        self.left.cancel();
        let Some(link) = self.link.write().take() else { return };
        match timeout(LAST_WAIT, self.give_all_back(&link)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "presence could not be withdrawn; it ends with this node's lease"),
            Err(_) => tracing::warn!("presence could not be withdrawn in time; it ends with this node's lease"),
        }
    }

    fn check(&self) -> Result<(), Away> {
        self.link()?;
        if !self.standing.lock().is_good(Instant::now()) {
            return Err(away("this node has no lease, or its streams are not seated yet"));
        }
        if !self.inbox.hears(DEAF_AFTER) {
            return Err(away("this node does not hear what is published to it"));
        }
        Ok(())
    }
}

#[async_trait]
impl Directory for RedisPlane {
    async fn seat(&self, seat: SeatInfo, max_devices: usize) -> Result<Seated, SeatError> {
        self.0.seat(&seat, max_devices).await
    }

    async fn unseat(&self, seat: &SeatInfo) -> Result<Unseated, Away> {
        self.0.unseat(seat).await
    }

    async fn take_departure(&self, user: &UserId, version: u64) -> Result<bool, Away> {
        self.0.take_departure(user, version).await
    }

    async fn touch(
        &self,
        user: &UserId,
        device: &DeviceId,
        state: Option<DeviceState>,
        at: Timestamp,
    ) -> Result<Option<SeatInfo>, Away> {
        self.0.touch(user, device, state, at).await
    }

    async fn locate(&self, users: &[UserId]) -> Result<Vec<Presence>, Away> {
        self.0.locate(users).await
    }

    async fn seats(&self, users: &[UserId]) -> Result<Vec<Vec<SeatInfo>>, Away> {
        self.0.seats(users).await
    }

    fn knows_all(&self) -> bool {
        self.0.standing.lock().knows_all(Instant::now())
    }

    async fn claim_key(&self, key: &str, claim: KeyClaim) -> Result<Claimed, KeyError> {
        self.0.claim_key(key, &claim).await
    }

    async fn settle_key(&self, key: &str, answer: Option<Bytes>) -> Result<(), Away> {
        self.0.settle_key(key, answer).await
    }

    async fn peek_key(&self, key: &str) -> Result<Option<BodyHash>, Away> {
        self.0.peek_key(key).await
    }

    async fn put_ticket(&self, digest: [u8; 32], ticket: Ticket) -> Result<(), TicketError> {
        self.0.put_ticket(&digest, &ticket).await
    }

    async fn take_ticket(&self, digest: [u8; 32], now: Timestamp) -> Result<Option<Ticket>, Away> {
        self.0.take_ticket(&digest, now).await
    }

    async fn check(&self) -> Result<(), Away> {
        self.0.check()
    }
}

#[async_trait]
impl Bus for RedisPlane {
    async fn offer(&self, node: &NodeId, offer: RemoteOffer) -> Result<Verdict, OfferError> {
        self.0.offer(node, offer).await
    }

    async fn tell(&self, node: &NodeId, notice: Notice) -> Result<(), Away> {
        self.0.tell(node, notice)
    }

    fn has_other_nodes(&self) -> bool {
        // The roll may be a second old, and a node that has come since must not wait for what it is not told.
        !self.0.is_alone
    }

    async fn listen(&self, _: &NodeId, door: Arc<dyn NodeDoor>) -> Result<(), Away> {
        self.0.listen(door).await
    }

    async fn leave(&self, _: &NodeId) {
        self.0.leave().await;
    }
}
