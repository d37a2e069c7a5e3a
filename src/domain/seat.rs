//! Who is where: the names of users, devices, groups and nodes, and the seat, which is one open stream.

use super::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// Which key a stream's token was signed with: enough to tell whether it is still one of those that are accepted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct KeyId(u64);

impl KeyId {
    /// Made by whoever knows the key.
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// As it stands in a ticket.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Why a text is no name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// It has no characters.
    #[error("is empty")]
    Empty,
    /// It has more characters than its kind of name may have.
    #[error("is longer than {0} characters")]
    TooLong(usize),
    /// It has a control character.
    #[error("has a control character")]
    Control,
}

/// The rule for every name (CONTRACT.md 1): 1 to `max` characters, none of them a control character.
pub fn check_name(text: &str, max: usize) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    // Up to `max` bytes there can't be more than `max` characters.
    if text.len() > max && text.chars().count() > max {
        return Err(NameError::TooLong(max));
    }
    if text.chars().any(char::is_control) {
        return Err(NameError::Control);
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The most characters that it may have.
            pub const MAX: usize = $max;

            /// Checks `text` by the rule for names.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                check_name(text, Self::MAX)?;
                Ok(Self(text.into()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(
    /// A recipient or sender of messages.
    UserId, 128
);
name!(
    /// One of a user's devices.
    DeviceId, 64
);
name!(
    /// A named set of users.
    GroupId, 128
);
name!(
    /// One running herenow process.
    NodeId, 128
);

/// Whether the person looks at the device now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    /// In front of the user.
    #[default]
    Active,
    /// Connected, but not looked at.
    Background,
}

/// A seat: one open stream of a device, as the directory knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeatInfo {
    /// Whose device it is.
    pub user: UserId,
    /// Which of the user's devices.
    pub device: DeviceId,
    /// The node that holds the stream.
    pub node: NodeId,
    /// The stream's connection number, never used twice by one node.
    pub connection: u64,
    /// What the device said of itself last.
    pub state: DeviceState,
    /// When the stream was opened.
    pub connected_at: Timestamp,
    /// The latest of connecting, acknowledging and a change of state.
    pub last_active_at: Timestamp,
}

/// A user's presence: the seats, and a number that grows with every change.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Presence {
    /// Greater in every later presence of the same user; 0 for one never seen.
    pub version: u64,
    /// The open streams, at most one per device.
    pub seats: Vec<SeatInfo>,
}

/// Puts seats into the order in which a `one_device` message tries them (CONTRACT.md 3): `active` before `background`, then the latest
/// activity; those that `is_silent` (data unacknowledged for long) come last, in the same order among themselves.
pub fn order_seats(seats: &mut [SeatInfo], is_silent: impl Fn(&SeatInfo) -> bool) {
    seats.sort_by_cached_key(|seat| {
        let latest_first = std::cmp::Reverse((seat.last_active_at, seat.connected_at, seat.connection));
        (is_silent(seat), seat.state == DeviceState::Background, latest_first)
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seat(n: u64, state: DeviceState, active_ms: i64) -> SeatInfo {
        SeatInfo {
            user: UserId::parse("bob").unwrap(),
            device: DeviceId::parse(&format!("d{n}")).unwrap(),
            node: NodeId::parse("n").unwrap(),
            connection: n,
            state,
            connected_at: Timestamp::from_ms(0),
            last_active_at: Timestamp::from_ms(active_ms),
        }
    }

    #[test]
    fn names_are_bounded_in_characters_not_bytes() {
        assert!(UserId::parse(&"ü".repeat(128)).is_ok());
        assert_eq!(UserId::parse(&"ü".repeat(129)), Err(NameError::TooLong(128)));
        assert_eq!(DeviceId::parse(""), Err(NameError::Empty));
        assert_eq!(UserId::parse("a\u{7f}"), Err(NameError::Control));
        assert_eq!(UserId::parse("a\0"), Err(NameError::Control));
        for odd in ["../etc", "💬", "\u{202e}rtl", "a/b?c#d", " "] {
            assert!(UserId::parse(odd).is_ok(), "{odd:?}");
        }
    }

    proptest! {
        #[test]
        fn seats_are_ordered_by_silence_state_and_activity(
            rows in proptest::collection::vec((any::<bool>(), any::<bool>(), 0_i64..50), 0..30)
        ) {
            let mut seats: Vec<_> = rows.iter().enumerate().map(|(i, &(_, background, at))| {
                let state = if background { DeviceState::Background } else { DeviceState::Active };
                seat(i as u64, state, at)
            }).collect();
            let silent = |s: &SeatInfo| rows[usize::try_from(s.connection).unwrap()].0;
            order_seats(&mut seats, silent);
            prop_assert_eq!(seats.len(), rows.len());
            for pair in seats.windows(2) {
                let (a, b) = (&pair[0], &pair[1]);
                prop_assert!(silent(a) <= silent(b));
                if silent(a) == silent(b) {
                    prop_assert!((a.state == DeviceState::Background) <= (b.state == DeviceState::Background));
                    if a.state == b.state {
                        prop_assert!(a.last_active_at >= b.last_active_at);
                    }
                }
            }
        }
    }
}
