//! For tests: an endpoint on this machine that answers as it is told, however badly.

use crate::config::{Outlet, Secret};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// The secret that receivers are told with.
pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// How to answer one request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A status, further header lines, and a body.
    Status(u16, &'static str, String),
    /// 200 after a while.
    Slow(Duration),
    /// Never.
    Hang,
    /// This status, and a body of one byte now and then.
    Drip(u16),
    /// This status, and a body of 10 GB as fast as it is read.
    Endless(u16),
    /// 200, and a body that breaks off.
    Cut,
    /// What is no HTTP.
    Garbage,
    /// By closing the connection.
    Close,
    /// 200; the connection is closed when the next request comes on it.
    OkThenStale,
}

impl Answer {
    /// A bare status.
    pub fn status(status: u16) -> Self {
        Self::Status(status, "", String::new())
    }
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Request {
    /// When.
    pub at: Instant,
    /// Header names are in small letters.
    pub headers: Vec<(String, String)>,
    /// The content.
    pub body: String,
}

impl Request {
    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    /// `webhook-id`.
    pub fn id(&self) -> &str {
        self.header("webhook-id")
    }

    /// The body read as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

type Script = dyn FnMut(&Request) -> Answer + Send;

/// What an endpoint has seen.
#[derive(Default)]
struct Seen {
    requests: Vec<Request>,
    connections: usize,
    in_flight: usize,
    most_in_flight: usize,
}

/// An endpoint. It ends when it is dropped.
pub struct Receiver {
    /// Where.
    pub addr: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    script: Arc<Mutex<Box<Script>>>,
    _listening: JoinSet<()>,
}

impl Receiver {
    /// One that answers each request by `script`.
    pub async fn open(script: impl FnMut(&Request) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (seen, script) = (Arc::<Mutex<Seen>>::default(), Arc::new(Mutex::new(Box::new(script) as Box<Script>)));
        let mut listening = JoinSet::new();
        listening.spawn(accept(listener, Arc::clone(&seen), Arc::clone(&script)));
        Self { addr, seen, script, _listening: listening }
    }

    /// One that gives the same answer to all.
    pub async fn always(answer: Answer) -> Self {
        Self::open(move |_| answer.clone()).await
    }

    /// From now on it answers otherwise.
    pub fn now(&self, answer: Answer) {
        *self.script.lock() = Box::new(move |_| answer.clone());
    }

    /// Its configuration.
    pub fn outlet(&self) -> Outlet {
        outlet(&format!("http://{}/hook", self.addr))
    }

    /// All that came so far.
    pub fn requests(&self) -> Vec<Request> {
        self.seen.lock().requests.clone()
    }

    /// Their `webhook-id`s.
    pub fn ids(&self) -> Vec<String> {
        self.requests().iter().map(|r| r.id().to_owned()).collect()
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.seen.lock().connections
    }

    /// How many requests there were at once, at most.
    pub fn most_in_flight(&self) -> usize {
        self.seen.lock().most_in_flight
    }
}

/// The configuration of an endpoint at `url`.
pub fn outlet(url: &str) -> Outlet {
    Outlet {
        url: Some(url.parse().unwrap()),
        secrets: vec![Secret::new(SECRET)],
        timeout: Duration::from_secs(2),
        concurrency: 4,
    }
}

async fn accept(listener: TcpListener, seen: Arc<Mutex<Seen>>, script: Arc<Mutex<Box<Script>>>) {
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        seen.lock().connections += 1;
        let (seen, script) = (Arc::clone(&seen), Arc::clone(&script));
        connections.spawn(async move {
            let mut socket = BufReader::new(socket);
            while let Some(request) = read(&mut socket).await {
                let answer = script.lock()(&request);
                {
                    let mut seen = seen.lock();
                    seen.requests.push(request);
                    seen.in_flight += 1;
                    seen.most_in_flight = seen.most_in_flight.max(seen.in_flight);
                }
                let goes_on = give(&mut socket, answer, &seen).await;
                if !goes_on {
                    break;
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn read(socket: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let headers: Vec<(String, String)> = head
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let mut request = Request { at: Instant::now(), headers, body: String::new() };
    let mut body = vec![0; request.header("content-length").parse().unwrap_or(0)];
    socket.read_exact(&mut body).await.ok()?;
    request.body = String::from_utf8(body).unwrap();
    Some(request)
}

/// Answers, and returns whether the connection lives on.
async fn give(socket: &mut BufReader<TcpStream>, answer: Answer, seen: &Mutex<Seen>) -> bool {
    let ok = Answer::status(200);
    let (text, then) = match answer {
        Answer::Status(status, headers, body) => {
            (format!("HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()), None)
        }
        Answer::Slow(time) => {
            sleep(time).await;
            return Box::pin(give(socket, ok, seen)).await;
        }
        Answer::OkThenStale => {
            Box::pin(give(socket, ok, seen)).await;
            let _ = socket.read_u8().await;
            return false;
        }
        Answer::Drip(status) => (format!("HTTP/1.1 {status} X\r\ncontent-length: 1000\r\n\r\n"), Some((1, 50))),
        Answer::Endless(status) => {
            (format!("HTTP/1.1 {status} X\r\ncontent-length: 10000000000\r\n\r\n"), Some((65_536, 0)))
        }
        Answer::Cut => ("HTTP/1.1 200 X\r\ncontent-length: 1000\r\n\r\nx".to_owned(), Some((0, 0))),
        Answer::Garbage => ("SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned(), Some((0, 0))),
        Answer::Hang => (String::new(), Some((0, 3_600_000))),
        Answer::Close => (String::new(), Some((0, 0))),
    };
    let mut written = socket.get_mut().write_all(text.as_bytes()).await;
    if let Some((bytes, every_ms)) = then {
        let chunk = vec![b'x'; bytes];
        loop {
            sleep(Duration::from_millis(every_ms)).await;
            if written.is_err() || bytes == 0 {
                break;
            }
            written = socket.get_mut().write_all(&chunk).await;
        }
    }
    seen.lock().in_flight -= 1;
    then.is_none() && written.is_ok()
}
