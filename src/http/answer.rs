//! What every answer has in common: the request's id, errors as problem documents, one line in the log, and of sends a trace.

use super::problem::{Code, Problem};
use crate::domain::trace::TraceContext;
use crate::traces::{self, Traced};
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderName, HeaderValue, VARY};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage, HttpResponse};
use percent_encoding::percent_decode_str;
use std::sync::Arc;
use std::time::Instant;
use tracing::Instrument;
use uuid::Uuid;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Where sends come in.
const SENDS: [&str; 3] = ["/v1/messages", "/v1/messages/batch", "/examples/typing/messages"];

/// The request's name, for handlers whose answers hold problem documents.
pub(super) struct RequestId(pub(super) String);

/// Names the request, lets it be answered, and finishes the answer.
pub(super) async fn finish<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let started = Instant::now();
    let id = request_id(request.headers().get(REQUEST_ID).map(HeaderValue::as_bytes));
    request.extensions_mut().insert(RequestId(id.clone()));
    let method = request.method().clone();
    let Traced { span, context } = trace(&request);
    if let Some(context) = context {
        request.extensions_mut().insert(Arc::new(context));
    }
    let answered = if is_utf8(request.path()) {
        next.call(request).instrument(span.clone()).await.map(ServiceResponse::map_into_boxed_body)
    } else {
        Ok(request.into_response(Problem::new(Code::NotFound, "the path is not UTF-8").answer(&id)))
    };
    let mut response = match answered {
        Ok(response) => response,
        // No layer below fails; were one to, the connection would be dropped without a word.
        Err(error) => return Err(error),
    };
    if response.response().error().is_some() || is_bare_error(&response) {
        response = as_problem(response, &id);
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    traces::answered(&span, response.status().as_u16());
    // The pattern, never the path or the query: they name users and hold tokens.
    let route = response.request().match_pattern();
    tracing::debug!(
        request.id = id,
        %method,
        route = route.as_deref().unwrap_or("-"),
        status = response.status().as_u16(),
        ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "answered"
    );
    Ok(response)
}

/// A span for a send, and what the sender said that it belongs to.
fn trace(request: &ServiceRequest) -> Traced {
    let Some(route) = SENDS.into_iter().find(|&route| request.method() == Method::POST && request.path() == route)
    else {
        return Traced::none();
    };
    let header = |name: &str| {
        let values: Option<Vec<&str>> = request.headers().get_all(name).map(|value| value.to_str().ok()).collect();
        values.unwrap_or_default()
    };
    let sender = match header("traceparent")[..] {
        [parent] => TraceContext::of_headers(parent, Some(&header("tracestate").join(","))),
        _ => None,
    };
    traces::request("POST", route, sender)
}

/// Whether text is UTF-8 once its `%XX` are decoded. The framework would put U+FFFD for what is not, and so make one name of many.
pub(super) fn is_utf8(encoded: &str) -> bool {
    percent_decode_str(encoded).decode_utf8().is_ok()
}

/// The caller's own id, if it is a sane one.
pub(super) fn request_id(given: Option<&[u8]>) -> String {
    match given.and_then(|id| std::str::from_utf8(id).ok()) {
        Some(id) if (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()) => id.to_owned(),
        _ => Uuid::now_v7().to_string(),
    }
}

/// An error status that no handler of ours gave: from the framework, with a text or nothing in its body. `/readyz` says no in plain JSON.
fn is_bare_error<B>(response: &ServiceResponse<B>) -> bool {
    let status = response.status();
    let content_type = response.headers().get("content-type");
    (status.is_client_error() || status.is_server_error())
        && content_type.is_none_or(|value| value != "application/problem+json" && value != "application/json")
}

fn as_problem<B>(response: ServiceResponse<B>, id: &str) -> ServiceResponse {
    let (request, response) = response.into_parts();
    let mut answer = match response.error().and_then(|error| error.as_error::<Problem>()) {
        Some(problem) => problem.answer(id),
        None => of_framework(&response, id),
    };
    // Without these a browser would not show a page why it was refused.
    let cors = |name: &HeaderName| *name == VARY || name.as_str().starts_with("access-control-");
    for (name, value) in response.headers().iter().filter(|(name, _)| cors(name)) {
        answer.headers_mut().append(name.clone(), value.clone());
    }
    request.extensions_mut().clear();
    ServiceResponse::new(request, answer)
}

fn of_framework<B>(response: &HttpResponse<B>, id: &str) -> HttpResponse {
    let code = match response.status() {
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::METHOD_NOT_ALLOWED => Code::MethodNotAllowed,
        StatusCode::PAYLOAD_TOO_LARGE => Code::PayloadTooLarge,
        StatusCode::UNSUPPORTED_MEDIA_TYPE => Code::UnsupportedMediaType,
        status if status.is_client_error() => Code::InvalidRequest,
        _ => Code::Internal,
    };
    if code == Code::Internal {
        let error = response.error().map(ToString::to_string).unwrap_or_default();
        tracing::error!(request.id = id, error, "a request failed in the framework");
    }
    Problem::new(code, "the request could not be handled").answer(id)
}
