//! `herenow ready`

use super::args::{self, SourceArgs};
use super::{client, print, printable};
use anyhow::bail;
use clap::Args;
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use std::time::Duration;

pub(super) const EXAMPLE: &str = "\
Examples:
  herenow ready
  herenow ready --url http://127.0.0.1:8080 && echo go

A container's health check needs no other program: HEALTHCHECK CMD [\"herenow\", \"ready\"]";

/// An answer that takes longer is no yes.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(super) struct ReadyArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Where herenow is [default: server.admin_listen, which never has TLS, or without it server.listen]
    #[arg(long, value_parser = args::http_url)]
    url: Option<Url>,
}

#[derive(Deserialize)]
struct Answer {
    away: Vec<String>,
}

pub(super) async fn run(args: &ReadyArgs) -> anyhow::Result<()> {
    let server = args.source.load()?.server;
    let base = match &args.url {
        Some(url) => url.clone(),
        None => args::local_url(server.admin_listen.unwrap_or(server.listen))?,
    };
    let request = client::http()?.get(client::endpoint(&base, &["readyz"])).timeout(TIMEOUT);
    let answer = client::send(request, &base).await?;
    if answer.status() != StatusCode::SERVICE_UNAVAILABLE {
        client::accepted(answer).await?;
        return print("ready");
    }
    let answer = answer.text().await?;
    let answer: Answer = client::parse(&answer)?;
    bail!("not ready: {}", printable(&answer.away.join(", ")))
}
