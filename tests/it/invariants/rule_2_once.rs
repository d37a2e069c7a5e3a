//! 2. Once: of the devices of one recipient, at most one ever gets a `one_device` message; with `every_device` each at most once.

use super::{outcome, whispers};
use crate::harness::*;
use crate::support::*;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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

/// The same send from several callers at once, again and again, and after the device was replaced.
#[test]
fn a_repeat_with_its_key_is_never_sent_again() {
    let node = Node::start();
    let mut bob = node.device("bob", "phone");
    let message = json!({"from": "a", "to": {"users": ["bob"]}, "type": "t", "online_only": true, "payload": {"canary": node.canary()}});
    let mut seen = vec![];
    for round in 0..10 {
        let answers: Vec<_> = std::thread::scope(|scope| {
            let send = || send_with_key(&node, &message, &format!("key {round}"));
            let callers: Vec<_> = (0..4).map(|_| scope.spawn(send)).collect();
            callers.into_iter().map(|caller| caller.join().unwrap()).collect()
        });
        let (done, busy): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 200);
        for answer in busy {
            answer.problem(409, "idempotency_in_progress");
        }
        let ids: HashSet<_> = done.iter().map(|answer| answer.json()["id"].to_string()).collect();
        assert_eq!(ids.len(), 1, "one message in round {round}");
        seen.push(bob.next_message()["id"].to_string());
        assert!(ids.contains(&seen[round]));
        bob = node.device("bob", "phone");
        let again = send_with_key(&node, &message, &format!("key {round}"));
        assert_eq!(
            (again.json()["id"].to_string(), again.header("idempotent-replayed")),
            (seen[round].clone(), Some("true"))
        );
    }
    node.backend().whisper_with(&["bob"], &json!({"payload": {"end": 1}}));
    assert!(whispers(&bob.messages_before("\"end\"")).is_empty());
}
