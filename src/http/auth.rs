//! Who calls (CONTRACT.md 2). A handler gets a [`Backend`] or a [`Device`] only if the credentials say so: there is no way around them.

use super::problem::{Code, Problem};
use crate::config::Auth;
use crate::domain::seat::{DeviceId, UserId};
use crate::domain::time::Timestamp;
use crate::token::{Identity, Tokens};
use actix_web::dev::Payload;
use actix_web::http::header::HeaderValue;
use actix_web::{FromRequest, HttpRequest, web};
use sha2::{Digest, Sha256};
use std::future::{Ready, ready};
use subtle::{Choice, ConstantTimeEq};

/// The keys and secrets that callers are measured by.
pub struct Keys {
    api_keys: Vec<[u8; 32]>,
    pub(super) tokens: Tokens,
}

impl Keys {
    /// By `auth.*`.
    pub fn new(auth: &Auth) -> Self {
        let digest = |key: &crate::config::Secret| Sha256::digest(key.expose()).into();
        Self { api_keys: auth.api_keys.iter().map(digest).collect(), tokens: Tokens::new(auth) }
    }

    /// In constant time: digests are compared, all of them, so that neither length nor place can be measured.
    fn api_key(&self, given: &str) -> Option<Backend> {
        let given: [u8; 32] = Sha256::digest(given).into();
        let found: bool = self.api_keys.iter().fold(Choice::from(0), |found, key| found | key.ct_eq(&given)).into();
        found.then_some(Backend { key: given })
    }
}

/// A caller that bears an API key.
pub(super) struct Backend {
    /// The key's digest, which tells callers apart.
    pub(super) key: [u8; 32],
}

/// A caller that bears a device token.
pub(super) struct Device {
    pub(super) user: UserId,
    /// Which device the token names, if it does.
    pub(super) named: Option<DeviceId>,
    pub(super) until: Timestamp,
}

impl Device {
    /// The device: the token's, or the one that the query names if the token names none.
    pub(super) fn device(&self, named: Option<&str>) -> Result<DeviceId, Problem> {
        let named = named.map(DeviceId::parse).transpose().map_err(|error| Problem::flaw("?device", error))?;
        match (&self.named, named) {
            (Some(own), Some(named)) if *own != named => {
                Err(Problem::new(Code::Forbidden, "the token is for another device"))
            }
            (Some(own), _) => Ok(own.clone()),
            (None, Some(named)) => Ok(named),
            (None, None) => Err(Problem::flaw("?device", "is needed, as the token names no device")),
        }
    }
}

impl From<Identity> for Device {
    fn from(identity: Identity) -> Self {
        Self { user: identity.user, named: identity.device, until: identity.until }
    }
}

/// The credential of an `Authorization: Bearer` header (RFC 6750; the scheme's case doesn't matter).
pub(super) fn bearer(header: Option<&[u8]>) -> Result<&str, Problem> {
    let Some(header) = header else {
        return Err(Problem::new(Code::MissingCredentials, "the header `Authorization: Bearer …` is needed"));
    };
    let wrong =
        || Problem::new(Code::InvalidCredentials, "the `Authorization` header is not `Bearer` and a credential");
    let text = std::str::from_utf8(header).map_err(|_| wrong())?;
    let (scheme, credential) = text.split_once(' ').ok_or_else(wrong)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(credential.trim()) } else { Err(wrong()) }
}

fn authorization(request: &HttpRequest) -> Option<&[u8]> {
    request.headers().get("authorization").map(HeaderValue::as_bytes)
}

fn backend(request: &HttpRequest) -> Result<Backend, Problem> {
    let keys = keys(request)?;
    let credential = bearer(authorization(request))?;
    if let Some(backend) = keys.api_key(credential) {
        return Ok(backend);
    }
    Err(match keys.tokens.check(credential) {
        Ok(_) => Problem::new(Code::Forbidden, "this takes an API key, not a device token"),
        Err(_) => Problem::new(Code::InvalidCredentials, "the API key is not known"),
    })
}

fn device(request: &HttpRequest) -> Result<Device, Problem> {
    by_token(keys(request)?, bearer(authorization(request))?)
}

/// The device that bears this token.
pub(super) fn by_token(keys: &Keys, token: &str) -> Result<Device, Problem> {
    if keys.api_key(token).is_some() {
        return Err(Problem::new(Code::Forbidden, "this takes a device token, not an API key"));
    }
    let identity = keys.tokens.check(token);
    identity.map(Into::into).map_err(|error| Problem::new(Code::InvalidCredentials, error.to_string()))
}

/// A missing registration would be a defect of ours: say no rather than yes.
pub(super) fn keys(request: &HttpRequest) -> Result<&Keys, Problem> {
    let keys = request.app_data::<web::Data<Keys>>();
    keys.map(|keys| keys.as_ref()).ok_or_else(|| Problem::new(Code::Internal, "no keys are loaded"))
}

// Neither waits for anything, so they fail before a body is looked at: actix runs extractors side by side.
impl FromRequest for Backend {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(backend(request))
    }
}

impl FromRequest for Device {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(device(request))
    }
}
