//! The rules of every store, and those of this one: crashes, full disks, other versions.

use super::*;
use crate::backend::conformance::store::{INBOX_MAX, RETENTION, at, cursors, device, sent, store_suite, to_at, user};
use crate::backend::sqlite::jobs::Task;
use futures_util::FutureExt;
use proptest::prelude::*;
use std::ops::Deref;
use std::time::Instant;
use tempfile::TempDir;
use tokio::sync::oneshot;

/// A store in a directory of its own.
struct Fresh {
    store: Arc<SqliteStore>,
    dir: TempDir,
}

impl Deref for Fresh {
    type Target = SqliteStore;

    fn deref(&self) -> &SqliteStore {
        &self.store
    }
}

fn open_in(dir: &Path) -> Result<Arc<SqliteStore>, OpenError> {
    SqliteStore::open(dir, &Options::new(RETENTION, INBOX_MAX), &mut Registry::default())
}

fn fresh() -> Fresh {
    let dir = tempfile::tempdir().unwrap();
    Fresh { store: open_in(dir.path()).unwrap(), dir }
}

mod fanout;

mod rules {
    #[expect(clippy::unused_async, reason = "other stores open by a connection")]
    async fn open() -> super::Fresh {
        super::fresh()
    }

    super::store_suite!(open);
}

/// What a machine that lost power would find: the files as they are, without a goodbye.
fn crash_copy(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in [FILE.to_owned(), format!("{FILE}-wal")] {
        std::fs::copy(dir.join(&name), copy.path().join(&name)).unwrap();
    }
    copy
}

async fn inbox(store: &SqliteStore, name: &str) -> Vec<u64> {
    let limit = PageLimit { messages: 1000, payload_bytes: usize::MAX };
    cursors(&store.page(&user(name), Cursor::START, limit, at(0)).await.unwrap())
}

/// Hands in a job without waiting for it.
fn hand_in<T: Send + 'static>(
    store: &SqliteStore,
    run: impl FnMut(&mut Writing<'_>) -> rusqlite::Result<T> + Send + 'static,
) -> oneshot::Receiver<Result<T, StoreError>> {
    let (reply, answer) = oneshot::channel();
    store.queue.push(Box::new(Task::new(run, reply)), Size::SMALL).unwrap();
    answer
}

/// Keeps the writer busy until the returned sender is dropped, so that what comes next shares its batch.
fn hold_writer(store: &SqliteStore) -> std::sync::mpsc::Sender<()> {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (begun, begins) = std::sync::mpsc::channel();
    let answer = hand_in(store, move |_| {
        let _ = begun.send(());
        let _ = held.recv();
        Ok(())
    });
    begins.recv_timeout(Duration::from_secs(60)).expect("the writer takes it up");
    drop(answer);
    release
}

fn io_error() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_FSYNC), None)
}

#[tokio::test]
async fn what_was_answered_survives_a_crash_at_that_instant() {
    let store = fresh();
    for n in 1..=3_u64 {
        let (stored, _) = sent(&*store, to_at(&["bob"], at(0))).await;
        let copy = crash_copy(store.dir.path());
        let found = open_in(copy.path()).unwrap();
        assert_eq!(inbox(&found, "bob").await, (1..=n).collect::<Vec<_>>());
        assert!(found.message(stored.id, at(0)).await.unwrap().is_some());
        assert_eq!(found.lease_due(Endpoint::Storage, at(0), 9).await.unwrap().len() as u64, n);
        found.shut();
    }
}

#[tokio::test]
async fn leases_die_with_the_process_and_numbers_go_on() {
    let store = fresh();
    let mut append = to_at(&["bob"], at(0));
    append.lease = crate::ports::Leases { storage: true, push: true };
    sent(&*store, append).await;
    store.shut();
    let again = open_in(store.dir.path()).unwrap();
    assert_eq!(again.lease_due(Endpoint::Push, at(0), 9).await.unwrap().len(), 1);
    let (stored, _) = sent(&*again, to_at(&["bob"], at(0))).await;
    assert_eq!(stored.recipients[0].1, Cursor::new(2));
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused() {
    let store = fresh();
    store.shut();
    let db = rusqlite::Connection::open(store.dir.path().join(FILE)).unwrap();
    db.pragma_update(None, "user_version", 999).unwrap();
    drop(db);
    assert!(matches!(open_in(store.dir.path()), Err(OpenError::Newer { found: 999, .. })));
}

#[tokio::test]
async fn closing_does_what_was_handed_in_and_refuses_what_comes_later() {
    let store = fresh();
    let release = hold_writer(&store);
    let answer = hand_in(&store, |db| db.append(&to_at(&["bob"], at(0))));
    drop(release);
    store.shut();
    assert!(matches!(answer.await, Ok(Ok((Appended::New(..), _)))));
    assert!(matches!(store.check().await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.newest(&[]).await, Err(StoreError::Unavailable(_))));
    assert_eq!(inbox(&open_in(store.dir.path()).unwrap(), "bob").await, [1]);
}

#[tokio::test]
async fn a_full_queue_refuses_by_count_and_by_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { queue_jobs: 2, queue_bytes: 10_000, ..Options::new(RETENTION, INBOX_MAX) };
    let store = SqliteStore::open(dir.path(), &options, &mut Registry::default()).unwrap();
    let (release, mut waiting) = (hold_writer(&store), Vec::new());
    for _ in 0..2 {
        waiting.push(hand_in(&store, |db| db.touch()));
    }
    assert!(matches!(store.check().await, Err(StoreError::Overloaded)));
    store.settle(Vec::new(), at(0)).now_or_never();
    drop(release);
    for answer in waiting.drain(..) {
        answer.await.unwrap().unwrap();
    }
    let release = hold_writer(&store);
    let many: Vec<String> = (0..100).map(|n| format!("u{n}")).collect();
    let large = to_at(&many.iter().map(String::as_str).collect::<Vec<_>>(), at(0));
    let first = store.append(large.clone());
    tokio::pin!(first);
    assert!(first.as_mut().now_or_never().is_none());
    assert!(matches!(store.append(large).await, Err(StoreError::Overloaded)));
    drop(release);
    first.await.unwrap();
}

#[tokio::test]
async fn one_bad_job_does_not_fail_its_neighbours() {
    let store = fresh();
    let twice = to_at(&["bob"], at(0));
    sent(&*store, twice.clone()).await;
    let release = hold_writer(&store);
    let before = hand_in(&store, |db| db.append(&to_at(&["bob", "new"], at(0))));
    let bad = hand_in(&store, move |db| db.append(&twice));
    let after = hand_in(&store, |db| db.append(&to_at(&["bob", "new"], at(0))));
    drop(release);
    assert!(matches!(bad.await.unwrap(), Err(StoreError::Unavailable(_))));
    for answer in [before, after] {
        assert!(matches!(answer.await.unwrap(), Ok((Appended::New(..), _))));
    }
    assert_eq!(inbox(&store, "bob").await, [1, 2, 3], "and no number is lost to it");
    assert_eq!(inbox(&store, "new").await, [1, 2]);
}

#[tokio::test]
async fn a_failed_write_fails_its_batch_and_the_next_one_works() {
    let store = fresh();
    sent(&*store, to_at(&["bob"], at(0))).await;
    for _ in 0..3 {
        let release = hold_writer(&store);
        let before = hand_in(&store, |db| db.append(&to_at(&["bob", "new"], at(0))));
        let bad = hand_in(&store, |_| Err::<(), _>(io_error()));
        drop(release);
        assert!(matches!(before.await.unwrap(), Err(StoreError::Unavailable(_))));
        assert!(matches!(bad.await.unwrap(), Err(StoreError::Unavailable(_))));
        recovered(&store).await;
    }
    assert_eq!(inbox(&store, "bob").await, [1], "nothing of a failed batch is there");
    let (stored, _) = sent(&*store, to_at(&["bob", "new"], at(0))).await;
    assert_eq!(stored.recipients, [(user("bob"), Cursor::new(2)), (user("new"), Cursor::new(1))]);
}

#[tokio::test]
async fn a_settlement_that_could_not_be_written_is_tried_again() {
    let store = fresh();
    let mut append = to_at(&["bob"], at(0));
    append.lease.storage = true;
    let (_, callbacks) = sent(&*store, append).await;
    let release = hold_writer(&store);
    let bad = hand_in(&store, |_| Err::<(), _>(io_error()));
    let decision = crate::domain::callback::Decision::Sent;
    let settlement = Settlement { callback: callbacks[0].clone(), attempts: 1, decision };
    let settled = store.settle(vec![settlement], at(0));
    tokio::pin!(settled);
    assert!(settled.as_mut().now_or_never().is_none());
    drop(release);
    assert!(settled.await.is_err() && bad.await.unwrap().is_err());
    recovered(&store).await;
    assert_eq!(store.lease_due(Endpoint::Storage, at(0), 9).await.unwrap(), callbacks);
}

/// Waits until the store writes again.
async fn recovered(store: &SqliteStore) {
    let patience = Instant::now() + Duration::from_secs(20);
    while let Err(error) = store.check().await {
        assert!(Instant::now() < patience, "it doesn't recover: {error:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A small file system of its own, unmounted on drop. `None` where this process may not mount.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(bytes: usize) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(dir.path())
            .stderr(std::process::Stdio::null())
            .status();
        mount.is_ok_and(|status| status.success()).then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn it_recovers_from_a_full_disk_without_a_restart() {
    let Some(disk) = SmallDisk::mount(16 << 20) else {
        eprintln!("skipped: only root may mount the small disk that this test fills");
        return;
    };
    let store = open_in(disk.0.path()).unwrap();
    let ballast = disk.0.path().join("ballast");
    fill(&ballast, 14 << 20);
    let mut written = 0;
    let failure = loop {
        match store.append(large_message()).await {
            Ok(_) => written += 1,
            Err(failure) => break failure,
        }
        assert!(written < 1000, "the disk never fills");
    };
    assert!(matches!(failure, StoreError::Unavailable(_)));
    fill(&ballast, usize::MAX);
    assert!(never_ready(&store).await, "it finds out that even a small write fails");
    let kept: Vec<u64> = (1..=written).collect();
    assert!(written > 0);
    std::fs::remove_file(&ballast).unwrap();
    recovered(&store).await;
    assert_eq!(inbox(&store, "bob").await, kept, "what was answered is there, and nothing else");
    sent(&*store, large_message()).await;
    assert_eq!(inbox(&store, "bob").await.len() as u64, written + 1);
    store.shut();
    let again = open_in(disk.0.path()).unwrap();
    assert_eq!(inbox(&again, "bob").await.len() as u64, written + 1);
    again.shut();
}

/// Whether small writes come to an end too: some still fit into what the write-ahead log has left.
async fn never_ready(store: &SqliteStore) -> bool {
    for _ in 0..1000 {
        if store.check().await.is_err() {
            return true;
        }
    }
    false
}

/// Makes a file larger by so many bytes, or until the disk is full.
fn fill(file: &Path, bytes: usize) {
    let mut file = std::fs::File::options().create(true).append(true).open(file).unwrap();
    for _ in 0..bytes / 4096 {
        if std::io::Write::write_all(&mut file, &[0; 4096]).is_err() {
            return;
        }
    }
}

fn large_message() -> Append {
    let mut append = to_at(&["bob"], at(0));
    let text = format!("\"{}\"", "x".repeat(60_000));
    append.message.payload = crate::domain::message::RawJson::from_checked(text.into());
    append
}

#[tokio::test]
async fn the_file_gives_back_the_room_of_what_has_expired() {
    let store = fresh();
    for _ in 0..30 {
        let writes: Vec<_> = (0..10).map(|_| store.append(large_message())).collect();
        for answer in futures_util::future::join_all(writes).await {
            answer.unwrap();
        }
    }
    while store.sweep(at(0).plus(RETENTION)).await.unwrap() {}
    let pages: i64 =
        store.write(Size::SMALL, |db| db.db.pragma_query_value(None, "page_count", |r| r.get(0))).await.unwrap();
    assert!(pages * 4096 < 8 << 20, "{pages} pages are left of 18 MB");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever order streams note things in, a device has had exactly what it was noted for, and runs are as few as can be.
    #[test]
    fn runs_of_deliveries_are_joined(notes in proptest::collection::vec((0..3_u8, 0..30_u64, 0..8_u64), 1..40)) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let store = fresh();
            let mut model = std::collections::BTreeMap::<String, std::collections::BTreeSet<u64>>::new();
            for (which, after, count) in notes {
                let name = format!("d{which}");
                model.entry(name.clone()).or_default().extend(after + 1..=after + count);
                let delivered = Some((Cursor::new(after), Cursor::new(after + count)));
                let note = DeviceNote { user: user("bob"), device: device(&name), seen_at: at(0), delivered };
                store.note_devices(vec![note]).await.unwrap();
            }
            let found = store.write(Size::SMALL, |db| runs(db.db)).await.unwrap();
            let mut expected = Vec::new();
            for (device, cursors) in model {
                for &n in &cursors {
                    match expected.last_mut() {
                        Some((name, _, last)) if *name == device && *last + 1 == n => *last = n,
                        _ => expected.push((device.clone(), n, n)),
                    }
                }
            }
            assert_eq!(found, expected);
        });
    }

    /// Against a model that keeps every entry for ever: what a reader sees, and where a device stands, after any history.
    #[test]
    fn inboxes_follow_the_sequence_rule(steps in proptest::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async { history(steps).await });
    }
}

fn runs(db: &rusqlite::Connection) -> rusqlite::Result<Vec<(String, u64, u64)>> {
    db.prepare("SELECT device, first, last FROM delivery ORDER BY device, first")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect()
}

#[derive(Clone, Debug)]
enum Step {
    /// Messages, kept for so many minutes or for the retention.
    Send {
        count: u8,
        minutes: Option<u64>,
    },
    /// Minutes pass.
    Wait(u64),
    Sweep,
    Ack(u64),
    Reopen,
    Fail,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..6_u8, proptest::option::of(1..20_u64)).prop_map(|(count, minutes)| Step::Send { count, minutes }),
        3 => (1..15_u64).prop_map(Step::Wait),
        1 => Just(Step::Wait(5 * 24 * 60)),
        2 => Just(Step::Sweep),
        1 => (0..80_u64).prop_map(Step::Ack),
        1 => Just(Step::Reopen),
        1 => Just(Step::Fail),
    ]
}

/// The inbox as it should be seen: each entry's expiry, in order.
#[derive(Default)]
struct Model {
    expiries: Vec<Timestamp>,
    acked: Option<u64>,
}

impl Model {
    fn live(&self, now: Timestamp) -> Vec<u64> {
        let newest = self.expiries.len() as u64;
        let is_live = |n: &u64| {
            let expiry = self.expiries[usize::try_from(*n).unwrap() - 1];
            *n + INBOX_MAX > newest && expiry > now
        };
        (1..=newest).filter(is_live).collect()
    }

    fn position(&self, now: Timestamp) -> crate::ports::Position {
        let newest = Cursor::new(self.expiries.len() as u64);
        let lost_to = self.live(now).first().map_or(newest, |first| Cursor::new(first - 1));
        crate::ports::Position { acked: self.acked.map(Cursor::new), lost_to, newest }
    }
}

async fn history(steps: Vec<Step>) {
    let mut store = fresh();
    let (mut model, mut minute) = (Model::default(), 0);
    for step in steps {
        match step {
            Step::Send { count, minutes } => {
                for _ in 0..count {
                    let mut append = to_at(&["bob"], at(minute));
                    append.expires_at = minutes.map_or(append.expires_at, |m| at(minute + m));
                    model.expiries.push(append.expires_at);
                    let (stored, _) = sent(&*store, append).await;
                    assert_eq!(stored.recipients[0].1.get(), model.expiries.len() as u64);
                }
            }
            Step::Wait(minutes) => minute += minutes,
            Step::Sweep => while store.sweep(at(minute)).await.unwrap() {},
            Step::Ack(n) => {
                let answer = store.ack(&user("bob"), &device("phone"), Cursor::new(n), at(minute)).await.unwrap();
                assert_eq!(answer == crate::ports::Acked::Done, n <= model.expiries.len() as u64);
                if answer == crate::ports::Acked::Done {
                    model.acked = model.acked.max(Some(n));
                }
            }
            Step::Reopen => {
                store.shut();
                store.store = open_in(store.dir.path()).unwrap();
            }
            Step::Fail => {
                assert!(store.write(Size::SMALL, |_| Err::<(), _>(io_error())).await.is_err());
                recovered(&store).await;
            }
        }
        let limit = PageLimit { messages: 1000, payload_bytes: usize::MAX };
        let page = store.page(&user("bob"), Cursor::START, limit, at(minute)).await.unwrap();
        assert_eq!(cursors(&page), model.live(at(minute)));
        assert_eq!(page.next.get(), model.expiries.len() as u64);
        let position = store.position(&user("bob"), &device("phone"), at(minute)).await.unwrap();
        assert_eq!(position, model.position(at(minute)));
    }
}
