//! The configuration as the program uses it: one struct per section, durations as [`Duration`], names checked.

use crate::domain::seat::NodeId;
use ipnet::IpNet;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

/// A secret text: `Debug` never shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself: for comparing and signing, never for a log.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// All that is configured (CONTRACT.md 11).
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the key of its name")]
pub struct Config {
    pub data_dir: PathBuf,
    pub server: Server,
    pub auth: Auth,
    pub redis: Redis,
    pub store: Store,
    pub cluster: Cluster,
    pub stream: Stream,
    pub limits: Limits,
    pub callbacks: Callbacks,
    pub log: Log,
    pub otel: Otel,
}

/// `server.*`
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the key of its name")]
pub struct Server {
    pub listen: SocketAddr,
    /// `None`: no admin listener.
    pub admin_listen: Option<SocketAddr>,
    pub workers: usize,
    pub tls: Tls,
    pub cors_origins: Vec<String>,
    pub drain: Duration,
}

impl Server {
    /// How what listens at this address is called.
    pub fn url(&self, address: SocketAddr) -> String {
        let scheme = if self.tls.cert.is_some() { "https" } else { "http" };
        format!("{scheme}://{address}")
    }
}

/// `server.tls.*`: both or neither.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the key of its name")]
pub struct Tls {
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// `auth.*`
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the key of its name")]
pub struct Auth {
    pub api_keys: Vec<Secret>,
    pub device_secrets: Vec<Secret>,
    pub device_public_keys: Vec<PathBuf>,
    pub jwks_url: Option<reqwest::Url>,
    pub audience: Option<String>,
    /// The credentials are those that herenow made for itself on the first start: none was configured.
    pub self_made: bool,
}

/// `redis.*`
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the key of its name")]
pub struct Redis {
    /// `None`: presence is kept in this process's memory.
    pub url: Option<Secret>,
    pub mode: RedisMode,
    /// `host:port`
    pub nodes: Vec<String>,
    pub sentinel_master: Option<String>,
    pub prefix: String,
}

/// `redis.mode`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "said by the names")]
pub enum RedisMode {
    Standalone,
    Cluster,
    Sentinel,
}

/// `store.*`
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the key of its name")]
pub struct Store {
    /// `None`: SQLite under `data_dir`.
    pub url: Option<Secret>,
    pub retention: Duration,
    pub inbox_max: u64,
}

/// `cluster.*`
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the key of its name")]
pub struct Cluster {
    pub node: NodeId,
    pub lease: Duration,
    pub confirm_timeout: Duration,
    pub single_node: bool,
}

/// `stream.*`
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the key of its name")]
pub struct Stream {
    pub heartbeat: Duration,
    pub queue_frames: usize,
    pub queue_bytes: usize,
    pub stall_timeout: Duration,
    pub dead_peer: Duration,
    pub devices_per_user: usize,
    pub max: usize,
    /// `None`: streams are not ended for their age.
    pub max_age: Option<Duration>,
}

/// `limits.*`
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each field is the key of its name")]
pub struct Limits {
    pub payload_bytes: usize,
    pub answer_wait: Duration,
    pub seat_patience: Duration,
    /// `None`: no limit.
    pub sends_per_s: Option<NonZeroU32>,
    /// `None`: no limit.
    pub sends_per_s_per_from: Option<NonZeroU32>,
    pub group_members: usize,
    pub idempotency_window: Duration,
}

/// `callbacks.*`
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the key of its name")]
pub struct Callbacks {
    pub storage: Outlet,
    pub storage_batch_max: usize,
    pub push: Outlet,
    pub push_grace: Duration,
    pub presence: Outlet,
    pub presence_debounce: Duration,
    pub before_send: Outlet,
    pub before_send_on_failure: OnFailure,
    pub deny_networks: Vec<IpNet>,
    pub public_only: bool,
}

/// `callbacks.before_send.on_failure`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "said by the names")]
pub enum OnFailure {
    Allow,
    Reject,
}

/// `callbacks.storage.*`, `callbacks.push.*`, `callbacks.before_send.*`: one endpoint of the operator.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the key of its name")]
pub struct Outlet {
    /// `None`: no such callbacks.
    pub url: Option<reqwest::Url>,
    pub secrets: Vec<Secret>,
    pub timeout: Duration,
    pub concurrency: usize,
}

/// `log.*`
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is the key of its name")]
pub struct Log {
    pub level: String,
    pub format: LogFormat,
}

/// `log.format`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "said by the names")]
pub enum LogFormat {
    Text,
    Json,
}

/// `otel.*`
#[derive(Clone, Debug)]
pub struct Otel {
    /// `None`: nothing is traced.
    pub endpoint: Option<reqwest::Url>,
    /// From 0 to 1.
    pub sample_ratio: f64,
}
