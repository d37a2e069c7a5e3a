//! Presence (CONTRACT.md 5).

use crate::harness::*;

#[test]
fn a_user_never_seen_is_simply_offline() {
    let node = Node::start();
    let shown = node.backend().presence("nobody");
    assert_eq!(shown, json!({"user": "nobody", "online": false, "version": 0, "devices": []}));
}

#[test]
fn presence_shows_each_device_with_its_state_and_node() {
    let node = Node::with(&["cluster.node=node-7"]);
    let mut phone = node.device("bob", "phone");
    let _laptop = node.stream("bob", "laptop").background().open();
    let shown = node.backend().presence("bob");
    assert_eq!((&shown["user"], &shown["online"]), (&json!("bob"), &json!(true)));
    let devices = shown["devices"].as_array().unwrap();
    let of = |name: &str| devices.iter().find(|device| device["device"] == name).unwrap();
    assert_eq!((&of("phone")["state"], &of("laptop")["state"]), (&json!("active"), &json!("background")));
    for device in devices {
        assert_eq!(device["node"], "node-7");
        assert_eq!(device["connected_at"], device["last_active_at"]);
        assert!(device["connected_at"].as_str().unwrap().ends_with('Z'));
        assert_eq!(device.as_object().unwrap().len(), 5, "{device}");
    }
    phone.close();
    let shown = eventually_is(
        "one is left",
        || node.backend().presence("bob"),
        |p| p["devices"].as_array().unwrap().len() == 1,
    );
    assert_eq!((&shown["online"], &shown["devices"][0]["device"]), (&json!(true), &json!("laptop")));
}

#[test]
fn the_version_grows_with_every_change() {
    let node = Node::start();
    let mut last = 0;
    let mut grown = |what: &str| {
        let version = node.backend().presence("bob")["version"].as_u64().unwrap();
        assert!(version > last, "{what}: {version} after {last}");
        last = version;
    };
    let mut phone = node.device("bob", "phone");
    grown("connected");
    phone.set_state("background").expect(204);
    grown("in the background");
    let mut laptop = node.device("bob", "laptop");
    grown("a second device");
    phone.ack("0").expect(204);
    grown("active by an ack");
    laptop.close();
    eventually_is("one is left", || node.backend().presence("bob")["devices"].as_array().unwrap().len(), |n| *n == 1);
    grown("one has left");
    phone.close();
    eventually_is("offline", || node.backend().is_online("bob"), |online| !online);
    grown("offline");
    let _phone = node.device("bob", "phone");
    grown("back");
}

#[test]
fn the_version_grows_across_a_restart() {
    let mut node = Node::start();
    let phone = node.device("bob", "phone");
    let before = node.backend().presence("bob")["version"].as_u64().unwrap();
    drop(phone);
    node.kill();
    node.restart();
    let _phone = node.device("bob", "phone");
    assert!(node.backend().presence("bob")["version"].as_u64().unwrap() > before);
}

#[test]
fn a_state_lasts_until_the_stream_ends_and_needs_one() {
    let node = Node::start();
    let mut phone = node.device("bob", "phone");
    let state = || node.backend().presence("bob")["devices"][0]["state"].clone();
    phone.set_state("background").expect(204);
    assert_eq!(state(), "background");
    phone.close();
    eventually_is("offline", || node.backend().is_online("bob"), |online| !online);
    phone.set_state("active").problem(404, "not_found");
    let phone = node.device("bob", "phone");
    assert_eq!(state(), "active");
    phone.set_state("asleep").problem(422, "invalid_request");
    assert_eq!(state(), "active");
}

#[test]
fn many_are_asked_for_at_once_and_answered_in_order() {
    let node = Node::start();
    let _bob = node.device("bob", "phone");
    let asked: Vec<_> = (0..999).map(|n| format!("u{n}")).chain(["bob".into()]).rev().collect();
    let answer = node.backend().post("/v1/presence/query", &json!({"users": asked})).expect(200).json();
    let users = answer["users"].as_array().unwrap();
    assert!(users.iter().map(|user| user["user"].as_str().unwrap()).eq(asked.iter().map(String::as_str)));
    assert_eq!(users[0], node.backend().presence("bob"));
    assert!(users[1..].iter().all(|user| user["online"] == false));
    let again = node.backend().post("/v1/presence/query", &json!({"users": ["bob", "bob"]})).expect(200).json();
    assert_eq!(again["users"].as_array().unwrap().len(), 2);
}

#[test]
fn a_query_that_is_wrong_says_where() {
    let node = Node::start();
    let pointer = |body: Value| {
        let problem = node.backend().post("/v1/presence/query", &body).problem(422, "invalid_request");
        problem["errors"][0]["pointer"].as_str().unwrap().to_owned()
    };
    assert_eq!(pointer(json!({"users": []})), "/users");
    assert_eq!(pointer(json!({"users": vec!["u"; 1_001]})), "/users");
    assert_eq!(pointer(json!({"users": ["bob", ""]})), "/users/1");
    assert_eq!(pointer(json!({"users": ["bob", 3]})), "/users/1");
    assert_eq!(pointer(json!({"users": ["a\u{0}"]})), "/users/0");
    assert_eq!(pointer(json!({"users": ["bob"], "usrs": []})), "/usrs");
}

#[test]
fn a_device_that_is_kicked_says_goodbye_and_is_offline() {
    let node = Node::start();
    let mut phone = node.device("bob", "phone");
    let mut laptop = node.device("bob", "laptop");
    node.backend().delete("/v1/users/bob/devices/phone").expect(204);
    let shown = node.backend().presence("bob");
    assert_eq!((shown["devices"].as_array().unwrap().len(), &shown["devices"][0]["device"]), (1, &json!("laptop")));
    phone.expect_bye("kicked");
    node.backend().delete("/v1/users/bob/devices/phone").problem(404, "not_found");
    node.backend().delete("/v1/users/nobody/devices/phone").problem(404, "not_found");
    node.backend().whisper("bob");
    laptop.next_message();
}

#[test]
fn a_device_that_is_kicked_may_come_back() {
    let node = Node::start();
    let mut phone = node.device("bob", "phone");
    node.backend().delete("/v1/users/bob/devices/phone").expect(204);
    let mut again = node.device("bob", "phone");
    phone.expect_bye("kicked");
    node.backend().whisper("bob");
    again.next_message();
    assert!(node.backend().is_online("bob"));
}

#[test]
fn a_kicked_device_that_takes_nothing_is_offline_too() {
    let node = Node::with(&["stream.stall_timeout_s=2"]);
    let mut phone = node.stuck_device("bob", "phone");
    node.backend().delete("/v1/users/bob/devices/phone").expect(204);
    assert!(!node.backend().is_online("bob"));
    assert_eq!(node.backend().whisper("bob").json()["recipients"][0]["outcome"], "offline");
    // Its connection is not held for longer than that of any other that takes nothing.
    eventually_is("gone", || node.count("herenow_streams"), |streams| *streams == 0);
    phone.drain();
}

#[test]
fn names_of_any_characters_can_be_asked_for_percent_encoded() {
    let node = Node::start();
    for (user, path) in [
        ("../etc/passwd", "..%2Fetc%2Fpasswd"),
        ("a/b?c#d%", "a%2Fb%3Fc%23d%25"),
        ("💬 ☂", "%F0%9F%92%AC%20%E2%98%82"),
        ("\u{202e}rtl אבג", "%E2%80%AErtl%20%D7%90%D7%91%D7%92"),
        ("..", "%2E%2E"),
        ("+", "+"),
        ("a&b=c;d", "a&b=c;d"),
        (" ", "%20"),
    ] {
        let _device = node.device(user, "☎/1");
        assert_eq!(node.backend().presence(path)["user"], user);
        assert!(node.backend().is_online(path), "{user:?}");
        node.backend().delete(&format!("/v1/users/{path}/devices/%E2%98%8E%2F1")).expect(204);
        assert!(!node.backend().is_online(path), "{user:?}");
    }
    for (path, status, code) in [
        ("%00", 422, "invalid_request"),
        ("a%0Ab", 422, "invalid_request"),
        ("%FF", 404, "not_found"),
        ("%C0%AE", 404, "not_found"),
    ] {
        node.backend().get(&format!("/v1/users/{path}/presence")).problem(status, code);
    }
    node.backend().get(&format!("/v1/users/{}/presence", "u".repeat(129))).problem(422, "invalid_request");
    node.backend().get(&format!("/v1/users/{}/presence", "%E2%98%82".repeat(128))).expect(200);
    node.backend().get("/v1/users//presence").problem(404, "not_found");
}
