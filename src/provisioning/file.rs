//! The file of `apply`: its shape and its rules, parsed into plans. The tables of those who call are in `callers`, stores in `stores`,
//! customers in `customers`.
//! All of it is checked before anything is changed.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use toml::de::DeTable;

use super::callers::{oauth_client, organisation_rate_limit, till, token_issuer};
use super::codes::drawn_in_file;
use super::customers::{Given, customer};
use super::stores::{Codes, store};
use super::toml::{Mistake, Mistakes, Section};
use crate::auth::LONGEST_NAME;
use crate::issuance::codes;
use crate::model::{
    Access, CODE_ALPHABET, ClientHandling, CodeShape, CustomerPolicy, DiscountType, ExpiryStrategy, Face, LONGEST_CODE,
    OrgId, OrganisationPlan, Place, Series, SeriesId, StoreId, canonical, check_code, may_be_in_code,
};

pub(super) const ACCESS_WORDS: &str = "none, read, write";
/// A series needs so many times more codes than coupons: a draw rarely meets a code that exists, and a guess rarely
/// meets a coupon.
const LEAST_CODES_PER_COUPON: u128 = 10;

/// Where secrets that are not in the file itself come from.
pub struct Secrets<'a> {
    /// What a relative `password_file` is relative to.
    pub directory: &'a Path,
    /// Looks up an environment variable.
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
}

/// Parses a whole file.
///
/// # Errors
/// Every mistake in it, by line.
pub fn parse(source: &str, secrets: &Secrets<'_>) -> Result<Vec<OrganisationPlan>, Vec<Mistake>> {
    let (document, errors) = DeTable::parse_recoverable(source);
    let mistakes = Mistakes::new(source);
    for error in errors {
        mistakes.add(&error.span().unwrap_or_default(), "TOML", error.message());
    }
    let root = Section::new(&document, String::new(), mistakes.clone());
    let mut names = Names::default();
    let orgs = each(&root, "orgs", |section| organisation(section, secrets, &mut names));
    root.finish();
    let found = mistakes.take();
    match (found.is_empty(), orgs) {
        (true, Some(orgs)) => Ok(orgs),
        (true, None) => Err(vec![Mistake { line: 1, key: "orgs".to_owned(), message: "cannot be read".to_owned() }]),
        (false, _) => Err(found),
    }
}

/// What must be unique over the whole file, because it is looked up without an organisation.
#[derive(Default)]
pub(super) struct Names {
    orgs: Lines<i64>,
    pub(super) tills: Lines<String>,
    pub(super) clients: Lines<String>,
}

/// Values of the file, each with the line of the first that has it.
pub(super) type Lines<T> = BTreeMap<T, usize>;

/// Notes a value that was there before.
pub(super) fn unique<T: Ord>(section: &Section<'_>, key: &str, seen: &mut Lines<T>, value: T) {
    let line = section.place_of(key).line;
    match seen.entry(value) {
        Entry::Occupied(first) => section.mistake(key, format!("is listed twice, first in line {}", first.get())),
        Entry::Vacant(place) => {
            place.insert(line);
        }
    }
}

fn organisation(section: &Section<'_>, secrets: &Secrets<'_>, names: &mut Names) -> Option<OrganisationPlan> {
    let id = section.required("id", section.integer("id", 1..=i64::MAX));
    if let Some(id) = id {
        unique(section, "id", &mut names.orgs, id);
    }
    let name = section.required("name", section.name("name", LONGEST_NAME));
    let time_zone = section.text("time_zone").unwrap_or_else(|| "UTC".to_owned());
    if jiff::tz::TimeZone::get(&time_zone).is_err() {
        section.mistake("time_zone", "must be an IANA time zone like Asia/Kolkata");
    }
    let policy = section.choice("customer_policy", "open, registered", CustomerPolicy::parse);
    let access = section.choice("default_access", ACCESS_WORDS, Access::parse);
    let rate_limit = organisation_rate_limit(section);
    let natural_key = section.boolean("natural_key").unwrap_or(false);

    let (mut store_ids, mut till_ids, mut issuers, mut customer_ids) = Default::default();
    let (mut store_codes, mut given, mut seen) = (Codes::default(), Given::default(), SeriesSeen::default());
    let stores = each(section, "stores", |one| store(one, &mut store_ids, &mut store_codes));
    let tills = each(section, "tills", |one| till(one, secrets, &store_ids, &mut till_ids, names));
    let token_issuers = each(section, "token_issuers", |one| token_issuer(one, &mut issuers));
    let oauth_clients = each(section, "oauth_clients", |one| oauth_client(one, secrets, &till_ids, &issuers, names));
    let customers = each(section, "customers", |one| customer(one, &mut customer_ids, &mut given));
    let series = each(section, "series", |one| series(one, &store_ids, &mut seen));
    if let Some(series) = &series {
        for (place, told) in drawn_in_file(series, &seen.code_places) {
            section.mistake_at(place, told);
        }
    }
    Some(OrganisationPlan {
        id: OrgId(id?),
        name: name?,
        time_zone,
        customer_policy: policy.unwrap_or(CustomerPolicy::Open),
        default_access: access.unwrap_or(Access::None),
        rate_limit,
        natural_key,
        stores: stores?,
        tills: tills?,
        token_issuers: token_issuers?,
        oauth_clients: oauth_clients?,
        customers: customers?,
        series: series?,
        code_places: seen.code_places,
        unlisted_series: seen.excluded.into_iter().filter(|(id, _)| !seen.ids.contains_key(&id.0)).collect(),
    })
}

/// Reads every table of an array, so that each tells its mistakes, and then all of them or none.
fn each<'s, T>(
    section: &Section<'s>,
    key: &'static str,
    mut read: impl FnMut(&Section<'s>) -> Option<T>,
) -> Option<Vec<T>> {
    let read: Vec<Option<T>> = section
        .sections(key)
        .iter()
        .map(|one| {
            let value = read(one);
            one.finish();
            value
        })
        .collect();
    read.into_iter().collect()
}

/// What was read of an organisation's series so far.
#[derive(Default)]
struct SeriesSeen {
    ids: Lines<i64>,
    generic_codes: Lines<String>,
    /// Where it is said what their codes are.
    code_places: BTreeMap<SeriesId, Place>,
    /// The series that others exclude, each where it is named.
    excluded: Vec<(SeriesId, Place)>,
}

fn series(section: &Section<'_>, stores: &Lines<i64>, seen: &mut SeriesSeen) -> Option<Series> {
    // Every key is read before the first `?`: one mistake must not hide another.
    let id = section.required("id", section.integer("id", 1..=i64::MAX));
    if let Some(id) = id {
        unique(section, "id", &mut seen.ids, id);
    }
    let description = section.required("description", section.text("description"));
    let valid_till_date = section.required("valid_till_date", section.date("valid_till_date"));
    let discount = discount(section);
    let expiry_strategy = expiry_strategy(section);
    let max_create = section.limit("max_create", i64::MAX);
    let client_handling = client_handling(section, max_create, &mut seen.generic_codes);
    if let Some(id) = id {
        let key = if section.has("generic_code") { "generic_code" } else { "coupon_prefix" };
        seen.code_places.insert(SeriesId(id), section.place_of(key));
    }
    let store_ids = store_ids(section, stores);
    let excluded = excluded(section, id);
    seen.excluded.extend(excluded.iter().cloned());
    let small = |limit: Option<i64>| limit.and_then(|limit| i32::try_from(limit).ok());
    let flag = |key, default| section.boolean(key).unwrap_or(default);
    let settings = Series {
        id: SeriesId(id.unwrap_or_default()),
        face: Arc::new(Face {
            description: description.clone().unwrap_or_default(),
            info: section.text("info").unwrap_or_default(),
            discount_code: section.text("discount_code").filter(|code| !code.is_empty()),
            discount_type: discount.map_or(DiscountType::Abs, |discount| discount.0),
            discount_value: discount.map_or(0, |discount| discount.1),
            discount_upto: section.integer("discount_upto", 0..=i64::MAX).unwrap_or(0),
        }),
        valid_till_date: valid_till_date.unwrap_or_default(),
        expiry_strategy,
        redemption_valid_from: section.date("redemption_valid_from"),
        client_handling: client_handling.clone().unwrap_or(ClientHandling::Pool),
        max_create,
        is_multiple_vouchers_per_user_allowed: flag("is_multiple_vouchers_per_user_allowed", false),
        max_vouchers_per_user: small(section.limit("max_vouchers_per_user", i32::MAX.into())),
        do_not_resend_existing_voucher: flag("do_not_resend_existing_voucher", true),
        min_days_between_vouchers: small(section.limit("min_days_between_vouchers", 36_500)).filter(|days| *days > 0),
        mutual_exclusive_series_ids: sorted(excluded.into_iter().map(|(id, _)| id)),
        store_ids: sorted(store_ids),
        externally_managed: flag("externally_managed", false),
    };
    (id.is_some()
        && description.is_some()
        && valid_till_date.is_some()
        && discount.is_some()
        && client_handling.is_some())
    .then_some(settings)
}

fn store_ids(section: &Section<'_>, stores: &Lines<i64>) -> Vec<StoreId> {
    let given = section.integers("store_ids");
    for (id, place) in given.iter().filter(|(id, _)| !stores.contains_key(id)) {
        section.mistake_at(place, format!("names store {id}, which is none of this organisation in this file"));
    }
    given.into_iter().map(|(id, _)| StoreId(id)).collect()
}

/// `mutual_exclusive_series_ids`. Whether those that the file does not list are stored is found out later.
fn excluded(section: &Section<'_>, own: Option<i64>) -> Vec<(SeriesId, Place)> {
    let given = section.integers("mutual_exclusive_series_ids");
    // As the contract writes it.
    if matches!(given.as_slice(), [(-1, _)]) {
        return Vec::new();
    }
    for (id, place) in &given {
        if Some(*id) == own {
            section.mistake_at(place, "must not name the series itself");
        } else if *id == -1 {
            section.mistake_at(place, "-1 means none, and stands alone");
        } else if *id < 1 {
            section.mistake_at(place, format!("names series {id}: ids of series begin at 1"));
        }
    }
    given.into_iter().map(|(id, place)| (SeriesId(id), place)).collect()
}

fn sorted<T: Ord>(ids: impl IntoIterator<Item = T>) -> Vec<T> {
    ids.into_iter().collect::<BTreeSet<_>>().into_iter().collect()
}

fn discount(section: &Section<'_>) -> Option<(DiscountType, i64)> {
    let kind = section.required("discount_type", section.choice("discount_type", "ABS, PERC", DiscountType::parse));
    let most = if kind == Some(DiscountType::Perc) { 100 } else { i64::MAX };
    let value = section.required("discount_value", section.integer("discount_value", 0..=most));
    Some((kind?, value?))
}

fn expiry_strategy(section: &Section<'_>) -> ExpiryStrategy {
    let value = section.integer("expiry_strategy_value", 0..=36_500).and_then(|value| i32::try_from(value).ok());
    let words = "SERIES_EXPIRY, DAYS, MONTHS_END";
    let parse = |word: &str| ExpiryStrategy::parse(word, value.unwrap_or(0));
    let strategy = section.choice("expiry_strategy_type", words, parse).unwrap_or(ExpiryStrategy::SeriesExpiry);
    if strategy == ExpiryStrategy::SeriesExpiry && value.is_some() {
        section.mistake("expiry_strategy_value", "means something only with DAYS or MONTHS_END");
    } else if strategy != ExpiryStrategy::SeriesExpiry {
        section.required("expiry_strategy_value", value);
    }
    strategy
}

fn client_handling(
    section: &Section<'_>,
    max_create: Option<i64>,
    codes: &mut Lines<String>,
) -> Option<ClientHandling> {
    let kind = section.text("client_handling_type").unwrap_or_else(|| "DISC_CODE".to_owned());
    let shape = code_shape(section);
    let generic = section.name("generic_code", LONGEST_CODE).map(|code| canonical(&code));
    if let Some(Err(error)) = generic.as_deref().map(check_code) {
        section.mistake("generic_code", error.to_string());
    }
    if generic.is_some() && kind != "GENERIC" {
        section.mistake("generic_code", "means something only with client_handling_type GENERIC");
    }
    match kind.as_str() {
        "DISC_CODE" => {
            check_space(section, &shape, max_create.unwrap_or(0));
            Some(ClientHandling::Generated(shape))
        }
        "DISC_CODE_PIN" => Some(ClientHandling::Pool),
        "GENERIC" => {
            let code = section.required("generic_code", generic)?;
            unique(section, "generic_code", codes, code.clone());
            Some(ClientHandling::Generic(code))
        }
        _ => {
            section.mistake("client_handling_type", "must be one of DISC_CODE, GENERIC, DISC_CODE_PIN");
            None
        }
    }
}

fn code_shape(section: &Section<'_>) -> CodeShape {
    let length = section.integer("random_code_length", 5..=20);
    CodeShape {
        alpha_numeric: section.boolean("alpha_numeric").unwrap_or(true),
        random_code_length: length.and_then(|length| u8::try_from(length).ok()).unwrap_or(10),
        coupon_prefix: affix(section, "coupon_prefix"),
        coupon_suffix: affix(section, "coupon_suffix"),
    }
}

/// Refuses a shape that has too few codes for the cap.
fn check_space(section: &Section<'_>, shape: &CodeShape, cap: i64) {
    let (space, letters, length) = (codes::space(shape), shape.alphabet().len(), shape.random_code_length);
    let needed = u128::try_from(cap).unwrap_or(0).saturating_mul(LEAST_CODES_PER_COUPON);
    if space < needed {
        section.mistake(
            "random_code_length",
            format!(
                "{letters}^{length} = {space} codes are too few for max_create {cap}: \
                 at least {LEAST_CODES_PER_COUPON} x {cap} = {needed} are needed"
            ),
        );
    }
}

fn affix(section: &Section<'_>, key: &'static str) -> String {
    let given = section.text(key).unwrap_or_default();
    if given.len() > 10 || !given.chars().all(may_be_in_code) {
        section.mistake(key, format!("must have at most 10 characters: {CODE_ALPHABET}"));
    }
    canonical(&given)
}
