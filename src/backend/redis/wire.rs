//! What nodes publish to each other, as bytes: an envelope of offers, replies and notices.
//!
//! An envelope is the time of publishing, which Redis itself puts before it (decimal milliseconds and a space), the form's number, the
//! sender's name, and parts. All numbers are big-endian, and a text bears its length. A frame is copied once, into the envelope.

use crate::domain::seat::{DeviceId, DeviceState, NodeId, SeatInfo, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{Bye, Notice, OfferError, Refusal, RemoteOffer, Verdict};
use bytes::{Buf, Bytes};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Changes when the form does; another one isn't read.
const FORM: u8 = 1;
/// "There is none", of a duration in milliseconds or a length.
const NONE: u32 = u32::MAX;

/// One thing told to another node.
#[derive(Clone, Debug)]
pub(super) enum Part {
    /// A frame for a seat of the receiver. The id is the sender's, and never used twice.
    Offer { id: u64, offer: RemoteOffer },
    /// What became of an offer.
    Reply { id: u64, result: Answer },
    /// See [`Notice`].
    Notice(Notice),
    /// A node hears itself.
    Probe,
}

/// What became of an offer, as the receiver's door said it.
pub(super) type Answer = Result<Verdict, OfferError>;

/// What was received at once.
#[derive(Debug)]
pub(super) struct Envelope {
    /// By Redis' clock.
    pub published_ms: i64,
    pub from: NodeId,
    pub parts: Vec<Part>,
}

/// The bytes could not be read: another version's, or nobody's.
#[derive(Debug, thiserror::Error)]
#[error("this is no envelope of a herenow node of this version")]
pub(super) struct Unreadable;

/// An envelope that is being written.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub fn new(from: &NodeId) -> Self {
        let mut writer = Self(vec![FORM]);
        writer.text(from.as_str());
        writer
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    pub fn part(&mut self, part: &Part) {
        match part {
            Part::Offer { id, offer } => {
                self.0.push(b'o');
                self.u64(*id);
                self.seat(&offer.seat);
                self.u32(millis(offer.ttl));
                self.u32(offer.patience.map_or(NONE, millis));
                match &offer.collapse_key {
                    Some(key) => self.text(key),
                    None => self.u32(NONE),
                }
                self.bytes(&offer.frame);
            }
            Part::Reply { id, result } => {
                self.0.push(b'r');
                self.u64(*id);
                self.0.push(answer_code(*result));
            }
            Part::Notice(Notice::Stored(users)) => {
                self.0.push(b's');
                self.users(users);
            }
            Part::Notice(Notice::Recalled(id, users)) => {
                self.0.push(b'd');
                self.0.extend_from_slice(id.as_bytes());
                self.users(users);
            }
            Part::Notice(Notice::Close(seat, bye)) => {
                self.0.push(b'c');
                self.seat(seat);
                self.0.push(bye_code(*bye));
            }
            Part::Notice(Notice::Touched(seat)) => {
                self.0.push(b't');
                self.seat(seat);
            }
            Part::Probe => self.0.push(b'p'),
        }
    }

    fn seat(&mut self, seat: &SeatInfo) {
        let SeatInfo { user, device, node, connection, state, connected_at, last_active_at } = seat;
        self.text(user.as_str());
        self.text(device.as_str());
        self.text(node.as_str());
        self.u64(*connection);
        self.0.push(u8::from(*state == DeviceState::Background));
        self.0.extend_from_slice(&connected_at.as_ms().to_be_bytes());
        self.0.extend_from_slice(&last_active_at.as_ms().to_be_bytes());
    }

    fn users(&mut self, users: &[UserId]) {
        self.u32(u32::try_from(users.len()).unwrap_or(NONE));
        for user in users {
            self.text(user.as_str());
        }
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Frames and names are bounded far below 4 GiB.
    fn bytes(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).unwrap_or(NONE));
        self.0.extend_from_slice(bytes);
    }

    fn u32(&mut self, n: u32) {
        self.0.extend_from_slice(&n.to_be_bytes());
    }

    fn u64(&mut self, n: u64) {
        self.0.extend_from_slice(&n.to_be_bytes());
    }
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(NONE - 1).min(NONE - 1)
}

/// Reads what was published.
pub(super) fn read(bytes: Bytes) -> Result<Envelope, Unreadable> {
    let mut reader = Reader(bytes);
    let published_ms = reader.published_ms()?;
    if reader.u8()? != FORM {
        return Err(Unreadable);
    }
    let from = reader.name(NodeId::parse)?;
    let mut parts = Vec::new();
    while reader.0.has_remaining() {
        parts.push(reader.part()?);
    }
    Ok(Envelope { published_ms, from, parts })
}

struct Reader(Bytes);

impl Reader {
    fn published_ms(&mut self) -> Result<i64, Unreadable> {
        let end = self.0.iter().take(20).position(|byte| *byte == b' ').ok_or(Unreadable)?;
        let digits = self.0.split_to(end);
        self.0.advance(1);
        std::str::from_utf8(&digits).ok().and_then(|text| text.parse().ok()).ok_or(Unreadable)
    }

    fn part(&mut self) -> Result<Part, Unreadable> {
        Ok(match self.u8()? {
            b'o' => {
                let id = self.u64()?;
                let seat = self.seat()?;
                let ttl = Duration::from_millis(self.u32()?.into());
                let patience = Some(self.u32()?).filter(|ms| *ms != NONE);
                let collapse_key = match self.u32()? {
                    NONE => None,
                    length => Some(Arc::from(text_of(&self.take(length)?)?)),
                };
                let length = self.u32()?;
                let frame = self.take(length)?;
                let patience = patience.map(|ms| Duration::from_millis(ms.into()));
                Part::Offer { id, offer: RemoteOffer { seat, frame, ttl, patience, collapse_key } }
            }
            b'r' => Part::Reply { id: self.u64()?, result: answer_of(self.u8()?)? },
            b's' => Part::Notice(Notice::Stored(self.users()?)),
            b'd' => {
                let id = Uuid::from_slice(&self.take(16)?).map_err(|_| Unreadable)?;
                Part::Notice(Notice::Recalled(id, self.users()?))
            }
            b'c' => Part::Notice(Notice::Close(self.seat()?, bye_of(self.u8()?)?)),
            b't' => Part::Notice(Notice::Touched(self.seat()?)),
            b'p' => Part::Probe,
            _ => return Err(Unreadable),
        })
    }

    fn seat(&mut self) -> Result<SeatInfo, Unreadable> {
        Ok(SeatInfo {
            user: self.name(UserId::parse)?,
            device: self.name(DeviceId::parse)?,
            node: self.name(NodeId::parse)?,
            connection: self.u64()?,
            state: if self.u8()? == 0 { DeviceState::Active } else { DeviceState::Background },
            connected_at: self.time()?,
            last_active_at: self.time()?,
        })
    }

    /// The count is not to be believed before the names are there.
    fn users(&mut self) -> Result<Vec<UserId>, Unreadable> {
        (0..self.u32()?).map(|_| self.name(UserId::parse)).collect()
    }

    fn name<T, E>(&mut self, parse: impl Fn(&str) -> Result<T, E>) -> Result<T, Unreadable> {
        let length = self.u32()?;
        parse(text_of(&self.take(length)?)?).map_err(|_| Unreadable)
    }

    /// Shares the bytes, copies none.
    fn take(&mut self, length: u32) -> Result<Bytes, Unreadable> {
        let length = usize::try_from(length).map_err(|_| Unreadable)?;
        if length > self.0.len() { Err(Unreadable) } else { Ok(self.0.split_to(length)) }
    }

    fn time(&mut self) -> Result<Timestamp, Unreadable> {
        self.0.try_get_i64().map(Timestamp::from_ms).map_err(|_| Unreadable)
    }

    fn u8(&mut self) -> Result<u8, Unreadable> {
        self.0.try_get_u8().map_err(|_| Unreadable)
    }

    fn u32(&mut self) -> Result<u32, Unreadable> {
        self.0.try_get_u32().map_err(|_| Unreadable)
    }

    fn u64(&mut self) -> Result<u64, Unreadable> {
        self.0.try_get_u64().map_err(|_| Unreadable)
    }
}

fn text_of(bytes: &Bytes) -> Result<&str, Unreadable> {
    std::str::from_utf8(bytes).map_err(|_| Unreadable)
}

/// In the order of their codes.
const ANSWERS: [Answer; 8] = [
    Ok(Verdict::Taken),
    Ok(Verdict::Refused(Refusal::Full)),
    Ok(Verdict::Refused(Refusal::Closed)),
    Ok(Verdict::Refused(Refusal::Expired)),
    Ok(Verdict::Refused(Refusal::Superseded)),
    Ok(Verdict::Refused(Refusal::Revoked)),
    Err(OfferError::NotTaken),
    Err(OfferError::Unknown),
];

fn answer_code(answer: Answer) -> u8 {
    match answer {
        Ok(Verdict::Taken) => 0,
        Ok(Verdict::Refused(Refusal::Full)) => 1,
        Ok(Verdict::Refused(Refusal::Closed)) => 2,
        Ok(Verdict::Refused(Refusal::Expired)) => 3,
        Ok(Verdict::Refused(Refusal::Superseded)) => 4,
        Ok(Verdict::Refused(Refusal::Revoked)) => 5,
        Err(OfferError::NotTaken) => 6,
        Err(OfferError::Unknown) => 7,
    }
}

fn answer_of(code: u8) -> Result<Answer, Unreadable> {
    ANSWERS.get(usize::from(code)).copied().ok_or(Unreadable)
}

/// Likewise.
const BYES: [Bye; 6] = [Bye::Replaced, Bye::TokenExpired, Bye::Kicked, Bye::Draining, Bye::Rotate, Bye::Unauthorized];

fn bye_code(bye: Bye) -> u8 {
    match bye {
        Bye::Replaced => 0,
        Bye::TokenExpired => 1,
        Bye::Kicked => 2,
        Bye::Draining => 3,
        Bye::Rotate => 4,
        Bye::Unauthorized => 5,
    }
}

fn bye_of(code: u8) -> Result<Bye, Unreadable> {
    BYES.get(usize::from(code)).copied().ok_or(Unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    fn seats() -> impl Strategy<Value = SeatInfo> {
        let names = ("[^\\pC]{1,128}", "[^\\pC]{1,64}", "[^\\pC]{1,128}");
        let rest = (any::<u64>(), any::<bool>(), 0_i64..253_402_207_200_000, 0_i64..253_402_207_200_000);
        (names, rest).prop_map(|((user, device, node), (connection, background, connected, active))| SeatInfo {
            user: UserId::parse(&user).unwrap(),
            device: DeviceId::parse(&device).unwrap(),
            node: NodeId::parse(&node).unwrap(),
            connection,
            state: if background { DeviceState::Background } else { DeviceState::Active },
            connected_at: Timestamp::from_ms(connected),
            last_active_at: Timestamp::from_ms(active),
        })
    }

    fn parts() -> impl Strategy<Value = Part> {
        let millis = || (0..u32::MAX - 1).prop_map(|ms| Duration::from_millis(ms.into()));
        let offer =
            (any::<u64>(), seats(), vec(any::<u8>(), 0..2_000), millis(), option::of(millis()), option::of(".{1,128}"))
                .prop_map(|(id, seat, frame, ttl, patience, key)| Part::Offer {
                    id,
                    offer: RemoteOffer { seat, frame: frame.into(), ttl, patience, collapse_key: key.map(Into::into) },
                });
        let reply = (any::<u64>(), 0..8_u8).prop_map(|(id, n)| Part::Reply { id, result: answer_of(n).unwrap() });
        let users = || {
            let names = vec("[^\\pC]{1,128}", 0..20);
            names.prop_map(|names| names.iter().map(|name| UserId::parse(name).unwrap()).collect())
        };
        let stored = users().prop_map(|users| Part::Notice(Notice::Stored(users)));
        let recalled =
            (any::<u128>(), users()).prop_map(|(id, users)| Part::Notice(Notice::Recalled(Uuid::from_u128(id), users)));
        let close = (seats(), 0..6_u8).prop_map(|(seat, n)| Part::Notice(Notice::Close(seat, bye_of(n).unwrap())));
        let touched = seats().prop_map(|seat| Part::Notice(Notice::Touched(seat)));
        prop_oneof![offer, reply, stored, recalled, close, touched, Just(Part::Probe)]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(at in 0..i64::MAX, node in "[^\\pC]{1,128}", parts in vec(parts(), 0..8)) {
            let node = NodeId::parse(&node).unwrap();
            let mut writer = Writer::new(&node);
            for part in &parts {
                writer.part(part);
            }
            let mut bytes = format!("{at} ").into_bytes();
            bytes.extend(writer.into_bytes());
            let read = read(bytes.into()).unwrap();
            prop_assert_eq!(read.published_ms, at);
            prop_assert_eq!(read.from, node);
            prop_assert_eq!(format!("{:?}", read.parts), format!("{parts:?}"));
        }

        #[test]
        fn each_code_is_that_of_what_it_is_read_as(code in any::<u8>()) {
            prop_assert!(answer_of(code).map_or(code >= 8, |answer| answer_code(answer) == code));
            prop_assert!(bye_of(code).map_or(code >= 6, |bye| bye_code(bye) == code));
        }

        #[test]
        fn anything_else_is_refused_without_a_panic(garbage in vec(any::<u8>(), 0..200), cut in any::<proptest::sample::Index>()) {
            let mut bytes = b"1763942400007 \x01\0\0\0\x01n".to_vec();
            bytes.truncate(cut.index(bytes.len() + 1));
            bytes.extend(&garbage);
            let _ = read(bytes.into());
            prop_assert!(read(garbage.into()).is_err());
        }
    }
}
