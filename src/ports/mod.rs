//! Floor 1: what the relay asks of its two planes, as promises that a backend keeps.
//!
//! The *ephemeral* plane ([`Ephemeral`]) knows who is online where and carries messages in flight; the *durable* plane ([`Store`])
//! keeps persisted messages and callbacks. Nothing of one is ever in the other.

mod durable;
mod ephemeral;

pub use durable::*;
pub use ephemeral::*;

use std::error::Error;

/// A cause from a driver, kept for the log only.
pub type Cause = Box<dyn Error + Send + Sync>;

/// SHA-256 of a request body.
pub type BodyHash = [u8; 32];
