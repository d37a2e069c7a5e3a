//! Floor 4: the doors. Wire types, credentials and status codes live here and nowhere deeper.

mod answer;
mod auth;
mod batch;
mod body;
mod callbacks;
mod connection;
mod console;
mod devices;
mod examples;
mod front;
mod groups;
mod h2;
mod messages;
mod openapi;
mod ops;
mod pages;
mod parked;
mod presence;
mod problem;
mod rates;
mod routes;
mod schema;
mod stream;
mod tls;
mod tokens;

pub use auth::{Accepted, Keys, KeysError};
pub use connection::listener;
pub use front::Front;
pub use openapi::openapi_json;
pub use ops::Admin;
pub use rates::RateLimits;
pub use routes::{Doors, admin_routes};
pub use tls::{Certificate, TlsError};

/// What the fuzz targets in `fuzz/` need of the doors, whose parsers are nobody else's business.
#[doc(hidden)]
pub mod fuzzing {
    use crate::domain::message::Draft;
    use bytes::Bytes;
    use std::time::Duration;

    /// What `POST /v1/messages` makes of a body that is UTF-8, if it takes it.
    pub fn draft(json: &Bytes, payload_bytes: usize, retention: Duration) -> Option<Draft> {
        super::messages::draft(json, payload_bytes, retention).ok()
    }
}
