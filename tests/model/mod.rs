//! The contract, written a second time and kept in memory: given all coupons issued so far, it gives the answer to a request.
//! The service tests compare it with the service; the chaos test feeds it the coupons that Postgres committed.
//!
//! A chaos run feeds it hundreds of thousands of coupons, so every query and every change takes constant time in their number.

#![allow(dead_code, reason = "each test binary that includes this file uses a part of it")]

mod pool;

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Display, Formatter};

use jiff::ToSpan;
use jiff::civil::Date;

pub use self::pool::{Pool, Uploaded};

pub const UNKNOWN_SERIES: &str = "707 Coupon Series ID is invalid";
pub const EXTERNALLY_MANAGED: &str = "777 coupon source not valid for issue coupon";
pub const INVALID_STORE: &str = "735 Invalid store";
pub const EXPIRED: &str = "712 Coupon Series has expired";
pub const HAS_ONE: &str = "709 Coupon processing failed: user already has a coupon";
pub const MAX_REACHED: &str = "730 Unknown error : MAX_COUPON_ISSUAL_PER_USER_EXCEEDED";
pub const HOLDS_EXCLUDED: &str = "709 Coupon processing failed: coupon present in mutually exclusive series";
pub const CAP_REACHED: &str = "5001 Maximum number of series has been created";
pub const POOL_EMPTY: &str = "5005 Queue is empty for series";
pub const GAP: &str =
    "709 Coupon processing failed: days between consecutive issuals for a user less than min days between issuals";

/// Where a series' codes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Codes {
    /// Random codes. `None`: any code is accepted, whatever its form.
    Drawn(Option<Shape>),
    Common(String),
    Uploaded,
}

/// The form of random codes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    pub prefix: String,
    pub digits: bool,
    pub length: usize,
}

impl Shape {
    fn fits(&self, code: &str) -> bool {
        let letters = if self.digits { "0123456789" } else { "23456789ABCDEFGHJKMNPQRSTUVWXYZ" };
        let drawn = code.strip_prefix(&self.prefix).unwrap_or_default();
        drawn.len() == self.length && drawn.chars().all(|letter| letters.contains(letter))
    }
}

/// The rules of a series. A limit of -1 means unlimited.
#[derive(Debug, Clone)]
pub struct Series {
    pub id: i64,
    pub codes: Codes,
    pub valid_till: Date,
    pub days: Option<i64>,
    pub months: Option<i64>,
    pub redemption_from: Option<Date>,
    pub cap: i64,
    pub allows_several: bool,
    pub max_per_customer: i64,
    pub resend: bool,
    pub gap: i64,
    pub excludes: Vec<i64>,
    pub stores: Vec<i64>,
    pub external: bool,
}

impl Series {
    /// The last day of a coupon issued today. `None`: that day is in the past, so no coupon can be issued.
    pub fn last_day(&self, today: Date) -> Option<Date> {
        let computed = match (self.days, self.months) {
            (Some(days), _) => today + days.days(),
            (_, Some(months)) => (today.first_of_month() + months.months()).last_of_month(),
            _ => self.valid_till,
        };
        let last = if computed < self.valid_till { computed } else { self.valid_till };
        (last >= today).then_some(last)
    }

    pub fn excludes(&self, other: &Self) -> bool {
        self.excludes.contains(&other.id) || other.excludes.contains(&self.id)
    }
}

#[derive(Debug, Clone)]
pub struct Coupon {
    pub series: i64,
    pub customer: String,
    pub code: String,
    pub last_day: Date,
    pub issued_on: Date,
}

/// The answer that the contract prescribes for one series id of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// A new coupon with this last day.
    New(Date),
    /// A coupon that the customer holds: one with this last day.
    Resent(Date),
    /// An error, and the day on which it ends.
    Error(&'static str, Option<Date>),
}

impl Display for Expected {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::New(last_day) => write!(f, "a new coupon until {last_day}"),
            Self::Resent(last_day) => write!(f, "the coupon until {last_day} that the customer holds"),
            Self::Error(message, None) => write!(f, "{message}"),
            Self::Error(message, Some(from)) => write!(f, "{message}, until {from}"),
        }
    }
}

/// The answer that was given for one series id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    New {
        code: String,
        last_day: Date,
    },
    Resent {
        code: String,
        last_day: Date,
    },
    /// Code and message, and the day on which the error ends.
    Error(String, Option<Date>),
}

/// What a decision depends on besides the series. `today` is a day of the organisation's time zone.
#[derive(Debug, Clone)]
pub struct IssueContext {
    pub customer: String,
    pub store: i64,
    pub today: Date,
}

/// How [`Model::revert`] reverts an accepted answer.
#[derive(Debug)]
pub enum Undo {
    Nothing,
    Coupon { uploaded: Option<Uploaded> },
}

/// A coupon of a customer, and the maxima over it and the customer's earlier coupons of the series.
#[derive(Debug)]
struct HeldCoupon {
    code: String,
    last_day: Date,
    max_last_day: Date,
    max_issued_on: Date,
}

/// An organisation and all of its coupons.
#[derive(Debug, Default)]
pub struct Model {
    series: BTreeMap<i64, Series>,
    pools: BTreeMap<i64, Pool>,
    /// In the order in which they were issued.
    coupons: Vec<Coupon>,
    coupons_by_customer: HashMap<String, BTreeMap<i64, Vec<HeldCoupon>>>,
    issued_by_series: HashMap<i64, usize>,
    coupons_by_code: HashMap<String, usize>,
}

fn reaches(count: usize, limit: i64) -> bool {
    usize::try_from(limit).is_ok_and(|limit| count >= limit)
}

impl Model {
    pub fn new(series: impl IntoIterator<Item = Series>) -> Self {
        let series = series.into_iter().map(|series| (series.id, series)).collect();
        Self { series, ..Self::default() }
    }

    pub const fn series(&self) -> &BTreeMap<i64, Series> {
        &self.series
    }

    pub fn coupons(&self) -> &[Coupon] {
        &self.coupons
    }

    /// The uploaded codes that remain, by series.
    pub const fn pools(&self) -> &BTreeMap<i64, Pool> {
        &self.pools
    }

    /// False: the series does not exist.
    pub fn set_cap(&mut self, id: i64, cap: i64) -> bool {
        self.series.get_mut(&id).map(|series| series.cap = cap).is_some()
    }

    /// False: the code is in the pool already, or a coupon has it.
    pub fn upload(&mut self, id: i64, code: String, owner: Option<String>) -> bool {
        !self.coupons_by_code.contains_key(&code) && self.pools.entry(id).or_default().add(Uploaded { code, owner })
    }

    /// The checks of the contract (docs/contract.md), in its order.
    pub fn expected(&self, context: &IssueContext, id: i64) -> Expected {
        let today = context.today;
        let error = |message| Expected::Error(message, None);
        let Some(series) = self.series.get(&id) else { return error(UNKNOWN_SERIES) };
        if series.external {
            return error(EXTERNALLY_MANAGED);
        }
        if !series.stores.is_empty() && !series.stores.contains(&context.store) {
            return error(INVALID_STORE);
        }
        let Some(last_day) = series.last_day(today) else { return error(EXPIRED) };
        if series.redemption_from.is_some_and(|from| from > last_day) {
            return error(EXPIRED);
        }
        let own = self.coupons_of(&context.customer, id);
        if let Some(latest) = own.last()
            && series.resend
            && latest.max_last_day >= today
        {
            return Expected::Resent(latest.max_last_day);
        }
        if !own.is_empty() && !series.allows_several {
            return error(HAS_ONE);
        }
        if reaches(own.len(), series.max_per_customer) {
            return error(MAX_REACHED);
        }
        if self.holds_excluded(&context.customer, series) {
            return error(HOLDS_EXCLUDED);
        }
        if reaches(self.issued_by_series.get(&id).copied().unwrap_or_default(), series.cap) {
            return error(CAP_REACHED);
        }
        let has_code = || self.pools.get(&id).is_some_and(|pool| pool.has_code_for(&context.customer));
        if series.codes == Codes::Uploaded && !has_code() {
            return error(POOL_EMPTY);
        }
        match own.last().map(|latest| latest.max_issued_on + series.gap.days()) {
            Some(next) if series.gap > 0 && today < next => Expected::Error(GAP, Some(next)),
            _ => Expected::New(last_day),
        }
    }

    fn coupons_of(&self, customer: &str, id: i64) -> &[HeldCoupon] {
        self.coupons_by_customer.get(customer).and_then(|coupons| coupons.get(&id)).map_or(&[], Vec::as_slice)
    }

    fn holds_excluded(&self, customer: &str, series: &Series) -> bool {
        let excludes = |(id, coupons): (&i64, &Vec<HeldCoupon>)| {
            !coupons.is_empty() && self.series.get(id).is_some_and(|other| other.excludes(series))
        };
        self.coupons_by_customer.get(customer).is_some_and(|coupons| coupons.iter().any(excludes))
    }

    /// If the contract allows the answer, the model takes over its effect. `None`: the contract does not allow it.
    pub fn accept(&mut self, context: &IssueContext, id: i64, outcome: &Outcome) -> Option<Undo> {
        match (self.expected(context, id), outcome) {
            (Expected::New(expected), Outcome::New { code, last_day }) if expected == *last_day => {
                self.issue(context, id, code, *last_day)
            }
            (expected, outcome) => self.is_allowed(&expected, context, id, outcome).then_some(Undo::Nothing),
        }
    }

    /// Whether an answer without effect is the expected one.
    pub fn is_allowed(&self, expected: &Expected, context: &IssueContext, id: i64, outcome: &Outcome) -> bool {
        match (expected, outcome) {
            (Expected::Error(message, until), Outcome::Error(text, from)) => text == message && from == until,
            (Expected::Resent(expected), Outcome::Resent { code, last_day }) => {
                let is_held = |held: &HeldCoupon| (held.code.as_str(), held.last_day) == (code, *expected);
                last_day == expected && self.coupons_of(&context.customer, id).iter().any(is_held)
            }
            _ => false,
        }
    }

    /// Whether the answer is "pool empty", would be right if the pool had `codes` fewer codes for all customers, and no check before
    /// that of the pool refuses.
    pub fn is_pool_empty_without(&self, codes: usize, expected: &Expected, id: i64, outcome: &Outcome) -> bool {
        let reaches_pool_check = match expected {
            Expected::New(_) => true,
            Expected::Error(message, _) => *message == GAP,
            Expected::Resent(_) => false,
        };
        let remaining = self.pools.get(&id).map_or(0, Pool::shared_remaining);
        let is_empty_answer = matches!(outcome, Outcome::Error(text, None) if text == POOL_EMPTY);
        reaches_pool_check && remaining <= codes && codes > 0 && is_empty_answer
    }

    /// Issues a coupon that is expected. `None`: the coupon may not have this code.
    pub fn issue(&mut self, context: &IssueContext, id: i64, code: &str, last_day: Date) -> Option<Undo> {
        let undo = self.take_code(context, id, code)?;
        let (customer, code) = (context.customer.clone(), code.to_owned());
        self.add(Coupon { series: id, customer, code, last_day, issued_on: context.today });
        Some(undo)
    }

    /// Issues a coupon that the contract does not allow. Postgres has committed it, so later answers depend on it.
    pub fn force_issue(&mut self, context: &IssueContext, id: i64, code: &str) {
        let last_day = self.series.get(&id).and_then(|series| series.last_day(context.today)).unwrap_or(context.today);
        if let Some(pool) = self.pools.get_mut(&id) {
            pool.remove(code);
        }
        let (customer, code) = (context.customer.clone(), code.to_owned());
        self.add(Coupon { series: id, customer, code, last_day, issued_on: context.today });
    }

    fn add(&mut self, coupon: Coupon) {
        let Coupon { series, code, last_day, issued_on, .. } = &coupon;
        let by_series = self.coupons_by_customer.entry(coupon.customer.clone()).or_default();
        let own = by_series.entry(*series).or_default();
        let (max_last_day, max_issued_on) = match own.last() {
            Some(before) => (before.max_last_day.max(*last_day), before.max_issued_on.max(*issued_on)),
            None => (*last_day, *issued_on),
        };
        own.push(HeldCoupon { code: code.clone(), last_day: *last_day, max_last_day, max_issued_on });
        *self.issued_by_series.entry(*series).or_default() += 1;
        *self.coupons_by_code.entry(code.clone()).or_default() += 1;
        self.coupons.push(coupon);
    }

    /// Takes an uploaded code off the pool. `None`: a new coupon may not have this code.
    fn take_code(&mut self, context: &IssueContext, id: i64, code: &str) -> Option<Undo> {
        let series = self.series.get(&id)?;
        match &series.codes {
            Codes::Common(common) => (code == common).then_some(Undo::Coupon { uploaded: None }),
            Codes::Drawn(shape) => {
                let is_shaped = shape.as_ref().is_none_or(|shape| shape.fits(code));
                let is_new = !self.coupons_by_code.contains_key(code);
                (is_shaped && is_new).then_some(Undo::Coupon { uploaded: None })
            }
            Codes::Uploaded => {
                let uploaded = self.pools.get_mut(&id)?.take(code, &context.customer)?;
                Some(Undo::Coupon { uploaded: Some(uploaded) })
            }
        }
    }

    /// Reverts the answer that was accepted last.
    pub fn revert(&mut self, undo: Undo) {
        let Undo::Coupon { uploaded } = undo else { return };
        let Some(coupon) = self.coupons.pop() else { return };
        self.coupons_by_customer.get_mut(&coupon.customer).and_then(|coupons| coupons.get_mut(&coupon.series)?.pop());
        *self.issued_by_series.entry(coupon.series).or_default() -= 1;
        let with_code = self.coupons_by_code.remove(&coupon.code).unwrap_or_default();
        if with_code > 1 {
            self.coupons_by_code.insert(coupon.code, with_code - 1);
        }
        if let Some(uploaded) = uploaded {
            self.pools.entry(coupon.series).or_default().add(uploaded);
        }
    }
}
