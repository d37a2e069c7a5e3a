//! Redis and PostgreSQL by TLS: who they are is known by certificates of an authority that the operator trusts.

use super::witness::{Offline, holds_through};
use crate::harness::planes::{Planes, RedisServers};
use crate::harness::*;
use crate::servers::authority::Authority;
use crate::servers::postgres::{Database, Postgres};
use crate::servers::redis::Redis;
use crate::servers::redis_cluster::RedisCluster;
use crate::servers::sentinels::Sentinels;
use crate::support::*;
use std::thread::{scope, sleep};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const HERE: &str = "127.0.0.1";

/// By which the program is told whom to trust in place of the machine's authorities.
fn trust(authority: &Authority) -> (&'static str, String) {
    ("SSL_CERT_FILE", authority.root().to_str().unwrap().to_owned())
}

fn setup(authority: &Authority, storage: &Receiver) -> Setup {
    let (name, path) = trust(authority);
    super::witness::setup(storage).env(name, &path)
}

#[test]
fn one_redis_that_loses_its_connections() {
    let (authority, storage) = (Authority::new(), Receiver::start());
    let planes = Planes::on(RedisServers::Own(Redis::secure(&authority, HERE)), None);
    let cluster = Cluster::of(2, &setup(&authority, &storage), planes);
    holds_through(&cluster, &storage, &[0, 1], Offline::Never, || {
        sleep(SECOND);
        for kind in ["pubsub", "normal"] {
            cluster.planes.redis.alone().cli(&["CLIENT", "KILL", "TYPE", kind]);
        }
    });
}

#[test]
fn sentinels_that_demote_the_master() {
    let (authority, storage) = (Authority::new(), Receiver::start());
    let planes = Planes::on(RedisServers::Sentinels(Sentinels::secure(&authority, HERE)), None);
    let cluster = Cluster::of(2, &setup(&authority, &storage), planes);
    holds_through(&cluster, &storage, &[0, 1], Offline::Never, || {
        sleep(SECOND);
        cluster.planes.redis.sentinels().failover();
    });
}

#[test]
fn a_redis_cluster_of_which_a_master_is_killed_and_slots_move() {
    let (authority, storage) = (Authority::new(), Receiver::start());
    let planes = Planes::on(RedisServers::Cluster(RedisCluster::secure(&authority, HERE)), None);
    let cluster = Cluster::of(2, &setup(&authority, &storage), planes);
    let redis = cluster.planes.redis.cluster();
    holds_through(&cluster, &storage, &[0, 1], Offline::Never, || {
        let slots: Vec<_> = redis.channels().iter().map(|channel| redis.slot_of(channel)).collect();
        for slot in &slots {
            redis.migrate_slot(*slot, (redis.shard_of(*slot) + 1) % 3);
        }
        redis.kill_master(redis.shard_of(slots[0]));
    });
}

/// A node that trusts this authority alone doesn't start on this Redis, and says why.
fn expect_refused(trusted: &Authority, redis: RedisServers, word: &str) {
    let (name, path) = trust(trusted);
    let planes = Planes::on(redis, None);
    let said = refused_start_with(&[(name, &path)], &planes.settings(None));
    assert!(said.contains("Redis") && said.contains(word), "{word}: {said}");
}

#[test]
fn a_redis_that_is_not_the_one_meant_is_refused() {
    let (trusted, other) = (Authority::new(), Authority::new());
    let issuer = "UnknownIssuer";
    expect_refused(&trusted, RedisServers::Own(Redis::secure(&other, HERE)), issuer);
    expect_refused(&trusted, RedisServers::Sentinels(Sentinels::secure(&other, HERE)), issuer);
    expect_refused(&trusted, RedisServers::Cluster(RedisCluster::secure(&other, HERE)), issuer);
    let name = "not valid for name";
    expect_refused(&trusted, RedisServers::Own(Redis::secure(&trusted, "redis.example")), name);
    expect_refused(&trusted, RedisServers::Sentinels(Sentinels::secure(&trusted, "redis.example")), name);
    expect_refused(&trusted, RedisServers::Cluster(RedisCluster::secure(&trusted, "redis.example")), name);
}

fn store_settings(database: &Database, sslmode: &str) -> [String; 2] {
    [format!("store.url={}?sslmode={sslmode}", database.url()), "cluster.single_node=true".to_owned()]
}

#[test]
fn postgresql_by_a_certificate_that_is_trusted() {
    let authority = Authority::new();
    let server = Postgres::secure(&authority, HERE);
    for sslmode in ["require", "verify-full"] {
        let database = server.database();
        let (name, path) = trust(&authority);
        let node = Node::setup().set_all(&store_settings(&database, sslmode)).env(name, &path).start();
        stored(&node, &chat(&["bob"], &json!("by TLS")));
        let plain = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'herenow' AND NOT ssl";
        assert_eq!(database.sql(plain), "0");
        assert_ne!(database.sql(&plain.replace("NOT ssl", "ssl")), "0");
    }
}

#[test]
fn a_postgresql_that_is_not_the_one_meant_is_refused() {
    let (trusted, other) = (Authority::new(), Authority::new());
    let (name, path) = trust(&trusted);
    let expect_refused = |server: &Postgres, sslmode: &str, words: &[&str]| {
        let said = refused_start_with(&[(name, &path)], &store_settings(&server.database(), sslmode));
        assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
    };
    let (stranger, misnamed) = (Postgres::secure(&other, HERE), Postgres::secure(&trusted, "db.example"));
    // Each is waited for, as another might soon stand there.
    scope(|scope| {
        scope.spawn(|| expect_refused(&stranger, "verify-full", &["PostgreSQL", "UnknownIssuer"]));
        scope.spawn(|| expect_refused(&misnamed, "require", &["PostgreSQL", "not valid for name"]));
        scope.spawn(|| expect_refused(Postgres::shared(), "require", &["PostgreSQL", "server does not support TLS"]));
    });
    // It would look at the issuer and not at the name: nobody is to believe that it does.
    expect_refused(Postgres::shared(), "verify-ca", &["`sslmode=verify-ca`", "verify-full"]);
}
