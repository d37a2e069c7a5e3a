//! The promises of [`Store`] about callbacks.

use super::store::{
    at, brief, c, cursors, device, due, leased, message_id, note, page, sent, status, sweep_all, the_end, to, user,
};
use crate::domain::callback::{Callback, CallbackState, Decision, Endpoint, LastError, Settlement};
use crate::domain::message::{PushWish, RawJson};
use crate::domain::trace::TraceContext;
use crate::ports::{Append, CallbackContent, CallbackEntry, CallbackFilter, DeviceNote, Progress, Store};
use bytes::Bytes;
use std::time::Duration;

fn traced(mut append: Append, state: Option<&str>) -> Append {
    append.trace = TraceContext::of_headers("00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01", state);
    assert!(append.trace.is_some());
    append
}

async fn settle(store: &dyn Store, callback: &Callback, attempts: u32, decision: Decision) {
    store.settle(vec![Settlement { callback: callback.clone(), attempts, decision }], at(0)).await.unwrap();
}

fn error(detail: &str) -> LastError {
    LastError { status: Some(503), detail: detail.to_owned() }
}

async fn note_one(store: &dyn Store, device_note: DeviceNote) {
    store.note_devices(vec![device_note]).await.unwrap();
}

fn filter(state: Option<CallbackState>) -> CallbackFilter {
    CallbackFilter { endpoint: None, state, after: None, limit: 100 }
}

async fn listed(store: &dyn Store, state: CallbackState) -> Vec<CallbackEntry> {
    store.callbacks(filter(Some(state))).await.unwrap()
}

const NOTHING: Progress = Progress { state: CallbackState::Off, attempts: 0 };
const WAITING: Progress = Progress { state: CallbackState::Waiting, attempts: 0 };

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
