//! The table of keys, in the order of the contract.

use super::reload::Takes::{self, Reload};
use super::sections::Config;
use super::slot::Slot::{
    self, Address, AddressOrOff, AnyUrlOrNone, Count, Count64, Format, Level, Millis, Mode, Networks, Node, Nodes,
    OnFailure, Origins, Path, PathOrNone, Paths, Prefix, RateOrOff, Ratio, Seconds, SecondsOrOff, Secrets, Switch,
    TextOrNone, UrlOrNone,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// One key.
pub struct Key {
    /// Its name, as in TOML.
    pub name: &'static str,
    /// What it is for.
    pub help: &'static str,
    /// What the default is, where it isn't the same for everyone.
    pub default_note: Option<&'static str>,
    pub(super) slot: Slot,
    pub(super) takes: Takes,
}

impl Key {
    const fn new(name: &'static str, slot: Slot, help: &'static str) -> Self {
        Self { name, help, default_note: None, slot, takes: Takes::Restart }
    }

    const fn by_default(mut self, note: &'static str) -> Self {
        self.default_note = Some(note);
        self
    }

    const fn takes(mut self, takes: Takes) -> Self {
        self.takes = takes;
        self
    }

    /// The variable of the environment that gives this key.
    pub fn env_name(&self) -> String {
        env_name(self.name)
    }

    /// The value in force, as TOML; secrets masked.
    pub fn shown(&self, config: &Config) -> String {
        // A field is found in a configuration that may be changed; this one is thrown away.
        self.slot.shown(&mut config.clone())
    }
}

/// `HERENOW_` begins the name of every variable that is ours.
pub(super) const ENV_PREFIX: &str = "HERENOW_";

pub(super) fn env_name(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.replace('.', "__").to_uppercase())
}

pub(super) fn position(name: &str) -> Option<usize> {
    KEYS.iter().position(|key| key.name == name)
}

const MADE: &str = "made on the first start";

/// Every key of this version.
pub static KEYS: &[Key] = &[
    Key::new(
        "data_dir",
        Path(|c| &mut c.data_dir),
        "Where the store and the self-made credentials are kept. One process at a time may use it.",
    ),
    Key::new("server.listen", Address(|c| &mut c.server.listen), "Where clients, backends and devices connect."),
    Key::new(
        "server.admin_listen",
        AddressOrOff(|c| &mut c.server.admin_listen),
        "Where `/metrics` is. It has no credentials: keep it to yourself.",
    ),
    Key::new("server.workers", Count(1..=1_024, |c| &mut c.server.workers), "Threads that serve HTTP.")
        .by_default("one per core"),
    Key::new(
        "server.tls.cert",
        PathOrNone(|c| &mut c.server.tls.cert),
        "A PEM file with the certificate and those between it and its root. If given, the API speaks TLS only. Read anew when it changes.",
    ),
    Key::new(
        "server.tls.key",
        PathOrNone(|c| &mut c.server.tls.key),
        "The PEM file of the certificate's private key. Read anew when it changes.",
    ),
    Key::new(
        "server.cors_origins",
        Origins(|c| &mut c.server.cors_origins),
        "Web pages of these origins may call the API from a browser.",
    ),
    Key::new(
        "server.drain_s",
        Seconds(0..=3_600, |c| &mut c.server.drain),
        "Over how long streams are told to go elsewhere when the process is to end.",
    ),
    Key::new(
        "auth.api_keys",
        Secrets(header_safe, |c| &mut c.auth.api_keys),
        "What backends show. Several are valid at once, so that they can be rotated.",
    ).takes(Reload)
    .by_default(MADE),
    Key::new(
        "auth.device_secrets",
        Secrets(not_empty, |c| &mut c.auth.device_secrets),
        "HS256 secrets of device tokens. The first one signs, all are accepted. Give each 32 bytes or more. None is made where there are public keys.",
    ).takes(Reload)
    .by_default(MADE),
    Key::new(
        "auth.device_public_keys",
        Paths(|c| &mut c.auth.device_public_keys),
        "PEM files of public keys of device tokens: RSA (RS256), EC on P-256 (ES256) or Ed25519 (EdDSA).",
    ).takes(Reload),
    Key::new(
        "auth.jwks_url",
        UrlOrNone(|c| &mut c.auth.jwks_url),
        "A JWKS (RFC 7517) with public keys of device tokens, of the same kinds. Addresses that callbacks may not go to are refused here, too.",
    ).takes(Reload),
    Key::new("auth.audience", TextOrNone(|c| &mut c.auth.audience), "If given, a device token must name it in `aud`.").takes(Reload),
    Key::new(
        "redis.url",
        AnyUrlOrNone(&["redis", "rediss"], |c| &mut c.redis.url),
        "Presence and the way between nodes: `redis://user:password@host:6379/0`, or `rediss://` for TLS. None: this process's memory.",
    ),
    Key::new("redis.mode", Mode(|c| &mut c.redis.mode), "What the Redis is."),
    Key::new(
        "redis.nodes",
        Nodes(|c| &mut c.redis.nodes),
        "More addresses, beside the one of `redis.url`: of the Cluster's nodes, or of the Sentinels. TLS is for all of them; credentials and database of `redis.url` are for the servers, not for the Sentinels.",
    ),
    Key::new(
        "redis.sentinel_master",
        TextOrNone(|c| &mut c.redis.sentinel_master),
        "The name by which the Sentinels know the master.",
    ),
    Key::new(
        "redis.prefix",
        Prefix(|c| &mut c.redis.prefix),
        "Begins every key and channel in Redis, so that several installations can share one.",
    ),
    Key::new(
        "store.url",
        AnyUrlOrNone(&["postgres", "postgresql"], |c| &mut c.store.url),
        "The durable plane: `postgres://user:password@host:5432/database?sslmode=require`. None: SQLite under `data_dir`.",
    ),
    Key::new(
        "store.retention_s",
        Seconds(1..=315_360_000, |c| &mut c.store.retention),
        "How long a persisted message is kept, if it doesn't say less itself.",
    ),
    Key::new(
        "store.inbox_max",
        Count64(1..=10_000_000, |c| &mut c.store.inbox_max),
        "How many of a user's newest messages are kept.",
    ),
    Key::new("cluster.node", Node(|c| &mut c.cluster.node), "This process's name, as presence shows it.")
        .by_default("random at each start"),
    Key::new(
        "cluster.lease_s",
        Seconds(3..=300, |c| &mut c.cluster.lease),
        "A node that is not heard of for this long is dead: its devices are offline then.",
    ),
    Key::new(
        "cluster.confirm_timeout_ms",
        Millis(1..=60_000, |c| &mut c.cluster.confirm_timeout),
        "How long another node may take to say what became of an online-only message.",
    ),
    Key::new(
        "cluster.single_node",
        Switch(|c| &mut c.cluster.single_node),
        "Allows Redis together with SQLite: this is the only node, and no other will ever share that Redis.",
    ),
    Key::new(
        "stream.heartbeat_s",
        Seconds(1..=300, |c| &mut c.stream.heartbeat),
        "How often an idle stream gets a comment line.",
    ),
    Key::new(
        "stream.queue_frames",
        Count(1..=65_536, |c| &mut c.stream.queue_frames),
        "How many events may wait for one slow stream.",
    ),
    Key::new(
        "stream.queue_bytes",
        Count(1_024..=1_073_741_824, |c| &mut c.stream.queue_bytes),
        "How many bytes may wait for one slow stream: at least `limits.payload_bytes` + 4096.",
    ),
    Key::new(
        "stream.stall_timeout_s",
        Seconds(1..=3_600, |c| &mut c.stream.stall_timeout),
        "A stream that takes nothing for this long is closed.",
    ),
    Key::new(
        "stream.dead_peer_s",
        Seconds(1..=300, |c| &mut c.stream.dead_peer),
        "A peer that leaves data unacknowledged for this long is gone.",
    ),
    Key::new(
        "stream.devices_per_user",
        Count(1..=1_000, |c| &mut c.stream.devices_per_user),
        "How many devices of one user may be online at once.",
    ),
    Key::new(
        "stream.max",
        Count(1..=10_000_000, |c| &mut c.stream.max),
        "How many streams this process holds at most.",
    ),
    Key::new(
        "stream.max_age_s",
        SecondsOrOff(0..=604_800, |c| &mut c.stream.max_age),
        "A stream is asked to come again when it is about this old, so that load spreads onto new nodes.",
    ),
    Key::new(
        "limits.payload_bytes",
        Count(1..=16_777_216, |c| &mut c.limits.payload_bytes),
        "How large a message's payload may be.",
    ).takes(Reload),
    Key::new(
        "limits.answer_wait_ms",
        Millis(1..=60_000, |c| &mut c.limits.answer_wait),
        "How long the answer to an online-only send waits for outcomes.",
    ).takes(Reload),
    Key::new(
        "limits.seat_patience_ms",
        Millis(1..=60_000, |c| &mut c.limits.seat_patience),
        "How long an online-only message waits in a slow device's queue before another device is tried.",
    ).takes(Reload),
    Key::new(
        "limits.sends_per_s",
        RateOrOff(|c| &mut c.limits.sends_per_s),
        "How many messages per second one API key may send through this node, after as many at once.",
    ).takes(Reload),
    Key::new(
        "limits.sends_per_s_per_from",
        RateOrOff(|c| &mut c.limits.sends_per_s_per_from),
        "The same for each sender that `from` names.",
    ).takes(Reload),
    Key::new(
        "limits.group_members",
        Count(1..=1_000_000, |c| &mut c.limits.group_members),
        "How many members a group may have.",
    ).takes(Reload),
    Key::new(
        "limits.idempotency_window_s",
        Seconds(1..=604_800, |c| &mut c.limits.idempotency_window),
        "How long an `Idempotency-Key` of a persisted send is remembered.",
    ).takes(Reload),
    Key::new("callbacks.storage.url", UrlOrNone(|c| &mut c.callbacks.storage.url), "Gets every persisted message.").takes(Reload),
    Key::new("callbacks.storage.secrets", Secrets(webhook_secret, |c| &mut c.callbacks.storage.secrets), SIGNS).takes(Reload)
        .by_default(MADE),
    Key::new("callbacks.storage.timeout_ms", Millis(1..=120_000, |c| &mut c.callbacks.storage.timeout), TIMEOUT).takes(Reload),
    Key::new("callbacks.storage.concurrency", Count(1..=1_024, |c| &mut c.callbacks.storage.concurrency), AT_ONCE).takes(Reload),
    Key::new(
        "callbacks.storage.batch_max",
        Count(1..=500, |c| &mut c.callbacks.storage_batch_max),
        "How many messages one storage callback may carry. More than 1: they come as `message.stored.batch`.",
    ).takes(Reload),
    Key::new(
        "callbacks.push.url",
        UrlOrNone(|c| &mut c.callbacks.push.url),
        "Gets, per recipient, every persisted message that no device took.",
    ).takes(Reload),
    Key::new("callbacks.push.secrets", Secrets(webhook_secret, |c| &mut c.callbacks.push.secrets), SIGNS).takes(Reload)
        .by_default(MADE),
    Key::new("callbacks.push.timeout_ms", Millis(1..=120_000, |c| &mut c.callbacks.push.timeout), TIMEOUT).takes(Reload),
    Key::new("callbacks.push.concurrency", Count(1..=1_024, |c| &mut c.callbacks.push.concurrency), AT_ONCE).takes(Reload),
    Key::new(
        "callbacks.push.grace_ms",
        Millis(0..=3_600_000, |c| &mut c.callbacks.push_grace),
        "How long a recipient's online devices have to take a message before it is pushed.",
    ).takes(Reload),
    Key::new(
        "callbacks.presence.url",
        UrlOrNone(|c| &mut c.callbacks.presence.url),
        "Is told when a user's first device comes and when the last one has been gone for a while. Best effort: the highest `version` wins.",
    ).takes(Reload),
    Key::new("callbacks.presence.secrets", Secrets(webhook_secret, |c| &mut c.callbacks.presence.secrets), SIGNS).takes(Reload)
        .by_default(MADE),
    Key::new("callbacks.presence.timeout_ms", Millis(1..=120_000, |c| &mut c.callbacks.presence.timeout), TIMEOUT).takes(Reload),
    Key::new("callbacks.presence.concurrency", Count(1..=1_024, |c| &mut c.callbacks.presence.concurrency), AT_ONCE).takes(Reload),
    Key::new(
        "callbacks.presence.debounce_ms",
        Millis(0..=3_600_000, |c| &mut c.callbacks.presence_debounce),
        "For how long a user's last device must have been gone.",
    ).takes(Reload),
    Key::new(
        "callbacks.before_send.url",
        UrlOrNone(|c| &mut c.callbacks.before_send.url),
        "Is asked before every send, online-only ones too, whether it may go: allow, reject or replace the payload.",
    ).takes(Reload),
    Key::new("callbacks.before_send.secrets", Secrets(webhook_secret, |c| &mut c.callbacks.before_send.secrets), SIGNS).takes(Reload)
        .by_default(MADE),
    Key::new(
        "callbacks.before_send.timeout_ms",
        Millis(1..=30_000, |c| &mut c.callbacks.before_send.timeout),
        "A send waits so long for the answer, and no longer.",
    ).takes(Reload),
    Key::new(
        "callbacks.before_send.concurrency",
        Count(1..=1_024, |c| &mut c.callbacks.before_send.concurrency),
        "How many of these questions run at once. More wait, within `timeout_ms`.",
    ).takes(Reload),
    Key::new(
        "callbacks.before_send.on_failure",
        OnFailure(|c| &mut c.callbacks.before_send_on_failure),
        "What becomes of a send when the question has no answer.",
    ).takes(Reload),
    Key::new(
        "callbacks.deny_networks",
        Networks(|c| &mut c.callbacks.deny_networks),
        "No callback goes to an address in these.",
    ).takes(Reload),
    Key::new(
        "callbacks.public_only",
        Switch(|c| &mut c.callbacks.public_only),
        "Callbacks go to globally routable addresses only.",
    ).takes(Reload),
    Key::new("log.level", Level(|c| &mut c.log.level), "How much is logged.").takes(Reload),
    Key::new("log.format", Format(|c| &mut c.log.format), "How it is written, to standard error."),
    Key::new(
        "otel.endpoint",
        UrlOrNone(|c| &mut c.otel.endpoint),
        "An OpenTelemetry collector (OTLP over HTTP), such as `http://localhost:4318`, that gets traces of sends and callbacks.",
    ),
    Key::new(
        "otel.sample_ratio",
        Ratio(|c| &mut c.otel.sample_ratio),
        "Which part of sends is traced, where the sender's `traceparent` doesn't say.",
    ),
];

const SIGNS: &str = "`whsec_` secrets. A callback is signed with each of them, so that they can be rotated.";
const TIMEOUT: &str = "Within this time the whole answer must be there.";
const AT_ONCE: &str = "How many of these callbacks run at once.";

fn not_empty(secret: &str) -> Result<(), &'static str> {
    if secret.is_empty() { Err("is empty") } else { Ok(()) }
}

/// What can stand in an `Authorization` header.
fn header_safe(secret: &str) -> Result<(), &'static str> {
    not_empty(secret)?;
    if secret.bytes().all(|b| b.is_ascii_graphic()) { Ok(()) } else { Err("has spaces or characters beyond ASCII") }
}

/// As the Standard Webhooks specification has them, so that its libraries take them.
fn webhook_secret(secret: &str) -> Result<(), &'static str> {
    let encoded = secret.strip_prefix("whsec_").ok_or("doesn't begin with `whsec_`")?;
    let bytes = STANDARD.decode(encoded).map_err(|_| "is no base64 after `whsec_`")?;
    if bytes.len() < 24 { Err("has fewer than 24 bytes after `whsec_`") } else { Ok(()) }
}
