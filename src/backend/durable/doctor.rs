//! What `herenow doctor` says of any durable plane: the words for what should not be there.

use crate::domain::callback::Endpoint;
use crate::domain::finding::{Finding, Level};
use crate::domain::time::Timestamp;
use crate::ports::{Backlog, Leases};
use std::cmp::Ordering;
use std::time::Duration;

/// What its findings are about.
pub const ABOUT: &str = "store";
/// What a node that runs has had this long to do is late.
const LATE: Duration = Duration::from_secs(3_600);
/// A callback that was due for longer is told of.
const OVERDUE: Duration = Duration::from_secs(300);
const BUG: &str = "report it as a bug, with this text";

/// What the store is held against.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Now.
    pub now: Timestamp,
    /// `store.retention_s`
    pub retention: Duration,
    /// Those with a URL.
    pub endpoints: Leases,
    /// A node works with it, so that nothing is late for want of one.
    pub in_use: bool,
}

impl Expected {
    /// In milliseconds: now, what was sent before is beyond the retention, and what should have been done before is late.
    pub fn times(&self) -> [i64; 3] {
        [self.now, self.now.minus(self.retention), self.now.minus(LATE)].map(Timestamp::as_ms)
    }
}

/// A kind of row that should not be there.
#[derive(Debug)]
pub struct Stray {
    level: Level,
    are: &'static str,
    /// Only a node that runs would have removed them.
    pub of_a_running_node: bool,
}

impl Stray {
    const fn new(level: Level, are: &'static str) -> Self {
        Self { level, are, of_a_running_node: false }
    }

    const fn late(are: &'static str) -> Self {
        Self { level: Level::Warning, are, of_a_running_node: true }
    }

    pub fn finding(&self, count: u64) -> Option<Finding> {
        let finding = || Finding { level: self.level, ..Finding::warning(ABOUT, format!("{count} {}", self.are), BUG) };
        (count > 0).then(finding)
    }
}

pub const OF_NO_MESSAGE: Stray = Stray::new(Level::Error, "inbox rows lead to no message: nobody can read them");
pub const OF_NO_USER: Stray = Stray::new(Level::Error, "rows are of users that are not there: nobody can reach them");
pub const NO_STORAGE_CALLBACK: Stray =
    Stray::new(Level::Error, "messages wait for a storage callback that is not there: it will never be made");
pub const NO_PUSH_CALLBACK: Stray =
    Stray::new(Level::Error, "inbox rows wait for a push callback that is not there: it will never be made");
pub const KEPT_FOR_NOTHING: Stray = Stray::new(
    Level::Warning,
    "messages are kept for a storage callback that is not there: they go when `store.retention_s` is over",
);
pub const NOTHING_TO_TELL: Stray =
    Stray::late("callbacks are long due, and their message is gone: there is nothing to tell");
pub const OLD_MESSAGES: Stray = Stray::late("messages are long past their time and were not removed");
pub const OLD_KEYS: Stray = Stray::late("idempotency keys are long past their time and were not removed");
pub const UNFINISHED: Stray = Stray::late("messages were begun long ago and have not reached all of their recipients");

/// What there is to say of the callbacks of an endpoint.
pub fn backlog_findings(endpoint: Endpoint, backlog: &Backlog, expected: &Expected) -> Vec<Finding> {
    let about = format!("callbacks.{}", endpoint.as_str());
    let has_url = match endpoint {
        Endpoint::Storage => expected.endpoints.storage,
        Endpoint::Push => expected.endpoints.push,
    };
    let mut findings = Vec::new();
    if backlog.pending > 0 && !has_url {
        let found = format!("{} callbacks wait, but no worker makes them: `{about}.url` is not set", backlog.pending);
        findings.push(Finding::warning(&about, found, "set it; else they go when `store.retention_s` is over"));
    } else if let Some(due) = backlog.oldest_due.filter(|due| expected.in_use && due.plus(OVERDUE) < expected.now) {
        let found = format!("{} callbacks wait, the oldest has been due since {due}", backlog.pending);
        let advice = "the endpoint is down or too slow: see `herenow_callback_breaker_open` and docs/operations.md";
        findings.push(Finding::warning(&about, found, advice));
    }
    if backlog.dead > 0 {
        let found = format!("{} callbacks were given up", backlog.dead);
        let advice = format!("GET /v1/callbacks?state=dead&endpoint={} says why", endpoint.as_str());
        findings.push(Finding::warning(&about, found, advice));
    }
    findings
}

/// Of the schema, if it isn't the one that this herenow knows.
pub fn other_version(kind: &str, version: usize, known: usize) -> Option<Finding> {
    let found = format!("{kind}, schema version {version}; this herenow knows {known}");
    match version.cmp(&known) {
        Ordering::Equal => None,
        Ordering::Less => Some(Finding::well(ABOUT, format!("{found}, and brings it up to date at the next start"))),
        Ordering::Greater => Some(Finding::error(ABOUT, found, "run the newer herenow, or restore a backup of before")),
    }
}
