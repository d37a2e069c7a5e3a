//! The relay's own loops, and how it ends.

use super::handle::Relay;
use super::hub::WATCH_INTERVAL;
use crate::domain::time::Timestamp;
use crate::ports::{Away, Bye};
use rand::RngExt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// How often expired messages are looked for when there were none the last time.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

impl Relay {
    /// Opens the node's door on the bus and sets its loops going.
    pub async fn start(&self) -> Result<(), Away> {
        self.0.plane.listen(&self.0.node, Arc::new(self.clone())).await?;
        let tasks = &self.0.tasks;
        let relay = self.clone();
        tasks.spawn_essential("notes", async move {
            let store = relay.0.store.clone();
            relay.0.notes.run(&*store, relay.0.tasks.drain.clone()).await;
        });
        let relay = self.clone();
        tasks.spawn_essential("watch", async move { relay.watch_streams().await });
        let relay = self.clone();
        tasks.spawn_essential("sweep", async move { relay.sweep_store().await });
        Ok(())
    }

    async fn watch_streams(&self) {
        let mut tick = interval(WATCH_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.0.tasks.drain.cancelled() => return,
                _ = tick.tick() => self.0.hub.watch(Instant::now()),
            }
        }
    }

    async fn sweep_store(&self) {
        loop {
            let more = self.0.store.sweep(Timestamp::now()).await.unwrap_or_else(|error| {
                tracing::debug!(%error, "expired messages could not be removed");
                false
            });
            let pause = if more { Duration::ZERO } else { SWEEP_INTERVAL };
            tokio::select! {
                biased;
                () = self.0.tasks.drain.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// Writes down what streams have seen until now.
    pub async fn flush_notes(&self) {
        self.0.notes.flush(&*self.0.store).await;
    }

    /// Says goodbye to all streams, spread over `time`, and waits until they are gone or the time is over.
    pub async fn end_streams(&self, time: Duration) {
        let deadline = Instant::now() + time;
        // The last tenth is for the goodbyes to be written.
        let spread = time.mul_f64(0.9);
        let mut seats = self.0.hub.seats();
        let pause = spread / u32::try_from(seats.len().max(1)).unwrap_or(u32::MAX);
        let mut due = Instant::now();
        while let Some(seat) = take_any(&mut seats) {
            seat.end(Bye::Draining);
            if !seats.is_empty() {
                due += pause;
                tokio::time::sleep_until(due.into()).await;
            }
        }
        while !self.0.hub.is_empty() && Instant::now() < deadline {
            sleep(Duration::from_millis(10)).await;
        }
        self.0.hub.seats().iter().for_each(|seat| seat.cut());
    }
}

/// In no order, so that devices of one kind don't come back together.
fn take_any<T>(items: &mut Vec<T>) -> Option<T> {
    let n = items.len();
    (n > 0).then(|| items.swap_remove(rand::rng().random_range(0..n)))
}
