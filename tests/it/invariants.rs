//! What must never be otherwise (CONTRACT.md 10), each under load and with devices that misbehave. Durability, callbacks and healing have
//! chapters of their own.

use crate::harness::*;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Online-only message ids among events.
fn whispers(events: &[Event]) -> Vec<String> {
    let messages = events.iter().filter(|event| event.name == "message").map(Event::json);
    messages.filter(|m| m["online_only"] == true).map(|m| m["id"].as_str().unwrap().to_owned()).collect()
}

fn outcome(answer: &Value) -> &str {
    answer["recipients"][0]["outcome"].as_str().unwrap()
}

mod one_no_trace {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};

    /// Every way that an online-only payload can take, good and bad. The harness looks for what is left, here also after a crash.
    #[test]
    fn an_online_only_payload_is_in_no_log_no_file_and_no_metric_whatever_becomes_of_it() {
        let mut node = Node::with(&["limits.answer_wait_ms=100", "stream.queue_frames=2", "log.format=json"]);
        let mut here = node.device("here", "phone");
        let stuck = node.stuck_device("stuck", "phone");
        let mut seen = HashSet::new();
        for fields in [
            json!({"ttl_ms": 20}),
            json!({}),
            json!({"deliver_to": "every_device"}),
            json!({"ttl_ms": 60_000, "collapse_key": "k"}),
        ] {
            for _ in 0..2 {
                for user in ["here", "stuck", "away"] {
                    seen.insert(outcome(&node.backend().whisper_with(&[user], &fields)).to_owned());
                }
            }
        }
        for expected in ["delivered", "offline", "unconfirmed", "expired"] {
            assert!(seen.contains(expected), "{seen:?}");
        }
        let canary = node.canary();
        let bodies = [
            format!(r#"{{"from":"a","to":{{"users":["here"]}},"type":"t","online_only":true,"payload":"{canary}"}}"#),
            format!(
                r#"{{"from":"a","to":{{"users":["here"]}},"type":"t","online_only":true,"payload":"{canary}","wrong":1}}"#
            ),
            format!(r#"{{"from":"a","to":{{"users":["here"]}},"type":"t","online_only":true,"payload":"{canary}"#),
            format!(r#"{{"from":"a","to":{{"users":["here"]}},"type":"t","online_only":"{canary}","payload":1}}"#),
            format!(
                r#"{{"from":"a","to":{{"users":["here"]}},"type":"t","online_only":true,"payload":"{canary}{}"}}"#,
                "p".repeat(70_000)
            ),
            format!(
                r#"{{"from":"a","to":{{"users":["here"]}},"type":"t","online_only":true,"payload":"{canary}","push":{{"x":"{canary}"}}}}"#
            ),
            format!(
                r#"{{"from":"{canary}","to":{{"users":["{canary}"]}},"type":"{canary}","online_only":true,"payload":1,"collapse_key":"{canary}"}}"#
            ),
        ];
        for body in &bodies {
            for key in ["same", "another"] {
                let request = Request::post("/v1/messages").header("Idempotency-Key", key).json(body.as_str());
                node.backend().request(request);
            }
        }
        // What is stored beside it takes nothing of it along.
        node.backend().store("here", &json!("kept"));
        here.messages_before("kept");
        node.kill();
        node.restart();
        drop(stuck);
        node.backend().store("here", &json!("kept too"));
    }

    #[test]
    fn an_online_only_payload_reaches_no_callback() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let received = Arc::new(Mutex::new(String::new()));
        let gathered = received.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let mut bytes = [0; 16 << 10];
                let n = connection.read(&mut bytes).unwrap_or(0);
                gathered.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..n]));
                let _ = connection.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
            }
        });
        let node = Node::with(&[&format!("callbacks.storage.url={url}"), &format!("callbacks.push.url={url}")]);
        let mut bob = node.device("bob", "phone");
        for _ in 0..3 {
            node.backend().whisper("bob");
            node.backend().whisper("away");
            bob.next_message();
        }
        node.backend().store("away", &json!("a marker"));
        let text = || received.lock().unwrap().clone();
        eventually_is("both callbacks of the marker", text, |text| {
            text.contains("message.stored") && text.contains("message.push")
        });
        let text = text();
        assert!(!text.contains("CANARY") && !text.contains("typing"), "{text}");
    }
}

mod two_once {
    use super::*;

    /// Devices of one user come and go in every way while messages are sent to one device each.
    #[test]
    fn of_a_recipient_s_devices_at_most_one_gets_a_message_and_once() {
        let node = Node::with(&["limits.seat_patience_ms=20", "limits.answer_wait_ms=300", "stream.queue_frames=8"]);
        let done = AtomicBool::new(false);
        let filling = "f".repeat(3_000);
        std::thread::scope(|scope| {
            let devices: Vec<_> = (0..5)
                .map(|n| {
                    let (node, done) = (&node, &done);
                    scope.spawn(move || {
                        let mut events = vec![];
                        let mut round = n;
                        while !done.load(Ordering::Relaxed) {
                            let mut device = node.stream("bob", &format!("d{n}")).receive_buffer(4 << 10).open();
                            for _ in 0..20 {
                                events.extend(device.event_within(Duration::from_millis(10)));
                            }
                            // It reads nothing for a while, then leaves: politely, or not, or replaced by itself.
                            round += 1;
                            if round % 3 == 0 {
                                std::thread::sleep(Duration::from_millis(60));
                                device.set_state("active");
                            }
                            device.drain();
                            while let Some(event) = device.event_within(Duration::ZERO) {
                                events.push(event);
                            }
                            match round % 4 {
                                0 => device.reset(),
                                1 => device.half_close(),
                                2 => device.close(),
                                _ => {}
                            }
                        }
                        events
                    })
                })
                .collect();
            let senders: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        (0..150)
                            .map(|_| node.backend().whisper_with(&["bob"], &json!({"payload": {"filling": filling}})))
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            let answers: Vec<_> = senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect();
            done.store(true, Ordering::Relaxed);
            let mut takers: HashMap<String, Vec<usize>> = HashMap::new();
            for (n, device) in devices.into_iter().enumerate() {
                for id in whispers(&device.join().unwrap()) {
                    takers.entry(id).or_default().push(n);
                }
            }
            assert!(takers.len() > 100, "too few were received for this to say anything: {}", takers.len());
            for answer in answers {
                let of_this = takers.get(answer["id"].as_str().unwrap()).cloned().unwrap_or_default();
                assert!(of_this.len() <= 1, "{answer} was received by {of_this:?}");
                match outcome(&answer) {
                    "delivered" => {
                        let named = answer["recipients"][0]["devices"].as_array().unwrap();
                        assert_eq!(named.len(), 1);
                        assert!(
                            of_this.iter().all(|n| named[0] == format!("d{n}")),
                            "{answer} was received by {of_this:?}"
                        );
                    }
                    "unconfirmed" => {}
                    _ => assert!(of_this.is_empty(), "{answer} was received by {of_this:?}"),
                }
            }
        });
    }

    #[test]
    fn with_every_device_each_gets_a_message_at_most_once() {
        let node = Node::with(&["limits.answer_wait_ms=500"]);
        let sent = 200;
        let mut devices: Vec<_> = (0..4).map(|n| node.device("bob", &format!("d{n}"))).collect();
        std::thread::scope(|scope| {
            let send = || {
                for _ in 0..sent / 2 {
                    let answer = node.backend().whisper_with(&["bob"], &json!({"deliver_to": "every_device"}));
                    assert_eq!(answer["recipients"][0]["devices"].as_array().unwrap().len(), 4);
                }
            };
            scope.spawn(send);
            scope.spawn(send);
        });
        node.backend().whisper_with(&["bob"], &json!({"deliver_to": "every_device", "payload": {"end": 1}}));
        for device in &mut devices {
            let ids = whispers(&device.messages_before("\"end\""));
            assert_eq!((ids.len(), ids.iter().collect::<HashSet<_>>().len()), (sent, sent));
        }
    }
}

mod three_honest {
    use super::*;

    /// A slow device with a short queue: some are taken, some refused, some expire. Each answer is true in the end.
    #[test]
    fn delivered_arrives_and_what_is_told_not_to_have_arrived_never_does() {
        let node = Node::with(&["stream.queue_frames=3", "limits.answer_wait_ms=5000"]);
        let mut bob = node.stream("bob", "phone").receive_buffer(4 << 10).open();
        let filling = "f".repeat(20_000);
        std::thread::scope(|scope| {
            let senders: Vec<_> = (0..6)
                .map(|n| {
                    let (node, filling) = (&node, &filling);
                    scope.spawn(move || {
                        let fields = json!({"payload": {"filling": filling}, "ttl_ms": 40, "collapse_key": format!("k{}", n % 4)});
                        (0..40).map(|_| node.backend().whisper_with(&["bob"], &fields)).collect::<Vec<_>>()
                    })
                })
                .collect();
            let mut events = vec![];
            while senders.iter().any(|sender| !sender.is_finished()) {
                events.extend(bob.event_within(Duration::from_millis(7)));
                std::thread::sleep(Duration::from_millis(7));
            }
            let answers: Vec<_> = senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect();
            bob.drain();
            node.backend().whisper_with(&["bob"], &json!({"payload": {"end": 1}, "ttl_ms": 60_000}));
            events.extend(bob.messages_before("\"end\""));
            let received = whispers(&events);
            let once: HashSet<_> = received.iter().cloned().collect();
            assert_eq!(once.len(), received.len(), "none twice");
            let mut outcomes: HashMap<_, u32> = HashMap::new();
            for answer in &answers {
                let arrived = once.contains(answer["id"].as_str().unwrap());
                match outcome(answer) {
                    "delivered" => assert!(arrived, "{answer}"),
                    "unconfirmed" => {}
                    _ => assert!(!arrived, "{answer}"),
                }
                *outcomes.entry(outcome(answer)).or_default() += 1;
            }
            assert!(outcomes.len() >= 3, "too simple to say anything: {outcomes:?}");
        });
    }

    #[test]
    fn offline_means_that_nobody_was_there() {
        let node = Node::start();
        std::thread::scope(|scope| {
            let churn = scope.spawn(|| {
                let mut ids = vec![];
                for _ in 0..60 {
                    let mut bob = node.device("bob", "phone");
                    let mut events: Vec<_> = bob.event_within(Duration::from_millis(3)).into_iter().collect();
                    bob.half_close();
                    while let Some(event) = bob.event_within(SOON) {
                        events.push(event);
                    }
                    ids.extend(whispers(&events));
                }
                ids
            });
            let mut answers = vec![];
            while !churn.is_finished() {
                answers.push(node.backend().whisper("bob").expect(200).json());
            }
            let received: HashSet<_> = churn.join().unwrap().into_iter().collect();
            let count = |word: &str| answers.iter().filter(|answer| outcome(answer) == word).count();
            assert!(count("delivered") > 10 && count("offline") > 10, "{} {}", count("delivered"), count("offline"));
            for answer in &answers {
                let arrived = received.contains(answer["id"].as_str().unwrap());
                assert!(!(arrived && outcome(answer) == "offline"), "{answer}");
            }
        });
    }
}

mod five_in_order {
    use super::*;

    /// Several senders, a device that reads slowly with a short queue, one that comes and goes, and a crash in the middle.
    #[test]
    fn persisted_messages_come_in_order_without_gap_or_repeat_through_a_crash() {
        let mut node = Node::with(&["stream.queue_frames=2"]);
        let mut last: HashMap<&str, u64> = HashMap::new();
        let mut answered: HashMap<u64, String> = HashMap::new();
        let mut shown: HashMap<(&str, u64), String> = HashMap::new();
        for round in 0..3 {
            let readers: Vec<_> = ["quick", "slow", "restless"]
                .map(|name| {
                    (
                        name,
                        node.stream("bob", name)
                            .receive_buffer(4 << 10)
                            .last_event_id(&last.get(name).unwrap_or(&0).to_string()),
                    )
                })
                .into();
            let crashed = AtomicBool::new(false);
            let (sent, read) = std::thread::scope(|scope| {
                let senders: Vec<_> = (0..3).map(|_| scope.spawn(|| send_until(&node, &crashed))).collect();
                let readers: Vec<_> = readers
                    .into_iter()
                    .map(|(name, stream)| {
                        let (from, crashed) = (last.get(name).copied().unwrap_or(0), &crashed);
                        scope.spawn(move || (name, read_until(name, &stream, from, crashed)))
                    })
                    .collect();
                eventually_is(
                    "enough is sent",
                    || node.count("herenow_sends_total{kind=\"persisted\"}"),
                    |n| *n >= 150,
                );
                node.signal("KILL");
                crashed.store(true, Ordering::Relaxed);
                (
                    senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect::<Vec<_>>(),
                    readers.into_iter().map(|reader| reader.join().unwrap()).collect::<Vec<_>>(),
                )
            });
            node.was_killed();
            node.restart();
            for (cursor, id) in sent {
                assert!(answered.insert(cursor, id).is_none(), "cursor {cursor} was given twice, in round {round}");
            }
            for (name, messages) in read {
                for (cursor, id) in messages {
                    shown.insert((name, cursor), id);
                    last.insert(name, cursor);
                }
            }
        }
        let newest = answered.keys().max().copied().unwrap();
        for name in ["quick", "slow", "restless"] {
            let from = last.get(name).copied().unwrap_or(0);
            let mut device = node.stream("bob", name).last_event_id(&from.to_string()).open();
            for expected in from + 1..=newest {
                let message = device.next_message();
                assert_eq!(message["cursor"], expected.to_string(), "{name}");
                shown.insert((name, expected), message["id"].as_str().unwrap().to_owned());
            }
            for (cursor, id) in &answered {
                assert_eq!(shown.get(&(name, *cursor)), Some(id), "{name} at {cursor}");
            }
        }
    }

    /// Cursor and id of all that were answered 201.
    fn send_until(node: &Node, crashed: &AtomicBool) -> Vec<(u64, String)> {
        let mut sent = vec![];
        let body =
            json!({"from": "a", "to": {"users": ["bob"]}, "type": "t", "payload": "p".repeat(1_000)}).to_string();
        let request = Request::post("/v1/messages").bearer(&node.api_key()).json(body).header("Connection", "close");
        while !crashed.load(Ordering::Relaxed) {
            let Ok(answer) = http::exchange(node.address(), &request.to_bytes(node.address())) else { return sent };
            let answer = answer.expect(201).json();
            let cursor = answer["recipients"][0]["cursor"].as_str().unwrap().parse().unwrap();
            sent.push((cursor, answer["id"].as_str().unwrap().to_owned()));
        }
        sent
    }

    /// Reads in its own manner until the crash; each cursor must be the one after the one before.
    fn read_until(name: &str, stream: &StreamRequest, mut last: u64, crashed: &AtomicBool) -> Vec<(u64, String)> {
        let mut messages = vec![];
        let mut device = stream.open();
        let mut take = |event: Event| {
            assert_eq!(event.name, "message", "{event:?}");
            last += 1;
            assert_eq!(event.id.as_deref(), Some(last.to_string().as_str()), "{name}");
            messages.push((last, event.json()["id"].as_str().unwrap().to_owned()));
            last
        };
        while !crashed.load(Ordering::Relaxed) {
            let Some(event) = device.event_within(Duration::from_millis(20)) else { continue };
            let last = take(event);
            if name == "slow" {
                std::thread::sleep(Duration::from_millis(5));
            }
            if name == "restless" && last % 10 == 0 {
                device.reset();
                // The node may have been killed by now.
                match stream.clone().last_event_id_instead(&last.to_string()).try_open() {
                    Some(again) => device = again,
                    None => break,
                }
            }
        }
        while let Some(event) = device.event_within(Duration::from_millis(50)) {
            take(event);
        }
        messages
    }
}

mod seven_bounded {
    use super::*;

    fn resident_bytes(node: &Node) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    #[test]
    fn devices_that_take_nothing_cost_bounded_memory_however_much_they_are_sent() {
        let node = Node::with(&["stream.queue_bytes=100000", "limits.answer_wait_ms=50", "stream.heartbeat_s=300"]);
        let stuck: Vec<_> = (0..10).map(|n| node.stuck_device(&format!("u{n}"), "d")).collect();
        let users: Vec<_> = (0..10).map(|n| format!("u{n}")).collect();
        let users: Vec<_> = users.iter().map(String::as_str).collect();
        let flood = |rounds: usize| {
            for _ in 0..rounds {
                node.backend()
                    .whisper_with(&users, &json!({"payload": {"filling": "f".repeat(60_000)}, "ttl_ms": 60_000}));
                let message = json!({"from": "a", "to": {"users": users}, "type": "t", "payload": "p".repeat(60_000)});
                node.backend().send(message).expect(201);
            }
        };
        flood(20);
        let before = resident_bytes(&node);
        // 120 messages of 60 kB to each of ten devices: 72 MB.
        flood(60);
        let grown = resident_bytes(&node).saturating_sub(before);
        assert!(grown < 16 << 20, "grown by {grown} bytes");
        drop(stuck);
    }

    #[test]
    fn many_connections_that_say_nothing_leave_room_for_others() {
        let node = Node::with(&["stream.max=10"]);
        let idle: Vec<_> = (0..500).map(|_| std::net::TcpStream::connect(node.address()).unwrap()).collect();
        let streams: Vec<_> = (0..10).map(|n| node.device(&format!("u{n}"), "d")).collect();
        node.stream("one more", "d").refused().problem(429, "rate_limited");
        assert_eq!(outcome(&node.backend().whisper("u3").expect(200).json()), "delivered");
        drop((idle, streams));
    }
}
