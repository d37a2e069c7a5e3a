//! Running it: health, readiness, metrics, documentation, draining (CONTRACT.md 9).

use crate::harness::*;
use std::time::{Duration, Instant};

#[test]
fn a_node_without_work_ends_at_once_whatever_time_it_may_take() {
    let mut node = Node::with(&["server.drain_s=60"]);
    let asked = Instant::now();
    assert!(node.stop().success());
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert!(!node.log().contains("in flight"), "{}", node.log());
}

#[test]
fn a_second_signal_ends_a_drain() {
    let mut node = Node::with(&["server.drain_s=60"]);
    let mut bob = node.device("bob", "phone");
    let _carol = node.device("carol", "phone");
    node.signal("TERM");
    eventually_is("draining", || Request::get("/readyz").send(node.admin_address()).status, |status| *status == 503);
    node.signal("TERM");
    assert!(node.wait().success());
    drop(bob.events_until_end());
}
