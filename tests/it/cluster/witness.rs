//! Callers and devices that go on while something breaks, and what must hold of all that they saw (CONTRACT.md 10).

use super::LEASE;
use crate::harness::http::exchange;
use crate::harness::node::API_KEY;
use crate::harness::receiver::Call;
use crate::harness::*;
use crate::support::*;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

/// When the fault is over, all must be well again within this time: a lease, a reconnect, and what a busy machine takes.
const HEALED: Duration = Duration::from_secs(12).saturating_add(LEASE);
const USERS: [&str; 3] = ["bob", "carol", "dave"];
const DEVICES: [&str; 2] = ["phone", "laptop"];
/// A caller sends so often.
const PAUSE: Duration = Duration::from_millis(40);

/// Whether a user may be said to be offline. All have streams all the time; but a node that is dead or cut off takes its own along.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Offline {
    Never,
    MayBe,
}

/// A setup for nodes that are to be witnessed.
pub fn setup(storage: &Receiver) -> Setup {
    Node::setup().set_all(&storage.settings("storage"))
}

/// Online-only, to one device.
struct Whisper {
    user: &'static str,
    /// Which no other has.
    text: String,
    /// `None`: the connection ended before.
    answer: Option<Answer>,
}

/// Persisted, with an idempotency key.
struct Chat {
    key: String,
    /// Once it was accepted.
    id: Option<String>,
}

/// What a device saw of a message.
struct Seen {
    user: &'static str,
    device: &'static str,
    /// `None`: it was online-only.
    cursor: Option<u64>,
    text: String,
}

struct Witness<'a> {
    cluster: &'a Cluster,
    whispers: Mutex<Vec<Whisper>>,
    chats: Mutex<Vec<Chat>>,
    seen: Mutex<Vec<Seen>>,
    callers_end: AtomicBool,
    devices_end: AtomicBool,
    next: AtomicUsize,
}

/// Ends the threads, also when the test fails.
struct Ends<'a>(&'a Witness<'a>);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.callers_end.store(true, Ordering::Release);
        self.0.devices_end.store(true, Ordering::Release);
    }
}

/// Has callers and devices at all nodes while `fault` happens and until all is well again with the nodes that survive it, which must be
/// soon and by itself; then holds what was answered, seen, stored and called back against each other.
#[track_caller]
pub fn holds_through(
    cluster: &Cluster,
    storage: &Receiver,
    survivors: &[usize],
    offline: Offline,
    fault: impl FnOnce(),
) {
    let witness = Witness {
        cluster,
        whispers: Mutex::default(),
        chats: Mutex::default(),
        seen: Mutex::default(),
        callers_end: AtomicBool::new(false),
        devices_end: AtomicBool::new(false),
        next: AtomicUsize::new(0),
    };
    scope(|scope| {
        let ends = Ends(&witness);
        for (u, user) in USERS.into_iter().enumerate() {
            for (d, device) in DEVICES.into_iter().enumerate() {
                let witness = &witness;
                scope.spawn(move || witness.listen(user, device, u + d));
            }
        }
        witness.expect_well(&(0..cluster.nodes().len()).collect::<Vec<_>>());
        let callers: Vec<_> = cluster
            .nodes()
            .iter()
            .map(|node| {
                let (witness, address) = (&witness, node.address());
                scope.spawn(move || witness.call(address))
            })
            .collect();
        fault();
        witness.expect_well(survivors);
        witness.callers_end.store(true, Ordering::Release);
        for caller in callers {
            caller.join().unwrap();
        }
        witness.repeat_unanswered(survivors);
        witness.expect_all_seen();
        drop(ends);
    });
    witness.check_order();
    witness.check_whispers(offline);
    witness.check_chats(&cluster[survivors[0]], storage);
}

impl Witness<'_> {
    /// A client as the specification of Server-Sent Events has it: it comes again with the last id that it saw, to any node.
    fn listen(&self, user: &'static str, device: &'static str, home: usize) {
        let nodes = self.cluster.nodes();
        let requests: Vec<_> = nodes.iter().map(|node| node.stream(user, device)).collect();
        let mut last = None;
        for attempt in home.. {
            let request = requests[attempt % requests.len()].clone();
            let request = match last {
                Some(cursor) => request.last_event_id(&u64::to_string(&cursor)),
                None => request.after("earliest"),
            };
            if let Ok(mut stream) = request.try_connect() {
                while !self.devices_end.load(Ordering::Acquire) && stream.ended().is_none() {
                    if let Some(event) = stream.event_within(Duration::from_millis(50)) {
                        self.take(user, device, &event, &mut last);
                    }
                }
                // What was answered before the end has arrived.
                stream.drain();
                while let Some(event) = stream.event_within(Duration::ZERO) {
                    self.take(user, device, &event, &mut last);
                }
            }
            if self.devices_end.load(Ordering::Acquire) {
                return;
            }
            sleep(PAUSE);
        }
    }

    fn take(&self, user: &'static str, device: &'static str, event: &Event, last: &mut Option<u64>) {
        match &*event.name {
            "ready" | "bye" => {}
            "message" => {
                let message = event.json();
                let text =
                    if message["online_only"] == true { &message["payload"]["canary"] } else { &message["payload"] };
                let cursor = event.id.as_ref().map(|id| id.parse().unwrap());
                *last = cursor.or(*last);
                self.seen.lock().push(Seen { user, device, cursor, text: self::text(text) });
            }
            other => panic!("{other}: {event:?}"),
        }
    }

    /// Sends one message after the other by one node.
    fn call(&self, address: SocketAddr) {
        while !self.callers_end.load(Ordering::Acquire) {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            self.whisper(address, USERS[n % USERS.len()]);
            let mut chat = Chat { key: format!("chat {n}"), id: None };
            chat.attempt(address);
            self.chats.lock().push(chat);
            sleep(PAUSE);
        }
    }

    /// Sends online-only to one device of a user; gives the outcome, or what there is in its place.
    fn whisper(&self, address: SocketAddr, user: &'static str) -> String {
        let text = self.cluster[0].canary();
        let message = json!({"from": "alice", "to": {"users": [user]}, "type": "typing", "online_only": true, "payload": {"canary": text}});
        // Every other one with a key.
        let request = send_request(&message);
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let request =
            if n.is_multiple_of(2) { request } else { request.header("Idempotency-Key", &format!("whisper {n}")) };
        let answer = exchange(address, &to_bytes(request, address));
        let outcome = match &answer {
            Ok(answer) if answer.status == 200 => self::text(&answer.json()["recipients"][0]["outcome"]),
            Ok(answer) => answer.to_string(),
            Err(error) => error.to_string(),
        };
        self.whispers.lock().push(Whisper { user, text, answer: answer.ok() });
        outcome
    }

    /// Whoever got no 201 sends the same again, as every client should, by whichever node: it must not come twice.
    fn repeat_unanswered(&self, survivors: &[usize]) {
        for (n, chat) in self.chats.lock().iter_mut().enumerate().filter(|(_, chat)| chat.id.is_none()) {
            let address = self.cluster[survivors[n % survivors.len()]].address();
            eventually("it is accepted", || if chat.attempt(address) { Ok(()) } else { Err(chat.key.clone()) });
        }
    }

    /// All nodes agree on who is online where, are ready, and reach everybody.
    #[track_caller]
    fn expect_well(&self, nodes: &[usize]) {
        let living: Vec<&Node> = nodes.iter().map(|n| &self.cluster[*n]).collect();
        eventually_within(HEALED, "all is well", || {
            let mut views = vec![];
            for node in &living {
                let ready = node.backend().get("/readyz");
                if ready.status != 200 {
                    return Err(ready.to_string());
                }
                let answer = node.backend().post("/v1/presence/query", &json!({"users": USERS}));
                if answer.status != 200 {
                    return Err(answer.to_string());
                }
                let seats: BTreeSet<_> = answer.json()["users"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .flat_map(|user| {
                        let devices = user["devices"].as_array().unwrap();
                        devices.iter().map(|device| (text(&user["user"]), text(&device["device"]))).collect::<Vec<_>>()
                    })
                    .collect();
                views.push(seats);
            }
            let all: BTreeSet<_> =
                USERS.iter().flat_map(|user| DEVICES.map(|device| ((*user).to_owned(), device.to_owned()))).collect();
            if views.iter().all(|view| *view == all) { Ok(()) } else { Err(format!("{views:?}")) }
        });
        for node in living {
            for user in USERS {
                let reach = || self.whisper(node.address(), user);
                eventually_is("a user is reached", reach, |outcome| outcome == "delivered");
            }
        }
    }

    /// Waits until every device has seen all that was accepted.
    #[track_caller]
    fn expect_all_seen(&self) {
        let wanted = self.chats.lock().len();
        let counts = || {
            let mut counts = BTreeMap::<_, usize>::new();
            for seen in self.seen.lock().iter().filter(|seen| seen.cursor.is_some()) {
                *counts.entry((seen.user, seen.device)).or_insert(0) += 1;
            }
            counts
        };
        eventually_within(HEALED, "every device has seen all", || {
            let counts = counts();
            let all = USERS.len() * DEVICES.len();
            let is_done = counts.len() == all && counts.values().all(|count| *count >= wanted);
            if is_done { Ok(()) } else { Err(format!("{counts:?} of {wanted}")) }
        });
    }

    /// In order, without gap, without repeat: over all streams of a device, as it came again with the last id that it saw.
    #[track_caller]
    fn check_order(&self) {
        let mut cursors = BTreeMap::<(&str, &str), Vec<u64>>::new();
        for seen in self.seen.lock().iter() {
            cursors.entry((seen.user, seen.device)).or_default().extend(seen.cursor);
        }
        for (device, cursors) in cursors {
            assert_eq!(cursors, (1..=cursors.len() as u64).collect::<Vec<_>>(), "{device:?}");
        }
    }

    /// Once, and honest.
    #[track_caller]
    fn check_whispers(&self, offline: Offline) {
        let mut receivers = BTreeMap::<(&str, String), Vec<&str>>::new();
        for seen in self.seen.lock().iter().filter(|seen| seen.cursor.is_none()) {
            receivers.entry((seen.user, seen.text.clone())).or_default().push(seen.device);
        }
        let mut outcomes = BTreeMap::<String, usize>::new();
        for Whisper { user, text, answer } in self.whispers.lock().iter() {
            let devices = receivers.remove(&(*user, text.clone())).unwrap_or_default();
            assert!(devices.len() <= 1, "{user} got it twice, on {devices:?}: {answer:?}");
            let outcome = match answer {
                None => "no answer".to_owned(),
                Some(answer) if answer.status == 503 => {
                    answer.problem(503, "presence_unavailable");
                    assert!(devices.is_empty(), "refused, and yet {devices:?} got it");
                    "presence_unavailable".to_owned()
                }
                Some(answer) => {
                    let recipient = answer.clone().expect(200).json()["recipients"][0].take();
                    let outcome = self::text(&recipient["outcome"]);
                    match &*outcome {
                        "delivered" => assert_eq!(recipient["devices"], json!(devices), "{answer}"),
                        "expired" => assert!(devices.is_empty(), "{devices:?} got it: {answer}"),
                        "offline" => {
                            assert!(devices.is_empty(), "{devices:?} got it: {answer}");
                            assert!(offline == Offline::MayBe, "{user} has streams all the time: {answer}");
                        }
                        "unconfirmed" => {}
                        other => panic!("{other}: {answer}"),
                    }
                    outcome
                }
            };
            *outcomes.entry(outcome).or_default() += 1;
        }
        assert!(receivers.is_empty(), "nobody sent these to whom they came: {receivers:?}");
        eprintln!("online-only: {outcomes:?}");
    }

    /// Durable and called back.
    #[track_caller]
    fn check_chats(&self, node: &Node, storage: &Receiver) {
        let chats = self.chats.lock();
        let wanted: BTreeMap<String, String> = chats.iter().map(|c| (c.key.clone(), c.id.clone().unwrap())).collect();
        for user in USERS {
            let inbox = whole_inbox(node, user);
            let cursors: Vec<String> = (1..=inbox.len()).map(|n| n.to_string()).collect();
            assert_eq!(each(&inbox, "/cursor"), cursors, "{user}");
            let found: BTreeMap<_, _> = inbox.iter().map(|m| (text(&m["payload"]), text(&m["id"]))).collect();
            assert_eq!(found, wanted, "{user}");
            assert_eq!(inbox.len(), wanted.len(), "{user} has none twice");
        }
        let told = || {
            let mut told = BTreeMap::<String, BTreeSet<String>>::new();
            for call in storage.accepted() {
                told.entry(call.message_id()).or_default().insert(Call::id(&call).to_owned());
            }
            told
        };
        let ids: BTreeSet<&String> = wanted.values().collect();
        let all = eventually_is("all are called back", told, |told| told.keys().collect::<BTreeSet<_>>() == ids);
        assert!(all.values().all(|events| events.len() == 1), "each is one event, however often it comes: {all:?}");
        expect_listed(node, "", 0);
        eprintln!("persisted: {}", wanted.len());
    }
}

impl Chat {
    /// True if it is accepted.
    fn attempt(&mut self, address: SocketAddr) -> bool {
        let request = send_request(&chat(&USERS, &json!(self.key))).header("Idempotency-Key", &self.key);
        match exchange(address, &to_bytes(request, address)) {
            Ok(answer) if answer.status == 201 => self.id = Some(text(&answer.json()["id"])),
            Ok(answer) if answer.status == 409 => drop(answer.problem(409, "idempotency_in_progress")),
            Ok(answer) => drop(answer.problem(503, "store_unavailable")),
            Err(_) => {}
        }
        self.id.is_some()
    }
}

fn to_bytes(request: Request, address: SocketAddr) -> Vec<u8> {
    request.bearer(API_KEY).header("Connection", "close").to_bytes(address)
}
