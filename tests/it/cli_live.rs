//! The commands of the program against a node that runs (CONTRACT.md 9).

use crate::harness::*;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

/// A command as on the node's own machine, where it finds the credentials in the directory.
fn herenow(node: &Node, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_herenow"));
    command
        .env_clear()
        .current_dir(node.data_dir())
        .args(args)
        .arg("--data-dir")
        .arg(node.data_dir())
        .stdin(Stdio::null());
    command
}

fn url(node: &Node) -> String {
    format!("http://{}", node.address())
}

#[track_caller]
fn run(node: &Node, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = herenow(node, args).output().unwrap();
    assert!(status.success(), "{args:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// `herenow listen`, ended at the end of the test.
struct Listener {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Listener {
    fn start(node: &Node, args: &[&str]) -> Self {
        let url = url(node);
        let all = [&["listen"], args, &["--json", "--url", &url]].concat();
        let mut child = herenow(node, &all).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn event(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn ready_asks_the_admin_listener_and_without_one_the_api() {
    let node = Node::setup().start();
    let (api, admin) = (node.address().to_string(), node.admin_address().to_string());
    let (api_only, both) = ([api.as_str(), ""], ["127.0.0.1:1", admin.as_str()]);
    for [listen, admin] in [api_only, both] {
        let (listen, admin) = (format!("server.listen={listen}"), format!("server.admin_listen={admin}"));
        assert_eq!(run(&node, &["ready", "--set", &listen, "--set", &admin]), "ready\n");
    }
}

#[test]
fn listen_send_and_presence_work_together_without_any_configuration() {
    let node = Node::setup().self_made().start();
    let url = url(&node);
    let mut bob = Listener::start(&node, &["bob", "--device", "shell"]);
    assert_eq!(bob.event()["data"]["device"], "shell");
    let shown = run(&node, &["presence", "bob", "carol", "--url", &url]);
    assert!(shown.contains("bob    online on shell (active") && shown.contains("carol  offline"), "{shown}");
    let payload = json!({"canary": node.canary()}).to_string();
    let sent = run(&node, &["send", "--from", "alice", "--to", "bob,carol", "--online-only", &payload, "--url", &url]);
    assert!(sent.starts_with("bob    delivered to shell\ncarol  offline\n"), "{sent}");
    let event = bob.event();
    assert_eq!((&event["event"], &event["data"]["payload"].to_string()), (&json!("message"), &payload));
    let sent = run(&node, &["send", "--from", "alice", "--to", "bob", "{\"n\": 1.50}", "--url", &url]);
    assert!(sent.starts_with("bob  stored at 1\n"), "{sent}");
    assert_eq!(bob.event()["data"]["cursor"], "1");
    let asked = run(&node, &["send", "--from", "alice", "--to", "bob", "1", "--json", "--url", &url]);
    let asked: Value = serde_json::from_str(&asked).unwrap();
    assert_eq!(asked["recipients"][0]["cursor"], "2");
}

#[test]
fn a_token_of_the_shell_opens_a_stream() {
    let node = Node::setup().self_made().start();
    let token = run(&node, &["token", "bob", "--device", "phone", "--ttl", "60"]);
    let token = token.trim_end();
    node.note_secret(token);
    let mut bob = node.stream("bob", "phone").token(token).open();
    node.backend().whisper("bob");
    bob.next_message();
}

#[test]
fn a_listener_that_acknowledges_goes_on_where_it_was() {
    let node = Node::setup().self_made().start();
    for n in 1..=3 {
        node.backend().store("bob", &json!(n));
    }
    let mut bob = Listener::start(&node, &["bob", "--ack"]);
    bob.event();
    for n in 1..=3 {
        assert_eq!(bob.event()["data"]["payload"], n);
    }
    let acked = || {
        let mut again = node.stream("bob", "cli-probe").connect();
        again.next_event();
        let inbox = Request::get("/v1/inbox").bearer(&node.token("bob", "cli")).send(node.address()).expect(200).json();
        inbox["messages"].as_array().unwrap().len()
    };
    eventually_is("acknowledged", acked, |left| *left == 0);
    drop(bob);
    node.backend().store("bob", &json!(4));
    let mut bob = Listener::start(&node, &["bob", "--ack"]);
    assert_eq!(bob.event()["data"]["resumed_after"], "3");
    assert_eq!(bob.event()["data"]["payload"], 4);
}

#[test]
fn a_listener_comes_back_when_its_node_does() {
    let mut node = Node::setup().self_made().set("stream.heartbeat_s=1").start();
    let port = node.address().port();
    let mut bob = Listener::start(&node, &["bob"]);
    assert_eq!(bob.event()["event"], "ready");
    node.backend().store("bob", &json!("before"));
    assert_eq!(bob.event()["data"]["payload"], "before");
    node.kill();
    node.restart_with(Node::setup().self_made().set(&format!("server.listen=127.0.0.1:{port}")));
    node.backend().store("bob", &json!("after"));
    let ready = bob.event();
    assert_eq!((&ready["event"], &ready["data"]["resumed_after"]), (&json!("ready"), &json!("1")));
    assert_eq!(bob.event()["data"]["payload"], "after");
}

#[test]
fn a_wrong_key_is_refused_in_the_problem_s_words() {
    let node = Node::setup().self_made().start();
    let url = url(&node);
    let args = ["send", "--from", "a", "--to", "b", "1", "--url", &url, "--api-key", "hk_wrong"];
    let output = herenow(&node, &args).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("invalid_credentials") && !told.contains("hk_wrong"), "{told}");
}
