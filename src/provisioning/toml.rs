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

use crate::model::Place;

/// The years that a date may be in: another one is a slip of the pen, such as the year 26.
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
    pub(super) fn at(place: &Place, message: impl Into<String>) -> Self {
        Self { line: place.line, key: place.key.clone(), message: message.into() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {}: {}: {}", self.line, self.key, self.message)
    }
}

/// The mistakes found so far, shared by all sections of a file.
#[derive(Clone)]
pub(super) struct Mistakes {
    /// Where lines end. A file may have a hundred thousand customers, each with a few places.
    line_ends: Rc<[usize]>,
    found: Rc<RefCell<Vec<Mistake>>>,
}

impl Mistakes {
    pub(super) fn new(source: &str) -> Self {
        let line_ends = source.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at);
        Self { line_ends: line_ends.collect(), found: Rc::default() }
    }

    pub(super) fn add(&self, at: &Range<usize>, key: &str, message: impl Into<String>) {
        self.put(Mistake { line: self.line(at), key: key.to_owned(), message: message.into() });
    }

    fn put(&self, mistake: Mistake) {
        self.found.borrow_mut().push(mistake);
    }

    fn line(&self, at: &Range<usize>) -> usize {
        1 + self.line_ends.partition_point(|end| *end < at.start)
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
    mistakes: Mistakes,
    read: RefCell<BTreeSet<&'static str>>,
}

impl<'s> Section<'s> {
    pub(super) fn new(table: &'s Spanned<DeTable<'s>>, path: String, mistakes: Mistakes) -> Self {
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
        self.mistake_at(&self.place_of(key), message);
    }

    /// Notes a mistake in one element of an array.
    pub(super) fn mistake_at(&self, place: &Place, message: impl Into<String>) {
        self.mistakes.put(Mistake::at(place, message));
    }

    /// Where the section begins.
    pub(super) fn place(&self) -> Place {
        Place { line: self.mistakes.line(&self.place), key: self.path.clone() }
    }

    /// Where the value of a key is; if it is absent, where the section begins.
    pub(super) fn place_of(&self, key: &str) -> Place {
        let at = self.table.get(key).map_or_else(|| self.place.clone(), Spanned::span);
        Place { line: self.mistakes.line(&at), key: self.key(key) }
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

    /// An array of integers, each with its place. What is none is noted, and the file refused: it may be left out here.
    pub(super) fn integers(&self, key: &'static str) -> Vec<(i64, Place)> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let path = self.key(key);
        let placed = |one: &Spanned<DeValue<'_>>| {
            let place = Place { line: self.mistakes.line(&one.span()), key: path.clone() };
            Some((integer(one.get_ref())?, place))
        };
        let integers: Option<Vec<_>> = value.get_ref().as_array().and_then(|array| array.iter().map(placed).collect());
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
        // What is no date is told below.
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
