//! HTTP as the client commands use it, and errors as a person reads them.

use super::args::BackendArgs;
use super::printable;
use anyhow::{Context, anyhow};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url, redirect};
use serde::Deserialize;
use std::future::Future;
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that herenow may be configured to wait for outcomes is a minute.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(75);

/// Client commands do one thing at a time: one thread is enough.
pub(super) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// The one HTTP client. Proxies from the environment are for other traffic, and a redirect would carry the key elsewhere.
pub(super) fn http() -> reqwest::Result<Client> {
    Client::builder().no_proxy().redirect(redirect::Policy::none()).connect_timeout(CONNECT_TIMEOUT).build()
}

/// `base` with a path under it; the segments are encoded.
pub(super) fn endpoint(base: &Url, segments: &[&str]) -> Url {
    let mut url = base.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

/// A POST of JSON with the API key, and its answer as text.
pub(super) async fn post(
    args: &BackendArgs,
    segments: &[&str],
    body: String,
    more: impl FnOnce(RequestBuilder) -> RequestBuilder,
) -> anyhow::Result<String> {
    let config = args.server.source.load()?;
    let base = args.server.url(&config)?;
    let request = http()?
        .post(endpoint(&base, segments))
        .bearer_auth(args.api_key(&config)?.expose())
        .header("content-type", "application/json")
        .timeout(ANSWER_TIMEOUT)
        .body(body);
    Ok(accepted(send(more(request), &base).await?).await?.text().await?)
}

/// The answer to a request, or why there is none.
pub(super) async fn send(request: RequestBuilder, base: &Url) -> anyhow::Result<Response> {
    request.send().await.map_err(|e| anyhow!("can't reach herenow at {base}: {}", root_cause(&e)))
}

/// The innermost cause says what happened; the outer ones only repeat the URL.
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// An answer that isn't a success becomes an error in the problem's words.
pub(super) async fn accepted(answer: Response) -> anyhow::Result<Response> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    Err(refusal(status, &answer.text().await.unwrap_or_default()))
}

/// Reads an answer of herenow's own making.
pub(super) fn parse<'a, T: Deserialize<'a>>(answer: &'a str) -> anyhow::Result<T> {
    serde_json::from_str(answer).context("the answer is not herenow's: is the URL right?")
}

#[derive(Deserialize)]
struct Problem {
    code: String,
    detail: Option<String>,
    #[serde(default)]
    errors: Vec<ProblemAt>,
}

#[derive(Deserialize)]
struct ProblemAt {
    pointer: String,
    detail: String,
}

fn refusal(status: StatusCode, body: &str) -> anyhow::Error {
    let Ok(problem) = serde_json::from_str::<Problem>(body) else {
        let beginning: String = body.chars().take(200).collect();
        return anyhow!("{status}: {}", printable(&beginning));
    };
    let told = format!("{} ({})", problem.detail.unwrap_or_else(|| status.to_string()), problem.code);
    let places = problem.errors.iter().map(|at| format!("  {} {}", at.pointer, at.detail));
    let lines: Vec<_> = std::iter::once(told).chain(places).map(|line| printable(&line)).collect();
    anyhow!(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_goes_under_the_base_and_is_encoded() {
        for (base, whole) in [
            ("http://h", "http://h/v1/a%2Fb%3F"),
            ("http://h/", "http://h/v1/a%2Fb%3F"),
            ("http://h/relay", "http://h/relay/v1/a%2Fb%3F"),
            ("http://h/relay/", "http://h/relay/v1/a%2Fb%3F"),
        ] {
            assert_eq!(endpoint(&Url::parse(base).unwrap(), &["v1", "a/b?"]).as_str(), whole);
        }
    }

    #[test]
    fn a_problem_is_told_with_each_of_its_places() {
        let problem = r#"{"type":"about:blank","title":"x","status":422,"code":"invalid_request","detail":"2 fields are wrong",
            "errors":[{"pointer":"/to","detail":"is missing"},{"pointer":"/from","detail":"is empty"}]}"#;
        let told = refusal(StatusCode::UNPROCESSABLE_ENTITY, problem).to_string();
        assert_eq!(told, "2 fields are wrong (invalid_request)\n  /to is missing\n  /from is empty");
        let told = refusal(StatusCode::BAD_GATEWAY, "<html>\u{1b}").to_string();
        assert_eq!(told, "502 Bad Gateway: <html>\\u{1b}");
    }
}
