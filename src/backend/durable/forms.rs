//! The words of the domain as columns of either store.

use crate::domain::callback::{CallbackState, Endpoint};
use crate::domain::message::{Cursor, PushWish, RawJson};
use crate::domain::time::Timestamp;
use bytes::Bytes;
use std::time::Duration;
use uuid::{Builder, ContextV7, Uuid};

/// A cursor as a column.
pub fn number(cursor: Cursor) -> i64 {
    i64::try_from(cursor.get()).unwrap_or(i64::MAX)
}

/// What is pushed, as a column: nothing for no push, empty for a plain one.
pub fn push_column(push: &PushWish) -> Option<&[u8]> {
    match push {
        PushWish::Off => None,
        PushWish::Plain => Some(b""),
        PushWish::With(json) => Some(json.as_bytes()),
    }
}

/// The opposite of [`push_column`].
pub fn push_of(column: Option<&[u8]>) -> PushWish {
    match column {
        None => PushWish::Off,
        Some(b"") => PushWish::Plain,
        Some(json) => PushWish::With(RawJson::from_checked(Bytes::copy_from_slice(json))),
    }
}

/// An endpoint as a column.
pub fn endpoint_number(endpoint: Endpoint) -> i16 {
    match endpoint {
        Endpoint::Storage => 1,
        Endpoint::Push => 2,
    }
}

/// The opposite of [`endpoint_number`].
pub fn endpoint_of(number: i16) -> Option<Endpoint> {
    Endpoint::ALL.into_iter().find(|endpoint| endpoint_number(*endpoint) == number)
}

/// A state as a column.
pub fn state_number(state: CallbackState) -> i16 {
    match state {
        CallbackState::Off => 0,
        CallbackState::Waiting => 1,
        CallbackState::Sent => 2,
        CallbackState::Failing => 3,
        CallbackState::Dead => 4,
        CallbackState::NotNeeded => 5,
    }
}

/// The opposite of [`state_number`].
pub fn state_of(number: i16) -> Option<CallbackState> {
    Some(match number {
        0 => CallbackState::Off,
        1 => CallbackState::Waiting,
        2 => CallbackState::Sent,
        3 => CallbackState::Failing,
        4 => CallbackState::Dead,
        5 => CallbackState::NotNeeded,
        _ => return None,
    })
}

/// A callback's id: greater than every earlier one of the same context.
pub fn callback_id(context: &ContextV7, made_at: Timestamp) -> Uuid {
    let s = made_at.as_s().unsigned_abs();
    let ns = made_at.since(Timestamp::from_ms(made_at.as_s() * 1000)).subsec_nanos();
    Uuid::new_v7(uuid::Timestamp::from_unix(context, s, ns))
}

/// The time in a UUIDv7.
pub fn made_at(id: Uuid) -> Timestamp {
    let (s, ns) = id.get_timestamp().map_or((0, 0), |t| t.to_unix());
    Timestamp::from_ms(0).plus(Duration::new(s, ns))
}

/// Not greater than any UUIDv7 that is made at this time or later.
pub fn first_id(at: Timestamp) -> Uuid {
    Builder::from_unix_timestamp_millis(at.as_ms().unsigned_abs(), &[0; 10]).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back() {
        for endpoint in Endpoint::ALL {
            assert_eq!(endpoint_of(endpoint_number(endpoint)), Some(endpoint));
        }
        assert_eq!(endpoint_of(0), None);
        for n in 0..6 {
            assert_eq!(state_of(n).map(state_number), Some(n));
        }
        assert_eq!(state_of(6), None);
    }

    #[test]
    fn an_id_stands_between_the_first_ones_of_its_time_and_the_next() {
        let (at, context) = (Timestamp::from_ms(1_800_000_000_123), ContextV7::new());
        let id = callback_id(&context, at);
        assert!(first_id(at) <= id && id < first_id(at.plus(Duration::from_millis(1))));
        assert!(id < callback_id(&context, at));
        assert_eq!(made_at(id), at);
    }
}
