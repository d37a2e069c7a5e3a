//! One open stream: catch-up and live joined by the sequence rule, heartbeat, goodbye.
//!
//! The sequence rule (CONTRACT.md 10.5): numbers are contiguous per user, and the stream knows the last that it wrote. Live `n == last + 1`
//! is written, `n <= last` dropped, and `n > last + 1` means: read the store from `last`. So catch-up needs no handover.

use super::frame::{self, Frame, GapReason, HEARTBEAT, entry_frame};
use super::handle::Relay;
use super::hub::{Receipt, Seat, Taken};
use crate::domain::message::Cursor;
use crate::domain::time::Timestamp;
use crate::ports::{Bye, InboxEntry, Page, PageLimit, StoreError, Verdict};
use bytes::Bytes;
use rand::RngExt;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use uuid::Uuid;

/// A page of the store has at most so many messages, and at most `stream.queue_bytes` of payload.
const PAGE_MESSAGES: usize = 100;
/// After the store couldn't be read it is tried again this much later.
const READ_AGAIN: Duration = Duration::from_millis(500);

/// A page, and up to where messages before it are lost, if there are such.
type Reading = Pin<Box<dyn Future<Output = Result<(Page, Option<Cursor>), StoreError>> + Send>>;

/// Where persisted messages begin on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) after: Cursor,
    pub(super) gap: Option<GapReason>,
    pub(super) newest: Cursor,
}

/// See the module's text. Polled by the HTTP answer that carries it; dropping it frees the seat at once.
pub struct Stream {
    relay: Relay,
    seat: Arc<Seat>,
    /// Written in this order before anything else: `ready`, a gap at the start or amid.
    opening: VecDeque<Frame>,
    /// The second part of a frame whose first has been written, and whom to tell then.
    in_hand: Option<(Bytes, Option<Receipt>)>,
    /// The last persisted message that was written, or the start.
    last: Cursor,
    /// The store has messages after `last` that were not offered live.
    behind: bool,
    page: VecDeque<InboxEntry>,
    /// `last` moves here when the page is written: past the holes at its end.
    page_end: Cursor,
    reading: Option<Reading>,
    /// Messages that were recalled while a page is being read, which may hold them.
    recalled: Vec<Uuid>,
    timer: Pin<Box<Sleep>>,
    heartbeat_at: Instant,
    end_at: Option<(Instant, Bye)>,
    /// Nothing else writes to the connection, so the events are framed here.
    has_connection: bool,
    is_over: bool,
}

impl Stream {
    pub(super) fn new(relay: Relay, seat: Arc<Seat>, start: Start, end_at: Option<(Instant, Bye)>) -> Self {
        let ready = frame::ready(seat.user(), seat.device(), relay.node(), start.after);
        let gap = start.gap.map(|reason| frame::gap(reason, start.after));
        seat.note_shown(start.after);
        let heartbeat_at = Instant::now() + relay.0.stream.heartbeat;
        let wake_at = end_at.map_or(heartbeat_at, |(at, _)| at.min(heartbeat_at));
        Self {
            opening: [Some(ready), gap].into_iter().flatten().collect(),
            in_hand: None,
            last: start.after,
            behind: start.newest > start.after,
            page: VecDeque::new(),
            page_end: start.after,
            reading: None,
            recalled: Vec::new(),
            timer: Box::pin(sleep_until(wake_at)),
            heartbeat_at,
            end_at,
            has_connection: seat.has_connection(),
            is_over: false,
            relay,
            seat,
        }
    }

    /// Ends it with a goodbye, which is still to be read from it.
    pub fn end(&self, bye: Bye) {
        self.seat.end(bye);
    }

    /// The next bytes of the stream; `None` when it is over.
    pub fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let now = Instant::now();
        self.seat.unpark();
        if self.is_over {
            return Poll::Ready(None);
        }
        loop {
            if let Poll::Ready(bytes) = self.next_bytes(cx, now) {
                self.seat.note_write(now);
                return Poll::Ready(Some(bytes));
            }
            if self.seat.park(cx) {
                return Poll::Pending;
            }
        }
    }

    fn next_bytes(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Bytes> {
        if let Some((bytes, receipt)) = self.in_hand.take() {
            resolve_taken(receipt);
            return Poll::Ready(bytes);
        }
        loop {
            if let Some(frame) = self.opening.pop_front() {
                return Poll::Ready(self.hand_on(frame, None));
            }
            if let Some(bytes) = self.next_of_page() {
                return Poll::Ready(bytes);
            }
            match self.seat.take(now) {
                Some(Taken::Rest(head, tail)) => return Poll::Ready(self.hand_on_parts(head, tail, None)),
                Some(Taken::OnlineOnly(frame, receipt)) => return Poll::Ready(self.hand_on(frame, Some(receipt))),
                Some(Taken::Persisted(cursor, frame)) => {
                    if let Some(bytes) = self.live(cursor, frame) {
                        return Poll::Ready(bytes);
                    }
                }
                Some(Taken::Recall(id, frame)) => return Poll::Ready(self.recall(id, frame)),
                Some(Taken::Behind) => self.behind = true,
                Some(Taken::End(bye)) => return Poll::Ready(self.goodbye(bye)),
                None if self.poll_reading(cx) => {}
                None => return self.poll_timer(cx, now),
            }
        }
    }

    /// A frame leaves, as a chunk where the stream has its connection for itself.
    fn hand_on(&mut self, frame: Frame, receipt: Option<Receipt>) -> Bytes {
        let (head, tail) = if self.has_connection { frame.into_chunk() } else { frame.into_event() };
        self.hand_on_parts(head, tail, receipt)
    }

    /// Whole, or the first part now and the second at the next poll.
    fn hand_on_parts(&mut self, head: Bytes, tail: Bytes, receipt: Option<Receipt>) -> Bytes {
        if head.is_empty() {
            resolve_taken(receipt);
            return tail;
        }
        self.in_hand = Some((tail, receipt));
        head
    }

    /// The sequence rule for a live message.
    fn live(&mut self, cursor: Cursor, frame: Frame) -> Option<Bytes> {
        if cursor <= self.last {
            return None;
        }
        if cursor > self.last.next() || self.is_catching_up() {
            self.behind = true;
            return None;
        }
        self.written_up_to(cursor);
        Some(self.hand_on(frame, None))
    }

    /// What was read before the recall is not shown after it.
    fn recall(&mut self, id: Uuid, frame: Frame) -> Bytes {
        self.page.retain(|entry| entry.message.id != id);
        if self.reading.is_some() {
            self.recalled.push(id);
        }
        self.hand_on(frame, None)
    }

    fn is_catching_up(&self) -> bool {
        self.behind || self.reading.is_some() || !self.page.is_empty()
    }

    fn written_up_to(&mut self, cursor: Cursor) {
        let (user, device) = (self.seat.user(), self.seat.device());
        self.relay.0.notes.delivered(user, device, self.last, cursor, Timestamp::now());
        self.move_to(cursor);
    }

    fn move_to(&mut self, last: Cursor) {
        self.last = last;
        self.seat.note_shown(last);
    }

    fn next_of_page(&mut self) -> Option<Bytes> {
        let Some(entry) = self.page.pop_front() else {
            // Holes at the page's end count as passed once all before them is written.
            self.move_to(self.last.max(self.page_end));
            return None;
        };
        let own = std::slice::from_ref(self.seat.user());
        let to = if entry.to.is_empty() { own } else { &entry.to };
        let frame = entry_frame(&entry.message, to, Some(entry.cursor));
        self.written_up_to(entry.cursor);
        Some(self.hand_on(frame, None))
    }

    /// Reads the store if the stream is behind. True if there is something to write now.
    fn poll_reading(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            if self.reading.is_none() && self.behind {
                self.behind = false;
                self.reading = Some(self.read_page(None));
            }
            let Some(reading) = &mut self.reading else { return false };
            let Poll::Ready(result) = reading.as_mut().poll(cx) else { return false };
            self.reading = None;
            match result {
                Ok((page, lost_to)) => {
                    self.behind |= page.more;
                    self.page_end = page.next;
                    let recalled = std::mem::take(&mut self.recalled);
                    self.page = page.entries.into();
                    self.page.retain(|entry| !recalled.contains(&entry.message.id));
                    if let Some(lost_to) = lost_to {
                        self.move_to(lost_to);
                        self.opening.push_back(frame::gap(GapReason::Expired, lost_to));
                        return true;
                    }
                    if !self.page.is_empty() {
                        return true;
                    }
                    self.move_to(self.last.max(self.page_end));
                }
                Err(error) => {
                    tracing::debug!(%error, "a stream could not read the store and will try again");
                    self.reading = Some(self.read_page(Some(READ_AGAIN)));
                }
            }
        }
    }

    fn read_page(&self, after_pause: Option<Duration>) -> Reading {
        let relay = self.relay.clone();
        let (user, device, last) = (self.seat.user().clone(), self.seat.device().clone(), self.last);
        let limit = PageLimit { messages: PAGE_MESSAGES, payload_bytes: relay.0.stream.queue_bytes };
        relay.0.metrics.catch_up_pages.inc();
        Box::pin(async move {
            if let Some(pause) = after_pause {
                sleep(pause).await;
            }
            let now = Timestamp::now();
            let page = relay.0.store.page(&user, last, limit, now).await?;
            let hole_to =
                page.entries.first().map_or(page.next, |first| Cursor::new(first.cursor.get().saturating_sub(1)));
            if hole_to <= last {
                return Ok((page, None));
            }
            // Recalled, or no longer kept: a reader so slow is told of the latter as it would be at a start.
            let lost_to = relay.0.store.position(&user, &device, now).await?.lost_to.min(hole_to);
            Ok((page, Some(lost_to).filter(|to| *to > last)))
        })
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Bytes> {
        if self.timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        if let Some((_, bye)) = self.end_at.filter(|(at, _)| *at <= now) {
            self.seat.close();
            return Poll::Ready(self.goodbye(bye));
        }
        if self.heartbeat_at <= now {
            self.heartbeat_at = now + self.relay.0.stream.heartbeat;
        }
        let wake_at = self.end_at.map_or(self.heartbeat_at, |(at, _)| at.min(self.heartbeat_at));
        self.timer.as_mut().reset(wake_at);
        Poll::Ready(self.hand_on(HEARTBEAT, None))
    }

    fn goodbye(&mut self, bye: Bye) -> Bytes {
        self.is_over = true;
        self.hand_on(goodbye(bye), None)
    }
}

pub(super) fn goodbye(bye: Bye) -> Frame {
    let retry = match bye {
        // Those who all lose their stream at once are not to come back all at once.
        Bye::Draining | Bye::Rotate => Some(rand::rng().random_range(500..5_000)),
        Bye::Replaced | Bye::TokenExpired | Bye::Kicked | Bye::Unauthorized => None,
    };
    frame::bye(bye, retry)
}

/// `delivered` means just this: handed to the stream (CONTRACT.md 10.3).
fn resolve_taken(receipt: Option<Receipt>) {
    if let Some(receipt) = receipt {
        receipt.resolve(Verdict::Taken);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.relay.leave(&self.seat);
    }
}
