//! Streams that come another way than by a plain request over HTTP/1.1: through the HTTP server, in pieces, or over HTTP/2. They are the same.

use crate::harness::http::Body;
use crate::harness::*;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn through_the_server_messages_of_both_kinds_arrive_in_order() {
    let node = Node::with(&["stream.heartbeat_s=1"]);
    for n in 1..=5 {
        node.backend().store("bob", &json!(n));
    }
    let mut bob = node.stream("bob", "phone").after("2").by_the_server().open();
    assert_eq!(bob.header("content-type"), Some("text/event-stream"));
    for cursor in ["3", "4", "5"] {
        assert_eq!(bob.next_message()["cursor"], cursor);
    }
    for n in 6..=30 {
        let whispered = node.backend().whisper("bob").json();
        assert_eq!(whispered["recipients"][0]["outcome"], "delivered");
        assert_eq!(bob.next_message()["id"], whispered["id"]);
        node.backend().store("bob", &json!(n));
        assert_eq!(bob.next_message()["cursor"], n.to_string());
    }
    bob.read_while(|bob| bob.heartbeats == 0);
    let _other = node.device("bob", "phone");
    bob.expect_bye("replaced");
}

#[test]
fn through_the_server_a_closed_connection_is_offline_at_once() {
    let node = Node::with(&["stream.heartbeat_s=300"]);
    let mut times = vec![];
    for n in 0..9 {
        let mut bob = node.stream("bob", "phone").by_the_server().open();
        let since = Instant::now();
        match n % 3 {
            0 => bob.close(),
            1 => bob.reset(),
            _ => bob.half_close(),
        }
        eventually_is("offline", || node.backend().is_online("bob"), |online| !online);
        times.push(since.elapsed());
    }
    assert!(median(times.clone()) < Duration::from_millis(50), "{times:?}");
}

#[test]
fn through_the_server_a_stuck_device_loses_its_turn_and_never_gets_the_message() {
    let node = Node::start();
    let mut stuck = node.stream("bob", "phone").receive_buffer(4 << 10).by_the_server().open();
    node.stick("bob");
    let mut laptop = node.device("bob", "laptop");
    stuck.set_state("active").expect(204);
    let answer = node.backend().whisper_with(&["bob"], &json!({"payload": {"moved": true}}));
    assert_eq!(answer["recipients"][0]["devices"], json!(["laptop"]));
    assert_eq!(laptop.next_message()["id"], answer["id"]);
    let end = json!({"deliver_to": "every_device", "payload": {"end": true}, "ttl_ms": 30_000});
    node.backend().whisper_with(&["bob"], &end);
    assert!(stuck.messages_before("\"end\"").iter().all(|event| !event.data.contains("moved")), "never both");
}

#[test]
fn through_the_server_what_is_wrong_is_told_the_same() {
    let node = Node::with(&["stream.max=1"]);
    let stream = || node.stream("bob", "phone").by_the_server();
    stream().after("x").refused().problem(422, "invalid_request");
    stream().token("x").refused().problem(401, "invalid_credentials");
    stream().without_header().refused().problem(401, "missing_credentials");
    let _full = node.device("carol", "phone");
    stream().refused().problem(429, "rate_limited");
}

#[test]
fn a_request_that_comes_in_pieces_opens_a_stream_too() {
    let node = Node::start();
    let request = Request::get("/v1/stream").bearer(&node.token("bob", "phone")).to_bytes(node.address());
    for size in [1, 7, request.len() - 2] {
        let mut tcp = TcpStream::connect(node.address()).unwrap();
        tcp.set_nodelay(true).unwrap();
        for piece in request.chunks(size) {
            tcp.write_all(piece).unwrap();
        }
        let (mut body, mut chunk) = (Body::default(), [0; 4 << 10]);
        tcp.set_read_timeout(Some(SOON)).unwrap();
        while !String::from_utf8_lossy(&body.content).contains("event: ready") {
            let n = tcp.read(&mut chunk).unwrap();
            assert_ne!(n, 0, "{}", String::from_utf8_lossy(&body.content));
            body.push(&chunk[..n]);
        }
        assert_eq!(node.backend().whisper("bob").json()["recipients"][0]["outcome"], "delivered");
    }
}

#[test]
fn what_follows_a_request_for_a_stream_is_no_request() {
    let node = Node::start();
    let send = Request::post("/v1/messages").bearer(&node.api_key());
    let send = send.json(r#"{"from":"a","to":{"users":["bob"]},"type":"t","payload":1}"#).to_bytes(node.address());
    for together in [true, false] {
        // A device each: the first connection may be looked at only after the second was opened, and would replace its stream.
        let token = node.token("bob", if together { "phone" } else { "tablet" });
        let stream = Request::get("/v1/stream").bearer(&token).to_bytes(node.address());
        let mut tcp = TcpStream::connect(node.address()).unwrap();
        if together {
            tcp.write_all(&[&stream[..], &send].concat()).unwrap();
        } else {
            tcp.write_all(&stream).unwrap();
            eventually_is("online", || node.backend().is_online("bob"), |online| *online);
            tcp.write_all(&send).unwrap();
        }
        drop(tcp);
        eventually_is("offline", || node.count("herenow_streams"), |streams| *streams == 0);
    }
    assert!(node.count("herenow_sends_total{kind=\"persisted\"}") <= 1, "an HTTP server may take a request ahead");
}

#[test]
fn a_connection_that_served_requests_may_become_a_stream() {
    let node = Node::start();
    let mut tcp = TcpStream::connect(node.address()).unwrap();
    for _ in 0..3 {
        tcp.write_all(&Request::get("/healthz").to_bytes(node.address())).unwrap();
        let answer = http::read_answer(&mut tcp, Instant::now() + SOON).unwrap().unwrap();
        assert_eq!(answer.status, 200);
    }
    let request = Request::get("/v1/stream").bearer(&node.token("bob", "phone")).to_bytes(node.address());
    tcp.write_all(&request).unwrap();
    eventually_is("online", || node.backend().is_online("bob"), |online| *online);
    assert_eq!(node.backend().whisper("bob").json()["recipients"][0]["outcome"], "delivered");
    drop(tcp);
    eventually_is("offline", || node.backend().is_online("bob"), |online| !online);
}

#[test]
fn over_http_2_requests_are_answered_as_over_http_1() {
    let node = Node::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().unwrap();
    let body = json!({"from": "alice", "to": {"users": ["bob"]}, "type": "t", "payload": {"canary": node.canary()}, "online_only": true});
    let send = |body: String| {
        let request = client.post(format!("http://{}/v1/messages", node.address())).bearer_auth(node.api_key());
        let request = request.header("content-type", "application/json").body(body);
        let answer = runtime.block_on(request.send()).unwrap();
        (answer.status().as_u16(), runtime.block_on(answer.text()).unwrap())
    };
    assert_eq!(send(body.to_string()).0, 200);
    let (status, problem) = send("{".into());
    assert!(status == 400 && problem.contains("malformed_json"), "{problem}");
    let (status, problem) = send(format!("{}{body}", " ".repeat(5 << 20)));
    assert!(status == 413 && problem.contains("payload_too_large"), "{status} {problem}");
}
