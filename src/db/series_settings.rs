use std::sync::Arc;

use jiff::tz::TimeZone;
use sqlx::{FromRow, Row};

use super::connection::Db;
use super::error::DbError;
use super::settings_rows::{OrganisationRow, series_if_any, zone_from};
use crate::model::{OrgId, Organisation, Revision, Series, SeriesId};

/// The settings of a series, and the revision of the organisation at which they were read.
#[derive(Debug, Clone)]
pub struct SeriesAtRevision {
    /// The settings of the series.
    pub series: Arc<Series>,
    /// The organisation's revision.
    pub revision: Revision,
    /// The version of the series that a new coupon shows.
    pub version: i32,
    /// The time zone of that version.
    pub zone: TimeZone,
    /// Whether the series excludes another, or another excludes it.
    pub is_exclusive: bool,
}

impl SeriesAtRevision {
    /// Whether no coupon that the customer received can change the decision.
    #[must_use]
    pub fn is_independent(&self) -> bool {
        !self.is_exclusive && !self.series.depends_on_history()
    }

    /// Whether the settings suffice to issue: the write guards the rest, and fails if the history must decide.
    #[must_use]
    pub fn can_guard(&self) -> bool {
        !self.is_exclusive && self.series.issues_below() != Some(0)
    }
}

/// The series that changed since an earlier revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeriesChanges {
    /// These.
    Known(Vec<SeriesId>),
    /// The earlier revision is too old, or it was lost by a failover or a restore.
    Unknown,
}

/// Settings from one database snapshot.
#[derive(Debug)]
pub struct SettingsSnapshot {
    /// The organisation's revision.
    pub revision: Revision,
    /// The series that exist.
    pub series: Vec<SeriesAtRevision>,
}

impl Db {
    /// The organisation's settings, and what has changed since the revision that is `known`; `None` if there is none with this key.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn organisation(
        &self,
        org_id: OrgId,
        known: Option<Revision>,
    ) -> Result<Option<(Organisation, SeriesChanges)>, DbError> {
        let row = sqlx::query(
            "select o.org_id, o.revision, o.time_zone, o.customer_policy, o.natural_key,
                    $2::bigint is not null and $2 = any (o.recent_revisions) as follows_known,
                    array(select s.series_id from series s where s.org_id = o.org_id and s.revision > $2) as changed
               from organisation o where o.org_id = $1",
        )
        .bind(org_id.0)
        .bind(known.map(|revision| revision.0))
        .fetch_optional(&mut *self.connection().await?)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let organisation = Organisation::try_from(OrganisationRow::from_row(&row)?)?;
        let changes = if row.try_get("follows_known")? {
            SeriesChanges::Known(row.try_get::<Vec<i64>, _>("changed")?.into_iter().map(SeriesId).collect())
        } else {
            SeriesChanges::Unknown
        };
        Ok(Some((organisation, changes)))
    }

    /// The settings of these series.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn series(&self, org_id: OrgId, series_ids: &[SeriesId]) -> Result<SettingsSnapshot, DbError> {
        let ids: Vec<i64> = series_ids.iter().map(|id| id.0).collect();
        let rows = sqlx::query(SERIES).bind(org_id.0).bind(ids).fetch_all(&mut *self.connection().await?).await?;
        let (mut revision, mut found) = (Revision(0), Vec::with_capacity(rows.len()));
        for row in rows {
            revision = Revision(row.try_get("revision")?);
            if let Some(series) = series_if_any(&row)? {
                found.push(SeriesAtRevision {
                    series: Arc::new(series),
                    revision,
                    version: row.try_get("version")?,
                    zone: zone_from(&row)?,
                    is_exclusive: row.try_get("is_exclusive")?,
                });
            }
        }
        Ok(SettingsSnapshot { revision, series: found })
    }
}

// Names each column: a prepared `select *` fails once the migration of a newer replica adds a column.
const SERIES: &str = "
    select s.series_id, s.description, s.info, s.discount_code, s.discount_type, s.discount_value, s.discount_upto,
           s.valid_till_date, s.expiry_strategy_type, s.expiry_strategy_value, s.redemption_valid_from,
           s.client_handling_type, s.alpha_numeric, s.random_code_length, s.coupon_prefix, s.coupon_suffix,
           s.generic_code, s.max_create, s.is_multiple_vouchers_per_user_allowed, s.max_vouchers_per_user,
           s.do_not_resend_existing_voucher, s.min_days_between_vouchers, s.mutual_exclusive_series_ids, s.store_ids,
           s.externally_managed, s.version, o.time_zone, o.revision,
           exists (select from series_exclusion x
                    where x.org_id = s.org_id and x.series_id = s.series_id) as is_exclusive
      from organisation o
      -- An outer join: the revision is returned even if none of the series exists.
      left join series s on s.org_id = o.org_id and s.series_id = any ($2)
     where o.org_id = $1";
