//! OpenTelemetry: a send and its callbacks as one trace, whatever happens in between; nothing in it that should not be; and no send that
//! waits for a collector.

use crate::harness::collector::{Collector, Span};
use crate::harness::receiver::{Call, Reply};
use crate::harness::*;
use crate::support::*;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use std::time::Duration;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SENDER: &str = "00f067aa0ba902b7";

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{SENDER}-{flags}")
}

/// Sends with a `traceparent`, which may be wrong.
#[track_caller]
fn send_in(node: &Node, traceparent: &str, message: &Value) -> Answer {
    let request = send_request(message).header("traceparent", traceparent).header("tracestate", "congo=t61, rojo=1");
    node.backend().request(request)
}

/// The four fields of a call's `traceparent`.
#[track_caller]
fn parent_of(call: &Call) -> [&str; 4] {
    let fields: Vec<&str> = call.header("traceparent").split('-').collect();
    fields.try_into().unwrap_or_else(|fields| panic!("{fields:?} in {call:?}"))
}

fn call_of(calls: &[Call], kind: &str) -> Call {
    calls.iter().find(|call| call.kind() == kind).unwrap_or_else(|| panic!("no {kind} in {calls:#?}")).clone()
}

#[track_caller]
fn assert_child(span: &Span, of: &Span) {
    assert_eq!((&span.trace, &span.parent), (&of.trace, &of.id), "{span:#?} of {of:#?}");
}

#[test]
fn a_persisted_send_and_its_callbacks_are_one_trace_of_the_senders() {
    let (collector, receiver) = (Collector::start(), Receiver::start());
    receiver.answer_by(|call| match call.kind().as_str() {
        "message.before_send" => Reply::Text(200, json!({"action": "allow"}).to_string()),
        _ => Reply::Status(200),
    });
    let endpoints = [("storage", &receiver), ("push", &receiver), ("before_send", &receiver)];
    // However quiet the log is.
    let node = node_of(
        &endpoints,
        &[&collector.setting(), "cluster.node=node-of-traces", "log.level=error,herenow::app=info"],
    );
    let answer = send_in(&node, &traceparent("01"), &chat(&["zebulon"], &json!("marker-of-the-payload"))).expect(201);
    assert_eq!(answer.json()["recipients"][0]["outcome"], "stored");

    let server = collector.expect(TRACE, "POST /v1/messages");
    assert_eq!((server.kind, server.parent.as_str()), (SpanKind::Server as i32, SENDER));
    let attributes: Vec<_> = server.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(
        attributes,
        [
            ("http.request.method", "POST"),
            ("http.response.status_code", "201"),
            ("http.route", "/v1/messages"),
            ("url.path", "/v1/messages"),
        ]
    );
    for (name, value) in [
        ("service.name", "herenow"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", "node-of-traces"),
    ] {
        assert_eq!(server.resource[name], value);
    }
    for step in ["locate", "append"] {
        let step = collector.expect(TRACE, step);
        assert_child(&step, &server);
        assert_eq!((step.attribute("herenow.recipients"), step.is_error), ("1", false));
    }
    let calls = receiver.expect_callbacks(3);
    for (endpoint, kind) in
        [("before_send", "message.before_send"), ("storage", "message.stored"), ("push", "message.push")]
    {
        let span = collector.expect(TRACE, &format!("POST {endpoint}"));
        assert_child(&span, &server);
        assert_eq!(span.kind, SpanKind::Client as i32);
        assert_eq!(span.attribute("herenow.endpoint"), endpoint);
        assert_eq!(span.attribute("http.response.status_code"), "200");
        assert_eq!(span.attribute("server.address"), "127.0.0.1");
        assert_eq!(span.attribute("server.port"), receiver.addr().port().to_string());
        assert_eq!(span.attribute("herenow.attempt"), if endpoint == "before_send" { "" } else { "1" });
        let call = call_of(&calls, kind);
        assert_eq!(parent_of(&call), ["00", TRACE, &span.id, "01"]);
        assert_eq!(call.header("tracestate"), "congo=t61,rojo=1");
        assert_eq!(span.state, "congo=t61,rojo=1");
    }
    let secrets = [
        "marker-of-the-payload",
        "zebulon",
        "alice",
        node::API_KEY,
        "/storage",
        crate::harness::receiver::SECRET,
        "signature",
    ];
    collector.check_holds_none_of(&secrets);
    assert!(!node.log().contains("marker-of-the-payload"));
}

#[test]
fn an_online_only_send_shows_what_became_of_its_offers() {
    let collector = Collector::start();
    let node = Node::with(&[&collector.setting()]);
    let mut bob = node.device("bob", "phone");
    let canary = node.canary();
    let message = json!({"from": "alice", "to": {"users": ["bob", "carol"]}, "type": "typing", "payload": {"c": canary}, "online_only": true});
    send_in(&node, &traceparent("01"), &message).expect(200);
    bob.next_message();
    let server = collector.expect(TRACE, "POST /v1/messages");
    assert_child(&collector.expect(TRACE, "locate"), &server);
    let offer = collector.expect(TRACE, "offer");
    assert_child(&offer, &server);
    for (name, value) in [("recipients", "2"), ("delivered", "1"), ("offline", "1"), ("unconfirmed", "0")] {
        assert_eq!(offer.attribute(&format!("herenow.{name}")), value, "{name}");
    }

    // What is offered after its answer doesn't keep the sender's span open.
    let trace = TRACE.replace('0', "1");
    let request = send_request(&message).header("traceparent", &format!("00-{trace}-{SENDER}-01"));
    node.backend().request(request.header("Prefer", "respond-async")).expect(202);
    bob.next_message();
    let server = collector.expect(&trace, "POST /v1/messages");
    assert_eq!(server.attribute("http.response.status_code"), "202");
    let after = collector.expect(&trace, "after answer");
    assert_child(&after, &server);
    assert_child(&collector.expect(&trace, "offer"), &after);

    // A batch is one request.
    let trace = TRACE.replace('0', "2");
    let batch = Request::post("/v1/messages/batch").json(json!({"messages": [message, message]}).to_string());
    node.backend().request(batch.header("traceparent", &format!("00-{trace}-{SENDER}-01"))).expect(207);
    let server = collector.expect(&trace, "POST /v1/messages/batch");
    assert_child(&collector.expect(&trace, "offer"), &server);
    let token = node.token("bob", "phone");
    collector.check_holds_none_of(&[&canary, &token, "bob", "carol", "alice", "phone", node::API_KEY]);
    assert!(!node.log().contains("POST /v1/messages"), "spans are no lines of the log, and stand in none");
}

#[test]
fn the_trace_outlives_a_crash_and_each_attempt_tells_how_it_went() {
    let (collector, receiver) = (Collector::start(), Receiver::start_down());
    let mut node = node_of(&[("storage", &receiver)], &[&collector.setting()]);
    send_in(&node, &traceparent("01"), &chat(&["bob"], &json!(1))).expect(201);
    let refused = collector.expect(TRACE, "POST storage");
    assert_eq!((refused.attribute("error.type"), refused.is_error), ("no connection", true));
    assert_eq!(refused.attribute("http.response.status_code"), "");
    expect_listed(&node, "state=failing", 1);
    node.kill();

    receiver.answer_once([Reply::Status(503)]);
    receiver.set_down(false);
    node.restart();
    for (n, status) in ["503", "200"].into_iter().enumerate() {
        node.backend().post("/v1/callbacks/retry", &json!({"state": "failing"})).expect(202);
        let calls = receiver.expect_callbacks(n + 1);
        let [_, trace, id, _] = parent_of(&calls[n]);
        let span = eventually("the span of the attempt", || {
            let spans = collector.spans();
            spans.iter().find(|span| span.id == id).cloned().ok_or_else(|| format!("{spans:#?}"))
        });
        assert_eq!([&span.trace, trace], [TRACE; 2]);
        assert_eq!((span.name.as_str(), &span.parent), ("POST storage", &refused.parent));
        assert_eq!((span.attribute("http.response.status_code"), span.is_error), (status, status == "503"));
        assert_eq!(span.attribute("error.type"), if status == "503" { "503" } else { "" });
        expect_listed(&node, "state=failing", 1 - n);
    }
}

#[test]
fn a_batch_of_callbacks_links_to_the_trace_of_each_message() {
    let (collector, receiver) = (Collector::start(), Receiver::start());
    let set = [&collector.setting(), "callbacks.storage.batch_max=10", "callbacks.storage.concurrency=1"];
    let node = node_of(&[("storage", &receiver)], &set);
    receiver.answer_once([Reply::Delay(Duration::from_millis(500))]);
    let traces: Vec<String> = (0..30).map(|n| format!("{TRACE}{n:02}").split_off(2)).collect();
    for trace in &traces {
        let request = send_request(&chat(&["bob"], &json!(1)));
        node.backend().request(request.header("traceparent", &format!("00-{trace}-{SENDER}-01"))).expect(201);
    }
    let linked = eventually("a batch of several", || {
        let spans = collector.spans();
        spans.iter().find(|span| span.links.len() > 1).cloned().ok_or_else(|| format!("{spans:#?}"))
    });
    assert!(linked.parent.is_empty() && !traces.contains(&linked.trace), "{linked:#?}");
    assert!(linked.links.iter().all(|link| traces.contains(link)), "{linked:#?}");
    let call = receiver.accepted().into_iter().find(|call| parent_of(call)[2] == linked.id).unwrap();
    assert_eq!(call.data()["messages"].as_array().unwrap().len(), linked.links.len());
}

#[test]
fn a_malformed_traceparent_is_as_none_and_a_fresh_trace_begins() {
    let (collector, receiver) = (Collector::start(), Receiver::start());
    let node = node_of(&[("storage", &receiver)], &[&collector.setting()]);
    for (n, wrong) in ["", "00-xyz", &traceparent("01").to_uppercase(), &traceparent("01-01")].into_iter().enumerate() {
        send_in(&node, wrong, &chat(&["bob"], &json!(1))).expect(201);
        let calls = receiver.expect_callbacks(n + 1);
        let [_, trace, _, flags] = parent_of(&calls[n]);
        assert_ne!(trace, TRACE, "{wrong:?}");
        assert_eq!(flags, "01", "{wrong:?}");
        assert_eq!(calls[n].header("tracestate"), "", "{wrong:?}");
        assert_eq!(collector.expect(trace, "POST /v1/messages").parent, "", "{wrong:?}");
    }
}

#[test]
fn the_senders_word_on_sampling_is_heeded_before_the_ratio() {
    let (collector, receiver) = (Collector::start(), Receiver::start());
    let mut node = node_of(&[("storage", &receiver)], &[&collector.setting()]);
    send_in(&node, &traceparent("00"), &chat(&["bob"], &json!(1))).expect(201);
    let calls = receiver.expect_callbacks(1);
    let [_, trace, _, flags] = parent_of(&calls[0]);
    assert_eq!((trace, flags), (TRACE, "00"), "told on, so that nobody after it samples it either");

    node.restart_with(setup_of(&[("storage", &receiver)], &[&collector.setting(), "otel.sample_ratio=0"]));
    accepted(&node, &chat(&["bob"], &json!(2)));
    let calls = receiver.expect_callbacks(2);
    let [_, fresh, _, flags] = parent_of(&calls[1]);
    assert_eq!(flags, "00");
    let sampled = TRACE.replace('0', "6");
    let request = send_request(&chat(&["bob"], &json!(3)));
    node.backend().request(request.header("traceparent", &format!("00-{sampled}-{SENDER}-01"))).expect(201);
    collector.expect(&sampled, "POST storage");
    assert!(collector.spans().iter().all(|span| span.trace != TRACE && span.trace != fresh));
}

#[test]
fn without_a_collector_what_the_sender_said_goes_on_unchanged() {
    let receiver = Receiver::start();
    receiver.answer_by(|call| match call.kind().as_str() {
        "message.before_send" => Reply::Text(200, json!({"action": "allow"}).to_string()),
        _ => Reply::Status(200),
    });
    let node = node_of(&[("storage", &receiver), ("push", &receiver), ("before_send", &receiver)], &[]);
    send_in(&node, &traceparent("01"), &chat(&["bob"], &json!(1))).expect(201);
    for call in receiver.expect_callbacks(3) {
        assert_eq!(call.header("traceparent"), traceparent("01"), "{call:?}");
        assert_eq!(call.header("tracestate"), "congo=t61,rojo=1", "{call:?}");
    }
    accepted(&node, &chat(&["bob"], &json!(2)));
    for call in &receiver.expect_callbacks(6)[3..] {
        assert_eq!((call.header("traceparent"), call.header("tracestate")), ("", ""), "{call:?}");
    }
}

#[test]
fn sends_go_on_without_the_collector_which_is_told_once_and_gets_the_spans_when_it_is_back() {
    let collector = Collector::start();
    collector.answer(503);
    let mut node = Node::with(&[&collector.setting()]);
    for n in 0..3 {
        send_in(&node, &traceparent("01"), &chat(&["bob"], &json!(n))).expect(201);
    }
    eventually_is("it is tried again", || collector.asked(), |asked| *asked > 1);
    let told = node.log().matches("the trace collector does not take spans").count();
    assert_eq!(told, 1, "{}", node.log());
    collector.answer(200);
    let appends = || collector.spans().iter().filter(|span| span.name == "append").count();
    eventually_is("all three", appends, |appends| *appends == 3);
    eventually_is("it is told", || node.log(), |log| log.contains("the trace collector takes spans again"));

    // What the end of the process finds unsent is sent before it ends.
    let last = TRACE.replace('0', "7");
    let request = send_request(&chat(&["bob"], &json!(4))).header("traceparent", &format!("00-{last}-{SENDER}-01"));
    node.backend().request(request).expect(201);
    assert!(node.stop().success());
    assert!(collector.spans().iter().any(|span| span.trace == last && span.name == "POST /v1/messages"));
}

#[test]
fn a_collector_that_cannot_be_reached_keeps_no_process_from_ending() {
    let mut node = Node::with(&["otel.endpoint=http://127.0.0.1:1"]);
    accepted(&node, &chat(&["bob"], &json!(1)));
    assert_eq!(node.backend().whisper("bob").expect(200).json()["summary"]["offline"], 1);
    assert!(node.stop().success());
    assert_eq!(node.log().matches("the trace collector does not take spans").count(), 1);
}

#[test]
fn spans_that_the_collector_refuses_are_counted() {
    let collector = Collector::start();
    collector.answer(400);
    let node = Node::with(&[&collector.setting()]);
    assert!(node.metrics().contains("\nherenow_spans_lost_total 0\n"), "it is there before anything is lost");
    send_in(&node, &traceparent("01"), &chat(&["bob"], &json!(1))).expect(201);
    eventually_is("lost spans", || node.metric("herenow_spans_lost_total"), |lost| *lost > 0.0);
}
