//! Recall (CONTRACT.md 7), and the sender's own copy of a message.

use crate::harness::*;
use crate::support::*;

fn recall(node: &Node, id: &str) -> Answer {
    node.backend().delete(&format!("/v1/messages/{id}"))
}

#[test]
fn a_recalled_message_is_gone_from_every_inbox_and_streams_are_told() {
    let mut node = Node::start();
    let mut bob = node.device("bob", "phone");
    let ids: Vec<_> = (0..3).map(|n| stored(&node, &chat(&["bob", "carol"], &json!(n)))).collect();
    for _ in 0..3 {
        bob.next_message();
    }
    recall(&node, &ids[1]).expect(204);
    let event = bob.next_event();
    assert_eq!((&*event.name, event.json()), ("recall", json!({"id": ids[1]})));
    node.kill();
    node.restart();
    for user in ["bob", "carol"] {
        let cursors: Vec<_> = whole_inbox(&node, user).iter().map(|m| m["cursor"].clone()).collect();
        assert_eq!(cursors, ["1", "3"], "durable before its 204");
    }
    let mut away = node.stream("carol", "phone").after("earliest").open();
    let shown = [away.next_message()["id"].clone(), away.next_message()["id"].clone()];
    assert_eq!(shown, [ids[0].clone(), ids[2].clone()].map(Value::from), "a hole, not a gap");
    let next = stored(&node, &chat(&["carol"], &json!("next")));
    assert_eq!(away.next_message()["id"], Value::from(next));
    node.backend().get(&format!("/v1/messages/{}", ids[1])).problem(404, "not_found");
    recall(&node, &ids[1]).problem(404, "not_found");
    recall(&node, "nonsense").problem(404, "not_found");
}

#[test]
fn a_recall_is_called_back_after_the_message_and_its_push_never_goes() {
    let (storage, push) = (Receiver::start(), Receiver::start_down());
    let node = node_of(&[("storage", &storage), ("push", &push)], &[]);
    let id = stored(&node, &chat(&["bob"], &json!(1)));
    storage.expect_callbacks(1);
    recall(&node, &id).expect(204);
    let calls = storage.expect_callbacks(2);
    assert_eq!(calls.iter().map(receiver::Call::kind).collect::<Vec<_>>(), ["message.stored", "message.recalled"]);
    assert_eq!(calls[1].data(), json!({"id": id}));
    push.set_down(false);
    let marker = stored(&node, &chat(&["dave"], &json!(2)));
    assert_eq!(push.expect_callbacks(1)[0].message_id(), marker);
    eventually_is("the push of what was recalled is settled", || callbacks_waiting(&node), |n| *n == 0);
    assert_eq!(push.count(), 1);
}

fn callbacks_waiting(node: &Node) -> usize {
    node.backend().get("/v1/callbacks").expect(200).json()["callbacks"].as_array().unwrap().len()
}

#[test]
fn a_message_recalled_before_its_storage_callback_is_still_told_of() {
    let storage = Receiver::start_down();
    let node = node_of(&[("storage", &storage)], &["callbacks.storage.batch_max=10"]);
    let ids: Vec<_> = (0..3).map(|n| stored(&node, &chat(&["bob"], &json!(n)))).collect();
    recall(&node, &ids[0]).expect(204);
    recall(&node, &ids[1]).expect(204);
    storage.set_down(false);
    let told = || {
        let mut told = vec![];
        for call in storage.accepted() {
            if call.kind() == "message.recalled" {
                told.push(format!("-{}", call.data()["id"].as_str().unwrap()));
                continue;
            }
            let messages = call.data()["messages"].take();
            let id = |m: &Value| format!("+{}", m["message"]["id"].as_str().unwrap());
            told.extend(messages.as_array().unwrap().iter().map(id));
        }
        told.sort();
        told.dedup();
        told
    };
    let mut wanted: Vec<_> =
        ids.iter().map(|id| format!("+{id}")).chain(ids[..2].iter().map(|id| format!("-{id}"))).collect();
    wanted.sort();
    eventually_is("all is told", told, |told| *told == wanted);
}

#[test]
fn the_senders_other_devices_show_what_it_sent() {
    let receiver = Receiver::start();
    let node = node_of(&[("storage", &receiver)], &[]);
    let (mut alice, mut bob) = (node.device("alice", "laptop"), node.device("bob", "phone"));
    let mut message = chat(&["bob", "carol"], &json!("hi"));
    message["sync_sender"] = true.into();
    let answer = accepted(&node, &message);
    assert_eq!(answer["recipients"].as_array().unwrap().len(), 3);
    assert_eq!(alice.next_message()["to"], json!({"users": ["bob", "carol"]}));
    assert_eq!(bob.next_message()["to"], json!({"users": ["bob"]}));
    let mut later = node.stream("alice", "phone").after("earliest").open();
    assert_eq!(later.next_message()["to"], json!({"users": ["bob", "carol"]}));
    assert_eq!(whole_inbox(&node, "alice")[0]["to"], json!({"users": ["bob", "carol"]}));
    let data = receiver.expect_callbacks(1)[0].data();
    assert_eq!(data["message"]["to"], json!({"users": ["bob", "carol"]}));
    assert_eq!(data["recipients"][2], json!({"user": "alice", "cursor": "1"}));
    assert_eq!(status_of(&node, answer["id"].as_str().unwrap())["to"], json!({"users": ["bob", "carol"]}));
    message["to"] = json!({"group": "team"});
    node.backend().send(message.clone()).problem(422, "invalid_request");
    message["to"] = json!({"users": ["bob"]});
    message["online_only"] = true.into();
    message["payload"] = json!({});
    node.backend().send(message).problem(422, "invalid_request");
}
