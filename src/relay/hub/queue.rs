//! The bounded queue of one seat, and the receipts that tell what became of each frame in it.

use super::socket::{Socket, Written};
use crate::domain::message::Cursor;
use crate::ports::{Bye, Refusal, Verdict};
use crate::relay::frame::Frame;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};
use tokio::sync::oneshot;
use tokio::time::Instant;
use uuid::Uuid;

/// See [`Queue::put_recall`].
const RECALLS_BEYOND: usize = 256;

/// The promise of a verdict on one offered frame. It is kept even by being dropped, so no path can forget it: a stream that ends
/// refuses all that still waits in its queue (CONTRACT.md 10.3).
#[derive(Debug)]
pub struct Receipt(Option<oneshot::Sender<Verdict>>);

impl Receipt {
    /// A receipt, and where its verdict will be told.
    pub fn new() -> (Self, oneshot::Receiver<Verdict>) {
        let (tell, hear) = oneshot::channel();
        (Self(Some(tell)), hear)
    }

    /// Settles it.
    pub fn resolve(mut self, verdict: Verdict) {
        self.tell(verdict);
    }

    fn tell(&mut self, verdict: Verdict) {
        if let Some(tell) = self.0.take() {
            // The sender may have stopped waiting for the answer.
            let _ = tell.send(verdict);
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        self.tell(Verdict::Refused(Refusal::Closed));
    }
}

/// An online-only frame on offer.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The event.
    pub frame: Frame,
    /// When it is too late for it.
    pub expires_at: Instant,
    /// A newer offer with the same key takes its place.
    pub collapse_key: Option<Arc<str>>,
}

#[derive(Debug)]
enum Entry {
    OnlineOnly { number: u64, offer: Offer, receipt: Receipt },
    Persisted { cursor: Cursor, frame: Frame },
    Recall { id: Uuid, frame: Frame },
}

impl Entry {
    fn frame(&self) -> &Frame {
        match self {
            Self::OnlineOnly { offer, .. } => &offer.frame,
            Self::Persisted { frame, .. } | Self::Recall { frame, .. } => frame,
        }
    }
}

/// What an offer came to.
#[derive(Debug)]
pub enum Offering {
    /// The frame was written to the stream's socket then and there.
    Written,
    /// The kernel took a part of it; the stream, to be woken, writes the rest before anything else. It counts as taken.
    Begun,
    /// It waits in the queue under this number, for [`Queue::revoke`].
    Waits(u64, oneshot::Receiver<Verdict>),
}

/// What a stream takes from its queue.
#[derive(Debug)]
pub enum Taken {
    /// What is left of a frame that was begun by its sender; the first part may be empty.
    Rest(Bytes, Bytes),
    /// An online-only frame; settle the receipt when it is handed on.
    OnlineOnly(Frame, Receipt),
    /// A persisted frame, subject to the sequence rule.
    Persisted(Cursor, Frame),
    /// The news that a message was taken back.
    Recall(Uuid, Frame),
    /// Persisted messages are in the store that are not in the queue.
    Behind,
    /// Say goodbye; nothing follows.
    End(Bye),
}

/// What all queues of a node may hold together, in bytes. A frame counts in each queue that it waits in, though they share its memory.
#[derive(Debug)]
pub struct Budget {
    max: usize,
    used: AtomicUsize,
}

impl Budget {
    /// For so many bytes.
    pub fn new(max: usize) -> Self {
        Self { max, used: AtomicUsize::new(0) }
    }

    fn allows(&self, bytes: usize) -> bool {
        self.used.load(Ordering::Relaxed).saturating_add(bytes) <= self.max
    }
}

/// Bounds of a queue.
#[derive(Clone, Debug)]
pub struct QueueLimits {
    /// `stream.queue_frames`
    pub frames: usize,
    /// `stream.queue_bytes`
    pub bytes: usize,
    /// Shared with the node's other queues.
    pub budget: Arc<Budget>,
}

/// The frames that wait for one stream, oldest first. Bounded in frames and bytes (CONTRACT.md 10.7).
#[derive(Debug)]
pub struct Queue {
    entries: VecDeque<Entry>,
    bytes: usize,
    limits: QueueLimits,
    next_number: u64,
    behind: bool,
    /// The stream's owner rests until it is woken, with nothing left to write: a sender may write to the socket itself.
    parked: bool,
    /// What such a sender could not write.
    rest: Option<(Bytes, Bytes)>,
    state: State,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Open,
    /// The goodbye has not been taken yet.
    Ending(Bye),
    /// Nothing will be taken any more.
    Closed,
}

impl Queue {
    /// An empty one.
    pub fn new(limits: QueueLimits) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            limits,
            next_number: 0,
            behind: false,
            parked: false,
            rest: None,
            state: State::Open,
            waker: None,
        }
    }

    /// Writes an online-only frame to `socket` if the stream is parked there, or puts it in, or refuses it.
    pub fn offer(&mut self, offer: Offer, socket: Option<&Socket>, now: Instant) -> Result<Offering, Refusal> {
        if self.state != State::Open {
            return Err(Refusal::Closed);
        }
        // Parked, so nothing waits in here that would have to go first.
        if let Some(socket) = socket.filter(|_| self.parked) {
            match socket.write_now(offer.frame.clone()) {
                Written::All => return Ok(Offering::Written),
                Written::Part(head, tail) => {
                    self.parked = false;
                    self.rest = Some((head, tail));
                    return Ok(Offering::Begun);
                }
                Written::Broken => return Err(Refusal::Closed),
                Written::Nothing => self.parked = false,
            }
        }
        let older = offer.collapse_key.as_ref().and_then(|key| self.position_of_key(key));
        let freed = older.map_or(0, |at| self.entries[at].frame().len());
        if !self.has_room(usize::from(older.is_none()), offer.frame.len(), freed) {
            // The older one with its key, if any, goes too if it has expired, and no longer counts.
            self.expire(now);
            let older = offer.collapse_key.as_ref().and_then(|key| self.position_of_key(key));
            let freed = older.map_or(0, |at| self.entries[at].frame().len());
            if !self.has_room(usize::from(older.is_none()), offer.frame.len(), freed) {
                return Err(Refusal::Full);
            }
        }
        Ok(self.put(offer))
    }

    fn put(&mut self, offer: Offer) -> Offering {
        let (receipt, verdict) = Receipt::new();
        let number = self.next_number;
        self.next_number += 1;
        self.add_bytes(offer.frame.len());
        let older = offer.collapse_key.as_ref().and_then(|key| self.position_of_key(key));
        let entry = Entry::OnlineOnly { number, offer, receipt };
        match older {
            Some(at) => {
                let older = std::mem::replace(&mut self.entries[at], entry);
                self.refuse(older, Refusal::Superseded);
            }
            None => self.entries.push_back(entry),
        }
        Offering::Waits(number, verdict)
    }

    /// The stream's owner is awake: from now on only it writes.
    pub fn unpark(&mut self) {
        self.parked = false;
    }

    /// The stream's owner goes to rest; `cx` is woken when there is something to take. False if there is already.
    pub fn park(&mut self, cx: &Context<'_>) -> bool {
        if self.has_waiting() {
            return false;
        }
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        self.parked = true;
        true
    }

    /// Puts a persisted frame in. Without room it is left to be read from the store.
    pub fn put_persisted(&mut self, cursor: Cursor, frame: Frame, now: Instant) {
        if self.state != State::Open || self.behind {
            return;
        }
        if !self.has_room(1, frame.len(), 0) {
            self.expire(now);
        }
        if self.has_room(1, frame.len(), 0) {
            self.add_bytes(frame.len());
            self.entries.push_back(Entry::Persisted { cursor, frame });
        } else {
            self.behind = true;
        }
    }

    /// Puts the news of a recall in. It is small and there is no other way to it, so it may go beyond the bound of frames, up to another one.
    pub fn put_recall(&mut self, id: Uuid, frame: Frame) {
        if self.state == State::Open && self.entries.len() < self.limits.frames + RECALLS_BEYOND {
            self.add_bytes(frame.len());
            self.entries.push_back(Entry::Recall { id, frame });
        }
    }

    /// The store has messages that this queue was not given.
    pub fn set_behind(&mut self) {
        self.behind = true;
    }

    /// Takes a waiting frame back. True if it was still there, and then it is certain that nobody gets it.
    pub fn revoke(&mut self, number: u64, why: Refusal) -> bool {
        let at = self.entries.iter().position(|e| matches!(e, Entry::OnlineOnly { number: n, .. } if *n == number));
        let Some(entry) = at.and_then(|at| self.entries.remove(at)) else { return false };
        self.refuse(entry, why);
        true
    }

    /// The next thing to write, if any.
    pub fn take(&mut self, now: Instant) -> Option<Taken> {
        if let Some((head, tail)) = self.rest.take() {
            return Some(Taken::Rest(head, tail));
        }
        if let State::Ending(bye) = self.state {
            self.close();
            return Some(Taken::End(bye));
        }
        while let Some(entry) = self.entries.pop_front() {
            match entry {
                Entry::OnlineOnly { ref offer, .. } if offer.expires_at <= now => self.refuse(entry, Refusal::Expired),
                Entry::OnlineOnly { offer, receipt, .. } => {
                    self.sub_bytes(offer.frame.len());
                    return Some(Taken::OnlineOnly(offer.frame, receipt));
                }
                Entry::Persisted { cursor, frame } => {
                    self.sub_bytes(frame.len());
                    return Some(Taken::Persisted(cursor, frame));
                }
                Entry::Recall { id, frame } => {
                    self.sub_bytes(frame.len());
                    return Some(Taken::Recall(id, frame));
                }
            }
        }
        if std::mem::take(&mut self.behind) {
            return Some(Taken::Behind);
        }
        None
    }

    /// Refuses all that waits and lets the stream say goodbye. Only the first reason counts.
    pub fn end(&mut self, bye: Bye) {
        if self.state == State::Open {
            self.close();
            self.state = State::Ending(bye);
        }
    }

    /// Refuses all that waits, and all to come.
    pub fn close(&mut self) {
        self.state = State::Closed;
        self.entries = VecDeque::new();
        self.sub_bytes(self.bytes);
    }

    /// Whether something waits for the stream to take it.
    pub fn has_waiting(&self) -> bool {
        !self.entries.is_empty() || self.behind || self.rest.is_some() || matches!(self.state, State::Ending(_))
    }

    /// Who is to be woken after a change; to be woken after the lock is released.
    pub fn waker(&mut self) -> Option<Waker> {
        self.waker.take()
    }

    fn position_of_key(&self, key: &Arc<str>) -> Option<usize> {
        self.entries
            .iter()
            .position(|e| matches!(e, Entry::OnlineOnly { offer, .. } if offer.collapse_key.as_ref() == Some(key)))
    }

    fn has_room(&self, frames: usize, bytes: usize, freed_bytes: usize) -> bool {
        self.entries.len() + frames <= self.limits.frames
            && self.bytes + bytes - freed_bytes <= self.limits.bytes
            && self.limits.budget.allows(bytes.saturating_sub(freed_bytes))
    }

    fn add_bytes(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.limits.budget.used.fetch_add(bytes, Ordering::Relaxed);
    }

    fn sub_bytes(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.limits.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn refuse(&mut self, entry: Entry, why: Refusal) {
        self.sub_bytes(entry.frame().len());
        if let Entry::OnlineOnly { receipt, .. } = entry {
            receipt.resolve(Verdict::Refused(why));
        }
    }

    fn expire(&mut self, now: Instant) {
        let (keep, late): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.entries)
            .into_iter()
            .partition(|e| !matches!(e, Entry::OnlineOnly { offer, .. } if offer.expires_at <= now));
        self.entries = keep;
        for entry in late {
            self.refuse(entry, Refusal::Expired);
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.sub_bytes(self.bytes);
    }
}

#[cfg(test)]
mod tests;
