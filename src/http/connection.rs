//! The listening socket and the connections that come of it: options that make outcomes honest, and a handle for each stream's seat.

use crate::config;
use crate::relay::hub::Socket;
use actix_web::{HttpMessage, HttpRequest};
use socket2::{Domain, Protocol, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// The kernel holds so much unread data of a slow reader per connection, beside what the seat's queue holds.
const SEND_BUFFER: usize = 128 << 10;
/// And so little of it unsent, that a frame which still waits is one that can be taken back.
const NOT_SENT_LOW_WATER: u32 = 16 << 10;
const BACKLOG: i32 = 4_096;

/// Listens with the options that every accepted connection inherits (tcp(7)).
pub fn listener(address: SocketAddr, stream: &config::Stream) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_tcp_notsent_lowat(NOT_SENT_LOW_WATER)?;
    // A backstop only: Linux also ends living peers with a closed window by it, which may stay for the stall timeout. The hub watches.
    socket.set_tcp_user_timeout(Some(stream.stall_timeout.max(stream.dead_peer) + Duration::from_secs(5)))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// What a request knows of its connection. Without a second handle on it a stream works all the same: it can only not be watched.
#[derive(Clone)]
pub(super) struct Connection {
    socket: Option<Arc<Socket>>,
    pub(super) peer: Option<SocketAddr>,
}

impl Connection {
    /// One that carries a request at a time.
    pub(super) fn of(tcp: &TcpStream) -> Self {
        Self { socket: second_handle(tcp).map(|handle| Arc::new(Socket::Shared(handle))), peer: peer_of(tcp) }
    }
}

/// A connection that carries many at once.
pub(super) struct Multiplexed {
    handle: Option<Arc<OwnedFd>>,
    peer: Option<SocketAddr>,
}

impl Multiplexed {
    pub(super) fn of(tcp: &TcpStream) -> Self {
        Self { handle: second_handle(tcp).map(Arc::new), peer: peer_of(tcp) }
    }

    /// What one of its requests knows; `cut` is to end that one.
    pub(super) fn of_request(&self, cut: CancellationToken) -> Connection {
        let socket = self.handle.clone().map(|handle| Arc::new(Socket::Multiplexed(handle, cut)));
        Connection { socket, peer: self.peer }
    }
}

fn second_handle(tcp: &TcpStream) -> Option<OwnedFd> {
    tcp.as_fd().try_clone_to_owned().ok()
}

pub(super) fn peer_of(tcp: &TcpStream) -> Option<SocketAddr> {
    tcp.peer_addr().ok()
}

/// The socket below a request. Each version of HTTP keeps it in its own way.
pub(super) fn socket(request: &HttpRequest) -> Option<Arc<Socket>> {
    let of_request = request.extensions().get::<Connection>().cloned();
    of_request.or_else(|| request.conn_data::<Connection>().cloned())?.socket
}
