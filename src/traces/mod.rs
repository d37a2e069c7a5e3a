//! What happens to a send and to its callbacks as OpenTelemetry spans, with the names of its semantic conventions where there are such.
//!
//! All that may stand in a span is on this page, so that no payload, user's name, path or credential ever does (CONTRACT.md 10.1). Spans
//! are `tracing`'s: where no `otel.endpoint` is configured nobody listens for them, and making one is a look at a static.

mod export;

pub use export::{Exporter, start};

use crate::domain::message::Summary;
use crate::domain::trace::TraceContext;
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::trace::SdkTracer;
use tracing::field::Empty;
use tracing::level_filters::LevelFilter;
use tracing::{Instrument, Span, Subscriber, info_span};
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

/// Of every span here, and of no line of the log: it is not the name of a module.
pub const TARGET: &str = "herenow::spans";

/// Takes the spans of this page, and nothing else: libraries have spans that tell more than they should.
pub fn layer<S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync>(tracer: SdkTracer) -> impl Layer<S> {
    OpenTelemetryLayer::new(tracer)
        .with_context_activation(false)
        .with_location(false)
        .with_target(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(Targets::new().with_target(TARGET, LevelFilter::INFO))
}

/// A span that follows what another program, or an earlier time, began.
#[derive(Debug)]
pub struct Traced {
    /// Disabled if nothing is traced.
    pub span: Span,
    /// What those that it causes are told to follow: the span, or if nothing is traced what the span would have followed.
    pub context: Option<TraceContext>,
}

impl Traced {
    /// Nothing is traced.
    pub fn none() -> Self {
        Self { span: Span::none(), context: None }
    }

    fn following(span: Span, cause: Option<TraceContext>) -> Self {
        if let Some(cause) = &cause {
            follow(&span, cause);
        }
        Self::of(span, cause)
    }

    fn of(span: Span, cause: Option<TraceContext>) -> Self {
        let context = context(&span).or(cause);
        Self { span, context }
    }

    /// Notes whom a request of ours goes to.
    pub fn asks(&self, host: Option<&str>, port: Option<u16>) {
        self.span.record("server.address", host);
        self.span.record("server.port", port.map(i64::from));
    }

    /// Notes why a request of ours has failed.
    pub fn failed(&self, why: &str) {
        fail(&self.span, why);
    }
}

/// The request of a sender, which may have said what it belongs to.
pub fn request(method: &str, route: &'static str, sender: Option<TraceContext>) -> Traced {
    let span = info_span!(
        target: TARGET,
        parent: None,
        "send",
        otel.name = format_args!("{method} {route}"),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = method,
        http.route = route,
        url.path = route,
        http.response.status_code = Empty,
        error.type = Empty,
    );
    Traced::following(span, sender)
}

/// Notes the status that answers a request.
pub fn answered(span: &Span, status: u16) {
    span.record("http.response.status_code", i64::from(status));
    if status >= 500 {
        fail(span, &status.to_string());
    }
}

/// An attempt to tell an endpoint of what these have caused. One is its parent, several are linked.
pub fn attempt(endpoint: &'static str, attempt: u32, mut causes: Vec<TraceContext>) -> Traced {
    let span = info_span!(
        target: TARGET,
        parent: None,
        "attempt",
        otel.name = format_args!("POST {endpoint}"),
        otel.kind = "client",
        otel.status_code = Empty,
        http.request.method = "POST",
        http.response.status_code = Empty,
        server.address = Empty,
        server.port = Empty,
        error.type = Empty,
        herenow.endpoint = endpoint,
        herenow.attempt = i64::from(attempt),
    );
    if causes.len() < 2 {
        return Traced::following(span, causes.pop());
    }
    for cause in &causes {
        span.add_link(span_context(cause));
    }
    Traced::of(span, None)
}

/// The question before a send, while the sender's request is being answered.
pub fn question(cause: Option<&TraceContext>) -> Traced {
    let span = info_span!(
        target: TARGET,
        "question",
        otel.name = "POST before_send",
        otel.kind = "client",
        otel.status_code = Empty,
        http.request.method = "POST",
        http.response.status_code = Empty,
        server.address = Empty,
        server.port = Empty,
        error.type = Empty,
        herenow.endpoint = "before_send",
    );
    Traced::of(span, cause.cloned())
}

/// What goes on after its sender was answered: the sender's span has ended, and must not be kept open.
pub fn afterwards(cause: Option<&TraceContext>) -> Span {
    let span = info_span!(target: TARGET, parent: None, "after answer");
    if let Some(cause) = cause {
        follow(&span, cause);
    }
    span
}

/// Where the recipients are is looked up.
pub fn locate(recipients: usize) -> Span {
    info_span!(target: TARGET, "locate", otel.status_code = Empty, herenow.recipients = count(recipients))
}

/// A message is made durable.
pub fn append(recipients: usize) -> Span {
    info_span!(target: TARGET, "append", otel.status_code = Empty, herenow.recipients = count(recipients))
}

/// An online-only message is offered to the recipients' devices.
pub fn offer(recipients: usize) -> Span {
    info_span!(
        target: TARGET,
        "offer",
        herenow.recipients = count(recipients),
        herenow.delivered = Empty,
        herenow.offline = Empty,
        herenow.unconfirmed = Empty,
        herenow.expired = Empty,
        herenow.superseded = Empty,
    )
}

/// Notes what became of the offers.
pub fn offered(span: &Span, summary: &Summary) {
    let Summary { delivered, offline, unconfirmed, expired, superseded } = *summary;
    for (name, number) in [
        ("herenow.delivered", delivered),
        ("herenow.offline", offline),
        ("herenow.unconfirmed", unconfirmed),
        ("herenow.expired", expired),
        ("herenow.superseded", superseded),
    ] {
        span.record(name, i64::from(number));
    }
}

/// Does work in a span, and notes whether it failed.
pub async fn within<T, E>(span: Span, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let result = work.instrument(span.clone()).await;
    if result.is_err() {
        span.record("otel.status_code", "ERROR");
    }
    result
}

fn fail(span: &Span, error: &str) {
    span.record("error.type", error);
    span.record("otel.status_code", "ERROR");
}

/// `tracing` hands on whole numbers of this type only.
fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// `None` if nothing is traced.
fn context(span: &Span) -> Option<TraceContext> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let span = context.span();
    let context = span.span_context();
    let state = context.trace_state().header();
    context.is_valid().then(|| TraceContext {
        trace: u128::from_be_bytes(context.trace_id().to_bytes()),
        span: u64::from_be_bytes(context.span_id().to_bytes()),
        flags: context.trace_flags().to_u8(),
        state: (!state.is_empty()).then(|| state.into()),
    })
}

fn follow(span: &Span, cause: &TraceContext) {
    // It fails where nobody listens, and then nothing is to be followed.
    let _ = span.set_parent(Context::new().with_remote_span_context(span_context(cause)));
}

fn span_context(context: &TraceContext) -> SpanContext {
    let TraceContext { trace, span, flags, state } = context;
    let state = state.as_deref().and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default();
    let (trace, span) = (TraceId::from_bytes(trace.to_be_bytes()), SpanId::from_bytes(span.to_be_bytes()));
    SpanContext::new(trace, span, TraceFlags::new(*flags), true, state)
}
