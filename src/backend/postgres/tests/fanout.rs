//! Sends to many recipients: nodes that die or are paused between two parts, answers that are lost, and what others do meanwhile.

use super::*;
use crate::backend::durable::fanout::{Begun, Steps};
use crate::backend::postgres::fanout::Fanout;
use crate::domain::callback::CallbackState;
use crate::ports::Stored;
use std::collections::BTreeSet;
use std::pin::pin;
use tokio::time::timeout;

/// Three parts, the last of which is no whole one.
const MANY: usize = 1_203;
/// What needs no more than a part or two is done long before.
const SOON: Duration = Duration::from_secs(20);

fn names() -> Vec<String> {
    (0..MANY).map(|n| format!("u{n}")).collect()
}

/// A send to all of them, with a key.
fn large() -> Append {
    let names = names();
    keyed(to_at(&names.iter().map(String::as_str).collect::<Vec<_>>(), at(0)), "k", 1, at(60))
}

/// A node whose sends are written by hand. It is taken for a living one until [`ByHand::dies`].
struct ByHand(Fanouts);

impl ByHand {
    async fn at(url: &str) -> Self {
        let counts = (Metrics::new(&mut Registry::default()), Histogram::new([]));
        let db = Connections::new(&connect::config(url).unwrap(), 2, counts).unwrap();
        let leases = Arc::new(Leases::new(Duration::from_secs(3600)));
        run!(db, |db| leases.beat(&db)).unwrap();
        Self(Fanouts {
            db,
            partitions: Arc::new(Partitions::new(RETENTION)),
            leases,
            rules: Rules { retention: RETENTION, inbox_max: 10_000 },
            ids: Arc::default(),
        })
    }

    async fn begin(&self, new: Append) -> Fanout {
        match self.0.begin(new).await.unwrap() {
            Begun::New(fanout) => fanout,
            Begun::Answered((answer, _)) => panic!("not begun: {answer:?}"),
        }
    }

    /// All parts that are missing, and the end.
    async fn complete(&self, mut fanout: Fanout) -> Stored {
        while self.0.bite(&mut fanout).await.unwrap() {}
        stored(self.0.finish(fanout).await.unwrap().0)
    }

    fn dies(&self, database: &Database) {
        database.sql(&format!("DELETE FROM holder WHERE id = '{}'", self.0.leases.me));
    }
}

fn stored(answer: Appended) -> Stored {
    match answer {
        Appended::New(stored, _) | Appended::Repeat(stored) => stored,
        other @ (Appended::InProgress | Appended::OtherBody) => panic!("{other:?}"),
    }
}

/// A store, and a node that writes its sends by hand.
async fn both() -> (Arc<PostgresStore>, ByHand, Database) {
    let database = Postgres::shared().database();
    let store = open_at(database.url(), &roomy()).await.unwrap();
    let hand = ByHand::at(&database.url()).await;
    (store, hand, database)
}

fn count(database: &Database, of: &str) -> usize {
    database.sql(&format!("SELECT count(*) FROM {of}")).parse().unwrap()
}

/// The message is with every recipient once, at these places, with one callback each, and nothing is left of its writing.
fn assert_whole(database: &Database, stored: &Stored) {
    let id = stored.id;
    let rows = database.sql(&format!(
        "SELECT u.name, i.cursor FROM inbox i JOIN users u ON u.id = i.user_id WHERE i.message = '{id}'"
    ));
    let there: BTreeSet<String> = rows.lines().map(str::to_owned).collect();
    let told = stored.recipients.iter().map(|(user, cursor)| format!("{}|{}", user.as_str(), cursor.get()));
    assert_eq!(there, told.collect());
    assert_eq!(rows.lines().count(), MANY, "somebody has it twice");
    assert_eq!(count(database, &format!("outbox WHERE message = '{id}' AND endpoint = 2")), MANY);
    assert_eq!(count(database, &format!("outbox WHERE message = '{id}' AND endpoint = 1")), 1);
    assert_eq!(count(database, "outbox WHERE endpoint = 2 AND holder IS NOT NULL"), 0, "pushes are leased to nobody");
    assert_eq!((count(database, "fanout"), count(database, "fanout_part")), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_send_is_whole_when_it_is_answered_and_its_repeat_gets_the_same() {
    let ([a, b], database) = pair(&roomy()).await;
    let (stored, callbacks) = sent(&*a, leased(large())).await;
    assert_eq!(stored.recipients, names().iter().map(|name| (user(name), c(1))).collect::<Vec<_>>());
    assert_eq!(callbacks.iter().map(|callback| callback.endpoint).collect::<Vec<_>>(), [Endpoint::Storage]);
    assert_eq!(database.sql("SELECT id FROM outbox WHERE holder IS NOT NULL"), callbacks[0].id.to_string());
    assert_whole(&database, &stored);
    assert!(matches!(b.append(large()).await.unwrap(), Appended::Repeat(repeated) if repeated == stored));
    let other = Append { key: keyed(to_at(&[], at(0)), "k", 2, at(60)).key, ..large() };
    assert!(matches!(b.append(other).await.unwrap(), Appended::OtherBody));
    assert_eq!(count(&database, "message"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_node_was_writing_another_completes_once() {
    let (store, hand, database) = both().await;
    let new = leased(large());
    let id = new.message.id;
    let mut fanout = hand.begin(new).await;
    assert!(hand.0.bite(&mut fanout).await.unwrap());
    let status = store.message(id, at(0)).await.unwrap().unwrap();
    assert_eq!(status.recipients.len(), BITE, "those whom it has reached");
    assert!(status.recipients.iter().all(|recipient| recipient.cursor == c(1)));
    assert_eq!(status.storage.state, CallbackState::Waiting);
    assert_eq!(complaints(&database).await, Vec::<String>::new());
    let in_progress = |answer| matches!(answer, Appended::InProgress);
    assert!(in_progress(store.append(large()).await.unwrap()));
    assert!(in_progress(store.append(keyed(to_at(&["u1"], at(0)), "k", 1, at(60))).await.unwrap()));
    hand.dies(&database);
    eventually(async || count(&database, "fanout") == 0).await;
    let repeated = stored(store.append(large()).await.unwrap());
    assert_eq!((repeated.id, repeated.recipients.len()), (id, MANY));
    assert_whole(&database, &repeated);
    let told = store.lease_due(Endpoint::Storage, at(0), 10).await.unwrap();
    assert_eq!(told.len(), 1, "nobody holds it");
    assert!(hand.0.bite(&mut fanout).await.is_err());
    assert_whole(&database, &repeated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_paused_stops_when_another_has_taken_over() {
    let (_store, paused, database) = both().await;
    let mut fanout = paused.begin(large()).await;
    paused.0.bite(&mut fanout).await.unwrap();
    let other = ByHand::at(&database.url()).await;
    assert!(other.0.left_over().await.unwrap().is_empty(), "a living node's is left to it");
    // Nobody else may be faster than the other.
    database.sql(&format!("UPDATE fanout SET holder = '{}'", other.0.leases.me));
    let [mut taken]: [Fanout; 1] = other.0.left_over().await.unwrap().try_into().ok().unwrap();
    for _ in 0..2 {
        assert!(is_away(&paused.0.bite(&mut fanout).await));
        assert_eq!(count(&database, "inbox"), BITE, "it did nothing");
    }
    assert!(other.0.bite(&mut taken).await.unwrap());
    assert!(is_away(&paused.0.bite(&mut fanout).await));
    assert_eq!(count(&database, "inbox"), 2 * BITE);
    let stored = other.complete(taken).await;
    assert!(is_away(&paused.0.bite(&mut fanout).await));
    assert_whole(&database, &stored);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_paused_before_the_end_answers_truly() {
    let (_store, paused, database) = both().await;
    let mut fanout = paused.begin(leased(large())).await;
    while paused.0.bite(&mut fanout).await.unwrap() {}
    let other = ByHand::at(&database.url()).await;
    database.sql(&format!("UPDATE fanout SET holder = '{}'", other.0.leases.me));
    let taken = other.0.left_over().await.unwrap().pop().unwrap();
    let by_other = other.complete(taken).await;
    let (answer, callbacks) = paused.0.finish(fanout).await.unwrap();
    assert_eq!(stored(answer), by_other);
    assert_eq!(callbacks.take(), [], "the other has made it");
    assert_whole(&database, &by_other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_whose_commit_is_not_answered_are_done_once() {
    let (_store, _, database) = both().await;
    for step in 0..3 {
        database.sql("TRUNCATE message, inbox, outbox, idempotency; UPDATE users SET newest = 0");
        let proxy = Proxy::to(Postgres::shared().address());
        let hand = ByHand::at(&database.url_at(proxy.address())).await;
        let cut_at = |now| {
            if now == step {
                proxy.cut_after_sending(b"COMMIT");
            }
        };
        // The partitions are there, and made in a transaction.
        let warm = hand.begin(Append { key: None, storage_callback: false, ..large() }).await;
        hand.complete(warm).await;
        database.sql("TRUNCATE message, inbox, outbox, idempotency; UPDATE users SET newest = 0");
        cut_at(0);
        let mut fanout = hand.begin(leased(large())).await;
        cut_at(1);
        assert!(hand.0.bite(&mut fanout).await.unwrap());
        while hand.0.bite(&mut fanout).await.unwrap() {}
        cut_at(2);
        let (answer, callbacks) = hand.0.finish(fanout).await.unwrap();
        let (stored, callbacks) = (stored(answer), callbacks.take());
        assert!(proxy.has_cut());
        assert_whole(&database, &stored);
        let held = database.sql("SELECT id FROM outbox WHERE holder IS NOT NULL");
        if step == 2 {
            assert_eq!(callbacks, [], "whether it is leased was not known");
            let stop = CancellationToken::new();
            let keep = hand.0.leases.keep(&hand.0.db, &stop);
            let freed = eventually(async || count(&database, "outbox WHERE holder IS NOT NULL") == 0);
            tokio::select! {
                () = keep => panic!("it ended"),
                () = freed => {}
            }
        } else {
            assert_eq!(held, callbacks[0].id.to_string());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_send_to_the_same_users_between_two_parts() {
    let (store, hand, database) = both().await;
    let mut fanout = hand.begin(large()).await;
    hand.0.bite(&mut fanout).await.unwrap();
    let small = timeout(SOON, sent(&*store, to_at(&["u0", "u1200"], at(0)))).await.expect("it waits for the whole");
    assert_eq!(small.0.recipients, [(user("u0"), c(2)), (user("u1200"), c(1))]);
    let stored = hand.complete(fanout).await;
    assert_eq!((stored.recipients[0].1, stored.recipients[1200].1), (c(1), c(2)));
    for name in ["u0", "u1200"] {
        assert_eq!(inbox(&store, name, 0).await, [1, 2], "{name}");
    }
    assert_eq!(count(&database, "fanout"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_the_server_ends_for_a_deadlock_is_written_again() {
    let (store, _, database) = both().await;
    let name = database.url().rsplit('/').next().unwrap().to_owned();
    // Who waits from now on finds the deadlock, but not before the other waits, too.
    database.sql(&format!("ALTER DATABASE {name} SET deadlock_timeout = '3s'"));
    let late = ByHand::at(&database.url()).await;
    let other = store.db.get().await.unwrap();
    other.batch_execute("SET deadlock_timeout = '60s'; SET idle_in_transaction_session_timeout = 0").await.unwrap();
    let mut fanout = late.begin(large()).await;
    // The last of the part by name, and then the first: the wrong way around.
    other.batch_execute("BEGIN; SELECT FROM users WHERE name = 'u99' FOR UPDATE").await.unwrap();
    let in_the_way = async {
        let waits = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        eventually(async || count(&database, waits) == 1).await;
        other.batch_execute("SELECT FROM users WHERE name = 'u0' FOR UPDATE").await.unwrap();
        other.batch_execute("COMMIT").await.unwrap();
    };
    let (bitten, ()) = tokio::join!(late.0.bite(&mut fanout), in_the_way);
    assert!(bitten.unwrap());
    let ended = format!("SELECT deadlocks > 0 FROM pg_stat_database WHERE datname = '{name}'");
    eventually(async || database.sql(&ended) == "t").await;
    assert_whole(&database, &late.complete(fanout).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_sends_of_two_nodes_and_small_ones_go_on_side_by_side() {
    let ([a, b], database) = pair(&roomy()).await;
    let forward = Append { key: None, ..large() };
    let mut backward = Append { message: to_at(&[], at(0)).message, ..forward.clone() };
    backward.recipients.reverse();
    let ended = CancellationToken::new();
    let sends = async {
        for _ in 0..3 {
            let again = |new: &Append| Append { message: to_at(&[], at(0)).message, ..new.clone() };
            let (first, second) = tokio::join!(a.append(again(&forward)), b.append(again(&backward)));
            assert!(matches!((first.unwrap(), second.unwrap()), (Appended::New(..), Appended::New(..))));
        }
        ended.cancel();
    };
    let small = async {
        let mut sends = 0;
        while !ended.is_cancelled() {
            sent(&*a, to_at(&["u700", "u3"], at(0))).await;
            sends += 1;
        }
        sends
    };
    let ((), small) = tokio::join!(sends, small);
    assert!(small > 6, "they waited for the large ones: {small}");
    assert_eq!(inbox(&b, "u700", 0).await, one_to(6 + small));
    let holes = "(SELECT max(cursor) - count(*) AS n FROM inbox GROUP BY user_id) h WHERE n <> 0";
    assert_eq!(count(&database, holes), 0);
    assert_eq!(count(&database, "users u WHERE newest <> (SELECT max(cursor) FROM inbox WHERE user_id = u.id)"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_large_sends_on_two_nodes_at_the_same_time_are_stored_once() {
    let ([a, b], database) = pair(&roomy()).await;
    for round in 0..5 {
        let send = || {
            let mut new = large();
            new.key.as_mut().unwrap().key = format!("k{round}");
            new
        };
        let answers = tokio::join!(a.append(send()), b.append(send()), a.append(send()), b.append(send()));
        let answers = [answers.0.unwrap(), answers.1.unwrap(), answers.2.unwrap(), answers.3.unwrap()];
        let new = answers.iter().filter(|answer| matches!(answer, Appended::New(..))).count();
        assert_eq!(new, 1, "{:?}", answers.map(|answer| std::mem::discriminant(&answer)));
    }
    assert_eq!(count(&database, "message"), 5);
    assert_eq!(count(&database, "inbox"), 5 * MANY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_answer_of_a_key_is_repeated_if_it_is_whole() {
    let (store, hand, _database) = both().await;
    let to_nobody = || keyed(to_at(&[], at(0)), "nobody", 1, at(60));
    let (stored, _) = sent(&*store, to_nobody()).await;
    assert_eq!(stored.recipients, []);
    let _writing = hand.begin(large()).await;
    assert!(matches!(store.append(to_nobody()).await.unwrap(), Appended::Repeat(repeated) if repeated == stored));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recall_takes_effect_when_the_message_has_reached_all() {
    let (store, hand, database) = both().await;
    let new = large();
    let id = new.message.id;
    let mut fanout = hand.begin(new).await;
    hand.0.bite(&mut fanout).await.unwrap();
    let mut recall = pin!(store.recall(id, true, false, at(0)));
    tokio::select! {
        biased;
        early = &mut recall => panic!("{early:?} before it had reached all"),
        // Longer than the recall itself would take.
        () = eventually(async || store.message(id, at(0)).await.unwrap().is_some()) => {}
    }
    let (recalled, stored) = tokio::join!(recall, hand.complete(fanout));
    let recalled = recalled.unwrap().expect("it was there");
    assert_eq!(recalled.recipients, names().iter().map(|name| user(name)).collect::<Vec<_>>());
    assert_eq!(stored.recipients.len(), MANY);
    assert_eq!(count(&database, "inbox WHERE expires_at = 0"), MANY);
    assert_eq!(inbox(&store, "u1202", 0).await, [] as [u64; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recall_waits_for_no_more_than_its_time() {
    let (store, hand, database) = both().await;
    let new = large();
    let id = new.message.id;
    let fanout = hand.begin(new).await;
    let refused = timeout(SOON, store.recall(id, true, true, at(0))).await.expect("it waits for ever").unwrap_err();
    let StoreError::Unavailable(cause) = refused else { panic!("{refused}") };
    assert!(cause.to_string().contains("still being written"), "{cause}");
    assert_whole(&database, &hand.complete(fanout).await);
    assert!(store.recall(id, true, true, at(0)).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_that_trims_an_inbox_waits_for_no_recall() {
    let fresh = fresh().await;
    for _ in 0..63 {
        sent(&*fresh.store, to_at(&["bob"], at(0))).await;
    }
    // As a recall from many holds its rows until its commit.
    let recall = fresh.db.get().await.unwrap();
    recall.batch_execute("SET idle_in_transaction_session_timeout = 0").await.unwrap();
    recall.batch_execute("BEGIN; UPDATE inbox SET expires_at = 0 WHERE cursor = 1").await.unwrap();
    sent(&*fresh.store, to_at(&["bob"], at(0))).await;
    assert_eq!(fresh.database.sql("SELECT min(cursor) FROM inbox WHERE cursor > 1"), "25", "the others are trimmed");
    recall.batch_execute("COMMIT").await.unwrap();
    for _ in 0..32 {
        sent(&*fresh.store, to_at(&["bob"], at(0))).await;
    }
    assert_eq!(fresh.database.sql("SELECT min(cursor) FROM inbox"), "57");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_brief_message_is_not_swept_before_it_has_reached_all() {
    let (store, hand, database) = both().await;
    let new = Append { expires_at: at(5), storage_callback: false, ..large() };
    let mut fanout = hand.begin(new).await;
    hand.0.bite(&mut fanout).await.unwrap();
    while store.sweep(at(6)).await.unwrap() {}
    assert_eq!((count(&database, "message"), count(&database, "inbox")), (1, BITE));
    hand.complete(fanout).await;
    while store.sweep(at(6)).await.unwrap() {}
    assert_eq!((count(&database, "message"), count(&database, "inbox")), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_expired_when_it_is_taken_over_ends_where_it_is() {
    let (_store, hand, database) = both().await;
    let now = Timestamp::now();
    let sent_at = now.minus(Duration::from_secs(600));
    let new = to_at(&names().iter().map(String::as_str).collect::<Vec<_>>(), sent_at);
    let mut fanout = hand.begin(Append { expires_at: now.minus(Duration::from_secs(60)), ..new }).await;
    hand.0.bite(&mut fanout).await.unwrap();
    let stored = hand.complete(hand.0.left_over().await.unwrap().pop().unwrap()).await;
    assert_eq!(stored.recipients.len(), BITE);
    assert_eq!((count(&database, "inbox"), count(&database, "fanout"), count(&database, "fanout_part")), (BITE, 0, 0));
    assert_eq!(count(&database, "outbox WHERE endpoint = 1"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_a_message_that_has_gone_with_its_partition() {
    let (store, hand, database) = both().await;
    let mut fanout = hand.begin(large()).await;
    hand.0.bite(&mut fanout).await.unwrap();
    let long_after = at(0).plus(RETENTION * 2);
    eventually(async || {
        store.sweep(long_after).await.unwrap();
        count(&database, "message") == 0
    })
    .await;
    assert!(is_away(&hand.0.bite(&mut fanout).await), "there is no place for it");
    hand.dies(&database);
    eventually(async || count(&database, "fanout") == 0).await;
    assert_eq!(count(&database, "fanout_part"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_doctor_tells_of_a_send_that_does_not_reach_all() {
    let (_store, hand, database) = both().await;
    let _begun = hand.begin(large()).await;
    database.sql("UPDATE message SET sent_at = 5");
    let told = complaints(&database).await;
    assert!(told.iter().any(|told| told.starts_with("1 messages were begun long ago")), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_of_very_many_does_not_hang_on_what_the_server_expects_to_find() {
    let database = Postgres::shared().database();
    let store = open_at(database.url(), &roomy()).await.unwrap();
    let names: Vec<_> = (0..20_000).map(|n| format!("u{n}")).collect();
    let to_all = || {
        let append = to_at(&names.iter().map(String::as_str).collect::<Vec<_>>(), at(0));
        Append { push_due: vec![], ..append }
    };
    sent(&*store, to_all()).await;
    // From now on it expects no row of a later message. It then looked for all of that message's, and for each through all that was asked for,
    // which took longer than a statement may.
    database.sql("ANALYZE");
    let (stored, _) = sent(&*store, to_all()).await;
    assert_eq!(store.message(stored.id, at(0)).await.unwrap().unwrap().recipients.len(), names.len());
    let recalled = store.recall(stored.id, false, false, at(0)).await.unwrap().unwrap();
    assert_eq!(recalled.recipients.len(), names.len());
    assert_eq!(count(&database, "inbox WHERE expires_at <> 0"), names.len());
}
