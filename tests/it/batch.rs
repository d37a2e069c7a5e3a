//! `POST /v1/messages/batch` and `Prefer: respond-async` (CONTRACT.md 3).

use crate::harness::*;
use crate::support::*;

fn batch(node: &Node, messages: &[Value]) -> Value {
    let answer = node.backend().post("/v1/messages/batch", &json!({"messages": messages})).expect(207).json();
    assert_eq!(answer["results"].as_array().unwrap().len(), messages.len());
    answer["results"].clone()
}

fn whisper(node: &Node, to: &str) -> Value {
    let payload = json!({"canary": node.canary()});
    json!({"from": "alice", "to": {"users": [to]}, "type": "typing", "payload": payload, "online_only": true})
}

#[test]
fn each_message_gets_the_answer_that_it_alone_would_have_got() {
    let node = Node::start();
    let mut bob = node.device("bob", "phone");
    let results = batch(
        &node,
        &[
            whisper(&node, "bob"),
            chat(&["bob"], &json!(1)),
            json!({"from": "", "to": {"users": ["bob"]}, "type": "t", "payload": 1}),
            json!({"from": "alice", "to": {"users": ["bob"]}, "type": "t", "payload": 1, "onlineOnly": true}),
            whisper(&node, "carol"),
            json!({"from": "alice", "to": {"group": "none"}, "type": "t", "payload": 1}),
        ],
    );
    let statuses: Vec<_> = results.as_array().unwrap().iter().map(|r| r["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [200, 201, 422, 422, 200, 404]);
    assert_eq!(results[0]["recipients"][0], json!({"user": "bob", "outcome": "delivered", "devices": ["phone"]}));
    assert_eq!(results[1]["recipients"][0], json!({"user": "bob", "outcome": "stored", "cursor": "1"}));
    assert_eq!(
        (&results[2]["code"], &results[2]["errors"][0]["pointer"]),
        (&json!("invalid_request"), &json!("/from"))
    );
    assert_eq!(results[3]["errors"][0]["pointer"], "/onlineOnly");
    assert_eq!(results[4]["summary"]["offline"], 1);
    assert_eq!(results[5]["code"], "not_found");
    assert_eq!(
        [bob.next_message()["id"].clone(), bob.next_message()["id"].clone()],
        [results[0]["id"].clone(), results[1]["id"].clone()]
    );
}

#[test]
fn messages_to_one_recipient_keep_their_order() {
    let node = Node::start();
    let mut bob = node.device("bob", "phone");
    let messages: Vec<_> = (0..200)
        .map(|n| match n % 4 {
            0 => whisper(&node, "bob"),
            1 => chat(&["bob", "carol"], &json!(n)),
            2 => chat(&["carol"], &json!(n)),
            _ => chat(&["bob"], &json!(n)),
        })
        .collect();
    let results = batch(&node, &messages);
    let cursors = |user: &str| -> Vec<u64> {
        let recipients = results.as_array().unwrap().iter().flat_map(|r| r["recipients"].as_array().unwrap());
        let of_user = recipients.filter(|r| r["user"] == user && r["outcome"] == "stored");
        of_user.map(|r| r["cursor"].as_str().unwrap().parse().unwrap()).collect()
    };
    assert_eq!(cursors("bob"), (1..=100).collect::<Vec<_>>());
    assert_eq!(cursors("carol"), (1..=100).collect::<Vec<_>>());
    // Between messages that are stored and those that are not there is no order, as one of the former may be read from the store.
    let (mut seen, mut sent) = ([vec![], vec![]], [vec![], vec![]]);
    for (message, result) in messages.iter().zip(results.as_array().unwrap()) {
        if message["to"]["users"][0] == "bob" {
            sent[usize::from(message["online_only"] == true)].push(result["id"].clone());
            let shown = bob.next_message();
            seen[usize::from(shown["online_only"] == true)].push(shown["id"].clone());
        }
    }
    assert_eq!(seen, sent);
}

#[test]
fn a_batch_is_repeated_message_by_message() {
    let node = Node::start();
    let first = chat(&["bob"], &json!(1));
    let send = |messages: &[Value]| {
        let body = json!({"messages": messages}).to_string();
        let request = Request::post("/v1/messages/batch").header("Idempotency-Key", "k").json(body);
        node.backend().request(request).expect(207).json()["results"].clone()
    };
    let results = send(&[first.clone(), chat(&["bob"], &json!(2))]);
    let again = send(&[first, chat(&["bob"], &json!("other"))]);
    assert_eq!(again[0], results[0]);
    assert_eq!(again[1]["code"], "idempotency_key_reused");
    assert_eq!(whole_inbox(&node, "bob").len(), 2);
}

#[test]
fn a_batch_has_its_own_bounds() {
    let node = Node::start();
    let post = |body: &Value| node.backend().post("/v1/messages/batch", body);
    post(&json!({"messages": []})).problem(422, "invalid_request");
    post(&json!({"messages": vec![1; 501]})).problem(422, "invalid_request");
    post(&json!({"messages": [], "more": 1})).problem(422, "invalid_request");
    assert_eq!(batch(&node, &vec![json!(1); 500])[499]["status"], 422);
    let long =
        Request::post("/v1/messages/batch").header("Idempotency-Key", &"k".repeat(125)).json("{\"messages\":[1]}");
    node.backend().request(long).problem(422, "invalid_request");
    node.backend().get("/v1/messages/batch").problem(405, "method_not_allowed");
}

#[test]
fn an_asynchronous_send_is_answered_at_once_and_goes_out_all_the_same() {
    let node = Node::start();
    let mut bob = node.device("bob", "phone");
    let send = |prefer: &str, body: &str, key: &str| {
        let request = Request::post("/v1/messages").header("Prefer", prefer).header("Idempotency-Key", key);
        node.backend().request(request.json(body))
    };
    for (n, prefer) in ["respond-async", "wait=5, Respond-Async; x=1"].into_iter().enumerate() {
        let body = whisper(&node, "bob").to_string();
        let answer = send(prefer, &body, &format!("k{n}")).expect(202);
        assert_eq!(answer.header("preference-applied"), Some("respond-async"));
        let fields: Vec<_> = answer.json().as_object().unwrap().keys().cloned().collect();
        assert_eq!(fields, ["id", "online_only", "sent_at"]);
        assert_eq!(bob.next_message()["id"], answer.json()["id"]);
        let again =
            eventually_is("the repeat", || send(prefer, &body, &format!("k{n}")), |a| a.status != 409).expect(202);
        assert_eq!((again.json(), again.header("idempotent-replayed")), (answer.json(), Some("true")));
        let told = send("x", &body, &format!("k{n}")).expect(200).json();
        assert_eq!((&told["id"], &told["summary"]["delivered"]), (&answer.json()["id"], &json!(1)));
    }
    let persisted = send("respond-async", &chat(&["bob"], &json!(1)).to_string(), "p").expect(201);
    assert_eq!(persisted.header("preference-applied"), None, "durable before it is answered, whatever is preferred");
    send("respond-async", "{", "w").problem(400, "malformed_json");
}

#[test]
fn an_asynchronous_send_does_not_wait_for_a_slow_device() {
    let node = Node::start();
    let _bob = node.stuck_device("bob", "phone");
    let begun = std::time::Instant::now();
    let request = Request::post("/v1/messages").header("Prefer", "respond-async");
    node.backend().request(request.json(whisper(&node, "bob").to_string())).expect(202);
    assert!(begun.elapsed() < std::time::Duration::from_millis(900), "the answer waits at most 1 s for outcomes");
}
