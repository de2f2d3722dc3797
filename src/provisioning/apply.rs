use std::path::Path;

use sqlx::postgres::PgConnectOptions;

use super::changes::Changes;
use super::error::ApplyError;
use super::file::parse;
use super::report::Report;
use super::secrets::Secrets;
use super::toml::Mistake;
use super::{changes, code_conflicts, customers};
use crate::db::provisioning::{Provisioning, StoredOrganisation, is_overtaken};
use crate::model::OrganisationPlan;

/// Makes the database match these plans.
///
/// # Errors
/// [`ApplyError`]; the database is unchanged then.
pub async fn apply(connect: &PgConnectOptions, plans: &[OrganisationPlan]) -> Result<Report, ApplyError> {
    let mut report = Report::default();
    let mut transaction = Provisioning::begin(connect).await?;
    for id in transaction.organisations().await? {
        if !plans.iter().any(|plan| plan.id == id) {
            report.left_alone.push(format!("org {}: not in the file, left alone", id.0));
        }
    }
    // Lock the organisations in the same order as batches do (migrations/0002, `issue_coupons_1`), which rules out deadlocks.
    let mut plans: Vec<&OrganisationPlan> = plans.iter().collect();
    plans.sort_by_key(|plan| plan.id);

    let plans = with_stored(&mut transaction, plans).await?;
    // Hash passwords before taking a lock that issuing waits for, and write the settings that lock issuing last, so that the lock is short.
    let mut changes = Vec::with_capacity(plans.len());
    for (plan, stored) in &plans {
        changes.push(changes::compare(plan, stored, &mut report).await?);
    }
    let mut mistakes = Vec::new();
    for (organisation, (_, stored)) in changes.iter().zip(&plans) {
        mistakes.extend(code_conflicts::check(&mut transaction, organisation, stored).await?);
    }
    ApplyError::if_any(mistakes)?;
    for organisation in &changes {
        write_parties(&mut transaction, organisation).await?;
    }
    if changes.iter().any(Changes::affect_credentials) {
        transaction.notify_credentials().await?;
    }
    for organisation in changes.iter().filter(|organisation| organisation.affect_issuances()) {
        write_settings(&mut transaction, organisation).await?;
    }
    transaction.commit().await?;
    Ok(report)
}

/// Applies the text of a file that contains all of its secrets.
///
/// # Errors
/// As [`parse`] and [`apply`].
pub async fn apply_text(connect: &PgConnectOptions, text: &str) -> Result<Report, ApplyError> {
    let secrets = Secrets { directory: Path::new("."), variable: &|_| None };
    apply(connect, &parse(text, &secrets)?).await
}

/// Loads what is stored of each organisation, and checks the plans against it.
async fn with_stored<'a>(
    transaction: &mut Provisioning,
    plans: Vec<&'a OrganisationPlan>,
) -> Result<Vec<(&'a OrganisationPlan, StoredOrganisation)>, ApplyError> {
    let mut plans_with_stored = Vec::with_capacity(plans.len());
    let mut mistakes = Vec::new();
    for plan in plans {
        let stored = transaction.stored(plan).await?;
        mistakes.extend(customers::conflicts_with_stored(plan, &stored.customers));
        let unknown = plan.unlisted_series.iter().filter(|(id, _)| !stored.series.contains_key(id));
        mistakes.extend(unknown.map(|(id, position)| {
            Mistake::at(position, format!("names series {}, which is neither in this file nor stored", id.0))
        }));
        plans_with_stored.push((plan, stored));
    }
    ApplyError::if_any(mistakes)?;
    Ok(plans_with_stored)
}

/// Writes what issuing need not wait for: stores, tills, token issuers, clients and customers.
async fn write_parties(transaction: &mut Provisioning, changes: &Changes<'_>) -> Result<(), ApplyError> {
    let org_id = changes.plan.id;
    if changes.is_new {
        transaction.put_organisation(org_id, &changes.plan.settings).await?;
    }
    for store in &changes.stores {
        transaction.put_store(org_id, store).await?;
    }
    for (id, till) in &changes.tills {
        if !transaction.claim_till_name(org_id, id).await? {
            return Err(ApplyError::Taken(format!("org {} till {id}", org_id.0)));
        }
        transaction.put_till(org_id, id, till).await?;
    }
    // Issuers come before the clients, which refer to them.
    for issuer in &changes.token_issuers {
        transaction.put_token_issuer(org_id, issuer).await?;
    }
    for (key, client) in &changes.oauth_clients {
        if !transaction.claim_client_key(org_id, key).await? {
            return Err(ApplyError::Taken(format!("org {} oauth_client {key}", org_id.0)));
        }
        transaction.put_oauth_client(org_id, key, client).await?;
    }
    transaction
        .put_customers(org_id, &changes.customers)
        .await
        .map_err(|error| if is_overtaken(&error) { ApplyError::Overtaken(org_id) } else { error.into() })
}

/// Writes the settings that affect issuing: the organisation's own and its series. Issuing waits until the commit.
async fn write_settings(transaction: &mut Provisioning, changes: &Changes<'_>) -> Result<(), ApplyError> {
    let org_id = changes.plan.id;
    transaction.pause_issuing(org_id).await?;
    ApplyError::if_any(code_conflicts::personal_code_conflicts(transaction, changes).await?)?;
    transaction.put_organisation(org_id, &changes.plan.settings).await?;
    for series in &changes.series {
        transaction.put_series(org_id, series).await?;
    }
    transaction.derive(org_id).await?;
    Ok(())
}
