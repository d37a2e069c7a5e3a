//! Who calls (CONTRACT.md 2). A handler gets a [`Backend`] or a [`Device`] only if the credentials say so: there is no way around them.

use super::problem::{Code, Problem};
use crate::config::{Config, Secret};
use crate::domain::seat::{DeviceId, KeyId, UserId};
use crate::domain::time::Timestamp;
use crate::relay::handle::Relay;
use crate::token::{Identity, Jwks, JwksError, KeyFileError, TokenError, Tokens, VerifyingKey};
use crate::webhook::client::SetupError;
use crate::webhook::guard::Guard;
use actix_web::dev::Payload;
use actix_web::http::header::HeaderValue;
use actix_web::{FromRequest, HttpRequest, web};
use sha2::{Digest, Sha256};
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use subtle::{Choice, ConstantTimeEq};
use tokio::sync::watch;

/// Why the keys can't be used as they are configured.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file of `auth.device_public_keys`.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// `auth.jwks_url` will not do.
    #[error("auth.jwks_url: {0}")]
    Setup(#[from] SetupError),
    /// There are no keys at a new `auth.jwks_url`.
    #[error("auth.jwks_url: {0}")]
    Jwks(#[from] JwksError),
}

/// What is accepted at one time.
#[derive(Clone)]
pub struct Accepted {
    api_keys: Arc<[[u8; 32]]>,
    tokens: Arc<Tokens>,
    jwks: Option<Arc<Jwks>>,
    self_made: bool,
}

impl Accepted {
    /// By `auth.*`. Keys at a URL are those that are known of it already, or none yet.
    fn new(config: &Config, known: Option<&Arc<Jwks>>) -> Result<Self, KeysError> {
        let digest = |key: &Secret| Sha256::digest(key.expose()).into();
        let guard = Guard::of(&config.callbacks);
        let jwks = config.auth.jwks_url.clone().map(|url| match known.filter(|known| known.is_of(&url, &guard)) {
            Some(known) => Ok(Arc::clone(known)),
            None => Jwks::new(url, guard.clone()).map(Arc::new),
        });
        Ok(Self {
            api_keys: config.auth.api_keys.iter().map(digest).collect(),
            tokens: Arc::new(Tokens::new(&config.auth)?),
            jwks: jwks.transpose()?,
            self_made: config.auth.self_made,
        })
    }

    /// Whether these are the same keys of device tokens as those in force, apart from fetched ones.
    pub fn has_keys_of(&self, keys: &Keys) -> bool {
        self.tokens.has_keys_of(&keys.now().tokens)
    }

    fn fetched(&self) -> Arc<[VerifyingKey]> {
        self.jwks.as_ref().map(|jwks| jwks.keys()).unwrap_or_default()
    }
}

/// The keys and secrets that callers are measured by. They may be replaced while others are being measured.
pub struct Keys(watch::Sender<Accepted>);

impl Keys {
    /// By `auth.*`.
    pub fn new(config: &Config) -> Result<Self, KeysError> {
        Ok(Self(watch::Sender::new(Accepted::new(config, None)?)))
    }

    /// What another configuration would accept; nothing is changed yet. Keys at a new URL are fetched, for without them it would lock
    /// everybody out.
    pub async fn prepare(&self, config: &Config) -> Result<Accepted, KeysError> {
        let now = self.now();
        let accepted = Accepted::new(config, now.jwks.as_ref())?;
        if let Some(jwks) = accepted.jwks.as_ref().filter(|jwks| !now.jwks.iter().any(|known| Arc::ptr_eq(known, jwks)))
        {
            jwks.fetch().await?;
        }
        Ok(accepted)
    }

    /// From now on this is accepted, and streams that were opened by anything else end.
    pub fn replace(&self, accepted: Accepted, relay: &Relay) {
        self.0.send_replace(accepted);
        relay.end_unauthorized(|key| self.has_key(key));
    }

    /// Keeps the keys at `auth.jwks_url` fresh, and ends the streams of those that have gone from there.
    pub async fn keep_fresh(&self, relay: &Relay) {
        let mut accepted = self.0.subscribe();
        loop {
            let jwks = accepted.borrow_and_update().jwks.clone();
            let fresh = async {
                match &jwks {
                    Some(jwks) => jwks.run(|| relay.end_unauthorized(|key| self.has_key(key))).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = fresh => {}
                _ = accepted.changed() => {}
            }
        }
    }

    /// Whether the credentials are those that herenow made for itself, so that whoever can read them may do anything.
    pub(super) fn are_self_made(&self) -> bool {
        self.0.borrow().self_made
    }

    fn now(&self) -> Accepted {
        self.0.borrow().clone()
    }

    /// In constant time: digests are compared, all of them, so that neither length nor place can be measured.
    fn api_key(&self, given: &str) -> Option<Backend> {
        let given: [u8; 32] = Sha256::digest(given).into();
        let keys = self.now().api_keys;
        let found: bool = keys.iter().fold(Choice::from(0), |found, key| found | key.ct_eq(&given)).into();
        found.then_some(Backend { key: given })
    }

    /// Who bears this token, by the keys that are known now.
    fn check(&self, token: &str) -> Result<Identity, TokenError> {
        let now = self.now();
        now.tokens.check(token, &now.fetched())
    }

    /// The same; but a key that is not known is looked for where keys come from.
    async fn check_thoroughly(&self, token: &str) -> Result<Identity, Problem> {
        let mut checked = self.check(token);
        if let (Err(error), Some(jwks)) = (&checked, self.now().jwks)
            && error.is_unknown_key()
        {
            jwks.look_again().await;
            checked = self.check(token);
            if jwks.is_away() && checked.as_ref().is_err_and(|error| error.is_unknown_key()) {
                let detail = "the token's key is not known, and the keys can't be fetched at the moment";
                return Err(Problem::new(Code::KeysUnavailable, detail));
            }
        }
        checked.map_err(|error| Problem::new(Code::InvalidCredentials, error.to_string()))
    }

    /// Whether a stream that was opened by a token of this key may be open.
    pub(super) fn has_key(&self, key: KeyId) -> bool {
        let now = self.now();
        now.tokens.has_key(key, &now.fetched())
    }

    /// A token by the first of the secrets; `None` if there are none.
    pub(super) fn mint(&self, user: &UserId, device: Option<&DeviceId>, ttl: Duration) -> Option<(String, Timestamp)> {
        self.now().tokens.mint(user, device, ttl)
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
    /// The key that its token was signed with.
    pub(super) key: KeyId,
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
        Self { user: identity.user, named: identity.device, until: identity.until, key: identity.key }
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
    Err(match keys.check(credential) {
        Ok(_) => Problem::new(Code::Forbidden, "this takes an API key, not a device token"),
        Err(_) => Problem::new(Code::InvalidCredentials, "the API key is not known"),
    })
}

async fn device(request: &HttpRequest) -> Result<Device, Problem> {
    by_token(keys(request)?, bearer(authorization(request))?).await
}

/// The device that bears this token.
pub(super) async fn by_token(keys: &Keys, token: &str) -> Result<Device, Problem> {
    if keys.api_key(token).is_some() {
        return Err(Problem::new(Code::Forbidden, "this takes a device token, not an API key"));
    }
    keys.check_thoroughly(token).await.map(Into::into)
}

/// A missing registration would be a defect of ours: say no rather than yes.
pub(super) fn keys(request: &HttpRequest) -> Result<&Keys, Problem> {
    let keys = request.app_data::<web::Data<Keys>>();
    keys.map(|keys| keys.as_ref()).ok_or_else(|| Problem::new(Code::Internal, "no keys are loaded"))
}

// A handler that reads a body does so by itself, after these: what isn't allowed fails before a body is looked at.
impl FromRequest for Backend {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(backend(request))
    }
}

impl FromRequest for Device {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Problem>>>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move { device(&request).await })
    }
}
