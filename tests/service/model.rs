//! The contract once more, in memory and in other words, and the service beside it: both are asked the same at random,
//! one request after the other and several at once, and must agree.
//!
//! Seeds are fixed: a disagreement comes again, with its seed in the message.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::support::{NOW, TestApp};

const ORGS: i64 = 10;
const SEQUENCES: usize = 150;
const ROUNDS: usize = 100;
const ZONES: [&str; 5] = ["UTC", "Asia/Kolkata", "America/New_York", "Europe/Berlin", "Pacific/Auckland"];

const UNKNOWN: &str = "707 Coupon Series ID is invalid";
const EXTERNAL: &str = "777 coupon source not valid for issue coupon";
const STORE: &str = "735 Invalid store";
const EXPIRED: &str = "712 Coupon Series has expired";
const HAS_ONE: &str = "709 Coupon processing failed: user already has a coupon";
const MAXIMUM: &str = "730 Unknown error : MAX_COUPON_ISSUAL_PER_USER_EXCEEDED";
const EXCLUSIVE: &str = "709 Coupon processing failed: coupon present in mutually exclusive series";
const CAP: &str = "5001 Maximum number of series has been created";
const EMPTY: &str = "5005 Queue is empty for series";
const GAP: &str =
    "709 Coupon processing failed: days between consecutive issuals for a user less than min days between issuals";

/// Where a series' codes come from.
#[derive(Debug, Clone, PartialEq)]
enum Codes {
    Drawn { digits: bool, length: usize },
    Common(String),
    Uploaded,
}

/// A series as the contract describes it; -1 is unlimited.
#[derive(Debug, Clone)]
struct Series {
    id: i64,
    codes: Codes,
    valid_till: Date,
    days: Option<i64>,
    months: Option<i64>,
    redemption_from: Option<Date>,
    cap: i64,
    several: bool,
    maximum: i64,
    resend: bool,
    gap: i64,
    excludes: Vec<i64>,
    stores: Vec<i64>,
    external: bool,
}

fn one_in(random: &mut StdRng, count: u32) -> bool {
    random.random_range(0..count) == 0
}

impl Series {
    fn random(id: i64, random: &mut StdRng) -> Self {
        let today: Date = "2026-11-22".parse().unwrap();
        let day = |random: &mut StdRng, from: i64, to: i64| today + random.random_range(from..to).days();
        let strategy = random.random_range(0..3);
        Self {
            id,
            codes: match random.random_range(0..4) {
                0 => Codes::Common(format!("COMMON-{id}")),
                1 => Codes::Uploaded,
                _ => Codes::Drawn { digits: one_in(random, 2), length: random.random_range(8..13) },
            },
            valid_till: if one_in(random, 4) { day(random, -1, 20) } else { day(random, 20, 400) },
            days: (strategy == 1).then(|| random.random_range(0..40)),
            months: (strategy == 2).then(|| random.random_range(0..3)),
            redemption_from: one_in(random, 5).then(|| day(random, -5, 25)),
            cap: if one_in(random, 3) { random.random_range(0..250) } else { -1 },
            several: !one_in(random, 3),
            maximum: if one_in(random, 3) { random.random_range(0..4) } else { -1 },
            resend: one_in(random, 3),
            gap: if one_in(random, 3) { random.random_range(0..12) } else { -1 },
            excludes: if one_in(random, 3) { vec![1 + id % 8] } else { Vec::new() },
            stores: match random.random_range(0..6) {
                0 => vec![10],
                1 => vec![10, 11],
                _ => Vec::new(),
            },
            external: one_in(random, 15),
        }
    }

    fn toml(&self) -> String {
        let Self { id, valid_till, cap, several, maximum, gap, excludes, stores, external, .. } = self;
        let mut toml = format!(
            "[[orgs.series]]\nid = {id}\ndescription = \"Series {id}\"\ndiscount_type = \"ABS\"\ndiscount_value = 1\n\
             valid_till_date = {valid_till}\nmax_create = {cap}\nis_multiple_vouchers_per_user_allowed = {several}\n\
             max_vouchers_per_user = {maximum}\ndo_not_resend_existing_voucher = {}\nmin_days_between_vouchers = {gap}\n\
             mutual_exclusive_series_ids = {excludes:?}\nstore_ids = {stores:?}\nexternally_managed = {external}\n",
            !self.resend,
        );
        let strategy = self.days.map(|days| ("DAYS", days)).or(self.months.map(|months| ("MONTHS_END", months)));
        if let Some((strategy, value)) = strategy {
            writeln!(toml, "expiry_strategy_type = \"{strategy}\"\nexpiry_strategy_value = {value}").unwrap();
        }
        if let Some(from) = self.redemption_from {
            writeln!(toml, "redemption_valid_from = {from}").unwrap();
        }
        match &self.codes {
            Codes::Drawn { digits, length } => {
                writeln!(toml, "alpha_numeric = {}\nrandom_code_length = {length}\ncoupon_prefix = \"P{id}\"", !digits)
            }
            Codes::Common(code) => writeln!(toml, "client_handling_type = \"GENERIC\"\ngeneric_code = \"{code}\""),
            Codes::Uploaded => writeln!(toml, "client_handling_type = \"DISC_CODE_PIN\""),
        }
        .unwrap();
        toml
    }

    /// The last day of a coupon issued today; one that is past already is none.
    fn last_day(&self, today: Date) -> Option<Date> {
        let wished = match (self.days, self.months) {
            (Some(days), _) => today + days.days(),
            (_, Some(months)) => (today.first_of_month() + months.months()).last_of_month(),
            _ => self.valid_till,
        };
        let last = if wished < self.valid_till { wished } else { self.valid_till };
        (last >= today).then_some(last)
    }

    fn excludes(&self, other: &Self) -> bool {
        self.excludes.contains(&other.id) || other.excludes.contains(&self.id)
    }

    fn is_shaped(&self, code: &str) -> bool {
        let Codes::Drawn { digits, length } = self.codes else { return false };
        let letters = if digits { "0123456789" } else { "23456789ABCDEFGHJKMNPQRSTUVWXYZ" };
        let drawn = code.strip_prefix(&format!("P{}", self.id)).unwrap_or_default();
        drawn.len() == length && drawn.chars().all(|letter| letters.contains(letter))
    }
}

#[derive(Debug, Clone)]
struct Coupon {
    series: i64,
    customer: String,
    code: String,
    last_day: Date,
    issued_on: Date,
}

fn reaches(count: usize, limit: i64) -> bool {
    usize::try_from(limit).is_ok_and(|limit| count >= limit)
}

/// What the contract lets happen to one series id of a request.
#[derive(Debug, Clone, PartialEq)]
enum Expected {
    /// A new coupon, until this day.
    New(Date),
    /// A coupon that the customer holds: one with this last day.
    Again(Date),
    /// An error, and the day from which it is none any more.
    Error(&'static str, Option<Date>),
}

/// An organisation and all of its coupons.
#[derive(Debug)]
struct Model {
    org: i64,
    zone: TimeZone,
    series: BTreeMap<i64, Series>,
    coupons: Vec<Coupon>,
    /// Uploaded codes that are left, with whom each is for.
    pool: BTreeMap<(i64, String), Option<String>>,
}

/// A code of a series' pool, and whom it is for.
type Uploaded = ((i64, String), Option<String>);

/// How to take an agreed answer back.
enum Undo {
    Nothing,
    Coupon { uploaded: Option<Uploaded> },
}

/// Who asks, and when.
#[derive(Debug, Clone)]
struct Asker {
    customer: String,
    store: i64,
    now: Timestamp,
}

impl Model {
    fn random(org: i64, random: &mut StdRng) -> Self {
        let series = (1..=8).map(|id| (id, Series::random(id, random))).collect::<BTreeMap<_, _>>();
        let mut pool = BTreeMap::new();
        for uploaded in series.values().filter(|series| series.codes == Codes::Uploaded) {
            for number in 0..random.random_range(0..400) {
                let owner = (number % 9 == 0).then(|| format!("c{number}"));
                pool.insert((uploaded.id, format!("up-{}-{number}", uploaded.id)), owner);
            }
        }
        let zone = TimeZone::get(ZONES[random.random_range(0..ZONES.len())]).unwrap();
        Self { org, zone, series, coupons: Vec::new(), pool }
    }

    fn toml(&self) -> String {
        let Self { org, zone, .. } = self;
        let head = format!(
            "[[orgs]]\nid = {org}\nname = \"Org {org}\"\ntime_zone = \"{}\"\ndefault_access = \"write\"\n",
            zone.iana_name().unwrap(),
        );
        let tills = [10, 11].map(|store| {
            format!(
                "[[orgs.stores]]\nid = {store}\nname = \"S\"\n\
                 [[orgs.tills]]\nid = \"till-{org}-{store}\"\nstore_id = {store}\npassword = \"p\"\n"
            )
        });
        let series: String = self.series.values().map(Series::toml).collect();
        format!("{head}{}{series}", tills.concat())
    }

    fn day(&self, instant: Timestamp) -> Date {
        instant.to_zoned(self.zone.clone()).date()
    }

    /// Section 4 of the contract, from top to bottom.
    fn expected(&self, asker: &Asker, id: i64) -> Expected {
        let today = self.day(asker.now);
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
        let all: Vec<&Coupon> = self.coupons.iter().filter(|coupon| coupon.customer == asker.customer).collect();
        let own: Vec<&&Coupon> = all.iter().filter(|coupon| coupon.series == id).collect();
        if let Some(longest) = own.iter().map(|coupon| coupon.last_day).max()
            && series.resend
            && longest >= today
        {
            return Expected::Again(longest);
        }
        if !own.is_empty() && !series.several {
            return error(HAS_ONE);
        }
        if reaches(own.len(), series.maximum) {
            return error(MAXIMUM);
        }
        if all.iter().any(|coupon| self.series[&coupon.series].excludes(series)) {
            return error(EXCLUSIVE);
        }
        let issued = self.coupons.iter().filter(|coupon| coupon.series == id).count();
        if reaches(issued, series.cap) {
            return error(CAP);
        }
        let mut uploaded = self.pool.iter().filter(|((pool, _), _)| *pool == id);
        let may_have = |owner: &Option<String>| owner.as_ref().is_none_or(|owner| *owner == asker.customer);
        if series.codes == Codes::Uploaded && !uploaded.any(|(_, owner)| may_have(owner)) {
            return error(EMPTY);
        }
        match own.iter().map(|coupon| coupon.issued_on).max() {
            Some(latest) if series.gap > 0 && today < latest + series.gap.days() => {
                Expected::Error(GAP, Some(latest + series.gap.days()))
            }
            _ => Expected::New(last_day),
        }
    }

    /// Whether an answer is one that the contract allows; what it did is then part of the model.
    fn agree(&mut self, asker: &Asker, id: i64, entity: &Value) -> Option<Undo> {
        assert_eq!(entity["entityId"], id);
        let told = &entity["result"];
        let day = |field: &str| told[field].as_str().and_then(|text| text.get(..10)?.parse::<Date>().ok());
        match self.expected(asker, id) {
            Expected::Error(message, from) => {
                let error = entity["errors"].get(0)?;
                let same = format!("{} {}", error["code"], error["message"].as_str()?) == message;
                let until = error["nextEligibleAt"].as_str().map(|at| self.day(at.parse().unwrap()));
                (same && until == from && entity.get("result").is_none()).then_some(Undo::Nothing)
            }
            Expected::Again(last_day) => {
                let code = told["code"].as_str()?;
                let is_held = |coupon: &Coupon| {
                    (coupon.series, coupon.code.as_str(), coupon.customer.as_str(), coupon.last_day)
                        == (id, code, asker.customer.as_str(), last_day)
                };
                let same = day("validTill") == Some(last_day) && self.coupons.iter().any(is_held);
                (same && entity["warnings"][0]["code"] == 700).then_some(Undo::Nothing)
            }
            Expected::New(last_day) => {
                let code = told["code"].as_str()?;
                let is_whole = entity["errors"] == json!([]) && entity["warnings"] == json!([]);
                if !is_whole || day("validTill") != Some(last_day) || day("validTillDateTime") != Some(last_day) {
                    return None;
                }
                let undo = self.take_code(asker, id, code)?;
                let (customer, issued_on) = (asker.customer.clone(), self.day(asker.now));
                self.coupons.push(Coupon { series: id, customer, code: code.to_owned(), last_day, issued_on });
                Some(undo)
            }
        }
    }

    /// Whether a new coupon may have this code; an uploaded one is taken off the pool.
    fn take_code(&mut self, asker: &Asker, id: i64, code: &str) -> Option<Undo> {
        let series = &self.series[&id];
        match &series.codes {
            Codes::Common(common) => (code == common).then_some(Undo::Coupon { uploaded: None }),
            Codes::Drawn { .. } => {
                let is_new = !self.coupons.iter().any(|coupon| coupon.code == code);
                (is_new && series.is_shaped(code)).then_some(Undo::Coupon { uploaded: None })
            }
            Codes::Uploaded => {
                let key = (id, code.to_owned());
                let owner = self.pool.get(&key)?.clone();
                let is_own = |owner: &Option<String>| owner.as_ref() == Some(&asker.customer);
                let has_own = self.pool.iter().any(|((pool, _), owner)| *pool == id && is_own(owner));
                if is_own(&owner) != has_own || (!has_own && owner.is_some()) {
                    return None;
                }
                self.pool.remove(&key);
                Some(Undo::Coupon { uploaded: Some((key, owner)) })
            }
        }
    }

    fn take_back(&mut self, undo: Undo) {
        if let Undo::Coupon { uploaded } = undo {
            self.coupons.pop();
            self.pool.extend(uploaded);
        }
    }

    /// Whether there is an order of these answers in which the contract allows each. Where two entities of a request
    /// have nothing to do with one another, they may have happened in either order.
    fn agree_in_some_order(&mut self, answers: &[Answer], done: &mut Vec<(usize, usize)>) -> bool {
        let all = answers.iter().map(|answer| answer.ids.len()).sum::<usize>();
        if done.len() == all {
            return true;
        }
        for (request, answer) in answers.iter().enumerate() {
            for (place, id) in answer.ids.iter().enumerate() {
                let waits =
                    |earlier: usize| !done.contains(&(request, earlier)) && self.interact(answer.ids[earlier], *id);
                if done.contains(&(request, place)) || (0..place).any(waits) {
                    continue;
                }
                let Some(undo) = self.agree(&answer.asker, *id, &answer.entities[place]) else { continue };
                done.push((request, place));
                if self.agree_in_some_order(answers, done) {
                    return true;
                }
                done.pop();
                self.take_back(undo);
            }
        }
        false
    }

    fn interact(&self, one: i64, other: i64) -> bool {
        let excludes = |one: &Series, other: &Series| one.excludes(other);
        one == other
            || self.series.get(&one).zip(self.series.get(&other)).is_some_and(|(one, other)| excludes(one, other))
    }

    /// What a caller sees only in sum, and what is stored.
    async fn is_stored_by(&self, app: &TestApp) {
        let stored: Vec<(i64, String, String)> = sqlx::query_as(
            "select series_id, customer_id, code from issued_coupon where org_id = $1 order by series_id, customer_id, code",
        )
        .bind(self.org)
        .fetch_all(&app.pool)
        .await
        .unwrap();
        let row = |coupon: &Coupon| (coupon.series, coupon.customer.clone(), coupon.code.clone());
        let mut known: Vec<_> = self.coupons.iter().map(row).collect();
        known.sort();
        assert_eq!(stored, known);
    }
}

/// A request and what came back.
#[derive(Debug)]
struct Answer {
    asker: Asker,
    ids: Vec<i64>,
    entities: Vec<Value>,
}

async fn ask(app: &TestApp, org: i64, asker: Asker, ids: Vec<i64>) -> Answer {
    let body = json!({"seriesIds": ids, "customer": {"id": asker.customer}});
    let request = app.client().post(app.url("/v2/coupon/bulk/issue")).json(&body);
    let answer = request.basic_auth(format!("till-{org}-{}", asker.store), Some("p")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let entities = match answer.json::<Value>().await.unwrap()["response"].take() {
        Value::Array(entities) => entities,
        other => panic!("{other}"),
    };
    assert_eq!(entities.len(), ids.len());
    Answer { asker, ids, entities }
}

/// Everything is stored as the models have it, and an audit has nothing to say of it.
async fn is_stored_by(app: &TestApp, models: &[Model]) {
    for model in models {
        model.is_stored_by(app).await;
    }
    // The clock that is held may be behind the one that tells since when the limits hold.
    sqlx::query("update series set limits_changed_at = '-infinity'").execute(&app.pool).await.unwrap();
    let audited = app.audit().await;
    assert_eq!(audited.wrong(), 0, "{audited}");
}

fn some_ids(random: &mut StdRng, most: usize) -> Vec<i64> {
    // 9 is none.
    (0..random.random_range(1..=most)).map(|_| random.random_range(1..=9)).collect()
}

async fn start(seed: u64) -> (Arc<TestApp>, Vec<Model>, StdRng) {
    let mut random = StdRng::seed_from_u64(seed);
    let models: Vec<Model> = (1..=ORGS).map(|org| Model::random(org, &mut random)).collect();
    let file: String = models.iter().map(Model::toml).collect();
    let app = TestApp::start_with(&file, |_| {}).await;
    for model in &models {
        for (((series, code), owner), place) in model.pool.iter().zip(1_i64..) {
            sqlx::query(
                "insert into pool_code (org_id, series_id, code, uploaded_code, position, customer_id)
                 values ($1, $2, upper($3), $3, $4, $5)",
            )
            .bind(model.org)
            .bind(series)
            .bind(code)
            .bind(owner.is_none().then_some(place))
            .bind(owner)
            .execute(&app.pool)
            .await
            .unwrap();
        }
    }
    (Arc::new(app), models, random)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_after_the_other() {
    let seed = 20_261_122;
    let (app, mut models, mut random) = start(seed).await;
    let mut kinds = BTreeMap::<String, usize>::new();
    for sequence in 0..SEQUENCES {
        for model in &mut models {
            // A customer begins when its first sequence does; some come again in a later one.
            let mut now: Timestamp = NOW.parse().unwrap();
            for _ in 0..random.random_range(2..8) {
                if one_in(&mut random, 2) {
                    now += SignedDuration::from_secs(random.random_range(0..400_000));
                }
                app.clock.set(&now.to_string());
                let customer = format!("c{}", sequence * 2 + random.random_range(0..2_usize));
                let asker = Asker { customer, store: random.random_range(10..12), now };
                let answer = ask(&app, model.org, asker, some_ids(&mut random, 4)).await;
                for (id, entity) in answer.ids.iter().zip(&answer.entities) {
                    let expected = model.expected(&answer.asker, *id);
                    let agreed = model.agree(&answer.asker, *id, entity);
                    assert!(
                        agreed.is_some(),
                        "seed {seed}, {answer:?}: {entity}\nis not {expected:?}\n{:?}",
                        model.series
                    );
                    *kinds.entry(kind(&expected)).or_default() += 1;
                }
            }
        }
    }
    is_stored_by(&app, &models).await;
    // A test that never meets a rule shows nothing of it.
    assert!(kinds.len() == 12 && kinds.values().all(|count| *count >= 20), "{kinds:#?}");
}

fn kind(expected: &Expected) -> String {
    match expected {
        Expected::New(_) => "new".to_owned(),
        Expected::Again(_) => "again".to_owned(),
        Expected::Error(message, _) => (*message).to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_requests_at_once() {
    let seed = 20_261_123;
    let (app, mut models, mut random) = start(seed).await;
    let mut now: Timestamp = NOW.parse().unwrap();
    for round in 0..ROUNDS {
        now += SignedDuration::from_secs(random.random_range(0..20_000));
        app.clock.set(&now.to_string());
        for model in &mut models {
            let calls: Vec<_> = (0..5)
                .map(|_| {
                    let customer = format!("c{}", round / 2 * 2 + random.random_range(0..2_usize));
                    let asker = Asker { customer, store: random.random_range(10..12), now };
                    let (app, org, ids) = (Arc::clone(&app), model.org, some_ids(&mut random, 2));
                    tokio::spawn(async move { ask(&app, org, asker, ids).await })
                })
                .collect();
            let mut answers = Vec::new();
            for call in calls {
                answers.push(call.await.unwrap());
            }
            let agreed = model.agree_in_some_order(&answers, &mut Vec::new());
            assert!(agreed, "seed {seed}, round {round}: no order explains {answers:#?}\n{:?}", model.series);
        }
    }
    is_stored_by(&app, &models).await;
}
