//! `herenow send`

use super::args::{self, BackendArgs};
use super::{client, print, printable};
use crate::domain::seat::UserId;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::io;

pub(super) const EXAMPLE: &str = "\
Examples:
  herenow send --from alice --to bob '{\"text\":\"hello\"}'
  herenow send --from alice --to bob,carol --online-only --type typing '{\"typing\":true}'
  echo '\"hello\"' | herenow send --from alice --to bob -

A persisted message (the default) waits for devices that are away.
With --online-only it reaches who is here now, or nobody, and the answer says who.";

#[derive(Args)]
pub(super) struct SendArgs {
    /// The sender
    #[arg(long, value_name = "USER", value_parser = args::user)]
    from: UserId,
    /// The recipients: with commas, or repeated
    #[arg(long, value_name = "USER", required = true, value_delimiter = ',', value_parser = args::user)]
    to: Vec<UserId>,
    /// Reach who is here now, or nobody
    #[arg(long)]
    online_only: bool,
    /// The application's own word for what this is
    #[arg(long = "type", value_name = "WORD", default_value = "message")]
    kind: String,
    /// Online-only: reach all devices of a recipient, not just one
    #[arg(long, requires = "online_only")]
    every_device: bool,
    /// How long it may wait (online-only), or is kept (persisted)
    #[arg(long, value_name = "MILLISECONDS")]
    ttl_ms: Option<u64>,
    /// Online-only: take the place of a message with the same key that still waits
    #[arg(long, value_name = "KEY", requires = "online_only")]
    collapse_key: Option<String>,
    /// Sent again with the same key, it is not sent twice
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Print the answer as it came
    #[arg(long)]
    json: bool,
    /// The content: JSON, or - to read it from standard input
    #[arg(allow_hyphen_values = true)]
    payload: String,
    #[command(flatten)]
    backend: BackendArgs,
}

#[derive(Serialize)]
struct Body<'a> {
    from: &'a UserId,
    to: To<'a>,
    #[serde(rename = "type")]
    kind: &'a str,
    payload: &'a RawValue,
    online_only: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    deliver_to: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    collapse_key: Option<&'a str>,
}

#[derive(Serialize)]
struct To<'a> {
    users: &'a [UserId],
}

pub(super) async fn run(args: &SendArgs) -> anyhow::Result<()> {
    let body = body(args, &payload(&args.payload)?)?;
    let answer = client::post(&args.backend, &["v1", "messages"], body, |request| match &args.idempotency_key {
        Some(key) => request.header("idempotency-key", key),
        None => request,
    });
    let answer = answer.await?;
    if args.json { print(&answer) } else { print(&readable(&client::parse(&answer)?)) }
}

fn body(args: &SendArgs, payload: &RawValue) -> serde_json::Result<String> {
    serde_json::to_string(&Body {
        from: &args.from,
        to: To { users: &args.to },
        kind: &args.kind,
        payload,
        online_only: args.online_only,
        deliver_to: args.every_device.then_some("every_device"),
        ttl_ms: args.ttl_ms,
        collapse_key: args.collapse_key.as_deref(),
    })
}

/// It is sent byte for byte as it was written.
fn payload(argument: &str) -> anyhow::Result<Box<RawValue>> {
    let text = if argument == "-" { io::read_to_string(io::stdin())? } else { argument.to_owned() };
    serde_json::from_str(&text).map_err(|why| {
        let quoted = serde_json::to_string(text.trim_end()).unwrap_or_default();
        anyhow::anyhow!("the payload is not JSON ({why}); to send it as a text, quote it: '{quoted}'")
    })
}

#[derive(Deserialize)]
struct Answer {
    id: String,
    sent_at: String,
    #[serde(default)]
    recipients: Vec<Recipient>,
}

#[derive(Deserialize)]
struct Recipient {
    user: String,
    outcome: String,
    #[serde(default)]
    devices: Vec<String>,
    cursor: Option<String>,
}

fn readable(answer: &Answer) -> String {
    let width = answer.recipients.iter().map(|r| r.user.chars().count()).max().unwrap_or_default();
    let mut lines: Vec<_> = answer.recipients.iter().map(|recipient| line(recipient, width)).collect();
    lines.push(format!("{}  sent {}", answer.id, answer.sent_at));
    lines.iter().map(|line| printable(line)).collect::<Vec<_>>().join("\n")
}

fn line(recipient: &Recipient, width: usize) -> String {
    let Recipient { user, outcome, devices, cursor } = recipient;
    let to = if devices.is_empty() { String::new() } else { format!(" to {}", devices.join(", ")) };
    let at = cursor.as_ref().map(|cursor| format!(" at {cursor}")).unwrap_or_default();
    format!("{user:width$}  {outcome}{to}{at}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_kept_as_written_and_plain_text_is_explained() {
        let exact = r#"{"n":12345678901234567890.10,  "b":1,"a":2}"#;
        assert_eq!(payload(exact).unwrap().get(), exact);
        let told = payload("hello").unwrap_err().to_string();
        assert!(told.ends_with("quote it: '\"hello\"'"), "{told}");
        assert!(payload("").is_err());
    }

    #[test]
    fn an_answer_reads_as_lines() {
        let answer = r#"{"id":"0199","online_only":true,"sent_at":"T","recipients":[
            {"user":"bob","outcome":"delivered","devices":["phone","tv"]},{"user":"carol","outcome":"offline","devices":[]},
            {"user":"al","outcome":"stored","cursor":"17"}]}"#;
        let lines = readable(&serde_json::from_str(answer).unwrap());
        assert_eq!(lines, "bob    delivered to phone, tv\ncarol  offline\nal     stored at 17\n0199  sent T");
    }
}
