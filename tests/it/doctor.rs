//! `herenow doctor` (CONTRACT.md 9): what it finds where all is well, and where something isn't.

use crate::harness::node::PROGRAM;
use crate::harness::*;
use crate::support::*;
use jsonwebtoken::Algorithm;
use rcgen::{CertificateParams, Issuer, KeyPair};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

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

/// What is said of one thing: its level and the words.
#[track_caller]
fn said_of(about: &str, data_dir: &Path, set: &[String]) -> Vec<(String, String)> {
    let said: Value = serde_json::from_slice(&doctor(data_dir, set).stdout).unwrap();
    let of_it = said["findings"].as_array().unwrap().iter().filter(|finding| finding["about"] == about);
    of_it.map(|finding| (text(&finding["level"]), text(&finding["found"]))).collect()
}

#[track_caller]
fn expect_said(said: &[(String, String)], expected: &[(&str, &str)]) {
    assert_eq!(said.len(), expected.len(), "{said:?}");
    for ((level, found), (expected_level, part)) in said.iter().zip(expected) {
        assert!(level == expected_level && found.contains(part), "{expected_level} {part}: {said:?}");
    }
}

#[test]
fn a_certificate_is_looked_at_before_clients_do() {
    only_embedded!("it looks at files alone");
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let secure = Secure::new();
    let files = secure.settings();
    let key = Path::new(files[1].split_once('=').unwrap().1);
    std::fs::set_permissions(key, Permissions::from_mode(0o600)).unwrap();
    let look = || said_of("server.tls", &data_dir, &files);
    expect_said(&look(), &[("well", "for 127.0.0.1, localhost")]);
    let pair = KeyPair::generate().unwrap();
    std::fs::write(key, pair.serialize_pem()).unwrap();
    expect_said(&look(), &[("error", "KeyMismatch")]);
    let put = |names: &[&str], days: i64| {
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        let now = SystemTime::now();
        params.not_before = (now - Duration::from_hours(24 * 400)).into();
        params.not_after = if days < 0 {
            (now - Duration::from_hours(24)).into()
        } else {
            (now + Duration::from_hours(24 * days.unsigned_abs())).into()
        };
        secure.put("cert.pem", &params.self_signed(&pair).unwrap().pem());
    };
    put(&["a.example"], 60);
    expect_said(&look(), &[("well", "for a.example")]);
    put(&["a.example"], 29);
    expect_said(&look(), &[("warning", "within 30 days")]);
    put(&["a.example"], 6);
    expect_said(&look(), &[("error", "within 7 days")]);
    put(&["a.example"], -1);
    expect_said(&look(), &[("error", "has expired")]);
    put(&[], 60);
    expect_said(&look(), &[("error", "for no name"), ("well", "a chain of 1")]);
    // Issuers of one name: the one that signed, and others that didn't.
    let [root, false_root] = [KeyPair::generate().unwrap(), KeyPair::generate().unwrap()];
    let of = |name: &str| {
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params
    };
    let middle = KeyPair::generate().unwrap();
    let issued = CertificateParams::new(vec!["a.example".to_owned()])
        .unwrap()
        .signed_by(&pair, &Issuer::new(of("middle"), &middle))
        .unwrap();
    let by = |root: &KeyPair| of("middle").signed_by(&middle, &Issuer::new(of("root"), root)).unwrap().pem();
    let [pem, last] = [issued.pem(), of("root").self_signed(&root).unwrap().pem()];
    secure.put("cert.pem", &[&*pem, &by(&root), &last].concat());
    expect_said(&look(), &[("well", "a chain of 3")]);
    secure.put("cert.pem", &[&*pem, &by(&false_root), &last].concat());
    expect_said(&look(), &[("error", "don't hold together"), ("well", "a chain of 3")]);
    secure.put("cert.pem", &[&*pem, &of("middle").self_signed(&root).unwrap().pem()].concat());
    expect_said(&look(), &[("error", "don't hold together"), ("well", "a chain of 2")]);
    let own = CertificateParams::new(vec!["a.example".to_owned()]).unwrap().self_signed(&pair).unwrap().pem();
    let mut other = CertificateParams::default();
    other.distinguished_name.push(rcgen::DnType::CommonName, "somebody else");
    secure.put("cert.pem", &(own + &other.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()));
    std::fs::set_permissions(key, Permissions::from_mode(0o644)).unwrap();
    expect_said(
        &look(),
        &[
            ("warning", "certificate 1 of the chain was not issued by"),
            ("well", "a chain of 2"),
            ("warning", "can be read by everybody"),
        ],
    );
    std::fs::remove_file(key).unwrap();
    expect_said(&look(), &[("error", "key.pem")]);
}

#[test]
fn the_keys_of_tokens_are_read_and_fetched() {
    only_embedded!("it looks at files and a document alone");
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let pair = Pair::new(Algorithm::ES256);
    let path = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let files =
        [path("good.pem", &pair.public_pem()), path("private.pem", &pair.keys.serialize_pem()), "/no/such".into()];
    let set = [format!("auth.device_public_keys={}", files.join(","))];
    expect_said(
        &said_of("auth.device_public_keys", &data_dir, &set),
        &[("well", "good.pem: ES256"), ("error", "holds a private key"), ("error", "/no/such")],
    );
    let unfit = json!({"kty": "oct", "kid": "symmetric", "k": "AAAA"});
    let server = JwksServer::of(&[pair.jwk(Some("one")), Pair::new(Algorithm::EdDSA).jwk(None), unfit]);
    let look = |more: &[&str]| {
        let more = more.iter().map(|set| (*set).to_owned());
        said_of(
            "auth.jwks_url",
            &data_dir,
            &more
                .chain([format!("auth.jwks_url={}", server.url().replace("127.0.0.1", "localhost"))])
                .collect::<Vec<_>>(),
        )
    };
    let found = "usable keys: 2: one (ES256), without kid (EdDSA); of no use here: symmetric";
    expect_said(&look(&[]), &[("well", found)]);
    expect_said(&look(&["callbacks.deny_networks=127.0.0.0/8,::1/128"]), &[("error", "deny_networks")]);
    assert_eq!(server.fetches(), 1, "the guard keeps it from what callbacks must not reach");
    server.go_away();
    expect_said(&look(&[]), &[("error", "")]);
}

#[test]
fn every_endpoint_and_the_collector_are_reached_for() {
    only_embedded!("it looks at endpoints alone");
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let there = Receiver::start();
    for (about, key, level) in [
        ("callbacks.before_send", "callbacks.before_send.url", "error"),
        ("callbacks.presence", "callbacks.presence.url", "error"),
        ("otel.endpoint", "otel.endpoint", "warning"),
    ] {
        let look = |url: &str| said_of(about, &data_dir, &[format!("{key}={url}")]);
        expect_said(&look(&format!("http://{}/", there.addr())), &[("well", "takes connections")]);
        expect_said(&look("http://127.0.0.1:1/"), &[(level, "no connection to 127.0.0.1:1")]);
    }
    assert_eq!(there.count(), 0);
}

#[test]
fn the_limit_of_open_files_is_that_of_the_herenow_that_runs() {
    only_embedded!("it looks at processes alone");
    let node = Node::setup().start();
    let look = |dir: &Path| said_of("open files", dir, &[]).remove(0).1;
    let found = look(&node.data_dir());
    assert!(found.contains(&format!("in the herenow process {} ", node.pid())), "{found}");
    let empty = tempfile::tempdir().unwrap();
    assert!(look(empty.path()).contains("in this shell, whose limit need not be the service's"));
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
