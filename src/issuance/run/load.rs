use std::sync::Arc;

use tracing::Instrument;

use super::idempotency::Idempotency;
use super::state::{Customer, IssueRun};
use super::view::{View, ViewedHistory, Views};
use crate::db::{HistoryLookup, HistorySnapshot, SeriesAtRevision, SeriesHistory, SeriesRules, SettingsSnapshot};
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
    pub(super) async fn load_views(&mut self) -> Result<Option<Views>, IssueError> {
        let (mut views, missing) = self.cached_views().await;
        if !missing.is_empty() && !Box::pin(self.load_settings(missing, &mut views)).await? {
            return Ok(None);
        }
        let wanted: Vec<SeriesRules> =
            views.values().filter(|view| view.needs_history).map(|view| SeriesRules::from(&view.settings)).collect();
        if !wanted.is_empty() && !Box::pin(self.load_history(wanted, &mut views)).await? {
            return Ok(None);
        }
        Ok(Some(views))
    }

    /// The series of the open entities whose settings are cached, and the others.
    async fn cached_views(&self) -> (Views, Vec<(SeriesId, Open)>) {
        let is_natural = self.idempotency.natural_key().is_some();
        let (mut views, mut missing) = (Views::with_capacity(self.entities.len()), Vec::new());
        for entity in &self.entities {
            let open = match entity.state {
                EntityState::Open(open) => open,
                // Another attempt may have issued the coupon.
                EntityState::Failed(_) if is_natural => Open::default(),
                _ => continue,
            };
            if let Some(view) = views.get_mut(&entity.series_id) {
                view.needs_history |= open.needs_history;
            } else if let Some(settings) =
                self.resources.settings_cache.series(&self.organisation, entity.series_id).await
            {
                views.insert(entity.series_id, self.view(settings, open));
            } else {
                missing.push((entity.series_id, open));
            }
        }
        (views, missing)
    }

    fn view(&self, settings: SeriesAtRevision, open: Open) -> View {
        // A resend or a refusal must not wait behind the lock that stalls the queue.
        let can_guard = settings.is_independent() || (settings.can_guard() && !self.resources.writer.is_stalled());
        let needs_history = !can_guard || open.needs_history || self.idempotency.natural_key().is_some();
        View { settings, needs_history, history: None }
    }

    /// Adds these series to the views, if they exist. False: the round starts again.
    async fn load_settings(&mut self, missing: Vec<(SeriesId, Open)>, views: &mut Views) -> Result<bool, IssueError> {
        let ids: Vec<SeriesId> = missing.iter().map(|(series_id, _)| *series_id).collect();
        let span = traces::span!("load the settings", series = ids.len());
        let settings = self.resources.db.series(self.organisation.id, &ids).instrument(span);
        let SettingsSnapshot { revision, series } = settings.await?;
        if revision != self.organisation.revision {
            self.reload_settings().await?;
            return Ok(false);
        }
        for settings in series {
            self.resources.settings_cache.insert_series(&self.organisation, &settings).await;
            for (series_id, open) in missing.iter().filter(|(series_id, _)| *series_id == settings.series.id) {
                let view = views.entry(*series_id).or_insert_with(|| self.view(settings.clone(), *open));
                view.needs_history |= open.needs_history;
            }
        }
        Ok(true)
    }

    /// Adds the history to the views of these series. False: the round starts again.
    async fn load_history(&mut self, series: Vec<SeriesRules>, views: &mut Views) -> Result<bool, IssueError> {
        let span = traces::span!("load the history", series = series.len());
        let lookup = HistoryLookup {
            org_id: self.organisation.id,
            customer_id: self.customer_id()?.clone(),
            series,
            natural_key: self.idempotency.natural_key(),
            claim: self.idempotency.claim().and_then(KeyClaim::held).map(HeldKey::request_and_claim),
        };
        let HistorySnapshot { revision, holds_claim, is_flushed, series: found } =
            self.resources.history.read(lookup).instrument(span).await?;
        if !holds_claim {
            self.idempotency.update_claim(KeyClaim::after_loss);
            return Ok(false);
        }
        if revision != self.organisation.revision {
            Box::pin(self.reload_settings()).await?;
            return Ok(false);
        }
        let issued: Vec<_> =
            found.values().filter_map(|fresh| fresh.issued_coupon_id).map(|coupon_id| (coupon_id, None)).collect();
        for (series_id, SeriesHistory { history, .. }) in found {
            if let Some(view) = views.get_mut(&series_id) {
                view.history = Some(ViewedHistory { history, is_flushed });
            }
        }
        if !issued.is_empty() {
            Box::pin(self.load_issued_under_natural_key(&issued)).await?;
        }
        Ok(true)
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
