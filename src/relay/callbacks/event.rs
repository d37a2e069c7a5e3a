//! The JSON bodies of the events (CONTRACT.md 8), made anew from the store's content at each attempt.

use crate::domain::callback::Callback;
use crate::domain::message::{Cursor, Message, PushWish, RawJson};
use crate::domain::seat::{DeviceId, GroupId, UserId};
use crate::domain::time::Timestamp;
use crate::ports::CallbackContent;
use bytes::Bytes;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use sha2::{Digest, Sha256};
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

/// What one callback has to say: the `data` of an event of its own, or one of the messages of a batch.
#[derive(Debug)]
pub struct Word {
    callback: Uuid,
    kind: &'static str,
    at: Timestamp,
    data: Box<RawValue>,
}

impl Word {
    /// What a callback has to say; `None` if nothing.
    pub fn of(callback: &Callback, content: &CallbackContent) -> Result<Option<Self>, Damaged> {
        let (kind, message, data) = match content {
            CallbackContent::Stored { message, expires_at, recipients } => {
                ("message.stored", message, to_raw_value(&StoredData::new(message, *expires_at, recipients))?)
            }
            CallbackContent::Push { message, expires_at, push, unread, devices } => {
                let (recipient, _) = callback.recipient.as_ref().ok_or(Damaged::NoRecipient)?;
                let data = PushData {
                    message: MessageBody::new(message, *expires_at, vec![recipient]),
                    recipient,
                    push: if let PushWish::With(push) = push { Some(push) } else { None },
                    unread: *unread,
                    devices: devices.iter().map(|(device, last_seen_at)| DeviceBody { device, last_seen_at }).collect(),
                };
                ("message.push", message, to_raw_value(&data)?)
            }
            CallbackContent::NotNeeded => return Ok(None),
        };
        Ok(Some(Self { callback: callback.id, kind, at: message.sent_at, data }))
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
    fn new(message: &'a Message, expires_at: Timestamp, recipients: &'a [(UserId, Cursor)]) -> Self {
        Self {
            message: MessageBody::new(message, expires_at, recipients.iter().map(|(user, _)| user).collect()),
            recipients: recipients.iter().map(|(user, cursor)| RecipientBody { user, cursor }).collect(),
        }
    }
}
