//! Durable messages per second: N senders at a time, each waiting for its answer before it sends the next, for three seconds.
//!
//! Each message is about 400 bytes, goes to one of 10,000 users, who have had one before, and makes four rows: the message, an inbox
//! row, and a callback per endpoint. Beside it stands a bare loop over SQLite that writes four such rows in batches of the same size, to
//! tell the machine's mood from the store's cost.
//!
//! `cargo bench --bench store [-- SENDERS…]`

use bytes::Bytes;
use herenow::backend::sqlite::{Options, SqliteStore};
use herenow::domain::message::{Message, PushWish, RawJson};
use herenow::domain::seat::UserId;
use herenow::domain::time::Timestamp;
use herenow::ports::{Append, Leases, Store};
use prometheus_client::registry::Registry;
use rusqlite::{Connection, params};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

const USERS: usize = 10_000;
const TIME: Duration = Duration::from_secs(3);
const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a run showed.
struct Figures {
    per_second: f64,
    /// Ascending.
    waits: Vec<Duration>,
    wal_bytes: u64,
    jobs_per_commit: f64,
}

impl Figures {
    fn quantile_ms(&self, q: f64) -> f64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let index = (self.waits.len() as f64 * q) as usize;
        self.waits.get(index.min(self.waits.len().saturating_sub(1))).map_or(0.0, |w| w.as_secs_f64() * 1000.0)
    }
}

fn main() {
    let asked: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let senders = if asked.is_empty() { vec![1, 16, 64, 256] } else { asked };
    println!("senders | messages/s | p50 ms | p99 ms | longest ms | jobs/commit | WAL MB | bare loop/s | ratio");
    for count in senders {
        let bare = bare_loop(count);
        let figures = store(count);
        println!(
            "{count:7} | {:10.0} | {:6.2} | {:6.2} | {:10.1} | {:11.1} | {:6} | {bare:11.0} | {:.2}",
            figures.per_second,
            figures.quantile_ms(0.5),
            figures.quantile_ms(0.99),
            figures.quantile_ms(1.0),
            figures.jobs_per_commit,
            figures.wal_bytes >> 20,
            figures.per_second / bare,
        );
    }
}

fn store(senders: usize) -> Figures {
    let dir = tempfile::tempdir_in(".").expect("a directory on a real disk");
    let mut registry = Registry::default();
    let store = SqliteStore::open(dir.path(), &Options::new(RETENTION, 10_000), &mut registry).expect("opens");
    let users: Arc<[UserId]> = (0..USERS).map(|n| UserId::parse(&format!("user-{n}")).expect("a name")).collect();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let to_all = Append {
        recipients: users.to_vec(),
        ..message(&users[0], users[0].clone(), RawJson::from_checked(payload()), Timestamp::now())
    };
    runtime.block_on(store.append(to_all)).expect("is stored");
    let started = Instant::now();
    let mut waits = runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..senders {
            tasks.spawn(send(Arc::clone(&store), Arc::clone(&users), started + TIME));
        }
        tasks.join_all().await.concat()
    });
    let took = started.elapsed();
    let wal_bytes = std::fs::metadata(dir.path().join("herenow.db-wal")).map_or(0, |meta| meta.len());
    runtime.block_on(store.close());
    waits.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let per_second = waits.len() as f64 / took.as_secs_f64();
    Figures { per_second, waits, wal_bytes, jobs_per_commit: jobs_per_commit(&registry) }
}

fn jobs_per_commit(registry: &Registry) -> f64 {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).expect("can be encoded");
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse::<f64>().ok()).unwrap_or(f64::NAN)
    };
    value("store_commit_jobs_sum") / value("store_commit_jobs_count")
}

async fn send(store: Arc<SqliteStore>, users: Arc<[UserId]>, until: Instant) -> Vec<Duration> {
    let mut waits = Vec::new();
    let payload = RawJson::from_checked(payload());
    while Instant::now() < until {
        let started = Instant::now();
        let now = Timestamp::now();
        let to = users[rand::random_range(0..USERS)].clone();
        store.append(message(&users[0], to, payload.clone(), now)).await.expect("is stored");
        waits.push(started.elapsed());
    }
    waits
}

fn payload() -> Bytes {
    format!("{{\"text\":\"{}\"}}", "x".repeat(300)).into()
}

fn message(from: &UserId, to: UserId, payload: RawJson, now: Timestamp) -> Append {
    Append {
        message: Message {
            id: Uuid::now_v7(),
            from: from.clone(),
            group: None,
            kind: "chat".into(),
            payload,
            online_only: false,
            sent_at: now,
        },
        expires_at: now.plus(RETENTION),
        push: PushWish::Plain,
        recipients: vec![to],
        synced: false,
        storage_callback: true,
        push_due: vec![now],
        lease: Leases::default(),
        key: None,
        trace: None,
    }
}

/// The least that SQLite needs for four rows per message, `batch` messages to a commit, on one thread, with an inline checkpoint.
fn bare_loop(batch: usize) -> f64 {
    let dir = tempfile::tempdir_in(".").expect("a directory on a real disk");
    let mut db = Connection::open(dir.path().join("bare.db")).expect("opens");
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000; PRAGMA cache_size = -65536;
         CREATE TABLE message (id BLOB PRIMARY KEY, body BLOB) STRICT, WITHOUT ROWID;
         CREATE TABLE inbox (user INTEGER, cursor INTEGER, message BLOB, PRIMARY KEY (user, cursor)) STRICT, WITHOUT ROWID;
         CREATE TABLE outbox (id INTEGER PRIMARY KEY, endpoint INTEGER, message BLOB, due_at INTEGER, state INTEGER) STRICT;
         CREATE INDEX due ON outbox (endpoint, due_at) WHERE state = 0;",
    )
    .expect("is made");
    let (body, mut newest, mut count) = (vec![b'x'; 400], vec![0_i64; USERS], 0_u32);
    let started = Instant::now();
    while started.elapsed() < TIME {
        let tx = db.transaction().expect("begins");
        for _ in 0..batch {
            let (id, user) = (Uuid::now_v7(), rand::random_range(0..USERS));
            newest[user] += 1;
            let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
                tx.prepare_cached(sql).and_then(|mut statement| statement.execute(values)).expect("is written");
            };
            run("INSERT INTO message VALUES (?1, ?2)", params![id.as_bytes(), body]);
            run("INSERT INTO inbox VALUES (?1, ?2, ?3)", params![user, newest[user], id.as_bytes()]);
            for endpoint in 0..2 {
                run(
                    "INSERT INTO outbox (endpoint, message, due_at, state) VALUES (?1, ?2, ?3, 0)",
                    params![endpoint, id.as_bytes(), Timestamp::now().as_ms()],
                );
            }
            count += 1;
        }
        tx.commit().expect("is durable");
    }
    f64::from(count) / started.elapsed().as_secs_f64()
}
