use std::sync::Arc;

use jiff::Timestamp;
use jiff::civil::Date;

use super::plan::Plan;
use super::precedence::Precedence;
use super::state::IssueRun;
use super::view::{View, ViewedHistory, Views};
use crate::db::writer::{Code, NewCoupon, Numbering, Work};
use crate::issuance::codes;
use crate::issuance::entity::EntityState;
use crate::issuance::error::IssueError;
use crate::issuance::outcome::{Granted, Resend};
use crate::issuance::refusal::Refusal;
use crate::issuance::rules::{self, Decision, DecisionContext};
use crate::model::{ClientHandling, EntropyError, HeldCoupon};

/// A positive decision on an entity.
enum Draft {
    /// A resend of a coupon that is flushed, or that the end of the attempt flushes.
    Flushed(Granted),
    /// The answer if the write succeeds, and the write.
    Write(Granted, Work),
}

impl IssueRun<'_> {
    /// Decides the open entities that need not wait, and returns the plan of the write.
    pub(super) fn decide(&mut self, views: &Views, origin_id: i32) -> Plan {
        let mut plan = Plan::default();
        let mut precedence = Precedence::default();
        let certainty = self.certainty();
        for index in 0..self.entities.len() {
            let series_id = match &self.entities[index].state {
                EntityState::Found(granted) => {
                    let answer = Granted::clone(granted);
                    self.entities[index].send(answer);
                    plan.add(index, Work::FlushBarrier(self.read_since));
                    continue;
                }
                EntityState::Failed(refusal) => {
                    self.entities[index].state = EntityState::Done(Err(certainty.qualify(*refusal)));
                    continue;
                }
                EntityState::Open(_) => self.entities[index].series_id,
                EntityState::InFlight(_)
                | EntityState::Unreached(_)
                | EntityState::SameAs(_)
                | EntityState::Done(_) => continue,
            };
            let Some(view) = views.get(&series_id) else {
                self.entities[index].state = EntityState::Done(Err(Refusal::UnknownSeries));
                continue;
            };
            if precedence.must_wait(series_id, &view.settings) {
                continue;
            }
            match self.decide_series(view, origin_id) {
                Ok(Some(Draft::Flushed(answer))) => {
                    self.resent_since = self.resent_since.or(Some(self.read_since));
                    self.entities[index].send(answer);
                    plan.add_flushed(index);
                    precedence.add_sent(series_id, &view.settings);
                }
                Ok(Some(Draft::Write(answer, work))) => {
                    self.entities[index].send(answer);
                    plan.add(index, work);
                    precedence.add_sent(series_id, &view.settings);
                }
                Ok(None) => self.entities[index].require_history(),
                Err(refusal) => {
                    self.entities[index].state = EntityState::Done(Err(certainty.qualify(refusal)));
                }
            }
        }
        plan
    }

    /// `None`: the cached settings lead to a refusal, which is final only with the history.
    fn decide_series(&self, view: &View, origin_id: i32) -> Result<Option<Draft>, Refusal> {
        let series = &view.settings.series;
        let now = self.resources.clock.now();
        let context =
            DecisionContext { now, zone: &self.organisation.time_zone, store_id: self.request.caller.store_id };
        let decision = match &view.history {
            Some(ViewedHistory { history, .. }) => rules::decide(series, history, &context),
            None => match rules::may_issue(series, &context) {
                Ok(expires_on) => {
                    let numbering = series
                        .issues_below()
                        .map_or(Numbering::None, |received_below| Numbering::Next { received_below });
                    return self.draft_coupon(view, origin_id, now, expires_on, numbering).map(Some);
                }
                Err(_) => return Ok(None),
            },
        };
        match decision {
            Decision::Refuse(refusal) => Err(refusal),
            Decision::Resend(held) => Ok(Some(self.draft_resend(view, held))),
            Decision::Issue { expires_on, ordinal } => {
                let numbering = ordinal.map_or(Numbering::None, Numbering::Ordinal);
                self.draft_coupon(view, origin_id, now, expires_on, numbering).map(Some)
            }
        }
    }

    fn draft_resend(&self, view: &View, held: HeldCoupon) -> Draft {
        let resend = Resend {
            coupon_id: held.coupon_id,
            series_version: (held.series_version != view.settings.version).then_some(view.settings.version),
            redemption_count: held.redemption_count,
        };
        let answer = granted(view, held.code, held.expires_on, Some(resend));
        match &view.history {
            Some(ViewedHistory { is_flushed: true, .. }) => Draft::Flushed(answer),
            _ if self.idempotency.claim().is_some_and(|claim| claim.held().is_some()) => Draft::Flushed(answer),
            _ => Draft::Write(answer, Work::FlushBarrier(self.read_since)),
        }
    }

    fn draft_coupon(
        &self,
        view: &View,
        origin_id: i32,
        now: Timestamp,
        expires_on: Date,
        numbering: Numbering,
    ) -> Result<Draft, Refusal> {
        let series = &view.settings.series;
        let code = self.new_code(&series.client_handling)?;
        let code_in_answer = match &code {
            Code::Unique(code) | Code::Generic(code) => code.clone(),
            // The writer returns the code that it takes from the pool.
            Code::FromPool => String::new(),
        };
        let coupon = NewCoupon {
            org_id: self.organisation.id,
            series_id: series.id,
            series_version: view.settings.version,
            origin_id,
            customer_id: self.customer_id().map_err(|error| missing_customer(&error))?.clone(),
            numbering,
            code,
            expires_on,
            issued_at: now,
            account_id: self.request.account_id.clone(),
            metadata: self.request.metadata.clone(),
            request_id: Arc::clone(&self.request.request_id),
            scope: self.idempotency.scope(),
            revision: view.settings.revision,
            max_create: series.max_create,
            is_exclusive: view.settings.is_exclusive,
            may_collide: codes::may_collide(&series.client_handling),
        };
        Ok(Draft::Write(granted(view, code_in_answer, expires_on, None), Work::Issue(Box::new(coupon))))
    }

    fn new_code(&self, handling: &ClientHandling) -> Result<Code, Refusal> {
        match handling {
            ClientHandling::Generated(shape) => {
                codes::generate(shape, &*self.resources.entropy).map(Code::Unique).map_err(no_entropy)
            }
            ClientHandling::Generic(code) => Ok(Code::Generic(code.clone())),
            ClientHandling::Pool => Ok(Code::FromPool),
        }
    }
}

fn granted(view: &View, code: String, expires_on: Date, resent: Option<Resend>) -> Granted {
    Granted {
        snapshot: Arc::clone(&view.settings.series.snapshot),
        zone: view.settings.zone.clone(),
        code,
        expires_on,
        redemption_count: resent.map_or(0, |resend| resend.redemption_count),
        resent,
        replayed: false,
    }
}

fn no_entropy(error: EntropyError) -> Refusal {
    tracing::error!(%error, "cannot generate a code");
    Refusal::Failed
}

fn missing_customer(error: &IssueError) -> Refusal {
    tracing::error!(%error, "internal error: a coupon without a customer");
    Refusal::Failed
}
