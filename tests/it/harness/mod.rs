//! What every test stands on: a node that is the real program, devices that hold streams, and waits that end by conditions.

pub mod cluster;
pub mod collector;
pub mod device;
pub mod http;
pub mod jwks;
pub mod node;
pub mod pair;
pub mod planes;
pub mod receiver;
pub mod wire;

pub use cluster::Cluster;
pub use device::{Device, Event, StreamRequest};
pub use http::{Answer, Request};
pub use jwks::JwksServer;
pub use node::{Node, Setup};
pub use pair::{PUBLIC, Pair};
pub(crate) use planes::only_embedded;
pub use receiver::Receiver;
pub use serde_json::{Value, json};
pub use wire::{Secure, Wire};

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Within this time everything that is to happen has happened, on a machine that is busy with much else, too.
pub const SOON: Duration = Duration::from_secs(30);

/// Waits until `look` says `Ok`. After [`SOON`] it fails with what `look` said last.
#[track_caller]
pub fn eventually<T>(what: &str, look: impl FnMut() -> Result<T, String>) -> T {
    eventually_within(SOON, what, look)
}

/// The same for what takes its time.
#[track_caller]
pub fn eventually_within<T>(time: Duration, what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + time;
    loop {
        match look() {
            Ok(found) => return found,
            Err(state) if Instant::now() > deadline => panic!("{what}: not within {time:?}; last seen: {state}"),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Waits until `look` gives what `is_right` accepts, and shows the last value if that never comes.
#[track_caller]
pub fn eventually_is<T: Debug>(what: &str, mut look: impl FnMut() -> T, is_right: impl Fn(&T) -> bool) -> T {
    eventually(what, || {
        let found = look();
        if is_right(&found) { Ok(found) } else { Err(format!("{found:?}")) }
    })
}
