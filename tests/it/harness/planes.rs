//! What nodes stand on: each on planes of its own inside of its process, or together on Redis and PostgreSQL.

use super::node::Secrets;
use crate::servers::postgres::{Database, Postgres};
use crate::servers::redis::{self, Redis};
use crate::servers::redis_cluster::RedisCluster;
use crate::servers::sentinels::{self, Sentinels};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Whether each node of the suite gets Redis and PostgreSQL: as `HERENOW_TEST_PLANES` says, `embedded` (the default) or `cluster`.
pub fn on_cluster() -> bool {
    match std::env::vars().find(|(name, _)| name == "HERENOW_TEST_PLANES") {
        None => false,
        Some((_, planes)) => match planes.as_str() {
            "embedded" => false,
            "cluster" => true,
            other => panic!("HERENOW_TEST_PLANES is {other}: it may be embedded or cluster"),
        },
    }
}

/// Ends a test of the run on a cluster that is about the embedded planes alone.
macro_rules! only_embedded {
    ($why:literal) => {
        if $crate::harness::planes::on_cluster() {
            eprintln!("not tested on a cluster: {}", $why);
            return;
        }
    };
}
pub(crate) use only_embedded;

/// The ephemeral plane of a cluster.
pub enum RedisServers {
    Shared(&'static Redis),
    Own(Redis),
    Sentinels(Sentinels),
    Cluster(RedisCluster),
}

impl RedisServers {
    fn settings(&self, by: Option<SocketAddr>) -> Vec<String> {
        let list = |addresses: &[SocketAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        match self {
            Self::Shared(_) | Self::Own(_) => {
                vec![format!("redis.url={}", by.map_or_else(|| self.alone().url(), redis::url_at))]
            }
            Self::Sentinels(sentinels) => {
                let addresses = sentinels.sentinel_addresses();
                vec![
                    format!("redis.url={}", sentinels.url()),
                    format!("redis.nodes={}", list(&addresses[1..])),
                    format!("redis.sentinel_master={}", sentinels::MASTER),
                    "redis.mode=sentinel".to_owned(),
                ]
            }
            Self::Cluster(cluster) => {
                let addresses = cluster.addresses();
                vec![
                    format!("redis.url={}", cluster.urls()[0]),
                    format!("redis.nodes={}", list(&addresses[1..])),
                    "redis.mode=cluster".to_owned(),
                ]
            }
        }
    }

    /// The one server.
    #[track_caller]
    pub fn alone(&self) -> &Redis {
        match self {
            Self::Shared(redis) => redis,
            Self::Own(redis) => redis,
            Self::Sentinels(_) | Self::Cluster(_) => panic!("there are several"),
        }
    }

    #[track_caller]
    pub fn sentinels(&self) -> &Sentinels {
        match self {
            Self::Sentinels(sentinels) => sentinels,
            Self::Shared(_) | Self::Own(_) | Self::Cluster(_) => panic!("there are no Sentinels"),
        }
    }

    #[track_caller]
    pub fn cluster(&self) -> &RedisCluster {
        match self {
            Self::Cluster(cluster) => cluster,
            Self::Shared(_) | Self::Own(_) | Self::Sentinels(_) => panic!("there is no Cluster"),
        }
    }

    fn dump(&self, prefix: &str) -> String {
        match self {
            Self::Shared(_) | Self::Own(_) => self.alone().dump(prefix),
            Self::Sentinels(sentinels) => sentinels.master().dump(prefix),
            Self::Cluster(cluster) => cluster.masters().map(|master| master.dump(prefix)).collect(),
        }
    }
}

/// A prefix in Redis and a database in PostgreSQL.
pub struct Planes {
    pub redis: RedisServers,
    prefix: String,
    pub database: Database,
    /// `None`: the shared one.
    own_postgres: Option<Postgres>,
}

impl Planes {
    /// On the servers that all tests share.
    #[track_caller]
    pub fn shared() -> Self {
        Self::on(RedisServers::Shared(Redis::shared()), None)
    }

    /// On these servers; on the shared PostgreSQL if none is given.
    #[track_caller]
    pub fn on(redis: RedisServers, own_postgres: Option<Postgres>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let prefix = format!("test{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let database = own_postgres.as_ref().unwrap_or_else(|| Postgres::shared()).database();
        Self { redis, prefix, database, own_postgres }
    }

    /// The PostgreSQL that these planes have for themselves.
    #[track_caller]
    pub fn own_postgres(&self) -> &Postgres {
        self.own_postgres.as_ref().expect("a PostgreSQL of its own")
    }

    pub fn postgres_address(&self) -> SocketAddr {
        self.own_postgres.as_ref().unwrap_or_else(|| Postgres::shared()).address()
    }

    /// What stands before every name in Redis.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The names of all keys in the one Redis.
    #[track_caller]
    pub fn keys(&self) -> Vec<String> {
        let keys = self.redis.alone().cli(&["KEYS", &format!("{}*", self.prefix)]);
        keys.lines().map(str::to_owned).collect()
    }

    /// The configuration of a node on them, reached directly or by these addresses of Redis and of PostgreSQL.
    pub fn settings(&self, by: Option<[SocketAddr; 2]>) -> Vec<String> {
        let mut settings = self.redis.settings(by.map(|[redis, _]| redis));
        settings.push(format!("redis.prefix={}", self.prefix));
        let postgres = by.map_or_else(|| self.postgres_address(), |[_, postgres]| postgres);
        settings.push(format!("store.url={}", self.database.url_at(postgres)));
        settings
    }

    /// Fails if anything that is to leave no trace is in them.
    #[track_caller]
    pub fn check(&self, secrets: &Secrets) {
        for (place, all) in [("Redis", self.redis.dump(&self.prefix)), ("the database", self.database.dump())] {
            secrets.check_payload(place, &all);
            secrets.check_credentials(place, &all);
        }
    }
}
