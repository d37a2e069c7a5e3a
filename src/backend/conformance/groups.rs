//! The promises of [`Store`] about groups, recall and the sender's own copy.

use super::store::{at, c, cursors, sent, to_at, user};
use crate::domain::callback::{Decision, Endpoint, Settlement};
use crate::domain::message::Cursor;
use crate::domain::seat::{DeviceId, GroupId, UserId};
use crate::ports::{CallbackContent, Changed, MemberChange, PageLimit, Store};
use futures_util::future::join_all;

const ALL: PageLimit = PageLimit { messages: 1000, payload_bytes: usize::MAX };
const MAX: usize = 5;

fn team() -> GroupId {
    GroupId::parse("team").unwrap()
}

fn users(names: &[&str]) -> Vec<UserId> {
    names.iter().map(|name| user(name)).collect()
}

async fn change(store: &dyn Store, add: &[&str], remove: &[&str]) -> Changed {
    let change = MemberChange { add: users(add), remove: users(remove) };
    store.change_members(&team(), change, MAX).await.unwrap()
}

async fn members(store: &dyn Store) -> Vec<String> {
    let members = store.members(&team(), None, 100).await.unwrap();
    members.iter().map(ToString::to_string).collect()
}

pub async fn members_come_and_go_and_are_counted(store: &dyn Store) {
    assert_eq!(store.group(&team()).await.unwrap(), None);
    assert_eq!(change(store, &[], &["bob"]).await, Changed::Done { added: 0, removed: 0, members: 0 });
    assert_eq!(change(store, &["bob", "alice"], &[]).await, Changed::Done { added: 2, removed: 0, members: 2 });
    assert_eq!(
        change(store, &["bob", "dave"], &["alice", "x"]).await,
        Changed::Done { added: 1, removed: 1, members: 2 }
    );
    assert_eq!(members(store).await, ["bob", "dave"]);
    assert_eq!(store.group(&team()).await.unwrap().unwrap().members, 2);
    assert_eq!(change(store, &[], &["bob", "dave"]).await, Changed::Done { added: 0, removed: 2, members: 0 });
    assert_eq!(store.group(&team()).await.unwrap(), None);
}

pub async fn members_are_listed_in_the_order_of_their_bytes(store: &dyn Store) {
    change(store, &["ä", "B", "a", "_", "💬"], &[]).await;
    assert_eq!(members(store).await, ["B", "_", "a", "ä", "💬"]);
    let page = store.members(&team(), Some(&user("_")), 2).await.unwrap();
    assert_eq!(page, users(&["a", "ä"]));
    assert_eq!(store.members(&GroupId::parse("other").unwrap(), None, 9).await.unwrap(), []);
}

pub async fn a_group_is_bounded_and_a_change_is_all_or_nothing(store: &dyn Store) {
    change(store, &["a", "b", "c", "d"], &[]).await;
    assert_eq!(change(store, &["e", "f"], &[]).await, Changed::TooMany);
    assert_eq!(change(store, &["e", "f", "g"], &["a"]).await, Changed::TooMany);
    assert_eq!(members(store).await, ["a", "b", "c", "d"]);
    assert_eq!(change(store, &["e", "f"], &["a"]).await, Changed::Done { added: 2, removed: 1, members: 5 });
    assert_eq!(change(store, &["e"], &[]).await, Changed::Done { added: 0, removed: 0, members: 5 }, "nothing new");
    let smaller = MemberChange { add: vec![], remove: users(&["b"]) };
    let shrunk = store.change_members(&team(), smaller, 1).await.unwrap();
    assert_eq!(shrunk, Changed::Done { added: 0, removed: 1, members: 4 }, "one that is too large may shrink");
}

pub async fn changes_at_the_same_time_are_counted_right(store: &dyn Store) {
    let names: Vec<String> = (0..40).map(|n| format!("u{n}")).collect();
    let add = |name: &str| {
        let change = MemberChange { add: users(&[name]), remove: vec![] };
        async move { store.change_members(&team(), change, 20).await.unwrap() }
    };
    let changed = join_all(names.iter().map(|name| add(name))).await;
    assert_eq!(changed.iter().filter(|changed| **changed == Changed::TooMany).count(), 20);
    assert_eq!((members(store).await.len(), store.group(&team()).await.unwrap().unwrap().members), (20, 20));
}

pub async fn every_change_has_another_version(store: &dyn Store) {
    let mut seen = vec![];
    for step in 0..5 {
        match step {
            0 | 3 => drop(change(store, &["a", "b"], &[]).await),
            1 => drop(change(store, &[], &["a"]).await),
            2 => assert!(store.delete_group(&team()).await.unwrap()),
            _ => drop(change(store, &["c"], &[]).await),
        }
        if let Some(state) = store.group(&team()).await.unwrap() {
            assert!(!seen.contains(&state.version), "step {step}: {} was used in {seen:?}", state.version);
            seen.push(state.version);
        }
    }
    assert_eq!(seen.len(), 4);
}

pub async fn a_deleted_group_has_no_members(store: &dyn Store) {
    assert!(!store.delete_group(&team()).await.unwrap());
    change(store, &["a", "b"], &[]).await;
    assert!(store.delete_group(&team()).await.unwrap());
    assert!(members(store).await.is_empty());
    assert_eq!(change(store, &["c"], &[]).await, Changed::Done { added: 1, removed: 0, members: 1 });
}

async fn inbox(store: &dyn Store, name: &str) -> (Vec<u64>, Cursor) {
    let page = store.page(&user(name), Cursor::START, ALL, at(0)).await.unwrap();
    (cursors(&page), page.next)
}

pub async fn a_recalled_message_is_a_hole_everywhere(store: &dyn Store) {
    let mut ids = vec![];
    for _ in 0..3 {
        ids.push(sent(store, to_at(&["bob", "carol"], at(0))).await.0.id);
    }
    let recalled = store.recall(ids[1], false, false, at(0)).await.unwrap().unwrap();
    assert_eq!((recalled.recipients, recalled.callback), (users(&["bob", "carol"]), None));
    for name in ["bob", "carol"] {
        assert_eq!(inbox(store, name).await, (vec![1, 3], c(3)));
    }
    assert_eq!(store.message(ids[1], at(0)).await.unwrap(), None);
    assert_eq!(store.recall(ids[1], true, true, at(0)).await.unwrap(), None, "once");
    let position = store.position(&user("bob"), &DeviceId::parse("phone").unwrap(), at(0)).await.unwrap();
    assert_eq!((position.lost_to, position.newest), (Cursor::START, c(3)), "a recall is no loss");
    store.recall(ids[2], false, false, at(0)).await.unwrap().unwrap();
    assert_eq!(inbox(store, "bob").await, (vec![1], c(3)), "also at the end");
    let (next, _) = sent(store, to_at(&["bob"], at(0))).await;
    assert_eq!(next.recipients[0].1, c(4), "no number is given out twice");
    let expired = sent(store, to_at(&["bob"], at(0))).await.0.id;
    assert_eq!(store.recall(expired, false, false, at(60 * 24 * 8)).await.unwrap(), None, "gone by itself");
}

pub async fn a_recall_is_called_back_and_its_push_is_not(store: &dyn Store) {
    let (stored, _) = sent(store, to_at(&["bob"], at(0))).await;
    let waiting = store.lease_due(Endpoint::Storage, at(0), 9).await.unwrap().remove(0);
    let recalled = store.recall(stored.id, true, true, at(1)).await.unwrap().unwrap();
    let callback = recalled.callback.unwrap();
    assert!(callback.recalled && callback.endpoint == Endpoint::Storage && callback.message == stored.id);
    assert!(store.lease_due(Endpoint::Storage, at(2), 9).await.unwrap().is_empty(), "it is leased");
    let push = store.lease_due(Endpoint::Push, at(2), 9).await.unwrap();
    let content = store.content(&[waiting.clone(), callback.clone(), push[0].clone()], at(2)).await.unwrap();
    assert!(matches!(&content[0], CallbackContent::Stored { message, .. } if message.id == stored.id), "told first");
    assert_eq!(content[1..], [CallbackContent::Recalled, CallbackContent::NotNeeded]);
    for callback in [waiting, callback] {
        let decision = Decision::Retry(at(3), crate::domain::callback::LastError::default());
        store.settle(vec![Settlement { callback, attempts: 1, decision }], at(2)).await.unwrap();
    }
    let mut again = store.lease_due(Endpoint::Storage, at(3), 9).await.unwrap();
    again.sort_by_key(|callback| callback.recalled);
    assert_eq!(again.iter().map(|callback| callback.recalled).collect::<Vec<_>>(), [false, true]);
    for callback in again {
        let decision = Decision::Sent;
        store.settle(vec![Settlement { callback: callback.clone(), attempts: 2, decision }], at(3)).await.unwrap();
        let content = store.content(std::slice::from_ref(&callback), at(3)).await.unwrap().remove(0);
        let gone = if callback.recalled { CallbackContent::Recalled } else { CallbackContent::NotNeeded };
        assert_eq!(content, gone, "the message was kept for its own callback alone");
    }
}

pub async fn a_recall_that_nobody_took_is_found_by_the_next_lease(store: &dyn Store) {
    let (stored, _) = sent(store, to_at(&["bob"], at(0))).await;
    assert_eq!(store.recall(stored.id, true, false, at(1)).await.unwrap().unwrap().callback, None);
    let due = store.lease_due(Endpoint::Storage, at(1), 9).await.unwrap();
    assert_eq!(due.iter().map(|callback| callback.recalled).collect::<Vec<_>>(), [false, true]);
}

pub async fn the_senders_own_copy_shows_to_whom_it_went(store: &dyn Store) {
    let mut append = to_at(&["bob", "carol", "alice"], at(0));
    append.synced = true;
    append.push_due.truncate(2);
    let (stored, _) = sent(store, append).await;
    sent(store, to_at(&["bob", "alice"], at(0))).await;
    let page = |name: &'static str| async move { store.page(&user(name), Cursor::START, ALL, at(0)).await.unwrap() };
    let shown: Vec<_> = page("alice").await.entries.into_iter().map(|entry| entry.to).collect();
    assert_eq!(shown, [users(&["bob", "carol"]), vec![]]);
    assert!(page("bob").await.entries.iter().all(|entry| entry.to.is_empty()));
    let status = store.message(stored.id, at(0)).await.unwrap().unwrap();
    assert_eq!((status.synced, status.recipients.len()), (true, 3));
    assert_eq!(store.lease_due(Endpoint::Push, at(0), 9).await.unwrap().len(), 4, "its own copy is not pushed");
    let storage = store.lease_due(Endpoint::Storage, at(0), 1).await.unwrap();
    let content = store.content(&storage, at(0)).await.unwrap().remove(0);
    assert!(matches!(content, CallbackContent::Stored { synced: true, recipients, .. } if recipients.len() == 3));
}
