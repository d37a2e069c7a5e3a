//! `herenow token`: a device token, made here with the device secret.

use super::args::{self, SourceArgs};
use crate::config::{Auth, Config};
use crate::domain::seat::{DeviceId, UserId};
use crate::token::Tokens;
use anyhow::Context;
use clap::Args;
use std::time::Duration;

pub(super) const EXAMPLE: &str = "\
Prints nothing but the token, so that a script can take it:
  TOKEN=$(herenow token bob --device phone --ttl 3600)
  curl -N -H \"Authorization: Bearer $TOKEN\" http://127.0.0.1:8080/v1/stream";

#[derive(Args)]
pub(super) struct TokenArgs {
    /// Whose device it is
    #[arg(value_parser = args::user)]
    user: UserId,
    /// The device; without it, the device names itself when it connects
    #[arg(long, value_parser = args::device)]
    device: Option<DeviceId>,
    /// For how many seconds the token is good
    #[arg(long, value_name = "SECONDS", default_value_t = 3_600, value_parser = clap::value_parser!(u32).range(1..))]
    ttl: u32,
    #[command(flatten)]
    source: SourceArgs,
}

pub(super) fn run(args: &TokenArgs) -> anyhow::Result<()> {
    let config = args.source.load()?;
    let ttl = Duration::from_secs(args.ttl.into());
    super::print(&mint(&config, &args.user, args.device.as_ref(), ttl)?)
}

/// A token that the herenow of this configuration accepts.
pub(super) fn mint(config: &Config, user: &UserId, device: Option<&DeviceId>, ttl: Duration) -> anyhow::Result<String> {
    // Public keys can't sign, and their files may be readable by the server alone.
    let (device_secrets, device_public_keys) = (vec![args::device_secret(config)?], vec![]);
    let auth = Auth { device_secrets, device_public_keys, ..config.auth.clone() };
    let (token, _) = Tokens::new(&auth)?.mint(user, device, ttl).context("the device secret can't sign")?;
    Ok(token)
}
