//! herenow: a relay for messages that matter only now.
//!
//! The floors, from below: [`domain`] (the contract's words as types), [`ports`] and [`config`] (what the relay asks of its planes, and
//! its keys), `backend` (the planes), [`relay`] (routing, receipts, streams, callbacks), `http` (the doors), [`app`] (the roof). A floor
//! uses lower ones only. `docs/architecture.md` follows a message through them.

pub mod app;
pub mod backend;
pub mod cli;
pub mod config;
pub mod credentials;
pub mod doctor;
pub mod domain;
pub mod http;
pub mod logging;
pub mod ports;
pub mod relay;
#[cfg(test)]
#[path = "../tests/servers/mod.rs"]
#[expect(dead_code, reason = "the library's tests and those of `tests/it` need a part each")]
mod servers;
pub mod tasks;
pub mod token;
pub mod traces;
pub mod webhook;
