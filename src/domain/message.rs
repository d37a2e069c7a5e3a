//! What is sent: the draft that a backend posts, the message made of it, and what became of it per recipient.

use super::seat::{GroupId, UserId};
use super::time::Timestamp;
use super::trace::TraceContext;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// JSON text exactly as it was sent: it is relayed byte for byte and never parsed into values.
///
/// `Debug` shows the length alone, so that no log can hold the text (CONTRACT.md 10.1).
#[derive(Clone, PartialEq, Eq)]
pub struct RawJson(Bytes);

impl RawJson {
    /// Takes bytes that are known to be one JSON value in UTF-8.
    pub fn from_checked(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// Whether it is nested no deeper than [`RawJson::MAX_DEPTH`].
    pub fn is_shallow(&self) -> bool {
        // Most have fewer brackets than levels are allowed, and then there is no need to look closer.
        memchr::memchr2_iter(b'[', b'{', &self.0).nth(Self::MAX_DEPTH).is_none() || depth(&self.0) <= Self::MAX_DEPTH
    }

    /// Content is at most so deep: what reads it at the other end may be recursive.
    pub const MAX_DEPTH: usize = 128;

    /// The JSON text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

impl fmt::Debug for RawJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawJson({} bytes)", self.0.len())
    }
}

impl Serialize for RawJson {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let text = std::str::from_utf8(&self.0).map_err(serde::ser::Error::custom)?;
        // Validates once more, so a damaged store can't make a damaged answer.
        let raw: &serde_json::value::RawValue = serde_json::from_str(text).map_err(serde::ser::Error::custom)?;
        raw.serialize(s)
    }
}

/// To whom a message goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    /// These users, without duplicates, in the order in which the sender named them.
    Users(Vec<UserId>),
    /// All members of a group.
    Group(GroupId),
}

impl Audience {
    /// The group, if it is one.
    pub fn into_group(self) -> Option<GroupId> {
        match self {
            Self::Users(_) => None,
            Self::Group(group) => Some(group),
        }
    }
}

/// On how many of a recipient's devices an online-only message may appear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliverTo {
    /// On one, the first in the order of activity that takes it.
    #[default]
    OneDevice,
    /// On each that is online.
    EveryDevice,
}

/// What the sender wants pushed for a persisted message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PushWish {
    /// A push without data of its own.
    #[default]
    Plain,
    /// No push.
    Off,
    /// This JSON object goes to the push callback as it is.
    With(RawJson),
}

/// How a message is to be treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It reaches who is here now, or nobody.
    OnlineOnly {
        /// One device or all.
        deliver_to: DeliverTo,
        /// How long it may wait in a slow device's queue.
        ttl: Duration,
        /// A newer message to the same device with the same key takes its place.
        collapse_key: Option<Arc<str>>,
    },
    /// It is durable before it is answered.
    Persisted {
        /// How long it is kept.
        ttl: Duration,
        /// What the push callback is told.
        push: PushWish,
        /// It goes into the sender's own inbox too.
        sync_sender: bool,
    },
}

/// A checked request to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The sender.
    pub from: UserId,
    /// The recipients.
    pub to: Audience,
    /// The application's own word for what this is.
    pub kind: Arc<str>,
    /// The content.
    pub payload: RawJson,
    /// Online-only or persisted.
    pub mode: Mode,
    /// The answer tells what became of it at each recipient, and not only how many fared how.
    pub show_recipients: bool,
    /// The whole request as the sender wrote it.
    pub source: RawJson,
    /// What callbacks are told to have been caused by.
    pub trace: Option<Arc<TraceContext>>,
}

/// A user's sequence number of a persisted message: contiguous from 1, in the order of committing. Opaque to clients.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Cursor(u64);

impl Cursor {
    /// Before the first message.
    pub const START: Self = Self(0);

    /// From the number; what the store could never have given out is held to the greatest that it could.
    pub fn new(n: u64) -> Self {
        Self(n.min(i64::MAX as u64))
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The one after it.
    #[must_use]
    pub fn next(self) -> Self {
        Self::new(self.0 + 1)
    }

    /// Reads a cursor that a client gave back; `None` for a text that herenow never gave out.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        let n: i64 = plain.then(|| text.parse().ok())??;
        Some(Self(n.unsigned_abs()))
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Cursor {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("is not a cursor"))
    }
}

/// A message with its identity, of either mode: what a recipient is shown, but for `to` and `cursor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// UUIDv7.
    pub id: Uuid,
    /// The sender.
    pub from: UserId,
    /// The group it was sent to, if it was.
    pub group: Option<GroupId>,
    /// The application's word.
    pub kind: Arc<str>,
    /// The content.
    pub payload: RawJson,
    /// Whether it is online-only.
    pub online_only: bool,
    /// When herenow accepted it.
    pub sent_at: Timestamp,
}

/// What became of an online-only message at one recipient (CONTRACT.md 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Handed to a device's HTTP stream.
    Delivered,
    /// No device of the user could take it.
    Offline,
    /// Not known in time; it may or may not arrive, and is not tried elsewhere.
    Unconfirmed,
    /// It waited in a slow device's queue for longer than its `ttl_ms`.
    Expired,
    /// It waited in a slow device's queue until a newer one with its `collapse_key` took its place.
    Superseded,
}

impl Outcome {
    /// All outcomes, in the order of the summary.
    pub const ALL: [Self; 5] = [Self::Delivered, Self::Offline, Self::Unconfirmed, Self::Expired, Self::Superseded];

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Offline => "offline",
            Self::Unconfirmed => "unconfirmed",
            Self::Expired => "expired",
            Self::Superseded => "superseded",
        }
    }
}

/// How many recipients had each outcome. The five add up to the recipients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "each field counts the outcome of its name")]
pub struct Summary {
    pub delivered: u32,
    pub offline: u32,
    pub unconfirmed: u32,
    pub expired: u32,
    pub superseded: u32,
}

impl Summary {
    /// Counts so many recipients.
    pub fn add(&mut self, outcome: Outcome, recipients: usize) {
        let count = self.count(outcome);
        *count = count.saturating_add(u32::try_from(recipients).unwrap_or(u32::MAX));
    }

    /// How many had this outcome.
    pub fn of(mut self, outcome: Outcome) -> u32 {
        *self.count(outcome)
    }

    fn count(&mut self, outcome: Outcome) -> &mut u32 {
        match outcome {
            Outcome::Delivered => &mut self.delivered,
            Outcome::Offline => &mut self.offline,
            Outcome::Unconfirmed => &mut self.unconfirmed,
            Outcome::Expired => &mut self.expired,
            Outcome::Superseded => &mut self.superseded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_cursor_is_plain_digits_in_the_stores_range() {
        assert_eq!(Cursor::parse("0"), Some(Cursor::START));
        assert_eq!(Cursor::parse("17"), Some(Cursor::new(17)));
        assert_eq!(Cursor::parse("9223372036854775807"), Some(Cursor::new(i64::MAX as u64)));
        for nonsense in ["", "-1", "+1", "01", "1.0", " 1", "1e3", "9223372036854775808", "earliest", "１", "0x10"] {
            assert_eq!(Cursor::parse(nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn depth_counts_brackets_outside_of_strings() {
        let is_shallow = |text: String| RawJson::from_checked(text.into()).is_shallow();
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(is_shallow(nested(RawJson::MAX_DEPTH)));
        assert!(!is_shallow(nested(RawJson::MAX_DEPTH + 1)));
        assert!(is_shallow(format!("\"\\\"{}\"", "[".repeat(500))));
        assert!(is_shallow(format!("[{}]", ["{}"; 400].join(","))));
    }

    #[test]
    fn debug_never_shows_content() {
        let payload = RawJson::from_checked(Bytes::from_static(b"\"secret\""));
        assert_eq!(format!("{payload:?}"), "RawJson(8 bytes)");
    }

    proptest! {
        #[test]
        fn a_cursor_survives_its_text(n in 0..=i64::MAX as u64) {
            prop_assert_eq!(Cursor::parse(&Cursor::new(n).to_string()), Some(Cursor::new(n)));
        }

        #[test]
        fn parsing_a_cursor_never_panics_and_what_it_accepts_reads_back(text in ".{0,24}") {
            if let Some(c) = Cursor::parse(&text) {
                prop_assert_eq!(c.to_string(), text);
            }
        }

        #[test]
        fn a_summary_adds_up_to_the_recipients(picks in proptest::collection::vec(0_usize..5, 0..200)) {
            let mut s = Summary::default();
            for &i in &picks {
                s.add(Outcome::ALL[i], 1);
            }
            let sum = s.delivered + s.offline + s.unconfirmed + s.expired + s.superseded;
            prop_assert_eq!(sum as usize, picks.len());
            prop_assert_eq!(s.offline as usize, picks.iter().filter(|&&i| i == 1).count());
        }
    }
}
