//! Idempotency keys of online-only sends, and stream tickets: both bounded, both for a while.

use crate::domain::time::Timestamp;
use crate::ports::{BodyHash, Claimed, KeyClaim, KeyError, Ticket, TicketError};
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// So many keys are remembered at a time. More are refused rather than that an older one were forgotten and its message sent twice.
const KEYS_MAX: usize = 1_000_000;
/// So many bytes of answers are remembered at a time.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// So many tickets wait at a time.
const TICKETS_MAX: usize = 500_000;

/// Keys by text, forgotten in the order of their claims.
#[derive(Debug, Default)]
pub(super) struct Keys {
    known: HashMap<Arc<str>, Known>,
    by_age: VecDeque<(Timestamp, Arc<str>)>,
    answer_bytes: usize,
}

#[derive(Debug)]
struct Known {
    body: BodyHash,
    expires_at: Timestamp,
    /// `None`: still being sent.
    answer: Option<Bytes>,
}

impl Keys {
    pub(super) fn claim(&mut self, key: &str, claim: &KeyClaim) -> Result<Claimed, KeyError> {
        self.forget_expired(claim.now);
        if let Some(known) = self.known.get(key) {
            return Ok(match &known.answer {
                _ if known.body != claim.body => Claimed::OtherBody,
                Some(answer) => Claimed::Answered(answer.clone()),
                None => Claimed::InProgress,
            });
        }
        if self.known.len() >= KEYS_MAX || self.answer_bytes >= ANSWER_BYTES_MAX {
            return Err(KeyError::Full);
        }
        let key: Arc<str> = key.into();
        self.by_age.push_back((claim.expires_at, key.clone()));
        self.known.insert(key, Known { body: claim.body, expires_at: claim.expires_at, answer: None });
        Ok(Claimed::New)
    }

    pub(super) fn settle(&mut self, key: &str, answer: Option<Bytes>) {
        match (answer, self.known.get_mut(key)) {
            (Some(answer), Some(known)) => {
                self.answer_bytes += answer.len();
                known.answer = Some(answer);
            }
            (None, Some(_)) => {
                self.known.remove(key);
            }
            (_, None) => {}
        }
    }

    pub(super) fn peek(&self, key: &str, now: Timestamp) -> Option<BodyHash> {
        self.known.get(key).filter(|known| known.expires_at > now).map(|known| known.body)
    }

    fn forget_expired(&mut self, now: Timestamp) {
        while let Some((_, key)) = self.by_age.pop_front_if(|(expires_at, _)| *expires_at <= now) {
            // A key that was given back and claimed anew stands in the list once more, with its own time.
            if self.known.get(&key).is_some_and(|known| known.expires_at <= now) {
                let answer = self.known.remove(&key).and_then(|known| known.answer);
                self.answer_bytes -= answer.map_or(0, |a| a.len());
            }
        }
    }
}

/// Tickets by the digest of their text.
#[derive(Debug, Default)]
pub(super) struct Tickets {
    waiting: HashMap<[u8; 32], Ticket>,
    by_age: VecDeque<(Timestamp, [u8; 32])>,
}

impl Tickets {
    pub(super) fn put(&mut self, digest: [u8; 32], ticket: Ticket) -> Result<(), TicketError> {
        // All tickets live equally long, so the oldest stand first; the new one's life tells what time it is not after.
        if self.waiting.len() >= TICKETS_MAX {
            self.forget_expired(Timestamp::now());
        }
        if self.waiting.len() >= TICKETS_MAX {
            return Err(TicketError::Full);
        }
        self.by_age.push_back((ticket.expires_at, digest));
        self.waiting.insert(digest, ticket);
        Ok(())
    }

    pub(super) fn take(&mut self, digest: &[u8; 32], now: Timestamp) -> Option<Ticket> {
        self.forget_expired(now);
        self.waiting.remove(digest).filter(|ticket| ticket.expires_at > now)
    }

    fn forget_expired(&mut self, now: Timestamp) {
        while let Some((_, digest)) = self.by_age.pop_front_if(|(expires_at, _)| *expires_at <= now) {
            self.waiting.remove(&digest);
        }
    }
}
