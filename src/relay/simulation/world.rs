//! Machines with relays on them, devices with streams, and a clock that moves when the story says so.

use super::ledger::{Answers, Ledger};
use super::plane::{Machine, Net, Plane, Weather};
use super::story::{DEVICES, Device, NODES, Sending, Step, USERS};
use crate::config::Config;
use crate::domain::message::{Audience, DeliverTo, Draft, Mode, RawJson};
use crate::domain::retry::Schedule;
use crate::domain::seat::{DeviceId, DeviceState, KeyId, NodeId, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{Bus, Store};
use crate::relay::before_send::BeforeSend;
use crate::relay::callbacks::Callbacks;
use crate::relay::callbacks::tests::fake::FakeStore;
use crate::relay::devices::{After, OpenStream};
use crate::relay::handle::{Error, Parts, Relay};
use crate::relay::metrics::Metrics;
use crate::relay::presence_news::PresenceNews;
use crate::relay::send::{Answer, SendKey};
use crate::relay::stream::Stream;
use crate::tasks::Tasks;
use futures_util::FutureExt;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::task::yield_now;
use tokio::time::advance;

const QUEUE_FRAMES: usize = 3;
const QUEUE_BYTES: usize = 2_000;
/// So many streams of one device may be open at a time: the newest, and some that don't know yet that they were replaced.
const STREAMS_OF_A_DEVICE: usize = 3;

/// A device's stream, and what was read of an event so far.
struct Client {
    device: Device,
    machine: Arc<Machine>,
    stream: Stream,
    text: Vec<u8>,
}

struct Node {
    machine: Arc<Machine>,
    relay: Relay,
    started_at: Timestamp,
}

/// See the module's text.
pub struct World {
    net: Arc<Net>,
    nodes: Vec<Node>,
    /// Open streams, the oldest first.
    clients: Vec<Client>,
    /// Those that have just been opened.
    arrivals: Arc<Mutex<Vec<Client>>>,
    stalled: BTreeSet<Device>,
    pub ledger: Arc<Mutex<Ledger>>,
}

fn user(number: usize) -> UserId {
    UserId::parse(USERS[number]).unwrap()
}

fn users() -> Vec<UserId> {
    (0..USERS.len()).map(user).collect()
}

fn device_id(device: Device) -> DeviceId {
    DeviceId::parse(DEVICES[device.kind]).unwrap()
}

impl Node {
    fn start(net: &Arc<Net>, name: &str) -> Self {
        let name = NodeId::parse(name).unwrap();
        let machine = Machine::start(net, &name);
        let mut config = Config::default();
        config.stream.queue_frames = QUEUE_FRAMES;
        config.stream.queue_bytes = QUEUE_BYTES;
        config.stream.devices_per_user = DEVICES.len() - 1;
        config.stream.max_age = None;
        config.limits.answer_wait = Duration::from_millis(200);
        config.limits.seat_patience = Duration::from_millis(50);
        let mut registry = Registry::default();
        let tasks = Tasks::on_this_runtime();
        let store: Arc<dyn Store> = Arc::new(FakeStore::default());
        let plane = Arc::new(Plane(machine.clone()));
        let relay = Relay::new(Parts {
            node: name.clone(),
            plane: plane.clone(),
            callbacks: Callbacks::start(&store, &Schedule::default(), &tasks, &mut registry),
            store,
            before_send: BeforeSend::new(&mut registry),
            presence_news: PresenceNews::start(&tasks, &mut registry),
            limits: config.limits,
            stream: config.stream,
            retention: config.store.retention,
            confirm_timeout: Duration::from_millis(150),
            tasks,
            metrics: Metrics::new(&mut registry),
        });
        plane.listen(&name, Arc::new(relay.clone())).now_or_never().unwrap().unwrap();
        Self { machine, relay, started_at: Timestamp::now() }
    }
}

impl World {
    pub fn new() -> Self {
        let net = Arc::default();
        let nodes = NODES.iter().map(|name| Node::start(&net, name)).collect();
        let (clients, arrivals, stalled, ledger) = Default::default();
        Self { net, nodes, clients, arrivals, stalled, ledger }
    }

    pub async fn go(&mut self, step: Step) {
        match step {
            Step::Opens { device, node, state } => self.open(device, node, state),
            Step::Closes(device) => {
                if let Some(oldest) = self.clients.iter().position(|client| client.device == device) {
                    self.clients.remove(oldest);
                }
            }
            Step::Stalls(device) => {
                self.stalled.insert(device);
            }
            Step::Reads(device) => {
                self.stalled.remove(&device);
            }
            Step::Takes(device) => {
                if let Some(client) = self.clients.iter_mut().find(|client| client.device == device) {
                    client.read(1, &self.ledger, &self.net);
                }
            }
            Step::Sends { node, sending } => {
                let number = self.ledger.lock().sent(node, sending);
                self.send(number, sending, node);
                if self.nodes[node].machine.is_dead() {
                    self.ledger.lock().orphaned(node);
                }
            }
            Step::Repeats { node } => {
                let last = self.ledger.lock().last();
                if let Some((number, sending)) = last {
                    self.ledger.lock().repeated(number);
                    self.send(number, sending, node);
                }
            }
            Step::Says { device, node, state } => {
                self.call(node, move |relay| async move {
                    relay.set_state(&user(device.user), &device_id(device), state).await
                });
            }
            Step::Kicks { device, node } => {
                self.call(node, move |relay| async move { relay.kick(&user(device.user), &device_id(device)).await });
            }
            Step::Passes { ms } => {
                // In parts, so that what happens meanwhile happens in its time.
                let parts = ms.min(4);
                for _ in 0..parts {
                    advance(Duration::from_millis(ms / parts)).await;
                    self.settle().await;
                }
            }
            Step::Weathers { node, weather } => self.nodes[node].machine.set_weather(weather),
            Step::Pauses { node } if !self.nodes[node].machine.is_dead() => self.nodes[node].machine.pause(),
            Step::Resumes { node } if self.nodes[node].machine.is_paused() => self.nodes[node].machine.resume(&users()),
            Step::Dies { node } => self.kill(node),
            Step::Starts { node } if self.nodes[node].machine.is_dead() => self.restart(node),
            Step::Lapses { node } => {
                let machine = &self.nodes[node].machine;
                if machine.is_dead() || machine.is_paused() {
                    machine.lapse(&users());
                }
            }
            Step::Pauses { .. } | Step::Resumes { .. } | Step::Starts { .. } => {}
        }
        self.settle().await;
    }

    /// All that is out of order is put right, and then everything must be as it should be.
    pub async fn heal(&mut self) {
        for node in 0..self.nodes.len() {
            self.nodes[node].machine.set_weather(Weather::Fine);
            if self.nodes[node].machine.is_dead() {
                self.nodes[node].machine.lapse(&users());
                self.restart(node);
            } else if self.nodes[node].machine.is_paused() {
                self.nodes[node].machine.resume(&users());
            }
        }
        self.stalled.clear();
        // Longer than anything may wait.
        for _ in 0..4 {
            advance(Duration::from_secs(3)).await;
            self.settle().await;
        }
        for node in &self.nodes {
            node.machine.reconcile(&users());
        }
        self.settle().await;
        self.ledger.lock().close();
        self.check_presence();
        self.check_that_all_are_reached().await;
    }

    fn check_presence(&self) {
        let seated: BTreeSet<_> = self.net.seats_of(&users()).into_iter().map(|s| (s.user, s.device, s.node)).collect();
        let name = |c: &Client| (user(c.device.user), device_id(c.device), c.machine.name.clone());
        let open: Vec<_> = self.clients.iter().map(name).collect();
        if open.len() != seated.len() || !open.iter().all(|stream| seated.contains(stream)) {
            let flaw = format!("the directory has {seated:?} when all is well again, but the streams are {open:?}");
            self.ledger.lock().note(Some(flaw));
        }
    }

    async fn check_that_all_are_reached(&mut self) {
        for (node, every_device) in (0..self.nodes.len()).flat_map(|node| [(node, false), (node, true)]) {
            let sending = Sending { to: None, every_device, ttl_ms: 5_000, collapses: false, filling: 0 };
            let number = self.ledger.lock().sent(node, sending);
            self.send(number, sending, node);
            self.settle().await;
            let mut ledger = self.ledger.lock();
            for (user, name) in USERS.iter().enumerate() {
                let open = self.clients.iter().filter(|client| client.device.user == user).count();
                let expected = if every_device { open } else { open.min(1) };
                let taken = ledger.takers(number, user);
                let flaw =
                    format!("when all is well again, message {number} reached {taken} of {open} devices of {name}");
                ledger.note((taken != expected).then_some(flaw));
            }
            ledger.close();
        }
    }

    fn open(&self, device: Device, node: usize, state: DeviceState) {
        let open = self.clients.iter().filter(|client| client.device == device).count();
        if open >= STREAMS_OF_A_DEVICE {
            return;
        }
        let (relay, machine) = (self.nodes[node].relay.clone(), self.nodes[node].machine.clone());
        let arrivals = self.arrivals.clone();
        let request = OpenStream {
            user: user(device.user),
            device: device_id(device),
            after: After::Now,
            state,
            until: Timestamp::now().plus(Duration::from_hours(1_000)),
            socket: None,
            key: KeyId::new(0),
        };
        self.nodes[node].machine.run(async move {
            match relay.open_stream(request).await {
                Ok(stream) => arrivals.lock().push(Client { device, machine, stream, text: vec![] }),
                Err(Error::TooManyDevices(_)) => {}
                Err(error) => panic!("a stream was refused: {error}"),
            }
        });
    }

    fn send(&self, number: usize, sending: Sending, node: usize) {
        let Sending { every_device, ttl_ms, collapses, filling, .. } = sending;
        let payload = RawJson::from_checked(format!("{number}{}", " ".repeat(filling)).into());
        let draft = Draft {
            from: UserId::parse("alice").unwrap(),
            to: Audience::Users(sending.users().into_iter().map(user).collect()),
            kind: "t".into(),
            source: payload.clone(),
            payload,
            mode: Mode::OnlineOnly {
                deliver_to: if every_device { DeliverTo::EveryDevice } else { DeliverTo::OneDevice },
                ttl: Duration::from_millis(ttl_ms),
                collapse_key: collapses.then(|| "k".into()),
            },
            show_recipients: true,
            trace: None,
        };
        let (relay, ledger, net) = (self.nodes[node].relay.clone(), self.ledger.clone(), self.net.clone());
        self.nodes[node].machine.run(async move {
            let sent = relay.send(draft, Some(SendKey { key: number.to_string(), body: [0; 32] })).await;
            let report = sent.map(|sent| match sent.answer {
                Answer::OnlineOnly(report) => report,
                Answer::Persisted(_) => panic!("an online-only message was stored"),
            });
            ledger.lock().answered(number, report);
            net.note_move();
        });
    }

    fn call<F: Future<Output = Result<(), Error>> + Send + 'static>(
        &self,
        node: usize,
        call: impl FnOnce(Relay) -> F + Send + 'static,
    ) {
        let relay = self.nodes[node].relay.clone();
        self.nodes[node].machine.run(async move {
            match call(relay).await {
                Ok(()) | Err(Error::NotFound(_) | Error::PresenceUnavailable(_)) => {}
                Err(error) => panic!("{error}"),
            }
        });
    }

    fn kill(&mut self, node: usize) {
        let machine = self.nodes[node].machine.clone();
        machine.die();
        self.ledger.lock().orphaned(node);
        self.clients.retain(|client| !Arc::ptr_eq(&client.machine, &machine));
    }

    fn restart(&mut self, node: usize) {
        // Connection numbers begin with the time, and no process is started twice in a millisecond.
        while Timestamp::now() <= self.nodes[node].started_at {
            std::hint::spin_loop();
        }
        self.nodes[node] = Node::start(&self.net, NODES[node]);
    }

    /// All that can happen without time passing happens.
    async fn settle(&mut self) {
        let (mut quiet, mut seen) = (0, self.net.moves());
        while quiet < 3 {
            yield_now().await;
            self.clients.extend(self.arrivals.lock().drain(..).filter(|client| !client.machine.is_dead()));
            let (stalled, ledger, net) = (&self.stalled, &self.ledger, &self.net);
            self.clients.retain_mut(|client| stalled.contains(&client.device) || client.read(usize::MAX, ledger, net));
            self.net.reap();
            quiet = if self.net.moves() == seen { quiet + 1 } else { 0 };
            seen = self.net.moves();
        }
    }
}

impl Client {
    /// Reads so many pieces if there are as many. False if the stream is over.
    fn read(&mut self, pieces: usize, ledger: &Mutex<Ledger>, net: &Net) -> bool {
        if self.machine.is_paused() {
            return true;
        }
        let (mut frames, mut bytes) = (0, 0);
        for _ in 0..pieces {
            match self.stream.poll_bytes(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Some(piece)) => {
                    net.note_move();
                    bytes += piece.len();
                    self.text.extend_from_slice(&piece);
                    frames += self.take_events(ledger);
                }
                Poll::Ready(None) => return false,
                Poll::Pending => break,
            }
        }
        // One may have been in hand.
        let is_bounded = frames <= QUEUE_FRAMES + 1 && bytes <= QUEUE_BYTES + 1_000;
        ledger
            .lock()
            .note((!is_bounded).then(|| format!("{frames} messages, {bytes} bytes waited for {}", self.device)));
        true
    }

    /// What of it is whole events; how many of these are messages.
    fn take_events(&mut self, ledger: &Mutex<Ledger>) -> usize {
        let mut messages = 0;
        while let Some(end) = self.text.windows(2).position(|end| end == b"\n\n") {
            let event: Vec<u8> = self.text.drain(..end + 2).collect();
            let event = String::from_utf8(event).unwrap();
            if let Some((_, payload)) = event.split_once("\"payload\":") {
                let digits = payload.split(|c: char| !c.is_ascii_digit()).next().unwrap();
                ledger.lock().took(digits.parse().unwrap(), self.device);
                messages += 1;
            }
        }
        messages
    }
}

/// Tells a story; how often senders were answered what, or what went wrong.
pub fn tell(story: &[Step]) -> Result<Answers, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut world = World::new();
        for step in story {
            world.go(*step).await;
            if let Some(flaw) = &world.ledger.lock().broken {
                return Err(flaw.clone());
            }
        }
        world.heal().await;
        let mut ledger = world.ledger.lock();
        match ledger.broken.take() {
            Some(flaw) => Err(flaw),
            None => Ok(std::mem::take(&mut ledger.answers)),
        }
    })
}
