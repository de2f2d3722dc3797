//! The settings of a coupon series, with the names of the contract (contract 4). `issuance::rules` applies them.

use std::sync::Arc;

use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr};
use utoipa::ToSchema;

use super::StoreId;

/// The id of a series in its organisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct SeriesId(pub i64);

/// `discountType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema, EnumString, IntoStaticStr)]
#[serde(rename_all = "UPPERCASE")]
#[strum(serialize_all = "UPPERCASE")]
#[schema(description = "An amount of money, or a percentage.")]
pub enum DiscountType {
    /// An amount of money.
    Abs,
    /// A percentage.
    Perc,
}

impl DiscountType {
    /// The type with this name in the contract.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        name.parse().ok()
    }

    /// The name in the contract.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// `expiryStrategyType` with its `expiryStrategyValue`: the last day of a coupon, at most the last day of the series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpiryStrategy {
    /// The last day of the series.
    SeriesExpiry,
    /// This number of days after the issue; 0 is the day of issue.
    Days(i32),
    /// The last day of the month this number of months after the issue; 0 is the month of issue.
    MonthsEnd(i32),
}

impl ExpiryStrategy {
    /// The strategy with this name in the contract. Only `DAYS` and `MONTHS_END` use `value`.
    #[must_use]
    pub fn parse(name: &str, value: i32) -> Option<Self> {
        match name {
            "SERIES_EXPIRY" => Some(Self::SeriesExpiry),
            "DAYS" => Some(Self::Days(value)),
            "MONTHS_END" => Some(Self::MonthsEnd(value)),
            _ => None,
        }
    }

    /// The name in the contract.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SeriesExpiry => "SERIES_EXPIRY",
            Self::Days(_) => "DAYS",
            Self::MonthsEnd(_) => "MONTHS_END",
        }
    }

    /// `expiryStrategyValue`.
    #[must_use]
    pub const fn value(self) -> i32 {
        match self {
            Self::SeriesExpiry => 0,
            Self::Days(value) | Self::MonthsEnd(value) => value,
        }
    }
}

/// Letters and digits without those that look alike (0 O 1 I L).
const ALPHANUMERIC: &str = "23456789ABCDEFGHJKMNPQRSTUVWXYZ";
/// A code keeps its leading zeros.
const DIGITS: &str = "0123456789";

/// The shape of a generated code: prefix, random part, suffix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeShape {
    /// `alphaNumeric`; false: only digits.
    pub alpha_numeric: bool,
    /// `randomCodeLength`: characters of the random part, 5 to 20.
    pub random_code_length: u8,
    /// `couponPrefix`, up to 10 characters, upper case.
    pub coupon_prefix: String,
    /// `couponSuffix`, up to 10 characters, upper case.
    pub coupon_suffix: String,
}

impl CodeShape {
    /// The alphabet of the random part: ASCII, upper case.
    #[must_use]
    pub const fn alphabet(&self) -> &'static str {
        if self.alpha_numeric { ALPHANUMERIC } else { DIGITS }
    }

    /// Whether the generator could produce this code, given in its canonical form.
    #[must_use]
    pub fn could_generate(&self, code: &str) -> bool {
        let random = code.strip_prefix(&self.coupon_prefix).and_then(|rest| rest.strip_suffix(&self.coupon_suffix));
        random.is_some_and(|random| {
            random.len() == usize::from(self.random_code_length)
                && random.chars().all(|letter| self.alphabet().contains(letter))
        })
    }
}

/// `clientHandlingType`: the origin of coupon codes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientHandling {
    /// `DISC_CODE`: a unique generated code.
    Generated(CodeShape),
    /// `GENERIC`: one code for all customers of the series.
    Generic(String),
    /// `DISC_CODE_PIN`: a code uploaded beforehand, used once.
    Pool,
}

impl ClientHandling {
    /// The name in the contract.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Generated(_) => "DISC_CODE",
            Self::Generic(_) => "GENERIC",
            Self::Pool => "DISC_CODE_PIN",
        }
    }
}

/// What a coupon shows of its series: copied into the result (contract 2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeriesSnapshot {
    /// `description`.
    pub description: String,
    /// `detailedInfo`.
    pub info: String,
    /// `discountCode`; `NO_VALUE` where there is none.
    pub discount_code: Option<String>,
    /// `discountType`.
    pub discount_type: DiscountType,
    /// `discountValue`: a percentage, or an amount in the organisation's currency.
    pub discount_value: i64,
    /// `discountUpto`: the largest discount; 0 where there is no bound.
    pub discount_upto: i64,
}

/// The settings of a series (contract 4). A limit of `None` is unlimited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// The id.
    pub id: SeriesId,
    /// What a coupon shows of it.
    pub snapshot: Arc<SeriesSnapshot>,
    /// The last day of the series.
    pub valid_till_date: Date,
    /// The last day of a coupon.
    pub expiry_strategy: ExpiryStrategy,
    /// The first day of redemption.
    pub redemption_valid_from: Option<Date>,
    /// The origin of coupon codes.
    pub client_handling: ClientHandling,
    /// The cap: the maximum number of coupons of the series.
    pub max_create: Option<i64>,
    /// Whether a customer may receive more than one coupon.
    pub is_multiple_vouchers_per_user_allowed: bool,
    /// The maximum number of coupons for a customer, if more than one is allowed.
    pub max_vouchers_per_user: Option<i32>,
    /// False: a customer who holds a valid coupon gets this coupon again.
    pub do_not_resend_existing_voucher: bool,
    /// The gap: the minimum number of calendar days between two issues to one customer.
    pub min_days_between_vouchers: Option<i32>,
    /// The series that exclude this series, as the configuration lists them.
    pub mutual_exclusive_series_ids: Vec<SeriesId>,
    /// The stores that may issue; empty: all stores.
    pub store_ids: Vec<StoreId>,
    /// Whether another system issues the coupons.
    pub externally_managed: bool,
}

impl Series {
    /// Whether the coupons that the customer received before can change the decision. If so, coupons are numbered, and each decision uses
    /// the current data of the database.
    #[must_use]
    pub const fn depends_on_history(&self) -> bool {
        !self.is_multiple_vouchers_per_user_allowed
            || self.max_vouchers_per_user.is_some()
            || !self.do_not_resend_existing_voucher
            || self.min_days_between_vouchers.is_some()
    }

    /// Below this number of received coupons, the customer gets another one whatever else the history of the series says. 0: the history
    /// always decides. `None`: the series has no rule about earlier coupons.
    #[must_use]
    pub fn issues_below(&self) -> Option<i32> {
        // With one coupon, the history can lead to a resend, a refusal or a gap.
        let first_only = !self.is_multiple_vouchers_per_user_allowed
            || !self.do_not_resend_existing_voucher
            || self.min_days_between_vouchers.is_some();
        let maximum = self.max_vouchers_per_user.map(|maximum| maximum.max(0));
        if first_only { Some(maximum.map_or(1, |maximum| maximum.min(1))) } else { maximum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn could_generate_checks_the_shape() {
        let shape = CodeShape {
            alpha_numeric: false,
            random_code_length: 5,
            coupon_prefix: "AB".to_owned(),
            coupon_suffix: "Z".to_owned(),
        };
        for (code, expected) in [
            ("AB12345Z", true),
            ("AB1234Z", false),
            ("AB12X45Z", false),
            ("A12345Z", false),
            ("AB12345", false),
            ("ABZ", false),
            ("AB1234\u{e9}Z", false),
        ] {
            assert_eq!(shape.could_generate(code), expected, "{code}");
        }
    }
}
