//! Backends that send through whichever node.

use super::ledger::{Chat, Fate, Whisper};
use super::world::{Phase, World};
use crate::harness::http::exchange_among_many;
use crate::harness::node::API_KEY;
use crate::harness::{Answer, Value, json};
use crate::support::{send_request, text};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Longer than a node is stopped.
const PATIENCE: Duration = Duration::from_secs(15);

/// Bytes beside the rest of a payload.
const SMALL: usize = 0;
const LARGE: usize = 50_000;
/// Pairs of large messages to one user.
const FLOOD: usize = 15;

async fn pause(random: &mut StdRng, milliseconds: std::ops::Range<u64>) {
    sleep(Duration::from_millis(random.random_range(milliseconds))).await;
}

/// `None`: nobody knows what became of it.
async fn send(world: &World, message: &Value, key: Option<&str>, random: &mut StdRng) -> Option<Answer> {
    let request = send_request(message).bearer(API_KEY).header("Connection", "close");
    let request = key.iter().fold(request, |request, key| request.header("Idempotency-Key", key));
    let address = world.some_node(random);
    timeout(PATIENCE, exchange_among_many(address, &request.to_bytes(address))).await.ok()?.ok()
}

fn names(world: &World, users: &[usize]) -> Vec<Value> {
    users.iter().map(|user| json!(world.users[*user].name)).collect()
}

/// Sends online-only while devices come and go.
pub async fn whisper(world: Arc<World>, mut random: StdRng) {
    while world.phase() == Phase::Roam {
        let users = world.some_users(&mut random);
        whisper_to(&world, users, SMALL, false, &mut random).await;
        pause(&mut random, 5..60).await;
    }
}

/// Sends one user, time and again, more than a device takes that doesn't read: two at once, so that one may supersede the other.
pub async fn flood(world: Arc<World>, mut random: StdRng) {
    let mut second = StdRng::seed_from_u64(random.random());
    while world.phase() == Phase::Roam {
        let user = world.some_users(&mut random)[0];
        for _ in 0..FLOOD {
            tokio::join!(
                whisper_to(&world, vec![user], LARGE, false, &mut random),
                whisper_to(&world, vec![user], LARGE, false, &mut second),
            );
        }
        pause(&mut random, 100..1_000).await;
    }
}

/// Sends one, and tells whether it was delivered to all its recipients. If `devices_stay`, it must arrive then.
async fn whisper_to(world: &World, to: Vec<usize>, size: usize, devices_stay: bool, random: &mut StdRng) -> bool {
    let canary = world.secrets.canary();
    let every_device = random.random_bool(0.3);
    let mut message = json!({"from": "alice", "to": {"users": names(world, &to)}, "type": "typing", "online_only": true,
        "deliver_to": if every_device { "every_device" } else { "one_device" }, "payload": {"canary": canary, "padding": "p".repeat(size)}});
    if random.random_bool(0.3) {
        message["collapse_key"] = json!("typing");
    }
    if size == LARGE {
        message["ttl_ms"] = json!(random.random_range(50..800));
    }
    let fate = match send(world, &message, None, random).await {
        None => Fate::Unanswered,
        Some(answer) => match answer.status {
            200 => Fate::Answered(answer.json()),
            503 if answer.json()["code"] == "presence_unavailable" => Fate::Refused,
            _ => {
                world.ledger.flaw(format!("an online-only send is answered {answer}"));
                return false;
            }
        },
    };
    let is_delivered = matches!(&fate, Fate::Answered(answer) if answer["summary"]["delivered"] == to.len());
    let is_to_arrive = is_delivered && devices_stay;
    world.ledger.sent(Whisper { canary, to, every_device, fate, is_to_arrive });
    is_delivered
}

/// Sends persisted messages, each until it is answered, as every client should.
pub async fn chat(world: Arc<World>, caller: usize, mut random: StdRng) {
    let mut n = 0;
    while world.phase() == Phase::Roam {
        n += 1;
        let key = format!("caller {caller} chat {n}");
        let users = world.some_users(&mut random);
        let message = json!({"from": "alice", "to": {"users": names(&world, &users)}, "type": "chat", "payload": key});
        let mut first = None;
        // Now and then once more though it was answered.
        let wanted = if random.random_bool(0.1) { 2 } else { 1 };
        let mut answered = 0;
        while answered < wanted {
            match send(&world, &message, Some(&key), &mut random).await {
                Some(answer) if answer.status == 201 => {
                    answered += 1;
                    let answer = answer.json();
                    let first = first.get_or_insert_with(|| answer.clone());
                    if *first != answer {
                        world.ledger.flaw(format!("{key} is answered {first}, then {answer}"));
                    }
                }
                None => world.ledger.tried_again(),
                Some(answer) if matches!(answer.status, 409 | 503) => world.ledger.tried_again(),
                Some(answer) => {
                    world.ledger.flaw(format!("a persisted send is answered {answer}"));
                    return;
                }
            }
            pause(&mut random, 10..120).await;
        }
        let Some(first) = first else { continue };
        let places = first["recipients"].as_array().unwrap().iter().zip(&users);
        let places = places.map(|(place, user)| (*user, text(&place["cursor"]).parse().unwrap())).collect();
        world.ledger.stored_as(Chat { id: text(&first["id"]), places });
    }
}

/// Sends to every user until it is delivered, while no device leaves.
pub async fn reach_everybody(world: Arc<World>, mut random: StdRng) {
    for user in 0..world.users.len() {
        while !whisper_to(&world, vec![user], SMALL, true, &mut random).await {
            pause(&mut random, 20..100).await;
        }
    }
}
