//! `herenow presence`

use super::args::{self, BackendArgs};
use super::{client, print, printable};
use crate::domain::seat::UserId;
use clap::Args;
use serde::Deserialize;

pub(super) const EXAMPLE: &str = "Example:\n  herenow presence bob carol";

#[derive(Args)]
pub(super) struct PresenceArgs {
    /// Of whom
    #[arg(value_name = "USER", required = true, value_parser = args::user)]
    users: Vec<UserId>,
    /// Print the answer as it came
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: BackendArgs,
}

#[derive(Deserialize)]
struct Answer {
    users: Vec<User>,
}

#[derive(Deserialize)]
struct User {
    user: String,
    devices: Vec<Device>,
}

#[derive(Deserialize)]
struct Device {
    #[serde(rename = "device")]
    name: String,
    state: String,
    last_active_at: String,
}

pub(super) async fn run(args: &PresenceArgs) -> anyhow::Result<()> {
    let body = serde_json::json!({ "users": args.users }).to_string();
    let answer = client::post(&args.backend, &["v1", "presence", "query"], body, |request| request).await?;
    if args.json {
        return print(&answer);
    }
    let answer: Answer = client::parse(&answer)?;
    let width = answer.users.iter().map(|user| user.user.chars().count()).max().unwrap_or_default();
    answer.users.iter().try_for_each(|user| print(&printable(&line(user, width))))
}

fn line(user: &User, width: usize) -> String {
    let devices: Vec<_> = user.devices.iter().map(on_device).collect();
    let shown = if devices.is_empty() { "offline".to_owned() } else { format!("online on {}", devices.join(", ")) };
    format!("{:width$}  {shown}", user.user)
}

fn on_device(device: &Device) -> String {
    format!("{} ({}, last active {})", device.name, device.state, device.last_active_at)
}
