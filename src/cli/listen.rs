//! `herenow listen`: a device in the shell. It comes again by itself, without missing a persisted message.

use super::args::{self, ServerArgs};
use super::sse::{Event, Parser};
use super::{client, print, printable, token};
use crate::config::Config;
use crate::domain::seat::{DeviceId, UserId};
use crate::domain::time::Timestamp;
use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use futures_util::StreamExt;
use reqwest::{Client, Response, StatusCode, Url};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::fmt;
use std::time::Duration;

pub(super) const EXAMPLE: &str = "\
Examples:
  herenow listen bob
  herenow listen bob --device laptop --after earliest --ack
  herenow listen bob --json | jq .data.payload

It connects again when the connection ends. Ctrl-C ends it.";

/// A stream ends with the token that it was opened with; each connection gets a new one.
const TOKEN_TTL: Duration = Duration::from_secs(3_600);
/// Before the server has said otherwise.
const RETRY: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_RETRY: Duration = Duration::from_secs(300);
const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest heartbeat that can be configured, and some: a stream without even that is dead.
const SILENCE: Duration = Duration::from_secs(330);

#[derive(Args)]
pub(super) struct ListenArgs {
    /// Who to be
    #[arg(value_parser = args::user)]
    user: UserId,
    /// On which device
    #[arg(long, default_value = "cli", value_parser = args::device)]
    device: DeviceId,
    /// Where to begin: earliest, now, or a cursor [default: after what this device has acknowledged]
    #[arg(long, value_name = "CURSOR")]
    after: Option<String>,
    /// Whether someone looks at this device
    #[arg(long, default_value = "active")]
    state: State,
    /// Print each event as one line of JSON
    #[arg(long)]
    json: bool,
    /// Acknowledge each persisted message once it is printed
    #[arg(long)]
    ack: bool,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum State {
    Active,
    Background,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Background => "background",
        })
    }
}

pub(super) async fn run(args: ListenArgs) -> anyhow::Result<()> {
    let config = args.server.source.load()?;
    let base = args.server.url(&config)?;
    let mut listener = Listener { http: client::http()?, config, base, args, resume: None, retry: RETRY, failures: 0 };
    tokio::select! {
        ended = listener.listen() => ended,
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

struct Listener {
    http: Client,
    config: Config,
    base: Url,
    args: ListenArgs,
    /// The last cursor seen.
    resume: Option<String>,
    retry: Duration,
    /// Connections in a row that never got as far as `ready`.
    failures: u32,
}

impl Listener {
    /// Ends only with what coming again would not mend.
    async fn listen(&mut self) -> anyhow::Result<()> {
        loop {
            let why = self.connection().await?;
            let wait = wait(self.retry, self.failures, rand::random_range(0.8..1.2));
            eprintln!("{}; again in {:.1} s", printable(&why), wait.as_secs_f64());
            self.failures = self.failures.saturating_add(1);
            tokio::time::sleep(wait).await;
        }
    }

    /// One stream from its beginning to its end. `Ok` is why to come again.
    async fn connection(&mut self) -> anyhow::Result<String> {
        let token = token::mint(&self.config, &self.args.user, Some(&self.args.device), TOKEN_TTL)?;
        let mut request = self.http.get(self.stream_url()).bearer_auth(&token).header("accept", "text/event-stream");
        if let Some(cursor) = &self.resume {
            request = request.header("last-event-id", cursor);
        }
        let answer = match tokio::time::timeout(SILENCE, request.send()).await {
            Err(_) => return Ok(format!("no answer from {}", self.base)),
            Ok(Err(error)) => {
                return Ok(format!("can't reach herenow at {}: {}", self.base, client::root_cause(&error)));
            }
            Ok(Ok(answer)) => answer,
        };
        if is_passing(answer.status()) {
            return Ok(format!("herenow answers {}", answer.status()));
        }
        self.events(client::accepted(answer).await?, &token).await
    }

    async fn events(&mut self, answer: Response, token: &str) -> anyhow::Result<String> {
        let mut chunks = answer.bytes_stream();
        let mut parser = Parser::default();
        loop {
            let chunk = match tokio::time::timeout(SILENCE, chunks.next()).await {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(error))) => return Ok(format!("the connection broke: {}", client::root_cause(&error))),
                Ok(None) => return Ok("the connection ended".to_owned()),
                Err(_) => return Ok("not even a heartbeat any more".to_owned()),
            };
            let mut ended = None;
            for event in parser.push(&chunk) {
                ended = ended.or(self.event(&event, token).await?);
            }
            self.retry = parser.retry().unwrap_or(self.retry);
            self.resume = parser.last_id().filter(|id| !id.is_empty()).map(str::to_owned).or(self.resume.take());
            if let Some(why) = ended {
                return Ok(why);
            }
        }
    }

    /// Shows the event and does what it asks for. `Some` is why to come again.
    async fn event(&mut self, event: &Event, token: &str) -> anyhow::Result<Option<String>> {
        self.show(event)?;
        match event.name.as_str() {
            "ready" => self.ready(client::parse(&event.data)?),
            "message" => self.acknowledge(&client::parse(&event.data)?, token).await,
            "bye" => return bye(&client::parse(&event.data)?).map(Some),
            _ => {}
        }
        Ok(None)
    }

    /// From here on it is known where to go on, even if no message comes: `--after now` must not mean a later now.
    fn ready(&mut self, ready: Ready) {
        self.failures = 0;
        self.resume = ready.resumed_after.or(self.resume.take());
    }

    async fn acknowledge(&self, message: &Message<'_>, token: &str) {
        let Some(cursor) = message.cursor.as_ref().filter(|_| self.args.ack) else { return };
        let body = serde_json::json!({ "cursor": cursor }).to_string();
        let request = self.http.post(client::endpoint(&self.base, &["v1", "ack"])).bearer_auth(token);
        let request = request.header("content-type", "application/json").timeout(ACK_TIMEOUT).body(body);
        let acknowledged = async { client::accepted(request.send().await?).await };
        // Not the end of listening: the next one that succeeds covers this one too.
        if let Err(error) = acknowledged.await {
            eprintln!("not acknowledged: {error:#}");
        }
    }

    fn show(&self, event: &Event) -> anyhow::Result<()> {
        if self.args.json {
            return print(&as_json(event)?);
        }
        match event.name.as_str() {
            "message" => print(&readable(&client::parse(&event.data)?)),
            "ready" => {
                eprintln!("{} is here on {}", printable(self.args.user.as_str()), printable(self.args.device.as_str()));
                Ok(())
            }
            other => print(&printable(&format!("{}  {other}: {}", Timestamp::now(), one_line(&event.data)))),
        }
    }

    fn stream_url(&self) -> Url {
        let mut url = client::endpoint(&self.base, &["v1", "stream"]);
        url.query_pairs_mut().append_pair("state", &self.args.state.to_string());
        if let Some(after) = self.args.after.as_ref().filter(|_| self.resume.is_none()) {
            url.query_pairs_mut().append_pair("after", after);
        }
        url
    }
}

#[derive(Deserialize)]
struct Ready {
    resumed_after: Option<String>,
}

#[derive(Deserialize)]
struct Bye {
    reason: String,
}

#[derive(Deserialize)]
struct Message<'a> {
    from: String,
    #[serde(rename = "type")]
    kind: String,
    sent_at: String,
    cursor: Option<String>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

#[derive(Serialize)]
struct Line<'a> {
    event: &'a str,
    data: &'a RawValue,
}

/// Someone else has this device now, or wants it gone: coming again would start a fight.
fn bye(bye: &Bye) -> anyhow::Result<String> {
    match bye.reason.as_str() {
        "replaced" => bail!("the same device has connected elsewhere (--device gives this one a name of its own)"),
        "kicked" => bail!("this device was told to leave"),
        other => Ok(format!("herenow ended the stream ({other})")),
    }
}

fn readable(message: &Message<'_>) -> String {
    let Message { from, kind, sent_at, payload, .. } = message;
    printable(&format!("{sent_at}  {kind} from {from}: {}", one_line(payload.get())))
}

fn as_json(event: &Event) -> anyhow::Result<String> {
    let data = one_line(&event.data);
    let data = serde_json::from_str(&data).context("an event's data is not JSON")?;
    Ok(serde_json::to_string(&Line { event: &event.name, data })?)
}

/// Between the parts of a JSON text a line break is as good as a space, and within its strings there can't be one.
fn one_line(json: &str) -> String {
    json.replace(['\n', '\r'], " ")
}

/// What another attempt may find mended.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

/// Doubles with every failure in a row. What the server asked for may be longer than what we would wait by ourselves, within reason.
fn wait(retry: Duration, failures: u32, jitter: f64) -> Duration {
    let retry = retry.min(LONGEST_RETRY);
    let doubled = retry.saturating_mul(1 << failures.min(8));
    doubled.min(LONGEST_WAIT.max(retry)).mul_f64(jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_ten_seconds_and_never_undercuts_the_server() {
        let s = Duration::from_secs;
        let waits: Vec<_> = (0..5).map(|failures| wait(s(2), failures, 1.0)).collect();
        assert_eq!(waits, [s(2), s(4), s(8), s(10), s(10)]);
        assert_eq!(wait(s(30), 3, 1.0), s(30));
        assert_eq!(wait(s(2), 0, 0.8), Duration::from_millis(1_600));
        assert_eq!(wait(Duration::MAX, u32::MAX, 1.2), s(360));
    }

    #[test]
    fn a_message_reads_as_one_line_whatever_its_payload() {
        let data = "{\"id\":\"x\",\"from\":\"al\u{9b}ice\",\"type\":\"chat\",\"payload\":{\n\"a\": 1.50},\"sent_at\":\"T\",\"cursor\":\"17\"}";
        let message: Message<'_> = serde_json::from_str(data).unwrap();
        assert_eq!(readable(&message), "T  chat from al\\u{9b}ice: { \"a\": 1.50}");
        assert_eq!(message.cursor.as_deref(), Some("17"));
        let event = Event { name: "message".into(), data: "{\n\"n\":12345678901234567890.10}".into() };
        assert_eq!(as_json(&event).unwrap(), r#"{"event":"message","data":{ "n":12345678901234567890.10}}"#);
    }

    #[test]
    fn only_who_was_replaced_or_kicked_stays_away() {
        let reason = |reason: &str| bye(&Bye { reason: reason.to_owned() });
        assert!(reason("replaced").is_err() && reason("kicked").is_err());
        for other in ["token_expired", "draining", "rotate", "unauthorized", "something new"] {
            assert!(reason(other).is_ok());
        }
    }
}
