//! CORS: as configured, and none by default (CONTRACT.md 4).

use crate::harness::*;

const OURS: &str = "https://app.example.com";

fn preflight(node: &Node, origin: &str, path: &str, method: &str) -> Answer {
    let request =
        Request::new("OPTIONS", path).header("Origin", origin).header("Access-Control-Request-Method", method);
    request.header("Access-Control-Request-Headers", "authorization,content-type,last-event-id").send(node.address())
}

#[test]
fn by_default_no_page_may_read_anything() {
    let node = Node::start();
    let answer = Request::get("/healthz").header("Origin", OURS).send(node.address()).expect(200);
    assert_eq!(answer.header("access-control-allow-origin"), None);
    let answer = preflight(&node, OURS, "/v1/messages", "POST");
    assert_eq!(answer.header("access-control-allow-origin"), None, "{answer}");
    let stream = node.stream("bob", "phone").header("Origin", OURS).open();
    assert_eq!(stream.header("access-control-allow-origin"), None);
}

#[test]
fn a_configured_origin_may_and_another_may_not() {
    let node = Node::with(&[&format!("server.cors_origins=https://other.example.com,{OURS}")]);
    let answer = preflight(&node, OURS, "/v1/stream", "GET").expect(200);
    assert_eq!(answer.header("access-control-allow-origin"), Some(OURS));
    let allowed = answer.header("access-control-allow-headers").unwrap().to_ascii_lowercase();
    for header in ["authorization", "content-type", "last-event-id", "cache-control"] {
        assert!(allowed.contains(header), "{allowed}");
    }
    for method in ["GET", "POST", "DELETE"] {
        assert!(answer.header("access-control-allow-methods").unwrap().contains(method));
    }
    // Errors too, or the page could not see why.
    let answer = Request::get("/v1/inbox").header("Origin", OURS).send(node.address());
    answer.problem(401, "missing_credentials");
    assert_eq!(answer.header("access-control-allow-origin"), Some(OURS));
    let refused = node.stream("bob", "phone").header("Origin", OURS).after("x").refused();
    refused.problem(422, "invalid_request");
    assert_eq!(refused.header("access-control-allow-origin"), Some(OURS));
    let mut stream = node.stream("bob", "phone").header("Origin", OURS).open();
    assert_eq!(stream.header("access-control-allow-origin"), Some(OURS));
    let varies = stream.header("vary").unwrap().to_ascii_lowercase();
    assert!(varies.contains("origin"), "or a cache would show one origin's answer to another: {varies}");
    node.backend().whisper("bob");
    stream.next_message();
    for foreign in [
        "https://evil.example.com",
        "http://app.example.com",
        "https://app.example.com.evil.com",
        "null",
        "https://app.example.com:8443",
    ] {
        let answer = Request::get("/healthz").header("Origin", foreign).send(node.address());
        assert_eq!(answer.header("access-control-allow-origin"), None, "{foreign}: {answer}");
        let answer = preflight(&node, foreign, "/v1/messages", "POST");
        assert_eq!(answer.header("access-control-allow-origin"), None, "{foreign}: {answer}");
        let status = http::head_of(node.address(), &foreign_stream(&node, foreign));
        assert!(status == 200 || (400..500).contains(&status), "{status}");
    }
}

fn foreign_stream(node: &Node, origin: &str) -> Vec<u8> {
    let request = Request::get("/v1/stream").bearer(&node.token("carol", "phone")).header("Origin", origin);
    request.to_bytes(node.address())
}

#[test]
fn a_caller_that_is_no_browser_is_not_concerned() {
    let node = Node::with(&[&format!("server.cors_origins={OURS}")]);
    node.backend().whisper("bob").expect(200);
    drop(node.device("bob", "phone"));
}
