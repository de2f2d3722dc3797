//! Only issued coupons rely on cached settings, because the write is guarded by the revision of the settings. Refusals never do.
//! Caps, limits and histories are never cached.

use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;

use crate::db::{Db, DbError, SeriesAtRevision};
use crate::model::{Caller, OrgId, Organisation, SeriesId, Source, StoreId};

const MAX_ORGANISATIONS: u64 = 10_000;
const MAX_SERIES: u64 = 100_000;
const MAX_ORIGINS: u64 = 100_000;
/// An origin never changes. It expires so that the service stores it again if a failover lost it.
const ORIGIN_TIME_TO_LIVE: Duration = Duration::from_mins(10);

/// A cache of settings, so that most coupons need no read.
#[derive(Debug)]
pub(super) struct SettingsCache {
    db: Db,
    organisations: Cache<OrgId, Arc<Organisation>>,
    series: Cache<(OrgId, SeriesId), SeriesAtRevision>,
    origins: Cache<OriginKey, i32>,
}

/// Organisation, store, till, client and channel.
type OriginKey = (OrgId, StoreId, Option<String>, Option<String>, &'static str);

impl SettingsCache {
    pub(super) fn new(db: Db, time_to_live: Duration) -> Self {
        Self {
            db,
            organisations: Cache::builder().max_capacity(MAX_ORGANISATIONS).time_to_live(time_to_live).build(),
            series: Cache::builder().max_capacity(MAX_SERIES).time_to_live(time_to_live).build(),
            origins: Cache::builder().max_capacity(MAX_ORIGINS).time_to_live(ORIGIN_TIME_TO_LIVE).build(),
        }
    }

    /// The organisation, from the cache if possible.
    pub(super) async fn organisation(&self, org_id: OrgId) -> Result<Option<Arc<Organisation>>, DbError> {
        match self.organisations.get(&org_id).await {
            Some(organisation) => Ok(Some(organisation)),
            None => Box::pin(self.reload_organisation(org_id)).await,
        }
    }

    /// The organisation, always from the database.
    pub(super) async fn reload_organisation(&self, org_id: OrgId) -> Result<Option<Arc<Organisation>>, DbError> {
        let Some(organisation) = self.db.organisation(org_id).await? else { return Ok(None) };
        let organisation = Arc::new(organisation);
        self.organisations.insert(org_id, Arc::clone(&organisation)).await;
        Ok(Some(organisation))
    }

    /// The series, if it is cached at the same revision as the organisation.
    pub(super) async fn series(&self, organisation: &Organisation, series_id: SeriesId) -> Option<SeriesAtRevision> {
        let cached = self.series.get(&(organisation.id, series_id)).await?;
        (cached.revision == organisation.revision).then_some(cached)
    }

    pub(super) async fn insert_series(&self, org_id: OrgId, series: &SeriesAtRevision) {
        self.series.insert((org_id, series.series.id), series.clone()).await;
    }

    /// The id of the origin of this caller's coupons, from the cache if possible.
    pub(super) async fn origin(&self, caller: &Caller, source: Source) -> Result<i32, DbError> {
        let client_key = caller.client_key().map(str::to_owned);
        let key = (caller.org_id, caller.store_id, caller.till_id.clone(), client_key, source.name());
        if let Some(origin_id) = self.origins.get(&key).await {
            return Ok(origin_id);
        }
        let load = async {
            let origin_id = self.db.origin(caller, source).await?;
            self.origins.insert(key, origin_id).await;
            Ok(origin_id)
        };
        Box::pin(load).await
    }
}
