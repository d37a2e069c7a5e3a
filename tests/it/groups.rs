//! Groups (CONTRACT.md 6) and sends to them.

use crate::harness::*;
use crate::support::*;

fn change(node: &Node, group: &str, add: &[&str], remove: &[&str]) -> Value {
    node.backend()
        .post(&format!("/v1/groups/{group}/members"), &json!({"add": add, "remove": remove}))
        .expect(200)
        .json()
}

fn request(node: &Node, method: &str, path: &str) -> Answer {
    node.backend().request(Request::new(method, path))
}

fn to_group(group: &str, online_only: bool) -> Value {
    json!({"from": "alice", "to": {"group": group}, "type": "chat", "payload": {}, "online_only": online_only})
}

#[test]
fn members_are_added_removed_and_listed() {
    let node = Node::start();
    assert_eq!(
        change(&node, "team", &["bob", "carol", "bob"], &["x"]),
        json!({"added": 2, "removed": 0, "members": 2})
    );
    request(&node, "PUT", "/v1/groups/team/members/a%2Fb").expect(204);
    request(&node, "PUT", "/v1/groups/team/members/a%2Fb").expect(204);
    request(&node, "DELETE", "/v1/groups/team/members/bob").expect(204);
    request(&node, "DELETE", "/v1/groups/team/members/bob").expect(204);
    let first = node.backend().get("/v1/groups/team/members?limit=1").expect(200).json();
    assert_eq!(first, json!({"members": ["a/b"], "next": "a/b", "more": true}));
    let rest = node.backend().get("/v1/groups/team/members?after=a%2Fb").expect(200).json();
    assert_eq!(rest, json!({"members": ["carol"], "more": false}));
    request(&node, "DELETE", "/v1/groups/team").expect(204);
    request(&node, "DELETE", "/v1/groups/team").problem(404, "not_found");
    assert_eq!(node.backend().get("/v1/groups/team/members").expect(200).json(), json!({"members": [], "more": false}));
}

#[test]
fn a_change_that_can_not_be_is_refused_whole() {
    let node = Node::with(&["limits.group_members=3"]);
    change(&node, "team", &["a", "b"], &[]);
    let post = |body: Value| node.backend().post("/v1/groups/team/members", &body);
    post(json!({"add": ["c", "d"]})).problem(422, "invalid_request");
    request(&node, "PUT", "/v1/groups/team/members/c").expect(204);
    request(&node, "PUT", "/v1/groups/team/members/d").problem(422, "invalid_request");
    let both = post(json!({"add": ["x"], "remove": ["x"]})).problem(422, "invalid_request");
    assert_eq!(both["errors"][0]["pointer"], "/remove");
    assert_eq!(post(json!({"add": ["ok", ""]})).problem(422, "invalid_request")["errors"][0]["pointer"], "/add/1");
    post(json!({"add": vec!["u"; 1001]})).problem(422, "invalid_request");
    post(json!({"added": []})).problem(422, "invalid_request");
    node.backend().get("/v1/groups/team/members?limit=0").problem(422, "invalid_request");
    request(&node, "DELETE", "/v1/groups/team/members").problem(405, "method_not_allowed");
    Request::get("/v1/groups/team/members").send(node.address()).problem(401, "missing_credentials");
    assert_eq!(node.backend().get("/v1/groups/team/members").json()["members"], json!(["a", "b", "c"]));
}

#[test]
fn an_online_only_message_reaches_the_members_who_are_here_but_not_its_sender() {
    let node = Node::start();
    change(&node, "team", &["alice", "bob", "carol", "dave"], &[]);
    let (mut alice, mut bob, mut carol) =
        (node.device("alice", "phone"), node.device("bob", "phone"), node.device("carol", "tv"));
    let answer = node.backend().send(to_group("team", true)).expect(200).json();
    assert_eq!(
        answer["summary"],
        json!({"delivered": 2, "offline": 1, "unconfirmed": 0, "expired": 0, "superseded": 0})
    );
    assert_eq!(answer.get("recipients"), None);
    for device in [&mut bob, &mut carol] {
        let message = device.next_message();
        assert_eq!((&message["id"], &message["to"]), (&answer["id"], &json!({"group": "team"})));
    }
    let path = "/v1/messages?recipients=true";
    let payload = json!({"canary": node.canary()});
    let message =
        json!({"from": "alice", "to": {"group": "team"}, "type": "t", "payload": payload, "online_only": true});
    let told = node.backend().post(path, &message).expect(200).json();
    assert_eq!(
        told["recipients"],
        json!([
            {"user": "bob", "outcome": "delivered", "devices": ["phone"]},
            {"user": "carol", "outcome": "delivered", "devices": ["tv"]},
            {"user": "dave", "outcome": "offline", "devices": []},
        ])
    );
    node.backend().post("/v1/messages?recipient=true", &message).problem(422, "invalid_request");
    node.backend().whisper("alice").expect(200);
    assert_eq!(alice.next_message()["to"], json!({"users": ["alice"]}), "nothing of the group's before it");
}

#[test]
fn a_persisted_message_is_stored_for_every_member_but_its_sender() {
    let receiver = Receiver::start();
    let node = node_of(&[("storage", &receiver)], &[]);
    change(&node, "team", &["alice", "bob", "carol"], &[]);
    let answer = node.backend().send(to_group("team", false)).expect(201).json();
    assert_eq!((&answer["summary"], answer.get("recipients")), (&json!({"stored": 2}), None));
    let told = node.backend().post("/v1/messages?recipients=true", &to_group("team", false)).expect(201).json();
    assert_eq!(told["recipients"][0], json!({"user": "bob", "outcome": "stored", "cursor": "2"}));
    for user in ["bob", "carol"] {
        let inbox = whole_inbox(&node, user);
        assert_eq!((&inbox[0]["id"], &inbox[0]["to"]), (&answer["id"], &json!({"group": "team"})));
    }
    assert!(whole_inbox(&node, "alice").is_empty());
    assert_eq!(node.device("bob", "phone").next_message()["to"], json!({"group": "team"}));
    let status = status_of(&node, answer["id"].as_str().unwrap());
    assert_eq!((&status["to"], status["recipients"].as_array().unwrap().len()), (&json!({"group": "team"}), 2));
    assert_eq!(receiver.expect_callbacks(2)[0].data()["message"]["to"], json!({"group": "team"}));
}

#[test]
fn a_change_counts_from_the_next_send_on() {
    let node = Node::start();
    let send = || node.backend().send(to_group("team", true));
    send().problem(404, "not_found");
    change(&node, "team", &["bob"], &[]);
    assert_eq!(send().expect(200).json()["summary"]["offline"], 1);
    change(&node, "team", &["carol"], &[]);
    assert_eq!(send().expect(200).json()["summary"]["offline"], 2);
    request(&node, "DELETE", "/v1/groups/team").expect(204);
    send().problem(404, "not_found");
    change(&node, "team", &["alice"], &[]);
    assert_eq!(send().expect(200).json()["summary"]["offline"], 0, "its sender alone is in it");
    assert_eq!(node.backend().send(to_group("team", false)).expect(201).json()["summary"]["stored"], 0);
}

#[test]
fn a_repeat_of_a_group_send_is_answered_as_the_first_was() {
    let node = Node::start();
    change(&node, "team", &["bob"], &[]);
    let mut online = to_group("team", true);
    online["payload"]["canary"] = node.canary().into();
    for message in [online, to_group("team", false)] {
        let key = message["online_only"].to_string();
        let first = send_with_key(&node, &message, &key).json();
        change(&node, "team", &[&format!("new{key}")], &[]);
        let again = send_with_key(&node, &message, &key);
        assert_eq!((again.json(), again.header("idempotent-replayed")), (first, Some("true")));
    }
}

#[test]
fn a_large_group_is_served_while_others_send() {
    let node = Node::start();
    for bite in 0..5 {
        let names: Vec<String> = (0..1_000).map(|n| format!("m{}", bite * 1_000 + n)).collect();
        change(&node, "crowd", &names.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    }
    let mut devices: Vec<_> = (0..20).map(|n| node.device(&format!("m{}", n * 250), "phone")).collect();
    let answer = node.backend().send(to_group("crowd", true)).expect(200).json();
    assert_eq!((&answer["summary"]["delivered"], &answer["summary"]["offline"]), (&json!(20), &json!(4_980)));
    let stored = node.backend().send(to_group("crowd", false)).expect(201).json();
    assert_eq!(stored["summary"]["stored"], 5_000);
    for device in &mut devices {
        let mut ids = [device.next_message()["id"].clone(), device.next_message()["id"].clone()];
        ids.sort_by_key(|id| *id != answer["id"]);
        assert_eq!(ids, [answer["id"].clone(), stored["id"].clone()]);
    }
}
