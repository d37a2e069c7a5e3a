//! CONTRACT.md 10, the rules of the durable plane: 4, 6 and, as far as one process goes, 8. Each holds through whatever happens in its test.

use crate::harness::receiver::{Call, Reply};
use crate::harness::*;
use crate::support::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeSet;
use std::thread::{scope, sleep};
use std::time::Duration;

/// From the environment if it is there, so that a failure can be repeated.
fn seeded() -> StdRng {
    let seed = std::env::vars().find(|(name, _)| name == "HERENOW_TEST_SEED").map(|(_, seed)| seed.parse().unwrap());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    eprintln!("to repeat this: HERENOW_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

fn messages_told(receiver: &Receiver) -> BTreeSet<String> {
    receiver.accepted().iter().map(Call::message_id).collect()
}

/// 4. A 201 survives `kill -9` at the next instant.
mod rule_4_durable {
    use super::*;

    #[test]
    fn a_201_survives_a_kill_at_the_next_instant() {
        let (storage, push) = (Receiver::start(), Receiver::start());
        let mut node = node_of(&[("storage", &storage), ("push", &push)], &[]);
        let mut ids = BTreeSet::new();
        for round in 0..8 {
            for n in 0..=round % 3 {
                ids.insert(stored(&node, &chat(&["bob"], &json!([round, n]))));
            }
            node.kill();
            node.restart();
            let inbox = whole_inbox(&node, "bob");
            assert_eq!(inbox.iter().map(|message| text(&message["id"])).collect::<BTreeSet<_>>(), ids);
            assert_eq!(each(&inbox, "/cursor"), (1..=ids.len()).map(|n| n.to_string()).collect::<Vec<_>>());
        }
        for receiver in [&storage, &push] {
            eventually_is("all are told of", || messages_told(receiver), |told| *told == ids);
        }
    }

    #[test]
    fn the_answer_to_a_key_survives_as_well_and_is_given_again() {
        let mut node = Node::start();
        let message = chat(&["bob", "carol"], &json!(1));
        let first = send_with_key(&node, &message, "key").expect(201);
        node.kill();
        node.restart();
        let again = send_with_key(&node, &message, "key").expect(201);
        assert_eq!((again.json(), again.header("idempotent-replayed")), (first.json(), Some("true")));
        send_with_key(&node, &chat(&["bob"], &json!(2)), "key").problem(422, "idempotency_key_reused");
        assert_eq!(whole_inbox(&node, "bob").len(), 1);
    }
}

/// 6. Every persisted message reaches the storage callback, and the push callback if no device took it, at least once.
mod rule_6_called_back {
    use super::*;

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
        eventually_is("it has caught up", || messages_told(&storage).len(), |n| *n >= ids.len());
        assert_eq!(messages_told(&storage), ids);
        expect_listed(&node, "", 0);
    }
}

/// 8. After anything comes back, presence, streams and callbacks are right again without a restart.
mod rule_8_healing {
    use super::*;

    #[test]
    fn after_the_database_was_locked_by_another_program_all_is_well_again() {
        only_embedded!("it locks the SQLite file; `cluster` has PostgreSQL away");
        let storage = Receiver::start();
        let node = node_of(&[("storage", &storage)], &[]);
        let mut phone = node.device("bob", "phone");
        let first = stored(&node, &chat(&["bob"], &json!(1)));
        assert_eq!(phone.next_message()["cursor"], "1");
        expect_status(&node, &first, "/storage/state", &json!("sent"));

        let thief = rusqlite::Connection::open(node.data_dir().join("herenow.db")).unwrap();
        thief.execute_batch("BEGIN IMMEDIATE").unwrap();
        scope(|scope| {
            let patient = scope.spawn(|| node.backend().send(chat(&["bob"], &json!("held up"))));
            node.backend().whisper("bob").expect(200);
            assert_eq!(phone.next_message()["online_only"], true);
            assert_eq!(whole_inbox(&node, "bob").len(), 1);
            assert!(node.backend().is_online("bob"));
            patient.join().unwrap().problem(503, "store_unavailable");
        });
        thief.execute_batch("ROLLBACK").unwrap();
        let again = eventually("it takes sends again", || {
            let answer = node.backend().send(chat(&["bob"], &json!("again")));
            if answer.status == 201 { Ok(text(&answer.json()["id"])) } else { Err(answer.to_string()) }
        });
        let event = phone.next_message();
        assert_eq!((&event["id"], &event["cursor"]), (&json!(again), &json!("2")), "no hole by what was refused");
        eventually_is("it is told of", || messages_told(&storage), |told| told.contains(&again));
        expect_status(&node, &again, "/recipients/0/delivered_to", &json!(["phone"]));
        eventually_is("it is ready", || node.backend().get("/readyz").status, |status| *status == 200);
    }

    #[test]
    fn after_a_short_lock_nobody_has_noticed() {
        only_embedded!("it locks the SQLite file; `cluster` has PostgreSQL away");
        let node = Node::start();
        stored(&node, &chat(&["bob"], &json!(1)));
        let thief = rusqlite::Connection::open(node.data_dir().join("herenow.db")).unwrap();
        thief.execute_batch("BEGIN IMMEDIATE").unwrap();
        scope(|scope| {
            let send = |n| stored(&node, &chat(&["bob"], &json!(n)));
            let sends: Vec<_> = (0..8).map(|n| scope.spawn(move || send(n))).collect();
            sleep(Duration::from_millis(500));
            thief.execute_batch("ROLLBACK").unwrap();
            for send in sends {
                send.join().unwrap();
            }
        });
        assert_eq!(whole_inbox(&node, "bob").len(), 9);
    }

    #[test]
    fn after_the_process_was_paused_everything_goes_on() {
        let (storage, push) = (Receiver::start(), Receiver::start());
        let node = node_of(&[("storage", &storage), ("push", &push)], &["callbacks.push.grace_ms=500"]);
        let mut phone = node.device("bob", "phone");
        let ids: Vec<String> = scope(|scope| {
            let node = &node;
            let send = |caller| {
                (0..40).map(|n| stored(node, &chat(&["bob", "away"], &json!([caller, n])))).collect::<Vec<_>>()
            };
            let callers: Vec<_> = (0..4).map(|caller| scope.spawn(move || send(caller))).collect();
            for _ in 0..2 {
                sleep(Duration::from_millis(50));
                node.signal("STOP");
                sleep(Duration::from_millis(600));
                node.signal("CONT");
            }
            callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
        });
        let seen = messages(&mut phone, ids.len());
        assert_eq!(each(&seen, "/cursor"), (1..=ids.len()).map(|n| n.to_string()).collect::<Vec<_>>());
        let ids: BTreeSet<String> = ids.into_iter().collect();
        eventually_is("all are stored", || messages_told(&storage), |told| *told == ids);
        eventually_is("all are pushed to who is away", || messages_told(&push), |told| *told == ids);
        expect_listed(&node, "", 0);
    }

    #[test]
    fn after_a_kill_presence_is_that_of_who_came_back_and_streams_go_on() {
        let mut node = Node::start();
        let mut phone = node.device("bob", "phone");
        let _laptop = node.device("bob", "laptop");
        let _carol = node.device("carol", "phone");
        stored(&node, &chat(&["bob"], &json!(1)));
        assert_eq!(phone.next_message()["cursor"], "1");
        node.kill();
        node.restart();
        // At once by itself; on a cluster when the lease of the node that died has run out.
        let online = || ["bob", "carol"].map(|user| node.backend().is_online(user));
        eventually_is("offline", online, |online| *online == [false, false]);
        stored(&node, &chat(&["bob"], &json!(2)));
        let mut phone = node.stream("bob", "phone").last_event_id("1").open();
        assert_eq!(phone.next_message()["cursor"], "2");
        let presence = node.backend().presence("bob");
        assert_eq!(each(presence["devices"].as_array().unwrap(), "/device"), ["phone"]);
        let report = node.backend().whisper("bob").expect(200).json();
        assert_eq!(report["recipients"][0]["devices"], json!(["phone"]));
        assert_eq!(phone.next_message()["online_only"], true);
        stored(&node, &chat(&["bob"], &json!(3)));
        assert_eq!(phone.next_message()["cursor"], "3");
    }

    #[test]
    fn after_both_receivers_were_away_each_catches_up_by_itself() {
        let (storage, push) = (Receiver::start_down(), Receiver::start_down());
        let node = node_of(&[("storage", &storage), ("push", &push)], &[]);
        let ids: BTreeSet<String> = (0..30).map(|n| stored(&node, &chat(&["away"], &json!(n)))).collect();
        let open = |endpoint| format!("herenow_callback_breaker_open{{endpoint=\"{endpoint}\"}}");
        for endpoint in ["storage", "push"] {
            eventually_is("it is noticed", || node.metric(&open(endpoint)), |open| *open > 0.5);
        }
        push.set_down(false);
        push.expect_callbacks(1);
        assert_eq!(storage.count(), 0, "one does not wait for the other");
        storage.set_down(false);
        eventually_is("push has caught up", || messages_told(&push), |told| *told == ids);
        eventually_is("storage has caught up", || messages_told(&storage), |told| *told == ids);
        expect_listed(&node, "", 0);
        for endpoint in ["storage", "push"] {
            assert!(node.metric(&open(endpoint)) < 0.5, "{endpoint}");
        }
    }
}
