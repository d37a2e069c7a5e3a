//! A TCP proxy that breaks as it is told.
//!
//! What is held up is held, not lost, as in a network that is away for a moment: it arrives after [`Proxy::heal`].

use super::process::{free_port, local};
use parking_lot::{Condvar, Mutex};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

/// See the module's text.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    server: SocketAddr,
}

#[derive(Default)]
struct State {
    /// It listens; `None`: new connections are refused.
    listener: Option<TcpListener>,
    holds_to_server: bool,
    holds_to_client: bool,
    /// Cut the connection on which this is sent next.
    pattern: Option<Vec<u8>>,
    connections: Vec<Arc<Connection>>,
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    /// Answers of the server are swallowed.
    is_muted: Mutex<bool>,
}

impl Connection {
    fn end(&self) {
        // Either may have ended already.
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }
}

impl Proxy {
    /// In front of the server at this address, which need not be there yet.
    pub fn to(server: SocketAddr) -> Self {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), server });
        loop {
            let address = local(free_port());
            let proxy = Self { address, shared: Arc::clone(&shared) };
            if proxy.listen().is_ok() {
                return proxy;
            }
        }
    }

    fn listen(&self) -> io::Result<()> {
        let listener = TcpListener::bind(self.address)?;
        let accepting = listener.try_clone()?;
        self.shared.state.lock().listener = Some(listener);
        let shared = Arc::clone(&self.shared);
        thread::spawn(move || {
            for client in accepting.incoming() {
                let Ok(client) = client else { return };
                shared.connect(client);
            }
        });
        Ok(())
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes all connections and refuses new ones.
    pub fn cut(&self) {
        let mut state = self.shared.state.lock();
        if let Some(listener) = state.listener.take() {
            // Wakes the thread that accepts; dropping one of two handles would leave the port open.
            let _ = socket2::SockRef::from(&listener).shutdown(Shutdown::Both);
        }
        for connection in state.connections.drain(..) {
            connection.end();
        }
        self.shared.changed.notify_all();
    }

    /// All is well again; what was held up is forwarded.
    #[track_caller]
    pub fn heal(&self) {
        let mut state = self.shared.state.lock();
        (state.holds_to_server, state.holds_to_client, state.pattern) = (false, false, None);
        let is_cut = state.listener.is_none();
        self.shared.changed.notify_all();
        drop(state);
        if is_cut {
            self.listen().unwrap();
        }
    }

    /// Connections are accepted and stay open, and nothing is forwarded.
    pub fn black_hole(&self) {
        self.stop_to_server();
        self.stop_to_client();
    }

    /// Nothing more arrives at the server.
    pub fn stop_to_server(&self) {
        self.shared.state.lock().holds_to_server = true;
    }

    /// Nothing more arrives at the client.
    pub fn stop_to_client(&self) {
        self.shared.state.lock().holds_to_client = true;
    }

    /// The next time that a client sends these bytes, they reach the server, but its answer is swallowed; when the server has dealt
    /// with them, the connection is closed.
    pub fn cut_after_sending(&self, pattern: &[u8]) {
        self.shared.state.lock().pattern = Some(pattern.to_owned());
    }

    /// Whether what [`Self::cut_after_sending`] waits for has been sent.
    pub fn has_cut(&self) -> bool {
        self.shared.state.lock().pattern.is_none()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
    }
}

impl Shared {
    /// Joins a client to the server, by a thread for each direction.
    fn connect(self: &Arc<Self>, client: TcpStream) {
        let Ok(server) = TcpStream::connect(self.server) else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let connection = Arc::new(Connection { client, server, is_muted: Mutex::new(false) });
        let mut state = self.state.lock();
        if state.listener.is_none() {
            // Cut meanwhile.
            return;
        }
        state.connections.push(Arc::clone(&connection));
        drop(state);
        for to_server in [true, false] {
            let (shared, connection) = (Arc::clone(self), Arc::clone(&connection));
            thread::spawn(move || {
                let _ = if to_server { shared.pump_to_server(&connection) } else { shared.pump_to_client(&connection) };
                connection.end();
                shared.state.lock().connections.retain(|other| !Arc::ptr_eq(other, &connection));
            });
        }
    }

    fn pump_to_server(&self, connection: &Connection) -> io::Result<()> {
        let mut chunk = [0; 16 << 10];
        // The end of what was sent before: a pattern may come in two pieces.
        let mut sent = vec![];
        loop {
            let n = (&connection.client).read(&mut chunk)?;
            let mut state = self.state.lock();
            self.changed.wait_while(&mut state, |state| state.holds_to_server && state.listener.is_some());
            if n == 0 {
                return Ok(());
            }
            sent.extend_from_slice(&chunk[..n]);
            let is_last = state.pattern.take_if(|p| memchr::memmem::find(&sent, p).is_some()).is_some();
            let keep = state.pattern.as_ref().map_or(0, |pattern| pattern.len() - 1);
            drop(state);
            sent.drain(..sent.len().saturating_sub(keep));
            *connection.is_muted.lock() |= is_last;
            (&connection.server).write_all(&chunk[..n])?;
            if is_last {
                // A server reads all before it sees this end. Its own end comes when it has done what it was told.
                connection.server.shutdown(Shutdown::Write)?;
                while (&connection.client).read(&mut chunk)? > 0 {}
                return Ok(());
            }
        }
    }

    fn pump_to_client(&self, connection: &Connection) -> io::Result<()> {
        let mut chunk = [0; 16 << 10];
        loop {
            let n = (&connection.server).read(&mut chunk)?;
            let mut state = self.state.lock();
            self.changed.wait_while(&mut state, |state| state.holds_to_client && state.listener.is_some());
            drop(state);
            if n == 0 {
                return Ok(());
            }
            if !*connection.is_muted.lock() {
                (&connection.client).write_all(&chunk[..n])?;
            }
        }
    }
}
