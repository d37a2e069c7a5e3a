//! 4. Durable: a 201 survives `kill -9` at the next instant.

use super::messages_told;
use crate::harness::*;
use crate::support::*;
use std::collections::BTreeSet;

#[test]
fn a_201_survives_a_kill_at_the_next_instant() {
    let (storage, push) = (Receiver::start(), Receiver::start());
    let mut node = node_of(&[("storage", &storage), ("push", &push)], &[]);
    let mut ids = BTreeSet::new();
    for round in 0..8 {
        for n in 0..=round % 3 {
            ids.insert(stored(&node, &chat(&["bob"], &json!([round, n]))));
        }
        node.kill();
        node.restart();
        let inbox = whole_inbox(&node, "bob");
        assert_eq!(inbox.iter().map(|message| text(&message["id"])).collect::<BTreeSet<_>>(), ids);
        assert_eq!(each(&inbox, "/cursor"), (1..=ids.len()).map(|n| n.to_string()).collect::<Vec<_>>());
    }
    for receiver in [&storage, &push] {
        eventually_is("all are told of", || messages_told(receiver), |told| *told == ids);
    }
}

#[test]
fn the_answer_to_a_key_survives_as_well_and_is_given_again() {
    let mut node = Node::start();
    let message = chat(&["bob", "carol"], &json!(1));
    let first = send_with_key(&node, &message, "key").expect(201);
    node.kill();
    node.restart();
    let again = send_with_key(&node, &message, "key").expect(201);
    assert_eq!((again.json(), again.header("idempotent-replayed")), (first.json(), Some("true")));
    send_with_key(&node, &chat(&["bob"], &json!(2)), "key").problem(422, "idempotency_key_reused");
    assert_eq!(whole_inbox(&node, "bob").len(), 1);
}

#[test]
fn each_201_of_a_batch_survives_too() {
    let mut node = Node::start();
    let messages: Vec<_> = (0..20).map(|n| chat(&["bob"], &json!(n))).collect();
    let results = node.backend().post("/v1/messages/batch", &json!({"messages": messages})).expect(207).json();
    node.kill();
    node.restart();
    let results = results["results"].as_array().unwrap();
    assert_eq!(each(results, "/status"), [201; 20]);
    assert_eq!(each(&whole_inbox(&node, "bob"), "/id"), each(results, "/id"));
}
