//! 8. Healing: after anything comes back, presence, streams and callbacks are right again without a restart. Here, as far as one process goes.

use super::messages_told;
use crate::harness::*;
use crate::support::*;
use std::collections::BTreeSet;
use std::thread::{scope, sleep};
use std::time::Duration;

#[test]
fn after_the_database_was_locked_by_another_program_all_is_well_again() {
    only_embedded!("it locks the SQLite file; `cluster` has PostgreSQL away");
    let storage = Receiver::start();
    let node = node_of(&[("storage", &storage)], &[]);
    let mut phone = node.device("bob", "phone");
    let first = stored(&node, &chat(&["bob"], &json!(1)));
    assert_eq!(phone.next_message()["cursor"], "1");
    expect_status(&node, &first, "/storage/state", &json!("sent"));

    let thief = rusqlite::Connection::open(node.data_dir().join("herenow.db")).unwrap();
    thief.execute_batch("BEGIN IMMEDIATE").unwrap();
    scope(|scope| {
        let patient = scope.spawn(|| node.backend().send(chat(&["bob"], &json!("held up"))));
        node.backend().whisper("bob").expect(200);
        assert_eq!(phone.next_message()["online_only"], true);
        assert_eq!(whole_inbox(&node, "bob").len(), 1);
        assert!(node.backend().is_online("bob"));
        patient.join().unwrap().problem(503, "store_unavailable");
    });
    thief.execute_batch("ROLLBACK").unwrap();
    let again = eventually("it takes sends again", || {
        let answer = node.backend().send(chat(&["bob"], &json!("again")));
        if answer.status == 201 { Ok(text(&answer.json()["id"])) } else { Err(answer.to_string()) }
    });
    let event = phone.next_message();
    assert_eq!((&event["id"], &event["cursor"]), (&json!(again), &json!("2")), "no hole by what was refused");
    eventually_is("it is told of", || messages_told(&storage), |told| told.contains(&again));
    expect_status(&node, &again, "/recipients/0/delivered_to", &json!(["phone"]));
    eventually_is("it is ready", || node.backend().get("/readyz").status, |status| *status == 200);
}

#[test]
fn after_a_short_lock_nobody_has_noticed() {
    only_embedded!("it locks the SQLite file; `cluster` has PostgreSQL away");
    let node = Node::start();
    stored(&node, &chat(&["bob"], &json!(1)));
    let thief = rusqlite::Connection::open(node.data_dir().join("herenow.db")).unwrap();
    thief.execute_batch("BEGIN IMMEDIATE").unwrap();
    scope(|scope| {
        let send = |n| stored(&node, &chat(&["bob"], &json!(n)));
        let sends: Vec<_> = (0..8).map(|n| scope.spawn(move || send(n))).collect();
        sleep(Duration::from_millis(500));
        thief.execute_batch("ROLLBACK").unwrap();
        for send in sends {
            send.join().unwrap();
        }
    });
    assert_eq!(whole_inbox(&node, "bob").len(), 9);
}

#[test]
fn after_the_process_was_paused_everything_goes_on() {
    let (storage, push) = (Receiver::start(), Receiver::start());
    let node = node_of(&[("storage", &storage), ("push", &push)], &["callbacks.push.grace_ms=500"]);
    let mut phone = node.device("bob", "phone");
    let ids: Vec<String> = scope(|scope| {
        let node = &node;
        let send =
            |caller| (0..40).map(|n| stored(node, &chat(&["bob", "away"], &json!([caller, n])))).collect::<Vec<_>>();
        let callers: Vec<_> = (0..4).map(|caller| scope.spawn(move || send(caller))).collect();
        for _ in 0..2 {
            sleep(Duration::from_millis(50));
            node.signal("STOP");
            sleep(Duration::from_millis(600));
            node.signal("CONT");
        }
        callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
    });
    let seen = messages(&mut phone, ids.len());
    assert_eq!(each(&seen, "/cursor"), (1..=ids.len()).map(|n| n.to_string()).collect::<Vec<_>>());
    let ids: BTreeSet<String> = ids.into_iter().collect();
    eventually_is("all are stored", || messages_told(&storage), |told| *told == ids);
    eventually_is("all are pushed to who is away", || messages_told(&push), |told| *told == ids);
    expect_listed(&node, "", 0);
}

#[test]
fn after_a_kill_presence_is_that_of_who_came_back_and_streams_go_on() {
    let mut node = Node::start();
    let mut phone = node.device("bob", "phone");
    let _laptop = node.device("bob", "laptop");
    let _carol = node.device("carol", "phone");
    stored(&node, &chat(&["bob"], &json!(1)));
    assert_eq!(phone.next_message()["cursor"], "1");
    node.kill();
    node.restart();
    // At once by itself; on a cluster when the lease of the node that died has run out.
    let online = || ["bob", "carol"].map(|user| node.backend().is_online(user));
    eventually_is("offline", online, |online| *online == [false, false]);
    stored(&node, &chat(&["bob"], &json!(2)));
    let mut phone = node.stream("bob", "phone").last_event_id("1").open();
    assert_eq!(phone.next_message()["cursor"], "2");
    let presence = node.backend().presence("bob");
    assert_eq!(each(presence["devices"].as_array().unwrap(), "/device"), ["phone"]);
    let report = node.backend().whisper("bob").expect(200).json();
    assert_eq!(report["recipients"][0]["devices"], json!(["phone"]));
    assert_eq!(phone.next_message()["online_only"], true);
    stored(&node, &chat(&["bob"], &json!(3)));
    assert_eq!(phone.next_message()["cursor"], "3");
}

#[test]
fn after_both_receivers_were_away_each_catches_up_by_itself() {
    let (storage, push) = (Receiver::start_down(), Receiver::start_down());
    let node = node_of(&[("storage", &storage), ("push", &push)], &[]);
    let ids: BTreeSet<String> = (0..30).map(|n| stored(&node, &chat(&["away"], &json!(n)))).collect();
    let open = |endpoint| format!("herenow_callback_breaker_open{{endpoint=\"{endpoint}\"}}");
    for endpoint in ["storage", "push"] {
        eventually_is("it is noticed", || node.metric(&open(endpoint)), |open| *open > 0.5);
    }
    push.set_down(false);
    push.expect_callbacks(1);
    assert_eq!(storage.count(), 0, "one does not wait for the other");
    storage.set_down(false);
    eventually_is("push has caught up", || messages_told(&push), |told| *told == ids);
    eventually_is("storage has caught up", || messages_told(&storage), |told| *told == ids);
    expect_listed(&node, "", 0);
    for endpoint in ["storage", "push"] {
        assert!(node.metric(&open(endpoint)) < 0.5, "{endpoint}");
    }
}
