//! `GET /v1/stream`: the SSE answer (CONTRACT.md 4).

use super::answer::is_utf8;
use super::auth::{Device, Keys, bearer, by_token};
use super::problem::{Code, Problem};
use super::{connection, tokens};
use crate::domain::message::Cursor;
use crate::domain::seat::DeviceState;
use crate::ports::Bye;
use crate::relay::devices::{After, OpenStream};
use crate::relay::frame::Frame;
use crate::relay::handle::Relay;
use crate::relay::hub::Socket;
use crate::relay::stream::Stream;
use actix_web::body::{BodySize, MessageBody};
use actix_web::http::header::HeaderValue;
use actix_web::web::{Data, Query};
use actix_web::{HttpRequest, HttpResponse, get};
use bytes::Bytes;
use serde::Deserialize;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use utoipa::IntoParams;

/// The query of a stream.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct StreamQuery {
    /// A ticket of `POST /v1/tickets`, in place of the header.
    ticket: Option<String>,
    /// A device token, in place of the header. It stands in the URL, where others may log it: prefer a ticket.
    access_token: Option<String>,
    /// The device, if the token names none.
    #[param(min_length = 1, max_length = 64, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]+$")]
    device: Option<String>,
    /// A cursor, `earliest` or `now`. Without it: where this device last acknowledged, else `earliest`.
    #[param(pattern = "^(earliest|now|0|[1-9][0-9]{0,17})$")]
    after: Option<String>,
    /// Whether the device is looked at.
    #[serde(default)]
    #[param(inline)]
    state: DeviceState,
}

/// Reads the query of a request by type.
pub(super) fn query<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Problem> {
    if !is_utf8(text) {
        return Err(Problem::flaw("?", "is not UTF-8"));
    }
    let query = Query::<T>::from_query(text);
    query.map(Query::into_inner).map_err(|error| {
        let text = error.to_string();
        Problem::flaw("?", text.strip_prefix("Query deserialize error: ").unwrap_or(&text))
    })
}

/// Where to begin, as the query says it.
pub(super) fn parse_after(text: &str, pointer: &str) -> Result<After, Problem> {
    match text {
        "earliest" => Ok(After::Earliest),
        "now" => Ok(After::Now),
        cursor => match Cursor::parse(cursor) {
            Some(cursor) => Ok(After::Cursor(cursor)),
            None => Err(Problem::flaw(pointer, "is neither a cursor that herenow gave out, nor `earliest`, nor `now`")),
        },
    }
}

/// A request for a stream, whoever read it.
pub(super) struct Asked<'a> {
    pub(super) query: &'a str,
    pub(super) authorization: Option<&'a [u8]>,
    pub(super) last_event_id: Option<&'a [u8]>,
    pub(super) socket: Option<Arc<Socket>>,
}

/// What a device gets that may have a stream.
pub(super) enum Opened {
    Stream(Stream),
    /// This event, and then the end.
    Goodbye(Frame),
}

/// Checks the request and opens the stream.
pub(super) async fn open(asked: Asked<'_>, keys: &Keys, relay: &Relay) -> Result<Opened, Problem> {
    let query: StreamQuery = query(asked.query)?;
    let device = caller(asked.authorization, &query, keys, relay).await?;
    if let Some(goodbye) = relay.goodbye_while_draining() {
        return Ok(Opened::Goodbye(goodbye));
    }
    let request = OpenStream {
        device: device.device(query.device.as_deref())?,
        user: device.user,
        after: start(asked.last_event_id, &query)?,
        state: query.state,
        until: device.until,
        key: device.key,
        socket: asked.socket,
    };
    let stream = relay.open_stream(request).await?;
    // The key was removed meanwhile: whoever removed it may have looked before the stream had its seat.
    if !keys.has_key(device.key) {
        stream.end(Bye::Unauthorized);
    }
    Ok(Opened::Stream(stream))
}

/// `Last-Event-ID` wins: a client that reconnects by itself sends it with the URL of the first time.
fn start(last_event_id: Option<&[u8]>, query: &StreamQuery) -> Result<After, Problem> {
    if let Some(id) = last_event_id.filter(|id| !id.is_empty()) {
        return parse_after(std::str::from_utf8(id).unwrap_or("?"), "Last-Event-ID");
    }
    query.after.as_deref().map_or(Ok(After::LastAck), |after| parse_after(after, "?after"))
}

async fn caller(
    authorization: Option<&[u8]>,
    query: &StreamQuery,
    keys: &Keys,
    relay: &Relay,
) -> Result<Device, Problem> {
    if authorization.is_some() {
        return by_token(keys, bearer(authorization)?).await;
    }
    match (&query.ticket, &query.access_token) {
        (Some(ticket), _) => tokens::redeem(ticket, keys, relay).await,
        (None, Some(token)) => by_token(keys, token).await,
        (None, None) => {
            let detail = "a device token is needed: `Authorization: Bearer …`, `?ticket=` or `?access_token=`";
            Err(Problem::new(Code::MissingCredentials, detail))
        }
    }
}

/// Receive messages as Server-Sent Events
///
/// Events: `ready`, `message`, `gap`, `bye`. Only persisted messages bear an `id`, to resume after.
#[utoipa::path(
    tag = "devices",
    operation_id = "open_stream",
    params(StreamQuery, ("Last-Event-ID" = Option<String>, Header, description = "A cursor; wins over `after`", pattern = "^(0|[1-9][0-9]{0,17})$")),
    responses(
        (status = 200, description = "The stream, until it says `bye`", body = String, content_type = "text/event-stream"),
        (status = 401, response = super::openapi::Unauthorized), (status = 403, response = super::openapi::Forbidden),
        (status = 409, description = "`too_many_devices`", body = super::problem::ProblemBody, content_type = "application/problem+json"),
        (status = 422, response = super::openapi::Invalid), (status = 429, response = super::openapi::Limited),
        (status = 503, response = super::openapi::Away),
    ),
    security(("device_token" = []), ("ticket" = []), ("access_token" = []))
)]
#[get("/v1/stream")]
pub(super) async fn open_stream(
    request: HttpRequest,
    keys: Data<Keys>,
    relay: Data<Relay>,
) -> Result<HttpResponse, Problem> {
    let header = |name: &str| request.headers().get(name).map(HeaderValue::as_bytes);
    let asked = Asked {
        query: request.query_string(),
        authorization: header("authorization"),
        last_event_id: header("last-event-id"),
        socket: connection::socket(&request),
    };
    let opened = open(asked, &keys, &relay).await?;
    let mut answer = HttpResponse::Ok();
    answer
        .content_type("text/event-stream")
        .insert_header(("Cache-Control", "no-store"))
        .insert_header(("X-Accel-Buffering", "no"));
    Ok(match opened {
        Opened::Stream(stream) => answer.body(StreamBody(stream)),
        Opened::Goodbye(event) => answer.body(event.to_bytes()),
    })
}

struct StreamBody(Stream);

impl MessageBody for StreamBody {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Infallible>>> {
        self.get_mut().0.poll_bytes(cx).map(|bytes| bytes.map(Ok))
    }
}
