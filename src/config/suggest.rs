//! What to say of a name that is no key.

use super::keys::{KEYS, env_name};

/// Below this likeness (1 is the same) a hint would mislead.
const LIKE: f64 = 0.6;

/// The problem with `name`, which is not in the table. `spell` writes a key as its source would.
fn unknown(name: &str, spelled: &str, spell: fn(&str) -> String) -> String {
    match nearest(name) {
        Some(near) => format!("unknown key `{spelled}`, did you mean `{}`?", spell(near)),
        None => format!("unknown key `{spelled}`"),
    }
}

/// For the file and for flags.
pub(super) fn unknown_key(name: &str) -> String {
    unknown(name, name, str::to_owned)
}

/// For the environment: `variable` would be the key `name`.
pub(super) fn unknown_variable(name: &str, variable: &str) -> String {
    unknown(name, variable, env_name)
}

fn nearest(name: &str) -> Option<&'static str> {
    let known = KEYS.iter().map(|key| key.name);
    let best = known.map(|key| (likeness(name, key), key)).max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|&(like, _)| like >= LIKE).map(|(_, key)| key)
}

/// A name without a section is compared with the last words of keys too: `listen` was meant for `server.listen`.
fn likeness(name: &str, key: &str) -> f64 {
    let whole = strsim::normalized_damerau_levenshtein(name, key);
    let last = key.rsplit('.').next().filter(|_| !name.contains('.'));
    last.map_or(whole, |last| whole.max(strsim::normalized_damerau_levenshtein(name, last)))
}
