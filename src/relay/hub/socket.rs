//! The TCP connection below a stream, as far as the relay may touch it: to see whether the peer still acknowledges, to write to it, and to
//! cut it off.

use crate::relay::frame::Frame;
use bytes::{Buf, Bytes};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::GetStruct;
use socket2::SockRef;
use std::io::{ErrorKind, IoSlice};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

#[derive(Clone, Copy)]
struct TcpInfo;
nix::getsockopt_impl!(TcpInfo, libc::IPPROTO_TCP, libc::TCP_INFO, libc::tcp_info, GetStruct<libc::tcp_info>);

/// See the module's text. It is held by what lives no longer than the stream.
#[derive(Debug)]
pub enum Socket {
    /// The stream's own: nothing else reads or writes it.
    Own(TcpStream),
    /// A second handle on a connection that an HTTP server reads and writes.
    Shared(OwnedFd),
    /// The same on one that carries several streams: this one alone is cut off, by the server.
    Multiplexed(Arc<OwnedFd>, CancellationToken),
}

/// How far a write came without waiting.
#[derive(Debug)]
pub enum Written {
    /// All of it.
    All,
    /// These parts are left, and must be written before anything else.
    Part(Bytes, Bytes),
    /// Nothing: the peer must read first.
    Nothing,
    /// Nothing, ever: the connection is broken.
    Broken,
}

impl Socket {
    /// For how long the peer has acknowledged nothing, if it has something to acknowledge now (tcp(7), TCP_INFO). `None` if all data is
    /// acknowledged, or if the socket can't tell.
    pub fn silence(&self) -> Option<Duration> {
        let info = getsockopt(&self.as_fd(), TcpInfo).ok()?;
        (info.tcpi_unacked > 0).then(|| Duration::from_millis(u64::from(info.tcpi_last_ack_recv)))
    }

    /// Whether a stream has it for itself, and so frames what it writes by itself.
    pub fn is_own(&self) -> bool {
        matches!(self, Self::Own(_))
    }

    /// Ends the connection both ways, or the one stream of several, which its owner notices at once.
    pub fn cut(&self) {
        if let Self::Multiplexed(_, cut) = self {
            return cut.cancel();
        }
        // It fails only if the connection has ended already.
        let _ = SockRef::from(&self.as_fd()).shutdown(Shutdown::Both);
    }

    /// Writes as much of a frame as the kernel takes now. Only to a socket of one's own.
    pub fn write_now(&self, frame: Frame) -> Written {
        let Self::Own(tcp) = self else { return Written::Nothing };
        let (mut head, mut tail) = frame.into_chunk();
        let written = if head.is_empty() {
            tcp.try_write(&tail)
        } else {
            tcp.try_write_vectored(&[IoSlice::new(&head), IoSlice::new(&tail)])
        };
        match written {
            Ok(n) if n == head.len() + tail.len() => Written::All,
            Ok(0) => Written::Broken,
            Ok(n) => {
                let of_head = n.min(head.len());
                head.advance(of_head);
                tail.advance(n - of_head);
                Written::Part(head, tail)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Written::Nothing,
            Err(_) => Written::Broken,
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(tcp) => tcp.as_fd(),
            Self::Shared(fd) => fd.as_fd(),
            Self::Multiplexed(fd, _) => fd.as_fd(),
        }
    }
}
