//! A cursor is text from outside. What is accepted must be written as it was read: clients compare cursors as text.
#![no_main]

use herenow::domain::message::Cursor;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Some(cursor) = Cursor::parse(text) {
        assert_eq!(cursor.to_string(), text);
    }
});
