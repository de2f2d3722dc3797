//! The stores in the file of `apply`, with the codes and external ids by which requests name them.
//!
//! No two stores of an organisation may share one. Two such stores of the file are a mistake with a line; the comparison with
//! stores that the file does not list comes later.

use std::collections::BTreeMap;
use std::fmt;

use super::access::access;
use super::toml::Section;
use super::unique_values::{FirstLines, check_unique};
use crate::auth::MAX_NAME_LENGTH;
use crate::model::{StoreId, StorePlan};

const EXTERNAL_IDS: &str = "external_ids";

pub(super) fn store(section: &Section<'_>, ids: &mut FirstLines<i64>, codes: &mut StoreCodes) -> Option<StorePlan> {
    let id = section.required("id", section.integer("id", 1..=i64::MAX));
    if let Some(id) = id {
        check_unique(section, "id", ids, id);
    }
    let name = section.required("name", section.name("name", MAX_NAME_LENGTH));
    let access = access(section, "access");
    let code = section.text("code").filter(|code| is_code(section, "code", code));
    let external_ids = external_ids(section);
    let store = StorePlan { id: StoreId(id?), name: name?, access, code, external_ids };
    for shared in codes.add(&store) {
        section.mistake(if shared.key == "code" { "code" } else { EXTERNAL_IDS }, shared.to_string());
    }
    Some(store)
}

fn external_ids(section: &Section<'_>) -> [Option<String>; 3] {
    // A wrong value is reported as a mistake and refuses the file, so an empty list does no harm here.
    let given = section.texts(EXTERNAL_IDS).unwrap_or_default();
    if given.len() > 3 {
        section.mistake(EXTERNAL_IDS, "must contain at most three");
    }
    let mut given =
        given.into_iter().map(|id| Some(id).filter(|id| !id.is_empty() && is_code(section, EXTERNAL_IDS, id)));
    std::array::from_fn(|_| given.next().flatten())
}

/// Whether a header and the database can contain the code. HTTP removes the white space around a header's value.
fn is_code(section: &Section<'_>, key: &'static str, code: &str) -> bool {
    let is_code = (1..=MAX_NAME_LENGTH).contains(&code.chars().count())
        && code.trim() == code
        && !code.contains(|c: char| c.is_control());
    if !is_code {
        let rule =
            format!("must have 1 to {MAX_NAME_LENGTH} characters, no control character, and no space around them");
        section.mistake(key, rule);
    }
    is_code
}

/// Two stores with the same code or external id.
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

/// The codes and external ids of an organisation's stores, each with the first store that has it.
#[derive(Default)]
pub(super) struct StoreCodes(BTreeMap<(&'static str, String), StoreId>);

impl StoreCodes {
    /// Adds the codes of a store. Returns those that another store has.
    pub(super) fn add(&mut self, store: &StorePlan) -> Vec<SharedCode> {
        let mut shared = Vec::new();
        for (key, code) in codes(store) {
            let first = *self.0.entry((key, code.clone())).or_insert(store.id);
            // A store that is listed twice is already a mistake.
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
