//! 7. Bounded: memory per connection, per queue and in all is bounded; overload is answered with 429 or 503.

use super::outcome;
use crate::harness::*;

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
            node.backend().whisper_with(&users, &json!({"payload": {"filling": "f".repeat(60_000)}, "ttl_ms": 60_000}));
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

/// And what is within the bound goes on.
#[test]
fn more_than_a_bound_allows_is_answered_429_with_a_time() {
    let node = Node::with(&["limits.sends_per_s=20", "stream.max=2"]);
    let streams = ["phone", "tv"].map(|device| node.device("bob", device));
    let refused = node.stream("bob", "laptop").refused();
    assert!(refused.header("retry-after").is_some(), "{refused}");
    refused.problem(429, "rate_limited");
    let mut answers: Vec<_> = std::thread::scope(|scope| {
        let send = || (0..10).map(|_| node.backend().whisper("bob")).collect::<Vec<_>>();
        let callers: Vec<_> = (0..8).map(|_| scope.spawn(send)).collect();
        callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
    });
    let refused: Vec<_> = answers.extract_if(.., |answer| answer.status != 200).collect();
    assert!(!refused.is_empty() && answers.len() >= 20, "{} refused, {} sent", refused.len(), answers.len());
    for answer in refused {
        assert!(answer.header("retry-after").is_some(), "{answer}");
        answer.problem(429, "rate_limited");
    }
    drop(streams);
}
