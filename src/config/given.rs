//! A value as a source gives it: typed by TOML, or plain text from the environment and from flags, which is read as the key wants it.
//!
//! The errors here say what was found, never a text's content: it may be a secret.

use serde_json::value::RawValue;
use std::ops::RangeInclusive;
use toml::de::DeValue;

/// One given value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Given<'a> {
    Toml(&'a DeValue<'a>),
    Text(&'a str),
}

impl Given<'_> {
    pub(super) fn text(self) -> Result<String, String> {
        match self {
            Self::Text(text) => Ok(text.to_owned()),
            Self::Toml(value) => value.as_str().map(str::to_owned).ok_or_else(|| found(value)),
        }
    }

    pub(super) fn number(self, range: &RangeInclusive<u64>) -> Result<u64, String> {
        let number = match self {
            Self::Text(text) => text.parse().ok(),
            Self::Toml(value) => {
                let digits = value.as_integer().ok_or_else(|| found(value))?;
                u64::from_str_radix(digits.as_str(), digits.radix()).ok()
            }
        };
        number.filter(|n| range.contains(n)).ok_or_else(|| format!("is {}", self.as_written()))
    }

    pub(super) fn ratio(self) -> Result<f64, String> {
        let number = match self {
            Self::Text(text) => text.parse().ok(),
            Self::Toml(DeValue::Float(float)) => float.as_str().parse().ok(),
            Self::Toml(DeValue::Integer(integer)) => integer.as_str().parse().ok(),
            Self::Toml(value) => return Err(found(value)),
        };
        number.filter(|n| (0.0..=1.0).contains(n)).ok_or_else(|| format!("is {}", self.as_written()))
    }

    pub(super) fn switch(self) -> Result<bool, String> {
        match self {
            Self::Text(text) => text.parse().map_err(|_| format!("is {}", self.as_written())),
            Self::Toml(value) => value.as_bool().ok_or_else(|| found(value)),
        }
    }

    pub(super) fn list(self) -> Result<Vec<String>, String> {
        match self {
            Self::Text(text) if text.trim_start().starts_with('[') => json_list(text),
            Self::Text(text) if text.trim().is_empty() => Ok(Vec::new()),
            Self::Text(text) => Ok(text.split(',').map(|entry| entry.trim().to_owned()).collect()),
            Self::Toml(value) => {
                let entries = value.as_array().ok_or_else(|| found(value))?;
                entries.iter().map(|entry| Given::Toml(entry.get_ref()).text()).enumerate().map(name_entry).collect()
            }
        }
    }

    /// For numbers and switches only: nothing that could hold a secret is shown.
    fn as_written(self) -> String {
        match self {
            Self::Text(text) => format!("{text:?}"),
            Self::Toml(DeValue::Float(float)) => float.to_string(),
            Self::Toml(value) => value.as_integer().map_or_else(|| found(value), ToString::to_string),
        }
    }
}

fn found(value: &DeValue<'_>) -> String {
    let kind = match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number (a text needs quotes)",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    };
    format!("is {kind}")
}

fn name_entry((i, entry): (usize, Result<String, String>)) -> Result<String, String> {
    entry.map_err(|why| format!("its entry {} {why}", i + 1))
}

/// A number in the list is taken as it is written: a secret of digits needs no quotes within quotes.
fn json_list(text: &str) -> Result<Vec<String>, String> {
    let entries: Vec<&RawValue> = serde_json::from_str(text).map_err(|_| "is no JSON list".to_owned())?;
    let read = |entry: &RawValue| match entry.get() {
        digits if digits.bytes().all(|b| b.is_ascii_digit()) => Ok(digits.to_owned()),
        quoted => serde_json::from_str(quoted).map_err(|_| "is no text".to_owned()),
    };
    entries.into_iter().map(read).enumerate().map(name_entry).collect()
}
