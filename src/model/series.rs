//! A coupon series: the settings that decide an issuance (contract 4), with the contract's names.
//! What the settings make of a customer is decided in `issuance::rules`, not here.

use std::sync::Arc;

use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::StoreId;

/// A series of an organisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct SeriesId(pub i64);

/// `discountType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schema(description = "An amount of money, or a percentage.")]
pub enum DiscountType {
    /// An amount of money.
    Abs,
    /// A percentage.
    Perc,
}

impl DiscountType {
    /// The type that the contract spells this way.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "ABS" => Some(Self::Abs),
            "PERC" => Some(Self::Perc),
            _ => None,
        }
    }

    /// As the contract spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Abs => "ABS",
            Self::Perc => "PERC",
        }
    }
}

/// `expiryStrategyType` with its `expiryStrategyValue`: the last day of a coupon, never later than the series' own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpiryStrategy {
    /// The series' last day.
    SeriesExpiry,
    /// So many days after the issue; 0 is the day of issue.
    Days(i32),
    /// The last day of a month so many months after the issue; 0 is the month of issue.
    MonthsEnd(i32),
}

impl ExpiryStrategy {
    /// The strategy that the contract spells this way; `value` counts for `DAYS` and `MONTHS_END`.
    #[must_use]
    pub fn parse(name: &str, value: i32) -> Option<Self> {
        match name {
            "SERIES_EXPIRY" => Some(Self::SeriesExpiry),
            "DAYS" => Some(Self::Days(value)),
            "MONTHS_END" => Some(Self::MonthsEnd(value)),
            _ => None,
        }
    }

    /// As the contract spells it.
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

/// Letters and digits without those that are taken for one another (0 O 1 I L).
const ALPHANUMERIC: &str = "23456789ABCDEFGHJKMNPQRSTUVWXYZ";
/// The digits; a code keeps its leading zeros.
const DIGITS: &str = "0123456789";

/// The shape of a generated code: prefix, random part, suffix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeShape {
    /// `alphaNumeric`; false: digits.
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

    /// Whether a draw could give this code, which is in its canonical form.
    #[must_use]
    pub fn could_draw(&self, code: &str) -> bool {
        let random = code.strip_prefix(&self.coupon_prefix).and_then(|rest| rest.strip_suffix(&self.coupon_suffix));
        random.is_some_and(|random| {
            random.len() == usize::from(self.random_code_length)
                && random.chars().all(|letter| self.alphabet().contains(letter))
        })
    }
}

/// `clientHandlingType`: where a coupon's code comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientHandling {
    /// `DISC_CODE`: a unique code, generated.
    Generated(CodeShape),
    /// `GENERIC`: the series' one code, for every customer.
    Generic(String),
    /// `DISC_CODE_PIN`: a code uploaded beforehand, given out once.
    Pool,
}

impl ClientHandling {
    /// As the contract spells it.
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
pub struct Face {
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

/// The settings of a series (contract 4). What is unlimited is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// The series' id.
    pub id: SeriesId,
    /// What a coupon shows of it.
    pub face: Arc<Face>,
    /// The series' last day.
    pub valid_till_date: Date,
    /// A coupon's last day.
    pub expiry_strategy: ExpiryStrategy,
    /// The first day on which a coupon can be redeemed.
    pub redemption_valid_from: Option<Date>,
    /// Where codes come from.
    pub client_handling: ClientHandling,
    /// The cap: the most coupons the series may issue.
    pub max_create: Option<i64>,
    /// Whether a customer may receive more than one.
    pub is_multiple_vouchers_per_user_allowed: bool,
    /// How many a customer may receive, where more than one is allowed.
    pub max_vouchers_per_user: Option<i32>,
    /// False: a customer who holds a valid coupon gets that one again.
    pub do_not_resend_existing_voucher: bool,
    /// The least calendar days between two issues to one customer.
    pub min_days_between_vouchers: Option<i32>,
    /// The series that exclude this one, as the configuration lists them.
    pub mutual_exclusive_series_ids: Vec<SeriesId>,
    /// The stores that may issue; empty: all.
    pub store_ids: Vec<StoreId>,
    /// Issued by another system, never here.
    pub externally_managed: bool,
}

impl Series {
    /// Whether what the customer received before can change the decision. Such coupons are numbered, and are decided
    /// on what the database says at that moment.
    #[must_use]
    pub const fn depends_on_history(&self) -> bool {
        !self.is_multiple_vouchers_per_user_allowed
            || self.max_vouchers_per_user.is_some()
            || !self.do_not_resend_existing_voucher
            || self.min_days_between_vouchers.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_that_could_be_drawn() {
        let shape = CodeShape {
            alpha_numeric: false,
            random_code_length: 5,
            coupon_prefix: "AB".to_owned(),
            coupon_suffix: "Z".to_owned(),
        };
        for (code, could) in [
            ("AB12345Z", true),
            ("AB1234Z", false),
            ("AB12X45Z", false),
            ("A12345Z", false),
            ("AB12345", false),
            ("ABZ", false),
            ("AB1234\u{e9}Z", false),
        ] {
            assert_eq!(shape.could_draw(code), could, "{code}");
        }
    }
}
