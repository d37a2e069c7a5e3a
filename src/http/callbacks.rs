//! `/v1/callbacks`: what has not reached the operator's endpoints yet (CONTRACT.md 8).

use super::auth::Backend;
use super::body;
use super::problem::{Code, Problem};
use super::stream::query;
use crate::domain::callback::{CallbackState, Endpoint, LastError};
use crate::domain::message::Cursor;
use crate::domain::seat::UserId;
use crate::domain::time::Timestamp;
use crate::ports::{CallbackEntry, CallbackFilter};
use crate::relay::handle::Relay;
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse, get, post};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

const LIMIT: usize = 100;
const LIMIT_MAX: usize = 1_000;

/// The states that a callback can be listed in.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Listed {
    Waiting,
    Failing,
    Dead,
}

impl From<Listed> for CallbackState {
    fn from(state: Listed) -> Self {
        match state {
            Listed::Waiting => Self::Waiting,
            Listed::Failing => Self::Failing,
            Listed::Dead => Self::Dead,
        }
    }
}

/// Which callbacks.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Of this endpoint only.
    #[param(inline)]
    endpoint: Option<Endpoint>,
    /// In this state only.
    #[param(inline)]
    state: Option<Listed>,
    /// The `next` of the page before.
    after: Option<Uuid>,
    /// At most so many, 1 to 1,000; 100 if not said.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// Callbacks that are not done.
#[derive(Serialize, ToSchema)]
#[schema(as = Callbacks)]
pub(super) struct ListReply {
    callbacks: Vec<CallbackReply>,
    /// Ask for what comes after this next; left out on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Uuid>,
}

/// A callback that is not done.
#[derive(Serialize, ToSchema)]
#[schema(as = Callback)]
struct CallbackReply {
    /// The `webhook-id` of each attempt.
    id: Uuid,
    endpoint: Endpoint,
    state: CallbackState,
    /// The message that it is about.
    message: Uuid,
    /// Push: for whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    recipient: Option<UserId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    cursor: Option<Cursor>,
    /// How many attempts count against the schedule.
    attempts: u32,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it is tried next; left out for a dead one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    next_attempt_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<LastError>,
}

impl From<CallbackEntry> for CallbackReply {
    fn from(entry: CallbackEntry) -> Self {
        let CallbackEntry { callback, state, created_at, last_error } = entry;
        let (recipient, cursor) = callback.recipient.unzip();
        Self {
            id: callback.id,
            endpoint: callback.endpoint,
            state,
            message: callback.message,
            recipient,
            cursor,
            attempts: callback.attempts,
            created_at,
            next_attempt_at: (state != CallbackState::Dead).then_some(callback.due_at),
            last_error,
        }
    }
}

/// List callbacks that are not done
#[utoipa::path(
    tag = "callbacks",
    operation_id = "list_callbacks",
    params(ListQuery),
    responses(
        (status = 200, description = "A page, in the order of ids", body = ListReply),
        (status = 401, response = super::openapi::Unauthorized), (status = 403, response = super::openapi::Forbidden),
        (status = 422, response = super::openapi::Invalid), (status = 503, response = super::openapi::Away),
    ),
    security(("api_key" = []))
)]
#[get("/v1/callbacks")]
pub(super) async fn list_callbacks(
    _: Backend,
    request: HttpRequest,
    relay: Data<Relay>,
) -> Result<HttpResponse, Problem> {
    let asked: ListQuery = query(request.query_string())?;
    let limit = asked.limit.unwrap_or(LIMIT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Problem::flaw("?limit", format!("must be 1 to {LIMIT_MAX}")));
    }
    let state = asked.state.map(Into::into);
    let filter = CallbackFilter { endpoint: asked.endpoint, state, after: asked.after, limit };
    let entries = relay.callbacks(filter).await?;
    let next = entries.last().filter(|_| entries.len() == limit).map(|entry| entry.callback.id);
    let callbacks = entries.into_iter().map(Into::into).collect();
    Ok(HttpResponse::Ok().json(ListReply { callbacks, next }))
}

/// Try a callback again
#[utoipa::path(
    tag = "callbacks",
    operation_id = "retry_callback",
    params(("id" = Uuid, Path)),
    responses(
        (status = 202, description = "It is due now, with its attempts counted anew"),
        (status = 401, response = super::openapi::Unauthorized), (status = 403, response = super::openapi::Forbidden),
        (status = 404, response = super::openapi::NotFound), (status = 503, response = super::openapi::Away),
    ),
    security(("api_key" = []))
)]
#[post("/v1/callbacks/{id}/retry")]
pub(super) async fn retry_callback(_: Backend, id: Path<String>, relay: Data<Relay>) -> Result<HttpResponse, Problem> {
    let id = Uuid::try_parse(&id).map_err(|_| Problem::new(Code::NotFound, "no callback has such an id"))?;
    relay.retry_callback(id).await?;
    Ok(HttpResponse::Accepted().finish())
}

/// Which callbacks to try again.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Retry)]
pub(super) struct RetryBody {
    /// Of this endpoint; of all if not said.
    #[schema(required = false)]
    endpoint: Option<Endpoint>,
    state: Retried,
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Retried {
    Failing,
    Dead,
}

/// How many are tried again.
#[derive(Serialize, ToSchema)]
#[schema(as = Retrying)]
pub(super) struct RetryReply {
    count: u64,
}

/// Try many callbacks again
#[utoipa::path(
    tag = "callbacks",
    operation_id = "retry_callbacks",
    request_body = RetryBody,
    responses(
        (status = 202, description = "They are due now", body = RetryReply),
        (status = 400, response = super::openapi::BadJson), (status = 401, response = super::openapi::Unauthorized),
        (status = 403, response = super::openapi::Forbidden), (status = 413, response = super::openapi::TooLarge),
        (status = 415, response = super::openapi::NotJson), (status = 422, response = super::openapi::Invalid),
        (status = 503, response = super::openapi::Away),
    ),
    security(("api_key" = []))
)]
#[post("/v1/callbacks/retry")]
pub(super) async fn retry_callbacks(
    _: Backend,
    request: HttpRequest,
    relay: Data<Relay>,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let json = body::read_json(&request, payload, body::SMALL).await?;
    let RetryBody { endpoint, state } = body::parse(&json)?;
    let state = match state {
        Retried::Failing => CallbackState::Failing,
        Retried::Dead => CallbackState::Dead,
    };
    let count = relay.retry_callbacks(endpoint, state).await?;
    Ok(HttpResponse::Accepted().json(RetryReply { count }))
}
