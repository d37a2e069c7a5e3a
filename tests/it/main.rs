//! herenow as its callers meet it: the real program, over HTTP. A file per chapter of the contract.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod backup;
mod bad_input;
mod batch;
mod before_send;
mod callbacks;
mod cli_live;
mod cluster;
mod console;
mod cors;
mod crash;
mod credentials;
mod disk;
mod doctor;
mod errors;
mod groups;
mod harness;
mod harness_holds;
mod http2;
mod idempotency;
mod invariants;
mod keys;
mod online_only;
mod ops;
mod persisted;
mod postgres;
mod presence;
mod presence_news;
mod rates;
mod recall;
mod reload;
mod roundabout;
#[path = "../servers/mod.rs"]
#[expect(dead_code, reason = "the library's tests and those of `tests/it` need a part each")]
mod servers;
mod servers_hold;
mod soak;
mod stream;
mod support;
mod tls;
mod traces;
mod typing;
