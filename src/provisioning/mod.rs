//! Configuration as code: `apply` makes the database hold what a file says, in one transaction, and tells what it changed.
//!
//! What a file does not list is left alone, never deleted: coupons refer to it.

mod file;
mod toml;

use std::fmt;
use std::path::Path;

use sqlx::postgres::PgConnectOptions;

pub use self::file::Secrets;
pub use self::toml::Mistake;
use crate::auth::{hash_secret, till_password, verify_secret};
use crate::model::{OAuthClientPlan, OrgId, OrganisationPlan, Settings, TillPlan};
use crate::store::StoreError;
use crate::store::provisioning::{
    OrganisationSettings, Provisioning, StoredClientSettings, StoredOrganisation, StoredTillSettings, is_taken,
};

/// Why a file was not applied. Nothing is changed then.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The file cannot be read.
    #[error("{0}: {1}")]
    File(String, #[source] std::io::Error),
    /// The file has mistakes.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Mistakes(Vec<Mistake>),
    /// A name or an identifier is another's: of another organisation, or of a customer that the file does not list.
    #[error("{0}: the name or one of the identifiers is taken by another")]
    Taken(String),
    /// The database cannot be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A secret cannot be hashed.
    #[error("a secret cannot be hashed: {0}")]
    Secret(String),
}

/// What an `apply` has done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One line for each thing that was created or changed.
    pub changes: Vec<String>,
    /// One line for each thing that is stored and not in the file.
    pub left_alone: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.changes.iter().chain(&self.left_alone) {
            writeln!(formatter, "{line}")?;
        }
        match self.changes.len() {
            0 => write!(formatter, "no change"),
            1 => write!(formatter, "1 change"),
            count => write!(formatter, "{count} changes"),
        }
    }
}

/// Reads and checks a file.
///
/// # Errors
/// [`ApplyError::File`], or [`ApplyError::Mistakes`] with all of them.
pub fn read(path: &Path) -> Result<Vec<OrganisationPlan>, ApplyError> {
    let source = std::fs::read_to_string(path).map_err(|error| ApplyError::File(path.display().to_string(), error))?;
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    parse(&source, &Secrets { directory, variable: &|name| std::env::var(name).ok() })
}

/// Checks the text of a file.
///
/// # Errors
/// [`ApplyError::Mistakes`], with all of them.
pub fn parse(source: &str, secrets: &Secrets<'_>) -> Result<Vec<OrganisationPlan>, ApplyError> {
    file::parse(source, secrets).map_err(ApplyError::Mistakes)
}

/// Makes the database hold these organisations.
///
/// # Errors
/// When it cannot; nothing is changed then.
pub async fn apply(connect: &PgConnectOptions, plans: &[OrganisationPlan]) -> Result<Report, ApplyError> {
    let mut report = Report::default();
    let mut transaction = Provisioning::begin(connect).await?;
    for id in transaction.organisations().await? {
        if !plans.iter().any(|plan| plan.id == id) {
            report.left_alone.push(format!("org {}: not in the file, left alone", id.0));
        }
    }
    // In order of the organisations, as batches lock them (migrations/0001, `issue_coupons`): nobody waits in a circle.
    let mut plans: Vec<&OrganisationPlan> = plans.iter().collect();
    plans.sort_by_key(|plan| plan.id);
    for plan in plans {
        apply_organisation(&mut transaction, plan, &mut report).await?;
    }
    transaction.commit().await?;
    Ok(report)
}

async fn apply_organisation(
    transaction: &mut Provisioning,
    plan: &OrganisationPlan,
    report: &mut Report,
) -> Result<(), ApplyError> {
    let customers: Vec<_> = plan.customers.iter().map(|customer| customer.id.clone()).collect();
    let stored = transaction.stored(plan.id, &customers).await?;
    note_left_alone(plan, &stored, report);

    apply_settings(transaction, plan, &stored, report).await?;
    for store in &plan.stores {
        let change = difference(stored.stores.get(&store.id), store);
        if report.note(plan.id, &format!("store {}", store.id.0), change) {
            transaction.put_store(plan.id, store).await?;
        }
    }
    for till in &plan.tills {
        apply_till(transaction, plan.id, till, stored.tills.get(&till.id), report).await?;
    }
    for client in &plan.oauth_clients {
        apply_client(transaction, plan.id, client, stored.oauth_clients.get(&client.key), report).await?;
    }
    apply_customers(transaction, plan, &stored, report).await
}

/// The settings that decide issuances: the organisation's own, and its series. Issuing waits while they change.
async fn apply_settings(
    transaction: &mut Provisioning,
    plan: &OrganisationPlan,
    stored: &StoredOrganisation,
    report: &mut Report,
) -> Result<(), ApplyError> {
    let settings = OrganisationSettings::from(plan);
    let mut changed = report.note(plan.id, "", difference(stored.settings.as_ref(), &settings));
    let mut series_changed = Vec::new();
    for series in &plan.series {
        let change = difference(stored.series.get(&series.id), series);
        if report.note(plan.id, &format!("series {}", series.id.0), change) {
            series_changed.push(series);
        }
    }
    changed |= !series_changed.is_empty();
    if !changed {
        return Ok(());
    }
    transaction.pause_issuing(plan.id).await?;
    transaction.put_organisation(plan.id, &settings).await?;
    for series in &series_changed {
        transaction.put_series(plan.id, series).await?;
    }
    if !series_changed.is_empty() {
        transaction.derive(plan.id).await?;
    }
    Ok(())
}

async fn apply_till(
    transaction: &mut Provisioning,
    org_id: OrgId,
    till: &TillPlan,
    stored: Option<&StoredTillSettings>,
    report: &mut Report,
) -> Result<(), ApplyError> {
    let (password_hash, is_new) =
        kept_or_hashed(stored.map(|till| &till.password_hash), till_password(&till.password)).await?;
    let wanted = StoredTillSettings { store_id: till.store_id, password_hash };
    let mut change = difference(stored, &wanted);
    add_secret(&mut change, is_new, "password");
    let what = format!("till {}", till.id);
    if report.note(org_id, &what, change) {
        let put = transaction.put_till(org_id, &till.id, &wanted).await;
        put.map_err(|error| taken(error, org_id, &what))?;
    }
    Ok(())
}

async fn apply_client(
    transaction: &mut Provisioning,
    org_id: OrgId,
    client: &OAuthClientPlan,
    stored: Option<&StoredClientSettings>,
    report: &mut Report,
) -> Result<(), ApplyError> {
    let (secret_hash, is_new) = kept_or_hashed(stored.map(|client| &client.secret_hash), client.secret.clone()).await?;
    let wanted = StoredClientSettings {
        till_id: client.till_id.clone(),
        access: client.access,
        token_ttl_seconds: client.token_ttl_seconds,
        secret_hash,
    };
    let mut change = difference(stored, &wanted);
    add_secret(&mut change, is_new, "secret");
    let what = format!("oauth_client {}", client.key);
    if report.note(org_id, &what, change) {
        let put = transaction.put_oauth_client(org_id, &client.key, &wanted).await;
        put.map_err(|error| taken(error, org_id, &what))?;
    }
    Ok(())
}

async fn apply_customers(
    transaction: &mut Provisioning,
    plan: &OrganisationPlan,
    stored: &StoredOrganisation,
    report: &mut Report,
) -> Result<(), ApplyError> {
    for customer in &plan.customers {
        let known = stored.customers.get(&customer.id);
        let mut wanted = customer.clone();
        if let Some(known) = known {
            let (given, known) = (&mut wanted.identifiers, &known.identifiers);
            given.mobile = given.mobile.take().or_else(|| known.mobile.clone());
            given.email = given.email.take().or_else(|| known.email.clone());
            given.external_id = given.external_id.take().or_else(|| known.external_id.clone());
        }
        let what = format!("customer {}", customer.id.0);
        if report.note(plan.id, &what, difference(known, &wanted)) {
            let put = transaction.put_customer(plan.id, customer).await;
            put.map_err(|error| taken(error, plan.id, &what))?;
        }
    }
    Ok(())
}

/// The stored hash if it is the secret's, else a new one; and whether it is new.
async fn kept_or_hashed(stored: Option<&String>, secret: secrecy::SecretString) -> Result<(String, bool), ApplyError> {
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
    for key in stored.oauth_clients.keys().filter(|key| !plan.oauth_clients.iter().any(|client| client.key == **key)) {
        left(format!("oauth_client {key}"));
    }
    for id in stored.series.keys().filter(|id| !plan.series.iter().any(|series| series.id == **id)) {
        left(format!("series {}", id.0));
    }
}

fn taken(error: StoreError, org_id: OrgId, what: &str) -> ApplyError {
    if is_taken(&error) { ApplyError::Taken(format!("org {} {what}", org_id.0)) } else { error.into() }
}

impl Settings for OrganisationSettings {
    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("name", self.name.clone()),
            ("time_zone", self.time_zone.clone()),
            ("customer_policy", self.customer_policy.name().to_owned()),
            ("default_access", self.default_access.name().to_owned()),
        ]
    }
}

impl Settings for StoredTillSettings {
    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![("store_id", self.store_id.0.to_string())]
    }
}

impl Settings for StoredClientSettings {
    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("till", self.till_id.clone()),
            ("access", self.access.name().to_owned()),
            ("token_ttl_seconds", self.token_ttl_seconds.to_string()),
        ]
    }
}
