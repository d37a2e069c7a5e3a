//! `/v1/tokens` and `/v1/tickets`: credentials for devices (CONTRACT.md 2).

use super::auth::{Backend, Device, Keys};
use super::body;
use super::problem::{Code, Problem};
use crate::domain::seat::{DeviceId, KeyId, UserId};
use crate::domain::time::Timestamp;
use crate::ports::Ticket;
use crate::relay::handle::Relay;
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse, post};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::time::Duration;
use utoipa::ToSchema;

const DEFAULT_TTL_S: u32 = 3_600;
/// A year. Whoever wants a token for longer wants no expiry, which there is none of.
const TTL_MAX_S: u32 = 31_536_000;
/// For how long a ticket may be used.
const TICKET_TTL: Duration = Duration::from_secs(30);
const TICKET_SECRET: usize = 32;

/// For whom a token is wanted.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TokenRequest)]
pub(super) struct TokenBody {
    #[schema(value_type = String, min_length = 1, max_length = 128, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]+$")]
    user: UserId,
    /// Without it, the device names itself when it connects.
    #[schema(value_type = Option<String>, required = false, min_length = 1, max_length = 64, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]+$")]
    device: Option<DeviceId>,
    /// For how many seconds it is good; an hour if not said.
    #[serde(default = "default_ttl_s")]
    #[schema(required = false, minimum = 1, maximum = 31_536_000)]
    ttl_s: u32,
}

fn default_ttl_s() -> u32 {
    DEFAULT_TTL_S
}

/// A device token.
#[derive(Serialize, ToSchema)]
#[schema(as = Token)]
pub(super) struct TokenReply {
    token: String,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
}

/// A ticket.
#[derive(Serialize, ToSchema)]
#[schema(as = Ticket)]
pub(super) struct TicketReply {
    ticket: String,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
}

/// Make a device token
#[utoipa::path(
    tag = "credentials",
    operation_id = "create_token",
    request_body = TokenBody,
    responses(
        (status = 201, description = "The token", body = TokenReply),
        (status = 400, response = super::openapi::BadJson), (status = 401, response = super::openapi::Unauthorized),
        (status = 403, response = super::openapi::Forbidden), (status = 413, response = super::openapi::TooLarge),
        (status = 415, response = super::openapi::NotJson), (status = 422, response = super::openapi::Invalid),
    ),
    security(("api_key" = []))
)]
#[post("/v1/tokens")]
pub(super) async fn create_token(
    _: Backend,
    request: HttpRequest,
    keys: Data<Keys>,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let json = body::read_json(&request, payload, body::SMALL).await?;
    let TokenBody { user, device, ttl_s } = body::parse(&json)?;
    if !(1..=TTL_MAX_S).contains(&ttl_s) {
        return Err(Problem::flaw("/ttl_s", format!("must be 1 to {TTL_MAX_S}")));
    }
    Ok(HttpResponse::Created().json(mint(&keys, &user, device.as_ref(), Duration::from_secs(ttl_s.into()))?))
}

/// A token by the first of the secrets, if there is one.
pub(super) fn mint(
    keys: &Keys,
    user: &UserId,
    device: Option<&DeviceId>,
    ttl: Duration,
) -> Result<TokenReply, Problem> {
    let minted = keys.mint(user, device, ttl);
    let (token, expires_at) = minted
        .ok_or_else(|| Problem::new(Code::NotFound, "no `auth.device_secrets` are configured to sign a token with"))?;
    Ok(TokenReply { token, expires_at })
}

/// Draw a ticket
///
/// Good for opening one stream within 30 s, so that no token need stand in a URL. The stream lives as long as the token it was drawn on.
#[utoipa::path(
    tag = "credentials",
    operation_id = "create_ticket",
    responses(
        (status = 201, description = "The ticket", body = TicketReply),
        (status = 401, response = super::openapi::Unauthorized), (status = 403, response = super::openapi::Forbidden),
        (status = 429, response = super::openapi::Limited), (status = 503, response = super::openapi::Away),
    ),
    security(("device_token" = []))
)]
#[post("/v1/tickets")]
pub(super) async fn create_ticket(device: Device, relay: Data<Relay>) -> Result<HttpResponse, Problem> {
    let mut secret = [0; TICKET_SECRET];
    rand::rng().fill_bytes(&mut secret);
    let text = URL_SAFE_NO_PAD.encode([&secret[..], &device.key.get().to_be_bytes()].concat());
    let expires_at = Timestamp::now().plus(TICKET_TTL).min(device.until);
    let ticket = Ticket { user: device.user, device: device.named, expires_at, stream_until: device.until };
    relay.put_ticket(Sha256::digest(&text).into(), ticket).await?;
    Ok(HttpResponse::Created().json(TicketReply { ticket: text, expires_at }))
}

/// Whom a ticket lets in, once, and while the key of its token is accepted.
pub(super) async fn redeem(ticket: &str, keys: &Keys, relay: &Relay) -> Result<Device, Problem> {
    let found = relay.take_ticket(Sha256::digest(ticket).into()).await?;
    let found = found.zip(key_of(ticket)).filter(|(_, key)| keys.has_key(*key));
    let (Ticket { user, device, stream_until, .. }, key) = found
        .ok_or_else(|| Problem::new(Code::InvalidCredentials, "the ticket is not known, was used, or has expired"))?;
    Ok(Device { user, named: device, until: stream_until, key })
}

/// A ticket is a secret, and after it the key of the token that it was drawn on. Neither can be changed: the ticket is known by the digest
/// of the whole.
fn key_of(ticket: &str) -> Option<KeyId> {
    let bytes = URL_SAFE_NO_PAD.decode(ticket).ok()?;
    bytes.get(TICKET_SECRET..)?.try_into().ok().map(|id| KeyId::new(u64::from_be_bytes(id)))
}
