//! A Redis Cluster: three masters with a replica each.

use super::authority::Authority;
use super::process::{free_port, wait_for};
use super::redis::Redis;
use std::net::SocketAddr;

const SHARDS: usize = 3;
const SLOTS: usize = 16_384;

/// See the module's text.
pub struct RedisCluster {
    /// `n` and `n + SHARDS` are the two of one shard.
    nodes: Vec<Redis>,
}

impl RedisCluster {
    #[track_caller]
    pub fn start() -> Self {
        Self::start_as(None)
    }

    /// One that speaks TLS: see [`Redis::secure`].
    #[track_caller]
    pub fn secure(authority: &Authority, name: &str) -> Self {
        Self::start_as(Some((authority, name)))
    }

    #[track_caller]
    fn start_as(known: Option<(&Authority, &str)>) -> Self {
        let nodes = (0..2 * SHARDS).map(|_| {
            Redis::start_as(known, |_| {
                let cluster_port = free_port().to_string();
                let pairs = [
                    ("--cluster-enabled", "yes"),
                    ("--cluster-port", &cluster_port),
                    ("--cluster-node-timeout", "2000"),
                    ("--cluster-allow-replica-migration", "no"),
                ];
                pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value.to_owned()]).collect()
            })
        });
        let cluster = Self { nodes: nodes.collect() };
        cluster.form();
        cluster
    }

    fn form(&self) {
        for (n, node) in self.nodes.iter().enumerate() {
            // Or all would begin with the same and have to settle it.
            node.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &(n + 1).to_string()]);
            if n < SHARDS {
                let (first, end) = (n * SLOTS / SHARDS, (n + 1) * SLOTS / SHARDS);
                node.cli(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &(end - 1).to_string()]);
            }
            if n > 0 {
                let first = &self.nodes[0];
                let port = first.node_address().port().to_string();
                node.cli(&["CLUSTER", "MEET", "127.0.0.1", &port, &first.cluster_port()]);
            }
        }
        self.expect_at_all("cluster_known_nodes:6");
        for n in 0..SHARDS {
            self.nodes[n + SHARDS].cli(&["CLUSTER", "REPLICATE", &self.id(n)]);
        }
        self.expect_at_all("cluster_state:ok");
        for replica in &self.nodes[SHARDS..] {
            replica.expect_copied();
        }
        self.expect_agreement();
    }

    #[track_caller]
    fn expect_at_all(&self, word: &str) {
        for node in self.living() {
            wait_for(word, || {
                let info = node.cli(&["CLUSTER", "INFO"]);
                if info.contains(word) { Ok(()) } else { Err(info) }
            });
        }
    }

    /// Waits until all nodes name the same masters for the same slots.
    #[track_caller]
    fn expect_agreement(&self) {
        wait_for("the nodes agree", || {
            let slots = self.living().map(|node| {
                let mut slots: Vec<_> = node
                    .cli(&["CLUSTER", "NODES"])
                    .lines()
                    .filter(|line| line.contains("master") && !line.contains("fail"))
                    .map(|line| {
                        let words: Vec<_> = line.split(' ').collect();
                        format!("{} {}", words[0], words[8..].join(" "))
                    })
                    .collect();
                slots.sort();
                slots
            });
            let mut seen: Vec<_> = slots.collect();
            seen.dedup();
            if let [one] = &seen[..]
                && one.len() == SHARDS
            {
                Ok(())
            } else {
                Err(format!("{seen:#?}"))
            }
        });
    }

    fn living(&self) -> impl Iterator<Item = &Redis> {
        self.nodes.iter().filter(|node| node.runs())
    }

    fn id(&self, n: usize) -> String {
        self.nodes[n].cli(&["CLUSTER", "MYID"])
    }

    /// Of all six, for nodes.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(Redis::node_address).collect()
    }

    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Redis::url).collect()
    }

    /// One of each shard.
    #[track_caller]
    pub fn masters(&self) -> impl Iterator<Item = &Redis> {
        (0..SHARDS).map(|shard| self.master(shard))
    }

    /// The master of this shard, 0 to 2.
    #[track_caller]
    pub fn master(&self, shard: usize) -> &Redis {
        self.of_shard(shard, "master")
    }

    #[track_caller]
    fn of_shard(&self, shard: usize, role: &str) -> &Redis {
        let mut both = [shard, shard + SHARDS].into_iter().map(|n| &self.nodes[n]);
        both.find(|node| node.runs() && node.role() == role).unwrap_or_else(|| panic!("shard {shard} has no {role}"))
    }

    /// All keys of all shards.
    pub fn keys(&self) -> Vec<String> {
        self.at_all_masters(&["KEYS", "*"])
    }

    /// All sharded channels that somebody has subscribed to.
    pub fn channels(&self) -> Vec<String> {
        self.at_all_masters(&["PUBSUB", "SHARDCHANNELS"])
    }

    fn at_all_masters(&self, command: &[&str]) -> Vec<String> {
        self.masters().flat_map(|master| master.cli(command).lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    /// The slot of a key or a sharded channel.
    pub fn slot_of(&self, name: &str) -> u16 {
        self.master(0).cli(&["CLUSTER", "KEYSLOT", name]).parse().unwrap()
    }

    /// The shard that has this slot now.
    #[track_caller]
    pub fn shard_of(&self, slot: u16) -> usize {
        let owns = |shard: &usize| {
            let nodes = self.master(*shard).cli(&["CLUSTER", "NODES"]);
            let own = nodes.lines().find(|line| line.contains("myself")).unwrap();
            own.split(' ').skip(8).any(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                first.parse::<u16>().is_ok_and(|first| first <= slot)
                    && last.parse::<u16>().is_ok_and(|last| slot <= last)
            })
        };
        (0..SHARDS).find(owns).expect("every slot has a shard")
    }

    /// The replica of a shard becomes its master and the master its replica, both alive.
    #[track_caller]
    pub fn failover(&self, shard: usize) {
        let replica = self.of_shard(shard, "slave");
        replica.cli(&["CLUSTER", "FAILOVER"]);
        wait_for("the replica is the master", || {
            let role = replica.role();
            if role == "master" { Ok(()) } else { Err(role) }
        });
        self.expect_agreement();
    }

    /// `kill -9` of a shard's master; returns when its replica has taken its place.
    #[track_caller]
    pub fn kill_master(&self, shard: usize) {
        let (master, replica) = (self.master(shard), self.of_shard(shard, "slave"));
        master.kill();
        wait_for("the replica is the master", || {
            let role = replica.role();
            if role == "master" { Ok(()) } else { Err(role) }
        });
        self.expect_at_all("cluster_state:ok");
    }

    /// A slot with all its keys goes over to another shard, as `redis-cli --cluster reshard` does it.
    #[track_caller]
    pub fn migrate_slot(&self, slot: u16, to: usize) {
        self.begin_migration(slot, to);
        self.finish_migration(slot, to);
    }

    /// From now on a slot is on its way to another shard, with none of its keys yet.
    #[track_caller]
    pub fn begin_migration(&self, slot: u16, to: usize) {
        let from = self.shard_of(slot);
        assert_ne!(from, to, "the slot is there already");
        let (source, target) = (self.master(from), self.master(to));
        let (source_id, target_id) = (source.cli(&["CLUSTER", "MYID"]), target.cli(&["CLUSTER", "MYID"]));
        let slot = slot.to_string();
        target.cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source_id]);
        source.cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target_id]);
    }

    /// One key goes over.
    #[track_caller]
    pub fn migrate_key(&self, key: &str, to: usize) {
        let source = self.master(self.shard_of(self.slot_of(key)));
        let port = self.master(to).node_address().port().to_string();
        source.cli(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]);
    }

    /// All that is left goes over, and the slot.
    #[track_caller]
    pub fn finish_migration(&self, slot: u16, to: usize) {
        let (source, target) = (self.master(self.shard_of(slot)), self.master(to));
        let target_id = target.cli(&["CLUSTER", "MYID"]);
        let slot = slot.to_string();
        let port = target.node_address().port().to_string();
        loop {
            let keys = source.cli(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]);
            if keys.is_empty() {
                break;
            }
            let migrate = ["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
            source.cli(&migrate.into_iter().chain(keys.lines()).collect::<Vec<_>>());
        }
        // First the target, so that the slot is never without a master.
        for node in [target, source] {
            node.cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &target_id]);
        }
        self.expect_agreement();
    }
}
