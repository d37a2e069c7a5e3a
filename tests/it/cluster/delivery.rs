//! Whichever node is asked, it is one relay.

use crate::harness::*;
use crate::support::*;
use std::collections::BTreeSet;
use std::thread::scope;

/// The outcome at the first recipient, and the devices that took it.
fn outcome(answer: &Value) -> (String, Vec<String>) {
    let recipient = &answer["recipients"][0];
    (text(&recipient["outcome"]), each(recipient["devices"].as_array().unwrap(), "").iter().map(text).collect())
}

fn taken_by(devices: &[&str]) -> (String, Vec<String>) {
    ("delivered".to_owned(), devices.iter().map(ToString::to_string).collect())
}

/// The user's online devices and states, as a node says.
fn devices_of(node: &Node, user: &str) -> Vec<(String, String)> {
    let presence = node.backend().presence(user);
    presence["devices"].as_array().unwrap().iter().map(|d| (text(&d["device"]), text(&d["state"]))).collect()
}

fn names(node: &Node, user: &str) -> Vec<String> {
    devices_of(node, user).into_iter().map(|(device, _)| device).collect()
}

/// `node` of a stream's first event: whose it is.
fn ready(request: &StreamRequest) -> (Device, String) {
    let mut device = request.connect();
    let ready = device.next_event();
    assert_eq!(ready.name, "ready", "{ready:?}");
    (device, text(&ready.json()["node"]))
}

#[test]
fn an_online_only_message_reaches_a_device_of_any_node() {
    let cluster = Cluster::start(3);
    for (here, there) in [(0, 1), (1, 2), (2, 0), (1, 1)] {
        let mut phone = cluster[there].device("bob", "phone");
        let answer = cluster[here].backend().whisper("bob").expect(200).json();
        assert_eq!(outcome(&answer), taken_by(&["phone"]));
        let message = phone.next_message();
        assert_eq!((&message["id"], &message["online_only"]), (&answer["id"], &json!(true)));
        phone.close();
        eventually_is("offline everywhere", || cluster[here].backend().is_online("bob"), |online| !online);
        let answer = cluster[here].backend().whisper("bob").expect(200).json();
        assert_eq!(outcome(&answer).0, "offline");
    }
}

#[test]
fn every_device_means_those_of_all_nodes() {
    let cluster = Cluster::start(2);
    let mut devices =
        [cluster[0].device("bob", "phone"), cluster[1].device("bob", "laptop"), cluster[1].device("bob", "tv")];
    for node in cluster.nodes() {
        let answer = node.backend().whisper_with(&["bob"], &json!({"deliver_to": "every_device"}));
        let (outcome, took) = outcome(&answer);
        assert_eq!(
            (&*outcome, took.iter().map(String::as_str).collect()),
            ("delivered", BTreeSet::from(["laptop", "phone", "tv"]))
        );
        for device in &mut devices {
            assert_eq!(device.next_message()["id"], answer["id"]);
        }
    }
}

#[test]
fn the_order_of_activity_holds_across_nodes() {
    let cluster = Cluster::start(2);
    let mut phone = cluster[0].device("bob", "phone");
    let mut laptop = cluster[1].device("bob", "laptop");
    let sent_to = |node: usize| outcome(&cluster[node].backend().whisper("bob").expect(200).json());
    assert_eq!((sent_to(0), sent_to(1)), (taken_by(&["laptop"]), taken_by(&["laptop"])), "the one that came last");
    phone.ack("0").expect(204);
    assert_eq!((sent_to(0), sent_to(1)), (taken_by(&["phone"]), taken_by(&["phone"])), "the one that was active last");
    phone.set_state("background").expect(204);
    assert_eq!((sent_to(0), sent_to(1)), (taken_by(&["laptop"]), taken_by(&["laptop"])), "the one that is looked at");
    for device in [&mut phone, &mut laptop] {
        device.drain();
    }
}

#[test]
fn a_stuck_device_of_another_node_gives_way_to_the_next() {
    let cluster = Cluster::of(2, &Node::setup().set("limits.seat_patience_ms=50"), planes::Planes::shared());
    let phone = cluster[0].device("bob", "phone");
    phone.set_state("background").expect(204);
    let _stuck = {
        let stuck = cluster[1].stream("carol", "stuck").receive_buffer(4 << 10).open();
        cluster[0].stick("carol");
        stuck
    };
    let mut other = cluster[0].stream("carol", "other").background().open();
    for node in cluster.nodes() {
        let answer = node.backend().whisper_with(&["carol"], &json!({"ttl_ms": 20_000}));
        assert_eq!(outcome(&answer), taken_by(&["other"]), "{answer}");
        assert_eq!(other.next_message()["id"], answer["id"]);
    }
}

#[test]
fn persisted_messages_of_all_nodes_come_live_in_one_order() {
    let cluster = Cluster::start(3);
    let mut devices: Vec<Device> = (0..3).map(|n| cluster[n].device("bob", &format!("device{n}"))).collect();
    scope(|scope| {
        for (n, node) in cluster.nodes().iter().enumerate() {
            scope.spawn(move || (0..20).for_each(|m| drop(stored(node, &chat(&["bob"], &json!([n, m]))))));
        }
    });
    let seen: Vec<Vec<Value>> = devices.iter_mut().map(|device| messages(device, 60)).collect();
    assert_eq!(each(&seen[0], "/cursor"), (1..=60).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(seen.iter().all(|one| each(one, "/id") == each(&seen[0], "/id")));
    // What one device took, every node tells.
    let last = text(&seen[0][59]["id"]);
    devices[1].ack("60").expect(204);
    for node in cluster.nodes() {
        expect_status(node, &last, "/recipients/0/acked_by", &json!(["device1"]));
        let delivered = || status_of(node, &last)["recipients"][0]["delivered_to"].as_array().unwrap().len();
        eventually_is("all took it", delivered, |n| *n == 3);
    }
}

#[test]
fn a_live_message_comes_at_once_and_not_by_a_slow_timer() {
    let cluster = Cluster::start(2);
    let mut phone = cluster[1].device("bob", "phone");
    for n in 0..20 {
        let sent = std::time::Instant::now();
        stored(&cluster[0], &chat(&["bob"], &json!(n)));
        assert_eq!(phone.next_message()["payload"], n);
        assert!(sent.elapsed().as_millis() < 2_000, "{:?}", sent.elapsed());
    }
}

#[test]
fn a_kick_ends_a_stream_of_another_node() {
    let cluster = Cluster::start(2);
    let mut phone = cluster[0].device("bob", "phone");
    let mut laptop = cluster[0].device("bob", "laptop");
    cluster[1].backend().delete("/v1/users/bob/devices/phone").expect(204);
    phone.expect_bye("kicked");
    for node in cluster.nodes() {
        eventually_is("it is gone", || names(node, "bob"), |names| *names == ["laptop"]);
    }
    cluster[1].backend().delete("/v1/users/bob/devices/phone").problem(404, "not_found");
    cluster[1].backend().whisper("bob").expect(200);
    assert_eq!(laptop.next_message()["online_only"], true, "the other stays");
}

#[test]
fn a_stream_of_another_node_is_replaced_and_its_goodbye_takes_nothing_along() {
    let cluster = Cluster::start(2);
    let (mut old, old_node) = ready(&cluster[0].stream("bob", "phone"));
    let (mut new, new_node) = ready(&cluster[1].stream("bob", "phone"));
    assert_ne!(old_node, new_node);
    old.expect_bye("replaced");
    for node in cluster.nodes() {
        let presence = node.backend().presence("bob");
        assert_eq!(each(presence["devices"].as_array().unwrap(), "/node"), [json!(new_node)], "{presence}");
        let answer = node.backend().whisper("bob").expect(200).json();
        assert_eq!(outcome(&answer), taken_by(&["phone"]));
        assert_eq!(new.next_message()["id"], answer["id"]);
    }
}

#[test]
fn two_nodes_that_race_for_one_device_s_seat_leave_one_stream() {
    let cluster = Cluster::start(2);
    for round in 0..20 {
        let requests = [0, 1].map(|n| cluster[n].stream("bob", "phone").after("now"));
        let mut devices: Vec<(Device, String)> = scope(|scope| {
            let opening: Vec<_> = requests.iter().map(|request| scope.spawn(|| ready(request))).collect();
            opening.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let presence = cluster[round % 2].backend().presence("bob");
        let holder = text(&presence["devices"][0]["node"]);
        assert_eq!(presence["devices"].as_array().unwrap().len(), 1, "{presence}");
        let at = devices.iter().position(|(_, node)| *node == holder).expect("one of the two");
        let (mut winner, _) = devices.remove(at);
        devices.remove(0).0.expect_bye("replaced");
        for node in cluster.nodes() {
            let answer = node.backend().whisper("bob").expect(200).json();
            assert_eq!(outcome(&answer), taken_by(&["phone"]));
            assert_eq!(winner.next_message()["id"], answer["id"]);
        }
        let cursor = cluster[round % 2].backend().store("bob", &json!(round));
        assert_eq!(winner.next_message()["cursor"], json!(cursor));
    }
}

#[test]
fn a_device_says_its_state_and_acks_by_any_node() {
    let cluster = Cluster::start(2);
    let _phone = cluster[0].device("bob", "phone");
    let at_the_other = |path: &str, body: Value| {
        let token = cluster[1].token("bob", "phone");
        Request::post(path).bearer(&token).json(body.to_string()).send(cluster[1].address())
    };
    at_the_other("/v1/state", json!({"state": "background"})).expect(204);
    for node in cluster.nodes() {
        assert_eq!(devices_of(node, "bob"), [("phone".to_owned(), "background".to_owned())]);
    }
    stored(&cluster[0], &chat(&["bob"], &json!(1)));
    at_the_other("/v1/ack", json!({"cursor": "1"})).expect(204);
    assert_eq!(resumed(&cluster[0].stream("bob", "phone")).1, "1");
    let token = cluster[1].token("carol", "phone");
    let nobody = Request::post("/v1/state").bearer(&token).json(r#"{"state":"active"}"#).send(cluster[1].address());
    nobody.problem(404, "not_found");
}

#[test]
fn a_ticket_is_good_once_on_any_node() {
    let cluster = Cluster::start(2);
    let phone = cluster[0].device("bob", "phone");
    let ticket = phone.ticket();
    let by_ticket = |node: &Node| node.stream("bob", "phone").without_header().query("ticket", &ticket);
    let _again = by_ticket(&cluster[1]).open();
    by_ticket(&cluster[0]).refused().problem(401, "invalid_credentials");
    by_ticket(&cluster[1]).refused().problem(401, "invalid_credentials");
}

#[test]
fn an_idempotency_key_counts_on_every_node() {
    let cluster = Cluster::start(2);
    let mut phone = cluster[1].device("bob", "phone");
    let whisper = json!({"from": "a", "to": {"users": ["bob"]}, "type": "t", "online_only": true, "payload": {"canary": cluster[0].canary()}});
    for (key, message) in [("online-only", whisper), ("persisted", chat(&["bob"], &json!(1)))] {
        let first = send_with_key(&cluster[0], &message, key);
        assert!(matches!(first.status, 200 | 201), "{first}");
        for node in cluster.nodes() {
            let again = send_with_key(node, &message, key);
            assert_eq!((again.status, again.text()), (first.status, first.text()));
            assert_eq!(again.header("idempotent-replayed"), Some("true"));
        }
        assert_eq!(phone.next_message()["id"], first.json()["id"]);
        send_with_key(&cluster[1], &chat(&["bob"], &json!("other")), key).problem(422, "idempotency_key_reused");
    }
    cluster[0].backend().store("bob", &json!("the last"));
    assert_eq!(phone.next_message()["payload"], "the last", "nothing came twice");
}

#[test]
fn sends_with_one_key_at_once_on_two_nodes_send_once() {
    let cluster = Cluster::start(2);
    let mut phone = cluster[0].device("bob", "phone");
    for round in 0..10 {
        let key = format!("key {round}");
        let message = chat(&["bob"], &json!(round));
        let answers: Vec<Answer> = scope(|scope| {
            let sends: Vec<_> = (0..4)
                .map(|n| {
                    let (node, message, key) = (&cluster[n % 2], &message, &key);
                    scope.spawn(move || send_with_key(node, message, key))
                })
                .collect();
            sends.into_iter().map(|send| send.join().unwrap()).collect()
        });
        let (sent, waiting): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 201);
        assert!(waiting.iter().all(|answer| answer.problem(409, "idempotency_in_progress").is_object()));
        let ids: BTreeSet<String> = sent.iter().map(|answer| text(&answer.json()["id"])).collect();
        assert_eq!(ids.len(), 1, "{answers:?}");
        let message = phone.next_message();
        assert_eq!((&message["payload"], &message["cursor"]), (&json!(round), &json!((round + 1).to_string())));
    }
}

#[test]
fn the_bound_of_devices_and_the_version_of_presence_hold_across_nodes() {
    let cluster = Cluster::of(2, &Node::setup().set("stream.devices_per_user=2"), planes::Planes::shared());
    let version = |n: usize| cluster[n].backend().presence("bob")["version"].as_u64().unwrap();
    let mut last = 0;
    let mut grown = |what: &str| {
        let now = [version(0), version(1)];
        assert!(now[0] == now[1] && now[0] > last, "{what}: {last} to {now:?}");
        last = now[0];
    };
    let _phone = cluster[0].device("bob", "phone");
    grown("a first device");
    let mut laptop = cluster[1].device("bob", "laptop");
    grown("a second device, elsewhere");
    cluster[0].stream("bob", "tv").refused().problem(409, "too_many_devices");
    let _again = cluster[0].device("bob", "laptop");
    grown("a device that went over");
    laptop.expect_bye("replaced");
}

#[test]
fn a_node_that_drains_takes_its_devices_along_and_no_others() {
    let mut cluster = Cluster::start(2);
    let mut phone = cluster[0].device("bob", "phone");
    let mut laptop = cluster[1].device("bob", "laptop");
    laptop.set_state("background").expect(204);
    cluster[0].signal("TERM");
    phone.expect_bye("draining");
    eventually_is("withdrawn", || names(&cluster[1], "bob"), |names| *names == ["laptop"]);
    assert!(cluster[0].wait().success());
    let answer = cluster[1].backend().whisper("bob").expect(200).json();
    assert_eq!(outcome(&answer), taken_by(&["laptop"]));
    assert_eq!(laptop.next_message()["id"], answer["id"]);
}

#[test]
fn callbacks_are_made_once_by_whichever_node() {
    let (storage, push) = (Receiver::start(), Receiver::start());
    let setup = setup_of(&[("storage", &storage), ("push", &push)], &["callbacks.push.grace_ms=3000"]);
    let cluster = Cluster::of(3, &setup, planes::Planes::shared());
    // Online at one node, so that no push is needed whichever stored it.
    let mut phone = cluster[2].device("bob", "phone");
    let ids: BTreeSet<String> = (0..60).map(|n| stored(&cluster[n % 3], &chat(&["bob", "away"], &json!(n)))).collect();
    messages(&mut phone, 60);
    let told = |receiver: &Receiver| receiver.accepted().iter().map(receiver::Call::message_id).collect::<Vec<_>>();
    eventually_is("all are done", || callbacks(&cluster[0], ""), Vec::is_empty);
    let pushed: Vec<_> = push.accepted().iter().map(|call| text(&call.data()["recipient"])).collect();
    assert!(pushed.iter().all(|recipient| recipient == "away"), "{pushed:?}");
    for receiver in [&storage, &push] {
        let told = told(receiver);
        assert_eq!(told.len(), 60, "none is made twice, and none for who took it");
        assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), ids);
    }
}

#[test]
fn every_name_in_redis_bears_the_prefix() {
    let planes = planes::Planes::on(planes::RedisServers::Own(crate::servers::redis::Redis::start()), None);
    let cluster = Cluster::of(2, &Node::setup(), planes);
    let mut phone = cluster[0].device("bob", "phone");
    phone.ticket();
    let message = json!({"from": "a", "to": {"users": ["bob"]}, "type": "t", "online_only": true, "payload": {"canary": cluster[0].canary()}});
    send_with_key(&cluster[1], &message, "key").expect(200);
    phone.next_message();
    let redis = cluster.planes.redis.alone();
    let keys = redis.cli(&["KEYS", "*"]);
    let channels = redis.cli(&["PUBSUB", "CHANNELS", "*"]);
    assert!(!keys.is_empty() && !channels.is_empty());
    for name in keys.lines().chain(channels.lines()) {
        assert!(name.starts_with(cluster.planes.prefix()), "{name}");
    }
}
