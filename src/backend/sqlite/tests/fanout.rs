//! Sends to many recipients when something ends or fails between two of their parts.

use super::{Fresh, crash_copy, fresh, hand_in, hold_writer, inbox, io_error, open_in};
use crate::backend::conformance::store::{at, c, eventually, keyed, leased, sent, to_at, user};
use crate::backend::durable::fanout::{BITE, Begun, Steps};
use crate::backend::sqlite::SqliteStore;
use crate::backend::sqlite::fanout::{Fanout, Fanouts};
use crate::domain::callback::Endpoint;
use crate::domain::time::Timestamp;
use crate::ports::{Append, Appended, Store, StoreError};
use std::sync::Arc;
use std::time::Duration;

const MANY: usize = 2 * BITE + 203;

fn name(n: usize) -> String {
    format!("u{n}")
}

/// A send whose pushes are due later for some.
fn to_many(sent_at: Timestamp) -> Append {
    let names: Vec<_> = (0..MANY).map(name).collect();
    let append = to_at(&names.iter().map(String::as_str).collect::<Vec<_>>(), sent_at);
    let mut push_due = append.push_due.clone();
    push_due[1] = sent_at.plus(Duration::from_secs(3));
    keyed(Append { push_due, ..append }, "k", 1, sent_at.plus(Duration::from_hours(1)))
}

fn steps(store: &SqliteStore) -> Fanouts {
    Fanouts { queue: Arc::clone(&store.queue), readers: Arc::clone(&store.readers), leases: Arc::clone(&store.leases) }
}

async fn begun(store: &Fresh) -> (Fanouts, Fanout) {
    let steps = steps(store);
    let Ok(Begun::New(fanout)) = steps.begin(to_many(at(0))).await else { panic!("not begun") };
    (steps, fanout)
}

async fn newest(store: &SqliteStore) -> Vec<u64> {
    let users: Vec<_> = (0..MANY).map(|n| user(&name(n))).collect();
    store.newest(&users).await.unwrap().into_iter().map(crate::domain::message::Cursor::get).collect()
}

/// Everybody has it once, it is called back once, each is pushed once, and a repeat gets the whole answer.
async fn is_whole(store: &SqliteStore) {
    eventually(async || store.left_over().await == 0).await;
    assert_eq!(newest(store).await, [1; MANY]);
    for n in [0, BITE, MANY - 1] {
        assert_eq!(inbox(store, &name(n)).await, [1]);
    }
    assert_eq!(store.backlog(Endpoint::Storage, at(0)).await.unwrap().pending, 1);
    assert_eq!(store.backlog(Endpoint::Push, at(0)).await.unwrap().pending, MANY as u64);
    let Appended::Repeat(stored) = store.append(to_many(at(1))).await.unwrap() else { panic!("no repeat") };
    assert!(
        stored.recipients.iter().map(|(user, at)| (user.to_string(), at.get())).eq((0..MANY).map(|n| (name(n), 1)))
    );
    let status = store.message(stored.id, at(0)).await.unwrap().unwrap();
    assert_eq!(status.recipients.len(), MANY);
}

impl SqliteStore {
    async fn left_over(&self) -> u64 {
        self.readers.read(|db| db.query_row("SELECT count(*) FROM fanout", [], |row| row.get(0))).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_begun_is_completed_after_a_crash_at_any_part() {
    for parts in 0..=3 {
        let store = fresh();
        // Without its worker, which would complete the send by itself.
        store.fanouts.close().await;
        let (steps, mut fanout) = begun(&store).await;
        for _ in 0..parts {
            steps.bite(&mut fanout).await.unwrap();
        }
        let copy = crash_copy(store.dir.path());
        let found = open_in(copy.path()).unwrap();
        is_whole(&found).await;
        found.shut();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_whose_answer_was_lost_are_not_done_twice() {
    let store = fresh();
    store.fanouts.close().await;
    let (steps, mut fanout) = begun(&store).await;
    steps.bite(&mut fanout).await.unwrap();
    let mut again = steps.left_over().await.unwrap().remove(0);
    steps.bite(&mut fanout).await.unwrap();
    while steps.bite(&mut again).await.unwrap() {}
    while steps.bite(&mut fanout).await.unwrap() {}
    let (_, first) = steps.finish(fanout).await.unwrap();
    drop(first);
    let (answer, second) = steps.finish(again).await.unwrap();
    assert!(second.take().is_empty(), "no second storage callback");
    let Appended::New(stored, _) = answer else { panic!("{answer:?}") };
    assert_eq!(stored.recipients.len(), MANY);
    let copy = crash_copy(store.dir.path());
    is_whole(&open_in(copy.path()).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushes_made_after_a_crash_are_due_when_the_latest_would_have_been() {
    let store = fresh();
    store.fanouts.close().await;
    let (steps, mut fanout) = begun(&store).await;
    steps.bite(&mut fanout).await.unwrap();
    let copy = crash_copy(store.dir.path());
    let found = open_in(copy.path()).unwrap();
    is_whole(&found).await;
    assert_eq!(found.lease_due(Endpoint::Push, at(0), 5_000).await.unwrap().len(), BITE - 1);
    let later = at(0).plus(Duration::from_secs(3));
    assert_eq!(found.lease_due(Endpoint::Push, later, 5_000).await.unwrap().len(), MANY - BITE + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_fails_is_written_later_and_the_caller_is_told() {
    let store = fresh();
    for n in 0..MANY {
        hand_in(&store, move |db| db.user_or_new(&user(&name(n))).map(|_| ()));
    }
    store.check().await.unwrap();
    let append = leased(to_many(at(0)));
    let id = append.message.id;
    let (outcome, ()) = tokio::join!(store.append(append), async {
        eventually(async || store.message(id, at(0)).await.unwrap().is_some()).await;
        // Whatever step is next shares its batch with a job that fails as a broken disk does.
        let release = hold_writer(&store);
        let failed = hand_in(&store, |_| Err::<(), _>(io_error()));
        drop(release);
        assert!(failed.await.unwrap().is_err());
    });
    // The send may have been whole before the disk broke.
    assert!(matches!(outcome, Err(StoreError::Unavailable(_)) | Ok(Appended::New(..))));
    is_whole(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_recalled_stays_hidden_after_a_crash_and_is_taken_out() {
    let store = fresh();
    let (stored, _) = sent(&*store, to_many(at(0))).await;
    store.recall(stored.id, true, false, at(0)).await.unwrap().unwrap();
    let copy = crash_copy(store.dir.path());
    let found = open_in(copy.path()).unwrap();
    assert_eq!(found.message(stored.id, at(0)).await.unwrap(), None);
    assert_eq!(inbox(&found, "u0").await, [] as [u64; 0]);
    found.sweep(at(0)).await.unwrap();
    while found.sweep(at(0)).await.unwrap() {}
    let left = |table| format!("SELECT count(*) FROM {table}");
    for table in ["inbox", "recalled", "fanout", "fanout_part"] {
        let sql = left(table);
        let rows: u64 = found.readers.read(move |db| db.query_row(&sql, [], |row| row.get(0))).await.unwrap();
        assert_eq!(rows, 0, "{table}");
    }
    assert_eq!(newest(&found).await, [1; MANY]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expires_before_it_has_reached_all_is_completed_and_swept() {
    let store = fresh();
    store.fanouts.close().await;
    let steps = steps(&store);
    let brief = Append { expires_at: at(1), storage_callback: false, key: None, ..to_many(at(0)) };
    let Ok(Begun::New(mut fanout)) = steps.begin(brief).await else { panic!("not begun") };
    steps.bite(&mut fanout).await.unwrap();
    store.sweep(at(2)).await.unwrap();
    while store.sweep(at(2)).await.unwrap() {}
    let copy = crash_copy(store.dir.path());
    let found = open_in(copy.path()).unwrap();
    eventually(async || found.left_over().await == 0).await;
    found.sweep(at(2)).await.unwrap();
    while found.sweep(at(2)).await.unwrap() {}
    let rows: u64 =
        found.readers.read(|db| db.query_row("SELECT count(*) FROM inbox", [], |row| row.get(0))).await.unwrap();
    assert_eq!(rows, 0);
    assert_eq!(newest(&found).await, [1; MANY]);
    assert_eq!(
        found
            .page(&user("u0"), c(0), crate::ports::PageLimit { messages: 9, payload_bytes: 9 }, at(2))
            .await
            .unwrap()
            .entries,
        []
    );
}
