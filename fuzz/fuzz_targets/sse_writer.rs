//! A `message` event, read as a browser would: whatever the payload and the names are, it is one event, and the payload is what it was.
#![no_main]

use bytes::Bytes;
use herenow::domain::message::{Cursor, Message, RawJson};
use herenow::domain::seat::UserId;
use herenow::domain::time::Timestamp;
use herenow::relay::frame::{Encoded, message_frame};
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use uuid::Uuid;

/// The events of a stream (WHATWG HTML, 9.2.6), as id and data.
fn read(stream: &str) -> Vec<(Option<String>, String)> {
    let (mut events, mut id, mut data) = (vec![], None, vec![]);
    for line in stream.replace("\r\n", "\n").replace('\r', "\n").split('\n') {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" if line.is_empty() => {
                if !data.is_empty() {
                    events.push((id.take(), std::mem::take(&mut data).join("\n")));
                }
            }
            "id" => id = Some(value.to_owned()),
            "data" => data.push(value.to_owned()),
            _ => {}
        }
    }
    assert!(data.is_empty(), "the last event is complete");
    events
}

fuzz_target!(|given: (&str, &str, &str, &str, Option<u32>)| {
    let (from, user, kind, payload, cursor) = given;
    let (Ok(from), Ok(user)) = (UserId::parse(from), UserId::parse(user)) else { return };
    if kind.is_empty() || kind.chars().any(char::is_control) {
        return;
    }
    let Ok(payload) = serde_json::from_str::<&RawValue>(payload) else { return };
    let message = Message {
        id: Uuid::from_u128(7),
        from: from.clone(),
        group: None,
        kind: kind.into(),
        payload: RawJson::from_checked(Bytes::copy_from_slice(payload.get().as_bytes())),
        online_only: cursor.is_none(),
        sent_at: Timestamp::from_ms(1),
    };
    let cursor = cursor.map(|n| Cursor::new(n.into()));
    let frame = message_frame(&message, &user, cursor).to_bytes();
    assert_eq!(frame, Encoded::new(&message).for_recipient(&user, cursor).to_bytes());
    let events = read(std::str::from_utf8(&frame).expect("SSE is UTF-8"));
    let [(id, data)] = &events[..] else { panic!("{} events", events.len()) };
    assert_eq!(*id, cursor.map(|cursor| cursor.to_string()));
    // Line ends between tokens are all that may change.
    let same_lines = payload.get().replace("\r\n", "\n").replace('\r', "\n");
    assert!(data.contains(&format!("\"payload\":{same_lines},")), "{data}");
    let Ok(read) = serde_json::from_str::<Map<String, Value>>(data) else {
        // Only what is deeper or larger than this reader takes may fail here.
        assert!(serde_json::from_str::<Value>(payload.get()).is_err(), "{data}");
        return;
    };
    assert_eq!(read["from"], from.as_str());
    assert_eq!(read["to"]["users"][0], user.as_str());
    assert_eq!(read["type"], kind);
});
