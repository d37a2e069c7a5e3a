//! The way of an online-only message: locate the recipients, offer it seat by seat, and report what became of it.
//! Its payload is in the frames and nowhere else (CONTRACT.md 10.1).

use super::frame::{Encoded, Frame, message_frame};
use super::handle::{Error, Relay};
use super::hub::{Offer, Offered};
use crate::domain::message::{DeliverTo, Draft, Message, Mode, Outcome, Summary};
use crate::domain::seat::{DeviceId, Presence, SeatInfo, UserId, order_seats};
use crate::domain::time::Timestamp;
use crate::ports::{Away, Departure, NodeDoor, Notice, OfferError, Refusal, RemoteOffer, Verdict};
use crate::traces;
use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesOrdered;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::Instrument;
use uuid::Uuid;

/// A peer that owes acknowledgements for longer than this comes last (CONTRACT.md 3).
const SILENT: Duration = Duration::from_secs(2);

/// What became of an online-only message (CONTRACT.md 3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = OnlineOnlyReport)]
pub struct Report {
    /// Of the message.
    pub id: Uuid,
    /// Always true.
    pub online_only: bool,
    /// When it was accepted.
    #[schema(value_type = String, format = DateTime)]
    pub sent_at: Timestamp,
    /// The five add up to the recipients.
    pub summary: Summary,
    /// Per recipient, in the order in which the sender named them. To a group only if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub recipients: Option<Vec<RecipientReport>>,
}

/// What became of it at one recipient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RecipientReport {
    /// The recipient.
    #[schema(value_type = String)]
    pub user: UserId,
    /// In a word.
    pub outcome: Outcome,
    /// The devices that took it.
    #[schema(value_type = Vec<String>)]
    pub devices: Vec<DeviceId>,
}

impl Report {
    fn new(draft: &Draft, id: Uuid, sent_at: Timestamp, recipients: Vec<RecipientReport>) -> Self {
        let mut summary = Summary::default();
        for recipient in &recipients {
            summary.add(recipient.outcome, 1);
        }
        let recipients = draft.show_recipients.then_some(recipients);
        Self { id, online_only: true, sent_at, summary, recipients }
    }

    /// Nothing is known of any recipient.
    pub(super) fn unconfirmed(draft: &Draft, id: Uuid, sent_at: Timestamp, users: &[UserId]) -> Self {
        let unknown =
            |user: &UserId| RecipientReport { user: user.clone(), outcome: Outcome::Unconfirmed, devices: vec![] };
        Self::new(draft, id, sent_at, users.iter().map(unknown).collect())
    }
}

/// What is the same for all recipients of one message.
struct Sending {
    deliver_to: DeliverTo,
    collapse_key: Option<Arc<str>>,
    /// How long an offer may wait, counted from `accepted`.
    expires_at: Instant,
    /// The answer waits no longer.
    deadline: Instant,
}

/// So many recipients are served before others get their turn.
const AT_ONCE: usize = 1_000;

impl Relay {
    /// Sends it as the message `id`, accepted at `sent_at`.
    pub(super) async fn send_online_only(
        &self,
        draft: &Draft,
        users: &[UserId],
        id: Uuid,
        sent_at: Timestamp,
    ) -> Result<Report, Error> {
        let accepted = Instant::now();
        let message = Message {
            id,
            from: draft.from.clone(),
            group: draft.to.clone().into_group(),
            kind: draft.kind.clone(),
            payload: draft.payload.clone(),
            online_only: true,
            sent_at,
        };
        let seats = self.seats_of_all(users).await?;
        let span = traces::offer(users.len());
        let sending = self.sending(&draft.mode, accepted);
        let offers = async {
            if let ([user], [seats]) = (users, &seats[..]) {
                let frame = |user: &UserId| message_frame(&message, user, None);
                Report::new(draft, id, sent_at, vec![self.deliver(&sending, user, seats, frame).await])
            } else if draft.show_recipients {
                Report::new(draft, id, sent_at, self.deliver_to_all(&sending, &message, users, &seats).await)
            } else {
                // Most members of a large group are away, and nobody asked for their names.
                let here = |(user, seats): (&UserId, Vec<SeatInfo>)| (!seats.is_empty()).then(|| (user.clone(), seats));
                let (users_here, seats): (Vec<_>, Vec<_>) = users.iter().zip(seats).filter_map(here).unzip();
                let reports = self.deliver_to_all(&sending, &message, &users_here, &seats).await;
                let mut report = Report::new(draft, id, sent_at, reports);
                report.summary.add(Outcome::Offline, users.len() - users_here.len());
                report
            }
        };
        let report = offers.instrument(span.clone()).await;
        traces::offered(&span, &report.summary);
        self.0.metrics.outcomes(&report.summary);
        self.0.metrics.answered(accepted.elapsed());
        Ok(report)
    }

    /// Where these users are: fails rather than take one for offline of whom nothing is known.
    pub(super) async fn locate(&self, users: &[UserId]) -> Result<Vec<Presence>, Away> {
        let presences = traces::within(traces::locate(users.len()), self.0.plane.locate(users)).await?;
        self.check_known(presences.iter().map(|presence| &presence.seats))?;
        Ok(presences)
    }

    /// The same, for those who are to be sent something.
    pub(super) async fn seats_of_all(&self, users: &[UserId]) -> Result<Vec<Vec<SeatInfo>>, Away> {
        let seats = traces::within(traces::locate(users.len()), self.0.plane.seats(users)).await?;
        self.check_known(seats.iter())?;
        Ok(seats)
    }

    fn check_known<'a>(&self, mut seats: impl Iterator<Item = &'a Vec<SeatInfo>>) -> Result<(), Away> {
        if !self.0.plane.knows_all() && seats.any(Vec::is_empty) {
            return Err(Away("not every node has said yet who is online".into()));
        }
        Ok(())
    }

    async fn deliver_to_all<'a>(
        &'a self,
        sending: &'a Sending,
        message: &Message,
        users: &'a [UserId],
        seats: &'a [Vec<SeatInfo>],
    ) -> Vec<RecipientReport> {
        let encoded = Encoded::new(message);
        let frame = |user: &UserId| encoded.for_recipient(user, None);
        let deliver_bite = |users: &'a [UserId], seats: &'a [Vec<SeatInfo>]| {
            let pairs = users.iter().zip(seats);
            pairs.map(move |(user, seats)| self.deliver(sending, user, seats, frame))
        };
        if users.len() <= AT_ONCE {
            return join_all(deliver_bite(users, seats)).await;
        }
        // Other sends on this thread are not to wait for a whole large group. Those to slow devices go on while the next ones begin.
        let mut under_way = FuturesOrdered::new();
        let mut reports = Vec::with_capacity(users.len());
        for (users, seats) in users.chunks(AT_ONCE).zip(seats.chunks(AT_ONCE)) {
            under_way.extend(deliver_bite(users, seats));
            while let Some(report) = under_way.next().now_or_never().flatten() {
                reports.push(report);
            }
            yield_now().await;
        }
        while let Some(report) = under_way.next().await {
            reports.push(report);
        }
        reports
    }

    fn sending(&self, mode: &Mode, accepted: Instant) -> Sending {
        let (deliver_to, ttl, collapse_key) = match mode {
            Mode::OnlineOnly { deliver_to, ttl, collapse_key } => (*deliver_to, *ttl, collapse_key.clone()),
            Mode::Persisted { ttl, .. } => (DeliverTo::EveryDevice, *ttl, None),
        };
        let deadline = accepted + self.limits().answer_wait;
        Sending { deliver_to, collapse_key, expires_at: accepted + ttl, deadline }
    }

    async fn deliver(
        &self,
        sending: &Sending,
        user: &UserId,
        seats: &[SeatInfo],
        frame: impl Fn(&UserId) -> Frame,
    ) -> RecipientReport {
        let (outcome, devices) = match (sending.deliver_to, seats) {
            (_, []) => (Outcome::Offline, vec![]),
            (DeliverTo::OneDevice, seats) => self.to_one_device(sending, seats, &frame(user)).await,
            (DeliverTo::EveryDevice, seats) => self.to_every_device(sending, seats, &frame(user)).await,
        };
        RecipientReport { user: user.clone(), outcome, devices }
    }

    /// The fallthrough rule: the next seat is tried only after a definite refusal, and time passing is none (CONTRACT.md 10.2, 10.3).
    async fn to_one_device(&self, sending: &Sending, seats: &[SeatInfo], frame: &Frame) -> (Outcome, Vec<DeviceId>) {
        let mut seats = seats.to_vec();
        if seats.len() > 1 {
            order_seats(&mut seats, |seat| self.is_silent(seat));
        }
        for (n, seat) in seats.iter().enumerate() {
            let patience = (n + 1 < seats.len()).then_some(self.limits().seat_patience);
            match self.offer(sending, seat, frame, patience).await {
                Ok(Verdict::Taken) => return (Outcome::Delivered, vec![seat.device.clone()]),
                // Too late, or overtaken by a newer one: no other device should show it any more.
                Ok(Verdict::Refused(Refusal::Expired)) => return (Outcome::Expired, vec![]),
                Ok(Verdict::Refused(Refusal::Superseded)) => return (Outcome::Superseded, vec![]),
                Ok(Verdict::Refused(Refusal::Full | Refusal::Closed | Refusal::Revoked))
                | Err(OfferError::NotTaken) => {}
                Err(OfferError::Unknown) => return (Outcome::Unconfirmed, vec![]),
            }
        }
        (Outcome::Offline, vec![])
    }

    async fn to_every_device(&self, sending: &Sending, seats: &[SeatInfo], frame: &Frame) -> (Outcome, Vec<DeviceId>) {
        let verdicts = join_all(seats.iter().map(|seat| self.offer(sending, seat, frame, None))).await;
        let mut takers = vec![];
        let mut outcome = Outcome::Offline;
        for (seat, verdict) in seats.iter().zip(verdicts) {
            let this = match verdict {
                Ok(Verdict::Taken) => {
                    takers.push(seat.device.clone());
                    Outcome::Delivered
                }
                Err(OfferError::Unknown) => Outcome::Unconfirmed,
                Ok(Verdict::Refused(Refusal::Expired)) => Outcome::Expired,
                Ok(Verdict::Refused(Refusal::Superseded)) => Outcome::Superseded,
                Ok(Verdict::Refused(Refusal::Full | Refusal::Closed | Refusal::Revoked))
                | Err(OfferError::NotTaken) => Outcome::Offline,
            };
            // What one device took is delivered; what one may have taken is not known; the rest tells why nobody did.
            outcome = std::cmp::min_by_key(outcome, this, |o| strength(*o));
        }
        (outcome, takers)
    }

    async fn offer(
        &self,
        sending: &Sending,
        seat: &SeatInfo,
        frame: &Frame,
        patience: Option<Duration>,
    ) -> Result<Verdict, OfferError> {
        let now = Instant::now();
        if seat.node != self.0.node {
            let offer = RemoteOffer {
                seat: seat.clone(),
                frame: frame.to_bytes(),
                ttl: sending.expires_at.saturating_duration_since(now),
                patience,
                collapse_key: sending.collapse_key.clone(),
            };
            let answer = self.0.plane.offer(&seat.node, offer);
            let until = sending.deadline.min(now + self.0.confirm_timeout);
            return timeout_at(until, answer).await.unwrap_or(Err(OfferError::Unknown));
        }
        let offer =
            Offer { frame: frame.clone(), expires_at: sending.expires_at, collapse_key: sending.collapse_key.clone() };
        self.offer_here(seat, offer, patience.map(|p| now + p), sending.deadline).await
    }

    /// Offers to a seat of this node and waits for the verdict. A frame that still waits when its patience or its life is over is taken
    /// back, and that is definite; one that still waits at the deadline stays in the queue, and may yet arrive.
    async fn offer_here(
        &self,
        seat: &SeatInfo,
        offer: Offer,
        patience_until: Option<Instant>,
        deadline: Instant,
    ) -> Result<Verdict, OfferError> {
        let expires_at = offer.expires_at;
        let result = match self.0.hub.offer(&seat.user, seat.connection, offer, Instant::now()) {
            Ok(None) => return Ok(Verdict::Taken),
            Ok(Some(offered)) => verdict_of(offered, patience_until, expires_at, deadline).await,
            Err(refusal) => Ok(Verdict::Refused(refusal)),
        };
        if let Ok(Verdict::Refused(refusal)) = result {
            self.0.metrics.refusal(refusal);
        }
        result
    }

    fn is_silent(&self, seat: &SeatInfo) -> bool {
        seat.node == self.0.node
            && self.0.hub.find(&seat.user, seat.connection).is_some_and(|s| s.silent_for(Instant::now()) > SILENT)
    }
}

/// Which outcome speaks for a recipient when devices differ: the smaller.
fn strength(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Delivered => 0,
        Outcome::Unconfirmed => 1,
        Outcome::Superseded => 2,
        Outcome::Expired => 3,
        Outcome::Offline => 4,
    }
}

async fn verdict_of(
    mut offered: Offered,
    patience_until: Option<Instant>,
    expires_at: Instant,
    deadline: Instant,
) -> Result<Verdict, OfferError> {
    let (until, refusal) = match patience_until {
        Some(patience) if patience < expires_at => (patience, Refusal::Revoked),
        _ => (expires_at, Refusal::Expired),
    };
    if until < deadline {
        tokio::select! {
            biased;
            verdict = &mut offered.verdict => return verdict.map_err(|_| OfferError::Unknown),
            () = sleep_until(until) => {}
        }
        if offered.revoke(refusal) {
            return Ok(Verdict::Refused(refusal));
        }
        // It has just left the queue: its verdict is on the way.
    }
    match timeout_at(deadline, &mut offered.verdict).await {
        Ok(Ok(verdict)) => Ok(verdict),
        // A receipt can't be lost without a verdict; and a late one is not waited for.
        Ok(Err(_)) | Err(_) => Err(OfferError::Unknown),
    }
}

/// Offers from other nodes are treated like those of this one.
#[async_trait]
impl NodeDoor for Relay {
    async fn offered(&self, offer: RemoteOffer) -> Result<Verdict, OfferError> {
        let now = Instant::now();
        let expires_at = now + offer.ttl;
        let here = Offer { frame: Frame::whole(&offer.frame), expires_at, collapse_key: offer.collapse_key };
        // The sender's node gives up when its answer is due; here the frame's own life bounds the wait.
        self.offer_here(&offer.seat, here, offer.patience.map(|p| now + p), expires_at + GRACE).await
    }

    async fn noticed(&self, notice: Notice) {
        self.heed(notice);
    }

    fn seats(&self) -> Vec<SeatInfo> {
        self.0.hub.seats().iter().map(|seat| seat.info(&self.0.node)).collect()
    }

    fn holds(&self, seat: &SeatInfo) -> bool {
        self.0.hub.find(&seat.user, seat.connection).is_some()
    }

    fn departed(&self, user: &UserId, device: &DeviceId, version: u64, why: Departure) {
        self.went(user, device, version, why);
    }

    fn resumed(&self) {
        self.0.catch_up.notify_one();
    }
}

/// Long enough for a frame that has just left its queue to be handed on.
const GRACE: Duration = Duration::from_secs(5);
