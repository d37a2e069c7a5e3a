//! Device tokens: JWTs (RFC 7519) that say which user and which device somebody is (CONTRACT.md 2).

use crate::config::{Auth, Secret};
use crate::domain::seat::{DeviceId, UserId};
use crate::domain::time::Timestamp;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Clocks of those who mint tokens may be ahead of ours by this much.
const NOT_BEFORE_LEEWAY_S: i64 = 60;

/// What a token says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Whose device it is.
    pub user: UserId,
    /// Which device, if the token names one.
    pub device: Option<DeviceId>,
    /// The token is good until then.
    pub until: Timestamp,
}

/// Why a token is not accepted. The words may be shown to the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the device token {0}")]
pub struct TokenError(&'static str);

#[derive(Serialize)]
struct Minted<'a> {
    sub: &'a UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<&'a DeviceId>,
    iat: i64,
    exp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
}

#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    device: Option<String>,
    exp: Option<f64>,
    nbf: Option<f64>,
}

/// Mints and checks tokens by the configured secrets.
pub struct Tokens {
    secrets: Vec<(EncodingKey, DecodingKey)>,
    audience: Option<String>,
    validation: Validation,
}

impl Tokens {
    /// By `auth.device_secrets` and `auth.audience`.
    pub fn new(auth: &Auth) -> Self {
        let key = |secret: &Secret| {
            let bytes = secret.expose().as_bytes();
            (EncodingKey::from_secret(bytes), DecodingKey::from_secret(bytes))
        };
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = 0;
        validation.set_required_spec_claims(&["exp", "sub"]);
        match &auth.audience {
            Some(audience) => {
                validation.set_required_spec_claims(&["exp", "sub", "aud"]);
                validation.set_audience(&[audience]);
            }
            None => validation.validate_aud = false,
        }
        Self { secrets: auth.device_secrets.iter().map(key).collect(), audience: auth.audience.clone(), validation }
    }

    /// A token that [`Tokens::check`] accepts for `ttl`, signed with the first secret; `None` if there is no secret.
    pub fn mint(&self, user: &UserId, device: Option<&DeviceId>, ttl: Duration) -> Option<(String, Timestamp)> {
        let (key, _) = self.secrets.first()?;
        let now = Timestamp::now();
        let until = Timestamp::from_ms(now.plus(ttl).as_s() * 1000);
        let claims = Minted { sub: user, device, iat: now.as_s(), exp: until.as_s(), aud: self.audience.as_deref() };
        let token = encode(&Header::new(Algorithm::HS256), &claims, key).ok()?;
        Some((token, until))
    }

    /// Who bears this token. Any of the secrets may have signed it, so that they can be rotated.
    pub fn check(&self, token: &str) -> Result<Identity, TokenError> {
        let mut error = TokenError("is not a JWT signed with HS256");
        for (_, key) in &self.secrets {
            match decode::<Claims>(token, key, &self.validation) {
                Ok(data) => return identity(&data.claims),
                // The other secrets may fit; what is wrong beyond the signature is wrong with each.
                Err(e) => error = explain(e.kind()),
            }
            if error != BAD_SIGNATURE {
                break;
            }
        }
        Err(error)
    }
}

const EXPIRED: TokenError = TokenError("has expired");
const BAD_SIGNATURE: TokenError = TokenError("has a signature that none of the secrets made");

fn explain(kind: &ErrorKind) -> TokenError {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the library's list of errors is open")]
    match kind {
        ErrorKind::InvalidSignature => BAD_SIGNATURE,
        ErrorKind::ExpiredSignature => EXPIRED,
        ErrorKind::InvalidAudience => TokenError("is for another audience"),
        ErrorKind::MissingRequiredClaim(claim) if claim == "exp" => TokenError("has no `exp`"),
        ErrorKind::MissingRequiredClaim(claim) if claim == "sub" => TokenError("has no `sub`"),
        ErrorKind::MissingRequiredClaim(_) => TokenError("has no `aud`"),
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => TokenError("is not signed with HS256"),
        _ => TokenError("is not a JWT signed with HS256"),
    }
}

fn identity(claims: &Claims) -> Result<Identity, TokenError> {
    let now = Timestamp::now();
    let exp = claims.exp.ok_or(TokenError("has no `exp`"))?;
    let sub = claims.sub.as_deref().ok_or(TokenError("has no `sub`"))?;
    let until = Timestamp::from_ms(seconds(exp).saturating_mul(1000));
    // The library lets a token live until the second of its `exp` is over; it is "on or after" that it must be refused (RFC 7519, 4.1.4).
    if until <= now {
        return Err(EXPIRED);
    }
    if claims.nbf.is_some_and(|nbf| seconds(nbf) > now.as_s() + NOT_BEFORE_LEEWAY_S) {
        return Err(TokenError("is not good yet"));
    }
    let user = UserId::parse(sub).map_err(|_| TokenError("has a `sub` that is no user's name"))?;
    let device = claims.device.as_deref().map(DeviceId::parse).transpose();
    let device = device.map_err(|_| TokenError("has a `device` that is no device's name"))?;
    Ok(Identity { user, device, until })
}

/// A NumericDate may have a fraction (RFC 7519, 2).
#[expect(clippy::cast_possible_truncation, reason = "a float is cast to the nearest that fits")]
fn seconds(date: f64) -> i64 {
    date as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn auth(secrets: &[&str], audience: Option<&str>) -> Auth {
        Auth {
            api_keys: vec![],
            device_secrets: secrets.iter().map(|s| Secret::new(*s)).collect(),
            audience: audience.map(Into::into),
            self_made: false,
        }
    }

    fn signed(claims: &Value, secret: &str) -> String {
        encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
    }

    #[test]
    fn a_minted_token_is_accepted_and_says_who() {
        let tokens = Tokens::new(&auth(&["new", "old"], Some("here")));
        let (bob, phone) = (UserId::parse("bob").unwrap(), DeviceId::parse("phone").unwrap());
        let (token, until) = tokens.mint(&bob, Some(&phone), Duration::from_mins(1)).unwrap();
        let identity = tokens.check(&token).unwrap();
        assert_eq!(identity, Identity { user: bob, device: Some(phone), until });
    }

    #[test]
    fn every_secret_is_good_and_no_other() {
        let tokens = Tokens::new(&auth(&["new", "old"], None));
        let claims = json!({"sub": "bob", "exp": Timestamp::now().as_s() + 60});
        assert!(tokens.check(&signed(&claims, "old")).is_ok());
        assert_eq!(tokens.check(&signed(&claims, "older")), Err(BAD_SIGNATURE));
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
            let error = Tokens::new(&auth(&["s"], None)).check(&signed(&claims, "s")).unwrap_err();
            assert_eq!(error.to_string(), format!("the device token {problem}"), "{claims}");
        }
        let other = json!({"sub": "bob", "exp": now + 60, "aud": "there"});
        assert!(Tokens::new(&auth(&["s"], Some("here"))).check(&signed(&other, "s")).is_err());
        assert!(Tokens::new(&auth(&["s"], None)).check(&signed(&other, "s")).is_ok(), "not checked unless configured");
    }

    #[test]
    fn unsigned_and_damaged_tokens_are_refused() {
        let tokens = Tokens::new(&auth(&["s"], None));
        let claims = json!({"sub": "bob", "exp": Timestamp::now().as_s() + 60});
        let good = signed(&claims, "s");
        let none = format!("eyJhbGciOiJub25lIn0.{}.", good.split('.').nth(1).unwrap());
        let hs512 = encode(&Header::new(Algorithm::HS512), &claims, &EncodingKey::from_secret(b"s")).unwrap();
        for bad in [&none, &hs512, &good[..good.len() - 1], "", "a.b.c", "💬"] {
            assert!(tokens.check(bad).is_err(), "{bad}");
        }
    }
}
