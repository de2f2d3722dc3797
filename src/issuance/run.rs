//! One request, from its customer to its last entity.
//!
//! It runs in rounds: load the history, decide, write. If a guard of the database refuses a coupon because another request was
//! faster, the next round decides it again on fresh history. The deadline and a maximum number of rounds end the loop. Rare paths are
//! boxed, which keeps the common future small.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep_until};
use tracing::Instrument;
use uuid::Uuid;

use super::answers::{Answer, Resend, Word};
use super::entity::{Certainty, EntityRun, EntityState, Next, Open};
use super::key_claim::{Claimed, Held, KeyClaim, hash16};
use super::receipt::{Known, flushed};
use super::rules::{self, Decision, Moment};
use super::{
    Entity, Granted, Issuance, IssueError, IssueRequest, Issuer, Refusal, answers, codes, customers, missing, within,
};
use crate::db::writer::{Code, NewCoupon, Scope, Work, WriteOutcome};
use crate::db::{DbError, FreshFacts, History, SeriesAtRevision};
use crate::model::{ClientHandling, CustomerId, EntropyError, Facts, Organisation, SeriesId};
use crate::telemetry::throttle::Throttle;
use crate::telemetry::traces;

/// The pause before the next round: while settings change, and after rounds without progress.
const PAUSE: Duration = Duration::from_millis(20);
/// After each of so many rounds without progress the pause grows by one `PAUSE`, up to so many.
const ROUNDS_PER_PAUSE: u32 = 10;
const MAX_PAUSES: u32 = 10;
/// After so many rounds without progress, whatever is open is answered 748.
const MAX_ROUNDS_WITHOUT_PROGRESS: u32 = 500;
/// The most claims of one request. A crash can undo a claim; one that is lost every time is a bug.
const MAX_CLAIMS: u32 = 5;

static FAULTS: Throttle = Throttle::new();
static STOPPED: Throttle = Throttle::new();

/// Processes a request. See [`Issuer::issue`].
pub(super) async fn process(
    issuer: &Issuer,
    request: &IssueRequest,
    deadline: Instant,
) -> Result<Issuance, IssueError> {
    let (name, result) = match IssueRun::start(issuer, request, deadline).await {
        Ok(mut run) => {
            let result = run.rounds().await;
            run.finish(result)
        }
        Err(error) => (Name::None, Err(error)),
    };
    let result = after_server_fault(issuer, request, result, deadline).await;
    let Name::Key(claim) = name else { return result };
    let words = result.as_ref().ok().map(|issuance| issuance.entities.iter().map(word).collect());
    let not_stored = Box::pin(claim.end(issuer, words)).await;
    let mut issuance = result?;
    for place in not_stored {
        // A resend is final under its key. One that is not stored could become another answer.
        if let Some(entity) = issuance.entities.get_mut(place) {
            entity.outcome = Err(Refusal::InDoubt);
        }
    }
    Ok(issuance)
}

/// What is stored of an entity's answer.
fn word(entity: &Entity) -> Word {
    let answer = match &entity.outcome {
        Ok(granted) => Answer::with(granted),
        Err(refusal) => Answer::Refused(*refusal),
    };
    Word { series_id: entity.series_id, answer }
}

/// The answer after a fault of the database server. If the server still takes writes, each entity is answered 748. Otherwise the
/// database counts as unavailable.
async fn after_server_fault(
    issuer: &Issuer,
    request: &IssueRequest,
    result: Result<Issuance, IssueError>,
    deadline: Instant,
) -> Result<Issuance, IssueError> {
    let Err(IssueError::ServerFault(error)) = result else { return result };
    if Box::pin(flushed(issuer, Instant::now(), deadline)).await.is_err() {
        return Err(IssueError::Unavailable(Some(error)));
    }
    FAULTS.log(|suppressed| tracing::error!(%error, suppressed, "the database server failed on a request"));
    // This attempt stored nothing. An earlier one under the key may have.
    let refusal = if request.is_keyed() { Refusal::InDoubt } else { Refusal::TimedOut };
    let entities = request.series_ids.iter().map(|id| Entity { series_id: *id, outcome: Err(refusal) }).collect();
    Ok(Issuance { entities })
}

/// Good enough for a customer who needs no look-up.
async fn cached_organisation(issuer: &Issuer, request: &IssueRequest) -> Result<Arc<Organisation>, IssueError> {
    issuer.directory.organisation(request.caller.org_id).await?.ok_or_else(missing)
}

/// Under which name each entity of a request is issued once.
enum Name {
    /// Under none.
    None,
    /// Under the natural key.
    Natural(Uuid),
    /// Under the request's own key.
    Key(KeyClaim),
}

impl Name {
    /// That of a request without a key of its own.
    fn natural(request: &IssueRequest, organisation: &Organisation, customer_id: &CustomerId) -> Self {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
        let metadata = request.metadata.as_ref().filter(|_| organisation.natural_key);
        let parts = metadata.and_then(|metadata| Some((given(&metadata.source_type)?, given(&metadata.source_id)?)));
        let Some((source_type, source_id)) = parts else { return Self::None };
        let mut hash = Sha256::new();
        for part in [&customer_id.0, &source_type, &source_id] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        Self::Natural(hash16(hash))
    }
}

/// For whom a request is.
enum Customer {
    /// It is not known yet.
    Unknown,
    /// Whom the identifiers name under the organisation's settings.
    Identified(CustomerId),
    /// Whose the coupons are that were issued under the key: that stays, whatever became of the identifiers and the policy.
    OfIssued(CustomerId),
}

/// The course of one request.
struct IssueRun<'a> {
    issuer: &'a Issuer,
    request: &'a IssueRequest,
    organisation: Arc<Organisation>,
    customer: Customer,
    name: Name,
    deadline: Instant,
    entities: Vec<EntityRun>,
    /// Something may have been issued under the key: the next round loads it first.
    must_load_issued: bool,
    /// The organisation's settings are being changed: the next round waits a moment.
    is_paused: bool,
    /// When this round began to read.
    read_since: Instant,
    /// How often the key was claimed by a statement.
    claims: u32,
}

/// What is known of a series in this round.
struct View {
    at: SeriesAtRevision,
    /// `None`: only the settings are known, from the cache.
    facts: Option<Facts>,
}

/// What a round gives to the writer, with the places of the entities.
#[derive(Default)]
struct Plan {
    places: Vec<usize>,
    works: Vec<Work>,
}

impl<'a> IssueRun<'a> {
    async fn start(issuer: &'a Issuer, request: &'a IssueRequest, deadline: Instant) -> Result<Self, IssueError> {
        let name = match &request.key {
            Some(key) => {
                let incarnation = match issuer.presence.known() {
                    Some(incarnation) => incarnation,
                    None => Box::pin(within(deadline, issuer.presence.incarnation())).await?,
                };
                Name::Key(KeyClaim::new(issuer, request, key, incarnation))
            }
            None => Name::None,
        };
        Ok(Self {
            issuer,
            request,
            organisation: within(deadline, pin!(cached_organisation(issuer, request))).await?,
            customer: Customer::Unknown,
            name,
            deadline,
            entities: request.series_ids.iter().map(|id| EntityRun::new(*id)).collect(),
            must_load_issued: false,
            is_paused: false,
            read_since: Instant::now(),
            claims: 0,
        })
    }

    fn pending(&self) -> usize {
        self.entities.iter().filter(|entity| entity.is_pending()).count()
    }

    /// Whether another attempt may have issued an open entity. A held key rules that out once its coupons are loaded. A natural key is
    /// never held.
    fn certainty(&self) -> Certainty {
        match &self.name {
            Name::None => Certainty::Certain,
            Name::Key(claim) if claim.held().is_some() && !self.must_load_issued => Certainty::Certain,
            Name::Key(_) | Name::Natural(_) => Certainty::Uncertain,
        }
    }

    fn close(&mut self, refusal: Refusal) {
        self.drop_decisions_without_key();
        let certainty = self.certainty();
        self.entities.iter_mut().for_each(|entity| entity.close(refusal, certainty));
    }

    /// Takes rounds until nothing is pending.
    async fn rounds(&mut self) -> Result<(), IssueError> {
        if let Some(id) = customers::as_given(self.organisation.customer_policy, &self.request.customer) {
            self.set_customer(id);
        }
        let (mut pending, mut without_progress) = (self.pending(), 0);
        while pending > 0 {
            if Instant::now() >= self.deadline || without_progress == MAX_ROUNDS_WITHOUT_PROGRESS {
                self.close(Refusal::TimedOut);
            } else if let Err(error) = self.round().await {
                self.stop_early(error, without_progress > 0)?;
            }
            let still_pending = self.pending();
            without_progress = if still_pending < pending { 0 } else { without_progress + 1 };
            pending = still_pending;
            let longer = without_progress / ROUNDS_PER_PAUSE;
            if std::mem::take(&mut self.is_paused) || longer > 0 {
                sleep_until(self.deadline.min(Instant::now() + PAUSE * longer.clamp(1, MAX_PAUSES))).await;
            }
        }
        Ok(())
    }

    async fn round(&mut self) -> Result<(), IssueError> {
        let deadline = self.deadline;
        self.read_since = Instant::now();
        if self.needs_claim() {
            let words = self.entities.iter().map(word_so_far).collect();
            Box::pin(self.claim(words)).await?;
        }
        if self.must_load_issued && matches!(self.name, Name::Key(_)) {
            let load = self.load_issued().instrument(traces::span!("load what was issued under the key"));
            Box::pin(within(deadline, load)).await?;
        }
        if matches!(self.customer, Customer::Unknown) && self.entities.iter().any(EntityRun::is_open) {
            // A customer may be created, or refused, only under the settings as they are now.
            Box::pin(within(deadline, self.identify())).await?;
        }
        let Some(views) = within(deadline, pin!(self.load_history())).await? else { return Ok(()) };
        let origin_id = self.origin(&views).await?;
        let mut plan = self.decide(&views, origin_id);
        if !self.claim_for(&mut plan).await? || plan.works.is_empty() {
            return Ok(());
        }
        self.write(plan).await
    }

    /// Claim the key first if the claim was lost or no coupon could carry it, or while the customer is unknown: only the request that
    /// owns the key may create or refuse a customer.
    fn needs_claim(&self) -> bool {
        match &self.name {
            Name::Key(KeyClaim::Lapsed(..)) => true,
            Name::Key(KeyClaim::Unclaimed(_)) => matches!(self.customer, Customer::Unknown),
            Name::Key(KeyClaim::InFlight(..) | KeyClaim::Held(_) | KeyClaim::Uncertain(_))
            | Name::Natural(_)
            | Name::None => false,
        }
    }

    /// Claims the key by a statement.
    async fn claim(&mut self, words: Vec<Word>) -> Result<Option<Claimed>, IssueError> {
        let Name::Key(claim) = std::mem::replace(&mut self.name, Name::None) else { return Ok(None) };
        self.claims += 1;
        if self.claims > MAX_CLAIMS {
            self.name = Name::Key(claim);
            return Err(IssueError::Internal(
                "a claimed key is not found when a coupon is written under it".to_owned(),
            ));
        }
        let new_claim = Box::pin(claim.claim(self.issuer, answers::join(words), self.deadline)).await;
        let (claim, claimed) = match new_claim {
            Ok((claim, claimed)) => (claim, Ok(Some(claimed))),
            Err((claim, error)) => (claim, Err(error)),
        };
        self.name = Name::Key(claim);
        if matches!(claimed, Ok(Some(Claimed::Resumed))) {
            self.must_load_issued = true;
            // What was decided without a new coupon counts only if another attempt has not decided otherwise since.
            self.entities.iter_mut().filter(|entity| entity.is_refused_or_resent()).for_each(EntityRun::reopen);
        }
        claimed
    }

    /// Claims the key, with the first coupon or by a statement. False: the key was used before; the next round loads its coupons.
    async fn claim_for(&mut self, plan: &mut Plan) -> Result<bool, IssueError> {
        let Name::Key(KeyClaim::Unclaimed(_)) = &self.name else { return self.set_key(plan) };
        let words: Vec<Word> = self.entities.iter().map(word_so_far).collect();
        let is_coupon = |work: &Work| matches!(work, Work::Issue(_));
        // An exclusive coupon may wait for its customer's lock. If it carried the claim, a retry would wait too instead of getting 409.
        let is_quick = |work: &Work| !matches!(work, Work::Issue(coupon) if coupon.is_exclusive);
        if plan.works.iter().any(is_coupon) && plan.works.iter().all(is_quick) && !self.issuer.writer.is_held_up() {
            let Name::Key(claim) = std::mem::replace(&mut self.name, Name::None) else { return Ok(true) };
            self.name = Name::Key(claim.claim_with(|| answers::join(words)));
        } else if Box::pin(self.claim(words)).await? == Some(Claimed::Resumed) {
            self.entities.iter_mut().for_each(EntityRun::reopen);
            return Ok(false);
        }
        self.set_key(plan)
    }

    /// Gives the coupons of a keyed request their key.
    fn set_key(&self, plan: &mut Plan) -> Result<bool, IssueError> {
        let Name::Key(claim) = &self.name else { return Ok(true) };
        for (place, work) in plan.places.iter().zip(&mut plan.works) {
            if let Work::Issue(coupon) = work {
                let unclaimed = || IssueError::Internal("a coupon of a keyed request has no key".to_owned());
                coupon.scope = Scope::Key(claim.entity(*place).ok_or_else(unclaimed)?);
            }
        }
        Ok(true)
    }

    /// Loads what was issued and shown under the key.
    async fn load_issued(&mut self) -> Result<(), IssueError> {
        let Name::Key(claim) = &self.name else { return Ok(()) };
        let Some(held) = claim.held() else { return Ok(()) };
        let known = Known::load(self.issuer, self.request.caller.org_id, held.claim, &held.answers).await?;
        let is_new = held.is_new();
        self.must_load_issued = false;
        if let Some(customer_id) = known.customer() {
            self.customer = Customer::OfIssued(customer_id.clone());
        }
        for (place, entity) in self.entities.iter_mut().enumerate() {
            if matches!(entity.state, EntityState::Open(_) | EntityState::Failed(_))
                && let Some(granted) = known.granted(place)
            {
                // Of an attempt before this one, unless the key is new.
                entity.state = EntityState::Found(Arc::new(Granted { replayed: !is_new, ..granted }));
            }
        }
        Ok(())
    }

    async fn current_organisation(&self) -> Result<Arc<Organisation>, IssueError> {
        self.issuer.directory.organisation_now(self.request.caller.org_id).await?.ok_or_else(missing)
    }

    /// Finds the customer under the organisation's settings as they are now.
    async fn identify(&mut self) -> Result<(), IssueError> {
        let identify = async {
            let organisation = self.current_organisation().await?;
            let (issuer, given) = (self.issuer, &self.request.customer);
            let id = customers::identify(&issuer.db, &*issuer.entropy, &organisation, given).await?;
            Ok::<_, IssueError>((organisation, id))
        };
        let (organisation, id) = identify.instrument(traces::span!("find the customer")).await?;
        self.organisation = organisation;
        self.set_customer(id);
        Ok(())
    }

    fn set_customer(&mut self, id: CustomerId) {
        if !matches!(self.name, Name::Key(_)) {
            self.name = Name::natural(self.request, &self.organisation, &id);
            self.link_duplicates();
        }
        self.customer = Customer::Identified(id);
    }

    /// A natural key names one issuance: a series that is listed again is answered as where it is listed first.
    fn link_duplicates(&mut self) {
        let is_natural = matches!(self.name, Name::Natural(_));
        let mut first = HashMap::new();
        for (place, entity) in self.entities.iter_mut().enumerate() {
            let earlier = *first.entry(entity.series_id).or_insert(place);
            match entity.state {
                EntityState::Open(_) if is_natural && earlier < place => entity.state = EntityState::SameAs(earlier),
                EntityState::SameAs(_) if !is_natural => entity.reopen(),
                _ => {}
            }
        }
    }

    fn customer_id(&self) -> Result<&CustomerId, IssueError> {
        match &self.customer {
            Customer::Identified(id) | Customer::OfIssued(id) => Ok(id),
            Customer::Unknown => Err(IssueError::Internal("the customer is not known".to_owned())),
        }
    }

    /// Reads what the open entities need. `None`: the organisation's settings have changed, or the key is lost; look again.
    async fn load_history(&mut self) -> Result<Option<HashMap<SeriesId, View>>, IssueError> {
        let issuer = self.issuer;
        let natural_key = if let Name::Natural(key) = self.name { Some(key) } else { None };
        let mut views = HashMap::new();
        let mut unknown = HashSet::new();
        for entity in &self.entities {
            let open = match entity.state {
                EntityState::Open(open) => open,
                // Whether another attempt has issued it after all.
                EntityState::Failed(_) if natural_key.is_some() => Open::default(),
                _ => continue,
            };
            let cached = issuer.directory.series(&self.organisation, entity.series_id).await;
            match cached.filter(|at| natural_key.is_none() && !open.needs_history && at.needs_no_facts()) {
                Some(at) => drop(views.insert(entity.series_id, View { at, facts: None })),
                None => drop(unknown.insert(entity.series_id)),
            }
        }
        if unknown.is_empty() {
            return Ok(Some(views));
        }
        let unknown: Vec<SeriesId> = unknown.into_iter().collect();
        let held = if let Name::Key(claim) = &self.name { claim.held().map(Held::named) } else { None };
        let history = issuer.db.facts(self.organisation.id, self.customer_id()?, &unknown, natural_key, held);
        let span = traces::span!("load the history", series = unknown.len());
        let History { revision, is_held, found } = Box::pin(history.instrument(span)).await?;
        if !is_held {
            self.update_claim(KeyClaim::lost);
            return Ok(None);
        }
        if revision != self.organisation.revision {
            Box::pin(self.reload_settings()).await?;
            return Ok(None);
        }
        let under_natural: Vec<_> =
            found.values().filter_map(|fresh| fresh.issued_coupon_id).map(|id| (id, None)).collect();
        for (series_id, FreshFacts { series, facts, .. }) in found {
            issuer.directory.remember(self.organisation.id, &series).await;
            views.insert(series_id, View { at: series, facts: Some(facts) });
        }
        if !under_natural.is_empty() {
            Box::pin(self.load_natural(&under_natural)).await?;
        }
        Ok(Some(views))
    }

    /// Loads the coupons that were issued under the natural key.
    async fn load_natural(&mut self, ids: &[(i64, Option<i32>)]) -> Result<(), IssueError> {
        let coupons = self.issuer.db.coupons(self.organisation.id, ids).await?;
        for entity in &mut self.entities {
            if matches!(entity.state, EntityState::Open(_) | EntityState::Failed(_))
                && let Some(coupon) = coupons.iter().find(|coupon| coupon.series_id == entity.series_id)
            {
                entity.state = EntityState::Found(Arc::new(Granted::replay(coupon)));
            }
        }
        Ok(())
    }

    /// The organisation was changed: another zone, another policy for customers. Starts from there.
    async fn reload_settings(&mut self) -> Result<(), IssueError> {
        let is_unclaimed = matches!(self.name, Name::Key(KeyClaim::Unclaimed(_)));
        if !is_unclaimed && !matches!(self.customer, Customer::OfIssued(_)) {
            return self.identify().await;
        }
        self.organisation = self.current_organisation().await?;
        if is_unclaimed {
            // What was issued under the key counts before the customer is refused: the next round claims it first.
            self.customer = Customer::Unknown;
        }
        Ok(())
    }

    /// Who issues, where and by which channel; not asked for if nothing can be issued.
    async fn origin(&self, views: &HashMap<SeriesId, View>) -> Result<i32, IssueError> {
        if views.is_empty() {
            return Ok(0);
        }
        let origin = self.issuer.directory.origin(&self.request.caller, self.request.source);
        within(self.deadline, pin!(origin)).await
    }

    /// Decides what can be decided in this round, and returns what is to be written.
    fn decide(&mut self, views: &HashMap<SeriesId, View>, origin_id: i32) -> Plan {
        let mut plan = Plan::default();
        let mut precedence = Precedence::default();
        let certainty = self.certainty();
        for place in 0..self.entities.len() {
            let series_id = match &self.entities[place].state {
                EntityState::Found(granted) => {
                    let answer = Granted::clone(granted);
                    self.entities[place].send(answer);
                    plan.add(place, Work::FlushBarrier(self.read_since));
                    continue;
                }
                EntityState::Failed(refusal) => {
                    self.entities[place].state = EntityState::Done(Err(certainty.qualify(*refusal)));
                    continue;
                }
                EntityState::Open(_) => self.entities[place].series_id,
                EntityState::InFlight(_)
                | EntityState::Unreached(_)
                | EntityState::SameAs(_)
                | EntityState::Done(_) => continue,
            };
            let Some(view) = views.get(&series_id) else {
                self.entities[place].state = EntityState::Done(Err(Refusal::UnknownSeries));
                continue;
            };
            if !precedence.may_go(series_id, &view.at) {
                continue;
            }
            match self.decide_one(view, origin_id) {
                Ok(Some((answer, work))) => {
                    self.entities[place].send(answer);
                    plan.add(place, work);
                    precedence.sent(series_id, &view.at);
                }
                // A refusal, but only on cached settings.
                Ok(None) => self.entities[place].require_history(),
                Err(refusal) => {
                    self.entities[place].state = EntityState::Done(Err(certainty.qualify(refusal)));
                }
            }
        }
        plan
    }

    /// One decision. `None`: a refusal, but only on cached settings, so load the history first.
    fn decide_one(&self, view: &View, origin_id: i32) -> Result<Option<(Granted, Work)>, Refusal> {
        let series = &view.at.series;
        let now = self.issuer.clock.now();
        let moment = Moment { now, zone: &self.organisation.time_zone, store_id: self.request.caller.store_id };
        let granted = |code: String, expires_on, resent: Option<Resend>| Granted {
            face: Arc::clone(&series.face),
            zone: view.at.zone.clone(),
            code,
            expires_on,
            redemption_count: resent.map_or(0, |resend| resend.redemption_count),
            resent,
            replayed: false,
        };
        let decision = match &view.facts {
            Some(facts) => rules::decide(series, facts, &moment),
            None => match rules::may_issue(series, &moment) {
                Ok(expires_on) => Decision::Issue { expires_on, ordinal: None },
                Err(_) => return Ok(None),
            },
        };
        match decision {
            Decision::Refuse(refusal) => Err(refusal),
            Decision::Resend(held) => {
                let resend = Resend {
                    coupon_id: held.coupon_id,
                    series_version: (held.series_version != view.at.version).then_some(view.at.version),
                    redemption_count: held.redemption_count,
                };
                let answer = granted(held.code, held.expires_on, Some(resend));
                Ok(Some((answer, Work::FlushBarrier(self.read_since))))
            }
            Decision::Issue { expires_on, ordinal } => {
                let code = self.code(&series.client_handling)?;
                let shown = match &code {
                    Code::Unique(code) | Code::Generic(code) => code.clone(),
                    Code::FromPool => String::new(),
                };
                let coupon = NewCoupon {
                    org_id: self.organisation.id,
                    series_id: series.id,
                    series_version: view.at.version,
                    origin_id,
                    customer_id: self.customer_id().map_err(|error| no_customer(&error))?.clone(),
                    ordinal,
                    code,
                    expires_on,
                    issued_at: now,
                    account_id: self.request.account_id.clone(),
                    metadata: self.request.metadata.clone(),
                    request_id: Arc::clone(&self.request.request_id),
                    scope: self.scope(),
                    revision: view.at.revision,
                    max_create: series.max_create,
                    is_exclusive: view.at.is_exclusive,
                    may_collide: codes::may_collide(&series.client_handling),
                };
                Ok(Some((granted(shown, expires_on, None), Work::Issue(Box::new(coupon)))))
            }
        }
    }

    /// The name under which an entity is issued. A key follows once it is claimed (`set_key`).
    const fn scope(&self) -> Scope {
        match &self.name {
            Name::None | Name::Key(_) => Scope::None,
            Name::Natural(key) => Scope::Natural(*key),
        }
    }

    fn code(&self, handling: &ClientHandling) -> Result<Code, Refusal> {
        match handling {
            ClientHandling::Generated(shape) => {
                codes::draw(shape, &*self.issuer.entropy).map(Code::Unique).map_err(no_entropy)
            }
            ClientHandling::Generic(code) => Ok(Code::Generic(code.clone())),
            ClientHandling::Pool => Ok(Code::FromPool),
        }
    }

    /// Has a plan written, and settles its entities.
    async fn write(&mut self, plan: Plan) -> Result<(), IssueError> {
        let Plan { places, works } = plan;
        let span = traces::span!("write", coupons = works.len());
        let written = self.issuer.writer.write(works, self.deadline).instrument(span).await;
        let Ok(outcomes) = written else {
            // A queue that is full has taken none of them.
            self.entities.iter_mut().for_each(EntityRun::take_back);
            self.update_claim(KeyClaim::take_back);
            return Err(IssueError::Overloaded);
        };
        let is_keyed = !matches!(self.name, Name::None);
        let learned: Vec<(usize, &WriteOutcome)> = places.iter().copied().zip(&outcomes).collect();
        let was_claimed_with = matches!(self.name, Name::Key(KeyClaim::InFlight(..)));
        self.update_claim(|claim| claim.after_write(&learned));
        // By what is known now: the coupons may have claimed the key, or shown that it is lost.
        let certainty = self.certainty();
        for (place, outcome) in places.into_iter().zip(outcomes) {
            match self.entities[place].settle(outcome, certainty, is_keyed) {
                Next::Nothing => {}
                Next::LoadIssued => self.must_load_issued = true,
                Next::Pause => self.is_paused = true,
            }
        }
        if matches!(self.name, Name::Key(KeyClaim::Uncertain(_))) {
            self.close(Refusal::InDoubt);
        }
        if was_claimed_with {
            if matches!(self.name, Name::Key(KeyClaim::Held(_))) {
                self.issuer.counts.claims.acquired();
            }
            self.drop_decisions_without_key();
        }
        if let Customer::Identified(id) = &self.customer
            && self.entities.iter().any(EntityRun::is_issued_or_in_doubt)
        {
            // The rest of the request is for the same customer, whatever becomes of the identifiers.
            self.customer = Customer::OfIssued(id.clone());
        }
        Ok(())
    }

    /// No coupon was written under the key, so it is not ours and may have been used: decides again.
    fn drop_decisions_without_key(&mut self) {
        if let Name::Key(
            KeyClaim::Unclaimed(_) | KeyClaim::InFlight(..) | KeyClaim::Lapsed(_, None) | KeyClaim::Uncertain(_),
        ) = &self.name
        {
            let undone = self.entities.iter_mut().filter(|entity| !entity.is_unreached_or_in_doubt());
            undone.filter(|entity| !entity.is_open()).for_each(EntityRun::reopen);
        }
    }

    fn update_claim(&mut self, update: impl FnOnce(KeyClaim) -> KeyClaim) {
        self.name = match std::mem::replace(&mut self.name, Name::None) {
            Name::Key(claim) => Name::Key(update(claim)),
            other => other,
        };
    }

    /// A round failed. What is stored must still be answered.
    fn stop_early(&mut self, error: IssueError, was_tried: bool) -> Result<(), IssueError> {
        if was_tried && matches!(error, IssueError::TimedOut) {
            // The database answers; the request's time ended in a later round.
            self.close(Refusal::TimedOut);
            return Ok(());
        }
        if !self.entities.iter().any(EntityRun::is_issued_or_in_doubt) {
            return Err(error);
        }
        STOPPED.log(|suppressed| {
            tracing::warn!(%error, suppressed, "a request stopped early; some of its coupons are or may be stored");
        });
        let is_slow = matches!(error, IssueError::TimedOut | IssueError::ServerFault(_));
        self.close(if is_slow { Refusal::TimedOut } else { Refusal::Failed });
        Ok(())
    }

    fn finish(self, result: Result<(), IssueError>) -> (Name, Result<Issuance, IssueError>) {
        let Self { entities, name, .. } = self;
        if let Err(error) = result {
            return (name, Err(error));
        }
        let is_unreached =
            |entity: &EntityRun| matches!(entity.state, EntityState::Unreached(_) | EntityState::SameAs(_));
        if entities.iter().all(is_unreached) {
            return (name, Err(IssueError::Unavailable(None::<DbError>)));
        }
        let outcomes: Vec<_> = (0..entities.len()).map(|place| outcome(&entities, place)).collect();
        let entity = |(entity, outcome): (EntityRun, _)| Entity { series_id: entity.series_id, outcome };
        (name, Ok(Issuance { entities: entities.into_iter().zip(outcomes).map(entity).collect() }))
    }
}

/// What the entity in this place is answered.
fn outcome(entities: &[EntityRun], place: usize) -> Result<Arc<Granted>, Refusal> {
    match &entities[place].state {
        EntityState::Done(outcome) => outcome.clone(),
        EntityState::Unreached(refusal) => Err(*refusal),
        // Shown again, so it counts as issued once.
        EntityState::SameAs(first) => outcome(entities, *first)
            .map(|granted| Arc::new(Granted { replayed: granted.resent.is_none(), ..Granted::clone(&granted) })),
        EntityState::Open(_) | EntityState::Found(_) | EntityState::Failed(_) | EntityState::InFlight(_) => {
            tracing::error!("a request ended before one of its entities");
            Err(Refusal::InDoubt)
        }
    }
}

/// What can be stored of an entity's answer while its request goes on.
fn word_so_far(entity: &EntityRun) -> Word {
    let answer = match &entity.state {
        EntityState::Done(Err(refusal)) => Answer::Refused(*refusal),
        EntityState::Done(Ok(granted)) | EntityState::Found(granted) => Answer::with(granted),
        EntityState::InFlight(in_flight) => Answer::with(&in_flight.answer),
        EntityState::Open(_) | EntityState::Failed(_) | EntityState::Unreached(_) | EntityState::SameAs(_) => {
            Answer::NewCoupon
        }
    };
    Word { series_id: entity.series_id, answer }
}

fn no_entropy(error: EntropyError) -> Refusal {
    tracing::error!(%error, "no code can be drawn");
    Refusal::Failed
}

fn no_customer(error: &IssueError) -> Refusal {
    tracing::error!(%error, "internal error: a coupon without a customer");
    Refusal::Failed
}

impl Plan {
    fn add(&mut self, place: usize, work: Work) {
        self.places.push(place);
        self.works.push(work);
    }
}

/// Who goes first within one request: a series listed again, and a mutually exclusive one, waits for the next round until the
/// earlier one is decided. Where the order can make no difference nobody waits.
#[derive(Default)]
struct Precedence {
    sent: HashSet<SeriesId>,
    exclusive: bool,
}

impl Precedence {
    fn may_go(&self, series_id: SeriesId, at: &SeriesAtRevision) -> bool {
        let waits = self.sent.contains(&series_id) || (at.is_exclusive && self.exclusive);
        !waits
    }

    fn sent(&mut self, series_id: SeriesId, at: &SeriesAtRevision) {
        let series = &at.series;
        let in_any_order = at.needs_no_facts()
            && series.max_create.is_none()
            && !matches!(series.client_handling, ClientHandling::Pool);
        if !in_any_order {
            self.sent.insert(series_id);
        }
        self.exclusive |= at.is_exclusive;
    }
}
