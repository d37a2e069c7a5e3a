//! PostgreSQL that goes away, takes no more connections, or loses an answer.

use super::LEASE;
use super::witness::{Offline, holds_through, setup};
use crate::harness::http::exchange;
use crate::harness::node::API_KEY;
use crate::harness::planes::{Planes, RedisServers};
use crate::harness::receiver::Call;
use crate::harness::*;
use crate::servers::postgres::Postgres;
use crate::servers::redis::Redis;
use crate::support::*;
use std::net::SocketAddr;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
/// Longer than any send may be left without an answer.
const PATIENT: Duration = Duration::from_secs(10);

fn own_postgres() -> Planes {
    own_postgres_with(&[])
}

fn own_postgres_with(settings: &[&str]) -> Planes {
    Planes::on(RedisServers::Shared(Redis::shared()), Some(Postgres::start_with(settings)))
}

#[test]
fn restarted() {
    let storage = Receiver::start();
    let cluster = Cluster::of(2, &setup(&storage), own_postgres());
    holds_through(&cluster, &storage, &[0, 1], Offline::Never, || {
        for _ in 0..2 {
            sleep(SECOND);
            cluster.planes.own_postgres().restart();
        }
    });
}

#[test]
fn killed_and_back_after_a_while() {
    let storage = Receiver::start();
    let cluster = Cluster::of(2, &setup(&storage), own_postgres());
    holds_through(&cluster, &storage, &[0, 1], Offline::Never, || {
        for away in [SECOND / 10, 6 * SECOND] {
            sleep(SECOND);
            cluster.planes.own_postgres().kill();
            sleep(away);
            cluster.planes.own_postgres().restart();
        }
    });
}

#[test]
fn while_it_is_away_persisted_sends_are_refused_and_online_only_goes_on() {
    let cluster = Cluster::of(2, &Node::setup(), own_postgres());
    let mut phone = cluster[1].device("bob", "phone");
    stored(&cluster[0], &chat(&["bob"], &json!(1)));
    phone.next_message();
    cluster.planes.own_postgres().stop_fast();
    for node in cluster.nodes() {
        let asked = Instant::now();
        let problem = node.backend().send(chat(&["bob"], &json!("refused"))).problem(503, "store_unavailable");
        assert!(asked.elapsed() < PATIENT, "{:?}", asked.elapsed());
        for internal in ["postgres", "SQL", "connection", "refused", "panicked", "src/"] {
            assert!(!problem.to_string().contains(internal), "{problem}");
        }
        let whispered = node.backend().whisper("bob").expect(200).json();
        assert_eq!(phone.next_message()["id"], whispered["id"]);
        let ready = eventually_is("not ready", || node.backend().get("/readyz"), |ready| ready.status == 503);
        assert_eq!(ready.json()["away"], json!(["store"]), "{ready}");
    }
    cluster.planes.own_postgres().restart();
    for (n, node) in cluster.nodes().iter().enumerate() {
        eventually("it takes sends again", || {
            let answer = node.backend().send(chat(&["bob"], &json!({"again": n})));
            if answer.status == 201 { Ok(()) } else { Err(answer.to_string()) }
        });
        let message = phone.next_message();
        assert_eq!((&message["payload"]["again"], &message["cursor"]), (&json!(n), &json!((n + 2).to_string())));
        eventually_is("ready", || node.backend().get("/readyz").status, |status| *status == 200);
    }
}

#[test]
fn out_of_connections() {
    let storage = Receiver::start();
    let planes = own_postgres_with(&["max_connections=60", "superuser_reserved_connections=0"]);
    let cluster = Cluster::by_proxies(2, &setup(&storage), planes);
    let postgres = cluster.planes.own_postgres();
    holds_through(&cluster, &storage, &[0, 1], Offline::Never, || {
        sleep(SECOND);
        // Others take every connection that there is, those that the nodes had included.
        let mut others = vec![];
        eventually("there is none left", || {
            for n in 0..2 {
                cluster.ways(n).postgres.cut();
            }
            others.extend(std::iter::from_fn(|| postgres.take_connection()));
            for n in 0..2 {
                cluster.ways(n).postgres.heal();
            }
            let refused = |node: &Node| node.backend().send(chat(&["nobody"], &json!(1))).status == 503;
            if cluster.nodes().iter().all(refused) { Ok(()) } else { Err(format!("{} are taken", others.len())) }
        });
        for node in cluster.nodes() {
            node.backend().whisper("nobody").expect(200);
        }
    });
}

/// The commit happens, and nobody is told: whoever asks again with the same key must get the one message.
fn an_answer_is_lost(pattern: &[u8]) {
    let storage = Receiver::start();
    let cluster = Cluster::by_proxies(2, &setup_of(&[("storage", &storage)], &[]), Planes::shared());
    let mut phone = cluster[1].device("bob", "phone");
    for round in 0..5 {
        let (message, key) = (chat(&["bob"], &json!({"marked-payload": round})), format!("key {round}"));
        cluster.ways(0).postgres.cut_after_sending(pattern);
        let answers: Vec<Answer> = (0..3).map(|n| send_with_key(&cluster[n % 2], &message, &key)).collect();
        assert!(cluster.ways(0).postgres.has_cut(), "{answers:?}");
        let accepted: Vec<_> = answers.iter().filter(|answer| answer.status == 201).map(Answer::json).collect();
        assert!(accepted.len() >= 2, "{answers:?}");
        assert!(
            answers.iter().all(|answer| answer.status == 201 || answer.problem(503, "store_unavailable").is_object())
        );
        let seen = phone.next_message();
        assert_eq!(seen["cursor"], json!((round + 1).to_string()), "it is there once");
        assert!(accepted.iter().all(|answer| answer["id"] == seen["id"]), "{answers:?}");
        eventually_is("well again", || cluster[0].backend().get("/readyz").status, |status| *status == 200);
    }
    assert_eq!(whole_inbox(&cluster[0], "bob").len(), 5);
    expect_listed(&cluster[0], "", 0);
    assert_eq!(storage.accepted().len(), 5);
}

#[test]
fn a_commit_whose_answer_is_lost() {
    an_answer_is_lost(b"COMMIT");
}

#[test]
fn a_connection_that_is_lost_in_the_middle_of_a_transaction() {
    an_answer_is_lost(b"marked-payload");
}

#[test]
fn a_way_that_swallows_everything_leaves_no_send_without_an_answer() {
    let cluster = Cluster::by_proxies(2, &Node::setup(), Planes::shared());
    let mut phone = cluster[0].device("bob", "phone");
    stored(&cluster[0], &chat(&["bob"], &json!(1)));
    phone.next_message();
    cluster.ways(0).postgres.black_hole();
    let asked = Instant::now();
    cluster[0].backend().send(chat(&["bob"], &json!("swallowed"))).problem(503, "store_unavailable");
    assert!(asked.elapsed() < PATIENT, "{:?}", asked.elapsed());
    cluster[0].backend().whisper("bob").expect(200);
    assert_eq!(phone.next_message()["online_only"], true);
    // The other node is not concerned, and this one's streams hear of it when they can read.
    let id = stored(&cluster[1], &chat(&["bob"], &json!("by the other")));
    cluster.ways(0).postgres.heal();
    eventually("what was stored comes", || {
        let message = phone.next_message();
        if message["id"] == json!(id) { Ok(()) } else { Err(message.to_string()) }
    });
    eventually("it takes sends again", || {
        let answer = cluster[0].backend().send(chat(&["bob"], &json!("again")));
        if answer.status == 201 { Ok(()) } else { Err(answer.to_string()) }
    });
}

#[test]
fn a_node_that_is_killed_while_it_writes_to_a_large_group_leaves_nobody_without() {
    const MEMBERS: usize = 4_000;
    const PART: usize = 500;
    let storage = Receiver::start();
    let mut cluster = Cluster::of(2, &setup(&storage), Planes::shared());
    for part in (0..MEMBERS).collect::<Vec<_>>().chunks(1_000) {
        let names: Vec<String> = part.iter().map(|n| format!("m{n:04}")).collect();
        cluster[0].backend().post("/v1/groups/crowd/members", &json!({ "add": names })).expect(200);
    }
    let message = json!({"from": "alice", "to": {"group": "crowd"}, "type": "chat", "payload": {}});
    let request = |address: SocketAddr, key: &str| {
        let request = Request::post("/v1/messages?recipients=true").json(message.to_string()).bearer(API_KEY);
        request.header("Idempotency-Key", key).header("Connection", "close").to_bytes(address)
    };
    // A node that was slow for longer than its lease may have lost the send to the other, and doesn't know then what becomes of it.
    let until_whole = |address: SocketAddr, key: &str| {
        eventually_within(LEASE + 3 * SOON, "the send is answered", || {
            let answer = exchange(address, &request(address, key)).unwrap();
            match answer.status {
                201 => return Ok(answer),
                409 => answer.problem(409, "idempotency_in_progress"),
                _ => answer.problem(503, "store_unavailable"),
            };
            Err(answer.to_string())
        })
    };
    // From the first message on they are all there, and can be locked.
    let address = cluster[0].address();
    let first = until_whole(address, "first").json();

    let planes = std::sync::Arc::clone(&cluster.planes);
    let sql = |statements: &str| planes.database.sql(statements);
    let stuck = rand::random_range(0..MEMBERS);
    eprintln!("it is stuck at the member {stuck}");
    sql("CREATE TABLE gate ()");
    // Holds a member's row until the gate is gone, so that the send can't go on beyond that member's part.
    let hold = format!(
        "DO $$ BEGIN
             PERFORM 1 FROM users WHERE name = 'm{stuck:04}' FOR UPDATE;
             FOR n IN 1..400 LOOP
                 EXIT WHEN NOT EXISTS (SELECT 1 FROM pg_class WHERE relname = 'gate');
                 PERFORM pg_sleep(0.05);
             END LOOP;
         END $$"
    );
    scope(|scope| {
        scope.spawn(|| sql(&hold));
        let free = "SELECT count(*) FROM (SELECT 1 FROM users FOR UPDATE SKIP LOCKED) u";
        eventually_is("a member is locked", || sql(free), |free| *free == (MEMBERS - 1).to_string());
        let sending = scope.spawn(|| exchange(address, &request(address, "second")));
        let written = "SELECT (SELECT count(*) FROM fanout), (SELECT count(*) FROM fanout_part)";
        eventually_is("it is stuck", || sql(written), |seen| *seen == format!("1|{}", stuck / PART));
        cluster[0].signal("KILL");
        let answer = sending.join().unwrap();
        assert!(!answer.is_ok_and(|answer| answer.status == 201), "not all have it");
        sql("DROP TABLE gate");
    });
    cluster[0].was_killed();

    let answer = until_whole(cluster[1].address(), "second");
    assert_eq!(answer.header("idempotent-replayed"), Some("true"));
    let answer = answer.json();
    // A member that was left out, or has it twice, would be at another number.
    let places: Vec<Value> =
        (0..MEMBERS).map(|n| json!({"user": format!("m{n:04}"), "outcome": "stored", "cursor": "2"})).collect();
    assert_eq!(answer["recipients"], json!(places));
    let id = text(&answer["id"]);
    let there = sql(&format!("SELECT count(*), count(DISTINCT user_id) FROM inbox WHERE message = '{id}'"));
    assert_eq!(there, format!("{MEMBERS}|{MEMBERS}"));
    assert_eq!(sql("SELECT count(*) FROM users WHERE newest <> 2"), "0");
    for member in [0, stuck, MEMBERS - 1] {
        let inbox = whole_inbox(&cluster[1], &format!("m{member:04}"));
        assert_eq!(each(&inbox, "/id"), [first["id"].clone(), answer["id"].clone()], "{member}");
    }
    let told = || storage.accepted().iter().map(Call::message_id).filter(|told| *told == id).count();
    eventually_is("it is called back", told, |n| *n > 0);
}
