//! What every implementation of a port must do: one body of tests, run by each backend's own tests.

pub mod directory;
pub mod groups;
pub mod keeping;
pub mod large;
pub mod outbox;
pub mod sends;
pub mod store;
