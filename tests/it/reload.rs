//! SIGHUP: what is read anew, what waits for a restart, and that a broken configuration changes nothing.

use crate::harness::node::{API_KEY, DEVICE_SECRET};
use crate::harness::receiver::{NEXT_SECRET, Reply, SECRET};
use crate::harness::*;
use crate::support::{chat, expect_listed, stored};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use std::time::{SystemTime, UNIX_EPOCH};

const NEW_KEY: &str = "hk_a-new-api-key-of-the-tests";
const NEW_SECRET: &str = "a-new-device-secret-of-the-tests-32-bytes";

fn auth(api_keys: &[&str], secrets: &[&str]) -> String {
    format!("auth.api_keys = {api_keys:?}\nauth.device_secrets = {secrets:?}\n")
}

/// A node whose credentials are in a file.
#[track_caller]
fn node_with(more: &str) -> Node {
    let node = Node::setup().file(&format!("{}{more}", auth(&[API_KEY], &[DEVICE_SECRET]))).start();
    for secret in [NEW_KEY, NEW_SECRET] {
        node.note_secret(secret);
    }
    node
}

fn claims() -> Value {
    let exp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 600;
    json!({"sub": "bob", "device": "phone", "exp": exp})
}

fn by_secret(secret: &str) -> String {
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(), &EncodingKey::from_secret(secret.as_bytes()))
        .unwrap()
}

fn ask(node: &Node, key: &str) -> u16 {
    Request::get("/v1/users/bob/presence").bearer(key).send(node.address()).status
}

#[test]
fn keys_are_rotated_without_a_restart_and_streams_of_a_removed_one_end() {
    let node = node_with("");
    let mut old = node.device("bob", "tablet");
    let ticket = old.ticket();
    let said = node.reload(&auth(&[NEW_KEY, API_KEY], &[NEW_SECRET, DEVICE_SECRET]));
    assert!(said.contains("changed=[\"auth.api_keys\", \"auth.device_secrets\"]"), "{said}");
    assert_eq!((ask(&node, NEW_KEY), ask(&node, API_KEY)), (200, 200));
    let mut new = node.stream("bob", "phone").token(&by_secret(NEW_SECRET)).open();
    node.backend().whisper_with(&["bob"], &json!({"deliver_to": "every_device"}));
    assert_eq!(
        (old.next_message()["type"].clone(), new.next_message()["type"].clone()),
        (json!("typing"), json!("typing"))
    );
    node.reload(&auth(&[NEW_KEY], &[NEW_SECRET]));
    old.expect_bye("unauthorized");
    assert_eq!((ask(&node, NEW_KEY), ask(&node, API_KEY)), (200, 401));
    node.stream("bob", "tablet").refused().problem(401, "invalid_credentials");
    node.stream("bob", "tablet")
        .without_header()
        .query("ticket", &ticket)
        .refused()
        .problem(401, "invalid_credentials");
    let message = json!({"from": "alice", "to": {"users": ["bob"]}, "type": "t", "payload": {"c": node.canary()}, "online_only": true});
    let answer =
        Request::post("/v1/messages").bearer(NEW_KEY).json(message.to_string()).send(node.address()).expect(200);
    assert_eq!(answer.json()["recipients"][0]["devices"], json!(["phone"]));
    assert_eq!(new.next_message()["type"], "t", "the stream of the new secret has stayed");
}

#[test]
fn a_stream_by_a_removed_file_ends_though_the_file_has_kept_its_name() {
    let node = node_with("");
    let [old, new] = [Pair::new(Algorithm::ES256), Pair::new(Algorithm::RS256)];
    let path = node.write_file("device.pem", &old.public_pem());
    let toml = format!("{}auth.device_public_keys = [{path:?}]\n", auth(&[API_KEY], &[DEVICE_SECRET]));
    let said = node.reload(&toml);
    assert!(said.contains("changed=[\"auth.device_public_keys\"]"), "{said}");
    let mut bob = node.stream("bob", "phone").token(&old.sign(None, &claims())).open();
    let mut parked = node.stream("bob", "tablet").open();
    let mut carried = node.stream("bob", "laptop").by_the_server().open();
    node.write_file("device.pem", &new.public_pem());
    let said = node.reload(&toml);
    assert!(said.contains("changed=[\"auth.device_public_keys\"]"), "{said}");
    bob.expect_bye("unauthorized");
    drop(node.stream("bob", "phone").token(&new.sign(None, &claims())).open());
    let said = node.reload(&auth(&[API_KEY], &[NEW_SECRET]));
    assert!(said.contains("changed=[\"auth.device_secrets\", \"auth.device_public_keys\"]"), "{said}");
    parked.expect_bye("unauthorized");
    carried.expect_bye("unauthorized");
}

#[test]
fn a_broken_configuration_changes_nothing_and_says_why() {
    let node = node_with("limits.payload_bytes = 1000\n");
    let mut bob = node.device("bob", "phone");
    let held = node.write_file("private.pem", &Pair::new(Algorithm::ES256).keys.serialize_pem());
    let away = JwksServer::of(&[]);
    away.go_away();
    let good = auth(&[NEW_KEY], &[NEW_SECRET]);
    for (broken, why) in [
        ("auth.api_keys = [".to_owned(), "herenow.toml:1:"),
        (format!("{good}limits.payload_byte = 5"), "unknown key `limits.payload_byte`"),
        (format!("{good}limits.payload_bytes = 0"), "`limits.payload_bytes` must be"),
        // Good by itself, but the queue is not made larger without a restart.
        (
            format!("{good}limits.payload_bytes = 2000000\nstream.queue_bytes = 9000000"),
            "must fit into `stream.queue_bytes`",
        ),
        (format!("{good}auth.device_public_keys = [{held:?}]"), "holds a private key"),
        (format!("{good}auth.device_public_keys = ['/no/such.pem']"), "/no/such.pem"),
        (format!("{good}auth.jwks_url = '{}'", away.url()), "auth.jwks_url"),
        (format!("{good}auth.jwks_url = 'http://169.254.169.254/'"), "auth.jwks_url"),
        (format!("{good}callbacks.push.url = 'http://169.254.169.254/'"), "callbacks.push.url"),
    ] {
        let said = node.reload(&broken);
        assert!(said.contains("ERROR") && said.contains("the configuration was read anew"), "{said}");
        let whole = node.log();
        let line = whole.lines().rfind(|line| line.contains("nothing is changed")).unwrap();
        assert!(line.contains(why), "{why}: {line}");
        assert_eq!((ask(&node, API_KEY), ask(&node, NEW_KEY)), (200, 401), "{broken}");
    }
    node.backend().whisper("bob").expect(200);
    assert_eq!(bob.next_message()["type"], "typing");
}

#[test]
fn limits_and_the_level_of_the_log_take_effect_and_other_keys_are_told_to_wait() {
    let node = node_with("");
    let send = |bytes: usize| node.backend().send(chat(&["bob"], &json!("x".repeat(bytes)))).status;
    assert_eq!(send(2_000), 201);
    let base = auth(&[API_KEY], &[DEVICE_SECRET]);
    // What the command line says is stronger than the file.
    let said = node.reload(&format!("{base}limits.payload_bytes = 1000\nstream.heartbeat_s = 3\nserver.drain_s = 7\n"));
    assert!(said.contains("changed=[\"limits.payload_bytes\"]"), "{said}");
    assert!(said.contains("WARN") && said.contains("keys=[\"stream.heartbeat_s\"]"), "{said}");
    assert_eq!(send(2_000), 413);
    let said = node.reload(&base);
    assert!(said.contains("changed=[\"limits.payload_bytes\"]") && !said.contains("stream.heartbeat_s"), "{said}");
    assert_eq!(send(2_000), 201);
    assert!(node.reload(&base).contains("changed=[]"));
}

#[test]
fn the_level_of_the_log_is_changed() {
    let node = Node::setup().file(&auth(&[API_KEY], &[DEVICE_SECRET])).without_level().start();
    let answered = |node: &Node| node.log().matches("answered").count();
    ask(&node, API_KEY);
    assert_eq!(answered(&node), 0, "the default is not to tell of requests");
    node.reload(&format!("{}log.level = 'debug'\n", auth(&[API_KEY], &[DEVICE_SECRET])));
    ask(&node, API_KEY);
    eventually_is("a line per request", || answered(&node), |n| *n == 1);
    node.reload(&auth(&[API_KEY], &[DEVICE_SECRET]));
    ask(&node, API_KEY);
    node.reload(&auth(&[API_KEY], &[DEVICE_SECRET]));
    assert_eq!(answered(&node), 1);
}

#[test]
fn callbacks_go_to_the_new_url_signed_with_the_new_secret_too() {
    let (first, second) = (Receiver::start(), Receiver::start());
    let of = |receiver: &Receiver, secrets: &[&str]| {
        let url = format!("http://{}/hook", receiver.addr());
        let base = auth(&[API_KEY], &[DEVICE_SECRET]);
        format!("{base}callbacks.storage.url = '{url}'\ncallbacks.storage.secrets = {secrets:?}\n")
    };
    let node = Node::setup().file(&of(&first, &[SECRET])).start();
    let id = stored(&node, &chat(&["bob"], &json!(1)));
    assert_eq!(first.expect_callbacks(1)[0].message_id(), id);
    let said = node.reload(&of(&second, &[NEXT_SECRET, SECRET]));
    assert!(said.contains("changed=[\"callbacks.storage.url\", \"callbacks.storage.secrets\"]"), "{said}");
    let id = stored(&node, &chat(&["bob"], &json!(2)));
    let call = second.expect_callbacks(1).remove(0);
    assert_eq!((call.message_id(), call.signatures_by(NEXT_SECRET)), (id, 1));
    assert_eq!(first.calls().len(), 1);
}

/// What configures the receiver as the endpoint, in TOML.
fn told(endpoint: &str, receiver: &Receiver) -> String {
    let url = format!("http://{}/{endpoint}", receiver.addr());
    format!("callbacks.{endpoint}.url = '{url}'\ncallbacks.{endpoint}.secrets = ['{SECRET}']\n")
}

#[test]
fn an_endpoint_comes_goes_and_comes_again_and_no_callback_is_lost_in_between() {
    let (storage, push) = (Receiver::start(), Receiver::start());
    let (none, node) = (auth(&[API_KEY], &[DEVICE_SECRET]), node_with(""));
    let both = format!("{none}{}{}", told("storage", &storage), told("push", &push));
    stored(&node, &chat(&["bob"], &json!("untold")));
    let said = node.reload(&both);
    let keys = ["storage.url", "storage.secrets", "push.url", "push.secrets"].map(|key| format!("\"callbacks.{key}\""));
    assert!(said.contains(&format!("changed=[{}]", keys.join(", "))) && !said.contains("WARN"), "{said}");
    let first = stored(&node, &chat(&["bob"], &json!(1)));
    for receiver in [&storage, &push] {
        assert_eq!(receiver.expect_callbacks(1)[0].message_id(), first);
    }
    // These fail once, and so wait when their endpoints go.
    for receiver in [&storage, &push] {
        receiver.answer(Reply::Status(422));
    }
    let second = stored(&node, &chat(&["bob"], &json!(2)));
    for receiver in [&storage, &push] {
        assert_eq!(receiver.expect_callbacks(2)[1].message_id(), second);
        receiver.answer(Reply::Status(200));
    }
    expect_listed(&node, "state=failing", 2);
    node.reload(&none);
    assert!(!node.metrics().contains("endpoint=\"push\""), "what is not configured is not shown");
    stored(&node, &chat(&["bob"], &json!("untold")));
    let all = json!({"state": "failing"});
    assert_eq!(node.backend().post("/v1/callbacks/retry", &all).expect(202).json(), json!({"count": 2}));
    expect_listed(&node, "state=waiting", 2);
    node.reload(&both);
    for receiver in [&storage, &push] {
        assert_eq!(receiver.expect_callbacks(3)[2].message_id(), second);
    }
    expect_listed(&node, "", 0);
    let third = stored(&node, &chat(&["bob"], &json!(3)));
    for receiver in [&storage, &push] {
        assert_eq!(receiver.expect_callbacks(4)[3].message_id(), third);
    }
}

#[test]
fn how_callbacks_are_told_takes_effect_at_once() {
    let (storage, push) = (Receiver::start(), Receiver::start());
    for receiver in [&storage, &push] {
        receiver.answer(Reply::Hang);
    }
    let of = |more: &str| {
        format!("{}{}{}{more}", auth(&[API_KEY], &[DEVICE_SECRET]), told("storage", &storage), told("push", &push))
    };
    let terms = |concurrency: u32, batch_max: u32, grace_ms: u32| {
        format!(
            "callbacks.storage.concurrency = {concurrency}\ncallbacks.storage.batch_max = {batch_max}\ncallbacks.push.concurrency = {concurrency}\ncallbacks.push.grace_ms = {grace_ms}\n"
        )
    };
    let node = Node::setup().file(&of(&terms(1, 1, 600_000))).start();
    let mut bob = node.device("bob", "phone");
    stored(&node, &chat(&["bob"], &json!(0)));
    bob.next_message();
    for n in 1..=6 {
        stored(&node, &chat(&["carol"], &json!(n)));
    }
    assert_eq!((storage.expect_callbacks(1).len(), push.expect_callbacks(1).len()), (1, 1), "one at a time");
    let said = node.reload(&of(&terms(3, 2, 0)));
    for key in ["storage.concurrency", "storage.batch_max", "push.concurrency", "push.grace_ms"] {
        assert!(said.contains(&format!("\"callbacks.{key}\"")) && !said.contains("WARN"), "{key}: {said}");
    }
    let told = storage.expect_callbacks(3);
    let kinds: Vec<_> = told.iter().map(receiver::Call::kind).collect();
    assert_eq!(kinds, ["message.stored", "message.stored.batch", "message.stored.batch"]);
    push.expect_callbacks(3);
    // With a device online the push of this one would have waited for ten minutes.
    push.answer(Reply::Status(200));
    node.reload(&of(&terms(30, 2, 0)));
    let id = stored(&node, &chat(&["bob"], &json!(7)));
    bob.next_message();
    eventually_is("it is pushed", || push.calls().iter().any(|call| call.message_id() == id), |pushed| *pushed);
}

#[test]
fn who_comes_and_goes_is_told_from_when_somebody_is_to_be_told() {
    let receiver = Receiver::start();
    let none = auth(&[API_KEY], &[DEVICE_SECRET]);
    let some = |debounce_ms: u32| {
        format!("{none}{}callbacks.presence.debounce_ms = {debounce_ms}\n", told("presence", &receiver))
    };
    let node = node_with("");
    let gone = |node: &Node| eventually_is("bob is gone", || node.backend().is_online("bob"), |online| !online);
    node.device("bob", "phone").close();
    gone(&node);
    node.reload(&some(600_000));
    let kinds = |n: usize| receiver.expect_callbacks(n).iter().map(receiver::Call::kind).collect::<Vec<_>>();
    let mut phone = node.device("bob", "phone");
    assert_eq!(kinds(1), ["presence.online"], "that bob was here before was nobody's news");
    node.reload(&some(10));
    phone.close();
    assert_eq!(kinds(2), ["presence.online", "presence.offline"]);
    node.reload(&none);
    node.device("bob", "phone").close();
    gone(&node);
    node.reload(&some(10));
    let _phone = node.device("bob", "phone");
    assert_eq!(kinds(3)[2], "presence.online");
}

#[test]
fn the_service_that_is_asked_before_a_send_comes_and_goes() {
    let service = Receiver::start();
    service.answer(Reply::Text(200, r#"{"action":"reject"}"#.into()));
    let none = auth(&[API_KEY], &[DEVICE_SECRET]);
    let node = node_with("");
    let send = || node.backend().send(chat(&["bob"], &json!(1))).status;
    assert_eq!(send(), 201);
    node.reload(&format!("{none}{}", told("before_send", &service)));
    assert_eq!(send(), 403);
    node.reload(&none);
    assert_eq!((send(), service.count()), (201, 1));
}

#[test]
fn a_set_at_another_url_takes_the_place_of_the_former() {
    let [one, two] = [Pair::new(Algorithm::ES256), Pair::new(Algorithm::EdDSA)];
    let (first, second) = (JwksServer::of(&[one.jwk(Some("1"))]), JwksServer::of(&[two.jwk(Some("2"))]));
    let of =
        |server: &JwksServer| format!("{}auth.jwks_url = '{}'\n", auth(&[API_KEY], &[DEVICE_SECRET]), server.url());
    let node = Node::setup().file(&of(&first)).start();
    let mut bob = node.stream("bob", "phone").token(&one.sign(Some("1"), &claims())).open();
    node.reload(&of(&second));
    bob.expect_bye("unauthorized");
    node.stream("bob", "phone").token(&one.sign(Some("1"), &claims())).refused().problem(401, "invalid_credentials");
    let mut bob = node.stream("bob", "phone").token(&two.sign(Some("2"), &claims())).open();
    node.reload(&of(&second));
    assert_eq!(second.fetches(), 1, "the same URL is no reason to fetch");
    node.reload(&auth(&[API_KEY], &[DEVICE_SECRET]));
    bob.expect_bye("unauthorized");
}

#[test]
fn the_example_ends_when_credentials_are_configured() {
    let node = Node::setup().self_made().start();
    let session = || {
        let address = node.address().to_string();
        let request = Request::post("/examples/typing/session").header("Host", &address);
        let request = request.header("Origin", &format!("http://{address}"));
        request.json(r#"{"user":"bob","device":"phone"}"#).send(node.address())
    };
    let answer = session().expect(201).json();
    node.note_secret(answer["token"].as_str().unwrap());
    node.reload(&auth(&[NEW_KEY], &[NEW_SECRET]));
    session().problem(404, "not_found");
}

#[test]
fn rates_and_the_service_that_is_asked_before_a_send_are_read_anew() {
    let (first, second) = (Receiver::start(), Receiver::start());
    first.answer(Reply::Text(200, r#"{"action":"allow"}"#.into()));
    second.answer(Reply::Text(200, r#"{"action":"reject","reason":"not here"}"#.into()));
    let of = |receiver: &Receiver, rate: u32| {
        let [base, url] = [auth(&[API_KEY], &[DEVICE_SECRET]), format!("http://{}/ask", receiver.addr())];
        format!(
            "{base}limits.sends_per_s = {rate}\ncallbacks.before_send.url = '{url}'\ncallbacks.before_send.secrets = ['{SECRET}']\n"
        )
    };
    let node = Node::setup().file(&of(&first, 0)).start();
    let send = || node.backend().send(chat(&["bob"], &json!(1)));
    assert_eq!([send().status, send().status], [201, 201]);
    node.reload(&of(&first, 1));
    assert_eq!([send().status, send().status], [201, 429]);
    node.reload(&of(&second, 0));
    assert_eq!(send().problem(403, "forbidden")["detail"], "not here");
    node.reload(&of(&first, 0));
    assert_eq!([send().status, send().status], [201, 201]);
}

#[test]
fn the_terms_of_the_question_before_a_send_are_read_anew() {
    let service = Receiver::start();
    service.answer(Reply::Hang);
    let of = |terms: &str| {
        let [base, url] = [auth(&[API_KEY], &[DEVICE_SECRET]), format!("http://{}/ask", service.addr())];
        format!("{base}callbacks.before_send.url = '{url}'\ncallbacks.before_send.secrets = ['{SECRET}']\n{terms}")
    };
    let node = Node::setup().file(&of("callbacks.before_send.timeout_ms = 100\n")).start();
    let send = || node.backend().send(chat(&["bob"], &json!(1)));
    assert_eq!(send().status, 201, "the default is to allow");
    let terms = "callbacks.before_send.timeout_ms = 200\ncallbacks.before_send.concurrency = 3\ncallbacks.before_send.on_failure = 'reject'\n";
    let said = node.reload(&of(terms));
    let changed = ["timeout_ms", "concurrency", "on_failure"].map(|key| format!("\"callbacks.before_send.{key}\""));
    assert!(said.contains(&format!("changed=[{}]", changed.join(", "))), "{said}");
    let begun = std::time::Instant::now();
    send().problem(403, "forbidden");
    assert!(begun.elapsed() >= std::time::Duration::from_millis(200), "it waits for as long as is said now");
}
