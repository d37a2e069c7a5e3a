//! What every online-only message goes through, function by function: `cargo bench --bench hot`.

use bytes::Bytes;
use divan::{Bencher, black_box};
use herenow::backend::memory::MemoryPlane;
use herenow::config::{Auth, Config, Secret};
use herenow::domain::message::{Message, RawJson};
use herenow::domain::seat::{DeviceId, DeviceState, KeyId, NodeId, SeatInfo, UserId, order_seats};
use herenow::domain::time::Timestamp;
use herenow::http::fuzzing;
use herenow::ports::Directory;
use herenow::relay::frame::{Encoded, message_frame};
use herenow::relay::hub::{Hub, Offer};
use herenow::token::Tokens;
use std::time::Duration;
use tokio::time::Instant;
use uuid::Uuid;

fn main() {
    divan::main();
}

const BODY: &str = r#"{"from":"alice","to":{"users":["bob"]},"type":"typing","payload":{"conversation":"c42","typing":true,"pad":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"},"online_only":true}"#;

fn user(n: usize) -> UserId {
    UserId::parse(&format!("user-{n}")).expect("a name")
}

fn seat(user: UserId, n: u64) -> SeatInfo {
    SeatInfo {
        user,
        device: DeviceId::parse(&format!("device-{n}")).expect("a name"),
        node: NodeId::parse("node").expect("a name"),
        connection: n,
        state: DeviceState::Active,
        connected_at: Timestamp::from_ms(0),
        last_active_at: Timestamp::from_ms(i64::try_from(n * 7919 % 101).unwrap_or(0)),
    }
}

fn message() -> Message {
    Message {
        id: Uuid::now_v7(),
        from: user(0),
        group: None,
        kind: "typing".into(),
        payload: RawJson::from_checked(Bytes::from(vec![b'1'; 200])),
        online_only: true,
        sent_at: Timestamp::now(),
    }
}

/// Checking a body of 200 bytes.
#[divan::bench]
fn parse_and_check_a_send(bencher: Bencher) {
    let body = Bytes::from_static(BODY.as_bytes());
    bencher.bench(|| fuzzing::draft(black_box(&body), 65_536, Duration::from_hours(1)).expect("a draft"));
}

/// The event for one recipient.
#[divan::bench]
fn encode_a_frame(bencher: Bencher) {
    let (message, bob) = (message(), user(1));
    bencher.bench(|| message_frame(black_box(&message), &bob, None));
}

/// The events for a thousand recipients: one encoding, a thousand heads.
#[divan::bench]
fn encode_for_a_thousand(bencher: Bencher) {
    let (message, users) = (message(), (0..1_000).map(user).collect::<Vec<_>>());
    bencher.bench(|| {
        let encoded = Encoded::new(black_box(&message));
        users.iter().map(|user| encoded.for_recipient(user, None).len()).sum::<usize>()
    });
}

/// The order in which a user's devices are tried.
#[divan::bench(args = [2, 20])]
fn order_the_seats(bencher: Bencher, devices: u64) {
    let seats: Vec<_> = (0..devices).map(|n| seat(user(0), n)).collect();
    bencher.with_inputs(|| seats.clone()).bench_refs(|seats| order_seats(seats, |_| false));
}

/// One user among 100,000 who are online.
#[divan::bench]
fn locate_a_user(bencher: Bencher) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let plane = MemoryPlane::default();
    runtime.block_on(async {
        for n in 0..100_000 {
            plane.seat(seat(user(n), 1), 20).await.expect("seated");
        }
    });
    let wanted = [user(77_777)];
    bencher.bench_local(|| runtime.block_on(plane.locate(black_box(&wanted))).expect("located"));
}

/// Into the queue of a stream that doesn't rest, and back out by being revoked.
#[divan::bench]
fn offer_and_revoke(bencher: Bencher) {
    let hub = Hub::new(&Config::default().stream);
    let bob = user(1);
    let seat = hub
        .open(&bob, &DeviceId::parse("phone").expect("a name"), DeviceState::Active, KeyId::new(1), None)
        .expect("a seat");
    let frame = message_frame(&message(), &bob, None);
    let expires_at = Instant::now() + Duration::from_hours(1);
    bencher.bench(|| {
        let offer = Offer { frame: frame.clone(), expires_at, collapse_key: None };
        let offered = hub.offer(&bob, seat.connection(), offer, Instant::now()).expect("room");
        offered.is_some_and(|offered| offered.revoke(herenow::ports::Refusal::Revoked))
    });
}

/// Checking a device token.
#[divan::bench]
fn check_a_token(bencher: Bencher) {
    let device_secrets = vec![Secret::new("a secret of some length, as is fit")];
    let tokens = Tokens::new(&Auth { device_secrets, ..Config::default().auth }).expect("no files to read");
    let (token, _) = tokens.mint(&user(1), None, Duration::from_hours(1)).expect("a token");
    bencher.bench(|| tokens.check(black_box(&token), &[]).expect("accepted"));
}
