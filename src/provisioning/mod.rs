//! Configuration as code: `apply` makes the database hold what a file says, in one transaction, and tells what it changed.
//! What is done to a single till or client from the command line is in [`commands`], to the keys in [`keys`].
//!
//! What a file does not list is left alone, never deleted: coupons refer to it.

mod callers;
mod changes;
mod codes;
pub mod commands;
mod customers;
mod file;
pub mod keys;
mod stores;
mod toml;

use std::path::Path;
use std::{fmt, io};

use sqlx::postgres::PgConnectOptions;

use self::changes::Changes;
pub use self::file::Secrets;
use self::stores::SharedCode;
pub use self::toml::Mistake;
use crate::db::DbError;
use crate::db::provisioning::{Provisioning, StoredOrganisation, is_overtaken};
use crate::model::{OrgId, OrganisationPlan, text_in};

/// Why a file was not applied. Nothing is changed then.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The file cannot be read.
    #[error("{0}: {1}")]
    File(String, #[source] std::io::Error),
    /// The file has mistakes.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Mistakes(Vec<Mistake>),
    /// A till's name or a client's key is taken by another organisation.
    #[error("{0}: the name is taken by another organisation; tills log in by it alone, and clients by their key")]
    Taken(String),
    /// A request gave an identifier to a customer while the file was compared with what is stored.
    #[error("org {}: a request has just given one of the identifiers to a customer: apply the file again", .0.0)]
    Overtaken(OrgId),
    /// A code or an external id of a store is also that of one that the file does not list.
    #[error("org {}: {}; one of the two is not in the file", .0.0, .1)]
    SharedCode(OrgId, SharedCode),
    /// The database cannot be asked.
    #[error(transparent)]
    Db(#[from] DbError),
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
    let source = text_of(path).map_err(|error| ApplyError::File(path.display().to_string(), error))?;
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    parse(&source, &Secrets { directory, variable: &|name| std::env::var_os(name) })
}

fn text_of(path: &Path) -> io::Result<String> {
    let wrong = |error| io::Error::new(io::ErrorKind::InvalidData, format!("the file {error}"));
    text_in(std::fs::read(path)?).map_err(wrong)
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
    // In order of the organisations, as batches lock them (migrations/0002, `issue_coupons_1`): nobody waits in a circle.
    let mut plans: Vec<&OrganisationPlan> = plans.iter().collect();
    plans.sort_by_key(|plan| plan.id);

    let plans = with_stored(&mut transaction, plans).await?;
    // What issuing waits for is written last, so that it waits for nothing slow: no password is hashed under the lock.
    let mut changes = Vec::with_capacity(plans.len());
    for (plan, stored) in &plans {
        changes.push(changes::compare(plan, stored, &mut report).await?);
    }
    let mut mistakes = Vec::new();
    for (organisation, (_, stored)) in changes.iter().zip(&plans) {
        mistakes.extend(codes::check(&mut transaction, organisation, stored).await?);
    }
    told(mistakes)?;
    for organisation in &changes {
        write_holders(&mut transaction, organisation).await?;
    }
    if changes.iter().any(Changes::concern_credentials) {
        transaction.notify_credentials().await?;
    }
    for organisation in changes.iter().filter(|organisation| organisation.decides_issuances()) {
        write_settings(&mut transaction, organisation).await?;
    }
    transaction.commit().await?;
    Ok(report)
}

/// Applies the text of a file that holds all of its secrets.
///
/// # Errors
/// As [`parse`] and [`apply`].
pub async fn apply_text(connect: &PgConnectOptions, text: &str) -> Result<Report, ApplyError> {
    let secrets = Secrets { directory: Path::new("."), variable: &|_| None };
    apply(connect, &parse(text, &secrets)?).await
}

/// What is stored of each organisation, which no plan contradicts.
async fn with_stored<'a>(
    transaction: &mut Provisioning,
    plans: Vec<&'a OrganisationPlan>,
) -> Result<Vec<(&'a OrganisationPlan, StoredOrganisation)>, ApplyError> {
    let mut compared = Vec::with_capacity(plans.len());
    let mut mistakes = Vec::new();
    for plan in plans {
        let stored = transaction.stored(plan).await?;
        mistakes.extend(customers::taken(plan, &stored.customers));
        let unknown = plan.unlisted_series.iter().filter(|(id, _)| !stored.series.contains_key(id));
        mistakes.extend(unknown.map(|(id, place)| {
            Mistake::at(place, format!("names series {}, which is neither in this file nor stored", id.0))
        }));
        compared.push((plan, stored));
    }
    told(mistakes)?;
    Ok(compared)
}

/// Mistakes refuse the file.
fn told(mut mistakes: Vec<Mistake>) -> Result<(), ApplyError> {
    mistakes.sort();
    if mistakes.is_empty() { Ok(()) } else { Err(ApplyError::Mistakes(mistakes)) }
}

/// The stores, tills, issuers of tokens, clients and customers: whoever calls and whoever receives.
async fn write_holders(transaction: &mut Provisioning, changes: &Changes<'_>) -> Result<(), ApplyError> {
    let org_id = changes.plan.id;
    if changes.is_new {
        transaction.put_organisation(org_id, &changes.settings).await?;
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
    // Before the clients, which refer to them.
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

/// The settings that decide issuances: the organisation's own, and its series. Issuing waits while they change.
async fn write_settings(transaction: &mut Provisioning, changes: &Changes<'_>) -> Result<(), ApplyError> {
    let org_id = changes.plan.id;
    transaction.pause_issuing(org_id).await?;
    told(codes::personal(transaction, changes).await?)?;
    transaction.put_organisation(org_id, &changes.settings).await?;
    for series in &changes.series {
        transaction.put_series(org_id, series).await?;
    }
    transaction.derive(org_id).await?;
    Ok(())
}
