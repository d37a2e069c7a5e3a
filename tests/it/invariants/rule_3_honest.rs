//! 3. Honest: `delivered` means handed to the stream; `offline` means that nobody could take it; what cannot be known is `unconfirmed`.

use super::{outcome, whispers};
use crate::harness::*;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

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
                    let fields =
                        json!({"payload": {"filling": filling}, "ttl_ms": 40, "collapse_key": format!("k{}", n % 4)});
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
