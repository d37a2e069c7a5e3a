//! The promises of [`Store`] about sending, reading and idempotency.

use super::store::{
    INBOX_MAX, at, brief, c, cursors, due, eventually, keyed, leased, message_id, page, position, sent, status,
    sweep_all, to, to_at, user,
};
use crate::domain::callback::Endpoint;
use crate::domain::message::Cursor;
use crate::domain::seat::GroupId;
use crate::ports::{Appended, PageLimit, Position, Store};
use futures_util::FutureExt;
use futures_util::future::join_all;

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
