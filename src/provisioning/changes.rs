//! What a file would change of one organisation: its plan beside what is stored, and the lines that tell the difference.
//!
//! Only reads. Secrets are hashed here, which is slow on purpose; nothing may be locked by then.

use secrecy::SecretString;

use super::stores::Codes;
use super::{ApplyError, Report, customers};
use crate::auth::{hash_secret, till_password, verify_secret};
use crate::db::provisioning::{
    OrganisationSettings, StoredClientSettings, StoredOrganisation, StoredProof, StoredTillSettings,
};
use crate::model::{
    Access, ClientProof, CustomerPlan, OrgId, OrganisationPlan, RateLimit, Series, Settings, StorePlan, TokenIssuerPlan,
};

/// What is to be written of one organisation.
pub(super) struct Changes<'a> {
    pub(super) plan: &'a OrganisationPlan,
    pub(super) is_new: bool,
    pub(super) settings: OrganisationSettings,
    settings_differ: bool,
    pub(super) stores: Vec<&'a StorePlan>,
    pub(super) tills: Vec<(&'a str, StoredTillSettings)>,
    pub(super) token_issuers: Vec<&'a TokenIssuerPlan>,
    pub(super) oauth_clients: Vec<(&'a str, StoredClientSettings)>,
    pub(super) customers: Vec<&'a CustomerPlan>,
    pub(super) series: Vec<&'a Series>,
    /// Of these series those whose codes are others from now on.
    pub(super) codes: Vec<&'a Series>,
}

impl Changes<'_> {
    /// Whether a coupon may be decided otherwise than before.
    pub(super) const fn decides_issuances(&self) -> bool {
        self.settings_differ || !self.series.is_empty()
    }

    /// Whether a credential that a replica remembers may be good for something else than before.
    pub(super) const fn concern_credentials(&self) -> bool {
        self.settings_differ
            || !self.stores.is_empty()
            || !self.tills.is_empty()
            || !self.token_issuers.is_empty()
            || !self.oauth_clients.is_empty()
    }
}

/// Compares a plan with what is stored, and tells each difference in `report`.
pub(super) async fn compare<'a>(
    plan: &'a OrganisationPlan,
    stored: &StoredOrganisation,
    report: &mut Report,
) -> Result<Changes<'a>, ApplyError> {
    note_left_alone(plan, stored, report);
    let others = stored.stores.values().filter(|stored| !plan.stores.iter().any(|store| store.id == stored.id));
    let mut store_codes = Codes::default();
    if let Some(shared) = plan.stores.iter().chain(others).flat_map(|store| store_codes.add(store)).next() {
        return Err(ApplyError::SharedCode(plan.id, shared));
    }

    let settings = OrganisationSettings::from(plan);
    let settings_differ = report.note(plan.id, "", difference(stored.settings.as_ref(), &settings));
    let mut differs = |what: &str, difference| report.note(plan.id, what, difference);
    let series: Vec<&Series> = (plan.series.iter())
        .filter(|one| differs(&format!("series {}", one.id.0), difference(stored.series.get(&one.id), *one)))
        .collect();
    let has_same_codes =
        |one: &Series| stored.series.get(&one.id).is_some_and(|stored| stored.client_handling == one.client_handling);
    let codes = series.iter().copied().filter(|one| !has_same_codes(one)).collect();
    let shops = (plan.stores.iter())
        .filter(|one| differs(&format!("store {}", one.id.0), difference(stored.stores.get(&one.id), *one)))
        .collect();
    let tills = compare_tills(plan, stored, report).await?;
    let token_issuers = plan.token_issuers.iter().filter(|one| issuer_differs(plan.id, one, stored, report)).collect();
    let oauth_clients = compare_clients(plan, stored, report).await?;
    let customers = plan.customers.iter().filter(|one| customer_differs(plan.id, one, stored, report)).collect();
    Ok(Changes {
        plan,
        is_new: stored.settings.is_none(),
        settings,
        settings_differ,
        stores: shops,
        tills,
        token_issuers,
        oauth_clients,
        customers,
        series,
        codes,
    })
}

async fn compare_tills<'a>(
    plan: &'a OrganisationPlan,
    stored: &StoredOrganisation,
    report: &mut Report,
) -> Result<Vec<(&'a str, StoredTillSettings)>, ApplyError> {
    let mut changed = Vec::new();
    for till in &plan.tills {
        let stored = stored.tills.get(&till.id);
        let (password_hash, is_new) =
            kept_or_hashed(stored.map(|till| &till.password_hash), till_password(&till.password)).await?;
        let wanted = StoredTillSettings {
            store_id: till.store_id,
            access: till.access,
            disabled: till.disabled,
            rate_limit: till.rate_limit,
            password_hash,
        };
        let mut change = difference(stored, &wanted);
        add_secret(&mut change, is_new, "password");
        if report.note(plan.id, &format!("till {}", till.id), change) {
            changed.push((till.id.as_str(), wanted));
        }
    }
    Ok(changed)
}

async fn compare_clients<'a>(
    plan: &'a OrganisationPlan,
    stored: &StoredOrganisation,
    report: &mut Report,
) -> Result<Vec<(&'a str, StoredClientSettings)>, ApplyError> {
    let mut changed = Vec::new();
    for client in &plan.oauth_clients {
        let stored = stored.oauth_clients.get(&client.key);
        let (proof, is_new) = kept_or_new_proof(stored.map(|client| &client.proof), &client.proof).await?;
        let wanted = StoredClientSettings {
            till_id: client.till_id.clone(),
            access: client.access,
            disabled: client.disabled,
            rate_limit: client.rate_limit,
            proof,
        };
        let mut change = difference(stored, &wanted);
        add_secret(&mut change, is_new, "secret");
        if report.note(plan.id, &format!("oauth_client {}", client.key), change) {
            changed.push((client.key.as_str(), wanted));
        }
    }
    Ok(changed)
}

/// What to store of a proof, and whether it is a secret that is new.
async fn kept_or_new_proof(
    stored: Option<&StoredProof>,
    wanted: &ClientProof,
) -> Result<(StoredProof, bool), ApplyError> {
    let (secret, token_ttl_seconds) = match wanted {
        ClientProof::Issuer(issuer) => return Ok((StoredProof::Issuer(issuer.clone()), false)),
        ClientProof::Secret { secret, token_ttl_seconds } => (secret.clone(), *token_ttl_seconds),
    };
    let stored = match stored {
        Some(StoredProof::Secret { secret_hash, .. }) => Some(secret_hash),
        Some(StoredProof::Issuer(_)) | None => None,
    };
    let (secret_hash, is_new) = kept_or_hashed(stored, secret).await?;
    Ok((StoredProof::Secret { secret_hash, token_ttl_seconds }, is_new))
}

fn issuer_differs(org_id: OrgId, issuer: &TokenIssuerPlan, stored: &StoredOrganisation, report: &mut Report) -> bool {
    let change = difference(stored.token_issuers.get(&issuer.issuer), issuer);
    report.note(org_id, &format!("token_issuer {}", issuer.issuer), change)
}

fn customer_differs(org_id: OrgId, customer: &CustomerPlan, stored: &StoredOrganisation, report: &mut Report) -> bool {
    let known = stored.customers.get(&customer.id);
    let wanted = customers::wanted(customer, known);
    let difference = match (difference(known.map(|known| &known.identifiers), &wanted), known) {
        // A customer made on first use is registered by being listed.
        (Difference::None, Some(known)) if !known.registered => Difference::New,
        (Difference::Settings(mut settings), Some(known)) if !known.registered => {
            settings.insert(0, "registered".to_owned());
            Difference::Settings(settings)
        }
        (difference, _) => difference,
    };
    report.note(org_id, &format!("customer {}", customer.id.0), difference)
}

/// The stored hash if it is the secret's, else a new one; and whether it is new.
async fn kept_or_hashed(stored: Option<&String>, secret: SecretString) -> Result<(String, bool), ApplyError> {
    let stored = stored.cloned();
    let hashed = tokio::task::spawn_blocking(move || match stored {
        Some(hash) if verify_secret(&hash, &secret)? => Ok((hash, false)),
        _ => hash_secret(&secret).map(|hash| (hash, true)),
    });
    let hashed = hashed.await.map_err(|error| ApplyError::Secret(error.to_string()))?;
    hashed.map_err(|error| ApplyError::Secret(error.to_string()))
}

/// What a change is: the settings that differ, or all of it where nothing is stored.
enum Difference {
    None,
    New,
    Settings(Vec<String>),
}

fn difference<T: Settings>(stored: Option<&T>, wanted: &T) -> Difference {
    let Some(stored) = stored else { return Difference::New };
    let before: std::collections::BTreeMap<_, _> = stored.settings().into_iter().collect();
    let differing: Vec<String> = wanted
        .settings()
        .into_iter()
        .filter(|(name, value)| before.get(name) != Some(value))
        .map(|(name, value)| match before.get(name) {
            Some(old) => format!("{name} {old:?} -> {value:?}"),
            None => format!("{name} {value:?}"),
        })
        .collect();
    if differing.is_empty() { Difference::None } else { Difference::Settings(differing) }
}

/// A secret's value is never told, only that it is another.
fn add_secret(difference: &mut Difference, is_new: bool, name: &str) {
    match difference {
        Difference::None if is_new => *difference = Difference::Settings(vec![name.to_owned()]),
        Difference::Settings(settings) if is_new => settings.push(name.to_owned()),
        _ => {}
    }
}

impl Report {
    /// Adds a line for a change; says whether there is one.
    fn note(&mut self, org_id: OrgId, what: &str, difference: Difference) -> bool {
        let separator = if what.is_empty() { "" } else { " " };
        let subject = format!("org {}{separator}{what}", org_id.0);
        match difference {
            Difference::None => return false,
            Difference::New => self.changes.push(format!("{subject}: created")),
            Difference::Settings(settings) => self.changes.push(format!("{subject}: {}", settings.join(", "))),
        }
        true
    }
}

fn note_left_alone(plan: &OrganisationPlan, stored: &StoredOrganisation, report: &mut Report) {
    let mut left =
        |what: String| report.left_alone.push(format!("org {} {what}: not in the file, left alone", plan.id.0));
    for id in stored.stores.keys().filter(|id| !plan.stores.iter().any(|store| store.id == **id)) {
        left(format!("store {}", id.0));
    }
    for id in stored.tills.keys().filter(|id| !plan.tills.iter().any(|till| till.id == **id)) {
        left(format!("till {id}"));
    }
    for issuer in stored.token_issuers.keys().filter(|key| !plan.token_issuers.iter().any(|one| one.issuer == **key)) {
        left(format!("token_issuer {issuer}"));
    }
    for key in stored.oauth_clients.keys().filter(|key| !plan.oauth_clients.iter().any(|client| client.key == **key)) {
        left(format!("oauth_client {key}"));
    }
    for id in stored.series.keys().filter(|id| !plan.series.iter().any(|series| series.id == **id)) {
        left(format!("series {}", id.0));
    }
}

impl Settings for OrganisationSettings {
    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("name", self.name.clone()),
            ("time_zone", self.time_zone.clone()),
            ("customer_policy", self.customer_policy.name().to_owned()),
            ("default_access", self.default_access.name().to_owned()),
            ("rate_limit_per_minute", told_limit(self.rate_limit)),
            ("natural_key", self.natural_key.to_string()),
        ]
    }
}

impl Settings for StoredTillSettings {
    fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = vec![
            ("store_id", self.store_id.0.to_string()),
            ("access", self.access.map_or("default", Access::name).to_owned()),
            ("rate_limit_per_minute", told_limit(self.rate_limit)),
        ];
        settings.extend(self.disabled.map(|disabled| ("disabled", disabled.to_string())));
        settings
    }
}

impl Settings for StoredClientSettings {
    fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings = vec![
            ("till", self.till_id.clone()),
            ("access", self.access.name().to_owned()),
            ("rate_limit_per_minute", told_limit(self.rate_limit)),
        ];
        settings.extend(self.disabled.map(|disabled| ("disabled", disabled.to_string())));
        match &self.proof {
            StoredProof::Secret { token_ttl_seconds, .. } => {
                settings.push(("token_issuer", String::new()));
                settings.push(("token_ttl_seconds", token_ttl_seconds.to_string()));
            }
            StoredProof::Issuer(issuer) => settings.push(("token_issuer", issuer.clone())),
        }
        settings
    }
}

fn told_limit(limit: Option<RateLimit>) -> String {
    match limit {
        None => "default".to_owned(),
        Some(RateLimit::Unlimited) => "unlimited".to_owned(),
        Some(RateLimit::PerMinute(count)) => count.to_string(),
    }
}
