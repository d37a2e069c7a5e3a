//! A receiver of callbacks: an endpoint of the operator, on a thread of its own, that keeps every request and answers as it is told,
//! however badly. It checks each signature by the Standard Webhooks specification, with nothing of the relay's own code.

use crate::servers::process::{free_port, local};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use serde_json::Value;
use sha2::Sha256;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Signs callbacks unless a test chooses others.
pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// Another one, for rotation.
pub const NEXT_SECRET: &str = "whsec_aGVyZW5vdyByb3RhdGVzIGl0cyBzZWNyZXRz";

/// The specification lets a receiver refuse what is older than 5 minutes. A signature of this attempt is seconds old.
const FRESH: Duration = Duration::from_secs(10);
/// How long `expect_callbacks` waits.
const PATIENCE: Duration = Duration::from_secs(15);

/// How to answer one request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A status.
    Status(u16),
    /// A status with one further header.
    With(u16, &'static str, String),
    /// A status and a text.
    Text(u16, String),
    /// 200 after a while.
    Delay(Duration),
    /// Never.
    Hang,
    /// 200, and a body of one byte per second.
    Drip,
    /// 200, and a body of 10 GB as fast as it is read.
    Endless,
    /// 200, and a body that breaks off.
    Cut,
    /// What is no HTTP.
    Garbage,
    /// By closing the connection.
    Close,
}

impl Reply {
    /// A redirect to elsewhere.
    pub fn redirect(to: &str) -> Self {
        Self::With(307, "Location", to.to_owned())
    }

    /// 200 at once, whole.
    fn is_success(&self) -> bool {
        matches!(self, Self::Status(200..=299) | Self::With(200..=299, ..) | Self::Text(200..=299, _) | Self::Delay(_))
    }
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Call {
    /// When its last byte was read.
    pub at: Instant,
    /// When, by the clock on the wall.
    pub wall: SystemTime,
    /// `POST /hook HTTP/1.1`
    pub line: String,
    /// Names in small letters.
    pub headers: Vec<(String, String)>,
    /// As it came.
    pub body: String,
    /// It was answered by a 2xx that could be read whole.
    pub accepted: bool,
}

impl Call {
    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    /// `webhook-id`.
    pub fn id(&self) -> &str {
        self.header("webhook-id")
    }

    /// `webhook-timestamp`.
    pub fn timestamp(&self) -> u64 {
        self.header("webhook-timestamp").parse().unwrap()
    }

    /// The body.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// Of the body.
    pub fn kind(&self) -> String {
        self.json()["type"].as_str().unwrap().to_owned()
    }

    /// Of the body.
    pub fn data(&self) -> Value {
        self.json()["data"].take()
    }

    /// The message that it is about.
    pub fn message_id(&self) -> String {
        self.data()["message"]["id"].as_str().unwrap().to_owned()
    }

    /// How many of its signatures are those of this secret; a receiver needs one.
    pub fn signatures_by(&self, secret: &str) -> usize {
        let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
        mac.update(format!("{}.{}.{}", self.id(), self.header("webhook-timestamp"), self.body).as_bytes());
        let expected = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
        self.header("webhook-signature").split(' ').filter(|signature| *signature == expected).count()
    }

    /// What a receiver that keeps to the specification would refuse it for.
    fn flaw(&self, secret: &str) -> Option<String> {
        let sent = UNIX_EPOCH + Duration::from_secs(self.timestamp());
        let apart = self.wall.duration_since(sent).or_else(|_| sent.duration_since(self.wall)).unwrap();
        if self.signatures_by(secret) != 1 {
            return Some(format!("no signature by the receiver's secret: {self:?}"));
        }
        if apart > FRESH {
            return Some(format!("the timestamp is {apart:?} off: {self:?}"));
        }
        if self.id().is_empty() || self.header("content-type") != "application/json" {
            return Some(format!("headers are missing: {self:?}"));
        }
        None
    }
}

type Rule = Box<dyn FnMut(&Call) -> Reply + Send>;

struct Shared {
    calls: Mutex<Vec<Call>>,
    /// These come first.
    once: Mutex<VecDeque<Reply>>,
    rule: Mutex<Rule>,
    connections: AtomicUsize,
    /// Bytes of bodies that the other side has taken.
    given: AtomicUsize,
    /// While it is set, nobody listens and connections are refused.
    down: Mutex<bool>,
    ended: CancellationToken,
}

/// See the module's text. It ends when it is dropped, and then every request that it ever got must have been signed well.
pub struct Receiver {
    addr: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    /// One that accepts everything.
    pub fn start() -> Self {
        Self::begin(false)
    }

    /// One that refuses connections until [`Receiver::set_down`] says otherwise.
    pub fn start_down() -> Self {
        Self::begin(true)
    }

    fn begin(down: bool) -> Self {
        let shared = Arc::new(Shared {
            calls: Mutex::default(),
            once: Mutex::default(),
            rule: Mutex::new(Box::new(|_| Reply::Status(200))),
            connections: AtomicUsize::new(0),
            given: AtomicUsize::new(0),
            down: Mutex::new(down),
            ended: CancellationToken::new(),
        });
        let (send, receive) = std::sync::mpsc::channel();
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(&of_thread, &send));
        });
        Self { addr: receive.recv().unwrap(), shared, thread: Some(thread) }
    }

    /// Where.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What to configure, as `key=value`, for `storage` or `push`.
    pub fn settings(&self, endpoint: &str) -> Vec<String> {
        vec![
            format!("callbacks.{endpoint}.url=http://{}/{endpoint}", self.addr),
            format!("callbacks.{endpoint}.secrets={SECRET}"),
        ]
    }

    /// From now on it gives this answer.
    pub fn answer(&self, answer: Reply) {
        self.answer_by(move |_| answer.clone());
    }

    /// The next requests are answered by these, one each.
    pub fn answer_once(&self, answers: impl IntoIterator<Item = Reply>) {
        self.shared.once.lock().extend(answers);
    }

    /// From now on it answers as this says.
    pub fn answer_by(&self, rule: impl FnMut(&Call) -> Reply + Send + 'static) {
        *self.shared.rule.lock() = Box::new(rule);
    }

    /// While it is down, connections are refused and those that were open are closed.
    pub fn set_down(&self, down: bool) {
        *self.shared.down.lock() = down;
    }

    /// All that came so far.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().clone()
    }

    /// Those that were accepted.
    pub fn accepted(&self) -> Vec<Call> {
        self.shared.calls.lock().iter().filter(|r| r.accepted).cloned().collect()
    }

    /// How many came so far.
    pub fn count(&self) -> usize {
        self.shared.calls.lock().len()
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// How many bytes of endless answers have been written.
    pub fn bytes_given(&self) -> usize {
        self.shared.given.load(Ordering::Relaxed)
    }

    /// Waits until so many requests came, and returns all.
    #[track_caller]
    pub fn expect_callbacks(&self, n: usize) -> Vec<Call> {
        self.expect_callbacks_within(n, PATIENCE)
    }

    /// The same, for those that take longer.
    #[track_caller]
    pub fn expect_callbacks_within(&self, n: usize, patience: Duration) -> Vec<Call> {
        let deadline = Instant::now() + patience;
        while self.count() < n {
            assert!(
                Instant::now() < deadline,
                "{} of {n} callbacks came within {patience:?}: {:#?}",
                self.count(),
                self.calls().iter().map(|r| &r.body).collect::<Vec<_>>()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        self.calls()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.ended.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if !std::thread::panicking() {
            check(&self.shared.calls.lock());
        }
    }
}

fn check(requests: &[Call]) {
    let flaws: Vec<String> = requests.iter().filter_map(|request| request.flaw(SECRET)).collect();
    assert!(flaws.is_empty(), "{flaws:#?}");
}

async fn serve(shared: &Arc<Shared>, started: &std::sync::mpsc::Sender<SocketAddr>) {
    // Nobody is given this port while it is ours and nothing is bound to it.
    let addr = local(free_port());
    loop {
        // Not listening, it refuses connections.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(addr).unwrap();
        let _ = started.send(addr);
        if !until(shared, false).await {
            return;
        }
        let listener = socket.listen(1024).unwrap();
        let mut connections = JoinSet::new();
        tokio::select! {
            () = accept(listener, shared, &mut connections) => {}
            goes_on = until(shared, true) => if !goes_on { return },
        }
    }
}

/// Waits until it is down or up; false if it is to end.
async fn until(shared: &Shared, down: bool) -> bool {
    while *shared.down.lock() != down {
        tokio::select! {
            () = shared.ended.cancelled() => return false,
            () = sleep(Duration::from_millis(5)) => {}
        }
    }
    true
}

async fn accept(listener: TcpListener, shared: &Arc<Shared>, connections: &mut JoinSet<()>) {
    while let Ok((socket, _)) = listener.accept().await {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        let _ = socket.set_nodelay(true);
        let shared = Arc::clone(shared);
        connections.spawn(async move {
            let mut socket = BufReader::new(socket);
            while let Some(request) = read(&mut socket).await {
                let answer = take(&shared, request);
                if !give(socket.get_mut(), answer, &shared).await {
                    break;
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

fn take(shared: &Shared, mut request: Call) -> Reply {
    let once = shared.once.lock().pop_front();
    let answer = once.unwrap_or_else(|| shared.rule.lock()(&request));
    request.accepted = answer.is_success();
    shared.calls.lock().push(request);
    answer
}

async fn read(socket: &mut BufReader<TcpStream>) -> Option<Call> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if socket.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut lines = lines.into_iter();
    let line = lines.next()?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length").map_or("0", |(_, value)| value);
    let mut body = vec![0; length.parse().unwrap()];
    socket.read_exact(&mut body).await.ok()?;
    let body = String::from_utf8(body).unwrap();
    Some(Call { at: Instant::now(), wall: SystemTime::now(), line, headers, body, accepted: false })
}

/// Answers, and returns whether the connection lives on.
async fn give(socket: &mut TcpStream, answer: Reply, shared: &Shared) -> bool {
    let whole = |status: u16, header: &str, text: &str| {
        format!("HTTP/1.1 {status} X\r\n{header}content-length: {}\r\n\r\n{text}", text.len())
    };
    let part = |length: u64| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
    let text = match &answer {
        Reply::Status(status) => whole(*status, "", ""),
        Reply::With(status, name, value) => whole(*status, &format!("{name}: {value}\r\n"), ""),
        Reply::Text(status, text) => whole(*status, "", text),
        Reply::Delay(time) => {
            sleep(*time).await;
            whole(200, "", "")
        }
        Reply::Drip => part(1_000),
        Reply::Endless => part(10_000_000_000),
        Reply::Cut => part(1_000) + "x",
        Reply::Garbage => "SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned(),
        Reply::Hang | Reply::Close => String::new(),
    };
    let written = socket.write_all(text.as_bytes()).await.is_ok();
    match answer {
        Reply::Hang => std::future::pending().await,
        Reply::Drip => trickle(socket, b"x", Duration::from_secs(1), shared).await,
        Reply::Endless => trickle(socket, &vec![b'x'; 65_536], Duration::ZERO, shared).await,
        Reply::Cut | Reply::Garbage | Reply::Close => {}
        Reply::Status(_) | Reply::With(..) | Reply::Text(..) | Reply::Delay(_) => return written,
    }
    false
}

/// Writes until the other side has had enough.
async fn trickle(socket: &mut TcpStream, chunk: &[u8], every: Duration, shared: &Shared) {
    while socket.write_all(chunk).await.is_ok() {
        shared.given.fetch_add(chunk.len(), Ordering::Relaxed);
        sleep(every).await;
    }
}
