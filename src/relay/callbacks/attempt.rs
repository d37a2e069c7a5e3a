//! One attempt: what the rows have to say is read from the store at this moment, made into an event and posted.

use super::event::{Damaged, Event, Word};
use super::metrics::EndpointMetrics;
use super::queue::Row;
use crate::domain::callback::Callback;
use crate::domain::time::Timestamp;
use crate::ports::{CallbackContent, Store, StoreError};
use crate::traces::{self, Traced};
use crate::webhook::client::{Posted, Webhook};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A batch takes no further member beyond this size of its body. Receivers often refuse more.
const BATCH_BYTES: usize = 1024 * 1024;

/// Makes attempts for one endpoint, as it is configured. Another takes its place when that changes.
pub struct Courier {
    /// Where the content is.
    pub store: Arc<dyn Store>,
    /// Where it goes.
    pub webhook: Webhook,
    /// Attempts at a time.
    pub concurrency: usize,
    /// Rows per event.
    pub batch_max: usize,
    /// What is shown.
    pub metrics: EndpointMetrics,
}

impl fmt::Debug for Courier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Courier").field("webhook", &self.webhook).finish_non_exhaustive()
    }
}

/// What became of the rows of an attempt.
#[derive(Debug, Default)]
pub struct Delivery {
    /// Those that the POST was about.
    pub told: Vec<Row>,
    /// How the POST went and how long it took; `None` if there was nothing to tell.
    pub posted: Option<(Posted, Duration)>,
    /// Those that had nothing to say.
    pub not_needed: Vec<Row>,
    /// Those that can't be told.
    pub damaged: Vec<(Row, Damaged)>,
    /// Those that had no room in the body: as if they had not been taken.
    pub untold: Vec<Row>,
}

/// The store could not be asked, so nothing was sent.
#[derive(Debug)]
pub struct Unread {
    /// As they came.
    pub rows: Vec<Row>,
    /// Why.
    pub error: StoreError,
}

impl Courier {
    /// Makes one attempt for these rows.
    pub async fn deliver(&self, mut rows: Vec<Row>) -> Result<Delivery, Unread> {
        // Among those of one attempt, the order of storing.
        rows.sort_by_key(|row| row.callback.id);
        let contents = match self.contents(&rows).await {
            Ok(contents) => contents,
            Err(error) => return Err(Unread { rows, error }),
        };
        let (mut delivery, words) = sort(rows, &contents, self.batches());
        if let Some(event) = self.event(&words) {
            let traced = trace(&delivery.told, words);
            let begun = Instant::now();
            let posted = self.webhook.post(&event.id, event.body, &traced).await;
            delivery.posted = Some((posted, begun.elapsed()));
        }
        Ok(delivery)
    }

    async fn contents(&self, rows: &[Row]) -> Result<Vec<CallbackContent>, StoreError> {
        let callbacks: Vec<Callback> = rows.iter().map(|row| row.callback.clone()).collect();
        let contents = self.store.content(&callbacks, Timestamp::now()).await?;
        // A row without an answer would be forgotten (CONTRACT.md 10.6).
        if contents.len() == rows.len() {
            Ok(contents)
        } else {
            Err(StoreError::Unavailable("it did not answer for every callback".into()))
        }
    }

    /// Events are batches then, of one message too, so that a receiver has one form to read.
    fn batches(&self) -> bool {
        self.batch_max > 1
    }

    fn event(&self, words: &[Word]) -> Option<Event> {
        match words {
            [] => None,
            [word] if !self.batches() || !word.joins_batches() => Some(word.event()),
            words => Some(Event::batch(words)),
        }
    }
}

/// A span for the attempt to tell these words.
fn trace(rows: &[Row], words: Vec<Word>) -> Traced {
    let endpoint = rows.first().map_or("", |row| row.callback.endpoint.as_str());
    let attempts = rows.iter().map(|row| row.callback.attempts).max().unwrap_or_default();
    traces::attempt(endpoint, attempts + 1, words.into_iter().filter_map(|word| word.trace).collect())
}

/// Whether a word fits into a batch that holds `bytes` of others.
fn joins(first: &Word, word: &Word, bytes: usize) -> bool {
    first.joins_batches() && word.joins_batches() && bytes + word.bytes() <= BATCH_BYTES
}

/// Sorts the rows by whether they have something to say, and whether it fits into one event.
fn sort(rows: Vec<Row>, contents: &[CallbackContent], batches: bool) -> (Delivery, Vec<Word>) {
    let mut delivery = Delivery::default();
    let (mut words, mut bytes) = (Vec::<Word>::new(), 0);
    for (row, content) in rows.into_iter().zip(contents) {
        match Word::of(&row.callback, content) {
            Ok(Some(word)) if words.first().is_none_or(|first| batches && joins(first, &word, bytes)) => {
                bytes += word.bytes();
                words.push(word);
                delivery.told.push(row);
            }
            Ok(Some(_)) => delivery.untold.push(row),
            Ok(None) => delivery.not_needed.push(row),
            Err(damaged) => delivery.damaged.push((row, damaged)),
        }
    }
    (delivery, words)
}
