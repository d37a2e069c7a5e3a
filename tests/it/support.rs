//! What the chapters about persisted messages and callbacks say again and again.

use crate::harness::*;

/// A node that tells these receivers, beside other keys.
#[track_caller]
pub fn node_of(receivers: &[(&str, &Receiver)], set: &[&str]) -> Node {
    setup_of(receivers, set).start()
}

/// The same, to be added to.
pub fn setup_of(receivers: &[(&str, &Receiver)], set: &[&str]) -> Setup {
    let setup = set.iter().fold(Node::setup(), |setup, key_and_value| setup.set(key_and_value));
    receivers.iter().fold(setup, |setup, (endpoint, receiver)| setup.set_all(&receiver.settings(endpoint)))
}

/// A persisted message.
pub fn chat(to: &[&str], payload: &Value) -> Value {
    json!({"from": "alice", "to": {"users": to}, "type": "chat", "payload": payload})
}

/// Sends a persisted message, which must be accepted.
#[track_caller]
pub fn accepted(node: &Node, message: &Value) -> Value {
    node.backend().send(message.clone()).expect(201).json()
}

/// Sends a persisted message and gives its id.
#[track_caller]
pub fn stored(node: &Node, message: &Value) -> String {
    text(&accepted(node, message)["id"])
}

/// Sends a message with an idempotency key.
#[track_caller]
pub fn send_with_key(node: &Node, message: &Value, key: &str) -> Answer {
    node.backend().request(send_request(message).header("Idempotency-Key", key))
}

/// A send without credentials yet.
pub fn send_request(message: &Value) -> Request {
    Request::post("/v1/messages").json(message.to_string())
}

/// `GET /v1/messages/{id}`
#[track_caller]
pub fn status_of(node: &Node, id: &str) -> Value {
    node.backend().get(&format!("/v1/messages/{id}")).expect(200).json()
}

/// Waits until `part` of a message's status is this.
#[track_caller]
pub fn expect_status(node: &Node, id: &str, part: &str, wanted: &Value) {
    eventually_is(part, || status_of(node, id).pointer(part).cloned(), |seen| seen.as_ref() == Some(wanted));
}

/// The inbox as a device pulls it.
#[track_caller]
pub fn inbox(node: &Node, user: &str, device: &str, query: &str) -> Value {
    let path = format!("/v1/inbox?{query}");
    Request::get(&path).bearer(&node.token(user, device)).send(node.address()).expect(200).json()
}

/// All of a user's inbox, page by page.
#[track_caller]
pub fn whole_inbox(node: &Node, user: &str) -> Vec<Value> {
    let (mut after, mut messages) = ("earliest".to_owned(), vec![]);
    loop {
        let mut page = inbox(node, user, "reader", &format!("after={after}&limit=1000"));
        messages.append(page["messages"].as_array_mut().unwrap());
        after = text(&page["next"]);
        if page["more"] == false {
            return messages;
        }
    }
}

/// Says how far a device is.
#[track_caller]
pub fn ack(node: &Node, user: &str, device: &str, cursor: &str) -> Answer {
    let body = json!({"cursor": cursor}).to_string();
    Request::post("/v1/ack").bearer(&node.token(user, device)).json(body).send(node.address())
}

/// The next `n` events of a stream, which must be messages.
#[track_caller]
pub fn messages(device: &mut Device, n: usize) -> Vec<Value> {
    (0..n).map(|_| device.next_message()).collect()
}

/// Opens a stream and tells where it begins.
#[track_caller]
pub fn resumed(request: &StreamRequest) -> (Device, String) {
    let mut device = request.connect();
    let ready = device.next_event();
    assert_eq!(ready.name, "ready", "{ready:?}");
    (device, text(&ready.json()["resumed_after"]))
}

/// One part of each value.
pub fn each(values: &[Value], part: &str) -> Vec<Value> {
    values.iter().map(|value| value.pointer(part).cloned().unwrap_or_default()).collect()
}

/// A string without its quotes.
#[track_caller]
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no string: {value}")).to_owned()
}

/// A time as milliseconds, within one day of another: by its digits alone, so that a wrong form is noticed.
#[track_caller]
pub fn millis(time: &Value) -> i64 {
    let time = time.as_str().unwrap();
    assert!(time.len() == 24 && time.ends_with('Z') && time.as_bytes()[19] == b'.', "{time}");
    time.parse::<jiff::Timestamp>().unwrap().as_millisecond()
}

/// Starts the program with these keys, which must make it end by itself; gives what it said.
#[track_caller]
pub fn refused_start(set: &[String]) -> String {
    refused_start_with(&[], set)
}

/// The same with these in its environment.
#[track_caller]
pub fn refused_start_with(env: &[(&str, &str)], set: &[String]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new(crate::harness::node::PROGRAM);
    command.current_dir(&dir).env_clear().envs(env.iter().copied());
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", ""]);
    for key_and_value in set {
        command.args(["--set", key_and_value]);
    }
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let deadline = std::time::Instant::now() + SOON;
    while child.try_wait().unwrap().is_none() {
        if std::time::Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it serves with {set:?}");
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

/// The callbacks that are not done.
#[track_caller]
pub fn callbacks(node: &Node, query: &str) -> Vec<Value> {
    let mut page = node.backend().get(&format!("/v1/callbacks?{query}")).expect(200).json();
    std::mem::take(page["callbacks"].as_array_mut().unwrap())
}

/// Waits until so many callbacks are in this state.
#[track_caller]
pub fn expect_listed(node: &Node, query: &str, n: usize) -> Vec<Value> {
    eventually_is(query, || callbacks(node, query), |listed| listed.len() == n)
}

/// A node whose system calls are looked at or made to fail; `None` where the tool is missing, but never in CI.
pub fn strace(options: &[&str]) -> Option<Setup> {
    let tool = "/usr/bin/strace";
    if !std::path::Path::new(tool).exists() {
        let in_ci = std::env::vars().any(|(name, _)| name == "CI");
        assert!(!in_ci, "strace is to be installed in CI: without it nobody sees whether a 201 is durable");
        eprintln!("not tested: there is no strace");
        return None;
    }
    // -D: the program is our child, and not strace's, so that signals reach it.
    Some(Node::setup().wrapper(&[&[tool, "-D", "-f", "-qq"], options].concat()))
}
