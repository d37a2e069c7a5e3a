//! What comes in from other nodes. The reader of the connection never waits: what finds no room is refused, or counted as lost.

use super::Plane;
use super::wire::{self, Answer, Envelope, Part};
use crate::domain::seat::NodeId;
use crate::ports::{Notice, Refusal, RemoteOffer, Verdict};
use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;
use redis::{PushInfo, PushKind, Value};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Envelopes that wait to be opened.
pub(super) const WAITING_ENVELOPES: usize = 1_024;
const WAITING_BYTES: usize = 64 << 20;
/// Offers and notices that this node's door is busy with.
const AT_THE_DOOR: usize = 16_384;
/// So many ids of offers are remembered at least, and twice as many at most.
const IDS_REMEMBERED: usize = 100_000;

/// See the module's text.
pub(super) struct Inbox {
    envelopes: Sender<Bytes>,
    bytes: AtomicUsize,
    room: Arc<Semaphore>,
    seen: Mutex<Seen>,
    /// When this node heard itself last.
    pub heard: tokio::sync::watch::Sender<Option<Instant>>,
}

impl Inbox {
    pub fn new(envelopes: Sender<Bytes>) -> Self {
        let (heard, _) = tokio::sync::watch::channel(None);
        Self {
            envelopes,
            bytes: AtomicUsize::new(0),
            room: Arc::new(Semaphore::new(AT_THE_DOOR)),
            seen: Mutex::default(),
            heard,
        }
    }

    /// Whether this node has heard itself lately.
    pub fn hears(&self, within: Duration) -> bool {
        self.heard.borrow().is_some_and(|at| at.elapsed() <= within)
    }
}

/// Ids of offers that have been seen. A node may be subscribed twice for a moment, and an offer is taken once.
#[derive(Default)]
struct Seen {
    newer: HashSet<u64>,
    older: HashSet<u64>,
}

impl Seen {
    /// False if it was seen before.
    fn insert(&mut self, id: u64) -> bool {
        if self.older.contains(&id) || self.newer.contains(&id) {
            return false;
        }
        if self.newer.len() >= IDS_REMEMBERED {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(id)
    }
}

impl Plane {
    /// For the connection that is subscribed: called by its reader, so it only puts things where they are taken up.
    pub(super) fn on_push(self: &Arc<Self>, lost: Arc<Notify>) -> impl Fn(PushInfo) -> Result<(), ()> + Clone + use<> {
        // The connection must not keep alive what keeps it alive.
        let plane = Arc::downgrade(self);
        move |push: PushInfo| {
            let plane = plane.upgrade().ok_or(())?;
            if matches!(push.kind, PushKind::Message | PushKind::SMessage) {
                if let Some(Value::BulkString(envelope)) = push.data.into_iter().nth(1) {
                    plane.receive(envelope.into());
                }
            } else if matches!(push.kind, PushKind::Disconnection | PushKind::Unsubscribe | PushKind::SUnsubscribe) {
                lost.notify_one();
            }
            Ok(())
        }
    }

    pub(super) fn receive(self: &Arc<Self>, envelope: Bytes) {
        let length = envelope.len();
        let waiting = self.inbox.bytes.fetch_add(length, Ordering::Relaxed);
        let refused = if waiting + length > WAITING_BYTES {
            Some(envelope)
        } else {
            self.inbox.envelopes.try_send(envelope).err().map(tokio::sync::mpsc::error::TrySendError::into_inner)
        };
        let Some(envelope) = refused else { return };
        self.inbox.bytes.fetch_sub(length, Ordering::Relaxed);
        let Ok(Envelope { from, parts, .. }) = wire::read(envelope) else { return };
        for part in parts {
            match part {
                // Another copy of it may wait among those that found room: it is dropped when its turn comes, so the refusal stands. If it was
                // taken already, its own answer stands.
                Part::Offer { id, .. } if self.inbox.seen.lock().insert(id) => {
                    self.reply(&from, id, Ok(Verdict::Refused(Refusal::Full)));
                }
                Part::Offer { .. } => drop(self.metrics.repeated_offers.inc()),
                Part::Reply { id, result } => drop(self.outbox.resolve(id, result)),
                Part::Notice(_) => drop(self.metrics.lost_notices.inc()),
                // Not heard in time, then: this node has too much to hear.
                Part::Probe => {}
            }
        }
    }

    /// Opens envelopes until the process ends.
    pub(super) async fn open_envelopes(self: Arc<Self>, mut envelopes: Receiver<Bytes>) {
        loop {
            let envelope = tokio::select! {
                biased;
                () = self.ended() => return,
                envelope = envelopes.recv() => envelope,
            };
            let Some(envelope) = envelope else { return };
            self.inbox.bytes.fetch_sub(envelope.len(), Ordering::Relaxed);
            match wire::read(envelope) {
                Ok(Envelope { published_ms, from, parts }) => {
                    for part in parts {
                        self.take_in(part, &from, published_ms);
                    }
                }
                Err(error) => tracing::debug!(%error, "something else was published to this node"),
            }
        }
    }

    fn take_in(self: &Arc<Self>, part: Part, from: &NodeId, published_ms: i64) {
        match part {
            Part::Offer { id, offer } => {
                if self.inbox.seen.lock().insert(id) {
                    self.take_in_offer(id, offer, from, published_ms);
                } else {
                    self.metrics.repeated_offers.inc();
                }
            }
            Part::Reply { id, result } => drop(self.outbox.resolve(id, result)),
            Part::Notice(notice) => self.take_in_notice(notice),
            Part::Probe if *from == self.run.node => drop(self.inbox.heard.send_replace(Some(Instant::now()))),
            Part::Probe => {}
        }
    }

    fn take_in_offer(self: &Arc<Self>, id: u64, mut offer: RemoteOffer, from: &NodeId, published_ms: i64) {
        let refuse = |why| self.reply(from, id, Ok(Verdict::Refused(why)));
        if !self.standing.lock().will_cover(published_ms, Instant::now()) {
            return refuse(Refusal::Closed);
        }
        let on_the_way = self.roll.borrow().now_ms().saturating_sub(published_ms);
        let on_the_way = Duration::from_millis(u64::try_from(on_the_way).unwrap_or(0));
        offer.patience = offer.patience.map(|patience| patience.saturating_sub(on_the_way));
        offer.ttl = offer.ttl.saturating_sub(on_the_way);
        if offer.ttl.is_zero() {
            return refuse(Refusal::Expired);
        }
        let (Some(door), Ok(room)) = (self.door(), self.inbox.room.clone().try_acquire_owned()) else {
            return refuse(Refusal::Full);
        };
        let (plane, from) = (self.clone(), from.clone());
        self.at_the_door(room, async move {
            let answer = if plane.is_seated_for(&mut offer, published_ms).await {
                door.offered(offer).await
            } else {
                Ok(Verdict::Refused(Refusal::Closed))
            };
            plane.reply(&from, id, answer);
        });
    }

    /// With a new lease, waits until this node has seated its streams anew, for as long as the offer may wait: others may still find here a
    /// device of before, and a refusal would have them call it offline (CONTRACT.md 10.3).
    async fn is_seated_for(&self, offer: &mut RemoteOffer, published_ms: i64) -> bool {
        let begun = Instant::now();
        let seated = async {
            loop {
                let seated = self.seated.notified();
                if self.standing.lock().is_seated() {
                    return;
                }
                seated.await;
            }
        };
        if timeout(offer.ttl, seated).await.is_err() {
            return false;
        }
        offer.ttl = offer.ttl.saturating_sub(begun.elapsed());
        offer.patience = offer.patience.map(|patience| patience.saturating_sub(begun.elapsed()));
        self.standing.lock().covers(published_ms, Instant::now())
    }

    fn take_in_notice(self: &Arc<Self>, notice: Notice) {
        let (Some(door), Ok(room)) = (self.door(), self.inbox.room.clone().try_acquire_owned()) else {
            self.metrics.lost_notices.inc();
            return;
        };
        self.at_the_door(room, async move { door.noticed(notice).await });
    }

    /// Most is done at once, and so in order; what has to wait goes on as a task.
    fn at_the_door(&self, room: OwnedSemaphorePermit, work: impl Future<Output = ()> + Send + 'static) {
        let mut work = Box::pin(work);
        if work.as_mut().now_or_never().is_none() {
            self.tasks.spawn(async move {
                work.await;
                drop(room);
            });
        }
    }

    /// A reply without room is lost, and its sender will say that it doesn't know.
    fn reply(self: &Arc<Self>, to: &NodeId, id: u64, result: Answer) {
        if !self.send(to, Part::Reply { id, result }) {
            tracing::debug!(node.id = %to, "a reply found no room");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_known_for_as_long_as_it_is_promised_and_memory_is_bounded() {
        let mut seen = Seen::default();
        let count = IDS_REMEMBERED as u64;
        for id in 0..10 * count {
            assert!(seen.insert(id));
            assert!(!seen.insert(id.saturating_sub(count - 1)), "{id}");
        }
        assert!(seen.newer.len() + seen.older.len() <= 2 * IDS_REMEMBERED);
    }
}
