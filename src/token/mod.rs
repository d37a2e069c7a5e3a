//! Device tokens: JWTs (RFC 7519) that say which user and which device somebody is (CONTRACT.md 2).

mod jwks;
mod key;
#[cfg(test)]
mod tests;

pub use jwks::{Jwks, JwksError};
pub use key::{KeyFileError, VerifyingKey};

use crate::config::Auth;
use crate::domain::seat::{DeviceId, KeyId, UserId};
use crate::domain::time::Timestamp;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, EncodingKey, Header, Validation, decode, decode_header, encode};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
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
    /// The key that made its signature.
    pub key: KeyId,
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

/// Mints and checks tokens by what is configured.
pub struct Tokens {
    signing: Option<EncodingKey>,
    keys: Vec<VerifyingKey>,
    audience: Option<String>,
    /// One for each algorithm that is taken: the library would let a key serve any of several.
    validations: [Validation; 4],
}

const ALGORITHMS: [Algorithm; 4] = [Algorithm::HS256, Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];

impl Tokens {
    /// By `auth.device_secrets`, `auth.device_public_keys` and `auth.audience`.
    pub fn new(auth: &Auth) -> Result<Self, KeyFileError> {
        let mut keys: Vec<_> = auth.device_secrets.iter().map(VerifyingKey::of_secret).collect();
        for path in &auth.device_public_keys {
            keys.extend(VerifyingKey::of_file(path)?);
        }
        let validations = ALGORITHMS.map(|algorithm| validation(algorithm, auth.audience.as_deref()));
        let signing = auth.device_secrets.first().map(|secret| EncodingKey::from_secret(secret.expose().as_bytes()));
        Ok(Self { signing, keys, audience: auth.audience.clone(), validations })
    }

    /// A token that [`Tokens::check`] accepts for `ttl`, signed with the first secret; `None` if there is no secret.
    pub fn mint(&self, user: &UserId, device: Option<&DeviceId>, ttl: Duration) -> Option<(String, Timestamp)> {
        let key = self.signing.as_ref()?;
        let now = Timestamp::now();
        let until = Timestamp::from_ms(now.plus(ttl).as_s() * 1000);
        let claims = Minted { sub: user, device, iat: now.as_s(), exp: until.as_s(), aud: self.audience.as_deref() };
        let token = encode(&Header::new(Algorithm::HS256), &claims, key).ok()?;
        Some((token, until))
    }

    /// Who bears this token. Any of the keys may have signed it, so that they can be rotated; `fetched` are those of a [`Jwks`].
    pub fn check(&self, token: &str, fetched: &[VerifyingKey]) -> Result<Identity, TokenError> {
        let header = decode_header(token).map_err(|error| explain(error.kind()))?;
        if header.crit.is_some() {
            return Err(TokenError("has a critical header, which is not understood"));
        }
        let validation = self.validations.iter().find(|validation| validation.algorithms.contains(&header.alg));
        let validation = validation.ok_or(WRONG_ALGORITHM)?;
        // Keys that are configured have no names.
        let is_named = |key: &VerifyingKey| key.kid.is_some() && key.kid == header.kid;
        let may_fit = |key: &&VerifyingKey| {
            let named_otherwise = key.kid.is_some() && header.kid.is_some() && !is_named(key);
            key.algorithm == header.alg && !named_otherwise
        };
        let mut error = WRONG_ALGORITHM;
        for key in self.keys.iter().chain(fetched).filter(may_fit) {
            match decode::<Claims>(token, &key.key, validation) {
                Ok(data) => return identity(&data.claims, key.id),
                // Another key may fit; what is wrong beyond the signature is wrong with each.
                Err(e) => error = explain(e.kind()),
            }
            if error != BAD_SIGNATURE {
                return Err(error);
            }
        }
        let is_public = header.alg != Algorithm::HS256;
        Err(if is_public && !fetched.iter().any(is_named) { UNKNOWN_KEY } else { error })
    }

    /// Whether these are the keys of another, in any order.
    pub fn has_keys_of(&self, other: &Self) -> bool {
        let ids = |tokens: &Self| tokens.keys.iter().map(|key| key.id).collect::<HashSet<_>>();
        ids(self) == ids(other)
    }

    /// Whether a stream that was opened by this key may stay open.
    pub fn has_key(&self, id: KeyId, fetched: &[VerifyingKey]) -> bool {
        self.keys.iter().chain(fetched).any(|key| key.id == id)
    }
}

fn validation(algorithm: Algorithm, audience: Option<&str>) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.leeway = 0;
    validation.set_required_spec_claims(&["exp", "sub"]);
    match audience {
        Some(audience) => {
            validation.set_required_spec_claims(&["exp", "sub", "aud"]);
            validation.set_audience(&[audience]);
        }
        None => validation.validate_aud = false,
    }
    validation
}

const EXPIRED: TokenError = TokenError("has expired");
const BAD_SIGNATURE: TokenError = TokenError("has a signature that none of the keys made");
const WRONG_ALGORITHM: TokenError = TokenError("is signed with an algorithm that its key is not for");
const UNKNOWN_KEY: TokenError = TokenError("is signed with a key that is not known");
const NO_JWT: TokenError = TokenError("is no JWT signed with HS256, RS256, ES256 or EdDSA");

impl TokenError {
    /// Somebody who knows more keys might accept it.
    pub fn is_unknown_key(self) -> bool {
        self == UNKNOWN_KEY
    }
}

fn explain(kind: &ErrorKind) -> TokenError {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the library's list of errors is open")]
    match kind {
        ErrorKind::InvalidSignature => BAD_SIGNATURE,
        ErrorKind::ExpiredSignature => EXPIRED,
        ErrorKind::InvalidAudience => TokenError("is for another audience"),
        ErrorKind::MissingRequiredClaim(claim) if claim == "exp" => TokenError("has no `exp`"),
        ErrorKind::MissingRequiredClaim(claim) if claim == "sub" => TokenError("has no `sub`"),
        ErrorKind::MissingRequiredClaim(_) => TokenError("has no `aud`"),
        _ => NO_JWT,
    }
}

fn identity(claims: &Claims, key: KeyId) -> Result<Identity, TokenError> {
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
    Ok(Identity { user, device, until, key })
}

/// A NumericDate may have a fraction (RFC 7519, 2).
#[expect(clippy::cast_possible_truncation, reason = "a float is cast to the nearest that fits")]
fn seconds(date: f64) -> i64 {
    date as i64
}
