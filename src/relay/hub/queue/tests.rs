use super::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::time::Duration;

fn limits() -> QueueLimits {
    QueueLimits { frames: 5, bytes: 100, budget: Arc::new(Budget::new(1_000)) }
}

/// A frame that counts as so many bytes, and at least as what the framing of a chunk takes.
fn frame(bytes: usize) -> Frame {
    let framing = Frame::whole(b"").len();
    Frame::whole(&vec![b'x'; bytes.saturating_sub(framing)])
}

fn offer(bytes: usize, key: Option<&str>, expires_at: Instant) -> Offer {
    Offer { frame: frame(bytes), expires_at, collapse_key: key.map(Into::into) }
}

/// Offers without a socket, so that it waits.
fn put(queue: &mut Queue, offer: Offer, now: Instant) -> Result<(u64, oneshot::Receiver<Verdict>), Refusal> {
    match queue.offer(offer, None, now)? {
        Offering::Waits(number, verdict) => Ok((number, verdict)),
        Offering::Written | Offering::Begun => panic!("there is no socket"),
    }
}

fn take(queue: &mut Queue, now: Instant) -> Option<Taken> {
    queue.take(now)
}

#[test]
fn a_dropped_receipt_refuses() {
    let (receipt, mut verdict) = Receipt::new();
    drop(receipt);
    assert_eq!(verdict.try_recv(), Ok(Verdict::Refused(Refusal::Closed)));
}

#[test]
fn a_newer_frame_takes_the_place_of_an_older_with_its_key() {
    let now = Instant::now();
    let later = now + Duration::from_secs(1);
    let mut queue = Queue::new(limits());
    let (_, mut first) = put(&mut queue, offer(20, Some("k"), later), now).unwrap();
    let (_, mut second) = put(&mut queue, offer(1, None, later), now).unwrap();
    let (_, mut third) = put(&mut queue, offer(21, Some("k"), later), now).unwrap();
    assert_eq!(first.try_recv(), Ok(Verdict::Refused(Refusal::Superseded)));
    let Some(Taken::OnlineOnly(frame, receipt)) = take(&mut queue, now) else { panic!("the newer stands first") };
    assert_eq!(frame.len(), 21);
    receipt.resolve(Verdict::Taken);
    assert_eq!(third.try_recv(), Ok(Verdict::Taken));
    assert!(second.try_recv().is_err(), "still waits");
}

#[test]
fn a_full_queue_leaves_persisted_messages_to_the_store() {
    let now = Instant::now();
    let mut queue = Queue::new(limits());
    for n in 1..=7 {
        queue.put_persisted(Cursor::new(n), frame(1), now);
    }
    for n in 1..=5 {
        assert!(matches!(take(&mut queue, now), Some(Taken::Persisted(c, _)) if c.get() == n));
    }
    assert!(matches!(take(&mut queue, now), Some(Taken::Behind)));
    assert!(take(&mut queue, now).is_none());
}

#[test]
fn the_first_goodbye_counts_and_refuses_what_waits() {
    let now = Instant::now();
    let mut queue = Queue::new(limits());
    let (_, mut verdict) = put(&mut queue, offer(1, None, now + Duration::from_secs(1)), now).unwrap();
    queue.end(Bye::Kicked);
    queue.end(Bye::Draining);
    assert_eq!(verdict.try_recv(), Ok(Verdict::Refused(Refusal::Closed)));
    assert!(matches!(put(&mut queue, offer(1, None, now), now), Err(Refusal::Closed)));
    assert!(matches!(take(&mut queue, now), Some(Taken::End(Bye::Kicked))));
    assert!(take(&mut queue, now).is_none());
}

#[test]
fn all_queues_together_are_bounded_and_give_back_what_they_held() {
    let now = Instant::now();
    let later = now + Duration::from_secs(1);
    let shared = QueueLimits { budget: Arc::new(Budget::new(100)), ..limits() };
    let (mut one, mut other) = (Queue::new(shared.clone()), Queue::new(shared.clone()));
    put(&mut one, offer(60, None, later), now).unwrap();
    assert!(matches!(put(&mut other, offer(60, None, later), now), Err(Refusal::Full)));
    put(&mut other, offer(40, None, later), now).unwrap();
    drop(one);
    put(&mut other, offer(60, None, later), now).unwrap();
    other.close();
    assert_eq!(shared.budget.used.load(Ordering::Relaxed), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Offer { bytes: usize, key: Option<u8>, ttl: u64 },
    Persist { bytes: usize },
    Take,
    Revoke(usize),
    Wait(u64),
    End,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_usize..60, proptest::option::of(0_u8..3), 1_u64..20).prop_map(|(bytes, key, ttl)| Step::Offer { bytes, key, ttl }),
        2 => (1_usize..60).prop_map(|bytes| Step::Persist { bytes }),
        3 => Just(Step::Take),
        1 => (0_usize..40).prop_map(Step::Revoke),
        1 => (1_u64..15).prop_map(Step::Wait),
        1 => prop_oneof![9 => Just(Step::Take), 1 => Just(Step::End)],
    ]
}

proptest! {
    /// Whatever happens, the bounds hold, every offer gets exactly one verdict, and `Taken` is told of just those that were taken.
    #[test]
    fn bounds_hold_and_every_receipt_is_honest(steps in proptest::collection::vec(step(), 1..120)) {
        let mut now = Instant::now();
        let mut queue = Queue::new(limits());
        let mut verdicts = HashMap::new();
        let (mut taken, mut next_cursor, mut last_cursor) = (vec![], 0, 0);
        for step in steps {
            match step {
                Step::Offer { bytes, key, ttl } => {
                    let key = key.map(|k| k.to_string());
                    let o = offer(bytes, key.as_deref(), now + Duration::from_millis(ttl));
                    if let Ok((number, verdict)) = put(&mut queue, o, now) {
                        verdicts.insert(number, verdict);
                    }
                }
                Step::Persist { bytes } => {
                    next_cursor += 1;
                    queue.put_persisted(Cursor::new(next_cursor), frame(bytes), now);
                }
                Step::Take => match take(&mut queue, now) {
                    Some(Taken::OnlineOnly(_, receipt)) => {
                        receipt.resolve(Verdict::Taken);
                        taken.push(());
                    }
                    Some(Taken::Persisted(c, _)) => {
                        prop_assert!(c.get() > last_cursor, "in order, none twice");
                        last_cursor = c.get();
                    }
                    Some(Taken::Behind) => last_cursor = next_cursor,
                    Some(Taken::Rest(..)) => prop_assert!(false, "there is no socket"),
                    Some(Taken::Recall(..) | Taken::End(_)) | None => {}
                },
                Step::Revoke(n) => {
                    let number = n as u64;
                    if queue.revoke(number, Refusal::Revoked) {
                        let verdict = verdicts.get_mut(&number).unwrap().try_recv();
                        prop_assert_eq!(verdict, Ok(Verdict::Refused(Refusal::Revoked)));
                        verdicts.remove(&number);
                    }
                }
                Step::Wait(ms) => now += Duration::from_millis(ms),
                Step::End => queue.end(Bye::Kicked),
            }
            prop_assert!(queue.entries.len() <= queue.limits.frames);
            prop_assert!(queue.bytes <= queue.limits.bytes);
            prop_assert_eq!(queue.bytes, queue.entries.iter().map(|e| e.frame().len()).sum::<usize>());
            prop_assert_eq!(queue.bytes, queue.limits.budget.used.load(Ordering::Relaxed));
        }
        drop(queue);
        let mut told = 0;
        for verdict in verdicts.values_mut() {
            told += usize::from(verdict.try_recv().expect("one verdict each") == Verdict::Taken);
        }
        prop_assert_eq!(told, taken.len());
    }
}
