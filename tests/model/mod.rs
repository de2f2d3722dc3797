//! The contract once more, in memory and in other words: what a request for a coupon must be answered, given all coupons so far.
//! The service tests ask it beside the service; the chaos test feeds it what Postgres committed.
//!
//! Every question and every change takes constant time, but for the few series of one customer: a long history is fed to it
//! whole.

#![allow(dead_code, reason = "each test binary that includes this file uses a part of it")]

mod pool;

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Display, Formatter};

use jiff::ToSpan;
use jiff::civil::Date;

pub use self::pool::{Pool, Uploaded};

pub const UNKNOWN: &str = "707 Coupon Series ID is invalid";
pub const EXTERNAL: &str = "777 coupon source not valid for issue coupon";
pub const STORE: &str = "735 Invalid store";
pub const EXPIRED: &str = "712 Coupon Series has expired";
pub const HAS_ONE: &str = "709 Coupon processing failed: user already has a coupon";
pub const MAXIMUM: &str = "730 Unknown error : MAX_COUPON_ISSUAL_PER_USER_EXCEEDED";
pub const EXCLUSIVE: &str = "709 Coupon processing failed: coupon present in mutually exclusive series";
pub const CAP: &str = "5001 Maximum number of series has been created";
pub const EMPTY: &str = "5005 Queue is empty for series";
pub const GAP: &str =
    "709 Coupon processing failed: days between consecutive issuals for a user less than min days between issuals";

/// Where a series' codes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Codes {
    /// `None`: what a code looks like is not checked.
    Drawn(Option<Shape>),
    Common(String),
    Uploaded,
}

/// What drawn codes look like.
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

/// A series as the contract describes it; -1 is unlimited.
#[derive(Debug, Clone)]
pub struct Series {
    pub id: i64,
    pub codes: Codes,
    pub valid_till: Date,
    pub days: Option<i64>,
    pub months: Option<i64>,
    pub redemption_from: Option<Date>,
    pub cap: i64,
    pub several: bool,
    pub maximum: i64,
    pub resend: bool,
    pub gap: i64,
    pub excludes: Vec<i64>,
    pub stores: Vec<i64>,
    pub external: bool,
}

impl Series {
    /// The last day of a coupon issued today; one that is past already is none.
    pub fn last_day(&self, today: Date) -> Option<Date> {
        let wished = match (self.days, self.months) {
            (Some(days), _) => today + days.days(),
            (_, Some(months)) => (today.first_of_month() + months.months()).last_of_month(),
            _ => self.valid_till,
        };
        let last = if wished < self.valid_till { wished } else { self.valid_till };
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

/// What the contract lets happen to one series id of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// A new coupon, until this day.
    New(Date),
    /// A coupon that the customer holds: one with this last day.
    Again(Date),
    /// An error, and the day from which it is none any more.
    Error(&'static str, Option<Date>),
}

impl Display for Expected {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::New(last_day) => write!(f, "a new coupon until {last_day}"),
            Self::Again(last_day) => write!(f, "the coupon until {last_day} that the customer holds"),
            Self::Error(message, None) => write!(f, "{message}"),
            Self::Error(message, Some(from)) => write!(f, "{message}, until {from}"),
        }
    }
}

/// What an answer says of one series id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    New {
        code: String,
        last_day: Date,
    },
    Again {
        code: String,
        last_day: Date,
    },
    /// Code and message, and the day from which it is no error any more.
    Error(String, Option<Date>),
}

/// Who asks, and on which day of the organisation's time zone.
#[derive(Debug, Clone)]
pub struct Asker {
    pub customer: String,
    pub store: i64,
    pub today: Date,
}

/// How to take an agreed answer back.
#[derive(Debug)]
pub enum Undo {
    Nothing,
    Coupon { uploaded: Option<Uploaded> },
}

/// One more coupon of a customer and series, with what holds for it and those before it.
#[derive(Debug)]
struct Held {
    code: String,
    last_day: Date,
    longest: Date,
    latest: Date,
}

/// An organisation and all of its coupons.
#[derive(Debug, Default)]
pub struct Model {
    series: BTreeMap<i64, Series>,
    pools: BTreeMap<i64, Pool>,
    /// In the order in which they were issued.
    coupons: Vec<Coupon>,
    held: HashMap<String, BTreeMap<i64, Vec<Held>>>,
    issued: HashMap<i64, usize>,
    /// How many coupons have a code.
    codes: HashMap<String, usize>,
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

    /// The uploaded codes that are left, by series.
    pub const fn pools(&self) -> &BTreeMap<i64, Pool> {
        &self.pools
    }

    /// False: there is no such series.
    pub fn set_cap(&mut self, id: i64, cap: i64) -> bool {
        self.series.get_mut(&id).map(|series| series.cap = cap).is_some()
    }

    /// False: the code is there already, or was given out.
    pub fn upload(&mut self, id: i64, code: String, owner: Option<String>) -> bool {
        !self.codes.contains_key(&code) && self.pools.entry(id).or_default().add(Uploaded { code, owner })
    }

    /// Section 4 of the contract, from top to bottom.
    pub fn expected(&self, asker: &Asker, id: i64) -> Expected {
        let today = asker.today;
        let error = |message| Expected::Error(message, None);
        let Some(series) = self.series.get(&id) else { return error(UNKNOWN) };
        if series.external {
            return error(EXTERNAL);
        }
        if !series.stores.is_empty() && !series.stores.contains(&asker.store) {
            return error(STORE);
        }
        let Some(last_day) = series.last_day(today) else { return error(EXPIRED) };
        if series.redemption_from.is_some_and(|from| from > last_day) {
            return error(EXPIRED);
        }
        let own = self.held_of(&asker.customer, id);
        if let Some(held) = own.last()
            && series.resend
            && held.longest >= today
        {
            return Expected::Again(held.longest);
        }
        if !own.is_empty() && !series.several {
            return error(HAS_ONE);
        }
        if reaches(own.len(), series.maximum) {
            return error(MAXIMUM);
        }
        if self.holds_excluded(&asker.customer, series) {
            return error(EXCLUSIVE);
        }
        if reaches(self.issued.get(&id).copied().unwrap_or_default(), series.cap) {
            return error(CAP);
        }
        let has_code = || self.pools.get(&id).is_some_and(|pool| pool.has_code_for(&asker.customer));
        if series.codes == Codes::Uploaded && !has_code() {
            return error(EMPTY);
        }
        match own.last().map(|held| held.latest + series.gap.days()) {
            Some(next) if series.gap > 0 && today < next => Expected::Error(GAP, Some(next)),
            _ => Expected::New(last_day),
        }
    }

    fn held_of(&self, customer: &str, id: i64) -> &[Held] {
        self.held.get(customer).and_then(|held| held.get(&id)).map_or(&[], Vec::as_slice)
    }

    fn holds_excluded(&self, customer: &str, series: &Series) -> bool {
        let excludes = |(id, held): (&i64, &Vec<Held>)| {
            !held.is_empty() && self.series.get(id).is_some_and(|other| other.excludes(series))
        };
        self.held.get(customer).is_some_and(|held| held.iter().any(excludes))
    }

    /// Whether an answer is one that the contract allows; what it did is then part of the model.
    pub fn agree(&mut self, asker: &Asker, id: i64, said: &Said) -> Option<Undo> {
        match (self.expected(asker, id), said) {
            (Expected::New(expected), Said::New { code, last_day }) if expected == *last_day => {
                self.issue(asker, id, code, *last_day)
            }
            (expected, said) => self.is_allowed(&expected, asker, id, said).then_some(Undo::Nothing),
        }
    }

    /// Whether an answer that changes nothing is the expected one.
    pub fn is_allowed(&self, expected: &Expected, asker: &Asker, id: i64, said: &Said) -> bool {
        match (expected, said) {
            (Expected::Error(message, until), Said::Error(text, from)) => text == message && from == until,
            (Expected::Again(longest), Said::Again { code, last_day }) => {
                let is_held = |held: &Held| (held.code.as_str(), held.last_day) == (code, *longest);
                last_day == longest && self.held_of(&asker.customer, id).iter().any(is_held)
            }
            _ => false,
        }
    }

    /// Whether an answer says that the pool is empty, and it would be without so many codes for anybody: nothing before the pool refuses.
    pub fn is_empty_without(&self, codes: usize, expected: &Expected, id: i64, said: &Said) -> bool {
        let gets_to_the_pool = match expected {
            Expected::New(_) => true,
            Expected::Error(message, _) => *message == GAP,
            Expected::Again(_) => false,
        };
        let left = self.pools.get(&id).map_or(0, Pool::left_for_anybody);
        gets_to_the_pool && left <= codes && codes > 0 && matches!(said, Said::Error(text, None) if text == EMPTY)
    }

    /// Issues a coupon that is expected, if it may have this code.
    pub fn issue(&mut self, asker: &Asker, id: i64, code: &str, last_day: Date) -> Option<Undo> {
        let undo = self.take_code(asker, id, code)?;
        let (customer, code) = (asker.customer.clone(), code.to_owned());
        self.store(Coupon { series: id, customer, code, last_day, issued_on: asker.today });
        Some(undo)
    }

    /// Issues a coupon that the contract does not allow: what comes after it is judged as if it did.
    pub fn issue_anyway(&mut self, asker: &Asker, id: i64, code: &str) {
        let last_day = self.series.get(&id).and_then(|series| series.last_day(asker.today)).unwrap_or(asker.today);
        if let Some(pool) = self.pools.get_mut(&id) {
            pool.remove(code);
        }
        let (customer, code) = (asker.customer.clone(), code.to_owned());
        self.store(Coupon { series: id, customer, code, last_day, issued_on: asker.today });
    }

    fn store(&mut self, coupon: Coupon) {
        let Coupon { series, code, last_day, issued_on, .. } = &coupon;
        let held = self.held.entry(coupon.customer.clone()).or_default().entry(*series).or_default();
        let (longest, latest) = match held.last() {
            Some(before) => (before.longest.max(*last_day), before.latest.max(*issued_on)),
            None => (*last_day, *issued_on),
        };
        held.push(Held { code: code.clone(), last_day: *last_day, longest, latest });
        *self.issued.entry(*series).or_default() += 1;
        *self.codes.entry(code.clone()).or_default() += 1;
        self.coupons.push(coupon);
    }

    /// Whether a new coupon may have this code; an uploaded one is taken off the pool.
    fn take_code(&mut self, asker: &Asker, id: i64, code: &str) -> Option<Undo> {
        let series = self.series.get(&id)?;
        match &series.codes {
            Codes::Common(common) => (code == common).then_some(Undo::Coupon { uploaded: None }),
            Codes::Drawn(shape) => {
                let is_shaped = shape.as_ref().is_none_or(|shape| shape.fits(code));
                (is_shaped && !self.codes.contains_key(code)).then_some(Undo::Coupon { uploaded: None })
            }
            Codes::Uploaded => {
                let uploaded = self.pools.get_mut(&id)?.take(code, &asker.customer)?;
                Some(Undo::Coupon { uploaded: Some(uploaded) })
            }
        }
    }

    /// Takes back what was agreed last.
    pub fn take_back(&mut self, undo: Undo) {
        let Undo::Coupon { uploaded } = undo else { return };
        let Some(coupon) = self.coupons.pop() else { return };
        self.held.get_mut(&coupon.customer).and_then(|held| held.get_mut(&coupon.series)?.pop());
        *self.issued.entry(coupon.series).or_default() -= 1;
        let with_code = self.codes.remove(&coupon.code).unwrap_or_default();
        if with_code > 1 {
            self.codes.insert(coupon.code, with_code - 1);
        }
        if let Some(uploaded) = uploaded {
            self.pools.entry(coupon.series).or_default().add(uploaded);
        }
    }
}
