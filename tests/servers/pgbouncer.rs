//! PgBouncer before a PostgreSQL.

use super::postgres::{USER, hand_over, other_user};
use super::process::{Process, directory, free_port, local, program};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use tempfile::TempDir;

/// See the module's text.
pub struct PgBouncer {
    port: u16,
    /// Kept for their `Drop`.
    _process: Process,
    _directory: TempDir,
}

impl PgBouncer {
    /// `mode` says for how long it lends a connection: `session`, `transaction`, `statement`.
    #[track_caller]
    pub fn start(server: SocketAddr, mode: &str) -> Self {
        let program = program("pgbouncer", "pgbouncer", &[PathBuf::from("/usr/sbin")]);
        loop {
            let (port, directory) = (free_port(), directory());
            let configuration = format!(
                "[databases]\n* = host={} port={} user={USER}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
                 unix_socket_dir =\nauth_type = any\npool_mode = {mode}\n",
                server.ip(),
                server.port()
            );
            let file = directory.path().join("pgbouncer.ini");
            fs::write(&file, configuration).unwrap();
            hand_over(directory.path());
            // It refuses to run as root, too.
            let process = Process::start(&program, &["pgbouncer.ini".to_owned()], directory.path(), other_user());
            if let Some(process) = process.serving("process up") {
                return Self { port, _process: process, _directory: directory };
            }
        }
    }

    pub fn address(&self) -> SocketAddr {
        local(self.port)
    }
}
