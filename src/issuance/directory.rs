//! Settings remembered for a short time, so that the common coupon costs no read.
//!
//! What is remembered only ever speeds up a coupon that is issued, and the write is guarded by the revision it was read
//! at. A refusal is never given on remembered settings, and caps, limits and histories are never remembered.

use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;

use crate::db::{Db, DbError, SeriesAtRevision};
use crate::model::{Caller, OrgId, Organisation, SeriesId, Source, StoreId};

const MOST_ORGANISATIONS: u64 = 10_000;
const MOST_SERIES: u64 = 100_000;
const MOST_ORIGINS: u64 = 100_000;
/// An origin never changes. After this time it is stored again, should a failover have lost it.
const ORIGIN_TIME_TO_LIVE: Duration = Duration::from_mins(10);

/// The remembered settings.
#[derive(Debug)]
pub struct Directory {
    db: Db,
    organisations: Cache<OrgId, Arc<Organisation>>,
    series: Cache<(OrgId, SeriesId), SeriesAtRevision>,
    origins: Cache<OriginKey, i32>,
}

/// Organisation, store, till, client and channel.
type OriginKey = (OrgId, StoreId, Option<String>, Option<String>, &'static str);

impl Directory {
    /// Remembers each setting for so long.
    #[must_use]
    pub fn new(db: Db, time_to_live: Duration) -> Self {
        Self {
            db,
            organisations: Cache::builder().max_capacity(MOST_ORGANISATIONS).time_to_live(time_to_live).build(),
            series: Cache::builder().max_capacity(MOST_SERIES).time_to_live(time_to_live).build(),
            origins: Cache::builder().max_capacity(MOST_ORIGINS).time_to_live(ORIGIN_TIME_TO_LIVE).build(),
        }
    }

    /// The organisation as remembered, or else as it is now.
    ///
    /// # Errors
    /// When it is not remembered and the database cannot be asked.
    pub async fn organisation(&self, org_id: OrgId) -> Result<Option<Arc<Organisation>>, DbError> {
        match self.organisations.get(&org_id).await {
            Some(organisation) => Ok(Some(organisation)),
            None => Box::pin(self.organisation_now(org_id)).await,
        }
    }

    /// The organisation as it is now.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn organisation_now(&self, org_id: OrgId) -> Result<Option<Arc<Organisation>>, DbError> {
        let Some(organisation) = self.db.organisation(org_id).await? else { return Ok(None) };
        let organisation = Arc::new(organisation);
        self.organisations.insert(org_id, Arc::clone(&organisation)).await;
        Ok(Some(organisation))
    }

    /// The series, if it is remembered from this very revision of the organisation.
    pub async fn series(&self, organisation: &Organisation, series_id: SeriesId) -> Option<SeriesAtRevision> {
        let remembered = self.series.get(&(organisation.id, series_id)).await?;
        (remembered.revision == organisation.revision).then_some(remembered)
    }

    /// Remembers a series as it was just read.
    pub async fn remember(&self, org_id: OrgId, series: &SeriesAtRevision) {
        self.series.insert((org_id, series.series.id), series.clone()).await;
    }

    /// The number of the origin of this caller's coupons.
    ///
    /// # Errors
    /// When it is not remembered and the database cannot be asked.
    pub async fn origin(&self, caller: &Caller, source: Source) -> Result<i32, DbError> {
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
