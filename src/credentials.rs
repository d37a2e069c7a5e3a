//! What herenow makes for itself on the first start: the lock on its directory, and the credentials that nobody configured.
//!
//! Only the owner can read either. The client commands read the credentials of a running server, so reading takes no lock.

use crate::config::{Config, Secret};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use nix::sys::stat::{major, minor};
use serde::Deserialize;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const FILE: &str = "credentials.toml";
const LOCK: &str = "lock";

/// Why the data directory or the credentials in it can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// Another process works here.
    #[error("another herenow process is using {}: stop it, or give this one a `data_dir` of its own", .0.display())]
    InUse(PathBuf),
    /// Others could read the secrets.
    #[error("{} can be read by others than its owner: run `chmod 600 {}`", .0.display(), .0.display())]
    TooOpen(PathBuf),
    /// The file doesn't hold what herenow wrote. Nothing of its text is told: it may be a secret.
    #[error("{} is damaged: restore it, or remove it to get new credentials at the next start", .0.display())]
    Damaged(PathBuf),
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Its words.
        source: io::Error,
    },
}

/// Says which path an error is about.
fn at(path: &Path) -> impl FnOnce(io::Error) -> CredentialsError {
    |source| CredentialsError::Io { path: path.to_owned(), source }
}

/// The data directory, held by this process alone for as long as this lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// The operating system lets go of it when the process ends, however it ends.
    _lock: File,
}

impl DataDir {
    /// Makes the directory if need be, and takes it.
    pub fn open(path: &Path) -> Result<Self, CredentialsError> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path))?;
        let lock_path = path.join(LOCK);
        let options = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).clone();
        let lock = options.open(&lock_path).map_err(at(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(CredentialsError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(CredentialsError::Io { path: lock_path, source }),
        }
    }

    /// Whether a process holds it. A process that starts in the very instant of the look would be refused; none that runs is disturbed.
    pub fn is_in_use(path: &Path) -> Result<bool, CredentialsError> {
        let lock_path = path.join(LOCK);
        let lock = match File::open(&lock_path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened.map_err(at(&lock_path))?,
        };
        match lock.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(source)) => Err(CredentialsError::Io { path: lock_path, source }),
        }
    }

    /// The process that holds it, if the kernel tells this one (`/proc/locks`, proc_locks(5)).
    pub fn holder(path: &Path) -> Option<u32> {
        let lock = fs::metadata(path.join(LOCK)).ok()?;
        let file = format!("{:02x}:{:02x}:{}", major(lock.dev()), minor(lock.dev()), lock.ino());
        let locks = fs::read_to_string("/proc/locks").ok()?;
        // `1: FLOCK  ADVISORY  WRITE 1234 fe:00:131 0 EOF`
        let held = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            (words.get(1..4) == Some(&["FLOCK", "ADVISORY", "WRITE"]) && words.get(5) == Some(&file.as_str()))
                .then(|| words[4].parse().ok())
                .flatten()
        };
        locks.lines().find_map(held)
    }

    /// The credentials of this directory, and whether they were made just now.
    pub fn credentials(&self) -> Result<(Credentials, bool), CredentialsError> {
        if let Some(credentials) = Credentials::read(&self.path)? {
            return Ok((credentials, false));
        }
        let credentials = Credentials::random();
        credentials.write(&self.path)?;
        Ok((credentials, true))
    }
}

/// One of each kind, in the forms that the keys of the configuration have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Credentials {
    api_key: Secret,
    device_secret: Secret,
    callback_secret: Secret,
}

/// The file. Its secrets stand here as plain text, so this is never shown.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    api_key: String,
    device_secret: String,
    callback_secret: String,
}

impl Credentials {
    /// The file in `data_dir`, if it is there.
    pub fn file(data_dir: &Path) -> Option<PathBuf> {
        let path = data_dir.join(FILE);
        path.exists().then_some(path)
    }

    /// Those in `data_dir`; `None` before the first start.
    pub fn read(data_dir: &Path) -> Result<Option<Self>, CredentialsError> {
        let path = data_dir.join(FILE);
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(at(&path))?,
        };
        if file.metadata().map_err(at(&path))?.permissions().mode() & 0o077 != 0 {
            return Err(CredentialsError::TooOpen(path));
        }
        let text = io::read_to_string(file).map_err(at(&path))?;
        toml::from_str(&text).ok().and_then(Self::checked).map(Some).ok_or(CredentialsError::Damaged(path))
    }

    /// Puts these where nothing is configured. Both parts of [`crate::config::Auth::self_made`] must come from here for it to be true.
    pub fn fill(&self, config: &mut Config) {
        let auth = &mut config.auth;
        let key_made = fill_empty(&mut auth.api_keys, &self.api_key);
        // Whose tokens are signed by somebody else doesn't want a secret of ours to be good for them as well.
        let verifies_by_public_keys = !auth.device_public_keys.is_empty() || auth.jwks_url.is_some();
        let secret_made = !verifies_by_public_keys && fill_empty(&mut auth.device_secrets, &self.device_secret);
        auth.self_made = key_made && secret_made;
        fill_empty(&mut config.callbacks.storage.secrets, &self.callback_secret);
        fill_empty(&mut config.callbacks.push.secrets, &self.callback_secret);
        fill_empty(&mut config.callbacks.presence.secrets, &self.callback_secret);
        fill_empty(&mut config.callbacks.before_send.secrets, &self.callback_secret);
    }

    fn checked(written: Written) -> Option<Self> {
        let secrets = [written.api_key, written.device_secret, written.callback_secret];
        if secrets.iter().any(String::is_empty) {
            return None;
        }
        let [api_key, device_secret, callback_secret] = secrets.map(Secret::new);
        Some(Self { api_key, device_secret, callback_secret })
    }

    fn random() -> Self {
        let random = rand::random::<[u8; 32]>;
        Self {
            api_key: Secret::new(format!("hk_{}", URL_SAFE_NO_PAD.encode(random()))),
            device_secret: Secret::new(URL_SAFE_NO_PAD.encode(random())),
            callback_secret: Secret::new(format!("whsec_{}", STANDARD.encode(random()))),
        }
    }

    /// Whole or not at all: a crash at any moment leaves no half file, and what was returned as written is on the disk.
    fn write(&self, data_dir: &Path) -> Result<(), CredentialsError> {
        let (path, draft) = (data_dir.join(FILE), data_dir.join("credentials.toml.new"));
        // A draft that a crash left behind may have any mode: `mode` counts for new files only.
        match fs::remove_file(&draft) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at(&draft)(e)),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).map_err(at(&draft))?;
        file.write_all(self.as_toml().as_bytes()).and_then(|()| file.sync_all()).map_err(at(&draft))?;
        fs::rename(&draft, &path).map_err(at(&path))?;
        File::open(data_dir).and_then(|dir| dir.sync_all()).map_err(at(data_dir))
    }

    fn as_toml(&self) -> String {
        format!(
            "# Made by herenow on its first start. Each is used only while its key is not configured.\n\
             api_key = \"{}\"\ndevice_secret = \"{}\"\ncallback_secret = \"{}\"\n",
            self.api_key.expose(),
            self.device_secret.expose(),
            self.callback_secret.expose()
        )
    }
}

fn fill_empty(secrets: &mut Vec<Secret>, made: &Secret) -> bool {
    let empty = secrets.is_empty();
    if empty {
        secrets.push(made.clone());
    }
    empty
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn filled(credentials: &Credentials, toml: &str) -> Config {
        let mut config = Config::from_toml(toml).unwrap();
        credentials.fill(&mut config);
        config
    }

    #[test]
    fn the_first_start_makes_what_only_the_owner_can_read_and_later_ones_find_it() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a/b");
        assert_eq!(Credentials::read(&path).unwrap(), None);
        let (made, first) = DataDir::open(&path).unwrap().credentials().unwrap();
        assert!(first);
        assert_eq!((mode(&path), mode(&path.join(FILE)), mode(&path.join(LOCK))), (0o700, 0o600, 0o600));
        assert_eq!(DataDir::open(&path).unwrap().credentials().unwrap(), (made.clone(), false));
        assert_eq!(Credentials::read(&path).unwrap(), Some(made.clone()));
        let left: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert_ne!(DataDir::open(&temp.path().join("c")).unwrap().credentials().unwrap().0, made);
    }

    #[test]
    fn made_credentials_are_what_the_keys_of_the_configuration_take() {
        let made = Credentials::random();
        let by_hand = format!(
            "auth.api_keys = ['{}']\nauth.device_secrets = ['{}']\ncallbacks.push.secrets = ['{}']",
            made.api_key.expose(),
            made.device_secret.expose(),
            made.callback_secret.expose()
        );
        assert!(Config::from_toml(&by_hand).is_ok());
        assert!(made.api_key.expose().starts_with("hk_"));
        assert!(made.device_secret.expose().len() >= 32);
        assert!(!format!("{made:?}").contains(made.api_key.expose()));
    }

    #[test]
    fn each_is_used_only_where_nothing_is_configured() {
        let made = Credentials::random();
        let bare = filled(&made, "");
        assert!(bare.auth.self_made);
        assert_eq!(bare.auth.api_keys, std::slice::from_ref(&made.api_key));
        assert_eq!(bare.callbacks.push.secrets, std::slice::from_ref(&made.callback_secret));
        let keyed = filled(&made, "auth.api_keys = ['mine']");
        assert!(!keyed.auth.self_made);
        assert_eq!(keyed.auth.api_keys, [Secret::new("mine")]);
        assert_eq!(keyed.auth.device_secrets, std::slice::from_ref(&made.device_secret));
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_command_that_helps() {
        let temp = tempfile::tempdir().unwrap();
        DataDir::open(temp.path()).unwrap().credentials().unwrap();
        let path = temp.path().join(FILE);
        for open in [0o640, 0o604, 0o644, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(open)).unwrap();
            let told = Credentials::read(temp.path()).unwrap_err().to_string();
            assert!(told.ends_with(&format!("run `chmod 600 {}`", path.display())), "{told}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(Credentials::read(temp.path()).is_ok());
    }

    #[test]
    fn a_damaged_file_is_never_replaced_and_its_text_never_told() {
        let temp = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(temp.path()).unwrap();
        data_dir.credentials().unwrap();
        let path = temp.path().join(FILE);
        let empty = "api_key = ''\ndevice_secret = 'hunter2'\ncallback_secret = 'hunter2'";
        for damage in ["", "api_key = 'hunter2", "api_key = 'hunter2'", "hunter2 = 'x'", empty] {
            fs::write(&path, damage).unwrap();
            let told = data_dir.credentials().unwrap_err();
            assert!(matches!(told, CredentialsError::Damaged(_)), "{told}");
            assert!(!told.to_string().contains("hunter2"), "{told}");
            assert_eq!(fs::read_to_string(&path).unwrap(), damage);
        }
    }

    #[test]
    fn what_a_crash_left_half_written_does_no_harm() {
        let temp = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(temp.path()).unwrap();
        let draft = temp.path().join("credentials.toml.new");
        fs::write(&draft, "api_key = 'ha").unwrap();
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(data_dir.credentials().unwrap().1);
        assert_eq!(mode(&temp.path().join(FILE)), 0o600);
        assert!(!draft.exists());
    }

    #[test]
    fn a_directory_is_used_by_one_at_a_time() {
        let temp = tempfile::tempdir().unwrap();
        let first = DataDir::open(temp.path()).unwrap();
        let told = DataDir::open(temp.path()).unwrap_err();
        assert!(matches!(told, CredentialsError::InUse(_)), "{told}");
        drop(first);
        assert!(DataDir::open(temp.path()).is_ok());
    }
}
