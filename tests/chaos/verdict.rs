//! The checks at the end of a run: every answer against the stored coupons, and these against the limits of the series.
//! The only calls they make are repetitions of earlier ones.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::Ordering;

use jiff::{SignedDuration, Timestamp};
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::catalogue;
use crate::cluster::logs;
use crate::faults::{HOSTILE, World};
use crate::sale::{Denial, Known, Sale};
use crate::tills::{SETTLE_TIMEOUT, ViolationKind};

/// For how many sales the receipt is checked and the call is repeated.
pub const SAMPLE_SIZE: usize = 300;

/// A coupon becomes visible to others at most so long after the timestamp of its commit: longer than a flush takes when it is slowed
/// down.
const VISIBILITY_DELAY: SignedDuration = SignedDuration::from_millis(300);

/// The entities of keyed requests, each with its reserved coupon id, for use in a query.
pub const ENTITIES: &str = "
    with entity as (
        select r.org_id, r.key_hash, w.place - 1 as entity, r.first_coupon_id + w.place - 1 as coupon_id, w.word,
               substring(w.word from '^[0-9]+')::bigint as series_id,
               substring(w.word from '=([0-9]+)')::bigint as resent_id
          from keyed_request r, string_to_table(r.answers, ' ') with ordinality as w (word, place))";

/// Each query returns one row for each violation.
const INVARIANTS: [(&str, &str); 17] = [
    (
        "a coupon id that no request has reserved",
        "select from coupon c where not exists (
             select from entity e where (e.org_id, e.coupon_id) = (c.org_id, c.coupon_id))
           and not exists (
             select from natural_issuance n where (n.org_id, n.coupon_id) = (c.org_id, c.coupon_id))",
    ),
    (
        "a coupon id that is reserved twice",
        "select from entity group by org_id, coupon_id having count(*) > 1",
    ),
    ("two coupons with one id", "select from coupon group by org_id, coupon_id having count(*) > 1"),
    (
        "a coupon of another series than its entity",
        "select from entity e join coupon c using (org_id, coupon_id) where c.series_id <> e.series_id",
    ),
    (
        "a request with coupons of two customers",
        "select from entity e join coupon c using (org_id, coupon_id)
          group by e.org_id, e.key_hash having count(distinct c.customer_id) > 1",
    ),
    (
        "a resent coupon that does not exist, or is of another series",
        "select from entity e left join coupon c on (c.org_id, c.coupon_id) = (e.org_id, e.resent_id)
          where e.resent_id is not null and c.series_id is distinct from e.series_id",
    ),
    (
        "a new coupon of an entity that was answered with a resent one",
        "select from entity e join coupon c using (org_id, coupon_id) where e.resent_id is not null",
    ),
    (
        "a coupon without its series snapshot or its origin",
        "select from coupon c where not exists (
             select from issued_coupon i where (i.org_id, i.coupon_id) = (c.org_id, c.coupon_id) and i.code is not null)",
    ),
    (
        "two coupons with one code",
        "select from coupon where code is not null group by org_id, upper(code) having count(*) > 1",
    ),
    ("a generic coupon with another code, or another coupon with the generic code", "select code from issued_coupon where (series_id = 11) <> (code = 'FORALL')"),
    (
        "more than one coupon of a customer",
        "select customer_id from coupon where series_id in (5, 7) group by series_id, customer_id having count(*) > 1",
    ),
    ("more than three coupons of a customer", "select customer_id from coupon where series_id = 6 group by 1 having count(*) > 3"),
    (
        "more than one coupon of a customer on one day",
        "select customer_id from coupon where series_id = 8
          group by customer_id, (issued_at at time zone 'UTC')::date having count(*) > 1",
    ),
    (
        "coupons of series that exclude each other",
        "select c.code from coupon c join series_exclusion x using (org_id, series_id)
           join coupon d on (d.org_id, d.customer_id, d.series_id) = (c.org_id, c.customer_id, x.excluded_series_id)",
    ),
    (
        "a counter that differs from the number of coupons",
        "select s.series_id from series s
          where max_create is not null
            and (select max(issued) from series_counter n where n.series_id = s.series_id)
                <> (select count(*) from coupon c where c.series_id = s.series_id)",
    ),
    ("an uploaded code that is issued but still in the pool", "select code from pool_code join coupon using (org_id, code)"),
    (
        "uploaded codes that are neither issued nor in the pool, or were never uploaded",
        "select series_id from (
             select series_id, sum(accepted) as codes from code_import group by 1 union all
             select series_id, -count(*) from pool_code group by 1 union all
             select series_id, -count(*) from coupon where series_id in (9, 10) group by 1) t
          group by 1 having sum(codes) <> 0",
    ),
];

/// The outcome of all sales.
#[derive(Debug, Default)]
pub struct Totals {
    pub requests: usize,
    pub coupons: usize,
    pub resent: usize,
    pub refused: BTreeMap<u64, usize>,
    /// Sales of the sample whose answer reached the till, but whose receipt is not in the state ANSWERED.
    pub unfinished: usize,
    /// The number of lines in the services' logs, by level and message.
    pub log_lines: BTreeMap<String, usize>,
}

/// A coupon as it is stored: its customer, series and code.
type Stored = (String, i64, String);

/// Checks everything, and reports violations.
pub async fn check_all(world: &World, mut sales: Vec<Sale>, random: &mut StdRng) -> Totals {
    let mut totals = Totals { requests: sales.len(), ..Totals::default() };
    // Skipped if the services do not recover: every call would wait for its time-out.
    if sales.iter().all(Sale::is_final) {
        totals.unfinished = recheck_sample(world, &mut sales, random).await;
    }
    let mut admin = world.cluster.admin_with_statistics().await;
    check_invariants(world, &mut admin).await;
    let keys = keys(&mut admin, sales.iter().map(|sale| sale.key.as_str())).await;
    let stored = stored(&mut admin, &keys).await;
    let origins = origins(&mut admin, &keys).await;
    let all: HashSet<&Stored> = stored.values().flat_map(BTreeMap::values).collect();
    for sale in &sales {
        if let Err(why) = agrees(sale, stored.get(&sale.key), &all) {
            world.tills.report(format!("{}: {why}; {sale:?}, stored {:?}", sale.key, stored.get(&sale.key)));
        }
        for denial in &sale.denials {
            if let Some(violation) = false_denial(sale, denial, &origins) {
                world.tills.report_as(ViolationKind::DeniedStored, violation);
            }
        }
        count(sale, &mut totals);
    }
    let asked: HashSet<&str> = sales.iter().map(|sale| sale.key.as_str()).collect();
    for (key, coupons) in stored.iter().filter(|(key, _)| !asked.contains(key.as_str())) {
        if coupons.values().any(|(customer, ..)| customer != HOSTILE && customer != catalogue::COLLECTOR) {
            world.tills.report(format!("{key}: no till sent a request under the key of these coupons"));
        }
    }
    for violation in world.natural_keys.check(&mut admin).await {
        world.tills.report(violation);
    }
    verify(world).await;
    totals.log_lines = count_log_lines(world);
    totals
}

/// These keys, by their stored hash.
pub async fn keys<'k>(admin: &mut PgConnection, keys: impl Iterator<Item = &'k str>) -> HashMap<String, String> {
    let keys: Vec<&str> = keys.collect();
    let hashed = sqlx::query_as("select key_hash_1(key)::text, key from unnest($1::text[]) as key").bind(keys);
    hashed.fetch_all(admin).await.unwrap().into_iter().collect()
}

/// The stored coupons by key and entity. A key that no sale has is named by its hash.
async fn stored(admin: &mut PgConnection, keys: &HashMap<String, String>) -> HashMap<String, BTreeMap<i64, Stored>> {
    let query = format!(
        "{ENTITIES}
         select e.key_hash::text, e.entity, c.customer_id, c.series_id, c.code
           from entity e join issued_coupon c using (org_id, coupon_id)"
    );
    let mut stored: HashMap<String, BTreeMap<i64, Stored>> = HashMap::new();
    for row in sqlx::query(AssertSqlSafe(query)).fetch_all(admin).await.unwrap() {
        let coupon = (row.get("customer_id"), row.get("series_id"), row.get("code"));
        stored.entry(key_of(&row, keys)).or_default().insert(row.get("entity"), coupon);
    }
    stored
}

fn key_of(row: &PgRow, keys: &HashMap<String, String>) -> String {
    let hash: String = row.get("key_hash");
    keys.get(&hash).cloned().unwrap_or(hash)
}

/// The request that issued a coupon, and the time of the commit.
struct Origin {
    request_id: String,
    committed_at: Timestamp,
}

/// The origins of all coupons by key and entity.
async fn origins(admin: &mut PgConnection, keys: &HashMap<String, String>) -> HashMap<(String, usize), Origin> {
    let query = format!(
        "{ENTITIES}
         select e.key_hash::text, e.entity, coalesce(c.request_id, c.request_uuid::text) as request_id,
                (extract(epoch from pg_xact_commit_timestamp(c.xmin)) * 1000000)::bigint as committed_at
           from entity e join coupon c using (org_id, coupon_id)"
    );
    let origin = |row: PgRow| {
        let entity: i64 = row.get("entity");
        let committed_at = Timestamp::from_microsecond(row.get("committed_at")).unwrap();
        let origin = Origin { request_id: row.get("request_id"), committed_at };
        ((key_of(&row, keys), usize::try_from(entity).unwrap()), origin)
    };
    sqlx::query(AssertSqlSafe(query)).fetch_all(admin).await.unwrap().into_iter().map(origin).collect()
}

/// A 786 ("not stored") is false if its own request issued the coupon, or if the coupon was committed before that request was sent. A
/// coupon that a later attempt issued proves nothing, nor does one of a concurrent attempt, since the order of the two is unknown here.
fn false_denial(sale: &Sale, denial: &Denial, origins: &HashMap<(String, usize), Origin>) -> Option<String> {
    let origin = origins.get(&(sale.key.clone(), denial.entity))?;
    let before = origin.committed_at.checked_add(VISIBILITY_DELAY).unwrap() < denial.asked_at;
    (before || origin.request_id == denial.request_id).then(|| {
        let (Denial { entity, request_id, asked_at }, Origin { request_id: issued_by, committed_at }) = (denial, origin);
        format!(
            "{}: request {request_id}, sent at {asked_at}, was answered 786 for entity {entity}, but request {issued_by} issued it, \
             committed at {committed_at}",
            sale.key
        )
    })
}

/// Whether the final answers of a sale show exactly the stored coupons.
fn agrees(sale: &Sale, stored: Option<&BTreeMap<i64, Stored>>, all: &HashSet<&Stored>) -> Result<(), &'static str> {
    if !sale.is_final() {
        return Err("not decided within a minute");
    }
    let nothing = BTreeMap::new();
    let stored = stored.unwrap_or(&nothing);
    for ((entity, known), series) in (0_i64..).zip(&sale.known).zip(&sale.series) {
        let coupon = |code: &String| (sale.customer.clone(), *series, code.clone());
        match (known, stored.get(&entity)) {
            (Known::Issued { code, .. }, Some(stored)) if *stored == coupon(code) => {}
            (Known::Issued { .. }, Some(_)) => return Err("the stored coupon differs from the answer"),
            (Known::Issued { .. }, None) => return Err("the answer shows a coupon that is not stored"),
            // A call without an answer may have waited while a later call was refused. The replay checks for how long.
            (Known::Refused(_), Some(_)) if sale.has_unanswered_call => {}
            (_, Some(_)) => return Err("a coupon is stored that the answer does not show"),
            (Known::Resent(code), None) if !all.contains(&coupon(code)) => {
                return Err("the resent coupon is not stored");
            }
            (_, None) => {}
        }
    }
    Ok(())
}

fn count(sale: &Sale, totals: &mut Totals) {
    for known in &sale.known {
        match known {
            Known::Issued { .. } => totals.coupons += 1,
            Known::Resent(_) => totals.resent += 1,
            Known::Refused(code) => *totals.refused.entry(*code).or_default() += 1,
            Known::Nothing => {}
        }
    }
}

async fn check_invariants(world: &World, admin: &mut PgConnection) {
    for (violation, query) in INVARIANTS {
        let query = AssertSqlSafe(format!("{ENTITIES} {query}"));
        let times = sqlx::query(query).fetch_all(&mut *admin).await.unwrap().len();
        if times > 0 {
            world.tills.report(format!("{violation}: {times} times"));
        }
    }
    for (series, cap) in catalogue::caps(world.version.load(Ordering::Relaxed)) {
        let query = format!("select count(*) from coupon where series_id = {series}");
        let issued: i64 = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&mut *admin).await.unwrap();
        if issued > cap {
            world.tills.report(format!("series {series}: {issued} coupons, but a cap of {cap}"));
        }
    }
}

/// Checks the receipts of a sample and repeats its calls. Returns how many receipts were not in the state ANSWERED before that: the
/// service may lose the record of an answer that shows no coupon.
async fn recheck_sample(world: &World, sales: &mut [Sale], random: &mut StdRng) -> usize {
    let mut unfinished = 0;
    for number in 0..SAMPLE_SIZE.min(sales.len()) {
        let index = random.random_range(0..sales.len());
        let sale = &mut sales[index];
        let replica = number % 2;
        let state = receipt_state(world, sale, replica).await;
        let all_issued = sale.known.iter().all(|known| matches!(known, Known::Issued { .. }));
        if state != "ANSWERED" {
            unfinished += 1;
            if all_issued {
                world
                    .tills
                    .report(format!("{}: every coupon is issued, but the state of the receipt is {state}", sale.key));
            }
        }
        if timeout(SETTLE_TIMEOUT, world.tills.finish(sale, random)).await.is_err() {
            world.tills.report(format!("{}: repeated, and not answered within a minute", sale.key));
            return unfinished;
        }
        let state = receipt_state(world, sale, replica).await;
        if state != "ANSWERED" {
            world.tills.report(format!("{}: answered, but the state of the receipt is {state}", sale.key));
        }
    }
    unfinished
}

/// The state of a receipt, or the reason why there is no receipt. Reports coupons that contradict earlier answers.
async fn receipt_state(world: &World, sale: &Sale, replica: usize) -> String {
    let receipt = match world.tills.receipt(sale, replica).await {
        Ok((200, receipt)) => receipt,
        Ok((status, _)) => return status.to_string(),
        Err(error) => return error.to_string(),
    };
    for violation in sale.clone().apply_answer(&receipt) {
        world.tills.report(format!("receipt: {violation}"));
    }
    receipt["state"].as_str().unwrap_or_default().to_owned()
}

/// Runs the command `verify`, if the binary has it.
async fn verify(world: &World) {
    let run = |argument: &str| {
        let mut command = world.cluster.command();
        command.arg(argument);
        spawn_blocking(move || command.output().unwrap())
    };
    let help = run("--help").await.unwrap();
    if !String::from_utf8_lossy(&help.stdout).lines().any(|line| line.trim_start().starts_with("verify ")) {
        return;
    }
    let verify = run("verify").await.unwrap();
    if !verify.status.success() {
        let (output, error) = (String::from_utf8_lossy(&verify.stdout), String::from_utf8_lossy(&verify.stderr));
        world.tills.report(format!("verify: {}\n{output}{error}", verify.status));
    }
}

/// Counts the lines in the services' logs, by level and message. Reports a panic.
fn count_log_lines(world: &World) -> BTreeMap<String, usize> {
    let mut log_lines: BTreeMap<String, usize> = BTreeMap::new();
    for line in logs(&world.cluster).lines() {
        if line.contains("panic") {
            world.tills.report(format!("a service's log: {line}"));
        }
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        let text = |field: &str| line[field].as_str().unwrap_or("?").to_owned();
        *log_lines.entry(format!("{} {}", text("level"), text("message"))).or_default() += 1;
    }
    log_lines
}
