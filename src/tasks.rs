//! Who owns the background tasks, and how they are told to end.

use std::future::Future;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Every task that outlives a request runs here, on the main runtime, and ends by one of the two tokens.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    runtime: Handle,
    /// The process is to end: finish what is begun, begin nothing new.
    pub drain: CancellationToken,
    /// The time for draining is over: stop now.
    pub halt: CancellationToken,
}

impl Tasks {
    /// Tasks run on the runtime that this is called on.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn on_this_runtime() -> Self {
        Self {
            tracker: TaskTracker::new(),
            runtime: Handle::current(),
            drain: CancellationToken::new(),
            halt: CancellationToken::new(),
        }
    }

    /// Runs a bounded piece of work to its end, even while draining.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn_on(work, &self.runtime);
    }

    /// Runs a loop that is to last as long as the process. If it ends in any other way, the process drains: a half-dead relay is worse than a restart.
    pub fn spawn_essential(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let drain = self.drain.clone();
        self.tracker.spawn_on(
            async move {
                let guard = drain.clone().drop_guard();
                work.await;
                if drain.is_cancelled() {
                    guard.disarm();
                } else {
                    tracing::error!(task = name, "a task that should never end has ended: draining");
                }
            },
            &self.runtime,
        );
    }

    /// Waits for all tasks to end; no new ones may be spawned afterwards.
    pub async fn finished(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}
