//! What every [`Store`] must do. A backend's tests say `store_suite!(open)`, where `open().await` gives a fresh store, with
//! [`RETENTION`] and [`INBOX_MAX`], that derefs to it.

pub use super::groups::*;
pub use super::large::*;
use crate::domain::callback::{Callback, CallbackState, Decision, Endpoint, LastError, Settlement};
use crate::domain::message::{Cursor, Message, PushWish, RawJson};
use crate::domain::seat::{DeviceId, GroupId, UserId};
use crate::domain::time::Timestamp;
use crate::domain::trace::TraceContext;
use crate::ports::{
    Acked, Append, Appended, CallbackContent, CallbackEntry, CallbackFilter, DeviceNote, Leases, MessageStatus, Page,
    PageLimit, Position, Progress, Store, StoreKey, Stored,
};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Of the stores under test.
pub const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);
/// Of the stores under test.
pub const INBOX_MAX: u64 = 40;
const ALL: PageLimit = PageLimit { messages: 1000, payload_bytes: usize::MAX };

/// So many minutes after the beginning of the tests.
pub fn at(minutes: u64) -> Timestamp {
    Timestamp::from_ms(1_800_000_000_000).plus(Duration::from_secs(60 * minutes))
}

/// At the end of the retention of what was sent at the beginning.
fn the_end() -> Timestamp {
    at(0).plus(RETENTION)
}

pub fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

pub fn device(name: &str) -> DeviceId {
    DeviceId::parse(name).unwrap()
}

pub fn c(n: u64) -> Cursor {
    Cursor::new(n)
}

pub fn message_id(at: Timestamp) -> Uuid {
    uuid::Builder::from_unix_timestamp_millis(at.as_ms().unsigned_abs(), &rand::random()).into_uuid()
}

/// A message to these users with all callbacks due at once.
pub fn to_at(users: &[&str], sent_at: Timestamp) -> Append {
    Append {
        message: Message {
            id: message_id(sent_at),
            from: user("alice"),
            group: None,
            kind: "chat".into(),
            payload: RawJson::from_checked(Bytes::from_static(br#"{"n": 12345678901234567890, "a":1.50}"#)),
            online_only: false,
            sent_at,
        },
        expires_at: sent_at.plus(RETENTION),
        push: PushWish::Plain,
        recipients: users.iter().map(|name| user(name)).collect(),
        synced: false,
        storage_callback: true,
        push_due: vec![sent_at; users.len()],
        lease: Leases::default(),
        key: None,
        trace: None,
    }
}

fn to(users: &[&str]) -> Append {
    to_at(users, at(0))
}

/// The same, kept for so many minutes.
fn brief(users: &[&str], minutes: u64) -> Append {
    Append { expires_at: at(minutes), ..to(users) }
}

pub fn leased(mut append: Append) -> Append {
    append.lease = Leases { storage: true, push: true };
    append
}

pub fn keyed(mut append: Append, key: &str, body: u8, expires_at: Timestamp) -> Append {
    append.key = Some(StoreKey { key: key.to_owned(), body: [body; 32], expires_at });
    append
}

fn traced(mut append: Append, state: Option<&str>) -> Append {
    append.trace = TraceContext::of_headers("00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01", state);
    assert!(append.trace.is_some());
    append
}

pub async fn sent(store: &dyn Store, append: Append) -> (Stored, Vec<Callback>) {
    match store.append(append).await.unwrap() {
        Appended::New(stored, callbacks) => (stored, callbacks),
        other @ (Appended::Repeat(_) | Appended::InProgress | Appended::OtherBody) => panic!("not new: {other:?}"),
    }
}

async fn page(store: &dyn Store, name: &str, after: u64, now: Timestamp) -> Page {
    store.page(&user(name), c(after), ALL, now).await.unwrap()
}

pub fn cursors(page: &Page) -> Vec<u64> {
    page.entries.iter().map(|entry| entry.cursor.get()).collect()
}

async fn status(store: &dyn Store, id: Uuid) -> MessageStatus {
    store.message(id, at(0)).await.unwrap().unwrap()
}

async fn position(store: &dyn Store, name: &str, now: Timestamp) -> Position {
    store.position(&user(name), &device("phone"), now).await.unwrap()
}

async fn due(store: &dyn Store, endpoint: Endpoint, now: Timestamp) -> Vec<Callback> {
    store.lease_due(endpoint, now, 100).await.unwrap()
}

async fn settle(store: &dyn Store, callback: &Callback, attempts: u32, decision: Decision) {
    store.settle(vec![Settlement { callback: callback.clone(), attempts, decision }], at(0)).await.unwrap();
}

fn error(detail: &str) -> LastError {
    LastError { status: Some(503), detail: detail.to_owned() }
}

fn note(name: &str, device_name: &str, minutes: u64, delivered: Option<(u64, u64)>) -> DeviceNote {
    DeviceNote {
        user: user(name),
        device: device(device_name),
        seen_at: at(minutes),
        delivered: delivered.map(|(after, to)| (c(after), c(to))),
    }
}

async fn note_one(store: &dyn Store, device_note: DeviceNote) {
    store.note_devices(vec![device_note]).await.unwrap();
}

async fn sweep_all(store: &dyn Store, now: Timestamp) {
    for _ in 0..1000 {
        if !store.sweep(now).await.unwrap() {
            return;
        }
    }
    panic!("sweeping doesn't come to an end");
}

/// Waits until it is so.
pub async fn eventually(so: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !so().await {
        assert!(Instant::now() < deadline, "it never came to be");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn filter(state: Option<CallbackState>) -> CallbackFilter {
    CallbackFilter { endpoint: None, state, after: None, limit: 100 }
}

async fn listed(store: &dyn Store, state: CallbackState) -> Vec<CallbackEntry> {
    store.callbacks(filter(Some(state))).await.unwrap()
}

const NOTHING: Progress = Progress { state: CallbackState::Off, attempts: 0 };
const WAITING: Progress = Progress { state: CallbackState::Waiting, attempts: 0 };

// === Sending and reading ===

pub async fn a_message_is_read_back_as_it_was_sent(store: &dyn Store) {
    let mut append = to(&["bob", "carol"]);
    append.message.group = Some(GroupId::parse("team").unwrap());
    let (stored, callbacks) = sent(store, append.clone()).await;
    assert_eq!(stored.id, append.message.id);
    assert_eq!(stored.sent_at, at(0));
    assert_eq!(stored.expires_at, append.expires_at);
    assert_eq!(stored.recipients, [(user("bob"), c(1)), (user("carol"), c(1))]);
    assert_eq!(callbacks, [], "nothing was to be leased");
    for name in ["bob", "carol"] {
        let page = page(store, name, 0, at(0)).await;
        assert_eq!(page.entries[0].message, append.message);
        assert_eq!((cursors(&page), page.next, page.more), (vec![1], c(1), false));
    }
    let found = status(store, stored.id).await;
    assert_eq!((found.message, found.expires_at), (append.message, append.expires_at));
}

pub async fn who_never_had_a_message_has_an_empty_inbox(store: &dyn Store) {
    let page = page(store, "nobody", 5, at(0)).await;
    assert_eq!((cursors(&page), page.next, page.more), (vec![], c(5), false));
    assert_eq!(position(store, "nobody", at(0)).await, Position::default());
    assert_eq!(store.message(message_id(at(0)), at(0)).await.unwrap(), None);
}

pub async fn numbers_are_contiguous_per_user_from_one(store: &dyn Store) {
    for (users, expected) in
        [(vec!["bob"], vec![1]), (vec!["carol", "bob"], vec![1, 2]), (vec!["bob", "carol"], vec![3, 2])]
    {
        let (stored, _) = sent(store, to(&users)).await;
        let given: Vec<u64> = stored.recipients.iter().map(|(_, cursor)| cursor.get()).collect();
        assert_eq!(given, expected);
    }
    assert_eq!(
        store.newest(&[user("carol"), user("nobody"), user("bob")]).await.unwrap(),
        [c(2), Cursor::START, c(3)],
        "in the order asked for"
    );
}

pub async fn senders_at_the_same_time_get_different_numbers(store: &dyn Store) {
    let all = join_all((0..INBOX_MAX).map(|_| sent(store, to(&["bob"])))).await;
    let mut numbers: Vec<u64> = all.iter().map(|(stored, _)| stored.recipients[0].1.get()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=INBOX_MAX).collect::<Vec<_>>());
    assert_eq!(cursors(&page(store, "bob", 0, at(0)).await), numbers);
}

pub async fn a_page_ends_at_its_bounds(store: &dyn Store) {
    let size = to(&["bob"]).message.payload.as_bytes().len();
    for _ in 0..5 {
        sent(store, to(&["bob"])).await;
    }
    for (after, messages, payload_bytes, expected, more) in [
        (0, 2, usize::MAX, vec![1, 2], true),
        (2, 3, usize::MAX, vec![3, 4, 5], false),
        (0, 100, 3 * size, vec![1, 2, 3], true),
        (0, 100, 3 * size - 1, vec![1, 2], true),
        (3, 100, 1, vec![4], true),
        (4, 0, 0, vec![5], false),
        (5, 10, 10, vec![], false),
    ] {
        let page = store.page(&user("bob"), c(after), PageLimit { messages, payload_bytes }, at(0)).await.unwrap();
        let next = expected.last().copied().unwrap_or(5);
        assert_eq!((cursors(&page), page.next, page.more), (expected, c(next), more));
    }
}

pub async fn a_write_happens_even_if_its_future_is_dropped(store: &dyn Store) {
    assert!(store.append(to(&["bob"])).now_or_never().is_none(), "it was to be in flight");
    eventually(async || store.newest(&[user("bob")]).await.unwrap() == [c(1)]).await;
}

pub async fn leases_of_an_answer_that_nobody_took_are_given_back(store: &dyn Store) {
    assert!(store.append(leased(to(&["bob"]))).now_or_never().is_none());
    eventually(async || due(store, Endpoint::Storage, at(0)).await.len() == 1).await;
}

// === Idempotency ===

pub async fn a_repeat_gets_the_first_answer(store: &dyn Store) {
    let (first, _) = sent(store, keyed(to(&["bob", "carol"]), "k", 1, at(10))).await;
    for _ in 0..2 {
        let again = store.append(keyed(to(&["bob", "carol"]), "k", 1, at(10))).await.unwrap();
        assert!(matches!(again, Appended::Repeat(stored) if stored == first));
    }
    let other = store.append(keyed(to(&["bob", "carol"]), "k", 2, at(10))).await.unwrap();
    assert!(matches!(other, Appended::OtherBody));
    assert_eq!(cursors(&page(store, "bob", 0, at(0)).await), [1], "nothing was stored twice");
    assert_eq!(due(store, Endpoint::Push, at(0)).await.len(), 2, "nor called back");
}

pub async fn a_key_is_peeked_at_without_being_taken(store: &dyn Store) {
    assert_eq!(store.peek_key("k", at(0)).await.unwrap(), None);
    sent(store, keyed(to(&["bob"]), "k", 7, at(10))).await;
    assert_eq!(store.peek_key("k", at(9)).await.unwrap(), Some([7; 32]));
    assert_eq!(store.peek_key("k", at(10)).await.unwrap(), None);
}

pub async fn an_expired_key_is_used_anew(store: &dyn Store) {
    sent(store, keyed(to(&["bob"]), "k", 1, at(10))).await;
    let (second, _) = sent(store, keyed(to_at(&["bob"], at(10)), "k", 2, at(20))).await;
    assert_eq!(second.recipients, [(user("bob"), c(2))]);
    let repeat = store.append(keyed(to_at(&["bob"], at(19)), "k", 2, at(20))).await.unwrap();
    assert!(matches!(repeat, Appended::Repeat(stored) if stored == second));
}

pub async fn equal_sends_at_the_same_time_are_stored_once(store: &dyn Store) {
    let all = join_all((0..20).map(|_| store.append(keyed(to(&["bob"]), "k", 1, at(10))))).await;
    let new = all.iter().filter(|answer| matches!(answer, Ok(Appended::New(..)))).count();
    let repeats = all.iter().filter(|answer| matches!(answer, Ok(Appended::Repeat(_)))).count();
    assert_eq!((new, repeats), (1, 19));
    assert_eq!(cursors(&page(store, "bob", 0, at(0)).await), [1]);
}

pub async fn a_repeat_is_answered_after_the_message_has_gone(store: &dyn Store) {
    let (first, _) = sent(store, keyed(brief(&["bob"], 1), "k", 1, at(60))).await;
    sweep_all(store, at(30)).await;
    let again = store.append(keyed(to_at(&["bob"], at(30)), "k", 1, at(60))).await.unwrap();
    assert!(matches!(again, Appended::Repeat(stored) if stored == first));
}

// === Expiry, trimming and positions ===

pub async fn what_has_expired_is_a_hole_swept_or_not(store: &dyn Store) {
    for append in [to(&["bob"]), brief(&["bob"], 5), to(&["bob"]), brief(&["bob"], 5)] {
        sent(store, append).await;
    }
    assert_eq!(cursors(&page(store, "bob", 0, at(4)).await), [1, 2, 3, 4]);
    for swept in [false, true] {
        if swept {
            sweep_all(store, at(5)).await;
        }
        let page = page(store, "bob", 0, at(5)).await;
        assert_eq!((cursors(&page), page.next, page.more), (vec![1, 3], c(4), false), "swept: {swept}");
        let position = position(store, "bob", at(5)).await;
        assert_eq!((position.lost_to, position.newest), (Cursor::START, c(4)), "the first is still there");
    }
}

pub async fn an_expired_message_has_no_status(store: &dyn Store) {
    let (stored, _) = sent(store, brief(&["bob"], 5)).await;
    assert!(store.message(stored.id, at(4)).await.unwrap().is_some());
    assert_eq!(store.message(stored.id, at(5)).await.unwrap(), None);
}

pub async fn lost_is_what_expired_before_the_first_that_is_left(store: &dyn Store) {
    for append in [brief(&["bob"], 5), brief(&["bob"], 6), to(&["bob"]), brief(&["bob"], 5)] {
        sent(store, append).await;
    }
    let expected = [(4, 0), (5, 1), (6, 2)];
    for (minute, lost_to) in expected {
        assert_eq!(position(store, "bob", at(minute)).await.lost_to, c(lost_to), "unswept, minute {minute}");
        sweep_all(store, at(minute)).await;
        assert_eq!(position(store, "bob", at(minute)).await.lost_to, c(lost_to), "swept, minute {minute}");
    }
    assert_eq!(position(store, "bob", the_end()).await.lost_to, c(4), "all are gone, unswept");
    sweep_all(store, the_end()).await;
    assert_eq!(position(store, "bob", the_end()).await.lost_to, c(4), "all are gone, swept");
}

pub async fn no_number_is_given_out_twice_after_a_sweep(store: &dyn Store) {
    for _ in 0..3 {
        sent(store, brief(&["bob"], 5)).await;
    }
    sweep_all(store, at(5)).await;
    assert_eq!(store.newest(&[user("bob")]).await.unwrap(), [c(3)]);
    let (stored, _) = sent(store, to_at(&["bob"], at(5))).await;
    assert_eq!(stored.recipients[0].1, c(4));
    assert_eq!(cursors(&page(store, "bob", 0, at(5)).await), [4]);
}

pub async fn only_the_newest_are_kept_per_user(store: &dyn Store) {
    for n in 1..=INBOX_MAX * 2 {
        sent(store, to(&["bob"])).await;
        let gone = n.saturating_sub(INBOX_MAX);
        let page = page(store, "bob", 0, at(0)).await;
        assert_eq!(cursors(&page), (gone + 1..=n).collect::<Vec<_>>());
        assert_eq!(position(store, "bob", at(0)).await.lost_to, c(gone));
    }
}

pub async fn sweeping_comes_to_an_end_and_leaves_what_has_not_expired(store: &dyn Store) {
    let names: Vec<String> = (0..1500).map(|n| format!("u{n}")).collect();
    let many: Vec<&str> = names.iter().map(String::as_str).collect();
    sent(store, to(&many)).await;
    sent(store, to_at(&many, at(1))).await;
    assert!(store.sweep(the_end()).await.unwrap(), "one bite isn't all of it");
    sweep_all(store, the_end()).await;
    for name in ["u0", "u700", "u1499"] {
        assert_eq!(cursors(&page(store, name, 0, the_end()).await), [2]);
        assert_eq!(position(store, name, the_end()).await, Position { acked: None, lost_to: c(1), newest: c(2) });
    }
    assert!(!store.sweep(the_end()).await.unwrap());
}

pub async fn acks_only_move_forward_and_never_ahead(store: &dyn Store) {
    for _ in 0..3 {
        sent(store, to(&["bob"])).await;
    }
    let (bob, phone) = (user("bob"), device("phone"));
    assert_eq!(position(store, "bob", at(0)).await.acked, None);
    for (cursor, answer, acked) in
        [(2, Acked::Done, 2), (1, Acked::Done, 2), (4, Acked::Ahead { newest: c(3) }, 2), (3, Acked::Done, 3)]
    {
        assert_eq!(store.ack(&bob, &phone, c(cursor), at(0)).await.unwrap(), answer);
        assert_eq!(position(store, "bob", at(0)).await.acked, Some(c(acked)));
    }
    let nobody = user("nobody");
    let ahead = store.ack(&nobody, &phone, c(1), at(0)).await.unwrap();
    assert_eq!(ahead, Acked::Ahead { newest: Cursor::START });
    assert_eq!(store.ack(&nobody, &phone, Cursor::START, at(0)).await.unwrap(), Acked::Done);
    assert_eq!(position(store, "nobody", at(0)).await.acked, Some(Cursor::START));
}

pub async fn status_names_the_devices_that_took_it(store: &dyn Store) {
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(sent(store, to(&["bob"])).await.0.id);
    }
    let notes = vec![
        note("bob", "phone", 0, Some((0, 2))),
        note("bob", "tablet", 0, Some((2, 3))),
        note("bob", "phone", 0, Some((3, 4))),
        note("bob", "watch", 0, None),
    ];
    store.note_devices(notes).await.unwrap();
    store.ack(&user("bob"), &device("tablet"), c(2), at(0)).await.unwrap();
    let expected: [(&[&str], &[&str]); 4] =
        [(&["phone"], &["tablet"]), (&["phone"], &["tablet"]), (&["tablet"], &[]), (&["phone"], &[])];
    for (id, (delivered, acked)) in ids.into_iter().zip(expected) {
        let bob = status(store, id).await.recipients.remove(0);
        let names = |devices: &[DeviceId]| devices.iter().map(|d| d.as_str().to_owned()).collect::<Vec<_>>();
        assert_eq!((names(&bob.delivered_to), names(&bob.acked_by)), (to_strings(delivered), to_strings(acked)));
    }
}

fn to_strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

// === Callbacks ===

pub async fn without_callbacks_none_is_made(store: &dyn Store) {
    let append = Append { push: PushWish::Off, push_due: Vec::new(), storage_callback: false, ..leased(to(&["bob"])) };
    let (stored, callbacks) = sent(store, append).await;
    assert_eq!(callbacks, []);
    let found = status(store, stored.id).await;
    assert_eq!((found.storage, found.recipients[0].push), (NOTHING, NOTHING));
    assert_eq!(store.callbacks(filter(None)).await.unwrap(), []);
}

pub async fn new_callbacks_are_leased_to_who_has_room_for_them(store: &dyn Store) {
    let (stored, callbacks) = sent(store, leased(to(&["bob", "carol"]))).await;
    let about: Vec<_> = callbacks.iter().map(|cb| (cb.endpoint, cb.recipient.clone())).collect();
    let expected = [
        (Endpoint::Storage, None),
        (Endpoint::Push, Some((user("bob"), c(1)))),
        (Endpoint::Push, Some((user("carol"), c(1)))),
    ];
    assert_eq!(about, expected);
    assert!(callbacks.iter().all(|cb| cb.message == stored.id && cb.attempts == 0 && cb.due_at == at(0)));
    for endpoint in Endpoint::ALL {
        assert_eq!(due(store, endpoint, at(1)).await, [], "they are leased already");
    }
    let found = status(store, stored.id).await;
    assert_eq!((found.storage, found.recipients[1].push), (WAITING, WAITING));
}

pub async fn due_callbacks_are_leased_once_and_oldest_first(store: &dyn Store) {
    for minutes in [3, 1, 2] {
        sent(store, Append { push_due: vec![at(minutes)], ..to(&["bob"]) }).await;
    }
    let recipients =
        |leased: Vec<Callback>| -> Vec<u64> { leased.into_iter().map(|cb| cb.recipient.unwrap().1.get()).collect() };
    assert_eq!(recipients(due(store, Endpoint::Push, at(0)).await), Vec::<u64>::new());
    assert_eq!(recipients(store.lease_due(Endpoint::Push, at(3), 2).await.unwrap()), [2, 3]);
    assert_eq!(recipients(due(store, Endpoint::Push, at(3)).await), [1]);
    assert_eq!(recipients(due(store, Endpoint::Push, at(3)).await), Vec::<u64>::new());
    assert_eq!(due(store, Endpoint::Storage, at(0)).await.len(), 3, "the other endpoint has its own");
}

pub async fn a_lease_gives_the_same_callback_as_the_append(store: &dyn Store) {
    let (_, mut callbacks) = sent(store, leased(to(&["bob"]))).await;
    for callback in &callbacks {
        settle(store, callback, 0, Decision::Release(callback.due_at, None)).await;
    }
    let mut again = due(store, Endpoint::Storage, at(0)).await;
    again.extend(due(store, Endpoint::Push, at(0)).await);
    callbacks.sort_by_key(|cb| cb.id);
    again.sort_by_key(|cb| cb.id);
    assert_eq!(again, callbacks);
}

pub async fn decisions_are_kept_with_the_message(store: &dyn Store) {
    let (stored, callbacks) = sent(store, leased(to(&["bob", "carol"]))).await;
    settle(store, &callbacks[0], 1, Decision::Sent).await;
    settle(store, &callbacks[1], 0, Decision::NotNeeded).await;
    settle(store, &callbacks[2], 3, Decision::Dead(error("gone"))).await;
    let found = status(store, stored.id).await;
    let progress = |state, attempts| Progress { state, attempts };
    assert_eq!(found.storage, progress(CallbackState::Sent, 1));
    assert_eq!(found.recipients[0].push, progress(CallbackState::NotNeeded, 0));
    assert_eq!(found.recipients[1].push, progress(CallbackState::Dead, 3));
    for endpoint in Endpoint::ALL {
        assert_eq!(due(store, endpoint, at(1000)).await, [], "nothing is left to do");
    }
    let entries = store.callbacks(filter(None)).await.unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].state, &entries[0].last_error), (CallbackState::Dead, &Some(error("gone"))));
}

pub async fn a_failed_attempt_is_tried_again_later(store: &dyn Store) {
    let (stored, callbacks) = sent(store, leased(to(&["bob"]))).await;
    settle(store, &callbacks[1], 2, Decision::Retry(at(5), error("busy"))).await;
    assert_eq!(due(store, Endpoint::Push, at(4)).await, []);
    let push = status(store, stored.id).await.recipients[0].push;
    assert_eq!(push, Progress { state: CallbackState::Failing, attempts: 2 });
    let listed = listed(store, CallbackState::Failing).await;
    assert_eq!((listed.len(), &listed[0].last_error), (1, &Some(error("busy"))));
    let again = due(store, Endpoint::Push, at(5)).await;
    assert_eq!(again, [Callback { attempts: 2, due_at: at(5), ..callbacks[1].clone() }]);
    settle(store, &again[0], 3, Decision::Sent).await;
    let push = status(store, stored.id).await.recipients[0].push;
    assert_eq!(push, Progress { state: CallbackState::Sent, attempts: 3 });
}

pub async fn a_released_callback_is_as_it_was(store: &dyn Store) {
    let (stored, callbacks) = sent(store, leased(to(&["bob"]))).await;
    settle(store, &callbacks[0], 0, Decision::Release(at(2), Some(error("paused")))).await;
    assert_eq!(status(store, stored.id).await.storage, WAITING);
    let entry = listed(store, CallbackState::Waiting).await.into_iter().find(|e| e.callback.id == callbacks[0].id);
    assert_eq!(entry.unwrap().last_error, Some(error("paused")));
    assert_eq!(due(store, Endpoint::Storage, at(1)).await, []);
    let again = due(store, Endpoint::Storage, at(2)).await;
    assert_eq!(again, [Callback { due_at: at(2), ..callbacks[0].clone() }]);
    settle(store, &again[0], 0, Decision::Release(at(3), None)).await;
    let entry = listed(store, CallbackState::Waiting).await.into_iter().find(|e| e.callback.id == callbacks[0].id);
    assert_eq!(entry.unwrap().last_error, Some(error("paused")), "no error takes none away");
}

pub async fn a_late_settlement_changes_nothing(store: &dyn Store) {
    let (stored, callbacks) = sent(store, leased(to(&["bob"]))).await;
    settle(store, &callbacks[0], 1, Decision::Sent).await;
    for late in [Decision::Retry(at(1), error("x")), Decision::Dead(error("x")), Decision::NotNeeded] {
        settle(store, &callbacks[0], 9, late).await;
    }
    assert_eq!(status(store, stored.id).await.storage, Progress { state: CallbackState::Sent, attempts: 1 });
    assert_eq!(due(store, Endpoint::Storage, at(9)).await, []);
    assert_eq!(listed(store, CallbackState::Dead).await, []);
}

pub async fn a_storage_callback_tells_the_message_and_all_places(store: &dyn Store) {
    let append = traced(leased(to(&["bob", "carol"])), None);
    let (stored, callbacks) = sent(store, append.clone()).await;
    let expected = CallbackContent::Stored {
        synced: false,
        message: append.message,
        expires_at: append.expires_at,
        recipients: stored.recipients,
        trace: append.trace,
    };
    assert_eq!(store.content(&callbacks[..1], at(0)).await.unwrap(), [expected]);
}

pub async fn a_push_callback_tells_what_is_unread_and_the_devices(store: &dyn Store) {
    for append in [to(&["bob"]), to(&["bob"]), brief(&["bob"], 1)] {
        sent(store, append).await;
    }
    store.ack(&user("bob"), &device("tablet"), c(1), at(1)).await.unwrap();
    note_one(store, note("bob", "phone", 2, None)).await;
    note_one(store, note("bob", "phone", 1, None)).await;
    let wish = PushWish::With(RawJson::from_checked(Bytes::from_static(br#"{"title":"hi"}"#)));
    let append = traced(Append { push: wish.clone(), ..leased(to(&["bob"])) }, Some("congo=t61,rojo=1"));
    let (_, callbacks) = sent(store, append.clone()).await;
    let expected = CallbackContent::Push {
        message: append.message,
        expires_at: append.expires_at,
        push: wish,
        unread: 2,
        devices: vec![(device("phone"), at(2)), (device("tablet"), at(1))],
        trace: append.trace,
    };
    assert_eq!(store.content(&callbacks[1..], at(3)).await.unwrap(), [expected]);
}

pub async fn no_push_is_needed_once_a_device_has_it_or_it_is_gone(store: &dyn Store) {
    let names = ["acked", "delivered", "behind", "nobody"];
    let (_, callbacks) = sent(store, leased(Append { expires_at: at(9), ..to(&names) })).await;
    let (_, other) = sent(store, leased(to(&["behind"]))).await;
    store.ack(&user("acked"), &device("phone"), c(1), at(0)).await.unwrap();
    note_one(store, note("delivered", "phone", 0, Some((0, 1)))).await;
    store.ack(&user("behind"), &device("phone"), c(1), at(0)).await.unwrap();
    let pushes = [callbacks[1..].to_vec(), other[1..].to_vec()].concat();
    let needed = |contents: Vec<CallbackContent>| -> Vec<bool> {
        contents.iter().map(|content| *content != CallbackContent::NotNeeded).collect()
    };
    assert_eq!(needed(store.content(&pushes, at(8)).await.unwrap()), [false, false, false, true, true]);
    assert_eq!(needed(store.content(&pushes, at(9)).await.unwrap()), [false, false, false, false, true], "expired");
    sweep_all(store, at(9)).await;
    assert_eq!(needed(store.content(&pushes, at(9)).await.unwrap()), [false, false, false, false, true], "swept");
}

pub async fn a_message_is_kept_for_its_storage_callback_until_the_retention(store: &dyn Store) {
    let names: Vec<String> = (0..1200).map(|n| format!("u{n}")).chain(["bob".to_owned()]).collect();
    let many: Vec<&str> = names.iter().map(String::as_str).collect();
    let (stored, callbacks) = sent(store, leased(brief(&many, 5))).await;
    sweep_all(store, at(6)).await;
    assert_eq!(cursors(&page(store, "bob", 0, at(0)).await), Vec::<u64>::new(), "it has left the inboxes");
    let content = store.content(&callbacks[..1], at(6)).await.unwrap();
    assert!(matches!(&content[0], CallbackContent::Stored { message, recipients, .. }
            if message.id == stored.id && *recipients == stored.recipients));
    sweep_all(store, the_end()).await;
    assert_eq!(store.content(&callbacks[..1], the_end()).await.unwrap(), [CallbackContent::NotNeeded]);
}

pub async fn a_message_kept_for_its_storage_callback_goes_with_it(store: &dyn Store) {
    let (_, callbacks) = sent(store, leased(brief(&["bob"], 5))).await;
    sweep_all(store, at(6)).await;
    let sent = Settlement { callback: callbacks[0].clone(), attempts: 1, decision: Decision::Sent };
    store.settle(vec![sent], at(7)).await.unwrap();
    assert_eq!(store.content(&callbacks[..1], at(7)).await.unwrap(), [CallbackContent::NotNeeded]);
}

pub async fn callbacks_beyond_the_retention_are_forgotten(store: &dyn Store) {
    let (_, callbacks) = sent(store, leased(to(&["bob"]))).await;
    settle(store, &callbacks[1], 1, Decision::Dead(error("x"))).await;
    sent(store, to(&["bob"])).await;
    sweep_all(store, the_end().plus(Duration::from_secs(1))).await;
    assert_eq!(store.callbacks(filter(None)).await.unwrap(), []);
}

pub async fn a_dead_callback_is_revived_by_its_id(store: &dyn Store) {
    let (stored, callbacks) = sent(store, leased(to(&["bob"]))).await;
    settle(store, &callbacks[1], 9, Decision::Dead(error("x"))).await;
    assert!(store.retry(callbacks[1].id, at(3)).await.unwrap());
    assert_eq!(status(store, stored.id).await.recipients[0].push, WAITING);
    assert_eq!(listed(store, CallbackState::Dead).await, []);
    let again = due(store, Endpoint::Push, at(3)).await;
    assert_eq!(again, [Callback { attempts: 0, due_at: at(3), ..callbacks[1].clone() }], "its id stays");
}

pub async fn a_failing_callback_is_made_due_now_unless_it_is_leased(store: &dyn Store) {
    let (_, callbacks) = sent(store, leased(to(&["bob"]))).await;
    let push = &callbacks[1];
    assert!(!store.retry(push.id, at(0)).await.unwrap(), "leased");
    settle(store, push, 1, Decision::Retry(at(500), error("x"))).await;
    assert!(store.retry(push.id, at(1)).await.unwrap());
    let again = due(store, Endpoint::Push, at(1)).await;
    assert_eq!(again, [Callback { attempts: 0, due_at: at(1), ..push.clone() }]);
    settle(store, &again[0], 0, Decision::Release(at(2), None)).await;
    assert!(!store.retry(push.id, at(1)).await.unwrap(), "it waits, and has not failed since");
    assert!(!store.retry(message_id(at(0)), at(1)).await.unwrap(), "unknown");
}

pub async fn all_of_an_endpoint_are_retried_at_once(store: &dyn Store) {
    let count = 1100;
    let names: Vec<String> = (0..count / 10).map(|n| format!("u{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut callbacks = Vec::new();
    for n in 0..10 {
        callbacks.extend(sent(store, leased(Append { storage_callback: n == 0, ..to(&names) })).await.1);
    }
    let bury = |callback: &Callback| Settlement {
        callback: callback.clone(),
        attempts: 9,
        decision: Decision::Dead(error("x")),
    };
    store.settle(callbacks.iter().map(bury).collect(), at(0)).await.unwrap();
    assert_eq!(store.retry_all(Some(Endpoint::Push), CallbackState::Failing, at(1)).await.unwrap(), 0);
    assert_eq!(store.retry_all(Some(Endpoint::Push), CallbackState::Waiting, at(1)).await.unwrap(), 0);
    assert_eq!(store.retry_all(Some(Endpoint::Push), CallbackState::Dead, at(1)).await.unwrap(), count);
    assert_eq!(store.retry_all(None, CallbackState::Dead, at(1)).await.unwrap(), 1, "the storage callback");
    assert_eq!(store.backlog(Endpoint::Push, at(1)).await.unwrap().pending, count);
}

pub async fn callbacks_are_listed_in_pages_by_state_and_endpoint(store: &dyn Store) {
    for n in 0..3 {
        let (_, callbacks) = sent(store, leased(to(&["bob"]))).await;
        settle(store, &callbacks[0], 1, Decision::Retry(at(100 - n), error("x"))).await;
        settle(store, &callbacks[1], 1, Decision::Dead(error("y"))).await;
    }
    sent(store, to(&["bob"])).await;
    let all = store.callbacks(filter(None)).await.unwrap();
    assert_eq!(all.len(), 8);
    assert!(all.is_sorted_by_key(|entry| entry.callback.id));
    assert!(all.iter().all(|entry| entry.created_at == at(0)));
    let mut paged = Vec::new();
    loop {
        let after = paged.last().map(|entry: &CallbackEntry| entry.callback.id);
        let page = store.callbacks(CallbackFilter { after, limit: 3, ..filter(None) }).await.unwrap();
        if page.is_empty() {
            break;
        }
        paged.extend(page);
    }
    assert_eq!(paged, all);
    for (state, endpoint, count) in [
        (CallbackState::Failing, Endpoint::Storage, 3),
        (CallbackState::Failing, Endpoint::Push, 0),
        (CallbackState::Dead, Endpoint::Push, 3),
        (CallbackState::Waiting, Endpoint::Push, 1),
        (CallbackState::Waiting, Endpoint::Storage, 1),
        (CallbackState::Sent, Endpoint::Storage, 0),
    ] {
        let narrow = CallbackFilter { endpoint: Some(endpoint), ..filter(Some(state)) };
        let found = store.callbacks(narrow).await.unwrap();
        assert_eq!(found.len(), count, "{state:?} {endpoint:?}");
        assert!(found.iter().all(|entry| entry.state == state && entry.callback.endpoint == endpoint));
    }
}

pub async fn the_backlog_counts_what_is_pending_and_dead(store: &dyn Store) {
    assert_eq!(store.backlog(Endpoint::Push, at(9)).await.unwrap(), crate::ports::Backlog::default());
    let (_, callbacks) = sent(store, leased(to(&["bob", "carol"]))).await;
    sent(store, Append { push_due: vec![at(5)], ..to(&["bob"]) }).await;
    settle(store, &callbacks[1], 1, Decision::Dead(error("x"))).await;
    settle(store, &callbacks[2], 1, Decision::Retry(at(3), error("x"))).await;
    for (minute, oldest_due) in [(2, None), (4, Some(at(3)))] {
        let backlog = store.backlog(Endpoint::Push, at(minute)).await.unwrap();
        assert_eq!((backlog.pending, backlog.dead, backlog.oldest_due), (2, 1, oldest_due));
    }
}

/// Makes a test of each rule.
macro_rules! store_suite {
    ($open:path; $($rule:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $rule() {
                let store = $open().await;
                $crate::backend::conformance::store::$rule(&*store).await;
            }
        )*
    };
    ($open:path) => {
        $crate::backend::conformance::store::store_suite! { $open;
            a_message_is_read_back_as_it_was_sent
            who_never_had_a_message_has_an_empty_inbox
            numbers_are_contiguous_per_user_from_one
            senders_at_the_same_time_get_different_numbers
            a_page_ends_at_its_bounds
            a_write_happens_even_if_its_future_is_dropped
            leases_of_an_answer_that_nobody_took_are_given_back
            a_repeat_gets_the_first_answer
            a_key_is_peeked_at_without_being_taken
            an_expired_key_is_used_anew
            equal_sends_at_the_same_time_are_stored_once
            a_repeat_is_answered_after_the_message_has_gone
            what_has_expired_is_a_hole_swept_or_not
            an_expired_message_has_no_status
            lost_is_what_expired_before_the_first_that_is_left
            no_number_is_given_out_twice_after_a_sweep
            only_the_newest_are_kept_per_user
            sweeping_comes_to_an_end_and_leaves_what_has_not_expired
            acks_only_move_forward_and_never_ahead
            status_names_the_devices_that_took_it
            without_callbacks_none_is_made
            new_callbacks_are_leased_to_who_has_room_for_them
            due_callbacks_are_leased_once_and_oldest_first
            a_lease_gives_the_same_callback_as_the_append
            decisions_are_kept_with_the_message
            a_failed_attempt_is_tried_again_later
            a_released_callback_is_as_it_was
            a_late_settlement_changes_nothing
            a_storage_callback_tells_the_message_and_all_places
            a_push_callback_tells_what_is_unread_and_the_devices
            no_push_is_needed_once_a_device_has_it_or_it_is_gone
            a_message_is_kept_for_its_storage_callback_until_the_retention
            a_message_kept_for_its_storage_callback_goes_with_it
            callbacks_beyond_the_retention_are_forgotten
            a_dead_callback_is_revived_by_its_id
            a_failing_callback_is_made_due_now_unless_it_is_leased
            all_of_an_endpoint_are_retried_at_once
            callbacks_are_listed_in_pages_by_state_and_endpoint
            the_backlog_counts_what_is_pending_and_dead
            members_come_and_go_and_are_counted
            members_are_listed_in_the_order_of_their_bytes
            a_group_is_bounded_and_a_change_is_all_or_nothing
            changes_at_the_same_time_are_counted_right
            every_change_has_another_version
            a_deleted_group_has_no_members
            a_recalled_message_is_a_hole_everywhere
            a_recall_is_called_back_and_its_push_is_not
            a_recall_that_nobody_took_is_found_by_the_next_lease
            the_senders_own_copy_shows_to_whom_it_went
            a_send_to_many_reaches_each_of_them_once
            a_repeat_of_a_send_to_many_gets_the_first_answer
            a_repeat_while_a_send_to_many_is_written_is_told_so
            others_are_written_while_a_send_to_many_is
            a_send_to_many_happens_although_its_caller_is_gone
            a_recall_from_many_is_a_hole_everywhere_at_once
            a_recall_waits_until_all_have_it
            inboxes_are_trimmed_by_sends_to_many_too
        }
    };
}
pub(crate) use store_suite;
