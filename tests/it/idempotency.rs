//! `Idempotency-Key`: the same key and body are sent once (CONTRACT.md 3).

use crate::harness::*;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

fn body(node: &Node, fields: &Value) -> String {
    let mut message =
        json!({"from": "alice", "to": {"users": ["bob"]}, "type": "t", "payload": {"canary": node.canary()}});
    message.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    message.to_string()
}

fn send(node: &Node, key: &str, body: &str) -> Answer {
    node.backend().request(Request::post("/v1/messages").header("Idempotency-Key", key).json(body))
}

#[track_caller]
fn assert_replayed(first: &Answer, again: &Answer) {
    assert_eq!((first.status, first.text()), (again.status, again.text()));
    assert_eq!((first.header("idempotent-replayed"), again.header("idempotent-replayed")), (None, Some("true")));
    assert_eq!(first.header("location"), again.header("location"));
    assert_ne!(first.header("x-request-id"), again.header("x-request-id"));
}

#[test]
fn an_online_only_send_is_repeated_without_being_sent_again() {
    let node = Node::start();
    let mut bob = node.device("bob", "phone");
    let body = body(&node, &json!({"online_only": true}));
    let first = send(&node, "k", &body).expect(200);
    for _ in 0..3 {
        assert_replayed(&first, &send(&node, "k", &body));
    }
    assert_eq!(bob.next_message()["id"], first.json()["id"]);
    let marker = node.backend().whisper("bob").json();
    assert_eq!(bob.next_message()["id"], marker["id"], "nothing in between");
}

#[test]
fn the_first_answer_counts_though_the_world_has_changed() {
    let node = Node::start();
    let body = body(&node, &json!({"online_only": true}));
    let first = send(&node, "k", &body).expect(200);
    assert_eq!(first.json()["recipients"][0]["outcome"], "offline");
    let mut bob = node.device("bob", "phone");
    assert_replayed(&first, &send(&node, "k", &body));
    let marker = node.backend().whisper("bob").json();
    assert_eq!(bob.next_message()["id"], marker["id"]);
}

#[test]
fn a_persisted_send_is_repeated_without_being_stored_again() {
    let mut node = Node::start();
    let body = json!({"from": "alice", "to": {"users": ["bob", "carol"]}, "type": "t", "payload": 1}).to_string();
    let first = send(&node, "k", &body).expect(201);
    assert_replayed(&first, &send(&node, "k", &body));
    node.kill();
    node.restart();
    assert_replayed(&first, &send(&node, "k", &body));
    let bob = node.device("bob", "phone");
    let inbox = bob.inbox("after=earliest").expect(200).json();
    assert_eq!(inbox["messages"].as_array().unwrap().len(), 1, "{inbox}");
}

#[test]
fn another_body_with_the_same_key_is_refused_within_and_across_the_kinds() {
    let node = Node::start();
    let mut bob = node.stream("bob", "phone").after("now").open();
    let bodies = [
        body(&node, &json!({"online_only": true})),
        json!({"from": "alice", "to": {"users": ["bob"]}, "type": "t", "payload": 1}).to_string(),
    ];
    let others = [
        body(&node, &json!({"online_only": true})),
        json!({"from": "alice", "to": {"users": ["bob"]}, "type": "t", "payload": 2}).to_string(),
    ];
    for (n, first) in bodies.iter().enumerate() {
        let key = format!("key {n}");
        let answer = send(&node, &key, first);
        assert!(answer.status < 300, "{answer}");
        assert_eq!(bob.next_message()["id"], answer.json()["id"]);
        for other in others.iter().chain([&bodies[1 - n]]) {
            send(&node, &key, other).problem(422, "idempotency_key_reused");
        }
        // Space is a difference: what is compared are the bytes.
        send(&node, &key, &format!("{first} ")).problem(422, "idempotency_key_reused");
        assert_replayed(&answer, &send(&node, &key, first));
    }
    let marker = node.backend().whisper("bob").json();
    assert_eq!(bob.next_message()["id"], marker["id"], "none of them was sent");
}

#[test]
fn one_that_is_still_running_is_a_conflict() {
    let node = Node::with(&["limits.answer_wait_ms=20000"]);
    let mut bob = node.stuck_device("bob", "phone");
    let body = body(&node, &json!({"online_only": true, "ttl_ms": 60_000}));
    let first = std::thread::scope(|scope| {
        // Whichever comes first is held by the device, and the other is refused meanwhile.
        let mut racers: Vec<_> = (0..2).map(|_| scope.spawn(|| send(&node, "k", &body))).collect();
        let refused = eventually("one is refused", || {
            racers.iter().position(ScopedJoinHandle::is_finished).ok_or_else(|| "both wait".into())
        });
        racers.remove(refused).join().unwrap().problem(409, "idempotency_in_progress");
        send(&node, "k", &body).problem(409, "idempotency_in_progress");
        send(&node, "k", &body.replace("alice", "mallory")).problem(422, "idempotency_key_reused");
        bob.messages_before("\"t\"");
        racers.remove(0).join().unwrap()
    });
    let again = send(&node, "k", &body);
    assert_eq!(first.json()["recipients"][0]["outcome"], "delivered");
    assert_replayed(&first, &again);
}

#[test]
fn of_many_at_once_with_one_key_exactly_one_is_sent() {
    let node = Node::start();
    let mut bob = node.stream("bob", "phone").after("now").open();
    for (key, online_only) in [("online-only", true), ("persisted", false)] {
        let body = if online_only {
            body(&node, &json!({"online_only": true}))
        } else {
            json!({"from": "alice", "to": {"users": ["bob"]}, "type": "t", "payload": 1}).to_string()
        };
        let answers: Vec<_> = std::thread::scope(|scope| {
            let sends: Vec<_> = (0..20).map(|_| scope.spawn(|| send(&node, key, &body))).collect();
            sends.into_iter().map(|send| send.join().unwrap()).collect()
        });
        let fresh: Vec<_> =
            answers.iter().filter(|a| a.status < 300 && a.header("idempotent-replayed").is_none()).collect();
        assert_eq!(fresh.len(), 1);
        for answer in &answers {
            if answer.status < 300 {
                assert_eq!(answer.json()["id"], fresh[0].json()["id"]);
            } else {
                answer.problem(409, "idempotency_in_progress");
            }
        }
        assert_eq!(bob.next_message()["id"], fresh[0].json()["id"]);
    }
    let marker = node.backend().whisper("bob").json();
    assert_eq!(bob.next_message()["id"], marker["id"]);
}

#[test]
fn a_send_that_was_refused_leaves_its_key_free() {
    let node = Node::start();
    send(&node, "k", "{").problem(400, "malformed_json");
    send(&node, "k", r#"{"from":"alice"}"#).problem(422, "invalid_request");
    send(&node, "k", &body(&node, &json!({"online_only": true}))).expect(200);
}

#[test]
fn a_key_has_1_to_128_characters() {
    let node = Node::start();
    let body = body(&node, &json!({"online_only": true}));
    send(&node, &"k".repeat(128), &body).expect(200);
    for wrong in ["", &"k".repeat(129)] {
        let problem = send(&node, wrong, &body).problem(422, "invalid_request");
        assert_eq!(problem["errors"][0]["pointer"], "Idempotency-Key");
    }
}

#[test]
fn a_key_is_good_for_another_message_after_its_window() {
    let node = Node::with(&["limits.idempotency_window_s=1"]);
    let body = |n: u32| json!({"from": "alice", "to": {"users": ["bob"]}, "type": "t", "payload": n}).to_string();
    let begun = Instant::now();
    send(&node, "k", &body(1)).expect(201);
    send(&node, "k", &body(2)).problem(422, "idempotency_key_reused");
    eventually_is("the window ends", || send(&node, "k", &body(2)), |answer| answer.status == 201);
    assert!(begun.elapsed() >= Duration::from_millis(990), "{:?}", begun.elapsed());
}
