//! What every implementation of a port must do, in one place: each backend's tests run these bodies.

pub mod directory;
