//! What to say of a name that is no key.

use super::keys::{KEYS, NOT_YET, env_name, position};

/// Below this likeness (1 is the same) a hint would mislead.
const LIKE: f64 = 0.6;

/// The problem with `name`, which is not in the table. `spell` writes a key as its source would.
fn unknown(name: &str, spelled: &str, spell: fn(&str) -> String) -> String {
    if NOT_YET.contains(&name) {
        return format!("`{spelled}` is not in this version of herenow");
    }
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
    let known = KEYS.iter().map(|key| key.name).chain(NOT_YET.iter().copied());
    let best = known.map(|key| (likeness(name, key), key)).max_by(|a, b| a.0.total_cmp(&b.0));
    // A hint at what would be refused too is no help.
    best.filter(|&(like, key)| like >= LIKE && position(key).is_some()).map(|(_, key)| key)
}

/// A name without a section is compared with the last words of keys too: `listen` was meant for `server.listen`.
fn likeness(name: &str, key: &str) -> f64 {
    let whole = strsim::normalized_damerau_levenshtein(name, key);
    let last = key.rsplit('.').next().filter(|_| !name.contains('.'));
    last.map_or(whole, |last| whole.max(strsim::normalized_damerau_levenshtein(name, last)))
}
