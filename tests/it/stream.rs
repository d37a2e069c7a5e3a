//! Streams: what comes, in what order, from where on, and how they end (CONTRACT.md 4).

use crate::harness::*;
use std::time::{Duration, Instant};

fn store_many(node: &Node, to: &str, payloads: impl IntoIterator<Item = u32>) -> Vec<String> {
    payloads.into_iter().map(|n| node.backend().store(to, &json!(n))).collect()
}

/// Takes so many persisted messages and fails if their cursors are not these numbers in order.
#[track_caller]
fn expect_cursors(device: &mut Device, cursors: impl IntoIterator<Item = u32>) {
    for cursor in cursors {
        let event = device.next_event();
        assert_eq!(
            (event.name.as_str(), event.id.as_deref()),
            ("message", Some(cursor.to_string().as_str())),
            "{event:?}"
        );
        assert_eq!(event.json()["cursor"], cursor.to_string());
    }
}

#[test]
fn a_stream_begins_with_ready_and_the_contract_s_headers() {
    let node = Node::with(&["cluster.node=node-7"]);
    let mut bob = node.stream("bob", "phone").connect();
    assert_eq!(bob.header("content-type"), Some("text/event-stream"));
    assert_eq!(bob.header("cache-control"), Some("no-store"));
    assert_eq!(bob.header("x-accel-buffering"), Some("no"));
    assert!(bob.header("x-request-id").is_some());
    let ready = bob.next_event();
    assert_eq!((ready.name.as_str(), ready.retry, &ready.id), ("ready", Some(2_000), &None));
    assert_eq!(ready.json(), json!({"user": "bob", "device": "phone", "node": "node-7", "resumed_after": "0"}));
}

#[test]
fn a_persisted_message_reaches_every_device_as_the_contract_shows_it() {
    let node = Node::start();
    let mut devices = [node.device("bob", "phone"), node.device("bob", "laptop"), node.device("carol", "tv")];
    let message =
        json!({"from": "alice", "to": {"users": ["bob", "carol", "bob"]}, "type": "chat", "payload": {"text": "hi"}});
    let answer = node.backend().send(message).expect(201);
    let location = format!("/v1/messages/{}", answer.json()["id"].as_str().unwrap());
    assert_eq!(answer.header("location"), Some(location.as_str()));
    let answer = answer.json();
    assert_eq!(
        answer["recipients"],
        json!([{"user": "bob", "outcome": "stored", "cursor": "1"}, {"user": "carol", "outcome": "stored", "cursor": "1"}])
    );
    for device in &mut devices {
        let event = device.next_event();
        assert_eq!(event.id.as_deref(), Some("1"));
        let expected = json!({"id": answer["id"], "from": "alice", "to": {"users": [device.user]}, "type": "chat",
            "payload": {"text": "hi"}, "online_only": false, "sent_at": answer["sent_at"], "cursor": "1"});
        assert_eq!(event.json(), expected);
    }
}

#[test]
fn a_quiet_stream_has_a_heartbeat() {
    let node = Node::with(&["stream.heartbeat_s=1"]);
    let since = Instant::now();
    let mut bob = node.device("bob", "phone");
    bob.read_while(|bob| bob.heartbeats < 3);
    let took = since.elapsed();
    assert!(took > Duration::from_millis(2_900) && took < Duration::from_millis(4_500), "{took:?}");
    node.backend().whisper("bob");
    bob.next_message();
}

#[test]
fn a_second_stream_of_a_device_replaces_the_first() {
    let node = Node::start();
    let mut current = node.device("bob", "phone");
    for _ in 0..5 {
        let next = node.device("bob", "phone");
        let bye = std::mem::replace(&mut current, next).expect_bye("replaced");
        assert_eq!((bye.retry, bye.id), (Some(2_000), None), "no retry of its own");
        assert_eq!(node.backend().presence("bob")["devices"].as_array().unwrap().len(), 1);
    }
    node.backend().whisper("bob");
    current.next_message();
}

#[test]
fn a_stream_ends_with_its_token() {
    let node = Node::start();
    let token = node.token_for("bob", "phone", Duration::from_secs(2));
    let since = Instant::now();
    let mut bob = node.stream("bob", "phone").token(&token).open();
    bob.expect_bye("token_expired");
    assert!(since.elapsed() < Duration::from_millis(2_500), "{:?}", since.elapsed());
    eventually_is("offline", || node.backend().is_online("bob"), |online| !online);
    node.stream("bob", "phone").token(&token).refused().problem(401, "invalid_credentials");
}

#[test]
fn a_stream_is_asked_to_come_again_when_it_is_old() {
    let node = Node::with(&["stream.max_age_s=2"]);
    let since = Instant::now();
    let mut streams: Vec<_> = (0..8).map(|n| (node.device("bob", &format!("d{n}")), Duration::ZERO)).collect();
    let mut retries = vec![];
    for (device, lived) in &mut streams {
        let bye = device.expect_bye("rotate");
        *lived = since.elapsed();
        retries.push(bye.retry.unwrap());
    }
    assert!(retries.iter().all(|retry| (500..5_000).contains(retry)), "{retries:?}");
    retries.dedup();
    assert!(retries.len() > 1, "they are not to come back all at once");
    let lives = streams.iter().map(|(_, lived)| *lived);
    assert!(lives.clone().min().unwrap() > Duration::from_millis(1_550));
    assert!(lives.max().unwrap() < Duration::from_millis(2_500));
    drop(node.device("bob", "d0"));
}

#[test]
fn a_node_that_ends_says_goodbye_spread_over_its_time_and_takes_nothing_new() {
    let mut node = Node::with(&["server.drain_s=3"]);
    let mut devices: Vec<_> = (0..6).map(|n| node.device(&format!("user{n}"), "d")).collect();
    let since = Instant::now();
    node.signal("TERM");
    eventually_is("not ready", || Request::get("/readyz").send(node.address()), |answer| answer.status == 503);
    assert_eq!(Request::get("/readyz").send(node.address()).json(), json!({"ready": false, "away": ["draining"]}));
    node.backend().whisper("user1").problem(503, "draining");
    let persisted = json!({"from": "a", "to": {"users": ["b"]}, "type": "t", "payload": 1});
    node.backend().send(persisted).problem(503, "draining");
    assert!(node.stream("late", "d").connect().expect_bye("draining").retry.is_some());
    Request::get("/healthz").send(node.address()).expect(200);
    let mut retries: Vec<_> = vec![];
    for device in &mut devices {
        retries.push(device.expect_bye("draining").retry.unwrap());
    }
    let spread = since.elapsed();
    assert!(spread > Duration::from_millis(1_500) && spread < Duration::from_secs(3), "{spread:?}");
    assert!(retries.iter().all(|retry| (500..5_000).contains(retry)), "{retries:?}");
    retries.dedup();
    assert!(retries.len() > 1, "jittered");
    assert!(node.wait().success());
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
}

#[test]
fn catch_up_and_live_are_joined_without_a_seam_under_concurrent_sends() {
    let node = Node::start();
    let total = 400;
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..4).map(|_| scope.spawn(|| store_many(&node, "bob", 0..total / 4))).collect();
        let readers: Vec<_> = (0..8)
            .map(|n| {
                let node = &node;
                scope.spawn(move || {
                    // Each begins at another moment of the sending.
                    eventually_is(
                        "so many are stored",
                        || node.count("herenow_sends_total{kind=\"persisted\"}"),
                        |sent| *sent >= n * 45,
                    );
                    let mut device = node.stream("bob", &format!("d{n}")).after("earliest").open();
                    expect_cursors(&mut device, 1..=total);
                    device
                })
            })
            .collect();
        let mut cursors: Vec<u32> = vec![];
        for sender in senders {
            let sent: Vec<u32> = sender.join().unwrap().iter().map(|c| c.parse().unwrap()).collect();
            assert!(sent.is_sorted(), "one sender's messages keep their order");
            cursors.extend(sent);
        }
        cursors.sort_unstable();
        assert!(cursors.into_iter().eq(1..=total));
        let mut devices: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        let marker = node.backend().whisper_with(&["bob"], &json!({"deliver_to": "every_device"}));
        for device in &mut devices {
            assert_eq!(device.next_message()["id"], marker["id"], "none twice");
        }
    });
}

#[test]
fn a_device_that_comes_and_goes_misses_nothing_and_sees_nothing_twice() {
    let node = Node::start();
    let total = 200;
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| store_many(&node, "bob", 0..total));
        let mut last = 0;
        let mut stream = node.stream("bob", "phone");
        while last < total {
            let mut device = stream.open();
            for _ in 0..7.min(total - last) {
                last += 1;
                expect_cursors(&mut device, [last]);
            }
            // Some leave in an orderly way, some don't.
            if last % 2 == 0 {
                device.reset();
            } else {
                device.close();
            }
            stream = node.stream("bob", "phone").last_event_id(&last.to_string());
        }
        sender.join().unwrap();
    });
}

#[test]
fn online_only_messages_between_persisted_ones_change_neither_order_nor_cursors() {
    let node = Node::start();
    let mut bob = node.device("bob", "phone");
    for n in 1..=20 {
        let whispered = node.backend().whisper("bob").json();
        assert_eq!(whispered["recipients"][0]["outcome"], "delivered");
        node.backend().store("bob", &json!(n));
        let event = bob.next_event();
        assert_eq!((&event.id, event.json()["id"].clone()), (&None, whispered["id"].clone()));
        expect_cursors(&mut bob, [n]);
    }
    bob.close();
    let mut bob = node.stream("bob", "phone").after("earliest").open();
    expect_cursors(&mut bob, 1..=20);
}

#[test]
fn where_a_stream_begins() {
    let node = Node::start();
    store_many(&node, "bob", 1..=10);
    let start = |stream: StreamRequest| {
        let mut device = stream.connect();
        let ready = device.next_event().json()["resumed_after"].as_str().unwrap().to_owned();
        let first: u32 = ready.parse().unwrap();
        expect_cursors(&mut device, first + 1..=10);
        ready
    };
    let stream = || node.stream("bob", "phone");
    assert_eq!(start(stream()), "0", "a new device begins at the earliest");
    assert_eq!(start(stream().after("earliest")), "0");
    assert_eq!(start(stream().after("0")), "0");
    assert_eq!(start(stream().after("now")), "10");
    assert_eq!(start(stream().after("10")), "10");
    assert_eq!(start(stream().after("4")), "4");
    node.stream("bob", "phone").open().ack("6").expect(204);
    assert_eq!(start(stream()), "6", "where this device last acknowledged");
    assert_eq!(start(node.stream("bob", "laptop")), "0", "another device's ack is its own");
    assert_eq!(start(stream().after("4")), "4", "`after` wins over the ack");
    assert_eq!(start(stream().after("4").last_event_id("8")), "8", "`Last-Event-ID` wins over `after`");
    assert_eq!(start(stream().after("now").last_event_id("2")), "2");
    assert_eq!(start(stream().after("3").last_event_id("")), "3", "an empty one says nothing");
    assert_eq!(start(stream().last_event_id("now")), "10");
}

#[test]
fn a_cursor_that_was_never_given_out_is_refused() {
    let node = Node::start();
    let malformed = [
        "-1",
        "01",
        "1.0",
        "1e3",
        "0x10",
        "abc",
        "%F0%9F%92%AC",
        "99999999999999999999999",
        "latest",
        "%20",
        "",
        "1%20",
        "%2B1",
    ];
    for cursor in malformed {
        let problem = node.stream("bob", "phone").after(cursor).refused().problem(422, "invalid_request");
        assert_eq!(problem["errors"][0]["pointer"], "?after", "{cursor:?}");
        let bob = Request::get(&format!("/v1/inbox?after={cursor}")).bearer(&node.token("bob", "phone"));
        bob.send(node.address()).problem(422, "invalid_request");
    }
    for cursor in ["-1", "abc", "01", "\u{1F4AC}", "99999999999999999999999"] {
        let problem =
            node.stream("bob", "phone").after("1").last_event_id(cursor).refused().problem(422, "invalid_request");
        assert_eq!(problem["errors"][0]["pointer"], "Last-Event-ID", "{cursor:?}");
    }
    assert!(!node.backend().is_online("bob"));
    assert_eq!(node.backend().presence("bob")["version"], 0, "none of them was ever here");
}

#[test]
fn a_start_beyond_the_newest_is_put_right() {
    let node = Node::start();
    store_many(&node, "bob", 1..=3);
    for stream in [node.stream("bob", "phone").after("9"), node.stream("bob", "phone").last_event_id("9")] {
        let mut bob = stream.connect();
        assert_eq!(bob.next_event().json()["resumed_after"], "3");
        let gap = bob.next_event();
        assert_eq!((gap.name.as_str(), gap.json()), ("gap", json!({"reason": "ahead", "resumed_after": "3"})));
    }
    let mut bob = node.stream("bob", "phone").after("9").open();
    assert_eq!(bob.next_event().name, "gap");
    node.backend().store("bob", &json!(4));
    expect_cursors(&mut bob, [4]);
}

#[test]
fn a_start_before_what_is_retained_is_a_gap() {
    let node = Node::with(&["store.inbox_max=5"]);
    store_many(&node, "bob", 1..=12);
    let mut bob = eventually("the oldest are removed", || {
        let mut bob = node.stream("bob", "phone").after("2").connect();
        let ready = bob.next_event().json();
        if ready["resumed_after"] == "7" { Ok(bob) } else { Err(ready.to_string()) }
    });
    let gap = bob.next_event();
    assert_eq!((gap.name.as_str(), gap.json()), ("gap", json!({"reason": "expired", "resumed_after": "7"})));
    expect_cursors(&mut bob, 8..=12);
    let mut fresh = node.stream("bob", "laptop").open();
    expect_cursors(&mut fresh, 8..=12);
}

#[test]
fn a_message_that_has_expired_is_passed_over() {
    let node = Node::start();
    let send = |n: u32, ttl_ms: u64| {
        let message = json!({"from": "alice", "to": {"users": ["bob"]}, "type": "t", "payload": n, "ttl_ms": ttl_ms});
        node.backend().send(message).expect(201)
    };
    send(1, 60_000);
    let short = send(2, 200).json();
    send(3, 60_000);
    let path = format!("/v1/messages/{}", short["id"].as_str().unwrap());
    eventually_is("expired", || node.backend().get(&path).status, |status| *status == 404);
    let mut bob = node.stream("bob", "phone").after("earliest").open();
    expect_cursors(&mut bob, [1, 3]);
    send(4, 60_000);
    expect_cursors(&mut bob, [4]);
}

#[test]
fn acks_only_move_forward_and_not_beyond_what_was_sent() {
    let mut node = Node::start();
    store_many(&node, "bob", 1..=10);
    let bob = node.stream("bob", "phone").open();
    let resumed = |node: &Node| node.stream("bob", "phone").connect().next_event().json()["resumed_after"].clone();
    bob.ack("7").expect(204);
    bob.ack("3").expect(204);
    bob.ack("7").expect(204);
    assert_eq!(resumed(&node), "7");
    let problem = bob.ack("11").problem(422, "invalid_request");
    assert_eq!(problem["errors"][0]["pointer"], "/cursor");
    for malformed in ["", "now", "earliest", "-1", "07", "1.5"] {
        bob.ack(malformed).problem(422, "invalid_request");
    }
    assert_eq!(resumed(&node), "7");
    node.kill();
    node.restart();
    assert_eq!(resumed(&node), "7", "an ack is durable when it is answered");
}

#[test]
fn a_device_without_a_stream_may_acknowledge() {
    let node = Node::start();
    store_many(&node, "bob", 1..=4);
    let bob = node.device("bob", "phone");
    drop(bob.ack("1").expect(204));
    let ack = Request::post("/v1/ack").bearer(&node.token("bob", "watch")).json(r#"{"cursor":"3"}"#);
    ack.send(node.address()).expect(204);
    let mut watch = node.stream("bob", "watch").open();
    expect_cursors(&mut watch, [4]);
}

#[test]
fn the_inbox_is_read_page_by_page() {
    let node = Node::start();
    store_many(&node, "bob", 1..=25);
    let bob = node.stream("bob", "phone").after("now").open();
    let page = |query: &str| bob.inbox(query).expect(200).json();
    let cursors = |page: &Value| -> Vec<u32> {
        page["messages"].as_array().unwrap().iter().map(|m| m["cursor"].as_str().unwrap().parse().unwrap()).collect()
    };
    let (mut after, mut all) = ("earliest".to_owned(), vec![]);
    loop {
        let page = page(&format!("after={after}&limit=10"));
        all.extend(cursors(&page));
        after = page["next"].as_str().unwrap().to_owned();
        assert_eq!(page["more"], all.len() < 25);
        if page["more"] == false {
            break;
        }
    }
    assert!(all.into_iter().eq(1..=25));
    let empty = page("after=25");
    assert_eq!(empty, json!({"messages": [], "next": "25", "more": false}));
    assert_eq!(page("after=now"), empty);
    assert_eq!(cursors(&page("")).len(), 25, "a new device begins at the earliest");
    bob.ack("20").expect(204);
    assert_eq!(cursors(&page("")), [21, 22, 23, 24, 25], "then where it last acknowledged");
    let first = &page("after=0&limit=1")["messages"][0];
    let mut stream = node.stream("bob", "phone").after("0").open();
    assert_eq!(*first, stream.next_message(), "the same as on the stream");
    for wrong in ["limit=0", "limit=1001", "limit=-1", "limit=x", "limit=1&limit=2", "page=2"] {
        bob.inbox(wrong).problem(422, "invalid_request");
    }
}

#[test]
fn a_slow_reader_reads_from_the_store_what_did_not_fit() {
    let node = Node::with(&["stream.queue_frames=4", "limits.answer_wait_ms=50"]);
    let mut bob = node.stuck_device("bob", "phone");
    let filling = "p".repeat(2_000);
    for n in 0..300 {
        node.backend().store("bob", &json!({"n": n, "filling": filling}));
    }
    let outcome = &node.backend().whisper("bob").json()["recipients"][0]["outcome"];
    assert!(matches!(outcome.as_str(), Some("offline" | "unconfirmed")), "{outcome}");
    let mut cursor = 0;
    while cursor < 300 {
        let message = bob.next_message();
        if message["online_only"] == false {
            cursor += 1;
            assert_eq!(message["cursor"], cursor.to_string());
        }
    }
    assert!(node.count("herenow_catch_up_pages_total") > 0);
    node.backend().store("bob", &json!("live again"));
    assert_eq!(bob.next_message()["cursor"], "301");
}

#[test]
fn a_stuck_reader_costs_its_user_s_other_devices_nothing() {
    let node = Node::with(&["stream.queue_frames=4"]);
    let _stuck = node.stuck_device("bob", "tv");
    let mut phone = node.device("bob", "phone");
    for n in 1..=100 {
        node.backend().store("bob", &json!({"n": n, "filling": "p".repeat(2_000)}));
        expect_cursors(&mut phone, [n]);
    }
}

#[test]
fn a_user_has_so_many_devices_and_not_more() {
    let node = Node::with(&["stream.devices_per_user=2"]);
    let mut phone = node.device("bob", "phone");
    let _laptop = node.device("bob", "laptop");
    node.stream("bob", "tv").refused().problem(409, "too_many_devices");
    let again = node.device("bob", "phone");
    phone.expect_bye("replaced");
    let _other = node.device("carol", "tv");
    drop(again);
    eventually_is("one is left", || node.backend().presence("bob")["devices"].as_array().unwrap().len(), |n| *n == 1);
    let _tv = node.device("bob", "tv");
}

#[test]
fn a_node_holds_so_many_streams_and_not_more() {
    let node = Node::with(&["stream.max=3"]);
    let mut devices: Vec<_> = (0..3).map(|n| node.device(&format!("user{n}"), "d")).collect();
    let refused = node.stream("late", "d").refused();
    refused.problem(429, "rate_limited");
    assert!(refused.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    assert!(!node.backend().is_online("late"));
    devices[0].close();
    let late = eventually("there is room again", || {
        let answer = node.backend().presence("user0");
        if answer["online"] == true { Err(answer.to_string()) } else { Ok(node.device("late", "d")) }
    });
    assert_eq!(node.count("herenow_streams"), 3);
    drop(late);
}

#[test]
fn places_are_counted_right_however_streams_end() {
    let node = Node::with(&["stream.max=4", "stream.devices_per_user=3"]);
    let count = |n: u64| {
        eventually_is("places are given back", || node.count("herenow_streams"), |streams| *streams == n);
    };
    let mut kept = node.device("kept", "d");
    for _ in 0..3 {
        node.device("closes", "d").close();
        node.device("resets", "d").reset();
        count(1);
        let mut kicked = node.device("kicked", "d");
        node.backend().delete("/v1/users/kicked/devices/d").expect(204);
        kicked.expect_bye("kicked");
        let next = node.device("kept", "d");
        std::mem::replace(&mut kept, next).expect_bye("replaced");
        count(1);
        let mut expired =
            node.stream("expires", "d").token(&node.token_for("expires", "d", Duration::from_secs(1))).open();
        expired.expect_bye("token_expired");
        node.stream("bob", "d").token("wrong").refused().problem(401, "invalid_credentials");
        node.stream("bob", "d").query("state", "asleep").refused().problem(422, "invalid_request");
        let many: Vec<_> = (0..3).map(|n| node.device("bob", &format!("d{n}"))).collect();
        node.stream("bob", "d3").refused().problem(429, "rate_limited");
        drop(many);
        count(1);
    }
    // Of many who come at once as many get in as there is room for.
    let devices: Vec<_> = std::thread::scope(|scope| {
        let come = |n| {
            let request = node.stream(&format!("user{n}"), "d");
            scope.spawn(move || request.try_connect().unwrap())
        };
        let coming: Vec<_> = (0..16).map(come).collect();
        coming.into_iter().map(|device| device.join().unwrap()).collect()
    });
    let let_in = devices.iter().filter(|device| device.status() == 200).count();
    assert_eq!((let_in, devices.iter().filter(|device| device.status() == 429).count()), (3, 13));
    assert_eq!(node.count("herenow_streams"), 4);
}

#[test]
fn of_a_user_s_devices_that_come_at_once_so_many_get_in() {
    let node = Node::with(&["stream.devices_per_user=5"]);
    let devices: Vec<_> = std::thread::scope(|scope| {
        let come = |n| {
            let request = node.stream("bob", &format!("d{n}"));
            scope.spawn(move || request.try_connect().unwrap())
        };
        let coming: Vec<_> = (0..16).map(come).collect();
        coming.into_iter().map(|device| device.join().unwrap()).collect()
    });
    let let_in = devices.iter().filter(|device| device.status() == 200).count();
    assert_eq!((let_in, devices.iter().filter(|device| device.status() == 409).count()), (5, 11));
    assert_eq!(node.backend().presence("bob")["devices"].as_array().unwrap().len(), 5);
    eventually_is("the refused hold no place", || node.count("herenow_streams"), |streams| *streams == 5);
}

#[test]
fn the_longest_names_are_names() {
    let node = Node::start();
    let (user, device) = ("\u{2602}".repeat(128), "\u{2602}".repeat(64));
    let mut open = node.device(&user, &device);
    let answer = node.backend().whisper_with(&[&user], &json!({}));
    assert_eq!(answer["recipients"][0], json!({"user": user, "outcome": "delivered", "devices": [device]}));
    open.next_message();
    let kick = |device: &str| {
        let path = format!("/v1/users/{}/devices/{}", "%E2%98%82".repeat(128), device);
        node.backend().delete(&path)
    };
    kick(&"%E2%98%82".repeat(65)).problem(422, "invalid_request");
    kick(&"%E2%98%82".repeat(64)).expect(204);
    open.expect_bye("kicked");
}

#[test]
fn an_unknown_or_wrong_query_is_refused() {
    let node = Node::start();
    for (name, value) in [
        ("state", "asleep"),
        ("state", ""),
        ("afer", "1"),
        ("after", "1&after=2"),
        ("device", "%00"),
        ("device", ""),
        ("device", "ddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"),
        ("device", "%FF"),
    ] {
        let answer = node.stream("bob", "phone").query(name, value).refused();
        answer.problem(422, "invalid_request");
    }
    assert_eq!(node.backend().presence("bob")["version"], 0);
}

#[test]
fn how_a_message_fares_can_be_asked() {
    let node = Node::start();
    let mut phone = node.device("bob", "phone");
    let mut laptop = node.device("bob", "laptop");
    let message = json!({"from": "alice", "to": {"users": ["bob", "away"]}, "type": "chat", "payload": {"a": 1.50}});
    let answer = node.backend().send(message).expect(201).json();
    let path = format!("/v1/messages/{}", answer["id"].as_str().unwrap());
    phone.next_message();
    laptop.next_message();
    phone.ack("1").expect(204);
    let status = eventually_is(
        "noted",
        || node.backend().get(&path).expect(200).json(),
        |status| {
            let bob = &status["recipients"][0];
            bob["delivered_to"].as_array().unwrap().len() == 2 && bob["acked_by"] == json!(["phone"])
        },
    );
    assert_eq!(
        (&status["from"], &status["type"], &status["sent_at"]),
        (&json!("alice"), &json!("chat"), &answer["sent_at"])
    );
    assert!(node.backend().get(&path).text().contains(r#""payload":{"a":1.5}"#));
    let away = &status["recipients"][1];
    assert_eq!((&away["user"], &away["delivered_to"], &away["acked_by"]), (&json!("away"), &json!([]), &json!([])));
    assert_eq!(away["push"]["state"], "off");
    let whispered = node.backend().whisper("bob").json();
    let path = format!("/v1/messages/{}", whispered["id"].as_str().unwrap());
    node.backend().get(&path).problem(404, "not_found");
    node.backend().get("/v1/messages/not-an-id").problem(404, "not_found");
}

#[test]
fn what_was_stored_is_there_after_a_crash_and_streams_go_on_where_they_were() {
    let mut node = Node::start();
    let mut bob = node.stream("bob", "phone").open();
    store_many(&node, "bob", 1..=10);
    expect_cursors(&mut bob, 1..=10);
    node.kill();
    bob.expect_end();
    node.restart();
    store_many(&node, "bob", 11..=12);
    let mut bob = node.stream("bob", "phone").last_event_id("10").open();
    expect_cursors(&mut bob, [11, 12]);
}
