//! herenow as its callers meet it: the real program, over HTTP. A file per chapter of the contract.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod bad_input;
mod cli_live;
mod cors;
mod credentials;
mod errors;
mod harness;
mod harness_holds;
mod idempotency;
mod invariants;
mod online_only;
mod ops;
mod presence;
mod roundabout;
mod stream;
mod typing;
