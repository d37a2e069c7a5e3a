//! Servers for tests: Redis (alone, with Sentinels, as a Cluster) and PostgreSQL, each a real process on a free port, and a TCP proxy
//! that breaks as it is told. The library's own tests and those of `tests/it` share them.
//!
//! A server ends with the test process, however that ends. A program that is missing fails the test: it is never skipped.

pub mod authority;
pub mod pgbouncer;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod redis;
pub mod redis_cluster;
pub mod sentinels;
