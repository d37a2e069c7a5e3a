//! The harness itself: it can do what the tests ask of it, and it notices what it is to notice.

use crate::harness::*;

#[test]
fn a_node_starts_delivers_and_drains() {
    let node = Node::start();
    let mut bob = node.device("bob", "phone");
    let answer = node.backend().whisper("bob").expect(200).json();
    assert_eq!(answer["recipients"][0], json!({"user": "bob", "outcome": "delivered", "devices": ["phone"]}));
    assert_eq!(bob.next_message()["online_only"], true);
}

#[test]
fn a_node_can_be_killed_and_started_again() {
    let mut node = Node::start();
    let cursor = node.backend().store("bob", &json!(1));
    node.kill();
    node.restart();
    let mut bob = node.stream("bob", "phone").after("earliest").open();
    assert_eq!(bob.next_message()["cursor"], json!(cursor));
}

#[test]
#[should_panic(expected = "an online-only payload is in")]
fn a_trace_is_noticed() {
    let node = Node::start();
    node.backend().store("bob", &json!({"leak": node.canary()}));
}
