//! 6. Called back: every persisted message reaches the storage callback, and the push callback if no device took it, at least once.

use super::messages_told;
use crate::harness::receiver::{Call, Reply};
use crate::harness::*;
use crate::support::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeSet;
use std::thread::{scope, sleep};
use std::time::Duration;

/// An endpoint that was down is probed after up to a minute, and a busy machine takes long for thousands of callbacks.
const CAUGHT_UP: Duration = Duration::from_secs(150);

/// From the environment if it is there, so that a failure can be repeated.
fn seeded() -> StdRng {
    let seed = std::env::vars().find(|(name, _)| name == "HERENOW_TEST_SEED").map(|(_, seed)| seed.parse().unwrap());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    eprintln!("to repeat this: HERENOW_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// Any answer, good ones among them.
fn luck(random: &mut StdRng) -> Reply {
    match random.random_range(0..12) {
        0 => Reply::Status(500),
        1 => Reply::Status(400),
        2 => Reply::Close,
        3 => Reply::Garbage,
        4 => Reply::Cut,
        5 => Reply::With(503, "Retry-After", "1".into()),
        6 => Reply::Delay(Duration::from_millis(100)),
        7 => Reply::Hang,
        _ => Reply::Status(200),
    }
}

#[test]
fn through_kills_and_bad_answers_every_message_is_told_of() {
    let mut random = seeded();
    let (storage, push) = (Receiver::start(), Receiver::start());
    for receiver in [&storage, &push] {
        let mut random = StdRng::seed_from_u64(random.random());
        receiver.answer_by(move |_| luck(&mut random));
    }
    let set = ["callbacks.storage.timeout_ms=300", "callbacks.push.timeout_ms=300", "callbacks.push.grace_ms=500"];
    let mut node = node_of(&[("storage", &storage), ("push", &push)], &set);
    let mut ids = BTreeSet::new();
    for round in 0..4 {
        let mut phone = (round % 2 == 0).then(|| node.stream("bob", "phone").after("now").open());
        for n in 0..20 {
            ids.insert(stored(&node, &chat(&["bob", "away"], &json!([round, n]))));
        }
        sleep(Duration::from_millis(random.random_range(0..600)));
        if let Some(phone) = &mut phone {
            phone.drain();
        }
        node.kill();
        node.restart();
    }
    assert!(callbacks(&node, "state=dead").is_empty(), "nothing dies of that");
    for receiver in [&storage, &push] {
        receiver.answer(Reply::Status(200));
    }
    eventually("nothing is left to tell", || {
        node.backend().post("/v1/callbacks/retry", &json!({"state": "failing"})).expect(202);
        let left = callbacks(&node, "");
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    assert_eq!(messages_told(&storage), ids);
    let pushed = |user: &str| {
        let calls = push.accepted();
        let of_user = calls.iter().filter(|call| call.data()["recipient"] == user);
        of_user.map(Call::message_id).collect::<BTreeSet<_>>()
    };
    assert_eq!(pushed("away"), ids);
    let pushed = pushed("bob");
    for id in &ids {
        let status = status_of(&node, id);
        let bob = &status["recipients"][0];
        let taken = !bob["delivered_to"].as_array().unwrap().is_empty();
        assert!(taken || pushed.contains(id), "neither taken nor pushed: {status}");
        assert_eq!(status["storage"]["state"], "sent");
        let wanted: &[&str] = if taken { &["sent", "not_needed"] } else { &["sent"] };
        assert!(wanted.contains(&bob["push"]["state"].as_str().unwrap()), "{status}");
    }
}

#[test]
fn more_messages_than_a_dispatcher_holds_are_all_told_of() {
    let storage = Receiver::start_down();
    let node = node_of(&[("storage", &storage)], &[]);
    // Beyond what is in memory at most, so that most of them wait in the store alone.
    let ids: BTreeSet<String> = scope(|scope| {
        let node = &node;
        let send =
            move |caller| (0..300).map(|n| stored(node, &chat(&["bob"], &json!([caller, n])))).collect::<Vec<_>>();
        let callers: Vec<_> = (0..8).map(|caller| scope.spawn(move || send(caller))).collect();
        callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
    });
    storage.set_down(false);
    eventually_within(CAUGHT_UP, "it has caught up", || match messages_told(&storage).len() {
        n if n >= ids.len() => Ok(()),
        n => Err(format!("{n} of {}", ids.len())),
    });
    assert_eq!(messages_told(&storage), ids);
    expect_listed(&node, "", 0);
}
