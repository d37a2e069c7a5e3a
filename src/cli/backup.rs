//! `herenow backup`

use super::args::SourceArgs;
use super::print;
use crate::app;
use crate::credentials::Credentials;
use clap::Args;
use std::path::PathBuf;

pub(super) const EXAMPLE: &str = "\
Example:
  herenow backup --data-dir /var/lib/herenow /backup/herenow-$(date +%F).db

How to restore it: docs/operations.md. With PostgreSQL (store.url), use its own tools.";

#[derive(Args)]
pub(super) struct BackupArgs {
    /// Where the copy goes: a new file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    source: SourceArgs,
}

pub(super) fn run(args: &BackupArgs) -> anyhow::Result<()> {
    let config = args.source.load()?;
    let copied = app::backup(&config, &args.file)?;
    print(&format!(
        "{}: the store as of {}, {}.{} MB, copied and checked in {:.1} s",
        args.file.display(),
        copied.as_of,
        copied.bytes / 1_000_000,
        copied.bytes / 100_000 % 10,
        copied.took.as_secs_f64()
    ))?;
    if let Some(path) = Credentials::file(&config.data_dir) {
        eprintln!("note: the credentials are not in it: keep a copy of {} as well", path.display());
    }
    Ok(())
}
