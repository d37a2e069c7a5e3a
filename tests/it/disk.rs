//! CONTRACT.md 10.4, 10.7 and 10.8: a full disk costs persisted sends and nothing else, and room brings them back.

use crate::harness::receiver::Call;
use crate::harness::*;
use crate::support::*;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longer than the store waits before it tries again.
const FULL_FOR: Duration = Duration::from_millis(1_500);

/// A way for the disk to be full, and to have room again.
trait Disk {
    /// A node whose disk will be full soon.
    fn setup(&self, setup: Setup) -> Setup;
    fn make_room(&self, node: &Node);
    /// The same node with room.
    fn roomy(&self, setup: Setup) -> Setup;
}

/// No file of the process may grow beyond a bound: writes fail as on a full disk, without any privilege.
struct Limited;

impl Disk for Limited {
    fn setup(&self, setup: Setup) -> Setup {
        // Who ignores the signal gets an error from the write itself. In blocks of 512 bytes.
        setup.wrapper(&["/bin/sh", "-c", "trap '' XFSZ; ulimit -S -f 2400; exec \"$@\"", "sh"])
    }

    fn make_room(&self, node: &Node) {
        let pid = node.pid().to_string();
        let limit = Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited:"]).status().unwrap();
        assert!(limit.success());
    }

    fn roomy(&self, setup: Setup) -> Setup {
        setup
    }
}

/// A file system of its own, which a mount needs privilege for.
struct Small {
    dir: TempDir,
    /// The beginning of a command with privilege.
    by: &'static [&'static str],
}

impl Small {
    /// `None` where it can't be mounted, but never in CI.
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        for by in [&["env"][..], &["sudo", "-n"]] {
            let mut mount = privileged(by, &["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs"], dir.path());
            if mount.output().is_ok_and(|output| output.status.success()) {
                return Some(Self { dir, by });
            }
        }
        let in_ci = std::env::vars().any(|(name, _)| name == "CI");
        assert!(!in_ci, "a file system can't be mounted, by sudo neither");
        eprintln!("not tested: no file system can be mounted here");
        None
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

fn privileged(by: &[&str], words: &[&str], path: &Path) -> Command {
    let mut command = Command::new(by[0]);
    command.args(&by[1..]).args(words).arg(path);
    command
}

impl Disk for Small {
    fn setup(&self, setup: Setup) -> Setup {
        setup.data_dir(&self.path().join("data"))
    }

    fn make_room(&self, _: &Node) {
        let mut mount = privileged(self.by, &["mount", "-o", "remount,size=64m"], self.path());
        assert!(mount.status().unwrap().success());
    }

    fn roomy(&self, setup: Setup) -> Setup {
        self.setup(setup)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = privileged(self.by, &["umount"], self.path()).status();
    }
}

/// Sends until the disk is full, not only until the log has to be moved into the database; gives the ids of what was accepted.
fn fill(node: &Node) -> Vec<String> {
    let long = "x".repeat(20_000);
    let (mut ids, mut last_accepted) = (vec![], Instant::now());
    while last_accepted.elapsed() < FULL_FOR {
        let answer = node.backend().send(chat(&["bob"], &json!({"n": ids.len(), "text": long})));
        if answer.status == 201 {
            ids.push(text(&answer.json()["id"]));
            last_accepted = Instant::now();
        } else {
            answer.problem(503, "store_unavailable");
            sleep(Duration::from_millis(20));
        }
        assert!(ids.len() < 1_000, "the disk is never full");
    }
    ids
}

fn costs_persisted_sends_alone(disk: &impl Disk) {
    let storage = Receiver::start();
    let mut node = disk.setup(setup_of(&[("storage", &storage)], &[])).start();
    let mut phone = node.device("carol", "phone");
    let mut ids = fill(&node);
    assert!(ids.len() > 5, "{}", ids.len());

    // Full: sends are refused, whatever their size, and nothing else is.
    for _ in 0..20 {
        let answer = node.backend().send(chat(&["bob", "carol"], &json!("x".repeat(40_000))));
        answer.problem(503, "store_unavailable");
    }
    node.backend().whisper("carol").expect(200);
    assert_eq!(phone.next_message()["online_only"], true);
    assert!(node.backend().is_online("carol"));
    assert_eq!(each(&whole_inbox(&node, "bob"), "/id"), ids, "what got 201 can be read, and nothing that got 503");
    assert_eq!(status_of(&node, &ids[0])["id"], json!(ids[0]));
    let mut late = node.stream("bob", "phone").after("earliest").open();
    assert_eq!(each(&messages(&mut late, ids.len()), "/id"), ids, "streams go on");
    node.backend().get("/healthz").expect(200);
    let not_ready = eventually_is("it is not ready", || node.backend().get("/readyz"), |answer| answer.status == 503);
    assert_eq!(not_ready.json()["away"], json!(["store"]), "{not_ready}");
    assert_eq!(away(&node), [false, true]);

    disk.make_room(&node);
    let again = eventually("it takes sends again", || {
        let answer = node.backend().send(chat(&["bob"], &json!("again")));
        if answer.status == 201 { Ok(text(&answer.json()["id"])) } else { Err(answer.to_string()) }
    });
    ids.push(again);
    assert_eq!(late.next_message()["cursor"], json!(ids.len().to_string()), "no number was lost to what was refused");
    eventually_is("it is ready", || node.backend().get("/readyz").status, |status| *status == 200);
    assert_eq!(away(&node), [false, false]);
    ids.extend(fill_a_little(&node));
    let told = || storage.accepted().iter().map(Call::message_id).collect::<BTreeSet<_>>();
    eventually_is("all are told of", || told().len(), |n| *n >= ids.len());
    assert_eq!(told(), ids.iter().cloned().collect::<BTreeSet<_>>(), "and nothing that got 503");
    expect_listed(&node, "", 0);

    node.kill();
    node.restart_with(disk.roomy(setup_of(&[("storage", &storage)], &[])));
    assert_eq!(each(&whole_inbox(&node, "bob"), "/id"), ids, "nothing that got 201 is lost");
    assert!(whole_inbox(&node, "carol").is_empty());
    assert!(node.stop().success());
}

/// What the metrics say of presence and of the store.
fn away(node: &Node) -> [bool; 2] {
    ["presence", "store"].map(|plane| node.metric(&format!("herenow_away{{plane=\"{plane}\"}}")) > 0.0)
}

fn fill_a_little(node: &Node) -> Vec<String> {
    (0..40).map(|n| stored(node, &chat(&["bob"], &json!({"n": n, "text": "y".repeat(20_000)})))).collect()
}

#[test]
fn a_bound_on_files_costs_persisted_sends_alone_until_it_is_lifted() {
    only_embedded!("the disk is PostgreSQL's own");
    costs_persisted_sends_alone(&Limited);
}

#[test]
fn a_full_disk_costs_persisted_sends_alone_until_there_is_room() {
    only_embedded!("the disk is PostgreSQL's own");
    if let Some(disk) = Small::mount() {
        costs_persisted_sends_alone(&disk);
    }
}

#[test]
fn a_full_disk_under_load_loses_nothing_that_was_answered_201() {
    only_embedded!("the disk is PostgreSQL's own");
    let storage = Receiver::start();
    let mut node = Limited.setup(setup_of(&[("storage", &storage)], &[])).start();
    let send = |caller: usize| {
        let mut ids = vec![];
        let mut refused = 0;
        for n in 0..60 {
            let message = chat(&["bob"], &json!({"caller": caller, "n": n, "text": "x".repeat(3_000)}));
            let answer = send_with_key(&node, &message, &format!("{caller}-{n}"));
            match answer.status {
                201 => ids.push(text(&answer.json()["id"])),
                _ => drop((answer.problem(503, "store_unavailable"), refused += 1)),
            }
        }
        (ids, refused)
    };
    let send = &send;
    let parts: Vec<(Vec<String>, u32)> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..8).map(|caller| scope.spawn(move || send(caller))).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    let refused: u32 = parts.iter().map(|(_, refused)| refused).sum();
    let ids: BTreeSet<String> = parts.into_iter().flat_map(|(ids, _)| ids).collect();
    assert!(refused > 20 && ids.len() > 20, "{refused} refused, {} accepted", ids.len());
    Limited.make_room(&node);
    eventually_is("it is ready", || node.backend().get("/readyz").status, |status| *status == 200);
    for killed in [false, true] {
        if killed {
            node.kill();
            node.restart_with(Limited.roomy(setup_of(&[("storage", &storage)], &[])));
        }
        let inbox = whole_inbox(&node, "bob");
        assert_eq!(each(&inbox, "/cursor"), (1..=ids.len()).map(|n| n.to_string()).collect::<Vec<_>>());
        let kept: BTreeSet<String> = inbox.iter().map(|message| text(&message["id"])).collect();
        assert_eq!(kept, ids, "neither less nor more than what was answered 201");
    }
    let told = || storage.accepted().iter().map(Call::message_id).collect::<BTreeSet<_>>();
    eventually_is("all are told of", &told, |told| *told == ids);
    expect_listed(&node, "", 0);
}

#[test]
fn a_node_that_starts_on_a_full_disk_says_so() {
    only_embedded!("the disk is PostgreSQL's own");
    let Some(disk) = Small::mount() else { return };
    assert!(fs::write(disk.path().join("filler"), vec![0; 5 << 20]).is_err(), "it holds 4 MiB");
    let said = refused_start(&[format!("data_dir={}", disk.path().join("data").display())]);
    assert!(said.contains("data") && !said.contains("panicked"), "{said}");
}

/// What a disk that fails now and then may do: refuse, but neither lose, repeat nor disorder.
fn fails_now_and_then(fault: &str) {
    let (traced, injected) = (format!("trace={}", fault.split(':').next().unwrap()), format!("inject={fault}"));
    let Some(setup) = strace(&["-e", &traced, "-e", &injected, "-o", "/dev/null"]) else { return };
    let storage = Receiver::start();
    let mut node = setup.set_all(&storage.settings("storage")).start();
    let mut phone = node.device("bob", "phone");
    let send = |caller: usize| {
        let mut refused = 0;
        let mut ids = vec![];
        for n in 0..50 {
            let (message, key) = (chat(&["bob"], &json!([caller, n])), format!("{caller}-{n}"));
            ids.push(eventually("it is accepted", || match send_with_key(&node, &message, &key) {
                answer if answer.status == 201 => Ok(text(&answer.json()["id"])),
                answer => {
                    answer.problem(503, "store_unavailable");
                    refused += 1;
                    Err(answer.to_string())
                }
            }));
        }
        (ids, refused)
    };
    let send = &send;
    let parts: Vec<(Vec<String>, u32)> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..4).map(|caller| scope.spawn(move || send(caller))).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    let refused: u32 = parts.iter().map(|(_, refused)| refused).sum();
    assert!(refused > 3, "the fault was hardly felt: {refused}");
    let ids: BTreeSet<String> = parts.into_iter().flat_map(|(ids, _)| ids).collect();
    let seen = messages(&mut phone, 200);
    assert_eq!(each(&seen, "/cursor"), (1..=200).map(|n| n.to_string()).collect::<Vec<_>>());
    node.kill();
    node.restart_with(setup_of(&[("storage", &storage)], &[]));
    let inbox = whole_inbox(&node, "bob");
    assert_eq!(each(&inbox, "/id"), each(&seen, "/id"), "what was shown is what is kept");
    assert_eq!(inbox.iter().map(|message| text(&message["id"])).collect::<BTreeSet<_>>(), ids);
    let told = || storage.accepted().iter().map(Call::message_id).collect::<BTreeSet<_>>();
    eventually_is("all are told of", &told, |told| *told == ids);
    expect_listed(&node, "", 0);
}

#[test]
fn fsyncs_that_fail_now_and_then_cost_refusals_alone() {
    only_embedded!("the disk is PostgreSQL's own");
    fails_now_and_then("fsync,fdatasync:error=EIO:when=20+9");
}

#[test]
fn writes_that_fail_now_and_then_cost_refusals_alone() {
    only_embedded!("the disk is PostgreSQL's own");
    fails_now_and_then("pwrite64:error=EIO:when=120+41");
}
