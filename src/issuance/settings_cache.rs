//! A decision may rest on cached settings because something confirms their revision: the write of a coupon, or the statement that reads
//! the history for a refusal or a resend. Caps, limits and histories are never cached.
//!
//! Settings stay cached until they change, however long that takes. A replica learns of a change when the database reports another
//! revision: then it reads which series changed since the revision that it knows, and keeps the others.

use std::collections::HashMap;
use std::future::ready;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::Entry;
use moka::future::Cache;

use crate::db::{Db, DbError, SeriesAtRevision, SeriesChanges};
use crate::model::{Caller, ClientHandling, OrgId, Organisation, Revision, SeriesId, Source, StoreId};

const MAX_ORGANISATIONS: u64 = 10_000;
/// After more changes than this, all series of the organisation are read again.
const MAX_CHANGES: usize = 10_000;
const MAX_ORIGINS: u64 = 100_000;
/// An origin never changes. It expires so that the service stores it again if a failover lost it.
const ORIGIN_TIME_TO_LIVE: Duration = Duration::from_mins(10);
/// About what the cache adds to a series: its key and its bookkeeping.
const ENTRY_BYTES: usize = 256;

/// A cache of settings, so that most coupons need no read.
#[derive(Debug)]
pub(super) struct SettingsCache {
    db: Db,
    organisations: Cache<OrgId, Arc<CachedOrganisation>>,
    series: Cache<SeriesKey, SeriesAtRevision>,
    origins: Cache<OriginKey, i32>,
    next_generation: AtomicU64,
}

/// The settings of an organisation, and what is known of the changes of its series.
#[derive(Debug)]
pub(super) struct CachedOrganisation {
    settings: Organisation,
    generation: u64,
    /// When each series changed last, as far as that is known. One that is missing has not changed since the generation began.
    changed_at: HashMap<SeriesId, Revision>,
}

/// The generation of the organisation, and the series. If it is unknown which series changed, a new generation begins.
type SeriesKey = (u64, SeriesId);

/// Organisation, store, till, client and channel.
type OriginKey = (OrgId, StoreId, Option<String>, Option<String>, &'static str);

impl Deref for CachedOrganisation {
    type Target = Organisation;

    fn deref(&self) -> &Organisation {
        &self.settings
    }
}

impl SettingsCache {
    /// `capacity`: the most memory of all series together, in bytes.
    pub(super) fn new(db: Db, capacity: u64) -> Self {
        Self {
            db,
            organisations: Cache::builder().max_capacity(MAX_ORGANISATIONS).build(),
            series: Cache::builder().max_capacity(capacity).weigher(|_, series| size(series)).build(),
            origins: Cache::builder().max_capacity(MAX_ORIGINS).time_to_live(ORIGIN_TIME_TO_LIVE).build(),
            next_generation: AtomicU64::new(0),
        }
    }

    /// The organisation, from the cache if possible.
    pub(super) async fn organisation(&self, org_id: OrgId) -> Result<Option<Arc<CachedOrganisation>>, DbError> {
        match self.organisations.get(&org_id).await {
            Some(organisation) => Ok(Some(organisation)),
            None => Box::pin(self.reload_organisation(org_id)).await,
        }
    }

    /// The organisation, always from the database.
    pub(super) async fn reload_organisation(&self, org_id: OrgId) -> Result<Option<Arc<CachedOrganisation>>, DbError> {
        let known = self.organisations.get(&org_id).await;
        let known_revision = known.as_ref().map(|known| known.revision);
        let Some((settings, changed)) = self.db.organisation(org_id, known_revision).await? else { return Ok(None) };
        let organisation = match (known, changed) {
            (Some(known), SeriesChanges::Known(_)) if settings.revision == known.revision => return Ok(Some(known)),
            (Some(known), SeriesChanges::Known(series)) if known.changed_at.len() + series.len() <= MAX_CHANGES => {
                let mut changed_at = known.changed_at.clone();
                changed_at.extend(series.into_iter().map(|series_id| (series_id, settings.revision)));
                CachedOrganisation { settings, generation: known.generation, changed_at }
            }
            _ => {
                let generation = self.next_generation.fetch_add(1, Ordering::Relaxed);
                CachedOrganisation { settings, generation, changed_at: HashMap::new() }
            }
        };
        let organisation = Arc::new(organisation);
        // Of two reloads at once, the older one must not win: it does not know the changes of the newer one.
        let newer = |current: Option<Entry<OrgId, Arc<CachedOrganisation>>>| {
            let current = current.map(Entry::into_value);
            let is_newer = |current: &Arc<CachedOrganisation>| {
                current.generation == organisation.generation && current.revision > organisation.revision
            };
            ready(current.filter(is_newer).unwrap_or(organisation))
        };
        Ok(Some(self.organisations.entry(org_id).and_upsert_with(newer).await.into_value()))
    }

    /// The series under the organisation's settings, if it is cached and has not changed since.
    pub(super) async fn series(
        &self,
        organisation: &CachedOrganisation,
        series_id: SeriesId,
    ) -> Option<SeriesAtRevision> {
        let cached = self.series.get(&(organisation.generation, series_id)).await?;
        let has_changed =
            organisation.changed_at.get(&series_id).is_some_and(|changed_at| *changed_at > cached.revision);
        let is_usable = cached.revision <= organisation.revision && !has_changed;
        is_usable.then_some(SeriesAtRevision { revision: organisation.revision, ..cached })
    }

    /// Stores a series that was read at the organisation's revision.
    pub(super) async fn insert_series(&self, organisation: &CachedOrganisation, series: &SeriesAtRevision) {
        self.series.insert((organisation.generation, series.series.id), series.clone()).await;
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

/// About the memory of a series, in bytes.
fn size(at: &SeriesAtRevision) -> u32 {
    let series = &at.series;
    let texts = [&series.snapshot.description, &series.snapshot.info].map(String::len).iter().sum::<usize>()
        + series.snapshot.discount_code.as_ref().map_or(0, String::len)
        + match &series.client_handling {
            ClientHandling::Generated(shape) => shape.coupon_prefix.len() + shape.coupon_suffix.len(),
            ClientHandling::Generic(code) => code.len(),
            ClientHandling::Pool => 0,
        };
    let ids = size_of::<i64>() * (series.mutual_exclusive_series_ids.len() + series.store_ids.len());
    let fixed = size_of_val(at) + size_of_val(&*at.series) + size_of_val(&*series.snapshot) + ENTRY_BYTES;
    u32::try_from(fixed + texts + ids).unwrap_or(u32::MAX)
}
