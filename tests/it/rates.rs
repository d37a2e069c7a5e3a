//! Rate limits (CONTRACT.md 11, `limits.sends_per_s`, `limits.sends_per_s_per_from`).

use crate::harness::*;
use crate::support::*;

fn from(sender: &str) -> Value {
    json!({"from": sender, "to": {"users": ["bob"]}, "type": "t", "payload": 1})
}

#[test]
fn an_api_key_may_send_so_often() {
    let node = Node::with(&["limits.sends_per_s=3", "auth.api_keys=hk_an-api-key-of-the-tests,other"]);
    node.note_secret("other-key");
    for left in [2, 1, 0] {
        let answer = node.backend().send(from("alice")).expect(201);
        assert_eq!(answer.header("ratelimit-policy"), Some("\"key\";q=3;w=1"));
        assert_eq!(answer.header("ratelimit"), Some(&*format!("\"key\";r={left};t=1")));
    }
    let refused = node.backend().send(from("carol"));
    assert_eq!((refused.header("retry-after"), refused.header("ratelimit")), (Some("1"), Some("\"key\";r=0;t=1")));
    refused.problem(429, "rate_limited");
    send_request(&from("alice")).bearer("other").send(node.address()).expect(201);
    eventually_is("the key may send again", || node.backend().send(from("alice")).status, |status| *status == 201);
}

#[test]
fn a_sender_may_send_so_often_and_a_batch_counts_each_message() {
    let node = Node::with(&["limits.sends_per_s_per_from=2"]);
    let messages = json!({"messages": [from("alice"), from("alice"), from("alice"), from("carol")]});
    let results = node.backend().post("/v1/messages/batch", &messages).expect(207).json();
    let statuses: Vec<_> = (0..4).map(|n| results["results"][n]["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [201, 201, 429, 201]);
    node.backend().send(from("alice")).problem(429, "rate_limited");
    eventually_is("alice may send again", || node.backend().send(from("alice")).status, |status| *status == 201);
}

#[test]
fn without_a_limit_nobody_counts() {
    let node = Node::start();
    let answer = node.backend().send(from("alice")).expect(201);
    assert_eq!((answer.header("ratelimit"), answer.header("ratelimit-policy")), (None, None));
}
