//! What goes out to other nodes. What is for one node is gathered while the previous write to it is under way, and goes as one PUBLISH: under
//! load more goes at once, and when idle nothing waits.

use super::Plane;
use super::link::{Link, was_not_run};
use super::lua::{PUBLISH, SPUBLISH};
use super::wire::{Answer, Part, Writer};
use crate::domain::seat::NodeId;
use crate::ports::{Away, Notice, OfferError, RemoteOffer};
use parking_lot::Mutex;
use redis::RedisResult;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// What may wait for one node.
const WAITING_PARTS: usize = 4_096;
const WAITING_BYTES: usize = 8 << 20;
/// What goes at once.
const BATCH_PARTS: usize = 512;
const BATCH_BYTES: usize = 256 << 10;
/// So many users are named in one notice.
const USERS_AT_ONCE: usize = 1_000;
/// What a part takes beside frames and lists of names.
const PART_BYTES: usize = 256;

/// See the module's text.
pub(super) struct Outbox {
    /// A node is here while something is being written to it.
    lanes: Mutex<HashMap<NodeId, Lane>>,
    /// Offers without a reply yet. Each goes when its caller does.
    pending: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    next_id: AtomicU64,
}

#[derive(Default)]
struct Lane {
    waiting: VecDeque<(Part, Instant)>,
    bytes: usize,
}

fn weight(part: &Part) -> usize {
    PART_BYTES
        + match part {
            Part::Offer { offer, .. } => offer.frame.len(),
            Part::Notice(Notice::Stored(users) | Notice::Recalled(_, users)) => {
                users.iter().map(|user| 4 + user.as_str().len()).sum()
            }
            Part::Notice(Notice::Close(..) | Notice::Touched(_)) | Part::Reply { .. } | Part::Probe => 0,
        }
}

impl Outbox {
    pub fn new() -> Self {
        // Ids of one run are never those of another.
        Self { lanes: Mutex::default(), pending: Mutex::default(), next_id: AtomicU64::new(rand::random()) }
    }

    /// A reply has come; false if nobody waits for it any more.
    pub fn resolve(&self, id: u64, answer: Answer) -> bool {
        let waiting = self.pending.lock().remove(&id);
        waiting.is_some_and(|waiting| waiting.send(answer).is_ok())
    }

    fn is_waited_for(&self, id: u64) -> bool {
        self.pending.lock().contains_key(&id)
    }

    #[cfg(test)]
    pub fn pending(&self) -> usize {
        self.pending.lock().len()
    }

    /// Whether it is the first in its lane; `None` if there is no room.
    fn put(&self, node: &NodeId, part: Part) -> Option<bool> {
        let weight = weight(&part);
        let mut lanes = self.lanes.lock();
        let is_first = !lanes.contains_key(node);
        let lane = lanes.entry(node.clone()).or_default();
        let has_room = lane.waiting.len() < WAITING_PARTS && lane.bytes + weight <= WAITING_BYTES;
        if !is_first && !has_room {
            return None;
        }
        lane.bytes += weight;
        lane.waiting.push_back((part, Instant::now()));
        Some(is_first)
    }

    /// What is to go next; `None`, and the lane is closed, if there is nothing.
    fn take(&self, node: &NodeId) -> Option<Vec<(Part, Instant)>> {
        let mut lanes = self.lanes.lock();
        let lane = lanes.get_mut(node)?;
        let (mut batch, mut bytes) = (vec![], 0);
        while let Some((part, _)) = lane.waiting.front()
            && batch.len() < BATCH_PARTS
            && (batch.is_empty() || bytes + weight(part) <= BATCH_BYTES)
        {
            bytes += weight(part);
            batch.extend(lane.waiting.pop_front());
        }
        lane.bytes -= bytes;
        if batch.is_empty() {
            lanes.remove(node);
            return None;
        }
        Some(batch)
    }
}

/// An offer that is waited for.
struct Waiting<'a> {
    outbox: &'a Outbox,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.outbox.pending.lock().remove(&self.id);
    }
}

impl Plane {
    pub(super) async fn offer(self: &Arc<Self>, node: &NodeId, offer: RemoteOffer) -> Answer {
        let id = self.outbox.next_id.fetch_add(1, Ordering::Relaxed);
        let (send, receive) = oneshot::channel();
        self.outbox.pending.lock().insert(id, send);
        let waiting = Waiting { outbox: &self.outbox, id };
        // Counted as unknown if the caller gives up first.
        let mut counted = Counted { plane: self, answer: Err(OfferError::Unknown) };
        if !self.send(node, Part::Offer { id, offer }) {
            counted.answer = Err(OfferError::NotTaken);
        } else if let Ok(answer) = receive.await {
            counted.answer = answer;
        }
        drop(waiting);
        counted.answer
    }

    pub(super) fn tell(self: &Arc<Self>, node: &NodeId, notice: Notice) -> Result<(), Away> {
        self.link()?;
        for notice in in_bites(notice) {
            if !self.send(node, Part::Notice(notice)) {
                self.metrics.lost_notices.inc();
                return Err(super::away("too much waits to be told to that node"));
            }
        }
        Ok(())
    }

    /// False if there is no room for it.
    pub(super) fn send(self: &Arc<Self>, node: &NodeId, part: Part) -> bool {
        let Some(is_first) = self.outbox.put(node, part) else { return false };
        if is_first {
            let (plane, node) = (self.clone(), node.clone());
            self.tasks.spawn(async move {
                while let Some(batch) = plane.outbox.take(&node) {
                    plane.publish_batch(&node, batch).await;
                }
            });
        }
        true
    }

    async fn publish_batch(&self, node: &NodeId, batch: Vec<(Part, Instant)>) {
        let mut writer = Writer::new(&self.run.node);
        let (mut offers, mut notices, mut parts) = (vec![], 0, 0_u16);
        for (mut part, since) in batch {
            match &mut part {
                // Its sender has given up meanwhile: no need to trouble anybody.
                Part::Offer { id, .. } if !self.outbox.is_waited_for(*id) => continue,
                Part::Offer { id, offer } => {
                    let waited = since.elapsed();
                    offer.ttl = offer.ttl.saturating_sub(waited);
                    offer.patience = offer.patience.map(|patience| patience.saturating_sub(waited));
                    offers.push(*id);
                }
                Part::Notice(_) => notices += 1,
                Part::Reply { .. } | Part::Probe => {}
            }
            writer.part(&part);
            parts += 1;
        }
        if parts == 0 {
            return;
        }
        self.metrics.batch_parts.observe(parts.into());
        let published = match self.link() {
            Ok(link) => self.publish(&link, node, writer.into_bytes()).await.map_err(|error| was_not_run(&error)),
            Err(_) => Err(true),
        };
        let error = match published {
            Ok(true) => return,
            Ok(false) | Err(true) => OfferError::NotTaken,
            Err(false) => OfferError::Unknown,
        };
        self.metrics.lost_notices.inc_by(notices);
        for id in offers {
            self.outbox.resolve(id, Err(error));
        }
    }

    /// False if certainly nobody has heard it. True is no promise.
    pub(super) async fn publish(&self, link: &Link, node: &NodeId, envelope: Vec<u8>) -> RedisResult<bool> {
        let script = if self.server.is_cluster() { &SPUBLISH } else { &PUBLISH };
        let heard: i64 = script.on(self.names.channel(node)).arg(&envelope[..]).run(link).await?;
        Ok(heard >= 0)
    }
}

/// A group may have very many members, and a batch is bounded.
fn in_bites(notice: Notice) -> Vec<Notice> {
    match notice {
        Notice::Stored(users) => users.chunks(USERS_AT_ONCE).map(|bite| Notice::Stored(bite.to_vec())).collect(),
        Notice::Recalled(id, users) => {
            users.chunks(USERS_AT_ONCE).map(|bite| Notice::Recalled(id, bite.to_vec())).collect()
        }
        Notice::Close(..) | Notice::Touched(_) => vec![notice],
    }
}

/// Counts what became of an offer, also if nobody waits for it any more.
struct Counted<'a> {
    plane: &'a Plane,
    answer: Answer,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.plane.metrics.offered(self.answer);
    }
}

/// A probe for oneself.
pub(super) fn probe(node: &NodeId) -> Vec<u8> {
    let mut writer = Writer::new(node);
    writer.part(&Part::Probe);
    writer.into_bytes()
}

/// How long a node may not hear itself.
pub(super) const DEAF_AFTER: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::seat::UserId;

    fn node() -> NodeId {
        NodeId::parse("n").unwrap()
    }

    fn notice(users: usize) -> Part {
        Part::Notice(Notice::Stored(vec![UserId::parse(&"u".repeat(128)).unwrap(); users]))
    }

    #[test]
    fn what_waits_goes_together_and_then_the_lane_is_closed() {
        let outbox = Outbox::new();
        assert_eq!(outbox.put(&node(), Part::Probe), Some(true));
        assert_eq!(outbox.put(&node(), Part::Probe), Some(false));
        assert_eq!(outbox.take(&node()).unwrap().len(), 2);
        assert_eq!(outbox.put(&node(), Part::Probe), Some(false), "still being written");
        assert_eq!(outbox.take(&node()).unwrap().len(), 1);
        assert!(outbox.take(&node()).is_none());
        assert_eq!(outbox.put(&node(), Part::Probe), Some(true));
    }

    #[test]
    fn a_lane_is_bounded_in_parts_and_in_bytes_and_a_batch_too() {
        let outbox = Outbox::new();
        (0..WAITING_PARTS).for_each(|_| assert!(outbox.put(&node(), Part::Probe).is_some()));
        assert_eq!(outbox.put(&node(), Part::Probe), None);
        assert_eq!(outbox.take(&node()).unwrap().len(), BATCH_PARTS);
        assert!(outbox.put(&node(), Part::Probe).is_some());

        let outbox = Outbox::new();
        let each = weight(&notice(1_000));
        let put = (0..WAITING_PARTS).take_while(|_| outbox.put(&node(), notice(1_000)).is_some()).count();
        assert_eq!(put, WAITING_BYTES / each);
        assert_eq!(outbox.take(&node()).unwrap().len(), BATCH_BYTES / each);
        while outbox.take(&node()).is_some() {}
        outbox.put(&node(), notice(BATCH_BYTES / 100));
        assert_eq!(outbox.take(&node()).unwrap().len(), 1, "one that is larger than a batch goes alone");
    }
}
