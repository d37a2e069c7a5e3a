//! Who is online (CONTRACT.md 5).

use super::auth::Backend;
use super::body;
use super::problem::{Flaw, Problem};
use crate::domain::seat::{DeviceId, DeviceState, NodeId, Presence, SeatInfo, UserId};
use crate::domain::time::Timestamp;
use crate::relay::handle::Relay;
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse, delete, get, post};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

const USERS_MAX: usize = 1_000;

/// A user's presence.
#[derive(Serialize, ToSchema)]
#[schema(as = Presence)]
pub(super) struct PresenceReply<'a> {
    #[schema(value_type = String)]
    user: &'a UserId,
    online: bool,
    /// Grows with every change; 0 for a user never seen.
    version: u64,
    devices: Vec<DeviceReply<'a>>,
}

/// A device that is online.
#[derive(Serialize, ToSchema)]
#[schema(as = OnlineDevice)]
struct DeviceReply<'a> {
    #[schema(value_type = String)]
    device: &'a DeviceId,
    state: DeviceState,
    #[schema(value_type = String, format = DateTime)]
    connected_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    last_active_at: Timestamp,
    /// The node that holds its stream.
    #[schema(value_type = String)]
    node: &'a NodeId,
}

impl<'a> PresenceReply<'a> {
    fn of(user: &'a UserId, presence: &'a Presence) -> Self {
        let Presence { version, seats } = presence;
        let devices: Vec<_> = seats.iter().map(DeviceReply::of).collect();
        Self { user, online: !devices.is_empty(), version: *version, devices }
    }
}

impl<'a> DeviceReply<'a> {
    fn of(seat: &'a SeatInfo) -> Self {
        let SeatInfo { device, state, connected_at, last_active_at, node, .. } = seat;
        Self { device, state: *state, connected_at: *connected_at, last_active_at: *last_active_at, node }
    }
}

/// Read a user's presence
#[utoipa::path(
    tag = "presence",
    operation_id = "get_presence",
    params(("user" = String, Path, min_length = 1, max_length = 128, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]+$")),
    responses(
        (status = 200, description = "Who is online on what", body = PresenceReply),
        (status = 401, response = super::openapi::Unauthorized), (status = 403, response = super::openapi::Forbidden),
        (status = 404, response = super::openapi::NotFound),
        (status = 422, response = super::openapi::Invalid), (status = 503, response = super::openapi::Away),
    ),
    security(("api_key" = []))
)]
#[get("/v1/users/{user}/presence")]
pub(super) async fn get_presence(_: Backend, user: Path<String>, relay: Data<Relay>) -> Result<HttpResponse, Problem> {
    let users = [UserId::parse(&user).map_err(|error| Problem::flaw("{user}", error))?];
    let presences = relay.presence(&users).await?;
    let found = presences.first().cloned().unwrap_or_default();
    Ok(HttpResponse::Ok().json(PresenceReply::of(&users[0], &found)))
}

/// Whose presence is wanted.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PresenceQuery)]
pub(super) struct QueryBody {
    #[schema(schema_with = super::schema::users)]
    users: Vec<String>,
}

/// Presences, in the order in which they were asked for.
#[derive(Serialize, ToSchema)]
#[schema(as = Presences)]
pub(super) struct QueryReply<'a> {
    users: Vec<PresenceReply<'a>>,
}

/// Read the presence of many users
#[utoipa::path(
    tag = "presence",
    operation_id = "query_presence",
    request_body = QueryBody,
    responses(
        (status = 200, description = "In order", body = QueryReply),
        (status = 400, response = super::openapi::BadJson), (status = 401, response = super::openapi::Unauthorized),
        (status = 403, response = super::openapi::Forbidden), (status = 413, response = super::openapi::TooLarge),
        (status = 415, response = super::openapi::NotJson), (status = 422, response = super::openapi::Invalid),
        (status = 503, response = super::openapi::Away),
    ),
    security(("api_key" = []))
)]
#[post("/v1/presence/query")]
pub(super) async fn query_presence(
    _: Backend,
    request: HttpRequest,
    relay: Data<Relay>,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let json = body::read_json(&request, payload, body::SMALL).await?;
    let QueryBody { users } = body::parse(&json)?;
    if !(1..=USERS_MAX).contains(&users.len()) {
        return Err(Problem::flaw("/users", format!("must have 1 to {USERS_MAX} users")));
    }
    let (mut wanted, mut flaws) = (Vec::with_capacity(users.len()), vec![]);
    for (n, user) in users.iter().enumerate() {
        match UserId::parse(user) {
            Ok(user) => wanted.push(user),
            Err(error) => flaws.push(Flaw::new(format!("/users/{n}"), error)),
        }
    }
    if !flaws.is_empty() {
        return Err(Problem::invalid(flaws));
    }
    let presences = relay.presence(&wanted).await?;
    let users = wanted.iter().zip(&presences).map(|(user, presence)| PresenceReply::of(user, presence)).collect();
    Ok(HttpResponse::Ok().json(QueryReply { users }))
}

/// End a device's stream
#[utoipa::path(
    tag = "presence",
    operation_id = "kick_device",
    params(("user" = String, Path, min_length = 1, max_length = 128, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]+$"), ("device" = String, Path, min_length = 1, max_length = 64, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]+$")),
    responses(
        (status = 204, description = "It is offline"),
        (status = 401, response = super::openapi::Unauthorized), (status = 403, response = super::openapi::Forbidden),
        (status = 404, response = super::openapi::NotFound), (status = 422, response = super::openapi::Invalid),
        (status = 503, response = super::openapi::Away),
    ),
    security(("api_key" = []))
)]
#[delete("/v1/users/{user}/devices/{device}")]
pub(super) async fn kick_device(
    _: Backend,
    path: Path<(String, String)>,
    relay: Data<Relay>,
) -> Result<HttpResponse, Problem> {
    let user = UserId::parse(&path.0).map_err(|error| Problem::flaw("{user}", error))?;
    let device = DeviceId::parse(&path.1).map_err(|error| Problem::flaw("{device}", error))?;
    relay.kick(&user, &device).await?;
    Ok(HttpResponse::NoContent().finish())
}
