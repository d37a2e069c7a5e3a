//! This node's lease and those of all others, by Redis' clock.

use crate::domain::seat::NodeId;
use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

/// One run of a node: its name, and a number drawn when it started. What an earlier run of the same name has left is thereby known as such.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Run {
    pub node: NodeId,
    number: u64,
}

impl Run {
    pub fn new(node: NodeId) -> Self {
        Self { node, number: rand::random() }
    }

    pub fn parse(text: &str) -> Option<Self> {
        let (number, node) = text.split_once(' ')?;
        Some(Self { node: NodeId::parse(node).ok()?, number: u64::from_str_radix(number, 16).ok()? })
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x} {}", self.number, self.node)
    }
}

/// All nodes, as Redis said some moments ago.
#[derive(Debug)]
pub(super) struct Roll {
    leases: Vec<(Run, i64)>,
    /// The latest lease of each name.
    ends: HashMap<NodeId, i64>,
    asked_ms: i64,
    asked_at: Instant,
    /// Grows with each time that Redis was asked.
    pub number: u64,
}

impl Roll {
    pub fn unknown() -> Self {
        Self::new(vec![], 0, Instant::now(), 0)
    }

    /// Redis' clock showed `asked_ms` at `asked_at`.
    pub fn new(leases: Vec<(Run, i64)>, asked_ms: i64, asked_at: Instant, number: u64) -> Self {
        let mut ends = HashMap::with_capacity(leases.len());
        for (run, end) in &leases {
            let latest = ends.entry(run.node.clone()).or_insert(*end);
            *latest = (*latest).max(*end);
        }
        Self { leases, ends, asked_ms, asked_at, number }
    }

    /// What Redis' clock shows now, as near as can be told from here.
    pub fn now_ms(&self) -> i64 {
        self.asked_ms.saturating_add(i64::try_from(self.asked_at.elapsed().as_millis()).unwrap_or(i64::MAX))
    }

    pub fn is_live(&self, node: &NodeId) -> bool {
        self.ends.get(node).is_some_and(|end| *end > self.now_ms())
    }

    pub fn is_running(&self, run: &Run) -> bool {
        let now = self.now_ms();
        self.leases.iter().any(|(known, end)| known == run && *end > now)
    }

    /// Those whose lease has run out.
    pub fn lapsed(&self) -> Vec<Run> {
        let now = self.now_ms();
        self.leases.iter().filter(|(_, end)| *end <= now).map(|(run, _)| run.clone()).collect()
    }

    /// All runs of this name, gone or not.
    pub fn runs_of(&self, node: &NodeId) -> impl Iterator<Item = &Run> {
        self.leases.iter().map(|(run, _)| run).filter(move |run| run.node == *node)
    }
}

/// Whether this node may take what is offered to its seats.
#[derive(Debug, Default)]
pub(super) struct Standing {
    lease: Option<Lease>,
    /// All streams have been seated since the lease began.
    is_seated: bool,
    /// How often a lease began.
    pub begun: u64,
    /// Until then others may not have said again whom they hold.
    whole_from: Option<Instant>,
}

#[derive(Debug)]
struct Lease {
    /// By Redis' clock.
    since_ms: i64,
    end_ms: i64,
    /// By this machine's.
    end: Instant,
}

impl Standing {
    /// Redis has given a lease: a new one, if the one before had run out.
    pub fn renew(&mut self, length: Duration, asked: Instant, now_ms: i64, is_new: bool) {
        let length_ms = i64::try_from(length.as_millis()).unwrap_or(i64::MAX);
        // This node has been away from Redis, or Redis away from all. Then others' leases may have run out too, even if this one has just not; who
        // takes longer than a lease to be back is dead.
        if self.lease.as_ref().is_some_and(|lease| is_new || lease.end_ms - now_ms < length_ms / 3) {
            self.doubt_till(asked + length);
        }
        let since_ms = match &self.lease {
            Some(lease) if !is_new => lease.since_ms,
            _ => {
                self.is_seated = false;
                self.begun += 1;
                now_ms
            }
        };
        self.lease = Some(Lease { since_ms, end_ms: now_ms.saturating_add(length_ms), end: asked + length });
    }

    /// All streams are seated, if no other lease has begun since `begun`.
    pub fn seated(&mut self, begun: u64) {
        self.is_seated |= self.begun == begun;
    }

    pub fn is_seated(&self) -> bool {
        self.is_seated
    }

    /// Redis may have forgotten what others will have said again by then.
    pub fn doubt_till(&mut self, till: Instant) {
        self.whole_from = self.whole_from.max(Some(till));
    }

    /// Whether a user of whom no seat is found is offline, for all that is known.
    pub fn knows_all(&self, now: Instant) -> bool {
        self.whole_from.is_none_or(|from| from <= now)
    }

    pub fn is_good(&self, now: Instant) -> bool {
        self.is_seated && self.lease.as_ref().is_some_and(|lease| lease.end > now)
    }

    /// Whether what was published at this time, and is read now, is still for this node: it may have been paused in between, and its seats
    /// given up by the others.
    pub fn covers(&self, published_ms: i64, now: Instant) -> bool {
        self.is_seated && self.will_cover(published_ms, now)
    }

    /// The same, once all streams are seated.
    pub fn will_cover(&self, published_ms: i64, now: Instant) -> bool {
        let within = |lease: &Lease| lease.end > now && (lease.since_ms..lease.end_ms).contains(&published_ms);
        self.lease.as_ref().is_some_and(within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn node(name: &str) -> NodeId {
        NodeId::parse(name).unwrap()
    }

    #[test]
    fn a_run_is_read_as_it_is_written() {
        let run = Run::new(node("a b"));
        assert_eq!(Run::parse(&run.to_string()), Some(run));
        assert_eq!(Run::parse("xyz a"), None);
    }

    #[test]
    fn a_name_lives_as_long_as_its_latest_run() {
        let (old, new, dead) = (Run::new(node("a")), Run::new(node("a")), Run::new(node("b")));
        let leases = vec![(old.clone(), 900), (new.clone(), 60_000), (dead.clone(), 999)];
        let roll = Roll::new(leases, 1_000, Instant::now(), 1);
        assert!(roll.is_live(&node("a")) && !roll.is_live(&node("b")) && !roll.is_live(&node("c")));
        assert!(roll.is_running(&new) && !roll.is_running(&old));
        assert_eq!(roll.lapsed(), [old, dead]);
    }

    #[test]
    fn nothing_is_taken_before_the_streams_are_seated_nor_after_the_lease() {
        let now = Instant::now();
        let mut standing = Standing::default();
        assert!(!standing.is_good(now));
        standing.renew(LEASE, now, 50_000, true);
        assert!(!standing.covers(50_001, now), "not seated");
        standing.seated(standing.begun);
        assert!(standing.covers(50_001, now));
        assert!(!standing.covers(49_999, now), "published before it began");
        assert!(!standing.covers(60_000, now), "published after Redis held it for ended");
        assert!(!standing.covers(50_001, now + LEASE), "read too late");
    }

    #[test]
    fn while_others_may_come_back_nobody_is_known_to_be_offline() {
        let now = Instant::now();
        let mut standing = Standing::default();
        standing.renew(LEASE, now, 50_000, true);
        standing.renew(LEASE, now, 53_000, false);
        assert!(standing.knows_all(now), "it has just come, and renewed in time");
        standing.renew(LEASE, now, 62_000, false);
        assert!(!standing.knows_all(now) && standing.knows_all(now + LEASE), "those of others may have run out");
        standing.renew(LEASE, now + LEASE, 65_000, false);
        assert!(standing.knows_all(now + LEASE));
        standing.renew(LEASE, now + LEASE, 66_000, true);
        assert!(!standing.knows_all(now + LEASE) && standing.knows_all(now + 2 * LEASE), "forgotten, or run out");
    }

    #[test]
    fn a_lease_that_had_run_out_wants_all_streams_seated_again() {
        let now = Instant::now();
        let mut standing = Standing::default();
        standing.renew(LEASE, now, 50_000, true);
        let begun = standing.begun;
        standing.renew(LEASE, now, 51_000, false);
        standing.seated(begun);
        assert!(standing.covers(50_500, now), "renewed in time");
        standing.renew(LEASE, now, 99_000, true);
        standing.seated(begun);
        assert!(!standing.is_good(now), "what was seated before does not count");
        standing.seated(standing.begun);
        assert!(standing.covers(99_001, now) && !standing.covers(60_500, now));
    }
}
