//! The relay's own loops, and how it ends.

use super::handle::Relay;
use super::hub::WATCH_INTERVAL;
use crate::domain::time::Timestamp;
use crate::ports::{Away, Bye};
use rand::RngExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

/// How often expired messages are looked for when there were none the last time.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How often streams are compared with the store when nothing is known to have been missed.
const COMPARE_INTERVAL: Duration = Duration::from_secs(10);
/// So many users are asked for in one query, with a pause after it.
const COMPARE_AT_ONCE: usize = 1_000;
const COMPARE_PAUSE: Duration = Duration::from_millis(5);
/// A bus that comes and goes doesn't have the store asked more often than this.
const COMPARE_REST: Duration = Duration::from_millis(500);

/// False if it was cancelled.
async fn sleep_unless_cancelled(time: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        biased;
        () = stop.cancelled() => false,
        () = sleep(time) => true,
    }
}

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
        let relay = self.clone();
        tasks.spawn_essential("compare", async move { relay.compare_streams().await });
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

    /// The backstop for what another node told and this one didn't hear: now and then, and whenever the bus was away, each stream's place is
    /// compared with the newest number of its user. Spread out, so that the store is asked for a thousand users at a time.
    async fn compare_streams(&self) {
        loop {
            let pause = COMPARE_INTERVAL.mul_f64(rand::rng().random_range(0.8..=1.2));
            tokio::select! {
                biased;
                () = self.0.tasks.drain.cancelled() => return,
                () = self.0.catch_up.notified() => {}
                () = sleep(pause) => if !self.0.plane.has_other_nodes() { continue },
            }
            let seats = self.0.hub.seats();
            for bite in seats.chunks(COMPARE_AT_ONCE) {
                let users: Vec<_> = bite.iter().map(|seat| seat.user().clone()).collect();
                match self.0.store.newest(&users).await {
                    Ok(newest) => {
                        let lagging = bite.iter().zip(newest).filter(|(seat, newest)| seat.lags(*newest));
                        lagging.for_each(|(seat, _)| seat.set_behind());
                    }
                    Err(error) => {
                        tracing::debug!(%error, "streams could not be compared with the store and will be again");
                        self.0.catch_up.notify_one();
                        break;
                    }
                }
                tokio::select! {
                    biased;
                    () = self.0.tasks.drain.cancelled() => return,
                    () = sleep(COMPARE_PAUSE) => {}
                }
            }
            if !sleep_unless_cancelled(COMPARE_REST, &self.0.tasks.drain).await {
                return;
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
                tokio::time::sleep_until(due).await;
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
