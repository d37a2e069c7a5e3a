//! For those who run it: health, readiness, metrics, the documentation.

use super::openapi::openapi_json;
use crate::relay::handle::Relay;
use actix_web::web::Data;
use actix_web::{HttpResponse, get, route};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// Is the process alive
#[utoipa::path(
    tag = "operation",
    operation_id = "healthz",
    responses((status = 200, description = "Yes", body = String, content_type = "text/plain"))
)]
#[route("/healthz", method = "GET", method = "HEAD")]
pub(super) async fn healthz() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; charset=utf-8").body("ok\n")
}

/// What keeps it from being ready.
#[derive(Serialize, ToSchema)]
#[schema(as = Readiness)]
pub(super) struct ReadyReply {
    ready: bool,
    /// `draining`, `presence`, `store`
    away: Vec<&'static str>,
}

/// Can it take sends and streams
#[utoipa::path(
    tag = "operation",
    operation_id = "readyz",
    responses(
        (status = 200, description = "Yes", body = ReadyReply),
        (status = 503, description = "No: `away` says what is missing", body = ReadyReply),
    )
)]
#[route("/readyz", method = "GET", method = "HEAD")]
pub(super) async fn readyz(relay: Data<Relay>) -> HttpResponse {
    let mut away = if relay.is_draining() { vec!["draining"] } else { vec![] };
    away.extend(relay.away().await);
    let reply = ReadyReply { ready: away.is_empty(), away };
    if reply.ready {
        HttpResponse::Ok().json(reply)
    } else {
        HttpResponse::ServiceUnavailable().insert_header(("Retry-After", 1)).json(reply)
    }
}

/// This document
#[utoipa::path(
    tag = "operation",
    operation_id = "openapi",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value))
)]
#[get("/openapi.json")]
pub(super) async fn openapi() -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(openapi_json())
}

/// What the library writes. As the older text format, counters would have no type.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the admin listener shows.
#[derive(Clone)]
pub struct Admin {
    /// All metrics of the process.
    pub registry: Arc<Mutex<Registry>>,
}

/// Prometheus metrics, on the admin listener alone.
#[get("/metrics")]
pub(super) async fn metrics(admin: Data<Admin>) -> HttpResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &admin.registry.lock()) {
        Ok(()) => HttpResponse::Ok().content_type(OPENMETRICS).body(text),
        Err(error) => {
            tracing::error!(%error, "the metrics could not be written");
            HttpResponse::InternalServerError().finish()
        }
    }
}
