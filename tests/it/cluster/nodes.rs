//! Nodes that die, stop, and come back.

use super::LEASE;
use super::witness::{Offline, holds_through, setup};
use crate::harness::http::exchange;
use crate::harness::node::API_KEY;
use crate::harness::planes::Planes;
use crate::harness::*;
use crate::support::*;
use std::thread::sleep;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
/// What a busy machine takes beside the lease.
const MARGIN: Duration = Duration::from_secs(3);

fn is_online(node: &Node, user: &str) -> bool {
    node.backend().is_online(user)
}

fn outcome(node: &Node, user: &str) -> String {
    text(&node.backend().whisper(user).expect(200).json()["recipients"][0]["outcome"])
}

#[test]
fn a_node_that_is_killed_costs_a_reconnect() {
    let storage = Receiver::start();
    let mut cluster = Cluster::of(3, &setup(&storage), Planes::shared());
    holds_through(&cluster, &storage, &[0, 2], Offline::MayBe, || {
        sleep(SECOND);
        cluster[1].signal("KILL");
    });
    cluster[1].was_killed();
}

#[test]
fn two_of_three_nodes_may_be_killed_at_once() {
    let storage = Receiver::start();
    let mut cluster = Cluster::of(3, &setup(&storage), Planes::shared());
    holds_through(&cluster, &storage, &[2], Offline::MayBe, || {
        sleep(SECOND);
        cluster[0].signal("KILL");
        cluster[1].signal("KILL");
    });
    cluster[0].was_killed();
    cluster[1].was_killed();
}

#[test]
fn devices_of_a_killed_node_are_offline_by_the_end_of_its_lease_and_never_waited_for() {
    let mut cluster = Cluster::start(2);
    let _lonely = cluster[0].device("bob", "phone");
    let _both = cluster[0].device("carol", "phone");
    let mut laptop = cluster[1].stream("carol", "laptop").background().open();
    assert_eq!(outcome(&cluster[1], "bob"), "delivered");
    cluster[0].kill();
    let killed = Instant::now();
    // The dead node is found out by the send itself: it doesn't wait for the lease.
    let asked = Instant::now();
    let answer = cluster[1].backend().whisper("carol").expect(200).json();
    assert_eq!(answer["recipients"][0], json!({"user": "carol", "outcome": "delivered", "devices": ["laptop"]}));
    assert_eq!(laptop.next_message()["id"], answer["id"]);
    assert_eq!(outcome(&cluster[1], "bob"), "offline");
    assert!(asked.elapsed() < 2 * SECOND, "{:?}", asked.elapsed());
    eventually_is("offline", || is_online(&cluster[1], "bob"), |online| !online);
    assert!(killed.elapsed() < LEASE + MARGIN, "{:?}", killed.elapsed());
    let devices = || each(cluster[1].backend().presence("carol")["devices"].as_array().unwrap(), "/device");
    eventually_is("its devices alone", devices, |devices| *devices == ["laptop"]);
}

#[test]
fn a_node_that_is_paused_beyond_its_lease_goes_on_where_it_was() {
    let storage = Receiver::start();
    let cluster = Cluster::of(3, &setup(&storage), Planes::shared());
    holds_through(&cluster, &storage, &[0, 1, 2], Offline::MayBe, || {
        sleep(SECOND);
        cluster[1].signal("STOP");
        sleep(LEASE + 2 * SECOND);
        cluster[1].signal("CONT");
    });
}

#[test]
fn devices_of_a_paused_node_are_offline_by_the_end_of_its_lease_and_back_when_it_is() {
    let cluster = Cluster::start(2);
    let mut phone = cluster[0].device("bob", "phone");
    cluster[0].signal("STOP");
    let paused = Instant::now();
    // Nobody can know whether it took it.
    assert_eq!(outcome(&cluster[1], "bob"), "unconfirmed");
    eventually_is("offline", || is_online(&cluster[1], "bob"), |online| !online);
    assert!(paused.elapsed() < LEASE + MARGIN, "{:?}", paused.elapsed());
    assert_eq!(outcome(&cluster[1], "bob"), "offline");
    stored(&cluster[1], &chat(&["bob"], &json!("meanwhile")));
    cluster[0].signal("CONT");
    let resumed = Instant::now();
    eventually_is("online again, on the same stream", || is_online(&cluster[1], "bob"), |online| *online);
    assert!(resumed.elapsed() < LEASE + MARGIN, "{:?}", resumed.elapsed());
    let seen = eventually("what was stored comes", || {
        let message = phone.next_message();
        if message["payload"] == "meanwhile" { Ok(message) } else { Err(message.to_string()) }
    });
    assert_eq!(seen["cursor"], "1");
    let answer = cluster[1].backend().whisper("bob").expect(200).json();
    assert_eq!(answer["recipients"][0]["outcome"], "delivered", "{answer}");
    assert_eq!(phone.next_message()["id"], answer["id"]);
}

#[test]
fn a_node_that_was_paused_does_not_take_back_who_went_to_another() {
    let cluster = Cluster::start(2);
    let mut old = cluster[0].device("bob", "phone");
    cluster[0].signal("STOP");
    let mut new = cluster[1].device("bob", "phone");
    sleep(LEASE + SECOND);
    assert_eq!(outcome(&cluster[1], "bob"), "delivered");
    assert_eq!(new.next_message()["online_only"], true);
    cluster[0].signal("CONT");
    old.expect_bye("replaced");
    for node in cluster.nodes() {
        // It may have to find its way back to Redis.
        eventually_is("ready", || node.backend().get("/readyz").status, |status| *status == 200);
        assert_eq!(outcome(node, "bob"), "delivered");
        assert_eq!(new.next_message()["online_only"], true);
    }
    assert_eq!(new.ended(), None);
}

#[test]
fn a_node_may_come_and_go_while_others_serve() {
    let storage = Receiver::start();
    let mut cluster = Cluster::of(2, &setup(&storage), Planes::shared());
    for _ in 0..3 {
        let mut phone = cluster[0].device("bob", "phone");
        cluster[1].kill();
        cluster[1].restart();
        // A node that has just come knows what is there.
        assert_eq!(outcome(&cluster[1], "bob"), "delivered");
        phone.next_message();
        stored(&cluster[1], &chat(&["bob"], &json!(1)));
        phone.next_message();
    }
}

#[test]
fn an_online_only_send_whose_node_died_is_not_repeated_by_another() {
    let mut cluster = Cluster::of(2, &Node::setup().set("limits.answer_wait_ms=60000"), Planes::shared());
    let stuck = cluster[0].stuck_device("bob", "phone");
    let message = json!({"from": "a", "to": {"users": ["bob"]}, "type": "t", "online_only": true, "ttl_ms": 60_000,
        "payload": {"canary": cluster[0].canary()}});
    std::thread::scope(|scope| {
        let address = cluster[0].address();
        let keys = || cluster.planes.keys().len();
        let before = keys();
        let request = send_request(&message).bearer(API_KEY).header("Idempotency-Key", "key");
        let sending = scope.spawn(move || exchange(address, &request.to_bytes(address)));
        // It waits for the stuck device then.
        eventually_is("the key is taken", keys, |n| *n > before);
        cluster[0].signal("KILL");
        assert!(sending.join().unwrap().is_err());
    });
    cluster[0].was_killed();
    drop(stuck);
    let mut laptop = cluster[1].device("bob", "laptop");
    let answer = eventually("the node is known to be dead", || {
        let answer = send_with_key(&cluster[1], &message, "key");
        if answer.status == 200 { Ok(answer.json()) } else { Err(answer.to_string()) }
    });
    assert_eq!(answer["summary"]["unconfirmed"], 1, "{answer}");
    let marker = cluster[1].backend().whisper("bob").expect(200).json();
    assert_eq!(laptop.next_message()["id"], marker["id"], "nothing in between");
}
