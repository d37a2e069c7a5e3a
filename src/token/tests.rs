#[path = "../../tests/it/harness/pair.rs"]
mod pair;

use super::*;
use crate::config::{Config, Secret};
use pair::{PUBLIC, Pair};
use serde_json::{Value, json};

fn auth(secrets: &[&str], audience: Option<&str>) -> Auth {
    let device_secrets = secrets.iter().map(|s| Secret::new(*s)).collect();
    Auth { device_secrets, audience: audience.map(Into::into), ..Config::default().auth }
}

fn tokens(secrets: &[&str], audience: Option<&str>) -> Tokens {
    Tokens::new(&auth(secrets, audience)).unwrap()
}

fn signed(claims: &Value, secret: &str) -> String {
    encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

#[test]
fn a_minted_token_is_accepted_and_says_who() {
    let tokens = tokens(&["new", "old"], Some("here"));
    let (bob, phone) = (UserId::parse("bob").unwrap(), DeviceId::parse("phone").unwrap());
    let (token, until) = tokens.mint(&bob, Some(&phone), Duration::from_mins(1)).unwrap();
    let identity = tokens.check(&token, &[]).unwrap();
    assert_eq!(identity, Identity { key: identity.key, user: bob, device: Some(phone), until });
}

#[test]
fn every_secret_is_good_and_no_other() {
    let tokens = tokens(&["new", "old"], None);
    let claims = json!({"sub": "bob", "exp": Timestamp::now().as_s() + 60});
    assert!(tokens.check(&signed(&claims, "old"), &[]).is_ok());
    assert_eq!(tokens.check(&signed(&claims, "older"), &[]), Err(BAD_SIGNATURE));
}

#[test]
fn what_is_wrong_is_said() {
    let now = Timestamp::now().as_s();
    for (claims, problem) in [
        (json!({"sub": "bob", "exp": now - 1}), "has expired"),
        (json!({"sub": "bob"}), "has no `exp`"),
        (json!({"exp": now + 60}), "has no `sub`"),
        (json!({"sub": "bob", "exp": now + 60, "nbf": now + 600}), "is not good yet"),
        (json!({"sub": "", "exp": now + 60}), "has a `sub` that is no user's name"),
        (json!({"sub": "bob", "device": "a\nb", "exp": now + 60}), "has a `device` that is no device's name"),
    ] {
        let error = tokens(&["s"], None).check(&signed(&claims, "s"), &[]).unwrap_err();
        assert_eq!(error.to_string(), format!("the device token {problem}"), "{claims}");
    }
    let other = json!({"sub": "bob", "exp": now + 60, "aud": "there"});
    assert!(tokens(&["s"], Some("here")).check(&signed(&other, "s"), &[]).is_err());
    assert!(tokens(&["s"], None).check(&signed(&other, "s"), &[]).is_ok(), "not checked unless configured");
}

#[test]
fn unsigned_and_damaged_tokens_are_refused() {
    let tokens = tokens(&["s"], None);
    let claims = json!({"sub": "bob", "exp": Timestamp::now().as_s() + 60});
    let good = signed(&claims, "s");
    let none = format!("eyJhbGciOiJub25lIn0.{}.", good.split('.').nth(1).unwrap());
    let hs512 = encode(&Header::new(Algorithm::HS512), &claims, &EncodingKey::from_secret(b"s")).unwrap();
    for bad in [&none, &hs512, &good[..good.len() - 1], "", "a.b.c", "💬"] {
        assert!(tokens.check(bad, &[]).is_err(), "{bad}");
    }
}

fn good_claims() -> Value {
    json!({"sub": "bob", "exp": Timestamp::now().as_s() + 60})
}

/// A token that is good but for its key.
fn by(pair: &Pair, kid: Option<&str>) -> String {
    pair.sign(kid, &good_claims())
}

fn with_key_of(pair: &Pair, secrets: &[&str]) -> Tokens {
    of_pem(&pair.public_pem(), secrets).unwrap()
}

fn of_pem(pem: &str, secrets: &[&str]) -> Result<Tokens, KeyFileError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, pem).unwrap();
    Tokens::new(&Auth { device_public_keys: vec![file.path().into()], ..auth(secrets, None) })
}

fn set(keys: &[Value]) -> Vec<VerifyingKey> {
    VerifyingKey::of_set(json!({"keys": keys}).to_string().as_bytes()).unwrap()
}

#[test]
fn a_key_of_a_file_verifies_by_its_own_algorithm_and_by_no_other() {
    let pairs = PUBLIC.map(Pair::new);
    for (n, pair) in pairs.iter().enumerate() {
        let tokens = with_key_of(pair, &["s"]);
        assert!(tokens.check(&by(pair, None), &[]).is_ok(), "{:?}", pair.algorithm);
        assert!(tokens.check(&by(pair, Some("a name that files don't have")), &[]).is_ok(), "{:?}", pair.algorithm);
        assert!(tokens.check(&signed(&good_claims(), "s"), &[]).is_ok(), "secrets are good beside it");
        assert_eq!(
            tokens.check(&by(&Pair::new(pair.algorithm), None), &[]),
            Err(UNKNOWN_KEY),
            "another key of its kind"
        );
        for other in pairs.iter().enumerate().filter(|(m, _)| *m != n).map(|(_, other)| other) {
            assert_eq!(
                tokens.check(&by(other, None), &[]),
                Err(UNKNOWN_KEY),
                "{:?} for {:?}",
                other.algorithm,
                pair.algorithm
            );
        }
    }
}

#[test]
fn a_public_key_is_no_secret() {
    for pair in PUBLIC.map(Pair::new) {
        let (pem, der) = (pair.public_pem(), rcgen::PublicKeyData::subject_public_key_info(&pair.keys));
        let fetched = set(&[pair.jwk(Some("k"))]);
        for secret in [pem.as_bytes(), pem.trim_end().as_bytes(), &der, pair.keys.public_key_raw()] {
            for kid in [None, Some("k")] {
                let header = Header { kid: kid.map(Into::into), ..Header::new(Algorithm::HS256) };
                let forged = encode(&header, &good_claims(), &EncodingKey::from_secret(secret)).unwrap();
                assert!(with_key_of(&pair, &["s"]).check(&forged, &fetched).is_err(), "{:?}", pair.algorithm);
                assert!(with_key_of(&pair, &[]).check(&forged, &fetched).is_err(), "{:?}", pair.algorithm);
            }
        }
    }
}

#[test]
fn a_key_of_a_set_is_found_by_its_name_or_tried_without_one() {
    for pair in PUBLIC.map(Pair::new) {
        let (other, bare) = (Pair::new(pair.algorithm), tokens(&[], None));
        let fetched = set(&[other.jwk(Some("other")), pair.jwk(Some("own"))]);
        assert!(bare.check(&by(&pair, Some("own")), &fetched).is_ok(), "{:?}", pair.algorithm);
        assert!(bare.check(&by(&pair, None), &fetched).is_ok(), "{:?}", pair.algorithm);
        assert!(bare.check(&by(&pair, Some("own")), &set(&[pair.jwk(None)])).is_ok(), "{:?}", pair.algorithm);
        assert_eq!(bare.check(&by(&pair, Some("other")), &fetched), Err(BAD_SIGNATURE), "{:?}", pair.algorithm);
        assert_eq!(bare.check(&by(&pair, Some("new")), &fetched), Err(UNKNOWN_KEY), "{:?}", pair.algorithm);
        assert_eq!(bare.check(&by(&pair, Some("own")), &[]), Err(UNKNOWN_KEY), "{:?}", pair.algorithm);
    }
    // A name that is known for another algorithm is no reason to look for more keys.
    let (rsa, ec) = (Pair::new(Algorithm::RS256), Pair::new(Algorithm::ES256));
    assert_eq!(tokens(&[], None).check(&by(&rsa, Some("k")), &set(&[ec.jwk(Some("k"))])), Err(WRONG_ALGORITHM));
}

#[test]
fn of_a_set_only_keys_for_verifying_by_our_algorithms_are_taken() {
    let [rsa, ec, ed] = PUBLIC.map(Pair::new).map(|pair| pair.jwk(Some("k")));
    let with = |jwk: &Value, name: &str, value: Value| {
        let mut jwk = jwk.clone();
        jwk[name] = value;
        jwk
    };
    assert_eq!(set(&[rsa.clone(), ec.clone(), ed.clone()]).len(), 3);
    assert_eq!(set(&[with(&rsa, "alg", Value::Null), with(&rsa, "use", json!("sig"))]).len(), 2);
    let refused = [
        json!(7),
        json!({"kty": "oct", "k": "c2VjcmV0", "alg": "HS256", "kid": "k"}),
        json!({"kty": "new", "kid": "k"}),
        with(&rsa, "use", json!("enc")),
        with(&rsa, "key_ops", json!(["encrypt"])),
        with(&rsa, "alg", json!("RS512")),
        with(&rsa, "alg", json!("HS256")),
        with(&rsa, "n", json!("AQAB")),
        with(&ec, "crv", json!("P-384")),
        with(&ec, "crv", json!("secp256k1")),
        with(&ec, "x", json!("AQAB")),
        with(&ed, "crv", json!("Ed448")),
        with(&ed, "x", json!("no base64!")),
    ];
    for jwk in &refused {
        assert_eq!(set(&[jwk.clone(), ed.clone()]).len(), 1, "{jwk}");
    }
    let none = json!({"keys": refused}).to_string();
    assert_eq!(VerifyingKey::of_set(none.as_bytes()).unwrap_err(), key::SetError::NoKey(refused.len()));
    for no_set in ["", "{}", "[]", "<html>"] {
        assert_eq!(VerifyingKey::of_set(no_set.as_bytes()).unwrap_err(), key::SetError::NoSet, "{no_set}");
    }
}

#[test]
fn a_file_without_a_public_key_is_refused_and_its_text_never_told() {
    let ec = Pair::new(Algorithm::ES256).keys;
    let small = "-----BEGIN PUBLIC KEY-----\nMFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf\n9Cnzj4p4WGeKLs1Pt8QuKUpRKfFLfRYC9AIKjbJTWit+CqvjWYzvQwECAwEAAQ==\n-----END PUBLIC KEY-----\n";
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().public_key_pem();
    for (pem, problem) in [
        (ec.serialize_pem(), "private"),
        (format!("{}{}", ec.public_key_pem(), ec.serialize_pem()), "private"),
        ("hunter2".to_owned(), "no `PUBLIC KEY`"),
        (String::new(), "no `PUBLIC KEY`"),
        (small.to_owned(), "neither RSA of 2048"),
        (p384, "neither RSA of 2048"),
    ] {
        let told = of_pem(&pem, &[]).err().unwrap().to_string();
        assert!(told.contains(problem) && !told.contains("hunter2"), "{told}");
    }
    let both = format!("{}\n{}", ec.public_key_pem(), Pair::new(Algorithm::RS256).public_pem());
    assert_eq!(of_pem(&both, &[]).unwrap().keys.len(), 2, "several in one file");
    let absent = Auth { device_public_keys: vec!["/no/such/file".into()], ..auth(&[], None) };
    assert!(Tokens::new(&absent).err().unwrap().to_string().contains("/no/such/file"));
}

#[test]
fn a_key_is_told_from_others_by_its_id() {
    let pair = Pair::new(Algorithm::ES256);
    let by_file = with_key_of(&pair, &["s"]);
    let by_token = by_file.check(&by(&pair, None), &[]).unwrap().key;
    let by_secret = by_file.check(&signed(&good_claims(), "s"), &[]).unwrap().key;
    assert_ne!(by_token, by_secret);
    assert!(by_file.has_key(by_token, &[]) && by_file.has_key(by_secret, &[]));
    let (left, fetched) = (tokens(&["s"], None), set(&[pair.jwk(Some("k"))]));
    assert!(!left.has_key(by_token, &[]) && left.has_key(by_secret, &[]));
    let by_set = left.check(&by(&pair, Some("k")), &fetched).unwrap().key;
    assert!(left.has_key(by_set, &fetched) && !left.has_key(by_set, &[]));
}

#[test]
fn what_must_be_understood_and_is_not_is_refused() {
    let header = Header { crit: Some(vec!["exp".into()]), ..Header::new(Algorithm::HS256) };
    let token = encode(&header, &good_claims(), &EncodingKey::from_secret(b"s")).unwrap();
    assert!(tokens(&["s"], None).check(&token, &[]).is_err());
}
