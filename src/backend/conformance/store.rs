//! What every [`Store`] must do. A backend's tests say `store_suite!(open)`, where `open().await` gives a fresh store, with
//! [`RETENTION`] and [`INBOX_MAX`], that derefs to it.

pub use super::groups::*;
pub use super::keeping::*;
pub use super::large::*;
pub use super::outbox::*;
pub use super::sends::*;
use crate::domain::callback::{Callback, Endpoint};
use crate::domain::message::{Cursor, Message, PushWish, RawJson};
use crate::domain::seat::{DeviceId, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{
    Append, Appended, DeviceNote, Leases, MessageStatus, Page, PageLimit, Position, Store, StoreKey, Stored,
};
use bytes::Bytes;
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
pub fn the_end() -> Timestamp {
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

pub fn to(users: &[&str]) -> Append {
    to_at(users, at(0))
}

/// The same, kept for so many minutes.
pub fn brief(users: &[&str], minutes: u64) -> Append {
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

pub async fn sent(store: &dyn Store, append: Append) -> (Stored, Vec<Callback>) {
    match store.append(append).await.unwrap() {
        Appended::New(stored, callbacks) => (stored, callbacks),
        other @ (Appended::Repeat(_) | Appended::InProgress | Appended::OtherBody) => panic!("not new: {other:?}"),
    }
}

pub async fn page(store: &dyn Store, name: &str, after: u64, now: Timestamp) -> Page {
    store.page(&user(name), c(after), ALL, now).await.unwrap()
}

pub fn cursors(page: &Page) -> Vec<u64> {
    page.entries.iter().map(|entry| entry.cursor.get()).collect()
}

pub async fn status(store: &dyn Store, id: Uuid) -> MessageStatus {
    store.message(id, at(0)).await.unwrap().unwrap()
}

pub async fn position(store: &dyn Store, name: &str, now: Timestamp) -> Position {
    store.position(&user(name), &device("phone"), now).await.unwrap()
}

pub async fn due(store: &dyn Store, endpoint: Endpoint, now: Timestamp) -> Vec<Callback> {
    store.lease_due(endpoint, now, 100).await.unwrap()
}

pub fn note(name: &str, device_name: &str, minutes: u64, delivered: Option<(u64, u64)>) -> DeviceNote {
    DeviceNote {
        user: user(name),
        device: device(device_name),
        seen_at: at(minutes),
        delivered: delivered.map(|(after, to)| (c(after), c(to))),
    }
}

pub async fn sweep_all(store: &dyn Store, now: Timestamp) {
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
