//! Floor 3: the relay itself. It speaks to the planes through `ports` and knows no HTTP server.

pub mod callbacks;
pub mod tasks;
