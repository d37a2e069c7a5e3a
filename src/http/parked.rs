//! A stream on a connection of its own. Its task sleeps but for heartbeats; meanwhile senders write to the socket themselves.

use crate::relay::frame::LAST_CHUNK;
use crate::relay::hub::Socket;
use crate::relay::stream::Stream;
use bytes::{Buf, Bytes};
use socket2::SockRef;
use std::future::Future;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::net::TcpStream;

/// Ends when the peer closes, or when the stream has said goodbye.
pub(super) struct Parked {
    socket: Arc<Socket>,
    stream: Stream,
    /// Being written.
    bytes: Bytes,
    /// The stream has said goodbye.
    is_over: bool,
}

impl Parked {
    pub(super) fn new(socket: Arc<Socket>, stream: Stream, head: Bytes) -> Self {
        Self { socket, stream, bytes: head, is_over: false }
    }
}

impl Future for Parked {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { socket, stream, bytes, is_over } = self.get_mut();
        let Socket::Own(tcp) = &**socket else { return Poll::Ready(()) };
        if is_closed(tcp, cx) {
            return Poll::Ready(());
        }
        loop {
            if bytes.is_empty() {
                // Only what can be written is taken: so a frame that waits can still be taken back, and "taken" is honest.
                if ready!(tcp.poll_write_ready(cx)).is_err() {
                    return Poll::Ready(());
                }
                if *is_over {
                    // Senders may hold the socket for a moment yet: the peer is not to wait for them.
                    let _ = SockRef::from(tcp).shutdown(Shutdown::Write);
                    return Poll::Ready(());
                }
                *bytes = ready!(stream.poll_bytes(cx)).unwrap_or_else(|| {
                    *is_over = true;
                    LAST_CHUNK
                });
            }
            match tcp.try_write(bytes) {
                Ok(0) => return Poll::Ready(()),
                Ok(n) => bytes.advance(n),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if ready!(tcp.poll_write_ready(cx)).is_err() {
                        return Poll::Ready(());
                    }
                }
                Err(_) => return Poll::Ready(()),
            }
        }
    }
}

/// Whether the peer has closed its side, which ends a stream at once. What else it says is passed over.
fn is_closed(tcp: &TcpStream, cx: &mut Context<'_>) -> bool {
    let mut passed_over = [0; 512];
    loop {
        match tcp.poll_read_ready(cx) {
            Poll::Pending => return false,
            Poll::Ready(Err(_)) => return true,
            Poll::Ready(Ok(())) => match tcp.try_read(&mut passed_over) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return true,
            },
        }
    }
}
