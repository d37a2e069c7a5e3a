//! Server-Sent Events as bytes (WHATWG HTML, "Server-sent events"). A message is encoded once and shared by all who get it.

use crate::domain::message::{Cursor, Message};
use crate::domain::seat::{DeviceId, NodeId, UserId};
use crate::ports::Bye;
use bytes::Bytes;
use serde::Serialize;

/// One event, ready to be written. The recipients of one message share `tail`, which holds the payload; `head` holds what differs
/// between them and may be empty.
#[derive(Clone, Debug)]
pub struct Frame {
    head: Bytes,
    tail: Bytes,
}

impl Frame {
    /// An event that is complete as it is.
    pub fn whole(event: Bytes) -> Self {
        Self { head: Bytes::new(), tail: event }
    }

    /// What is left of these parts after their first `written` bytes.
    pub(super) fn rest_of(mut head: Bytes, mut tail: Bytes, written: usize) -> Self {
        let of_head = written.min(head.len());
        let _ = head.split_to(of_head);
        let _ = tail.split_to((written - of_head).min(tail.len()));
        Self { head, tail }
    }

    /// How many bytes it adds to a queue.
    pub fn len(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// Whether there is nothing in it; no encoder makes such a frame.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The two parts, to be written one after the other; the first may be empty.
    pub fn into_parts(self) -> (Bytes, Bytes) {
        (self.head, self.tail)
    }

    /// In one piece, for the way to another node.
    pub fn to_bytes(&self) -> Bytes {
        if self.head.is_empty() {
            return self.tail.clone();
        }
        [&self.head[..], &self.tail[..]].concat().into()
    }
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
        Self { message, tail: tail.into() }
    }

    /// The event as this recipient sees it. Only a persisted message has a cursor, and with it the `id:` that moves the resume point.
    pub fn for_recipient(&self, user: &UserId, cursor: Option<Cursor>) -> Frame {
        let mut head = Vec::with_capacity(192);
        write_head(&mut head, self.message, user, cursor);
        Frame { head: head.into(), tail: self.tail.clone() }
    }
}

/// The event for a message's only recipient, in one piece.
pub fn message_frame(message: &Message, user: &UserId, cursor: Option<Cursor>) -> Frame {
    let mut event = Vec::with_capacity(message.payload.as_bytes().len() + message.kind.len() + 288);
    write_head(&mut event, message, user, cursor);
    write_tail(&mut event, message);
    Frame::whole(event.into())
}

fn write_head(out: &mut Vec<u8>, message: &Message, user: &UserId, cursor: Option<Cursor>) {
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
        write_string(out, user.as_str());
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
pub fn ready(user: &UserId, device: &DeviceId, node: &NodeId, resumed_after: Cursor) -> Bytes {
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
pub fn gap(reason: GapReason, resumed_after: Cursor) -> Bytes {
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

/// The last event of a stream, with the time to wait before opening another, if it is not the client's own affair.
pub fn bye(reason: Bye, retry_ms: Option<u64>) -> Bytes {
    #[derive(Serialize)]
    struct Why {
        reason: &'static str,
    }
    let retry = retry_ms.map(|ms| format!("retry: {ms}\n")).unwrap_or_default();
    event(&format!("{retry}event: bye\n"), &Why { reason: reason.as_str() })
}

/// A comment line, so that both ends know that the connection lives.
pub const HEARTBEAT: Bytes = Bytes::from_static(b":\n\n");

fn event(fields: &str, data: &impl Serialize) -> Bytes {
    let mut out = Vec::with_capacity(fields.len() + 160);
    out.extend_from_slice(fields.as_bytes());
    out.extend_from_slice(b"data: ");
    let _ = serde_json::to_writer(&mut out, data);
    out.extend_from_slice(b"\n\n");
    out.into()
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
