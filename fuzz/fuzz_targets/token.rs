//! A device token, as it is and with a right signature: claims are text from outside as well.
#![no_main]

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use herenow::config::Config;
use herenow::domain::time::Timestamp;
use herenow::token::Tokens;
use hmac::{Hmac, KeyInit, Mac};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};
use sha2::Sha256;
use std::sync::LazyLock;

const SECRET: &str = "a device secret of more than 32 bytes";

static TOKENS: LazyLock<Tokens> = LazyLock::new(|| {
    let toml = format!("auth.device_secrets = ['{SECRET}', 'another device secret of 32 bytes']");
    Tokens::new(&Config::from_toml(&toml).expect("a good configuration").auth)
});

fn signed(header: &str, claims: &str) -> String {
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("any length will do");
    mac.update(text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

fuzz_target!(|given: (&str, &str, &str)| {
    let (raw, header, claims) = given;
    assert!(TOKENS.check(raw).is_err(), "a signature was guessed, or not asked for: {raw}");
    for header in [header, r#"{"alg":"HS256"}"#] {
        let Ok(identity) = TOKENS.check(&signed(header, claims)) else { continue };
        let header: Map<String, Value> = serde_json::from_str(header).expect("a header is an object");
        assert_eq!(header["alg"], "HS256");
        let claims: Map<String, Value> = serde_json::from_str(claims).expect("claims are an object");
        assert_eq!(claims["sub"], identity.user.as_str());
        assert_eq!(claims.get("device").and_then(Value::as_str), identity.device.as_ref().map(|device| device.as_str()));
        assert!(identity.until.as_s() + 1 >= Timestamp::now().as_s(), "expired");
    }
});
