//! Three nodes, devices that come and go, callers that never rest, and faults at random: whatever went in must have come out, and
//! nothing else (CONTRACT.md 10). The report of a long run is in `docs/reliability.md`; `scripts/soak` makes another.

mod callers;
mod devices;
mod faults;
mod ledger;
mod world;

use crate::harness::planes::{Planes, RedisServers};
use crate::harness::receiver::Reply;
use crate::harness::*;
use crate::servers::postgres::Postgres;
use crate::servers::redis::Redis;
use crate::support::*;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeSet, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::timeout;
use world::{Phase, World};

const NODES: usize = 3;
/// When the last fault is over, each step to where all is well takes at most this.
const HEALED: Duration = Duration::from_secs(60);
/// So many of each kind send all the while.
const WHISPERERS: usize = 4;
const CHATTERS: usize = 3;

/// From the environment, as `scripts/soak` sets it.
fn setting(name: &str) -> Option<u64> {
    let value = std::env::vars().find(|(set, _)| set == name).map(|(_, value)| value)?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is {value}: no number")))
}

#[test]
fn what_went_in_came_out_whatever_happened_between() {
    let seconds = setting("HERENOW_SOAK_S").unwrap_or(35);
    let devices = usize::try_from(setting("HERENOW_SOAK_DEVICES").unwrap_or(200)).unwrap();
    let seed = setting("HERENOW_SOAK_SEED").unwrap_or_else(|| rand::random::<u32>().into());
    eprintln!("to repeat this: HERENOW_SOAK_S={seconds} HERENOW_SOAK_DEVICES={devices} HERENOW_SOAK_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);

    let storage = Receiver::start();
    let called_back = called_back(&storage);
    let planes = Planes::on(RedisServers::Own(Redis::start()), Some(Postgres::start()));
    let setup = Node::setup().set("log.level=info").set_all(&storage.settings("storage"));
    let mut cluster = Cluster::by_proxies(NODES, &setup, planes);
    let world = Arc::new(World::new(&cluster, devices, &mut random));
    // One thread: the rest of the machine is for the nodes.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut crowd = JoinSet::new();
    for device in 0..devices {
        let live = devices::live(Arc::clone(&world), device, StdRng::seed_from_u64(random.random()));
        crowd.spawn_on(live, runtime.handle());
    }
    let mut callers = JoinSet::new();
    for _ in 0..WHISPERERS {
        let whispers = callers::whisper(Arc::clone(&world), StdRng::seed_from_u64(random.random()));
        callers.spawn_on(whispers, runtime.handle());
    }
    let floods = callers::flood(Arc::clone(&world), StdRng::seed_from_u64(random.random()));
    callers.spawn_on(floods, runtime.handle());
    for caller in 0..CHATTERS {
        let chats = callers::chat(Arc::clone(&world), caller, StdRng::seed_from_u64(random.random()));
        callers.spawn_on(chats, runtime.handle());
    }

    let begun = Instant::now();
    let faults = faults::happen(&mut cluster, &world, Duration::from_secs(seconds), &mut random);
    let over = Instant::now();
    world.enter(Phase::Stay);
    all_end(&runtime, "callers", callers);
    eventually_within(HEALED, "all is well", || is_well(&cluster, &world));
    let healed = over.elapsed();
    // Nobody leaves any more: what is delivered now is received.
    let reached = callers::reach_everybody(Arc::clone(&world), StdRng::seed_from_u64(random.random()));
    within(&runtime, "everybody is reached", reached);
    eventually_within(HEALED, "every device has seen all", || world.ledger.all_seen(&world.users));
    let ids = world.ledger.stored();
    eventually_within(HEALED, "all are called back", || {
        let told = called_back.lock();
        let missing = ids.iter().filter(|id| !told.contains(*id)).count();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} of {} are missing", ids.len())) }
    });
    expect_listed(&cluster[0], "", 0);
    world.enter(Phase::End);
    all_end(&runtime, "devices", crowd);
    let mut told = called_back.lock().clone();
    told.retain(|id| !ids.contains(id));
    assert_eq!(told, HashSet::new(), "called back, but never answered");

    let report = world.ledger.settle(&world.users);
    eprintln!("{report}| callbacks received | {} for {} messages |", storage.count(), ids.len());
    for (fault, times) in faults {
        eprintln!("| fault: {fault} | {times} |");
    }
    eprintln!(
        "| seconds with faults · until all was well after the last | {} · {:.1} |",
        (over - begun).as_secs(),
        healed.as_secs_f32()
    );
}

/// The ids of the messages that the operator was told of.
fn called_back(storage: &Receiver) -> Arc<Mutex<HashSet<String>>> {
    let ids = Arc::new(Mutex::new(HashSet::new()));
    let told = Arc::clone(&ids);
    storage.answer_by(move |call| {
        told.lock().insert(call.message_id());
        Reply::Status(200)
    });
    ids
}

#[track_caller]
fn within<T>(runtime: &Runtime, what: &str, work: impl Future<Output = T>) -> T {
    let done = runtime.block_on(async { timeout(HEALED, work).await });
    done.unwrap_or_else(|_| panic!("{what}: not within {HEALED:?}"))
}

#[track_caller]
fn all_end(runtime: &Runtime, who: &str, mut tasks: JoinSet<()>) {
    within(runtime, who, async {
        while let Some(task) = tasks.join_next().await {
            task.unwrap();
        }
    });
}

/// Every device is on, and every node knows it.
fn is_well(cluster: &Cluster, world: &World) -> Result<(), String> {
    let away = world.away();
    if away > 0 {
        return Err(format!("{away} devices are away"));
    }
    let all: BTreeSet<(&str, &str)> = world.devices.iter().map(|d| (&*world.users[d.user].name, &*d.name)).collect();
    for node in cluster.nodes() {
        let ready = node.backend().get("/readyz");
        if ready.status != 200 {
            return Err(ready.to_string());
        }
        let mut seen = BTreeSet::new();
        for users in world.users.chunks(1_000) {
            let names: Vec<&str> = users.iter().map(|user| &*user.name).collect();
            let answer = node.backend().post("/v1/presence/query", &json!({"users": names}));
            if answer.status != 200 {
                return Err(answer.to_string());
            }
            for user in answer.json()["users"].as_array().unwrap() {
                let devices = user["devices"].as_array().unwrap();
                seen.extend(devices.iter().map(|device| (text(&user["user"]), text(&device["device"]))));
            }
        }
        let seen: BTreeSet<(&str, &str)> = seen.iter().map(|(user, device)| (&**user, &**device)).collect();
        if seen != all {
            let missing: Vec<_> = all.difference(&seen).take(5).collect();
            return Err(format!("{} of {} are seen; not {missing:?}", seen.len(), all.len()));
        }
    }
    Ok(())
}
