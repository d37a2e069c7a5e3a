//! The table of keys for people: what `herenow config check` prints, and the table in `docs/configuration.md`.

use super::flaw::Place;
use super::keys::{KEYS, Key};
use super::load::Loaded;
use super::sections::Config;
use std::fmt::Write;

impl Loaded {
    /// Every key in force as TOML, secrets masked, each with where it was given.
    pub fn report(&self) -> String {
        let lines: Vec<_> = KEYS.iter().map(|key| format!("{} = {}", key.name, key.shown(&self.config))).collect();
        // One very long value must not push the places of all others out of sight.
        let width = lines.iter().map(|line| line.chars().count()).max().unwrap_or_default().min(60);
        let mut report = String::new();
        for ((key, line), place) in KEYS.iter().zip(lines).zip(&self.places) {
            let _ = writeln!(report, "{line:width$}  # {}", origin(key, place));
        }
        report
    }
}

fn origin(key: &Key, place: &Place) -> String {
    match (place, key.default_note) {
        (Place::Default, Some(note)) => format!("default: {note}"),
        (place, _) => place.to_string(),
    }
}

/// The keys as a table in Markdown, for the documentation.
pub fn markdown_table() -> String {
    let defaults = Config::default();
    let mut table = String::from("| key | default | may be | what it is for |\n| --- | --- | --- | --- |\n");
    for key in KEYS {
        let default = key.default_note.map_or_else(|| format!("`{}`", key.shown(&defaults)), str::to_owned);
        let _ = writeln!(table, "| `{}` | {default} | {} | {} |", key.name, key.slot.expected(), key.help);
    }
    table
}
