//! A device with its open stream: read by hand, so that it can also stop reading, or leave in any way a peer can.
//!
//! Nothing is read unless a method asks for it: a device that isn't asked is a slow reader.

use super::SOON;
use super::http::{Answer, Body, Request};
use super::node::Secrets;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use socket2::{Domain, SockFilter, SockRef, Socket, Type};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How a stream is asked for.
#[derive(Clone, Debug)]
pub struct StreamRequest {
    address: SocketAddr,
    secrets: Secrets,
    user: String,
    device: String,
    token: String,
    query: Vec<String>,
    headers: Vec<(String, String)>,
    by_header: bool,
    receive_buffer: Option<usize>,
}

impl StreamRequest {
    pub(super) fn new(address: SocketAddr, secrets: Secrets, user: &str, device: &str, token: String) -> Self {
        let (user, device) = (user.to_owned(), device.to_owned());
        let (query, headers) = (vec![], vec![]);
        Self { address, secrets, user, device, token, query, headers, by_header: true, receive_buffer: None }
    }

    /// Adds `name=value` to the query, as it is.
    #[must_use]
    pub fn query(mut self, name: &str, value: &str) -> Self {
        self.query.push(format!("{name}={value}"));
        self
    }

    #[must_use]
    pub fn after(self, cursor: &str) -> Self {
        self.query("after", cursor)
    }

    #[must_use]
    pub fn background(self) -> Self {
        self.query("state", "background")
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    #[must_use]
    pub fn last_event_id(self, cursor: &str) -> Self {
        self.header("Last-Event-ID", cursor)
    }

    /// In place of the one that was said before.
    #[must_use]
    pub fn last_event_id_instead(mut self, cursor: &str) -> Self {
        self.headers.retain(|(name, _)| name != "Last-Event-ID");
        self.last_event_id(cursor)
    }

    /// Another token than the one of this user and device.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        token.clone_into(&mut self.token);
        self
    }

    /// No `Authorization` header: the credential stands in the query.
    #[must_use]
    pub fn without_header(mut self) -> Self {
        self.by_header = false;
        self
    }

    /// So little is taken in while nothing is read (the kernel doubles it).
    #[must_use]
    pub fn receive_buffer(mut self, bytes: usize) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// In words that are not those of a plain request for a stream, so that the HTTP server has to answer it.
    #[must_use]
    pub fn by_the_server(self) -> Self {
        self.header("Content-Length", "0")
    }

    fn request(&self) -> Request {
        let query = if self.query.is_empty() { String::new() } else { format!("?{}", self.query.join("&")) };
        let mut request = Request::get(&format!("/v1/stream{query}"));
        if self.by_header {
            request = request.bearer(&self.token);
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request
    }

    /// The answer to a request that is refused.
    #[track_caller]
    pub fn refused(&self) -> Answer {
        self.request().send(self.address)
    }

    /// Opens the stream and waits for its head, but not for any event.
    #[track_caller]
    pub fn connect(&self) -> Device {
        let device = self.try_connect().unwrap();
        let (status, headers) = device.body.head().expect("a head");
        assert_eq!(*status, 200, "{headers:?} {}", String::from_utf8_lossy(&device.body.content));
        device
    }

    /// The same, from a node that may not be there any more: then the stream has ended, or is an answer other than 200.
    pub fn try_connect(&self) -> io::Result<Device> {
        next_millisecond();
        let socket = Socket::new(Domain::for_address(self.address), Type::STREAM, None)?;
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        socket.connect(&self.address.into())?;
        socket.set_tcp_nodelay(true)?;
        let mut tcp = TcpStream::from(socket);
        tcp.write_all(&self.request().to_bytes(self.address))?;
        let mut device = Device {
            address: self.address,
            user: self.user.clone(),
            name: self.device.clone(),
            token: self.token.clone(),
            secrets: self.secrets.clone(),
            tcp: Some(tcp),
            body: Body::default(),
            lines: vec![],
            events: VecDeque::new(),
            heartbeats: 0,
            retry: None,
            ended: None,
        };
        let deadline = Instant::now() + SOON;
        while device.body.head().is_none() && device.read_until(deadline) {}
        Ok(device)
    }

    /// Opens the stream and takes its `ready`, unless the connection ends before.
    pub fn try_open(&self) -> Option<Device> {
        let mut device = self.try_connect().ok()?;
        let ready = device.event_within(SOON)?;
        assert_eq!(ready.name, "ready", "{ready:?}");
        Some(device)
    }

    /// Opens the stream and takes its `ready`.
    #[track_caller]
    pub fn open(&self) -> Device {
        let mut device = self.connect();
        let ready = device.next_event();
        assert_eq!(ready.name, "ready", "{ready:?}");
        device
    }
}

/// One event of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Event {
    pub name: String,
    pub id: Option<String>,
    /// The `data` lines, joined by line feeds.
    pub data: String,
    pub retry: Option<u64>,
}

/// Takes out what is whole of a stream's bytes, blank line by blank line.
pub fn take_blocks(lines: &mut Vec<u8>) -> Vec<String> {
    let mut blocks = vec![];
    while let Some(end) = lines.windows(2).position(|w| w == b"\n\n") {
        let block = lines.drain(..end + 2).collect();
        blocks.push(String::from_utf8(block).expect("events are UTF-8"));
    }
    blocks
}

impl Event {
    /// One block of a stream; without data if it is no event.
    pub fn read(block: &str) -> Self {
        let mut event = Self::default();
        let mut data = vec![];
        for line in block.lines() {
            match line.split_once(':').map(|(name, value)| (name, value.strip_prefix(' ').unwrap_or(value))) {
                Some(("", _)) => {}
                Some(("event", name)) => name.clone_into(&mut event.name),
                Some(("id", id)) => event.id = Some(id.to_owned()),
                Some(("data", line)) => data.push(line),
                Some(("retry", ms)) => event.retry = Some(ms.parse().unwrap()),
                _ => assert!(line.is_empty(), "no line of an event stream: {line:?}"),
            }
        }
        event.data = data.join("\n");
        event
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The payload as text, exactly as it stands in the data.
    #[track_caller]
    pub fn payload_text(&self) -> String {
        #[derive(serde::Deserialize)]
        struct Message<'a> {
            #[serde(borrow)]
            payload: &'a RawValue,
        }
        serde_json::from_str::<Message<'_>>(&self.data).unwrap().payload.get().to_owned()
    }
}

/// See the module's text.
pub struct Device {
    address: SocketAddr,
    pub user: String,
    pub name: String,
    pub token: String,
    secrets: Secrets,
    tcp: Option<TcpStream>,
    body: Body,
    /// Bytes of a line that is not whole yet.
    lines: Vec<u8>,
    events: VecDeque<Event>,
    /// Comment lines so far.
    pub heartbeats: u64,
    retry: Option<u64>,
    /// Why nothing will come any more.
    ended: Option<String>,
}

impl Device {
    /// Reads what is there, waiting until `deadline` for anything at all. False if nothing came or nothing will.
    pub fn read_until(&mut self, deadline: Instant) -> bool {
        let Some(tcp) = self.tcp.as_mut().filter(|_| self.ended.is_none()) else { return false };
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        tcp.set_read_timeout(Some(left)).unwrap();
        let mut chunk = [0; 16 << 10];
        match tcp.read(&mut chunk) {
            Ok(0) => self.ended = Some("FIN".into()),
            Ok(n) => self.take_in(&chunk[..n]),
            // As after a pause of the whole machine.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => return false,
            Err(error) => self.ended = Some(error.to_string()),
        }
        self.ended.is_none()
    }

    fn take_in(&mut self, bytes: &[u8]) {
        self.body.push(bytes);
        if self.body.head().is_some_and(|(status, _)| *status != 200) {
            return;
        }
        self.lines.append(&mut self.body.content);
        for block in take_blocks(&mut self.lines) {
            self.take_block(&block);
        }
        if self.body.is_complete {
            self.ended = Some("the last chunk".into());
        }
    }

    fn take_block(&mut self, block: &str) {
        self.heartbeats += block.lines().filter(|line| line.starts_with(':')).count() as u64;
        let event = Event::read(block);
        self.retry = event.retry.or(self.retry);
        if !event.data.is_empty() {
            self.events.push_back(Event { retry: self.retry, ..event });
        }
    }

    /// The next event; fails if none comes [`SOON`].
    #[track_caller]
    pub fn next_event(&mut self) -> Event {
        match self.event_within(SOON) {
            Some(event) => event,
            None => panic!("{}/{}: no event; the stream: {:?}", self.user, self.name, self.ended),
        }
    }

    /// The next event, if one comes within this time.
    pub fn event_within(&mut self, time: Duration) -> Option<Event> {
        let deadline = Instant::now() + time;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if !self.read_until(deadline) && (self.ended.is_some() || Instant::now() >= deadline) {
                return self.events.pop_front();
            }
        }
    }

    /// The next event, which must be a message.
    #[track_caller]
    pub fn next_message(&mut self) -> Value {
        let event = self.next_event();
        assert_eq!(event.name, "message", "{event:?}");
        event.json()
    }

    /// The next event, which must be a goodbye for this reason, and the end of the stream.
    #[track_caller]
    pub fn expect_bye(&mut self, reason: &str) -> Event {
        let event = self.next_event();
        assert_eq!((event.name.as_str(), event.json()["reason"].as_str()), ("bye", Some(reason)), "{event:?}");
        self.expect_end();
        event
    }

    /// Fails unless the stream ends [`SOON`], without another event.
    #[track_caller]
    pub fn expect_end(&mut self) {
        let more = self.event_within(SOON);
        assert!(more.is_none() && self.ended.is_some(), "{more:?} {:?}", self.ended);
    }

    /// Waits for the end of the stream and gives all events until then.
    #[track_caller]
    pub fn events_until_end(&mut self) -> Vec<Event> {
        let mut events = vec![];
        while let Some(event) = self.event_within(SOON) {
            events.push(event);
        }
        assert!(self.ended.is_some(), "the stream goes on after {} events", events.len());
        events
    }

    /// Reads on while the condition holds, keeping events for later.
    #[track_caller]
    pub fn read_while(&mut self, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + SOON;
        while condition(self) {
            assert!(Instant::now() < deadline && self.ended.is_none(), "{}/{}: {:?}", self.user, self.name, self.ended);
            self.read_until(deadline);
        }
    }

    /// Why nothing more will come, if it is so.
    pub fn ended(&self) -> Option<&str> {
        self.ended.as_deref()
    }

    /// Reads while `condition` doesn't hold yet, and once more after; fails at any event.
    #[track_caller]
    pub fn expect_nothing_until(&mut self, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + SOON;
        loop {
            let is_last = condition();
            let event = self.event_within(Duration::from_millis(5));
            assert!(event.is_none(), "nothing was to come, and this came: {event:?}");
            if is_last {
                return;
            }
            assert!(Instant::now() < deadline, "{}/{}: the condition never came to hold", self.user, self.name);
        }
    }

    /// The messages that come until one bears this text in its payload, that one excluded.
    #[track_caller]
    pub fn messages_before(&mut self, text: &str) -> Vec<Event> {
        let mut messages = vec![];
        loop {
            let event = self.next_event();
            assert_eq!(event.name, "message", "{event:?}");
            if event.data.contains(text) {
                return messages;
            }
            messages.push(event);
        }
    }

    /// Takes everything that the kernel has received, without waiting.
    pub fn drain(&mut self) {
        while self.read_until(Instant::now()) {}
    }

    /// The answer's status.
    #[track_caller]
    pub fn status(&self) -> u16 {
        self.body.head().expect("a head").0
    }

    /// Headers of the stream's answer.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.body.head()?.1.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Ends the connection as a closed tab does.
    pub fn close(&mut self) {
        // Unread data would make the kernel send RST in place of FIN.
        self.drain();
        self.tcp = None;
    }

    /// Ends the connection as a crashed peer's kernel does.
    pub fn reset(&mut self) {
        if let Some(tcp) = self.tcp.take() {
            SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }

    /// From now on all that arrives is dropped below TCP, unacknowledged, and nothing is answered, as if the network were gone.
    pub fn vanish(&self) {
        const DROP: SockFilter = SockFilter::new(0x06, 0, 0, 0);
        SockRef::from(self.tcp.as_ref().unwrap()).attach_filter(&[DROP]).unwrap();
    }

    /// Shuts the sending side, and could still read.
    pub fn half_close(&self) {
        self.tcp.as_ref().unwrap().shutdown(Shutdown::Write).unwrap();
    }

    pub fn ack(&self, cursor: &str) -> Answer {
        self.post("/v1/ack", &json!({"cursor": cursor}))
    }

    pub fn set_state(&self, state: &str) -> Answer {
        self.post("/v1/state", &json!({"state": state}))
    }

    /// `GET /v1/inbox` with this query.
    pub fn inbox(&self, query: &str) -> Answer {
        Request::get(&format!("/v1/inbox?{query}")).bearer(&self.token).send(self.address)
    }

    /// A ticket drawn on this device's token.
    #[track_caller]
    pub fn ticket(&self) -> String {
        let answer = self.post("/v1/tickets", &Value::Null).expect(201);
        let ticket = answer.json()["ticket"].as_str().unwrap().to_owned();
        self.secrets.note(&ticket);
        ticket
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        next_millisecond();
        Request::post(path).bearer(&self.token).json(body.to_string()).send(self.address)
    }
}

/// Activities within one millisecond have no order; those of devices here do.
fn next_millisecond() {
    std::thread::sleep(Duration::from_millis(1));
}
