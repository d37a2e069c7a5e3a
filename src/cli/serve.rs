//! `herenow serve`

use super::args::ServeArgs;
use crate::config;
use crate::credentials::DataDir;
use crate::{app, logging, traces};
use app::Start;
use tokio::runtime::Builder;

pub(super) const EXAMPLE: &str = "\
Examples:
  herenow serve
  herenow serve --listen 0.0.0.0:8080 --data-dir /var/lib/herenow
  HERENOW_CALLBACKS__PUSH__URL=https://example.com/push herenow serve

Every key of the configuration: docs/configuration.md, or `herenow config check`.";

pub(super) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let mut loaded = config::load(&args.sources())?;
    let (tracer, exporter) = traces::start(&loaded.config.otel, &loaded.config.cluster.node)?.unzip();
    let level = logging::start(&loaded.config.log, tracer)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let data_dir = DataDir::open(&loaded.config.data_dir)?;
    let (credentials, first_start) = data_dir.credentials()?;
    credentials.fill(&mut loaded.config);
    let args = args.clone();
    let read = Box::new(move || {
        let mut loaded = config::load(&args.sources())?;
        credentials.fill(&mut loaded.config);
        Ok(loaded)
    });
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(app::run(Start { loaded, first_start, read, level }, exporter));
    // The lock goes last: nothing of this process may touch the directory after it.
    drop(runtime);
    drop(data_dir);
    ended
}
