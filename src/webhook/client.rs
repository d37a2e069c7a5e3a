//! One signed POST to one endpoint, within one deadline over head and body, whatever the other side does.

use super::guard::{Guard, GuardedResolver, Refused};
use super::sign::{SecretError, Signer};
use crate::config::Outlet;
use crate::domain::retry::retry_after;
use crate::domain::time::Timestamp;
use crate::domain::trace::TraceContext;
use crate::traces::{self, Traced};
use bytes::Bytes;
use parking_lot::Mutex;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, ClientBuilder, Response, Url};
use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Below the 5 s after which Node.js closes idle connections.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// A connection that dies sooner after a request was written was most likely closed before.
const STALE_WITHIN: Duration = Duration::from_secs(1);
/// No more of an answer is read.
const BODY_LIMIT: usize = 64 * 1024;
/// No more of an answer is kept.
const TEXT_LIMIT: usize = 1024;
const USER_AGENT: &str = concat!("herenow/", env!("CARGO_PKG_VERSION"));

/// Why an endpoint can't be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Its `url` will not do.
    #[error("url: {0}")]
    Url(#[from] Refused),
    /// Its `secrets` will not do.
    #[error("secrets: {0}")]
    Secrets(#[from] SecretError),
    /// The HTTP client could not be made.
    #[error("the HTTP client could not be made")]
    Client(#[source] reqwest::Error),
}

/// What became of a POST.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Posted {
    /// A 2xx, head and body within the deadline.
    Success,
    /// Anything else.
    Failed(Failure),
}

/// How a POST failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// In what way.
    pub kind: FailureKind,
    /// The HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// `Retry-After` of a 429 or 503.
    pub retry_after: Option<Duration>,
    /// The endpoint never wants this event again (`webhook-delivery: abort-message`).
    pub abort: bool,
    /// The beginning of the answer's text, or the error in words: at most 1 KiB.
    pub text: String,
}

/// In what way a POST failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailureKind {
    /// It may not go to that address: nothing was sent.
    Address,
    /// The host's name was not found.
    Dns,
    /// No connection.
    Connect,
    /// A connection, but no trusted one.
    Tls,
    /// It took longer than `timeout_ms`.
    Timeout,
    /// The connection broke, or what came was no HTTP.
    Broken,
    /// An answer other than 2xx.
    Status,
}

impl FailureKind {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Address => "address refused",
            Self::Dns => "name not resolved",
            Self::Connect => "no connection",
            Self::Tls => "TLS failed",
            Self::Timeout => "timed out",
            Self::Broken => "connection broke",
            Self::Status => "refused",
        }
    }
}

/// An endpoint of the operator. `Debug` never shows its URL, which may bear credentials.
pub struct Webhook {
    client: Client,
    url: Url,
    guard: Guard,
    signer: Signer,
    timeout: Duration,
    /// When an answer last came, so that its connection may still be in the pool.
    pooled_at: Mutex<Option<Instant>>,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Webhook {
    /// The endpoint at `url`. Making the client is costly: one per endpoint.
    pub fn new(url: Url, outlet: &Outlet, guard: Guard) -> Result<Self, SetupError> {
        let resolver = GuardedResolver::of_the_system(guard.clone());
        Self::resolved_by(resolver, url, outlet, guard)
    }

    fn resolved_by(resolver: GuardedResolver, url: Url, outlet: &Outlet, guard: Guard) -> Result<Self, SetupError> {
        guard.check_url(&url)?;
        let client = guarded(Arc::new(resolver)).pool_max_idle_per_host(outlet.concurrency);
        let client = client.build().map_err(SetupError::Client)?;
        let signer = Signer::new(&outlet.secrets)?;
        Ok(Self { client, url, guard, signer, timeout: outlet.timeout, pooled_at: Mutex::new(None) })
    }

    /// Posts a JSON body as the event `id`.
    ///
    /// # Cancel safety
    /// A dropped call may or may not have reached the endpoint.
    pub async fn post(&self, id: &str, body: Bytes, traced: &Traced) -> Posted {
        // What an endpoint says of an event it has taken is of no interest.
        self.ask(id, body, 0, traced).await.map_or_else(Posted::Failed, |_| Posted::Success)
    }

    /// Posts a JSON body as the question `id`, and returns the answer's body: at most `limit` bytes of it are taken.
    pub async fn ask(&self, id: &str, body: Bytes, limit: usize, traced: &Traced) -> Result<Vec<u8>, Failure> {
        traced.asks(self.url.host_str(), self.url.port_or_known_default());
        let asked = self.exchange(id, body, limit, traced).await;
        if let Err(failure) = &asked {
            traced.failed(&failure.error_type());
        }
        asked
    }

    async fn exchange(&self, id: &str, body: Bytes, limit: usize, traced: &Traced) -> Result<Vec<u8>, Failure> {
        self.guard.check_url(&self.url).map_err(|refused| Failure::without_answer(FailureKind::Address, &refused))?;
        let asking = async {
            let response = self.send(id, body, traced).await.map_err(Failure::of_error)?;
            traces::answered(&traced.span, response.status().as_u16());
            let answer = answer(response, limit).await;
            *self.pooled_at.lock() = Some(Instant::now());
            answer
        };
        let timed_out = |elapsed| Failure::without_answer(FailureKind::Timeout, &elapsed);
        tokio::time::timeout(self.timeout, asking).await.unwrap_or_else(|elapsed| Err(timed_out(elapsed)))
    }

    /// Sends the request, once more if a connection from the pool turns out to have been closed by the other side: that is no failure of
    /// the endpoint.
    async fn send(&self, id: &str, body: Bytes, traced: &Traced) -> reqwest::Result<Response> {
        let begun = Instant::now();
        let may_be_reused = self.pooled_at.lock().is_some_and(|at| begun - at < IDLE_TIMEOUT);
        match self.request(id, body.clone(), traced).send().await {
            Err(e) if may_be_reused && broke_off(&e) && begun.elapsed() < STALE_WITHIN => {
                self.request(id, body, traced).send().await
            }
            result => result,
        }
    }

    fn request(&self, id: &str, body: Bytes, traced: &Traced) -> reqwest::RequestBuilder {
        let timestamp = Timestamp::now().as_s();
        self.client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", self.signer.sign(id, timestamp, &body))
            .headers(trace_headers(traced.context.as_ref()))
            .body(body)
    }
}

/// The W3C's, if there is anything to tell.
fn trace_headers(context: Option<&TraceContext>) -> HeaderMap {
    let state = context.and_then(|context| context.state.as_deref());
    [("traceparent", context.map(ToString::to_string)), ("tracestate", state.map(str::to_owned))]
        .into_iter()
        .filter_map(|(name, value)| Some((HeaderName::from_static(name), HeaderValue::try_from(value?).ok()?)))
        .collect()
}

/// A client that goes to checked addresses only.
pub(super) fn guarded(resolver: Arc<GuardedResolver>) -> ClientBuilder {
    Client::builder()
        .dns_resolver(resolver)
        .redirect(reqwest::redirect::Policy::none())
        // A proxy would resolve the name itself, past the guard.
        .no_proxy()
        .referer(false)
        .user_agent(USER_AGENT)
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
}

/// A connection that was there broke before an answer came.
fn broke_off(error: &reqwest::Error) -> bool {
    error.is_request() && !error.is_connect() && !error.is_timeout()
}

/// The body of a 2xx, up to `limit` bytes of it.
async fn answer(mut response: Response, limit: usize) -> Result<Vec<u8>, Failure> {
    let status = response.status();
    let keep = if status.is_success() { limit } else { TEXT_LIMIT };
    let body = match beginning(&mut response, keep).await {
        Ok(body) => body,
        // Head and body make the success: a 2xx whose body breaks off may come from a proxy whose backend died.
        Err(error) if status.is_success() => {
            return Err(Failure { status: Some(status.as_u16()), ..Failure::of_error(error) });
        }
        Err(_) => Vec::new(),
    };
    if status.is_success() {
        return Ok(body);
    }
    Err(Failure {
        kind: FailureKind::Status,
        status: Some(status.as_u16()),
        retry_after: asked_wait(status.as_u16(), response.headers()),
        abort: response.headers().get("webhook-delivery").is_some_and(|v| v.as_bytes() == b"abort-message"),
        text: bounded(&String::from_utf8_lossy(&body)),
    })
}

/// Reads the body, and returns up to `keep` bytes of it. No more than [`BODY_LIMIT`] or `keep` are read: dropping the answer closes its
/// connection.
async fn beginning(response: &mut Response, keep: usize) -> reqwest::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut seen = 0;
    while let Some(chunk) = response.chunk().await? {
        seen += chunk.len();
        text.extend_from_slice(&chunk[..chunk.len().min(keep - text.len())]);
        if seen >= BODY_LIMIT.max(keep) {
            break;
        }
    }
    Ok(text)
}

fn asked_wait(status: u16, headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER).filter(|_| matches!(status, 429 | 503))?;
    retry_after(value.to_str().ok()?, Timestamp::now())
}

/// At most [`TEXT_LIMIT`] bytes, without control characters: it is shown to operators and kept in databases.
fn bounded(text: &str) -> String {
    let end = text.floor_char_boundary(TEXT_LIMIT);
    text[..end].replace(|c: char| c.is_control() && c != '\n', " ")
}

impl Failure {
    /// In a word, as the semantic conventions of traces have it.
    fn error_type(&self) -> Cow<'static, str> {
        match self.status {
            Some(status) if self.kind == FailureKind::Status => status.to_string().into(),
            _ => self.kind.as_str().into(),
        }
    }

    pub(super) fn without_answer(kind: FailureKind, error: &dyn Error) -> Self {
        Self { kind, status: None, retry_after: None, abort: false, text: in_words(error) }
    }

    pub(super) fn of_error(error: reqwest::Error) -> Self {
        // The URL may bear credentials.
        let error = error.without_url();
        Self::without_answer(kind_of(&error), &error)
    }
}

fn kind_of(error: &reqwest::Error) -> FailureKind {
    if chain(error).any(<dyn Error>::is::<Refused>) {
        FailureKind::Address
    } else if error.is_timeout() {
        FailureKind::Timeout
    } else if error.is_dns() {
        FailureKind::Dns
    } else if error.is_connect() {
        let tls = chain(error).filter_map(|e| e.downcast_ref()).any(is_tls);
        if tls { FailureKind::Tls } else { FailureKind::Connect }
    } else {
        FailureKind::Broken
    }
}

/// rustls' errors arrive as invalid data, wrapped in a way that hides them from [`Error::source`].
fn is_tls(error: &io::Error) -> bool {
    let inner = || error.get_ref().and_then(|inner| inner.downcast_ref());
    error.kind() == io::ErrorKind::InvalidData || inner().is_some_and(is_tls)
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&e| e.source())
}

/// The error and its causes, outermost first; causes that repeat what was said are left out.
fn in_words(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        if !words.ends_with(&cause_words) {
            words = format!("{words}: {cause_words}");
        }
        source = cause.source();
    }
    bounded(&words)
}

#[cfg(test)]
mod tests;
