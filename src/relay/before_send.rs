//! The question before a send (CONTRACT.md 8, `message.before_send`): the operator's own service says whether it may go, and with which payload.
//!
//! It is the only callback that ever sees an online-only message (CONTRACT.md 10.1): it is asked, and nothing of it is kept.

use crate::config::{Callbacks, OnFailure, Outlet};
use crate::domain::message::{Draft, RawJson};
use crate::domain::time::Timestamp;
use crate::traces;
use crate::webhook::client::Webhook;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use uuid::Uuid;

/// What stands around a payload in an answer.
const ANSWER_ENVELOPE: usize = 4 << 10;
/// After so many questions in a row without an answer, sends no longer wait for one.
const FAILURES_TO_OPEN: u32 = 5;
/// Then one question is tried this often.
const PROBE_EVERY: Duration = Duration::from_secs(1);
const REASON_MAX: usize = 256;

/// The operator's service says no, in these words.
#[derive(Debug, PartialEq, Eq)]
pub struct Rejected(pub String);

/// The question, if it is to be put.
#[derive(Debug)]
pub struct BeforeSend {
    /// `None`: nobody is to be asked.
    terms: RwLock<Option<Arc<Terms>>>,
    breaker: Mutex<Breaker>,
    answers: Family<AnswerLabel, Counter>,
    seconds: Histogram,
}

/// Who is asked, and how. A question that is under way ends by the terms that it began by.
#[derive(Debug)]
struct Terms {
    webhook: Webhook,
    places: Semaphore,
    timeout: Duration,
    on_failure: OnFailure,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabel {
    answer: &'static str,
}

#[derive(Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
enum Answer<'a> {
    Allow,
    Reject { reason: Option<Cow<'a, str>> },
    Replace,
}

/// Read apart from [`Answer`], since a tagged value can't keep text as it was written.
#[derive(Deserialize)]
struct Replacement<'a> {
    #[serde(borrow)]
    payload: &'a RawValue,
}

enum Decision {
    Allow,
    Reject(String),
    Replace(RawJson),
}

impl BeforeSend {
    /// Nobody is asked until [`BeforeSend::set`] says who.
    pub fn new(registry: &mut Registry) -> Self {
        let answers = Family::<AnswerLabel, Counter>::default();
        registry.register("before_send_answers", "Questions before a send, by answer", answers.clone());
        let seconds = Histogram::new(exponential_buckets(0.001, 2.0, 12));
        registry.register("before_send_seconds", "Time that sends waited for the answer", seconds.clone());
        Self { terms: RwLock::default(), breaker: Mutex::default(), answers, seconds }
    }

    /// From now on by these `callbacks.before_send.*`.
    pub fn set(&self, webhook: Option<Webhook>, config: &Callbacks) {
        let Outlet { concurrency, timeout, .. } = config.before_send;
        let (places, on_failure) = (Semaphore::new(concurrency), config.before_send_on_failure);
        *self.terms.write() = webhook.map(|webhook| Arc::new(Terms { webhook, places, timeout, on_failure }));
    }

    /// Whether anybody is to be asked.
    pub fn is_asked(&self) -> bool {
        self.terms.read().is_some()
    }

    /// The draft as it may be sent. Another payload in its place may have so many bytes.
    pub async fn ask(&self, mut draft: Draft, payload_bytes: usize) -> Result<Draft, Rejected> {
        let begun = Instant::now();
        let Some(terms) = self.terms.read().clone() else { return Ok(draft) };
        let decision = self.decide(&draft, payload_bytes, &terms).await;
        self.seconds.observe(begun.elapsed().as_secs_f64());
        let (answer, result) = match decision {
            Ok(Decision::Allow) => ("allow", Ok(draft)),
            Ok(Decision::Reject(reason)) => ("reject", Err(Rejected(reason))),
            Ok(Decision::Replace(payload)) => {
                draft.payload = payload;
                ("replace", Ok(draft))
            }
            Err(why) => {
                tracing::warn!(%why, on_failure = ?terms.on_failure, "a question before a send has no answer");
                let unanswered = || Rejected("the service that is asked before a send did not answer".to_owned());
                ("none", if terms.on_failure == OnFailure::Allow { Ok(draft) } else { Err(unanswered()) })
            }
        };
        self.answers.get_or_create_owned(&AnswerLabel { answer }).inc();
        result
    }

    async fn decide(&self, draft: &Draft, payload_bytes: usize, terms: &Terms) -> Result<Decision, String> {
        if !self.breaker.lock().may_ask(Instant::now()) {
            return Err("it has not answered for a while".to_owned());
        }
        let result = self.put_question(draft, payload_bytes, terms).await;
        self.breaker.lock().heed(result.is_ok());
        result
    }

    async fn put_question(&self, draft: &Draft, payload_bytes: usize, terms: &Terms) -> Result<Decision, String> {
        let place = timeout(terms.timeout, terms.places.acquire()).await;
        let _place = place.map_err(|_| "too many questions are under way")?.map_err(|closed| closed.to_string())?;
        let limit = payload_bytes + ANSWER_ENVELOPE;
        let traced = traces::question(draft.trace.as_deref());
        let answer = terms.webhook.ask(&Uuid::now_v7().to_string(), question(draft), limit, &traced).await;
        let answer = answer.map_err(|failure| format!("{}: {}", failure.kind.as_str(), failure.text))?;
        read(&answer.into(), payload_bytes)
    }
}

fn read(answer: &Bytes, payload_bytes: usize) -> Result<Decision, String> {
    // What is wrong is said without the text, which may hold the payload.
    let not_understood = |error: serde_json::Error| format!("the answer is not understood ({:?})", error.classify());
    match serde_json::from_slice(answer).map_err(not_understood)? {
        Answer::Allow => Ok(Decision::Allow),
        Answer::Reject { reason } => {
            let reason = reason.as_deref().unwrap_or("the send was rejected");
            Ok(Decision::Reject(reason.chars().filter(|c| !c.is_control()).take(REASON_MAX).collect()))
        }
        Answer::Replace => {
            let Replacement { payload } = serde_json::from_slice(answer).map_err(not_understood)?;
            let payload = RawJson::from_checked(answer.slice_ref(payload.get().as_bytes()));
            if payload.as_bytes().len() > payload_bytes || !payload.is_shallow() {
                return Err("the payload in the answer is too large or too deep".to_owned());
            }
            Ok(Decision::Replace(payload))
        }
    }
}
/// The send as the sender wrote it, signed like every callback.
fn question(draft: &Draft) -> Bytes {
    let head = format!(r#"{{"type":"message.before_send","timestamp":"{}","data":"#, Timestamp::now());
    [head.as_bytes(), draft.source.as_bytes(), b"}"].concat().into()
}

/// A service that is down must not cost every send its whole timeout.
#[derive(Debug, Default)]
struct Breaker {
    failures: u32,
    probe_at: Option<Instant>,
}

impl Breaker {
    fn may_ask(&mut self, now: Instant) -> bool {
        if self.failures < FAILURES_TO_OPEN {
            return true;
        }
        let is_due = self.probe_at.is_none_or(|at| at <= now);
        if is_due {
            self.probe_at = Some(now + PROBE_EVERY);
        }
        is_due
    }

    fn heed(&mut self, answered: bool) {
        self.failures = if answered { 0 } else { self.failures.saturating_add(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_some_failures_in_a_row_only_probes_go_out_until_one_is_answered() {
        let mut breaker = Breaker::default();
        let now = Instant::now();
        for _ in 0..FAILURES_TO_OPEN {
            assert!(breaker.may_ask(now));
            breaker.heed(false);
        }
        assert_eq!([breaker.may_ask(now), breaker.may_ask(now)], [true, false], "one probe");
        breaker.heed(false);
        assert!(!breaker.may_ask(now + PROBE_EVERY / 2));
        assert!(breaker.may_ask(now + PROBE_EVERY));
        breaker.heed(true);
        assert!(breaker.may_ask(now) && breaker.may_ask(now));
    }
}
