//! Floor 2: the two planes, each behind a port of floor 1. Chosen and plugged in by the roof; nothing above knows which.

mod durable;
pub mod memory;
pub mod postgres;
pub mod redis;
pub mod sqlite;

pub use durable::doctor::Expected;

#[cfg(test)]
mod conformance;
