//! One request, from its customer to its last entity.
//!
//! It goes in turns: read the facts, decide, have the decisions written. What a guard of the database refused, because
//! another request was faster, is decided again in the next turn on fresh facts; most requests need one turn. Turns are bounded
//! by the request's time and by their number. What few of them need is boxed, so that the others do not carry its state about.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::Instrument;

use super::keyed::{Attempt, Ledger, flushed};
use super::rules::{self, Decision, Moment};
use super::{Entity, Granted, Issuance, IssueError, IssueRequest, Issuer, Refusal, codes, customers, within};
use crate::model::{ClientHandling, CustomerId, EntropyError, Facts, Organisation, SeriesId};
use crate::seldom::Seldom;
use crate::store::writer::{Code, NewCoupon, Work, Written};
use crate::store::{SeriesAtRevision, StoreError};
use crate::traces;

/// How long a turn waits for settings that are being changed, and after several turns that have settled nothing.
const PAUSE: Duration = Duration::from_millis(20);
/// After each so many turns that have settled nothing, the pause before the next grows, up to so many times.
const TURNS_BEFORE_LONGER: u32 = 10;
const LONGEST_PAUSE: u32 = 10;
/// After so many turns that have settled nothing, whatever is open is answered 748.
const MOST_TURNS_FOR_NOTHING: u32 = 500;
/// So often is a key claimed. A crash of the database can take a claim back once; what takes it back each time is a mistake.
const MOST_CLAIMS: u32 = 5;
/// After so many codes that existed already, the space of codes counts as full.
const MOST_COLLISIONS: u8 = 10;

static FAULTS: Seldom = Seldom::new();

/// Processes a request. See [`Issuer::issue`].
pub(super) async fn process(
    issuer: &Issuer,
    request: &IssueRequest,
    deadline: Instant,
) -> Result<Issuance, IssueError> {
    let mut attempt = request.key.as_ref().map(|key| Attempt::new(issuer, request, key)).transpose()?;
    let result = run(issuer, request, attempt.as_mut(), deadline).await;
    let result = despite_fault(issuer, request, result, deadline).await;
    if let Some(attempt) = attempt {
        Box::pin(attempt.end(issuer, &result)).await;
    }
    result
}

/// What a request is answered that met a fault of the database server: 748 for each entity, if the server takes writes, since it
/// failed on this request alone; else the database counts as away.
async fn despite_fault(
    issuer: &Issuer,
    request: &IssueRequest,
    result: Result<Issuance, IssueError>,
    deadline: Instant,
) -> Result<Issuance, IssueError> {
    let Err(IssueError::ServerFault(error)) = result else { return result };
    if Box::pin(flushed(issuer, Instant::now(), deadline)).await.is_err() {
        return Err(IssueError::Unavailable(Some(error)));
    }
    FAULTS.tell(|times| tracing::error!(%error, times, "the database server failed on a request"));
    let organisation = within(deadline, remembered(issuer, request)).await?;
    let timed_out = |id: &SeriesId| Entity { series_id: *id, outcome: Err(Refusal::TimedOut) };
    let entities = request.series_ids.iter().map(timed_out).collect();
    Ok(Issuance { zone: organisation.time_zone.clone(), entities })
}

async fn run(
    issuer: &Issuer,
    request: &IssueRequest,
    mut attempt: Option<&mut Attempt>,
    deadline: Instant,
) -> Result<Issuance, IssueError> {
    let mut recorded = false;
    let organisation = within(deadline, pin!(remembered(issuer, request))).await?;
    let known = customers::as_given(organisation.customer_policy, &request.customer);
    let (organisation, customer_id) = if let Some(customer_id) = known {
        (organisation, customer_id)
    } else {
        // This may make a customer, and refuse one: not for a key that was used for something else.
        if let Some(attempt) = attempt.as_deref_mut() {
            recorded = Box::pin(within(deadline, attempt.begin(issuer))).await?;
        }
        within(deadline, identify(issuer, request)).await?
    };
    let slots = request.series_ids.iter().map(|id| Slot::new(*id)).collect();
    let ledger = match &attempt {
        Some(attempt) => Some(attempt.ledger()),
        None => natural_ledger(request, &organisation, &customer_id),
    };
    recorded |= attempt.is_none() && ledger.is_some();
    let mut course = Course {
        issuer,
        request,
        attempt,
        ledger,
        organisation,
        customer_id,
        deadline,
        slots,
        paused: false,
        recorded,
        read_since: Instant::now(),
        claims: 0,
    };
    course.take_turns().await?;
    course.finish()
}

/// That of a request that has no key itself, where it has a natural one.
fn natural_ledger(request: &IssueRequest, organisation: &Organisation, customer_id: &CustomerId) -> Option<Ledger> {
    Ledger::natural(organisation, customer_id, request.metadata.as_ref()?)
}

fn missing() -> IssueError {
    IssueError::Internal("the caller's organisation is missing".to_owned())
}

/// The organisation, as remembered: good enough for a customer who needs no look-up.
async fn remembered(issuer: &Issuer, request: &IssueRequest) -> Result<Arc<Organisation>, IssueError> {
    issuer.directory.organisation(request.caller.org_id).await?.ok_or_else(missing)
}

/// The organisation and the customer: who is refused, or made, is so under the settings as they are now.
async fn identify(issuer: &Issuer, request: &IssueRequest) -> Result<(Arc<Organisation>, CustomerId), IssueError> {
    let identify = async {
        let current = issuer.directory.organisation_now(request.caller.org_id).await?.ok_or_else(missing)?;
        let customer_id = customers::identify(&issuer.store, &*issuer.entropy, &current, &request.customer).await?;
        Ok((current, customer_id))
    };
    Box::pin(identify.instrument(traces::span!("find the customer"))).await
}

/// The course of one request.
struct Course<'a> {
    issuer: &'a Issuer,
    request: &'a IssueRequest,
    /// Where it has a key of its own.
    attempt: Option<&'a mut Attempt>,
    /// Where it has a key, its own or a natural one.
    ledger: Option<Ledger>,
    organisation: Arc<Organisation>,
    customer_id: CustomerId,
    deadline: Instant,
    slots: Vec<Slot>,
    /// The organisation's settings are being changed: the next turn had better wait a moment.
    paused: bool,
    /// Some of it may have been issued before, under the same key: the next turn has to look which.
    recorded: bool,
    /// When this turn began to read.
    read_since: Instant,
    /// How often the key was claimed.
    claims: u32,
}

/// One entity on its way.
struct Slot {
    series_id: SeriesId,
    outcome: Option<Result<Granted, Refusal>>,
    /// Remembered settings are not good enough: decide on fresh facts.
    needs_facts: bool,
    collisions: u8,
    /// It failed because the database was away, and nothing was sent for it.
    unavailable: bool,
    /// What was issued for it before, under the same key.
    issued_before: Option<Granted>,
    /// It was not stored, for this reason, and it is to be seen whether another attempt has issued it.
    failed: Option<Refusal>,
}

impl Slot {
    const fn new(series_id: SeriesId) -> Self {
        Self {
            series_id,
            outcome: None,
            needs_facts: false,
            collisions: 0,
            unavailable: false,
            issued_before: None,
            failed: None,
        }
    }
}

/// What is known of a series in this turn.
struct View {
    at: SeriesAtRevision,
    /// `None`: only the settings are known, from memory.
    facts: Option<Facts>,
}

/// A decision on its way to the writer, and the answer if it is written.
struct Sent {
    slot: usize,
    granted: Granted,
}

impl Course<'_> {
    fn open(&self) -> impl Iterator<Item = usize> {
        self.slots.iter().enumerate().filter(|(_, slot)| slot.outcome.is_none()).map(|(index, _)| index)
    }

    fn close_with(&mut self, refusal: &Refusal) {
        for slot in self.slots.iter_mut().filter(|slot| slot.outcome.is_none()) {
            slot.outcome = Some(Err(*refusal));
        }
    }

    /// Takes turns until nothing is open.
    async fn take_turns(&mut self) -> Result<(), IssueError> {
        let (mut open, mut for_nothing) = (self.open().count(), 0);
        while open > 0 {
            if Instant::now() >= self.deadline || for_nothing == MOST_TURNS_FOR_NOTHING {
                self.close_with(&Refusal::TimedOut);
            } else if let Err(error) = self.turn().await {
                self.broken_off(error)?;
            }
            let still_open = self.open().count();
            for_nothing = if still_open < open { 0 } else { for_nothing + 1 };
            open = still_open;
            let longer = for_nothing / TURNS_BEFORE_LONGER;
            if std::mem::take(&mut self.paused) || longer > 0 {
                sleep_until(self.deadline.min(Instant::now() + PAUSE * longer.clamp(1, LONGEST_PAUSE))).await;
            }
        }
        Ok(())
    }

    async fn turn(&mut self) -> Result<(), IssueError> {
        let deadline = self.deadline;
        self.read_since = Instant::now();
        if self.attempt.as_ref().is_some_and(|attempt| attempt.is_unbegun()) {
            self.recorded |= self.claim().await?;
        }
        if self.recorded {
            let recall = self.recall().instrument(traces::span!("read what was issued before"));
            Box::pin(within(deadline, recall)).await?;
            if self.recorded {
                return Ok(());
            }
        }
        let Some(views) = within(deadline, pin!(self.look())).await? else { return Ok(()) };
        let (sent, mut works) = self.decide(&views);
        let is_known = self.begin(&mut works).await?;
        if is_known || works.is_empty() {
            return Ok(());
        }
        let write = self.issuer.writer.write(works, deadline).instrument(traces::span!("write", coupons = sent.len()));
        let written = write.await;
        if let Some(attempt) = self.attempt.as_deref_mut() {
            // A queue that is full has taken none of them.
            attempt.learn(written.as_ref().map_or(&[], Vec::as_slice));
        }
        for (sent, written) in sent.into_iter().zip(written.map_err(|_| IssueError::Overloaded)?) {
            self.record(sent, written);
        }
        Ok(())
    }

    /// Claims the key. Whether the request was seen before.
    async fn claim(&mut self) -> Result<bool, IssueError> {
        let Some(attempt) = self.attempt.as_deref_mut() else { return Ok(false) };
        self.claims += 1;
        if self.claims > MOST_CLAIMS {
            return Err(IssueError::Internal(
                "a claimed key is not found when a coupon is written under it".to_owned(),
            ));
        }
        let was_seen = Box::pin(within(self.deadline, attempt.begin(self.issuer))).await?;
        self.ledger = Some(attempt.ledger());
        Ok(was_seen)
    }

    /// Begins an attempt that is still to be begun: with these works if they are all that is asked for, and will hardly wait for
    /// anybody; else at once. True: the request was seen before, and has to be decided by what was issued then.
    async fn begin(&mut self, works: &mut [Work]) -> Result<bool, IssueError> {
        let Some(attempt) = self.attempt.as_deref_mut().filter(|attempt| attempt.is_ahead()) else { return Ok(false) };
        let is_swift = |work: &Work| matches!(work, Work::Issue(coupon) if !coupon.is_exclusive);
        if works.len() == self.slots.len() && works.iter().all(is_swift) && !self.issuer.writer.is_held_up() {
            attempt.begin_with(works);
            return Ok(false);
        }
        self.recorded = self.claim().await?;
        if self.recorded {
            self.slots.iter_mut().for_each(|slot| slot.outcome = None);
        }
        Ok(self.recorded)
    }

    /// Looks what was issued before under the same key. It is to be looked again where `recorded` is still true.
    async fn recall(&mut self) -> Result<(), IssueError> {
        let Some(ledger) = self.ledger.clone() else {
            self.recorded = false;
            return Ok(());
        };
        let issued = ledger.issued(self.issuer).await?;
        if ledger.is_natural() && !issued.is_empty() {
            // Nothing that is written will tell that this was declared under settings that are no longer current.
            let remembered = self.organisation.revision;
            self.follow_change().await?;
            if self.organisation.revision != remembered {
                return Ok(());
            }
        }
        self.recorded = false;
        for (place, slot) in self.slots.iter_mut().enumerate() {
            slot.issued_before = issued.get(&ledger.number(place, slot.series_id)).cloned();
        }
        Ok(())
    }

    /// Reads what the open entities need. `None`: the organisation's settings have changed, look again.
    async fn look(&mut self) -> Result<Option<HashMap<SeriesId, View>>, IssueError> {
        let issuer = self.issuer;
        let mut views = HashMap::new();
        let mut unknown = HashSet::new();
        let is_undecided = |slot: &&Slot| slot.issued_before.is_none() && slot.failed.is_none();
        for slot in self.open().map(|index| &self.slots[index]).filter(is_undecided) {
            let remembered = issuer.directory.series(&self.organisation, slot.series_id).await;
            match remembered.filter(|at| !slot.needs_facts && at.needs_no_facts()) {
                Some(at) => drop(views.insert(slot.series_id, View { at, facts: None })),
                None => drop(unknown.insert(slot.series_id)),
            }
        }
        if unknown.is_empty() {
            return Ok(Some(views));
        }
        let unknown: Vec<SeriesId> = unknown.into_iter().collect();
        let facts = issuer.store.facts(self.organisation.id, &self.customer_id, &unknown);
        let span = traces::span!("read the facts", series = unknown.len());
        let (revision, found) = Box::pin(facts.instrument(span)).await?;
        if revision != self.organisation.revision {
            Box::pin(self.follow_change()).await?;
            return Ok(None);
        }
        for (series_id, fresh) in found {
            issuer.directory.remember(self.organisation.id, &fresh.series).await;
            views.insert(series_id, View { at: fresh.series, facts: Some(fresh.facts) });
        }
        Ok(Some(views))
    }

    /// The organisation was changed: another zone, another policy for customers. Starts from there.
    async fn follow_change(&mut self) -> Result<(), IssueError> {
        let current = self.issuer.directory.organisation_now(self.organisation.id).await?;
        self.organisation = current.ok_or_else(missing)?;
        let customer = &self.request.customer;
        self.customer_id =
            customers::identify(&self.issuer.store, &*self.issuer.entropy, &self.organisation, customer).await?;
        if self.request.key.is_none() {
            self.ledger = natural_ledger(self.request, &self.organisation, &self.customer_id);
            self.recorded = self.ledger.is_some();
        }
        Ok(())
    }

    /// Decides what can be decided in this turn, and returns what is to be written.
    fn decide(&mut self, views: &HashMap<SeriesId, View>) -> (Vec<Sent>, Vec<Work>) {
        let (mut sent, mut works) = (Vec::new(), Vec::new());
        let mut queue = Precedence::default();
        for index in self.open().collect::<Vec<_>>() {
            if let Some(granted) = self.slots[index].issued_before.clone() {
                sent.push(Sent { slot: index, granted });
                works.push(Work::Confirm(self.read_since));
                continue;
            }
            if let Some(refusal) = self.slots[index].failed {
                self.slots[index].outcome = Some(Err(self.certain(refusal)));
                continue;
            }
            let series_id = self.slots[index].series_id;
            let Some(view) = views.get(&series_id) else {
                self.slots[index].outcome = Some(Err(Refusal::UnknownSeries));
                continue;
            };
            if !queue.lets_pass(series_id, &view.at) {
                continue;
            }
            match self.decide_one(index, view) {
                Ok(Some((granted, work))) => {
                    sent.push(Sent { slot: index, granted });
                    works.push(work);
                    queue.sent(series_id, &view.at);
                }
                Ok(None) => self.slots[index].needs_facts = true,
                Err(refusal) => self.slots[index].outcome = Some(Err(self.certain(refusal))),
            }
        }
        (sent, works)
    }

    /// One decision. `None`: a refusal, but only on remembered settings, so look first.
    fn decide_one(&self, index: usize, view: &View) -> Result<Option<(Granted, Work)>, Refusal> {
        let series = &view.at.series;
        let now = self.issuer.clock.now();
        let moment = Moment { now, zone: &self.organisation.time_zone, store_id: self.request.caller.store_id };
        let granted = |code: String, expires_on, redemption_count, resent| Granted {
            face: Arc::clone(&series.face),
            code,
            expires_on,
            redemption_count,
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
            Decision::Resend(held) => Ok(Some((
                granted(held.code, held.expires_on, held.redemption_count, true),
                Work::Confirm(self.read_since),
            ))),
            Decision::Issue { expires_on, ordinal } => {
                let code = self.code(&series.client_handling)?;
                let shown = match &code {
                    Code::Unique(code) | Code::Shared(code) => code.clone(),
                    Code::FromPool => String::new(),
                };
                let coupon = NewCoupon {
                    org_id: self.organisation.id,
                    series_id: series.id,
                    customer_id: self.customer_id.clone(),
                    issue_id: self.issuer.entropy.uuid().map_err(no_entropy)?,
                    ordinal,
                    code,
                    expires_on,
                    issued_at: now,
                    caller: Arc::clone(&self.request.caller),
                    source: self.request.source,
                    account_id: self.request.account_id.clone(),
                    metadata: self.request.metadata.clone(),
                    request_id: Arc::clone(&self.request.request_id),
                    keyed: self.ledger.as_ref().map(|ledger| ledger.entity(index, series)),
                    revision: view.at.revision,
                    max_create: series.max_create,
                    is_exclusive: view.at.is_exclusive,
                    may_collide: codes::may_collide(&series.client_handling),
                };
                Ok(Some((granted(shown, expires_on, 0, false), Work::Issue(Box::new(coupon)))))
            }
        }
    }

    fn code(&self, handling: &ClientHandling) -> Result<Code, Refusal> {
        match handling {
            ClientHandling::Generated(shape) => {
                codes::draw(shape, &*self.issuer.entropy).map(Code::Unique).map_err(no_entropy)
            }
            ClientHandling::Generic(code) => Ok(Code::Shared(code.clone())),
            ClientHandling::Pool => Ok(Code::FromPool),
        }
    }

    /// A refusal, of which 786 says that nothing is stored: only where it is known that no attempt under the same key has issued
    /// the entity, else it is 748. Nobody claims a natural key: another attempt may be about to issue.
    fn certain(&self, refusal: Refusal) -> Refusal {
        let is_claimed = match &self.attempt {
            Some(attempt) => attempt.is_begun() && !self.recorded,
            None => self.ledger.is_none(),
        };
        if refusal == Refusal::Failed && !is_claimed { Refusal::TimedOut } else { refusal }
    }

    fn record(&mut self, sent: Sent, written: Written) {
        let is_keyed = self.ledger.is_some();
        let slot = &mut self.slots[sent.slot];
        slot.outcome = match written {
            Written::Issued(code) => Some(Ok(Granted { code, ..sent.granted })),
            Written::Confirmed => Some(Ok(sent.granted)),
            Written::Unconfirmed => {
                slot.needs_facts = true;
                slot.issued_before = None;
                self.recorded = self.ledger.is_some();
                None
            }
            Written::Stale => {
                slot.needs_facts = true;
                None
            }
            Written::Paused => {
                slot.needs_facts = true;
                self.paused = true;
                None
            }
            Written::Recorded => {
                self.recorded = true;
                None
            }
            Written::Unbegun => None,
            Written::Collision => {
                slot.collisions += 1;
                slot.failed = (slot.collisions >= MOST_COLLISIONS).then_some(Refusal::Failed);
                self.recorded |= slot.failed.is_some() && is_keyed;
                None
            }
            // The next turn looks what other attempts have issued, and tells.
            Written::Failed | Written::ServerFault => {
                let is_fault = written == Written::ServerFault;
                slot.failed = Some(if is_fault { Refusal::TimedOut } else { Refusal::Failed });
                self.recorded |= is_keyed;
                None
            }
            Written::Unavailable => {
                slot.unavailable = true;
                // What was issued before and cannot be shown now is not said to have failed.
                let may_be_issued = sent.granted.resent || is_keyed;
                Some(Err(if may_be_issued { Refusal::TimedOut } else { Refusal::Failed }))
            }
            Written::Expired | Written::InDoubt => Some(Err(Refusal::TimedOut)),
        };
    }

    /// A turn could not be finished. What was granted before must be told all the same.
    fn broken_off(&mut self, error: IssueError) -> Result<(), IssueError> {
        let told = self.slots.iter().any(|slot| matches!(slot.outcome, Some(Ok(_))) || is_in_doubt(slot));
        if !told {
            return Err(error);
        }
        tracing::error!(%error, "a request broke off after some of its coupons were issued");
        let may_be_issued = matches!(error, IssueError::TimedOut | IssueError::ServerFault(_)) || self.ledger.is_some();
        self.close_with(if may_be_issued { &Refusal::TimedOut } else { &Refusal::Failed });
        Ok(())
    }

    fn finish(self) -> Result<Issuance, IssueError> {
        if self.slots.iter().all(|slot| slot.unavailable) {
            return Err(IssueError::Unavailable(None::<StoreError>));
        }
        let entity =
            |slot: Slot| Entity { series_id: slot.series_id, outcome: slot.outcome.unwrap_or(Err(Refusal::TimedOut)) };
        let entities: Vec<Entity> = self.slots.into_iter().map(entity).collect();
        Ok(Issuance { zone: self.organisation.time_zone.clone(), entities })
    }
}

fn no_entropy(error: EntropyError) -> Refusal {
    tracing::error!(%error, "no code can be drawn");
    Refusal::Failed
}

fn is_in_doubt(slot: &Slot) -> bool {
    matches!(slot.outcome, Some(Err(Refusal::TimedOut)))
}

/// Who goes first within one request: a series listed again, and a mutually exclusive one, waits for the next turn until
/// the earlier one is decided. Where the order can make no difference nobody waits.
#[derive(Default)]
struct Precedence {
    sent: HashSet<SeriesId>,
    exclusive: bool,
}

impl Precedence {
    fn lets_pass(&self, series_id: SeriesId, at: &SeriesAtRevision) -> bool {
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
