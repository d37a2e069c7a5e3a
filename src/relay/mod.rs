//! Floor 3: the relay itself. It speaks to the planes through `ports` and knows no HTTP server.

pub mod before_send;
pub mod callbacks;
mod copies;
pub mod devices;
pub mod finish;
pub mod frame;
mod groups;
pub mod handle;
pub mod hub;
pub mod metrics;
mod notes;
pub mod online_only;
mod persisted;
pub mod presence_news;
pub mod send;
pub mod stream;
mod upkeep;

#[cfg(test)]
mod simulation;
