use tracing::Instrument;

use super::idempotency::Idempotency;
use super::plan::Plan;
use super::state::{Customer, IssueRun};
use crate::db::writer::WriteOutcome;
use crate::issuance::entity::{EntityRun, NextStep};
use crate::issuance::error::IssueError;
use crate::issuance::key_claim::KeyClaim;
use crate::issuance::refusal::Refusal;
use crate::telemetry::traces;

impl IssueRun<'_> {
    /// Writes a plan, and applies the outcomes to its entities.
    pub(super) async fn write(&mut self, plan: Plan) -> Result<(), IssueError> {
        let Plan { mut indices, works, flushed } = plan;
        let span = traces::span!("write", coupons = works.len());
        let written = self.resources.writer.write(works, self.deadline).instrument(span).await;
        let Ok(mut outcomes) = written else {
            // A full queue rejects all of them.
            self.entities.iter_mut().for_each(EntityRun::restore);
            self.idempotency.update_claim(KeyClaim::after_rejection);
            return Err(IssueError::Overloaded);
        };
        outcomes.extend(flushed.iter().map(|_| WriteOutcome::Flushed));
        indices.extend(flushed);
        self.settle(indices, outcomes);
        Ok(())
    }

    fn settle(&mut self, indices: Vec<usize>, outcomes: Vec<WriteOutcome>) {
        let is_keyed = !matches!(self.idempotency, Idempotency::None);
        let coupons_claimed = matches!(self.idempotency, Idempotency::RequestKey(KeyClaim::InFlight(..)));
        let by_index: Vec<(usize, &WriteOutcome)> = indices.iter().copied().zip(&outcomes).collect();
        self.idempotency.update_claim(|claim| claim.after_write(&by_index));
        // After the update: the coupons may have claimed the key, or shown that it is lost.
        let certainty = self.certainty();
        for (index, outcome) in indices.into_iter().zip(outcomes) {
            match self.entities[index].settle(outcome, certainty, is_keyed) {
                NextStep::Nothing => {}
                NextStep::LoadIssued => self.must_load_issued = true,
                NextStep::Pause => self.is_paused = true,
            }
        }
        if matches!(self.idempotency, Idempotency::RequestKey(KeyClaim::Uncertain(_))) {
            self.close(Refusal::InDoubt);
        }
        if coupons_claimed {
            if matches!(self.idempotency, Idempotency::RequestKey(KeyClaim::Held(_))) {
                self.resources.metrics.claims.record_acquired();
            }
            self.reopen_if_not_claimed();
        }
        if let Customer::Identified(id) = &self.customer
            && self.entities.iter().any(EntityRun::is_issued_or_in_doubt)
        {
            // The rest of the request is for the same customer, even if the identifiers change.
            self.customer = Customer::OfIssued(id.clone());
        }
    }
}
