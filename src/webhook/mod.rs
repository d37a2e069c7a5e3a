//! Floor 2: POSTs to the operator's endpoints (CONTRACT.md 8), signed, and GETs of the operator's documents: to checked addresses alone,
//! bounded in time and memory.

pub mod client;
pub mod fetch;
pub mod guard;
pub mod probe;
pub mod sign;

#[cfg(test)]
pub mod receiver;

use crate::config::{self, Outlet};
use client::{SetupError, Webhook};
use guard::Guard;

/// The endpoints of the operator; `None` where none is configured.
#[derive(Debug)]
#[expect(missing_docs, reason = "each field is the section `callbacks.*` of its name")]
pub struct Webhooks {
    pub storage: Option<Webhook>,
    pub push: Option<Webhook>,
    pub presence: Option<Webhook>,
    pub before_send: Option<Webhook>,
}

/// An endpoint can't be used as it is configured.
#[derive(Debug, thiserror::Error)]
#[error("callbacks.{section}.{source}")]
pub struct EndpointError {
    section: &'static str,
    source: SetupError,
}

impl Webhooks {
    /// As configured: all of them or none.
    pub fn of(config: &config::Callbacks) -> Result<Self, EndpointError> {
        let guard = Guard::of(config);
        let open = |section, outlet: &Outlet| {
            let Some(url) = outlet.url.clone() else { return Ok(None) };
            Webhook::new(url, outlet, guard.clone()).map(Some).map_err(|source| EndpointError { section, source })
        };
        Ok(Self {
            storage: open("storage", &config.storage)?,
            push: open("push", &config.push)?,
            presence: open("presence", &config.presence)?,
            before_send: open("before_send", &config.before_send)?,
        })
    }
}
