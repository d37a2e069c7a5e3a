//! The JSON bodies of the events (CONTRACT.md 8), made anew from the store's content at each attempt.

use crate::domain::callback::Callback;
use crate::domain::message::{Cursor, Message, PushWish, RawJson};
use crate::domain::seat::{DeviceId, GroupId, UserId};
use crate::domain::time::Timestamp;
use crate::domain::trace::TraceContext;
use crate::ports::CallbackContent;
use bytes::Bytes;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use sha2::{Digest, Sha256};
use std::time::Duration;
use uuid::Uuid;

/// An event ready to be posted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// `webhook-id`: the same on every attempt of this event.
    pub id: String,
    /// The signed body.
    pub body: Bytes,
}

/// Why a row can't be made into an event, now or ever.
#[derive(Debug, thiserror::Error)]
pub enum Damaged {
    /// The payload is no JSON, which it was when it was accepted.
    #[error("what the store returned can't be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A push that is for nobody.
    #[error("the store's row names no recipient")]
    NoRecipient,
}

const STORED: &str = "message.stored";

/// What one callback has to say: the `data` of an event of its own, or one of the messages of a batch.
#[derive(Debug)]
pub struct Word {
    callback: Uuid,
    kind: &'static str,
    at: Timestamp,
    data: Box<RawValue>,
    /// What caused it.
    pub trace: Option<TraceContext>,
}

impl Word {
    /// What a callback has to say; `None` if nothing.
    pub fn of(callback: &Callback, content: &CallbackContent) -> Result<Option<Self>, Damaged> {
        let (kind, at, data, trace) = match content {
            CallbackContent::Stored { message, expires_at, synced, recipients, trace } => {
                let data = StoredData::new(message, *expires_at, *synced, recipients);
                (STORED, message.sent_at, to_raw_value(&data)?, trace.clone())
            }
            CallbackContent::Recalled => {
                let data = to_raw_value(&RecalledData { id: callback.message })?;
                ("message.recalled", made_at(callback.id), data, None)
            }
            CallbackContent::Push { message, expires_at, push, unread, devices, trace } => {
                let (recipient, _) = callback.recipient.as_ref().ok_or(Damaged::NoRecipient)?;
                let data = PushData {
                    message: MessageBody::new(message, *expires_at, vec![recipient]),
                    recipient,
                    push: if let PushWish::With(push) = push { Some(push) } else { None },
                    unread: *unread,
                    devices: devices.iter().map(|(device, last_seen_at)| DeviceBody { device, last_seen_at }).collect(),
                };
                ("message.push", message.sent_at, to_raw_value(&data)?, trace.clone())
            }
            CallbackContent::NotNeeded => return Ok(None),
        };
        Ok(Some(Self { callback: callback.id, kind, at, data, trace }))
    }

    /// Whether it may be told in a batch with others.
    pub fn joins_batches(&self) -> bool {
        self.kind == STORED
    }

    /// How much it adds to a body.
    pub fn bytes(&self) -> usize {
        self.data.get().len()
    }

    /// The event of this alone.
    pub fn event(&self) -> Event {
        Event::new(self.callback.to_string(), self.kind, self.at, self.data.get())
    }
}

impl Event {
    /// The event of several stored messages.
    ///
    /// Its `webhook-id` is made of the callbacks' ids, so the same members bear the same id on every attempt, after a crash too, and other
    /// members are another event. Of one member it is the callback's own id. A receiver that must not process a message twice after its
    /// batch was broken up goes by the ids of the messages.
    pub fn batch(words: &[Word]) -> Self {
        let ids: Vec<Uuid> = words.iter().map(|word| word.callback).collect();
        let newest = words.iter().map(|word| word.at).max().unwrap_or_default();
        let messages: Vec<&str> = words.iter().map(|word| word.data.get()).collect();
        let data = format!(r#"{{"messages":[{}]}}"#, messages.join(","));
        Self::new(batch_id(&ids), "message.stored.batch", newest, &data)
    }

    /// `timestamp` is when it happened, the same on every attempt. Written by hand, as all parts are known to be JSON.
    fn new(id: String, kind: &'static str, timestamp: Timestamp, data: &str) -> Self {
        let body = format!(r#"{{"type":"{kind}","timestamp":"{timestamp}","data":{data}}}"#);
        Self { id, body: body.into() }
    }
}

fn batch_id(ids: &[Uuid]) -> String {
    if let [one] = ids {
        return one.to_string();
    }
    let digest = ids.iter().fold(Sha256::new(), |hash, id| hash.chain_update(id.as_bytes())).finalize();
    digest.iter().take(16).fold("batch_".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

#[derive(Serialize)]
struct StoredData<'a> {
    message: MessageBody<'a>,
    recipients: Vec<RecipientBody<'a>>,
}

#[derive(Serialize)]
struct RecalledData {
    id: Uuid,
}

/// The time in a UUIDv7.
fn made_at(id: Uuid) -> Timestamp {
    let (s, ns) = id.get_timestamp().map_or((0, 0), |time| time.to_unix());
    Timestamp::from_ms(0).plus(Duration::new(s, ns))
}

#[derive(Serialize)]
struct PushData<'a> {
    message: MessageBody<'a>,
    recipient: &'a UserId,
    push: Option<&'a RawJson>,
    unread: u64,
    devices: Vec<DeviceBody<'a>>,
}

#[derive(Serialize)]
struct RecipientBody<'a> {
    user: &'a UserId,
    cursor: &'a Cursor,
}

#[derive(Serialize)]
struct DeviceBody<'a> {
    device: &'a DeviceId,
    last_seen_at: &'a Timestamp,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum To<'a> {
    Users(Vec<&'a UserId>),
    Group(&'a GroupId),
}

#[derive(Serialize)]
struct MessageBody<'a> {
    id: Uuid,
    from: &'a UserId,
    to: To<'a>,
    #[serde(rename = "type")]
    kind: &'a str,
    payload: &'a RawJson,
    online_only: bool,
    sent_at: Timestamp,
    expires_at: Timestamp,
}

impl<'a> MessageBody<'a> {
    fn new(message: &'a Message, expires_at: Timestamp, users: Vec<&'a UserId>) -> Self {
        Self {
            id: message.id,
            from: &message.from,
            to: message.group.as_ref().map_or(To::Users(users), To::Group),
            kind: &message.kind,
            payload: &message.payload,
            online_only: message.online_only,
            sent_at: message.sent_at,
            expires_at,
        }
    }
}

impl<'a> StoredData<'a> {
    fn new(message: &'a Message, expires_at: Timestamp, synced: bool, recipients: &'a [(UserId, Cursor)]) -> Self {
        let sent_to = &recipients[..recipients.len().saturating_sub(usize::from(synced))];
        Self {
            message: MessageBody::new(message, expires_at, sent_to.iter().map(|(user, _)| user).collect()),
            recipients: recipients.iter().map(|(user, cursor)| RecipientBody { user, cursor }).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::callback::Endpoint;

    fn name(text: &str) -> UserId {
        UserId::parse(text).unwrap()
    }

    fn message(group: Option<&str>, payload: &'static [u8]) -> Message {
        Message {
            id: Uuid::from_u128(1),
            from: name("alice"),
            group: group.map(|g| GroupId::parse(g).unwrap()),
            kind: "chat".into(),
            payload: RawJson::from_checked(Bytes::from_static(payload)),
            online_only: false,
            sent_at: Timestamp::from_ms(1_000),
        }
    }

    fn callback(endpoint: Endpoint, n: u128) -> Callback {
        let recipient = (endpoint == Endpoint::Push).then(|| (name("bob"), Cursor::new(17)));
        let due_at = Timestamp::from_ms(9_000);
        Callback {
            id: Uuid::from_u128(n),
            endpoint,
            message: Uuid::from_u128(1),
            recalled: false,
            recipient,
            attempts: 3,
            due_at,
        }
    }

    fn stored(payload: &'static [u8]) -> CallbackContent {
        CallbackContent::Stored {
            synced: false,
            message: message(None, payload),
            expires_at: Timestamp::from_ms(2_000),
            recipients: vec![(name("bob"), Cursor::new(17)), (name("carol"), Cursor::new(4))],
            trace: None,
        }
    }

    fn pushed(group: Option<&str>, push: PushWish) -> CallbackContent {
        CallbackContent::Push {
            message: message(group, b"{}"),
            expires_at: Timestamp::from_ms(2_000),
            push,
            unread: 3,
            devices: vec![(DeviceId::parse("phone").unwrap(), Timestamp::from_ms(500))],
            trace: None,
        }
    }

    fn body(callback: &Callback, content: &CallbackContent) -> String {
        String::from_utf8(Word::of(callback, content).unwrap().unwrap().event().body.to_vec()).unwrap()
    }

    #[test]
    fn a_stored_message_is_told_whole_with_its_payload_byte_for_byte() {
        let payload = br#"{"n":12345678901234567890,  "b":1.50,"a":"\u00fc"}"#;
        assert_eq!(
            body(&callback(Endpoint::Storage, 7), &stored(payload)),
            concat!(
                r#"{"type":"message.stored","timestamp":"1970-01-01T00:00:01.000Z","data":{"message":{"#,
                r#""id":"00000000-0000-0000-0000-000000000001","from":"alice","to":{"users":["bob","carol"]},"type":"chat","#,
                r#""payload":{"n":12345678901234567890,  "b":1.50,"a":"\u00fc"},"online_only":false,"#,
                r#""sent_at":"1970-01-01T00:00:01.000Z","expires_at":"1970-01-01T00:00:02.000Z"},"#,
                r#""recipients":[{"user":"bob","cursor":"17"},{"user":"carol","cursor":"4"}]}}"#
            )
        );
    }

    #[test]
    fn a_push_names_its_recipient_and_no_other() {
        let wish = PushWish::With(RawJson::from_checked(Bytes::from_static(br#"{"title": "hi"}"#)));
        assert_eq!(
            body(&callback(Endpoint::Push, 7), &pushed(None, wish)),
            concat!(
                r#"{"type":"message.push","timestamp":"1970-01-01T00:00:01.000Z","data":{"message":{"#,
                r#""id":"00000000-0000-0000-0000-000000000001","from":"alice","to":{"users":["bob"]},"type":"chat","payload":{},"#,
                r#""online_only":false,"sent_at":"1970-01-01T00:00:01.000Z","expires_at":"1970-01-01T00:00:02.000Z"},"#,
                r#""recipient":"bob","push":{"title": "hi"},"unread":3,"#,
                r#""devices":[{"device":"phone","last_seen_at":"1970-01-01T00:00:00.500Z"}]}}"#
            )
        );
        let plain = body(&callback(Endpoint::Push, 7), &pushed(Some("team"), PushWish::Plain));
        assert!(plain.contains(r#""to":{"group":"team"}"#) && plain.contains(r#""push":null"#), "{plain}");
    }

    #[test]
    fn a_batch_of_the_same_members_has_the_same_id_and_others_another() {
        let word = |n| Word::of(&callback(Endpoint::Storage, n), &stored(b"1")).unwrap().unwrap();
        let batch = Event::batch(&[word(1), word(2)]);
        assert_eq!(batch, Event::batch(&[word(1), word(2)]));
        assert_ne!(batch.id, Event::batch(&[word(1), word(2), word(3)]).id);
        assert_ne!(batch.id, Event::batch(&[word(1), word(3)]).id);
        assert_eq!(Event::batch(&[word(9)]).id, word(9).event().id);
        let json: serde_json::Value = serde_json::from_slice(&batch.body).unwrap();
        assert_eq!(
            (&json["type"], &json["data"]["messages"][1]["recipients"][0]["cursor"]),
            (&"message.stored.batch".into(), &"17".into())
        );
    }

    #[test]
    fn what_has_nothing_to_say_or_can_not_be_said_is_told_apart() {
        let push = callback(Endpoint::Push, 1);
        assert!(Word::of(&push, &CallbackContent::NotNeeded).unwrap().is_none());
        let nobody = Callback { recipient: None, ..push };
        assert!(matches!(Word::of(&nobody, &pushed(None, PushWish::Plain)), Err(Damaged::NoRecipient)));
        assert!(matches!(Word::of(&callback(Endpoint::Storage, 1), &stored(b"{\"cut")), Err(Damaged::Json(_))));
    }
}
