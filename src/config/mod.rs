//! Floor 1: every key of CONTRACT.md 11, where it may be given, and what is in force.
//!
//! One table, [`KEYS`], drives all of it: reading the file, the environment and the flags, bounds, the hints at mistyped names,
//! `herenow config check` and the page `docs/configuration.md`. Nothing else in the program reads the environment.

mod check;
mod defaults;
mod file;
mod flaw;
mod given;
mod keys;
mod levels;
mod load;
mod reload;
mod report;
mod sections;
mod slot;
mod sources;
mod suggest;
#[cfg(test)]
mod tests;

pub use flaw::{ConfigErrors, Flaw, Place};
pub use keys::{KEYS, Key};
pub use levels::{LevelRule, level_rules};
pub use load::{Loaded, load};
pub use reload::{Reload, reloaded_keys};
pub use report::markdown_table;
pub use sections::*;
pub use sources::{DEFAULT_FILE, File, Flag, Sources};
