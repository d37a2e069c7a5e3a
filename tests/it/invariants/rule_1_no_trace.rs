//! 1. No trace: an online-only payload never reaches the store, a Redis key, a log, a trace, a metric or a callback.

use super::outcome;
use crate::harness::*;
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

/// Every way that an online-only payload can take, good and bad. The harness looks for what is left, here also after a crash.
#[test]
fn an_online_only_payload_is_in_no_log_no_file_and_no_metric_whatever_becomes_of_it() {
    let mut node = Node::with(&["limits.answer_wait_ms=100", "stream.queue_frames=2", "log.format=json"]);
    let mut here = node.device("here", "phone");
    let stuck = node.stuck_device("stuck", "phone");
    let mut seen = HashSet::new();
    for fields in [
        json!({"ttl_ms": 20}),
        json!({}),
        json!({"deliver_to": "every_device"}),
        json!({"ttl_ms": 60_000, "collapse_key": "k"}),
    ] {
        for _ in 0..2 {
            for user in ["here", "stuck", "away"] {
                seen.insert(outcome(&node.backend().whisper_with(&[user], &fields)).to_owned());
            }
        }
    }
    for expected in ["delivered", "offline", "unconfirmed", "expired"] {
        assert!(seen.contains(expected), "{seen:?}");
    }
    let canary = node.canary();
    let bodies = [
        format!(r#"{{"from":"a","to":{{"users":["here"]}},"type":"t","online_only":true,"payload":"{canary}"}}"#),
        format!(
            r#"{{"from":"a","to":{{"users":["here"]}},"type":"t","online_only":true,"payload":"{canary}","wrong":1}}"#
        ),
        format!(r#"{{"from":"a","to":{{"users":["here"]}},"type":"t","online_only":true,"payload":"{canary}"#),
        format!(r#"{{"from":"a","to":{{"users":["here"]}},"type":"t","online_only":"{canary}","payload":1}}"#),
        format!(
            r#"{{"from":"a","to":{{"users":["here"]}},"type":"t","online_only":true,"payload":"{canary}{}"}}"#,
            "p".repeat(70_000)
        ),
        format!(
            r#"{{"from":"a","to":{{"users":["here"]}},"type":"t","online_only":true,"payload":"{canary}","push":{{"x":"{canary}"}}}}"#
        ),
        format!(
            r#"{{"from":"{canary}","to":{{"users":["{canary}"]}},"type":"{canary}","online_only":true,"payload":1,"collapse_key":"{canary}"}}"#
        ),
    ];
    for body in &bodies {
        for key in ["same", "another"] {
            let request = Request::post("/v1/messages").header("Idempotency-Key", key).json(body.as_str());
            node.backend().request(request);
        }
    }
    let whisper = json!({"from": "a", "to": {"users": ["here"]}, "type": "t", "online_only": true, "payload": canary});
    let unheard = Request::post("/v1/messages").header("Prefer", "respond-async").json(whisper.to_string());
    node.backend().request(unheard).expect(202);
    node.backend().post("/v1/messages/batch", &json!({"messages": [whisper, {"payload": canary}]})).expect(207);
    // What is stored beside it takes nothing of it along.
    node.backend().store("here", &json!("kept"));
    here.messages_before("kept");
    node.kill();
    node.restart();
    drop(stuck);
    node.backend().store("here", &json!("kept too"));
}

#[test]
fn an_online_only_payload_reaches_no_callback() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let received = Arc::new(Mutex::new(String::new()));
    let gathered = received.clone();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut bytes = [0; 16 << 10];
            let n = connection.read(&mut bytes).unwrap_or(0);
            gathered.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..n]));
            let _ = connection.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
        }
    });
    let node = Node::with(&[&format!("callbacks.storage.url={url}"), &format!("callbacks.push.url={url}")]);
    let mut bob = node.device("bob", "phone");
    for _ in 0..3 {
        node.backend().whisper("bob");
        node.backend().whisper("away");
        bob.next_message();
    }
    node.backend().store("away", &json!("a marker"));
    let text = || received.lock().unwrap().clone();
    eventually_is("both callbacks of the marker", text, |text| {
        text.contains("message.stored") && text.contains("message.push")
    });
    let text = text();
    assert!(!text.contains("CANARY") && !text.contains("typing"), "{text}");
}
