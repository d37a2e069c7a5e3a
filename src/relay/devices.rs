//! What devices do: open a stream, say how far they are and whether they are looked at; and who is online.

use super::frame::{Frame, GapReason};
use super::handle::{Error, Relay};
use super::hub::{Seat, Socket};
use super::stream::{Start, Stream, goodbye};
use crate::domain::message::Cursor;
use crate::domain::seat::{DeviceId, DeviceState, KeyId, Presence, SeatInfo, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{Acked, Bye, Departure, Notice, Page, PageLimit, Position, SeatError, Seated, Ticket, Unseated};
use rand::RngExt;
use std::sync::Arc;
use tokio::time::{Instant, sleep};

/// An inbox page has at most so many bytes of payload, however many messages were asked for.
const INBOX_PAGE_BYTES: usize = 4 << 20;

/// From where a stream shows persisted messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// After this one.
    Cursor(Cursor),
    /// From the oldest that is retained.
    Earliest,
    /// Only those to come.
    Now,
    /// From where this device last acknowledged; if it never has, from the oldest.
    LastAck,
}

/// A request to open a stream.
pub struct OpenStream {
    /// Whose.
    pub user: UserId,
    /// On which device.
    pub device: DeviceId,
    /// Where persisted messages begin.
    pub after: After,
    /// Looked at or not.
    pub state: DeviceState,
    /// The stream ends then: the credential's end.
    pub until: Timestamp,
    /// The credential's key.
    pub key: KeyId,
    /// The connection below, if it can be watched.
    pub socket: Option<Arc<Socket>>,
}

impl Relay {
    /// What a device is told that comes while this node is draining: a stream that ends at once. An error status would be final for a
    /// browser's `EventSource`, while this one comes back, and by then to another node or to this one started anew.
    pub fn goodbye_while_draining(&self) -> Option<Frame> {
        self.is_draining().then(|| goodbye(Bye::Draining))
    }

    /// Seats a device and opens its stream. A stream that the same device has open gets `bye` `replaced`.
    pub async fn open_stream(&self, request: OpenStream) -> Result<Stream, Error> {
        self.check_not_draining()?;
        let OpenStream { user, device, after, state, until, key, socket } = request;
        let seat = self.0.hub.open(&user, &device, state, key, socket);
        let seat = seat.map_err(|full| Error::Overloaded(full.to_string()))?;
        self.0.metrics.streams.inc();
        self.0.metrics.streams_opened.inc();
        // From here on the guard leaves the seat again, whatever fails.
        let guard = Leave { relay: self, seat: Some(&seat) };
        let now = Timestamp::now();
        match self.0.plane.seat(seat.info(&self.0.node), self.0.stream.devices_per_user).await {
            Ok(Seated { replaced, arrival }) => {
                if let Some(older) = replaced {
                    self.end_seat(older, Bye::Replaced).await;
                }
                if let Some(version) = arrival {
                    self.0.presence_news.arrived(&user, &device, version);
                }
            }
            // Persisted messages need no presence, and an error would be final for a browser's `EventSource`. The plane seats all streams
            // when it is back (CONTRACT.md 10.8).
            Err(SeatError::Away(away)) => tracing::debug!(%away, "a stream is open without a seat in the directory"),
            Err(error @ SeatError::TooManyDevices(_)) => return Err(error.into()),
        }
        let position = self.0.store.position(&user, &device, now).await?;
        self.0.notes.seen(&user, &device, now);
        guard.disarm();
        let end_at = self.end_of_stream(until, now);
        Ok(Stream::new(self.clone(), seat, start_of(after, position), end_at))
    }

    /// The token's end, or the stream's age at 80 to 100 % of `stream.max_age_s`, whichever comes first.
    fn end_of_stream(&self, until: Timestamp, now: Timestamp) -> Option<(Instant, Bye)> {
        let start = Instant::now();
        let token = start.checked_add(until.since(now)).map(|at| (at, Bye::TokenExpired));
        let age = self.0.stream.max_age.and_then(|max| {
            let share = rand::rng().random_range(0.8..=1.0);
            start.checked_add(max.mul_f64(share)).map(|at| (at, Bye::Rotate))
        });
        [token, age].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    async fn end_seat(&self, seat: SeatInfo, bye: Bye) {
        if seat.node == self.0.node {
            self.0.hub.end(&seat.user, seat.connection, bye);
            return;
        }
        let node = seat.node.clone();
        if let Err(error) = self.0.plane.tell(&node, Notice::Close(seat, bye)).await {
            tracing::warn!(node.id = %node, %error, "another node could not be told to end a stream");
        }
    }

    /// Ends the streams on this node whose key isn't accepted any more.
    pub fn end_unauthorized(&self, is_accepted: impl Fn(KeyId) -> bool) {
        let seats = self.0.hub.seats();
        seats.iter().filter(|seat| !is_accepted(seat.key())).for_each(|seat| seat.end(Bye::Unauthorized));
    }

    /// A stream has ended: its seat is withdrawn at once.
    pub(super) fn leave(&self, seat: &Arc<Seat>) {
        self.0.hub.remove(seat);
        self.0.metrics.streams.dec();
        let (relay, seat) = (self.clone(), seat.clone());
        self.0.notes.seen(seat.user(), seat.device(), Timestamp::now());
        self.0.tasks.spawn(async move {
            match relay.0.plane.unseat(&seat.info(&relay.0.node)).await {
                Ok(Unseated::Last(version)) => relay.went(seat.user(), seat.device(), version, Departure::Closed),
                Ok(Unseated::One | Unseated::Absent) => {}
                Err(error) => tracing::warn!(%error, "a seat could not be withdrawn; it ends with this node's lease"),
            }
        });
    }

    /// A user's last seat has gone. If the user isn't back in time, the operator is told. It is noted though nobody is to be told, or an
    /// endpoint that is configured later would not hear of the next arrival.
    pub(super) fn went(&self, user: &UserId, device: &DeviceId, version: u64, why: Departure) {
        let debounce = self.0.presence_news.debounce();
        let (relay, user, device) = (self.clone(), user.clone(), device.clone());
        self.0.tasks.spawn(async move {
            tokio::select! {
                () = sleep(debounce) => {}
                () = relay.0.tasks.halt.cancelled() => return,
            }
            match relay.0.plane.take_departure(&user, version).await {
                Ok(true) => relay.0.presence_news.departed(&user, &device, version, why),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "a user's departure could not be told of"),
            }
        });
    }

    /// The device has processed all up to `cursor`.
    pub async fn ack(&self, user: &UserId, device: &DeviceId, cursor: Cursor) -> Result<(), Error> {
        let now = Timestamp::now();
        if let Acked::Ahead { newest } = self.0.store.ack(user, device, cursor, now).await? {
            return Err(Error::AckAhead { newest });
        }
        // It is durable; whether it also counts as activity is a matter of presence alone.
        match self.0.plane.touch(user, device, None, now).await {
            Ok(seat) => seat.iter().for_each(|seat| self.note_touched(seat)),
            Err(error) => tracing::debug!(%error, "an ack could not be counted as activity"),
        }
        Ok(())
    }

    /// Notes whether the device is looked at.
    pub async fn set_state(&self, user: &UserId, device: &DeviceId, state: DeviceState) -> Result<(), Error> {
        let touched = self.0.plane.touch(user, device, Some(state), Timestamp::now()).await?;
        let seat = touched.ok_or(Error::NotFound("this device has no open stream"))?;
        if seat.node == self.0.node {
            self.note_touched(&seat);
        } else {
            // The node that holds the stream says it again should the directory forget it.
            let node = seat.node.clone();
            if let Err(error) = self.0.plane.tell(&node, Notice::Touched(seat)).await {
                tracing::debug!(node.id = %node, %error, "another node could not be told of a device's state");
            }
        }
        Ok(())
    }

    /// The seat's own copy of what the directory says of it, if it is here.
    pub(super) fn note_touched(&self, seat: &SeatInfo) {
        if seat.node == self.0.node
            && let Some(held) = self.0.hub.find(&seat.user, seat.connection)
        {
            held.note_touched(seat);
        }
    }

    /// A part of the user's inbox, as a stream of this device would show it.
    pub async fn inbox(&self, user: &UserId, device: &DeviceId, after: After, limit: usize) -> Result<Page, Error> {
        let now = Timestamp::now();
        let position = self.0.store.position(user, device, now).await?;
        let limit = PageLimit { messages: limit, payload_bytes: INBOX_PAGE_BYTES };
        Ok(self.0.store.page(user, start_of(after, position).after, limit, now).await?)
    }

    /// The presence of each user, in order.
    pub async fn presence(&self, users: &[UserId]) -> Result<Vec<Presence>, Error> {
        Ok(self.locate(users).await?)
    }

    /// Ends a device's stream.
    pub async fn kick(&self, user: &UserId, device: &DeviceId) -> Result<(), Error> {
        let presences = self.locate(std::slice::from_ref(user)).await?;
        let seat = presences.into_iter().flat_map(|p| p.seats).find(|seat| seat.device == *device);
        let seat = seat.ok_or(Error::NotFound("this device is not online"))?;
        // Withdrawn first, so that it is offline when this is answered, whatever its stream does.
        match self.0.plane.unseat(&seat).await? {
            Unseated::Absent => return Err(Error::NotFound("this device is not online")),
            Unseated::One => {}
            Unseated::Last(version) => self.went(user, device, version, Departure::Kicked),
        }
        self.end_seat(seat, Bye::Kicked).await;
        Ok(())
    }

    /// Keeps a ticket for one use.
    pub async fn put_ticket(&self, digest: [u8; 32], ticket: Ticket) -> Result<(), Error> {
        Ok(self.0.plane.put_ticket(digest, ticket).await?)
    }

    /// Uses a ticket up.
    pub async fn take_ticket(&self, digest: [u8; 32]) -> Result<Option<Ticket>, Error> {
        Ok(self.0.plane.take_ticket(digest, Timestamp::now()).await?)
    }
}

struct Leave<'a> {
    relay: &'a Relay,
    seat: Option<&'a Arc<Seat>>,
}

impl Leave<'_> {
    fn disarm(mut self) {
        self.seat = None;
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if let Some(seat) = self.seat {
            self.relay.leave(seat);
        }
    }
}

/// Applies CONTRACT.md 4, "Start". One that lies beyond all that was given out (as after restoring an older store) is put right, or the
/// stream would drop what comes as already seen.
fn start_of(after: After, position: Position) -> Start {
    let Position { acked, lost_to, newest } = position;
    let (from, gap) = match after {
        After::Now => (newest, None),
        After::Earliest => (lost_to, None),
        After::LastAck => acked.map_or((lost_to, None), |acked| checked(acked, lost_to, newest)),
        After::Cursor(cursor) => checked(cursor, lost_to, newest),
    };
    Start { after: from, gap, newest }
}

fn checked(start: Cursor, lost_to: Cursor, newest: Cursor) -> (Cursor, Option<GapReason>) {
    if start > newest {
        (newest, Some(GapReason::Ahead))
    } else if start < lost_to {
        (lost_to, Some(GapReason::Expired))
    } else {
        (start, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_device_without_acks_begins_at_the_oldest_and_knows_of_no_gap() {
        let position = Position { acked: None, lost_to: Cursor::new(4), newest: Cursor::new(9) };
        let start = start_of(After::LastAck, position);
        assert_eq!((start.after, start.gap), (Cursor::new(4), None));
    }

    proptest! {
        #[test]
        fn a_start_never_lies_where_messages_would_be_missed(
            acked in proptest::option::of(0_u64..30), lost in 0_u64..20, more in 0_u64..10, asked in 0_u64..40, pick in 0_usize..4
        ) {
            let position = Position { acked: acked.map(Cursor::new), lost_to: Cursor::new(lost), newest: Cursor::new(lost + more) };
            let after = [After::Now, After::Earliest, After::LastAck, After::Cursor(Cursor::new(asked))][pick];
            let start = start_of(after, position);
            prop_assert!(start.after >= position.lost_to && start.after <= position.newest);
            let wish = match after {
                After::Cursor(c) => Some(c),
                After::LastAck => position.acked,
                After::Now | After::Earliest => None,
            };
            prop_assert_eq!(start.gap.is_some(), wish.is_some_and(|w| w != start.after));
        }
    }
}
