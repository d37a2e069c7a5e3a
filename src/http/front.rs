//! The first look at each connection. A plain request for a stream is answered here, and its connection becomes the stream: it needs no
//! HTTP server's buffers any more, and senders may write to it directly. All else goes to the HTTP server of its version, untouched. With
//! TLS, the handshake says which version it is, and streams are carried by the HTTP servers.

use super::answer::request_id;
use super::auth::Keys;
use super::connection::{Connection, Multiplexed, peer_of};
use super::h2;
use super::parked::Parked;
use super::problem::{Code, Problem};
use super::routes::{Doors, routes};
use super::stream::{self, Asked, Opened};
use crate::relay::frame::LAST_CHUNK;
use crate::relay::handle::Relay;
use crate::relay::hub::Socket;
use actix_http::error::DispatchError;
use actix_http::{HttpService, Request, Response};
use actix_service::boxed::{self, RcService};
use actix_service::{Service, ServiceFactory, ServiceFactoryExt, map_config};
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, Extensions, ServiceResponse};
use actix_web::{HttpResponse, ResponseError};
use bytes::Bytes;
use socket2::SockRef;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// A small write buffer makes the server take one frame at a time from a stream, so "taken" means "written, but for one frame".
const WRITE_BUFFER: usize = 512;
/// The same for what waits to be encrypted, which must have room for one record.
const TLS_BUFFER: usize = 16 << 10;
/// Headers have so long to arrive.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// A head that is longer, or that doesn't come at once, is the HTTP server's affair.
const HEAD_BYTES: usize = 8 << 10;
const HEADERS: usize = 64;
/// A connection that says nothing is given up after this.
const FIRST_WORD: Duration = Duration::from_secs(5);

/// The HTTP server takes no more.
const HEADERS_MAX: usize = 96;
/// What follows a request that was refused is passed over for so long, and so many times.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_READS: usize = 256;

type Local<T> = Pin<Box<dyn Future<Output = T>>>;
/// The HTTP server for one connection of HTTP/1.1.
type Http1<IO> = RcService<(IO, Option<SocketAddr>), (), DispatchError>;

/// The front of the HTTP servers.
pub struct Front {
    doors: Doors,
    tls: Option<TlsAcceptor>,
}

/// [`Front`] on one worker.
pub struct FrontService(Rc<Servers>);

struct Servers {
    doors: Doors,
    http1: Transport,
    http2: h2::Http,
}

/// What the listening socket speaks.
enum Transport {
    Plain(Http1<TcpStream>),
    Tls(TlsAcceptor, Http1<TlsStream<TcpStream>>),
}

impl Front {
    /// For these doors; with TLS and nothing else, if it is given.
    pub fn new(doors: Doors, tls: Option<TlsAcceptor>) -> Self {
        Self { doors, tls }
    }
}

impl ServiceFactory<TcpStream> for Front {
    type Response = ();
    type Error = Infallible;
    type Config = ();
    type Service = FrontService;
    type InitError = ();
    type Future = Local<Result<FrontService, ()>>;

    fn new_service(&self, (): ()) -> Self::Future {
        let (doors, tls) = (self.doors.clone(), self.tls.clone());
        Box::pin(async move {
            let http1 = match tls {
                None => Transport::Plain(http1(&doors, |tcp| tcp).await?),
                Some(acceptor) => {
                    Transport::Tls(acceptor, http1(&doors, |tls: &TlsStream<TcpStream>| tls.get_ref().0).await?)
                }
            };
            let answers = app(&doors).map(|answer| Response::from(answer).map_into_boxed_body());
            let http2 = boxed::rc_service(answers.map_err(Response::from).new_service(()).await?);
            Ok(FrontService(Rc::new(Servers { doors, http1, http2 })))
        })
    }
}

fn app(
    doors: &Doors,
) -> impl ServiceFactory<
    Request,
    Config = (),
    Response = ServiceResponse<impl MessageBody + use<>>,
    Error = actix_web::Error,
    InitError = (),
> + use<> {
    map_config(routes(doors.clone()), |()| AppConfig::default())
}

async fn http1<IO>(doors: &Doors, tcp: fn(&IO) -> &TcpStream) -> Result<Http1<IO>, ()>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let server = HttpService::build()
        .keep_alive(KEEP_ALIVE)
        .client_request_timeout(HEADERS_TIMEOUT)
        // A closed tab is offline at once, not two heartbeats later. The price: a client that shuts its sending side is closed too.
        .h1_allow_half_closed(false)
        .h1_write_buffer_size(WRITE_BUFFER)
        .on_connect_ext(move |io: &IO, data: &mut Extensions| {
            data.insert(Connection::of(tcp(io)));
        })
        .h1(app(doors));
    Ok(boxed::rc_service(server.new_service(()).await?))
}

impl Service<TcpStream> for FrontService {
    type Response = ();
    type Error = Infallible;
    type Future = Local<Result<(), Infallible>>;

    actix_service::always_ready!();

    fn call(&self, tcp: TcpStream) -> Self::Future {
        let servers = Rc::clone(&self.0);
        // Each step has a box of its own, so that a stream, which lasts, takes no more memory than it needs.
        Box::pin(async move {
            match &servers.http1 {
                Transport::Plain(http1) => match Box::pin(look(tcp, &servers.doors)).await {
                    First::Stream(stream) => {
                        drop(servers);
                        stream.await;
                    }
                    First::Http1(tcp) => serve_http1(http1, tcp, peer_of).await,
                    First::Http2(tcp) => {
                        let connection = Multiplexed::of(&tcp);
                        Box::pin(h2::serve(tcp, &servers.http2, &connection, servers.drain())).await;
                    }
                    First::Done => {}
                },
                Transport::Tls(acceptor, http1) => Box::pin(servers.serve_tls(acceptor, http1, tcp)).await,
            }
            Ok(())
        })
    }
}

impl Servers {
    async fn serve_tls(&self, acceptor: &TlsAcceptor, http1: &Http1<TlsStream<TcpStream>>, tcp: TcpStream) {
        let accepted = acceptor.accept_with(tcp, |session| session.set_buffer_limit(Some(TLS_BUFFER)));
        let Ok(Ok(tls)) = timeout(FIRST_WORD, accepted).await else { return };
        let (tcp, session) = tls.get_ref();
        if session.alpn_protocol() == Some(b"h2") {
            let connection = Multiplexed::of(tcp);
            Box::pin(h2::serve(tls, &self.http2, &connection, self.drain())).await;
        } else {
            serve_http1(http1, tls, |tls| peer_of(tls.get_ref().0)).await;
        }
    }

    fn drain(&self) -> &CancellationToken {
        &self.doors.relay.tasks().drain
    }
}

/// What goes wrong with a connection is the peer's affair: it is closed.
async fn serve_http1<IO>(http1: &Http1<IO>, io: IO, peer: impl Fn(&IO) -> Option<SocketAddr>) {
    let peer = peer(&io);
    let _ = http1.call((io, peer)).await;
}

/// What a connection without TLS turns out to be.
enum First {
    Stream(Box<Parked>),
    Http1(TcpStream),
    Http2(TcpStream),
    /// It was answered, or has ended.
    Done,
}

async fn look(tcp: TcpStream, doors: &Doors) -> First {
    let mut buffer = vec![0; HEAD_BYTES];
    let Ok(Ok(n)) = timeout(FIRST_WORD, tcp.peek(&mut buffer)).await else { return First::Done };
    if buffer[..n].starts_with(b"PRI * HTTP/2") {
        return First::Http2(tcp);
    }
    if let Some(problem) = malformed(&buffer[..n]) {
        refuse(tcp, &problem).await;
        return First::Done;
    }
    let Some(head) = Head::parse(&buffer[..n], &doors.cors_origins) else { return First::Http1(tcp) };
    // It was only peeked at: now it is read.
    match tcp.try_read(&mut vec![0; n]) {
        Ok(read) if read == n => answer(tcp, &head, &doors.keys, &doors.relay).await,
        Ok(_) | Err(_) => First::Done,
    }
}

/// What the HTTP server would refuse without a problem document, or hang up on.
fn malformed(bytes: &[u8]) -> Option<Problem> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    match httparse::Request::new(&mut headers).parse(bytes) {
        Ok(_) => None,
        Err(httparse::Error::TooManyHeaders) => {
            Some(Problem::new(Code::InvalidRequest, format!("the request has more than {HEADERS_MAX} headers")))
        }
        Err(error) => Some(Problem::new(Code::InvalidRequest, format!("the request is not HTTP/1.1: {error}"))),
    }
}

/// Answers what was never read. It is passed over for a moment, or closing would take the answer back from the peer.
async fn refuse(tcp: TcpStream, problem: &Problem) {
    let socket = Socket::Own(tcp);
    let _ = timeout(FIRST_WORD, socket.write_all(&problem_answer(problem, &request_id(None), None))).await;
    let Socket::Own(tcp) = socket else { return };
    let _ = SockRef::from(&tcp).shutdown(Shutdown::Write);
    let _ = timeout(LINGER, async {
        let mut passed_over = vec![0; HEAD_BYTES];
        for _ in 0..LINGER_READS {
            if tcp.readable().await.is_err() || matches!(tcp.try_read(&mut passed_over), Ok(0)) {
                return;
            }
        }
    })
    .await;
}

/// What is to be known of a request for a stream.
struct Head<'a> {
    query: &'a str,
    authorization: Option<&'a [u8]>,
    last_event_id: Option<&'a [u8]>,
    request_id: Option<&'a [u8]>,
    /// One of those that are allowed.
    origin: Option<&'a str>,
}

impl<'a> Head<'a> {
    /// `None` for all that is not simply `GET /v1/stream` by HTTP/1.1, complete and without a body.
    fn parse(bytes: &'a [u8], origins: &[String]) -> Option<Self> {
        if !bytes.starts_with(b"GET /v1/stream") {
            return None;
        }
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let httparse::Status::Complete(length) = request.parse(bytes).ok()? else { return None };
        let (path, query) = request.path.map(|path| path.split_once('?').unwrap_or((path, "")))?;
        if length != bytes.len() || request.version != Some(1) || path != "/v1/stream" {
            return None;
        }
        let mut head = Self { query, authorization: None, last_event_id: None, request_id: None, origin: None };
        for header in request.headers.iter() {
            let place = match header.name.to_ascii_lowercase().as_str() {
                "authorization" => &mut head.authorization,
                "last-event-id" => &mut head.last_event_id,
                "x-request-id" => &mut head.request_id,
                "origin" if !origins.is_empty() => {
                    let origin = std::str::from_utf8(header.value).ok()?;
                    head.origin = Some(origin).filter(|o| origins.iter().any(|allowed| allowed == o));
                    head.origin?;
                    continue;
                }
                "content-length" | "transfer-encoding" | "expect" | "upgrade" => return None,
                _ => continue,
            };
            // One that comes twice could be read in two ways.
            if place.replace(header.value).is_some() {
                return None;
            }
        }
        Some(head)
    }
}

async fn answer(tcp: TcpStream, head: &Head<'_>, keys: &Keys, relay: &Relay) -> First {
    let id = request_id(head.request_id);
    let socket = Arc::new(Socket::Own(tcp));
    let asked = Asked {
        query: head.query,
        authorization: head.authorization,
        last_event_id: head.last_event_id,
        socket: Some(socket.clone()),
    };
    let opened = stream::open(asked, keys, relay).await;
    let status = opened.as_ref().map_or_else(|problem| problem.status_code().as_u16(), |_| 200);
    tracing::debug!(request.id = id, method = "GET", route = "/v1/stream", status, "answered");
    match opened {
        Ok(Opened::Stream(stream)) => {
            First::Stream(Box::new(Parked::new(socket, stream, stream_head(&id, head.origin))))
        }
        Ok(Opened::Goodbye(event)) => {
            let (_, event) = event.into_chunk();
            let answer = [&stream_head(&id, head.origin)[..], &event, &LAST_CHUNK].concat();
            let _ = timeout(FIRST_WORD, socket.write_all(&answer)).await;
            First::Done
        }
        Err(problem) => {
            let _ = timeout(FIRST_WORD, socket.write_all(&problem_answer(&problem, &id, head.origin))).await;
            First::Done
        }
    }
}

/// In chunks, though the body ends with the connection anyway: some clients hand on what is not chunked in large blocks only.
fn stream_head(id: &str, origin: Option<&str>) -> Bytes {
    let cors = cors_headers(origin);
    let date = httpdate::fmt_http_date(std::time::SystemTime::now());
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\nx-accel-buffering: no\r\n\
        x-request-id: {id}\r\n{cors}date: {date}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    )
    .into()
}

fn cors_headers(origin: Option<&str>) -> String {
    origin.map_or_else(String::new, |origin| {
        format!(
            "access-control-allow-origin: {origin}\r\naccess-control-expose-headers: x-request-id, retry-after\r\nvary: Origin\r\n"
        )
    })
}

fn problem_answer(problem: &Problem, id: &str, origin: Option<&str>) -> Vec<u8> {
    let answer: HttpResponse = problem.answer(id);
    let (status, cors) = (answer.status(), cors_headers(origin));
    let mut bytes = format!("HTTP/1.1 {status}\r\n{cors}x-request-id: {id}\r\nconnection: close\r\n").into_bytes();
    for (name, value) in answer.headers() {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    let body = answer.into_body().try_into_bytes().unwrap_or_default();
    bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

impl Socket {
    /// Writes a short answer on a connection of one's own.
    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        let Self::Own(tcp) = self else { return Ok(()) };
        while !bytes.is_empty() {
            tcp.writable().await?;
            match tcp.try_write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, origins: &[String]) -> bool {
        Head::parse(text.as_bytes(), origins).is_some()
    }

    #[test]
    fn only_a_plain_request_for_a_stream_is_taken() {
        assert!(parse("GET /v1/stream?after=now HTTP/1.1\r\nhost: a\r\n\r\n", &[]));
        for other in [
            "GET /v1/stream HTTP/1.0\r\n\r\n",
            "GET /v1/streams HTTP/1.1\r\n\r\n",
            "POST /v1/stream HTTP/1.1\r\n\r\n",
            "GET /v1/stream HTTP/1.1\r\nhost: a\r\n",
            "GET /v1/stream HTTP/1.1\r\ncontent-length: 1\r\n\r\n",
            "GET /v1/stream HTTP/1.1\r\nupgrade: h2c\r\n\r\n",
            "GET /v1/stream HTTP/1.1\r\nauthorization: a\r\nauthorization: b\r\n\r\n",
            "GET /v1/stream HTTP/1.1\r\nhost: a\r\n\r\nGET /",
            "GET /v1/stream HTTP/1.1\r\nbad header\r\n\r\n",
        ] {
            assert!(!parse(other, &[]), "{other:?}");
        }
    }

    #[test]
    fn a_foreign_origin_is_left_to_the_server() {
        let allowed = ["https://a.example".to_owned()];
        let from = |origin: &str| format!("GET /v1/stream HTTP/1.1\r\norigin: {origin}\r\n\r\n");
        assert!(parse(&from("https://a.example"), &allowed));
        assert!(!parse(&from("https://b.example"), &allowed));
        assert!(parse(&from("https://b.example"), &[]), "without CORS no origin matters");
    }
}
