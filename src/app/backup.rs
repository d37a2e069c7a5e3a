//! A copy of the durable plane while it is in use, where that is ours to make.

use crate::backend::sqlite::{self, Copied};
use crate::config::Config;
use std::path::Path;

/// Copies the store to the new file `to`, whether or not a node works with it. Blocks until the copy is whole and on the disk.
pub fn backup(config: &Config, to: &Path) -> anyhow::Result<Copied> {
    anyhow::ensure!(
        config.store.url.is_none(),
        "the store is PostgreSQL (`store.url`): back it up with its own tools, such as pg_dump or pg_basebackup"
    );
    Ok(sqlite::backup(&config.data_dir, to)?)
}
