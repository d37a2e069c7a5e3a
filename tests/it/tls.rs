//! TLS: which versions are spoken, what a closed connection looks like, and a certificate that is renewed while streams are open.

use crate::harness::wire::{certified, client_config, client_config_of};
use crate::harness::*;
use crate::support::refused_start;
use rustls::pki_types::ServerName;
use rustls::version::TLS12;
use rustls::{ClientConnection, StreamOwned};
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A connection of HTTP/1.1.
fn connect(node: &Node, pem: &str) -> Tls {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let session = ClientConnection::new(client_config(pem, &[]), name).unwrap();
    let tcp = TcpStream::connect(node.address()).unwrap();
    tcp.set_read_timeout(Some(SOON)).unwrap();
    StreamOwned::new(session, tcp)
}

#[track_caller]
fn read_until(tls: &mut Tls, what: &str) {
    let mut text = String::new();
    while !text.contains(what) {
        let mut chunk = [0; 4_096];
        let n = tls.read(&mut chunk).unwrap();
        assert_ne!(n, 0, "the end, without {what}: {text}");
        text.push_str(std::str::from_utf8(&chunk[..n]).unwrap());
    }
}

#[track_caller]
fn open_stream(node: &Node, pem: &str, user: &str) -> Tls {
    let mut tls = connect(node, pem);
    let request = Request::get("/v1/stream").bearer(&node.token(user, "phone")).to_bytes(node.address());
    tls.write_all(&request).unwrap();
    read_until(&mut tls, "event: ready");
    tls
}

#[test]
fn clients_choose_their_version_and_messages_arrive_over_each() {
    let secure = Secure::new();
    let node = secure.setup().start();
    let wire = Wire::tls(&node, &secure);
    for (client, version) in [
        (wire.client(|builder| builder), reqwest::Version::HTTP_2),
        (wire.client(reqwest::ClientBuilder::http1_only), reqwest::Version::HTTP_11),
    ] {
        let stream = client.get(wire.url("/v1/stream")).bearer_auth(node.token("bob", "phone"));
        let mut stream = wire.runtime.block_on(async { stream.send().await.unwrap() });
        assert_eq!((stream.version(), stream.status().as_u16()), (version, 200));
        let body = json!({"from": "alice", "to": {"users": ["bob"]}, "type": "t", "payload": {"c": node.canary()}, "online_only": true});
        let send = client.post(wire.url("/v1/messages")).bearer_auth(node.api_key());
        let (sent_by, status, _, answer) =
            wire.ask(send.header("content-type", "application/json").body(body.to_string()));
        assert_eq!((sent_by, status), (version, 200));
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["recipients"][0]["outcome"], "delivered");
        let mut text = String::new();
        while !text.contains(answer["id"].as_str().unwrap()) {
            text.push_str(std::str::from_utf8(&wire.runtime.block_on(stream.chunk()).unwrap().unwrap()).unwrap());
        }
    }
}

#[test]
fn a_closed_connection_of_http_1_is_noticed_at_once() {
    let secure = Secure::new();
    let node = secure.setup().set("stream.heartbeat_s=300").start();
    let mut times = [vec![], vec![], vec![]];
    for _ in 0..5 {
        for (way, times) in times.iter_mut().enumerate() {
            let mut tls = open_stream(&node, &secure.pem, "bob");
            assert_eq!(node.count("herenow_streams"), 1);
            let left = Instant::now();
            match way {
                // In order, as a browser does.
                0 => {
                    tls.conn.send_close_notify();
                    tls.flush().unwrap();
                }
                // Cut, as by a kernel whose process has died.
                1 => {}
                _ => SockRef::from(&tls.sock).set_linger(Some(Duration::ZERO)).unwrap(),
            }
            drop(tls);
            eventually_is("no stream", || node.count("herenow_streams"), |streams| *streams == 0);
            times.push(left.elapsed());
        }
    }
    for mut times in times {
        times.sort();
        assert!(times[2] < Duration::from_millis(50), "{times:?}");
    }
}

#[test]
fn a_renewed_certificate_is_for_new_connections_and_open_ones_stay() {
    let mut secure = Secure::new();
    let node = secure.setup().start();
    let old = secure.pem.clone();
    let mut bob = open_stream(&node, &old, "bob");
    let of_old = Wire::tls(&node, &secure);
    let mut http2 = of_old.http2();
    let mut carol = http2.stream(&node.token("carol", "phone"));
    carol.read_until("event: ready");
    let works = |pem: &str| {
        let mut tls = connect(&node, pem);
        let request = Request::get("/healthz").header("Connection", "close").to_bytes(node.address());
        tls.write_all(&request).is_ok() && tls.read(&mut [0; 100]).is_ok_and(|n| n > 0)
    };
    secure.renew();
    eventually_is("the new certificate", || works(&secure.pem), |works| *works);
    assert!(!works(&old), "and the old one is not shown any more");
    assert!(node.log().contains("the TLS certificate was read anew"));
    // What is broken, or of no use together, changes nothing.
    let warnings = || node.log().matches("the TLS certificate can't be read anew").count();
    for (n, (name, text)) in
        [("cert.pem", "no certificate"), ("cert.pem", &certified().cert.pem()), ("key.pem", "no key")]
            .iter()
            .enumerate()
    {
        secure.put(name, text);
        eventually_is("the warning", warnings, |told| *told > n);
        assert!(works(&secure.pem), "{name}: {text}");
    }
    let told = warnings();
    let good = certified();
    secure.put("cert.pem", &good.cert.pem());
    secure.put("key.pem", &good.signing_key.serialize_pem());
    eventually_is("a good one again", || works(&good.cert.pem()), |works| *works);
    // Each fault was told once; two files can't be replaced in one instant, so one more may be of that.
    assert!((3..=4).contains(&told) && warnings() <= told + 2, "{told} {}", warnings());
    secure.pem = good.cert.pem();
    let wire = Wire::tls(&node, &secure);
    for user in ["bob", "carol"] {
        let body = json!({"from": "alice", "to": {"users": [user]}, "type": "still", "payload": {"c": node.canary()}, "online_only": true});
        let send = wire.client(|builder| builder).post(wire.url("/v1/messages")).bearer_auth(node.api_key());
        assert_eq!(wire.ask(send.header("content-type", "application/json").body(body.to_string())).1, 200);
    }
    read_until(&mut bob, "still");
    assert_eq!(carol.next_message()["type"], "still");
}

#[test]
fn files_that_will_not_do_stop_the_start() {
    let secure = Secure::new();
    let [cert, key] = secure.settings();
    let said = refused_start(std::slice::from_ref(&cert));
    assert!(said.contains("`server.tls.cert` and `server.tls.key` go together"), "{said}");
    let said = refused_start(&[cert.clone(), "server.tls.key=/no/such/key.pem".to_owned()]);
    assert!(said.contains("/no/such/key.pem: No such file"), "{said}");
    for (name, text, told) in [
        ("key.pem", "hunter2", "key.pem holds no private key in PEM"),
        ("key.pem", &certified().signing_key.serialize_pem(), "cert.pem and "),
        ("cert.pem", "hunter2", "cert.pem holds no certificate in PEM"),
    ] {
        secure.put(name, text);
        let said = refused_start(&[cert.clone(), key.clone()]);
        assert!(said.contains(told) && !said.contains("hunter2") && !said.contains("BEGIN"), "{said}");
    }
}

#[test]
fn who_speaks_no_tls_is_cut_off_and_harms_nobody() {
    let secure = Secure::new();
    let node = secure.setup().start();
    let bob = open_stream(&node, &secure.pem, "bob");
    let request = Request::get("/v1/stream").bearer(&node.token("carol", "phone")).to_bytes(node.address());
    for word in [&request[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\xff\xff", &[0; 100]] {
        let mut tcp = TcpStream::connect(node.address()).unwrap();
        tcp.set_read_timeout(Some(SOON)).unwrap();
        tcp.write_all(word).unwrap();
        let mut rest = vec![];
        // An alert, or nothing; and the end.
        let ended = tcp.read_to_end(&mut rest);
        assert!(ended.is_ok() || ended.unwrap_err().kind() == std::io::ErrorKind::ConnectionReset);
        assert!(!rest.starts_with(b"HTTP"), "{rest:?}");
    }
    let mut silent = TcpStream::connect(node.address()).unwrap();
    silent.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(silent.read(&mut [0; 10]).unwrap(), 0, "who says nothing is not waited for for ever");
    assert_eq!(node.count("herenow_streams"), 1);
    drop(bob);
}

#[test]
fn tls_1_2_is_spoken_and_a_protocol_that_is_not_ours_is_not() {
    let secure = Secure::new();
    let node = secure.setup().start();
    let ask = |config| {
        let session = ClientConnection::new(config, ServerName::try_from("127.0.0.1").unwrap()).unwrap();
        let mut tls = StreamOwned::new(session, TcpStream::connect(node.address()).unwrap());
        tls.sock.set_read_timeout(Some(SOON)).unwrap();
        let written = tls.write_all(&Request::get("/healthz").to_bytes(node.address()));
        let mut answer = [0; 12];
        written.and_then(|()| tls.read_exact(&mut answer)).map(|()| answer)
    };
    assert_eq!(ask(client_config_of(&secure.pem, &[], &[&TLS12])).unwrap(), *b"HTTP/1.1 200");
    assert!(ask(client_config(&secure.pem, &[b"h3"])).is_err());
}
