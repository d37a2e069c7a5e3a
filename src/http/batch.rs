//! `/v1/messages/batch`: many sends in one request, each with the answer that it alone would have got.

use super::answer::RequestId;
use super::auth::Backend;
use super::body;
use super::messages::{self, Reply};
use super::problem::{Problem, ProblemBody};
use super::rates::RateLimits;
use crate::domain::message::{Audience, Draft};
use crate::domain::seat::UserId;
use crate::relay::finish::Finish;
use crate::relay::handle::{Admission, Relay};
use crate::relay::send::{SendKey, Sent};
use actix_web::web::{Data, Payload};
use actix_web::{HttpMessage, HttpRequest, HttpResponse, post};
use bytes::Bytes;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use utoipa::ToSchema;

/// So many sends fit into a batch.
const SENDS_MAX: usize = 500;
/// A batch's body may be so long.
const BATCH_BYTES_MAX: usize = 32 << 20;

/// Up to 500 sends.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Batch)]
struct BatchBody<'a> {
    /// Each as for `POST /v1/messages`. A wrong one is refused for itself.
    #[serde(borrow)]
    #[schema(value_type = Vec<super::schema::Send>, min_items = 1, max_items = 500)]
    messages: Vec<&'a RawValue>,
}

/// Per message, in order, the answer that it alone would have got, with its `status`.
#[derive(Serialize, ToSchema)]
#[schema(as = BatchResults)]
struct BatchReply<'a> {
    #[schema(value_type = Vec<Object>)]
    results: Vec<ResultReply<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum ResultReply<'a> {
    Sent {
        status: u16,
        #[serde(flatten)]
        reply: Reply<'a>,
    },
    /// It has its status in itself.
    Problem(ProblemBody<'a>),
}

/// Send many messages
///
/// They are sent in their order wherever that shows: two that share a recipient never overtake each other. One that fails doesn't keep the
/// others back. With an `Idempotency-Key`, each message has the key and its place in the batch for its own.
#[utoipa::path(
    tag = "messages",
    operation_id = "send_batch",
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "The same key and messages give the first answers again, and nothing is sent twice.", min_length = 1, max_length = 124),
        ("traceparent" = Option<String>, Header, description = "The trace that the send belongs to (W3C Trace Context). A malformed one is as none."),
        ("tracestate" = Option<String>, Header, description = "Goes on with `traceparent`."),
    ),
    request_body = BatchBody,
    responses(
        (status = 207, description = "The results, in order", body = BatchReply),
        (status = 400, response = super::openapi::BadJson), (status = 401, response = super::openapi::Unauthorized),
        (status = 403, response = super::openapi::Forbidden), (status = 413, response = super::openapi::TooLarge),
        (status = 415, response = super::openapi::NotJson), (status = 422, response = super::openapi::Invalid),
        (status = 429, response = super::openapi::Limited), (status = 503, response = super::openapi::Away),
    ),
    security(("api_key" = []))
)]
#[post("/v1/messages/batch")]
pub(super) async fn send_batch(
    caller: Backend,
    request: HttpRequest,
    relay: Data<Relay>,
    rates: Data<RateLimits>,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let admission = relay.admit(SENDS_MAX)?;
    let json = body::read_json(&request, payload, BATCH_BYTES_MAX).await?;
    let BatchBody { messages } = body::parse(&json)?;
    if !(1..=SENDS_MAX).contains(&messages.len()) {
        return Err(Problem::flaw("/messages", format!("must hold 1 to {SENDS_MAX} messages")));
    }
    let key = batch_key(&request)?;
    let cause = messages::cause(&request);
    let sends = messages.iter().enumerate().map(|(n, message)| {
        rates.take_for_key(&caller)?;
        let json = json.slice_ref(message.get().as_bytes());
        let mut draft = messages::draft(&json, relay.limits().payload_bytes, relay.retention())?;
        draft.trace.clone_from(&cause);
        rates.take_for_sender(&draft.from)?;
        Ok(One { draft, key: key.as_ref().map(|key| key_of(key, n, &json)) })
    });
    let sends = sends.collect();
    let work = send_all(Relay::clone(&relay), sends, admission);
    let results = Finish::new(work, relay.tasks().clone()).await;
    let extensions = request.extensions();
    let id = extensions.get::<RequestId>().map_or("", |RequestId(id)| id);
    let results = results.iter().map(|result| match result {
        Ok(sent) => ResultReply::Sent { status: messages::status(sent).as_u16(), reply: Reply::of(sent) },
        Err(problem) => {
            problem.log(id);
            ResultReply::Problem(problem.document(id))
        }
    });
    Ok(HttpResponse::MultiStatus().json(BatchReply { results: results.collect() }))
}

/// A message of a batch, ready to be sent.
struct One {
    draft: Draft,
    key: Option<SendKey>,
}

/// The key of the message at place `n`.
fn key_of(key: &str, n: usize, json: &Bytes) -> SendKey {
    SendKey { key: format!("{key}#{n}"), body: Sha256::digest(json).into() }
}

/// Room is left for the place.
fn batch_key(request: &HttpRequest) -> Result<Option<String>, Problem> {
    let key = messages::idempotency_key(request)?;
    if key.as_ref().is_some_and(|key| key.len() > 124) {
        return Err(Problem::flaw("Idempotency-Key", "must have 1 to 124 characters for a batch"));
    }
    Ok(key)
}

/// Sends run side by side as long as no two of them share a recipient; then those before are waited for.
async fn send_all(relay: Relay, sends: Vec<Result<One, Problem>>, admission: Admission) -> Vec<Result<Sent, Problem>> {
    let _admission = admission;
    let mut results = Vec::with_capacity(sends.len());
    let mut side_by_side = vec![];
    let mut recipients = HashSet::new();
    for send in sends {
        if !joins(&mut recipients, send.as_ref().ok()) {
            results.extend(join_all(side_by_side.drain(..)).await);
            recipients.clear();
            joins(&mut recipients, send.as_ref().ok());
        }
        let relay = relay.clone();
        side_by_side.push(async move {
            let One { draft, key } = send?;
            Ok(relay.send(draft, key).await?)
        });
    }
    results.extend(join_all(side_by_side).await);
    results
}

/// Whether a send has no recipient in common with those that run; then its own are noted. A group's members are not known here, so such a
/// send runs alone.
fn joins(running: &mut HashSet<Option<UserId>>, send: Option<&One>) -> bool {
    let Some(One { draft, .. }) = send else { return true };
    match &draft.to {
        Audience::Group(_) => running.is_empty() && running.insert(None),
        Audience::Users(users) => {
            let is_free = !running.contains(&None) && !users.iter().any(|user| running.contains(&Some(user.clone())));
            if is_free {
                running.extend(users.iter().cloned().map(Some));
            }
            is_free
        }
    }
}
