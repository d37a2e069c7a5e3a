//! The OpenAPI document, made from the handlers. `openapi/openapi.json` is the same text, and a test says so.

use super::problem::ProblemBody;
use super::{batch, callbacks, devices, groups, messages, ops, presence, stream, tokens};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi, ToResponse};

macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident = $description:literal;)*) => {$(
        $(#[$doc])*
        #[derive(ToResponse)]
        #[response(description = $description, content_type = "application/problem+json")]
        #[expect(dead_code, reason = "a description for the document, never made")]
        pub(super) struct $name<'a>(#[to_schema] ProblemBody<'a>);
    )*};
}

problems! {
    BadJson = "`malformed_json`";
    Unauthorized = "`missing_credentials`, `invalid_credentials`";
    Forbidden = "`forbidden`";
    NotFound = "`not_found`";
    TooLarge = "`payload_too_large`";
    NotJson = "`unsupported_media_type`";
    Invalid = "`invalid_request`";
    Limited = "`rate_limited`; `Retry-After` says when to try again";
    Away = "`presence_unavailable`, `store_unavailable`, `keys_unavailable`, `draining`; `Retry-After` says when to try again";
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "herenow",
        description = "A relay for messages that matter only now.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    paths(
        messages::send_message, batch::send_batch, messages::get_message, messages::recall_message,
        groups::add_member, groups::remove_member, groups::change_members, groups::list_members, groups::delete_group,
        stream::open_stream, devices::ack, devices::get_inbox, devices::set_state,
        presence::get_presence, presence::query_presence, presence::kick_device,
        tokens::create_token, tokens::create_ticket,
        callbacks::list_callbacks, callbacks::retry_callback, callbacks::retry_callbacks,
        ops::healthz, ops::readyz, ops::openapi,
    ),
    components(responses(BadJson, Unauthorized, Forbidden, NotFound, TooLarge, NotJson, Invalid, Limited, Away)),
    modifiers(&Security),
)]
struct Document;

struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let bearer = |description: &str| {
            let mut http = Http::new(HttpAuthScheme::Bearer);
            http.description = Some(description.to_owned());
            SecurityScheme::Http(http)
        };
        let in_query =
            |name: &str, text: &str| SecurityScheme::ApiKey(ApiKey::Query(ApiKeyValue::with_description(name, text)));
        components.add_security_scheme("api_key", bearer("A backend's API key"));
        components.add_security_scheme("device_token", bearer("A device's token (JWT)"));
        components.add_security_scheme("ticket", in_query("ticket", "A ticket, for a stream"));
        components.add_security_scheme("access_token", in_query("access_token", "A device's token, for a stream"));
    }
}

pub(super) fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// The document as JSON text, with a line end.
///
/// # Panics
/// Never: the document is made of what serializes.
pub fn openapi_json() -> String {
    let mut text = document().to_pretty_json().expect("the document is plain data");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::problem::Code;

    /// `UPDATE=1 cargo test openapi` writes the file anew.
    #[test]
    fn the_file_is_the_document() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/openapi.json");
        if std::env::vars().any(|(name, _)| name == "UPDATE") {
            std::fs::write(path, openapi_json()).unwrap();
        }
        assert!(std::fs::read_to_string(path).unwrap() == openapi_json(), "run: UPDATE=1 cargo test openapi");
    }

    #[test]
    fn every_code_that_can_be_answered_is_in_the_document() {
        let document = openapi_json();
        for code in Code::ALL.iter().filter(|code| !matches!(code, Code::MethodNotAllowed | Code::Internal)) {
            assert!(document.contains(&format!("`{}`", code.as_str())), "{}", code.as_str());
        }
    }
}
