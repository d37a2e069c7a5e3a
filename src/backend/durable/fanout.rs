//! Sends to many recipients: begun in one small transaction that makes the whole intent durable, bitten, finished. One task per store takes
//! them in the order of arrival, and between two bites others write.
//!
//! What was begun is certain to be completed: after a failure or a crash the store itself says what is left over.

use super::queue::closed;
use super::recipients::Spot;
use crate::domain::seat::UserId;
use crate::domain::time::Timestamp;
use crate::ports::{Append, RECIPIENTS_AT_ONCE, StoreError, Stored};
use async_trait::async_trait;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// Recipients of one bite. A send to no more than these is one transaction.
pub const BITE: usize = RECIPIENTS_AT_ONCE;
/// Large sends that may wait; more are refused.
const WAITING: usize = 16;
/// How often the store is asked for what is left over: another node may have died. After a failure it is asked after the first pause, and
/// after each further one twice as late.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// What a store does in one transaction each.
#[async_trait]
pub trait Steps: Send + Sync + 'static {
    /// A send that was begun.
    type Fanout: Send;
    /// What the caller gets. It ends the leases in it when it is dropped, as the caller may be gone.
    type Answer: Send + 'static;

    /// Enrols the recipients and makes the intent durable.
    async fn begin(&self, new: Append) -> Result<Begun<Self::Fanout, Self::Answer>, StoreError>;

    /// Gives the next part its places; true while there are more. Harmless if that part has them already.
    async fn bite(&self, fanout: &mut Self::Fanout) -> Result<bool, StoreError>;

    /// Completes it.
    async fn finish(&self, fanout: Self::Fanout) -> Result<Self::Answer, StoreError>;

    /// What was begun and has nobody who goes on with it, the oldest first. Their callbacks are leased to nobody.
    async fn left_over(&self) -> Result<Vec<Self::Fanout>, StoreError>;
}

/// What doesn't change while a send is written.
pub struct Plan {
    pub message: Uuid,
    pub sent_at: Timestamp,
    pub expires_at: Timestamp,
    pub recipients: Vec<UserId>,
    /// Of the first so many recipients.
    pub push_due: Vec<Timestamp>,
    /// A storage callback is made.
    pub storage: bool,
    /// It is leased to the caller.
    pub lease: bool,
    pub key: Option<String>,
}

impl Plan {
    /// Of a send that the caller waits for.
    pub fn of(new: &Append) -> Self {
        Self {
            message: new.message.id,
            sent_at: new.message.sent_at,
            expires_at: new.expires_at,
            recipients: new.recipients.clone(),
            push_due: new.push_due.clone(),
            storage: new.storage_callback,
            lease: new.lease.storage,
            key: new.key.as_ref().map(|key| key.key.clone()),
        }
    }

    /// The answer, when the recipients are at these places.
    pub fn stored(&self, places: &[Spot]) -> Stored {
        let places = places.iter().map(|spot| spot.1);
        Stored {
            id: self.message,
            sent_at: self.sent_at,
            expires_at: self.expires_at,
            recipients: self.recipients.iter().cloned().zip(places).collect(),
        }
    }
}

/// Of a list that has an item for each recipient, or for the first so many: those of the part that begins with the recipient `first`.
pub fn part<T>(list: &[T], first: usize) -> &[T] {
    let rest = list.get(first..).unwrap_or_default();
    &rest[..rest.len().min(BITE)]
}

/// The result of [`Steps::begin`].
pub enum Begun<F, A> {
    /// To be bitten.
    New(F),
    /// The idempotency key answers it.
    Answered(A),
}

/// How long a recall waits for the send to have reached all, and how often it looks.
const RECALL_WAITS: Duration = Duration::from_secs(5);
const RECALL_LOOKS_EVERY: Duration = Duration::from_millis(10);

/// A recall waits, with a bound, while the message is still being written: what has reached all is taken back whole.
pub struct Wait(Instant);

impl Wait {
    /// From now on.
    pub fn begin() -> Self {
        Self(Instant::now() + RECALL_WAITS)
    }

    /// Waits before the next look, or fails if it has taken too long.
    pub async fn again(&self) -> Result<(), StoreError> {
        if Instant::now() >= self.0 {
            return Err(StoreError::Unavailable("the message is still being written to its recipients".into()));
        }
        sleep(RECALL_LOOKS_EVERY).await;
        Ok(())
    }
}

struct Job<A> {
    new: Append,
    reply: oneshot::Sender<Result<A, StoreError>>,
}

/// The task that takes large sends, and the bounded queue before it. Dropping it ends the task after the step it is at.
pub struct Worker<S: Steps> {
    jobs: mpsc::Sender<Job<S::Answer>>,
    stop: watch::Sender<bool>,
    task: TaskTracker,
}

impl<S: Steps> Worker<S> {
    /// Starts the task, which first goes on with what is left over. Within a runtime.
    pub fn start(steps: Arc<S>) -> Self {
        let (jobs, waiting) = mpsc::channel(WAITING);
        let (stop, stopped) = watch::channel(false);
        let running = Running {
            steps,
            waiting,
            stopped,
            left_over: VecDeque::new(),
            look_at: Instant::now(),
            pause: FIRST_PAUSE,
        };
        let task = TaskTracker::new();
        task.spawn(running.run());
        task.close();
        Self { jobs, stop, task }
    }

    /// Hands a send in and waits until it is whole. It happens although the caller goes away.
    pub async fn append(&self, new: Append) -> Result<S::Answer, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.try_send(Job { new, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StoreError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => closed(),
        })?;
        answer.await.map_err(|_| closed())?
    }

    /// Ends the task after the step it is at: what was begun goes on at the next start.
    pub async fn close(&self) {
        self.stop.send_replace(true);
        self.task.wait().await;
    }
}

struct Running<S: Steps> {
    steps: Arc<S>,
    waiting: mpsc::Receiver<Job<S::Answer>>,
    stopped: watch::Receiver<bool>,
    /// Found, and still to be completed.
    left_over: VecDeque<S::Fanout>,
    /// When to look for more of it.
    look_at: Instant,
    pause: Duration,
}

impl<S: Steps> Running<S> {
    /// New sends and what is left over take turns by chance, so that neither waits for all of the other.
    async fn run(mut self) {
        while !self.is_stopped() {
            tokio::select! {
                // An error: the worker was dropped.
                _ = self.stopped.changed() => return,
                () = sleep_until(self.look_at), if self.left_over.is_empty() => self.look().await,
                () = std::future::ready(()), if !self.left_over.is_empty() => self.take_up().await,
                job = self.waiting.recv() => match job {
                    Some(job) => self.serve(job).await,
                    None => return,
                },
            }
        }
    }

    fn is_stopped(&self) -> bool {
        *self.stopped.borrow() || self.stopped.has_changed().is_err()
    }

    async fn serve(&mut self, Job { new, reply }: Job<S::Answer>) {
        let answer = self.send(new).await;
        if answer.is_err() {
            // Also if it failed to begin: the outcome of that commit may be lost.
            self.look_after_a_pause();
        }
        // Nobody is told if the caller is gone.
        let _ = reply.send(answer);
    }

    async fn send(&mut self, new: Append) -> Result<S::Answer, StoreError> {
        match self.steps.begin(new).await? {
            Begun::New(fanout) => self.complete(fanout).await,
            Begun::Answered(answer) => Ok(answer),
        }
    }

    async fn complete(&mut self, mut fanout: S::Fanout) -> Result<S::Answer, StoreError> {
        while self.steps.bite(&mut fanout).await? {
            if self.is_stopped() {
                return Err(closed());
            }
        }
        self.steps.finish(fanout).await
    }

    async fn look(&mut self) {
        match self.steps.left_over().await {
            Ok(found) => {
                self.left_over = found.into();
                self.look_at = Instant::now() + LOOK_EVERY;
            }
            Err(error) => {
                tracing::debug!(error = %error, "whether a send to many recipients is left over is not known");
                self.look_after_a_pause();
            }
        }
    }

    /// One that fails is found again by the next look, so it holds up no other.
    async fn take_up(&mut self) {
        let Some(fanout) = self.left_over.pop_front() else { return };
        match self.complete(fanout).await {
            Ok(_) => self.pause = FIRST_PAUSE,
            Err(error) => {
                tracing::warn!(error = %error, "a send to many recipients waits to be completed");
                self.look_after_a_pause();
            }
        }
    }

    fn look_after_a_pause(&mut self) {
        self.look_at = self.look_at.min(Instant::now() + self.pause);
        self.pause = LOOK_EVERY.min(self.pause * 2);
    }
}

#[cfg(test)]
mod tests;
