//! The one thread that writes. It takes what has queued while the last commit ran, and what arrives while it writes that, and one fsync
//! serves all of it: group commit, without an artificial linger.
//!
//! After a failed write the connection is given up and the database opened anew: after a failed fsync the kernel may have dropped the
//! pages, so a repeat on the same handle could report what isn't so (CONTRACT.md 10.4). It recovers without a restart (10.8).

use super::append::Inserts;
use super::jobs::{Batch, Job, Queue};
use super::leases::Leases;
use super::readers::Readers;
use super::retention::Sweeping;
use super::schema::{OpenError, open_writer};
use super::users::Users;
use crate::backend::durable::metrics::Metrics;
use crate::ports::StoreError;
use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::ContextV7;

/// After the first failure the next job tries again at once; after each further one the pause doubles up to here.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What a job writes with: an open transaction and what the writer keeps in memory beside it.
pub(super) struct Writing<'a> {
    pub db: &'a Connection,
    pub inserts: Inserts<'a>,
    pub users: &'a mut Users,
    pub sweeping: &'a mut Sweeping,
    pub ids: &'a ContextV7,
    pub leases: &'a Arc<Leases>,
    pub rules: Rules,
}

impl Writing<'_> {
    /// Writes a row of no meaning, to learn whether writing works.
    pub fn touch(&self) -> rusqlite::Result<()> {
        self.db.prepare_cached("UPDATE health SET checked = checked + 1")?.execute([])?;
        Ok(())
    }
}

/// The operator's bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub retention: Duration,
    /// Newest kept per user.
    pub inbox_max: u64,
}

/// What the thread shares with the rest of the store.
pub(super) struct Parts {
    pub rules: Rules,
    pub queue: Arc<Queue>,
    pub readers: Arc<Readers>,
    pub leases: Arc<Leases>,
    pub metrics: Metrics,
}

/// The state of the thread.
pub(super) struct Writer {
    path: PathBuf,
    parts: Parts,
    ids: ContextV7,
    users: Users,
    sweeping: Sweeping,
    /// `None` after a failure, until it is opened anew.
    db: Option<Connection>,
    failures: u32,
    not_before: Instant,
}

/// An error that all jobs of a batch share.
#[derive(Clone, Debug, thiserror::Error)]
#[error(transparent)]
struct Shared(Arc<OpenError>);

impl Shared {
    fn new(error: impl Into<OpenError>) -> Self {
        Self(Arc::new(error.into()))
    }

    fn answer(&self) -> StoreError {
        StoreError::Unavailable(Box::new(self.clone()))
    }
}

impl Writer {
    /// Opens the database, so that a start fails early.
    pub fn open(path: PathBuf, parts: Parts) -> Result<Self, OpenError> {
        let db = Some(open_writer(&path)?);
        Ok(Self {
            path,
            parts,
            ids: ContextV7::new(),
            users: Users::default(),
            sweeping: None,
            db,
            failures: 0,
            not_before: Instant::now(),
        })
    }

    /// Writes until the queue is closed and empty.
    pub fn run(mut self) {
        // Also when a job panics: nobody may wait for a thread that is gone.
        let _ended = AbandonOnDrop(Arc::clone(&self.parts.queue));
        while let Some(batch) = self.parts.queue.take() {
            self.serve(batch);
        }
    }

    fn serve(&mut self, mut batch: Batch) {
        let started = Instant::now();
        let outcome = self.commit(&mut batch);
        self.parts.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
        self.parts.metrics.commit_jobs.observe(f64::from(u32::try_from(batch.jobs.len()).unwrap_or(u32::MAX)));
        match outcome {
            Ok(()) => answer_all(batch.jobs, None),
            Err(OpenError::Sqlite(error)) if is_the_jobs_own(&error) => self.serve_singly(batch.jobs),
            Err(error) => self.fail(batch.jobs, error),
        }
    }

    /// One bad job doesn't fail its neighbours. So no savepoint per job is needed where all is well.
    fn serve_singly(&mut self, jobs: Vec<Box<dyn Job>>) {
        self.forget();
        let mut jobs = jobs.into_iter();
        while let Some(job) = jobs.next() {
            let mut alone = Batch::alone(job);
            match self.commit(&mut alone) {
                Ok(()) => answer_all(alone.jobs, None),
                Err(OpenError::Sqlite(error)) if is_the_jobs_own(&error) => {
                    self.forget();
                    self.parts.metrics.errors.inc();
                    tracing::error!(error = %error, "a write was refused by the database");
                    answer_all(alone.jobs, Some(&Shared::new(error)));
                }
                Err(error) => return self.fail(alone.jobs.into_iter().chain(jobs).collect(), error),
            }
        }
    }

    /// What was kept in memory beside a transaction goes with it.
    fn forget(&mut self) {
        self.users.forget();
        self.sweeping = None;
    }

    fn commit(&mut self, batch: &mut Batch) -> Result<(), OpenError> {
        let db = match &mut self.db {
            Some(db) => db,
            none => none.insert(reopen(&self.path, self.not_before)?),
        };
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut writing = Writing {
            db: &tx,
            inserts: Inserts::new(&tx)?,
            users: &mut self.users,
            sweeping: &mut self.sweeping,
            ids: &self.ids,
            leases: &self.parts.leases,
            rules: self.parts.rules,
        };
        let mut done = 0;
        loop {
            for job in &mut batch.jobs[done..] {
                job.run(&mut writing)?;
            }
            done = batch.jobs.len();
            if !self.parts.queue.add_to(batch) {
                break;
            }
        }
        drop(writing);
        tx.commit()?;
        self.failures = 0;
        Ok(())
    }

    fn fail(&mut self, batch: Vec<Box<dyn Job>>, error: OpenError) {
        // While it pauses, it has said so already.
        if self.db.is_some() || Instant::now() >= self.not_before {
            tracing::error!(error = %error, jobs = batch.len(), "the store can't write");
            self.give_up_connection();
        }
        self.parts.metrics.errors.inc();
        answer_all(batch, Some(&Shared::new(error)));
    }

    fn give_up_connection(&mut self) {
        self.db = None;
        self.forget();
        self.parts.readers.renew();
        let pause = match self.failures {
            0 => Duration::ZERO,
            n => LONGEST_PAUSE.min(Duration::from_millis(10 << n.min(10))),
        };
        self.failures = self.failures.saturating_add(1);
        self.not_before = Instant::now() + pause;
    }
}

fn reopen(path: &std::path::Path, not_before: Instant) -> Result<Connection, OpenError> {
    if Instant::now() < not_before {
        return Err(std::io::Error::other("the last write failed, and it is too soon to try again").into());
    }
    open_writer(path)
}

fn answer_all(batch: Vec<Box<dyn Job>>, failure: Option<&Shared>) {
    for job in batch {
        job.answer(failure.map(Shared::answer));
    }
}

/// Whether the fault lies with a job rather than with the disk: a neighbour can still be written.
fn is_the_jobs_own(error: &rusqlite::Error) -> bool {
    // What isn't from SQLite is a row or a value that can't be read or written.
    error.sqlite_error_code().is_none_or(|code| {
        matches!(
            code,
            ErrorCode::ConstraintViolation
                | ErrorCode::TooBig
                | ErrorCode::TypeMismatch
                | ErrorCode::ParameterOutOfRange
        )
    })
}

struct AbandonOnDrop(Arc<Queue>);

impl Drop for AbandonOnDrop {
    fn drop(&mut self) {
        self.0.abandon();
    }
}
