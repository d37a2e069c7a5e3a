//! Every error as RFC 9457 `application/problem+json`, with the codes of CONTRACT.md 1.

use crate::relay::handle::Error;
use actix_web::http::StatusCode;
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

macro_rules! codes {
    ($($code:ident = $word:literal $status:literal $title:literal;)*) => {
        /// What is wrong, for programs.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Code { $($code),* }

        impl Code {
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$code),*];

            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$code => $word),* }
            }

            pub(crate) const fn status(self) -> u16 {
                match self { $(Self::$code => $status),* }
            }

            const fn title(self) -> &'static str {
                match self { $(Self::$code => $title),* }
            }
        }
    };
}

codes! {
    MalformedJson = "malformed_json" 400 "The body is not JSON";
    MissingCredentials = "missing_credentials" 401 "Credentials are missing";
    InvalidCredentials = "invalid_credentials" 401 "The credentials are not accepted";
    Forbidden = "forbidden" 403 "These credentials may not do this";
    NotFound = "not_found" 404 "There is no such thing";
    MethodNotAllowed = "method_not_allowed" 405 "The method is not allowed here";
    IdempotencyInProgress = "idempotency_in_progress" 409 "The first request with this key is still running";
    TooManyDevices = "too_many_devices" 409 "The user has too many devices online";
    PayloadTooLarge = "payload_too_large" 413 "The body or the payload is too large";
    UnsupportedMediaType = "unsupported_media_type" 415 "The body must be application/json";
    InvalidRequest = "invalid_request" 422 "The request is not valid";
    IdempotencyKeyReused = "idempotency_key_reused" 422 "The key was used with another request";
    RateLimited = "rate_limited" 429 "Too much at a time";
    PresenceUnavailable = "presence_unavailable" 503 "Presence is unknown at the moment";
    KeysUnavailable = "keys_unavailable" 503 "The keys of tokens are unavailable at the moment";
    StoreUnavailable = "store_unavailable" 503 "The store is unavailable at the moment";
    Draining = "draining" 503 "This node is about to stop";
    Internal = "internal" 500 "An internal error";
}

/// One thing that is wrong in a request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Flaw {
    /// Where in the body (RFC 6901), or `?name` for a query parameter, or a header's name.
    pub(crate) pointer: String,
    /// What is wrong there.
    pub(crate) detail: String,
}

impl Flaw {
    pub(crate) fn new(pointer: impl Into<String>, detail: impl fmt::Display) -> Self {
        Self { pointer: pointer.into(), detail: detail.to_string() }
    }
}

/// An error on its way to the caller.
#[derive(Debug)]
pub(crate) struct Problem {
    code: Code,
    detail: Cow<'static, str>,
    flaws: Vec<Flaw>,
    retry_after_s: Option<u32>,
    allow: Option<&'static str>,
    /// `RateLimit`, if it is a limit of its own that was reached.
    rate_limit: Option<String>,
    /// For the log alone.
    cause: Option<Box<Error>>,
}

/// The document as it is sent.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody<'a> {
    /// Always `about:blank`: `code` tells the kind.
    r#type: &'static str,
    title: &'static str,
    status: u16,
    code: &'static str,
    detail: &'a str,
    request_id: &'a str,
    #[serde(skip_serializing_if = "<[Flaw]>::is_empty")]
    #[schema(required = false)]
    errors: &'a [Flaw],
}

impl Problem {
    pub(crate) fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        let retry_after_s = matches!(code.status(), 429 | 503).then_some(1);
        Self { code, detail: detail.into(), flaws: vec![], retry_after_s, allow: None, rate_limit: None, cause: None }
    }

    /// The request has these flaws.
    pub(crate) fn invalid(flaws: Vec<Flaw>) -> Self {
        let detail = match &flaws[..] {
            [one] => Cow::Owned(format!("{} {}", one.pointer, one.detail).trim_start().to_owned()),
            many => Cow::Owned(format!("{} things are wrong: see `errors`", many.len())),
        };
        Self { flaws, ..Self::new(Code::InvalidRequest, detail) }
    }

    /// The request has this flaw.
    pub(crate) fn flaw(pointer: impl Into<String>, detail: impl fmt::Display) -> Self {
        Self::invalid(vec![Flaw::new(pointer, detail)])
    }

    pub(crate) fn method_not_allowed(allow: &'static str) -> Self {
        let problem = Self::new(Code::MethodNotAllowed, format!("this path takes {allow}"));
        Self { allow: Some(allow), ..problem }
    }

    /// A rate is exceeded until `wait` is over.
    pub(crate) fn rate_limited(detail: String, wait: Duration, rate_limit: String) -> Self {
        let seconds = u32::try_from(wait.as_millis().div_ceil(1_000)).unwrap_or(u32::MAX).max(1);
        let problem = Self::new(Code::RateLimited, detail);
        Self { retry_after_s: Some(seconds), rate_limit: Some(rate_limit), ..problem }
    }

    /// Tells the operator the cause, if there is one beyond what the caller is told.
    pub(crate) fn log(&self, request_id: &str) {
        if let Some(cause) = &self.cause {
            let cause = Chain(&**cause);
            tracing::error!(request.id = request_id, error.code = self.code.as_str(), %cause, "a request failed");
        }
    }

    /// The answer to this request.
    pub(crate) fn answer(&self, request_id: &str) -> HttpResponse {
        self.log(request_id);
        let mut answer = HttpResponse::build(self.status_code());
        answer.content_type("application/problem+json");
        if let Some(s) = self.retry_after_s {
            answer.insert_header(("Retry-After", s));
        }
        if let Some(allow) = self.allow {
            answer.insert_header(("Allow", allow));
        }
        if self.code.status() == 401 {
            answer.insert_header(("WWW-Authenticate", "Bearer"));
        }
        if let Some(rate_limit) = &self.rate_limit {
            answer.insert_header(("RateLimit", rate_limit.as_str()));
        }
        answer.json(self.document(request_id))
    }

    /// The document alone, as a part of another answer.
    pub(crate) fn document<'a>(&'a self, request_id: &'a str) -> ProblemBody<'a> {
        ProblemBody {
            r#type: "about:blank",
            title: self.code.title(),
            status: self.code.status(),
            code: self.code.as_str(),
            detail: &self.detail,
            request_id,
            errors: &self.flaws,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.detail)
    }
}

/// [`super::answer`] writes the document, since only there the request's id is known.
impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let detail = error.to_string();
        match error {
            Error::PresenceUnavailable(_) => {
                Self { cause: Some(error.into()), ..Self::new(Code::PresenceUnavailable, detail) }
            }
            Error::StoreUnavailable(_) => {
                Self { cause: Some(error.into()), ..Self::new(Code::StoreUnavailable, detail) }
            }
            Error::Draining => Self::new(Code::Draining, detail),
            Error::NotFound(_) => Self::new(Code::NotFound, detail),
            Error::GroupFull(_) => Self::flaw("", detail),
            Error::Rejected(_) => Self::new(Code::Forbidden, detail),
            Error::KeyInProgress => Self::new(Code::IdempotencyInProgress, detail),
            Error::KeyReused => Self::new(Code::IdempotencyKeyReused, detail),
            Error::TooManyDevices(_) => Self::new(Code::TooManyDevices, detail),
            Error::Overloaded(_) => Self::new(Code::RateLimited, detail),
            Error::AckAhead { .. } => Self::flaw("/cursor", format!("is beyond what was sent: {detail}")),
        }
    }
}

struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}
