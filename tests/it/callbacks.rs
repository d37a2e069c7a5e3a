//! CONTRACT.md 8: every persisted message reaches the operator's endpoints, in time, signed, and whatever one of them does.

use crate::harness::receiver::{Call, NEXT_SECRET, Reply, SECRET};
use crate::harness::*;
use crate::support::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const SECOND: Duration = Duration::from_secs(1);
/// A wait may seem a little short, as it is measured at the other end.
const SLACK: Duration = Duration::from_millis(50);
/// Far beyond every test: what comes sooner did not wait for it.
const NO_GRACE_NEEDED: &str = "callbacks.push.grace_ms=600000";

/// Of a call, by the clock on the wall.
fn age(call: &Call, sent: &Value) -> Duration {
    let sent = UNIX_EPOCH + Duration::from_millis(millis(&sent["sent_at"]).unsigned_abs());
    call.wall.duration_since(sent).unwrap_or_default()
}

#[test]
fn storage_is_told_of_every_message_with_its_cursors() {
    let storage = Receiver::start();
    let node = node_of(&[("storage", &storage)], &[]);
    stored(&node, &chat(&["carol"], &json!("earlier")));
    storage.expect_callbacks(1);
    let sent = accepted(&node, &chat(&["bob", "carol"], &json!({"text": "hi"})));
    let call = &storage.expect_callbacks(2)[1];
    assert_eq!(call.line, "POST /storage HTTP/1.1");
    assert_eq!(
        call.json(),
        json!({
            "type": "message.stored", "timestamp": sent["sent_at"],
            "data": {
                "message": {
                    "id": sent["id"], "from": "alice", "to": {"users": ["bob", "carol"]}, "type": "chat",
                    "payload": {"text": "hi"}, "online_only": false, "sent_at": sent["sent_at"],
                    "expires_at": sent["expires_at"]
                },
                "recipients": [{"user": "bob", "cursor": "1"}, {"user": "carol", "cursor": "2"}]
            }
        })
    );
    assert!(call.header("user-agent").starts_with("herenow/"), "{call:?}");
}

#[test]
fn storage_is_told_in_the_order_of_storing() {
    let storage = Receiver::start();
    let node = node_of(&[("storage", &storage)], &["callbacks.storage.concurrency=1"]);
    let ids: Vec<String> = (0..100).map(|n| stored(&node, &chat(&["bob"], &json!(n)))).collect();
    let told: Vec<String> = storage.expect_callbacks(100).iter().map(Call::message_id).collect();
    assert_eq!(told, ids);
}

#[test]
fn so_many_callbacks_run_at_once_and_no_more() {
    let storage = Receiver::start();
    let node = node_of(&[("storage", &storage)], &["callbacks.storage.concurrency=3"]);
    let takes = Duration::from_millis(400);
    storage.answer(Reply::Delay(takes));
    for n in 0..9 {
        stored(&node, &chat(&["bob"], &json!(n)));
    }
    let mut begun: Vec<_> = storage.expect_callbacks(9).iter().map(|call| call.at).collect();
    begun.sort();
    assert!(begun[2] - begun[0] < takes, "three at once: {begun:?}");
    assert!(begun.windows(4).all(|four| four[3] - four[0] >= takes), "never four: {begun:?}");
}

#[test]
fn who_has_no_device_online_is_pushed_at_once() {
    let push = Receiver::start();
    let node = node_of(&[("push", &push)], &[NO_GRACE_NEEDED]);
    let mut message = chat(&["bob"], &json!("hi"));
    message["push"] = json!({"title": "Alice", "badge": 1});
    let sent = accepted(&node, &message);
    let call = &push.expect_callbacks(1)[0];
    assert_eq!(
        call.json(),
        json!({
            "type": "message.push", "timestamp": sent["sent_at"],
            "data": {
                "message": {
                    "id": sent["id"], "from": "alice", "to": {"users": ["bob"]}, "type": "chat", "payload": "hi",
                    "online_only": false, "sent_at": sent["sent_at"], "expires_at": sent["expires_at"]
                },
                "recipient": "bob", "push": {"title": "Alice", "badge": 1}, "unread": 1, "devices": []
            }
        })
    );
    assert!(age(call, &sent) < 2 * SECOND, "{:?}", age(call, &sent));
    expect_status(&node, &text(&sent["id"]), "/recipients/0/push", &json!({"state": "sent", "attempts": 1}));
}

#[test]
fn a_push_is_per_recipient_and_tells_of_unread_messages_and_known_devices() {
    let push = Receiver::start();
    let node = node_of(&[("push", &push)], &[NO_GRACE_NEEDED]);
    let mut online = node.device("carol", "laptop");
    let mut phone = node.device("bob", "phone");
    let first = stored(&node, &chat(&["bob"], &json!(1)));
    phone.next_message();
    expect_status(&node, &first, "/recipients/0/delivered_to", &json!(["phone"]));
    phone.ack("1").expect(204);
    phone.close();
    eventually("bob is away", || if node.backend().is_online("bob") { Err("online".into()) } else { Ok(()) });

    for unread in 1..=3 {
        let sent = accepted(&node, &chat(&["bob", "carol"], &json!(unread)));
        online.next_message();
        let call = push.expect_callbacks(unread).pop().unwrap();
        assert_eq!((call.message_id(), &call.data()["recipient"]), (text(&sent["id"]), &json!("bob")));
        assert_eq!(call.data()["message"]["to"], json!({"users": ["bob"]}), "no other recipient is shown");
        assert_eq!((&call.data()["unread"], &call.data()["push"]), (&json!(unread), &Value::Null));
        let devices = call.data()["devices"].take();
        assert_eq!(devices[0]["device"], "phone");
        assert!(millis(&sent["sent_at"]) - millis(&devices[0]["last_seen_at"]) < 30_000, "{devices}");
    }
}

#[test]
fn what_a_device_took_in_time_is_not_pushed() {
    let push = Receiver::start();
    let node = node_of(&[("push", &push)], &["callbacks.push.grace_ms=700"]);
    let mut phone = node.device("bob", "phone");
    let ids: Vec<String> = (0..20).map(|n| stored(&node, &chat(&["bob"], &json!(n)))).collect();
    messages(&mut phone, 20);
    for id in &ids {
        expect_status(&node, id, "/recipients/0/push", &json!({"state": "not_needed", "attempts": 0}));
    }
    let mut quiet = chat(&["nobody"], &json!("quiet"));
    quiet["push"] = json!(false);
    stored(&node, &quiet);
    let loud = stored(&node, &chat(&["nobody"], &json!("loud")));
    assert_eq!(push.expect_callbacks(1)[0].message_id(), loud);
    assert_eq!(push.count(), 1);
}

#[test]
fn what_no_online_device_took_is_pushed_after_the_grace_unless_one_acks_it() {
    let push = Receiver::start();
    let node = node_of(&[("push", &push)], &["callbacks.push.grace_ms=2000", "stream.queue_bytes=70000"]);
    // Both are online, and neither reads.
    let mut bob = node.stream("bob", "phone").receive_buffer(4_096).open();
    let _carol = node.stream("carol", "phone").receive_buffer(4_096).open();
    let long = "x".repeat(60_000);
    let sent: Vec<Value> = (0..15).map(|n| accepted(&node, &chat(&["bob", "carol"], &json!([n, long])))).collect();
    ack(&node, "carol", "laptop", "15").expect(204);
    let last = text(&sent[14]["id"]);
    expect_status(&node, &last, "/recipients/0/push", &json!({"state": "sent", "attempts": 1}));
    expect_status(&node, &last, "/recipients/1/push", &json!({"state": "not_needed", "attempts": 0}));
    for call in push.calls() {
        assert_eq!(call.data()["recipient"], "bob");
        let sent = sent.iter().find(|sent| sent["id"] == json!(call.message_id())).unwrap();
        let age = age(&call, sent);
        assert!(age > 2 * SECOND && age < 6 * SECOND, "pushed after {age:?}");
    }
    let first = status_of(&node, &text(&sent[0]["id"]));
    assert_eq!(first["recipients"][0]["push"]["state"], "not_needed", "it was handed to the stream");
    assert_eq!(each(&messages(&mut bob, 15), "/payload/0"), (0..15).map(Value::from).collect::<Vec<_>>());
}

#[test]
fn a_failed_callback_is_tried_again_after_five_seconds_or_so_as_the_same_event() {
    let storage = Receiver::start();
    let mut seen = BTreeSet::new();
    storage.answer_by(move |call| {
        if seen.insert(call.id().to_owned()) { Reply::Text(400, "not\u{7} now".into()) } else { Reply::Status(204) }
    });
    let node = node_of(&[("storage", &storage)], &[]);
    for n in 0..20 {
        stored(&node, &chat(&["bob"], &json!(n)));
    }
    let failing = expect_listed(&node, "state=failing&endpoint=storage", 20);
    for entry in &failing {
        assert_eq!((&entry["attempts"], &entry["endpoint"]), (&json!(1), &json!("storage")), "{entry}");
        assert_eq!(entry["last_error"]["status"], 400, "{entry}");
        assert!(text(&entry["last_error"]["detail"]).contains("not  now"), "{entry}");
        let wait = millis(&entry["next_attempt_at"]) - millis(&entry["created_at"]);
        assert!((4_000..8_000).contains(&wait), "{entry}");
    }
    let mut attempts = BTreeMap::<String, Vec<Call>>::new();
    for call in storage.expect_callbacks(40) {
        attempts.entry(call.id().to_owned()).or_default().push(call);
    }
    let mut waits = vec![];
    for (id, calls) in &attempts {
        let [first, second] = &calls[..] else { panic!("{id}: {calls:?}") };
        assert_eq!(first.body, second.body);
        assert!(second.timestamp() >= first.timestamp() + 3, "each attempt has its own time");
        waits.push(second.at - first.at);
    }
    let (least, most) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
    assert!(*least >= 4 * SECOND && *most < 8 * SECOND, "5 s +- 20 %, and some for a busy machine: {waits:?}");
    assert!(*most > *least + SECOND / 2, "what failed together does not come back together: {waits:?}");
    expect_listed(&node, "", 0);
    expect_status(
        &node,
        &attempts.values().next().unwrap()[0].message_id(),
        "/storage",
        &json!({"state": "sent", "attempts": 2}),
    );
}

#[test]
fn an_endpoint_that_asks_for_a_pause_gets_it_and_others_go_on() {
    let (storage, push) = (Receiver::start(), Receiver::start());
    let node = node_of(&[("storage", &storage), ("push", &push)], &[]);
    storage.answer_once([Reply::With(429, "Retry-After", "3".into())]);
    stored(&node, &chat(&["bob"], &json!(1)));
    let asked = storage.expect_callbacks(1)[0].at;
    expect_listed(&node, "state=failing", 1);
    let second = accepted(&node, &chat(&["bob"], &json!(2)));
    let pushed = push.expect_callbacks(2);
    assert!(age(&pushed[1], &second) < 2 * SECOND, "another endpoint is not held up");
    let resumed = &storage.expect_callbacks(2)[1];
    assert_eq!(resumed.message_id(), text(&second["id"]), "the failed one has its own 5 s to wait");
    let pause = resumed.at - asked;
    assert!(pause + SLACK >= 3 * SECOND && pause < 6 * SECOND, "{pause:?}");
}

#[test]
fn an_endpoint_can_abort_an_event_and_the_operator_can_retry_it() {
    let (storage, push) = (Receiver::start(), Receiver::start());
    let node = node_of(&[("storage", &storage), ("push", &push)], &[]);
    push.answer(Reply::With(422, "webhook-delivery", "abort-message".into()));
    let ids: Vec<String> = (0..5).map(|n| stored(&node, &chat(&[&format!("user{n}")], &json!(n)))).collect();
    let dead = expect_listed(&node, "state=dead&endpoint=push", 5);
    assert_eq!(each(&dead, "/message"), ids, "in the order of storing");
    let entry = &dead[0];
    assert_eq!(
        entry,
        &json!({
            "id": entry["id"], "endpoint": "push", "state": "dead", "message": ids[0], "recipient": "user0",
            "cursor": "1", "attempts": 1, "created_at": entry["created_at"],
            "last_error": {"status": 422, "detail": entry["last_error"]["detail"]}
        }),
        "no next attempt"
    );
    let first = push.calls().into_iter().find(|call| call.message_id() == ids[0]).unwrap();
    assert_eq!(first.id(), text(&entry["id"]), "the webhook-id");
    assert!(callbacks(&node, "state=dead&endpoint=storage").is_empty());
    let page = node.backend().get("/v1/callbacks?state=dead&limit=2").json();
    let next = node.backend().get(&format!("/v1/callbacks?state=dead&limit=3&after={}", text(&page["next"]))).json();
    assert_eq!(each(next["callbacks"].as_array().unwrap(), "/message"), ids[2..]);

    push.answer(Reply::Status(200));
    let one = text(&dead[2]["id"]);
    node.backend().post(&format!("/v1/callbacks/{one}/retry"), &Value::Null).expect(202);
    expect_listed(&node, "state=dead", 4);
    expect_status(&node, &ids[2], "/recipients/0/push/state", &json!("sent"));
    assert_eq!(push.calls().last().unwrap().id(), one, "the same event");
    let all = json!({"endpoint": "push", "state": "dead"});
    assert_eq!(node.backend().post("/v1/callbacks/retry", &all).expect(202).json(), json!({"count": 4}));
    expect_listed(&node, "", 0);
    assert_eq!(node.backend().post("/v1/callbacks/retry", &all).expect(202).json(), json!({"count": 0}));
    for id in [&one, "018f0000-0000-7000-8000-000000000000", "nonsense"] {
        node.backend().post(&format!("/v1/callbacks/{id}/retry"), &Value::Null).problem(404, "not_found");
    }
    assert_eq!(push.count(), 10, "each twice");
}

#[test]
fn a_failing_callback_can_be_retried_at_once() {
    let storage = Receiver::start();
    let node = node_of(&[("storage", &storage)], &[]);
    storage.answer_once([Reply::Status(404)]);
    stored(&node, &chat(&["bob"], &json!(1)));
    let failing = expect_listed(&node, "state=failing", 1);
    let asked = Instant::now();
    node.backend().post(&format!("/v1/callbacks/{}/retry", text(&failing[0]["id"])), &Value::Null).expect(202);
    storage.expect_callbacks(2);
    assert!(asked.elapsed() < 3 * SECOND, "{:?}", asked.elapsed());
    expect_listed(&node, "", 0);
}

#[test]
fn stored_messages_can_come_in_batches() {
    let storage = Receiver::start();
    let set = ["callbacks.storage.batch_max=20", "callbacks.storage.concurrency=1"];
    let node = node_of(&[("storage", &storage)], &set);
    storage.answer_once([Reply::Delay(SECOND / 2)]);
    let ids: Vec<String> = (0..50).map(|n| stored(&node, &chat(&["bob"], &json!(n)))).collect();
    let entries = eventually_is("all are told of", || told(&storage.accepted()), |told| told.len() >= 50);
    assert_eq!(each(&entries, "/message/id"), ids, "each once, in order");
    assert_eq!(each(&entries, "/recipients/0/cursor"), (1..=50).map(|n| n.to_string()).collect::<Vec<_>>());
    let calls = storage.calls();
    assert!(calls.iter().all(|call| call.kind() == "message.stored.batch"));
    let most = calls.iter().map(|call| call.data()["messages"].as_array().unwrap().len()).max();
    assert_eq!(most, Some(20), "those that queued came together");
    expect_listed(&node, "", 0);
}

/// What these calls tell of stored messages, one by one.
fn told(calls: &[Call]) -> Vec<Value> {
    let batches = calls.iter().map(|call| call.data()["messages"].take());
    batches.flat_map(|mut messages| std::mem::take(messages.as_array_mut().unwrap())).collect()
}

#[test]
fn a_batch_of_large_messages_has_a_bounded_body() {
    let storage = Receiver::start();
    let set = ["callbacks.storage.batch_max=500", "callbacks.storage.concurrency=1"];
    let node = node_of(&[("storage", &storage)], &set);
    // Until all are stored.
    storage.answer_once([Reply::Delay(3 * SECOND)]);
    let long = "x".repeat(60_000);
    let ids: Vec<String> = (0..60).map(|n| stored(&node, &chat(&["bob"], &json!([n, long])))).collect();
    let entries = eventually_is("all are told of", || told(&storage.accepted()).len(), |told| *told >= 60);
    assert_eq!(entries, 60);
    let mut told: Vec<String> = told(&storage.accepted()).iter().map(|entry| text(&entry["message"]["id"])).collect();
    told.sort();
    assert_eq!(told, ids);
    let largest = storage.calls().iter().map(|call| call.body.len()).max().unwrap();
    assert!((500_000..1_200_000).contains(&largest), "{largest}");
}

#[test]
fn a_message_to_a_thousand_is_pushed_to_each_of_those_who_are_away_once() {
    let push = Receiver::start();
    let node = node_of(&[("push", &push)], &[NO_GRACE_NEEDED]);
    let _online = node.device("user7", "phone");
    let users: Vec<String> = (0..1_000).map(|n| format!("user{n}")).collect();
    let names: Vec<&str> = users.iter().map(String::as_str).collect();
    // More than a dispatcher holds in memory.
    for n in 0..3 {
        stored(&node, &chat(&names, &json!(n)));
    }
    push.expect_callbacks_within(3 * 999, 30 * SECOND);
    assert_eq!(push.count(), 3 * 999);
    let pushed: BTreeSet<(String, String)> =
        push.calls().iter().map(|call| (call.message_id(), text(&call.data()["recipient"]))).collect();
    assert_eq!(pushed.len(), 3 * 999);
    assert!(!pushed.iter().any(|(_, user)| user == "user7"));
}

#[test]
fn one_poisonous_message_does_not_drag_down_its_batch() {
    let storage = Receiver::start();
    let set = ["callbacks.storage.batch_max=20", "callbacks.storage.concurrency=1"];
    let node = node_of(&[("storage", &storage)], &set);
    storage.answer_once([Reply::Delay(SECOND / 2)]);
    storage.answer_by(|call| Reply::Status(if call.body.contains("poison") { 422 } else { 200 }));
    let ids: Vec<String> = ["a", "b", "poison", "c", "d"].map(|p| stored(&node, &chat(&["bob"], &json!(p)))).into();
    let entries = eventually_is("the others are told of", || told(&storage.accepted()), |told| told.len() == 4);
    let mut accepted: Vec<String> = entries.iter().map(|entry| text(&entry["message"]["id"])).collect();
    accepted.sort();
    assert_eq!(accepted, [0, 1, 3, 4].map(|n| ids[n].clone()));
    // The batch that it was in may be settled a little later.
    let failing = eventually_is("it is to be tried again", || expect_listed(&node, "", 1), |f| f[0]["attempts"] == 1);
    assert_eq!(failing[0]["message"], json!(ids[2]));
}

#[test]
fn an_endpoint_that_is_down_is_probed_and_nothing_dies() {
    let storage = Receiver::start();
    let node = node_of(&[("storage", &storage)], &["callbacks.storage.concurrency=1"]);
    storage.answer(Reply::Status(500));
    let ids: Vec<String> = (0..30).map(|n| stored(&node, &chat(&["bob"], &json!(n)))).collect();
    let open = r#"herenow_callback_breaker_open{endpoint="storage"}"#;
    eventually_is("the breaker opens", || node.metric(open), |open| *open > 0.5);
    let probed = storage.expect_callbacks(6);
    assert!(probed[5].at - probed[4].at + SLACK >= SECOND, "5 failures, then the first probe 1 s later");
    assert!(callbacks(&node, "state=dead").is_empty());
    assert_eq!(each(&expect_listed(&node, "state=failing", 5), "/attempts"), [1, 1, 1, 1, 1]);
    let waiting = callbacks(&node, "state=waiting");
    assert_eq!(waiting.len(), 25, "a probe that fails does not count");
    assert!(waiting.iter().all(|entry| entry["attempts"] == 0));
    storage.answer(Reply::Status(200));
    let all = eventually_is("it has caught up", || storage.accepted(), |accepted| accepted.len() >= 30);
    assert!(all[0].at - probed[5].at + SLACK >= 2 * SECOND, "the second probe is 2 s after the first");
    let mut told: Vec<String> = all.iter().map(Call::message_id).collect();
    told.sort();
    assert_eq!(told, ids);
    expect_listed(&node, "", 0);
    assert!(node.metric(open) < 0.5);
}

#[test]
fn an_endpoint_that_refuses_connections_catches_up_when_it_listens_again() {
    let storage = Receiver::start_down();
    let node = node_of(&[("storage", &storage)], &[]);
    let ids: BTreeSet<String> = (0..40).map(|n| stored(&node, &chat(&["bob"], &json!(n)))).collect();
    let failing = eventually_is("some have failed", || callbacks(&node, "state=failing"), |f| f.len() >= 5);
    assert!(text(&failing[0]["last_error"]["detail"]).starts_with("no connection"), "{}", failing[0]);
    assert_eq!(failing[0]["last_error"].get("status"), None);
    storage.set_down(false);
    let told = eventually_is("it has caught up", || storage.accepted(), |accepted| accepted.len() >= 40);
    assert_eq!(told.iter().map(Call::message_id).collect::<BTreeSet<_>>(), ids);
    expect_listed(&node, "", 0);
}

/// Sends to users who are away and gives how long each push took.
fn push_latencies(node: &Node, push: &Receiver, n: usize) -> Vec<Duration> {
    let before = push.count();
    let mut begun = BTreeMap::new();
    for k in 0..n {
        let at = Instant::now();
        begun.insert(stored(node, &chat(&["away"], &json!(k))), at);
        std::thread::sleep(Duration::from_millis(5));
    }
    let calls = push.expect_callbacks(before + n);
    let mut latencies: Vec<Duration> = calls[before..].iter().map(|call| call.at - begun[&call.message_id()]).collect();
    latencies.sort();
    latencies
}

/// How much memory the node has, in KiB.
fn resident(node: &Node) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Whatever one endpoint does, the other is told as fast as ever.
fn holds_up_nobody(answers: Vec<Reply>) {
    let (storage, push) = (Receiver::start(), Receiver::start());
    // Were the other endpoint to wait for this one, it would wait for this long.
    let node = node_of(&[("storage", &storage), ("push", &push)], &["callbacks.storage.timeout_ms=20000"]);
    let well = push_latencies(&node, &push, 40);
    let (before, turn) = (resident(&node), AtomicUsize::new(0));
    let kinds = answers.len();
    storage.answer_by(move |_| answers[turn.fetch_add(1, Ordering::Relaxed) % kinds].clone());
    let ill = push_latencies(&node, &push, 80);
    let grown = resident(&node).saturating_sub(before);
    eprintln!("median, p95, max: {:?} -> {:?}; memory +{grown} KiB", figures(&well), figures(&ill));
    assert!(ill[ill.len() - 1] < 2 * SECOND, "{:?} -> {:?}", figures(&well), figures(&ill));
    assert!(figures(&ill)[0] < 10 * figures(&well)[0] + SECOND / 10, "{:?} -> {:?}", figures(&well), figures(&ill));
    assert!(grown < 48 * 1024, "memory has grown by {grown} KiB");
    expect_listed(&node, "endpoint=push", 0);
}

fn figures(sorted: &[Duration]) -> [Duration; 3] {
    [sorted[sorted.len() / 2], sorted[sorted.len() * 95 / 100], sorted[sorted.len() - 1]]
}

#[test]
fn an_endpoint_that_never_answers_holds_up_nobody() {
    holds_up_nobody(vec![Reply::Hang]);
}

#[test]
fn an_endpoint_that_drips_holds_up_nobody() {
    holds_up_nobody(vec![Reply::Drip]);
}

#[test]
fn an_endpoint_that_answers_ten_gigabytes_holds_up_nobody() {
    holds_up_nobody(vec![Reply::Endless]);
}

#[test]
fn of_an_endless_answer_the_beginning_is_read() {
    let storage = Receiver::start();
    let node = node_of(&[("storage", &storage)], &["callbacks.storage.timeout_ms=5000"]);
    storage.answer(Reply::Endless);
    let id = stored(&node, &chat(&["bob"], &json!(1)));
    expect_status(&node, &id, "/storage/state", &json!("sent"));
    // No more than lies in the buffers of the two sockets.
    assert!(storage.bytes_given() < 16 << 20, "{} bytes were taken", storage.bytes_given());
}

#[test]
fn an_endpoint_that_answers_badly_in_every_way_holds_up_nobody() {
    holds_up_nobody(vec![Reply::Garbage, Reply::Close, Reply::Cut, Reply::Status(500), Reply::Hang, Reply::Drip]);
}

#[test]
fn a_redirect_is_not_followed() {
    let (storage, elsewhere) = (Receiver::start(), Receiver::start());
    let node = node_of(&[("storage", &storage)], &[]);
    storage.answer(Reply::redirect(&format!("http://{}/elsewhere", elsewhere.addr())));
    stored(&node, &chat(&["bob"], &json!(1)));
    let failing = expect_listed(&node, "state=failing", 1);
    assert_eq!(failing[0]["last_error"]["status"], 307);
    assert_eq!((elsewhere.count(), elsewhere.connections()), (0, 0));
}

#[test]
fn an_answer_that_takes_too_long_or_breaks_off_is_no_success() {
    for (answer, detail) in [
        (Reply::Hang, "timed out"),
        (Reply::Drip, "timed out"),
        (Reply::Cut, "connection broke"),
        (Reply::Garbage, "connection broke"),
        (Reply::Close, "connection broke"),
    ] {
        let storage = Receiver::start();
        let node = node_of(&[("storage", &storage)], &["callbacks.storage.timeout_ms=300"]);
        storage.answer(answer.clone());
        stored(&node, &chat(&["bob"], &json!(1)));
        let failing = expect_listed(&node, "state=failing", 1);
        let said = text(&failing[0]["last_error"]["detail"]);
        assert!(said.starts_with(detail), "{answer:?}: {said}");
    }
}

#[test]
fn every_secret_signs_so_that_secrets_can_be_rotated() {
    let storage = Receiver::start();
    let url = format!("callbacks.storage.url=http://{}/", storage.addr());
    let mut node = Node::with(&[&url, &format!("callbacks.storage.secrets={SECRET},{NEXT_SECRET}")]);
    stored(&node, &chat(&["bob"], &json!(1)));
    let call = &storage.expect_callbacks(1)[0];
    assert_eq!((call.signatures_by(SECRET), call.signatures_by(NEXT_SECRET)), (1, 1));
    assert_eq!(call.header("webhook-signature").split(' ').count(), 2);
    node.restart_with(Node::setup().set(&url).set(&format!("callbacks.storage.secrets={SECRET}")));
    stored(&node, &chat(&["bob"], &json!(2)));
    let call = &storage.expect_callbacks(2)[1];
    assert_eq!((call.signatures_by(SECRET), call.signatures_by(NEXT_SECRET)), (1, 0));
}

#[test]
fn metadata_and_link_local_addresses_are_refused_at_the_start_however_they_are_spelled() {
    for host in [
        "169.254.169.254",
        "169.254.1.1",
        "0xa9fea9fe",
        "2852039166",
        "0251.0376.0251.0376",
        "169.254.43518",
        "%31%36%39.254.169.254",
        "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]",
        "[64:ff9b::169.254.169.254]",
        "[2002:a9fe:a9fe::]",
        "[fe80::1]",
        "[fd00:ec2::254]",
    ] {
        for (endpoint, path) in [("storage", "/latest/meta-data/"), ("push", ":8080/")] {
            let path = if path.starts_with(':') { path.to_owned() } else { format!(":80{path}") };
            let said = refused_start(&[format!("callbacks.{endpoint}.url=http://{host}{path}")]);
            assert!(said.contains(&format!("callbacks.{endpoint}.url")), "{host}: {said}");
        }
    }
    let denied = ["callbacks.storage.url=http://127.0.0.1:9/", "callbacks.deny_networks=127.0.0.0/8"];
    assert!(refused_start(&denied.map(String::from)).contains("callbacks.storage.url"));
    let private = ["callbacks.push.url=http://10.0.0.1/", "callbacks.public_only=true"];
    assert!(refused_start(&private.map(String::from)).contains("callbacks.push.url"));
}

#[test]
fn a_name_is_checked_at_each_connection() {
    let storage = Receiver::start();
    let url = format!("callbacks.storage.url=http://localhost:{}/", storage.addr().port());
    let node = Node::with(&[&url, "callbacks.deny_networks=127.0.0.0/8,::1/128"]);
    let id = stored(&node, &chat(&["bob"], &json!(1)));
    let failing = expect_listed(&node, "state=failing", 1);
    assert!(text(&failing[0]["last_error"]["detail"]).starts_with("address refused"), "{}", failing[0]);
    assert_eq!(failing[0]["message"], json!(id));
    assert_eq!(storage.connections(), 0);
}

#[test]
fn proxies_of_the_environment_are_ignored() {
    let (storage, proxy) = (Receiver::start(), Receiver::start());
    let through = format!("http://{}", proxy.addr());
    let mut setup = setup_of(&[("storage", &storage)], &[]);
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        setup = setup.env(name, &through);
    }
    let node = setup.start();
    stored(&node, &chat(&["bob"], &json!(1)));
    storage.expect_callbacks(1);
    assert_eq!(proxy.connections(), 0);
}

#[test]
fn an_endpoint_that_is_gone_is_taken_to_be_down_at_once_and_its_events_live_on() {
    let storage = Receiver::start();
    let node = node_of(&[("storage", &storage)], &[]);
    storage.answer_once([Reply::Status(410)]);
    let first = stored(&node, &chat(&["bob"], &json!(1)));
    let open = r#"herenow_callback_breaker_open{endpoint="storage"}"#;
    eventually_is("the breaker opens", || node.metric(open), |open| *open > 0.5);
    let second = stored(&node, &chat(&["bob"], &json!(2)));
    let told = eventually_is("both are told of", || storage.accepted(), |accepted| accepted.len() == 2);
    assert_eq!(told.iter().map(Call::message_id).collect::<Vec<_>>(), [second, first]);
    expect_listed(&node, "", 0);
}

#[test]
fn storage_is_told_of_what_expired_or_was_trimmed_meanwhile_and_nobody_is_pushed_it() {
    let (storage, push) = (Receiver::start_down(), Receiver::start_down());
    let mut node = node_of(&[("storage", &storage), ("push", &push)], &["store.inbox_max=2"]);
    let mut brief = chat(&["bob"], &json!("brief"));
    brief["ttl_ms"] = json!(1);
    let mut ids: BTreeSet<String> = (0..3).map(|_| stored(&node, &brief)).collect();
    // Trimmed every 32 messages.
    ids.extend((0..40).map(|n| stored(&node, &chat(&["carol"], &json!(n)))));
    eventually_is("some have failed", || callbacks(&node, "state=failing"), |failing| !failing.is_empty());
    node.restart();
    for receiver in [&storage, &push] {
        receiver.set_down(false);
    }
    let told = || storage.accepted().iter().map(Call::message_id).collect::<BTreeSet<_>>();
    eventually_is("storage is told of all", told, |told| *told == ids);
    expect_listed(&node, "", 0);
    let pushed: BTreeSet<String> =
        push.accepted().iter().map(|call| call.data()["message"]["payload"].to_string()).collect();
    assert_eq!(pushed, ["38", "39"].map(String::from).into(), "what is still in an inbox");
}

#[test]
fn what_a_receiver_says_is_shown_but_not_at_length() {
    let storage = Receiver::start();
    let node = node_of(&[("storage", &storage)], &[]);
    storage.answer(Reply::Text(400, "\u{1b}[31mno\u{0}".to_owned() + &"\u{fc}".repeat(100_000)));
    stored(&node, &chat(&["bob"], &json!(1)));
    let detail = text(&expect_listed(&node, "state=failing", 1)[0]["last_error"]["detail"]);
    assert!((1_000..1_100).contains(&detail.len()), "{}", detail.len());
    assert!(!detail.contains(char::is_control), "{detail:?}");
}

#[test]
fn credentials_in_a_url_are_used_and_never_shown() {
    let storage = Receiver::start();
    let credentials = ["url-user-canary", "url-password-canary", "url-query-canary"];
    let [user, password, query] = credentials;
    let url = format!("callbacks.storage.url=http://{user}:{password}@{}/hook?key={query}", storage.addr());
    let node = Node::with(&[&url, &format!("callbacks.storage.secrets={SECRET}")]);
    for secret in credentials.iter().chain(&[SECRET]) {
        node.note_secret(secret);
    }
    storage.answer_once([Reply::Close, Reply::Close]);
    stored(&node, &chat(&["bob"], &json!(1)));
    stored(&node, &chat(&["bob"], &json!(2)));
    let call = &storage.expect_callbacks(2)[1];
    assert_eq!(call.line, format!("POST /hook?key={query} HTTP/1.1"));
    assert!(call.header("authorization").starts_with("Basic "), "{call:?}");
    let listed = format!("{:?}", expect_listed(&node, "state=failing", 2));
    assert!(!credentials.iter().any(|secret| listed.contains(secret)), "{listed}");
}

#[test]
fn a_retry_says_what_is_to_be_retried() {
    let node = Node::start();
    for body in [json!({}), json!({"state": "sent"}), json!({"state": "dead", "endpoint": "mail"})] {
        node.backend().post("/v1/callbacks/retry", &body).problem(422, "invalid_request");
    }
    for query in ["state=sent", "endpoint=mail", "limit=0", "limit=1001", "after=x", "other=1"] {
        node.backend().get(&format!("/v1/callbacks?{query}")).problem(422, "invalid_request");
    }
}

#[test]
fn callbacks_wait_through_a_restart() {
    let storage = Receiver::start();
    let mut node = node_of(&[("storage", &storage)], &[]);
    storage.answer(Reply::Status(400));
    let ids: BTreeSet<String> = (0..10).map(|n| stored(&node, &chat(&["bob"], &json!(n)))).collect();
    let before = expect_listed(&node, "state=failing", 10);
    node.restart();
    let after = callbacks(&node, "state=failing");
    assert_eq!(after, before, "with their attempts, errors and times");
    storage.answer(Reply::Status(200));
    let started = SystemTime::now();
    let told = eventually_is("they are tried again", || storage.accepted(), |accepted| accepted.len() >= 10);
    assert_eq!(told.iter().map(Call::message_id).collect::<BTreeSet<_>>(), ids);
    assert!(told[0].wall.duration_since(started).unwrap_or_default() < 7 * SECOND, "in their own time, not anew");
    assert_eq!(told.iter().map(|call| call.id().to_owned()).collect::<BTreeSet<_>>().len(), 10);
}
