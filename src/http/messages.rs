//! `/v1/messages`: sending, and what became of a persisted message.

use super::auth::Backend;
use super::body;
use super::problem::{Code, Flaw, Problem, ProblemBody};
use super::rates::RateLimits;
use super::stream::query;
use crate::domain::callback::CallbackState;
use crate::domain::message::{Audience, Cursor, DeliverTo, Draft, Mode, PushWish, RawJson};
use crate::domain::seat::{DeviceId, GroupId, UserId, check_name};
use crate::domain::time::Timestamp;
use crate::domain::trace::TraceContext;
use crate::ports::{MessageStatus, Progress, RecipientStatus, Stored};
use crate::relay::finish::Finish;
use crate::relay::handle::Relay;
use crate::relay::online_only::Report;
use crate::relay::send::{Accepted, Answer, SendKey, Sent, Show};
use actix_web::http::StatusCode;
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpMessage, HttpRequest, HttpResponse, delete, get, post};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// The most users that a send may name.
const USERS_MAX: usize = 1_000;
const TYPE_MAX: usize = 64;
const COLLAPSE_KEY_MAX: usize = 128;
const PUSH_BYTES_MAX: usize = 4 << 10;
const DEFAULT_TTL_MS: u64 = 5_000;
const ONLINE_ONLY_TTL_MAX_MS: u64 = 60_000;
/// What a body may have beside its payload: a thousand users of 128 characters, each written as `\uXXXX`, and some more.
pub(super) const ENVELOPE_BYTES: usize = 2 << 20;

/// A message to send. What may be in it is told by [`super::schema::Send`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SendBody<'a> {
    /// The sender, a user.
    #[serde(borrow)]
    from: Cow<'a, str>,
    #[serde(borrow)]
    to: ToBody<'a>,
    /// The application's own word.
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    /// Any JSON, up to `limits.payload_bytes`; relayed byte for byte.
    #[serde(borrow)]
    payload: &'a RawValue,
    /// True: it reaches who is here now, or nobody. False: it is durable, reaches every device, and waits for those that are away.
    #[serde(default)]
    online_only: bool,
    /// Online-only: on one device of a recipient (the default) or on every one.
    deliver_to: Option<DeliverTo>,
    /// Online-only: how long it may wait in a slow device's queue, 1 to 60,000, default 5,000. Persisted: how long it is kept, at most
    /// `store.retention_s`.
    ttl_ms: Option<u64>,
    /// Online-only: a newer message to the same device with the same key takes the place of one that still waits.
    #[serde(borrow)]
    collapse_key: Option<Cow<'a, str>>,
    /// Persisted, to users: also into the sender's own inbox.
    sync_sender: Option<bool>,
    /// Persisted: an object of up to 4 KiB for the push callback, or `false` for no push.
    #[serde(borrow)]
    push: Option<&'a RawValue>,
}

/// Exactly one of the two.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToBody<'a> {
    /// 1 to 1,000 users; duplicates count once.
    #[serde(borrow)]
    users: Option<Vec<Cow<'a, str>>>,
    /// A group.
    #[serde(borrow)]
    group: Option<Cow<'a, str>>,
}

/// A body's bytes as a checked draft.
pub(super) fn draft(json: &Bytes, payload_bytes: usize, retention: Duration) -> Result<Draft, Problem> {
    let send: SendBody = body::parse(json)?;
    let payload = send.payload.get();
    if payload.len() > payload_bytes {
        let detail = format!("the payload has {} bytes, and {payload_bytes} are allowed", payload.len());
        return Err(Problem::new(Code::PayloadTooLarge, detail));
    }
    let mut flaws = Flaws(vec![]);
    let from = flaws.take("/from", UserId::parse(&send.from));
    let to = audience(&send.to, &mut flaws);
    flaws.take("/type", check_name(&send.r#type, TYPE_MAX));
    // A slice of the request's own buffer: the payload is copied into the frame and nowhere else.
    let payload = RawJson::from_checked(json.slice_ref(payload.as_bytes()));
    flaws.check_depth("/payload", &payload);
    let mode =
        if send.online_only { online_only(&send, &mut flaws) } else { persisted(&send, json, retention, &mut flaws) };
    match (from, to, &flaws.0[..]) {
        (Some(from), Some(to), []) => {
            let source = RawJson::from_checked(json.clone());
            let show_recipients = matches!(to, Audience::Users(_));
            Ok(Draft { from, to, kind: send.r#type.into(), payload, mode, show_recipients, source, trace: None })
        }
        _ => Err(Problem::invalid(flaws.0)),
    }
}

struct Flaws(Vec<Flaw>);

impl Flaws {
    fn add(&mut self, pointer: impl Into<String>, detail: impl std::fmt::Display) {
        self.0.push(Flaw::new(pointer, detail));
    }

    fn check_depth(&mut self, pointer: &str, json: &RawJson) {
        if !json.is_shallow() {
            self.add(pointer, format!("is nested deeper than {} levels", RawJson::MAX_DEPTH));
        }
    }

    fn take<T, E: std::fmt::Display>(&mut self, pointer: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(pointer, error)).ok()
    }
}

fn audience(to: &ToBody, flaws: &mut Flaws) -> Option<Audience> {
    match (&to.users, &to.group) {
        (Some(users), None) => Some(Audience::Users(distinct(users, flaws))),
        (None, Some(group)) => flaws.take("/to/group", GroupId::parse(group)).map(Audience::Group),
        (Some(_), Some(_)) | (None, None) => {
            flaws.add("/to", "needs exactly one of `users` and `group`");
            None
        }
    }
}

fn distinct(names: &[Cow<str>], flaws: &mut Flaws) -> Vec<UserId> {
    if names.is_empty() {
        flaws.add("/to/users", "is empty");
    }
    if names.len() > USERS_MAX {
        flaws.add("/to/users", format!("has {} users, and {USERS_MAX} are allowed", names.len()));
        return vec![];
    }
    let mut users = Vec::with_capacity(names.len());
    let mut seen = HashSet::new();
    for (n, name) in names.iter().enumerate() {
        match UserId::parse(name) {
            Ok(user) if names.len() == 1 || seen.insert(name) => users.push(user),
            Ok(_) => {}
            Err(error) => flaws.add(format!("/to/users/{n}"), error),
        }
    }
    users
}

fn online_only(send: &SendBody, flaws: &mut Flaws) -> Mode {
    if send.push.is_some() {
        flaws.add("/push", "is for persisted messages: an online-only one is never pushed");
    }
    if send.sync_sender == Some(true) {
        flaws.add("/sync_sender", "is for persisted messages");
    }
    if let Some(key) = &send.collapse_key {
        flaws.take("/collapse_key", check_name(key, COLLAPSE_KEY_MAX));
    }
    let ttl_ms = send.ttl_ms.unwrap_or(DEFAULT_TTL_MS);
    if !(1..=ONLINE_ONLY_TTL_MAX_MS).contains(&ttl_ms) {
        flaws.add("/ttl_ms", format!("must be 1 to {ONLINE_ONLY_TTL_MAX_MS} for an online-only message"));
    }
    Mode::OnlineOnly {
        deliver_to: send.deliver_to.unwrap_or_default(),
        ttl: Duration::from_millis(ttl_ms),
        collapse_key: send.collapse_key.as_deref().map(Into::into),
    }
}

fn persisted(send: &SendBody, json: &Bytes, retention: Duration, flaws: &mut Flaws) -> Mode {
    if send.deliver_to.is_some() {
        flaws.add("/deliver_to", "is for online-only messages: a persisted one goes to every device");
    }
    if send.collapse_key.is_some() {
        flaws.add("/collapse_key", "is for online-only messages");
    }
    let sync_sender = send.sync_sender == Some(true);
    if sync_sender && send.to.group.is_some() {
        flaws.add("/sync_sender", "is for messages to users: a group has its members");
    }
    let longest = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
    let ttl_ms = send.ttl_ms.unwrap_or(longest);
    if !(1..=longest).contains(&ttl_ms) {
        flaws.add("/ttl_ms", format!("must be 1 to {longest}, which is `store.retention_s`"));
    }
    Mode::Persisted { ttl: Duration::from_millis(ttl_ms), push: push_wish(send.push, json, flaws), sync_sender }
}

fn push_wish(push: Option<&RawValue>, json: &Bytes, flaws: &mut Flaws) -> PushWish {
    let Some(push) = push.map(RawValue::get) else { return PushWish::Plain };
    if push == "false" {
        return PushWish::Off;
    }
    if !push.starts_with('{') {
        flaws.add("/push", "must be an object or `false`");
    }
    if push.len() > PUSH_BYTES_MAX {
        flaws.add("/push", format!("has {} bytes, and {PUSH_BYTES_MAX} are allowed", push.len()));
    }
    let push = RawJson::from_checked(json.slice_ref(push.as_bytes()));
    flaws.check_depth("/push", &push);
    PushWish::With(push)
}

pub(super) fn idempotency_key(request: &HttpRequest) -> Result<Option<String>, Problem> {
    let Some(header) = request.headers().get("idempotency-key") else { return Ok(None) };
    let wrong = |detail: &str| Problem::flaw("Idempotency-Key", detail);
    let key = header.to_str().map_err(|_| wrong("must be visible ASCII"))?;
    if !(1..=128).contains(&key.len()) {
        return Err(wrong("must have 1 to 128 characters"));
    }
    Ok(Some(key.to_owned()))
}

/// Send a message
///
/// An online-only message is answered 200 after the outcome of every recipient is known; a persisted one 201 once it is durable.
#[utoipa::path(
    tag = "messages",
    operation_id = "send_message",
    params(
        SendQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "The same key and body give the first answer again, and nothing is sent twice.", min_length = 1, max_length = 128),
        ("Prefer" = Option<String>, Header, description = "`respond-async`: an online-only send is answered 202 at once, without outcomes (RFC 7240)."),
        ("traceparent" = Option<String>, Header, description = "The trace that the send belongs to (W3C Trace Context). A malformed one is as none."),
        ("tracestate" = Option<String>, Header, description = "Goes on with `traceparent`."),
    ),
    request_body = super::schema::Send,
    responses(
        (status = 200, description = "Online-only: what became of it", body = Report, headers(("Idempotent-Replayed" = Option<String>, description = "`true` if this is the first answer once more"))),
        (status = 201, description = "Persisted: durable", body = StoredReply, headers(("Location" = String, description = "`/v1/messages/{id}`"), ("Idempotent-Replayed" = Option<String>, description = "`true` if this is the first answer once more"))),
        (status = 202, description = "Online-only, with `Prefer: respond-async`: taken in", body = AcceptedReply, headers(("Preference-Applied" = String, description = "`respond-async`"), ("Idempotent-Replayed" = Option<String>, description = "`true` if this is the first answer once more"))),
        (status = 400, response = super::openapi::BadJson), (status = 401, response = super::openapi::Unauthorized),
        (status = 403, description = "`forbidden`: a device token, or `callbacks.before_send` rejected it", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`: a group without members", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "`idempotency_in_progress`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, response = super::openapi::TooLarge), (status = 415, response = super::openapi::NotJson),
        (status = 422, description = "`invalid_request`, `idempotency_key_reused`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, response = super::openapi::Limited), (status = 503, response = super::openapi::Away),
    ),
    security(("api_key" = []))
)]
#[post("/v1/messages")]
pub(super) async fn send_message(
    caller: Backend,
    request: HttpRequest,
    relay: Data<Relay>,
    rates: Data<RateLimits>,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let of_key = rates.take_for_key(&caller)?;
    let mut answer = send(&request, &relay, &rates, payload).await?;
    rates.tell(of_key, answer.headers_mut());
    Ok(answer)
}

/// How to answer.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct SendQuery {
    /// To a group: tell what became of it at each recipient. To users that is told anyway.
    recipients: Option<bool>,
}

/// The same, for those who are allowed by other means than the API key.
pub(super) async fn send(
    request: &HttpRequest,
    relay: &Data<Relay>,
    rates: &Data<RateLimits>,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let admission = relay.admit(1)?;
    let payload_bytes = relay.limits().payload_bytes;
    let json = body::read_json(request, payload, payload_bytes + ENVELOPE_BYTES).await?;
    let SendQuery { recipients } = query(request.query_string())?;
    let mut draft = draft(&json, payload_bytes, relay.retention())?;
    draft.show_recipients |= recipients == Some(true);
    draft.trace = cause(request);
    rates.take_for_sender(&draft.from)?;
    let key = idempotency_key(request)?.map(|key| SendKey { key, body: Sha256::digest(&json).into() });
    let (handle, tasks) = (Relay::clone(relay), relay.tasks().clone());
    if matches!(draft.mode, Mode::OnlineOnly { .. }) && prefers_async(request) {
        let work = async move { handle.send_async(draft, key, admission).await };
        return Ok(accepted(Finish::new(work, tasks).await?));
    }
    let work = async move {
        let _admission = admission;
        handle.send(draft, key).await
    };
    let sent = Finish::new(work, tasks).await?;
    Ok(answer(&sent))
}

/// What this request belongs to, if that is known.
pub(super) fn cause(request: &HttpRequest) -> Option<Arc<TraceContext>> {
    request.extensions().get().cloned()
}

/// Whether `respond-async` is among the preferences (RFC 7240, 4.1).
fn prefers_async(request: &HttpRequest) -> bool {
    let words = request.headers().get_all("prefer").filter_map(|value| value.to_str().ok());
    words.flat_map(|value| value.split(',')).any(|preference| {
        let name = preference.split([';', '=']).next().unwrap_or_default();
        name.trim().eq_ignore_ascii_case("respond-async")
    })
}

/// An online-only message is taken in; what becomes of it is not told.
#[derive(Serialize, ToSchema)]
#[schema(as = Accepted)]
struct AcceptedReply {
    id: Uuid,
    /// Always true.
    online_only: bool,
    #[schema(value_type = String, format = DateTime)]
    sent_at: Timestamp,
}

fn accepted(accepted: Accepted) -> HttpResponse {
    let mut answer = HttpResponse::Accepted();
    answer.insert_header(("Preference-Applied", "respond-async"));
    if accepted.replayed {
        answer.insert_header(("Idempotent-Replayed", "true"));
    }
    answer.json(AcceptedReply { id: accepted.id, online_only: true, sent_at: accepted.sent_at })
}

fn answer(sent: &Sent) -> HttpResponse {
    let mut answer = HttpResponse::build(status(sent));
    if let Answer::Persisted(stored) = &sent.answer {
        answer.insert_header(("Location", format!("/v1/messages/{}", stored.id)));
    }
    if sent.replayed {
        answer.insert_header(("Idempotent-Replayed", "true"));
    }
    answer.json(Reply::of(sent))
}

pub(super) fn status(sent: &Sent) -> StatusCode {
    match &sent.answer {
        Answer::OnlineOnly(_) => StatusCode::OK,
        Answer::Persisted(_) => StatusCode::CREATED,
    }
}

/// The body of an answer to a send.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Reply<'a> {
    OnlineOnly(&'a Report),
    Persisted(StoredReply<'a>),
}

impl<'a> Reply<'a> {
    pub(super) fn of(sent: &'a Sent) -> Self {
        match &sent.answer {
            Answer::OnlineOnly(report) => Self::OnlineOnly(report),
            Answer::Persisted(stored) => Self::Persisted(StoredReply::of(stored, sent.show)),
        }
    }
}

/// A persisted message is durable.
#[derive(Serialize, ToSchema)]
#[schema(as = Stored)]
pub(super) struct StoredReply<'a> {
    id: Uuid,
    /// Always false.
    online_only: bool,
    #[schema(value_type = String, format = DateTime)]
    sent_at: Timestamp,
    /// It is kept until then.
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
    /// To a group only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    summary: Option<StoredSummary>,
    /// To a group only if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    recipients: Option<Vec<StoredRecipient<'a>>>,
}

/// How many recipients.
#[derive(Serialize, ToSchema)]
struct StoredSummary {
    stored: usize,
}

#[derive(Serialize, ToSchema)]
struct StoredRecipient<'a> {
    #[schema(value_type = String)]
    user: &'a UserId,
    /// Always `stored`.
    outcome: &'static str,
    /// Its place in the recipient's inbox.
    #[schema(value_type = String)]
    cursor: Cursor,
}

impl<'a> StoredReply<'a> {
    fn of(stored: &'a Stored, show: Show) -> Self {
        let recipients = || {
            let stored = stored.recipients.iter();
            stored.map(|(user, cursor)| StoredRecipient { user, outcome: "stored", cursor: *cursor }).collect()
        };
        Self {
            id: stored.id,
            online_only: false,
            sent_at: stored.sent_at,
            expires_at: stored.expires_at,
            summary: show.summary.then_some(StoredSummary { stored: stored.recipients.len() }),
            recipients: show.recipients.then(recipients),
        }
    }
}

/// A persisted message and how it fares.
#[derive(Serialize, ToSchema)]
#[schema(as = MessageStatus)]
pub(super) struct StatusReply<'a> {
    id: Uuid,
    #[schema(value_type = String)]
    from: &'a UserId,
    #[schema(value_type = super::schema::SentTo)]
    to: ToReply<'a>,
    r#type: &'a str,
    #[schema(value_type = serde_json::Value)]
    payload: &'a RawJson,
    online_only: bool,
    #[schema(value_type = String, format = DateTime)]
    sent_at: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
    recipients: Vec<RecipientReply<'a>>,
    /// Of the storage callback.
    storage: ProgressReply,
}

/// To whom a message was sent.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToReply<'a> {
    Users(Vec<&'a UserId>),
    Group(&'a GroupId),
}

impl<'a> ToReply<'a> {
    pub(super) fn of(group: Option<&'a GroupId>, users: impl Iterator<Item = &'a UserId>) -> Self {
        group.map_or_else(|| Self::Users(users.collect()), Self::Group)
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = RecipientStatus)]
struct RecipientReply<'a> {
    #[schema(value_type = String)]
    user: &'a UserId,
    #[schema(value_type = String)]
    cursor: Cursor,
    /// Devices whose stream it was handed to.
    #[schema(value_type = Vec<String>)]
    delivered_to: &'a [DeviceId],
    /// Devices that acknowledged it.
    #[schema(value_type = Vec<String>)]
    acked_by: &'a [DeviceId],
    /// Of the push callback.
    push: ProgressReply,
}

#[derive(Serialize, ToSchema)]
#[schema(as = CallbackProgress)]
struct ProgressReply {
    state: CallbackState,
    attempts: u32,
}

impl From<Progress> for ProgressReply {
    fn from(progress: Progress) -> Self {
        Self { state: progress.state, attempts: progress.attempts }
    }
}

impl<'a> From<&'a RecipientStatus> for RecipientReply<'a> {
    fn from(status: &'a RecipientStatus) -> Self {
        let RecipientStatus { user, cursor, delivered_to, acked_by, push } = status;
        Self { user, cursor: *cursor, delivered_to, acked_by, push: (*push).into() }
    }
}

impl<'a> From<&'a MessageStatus> for StatusReply<'a> {
    fn from(status: &'a MessageStatus) -> Self {
        let message = &status.message;
        let sent_to = status.recipients.len().saturating_sub(usize::from(status.synced));
        let sent_to = status.recipients[..sent_to].iter();
        Self {
            id: message.id,
            from: &message.from,
            to: ToReply::of(message.group.as_ref(), sent_to.map(|recipient| &recipient.user)),
            r#type: &message.kind,
            payload: &message.payload,
            online_only: message.online_only,
            sent_at: message.sent_at,
            expires_at: status.expires_at,
            recipients: status.recipients.iter().map(Into::into).collect(),
            storage: status.storage.into(),
        }
    }
}

/// Read a persisted message and how it fares
#[utoipa::path(
    tag = "messages",
    operation_id = "get_message",
    params(("id" = Uuid, Path, description = "The message's id")),
    responses(
        (status = 200, description = "The message", body = StatusReply),
        (status = 401, response = super::openapi::Unauthorized), (status = 403, response = super::openapi::Forbidden),
        (status = 404, response = super::openapi::NotFound), (status = 503, response = super::openapi::Away),
    ),
    security(("api_key" = []))
)]
#[get("/v1/messages/{id}")]
pub(super) async fn get_message(_: Backend, id: Path<String>, relay: Data<Relay>) -> Result<HttpResponse, Problem> {
    let id = message_id(&id)?;
    let status = relay.message(id).await?;
    Ok(HttpResponse::Ok().json(StatusReply::from(&status)))
}

/// Recall a message
///
/// It is gone from every inbox and is not pushed any more. Streams get `event: recall`, the storage callback `message.recalled`.
#[utoipa::path(
    tag = "messages",
    operation_id = "recall_message",
    params(("id" = Uuid, Path, description = "The message's id")),
    responses(
        (status = 204, description = "Recalled, durably"),
        (status = 401, response = super::openapi::Unauthorized), (status = 403, response = super::openapi::Forbidden),
        (status = 404, response = super::openapi::NotFound), (status = 503, response = super::openapi::Away),
    ),
    security(("api_key" = []))
)]
#[delete("/v1/messages/{id}")]
pub(super) async fn recall_message(_: Backend, id: Path<String>, relay: Data<Relay>) -> Result<HttpResponse, Problem> {
    let id = message_id(&id)?;
    let (handle, tasks) = (Relay::clone(&relay), relay.tasks().clone());
    Finish::new(async move { handle.recall(id).await }, tasks).await?;
    Ok(HttpResponse::NoContent().finish())
}

fn message_id(text: &str) -> Result<Uuid, Problem> {
    Uuid::try_parse(text).map_err(|_| Problem::new(Code::NotFound, "no message has such an id"))
}
