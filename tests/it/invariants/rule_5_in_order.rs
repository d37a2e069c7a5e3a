//! 5. In order: on a stream persisted messages are in order, without gap, without repeat.

use crate::harness::*;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
            eventually_is("enough is sent", || node.count("herenow_sends_total{kind=\"persisted\"}"), |n| *n >= 150);
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
    let body = json!({"from": "a", "to": {"users": ["bob"]}, "type": "t", "payload": "p".repeat(1_000)}).to_string();
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
