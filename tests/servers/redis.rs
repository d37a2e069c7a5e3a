//! A Redis server that forgets all when it ends.

use super::authority::{Authority, CERTIFICATE, KEY, ROOT};
use super::process::{Process, Slot, directory, free_port, local, program, wait_for};
use std::io::{self, BufRead, BufReader, Lines, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::LazyLock;
use std::time::Duration;
use tempfile::TempDir;

/// Longer than an answer takes, short enough for asking again.
const ANSWER: Duration = Duration::from_secs(5);

/// See the module's text.
pub struct Redis {
    port: u16,
    /// It speaks TLS here, too.
    tls_port: Option<u16>,
    arguments: Vec<String>,
    directory: TempDir,
    process: Slot,
}

impl Redis {
    /// One for all tests of this process: let each use a prefix of its own, and never end it.
    pub fn shared() -> &'static Self {
        static SHARED: LazyLock<Redis> = LazyLock::new(Redis::start);
        &SHARED
    }

    /// One of its own.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(|_| vec![])
    }

    /// With further arguments, which may depend on the port.
    #[track_caller]
    pub fn start_with(arguments: impl Fn(u16) -> Vec<String>) -> Self {
        Self::start_as(None, arguments)
    }

    /// One that nodes and other servers reach by TLS, known by a certificate of this authority for this name.
    #[track_caller]
    pub fn secure(authority: &Authority, name: &str) -> Self {
        Self::start_as(Some((authority, name)), |_| vec![])
    }

    #[track_caller]
    pub fn start_as(known: Option<(&Authority, &str)>, arguments: impl Fn(u16) -> Vec<String>) -> Self {
        loop {
            let (port, directory) = (free_port(), directory());
            let fixed = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0"];
            let fixed = fixed.into_iter().map(str::to_owned);
            let own = ["--port".to_owned(), port.to_string()];
            let mut arguments: Vec<_> = own.into_iter().chain(fixed).chain(arguments(port)).collect();
            let tls_port = known.map(|(authority, name)| {
                authority.certify(name, directory.path());
                let tls_port = free_port();
                let settings = tls_settings(tls_port);
                arguments.extend(settings.into_iter().flat_map(|(name, value)| [format!("--{name}"), value]));
                arguments.extend(["--tls-cluster", "yes"].map(str::to_owned));
                tls_port
            });
            let redis = Self { port, tls_port, arguments, directory, process: Slot::default() };
            if redis.launch() {
                return redis;
            }
        }
    }

    /// False if it must be tried again: see [`Process::serving`].
    #[track_caller]
    fn launch(&self) -> bool {
        let program = program("redis-server", "redis-server", &[]);
        let process = Process::start(&program, &self.arguments, self.directory.path(), None);
        let process = process.serving("Ready to accept connections");
        let is_started = process.is_some();
        *self.process.lock() = process;
        is_started
    }

    /// Another one that copies this one.
    #[track_caller]
    pub fn replica(&self) -> Self {
        self.replica_as(None)
    }

    /// The same, by TLS if the two speak that.
    #[track_caller]
    pub fn replica_as(&self, known: Option<(&Authority, &str)>) -> Self {
        let port = self.node_address().port().to_string();
        let replica = Self::start_as(known, |_| ["--replicaof", "127.0.0.1", &port].map(str::to_owned).into());
        replica.expect_copied();
        replica
    }

    /// Where the test reaches it, without TLS.
    pub fn address(&self) -> SocketAddr {
        local(self.port)
    }

    /// Where nodes and other servers are to reach it.
    pub fn node_address(&self) -> SocketAddr {
        local(self.tls_port.unwrap_or(self.port))
    }

    /// For nodes.
    pub fn url(&self) -> String {
        if self.tls_port.is_some() { tls_url_at(self.node_address()) } else { url_at(self.address()) }
    }

    /// `kill -9`
    pub fn kill(&self) {
        *self.process.lock() = None;
    }

    /// The same again on the same port, empty; ends it first if it runs.
    #[track_caller]
    pub fn restart(&self) {
        self.kill();
        wait_for("the server gets its port again", || if self.launch() { Ok(()) } else { Err(String::new()) });
    }

    /// From now on it does nothing, though its connections stay open.
    #[track_caller]
    pub fn pause(&self) {
        self.process.lock().as_ref().expect("it runs").signal("STOP");
    }

    #[track_caller]
    pub fn resume(&self) {
        self.process.lock().as_ref().expect("it runs").signal("CONT");
    }

    /// What the server answers to a command: texts and numbers, one a line.
    #[track_caller]
    pub fn cli(&self, command: &[&str]) -> String {
        self.try_cli(command).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// The same from a server that may be away or refuse.
    pub fn try_cli(&self, command: &[&str]) -> io::Result<String> {
        ask(self.address(), command)
    }

    /// Whether it was started, and not killed since.
    pub fn runs(&self) -> bool {
        self.process.lock().is_some()
    }

    /// Of a replica: waits until it has all that its master has.
    #[track_caller]
    pub fn expect_copied(&self) {
        wait_for("the replica has copied its master", || {
            let info = self.cli(&["INFO", "replication"]);
            if info.contains("master_link_status:up") { Ok(()) } else { Err(info) }
        });
    }

    /// Of a Cluster's node: where it talks with the others.
    pub fn cluster_port(&self) -> String {
        let answer = self.cli(&["CONFIG", "GET", "cluster-port"]);
        answer.lines().nth(1).unwrap().to_owned()
    }

    /// Every key that begins with this, and all that stands there, as text.
    #[track_caller]
    pub fn dump(&self, prefix: &str) -> String {
        const ALL: &str = "
            local found = {}
            for _, key in ipairs(redis.call('KEYS', '*')) do
                if string.sub(key, 1, #ARGV[1]) == ARGV[1] then
                    local kind = redis.call('TYPE', key).ok
                    local read = {string = {'GET'}, hash = {'HGETALL'}, set = {'SMEMBERS'}, list = {'LRANGE', 0, -1},
                        zset = {'ZRANGE', 0, -1, 'WITHSCORES'}, stream = {'XRANGE', '-', '+'}}
                    local command = read[kind]
                    table.insert(command, 2, key)
                    table.insert(found, {key, redis.call(unpack(command))})
                end
            end
            return found";
        self.cli(&["EVAL", ALL, "0", prefix])
    }

    /// Begins to look at all commands that it is given.
    #[track_caller]
    pub fn monitor(&self) -> Monitor<'_> {
        let mut tcp = TcpStream::connect(self.address()).unwrap();
        tcp.set_read_timeout(Some(ANSWER)).unwrap();
        tcp.write_all(b"MONITOR\r\n").unwrap();
        let mut monitor = Monitor { redis: self, lines: BufReader::new(tcp).lines() };
        assert_eq!(monitor.next(), "+OK");
        monitor
    }

    /// Its part in replication: `master` or `slave`.
    #[track_caller]
    pub fn role(&self) -> String {
        self.cli(&["ROLE"]).lines().next().unwrap_or_default().to_owned()
    }
}

/// See [`Redis::monitor`].
pub struct Monitor<'a> {
    redis: &'a Redis,
    lines: Lines<BufReader<TcpStream>>,
}

impl Monitor<'_> {
    #[track_caller]
    fn next(&mut self) -> String {
        self.lines.next().expect("MONITOR goes on").unwrap()
    }

    /// All commands until now, a line each.
    #[track_caller]
    pub fn end(mut self) -> Vec<String> {
        self.redis.cli(&["ECHO", "the end of MONITOR"]);
        let lines = std::iter::from_fn(|| Some(self.next()));
        lines.take_while(|line| !line.contains("the end of MONITOR")).collect()
    }
}

/// The URL of whatever Redis is behind this address.
pub fn url_at(address: SocketAddr) -> String {
    format!("redis://{address}/")
}

/// The same for one that speaks TLS there.
pub fn tls_url_at(address: SocketAddr) -> String {
    format!("rediss://{address}/")
}

/// What has a server, or a Sentinel, speak TLS on this port with the certificate in its directory, and with other servers only TLS.
pub fn tls_settings(port: u16) -> Vec<(&'static str, String)> {
    let port = port.to_string();
    let settings = [
        ("tls-port", &*port),
        ("tls-cert-file", CERTIFICATE),
        ("tls-key-file", KEY),
        ("tls-ca-cert-file", ROOT),
        ("tls-auth-clients", "no"),
        ("tls-replication", "yes"),
    ];
    settings.map(|(name, value)| (name, value.to_owned())).into()
}

/// What the server at this address answers to a command.
pub fn ask(address: SocketAddr, command: &[&str]) -> io::Result<String> {
    let mut tcp = TcpStream::connect_timeout(&address, ANSWER)?;
    tcp.set_read_timeout(Some(ANSWER))?;
    let words = command.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
    tcp.write_all(format!("*{}\r\n{}", command.len(), words.collect::<String>()).as_bytes())?;
    let mut lines = vec![];
    read_value(&mut BufReader::new(tcp), &mut lines)?;
    Ok(lines.join("\n"))
}

/// Reads one value of the protocol (RESP2), flattened.
fn read_value(from: &mut impl BufRead, lines: &mut Vec<String>) -> io::Result<()> {
    let mut head = String::new();
    if from.read_line(&mut head)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (kind, rest) = head.trim_end().split_at(1);
    let length = || rest.parse::<usize>().ok();
    match (kind, length()) {
        ("-", _) => return Err(io::Error::other(rest)),
        ("$", Some(length)) => {
            let mut text = vec![0; length + 2];
            from.read_exact(&mut text)?;
            lines.push(String::from_utf8_lossy(&text[..length]).into_owned());
        }
        ("*", Some(length)) => {
            for _ in 0..length {
                read_value(from, lines)?;
            }
        }
        // A status or a number; or nothing, by a length of -1.
        (kind, _) => lines.push(if matches!(kind, "+" | ":") { rest.to_owned() } else { String::new() }),
    }
    Ok(())
}
