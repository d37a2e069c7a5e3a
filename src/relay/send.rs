//! The one way in for a message: refuse while draining, heed the idempotency key, then online-only or persisted.

use super::handle::{Error, Relay};
use super::online_only::Report;
use crate::domain::message::{Audience, Draft, Mode};
use crate::domain::seat::UserId;
use crate::domain::time::Timestamp;
use crate::ports::{Appended, BodyHash, Claimed, KeyClaim, StoreKey, Stored};
use bytes::Bytes;
use std::time::Duration;
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
}

/// See [`Sent`].
#[derive(Clone, Debug)]
pub enum Answer {
    /// What became of an online-only message.
    OnlineOnly(Report),
    /// A persisted message is durable.
    Persisted(Stored),
}

impl Relay {
    /// Sends a message, and answers as CONTRACT.md 3 says.
    ///
    /// # Cancel safety
    /// None: run it in a [`super::finish::Finish`].
    pub async fn send(&self, draft: Draft, key: Option<SendKey>) -> Result<Sent, Error> {
        self.check_not_draining()?;
        let users = recipients(&draft)?;
        match draft.mode {
            Mode::OnlineOnly { .. } => match key {
                None => self.send_online_only(&draft, &users, Uuid::now_v7(), Timestamp::now()).await.map(first),
                Some(key) => self.send_online_only_once(&draft, &users, &key).await,
            },
            Mode::Persisted { .. } => self.send_persisted_once(draft, users, key).await,
        }
    }

    /// The key is taken before anything is offered, so nothing is sent twice whatever happens in between.
    async fn send_online_only_once(&self, draft: &Draft, users: &[UserId], key: &SendKey) -> Result<Sent, Error> {
        let now = Timestamp::now();
        if let Some(body) = self.0.store.peek_key(&key.key, now).await?
            && body != key.body
        {
            return Err(Error::KeyReused);
        }
        let id = Uuid::now_v7();
        let claim = KeyClaim { body: key.body, now, expires_at: now.plus(ONLINE_ONLY_WINDOW), id };
        match self.0.plane.claim_key(&key.key, claim).await? {
            Claimed::New => {}
            Claimed::InProgress => return Err(Error::KeyInProgress),
            Claimed::OtherBody => return Err(Error::KeyReused),
            Claimed::Answered(answer) => return Ok(Sent { answer: remembered(&answer, users), replayed: true }),
            Claimed::Abandoned { id, sent_at } => {
                let answer = Answer::OnlineOnly(Report::unconfirmed(id, sent_at, users));
                return Ok(Sent { answer, replayed: true });
            }
        }
        let result = self.send_online_only(draft, users, id, now).await;
        // Only a refusal before anything was offered gives the key back: such are all errors of an online-only send.
        let answer = result.as_ref().ok().and_then(|report| serde_json::to_vec(report).ok()).map(Bytes::from);
        self.0.plane.settle_key(&key.key, answer).await?;
        result.map(first)
    }

    async fn send_persisted_once(&self, draft: Draft, users: Vec<UserId>, key: Option<SendKey>) -> Result<Sent, Error> {
        let now = Timestamp::now();
        if let Some(key) = &key
            && self.0.plane.peek_key(&key.key).await?.is_some_and(|body| body != key.body)
        {
            return Err(Error::KeyReused);
        }
        let key = key.map(|key| StoreKey {
            key: key.key,
            body: key.body,
            expires_at: now.plus(self.limits().idempotency_window),
        });
        match self.send_persisted(draft, users, key, now).await? {
            Appended::New(stored, _) => Ok(Sent { answer: Answer::Persisted(stored), replayed: false }),
            Appended::Repeat(stored) => Ok(Sent { answer: Answer::Persisted(stored), replayed: true }),
            Appended::OtherBody => Err(Error::KeyReused),
        }
    }
}

fn recipients(draft: &Draft) -> Result<Vec<UserId>, Error> {
    match &draft.to {
        Audience::Users(users) => Ok(users.clone()),
        // A group exists while it has members (CONTRACT.md 6), and this version has no way to add one.
        Audience::Group(_) => Err(Error::NotFound("no such group")),
    }
}

fn first(report: Report) -> Sent {
    Sent { answer: Answer::OnlineOnly(report), replayed: false }
}

/// The first answer as it was remembered. One that can't be read is one whose outcome is unknown.
fn remembered(answer: &[u8], users: &[UserId]) -> Answer {
    let report = serde_json::from_slice(answer).unwrap_or_else(|error| {
        tracing::error!(%error, "a remembered answer can't be read");
        Report::unconfirmed(Uuid::now_v7(), Timestamp::now(), users)
    });
    Answer::OnlineOnly(report)
}
