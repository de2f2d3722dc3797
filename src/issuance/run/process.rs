use std::sync::Arc;

use tokio::time::Instant;

use super::idempotency::Idempotency;
use super::state::IssueRun;
use crate::issuance::answers::EntityAnswer;
use crate::issuance::entity::{EntityRun, EntityState};
use crate::issuance::error::IssueError;
use crate::issuance::outcome::{Entity, Granted, Issuance};
use crate::issuance::refusal::Refusal;
use crate::issuance::request::IssueRequest;
use crate::issuance::resources::Resources;
use crate::telemetry::throttle::Throttle;

static SERVER_FAULT: Throttle = Throttle::new();

/// Processes a request, and ends its claim of the `Idempotency-Key`.
pub(in crate::issuance) async fn process(
    resources: &Resources,
    request: &IssueRequest,
    deadline: Instant,
) -> Result<Issuance, IssueError> {
    let (idempotency, resent_since, result) = match IssueRun::start(resources, request, deadline).await {
        Ok(mut run) => {
            let result = run.rounds().await;
            let resent_since = run.resent_since;
            let (idempotency, result) = finish(run, result);
            (idempotency, resent_since, result)
        }
        Err(error) => (Idempotency::None, None, Err(error)),
    };
    let result = after_server_fault(resources, request, result, deadline).await;
    let Idempotency::RequestKey(claim) = idempotency else { return result };
    let answers = result.as_ref().ok().map(|issuance| issuance.entities.iter().map(EntityAnswer::from).collect());
    let not_stored = Box::pin(claim.end(resources, answers, resent_since)).await;
    let mut issuance = result?;
    for index in not_stored {
        // A resend is final under its key. If it is not stored, a retry could get another answer.
        if let Some(entity) = issuance.entities.get_mut(index) {
            entity.outcome = Err(Refusal::InDoubt);
        }
    }
    Ok(issuance)
}

/// The result after a fault of the database server. If the server still accepts writes, each entity is answered 748. Otherwise the
/// database counts as unavailable.
async fn after_server_fault(
    resources: &Resources,
    request: &IssueRequest,
    result: Result<Issuance, IssueError>,
    deadline: Instant,
) -> Result<Issuance, IssueError> {
    let Err(IssueError::ServerFault(error)) = result else { return result };
    if Box::pin(resources.wait_for_flush(Instant::now(), deadline)).await.is_err() {
        return Err(IssueError::Unavailable(Some(error)));
    }
    SERVER_FAULT.log(|suppressed| tracing::error!(%error, suppressed, "the database server failed on a request"));
    // This attempt stored nothing. An earlier attempt under the same key may have stored coupons.
    let refusal = if request.is_keyed() { Refusal::InDoubt } else { Refusal::TimedOut };
    let entities = request.series_ids.iter().map(|id| Entity { series_id: *id, outcome: Err(refusal) }).collect();
    Ok(Issuance { entities })
}

fn finish(run: IssueRun<'_>, result: Result<(), IssueError>) -> (Idempotency, Result<Issuance, IssueError>) {
    let IssueRun { entities, idempotency, .. } = run;
    if let Err(error) = result {
        return (idempotency, Err(error));
    }
    let is_unreached = |entity: &EntityRun| matches!(entity.state, EntityState::Unreached(_) | EntityState::SameAs(_));
    if entities.iter().all(is_unreached) {
        return (idempotency, Err(IssueError::Unavailable(None)));
    }
    let outcomes: Vec<_> = (0..entities.len()).map(|index| outcome(&entities, index)).collect();
    let entity = |(entity, outcome): (EntityRun, _)| Entity { series_id: entity.series_id, outcome };
    (idempotency, Ok(Issuance { entities: entities.into_iter().zip(outcomes).map(entity).collect() }))
}

fn outcome(entities: &[EntityRun], index: usize) -> Result<Arc<Granted>, Refusal> {
    match &entities[index].state {
        EntityState::Done(outcome) => outcome.clone(),
        EntityState::Unreached(refusal) => Err(*refusal),
        // The same coupon again: the metrics count it as issued only once.
        EntityState::SameAs(first) => outcome(entities, *first)
            .map(|granted| Arc::new(Granted { replayed: granted.resent.is_none(), ..Granted::clone(&granted) })),
        EntityState::Open(_) | EntityState::Found(_) | EntityState::Failed(_) | EntityState::InFlight(_) => {
            tracing::error!("a request ended before one of its entities had an answer");
            Err(Refusal::InDoubt)
        }
    }
}
