//! What must never be otherwise (CONTRACT.md 10): a file per rule. Each holds under load, with devices and receivers that misbehave and
//! through whatever happens in its test. Rules 2, 3 and 7 are also held to by `src/relay/simulation`.

mod rule_1_no_trace;
mod rule_2_once;
mod rule_3_honest;
mod rule_4_durable;
mod rule_5_in_order;
mod rule_6_called_back;
mod rule_7_bounded;
mod rule_8_healing;

use crate::harness::receiver::Call;
use crate::harness::*;
use std::collections::BTreeSet;

/// Online-only message ids among events.
fn whispers(events: &[Event]) -> Vec<String> {
    let messages = events.iter().filter(|event| event.name == "message").map(Event::json);
    messages.filter(|m| m["online_only"] == true).map(|m| m["id"].as_str().unwrap().to_owned()).collect()
}

/// What became of an online-only message at its first recipient.
fn outcome(answer: &Value) -> &str {
    answer["recipients"][0]["outcome"].as_str().unwrap()
}

/// The messages that a receiver has been told of.
fn messages_told(receiver: &Receiver) -> BTreeSet<String> {
    receiver.accepted().iter().map(Call::message_id).collect()
}
