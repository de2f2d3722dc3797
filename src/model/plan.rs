//! What an organisation is to be, as configuration as code says it (`apply`).
//! Plans hold secrets in plain text, so they live only while a file is being applied.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::Date;
use secrecy::SecretString;

use super::{
    Access, ClientHandling, CustomerId, CustomerPolicy, Identifiers, OrgId, RateLimit, Series, SeriesId, StoreId,
};

/// An organisation with everything in it.
#[derive(Debug, Clone)]
pub struct OrganisationPlan {
    /// Its key.
    pub id: OrgId,
    /// For people.
    pub name: String,
    /// An IANA name.
    pub time_zone: String,
    /// Who may receive coupons.
    pub customer_policy: CustomerPolicy,
    /// What a store's tills may do where the store says nothing.
    pub default_access: Access,
    /// Of each till and client that has none of its own. `None`: the service's.
    pub rate_limit: Option<RateLimit>,
    /// Whether a customer, a series and what caused the issuance identify it.
    pub natural_key: bool,
    /// Its stores.
    pub stores: Vec<StorePlan>,
    /// Its tills.
    pub tills: Vec<TillPlan>,
    /// Whose access tokens it accepts, besides the service's own.
    pub token_issuers: Vec<TokenIssuerPlan>,
    /// Its OAuth clients.
    pub oauth_clients: Vec<OAuthClientPlan>,
    /// Customers to be registered.
    pub customers: Vec<CustomerPlan>,
    /// Its series.
    pub series: Vec<Series>,
    /// Where the file says what the codes of each of them are.
    pub code_places: BTreeMap<SeriesId, Place>,
    /// The series that those of the file exclude and the file does not list, each where it is named.
    pub unlisted_series: Vec<(SeriesId, Place)>,
}

/// Where in the file something is said.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line, from 1.
    pub line: usize,
    /// The key, with the tables it is in.
    pub key: String,
}

/// A store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorePlan {
    /// Its key.
    pub id: StoreId,
    /// For people.
    pub name: String,
    /// `None`: the organisation's default.
    pub access: Option<Access>,
    /// `None`: the id.
    pub code: Option<String>,
    /// In the order of [`StorePlan::EXTERNAL_ID_NAMES`].
    pub external_ids: [Option<String>; 3],
}

impl StorePlan {
    /// The external ids, as the contract tells them apart.
    pub const EXTERNAL_ID_NAMES: [&'static str; 3] = ["external_id", "external_id_1", "external_id_2"];

    /// The code by which requests name it.
    #[must_use]
    pub fn effective_code(&self) -> String {
        self.code.clone().unwrap_or_else(|| self.id.0.to_string())
    }
}

/// A till.
#[derive(Debug, Clone)]
pub struct TillPlan {
    /// The name it logs in by.
    pub id: String,
    /// Where it stands.
    pub store_id: StoreId,
    /// In plain text, or as its md5.
    pub password: SecretString,
    /// `None`: the store's.
    pub access: Option<Access>,
    /// Whether it may not log in. `None`: left as it is.
    pub disabled: Option<bool>,
    /// `None`: the organisation's.
    pub rate_limit: Option<RateLimit>,
}

/// An authorisation server of somebody else's, and which of its access tokens count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenIssuerPlan {
    /// Its key: what `iss` says, to the letter.
    pub issuer: String,
    /// What `aud` must hold.
    pub audience: String,
    /// Where its keys are. `None`: where its discovery document says.
    pub jwks_url: Option<String>,
    /// The claim that holds the client's key.
    pub client_claim: String,
    /// What its tokens may be signed with.
    pub algorithms: BTreeSet<TokenAlgorithm>,
}

/// What an outside issuer's token may be signed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names of RFC 7518 and RFC 8037")]
pub enum TokenAlgorithm {
    Rs256,
    Es256,
    EdDsa,
}

impl TokenAlgorithm {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Rs256, Self::Es256, Self::EdDsa];

    /// The algorithm of this name, as tokens, the configuration and the database spell it.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// The name that [`TokenAlgorithm::parse`] reads.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// An OAuth client.
#[derive(Debug, Clone)]
pub struct OAuthClientPlan {
    /// The name it logs in by.
    pub key: String,
    /// How it proves that it is itself.
    pub proof: ClientProof,
    /// The till whose store it issues for.
    pub till_id: String,
    /// What it may do.
    pub access: Access,
    /// Whether it may do nothing. `None`: left as it is.
    pub disabled: Option<bool>,
    /// `None`: the organisation's.
    pub rate_limit: Option<RateLimit>,
}

/// How an OAuth client proves that it is itself.
#[derive(Debug, Clone)]
pub enum ClientProof {
    /// By a secret, for which this service gives it tokens.
    Secret {
        /// In plain text.
        secret: SecretString,
        /// How long its tokens live.
        token_ttl_seconds: i32,
    },
    /// By the tokens of this issuer.
    Issuer(String),
}

/// A customer to be registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomerPlan {
    /// Its key.
    pub id: CustomerId,
    /// Where the file has it.
    pub place: Place,
    /// In the order of [`IdentifierPlan::NAMES`].
    pub identifiers: [IdentifierPlan; 3],
}

/// What becomes of one of a customer's identifiers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentifierPlan {
    /// It stays as it is: the file leaves it out.
    Kept,
    /// The customer has it no longer.
    Withdrawn,
    /// The customer has this one, in the form in which it is compared.
    Given {
        /// The identifier.
        value: String,
        /// Where the file gives it.
        place: Place,
    },
}

impl IdentifierPlan {
    /// The identifiers besides the id, as the contract tells them apart; in the order of [`Identifiers::beside_the_id`].
    pub const NAMES: [&'static str; 3] = ["mobile", "email", "external_id"];

    /// What the customer has afterwards who has this now.
    #[must_use]
    pub fn applied_to(&self, stored: Option<&String>) -> Option<String> {
        match self {
            Self::Kept => stored.cloned(),
            Self::Withdrawn => None,
            Self::Given { value, .. } => Some(value.clone()),
        }
    }
}

/// Something with settings that can be told: for saying what a change changes.
pub trait Settings {
    /// Each setting by its name in the configuration, in a fixed order, with its value. Never a secret.
    fn settings(&self) -> Vec<(&'static str, String)>;
}

impl Settings for StorePlan {
    fn settings(&self) -> Vec<(&'static str, String)> {
        let told = |id: &Option<String>| id.clone().unwrap_or_default();
        let external_ids = Self::EXTERNAL_ID_NAMES.into_iter().zip(self.external_ids.iter().map(told));
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
        let told = |value: &Option<String>| value.clone().unwrap_or_default();
        IdentifierPlan::NAMES.into_iter().zip(self.beside_the_id().map(told)).collect()
    }
}

impl Settings for Series {
    fn settings(&self) -> Vec<(&'static str, String)> {
        let date = |date: Option<Date>| date.map_or_else(|| "none".to_owned(), |date| date.to_string());
        let ids = |ids: Vec<i64>| format!("{ids:?}");
        let mut settings = vec![
            ("description", self.face.description.clone()),
            ("info", self.face.info.clone()),
            ("discount_code", self.face.discount_code.clone().unwrap_or_default()),
            ("discount_type", self.face.discount_type.name().to_owned()),
            ("discount_value", self.face.discount_value.to_string()),
            ("discount_upto", self.face.discount_upto.to_string()),
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
