//! This node's seats: every open stream with its bounded queue, found by user. What waits in a queue never outlives its stream.

mod queue;
mod seat;
mod socket;

pub use queue::{Budget, Offer, QueueLimits, Receipt, Taken};
pub use seat::{Offered, Seat};
pub use socket::Socket;

use crate::config;
use crate::domain::by_user::ByUser;
use crate::domain::seat::{DeviceId, DeviceState, KeyId, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{Bye, Refusal};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// All queues of the node together hold so much: many slow readers at once are not to take all memory (CONTRACT.md 10.7).
const QUEUED_BYTES_MAX: usize = 1 << 30;

/// The node holds as many streams as it may (`stream.max`).
#[derive(Debug, thiserror::Error)]
#[error("this node holds {0} streams already")]
pub struct HubFull(pub usize);

/// See the module's text.
#[derive(Debug)]
pub struct Hub {
    seats: ByUser<Vec<Arc<Seat>>>,
    next_connection: AtomicU64,
    open: AtomicUsize,
    max: usize,
    queue: QueueLimits,
    dead_peer: Duration,
    stall_timeout: Duration,
}

/// A node that is started again under its old name must not use its old numbers: what was offered to a seat of the former process would
/// reach another device. The time in microseconds grows faster than any process opens streams.
fn first_connection() -> u64 {
    u64::try_from(Timestamp::now().as_ms()).unwrap_or(0) * 1_000
}

/// How often the hub looks after seats whose peers owe something.
pub const WATCH_INTERVAL: Duration = Duration::from_millis(500);

impl Hub {
    /// An empty hub with the bounds of `stream.*`.
    pub fn new(config: &config::Stream) -> Self {
        Self {
            seats: ByUser::default(),
            next_connection: AtomicU64::new(first_connection()),
            open: AtomicUsize::new(0),
            max: config.max,
            queue: QueueLimits {
                frames: config.queue_frames,
                bytes: config.queue_bytes,
                budget: Arc::new(Budget::new(QUEUED_BYTES_MAX)),
            },
            dead_peer: config.dead_peer,
            stall_timeout: config.stall_timeout,
        }
    }

    /// Adds a seat for a stream that is being opened.
    pub fn open(
        &self,
        user: &UserId,
        device: &DeviceId,
        state: DeviceState,
        key: KeyId,
        socket: Option<Arc<Socket>>,
    ) -> Result<Arc<Seat>, HubFull> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(HubFull(self.max));
        }
        let connection = self.next_connection.fetch_add(1, Ordering::Relaxed);
        let seat =
            Arc::new(Seat::new(user.clone(), device.clone(), connection, state, key, self.queue.clone(), socket));
        self.seats.write(user).entry(user.clone()).or_default().push(seat.clone());
        Ok(seat)
    }

    /// Removes a seat whose stream has ended; what waits in its queue is refused.
    pub fn remove(&self, seat: &Arc<Seat>) {
        let mut shard = self.seats.write(seat.user());
        if let Some(seats) = shard.get_mut(seat.user()) {
            let before = seats.len();
            seats.retain(|s| !Arc::ptr_eq(s, seat));
            if seats.len() < before {
                self.open.fetch_sub(1, Ordering::Relaxed);
            }
            if seats.is_empty() {
                shard.remove(seat.user());
            }
        }
        drop(shard);
        seat.close();
    }

    /// The seat with this connection number.
    pub fn find(&self, user: &UserId, connection: u64) -> Option<Arc<Seat>> {
        self.seats.read(user).get(user)?.iter().find(|s| s.connection() == connection).cloned()
    }

    /// All seats of a user on this node.
    pub fn seats_of(&self, user: &UserId) -> Vec<Arc<Seat>> {
        self.seats.read(user).get(user).cloned().unwrap_or_default()
    }

    /// Offers a frame to a seat. One that isn't here any more refuses; `None` means that it is taken already.
    pub fn offer(
        &self,
        user: &UserId,
        connection: u64,
        offer: Offer,
        now: Instant,
    ) -> Result<Option<Offered>, Refusal> {
        self.find(user, connection).ok_or(Refusal::Closed)?.offer(offer, now)
    }

    /// Ends a stream with a goodbye. False if it isn't here.
    pub fn end(&self, user: &UserId, connection: u64, bye: Bye) -> bool {
        self.find(user, connection).is_some_and(|seat| {
            seat.end(bye);
            true
        })
    }

    /// How many streams are open.
    pub fn len(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether no stream is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All seats, as they are now.
    pub fn seats(&self) -> Vec<Arc<Seat>> {
        self.seats.shares().flat_map(|share| share.values().flatten().cloned().collect::<Vec<_>>()).collect()
    }

    /// Cuts off the peers that are gone without a word (`stream.dead_peer_s`) and those that take nothing (`stream.stall_timeout_s`).
    ///
    /// TCP_USER_TIMEOUT can't do this: Linux applies it to a living peer with a closed window too, which may stay for the stall timeout.
    pub fn watch(&self, now: Instant) {
        // A look each half second and a whole one to act: still within `dead_peer_s` of the event that went unanswered. But never so soon
        // that a living peer's acknowledgement, which may be delayed, would be missed.
        let silence = self.dead_peer.saturating_sub(2 * WATCH_INTERVAL).max(self.dead_peer / 2);
        for share in self.seats.shares() {
            for seat in share.values().flatten() {
                if seat.silent_for(now) >= silence || seat.stalled_for(now) >= self.stall_timeout {
                    seat.cut();
                }
            }
        }
    }
}
