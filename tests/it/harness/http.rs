//! An HTTP/1.1 client that sends exactly what it is told, right or wrong.

use serde_json::Value;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A request; it goes over a connection of its own.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Request {
    pub fn new(method: &str, path: &str) -> Self {
        Self { method: method.into(), path: path.into(), headers: vec![], body: None }
    }

    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    pub fn post(path: &str) -> Self {
        Self::new("POST", path)
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    #[must_use]
    pub fn bearer(self, credential: &str) -> Self {
        self.header("Authorization", &format!("Bearer {credential}"))
    }

    /// Exactly these bytes, as `application/json`.
    #[must_use]
    pub fn json(self, body: impl Into<Vec<u8>>) -> Self {
        self.header("Content-Type", "application/json").body(body)
    }

    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// As it goes over the wire.
    pub fn to_bytes(&self, address: SocketAddr) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        let has = |name: &str| self.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
        if !has("host") {
            let _ = write!(head, "Host: {address}\r\n");
        }
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        let body = self.body.as_deref().unwrap_or_default();
        if self.body.is_some() && !has("content-length") && !has("transfer-encoding") {
            let _ = write!(head, "Content-Length: {}\r\n", body.len());
        }
        [head.as_bytes(), b"\r\n", body].concat()
    }

    /// The answer; panics if there is none.
    #[track_caller]
    pub fn send(&self, address: SocketAddr) -> Answer {
        let request = self.clone().header("Connection", "close");
        match exchange(address, &request.to_bytes(address)) {
            Ok(answer) => answer,
            Err(error) => panic!("{} {}: no answer: {error}", self.method, self.path),
        }
    }
}

/// Sends bytes on a new connection and reads one answer.
pub fn exchange(address: SocketAddr, request: &[u8]) -> io::Result<Answer> {
    let mut tcp = TcpStream::connect_timeout(&address, PATIENCE)?;
    tcp.set_nodelay(true)?;
    tcp.set_write_timeout(Some(PATIENCE))?;
    // Who is refused early may be cut off while writing; the answer is there nevertheless.
    let written = tcp.write_all(request);
    let mut body = Body { without_content: request.starts_with(b"HEAD "), ..Body::default() };
    read_into(&mut body, &mut tcp, Instant::now() + PATIENCE)
        .and_then(|answer| answer.map_or_else(|| Err(gone(written)), Ok))
}

/// The same, for callers that are many; it may take as long as its caller lets it.
pub async fn exchange_among_many(address: SocketAddr, request: &[u8]) -> io::Result<Answer> {
    let mut tcp = tokio::net::TcpStream::connect(address).await?;
    tcp.write_all(request).await?;
    let (mut body, mut chunk) = (Body::default(), [0; 4 << 10]);
    loop {
        let n = tcp.read(&mut chunk).await?;
        body.push(&chunk[..n]);
        if let Some(answer) = body.answer(n == 0) {
            return Ok(answer);
        }
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Sends bytes on a new connection and reads as far as the head of an answer; gives its status.
#[track_caller]
pub fn head_of(address: SocketAddr, request: &[u8]) -> u16 {
    let mut tcp = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    tcp.set_write_timeout(Some(PATIENCE)).unwrap();
    tcp.write_all(request).unwrap();
    let (mut body, mut chunk) = (Body::default(), [0; 4 << 10]);
    while body.head().is_none() {
        let n = tcp.read(&mut chunk).unwrap();
        assert_ne!(n, 0, "the connection ended before a head");
        body.push(&chunk[..n]);
    }
    body.head().unwrap().0
}

fn gone(written: io::Result<()>) -> io::Error {
    written.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Reads one answer; `None` if the connection ends before it.
pub fn read_answer(tcp: &mut TcpStream, deadline: Instant) -> io::Result<Option<Answer>> {
    read_into(&mut Body::default(), tcp, deadline)
}

fn read_into(body: &mut Body, tcp: &mut TcpStream, deadline: Instant) -> io::Result<Option<Answer>> {
    let mut chunk = [0; 16 << 10];
    loop {
        if let Some(answer) = body.answer(false) {
            return Ok(Some(answer));
        }
        let left = deadline.checked_duration_since(Instant::now()).ok_or(io::ErrorKind::TimedOut)?;
        tcp.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match tcp.read(&mut chunk) {
            Ok(0) => return Ok(body.answer(true)),
            Ok(n) => body.push(&chunk[..n]),
            // As after a pause of the whole machine.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(body.answer(true)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error),
        }
    }
}

/// Takes an answer apart while it comes: head, then a body by length, in chunks, or until the end.
#[derive(Default)]
pub struct Body {
    raw: Vec<u8>,
    head: Option<(u16, Vec<(String, String)>)>,
    chunked: bool,
    /// What the chunks held, or the plain bytes.
    pub content: Vec<u8>,
    pub is_complete: bool,
    /// Whatever the head says: it answers a HEAD.
    without_content: bool,
}

impl Body {
    pub fn push(&mut self, bytes: &[u8]) {
        self.raw.extend_from_slice(bytes);
        if self.head.is_none() {
            self.read_head();
        }
        if self.head.is_some() {
            self.read_content();
        }
    }

    pub fn head(&self) -> Option<&(u16, Vec<(String, String)>)> {
        self.head.as_ref()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let (_, headers) = self.head.as_ref()?;
        headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    fn read_head(&mut self) {
        let Some(end) = self.raw.windows(4).position(|w| w == b"\r\n\r\n") else { return };
        let head = String::from_utf8(self.raw[..end].to_vec()).expect("a head is text");
        self.raw.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).and_then(|s| s.parse().ok());
        let headers = lines.map(|line| line.split_once(':').expect("a header has a colon"));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
        self.head = Some((status.expect("a status line"), headers));
        self.chunked = self.header("transfer-encoding") == Some("chunked");
        self.is_complete = self.without_content || matches!(status, Some(204 | 304));
    }

    fn read_content(&mut self) {
        if !self.chunked {
            self.content.append(&mut self.raw);
            let length = self.header("content-length").map(|l| l.parse::<usize>().unwrap());
            self.is_complete |= length.is_some_and(|length| self.content.len() >= length);
            return;
        }
        while let Some(line) = self.raw.windows(2).position(|w| w == b"\r\n") {
            let size = std::str::from_utf8(&self.raw[..line]).ok().and_then(|s| usize::from_str_radix(s, 16).ok());
            let size = size.expect("the size of a chunk");
            let Some(chunk) = self.raw.get(line + 2..line + 2 + size) else { return };
            if self.raw.len() < line + 2 + size + 2 {
                return;
            }
            self.content.extend_from_slice(chunk);
            self.raw.drain(..line + 2 + size + 2);
            if size == 0 {
                self.is_complete = true;
                return;
            }
        }
    }

    fn answer(&mut self, at_end: bool) -> Option<Answer> {
        let by_length = self.chunked || self.header("content-length").is_some();
        let complete = self.is_complete || (at_end && self.head.is_some() && !by_length);
        if !complete {
            return None;
        }
        let (status, headers) = self.head.clone()?;
        Some(Answer { status, headers, body: std::mem::take(&mut self.content) })
    }
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self}"))
    }

    /// Fails unless the answer has this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self}");
        self
    }

    /// Fails unless this is the contract's problem document with this code; gives it.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{self}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self}");
        let problem = self.json();
        assert_eq!((&problem["code"], &problem["status"]), (&code.into(), &status.into()), "{self}");
        assert_eq!(problem["type"], "about:blank", "{self}");
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{self}");
        assert_eq!(problem["request_id"].as_str(), self.header("x-request-id"), "{self}");
        assert_eq!(matches!(status, 429 | 503), self.header("retry-after").is_some(), "{self}");
        problem
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {}", self.status, self.headers, self.text())
    }
}
