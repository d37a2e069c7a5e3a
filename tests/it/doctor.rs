//! `herenow doctor` (CONTRACT.md 9): what it finds where all is well, and where something isn't.

use crate::harness::node::PROGRAM;
use crate::harness::*;
use crate::support::*;
use std::path::Path;
use std::process::{Command, Output};

fn doctor(data_dir: &Path, set: &[String]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.env_clear().args(["doctor", "--json", "--data-dir"]).arg(data_dir);
    for key_and_value in set {
        command.args(["--set", key_and_value]);
    }
    command.output().unwrap()
}

/// The findings that are not well, but for the limit of open files and the free space, which are those of the machine that the tests run on.
#[track_caller]
fn complaints(data_dir: &Path, set: &[String]) -> Vec<(String, String, String)> {
    let output = doctor(data_dir, set);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let code = match said["verdict"].as_str().unwrap() {
        "well" => 0,
        "warning" => 1,
        "error" => 2,
        other => panic!("{other}"),
    };
    assert_eq!(output.status.code(), Some(code), "{said}");
    let findings = said["findings"].as_array().unwrap();
    let worst = |level: &str| findings.iter().any(|finding| finding["level"] == level);
    assert_eq!(code, if worst("error") { 2 } else { i32::from(worst("warning")) }, "{said}");
    let wrong = findings
        .iter()
        .filter(|finding| finding["level"] != "well" && finding["about"] != "open files" && finding["about"] != "disk");
    wrong.map(|finding| (text(&finding["level"]), text(&finding["about"]), text(&finding["found"]))).collect()
}

/// Looks at a directory that nobody works with; each file that was there is as it was.
#[track_caller]
fn complaints_at_rest(dir: &Path, set: &[String]) -> Vec<(String, String, String)> {
    let files = || -> Vec<_> {
        let paths = ["herenow.db", "herenow.db-wal", "credentials.toml"].map(|name| dir.join(name));
        paths.map(|path| std::fs::read(path).unwrap_or_default()).into()
    };
    let before = files();
    let complaints = complaints(dir, set);
    assert!(before == files(), "a file has changed");
    complaints
}

#[test]
fn a_node_that_works_is_well_and_notices_nothing() {
    only_embedded!("it looks at the SQLite store; those of the cluster are looked at by their own tests");
    let (push, storage) = (Receiver::start(), Receiver::start());
    let set = [push.settings("push"), storage.settings("storage")].concat();
    let mut node = Node::setup().set_all(&set).set("limits.idempotency_window_s=1").start();
    let mut bob = node.device("bob", "phone");
    for n in 0..50 {
        stored(&node, &chat(&["bob", "carol"], &json!(n)));
        send_with_key(&node, &chat(&["bob"], &json!(n)), &n.to_string()).expect(201);
    }
    messages(&mut bob, 100);
    push.expect_callbacks(50);
    assert_eq!(complaints(&node.data_dir(), &set), []);
    // It posts nothing, and its connection to the endpoint is no request.
    assert_eq!(push.count(), 50);
    node.backend().store("bob", &json!("after"));
    messages(&mut bob, 1);
    drop(bob);
    node.kill();
    assert_eq!(complaints_at_rest(&node.data_dir(), &set), []);
    node.restart();
    assert!(node.stop().success());
    assert_eq!(complaints_at_rest(&node.data_dir(), &set), []);
}

#[test]
fn callbacks_that_nobody_makes_and_an_endpoint_that_is_not_there_are_told() {
    only_embedded!("it looks at the SQLite store; those of the cluster are looked at by their own tests");
    let push = Receiver::start();
    push.answer_by(|_| receiver::Reply::Hang);
    let mut node = node_of(&[("push", &push)], &[]);
    stored(&node, &chat(&["bob"], &json!(1)));
    node.kill();
    push.set_down(true);
    let without = complaints(&node.data_dir(), &[]);
    let [(level, about, found)] = &without[..] else { panic!("{without:?}") };
    assert_eq!((level.as_str(), about.as_str()), ("warning", "callbacks.push"));
    assert!(found.starts_with("1 callbacks wait, but no worker makes them"), "{found}");
    let down = complaints(&node.data_dir(), &["callbacks.push.url=http://127.0.0.1:1/secret".into()]);
    let [(level, _, found)] = &down[..] else { panic!("{down:?}") };
    assert!(
        level == "error" && found.starts_with("no connection to 127.0.0.1:1") && !found.contains("secret"),
        "{found}"
    );
    let denied = ["callbacks.push.url=http://localhost:1".into(), "callbacks.deny_networks=127.0.0.0/8,::1/128".into()];
    let denied = complaints(&node.data_dir(), &denied);
    assert!(denied[0].2.contains("refused by callbacks.deny_networks"), "{denied:?}");
}

#[test]
fn a_wrong_configuration_is_told_with_each_of_its_places() {
    only_embedded!("it looks at the SQLite store; those of the cluster are looked at by their own tests");
    let dir = tempfile::tempdir().unwrap();
    let wrong = complaints(&dir.path().join("data"), &["stream.max=0".into(), "server.lisen=1".into()]);
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    assert!(wrong.iter().all(|(level, about, _)| level == "error" && about == "configuration"));
    let unwise = complaints(&dir.path().join("data"), &["auth.device_secrets=short".into()]);
    assert!(unwise.len() == 1 && unwise[0].0 == "warning" && !unwise[0].2.contains("`short`"), "{unwise:?}");
    assert!(!dir.path().join("data").exists());
}

#[test]
fn a_person_reads_lines() {
    only_embedded!("it looks at the SQLite store; those of the cluster are looked at by their own tests");
    let mut command = Command::new(PROGRAM);
    let output = command.env_clear().args(["doctor", "--set", "server.lisen=1"]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("error    configuration: --set server.lisen: unknown key"), "{said}");
    assert!(
        said.ends_with("\n         -> mend it: herenow does not start with it\nerrors: 1, warnings: 0\n"),
        "{said}"
    );
}
