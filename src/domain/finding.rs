//! What `herenow doctor` finds.

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Well,
    /// It works, but somebody should look at it.
    Warning,
    /// Something doesn't work, or is damaged.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at: a key or section of the configuration, or a part of the machine.
    pub about: String,
    /// What was seen. Never a secret, nor anything of a payload.
    pub found: String,
    /// What to do; nothing where all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    /// All is well with it.
    pub fn well(about: impl Into<String>, found: impl Into<String>) -> Self {
        Self { level: Level::Well, about: about.into(), found: found.into(), advice: None }
    }

    /// Somebody should look at it.
    pub fn warning(about: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Warning, about: about.into(), found: found.into(), advice: Some(advice.into()) }
    }

    /// It doesn't work.
    pub fn error(about: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Error, ..Self::warning(about, found, advice) }
    }
}
