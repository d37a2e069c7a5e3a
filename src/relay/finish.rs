//! Work that is finished even if the caller goes away.

use crate::tasks::Tasks;
use std::pin::Pin;
use std::task::{Context, Poll};
use tracing::Instrument;
use tracing::instrument::Instrumented;

/// Runs on the caller's own thread while the caller waits, and goes on as a task of the process when the caller is dropped: a client
/// that hangs up in the middle of a send changes nothing for the recipients, and the hot path needs no task of its own.
pub struct Finish<F: Future + Send + 'static> {
    work: Option<Pin<Box<Instrumented<F>>>>,
    tasks: Tasks,
}

impl<F: Future + Send + 'static> Finish<F> {
    /// Nothing happens before it is first polled; from then on it runs to its end.
    pub fn new(work: F, tasks: Tasks) -> Self {
        Self { work: Some(Box::pin(work.in_current_span())), tasks }
    }
}

impl<F: Future + Send + 'static> Future for Finish<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Some(work) = &mut self.work else { return Poll::Pending };
        let poll = work.as_mut().poll(cx);
        if poll.is_ready() {
            self.work = None;
        }
        poll
    }
}

impl<F: Future + Send + 'static> Drop for Finish<F> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            self.tasks.spawn(async move {
                work.await;
            });
        }
    }
}
