//! The keys that device tokens are verified by: each file, and the set at `auth.jwks_url`, which is fetched as a node would.

use super::named;
use crate::config::Config;
use crate::domain::finding::Finding;
use crate::token::{Jwks, VerifyingKey};
use crate::webhook::guard::Guard;
use reqwest::Url;
use std::path::Path;

pub(super) async fn examine(config: &Config) -> Vec<Finding> {
    let mut findings: Vec<_> = config.auth.device_public_keys.iter().map(|path| of_file(path)).collect();
    if let Some(url) = &config.auth.jwks_url {
        findings.push(of_set(url, Guard::of(&config.callbacks)).await);
    }
    findings
}

fn of_file(path: &Path) -> Finding {
    let about = "auth.device_public_keys";
    match VerifyingKey::of_file(path) {
        Ok(keys) => {
            Finding::well(about, format!("{}: {}", named(path), list(keys.iter().map(VerifyingKey::algorithm))))
        }
        Err(error) => {
            Finding::error(about, error.to_string(), "put a public key in PEM there, readable by herenow's user")
        }
    }
}

async fn of_set(url: &Url, guard: Guard) -> Finding {
    let about = "auth.jwks_url";
    let jwks = match Jwks::new(url.clone(), guard) {
        Ok(jwks) => jwks,
        Err(error) => return Finding::error(about, error.to_string(), "herenow does not start before this is mended"),
    };
    match jwks.survey().await {
        Ok((usable, passed_over)) => {
            let shown = |key: &VerifyingKey| format!("{} ({})", key.name(), key.algorithm());
            let found = format!("usable keys: {}: {}", usable.len(), list(usable.iter().map(shown)));
            let others = format!("; of no use here: {}", list(passed_over.iter().map(String::as_str)));
            Finding::well(about, found + if passed_over.is_empty() { "" } else { &others })
        }
        Err(error) => {
            let advice = "is the identity provider there, and is this its set of keys? Until it is fetched, no token by it is good";
            Finding::error(about, error.to_string(), advice)
        }
    }
}

fn list(words: impl Iterator<Item = impl Into<String>>) -> String {
    words.map(Into::into).collect::<Vec<_>>().join(", ")
}
