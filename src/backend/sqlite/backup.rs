//! A copy of the database while it is written to (`herenow backup`).
//!
//! It is of one state: one read transaction is held from the first page to the last, so that the copying never begins anew, however much
//! is written meanwhile. The price is that the write-ahead log can't be begun anew until then, and grows. So the copying rests between
//! steps no longer than the step took: senders have half of the disk to themselves, and it ends in time.

use super::FILE;
use super::schema::open_onlooker;
use crate::domain::time::Timestamp;
use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// 2 MiB at a time.
const STEP_PAGES: i32 = 512;

/// What was copied.
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    /// The copy's length.
    pub bytes: u64,
    /// All that was durable at this time is in it.
    pub as_of: Timestamp,
    /// Copying and checking.
    pub took: Duration,
}

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is nothing to copy.
    #[error("there is no store in {}", .0.display())]
    NoStore(PathBuf),
    /// It would be overwritten.
    #[error("{} is there already, and is not overwritten", .0.display())]
    Exists(PathBuf),
    /// Where a copy is written until it is whole.
    #[error("{} is there: either another backup is writing it, or one was interrupted; remove it then", .0.display())]
    Begun(PathBuf),
    /// What was read is damaged.
    #[error("the store or its copy is damaged, so the copy was not kept: {0}")]
    Damaged(String),
    /// A page could not be read or written because somebody else held a lock.
    #[error("another program has locked the store or the copy")]
    Locked,
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Its words.
        source: io::Error,
    },
    /// SQLite refused.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    |source| BackupError::Io { path: path.to_owned(), source }
}

/// Copies the database in `dir`, whether or not a process works with it, to the new file `to`. That is there only once the copy is whole,
/// was checked, and is on the disk. Blocks until then.
pub fn backup(dir: &Path, to: &Path) -> Result<Copied, BackupError> {
    let source = dir.join(FILE);
    if !source.exists() {
        return Err(BackupError::NoStore(dir.to_owned()));
    }
    if to.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(to.to_owned()));
    }
    let begun = Instant::now();
    let draft = Draft::new(to)?;
    let as_of = Timestamp::now();
    copy(&open_onlooker(&source)?, &draft)?;
    check(&draft.path)?;
    let bytes = draft.keep(to)?;
    Ok(Copied { bytes, as_of, took: begun.elapsed() })
}

fn copy(source: &Connection, draft: &Draft) -> Result<(), BackupError> {
    let snapshot = source.unchecked_transaction()?;
    // The transaction begins with the first read.
    snapshot.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    let mut target = Connection::open(&draft.path)?;
    // Until it is whole, nobody needs to recover it.
    target.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")?;
    let backup = Backup::new(source, &mut target)?;
    loop {
        let begun = Instant::now();
        match backup.step(STEP_PAGES)? {
            StepResult::Done => return Ok(()),
            StepResult::More => {}
            // Nobody else has the target, and the source is being read already.
            StepResult::Busy | StepResult::Locked | _ => return Err(BackupError::Locked),
        }
        // Written as it comes: all at once, at the end, would hold up the fsyncs of senders.
        draft.file.sync_data().map_err(at(&draft.path))?;
        std::thread::sleep(begun.elapsed());
    }
}

/// Reads all of the copy, and makes it one file that needs no other beside it.
fn check(path: &Path) -> Result<(), BackupError> {
    let db = Connection::open(path)?;
    db.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
    let said: String = db.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if said == "ok" { Ok(()) } else { Err(BackupError::Damaged(said)) }
}

/// A copy that isn't whole yet, under another name; dropping it removes it. Only its owner can read it, as it holds what users wrote.
struct Draft {
    path: PathBuf,
    file: File,
}

impl Draft {
    fn new(to: &Path) -> Result<Self, BackupError> {
        let path = beside(to, ".part");
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(BackupError::Begun(path)),
            Err(e) => Err(at(&path)(e)),
        }
    }

    /// Gives it its name, unless somebody else has taken that meanwhile.
    fn keep(self, to: &Path) -> Result<u64, BackupError> {
        self.file.sync_all().map_err(at(&self.path))?;
        match fs::hard_link(&self.path, to) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(BackupError::Exists(to.to_owned())),
            // A file system without links.
            Err(_) => fs::rename(&self.path, to).map_err(at(to))?,
        }
        let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(at(dir))?;
        Ok(self.file.metadata().map_err(at(to))?.len())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        for suffix in ["", "-journal", "-wal", "-shm"] {
            // One that isn't there needs no removing, and nobody hears of more from a drop.
            let _ = fs::remove_file(beside(&self.path, suffix));
        }
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::super::schema::open_writer;
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn store(dir: &Path, rows: u32) -> Connection {
        let db = open_writer(&dir.join(FILE)).unwrap();
        let tx = db.unchecked_transaction().unwrap();
        for _ in 0..rows {
            insert(&tx);
        }
        tx.commit().unwrap();
        db
    }

    fn insert(db: &Connection) {
        db.execute("INSERT INTO user (name) VALUES (hex(randomblob(2000)))", []).unwrap();
    }

    fn users(path: &Path) -> i64 {
        let db = Connection::open(path).unwrap();
        db.query_row("SELECT count(*) FROM user", [], |row| row.get(0)).unwrap()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_copy_is_one_file_of_one_state_whatever_is_written_meanwhile() {
        let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let db = store(dir.path(), 2_000);
        let copy = to.path().join("copy.db");
        let ended = &AtomicBool::new(false);
        let (written, copied) = std::thread::scope(|scope| {
            let writer = scope.spawn(move || {
                let mut written = 0;
                while !ended.load(Ordering::Relaxed) {
                    insert(&db);
                    written += 1;
                }
                written
            });
            let copied = backup(dir.path(), &copy);
            ended.store(true, Ordering::Relaxed);
            (writer.join().unwrap(), copied)
        });
        let copied = copied.unwrap();
        assert!(written > 0);
        assert!(copied.bytes > 8_000_000 && copied.bytes == fs::metadata(&copy).unwrap().len());
        assert!((2_000..users(&dir.path().join(FILE))).contains(&users(&copy)));
        assert_eq!(names(to.path()), ["copy.db"]);
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_is_left_of_a_copy_that_failed() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("copy.db");
        assert!(matches!(backup(dir.path(), &to), Err(BackupError::NoStore(_))));
        drop(store(dir.path(), 1));
        fs::write(&to, "mine").unwrap();
        assert!(matches!(backup(dir.path(), &to), Err(BackupError::Exists(_))));
        assert_eq!(fs::read(&to).unwrap(), b"mine");
        fs::remove_file(&to).unwrap();
        fs::write(beside(&to, ".part"), "another's").unwrap();
        assert!(matches!(backup(dir.path(), &to), Err(BackupError::Begun(_))));
        fs::remove_file(beside(&to, ".part")).unwrap();
        let before = names(dir.path());
        assert!(matches!(backup(dir.path(), &dir.path().join("none/copy.db")), Err(BackupError::Io { .. })));
        fs::write(dir.path().join(FILE), [7; 8192]).unwrap();
        assert!(matches!(backup(dir.path(), &to), Err(BackupError::Sqlite(_))));
        assert_eq!(names(dir.path()), before);
    }

    #[test]
    fn a_damaged_store_is_told_and_no_copy_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        drop(store(dir.path(), 50));
        let path = dir.path().join(FILE);
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 4_096;
        bytes[last..].fill(0xff);
        fs::write(&path, bytes).unwrap();
        let to = dir.path().join("copy.db");
        assert!(matches!(backup(dir.path(), &to), Err(BackupError::Damaged(_))));
        assert!(!to.exists());
    }
}
