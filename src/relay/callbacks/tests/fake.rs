//! The callback half of a store, in memory, which can be away, slow and forgetful. No message was ever stored.

use crate::domain::callback::{Callback, CallbackState, Decision, Endpoint, LastError, Settlement};
use crate::domain::message::{Cursor, Message, PushWish, RawJson};
use crate::domain::seat::{DeviceId, GroupId, UserId};
use crate::domain::time::Timestamp;
use crate::ports::*;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use uuid::Uuid;

#[derive(Clone, Debug)]
pub struct FakeRow {
    pub callback: Callback,
    pub state: CallbackState,
    pub leased: bool,
    pub last_error: Option<LastError>,
    pub content: CallbackContent,
}

#[derive(Default)]
pub struct FakeStore {
    rows: Mutex<BTreeMap<Uuid, FakeRow>>,
    pub away: AtomicBool,
    pub refuses_to_settle: AtomicBool,
    pub reads: AtomicUsize,
    pub settles: AtomicUsize,
    pub most_leased: AtomicUsize,
}

pub fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

pub fn message(payload: &str) -> Message {
    Message {
        id: Uuid::now_v7(),
        from: user("alice"),
        group: None,
        kind: "chat".into(),
        payload: RawJson::from_checked(Bytes::from(payload.to_owned())),
        online_only: false,
        sent_at: Timestamp::now(),
    }
}

impl FakeStore {
    /// Makes a callback whose payload is `n`, leased if it is to be handed over.
    pub fn add(&self, endpoint: Endpoint, n: usize, leased: bool, due_in: Duration) -> Callback {
        let message = message(&n.to_string());
        let expires_at = message.sent_at.plus(Duration::from_mins(1));
        let bob = (user("bob"), Cursor::new(n as u64));
        let callback = Callback {
            id: Uuid::now_v7(),
            endpoint,
            message: message.id,
            recalled: false,
            recipient: (endpoint == Endpoint::Push).then(|| bob.clone()),
            attempts: 0,
            due_at: Timestamp::now().plus(due_in),
        };
        let content = match endpoint {
            Endpoint::Storage => {
                CallbackContent::Stored { message, expires_at, synced: false, recipients: vec![bob], trace: None }
            }
            Endpoint::Push => CallbackContent::Push {
                message,
                expires_at,
                push: PushWish::Plain,
                unread: 1,
                devices: vec![(DeviceId::parse("phone").unwrap(), expires_at)],
                trace: None,
            },
        };
        let row =
            FakeRow { callback: callback.clone(), state: CallbackState::Waiting, leased, last_error: None, content };
        self.rows.lock().insert(callback.id, row);
        callback
    }

    /// Makes due callbacks with the payloads 0, 1, 2, ...
    pub fn add_due(&self, endpoint: Endpoint, n: usize) -> Vec<Callback> {
        (0..n).map(|i| self.add(endpoint, i, false, Duration::ZERO)).collect()
    }

    pub fn row(&self, id: Uuid) -> FakeRow {
        self.rows.lock()[&id].clone()
    }

    pub fn set_content(&self, id: Uuid, content: CallbackContent) {
        self.rows.lock().get_mut(&id).unwrap().content = content;
    }

    pub fn count(&self, state: CallbackState) -> usize {
        self.rows.lock().values().filter(|row| row.state == state).count()
    }

    pub fn leased(&self) -> usize {
        self.rows.lock().values().filter(|row| row.leased).count()
    }

    /// The holder of all leases has died.
    pub fn end_leases(&self) {
        self.rows.lock().values_mut().for_each(|row| row.leased = false);
    }

    fn check_away(&self) -> Result<(), StoreError> {
        if self.away.load(SeqCst) { Err(StoreError::Unavailable("away".into())) } else { Ok(()) }
    }
}

fn settle_row(row: &mut FakeRow, settlement: Settlement) {
    row.callback.attempts = settlement.attempts;
    match settlement.decision {
        Decision::Sent => row.state = CallbackState::Sent,
        Decision::NotNeeded => row.state = CallbackState::NotNeeded,
        Decision::Retry(due_at, error) => {
            (row.state, row.callback.due_at, row.last_error) = (CallbackState::Failing, due_at, Some(error));
        }
        Decision::Dead(error) => (row.state, row.last_error) = (CallbackState::Dead, Some(error)),
        Decision::Release(due_at, error) => {
            row.callback.due_at = due_at;
            row.last_error = error.or(row.last_error.take());
        }
    }
}

#[async_trait]
impl Store for FakeStore {
    async fn lease_due(&self, endpoint: Endpoint, now: Timestamp, limit: usize) -> Result<Vec<Callback>, StoreError> {
        self.reads.fetch_add(1, SeqCst);
        self.check_away()?;
        let mut rows = self.rows.lock();
        let mut due: Vec<&mut FakeRow> = rows
            .values_mut()
            .filter(|row| matches!(row.state, CallbackState::Waiting | CallbackState::Failing) && !row.leased)
            .filter(|row| row.callback.endpoint == endpoint && row.callback.due_at <= now)
            .collect();
        due.sort_by_key(|row| (row.callback.due_at, row.callback.id));
        due.truncate(limit);
        let leased = due.into_iter().map(|row| {
            row.leased = true;
            row.callback.clone()
        });
        let leased = leased.collect();
        self.most_leased.fetch_max(rows.values().filter(|row| row.leased).count(), SeqCst);
        Ok(leased)
    }

    async fn content(&self, callbacks: &[Callback], _: Timestamp) -> Result<Vec<CallbackContent>, StoreError> {
        self.check_away()?;
        let rows = self.rows.lock();
        Ok(callbacks.iter().map(|callback| rows[&callback.id].content.clone()).collect())
    }

    async fn settle(&self, settlements: Vec<Settlement>, _: Timestamp) -> Result<(), StoreError> {
        self.settles.fetch_add(1, SeqCst);
        self.check_away()?;
        let mut rows = self.rows.lock();
        for settlement in settlements {
            let row = rows.get_mut(&settlement.callback.id).unwrap();
            // The leases end even if the decisions can't be written.
            row.leased = false;
            if !self.refuses_to_settle.load(SeqCst) && row.callback.due_at == settlement.callback.due_at {
                settle_row(row, settlement);
            }
        }
        if self.refuses_to_settle.load(SeqCst) {
            return Err(StoreError::Overloaded);
        }
        Ok(())
    }

    async fn backlog(&self, endpoint: Endpoint, now: Timestamp) -> Result<Backlog, StoreError> {
        self.check_away()?;
        let rows = self.rows.lock();
        let of = |state| rows.values().filter(move |row| row.callback.endpoint == endpoint && row.state == state);
        let pending: Vec<_> = of(CallbackState::Waiting).chain(of(CallbackState::Failing)).collect();
        Ok(Backlog {
            pending: pending.len() as u64,
            dead: of(CallbackState::Dead).count() as u64,
            oldest_due: pending.iter().map(|row| row.callback.due_at).min().filter(|&due| due <= now),
        })
    }

    async fn append(&self, _: Append) -> Result<Appended, StoreError> {
        unreachable!()
    }
    async fn message(&self, _: Uuid, _: Timestamp) -> Result<Option<MessageStatus>, StoreError> {
        unreachable!()
    }
    async fn peek_key(&self, _: &str, _: Timestamp) -> Result<Option<BodyHash>, StoreError> {
        Ok(None)
    }
    async fn page(&self, _: &UserId, _: Cursor, _: PageLimit, _: Timestamp) -> Result<Page, StoreError> {
        unreachable!()
    }
    async fn position(&self, _: &UserId, _: &DeviceId, _: Timestamp) -> Result<Position, StoreError> {
        Ok(Position::default())
    }
    async fn newest(&self, _: &[UserId]) -> Result<Vec<Cursor>, StoreError> {
        unreachable!()
    }
    async fn ack(&self, _: &UserId, _: &DeviceId, _: Cursor, _: Timestamp) -> Result<Acked, StoreError> {
        unreachable!()
    }
    async fn note_devices(&self, _: Vec<DeviceNote>) -> Result<(), StoreError> {
        unreachable!()
    }
    async fn callbacks(&self, _: CallbackFilter) -> Result<Vec<CallbackEntry>, StoreError> {
        unreachable!()
    }
    async fn retry(&self, _: Uuid, _: Timestamp) -> Result<bool, StoreError> {
        unreachable!()
    }
    async fn retry_all(&self, _: Option<Endpoint>, _: CallbackState, _: Timestamp) -> Result<u64, StoreError> {
        unreachable!()
    }
    async fn sweep(&self, _: Timestamp) -> Result<bool, StoreError> {
        unreachable!()
    }
    async fn check(&self) -> Result<(), StoreError> {
        unreachable!()
    }

    async fn recall(&self, _: Uuid, _: bool, _: bool, _: Timestamp) -> Result<Option<Recalled>, StoreError> {
        unreachable!()
    }

    async fn change_members(&self, _: &GroupId, _: MemberChange, _: usize) -> Result<Changed, StoreError> {
        unreachable!()
    }

    async fn delete_group(&self, _: &GroupId) -> Result<bool, StoreError> {
        unreachable!()
    }

    async fn group(&self, _: &GroupId) -> Result<Option<GroupState>, StoreError> {
        unreachable!()
    }

    async fn members(&self, _: &GroupId, _: Option<&UserId>, _: usize) -> Result<Vec<UserId>, StoreError> {
        unreachable!()
    }

    async fn close(&self) {}
}
