//! One object and its operations in time: cuts them into pieces, and lets `WGLChecker` search each piece for an order.
//! Why that changes no verdict is said below, before the code.

use std::cell::Cell;
use std::fmt::Debug;
use std::hash::Hash;
use std::marker::PhantomData;
use std::rc::Rc;

use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};
use todc_utils::specifications::Specification;

use crate::history::Nanos;

// Why cuts are sound. The checker copies a vector of the length of the history at each step, so its cost is quadratic.
// A piece ends at a moment when no operation is in flight. Every operation before it precedes every one after it in real time,
// so each order of the whole is an order of the first part and then one of the second. All operations of the first part are
// settled, and what a settled operation does follows from its answer, not from its place in the order. So the state at the cut
// is the same for all orders, and the second part is judged from that state: nothing is lost, and nothing is assumed.
// (A failed change of settings takes effect before the next successful one ends, or never; see `rules::settings`.)
//
// Operations that nothing settles are in flight until the end, so there is no cut after the start of one: the rest of the
// history is one piece. A guess of the state at a cut would be cheaper, and would acquit answers that contradict each other.
// (One that starts after the last answer that it could explain is left out: a coupon more makes no other answer right.)
// If that piece costs more than `LIMITS` allow, the verdict is `Verdict::TooLong`, which fails the run.
//
// Orders that need no search. Interchangeable operations make the search exponential: 24 tills that wait for one series are
// 2^24 sets of tills. `Piece::is_needless` refuses a step if another step must lead to an order as well whenever this one does:
//
// - An operation that never has an effect, is in flight, and is valid now, comes first. In any order in which it comes
//   later, it can be moved here: all others see the same state, and it started before everything moved past it ended.
// - Of two operations in flight that do the same (`Object::are_alike`), the one that ends first comes first. In an order
//   that has them the other way round they can change places: the later place is before the end of the one that ends first.

/// The end of an operation that nothing settles.
pub const NEVER: Nanos = Nanos::MAX;

/// What bounds a search.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// A piece has at least as many operations, if the history does. More pieces do not make it faster.
    pub shortest: usize,
    /// Of one piece: the bytes of the sets of operations that the checker keeps.
    pub memory: u64,
    /// Of one piece: the checker's steps times the length.
    pub work: u64,
}

/// Some 10,000 operations in one piece, which takes a build without optimisation about ten seconds.
pub const LIMITS: Limits = Limits { shortest: 16, memory: 200_000_000, work: 2_000_000_000 };
/// Lines of a piece that are shown to explain a verdict.
const MOST_LINES: usize = 40;

/// What operations act on. One operation at a time.
pub trait Object: Debug {
    type State: Clone + Eq + Hash + Debug;
    type Step: Debug;

    /// The state after the step; `None`: no object in this state answers so.
    fn apply(step: &Self::Step, state: &Self::State) -> Option<Self::State>;

    /// Whether the step has no effect in any state.
    fn only_reads(step: &Self::Step) -> bool;

    /// Whether both steps do the same in every state.
    fn are_alike(one: &Self::Step, other: &Self::Step) -> bool;

    /// Whether nothing settles the step: it may issue a coupon, or have no effect.
    fn is_unsettled(step: &Self::Step) -> bool;

    /// Whether the step may be right because of a coupon that another one has issued: a refusal, or a coupon that is shown again.
    fn may_need_a_coupon(step: &Self::Step) -> bool;

    /// Adds to a state what a settled step has done, whenever it was.
    fn settle(step: &Self::Step, state: &mut Self::State);
}

/// An operation with its time.
#[derive(Debug)]
pub struct Timed<S> {
    pub start: Nanos,
    /// [`NEVER`]: nothing settles it.
    pub end: Nanos,
    pub step: S,
    /// What a person reads.
    pub label: String,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    /// No order explains the answers; the lines show where.
    Not(Vec<String>),
    /// The search of a piece of so many operations was given up.
    TooLong(usize),
}

/// Judges all operations of one object.
pub fn judge<O: Object>(begin: O::State, mut operations: Vec<Timed<O::Step>>, limits: Limits) -> Verdict {
    let mut state = begin;
    let needs = operations.iter().filter(|one| O::may_need_a_coupon(&one.step)).map(|one| one.end);
    let last = needs.max().unwrap_or_default();
    operations.retain(|one| one.start <= last || !O::is_unsettled(&one.step));
    for operations in cut(operations, limits.shortest) {
        let mut after = state.clone();
        for one in &operations {
            O::settle(&one.step, &mut after);
        }
        match Piece::<O>::new(state, operations, limits).search() {
            Verdict::Linearizable => state = after,
            other => return other,
        }
    }
    Verdict::Linearizable
}

/// The pieces in order. Between two of them no operation is in flight.
fn cut<S>(mut operations: Vec<Timed<S>>, shortest: usize) -> Vec<Vec<Timed<S>>> {
    operations.sort_by_key(|one| one.start);
    let mut pieces = Vec::new();
    let mut piece: Vec<Timed<S>> = Vec::new();
    let mut last_end = 0;
    for one in operations {
        if one.start > last_end && piece.len() >= shortest {
            pieces.push(std::mem::take(&mut piece));
        }
        last_end = last_end.max(one.end);
        piece.push(one);
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}

/// Operations that are searched for an order at once. An operation is named by its place in the order of the ends.
#[derive(Debug)]
struct Piece<O: Object> {
    begin: O::State,
    limits: Limits,
    operations: Vec<Timed<O::Step>>,
    /// At place `n`: the operations in flight when `n` ends. If `n` is the first operation without a place in the order, the next
    /// one in the order is one of these.
    in_flight: Vec<Vec<usize>>,
    /// The most operations at the head of the order of the ends that some order explains.
    explained: Cell<usize>,
    memory: Cell<u64>,
    work: Cell<u64>,
}

impl<O: Object> Piece<O> {
    fn new(begin: O::State, mut operations: Vec<Timed<O::Step>>, limits: Limits) -> Self {
        operations.sort_by_key(|one| (one.end, one.start));
        let mut in_flight = vec![Vec::new(); operations.len()];
        for (at, one) in operations.iter().enumerate() {
            let over = operations.partition_point(|other| other.end < one.start);
            in_flight[over..=at].iter_mut().for_each(|list| list.push(at));
        }
        let (explained, memory, work) = (Cell::new(0), Cell::new(0), Cell::new(0));
        Self { begin, limits, operations, in_flight, explained, memory, work }
    }

    fn search(self) -> Verdict {
        let piece = Rc::new(self);
        let is_linearizable = WGLChecker::<Spec<O>>::is_linearizable(History::from_actions(Self::actions(&piece)));
        if is_linearizable {
            Verdict::Linearizable
        } else if piece.is_given_up() {
            Verdict::TooLong(piece.operations.len())
        } else {
            Verdict::Not(piece.explain())
        }
    }

    /// Calls and responses in time. Those at the same instant overlap, so calls come first.
    fn actions(piece: &Rc<Self>) -> Vec<(usize, Action<Call<O>>)> {
        let ends = piece.operations.iter().enumerate().map(|(at, one)| (one.end, true, at));
        let starts = piece.operations.iter().enumerate().map(|(at, one)| (one.start, false, at));
        let mut instants: Vec<_> = starts.chain(ends).collect();
        instants.sort_unstable();
        let action = |(_, is_end, at)| {
            let call = Call { piece: Rc::clone(piece), at };
            // Each operation is a process of its own: those of one till may overlap, as it leaves a call and goes on.
            (at, if is_end { Action::Response(call) } else { Action::Call(call) })
        };
        instants.into_iter().map(action).collect()
    }

    fn is_given_up(&self) -> bool {
        self.memory.get() > self.limits.memory || self.work.get() > self.limits.work
    }

    /// The state after the operation; `None`: it cannot be next, or need not.
    fn step(&self, at: usize, reached: &Reached<O::State>) -> Option<Reached<O::State>> {
        let length = self.operations.len() as u64;
        self.work.set(self.work.get() + length);
        if self.is_given_up() {
            return None;
        }
        let state = reached.state.as_ref().unwrap_or(&self.begin);
        let next = O::apply(&self.operations[at].step, state)?;
        if self.is_needless(at, state, reached) {
            return None;
        }
        // The checker's vector has a byte for each call and each response.
        self.memory.set(self.memory.get() + 2 * length);
        let next = reached.and(at, next);
        self.explained.set(self.explained.get().max(next.head));
        Some(next)
    }

    /// Whether another operation may come next without loss. The comment at the head of the file says why.
    fn is_needless(&self, at: usize, state: &O::State, reached: &Reached<O::State>) -> bool {
        let one = &self.operations[at].step;
        let reads = O::only_reads(one);
        let others = self.in_flight[reached.head].iter().copied();
        others.filter(|other| *other != at && !reached.has(*other)).any(|other| {
            let step = &self.operations[other].step;
            let is_first = other < at;
            (is_first && O::are_alike(one, step))
                || ((is_first || !reads) && O::only_reads(step) && O::apply(step, state).is_some())
        })
    }

    /// The operation that no order explains, and those around it, in time.
    fn explain(&self) -> Vec<String> {
        let wrong = &self.operations[self.explained.get().min(self.operations.len() - 1)];
        let mut around: Vec<_> = self.operations.iter().filter(|one| one.start <= wrong.end).collect();
        around.sort_by_key(|one| one.start);
        let mut lines = vec![
            format!("up to this answer no order explains all: {}", line(wrong)),
            format!("the object before: {:?}", self.begin),
        ];
        let left_out = around.len().saturating_sub(MOST_LINES);
        if left_out > 0 {
            lines.push(format!("({left_out} operations that started earlier are left out)"));
        }
        lines.extend(around[left_out..].iter().map(|one| line(one)));
        lines
    }
}

fn line<S>(one: &Timed<S>) -> String {
    let seconds = |nanos: Nanos| format!("{}.{:06}", nanos / 1_000_000_000, nanos / 1000 % 1_000_000);
    let end = if one.end == NEVER { "never".to_owned() } else { seconds(one.end) };
    format!("{} to {end} {}", seconds(one.start), one.label)
}

/// An operation of a piece, as the checker is handed it.
#[derive(Debug)]
struct Call<O: Object> {
    piece: Rc<Piece<O>>,
    at: usize,
}

impl<O: Object> Clone for Call<O> {
    fn clone(&self) -> Self {
        Self { piece: Rc::clone(&self.piece), at: self.at }
    }
}

/// The state after some operations of a piece, and which these are. The checker's memory is keyed by that set anyway.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Reached<S> {
    /// `None`: that in which the piece begins. The checker cannot be handed one.
    state: Option<S>,
    /// All operations before this place are in the order.
    head: usize,
    /// Those after it that are in the order, sorted.
    rest: Vec<usize>,
}

impl<S> Reached<S> {
    fn has(&self, at: usize) -> bool {
        at < self.head || self.rest.binary_search(&at).is_ok()
    }

    fn and(&self, at: usize, state: S) -> Self {
        let (mut head, mut rest) = (self.head, self.rest.clone());
        rest.insert(rest.partition_point(|other| *other < at), at);
        let joined = rest.iter().zip(head..).take_while(|(at, next)| *at == next).count();
        rest.drain(..joined);
        head += joined;
        Self { state: Some(state), head, rest }
    }
}

struct Spec<O: Object>(PhantomData<O>);

impl<O: Object> Specification for Spec<O> {
    type State = Reached<O::State>;
    type Operation = Call<O>;

    fn init() -> Self::State {
        Reached { state: None, head: 0, rest: Vec::new() }
    }

    fn apply(call: &Self::Operation, reached: &Self::State) -> (bool, Self::State) {
        match call.piece.step(call.at, reached) {
            Some(next) => (true, next),
            None => (false, reached.clone()),
        }
    }
}
