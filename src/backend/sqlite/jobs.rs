//! What the writer's queue holds.

use super::writer::Writing;
use crate::backend::durable::queue::{self, Size, closed};
use crate::ports::StoreError;
use tokio::sync::oneshot;

/// The writer's queue.
pub(super) type Queue = queue::Queue<Box<dyn Job>>;
/// Jobs that share a commit.
pub(super) type Batch = queue::Batch<Box<dyn Job>>;

/// Has the writer do something, and waits until it is durable.
pub(super) async fn write<T, F>(queue: &Queue, size: Size, run: F) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: FnMut(&mut Writing<'_>) -> rusqlite::Result<T> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    queue.push(Box::new(Task::new(run, reply)), size)?;
    answer.await.map_err(|_| closed())?
}

/// The same for what takes load off the store, or is a further part of what it has taken on: it isn't refused, and is bounded by who hands
/// it in.
pub(super) async fn relieve<T, F>(queue: &Queue, size: Size, run: F) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: FnMut(&mut Writing<'_>) -> rusqlite::Result<T> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    queue.push_relief(Box::new(Task::new(run, reply)), size)?;
    answer.await.map_err(|_| closed())?
}

/// Something to be written. It may be run more than once, each time in a transaction in which it hasn't run yet.
pub(super) trait Job: Send {
    fn run(&mut self, db: &mut Writing<'_>) -> rusqlite::Result<()>;

    /// Says that its last run is durable, or that nothing of it is.
    fn answer(self: Box<Self>, failure: Option<StoreError>);
}

/// A [`Job`] made of a function.
pub(super) struct Task<T, F> {
    run: F,
    result: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Task<T, F>
where
    T: Send,
    F: FnMut(&mut Writing<'_>) -> rusqlite::Result<T> + Send,
{
    pub fn new(run: F, reply: oneshot::Sender<Result<T, StoreError>>) -> Self {
        Self { run, result: None, reply }
    }
}

impl<T, F> Job for Task<T, F>
where
    T: Send,
    F: FnMut(&mut Writing<'_>) -> rusqlite::Result<T> + Send,
{
    fn run(&mut self, db: &mut Writing<'_>) -> rusqlite::Result<()> {
        // The result of an earlier run may hold leases.
        self.result = None;
        self.result = Some((self.run)(db)?);
        Ok(())
    }

    fn answer(self: Box<Self>, failure: Option<StoreError>) {
        let Self { run, result, reply } = *self;
        // What the function held, such as leases that it ends, is given back before the caller goes on.
        drop(run);
        let answer = match (failure, result) {
            (None, Some(result)) => Ok(result),
            (Some(failure), _) => Err(failure),
            (None, None) => Err(closed()),
        };
        // Nobody may wait any more; then the result gives back what it holds by being dropped.
        let _ = reply.send(answer);
    }
}
