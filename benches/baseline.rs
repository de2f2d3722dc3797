//! The baseline of the benchmarks: the same endpoint, rules, row and answer as the service, but with an explicit transaction from Rust
//! for each coupon. Idiomatic axum and sqlx: a connection pool, prepared statements, the series of a request in parallel, cached
//! credentials. It supports only what is compared: tills, customers by id, and series with generated codes. Other series (with a cap,
//! exclusions, uploaded codes) count as unknown.
//!
//!     DATABASE_URL=postgres://… baseline 127.0.0.1:18081 16         # the address to listen on, connections to Postgres

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context;
use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordVerifier};
use axum::extract::rejection::JsonRejection;
use axum::extract::{Query, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::civil::{Date, Time, time};
use jiff::tz::{Offset, TimeZone};
use md5::{Digest, Md5};
use rand::RngExt;
use rand::rngs::ThreadRng;
use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::types::Json as Jsonb;
use uuid::Uuid;

/// The same as in the service.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ALPHANUMERIC: &[u8] = b"23456789ABCDEFGHJKMNPQRSTUVWXYZ";
const DIGITS: &[u8] = b"0123456789";
/// How often one coupon is tried, each time with another code and ordinal.
const MAX_ATTEMPTS: usize = 10;

struct App {
    pool: PgPool,
    /// By the value of the header `Authorization`.
    callers: RwLock<HashMap<HeaderValue, Arc<Caller>>>,
}

#[derive(FromRow)]
struct CallerRow {
    org_id: i64,
    till_id: String,
    store_id: i64,
    password_hash: String,
    time_zone: String,
}

struct Caller {
    org_id: i64,
    till_id: String,
    store_id: i64,
    zone: TimeZone,
    /// The number of each source's origin.
    origins: RwLock<HashMap<String, i32>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    series_ids: Vec<i64>,
    customer: Customer,
    metadata: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Customer {
    id: Id,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Number(i64),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IssueQuery {
    source: Option<String>,
    account_id: Option<String>,
}

/// Shared by the coupons of a request.
struct RequestContext {
    caller: Arc<Caller>,
    customer_id: String,
    origin_id: i32,
    account_id: Option<String>,
    metadata: Option<serde_json::Value>,
    request_id: Uuid,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    response: Vec<EntityBody>,
    total_count: usize,
    failure_count: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EntityBody {
    entity_id: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Issued>,
    errors: Vec<Item>,
    warnings: Vec<Item>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Issued {
    code: String,
    series_id: i64,
    description: String,
    discount_code: String,
    valid_till: String,
    discount_type: String,
    discount_value: i64,
    discount_upto: i64,
    discount_on: &'static str,
    detailed_info: String,
    redemption_count: i32,
    id: u8,
    valid_till_date_time: String,
}

#[derive(Serialize)]
struct Item {
    status: bool,
    code: u32,
    message: &'static str,
    retryable: bool,
}

/// Why no coupon is issued.
enum Refusal {
    Rule(u32, &'static str),
    Database(sqlx::Error),
}

impl From<sqlx::Error> for Refusal {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

/// The input of the rules, read in the transaction: the series, the day in the organisation's time zone, and, if the series limits
/// coupons per customer, how many the customer has and the number of the last.
#[derive(FromRow)]
struct Rules {
    version: i32,
    description: String,
    info: String,
    discount_code: Option<String>,
    discount_type: String,
    discount_value: i64,
    discount_upto: i64,
    expires_on: jiff_sqlx::Date,
    redemption_valid_from: Option<jiff_sqlx::Date>,
    today: jiff_sqlx::Date,
    alpha_numeric: bool,
    random_code_length: i32,
    coupon_prefix: String,
    coupon_suffix: String,
    is_multiple_vouchers_per_user_allowed: bool,
    max_vouchers_per_user: Option<i32>,
    store_ids: Vec<i64>,
    externally_managed: bool,
    received: Option<i32>,
    last_ordinal: Option<i32>,
}

const RULES: &str = "
    select s.version, s.description, s.info, s.discount_code, s.discount_type, s.discount_value, s.discount_upto,
           least(s.valid_till_date, case s.expiry_strategy_type
               when 'DAYS' then d.today + s.expiry_strategy_value
               when 'MONTHS_END' then (date_trunc('month', d.today)
                                       + make_interval(months => s.expiry_strategy_value + 1) - interval '1 day')::date
           end) as expires_on,
           s.redemption_valid_from, d.today, s.alpha_numeric, s.random_code_length, s.coupon_prefix, s.coupon_suffix,
           s.is_multiple_vouchers_per_user_allowed, s.max_vouchers_per_user, s.store_ids, s.externally_managed,
           c.received, c.last_ordinal
      from organisation o
      join series s on s.org_id = o.org_id and s.series_id = $2
     cross join lateral (select (now() at time zone o.time_zone)::date as today) d
      left join lateral (
           select (count(*) filter (where c.revoked_at is null))::integer as received,
                  coalesce(max(c.ordinal), 0) as last_ordinal
             from coupon c
            where c.org_id = s.org_id and c.customer_id = $3 and c.series_id = s.series_id
           having s.max_vouchers_per_user is not null or not s.is_multiple_vouchers_per_user_allowed) c on true
     where o.org_id = $1 and s.client_handling_type = 'DISC_CODE' and s.max_create is null
       and s.min_days_between_vouchers is null and s.mutual_exclusive_series_ids = '{}'";

const INSERT: &str = "
    insert into coupon (org_id, coupon_id, series_id, issued_at, request_uuid, series_version, origin_id, expires_on,
                        ordinal, customer_id, code, account_id, metadata)
    values ($1, nextval('baseline_id'), $2, now(), $3, $4, $5, $6, $7, $8, $9, $10, $11)";

/// Above all ids that the service leases and the bare insert uses.
const IDS: &str = "create sequence if not exists baseline_id start 2000000000000";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL is missing")?;
    let mut arguments = std::env::args().skip(1);
    let listen = arguments.next().unwrap_or_else(|| "127.0.0.1:18081".to_owned());
    let connections =
        arguments.next().map_or(Ok(16), |argument| argument.parse()).context("the number of connections")?;
    // A ping before each transaction would cost another round trip.
    let pool = PgPoolOptions::new()
        .min_connections(connections)
        .max_connections(connections)
        .test_before_acquire(false)
        .connect(&url)
        .await?;
    sqlx::query(IDS).execute(&pool).await?;
    let app = Arc::new(App { pool, callers: RwLock::default() });
    let router = Router::new()
        .route("/v2/coupon/bulk/issue", post(issue_bulk))
        .route("/readyz", get(|| async {}))
        .with_state(app);
    let listener = tokio::net::TcpListener::bind(&listen).await.with_context(|| listen.clone())?.tap_io(|connection| {
        let _ = connection.set_nodelay(true);
    });
    Ok(axum::serve(listener, router).await?)
}

async fn issue_bulk(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Query(query): Query<IssueQuery>,
    body: Result<Json<Body>, JsonRejection>,
) -> Result<Response, Response> {
    let caller = caller(&app, &headers).await?;
    let Json(body) = body.map_err(IntoResponse::into_response)?;
    if body.series_ids.is_empty() || body.series_ids.len() > 100 {
        return Err(StatusCode::BAD_REQUEST.into_response());
    }
    let source = query.source.unwrap_or_else(|| "INSTORE".to_owned());
    let origin_id = origin(&app, &caller, source).await.map_err(unavailable)?;
    let context = Arc::new(RequestContext {
        caller,
        customer_id: match body.customer.id {
            Id::Text(text) => text,
            Id::Number(number) => number.to_string(),
        },
        origin_id,
        account_id: query.account_id,
        metadata: body.metadata,
        request_id: Uuid::new_v4(),
    });
    let issue = |series_id: &i64| tokio::spawn(entity(Arc::clone(&app), Arc::clone(&context), *series_id));
    let tasks: Vec<_> = body.series_ids.iter().map(issue).collect();
    let mut response = Vec::with_capacity(tasks.len());
    for task in tasks {
        response.push(task.await.map_err(|_panic| StatusCode::INTERNAL_SERVER_ERROR.into_response())?);
    }
    let failure_count = response.iter().filter(|entity| !entity.errors.is_empty()).count();
    let answer = Answer { total_count: response.len(), failure_count, response };
    Ok(([("x-cap-request-id", context.request_id.to_string())], Json(answer)).into_response())
}

/// The caller from the cache, or looked up and verified.
async fn caller(app: &App, headers: &HeaderMap) -> Result<Arc<Caller>, Response> {
    let unauthorized = || StatusCode::UNAUTHORIZED.into_response();
    let header = headers.get(AUTHORIZATION).ok_or_else(unauthorized)?;
    let cached = app.callers.read().unwrap_or_else(PoisonError::into_inner).get(header).map(Arc::clone);
    if let Some(caller) = cached {
        return Ok(caller);
    }
    let found = log_in(app, header).await.map_err(unavailable)?;
    let caller = Arc::new(found.ok_or_else(unauthorized)?);
    let mut callers = app.callers.write().unwrap_or_else(PoisonError::into_inner);
    callers.insert(header.clone(), Arc::clone(&caller));
    Ok(caller)
}

fn unavailable(error: impl std::fmt::Display) -> Response {
    eprintln!("{error:#}");
    StatusCode::SERVICE_UNAVAILABLE.into_response()
}

/// The caller's origin for a source, from the cache or looked up.
async fn origin(app: &App, caller: &Caller, source: String) -> Result<i32, sqlx::Error> {
    let cached = caller.origins.read().unwrap_or_else(PoisonError::into_inner).get(&source).copied();
    if let Some(origin_id) = cached {
        return Ok(origin_id);
    }
    let origin_id = sqlx::query_scalar("select origin_1($1, $2, $3, $4, null)")
        .bind(caller.org_id)
        .bind(caller.store_id)
        .bind(&source)
        .bind(&caller.till_id)
        .fetch_one(&app.pool)
        .await?;
    caller.origins.write().unwrap_or_else(PoisonError::into_inner).insert(source, origin_id);
    Ok(origin_id)
}

async fn log_in(app: &App, header: &HeaderValue) -> anyhow::Result<Option<Caller>> {
    let pair = header.to_str().ok().and_then(|text| text.strip_prefix("Basic "));
    let pair = pair.and_then(|pair| String::from_utf8(BASE64.decode(pair).ok()?).ok());
    let Some((till_id, password)) = pair.as_deref().and_then(|pair| pair.split_once(':')) else { return Ok(None) };
    let till: Option<CallerRow> = sqlx::query_as(
        "select t.org_id, t.till_id, t.store_id, t.password_hash, o.time_zone
           from till t
           join store s on s.org_id = t.org_id and s.store_id = t.store_id
           join organisation o on o.org_id = t.org_id
          where t.till_id = $1 and not t.disabled and coalesce(t.access, s.access, o.default_access) = 'write'",
    )
    .bind(till_id)
    .fetch_optional(&app.pool)
    .await?;
    let Some(till) = till else { return Ok(None) };
    let is_md5 = password.len() == 32 && password.bytes().all(|byte| byte.is_ascii_hexdigit());
    let md5 = if is_md5 {
        password.to_lowercase()
    } else {
        format!("{:032x}", u128::from_be_bytes(Md5::digest(password).into()))
    };
    let hash = till.password_hash;
    let verified = tokio::task::spawn_blocking(move || {
        PasswordHash::new(&hash).is_ok_and(|hash| Argon2::default().verify_password(md5.as_bytes(), &hash).is_ok())
    });
    if !verified.await? {
        return Ok(None);
    }
    let zone = TimeZone::get(&till.time_zone)?;
    Ok(Some(Caller {
        org_id: till.org_id,
        till_id: till.till_id,
        store_id: till.store_id,
        zone,
        origins: RwLock::default(),
    }))
}

async fn entity(app: Arc<App>, context: Arc<RequestContext>, series_id: i64) -> EntityBody {
    let (result, error) = match issue(&app, &context, series_id).await {
        Ok(issued) => (Some(issued), None),
        Err(Refusal::Rule(code, message)) => (None, Some(Item { status: false, code, message, retryable: false })),
        Err(Refusal::Database(error)) => {
            eprintln!("series {series_id}: {error}");
            let message = "Coupon processing failed, Please try again later";
            (None, Some(Item { status: false, code: 786, message, retryable: true }))
        }
    };
    EntityBody { entity_id: series_id, result, errors: error.into_iter().collect(), warnings: Vec::new() }
}

/// Issues a coupon in a transaction, and retries in another one if the code or number already exists.
async fn issue(app: &App, context: &RequestContext, series_id: i64) -> Result<Issued, Refusal> {
    for _ in 1..MAX_ATTEMPTS {
        match try_to_issue(app, context, series_id).await {
            Err(Refusal::Database(sqlx::Error::Database(error))) if error.is_unique_violation() => {}
            result => return result,
        }
    }
    try_to_issue(app, context, series_id).await
}

async fn try_to_issue(app: &App, context: &RequestContext, series_id: i64) -> Result<Issued, Refusal> {
    let caller = &context.caller;
    let mut transaction = app.pool.begin().await?;
    let rules: Option<Rules> = sqlx::query_as(RULES)
        .bind(caller.org_id)
        .bind(series_id)
        .bind(&context.customer_id)
        .fetch_optional(&mut *transaction)
        .await?;
    let rules = rules.ok_or(Refusal::Rule(707, "Coupon Series ID is invalid"))?;
    check(&rules, caller)?;
    let code = draw(&rules);
    sqlx::query(INSERT)
        .bind(caller.org_id)
        .bind(series_id)
        .bind(context.request_id)
        .bind(rules.version)
        .bind(context.origin_id)
        .bind(rules.expires_on)
        .bind(rules.last_ordinal.map(|last| last + 1))
        .bind(&context.customer_id)
        .bind(&code)
        .bind(&context.account_id)
        .bind(context.metadata.as_ref().map(Jsonb))
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(issued(rules, series_id, code, &caller.zone))
}

/// In the order of docs/contract.md.
fn check(rules: &Rules, caller: &Caller) -> Result<(), Refusal> {
    let expires_on = rules.expires_on.to_jiff();
    if rules.externally_managed {
        return Err(Refusal::Rule(777, "coupon source not valid for issue coupon"));
    }
    if !rules.store_ids.is_empty() && !rules.store_ids.contains(&caller.store_id) {
        return Err(Refusal::Rule(735, "Invalid store"));
    }
    if expires_on < rules.today.to_jiff() || rules.redemption_valid_from.is_some_and(|from| from.to_jiff() > expires_on)
    {
        return Err(Refusal::Rule(712, "Coupon Series has expired"));
    }
    let received = rules.received.unwrap_or(0);
    if received > 0 && !rules.is_multiple_vouchers_per_user_allowed {
        return Err(Refusal::Rule(709, "Coupon processing failed: user already has a coupon"));
    }
    if rules.max_vouchers_per_user.is_some_and(|max| received >= max) {
        return Err(Refusal::Rule(730, "Unknown error : MAX_COUPON_ISSUAL_PER_USER_EXCEEDED"));
    }
    Ok(())
}

fn draw(rules: &Rules) -> String {
    let alphabet = if rules.alpha_numeric { ALPHANUMERIC } else { DIGITS };
    let mut random = ThreadRng::default();
    let letters = (0..rules.random_code_length).map(|_| char::from(alphabet[random.random_range(..alphabet.len())]));
    let mut code = rules.coupon_prefix.clone();
    code.extend(letters);
    code.push_str(&rules.coupon_suffix);
    code
}

fn issued(rules: Rules, series_id: i64, code: String, zone: &TimeZone) -> Issued {
    let expires_on = rules.expires_on.to_jiff();
    Issued {
        code,
        series_id,
        description: rules.description,
        discount_code: rules.discount_code.unwrap_or_else(|| "NO_VALUE".to_owned()),
        valid_till: rfc3339(expires_on, Time::midnight(), zone),
        discount_type: rules.discount_type,
        discount_value: rules.discount_value,
        discount_upto: rules.discount_upto,
        discount_on: "BILL",
        detailed_info: rules.info,
        redemption_count: 0,
        id: 0,
        valid_till_date_time: rfc3339(expires_on, time(23, 59, 59, 0), zone),
    }
}

fn rfc3339(day: Date, time: Time, zone: &TimeZone) -> String {
    let at = zone.to_ambiguous_timestamp(day.to_datetime(time)).compatible().unwrap_or_default();
    match zone.to_offset(at) {
        Offset::UTC => at.to_string(),
        offset => at.display_with_offset(offset).to_string(),
    }
}
