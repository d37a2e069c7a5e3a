//! `/console`: the operator's page. It holds nothing and may do nothing by itself: it asks the public API with the key that is typed into it.

use super::pages::file;
use super::problem::{Code, Problem};
use actix_web::http::header;
use actix_web::web::{self, Path, ServiceConfig};
use actix_web::{HttpResponse, get};

const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! files {
    ($($name:literal $content_type:ident;)*) => {
        /// Name, content type and text of each.
        const FILES: &[(&str, &str, &str)] =
            &[$(($name, $content_type, include_str!(concat!("../../console/", $name)))),*];
    };
}

files! {
    "style.css" CSS;
    "app.js" JAVASCRIPT;
    "api.js" JAVASCRIPT;
    "parts.js" JAVASCRIPT;
    "online.js" JAVASCRIPT;
    "message.js" JAVASCRIPT;
    "callbacks.js" JAVASCRIPT;
    "groups.js" JAVASCRIPT;
    "send.js" JAVASCRIPT;
}

/// Adds the page's routes.
pub(super) fn routes(config: &mut ServiceConfig) {
    config.service(page).service(part).route("/console/", web::get().to(without_slash));
}

/// Whether a file of the page has this name.
pub(super) fn has(name: &str) -> bool {
    FILES.iter().any(|(file, ..)| *file == name)
}

#[get("/console")]
async fn page() -> HttpResponse {
    file("text/html; charset=utf-8", include_str!("../../console/index.html"))
}

#[get("/console/{file}")]
async fn part(name: Path<String>) -> Result<HttpResponse, Problem> {
    let found = FILES.iter().find(|(file, ..)| *file == *name);
    let (_, content_type, text) =
        found.ok_or_else(|| Problem::new(Code::NotFound, "nothing is served at this path"))?;
    Ok(file(content_type, text))
}

async fn without_slash() -> HttpResponse {
    HttpResponse::PermanentRedirect().insert_header((header::LOCATION, "/console")).finish()
}
