use std::collections::BTreeMap;

use super::callers::{StoredClientSettings, StoredTillSettings};
use super::transaction::Provisioning;
use crate::db::customers::CustomerLookup;
use crate::db::error::DbError;
use crate::model::{
    CustomerId, OrganisationPlan, OrganisationSettings, Series, SeriesId, StoreId, StorePlan, TokenIssuerPlan,
};

/// A stored organisation.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "the tables of the same names")]
pub struct StoredOrganisation {
    pub settings: Option<OrganisationSettings>,
    pub stores: BTreeMap<StoreId, StorePlan>,
    pub tills: BTreeMap<String, StoredTillSettings>,
    pub token_issuers: BTreeMap<String, TokenIssuerPlan>,
    pub oauth_clients: BTreeMap<String, StoredClientSettings>,
    /// Only the customers that the file lists, and those who have an identifier that the file gives to another.
    pub customers: BTreeMap<CustomerId, CustomerLookup>,
    pub series: BTreeMap<SeriesId, Series>,
}

impl Provisioning {
    /// Everything stored of an organisation, but only those customers that concern the plan.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn stored(&mut self, plan: &OrganisationPlan) -> Result<StoredOrganisation, DbError> {
        let org_id = plan.id;
        Ok(StoredOrganisation {
            settings: self.settings(org_id).await?,
            stores: self.stores(org_id).await?,
            tills: self.tills(org_id).await?,
            token_issuers: self.token_issuers(org_id).await?,
            oauth_clients: self.oauth_clients(org_id).await?,
            customers: self.customers(org_id, &plan.customers).await?,
            series: self.series(org_id).await?,
        })
    }
}
