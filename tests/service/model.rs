//! Random requests, one by one and concurrently: each answer must be one that the model of the contract (tests/model) allows.
//!
//! The seeds are fixed, and a failure prints its seed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::contract_model::{Codes, Coupon, Expected, IssueContext, Model, Outcome, Pool, Series, Shape, Undo};
use crate::support::{NOW, TestApp};

const ORGS: i64 = 10;
const SEQUENCES: usize = 150;
const ROUNDS: usize = 100;
const ZONES: [&str; 5] = ["UTC", "Asia/Kolkata", "America/New_York", "Europe/Berlin", "Pacific/Auckland"];

fn one_in(random: &mut StdRng, count: u32) -> bool {
    random.random_range(0..count) == 0
}

fn random_series(id: i64, random: &mut StdRng) -> Series {
    let today: Date = "2026-11-22".parse().unwrap();
    let day = |random: &mut StdRng, from: i64, to: i64| today + random.random_range(from..to).days();
    let strategy = random.random_range(0..3);
    Series {
        id,
        codes: match random.random_range(0..4) {
            0 => Codes::Common(format!("COMMON-{id}")),
            1 => Codes::Uploaded,
            _ => {
                let (digits, length) = (one_in(random, 2), random.random_range(8..13));
                Codes::Drawn(Some(Shape { prefix: format!("P{id}"), digits, length }))
            }
        },
        valid_till: if one_in(random, 4) { day(random, -1, 20) } else { day(random, 20, 400) },
        days: (strategy == 1).then(|| random.random_range(0..40)),
        months: (strategy == 2).then(|| random.random_range(0..3)),
        redemption_from: one_in(random, 5).then(|| day(random, -5, 25)),
        cap: if one_in(random, 3) { random.random_range(0..250) } else { -1 },
        allows_several: !one_in(random, 3),
        max_per_customer: if one_in(random, 3) { random.random_range(0..4) } else { -1 },
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

fn series_toml(series: &Series) -> String {
    let Series { id, valid_till, cap, allows_several, max_per_customer, gap, excludes, stores, external, .. } = series;
    let mut toml = format!(
        "[[orgs.series]]\nid = {id}\ndescription = \"Series {id}\"\ndiscount_type = \"ABS\"\ndiscount_value = 1\n\
             valid_till_date = {valid_till}\nmax_create = {cap}\nis_multiple_vouchers_per_user_allowed = {allows_several}\n\
             max_vouchers_per_user = {max_per_customer}\ndo_not_resend_existing_voucher = {}\nmin_days_between_vouchers = {gap}\n\
             mutual_exclusive_series_ids = {excludes:?}\nstore_ids = {stores:?}\nexternally_managed = {external}\n",
        !series.resend,
    );
    let strategy = series.days.map(|days| ("DAYS", days)).or(series.months.map(|months| ("MONTHS_END", months)));
    if let Some((strategy, value)) = strategy {
        writeln!(toml, "expiry_strategy_type = \"{strategy}\"\nexpiry_strategy_value = {value}").unwrap();
    }
    if let Some(from) = series.redemption_from {
        writeln!(toml, "redemption_valid_from = {from}").unwrap();
    }
    match &series.codes {
        Codes::Drawn(None) => Ok(()),
        Codes::Drawn(Some(Shape { prefix, digits, length })) => {
            writeln!(toml, "alpha_numeric = {}\nrandom_code_length = {length}\ncoupon_prefix = \"{prefix}\"", !digits)
        }
        Codes::Common(code) => writeln!(toml, "client_handling_type = \"GENERIC\"\ngeneric_code = \"{code}\""),
        Codes::Uploaded => writeln!(toml, "client_handling_type = \"DISC_CODE_PIN\""),
    }
    .unwrap();
    toml
}

/// An organisation with its model.
#[derive(Debug)]
struct Organisation {
    id: i64,
    zone: TimeZone,
    model: Model,
}

impl Organisation {
    fn random(id: i64, random: &mut StdRng) -> Self {
        let series: Vec<_> = (1..=8).map(|id| random_series(id, random)).collect();
        let mut model = Model::new(series.clone());
        for uploaded in series.iter().filter(|series| series.codes == Codes::Uploaded) {
            for number in 0..random.random_range(0..400) {
                let owner = (number % 9 == 0).then(|| format!("c{number}"));
                assert!(model.upload(uploaded.id, format!("up-{}-{number}", uploaded.id), owner));
            }
        }
        let zone = TimeZone::get(ZONES[random.random_range(0..ZONES.len())]).unwrap();
        Self { id, zone, model }
    }

    fn toml(&self) -> String {
        let Self { id, zone, model } = self;
        let head = format!(
            "[[orgs]]\nid = {id}\nname = \"Org {id}\"\ntime_zone = \"{}\"\ndefault_access = \"write\"\n",
            zone.iana_name().unwrap(),
        );
        let tills = [10, 11].map(|store| {
            format!(
                "[[orgs.stores]]\nid = {store}\nname = \"S\"\n\
                 [[orgs.tills]]\nid = \"till-{id}-{store}\"\nstore_id = {store}\npassword = \"p\"\n"
            )
        });
        let series: String = model.series().values().map(series_toml).collect();
        format!("{head}{}{series}", tills.concat())
    }

    fn day(&self, instant: Timestamp) -> Date {
        instant.to_zoned(self.zone.clone()).date()
    }

    /// What an answer says in the words of the model. `None`: it contradicts itself or is incomplete.
    fn outcome(&self, id: i64, entity: &Value) -> Option<Outcome> {
        assert_eq!(entity["entityId"], id);
        if let Some(error) = entity["errors"].get(0) {
            let text = format!("{} {}", error["code"], error["message"].as_str()?);
            let from = error["nextEligibleAt"].as_str().map(|at| self.day(at.parse().unwrap()));
            return entity.get("result").is_none().then_some(Outcome::Error(text, from));
        }
        let result = &entity["result"];
        let day = |field: &str| result[field].as_str().and_then(|text| text.get(..10)?.parse::<Date>().ok());
        let (code, last_day) = (result["code"].as_str()?.to_owned(), day("validTill")?);
        if entity["warnings"][0]["code"] == 700 {
            return Some(Outcome::Resent { code, last_day });
        }
        let is_whole = entity["errors"] == json!([]) && entity["warnings"] == json!([]);
        (is_whole && day("validTillDateTime") == Some(last_day)).then_some(Outcome::New { code, last_day })
    }

    /// Applies an answer to the model. `None`: the contract does not allow the answer.
    fn accept(&mut self, context: &IssueContext, id: i64, entity: &Value) -> Option<Undo> {
        let outcome = self.outcome(id, entity)?;
        self.model.accept(context, id, &outcome)
    }

    /// Whether the contract allows these answers in some order. Two entities of one request may have happened in either order
    /// if they do not interact.
    fn accept_in_some_order(&mut self, answers: &[Answer], done: &mut Vec<(usize, usize)>) -> bool {
        let all = answers.iter().map(|answer| answer.ids.len()).sum::<usize>();
        if done.len() == all {
            return true;
        }
        for (request, answer) in answers.iter().enumerate() {
            for (position, id) in answer.ids.iter().enumerate() {
                let must_wait_for =
                    |earlier: usize| !done.contains(&(request, earlier)) && self.interact(answer.ids[earlier], *id);
                if done.contains(&(request, position)) || (0..position).any(must_wait_for) {
                    continue;
                }
                let Some(undo) = self.accept(&answer.context, *id, &answer.entities[position]) else { continue };
                done.push((request, position));
                if self.accept_in_some_order(answers, done) {
                    return true;
                }
                done.pop();
                self.model.revert(undo);
            }
        }
        false
    }

    fn interact(&self, one: i64, other: i64) -> bool {
        let series = self.model.series();
        let excludes = |one: &Series, other: &Series| one.excludes(other);
        one == other || series.get(&one).zip(series.get(&other)).is_some_and(|(one, other)| excludes(one, other))
    }

    /// The database has the coupons of the model, and no others.
    async fn assert_stored(&self, app: &TestApp) {
        let stored: Vec<(i64, String, String)> = sqlx::query_as(
            "select series_id, customer_id, code from issued_coupon where org_id = $1 order by series_id, customer_id, code",
        )
        .bind(self.id)
        .fetch_all(&app.pool)
        .await
        .unwrap();
        let row = |coupon: &Coupon| (coupon.series, coupon.customer.clone(), coupon.code.clone());
        let mut expected: Vec<_> = self.model.coupons().iter().map(row).collect();
        expected.sort();
        assert_eq!(stored, expected);
    }
}

/// A request and what came back.
#[derive(Debug)]
struct Answer {
    context: IssueContext,
    ids: Vec<i64>,
    entities: Vec<Value>,
}

async fn ask(app: &TestApp, org: i64, context: IssueContext, ids: Vec<i64>) -> Answer {
    let body = json!({"seriesIds": ids, "customer": {"id": context.customer}});
    let request = app.client().post(app.url("/v2/coupon/bulk/issue")).json(&body);
    let answer = request.basic_auth(format!("till-{org}-{}", context.store), Some("p")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let entities = match answer.json::<Value>().await.unwrap()["response"].take() {
        Value::Array(entities) => entities,
        other => panic!("{other}"),
    };
    assert_eq!(entities.len(), ids.len());
    Answer { context, ids, entities }
}

/// The database has the coupons of all models, and `verify` finds nothing wrong.
async fn assert_all_stored(app: &TestApp, organisations: &[Organisation]) {
    for organisation in organisations {
        organisation.assert_stored(app).await;
    }
    // `apply` takes this instant from the clock of Postgres. If that is ahead of the test's clock, `verify` would check no coupon.
    sqlx::query("update series set limits_changed_at = '-infinity'").execute(&app.pool).await.unwrap();
    let verified = app.verify().await;
    assert_eq!(verified.wrong(), 0, "{verified}");
}

fn random_ids(random: &mut StdRng, max_count: usize) -> Vec<i64> {
    // Series 9 does not exist.
    (0..random.random_range(1..=max_count)).map(|_| random.random_range(1..=9)).collect()
}

async fn start(seed: u64) -> (Arc<TestApp>, Vec<Organisation>, StdRng) {
    let mut random = StdRng::seed_from_u64(seed);
    let organisations: Vec<Organisation> = (1..=ORGS).map(|org| Organisation::random(org, &mut random)).collect();
    let file: String = organisations.iter().map(Organisation::toml).collect();
    let app = TestApp::start_with(&file, |_| {}).await;
    for organisation in &organisations {
        let codes = |(series, pool): (&i64, &Pool)| {
            let series = *series;
            pool.codes().clone().into_iter().map(move |(code, owner)| (series, code, owner))
        };
        for ((series, code, owner), position) in organisation.model.pools().iter().flat_map(codes).zip(1_i64..) {
            sqlx::query(
                "insert into pool_code (org_id, series_id, code, uploaded_code, position, customer_id)
                 values ($1, $2, upper($3), $3, $4, $5)",
            )
            .bind(organisation.id)
            .bind(series)
            .bind(code)
            .bind(owner.is_none().then_some(position))
            .bind(owner)
            .execute(&app.pool)
            .await
            .unwrap();
        }
    }
    (Arc::new(app), organisations, random)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sequential_answers_are_those_of_the_model() {
    let seed = 20_261_122;
    let (app, mut organisations, mut random) = start(seed).await;
    let mut kinds = BTreeMap::<String, usize>::new();
    for sequence in 0..SEQUENCES {
        for organisation in &mut organisations {
            // Each sequence has two customers of its own, so that the clock may start again.
            let mut now: Timestamp = NOW.parse().unwrap();
            for _ in 0..random.random_range(2..8) {
                if one_in(&mut random, 2) {
                    now += SignedDuration::from_secs(random.random_range(0..400_000));
                }
                app.clock.set(&now.to_string());
                let customer = format!("c{}", sequence * 2 + random.random_range(0..2_usize));
                let today = organisation.day(now);
                let context = IssueContext { customer, store: random.random_range(10..12), today };
                let answer = ask(&app, organisation.id, context, random_ids(&mut random, 4)).await;
                for (id, entity) in answer.ids.iter().zip(&answer.entities) {
                    let expected = organisation.model.expected(&answer.context, *id);
                    let accepted = organisation.accept(&answer.context, *id, entity);
                    assert!(
                        accepted.is_some(),
                        "seed {seed}, {answer:?}: {entity}\nexpected: {expected:?}\n{:?}",
                        organisation.model.series()
                    );
                    *kinds.entry(kind(&expected)).or_default() += 1;
                }
            }
        }
    }
    assert_all_stored(&app, &organisations).await;
    // A rule that applied to few answers is not tested.
    assert!(kinds.len() == 12 && kinds.values().all(|count| *count >= 20), "{kinds:#?}");
}

fn kind(expected: &Expected) -> String {
    match expected {
        Expected::New(_) => "new".to_owned(),
        Expected::Resent(_) => "again".to_owned(),
        Expected::Error(message, _) => (*message).to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_answers_are_those_of_the_model_in_some_order() {
    let seed = 20_261_123;
    let (app, mut organisations, mut random) = start(seed).await;
    let mut now: Timestamp = NOW.parse().unwrap();
    for round in 0..ROUNDS {
        now += SignedDuration::from_secs(random.random_range(0..20_000));
        app.clock.set(&now.to_string());
        for organisation in &mut organisations {
            let today = organisation.day(now);
            let calls: Vec<_> = (0..5)
                .map(|_| {
                    let customer = format!("c{}", round / 2 * 2 + random.random_range(0..2_usize));
                    let context = IssueContext { customer, store: random.random_range(10..12), today };
                    let (app, org, ids) = (Arc::clone(&app), organisation.id, random_ids(&mut random, 2));
                    tokio::spawn(async move { ask(&app, org, context, ids).await })
                })
                .collect();
            let mut answers = Vec::new();
            for call in calls {
                answers.push(call.await.unwrap());
            }
            let accepted = organisation.accept_in_some_order(&answers, &mut Vec::new());
            assert!(
                accepted,
                "seed {seed}, round {round}: the contract allows these answers in no order: {answers:#?}\n{:?}",
                organisation.model.series()
            );
        }
    }
    assert_all_stored(&app, &organisations).await;
}
