//! What a device says and asks beside its stream: `/v1/ack`, `/v1/inbox`, `/v1/state`.

use super::auth::Device;
use super::body;
use super::messages::ToReply;
use super::problem::Problem;
use super::stream::{parse_after, query};
use crate::domain::message::{Cursor, RawJson};
use crate::domain::seat::{DeviceState, UserId};
use crate::domain::time::Timestamp;
use crate::ports::InboxEntry;
use crate::relay::devices::After;
use crate::relay::handle::Relay;
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse, get, post};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

const INBOX_LIMIT: usize = 100;
const INBOX_LIMIT_MAX: usize = 1_000;

/// Which device, where the token names none.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DeviceQuery {
    /// The device, if the token names none.
    #[param(min_length = 1, max_length = 64, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]+$")]
    device: Option<String>,
}

/// How far a device is.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Ack)]
pub(super) struct AckBody {
    /// All up to here has been processed.
    #[schema(value_type = String, pattern = "^(0|[1-9][0-9]{0,17})$")]
    cursor: String,
}

/// Acknowledge messages
///
/// This device has processed all up to the cursor. Acks only move forward.
#[utoipa::path(
    tag = "devices",
    operation_id = "ack",
    params(DeviceQuery),
    request_body = AckBody,
    responses(
        (status = 204, description = "Noted"),
        (status = 400, response = super::openapi::BadJson), (status = 401, response = super::openapi::Unauthorized),
        (status = 403, response = super::openapi::Forbidden), (status = 413, response = super::openapi::TooLarge),
        (status = 415, response = super::openapi::NotJson), (status = 422, response = super::openapi::Invalid),
        (status = 503, response = super::openapi::Away),
    ),
    security(("device_token" = []))
)]
#[post("/v1/ack")]
pub(super) async fn ack(
    device: Device,
    request: HttpRequest,
    relay: Data<Relay>,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let named: DeviceQuery = query(request.query_string())?;
    let id = device.device(named.device.as_deref())?;
    let json = body::read_json(&request, payload, body::SMALL).await?;
    let AckBody { cursor } = body::parse(&json)?;
    let cursor =
        Cursor::parse(&cursor).ok_or_else(|| Problem::flaw("/cursor", "is no cursor that herenow gave out"))?;
    relay.ack(&device.user, &id, cursor).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Which part of the inbox.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct InboxQuery {
    /// The device, if the token names none.
    #[param(min_length = 1, max_length = 64, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]+$")]
    device: Option<String>,
    /// A cursor, `earliest` or `now`. Without it: where this device last acknowledged, else `earliest`.
    #[param(pattern = "^(earliest|now|0|[1-9][0-9]{0,17})$")]
    after: Option<String>,
    /// At most so many messages, 1 to 1,000; 100 if not said.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// A part of an inbox.
#[derive(Serialize, ToSchema)]
#[schema(as = Inbox)]
pub(super) struct InboxReply<'a> {
    messages: Vec<InboxMessage<'a>>,
    /// Ask for what comes after this next.
    #[schema(value_type = String)]
    next: Cursor,
    /// Something follows.
    more: bool,
}

/// A message as its recipient sees it.
#[derive(Serialize, ToSchema)]
struct InboxMessage<'a> {
    id: Uuid,
    #[schema(value_type = String)]
    from: &'a UserId,
    /// The recipient alone, or the group: the others are nobody's business. In the sender's own inbox, all.
    #[schema(value_type = super::schema::SentTo)]
    to: ToReply<'a>,
    r#type: &'a str,
    #[schema(value_type = serde_json::Value)]
    payload: &'a RawJson,
    online_only: bool,
    #[schema(value_type = String, format = DateTime)]
    sent_at: Timestamp,
    #[schema(value_type = String)]
    cursor: Cursor,
}

impl<'a> InboxMessage<'a> {
    fn of(entry: &'a InboxEntry, user: &'a UserId) -> Self {
        let message = &entry.message;
        let to = if entry.to.is_empty() { std::slice::from_ref(user) } else { &entry.to };
        Self {
            id: message.id,
            from: &message.from,
            to: ToReply::of(message.group.as_ref(), to.iter()),
            r#type: &message.kind,
            payload: &message.payload,
            online_only: message.online_only,
            sent_at: message.sent_at,
            cursor: entry.cursor,
        }
    }
}

/// Pull messages
///
/// The same persisted messages as the stream's, page by page.
#[utoipa::path(
    tag = "devices",
    operation_id = "get_inbox",
    params(InboxQuery),
    responses(
        (status = 200, description = "A page", body = InboxReply),
        (status = 401, response = super::openapi::Unauthorized), (status = 403, response = super::openapi::Forbidden),
        (status = 422, response = super::openapi::Invalid), (status = 503, response = super::openapi::Away),
    ),
    security(("device_token" = []))
)]
#[get("/v1/inbox")]
pub(super) async fn get_inbox(
    device: Device,
    request: HttpRequest,
    relay: Data<Relay>,
) -> Result<HttpResponse, Problem> {
    let asked: InboxQuery = query(request.query_string())?;
    let id = device.device(asked.device.as_deref())?;
    let after = asked.after.as_deref().map_or(Ok(After::LastAck), |after| parse_after(after, "?after"))?;
    let limit = asked.limit.unwrap_or(INBOX_LIMIT);
    if !(1..=INBOX_LIMIT_MAX).contains(&limit) {
        return Err(Problem::flaw("?limit", format!("must be 1 to {INBOX_LIMIT_MAX}")));
    }
    let page = relay.inbox(&device.user, &id, after, limit).await?;
    let messages = page.entries.iter().map(|entry| InboxMessage::of(entry, &device.user)).collect();
    Ok(HttpResponse::Ok().json(InboxReply { messages, next: page.next, more: page.more }))
}

/// Whether a device is looked at.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = State)]
pub(super) struct StateBody {
    state: DeviceState,
}

/// Say whether the device is looked at
///
/// It lasts until the stream ends.
#[utoipa::path(
    tag = "devices",
    operation_id = "set_state",
    params(DeviceQuery),
    request_body = StateBody,
    responses(
        (status = 204, description = "Noted"),
        (status = 400, response = super::openapi::BadJson), (status = 401, response = super::openapi::Unauthorized),
        (status = 403, response = super::openapi::Forbidden),
        (status = 404, response = super::openapi::NotFound), (status = 413, response = super::openapi::TooLarge),
        (status = 415, response = super::openapi::NotJson), (status = 422, response = super::openapi::Invalid),
        (status = 503, response = super::openapi::Away),
    ),
    security(("device_token" = []))
)]
#[post("/v1/state")]
pub(super) async fn set_state(
    device: Device,
    request: HttpRequest,
    relay: Data<Relay>,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let named: DeviceQuery = query(request.query_string())?;
    let id = device.device(named.device.as_deref())?;
    let json = body::read_json(&request, payload, body::SMALL).await?;
    let StateBody { state } = body::parse(&json)?;
    relay.set_state(&device.user, &id, state).await?;
    Ok(HttpResponse::NoContent().finish())
}
