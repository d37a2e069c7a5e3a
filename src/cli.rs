//! The command line: `herenow serve` and the clients of the same API for the shell.
//!
//! Answers go to standard output, everything else to standard error. Exit code 0: done; 1: it failed, with the reason; 2: wrong usage.

mod args;
mod backup;
mod client;
mod doctor;
mod listen;
mod presence;
mod ready;
mod send;
mod serve;
mod sse;
mod token;

use crate::config::{self, ConfigErrors};
use args::ServeArgs;
use clap::{Parser, Subcommand};
use std::io::{self, Write};
use std::process::ExitCode;

/// Relays messages to users' devices: those that matter only now, and those that must arrive.
#[derive(Parser)]
#[command(name = "herenow", version, args_conflicts_with_subcommands = true, after_help = TRY)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

const TRY: &str = "\
Without a command, herenow serves. To see it work, in three shells in the same directory:
  herenow serve
  herenow listen bob
  herenow send --from alice --to bob --online-only '{\"typing\":true}'";

#[derive(Subcommand)]
enum Command {
    /// Run the relay
    #[command(after_help = serve::EXAMPLE)]
    Serve(ServeArgs),
    /// Make a token with which a device may connect
    #[command(after_help = token::EXAMPLE)]
    Token(token::TokenArgs),
    /// Send a message
    #[command(after_help = send::EXAMPLE)]
    Send(send::SendArgs),
    /// Be a device: show what a user receives, as it comes
    #[command(after_help = listen::EXAMPLE)]
    Listen(listen::ListenArgs),
    /// Show who is online, on which devices
    #[command(after_help = presence::EXAMPLE)]
    Presence(presence::PresenceArgs),
    /// Ask whether a herenow can take sends and streams: exit code 0 or 1, for health checks
    #[command(after_help = ready::EXAMPLE)]
    Ready(ready::ReadyArgs),
    /// Copy the store to a file, while herenow runs or not
    #[command(after_help = backup::EXAMPLE)]
    Backup(backup::BackupArgs),
    /// Look for what is wrong: the configuration, the machine, the store, the endpoints
    #[command(after_help = doctor::EXAMPLE)]
    Doctor(doctor::DoctorArgs),
    /// Print the OpenAPI document of the HTTP API
    #[command(after_help = "Example:\n  herenow openapi > openapi.json")]
    Openapi,
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print every key in force, secrets masked, and where it was given; or all that is wrong
    #[command(after_help = "Example:\n  herenow config check --config /etc/herenow.toml")]
    Check(ServeArgs),
}

/// Runs the program with the arguments of this process.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli.command.unwrap_or(Command::Serve(cli.serve))) {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error);
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    let done = match command {
        Command::Serve(args) => serve::run(&args),
        Command::Token(args) => token::run(&args),
        Command::Send(args) => client::block_on(send::run(&args)),
        Command::Listen(args) => client::block_on(listen::run(args)),
        Command::Presence(args) => client::block_on(presence::run(&args)),
        Command::Ready(args) => client::block_on(ready::run(&args)),
        Command::Backup(args) => backup::run(&args),
        Command::Doctor(args) => return doctor::run(&args),
        Command::Openapi => print(crate::http::openapi_json().trim_end()),
        Command::Config(ConfigCommand::Check(args)) => check(&args),
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn check(args: &ServeArgs) -> anyhow::Result<()> {
    let loaded = config::load(&args.sources())?;
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    print(loaded.report().trim_end())
}

/// A line for standard output. `println!` would panic when the reader has gone.
fn print(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout(), "{line}")?)
}

/// `herenow listen bob | head -1` is no failure.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

fn tell(error: &anyhow::Error) {
    match error.downcast_ref::<ConfigErrors>() {
        Some(flaws) => eprintln!("error: the configuration is wrong\n  {}", flaws.to_string().replace('\n', "\n  ")),
        None => eprintln!("error: {error:#}"),
    }
}

/// Shows text of others without letting it steer the terminal.
fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_others_wrote_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2J\u{9b}ü"), "a\\u{1b}[2J\\u{9b}ü");
    }
}
