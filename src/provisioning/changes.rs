//! Compares the plan of an organisation with what is stored, and reports the differences. Only reads.
//!
//! Secrets are hashed here, which is slow on purpose, so the caller must not hold a lock that issuing waits for.

use secrecy::SecretString;

use super::customers;
use super::difference::Difference;
use super::error::ApplyError;
use super::report::Report;
use super::stores::StoreCodes;
use crate::auth::{hash_secret, till_password, verify_secret};
use crate::db::provisioning::{StoredClientSettings, StoredOrganisation, StoredProof, StoredTillSettings};
use crate::model::{ClientProof, CustomerPlan, OrgId, OrganisationPlan, Series, StorePlan, TokenIssuerPlan};

/// What `apply` must write of one organisation.
pub(super) struct Changes<'a> {
    pub(super) plan: &'a OrganisationPlan,
    pub(super) is_new: bool,
    settings_differ: bool,
    pub(super) stores: Vec<&'a StorePlan>,
    pub(super) tills: Vec<(&'a str, StoredTillSettings)>,
    pub(super) token_issuers: Vec<&'a TokenIssuerPlan>,
    pub(super) oauth_clients: Vec<(&'a str, StoredClientSettings)>,
    pub(super) customers: Vec<&'a CustomerPlan>,
    pub(super) series: Vec<&'a Series>,
    /// Those of `series` whose codes change.
    pub(super) codes: Vec<&'a Series>,
}

impl Changes<'_> {
    /// Whether the changes may affect the result of an issuance.
    pub(super) const fn affect_issuances(&self) -> bool {
        self.settings_differ || !self.series.is_empty()
    }

    /// Whether the changes may affect a credential that a replica has cached.
    pub(super) const fn affect_credentials(&self) -> bool {
        self.settings_differ
            || !self.stores.is_empty()
            || !self.tills.is_empty()
            || !self.token_issuers.is_empty()
            || !self.oauth_clients.is_empty()
    }
}

/// Compares a plan with what is stored, and adds each difference to `report`.
pub(super) async fn compare<'a>(
    plan: &'a OrganisationPlan,
    stored: &StoredOrganisation,
    report: &mut Report,
) -> Result<Changes<'a>, ApplyError> {
    report_unlisted(plan, stored, report);
    let others = stored.stores.values().filter(|stored| !plan.stores.iter().any(|store| store.id == stored.id));
    let mut store_codes = StoreCodes::default();
    if let Some(shared) = plan.stores.iter().chain(others).flat_map(|store| store_codes.add(store)).next() {
        return Err(ApplyError::SharedCode(plan.id, shared));
    }

    let settings_differ = report.add_change(plan.id, "", Difference::between(stored.settings.as_ref(), &plan.settings));
    let mut differs = |what: &str, difference| report.add_change(plan.id, what, difference);
    let series: Vec<&Series> = (plan.series.iter())
        .filter(|new| differs(&format!("series {}", new.id.0), Difference::between(stored.series.get(&new.id), *new)))
        .collect();
    let has_same_codes =
        |new: &Series| stored.series.get(&new.id).is_some_and(|stored| stored.client_handling == new.client_handling);
    let codes = series.iter().copied().filter(|new| !has_same_codes(new)).collect();
    let changed_stores = (plan.stores.iter())
        .filter(|new| differs(&format!("store {}", new.id.0), Difference::between(stored.stores.get(&new.id), *new)))
        .collect();
    let tills = compare_tills(plan, stored, report).await?;
    let token_issuers = plan.token_issuers.iter().filter(|new| issuer_differs(plan.id, new, stored, report)).collect();
    let oauth_clients = compare_clients(plan, stored, report).await?;
    let customers = plan.customers.iter().filter(|new| customer_differs(plan.id, new, stored, report)).collect();
    Ok(Changes {
        plan,
        is_new: stored.settings.is_none(),
        settings_differ,
        stores: changed_stores,
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
            hash_if_changed(stored.map(|till| &till.password_hash), till_password(&till.password)).await?;
        let wanted = StoredTillSettings {
            store_id: till.store_id,
            access: till.access,
            disabled: till.disabled,
            rate_limit: till.rate_limit,
            password_hash,
        };
        let mut difference = Difference::between(stored, &wanted);
        difference.add_secret(is_new, "password");
        if report.add_change(plan.id, &format!("till {}", till.id), difference) {
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
        let (proof, is_new) = proof_to_store(stored.map(|client| &client.proof), &client.proof).await?;
        let wanted = StoredClientSettings {
            till_id: client.till_id.clone(),
            access: client.access,
            disabled: client.disabled,
            rate_limit: client.rate_limit,
            proof,
        };
        let mut difference = Difference::between(stored, &wanted);
        difference.add_secret(is_new, "secret");
        if report.add_change(plan.id, &format!("oauth_client {}", client.key), difference) {
            changed.push((client.key.as_str(), wanted));
        }
    }
    Ok(changed)
}

/// The proof to store, and whether it contains a new secret.
async fn proof_to_store(stored: Option<&StoredProof>, wanted: &ClientProof) -> Result<(StoredProof, bool), ApplyError> {
    let (secret, token_ttl_seconds) = match wanted {
        ClientProof::Issuer(issuer) => return Ok((StoredProof::Issuer(issuer.clone()), false)),
        ClientProof::Secret { secret, token_ttl_seconds } => (secret.clone(), *token_ttl_seconds),
    };
    let stored = match stored {
        Some(StoredProof::Secret { secret_hash, .. }) => Some(secret_hash),
        Some(StoredProof::Issuer(_)) | None => None,
    };
    let (secret_hash, is_new) = hash_if_changed(stored, secret).await?;
    Ok((StoredProof::Secret { secret_hash, token_ttl_seconds }, is_new))
}

fn issuer_differs(org_id: OrgId, issuer: &TokenIssuerPlan, stored: &StoredOrganisation, report: &mut Report) -> bool {
    let difference = Difference::between(stored.token_issuers.get(&issuer.issuer), issuer);
    report.add_change(org_id, &format!("token_issuer {}", issuer.issuer), difference)
}

fn customer_differs(org_id: OrgId, customer: &CustomerPlan, stored: &StoredOrganisation, report: &mut Report) -> bool {
    let known = stored.customers.get(&customer.id);
    let wanted = customers::wanted(customer, known);
    let difference = match (Difference::between(known.map(|known| &known.identifiers), &wanted), known) {
        // The file registers a customer that a request has created.
        (Difference::None, Some(known)) if !known.registered => Difference::New,
        (Difference::Settings(mut settings), Some(known)) if !known.registered => {
            settings.insert(0, "registered".to_owned());
            Difference::Settings(settings)
        }
        (difference, _) => difference,
    };
    report.add_change(org_id, &format!("customer {}", customer.id.0), difference)
}

/// Returns the stored hash if it belongs to the secret, or else a new hash; and whether it is new.
async fn hash_if_changed(stored: Option<&String>, secret: SecretString) -> Result<(String, bool), ApplyError> {
    let stored = stored.cloned();
    let hashed = tokio::task::spawn_blocking(move || match stored {
        Some(hash) if verify_secret(&hash, &secret)? => Ok((hash, false)),
        _ => hash_secret(&secret).map(|hash| (hash, true)),
    });
    let hashed = hashed.await.map_err(|error| ApplyError::Secret(error.to_string()))?;
    hashed.map_err(|error| ApplyError::Secret(error.to_string()))
}

fn report_unlisted(plan: &OrganisationPlan, stored: &StoredOrganisation, report: &mut Report) {
    let mut add =
        |what: String| report.left_alone.push(format!("org {} {what}: not in the file, left alone", plan.id.0));
    for id in stored.stores.keys().filter(|id| !plan.stores.iter().any(|store| store.id == **id)) {
        add(format!("store {}", id.0));
    }
    for id in stored.tills.keys().filter(|id| !plan.tills.iter().any(|till| till.id == **id)) {
        add(format!("till {id}"));
    }
    for issuer in
        stored.token_issuers.keys().filter(|key| !plan.token_issuers.iter().any(|issuer| issuer.issuer == **key))
    {
        add(format!("token_issuer {issuer}"));
    }
    for key in stored.oauth_clients.keys().filter(|key| !plan.oauth_clients.iter().any(|client| client.key == **key)) {
        add(format!("oauth_client {key}"));
    }
    for id in stored.series.keys().filter(|id| !plan.series.iter().any(|series| series.id == **id)) {
        add(format!("series {}", id.0));
    }
}
