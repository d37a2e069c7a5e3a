//! The example in the browser mints tokens for anybody, so it is there only for who tries herenow on their own machine.

use crate::harness::*;

const PATHS: [(&str, &str); 5] = [
    ("GET", "/examples/typing"),
    ("GET", "/examples/typing/style.css"),
    ("GET", "/examples/typing/app.js"),
    ("POST", "/examples/typing/session"),
    ("POST", "/examples/typing/messages"),
];

fn session() -> Request {
    Request::post("/examples/typing/session").json(r#"{"user":"bob","device":"browser"}"#)
}

#[test]
fn two_people_meet_in_it() {
    let node = Node::setup().self_made().start();
    let own = format!("http://{}", node.address());
    let answer = session().header("Origin", &own).send(node.address()).expect(201).json();
    let token = answer["token"].as_str().unwrap();
    node.note_secret(token);
    let mut bob = node.stream("bob", "browser").token(token).open();
    let body = json!({"from": "alice", "to": {"users": ["bob"]}, "type": "typing", "payload": {"canary": node.canary()}, "online_only": true});
    let send = Request::post("/examples/typing/messages").json(body.to_string()).header("Origin", &own);
    let report = send.send(node.address()).expect(200).json();
    assert_eq!(report["recipients"][0]["outcome"], "delivered");
    assert_eq!(bob.next_message()["id"], report["id"]);
    for (_, path) in &PATHS[..3] {
        let page = Request::get(path).send(node.address()).expect(200);
        let policy = page.header("content-security-policy").unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
        let outside = page.text().replace("http://www.w3.org/", "").replace("http://localhost", "");
        assert!(
            !outside.contains("src=\"http") && !outside.contains("href=\"http") && !outside.contains("//cdn"),
            "{path}"
        );
    }
}

#[test]
fn it_answers_only_its_own_page_on_this_machine() {
    let node = Node::setup().self_made().start();
    let (address, port) = (node.address(), node.address().port());
    for origin in [
        "https://evil.example.com",
        "null",
        "http://127.0.0.1",
        "http://127.0.0.1:1",
        &format!("https://{address}"),
        &format!("http://{address}.evil.com"),
        "",
    ] {
        let answer = session().header("Origin", origin).send(address);
        answer.problem(403, "forbidden");
        let send = Request::post("/examples/typing/messages").json("{}").header("Origin", origin);
        send.send(address).problem(403, "forbidden");
    }
    for host in [
        "evil.example.com",
        &format!("evil.example.com:{port}"),
        "10.0.0.1",
        "127.0.0.1.evil.com",
        "localhost.evil.com:80",
        "",
    ] {
        session().header("Host", host).send(address).problem(403, "forbidden");
        // Another name that leads here is the browser's own origin then, so the origin proves nothing.
        session()
            .header("Host", host)
            .header("Origin", &format!("http://{host}"))
            .send(address)
            .problem(403, "forbidden");
    }
    for host in [format!("localhost:{port}"), address.to_string()] {
        let answer =
            session().header("Host", &host).header("Origin", &format!("http://{host}")).send(address).expect(201);
        node.note_secret(answer.json()["token"].as_str().unwrap());
    }
    let own = format!("http://{address}");
    session().send(address).problem(403, "forbidden");
    for of_proxies in ["X-Forwarded-For", "Forwarded", "Via"] {
        session().header("Origin", &own).header(of_proxies, "x").send(address).problem(403, "forbidden");
    }
    let plain = Request::post("/examples/typing/session").header("Content-Type", "text/plain").header("Origin", &own);
    plain.body(r#"{"user":"a","device":"b"}"#).send(address).problem(415, "unsupported_media_type");
    assert!(!node.backend().is_online("bob"));
}

#[test]
fn it_is_not_there_once_credentials_are_configured() {
    let nodes = [
        Node::start(),
        Node::setup().self_made().env("HERENOW_AUTH__API_KEYS", "hk_configured").start(),
        Node::setup()
            .self_made()
            .env("HERENOW_AUTH__DEVICE_SECRETS", "a-configured-secret-of-32-bytes-or-more")
            .start(),
    ];
    for node in &nodes {
        for (method, path) in PATHS {
            let answer = Request::new(method, path).json(r#"{"user":"bob","device":"browser"}"#).send(node.address());
            answer.problem(404, "not_found");
        }
    }
}

#[test]
fn it_is_not_there_where_others_can_reach_it() {
    let node = Node::setup().self_made().set("server.listen=0.0.0.0:0").start();
    for (method, path) in PATHS {
        let request =
            Request::new(method, path).header("Host", "localhost").json(r#"{"user":"bob","device":"browser"}"#);
        request.send(node.address()).problem(404, "not_found");
    }
}
