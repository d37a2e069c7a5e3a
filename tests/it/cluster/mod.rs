//! Several nodes on Redis and PostgreSQL: one relay to whoever calls, and one that heals from whatever its nodes and servers do
//! (CONTRACT.md 5, 9 and 10).

mod commands;
mod delivery;
mod nodes;
mod postgres;
mod redis;
mod secure;
mod witness;

use std::time::Duration;

/// What the harness sets: `cluster.lease_s`.
const LEASE: Duration = Duration::from_secs(3);
