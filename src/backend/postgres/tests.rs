//! The rules of every store, and those of this one: several nodes, lost connections, servers that are away.

use super::*;
use crate::backend::conformance::store::{
    INBOX_MAX, RETENTION, at, c, cursors, eventually, keyed, leased, sent, store_suite, to_at, user,
};
use crate::backend::durable::doctor::Expected;
use crate::domain::finding::Level;
use crate::servers::postgres::{Database, Postgres};
use crate::servers::proxy::Proxy;
use futures_util::future::join_all;
use std::collections::HashSet;
use std::ops::Deref;
use std::time::Instant;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// A store with a database of its own.
struct Fresh {
    store: Arc<PostgresStore>,
    database: Database,
}

impl Deref for Fresh {
    type Target = PostgresStore;

    fn deref(&self) -> &PostgresStore {
        &self.store
    }
}

fn options() -> Options {
    Options { patience: Duration::from_secs(2), ..Options::new(RETENTION, INBOX_MAX) }
}

/// With inboxes that are large enough for what the tests send.
fn roomy() -> Options {
    Options { inbox_max: 10_000, ..options() }
}

async fn open_at(url: String, options: &Options) -> Result<Arc<PostgresStore>, OpenError> {
    PostgresStore::open(&Secret::new(url), options, &Tasks::on_this_runtime(), &mut Registry::default()).await
}

async fn fresh() -> Fresh {
    let database = Postgres::shared().database();
    Fresh { store: open_at(database.url(), &options()).await.unwrap(), database }
}

/// Two nodes.
async fn pair(options: &Options) -> ([Arc<PostgresStore>; 2], Database) {
    let database = Postgres::shared().database();
    let open = || async { open_at(database.url(), options).await.unwrap() };
    ([open().await, open().await], database)
}

async fn inbox(store: &PostgresStore, name: &str, after: u64) -> Vec<u64> {
    let limit = PageLimit { messages: 10_000, payload_bytes: usize::MAX };
    cursors(&store.page(&user(name), c(after), limit, at(0)).await.unwrap())
}

fn one_to(count: u64) -> Vec<u64> {
    (1..=count).collect()
}

async fn due(store: &PostgresStore, limit: usize) -> Vec<Callback> {
    store.lease_due(Endpoint::Push, at(0), limit).await.unwrap()
}

mod fanout;

mod rules {
    use super::fresh as open;

    super::store_suite!(open);
}

// === Several nodes ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_send_to_the_same_users_give_out_every_number_once_and_in_order() {
    let ([a, b], _database) = pair(&roomy()).await;
    let (users, backwards) = (["bob", "carol", "dave"], ["dave", "carol", "bob"]);
    let all = join_all((0..200).map(|n| {
        let (store, users) = if n % 2 == 0 { (&a, &users) } else { (&b, &backwards) };
        async move { store.append(to_at(users, at(0))).await.unwrap() }
    }));
    let reader = async {
        let mut seen = 0;
        while seen < 200 {
            for cursor in inbox(&a, "bob", seen).await {
                assert_eq!(cursor, seen + 1, "a gap was visible");
                seen = cursor;
            }
        }
    };
    tokio::join!(all, reader);
    for name in users {
        assert_eq!(inbox(&b, name, 0).await, one_to(200), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_sends_on_two_nodes_at_the_same_time_are_stored_once() {
    let ([a, b], _database) = pair(&roomy()).await;
    for round in 0..10 {
        let key = format!("k{round}");
        let all = join_all((0..12).map(|n| {
            let (store, name) = ([&a, &b][n % 2], ["bob", "carol", "dave"][n % 3]);
            // The bodies are said to be equal, so that the nodes don't meet at a user's row first.
            store.append(keyed(to_at(&[name], at(0)), &key, 1, at(10)))
        }))
        .await;
        let new: Vec<_> = all.iter().filter(|answer| matches!(answer, Ok(Appended::New(..)))).collect();
        let repeats = all.iter().filter(|answer| matches!(answer, Ok(Appended::Repeat(_)))).count();
        assert_eq!((new.len(), repeats), (1, 11), "{all:?}");
    }
    let users: u64 = a.newest(&["bob", "carol", "dave"].map(user)).await.unwrap().iter().map(|n| n.get()).sum();
    assert_eq!(users, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_never_hold_the_same_callback() {
    let ([a, b], _database) = pair(&roomy()).await;
    join_all((0..300).map(|_| a.append(to_at(&["bob"], at(0))))).await;
    let take = async |store: &PostgresStore| {
        let mut held = Vec::new();
        loop {
            let more = due(store, 7).await;
            if more.is_empty() {
                return held;
            }
            held.extend(more);
        }
    };
    let (of_a, of_b) = tokio::join!(take(&a), take(&b));
    let ids: HashSet<_> = of_a.iter().chain(&of_b).map(|callback| callback.id).collect();
    assert_eq!((ids.len(), of_a.len() + of_b.len()), (300, 300));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_living_node_keeps_its_callbacks_and_a_dead_ones_are_freed() {
    let lease = Duration::from_secs(2);
    let ([a, b], _database) = pair(&Options { lease, ..roomy() }).await;
    let (_, handed_over) = sent(&*a, leased(to_at(&["bob"], at(0)))).await;
    sent(&*a, to_at(&["carol"], at(0))).await;
    assert_eq!(due(&a, 10).await.len(), 1);
    let started = Instant::now();
    while started.elapsed() < lease * 3 / 2 {
        assert_eq!(due(&b, 10).await, []);
        sleep(Duration::from_millis(50)).await;
    }
    // Dropped, it says no goodbye.
    drop(a);
    let mut freed = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    while freed.len() < 2 {
        assert!(Instant::now() < deadline, "they were never freed");
        freed.extend(due(&b, 10).await);
        sleep(Duration::from_millis(20)).await;
    }
    assert!(freed.contains(&handed_over[1]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_closed_gives_its_callbacks_back_at_once_and_refuses_what_comes_later() {
    let ([a, b], _database) = pair(&roomy()).await;
    sent(&*a, leased(to_at(&["bob"], at(0)))).await;
    assert_eq!(due(&b, 10).await, []);
    a.close().await;
    assert_eq!(due(&b, 10).await.len(), 1);
    assert!(matches!(a.append(to_at(&["bob"], at(0))).await, Err(StoreError::Unavailable(_))));
    assert!(a.check().await.is_err());
    assert!(a.newest(&[user("bob")]).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_holder_settles_a_callback() {
    let ([a, b], database) = pair(&roomy()).await;
    let (_, callbacks) = sent(&*a, leased(to_at(&["bob"], at(0)))).await;
    let sent = |callback: &Callback| {
        vec![Settlement { callback: callback.clone(), attempts: 1, decision: crate::domain::callback::Decision::Sent }]
    };
    b.settle(sent(&callbacks[0]), at(0)).await.unwrap();
    assert_eq!(database.sql("SELECT count(*) FROM outbox"), "2");
    a.settle(sent(&callbacks[0]), at(0)).await.unwrap();
    assert_eq!(database.sql("SELECT count(*) FROM outbox"), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_start_at_once_migrate_once() {
    let database = Postgres::shared().database();
    let options = roomy();
    let opened = join_all((0..4).map(|_| open_at(database.url(), &options))).await;
    for store in opened {
        sent(&*store.unwrap(), to_at(&["bob"], at(0))).await;
    }
    assert_eq!(database.sql("SELECT version FROM schema_version"), "1\n2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_schema_is_refused() {
    let fresh = fresh().await;
    fresh.database.sql("INSERT INTO schema_version VALUES (7)");
    let refused = open_at(fresh.database.url(), &options()).await.err().unwrap();
    assert_eq!(refused.to_string(), "the database has schema version 7, this herenow knows 2: run the newer herenow");
}

// === Lost connections, servers that are away ===

fn is_away<T>(done: &Result<T, StoreError>) -> bool {
    matches!(done, Err(StoreError::Unavailable(_)))
}

/// Sends to a user until it is told to stop; how many were answered Ok.
async fn send_until(store: &PostgresStore, name: &str, stop: &CancellationToken) -> (Vec<Uuid>, Vec<Uuid>) {
    let (mut stored, mut unknown) = (Vec::new(), Vec::new());
    while !stop.is_cancelled() {
        let new = to_at(&[name, "all"], at(0));
        let id = new.message.id;
        match store.append(new).await {
            Ok(_) => stored.push(id),
            Err(_) => unknown.push(id),
        }
    }
    (stored, unknown)
}

/// Each message that was answered is there once, and every other at most once; no number is missing.
fn assert_kept(database: &Database, stored: &[Uuid], unknown: &[Uuid]) {
    let rows = database.sql("SELECT message, count(*) FROM inbox GROUP BY message");
    let there: std::collections::HashMap<Uuid, &str> = rows
        .lines()
        .map(|row| row.split_once('|').unwrap())
        .map(|(id, places)| (id.parse().unwrap(), places))
        .collect();
    assert!(stored.iter().all(|id| there.get(id) == Some(&"2")), "one that was answered isn't there once");
    assert!(unknown.iter().all(|id| there.get(id).is_none_or(|places| *places == "2")));
    let holes = "SELECT count(*) FROM (SELECT max(cursor) - count(*) AS n FROM inbox GROUP BY user_id) h WHERE n <> 0";
    assert_eq!(database.sql(holes), "0");
    let newest = "SELECT count(*) FROM users u WHERE newest <> (SELECT max(cursor) FROM inbox WHERE user_id = u.id)";
    assert_eq!(database.sql(newest), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sends_whose_connections_are_killed_are_answered_truly() {
    let ([a, b], database) = pair(&roomy()).await;
    let stop = CancellationToken::new();
    let names: Vec<String> = (0..12).map(|n| format!("u{n}")).collect();
    let senders = join_all(names.iter().enumerate().map(|(n, name)| send_until([&a, &b][n % 2], name, &stop)));
    let killer = async {
        for _ in 0..25 {
            sleep(Duration::from_millis(40)).await;
            tokio::task::block_in_place(|| {
                database.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'herenow' AND datname = current_database()")
            });
        }
        stop.cancel();
    };
    let (sent, ()) = tokio::join!(senders, killer);
    let (stored, unknown): (Vec<_>, Vec<_>) = sent.into_iter().unzip();
    let (stored, unknown) = (stored.concat(), unknown.concat());
    assert!(stored.len() > 50, "{} were stored, {} not", stored.len(), unknown.len());
    assert_kept(&database, &stored, &unknown);
    for store in [&a, &b] {
        store.check().await.unwrap();
        store.append(to_at(&["bob"], at(0))).await.unwrap();
    }
}

/// A store behind a proxy, that has sent before: users and partitions are there.
async fn behind_proxy(name: &str) -> (Arc<PostgresStore>, Proxy, Database) {
    let database = Postgres::shared().database();
    let proxy = Proxy::to(Postgres::shared().address());
    let store = open_at(database.url_at(proxy.address()), &roomy()).await.unwrap();
    sent(&*store, to_at(&[name], at(0))).await;
    (store, proxy, database)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_is_looked_up() {
    let (store, proxy, database) = behind_proxy("bob").await;
    proxy.cut_after_sending(b"COMMIT");
    let (stored, callbacks) = sent(&*store, leased(keyed(to_at(&["bob"], at(0)), "k", 1, at(9)))).await;
    assert!(proxy.has_cut());
    assert_eq!(stored.recipients, [(user("bob"), c(2))]);
    assert_eq!(inbox(&store, "bob", 0).await, [1, 2]);
    let held = database.sql("SELECT id FROM outbox WHERE holder IS NOT NULL ORDER BY id");
    let mut ids: Vec<String> = callbacks.iter().map(|callback| callback.id.to_string()).collect();
    ids.sort();
    assert_eq!(held.lines().collect::<Vec<_>>(), ids, "they are leased to the caller");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_that_was_cut_off_before_its_commit_is_made_again() {
    let (store, proxy, _database) = behind_proxy("bob").await;
    // The first words that it sends.
    proxy.cut_after_sending(b"BEGIN");
    let (stored, _) = sent(&*store, to_at(&["bob"], at(0))).await;
    assert!(proxy.has_cut());
    assert_eq!(stored.recipients, [(user("bob"), c(2))]);
    assert_eq!(inbox(&store, "bob", 0).await, [1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_found_out_is_said_to_be_unavailable_in_bounded_time_and_its_leases_are_given_back() {
    let (store, proxy, database) = behind_proxy("bob").await;
    proxy.cut_after_sending(b"COMMIT");
    let new = leased(to_at(&["bob"], at(0)));
    let id = new.message.id;
    let started = Instant::now();
    let cut = async {
        eventually(async || proxy.has_cut()).await;
        proxy.cut();
    };
    let (answer, ()) = tokio::join!(store.append(new), cut);
    assert!(matches!(answer, Err(StoreError::Unavailable(_))));
    assert!(started.elapsed() < Duration::from_secs(20));
    proxy.heal();
    eventually(async || store.check().await.is_ok()).await;
    let there: u32 = database.sql(&format!("SELECT count(*) FROM message WHERE id = '{id}'")).parse().unwrap();
    assert!(there <= 1);
    let held = "SELECT count(*) FROM outbox WHERE holder IS NOT NULL";
    eventually(async || database.sql(held) == "0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callbacks_whose_lease_got_lost_are_leased_again() {
    let (store, proxy, _database) = behind_proxy("bob").await;
    proxy.cut_after_sending(b"COMMIT");
    let mut held = store.lease_due(Endpoint::Push, at(0), 10).await.unwrap_or_default();
    assert!(proxy.has_cut());
    let deadline = Instant::now() + Duration::from_secs(20);
    while held.is_empty() {
        assert!(Instant::now() < deadline, "it is leased to nobody for ever");
        held = due(&store, 10).await;
    }
    assert_eq!(held.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_works_again_after_an_outage_without_a_restart() {
    let server = Postgres::start();
    let database = server.database();
    let store = open_at(database.url(), &roomy()).await.unwrap();
    let mut stored = Vec::new();
    let send = async || sent(&*store, to_at(&["bob", "all"], at(0))).await.0.id;
    stored.push(send().await);
    for kill in [true, false] {
        if kill {
            server.kill();
        } else {
            server.stop_fast();
        }
        // What is left of a killed server may serve for a moment.
        eventually(async || is_away(&store.check().await)).await;
        eventually(async || is_away(&store.newest(&[]).await)).await;
        eventually(async || is_away(&store.append(to_at(&["bob", "all"], at(0))).await)).await;
        server.restart();
        eventually(async || store.check().await.is_ok()).await;
        stored.push(send().await);
    }
    assert_kept(&database, &stored, &[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_between_two_calls_is_not_noticed() {
    let server = Postgres::start();
    let database = server.database();
    let store = open_at(database.url(), &roomy()).await.unwrap();
    sent(&*store, to_at(&["bob"], at(0))).await;
    join_all((0..12).map(|_| store.newest(&[]))).await;
    server.restart();
    sent(&*store, to_at(&["bob"], at(0))).await;
    assert_eq!(store.newest(&[user("bob")]).await.unwrap(), [c(2)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_can_not_be_reached_or_used_fails_the_start() {
    let nobody = Proxy::to(Postgres::shared().address());
    nobody.cut();
    let database = Postgres::shared().database();
    for (url, said) in [
        (database.url_at(nobody.address()), "PostgreSQL can't be reached: "),
        (format!("{}?sslmode=require", database.url()), "server does not support TLS"),
        (format!("{}_missing", database.url()), "does not exist"),
        (format!("{}?sslmode=nonsense", database.url()), "`store.url` is wrong"),
    ] {
        let error = open_at(url, &options()).await.err().unwrap().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_late_is_waited_for_at_the_start() {
    let database = Postgres::shared().database();
    let proxy = Proxy::to(Postgres::shared().address());
    proxy.cut();
    let late = async {
        sleep(Duration::from_millis(700)).await;
        proxy.heal();
    };
    let options = Options { patience: Duration::from_secs(20), ..options() };
    let (opened, ()) = tokio::join!(open_at(database.url_at(proxy.address()), &options), late);
    opened.unwrap().check().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_find_no_connection_are_refused_and_those_after_them_served() {
    let database = Postgres::shared().database();
    let role = database.url().rsplit('/').next().unwrap().replace("test", "few");
    database.sql(&format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT 2; GRANT ALL ON SCHEMA public TO {role}"));
    let url = database.url().replace("//postgres@", &format!("//{role}@"));
    let store = open_at(url, &Options { writers: 1, connections: 6, ..roomy() }).await.unwrap();
    sent(&*store, to_at(&["bob"], at(0))).await;
    let bob = [user("bob")];
    // The store itself may have the one connection for a moment.
    eventually(async || {
        let reads = join_all((0..50).map(|_| store.newest(&bob))).await;
        reads.iter().any(Result::is_ok) && reads.iter().any(Result::is_err)
    })
    .await;
    sent(&*store, to_at(&["bob"], at(0))).await;
    assert_eq!(store.newest(&bob).await.unwrap(), [c(2)]);
    store.close().await;
    database.sql(&format!("DROP OWNED BY {role} CASCADE; DROP ROLE {role}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_too_long_for_a_connection_is_told_that_there_is_too_much_to_do() {
    let database = Postgres::shared().database();
    let store = open_at(database.url(), &Options { connections: 1, ..options() }).await.unwrap();
    let held = store.db.get().await.unwrap();
    assert!(matches!(store.newest(&[]).await, Err(StoreError::Overloaded)));
    drop(held);
    store.newest(&[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_is_on_the_disk_whatever_the_servers_default() {
    let database = Postgres::shared().database();
    let name = database.url().rsplit('/').next().unwrap().to_owned();
    for (default, expected) in [("off", "on"), ("local", "on"), ("on", "on"), ("remote_apply", "remote_apply")] {
        database.sql(&format!("ALTER DATABASE {name} SET synchronous_commit = {default}"));
        let store = open_at(database.url(), &options()).await.unwrap();
        for connections in [&store.db, &store.writers] {
            let db = connections.get().await.unwrap();
            let found: String = db.query_one("SHOW synchronous_commit", &[]).await.unwrap().get(0);
            assert_eq!(found, expected);
        }
    }
}

// === Batches and retention ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_send_does_not_fail_its_neighbours() {
    let fresh = fresh().await;
    let mut bad = to_at(&["bob"], at(0));
    // A text of PostgreSQL holds no NUL. The contract allows none either, so this can't come from outside.
    bad.message.kind = "a\0b".into();
    let sends = (0..30).map(|n| if n == 7 { bad.clone() } else { to_at(&["bob"], at(0)) });
    let answers = join_all(sends.map(|new| fresh.append(new))).await;
    let failed: Vec<usize> = (0..30).filter(|&n| answers[n].is_err()).collect();
    assert_eq!(failed, [7]);
    assert_eq!(inbox(&fresh, "bob", 0).await, one_to(29));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_sends() {
    let database = Postgres::shared().database();
    let options = Options { queue_jobs: 4, writers: 1, ..roomy() };
    let store = open_at(database.url(), &options).await.unwrap();
    let answers = join_all((0..50).map(|_| store.append(to_at(&["bob"], at(0))))).await;
    assert!(answers.iter().any(|answer| matches!(answer, Err(StoreError::Overloaded))));
    let stored = answers.iter().filter(|answer| answer.is_ok()).count();
    assert_eq!(inbox(&store, "bob", 0).await.len(), stored);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_recalled_alone_is_no_loss() {
    let fresh = fresh().await;
    let lost_to = async || {
        let phone = crate::backend::conformance::store::device("phone");
        fresh.position(&user("bob"), &phone, at(6)).await.unwrap().lost_to
    };
    for _ in 0..2 {
        let (stored, _) = sent(&*fresh.store, to_at(&["bob"], at(0))).await;
        fresh.recall(stored.id, false, false, at(0)).await.unwrap().unwrap();
        assert_eq!(lost_to().await, c(0));
    }
    sent(&*fresh.store, Append { expires_at: at(5), ..to_at(&["bob"], at(0)) }).await;
    sent(&*fresh.store, to_at(&["bob"], at(0))).await;
    assert_eq!(lost_to().await, c(3), "the third has expired");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recall_whose_answer_is_lost_is_found_to_be_done() {
    let (store, proxy, database) = behind_proxy("bob").await;
    let (stored, _) = sent(&*store, to_at(&["bob", "carol"], at(0))).await;
    proxy.cut_after_sending(b"COMMIT");
    let recalled = store.recall(stored.id, true, true, at(0)).await.unwrap().unwrap();
    assert!(proxy.has_cut());
    assert_eq!(recalled.recipients, ["bob", "carol"].map(user));
    let callback = database.sql("SELECT id FROM outbox WHERE recalled AND holder IS NOT NULL");
    assert_eq!(callback, recalled.callback.unwrap().id.to_string());
    assert_eq!(store.recall(stored.id, true, true, at(0)).await.unwrap(), None);
}

fn partitions(database: &Database) -> Vec<String> {
    let names = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^(message|inbox)_p' ORDER BY relname";
    database.sql(names).lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_are_made_ahead_and_dropped_when_all_in_them_has_expired() {
    let ([a, b], database) = pair(&roomy()).await;
    let day = Duration::from_secs(24 * 3600);
    sent(&*a, to_at(&["bob"], at(0))).await;
    assert_eq!(partitions(&database).len(), 2);
    let sweep = async |now| {
        let (a, b) = tokio::join!(a.sweep(now), b.sweep(now));
        (a.unwrap(), b.unwrap())
    };
    sweep(at(0)).await;
    assert_eq!(partitions(&database).len(), 4, "the next is there before it is needed");
    let first = partitions(&database);
    let later = at(0).plus(RETENTION);
    sent(&*b, to_at(&["bob"], later)).await;
    sweep(later).await;
    assert!(first.iter().all(|name| partitions(&database).contains(name)), "not all in it has expired");
    let end = later.plus(day);
    eventually(async || {
        sweep(end).await;
        !partitions(&database).iter().any(|name| first[0] == *name || first[2] == *name)
    })
    .await;
    let page = a.page(&user("bob"), c(0), PageLimit { messages: 9, payload_bytes: 99 }, end).await.unwrap();
    assert_eq!(cursors(&page), [2]);
    let (stored, _) = sent(&*a, to_at(&["bob"], end)).await;
    assert_eq!(stored.recipients, [(user("bob"), c(3))], "numbers go on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_whose_partition_another_node_has_dropped_makes_it_anew() {
    let ([a, b], database) = pair(&roomy()).await;
    sent(&*a, to_at(&["bob"], at(0))).await;
    let long_after = at(0).plus(RETENTION * 2);
    eventually(async || {
        b.sweep(long_after).await.unwrap();
        database.sql("SELECT count(*) FROM message") == "0"
    })
    .await;
    // The clock of this node is far behind.
    sent(&*a, to_at(&["bob"], at(0))).await;
    assert_eq!(inbox(&a, "bob", 0).await, [2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_sweep_at_once_remove_everything_that_has_expired() {
    let ([a, b], database) = pair(&roomy()).await;
    for _ in 0..30 {
        let new = Append { expires_at: at(5), ..keyed(to_at(&["bob", "carol"], at(0)), "k", 1, at(5)) };
        let key = new.message.id.to_string();
        a.append(Append { key: new.key.map(|k| crate::ports::StoreKey { key, ..k }), storage_callback: false, ..new })
            .await
            .unwrap();
    }
    let sweep = async |store: &PostgresStore| while store.sweep(at(6)).await.unwrap() {};
    tokio::join!(sweep(&a), sweep(&b));
    for table in ["message", "inbox", "idempotency"] {
        assert_eq!(database.sql(&format!("SELECT count(*) FROM {table}")), "0", "{table}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trimming_removes_rows_and_not_only_hides_them() {
    let fresh = fresh().await;
    for _ in 0..INBOX_MAX * 3 {
        sent(&*fresh.store, to_at(&["bob"], at(0))).await;
    }
    let rows: u64 = fresh.database.sql("SELECT count(*) FROM inbox").parse().unwrap();
    assert!((INBOX_MAX..INBOX_MAX + 32).contains(&rows), "{rows}");
}

// === Devices ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_goes_forward_takes_one_row() {
    let fresh = fresh().await;
    let notes = |runs: &[(u64, u64)]| -> Vec<DeviceNote> {
        let note = |&(after, to)| DeviceNote {
            user: user("bob"),
            device: crate::backend::conformance::store::device("phone"),
            seen_at: at(0),
            delivered: Some((c(after), c(to))),
        };
        runs.iter().map(note).collect()
    };
    let runs = || fresh.database.sql("SELECT first, last FROM delivery ORDER BY first");
    for (noted, expected) in [
        (&[(0, 1), (1, 2)][..], "1|2"),
        (&[(2, 5)], "1|5"),
        (&[(9, 12)], "1|5\n10|12"),
        (&[(7, 9)], "1|5\n8|12"),
        (&[(3, 4)], "1|5\n8|12"),
        (&[(20, 21), (6, 30)], "1|5\n7|30"),
    ] {
        fresh.note_devices(notes(noted)).await.unwrap();
        assert_eq!(runs(), expected, "{noted:?}");
    }
    while fresh.sweep(at(0).plus(RETENTION * 2)).await.unwrap() {}
    assert_eq!(runs(), "");
}

// === The doctor ===

/// What it finds that isn't well, but for the server, which is fast rather than safe, and for the clock, which is that of the tests.
async fn complaints(database: &Database) -> Vec<String> {
    let endpoints = crate::ports::Leases { storage: true, push: true };
    let expected = Expected { now: at(0), retention: RETENTION, endpoints, in_use: false };
    let findings = examine(&Secret::new(database.url()), expected).await.into_iter();
    let wrong = findings.filter(|finding| finding.level != Level::Well).map(|finding| finding.found);
    wrong.filter(|found| !found.starts_with("`fsync`") && !found.starts_with("its clock and this one")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_doctor_finds_nothing_where_nothing_is_wrong() {
    let empty = Postgres::shared().database();
    assert_eq!(complaints(&empty).await, Vec::<String>::new());
    let store = fresh().await;
    sent(&*store, leased(to_at(&["bob", "carol"], at(0)))).await;
    store.recall(sent(&*store, to_at(&["bob"], at(0))).await.0.id, true, false, at(0)).await.unwrap();
    assert_eq!(complaints(&store.database).await, Vec::<String>::new());
    // As a node that ended would leave it.
    store.close().await;
    assert_eq!(complaints(&store.database).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_doctor_tells_each_thing_that_is_amiss() {
    for (damage, part) in [
        ("DELETE FROM message", "1 inbox rows lead to no message"),
        ("DELETE FROM users", "2 rows are of users that are not there"),
        ("DELETE FROM outbox WHERE endpoint = 1", "1 messages wait for a storage callback that is not there"),
        ("DELETE FROM outbox WHERE endpoint = 2", "1 inbox rows wait for a push callback that is not there"),
        (
            "UPDATE message SET kept = true, storage_state = 4; DELETE FROM outbox WHERE endpoint = 1",
            "1 messages are kept for a storage callback that is not there",
        ),
        ("UPDATE message SET brief = 5", "1 messages are long past their time"),
        (
            "INSERT INTO idempotency VALUES ('k', '', 5, gen_random_uuid(), 1, 1, '')",
            "1 idempotency keys are long past",
        ),
        (
            "DELETE FROM inbox; DELETE FROM message; UPDATE outbox SET due_at = 1",
            "2 callbacks are long due, and their message is gone",
        ),
        ("UPDATE outbox SET due_at = 1 WHERE endpoint = 1", "1 callbacks wait, the oldest has been due since"),
        ("UPDATE outbox SET holder = gen_random_uuid()", "2 callbacks are leased to nodes that are gone"),
        ("DELETE FROM span", "there is no partition for what is sent now"),
        ("INSERT INTO schema_version VALUES (99)", "PostgreSQL, schema version 99; this herenow knows"),
    ] {
        let store = fresh().await;
        sent(&*store, to_at(&["bob"], at(0))).await;
        store.database.sql(damage);
        let told = complaints(&store.database).await;
        assert!(told.iter().any(|told| told.starts_with(part)), "{damage}: {told:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_doctor_tells_of_a_server_that_can_not_be_used() {
    let expected = Expected {
        now: Timestamp::now(),
        retention: RETENTION,
        endpoints: crate::ports::Leases::default(),
        in_use: false,
    };
    let told = examine(&Secret::new("postgres://secret@127.0.0.1:1/d"), expected.clone()).await;
    assert!(told.len() == 1 && told[0].found.starts_with("PostgreSQL can't be used: "), "{told:?}");
    assert!(!format!("{told:?}").contains("secret"), "{told:?}");
    let database = Postgres::shared().database();
    let told = examine(&Secret::new(database.url()), expected).await;
    let unsafe_server = told.iter().find(|finding| finding.found.starts_with("`fsync`")).unwrap();
    assert_eq!(unsafe_server.level, Level::Error);
}
