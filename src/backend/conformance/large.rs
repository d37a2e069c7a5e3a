//! The promises of [`Store`] about sends to more recipients than one transaction takes.

use super::store::{at, c, cursors, device, eventually, keyed, leased, sent, to_at, user};
use crate::backend::durable::fanout::BITE;
use crate::domain::callback::{Callback, CallbackState, Decision, Endpoint, Settlement};
use crate::domain::message::PushWish;
use crate::domain::time::Timestamp;
use crate::ports::{Append, Appended, CallbackContent, PageLimit, Position, Store, Stored};
use futures_util::FutureExt;
use futures_util::future::join_all;

const ALL: PageLimit = PageLimit { messages: 1000, payload_bytes: usize::MAX };
/// Recipients: two whole parts and one that isn't.
const MANY: usize = 2 * BITE + 203;

fn name(n: usize) -> String {
    format!("u{n:04}")
}

fn to_many(sent_at: Timestamp) -> Append {
    let names: Vec<_> = (0..MANY).map(name).collect();
    to_at(&names.iter().map(String::as_str).collect::<Vec<_>>(), sent_at)
}

fn without_callbacks(append: Append) -> Append {
    Append { push: PushWish::Off, push_due: vec![], storage_callback: false, ..append }
}

async fn inbox(store: &dyn Store, n: usize) -> Vec<u64> {
    cursors(&store.page(&user(&name(n)), c(0), ALL, at(0)).await.unwrap())
}

async fn leased_all(store: &dyn Store, endpoint: Endpoint) -> Vec<Callback> {
    let mut all = Vec::new();
    loop {
        let some = store.lease_due(endpoint, at(1), 400).await.unwrap();
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

async fn newest_of_all(store: &dyn Store) -> Vec<u64> {
    let users: Vec<_> = (0..MANY).map(|n| user(&name(n))).collect();
    store.newest(&users).await.unwrap().into_iter().map(crate::domain::message::Cursor::get).collect()
}

pub async fn a_send_to_many_reaches_each_of_them_once(store: &dyn Store) {
    sent(store, without_callbacks(to_at(&["u0007"], at(0)))).await;
    let append = Append { push_due: vec![at(0); MANY - 1], ..leased(to_many(at(0))) };
    let (stored, callbacks) = sent(store, append.clone()).await;
    let places: Vec<_> = stored.recipients.iter().map(|(user, at)| (user.clone(), at.get())).collect();
    let expected: Vec<_> = (0..MANY).map(|n| (user(&name(n)), 1 + u64::from(n == 7))).collect();
    assert_eq!(places, expected);
    for n in [0, BITE - 1, BITE, MANY - 1] {
        assert_eq!(inbox(store, n).await, [1], "{n}");
    }
    let status = store.message(stored.id, at(0)).await.unwrap().unwrap();
    let shown: Vec<_> = status.recipients.iter().map(|r| (r.user.clone(), r.cursor.get(), r.push.state)).collect();
    let pushed = |n| if n < MANY - 1 { CallbackState::Waiting } else { CallbackState::Off };
    let expected: Vec<_> = expected.into_iter().enumerate().map(|(n, (user, at))| (user, at, pushed(n))).collect();
    assert_eq!(shown, expected);

    let storage: Vec<_> = callbacks.iter().filter(|c| c.endpoint == Endpoint::Storage).collect();
    assert_eq!(storage.len(), 1, "the storage callback is leased to the caller");
    let told = store.content(&[storage[0].clone()], at(0)).await.unwrap();
    let [CallbackContent::Stored { recipients, .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!(recipients, &stored.recipients);
    let mut pushed: Vec<_> = callbacks.iter().filter(|c| c.endpoint == Endpoint::Push).cloned().collect();
    pushed.extend(leased_all(store, Endpoint::Push).await);
    let mut pushed: Vec<_> = pushed.into_iter().map(|c| c.recipient.unwrap()).collect();
    pushed.sort();
    assert_eq!(pushed, stored.recipients[..MANY - 1], "one push each, but for the last");
    assert!(leased_all(store, Endpoint::Storage).await.is_empty());
}

pub async fn a_repeat_of_a_send_to_many_gets_the_first_answer(store: &dyn Store) {
    let append = keyed(to_many(at(0)), "k", 1, at(60));
    let (stored, _) = sent(store, append.clone()).await;
    let again = Append { message: to_many(at(1)).message, ..append.clone() };
    let Appended::Repeat(repeated) = store.append(again).await.unwrap() else { panic!("no repeat") };
    assert_eq!(repeated, stored);
    let other = keyed(to_many(at(1)), "k", 2, at(60));
    assert!(matches!(store.append(other).await.unwrap(), Appended::OtherBody));
    let small = keyed(to_at(&["u0001"], at(1)), "k", 1, at(60));
    let Appended::Repeat(repeated) = store.append(small).await.unwrap() else { panic!("no repeat") };
    assert_eq!(repeated, stored, "whatever has become of the group meanwhile");
    assert_eq!(newest_of_all(store).await, [1; MANY]);
}

pub async fn a_repeat_while_a_send_to_many_is_written_is_told_so(store: &dyn Store) {
    let append = keyed(to_many(at(0)), "k", 1, at(60));
    let first = store.append(append.clone());
    let repeats = async {
        eventually(async || store.peek_key("k", at(0)).await.unwrap().is_some()).await;
        loop {
            match store.append(keyed(to_at(&["u0001"], at(0)), "k", 1, at(60))).await.unwrap() {
                Appended::InProgress => {}
                Appended::Repeat(stored) => return stored,
                other @ (Appended::New(..) | Appended::OtherBody) => panic!("{other:?}"),
            }
        }
    };
    let (first, repeated) = futures_util::join!(first, repeats);
    let Appended::New(stored, _) = first.unwrap() else { panic!("not new") };
    assert_eq!(repeated, stored, "never an answer without all of them");
}

pub async fn others_are_written_while_a_send_to_many_is(store: &dyn Store) {
    let large = async {
        let mut places = Vec::new();
        for _ in 0..4 {
            let (stored, _) = sent(store, without_callbacks(to_many(at(0)))).await;
            places.push(stored);
        }
        places
    };
    let small = async {
        let mut places = Vec::new();
        for n in 0..24 {
            let names = [name(n), name(MANY - 1 - n), name(3)];
            let (stored, _) = sent(
                store,
                without_callbacks(to_at(&names.each_ref().map(String::as_str)[..if n == 3 { 2 } else { 3 }], at(0))),
            )
            .await;
            places.push(stored);
        }
        places
    };
    let (large, small) = futures_util::join!(large, small);
    let mut all: Vec<Vec<u64>> = vec![Vec::new(); MANY];
    for (user, at) in large.iter().chain(&small).flat_map(|stored: &Stored| &stored.recipients) {
        all[user.as_str()[1..].parse::<usize>().unwrap()].push(at.get());
    }
    for (n, places) in all.iter_mut().enumerate() {
        places.sort_unstable();
        assert!(places.iter().copied().eq(1..=places.len() as u64), "{n}: {places:?}");
    }
    assert!(large.iter().all(|stored| stored.recipients.len() == MANY));
}

pub async fn a_send_to_many_happens_although_its_caller_is_gone(store: &dyn Store) {
    assert!(store.append(without_callbacks(to_many(at(0)))).now_or_never().is_none());
    eventually(async || newest_of_all(store).await == [1; MANY]).await;
    let (stored, _) = sent(store, without_callbacks(to_many(at(0)))).await;
    assert!(stored.recipients.iter().all(|(_, at)| *at == c(2)));
}

pub async fn a_recall_from_many_is_a_hole_everywhere_at_once(store: &dyn Store) {
    sent(store, without_callbacks(to_at(&["u0000"], at(0)))).await;
    let (stored, callbacks) = sent(store, leased(to_many(at(0)))).await;
    let told = callbacks.into_iter().find(|c| c.endpoint == Endpoint::Storage).unwrap();
    store.settle(vec![Settlement { callback: told, attempts: 1, decision: Decision::Sent }], at(0)).await.unwrap();
    let push = store.lease_due(Endpoint::Push, at(0), 1).await.unwrap().remove(0);

    let recalled = store.recall(stored.id, true, true, at(0)).await.unwrap().unwrap();
    let names: Vec<_> = stored.recipients.iter().map(|(user, _)| user.clone()).collect();
    assert_eq!(recalled.recipients, names);
    assert!(recalled.callback.is_some());
    let is_gone = async || {
        assert_eq!(store.message(stored.id, at(0)).await.unwrap(), None);
        assert_eq!(inbox(store, 0).await, [1]);
        for n in [1, BITE, MANY - 1] {
            let page = store.page(&user(&name(n)), c(0), ALL, at(0)).await.unwrap();
            assert_eq!((page.entries, page.next, page.more), (vec![], c(1), false), "{n}");
            let position = store.position(&user(&name(n)), &device("phone"), at(0)).await.unwrap();
            assert_eq!(position, Position { acked: None, lost_to: c(0), newest: c(1) }, "{n}: a hole, no gap");
        }
        let content = store.content(std::slice::from_ref(&push), at(0)).await.unwrap();
        assert_eq!(content, [CallbackContent::NotNeeded]);
        assert_eq!(store.recall(stored.id, true, true, at(0)).await.unwrap(), None, "once");
    };
    is_gone().await;
    store.sweep(at(0)).await.unwrap();
    is_gone().await;
    while store.sweep(at(0)).await.unwrap() {}
    is_gone().await;
    let (next, _) = sent(store, without_callbacks(to_many(at(0)))).await;
    assert_eq!(next.recipients[0].1, c(3));
    assert!(next.recipients[1..].iter().all(|(_, at)| *at == c(2)), "no number is given out twice");
    let pushed = store.page(&user("u0001"), c(0), ALL, at(0)).await.unwrap();
    assert_eq!(cursors(&pushed), [2]);
}

pub async fn a_recall_waits_until_all_have_it(store: &dyn Store) {
    for round in 1..=5 {
        let append = without_callbacks(to_many(at(0)));
        let id = append.message.id;
        let (answer, ()) = futures_util::join!(store.append(append), async {
            eventually(async || store.message(id, at(0)).await.unwrap().is_some()).await;
            assert_eq!(store.recall(id, false, false, at(0)).await.unwrap().unwrap().recipients.len(), MANY);
            assert_eq!(store.message(id, at(0)).await.unwrap(), None);
        });
        let Appended::New(stored, _) = answer.unwrap() else { panic!("not new") };
        assert!(stored.recipients.iter().all(|(_, at)| at.get() == round));
        assert_eq!(inbox(store, MANY - 1).await, [] as [u64; 0]);
    }
}

pub async fn inboxes_are_trimmed_by_sends_to_many_too(store: &dyn Store) {
    let large = 70;
    for _ in 0..large {
        sent(store, without_callbacks(to_many(at(0)))).await;
    }
    let newest = join_all([0, MANY - 1].map(|n| inbox(store, n))).await;
    for numbers in newest {
        assert!(numbers.iter().copied().eq(large - super::store::INBOX_MAX + 1..=large), "{numbers:?}");
    }
}
