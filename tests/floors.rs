//! The house rule: a room uses only rooms that stand below it, and of those only the ones it is allowed. The table is the one in
//! `docs/architecture.md`; this reads it there, so the two can't differ.
//!
//! It reads the imports of `src/` as plain text: `use crate::…`, `use super::…` and `crate::…` within code. Tests may import what they
//! like. What it can't see: names in attributes, and methods of a type whose `impl` is spread over rooms, as that of `Relay` is.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Imports that break the rule today: from, to, why they stay for now.
const ALLOWED_ALL_THE_SAME: &[(&str, &str, &str)] = &[(
    "http/ops",
    "http/openapi",
    "`ops` serves the document, and the document is made of all handlers, that of `ops` included",
)];

/// A row of the table.
#[derive(Debug)]
struct Room {
    name: String,
    may_use: Vec<String>,
}

#[test]
fn no_room_uses_one_that_it_may_not() {
    let rooms = rooms();
    let mut broken = BTreeSet::new();
    let mut excused = BTreeSet::new();
    for (module, text) in modules() {
        let Some(from) = room_of(&rooms, &module) else {
            broken.insert(format!("src/{module} belongs to no room of the table"));
            continue;
        };
        for path in imports(&module, &text) {
            let Some(to) = room_of(&rooms, &path) else { continue };
            if to.name == from.name || from.may_use.iter().any(|allowed| is_within(&to.name, allowed)) {
                continue;
            }
            if ALLOWED_ALL_THE_SAME.iter().any(|(a, b, _)| (*a, *b) == (&*from.name, &*to.name)) {
                excused.insert((from.name.clone(), to.name.clone()));
            } else {
                broken.insert(format!("src/{module} uses `{path}`, but `{}` may not use `{}`", from.name, to.name));
            }
        }
    }
    for (from, to, _) in ALLOWED_ALL_THE_SAME {
        if !excused.contains(&((*from).to_owned(), (*to).to_owned())) {
            broken.insert(format!("`{from}` no longer uses `{to}`: take it off the list of exceptions"));
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.into_iter().collect::<Vec<_>>().join("\n"));
}

/// So no cycle can be written down.
#[test]
fn a_room_is_allowed_only_what_stands_below_it() {
    let rooms = rooms();
    for (n, room) in rooms.iter().enumerate() {
        for allowed in &room.may_use {
            assert!(
                rooms[n + 1..].iter().any(|below| is_within(&below.name, allowed))
                    && !rooms[..=n].iter().any(|above| is_within(&above.name, allowed)),
                "`{}` is allowed `{allowed}`, which doesn't stand below it",
                room.name
            );
        }
    }
}

#[test]
fn imports_are_read_whatever_their_form() {
    let text = "
        use crate::a::{b::{c, D}, self};
        pub use super::e::F; // use crate::no;
        let x = crate::g::H::new(); //! crate::no
        use super::{
            i, j::K,
        };
        #[cfg(test)]
        mod tests;
        use crate::l;
        #[cfg(test)]
        mod inline {
            use crate::no;
        }";
    let found: Vec<_> = imports("m/n", text).into_iter().collect();
    assert_eq!(found, ["a", "a/b/D", "a/b/c", "g/H/new", "l", "m/e/F", "m/i", "m/j/K"]);
}

/// The table between the two marks: the room in the second column, what it may use in the last, all in backticks.
fn rooms() -> Vec<Room> {
    let doc = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let (_, rest) = doc.split_once("<!-- floors -->").unwrap();
    let (table, _) = rest.split_once("<!-- /floors -->").unwrap();
    let rooms: Vec<_> = table
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains('`'))
        .map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split('|').collect();
            let [_, name, _, may_use] = cells[..] else { panic!("not four columns: {line}") };
            Room { name: quoted(name).remove(0), may_use: quoted(may_use) }
        })
        .collect();
    assert!(rooms.len() > 30, "the table was not found whole: {rooms:?}");
    rooms
}

/// What stands in backticks.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The room that the path leads into: the one with the longest name.
fn room_of<'a>(rooms: &'a [Room], path: &str) -> Option<&'a Room> {
    rooms.iter().filter(|room| is_within(path, &room.name)).max_by_key(|room| room.name.len())
}

fn is_within(path: &str, room: &str) -> bool {
    path.strip_prefix(room).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// All modules that are no tests: path and text.
fn modules() -> Vec<(String, String)> {
    let mut found = vec![];
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let module = path.strip_prefix(root().join("src")).unwrap().with_extension("");
                let module = module.to_str().unwrap().trim_end_matches("/mod").to_owned();
                let is_test = module.split('/').any(|part| matches!(part, "tests" | "conformance" | "simulation"));
                // The crate's own doorplate uses nothing.
                if !is_test && module != "lib" {
                    let text = fs::read_to_string(&path).unwrap();
                    // The program stands outside of the library.
                    let text = if module == "main" { text.replace("herenow::", "crate::") } else { text };
                    found.push((module, text));
                }
            }
        }
    }
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Paths in the crate that the module's text names, with `/` between the parts.
fn imports(module: &str, text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open_use: Option<String> = None;
    let mut lines = text.lines().map(|line| line.split("//").next().unwrap_or("").trim()).peekable();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" && lines.peek().is_some_and(|next| next.starts_with("mod ") && next.ends_with('{')) {
            break;
        }
        let begun = line.find("use ").filter(|&at| at == 0 || line[..at].starts_with("pub"));
        if let Some(text) = &mut open_use {
            text.push_str(line);
        } else if let Some(at) = begun {
            open_use = Some(line[at + 4..].to_owned());
        } else {
            let ends = |c: char| !(c.is_alphanumeric() || c == '_' || c == ':');
            found.extend(line.split("crate::").skip(1).map(|rest| rest.split(ends).next().unwrap().replace("::", "/")));
        }
        if let Some(text) = open_use.take_if(|text| text.ends_with(';')) {
            found.extend(expand("", text.trim_end_matches(';')).iter().filter_map(|path| in_crate(module, path)));
        }
    }
    found
}

/// `a::{b, c::{d, self}}` as `a::b`, `a::c::d`, `a::c`.
fn expand(prefix: &str, tree: &str) -> Vec<String> {
    let Some((head, inner)) = tree.split_once('{') else {
        let path = format!("{prefix}{}", tree.split(" as ").next().unwrap_or("").trim());
        return vec![path.trim_end_matches("::self").to_owned()];
    };
    let prefix = format!("{prefix}{}", head.trim());
    let inner = inner.rsplit_once('}').unwrap().0;
    let (mut depth, mut from, mut found) = (0, 0, vec![]);
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !inner[from..at].trim().is_empty() {
                    found.extend(expand(&prefix, &inner[from..at]));
                }
                from = at + 1;
            }
            _ => {}
        }
    }
    found
}

/// A path as it stands in `module`, from the crate's root on; `None` if it leads out of the crate.
fn in_crate(module: &str, path: &str) -> Option<String> {
    let mut base: Vec<_> = module.split('/').collect();
    let mut parts = path.split("::").peekable();
    match *parts.peek()? {
        "crate" => base.clear(),
        "super" | "self" => {}
        _ => return None,
    }
    while let Some(first) = parts.next_if(|part| matches!(*part, "crate" | "super" | "self")) {
        if first == "super" {
            base.pop();
        }
    }
    base.extend(parts);
    Some(base.join("/"))
}
