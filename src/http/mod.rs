//! Floor 4: the doors. Wire types, credentials and status codes live here and nowhere deeper.

mod answer;
mod auth;
mod body;
mod callbacks;
mod connection;
mod devices;
mod examples;
mod front;
mod messages;
mod openapi;
mod ops;
mod parked;
mod presence;
mod problem;
mod routes;
mod stream;
mod tokens;

pub use auth::Keys;
pub use connection::{listener, note_connection};
pub use front::Front;
pub use openapi::openapi_json;
pub use ops::Admin;
pub use routes::{Doors, admin_routes, routes};
