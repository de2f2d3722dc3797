//! Judges the operations of one object: cuts them into pieces, and lets `WGLChecker` search each piece for an order.

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
// settled, and the effect of a settled operation follows from its answer, not from its position in the order. So the state at the cut
// is the same for all orders, and the second part is judged from that state: nothing is lost, and nothing is assumed.
// (A failed change of settings takes effect before the next successful one ends, or never; see `rules::settings`.)
//
// An unsettled operation is in flight until the end, so there is no cut after its start: the rest of the history is one piece. To
// guess the state at a cut would be cheaper, but would acquit answers that contradict each other. (An unsettled operation that starts
// after the last answer it could explain is dropped: one more coupon makes no other answer right.) If that piece costs more than
// `LIMITS` allow, the verdict is `Verdict::TooLong`, which fails the run.
//
// Orders that need no search. Interchangeable operations make the search exponential: 24 tills that wait for one series have 2^24
// subsets. `Piece::is_needless` skips a step if another step leads to an order whenever this one does:
//
// - An operation without any effect that is in flight and valid now comes first. If an order has it later, it can be moved here: all
//   others see the same state, and it started before the end of every operation that it is moved before.
// - Of two operations in flight with the same effect (`Object::are_interchangeable`), the one that ends first comes first. If an order
//   has them the other way round, they can be swapped: the later position is before the end of the operation that ends first.

/// The end of an unsettled operation.
pub const NEVER: Nanos = Nanos::MAX;

/// The bounds of a search.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The least number of operations in a piece, except for the last one. Shorter pieces would not be faster.
    pub min_length: usize,
    /// The bytes of the sets of operations that the checker keeps for one piece.
    pub memory: u64,
    /// The checker's steps in one piece, times its length.
    pub work: u64,
}

/// Allows about 10,000 operations in one piece, which take about ten seconds in a build without optimisation.
pub const LIMITS: Limits = Limits { min_length: 16, memory: 200_000_000, work: 2_000_000_000 };
/// How many operations of a piece a verdict shows.
const MAX_SHOWN_LINES: usize = 40;

/// The sequential object that operations act on.
pub trait Object: Debug {
    type State: Clone + Eq + Hash + Debug;
    type Step: Debug;

    /// The state after the step. `None`: the object in this state would give another answer.
    fn apply(step: &Self::Step, state: &Self::State) -> Option<Self::State>;

    /// Whether the step has no effect in any state.
    fn only_reads(step: &Self::Step) -> bool;

    /// Whether both steps have the same effect in every state.
    fn are_interchangeable(step: &Self::Step, other: &Self::Step) -> bool;

    /// Whether the step is unsettled: it may issue a coupon, or have no effect.
    fn is_unsettled(step: &Self::Step) -> bool;

    /// Whether a coupon that another step has issued can make this step right: it is a refusal, or shows a coupon again.
    fn may_need_a_coupon(step: &Self::Step) -> bool;

    /// Adds the effect of a settled step to a state, wherever it comes in the order.
    fn settle(step: &Self::Step, state: &mut Self::State);
}

/// A step with its time.
#[derive(Debug)]
pub struct Timed<S> {
    pub start: Nanos,
    /// [`NEVER`]: the step is unsettled.
    pub end: Nanos,
    pub step: S,
    /// The text in findings.
    pub label: String,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    /// No order explains the answers. The lines show where.
    NotLinearizable(Vec<String>),
    /// The search of a piece with so many operations exceeded its limits.
    TooLong(usize),
}

/// Judges all operations of one object.
pub fn judge<O: Object>(initial: O::State, mut operations: Vec<Timed<O::Step>>, limits: Limits) -> Verdict {
    let mut state = initial;
    let needs =
        operations.iter().filter(|operation| O::may_need_a_coupon(&operation.step)).map(|operation| operation.end);
    let last = needs.max().unwrap_or_default();
    operations.retain(|operation| operation.start <= last || !O::is_unsettled(&operation.step));
    for operations in cut(operations, limits.min_length) {
        let mut after = state.clone();
        for operation in &operations {
            O::settle(&operation.step, &mut after);
        }
        match Piece::<O>::new(state, operations, limits).search() {
            Verdict::Linearizable => state = after,
            other => return other,
        }
    }
    Verdict::Linearizable
}

/// Cuts the operations into pieces. Between two of them no operation is in flight.
fn cut<S>(mut operations: Vec<Timed<S>>, min_length: usize) -> Vec<Vec<Timed<S>>> {
    operations.sort_by_key(|operation| operation.start);
    let mut pieces = Vec::new();
    let mut piece: Vec<Timed<S>> = Vec::new();
    let mut last_end = 0;
    for operation in operations {
        if operation.start > last_end && piece.len() >= min_length {
            pieces.push(std::mem::take(&mut piece));
        }
        last_end = last_end.max(operation.end);
        piece.push(operation);
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}

/// Operations that are searched for an order together. An index is a position in the order of the ends.
#[derive(Debug)]
struct Piece<O: Object> {
    initial: O::State,
    limits: Limits,
    operations: Vec<Timed<O::Step>>,
    /// At index `n`: the operations in flight when `n` ends. If `n` is the first operation that is not in the order yet, the next one in
    /// the order is one of these.
    in_flight: Vec<Vec<usize>>,
    /// The greatest `n` for which some order explains the first `n` operations.
    explained: Cell<usize>,
    memory: Cell<u64>,
    work: Cell<u64>,
}

impl<O: Object> Piece<O> {
    fn new(initial: O::State, mut operations: Vec<Timed<O::Step>>, limits: Limits) -> Self {
        operations.sort_by_key(|operation| (operation.end, operation.start));
        let mut in_flight = vec![Vec::new(); operations.len()];
        for (index, operation) in operations.iter().enumerate() {
            let over = operations.partition_point(|other| other.end < operation.start);
            in_flight[over..=index].iter_mut().for_each(|list| list.push(index));
        }
        let (explained, memory, work) = (Cell::new(0), Cell::new(0), Cell::new(0));
        Self { initial, limits, operations, in_flight, explained, memory, work }
    }

    fn search(self) -> Verdict {
        let piece = Rc::new(self);
        let is_linearizable = WGLChecker::<PieceSpec<O>>::is_linearizable(History::from_actions(Self::actions(&piece)));
        if is_linearizable {
            Verdict::Linearizable
        } else if piece.is_given_up() {
            Verdict::TooLong(piece.operations.len())
        } else {
            Verdict::NotLinearizable(piece.explain())
        }
    }

    /// Calls and responses in the order of their times. Operations that touch at an instant overlap, so calls come first.
    fn actions(piece: &Rc<Self>) -> Vec<(usize, Action<Call<O>>)> {
        let ends = piece.operations.iter().enumerate().map(|(index, operation)| (operation.end, true, index));
        let starts = piece.operations.iter().enumerate().map(|(index, operation)| (operation.start, false, index));
        let mut instants: Vec<_> = starts.chain(ends).collect();
        instants.sort_unstable();
        let action = |(_, is_end, index)| {
            let call = Call { piece: Rc::clone(piece), index };
            // Each operation is a process of its own: the operations of one till may overlap, since it may abandon a call.
            (index, if is_end { Action::Response(call) } else { Action::Call(call) })
        };
        instants.into_iter().map(action).collect()
    }

    fn is_given_up(&self) -> bool {
        self.memory.get() > self.limits.memory || self.work.get() > self.limits.work
    }

    /// The state after the operation. `None`: it cannot come next, or need not.
    fn step(&self, index: usize, reached: &Reached<O::State>) -> Option<Reached<O::State>> {
        let length = self.operations.len() as u64;
        self.work.set(self.work.get() + length);
        if self.is_given_up() {
            return None;
        }
        let state = reached.state.as_ref().unwrap_or(&self.initial);
        let next = O::apply(&self.operations[index].step, state)?;
        if self.is_needless(index, state, reached) {
            return None;
        }
        // The checker's vector has a byte for each call and each response.
        self.memory.set(self.memory.get() + 2 * length);
        let next = reached.and(index, next);
        self.explained.set(self.explained.get().max(next.head));
        Some(next)
    }

    /// Whether another operation can come next instead, without changing the verdict. The comment at the head of the file explains why.
    fn is_needless(&self, index: usize, state: &O::State, reached: &Reached<O::State>) -> bool {
        let step = &self.operations[index].step;
        let reads = O::only_reads(step);
        let others = self.in_flight[reached.head].iter().copied();
        others.filter(|other| *other != index && !reached.has(*other)).any(|other| {
            let other_step = &self.operations[other].step;
            let is_first = other < index;
            (is_first && O::are_interchangeable(step, other_step))
                || ((is_first || !reads) && O::only_reads(other_step) && O::apply(other_step, state).is_some())
        })
    }

    /// Shows the first operation that no order explains, and the operations around it in the order of their starts.
    fn explain(&self) -> Vec<String> {
        let wrong = &self.operations[self.explained.get().min(self.operations.len() - 1)];
        let mut around: Vec<_> = self.operations.iter().filter(|operation| operation.start <= wrong.end).collect();
        around.sort_by_key(|operation| operation.start);
        let mut lines = vec![
            format!("up to this answer no order explains all: {}", line(wrong)),
            format!("the object before: {:?}", self.initial),
        ];
        let hidden = around.len().saturating_sub(MAX_SHOWN_LINES);
        if hidden > 0 {
            lines.push(format!("({hidden} operations that started earlier are not shown)"));
        }
        lines.extend(around[hidden..].iter().map(|operation| line(operation)));
        lines
    }
}

fn line<S>(operation: &Timed<S>) -> String {
    let seconds = |nanos: Nanos| format!("{}.{:06}", nanos / 1_000_000_000, nanos / 1000 % 1_000_000);
    let end = if operation.end == NEVER { "never".to_owned() } else { seconds(operation.end) };
    format!("{} to {end} {}", seconds(operation.start), operation.label)
}

/// An operation of a piece, as an operation of the checker.
#[derive(Debug)]
struct Call<O: Object> {
    piece: Rc<Piece<O>>,
    index: usize,
}

impl<O: Object> Clone for Call<O> {
    fn clone(&self) -> Self {
        Self { piece: Rc::clone(&self.piece), index: self.index }
    }
}

/// The state after some operations of a piece, and the set of these operations. The checker's cache is keyed by this set
/// anyway.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Reached<S> {
    /// `None`: the initial state of the piece. `Specification::init` has no access to it.
    state: Option<S>,
    /// All operations before this index are in the order.
    head: usize,
    /// The operations from this index on that are in the order, sorted.
    rest: Vec<usize>,
}

impl<S> Reached<S> {
    fn has(&self, index: usize) -> bool {
        index < self.head || self.rest.binary_search(&index).is_ok()
    }

    fn and(&self, index: usize, state: S) -> Self {
        let (mut head, mut rest) = (self.head, self.rest.clone());
        rest.insert(rest.partition_point(|other| *other < index), index);
        let joined = rest.iter().zip(head..).take_while(|(index, next)| *index == next).count();
        rest.drain(..joined);
        head += joined;
        Self { state: Some(state), head, rest }
    }
}

struct PieceSpec<O: Object>(PhantomData<O>);

impl<O: Object> Specification for PieceSpec<O> {
    type State = Reached<O::State>;
    type Operation = Call<O>;

    fn init() -> Self::State {
        Reached { state: None, head: 0, rest: Vec::new() }
    }

    fn apply(call: &Self::Operation, reached: &Self::State) -> (bool, Self::State) {
        match call.piece.step(call.index, reached) {
            Some(next) => (true, next),
            None => (false, reached.clone()),
        }
    }
}
