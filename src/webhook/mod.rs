//! Floor 2: POSTs to the operator's endpoints (CONTRACT.md 8): signed, to checked addresses alone, bounded in time and memory.

pub mod client;
pub mod guard;
pub mod probe;
pub mod sign;

#[cfg(test)]
pub mod receiver;
