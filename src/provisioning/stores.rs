//! The stores in the file of `apply`, with the codes and external ids by which requests name them.
//!
//! Two stores of an organisation never share one. Of those in the file that is a mistake with its line; a store that is in the
//! database alone counts as well.

use std::collections::BTreeMap;
use std::fmt;

use super::file::{ACCESS_WORDS, Lines, unique};
use super::toml::Section;
use crate::auth::LONGEST_NAME;
use crate::model::{Access, StoreId, StorePlan};

const EXTERNAL_IDS: &str = "external_ids";

pub(super) fn store(section: &Section<'_>, ids: &mut Lines<i64>, codes: &mut Codes) -> Option<StorePlan> {
    let id = section.required("id", section.integer("id", 1..=i64::MAX));
    if let Some(id) = id {
        unique(section, "id", ids, id);
    }
    let name = section.required("name", section.name("name", LONGEST_NAME));
    let access = section.choice("access", ACCESS_WORDS, Access::parse);
    let code = section.text("code").filter(|code| is_code(section, "code", code));
    let external_ids = external_ids(section);
    let store = StorePlan { id: StoreId(id?), name: name?, access, code, external_ids };
    for shared in codes.add(&store) {
        section.mistake(if shared.key == "code" { "code" } else { EXTERNAL_IDS }, shared.to_string());
    }
    Some(store)
}

fn external_ids(section: &Section<'_>) -> [Option<String>; 3] {
    // What is wrong with it is noted: the file is refused then, whatever is made of it here.
    let given = section.texts(EXTERNAL_IDS).unwrap_or_default();
    if given.len() > 3 {
        section.mistake(EXTERNAL_IDS, "must hold at most three");
    }
    let mut given =
        given.into_iter().map(|id| Some(id).filter(|id| !id.is_empty() && is_code(section, EXTERNAL_IDS, id)));
    std::array::from_fn(|_| given.next().flatten())
}

/// Whether a header can hold it, and the database. A header's value loses the white space around it on its way.
fn is_code(section: &Section<'_>, key: &'static str, code: &str) -> bool {
    let is_code = (1..=LONGEST_NAME).contains(&code.chars().count())
        && code.trim() == code
        && !code.contains(|c: char| c.is_control());
    if !is_code {
        let rule = format!("must have 1 to {LONGEST_NAME} characters, no control character, and no space around them");
        section.mistake(key, rule);
    }
    is_code
}

/// A code or external id that two stores have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedCode {
    key: &'static str,
    code: String,
    first: StoreId,
    second: StoreId,
}

impl fmt::Display for SharedCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, code, first, second } = self;
        write!(formatter, "stores {} and {} have the same {key}: {code:?}", first.0, second.0)
    }
}

/// The codes and external ids that stores of an organisation have, each with the first store that has it.
#[derive(Default)]
pub(super) struct Codes(BTreeMap<(&'static str, String), StoreId>);

impl Codes {
    /// Adds those of a store; returns those that another store has.
    pub(super) fn add(&mut self, store: &StorePlan) -> Vec<SharedCode> {
        let mut shared = Vec::new();
        for (key, code) in codes(store) {
            let first = *self.0.entry((key, code.clone())).or_insert(store.id);
            // A store that is listed twice is a mistake of its own.
            if first != store.id {
                shared.push(SharedCode { key, code, first, second: store.id });
            }
        }
        shared
    }
}

fn codes(store: &StorePlan) -> Vec<(&'static str, String)> {
    let external_ids = StorePlan::EXTERNAL_ID_NAMES.into_iter().zip(&store.external_ids);
    let given = external_ids.filter_map(|(name, id)| Some((name, id.clone()?)));
    [("code", store.effective_code())].into_iter().chain(given).collect()
}
