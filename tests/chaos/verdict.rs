//! What must hold once nothing is broken any more: every answer against what is stored, and what is stored against the
//! limits of the series. Changes nothing but by asking again what was asked before.

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
use crate::tills::{Denial, FINISHED_WITHIN, Known, Sale, Wrong};

/// Sales of which the receipt is looked at, and which are asked for once more.
pub const SAMPLE: usize = 300;

/// How long after the time of its commit a coupon may be there for all to see: longer than a flush takes, where it is slowed down.
const SEEN_WITHIN: SignedDuration = SignedDuration::from_millis(300);

/// The entities of keyed requests, each with the coupon id that is reserved for it: before each query.
pub const ENTITIES: &str = "
    with entity as (
        select r.org_id, r.key_hash, w.place - 1 as entity, r.first_coupon_id + w.place - 1 as coupon_id, w.word,
               substring(w.word from '^[0-9]+')::bigint as series_id,
               substring(w.word from '=([0-9]+)')::bigint as resent_id
          from keyed_request r, string_to_table(r.answers, ' ') with ordinality as w (word, place))";

/// Each returns a row for each thing that is wrong.
const MUST_BE_EMPTY: [(&str, &str); 17] = [
    (
        "a coupon whose id no request has reserved, though every request has a key",
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
        "a coupon of an entity that was not asked for",
        "select from entity e join coupon c using (org_id, coupon_id) where c.series_id <> e.series_id",
    ),
    (
        "a request of two customers",
        "select from entity e join coupon c using (org_id, coupon_id)
          group by e.org_id, e.key_hash having count(distinct c.customer_id) > 1",
    ),
    (
        "a coupon sent again that is none, or of another series",
        "select from entity e left join coupon c on (c.org_id, c.coupon_id) = (e.org_id, e.resent_id)
          where e.resent_id is not null and c.series_id is distinct from e.series_id",
    ),
    (
        "a coupon of an entity that was sent another again",
        "select from entity e join coupon c using (org_id, coupon_id) where e.resent_id is not null",
    ),
    (
        "a coupon without what it showed, or whoever issued it",
        "select from coupon c where not exists (
             select from issued_coupon i where (i.org_id, i.coupon_id) = (c.org_id, c.coupon_id) and i.code is not null)",
    ),
    (
        "a code that is two coupons'",
        "select from coupon where code is not null group by org_id, upper(code) having count(*) > 1",
    ),
    ("a generic code that is another", "select code from issued_coupon where (series_id = 11) <> (code = 'FORALL')"),
    (
        "more than one each",
        "select customer_id from coupon where series_id in (5, 7) group by series_id, customer_id having count(*) > 1",
    ),
    ("more than three each", "select customer_id from coupon where series_id = 6 group by 1 having count(*) > 3"),
    (
        "more than one a day",
        "select customer_id from coupon where series_id = 8
          group by customer_id, (issued_at at time zone 'UTC')::date having count(*) > 1",
    ),
    (
        "coupons of series that exclude each other",
        "select c.code from coupon c join series_exclusion x using (org_id, series_id)
           join coupon d on (d.org_id, d.customer_id, d.series_id) = (c.org_id, c.customer_id, x.excluded_series_id)",
    ),
    (
        "a counter that is not the number of its coupons",
        "select s.series_id from series s
          where max_create is not null
            and (select max(issued) from series_counter n where n.series_id = s.series_id)
                <> (select count(*) from coupon c where c.series_id = s.series_id)",
    ),
    ("an uploaded code that is given out and left", "select code from pool_code join coupon using (org_id, code)"),
    (
        "uploaded codes that are neither given out nor left, or were never uploaded",
        "select series_id from (
             select series_id, sum(accepted) as codes from code_import group by 1 union all
             select series_id, -count(*) from pool_code group by 1 union all
             select series_id, -count(*) from coupon where series_id in (9, 10) group by 1) t
          group by 1 having sum(codes) <> 0",
    ),
];

/// What became of all sales.
#[derive(Debug, Default)]
pub struct Totals {
    pub requests: usize,
    pub coupons: usize,
    pub resent: usize,
    pub refused: BTreeMap<u64, usize>,
    /// Of a sample, those whose answer reached the till and whose end was never stored.
    pub interrupted: usize,
    /// Lines of the services' logs, by what they say.
    pub logged: BTreeMap<String, usize>,
}

/// A coupon as it is stored: its customer, series and code.
type Stored = (String, i64, String);

/// Looks at everything, and complains about what must not be.
pub async fn reach(world: &World, mut sales: Vec<Sale>, random: &mut StdRng) -> Totals {
    let mut totals = Totals { requests: sales.len(), ..Totals::default() };
    // Not of services that do not work any more: it would take for ever.
    if sales.iter().all(Sale::is_final) {
        totals.interrupted = ask_again(world, &mut sales, random).await;
    }
    let mut admin = world.cluster.admin_with_statistics().await;
    limits_hold(world, &mut admin).await;
    let keys = keys(&mut admin, sales.iter().map(|sale| sale.key.as_str())).await;
    let stored = stored(&mut admin, &keys).await;
    let origins = origins(&mut admin, &keys).await;
    let all: HashSet<&Stored> = stored.values().flat_map(BTreeMap::values).collect();
    for sale in &sales {
        if let Err(wrong) = agrees(sale, stored.get(&sale.key), &all) {
            world.shop.complain(format!("{}: {wrong}; {sale:?}, stored {:?}", sale.key, stored.get(&sale.key)));
        }
        for denial in &sale.denials {
            if let Some(wrong) = was_stored(sale, denial, &origins) {
                world.shop.complain_about(Wrong::DeniedStored, wrong);
            }
        }
        count(sale, &mut totals);
    }
    let asked: HashSet<&str> = sales.iter().map(|sale| sale.key.as_str()).collect();
    for (key, coupons) in stored.iter().filter(|(key, _)| !asked.contains(key.as_str())) {
        if coupons.values().any(|(customer, ..)| customer != HOSTILE && customer != catalogue::COLLECTOR) {
            world.shop.complain(format!("{key}: coupons of a request that nobody made"));
        }
    }
    for wrong in world.natural_keys.verdict(&mut admin).await {
        world.shop.complain(wrong);
    }
    verify(world).await;
    totals.logged = logged(world);
    totals
}

/// These keys, by what is stored of them.
pub async fn keys<'k>(admin: &mut PgConnection, keys: impl Iterator<Item = &'k str>) -> HashMap<String, String> {
    let keys: Vec<&str> = keys.collect();
    let hashed = sqlx::query_as("select key_hash_1(key)::text, key from unnest($1::text[]) as key").bind(keys);
    hashed.fetch_all(admin).await.unwrap().into_iter().collect()
}

/// What is stored, by key (of one that no sale has, what is stored of it) and entity.
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

/// Which request has issued a coupon, and when it was committed.
struct Origin {
    request_id: String,
    committed_at: Timestamp,
}

/// By key and entity.
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

/// What is wrong with saying that nothing of an entity was stored: the very request that was answered so has issued it, or an
/// attempt whose coupon was there before that request was sent. One that a later attempt has issued is as it should be, and of
/// one that was at work at the same time nobody can tell here which was first.
fn was_stored(sale: &Sale, denial: &Denial, origins: &HashMap<(String, usize), Origin>) -> Option<String> {
    let origin = origins.get(&(sale.key.clone(), denial.entity))?;
    let before = origin.committed_at.checked_add(SEEN_WITHIN).unwrap() < denial.asked_at;
    (before || origin.request_id == denial.request_id).then(|| {
        let (Denial { entity, request_id, asked_at }, Origin { request_id: issued_by, committed_at }) = (denial, origin);
        format!(
            "{}: entity {entity} was told 786 by {request_id}, sent at {asked_at}, and {issued_by} has issued it, committed at \
             {committed_at}",
            sale.key
        )
    })
}

/// Whether what a till knows in the end is what is stored: no coupon less, and none more.
fn agrees(sale: &Sale, stored: Option<&BTreeMap<i64, Stored>>, all: &HashSet<&Stored>) -> Result<(), &'static str> {
    if !sale.is_final() {
        return Err("not finished within a minute");
    }
    let nothing = BTreeMap::new();
    let stored = stored.unwrap_or(&nothing);
    for ((entity, known), series) in (0_i64..).zip(&sale.known).zip(&sale.series) {
        let coupon = |code: &String| (sale.customer.clone(), *series, code.clone());
        match (known, stored.get(&entity)) {
            (Known::Issued { code, .. }, Some(stored)) if *stored == coupon(code) => {}
            (Known::Issued { .. }, Some(_)) => return Err("another coupon is stored than was answered"),
            (Known::Issued { .. }, None) => return Err("an answered coupon is not stored"),
            // A call that was cut off may have waited for its turn while a later one was refused; the replay knows for how long.
            (Known::Refused(_), Some(_)) if sale.is_cut_off => {}
            (_, Some(_)) => return Err("a coupon is stored that was not answered"),
            (Known::Resent(code), None) if !all.contains(&coupon(code)) => {
                return Err("what was sent again is not stored");
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

async fn limits_hold(world: &World, admin: &mut PgConnection) {
    for (what, query) in MUST_BE_EMPTY {
        let query = AssertSqlSafe(format!("{ENTITIES} {query}"));
        let wrong = sqlx::query(query).fetch_all(&mut *admin).await.unwrap().len();
        if wrong > 0 {
            world.shop.complain(format!("{what}: {wrong} times"));
        }
    }
    for (series, cap) in catalogue::caps(world.version.load(Ordering::Relaxed)) {
        let query = format!("select count(*) from coupon where series_id = {series}");
        let issued: i64 = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&mut *admin).await.unwrap();
        if issued > cap {
            world.shop.complain(format!("series {series}: {issued} coupons, and a cap of {cap}"));
        }
    }
}

/// Looks at the receipts of a sample and asks for it once more. Returns for how many the receipt did not know that they had
/// been answered: what an answer told without a coupon is not kept at all costs.
async fn ask_again(world: &World, sales: &mut [Sale], random: &mut StdRng) -> usize {
    let mut interrupted = 0;
    for number in 0..SAMPLE.min(sales.len()) {
        let one = random.random_range(0..sales.len());
        let sale = &mut sales[one];
        let replica = number % 2;
        let known = receipt_state(world, sale, replica).await;
        let all_issued = sale.known.iter().all(|known| matches!(known, Known::Issued { .. }));
        if known != "ANSWERED" {
            interrupted += 1;
            if all_issued {
                world.shop.complain(format!("{}: all of it is issued, and its receipt says {known}", sale.key));
            }
        }
        if timeout(FINISHED_WITHIN, world.shop.finish(sale, random)).await.is_err() {
            world.shop.complain(format!("{}: asked once more, and without an answer for a minute", sale.key));
            return interrupted;
        }
        let known = receipt_state(world, sale, replica).await;
        if known != "ANSWERED" {
            world.shop.complain(format!("{}: was answered, and its receipt says {known}", sale.key));
        }
    }
    interrupted
}

/// The state that a receipt tells, with what must hold for each.
async fn receipt_state(world: &World, sale: &Sale, replica: usize) -> String {
    let receipt = match world.shop.receipt(sale, replica).await {
        Ok((200, receipt)) => receipt,
        Ok((status, _)) => return status.to_string(),
        Err(error) => return error.to_string(),
    };
    let mut told = sale.clone();
    for wrong in told.learn(&receipt) {
        world.shop.complain(format!("receipt: {wrong}"));
    }
    receipt["state"].as_str().unwrap_or_default().to_owned()
}

/// The binary's own opinion, where it has one.
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
        let (told, error) = (String::from_utf8_lossy(&verify.stdout), String::from_utf8_lossy(&verify.stderr));
        world.shop.complain(format!("verify: {}\n{told}{error}", verify.status));
    }
}

/// How often the services have logged what. A panic is complained about.
fn logged(world: &World) -> BTreeMap<String, usize> {
    let mut logged: BTreeMap<String, usize> = BTreeMap::new();
    for line in logs(&world.cluster).lines() {
        if line.contains("panic") {
            world.shop.complain(format!("a service's log: {line}"));
        }
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        let text = |field: &str| line[field].as_str().unwrap_or("?").to_owned();
        *logged.entry(format!("{} {}", text("level"), text("message"))).or_default() += 1;
    }
    logged
}
