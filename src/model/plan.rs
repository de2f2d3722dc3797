//! The content of a configuration file (command `apply`). Plans hold secrets in plain text, so they exist only while `apply` runs.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::Date;
use secrecy::SecretString;
use strum::{EnumIter, EnumString, IntoEnumIterator, IntoStaticStr, VariantNames};

use super::{
    Access, ClientHandling, CustomerId, CustomerPolicy, Identifiers, OrgId, RateLimit, Series, SeriesId, StoreId,
};

/// An organisation with all its settings.
#[derive(Debug, Clone)]
pub struct OrganisationPlan {
    /// The id.
    pub id: OrgId,
    /// The settings of the organisation itself.
    pub settings: OrganisationSettings,
    /// The stores.
    pub stores: Vec<StorePlan>,
    /// The tills.
    pub tills: Vec<TillPlan>,
    /// The external issuers of access tokens.
    pub token_issuers: Vec<TokenIssuerPlan>,
    /// The OAuth clients.
    pub oauth_clients: Vec<OAuthClientPlan>,
    /// The registered customers.
    pub customers: Vec<CustomerPlan>,
    /// The series.
    pub series: Vec<Series>,
    /// The position of the code settings of each series.
    pub code_positions: BTreeMap<SeriesId, FilePosition>,
    /// The series that the file only names as mutually exclusive, with the position of the name.
    pub unlisted_series: Vec<(SeriesId, FilePosition)>,
}

/// The settings of the organisation itself, without its stores, tills, clients, customers and series.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrganisationSettings {
    /// The display name.
    pub name: String,
    /// The IANA name of the time zone.
    pub time_zone: String,
    /// Who may receive coupons.
    pub customer_policy: CustomerPolicy,
    /// The access level of the tills of a store without its own setting.
    pub default_access: Access,
    /// The rate limit of tills and clients without their own limit. `None`: the limit of the service.
    pub rate_limit: Option<RateLimit>,
    /// See [`Organisation::natural_key`](super::Organisation::natural_key).
    pub natural_key: bool,
}

/// A position in the file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FilePosition {
    /// The line, from 1.
    pub line: usize,
    /// The key, with the tables it is in.
    pub key: String,
}

/// A store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorePlan {
    /// The id.
    pub id: StoreId,
    /// The display name.
    pub name: String,
    /// `None`: the default of the organisation.
    pub access: Option<Access>,
    /// `None`: the id.
    pub code: Option<String>,
    /// In the order of [`StorePlan::EXTERNAL_ID_NAMES`].
    pub external_ids: [Option<String>; 3],
}

impl StorePlan {
    /// The names of the external ids in the contract.
    pub const EXTERNAL_ID_NAMES: [&'static str; 3] = ["external_id", "external_id_1", "external_id_2"];

    /// The code by which requests name the store.
    #[must_use]
    pub fn effective_code(&self) -> String {
        self.code.clone().unwrap_or_else(|| self.id.0.to_string())
    }
}

/// A till.
#[derive(Debug, Clone)]
pub struct TillPlan {
    /// The user name for authentication.
    pub id: String,
    /// The store of the till.
    pub store_id: StoreId,
    /// The password, in plain text or as MD5.
    pub password: SecretString,
    /// `None`: the access level of the store.
    pub access: Option<Access>,
    /// Whether the till is disabled. `None`: unchanged.
    pub disabled: Option<bool>,
    /// `None`: the rate limit of the organisation.
    pub rate_limit: Option<RateLimit>,
}

/// An external issuer, and the access tokens that the service accepts from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenIssuerPlan {
    /// The exact value of the claim `iss`.
    pub issuer: String,
    /// The value that `aud` must contain.
    pub audience: String,
    /// The URL of its keys. `None`: the URL in its discovery document.
    pub jwks_url: Option<String>,
    /// The name of the claim with the key of the client.
    pub client_claim: String,
    /// The accepted signature algorithms.
    pub algorithms: BTreeSet<TokenAlgorithm>,
}

/// A signature algorithm of tokens of external issuers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, EnumIter, EnumString, IntoStaticStr, VariantNames)]
#[expect(missing_docs, reason = "the names of RFC 7518 and RFC 8037")]
pub enum TokenAlgorithm {
    #[strum(serialize = "RS256")]
    Rs256,
    #[strum(serialize = "ES256")]
    Es256,
    #[strum(serialize = "EdDSA")]
    EdDsa,
}

impl TokenAlgorithm {
    /// All names.
    pub const NAMES: &[&str] = <Self as VariantNames>::VARIANTS;

    /// All algorithms.
    #[must_use]
    pub fn all() -> BTreeSet<Self> {
        Self::iter().collect()
    }

    /// The algorithm with this name, as tokens, the configuration and the database spell it.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        name.parse().ok()
    }

    /// The inverse of [`TokenAlgorithm::parse`].
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// An OAuth client.
#[derive(Debug, Clone)]
pub struct OAuthClientPlan {
    /// The client id for authentication.
    pub key: String,
    /// How the client authenticates.
    pub proof: ClientProof,
    /// The till for whose store the client issues.
    pub till_id: String,
    /// The access level.
    pub access: Access,
    /// Whether the client is disabled. `None`: unchanged.
    pub disabled: Option<bool>,
    /// `None`: the rate limit of the organisation.
    pub rate_limit: Option<RateLimit>,
}

/// How an OAuth client authenticates.
#[derive(Debug, Clone)]
pub enum ClientProof {
    /// By a secret. This service issues its tokens.
    Secret {
        /// The secret in plain text.
        secret: SecretString,
        /// The lifetime of its tokens.
        token_ttl_seconds: i32,
    },
    /// By tokens of this external issuer.
    Issuer(String),
}

/// A registered customer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomerPlan {
    /// The id.
    pub id: CustomerId,
    /// The position of the customer in the file.
    pub position: FilePosition,
    /// In the order of [`IdentifierPlan::NAMES`].
    pub identifiers: [IdentifierPlan; 3],
}

/// The change to an identifier of a customer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentifierPlan {
    /// Unchanged: the file omits the identifier.
    Kept,
    /// The identifier is removed.
    Withdrawn,
    /// The identifier is set to this value.
    Given {
        /// The value, in the form for comparisons.
        value: String,
        /// The position of the value in the file.
        position: FilePosition,
    },
}

impl IdentifierPlan {
    /// The names of all identifiers except the id, in the order of [`Identifiers::except_id`].
    pub const NAMES: [&'static str; 3] = ["mobile", "email", "external_id"];

    /// The identifier after the change.
    #[must_use]
    pub fn applied_to(&self, stored: Option<&String>) -> Option<String> {
        match self {
            Self::Kept => stored.cloned(),
            Self::Withdrawn => None,
            Self::Given { value, .. } => Some(value.clone()),
        }
    }
}

/// Configuration whose settings can be listed, to report changes.
pub trait Settings {
    /// The name in the configuration and the value of each setting, in a fixed order. Never includes a secret.
    fn settings(&self) -> Vec<(&'static str, String)>;
}

impl Settings for StorePlan {
    fn settings(&self) -> Vec<(&'static str, String)> {
        let text = |id: &Option<String>| id.clone().unwrap_or_default();
        let external_ids = Self::EXTERNAL_ID_NAMES.into_iter().zip(self.external_ids.iter().map(text));
        [
            ("name", self.name.clone()),
            ("access", self.access.map_or("default", Access::name).to_owned()),
            ("code", self.effective_code()),
        ]
        .into_iter()
        .chain(external_ids)
        .collect()
    }
}

impl Settings for TokenIssuerPlan {
    fn settings(&self) -> Vec<(&'static str, String)> {
        let algorithms: Vec<&str> = self.algorithms.iter().map(|algorithm| algorithm.name()).collect();
        vec![
            ("audience", self.audience.clone()),
            ("jwks_url", self.jwks_url.clone().unwrap_or_default()),
            ("client_claim", self.client_claim.clone()),
            ("algorithms", algorithms.join(", ")),
        ]
    }
}

impl Settings for Identifiers {
    fn settings(&self) -> Vec<(&'static str, String)> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        IdentifierPlan::NAMES.into_iter().zip(self.except_id().map(text)).collect()
    }
}

impl Settings for Series {
    fn settings(&self) -> Vec<(&'static str, String)> {
        let date = |date: Option<Date>| date.map_or_else(|| "none".to_owned(), |date| date.to_string());
        let ids = |ids: Vec<i64>| format!("{ids:?}");
        let mut settings = vec![
            ("description", self.snapshot.description.clone()),
            ("info", self.snapshot.info.clone()),
            ("discount_code", self.snapshot.discount_code.clone().unwrap_or_default()),
            ("discount_type", self.snapshot.discount_type.name().to_owned()),
            ("discount_value", self.snapshot.discount_value.to_string()),
            ("discount_upto", self.snapshot.discount_upto.to_string()),
            ("valid_till_date", self.valid_till_date.to_string()),
            ("expiry_strategy_type", self.expiry_strategy.name().to_owned()),
            ("expiry_strategy_value", self.expiry_strategy.value().to_string()),
            ("redemption_valid_from", date(self.redemption_valid_from)),
            ("max_create", limit(self.max_create)),
            ("is_multiple_vouchers_per_user_allowed", self.is_multiple_vouchers_per_user_allowed.to_string()),
            ("max_vouchers_per_user", limit(self.max_vouchers_per_user)),
            ("do_not_resend_existing_voucher", self.do_not_resend_existing_voucher.to_string()),
            ("min_days_between_vouchers", limit(self.min_days_between_vouchers)),
            ("mutual_exclusive_series_ids", ids(self.mutual_exclusive_series_ids.iter().map(|id| id.0).collect())),
            ("store_ids", ids(self.store_ids.iter().map(|id| id.0).collect())),
            ("externally_managed", self.externally_managed.to_string()),
            ("client_handling_type", self.client_handling.name().to_owned()),
        ];
        match &self.client_handling {
            ClientHandling::Generated(shape) => settings.extend([
                ("alpha_numeric", shape.alpha_numeric.to_string()),
                ("random_code_length", shape.random_code_length.to_string()),
                ("coupon_prefix", shape.coupon_prefix.clone()),
                ("coupon_suffix", shape.coupon_suffix.clone()),
            ]),
            ClientHandling::Generic(code) => settings.push(("generic_code", code.clone())),
            ClientHandling::Pool => {}
        }
        settings
    }
}

fn limit(limit: Option<impl ToString>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string())
}
