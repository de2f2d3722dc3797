use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::toml::Section;

/// Values that may occur once, each with the line of its first occurrence.
pub(super) type FirstLines<T> = BTreeMap<T, usize>;

/// Names that must be unique in the whole file, because callers log in by them before their organisation is known.
#[derive(Default)]
pub(super) struct GlobalNames {
    pub(super) orgs: FirstLines<i64>,
    pub(super) tills: FirstLines<String>,
    pub(super) clients: FirstLines<String>,
}

/// Reports a mistake if the value occurs a second time.
pub(super) fn check_unique<T: Ord>(section: &Section<'_>, key: &str, first_lines: &mut FirstLines<T>, value: T) {
    let line = section.position_of(key).line;
    match first_lines.entry(value) {
        Entry::Occupied(first) => section.mistake(key, format!("is listed twice, first in line {}", first.get())),
        Entry::Vacant(entry) => {
            entry.insert(line);
        }
    }
}
