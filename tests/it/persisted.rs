//! CONTRACT.md 3, 4 and 7: a persisted message waits for every device of its recipients, in order, for as long as it is kept.

use crate::harness::receiver::Reply;
use crate::harness::*;
use crate::support::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[test]
fn a_send_is_answered_with_its_place_and_its_end() {
    let node = Node::start();
    let answer = node.backend().send(chat(&["bob"], &json!({"text": "hi"}))).expect(201);
    let sent = answer.json();
    let id = text(&sent["id"]);
    assert_eq!(id.parse::<uuid::Uuid>().unwrap().get_version_num(), 7, "{id}");
    assert_eq!(answer.header("location"), Some(&*format!("/v1/messages/{id}")));
    assert!(answer.header("x-request-id").is_some());
    assert_eq!(
        sent,
        json!({
            "id": id, "online_only": false, "sent_at": sent["sent_at"], "expires_at": sent["expires_at"],
            "recipients": [{"user": "bob", "outcome": "stored", "cursor": "1"}]
        })
    );
    let kept = millis(&sent["expires_at"]) - millis(&sent["sent_at"]);
    assert_eq!(kept, 7 * 24 * 3_600 * 1_000, "store.retention_s is 7 days");
}

#[test]
fn every_device_gets_every_message_in_order() {
    let node = Node::start();
    let mut devices = [node.device("bob", "phone"), node.device("bob", "laptop")];
    let ids: Vec<String> = (0..50).map(|n| stored(&node, &chat(&["bob"], &json!(n)))).collect();
    for device in &mut devices {
        for (n, id) in ids.iter().enumerate() {
            let event = device.next_event();
            let (cursor, message) = ((n + 1).to_string(), event.json());
            assert_eq!((event.name.as_str(), event.id.as_deref()), ("message", Some(&*cursor)));
            assert_eq!(
                message,
                json!({
                    "id": id, "from": "alice", "to": {"users": ["bob"]}, "type": "chat", "payload": n,
                    "online_only": false, "sent_at": message["sent_at"], "cursor": cursor
                })
            );
        }
    }
    expect_status(&node, &ids[49], "/recipients/0/delivered_to", &json!(["laptop", "phone"]));
    assert_eq!(status_of(&node, &ids[0])["recipients"][0]["acked_by"], json!([]));
}

#[test]
fn a_message_waits_for_those_that_are_away_and_a_device_goes_on_where_it_acked() {
    let node = Node::start();
    let ids: Vec<String> = (1..=5).map(|n| stored(&node, &chat(&["bob"], &json!(n)))).collect();
    let mut phone = node.device("bob", "phone");
    assert_eq!(each(&messages(&mut phone, 5), "/payload"), [1, 2, 3, 4, 5]);
    ack(&node, "bob", "phone", "3").expect(204);
    ack(&node, "bob", "phone", "2").expect(204);
    phone.close();

    let (mut phone, start) = resumed(&node.stream("bob", "phone"));
    assert_eq!(start, "3", "an older ack changed nothing");
    assert_eq!(each(&messages(&mut phone, 2), "/payload"), [4, 5]);
    let (mut again, start) = resumed(&node.stream("bob", "phone").last_event_id("4"));
    assert_eq!(start, "4", "Last-Event-ID wins over the ack");
    assert_eq!(again.next_message()["payload"], 5);
    let (mut new, start) = resumed(&node.stream("bob", "tablet").after("earliest").last_event_id("1"));
    assert_eq!(start, "1", "Last-Event-ID wins over the query");
    assert_eq!(each(&messages(&mut new, 4), "/payload"), [2, 3, 4, 5]);
    let mut now = node.stream("bob", "watch").after("now").open();
    stored(&node, &chat(&["bob"], &json!(6)));
    assert_eq!(now.next_message()["payload"], 6);

    ack(&node, "bob", "phone", "7").problem(422, "invalid_request");
    assert_eq!(status_of(&node, &ids[2])["recipients"][0]["acked_by"], json!(["phone"]));
    assert_eq!(status_of(&node, &ids[3])["recipients"][0]["acked_by"], json!([]));
}

#[test]
fn each_recipient_has_a_sequence_of_its_own_and_sees_nobody_else() {
    let node = Node::start();
    let mut bob = node.device("bob", "phone");
    stored(&node, &chat(&["carol"], &json!(1)));
    stored(&node, &chat(&["carol"], &json!(2)));
    let both = accepted(&node, &chat(&["bob", "carol", "bob"], &json!(3)));
    assert_eq!(
        both["recipients"],
        json!([
            {"user": "bob", "outcome": "stored", "cursor": "1"},
            {"user": "carol", "outcome": "stored", "cursor": "3"}
        ]),
        "a duplicate counts once"
    );
    let event = bob.next_event();
    assert_eq!((&event.json()["to"], &event.json()["cursor"]), (&json!({"users": ["bob"]}), &json!("1")));
    assert!(!event.data.contains("carol"), "{event:?}");
    assert_eq!(each(&whole_inbox(&node, "carol"), "/cursor"), ["1", "2", "3"]);
    let status = status_of(&node, &text(&both["id"]));
    assert_eq!(each(status["recipients"].as_array().unwrap(), "/user"), ["bob", "carol"]);
    assert_eq!(each(status["recipients"].as_array().unwrap(), "/cursor"), ["1", "3"]);
}

#[test]
fn a_thousand_recipients_each_get_it() {
    let node = Node::start();
    let users: Vec<String> = (0..1_000).map(|n| format!("user{n}")).collect();
    let names: Vec<&str> = users.iter().map(String::as_str).collect();
    let sent = accepted(&node, &chat(&names, &json!("all")));
    let recipients = sent["recipients"].as_array().unwrap();
    assert_eq!(each(recipients, "/user"), names);
    assert!(recipients.iter().all(|r| r["cursor"] == "1" && r["outcome"] == "stored"));
    for user in ["user0", "user500", "user999"] {
        assert_eq!(each(&whole_inbox(&node, user), "/id"), [sent["id"].clone()]);
    }
}

#[test]
fn a_payload_arrives_byte_for_byte_wherever_it_is_shown() {
    let receiver = Receiver::start();
    let node = node_of(&[("storage", &receiver), ("push", &receiver)], &[]);
    let payload = r#"{"z":12345678901234567890,  "b":1.50,"a":"\u00fc\/","e":1E+2}"#;
    let push = r#"{"title" : "\u0041", "n":1.0e5,"a":[ ]}"#;
    let body =
        format!(r#"{{"from":"alice","to":{{"users":["bob"]}},"type":"chat","payload":{payload},"push":{push}}}"#);
    let sent = node.backend().request(Request::post("/v1/messages").json(body)).expect(201).json();
    let shown = format!(r#""payload":{payload},"#);
    assert_eq!(node.device("bob", "phone").next_event().payload_text(), payload);
    let tablet = node.stream("bob", "tablet").after("now").open();
    assert!(tablet.inbox("after=earliest").text().contains(&shown));
    assert!(node.backend().get(&format!("/v1/messages/{}", text(&sent["id"]))).text().contains(&shown));
    for told in receiver.expect_callbacks(2) {
        assert!(told.body.contains(&shown), "{}", told.body);
        if told.kind() == "message.push" {
            assert!(told.body.contains(&format!(r#""push":{push},"#)), "{}", told.body);
        }
    }
}

#[test]
fn the_states_of_a_message_follow_what_becomes_of_it() {
    let (storage, push) = (Receiver::start(), Receiver::start());
    let is_well = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&is_well);
    storage.answer_by(move |_| Reply::Status(if seen.load(Ordering::Relaxed) { 200 } else { 400 }));
    push.answer(Reply::With(400, "webhook-delivery", "abort-message".into()));
    let node = node_of(&[("storage", &storage), ("push", &push)], &["callbacks.push.grace_ms=1000"]);
    let mut phone = node.device("bob", "phone");

    let taken = stored(&node, &chat(&["bob"], &json!("taken")));
    assert_eq!(status_of(&node, &taken)["recipients"][0]["push"], json!({"state": "waiting", "attempts": 0}));
    phone.next_message();
    expect_status(&node, &taken, "/storage", &json!({"state": "failing", "attempts": 1}));
    is_well.store(true, Ordering::Relaxed);
    expect_status(&node, &taken, "/recipients/0/push", &json!({"state": "not_needed", "attempts": 0}));

    let missed = stored(&node, &chat(&["carol"], &json!("missed")));
    expect_status(&node, &missed, "/recipients/0/push", &json!({"state": "dead", "attempts": 1}));
    expect_status(&node, &missed, "/storage", &json!({"state": "sent", "attempts": 1}));

    let mut quiet = chat(&["carol"], &json!("quiet"));
    quiet["push"] = json!(false);
    let quiet = stored(&node, &quiet);
    assert_eq!(status_of(&node, &quiet)["recipients"][0]["push"], json!({"state": "off", "attempts": 0}));
    expect_status(&node, &quiet, "/storage", &json!({"state": "sent", "attempts": 1}));
    assert_eq!(push.count(), 1, "neither the taken nor the quiet one was pushed");
}

#[test]
fn without_endpoints_there_are_no_callbacks() {
    let node = Node::start();
    let status = status_of(&node, &stored(&node, &chat(&["carol"], &json!(1))));
    assert_eq!(
        (&status["storage"]["state"], &status["recipients"][0]["push"]["state"]),
        (&json!("off"), &json!("off"))
    );
    assert_eq!(node.backend().get("/v1/callbacks").expect(200).json(), json!({"callbacks": []}));
}

#[test]
fn what_has_expired_is_gone_and_leaves_a_hole_that_is_told_of() {
    let node = Node::start();
    let mut brief = chat(&["bob"], &json!("brief"));
    brief["ttl_ms"] = json!(2_000);
    let first = accepted(&node, &brief);
    assert_eq!(millis(&first["expires_at"]) - millis(&first["sent_at"]), 2_000);
    stored(&node, &chat(&["bob"], &json!("kept")));
    let third = stored(&node, &brief);
    stored(&node, &chat(&["bob"], &json!("last")));
    assert_eq!(each(&whole_inbox(&node, "bob"), "/cursor"), ["1", "2", "3", "4"]);

    for id in [&text(&first["id"]), &third] {
        let path = format!("/v1/messages/{id}");
        eventually_is("it expires", || node.backend().get(&path).status, |status| *status == 404);
    }
    let page = inbox(&node, "bob", "d", "after=earliest");
    assert_eq!(each(page["messages"].as_array().unwrap(), "/payload"), ["kept", "last"]);
    assert_eq!((&page["next"], &page["more"]), (&json!("4"), &json!(false)));

    let mut behind = node.stream("bob", "phone").last_event_id("0").open();
    let gap = behind.next_event();
    assert_eq!((gap.name.as_str(), gap.json()), ("gap", json!({"reason": "expired", "resumed_after": "1"})));
    assert_eq!(each(&messages(&mut behind, 2), "/cursor"), ["2", "4"]);
    let mut amid = node.stream("bob", "tablet").last_event_id("2").open();
    assert_eq!(amid.next_message()["cursor"], "4", "a hole amid what is kept is no gap");
    stored(&node, &chat(&["bob"], &json!("live")));
    for device in [&mut behind, &mut amid] {
        assert_eq!(device.next_message()["cursor"], "5", "live goes on after a hole");
    }
}

#[test]
fn a_number_is_never_given_out_twice_though_its_message_expired() {
    let mut node = Node::start();
    let mut brief = chat(&["bob"], &json!("brief"));
    brief["ttl_ms"] = json!(1);
    for _ in 0..3 {
        stored(&node, &brief);
    }
    // What has expired is removed at the start.
    node.restart();
    let next = accepted(&node, &chat(&["bob"], &json!("next")));
    assert_eq!(next["recipients"][0]["cursor"], "4");
    let mut phone = node.stream("bob", "phone").last_event_id("1").open();
    let gap = phone.next_event();
    assert_eq!((gap.name.as_str(), gap.json()), ("gap", json!({"reason": "expired", "resumed_after": "3"})));
    assert_eq!(phone.next_message()["cursor"], "4");
}

#[test]
fn a_message_is_kept_for_the_retention_and_may_ask_for_less() {
    let node = Node::with(&["store.retention_s=3"]);
    let begun = Instant::now();
    let message = accepted(&node, &chat(&["bob"], &json!("kept")));
    assert_eq!(millis(&message["expires_at"]) - millis(&message["sent_at"]), 3_000);
    let with_ttl = |ttl_ms: u32| {
        let mut message = chat(&["bob"], &json!("brief"));
        message["ttl_ms"] = json!(ttl_ms);
        node.backend().send(message)
    };
    let problem = with_ttl(3_001).problem(422, "invalid_request");
    assert_eq!(problem["errors"][0]["pointer"], "/ttl_ms");
    with_ttl(3_000).expect(201);
    let path = format!("/v1/messages/{}", text(&message["id"]));
    eventually_is("it expires", || node.backend().get(&path).status, |status| *status == 404);
    let lived = begun.elapsed();
    assert!(lived > Duration::from_millis(2_990) && lived < Duration::from_secs(5), "{lived:?}");
    eventually_is("both are gone", || whole_inbox(&node, "bob").len(), |n| *n == 0);
    let gap = node.stream("bob", "phone").last_event_id("0").open().next_event();
    assert_eq!((gap.name.as_str(), gap.json()), ("gap", json!({"reason": "expired", "resumed_after": "2"})));
}

#[test]
fn the_newest_messages_of_a_user_are_kept_and_no_more() {
    let node = Node::with(&["store.inbox_max=5"]);
    for n in 1..=5 {
        stored(&node, &chat(&["bob"], &json!(n)));
    }
    assert_eq!(each(&whole_inbox(&node, "bob"), "/cursor"), ["1", "2", "3", "4", "5"]);
    stored(&node, &chat(&["bob"], &json!(6)));
    assert_eq!(each(&whole_inbox(&node, "bob"), "/cursor"), ["2", "3", "4", "5", "6"]);
    for n in 7..=70 {
        stored(&node, &chat(&["bob"], &json!(n)));
    }
    stored(&node, &chat(&["carol"], &json!(1)));
    assert_eq!(each(&whole_inbox(&node, "bob"), "/cursor"), ["66", "67", "68", "69", "70"]);
    let mut phone = node.stream("bob", "phone").last_event_id("2").open();
    let gap = phone.next_event();
    assert_eq!((gap.name.as_str(), gap.json()), ("gap", json!({"reason": "expired", "resumed_after": "65"})));
    assert_eq!(each(&messages(&mut phone, 5), "/payload"), [66, 67, 68, 69, 70]);
    assert_eq!(whole_inbox(&node, "carol").len(), 1);
}

#[test]
fn a_start_that_was_never_given_out_is_told_apart_from_a_malformed_one() {
    let node = Node::start();
    stored(&node, &chat(&["bob"], &json!(1)));
    let mut ahead = node.stream("bob", "phone").last_event_id("9").open();
    let gap = ahead.next_event();
    assert_eq!((gap.name.as_str(), gap.json()), ("gap", json!({"reason": "ahead", "resumed_after": "1"})));
    stored(&node, &chat(&["bob"], &json!(2)));
    assert_eq!(ahead.next_message()["cursor"], "2", "nothing is taken for seen");
    for cursor in ["-1", "01", "x", "1.5", "99999999999999999999"] {
        node.stream("bob", "phone").last_event_id(cursor).refused().problem(422, "invalid_request");
    }
}

#[test]
fn an_inbox_is_pulled_page_by_page_as_a_stream_would_show_it() {
    let node = Node::start();
    for n in 1..=7 {
        stored(&node, &chat(&["bob"], &json!(n)));
    }
    let (mut after, mut seen, mut sizes) = ("0".to_owned(), vec![], vec![]);
    loop {
        let page = inbox(&node, "bob", "phone", &format!("after={after}&limit=3"));
        let part = each(page["messages"].as_array().unwrap(), "/payload");
        sizes.push(part.len());
        seen.extend(part);
        after = text(&page["next"]);
        if page["more"] == false {
            break;
        }
    }
    assert_eq!((seen, sizes), ((1..=7).map(Value::from).collect(), vec![3, 3, 1]));
    ack(&node, "bob", "phone", "6").expect(204);
    let page = inbox(&node, "bob", "phone", "");
    assert_eq!(each(page["messages"].as_array().unwrap(), "/payload"), [7], "from where it acked");
    let streamed = node.stream("bob", "tablet").after("6").open().next_message();
    assert_eq!(page["messages"][0], streamed);
    assert_eq!(inbox(&node, "nobody", "phone", ""), json!({"messages": [], "next": "0", "more": false}));
}

#[test]
fn an_online_only_message_was_never_kept() {
    let receiver = Receiver::start();
    let node = node_of(&[("storage", &receiver), ("push", &receiver)], &[]);
    let mut phone = node.device("bob", "phone");
    let mut typing = chat(&["bob", "carol"], &json!({}));
    typing["online_only"] = json!(true);
    let sent = node.backend().send(typing).expect(200).json();
    assert_eq!(phone.next_event().id, None, "it never moves the resume point");
    node.backend().get(&format!("/v1/messages/{}", text(&sent["id"]))).problem(404, "not_found");
    assert!(whole_inbox(&node, "bob").is_empty() && whole_inbox(&node, "carol").is_empty());
    let mut later = node.stream("carol", "phone").after("earliest").open();
    stored(&node, &chat(&["carol"], &json!("kept")));
    assert_eq!(later.next_message()["cursor"], "1");
    receiver.expect_callbacks(1);
    assert!(receiver.calls().iter().all(|call| call.data()["message"]["online_only"] == false));
}

#[test]
fn a_repeated_send_is_answered_as_the_first_and_stored_once() {
    let receiver = Receiver::start();
    let node = node_of(&[("storage", &receiver)], &[]);
    let message = chat(&["bob"], &json!("once"));
    let first = send_with_key(&node, &message, "k-1").expect(201);
    assert_eq!(first.header("idempotent-replayed"), None);
    let again = send_with_key(&node, &message, "k-1").expect(201);
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!((again.json(), again.header("location")), (first.json(), first.header("location")));
    send_with_key(&node, &chat(&["bob"], &json!("other")), "k-1").problem(422, "idempotency_key_reused");

    let twins = chat(&["bob"], &json!("twins"));
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let sends: Vec<_> = (0..10).map(|_| scope.spawn(|| send_with_key(&node, &twins, "k-2"))).collect();
        sends.into_iter().map(|send| send.join().unwrap()).collect()
    });
    for answer in &answers {
        assert!(answer.status == 201 || answer.problem(409, "idempotency_in_progress").is_object());
    }
    let fresh = answers.iter().filter(|a| a.status == 201 && a.header("idempotent-replayed").is_none());
    assert_eq!(fresh.count(), 1, "{answers:?}");
    assert_eq!(each(&whole_inbox(&node, "bob"), "/payload"), ["once", "twins"]);
    stored(&node, &chat(&["bob"], &json!("last")));
    let told = eventually_is("all are told of", || receiver.accepted(), |told| told.len() >= 3);
    assert_eq!(told.len(), 3);
}

#[test]
fn a_device_that_reads_slowly_gets_all_of_it_in_order_later() {
    let node = Node::with(&["stream.queue_frames=4", "stream.queue_bytes=70000"]);
    let mut slow = node.stream("bob", "phone").receive_buffer(4_096).open();
    let mut quick = node.device("bob", "laptop");
    let long = "x".repeat(30_000);
    let ids: Vec<String> = (0..60).map(|n| stored(&node, &chat(&["bob"], &json!({"n": n, "text": long})))).collect();
    assert_eq!(each(&messages(&mut quick, 60), "/id"), ids, "it is not held up by the slow one");
    let seen = messages(&mut slow, 60);
    assert_eq!(each(&seen, "/id"), ids);
    assert_eq!(each(&seen, "/cursor"), (1..=60).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(slow.event_within(Duration::from_millis(50)), None);
}

#[test]
fn a_page_of_large_messages_ends_early_and_says_so() {
    let node = Node::start();
    let long = "x".repeat(60_000);
    for n in 0..90 {
        stored(&node, &chat(&["bob"], &json!([n, long])));
    }
    let page = inbox(&node, "bob", "d", "limit=1000");
    let first = page["messages"].as_array().unwrap();
    assert!(page["more"] == true && (10..90).contains(&first.len()), "{} of 90", first.len());
    let all = whole_inbox(&node, "bob");
    assert_eq!(each(&all, "/payload/0"), (0..90).map(Value::from).collect::<Vec<_>>());
    let mut late = node.device("bob", "phone");
    assert_eq!(each(&messages(&mut late, 90), "/id"), each(&all, "/id"));
}

#[test]
fn a_device_so_slow_that_messages_are_no_longer_kept_is_told_of_the_gap() {
    let node = Node::with(&["store.inbox_max=5", "stream.queue_frames=2", "stream.queue_bytes=70000"]);
    let mut slow = node.stream("bob", "phone").receive_buffer(4_096).open();
    let long = "x".repeat(60_000);
    for n in 0..40 {
        stored(&node, &chat(&["bob"], &json!([n, long])));
    }
    let (mut last, mut gaps) = (0, vec![]);
    while last < 40 {
        let event = slow.next_event();
        let body = event.json();
        if event.name == "gap" {
            let to: i64 = text(&body["resumed_after"]).parse().unwrap();
            assert_eq!(body["reason"], "expired");
            gaps.push((last, to));
            last = to;
        } else {
            let cursor: i64 = text(&body["cursor"]).parse().unwrap();
            assert_eq!(cursor, last + 1, "a hole without a word; gaps so far: {gaps:?}");
            last = cursor;
        }
    }
    assert_eq!(gaps.len(), 1, "{gaps:?}");
}
