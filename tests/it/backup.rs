//! Backup and restore (docs/operations.md): what a copy made under load holds, and what becomes of devices and callbacks after it was
//! put back.

use crate::harness::node::PROGRAM;
use crate::harness::receiver::{Call, Reply};
use crate::harness::*;
use crate::support::*;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

fn backup(data_dir: &Path, to: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.env_clear().arg("backup").arg(to).arg("--data-dir").arg(data_dir).args(more);
    command.output().unwrap()
}

#[track_caller]
fn told(output: &Output, code: i32) -> String {
    let all = [&output.stdout[..], &output.stderr].concat();
    let all = String::from_utf8(all).unwrap();
    assert_eq!(output.status.code(), Some(code), "{all}");
    all
}

/// The steps of docs/operations.md: a new directory, with the copy and the credentials in it.
fn restored(copy: &Path, credentials: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::DirBuilder::new().mode(0o700).create(dir.path().join("data")).unwrap();
    fs::copy(copy, dir.path().join("data/herenow.db")).unwrap();
    fs::copy(credentials, dir.path().join("data/credentials.toml")).unwrap();
    dir
}

#[test]
fn a_backup_made_under_load_is_restored_with_all_that_was_answered_before_it() {
    only_embedded!("PostgreSQL has its own tools for it");
    let (push, storage) = (Receiver::start(), Receiver::start());
    let mut node = setup_of(&[("push", &push), ("storage", &storage)], &[]).self_made().start();
    let mut bob = node.device("bob", "phone");
    for n in 1..=5 {
        node.backend().store("bob", &json!({"before": n}));
    }
    let seen = messages(&mut bob, 5);
    assert_eq!(ack(&node, "bob", "phone", "3").status, 204);
    // From here on, callbacks are pending.
    storage.answer(Reply::Status(503));
    push.answer(Reply::Status(503));
    let pending = stored(&node, &chat(&["carol"], &json!("pending")));
    expect_listed(&node, "state=failing", 2);

    let to = tempfile::tempdir().unwrap();
    let copy = to.path().join("copy.db");
    let ended = AtomicBool::new(false);
    let (output, before, sent) = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut sent = vec![];
            while !ended.load(Ordering::Relaxed) {
                sent.push(stored(&node, &chat(&["dave"], &json!("f".repeat(20_000)))));
            }
            sent
        });
        eventually("some are sent", || whole_inbox(&node, "dave").get(20).map(|_| ()).ok_or("too few".into()));
        let before = whole_inbox(&node, "dave");
        let output = backup(&node.data_dir(), &copy, &[]);
        ended.store(true, Ordering::Relaxed);
        (output, before, sender.join().unwrap())
    });
    let said = told(&output, 0);
    assert!(said.contains("copied and checked in") && said.contains("credentials.toml as well"), "{said}");
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    let later = stored(&node, &chat(&["bob"], &json!({"after": 6})));
    assert_eq!(messages(&mut bob, 1)[0]["id"], *later);
    node.kill();

    let dir = restored(&copy, &node.data_dir().join("credentials.toml"));
    for receiver in [&push, &storage] {
        receiver.answer(Reply::Status(204));
    }
    let again =
        setup_of(&[("push", &push), ("storage", &storage)], &[]).self_made().data_dir(&dir.path().join("data")).start();
    // All that was answered before the backup began, and of what came meanwhile a beginning without holes.
    let inbox = whole_inbox(&again, "dave");
    assert!(before.len() <= inbox.len() && inbox.len() <= sent.len(), "{} {}", before.len(), inbox.len());
    assert_eq!(each(&inbox, "/id"), sent[..inbox.len()].iter().map(|id| json!(id)).collect::<Vec<_>>());
    assert_eq!(whole_inbox(&again, "bob"), seen);
    // Its credentials are the old ones, its positions too.
    assert_eq!(again.api_key(), node.api_key());
    let (mut bob, from) = resumed(&again.stream("bob", "phone"));
    assert_eq!(from, "3");
    assert_eq!(each(&messages(&mut bob, 2), "/cursor"), ["4", "5"]);
    drop(bob);
    // A device that has seen what is no more goes on from what is left, and is told.
    let mut bob = again.stream("bob", "phone").last_event_id("6").connect();
    assert_eq!(bob.next_event().name, "ready");
    let gap = bob.next_event();
    assert_eq!((gap.name.as_str(), gap.json()), ("gap", json!({"reason": "ahead", "resumed_after": "5"})));
    // Numbers go on where the copy ends.
    assert_eq!(again.backend().store("bob", &json!("new")), "6");
    assert_eq!(messages(&mut bob, 1)[0]["payload"], "new");
    // What was pending then is made.
    for receiver in [&push, &storage] {
        let told = || each(&receiver.accepted().iter().map(Call::data).collect::<Vec<_>>(), "/message/id");
        eventually_is("the pending callback is made", told, |told| told.contains(&json!(pending)));
    }
}

#[test]
fn a_backup_overwrites_nothing_and_says_what_it_needs() {
    only_embedded!("PostgreSQL has its own tools for it");
    let mut node = Node::start();
    node.backend().store("bob", &json!(1));
    let to = tempfile::tempdir().unwrap();
    let copy = to.path().join("copy.db");
    told(&backup(&node.data_dir(), &copy, &[]), 0);
    let first = fs::read(&copy).unwrap();
    node.backend().store("bob", &json!(2));
    let said = told(&backup(&node.data_dir(), &copy, &[]), 1);
    assert!(said.contains("is there already, and is not overwritten"), "{said}");
    assert_eq!(fs::read(&copy).unwrap(), first);
    let said = told(&backup(to.path(), &to.path().join("other.db"), &[]), 1);
    assert!(said.contains("there is no store in"), "{said}");
    let postgres = ["--set", "store.url=postgres://localhost/x"];
    let said = told(&backup(&node.data_dir(), &to.path().join("other.db"), &postgres), 1);
    assert!(said.contains("pg_dump"), "{said}");
    // Of a node that was stopped, or killed, as well.
    node.kill();
    told(&backup(&node.data_dir(), &to.path().join("killed.db"), &[]), 0);
    node.restart();
    assert_eq!(whole_inbox(&node, "bob").len(), 2);
    assert!(node.stop().success());
    told(&backup(&node.data_dir(), &to.path().join("stopped.db"), &[]), 0);
    assert_eq!(fs::read_dir(&to).unwrap().count(), 3);
}
