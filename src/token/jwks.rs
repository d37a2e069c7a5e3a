//! The keys at `auth.jwks_url`: fetched now and then, and when a token names a key that isn't known; kept while their source is away.

use super::key::{SetError, VerifyingKey};
use crate::webhook::client::SetupError;
use crate::webhook::fetch::{FetchError, Source};
use crate::webhook::guard::Guard;
use parking_lot::RwLock;
use rand::RngExt;
use reqwest::Url;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

/// After a fetch there is none for this long, whoever asks.
const REST: Duration = Duration::from_secs(5);
/// Who asks waits no longer than this, which is longer than a fetch takes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Without being asked, the keys are fetched about this often.
const INTERVAL: Duration = Duration::from_mins(10);
/// While the source is away it is tried again after a time that doubles up to this.
const AWAY_INTERVAL_MAX: Duration = Duration::from_mins(1);

/// Why there are no new keys.
#[derive(Debug, thiserror::Error)]
pub enum JwksError {
    /// The document could not be had.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It is of no use.
    #[error("{0}")]
    Document(String),
}

impl From<SetError> for JwksError {
    fn from(error: SetError) -> Self {
        Self::Document(error.to_string())
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Jwks {
    source: Source,
    keys: RwLock<Arc<[VerifyingKey]>>,
    phase: watch::Sender<Phase>,
    asked: Notify,
    is_away: AtomicBool,
}

/// What [`Jwks::run`] is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Fetching,
    /// A fetch has just been: no other may begin.
    Resting,
    /// To be asked.
    Idle,
}

impl Jwks {
    /// Knows no keys until it has fetched them.
    pub fn new(url: Url, guard: Guard) -> Result<Self, SetupError> {
        Ok(Self {
            source: Source::new(url, guard)?,
            keys: RwLock::default(),
            phase: watch::Sender::new(Phase::Fetching),
            asked: Notify::new(),
            is_away: AtomicBool::new(false),
        })
    }

    /// Whether they are those at this URL, under this guard.
    pub fn is_of(&self, url: &Url, guard: &Guard) -> bool {
        self.source.is_of(url, guard)
    }

    /// Those that are known now.
    pub fn keys(&self) -> Arc<[VerifyingKey]> {
        self.keys.read().clone()
    }

    /// The last fetch has failed: what isn't known may be good nevertheless.
    pub fn is_away(&self) -> bool {
        self.is_away.load(Ordering::Relaxed)
    }

    /// Fetches the keys. If that fails, those that were known stay.
    pub async fn fetch(&self) -> Result<(), JwksError> {
        let fetched = self.source.fetch().await.map_err(JwksError::from).and_then(|document| {
            let keys = VerifyingKey::of_set(&document)?;
            Ok(Arc::<[VerifyingKey]>::from(keys))
        });
        self.is_away.store(fetched.is_err(), Ordering::Relaxed);
        let new = fetched?;
        let old = std::mem::replace(&mut *self.keys.write(), Arc::clone(&new));
        tell_change(&old, &new);
        Ok(())
    }

    /// What is there now: the keys that can be used, and the names of those that are passed over. It changes nothing here.
    pub async fn survey(&self) -> Result<(Vec<VerifyingKey>, Vec<String>), JwksError> {
        let document = self.source.fetch().await?;
        Ok((VerifyingKey::of_set(&document)?, VerifyingKey::passed_over(&document)?))
    }

    /// Keeps the keys fresh for as long as it is polled; `changed` is called after each fetch that brought some.
    pub async fn run(&self, changed: impl Fn()) {
        let mut failures = 0;
        let mut is_fresh = !self.keys().is_empty();
        loop {
            if !std::mem::take(&mut is_fresh) {
                self.phase.send_replace(Phase::Fetching);
                match self.fetch().await {
                    Ok(()) => {
                        failures = 0;
                        changed();
                    }
                    Err(error) => {
                        failures += 1;
                        tracing::warn!(%error, "the keys at auth.jwks_url can't be fetched: those that are known stay");
                    }
                }
            }
            self.phase.send_replace(Phase::Resting);
            sleep(REST).await;
            self.phase.send_replace(Phase::Idle);
            tokio::select! {
                () = self.asked.notified() => {}
                () = sleep(pause(failures)) => {}
            }
        }
    }

    /// Waits for the fetch that is under way, or for one now, unless one has just been: so many who ask cost one fetch.
    pub async fn look_again(&self) {
        let mut phase = self.phase.subscribe();
        let now = *phase.borrow_and_update();
        if now == Phase::Idle {
            self.asked.notify_one();
        }
        if now != Phase::Resting {
            // While the process ends nobody fetches any more.
            let _ = timeout(PATIENCE, phase.wait_for(|phase| *phase == Phase::Resting)).await;
        }
    }
}

/// Until the next fetch that nobody asked for, beside [`REST`]. Spread, so that many nodes don't come together.
fn pause(failures: u32) -> Duration {
    let pause = match failures {
        0 => INTERVAL,
        n => REST.saturating_mul(1 << n.min(10)).min(AWAY_INTERVAL_MAX),
    };
    pause.mul_f64(rand::rng().random_range(0.8..=1.2))
}

fn tell_change(old: &[VerifyingKey], new: &[VerifyingKey]) {
    let ids = |keys: &[VerifyingKey]| keys.iter().map(|key| key.id).collect::<HashSet<_>>();
    let (old_ids, new_ids) = (ids(old), ids(new));
    let beyond = |keys: &[VerifyingKey], ids: &HashSet<_>| -> Vec<String> {
        let beyond = keys.iter().filter(|key| !ids.contains(&key.id));
        beyond.map(|key| key.name().to_owned()).collect()
    };
    let (added, removed) = (beyond(new, &old_ids), beyond(old, &new_ids));
    if !added.is_empty() || !removed.is_empty() {
        tracing::info!(?added, ?removed, "the keys at auth.jwks_url have changed");
    }
}
