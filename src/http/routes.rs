//! All routes on one page.

use super::auth::Keys;
use super::problem::{Code, Problem};
use super::rates::RateLimits;
use super::{
    answer, batch, callbacks, console, devices, examples, groups, messages, openapi, ops, presence, stream, tokens,
};
use crate::relay::handle::Relay;
use actix_cors::Cors;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::http::header;
use actix_web::middleware::{Condition, from_fn};
use actix_web::web::{Data, PathConfig, ServiceConfig};
use actix_web::{App, Error, HttpRequest, HttpResponse, web};
use std::future::ready;
use utoipa_swagger_ui::SwaggerUi;

/// What the doors lead to.
#[derive(Clone)]
pub struct Doors {
    /// The relay.
    pub relay: Data<Relay>,
    /// What callers are measured by.
    pub keys: Data<Keys>,
    /// `limits.sends_per_s` and its like.
    pub rates: Data<RateLimits>,
    /// `server.cors_origins`
    pub cors_origins: Vec<String>,
    /// Whether the example in the browser is served.
    pub examples: bool,
}

/// The API. Outermost stands [`answer`], so that what CORS or the framework refuse is finished there too.
pub(super) fn routes(
    doors: Doors,
) -> App<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse<impl MessageBody>,
        Error = Error,
        InitError = (),
    >,
> {
    let cors = Condition::new(!doors.cors_origins.is_empty(), cors(&doors.cors_origins));
    App::new()
        .app_data(doors.relay)
        .app_data(doors.keys)
        .app_data(doors.rates)
        .app_data(
            PathConfig::default().error_handler(|_, _| Problem::new(Code::NotFound, "the path is not UTF-8").into()),
        )
        .configure(api)
        .configure(move |config| {
            if doors.examples {
                examples::routes(config);
            }
        })
        .default_service(web::to(move |request: HttpRequest| {
            ready(Err::<HttpResponse, _>(nothing_here(&request, doors.examples)))
        }))
        .wrap(cors)
        .wrap(from_fn(answer::finish))
}

fn api(config: &mut ServiceConfig) {
    config
        .service(batch::send_batch)
        .service(messages::send_message)
        // Else it would be taken for the id of a message.
        .route(
            "/v1/messages/batch",
            web::route().to(|| ready(Err::<HttpResponse, _>(Problem::method_not_allowed("POST")))),
        )
        .service(messages::get_message)
        .service(messages::recall_message)
        .service(groups::add_member)
        .service(groups::remove_member)
        .service(groups::change_members)
        .service(groups::list_members)
        .service(groups::delete_group)
        .service(stream::open_stream)
        .service(devices::ack)
        .service(devices::get_inbox)
        .service(devices::set_state)
        .service(presence::get_presence)
        .service(presence::query_presence)
        .service(presence::kick_device)
        .service(tokens::create_token)
        .service(tokens::create_ticket)
        .service(callbacks::list_callbacks)
        .service(callbacks::retry_callbacks)
        .service(callbacks::retry_callback)
        .service(ops::healthz)
        .service(ops::readyz)
        .service(ops::openapi)
        .configure(console::routes)
        .route("/docs", web::get().to(docs))
        .service(SwaggerUi::new("/docs/{_:.*}").url("/openapi.json", openapi::document()));
}

async fn docs() -> HttpResponse {
    HttpResponse::PermanentRedirect().insert_header((header::LOCATION, "/docs/")).finish()
}

/// A path of ours with another method gets 405, anything else 404.
fn nothing_here(request: &HttpRequest, examples: bool) -> Problem {
    let path = request.path();
    let here = |_: &&str| examples || !path.starts_with("/examples/");
    match allowed(path).filter(here) {
        Some(methods) => Problem::method_not_allowed(methods),
        None => Problem::new(Code::NotFound, "nothing is served at this path"),
    }
}

/// The methods of each path.
fn allowed(path: &str) -> Option<&'static str> {
    let segments: Vec<_> = path.split('/').skip(1).collect();
    if segments.contains(&"") {
        return None;
    }
    match segments[..] {
        ["v1", "messages" | "tokens" | "tickets" | "ack" | "state"]
        | ["v1", "messages", "batch"]
        | ["v1", "presence", "query"]
        | ["v1", "callbacks", "retry"]
        | ["v1", "callbacks", _, "retry"]
        | ["examples", "typing", "session" | "messages"] => Some("POST"),
        ["v1", "messages", _] => Some("GET, DELETE"),
        ["v1", "groups", _, "members"] => Some("GET, POST"),
        ["v1", "groups", _, "members", _] => Some("PUT, DELETE"),
        ["v1", "stream" | "inbox" | "callbacks"]
        | ["v1", "users", _, "presence"]
        | ["healthz" | "readyz" | "openapi.json" | "docs" | "console"]
        | ["examples", "typing"]
        | ["examples", "typing", "style.css" | "app.js"] => Some("GET"),
        ["console", file] if console::has(file) => Some("GET"),
        ["v1", "users", _, "devices", _] | ["v1", "groups", _] => Some("DELETE"),
        _ => None,
    }
}

fn cors(origins: &[String]) -> Cors {
    let cors = Cors::default()
        .allowed_methods(["GET", "POST", "PUT", "DELETE"])
        .allowed_headers([header::AUTHORIZATION, header::CONTENT_TYPE, header::CACHE_CONTROL])
        .allowed_headers(["last-event-id", "idempotency-key", "x-request-id", "prefer"])
        .expose_headers(["x-request-id", "retry-after", "location", "idempotent-replayed"])
        .expose_headers(["preference-applied", "ratelimit", "ratelimit-policy"])
        .max_age(3_600);
    origins.iter().fold(cors, |cors, origin| cors.allowed_origin(origin))
}

/// What the admin listener serves.
pub fn admin_routes(config: &mut ServiceConfig) {
    config.service(ops::metrics).service(ops::healthz).service(ops::readyz);
}
