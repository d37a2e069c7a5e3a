//! A node: the real program on free ports, with a directory and a log of its own, which is looked through at the end of every test.

use super::device::{Device, StreamRequest};
use super::http::{Answer, Request};
use super::planes::{self, Planes};
use super::{SOON, eventually};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
// Not poisoned by a test that fails.
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

pub const API_KEY: &str = "hk_an-api-key-of-the-tests";
pub const DEVICE_SECRET: &str = "a-device-secret-of-the-tests-with-32-bytes";

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_herenow");

/// Shorter than the default, so that what a dead node leaves behind is gone soon.
const LEASE: &str = "cluster.lease_s=3";

/// What must leave no trace: online-only payloads in no place at all, credentials in no log and on no plane. Nodes of a cluster have them
/// in common.
#[derive(Clone, Debug)]
pub struct Secrets(Arc<Noted>);

#[derive(Debug)]
struct Noted {
    /// In every online-only payload.
    canary: String,
    next_canary: AtomicU64,
    credentials: Mutex<Vec<String>>,
}

impl Default for Secrets {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let canary = format!("CANARY{}x{}x", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let credentials = Mutex::new(vec![API_KEY.to_owned(), DEVICE_SECRET.to_owned()]);
        Self(Arc::new(Noted { canary, next_canary: AtomicU64::new(0), credentials }))
    }
}

impl Secrets {
    pub fn note(&self, credential: &str) {
        self.0.credentials.lock().push(credential.to_owned());
    }

    /// A text that must leave no trace, and that no other message has.
    pub fn canary(&self) -> String {
        let Noted { canary, next_canary, .. } = &*self.0;
        format!("{canary}{}", next_canary.fetch_add(1, Ordering::Relaxed))
    }

    /// Fails if an online-only payload is in this text.
    #[track_caller]
    pub fn check_payload(&self, place: &str, text: &str) {
        let found = text.lines().find(|line| line.contains(&self.0.canary));
        assert_eq!(found, None, "an online-only payload is in {place}");
    }

    /// Fails if a credential is in this text.
    #[track_caller]
    pub fn check_credentials(&self, place: &str, text: &str) {
        let credentials = self.0.credentials.lock();
        for line in text.lines() {
            let found = credentials.iter().find(|credential| line.contains(credential.as_str()));
            assert_eq!(found, None, "a credential is in {place}: {line}");
        }
    }
}

/// How a node is to be started.
#[derive(Clone, Default)]
pub struct Setup {
    set: Vec<String>,
    env: Vec<(String, String)>,
    self_made: bool,
    file: Option<String>,
    without_admin: bool,
    without_level: bool,
    wrapper: Vec<String>,
    data_dir: Option<PathBuf>,
    /// The planes shared with other nodes, by which addresses they are reached, and what the nodes share besides.
    shared: Option<(Arc<Planes>, Option<[SocketAddr; 2]>, Secrets)>,
}

impl Setup {
    /// `key=value`, stronger than the harness's own.
    #[must_use]
    pub fn set(mut self, key_and_value: &str) -> Self {
        self.set.push(key_and_value.to_owned());
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The log tells what it tells by default; else the harness has it tell everything.
    #[must_use]
    pub fn without_level(mut self) -> Self {
        self.without_level = true;
        self
    }

    /// Each of these, `key=value`.
    #[must_use]
    pub fn set_all(self, keys_and_values: &[String]) -> Self {
        keys_and_values.iter().fold(self, |setup, key_and_value| setup.set(key_and_value))
    }

    /// Runs the program by this command, which must become the program and not its parent.
    #[must_use]
    pub fn wrapper(mut self, command: &[&str]) -> Self {
        self.wrapper = command.iter().map(ToString::to_string).collect();
        self
    }

    /// Another directory than one of the harness's own.
    #[must_use]
    pub fn data_dir(mut self, path: &Path) -> Self {
        self.data_dir = Some(path.to_owned());
        self
    }

    /// The node makes its credentials itself, as on a first start without any configuration.
    #[must_use]
    pub fn self_made(mut self) -> Self {
        self.self_made = true;
        self
    }

    /// This is in its configuration file, and none of the harness's credentials are in the environment, which is stronger.
    #[must_use]
    pub fn file(mut self, toml: &str) -> Self {
        self.file = Some(toml.to_owned());
        self
    }

    /// The node has no metrics then, and they are not looked at.
    #[must_use]
    pub fn without_admin(mut self) -> Self {
        self.without_admin = true;
        self.set("server.admin_listen=")
    }

    /// One of several nodes on these planes.
    #[must_use]
    pub(super) fn on(mut self, planes: &Arc<Planes>, by: Option<[SocketAddr; 2]>, secrets: &Secrets) -> Self {
        self.shared = Some((Arc::clone(planes), by, secrets.clone()));
        self
    }

    #[track_caller]
    pub fn start(mut self) -> Node {
        let (planes, by, secrets) = match self.shared.take() {
            Some((planes, by, secrets)) => (Some(planes), by, secrets),
            None => (planes::on_cluster().then(|| Arc::new(Planes::shared())), None, Secrets::default()),
        };
        let plane_settings = planes.as_ref().map_or_else(Vec::new, |planes| {
            let lease = [LEASE.to_owned()];
            planes.settings(by).into_iter().chain(lease).collect()
        });
        let mut node = Node {
            setup: self,
            plane_settings,
            directory: tempfile::tempdir().unwrap(),
            process: None,
            log: Log::default(),
            stdout: Log::default(),
            address: ([127, 0, 0, 1], 0).into(),
            admin: ([127, 0, 0, 1], 0).into(),
            secrets,
            planes,
        };
        node.launch();
        node
    }
}

/// Text that a thread gathers from a pipe.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl Log {
    fn text(&self) -> MutexGuard<'_, String> {
        self.0.lock()
    }

    fn gather(&self, pipe: impl Read + Send + 'static) -> JoinHandle<()> {
        let log = self.clone();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(pipe);
            let mut line = vec![];
            while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                log.text().push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        })
    }
}

struct Process {
    child: Child,
    gatherers: Vec<JoinHandle<()>>,
}

/// See the module's text.
pub struct Node {
    setup: Setup,
    /// `key=value`, for its planes.
    plane_settings: Vec<String>,
    directory: TempDir,
    /// `None` after it was ended on purpose.
    process: Option<Process>,
    log: Log,
    stdout: Log,
    address: SocketAddr,
    admin: SocketAddr,
    secrets: Secrets,
    /// `None`: its own, inside of the process.
    planes: Option<Arc<Planes>>,
}

impl Node {
    /// With the harness's configuration.
    #[track_caller]
    pub fn start() -> Self {
        Setup::default().start()
    }

    /// With these keys, each as `key=value`.
    #[track_caller]
    pub fn with(set: &[&str]) -> Self {
        set.iter().fold(Setup::default(), |setup, key_and_value| setup.set(key_and_value)).start()
    }

    pub fn setup() -> Setup {
        Setup::default()
    }

    #[track_caller]
    fn launch(&mut self) {
        let logged = self.log.text().len();
        let words: Vec<&str> = self.setup.wrapper.iter().map(String::as_str).chain([PROGRAM]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        command.current_dir(self.directory.path()).env_clear().arg("serve").arg("--data-dir").arg(self.data_dir());
        let own =
            ["server.listen=127.0.0.1:0", "server.admin_listen=127.0.0.1:0", "log.level=trace", "server.drain_s=1"];
        for own in own.into_iter().chain(self.plane_settings.iter().map(String::as_str)) {
            let key = own.split('=').next().unwrap();
            let is_wanted = key != "log.level" || !self.setup.without_level;
            if is_wanted && !self.setup.set.iter().any(|set| set.split('=').next() == Some(key)) {
                command.args(["--set", own]);
            }
        }
        if let Some(toml) = &self.setup.file {
            self.write_file("herenow.toml", toml);
        } else if !self.setup.self_made {
            command.env("HERENOW_AUTH__API_KEYS", API_KEY).env("HERENOW_AUTH__DEVICE_SECRETS", DEVICE_SECRET);
        }
        command.envs(self.setup.env.clone());
        for set in &self.setup.set {
            command.args(["--set", set]);
        }
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = self.stdout.gather(child.stdout.take().unwrap());
        let err = self.log.gather(child.stderr.take().unwrap());
        self.process = Some(Process { child, gatherers: vec![out, err] });
        (self.address, self.admin) = eventually("the node serves", || {
            let log = self.log.text();
            let line = log[logged..].lines().find(|line| line.contains("serving")).ok_or_else(|| log.clone())?;
            let admin = if self.setup.without_admin { self.admin } else { address_after(line, "admin") };
            Ok((address_after(line, "address"), admin))
        });
        if self.setup.self_made {
            self.secrets.note(&self.api_key());
            self.secrets.note(&self.credential("device_secret"));
        }
    }

    /// Where the API is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the metrics are.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    pub fn data_dir(&self) -> PathBuf {
        self.setup.data_dir.clone().unwrap_or_else(|| self.directory.path().join("data"))
    }

    /// All that was logged so far.
    pub fn log(&self) -> String {
        self.log.text().clone()
    }

    /// All that was printed so far.
    pub fn stdout(&self) -> String {
        self.stdout.text().clone()
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the node runs").child.id()
    }

    /// Puts a file into the directory that the node runs in.
    pub fn write_file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Has the configuration read anew from this file, and waits for what the log says of it.
    #[track_caller]
    pub fn reload(&self, toml: &str) -> String {
        let logged = self.log.text().len();
        self.write_file("herenow.toml", toml);
        self.signal("HUP");
        eventually("the configuration is read anew", || {
            let log = self.log.text();
            let end = log[logged..].find("the configuration was read anew").ok_or_else(|| log[logged..].to_owned())?;
            let whole = log[logged + end..].find('\n').ok_or("a line that is not whole")?;
            Ok(log[logged..logged + end + whole].to_owned())
        })
    }

    /// The API key in force.
    pub fn api_key(&self) -> String {
        if self.setup.self_made { self.credential("api_key") } else { API_KEY.to_owned() }
    }

    fn credential(&self, name: &str) -> String {
        let text = fs::read_to_string(self.data_dir().join("credentials.toml")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(" = ").trim_matches('"').to_owned()
    }

    /// The operator's backend.
    pub fn backend(&self) -> Backend<'_> {
        Backend { node: self, api_key: self.api_key() }
    }

    /// What must never be in any log, beside the harness's own credentials.
    pub fn note_secret(&self, secret: &str) {
        self.secrets.note(secret);
    }

    /// A text that must leave no trace.
    pub fn canary(&self) -> String {
        self.secrets.canary()
    }

    /// For callers that outlive a borrow of the node.
    pub fn secrets(&self) -> Secrets {
        self.secrets.clone()
    }

    /// A device token that is good for an hour.
    pub fn token(&self, user: &str, device: &str) -> String {
        self.token_for(user, device, Duration::from_secs(3_600))
    }

    pub fn token_for(&self, user: &str, device: &str, ttl: Duration) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        self.sign(&json!({"sub": user, "device": device, "iat": now.as_secs(), "exp": (now + ttl).as_secs()}))
    }

    /// A device token with exactly these claims.
    pub fn sign(&self, claims: &Value) -> String {
        let secret = if self.setup.self_made { self.credential("device_secret") } else { DEVICE_SECRET.to_owned() };
        let key = EncodingKey::from_secret(secret.as_bytes());
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &key).unwrap();
        self.secrets.note(&token);
        token
    }

    /// A stream to be asked for.
    pub fn stream(&self, user: &str, device: &str) -> StreamRequest {
        StreamRequest::new(self.address, self.secrets.clone(), user, device, self.token(user, device))
    }

    /// A device whose stream is open and ready.
    #[track_caller]
    pub fn device(&self, user: &str, device: &str) -> Device {
        self.stream(user, device).open()
    }

    /// A device that is full to the brim and takes nothing, though its connection is well: all kernel buffers between are filled, and its
    /// queue is empty. It must be the user's only device until then.
    #[track_caller]
    pub fn stuck_device(&self, user: &str, device: &str) -> Device {
        let device = self.stream(user, device).receive_buffer(4 << 10).open();
        self.stick(user);
        device
    }

    /// Fills a user's only device, which doesn't read, until nothing has been taken for three times in a row.
    #[track_caller]
    pub fn stick(&self, user: &str) {
        let filling = "f".repeat(30_000);
        let mut refused = 0;
        for _ in 0..1_000 {
            let payload = json!({"filling": filling});
            let message = json!({"from": "alice", "to": {"users": [user]}, "type": "fill", "payload": payload, "online_only": true, "ttl_ms": 40});
            let answer = self.backend().send(message).expect(200).json();
            match answer["recipients"][0]["outcome"].as_str().unwrap() {
                "expired" => refused += 1,
                "delivered" => refused = 0,
                other => panic!("{other}: {answer}"),
            }
            if refused == 3 {
                return;
            }
        }
        panic!("{user}'s device takes whatever it is sent");
    }

    pub fn metrics(&self) -> String {
        Request::get("/metrics").send(self.admin).expect(200).text()
    }

    /// The value of a metric, named as it is written, labels included.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        let metrics = self.metrics();
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in\n{metrics}")).parse().unwrap()
    }

    /// The value of a counter, or of a gauge of things.
    #[track_caller]
    pub fn count(&self, name: &str) -> u64 {
        let metrics = self.metrics();
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in\n{metrics}")).parse().unwrap()
    }

    /// `kill -9`
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("the node runs");
        process.child.kill().unwrap();
        process.wait_until_gathered();
    }

    /// After a signal that can't be heeded.
    pub fn was_killed(&mut self) {
        self.process = None;
    }

    /// SIGTERM, and the end.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    /// Waits for the end that a signal has asked for.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + 2 * SOON;
        let mut process = self.process.take().expect("the node runs");
        loop {
            if let Some(status) = process.child.try_wait().unwrap() {
                process.wait_until_gathered();
                return status;
            }
            if Instant::now() > deadline {
                let _ = process.child.kill();
                panic!("the node doesn't end; its log:\n{}", tail(&self.log.text()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a signal by name: `TERM`, `STOP`, `CONT`, `INT`.
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// The same node again, on the same directory; the ports are new. Ends it first if it runs.
    #[track_caller]
    pub fn restart(&mut self) {
        if self.process.is_some() {
            assert!(self.stop().success());
        }
        self.launch();
    }

    /// The same with other configuration.
    #[track_caller]
    pub fn restart_with(&mut self, setup: Setup) {
        if self.process.is_some() {
            assert!(self.stop().success());
        }
        self.setup = setup;
        self.launch();
    }

    /// What holds after every test: see [`Drop`].
    fn check(&mut self) {
        if let Some(process) = &mut self.process {
            assert_eq!(process.child.try_wait().unwrap(), None, "the node ended by itself; its log:\n{}", self.tail());
            if !self.setup.without_admin {
                self.secrets.check_payload("the metrics", &self.metrics());
            }
            self.check_places();
            let status = self.stop();
            assert!(status.success(), "the node drained with {status}; its log:\n{}", self.tail());
        }
        self.check_places();
        let log = self.log.text();
        assert!(!log.contains("panicked at"), "the node panicked:\n{}", tail(&log));
        self.secrets.check_payload("the log", &log);
        self.secrets.check_credentials("the log", &log);
    }

    /// Looks through all that may outlive the process.
    fn check_places(&self) {
        for file in files(&self.data_dir()) {
            // One that has just been removed holds nothing.
            let bytes = fs::read(&file).unwrap_or_default();
            let canary = self.secrets.0.canary.as_bytes();
            assert!(memchr::memmem::find(&bytes, canary).is_none(), "an online-only payload is in {}", file.display());
        }
        if let Some(planes) = &self.planes {
            planes.check(&self.secrets);
        }
    }

    fn tail(&self) -> String {
        tail(&self.log.text())
    }
}

impl Process {
    fn wait_until_gathered(&mut self) {
        let _ = self.child.wait();
        for gatherer in self.gatherers.drain(..) {
            gatherer.join().unwrap();
        }
    }
}

/// However a test ends, its node does not outlive it.
impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        self.wait_until_gathered();
    }
}

/// At the end of every test: the node lives or was ended on purpose, never panicked, drains, and no online-only payload and no credential
/// has left a trace.
impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.process = None;
            eprintln!("the end of the node's log:\n{}", self.tail());
            return;
        }
        self.check();
    }
}

/// Whoever holds an API key.
pub struct Backend<'a> {
    node: &'a Node,
    api_key: String,
}

impl Backend<'_> {
    /// Sends a message. The payload of an online-only one gets a canary, for [`Node`]'s `Drop` to look for.
    #[track_caller]
    pub fn send(&self, mut message: Value) -> Answer {
        if message["online_only"] == true {
            let payload = &mut message["payload"];
            if payload.is_null() || payload.is_object() {
                payload["canary"] = self.node.canary().into();
            }
            assert!(
                payload.to_string().contains(&self.node.secrets.0.canary),
                "{payload} has no canary: use an object"
            );
        }
        self.request(Request::post("/v1/messages").json(message.to_string()))
    }

    /// An online-only message to one user.
    #[track_caller]
    pub fn whisper(&self, to: &str) -> Answer {
        self.send(json!({"from": "alice", "to": {"users": [to]}, "type": "typing", "online_only": true}))
    }

    /// An online-only message with these fields beside the usual ones; gives what became of it at the first recipient.
    #[track_caller]
    pub fn whisper_with(&self, to: &[&str], fields: &Value) -> Value {
        let mut message = json!({"from": "alice", "to": {"users": to}, "type": "typing", "online_only": true});
        message.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        self.send(message).expect(200).json()
    }

    /// A persisted message to one user; gives its cursor.
    #[track_caller]
    pub fn store(&self, to: &str, payload: &Value) -> String {
        let message = json!({"from": "alice", "to": {"users": [to]}, "type": "chat", "payload": payload});
        let answer = self.send(message).expect(201).json();
        answer["recipients"][0]["cursor"].as_str().unwrap().to_owned()
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request(Request::get(path))
    }

    pub fn delete(&self, path: &str) -> Answer {
        self.request(Request::new("DELETE", path))
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.request(Request::post(path).json(body.to_string()))
    }

    pub fn presence(&self, user: &str) -> Value {
        self.get(&format!("/v1/users/{user}/presence")).expect(200).json()
    }

    pub fn is_online(&self, user: &str) -> bool {
        self.presence(user)["online"] == true
    }

    /// Any request, with the API key.
    #[track_caller]
    pub fn request(&self, request: Request) -> Answer {
        request.bearer(&self.api_key).send(self.node.address)
    }
}

/// From a line of the log, be it text or JSON.
fn address_after(line: &str, name: &str) -> SocketAddr {
    let rest = line.split_once(name).unwrap_or_else(|| panic!("no {name} in {line}")).1;
    let rest = rest.trim_start_matches(|c: char| !c.is_ascii_digit());
    rest.split([' ', ')', '"']).next().unwrap().parse().unwrap()
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return vec![] };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The last of what the program itself says: its drivers say much more.
fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().filter(|line| line.contains("herenow") || line.contains("panicked")).collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
