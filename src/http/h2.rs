//! HTTP/2, with TLS or without: one task per connection, which holds all that is done for its requests. So what is done for a connection that
//! is closed, or for a request that its client has reset (as a browser does when a tab with a stream is closed), ends at once; the HTTP
//! server's own way would find a reset out at the next write, and a frame would be lost in it.

use super::connection::{Connection, Multiplexed};
use actix_http::body::{BodySize, BoxBody, MessageBody};
use actix_http::{HttpMessage, Request, Response};
use actix_service::Service;
use actix_service::boxed::RcService;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use h2::server::{Builder, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use http::{Method, StatusCode, Version};
use std::future::poll_fn;
use std::pin::pin;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// What answers requests.
pub(super) type Http = RcService<Request, Response<BoxBody>, Response<BoxBody>>;

/// A connection carries so many requests and streams at a time.
const STREAMS: u32 = 1_000;
const HEADERS_BYTES: u32 = 64 << 10;
/// So much of the bodies of a connection's requests is taken in before it is read.
const CONNECTION_WINDOW: u32 = 1 << 20;
/// So little of a body waits for the socket, that a frame which still waits is one that can be taken back.
const SEND_BUFFER: usize = 16 << 10;
/// The first frames have so long to arrive.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a peer is asked whether it is there, and how long it has to say so.
const PING_INTERVAL: Duration = Duration::from_secs(75);

/// Serves a connection to its end. One that is there when `drain` comes takes no further requests from then on.
pub(super) async fn serve<IO>(io: IO, http: &Http, connection: &Multiplexed, drain: &CancellationToken)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADERS_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER);
    let Ok(Ok(mut wire)) = timeout(HANDSHAKE_TIMEOUT, builder.handshake(io)).await else { return };
    let mut silence = pin!(silence(wire.ping_pong()));
    let mut requests = FuturesUnordered::new();
    let mut may_drain = !drain.is_cancelled();
    loop {
        tokio::select! {
            accepted = wire.accept() => match accepted {
                Some(Ok((request, respond))) => requests.push(answer(request, respond, http, connection)),
                Some(Err(_)) | None => return,
            },
            Some(()) = requests.next() => {}
            () = &mut silence => return,
            () = drain.cancelled(), if may_drain => {
                may_drain = false;
                wire.graceful_shutdown();
            }
        }
    }
}

/// Ends when the peer doesn't answer any more.
async fn silence(pings: Option<PingPong>) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        sleep(PING_INTERVAL).await;
        if !matches!(timeout(PING_INTERVAL, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}

async fn answer(
    request: http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    http: &Http,
    connection: &Multiplexed,
) {
    let is_head = request.method() == Method::HEAD;
    let cut = CancellationToken::new();
    let connection = connection.of_request(cut.clone());
    let answered = tokio::select! {
        answered = http.call(as_request(request, connection)) => answered,
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
    };
    let (head, body) = answered.unwrap_or_else(|refused| refused).into_parts();
    let is_over = is_head || matches!(body.size(), BodySize::None | BodySize::Sized(0));
    if let Ok(mut stream) = respond.send_response(as_head(&head, body.size()), is_over)
        && !is_over
    {
        tokio::select! {
            () = send(&mut stream, body) => return,
            () = cut.cancelled() => {}
        }
        stream.send_reset(Reason::CANCEL);
    }
}

/// Hands a body on as the peer takes it, until it is over or the peer doesn't want it any more.
async fn send(stream: &mut SendStream<Bytes>, body: BoxBody) {
    let mut body = pin!(body);
    // Only what can be sent is taken from the body, as from a stream on a connection of its own.
    while room(stream, 1).await.is_some() {
        let next = tokio::select! {
            biased;
            _ = poll_fn(|cx| stream.poll_reset(cx)) => return,
            next = poll_fn(|cx| body.as_mut().poll_next(cx)) => next,
        };
        let mut chunk = match next {
            Some(Ok(chunk)) => chunk,
            Some(Err(_)) => return stream.send_reset(Reason::INTERNAL_ERROR),
            None => {
                // It fails only on a stream that has ended already.
                let _ = stream.send_data(Bytes::new(), true);
                return;
            }
        };
        while !chunk.is_empty() {
            let Some(room) = room(stream, chunk.len()).await else { return };
            let part = chunk.split_to(room.min(chunk.len()));
            if stream.send_data(part, false).is_err() {
                return;
            }
        }
    }
}

/// Waits until something can be sent; `None` if nothing can be any more.
async fn room(stream: &mut SendStream<Bytes>, wanted: usize) -> Option<usize> {
    stream.reserve_capacity(wanted);
    while stream.capacity() == 0 {
        poll_fn(|cx| stream.poll_capacity(cx)).await?.ok()?;
    }
    Some(stream.capacity())
}

fn as_request(request: http::Request<RecvStream>, connection: Connection) -> Request {
    let (parts, body) = request.into_parts();
    let mut request = Request::with_payload(body.into());
    let head = request.head_mut();
    head.uri = parts.uri;
    head.method = parts.method;
    head.version = parts.version;
    head.headers = parts.headers.into();
    head.peer_addr = connection.peer;
    request.extensions_mut().insert(connection);
    request
}

/// What HTTP/1 says of a connection has no place here (RFC 9113, 8.2.2).
const OF_HTTP_1: [HeaderName; 5] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

fn as_head(answer: &Response<()>, size: BodySize) -> http::Response<()> {
    let mut head = http::Response::new(());
    *head.status_mut() = answer.status();
    *head.version_mut() = Version::HTTP_2;
    let headers = head.headers_mut();
    for (name, value) in answer.headers().iter().filter(|(name, _)| !OF_HTTP_1.contains(name)) {
        headers.append(name, value.clone());
    }
    if let BodySize::Sized(length) = size
        && !matches!(answer.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    {
        headers.insert(CONTENT_LENGTH, length.into());
    }
    if let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(SystemTime::now())) {
        headers.insert(DATE, date);
    }
    head
}
