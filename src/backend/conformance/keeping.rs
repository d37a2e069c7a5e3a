//! The promises of [`Store`] about what is kept for how long, and about where devices stand.

use super::store::{
    INBOX_MAX, at, brief, c, cursors, device, note, page, position, sent, status, sweep_all, the_end, to, to_at, user,
};
use crate::domain::message::Cursor;
use crate::domain::seat::DeviceId;
use crate::ports::{Acked, Position, Store};

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
