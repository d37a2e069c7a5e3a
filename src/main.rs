//! The herenow program.

use std::process::ExitCode;

fn main() -> ExitCode {
    herenow::cli::run()
}
