//! herenow as its callers meet it: the real program, over HTTP. A file per chapter of the contract.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod bad_input;
mod cli_live;
mod cors;
mod credentials;
mod errors;
#[expect(dead_code, unused_imports, reason = "chapters that use the rest follow")]
mod harness;
mod harness_holds;
mod idempotency;
mod online_only;
mod ops;
mod presence;
mod stream;
mod typing;

mod callbacks;
mod crash;
mod disk;
mod invariants_durable;
mod persisted;
mod support;
