//! Floor 1: every key of CONTRACT.md 11.

mod sections;

pub use sections::*;
