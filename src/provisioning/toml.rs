//! Reads TOML tables key by key, and collects all mistakes with their lines instead of stopping at the first.
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

use crate::model::FilePosition;

/// The years of a valid date. Any other year is a typing mistake, such as the year 26.
const YEARS: RangeInclusive<i16> = 2000..=9999;

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

impl Mistake {
    pub(super) fn at(position: &FilePosition, message: impl Into<String>) -> Self {
        Self { line: position.line, key: position.key.clone(), message: message.into() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {}: {}: {}", self.line, self.key, self.message)
    }
}

/// Collects the mistakes of all sections of a file.
#[derive(Clone)]
pub(super) struct Mistakes {
    /// The offsets of line ends. A binary search finds a line: a file may have a hundred thousand customers.
    line_ends: Rc<[usize]>,
    found: Rc<RefCell<Vec<Mistake>>>,
}

impl Mistakes {
    pub(super) fn new(source: &str) -> Self {
        let line_ends = source.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at);
        Self { line_ends: line_ends.collect(), found: Rc::default() }
    }

    pub(super) fn add(&self, span: &Range<usize>, key: &str, message: impl Into<String>) {
        self.push(Mistake { line: self.line(span), key: key.to_owned(), message: message.into() });
    }

    fn push(&self, mistake: Mistake) {
        self.found.borrow_mut().push(mistake);
    }

    fn line(&self, span: &Range<usize>) -> usize {
        1 + self.line_ends.partition_point(|end| *end < span.start)
    }

    pub(super) fn take(&self) -> Vec<Mistake> {
        let mut found = self.found.take();
        found.sort();
        found
    }
}

/// A table of the file. A getter returns `None` if the key is absent or its value is wrong; it reports a wrong value as a mistake.
pub(super) struct Section<'s> {
    table: &'s DeTable<'s>,
    /// The start of the section, which is the position of a missing key.
    span: Range<usize>,
    path: String,
    mistakes: Mistakes,
    keys_read: RefCell<BTreeSet<&'static str>>,
}

impl<'s> Section<'s> {
    pub(super) fn new(table: &'s Spanned<DeTable<'s>>, path: String, mistakes: Mistakes) -> Self {
        Self { table: table.get_ref(), span: table.span(), path, mistakes, keys_read: RefCell::default() }
    }

    fn value(&self, key: &'static str) -> Option<&'s Spanned<DeValue<'s>>> {
        self.keys_read.borrow_mut().insert(key);
        self.table.get(key)
    }

    fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Reports a mistake in the value of a key or, if the key is absent, in the section.
    pub(super) fn mistake(&self, key: &str, message: impl Into<String>) {
        self.mistake_at(&self.position_of(key), message);
    }

    /// Reports a mistake in one element of an array.
    pub(super) fn mistake_at(&self, position: &FilePosition, message: impl Into<String>) {
        self.mistakes.push(Mistake::at(position, message));
    }

    /// The position of the section.
    pub(super) fn position(&self) -> FilePosition {
        FilePosition { line: self.mistakes.line(&self.span), key: self.path.clone() }
    }

    /// The position of a key's value or, if the key is absent, of the section.
    pub(super) fn position_of(&self, key: &str) -> FilePosition {
        let span = self.table.get(key).map_or_else(|| self.span.clone(), Spanned::span);
        FilePosition { line: self.mistakes.line(&span), key: self.key(key) }
    }

    pub(super) fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// Reports the key as missing, unless it is there.
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

    /// A string of at most `max` characters that is not blank.
    pub(super) fn name(&self, key: &'static str, max: usize) -> Option<String> {
        let text = self.text(key)?;
        if text.trim().is_empty() || text.chars().count() > max {
            self.mistake(key, format!("must have 1 to {max} characters"));
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

    /// A limit; -1 and a missing key mean no limit.
    pub(super) fn limit(&self, key: &'static str, max: i64) -> Option<i64> {
        self.integer(key, -1..=max).filter(|limit| *limit >= 0)
    }

    /// An array of integers, each with its position. A wrong array is reported as a mistake, and returned as an empty one.
    pub(super) fn integers(&self, key: &'static str) -> Vec<(i64, FilePosition)> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let path = self.key(key);
        let with_place = |element: &Spanned<DeValue<'_>>| {
            let position = FilePosition { line: self.mistakes.line(&element.span()), key: path.clone() };
            Some((integer(element.get_ref())?, position))
        };
        let integers: Option<Vec<_>> =
            value.get_ref().as_array().and_then(|array| array.iter().map(with_place).collect());
        if integers.is_none() {
            self.mistake(key, "must be an array of integers");
        }
        integers.unwrap_or_default()
    }

    /// An array of strings.
    pub(super) fn texts(&self, key: &'static str) -> Option<Vec<String>> {
        let array = self.value(key)?.get_ref().as_array();
        let texts: Option<Vec<String>> =
            array.and_then(|array| array.iter().map(|element| element.get_ref().as_str().map(str::to_owned)).collect());
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
        match date.map(Date::year) {
            None => self.mistake(key, "must be a date like 2027-05-09"),
            Some(year) if !YEARS.contains(&year) => {
                let (first, last) = (YEARS.start(), YEARS.end());
                self.mistake(
                    key,
                    format!("must be a date like 2027-05-09, from {first} to {last}: this is the year {year}"),
                );
            }
            Some(_) => {}
        }
        date
    }

    /// One of several words.
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
        for (index, table) in array.iter().enumerate() {
            let path = format!("{}[{}]", self.key(key), index + 1);
            let span = table.span();
            match table.get_ref().as_table() {
                Some(table) => sections.push(Self {
                    table,
                    span,
                    path,
                    mistakes: self.mistakes.clone(),
                    keys_read: RefCell::default(),
                }),
                None => self.mistakes.add(&span, &path, "must be a table"),
            }
        }
        sections
    }

    /// Reports the keys that no getter has read.
    pub(super) fn finish(&self) {
        let known = self.keys_read.borrow();
        for (key, _) in self.table.iter().filter(|(key, _)| !known.contains(key.get_ref().as_ref())) {
            let known = known.iter().copied().collect::<Vec<_>>().join(", ");
            self.mistakes.add(&key.span(), &self.key(key.get_ref()), format!("is not a key here; known are {known}"));
        }
    }
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}
