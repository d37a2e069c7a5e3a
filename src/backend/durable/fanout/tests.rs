//! The worker on steps in memory that can be made to fail.

use super::{BITE, Begun, Steps, WAITING, Worker};
use crate::backend::conformance::store::{at, keyed, to_at};
use crate::ports::{Append, StoreError};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// A send that was begun: its number, how many recipients it has, and how many of them have a place.
type Fanout = (usize, usize, usize);

#[derive(Default)]
struct Kept {
    begun: usize,
    unfinished: Vec<Fanout>,
    finished: Vec<usize>,
    failures: usize,
    /// One that fails again and again.
    broken: Option<usize>,
}

struct Memory {
    kept: Mutex<Kept>,
    /// One permit is one bite.
    may_bite: Semaphore,
}

impl Memory {
    fn new(bites: usize) -> Arc<Self> {
        Arc::new(Self { kept: Mutex::default(), may_bite: Semaphore::new(bites) })
    }

    async fn until(&self, done: impl Fn(&Kept) -> bool) {
        let waited = async {
            while !done(&self.kept.lock()) {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_mins(1), waited).await.expect("it never came to that");
    }
}

#[async_trait]
impl Steps for Memory {
    type Fanout = Fanout;
    type Answer = usize;

    async fn begin(&self, new: Append) -> Result<Begun<Fanout, usize>, StoreError> {
        if new.key.is_some() {
            return Ok(Begun::Answered(7));
        }
        let mut kept = self.kept.lock();
        kept.begun += 1;
        let fanout = (kept.begun, new.recipients.len(), 0);
        kept.unfinished.push(fanout);
        Ok(Begun::New(fanout))
    }

    async fn bite(&self, fanout: &mut Fanout) -> Result<bool, StoreError> {
        self.may_bite.acquire().await.unwrap().forget();
        let mut kept = self.kept.lock();
        if kept.failures > 0 || kept.broken == Some(fanout.0) {
            kept.failures = kept.failures.saturating_sub(1);
            return Err(StoreError::Unavailable("no room".into()));
        }
        fanout.2 = fanout.1.min(fanout.2 + BITE);
        let stored = kept.unfinished.iter_mut().find(|stored| stored.0 == fanout.0).unwrap();
        *stored = *fanout;
        Ok(fanout.2 < fanout.1)
    }

    async fn finish(&self, fanout: Fanout) -> Result<usize, StoreError> {
        let mut kept = self.kept.lock();
        kept.unfinished.retain(|stored| stored.0 != fanout.0);
        kept.finished.push(fanout.0);
        Ok(fanout.2)
    }

    async fn left_over(&self) -> Result<Vec<Fanout>, StoreError> {
        Ok(self.kept.lock().unfinished.clone())
    }
}

fn large() -> Append {
    let names: Vec<_> = (0..1_203).map(|n| format!("u{n}")).collect();
    to_at(&names.iter().map(String::as_str).collect::<Vec<_>>(), at(0))
}

#[tokio::test(start_paused = true)]
async fn a_send_is_bitten_to_its_end() {
    let steps = Memory::new(3);
    let worker = Worker::start(Arc::clone(&steps));
    assert_eq!(worker.append(large()).await.unwrap(), 1_203);
    assert_eq!(steps.may_bite.available_permits(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_failed_is_completed_later_and_new_sends_do_not_wait_for_it() {
    let steps = Memory::new(100);
    let worker = Worker::start(Arc::clone(&steps));
    steps.kept.lock().failures = 1;
    assert!(matches!(worker.append(large()).await, Err(StoreError::Unavailable(_))));
    assert_eq!(worker.append(large()).await.unwrap(), 1_203);
    steps.until(|kept| kept.finished.len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_left_over_at_the_start_is_completed_although_it_fails_again() {
    let steps = Memory::new(100);
    *steps.kept.lock() =
        Kept { begun: 2, unfinished: vec![(1, 1_203, 500), (2, 700, 0)], failures: 5, ..Kept::default() };
    let _worker = Worker::start(Arc::clone(&steps));
    steps.until(|kept| kept.finished.len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_again_and_again_holds_up_no_other() {
    let steps = Memory::new(1_000_000);
    *steps.kept.lock() =
        Kept { begun: 2, unfinished: vec![(1, 1_203, 500), (2, 700, 0)], broken: Some(1), ..Kept::default() };
    let worker = Worker::start(Arc::clone(&steps));
    assert_eq!(worker.append(large()).await.unwrap(), 1_203);
    steps.until(|kept| kept.finished.contains(&2) && kept.finished.contains(&3)).await;
    steps.kept.lock().broken = None;
    steps.until(|kept| kept.finished.contains(&1)).await;
}

#[tokio::test(start_paused = true)]
async fn what_another_leaves_behind_while_this_one_works_is_found() {
    let steps = Memory::new(100);
    let worker = Worker::start(Arc::clone(&steps));
    worker.append(large()).await.unwrap();
    steps.kept.lock().unfinished.push((2, 700, 500));
    steps.until(|kept| kept.finished == [1, 2]).await;
}

#[tokio::test(start_paused = true)]
async fn a_send_happens_although_its_caller_is_gone() {
    let steps = Memory::new(0);
    let worker = Worker::start(Arc::clone(&steps));
    tokio::select! {
        answer = worker.append(large()) => panic!("{answer:?} without a bite"),
        () = steps.until(|kept| kept.begun == 1) => {}
    }
    steps.may_bite.add_permits(3);
    steps.until(|kept| kept.finished == [1]).await;
}

#[tokio::test(start_paused = true)]
async fn more_than_may_wait_are_refused() {
    let steps = Memory::new(0);
    let worker = Worker::start(Arc::clone(&steps));
    let sends = futures_util::future::join_all((0..WAITING + 5).map(|_| worker.append(large())));
    let release = async {
        steps.until(|kept| kept.begun == 1).await;
        steps.may_bite.add_permits(1_000);
    };
    let (answers, ()) = tokio::join!(sends, release);
    let refused = answers.iter().filter(|answer| matches!(answer, Err(StoreError::Overloaded))).count();
    assert_eq!(refused, 5);
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), WAITING);
}

#[tokio::test(start_paused = true)]
async fn closing_ends_between_two_bites_and_leaves_the_rest_for_the_next_start() {
    let steps = Memory::new(0);
    let worker = Worker::start(Arc::clone(&steps));
    let close = async {
        steps.until(|kept| kept.begun == 1).await;
        let release = async { steps.may_bite.add_permits(1) };
        tokio::join!(worker.close(), release);
    };
    let (answer, ()) = tokio::join!(worker.append(large()), close);
    assert!(matches!(answer, Err(StoreError::Unavailable(_))));
    assert_eq!(steps.kept.lock().unfinished, [(1, 1_203, 500)]);
    steps.may_bite.add_permits(2);
    let _next = Worker::start(Arc::clone(&steps));
    steps.until(|kept| kept.finished == [1]).await;
}

#[tokio::test(start_paused = true)]
async fn what_its_key_answers_is_not_bitten() {
    let steps = Memory::new(0);
    let worker = Worker::start(Arc::clone(&steps));
    assert_eq!(worker.append(keyed(large(), "k", 1, at(60))).await.unwrap(), 7);
}
