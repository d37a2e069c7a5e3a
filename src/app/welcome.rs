//! What is printed at the start: on the first one a message to paste, with the credentials that were just made. Never to the log.

use crate::config::Config;
use crate::domain::seat::{DeviceId, UserId};
use crate::token::Tokens;
use std::io::{Write, stdout};
use std::net::SocketAddr;
use std::time::Duration;

const TOKEN_TTL: Duration = Duration::from_hours(24);

/// Prints it to standard output. That nobody reads it is no reason not to serve.
pub(super) fn print(config: &Config, address: SocketAddr, first_start: bool) {
    if config.auth.self_made {
        let _ = stdout().write_all(text(config, address, first_start).as_bytes());
    }
}

fn text(config: &Config, address: SocketAddr, first_start: bool) -> String {
    let url = config.server.url(address);
    let (listen, send) = commands(config, &url, first_start).unwrap_or_default();
    let credentials = config.data_dir.join("credentials.toml");
    let credentials = credentials.display();
    let made = if first_start {
        "Credentials were made for you; they are shown once, here, and kept in"
    } else {
        "Credentials:"
    };
    let page = if super::serves_examples(config, address) {
        format!("\nOr watch two people in a browser:\n  {url}/examples/typing\n")
    } else {
        String::new()
    };
    format!(
        "\nherenow {version} listens on {url}\n{made} {credentials}\n\n\
        Listen as Bob, in one terminal:\n  {listen}\n\n\
        Send to him from another:\n  {send}\n{page}\n\
        The API in a browser: {url}/docs/\nWho is online, what became of messages and callbacks: {url}/console\n\n",
        version = env!("CARGO_PKG_VERSION"),
    )
}

/// To listen and to send. With the credentials in them only where these are new; later by the program, which reads them itself.
fn commands(config: &Config, url: &str, first_start: bool) -> Option<(String, String)> {
    let message =
        r#"{"from":"alice","to":{"users":["bob"]},"type":"typing","payload":{"typing":true},"online_only":true}"#;
    if !first_start {
        let program = std::env::args().next().unwrap_or_else(|| "herenow".to_owned());
        let directory = config.data_dir.display();
        let options = format!("--data-dir {directory} --url {url}");
        return Some((
            format!("{program} listen bob {options}"),
            format!("{program} send --from alice --to bob --type typing --online-only '{{\"typing\":true}}' {options}"),
        ));
    }
    let (bob, phone) = (UserId::parse("bob").ok()?, DeviceId::parse("phone").ok()?);
    let (token, _) = Tokens::new(&config.auth).ok()?.mint(&bob, Some(&phone), TOKEN_TTL)?;
    let key = config.auth.api_keys.first()?.expose();
    Some((
        format!("curl -N -H 'Authorization: Bearer {token}' {url}/v1/stream"),
        format!(
            "curl -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' {url}/v1/messages -d '{message}'"
        ),
    ))
}
