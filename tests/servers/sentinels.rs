//! A master, a replica, and three Sentinels that watch over them.

use super::authority::Authority;
use super::process::{Process, directory, free_port, local, program, wait_for};
use super::redis::{self, Redis};
use std::fs;
use std::net::SocketAddr;
use tempfile::TempDir;

/// The name by which the Sentinels know the master.
pub const MASTER: &str = "herenow-master";

/// See the module's text.
pub struct Sentinels {
    servers: [Redis; 2],
    sentinels: Vec<Sentinel>,
}

struct Sentinel {
    port: u16,
    tls_port: Option<u16>,
    /// Kept for their `Drop`.
    _process: Process,
    _directory: TempDir,
}

impl Sentinel {
    fn start(master: SocketAddr, known: Option<(&Authority, &str)>) -> Self {
        loop {
            let (port, directory) = (free_port(), directory());
            let file = directory.path().join("sentinel.conf");
            let mut configuration = format!(
                "port {port}\nbind 127.0.0.1\nsentinel monitor {MASTER} {} {} 2\nsentinel down-after-milliseconds {MASTER} 1000\n\
                 sentinel failover-timeout {MASTER} 4000\n",
                master.ip(),
                master.port()
            );
            let tls_port = known.map(|(authority, name)| {
                authority.certify(name, directory.path());
                let tls_port = free_port();
                let settings = redis::tls_settings(tls_port);
                configuration.extend(settings.iter().map(|(name, value)| format!("{name} {value}\n")));
                tls_port
            });
            fs::write(&file, configuration).unwrap();
            let arguments = [file.to_str().unwrap().to_owned(), "--sentinel".to_owned()];
            let program = program("redis-server", "redis-server", &[]);
            let process = Process::start(&program, &arguments, directory.path(), None);
            if let Some(process) = process.serving("Sentinel ID is") {
                return Self { port, tls_port, _process: process, _directory: directory };
            }
        }
    }

    #[track_caller]
    fn ask(&self, command: &[&str]) -> String {
        redis::ask(local(self.port), command).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }
}

impl Sentinels {
    #[track_caller]
    pub fn start() -> Self {
        Self::start_as(None)
    }

    /// All of them, servers and Sentinels, speak TLS: see [`Redis::secure`].
    #[track_caller]
    pub fn secure(authority: &Authority, name: &str) -> Self {
        Self::start_as(Some((authority, name)))
    }

    #[track_caller]
    fn start_as(known: Option<(&Authority, &str)>) -> Self {
        let master = Redis::start_as(known, |_| vec![]);
        let servers = [master.replica_as(known), master];
        let sentinels: Vec<_> = (0..3).map(|_| Sentinel::start(servers[1].node_address(), known)).collect();
        for sentinel in &sentinels {
            wait_for("the Sentinels know each other and the replica", || {
                let known = sentinel.ask(&["SENTINEL", "MASTER", MASTER]);
                let has = |name: &str, value: &str| known.contains(&format!("\n{name}\n{value}\n"));
                if has("num-slaves", "1") && has("num-other-sentinels", "2") { Ok(()) } else { Err(known) }
            });
        }
        Self { servers, sentinels }
    }

    /// For nodes.
    pub fn sentinel_addresses(&self) -> Vec<SocketAddr> {
        self.sentinels.iter().map(|sentinel| local(sentinel.tls_port.unwrap_or(sentinel.port))).collect()
    }

    /// Of the first Sentinel, for nodes.
    pub fn url(&self) -> String {
        let address = self.sentinel_addresses()[0];
        if self.sentinels[0].tls_port.is_some() { redis::tls_url_at(address) } else { redis::url_at(address) }
    }

    /// The server that the Sentinels say is the master.
    #[track_caller]
    pub fn master(&self) -> &Redis {
        let port = self.master_port();
        self.servers.iter().find(|server| server.node_address().port() == port).expect("the master is one of the two")
    }

    fn master_port(&self) -> u16 {
        let answer = self.sentinels[0].ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER]);
        answer.lines().nth(1).unwrap().parse().unwrap()
    }

    /// The replica becomes the master, and some ten seconds later the Sentinels make the old master its replica.
    #[track_caller]
    pub fn failover(&self) {
        let before = self.master_port();
        self.sentinels[0].ask(&["SENTINEL", "FAILOVER", MASTER]);
        self.expect_another_master_than(before);
    }

    /// Waits until another is the master than the one on this port.
    #[track_caller]
    pub fn expect_another_master_than(&self, port: u16) {
        wait_for("another master", || {
            let now = self.master_port();
            if now != port && self.master().role() == "master" { Ok(()) } else { Err(now.to_string()) }
        });
    }
}
