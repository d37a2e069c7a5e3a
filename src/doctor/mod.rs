//! `herenow doctor`: looks at the configuration, the machine, the planes and the endpoints, beside a node that runs or without one.
//!
//! It only looks: nothing is written, sent or repaired. Every look has a bound in time.

mod endpoints;
mod keys;
mod machine;
mod tls;

use crate::backend::{Expected, postgres, redis, sqlite};
use crate::config::{Config, ConfigErrors, Loaded};
use crate::domain::finding::{Finding, Level};
use crate::domain::time::Timestamp;
use crate::ports::Leases;
use std::path::Path;

/// All that was found.
#[derive(Clone, Debug)]
pub struct Report {
    /// In the order in which it was looked at.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The worst of it.
    pub fn worst(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Well)
    }

    /// Of a configuration that is wrong: without a right one nothing else can be looked at.
    pub fn of_flaws(flaws: &ConfigErrors) -> Self {
        let of =
            |flaw: &_| Finding::error("configuration", format!("{flaw}"), "mend it: herenow does not start with it");
        Self { findings: flaws.0.iter().map(of).collect() }
    }
}

/// Looks at everything that this configuration leads to.
pub async fn examine(loaded: &Loaded) -> Report {
    let config = &loaded.config;
    let mut findings = configuration(&loaded.warnings);
    findings.extend(machine::clock(Timestamp::now()));
    findings.extend(machine::open_files(config.stream.max, &config.data_dir));
    let (of_directory, in_use) = machine::data_dir(&config.data_dir);
    findings.extend(of_directory);
    findings.extend(tls::examine(&config.server.tls, Timestamp::now()));
    findings.extend(keys::examine(config).await);
    if config.redis.url.is_some() {
        findings.extend(redis::examine(&config.redis, config.cluster.lease).await);
    }
    findings.extend(store(config, in_use).await);
    findings.extend(endpoints::examine(&config.callbacks).await);
    findings.extend(endpoints::collector(&config.otel).await);
    Report { findings }
}

fn configuration(warnings: &[String]) -> Vec<Finding> {
    if warnings.is_empty() {
        return vec![Finding::well("configuration", "nothing is wrong with it")];
    }
    let advice = "see docs/configuration.md";
    warnings.iter().map(|warning| Finding::warning("configuration", warning, advice)).collect()
}

async fn store(config: &Config, in_use: bool) -> Vec<Finding> {
    let expected = Expected {
        now: Timestamp::now(),
        retention: config.store.retention,
        endpoints: Leases {
            storage: config.callbacks.storage.url.is_some(),
            push: config.callbacks.push.url.is_some(),
        },
        in_use,
    };
    if let Some(url) = &config.store.url {
        return postgres::examine(url, expected).await;
    }
    let dir = config.data_dir.clone();
    blocking(move || sqlite::examine(&dir, &expected)).await
}

/// A look that waits for the disk.
async fn blocking(look: impl FnOnce() -> Vec<Finding> + Send + 'static) -> Vec<Finding> {
    let failed =
        |error: tokio::task::JoinError| vec![Finding::error("doctor", error.to_string(), "report it as a bug")];
    tokio::task::spawn_blocking(look).await.unwrap_or_else(failed)
}

/// A path as a part of a sentence.
fn named(path: &Path) -> String {
    path.display().to_string()
}
