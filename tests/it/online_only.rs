//! Online-only messages: who gets them, and what the sender is told (CONTRACT.md 3).

use crate::harness::*;
use std::time::{Duration, Instant};

fn first(answer: &Value) -> (&str, Vec<&str>) {
    let recipient = &answer["recipients"][0];
    let devices = recipient["devices"].as_array().unwrap();
    (recipient["outcome"].as_str().unwrap(), devices.iter().map(|d| d.as_str().unwrap()).collect())
}

/// On which device a `one_device` message to bob arrives.
#[track_caller]
fn taker(node: &Node) -> String {
    let answer = node.backend().whisper("bob").expect(200).json();
    let (outcome, devices) = first(&answer);
    assert_eq!((outcome, devices.len()), ("delivered", 1), "{answer}");
    devices[0].to_owned()
}

/// The middle of several measurements: one may be slow on a busy machine.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// How long a device is still shown online after it has left.
fn time_to_offline(node: &Node, user: &str, leave: impl FnOnce()) -> Duration {
    let left = Instant::now();
    leave();
    eventually_is("offline", || node.backend().is_online(user), |online| !online);
    left.elapsed()
}

#[test]
fn the_answer_and_the_event_are_as_the_contract_shows_them() {
    let node = Node::start();
    let mut bob = node.device("bob", "phone");
    let message = json!({"from": "alice", "to": {"users": ["bob", "carol"]}, "type": "typing",
        "payload": {"conversation": "c42"}, "online_only": true, "deliver_to": "one_device", "ttl_ms": 5000,
        "collapse_key": "typing:c42:alice", "push": null});
    let answer = node.backend().send(message).expect(200).json();
    assert_eq!(
        answer["summary"],
        json!({"delivered": 1, "offline": 1, "unconfirmed": 0, "expired": 0, "superseded": 0})
    );
    assert_eq!(
        answer["recipients"],
        json!([{"user": "bob", "outcome": "delivered", "devices": ["phone"]},
               {"user": "carol", "outcome": "offline", "devices": []}])
    );
    assert_eq!(answer["online_only"], true);
    let event = bob.next_event();
    assert_eq!((event.name.as_str(), &event.id), ("message", &None), "no id: the resume point doesn't move");
    let shown = event.json();
    for field in ["id", "sent_at"] {
        assert_eq!(shown[field], answer[field]);
    }
    let id = uuid::Uuid::parse_str(answer["id"].as_str().unwrap()).unwrap();
    assert_eq!(id.get_version_num(), 7);
    let sent_at = answer["sent_at"].as_str().unwrap();
    assert!(sent_at.len() == 24 && sent_at.ends_with('Z') && &sent_at[19..20] == ".", "{sent_at}");
    assert_eq!(shown["to"], json!({"users": ["bob"]}), "never the other recipients");
    assert_eq!(
        (&shown["from"], &shown["type"], &shown["online_only"]),
        (&json!("alice"), &json!("typing"), &json!(true))
    );
    assert_eq!(shown["payload"]["conversation"], "c42");
    assert!(shown.get("cursor").is_none());
}

#[test]
fn one_device_takes_the_active_before_the_background_and_then_the_latest_activity() {
    let node = Node::start();
    let phone = node.device("bob", "phone");
    let laptop = node.device("bob", "laptop");
    assert_eq!(taker(&node), "laptop", "the latest to connect");
    phone.set_state("active").expect(204);
    assert_eq!(taker(&node), "phone", "the latest to say its state");
    laptop.ack(&node.backend().store("bob", &json!(1))).expect(204);
    assert_eq!(taker(&node), "laptop", "the latest to acknowledge");
    laptop.set_state("background").expect(204);
    assert_eq!(taker(&node), "phone", "active before background, though less lately");
    let _tv = node.stream("bob", "tv").background().open();
    assert_eq!(taker(&node), "phone", "one that connects in the background is not before");
    phone.set_state("background").expect(204);
    assert_eq!(taker(&node), "phone", "all in the background: the latest activity again");
}

#[test]
fn one_device_is_one_device() {
    let node = Node::start();
    let mut devices: Vec<_> = (0..4).map(|n| node.device("bob", &format!("d{n}"))).collect();
    for _ in 0..20 {
        assert_eq!(taker(&node), "d3");
    }
    node.backend().whisper_with(&["bob"], &json!({"deliver_to": "every_device", "payload": {"end": true}}));
    for (n, device) in devices.iter_mut().enumerate() {
        assert_eq!(device.messages_before("end").len(), if n == 3 { 20 } else { 0 });
    }
}

#[test]
fn every_device_gets_it_once_and_those_that_did_are_named() {
    let node = Node::start();
    let stuck = node.stuck_device("bob", "tv");
    let mut phone = node.device("bob", "phone");
    let mut laptop = node.stream("bob", "laptop").background().open();
    let answer = node.backend().whisper_with(&["bob"], &json!({"deliver_to": "every_device", "ttl_ms": 50}));
    let (outcome, mut devices) = first(&answer);
    devices.sort_unstable();
    assert_eq!((outcome, devices), ("delivered", vec!["laptop", "phone"]));
    node.backend()
        .whisper_with(&["bob"], &json!({"deliver_to": "every_device", "payload": {"end": true}, "ttl_ms": 50}));
    for device in [&mut phone, &mut laptop] {
        let before = device.messages_before("end");
        assert_eq!(before.len(), 1);
        assert_eq!(before[0].json()["id"], answer["id"]);
    }
    drop(stuck);
}

#[test]
fn one_that_waits_longer_than_its_ttl_has_expired_and_never_arrives() {
    let node = Node::start();
    let mut bob = node.stuck_device("bob", "phone");
    let asked = Instant::now();
    let answer = node.backend().whisper_with(&["bob"], &json!({"payload": {"late": true}, "ttl_ms": 150}));
    assert_eq!(first(&answer), ("expired", vec![]));
    assert_eq!(answer["summary"]["expired"], 1);
    assert!(asked.elapsed() >= Duration::from_millis(150));
    let answer = node.backend().whisper_with(&["bob"], &json!({"payload": {"end": true}, "ttl_ms": 30_000}));
    assert_eq!(first(&answer).0, "unconfirmed", "it still waits when the answer is due");
    assert!(bob.messages_before("end").iter().all(|event| !event.data.contains("late")));
}

#[test]
fn one_that_is_not_taken_in_time_is_unconfirmed_and_arrives_later_once() {
    let node = Node::with(&["limits.answer_wait_ms=200"]);
    let mut bob = node.stuck_device("bob", "phone");
    let asked = Instant::now();
    let answer = node.backend().whisper_with(&["bob"], &json!({"ttl_ms": 30_000}));
    assert_eq!(first(&answer), ("unconfirmed", vec![]));
    assert_eq!(answer["summary"]["unconfirmed"], 1);
    let waited = asked.elapsed();
    assert!(waited >= Duration::from_millis(200) && waited < Duration::from_millis(900), "{waited:?}");
    let id = answer["id"].as_str().unwrap();
    bob.messages_before(id);
    assert_eq!(taker(&node), "phone");
    assert_ne!(bob.next_message()["id"], id, "once");
}

#[test]
fn a_newer_one_with_the_same_key_takes_the_place_of_one_that_waits() {
    let node = Node::with(&["limits.answer_wait_ms=200"]);
    let mut bob = node.stuck_device("bob", "phone");
    let send = |n: u32, key: &str| {
        let fields = json!({"ttl_ms": 30_000, "collapse_key": key, "payload": {"n": n}});
        node.backend().whisper_with(&["bob"], &fields)
    };
    for (n, key) in [(1, "typing"), (2, "typing"), (3, "cursor"), (4, "typing")] {
        assert_eq!(first(&send(n, key)).0, "unconfirmed");
    }
    node.backend().whisper_with(&["bob"], &json!({"ttl_ms": 30_000, "payload": {"end": true}}));
    let shown: Vec<_> =
        bob.messages_before("\"end\"").iter().filter_map(|e| e.json()["payload"]["n"].as_u64()).collect();
    assert_eq!(shown, [4, 3], "the newer one stands in the place of the older");
}

#[test]
fn of_several_with_the_same_key_all_but_the_last_are_superseded() {
    let node = Node::with(&["limits.answer_wait_ms=20000"]);
    let mut bob = node.stuck_device("bob", "phone");
    let superseded = || node.count("herenow_queue_refusals_total{reason=\"superseded\"}");
    let answers = std::thread::scope(|scope| {
        let send = || {
            node.backend()
                .whisper_with(&["bob"], &json!({"ttl_ms": 30_000, "collapse_key": "k", "payload": {"key": "k"}}))
        };
        let sends: Vec<_> = (0..5).map(|_| scope.spawn(send)).collect();
        eventually_is("four are superseded", superseded, |n| *n >= 4);
        let shown = bob.messages_before("\"key\"");
        assert!(shown.iter().all(|event| event.json()["type"] == "fill"));
        sends.into_iter().map(|send| send.join().unwrap()).collect::<Vec<_>>()
    });
    let count = |outcome: &str| answers.iter().filter(|answer| first(answer).0 == outcome).count();
    assert_eq!((count("superseded"), count("delivered")), (4, 1), "{answers:?}");
    assert!(answers.iter().filter(|a| first(a).0 == "superseded").all(|a| a["summary"]["superseded"] == 1));
    assert_eq!(taker(&node), "phone");
    assert!(bob.next_message()["payload"].get("key").is_none(), "only one of the five");
}

#[test]
fn a_stuck_device_loses_its_turn_after_its_patience_and_never_gets_the_message() {
    let node = Node::start();
    let mut stuck = node.stuck_device("bob", "phone");
    let mut laptop = node.device("bob", "laptop");
    stuck.set_state("active").expect(204);
    let asked = Instant::now();
    let answer = node.backend().whisper_with(&["bob"], &json!({"payload": {"moved": true}}));
    let took = asked.elapsed();
    assert_eq!(first(&answer), ("delivered", vec!["laptop"]));
    assert!(took >= Duration::from_millis(250) && took < Duration::from_millis(1_000), "{took:?}");
    assert_eq!(laptop.next_message()["id"], answer["id"]);
    node.backend()
        .whisper_with(&["bob"], &json!({"deliver_to": "every_device", "payload": {"end": true}, "ttl_ms": 30_000}));
    assert!(stuck.messages_before("end").iter().all(|event| !event.data.contains("moved")), "never both");
    assert!(laptop.messages_before("end").is_empty());
}

#[test]
fn the_last_device_keeps_a_message_though_it_is_stuck() {
    let node = Node::with(&["limits.answer_wait_ms=300", "limits.seat_patience_ms=50"]);
    let mut first_stuck = node.stuck_device("bob", "phone");
    let mut laptop = node.stream("bob", "laptop").receive_buffer(4 << 10).open();
    first_stuck.set_state("background").expect(204);
    // With two devices: fill the laptop, to which all goes first, until a message moves on and expires at the phone.
    let filling = json!({"payload": {"filling": "f".repeat(30_000)}, "ttl_ms": 120});
    eventually_is("both stuck", || node.backend().whisper_with(&["bob"], &filling), |a| first(a).0 == "expired");
    let answer = node.backend().whisper_with(&["bob"], &json!({"ttl_ms": 30_000, "payload": {"last": true}}));
    assert_eq!(first(&answer).0, "unconfirmed");
    first_stuck.messages_before("\"last\"");
    let answer = node
        .backend()
        .whisper_with(&["bob"], &json!({"deliver_to": "every_device", "ttl_ms": 30_000, "payload": {"end": true}}));
    assert_eq!(first(&answer).1, ["phone"]);
    assert!(laptop.messages_before("\"end\"").iter().all(|event| !event.data.contains("\"last\"")));
}

#[test]
fn a_full_queue_sends_a_message_on_to_the_next_device_at_once() {
    let node = Node::with(&["stream.queue_frames=1", "limits.answer_wait_ms=300", "limits.seat_patience_ms=60000"]);
    let stuck = node.stuck_device("bob", "phone");
    assert_eq!(first(&node.backend().whisper_with(&["bob"], &json!({"ttl_ms": 60_000}))).0, "unconfirmed");
    let answer = node.backend().whisper_with(&["bob"], &json!({"ttl_ms": 60_000}));
    assert_eq!(first(&answer), ("offline", vec![]), "nobody else could take it");
    let mut laptop = node.device("bob", "laptop");
    stuck.set_state("active").expect(204);
    let answer = node.backend().whisper_with(&["bob"], &json!({}));
    assert_eq!(first(&answer), ("delivered", vec!["laptop"]), "no patience is due to a definite refusal");
    assert_eq!(laptop.next_message()["id"], answer["id"]);
}

#[test]
fn so_many_wait_in_a_queue_and_not_one_more() {
    let node = Node::with(&["stream.queue_frames=4", "limits.answer_wait_ms=100"]);
    let mut stuck = node.stuck_device("bob", "phone");
    let send = |fields: &Value| first(&node.backend().whisper_with(&["bob"], fields)).0.to_owned();
    for round in ["\"one\"", "\"two\""] {
        let waits = json!({"ttl_ms": 60_000, "collapse_key": "k", "payload": {"kind": "waits"}});
        let outcomes: Vec<_> = (0..3).map(|_| send(&json!({"ttl_ms": 60_000}))).collect();
        assert_eq!(outcomes, ["unconfirmed"; 3]);
        assert_eq!(send(&waits), "unconfirmed");
        assert_eq!(send(&json!({"ttl_ms": 60_000})), "offline", "the fifth");
        let end = json!({"ttl_ms": 60_000, "collapse_key": "k", "payload": {"kind": round.trim_matches('"')}});
        assert_eq!(send(&end), "unconfirmed", "it takes the place of another");
        let events = stuck.messages_before(round);
        assert_eq!(events.iter().filter(|event| event.json()["type"] == "typing").count(), 3, "{round}");
        stuck.drain();
        node.stick("bob");
    }
}

#[test]
fn a_queue_is_bounded_in_bytes_too() {
    let node = Node::with(&["stream.queue_bytes=70000", "limits.answer_wait_ms=100"]);
    let _stuck = node.stuck_device("bob", "phone");
    let big = json!({"ttl_ms": 60_000, "payload": {"filling": "f".repeat(30_000)}});
    let outcomes: Vec<_> = (0..4).map(|_| first(&node.backend().whisper_with(&["bob"], &big)).0.to_owned()).collect();
    assert_eq!(outcomes, ["unconfirmed", "unconfirmed", "offline", "offline"]);
}

#[test]
fn who_closes_the_connection_is_offline_at_once() {
    let node = Node::with(&["stream.heartbeat_s=300"]);
    let mut times = vec![vec![], vec![], vec![]];
    for _ in 0..9 {
        let mut bob = node.device("bob", "phone");
        times[0].push(time_to_offline(&node, "bob", || bob.close()));
        let mut bob = node.device("bob", "phone");
        times[1].push(time_to_offline(&node, "bob", || bob.reset()));
        let bob = node.device("bob", "phone");
        times[2].push(time_to_offline(&node, "bob", || bob.half_close()));
        let answer = node.backend().whisper("bob").json();
        assert_eq!(first(&answer), ("offline", vec![]));
    }
    for (how, times) in ["FIN", "RST", "half-closed"].iter().zip(times) {
        assert!(median(times.clone()) < Duration::from_millis(50), "{how}: {times:?}");
    }
}

#[test]
fn a_message_in_the_queue_of_a_device_that_leaves_goes_on_to_the_next() {
    let node = Node::with(&["limits.seat_patience_ms=20000", "limits.answer_wait_ms=20000"]);
    let mut stuck = node.stuck_device("bob", "phone");
    let mut laptop = node.device("bob", "laptop");
    stuck.set_state("active").expect(204);
    let answer = std::thread::scope(|scope| {
        let send = scope.spawn(|| node.backend().whisper_with(&["bob"], &json!({"ttl_ms": 60_000})));
        laptop.expect_nothing_until({
            let since = Instant::now();
            move || since.elapsed() > Duration::from_millis(100)
        });
        stuck.reset();
        send.join().unwrap()
    });
    assert_eq!(first(&answer), ("delivered", vec!["laptop"]));
    assert_eq!(laptop.next_message()["id"], answer["id"]);
}

#[test]
fn the_summary_adds_up_and_duplicates_count_once() {
    let node = Node::with(&["limits.answer_wait_ms=300", "stream.queue_frames=1"]);
    let _stuck = node.stuck_device("stuck", "d");
    let mut here = node.device("here", "d");
    let to = ["here", "stuck", "away", "here", "away", "here", "stuck"];
    let answer = node.backend().whisper_with(&to, &json!({"ttl_ms": 60_000}));
    let recipients = answer["recipients"].as_array().unwrap();
    let shown: Vec<_> =
        recipients.iter().map(|r| (r["user"].as_str().unwrap(), r["outcome"].as_str().unwrap())).collect();
    assert_eq!(shown, [("here", "delivered"), ("stuck", "unconfirmed"), ("away", "offline")], "in the order of naming");
    let summary = answer["summary"].as_object().unwrap();
    assert_eq!(summary.values().map(|n| n.as_u64().unwrap()).sum::<u64>(), 3);
    here.next_message();
    node.backend().whisper("here");
    assert_ne!(here.next_message()["id"], answer["id"]);
}

#[test]
fn a_thousand_users_are_reached_by_one_send() {
    let node = Node::start();
    let users: Vec<_> = (0..1_000).map(|n| format!("user {n} ☂")).collect();
    let mut online: Vec<_> = users.iter().step_by(20).map(|user| node.device(user, "d")).collect();
    let to: Vec<_> = users.iter().map(String::as_str).collect();
    let answer = node.backend().whisper_with(&to, &json!({}));
    assert_eq!((&answer["summary"]["delivered"], &answer["summary"]["offline"]), (&json!(50), &json!(950)));
    for (n, recipient) in answer["recipients"].as_array().unwrap().iter().enumerate() {
        assert_eq!(recipient["user"], users[n]);
        assert_eq!(recipient["outcome"], if n % 20 == 0 { "delivered" } else { "offline" });
    }
    for device in &mut online {
        let message = device.next_message();
        assert_eq!((&message["id"], &message["to"]), (&answer["id"], &json!({"users": [device.user]})));
    }
    let mut more = to.clone();
    more.push("one more");
    let message = json!({"from": "alice", "to": {"users": more}, "type": "t", "payload": {}, "online_only": true});
    let problem = node.backend().send(message).problem(422, "invalid_request");
    assert_eq!(problem["errors"][0]["pointer"], "/to/users");
}

#[test]
fn a_payload_is_relayed_byte_for_byte() {
    let node = Node::start();
    let mut bob = node.device("bob", "phone");
    let canary = node.canary();
    for payload in [
        r#"{"n":12345678901234567890,"z":1,"a":2,"f":1.50,"e":1E+2,"g":-0.0,"big":123456789012345678901234567890}"#,
        r#"{"dup":1,"dup":2}"#,
        "{ \"a\" :\t[ 1 ,  2 ] }",
        "\"\\u00e9 é \\ud83d\\udcac 💬 \u{202e} \u{2028} \\n \\/ /\"",
        "null",
        "-1",
        "[]",
        "\"\"",
        "true",
        "\u{20}7\u{20}",
    ] {
        let body = format!(
            r#"{{"from":"{canary}","to":{{"users":["bob"]}},"type":"t","payload":{payload},"online_only":true}}"#
        );
        node.backend().request(Request::post("/v1/messages").json(body)).expect(200);
        assert_eq!(bob.next_event().payload_text(), payload.trim_matches(' '));
    }
    // Line ends between tokens: the event stream has one kind only.
    let payload = "{\n\"a\":1,\r\n\r\"b\":\n\n[2]}";
    let body = format!(r#"{{"payload":{payload},"from":"a","to":{{"users":["bob"]}},"type":"t","online_only":true}}"#);
    node.backend().request(Request::post("/v1/messages").json(body)).expect(200);
    assert_eq!(bob.next_event().payload_text(), "{\n\"a\":1,\n\n\"b\":\n\n[2]}");
}

#[test]
fn a_peer_that_acknowledges_nothing_comes_last() {
    let node = Node::with(&["stream.dead_peer_s=60"]);
    let mut laptop = node.device("bob", "laptop");
    let phone = node.device("bob", "phone");
    phone.vanish();
    assert_eq!(taker(&node), "phone", "handed to its stream: nobody can know better yet");
    let asked = Instant::now();
    // Not too many, or the phone's buffers would be full and its patience over.
    let seldom = || {
        std::thread::sleep(Duration::from_millis(100));
        taker(&node)
    };
    eventually_is("the laptop gets it", seldom, |device| device == "laptop");
    let after = asked.elapsed();
    assert!(after >= Duration::from_secs(2) && after < Duration::from_millis(3_500), "{after:?}");
    laptop.next_message();
    assert_eq!(node.backend().presence("bob")["devices"].as_array().unwrap().len(), 2, "not given up yet");
}

#[test]
fn a_peer_that_has_vanished_is_found_out_by_the_next_event() {
    let node = Node::with(&["stream.dead_peer_s=2", "stream.heartbeat_s=300"]);
    let bob = node.device("bob", "phone");
    bob.vanish();
    assert!(node.backend().is_online("bob"));
    let asked = Instant::now();
    node.backend().whisper("bob");
    eventually_is("offline", || node.backend().is_online("bob"), |online| !online);
    assert!(asked.elapsed() < Duration::from_millis(2_500), "{:?}", asked.elapsed());
}

#[test]
fn a_peer_that_has_vanished_is_found_out_by_the_next_heartbeat() {
    let node = Node::with(&["stream.dead_peer_s=2", "stream.heartbeat_s=1"]);
    let bob = node.device("bob", "phone");
    bob.vanish();
    let asked = Instant::now();
    eventually_is("offline", || node.backend().is_online("bob"), |online| !online);
    assert!(asked.elapsed() < Duration::from_millis(3_500), "{:?}", asked.elapsed());
}

#[test]
fn a_slow_reader_is_cut_off_only_after_the_stall_timeout() {
    let node = Node::with(&["stream.stall_timeout_s=4", "stream.dead_peer_s=1", "stream.heartbeat_s=1"]);
    let bob = node.stuck_device("bob", "phone");
    let since = Instant::now();
    node.backend().whisper_with(&["bob"], &json!({"ttl_ms": 60_000}));
    eventually("it is cut off", || {
        let online = node.backend().is_online("bob");
        assert!(online || since.elapsed() > Duration::from_millis(3_500), "cut after {:?}", since.elapsed());
        if online { Err(format!("{:?}", bob.ended())) } else { Ok(()) }
    });
    assert!(since.elapsed() < Duration::from_millis(6_000), "{:?}", since.elapsed());
}

#[test]
fn a_reader_that_is_slow_but_reads_is_never_cut_off() {
    let node = Node::with(&[
        "stream.stall_timeout_s=1",
        "stream.dead_peer_s=1",
        "stream.heartbeat_s=1",
        "limits.answer_wait_ms=50",
    ]);
    let mut bob = node.stuck_device("bob", "phone");
    let until = Instant::now() + Duration::from_secs(4);
    let mut sent = 0;
    while Instant::now() < until {
        node.backend().whisper_with(&["bob"], &json!({"ttl_ms": 60_000, "payload": {"filling": "f".repeat(20_000)}}));
        sent += 1;
        bob.event_within(Duration::from_millis(400)).expect("it goes on");
    }
    assert!(node.backend().is_online("bob"), "after {sent}: {:?}", bob.ended());
}
