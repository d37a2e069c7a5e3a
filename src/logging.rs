//! The log: to standard error, in UTC, as `log.level` and `log.format` say. Beside it traces, if there are any.

use crate::config::{Log, LogFormat, level_rules};
use crate::traces;
use opentelemetry_sdk::trace::SdkTracer;
use std::io;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, reload};

/// Libraries that tell at `info` or `debug` what nobody running herenow needs, requests among it. A rule of `log.level` can still let one speak.
const NOISY: [&str; 10] = [
    "actix_http",
    "actix_server",
    "actix_web",
    "h2",
    "hyper",
    "hyper_util",
    "mio",
    "reqwest",
    "rustls",
    "tokio_postgres",
];

/// The level that is in force, to be changed.
pub struct Level(reload::Handle<Targets, Registry>);

impl Level {
    /// From now on this one.
    pub fn set(&self, level: &str) {
        if let Err(error) = self.0.reload(targets(level)) {
            tracing::warn!(%error, "the level of the log could not be changed");
        }
    }
}

/// Starts logging for the whole process, and tracing by `tracer`; to be called once.
pub fn start(log: &Log, tracer: Option<SdkTracer>) -> Result<Level, TryInitError> {
    let lines =
        tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(io::IsTerminal::is_terminal(&io::stderr()));
    let lines = match log.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let (filter, level) = reload::Layer::new(targets(&log.level));
    let lines = lines.with_filter(filter);
    tracing_subscriber::registry().with(lines).with(tracer.map(traces::layer)).try_init()?;
    Ok(Level(level))
}

fn targets(level: &str) -> Targets {
    // The loader has refused what can't be read.
    let rules = level_rules(level).unwrap_or_default();
    let general = rules.iter().find(|(target, _)| target.is_none()).map_or(LevelFilter::INFO, |&(_, level)| level);
    let quiet = NOISY.map(|target| (target, general.min(LevelFilter::WARN)));
    let named = rules.iter().filter_map(|&(target, level)| Some((target?, level)));
    Targets::new()
        .with_default(general)
        .with_targets(quiet)
        .with_targets(named)
        .with_target(traces::TARGET, LevelFilter::OFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn noisy_libraries_stay_at_warn_unless_named() {
        let plain = targets("debug");
        assert!(plain.would_enable("herenow::relay", &Level::DEBUG));
        assert!(plain.would_enable("hyper::proto", &Level::WARN));
        assert!(!plain.would_enable("hyper::proto", &Level::INFO));
        assert!(targets("info,hyper=trace").would_enable("hyper::proto", &Level::TRACE));
        assert!(!targets("error").would_enable("hyper", &Level::WARN));
        assert!(!targets("trace").would_enable(traces::TARGET, &Level::INFO), "spans are no lines");
        assert!(!targets("herenow=debug").would_enable("herenow", &Level::TRACE));
    }
}
