//! An identity provider's set of keys: a document on a server of its own that can be replaced, spoiled and taken away, and whose fetches are
//! counted.

use parking_lot::Mutex;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

#[derive(Default)]
struct State {
    /// `None`: connections are closed without an answer.
    answer: Option<(u16, String)>,
    fetches: usize,
}

/// See the module's text. Its thread ends with the tests.
pub struct JwksServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl JwksServer {
    /// With a set of these keys.
    pub fn of(keys: &[Value]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self { address: listener.local_addr().unwrap(), state: Arc::default() };
        server.set(keys);
        let state = server.state.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                serve(&connection.unwrap(), &state);
            }
        });
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}/jwks.json", self.address)
    }

    pub fn set(&self, keys: &[Value]) {
        self.answer(200, &json!({"keys": keys}).to_string());
    }

    pub fn answer(&self, status: u16, body: &str) {
        self.state.lock().answer = Some((status, body.to_owned()));
    }

    pub fn go_away(&self) {
        self.state.lock().answer = None;
    }

    /// How often somebody came for the keys.
    pub fn fetches(&self) -> usize {
        self.state.lock().fetches
    }
}

fn serve(mut connection: &TcpStream, state: &Mutex<State>) {
    let mut lines = BufReader::new(connection).lines();
    // A whole head, or a connection that has ended.
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let mut state = state.lock();
    state.fetches += 1;
    if let Some((status, body)) = &state.answer {
        let head = format!("HTTP/1.1 {status} -\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
        // Who hangs up early has got what they wanted.
        let _ = write!(connection, "{head}Location: /elsewhere\r\n\r\n{body}");
    }
}
