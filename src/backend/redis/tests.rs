//! Planes of several nodes in one process, on real servers that are killed, emptied and cut off.

mod online;

use super::*;
use crate::backend::conformance::directory;
use crate::config::{Redis as RedisKeys, RedisMode, Secret};
use crate::domain::finding::Level;
use crate::ports::{Bye, Departure, Refusal};
use crate::servers::proxy::Proxy;
use crate::servers::redis::{Redis, url_at};
use crate::servers::redis_cluster::RedisCluster;
use crate::servers::sentinels::{MASTER, Sentinels};
use futures_util::future::join_all;
use std::fmt::Debug;
use std::future::pending;
use uuid::Uuid;

/// The shortest lease that may be configured.
const LEASE: Duration = Duration::from_secs(3);
/// Anything takes less, also on a machine that has other things to do: somebody who was too slow may leave a lock behind, which lasts 10 s.
const SOON: Duration = Duration::from_secs(60);

/// What a test's installation is reached by.
fn keys(url: &str) -> RedisKeys {
    RedisKeys {
        url: Some(Secret::new(url)),
        mode: RedisMode::Standalone,
        nodes: vec![],
        sentinel_master: None,
        prefix: format!("t{:016x}", rand::random::<u64>()),
    }
}

fn shared() -> RedisKeys {
    keys(&Redis::shared().url())
}

fn sentinel_keys(sentinels: &Sentinels) -> RedisKeys {
    let addresses = sentinels.sentinel_addresses();
    RedisKeys {
        mode: RedisMode::Sentinel,
        nodes: addresses[1..].iter().map(ToString::to_string).collect(),
        sentinel_master: Some(MASTER.to_owned()),
        ..keys(&url_at(addresses[0]))
    }
}

fn cluster_keys(cluster: &RedisCluster) -> RedisKeys {
    let more = cluster.addresses()[1..].iter().map(ToString::to_string).collect();
    RedisKeys { mode: RedisMode::Cluster, nodes: more, ..keys(&cluster.urls()[0]) }
}

/// A node without a relay: a plane and the streams that it is told of.
struct Node {
    plane: RedisPlane,
    door: Arc<Door>,
    tasks: Tasks,
}

#[derive(Default)]
struct Door {
    streams: Mutex<Vec<SeatInfo>>,
    offered: Mutex<Vec<Bytes>>,
    noticed: Mutex<Vec<Notice>>,
    resumed: Mutex<usize>,
    departed: Mutex<Vec<(UserId, Departure)>>,
    /// Offers are never answered.
    is_stuck: Mutex<bool>,
}

impl Door {
    fn taken(&self, frame: &'static [u8]) -> usize {
        self.offered.lock().iter().filter(|taken| *taken == frame).count()
    }
}

#[async_trait]
impl NodeDoor for Door {
    async fn offered(&self, offer: RemoteOffer) -> Result<Verdict, OfferError> {
        if *self.is_stuck.lock() {
            pending::<()>().await;
        }
        if !self.holds(&offer.seat) {
            return Ok(Verdict::Refused(Refusal::Closed));
        }
        self.offered.lock().push(offer.frame);
        Ok(Verdict::Taken)
    }

    async fn noticed(&self, notice: Notice) {
        if let Notice::Close(seat, _) = &notice {
            self.streams.lock().retain(|held| held.connection != seat.connection);
        }
        self.noticed.lock().push(notice);
    }

    fn seats(&self) -> Vec<SeatInfo> {
        self.streams.lock().clone()
    }

    fn holds(&self, seat: &SeatInfo) -> bool {
        self.streams.lock().iter().any(|held| held.user == seat.user && held.connection == seat.connection)
    }

    fn departed(&self, user: &UserId, _: &DeviceId, _: u64, why: Departure) {
        self.departed.lock().push((user.clone(), why));
    }

    fn resumed(&self) {
        *self.resumed.lock() += 1;
    }
}

fn node_id(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

async fn open(redis: &RedisKeys, name: &str, tasks: &Tasks) -> Result<RedisPlane, Away> {
    let cluster = config::Cluster {
        node: node_id(name),
        lease: LEASE,
        confirm_timeout: Duration::from_millis(900),
        single_node: false,
    };
    RedisPlane::open(redis, &cluster, tasks, &mut Registry::default()).await
}

impl Node {
    async fn start(redis: &RedisKeys, name: &str) -> Self {
        Self::try_start(redis, name).await.unwrap()
    }

    async fn try_start(redis: &RedisKeys, name: &str) -> Result<Self, Away> {
        let tasks = Tasks::on_this_runtime();
        let plane = open(redis, name, &tasks).await?;
        let door = Arc::new(Door::default());
        plane.listen(&plane.0.run.node.clone(), door.clone()).await?;
        Ok(Self { plane, door, tasks })
    }

    fn id(&self) -> NodeId {
        self.plane.0.run.node.clone()
    }

    /// A stream as the relay would open it, that the directory isn't told of.
    fn stream(&self, who: &str, device: &str, connected_ms: i64) -> SeatInfo {
        let seat = SeatInfo {
            user: user(who),
            device: DeviceId::parse(device).unwrap(),
            node: self.id(),
            connection: rand::random(),
            state: DeviceState::Active,
            connected_at: Timestamp::from_ms(connected_ms),
            last_active_at: Timestamp::from_ms(connected_ms),
        };
        self.door.streams.lock().push(seat.clone());
        seat
    }

    async fn seated(&self, who: &str, device: &str) -> SeatInfo {
        let seat = self.stream(who, device, 1_000);
        answered(async || self.plane.seat(seat.clone(), 1_000).await).await;
        seat
    }

    async fn sees(&self, who: &str) -> Vec<SeatInfo> {
        answered(async || self.seats_of(who).await.ok_or("presence is unknown")).await
    }

    async fn reconcile(&self) {
        answered(async || self.plane.0.reconcile().await).await;
    }

    async fn seats_of(&self, who: &str) -> Option<Vec<SeatInfo>> {
        let mut found = self.plane.locate(&[user(who)]).await.ok()?;
        Some(found.remove(0).seats)
    }

    async fn offer(&self, seat: &SeatInfo, frame: &'static [u8]) -> Result<Verdict, OfferError> {
        // The relay waits no longer either.
        let answer = self.plane.offer(&seat.node, offer_to(seat, frame));
        timeout(Duration::from_millis(900), answer).await.unwrap_or(Err(OfferError::Unknown))
    }

    /// As `kill -9` would: nothing is given back.
    async fn kill(self) {
        self.tasks.halt.cancel();
        timeout(SOON, self.tasks.finished()).await.unwrap();
    }

    /// Publishes an offer as if at this time, whatever anybody thinks of it.
    fn envelope(&self, part: &wire::Part, published_ms: i64) -> Vec<u8> {
        let mut writer = wire::Writer::new(&self.id());
        writer.part(part);
        let mut envelope = format!("{published_ms} ").into_bytes();
        envelope.extend(writer.into_bytes());
        envelope
    }

    async fn publish_offer(&self, id: u64, offer: RemoteOffer, published_ms: i64) {
        let to = offer.seat.node.clone();
        let envelope = self.envelope(&wire::Part::Offer { id, offer }, published_ms);
        let command = redis::cmd("PUBLISH").arg(self.plane.0.names.channel(&to)).arg(envelope).clone();
        answered(async || match self.plane.0.link().map_err(away)?.run::<u64>(&command).await.map_err(away)? {
            1 => Ok(()),
            heard => Err(away(format!("{heard} listen"))),
        })
        .await;
    }

    fn redis_now(&self) -> i64 {
        self.plane.0.roll.borrow().now_ms()
    }
}

fn claim() -> KeyClaim {
    let now = Timestamp::now();
    KeyClaim { body: [1; 32], id: Uuid::nil(), now, expires_at: now.plus(Duration::from_mins(1)) }
}

fn offer_to(seat: &SeatInfo, frame: &'static [u8]) -> RemoteOffer {
    RemoteOffer {
        seat: seat.clone(),
        frame: Bytes::from_static(frame),
        ttl: Duration::from_secs(5),
        patience: None,
        collapse_key: None,
    }
}

const TAKEN: Result<Verdict, OfferError> = Ok(Verdict::Taken);
const CLOSED: Result<Verdict, OfferError> = Ok(Verdict::Refused(Refusal::Closed));

/// Does what may be done twice until it is known to be done: on a busy machine Redis may not answer in time, which counts as its being away.
async fn answered<T, E: Debug>(attempt: impl AsyncFn() -> Result<T, E>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        match attempt().await {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < deadline, "Redis has never answered in time: {error:?}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until it is so.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// The promises of every directory, as node `n1`, whose seats they are about.
async fn keeps_the_promises(redis: impl Fn() -> RedisKeys) {
    let nodes = Mutex::new(vec![]);
    directory::all(|| async {
        let tasks = Tasks::on_this_runtime();
        let plane = open(&redis(), "n1", &tasks).await.unwrap();
        plane.listen(&node_id("n1"), Arc::new(Door::default())).await.unwrap();
        nodes.lock().push(tasks);
        plane
    })
    .await;
    nodes.lock().iter().for_each(|tasks| tasks.halt.cancel());
}

#[tokio::test]
async fn keeps_the_promises_of_a_directory_on_one_server() {
    keeps_the_promises(shared).await;
}

#[tokio::test]
async fn keeps_the_promises_of_a_directory_with_sentinels() {
    let sentinels = Sentinels::start();
    keeps_the_promises(|| sentinel_keys(&sentinels)).await;
}

#[tokio::test]
async fn keeps_the_promises_of_a_directory_in_a_cluster() {
    let cluster = RedisCluster::start();
    keeps_the_promises(|| cluster_keys(&cluster)).await;
}

async fn an_offer_crosses_and_its_verdict_comes_back(redis: &RedisKeys) {
    let (a, b) = (Node::start(redis, "a").await, Node::start(redis, "b").await);
    let seat = b.seated("bob", "phone").await;
    assert_eq!(a.sees("bob").await, std::slice::from_ref(&seat), "a node that is new is asked for");
    assert_eq!(a.offer(&seat, b"hello").await, TAKEN);
    assert_eq!(b.door.taken(b"hello"), 1);
    b.door.streams.lock().clear();
    assert_eq!(a.offer(&seat, b"too late").await, CLOSED);
    assert!(a.plane.has_other_nodes(), "whether or not it knows of them");
    a.plane.tell(&b.id(), Notice::Close(seat.clone(), Bye::Kicked)).await.unwrap();
    a.plane.tell(&b.id(), Notice::Stored(vec![user("bob"), user("carol")])).await.unwrap();
    until("both notices", async || b.door.noticed.lock().len() == 2).await;
    let noticed = format!("{:?}", b.door.noticed.lock());
    assert!(noticed.contains("Kicked") && noticed.contains("[\"bob\", \"carol\"]"), "{noticed}");
    a.plane.check().await.unwrap();
    b.plane.leave(&b.id()).await;
    assert_eq!(a.offer(&seat, b"nobody").await, Err(OfferError::NotTaken));
    assert_eq!(a.plane.0.outbox.pending(), 0);
    a.plane.leave(&a.id()).await;
}

#[tokio::test]
async fn an_offer_crosses_one_server() {
    an_offer_crosses_and_its_verdict_comes_back(&shared()).await;
}

#[tokio::test]
async fn an_offer_crosses_where_sentinels_watch_and_after_a_failover() {
    let sentinels = Sentinels::start();
    let redis = sentinel_keys(&sentinels);
    an_offer_crosses_and_its_verdict_comes_back(&redis).await;
    let (a, b) = (Node::start(&redis, "c").await, Node::start(&redis, "d").await);
    let seat = b.seated("bob", "phone").await;
    sentinels.failover();
    until("the new master serves", async || a.offer(&seat, b"new master").await == TAKEN).await;
    until("seats are there", async || a.seats_of("bob").await == Some(vec![seat.clone()])).await;
    until("both are ready", async || a.plane.check().await.is_ok() && b.plane.check().await.is_ok()).await;
}

#[tokio::test]
async fn an_offer_crosses_a_cluster_whatever_becomes_of_the_channels_slot() {
    let cluster = RedisCluster::start();
    let redis = cluster_keys(&cluster);
    an_offer_crosses_and_its_verdict_comes_back(&redis).await;
    let (a, b) = (Node::start(&redis, "c").await, Node::start(&redis, "d").await);
    let odd = b.seated("}{x", "phone").await;
    let seat = b.seated("bob", "phone").await;
    assert_eq!(a.sees("}{x").await, [odd]);
    let slot = cluster.slot_of(&b.plane.0.names.channel(&b.id()));
    let shard = cluster.shard_of(slot);

    cluster.failover(shard);
    until("after a failover", async || a.offer(&seat, b"failover").await == TAKEN).await;
    cluster.migrate_slot(slot, (shard + 1) % 3);
    until("after the slot went elsewhere", async || a.offer(&seat, b"elsewhere").await == TAKEN).await;
    cluster.kill_master((shard + 1) % 3);
    until("after a master was killed", async || a.offer(&seat, b"killed").await == TAKEN).await;
    until("seats are there", async || a.seats_of("bob").await == Some(vec![seat.clone()])).await;
}

#[tokio::test]
async fn what_one_shard_of_a_cluster_forgot_is_said_again() {
    let cluster = RedisCluster::start();
    let redis = cluster_keys(&cluster);
    let a = Node::start(&redis, "a").await;
    let names = &a.plane.0.names;
    let shard_of = |key: &str| cluster.shard_of(cluster.slot_of(key));
    let own = [shard_of(&names.channel(&a.id())), shard_of(&names.nodes())];
    // On a shard that this node's lease and channel are not on, so that nothing else tells of it.
    let elsewhere = (0..100).map(|n| format!("u{n}")).find(|who| !own.contains(&shard_of(&names.user(&user(who)))));
    let who = elsewhere.unwrap();
    let seat = a.seated(&who, "phone").await;
    let shard = cluster.master(shard_of(&names.user(&user(&who))));
    let forget: [(_, &dyn Fn()); 2] =
        [("emptied", &|| drop(shard.cli(&["FLUSHALL"]))), ("restarted", &|| shard.restart())];
    for (how, forget) in forget {
        forget();
        until(how, async || a.seats_of(&who).await == Some(vec![seat.clone()])).await;
    }
    assert_eq!(a.plane.0.metrics.reconnects.get(), 0, "this was not the reason");
}

#[tokio::test]
async fn a_node_that_was_killed_has_certainly_not_taken_it() {
    let redis = shared();
    let (a, b) = (Node::start(&redis, "a").await, Node::start(&redis, "b").await);
    let seat = b.seated("bob", "phone").await;
    b.kill().await;
    until("nobody listens", async || a.offer(&seat, b"hello").await == Err(OfferError::NotTaken)).await;
}

#[tokio::test]
async fn nothing_is_known_of_an_offer_to_a_node_that_does_not_answer_and_nothing_is_kept() {
    let redis = shared();
    let (a, b) = (Node::start(&redis, "a").await, Node::start(&redis, "b").await);
    let seat = b.seated("bob", "phone").await;
    *b.door.is_stuck.lock() = true;
    assert_eq!(a.offer(&seat, b"hello").await, Err(OfferError::Unknown));
    assert_eq!(a.plane.0.outbox.pending(), 0);
}

#[tokio::test]
async fn an_offer_that_comes_twice_is_taken_once() {
    let redis = shared();
    let (a, b) = (Node::start(&redis, "a").await, Node::start(&redis, "b").await);
    let seat = b.seated("bob", "phone").await;
    for _ in 0..2 {
        a.publish_offer(7, offer_to(&seat, b"hello"), b.redis_now()).await;
    }
    until("the second was seen", async || b.plane.0.metrics.repeated_offers.get() > 0).await;
    assert_eq!(b.door.taken(b"hello"), 1);
}

/// A definite refusal of one copy while another is taken would have the sender try the next device too.
#[tokio::test]
async fn an_offer_of_which_one_copy_found_no_room_is_not_taken_by_the_other() {
    let redis = shared();
    let (a, b) = (Node::start(&redis, "a").await, Node::start(&redis, "b").await);
    let seat = b.seated("bob", "phone").await;
    let offer = wire::Part::Offer { id: 7, offer: offer_to(&seat, b"hello") };
    let copy = || Bytes::from(a.envelope(&offer, b.redis_now()));
    // Nothing is opened meanwhile: this is the only thread, and nothing is waited for.
    b.plane.0.receive(copy());
    for _ in 0..WAITING_ENVELOPES {
        b.plane.0.receive(a.envelope(&wire::Part::Probe, b.redis_now()).into());
    }
    b.plane.0.receive(copy());
    until("the first was dropped", async || b.plane.0.metrics.repeated_offers.get() == 1).await;
    assert_eq!(b.door.taken(b"hello"), 0);
}

#[tokio::test]
async fn what_was_published_too_long_ago_is_refused() {
    let redis = shared();
    let (a, b) = (Node::start(&redis, "a").await, Node::start(&redis, "b").await);
    let seat = b.seated("bob", "phone").await;
    let begun = b.redis_now();
    until("some time has passed", async || b.redis_now() > begun + 200).await;
    let brief = RemoteOffer { ttl: Duration::from_millis(100), ..offer_to(&seat, b"expired") };
    a.publish_offer(1, brief, b.redis_now() - 150).await;
    // Before the lease of `b` began, and after the one that it knows of will have ended: it must have been paused in between.
    a.publish_offer(2, offer_to(&seat, b"before"), begun - 3_600_000).await;
    a.publish_offer(3, offer_to(&seat, b"after"), b.redis_now() + 3_600_000).await;
    assert_eq!(a.offer(&seat, b"now").await, TAKEN);
    assert_eq!(b.door.offered.lock()[..], [Bytes::from_static(b"now")]);
}

#[tokio::test]
async fn offers_to_one_node_go_together() {
    let server = Redis::start();
    let redis = keys(&server.url());
    let (a, b) = (Node::start(&redis, "a").await, Node::start(&redis, "b").await);
    let seat = b.seated("bob", "phone").await;
    let published = || {
        let stats = server.cli(&["INFO", "commandstats"]);
        let line = stats.lines().find(|line| line.starts_with("cmdstat_publish:")).unwrap().to_owned();
        line.split(['=', ',']).nth(1).unwrap().parse::<usize>().unwrap()
    };
    let before = published();
    let all = join_all((0..1_000).map(|_| a.offer(&seat, b"hello"))).await;
    assert!(all.iter().all(|answer| *answer == TAKEN));
    let published = published() - before;
    assert!(published < 200, "{published} times for 1,000 offers and as many replies");
}

#[tokio::test]
async fn a_device_that_goes_to_another_node_is_not_removed_by_the_first() {
    let redis = shared();
    let (a, b) = (Node::start(&redis, "a").await, Node::start(&redis, "b").await);
    let old = a.seated("bob", "phone").await;
    // Even were the numbers the same.
    let new = SeatInfo { node: b.id(), ..old.clone() };
    b.door.streams.lock().push(new.clone());
    assert_eq!(b.plane.seat(new.clone(), 20).await.unwrap().replaced, Some(old.clone()));
    assert_eq!(a.plane.unseat(&old).await.unwrap(), Unseated::Absent);
    assert_eq!(a.sees("bob").await, std::slice::from_ref(&new));
    // But if it is that one that is meant, any node can: a device may be kicked through each.
    assert!(matches!(a.plane.unseat(&new).await.unwrap(), Unseated::Last(_)));
    assert_eq!(b.sees("bob").await, []);
}

fn knows(one: &Node, other: &Node) -> bool {
    one.plane.0.roll.borrow().is_live(&other.id())
}

#[tokio::test]
async fn two_nodes_that_seat_one_device_again_at_the_same_time_leave_the_later_stream() {
    let redis = shared();
    let (a, b) = (Node::start(&redis, "a").await, Node::start(&redis, "b").await);
    until("they know each other", async || knows(&a, &b) && knows(&b, &a)).await;
    for round in 0..20 {
        let who = format!("u{round}");
        let (early, late) = (a.stream(&who, "phone", 1_000), b.stream(&who, "phone", 2_000));
        tokio::join!(a.reconcile(), b.reconcile());
        until("one stream is left", async || !a.door.holds(&early)).await;
        assert!(b.door.holds(&late));
        // As the relay does when a stream has ended.
        assert_eq!(a.plane.unseat(&early).await.unwrap(), Unseated::Absent);
        assert_eq!(a.sees(&who).await, [late]);
    }
    let kept = Redis::shared().dump(&redis.prefix);
    assert!(!kept.contains(&a.plane.0.names.held(&a.id())), "nothing is held by the one that lost:\n{kept}");
}

#[tokio::test]
async fn what_redis_forgot_is_said_again() {
    let server = Redis::start();
    let redis = keys(&server.url());
    let (a, b) = (Node::start(&redis, "a").await, Node::start(&redis, "b").await);
    let mut seats = vec![];
    for n in 0..600 {
        seats.push(b.seated(&format!("u{n}"), "phone").await);
    }
    let gone = b.seated("gone", "phone").await;
    server.cli(&["FLUSHALL"]);
    b.door.streams.lock().retain(|held| *held != gone);
    until("it is noticed", async || !a.plane.knows_all()).await;
    let users: Vec<_> = seats.iter().map(|seat| seat.user.clone()).collect();
    until("all are seated", async || {
        let found = a.plane.locate(&users).await.unwrap();
        found.into_iter().zip(&seats).all(|(presence, seat)| presence.seats == [seat.clone()])
    })
    .await;
    assert_eq!(a.sees("gone").await, []);
    until("the others have had their time", async || a.plane.knows_all()).await;
    until("it takes offers again", async || a.offer(&seats[0], b"hello").await == TAKEN).await;
}

#[tokio::test]
async fn a_redis_that_was_away_is_not_waited_for_and_is_right_again_when_it_is_back() {
    let server = Redis::start();
    let redis = keys(&server.url());
    let (a, b) = (Node::start(&redis, "a").await, Node::start(&redis, "b").await);
    let stays = b.seated("bob", "phone").await;
    let goes = b.seated("carol", "phone").await;
    let resumed = *b.door.resumed.lock();
    server.kill();
    until("it is noticed", async || a.plane.check().await.is_err() && b.plane.check().await.is_err()).await;
    let asked = Instant::now();
    assert!(a.plane.locate(&[user("bob")]).await.is_err());
    assert_eq!(a.offer(&stays, b"away").await, Err(OfferError::NotTaken));
    assert!(a.plane.tell(&b.id(), Notice::Stored(vec![])).await.is_err());
    assert!(asked.elapsed() < Duration::from_millis(200), "{:?}", asked.elapsed());
    // Meanwhile one stream ends and another begins.
    b.door.streams.lock().retain(|held| *held != goes);
    assert!(b.plane.unseat(&goes).await.is_err());
    let comes = b.stream("dave", "phone", 1_000);
    assert!(b.plane.seat(comes.clone(), 20).await.is_err());

    server.restart();
    until("it is back", async || a.plane.check().await.is_ok() && b.plane.check().await.is_ok()).await;
    let found = a.plane.locate(&[user("bob"), user("carol"), user("dave")]).await.unwrap();
    let found: Vec<_> = found.into_iter().map(|presence| presence.seats).collect();
    assert_eq!(found, [vec![stays.clone()], vec![], vec![comes]]);
    assert_eq!(a.offer(&stays, b"back").await, TAKEN);
    until("streams are compared with the store", async || *b.door.resumed.lock() > resumed).await;
}

#[tokio::test]
async fn a_node_that_hears_nothing_is_not_ready_and_loses_its_lease_and_heals() {
    let proxy = Proxy::to(Redis::shared().address());
    let redis = shared();
    let deaf = RedisKeys { url: Some(Secret::new(url_at(proxy.address()))), ..redis.clone() };
    let (a, b) = (Node::start(&redis, "a").await, Node::start(&deaf, "b").await);
    let seat = b.seated("bob", "phone").await;
    proxy.stop_to_client();
    until("it is not ready", async || b.plane.check().await.is_err()).await;
    until("its lease is over", async || a.seats_of("bob").await == Some(vec![])).await;
    proxy.heal();
    until("it is ready", async || b.plane.check().await.is_ok()).await;
    assert_eq!(a.sees("bob").await, std::slice::from_ref(&seat));
    assert_eq!(a.offer(&seat, b"hello").await, TAKEN);
}

#[tokio::test]
async fn a_lost_subscription_is_made_anew() {
    let server = Redis::start();
    let redis = keys(&server.url());
    let (a, b) = (Node::start(&redis, "a").await, Node::start(&redis, "b").await);
    let seat = b.seated("bob", "phone").await;
    server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    until("both have a new one", async || {
        a.plane.0.metrics.reconnects.get() == 1 && b.plane.0.metrics.reconnects.get() == 1
    })
    .await;
    assert_eq!(a.offer(&seat, b"hello").await, TAKEN);
}

#[tokio::test]
async fn a_dead_nodes_seats_do_not_count_and_are_withdrawn() {
    let redis = shared();
    let (a, b) = (Node::start(&redis, "a").await, Node::start(&redis, "b").await);
    let own = a.seated("bob", "own").await;
    for n in 0..300 {
        b.seated("bob", &format!("d{n}")).await;
    }
    let late = a.stream("bob", "late", 1_000);
    let full = answered(async || match a.plane.seat(late.clone(), 301).await {
        Err(SeatError::Away(error)) => Err(error),
        told => Ok(told),
    });
    assert!(matches!(full.await, Err(SeatError::TooManyDevices(301))));
    // As the relay does with a stream that got no seat.
    a.door.streams.lock().retain(|held| *held != late);
    let dead = b.plane.0.names.held(&b.id());
    let killed = Instant::now();
    b.kill().await;
    until("they don't count", async || a.seats_of("bob").await == Some(vec![own.clone()])).await;
    assert!(killed.elapsed() < LEASE + Duration::from_secs(5), "{:?}", killed.elapsed());
    until("nothing is left", async || {
        let kept = Redis::shared().dump(&redis.prefix);
        !kept.contains(&dead) && !kept.contains("d299") && !kept.contains(" b\n") && kept.contains(" a\n")
    })
    .await;
    assert_eq!(a.sees("bob").await, [own]);
    assert!(a.door.departed.lock().is_empty(), "bob has a device, so he is here");
}

#[tokio::test]
async fn whose_last_device_was_on_a_dead_node_has_departed_and_one_node_says_so() {
    let redis = shared();
    let nodes = [Node::start(&redis, "a").await, Node::start(&redis, "b").await];
    let dead = Node::start(&redis, "c").await;
    dead.seated("bob", "phone").await;
    dead.kill().await;
    let told = || nodes.iter().flat_map(|node| node.door.departed.lock().clone()).collect::<Vec<_>>();
    until("somebody is told", async || !told().is_empty()).await;
    assert_eq!(told(), [(user("bob"), Departure::LeaseExpired)]);
}

#[tokio::test]
async fn a_node_that_comes_again_has_nothing_of_before() {
    let redis = shared();
    let a = Node::start(&redis, "a").await;
    a.seated("bob", "phone").await;
    a.kill().await;
    let a = Node::start(&redis, "a").await;
    assert_eq!(a.sees("bob").await, []);
    assert_eq!(a.plane.0.roll.borrow().runs_of(&a.id()).count(), 1);
}

#[tokio::test]
async fn a_start_that_loses_its_connection_on_the_way_is_tried_anew() {
    let proxy = Proxy::to(Redis::shared().address());
    let redis = keys(&url_at(proxy.address()));
    proxy.cut_after_sending(b"HSCAN");
    let a = Node::start(&redis, "a").await;
    assert!(proxy.has_cut());
    a.seated("bob", "phone").await;
    a.plane.check().await.unwrap();
}

#[tokio::test]
async fn a_name_is_for_one_process_at_a_time() {
    let redis = shared();
    let a = Node::start(&redis, "a").await;
    let seat = a.seated("bob", "phone").await;
    // Unless Redis is too slow to tell.
    until("it is refused for its name", async || {
        let refused = Node::try_start(&redis, "a").await.err().unwrap();
        format!("{refused:?}").contains("another process runs as node `a`")
    })
    .await;
    assert_eq!(a.sees("bob").await, [seat]);
    a.plane.check().await.unwrap();
}

#[tokio::test]
async fn a_key_whose_node_died_is_abandoned() {
    let redis = shared();
    let (a, b) = (Node::start(&redis, "a").await, Node::start(&redis, "b").await);
    let first = claim();
    for key in ["k", "{k"] {
        assert_eq!(a.plane.claim_key(key, first.clone()).await.unwrap(), Claimed::New);
        assert_eq!(b.plane.claim_key(key, claim()).await.unwrap(), Claimed::InProgress);
    }
    a.kill().await;
    let abandoned = Claimed::Abandoned { id: first.id, sent_at: first.now };
    until("it is abandoned", async || b.plane.claim_key("k", claim()).await.unwrap() == abandoned).await;
    // The name being there again doesn't bring back what the process knew.
    let a = Node::start(&redis, "a").await;
    assert_eq!(a.plane.claim_key("{k", claim()).await.unwrap(), abandoned);
    assert_eq!(b.plane.claim_key("{k", claim()).await.unwrap(), abandoned);
}

#[tokio::test]
async fn what_became_of_a_key_is_told_when_redis_is_back() {
    let server = Redis::start();
    let proxy = Proxy::to(server.address());
    let redis = keys(&server.url());
    let a = Node::start(&RedisKeys { url: Some(Secret::new(url_at(proxy.address()))), ..redis.clone() }, "a").await;
    let b = Node::start(&redis, "b").await;
    assert_eq!(a.plane.claim_key("answered", claim()).await.unwrap(), Claimed::New);
    assert_eq!(a.plane.claim_key("given back", claim()).await.unwrap(), Claimed::New);
    // The claim arrives, its answer doesn't.
    proxy.cut_after_sending(b"lost");
    assert!(matches!(a.plane.claim_key("lost", claim()).await, Err(KeyError::Away(_))));
    proxy.cut();
    until("it is away", async || a.plane.check().await.is_err()).await;
    assert_eq!(b.plane.claim_key("lost", claim()).await.unwrap(), Claimed::InProgress);
    a.plane.settle_key("answered", Some(Bytes::from_static(b"{}"))).await.unwrap();
    a.plane.settle_key("given back", None).await.unwrap();
    proxy.heal();
    let answered = Claimed::Answered(Bytes::from_static(b"{}"));
    until("the answer", async || b.plane.claim_key("answered", claim()).await.unwrap() == answered).await;
    for key in ["given back", "lost"] {
        let other = || KeyClaim { id: Uuid::max(), ..claim() };
        until(key, async || b.plane.claim_key(key, other()).await.unwrap() == Claimed::New).await;
    }
}

#[tokio::test]
async fn redis_memory_is_the_bound_of_keys_and_tickets() {
    let server = Redis::start();
    let a = Node::start(&keys(&server.url()), "a").await;
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let refused = a.plane.claim_key("k", claim()).await;
    assert!(matches!(refused, Err(KeyError::Full)), "{refused:?}");
    let now = Timestamp::now();
    let ticket = Ticket { user: user("bob"), device: None, expires_at: now.plus(LEASE), stream_until: now.plus(LEASE) };
    let refused = a.plane.put_ticket([1; 32], ticket).await;
    assert!(matches!(refused, Err(TicketError::Full)), "{refused:?}");
    let renewed = a.plane.0.rolls_begun.load(std::sync::atomic::Ordering::Relaxed) + 2;
    until("the lease is renewed all the same", async || a.plane.0.roll.borrow().number >= renewed).await;
    a.plane.check().await.unwrap();
    assert_eq!(a.plane.0.metrics.reconnects.get(), 0);
}

#[tokio::test]
async fn a_payload_is_in_no_key() {
    let redis = shared();
    let (a, b) = (Node::start(&redis, "a").await, Node::start(&redis, "b").await);
    let seat = b.seated("bob", "phone").await;
    a.plane.claim_key("k", claim()).await.unwrap();
    assert_eq!(a.offer(&seat, b"a-payload-to-be-sought").await, TAKEN);
    let kept = Redis::shared().dump(&redis.prefix);
    assert!(kept.contains("phone") && !kept.contains("a-payload-to-be-sought"), "{kept}");
}

#[tokio::test]
async fn what_is_unfit_is_refused_at_the_start_and_no_password_is_shown() {
    let cluster_mode = RedisKeys { mode: RedisMode::Cluster, ..shared() };
    let address = Redis::shared().address();
    let password = keys(&format!("redis://me:hunter2@{address}/0"));
    let nowhere = keys("redis://me:hunter2@127.0.0.1:1/0");
    let master = Redis::start();
    let replica = master.replica();
    let tasks = Tasks::on_this_runtime();
    for (redis, why) in [
        (cluster_mode, "cluster"),
        (password, "WRONGPASS"),
        (nowhere, "refused"),
        (keys(&replica.url()), "not a master"),
    ] {
        let shown = match open(&redis, "a", &tasks).await {
            Err(error) => format!("{error:?} {error}"),
            Ok(_) => panic!("accepted: {redis:?}"),
        };
        assert!(shown.to_lowercase().contains(&why.to_lowercase()), "{why}: {shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

/// What the doctor finds that isn't well.
async fn complaints(redis: &RedisKeys) -> Vec<String> {
    let findings = examine(redis, LEASE).await.into_iter();
    findings.filter(|finding| finding.level != Level::Well).map(|finding| finding.found).collect()
}

async fn a_doctor_tells_each_thing_that_is_amiss(redis: &RedisKeys, cli: impl Fn(&[&str]) -> String) {
    let (a, b) = (Node::start(redis, "a").await, Node::start(redis, "b").await);
    let names = &a.plane.0.names;
    let unlisted = a.seated("bob", "phone").await;
    let unseated = b.seated("}{x", "laptop").await;
    a.seated("carol", "phone").await;
    assert_eq!(complaints(redis).await, Vec::<String>::new());
    let well = examine(redis, LEASE).await.pop().unwrap();
    assert_eq!(well.found, "living nodes: 2, seats: 3");

    cli(&["HDEL", &names.held(&a.id()), &unlisted.connection.to_string()]);
    cli(&["HDEL", &names.user(&unseated.user), "laptop"]);
    cli(&["SREM", &names.online(&user("carol")), "carol"]);
    let ghost = SeatInfo { node: node_id("ghost"), ..unlisted.clone() };
    cli(&["HSET", &names.user(&user("dave")), "tv", &seats::encode(&ghost)]);
    cli(&["ZADD", &names.nodes(), "9e12", "0000000000000001 deaf"]);
    let mut told = complaints(redis).await;
    told.sort();
    assert_eq!(
        told,
        [
            "1 entries of the list of node `b` lead to no seat",
            "1 seats are of node `ghost`, which has no lease: nobody withdraws them",
            "1 seats of node `a` are not on its list: nobody withdraws them if it dies",
            "1 seats of node `a` are of users whom messages to large groups don't find",
            "1 users who are looked for in messages to large groups have no seat",
            "node `deaf` has a lease, but does not listen on its channel",
        ]
    );
    cli(&["HDEL", &names.user(&user("dave")), "tv"]);
    cli(&["ZREM", &names.nodes(), "0000000000000001 deaf"]);
    a.kill().await;
    b.kill().await;
    until("the leases have run out", async || {
        let told = complaints(redis).await;
        told.iter().any(|told| told == "2 seats are of node `a`, whose lease has run out")
    })
    .await;
}

#[tokio::test]
async fn a_doctor_tells_what_is_amiss_on_one_server() {
    a_doctor_tells_each_thing_that_is_amiss(&shared(), |command| Redis::shared().cli(command)).await;
}

#[tokio::test]
async fn a_doctor_tells_what_is_amiss_in_a_cluster() {
    let cluster = RedisCluster::start();
    let redis = cluster_keys(&cluster);
    let at_its_shard = |command: &[&str]| cluster.master(cluster.shard_of(cluster.slot_of(command[1]))).cli(command);
    a_doctor_tells_each_thing_that_is_amiss(&redis, at_its_shard).await;
}

#[tokio::test]
async fn a_doctor_tells_of_two_processes_with_one_name_and_of_a_redis_that_is_away() {
    let redis = shared();
    let a = Node::start(&redis, "a").await;
    let mut second = redis::Client::open(Redis::shared().url()).unwrap().get_async_pubsub().await.unwrap();
    second.subscribe(a.plane.0.names.channel(&a.id())).await.unwrap();
    assert_eq!(complaints(&redis).await, ["several processes listen as node `a`"]);
    let away = complaints(&keys("redis://127.0.0.1:1")).await;
    assert!(away.len() == 1 && away[0].starts_with("it can't be used: "), "{away:?}");
}
