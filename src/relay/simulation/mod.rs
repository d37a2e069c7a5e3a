//! A seeded simulation of several nodes: real relays, hubs and streams, on a plane on whose wires offers and replies are lost, late and doubled.
//! Devices come, stall, replace their streams and go; nodes pause, die and start again; leases run out. Time is a clock that the story moves.
//!
//! At no step has a message been taken twice or an answer been untrue. At the end all that was asked is answered, the directory has just the
//! streams that are open, and these are reached (CONTRACT.md 10.2, 10.3, 10.7, 10.8). A story that ends badly is told as short as it can be made.
//!
//! What it does not have: sockets, so no frame is written by its sender ([`super::hub::Socket`]), and the real wires, which `backend` tests.

mod ledger;
mod plane;
mod story;
mod world;

use ledger::Answers;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use story::{Step, draw, shrink};

const STEPS_OF_A_STORY: usize = 100;

/// A panic is a bad end too.
fn tell(story: &[Step]) -> Result<Answers, String> {
    catch_unwind(AssertUnwindSafe(|| world::tell(story))).unwrap_or_else(|_| Err("something has panicked".to_owned()))
}

fn setting(name: &str) -> Option<u64> {
    std::env::vars().find(|(key, _)| key == name).map(|(_, value)| value.parse().unwrap())
}

/// `HERENOW_SIMULATED_STEPS` says how many, `HERENOW_TEST_SEED` which; `scripts/simulate` sets them.
#[test]
fn whatever_happens_to_nodes_and_devices_no_message_is_taken_twice_and_no_answer_is_untrue() {
    let steps = setting("HERENOW_SIMULATED_STEPS").unwrap_or(100_000);
    let first = setting("HERENOW_TEST_SEED").unwrap_or_else(|| rand::random::<u32>().into());
    let stories = steps.div_ceil(STEPS_OF_A_STORY as u64);
    eprintln!("{stories} stories of {STEPS_OF_A_STORY} steps from HERENOW_TEST_SEED={first} on");
    let mut answers = Answers::new();
    for seed in first..first + stories {
        let story = draw(seed, STEPS_OF_A_STORY);
        match tell(&story) {
            Ok(of_this) => of_this.into_iter().for_each(|(answer, times)| *answers.entry(answer).or_default() += times),
            Err(_) => fail(seed, story),
        }
    }
    eprintln!("answered: {answers:?}");
    let usual = ["delivered", "offline", "unconfirmed", "expired", "superseded", "presence_unavailable", "in_progress"];
    let missing = usual.iter().find(|answer| !answers.contains_key(*answer));
    assert!(steps < 10_000 || missing.is_none(), "too simple to say anything: {answers:?}");
}

fn fail(seed: u64, story: Vec<Step>) -> ! {
    let story = shrink(story, |story| tell(story).is_err());
    let mut text = format!("HERENOW_TEST_SEED={seed} ends badly. In short:\n");
    for step in &story {
        let _ = writeln!(text, "    {step}");
    }
    let flaw = tell(&story).err().unwrap_or_else(|| "it went well when it was told once more".to_owned());
    panic!("{text}  and then: {flaw}");
}

/// Or a seed would be of no use.
#[test]
fn a_story_that_is_told_again_takes_the_same_course() {
    for seed in 0..30 {
        let story = draw(seed, STEPS_OF_A_STORY);
        assert_eq!(tell(&story), tell(&story), "HERENOW_TEST_SEED={seed}");
    }
}

#[test]
fn a_story_is_shrunk_to_what_makes_it_end_badly() {
    let opens = |step: &Step| matches!(step, Step::Opens { .. });
    let story = shrink(draw(1, STEPS_OF_A_STORY), |story| story.iter().filter(|step| opens(step)).count() >= 2);
    assert!(story.len() == 2 && story.iter().all(opens), "{story:?}");
}
