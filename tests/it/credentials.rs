//! Who may call what, and with which credentials (CONTRACT.md 2).

use crate::harness::node::{API_KEY, DEVICE_SECRET};
use crate::harness::*;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Requests that only a backend may make.
fn of_backends() -> Vec<Request> {
    let send = json!({"from": "alice", "to": {"users": ["bob"]}, "type": "t", "payload": {}, "online_only": true});
    vec![
        Request::post("/v1/messages").json(send.to_string()),
        Request::get("/v1/messages/0199a1b2-0000-7000-8000-000000000000"),
        Request::get("/v1/users/bob/presence"),
        Request::post("/v1/presence/query").json(r#"{"users":["bob"]}"#),
        Request::new("DELETE", "/v1/users/bob/devices/phone"),
        Request::post("/v1/tokens").json(r#"{"user":"bob"}"#),
        Request::get("/v1/callbacks?state=dead"),
        Request::post("/v1/callbacks/retry").json(r#"{"state":"dead"}"#),
        Request::post("/v1/callbacks/0199a1b2-0000-7000-8000-000000000000/retry"),
    ]
}

/// Requests that only a device may make.
fn of_devices() -> Vec<Request> {
    vec![
        Request::get("/v1/stream"),
        Request::get("/v1/inbox"),
        Request::post("/v1/ack").json(r#"{"cursor":"0"}"#),
        Request::post("/v1/state").json(r#"{"state":"active"}"#),
        Request::post("/v1/tickets"),
    ]
}

#[test]
fn each_kind_of_caller_may_do_its_own_and_nothing_else() {
    let node = Node::start();
    let token = node.token("bob", "phone");
    for (requests, own, other) in [(of_backends(), API_KEY, token.as_str()), (of_devices(), token.as_str(), API_KEY)] {
        for request in requests {
            let without = request.send(node.address());
            without.problem(401, "missing_credentials");
            assert_eq!(without.header("www-authenticate"), Some("Bearer"), "{without}");
            for wrong in ["wrong", "", "a.b.c", &format!("{own}x"), &own[..own.len() - 1]] {
                request.clone().bearer(wrong).send(node.address()).problem(401, "invalid_credentials");
            }
            for header in [
                own.to_owned(),
                format!("Basic {own}"),
                format!("Bearer{own}"),
                "Bearer".into(),
                "Bearer \u{fc}".into(),
            ] {
                request
                    .clone()
                    .header("Authorization", &header)
                    .send(node.address())
                    .problem(401, "invalid_credentials");
            }
            request.clone().bearer(other).send(node.address()).problem(403, "forbidden");
        }
    }
    assert_eq!(node.backend().presence("bob")["version"], 0, "nothing has changed");
}

#[test]
fn an_own_credential_opens_each_of_a_caller_s_doors() {
    let node = Node::start();
    let bob = node.device("bob", "phone");
    for request in of_backends() {
        let answer = node.backend().request(request);
        assert!(!matches!(answer.status, 401 | 403), "{answer}");
    }
    let bob = {
        drop(bob);
        node.device("bob", "phone")
    };
    for request in of_devices().into_iter().skip(1) {
        let answer = request.bearer(&bob.token).send(node.address());
        assert!(answer.status < 300, "{answer}");
    }
}

#[test]
fn a_scheme_is_written_in_any_case() {
    let node = Node::start();
    for scheme in ["bearer", "BEARER", "Bearer "] {
        let request = Request::get("/v1/users/bob/presence").header("Authorization", &format!("{scheme} {API_KEY}"));
        request.send(node.address()).expect(200);
        let stream = node.stream("bob", "phone").without_header();
        drop(stream.header("Authorization", &format!("{scheme} {}", node.token("bob", "phone"))).open());
    }
}

#[test]
fn tokens_that_are_not_what_they_should_be_are_refused() {
    let node = Node::start();
    let soon = now() + 60;
    let good = node.sign(&json!({"sub": "bob", "device": "phone", "exp": soon}));
    let (head, rest) = good.split_once('.').unwrap();
    let (claims, signature) = rest.split_once('.').unwrap();
    let by = |algorithm: Algorithm, secret: &str| {
        let key = EncodingKey::from_secret(secret.as_bytes());
        jsonwebtoken::encode(&Header::new(algorithm), &json!({"sub": "bob", "device": "phone", "exp": soon}), &key)
            .unwrap()
    };
    let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
    let other_claims = node.sign(&json!({"sub": "mallory", "device": "phone", "exp": soon}));
    let other_claims = other_claims.split('.').nth(1).unwrap();
    let refused = [
        ("expired", node.sign(&json!({"sub": "bob", "device": "phone", "exp": now() - 1}))),
        ("expires now", node.sign(&json!({"sub": "bob", "device": "phone", "exp": now()}))),
        ("without exp", node.sign(&json!({"sub": "bob", "device": "phone"}))),
        ("exp of another type", node.sign(&json!({"sub": "bob", "device": "phone", "exp": soon.to_string()}))),
        ("without sub", node.sign(&json!({"device": "phone", "exp": soon}))),
        ("empty sub", node.sign(&json!({"sub": "", "device": "phone", "exp": soon}))),
        ("long sub", node.sign(&json!({"sub": "b".repeat(129), "device": "phone", "exp": soon}))),
        ("control character", node.sign(&json!({"sub": "bob\n", "device": "phone", "exp": soon}))),
        ("long device", node.sign(&json!({"sub": "bob", "device": "p".repeat(65), "exp": soon}))),
        ("device of another type", node.sign(&json!({"sub": "bob", "device": 7, "exp": soon}))),
        ("not good yet", node.sign(&json!({"sub": "bob", "device": "phone", "exp": soon + 600, "nbf": now() + 600}))),
        ("another secret", by(Algorithm::HS256, "another-secret-that-is-long-enough-too")),
        ("another algorithm", by(Algorithm::HS384, DEVICE_SECRET)),
        ("another algorithm", by(Algorithm::HS512, DEVICE_SECRET)),
        ("none", format!("{none}.{claims}.")),
        ("none with a signature", format!("{none}.{claims}.{signature}")),
        ("no signature", format!("{head}.{claims}.")),
        ("two parts", format!("{head}.{claims}")),
        ("other claims", format!("{head}.{other_claims}.{signature}")),
        ("another signature", format!("{head}.{claims}.{}", signature.chars().rev().collect::<String>())),
    ];
    for (what, token) in refused {
        let answer = node.stream("bob", "phone").token(&token).refused();
        assert_eq!(answer.problem(401, "invalid_credentials")["status"], 401, "{what}");
        let query = Request::get(&format!("/v1/stream?access_token={token}")).send(node.address());
        query.problem(401, "invalid_credentials");
        let inbox = Request::get("/v1/inbox").bearer(&token).send(node.address());
        inbox.problem(401, "invalid_credentials");
        assert!(!answer.text().contains(signature) && !inbox.text().contains(&token), "{what}");
    }
    drop(node.stream("bob", "phone").token(&good).open());
    let ahead = node.sign(&json!({"sub": "bob", "device": "phone", "exp": soon, "nbf": now() + 30}));
    drop(node.stream("bob", "phone").token(&ahead).open());
}

#[test]
fn the_audience_is_checked_where_it_is_configured() {
    let node = Node::with(&["auth.audience=herenow"]);
    let with = |aud: Value| node.sign(&json!({"sub": "bob", "device": "phone", "exp": now() + 60, "aud": aud}));
    for wrong in [json!("elsewhere"), json!([]), json!(["elsewhere"]), Value::Null] {
        node.stream("bob", "phone").token(&with(wrong)).refused().problem(401, "invalid_credentials");
    }
    let without = node.sign(&json!({"sub": "bob", "device": "phone", "exp": now() + 60}));
    node.stream("bob", "phone").token(&without).refused().problem(401, "invalid_credentials");
    for right in [json!("herenow"), json!(["elsewhere", "herenow"])] {
        drop(node.stream("bob", "phone").token(&with(right)).open());
    }
    let made = node.backend().post("/v1/tokens", &json!({"user": "bob", "device": "phone"})).expect(201).json();
    node.note_secret(made["token"].as_str().unwrap());
    drop(node.stream("bob", "phone").token(made["token"].as_str().unwrap()).open());
    let open = Node::start();
    let elsewhere = open.sign(&json!({"sub": "bob", "device": "phone", "exp": now() + 60, "aud": "elsewhere"}));
    drop(open.stream("bob", "phone").token(&elsewhere).open());
}

#[test]
fn a_backend_makes_tokens_for_devices() {
    let node = Node::start();
    let make = |body: Value| node.backend().post("/v1/tokens", &body);
    let made = make(json!({"user": "bob", "device": "phone", "ttl_s": 60})).expect(201).json();
    let token = made["token"].as_str().unwrap();
    node.note_secret(token);
    assert!(made["expires_at"].as_str().unwrap().ends_with('Z'));
    drop(node.stream("bob", "phone").token(token).open());
    let made = make(json!({"user": "☂", "device": null})).expect(201).json();
    let token = made["token"].as_str().unwrap();
    node.note_secret(token);
    drop(node.stream("☂", "tv").token(token).query("device", "tv").open());
    for (wrong, pointer) in [
        (json!({"device": "phone"}), ""),
        (json!({"user": ""}), "/user"),
        (json!({"user": "b".repeat(129)}), "/user"),
        (json!({"user": "bob", "device": ""}), "/device"),
        (json!({"user": "bob", "device": "d".repeat(65)}), "/device"),
        (json!({"user": "bob", "ttl_s": 0}), "/ttl_s"),
        (json!({"user": "bob", "ttl_s": -1}), "/ttl_s"),
        (json!({"user": "bob", "ttl_s": 1.5}), "/ttl_s"),
        (json!({"user": "bob", "ttl_s": 31_536_001}), "/ttl_s"),
        (json!({"user": "bob", "ttl": 60}), "/ttl"),
    ] {
        let problem = make(wrong.clone()).problem(422, "invalid_request");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{wrong}");
    }
}

#[test]
fn a_token_without_a_device_lets_the_device_name_itself() {
    let node = Node::start();
    let token = node.sign(&json!({"sub": "bob", "exp": now() + 60}));
    let stream = node.stream("bob", "tv").token(&token);
    let problem = stream.refused().problem(422, "invalid_request");
    assert_eq!(problem["errors"][0]["pointer"], "?device");
    let tv = stream.query("device", "tv").open();
    assert_eq!(node.backend().presence("bob")["devices"][0]["device"], "tv");
    node.backend().store("bob", &json!(1));
    let post = |path: &str, body: &str| Request::post(path).bearer(&token).json(body).send(node.address());
    post("/v1/ack", r#"{"cursor":"1"}"#).problem(422, "invalid_request");
    post("/v1/ack?device=tv", r#"{"cursor":"1"}"#).expect(204);
    post("/v1/state?device=tv", r#"{"state":"background"}"#).expect(204);
    post("/v1/state?device=phone", r#"{"state":"background"}"#).problem(404, "not_found");
    Request::get("/v1/inbox?device=tv").bearer(&token).send(node.address()).expect(200);
    assert_eq!(tv.name, "tv");
}

#[test]
fn a_token_is_for_its_own_device_only() {
    let node = Node::start();
    let bob = node.device("bob", "phone");
    node.stream("bob", "phone").query("device", "tv").refused().problem(403, "forbidden");
    bob.inbox("device=tv").problem(403, "forbidden");
    bob.inbox("device=phone").expect(200);
    drop(node.stream("bob", "phone").query("device", "phone").open());
    let ack = Request::post("/v1/ack?device=tv").bearer(&bob.token).json(r#"{"cursor":"0"}"#);
    ack.send(node.address()).problem(403, "forbidden");
}

#[test]
fn a_token_in_the_query_opens_a_stream_and_nothing_else() {
    let node = Node::start();
    let token = node.token("bob", "phone");
    drop(node.stream("bob", "phone").without_header().query("access_token", &token).open());
    for path in ["/v1/inbox", "/v1/users/bob/presence"] {
        let answer = Request::get(&format!("{path}?access_token={token}")).send(node.address());
        answer.problem(401, "missing_credentials");
    }
    let answer = Request::post(&format!("/v1/tickets?access_token={token}")).send(node.address());
    answer.problem(401, "missing_credentials");
    let key = Request::get(&format!("/v1/stream?access_token={API_KEY}")).send(node.address());
    key.problem(403, "forbidden");
}

#[test]
fn a_ticket_opens_one_stream() {
    let node = Node::start();
    let bob = node.device("bob", "phone");
    let ticket = bob.ticket();
    let other = bob.ticket();
    assert_ne!(ticket, other);
    let with = |ticket: &str| node.stream("bob", "phone").without_header().query("ticket", ticket);
    drop(with(&ticket).open());
    with(&ticket).refused().problem(401, "invalid_credentials");
    drop(with(&other).open());
    for wrong in ["", "x", &node.token("bob", "phone"), API_KEY, &ticket[1..]] {
        with(wrong).refused().problem(401, "invalid_credentials");
    }
    // A stream's credential and nothing else.
    Request::get("/v1/inbox").bearer(&bob.ticket()).send(node.address()).problem(401, "invalid_credentials");
    let problem = Request::get(&format!("/v1/inbox?ticket={}", bob.ticket())).bearer(&bob.token).send(node.address());
    problem.problem(422, "invalid_request");
}

#[test]
fn of_many_at_once_with_one_ticket_one_gets_in() {
    let node = Node::start();
    let bob = node.device("bob", "phone");
    let ticket = bob.ticket();
    let path = format!("/v1/stream?ticket={ticket}");
    let statuses: Vec<_> = std::thread::scope(|scope| {
        let open = || {
            let request = Request::get(&path).to_bytes(node.address());
            http::head_of(node.address(), &request)
        };
        let tries: Vec<_> = (0..10).map(|_| scope.spawn(open)).collect();
        tries.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 401).count(), 9, "{statuses:?}");
}

#[test]
fn a_ticket_s_stream_lives_as_long_as_the_token_it_was_drawn_on() {
    let node = Node::start();
    let token = node.token_for("bob", "phone", Duration::from_secs(2));
    let bob = node.stream("bob", "phone").token(&token).open();
    let answer = Request::post("/v1/tickets").bearer(&token).send(node.address()).expect(201).json();
    let ticket = answer["ticket"].as_str().unwrap();
    node.note_secret(ticket);
    let unused = bob.ticket();
    let mut by_ticket = node.stream("bob", "phone").without_header().query("ticket", ticket).open();
    by_ticket.expect_bye("token_expired");
    node.stream("bob", "phone").without_header().query("ticket", &unused).refused().problem(401, "invalid_credentials");
}

#[test]
fn a_ticket_is_good_for_30_seconds() {
    let node = Node::start();
    let bob = node.device("bob", "phone");
    let (early, late) = (bob.ticket(), bob.ticket());
    let with = |ticket: &str| node.stream("bob", "phone").without_header().query("ticket", ticket);
    std::thread::sleep(Duration::from_secs(28));
    drop(with(&early).open());
    std::thread::sleep(Duration::from_secs(3));
    with(&late).refused().problem(401, "invalid_credentials");
}

#[test]
fn keys_and_secrets_are_rotated_by_having_several() {
    let (old_key, new_key) = ("hk_old-key-of-the-tests", "hk_new-key-of-the-tests");
    let (old, new) = ("an-old-secret-of-the-tests-of-32-bytes!", "a-new-secret-of-the-tests-of-32-bytes!");
    let both = Node::setup()
        .env("HERENOW_AUTH__API_KEYS", &json!([new_key, old_key]).to_string())
        .env("HERENOW_AUTH__DEVICE_SECRETS", &format!("{new},{old}"));
    let mut node = both.start();
    for secret in [old_key, new_key, old, new] {
        node.note_secret(secret);
    }
    let signed = |secret: &str| {
        let claims = json!({"sub": "bob", "device": "phone", "exp": now() + 600});
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret.as_bytes()))
            .unwrap()
    };
    let ask = |node: &Node, key: &str| Request::get("/v1/users/bob/presence").bearer(key).send(node.address());
    for key in [old_key, new_key] {
        ask(&node, key).expect(200);
    }
    for secret in [old, new] {
        drop(node.stream("bob", "phone").token(&signed(secret)).open());
    }
    let made = Request::post("/v1/tokens").bearer(new_key).json(r#"{"user":"bob","device":"phone"}"#);
    let made = made.send(node.address()).expect(201).json()["token"].as_str().unwrap().to_owned();
    let after = Node::setup().env("HERENOW_AUTH__API_KEYS", new_key).env("HERENOW_AUTH__DEVICE_SECRETS", new);
    node.restart_with(after);
    ask(&node, new_key).expect(200);
    ask(&node, old_key).problem(401, "invalid_credentials");
    node.stream("bob", "phone").token(&signed(old)).refused().problem(401, "invalid_credentials");
    drop(node.stream("bob", "phone").token(&made).open());
}

#[test]
fn self_made_credentials_work_and_stay_the_same_over_a_restart() {
    let mut node = Node::setup().self_made().start();
    let key = node.api_key();
    let printed = |node: &Node| node.stdout().matches("The API in a browser").count();
    eventually_is("the welcome", || printed(&node), |n| *n == 1);
    assert_eq!(node.stdout().matches(&key).count(), 1, "shown once");
    drop(node.device("bob", "phone"));
    node.restart();
    assert_eq!(node.api_key(), key);
    drop(node.device("bob", "phone"));
    eventually_is("the welcome", || printed(&node), |n| *n == 2);
    assert_eq!(node.stdout().matches(&key).count(), 1, "and never again");
    let file = node.data_dir().join("credentials.toml");
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(node.data_dir()).unwrap().permissions().mode() & 0o777, 0o700);
}
