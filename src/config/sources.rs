//! What the loader reads, as data: no test needs a process environment of its own.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// Read if it exists and no other file is named.
pub const DEFAULT_FILE: &str = "./herenow.toml";

/// A configuration file as it was read.
#[derive(Clone, Debug)]
pub struct File {
    /// The file, as it was named.
    pub path: PathBuf,
    /// Its text, or why it could not be read.
    pub text: Result<String, String>,
}

/// A key given on the command line.
#[derive(Clone, Debug)]
pub struct Flag {
    /// The flag as it is to be named in errors.
    pub shown: String,
    /// The key.
    pub key: String,
    /// Its value.
    pub value: String,
}

impl Flag {
    /// A key that has a flag of its own.
    pub fn named(flag: &str, key: &str, value: impl Into<String>) -> Self {
        Self { shown: flag.to_owned(), key: key.to_owned(), value: value.into() }
    }

    /// `--set key=value`
    pub fn set(key: &str, value: &str) -> Self {
        Self { shown: format!("--set {key}"), key: key.to_owned(), value: value.to_owned() }
    }
}

/// All that may give keys, from the weakest to the strongest.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file, if there is one.
    pub file: Option<File>,
    /// The process's environment; what doesn't begin with `HERENOW_` is ignored.
    pub env: Vec<(OsString, OsString)>,
    /// The command line.
    pub flags: Vec<Flag>,
}

impl Sources {
    /// The file (`named`, else [`DEFAULT_FILE`] if it exists), this process's environment, and `flags`.
    pub fn of_this_process(named: Option<&Path>, flags: Vec<Flag>) -> Self {
        let file = named.map(read).or_else(|| Path::new(DEFAULT_FILE).exists().then(|| read(Path::new(DEFAULT_FILE))));
        Self { file, env: std::env::vars_os().collect(), flags }
    }

    /// A file of this text alone.
    pub fn of_toml(text: &str) -> Self {
        let file = File { path: "herenow.toml".into(), text: Ok(text.to_owned()) };
        Self { file: Some(file), ..Self::default() }
    }
}

fn read(path: &Path) -> File {
    let text = std::fs::read_to_string(path).map_err(|e| {
        if e.kind() == io::ErrorKind::NotFound {
            "there is no such file".to_owned()
        } else {
            format!("can't be read: {e}")
        }
    });
    File { path: path.to_owned(), text }
}
