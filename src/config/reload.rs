//! A configuration that is read anew while the process serves: which of it takes effect, and which waits for a restart.

use super::check;
use super::flaw::{ConfigErrors, Place};
use super::keys::KEYS;
use super::load::Loaded;

/// When a changed key takes effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Takes {
    /// At the next start.
    Restart,
    /// When the configuration is read anew.
    Reload,
}

/// What a configuration read anew brings.
#[derive(Clone, Debug)]
pub struct Reload {
    /// What is to be in force from now on: the new values of keys that take effect, and the old ones of all others.
    pub effective: Loaded,
    /// The keys that have changed and take effect.
    pub changed: Vec<&'static str>,
    /// Those that have changed and wait for a restart.
    pub at_restart: Vec<&'static str>,
}

impl Loaded {
    /// What `new` brings to this, which is in force. The two together must be right, too.
    pub fn reload(&self, new: &Self) -> Result<Reload, ConfigErrors> {
        let (mut changed, mut at_restart) = (vec![], vec![]);
        let mut effective = self.clone();
        for (i, key) in KEYS.iter().enumerate() {
            if key.slot.is_same(&mut self.config.clone(), &mut new.config.clone()) {
                continue;
            }
            if key.takes == Takes::Reload {
                key.slot.copy(&mut new.config.clone(), &mut effective.config);
                effective.places[i] = new.places[i].clone();
                changed.push(key.name);
            // A default may be another at each start, as the node's name is: nobody has changed it.
            } else if [&self.places[i], &new.places[i]] != [&Place::Default; 2] {
                at_restart.push(key.name);
            }
        }
        effective.config.auth.self_made = new.config.auth.self_made;
        effective.warnings.clone_from(&new.warnings);
        let flaws = check::flaws(&effective);
        if flaws.is_empty() { Ok(Reload { effective, changed, at_restart }) } else { Err(ConfigErrors(flaws)) }
    }
}

/// The keys that take effect without a restart, for the documentation.
pub fn reloaded_keys() -> String {
    let names = KEYS.iter().filter(|key| key.takes == Takes::Reload).map(|key| format!("`{}`", key.name));
    names.collect::<Vec<_>>().join(", ")
}
