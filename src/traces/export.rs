//! The way of ended spans to the collector: OTLP over HTTP, in batches, from a bounded queue. A send never waits for it.

use crate::config::Otel;
use crate::domain::seat::NodeId;
use bytes::Bytes;
use opentelemetry::trace::TracerProvider;
use opentelemetry::{Context, KeyValue};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span, SpanData, SpanLimits, SpanProcessor};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use prost::Message;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, StatusCode, Url};
use std::future::pending;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// So many ended spans wait for the collector at most. Those that have no room are lost, and counted.
const QUEUE: usize = 8_192;
const BATCH: usize = 512;
/// A batch waits so long for more spans.
const LINGER: Duration = Duration::from_secs(1);
/// The collector has so long to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between attempts while it is away: doubled each time.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];
/// What is left at the end of the process has so long to get there.
const LAST_WAIT: Duration = Duration::from_secs(2);
/// That spans are lost is told no more often.
const TELL_EVERY: Duration = Duration::from_mins(1);
/// A batch of callbacks links to all its messages.
const LINKS: u32 = 500;

/// Takes ended spans to the collector.
#[derive(Debug)]
pub struct Exporter {
    spans: mpsc::Receiver<SpanData>,
    batch: Vec<SpanData>,
    lost: Counter,
    /// So many of the lost ones were told of.
    told: u64,
    told_at: Option<Instant>,
    away: bool,
    client: Client,
    url: Url,
    resource: ResourceAttributesWithSchema,
}

/// What makes spans, and what exports them; `None` if no collector is configured.
pub fn start(otel: &Otel, node: &NodeId) -> reqwest::Result<Option<(SdkTracer, Exporter)>> {
    let Some(endpoint) = &otel.endpoint else { return Ok(None) };
    let (send, spans) = mpsc::channel(QUEUE);
    let lost = Counter::default();
    let resource = Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes([
            KeyValue::new("service.name", "herenow"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", node.to_string()),
        ])
        .build();
    // The asynchronous client, as the exporters of the SDK would block a thread each. Not by way of `webhook`: nobody but the operator
    // says where the collector is, and it is often at an address that callbacks must not go to.
    let client = Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .user_agent(concat!("herenow/", env!("CARGO_PKG_VERSION")))
        .timeout(TIMEOUT)
        .build()?;
    let exporter = Exporter {
        spans,
        batch: Vec::new(),
        lost: lost.clone(),
        told: 0,
        told_at: None,
        away: false,
        client,
        url: traces_url(endpoint),
        resource: ResourceAttributesWithSchema::from(&resource),
    };
    let provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(otel.sample_ratio))))
        .with_span_limits(SpanLimits { max_links_per_span: LINKS, ..SpanLimits::default() })
        .with_resource(resource)
        .with_span_processor(Handover { spans: send, lost })
        .build();
    Ok(Some((provider.tracer("herenow"), exporter)))
}

/// As OTLP has it: what is configured is the base of all signals.
fn traces_url(endpoint: &Url) -> Url {
    let mut url = endpoint.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(["v1", "traces"]);
    }
    url
}

/// Where the SDK hands ended spans over.
#[derive(Debug)]
struct Handover {
    spans: mpsc::Sender<SpanData>,
    lost: Counter,
}

impl SpanProcessor for Handover {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            self.lost.inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Why the collector did not take a batch.
enum Untaken {
    /// It may take it later.
    Away(String),
    /// It never will.
    Refused(StatusCode),
}

impl Exporter {
    /// Has the lost spans counted there too.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("spans_lost", "Spans that did not reach the collector", self.lost.clone());
    }

    /// Exports while `work` goes on, and then what is left.
    pub async fn during<T>(mut self, work: impl Future<Output = T>) -> T {
        let done = CancellationToken::new();
        let work = async {
            let ended = work.await;
            done.cancel();
            ended
        };
        tokio::join!(work, self.run(&done)).0
    }

    async fn run(&mut self, done: &CancellationToken) {
        let last = async {
            done.cancelled().await;
            sleep(LAST_WAIT).await;
        };
        tokio::select! {
            () = self.export_until(done) => {}
            () = last => tracing::warn!("some traces were lost: the collector was too slow at the end"),
        }
    }

    async fn export_until(&mut self, done: &CancellationToken) {
        while done.run_until_cancelled(self.gather()).await.is_some() {
            self.export(done).await;
        }
        while self.gather_rest() {
            self.export(done).await;
        }
    }

    /// Waits until there is a batch.
    async fn gather(&mut self) {
        let (spans, batch) = (&mut self.spans, &mut self.batch);
        if batch.is_empty() && spans.recv_many(batch, BATCH).await == 0 {
            // No span will ever come: the tracer is gone.
            return pending().await;
        }
        let fill = async { while batch.len() < BATCH && spans.recv_many(batch, BATCH - batch.len()).await > 0 {} };
        let _ = timeout(LINGER, fill).await;
    }

    /// Whether there is still something to export.
    fn gather_rest(&mut self) -> bool {
        while self.batch.len() < BATCH
            && let Ok(span) = self.spans.try_recv()
        {
            self.batch.push(span);
        }
        !self.batch.is_empty()
    }

    /// Sends the batch until it is taken or refused; once `done`, no more than once.
    async fn export(&mut self, done: &CancellationToken) {
        let batch = std::mem::take(&mut self.batch);
        let spans = batch.len() as u64;
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let body = Bytes::from(ExportTraceServiceRequest { resource_spans }.encode_to_vec());
        let [mut pause, longest] = PAUSES;
        loop {
            match self.post(body.clone()).await {
                Ok(()) => return self.taken(),
                Err(Untaken::Refused(status)) => {
                    self.lost.inc_by(spans);
                    return self.untaken(&format!("it answered {status}"));
                }
                Err(Untaken::Away(why)) => self.untaken(&why),
            }
            if done.run_until_cancelled(sleep(pause)).await.is_none() {
                return;
            }
            pause = longest.min(pause * 2);
        }
    }

    async fn post(&self, body: Bytes) -> Result<(), Untaken> {
        let request = self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/x-protobuf").body(body);
        // The URL may bear credentials.
        let away = |error: reqwest::Error| Untaken::Away(format!("{:#}", anyhow::Error::new(error.without_url())));
        let answer = request.send().await.map_err(away)?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status if status.is_server_error() || matches!(status.as_u16(), 408 | 429) => {
                Err(Untaken::Away(format!("it answered {status}")))
            }
            status => Err(Untaken::Refused(status)),
        }
    }

    fn taken(&mut self) {
        if std::mem::take(&mut self.away) {
            tracing::info!("the trace collector takes spans again");
        }
        let tells = self.told_at.is_none_or(|at| at.elapsed() > TELL_EVERY);
        let lost = self.lost.get();
        if tells && lost > self.told {
            self.told_at = Some(Instant::now());
            tracing::warn!(spans = lost - self.told, "spans were lost");
            self.told = lost;
        }
    }

    /// Told once, and not again until it was there in between.
    fn untaken(&mut self, why: &str) {
        if !std::mem::replace(&mut self.away, true) {
            tracing::warn!(why, "the trace collector does not take spans; sends and callbacks go on without");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::Tracer;

    #[test]
    fn what_the_queue_has_no_room_for_is_lost_and_counted() {
        let endpoint = Some("http://127.0.0.1:1".parse().unwrap());
        let (tracer, exporter) =
            start(&Otel { endpoint, sample_ratio: 1.0 }, &NodeId::parse("n").unwrap()).unwrap().unwrap();
        for _ in 0..QUEUE + 5 {
            drop(tracer.start("a"));
        }
        assert_eq!((exporter.spans.len(), exporter.lost.get()), (QUEUE, 5));
    }

    #[test]
    fn the_path_of_traces_is_put_after_that_of_the_endpoint() {
        for (endpoint, url) in [
            ("http://localhost:4318", "http://localhost:4318/v1/traces"),
            ("https://otlp.example/base/", "https://otlp.example/base/v1/traces"),
            ("https://u:p@otlp.example/base?key=1", "https://u:p@otlp.example/base/v1/traces?key=1"),
        ] {
            assert_eq!(traces_url(&endpoint.parse().unwrap()).as_str(), url);
        }
    }
}
