//! `herenow token`: a device token, made here with the device secret.

use super::args::{self, SourceArgs};
use crate::config::Config;
use crate::domain::seat::{DeviceId, UserId};
use crate::domain::time::Timestamp;
use clap::Args;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
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

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<&'a DeviceId>,
    iat: i64,
    exp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
}

/// A token that the herenow of this configuration accepts.
pub(super) fn mint(config: &Config, sub: &UserId, device: Option<&DeviceId>, ttl: Duration) -> anyhow::Result<String> {
    let secret = args::device_secret(config)?;
    let now = Timestamp::now();
    let aud = config.auth.audience.as_deref();
    let claims = Claims { sub, device, iat: now.as_s(), exp: now.plus(ttl).as_s(), aud };
    let key = EncodingKey::from_secret(secret.expose().as_bytes());
    Ok(jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key)?)
}
