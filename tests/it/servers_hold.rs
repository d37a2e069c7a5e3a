//! The servers of the tests: they do what the tests of the planes ask of them.

use crate::harness::eventually_is;
use crate::servers::postgres::Postgres;
use crate::servers::process::wait_for;
use crate::servers::proxy::Proxy;
use crate::servers::redis::Redis;
use crate::servers::redis_cluster::RedisCluster;
use crate::servers::sentinels::Sentinels;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

#[test]
fn redis_is_killed_restarted_paused_and_copied() {
    let redis = Redis::start();
    redis.cli(&["HSET", "a:key", "field", "value"]);
    redis.cli(&["SET", "b:key", "other"]);
    assert_eq!(redis.dump("a:"), "a:key\nfield\nvalue");
    let replica = redis.replica();
    assert_eq!((redis.role(), replica.role()), ("master".to_owned(), "slave".to_owned()));
    eventually_is("the copy", || replica.cli(&["GET", "b:key"]), |value| value == "other");

    redis.kill();
    assert_eq!(redis.try_cli(&["PING"]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    redis.restart();
    assert_eq!(redis.cli(&["DBSIZE"]), "0");

    redis.pause();
    let mut tcp = TcpStream::connect(redis.address()).unwrap();
    tcp.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    tcp.write_all(b"PING\r\n").unwrap();
    assert_eq!(tcp.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    redis.resume();
    assert_eq!(tcp.read(&mut [0]).unwrap(), 1);
}

#[test]
fn sentinels_make_another_the_master() {
    let sentinels = Sentinels::start();
    let before = sentinels.master();
    before.cli(&["SET", "key", "value"]);
    sentinels.failover();
    let now = sentinels.master();
    assert_ne!(before.address(), now.address());
    assert_eq!(now.cli(&["GET", "key"]), "value");
    wait_for("the old master's part", || if before.role() == "slave" { Ok(()) } else { Err(before.role()) });
}

#[test]
fn a_cluster_fails_over_and_moves_slots() {
    let cluster = RedisCluster::start();
    assert_eq!(cluster.addresses().len(), 6);
    let slot = cluster.slot_of("{bob}:key");
    let from = cluster.shard_of(slot);
    cluster.master(from).cli(&["SET", "{bob}:key", "value"]);
    let to = (from + 1) % 3;
    cluster.migrate_slot(slot, to);
    assert_eq!(cluster.shard_of(slot), to);
    assert_eq!(cluster.master(to).cli(&["GET", "{bob}:key"]), "value");

    let before = cluster.master(to).address();
    cluster.failover(to);
    assert_ne!(cluster.master(to).address(), before);
    assert_eq!(cluster.master(to).cli(&["GET", "{bob}:key"]), "value");

    // The third one, so that every node has been left alone until now.
    let third = (from + 2) % 3;
    let before = cluster.master(third).address();
    cluster.kill_master(third);
    assert_ne!(cluster.master(third).address(), before);
}

#[test]
fn postgres_keeps_what_was_committed_when_it_is_killed() {
    let postgres = Postgres::start();
    let (database, other) = (postgres.database(), postgres.database());
    database.sql("CREATE TABLE t (text text, bytes bytea); INSERT INTO t VALUES ('a text', 'some bytes')");
    assert_eq!(other.dump(), "");
    postgres.kill();
    postgres.restart();
    assert_eq!(database.dump(), "(\"a text\",\"some bytes\")");
    postgres.restart();
    assert_eq!(database.dump(), "(\"a text\",\"some bytes\")");
    let listed = "SELECT datname FROM pg_database WHERE datname LIKE 'test_%'";
    assert_eq!(postgres.sql(listed).lines().count(), 2);
    drop((database, other));
    assert_eq!(postgres.sql(listed), "");
}

#[test]
fn the_proxy_breaks_as_it_is_told() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::to(server.local_addr().unwrap());
    let pair = || {
        let client = TcpStream::connect(proxy.address()).unwrap();
        let (server, _) = server.accept().unwrap();
        for side in [&client, &server] {
            side.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        }
        (client, server)
    };
    let hears = |mut from: &TcpStream, mut to: &TcpStream| {
        from.write_all(b"x").unwrap();
        to.read(&mut [0]).map_err(|error| error.kind())
    };
    let (client, server_side) = pair();
    assert_eq!((hears(&client, &server_side), hears(&server_side, &client)), (Ok(1), Ok(1)));

    proxy.stop_to_client();
    assert_eq!(hears(&client, &server_side), Ok(1));
    assert_eq!(hears(&server_side, &client), Err(ErrorKind::WouldBlock));
    proxy.heal();
    assert_eq!((&client).read(&mut [0]).unwrap(), 1, "what was held up arrives");
    proxy.stop_to_server();
    assert_eq!(hears(&client, &server_side), Err(ErrorKind::WouldBlock));
    assert_eq!(hears(&server_side, &client), Ok(1));
    proxy.black_hole();
    assert_eq!(hears(&server_side, &client), Err(ErrorKind::WouldBlock));
    proxy.heal();

    proxy.cut();
    assert_eq!(TcpStream::connect(proxy.address()).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let mut rest = vec![];
    (&server_side).read_to_end(&mut rest).unwrap();
    proxy.heal();

    let (client, mut server_side) = pair();
    proxy.cut_after_sending(b"COMMIT");
    (&client).write_all(b"before COM").unwrap();
    assert_eq!(hears(&server_side, &client), Ok(1));
    assert!(!proxy.has_cut());
    (&client).write_all(b"MIT;").unwrap();
    let mut all = vec![];
    server_side.read_to_end(&mut all).unwrap();
    assert_eq!(String::from_utf8(all).unwrap(), "before COMMIT;");
    server_side.write_all(b"done").unwrap();
    drop(server_side);
    assert_eq!((&client).read(&mut [0]).unwrap(), 0, "the answer is swallowed, and then comes the end");
    assert!(proxy.has_cut());
}
