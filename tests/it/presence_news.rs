//! Presence callbacks (CONTRACT.md 8): who comes and who goes, without flaps.

use crate::harness::*;
use crate::support::*;

fn start(receiver: &Receiver, debounce_ms: u64) -> Node {
    node_of(&[("presence", receiver)], &[&format!("callbacks.presence.debounce_ms={debounce_ms}")])
}

fn news(receiver: &Receiver, n: usize) -> Vec<(String, Value)> {
    receiver.expect_callbacks(n).iter().map(|call| (call.kind(), call.data())).collect()
}

#[test]
fn the_first_device_and_the_last_are_news_and_no_other() {
    let receiver = Receiver::start();
    let node = start(&receiver, 50);
    let mut phone = node.device("bob", "phone");
    let (kind, came) = news(&receiver, 1).remove(0);
    assert_eq!(
        (&*kind, &came["user"], &came["device"], &came["reason"]),
        ("presence.online", &json!("bob"), &json!("phone"), &json!("connected"))
    );
    let mut tv = node.device("bob", "tv");
    phone.close();
    eventually_is("one is left", || node.backend().presence("bob")["devices"].as_array().unwrap().len(), |n| *n == 1);
    tv.close();
    let (kind, went) = news(&receiver, 2).remove(1);
    assert_eq!((&*kind, &went["device"], &went["reason"]), ("presence.offline", &json!("tv"), &json!("closed")));
    assert!(went["version"].as_u64() > came["version"].as_u64());
    assert_eq!(node.backend().presence("bob")["version"], went["version"]);
    let _phone = node.device("bob", "phone");
    assert_eq!(news(&receiver, 3)[2].0, "presence.online");
}

#[test]
fn who_is_back_in_time_was_never_gone() {
    let receiver = Receiver::start();
    let node = start(&receiver, 1_000);
    let mut phone = node.device("bob", "phone");
    for _ in 0..3 {
        phone.close();
        eventually_is("bob has gone", || node.backend().is_online("bob"), |online| !online);
        phone = node.device("bob", "phone");
    }
    let _replacing = node.device("bob", "phone");
    node.backend().delete("/v1/users/bob/devices/phone").expect(204);
    let told = news(&receiver, 2);
    assert_eq!(told.iter().map(|(kind, _)| &**kind).collect::<Vec<_>>(), ["presence.online", "presence.offline"]);
    assert_eq!(told[1].1["reason"], "kicked");
}

#[test]
fn an_endpoint_that_fails_is_told_again_and_online_only_payloads_never_show() {
    let receiver = Receiver::start();
    receiver.answer_once([receiver::Reply::Status(500)]);
    let node = start(&receiver, 50);
    let _bob = node.device("bob", "phone");
    node.backend().whisper("bob").expect(200);
    let calls = receiver.expect_callbacks(2);
    assert_eq!((calls[0].id(), calls[0].body.clone()), (calls[1].id(), calls[1].body.clone()));
    assert!(!calls.iter().any(|call| call.body.contains("CANARY")));
}
