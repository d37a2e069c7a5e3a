//! The body of a send. What is accepted keeps the contract's limits.
#![no_main]

use bytes::Bytes;
use herenow::domain::message::{Audience, Mode};
use herenow::http::fuzzing;
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;
use std::collections::HashSet;
use std::time::Duration;

const PAYLOAD_BYTES: usize = 1_024;
const RETENTION: Duration = Duration::from_secs(3_600);

fn check_name(name: &str, max: usize) {
    assert!((1..=max).contains(&name.chars().count()), "{name:?}");
    assert!(!name.chars().any(char::is_control), "{name:?}");
}

fuzz_target!(|body: &[u8]| {
    // The door refuses anything else before it looks closer.
    if std::str::from_utf8(body).is_err() {
        return;
    }
    let body = Bytes::copy_from_slice(body);
    let Some(draft) = fuzzing::draft(&body, PAYLOAD_BYTES, RETENTION) else { return };
    let payload = draft.payload.as_bytes();
    assert!(payload.len() <= PAYLOAD_BYTES);
    assert!(body.as_ptr_range().contains(&payload.as_ptr()), "the payload is the request's own bytes");
    serde_json::from_slice::<&RawValue>(payload).expect("the payload is one JSON value");
    check_name(draft.from.as_str(), 128);
    check_name(&draft.kind, 64);
    match &draft.to {
        Audience::Users(users) => {
            assert!((1..=1_000).contains(&users.len()));
            users.iter().for_each(|user| check_name(user.as_str(), 128));
            assert_eq!(users.iter().map(|user| user.as_str()).collect::<HashSet<_>>().len(), users.len(), "each once");
        }
        Audience::Group(group) => check_name(group.as_str(), 128),
    }
    match &draft.mode {
        Mode::OnlineOnly { ttl, collapse_key, .. } => {
            assert!(*ttl >= Duration::from_millis(1) && *ttl <= Duration::from_secs(60));
            collapse_key.iter().for_each(|key| check_name(key, 128));
        }
        Mode::Persisted { ttl, .. } => assert!(*ttl >= Duration::from_millis(1) && *ttl <= RETENTION),
    }
});
