//! Idempotency keys of online-only sends, and stream tickets. Redis' clock ends them, and its memory is their bound.
//!
//! Of a send only the body's hash, the message's id and the outcomes are kept: never its payload.

use super::lease::Run;
use super::link::{Link, was_not_run};
use super::lua::{CLAIM, SETTLE, TAKE, UNCLAIM};
use super::{Plane, away};
use crate::domain::seat::{DeviceId, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{Away, BodyHash, Claimed, KeyClaim, KeyError, Ticket, TicketError};
use bytes::Bytes;
use redis::{RedisError, RedisResult};
use std::time::Duration;
use uuid::Uuid;

/// So much of what Redis could not be told yet is remembered.
const LATE_MAX: usize = 10_000;
const LATE_BYTES_MAX: usize = 32 << 20;

/// What is to become of keys as soon as Redis can be told. A key that nobody settles would be "in progress" until it expires.
#[derive(Default)]
pub(super) struct Late {
    waiting: Vec<(String, Fate)>,
    bytes: usize,
}

/// What is to become of a claimed key.
enum Fate {
    /// It has this answer; `None`: it is given back.
    Settled(Option<Bytes>),
    /// The answer to the claim was lost: it is given back, if it was claimed with this id.
    Unclaimed(Uuid),
}

impl Late {
    /// False if there is no room.
    fn put(&mut self, key: &str, fate: Fate) -> bool {
        let answer = if let Fate::Settled(Some(answer)) = &fate { answer.len() } else { 0 };
        let bytes = self.bytes + key.len() + answer;
        let has_room = self.waiting.len() < LATE_MAX && bytes <= LATE_BYTES_MAX;
        if has_room {
            self.bytes = bytes;
            self.waiting.push((key.to_owned(), fate));
        }
        has_room
    }
}

/// As `CLAIM` answers it.
type Known = (Vec<u8>, String, i64, String, Option<Vec<u8>>);

impl Plane {
    pub(super) async fn claim_key(&self, key: &str, claim: &KeyClaim) -> Result<Claimed, KeyError> {
        let link = self.link()?;
        let life = millis(claim.expires_at.since(claim.now)).max(1);
        let call = CLAIM.on(self.names.key(key)).arg(&claim.body[..]).arg(claim.id.to_string());
        let call = call.arg(claim.now.as_ms()).arg(self.run.to_string()).arg(life).arg(ahead(claim.now));
        let known: Option<Known> = call.run(&link).await.map_err(|error| {
            if is_full(&error) {
                return KeyError::Full;
            }
            if !was_not_run(&error) && self.late.lock().put(key, Fate::Unclaimed(claim.id)) {
                self.reconcile.notify_one();
            }
            away(error).into()
        })?;
        let Some((body, id, sent_at, by, answer)) = known else { return Ok(Claimed::New) };
        if body != claim.body {
            return Ok(Claimed::OtherBody);
        }
        if let Some(answer) = answer {
            return Ok(Claimed::Answered(answer.into()));
        }
        let by = Run::parse(&by).ok_or_else(|| away("a key is held by no node"))?;
        let is_running = |plane: &Self| by == plane.run || plane.roll.borrow().is_running(&by);
        if !is_running(self) {
            self.ask_for_nodes().await?;
        }
        if is_running(self) {
            return Ok(Claimed::InProgress);
        }
        Ok(Claimed::Abandoned { id: Uuid::parse_str(&id).map_err(away)?, sent_at: Timestamp::from_ms(sent_at) })
    }

    /// If Redis can't be told now it will be: the sender is to learn what became of its message all the same.
    pub(super) async fn settle_key(&self, key: &str, answer: Option<Bytes>) -> Result<(), Away> {
        let fate = Fate::Settled(answer);
        let told = match self.link() {
            Ok(link) => self.tell_fate(&link, key, &fate).await.map_err(away),
            Err(away) => Err(away),
        };
        match told {
            Err(_) if self.late.lock().put(key, fate) => self.reconcile.notify_one(),
            told => return told,
        }
        Ok(())
    }

    async fn tell_fate(&self, link: &Link, key: &str, fate: &Fate) -> RedisResult<()> {
        let key = self.names.key(key);
        match fate {
            Fate::Settled(Some(answer)) => SETTLE.on(key).arg(&answer[..]).run(link).await,
            Fate::Settled(None) => link.run(redis::cmd("DEL").arg(key)).await,
            Fate::Unclaimed(id) => UNCLAIM.on(key).arg(id.to_string()).run(link).await,
        }
    }

    /// What Redis could not be told before.
    pub(super) async fn tell_late_fates(&self, link: &Link) -> RedisResult<()> {
        let waiting = std::mem::take(&mut *self.late.lock()).waiting;
        let mut waiting = waiting.into_iter();
        while let Some((key, fate)) = waiting.next() {
            let told = self.tell_fate(link, &key, &fate).await;
            if let Err(error) = told
                && !was_not_run(&error)
            {
                let mut late = self.late.lock();
                for (key, fate) in [(key, fate)].into_iter().chain(waiting) {
                    late.put(&key, fate);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    pub(super) async fn peek_key(&self, key: &str) -> Result<Option<BodyHash>, Away> {
        let link = self.link()?;
        let command = redis::cmd("HGET").arg(self.names.key(key)).arg("body").clone();
        let body: Option<Vec<u8>> = link.run(&command).await.map_err(away)?;
        Ok(body.and_then(|body| body.try_into().ok()))
    }

    pub(super) async fn put_ticket(&self, digest: &[u8; 32], ticket: &Ticket) -> Result<(), TicketError> {
        let link = self.link()?;
        let life = millis(ticket.expires_at.since(Timestamp::now())).max(1);
        let Ticket { user, device, expires_at, stream_until } = ticket;
        let device = device.as_ref().map_or("", DeviceId::as_str);
        let text = format!("{user}\n{device}\n{}\n{}", expires_at.as_ms(), stream_until.as_ms());
        let command = redis::cmd("SET").arg(self.names.ticket(digest)).arg(text).arg("PX").arg(life).clone();
        link.run(&command).await.map_err(|error| if is_full(&error) { TicketError::Full } else { away(error).into() })
    }

    pub(super) async fn take_ticket(&self, digest: &[u8; 32], now: Timestamp) -> Result<Option<Ticket>, Away> {
        let link = self.link()?;
        let text: Option<String> = TAKE.on(self.names.ticket(digest)).arg(ahead(now)).run(&link).await.map_err(away)?;
        Ok(text.and_then(|text| read_ticket(&text)))
    }
}

fn read_ticket(text: &str) -> Option<Ticket> {
    let mut lines = text.split('\n');
    let user = UserId::parse(lines.next()?).ok()?;
    let device = match lines.next()? {
        "" => None,
        device => Some(DeviceId::parse(device).ok()?),
    };
    let mut time = || Some(Timestamp::from_ms(lines.next()?.parse().ok()?));
    Some(Ticket { user, device, expires_at: time()?, stream_until: time()? })
}

/// Redis' clock is what counts, and a caller's `now` is the present. Where it lies ahead of it, what has less life left than that is over.
fn ahead(now: Timestamp) -> u64 {
    millis(now.since(Timestamp::now()))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Redis has no memory left for it.
fn is_full(error: &RedisError) -> bool {
    error.code() == Some("OOM") || error.detail().is_some_and(|detail| detail.contains("OOM command not allowed"))
}
