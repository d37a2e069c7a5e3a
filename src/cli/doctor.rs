//! `herenow doctor`

use super::args::ServeArgs;
use super::{client, print, printable};
use crate::config;
use crate::doctor::{self, Report};
use crate::domain::finding::{Finding, Level};
use clap::Args;
use serde_json::json;
use std::process::ExitCode;

pub(super) const EXAMPLE: &str = "\
It only looks, beside a herenow that runs or without one. Exit code 0: all is well; 1: warnings; 2: errors.

Example:
  herenow doctor --config /etc/herenow.toml";

#[derive(Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    serve: ServeArgs,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let report = match config::load(&args.serve.sources()) {
        Ok(loaded) => client::block_on(async { Ok(doctor::examine(&loaded).await) })?,
        Err(flaws) => Report::of_flaws(&flaws),
    };
    if args.json {
        print(&json!({"verdict": report.worst(), "findings": report.findings}).to_string())?;
    } else {
        report.findings.iter().flat_map(lines).try_for_each(|line| print(&printable(&line)))?;
        print(&summary(&report))?;
    }
    Ok(match report.worst() {
        Level::Well => ExitCode::SUCCESS,
        Level::Warning => ExitCode::from(1),
        Level::Error => ExitCode::from(2),
    })
}

fn lines(finding: &Finding) -> Vec<String> {
    let word = match finding.level {
        Level::Well => "ok",
        Level::Warning => "warning",
        Level::Error => "error",
    };
    let found = format!("{word:8} {}: {}", finding.about, finding.found);
    std::iter::once(found).chain(finding.advice.iter().map(|advice| format!("         -> {advice}"))).collect()
}

fn summary(report: &Report) -> String {
    let count = |level| report.findings.iter().filter(|finding| finding.level == level).count();
    match report.worst() {
        Level::Well => "all is well".to_owned(),
        Level::Warning | Level::Error => {
            format!("errors: {}, warnings: {}", count(Level::Error), count(Level::Warning))
        }
    }
}
