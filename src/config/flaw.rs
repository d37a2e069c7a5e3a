//! What is wrong with a configuration, and where: all flaws are told at once, so that one round of repair is enough.

use std::fmt;
use std::path::PathBuf;

/// Where a key was given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// Nowhere: the default is in force.
    Default,
    /// In the file; line and column count from 1, the column in characters.
    File {
        /// The file, as it was named.
        path: PathBuf,
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// In this variable of the environment.
    Env(String),
    /// By this flag.
    Flag(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Env(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// One thing that is wrong. It never holds the value of a secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flaw {
    /// Where; `None` if it lies between several keys or with the file as a whole.
    pub place: Option<Place>,
    /// What, with the key's name.
    pub problem: String,
}

impl Flaw {
    /// A flaw at one place.
    pub fn at(place: Place, problem: impl Into<String>) -> Self {
        Self { place: Some(place), problem: problem.into() }
    }

    /// A flaw without a single place.
    pub fn of_the_whole(problem: impl Into<String>) -> Self {
        Self { place: None, problem: problem.into() }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.problem)
    }
}

/// Every flaw of a configuration, at least one. It is shown as a line for each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigErrors(pub Vec<Flaw>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, flaw) in self.0.iter().enumerate() {
            let line_break = if i == 0 { "" } else { "\n" };
            write!(f, "{line_break}{flaw}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
