//! Device tokens by public keys: from files, and from a JWKS that rotates, is away, or is asked for too much (CONTRACT.md 2).

use crate::harness::node::DEVICE_SECRET;
use crate::harness::*;
use crate::support::refused_start;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn claims(user: &str) -> Value {
    let exp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 600;
    json!({"sub": user, "device": "phone", "exp": exp})
}

/// A token of bob's phone, which must be in no log.
fn token(node: &Node, pair: &Pair, kid: Option<&str>) -> String {
    let token = pair.sign(kid, &claims("bob"));
    node.note_secret(&token);
    token
}

/// Opens a stream and pulls an inbox.
#[track_caller]
fn accepted(node: &Node, token: &str) -> Device {
    Request::get("/v1/inbox").bearer(token).send(node.address()).expect(200);
    node.stream("bob", "phone").token(token).open()
}

#[track_caller]
fn refused(node: &Node, token: &str) {
    node.stream("bob", "phone").token(token).refused().problem(401, "invalid_credentials");
    Request::get("/v1/inbox").bearer(token).send(node.address()).problem(401, "invalid_credentials");
    // Elsewhere it is no API key either, and no reason to go and look for keys.
    Request::get("/v1/users/bob/presence").bearer(token).send(node.address()).problem(401, "invalid_credentials");
}

fn files(pairs: &[&Pair]) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let paths = pairs.iter().enumerate().map(|(n, pair)| {
        let path = directory.path().join(format!("{n}.pem"));
        std::fs::write(&path, pair.public_pem()).unwrap();
        path.to_str().unwrap().to_owned()
    });
    let set = format!("auth.device_public_keys={}", paths.collect::<Vec<_>>().join(","));
    (directory, set)
}

/// Signed with HMAC by what everybody may know.
fn forged(pair: &Pair, kid: Option<&str>) -> Vec<String> {
    let header = Header { kid: kid.map(Into::into), ..Header::new(Algorithm::HS256) };
    let pem = pair.public_pem();
    let secrets = [pem.as_bytes(), pem.trim_end().as_bytes(), pair.keys.public_key_raw(), b""];
    let sign = |secret| jsonwebtoken::encode(&header, &claims("bob"), &EncodingKey::from_secret(secret)).unwrap();
    secrets.into_iter().map(sign).collect()
}

/// The claims of a good token under a header that says `none`, with its signature and without.
fn unsigned(good: &str) -> Vec<String> {
    let (head, rest) = good.split_once('.').unwrap();
    let (claims, signature) = rest.split_once('.').unwrap();
    let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
    vec![format!("{none}.{claims}."), format!("{none}.{claims}.{signature}"), format!("{head}.{claims}.")]
}

#[test]
fn each_kind_of_key_in_a_file_is_good_for_its_algorithm_and_no_other() {
    let [rsa, ec, ed] = PUBLIC.map(Pair::new);
    let (_directory, all) = files(&[&rsa, &ec, &ed]);
    let node = Node::with(&[&all]);
    for pair in [&rsa, &ec, &ed] {
        drop(accepted(&node, &token(&node, pair, None)));
        drop(accepted(&node, &token(&node, pair, Some("any name"))));
        refused(&node, &token(&node, &Pair::new(pair.algorithm), None));
        for token in forged(pair, None) {
            refused(&node, &token);
        }
        for token in unsigned(&token(&node, pair, None)) {
            refused(&node, &token);
        }
    }
    // Secrets go on being good, and make the tokens.
    drop(node.device("bob", "phone"));
    node.backend().post("/v1/tokens", &json!({"user": "bob"})).expect(201);
    let (_directory, only_ec) = files(&[&ec]);
    let node = Node::with(&[&only_ec]);
    for other in [&rsa, &ed] {
        refused(&node, &token(&node, other, None));
    }
}

#[test]
fn with_public_keys_no_secret_is_made() {
    let ec = Pair::new(Algorithm::ES256);
    let (_directory, set) = files(&[&ec]);
    let node = Node::setup().self_made().set(&set).start();
    drop(accepted(&node, &token(&node, &ec, None)));
    // Signed with the secret that lies in the data directory.
    refused(&node, &node.token("bob", "phone"));
    node.backend().post("/v1/tokens", &json!({"user": "bob"})).problem(404, "not_found");
}

#[test]
fn a_bad_key_file_or_url_stops_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key.pem");
    let set = [format!("auth.device_public_keys={}", path.display())];
    assert!(refused_start(&set).contains("key.pem: No such file"));
    std::fs::write(&path, Pair::new(Algorithm::ES256).keys.serialize_pem()).unwrap();
    let said = refused_start(&set);
    assert!(said.contains("key.pem: holds a private key") && !said.contains("BEGIN"), "{said}");
    for url in ["http://169.254.169.254/keys", "http://[::ffff:a9fe:a9fe]/keys"] {
        let said = refused_start(&[format!("auth.jwks_url={url}")]);
        assert!(said.contains("`auth.jwks_url` leads to 169.254.169.254"), "{said}");
    }
}

#[test]
fn each_kind_of_key_in_a_set_is_good_for_its_algorithm_and_no_other() {
    let [rsa, ec, ed] = PUBLIC.map(Pair::new);
    let of_secret = json!({"kty": "oct", "kid": "shared", "k": "c2VjcmV0", "alg": "HS256"});
    let server = JwksServer::of(&[rsa.jwk(Some("r")), ec.jwk(Some("e")), ed.jwk(Some("d")), of_secret]);
    let node = Node::with(&[&format!("auth.jwks_url={}", server.url())]);
    for (pair, kid) in [(&rsa, "r"), (&ec, "e"), (&ed, "d")] {
        drop(accepted(&node, &token(&node, pair, Some(kid))));
        drop(accepted(&node, &token(&node, pair, None)));
        for wrong in ["r", "e", "d", "shared", ""].iter().filter(|wrong| **wrong != kid) {
            refused(&node, &token(&node, pair, Some(wrong)));
        }
        for token in forged(pair, Some(kid)) {
            refused(&node, &token);
        }
        for token in unsigned(&token(&node, pair, Some(kid))) {
            refused(&node, &token);
        }
    }
    let header = Header { kid: Some("shared".into()), ..Header::new(Algorithm::HS256) };
    let by_shared = jsonwebtoken::encode(&header, &claims("bob"), &EncodingKey::from_secret(b"secret")).unwrap();
    refused(&node, &by_shared);
    // With the secrets of the configuration beside it, names in the header mean nothing to those.
    let header = Header { kid: Some("r".into()), ..Header::new(Algorithm::HS256) };
    let by_own = EncodingKey::from_secret(DEVICE_SECRET.as_bytes());
    let by_own = jsonwebtoken::encode(&header, &claims("bob"), &by_own).unwrap();
    node.note_secret(&by_own);
    drop(accepted(&node, &by_own));
}

#[test]
fn a_new_key_of_a_set_is_found_when_the_first_token_bears_its_name() {
    let [old, new] = [Pair::new(Algorithm::ES256), Pair::new(Algorithm::ES256)];
    let server = JwksServer::of(&[old.jwk(Some("old"))]);
    let node = Node::with(&[&format!("auth.jwks_url={}", server.url())]);
    drop(accepted(&node, &token(&node, &old, Some("old"))));
    let resting = Instant::now();
    server.set(&[old.jwk(Some("old")), new.jwk(Some("new"))]);
    let by_new = token(&node, &new, Some("new"));
    // Not at once, as the set has just been fetched; but soon.
    let seen = eventually_is(
        "the new key",
        || Request::get("/v1/inbox").bearer(&by_new).send(node.address()).status,
        |status| *status == 200,
    );
    assert!(resting.elapsed() < Duration::from_secs(8), "{seen}: {:?}", resting.elapsed());
    drop(accepted(&node, &by_new));
    assert!(server.fetches() <= 3, "{}", server.fetches());
}

#[test]
fn the_streams_of_a_key_that_left_the_set_end() {
    let [old, new] = [Pair::new(Algorithm::ES256), Pair::new(Algorithm::EdDSA)];
    let server = JwksServer::of(&[old.jwk(Some("old"))]);
    let node = Node::with(&[&format!("auth.jwks_url={}", server.url())]);
    let by_old = token(&node, &old, Some("old"));
    let mut bob = accepted(&node, &by_old);
    let ticket = bob.ticket();
    let mut other = node.device("carol", "phone");
    server.set(&[new.jwk(Some("new"))]);
    let by_new = token(&node, &new, Some("new"));
    eventually_is(
        "the new key",
        || Request::get("/v1/inbox").bearer(&by_new).send(node.address()).status,
        |status| *status == 200,
    );
    bob.expect_bye("unauthorized");
    refused(&node, &by_old);
    node.stream("bob", "phone").without_header().query("ticket", &ticket).refused().problem(401, "invalid_credentials");
    node.backend().whisper("carol").expect(200);
    assert_eq!(other.next_message()["type"], "typing", "who had another key stays");
}

#[test]
fn a_flood_of_unknown_names_costs_few_fetches() {
    let pair = Pair::new(Algorithm::ES256);
    let server = JwksServer::of(&[pair.jwk(Some("known"))]);
    let node = Node::with(&[&format!("auth.jwks_url={}", server.url())]);
    let begun = Instant::now();
    drop(accepted(&node, &token(&node, &pair, Some("known"))));
    let tokens: Vec<_> = (0..20).map(|n| pair.sign(Some(&format!("unknown-{n}")), &claims("bob"))).collect();
    let ask = |token: &String| Request::get("/v1/inbox").bearer(token).send(node.address());
    // Past two rests, so that fetches could go on.
    while begun.elapsed() < Duration::from_secs(12) {
        std::thread::scope(|scope| {
            for token in &tokens {
                scope.spawn(|| ask(token).problem(401, "invalid_credentials"));
            }
        });
    }
    let most = 1 + usize::try_from(begun.elapsed().as_secs()).unwrap() / 5 + 1;
    assert!((2..=most).contains(&server.fetches()), "{} fetches in {:?}", server.fetches(), begun.elapsed());
    drop(accepted(&node, &token(&node, &pair, Some("known"))));
}

#[test]
fn known_keys_stay_while_their_source_is_away_and_unknown_ones_are_not_called_wrong() {
    let [known, other] = [Pair::new(Algorithm::ES256), Pair::new(Algorithm::ES256)];
    let server = JwksServer::of(&[known.jwk(Some("known"))]);
    let node = Node::with(&[&format!("auth.jwks_url={}", server.url())]);
    let mut bob = accepted(&node, &token(&node, &known, Some("known")));
    let by_other = token(&node, &other, Some("other"));
    let ways: [fn(&JwksServer); 4] = [
        JwksServer::go_away,
        |server| server.answer(500, "{}"),
        |server| server.answer(302, "{\"keys\":[]}"),
        |server| server.answer(200, "{\"keys\":[]}"),
    ];
    for spoil in ways {
        spoil(&server);
        let fetches = server.fetches();
        // Asked until it has been looked for once more.
        eventually_is(
            "the answer while it is away",
            || {
                let answer = Request::get("/v1/inbox").bearer(&by_other).send(node.address());
                (answer.status, server.fetches() > fetches)
            },
            |seen| *seen == (503, true),
        );
        let answer = node.stream("bob", "phone").token(&by_other).refused();
        answer.problem(503, "keys_unavailable");
        Request::get("/v1/inbox").bearer(&bob.token).send(node.address()).expect(200);
        node.backend().whisper("bob").expect(200);
        assert_eq!(bob.next_message()["type"], "typing");
    }
    server.set(&[known.jwk(Some("known")), other.jwk(Some("other"))]);
    eventually_is(
        "the source is back",
        || Request::get("/v1/inbox").bearer(&by_other).send(node.address()).status,
        |status| *status == 200,
    );
}

#[test]
fn a_node_serves_though_its_keys_were_never_had() {
    let pair = Pair::new(Algorithm::ES256);
    let server = JwksServer::of(&[]);
    server.go_away();
    let node = Node::with(&[&format!("auth.jwks_url={}", server.url())]);
    let by_pair = token(&node, &pair, Some("k"));
    node.stream("bob", "phone").token(&by_pair).refused().problem(503, "keys_unavailable");
    drop(node.device("bob", "tablet"));
    node.backend().whisper("bob").expect(200);
    assert!(node.log().contains("the keys at auth.jwks_url can't be fetched"));
    server.set(&[pair.jwk(Some("k"))]);
    eventually_is(
        "the keys",
        || Request::get("/v1/inbox").bearer(&by_pair).send(node.address()).status,
        |status| *status == 200,
    );
}
