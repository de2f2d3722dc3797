use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tracing::Instrument;

use super::idempotency::Idempotency;
use super::state::{Customer, IssueRun};
use super::view::{View, Views};
use crate::db::{HistorySnapshot, SeriesHistory};
use crate::issuance::customers;
use crate::issuance::entity::{EntityState, Open};
use crate::issuance::error::IssueError;
use crate::issuance::key_claim::{HeldKey, KeyClaim};
use crate::issuance::outcome::Granted;
use crate::issuance::stored_outcomes::StoredOutcomes;
use crate::model::SeriesId;
use crate::telemetry::traces;

impl IssueRun<'_> {
    /// Loads the coupons that were issued or resent under the `Idempotency-Key`.
    pub(super) async fn load_issued(&mut self) -> Result<(), IssueError> {
        let Some(held) = self.idempotency.claim().and_then(KeyClaim::held) else { return Ok(()) };
        let org_id = self.request.caller.org_id;
        let loaded = StoredOutcomes::load(self.resources, org_id, held.claim, &held.answers).await?;
        let is_new = held.is_new();
        self.must_load_issued = false;
        if let Some(customer_id) = loaded.customer() {
            self.customer = Customer::OfIssued(customer_id.clone());
        }
        for (index, entity) in self.entities.iter_mut().enumerate() {
            if matches!(entity.state, EntityState::Open(_) | EntityState::Failed(_))
                && let Some(granted) = loaded.granted(index)
            {
                // If the key is new, this very attempt issued the coupon.
                entity.state = EntityState::Found(Arc::new(Granted { replayed: !is_new, ..granted }));
            }
        }
        Ok(())
    }

    /// Finds the customer under the organisation's current settings.
    pub(super) async fn identify(&mut self) -> Result<(), IssueError> {
        let identify = async {
            let (resources, request) = (self.resources, self.request);
            let organisation = resources.current_organisation(&request.caller).await?;
            let id = customers::identify(&resources.db, &*resources.entropy, &organisation, &request.customer).await?;
            Ok::<_, IssueError>((organisation, id))
        };
        let (organisation, id) = identify.instrument(traces::span!("find the customer")).await?;
        self.organisation = organisation;
        self.set_customer(id);
        Ok(())
    }

    /// Reads what the open entities need. `None`: the organisation's settings have changed or the key is lost, so the round starts again.
    pub(super) async fn load_history(&mut self) -> Result<Option<Views>, IssueError> {
        let (mut views, missing) = self.cached_views().await;
        if missing.is_empty() {
            return Ok(Some(views));
        }
        let resources = self.resources;
        let held = self.idempotency.claim().and_then(KeyClaim::held).map(HeldKey::request_and_claim);
        let natural_key = self.idempotency.natural_key();
        let history = resources.db.history(self.organisation.id, self.customer_id()?, &missing, natural_key, held);
        let span = traces::span!("load the history", series = missing.len());
        let HistorySnapshot { revision, holds_claim, series: found } = Box::pin(history.instrument(span)).await?;
        if !holds_claim {
            self.idempotency.update_claim(KeyClaim::after_loss);
            return Ok(None);
        }
        if revision != self.organisation.revision {
            Box::pin(self.reload_settings()).await?;
            return Ok(None);
        }
        let issued: Vec<_> =
            found.values().filter_map(|fresh| fresh.issued_coupon_id).map(|coupon_id| (coupon_id, None)).collect();
        for (series_id, SeriesHistory { series, history, .. }) in found {
            resources.settings_cache.insert_series(self.organisation.id, &series).await;
            views.insert(series_id, View { settings: series, history: Some(history) });
        }
        if !issued.is_empty() {
            Box::pin(self.load_issued_under_natural_key(&issued)).await?;
        }
        Ok(Some(views))
    }

    /// The series for which cached settings are enough, and the ids of the other series.
    async fn cached_views(&self) -> (Views, Vec<SeriesId>) {
        let is_natural = self.idempotency.natural_key().is_some();
        let mut views = HashMap::new();
        let mut missing = HashSet::new();
        for entity in &self.entities {
            let open = match entity.state {
                EntityState::Open(open) => open,
                // Another attempt may have issued the coupon.
                EntityState::Failed(_) if is_natural => Open::default(),
                _ => continue,
            };
            let cached = self.resources.settings_cache.series(&self.organisation, entity.series_id).await;
            match cached.filter(|settings| !is_natural && !open.needs_history && settings.needs_no_history()) {
                Some(settings) => drop(views.insert(entity.series_id, View { settings, history: None })),
                None => drop(missing.insert(entity.series_id)),
            }
        }
        (views, missing.into_iter().collect())
    }

    async fn load_issued_under_natural_key(&mut self, ids: &[(i64, Option<i32>)]) -> Result<(), IssueError> {
        let coupons = self.resources.db.coupons(self.organisation.id, ids).await?;
        for entity in &mut self.entities {
            if matches!(entity.state, EntityState::Open(_) | EntityState::Failed(_))
                && let Some(coupon) = coupons.iter().find(|coupon| coupon.series_id == entity.series_id)
            {
                entity.state = EntityState::Found(Arc::new(Granted::replay(coupon)));
            }
        }
        Ok(())
    }

    /// The organisation changed, for example its time zone or its policy for customers. Starts again with the current settings.
    async fn reload_settings(&mut self) -> Result<(), IssueError> {
        let is_unclaimed = matches!(self.idempotency, Idempotency::RequestKey(KeyClaim::Unclaimed(_)));
        if !is_unclaimed && !matches!(self.customer, Customer::OfIssued(_)) {
            return self.identify().await;
        }
        self.organisation = self.resources.current_organisation(&self.request.caller).await?;
        if is_unclaimed {
            // Coupons that were issued under the key take precedence over a refusal of the customer: the next round claims the key first.
            self.customer = Customer::Unknown;
        }
        Ok(())
    }
}
