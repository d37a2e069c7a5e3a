use super::*;
use crate::domain::callback::CallbackState::{self, Dead, Failing, NotNeeded, Sent, Waiting};
use crate::domain::callback::LastError;
use crate::ports::CallbackContent;
use crate::webhook::Webhooks;
use crate::webhook::receiver::{Answer, Receiver};
use fake::FakeStore;
use std::collections::HashSet;
use std::sync::atomic::Ordering::SeqCst;
use tokio::time::{Instant, sleep, timeout};

pub mod fake;

const MS: Duration = Duration::from_millis(1);

/// A store, two receivers and the dispatchers between them.
struct Net {
    store: Arc<FakeStore>,
    storage: Receiver,
    push: Receiver,
    config: config::Callbacks,
    schedule: Schedule,
    tasks: Tasks,
    registry: Registry,
    callbacks: Option<Arc<Callbacks>>,
}

impl Net {
    /// Nothing runs yet. Both receivers say 200, and failed events are tried again soon.
    async fn new() -> Self {
        let (storage, push) =
            (Receiver::always(Answer::status(200)).await, Receiver::always(Answer::status(200)).await);
        let config = config::Callbacks {
            storage: storage.outlet(),
            storage_batch_max: 1,
            push: push.outlet(),
            push_grace: Duration::from_secs(5),
            deny_networks: vec![],
            ..config::Config::default().callbacks
        };
        Self {
            store: Arc::default(),
            storage,
            push,
            config,
            schedule: Schedule::new([20 * MS; 3]),
            tasks: Tasks::on_this_runtime(),
            registry: Registry::default(),
            callbacks: None,
        }
    }

    fn start(&mut self) -> Arc<Callbacks> {
        self.tasks = Tasks::on_this_runtime();
        self.registry = Registry::default();
        let store: Arc<dyn Store> = Arc::clone(&self.store) as _;
        let started = Callbacks::start(&store, &self.schedule, &self.tasks, &mut self.registry);
        self.callbacks = Some(Arc::clone(&started));
        self.set();
        started
    }

    /// What is configured takes effect.
    fn set(&self) {
        let Webhooks { storage, push, .. } = Webhooks::of(&self.config).unwrap();
        self.callbacks.as_ref().unwrap().set(storage, push, &self.config);
    }

    /// Appends leased rows and hands them over, as a send does.
    fn hand_over(&self, endpoint: Endpoint, n: usize) -> Vec<Callback> {
        let room = self.callbacks.as_ref().unwrap().reserve(endpoint, n).unwrap();
        let rows: Vec<_> = (0..n).map(|i| self.store.add(endpoint, i, true, Duration::ZERO)).collect();
        room.hand_over(rows.clone());
        rows
    }

    /// Waits until so many rows are in a state and none is leased.
    async fn settled(&self, state: CallbackState, n: usize) {
        eventually(|| (self.store.count(state), self.store.leased()), (n, 0)).await;
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }

    async fn drain(&self) {
        self.tasks.drain.cancel();
        timeout(Duration::from_secs(5), self.tasks.finished()).await.unwrap();
    }
}

/// Waits for a condition, with patience for a busy machine.
async fn eventually<T: PartialEq + std::fmt::Debug>(mut look: impl FnMut() -> T, wanted: T) {
    let begun = Instant::now();
    loop {
        let seen = look();
        if seen == wanted {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "is {seen:?}, should be {wanted:?}");
        sleep(5 * MS).await;
    }
}

/// The payloads of the messages in a request.
fn payloads(receiver: &Receiver) -> Vec<Vec<u64>> {
    let of = |data: &serde_json::Value| data["message"]["payload"].as_u64().unwrap();
    receiver
        .requests()
        .iter()
        .map(|request| match &request.json()["data"] {
            data if data["messages"].is_array() => data["messages"].as_array().unwrap().iter().map(of).collect(),
            data => vec![of(data)],
        })
        .collect()
}

#[tokio::test]
async fn what_waited_since_before_the_start_is_told_in_the_order_of_storing() {
    let mut net = Net::new().await;
    net.config.storage.concurrency = 1;
    let rows = net.store.add_due(Endpoint::Storage, 30);
    net.start();
    net.settled(Sent, 30).await;
    let ids: Vec<_> = rows.iter().map(|row| row.id.to_string()).collect();
    assert_eq!(net.storage.ids(), ids);
    assert!(rows.iter().all(|row| net.store.row(row.id).callback.attempts == 1));
    assert!(net.push.requests().is_empty());
}

#[tokio::test]
async fn what_is_handed_over_needs_no_reading() {
    let mut net = Net::new().await;
    let callbacks = net.start();
    eventually(|| net.store.reads.load(SeqCst), 2).await;
    // Leased rows aren't found by reading.
    net.hand_over(Endpoint::Storage, 3);
    net.hand_over(Endpoint::Push, 3);
    net.settled(Sent, 6).await;
    assert!(callbacks.is_configured(Endpoint::Push));
    assert_eq!(callbacks.push_grace(), Duration::from_secs(5));
}

#[tokio::test]
async fn what_is_due_later_waits_in_memory() {
    let mut net = Net::new().await;
    let callbacks = net.start();
    let room = callbacks.reserve(Endpoint::Push, 1).unwrap();
    let begun = Instant::now();
    room.hand_over(vec![net.store.add(Endpoint::Push, 0, true, 300 * MS)]);
    net.settled(Sent, 1).await;
    assert!(begun.elapsed() >= 299 * MS, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn an_event_is_tried_again_by_the_schedule_with_the_same_id_and_then_dead() {
    let mut net = Net::new().await;
    net.storage.now(Answer::Status(422, "", "no".to_owned()));
    net.start();
    let rows = net.hand_over(Endpoint::Storage, 1);
    net.settled(Dead, 1).await;
    assert_eq!(net.storage.ids(), vec![rows[0].id.to_string(); 4]);
    let bodies: HashSet<String> = net.storage.requests().into_iter().map(|r| r.body).collect();
    assert_eq!(bodies.len(), 1, "the event's own time does not change");
    let row = net.store.row(rows[0].id);
    assert_eq!(row.callback.attempts, 4);
    assert_eq!(row.last_error, Some(LastError { status: Some(422), detail: "refused: no".to_owned() }));
}

#[tokio::test]
async fn it_recovers_between_attempts() {
    let mut net = Net::new().await;
    net.storage.now(Answer::status(500));
    net.schedule = Schedule::new([300 * MS; 3]);
    net.start();
    let rows = net.hand_over(Endpoint::Storage, 2);
    net.settled(Failing, 2).await;
    net.storage.now(Answer::status(200));
    net.settled(Sent, 2).await;
    assert_eq!(net.store.row(rows[0].id).callback.attempts, 2);
}

#[tokio::test]
async fn abort_message_is_death_at_once() {
    let mut net = Net::new().await;
    net.storage.now(Answer::Status(500, "webhook-delivery: abort-message\r\n", String::new()));
    net.start();
    let rows = net.hand_over(Endpoint::Storage, 1);
    net.settled(Dead, 1).await;
    assert_eq!(net.store.row(rows[0].id).callback.attempts, 1);
}

#[tokio::test]
async fn an_endpoint_that_is_down_is_probed_with_one_event_and_nothing_dies() {
    let mut net = Net::new().await;
    net.config.storage.concurrency = 8;
    net.schedule = Schedule::new([Duration::from_hours(1); 9]);
    net.storage.now(Answer::status(500));
    let rows = net.store.add_due(Endpoint::Storage, 30);
    net.start();
    // Eight at once and a new one for each of the first four failures; five count, and open the breaker.
    eventually(|| net.store.count(Failing), 5).await;
    sleep(200 * MS).await;
    let opened = net.storage.requests().len();
    assert!((5..=12).contains(&opened), "{opened}");
    // Probes come after 1 s and another 2 s.
    sleep(3_300 * MS).await;
    let ids = net.storage.ids();
    assert_eq!(ids.len(), opened + 2);
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len(), "another event each time");
    assert_eq!(rows.iter().map(|row| net.store.row(row.id).callback.attempts).sum::<u32>(), 5);
    net.storage.now(Answer::Slow(100 * MS));
    eventually(|| net.store.count(Sent), 25).await;
    let back = net.storage.requests().split_off(opened + 2);
    // It ramps up: the probe, one, two, four, eight.
    let rounds: Vec<bool> = back.windows(2).map(|pair| pair[1].at - pair[0].at > 70 * MS).collect();
    assert_eq!(rounds[..7], [true, true, false, true, false, false, false], "{rounds:?}");
    assert!(net.storage.most_in_flight() <= 8);
}

#[tokio::test]
async fn a_poisonous_probe_does_not_keep_the_endpoint_down() {
    let mut net = Net::new().await;
    net.config.storage.concurrency = 1;
    let poison = net.store.add_due(Endpoint::Storage, 5).into_iter().map(|row| row.id.to_string());
    let poison: HashSet<String> = poison.collect();
    net.schedule = Schedule::new([100 * MS; 50]);
    net.store.add(Endpoint::Storage, 99, false, Duration::from_millis(300));
    net.storage = Receiver::open(move |r| Answer::status(if poison.contains(r.id()) { 500 } else { 200 })).await;
    net.config.storage.url = net.storage.outlet().url;
    net.start();
    eventually(|| net.store.count(Sent), 1).await;
}

#[tokio::test]
async fn retry_after_pauses_the_endpoint() {
    let mut net = Net::new().await;
    net.config.storage.concurrency = 1;
    net.storage.now(Answer::Status(429, "retry-after: 1\r\n", String::new()));
    net.store.add_due(Endpoint::Storage, 10);
    net.start();
    eventually(|| net.storage.requests().len(), 1).await;
    net.storage.now(Answer::status(200));
    net.settled(Sent, 10).await;
    let requests = net.storage.requests();
    assert!(requests[1].at - requests[0].at >= 999 * MS);
}

#[tokio::test]
async fn gone_is_down_at_once() {
    let mut net = Net::new().await;
    net.config.storage.concurrency = 1;
    net.storage.now(Answer::status(410));
    net.store.add_due(Endpoint::Storage, 10);
    net.start();
    eventually(|| net.store.count(Failing), 1).await;
    sleep(500 * MS).await;
    assert_eq!(net.storage.requests().len(), 1);
}

#[tokio::test]
async fn batches_are_of_one_kind_and_bear_the_same_id_for_the_same_members() {
    let mut net = Net::new().await;
    net.config.storage_batch_max = 3;
    net.config.storage.concurrency = 1;
    let rows = net.store.add_due(Endpoint::Storage, 7);
    // The first attempts end without an answer that counts, as in a crash: the same members come again.
    net.storage.now(Answer::Hang);
    net.start();
    eventually(|| net.storage.requests().len(), 1).await;
    net.tasks.halt.cancel();
    net.tasks.finished().await;
    net.store.end_leases();
    net.storage.now(Answer::status(200));
    net.start();
    net.settled(Sent, 7).await;
    assert_eq!(payloads(&net.storage), [vec![0, 1, 2], vec![0, 1, 2], vec![3, 4, 5], vec![6]]);
    let ids = net.storage.ids();
    assert_eq!(ids[0], ids[1]);
    assert!(ids[1].starts_with("batch_") && ids[1] != ids[2]);
    assert_eq!(ids[3], rows[6].id.to_string(), "one alone bears its own id");
    assert!(net.storage.requests().iter().all(|r| r.json()["type"] == "message.stored.batch"));
}

#[tokio::test]
async fn one_poisonous_message_fails_alone_whether_it_is_refused_or_breaks_the_receiver() {
    for status in [400, 500] {
        let mut net = Net::new().await;
        net.config.storage_batch_max = 5;
        net.config.storage.concurrency = 1;
        net.storage = Receiver::open(move |request| {
            let data = &request.json()["data"]["messages"];
            let poisonous = data.as_array().unwrap().iter().any(|m| m["message"]["payload"] == 3);
            Answer::status(if poisonous { status } else { 200 })
        })
        .await;
        net.config.storage.url = net.storage.outlet().url;
        net.store.add_due(Endpoint::Storage, 10);
        net.start();
        eventually(|| (net.store.count(Sent), net.store.count(Dead)), (9, 1)).await;
    }
}

#[tokio::test]
async fn what_a_device_has_taken_is_not_pushed() {
    let mut net = Net::new().await;
    let rows = net.store.add_due(Endpoint::Push, 4);
    net.store.set_content(rows[1].id, CallbackContent::NotNeeded);
    net.store.set_content(rows[2].id, CallbackContent::NotNeeded);
    net.start();
    net.settled(NotNeeded, 2).await;
    net.settled(Sent, 2).await;
    assert_eq!(net.push.requests().len(), 2);
    assert_eq!(net.store.row(rows[1].id).callback.attempts, 0);
}

#[tokio::test]
async fn an_attempt_that_a_crash_left_unsettled_is_made_again() {
    let mut net = Net::new().await;
    net.store.refuses_to_settle.store(true, SeqCst);
    net.start();
    let rows = net.hand_over(Endpoint::Storage, 1);
    eventually(|| net.storage.requests().len(), 1).await;
    net.tasks.halt.cancel();
    net.tasks.finished().await;
    net.store.refuses_to_settle.store(false, SeqCst);
    net.store.end_leases();
    net.start();
    net.settled(Sent, 1).await;
    assert_eq!(net.storage.ids(), vec![rows[0].id.to_string(); 2]);
}

#[tokio::test]
async fn a_store_that_is_away_loses_nothing_and_is_not_hammered() {
    let mut net = Net::new().await;
    net.start();
    let rows = net.hand_over(Endpoint::Storage, 20);
    net.store.away.store(true, SeqCst);
    net.store.add_due(Endpoint::Storage, 20);
    sleep(1_500 * MS).await;
    assert!(net.store.settles.load(SeqCst) < 15, "{}", net.store.settles.load(SeqCst));
    net.store.away.store(false, SeqCst);
    net.settled(Sent, 40).await;
    let ids = net.storage.ids();
    assert!(rows.iter().all(|row| ids.contains(&row.id.to_string())));
    assert_eq!(ids.len(), 40, "each was told once");
}

#[tokio::test]
async fn what_can_not_be_written_down_now_is_written_later_and_not_told_again() {
    let mut net = Net::new().await;
    net.config.storage.concurrency = 1;
    net.store.refuses_to_settle.store(true, SeqCst);
    net.store.add_due(Endpoint::Storage, 20);
    net.start();
    sleep(1_500 * MS).await;
    let told = net.storage.requests().len();
    assert!((1..20).contains(&told), "no attempts while their results can't be kept: {told}");
    net.store.refuses_to_settle.store(false, SeqCst);
    net.settled(Sent, 20).await;
    assert_eq!(net.storage.requests().len(), 20);
}

#[tokio::test]
async fn an_endpoint_that_hangs_delays_no_other() {
    let mut net = Net::new().await;
    for answer in [Answer::Hang, Answer::Drip(200), Answer::Endless(500)] {
        net.storage.now(answer);
        net.start();
        net.hand_over(Endpoint::Storage, 100);
        let mut times = Vec::new();
        for _ in 0..50 {
            let begun = Instant::now();
            let sent = net.store.count(Sent);
            net.hand_over(Endpoint::Push, 1);
            eventually(|| net.store.count(Sent) > sent, true).await;
            times.push(begun.elapsed());
        }
        times.sort();
        assert!(times[45] < 200 * MS, "{times:?}");
        net.tasks.halt.cancel();
        net.tasks.finished().await;
    }
}

#[tokio::test]
async fn draining_ends_what_is_in_flight_and_gives_back_what_waits() {
    let mut net = Net::new().await;
    net.config.storage.concurrency = 2;
    net.storage.now(Answer::Slow(300 * MS));
    let callbacks = net.start();
    let room = callbacks.reserve(Endpoint::Storage, 1).unwrap();
    net.hand_over(Endpoint::Storage, 10);
    eventually(|| net.storage.requests().len(), 2).await;
    net.drain().await;
    assert_eq!((net.store.count(Sent), net.store.count(Waiting), net.store.leased()), (2, 8, 0));
    assert!(callbacks.reserve(Endpoint::Storage, 1).is_none());
    room.hand_over(vec![net.store.add(Endpoint::Storage, 0, true, Duration::ZERO)]);
}

#[tokio::test]
async fn what_fails_while_draining_is_given_back_too() {
    let mut net = Net::new().await;
    net.config.storage.concurrency = 8;
    net.config.storage.timeout = 300 * MS;
    net.storage.now(Answer::Hang);
    net.start();
    net.hand_over(Endpoint::Storage, 8);
    eventually(|| net.storage.requests().len(), 8).await;
    net.drain().await;
    assert_eq!((net.store.count(Failing), net.store.count(Waiting), net.store.leased()), (5, 3, 0));
}

#[tokio::test]
async fn room_is_bounded_and_given_back() {
    let mut net = Net::new().await;
    net.config.push.url = None;
    let callbacks = net.start();
    eventually(|| net.store.reads.load(SeqCst), 1).await;
    assert!(callbacks.reserve(Endpoint::Push, 1).is_none(), "it is not configured");
    assert!(callbacks.reserve(Endpoint::Storage, 100_000).is_none());
    eventually(|| callbacks.reserve(Endpoint::Storage, 1_500).is_some(), true).await;
    let most = callbacks.reserve(Endpoint::Storage, 1_000).unwrap();
    assert!(callbacks.reserve(Endpoint::Storage, 501).is_none());
    most.hand_over(vec![]);
    assert!(callbacks.reserve(Endpoint::Storage, 501).is_some());
}

#[tokio::test]
async fn what_overflows_is_read_from_the_store_page_by_page() {
    let mut net = Net::new().await;
    net.config.storage.concurrency = 16;
    net.config.storage_batch_max = 100;
    let callbacks = net.start();
    eventually(|| net.store.reads.load(SeqCst), 2).await;
    net.store.add_due(Endpoint::Storage, 5_000);
    callbacks.overflowed(Endpoint::Storage);
    net.settled(Sent, 5_000).await;
    let told: Vec<u64> = payloads(&net.storage).concat();
    assert_eq!((told.len(), told.into_iter().collect::<HashSet<_>>().len()), (5_000, 5_000));
    assert!(net.store.most_leased.load(SeqCst) <= ROOMS);
}

#[tokio::test]
async fn an_endpoint_that_hangs_leases_no_more_than_there_is_room_for() {
    let mut net = Net::new().await;
    net.storage.now(Answer::Hang);
    net.store.add_due(Endpoint::Storage, 3_000);
    net.start();
    eventually(|| net.store.leased(), ROOMS).await;
    sleep(300 * MS).await;
    assert_eq!((net.store.most_leased.load(SeqCst), net.storage.requests().len()), (ROOMS, 4));
}

#[tokio::test]
async fn the_metrics_say_how_it_stands() {
    let mut net = Net::new().await;
    net.storage.now(Answer::status(400));
    net.schedule = Schedule::new([]);
    net.store.add_due(Endpoint::Storage, 2);
    net.store.add(Endpoint::Push, 0, false, Duration::from_mins(1));
    net.start();
    for line in [
        "callback_attempts_total{endpoint=\"storage\",outcome=\"rejected\"} 2",
        "callback_seconds_count{endpoint=\"storage\"} 2",
        "callback_in_flight{endpoint=\"storage\"} 0",
        "callback_breaker_open{endpoint=\"storage\"} 0",
        "callback_pending{endpoint=\"push\"} 1",
        "callback_dead{endpoint=\"storage\"} 2",
        "callback_oldest_due_seconds{endpoint=\"push\"} 0.0",
    ] {
        eventually(|| net.metrics().contains(line), true).await;
    }
}

#[tokio::test]
async fn what_an_endpoint_that_goes_was_to_be_told_waits_in_the_store_until_it_comes_again() {
    let mut net = Net::new().await;
    net.config.storage.concurrency = 1;
    net.storage.now(Answer::Slow(300 * MS));
    let callbacks = net.start();
    let room = callbacks.reserve(Endpoint::Storage, 1).unwrap();
    net.hand_over(Endpoint::Storage, 10);
    eventually(|| net.storage.requests().len(), 1).await;
    net.config.storage.url = None;
    net.set();
    assert!(!callbacks.is_configured(Endpoint::Storage) && callbacks.reserve(Endpoint::Storage, 1).is_none());
    // A send that began before commits only now.
    room.hand_over(vec![net.store.add(Endpoint::Storage, 10, true, Duration::ZERO)]);
    let seen = || (net.store.count(Sent), net.store.count(Waiting), net.store.leased());
    eventually(seen, (1, 10, 0)).await;
    // Neither does the clock bring them up, nor is a thing that is away shown.
    net.store.add_due(Endpoint::Storage, 1);
    sleep(1_200 * MS).await;
    assert_eq!((seen(), net.storage.requests().len()), ((1, 11, 0), 1));
    assert!(!net.metrics().contains("endpoint=\"storage\"") && net.metrics().contains("endpoint=\"push\""));
    net.storage = Receiver::always(Answer::status(200)).await;
    net.config.storage.url = net.storage.outlet().url;
    net.set();
    net.settled(Sent, 12).await;
    assert_eq!(net.storage.requests().len(), 11);
    assert!(net.metrics().contains("callback_attempts_total{endpoint=\"storage\",outcome=\"sent\"} "));
}

/// Nothing is polled between the calls: the dispatcher has yet to hear of its endpoint when it finds the row.
#[tokio::test]
async fn what_is_handed_over_as_soon_as_an_endpoint_has_come_is_not_given_back() {
    let mut net = Net::new().await;
    net.start();
    net.hand_over(Endpoint::Storage, 1);
    net.settled(Sent, 1).await;
    assert_eq!(net.store.settles.load(SeqCst), 1, "it was told at once");
}

#[tokio::test]
async fn how_many_attempts_run_at_once_and_how_much_each_tells_is_said_anew_while_it_runs() {
    let mut net = Net::new().await;
    net.config.storage.concurrency = 2;
    net.storage.now(Answer::Hang);
    net.store.add_due(Endpoint::Storage, 20);
    net.start();
    eventually(|| net.storage.requests().len(), 2).await;
    net.config.storage.concurrency = 5;
    net.config.storage_batch_max = 4;
    net.set();
    eventually(|| net.storage.requests().len(), 5).await;
    sleep(100 * MS).await;
    let told: Vec<usize> = payloads(&net.storage).iter().map(Vec::len).collect();
    assert_eq!(told, [1, 1, 4, 4, 4]);
}

#[tokio::test]
async fn a_bad_endpoint_is_refused_by_the_name_of_its_key() {
    let mut net = Net::new().await;
    net.config.push.secrets = vec![config::Secret::new("hunter2")];
    let refused = Webhooks::of(&net.config).unwrap_err();
    assert_eq!(refused.to_string(), "callbacks.push.secrets: a secret must begin with `whsec_`");
}
