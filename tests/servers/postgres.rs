//! A PostgreSQL server, with databases that live as long as a test.

use super::authority::{Authority, CERTIFICATE, KEY};
use super::process::{PATIENCE, Process, Slot, directory, free_port, local, program, wait_for};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use tempfile::TempDir;

/// It refuses to run as root.
pub(super) const USER: &str = "postgres";

/// See the module's text.
pub struct Postgres {
    port: u16,
    settings: Vec<String>,
    directory: TempDir,
    process: Slot,
}

impl Postgres {
    /// One for all tests of this process: let each take a database of its own, and never end it.
    pub fn shared() -> &'static Self {
        static SHARED: LazyLock<Postgres> = LazyLock::new(Postgres::start);
        &SHARED
    }

    /// One of its own.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With further settings, `name=value`, stronger than those for all tests.
    #[track_caller]
    pub fn start_with(settings: &[&str]) -> Self {
        Self::start_as(None, settings)
    }

    /// One that speaks TLS, too, known by a certificate of this authority for this name.
    #[track_caller]
    pub fn secure(authority: &Authority, name: &str) -> Self {
        // The paths are relative to its data.
        let files = [("ssl_cert_file", CERTIFICATE), ("ssl_key_file", KEY)];
        let files = files.map(|(setting, file)| format!("{setting}=../{file}"));
        Self::start_as(Some((authority, name)), &["ssl=on", &files[0], &files[1]])
    }

    #[track_caller]
    fn start_as(known: Option<(&Authority, &str)>, settings: &[&str]) -> Self {
        let directory = directory();
        if let Some((authority, name)) = known {
            authority.certify(name, directory.path());
        }
        hand_over(directory.path());
        let words = ["-D", "data", "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"];
        let mut initdb = run("initdb", &words.map(str::to_owned), directory.path());
        initdb.wait();
        let settings = settings.iter().map(ToString::to_string).collect();
        let mut postgres = Self { port: free_port(), settings, directory, process: Slot::default() };
        while !postgres.launch() {
            postgres.port = free_port();
        }
        postgres
    }

    /// False if it must be tried again: see [`Process::serving`].
    #[track_caller]
    fn launch(&self) -> bool {
        let port = format!("port={}", self.port);
        let fixed = [
            &*port,
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "max_connections=300",
            // A killed process loses nothing by these, only a killed machine would.
            "fsync=off",
            "full_page_writes=off",
        ];
        let mut words = vec!["-D", "data"];
        for setting in fixed.into_iter().chain(self.settings.iter().map(String::as_str)) {
            words.extend(["-c", setting]);
        }
        let words: Vec<_> = words.into_iter().map(str::to_owned).collect();
        let process = run("postgres", &words, self.directory.path());
        let process = process.serving("database system is ready to accept connections");
        let is_started = process.is_some();
        *self.process.lock() = process;
        is_started
    }

    pub fn address(&self) -> SocketAddr {
        local(self.port)
    }

    /// A new and empty database.
    #[track_caller]
    pub fn database(&self) -> Database {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.sql(&format!("CREATE DATABASE {name}"));
        Database { server: self.address(), name }
    }

    /// Runs statements as the superuser, outside of the tests' databases; rows come as lines, columns between `|`.
    #[track_caller]
    pub fn sql(&self, statements: &str) -> String {
        psql(self.address(), USER, statements).unwrap_or_else(|error| panic!("{statements}: {error}"))
    }

    /// A connection that does nothing but be there; `None` if the server has no more to give.
    pub fn take_connection(&self) -> Option<TcpStream> {
        let parameters = format!("user\0{USER}\0database\0{USER}\0\0");
        let length = u32::try_from(8 + parameters.len()).unwrap();
        let mut tcp = TcpStream::connect(self.address()).ok()?;
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        // The protocol's version 3.0 is spelled so.
        tcp.write_all(&[&length.to_be_bytes(), &196_608_u32.to_be_bytes(), parameters.as_bytes()].concat()).ok()?;
        loop {
            let mut head = [0; 5];
            tcp.read_exact(&mut head).ok()?;
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) - 4;
            tcp.read_exact(&mut vec![0; length.try_into().unwrap()]).ok()?;
            match head[0] {
                b'E' => return None,
                b'Z' => return Some(tcp),
                _ => {}
            }
        }
    }

    /// `kill -9` of the whole server.
    pub fn kill(&self) {
        *self.process.lock() = None;
    }

    /// As an operator restarts it: connections are cut, what was committed is written.
    #[track_caller]
    pub fn stop_fast(&self) {
        let mut process = self.process.lock().take().expect("it runs");
        process.signal("INT");
        process.wait();
    }

    /// The same again, on the same port and data; ends it first if it runs.
    #[track_caller]
    pub fn restart(&self) {
        if self.process.lock().is_some() {
            self.stop_fast();
        }
        // After a kill its children may need a moment to notice.
        wait_for("the server starts again", || if self.launch() { Ok(()) } else { Err(String::new()) });
    }
}

/// A database of one test, dropped with it.
pub struct Database {
    server: SocketAddr,
    name: String,
}

impl Database {
    pub fn url(&self) -> String {
        self.url_at(self.server)
    }

    /// The same, reached by another way.
    pub fn url_at(&self, address: SocketAddr) -> String {
        format!("postgres://{USER}@{address}/{}", self.name)
    }

    /// Runs statements in it; rows come as lines, columns between `|`.
    #[track_caller]
    pub fn sql(&self, statements: &str) -> String {
        psql(self.server, &self.name, statements).unwrap_or_else(|error| panic!("{statements}: {error}"))
    }

    /// All rows of all tables as text.
    #[track_caller]
    pub fn dump(&self) -> String {
        self.sql(
            "SET bytea_output = 'escape';
            SELECT format('SELECT t::text FROM %s t', oid::regclass) FROM pg_class
            WHERE relkind = 'r' AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace) \\gexec",
        )
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // The server may be gone already.
        let _ = psql(self.server, USER, &format!("DROP DATABASE {} WITH (FORCE)", self.name));
    }
}

fn psql(server: SocketAddr, database: &str, statements: &str) -> Result<String, String> {
    // It has its bound from outside: a server may stop to answer at any time.
    let mut command = Command::new(program("timeout", "coreutils", &[]));
    command.arg(PATIENCE.as_secs().to_string()).arg(find("psql"));
    command.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", USER, "-d", database]);
    command.args(["-p", &server.port().to_string()]);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // If it has ended already, its status says why.
    let _ = child.stdin.take().unwrap().write_all(statements.as_bytes());
    let output = child.wait_with_output().unwrap();
    let said = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end().to_owned();
    match output.status.code() {
        Some(0) => Ok(said(output.stdout)),
        Some(124) => Err(format!("no answer within {PATIENCE:?}; {}", said(output.stderr))),
        _ => Err(said(output.stderr)),
    }
}

fn run(name: &str, arguments: &[String], directory: &Path) -> Process {
    Process::start(&find(name), arguments, directory, other_user())
}

/// Debian keeps its programs out of PATH.
#[track_caller]
fn find(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let folders: Vec<_> = versions.map(|version| version.path().join("bin")).collect();
    program(name, "postgresql", &folders)
}

/// Gives a directory, with all that is in it, to who runs the server.
pub(super) fn hand_over(directory: &Path) {
    if let Some(user) = other_user() {
        assert!(Command::new("chown").args(["-R", user]).arg(directory).status().unwrap().success());
    }
}

/// Who runs the server if we must not.
pub(super) fn other_user() -> Option<&'static str> {
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    is_root.then_some(USER)
}
