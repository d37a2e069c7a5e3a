//! The promises of [`Directory`].

use crate::domain::seat::{DeviceId, DeviceState, NodeId, SeatInfo, UserId};
use crate::domain::time::Timestamp;
use crate::ports::{Away, Claimed, Directory, KeyClaim, SeatError, Ticket, Unseated};
use bytes::Bytes;
use std::time::Duration;
use uuid::Uuid;

fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap()
}

fn device(name: &str) -> DeviceId {
    DeviceId::parse(name).unwrap()
}

fn seat(u: &str, d: &str, connection: u64) -> SeatInfo {
    SeatInfo {
        user: user(u),
        device: device(d),
        node: NodeId::parse("n1").unwrap(),
        connection,
        state: DeviceState::Active,
        connected_at: Timestamp::from_ms(1_000),
        last_active_at: Timestamp::from_ms(1_000),
    }
}

/// Runs all of them, each on a fresh directory.
pub async fn all<D: Directory, F: Future<Output = D>>(fresh: impl Fn() -> F) {
    a_seat_is_located_until_it_is_withdrawn(&fresh().await).await;
    of_many_users_those_who_are_here_are_found(&fresh().await).await;
    a_late_goodbye_never_removes_the_successor(&fresh().await).await;
    devices_are_bounded_but_replacements_are_not(&fresh().await).await;
    the_version_grows_with_every_change(&fresh().await).await;
    activity_never_goes_back(&fresh().await).await;
    a_key_is_claimed_once_and_then_answers(&fresh().await).await;
    a_ticket_is_good_once_and_in_time(&fresh().await).await;
    coming_and_going_are_news_once(&fresh().await).await;
}

/// What reads the seats of thousands: on a busy machine that may take longer than a plane elsewhere has to answer, and then it is asked again.
async fn asked<T>(ask: impl AsyncFn() -> Result<T, Away>) -> T {
    const TRIES: u32 = 20;
    for _ in 1..TRIES {
        if let Ok(answer) = ask().await {
            return answer;
        }
    }
    ask().await.unwrap()
}

async fn gone(d: &impl Directory, name: &str, connection: u64) -> u64 {
    match d.unseat(&seat("bob", name, connection)).await.unwrap() {
        Unseated::Last(version) => version,
        other @ (Unseated::Absent | Unseated::One) => panic!("{other:?}"),
    }
}

async fn coming_and_going_are_news_once(d: &impl Directory) {
    assert!(!d.take_departure(&user("bob"), 0).await.unwrap(), "never seen");
    let came = d.seat(seat("bob", "phone", 1), 20).await.unwrap().arrival.unwrap();
    assert_eq!(d.seat(seat("bob", "tv", 2), 20).await.unwrap().arrival, None, "is here already");
    assert_eq!(d.unseat(&seat("bob", "phone", 1)).await.unwrap(), Unseated::One);
    let first = gone(d, "tv", 2).await;
    assert_eq!(d.seat(seat("bob", "tv", 3), 20).await.unwrap().arrival, None, "nobody was told of the departure");
    assert!(!d.take_departure(&user("bob"), first).await.unwrap(), "is back");
    let went = gone(d, "tv", 3).await;
    assert!(!d.take_departure(&user("bob"), first).await.unwrap(), "was back meanwhile");
    assert!(d.take_departure(&user("bob"), went).await.unwrap());
    assert!(!d.take_departure(&user("bob"), went).await.unwrap(), "once");
    let again = d.seat(seat("bob", "tv", 4), 20).await.unwrap().arrival.unwrap();
    assert!(came < first && first < went && went < again);
}

async fn a_seat_is_located_until_it_is_withdrawn(d: &impl Directory) {
    assert_eq!(d.seat(seat("bob", "phone", 1), 20).await.unwrap().replaced, None);
    assert_eq!(d.seat(seat("bob", "tv", 2), 20).await.unwrap().replaced, None);
    let found = d.locate(&[user("carol"), user("bob")]).await.unwrap();
    assert_eq!((found[0].version, found[0].seats.len()), (0, 0), "never seen");
    let connections: Vec<_> = found[1].seats.iter().map(|s| s.connection).collect();
    assert_eq!(connections, [1, 2]);
    assert_eq!(d.unseat(&seat("bob", "phone", 1)).await.unwrap(), Unseated::One);
    assert_eq!(d.unseat(&seat("bob", "phone", 1)).await.unwrap(), Unseated::Absent, "only once");
    assert_eq!(d.locate(&[user("bob")]).await.unwrap()[0].seats.len(), 1);
    gone(d, "tv", 2).await;
}

async fn of_many_users_those_who_are_here_are_found(d: &impl Directory) {
    let many: Vec<_> = (0..5_000).map(|n| user(&format!("u{n}"))).collect();
    let here = async |users: &[UserId]| {
        let seats = asked(async || d.seats(users).await).await;
        assert_eq!(seats.len(), users.len());
        let seats = seats.into_iter().enumerate();
        seats.flat_map(|(n, seats)| seats.into_iter().map(move |seat| (n, seat.connection))).collect::<Vec<_>>()
    };
    d.seat(seat("u7", "phone", 1), 20).await.unwrap();
    d.seat(seat("u7", "tv", 2), 20).await.unwrap();
    d.seat(seat("u4999", "phone", 3), 20).await.unwrap();
    d.seat(seat("u12", "phone", 4), 20).await.unwrap();
    d.seat(seat("u12", "phone", 5), 20).await.unwrap();
    for users in [&many[..], &many[4_998..], &[]] {
        let located = asked(async || d.locate(users).await).await;
        let located = located.into_iter().map(|presence| presence.seats).collect::<Vec<_>>();
        assert_eq!(asked(async || d.seats(users).await).await, located);
    }
    assert_eq!(here(&many).await, [(7, 1), (7, 2), (12, 5), (4_999, 3)]);
    d.unseat(&seat("u7", "phone", 1)).await.unwrap();
    d.unseat(&seat("u12", "phone", 4)).await.unwrap();
    d.unseat(&seat("u4999", "phone", 3)).await.unwrap();
    assert_eq!(here(&many).await, [(7, 2), (12, 5)]);
    d.unseat(&seat("u7", "tv", 2)).await.unwrap();
    d.seat(seat("u4999", "phone", 6), 20).await.unwrap();
    assert_eq!(here(&many).await, [(12, 5), (4_999, 6)]);
}

async fn a_late_goodbye_never_removes_the_successor(d: &impl Directory) {
    d.seat(seat("bob", "phone", 1), 20).await.unwrap();
    let replaced = d.seat(seat("bob", "phone", 2), 20).await.unwrap();
    assert_eq!(replaced.replaced.unwrap().connection, 1);
    assert_eq!(d.unseat(&seat("bob", "phone", 1)).await.unwrap(), Unseated::Absent);
    // Nodes count by themselves, so two may have used the same number.
    let elsewhere = SeatInfo { node: NodeId::parse("n2").unwrap(), ..seat("bob", "phone", 2) };
    assert_eq!(d.unseat(&elsewhere).await.unwrap(), Unseated::Absent);
    assert_eq!(d.locate(&[user("bob")]).await.unwrap()[0].seats[0].connection, 2);
}

async fn devices_are_bounded_but_replacements_are_not(d: &impl Directory) {
    d.seat(seat("bob", "a", 1), 2).await.unwrap();
    d.seat(seat("bob", "b", 2), 2).await.unwrap();
    assert!(matches!(d.seat(seat("bob", "c", 3), 2).await, Err(SeatError::TooManyDevices(2))));
    assert!(d.seat(seat("bob", "a", 4), 2).await.unwrap().replaced.is_some());
    assert!(d.seat(seat("carol", "c", 5), 2).await.unwrap().replaced.is_none());
}

async fn the_version_grows_with_every_change(d: &impl Directory) {
    let mut last = 0;
    for step in 0..4 {
        match step {
            0 => drop(d.seat(seat("bob", "a", 1), 20).await.unwrap()),
            1 => assert!(d.touch(&user("bob"), &device("a"), None, Timestamp::from_ms(5_000)).await.unwrap().is_some()),
            2 => drop(gone(d, "a", 1).await),
            _ => drop(d.seat(seat("bob", "a", 2), 20).await.unwrap()),
        }
        let version = d.locate(&[user("bob")]).await.unwrap()[0].version;
        assert!(version > last, "step {step}");
        last = version;
    }
}

async fn activity_never_goes_back(d: &impl Directory) {
    d.seat(seat("bob", "a", 1), 20).await.unwrap();
    let at = Timestamp::from_ms(9_000);
    let touched = d.touch(&user("bob"), &device("a"), Some(DeviceState::Background), at).await.unwrap().unwrap();
    assert_eq!((touched.connection, touched.state, touched.last_active_at), (1, DeviceState::Background, at));
    assert!(d.touch(&user("bob"), &device("a"), None, Timestamp::from_ms(2_000)).await.unwrap().is_some());
    let found = d.locate(&[user("bob")]).await.unwrap();
    assert_eq!((found[0].seats[0].state, found[0].seats[0].last_active_at), (DeviceState::Background, at));
    assert_eq!(d.touch(&user("bob"), &device("b"), None, at).await.unwrap(), None, "not online");
    assert_eq!(d.touch(&user("carol"), &device("a"), None, at).await.unwrap(), None, "never seen");
}

async fn a_key_is_claimed_once_and_then_answers(d: &impl Directory) {
    let now = Timestamp::now();
    let claim =
        |body: u8| KeyClaim { body: [body; 32], id: Uuid::nil(), now, expires_at: now.plus(Duration::from_mins(1)) };
    assert_eq!(d.claim_key("k", claim(1)).await.unwrap(), Claimed::New);
    assert_eq!(d.claim_key("k", claim(1)).await.unwrap(), Claimed::InProgress);
    assert_eq!(d.claim_key("k", claim(2)).await.unwrap(), Claimed::OtherBody);
    let answer = Bytes::from_static(b"{}");
    d.settle_key("k", Some(answer.clone())).await.unwrap();
    assert_eq!(d.claim_key("k", claim(1)).await.unwrap(), Claimed::Answered(answer));
    assert_eq!(d.claim_key("k", claim(2)).await.unwrap(), Claimed::OtherBody);
    assert_eq!(d.peek_key("k").await.unwrap(), Some([1; 32]));

    assert_eq!(d.claim_key("given back", claim(1)).await.unwrap(), Claimed::New);
    d.settle_key("given back", None).await.unwrap();
    assert_eq!(d.claim_key("given back", claim(2)).await.unwrap(), Claimed::New);

    let late = Timestamp::now().plus(Duration::from_secs(61));
    let later = KeyClaim { body: [2; 32], id: Uuid::nil(), now: late, expires_at: late.plus(Duration::from_mins(1)) };
    assert_eq!(d.claim_key("k", later).await.unwrap(), Claimed::New, "forgotten after its time");
}

async fn a_ticket_is_good_once_and_in_time(d: &impl Directory) {
    let now = Timestamp::now();
    let ticket = Ticket {
        user: user("bob"),
        device: Some(device("phone")),
        expires_at: now.plus(Duration::from_secs(30)),
        stream_until: now.plus(Duration::from_hours(1)),
    };
    d.put_ticket([1; 32], ticket.clone()).await.unwrap();
    assert_eq!(d.take_ticket([2; 32], now).await.unwrap(), None);
    assert_eq!(d.take_ticket([1; 32], now).await.unwrap(), Some(ticket.clone()));
    assert_eq!(d.take_ticket([1; 32], now).await.unwrap(), None, "used");
    d.put_ticket([3; 32], ticket).await.unwrap();
    assert_eq!(d.take_ticket([3; 32], now.plus(Duration::from_secs(31))).await.unwrap(), None, "expired");
}
