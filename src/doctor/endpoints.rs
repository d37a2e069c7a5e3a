//! The operator's endpoints: whether each can be reached as a callback would reach it. Nothing is posted.

use crate::config::{Callbacks, Otel, Outlet};
use crate::domain::finding::Finding;
use crate::webhook::guard::Guard;
use crate::webhook::probe::probe;
use futures_util::future::join_all;

pub(super) async fn examine(callbacks: &Callbacks) -> Vec<Finding> {
    let guard = Guard::new(callbacks.deny_networks.clone(), callbacks.public_only);
    let outlets = [
        ("callbacks.storage", &callbacks.storage),
        ("callbacks.push", &callbacks.push),
        ("callbacks.presence", &callbacks.presence),
        ("callbacks.before_send", &callbacks.before_send),
    ];
    join_all(outlets.map(|(about, outlet)| reach(about, outlet, &guard))).await.into_iter().flatten().collect()
}

/// Where spans go. The address is checked by nobody, as at the export.
pub(super) async fn collector(otel: &Otel) -> Option<Finding> {
    let (about, url) = ("otel.endpoint", otel.endpoint.as_ref()?);
    Some(match probe(url, &Guard::new([], false)).await {
        Ok(address) => Finding::well(about, format!("{address} takes connections")),
        Err(error) => {
            let found = format!("{error}: spans are lost, and all else goes on");
            Finding::warning(about, found, "does the collector run, and take OTLP over HTTP at this address?")
        }
    })
}

async fn reach(about: &str, outlet: &Outlet, guard: &Guard) -> Option<Finding> {
    let url = outlet.url.as_ref()?;
    Some(match probe(url, guard).await {
        Ok(address) => Finding::well(about, format!("{address} takes connections")),
        Err(error) => Finding::error(about, error.to_string(), error.advice()),
    })
}
