//! One open stream on this node, as the senders see it: a queue to offer to, and a socket to watch.

use super::queue::{Offer, Offering, Queue, QueueLimits, Taken};
use super::socket::Socket;
use crate::domain::message::Cursor;
use crate::domain::seat::{DeviceId, DeviceState, KeyId, NodeId, SeatInfo, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{Bye, Refusal, Verdict};
use crate::relay::frame::Frame;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Context;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
use uuid::Uuid;

/// See the module's text.
#[derive(Debug)]
pub struct Seat {
    user: UserId,
    device: DeviceId,
    connection: u64,
    key: KeyId,
    queue: Mutex<Queue>,
    socket: Option<Arc<Socket>>,
    watch: Mutex<Watch>,
    facts: Mutex<Facts>,
    /// The last persisted message that the stream has written, or where it began.
    shown: AtomicU64,
}

/// What the directory says of the seat.
#[derive(Clone, Copy, Debug)]
struct Facts {
    state: DeviceState,
    connected_at: Timestamp,
    last_active_at: Timestamp,
}

/// What is known of the peer's taking and acknowledging.
#[derive(Debug)]
struct Watch {
    /// The stream took something then, or had nothing to take.
    progress_at: Instant,
    /// Data was written since all was known to be acknowledged.
    wrote: bool,
    /// Since when the peer has owed an acknowledgement.
    silent_since: Option<Instant>,
    is_cut: bool,
}

/// A frame that was put into a queue, and the way to its verdict.
#[derive(Debug)]
pub struct Offered {
    seat: Arc<Seat>,
    number: u64,
    /// What became of it.
    pub verdict: oneshot::Receiver<Verdict>,
}

impl Offered {
    /// Takes the frame back. True if it still waited: then it is certain that nobody gets it.
    pub fn revoke(&self, why: Refusal) -> bool {
        self.seat.queue.lock().revoke(self.number, why)
    }
}

impl Seat {
    pub(super) fn new(
        user: UserId,
        device: DeviceId,
        connection: u64,
        state: DeviceState,
        key: KeyId,
        limits: QueueLimits,
        socket: Option<Arc<Socket>>,
    ) -> Self {
        let watch = Watch { progress_at: Instant::now(), wrote: false, silent_since: None, is_cut: false };
        let now = Timestamp::now();
        Self {
            user,
            device,
            connection,
            key,
            queue: Mutex::new(Queue::new(limits)),
            socket,
            watch: Mutex::new(watch),
            facts: Mutex::new(Facts { state, connected_at: now, last_active_at: now }),
            shown: AtomicU64::new(u64::MAX),
        }
    }

    /// What the directory is to say of this seat.
    pub fn info(&self, node: &NodeId) -> SeatInfo {
        let Facts { state, connected_at, last_active_at } = *self.facts.lock();
        SeatInfo {
            user: self.user.clone(),
            device: self.device.clone(),
            node: node.clone(),
            connection: self.connection,
            state,
            connected_at,
            last_active_at,
        }
    }

    /// Keeps what the directory now says of the device, to be said again should the directory forget it.
    pub fn note_touched(&self, seat: &SeatInfo) {
        let mut facts = self.facts.lock();
        facts.state = seat.state;
        facts.last_active_at = facts.last_active_at.max(seat.last_active_at);
    }

    /// The stream has shown all persisted messages up to here.
    pub fn note_shown(&self, cursor: Cursor) {
        self.shown.store(cursor.get(), Ordering::Relaxed);
    }

    /// Whether the stream, once begun, has not shown all up to `newest`.
    pub fn lags(&self, newest: Cursor) -> bool {
        self.shown.load(Ordering::Relaxed) < newest.get()
    }

    /// Whose device sits here.
    pub fn user(&self) -> &UserId {
        &self.user
    }

    /// Which device sits here.
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// The key of the token that it was opened with.
    pub fn key(&self) -> KeyId {
        self.key
    }

    /// Never used twice on this node.
    pub fn connection(&self) -> u64 {
        self.connection
    }

    /// Writes an online-only frame at once if the stream rests, puts it into the queue, or refuses it. `None`: it is taken.
    pub fn offer(self: Arc<Self>, offer: Offer, now: Instant) -> Result<Option<Offered>, Refusal> {
        let mut queue = self.queue.lock();
        let offering = queue.offer(offer, self.socket.as_deref(), now)?;
        let waker = if matches!(offering, Offering::Written) { None } else { queue.waker() };
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
        match offering {
            Offering::Written | Offering::Begun => {
                self.note_write(now);
                Ok(None)
            }
            Offering::Waits(number, verdict) => Ok(Some(Offered { seat: self, number, verdict })),
        }
    }

    /// Hands a persisted frame to the stream, which heeds the sequence rule.
    pub fn put_persisted(&self, cursor: Cursor, frame: Frame, now: Instant) {
        self.change(|queue| queue.put_persisted(cursor, frame, now));
    }

    /// Tells the stream that a message was taken back.
    pub fn put_recall(&self, id: Uuid, frame: Frame) {
        self.change(|queue| queue.put_recall(id, frame));
    }

    /// Lets the stream read the store.
    pub fn set_behind(&self) {
        self.change(Queue::set_behind);
    }

    /// Ends the stream with a goodbye; what waits is refused at once.
    pub fn end(&self, bye: Bye) {
        self.change(|queue| queue.end(bye));
    }

    /// Refuses all that waits, and all to come.
    pub fn close(&self) {
        self.queue.lock().close();
    }

    /// Whether the stream has its connection for itself.
    pub fn has_connection(&self) -> bool {
        self.socket.as_ref().is_some_and(|socket| socket.is_own())
    }

    /// What the stream is to write next.
    pub fn take(&self, now: Instant) -> Option<Taken> {
        self.queue.lock().take(now)
    }

    /// The stream's owner is awake: from now on only it writes.
    pub fn unpark(&self) {
        self.queue.lock().unpark();
    }

    /// The stream's owner goes to rest, to be woken when there is something to take. False if there is already.
    pub fn park(&self, cx: &Context<'_>) -> bool {
        self.queue.lock().park(cx)
    }

    /// The stream is about to write.
    pub fn note_write(&self, now: Instant) {
        let mut watch = self.watch.lock();
        watch.progress_at = now;
        watch.wrote = true;
    }

    /// For how long the peer has left data unacknowledged, by what the socket says now.
    pub fn silent_for(&self, now: Instant) -> Duration {
        let mut watch = self.watch.lock();
        let Some(socket) = self.socket.as_ref().filter(|_| watch.wrote) else { return Duration::ZERO };
        let Some(no_ack_for) = socket.silence() else {
            watch.wrote = false;
            watch.silent_since = None;
            return Duration::ZERO;
        };
        // An acknowledgement since the last look starts the count anew: the socket only tells when the last one came.
        let last_ack = now.checked_sub(no_ack_for).unwrap_or(now);
        let since = watch.silent_since.filter(|since| *since >= last_ack).unwrap_or(now);
        watch.silent_since = Some(since);
        now.saturating_duration_since(since)
    }

    /// For how long the stream has taken nothing although something waits.
    pub fn stalled_for(&self, now: Instant) -> Duration {
        let has_waiting = self.queue.lock().has_waiting();
        let mut watch = self.watch.lock();
        if !has_waiting {
            watch.progress_at = now;
        }
        now.saturating_duration_since(watch.progress_at)
    }

    /// Cuts the connection off; its owner then drops the stream.
    pub fn cut(&self) {
        self.close();
        let mut watch = self.watch.lock();
        if let Some(socket) = self.socket.as_ref().filter(|_| !watch.is_cut) {
            socket.cut();
            watch.is_cut = true;
        }
    }

    fn change(&self, change: impl FnOnce(&mut Queue)) {
        let mut queue = self.queue.lock();
        change(&mut queue);
        let waker = queue.waker();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
