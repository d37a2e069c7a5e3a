//! Floor 2: POSTs to the operator's endpoints (CONTRACT.md 8), signed, and GETs of the operator's documents: to checked addresses alone,
//! bounded in time and memory.

pub mod client;
pub mod fetch;
pub mod guard;
pub mod probe;
pub mod sign;

#[cfg(test)]
pub mod receiver;
