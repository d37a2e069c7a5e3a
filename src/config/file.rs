//! Reading the file: every key with the place where it stands.

use super::flaw::{Flaw, Place};
use super::given::Given;
use super::keys::{KEYS, position};
use super::load::Draft;
use super::sources::File;
use super::suggest::unknown_key;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Puts what `file` says into `draft`, and what is wrong with it.
pub(super) fn read(file: &File, draft: &mut Draft) {
    let text = match &file.text {
        Ok(text) => text,
        Err(why) => return draft.flaw(Flaw::of_the_whole(format!("{}: {why}", file.path.display()))),
    };
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut walk = Walk { file, text, draft };
    if errors.is_empty() {
        walk.section("", table.get_ref());
    }
    for error in errors {
        let place = walk.place(&error.span().unwrap_or_default());
        walk.draft.flaw(Flaw::at(place, error.message()));
    }
}

struct Walk<'a> {
    file: &'a File,
    text: &'a str,
    draft: &'a mut Draft,
}

impl Walk<'_> {
    fn section(&mut self, prefix: &str, table: &DeTable<'_>) {
        let mut entries: Vec<_> = table.iter().collect();
        // The map is in the order of the alphabet; flaws are to come in the order of the file.
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            self.entry(&join(prefix, key.get_ref()), &key.span(), value);
        }
    }

    fn entry(&mut self, name: &str, key_span: &Range<usize>, value: &Spanned<DeValue<'_>>) {
        if let Some(i) = position(name) {
            let place = self.place(&value.span());
            return self.draft.put(i, Given::Toml(value.get_ref()), place);
        }
        match value.get_ref().as_table() {
            Some(section) if !section.is_empty() => self.section(name, section),
            Some(_) if is_section(name) => {}
            _ if is_section(name) => self.wrong(key_span, format!("`{name}` is a section: write `[{name}]`")),
            _ => self.wrong(key_span, unknown_key(name)),
        }
    }

    fn wrong(&mut self, span: &Range<usize>, problem: String) {
        let place = self.place(span);
        self.draft.flaw(Flaw::at(place, problem));
    }

    fn place(&self, span: &Range<usize>) -> Place {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Place::File {
            path: self.file.path.clone(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

/// A word with a dot in it is not two words.
fn join(prefix: &str, word: &str) -> String {
    let word = if word.contains('.') { format!("{word:?}") } else { word.to_owned() };
    if prefix.is_empty() { word } else { format!("{prefix}.{word}") }
}

fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}
