//! An ephemeral plane between the machines of one process. Its directory is that of the memory plane; what goes over its wires suffers from
//! the weather, which is told and never drawn, so a story that is told again takes the same course.

use crate::backend::memory::MemoryPlane;
use crate::domain::seat::{DeviceId, DeviceState, NodeId, Presence, SeatInfo, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{
    Away, BodyHash, Bus, Bye, Claimed, Directory, KeyClaim, KeyError, NodeDoor, Notice, OfferError, RemoteOffer,
    SeatError, Seated, Ticket, TicketError, Unseated, Verdict,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::{pending, poll_fn};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;
use uuid::Uuid;

/// What becomes of what is on the way to a node and back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weather {
    Fine,
    /// Each way takes so many milliseconds.
    Late(u64),
    /// Offers and notices to it are lost.
    LosesOffers,
    /// It gets what it is offered, but nobody hears its replies.
    LosesReplies,
    /// Offers to it, and its replies, come twice.
    Doubles,
    /// The directory can't be reached from it, nor can it send anything.
    Away,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Running,
    Paused,
    Dead,
}

/// Who took an idempotency key, and for which message.
struct Claim {
    by: Arc<Machine>,
    id: Uuid,
    sent_at: Timestamp,
}

/// What all machines share.
#[derive(Default)]
pub struct Net {
    memory: MemoryPlane,
    machines: Mutex<BTreeMap<NodeId, Arc<Machine>>>,
    wires: Mutex<JoinSet<()>>,
    claims: Mutex<HashMap<String, Claim>>,
    /// Grows with all that happens here: who sees it stand still knows that nothing is going on.
    moves: AtomicU64,
}

/// A process that runs a node: its part of the plane, and the tasks that end with it.
pub struct Machine {
    net: Arc<Net>,
    pub name: NodeId,
    state: Mutex<State>,
    weather: Mutex<Weather>,
    /// Its seats were withdrawn while it was paused.
    lapsed: Mutex<bool>,
    door: Mutex<Option<Arc<dyn NodeDoor>>>,
    heard: Mutex<HashSet<u64>>,
    tasks: Mutex<JoinSet<()>>,
    resting: Mutex<Vec<Waker>>,
}

/// The plane as one machine sees it.
pub struct Plane(pub Arc<Machine>);

impl Net {
    /// How much has happened.
    pub fn moves(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }

    pub fn note_move(&self) -> u64 {
        self.moves.fetch_add(1, Ordering::Relaxed)
    }

    /// A time of the plane's own, as Redis has one: no two are the same.
    fn now(&self) -> Timestamp {
        Timestamp::from_ms(i64::try_from(self.note_move()).unwrap())
    }

    fn machine(&self, name: &NodeId) -> Option<Arc<Machine>> {
        self.machines.lock().get(name).filter(|machine| !machine.is_dead()).cloned()
    }

    /// Ended tasks are done away with; one that has panicked takes the simulation along.
    pub fn reap(&self) {
        reap(&mut self.wires.lock());
        let machines: Vec<_> = self.machines.lock().values().cloned().collect();
        for machine in machines {
            reap(&mut machine.tasks.lock());
        }
    }

    /// What the directory says, whoever could ask it now.
    pub fn seats_of(&self, users: &[UserId]) -> Vec<SeatInfo> {
        let presences = self.memory.locate(users).now_or_never().unwrap().unwrap();
        presences.into_iter().flat_map(|presence| presence.seats).collect()
    }

    fn withdraw(&self, seat: &SeatInfo) {
        self.memory.unseat(seat).now_or_never().unwrap().unwrap();
    }

    /// Something travels, whatever becomes of who sent it.
    fn carry(&self, journey: impl Future<Output = ()> + Send + 'static) {
        self.wires.lock().spawn(journey);
    }
}

fn reap(tasks: &mut JoinSet<()>) {
    while let Some(ended) = tasks.try_join_next() {
        match ended {
            Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
            Ok(()) | Err(_) => {}
        }
    }
}

impl Machine {
    /// Switches a machine on; it takes the place of a dead one with its name.
    pub fn start(net: &Arc<Net>, name: &NodeId) -> Arc<Self> {
        let machine = Arc::new(Self {
            net: net.clone(),
            name: name.clone(),
            state: Mutex::new(State::Running),
            weather: Mutex::new(Weather::Fine),
            lapsed: Mutex::default(),
            door: Mutex::default(),
            heard: Mutex::default(),
            tasks: Mutex::default(),
            resting: Mutex::default(),
        });
        net.machines.lock().insert(name.clone(), machine.clone());
        machine
    }

    pub fn is_dead(&self) -> bool {
        *self.state.lock() == State::Dead
    }

    pub fn is_paused(&self) -> bool {
        *self.state.lock() == State::Paused
    }

    pub fn set_weather(&self, weather: Weather) {
        *self.weather.lock() = weather;
    }

    /// Nothing of it runs until it is resumed.
    pub fn pause(&self) {
        *self.state.lock() = State::Paused;
    }

    /// It goes on; if its lease has run out meanwhile, it first seats its streams anew.
    pub fn resume(&self, users: &[UserId]) {
        if std::mem::take(&mut *self.lapsed.lock()) {
            self.reconcile(users);
        }
        *self.state.lock() = State::Running;
        self.resting.lock().drain(..).for_each(Waker::wake);
    }

    /// It ends at once, with all that it was doing.
    pub fn die(&self) {
        *self.state.lock() = State::Dead;
        self.tasks.lock().abort_all();
    }

    /// The lease of a machine that is dead or paused runs out: a living one withdraws its seats.
    pub fn lapse(&self, users: &[UserId]) {
        *self.lapsed.lock() = true;
        self.net.seats_of(users).iter().filter(|seat| seat.node == self.name).for_each(|seat| self.net.withdraw(seat));
    }

    /// Afterwards the directory has all streams of this machine, and no others of it; a device that has a seat elsewhere keeps that.
    pub fn reconcile(&self, users: &[UserId]) {
        let Some(door) = self.door.lock().clone() else { return };
        let here = |seat: &&SeatInfo| seat.node == self.name;
        let known = self.net.seats_of(users);
        known.iter().filter(here).filter(|seat| !door.holds(seat)).for_each(|seat| self.net.withdraw(seat));
        let mut held = door.seats();
        held.sort_by_key(|seat| seat.connection);
        for mut seat in held {
            let seated = self.net.seats_of(std::slice::from_ref(&seat.user));
            match seated.iter().find(|other| other.device == seat.device) {
                Some(same) if (&same.node, same.connection) == (&seat.node, seat.connection) => {}
                Some(_) => door.noticed(Notice::Close(seat, Bye::Replaced)).now_or_never().unwrap(),
                None => {
                    (seat.connected_at, seat.last_active_at) = (self.net.now(), self.net.now());
                    self.net.memory.seat(seat, usize::MAX).now_or_never().unwrap().unwrap();
                }
            }
        }
    }

    /// Does something on this machine: not while it is paused, and no longer than it lives.
    pub fn run(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        if self.is_dead() {
            return;
        }
        let machine = self.clone();
        let mut work = Box::pin(work);
        self.tasks.lock().spawn(poll_fn(move |cx| match machine.poll_running(cx) {
            Poll::Ready(()) => work.as_mut().poll(cx),
            Poll::Pending => Poll::Pending,
        }));
    }

    fn poll_running(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.is_paused() {
            return Poll::Ready(());
        }
        self.resting.lock().push(cx.waker().clone());
        Poll::Pending
    }

    /// The way to the directory.
    async fn reach(&self) -> Result<(), Away> {
        poll_fn(|cx| self.poll_running(cx)).await;
        self.travel().await;
        self.net.note_move();
        if self.is_dead() || *self.weather.lock() == Weather::Away {
            return Err(Away("the weather".into()));
        }
        Ok(())
    }

    async fn travel(&self) {
        let weather = *self.weather.lock();
        if let Weather::Late(ms) = weather {
            sleep(Duration::from_millis(ms)).await;
        }
    }

    /// Takes in an offer that has arrived.
    fn hear(self: Arc<Self>, id: u64, offer: RemoteOffer, reply: mpsc::Sender<Result<Verdict, OfferError>>) {
        let Some(door) = self.door.lock().clone() else { return };
        self.clone().run(async move {
            if !self.heard.lock().insert(id) {
                return;
            }
            let verdict = door.offered(offer).await;
            self.net.note_move();
            let weather = *self.weather.lock();
            let net = self.net.clone();
            net.carry(async move {
                self.travel().await;
                self.net.note_move();
                if weather != Weather::LosesReplies {
                    // The one who offered may have stopped waiting.
                    let _ = reply.try_send(verdict);
                }
            });
        });
    }
}

#[async_trait]
impl Directory for Plane {
    async fn seat(&self, mut seat: SeatInfo, max_devices: usize) -> Result<Seated, SeatError> {
        self.0.reach().await?;
        (seat.connected_at, seat.last_active_at) = (self.0.net.now(), self.0.net.now());
        let this = (seat.node.clone(), seat.connection);
        let mut seated = self.0.net.memory.seat(seat, max_devices).await?;
        self.0.reach().await?;
        // It may have been seated already, by being compared with the directory.
        seated.replaced = seated.replaced.filter(|older| (&older.node, older.connection) != (&this.0, this.1));
        Ok(seated)
    }

    async fn unseat(&self, seat: &SeatInfo) -> Result<Unseated, Away> {
        self.0.reach().await?;
        let unseated = self.0.net.memory.unseat(seat).await?;
        self.0.reach().await?;
        Ok(unseated)
    }

    async fn take_departure(&self, user: &UserId, version: u64) -> Result<bool, Away> {
        self.0.reach().await?;
        self.0.net.memory.take_departure(user, version).await
    }

    async fn touch(
        &self,
        user: &UserId,
        device: &DeviceId,
        state: Option<DeviceState>,
        _: Timestamp,
    ) -> Result<Option<SeatInfo>, Away> {
        self.0.reach().await?;
        let touched = self.0.net.memory.touch(user, device, state, self.0.net.now()).await?;
        self.0.reach().await?;
        Ok(touched)
    }

    async fn locate(&self, users: &[UserId]) -> Result<Vec<Presence>, Away> {
        self.0.reach().await?;
        let presences = self.0.net.memory.locate(users).await?;
        self.0.reach().await?;
        Ok(presences)
    }

    fn knows_all(&self) -> bool {
        self.0.net.memory.knows_all()
    }

    async fn claim_key(&self, key: &str, claim: KeyClaim) -> Result<Claimed, KeyError> {
        self.0.reach().await?;
        let (id, now) = (claim.id, claim.now);
        let mut claimed = self.0.net.memory.claim_key(key, claim).await?;
        if claimed == Claimed::New {
            self.0.net.claims.lock().insert(key.to_owned(), Claim { by: self.0.clone(), id, sent_at: now });
        } else if claimed == Claimed::InProgress
            && let Some(claim) = self.0.net.claims.lock().get(key)
            && claim.by.is_dead()
        {
            claimed = Claimed::Abandoned { id: claim.id, sent_at: claim.sent_at };
        }
        self.0.reach().await?;
        Ok(claimed)
    }

    async fn settle_key(&self, key: &str, answer: Option<Bytes>) -> Result<(), Away> {
        self.0.reach().await?;
        self.0.net.memory.settle_key(key, answer).await?;
        self.0.reach().await
    }

    async fn peek_key(&self, _: &str) -> Result<Option<BodyHash>, Away> {
        unreachable!("for persisted sends")
    }

    async fn put_ticket(&self, _: [u8; 32], _: Ticket) -> Result<(), TicketError> {
        unreachable!("nobody draws tickets")
    }

    async fn take_ticket(&self, _: [u8; 32], _: Timestamp) -> Result<Option<Ticket>, Away> {
        unreachable!("nobody draws tickets")
    }

    async fn check(&self) -> Result<(), Away> {
        self.0.reach().await
    }
}

#[async_trait]
impl Bus for Plane {
    async fn offer(&self, node: &NodeId, offer: RemoteOffer) -> Result<Verdict, OfferError> {
        let net = &self.0.net;
        // Without a way out it is not known what was sent, as on a connection that breaks.
        self.0.reach().await.map_err(|_| OfferError::Unknown)?;
        let Some(to) = net.machine(node) else { return Err(OfferError::NotTaken) };
        let weather = *to.weather.lock();
        let copies = match weather {
            Weather::LosesOffers => 0,
            Weather::Doubles => 2,
            Weather::Fine | Weather::Late(_) | Weather::LosesReplies | Weather::Away => 1,
        };
        let id = net.note_move();
        let (reply, mut replies) = mpsc::channel(2);
        for _ in 0..copies {
            let (net, to, node, offer, reply) = (net.clone(), to.clone(), node.clone(), offer.clone(), reply.clone());
            self.0.net.carry(async move {
                to.travel().await;
                net.note_move();
                // A process that was started meanwhile under the same name hears it instead.
                if let Some(to) = net.machine(&node) {
                    to.hear(id, offer, reply);
                }
            });
        }
        drop(reply);
        match replies.recv().await {
            Some(verdict) => verdict,
            // That nobody will reply is not known to who waits.
            None => pending().await,
        }
    }

    async fn tell(&self, node: &NodeId, notice: Notice) -> Result<(), Away> {
        self.0.reach().await?;
        let (net, node) = (self.0.net.clone(), node.clone());
        let Some(to) = net.machine(&node).filter(|to| *to.weather.lock() != Weather::LosesOffers) else {
            return Ok(());
        };
        self.0.net.carry(async move {
            to.travel().await;
            net.note_move();
            if let Some(to) = net.machine(&node)
                && let Some(door) = to.door.lock().clone()
            {
                to.run(async move { door.noticed(notice).await });
            }
        });
        Ok(())
    }

    fn has_other_nodes(&self) -> bool {
        true
    }

    async fn listen(&self, _: &NodeId, door: Arc<dyn NodeDoor>) -> Result<(), Away> {
        *self.0.door.lock() = Some(door);
        Ok(())
    }

    async fn leave(&self, _: &NodeId) {}
}
