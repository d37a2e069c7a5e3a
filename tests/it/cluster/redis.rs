//! Redis that goes away, forgets, stops, or makes another server the master.

use super::LEASE;
use super::witness::{Offline, holds_through, setup};
use crate::harness::planes::{Planes, RedisServers};
use crate::harness::*;
use crate::servers::redis::Redis;
use crate::servers::redis_cluster::RedisCluster;
use crate::servers::sentinels::Sentinels;
use crate::support::*;
use std::thread::sleep;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

fn own_redis() -> Planes {
    Planes::on(RedisServers::Own(Redis::start()), None)
}

fn expect_presence_away(node: &Node) {
    node.backend().whisper("bob").problem(503, "presence_unavailable");
    node.backend().get("/v1/users/bob/presence").problem(503, "presence_unavailable");
    let ready = eventually_is("not ready", || node.backend().get("/readyz"), |ready| ready.status == 503);
    assert_eq!(ready.json()["away"], json!(["presence"]), "{ready}");
}

/// Redis is killed, and comes back with nothing in it after this time.
fn away_for(time: Duration) {
    let storage = Receiver::start();
    let cluster = Cluster::of(2, &setup(&storage), own_redis());
    let redis = cluster.planes.redis.alone();
    holds_through(&cluster, &storage, &[0, 1], Offline::Never, || {
        sleep(SECOND);
        redis.kill();
        sleep(time);
        redis.restart();
    });
}

#[test]
fn back_empty_after_a_second() {
    away_for(SECOND);
}

#[test]
fn back_empty_after_fifteen_seconds() {
    away_for(15 * SECOND);
}

#[test]
fn back_empty_after_a_minute() {
    away_for(60 * SECOND);
}

#[test]
fn while_it_is_away_presence_is_unknown_and_persisted_messages_go_on() {
    let cluster = Cluster::of(2, &Node::setup(), own_redis());
    let mut here = cluster[0].device("bob", "phone");
    let mut there = cluster[1].device("bob", "laptop");
    let redis = cluster.planes.redis.alone();
    redis.kill();
    for node in cluster.nodes() {
        expect_presence_away(node);
    }
    // Live where it was stored, and at the other node when the way between them is back.
    let id = stored(&cluster[0], &chat(&["bob"], &json!("meanwhile")));
    assert_eq!(here.next_message()["id"], json!(id));
    assert_eq!(whole_inbox(&cluster[1], "bob").len(), 1);
    redis.restart();
    assert_eq!(there.next_message()["id"], json!(id));
    let devices = |node: &Node| node.backend().get("/v1/users/bob/presence").json()["devices"].as_array().map(Vec::len);
    for node in cluster.nodes() {
        eventually_is("both are online again", || devices(node), |n| *n == Some(2));
        eventually_is("ready", || node.backend().get("/readyz").status, |status| *status == 200);
    }
    assert_eq!((here.ended(), there.ended()), (None, None), "no stream was lost");
}

#[test]
fn what_left_while_it_was_away_is_offline_when_it_is_back() {
    let cluster = Cluster::of(2, &Node::setup(), own_redis());
    let mut phone = cluster[0].device("bob", "phone");
    let mut laptop = cluster[1].device("bob", "laptop");
    let redis = cluster.planes.redis.alone();
    // It forgets nothing this time, so that what it knows is old.
    redis.pause();
    phone.close();
    sleep(SECOND);
    redis.resume();
    let devices = || {
        let answer = cluster[1].backend().get("/v1/users/bob/presence");
        answer.json()["devices"].as_array().map(|devices| each(devices, "/device"))
    };
    eventually_within(LEASE + 3 * SECOND, "one is left", || match devices() {
        Some(devices) if devices == ["laptop"] => Ok(()),
        other => Err(format!("{other:?}")),
    });
    cluster[0].backend().whisper("bob").expect(200);
    laptop.next_message();
}

#[test]
fn stopped_for_a_while() {
    let storage = Receiver::start();
    let cluster = Cluster::of(2, &setup(&storage), own_redis());
    let redis = cluster.planes.redis.alone();
    holds_through(&cluster, &storage, &[0, 1], Offline::Never, || {
        sleep(SECOND);
        redis.pause();
        sleep(LEASE + 3 * SECOND);
        redis.resume();
    });
}

/// One node's way to Redis breaks; the others must see its devices go within the lease.
fn one_node_is_cut_off(cut: impl Fn(&cluster::Ways)) {
    let storage = Receiver::start();
    let cluster = Cluster::by_proxies(3, &setup(&storage), Planes::shared());
    let _lonely = cluster[1].device("lonely", "phone");
    holds_through(&cluster, &storage, &[0, 1, 2], Offline::MayBe, || {
        sleep(SECOND);
        cut(cluster.ways(1));
        let begun = Instant::now();
        // On a busy machine another node may miss Redis for a moment, too, and says so.
        let presence = || cluster[0].backend().get("/v1/users/lonely/presence");
        let is_offline = |answer: &Answer| answer.status == 200 && answer.json()["online"] == false;
        eventually_is("its devices are offline", presence, is_offline);
        assert!(begun.elapsed() < LEASE + 5 * SECOND, "{:?}", begun.elapsed());
        let refused = || cluster[1].backend().whisper("lonely").status;
        eventually_is("it doesn't know who is online", refused, |status| *status == 503);
        eventually_is("it isn't ready", || cluster[1].backend().get("/readyz").status, |status| *status == 503);
        for n in [0, 2] {
            eventually_is("the others are", || cluster[n].backend().get("/readyz").status, |status| *status == 200);
        }
        cluster.ways(1).redis.heal();
    });
    let is_online = |answer: &Answer| answer.status == 200 && answer.json()["online"] == true;
    eventually_is("online again", || cluster[0].backend().get("/v1/users/lonely/presence"), is_online);
}

#[test]
fn one_node_s_connections_are_cut() {
    one_node_is_cut_off(|ways| ways.redis.cut());
}

#[test]
fn one_node_sends_into_a_black_hole() {
    one_node_is_cut_off(|ways| ways.redis.black_hole());
}

#[test]
fn one_node_no_longer_hears_redis() {
    one_node_is_cut_off(|ways| ways.redis.stop_to_client());
}

#[test]
fn redis_no_longer_hears_one_node() {
    one_node_is_cut_off(|ways| ways.redis.stop_to_server());
}

/// Only the subscription's connection dies silently: commands go on, but the node hears nobody.
#[test]
fn a_subscription_that_redis_has_dropped_is_made_again() {
    let storage = Receiver::start();
    let cluster = Cluster::of(2, &setup(&storage), own_redis());
    let redis = cluster.planes.redis.alone();
    holds_through(&cluster, &storage, &[0, 1], Offline::Never, || {
        for _ in 0..5 {
            sleep(SECOND / 2);
            redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
            sleep(SECOND / 2);
            redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
        }
    });
}

#[test]
fn everything_in_it_is_deleted() {
    let storage = Receiver::start();
    let cluster = Cluster::of(2, &setup(&storage), own_redis());
    let redis = cluster.planes.redis.alone();
    // Until a node looks, which it does each second, it can't know that there was more.
    holds_through(&cluster, &storage, &[0, 1], Offline::MayBe, || {
        sleep(SECOND);
        redis.cli(&["FLUSHALL"]);
        redis.cli(&["SCRIPT", "FLUSH"]);
    });
}

#[test]
fn sentinels_demote_the_master() {
    let storage = Receiver::start();
    let planes = Planes::on(RedisServers::Sentinels(Sentinels::start()), None);
    let cluster = Cluster::of(2, &setup(&storage), planes);
    let sentinels = cluster.planes.redis.sentinels();
    holds_through(&cluster, &storage, &[0, 1], Offline::Never, || {
        sleep(SECOND);
        sentinels.failover();
    });
}

#[test]
fn the_master_that_sentinels_watch_is_killed() {
    let storage = Receiver::start();
    let planes = Planes::on(RedisServers::Sentinels(Sentinels::start()), None);
    let cluster = Cluster::of(2, &setup(&storage), planes);
    let sentinels = cluster.planes.redis.sentinels();
    holds_through(&cluster, &storage, &[0, 1], Offline::Never, || {
        sleep(SECOND);
        let master = sentinels.master();
        master.kill();
        sentinels.expect_another_master_than(master.address().port());
    });
}

fn redis_cluster() -> Planes {
    Planes::on(RedisServers::Cluster(RedisCluster::start()), None)
}

#[test]
fn every_shard_of_a_cluster_fails_over() {
    let storage = Receiver::start();
    let cluster = Cluster::of(2, &setup(&storage), redis_cluster());
    let redis = cluster.planes.redis.cluster();
    holds_through(&cluster, &storage, &[0, 1], Offline::Never, || {
        for shard in 0..3 {
            sleep(SECOND / 2);
            redis.failover(shard);
        }
    });
}

#[test]
fn a_master_of_a_cluster_is_killed() {
    let storage = Receiver::start();
    let cluster = Cluster::of(2, &setup(&storage), redis_cluster());
    let redis = cluster.planes.redis.cluster();
    // The one that carries a node's channel: nothing else notices its loss as much.
    let shard = redis.shard_of(redis.slot_of(&redis.channels()[0]));
    holds_through(&cluster, &storage, &[0, 1], Offline::Never, || {
        sleep(SECOND);
        redis.kill_master(shard);
    });
}

#[test]
fn slots_of_a_cluster_move_while_streams_are_open() {
    let storage = Receiver::start();
    let cluster = Cluster::of(2, &setup(&storage), redis_cluster());
    let redis = cluster.planes.redis.cluster();
    holds_through(&cluster, &storage, &[0, 1], Offline::Never, || {
        // Those of the nodes' channels, and those of all that is stored.
        let names: Vec<String> = redis.channels().into_iter().chain(redis.keys()).collect();
        let mut slots: Vec<u16> = names.iter().map(|name| redis.slot_of(name)).collect();
        slots.sort_unstable();
        slots.dedup();
        assert!(slots.len() > 3, "{names:?}");
        for slot in slots {
            redis.migrate_slot(slot, (redis.shard_of(slot) + 1) % 3);
        }
    });
}
