use super::*;
use crate::config::Secret;
use crate::webhook::receiver::{Answer, Receiver, SECRET, outlet};
use std::process::Command;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

fn guard() -> Guard {
    Guard::new(vec!["169.254.0.0/16".parse().unwrap()], false)
}

fn webhook(outlet: &Outlet) -> Webhook {
    Webhook::new(outlet.url.clone().unwrap(), outlet, guard()).unwrap()
}

async fn post(outlet: &Outlet) -> Posted {
    webhook(outlet).post("evt_1", Bytes::from_static(b"{\"a\":1}"), &Traced::none()).await
}

async fn failure(outlet: &Outlet) -> Failure {
    match post(outlet).await {
        Posted::Failed(failure) => failure,
        Posted::Success => panic!("it succeeded"),
    }
}

#[tokio::test]
async fn a_post_is_signed_and_reaches_the_receiver() {
    let receiver = Receiver::always(Answer::status(204)).await;
    assert_eq!(post(&receiver.outlet()).await, Posted::Success);
    let requests = receiver.requests();
    let [request] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!((request.id(), request.body.as_str()), ("evt_1", "{\"a\":1}"));
    assert_eq!(request.header("content-type"), "application/json");
    let timestamp: i64 = request.header("webhook-timestamp").parse().unwrap();
    assert!((Timestamp::now().as_s() - timestamp).abs() < 10);
    let signer = Signer::new(&[Secret::new(SECRET)]).unwrap();
    assert_eq!(request.header("webhook-signature"), signer.sign("evt_1", timestamp, b"{\"a\":1}"));
}

/// In a process of its own, as the environment belongs to all tests of one.
#[test]
fn proxies_of_the_environment_are_ignored() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "webhook::client::tests::a_post_is_signed_and_reaches_the_receiver"]);
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        child.env(name, "http://127.0.0.1:9");
    }
    let ended = child.env_remove("NO_PROXY").env_remove("no_proxy").output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Receiver::always(Answer::status(200)).await;
    for (status, to) in
        [(302, "http://169.254.169.254/latest/meta-data".to_owned()), (307, format!("http://{}/", elsewhere.addr))]
    {
        let location: &'static str = format!("location: {to}\r\n").leak();
        let receiver = Receiver::always(Answer::Status(status, location, String::new())).await;
        let failed = failure(&receiver.outlet()).await;
        assert_eq!((failed.kind, failed.status), (FailureKind::Status, Some(status)));
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn one_deadline_holds_over_head_and_body() {
    for answer in [Answer::Hang, Answer::Drip(200), Answer::Slow(Duration::from_secs(5))] {
        let receiver = Receiver::always(answer.clone()).await;
        let outlet = Outlet { timeout: Duration::from_millis(300), ..receiver.outlet() };
        let begun = Instant::now();
        assert_eq!(failure(&outlet).await.kind, FailureKind::Timeout, "{answer:?}");
        assert!(begun.elapsed() < Duration::from_millis(1_500), "{answer:?}: {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn of_ten_gigabytes_little_is_read() {
    let receiver = Receiver::always(Answer::Endless(200)).await;
    assert_eq!(post(&receiver.outlet()).await, Posted::Success);
    receiver.now(Answer::Endless(500));
    let failed = failure(&receiver.outlet()).await;
    assert_eq!((failed.status, failed.text), (Some(500), "x".repeat(TEXT_LIMIT)));
}

#[tokio::test]
async fn what_is_no_whole_answer_is_broken_and_not_sent_again() {
    for answer in [Answer::Garbage, Answer::Close, Answer::Cut] {
        let receiver = Receiver::always(answer.clone()).await;
        assert_eq!(failure(&receiver.outlet()).await.kind, FailureKind::Broken, "{answer:?}");
        assert_eq!(receiver.requests().len(), 1, "{answer:?}");
    }
}

#[tokio::test]
async fn a_reused_connection_that_was_closed_costs_no_attempt() {
    let receiver = Receiver::always(Answer::OkThenStale).await;
    let webhook = webhook(&receiver.outlet());
    for n in 1..=5 {
        assert_eq!(webhook.post("evt_1", Bytes::from_static(b"{}"), &Traced::none()).await, Posted::Success);
        assert_eq!((receiver.requests().len(), receiver.connections()), (n, n));
    }
}

#[tokio::test]
async fn an_answer_says_when_to_come_back_and_what_never_to_repeat() {
    let receiver = Receiver::always(Answer::Status(503, "retry-after: 7\r\n", "busy\u{0}\r\n".to_owned())).await;
    let failed = failure(&receiver.outlet()).await;
    assert_eq!(
        (failed.retry_after, failed.abort, failed.text.as_str()),
        (Some(Duration::from_secs(7)), false, "busy  \n")
    );
    receiver.now(Answer::Status(429, "retry-after: soon\r\n", String::new()));
    assert_eq!(failure(&receiver.outlet()).await.retry_after, None);
    receiver.now(Answer::Status(400, "retry-after: 7\r\nwebhook-delivery: abort-message\r\n", "ü".repeat(2_000)));
    let failed = failure(&receiver.outlet()).await;
    assert_eq!((failed.retry_after, failed.abort, failed.text), (None, true, "ü".repeat(TEXT_LIMIT / 2)));
}

#[tokio::test]
async fn each_way_of_not_getting_through_has_its_name_and_shows_no_credentials() {
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain_addr = plain.local_addr().unwrap();
    let mut speaking = JoinSet::new();
    speaking.spawn(async move {
        let (mut socket, _) = plain.accept().await.unwrap();
        socket.write_all(b"HTTP/1.1 400 X\r\n\r\n").await.unwrap();
        std::future::pending::<()>().await;
    });
    let closed = { Receiver::always(Answer::Close).await.addr };
    let cases = [
        (format!("https://user:hunter2@{plain_addr}/"), FailureKind::Tls),
        (format!("http://user:hunter2@{closed}/"), FailureKind::Connect),
        ("http://user:hunter2@nowhere.invalid/".to_owned(), FailureKind::Dns),
    ];
    for (url, kind) in cases {
        assert!(!format!("{:?}", webhook(&outlet(&url))).contains("hunter2"));
        let failed = failure(&outlet(&url)).await;
        assert_eq!((failed.kind, failed.status), (kind, None), "{url}: {failed:?}");
        assert!(!failed.text.contains("hunter2") && !failed.text.is_empty(), "{failed:?}");
    }
}

#[tokio::test]
async fn a_name_that_leads_to_a_refused_address_is_not_connected_to() {
    let outlet = outlet("http://rebinding.test/");
    let resolver = GuardedResolver::new(guard(), |_| async { Ok(vec!["169.254.169.254:80".parse().unwrap()]) });
    let webhook = Webhook::resolved_by(resolver, outlet.url.clone().unwrap(), &outlet, guard()).unwrap();
    let Posted::Failed(failed) = webhook.post("evt_1", Bytes::new(), &Traced::none()).await else {
        panic!("it succeeded")
    };
    assert_eq!(failed.kind, FailureKind::Address);
    assert!(failed.text.contains("169.254.169.254 is refused"), "{}", failed.text);
}

#[test]
fn a_refused_literal_or_a_bad_secret_stops_the_start() {
    let refused = |outlet: &Outlet| Webhook::new(outlet.url.clone().unwrap(), outlet, guard()).unwrap_err().to_string();
    let said = refused(&outlet("http://u:p@0xa9.254.43518/"));
    assert_eq!(said, "url: the address 169.254.169.254 is refused by callbacks.deny_networks");
    let said = refused(&Outlet { secrets: vec![], ..outlet("http://127.0.0.1/") });
    assert_eq!(said, "secrets: no secret is set, so nothing could be signed");
}
