//! Running it: health, readiness, metrics, documentation, draining (CONTRACT.md 9).

use crate::harness::*;
use std::time::{Duration, Instant};

#[test]
fn a_node_without_work_ends_at_once_whatever_time_it_may_take() {
    let mut node = Node::with(&["server.drain_s=60"]);
    let asked = Instant::now();
    assert!(node.stop().success());
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert!(!node.log().contains("in flight"), "{}", node.log());
}

#[test]
fn a_signal_that_comes_as_soon_as_it_serves_is_heeded() {
    for _ in 0..20 {
        let mut node = Node::start();
        let status = node.stop();
        assert!(status.success(), "{status}");
    }
}

#[test]
fn a_second_signal_ends_a_drain() {
    let mut node = Node::with(&["server.drain_s=60"]);
    let mut bob = node.device("bob", "phone");
    let _carol = node.device("carol", "phone");
    node.signal("TERM");
    eventually_is("draining", || Request::get("/readyz").send(node.admin_address()).status, |status| *status == 503);
    node.signal("TERM");
    assert!(node.wait().success());
    drop(bob.events_until_end());
}

#[test]
fn an_interrupt_drains_too() {
    let mut node = Node::start();
    let mut bob = node.device("bob", "phone");
    node.signal("INT");
    bob.expect_bye("draining");
    assert!(node.wait().success());
}

#[test]
fn what_is_in_flight_is_answered_before_the_end() {
    let mut node = Node::with(&["server.drain_s=2", "limits.answer_wait_ms=20000"]);
    let stuck = node.stuck_device("bob", "phone");
    let answer = std::thread::scope(|scope| {
        let send = |key: &'static str| {
            let body = json!({"from": "alice", "to": {"users": ["bob"]}, "type": "t", "payload": {"canary": node.canary()}, "online_only": true, "ttl_ms": 60_000, "collapse_key": "k"});
            let backend = node.backend();
            scope.spawn(move || {
                backend.request(Request::post("/v1/messages").header("Idempotency-Key", key).json(body.to_string()))
            })
        };
        // Once the one has taken the other's place, the one is in the queue.
        let sends = [send("1"), send("2")];
        eventually_is("one waits", || node.count("herenow_queue_refusals_total{reason=\"superseded\"}"), |n| *n == 1);
        node.signal("TERM");
        sends.map(|send| send.join().unwrap().expect(200).json()["recipients"][0]["outcome"].clone())
    });
    assert!(answer.contains(&json!("superseded")) && answer.contains(&json!("offline")), "{answer:?}");
    assert!(node.wait().success());
    drop(stuck);
}

#[test]
fn a_node_that_was_paused_goes_on() {
    let node = Node::with(&["stream.heartbeat_s=1", "stream.dead_peer_s=1", "stream.stall_timeout_s=1"]);
    let mut bob = node.device("bob", "phone");
    node.signal("STOP");
    std::thread::scope(|scope| {
        let sends: Vec<_> = (0..3).map(|_| scope.spawn(|| node.backend().whisper("bob").expect(200).json())).collect();
        // Longer than any peer may be silent or take nothing: but it was the node that did not look.
        std::thread::sleep(Duration::from_millis(2_500));
        node.signal("CONT");
        for send in sends {
            assert_eq!(send.join().unwrap()["recipients"][0]["outcome"], "delivered");
        }
    });
    for _ in 0..3 {
        bob.next_message();
    }
    assert!(node.backend().is_online("bob"));
}

#[test]
fn nobody_can_hold_up_the_end() {
    let mut node = Node::with(&["server.drain_s=1"]);
    let _stuck = node.stuck_device("bob", "phone");
    let vanished = node.device("carol", "phone");
    vanished.vanish();
    let _idle = std::net::TcpStream::connect(node.address()).unwrap();
    let mut begun = std::net::TcpStream::connect(node.address()).unwrap();
    std::io::Write::write_all(&mut begun, b"POST /v1/messages HTTP/1.1\r\nContent-Le").unwrap();
    let since = Instant::now();
    assert!(node.stop().success());
    assert!(since.elapsed() < Duration::from_secs(6), "{:?}", since.elapsed());
}

#[test]
fn health_and_readiness_are_on_both_listeners_and_need_no_credentials() {
    let node = Node::start();
    for address in [node.address(), node.admin_address()] {
        assert_eq!(Request::get("/healthz").send(address).expect(200).text(), "ok\n");
        assert_eq!(Request::get("/readyz").send(address).expect(200).json(), json!({"ready": true, "away": []}));
    }
}

#[test]
fn metrics_keep_prometheus_conventions_and_name_no_user() {
    let node = Node::start();
    let mut bob = node.device("user-zebra", "device-zebra");
    let message = json!({"from": "sender-zebra", "to": {"users": ["user-zebra"]}, "type": "type-zebra", "payload": {}, "online_only": true, "collapse_key": "key-zebra"});
    node.backend().send(message).expect(200);
    node.backend().store("user-zebra", &json!("payload-zebra"));
    bob.next_message();
    bob.next_message();
    Request::get("/path-zebra").header("X-Request-Id", "id-zebra").send(node.address()).expect(404);
    let answer = Request::get("/metrics").send(node.admin_address()).expect(200);
    assert_eq!(answer.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    let text = answer.text();
    assert!(!text.contains("zebra"), "{text}");
    assert!(text.ends_with("# EOF\n"));
    let mut kinds = std::collections::HashMap::new();
    for line in text.lines() {
        let words: Vec<_> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", name, help] => assert!(!help.is_empty(), "{name}"),
            ["#", "TYPE", name, kind] => assert!(kinds.insert(name, kind).is_none(), "{name} comes twice"),
            ["#", ..] => {}
            _ => {
                let (name, labels) = line.split_once(['{', ' ']).unwrap();
                let base = ["_total", "_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| name.strip_suffix(end))
                    .unwrap_or(name);
                let kind = kinds.get(base).unwrap_or_else(|| panic!("no TYPE of {name}"));
                assert!(name.starts_with("herenow_"), "{name}");
                assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{name}");
                assert_eq!(*kind == "counter", name.ends_with("_total"), "{line}");
                for foreign in ["user=", "device=", "message=", "token=", "path="] {
                    assert!(!labels.contains(foreign), "{line}");
                }
                if base.contains("second") || base.contains("byte") {
                    assert!(base.ends_with("_seconds") || base.ends_with("_bytes"), "the unit stands last: {base}");
                }
                assert!(!base.contains("milli") && !base.ends_with("_ms"), "base units: {base}");
            }
        }
    }
    assert_eq!(node.count("herenow_streams"), 1);
    assert_eq!(node.count("herenow_outcomes_total{outcome=\"delivered\"}"), 1);
    assert_eq!(node.count("herenow_sends_total{kind=\"persisted\"}"), 1);
    Request::get("/metrics").send(node.address()).problem(404, "not_found");
}

#[test]
fn the_admin_listener_can_be_off() {
    let node = Node::setup().without_admin().start();
    node.backend().whisper("bob").expect(200);
}

#[test]
fn the_openapi_document_is_the_file_and_names_all_that_is_served() {
    let node = Node::start();
    let answer = Request::get("/openapi.json").send(node.address()).expect(200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.text(), include_str!("../../openapi/openapi.json"));
    let document = answer.json();
    for (path, operations) in document["paths"].as_object().unwrap() {
        let path = path.replace(['{', '}'], "");
        for method in operations.as_object().unwrap().keys() {
            let answer = Request::new(&method.to_uppercase(), &path).send(node.address());
            let known = !matches!(answer.status, 404 | 405);
            assert!(known, "{method} {path}: {answer}");
        }
    }
}

#[test]
fn the_documentation_is_browsable_without_a_network() {
    let node = Node::start();
    let answer = Request::get("/docs").send(node.address());
    assert_eq!((answer.status, answer.header("location")), (308, Some("/docs/")));
    let page = Request::get("/docs/").send(node.address()).expect(200);
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    let page = page.text();
    assert!(!page.contains("//cdn") && !page.contains("http"), "{page}");
    let references: Vec<_> =
        page.split(['"', '\'']).filter(|text| [".js", ".css", ".png"].iter().any(|end| text.ends_with(end))).collect();
    assert!(references.len() >= 4, "{references:?}");
    for reference in references {
        let path = format!("/docs/{}", reference.trim_start_matches("./"));
        Request::get(&path).send(node.address()).expect(200);
    }
    let script = Request::get("/docs/swagger-initializer.js").send(node.address()).expect(200).text();
    assert!(script.contains("/openapi.json") && !script.contains("http"), "{script}");
}

#[test]
fn an_address_that_is_taken_is_told_and_ends_the_start() {
    let node = Node::start();
    let directory = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_herenow"));
    let command = command.env_clear().current_dir(directory.path()).args([
        "serve",
        "--listen",
        &node.address().to_string(),
        "--admin-listen",
        "",
    ]);
    let output = command.output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains(&format!("can't listen on {}", node.address())), "{told}");
}
