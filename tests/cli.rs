//! The program as a person or a script meets it: arguments, exit codes, what is printed where.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use herenow::credentials::DataDir;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use tempfile::TempDir;

const SECRET: &str = "a device secret of more than 32 bytes";

/// The program in an empty directory, with nothing of ours in the environment.
fn herenow(dir: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_herenow"));
    command.current_dir(dir).env_clear().stdin(Stdio::null());
    command
}

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn run(dir: &TempDir, args: &[&str]) -> Output {
    herenow(dir).args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A server that gives each connection the next answer, and tells what was asked.
fn server(answers: Vec<String>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serve = move || answers.iter().map(|answer| exchange(&listener.accept().unwrap().0, answer)).collect();
    (url, std::thread::spawn(serve))
}

fn exchange(mut stream: &TcpStream, answer: &str) -> String {
    let mut reader = BufReader::new(stream);
    let (mut head, mut body) = (String::new(), Vec::new());
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(reader.read_line(&mut head).unwrap(), 0, "{head}");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
    body.resize(length.parse().unwrap(), 0);
    reader.read_exact(&mut body).unwrap();
    stream.write_all(answer.as_bytes()).unwrap();
    head + &String::from_utf8(body).unwrap()
}

fn json(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

fn events(text: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{text}")
}

#[test]
fn help_teaches_with_examples_for_every_command() {
    let dir = dir();
    let all = stdout(&run(&dir, &["--help"]));
    for command in ["serve", "token", "send", "listen", "presence", "ready", "backup", "doctor", "openapi", "config"] {
        assert!(all.contains(&format!("\n  {command} ")), "{all}");
    }
    for command in [
        &["serve"][..],
        &["token"],
        &["send"],
        &["listen"],
        &["presence"],
        &["backup"],
        &["doctor"],
        &["ready"],
        &["openapi"],
        &["config", "check"],
    ] {
        let help = run(&dir, &[command, &["--help"]].concat());
        assert!(help.status.success());
        assert!(stdout(&help).contains(&format!("herenow {}", command.join(" "))), "{}", stdout(&help));
        assert!(stdout(&help).contains("xample") || stdout(&help).contains("TOKEN=$("), "{}", stdout(&help));
    }
    assert_eq!(run(&dir, &["sned"]).status.code(), Some(2));
}

#[test]
fn config_check_prints_what_is_in_force_and_hides_secrets() {
    let dir = dir();
    std::fs::write(dir.path().join("herenow.toml"), "[auth]\napi_keys = ['hunter2']\n").unwrap();
    let output = herenow(&dir)
        .args(["config", "check", "--set", "server.drain_s=3", "--log-level", "debug"])
        .env("HERENOW_SERVER__LISTEN", "127.0.0.1:1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let report = stdout(&output).split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "server.listen = \"127.0.0.1:1\" # HERENOW_SERVER__LISTEN",
        "server.drain_s = 3 # --set server.drain_s",
        "log.level = \"debug\" # --log-level",
        "auth.api_keys = [\"***\"] # ./herenow.toml:2:12",
        "store.inbox_max = 10000 # default",
    ] {
        assert!(report.contains(part), "{report}");
    }
    assert!(!report.contains("hunter2"));
    assert!(!dir.path().join("herenow-data").exists(), "to look is not to start");
}

#[test]
fn config_check_and_serve_tell_all_that_is_wrong() {
    let dir = dir();
    std::fs::write(dir.path().join("my.toml"), "[server]\nlisten = 5\nlisen = 6\n").unwrap();
    for command in [&["config", "check"][..], &["serve"], &[]] {
        let output = herenow(&dir)
            .args(command)
            .args(["--config", "my.toml", "--set", "server.tls.crt=x.pem"])
            .env("HERENOW_LOG__LEVEL", "loud")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let told = stderr(&output);
        for part in [
            "\n  my.toml:2:10: `server.listen` must be",
            "\n  my.toml:3:1: unknown key `server.lisen`, did you mean `server.listen`?",
            "\n  HERENOW_LOG__LEVEL: `log.level` must be",
            "\n  --set server.tls.crt: unknown key `server.tls.crt`, did you mean `server.tls.cert`?",
        ] {
            assert!(told.contains(part), "{told}");
        }
    }
    assert!(!dir.path().join("herenow-data").exists());
}

#[test]
fn a_token_is_the_only_thing_printed_and_holds_the_claims() {
    let dir = dir();
    let output = herenow(&dir)
        .args(["token", "bob", "--device", "phone", "--ttl", "60", "--set", "auth.audience=me"])
        .env("HERENOW_AUTH__DEVICE_SECRETS", SECRET)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let token = stdout(&output);
    let mut validation = Validation::new(Algorithm::HS256);
    validation.set_audience(&["me"]);
    let key = DecodingKey::from_secret(SECRET.as_bytes());
    let claims = jsonwebtoken::decode::<serde_json::Value>(token.trim_end(), &key, &validation).unwrap().claims;
    assert_eq!((&claims["sub"], &claims["device"]), (&"bob".into(), &"phone".into()));
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 60);
    assert_eq!(run(&dir, &["token", ""]).status.code(), Some(2));
}

#[test]
fn a_token_needs_no_configuration_where_herenow_was_started_before() {
    let dir = dir();
    let before = run(&dir, &["token", "bob"]);
    assert_eq!(before.status.code(), Some(1));
    assert!(stderr(&before).contains("no device secret"), "{}", stderr(&before));
    // Held, as by a server that runs: reading takes no lock.
    let held = DataDir::open(&dir.path().join("herenow-data")).unwrap();
    held.credentials().unwrap();
    let after = run(&dir, &["token", "bob"]);
    assert!(after.status.success(), "{}", stderr(&after));
}

#[test]
fn a_second_process_on_the_same_directory_is_refused() {
    let dir = dir();
    let data_dir = dir.path().join("d");
    let _held = DataDir::open(&data_dir).unwrap();
    let output = run(&dir, &["serve", "--data-dir", "d"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("another herenow process is using d"), "{}", stderr(&output));
    assert!(!data_dir.join("credentials.toml").exists());
}

#[test]
fn a_send_shows_each_recipient_and_keeps_the_payload_as_written() {
    let dir = dir();
    let answer = r#"{"id":"0199","online_only":true,"sent_at":"T","summary":{},"recipients":[{"user":"bob","outcome":"delivered","devices":["phone"]}]}"#;
    let (url, asked) = server(vec![json("200 OK", answer)]);
    let args = ["send", "--from", "alice", "--to", "bob,carol", "--online-only", "--every-device", "--ttl-ms", "9"];
    let more =
        ["--idempotency-key", "k", "--url", &url, "--api-key", "hk_1", r#"{"n":1.50,  "big":12345678901234567890}"#];
    let output = run(&dir, &[&args[..], &more].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output), "bob  delivered to phone\n0199  sent T\n");
    let asked = asked.join().unwrap().remove(0);
    assert!(asked.starts_with("POST /v1/messages HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains("authorization: Bearer hk_1\r\n") && asked.contains("idempotency-key: k\r\n"), "{asked}");
    let body = r#"{"from":"alice","to":{"users":["bob","carol"]},"type":"message","payload":{"n":1.50,  "big":12345678901234567890},"online_only":true,"deliver_to":"every_device","ttl_ms":9}"#;
    assert!(asked.ends_with(body), "{asked}");
}

#[test]
fn a_refused_send_fails_in_the_problems_words() {
    let dir = dir();
    let problem = r#"{"status":422,"code":"invalid_request","detail":"not so","errors":[{"pointer":"/to/users/0","detail":"is odd"}]}"#;
    let (url, asked) = server(vec![json("422 Unprocessable Content", problem)]);
    let output = run(&dir, &["send", "--from", "a", "--to", "b", "--url", &url, "--api-key", "k", "--json", "5"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), ""));
    assert_eq!(stderr(&output), "error: not so (invalid_request)\n  /to/users/0 is odd\n");
    asked.join().unwrap();
    let text = run(&dir, &["send", "--from", "a", "--to", "b", "--api-key", "k", "hello"]);
    assert_eq!(text.status.code(), Some(1));
    assert!(stderr(&text).contains("quote it: '\"hello\"'"), "{}", stderr(&text));
}

#[test]
fn presence_shows_who_is_where() {
    let dir = dir();
    let device = r#"{"device":"phone","state":"active","connected_at":"T","last_active_at":"T","node":"n"}"#;
    let answer = format!(
        r#"{{"users":[{{"user":"bob","online":true,"version":2,"devices":[{device}]}},{{"user":"al","online":false,"version":0,"devices":[]}}]}}"#
    );
    let (url, asked) = server(vec![json("200 OK", &answer)]);
    let output = run(&dir, &["presence", "bob", "al", "--url", &url, "--api-key", "k"]);
    assert_eq!(stdout(&output), "bob  online on phone (active, last active T)\nal   offline\n", "{}", stderr(&output));
    let asked = asked.join().unwrap().remove(0);
    assert!(asked.starts_with("POST /v1/presence/query ") && asked.ends_with(r#"{"users":["bob","al"]}"#), "{asked}");
}

#[test]
fn ready_is_an_exit_code_and_says_what_is_away() {
    let dir = dir();
    let away = json("503 Service Unavailable", r#"{"ready":false,"away":["presence","store"]}"#);
    let (url, asked) = server(vec![json("200 OK", r#"{"ready":true,"away":[]}"#), away, json("404 Not Found", "?")]);
    let yes = run(&dir, &["ready", "--url", &url]);
    assert_eq!((yes.status.code(), stdout(&yes).as_str()), (Some(0), "ready\n"), "{}", stderr(&yes));
    for told in ["error: not ready: presence, store\n", "error: 404 Not Found: ?\n"] {
        let no = run(&dir, &["ready", "--url", &url]);
        assert_eq!((no.status.code(), stdout(&no).as_str(), stderr(&no).as_str()), (Some(1), "", told));
    }
    assert!(asked.join().unwrap().iter().all(|head| head.starts_with("GET /readyz HTTP/1.1\r\n")));
    // Nobody listens there any more.
    let gone = run(&dir, &["ready", "--url", &url]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(stderr(&gone).contains("can't reach herenow at"), "{}", stderr(&gone));
}

fn listener(dir: &TempDir, url: &str, more: &[&str]) -> Child {
    let mut command = herenow(dir);
    command.args(["listen", "bob", "--url", url]).args(more).env("HERENOW_AUTH__DEVICE_SECRETS", SECRET);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_listener_comes_again_where_it_left_off_until_it_is_replaced() {
    let dir = dir();
    let message = r#"{"id":"x","from":"alice","to":{"users":["bob"]},"type":"chat","payload":{"a": 1.0},"online_only":false,"sent_at":"T","cursor":"17"}"#;
    let first = format!(
        "retry: 10\nevent: ready\ndata: {{\"resumed_after\":\"16\"}}\n\nevent: message\nid: 17\ndata: {message}\n\nevent: bye\ndata: {{\"reason\":\"rotate\"}}\n\n"
    );
    let second = "event: ready\ndata: {}\n\nevent: bye\ndata: {\"reason\":\"replaced\"}\n\n";
    let unavailable = json("503 Service Unavailable", "{}");
    let answers = vec![events(&first), json("204 No Content", ""), unavailable, events(second)];
    // The acknowledgement comes on a connection of its own while the stream is open, so it is the second exchange.
    let (url, asked) = server(answers);
    let output = listener(&dir, &url, &["--after", "earliest", "--ack"]).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output).lines().next(), Some("T  chat from alice: {\"a\": 1.0}"));
    assert!(stderr(&output).contains("connected elsewhere"), "{}", stderr(&output));
    let asked = asked.join().unwrap();
    assert!(asked[0].starts_with("GET /v1/stream?state=active&after=earliest HTTP/1.1\r\n"), "{}", asked[0]);
    assert!(asked[1].starts_with("POST /v1/ack ") && asked[1].ends_with(r#"{"cursor":"17"}"#), "{}", asked[1]);
    for again in &asked[2..] {
        assert!(again.starts_with("GET /v1/stream?state=active HTTP/1.1\r\n"), "{again}");
        assert!(again.contains("last-event-id: 17\r\n"), "{again}");
    }
}

#[test]
fn a_listener_that_is_refused_ends_and_ctrl_c_is_no_failure() {
    let dir = dir();
    let (url, _) = server(vec![json("401 Unauthorized", r#"{"code":"invalid_credentials","detail":"no"}"#)]);
    let output = listener(&dir, &url, &[]).wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(1), "error: no (invalid_credentials)\n"));

    let (url, asked) = server(vec![events("event: ready\ndata: {}\n\n")]);
    let mut child = listener(&dir, &url, &["--json"]);
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "{\"event\":\"ready\",\"data\":{}}\n");
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    asked.join().unwrap();
}

#[test]
fn openapi_is_json() {
    let document = stdout(&run(&dir(), &["openapi"]));
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert!(document["openapi"].is_string());
}
