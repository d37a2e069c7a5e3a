//! HTTP/2 and TLS as clients have them: with or without the other, down to single streams that are reset or not read.

use super::{Node, Setup};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use rcgen::{CertifiedKey, KeyPair};
use reqwest::{Client, ClientBuilder, RequestBuilder};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{RootCertStore, SupportedProtocolVersion};
use serde_json::Value;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A certificate for 127.0.0.1, in files that a node is told of.
pub struct Secure {
    directory: tempfile::TempDir,
    pub pem: String,
}

impl Secure {
    pub fn new() -> Self {
        let mut secure = Self { directory: tempfile::tempdir().unwrap(), pem: String::new() };
        secure.renew();
        secure
    }

    /// Another certificate in the place of the former, as tools do it that move whole files.
    pub fn renew(&mut self) {
        let CertifiedKey { cert, signing_key } = certified();
        self.pem = cert.pem();
        self.put("cert.pem", &self.pem);
        self.put("key.pem", &signing_key.serialize_pem());
    }

    pub fn put(&self, name: &str, text: &str) {
        let draft = self.directory.path().join("draft");
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(&draft, self.directory.path().join(name)).unwrap();
    }

    pub fn settings(&self) -> [String; 2] {
        ["cert", "key"].map(|name| format!("server.tls.{name}={}/{name}.pem", self.directory.path().display()))
    }

    pub fn setup(&self) -> Setup {
        Node::setup().set_all(&self.settings())
    }
}

pub fn certified() -> CertifiedKey<KeyPair> {
    rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap()
}

/// The way to a node.
pub struct Wire {
    pub runtime: Runtime,
    address: SocketAddr,
    /// What is trusted; without it, there is no TLS.
    pem: Option<String>,
}

impl Wire {
    pub fn plain(node: &Node) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { runtime, address: node.address(), pem: None }
    }

    pub fn tls(node: &Node, secure: &Secure) -> Self {
        Self { pem: Some(secure.pem.clone()), ..Self::plain(node) }
    }

    /// A client that chooses its version as browsers do, or as it is told. Without TLS it must be told of HTTP/2.
    pub fn client(&self, tell: impl FnOnce(ClientBuilder) -> ClientBuilder) -> Client {
        let builder = tell(Client::builder().no_proxy().timeout(PATIENCE));
        let trusted = self.pem.as_ref().map(|pem| reqwest::Certificate::from_pem(pem.as_bytes()).unwrap());
        let builder = if let Some(trusted) = trusted { builder.tls_certs_only([trusted]) } else { builder };
        builder.build().unwrap()
    }

    pub fn url(&self, path: &str) -> String {
        let scheme = if self.pem.is_some() { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.address)
    }

    /// Sends a request and gives the answer and its text.
    #[track_caller]
    pub fn ask(&self, request: RequestBuilder) -> (reqwest::Version, u16, reqwest::header::HeaderMap, String) {
        self.runtime.block_on(async {
            let answer = request.send().await.unwrap();
            let (version, status, headers) = (answer.version(), answer.status().as_u16(), answer.headers().clone());
            (version, status, headers, answer.text().await.unwrap())
        })
    }

    /// A connection of HTTP/2.
    #[track_caller]
    pub fn http2(&self) -> Http2 {
        self.http2_with_window(65_535)
    }

    /// One whose streams take no more than this unread.
    #[track_caller]
    pub fn http2_with_window(&self, window: u32) -> Http2 {
        self.runtime.block_on(in_time("a connection of HTTP/2", async {
            let tcp = TcpStream::connect(self.address).await.unwrap();
            let io: Box<dyn Io> = match &self.pem {
                None => Box::new(tcp),
                Some(pem) => {
                    let name = ServerName::try_from("127.0.0.1").unwrap();
                    let tls = TlsConnector::from(client_config(pem, &[b"h2"])).connect(name, tcp).await.unwrap();
                    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
                    Box::new(tls)
                }
            };
            let mut builder = h2::client::Builder::new();
            builder.initial_window_size(window).initial_connection_window_size(8 << 20);
            let (send, connection) = builder.handshake(io).await.unwrap();
            let task = self.runtime.spawn(async move {
                let _ = connection.await;
            });
            Http2 { handle: self.runtime.handle().clone(), send, task, url: self.url("") }
        }))
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Trusts this certificate and no other.
pub fn client_config(pem: &str, protocols: &[&[u8]]) -> Arc<rustls::ClientConfig> {
    client_config_of(pem, protocols, rustls::ALL_VERSIONS)
}

/// The same, for these versions of TLS.
pub fn client_config_of(
    pem: &str,
    protocols: &[&[u8]],
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<rustls::ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

/// Waits for what is to come, within [`PATIENCE`].
async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// A connection of HTTP/2.
pub struct Http2 {
    handle: tokio::runtime::Handle,
    send: SendRequest<Bytes>,
    task: JoinHandle<()>,
    url: String,
}

impl Http2 {
    /// Asks for a stream and waits until its head is there.
    #[track_caller]
    pub fn stream(&mut self, token: &str) -> Http2Stream {
        let (answer, send) = self.request("GET", "/v1/stream", token);
        let answer = self.handle.block_on(in_time("a stream's head", answer)).unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Http2Stream { handle: self.handle.clone(), body: answer.into_body(), sending: send, text: String::new() }
    }

    /// A request without a body.
    #[track_caller]
    pub fn request(&mut self, method: &str, path: &str, token: &str) -> (ResponseFuture, SendStream<Bytes>) {
        let request = http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        let request = request.header("authorization", format!("Bearer {token}")).body(()).unwrap();
        self.handle.block_on(in_time("room for a request", async {
            self.send = self.send.clone().ready().await.unwrap();
            self.send.send_request(request, true).unwrap()
        }))
    }

    /// Closes the connection without a word of HTTP/2, as a browser that is killed.
    pub fn close(self) {
        self.task.abort();
        let _ = self.handle.block_on(self.task);
    }

    /// Waits until the other side has closed it.
    pub fn closed(self) {
        self.handle.block_on(in_time("the end of a connection", self.task)).unwrap();
    }
}

/// A stream of events. Nothing of it is read unless a method asks for it. Dropping it resets it, as a browser does when a tab is closed.
pub struct Http2Stream {
    handle: tokio::runtime::Handle,
    body: RecvStream,
    sending: SendStream<Bytes>,
    text: String,
}

impl Http2Stream {
    /// Reads until this text has come.
    #[track_caller]
    pub fn read_until(&mut self, what: &str) {
        while !self.text.contains(what) {
            let more = self.more().expect("it goes on");
            assert!(more, "the stream has ended without {what}: {}", self.text);
        }
    }

    /// Reads to the end; gives all.
    #[track_caller]
    pub fn read_to_end(mut self) -> String {
        while self.more().expect("it ends in order") {}
        self.text
    }

    /// The next message.
    #[track_caller]
    pub fn next_message(&mut self) -> Value {
        self.read_until("event: message");
        let at = self.text.find("event: message").unwrap();
        self.text.drain(..at);
        self.read_until("\n\n");
        let end = self.text.find("\n\n").unwrap();
        let event: String = self.text.drain(..end + 2).collect();
        let data = event.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        serde_json::from_str(data).unwrap()
    }

    fn more(&mut self) -> Result<bool, io::Error> {
        let chunk = self.handle.block_on(async { tokio::time::timeout(PATIENCE, self.body.data()).await })?;
        let Some(chunk) = chunk.transpose().map_err(io::Error::other)? else { return Ok(false) };
        self.body.flow_control().release_capacity(chunk.len()).unwrap();
        self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        Ok(true)
    }

    /// Resets it with a word of its own.
    pub fn reset(mut self) {
        self.sending.send_reset(Reason::CANCEL);
    }
}
