//! What happens to the cluster, one thing after the other, faster than it may have healed from the last.

use super::NODES;
use super::world::World;
use crate::harness::Cluster;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
enum Fault {
    NodeKilled,
    NodeStopped,
    RedisKilled,
    RedisCut,
    RedisSilent,
    PostgresKilled,
    PostgresCut,
}

const ALL: [Fault; 7] = [
    Fault::NodeKilled,
    Fault::NodeStopped,
    Fault::RedisKilled,
    Fault::RedisCut,
    Fault::RedisSilent,
    Fault::PostgresKilled,
    Fault::PostgresCut,
];

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::NodeKilled => "a node is killed (`kill -9`) and started again",
            Self::NodeStopped => "a node is stopped beyond its lease and goes on",
            Self::RedisKilled => "Redis is killed and comes back empty",
            Self::RedisCut => "a node's way to Redis is cut",
            Self::RedisSilent => "a node's way to Redis swallows everything",
            Self::PostgresKilled => "PostgreSQL is killed and comes back",
            Self::PostgresCut => "a node's way to PostgreSQL is cut",
        }
    }

    /// How long it lasts, in milliseconds. A node that is stopped for longer would be late with the timestamps of its callbacks.
    fn lasts(self, random: &mut StdRng) -> Duration {
        let range = match self {
            Self::NodeKilled | Self::RedisKilled | Self::PostgresKilled => 100..2_000,
            Self::NodeStopped => 3_500..5_000,
            Self::RedisCut | Self::PostgresCut => 200..3_000,
            Self::RedisSilent => 1_000..5_000,
        };
        Duration::from_millis(random.random_range(range))
    }

    fn happen(self, cluster: &mut Cluster, world: &World, random: &mut StdRng) {
        let n = random.random_range(0..NODES);
        let lasts = self.lasts(random);
        match self {
            Self::NodeKilled => {
                cluster[n].kill();
                world.node_is_at(n, None);
                sleep(lasts);
                cluster[n].restart();
                world.node_is_at(n, Some(cluster[n].address()));
            }
            Self::NodeStopped => {
                cluster[n].signal("STOP");
                sleep(lasts);
                cluster[n].signal("CONT");
            }
            Self::RedisKilled => {
                let redis = cluster.planes.redis.alone();
                redis.kill();
                sleep(lasts);
                redis.restart();
            }
            Self::PostgresKilled => {
                let postgres = cluster.planes.own_postgres();
                postgres.kill();
                sleep(lasts);
                postgres.restart();
            }
            Self::RedisCut | Self::RedisSilent | Self::PostgresCut => {
                let ways = cluster.ways(n);
                let way = if matches!(self, Self::PostgresCut) { &ways.postgres } else { &ways.redis };
                if matches!(self, Self::RedisSilent) {
                    way.black_hole();
                } else {
                    way.cut();
                }
                sleep(lasts);
                way.heal();
            }
        }
    }
}

/// Rounds of all kinds, each round in an order of its own, at least one, until the time is over. Gives how often each kind happened.
pub fn happen(
    cluster: &mut Cluster,
    world: &World,
    time: Duration,
    random: &mut StdRng,
) -> BTreeMap<&'static str, usize> {
    let begun = Instant::now();
    let mut counts = BTreeMap::new();
    while counts.is_empty() || begun.elapsed() < time {
        let is_first_round = counts.is_empty();
        let mut round = ALL;
        round.shuffle(random);
        for fault in round {
            if !is_first_round && begun.elapsed() >= time {
                break;
            }
            sleep(Duration::from_millis(random.random_range(200..2_000)));
            fault.happen(cluster, world, random);
            *counts.entry(fault.name()).or_default() += 1;
        }
    }
    counts
}
