//! What a cluster asks of Redis, counted: by MONITOR, which shows what clients send and, marked as such, what scripts do.

use super::LEASE;
use crate::harness::planes::{Planes, RedisServers};
use crate::harness::*;
use crate::servers::redis::Redis;

/// Leases and checks of two nodes while it is counted.
const MEANWHILE: usize = 30;

fn planes() -> Planes {
    Planes::on(RedisServers::Own(Redis::start()), None)
}

/// The commands that clients sent while `act` ran.
fn commands(cluster: &Cluster, act: impl FnOnce()) -> Vec<String> {
    let monitor = cluster.planes.redis.alone().monitor();
    act();
    let lines = monitor.end();
    lines.into_iter().filter(|line| !line.contains(" lua]")).collect()
}

/// How many commands each of `n` acts takes, those that come by the clock left out.
fn per_act(cluster: &Cluster, n: usize, act: impl Fn()) -> usize {
    let commands = commands(cluster, || (0..n).for_each(|_| act()));
    assert!(commands.len() % n <= MEANWHILE, "{} for {n}: {commands:#?}", commands.len());
    commands.len() / n
}

#[test]
fn a_message_costs_a_look_up_and_if_the_device_is_elsewhere_one_publish_each_way() {
    // The lease is renewed seldom then.
    let cluster = Cluster::of(2, &Node::setup().set("cluster.lease_s=300"), planes());
    let mut phone = cluster[0].device("bob", "phone");
    // What is done once only has been done after these.
    for node in cluster.nodes() {
        node.backend().whisper("bob").expect(200);
    }
    let whisper = |n: usize| drop(cluster[n].backend().whisper("bob").expect(200));
    assert_eq!(per_act(&cluster, 100, || whisper(0)), 1, "the look-up");
    assert_eq!(per_act(&cluster, 100, || whisper(1)), 3, "the look-up, the offer, the reply");
    let away = || drop(cluster[0].backend().whisper("away").expect(200));
    assert_eq!(per_act(&cluster, 100, away), 1, "the look-up");
    assert_eq!((0..202).filter(|_| phone.next_message()["online_only"] == true).count(), 202);
}

#[test]
fn a_message_to_many_is_looked_up_at_once() {
    let cluster = Cluster::of(2, &Node::setup().set("cluster.lease_s=300"), planes());
    let _devices: Vec<Device> = (0..50).map(|n| cluster[0].device(&format!("user{n}"), "phone")).collect();
    let users: Vec<String> = (0..50).map(|n| format!("user{n}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let send = |n: usize| {
        let answer = cluster[n].backend().whisper_with(&users, &json!({}));
        assert_eq!(answer["summary"]["delivered"], 50, "{answer}");
    };
    send(0);
    send(1);
    // A pipeline may be one command a user, but no more; offers to one node are gathered.
    let here = per_act(&cluster, 40, || send(0));
    assert!(here <= 50, "{here}");
    let there = per_act(&cluster, 40, || send(1));
    assert!(there <= 50 + 10, "{there}: the offers are gathered, and so are the replies");
}

#[test]
fn idle_streams_cost_nothing_however_many_there_are() {
    let cluster = Cluster::of(1, &Node::setup(), planes());
    let idle = || {
        // Two leases long.
        let commands = commands(&cluster, || std::thread::sleep(2 * LEASE));
        (commands.len(), commands.iter().map(String::len).sum::<usize>())
    };
    let one = cluster[0].device("bob", "phone");
    let (few, few_bytes) = idle();
    let many: Vec<Device> = (0..200).map(|n| cluster[0].device(&format!("user{n}"), "phone")).collect();
    let (count, bytes) = idle();
    assert!(count <= few + 4, "{few} with one stream, {count} with {}", many.len() + 1);
    assert!(bytes <= few_bytes + 1_000, "{few_bytes} bytes with one stream, {bytes} with {}", many.len() + 1);
    assert!(few <= 2 * 20, "{few} commands in two leases");
    drop((one, many));
}
