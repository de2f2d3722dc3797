use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::toml::Section;
use super::unique_values::{FirstLines, check_unique};
use crate::issuance::codes;
use crate::model::{
    CODE_ALPHABET, ClientHandling, CodeShape, DiscountType, ExpiryStrategy, FilePosition, MAX_CODE_LENGTH, Series,
    SeriesId, SeriesSnapshot, StoreId, canonical, check_code, may_be_in_code,
};

/// A series must have this many possible codes for each coupon, so that a random code rarely collides with an issued one and a
/// guess rarely hits a coupon.
const MIN_CODES_PER_COUPON: u128 = 10;

/// What the series of one organisation have in common.
#[derive(Default)]
pub(super) struct SeriesContext {
    ids: FirstLines<i64>,
    generic_codes: FirstLines<String>,
    /// The position of each series' `generic_code` or `coupon_prefix`.
    pub(super) code_positions: BTreeMap<SeriesId, FilePosition>,
    /// The series in `mutual_exclusive_series_ids`, each with its position.
    excluded: Vec<(SeriesId, FilePosition)>,
}

impl SeriesContext {
    /// The excluded series that the file does not list.
    pub(super) fn unlisted_series(&self) -> Vec<(SeriesId, FilePosition)> {
        self.excluded.iter().filter(|(id, _)| !self.ids.contains_key(&id.0)).cloned().collect()
    }
}

pub(super) fn series(section: &Section<'_>, stores: &FirstLines<i64>, context: &mut SeriesContext) -> Option<Series> {
    // Read every key before the first `?`: one mistake must not hide another.
    let id = section.required("id", section.integer("id", 1..=i64::MAX));
    if let Some(id) = id {
        check_unique(section, "id", &mut context.ids, id);
    }
    let description = section.required("description", section.text("description"));
    let valid_till_date = section.required("valid_till_date", section.date("valid_till_date"));
    let discount = discount(section);
    let expiry_strategy = expiry_strategy(section);
    let max_create = section.limit("max_create", i64::MAX);
    let client_handling = client_handling(section, max_create, &mut context.generic_codes);
    if let Some(id) = id {
        let key = if section.has("generic_code") { "generic_code" } else { "coupon_prefix" };
        context.code_positions.insert(SeriesId(id), section.position_of(key));
    }
    let store_ids = store_ids(section, stores);
    let excluded = excluded(section, id);
    context.excluded.extend(excluded.iter().cloned());
    let small = |limit: Option<i64>| limit.and_then(|limit| i32::try_from(limit).ok());
    let flag = |key, default| section.boolean(key).unwrap_or(default);
    let settings = Series {
        id: SeriesId(id.unwrap_or_default()),
        snapshot: Arc::new(snapshot(section, description.clone().unwrap_or_default(), discount)),
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

fn snapshot(section: &Section<'_>, description: String, discount: Option<(DiscountType, i64)>) -> SeriesSnapshot {
    SeriesSnapshot {
        description,
        info: section.text("info").unwrap_or_default(),
        discount_code: section.text("discount_code").filter(|code| !code.is_empty()),
        discount_type: discount.map_or(DiscountType::Abs, |discount| discount.0),
        discount_value: discount.map_or(0, |discount| discount.1),
        discount_upto: section.integer("discount_upto", 0..=i64::MAX).unwrap_or(0),
    }
}

fn store_ids(section: &Section<'_>, stores: &FirstLines<i64>) -> Vec<StoreId> {
    let given = section.integers("store_ids");
    for (id, position) in given.iter().filter(|(id, _)| !stores.contains_key(id)) {
        section
            .mistake_at(position, format!("names store {id}, which is not a store of this organisation in this file"));
    }
    given.into_iter().map(|(id, _)| StoreId(id)).collect()
}

/// Reads `mutual_exclusive_series_ids`. `apply` checks later whether the database has those that the file does not list.
fn excluded(section: &Section<'_>, own: Option<i64>) -> Vec<(SeriesId, FilePosition)> {
    let given = section.integers("mutual_exclusive_series_ids");
    // The contract's spelling of an empty list.
    if matches!(given.as_slice(), [(-1, _)]) {
        return Vec::new();
    }
    for (id, position) in &given {
        if Some(*id) == own {
            section.mistake_at(position, "must not name the series itself");
        } else if *id == -1 {
            section.mistake_at(position, "-1 means none, and must be the only element");
        } else if *id < 1 {
            section.mistake_at(position, format!("names series {id}: ids of series begin at 1"));
        }
    }
    given.into_iter().map(|(id, position)| (SeriesId(id), position)).collect()
}

fn sorted<T: Ord>(ids: impl IntoIterator<Item = T>) -> Vec<T> {
    ids.into_iter().collect::<BTreeSet<_>>().into_iter().collect()
}

fn discount(section: &Section<'_>) -> Option<(DiscountType, i64)> {
    let kind = section.required("discount_type", section.choice("discount_type", "ABS, PERC", DiscountType::parse));
    let max = if kind == Some(DiscountType::Perc) { 100 } else { i64::MAX };
    let value = section.required("discount_value", section.integer("discount_value", 0..=max));
    Some((kind?, value?))
}

fn expiry_strategy(section: &Section<'_>) -> ExpiryStrategy {
    let value = section.integer("expiry_strategy_value", 0..=36_500).and_then(|value| i32::try_from(value).ok());
    let words = "SERIES_EXPIRY, DAYS, MONTHS_END";
    let parse = |word: &str| ExpiryStrategy::parse(word, value.unwrap_or(0));
    let strategy = section.choice("expiry_strategy_type", words, parse).unwrap_or(ExpiryStrategy::SeriesExpiry);
    if strategy == ExpiryStrategy::SeriesExpiry && value.is_some() {
        section.mistake("expiry_strategy_value", "is allowed only with DAYS or MONTHS_END");
    } else if strategy != ExpiryStrategy::SeriesExpiry {
        section.required("expiry_strategy_value", value);
    }
    strategy
}

fn client_handling(
    section: &Section<'_>,
    max_create: Option<i64>,
    codes: &mut FirstLines<String>,
) -> Option<ClientHandling> {
    let kind = section.text("client_handling_type").unwrap_or_else(|| "DISC_CODE".to_owned());
    let shape = code_shape(section);
    let generic = section.name("generic_code", MAX_CODE_LENGTH).map(|code| canonical(&code));
    if let Some(Err(error)) = generic.as_deref().map(check_code) {
        section.mistake("generic_code", error.to_string());
    }
    if generic.is_some() && kind != "GENERIC" {
        section.mistake("generic_code", "is allowed only with client_handling_type GENERIC");
    }
    match kind.as_str() {
        "DISC_CODE" => {
            check_space(section, &shape, max_create.unwrap_or(0));
            Some(ClientHandling::Generated(shape))
        }
        "DISC_CODE_PIN" => Some(ClientHandling::Pool),
        "GENERIC" => {
            let code = section.required("generic_code", generic)?;
            check_unique(section, "generic_code", codes, code.clone());
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

/// Reports a shape that has too few codes for the cap.
fn check_space(section: &Section<'_>, shape: &CodeShape, cap: i64) {
    let (space, letters, length) = (codes::space_size(shape), shape.alphabet().len(), shape.random_code_length);
    let needed = u128::try_from(cap).unwrap_or(0).saturating_mul(MIN_CODES_PER_COUPON);
    if space < needed {
        section.mistake(
            "random_code_length",
            format!(
                "{letters}^{length} = {space} codes are too few for max_create {cap}: \
                 at least {MIN_CODES_PER_COUPON} x {cap} = {needed} are needed"
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
