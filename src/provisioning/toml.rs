//! Reads a TOML table key by key and keeps every mistake with its line, so that a file is told all of them at once.
//!
//! Knows nothing of what the keys mean.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::rc::Rc;

use jiff::civil::Date;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One mistake in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// The line, from 1.
    pub line: usize,
    /// The key, with the tables it is in.
    pub key: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {}: {}: {}", self.line, self.key, self.message)
    }
}

/// The mistakes found so far, shared by all sections of a file.
#[derive(Clone)]
pub(super) struct Mistakes<'s> {
    source: &'s str,
    found: Rc<RefCell<Vec<Mistake>>>,
}

impl<'s> Mistakes<'s> {
    pub(super) fn new(source: &'s str) -> Self {
        Self { source, found: Rc::default() }
    }

    pub(super) fn add(&self, at: &Range<usize>, key: &str, message: impl Into<String>) {
        let line = 1 + self.source.bytes().take(at.start).filter(|byte| *byte == b'\n').count();
        self.found.borrow_mut().push(Mistake { line, key: key.to_owned(), message: message.into() });
    }

    pub(super) fn take(&self) -> Vec<Mistake> {
        let mut found = self.found.take();
        found.sort();
        found
    }
}

/// A table of the file. Each getter returns `None` where the key is absent or wrong; what is wrong is noted.
pub(super) struct Section<'s> {
    table: &'s DeTable<'s>,
    /// Where the section begins: the place of what is missing in it.
    place: Range<usize>,
    path: String,
    mistakes: Mistakes<'s>,
    read: RefCell<BTreeSet<&'static str>>,
}

impl<'s> Section<'s> {
    pub(super) fn new(table: &'s Spanned<DeTable<'s>>, path: String, mistakes: Mistakes<'s>) -> Self {
        Self { table: table.get_ref(), place: table.span(), path, mistakes, read: RefCell::default() }
    }

    fn value(&self, key: &'static str) -> Option<&'s Spanned<DeValue<'s>>> {
        self.read.borrow_mut().insert(key);
        self.table.get(key)
    }

    fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Notes a mistake in the value of a key, or, if it is absent, in the section.
    pub(super) fn mistake(&self, key: &str, message: impl Into<String>) {
        let place = self.table.get(key).map_or_else(|| self.place.clone(), Spanned::span);
        self.mistakes.add(&place, &self.key(key), message);
    }

    pub(super) fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// Notes the key as missing unless there is a value.
    pub(super) fn required<T>(&self, key: &'static str, value: Option<T>) -> Option<T> {
        if value.is_none() && !self.has(key) {
            self.mistake(key, "is missing");
        }
        value
    }

    pub(super) fn text(&self, key: &'static str) -> Option<String> {
        let text = self.value(key)?.get_ref().as_str();
        match text {
            Some(text) if text.contains('\0') => self.mistake(key, "must not contain the character U+0000"),
            Some(text) => return Some(text.to_owned()),
            None => self.mistake(key, "must be a string"),
        }
        None
    }

    /// A string that is not blank, of at most `most` characters.
    pub(super) fn name(&self, key: &'static str, most: usize) -> Option<String> {
        let text = self.text(key)?;
        if text.trim().is_empty() || text.chars().count() > most {
            self.mistake(key, format!("must have 1 to {most} characters"));
            return None;
        }
        Some(text)
    }

    pub(super) fn boolean(&self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?.get_ref().as_bool();
        if value.is_none() {
            self.mistake(key, "must be true or false");
        }
        value
    }

    pub(super) fn integer(&self, key: &'static str, range: RangeInclusive<i64>) -> Option<i64> {
        let value = integer(self.value(key)?.get_ref());
        let inside = value.filter(|value| range.contains(value));
        if inside.is_none() {
            self.mistake(key, format!("must be an integer from {} to {}", range.start(), range.end()));
        }
        inside
    }

    /// A limit: -1, or its absence, is none.
    pub(super) fn limit(&self, key: &'static str, most: i64) -> Option<i64> {
        self.integer(key, -1..=most).filter(|limit| *limit >= 0)
    }

    pub(super) fn integers(&self, key: &'static str) -> Vec<i64> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let integers: Option<Vec<i64>> =
            value.get_ref().as_array().and_then(|array| array.iter().map(|one| integer(one.get_ref())).collect());
        if integers.is_none() {
            self.mistake(key, "must be an array of integers");
        }
        integers.unwrap_or_default()
    }

    /// An array of strings; `None` where there is none, or a wrong one.
    pub(super) fn texts(&self, key: &'static str) -> Option<Vec<String>> {
        let array = self.value(key)?.get_ref().as_array();
        let texts: Option<Vec<String>> =
            array.and_then(|array| array.iter().map(|one| one.get_ref().as_str().map(str::to_owned)).collect());
        if texts.is_none() {
            self.mistake(key, "must be an array of strings");
        }
        texts
    }

    pub(super) fn date(&self, key: &'static str) -> Option<Date> {
        let value = self.value(key)?.get_ref();
        let text = match value {
            DeValue::Datetime(date) => Some(date.to_string()),
            other => other.as_str().map(str::to_owned),
        };
        let date = text.and_then(|text| Date::strptime("%Y-%m-%d", text).ok());
        if date.is_none() {
            self.mistake(key, "must be a date like 2027-05-09");
        }
        date
    }

    /// One of a few words.
    pub(super) fn choice<T>(&self, key: &'static str, words: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let chosen = parse(&self.text(key)?);
        if chosen.is_none() {
            self.mistake(key, format!("must be one of {words}"));
        }
        chosen
    }

    /// The tables of an array of tables, each with its path: `orgs[1].series[3]`.
    pub(super) fn sections(&self, key: &'static str) -> Vec<Self> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(array) = value.get_ref().as_array() else {
            self.mistake(key, "must be an array of tables");
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, one) in array.iter().enumerate() {
            let path = format!("{}[{}]", self.key(key), index + 1);
            match one.get_ref().as_table() {
                Some(table) => sections.push(Self {
                    table,
                    place: one.span(),
                    path,
                    mistakes: self.mistakes.clone(),
                    read: RefCell::default(),
                }),
                None => self.mistakes.add(&one.span(), &path, "must be a table"),
            }
        }
        sections
    }

    /// Notes the keys that nothing has asked for.
    pub(super) fn finish(&self) {
        let read = self.read.borrow();
        for (key, _) in self.table.iter().filter(|(key, _)| !read.contains(key.get_ref().as_ref())) {
            let known = read.iter().copied().collect::<Vec<_>>().join(", ");
            self.mistakes.add(&key.span(), &self.key(key.get_ref()), format!("is not a key here; known are {known}"));
        }
    }
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}
