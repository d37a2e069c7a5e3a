//! Problem documents, request ids, and what an error may show (CONTRACT.md 1).

use crate::harness::*;

#[test]
fn unknown_paths_are_not_found_and_other_methods_are_told_which_is_right() {
    let node = Node::start();
    for path in [
        "/",
        "/v1",
        "/v1/",
        "/v2/messages",
        "/v1/messages/",
        "/v1//messages",
        "/v1/users/bob",
        "/V1/messages",
        "/metrics",
        "/.git/config",
        "/v1/messages/../../x",
    ] {
        Request::get(path).send(node.address()).problem(404, "not_found");
    }
    for (method, path, allow) in [
        ("GET", "/v1/messages", "POST"),
        ("PUT", "/v1/messages", "POST"),
        ("PATCH", "/v1/messages/x", "GET, DELETE"),
        ("POST", "/v1/stream", "GET"),
        ("POST", "/v1/inbox", "GET"),
        ("GET", "/v1/ack", "POST"),
        ("GET", "/v1/state", "POST"),
        ("GET", "/v1/tokens", "POST"),
        ("GET", "/v1/tickets", "POST"),
        ("DELETE", "/v1/users/bob/presence", "GET"),
        ("GET", "/v1/users/bob/devices/phone", "DELETE"),
        ("GET", "/v1/presence/query", "POST"),
        ("POST", "/v1/callbacks", "GET"),
        ("GET", "/v1/callbacks/retry", "POST"),
        ("GET", "/v1/callbacks/x/retry", "POST"),
        ("PATCH", "/v1/groups/x/members", "GET, POST"),
        ("GET", "/v1/groups/x/members/y", "PUT, DELETE"),
        ("GET", "/v1/groups/x", "DELETE"),
        ("POST", "/healthz", "GET"),
        ("POST", "/readyz", "GET"),
        ("POST", "/openapi.json", "GET"),
        ("NONSENSE", "/v1/messages", "POST"),
    ] {
        let answer = Request::new(method, path).send(node.address());
        answer.problem(405, "method_not_allowed");
        assert_eq!(answer.header("allow"), Some(allow), "{method} {path}");
    }
}

#[test]
fn a_sane_request_id_is_echoed_and_another_is_replaced() {
    let node = Node::start();
    let longest = "r".repeat(128);
    for (path, status) in [("/healthz", 200), ("/nothing", 404), ("/v1/stream", 401), ("/v1/inbox", 401)] {
        let id = |given: &str| {
            let answer = Request::get(path).header("X-Request-Id", given).send(node.address()).expect(status);
            if status >= 400 {
                assert_eq!(answer.json()["request_id"].as_str(), answer.header("x-request-id"));
            }
            let ids = answer.headers.iter().filter(|(name, _)| name == "x-request-id").count();
            assert_eq!(ids, 1, "{answer}");
            answer.header("x-request-id").unwrap().to_owned()
        };
        for sane in ["a", "01J-abc_~.:/+=", &longest] {
            assert_eq!(id(sane), sane);
        }
        for insane in ["", "two words", "\u{fc}", &"r".repeat(129), "tab\there"] {
            let made = id(insane);
            assert!(uuid::Uuid::parse_str(&made).is_ok(), "{insane:?} became {made:?}");
        }
    }
    let bob = node.stream("bob", "phone").header("X-Request-Id", "mine").open();
    assert_eq!(bob.header("x-request-id"), Some("mine"));
}

#[test]
fn a_store_that_can_t_write_is_told_without_its_words_and_online_only_goes_on() {
    only_embedded!("it locks the SQLite file; `cluster` has PostgreSQL away");
    let node = Node::start();
    let mut bob = node.device("bob", "phone");
    node.backend().store("bob", &json!(1));
    bob.next_message();
    let database = std::fs::read_dir(node.data_dir()).unwrap().map(|entry| entry.unwrap().path());
    let database = database.into_iter().find(|path| path.extension().is_some_and(|e| e == "db")).unwrap();
    let other = rusqlite::Connection::open(&database).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let message = json!({"from": "alice", "to": {"users": ["bob"]}, "type": "t", "payload": {"secret": 1}});
    let answer = node.backend().send(message);
    let problem = answer.problem(503, "store_unavailable");
    for internal in ["sqlite", "SQL", "locked", "busy", "herenow.db", "panicked", "src/"] {
        assert!(!problem.to_string().contains(internal), "{problem}");
    }
    let whispered = node.backend().whisper("bob").expect(200).json();
    assert_eq!(whispered["recipients"][0]["outcome"], "delivered");
    assert_eq!(bob.next_message()["id"], whispered["id"]);
    other.execute_batch("ROLLBACK").unwrap();
    drop(other);
    eventually("it heals by itself", || {
        let message = json!({"from": "alice", "to": {"users": ["bob"]}, "type": "t", "payload": 2});
        let answer = node.backend().send(message);
        if answer.status == 201 { Ok(()) } else { Err(answer.to_string()) }
    });
    assert_eq!(bob.next_message()["payload"], 2, "what was refused was not stored");
}
