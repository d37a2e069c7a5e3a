//! Server-Sent Events as bytes (WHATWG HTML, "Server-sent events"). A message is encoded once and shared by all who get it.

use crate::domain::message::{Cursor, Message};
use crate::domain::seat::{DeviceId, NodeId, UserId};
use crate::ports::Bye;
use bytes::Bytes;
use serde::Serialize;
use uuid::Uuid;

/// One event, ready to be written, in the form of an HTTP/1.1 chunk (RFC 9112, 7.1) whose size line is of fixed width: so a stream that has
/// its connection for itself writes it as it is, and an HTTP server, which frames by itself, gets the slice between.
///
/// The recipients of one message share `tail`, which holds the payload; `head` holds what differs between them and may be empty.
#[derive(Clone, Debug)]
pub struct Frame {
    head: Bytes,
    tail: Bytes,
}

/// Eight hexadecimal digits and a line end.
const SIZE_LINE: usize = 10;
const CHUNK_END: &[u8] = b"\r\n";

/// The chunk that ends a stream.
pub const LAST_CHUNK: Bytes = Bytes::from_static(b"0\r\n\r\n");

/// A comment line, so that both ends know that the connection lives.
pub const HEARTBEAT: Frame = Frame { head: Bytes::new(), tail: Bytes::from_static(b"00000003\r\n:\n\n\r\n") };

impl Frame {
    /// An event that is complete as it is.
    pub fn whole(event: &[u8]) -> Self {
        let mut chunk = begin(event.len());
        chunk.extend_from_slice(event);
        Self { head: Bytes::new(), tail: end(chunk) }
    }

    /// How many bytes it adds to a queue.
    pub fn len(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// Whether there is nothing in it; no encoder makes such a frame.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The chunk in two parts, to be written one after the other; the first may be empty.
    pub fn into_chunk(self) -> (Bytes, Bytes) {
        (self.head, self.tail)
    }

    /// The event in two parts, without the framing of a chunk.
    pub fn into_event(self) -> (Bytes, Bytes) {
        let Self { head, tail } = self;
        let content = tail.len() - CHUNK_END.len();
        if head.is_empty() {
            return (head, tail.slice(SIZE_LINE..content));
        }
        (head.slice(SIZE_LINE..), tail.slice(..content))
    }

    /// The event in one piece, for the way to another node.
    pub fn to_bytes(&self) -> Bytes {
        let (head, tail) = self.clone().into_event();
        if head.is_empty() { tail } else { [&head[..], &tail[..]].concat().into() }
    }
}

/// A chunk that has its size line, which is written when it is sealed.
fn begin(capacity: usize) -> Vec<u8> {
    let mut chunk = Vec::with_capacity(capacity + SIZE_LINE + CHUNK_END.len());
    chunk.extend_from_slice(&[b'0'; SIZE_LINE]);
    chunk
}

/// Writes the size of the event into the chunk's size line.
fn seal(chunk: &mut [u8], size: usize) {
    let line = format!("{size:08x}\r\n");
    chunk[..SIZE_LINE].copy_from_slice(&line.as_bytes()[..SIZE_LINE]);
}

/// Seals a chunk that holds the whole event.
fn end(mut chunk: Vec<u8>) -> Bytes {
    let size = chunk.len() - SIZE_LINE;
    seal(&mut chunk, size);
    chunk.extend_from_slice(CHUNK_END);
    chunk.into()
}

/// A `message` event, encoded once: frames for its recipients are made from it without touching the payload again.
#[derive(Debug)]
pub struct Encoded<'a> {
    message: &'a Message,
    tail: Bytes,
}

impl<'a> Encoded<'a> {
    /// Encodes what all recipients share.
    pub fn new(message: &'a Message) -> Self {
        let mut tail = Vec::with_capacity(message.payload.as_bytes().len() + message.kind.len() + 96);
        write_tail(&mut tail, message);
        tail.extend_from_slice(CHUNK_END);
        Self { message, tail: tail.into() }
    }

    /// The event as this recipient sees it. Only a persisted message has a cursor, and with it the `id:` that moves the resume point.
    pub fn for_recipient(&self, user: &UserId, cursor: Option<Cursor>) -> Frame {
        self.shown_to(std::slice::from_ref(user), cursor)
    }

    /// The same with other users in `to`, as the sender sees it in its own inbox.
    pub fn shown_to(&self, to: &[UserId], cursor: Option<Cursor>) -> Frame {
        let mut head = begin(192);
        write_head(&mut head, self.message, to, cursor);
        let size = head.len() - SIZE_LINE + self.tail.len() - CHUNK_END.len();
        seal(&mut head, size);
        Frame { head: head.into(), tail: self.tail.clone() }
    }
}

/// The event for a message's only recipient, in one piece.
pub fn message_frame(message: &Message, user: &UserId, cursor: Option<Cursor>) -> Frame {
    entry_frame(message, std::slice::from_ref(user), cursor)
}

/// The event of a message that shows these users in `to`, in one piece.
pub fn entry_frame(message: &Message, to: &[UserId], cursor: Option<Cursor>) -> Frame {
    let mut chunk = begin(message.payload.as_bytes().len() + message.kind.len() + 288);
    write_head(&mut chunk, message, to, cursor);
    write_tail(&mut chunk, message);
    Frame { head: Bytes::new(), tail: end(chunk) }
}

fn write_head(out: &mut Vec<u8>, message: &Message, to: &[UserId], cursor: Option<Cursor>) {
    out.extend_from_slice(b"event: message\n");
    if let Some(cursor) = cursor {
        out.extend_from_slice(format!("id: {cursor}\n").as_bytes());
    }
    out.extend_from_slice(b"data: {\"id\":\"");
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    out.extend_from_slice(message.id.hyphenated().encode_lower(&mut text).as_bytes());
    out.extend_from_slice(b"\",\"from\":");
    write_string(out, message.from.as_str());
    if let Some(group) = &message.group {
        out.extend_from_slice(b",\"to\":{\"group\":");
        write_string(out, group.as_str());
        out.extend_from_slice(b"},");
    } else {
        out.extend_from_slice(b",\"to\":{\"users\":[");
        for (n, user) in to.iter().enumerate() {
            if n > 0 {
                out.push(b',');
            }
            write_string(out, user.as_str());
        }
        out.extend_from_slice(b"]},");
    }
    if let Some(cursor) = cursor {
        out.extend_from_slice(format!("\"cursor\":\"{cursor}\",").as_bytes());
    }
}

fn write_tail(out: &mut Vec<u8>, message: &Message) {
    out.extend_from_slice(b"\"type\":");
    write_string(out, &message.kind);
    out.extend_from_slice(b",\"payload\":");
    write_data(out, message.payload.as_bytes());
    let online_only = if message.online_only { "true" } else { "false" };
    out.extend_from_slice(
        format!(",\"online_only\":{online_only},\"sent_at\":\"{}\"}}\n\n", message.sent_at).as_bytes(),
    );
}

/// JSON text may be spread over lines (only between its tokens: strings have no raw line ends); a `data` field may not.
fn write_data(out: &mut Vec<u8>, json: &[u8]) {
    let mut rest = json;
    while let Some(at) = memchr::memchr2(b'\n', b'\r', rest) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(b"\ndata: ");
        let width = if rest[at..].starts_with(b"\r\n") { 2 } else { 1 };
        rest = &rest[at + width..];
    }
    out.extend_from_slice(rest);
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    // Writing to memory can't fail, and a string has no key that could.
    let _ = serde_json::to_writer(out, text);
}

/// The first event of a stream: where it is, and from where on persisted messages follow.
pub fn ready(user: &UserId, device: &DeviceId, node: &NodeId, resumed_after: Cursor) -> Frame {
    #[derive(Serialize)]
    struct Ready<'a> {
        user: &'a UserId,
        device: &'a DeviceId,
        node: &'a NodeId,
        resumed_after: Cursor,
    }
    event("retry: 2000\nevent: ready\n", &Ready { user, device, node, resumed_after })
}

/// Why persisted messages after the start are missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GapReason {
    /// They are no longer retained.
    Expired,
    /// The start lies beyond all that was ever given out, as after restoring an older store: the client's resume point is put right.
    Ahead,
}

/// Persisted messages up to `resumed_after` can't be shown.
pub fn gap(reason: GapReason, resumed_after: Cursor) -> Frame {
    #[derive(Serialize)]
    struct Gap {
        reason: &'static str,
        resumed_after: Cursor,
    }
    let reason = match reason {
        GapReason::Expired => "expired",
        GapReason::Ahead => "ahead",
    };
    event("event: gap\n", &Gap { reason, resumed_after })
}

/// A message that was shown, or may have been, is taken back.
pub fn recall(id: Uuid) -> Frame {
    #[derive(Serialize)]
    struct Which {
        id: Uuid,
    }
    event("event: recall\n", &Which { id })
}

/// The last event of a stream, with the time to wait before opening another, if it is not the client's own affair.
pub fn bye(reason: Bye, retry_ms: Option<u64>) -> Frame {
    #[derive(Serialize)]
    struct Why {
        reason: &'static str,
    }
    let retry = retry_ms.map(|ms| format!("retry: {ms}\n")).unwrap_or_default();
    event(&format!("{retry}event: bye\n"), &Why { reason: reason.as_str() })
}

fn event(fields: &str, data: &impl Serialize) -> Frame {
    let mut chunk = begin(fields.len() + 160);
    chunk.extend_from_slice(fields.as_bytes());
    chunk.extend_from_slice(b"data: ");
    let _ = serde_json::to_writer(&mut chunk, data);
    chunk.extend_from_slice(b"\n\n");
    Frame { head: Bytes::new(), tail: end(chunk) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::message::RawJson;
    use crate::domain::time::Timestamp;
    use proptest::prelude::*;
    use serde_json::Value;
    use uuid::Uuid;

    fn message(payload: &str, from: &str, kind: &str) -> Message {
        Message {
            id: Uuid::from_u128(7),
            from: UserId::parse(from).unwrap(),
            group: None,
            kind: kind.into(),
            payload: RawJson::from_checked(Bytes::copy_from_slice(payload.as_bytes())),
            online_only: true,
            sent_at: Timestamp::from_ms(1),
        }
    }

    /// What a client's parser makes of one event: its fields, with the data lines joined.
    fn parse(event: &[u8]) -> (Vec<(String, String)>, String) {
        let text = std::str::from_utf8(event).unwrap();
        assert!(text.ends_with("\n\n"), "{text:?}");
        assert_eq!(text.matches("\n\n").count(), 1, "one event only: {text:?}");
        let mut data = vec![];
        let mut fields = vec![];
        for line in text.trim_end_matches('\n').split('\n') {
            assert!(!line.contains('\r'));
            let (name, value) = line.split_once(": ").unwrap();
            if name == "data" {
                data.push(value.to_owned());
            } else {
                fields.push((name.to_owned(), value.to_owned()));
            }
        }
        (fields, data.join("\n"))
    }

    #[test]
    fn an_online_only_message_has_no_id_and_a_persisted_one_has() {
        let bob = UserId::parse("bob").unwrap();
        let m = message("{\"n\":12345678901234567890,\"b\":1.0e5,\"a\":1}", "alice", "typing");
        let (fields, data) = parse(&message_frame(&m, &bob, None).to_bytes());
        assert_eq!(fields, [("event".into(), "message".into())]);
        assert!(data.contains("\"payload\":{\"n\":12345678901234567890,\"b\":1.0e5,\"a\":1},"), "{data}");
        let (fields, data) = parse(&message_frame(&m, &bob, Some(Cursor::new(17))).to_bytes());
        assert_eq!(fields[1], ("id".into(), "17".into()));
        let v: Value = serde_json::from_str(&data).unwrap();
        assert_eq!((v["cursor"].as_str(), v["to"]["users"][0].as_str()), (Some("17"), Some("bob")));
    }

    #[test]
    fn frames_of_many_recipients_share_the_payload_and_show_each_its_own_name() {
        let m = message("\"p\"", "alice", "t");
        let encoded = Encoded::new(&m);
        let (bob, carol) = (UserId::parse("bob").unwrap(), UserId::parse("carol").unwrap());
        let (a, b) = (encoded.for_recipient(&bob, None), encoded.for_recipient(&carol, None));
        assert_eq!(a.tail.as_ptr(), b.tail.as_ptr());
        assert_eq!(a.to_bytes(), message_frame(&m, &bob, None).to_bytes());
        assert!(!String::from_utf8_lossy(&b.to_bytes()).contains("bob"));
    }

    /// What a client makes of a chunk.
    fn dechunk(frame: Frame) -> Vec<u8> {
        let (head, tail) = frame.into_chunk();
        let chunk = [&head[..], &tail[..]].concat();
        let size = usize::from_str_radix(std::str::from_utf8(&chunk[..8]).unwrap(), 16).unwrap();
        assert_eq!((&chunk[8..10], &chunk[10 + size..]), (&b"\r\n"[..], &b"\r\n"[..]));
        chunk[10..10 + size].to_vec()
    }

    #[test]
    fn each_frame_is_one_chunk_around_its_event() {
        let m = message("{\n\"a\": 1}", "alice", "t");
        let bob = UserId::parse("bob").unwrap();
        let whole = Frame::whole(b"event: x\ndata: 1\n\n");
        for frame in [message_frame(&m, &bob, None), Encoded::new(&m).for_recipient(&bob, None), HEARTBEAT, whole] {
            assert_eq!(dechunk(frame.clone()), frame.to_bytes());
        }
    }

    proptest! {
        #[test]
        fn any_payload_and_name_arrive_as_one_event(
            spaces in proptest::collection::vec("[ \n\r\t]{0,3}", 5), text in any::<String>(),
            from in "[^\\p{Cc}]{1,40}", kind in "[^\\p{Cc}]{1,40}", cursor in proptest::option::of(1_u64..1_000_000),
        ) {
            let s = serde_json::to_string(&text).unwrap();
            let payload = format!("{}{{{}\"k\"{}:{}{s}{}}}", "", spaces[0], spaces[1], spaces[2], spaces[3]);
            let m = message(&payload, &from, &kind);
            let bob = UserId::parse("b\"o\\b").unwrap();
            let (fields, data) = parse(&message_frame(&m, &bob, cursor.map(Cursor::new)).to_bytes());
            prop_assert_eq!(fields.len(), 1 + usize::from(cursor.is_some()));
            let v: Value = serde_json::from_str(&data).unwrap();
            prop_assert_eq!(v["payload"]["k"].as_str(), Some(text.as_str()));
            prop_assert_eq!(v["from"].as_str(), Some(from.as_str()));
            prop_assert_eq!(v["type"].as_str(), Some(kind.as_str()));
            prop_assert_eq!(v["to"]["users"][0].as_str(), Some("b\"o\\b"));
        }
    }
}
