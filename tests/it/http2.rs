//! HTTP/2, with TLS and without: what HTTP/1.1 does, and what only HTTP/2 has, which is many streams on one connection.

use crate::harness::node::API_KEY;
use crate::harness::wire::{Http2, Http2Stream};
use crate::harness::*;
use std::time::{Duration, Instant};

/// Does the same over plain TCP and over TLS.
fn over_both(set: &[&str], check: impl Fn(&Node, &Wire)) {
    let secure = Secure::new();
    let settings = set.iter().map(ToString::to_string).collect::<Vec<_>>();
    let node = Node::setup().set_all(&settings).start();
    check(&node, &Wire::plain(&node));
    let node = secure.setup().set_all(&settings).start();
    check(&node, &Wire::tls(&node, &secure));
}

fn open(wire: &mut Http2, node: &Node, user: &str, device: &str) -> Http2Stream {
    let mut stream = wire.stream(&node.token(user, device));
    stream.read_until("event: ready");
    stream
}

fn client(wire: &Wire) -> reqwest::Client {
    wire.client(reqwest::ClientBuilder::http2_prior_knowledge)
}

/// Sends an online-only message; gives what became of it.
#[track_caller]
fn whisper(node: &Node, wire: &Wire, to: &str, fields: &Value) -> Value {
    let mut message = json!({"from": "alice", "to": {"users": [to]}, "type": "typing", "payload": {"c": node.canary()}, "online_only": true});
    message.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let request = client(wire).post(wire.url("/v1/messages")).bearer_auth(API_KEY);
    let request = request.header("content-type", "application/json").body(message.to_string());
    let (version, status, _, text) = wire.ask(request);
    assert_eq!((version, status), (reqwest::Version::HTTP_2, 200), "{text}");
    serde_json::from_str::<Value>(&text).unwrap()["recipients"][0].take()
}

/// How long the node goes on counting more than this many streams.
#[track_caller]
fn time_to_leave(node: &Node, streams_left: u64, leave: impl FnOnce()) -> Duration {
    let left = Instant::now();
    leave();
    eventually_is("the streams that are left", || node.count("herenow_streams"), |streams| *streams == streams_left);
    left.elapsed()
}

#[track_caller]
fn assert_at_once(mut times: Vec<Duration>) {
    times.sort();
    assert!(times[times.len() / 2] < Duration::from_millis(50), "{times:?}");
}

#[test]
fn a_closed_connection_ends_all_its_streams_at_once() {
    over_both(&["stream.heartbeat_s=300"], |node, wire| {
        let mut times = vec![];
        for _ in 0..5 {
            let mut connection = wire.http2();
            let streams: Vec<_> = (0..3).map(|n| open(&mut connection, node, "bob", &format!("d{n}"))).collect();
            times.push(time_to_leave(node, 0, || connection.close()));
            assert_eq!(whisper(node, wire, "bob", &json!({}))["outcome"], "offline");
            drop(streams);
        }
        assert_at_once(times);
    });
}

#[test]
fn a_reset_stream_ends_at_once_and_its_neighbours_go_on() {
    over_both(&["stream.heartbeat_s=300"], |node, wire| {
        let mut connection = wire.http2();
        let mut carol = open(&mut connection, node, "carol", "phone");
        let mut times = vec![];
        for n in 0..5 {
            let bob = open(&mut connection, node, "bob", "phone");
            times.push(time_to_leave(node, 1, || if n % 2 == 0 { bob.reset() } else { drop(bob) }));
            // Nothing is lost in a stream that nobody reads any more.
            assert_eq!(whisper(node, wire, "bob", &json!({}))["outcome"], "offline");
            assert_eq!(whisper(node, wire, "carol", &json!({}))["outcome"], "delivered");
            assert_eq!(carol.next_message()["type"], "typing");
        }
        assert_at_once(times);
    });
}

#[test]
fn a_hundred_streams_share_one_connection() {
    over_both(&["stream.heartbeat_s=300"], |node, wire| {
        let mut connection = wire.http2();
        let mut streams: Vec<_> = (0..100).map(|n| open(&mut connection, node, &format!("u{n}"), "phone")).collect();
        assert_eq!(node.count("herenow_streams"), 100);
        for (n, stream) in streams.iter_mut().enumerate() {
            assert_eq!(whisper(node, wire, &format!("u{n}"), &json!({}))["outcome"], "delivered");
            assert_eq!(stream.next_message()["to"], json!({"users": [format!("u{n}")]}));
        }
        // And requests go on beside them.
        let (answer, _send) = connection.request("GET", "/v1/inbox", &node.token("u0", "phone"));
        assert_eq!(wire.runtime.block_on(answer).unwrap().status().as_u16(), 200);
        assert_at_once(vec![time_to_leave(node, 0, || connection.close())]);
    });
}

#[test]
fn a_connection_takes_no_more_than_a_thousand_at_a_time() {
    let node = Node::with(&["stream.heartbeat_s=300", "stream.devices_per_user=1000", "log.level=info"]);
    let wire = Wire::plain(&node);
    let mut connection = wire.http2();
    let token = node.token("bob", "phone");
    let hung: Vec<_> = (0..1_000).map(|_| connection.request("GET", "/v1/stream", &token)).collect();
    // The last one has replaced all others, which have ended.
    eventually_is("streams", || node.count("herenow_streams"), |streams| *streams == 1);
    for (answer, _send) in hung {
        assert_eq!(wire.runtime.block_on(answer).unwrap().status().as_u16(), 200);
    }
}

#[test]
fn a_device_that_does_not_read_holds_nothing_up() {
    let set = ["stream.heartbeat_s=300", "limits.seat_patience_ms=50"];
    over_both(&set, |node, wire| {
        let mut connection = wire.http2_with_window(2_000);
        let mut stuck = open(&mut connection, node, "bob", "phone");
        let mut carol = open(&mut connection, node, "carol", "phone");
        let filling = json!({"payload": {"filling": "f".repeat(900), "c": node.canary()}, "ttl_ms": 100});
        let outcome = |_| whisper(node, wire, "bob", &filling)["outcome"].as_str().unwrap().to_owned();
        let outcomes: Vec<_> = (0..5).map(outcome).collect();
        // What its window takes, and no more but the one that the window cuts in two.
        let taken = outcomes.iter().take_while(|outcome| *outcome == "delivered").count();
        assert!((1..=2).contains(&taken), "{outcomes:?}");
        assert!(outcomes[taken..].iter().all(|outcome| outcome == "expired"), "{outcomes:?}");
        let tablet = open(&mut wire.http2(), node, "bob", "tablet");
        let post = client(wire).post(wire.url("/v1/state")).bearer_auth(node.token("bob", "phone"));
        let post = post.header("content-type", "application/json").body(r#"{"state":"active"}"#);
        assert_eq!(wire.ask(post).1, 204);
        // It is the first in line, and the other gets what it doesn't take.
        assert_eq!(whisper(node, wire, "bob", &json!({}))["devices"], json!(["tablet"]));
        assert_eq!(whisper(node, wire, "carol", &json!({}))["outcome"], "delivered");
        assert_eq!(carol.next_message()["type"], "typing");
        drop(tablet);
        for _ in 0..taken {
            assert_eq!(stuck.next_message()["type"], "typing");
        }
        assert_eq!(whisper(node, wire, "bob", &json!({"type": "again"}))["outcome"], "delivered");
        assert_eq!(stuck.next_message()["type"], "again");
    });
}

#[test]
fn of_the_streams_of_a_connection_only_the_one_that_takes_nothing_is_cut_off() {
    over_both(&["stream.heartbeat_s=300", "stream.stall_timeout_s=1"], |node, wire| {
        let mut connection = wire.http2_with_window(2_000);
        let stuck = open(&mut connection, node, "bob", "phone");
        let mut carol = open(&mut connection, node, "carol", "phone");
        let filling = json!({"payload": {"filling": "f".repeat(5_000), "c": node.canary()}, "ttl_ms": 60_000});
        whisper(node, wire, "bob", &filling);
        whisper(node, wire, "bob", &filling);
        eventually_is("the stuck one is gone", || node.count("herenow_streams"), |streams| *streams == 1);
        assert_eq!(whisper(node, wire, "carol", &json!({}))["outcome"], "delivered");
        assert_eq!(carol.next_message()["type"], "typing");
        drop(stuck);
    });
}

#[test]
fn a_large_message_passes_a_small_window() {
    over_both(&[], |node, wire| {
        let mut connection = wire.http2_with_window(1_000);
        let mut bob = open(&mut connection, node, "bob", "phone");
        let large = "x".repeat(60_000);
        let message = json!({"from": "alice", "to": {"users": ["bob"]}, "type": "chat", "payload": large});
        let request = client(wire).post(wire.url("/v1/messages")).bearer_auth(API_KEY);
        let request = request.header("content-type", "application/json").body(message.to_string());
        assert_eq!(wire.ask(request).1, 201);
        assert_eq!(bob.next_message()["payload"], large);
    });
}

#[test]
fn answers_are_those_of_http_1() {
    over_both(&["server.cors_origins=https://app.example"], |node, wire| {
        let client = client(wire);
        let (version, status, headers, text) = wire.ask(client.get(wire.url("/healthz")));
        assert_eq!((version, status, text.as_str()), (reqwest::Version::HTTP_2, 200, "ok\n"));
        assert_eq!(headers["content-length"], "3");
        assert!(headers.contains_key("date") && headers.contains_key("x-request-id"), "{headers:?}");
        let (_, status, headers, text) = wire.ask(client.head(wire.url("/healthz")));
        assert_eq!((status, headers["content-length"].to_str().unwrap(), text.as_str()), (200, "3", ""));
        let (_, status, headers, text) = wire.ask(client.put(wire.url("/healthz")).header("x-request-id", "mine"));
        assert_eq!((status, headers["allow"].to_str().unwrap()), (405, "GET"), "{text}");
        assert_eq!(headers["x-request-id"], "mine");
        assert_eq!(headers["content-type"], "application/problem+json");
        let ack = client.post(wire.url("/v1/ack")).bearer_auth(node.token("bob", "phone"));
        let (_, status, headers, _) =
            wire.ask(ack.header("content-type", "application/json").body(r#"{"cursor":"0"}"#));
        assert_eq!((status, headers.get("content-length")), (204, None));
        let preflight = client.request(reqwest::Method::OPTIONS, wire.url("/v1/stream"));
        let preflight =
            preflight.header("origin", "https://app.example").header("access-control-request-method", "GET");
        let (_, status, headers, _) = wire.ask(preflight);
        assert_eq!((status, headers["access-control-allow-origin"].to_str().unwrap()), (200, "https://app.example"));
        let (_, status, _, text) = wire.ask(client.get(wire.url("/v1/stream")));
        assert!(status == 401 && text.contains("missing_credentials"), "{text}");
        let large = client.get(wire.url("/healthz")).header("x-large", "x".repeat(100_000));
        assert_eq!(wire.ask(large).1, 431);
    });
}

#[test]
fn a_drain_says_goodbye_and_lets_the_connection_end() {
    let secure = Secure::new();
    let mut node = secure.setup().start();
    let wire = Wire::tls(&node, &secure);
    let mut connection = wire.http2();
    let bob = open(&mut connection, &node, "bob", "phone");
    let carol = open(&mut connection, &node, "carol", "phone");
    node.signal("TERM");
    for stream in [bob, carol] {
        let text = stream.read_to_end();
        assert!(text.contains("event: bye") && text.contains("draining"), "{text}");
    }
    connection.closed();
    assert!(node.wait().success());
}
