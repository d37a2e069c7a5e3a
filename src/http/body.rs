//! Reading bodies: bounded in bytes and depth, JSON only, and every mistake said where it is.

use super::problem::{Code, Flaw, Problem};
use actix_web::HttpRequest;
use actix_web::web::Payload;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::fmt::Write;
use std::time::Duration;
use tokio::time::timeout;

/// Bodies other than those of sends are at most this long.
pub(super) const SMALL: usize = 1 << 20;
/// Nobody holds a connection by sending a body slowly.
const ARRIVES_WITHIN: Duration = Duration::from_secs(15);

/// Reads a JSON body of at most `limit` bytes, as text.
pub(super) async fn read_json(request: &HttpRequest, payload: Payload, limit: usize) -> Result<Bytes, Problem> {
    check_content_type(request)?;
    let bytes = timeout(ARRIVES_WITHIN, read(payload, limit)).await;
    let bytes = bytes.map_err(|_| Problem::new(Code::MalformedJson, "the body did not arrive in time"))??;
    if std::str::from_utf8(&bytes).is_err() {
        return Err(Problem::new(Code::MalformedJson, "the body is not UTF-8"));
    }
    Ok(bytes)
}

fn check_content_type(request: &HttpRequest) -> Result<(), Problem> {
    let given = request.headers().get("content-type").and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = given.split(';').next().unwrap_or("").trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Problem::new(Code::UnsupportedMediaType, "the header `Content-Type: application/json` is needed"))
}

/// Most bodies come in one piece, which is then not copied.
async fn read(mut payload: Payload, limit: usize) -> Result<Bytes, Problem> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|_| Problem::new(Code::MalformedJson, "the body ended before its time"))?;
        if first.len() + rest.len() + chunk.len() > limit {
            return Err(Problem::new(Code::PayloadTooLarge, format!("a body may have {limit} bytes here")));
        }
        if first.is_empty() {
            first = chunk;
        } else {
            rest.extend_from_slice(&chunk);
        }
    }
    if rest.is_empty() {
        return Ok(first);
    }
    Ok([&first[..], &rest[..]].concat().into())
}

/// Reads a value out of JSON text. What is not JSON is `malformed_json`; what is not as it should be says where.
pub(super) fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Problem> {
    if let Ok(value) = serde_json::from_slice(json) {
        return Ok(value);
    }
    // What kind of error comes first says little: the library reads no further, and calls a number in place of a word a fault of syntax.
    if let Err(error) = serde_json::from_slice::<IgnoredAny>(json) {
        return Err(Problem::new(Code::MalformedJson, error.to_string()));
    }
    // Read once more, slower, to learn the place.
    let mut reader = serde_json::Deserializer::from_slice(json);
    match serde_path_to_error::deserialize::<_, T>(&mut reader) {
        Ok(value) => Ok(value),
        Err(error) => Err(Problem::invalid(vec![Flaw::new(pointer(error.path()), words(error.inner()))])),
    }
}

/// As a JSON pointer (RFC 6901).
fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut pointer = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => _ = write!(pointer, "/{index}"),
            Segment::Map { key } => _ = write!(pointer, "/{}", key.replace('~', "~0").replace('/', "~1")),
            Segment::Enum { variant } => _ = write!(pointer, "/{variant}"),
            Segment::Unknown => {}
        }
    }
    pointer
}

/// Without the place in lines and columns: the pointer says it.
fn words(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(words, _)| words.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_told_where_it_is() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct To {
            #[serde(rename = "users")]
            _users: Vec<String>,
        }
        let problem = parse::<To>(b"{\"users\":[\"a\",3]}").unwrap_err().to_string();
        assert!(problem.contains("/users/1"), "{problem}");
        let problem = parse::<To>(b"{\"user/s\":[]}").unwrap_err().to_string();
        assert!(problem.contains("/user~1s unknown field"), "{problem}");
        assert!(parse::<To>(b"{\"users\":").unwrap_err().to_string().starts_with("malformed_json"));
    }
}
