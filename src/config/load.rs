//! Defaults < file < environment < flags, with every flaw on the way collected.

use super::flaw::{ConfigErrors, Flaw, Place};
use super::given::Given;
use super::keys::{ENV_PREFIX, KEYS, position};
use super::sections::Config;
use super::sources::{Flag, Sources};
use super::suggest::{unknown_key, unknown_variable};
use super::{check, file};
use std::ffi::OsStr;

/// What is in force, and why.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Where each key of [`KEYS`] was given, in its order.
    pub places: Vec<Place>,
    /// What is allowed but unwise, for the operator to read.
    pub warnings: Vec<String>,
}

/// Reads all sources. Each value is checked, even one that a stronger source overrides.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigErrors> {
    let mut draft = Draft::new();
    if let Some(file) = &sources.file {
        file::read(file, &mut draft);
    }
    read_env(sources, &mut draft);
    for flag in &sources.flags {
        read_flag(flag, &mut draft);
    }
    draft.finish()
}

impl Config {
    /// From a file's text alone, without environment and flags: for tests and tools.
    pub fn from_toml(text: &str) -> Result<Self, ConfigErrors> {
        load(&Sources::of_toml(text)).map(|loaded| loaded.config)
    }
}

/// A configuration in the making.
pub(super) struct Draft {
    loaded: Loaded,
    flaws: Vec<Flaw>,
}

impl Draft {
    fn new() -> Self {
        let places = vec![Place::Default; KEYS.len()];
        let loaded = Loaded { config: Config::default(), places, warnings: Vec::new() };
        Self { loaded, flaws: Vec::new() }
    }

    /// Puts a value into the key of this position.
    pub(super) fn put(&mut self, i: usize, given: Given<'_>, place: Place) {
        let key = &KEYS[i];
        match key.slot.fill(&mut self.loaded.config, given) {
            Ok(()) => self.loaded.places[i] = place,
            Err(problem) => self.flaw(Flaw::at(place, format!("`{}` {problem}", key.name))),
        }
    }

    pub(super) fn flaw(&mut self, flaw: Flaw) {
        self.flaws.push(flaw);
    }

    /// Rules between keys are checked only once each key is right by itself.
    fn finish(mut self) -> Result<Loaded, ConfigErrors> {
        if self.flaws.is_empty() {
            self.flaws = check::flaws(&self.loaded);
        }
        if !self.flaws.is_empty() {
            return Err(ConfigErrors(self.flaws));
        }
        self.loaded.warnings = check::warnings(&self.loaded.config);
        Ok(self.loaded)
    }
}

fn read_flag(flag: &Flag, draft: &mut Draft) {
    let place = Place::Flag(flag.shown.clone());
    match position(&flag.key) {
        Some(i) => draft.put(i, Given::Text(&flag.value), place),
        None => draft.flaw(Flaw::at(place, unknown_key(&flag.key))),
    }
}

fn read_env(sources: &Sources, draft: &mut Draft) {
    let ours = |name: &OsStr| name.as_encoded_bytes().starts_with(ENV_PREFIX.as_bytes());
    let mut variables: Vec<_> = sources.env.iter().filter(|(name, _)| ours(name)).collect();
    variables.sort();
    for (name, value) in variables {
        read_variable(&name.to_string_lossy(), value.to_str(), draft);
    }
}

fn read_variable(variable: &str, value: Option<&str>, draft: &mut Draft) {
    let name = variable[ENV_PREFIX.len()..].to_lowercase().replace("__", ".");
    let place = Place::Env(variable.to_owned());
    // Only capitals are ours, as documented: `HERENOW_log__level` is a slip.
    let known = position(&name).filter(|&i| KEYS[i].env_name() == variable);
    match (known, value) {
        (Some(i), Some(text)) => draft.put(i, Given::Text(text), place),
        (Some(i), None) => draft.flaw(Flaw::at(place, format!("`{}` is not UTF-8", KEYS[i].name))),
        (None, value) if is_service_link(variable, value.unwrap_or_default()) => {}
        (None, _) => draft.flaw(Flaw::at(place, unknown_variable(&name, variable))),
    }
}

/// Kubernetes sets `HERENOW_SERVICE_HOST`, `HERENOW_PORT=tcp://…` and the like in every pod beside a Service named `herenow`.
fn is_service_link(variable: &str, value: &str) -> bool {
    let about_a_service = variable.contains("_SERVICE_HOST") || variable.contains("_SERVICE_PORT");
    let numbered = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
    let about_a_port = variable.split("_PORT_").nth(1).is_some_and(numbered);
    about_a_service || about_a_port || (variable.ends_with("_PORT") && value.contains("://"))
}
