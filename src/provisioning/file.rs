//! Parses the file of `apply` into plans. The whole file is checked before anything is changed, so that one run reports all
//! mistakes.

use std::path::Path;
use std::{fs, io};

use toml::de::DeTable;

use super::access::access;
use super::callers::{oauth_client, organisation_rate_limit, till, token_issuer};
use super::code_conflicts::conflicts_in_file;
use super::customers::{IdentifierOwners, customer};
use super::error::ApplyError;
use super::secrets::Secrets;
use super::series::{SeriesContext, series};
use super::stores::{StoreCodes, store};
use super::toml::{Mistake, Mistakes, Section};
use super::unique_values::{GlobalNames, check_unique};
use crate::auth::MAX_NAME_LENGTH;
use crate::model::{Access, CustomerPolicy, OrgId, OrganisationPlan, OrganisationSettings, text_in};

/// Reads and checks a file.
///
/// # Errors
/// [`ApplyError::File`], or [`ApplyError::Mistakes`] with all mistakes of the file.
pub fn read(path: &Path) -> Result<Vec<OrganisationPlan>, ApplyError> {
    let source = read_text(path).map_err(|error| ApplyError::File(path.display().to_string(), error))?;
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    parse(&source, &Secrets { directory, variable: &|name| std::env::var_os(name) })
}

fn read_text(path: &Path) -> io::Result<String> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, format!("the file {error}"));
    text_in(fs::read(path)?).map_err(invalid)
}

/// Checks the text of a file.
///
/// # Errors
/// [`ApplyError::Mistakes`] with all mistakes of the text.
pub fn parse(source: &str, secrets: &Secrets<'_>) -> Result<Vec<OrganisationPlan>, ApplyError> {
    let (document, errors) = DeTable::parse_recoverable(source);
    let mistakes = Mistakes::new(source);
    for error in errors {
        mistakes.add(&error.span().unwrap_or_default(), "TOML", error.message());
    }
    let root = Section::new(&document, String::new(), mistakes.clone());
    let mut names = GlobalNames::default();
    let orgs = each(&root, "orgs", |section| organisation(section, secrets, &mut names));
    root.finish();
    ApplyError::if_any(mistakes.take())?;
    orgs.ok_or_else(|| {
        let message = "cannot be read".to_owned();
        ApplyError::Mistakes(vec![Mistake { line: 1, key: "orgs".to_owned(), message }])
    })
}

fn organisation(section: &Section<'_>, secrets: &Secrets<'_>, names: &mut GlobalNames) -> Option<OrganisationPlan> {
    let id = section.required("id", section.integer("id", 1..=i64::MAX));
    if let Some(id) = id {
        check_unique(section, "id", &mut names.orgs, id);
    }
    let name = section.required("name", section.name("name", MAX_NAME_LENGTH));
    let time_zone = section.text("time_zone").unwrap_or_else(|| "UTC".to_owned());
    if jiff::tz::TimeZone::get(&time_zone).is_err() {
        section.mistake("time_zone", "must be an IANA time zone like Asia/Kolkata");
    }
    let policy = section.choice("customer_policy", "open, registered", CustomerPolicy::parse);
    let access = access(section, "default_access");
    let rate_limit = organisation_rate_limit(section);
    let natural_key = section.boolean("natural_key").unwrap_or(false);

    let (mut store_ids, mut till_ids, mut issuers, mut customer_ids) = Default::default();
    let (mut store_codes, mut owners) = (StoreCodes::default(), IdentifierOwners::default());
    let stores = each(section, "stores", |table| store(table, &mut store_ids, &mut store_codes));
    let tills = each(section, "tills", |table| till(table, secrets, &store_ids, &mut till_ids, names));
    let token_issuers = each(section, "token_issuers", |table| token_issuer(table, &mut issuers));
    let oauth_clients =
        each(section, "oauth_clients", |table| oauth_client(table, secrets, &till_ids, &issuers, names));
    let customers = each(section, "customers", |table| customer(table, &mut customer_ids, &mut owners));
    let mut context = SeriesContext::default();
    let series = each(section, "series", |table| series(table, &store_ids, &mut context));
    if let Some(series) = &series {
        for (position, message) in conflicts_in_file(series, &context.code_positions) {
            section.mistake_at(position, message);
        }
    }
    Some(OrganisationPlan {
        id: OrgId(id?),
        settings: OrganisationSettings {
            name: name?,
            time_zone,
            customer_policy: policy.unwrap_or(CustomerPolicy::Open),
            default_access: access.unwrap_or(Access::None),
            rate_limit,
            natural_key,
        },
        stores: stores?,
        tills: tills?,
        token_issuers: token_issuers?,
        oauth_clients: oauth_clients?,
        customers: customers?,
        series: series?,
        unlisted_series: context.unlisted_series(),
        code_positions: context.code_positions,
    })
}

/// Reads every table of an array, so that all of them report their mistakes. Returns `None` if one of them is invalid.
fn each<'s, T>(
    section: &Section<'s>,
    key: &'static str,
    mut read: impl FnMut(&Section<'s>) -> Option<T>,
) -> Option<Vec<T>> {
    let read: Vec<Option<T>> = section
        .sections(key)
        .iter()
        .map(|table| {
            let value = read(table);
            table.finish();
            value
        })
        .collect();
    read.into_iter().collect()
}
