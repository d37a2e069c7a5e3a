//! `/examples/typing`: two people in a browser, and the tiny backend that they need.
//!
//! It mints tokens and sends for anybody who asks, so it exists only while the credentials are herenow's own and the listener is loopback
//! (`app` decides), and it answers only pages that it served itself: a foreign page could otherwise ask by the visitor's browser.

use super::auth::Keys;
use super::pages::file;
use super::problem::{Code, Problem};
use super::rates::RateLimits;
use super::{auth, body, messages, tokens};
use crate::domain::seat::{DeviceId, UserId};
use crate::relay::handle::Relay;
use actix_web::web::{Data, Payload, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse, get, post};
use serde::Deserialize;
use std::net::IpAddr;
use std::time::Duration;

const TOKEN_TTL: Duration = Duration::from_mins(10);

/// Adds the example's routes.
pub(super) fn routes(config: &mut ServiceConfig) {
    config.service(page).service(style).service(script).service(create_session).service(send_message);
}

#[get("/examples/typing")]
async fn page() -> HttpResponse {
    file("text/html; charset=utf-8", include_str!("../../examples/typing/index.html"))
}

#[get("/examples/typing/style.css")]
async fn style() -> HttpResponse {
    file("text/css; charset=utf-8", include_str!("../../examples/typing/style.css"))
}

#[get("/examples/typing/app.js")]
async fn script() -> HttpResponse {
    file("text/javascript; charset=utf-8", include_str!("../../examples/typing/app.js"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionBody {
    user: UserId,
    device: DeviceId,
}

#[post("/examples/typing/session")]
async fn create_session(request: HttpRequest, keys: Data<Keys>, payload: Payload) -> Result<HttpResponse, Problem> {
    check_same_origin(&request)?;
    let json = body::read_json(&request, payload, body::SMALL).await?;
    let SessionBody { user, device } = body::parse(&json)?;
    Ok(HttpResponse::Created().json(tokens::mint(&keys, &user, Some(&device), TOKEN_TTL)?))
}

#[post("/examples/typing/messages")]
async fn send_message(
    request: HttpRequest,
    relay: Data<Relay>,
    rates: Data<RateLimits>,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    check_same_origin(&request)?;
    messages::send(&request, &relay, &rates, payload).await
}

/// Headers that a proxy adds: what comes through one comes from elsewhere.
const OF_PROXIES: [&str; 5] = ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"];

/// The page itself, under a loopback name: neither another origin, nor another name that was made to lead here (DNS rebinding), nor
/// somebody beyond a proxy on this machine. And credentials that were configured since the start are not to be had here.
fn check_same_origin(request: &HttpRequest) -> Result<(), Problem> {
    if !auth::keys(request)?.are_self_made() {
        return Err(Problem::new(Code::NotFound, "the example is over: credentials have been configured"));
    }
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let host = header("host").unwrap_or("");
    // Browsers send it with every POST.
    let is_own = header("origin").and_then(|origin| origin.strip_prefix("http://")) == Some(host);
    let is_direct = !OF_PROXIES.iter().any(|name| request.headers().contains_key(*name));
    if is_own && is_direct && is_loopback(host) {
        return Ok(());
    }
    Err(Problem::new(Code::Forbidden, "this answers only the example's own page on this machine"))
}

fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn only_names_of_this_machine_are_loopback() {
        for own in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "LOCALHOST", "127.0.0.1", "[::1]"] {
            assert!(is_loopback(own), "{own}");
        }
        for other in
            ["", "evil.example:8080", "localhost.evil.example", "10.0.0.1:8080", "127.0.0.1.evil.example", "::"]
        {
            assert!(!is_loopback(other), "{other}");
        }
    }
}
