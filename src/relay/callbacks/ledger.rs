//! When a dispatcher turns to the store: what is to be written down, whether there may be something to read, and when to leave it alone.

use super::queue::Row;
use crate::domain::callback::{Decision, Endpoint, Settlement};
use crate::domain::time::Timestamp;
use crate::ports::StoreError;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

/// The store is read this often even if nothing calls for it.
const READ_EVERY: Duration = Duration::from_secs(1);
/// What is pending is counted this often, for the metrics.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// So many settlements at most are written at a time.
const SETTLED_AT_ONCE: usize = 500;
/// A store that is away is left alone for this long, then for twice as long, up to [`LONGEST_LEAVE`].
const SHORTEST_LEAVE: Duration = Duration::from_millis(100);
const LONGEST_LEAVE: Duration = Duration::from_secs(5);

/// A decision that is not yet durable, and the room of its row.
#[derive(Debug)]
pub struct Decided {
    settlement: Settlement,
    _room: Option<OwnedSemaphorePermit>,
}

/// What is done every so often, and at other times if called for, but once at a time.
#[derive(Debug)]
struct Chore {
    every: Duration,
    next: Instant,
    due: bool,
    running: bool,
}

impl Chore {
    /// Due at once.
    fn new(every: Duration, now: Instant) -> Self {
        Self { every, next: now + every, due: true, running: false }
    }

    fn tick(&mut self, now: Instant) {
        if self.next <= now {
            self.due = true;
            self.next = now + self.every;
        }
    }

    fn may_begin(&self) -> bool {
        self.due && !self.running
    }

    fn begin(&mut self) {
        (self.due, self.running) = (false, true);
    }
}

/// The dealings of one dispatcher with the store. There is one writing, one reading and one counting at a time.
#[derive(Debug)]
pub struct Ledger {
    endpoint: Endpoint,
    /// Bounded by the rooms that rows hold.
    undurable: Vec<Decided>,
    settling: bool,
    reading: Chore,
    counting: Chore,
    failures: u32,
    /// The store is left alone until then.
    leave_until: Instant,
}

impl Ledger {
    /// To be read at once: rows may have waited since before the start.
    pub fn new(endpoint: Endpoint, now: Instant) -> Self {
        Self {
            endpoint,
            undurable: Vec::new(),
            settling: false,
            reading: Chore::new(READ_EVERY, now),
            counting: Chore::new(COUNT_EVERY, now),
            failures: 0,
            leave_until: now,
        }
    }

    /// Notes a decision, to be written with the next others.
    pub fn decide(&mut self, row: Row, attempts: u32, decision: Decision) {
        let settlement = Settlement { callback: row.callback, attempts, decision };
        self.undurable.push(Decided { settlement, _room: row.room });
    }

    /// There may be due rows in the store.
    pub fn wake(&mut self) {
        self.reading.due = true;
    }

    /// Whether the store is left alone now.
    pub fn is_away(&self, now: Instant) -> bool {
        now < self.leave_until
    }

    /// Whether everything decided is durable.
    pub fn is_settled(&self) -> bool {
        self.undurable.is_empty() && !self.settling
    }

    /// Takes the decisions that are to be written now, if any; answer with [`Ledger::settled`].
    pub fn begin_settling(&mut self, now: Instant) -> Option<Vec<Decided>> {
        if self.settling || self.undurable.is_empty() || self.is_away(now) {
            return None;
        }
        self.settling = true;
        let rest = self.undurable.split_off(self.undurable.len().min(SETTLED_AT_ONCE));
        Some(std::mem::replace(&mut self.undurable, rest))
    }

    /// Heeds the result of writing: what failed is written again later.
    pub fn settled(&mut self, mut decided: Vec<Decided>, result: Result<(), StoreError>, now: Instant) {
        self.settling = false;
        match result {
            Ok(()) => {
                self.present();
                let wall = Timestamp::now();
                let retries = decided.iter().filter_map(|d| match d.settlement.decision {
                    Decision::Retry(due, _) => Some(due),
                    Decision::Sent | Decision::NotNeeded | Decision::Dead(_) | Decision::Release(..) => None,
                });
                // The ends of short waits are not left to the next turn.
                self.reading.next = retries.map(|due| now + due.since(wall)).fold(self.reading.next, Instant::min);
            }
            Err(error) => {
                decided.append(&mut self.undurable);
                self.undurable = decided;
                self.absent(&error, now);
            }
        }
    }

    /// Heeds the clock.
    pub fn tick(&mut self, now: Instant) {
        self.reading.tick(now);
        self.counting.tick(now);
    }

    /// Whether due rows are to be read now.
    pub fn may_read(&self, now: Instant) -> bool {
        // After a failure what was decided is written first: its leases may have ended, and it would come a second time.
        let settled = self.failures == 0 || self.is_settled();
        settled && !self.is_away(now) && self.reading.may_begin()
    }

    /// Notes that due rows are being read; answer with [`Ledger::read`].
    pub fn begin_reading(&mut self) {
        self.reading.begin();
    }

    /// Heeds the result of reading: how many rows came, of how many that were asked for.
    pub fn read(&mut self, came: Result<usize, StoreError>, asked: usize, now: Instant) {
        self.reading.running = false;
        match came {
            Ok(came) => {
                self.present();
                self.reading.due |= came >= asked;
            }
            Err(error) => {
                self.reading.due = true;
                self.absent(&error, now);
            }
        }
    }

    /// Whether what is pending is to be counted now.
    pub fn may_count(&self) -> bool {
        self.counting.may_begin()
    }

    /// Notes that what is pending is being counted; answer with [`Ledger::counted`].
    pub fn begin_counting(&mut self) {
        self.counting.begin();
    }

    /// The counting has ended.
    pub fn counted(&mut self) {
        self.counting.running = false;
    }

    /// The store could not be asked: it is left alone for a while.
    pub fn absent(&mut self, error: &StoreError, now: Instant) {
        if self.failures == 0 {
            tracing::warn!(endpoint = self.endpoint.as_str(), %error, "callbacks wait for the store");
        }
        self.leave_until = now + (SHORTEST_LEAVE * (1 << self.failures.min(6))).min(LONGEST_LEAVE);
        self.failures = self.failures.saturating_add(1);
    }

    /// When the clock is to be heeded next; after `now`, if it was heeded at `now`.
    pub fn next_time(&self, now: Instant) -> Instant {
        let next = self.reading.next.min(self.counting.next);
        if self.is_away(now) { next.min(self.leave_until) } else { next }
    }

    fn present(&mut self) {
        if self.failures > 0 {
            tracing::info!(endpoint = self.endpoint.as_str(), "the store is back, callbacks go on");
        }
        self.failures = 0;
    }
}

/// What is written.
pub fn settlements(decided: &[Decided]) -> Vec<Settlement> {
    decided.iter().map(|d| d.settlement.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::callback::Callback;
    use uuid::Uuid;

    fn ledger(now: Instant, decisions: u128) -> Ledger {
        let mut ledger = Ledger::new(Endpoint::Storage, now);
        for n in 0..decisions {
            let (id, due_at) = (Uuid::from_u128(n), Timestamp::default());
            let callback = Callback {
                id,
                endpoint: Endpoint::Storage,
                message: id,
                recalled: false,
                recipient: None,
                attempts: 0,
                due_at,
            };
            ledger.decide(Row::new(callback, None), 1, Decision::Sent);
        }
        ledger
    }

    fn away() -> StoreError {
        StoreError::Unavailable("away".into())
    }

    #[test]
    fn what_was_not_written_is_written_again_in_order_and_before_anything_is_read() {
        let mut now = Instant::now();
        let mut ledger = ledger(now, 700);
        let first = ledger.begin_settling(now).unwrap();
        assert_eq!(first.len(), SETTLED_AT_ONCE);
        assert!(ledger.begin_settling(now).is_none(), "one writing at a time");
        ledger.settled(first, Err(away()), now);
        assert!(ledger.is_away(now) && ledger.begin_settling(now).is_none());
        now = ledger.next_time(now);
        assert!(!ledger.is_away(now) && !ledger.may_read(now));
        let again = ledger.begin_settling(now).unwrap();
        assert_eq!(settlements(&again)[0].callback.id, Uuid::from_u128(0));
        ledger.settled(again, Ok(()), now);
        assert!(ledger.may_read(now));
        let rest = ledger.begin_settling(now).unwrap();
        ledger.settled(rest, Ok(()), now);
        assert!(ledger.is_settled());
    }

    #[test]
    fn a_store_that_stays_away_is_asked_ever_more_seldom() {
        let mut now = Instant::now();
        let mut ledger = ledger(now, 0);
        let mut waits = Vec::new();
        for _ in 0..100 {
            ledger.absent(&away(), now);
            waits.push((ledger.leave_until - now).as_millis());
            now = ledger.leave_until;
        }
        assert_eq!(waits[..8], [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        assert!(waits[8..].iter().all(|&wait| wait == 5_000));
    }

    #[test]
    fn a_full_page_a_call_and_the_clock_each_bring_a_reading() {
        let mut now = Instant::now();
        let mut ledger = ledger(now, 0);
        assert!(ledger.may_read(now), "at the start");
        ledger.begin_reading();
        assert!(!ledger.may_read(now), "one reading at a time");
        ledger.read(Ok(500), 500, now);
        assert!(ledger.may_read(now));
        ledger.begin_reading();
        ledger.read(Ok(499), 500, now);
        assert!(!ledger.may_read(now));
        ledger.wake();
        assert!(ledger.may_read(now));
        ledger.begin_reading();
        ledger.wake();
        ledger.read(Ok(0), 500, now);
        assert!(ledger.may_read(now), "a call during a reading is not lost");
        ledger.begin_reading();
        ledger.read(Ok(0), 500, now);
        now += READ_EVERY;
        ledger.tick(now);
        assert!(ledger.may_read(now));
        assert!(ledger.next_time(now) > now);
    }
}
