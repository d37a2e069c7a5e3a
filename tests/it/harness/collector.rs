//! An OpenTelemetry collector: it takes OTLP over HTTP on a thread of its own, and keeps every span.

use super::eventually;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value::{IntValue, StringValue};
use opentelemetry_proto::tonic::trace::v1 as otlp;
use parking_lot::Mutex;
use prost::Message;
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

/// A span as a test looks at it: ids in hex, attributes as text.
#[derive(Clone, Debug)]
pub struct Span {
    pub name: String,
    pub kind: i32,
    pub trace: String,
    pub id: String,
    /// Empty if it has none.
    pub parent: String,
    pub state: String,
    pub is_error: bool,
    pub attributes: BTreeMap<String, String>,
    /// The traces that it links to.
    pub links: Vec<String>,
    /// Attributes of who made it.
    pub resource: BTreeMap<String, String>,
}

impl Span {
    /// An attribute, or nothing.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

#[derive(Default)]
struct Taken {
    spans: Vec<Span>,
    /// All that came, as it came.
    bytes: Vec<u8>,
}

/// See the module's text.
pub struct Collector {
    addr: SocketAddr,
    taken: Arc<Mutex<Taken>>,
    status: Arc<AtomicU16>,
    asked: Arc<AtomicUsize>,
}

impl Collector {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let collector = Self {
            addr: listener.local_addr().unwrap(),
            taken: Arc::default(),
            status: Arc::new(AtomicU16::new(200)),
            asked: Arc::default(),
        };
        let (taken, status, asked) = (collector.taken.clone(), collector.status.clone(), collector.asked.clone());
        std::thread::spawn(move || {
            for tcp in listener.incoming() {
                let (taken, status, asked) = (taken.clone(), status.clone(), asked.clone());
                std::thread::spawn(move || serve(tcp.unwrap(), &taken, &status, &asked));
            }
        });
        collector
    }

    /// What to configure.
    pub fn setting(&self) -> String {
        format!("otel.endpoint=http://{}", self.addr)
    }

    /// From now on it answers so, and keeps what it answers 200.
    pub fn answer(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    /// How often it was asked to take spans.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        self.taken.lock().spans.clone()
    }

    /// Waits until a trace has a span of this name.
    #[track_caller]
    pub fn expect(&self, trace: &str, name: &str) -> Span {
        eventually(name, || {
            let spans = self.spans();
            let found = spans.iter().find(|span| span.trace == trace && span.name == name);
            found.cloned().ok_or_else(|| format!("{spans:#?}"))
        })
    }

    /// None of these is in anything that came.
    #[track_caller]
    pub fn check_holds_none_of(&self, texts: &[&str]) {
        let bytes = &self.taken.lock().bytes;
        assert!(!bytes.is_empty());
        for text in texts {
            assert!(memchr::memmem::find(bytes, text.as_bytes()).is_none(), "{text} is in a span");
        }
    }
}

fn serve(tcp: TcpStream, taken: &Mutex<Taken>, status: &AtomicU16, asked: &AtomicUsize) {
    let mut tcp = BufReader::new(tcp);
    while let Ok(Some(body)) = read(&mut tcp) {
        asked.fetch_add(1, Ordering::Relaxed);
        let status = status.load(Ordering::Relaxed);
        if status == 200 {
            let mut taken = taken.lock();
            taken.spans.extend(spans(&body));
            taken.bytes.extend_from_slice(&body);
        }
        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
        if tcp.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// The body of a request; `None` at the end of the connection.
fn read(tcp: &mut BufReader<TcpStream>) -> io::Result<Option<Vec<u8>>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if tcp.read_line(&mut head)? == 0 {
            return Ok(None);
        }
    }
    assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("content-type: application/x-protobuf\r\n"), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    tcp.read_exact(&mut body)?;
    Ok(Some(body))
}

fn spans(body: &[u8]) -> Vec<Span> {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let mut spans = vec![];
    for of_resource in request.resource_spans {
        let resource = attributes(&of_resource.resource.unwrap().attributes);
        for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            assert!(span.events.is_empty(), "lines of the log are no events: {span:?}");
            spans.push(Span {
                name: span.name,
                kind: span.kind,
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                state: span.trace_state,
                is_error: span.status.is_some_and(|status| status.code() == otlp::status::StatusCode::Error),
                attributes: attributes(&span.attributes),
                links: span.links.iter().map(|link| hex(&link.trace_id)).collect(),
                resource: resource.clone(),
            });
        }
    }
    spans
}

fn attributes(of: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(StringValue(text)) => text.clone(),
        Some(IntValue(n)) => n.to_string(),
        other => panic!("{attribute:?} is {other:?}"),
    };
    of.iter().map(|attribute| (attribute.key.clone(), text(attribute))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}
