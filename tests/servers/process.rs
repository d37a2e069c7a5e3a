//! Processes of servers: started on free ports, in directories of their own, and never left behind.

use parking_lot::Mutex;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Once, mpsc};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longer than any server takes for anything, on a machine whose cores and disk are busy with much else, too.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Waits until `look` says `Ok`; fails after [`PATIENCE`] with what it said last.
#[track_caller]
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(state) if Instant::now() > deadline => panic!("{what}: not within {PATIENCE:?}; last seen: {state}"),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// A port on which nothing listens. It lies below those that the kernel gives out by itself, so that nobody gets it while its server is
/// down for a moment.
pub fn free_port() -> u16 {
    loop {
        let port = rand::random_range(10_240..32_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// This port of this machine.
pub fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A directory that is removed when it is dropped, and if that never comes (as with statics, or after `kill -9`) by a later test process.
pub fn directory() -> TempDir {
    const PREFIX: &str = "herenow-servers-";
    static SWEEP: Once = Once::new();
    SWEEP.call_once(|| {
        for entry in fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
            if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                // Another test process may be at it too.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    });
    tempfile::Builder::new().prefix(&format!("{PREFIX}{}-", std::process::id())).tempdir().unwrap()
}

/// The path of a program; fails, saying what to install, if it is neither in PATH nor in one of these folders.
#[track_caller]
pub fn program(name: &str, package: &str, folders: &[PathBuf]) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).chain(folders.iter().cloned()).map(|folder| folder.join(name));
    let found = found.into_iter().find(|candidate| candidate.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing, and these tests need it: apt-get install {package}"))
}

/// A process that is killed when this is dropped, and when the test process ends in whatever way.
pub struct Process {
    child: Child,
    output: PathBuf,
    /// So long was the file before.
    said_before: usize,
}

impl Process {
    /// Runs `program` in `directory`, as `user` if one is named; what it says goes into a file there.
    pub fn start(program: &Path, arguments: &[String], directory: &Path, user: Option<&str>) -> Self {
        let output = directory.join("output");
        let file = File::options().create(true).append(true).open(&output).unwrap();
        let said_before = usize::try_from(file.metadata().unwrap().len()).unwrap();
        // It stays the same process: setpriv becomes the program.
        let mut command = Command::new(self::program("setpriv", "util-linux", &[]));
        command.args(["--pdeathsig", "KILL"]);
        if let Some(user) = user {
            command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"]);
        }
        command.arg(program).args(arguments).current_dir(directory).stdin(Stdio::null());
        command.stdout(file.try_clone().unwrap()).stderr(file);
        Self { child: spawn(command).unwrap(), output, said_before }
    }

    /// Its status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Waits for its end, which must be a good one.
    #[track_caller]
    pub fn wait(&mut self) {
        let status = wait_for("a server ends", || self.ended().ok_or_else(|| self.output()));
        assert!(status.success(), "{status}: {}", self.output());
    }

    /// All that it has said.
    pub fn output(&self) -> String {
        let all = fs::read_to_string(&self.output).unwrap_or_default();
        all.get(self.said_before..).unwrap_or_default().to_owned()
    }

    /// Waits until it says this; `None` if it has ended for a reason that passes: its port is taken, or its predecessor isn't quite gone.
    #[track_caller]
    pub fn serving(mut self, word: &str) -> Option<Self> {
        const PASSES: [&str; 4] = [
            "Failed listening on port",
            "could not create any TCP/IP sockets",
            "pre-existing shared memory block",
            "nowhere to listen on",
        ];
        wait_for("a server starts", || {
            let has_ended = self.ended().is_some();
            let output = self.output();
            if has_ended {
                assert!(PASSES.iter().any(|passes| output.contains(passes)), "a server doesn't start: {output}");
                return Ok(false);
            }
            if output.contains(word) { Ok(true) } else { Err(output) }
        })
        .then_some(self)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server's process, which is killed and started again while others hold the server.
pub type Slot = Mutex<Option<Process>>;

/// The signal at the parent's death is sent when the *thread* ends that has spawned a process, and a test's thread ends early: so one
/// thread spawns them all, and never ends.
fn spawn(command: Command) -> io::Result<Child> {
    type Job = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: LazyLock<mpsc::Sender<Job>> = LazyLock::new(|| {
        let (jobs, taken) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, done) in taken {
                let _ = done.send(command.spawn());
            }
        });
        jobs
    });
    let (done, spawned) = mpsc::channel();
    SPAWNER.send((command, done)).unwrap();
    spawned.recv().unwrap()
}
