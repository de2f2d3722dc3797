//! Coupons: what is known of one that a customer holds, and what a request says about a new one.
//! A coupon to be written, with its guards, is `store::writer::NewCoupon`.

use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A coupon that a customer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldCoupon {
    /// Its id.
    pub coupon_id: i64,
    /// The version of the series that it showed when it was issued.
    pub series_version: i32,
    /// The code, as it is printed.
    pub code: String,
    /// Its last day, in the organisation's time zone.
    pub expires_on: Date,
    /// How often it was redeemed.
    pub redemption_count: i32,
}

/// Where the customer was when the coupon was asked for (contract 1, query `source`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
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
    /// Every source, in the contract's order.
    pub const ALL: [Self; 12] = [
        Self::Facebook,
        Self::WebEngage,
        Self::Wechat,
        Self::Instore,
        Self::Martjack,
        Self::Tmall,
        Self::Taobao,
        Self::Jd,
        Self::Ecommerce,
        Self::Website,
        Self::Line,
        Self::MobileApp,
    ];

    /// The source as the contract spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Facebook => "FACEBOOK",
            Self::WebEngage => "WEB_ENGAGE",
            Self::Wechat => "WECHAT",
            Self::Instore => "INSTORE",
            Self::Martjack => "MARTJACK",
            Self::Tmall => "TMALL",
            Self::Taobao => "TAOBAO",
            Self::Jd => "JD",
            Self::Ecommerce => "ECOMMERCE",
            Self::Website => "WEBSITE",
            Self::Line => "LINE",
            Self::MobileApp => "MOBILE_APP",
        }
    }
}

/// What the caller wants remembered with the coupon (contract 1, `metadata`). Stored as it was given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "What is to be remembered with the coupons.")]
pub struct Metadata {
    /// The kind of thing that caused the issue; up to 50 characters.
    #[schema(max_length = 50, pattern = r"^[^\u0000]*$")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_type: Option<String>,
    /// That thing's id; up to 50 characters.
    #[schema(max_length = 50, pattern = r"^[^\u0000]*$")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_id: Option<String>,
    /// What it did; up to 50 characters.
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
