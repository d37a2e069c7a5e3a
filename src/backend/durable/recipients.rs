//! The list of a message's recipients as bytes: pairs of user id and cursor, each number as LEB128.
//!
//! By it, status and expiry find the inbox rows without an index on them.

use crate::domain::message::Cursor;

/// A recipient's row id, and its place in that inbox.
pub type Spot = (i64, Cursor);

/// The bytes of a list.
pub fn encode(spots: &[Spot]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(spots.len() * 5);
    for &(user, cursor) in spots {
        put(&mut bytes, user.cast_unsigned());
        put(&mut bytes, cursor.get());
    }
    bytes
}

/// The list of bytes; `None` if they are no list.
pub fn decode(mut bytes: &[u8]) -> Option<Vec<Spot>> {
    let mut spots = Vec::with_capacity(bytes.len() / 2);
    while !bytes.is_empty() {
        let user = take(&mut bytes)?;
        let cursor = take(&mut bytes)?;
        spots.push((i64::try_from(user).ok()?, Cursor::new(cursor)));
    }
    Some(spots)
}

fn put(bytes: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        bytes.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    bytes.push((n & 0x7f) as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut n = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        n |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_list_reads_back(list in proptest::collection::vec((0..=i64::MAX, 0..=i64::MAX as u64), 0..50)) {
            let spots: Vec<Spot> = list.into_iter().map(|(user, n)| (user, Cursor::new(n))).collect();
            prop_assert_eq!(decode(&encode(&spots)), Some(spots));
        }

        #[test]
        fn damaged_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode(&bytes);
        }
    }
}
