//! CONTRACT.md 9, 10.4 and 10.6: `kill -9` at any moment loses nothing that was answered 201, and a drain finishes what is begun.

use crate::harness::http::exchange;
use crate::harness::node::{API_KEY, PROGRAM};
use crate::harness::receiver::{Call, Reply};
use crate::harness::*;
use crate::support::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
const ROUNDS: u64 = 6;
const SENDERS: u64 = 4;

/// A send and, once it was answered 201, the message's id.
#[derive(Clone, Debug)]
struct Sent {
    key: String,
    message: Value,
    id: Option<String>,
}

impl Sent {
    fn new(key: String) -> Self {
        Self { message: chat(&["bob", "away"], &json!(key)), key, id: None }
    }

    /// True if it was accepted; it is not known what became of it otherwise.
    fn attempt(&mut self, address: SocketAddr) -> bool {
        let request = send_request(&self.message).bearer(API_KEY).header("Idempotency-Key", &self.key);
        match exchange(address, &request.header("Connection", "close").to_bytes(address)) {
            Ok(answer) if answer.status == 201 => {
                self.id = Some(text(&answer.json()["id"]));
                true
            }
            Ok(answer) => {
                answer.problem(503, "draining");
                false
            }
            Err(_) => false,
        }
    }
}

/// Sends one message after the other until the node is gone; the last is the one in flight at its end.
fn send_on(address: SocketAddr, round: u64, sender: u64) -> Vec<Sent> {
    let mut sends = vec![];
    for n in 0.. {
        let mut send = Sent::new(format!("{round}-{sender}-{n}"));
        let goes_on = send.attempt(address);
        sends.push(send);
        if !goes_on {
            break;
        }
    }
    sends
}

/// A client as the specification of Server-Sent Events has it: it comes again with the last id that it saw.
#[derive(Default)]
struct Client {
    seen: Vec<(String, String)>,
}

impl Client {
    fn request(&self, node: &Node) -> StreamRequest {
        let request = node.stream("bob", "phone");
        match self.seen.last() {
            Some((cursor, _)) => request.last_event_id(cursor),
            None => request.after("earliest"),
        }
    }

    /// Reads until the stream ends or `until` says that it is enough.
    fn read(&mut self, request: &StreamRequest, until: impl Fn(&Self) -> bool) {
        let Ok(mut device) = request.try_connect() else { return };
        while !until(self) {
            match device.event_within(Duration::from_millis(20)) {
                Some(event) if event.name == "message" => {
                    self.seen.push((event.id.clone().unwrap(), text(&event.json()["id"])));
                }
                Some(event) => assert!(matches!(&*event.name, "ready" | "bye"), "{event:?}"),
                None if device.ended().is_some() => return,
                None => {}
            }
        }
    }
}

fn seeded() -> (u64, StdRng) {
    let seed = std::env::vars().find(|(name, _)| name == "HERENOW_TEST_SEED").map(|(_, seed)| seed.parse().unwrap());
    let seed = seed.unwrap_or_else(rand::random);
    (seed, StdRng::seed_from_u64(seed))
}

#[test]
fn a_kill_at_any_moment_loses_nothing_and_repeats_nothing() {
    let (seed, mut random) = seeded();
    eprintln!("to repeat this: HERENOW_TEST_SEED={seed}");
    let (storage, push) = (Receiver::start(), Receiver::start());
    let mut node = node_of(&[("storage", &storage), ("push", &push)], &["callbacks.push.grace_ms=500"]);
    let (mut sends, mut client) = (Vec::<Sent>::new(), Client::default());
    for round in 0..ROUNDS {
        let time = Duration::from_millis(random.random_range(5..300));
        // Now and then in the middle of a drain.
        let term = (round % 3 == 2).then(|| Duration::from_millis(random.random_range(0..20)));
        let (address, request) = (node.address(), client.request(&node));
        let fresh: Vec<Sent> = scope(|scope| {
            let reader = scope.spawn(|| client.read(&request, |_| false));
            let senders: Vec<_> = (0..SENDERS).map(|n| scope.spawn(move || send_on(address, round, n))).collect();
            sleep(time);
            if let Some(pause) = term {
                node.signal("TERM");
                sleep(pause);
            }
            node.kill();
            reader.join().unwrap();
            senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect()
        });
        node.restart();
        sends.extend(fresh);
        // Whoever got no answer sends the same again, as every client should.
        for send in sends.iter_mut().filter(|send| send.id.is_none()) {
            assert!(send.attempt(node.address()), "{send:?}");
        }
        check_inbox(&node, &sends);
    }
    let all = sends.len();
    client.read(&client.request(&node), |client| client.seen.len() >= all);
    let told = whole_inbox(&node, "bob");
    let expected: Vec<(String, String)> = told.iter().map(|m| (text(&m["cursor"]), text(&m["id"]))).collect();
    assert_eq!(client.seen, expected, "each once, in order, over all streams");
    expect_listed(&node, "", 0);
    check_calls(&storage.accepted(), &sends, |call| (call.message_id(), String::new()));
    let away = |call: &Call| call.data()["recipient"] == "away";
    let pushed: Vec<Call> = push.accepted().into_iter().filter(away).collect();
    check_calls(&pushed, &sends, |call| (call.message_id(), "away".to_owned()));
}

#[test]
fn a_kill_while_a_large_group_is_written_to_leaves_nobody_without() {
    const MEMBERS: usize = 2_600;
    only_embedded!("on a cluster another node completes it: see cluster/postgres.rs");
    let (seed, mut random) = seeded();
    eprintln!("to repeat this: HERENOW_TEST_SEED={seed}");
    let storage = Receiver::start();
    let mut node = node_of(&[("storage", &storage)], &[]);
    for bite in (0..MEMBERS).collect::<Vec<_>>().chunks(1_000) {
        let names: Vec<String> = bite.iter().map(|n| format!("m{n:04}")).collect();
        node.backend().post("/v1/groups/crowd/members", &json!({ "add": names })).expect(200);
    }
    let message = json!({"from": "alice", "to": {"group": "crowd"}, "type": "chat", "payload": {}});
    let mut ids = BTreeSet::new();
    for round in 1..=ROUNDS {
        let (address, key) = (node.address(), format!("round-{round}"));
        let request = |address: SocketAddr| {
            let request = Request::post("/v1/messages?recipients=true").json(message.to_string()).bearer(API_KEY);
            request.header("Idempotency-Key", &key).header("Connection", "close").to_bytes(address)
        };
        let time = Duration::from_millis(random.random_range(0..250));
        let first = scope(|scope| {
            let sender = scope.spawn(|| exchange(address, &request(address)).ok());
            sleep(time);
            node.kill();
            sender.join().unwrap()
        });
        node.restart();
        let address = node.address();
        let answer = eventually("the repeat is answered", || {
            let answer = exchange(address, &request(address)).unwrap();
            if answer.status == 409 {
                answer.problem(409, "idempotency_in_progress");
                return Err("still being written".to_owned());
            }
            Ok(answer.expect(201).json())
        });
        if let Some(first) = first.filter(|first| first.status == 201) {
            assert_eq!(first.json(), answer);
        }
        // A member that was left out, or has it twice, has another number than the round's.
        let expected: Vec<Value> = (0..MEMBERS)
            .map(|n| json!({"user": format!("m{n:04}"), "outcome": "stored", "cursor": round.to_string()}))
            .collect();
        assert_eq!(answer["recipients"], json!(expected));
        ids.insert(text(&answer["id"]));
        for member in ["m0000", "m0499", "m0500", "m2599"] {
            let inbox = whole_inbox(&node, member);
            assert_eq!(inbox.iter().map(|message| text(&message["id"])).collect::<BTreeSet<_>>(), ids, "{member}");
            assert_eq!(inbox.len(), ids.len(), "{member}");
        }
    }
    let told = || storage.accepted().iter().map(Call::message_id).collect::<BTreeSet<_>>();
    eventually_is("all are told of", told, |told| *told == ids);
}

/// Every send is in the inbox once, and the cursors have no hole.
fn check_inbox(node: &Node, sends: &[Sent]) {
    for user in ["bob", "away"] {
        let inbox = whole_inbox(node, user);
        let cursors: Vec<String> = (1..=inbox.len()).map(|n| n.to_string()).collect();
        assert_eq!(each(&inbox, "/cursor"), cursors);
        let found: BTreeMap<String, String> = inbox.iter().map(|m| (text(&m["payload"]), text(&m["id"]))).collect();
        let wanted = sends.iter().map(|s| (s.key.clone(), s.id.clone().unwrap())).collect::<BTreeMap<_, _>>();
        assert_eq!(found, wanted, "{user}");
        assert_eq!(inbox.len(), sends.len(), "none is there twice");
    }
}

/// Every send was told of, if more than once then as the same event.
fn check_calls(calls: &[Call], sends: &[Sent], event: impl Fn(&Call) -> (String, String)) {
    let mut ids = BTreeMap::<(String, String), BTreeSet<String>>::new();
    for call in calls {
        ids.entry(event(call)).or_default().insert(call.id().to_owned());
    }
    let told: BTreeSet<&String> = ids.keys().map(|(id, _)| id).collect();
    assert_eq!(told, sends.iter().map(|send| send.id.as_ref().unwrap()).collect());
    assert!(ids.values().all(|ids| ids.len() == 1), "{ids:?}");
}

#[test]
fn a_callback_that_was_under_way_at_a_kill_is_repeated_as_the_same_event() {
    let storage = Receiver::start();
    let mut node = node_of(&[("storage", &storage)], &[]);
    storage.answer(Reply::Hang);
    let id = stored(&node, &chat(&["bob"], &json!(1)));
    storage.expect_callbacks(1);
    node.kill();
    storage.answer(Reply::Status(200));
    node.restart();
    let calls = storage.expect_callbacks(2);
    assert_eq!((calls[0].id(), &calls[0].body), (calls[1].id(), &calls[1].body));
    expect_status(&node, &id, "/storage", &json!({"state": "sent", "attempts": 1}));
}

#[test]
fn acks_and_what_devices_took_outlive_a_kill() {
    let mut node = Node::start();
    let ids: Vec<String> = (0..3).map(|n| stored(&node, &chat(&["bob"], &json!(n)))).collect();
    let mut phone = node.device("bob", "phone");
    messages(&mut phone, 3);
    expect_status(&node, &ids[2], "/recipients/0/delivered_to", &json!(["phone"]));
    phone.ack("2").expect(204);
    node.kill();
    node.restart();
    assert_eq!(resumed(&node.stream("bob", "phone")).1, "2");
    let status = status_of(&node, &ids[1]);
    assert_eq!(status["recipients"][0]["acked_by"], json!(["phone"]));
    assert_eq!(status["recipients"][0]["delivered_to"], json!(["phone"]));
}

/// Counts fsyncs, and makes each take 20 ms, as on a slow disk.
fn traced(log: &Path) -> Option<Setup> {
    strace(&["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_enter=20000", "-o", log.to_str()?])
}

fn fsyncs(log: &Path) -> usize {
    let log = fs::read_to_string(log).unwrap();
    log.lines().filter(|line| line.contains("sync(") && !line.contains("resumed")).count()
}

#[test]
fn a_201_is_given_after_an_fsync_and_many_sends_share_one() {
    only_embedded!("the disk is PostgreSQL's own");
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("fsyncs");
    let Some(setup) = traced(&log) else { return };
    let node = setup.start();
    for n in 0..5 {
        let before = fsyncs(&log);
        stored(&node, &chat(&["bob"], &json!(n)));
        assert!(fsyncs(&log) > before, "it was answered before it was durable");
    }
    let before = fsyncs(&log);
    send_at_once(&node);
    let count = fsyncs(&log) - before;
    assert!(count * 5 < 640, "{count} fsyncs for 640 sends");
    assert!(node.metric("herenow_store_commit_jobs_sum") >= 645.0, "it is counted");
}

/// 640 sends from 32 callers.
fn send_at_once(node: &Node) {
    scope(|scope| {
        for caller in 0..32 {
            scope.spawn(move || (0..20).for_each(|n| drop(stored(node, &chat(&["bob"], &json!([caller, n]))))));
        }
    });
}

#[test]
fn a_second_process_on_the_same_directory_is_refused() {
    let node = Node::start();
    let said = refused_start(&[format!("data_dir={}", node.data_dir().display())]);
    assert!(said.contains("another herenow process is using"), "{said}");
    stored(&node, &chat(&["bob"], &json!(1)));
    let client = Command::new(PROGRAM).env_clear().args(["send", "--help"]).output().unwrap();
    assert!(client.status.success(), "clients need no directory of their own");
}

#[test]
fn a_drain_says_goodbye_over_its_time_and_finishes_what_is_in_flight() {
    let storage = Receiver::start();
    let mut node = node_of(&[("storage", &storage)], &["server.drain_s=3"]);
    let mut devices: Vec<Device> = (0..6).map(|n| node.device(&format!("user{n}"), "phone")).collect();
    storage.answer_once([Reply::Delay(SECOND * 3 / 2)]);
    let id = stored(&node, &chat(&["user0"], &json!("in flight")));
    devices[0].next_message();
    storage.expect_callbacks(1);
    let begun = Instant::now();
    node.signal("TERM");

    let backend = node.backend();
    eventually_is("it is not ready", || backend.get("/readyz").status, |status| *status == 503);
    let not_ready = backend.get("/readyz");
    assert_eq!((not_ready.status, not_ready.json()), (503, json!({"ready": false, "away": ["draining"]})));
    assert!(not_ready.header("retry-after").is_some(), "{not_ready}");
    backend.send(chat(&["user0"], &json!("late"))).problem(503, "draining");
    backend.whisper("user0").problem(503, "draining");
    // An error would be final for an `EventSource`: it is told to come back.
    node.stream("late", "phone").connect().expect_bye("draining");
    backend.get("/healthz").expect(200);
    backend.get(&format!("/v1/messages/{id}")).expect(200);

    let goodbyes: Vec<(Duration, Event)> = scope(|scope| {
        let read = |device: &mut Device| (device.expect_bye("draining"), begun.elapsed());
        let readers: Vec<_> = devices.iter_mut().map(|device| scope.spawn(move || read(device))).collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).map(|(event, at)| (at, event)).collect()
    });
    let first = goodbyes.iter().map(|(at, _)| *at).min().unwrap();
    let last = goodbyes.iter().map(|(at, _)| *at).max().unwrap();
    assert!(last > first + SECOND && last < 4 * SECOND, "from {first:?} to {last:?}");
    let retries: BTreeSet<u64> = goodbyes.iter().map(|(_, event)| event.retry.unwrap()).collect();
    assert!(retries.len() > 1 && retries.iter().all(|ms| (500..5_000).contains(ms)), "{retries:?}");

    assert!(node.wait().success());
    assert!(begun.elapsed() < 5 * SECOND, "{:?}", begun.elapsed());
    node.restart();
    assert_eq!(status_of(&node, &id)["storage"], json!({"state": "sent", "attempts": 1}));
    assert_eq!(storage.count(), 1, "it was finished, and is not repeated");
    assert_eq!(whole_inbox(&node, "user0").len(), 1, "what was refused was not stored");
}

#[test]
fn a_second_signal_waits_for_no_callback() {
    let storage = Receiver::start();
    let mut node = node_of(&[("storage", &storage)], &["server.drain_s=60"]);
    let _phone = node.device("bob", "phone");
    storage.answer(Reply::Hang);
    let id = stored(&node, &chat(&["bob"], &json!(1)));
    storage.expect_callbacks(1);
    node.signal("TERM");
    // By the log: when the last stream is told, nobody is answered any more.
    eventually_is("draining", || node.log().contains("draining"), |draining| *draining);
    let asked = Instant::now();
    node.signal("TERM");
    assert!(node.wait().success());
    assert!(asked.elapsed() < 4 * SECOND, "{:?}", asked.elapsed());
    storage.answer(Reply::Status(200));
    node.restart();
    expect_status(&node, &id, "/storage/state", &json!("sent"));
}

#[test]
fn a_drain_with_a_hanging_callback_ends_in_its_time() {
    let storage = Receiver::start();
    let mut node = node_of(&[("storage", &storage)], &["server.drain_s=1", "callbacks.storage.timeout_ms=60000"]);
    storage.answer(Reply::Hang);
    let id = stored(&node, &chat(&["bob"], &json!(1)));
    storage.expect_callbacks(1);
    let asked = Instant::now();
    assert!(node.stop().success());
    assert!(asked.elapsed() < 5 * SECOND, "{:?}", asked.elapsed());
    storage.answer(Reply::Status(200));
    node.restart();
    expect_status(&node, &id, "/storage", &json!({"state": "sent", "attempts": 1}));
}

#[test]
fn a_drain_gives_back_what_it_has_not_begun() {
    let storage = Receiver::start();
    let mut node = node_of(&[("storage", &storage)], &["callbacks.storage.concurrency=2", "server.drain_s=20"]);
    storage.answer(Reply::Delay(SECOND / 5));
    let ids: BTreeSet<String> = (0..200).map(|n| stored(&node, &chat(&["bob"], &json!(n)))).collect();
    let asked = Instant::now();
    assert!(node.stop().success());
    assert!(asked.elapsed() < 3 * SECOND, "{:?}: it waits for what is in flight alone", asked.elapsed());
    let before = storage.count();
    assert!(before < 200, "{before}");
    storage.answer(Reply::Status(200));
    node.restart();
    expect_listed(&node, "", 0);
    let told: Vec<String> = storage.accepted().iter().map(Call::message_id).collect();
    assert_eq!(told.len(), 200, "none twice");
    assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), ids);
}

#[test]
fn a_kill_in_the_middle_of_a_first_start_spoils_nothing() {
    let (seed, mut random) = seeded();
    eprintln!("to repeat this: HERENOW_TEST_SEED={seed}");
    let dir = tempfile::tempdir().unwrap();
    for round in 0..5 {
        let data = dir.path().join(format!("data{round}"));
        for _ in 0..4 {
            let mut command = Command::new(PROGRAM);
            command.current_dir(&dir).env_clear().args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", ""]);
            command.arg("--data-dir").arg(&data).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            sleep(Duration::from_millis(random.random_range(0..40)));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let node = Node::setup().self_made().data_dir(&data).start();
        assert_eq!(accepted(&node, &chat(&["bob"], &json!(1)))["recipients"][0]["cursor"], "1");
    }
}
