//! The one way in for a message: refuse while draining, heed the idempotency key, then online-only or persisted.

use super::before_send::Rejected;
use super::handle::{Admission, Error, Relay};
use super::online_only::Report;
use crate::domain::message::{Audience, Draft, Mode};
use crate::domain::seat::UserId;
use crate::domain::time::Timestamp;
use crate::ports::{Appended, BodyHash, Claimed, KeyClaim, StoreKey, Stored};
use crate::traces;
use bytes::Bytes;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;
use tracing::Instrument;
use uuid::Uuid;

/// For how long an online-only send's key is remembered (CONTRACT.md 3).
const ONLINE_ONLY_WINDOW: Duration = Duration::from_mins(10);

/// An `Idempotency-Key` with what it was sent with.
#[derive(Clone, Debug)]
pub struct SendKey {
    /// The caller's text.
    pub key: String,
    /// SHA-256 of the request's body.
    pub body: BodyHash,
}

/// What a send is answered with.
#[derive(Clone, Debug)]
pub struct Sent {
    /// By the kind of message.
    pub answer: Answer,
    /// It is the first answer of its idempotency key once more: nothing was sent this time.
    pub replayed: bool,
    /// How to show it.
    pub show: Show,
}

/// How the answer to a send is shown.
#[derive(Clone, Copy, Debug)]
pub struct Show {
    /// What became of it at each recipient.
    pub recipients: bool,
    /// It went to a group: how many recipients there were.
    pub summary: bool,
}

impl Show {
    fn of(draft: &Draft) -> Self {
        Self { recipients: draft.show_recipients, summary: matches!(draft.to, Audience::Group(_)) }
    }
}

/// See [`Sent`].
#[derive(Clone, Debug)]
pub enum Answer {
    /// What became of an online-only message.
    OnlineOnly(Report),
    /// A persisted message is durable.
    Persisted(Stored),
}

/// An online-only message that was taken in, to be answered before its outcomes are known.
#[derive(Clone, Copy, Debug)]
pub struct Accepted {
    /// Of the message.
    pub id: Uuid,
    /// When it was accepted.
    pub sent_at: Timestamp,
    /// It is the first message of its idempotency key once more: nothing is sent this time.
    pub replayed: bool,
}

/// An online-only send before anything is offered.
enum Begun {
    /// To be sent as this message.
    New(Draft, Uuid, Timestamp),
    /// Its key has been used: the first answer.
    Known(Report),
}

impl Relay {
    /// Sends a message, and answers as CONTRACT.md 3 says.
    ///
    /// # Cancel safety
    /// None: run it in a [`super::finish::Finish`].
    pub async fn send(&self, draft: Draft, key: Option<SendKey>) -> Result<Sent, Error> {
        self.check_not_draining()?;
        let users = self.recipients(&draft).await?;
        let show = Show::of(&draft);
        if matches!(draft.mode, Mode::Persisted { .. }) {
            return self.send_persisted_once(draft, users.to_vec(), key).await;
        }
        match self.begin_online_only(draft, &users, key.as_ref()).await? {
            Begun::Known(report) => Ok(Sent { answer: Answer::OnlineOnly(report), replayed: true, show }),
            Begun::New(draft, id, at) => {
                let report = self.finish_online_only(&draft, &users, id, at, key.as_ref()).await?;
                Ok(Sent { answer: Answer::OnlineOnly(report), replayed: false, show })
            }
        }
    }

    /// Takes an online-only message in and returns before it is offered to anybody (`Prefer: respond-async`, RFC 7240). Offering goes on as a
    /// task, for which `admission` is held.
    ///
    /// # Cancel safety
    /// None: run it in a [`super::finish::Finish`].
    pub async fn send_async(
        &self,
        draft: Draft,
        key: Option<SendKey>,
        admission: Admission,
    ) -> Result<Accepted, Error> {
        self.check_not_draining()?;
        let users = self.recipients(&draft).await?;
        self.0.plane.check().await?;
        match self.begin_online_only(draft, &users, key.as_ref()).await? {
            Begun::Known(report) => Ok(Accepted { id: report.id, sent_at: report.sent_at, replayed: true }),
            Begun::New(draft, id, sent_at) => {
                let relay = self.clone();
                let span = traces::afterwards(draft.trace.as_deref());
                let work = async move {
                    let _admission = admission;
                    if let Err(error) = relay.finish_online_only(&draft, &users, id, sent_at, key.as_ref()).await {
                        tracing::warn!(%error, "an online-only message that was answered 202 could not be sent");
                    }
                };
                self.0.tasks.spawn(work.instrument(span));
                Ok(Accepted { id, sent_at, replayed: false })
            }
        }
    }

    /// The key is taken before anything is offered, so nothing is sent twice whatever happens in between.
    async fn begin_online_only(&self, draft: Draft, users: &[UserId], key: Option<&SendKey>) -> Result<Begun, Error> {
        let (id, now) = (Uuid::now_v7(), Timestamp::now());
        if let Some(key) = key {
            check_other_kind(key, self.0.store.peek_key(&key.key, now).await)?;
            let claim = KeyClaim { body: key.body, now, expires_at: now.plus(ONLINE_ONLY_WINDOW), id };
            match self.0.plane.claim_key(&key.key, claim).await? {
                Claimed::New => {}
                Claimed::InProgress => return Err(Error::KeyInProgress),
                Claimed::OtherBody => return Err(Error::KeyReused),
                Claimed::Answered(answer) => return Ok(Begun::Known(remembered(&draft, &answer, users))),
                Claimed::Abandoned { id, sent_at } => {
                    return Ok(Begun::Known(Report::unconfirmed(&draft, id, sent_at, users)));
                }
            }
        }
        match self.ask_before_send(draft).await {
            Ok(draft) => Ok(Begun::New(draft, id, now)),
            Err(error) => {
                if let Some(key) = key {
                    self.settle(key, None).await;
                }
                Err(error)
            }
        }
    }

    /// To whom a draft goes. Of a group, all members but the sender.
    async fn recipients(&self, draft: &Draft) -> Result<Arc<[UserId]>, Error> {
        match &draft.to {
            Audience::Users(users) => Ok(users.as_slice().into()),
            Audience::Group(group) => self.members_but(group, &draft.from).await,
        }
    }

    async fn finish_online_only(
        &self,
        draft: &Draft,
        users: &[UserId],
        id: Uuid,
        sent_at: Timestamp,
        key: Option<&SendKey>,
    ) -> Result<Report, Error> {
        let result = self.send_online_only(draft, users, id, sent_at).await;
        if let Some(key) = key {
            // Only a refusal before anything was offered gives the key back: such are all errors of an online-only send.
            let answer = result.as_ref().ok().and_then(|report| serde_json::to_vec(report).ok()).map(Bytes::from);
            self.settle(key, answer).await;
        }
        result
    }

    /// What became of a send is answered though it can't be remembered: a repeat is told that it is still running, or that nothing is known.
    async fn settle(&self, key: &SendKey, answer: Option<Bytes>) {
        if let Err(error) = self.0.plane.settle_key(&key.key, answer).await {
            tracing::debug!(%error, "the answer to an idempotency key could not be remembered");
        }
    }

    async fn send_persisted_once(&self, draft: Draft, users: Vec<UserId>, key: Option<SendKey>) -> Result<Sent, Error> {
        let now = Timestamp::now();
        if let Some(key) = &key {
            check_other_kind(key, self.0.plane.peek_key(&key.key).await)?;
        }
        let draft = if self.is_repeat(key.as_ref(), now).await? { draft } else { self.ask_before_send(draft).await? };
        let key = key.map(|key| StoreKey {
            key: key.key,
            body: key.body,
            expires_at: now.plus(self.limits().idempotency_window),
        });
        let show = Show::of(&draft);
        match self.send_persisted(draft, users, key, now).await? {
            Appended::New(stored, _) => Ok(Sent { answer: Answer::Persisted(stored), replayed: false, show }),
            Appended::Repeat(stored) => Ok(Sent { answer: Answer::Persisted(stored), replayed: true, show }),
            Appended::InProgress => Err(Error::KeyInProgress),
            Appended::OtherBody => Err(Error::KeyReused),
        }
    }

    /// A repeat gets its first answer whatever would be said of it now.
    async fn is_repeat(&self, key: Option<&SendKey>, now: Timestamp) -> Result<bool, Error> {
        match key {
            Some(key) if self.0.before_send.is_asked() => Ok(self.0.store.peek_key(&key.key, now).await?.is_some()),
            Some(_) | None => Ok(false),
        }
    }

    async fn ask_before_send(&self, draft: Draft) -> Result<Draft, Error> {
        let asked = self.0.before_send.ask(draft, self.limits().payload_bytes).await;
        asked.map_err(|Rejected(reason)| Error::Rejected(reason))
    }
}

/// Fails if the plane of the other kind of message knows the key with another body. One that is away holds up nothing: each plane does
/// without the other.
fn check_other_kind<E: Display>(key: &SendKey, known: Result<Option<BodyHash>, E>) -> Result<(), Error> {
    match known {
        Ok(Some(body)) if body != key.body => Err(Error::KeyReused),
        Ok(_) => Ok(()),
        Err(error) => {
            tracing::debug!(%error, "whether an idempotency key was used for the other kind of message is not known");
            Ok(())
        }
    }
}

/// The first answer as it was remembered. One that can't be read is one whose outcome is unknown.
fn remembered(draft: &Draft, answer: &[u8], users: &[UserId]) -> Report {
    serde_json::from_slice(answer).unwrap_or_else(|error| {
        tracing::error!(%error, "a remembered answer can't be read");
        Report::unconfirmed(draft, Uuid::now_v7(), Timestamp::now(), users)
    })
}
