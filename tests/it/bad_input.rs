//! What nobody should send: each gets the contract's answer where HTTP allows one, and changes nothing (CONTRACT.md 1).

use crate::harness::http::{exchange, read_answer};
use crate::harness::node::API_KEY;
use crate::harness::*;
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

const GOOD: &str = r#"{"from":"alice","to":{"users":["bob"]},"type":"t","payload":{},"online_only":true}"#;

fn post(node: &Node, body: impl Into<Vec<u8>>) -> Answer {
    node.backend().request(Request::post("/v1/messages").json(body))
}

/// A good message with one field replaced, or added.
fn with(field: &str, value: &str) -> String {
    let mut fields: Vec<(&str, &str)> = vec![
        ("from", r#""alice""#),
        ("to", r#"{"users":["bob"]}"#),
        ("type", r#""t""#),
        ("payload", "{}"),
        ("online_only", "true"),
    ];
    fields.retain(|(name, _)| *name != field);
    fields.push((field, value));
    let fields: Vec<_> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

fn persisted(field: &str, value: &str) -> String {
    with(field, value).replace(r#""online_only":true"#, r#""online_only":false"#)
}

/// Runs a test with a device online, and fails if anything reached it or was stored for it.
fn changes_nothing(test: impl FnOnce(&Node)) {
    let node = Node::start();
    let mut bob = node.device("bob", "phone");
    let version = node.backend().presence("bob")["version"].clone();
    test(&node);
    assert_eq!(node.backend().presence("bob")["version"], version);
    assert_eq!(bob.inbox("after=earliest").expect(200).json()["messages"], json!([]));
    for kind in ["online_only", "persisted"] {
        assert_eq!(node.count(&format!("herenow_sends_total{{kind=\"{kind}\"}}")), 0);
    }
    let marker = node.backend().whisper("bob").expect(200).json();
    assert_eq!(bob.next_message()["id"], marker["id"]);
}

#[test]
fn what_is_not_json_is_malformed() {
    changes_nothing(|node| {
        for body in [
            "",
            " ",
            "{",
            "}",
            "nul",
            "{'from':'alice'}",
            r#"{"from":"alice",}"#,
            &format!("{GOOD} {GOOD}"),
            "NaN",
            "\u{feff}{}",
            "// x\n{}",
            r#"{"from":"ali"#,
            r#"{"from":"a\x"}"#,
            "{\"from\":\"a\nb\"}",
            "{\"from\":\"a\u{0}\"}",
            "0x10",
            "01",
            "[1,2",
            &with("payload", "{\"a\":}"),
            &with("payload", "01"),
            &with("payload", "'x'"),
            &with("payload", ""),
            &with("payload", "+1"),
            &with("payload", "1."),
            &with("payload", "\"\t\""),
        ] {
            let problem = post(node, body).problem(400, "malformed_json");
            assert!(problem.get("errors").is_none(), "{problem}");
        }
        for path in ["/v1/presence/query", "/v1/tokens", "/v1/callbacks/retry"] {
            node.backend().request(Request::post(path).json("{")).problem(400, "malformed_json");
        }
        let bob = node.token("bob", "phone");
        for path in ["/v1/ack", "/v1/state"] {
            Request::post(path).bearer(&bob).json("{").send(node.address()).problem(400, "malformed_json");
        }
    });
}

#[test]
fn what_is_not_utf_8_is_malformed() {
    changes_nothing(|node| {
        for bad in [&b"\xff"[..], b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82"] {
            for field in ["from", "payload", "type"] {
                let good = with(field, "\"@\"");
                let (before, after) = good.split_once('@').unwrap();
                post(node, [before.as_bytes(), bad, after.as_bytes()].concat()).problem(400, "malformed_json");
            }
        }
        post(node, [&[0xff, 0xfe], GOOD.as_bytes()].concat()).problem(400, "malformed_json");
        let utf_16: Vec<u8> = GOOD.encode_utf16().flat_map(u16::to_le_bytes).collect();
        post(node, utf_16).problem(400, "malformed_json");
    });
}

#[test]
fn wrong_types_unknown_fields_and_bounds_are_told_with_their_place() {
    let long = |n: usize| format!("\"{}\"", "n".repeat(n));
    let users = |n: usize| format!(r#"{{"users":{}}}"#, json!(vec!["u"; n]));
    let push = format!(r#"{{"p":"{}"}}"#, "p".repeat(4 << 10));
    let deep = format!("{}{}", "[".repeat(129), "]".repeat(129));
    changes_nothing(|node| {
        for (body, pointer) in [
            ("[]".into(), ""),
            ("7".into(), ""),
            ("null".into(), ""),
            ("\"x\"".into(), ""),
            ("{}".into(), ""),
            (GOOD.replace(r#""from":"alice","#, ""), ""),
            (with("from", "7"), "/from"),
            (with("from", "null"), "/from"),
            (with("from", r#""""#), "/from"),
            (with("from", &long(129)), "/from"),
            (with("from", r#""a\u0000b""#), "/from"),
            (with("from", r#""a\nb""#), "/from"),
            (with("from", r#""a\u0085""#), "/from"),
            (with("to", "\"bob\""), "/to"),
            (with("to", "[]"), "/to"),
            (with("to", "{}"), "/to"),
            (with("to", r#"{"users":["bob"],"group":"g"}"#), "/to"),
            (with("to", r#"{"users":"bob"}"#), "/to/users"),
            (with("to", r#"{"users":[]}"#), "/to/users"),
            (with("to", r#"{"users":["a","",""]}"#), "/to/users/1"),
            (with("to", r#"{"users":["a",null]}"#), "/to/users/1"),
            (with("to", &users(1_001)), "/to/users"),
            (with("to", r#"{"user":["bob"]}"#), "/to/user"),
            (with("to", r#"{"group":""}"#), "/to/group"),
            (with("to", r#"{"group":7}"#), "/to/group"),
            (with("type", "null"), "/type"),
            (with("type", r#""""#), "/type"),
            (with("type", &long(65)), "/type"),
            (with("online_only", "\"true\""), "/online_only"),
            (with("online_only", "1"), "/online_only"),
            (with("online_only", "null"), "/online_only"),
            (with("onlineOnly", "true"), "/onlineOnly"),
            (with("__proto__", "{}"), "/__proto__"),
            (with("a/b~c", "{}"), "/a~1b~0c"),
            (with("deliver_to", "\"all\""), "/deliver_to"),
            (with("deliver_to", "7"), "/deliver_to"),
            (persisted("deliver_to", "\"one_device\""), "/deliver_to"),
            (with("ttl_ms", "0"), "/ttl_ms"),
            (with("ttl_ms", "60001"), "/ttl_ms"),
            (with("ttl_ms", "-1"), "/ttl_ms"),
            (with("ttl_ms", "1.5"), "/ttl_ms"),
            (with("ttl_ms", "\"5\""), "/ttl_ms"),
            (with("ttl_ms", "99999999999999999999999"), "/ttl_ms"),
            (persisted("ttl_ms", "0"), "/ttl_ms"),
            (persisted("ttl_ms", "604800001"), "/ttl_ms"),
            (with("collapse_key", r#""""#), "/collapse_key"),
            (with("collapse_key", &long(129)), "/collapse_key"),
            (with("collapse_key", "7"), "/collapse_key"),
            (persisted("collapse_key", "\"k\""), "/collapse_key"),
            (with("push", "{}"), "/push"),
            (with("push", "false"), "/push"),
            (persisted("push", "true"), "/push"),
            (persisted("push", "[]"), "/push"),
            (persisted("push", "\"x\""), "/push"),
            (persisted("push", &push), "/push"),
            (with("sync_sender", "true"), "/sync_sender"),
            (with("payload", &deep), "/payload"),
            (format!("{},\"from\":\"mallory\"}}", &GOOD[..GOOD.len() - 1]), ""),
        ] {
            let problem = post(node, body.as_str()).problem(422, "invalid_request");
            assert_eq!(problem["errors"][0]["pointer"], pointer, "{} {problem}", &body[..body.len().min(200)]);
        }
        let all = r#"{"from":"","to":{"users":["","ok",""]},"type":"","payload":1,"online_only":true,"ttl_ms":0}"#;
        let problem = post(node, all).problem(422, "invalid_request");
        let pointers: Vec<_> =
            problem["errors"].as_array().unwrap().iter().map(|e| e["pointer"].as_str().unwrap()).collect();
        assert_eq!(pointers, ["/from", "/to/users/0", "/to/users/2", "/type", "/ttl_ms"], "all that is wrong at once");
        post(node, with("to", r#"{"group":"g"}"#)).problem(404, "not_found");
    });
}

#[test]
fn what_is_just_within_the_bounds_is_taken() {
    let node = Node::start();
    let name = format!("\"{}\"", "☂".repeat(128));
    let kind = format!("\"{}\"", "☂".repeat(64));
    let deep = format!("{}{}", "[".repeat(128), "]".repeat(128));
    for (field, value) in [
        ("from", name.as_str()),
        ("type", &kind),
        ("collapse_key", &name),
        ("payload", &deep),
        ("ttl_ms", "1"),
        ("ttl_ms", "60000"),
        ("deliver_to", "null"),
        ("ttl_ms", "null"),
        ("collapse_key", "null"),
        ("push", "null"),
        ("sync_sender", "false"),
        ("from", r#""../\u202e\ud83d\udcac <script>""#),
    ] {
        post(&node, with(field, value)).expect(200);
    }
    for (field, value) in [("ttl_ms", "604800000"), ("push", "false"), ("push", r#"{"title":"x"}"#)] {
        post(&node, persisted(field, value)).expect(201);
    }
    let push = format!(r#"{{"p":"{}"}}"#, "p".repeat((4 << 10) - 8));
    post(&node, persisted("push", &push)).expect(201);
}

#[test]
fn deep_nesting_anywhere_does_no_harm() {
    let nested = |open: &str, close: &str, n: usize| format!("{}{}", open.repeat(n), close.repeat(n));
    changes_nothing(|node| {
        for value in
            [nested("[", "]", 10_000), nested("{\"a\":", "}", 10_000).replace(":}", ":1}"), nested("[", "", 30_000)]
        {
            for field in ["payload", "push", "to", "from", "unknown"] {
                let answer = post(node, with(field, &value));
                assert!(matches!(answer.status, 400 | 422), "{field}: {answer}");
            }
            let answer = post(node, value.as_str());
            assert!(matches!(answer.status, 400 | 422), "{answer}");
            let answer = node.backend().request(Request::post("/v1/presence/query").json(value.as_str()));
            assert!(matches!(answer.status, 400 | 422), "{answer}");
        }
    });
}

#[test]
fn a_payload_has_a_bound_in_bytes_as_sent() {
    let node = Node::start();
    let payload = |bytes: usize| format!("\"{}\"", "p".repeat(bytes - 2));
    let mut bob = node.device("bob", "phone");
    post(&node, with("payload", &payload(65_536))).expect(200);
    assert_eq!(bob.next_event().payload_text().len(), 65_536);
    post(&node, with("payload", &payload(65_537))).problem(413, "payload_too_large");
    post(&node, persisted("payload", &payload(65_536))).expect(201);
    assert_eq!(bob.next_event().payload_text().len(), 65_536);
    post(&node, persisted("payload", &payload(65_537))).problem(413, "payload_too_large");
    let node = Node::with(&["limits.payload_bytes=10"]);
    post(&node, with("payload", &payload(10))).expect(200);
    post(&node, with("payload", &payload(11))).problem(413, "payload_too_large");
}

/// In chunks, without a length.
fn chunked(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /v1/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let mut request = head.into_bytes();
    for chunk in body.chunks(50_000) {
        request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        request.extend_from_slice(chunk);
        request.extend_from_slice(b"\r\n");
    }
    [request, b"0\r\n\r\n".to_vec()].concat()
}

#[test]
fn a_body_that_is_too_large_is_refused_with_and_without_a_length() {
    changes_nothing(|node| {
        let large = with("payload", &format!("\"{}\"", "p".repeat(5 << 20)));
        post(node, large.as_str()).problem(413, "payload_too_large");
        exchange(node.address(), &chunked(large.as_bytes())).unwrap().problem(413, "payload_too_large");
        let spaces = format!("{}{GOOD}", " ".repeat(5 << 20));
        post(node, spaces.as_str()).problem(413, "payload_too_large");
        let users = format!(r#"{{"users":["{}"]}}"#, "u".repeat(2 << 20));
        node.backend().request(Request::post("/v1/presence/query").json(users)).problem(413, "payload_too_large");
        // Refused for what it says of itself, or at the latest for what it is.
        let head = format!(
            "POST /v1/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n"
        );
        let answer = exchange(node.address(), &[head.into_bytes(), large.into_bytes()].concat()).unwrap();
        answer.problem(413, "payload_too_large");
    });
    let node = Node::start();
    exchange(node.address(), &chunked(GOOD.as_bytes())).unwrap().expect(200);
}

#[test]
fn who_has_no_credentials_is_refused_before_the_body_is_read() {
    let node = Node::start();
    let head =
        "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{";
    let mut tcp = TcpStream::connect(node.address()).unwrap();
    tcp.write_all(head.as_bytes()).unwrap();
    let answer = read_answer(&mut tcp, Instant::now() + SOON).unwrap().unwrap();
    answer.problem(401, "missing_credentials");
}

#[test]
fn a_body_must_be_said_to_be_json() {
    changes_nothing(|node| {
        for wrong in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/jsonx",
            "",
            "multipart/form-data; boundary=x",
        ] {
            let request = Request::post("/v1/messages").header("Content-Type", wrong).body(GOOD);
            node.backend().request(request).problem(415, "unsupported_media_type");
        }
        node.backend().request(Request::post("/v1/messages").body(GOOD)).problem(415, "unsupported_media_type");
    });
    let node = Node::start();
    for right in ["application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8"] {
        node.backend().request(Request::post("/v1/messages").header("Content-Type", right).body(GOOD)).expect(200);
    }
}

#[test]
fn nobody_holds_a_connection_by_sending_a_head_slowly() {
    let node = Node::start();
    let attempts: [&[u8]; 4] =
        [b"", b"G", b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nX-A", b"GET /v1/stream HTTP/1.1\r\nHost: x\r\n"];
    std::thread::scope(|scope| {
        for begun in attempts {
            let node = &node;
            scope.spawn(move || {
                let mut tcp = TcpStream::connect(node.address()).unwrap();
                let since = Instant::now();
                tcp.write_all(begun).unwrap();
                tcp.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                let mut received = vec![];
                loop {
                    let mut chunk = [0; 1_024];
                    match std::io::Read::read(&mut tcp, &mut chunk) {
                        Ok(0) => break,
                        Ok(n) => received.extend_from_slice(&chunk[..n]),
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                            // One byte at a time must not win time either.
                            if !begun.is_empty() && tcp.write_all(b"x").is_err() {
                                break;
                            }
                        }
                        Err(_) => break,
                    }
                    assert!(since.elapsed() < Duration::from_secs(9), "{:?} is held", String::from_utf8_lossy(begun));
                }
                assert!(since.elapsed() > Duration::from_secs(3), "{:?}", since.elapsed());
                let text = String::from_utf8_lossy(&received);
                assert!(text.is_empty() || text.starts_with("HTTP/1.1 408"), "{text}");
            });
        }
    });
}

#[test]
fn nobody_holds_a_connection_by_sending_a_body_slowly() {
    changes_nothing(|node| {
        let ack = Request::post("/v1/ack").bearer(&node.token("bob", "phone")).json(r#"{"cursor":"0"}"#);
        let send = Request::post("/v1/messages").bearer(API_KEY).json(GOOD);
        std::thread::scope(|scope| {
            for request in [ack, send] {
                let whole = request.to_bytes(node.address());
                scope.spawn(move || {
                    let (most, rest) = whole.split_at(whole.len() - 5);
                    let mut tcp = TcpStream::connect(node.address()).unwrap();
                    tcp.write_all(most).unwrap();
                    let answer = read_answer(&mut tcp, Instant::now() + Duration::from_secs(20)).unwrap().unwrap();
                    answer.problem(400, "malformed_json");
                    let _ = tcp.write_all(rest);
                    // The rest is nobody's request.
                    assert!(!matches!(read_answer(&mut tcp, Instant::now() + Duration::from_secs(1)), Ok(Some(_))));
                });
            }
        });
    });
}

#[test]
fn a_request_that_ends_early_changes_nothing() {
    changes_nothing(|node| {
        let whole = Request::post("/v1/messages").bearer(API_KEY).json(GOOD).to_bytes(node.address());
        for end in (0..whole.len()).step_by(7) {
            let mut tcp = TcpStream::connect(node.address()).unwrap();
            tcp.write_all(&whole[..end]).unwrap();
            drop(tcp);
        }
        let short = chunked(GOOD.as_bytes());
        for missing in [1, 5, 20] {
            let mut tcp = TcpStream::connect(node.address()).unwrap();
            tcp.write_all(&short[..short.len() - missing]).unwrap();
        }
    });
}

#[test]
fn what_is_not_http_is_turned_away() {
    changes_nothing(|node| {
        let h2 = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0xff; 200]].concat();
        let many: String = "X-Header: x\r\n".repeat(10_000);
        let requests: Vec<Vec<u8>> = vec![
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(20),
            b"\r\n\r\n\r\n\r\nhello\r\n\r\n".to_vec(),
            b"GET\r\n\r\n".to_vec(),
            b"GET / HTTP/9.9\r\n\r\n".to_vec(),
            b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n".to_vec(),
            b"GET /healthz HTTP/1.1\r\nA: b\r\n c\r\n\r\n".to_vec(),
            b"GET /healthz HTTP/1.1\r\nA\x00: b\r\n\r\n".to_vec(),
            b"GET /heal\x00thz HTTP/1.1\r\n\r\n".to_vec(),
            b"POST /v1/messages HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}".to_vec(),
            b"POST /v1/messages HTTP/1.1\r\nContent-Length: -5\r\n\r\n{}".to_vec(),
            b"POST /v1/messages HTTP/1.1\r\nTransfer-Encoding: nonsense\r\n\r\n{}".to_vec(),
            format!("POST /v1/messages HTTP/1.1\r\nAuthorization: Bearer {API_KEY}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{GOOD}\r\n0\r\n\r\n").into_bytes(),
            h2,
            format!("GET /healthz HTTP/1.1\r\n{many}\r\n").into_bytes(),
            format!("GET /healthz HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)).into_bytes(),
            format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20)).into_bytes(),
            format!("GET /v1/stream HTTP/1.1\r\n{many}\r\n").into_bytes(),
            format!("GET /v1/stream?after={} HTTP/1.1\r\n\r\n", "9".repeat(1 << 20)).into_bytes(),
            b"GET /v1/stream\xff HTTP/1.1\r\n\r\n".to_vec(),
        ];
        for request in requests {
            // Turned away with an answer, or without one where it can't be told what was asked.
            if let Ok(answer) = exchange(node.address(), &request) {
                let begin = String::from_utf8_lossy(&request[..request.len().min(60)]).into_owned();
                assert!((400..500).contains(&answer.status), "{begin:?}: {answer}");
            }
            Request::get("/healthz").send(node.address()).expect(200);
        }
    });
}

#[test]
fn too_many_headers_and_what_is_not_http_get_the_problem_document() {
    changes_nothing(|node| {
        let many: String = "X-Header: x\r\n".repeat(10_000);
        for request in [
            format!("POST /v1/messages HTTP/1.1\r\nAuthorization: Bearer {API_KEY}\r\n{many}\r\n{GOOD}"),
            format!("GET /v1/stream HTTP/1.1\r\n{many}\r\n"),
            "GET / HTTP/9.9\r\n\r\n".to_owned(),
            "GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n".to_owned(),
        ] {
            let answer = exchange(node.address(), request.as_bytes()).unwrap();
            answer.problem(422, "invalid_request");
        }
    });
}

#[test]
fn a_length_and_chunks_together_are_never_two_requests() {
    changes_nothing(|node| {
        let smuggled = Request::post("/v1/messages").bearer(API_KEY).json(GOOD).to_bytes(node.address());
        let head = format!(
            "POST /v1/presence/query HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n",
            smuggled.len()
        );
        let request = [head.into_bytes(), smuggled, b"\r\n0\r\n\r\n".to_vec()].concat();
        let mut tcp = TcpStream::connect(node.address()).unwrap();
        tcp.write_all(&request).unwrap();
        let mut answers = vec![];
        while let Ok(Some(answer)) = read_answer(&mut tcp, Instant::now() + Duration::from_millis(500)) {
            answers.push(answer.status);
        }
        assert!(answers.len() <= 1 && answers.iter().all(|status| (400..500).contains(status)), "{answers:?}");
    });
}

#[test]
fn hostile_names_are_names() {
    let node = Node::start();
    for name in [
        "../../etc/passwd",
        "💬",
        "\u{202e}evil",
        "' OR 1=1; --",
        "<script>alert(1)</script>",
        "${jndi:x}",
        "%s%n",
        "a{b}c",
        "CON",
        "\u{200b}",
        "ﷺ",
        "_",
    ] {
        let mut device = node.stream(name, name.get(..60).unwrap_or(name)).open();
        let send = |online_only: bool| {
            let mut message =
                json!({"from": name, "to": {"users": [name]}, "type": name, "payload": {}, "online_only": online_only});
            if online_only {
                message["collapse_key"] = name.into();
            }
            node.backend().send(message)
        };
        assert_eq!(send(true).expect(200).json()["recipients"][0]["outcome"], "delivered");
        let shown = device.next_message();
        assert_eq!(
            (&shown["from"], &shown["type"], &shown["to"]),
            (&json!(name), &json!(name), &json!({"users": [name]}))
        );
        send(false).expect(201);
        assert_eq!(device.next_message()["cursor"], "1");
        device.ack("1").expect(204);
    }
}
