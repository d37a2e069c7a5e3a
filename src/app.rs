//! The roof: builds everything from the configuration and runs it.

use crate::config::Config;

/// Serves until a signal ends the process. On the first start the credentials are shown once.
#[expect(clippy::unused_async, reason = "the signature that the command line relies on")]
pub async fn run(config: Config, first_start: bool) -> anyhow::Result<()> {
    anyhow::bail!("not built yet (listen {}, first start {first_start})", config.server.listen)
}

/// The OpenAPI document.
pub fn openapi_json() -> String {
    r#"{"openapi":"3.1.0","info":{"title":"herenow","version":"0"},"paths":{}}"#.to_owned()
}
