//! `herenow serve`

use super::args::ServeArgs;
use crate::config;
use crate::credentials::DataDir;
use crate::{app, logging, traces};
use tokio::runtime::Builder;

pub(super) const EXAMPLE: &str = "\
Examples:
  herenow serve
  herenow serve --listen 0.0.0.0:8080 --data-dir /var/lib/herenow
  HERENOW_CALLBACKS__PUSH__URL=https://example.com/push herenow serve

Every key of the configuration: docs/configuration.md, or `herenow config check`.";

pub(super) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let loaded = config::load(&args.sources())?;
    let mut config = loaded.config;
    let (tracer, exporter) = traces::start(&config.otel, &config.cluster.node)?.unzip();
    logging::start(&config.log, tracer)?;
    for warning in loaded.warnings {
        tracing::warn!("{warning}");
    }
    let data_dir = DataDir::open(&config.data_dir)?;
    let (credentials, first_start) = data_dir.credentials()?;
    credentials.fill(&mut config);
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(app::run(config, first_start, exporter));
    // The lock goes last: nothing of this process may touch the directory after it.
    drop(runtime);
    drop(data_dir);
    ended
}
