//! The question before a send (CONTRACT.md 8): allow, reject, replace; what becomes of it when there is no answer.

use crate::harness::receiver::Reply;
use crate::harness::*;
use crate::support::*;
use std::time::{Duration, Instant};

fn node_asking(receiver: &Receiver, set: &[&str]) -> Node {
    node_of(&[("before_send", receiver)], set)
}

fn say(receiver: &Receiver, answer: &Value) {
    let text = answer.to_string();
    receiver.answer(Reply::Text(200, text));
}

#[test]
fn it_is_asked_of_every_send_with_the_send_as_it_was_written() {
    let receiver = Receiver::start();
    say(&receiver, &json!({"action": "allow"}));
    let node = node_asking(&receiver, &[]);
    let mut bob = node.device("bob", "phone");
    let text = r#"{"from":"alice","to":{"users":["bob"]}, "type":"chat","payload":{"n":12345678901234567890,"x":1.0}}"#;
    node.backend().request(Request::post("/v1/messages").json(text)).expect(201);
    bob.next_message();
    assert_eq!(node.backend().whisper("bob").expect(200).json()["summary"]["delivered"], 1);
    let calls = receiver.expect_callbacks(2);
    assert!(calls.iter().all(|call| call.kind() == "message.before_send"));
    assert!(calls[0].body.contains(text), "{}", calls[0].body);
    assert_eq!(calls[1].data()["online_only"], true);
}

#[test]
fn a_rejected_send_is_403_with_the_reason_and_reaches_nobody() {
    let receiver = Receiver::start();
    say(&receiver, &json!({"action": "reject", "reason": "no such words here"}));
    let node = node_asking(&receiver, &[]);
    let mut bob = node.device("bob", "phone");
    for message in [
        chat(&["bob"], &json!(1)),
        json!({"from": "alice", "to": {"users": ["bob"]}, "type": "t", "payload": {}, "online_only": true}),
    ] {
        let problem = node.backend().send(message).problem(403, "forbidden");
        assert_eq!(problem["detail"], "no such words here");
    }
    say(&receiver, &json!({"action": "allow"}));
    let marker = node.backend().whisper("bob").json();
    assert_eq!(bob.next_message()["id"], marker["id"], "nothing before it");
    assert!(whole_inbox(&node, "bob").is_empty());
}

#[test]
fn a_rejected_send_gives_its_idempotency_key_back_and_a_repeat_is_not_asked_of() {
    let receiver = Receiver::start();
    let node = node_asking(&receiver, &[]);
    for message in [
        chat(&["bob"], &json!(1)),
        json!({"from": "alice", "to": {"users": ["bob"]}, "type": "t", "payload": {"c": node.canary()}, "online_only": true}),
    ] {
        let key = message["type"].as_str().unwrap();
        say(&receiver, &json!({"action": "reject"}));
        send_with_key(&node, &message, key).problem(403, "forbidden");
        say(&receiver, &json!({"action": "allow"}));
        let first = send_with_key(&node, &message, key).json();
        say(&receiver, &json!({"action": "reject"}));
        assert_eq!(send_with_key(&node, &message, key).json(), first);
    }
}

#[test]
fn a_replaced_payload_is_relayed_byte_for_byte() {
    let receiver = Receiver::start();
    receiver.answer(Reply::Text(200, r#"{"payload": {"b":1, "a":12345678901234567890}, "action":"replace"}"#.into()));
    let node = node_asking(&receiver, &[]);
    let mut bob = node.device("bob", "phone");
    node.backend().whisper("bob").expect(200);
    stored(&node, &chat(&["bob"], &json!("old")));
    for _ in 0..2 {
        let event = bob.next_event();
        assert_eq!(event.payload_text(), r#"{"b":1, "a":12345678901234567890}"#);
    }
}

#[test]
fn without_an_answer_the_configuration_decides() {
    let large = json!({"action": "replace", "payload": "x".repeat(70_000)}).to_string();
    for reply in [
        Reply::Status(500),
        Reply::Text(200, "{}".into()),
        Reply::Text(200, "no".into()),
        Reply::Hang,
        Reply::Text(200, large),
    ] {
        for (on_failure, persisted, online) in [("allow", 201, 200), ("reject", 403, 403)] {
            let receiver = Receiver::start();
            let said = reply.clone();
            receiver.answer(said);
            let set =
                [&format!("callbacks.before_send.on_failure={on_failure}"), "callbacks.before_send.timeout_ms=200"];
            let node = node_asking(&receiver, &set.map(|s: &str| s));
            node.backend().send(chat(&["bob"], &json!(1))).expect(persisted);
            node.backend().whisper("bob").expect(online);
        }
    }
}

#[test]
fn a_service_that_is_down_does_not_cost_every_send_its_timeout() {
    let receiver = Receiver::start();
    receiver.answer(Reply::Hang);
    let node = node_asking(&receiver, &["callbacks.before_send.timeout_ms=300"]);
    for _ in 0..5 {
        node.backend().whisper("bob").expect(200);
    }
    let begun = Instant::now();
    for _ in 0..20 {
        node.backend().whisper("bob").expect(200);
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "20 sends took {:?}", begun.elapsed());
    say(&receiver, &json!({"action": "reject"}));
    eventually_is("it is asked again", || node.backend().whisper("bob").status, |status| *status == 403);
}
