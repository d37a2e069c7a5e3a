//! A device token, as it is and with a right signature: claims are text from outside as well.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use herenow::config::Config;
use herenow::domain::seat::{DeviceId, UserId};
use herenow::domain::time::Timestamp;
use herenow::token::Tokens;
use hmac::{Hmac, KeyInit, Mac};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};
use sha2::Sha256;
use std::sync::LazyLock;

const SECRET: &str = "a device secret of more than 32 bytes";

static TOKENS: LazyLock<Tokens> = LazyLock::new(|| {
    let toml = format!("auth.device_secrets = ['{SECRET}', 'another device secret of 32 bytes']");
    Tokens::new(&Config::from_toml(&toml).expect("a good configuration").auth).expect("no files to read")
});

fn signed(header: &str, claims: &str) -> String {
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any length will do");
    mac.update(text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

fuzz_target!(|given: (&str, &str, &str, &str, Option<&str>, u16)| {
    let (raw, header, claims, sub, device, seconds) = given;
    assert!(TOKENS.check(raw, &[]).is_err(), "a signature was guessed, or not asked for: {raw}");
    for header in [header, r#"{"alg":"HS256"}"#] {
        let Ok(identity) = TOKENS.check(&signed(header, claims), &[]) else { continue };
        let header: Map<String, Value> = serde_json::from_str(header).expect("a header is an object");
        assert_eq!(header["alg"], "HS256");
        let claims: Map<String, Value> = serde_json::from_str(claims).expect("claims are an object");
        assert_eq!(claims["sub"], identity.user.as_str());
        assert_eq!(claims.get("device").and_then(Value::as_str), identity.device.as_ref().map(|device| device.as_str()));
        assert!(identity.until.as_s() + 1 >= Timestamp::now().as_s(), "expired");
    }
    // Claims that are as they should be, but for the names.
    let exp = Timestamp::now().as_s() + 60 + i64::from(seconds);
    let good = json!({"sub": sub, "device": device, "exp": exp}).to_string();
    let names_are_good = UserId::parse(sub).is_ok() && device.is_none_or(|device| DeviceId::parse(device).is_ok());
    match TOKENS.check(&signed(r#"{"alg":"HS256"}"#, &good), &[]) {
        Ok(identity) => assert!(names_are_good && identity.user.as_str() == sub && identity.until.as_s() == exp),
        Err(error) => assert!(!names_are_good, "{error}: {good}"),
    }
});
