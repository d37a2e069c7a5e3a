//! Rules between keys, and what is allowed but unwise.

use super::flaw::Flaw;
use super::keys::{KEYS, position};
use super::load::Loaded;
use super::sections::{Callbacks, Config, RedisMode};
use reqwest::Url;
use std::net::IpAddr;

/// What a payload's event may hold beside it: names, ids, times and the frame. Names of 128 characters take 512 bytes each at most.
const EVENT_BYTES: usize = 4_096;

pub(super) fn flaws(loaded: &Loaded) -> Vec<Flaw> {
    let config = &loaded.config;
    let mut flaws = Vec::new();
    if config.limits.payload_bytes + EVENT_BYTES > config.stream.queue_bytes {
        flaws.push(Flaw::of_the_whole(format!(
            "a message of {} and {EVENT_BYTES} bytes around it must fit into {}",
            as_given(loaded, "limits.payload_bytes"),
            as_given(loaded, "stream.queue_bytes")
        )));
    }
    if config.server.admin_listen == Some(config.server.listen) && config.server.listen.port() != 0 {
        flaws.push(Flaw::of_the_whole(format!(
            "{} and {} can't be the same",
            as_given(loaded, "server.listen"),
            as_given(loaded, "server.admin_listen")
        )));
    }
    if config.server.tls.cert.is_some() != config.server.tls.key.is_some() {
        flaws.push(Flaw::of_the_whole("`server.tls.cert` and `server.tls.key` go together"));
    }
    flaws.extend(planes(loaded).into_iter().map(Flaw::of_the_whole));
    flaws.extend(urls(config).filter_map(|(key, url)| denied_url(loaded, key, url?)));
    flaws
}

/// What the keys of the two planes must be to each other (CONTRACT.md 9).
fn planes(loaded: &Loaded) -> Vec<String> {
    let Config { redis, store, cluster, .. } = &loaded.config;
    let mut flaws = Vec::new();
    if redis.url.is_none() {
        return flaws;
    }
    if store.url.is_none() && !cluster.single_node {
        flaws.push(format!(
            "{} needs `store.url`: with SQLite each node would have inboxes of its own; `cluster.single_node = true` says that there is one node only",
            as_given(loaded, "redis.url")
        ));
    }
    if (redis.mode == RedisMode::Sentinel) != redis.sentinel_master.is_some() {
        flaws.push("`redis.mode = \"sentinel\"` and `redis.sentinel_master` go together".to_owned());
    }
    if redis.mode == RedisMode::Standalone && !redis.nodes.is_empty() {
        flaws.push("`redis.nodes` is for `redis.mode` `cluster` or `sentinel`".to_owned());
    }
    flaws
}

pub(super) fn warnings(config: &Config) -> Vec<String> {
    let short = config.auth.device_secrets.iter().filter(|secret| secret.expose().len() < 32).count();
    let guessable = format!(
        "auth.device_secrets: {short} of them shorter than 32 bytes; whoever has one token can try to guess such a secret offline"
    );
    let lonely =
        "store.url without redis.url: this must be the only node, for nothing would tell others of new messages";
    let is_lonely = config.store.url.is_some() && config.redis.url.is_none() && !config.cluster.single_node;
    let open = "auth.jwks_url without TLS: whoever stands between can put in keys of their own";
    let is_open = config.auth.jwks_url.as_ref().is_some_and(|url| url.scheme() == "http" && !is_loopback(url));
    let warnings =
        [(short > 0).then_some(guessable), is_lonely.then(|| lonely.to_owned()), is_open.then(|| open.to_owned())];
    warnings.into_iter().flatten().collect()
}

fn is_loopback(url: &Url) -> bool {
    url.host_str() == Some("localhost") || literal_address(url).is_some_and(|address| address.is_loopback())
}

/// Where this process goes by itself.
fn urls(config: &Config) -> impl Iterator<Item = (&'static str, Option<&Url>)> {
    [
        ("auth.jwks_url", config.auth.jwks_url.as_ref()),
        ("callbacks.storage.url", config.callbacks.storage.url.as_ref()),
        ("callbacks.push.url", config.callbacks.push.url.as_ref()),
        ("callbacks.presence.url", config.callbacks.presence.url.as_ref()),
        ("callbacks.before_send.url", config.callbacks.before_send.url.as_ref()),
    ]
    .into_iter()
}

/// A name is looked up when a callback is sent; an address can be refused at once, however it is spelled.
fn denied_url(loaded: &Loaded, key: &str, url: &Url) -> Option<Flaw> {
    let address = literal_address(url)?;
    let why = denied(&loaded.config.callbacks, address)?;
    let place = position(key).map(|i| loaded.places[i].clone());
    Some(Flaw { place, problem: format!("`{key}` leads to {address}, which {why}") })
}

fn denied(callbacks: &Callbacks, address: IpAddr) -> Option<String> {
    let network = callbacks.deny_networks.iter().find(|network| network.contains(&address))?;
    Some(format!("`callbacks.deny_networks` denies ({network})"))
}

/// The URL parser has read `0xa9fea9fe` and its like as the address that it is; `::ffff:…` is unwrapped here.
fn literal_address(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

fn as_given(loaded: &Loaded, key: &str) -> String {
    position(key)
        .map_or_else(String::new, |i| format!("`{key}` ({}, {})", KEYS[i].shown(&loaded.config), loaded.places[i]))
}
