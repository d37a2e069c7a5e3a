//! herenow as its callers meet it: the real program, over HTTP. A file per chapter of the contract.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod bad_input;
mod callbacks;
mod cli_live;
mod cors;
mod crash;
mod credentials;
mod disk;
mod errors;
mod harness;
mod harness_holds;
mod http2;
mod idempotency;
mod invariants;
mod invariants_durable;
mod keys;
mod online_only;
mod ops;
mod persisted;
mod presence;
mod reload;
mod roundabout;
mod stream;
mod support;
mod tls;
mod typing;
