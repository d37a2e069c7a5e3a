//! The sets of who is online, which messages to many go by: whoever has a seat is in one, whatever happens.

use super::*;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Who has a seat and isn't in the set, and who is in it without a seat, at one instant.
const DIFFERENCES: &str = "
    local function seats(key) return redis.call('HLEN', key) - redis.call('HEXISTS', key, '') end
    local missing, surplus = {}, {}
    for _, key in ipairs(redis.call('KEYS', ARGV[1] .. ':{s*}:seats:*')) do
        local shard, user = string.match(key, '^(.-}):seats:(.*)$')
        if seats(key) > 0 and redis.call('SISMEMBER', shard .. ':online', user) == 0 then table.insert(missing, user) end
    end
    for _, key in ipairs(redis.call('KEYS', ARGV[1] .. ':{s*}:online')) do
        for _, user in ipairs(redis.call('SMEMBERS', key)) do
            if seats(string.gsub(key, 'online$', 'seats:') .. user) == 0 then table.insert(surplus, user) end
        end
    end
    return {missing, surplus}";

async fn differences(link: &Link, redis: &RedisKeys) -> (Vec<String>, Vec<String>) {
    let command = redis::cmd("EVAL").arg(DIFFERENCES).arg(0).arg(&redis.prefix).clone();
    answered(async || link.run(&command).await).await
}

/// Some users of one shard.
fn neighbours(names: &Names, count: usize) -> Vec<UserId> {
    let first = names.online(&user("u0"));
    (0..).map(|n| user(&format!("u{n}"))).filter(|user| names.online(user) == first).take(count).collect()
}

/// Who of many is found to have how many seats.
async fn found(node: &Node, among: &[UserId]) -> Vec<(UserId, usize)> {
    let others = (0..2_000).map(|n| user(&format!("away{n}")));
    let users: Vec<_> = others.chain(among.iter().cloned()).collect();
    let seats = answered(async || node.plane.seats(&users).await).await;
    users
        .into_iter()
        .zip(seats)
        .filter(|(_, seats)| !seats.is_empty())
        .map(|(user, seats)| (user, seats.len()))
        .collect()
}

/// What may happen to a device of a user at a node.
async fn anything(node: &Node, other: &Node, who: &str, device: &str, choice: u32) {
    let held = |node: &Node| {
        let streams = node.door.streams.lock();
        streams.iter().find(|seat| seat.user == user(who) && seat.device.as_str() == device).cloned()
    };
    let leave = |node: &Node, seat: &SeatInfo| {
        node.door.streams.lock().retain(|held| held.connection != seat.connection);
    };
    match choice {
        // A stream, perhaps in place of one here or elsewhere; at most two devices.
        0..4 => {
            let seat = node.stream(who, device, rand::random_range(1_000..2_000));
            let seated = async || match node.plane.seat(seat.clone(), 2).await {
                Err(SeatError::Away(error)) => Err(error),
                seated => Ok(seated),
            };
            match answered(seated).await {
                Ok(Seated { replaced: Some(older), .. }) if older != seat => {
                    leave(node, &older);
                    leave(other, &older);
                }
                Ok(_) => {}
                Err(_) => leave(node, &seat),
            }
        }
        4..7 => {
            if let Some(seat) = held(node) {
                leave(node, &seat);
                answered(async || node.plane.unseat(&seat).await).await;
            }
        }
        // Kicked through another node, before its stream knows.
        7 => {
            if let Some(seat) = held(node) {
                answered(async || other.plane.unseat(&seat).await).await;
                leave(node, &seat);
            }
        }
        8 => {
            let (user, device) = (user(who), DeviceId::parse(device).unwrap());
            answered(async || node.plane.touch(&user, &device, None, Timestamp::now()).await).await;
        }
        _ => node.reconcile().await,
    }
}

#[tokio::test]
async fn who_has_a_seat_is_never_missing_whatever_happens_at_the_same_time() {
    let server = Redis::start();
    let redis = keys(&server.url());
    let nodes = [Node::start(&redis, "a").await, Node::start(&redis, "b").await];
    let link = nodes[0].plane.0.link().unwrap();
    let seed = rand::random();
    let mut dice = StdRng::seed_from_u64(seed);
    let mut under_way = FuturesUnordered::new();
    for step in 0..3_000 {
        let (at, who, device) = (dice.random_range(0..2), dice.random_range(0..5), dice.random_range(0..3));
        let choice = if step % 100 == 0 { 9 } else { dice.random_range(0..9) };
        let (who, device) = (format!("u{who}"), format!("d{device}"));
        let nodes = &nodes;
        under_way.push(async move { anything(&nodes[at], &nodes[1 - at], &who, &device, choice).await });
        while under_way.len() > 16 {
            under_way.next().await;
        }
        if step % 10 == 0 {
            // The others go on meanwhile.
            let look = differences(&link, &redis);
            let others = async { while under_way.next().await.is_some() {} };
            let (differences, ()) = tokio::join!(look, others);
            assert_eq!(differences, (vec![], vec![]), "step {step}, seed {seed}");
        }
    }
    while under_way.next().await.is_some() {}
    drop(under_way);
    assert!(nodes[0].plane.0.metrics.reconciles.get() > 1);

    // One dies; what it had goes, in bites, and nobody else's.
    let [a, b] = nodes;
    let stays = a.seated("stays", "phone").await;
    for n in 0..300 {
        b.seated(&format!("goes{n}"), "phone").await;
    }
    b.kill().await;
    until("its seats have gone", async || {
        assert_eq!(differences(&link, &redis).await, (vec![], vec![]));
        !server.dump(&redis.prefix).contains(" b\n")
            && found(&a, std::slice::from_ref(&stays.user)).await == [(stays.user.clone(), 1)]
    })
    .await;
    server.cli(&["FLUSHALL"]);
    until("all is said again", async || found(&a, std::slice::from_ref(&stays.user)).await.len() == 1).await;
    assert_eq!(differences(&link, &redis).await, (vec![], vec![]));
}

#[tokio::test]
async fn a_name_that_was_lost_from_the_sets_is_there_again_with_the_seats() {
    let server = Redis::start();
    let redis = keys(&server.url());
    let a = Node::start(&redis, "a").await;
    let bob = a.seated("bob", "phone").await.user;
    server.cli(&["DEL", &a.plane.0.names.online(&bob)]);
    a.reconcile().await;
    assert_eq!(found(&a, std::slice::from_ref(&bob)).await, [(bob.clone(), 1)]);
    server.cli(&["DEL", &a.plane.0.names.online(&bob)]);
    a.seated("bob", "phone").await;
    assert_eq!(found(&a, std::slice::from_ref(&bob)).await, [(bob, 1)]);
}

#[tokio::test]
async fn a_full_redis_keeps_hashes_and_sets_alike() {
    let server = Redis::start();
    let redis = keys(&server.url());
    let a = Node::start(&redis, "a").await;
    let (bob, carol) = (a.seated("bob", "phone").await, a.seated("carol", "phone").await);
    let link = a.plane.0.link().unwrap();
    let users = [bob.user.clone(), carol.user.clone(), user("dave")];
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let late = a.stream("dave", "phone", 1_000);
    assert!(matches!(a.plane.seat(late.clone(), 20).await, Err(SeatError::Away(_))));
    assert_eq!(found(&a, &users).await, [(bob.user.clone(), 1), (carol.user.clone(), 1)]);
    assert!(matches!(a.plane.unseat(&bob).await, Ok(Unseated::Last(_))));
    assert_eq!(found(&a, &users).await, [(carol.user.clone(), 1)]);
    assert_eq!(differences(&link, &redis).await, (vec![], vec![]));
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    a.reconcile().await;
    assert_eq!(found(&a, &users).await, [(bob.user, 1), (carol.user, 1), (late.user, 1)]);
}

#[tokio::test]
async fn however_many_users_are_looked_for_each_set_is_asked_once() {
    let server = Redis::start();
    let a = Node::start(&keys(&server.url()), "a").await;
    let here: Vec<_> = join_all((0..50).map(async |n| a.seated(&format!("u{n}"), "phone").await)).await;
    let calls = |command: &str| {
        let (stats, name) = (server.cli(&["INFO", "commandstats"]), format!("cmdstat_{command}:"));
        let line = stats.lines().find(|line| line.starts_with(&name));
        line.map_or(0, |line| line.split(['=', ',']).nth(1).unwrap().parse::<usize>().unwrap())
    };
    let users = |away: usize| -> Vec<_> {
        (0..away).map(|n| user(&format!("away{n}"))).chain(here.iter().map(|seat| seat.user.clone())).collect()
    };
    for away in [1_000, 20_000] {
        let (sets, hashes) = (calls("smismember"), calls("hgetall"));
        let seats = a.plane.seats(&users(away)).await.unwrap();
        assert_eq!(seats.iter().flatten().count(), here.len());
        let (sets, hashes) = (calls("smismember") - sets, calls("hgetall") - hashes);
        assert!((1..=1_024).contains(&sets), "{sets} sets for {away}");
        assert_eq!(hashes, here.len(), "only those who are here are looked at");
    }
}

/// A Cluster refuses scripts of which one key has gone over and the other hasn't, or is new. The look-up has to be right all the same.
#[tokio::test]
async fn many_users_are_found_while_their_slot_goes_over_to_another_master() {
    let cluster = RedisCluster::start();
    let redis = cluster_keys(&cluster);
    let a = Node::start(&redis, "a").await;
    let names = &a.plane.0.names;
    let users = neighbours(names, 6);
    let set = names.online(&users[0]);
    let slot = cluster.slot_of(&set);
    let to = (cluster.shard_of(slot) + 1) % 3;
    let came = async |n: usize| a.seated(users[n].as_str(), "phone").await;
    let here = async || {
        let found = found(&a, &users).await;
        found.into_iter().map(|(user, _)| users.iter().position(|known| *known == user).unwrap()).collect::<Vec<_>>()
    };
    let gone = async |seat: &SeatInfo| {
        a.door.streams.lock().retain(|held| held.connection != seat.connection);
        assert!(matches!(a.plane.unseat(seat).await.unwrap(), Unseated::Last(_)));
    };

    let (zero, one) = (came(0).await, came(1).await);
    cluster.begin_migration(slot, to);
    let two = came(2).await;
    assert_eq!(here().await, [0, 1, 2], "who came while the set was still here");
    cluster.migrate_key(&names.user(&users[0]), to);
    gone(&zero).await;
    assert_eq!(here().await, [1, 2], "whose hash has gone over before the set");
    came(0).await;
    cluster.migrate_key(&set, to);
    came(3).await;
    assert_eq!(here().await, [0, 1, 2, 3], "who came when the set had gone over");
    gone(&one).await;
    assert_eq!(here().await, [0, 2, 3], "whose hash is still here");
    a.reconcile().await;
    assert_eq!(here().await, [0, 2, 3]);
    cluster.finish_migration(slot, to);
    came(4).await;
    gone(&two).await;
    assert_eq!(here().await, [0, 3, 4]);

    // A name too many, of one who left meanwhile, goes when that one has been here again.
    let members = || cluster.master(to).cli(&["SMEMBERS", &set]).lines().count();
    assert_eq!(members(), 4);
    let one = came(1).await;
    gone(&one).await;
    assert_eq!(members(), 3);
}
