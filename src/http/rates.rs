//! How often may be sent: per API key and per sender (`limits.sends_per_s`, `limits.sends_per_s_per_from`), counted by this node alone.
//! Told as the IETF draft says (draft-ietf-httpapi-ratelimit-headers-10).

use super::auth::Backend;
use super::problem::Problem;
use crate::config::Limits;
use crate::domain::seat::UserId;
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Quota, RateLimiter};
use parking_lot::RwLock;
use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// A second after its last message a caller is as good as a new one, so what is known of it can be forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(5);

/// Both limits.
pub struct RateLimits {
    per_key: Changing<[u8; 32]>,
    per_sender: Changing<UserId>,
}

/// A limit that may be set anew; then everybody begins anew.
type Changing<K> = RwLock<Option<Arc<Limit<K>>>>;

/// A bucket per caller, of as many messages as may be sent in a second (GCRA).
struct Limit<K: Hash + Eq + Clone> {
    name: &'static str,
    per_second: NonZeroU32,
    buckets: RateLimiter<K, DefaultKeyedStateStore<K>, DefaultClock, StateInformationMiddleware>,
}

/// What an API key has left.
pub(super) struct Left(u32);

impl RateLimits {
    /// By `limits.*`.
    pub fn new(limits: &Limits) -> Self {
        let rates = Self { per_key: RwLock::default(), per_sender: RwLock::default() };
        rates.set(limits);
        rates
    }

    /// From now on by these.
    pub fn set(&self, limits: &Limits) {
        set(&self.per_key, "key", limits.sends_per_s);
        set(&self.per_sender, "from", limits.sends_per_s_per_from);
    }

    /// Forgets those who have not sent for a while, again and again until `stop`.
    pub async fn forget_idle(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(FORGET_EVERY) => {}
            }
            if let Some(limit) = now(&self.per_key) {
                limit.forget_idle();
            }
            if let Some(limit) = now(&self.per_sender) {
                limit.forget_idle();
            }
        }
    }

    /// Counts one message of this API key. `None` if nobody counts.
    pub(super) fn take_for_key(&self, caller: &Backend) -> Result<Option<Left>, Problem> {
        now(&self.per_key).map(|limit| limit.take(&caller.key)).transpose()
    }

    /// Counts one message of this sender.
    pub(super) fn take_for_sender(&self, from: &UserId) -> Result<(), Problem> {
        now(&self.per_sender).map_or(Ok(()), |limit| limit.take(from).map(drop))
    }

    /// Tells a caller what its API key has left.
    pub(super) fn tell(&self, left: Option<Left>, headers: &mut HeaderMap) {
        let (Some(limit), Some(Left(left))) = (now(&self.per_key), left) else { return };
        let policy = format!("\"{}\";q={};w=1", limit.name, limit.per_second);
        let full_again = u8::from(left < limit.per_second.get());
        let standing = format!("\"{}\";r={left};t={full_again}", limit.name);
        for (name, value) in [("ratelimit-policy", policy), ("ratelimit", standing)] {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    }
}

fn now<K: Hash + Eq + Clone>(limit: &Changing<K>) -> Option<Arc<Limit<K>>> {
    limit.read().clone()
}

fn set<K: Hash + Eq + Clone>(limit: &Changing<K>, name: &'static str, rate: Option<NonZeroU32>) {
    if now(limit).map(|limit| limit.per_second) != rate {
        *limit.write() = rate.map(|rate| Arc::new(Limit::new(name, rate)));
    }
}

impl<K: Hash + Eq + Clone> Limit<K> {
    fn new(name: &'static str, per_second: NonZeroU32) -> Self {
        let buckets = RateLimiter::keyed(Quota::per_second(per_second)).with_middleware();
        Self { name, per_second, buckets }
    }

    fn take(&self, caller: &K) -> Result<Left, Problem> {
        match self.buckets.check_key(caller) {
            Ok(state) => Ok(Left(state.remaining_burst_capacity())),
            Err(not_until) => {
                let wait = not_until.wait_time_from(DefaultClock::default().now());
                let detail = format!("{} messages per second are allowed (by `{}`)", self.per_second, self.name);
                let seconds = wait.as_millis().div_ceil(1_000).max(1);
                Err(Problem::rate_limited(detail, wait, format!("\"{}\";r=0;t={seconds}", self.name)))
            }
        }
    }

    fn forget_idle(&self) {
        self.buckets.retain_recent();
        self.buckets.shrink_to_fit();
    }
}
