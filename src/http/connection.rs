//! The listening socket and the connections that come of it: options that make outcomes honest, and a handle for each stream's seat.

use crate::config;
use crate::relay::hub::Socket;
use actix_web::HttpRequest;
use actix_web::dev::Extensions;
use actix_web::http::Version;
use socket2::{Domain, Protocol, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

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

/// What a request's connection carries.
struct Connection {
    socket: Option<Arc<Socket>>,
    closed: CancellationToken,
    /// Cancels `closed` when the connection's data is dropped, which is when it is closed. HTTP/2 tells of it in no other way.
    _guard: DropGuard,
}

/// To be called for each new connection.
pub fn note_connection(tcp: &TcpStream, data: &mut Extensions) {
    // Without a second handle the stream works all the same: it can only not be watched.
    let socket = tcp.as_fd().try_clone_to_owned().ok().map(|duplicate| Arc::new(Socket::Shared(duplicate)));
    let closed = CancellationToken::new();
    data.insert(Connection { socket, _guard: closed.clone().drop_guard(), closed });
}

/// The socket below a request.
pub(super) fn socket(request: &HttpRequest) -> Option<Arc<Socket>> {
    request.conn_data::<Connection>()?.socket.clone()
}

/// Ends when the connection is closed; `None` on HTTP/1, where the server drops the stream by itself.
pub(super) fn closed(request: &HttpRequest) -> Option<WaitForCancellationFutureOwned> {
    if request.version() != Version::HTTP_2 {
        return None;
    }
    Some(request.conn_data::<Connection>()?.closed.clone().cancelled_owned())
}
