//! What is in force where nothing is configured. The table of keys reads the defaults from here, so they stand in one place.

use super::sections::{
    Auth, Callbacks, Cluster, Config, Limits, Log, LogFormat, OnFailure, Otel, Outlet, Redis, RedisMode, Secret,
    Server, Store, Stream, Tls,
};
use crate::domain::seat::NodeId;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3_600);

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "./herenow-data".into(),
            server: server(),
            auth: auth(),
            redis: Redis {
                url: None,
                mode: RedisMode::Standalone,
                nodes: Vec::new(),
                sentinel_master: None,
                prefix: "herenow".to_owned(),
            },
            store: Store { url: None, retention: 7 * 24 * HOUR, inbox_max: 10_000 },
            cluster: Cluster {
                node: random_node(),
                lease: Duration::from_secs(10),
                confirm_timeout: Duration::from_millis(900),
                single_node: false,
            },
            stream: stream(),
            limits: limits(),
            callbacks: callbacks(),
            log: Log { level: "info".to_owned(), format: LogFormat::Text },
            otel: Otel { endpoint: None, sample_ratio: 1.0 },
        }
    }
}

fn server() -> Server {
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    Server {
        listen: local(8080),
        admin_listen: Some(local(9090)),
        workers: std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
        tls: Tls { cert: None, key: None },
        cors_origins: Vec::new(),
        drain: Duration::from_secs(10),
    }
}

fn auth() -> Auth {
    Auth {
        api_keys: Vec::new(),
        device_secrets: Vec::new(),
        device_public_keys: Vec::new(),
        jwks_url: None,
        audience: None,
        self_made: false,
    }
}

fn stream() -> Stream {
    Stream {
        heartbeat: Duration::from_secs(10),
        queue_frames: 256,
        queue_bytes: 1 << 20,
        stall_timeout: Duration::from_secs(60),
        dead_peer: Duration::from_secs(10),
        devices_per_user: 20,
        max: 200_000,
        max_age: Some(HOUR),
    }
}

fn limits() -> Limits {
    Limits {
        payload_bytes: 64 << 10,
        answer_wait: Duration::from_secs(1),
        seat_patience: Duration::from_millis(250),
        sends_per_s: None,
        sends_per_s_per_from: None,
        group_members: 100_000,
        idempotency_window: 24 * HOUR,
    }
}

fn callbacks() -> Callbacks {
    let outlet = |timeout| Outlet { url: None, secrets: Vec::<Secret>::new(), timeout, concurrency: 16 };
    let patient = Duration::from_secs(15);
    Callbacks {
        storage: outlet(patient),
        storage_batch_max: 1,
        push: outlet(patient),
        push_grace: Duration::from_secs(5),
        presence: outlet(patient),
        presence_debounce: Duration::from_secs(3),
        // A sender waits for it.
        before_send: outlet(Duration::from_millis(500)),
        before_send_on_failure: OnFailure::Allow,
        // Where machines find their own cloud's credentials: never a callback's receiver.
        deny_networks: vec![
            IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
            IpNet::new_assert(IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
            IpNet::new_assert(IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)), 128),
        ],
        public_only: false,
    }
}

fn random_node() -> NodeId {
    NodeId::parse(&format!("{:016x}", rand::random::<u64>())).expect("sixteen digits are a name")
}
