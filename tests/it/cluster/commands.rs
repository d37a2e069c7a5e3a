//! What a cluster asks of Redis, counted: by MONITOR, which shows what clients send and, marked as such, what scripts do.

use super::LEASE;
use crate::harness::planes::{Planes, RedisServers};
use crate::harness::*;
use crate::servers::redis::Redis;
use std::ops::RangeInclusive;
use std::time::Instant;

/// Two nodes' leases, checks and probes take at most so many commands a second.
const PER_SECOND: u64 = 10;

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

/// Fails unless each of a hundred acts takes so many commands; a few come by the clock besides.
#[track_caller]
fn expect_per_act(cluster: &Cluster, wanted: RangeInclusive<u64>, act: impl Fn()) {
    const ACTS: u64 = 100;
    let begun = Instant::now();
    let commands = commands(cluster, || (0..ACTS).for_each(|_| act()));
    let meanwhile = PER_SECOND * (begun.elapsed().as_secs() + 2);
    let (least, most) = (wanted.start() * ACTS, wanted.end() * ACTS + meanwhile);
    assert!((least..=most).contains(&(commands.len() as u64)), "{} for {ACTS}: {commands:#?}", commands.len());
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
    // The look-up; with the offer and the reply; the look-up.
    expect_per_act(&cluster, 1..=1, || whisper(0));
    expect_per_act(&cluster, 3..=3, || whisper(1));
    expect_per_act(&cluster, 1..=1, || drop(cluster[0].backend().whisper("away").expect(200)));
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
    // One command a user, in one pipeline; then the offers are gathered, and so are the replies.
    expect_per_act(&cluster, 50..=50, || send(0));
    expect_per_act(&cluster, 52..=60, || send(1));
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
    assert!(few <= 40, "{few} commands in two leases");
    drop((one, many));
}
