use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantNames};
use utoipa::ToSchema;

/// A coupon that a customer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldCoupon {
    /// The id of the coupon.
    pub coupon_id: i64,
    /// The version of the series when the coupon was issued.
    pub series_version: i32,
    /// The code, as it is printed.
    pub code: String,
    /// Its last day, in the organisation's time zone.
    pub expires_on: Date,
    /// The number of times it was redeemed.
    pub redemption_count: i32,
}

/// The channel of the request (contract 1, query `source`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, EnumString, IntoStaticStr, VariantNames)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE", ascii_case_insensitive)]
#[expect(missing_docs, reason = "the contract's own enumeration, which says no more than the names")]
pub enum Source {
    Facebook,
    WebEngage,
    Wechat,
    #[default]
    Instore,
    Martjack,
    Tmall,
    Taobao,
    Jd,
    Ecommerce,
    Website,
    Line,
    MobileApp,
}

impl Source {
    /// All names, in the contract's order.
    pub const NAMES: &[&str] = <Self as VariantNames>::VARIANTS;

    /// The source with this name, in any case.
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

/// Data that the caller stores with the coupon (contract 1, `metadata`), unchanged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "What to store with the coupons.")]
pub struct Metadata {
    /// What kind of thing caused the issue; up to 50 characters.
    #[schema(max_length = 50, pattern = r"^[^\u0000]*$")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_type: Option<String>,
    /// The id of that thing; up to 50 characters.
    #[schema(max_length = 50, pattern = r"^[^\u0000]*$")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_id: Option<String>,
    /// The action; up to 50 characters.
    #[schema(max_length = 50, pattern = r"^[^\u0000]*$")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_activity: Option<String>,
    /// Free text; up to 250 characters.
    #[schema(max_length = 250, pattern = r"^[^\u0000]*$")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
    /// Free text; up to 250 characters.
    #[schema(max_length = 250, pattern = r"^[^\u0000]*$")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
