//! Arguments that several commands share, and what the configuration makes of them.

use crate::config::{self, Config, Flag, Secret, Sources};
use crate::credentials::Credentials;
use crate::domain::seat::{DeviceId, NameError, UserId};
use anyhow::Context;
use clap::Args;
use reqwest::Url;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// Where the configuration comes from, for every command.
#[derive(Args, Clone, Debug)]
pub(super) struct SourceArgs {
    /// Configuration file [default: ./herenow.toml if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the store and the self-made credentials are kept
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Any key of the configuration, such as server.drain_s=5; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, String)>,
}

impl SourceArgs {
    /// A flag with a name of its own is stronger than `--set`.
    fn sources(&self, named: &[(&str, &str, &Option<String>)]) -> Sources {
        let mut flags: Vec<_> = self.set.iter().map(|(key, value)| Flag::set(key, value)).collect();
        let data_dir = ("--data-dir", "data_dir", &self.data_dir);
        for (flag, key, value) in [data_dir].iter().chain(named) {
            flags.extend(value.as_ref().map(|value| Flag::named(flag, key, value)));
        }
        Sources::of_this_process(self.config.as_deref(), flags)
    }

    /// The configuration in force.
    pub(super) fn load(&self) -> Result<Config, config::ConfigErrors> {
        config::load(&self.sources(&[])).map(|loaded| loaded.config)
    }
}

/// What `herenow serve` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Where clients, backends and devices connect
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// Where /metrics is; empty: nowhere
    #[arg(long, value_name = "IP:PORT")]
    admin_listen: Option<String>,
    /// off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl ServeArgs {
    pub(super) fn sources(&self) -> Sources {
        self.source.sources(&[
            ("--listen", "server.listen", &self.listen),
            ("--admin-listen", "server.admin_listen", &self.admin_listen),
            ("--log-level", "log.level", &self.log_level),
            ("--log-format", "log.format", &self.log_format),
        ])
    }
}

/// Which herenow a client command speaks to.
#[derive(Args, Clone, Debug)]
pub(super) struct ServerArgs {
    #[command(flatten)]
    pub(super) source: SourceArgs,
    /// Where herenow is [default: the configured server.listen]
    #[arg(long, value_parser = http_url)]
    url: Option<Url>,
}

impl ServerArgs {
    pub(super) fn url(&self, config: &Config) -> anyhow::Result<Url> {
        match &self.url {
            Some(url) => Ok(url.clone()),
            None => Ok(Url::parse(&config.server.url(reachable(config.server.listen)))?),
        }
    }
}

/// What a backend shows.
#[derive(Args, Clone, Debug)]
pub(super) struct BackendArgs {
    #[command(flatten)]
    pub(super) server: ServerArgs,
    /// API key [default: the configured one, else that of the data directory]
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
}

impl BackendArgs {
    pub(super) fn api_key(&self, config: &Config) -> anyhow::Result<Secret> {
        match &self.api_key {
            Some(key) => Ok(Secret::new(key)),
            None => first_or_made(config, |config| &config.auth.api_keys).context("no API key (--api-key)"),
        }
    }
}

/// The secret that device tokens are signed with.
pub(super) fn device_secret(config: &Config) -> anyhow::Result<Secret> {
    first_or_made(config, |config| &config.auth.device_secrets).context("no device secret")
}

/// The data directory is looked into only for what isn't configured: the caller may not be allowed to read it.
fn first_or_made(config: &Config, secrets: fn(&Config) -> &[Secret]) -> anyhow::Result<Secret> {
    if let Some(configured) = secrets(config).first() {
        return Ok(configured.clone());
    }
    let mut filled = config.clone();
    if let Some(made) = Credentials::read(&config.data_dir)? {
        made.fill(&mut filled);
    }
    let at = config.data_dir.display();
    secrets(&filled).first().cloned().with_context(|| {
        format!("none is configured, and no herenow has been started yet with {at}: run this where `herenow serve` runs, or say --data-dir or --config")
    })
}

/// What listens there on this machine.
pub(super) fn local_url(listen: SocketAddr) -> anyhow::Result<Url> {
    Ok(Url::parse(&format!("http://{}", reachable(listen)))?)
}

/// Nobody can connect to the address that stands for all.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        given if !given.is_unspecified() => given,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, listen.port())
}

pub(super) fn user(text: &str) -> Result<UserId, NameError> {
    UserId::parse(text)
}

pub(super) fn device(text: &str) -> Result<DeviceId, NameError> {
    DeviceId::parse(text)
}

fn key_and_value(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("has no `=`")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

pub(super) fn http_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|e| e.to_string())?;
    if matches!(url.scheme(), "http" | "https") { Ok(url) } else { Err("must begin with http:// or https://".into()) }
}
