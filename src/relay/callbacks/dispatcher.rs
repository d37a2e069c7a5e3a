//! The dispatcher of one endpoint: the one task that decides what is attempted when, and what becomes of it.
//!
//! It keeps CONTRACT.md 10.6: a row leaves its memory only into a durable settlement. What it forgets by dying is still in the store, and
//! comes back with the next holder. It waits for nothing but its own events, so it is never held up by another endpoint.

use super::attempt::{Courier, Delivery, Unread};
use super::ledger::{Decided, Ledger, settlements};
use super::metrics::EndpointMetrics;
use super::queue::{Queue, Row};
use crate::domain::callback::{Callback, Decision, Endpoint, LastError};
use crate::domain::retry::{Health, Pass, Schedule, Sign};
use crate::domain::time::Timestamp;
use crate::ports::{Backlog, Store, StoreError};
use crate::tasks::Tasks;
use crate::webhook::client::{Failure, FailureKind, Posted};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// So many rows are read at a time.
const PAGE: usize = 500;
/// No read is worth its while for fewer.
const LEAST_PAGE: usize = 50;

/// What a dispatcher is made of.
pub struct Parts {
    /// Whose.
    pub endpoint: Endpoint,
    /// Where the rows are.
    pub store: Arc<dyn Store>,
    /// Makes the attempts; `None` while the endpoint isn't configured.
    pub couriers: watch::Receiver<Option<Arc<Courier>>>,
    /// When failed events are tried again.
    pub schedule: Schedule,
    /// The rooms for rows in memory.
    pub rooms: Arc<Semaphore>,
    /// Rows handed over after their commit.
    pub inbox: UnboundedReceiver<Row>,
    /// Called when the store has to be read.
    pub woken: Arc<Notify>,
    /// When to end.
    pub tasks: Tasks,
}

/// See the head of the file.
pub struct Dispatcher {
    parts: Parts,
    courier: Option<Arc<Courier>>,
    queue: Queue,
    health: Health,
    ledger: Ledger,
    work: JoinSet<Done>,
    draining: bool,
}

/// A piece of work that has ended.
#[derive(Debug)]
enum Done {
    Attempt(Arc<Courier>, Pass, Result<Delivery, Unread>),
    Settle(Vec<Decided>, Result<(), StoreError>),
    Read(OwnedSemaphorePermit, Result<Vec<Callback>, StoreError>),
    Count(Arc<Courier>, Result<Backlog, StoreError>),
}

impl Dispatcher {
    /// Does nothing until it is run.
    pub fn new(parts: Parts) -> Self {
        Self {
            courier: None,
            queue: Queue::default(),
            health: Health::new(1),
            ledger: Ledger::new(parts.endpoint, Instant::now()),
            work: JoinSet::new(),
            draining: false,
            parts,
        }
    }

    /// Runs until the process drains, and then until what is in flight is settled.
    pub async fn run(mut self) {
        while !self.is_finished() {
            let (now, wall) = (Instant::now(), Timestamp::now());
            self.begin(now, wall);
            let next = self.next_time(now, wall);
            tokio::select! {
                biased;
                () = self.parts.tasks.halt.cancelled() => return,
                () = self.parts.tasks.drain.cancelled(), if !self.draining => self.drain(),
                Ok(()) = self.parts.couriers.changed() => self.heed_courier(),
                // Bounded by the rooms, so it can't keep the rest waiting.
                Some(row) = self.parts.inbox.recv() => self.queue.push(row),
                Some(done) = self.work.join_next() => match done {
                    Ok(done) => self.heed(done),
                    // A lost row would wait for the next start: let the process drain and start anew.
                    Err(died) if died.is_panic() => std::panic::resume_unwind(died.into_panic()),
                    Err(_) => return,
                },
                () = self.parts.woken.notified() => self.ledger.wake(),
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    fn is_finished(&self) -> bool {
        let holds_none = self.queue.next_turn().is_none() && self.parts.inbox.is_empty();
        self.draining && self.work.is_empty() && holds_none && self.ledger.is_settled()
    }

    /// Claims nothing new from now on. What waits in memory is given back to the store, so that another node can have it.
    fn drain(&mut self) {
        self.draining = true;
        self.parts.inbox.close();
    }

    fn heed_courier(&mut self) {
        self.courier.clone_from(&self.parts.couriers.borrow_and_update());
        if let Some(courier) = &self.courier {
            self.health.set_concurrency(courier.concurrency);
            self.ledger.wake();
        }
    }

    /// Begins all that can be begun now. Without an endpoint nothing is: what this process holds for it goes back to the store.
    fn begin(&mut self, now: Instant, wall: Timestamp) {
        self.ledger.tick(now);
        match self.courier.clone() {
            Some(courier) if !self.draining => {
                self.begin_reading(now);
                self.begin_attempts(&courier, now, wall);
                self.begin_counting(&courier);
            }
            Some(_) | None => self.release(),
        }
        self.begin_settling(now);
        if let Some(courier) = &self.courier {
            courier.metrics.in_flight.set(i64::try_from(self.health.in_flight()).unwrap_or(i64::MAX));
            courier.metrics.breaker_open.set(i64::from(self.health.is_open()));
        }
    }

    fn begin_attempts(&mut self, courier: &Arc<Courier>, now: Instant, wall: Timestamp) {
        while !self.ledger.is_away(now) && self.queue.next_turn().is_some_and(|turn| turn <= wall) {
            let Some(pass) = self.health.begin(now.into_std()) else { return };
            let rows = if self.health.is_open() {
                self.queue.take_probe(wall).into_iter().collect()
            } else {
                self.queue.take(wall, courier.batch_max)
            };
            let courier = Arc::clone(courier);
            self.work.spawn(async move {
                let delivered = courier.deliver(rows).await;
                Done::Attempt(courier, pass, delivered)
            });
        }
    }

    fn begin_settling(&mut self, now: Instant) {
        if let Some(decided) = self.ledger.begin_settling(now) {
            let store = Arc::clone(&self.parts.store);
            self.work.spawn(async move {
                let result = store.settle(settlements(&decided), Timestamp::now()).await;
                Done::Settle(decided, result)
            });
        }
    }

    fn begin_reading(&mut self, now: Instant) {
        let page = self.parts.rooms.available_permits().min(PAGE);
        if page < LEAST_PAGE || !self.ledger.may_read(now) {
            return;
        }
        // Only hand-overs compete for rooms, and they leave some: if one was faster, the next turn comes soon.
        let Ok(room) = Arc::clone(&self.parts.rooms).try_acquire_many_owned(u32::try_from(page).unwrap_or(u32::MAX))
        else {
            return;
        };
        self.ledger.begin_reading();
        let (store, endpoint) = (Arc::clone(&self.parts.store), self.parts.endpoint);
        self.work.spawn(async move {
            let rows = store.lease_due(endpoint, Timestamp::now(), page).await;
            Done::Read(room, rows)
        });
    }

    fn begin_counting(&mut self, courier: &Arc<Courier>) {
        if self.ledger.may_count() {
            self.ledger.begin_counting();
            let (courier, endpoint) = (Arc::clone(courier), self.parts.endpoint);
            self.work.spawn(async move {
                let counted = courier.store.backlog(endpoint, Timestamp::now()).await;
                Done::Count(courier, counted)
            });
        }
    }

    fn heed(&mut self, done: Done) {
        let now = Instant::now();
        match done {
            Done::Attempt(courier, pass, Ok(delivery)) => self.heed_delivery(&courier.metrics, pass, delivery, now),
            Done::Attempt(_, pass, Err(Unread { rows, error })) => {
                self.health.cancel(pass);
                self.ledger.absent(&error, now);
                self.requeue(rows);
            }
            Done::Settle(decided, result) => self.ledger.settled(decided, result, now),
            Done::Read(room, rows) => self.heed_rows(room, rows, now),
            Done::Count(courier, counted) => {
                self.ledger.counted();
                if let Ok(backlog) = counted {
                    courier.metrics.show_backlog(&backlog, Timestamp::now());
                }
            }
        }
    }

    fn heed_rows(&mut self, mut room: OwnedSemaphorePermit, rows: Result<Vec<Callback>, StoreError>, now: Instant) {
        let asked = room.num_permits();
        let came = rows.map(|rows| {
            let came = rows.len();
            self.requeue(rows.into_iter().map(|callback| Row::new(callback, room.split(1))));
            came
        });
        self.ledger.read(came, asked, now);
    }

    fn heed_delivery(&mut self, metrics: &EndpointMetrics, pass: Pass, delivery: Delivery, now: Instant) {
        for row in delivery.not_needed {
            let attempts = row.callback.attempts;
            self.ledger.decide(row, attempts, Decision::NotNeeded);
        }
        for (row, damaged) in delivery.damaged {
            tracing::error!(callback.id = %row.callback.id, %damaged, "a callback can't be made: it is dead");
            let (attempts, detail) = (row.callback.attempts, damaged.to_string());
            self.ledger.decide(row, attempts, Decision::Dead(LastError { status: None, detail }));
        }
        self.requeue(delivery.untold);
        let Some((posted, took)) = delivery.posted else { return self.health.cancel(pass) };
        metrics.seconds.observe(took.as_secs_f64());
        match posted {
            Posted::Success => {
                metrics.sent.inc();
                self.heed_sign(pass, Sign::Alive, now, "it takes events again");
                self.decide(delivery.told, |_| Decision::Sent);
            }
            Posted::Failed(failure) => {
                let rejected = sign_of(&failure) == Sign::Alive;
                if rejected { &metrics.rejected } else { &metrics.failed }.inc();
                self.heed_failure(pass, &failure, delivery.told, now);
            }
        }
    }

    fn heed_failure(&mut self, pass: Pass, failure: &Failure, rows: Vec<Row>, now: Instant) {
        let sign = sign_of(failure);
        let counts = self.heed_sign(pass, sign, now, failure.kind.as_str());
        if let Some(wait) = failure.retry_after {
            self.health.pause((now + wait).into_std());
        }
        let wall = Timestamp::now();
        if rows.len() > 1 && (sign == Sign::Alive || failure.abort) {
            // One message of the batch is at fault: each is told apart from the others.
            return self.requeue(rows.into_iter().map(Row::alone));
        }
        if failure.abort {
            return self.decide(rows, |_| Decision::Dead(last_error(failure)));
        }
        if !counts {
            // Behind the others, so that one event that the endpoint can't stand is not its probe for ever.
            return self.requeue(rows.into_iter().map(|row| row.alone().behind(wall)));
        }
        let (schedule, luck) = (self.parts.schedule.clone(), rand::random());
        self.decide(rows, |attempts| match schedule.wait(attempts, luck) {
            Some(wait) => Decision::Retry(wall.plus(wait), last_error(failure)),
            None => Decision::Dead(last_error(failure)),
        });
    }

    /// Decides on rows after an attempt that counts, given how many that makes.
    fn decide(&mut self, rows: Vec<Row>, decision: impl Fn(u32) -> Decision) {
        for row in rows {
            let attempts = row.callback.attempts.saturating_add(1);
            self.ledger.decide(row, attempts, decision(attempts));
        }
    }

    fn requeue(&mut self, rows: impl IntoIterator<Item = Row>) {
        for row in rows {
            self.queue.push(row);
        }
    }

    /// Returns whether the attempt counts. A change of health is logged, single failures are not.
    fn heed_sign(&mut self, pass: Pass, sign: Sign, now: Instant, why: &'static str) -> bool {
        let was_open = self.health.is_open();
        let counts = self.health.end(pass, sign, now.into_std());
        let endpoint = self.parts.endpoint.as_str();
        match (was_open, self.health.is_open()) {
            (false, true) => tracing::warn!(endpoint, why, "a callback endpoint is down: it is probed from now on"),
            (true, false) => tracing::info!(endpoint, "a callback endpoint is back"),
            _ => {}
        }
        counts
    }

    /// Gives what waits in memory back to the store, as it was.
    fn release(&mut self) {
        while let Ok(row) = self.parts.inbox.try_recv() {
            self.queue.push(row);
        }
        for row in self.queue.take_all() {
            let (attempts, due_at) = (row.callback.attempts, row.callback.due_at);
            self.ledger.decide(row, attempts, Decision::Release(due_at, None));
        }
    }

    /// When to look again, after all that could be begun at `now` was begun.
    fn next_time(&self, now: Instant, wall: Timestamp) -> Instant {
        // What is due already waits for an attempt to end, or for the endpoint's health.
        let turn = self.queue.next_turn().map(|turn| match turn.since(wall) {
            Duration::ZERO => self.health.waits_until(now.into_std()).map(Instant::from_std),
            wait => Some(now + wait),
        });
        let next = self.ledger.next_time(now);
        turn.flatten().map_or(next, |turn| turn.min(next))
    }
}

fn sign_of(failure: &Failure) -> Sign {
    match (failure.kind, failure.status) {
        (FailureKind::Status, Some(410)) => Sign::Gone,
        (FailureKind::Status, Some(408 | 429 | 500..)) => Sign::Down,
        (FailureKind::Status, _) => Sign::Alive,
        _ => Sign::Down,
    }
}

fn last_error(failure: &Failure) -> LastError {
    let kind = failure.kind.as_str();
    let detail = if failure.text.is_empty() { kind.to_owned() } else { format!("{kind}: {}", failure.text) };
    LastError { status: failure.status, detail }
}
