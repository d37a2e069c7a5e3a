//! CONTRACT.md 9: `store.url` puts the durable plane into PostgreSQL, and nothing that a caller sees is otherwise.

use crate::harness::receiver::Reply;
use crate::harness::*;
use crate::servers::pgbouncer::PgBouncer;
use crate::servers::postgres::{Database, Postgres};
use crate::support::*;
use std::time::Duration;

fn settings(database: &Database) -> Vec<String> {
    settings_at(&database.url())
}

fn settings_at(url: &str) -> Vec<String> {
    vec![format!("store.url={url}"), "cluster.single_node=true".into()]
}

#[test]
fn messages_outlive_their_node() {
    let database = Postgres::shared().database();
    let mut node = Node::setup().set_all(&settings(&database)).start();
    let mut ids: Vec<String> = (0..5).map(|n| stored(&node, &chat(&["bob"], &json!(n)))).collect();
    ack(&node, "bob", "phone", "2").expect(204);
    node.kill();
    // Another directory: nothing of it was needed.
    let node = Node::setup().set_all(&settings(&database)).start();
    ids.push(stored(&node, &chat(&["bob"], &json!("more"))));
    let inbox = whole_inbox(&node, "bob");
    assert_eq!(each(&inbox, "/id"), ids.iter().map(|id| json!(id)).collect::<Vec<_>>());
    assert_eq!(each(&inbox, "/cursor"), ["1", "2", "3", "4", "5", "6"]);
    let (mut phone, resumed_after) = resumed(&node.stream("bob", "phone"));
    assert_eq!(resumed_after, "2");
    assert_eq!(each(&messages(&mut phone, 4), "/cursor"), ["3", "4", "5", "6"]);
}

#[test]
fn callbacks_that_a_killed_node_held_are_made_by_the_next() {
    let database = Postgres::shared().database();
    let receiver = Receiver::start();
    receiver.answer(Reply::Hang);
    let mut node = setup_of(&[("storage", &receiver)], &[]).set_all(&settings(&database)).start();
    let id = stored(&node, &chat(&["bob"], &json!("hi")));
    eventually_is("it is being made", || receiver.count(), |count| *count > 0);
    node.kill();
    receiver.answer(Reply::Status(204));
    let _node = setup_of(&[("storage", &receiver)], &[]).set_all(&settings(&database)).start();
    let calls = receiver.expect_callbacks_within(2, Duration::from_secs(90));
    assert_eq!(calls[0].id(), calls[1].id());
    assert_eq!(calls[1].message_id(), id);
}

#[test]
fn what_is_online_only_never_reaches_the_database() {
    let database = Postgres::shared().database();
    let node = Node::setup().set_all(&settings(&database)).start();
    let canary = node.canary();
    let mut phone = node.device("bob", "phone");
    node.backend().send(json!({
        "from": "alice", "to": {"users": ["bob"]}, "type": "typing", "online_only": true, "payload": canary
    }));
    assert_eq!(phone.next_event().json()["payload"], json!(canary));
    stored(&node, &chat(&["bob"], &json!("a persisted one")));
    let dump = database.dump();
    assert!(dump.contains("a persisted one") && !dump.contains(&canary));
}

#[test]
fn a_database_that_is_away_is_said_and_healed_from() {
    let server = Postgres::start();
    let database = server.database();
    let node = Node::setup().set_all(&settings(&database)).start();
    stored(&node, &chat(&["bob"], &json!(1)));
    server.stop_fast();
    node.backend().send(chat(&["bob"], &json!(2))).problem(503, "store_unavailable");
    eventually_is("it is not ready", || node.backend().get("/readyz").status, |status| *status == 503);
    server.restart();
    eventually_is("it is ready", || node.backend().get("/readyz").status, |status| *status == 200);
    stored(&node, &chat(&["bob"], &json!(3)));
    assert_eq!(each(&whole_inbox(&node, "bob"), "/payload"), [json!(1), json!(3)]);
}

#[test]
fn a_pooler_that_keeps_sessions_is_taken_and_one_that_does_not_is_refused() {
    let server = Postgres::shared();
    let database = server.database();
    let pooler = PgBouncer::start(server.address(), "session");
    let node = Node::setup().set_all(&settings_at(&database.url_at(pooler.address()))).start();
    let receivers: Vec<_> = (0..50).map(|n| format!("u{n}")).collect();
    for user in &receivers {
        stored(&node, &chat(&["bob", user], &json!("through it")));
    }
    assert_eq!(whole_inbox(&node, "bob").len(), receivers.len());
    drop(node);
    for mode in ["transaction", "statement"] {
        let pooler = PgBouncer::start(server.address(), mode);
        let said = refused_start(&settings_at(&database.url_at(pooler.address())));
        assert!(said.contains("pool_mode = session"), "{mode}: {said}");
    }
}
