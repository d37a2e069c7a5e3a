//! The TCP connection below a stream, as far as the relay may touch it: to see whether the peer still acknowledges, and to cut it off.

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::GetStruct;
use socket2::SockRef;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

#[derive(Clone, Copy)]
struct TcpInfo;
nix::getsockopt_impl!(TcpInfo, libc::IPPROTO_TCP, libc::TCP_INFO, libc::tcp_info, GetStruct<libc::tcp_info>);

/// A second handle on a connection's socket. The connection is closed when its owner drops it *and* this is dropped, so it is held by
/// what lives no longer than the stream.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// From a duplicate of the connection's descriptor.
    pub fn new(duplicate: OwnedFd) -> Self {
        Self(duplicate)
    }

    /// For how long the peer has acknowledged nothing, if it has something to acknowledge now (tcp(7), TCP_INFO). `None` if all data is
    /// acknowledged, or if the socket can't tell.
    pub fn silence(&self) -> Option<Duration> {
        let info = getsockopt(&self.0.as_fd(), TcpInfo).ok()?;
        (info.tcpi_unacked > 0).then(|| Duration::from_millis(u64::from(info.tcpi_last_ack_recv)))
    }

    /// Ends the connection both ways, which its owner notices at once.
    pub fn cut(&self) {
        // It fails only if the connection has ended already.
        let _ = SockRef::from(&self.0).shutdown(Shutdown::Both);
    }
}
