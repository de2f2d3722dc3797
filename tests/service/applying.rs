//! Configuration as code: what `apply` changes, reports and rejects, and how a running service follows. `apply` takes a file as a whole
//! or not at all, and deletes nothing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coupon_issuer::provisioning::{self, ApplyError, Report};
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions};

use crate::support::{ORG, TestApp, close, failure, new_database, outcomes, repeatable_series, tally};

async fn apply(connect: &PgConnectOptions, file: &str) -> Report {
    provisioning::apply_text(connect, file).await.unwrap()
}

async fn apply_file(connect: &PgConnectOptions, path: &Path) -> Result<Report, ApplyError> {
    provisioning::apply(connect, &provisioning::read(path)?).await
}

/// The error of a file that `apply` must reject.
async fn apply_error(connect: &PgConnectOptions, file: &str) -> String {
    format!("{:#}", provisioning::apply_text(connect, file).await.unwrap_err())
}

/// Every row that `apply` may write, as text.
async fn stored(connect: &PgConnectOptions) -> Vec<String> {
    let mut connection = connect.connect().await.unwrap();
    let mut stored = Vec::new();
    let tables = "organisation store till token_issuer oauth_client customer series series_version series_counter series_exclusion till_name client_name";
    for table in tables.split(' ') {
        let rows = sqlx::query_scalar(AssertSqlSafe(format!("select '{table} ' || t::text from {table} t order by 1")));
        stored.extend(rows.fetch_all(&mut connection).await.unwrap());
    }
    close(connection).await;
    stored
}

async fn text(connect: &PgConnectOptions, query: &str) -> String {
    let mut connection = connect.connect().await.unwrap();
    let text = sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_one(&mut connection).await.unwrap();
    close(connection).await;
    text
}

/// A smaller organisation than [`ORG`]: `apply` hashes one password only, and hashing is slow.
fn small(series: &[String]) -> String {
    let org = r#"
[[orgs]]
id = 1
name = "Test Retail"
default_access = "write"
[[orgs.stores]]
id = 10
name = "Downtown"
[[orgs.stores]]
id = 11
name = "Head office"
[[orgs.tills]]
id = "store.server"
store_id = 10
password = "server123"
"#;
    format!("{org}{}", series.concat())
}

async fn small_app(series: &[String]) -> TestApp {
    TestApp::start_with(&small(series), |_| {}).await
}

const REGISTERED: &str = r#"
[[orgs.customers]]
id = "c1"
mobile = "+91 99000 00001"
email = "One@Example.com"
external_id = "crm/1"
[[orgs.customers]]
id = "c2"
mobile = "919900000002"
email = "two@example.com"
"#;

fn registered() -> String {
    small(&[repeatable_series(1, "")]).replace("default_access", "customer_policy = \"registered\"\ndefault_access")
        + REGISTERED
}

/// Every setting of tills, token issuers and OAuth clients. Append it to [`ORG`].
const CALLERS: &str = r#"
[[orgs.tills]]
id = "kiosk"
store_id = 11
password = "kiosk123"
access = "write"
disabled = true
rate_limit_per_minute = 30
[[orgs.token_issuers]]
issuer = "https://login.example.com/realms/shop"
audience = "coupons"
jwks_url = "https://keys.example.com/jwks?use=sig"
client_claim = "azp"
algorithms = ["ES256", "RS256"]
[[orgs.token_issuers]]
issuer = "http://127.0.0.1:8081"
audience = "coupons"
[[orgs.oauth_clients]]
key = "partner"
token_issuer = "https://login.example.com/realms/shop"
till = "kiosk"
access = "write"
disabled = false
rate_limit_per_minute = -1
"#;

/// [`ORG`] with [`CALLERS`], and a rate limit for the organisation.
fn with_callers() -> String {
    ORG.replace("default_access", "rate_limit_per_minute = 600\ndefault_access") + CALLERS
}

/// `verify` needs the time to judge an overrun. Each series has its own, from the database's clock.
#[tokio::test]
async fn a_change_of_a_limit_of_a_series_is_stored_with_its_time() {
    let connect = new_database().await;
    let clock = async || text(&connect, "select clock_timestamp()::text").await;
    let limits_changed_at = async |id: i64| {
        text(&connect, &format!("select coalesce(max(limits_changed_at)::text, '') from series where series_id = {id}"))
            .await
    };
    let mut before = String::new();
    for (settings, changes_limits) in [
        ("", true),
        ("max_create = 5", true),
        ("max_create = 5\nstore_ids = [10]\nrandom_code_length = 12", false),
        ("max_create = 4", true),
        ("max_create = 4", false),
        ("", true),
        ("is_multiple_vouchers_per_user_allowed = false", true),
        ("", true),
        ("max_vouchers_per_user = 3", true),
        ("", true),
        ("do_not_resend_existing_voucher = false", true),
        ("", true),
        ("min_days_between_vouchers = 2", true),
        ("", true),
        ("mutual_exclusive_series_ids = [2]", true),
    ] {
        let (from, other_before) = (clock().await, limits_changed_at(2).await);
        apply(&connect, &small(&[repeatable_series(1, settings), repeatable_series(2, "")])).await;
        let (now, until) = (limits_changed_at(1).await, clock().await);
        if changes_limits {
            assert!(from < now && now < until, "{settings}: {from} < {now} < {until}");
        } else {
            assert_eq!(now, before, "{settings}");
        }
        assert!(other_before.is_empty() || other_before == limits_changed_at(2).await);
        before = now;
    }
}

/// A coupon names the version of its series, so that a retry shows the series as the first response did.
#[tokio::test]
async fn each_change_of_what_answers_show_of_a_series_makes_a_version() {
    let connect = new_database().await;
    let versions = async || {
        let versions = "select concat_ws(' ', v.series_id, v.version, v.description, v.info, v.discount_code, v.discount_type,
                                         v.discount_value, v.discount_upto, v.generic_code, v.time_zone,
                                         case when v.version = s.version then 'now' end)
                          from series_version v join series s using (org_id, series_id) order by v.series_id, v.version";
        values(&connect, versions).await
    };
    let generic = "client_handling_type = \"GENERIC\"\ngeneric_code = \"spring\"";
    let first = small(&[repeatable_series(1, ""), repeatable_series(2, generic)]);
    apply(&connect, &first).await;
    let (one, two) = ("1 1 Series 1 Info 1 ABS 500 0 UTC", "2 1 Series 2 Info 2 ABS 500 0 SPRING UTC");
    assert_eq!(versions().await, [format!("{one} now"), format!("{two} now")]);

    // A change of what no answer shows makes no version.
    let unshown = "max_create = 5\nstore_ids = [10]\nrandom_code_length = 12\nvalid_till_date = \"2027-05-10\"";
    apply(
        &connect,
        &small(&[repeatable_series(1, unshown), repeatable_series(2, generic)]).replace("Downtown", "Uptown"),
    )
    .await;
    assert_eq!(versions().await, [format!("{one} now"), format!("{two} now")]);

    let changed = repeatable_series(1, "discount_code = \"A\"\ndiscount_upto = 7").replace("\"Series 1\"", "\"One\"");
    let changed = changed.replace("\"Info 1\"", "\"\"").replace("\"ABS\"", "\"PERC\"").replace("= 500", "= 5");
    apply(&connect, &small(&[changed.clone(), repeatable_series(2, &generic.replace("spring", "summer"))])).await;
    let (one_b, two_b) = ("1 2 One  A PERC 5 7 UTC", "2 2 Series 2 Info 2 ABS 500 0 SUMMER UTC");
    assert_eq!(versions().await, [one.to_owned(), format!("{one_b} now"), two.to_owned(), format!("{two_b} now")]);

    // A new time zone makes a version of every series of the organisation, whether the file lists it or not. Another organisation's does not.
    let other = "[[orgs]]\nid = 2\nname = \"Other\"\ntime_zone = \"Europe/Paris\"\n";
    let zone = small(&[changed]).replace("default_access", "time_zone = \"Asia/Kolkata\"\ndefault_access");
    apply(&connect, &format!("{zone}{other}")).await;
    let now = ["1 3 One  A PERC 5 7 Asia/Kolkata now", "2 3 Series 2 Info 2 ABS 500 0 SUMMER Asia/Kolkata now"];
    assert_eq!(versions().await, [one, one_b, now[0], two, two_b, now[1]]);
    assert_eq!(apply(&connect, &format!("{zone}{other}")).await.changes, [""; 0]);

    // A return to earlier values makes a version with a new number.
    apply(&connect, &first.replace("default_access", "time_zone = \"UTC\"\ndefault_access")).await;
    let again = [one.replacen("1 1", "1 4", 1) + " now", two.replacen("2 1", "2 4", 1) + " now"];
    let earlier = |version: &str| version.trim_end_matches(" now").to_owned();
    let expected = [
        one.to_owned(),
        one_b.to_owned(),
        earlier(now[0]),
        again[0].clone(),
        two.to_owned(),
        two_b.to_owned(),
        earlier(now[1]),
        again[1].clone(),
    ];
    assert_eq!(versions().await, expected);
}

/// A notification makes the replicas evict cached credentials. A file sends one if it changes a credential, and none otherwise.
#[tokio::test]
async fn a_file_that_changes_credentials_notifies_running_services_once() {
    let connect = new_database().await;
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1).connect_lazy_with(connect.clone());
    let mut listener = sqlx::postgres::PgListener::connect_with(&pool).await.unwrap();
    listener.listen("coupon_issuer_credentials").await.unwrap();
    let file = with_callers();
    let other = "[[orgs]]\nid = 2\nname = \"Other\"\n[[orgs.stores]]\nid = 10\nname = \"S\"\n";
    let steps = [
        (file.clone(), 1),
        (file.clone(), 0),
        (format!("{file}{REGISTERED}{}", repeatable_series(1, "")), 0),
        (file.replace("\"Downtown\"", "\"Uptown\""), 1),
        (file.replace("kiosk123", "kiosk124"), 1),
        (file.replace("\"azp\"", "\"client\""), 1),
        (file.replace("token_ttl_seconds = 3600", "token_ttl_seconds = 60"), 1),
        (file.replace("default_access = \"write\"", "default_access = \"none\""), 1),
        (format!("{}{other}", file.replace("rate_limit_per_minute = 600", "rate_limit_per_minute = 601")), 1),
    ];
    for (step, expected) in steps {
        assert!(apply(&connect, &step).await.changes.is_empty() == (step == file && expected == 0));
        // Notifications arrive in order: this one marks the end.
        let mut connection = connect.connect().await.unwrap();
        sqlx::query("select pg_notify('coupon_issuer_credentials', 'end')").execute(&mut connection).await.unwrap();
        close(connection).await;
        let mut notified = 0;
        while listener.recv().await.unwrap().payload() != "end" {
            notified += 1;
        }
        assert_eq!(notified, expected, "{step}");
    }
}

#[tokio::test]
async fn the_first_run_creates_and_the_second_changes_nothing() {
    let connect = new_database().await;
    let file = format!("{}{REGISTERED}{}", with_callers(), repeatable_series(1, "max_create = 5"));
    let report = apply(&connect, &file).await;
    let created = [
        "",
        "series 1",
        "store 10",
        "store 11",
        "store 12",
        "till store.server",
        "till office.desk",
        "till warehouse.gate",
        "till kiosk",
        "token_issuer https://login.example.com/realms/shop",
        "token_issuer http://127.0.0.1:8081",
        "oauth_client crm",
        "oauth_client reports",
        "oauth_client partner",
        "customer c1",
        "customer c2",
    ];
    let lines = created.map(|what| format!("org 1 {what}").trim_end().to_owned() + ": created");
    assert_eq!(report.changes, lines);
    assert_eq!(report.to_string(), format!("{}\n16 changes", lines.join("\n")));

    let before = stored(&connect).await;
    assert_eq!(apply(&connect, &file).await.to_string(), "no change");
    assert_eq!(stored(&connect).await, before);
}

#[tokio::test]
async fn the_demo_applies_and_issues() {
    let demo = include_str!("../../config/demo.toml");
    let app = TestApp::start_with(demo, |_| {}).await;
    assert_eq!(apply(&app.connect, demo).await.to_string(), "no change");
    assert_eq!(outcomes(&app.issue("566881933", &[101, 102, 103, 104, 105]).await), ["issued"; 5]);
    assert_eq!(outcomes(&app.issue("566881933", &[103, 105, 106]).await), ["709", "709", "5005"]);
}

#[tokio::test]
async fn a_change_is_reported_with_the_old_and_the_new_value() {
    let connect = new_database().await;
    let file = format!("{ORG}{REGISTERED}{}", repeatable_series(1, "coupon_prefix = \"A-\""));
    apply(&connect, &format!("{ORG}{}", repeatable_series(2, ""))).await;
    apply(&connect, &file).await;
    let changed = [
        ("name = \"Test Retail\"", "name = \"Retail \\\"Test\\\"\""),
        ("time_zone = \"UTC\"", "time_zone = \"Asia/Kolkata\""),
        ("customer_policy = \"open\"", "customer_policy = \"registered\""),
        ("default_access = \"write\"", "default_access = \"none\""),
        ("name = \"Downtown\"", "name = \"Uptown\"\naccess = \"write\""),
        ("store_id = 11", "store_id = 12"),
        ("token_ttl_seconds = 3600", "token_ttl_seconds = 60"),
        ("till = \"store.server\"\naccess = \"read\"", "till = \"office.desk\"\naccess = \"none\""),
        ("email = \"two@example.com\"", "email = \"TWO@example.org\"\nexternal_id = \"crm/2\""),
        ("discount_value = 500", "discount_value = 501\ndiscount_code = \"AUT\"\nmax_create = 7\nstore_ids = [12, 10]"),
        ("valid_till_date = \"2027-05-09\"", "valid_till_date = 2027-05-10\nmutual_exclusive_series_ids = [2]"),
        (
            "coupon_prefix = \"A-\"",
            "coupon_prefix = \"b-\"\nexpiry_strategy_type = \"DAYS\"\nexpiry_strategy_value = 3",
        ),
    ]
    .into_iter()
    .fold(file, |file, (old, new)| {
        assert_eq!(file.matches(old).count(), 1, "{old}");
        file.replace(old, new)
    });
    let expected = [
        r#"org 1: name "Test Retail" -> "Retail \"Test\"", time_zone "UTC" -> "Asia/Kolkata", customer_policy "open" -> "registered", default_access "write" -> "none""#,
        r#"org 1 series 1: discount_code "" -> "AUT", discount_value "500" -> "501", valid_till_date "2027-05-09" -> "2027-05-10", expiry_strategy_type "SERIES_EXPIRY" -> "DAYS", expiry_strategy_value "0" -> "3", max_create "unlimited" -> "7", mutual_exclusive_series_ids "[]" -> "[2]", store_ids "[]" -> "[10, 12]", coupon_prefix "A-" -> "B-""#,
        r#"org 1 store 10: name "Downtown" -> "Uptown", access "default" -> "write""#,
        r#"org 1 till office.desk: store_id "11" -> "12""#,
        r#"org 1 oauth_client crm: token_ttl_seconds "3600" -> "60""#,
        r#"org 1 oauth_client reports: till "store.server" -> "office.desk", access "read" -> "none""#,
        r#"org 1 customer c2: email "two@example.com" -> "two@example.org", external_id "" -> "crm/2""#,
    ];
    assert_eq!(apply(&connect, &changed).await.changes, expected);
    let unchanged = "org 1 series 2: not in the file, left alone\nno change";
    assert_eq!(apply(&connect, &changed).await.to_string(), unchanged);
}

async fn values(connect: &PgConnectOptions, query: &'static str) -> Vec<String> {
    let mut connection = connect.connect().await.unwrap();
    let values = sqlx::query_scalar(query).fetch_all(&mut connection).await.unwrap();
    close(connection).await;
    values
}

#[tokio::test]
async fn tills_issuers_and_clients_are_stored_as_the_file_says() {
    let connect = new_database().await;
    apply(&connect, &with_callers()).await;
    assert_eq!(values(&connect, "select rate_limit_per_minute::text from organisation").await, ["600"]);
    let tills = "select concat_ws(' ', till_id, coalesce(access, '-'), disabled, coalesce(rate_limit_per_minute, -9))
                   from till where till_id in ('kiosk', 'store.server') order by till_id";
    assert_eq!(values(&connect, tills).await, ["kiosk write t 30", "store.server - f -9"]);
    let issuers = "select concat_ws(' ', issuer, audience, coalesce(jwks_url, '-'), client_claim, algorithms::text)
                     from token_issuer order by 1";
    assert_eq!(
        values(&connect, issuers).await,
        [
            "http://127.0.0.1:8081 coupons - client_id {RS256,ES256,EdDSA}",
            "https://login.example.com/realms/shop coupons https://keys.example.com/jwks?use=sig azp {RS256,ES256}",
        ]
    );
    let clients = "select concat_ws(' ', client_key, secret_hash is null, coalesce(issuer, '-'), disabled,
                                    coalesce(rate_limit_per_minute, -9), token_ttl_seconds)
                     from oauth_client where client_key in ('crm', 'partner') order by 1";
    assert_eq!(
        values(&connect, clients).await,
        ["crm f - f -9 3600", "partner t https://login.example.com/realms/shop f 0 3600"]
    );
}

#[tokio::test]
async fn changes_of_callers_are_reported_and_omitted_settings_return_to_their_defaults() {
    let connect = new_database().await;
    apply(&connect, &with_callers()).await;
    let changed = [
        ("rate_limit_per_minute = 600", ""),
        ("access = \"write\"\ndisabled = true\nrate_limit_per_minute = 30", "disabled = false"),
        ("jwks_url = \"https://keys.example.com/jwks?use=sig\"\nclient_claim = \"azp\"", ""),
        ("[\"ES256\", \"RS256\"]", "[\"EdDSA\", \"RS256\"]"),
        ("8081\"\naudience = \"coupons\"", "8081\"\naudience = \"other\""),
        ("secret = \"crm-secret\"", "token_issuer = \"http://127.0.0.1:8081\""),
        ("token_ttl_seconds = 3600", "rate_limit_per_minute = 1"),
        ("token_issuer = \"https://login.example.com/realms/shop\"", "secret = \"0ther-Secret\""),
        ("disabled = false\nrate_limit_per_minute = -1", "disabled = true"),
    ]
    .into_iter()
    .fold(with_callers(), |file, (old, new)| {
        assert_eq!(file.matches(old).count(), 1, "{old}");
        file.replace(old, new)
    });
    let expected = [
        r#"org 1: rate_limit_per_minute "600" -> "default""#,
        r#"org 1 till kiosk: access "write" -> "default", rate_limit_per_minute "30" -> "default", disabled "true" -> "false""#,
        r#"org 1 token_issuer https://login.example.com/realms/shop: jwks_url "https://keys.example.com/jwks?use=sig" -> "", client_claim "azp" -> "client_id", algorithms "RS256, ES256" -> "RS256, EdDSA""#,
        r#"org 1 token_issuer http://127.0.0.1:8081: audience "coupons" -> "other""#,
        r#"org 1 oauth_client crm: rate_limit_per_minute "default" -> "1", token_issuer "" -> "http://127.0.0.1:8081""#,
        r#"org 1 oauth_client partner: rate_limit_per_minute "unlimited" -> "default", disabled "false" -> "true", token_issuer "https://login.example.com/realms/shop" -> "", token_ttl_seconds "3600", secret"#,
    ];
    assert_eq!(apply(&connect, &changed).await.changes, expected);
    assert_eq!(apply(&connect, &changed).await.to_string(), "no change");
    // The order of the algorithms does not count.
    let reordered = changed.replace("[\"EdDSA\", \"RS256\"]", "[\"RS256\", \"EdDSA\"]");
    assert_eq!(apply(&connect, &reordered).await.to_string(), "no change");
}

#[tokio::test]
async fn a_disabled_till_or_client_stays_disabled_until_the_file_enables_it() {
    let connect = new_database().await;
    apply(&connect, ORG).await;
    let disabled = async || {
        values(
            &connect,
            "select till_id from till where disabled union all select client_key from oauth_client where disabled",
        )
        .await
    };
    let mut connection = connect.connect().await.unwrap();
    sqlx::raw_sql(
        "update till set disabled = true where till_id = 'store.server';
         update oauth_client set disabled = true where client_key = 'crm'",
    )
    .execute(&mut connection)
    .await
    .unwrap();
    close(connection).await;
    assert_eq!(apply(&connect, ORG).await.to_string(), "no change");
    assert_eq!(disabled().await, ["store.server", "crm"]);

    // Another change of the same till and client does not enable them either.
    let moved = ORG.replace("store_id = 10", "store_id = 12").replace("token_ttl_seconds = 3600", "");
    let moved = moved.replacen("till = \"store.server\"", "till = \"office.desk\"", 1);
    let expected = [
        r#"org 1 till store.server: store_id "10" -> "12""#,
        r#"org 1 oauth_client crm: till "store.server" -> "office.desk""#,
    ];
    assert_eq!(apply(&connect, &moved).await.changes, expected);
    assert_eq!(disabled().await, ["store.server", "crm"]);

    let enabled =
        moved.replace("store_id = 12\npassword = \"server", "store_id = 12\ndisabled = false\npassword = \"server");
    let enabled = enabled.replace("key = \"crm\"", "key = \"crm\"\ndisabled = false");
    let expected = [
        r#"org 1 till store.server: disabled "true" -> "false""#,
        r#"org 1 oauth_client crm: disabled "true" -> "false""#,
    ];
    assert_eq!(apply(&connect, &enabled).await.changes, expected);
    assert_eq!(disabled().await, [""; 0]);
}

#[tokio::test]
async fn a_token_issuer_must_have_https_urls() {
    let connect = new_database().await;
    let file = |issuer: &str, jwks_url: &str| {
        format!(
            "{}[[orgs.token_issuers]]\nissuer = \"{issuer}\"\njwks_url = \"{jwks_url}\"\naudience = \"coupons\"\n",
            small(&[])
        )
    };
    for (url, message) in [
        ("http://login.example.com", "must begin with https://"),
        ("http://127.0.0.2/", "must begin with https://"),
        ("http://localhost.example.com", "must begin with https://"),
        ("ftp://localhost/", "must begin with https://"),
        ("login.example.com", "must be a URL like"),
        ("https:login.example.com", "must be a URL like"),
        ("https://", "must be a URL like"),
        (" https://login.example.com", "must be a URL like"),
        ("https://login.example.com/a b", "must be a URL like"),
        ("https://user:hunter2@login.example.com", "must contain neither a user nor a password"),
        ("https://login.example.com/#keys", "must have no fragment"),
        ("https://login.example.com/#", "must have no fragment"),
    ] {
        let error = apply_error(&connect, &file(url, "https://keys.example.com")).await;
        assert!(error.starts_with(&format!("line 17: orgs[1].token_issuers[1].issuer: {message}")), "{url}: {error}");
        let error = apply_error(&connect, &file("https://login.example.com", url)).await;
        assert!(error.starts_with(&format!("line 18: orgs[1].token_issuers[1].jwks_url: {message}")), "{url}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    let error = apply_error(&connect, &file("https://login.example.com/?realm=shop", "https://keys.example.com")).await;
    assert!(error.contains("issuer: must have no query"), "{error}");
    assert_eq!(stored(&connect).await, [""; 0]);

    for local in ["http://127.0.0.1:8081", "http://[::1]:8081/", "http://localhost/realms/shop"] {
        apply(&connect, &file(local, &format!("{local}/keys?use=sig"))).await;
    }
    assert_eq!(values(&connect, "select issuer from token_issuer").await.len(), 3);
}

#[tokio::test]
async fn a_change_of_the_code_is_reported() {
    let connect = new_database().await;
    apply(&connect, &small(&[repeatable_series(1, "")])).await;
    let generic = repeatable_series(1, "client_handling_type = \"GENERIC\"\ngeneric_code = \"spring\"");
    let expected = r#"org 1 series 1: client_handling_type "DISC_CODE" -> "GENERIC", generic_code "SPRING""#;
    assert_eq!(apply(&connect, &small(&[generic])).await.changes, [expected]);
}

#[tokio::test]
async fn a_new_secret_is_reported_without_its_value() {
    let connect = new_database().await;
    apply(&connect, ORG).await;
    let changed = ORG.replace("server123", "0ther-Password").replace("\"crm-secret\"", "\"0ther-Secret\"");
    let changed = changed.replace("store_id = 10", "store_id = 12");
    let expected = [r#"org 1 till store.server: store_id "10" -> "12", password"#, "org 1 oauth_client crm: secret"];
    assert_eq!(apply(&connect, &changed).await.changes, expected);
    assert_eq!(apply(&connect, &changed).await.to_string(), "no change");

    let md5 = changed.replace("0ther-Password", "8A16A6B70505EB1F1FF7CDC0CD5559A7");
    assert_eq!(apply(&connect, &md5).await.changes, ["org 1 till store.server: password"]);
    let plain = changed.replace("0ther-Password", "server123");
    assert_eq!(apply(&connect, &plain).await.to_string(), "no change");
}

/// Each comment `#!` is an error that `apply` must report for its line.
const MISTAKES: &str = r#"
nonsense = true              #! nonsense: is not a key here
[[orgs]]
id = 1
name = "   "                 #! orgs[1].name: must have 1 to 255 characters
time_zone = "Mars/Olympus"   #! orgs[1].time_zone: must be an IANA time zone
customer_policy = "closed"   #! orgs[1].customer_policy: must be one of open, registered
default_access = true        #! orgs[1].default_access: must be a string
rate_limit_per_minute = 0    #! orgs[1].rate_limit_per_minute: must be -1, which is no limit, or an integer from 1
[[orgs.stores]]
id = 10
name = "Downtown"
acess = "read"               #! orgs[1].stores[1].acess: is not a key here
[[orgs.stores]]
id = 10                      #! orgs[1].stores[2].id: is listed twice
name = "Uptown"
[[orgs.stores]]              #! orgs[1].stores[3].name: is missing
id = 11
[[orgs.stores]]
id = 12
name = "Outlet"
code = " 12"                 #! orgs[1].stores[4].code: must have 1 to 255 characters, no control character, and no space around them
external_ids = ["a", "", "c", "d"] #! orgs[1].stores[4].external_ids: must contain at most three
[[orgs.stores]]
id = 13
name = "Kiosk"
code = "10"                  #! orgs[1].stores[5].code: stores 10 and 13 have the same code: "10"
external_ids = ["x", "", "c\u0007"] #! orgs[1].stores[5].external_ids: must have 1 to 255 characters, no control character
[[orgs.stores]]
id = 14
name = "Stand"
code = ""                    #! orgs[1].stores[6].code: must have 1 to 255 characters
external_ids = ["x", "a"]    #! orgs[1].stores[6].external_ids: stores 13 and 14 have the same external_id: "x"
[[orgs.stores]]
id = 15
name = "Van"
code = 15                    #! orgs[1].stores[7].code: must be a string
external_ids = "x"           #! orgs[1].stores[7].external_ids: must be an array of strings
[[orgs.tills]]
id = "till:1"                #! orgs[1].tills[1].id: must not contain a colon
store_id = 99                #! orgs[1].tills[1].store_id: is not a store of this organisation
password = "hunter2"
[[orgs.tills]]
id = "till.2"
store_id = 10
password = "hunter2"         #! orgs[1].tills[2].password: give exactly one of password, password_file and password_env
password_file = "till.2"
[[orgs.tills]]               #! orgs[1].tills[3].password: give exactly one of password, password_file and password_env
id = "till.3"
store_id = 10
[[orgs.tills]]
id = "till.2"                #! orgs[1].tills[4].id: is listed twice
store_id = "10"              #! orgs[1].tills[4].store_id: must be an integer
password_env = "NO_SUCH"     #! orgs[1].tills[4].password_env: the environment has no such variable
[[orgs.tills]]
id = "till.5"
store_id = 10
password_file = "/no/such"   #! orgs[1].tills[5].password_file: /no/such: No such file
access = "all"               #! orgs[1].tills[5].access: must be one of none, read, write
disabled = "no"              #! orgs[1].tills[5].disabled: must be true or false
rate_limit_per_minute = 0    #! orgs[1].tills[5].rate_limit_per_minute: must not be 0: use disabled = true instead
[[orgs.token_issuers]]       #! orgs[1].token_issuers[1].audience: is missing
issuer = "http://login.example.com" #! orgs[1].token_issuers[1].issuer: must begin with https://
algorithms = ["HS256"]       #! orgs[1].token_issuers[1].algorithms: may contain only RS256, ES256, EdDSA
[[orgs.token_issuers]]
issuer = "http://login.example.com" #! orgs[1].token_issuers[2].issuer: is listed twice #! orgs[1].token_issuers[2].issuer: must begin with https://
audience = ""                #! orgs[1].token_issuers[2].audience: must have 1 to 255 characters
algorithms = []              #! orgs[1].token_issuers[2].algorithms: must not be empty
[[orgs.token_issuers]]       #! orgs[1].token_issuers[3].issuer: is missing
audience = "coupons"
client_claim = " "           #! orgs[1].token_issuers[3].client_claim: must have 1 to 255 characters
algorithms = ["ES256", "ES256"] #! orgs[1].token_issuers[3].algorithms: lists ES256 twice
[[orgs.token_issuers]]
issuer = "https://sso.example.com"
audience = "coupons"
jwks_url = "keys"            #! orgs[1].token_issuers[4].jwks_url: must be a URL
algorithms = "ES256"         #! orgs[1].token_issuers[4].algorithms: must be an array of strings
[[orgs.oauth_clients]]
key = "crm"
secret = ""                  #! orgs[1].oauth_clients[1].secret: must not be empty
till = "till.9"              #! orgs[1].oauth_clients[1].till: is not a till of this organisation
access = "admin"             #! orgs[1].oauth_clients[1].access: must be one of none, read, write
token_ttl_seconds = 0        #! orgs[1].oauth_clients[1].token_ttl_seconds: must be an integer from 1 to 2592000
rate_limit_per_minute = 1000001 #! orgs[1].oauth_clients[1].rate_limit_per_minute: must be an integer from -1 to 1000000
[[orgs.oauth_clients]]       #! orgs[1].oauth_clients[2].secret: give exactly one of secret, secret_file, secret_env and token_issuer
key = "neither"
till = "till.2"
access = "read"
rate_limit_per_minute = 0    #! orgs[1].oauth_clients[2].rate_limit_per_minute: must not be 0: use disabled = true instead
[[orgs.oauth_clients]]
key = "both"
till = "till.2"
access = "read"
secret_env = "PATH"          #! orgs[1].oauth_clients[3].secret_env: give exactly one of secret, secret_file, secret_env and token_issuer
token_issuer = "https://sso.example.com"
[[orgs.oauth_clients]]
key = "stranger"
till = "till.2"
access = "read"
token_issuer = "https://sso.example.com/" #! orgs[1].oauth_clients[4].token_issuer: is not a token issuer of this organisation in this file
token_ttl_seconds = 60       #! orgs[1].oauth_clients[4].token_ttl_seconds: is allowed only with a secret
[[orgs.customers]]
id = "c"
mobile = "none"              #! orgs[1].customers[1].mobile: holds 'n', U+006E; only digits
[[orgs.customers]]
id = "c"                     #! orgs[1].customers[2].id: is listed twice, first in line 103
email = "c@example.com"
[[orgs.customers]]
id = "d"
mobile = "+91 99000 00001"
email = "d@example.com"
external_id = "  "           #! orgs[1].customers[3].external_id: must have 1 to 255 characters
[[orgs.customers]]
id = "e"
mobile = "(91) 9900000001"   #! orgs[1].customers[4].mobile: "919900000001" also belongs to customer "d", in line 110
email = "C@Example.com "     #! orgs[1].customers[4].email: "c@example.com" also belongs to customer "c", in line 107
external_id = "crm/1"
[[orgs.customers]]           #! orgs[1].customers[5].id: is missing
mobile = ""
email = ""
[[orgs.customers]]           #! orgs[1].customers[6].id: is missing
external_id = "crm/1"
[[orgs.customers]]
id = "f"
mobile = 919900000001        #! orgs[1].customers[7].mobile: must be a string
external_id = "crm/1"        #! orgs[1].customers[7].external_id: "crm/1" also belongs to customer "e", in line 117
[[orgs.series]]              #! orgs[1].series[1].description: is missing #! orgs[1].series[1].discount_value: is missing
id = 101                     # the first
discount_type = "FREE"       #! orgs[1].series[1].discount_type: must be one of ABS, PERC
valid_till_date = "tomorrow" #! orgs[1].series[1].valid_till_date: must be a date like 2027-05-09
store_ids = [10, 99]         #! orgs[1].series[1].store_ids: names store 99, which is not a store of this organisation in this file
[[orgs.series]]
id = 101                     #! orgs[1].series[2].id: is listed twice, first in line 128
description = "d"
discount_type = "PERC"
discount_value = 101         #! orgs[1].series[2].discount_value: must be an integer from 0 to 100
valid_till_date = "2027-02-30" #! orgs[1].series[2].valid_till_date: must be a date
max_create = 1.5             #! orgs[1].series[2].max_create: must be an integer
mutual_exclusive_series_ids = [101] #! orgs[1].series[2].mutual_exclusive_series_ids: must not name the series itself
[[orgs.series]]
id = 103
description = "d"
discount_type = "ABS"
discount_value = 1
valid_till_date = 2027-05-09
redemption_valid_from = "-9999-01-01" #! orgs[1].series[3].redemption_valid_from: must be a date like 2027-05-09, from 2000 to 9999: this is the year -9999
mutual_exclusive_series_ids = [
    -1,                      #! orgs[1].series[3].mutual_exclusive_series_ids: -1 means none, and must be the only element
    0,                       #! orgs[1].series[3].mutual_exclusive_series_ids: names series 0: ids of series begin at 1
    101,
]
store_ids = [
    -1,                      #! orgs[1].series[3].store_ids: names store -1, which is not a store
    10,
    9,                       #! orgs[1].series[3].store_ids: names store 9, which is not a store
]
alpha_numeric = false
random_code_length = 5       #! orgs[1].series[3].random_code_length: 10^5 = 100000 codes are too few for max_create 10001: at least 10 x 10001 = 100010 are needed
max_create = 10001
[[orgs.series]]
id = 104
description = 7              #! orgs[1].series[4].description: must be a string
discount_type = "ABS"
discount_value = 1
valid_till_date = 2027-05-09T10:00:00 #! orgs[1].series[4].valid_till_date: must be a date
expiry_strategy_value = 3    #! orgs[1].series[4].expiry_strategy_value: is allowed only with DAYS or MONTHS_END
coupon_prefix = "far too long" #! orgs[1].series[4].coupon_prefix: must have at most 10 characters
redemption_valid_from = 1999-12-31 #! orgs[1].series[4].redemption_valid_from: must be a date like 2027-05-09, from 2000 to 9999: this is the year 1999
mutual_exclusive_series_ids = [101, "102"] #! orgs[1].series[4].mutual_exclusive_series_ids: must be an array of integers
random_code_length = 4       #! orgs[1].series[4].random_code_length: must be an integer from 5 to 20
generic_code = "SPRING"      #! orgs[1].series[4].generic_code: is allowed only with client_handling_type GENERIC
[[orgs.series]]
id = 105
description = "d"
discount_type = "ABS"
discount_value = 1
valid_till_date = "26-12-31" #! orgs[1].series[5].valid_till_date: must be a date like 2027-05-09, from 2000 to 9999: this is the year 26
[[orgs]]
id = 1                       #! orgs[2].id: is listed twice, first in line 4
name = "Other Retail"
tills = "none"               #! orgs[2].tills: must be an array of tables
"#;

#[tokio::test]
async fn all_mistakes_are_reported_with_their_lines_and_nothing_changes() {
    let connect = new_database().await;
    let expected: Vec<String> = MISTAKES
        .lines()
        .zip(1..)
        .flat_map(|(line, number)| {
            line.split("#! ").skip(1).map(move |error| format!("line {number}: {}", error.trim_end()))
        })
        .collect();
    let error = apply_error(&connect, MISTAKES).await;
    let errors: Vec<&str> = error.lines().collect();
    for (error, expected) in errors.iter().zip(&expected) {
        assert!(error.starts_with(expected), "{error}\nis not\n{expected}");
    }
    assert_eq!(errors.len(), expected.len(), "{errors:#?}");
    assert_eq!(stored(&connect).await, [""; 0]);
}

/// [`small`] with these settings of its two stores.
fn stores(downtown: &str, office: &str) -> String {
    small(&[])
        .replace("name = \"Downtown\"", &format!("name = \"Downtown\"\n{downtown}"))
        .replace("name = \"Head office\"", &format!("name = \"Head office\"\n{office}"))
}

const STORES: &str = "select concat_ws(' ', store_id, effective_code, coalesce(external_id, '-'),
                                       coalesce(external_id_1, '-'), coalesce(external_id_2, '-'))
                        from store order by 1";

#[tokio::test]
async fn stores_have_the_codes_of_the_file_and_may_swap_them() {
    let connect = new_database().await;
    apply(&connect, &stores("", "")).await;
    assert_eq!(values(&connect, STORES).await, ["10 10 - - -", "11 11 - - -"]);
    // The file may state the defaults.
    assert_eq!(apply(&connect, &stores("code = \"10\"", "external_ids = []")).await.to_string(), "no change");

    let one = "external_ids = [\"a\", \"\", \"c\"]";
    let other = "code = \"HQ\"\nexternal_ids = [\"b\", \"c\"]";
    let expected = [
        r#"org 1 store 10: external_id "" -> "a", external_id_2 "" -> "c""#,
        r#"org 1 store 11: code "11" -> "HQ", external_id "" -> "b", external_id_1 "" -> "c""#,
    ];
    assert_eq!(apply(&connect, &stores(one, other)).await.changes, expected);
    assert_eq!(apply(&connect, &stores(one, other)).await.to_string(), "no change");
    assert_eq!(values(&connect, STORES).await, ["10 10 a - c", "11 HQ b c -"]);

    let expected = [
        r#"org 1 store 10: code "10" -> "HQ", external_id "a" -> "b", external_id_1 "" -> "c", external_id_2 "c" -> """#,
        r#"org 1 store 11: code "HQ" -> "11", external_id "b" -> "a", external_id_1 "c" -> "", external_id_2 "" -> "c""#,
    ];
    assert_eq!(
        apply(&connect, &stores(other, one)).await.changes,
        expected,
        "the stores swap their codes and external ids"
    );
    assert_eq!(values(&connect, STORES).await, ["10 HQ b c -", "11 11 a - c"]);
    let expected = [
        r#"org 1 store 10: code "HQ" -> "11", external_id "b" -> "", external_id_1 "c" -> """#,
        r#"org 1 store 11: code "11" -> "10", external_id "a" -> "", external_id_2 "c" -> """#,
    ];
    let ids = stores("code = \"11\"", "code = \"10\"");
    assert_eq!(apply(&connect, &ids).await.changes, expected, "each store has the other's id as its code");
    let expected = [r#"org 1 store 10: code "11" -> "10""#, r#"org 1 store 11: code "10" -> "11""#];
    assert_eq!(
        apply(&connect, &stores("", "")).await.changes,
        expected,
        "a setting that the file leaves out has its default again"
    );
}

#[tokio::test]
async fn a_code_of_a_store_outside_the_file_is_rejected() {
    let connect = new_database().await;
    apply(&connect, &stores("", "external_ids = [\"a\"]")).await;
    let before = stored(&connect).await;
    let alone = |settings: &str| stores(settings, "").replace("[[orgs.stores]]\nid = 11\nname = \"Head office\"\n", "");
    for (settings, shared) in [("code = \"11\"", "code: \"11\""), ("external_ids = [\"a\"]", "external_id: \"a\"")] {
        let expected = format!("org 1: stores 10 and 11 have the same {shared}; one of the two is not in the file");
        assert_eq!(apply_error(&connect, &alone(settings)).await, expected);
    }
    assert_eq!(stored(&connect).await, before);
    // Another kind of id may have the same text.
    assert_eq!(apply(&connect, &alone("external_ids = [\"\", \"a\"]")).await.changes.len(), 1);
}

#[tokio::test]
async fn a_file_with_one_mistake_changes_nothing() {
    let connect = new_database().await;
    let file = small(&[repeatable_series(1, "")]);
    apply(&connect, &file).await;
    let before = stored(&connect).await;
    let changed = file.replace("Downtown", "Uptown") + &repeatable_series(2, "max_create = \"ten\"");
    assert!(apply_error(&connect, &changed).await.contains("orgs[1].series[2].max_create: must be an integer"));
    assert_eq!(stored(&connect).await, before);
}

#[tokio::test]
async fn broken_toml_is_reported_with_its_line() {
    let connect = new_database().await;
    for (file, line) in [
        ("[[orgs]]\nid = 1\nname = \"Test Retail\n", 3),
        ("[[orgs]]\nid = \nname = \"Test Retail\"\n", 2),
        ("[[orgs]]\nid = 1\nname = \"Test Retail\"\nid = 2\n", 4),
        ("[[orgs\nid = 1\nname = \"Test Retail\"\n", 1),
        ("[[orgs]]\nid = 1\nname = \"Test Retail\"\n[[orgs.series]]\nvalid_till_date = 2027-02-30\n", 5),
    ] {
        let error = apply_error(&connect, file).await;
        assert!(error.contains(&format!("line {line}: TOML: ")), "{file}\n{error}");
    }
    assert_eq!(stored(&connect).await, [""; 0]);
}

#[tokio::test]
async fn a_cap_beyond_the_default_code_length_is_rejected() {
    let connect = new_database().await;
    let file = |cap: &str| small(&[repeatable_series(1, &format!("alpha_numeric = false\nmax_create = {cap}"))]);
    let error = apply_error(&connect, &file("1000000001")).await;
    let arithmetic = "10^10 = 10000000000 codes are too few for max_create 1000000001: at least 10 x 1000000001";
    assert!(error.starts_with("line 16: orgs[1].series[1].random_code_length: "), "{error}");
    assert!(error.contains(arithmetic), "{error}");
    assert_eq!(apply(&connect, &file("1000000000")).await.changes.len(), 5);
}

#[tokio::test]
async fn a_generic_code_that_another_series_could_draw_is_rejected() {
    let connect = new_database().await;
    let file = |code: &str| {
        let generic = format!("client_handling_type = \"GENERIC\"\ngeneric_code = \"{code}\"");
        small(&[repeatable_series(1, &generic), repeatable_series(2, "coupon_prefix = \"X\"\nrandom_code_length = 5")])
    };
    let error = apply_error(&connect, &file("xspree")).await;
    assert!(error.contains("orgs[1].series[1].generic_code: could also be drawn for series 2"), "{error}");
    // No series draws an O.
    assert_eq!(apply(&connect, &file("xsport")).await.changes.len(), 6);
}

#[tokio::test]
async fn a_generic_code_or_prefix_outside_the_alphabet_of_codes_is_rejected() {
    let connect = new_database().await;
    let generic = |code: &str| {
        small(&[repeatable_series(1, &format!("client_handling_type = \"GENERIC\"\ngeneric_code = \"{code}\""))])
    };
    for (code, reason) in [
        ("SPRING 15", "generic_code: the code has a space or a control character in it"),
        ("SPRING\\n", "generic_code: the code has a space or a control character in it"),
        ("SPRING\u{200b}", "generic_code: the code has U+200B (zero width space) in it"),
        ("FR\u{dc}HLING", "generic_code: the code has the character \u{dc} (U+00DC) in it; allowed are the letters"),
    ] {
        let error = apply_error(&connect, &generic(code)).await;
        assert!(error.contains(reason), "{error}");
    }
    let error = apply_error(&connect, &small(&[repeatable_series(1, "coupon_prefix = \"A;\"")])).await;
    assert!(error.contains("coupon_prefix: must have at most 10 characters: the letters"), "{error}");
    apply(&connect, &generic("Spring-15_a/b.c+")).await;
}

#[tokio::test]
async fn secrets_may_come_from_files_or_the_environment() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("secrets")).unwrap();
    std::fs::write(directory.path().join("secrets/till"), "from file \r\n").unwrap();
    std::fs::write(directory.path().join("secret"), "\u{feff}crm from file\n").unwrap();
    let file = ORG
        .replace("password = \"server123\"", "password_file = \"secrets/till\"")
        .replace("password = \"office123\"", "password_env = \"PATH\"")
        .replace("secret = \"crm-secret\"", "secret_file = \"secret\"")
        .replace("secret = \"reports-secret\"", "secret_env = \"PATH\"")
        .replace("access = \"read\"", "access = \"write\"");
    let path = directory.path().join("orgs.toml");
    std::fs::write(&path, format!("\u{feff}{file}{}", repeatable_series(1, ""))).unwrap();

    let app = TestApp::start(&[]).await;
    let report = apply_file(&app.connect, &path).await.unwrap().to_string();
    assert!(report.contains("org 1 till store.server: password\n"), "{report}");
    assert_eq!(apply_file(&app.connect, &path).await.unwrap().to_string(), "no change");

    let environment = std::env::var("PATH").unwrap();
    let body = r#"{"seriesIds":[1],"customer":{"id":"c"}}"#;
    for (till, password) in [("store.server", "from file "), ("office.desk", &environment)] {
        let request = app.bare(body).basic_auth(till, Some(password)).header("Content-Type", "application/json");
        assert_eq!(request.send().await.unwrap().status(), 200, "{till}");
    }
    for (key, secret) in [("crm", "crm from file"), ("reports", &environment)] {
        let request = app.client().post(app.url("/v3/oauth/token/generate"));
        let answer = request.json(&json!({"key": key, "secret": secret})).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{key}");
    }
}

#[tokio::test]
async fn a_missing_or_malformed_secret_is_rejected() {
    let connect = new_database().await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("empty"), "\n").unwrap();
    std::fs::write(directory.path().join("two"), "hunter2\nhunter3\n").unwrap();
    std::fs::write(directory.path().join("utf16"), b"\xff\xfeh\0").unwrap();
    let path = directory.path().join("orgs.toml");
    for (instead, expected) in [
        ("password_file = \"missing\"", "line 15: orgs[1].tills[1].password_file: "),
        ("password_file = \"empty\"", "line 15: orgs[1].tills[1].password_file: must not be empty"),
        ("password_file = \"two\"", "line 15: orgs[1].tills[1].password_file: is more than one line"),
        ("password_file = \"utf16\"", "line 15: orgs[1].tills[1].password_file: is UTF-16: save it as UTF-8"),
        ("password_file = \".\"", "line 15: orgs[1].tills[1].password_file: "),
        ("password = \"hunter2\\n\"", "line 15: orgs[1].tills[1].password: is more than one line"),
        ("password_env = \"COUPON_ISSUER_TEST_NO_SUCH\"", "line 15: orgs[1].tills[1].password_env: "),
        ("password = \"\"", "line 15: orgs[1].tills[1].password: must not be empty"),
    ] {
        std::fs::write(&path, small(&[]).replace("password = \"server123\"", instead)).unwrap();
        let error = apply_file(&connect, &path).await.unwrap_err().to_string();
        assert!(error.starts_with(expected) && !error.contains("hunter"), "{error}");
    }
    std::fs::write(&path, b"\xff\xfe[\0").unwrap();
    let error = apply_file(&connect, &path).await.unwrap_err().to_string();
    assert!(error.ends_with("orgs.toml: the file is UTF-16: save it as UTF-8"), "{error}");
    let missing = directory.path().join("missing.toml");
    let error = apply_file(&connect, &missing).await.unwrap_err().to_string();
    assert!(error.contains("missing.toml"), "{error}");
    assert_eq!(stored(&connect).await, [""; 0]);
}

#[tokio::test]
async fn what_the_file_no_longer_lists_stays_and_is_reported() {
    let file = format!("{ORG}{CALLERS}{}{}", repeatable_series(1, ""), repeatable_series(2, ""));
    let app = TestApp::start_with(&file, |_| {}).await;
    let (org_and_first_store, _) = ORG.split_once("[[orgs.stores]]\nid = 11").unwrap();
    let before = stored(&app.connect).await;
    let report = apply(&app.connect, org_and_first_store).await;
    let not_listed = [
        "store 11",
        "store 12",
        "till kiosk",
        "till office.desk",
        "till store.server",
        "till warehouse.gate",
        "token_issuer http://127.0.0.1:8081",
        "token_issuer https://login.example.com/realms/shop",
        "oauth_client crm",
        "oauth_client partner",
        "oauth_client reports",
        "series 1",
        "series 2",
    ];
    let lines = not_listed.map(|what| format!("org 1 {what}: not in the file, left alone"));
    assert_eq!(report.left_alone, lines);
    assert_eq!(report.to_string(), format!("{}\nno change", lines.join("\n")));
    assert_eq!(stored(&app.connect).await, before);
    assert_eq!(outcomes(&app.issue("c", &[1, 2]).await), ["issued", "issued"]);
}

#[tokio::test]
async fn a_till_or_client_name_of_another_organisation_is_rejected() {
    let connect = new_database().await;
    apply(&connect, ORG).await;
    let before = stored(&connect).await;
    let other = |till: &str, client: &str| {
        format!(
            "[[orgs]]\nid = 2\nname = \"Other\"\n[[orgs.stores]]\nid = 10\nname = \"Other store\"\n\
             [[orgs.tills]]\nid = \"{till}\"\nstore_id = 10\npassword = \"0ther-Password\"\n\
             [[orgs.oauth_clients]]\nkey = \"{client}\"\nsecret = \"0ther-Secret\"\ntill = \"{till}\"\naccess = \"write\"\n"
        )
    };
    for (till, client, named) in
        [("store.server", "other", "org 2 till store.server"), ("other", "crm", "org 2 oauth_client crm")]
    {
        let alone = other(till, client);
        let error = apply_error(&connect, &alone).await;
        assert!(error.contains(named) && error.contains("taken") && !error.contains("0ther"), "{error}");
        // In one file it is a mistake of a line.
        let error = apply_error(&connect, &format!("{ORG}{alone}")).await;
        assert!(error.contains("is listed twice"), "{error}");
        assert_eq!(stored(&connect).await, before);
    }
    assert_eq!(apply(&connect, &other("other", "other")).await.changes.len(), 4);
}

/// Customers with these identifiers: `id mobile email external_id`. The file leaves `-` out and withdraws `""`.
fn customers(lines: &[&str]) -> String {
    let customer = |line: &&str| {
        let mut words = line.split(' ');
        let id = words.next().unwrap();
        let key = |(name, value)| {
            if value == "-" { String::new() } else { format!("{name} = \"{value}\"\n").replace("\"\"\"\"", "\"\"") }
        };
        let keys: String = ["mobile", "email", "external_id"].into_iter().zip(words).map(key).collect();
        format!("[[orgs.customers]]\nid = \"{id}\"\n{keys}")
    };
    small(&[repeatable_series(1, "")]) + &lines.iter().map(customer).collect::<String>()
}

const CUSTOMERS: &str = "select concat_ws(' ', customer_id, coalesce(mobile, '-'), coalesce(email, '-'),
                                          coalesce(external_id, '-'), registered)
                           from customer order by 1";

#[tokio::test]
async fn identifiers_move_between_customers_whatever_their_order_in_the_file() {
    let before = ["a 1 a@x A", "b 2 b@x B", "c 3 c@x C"];
    let after = [
        // A swap.
        &["a 2 b@x B", "b 1 a@x A"][..],
        // A circle.
        &["a 2 c@x B", "b 3 a@x C", "c 1 b@x A"],
        // A new identifier in place of one that another customer takes over.
        &["a 4 - -", "b 1 - -", "d 2 - -"],
        // A withdrawal.
        &["a \"\" - \"\"", "b 1 - A", "d 2 - B"],
        // A new customer.
        &["d 1 a@x A", "a 5 \"\" \"\""],
    ];
    for plan in after {
        let mut orders = vec![plan.to_vec()];
        orders.push(plan.iter().rev().copied().collect());
        let mut stored = Vec::new();
        for order in orders {
            let connect = new_database().await;
            apply(&connect, &customers(&before)).await;
            let file = customers(&order);
            apply(&connect, &file).await;
            stored.push(values(&connect, CUSTOMERS).await);
            assert!(apply(&connect, &file).await.changes.is_empty(), "{order:?}");
        }
        assert_eq!(stored[0], stored[1], "{plan:?}");
    }
}

#[tokio::test]
async fn a_running_service_follows_a_swap_of_identifiers() {
    let app = TestApp::start_with(&customers(&["a 1 a@x -", "b 2 b@x -"]), |_| {}).await;
    let swapped = customers(&["a 2 A@X -", "b 1 b@x -"]);
    let expected = [r#"org 1 customer a: mobile "1" -> "2""#, r#"org 1 customer b: mobile "2" -> "1""#];
    assert_eq!(apply(&app.connect, &swapped).await.changes, expected);
    assert_eq!(values(&app.connect, CUSTOMERS).await, ["a 2 a@x - t", "b 1 b@x - t"]);
    assert_eq!(request(&app, 1, &json!({"mobile": "1"})).await, "issued");
    assert_eq!(app.count("select from coupon where customer_id = 'b'").await, 1);
}

#[tokio::test]
async fn an_empty_identifier_withdraws_it_and_an_omitted_one_keeps_it() {
    let app = TestApp::start_with(&customers(&["a 1 a@x A"]), |_| {}).await;
    assert_eq!(apply(&app.connect, &customers(&["a - - -"])).await.to_string(), "no change");
    let withdrawn = customers(&["a \"\" - \"\""]);
    let expected = [r#"org 1 customer a: mobile "1" -> "", external_id "A" -> """#];
    assert_eq!(apply(&app.connect, &withdrawn).await.changes, expected);
    assert_eq!(apply(&app.connect, &withdrawn).await.to_string(), "no change");
    assert_eq!(values(&app.connect, CUSTOMERS).await, ["a - a@x - t"]);
    // The withdrawn number now belongs to the first customer who uses it.
    assert_eq!(request(&app, 1, &json!({"mobile": "1"})).await, "issued");
    assert_eq!(app.count("select from coupon where customer_id = 'a'").await, 0);
    // A new customer has nothing to withdraw.
    assert_eq!(apply(&app.connect, &customers(&["b \"\" \"\" \"\""])).await.changes, ["org 1 customer b: created"]);
}

#[tokio::test]
async fn an_identifier_of_a_stored_customer_is_rejected() {
    let connect = new_database().await;
    apply(&connect, &customers(&["a 1 a@x A"])).await;
    let before = stored(&connect).await;
    for (given, name, value) in [("(1)", "mobile", "1"), ("- A@X", "email", "a@x"), ("- - A", "external_id", "A")] {
        let error = apply_error(&connect, &customers(&["z - - -", &format!("b {given}")])).await;
        let expected = format!(
            "line 29: orgs[1].customers[2].{name}: {value:?} also belongs to customer \"a\", who is stored but not in this file"
        );
        assert!(error.starts_with(&expected), "{error}");
        // The file lists the customer, but does not withdraw the identifier.
        let error = apply_error(&connect, &customers(&[&format!("b {given}"), "a - - -"])).await;
        let expected = format!(
            "line 27: orgs[1].customers[1].{name}: {value:?} also belongs to customer \"a\", in line 28, who keeps it"
        );
        assert!(error.starts_with(&expected), "{error}");
        assert_eq!(stored(&connect).await, before);
    }
    // One error lists the mistakes of all organisations.
    let other = small(&[]).replace("id = 1\n", "id = 2\n").replace("store.server", "other.server");
    apply(&connect, &format!("{other}[[orgs.customers]]\nid = \"a\"\nmobile = \"1\"\n")).await;
    let file =
        format!("{}{other}[[orgs.customers]]\nid = \"b\"\nmobile = \"1\"\n", customers(&["b 1 a@x -", "c - - A"]));
    let error = apply_error(&connect, &file).await;
    let lines: Vec<&str> = error.lines().map(|line| line.split(": \"").next().unwrap()).collect();
    let expected = [
        "line 27: orgs[1].customers[1].mobile",
        "line 28: orgs[1].customers[1].email",
        "line 31: orgs[1].customers[2].external_id",
        "line 49: orgs[2].customers[1].mobile",
    ];
    assert_eq!(lines, expected, "{error}");
}

/// A request created the customer, so that no file knows the id. The customer may have coupons.
#[tokio::test]
async fn an_identifier_of_a_customer_whom_a_request_created_is_rejected_with_advice() {
    let app = TestApp::start_with(&customers(&[]), |_| {}).await;
    assert_eq!(request(&app, 1, &json!({"mobile": "1"})).await, "issued");
    let created = text(&app.connect, "select customer_id from customer").await;
    let error = apply_error(&app.connect, &customers(&["a 1 a@x -"])).await;
    let expected = format!(
        "line 27: orgs[1].customers[1].mobile: \"1\" also belongs to customer {created:?}, whom a request has created (registered = false)"
    );
    assert!(error.starts_with(&expected), "{error}");
    for advice in [
        format!("list the customer with id = {created:?} instead of \"a\""),
        format!("list {created:?} as well, with mobile = \"\""),
    ] {
        assert!(error.contains(&advice), "{error}");
    }

    let with_created = customers(&["a 1 a@x -", &format!("{created} \"\" - -")]);
    let expected =
        ["org 1 customer a: created".to_owned(), format!("org 1 customer {created}: registered, mobile \"1\" -> \"\"")];
    assert_eq!(apply(&app.connect, &with_created).await.changes, expected);
    assert_eq!(app.count("select from customer where customer_id = 'a' and mobile = '1'").await, 1);

    assert_eq!(request(&app, 1, &json!({"mobile": "2"})).await, "issued");
    let created = text(&app.connect, "select customer_id from customer where not registered").await;
    let expected = [format!("org 1 customer {created}: registered, email \"\" -> \"b@x\"")];
    assert_eq!(apply(&app.connect, &customers(&[&format!("{created} 2 b@x -")])).await.changes, expected);
    assert_eq!(
        app.count("select from customer join coupon using (customer_id) where mobile = '2' and registered").await,
        1
    );
}

/// The request creates a customer after `apply` has compared the file with the database, and before it writes.
#[tokio::test]
async fn an_identifier_that_a_request_takes_during_the_apply_is_rejected() {
    let connect = new_database().await;
    apply(&connect, &customers(&[])).await;
    let mut request = connect.connect().await.unwrap();
    sqlx::raw_sql(
        "begin; insert into customer (org_id, customer_id, mobile, registered) values (1, 'made', '1', false)",
    )
    .execute(&mut request)
    .await
    .unwrap();
    let file = customers(&["a 1 - -"]);
    let meanwhile = async {
        let waits = "select count(*)::text from pg_locks where not granted and locktype = 'transactionid'";
        while text(&connect, waits).await == "0" {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        sqlx::raw_sql("commit").execute(&mut request).await.unwrap();
    };
    let (error, ()) = tokio::join!(apply_error(&connect, &file), meanwhile);
    close(request).await;
    let expected = "org 1: a request has just given one of the identifiers to a customer: apply the file again";
    assert_eq!(error, expected);
    assert!(apply_error(&connect, &file).await.contains("customer \"made\", whom a request has created"));
}

#[tokio::test]
async fn a_series_may_exclude_only_existing_series() {
    let connect = new_database().await;
    let file = |series_1: &str| small(&[repeatable_series(1, &format!("mutual_exclusive_series_ids = {series_1}"))]);
    apply(
        &connect,
        &small(&[
            repeatable_series(1, ""),
            repeatable_series(2, ""),
            repeatable_series(3, "mutual_exclusive_series_ids = [2]"),
        ]),
    )
    .await;
    let error = apply_error(&connect, &file("[\n2,\n4,\n99999]")).await;
    let key = "orgs[1].series[1].mutual_exclusive_series_ids: names series";
    let expected = format!(
        "line 26: {key} 4, which is neither in this file nor stored\nline 27: {key} 99999, which is neither in this file nor stored"
    );
    assert_eq!(error, expected);
    // A series of another organisation does not count.
    let other = file("[2]").replace("id = 1\nname", "id = 2\nname").replace("store.server", "other.server");
    assert!(apply_error(&connect, &other).await.contains("names series 2, which is neither"));

    let excluded =
        async || text(&connect, "select mutual_exclusive_series_ids::text from series where series_id = 1").await;
    for (given, stored) in [("[2, 3, 2]", "{2,3}"), ("[-1]", "{}"), ("[3]", "{3}"), ("[]", "{}")] {
        apply(&connect, &file(given)).await;
        assert_eq!(excluded().await, stored, "{given}");
    }
    // A series may exclude one that the file lists later.
    apply(&connect, &small(&[repeatable_series(5, "mutual_exclusive_series_ids = [6]"), repeatable_series(6, "")]))
        .await;
}

#[tokio::test]
async fn a_later_cap_counts_the_coupons_issued_before() {
    let app = small_app(&[repeatable_series(1, ""), repeatable_series(2, "")]).await;
    for customer in ["a", "b", "c"] {
        app.issue(customer, &[1, 2]).await;
    }
    apply(&app.connect, &small(&[repeatable_series(1, "max_create = 4"), repeatable_series(2, "")])).await;
    let mut outcomes = Vec::new();
    for customer in ["a", "b", "c", "d"] {
        outcomes.push(app.issue_one(customer, 1).await);
    }
    assert_eq!(outcomes, ["issued", "5001", "5001", "5001"]);
    assert_eq!(app.count("select from coupon where series_id = 1").await, 4);
    assert_eq!(app.issue_one("a", 2).await, "issued");
}

#[tokio::test]
async fn a_cap_may_be_raised_lowered_and_removed() {
    let app = small_app(&[repeatable_series(1, "max_create = 2")]).await;
    let issue_five = async || {
        let mut outcomes = Vec::new();
        for customer in ["a", "b", "c", "d", "e"] {
            outcomes.push(app.issue_one(customer, 1).await);
        }
        tally(outcomes).get("issued").copied().unwrap_or_default()
    };
    assert_eq!(issue_five().await, 2);
    for (cap, issued) in [("5", 3), ("3", 0), ("0", 0), ("6", 1), ("-1", 5), ("11", 0), ("13", 2)] {
        apply(&app.connect, &small(&[repeatable_series(1, &format!("max_create = {cap}"))])).await;
        assert_eq!(issue_five().await, issued, "{cap}");
    }
    assert_eq!(app.count("select from coupon").await, 13);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cap_applied_while_coupons_are_issued_is_exact() {
    let app = Arc::new(small_app(&[repeatable_series(1, "")]).await);
    let calls: Vec<_> = (0..300)
        .map(|customer: i32| {
            let app = Arc::clone(&app);
            tokio::spawn(async move { app.issue_one(&customer.to_string(), 1).await })
        })
        .collect();
    apply(&app.connect, &small(&[repeatable_series(1, "max_create = 200")])).await;
    let mut outcomes = Vec::new();
    for call in calls {
        outcomes.push(call.await.unwrap());
    }
    let issued = tally(outcomes)["issued"];
    assert_eq!(app.count("select from coupon").await, issued);
    let counted = "select from series_counter where issued >= 200 and issued = (select count(*) from coupon)";
    assert_eq!(app.count(counted).await, 1, "{issued}");
}

/// Each change comes when the service has the previous settings in its cache.
#[tokio::test]
async fn a_running_service_follows_a_change_of_a_series_at_once() {
    let app = small_app(&[repeatable_series(1, "")]).await;
    for (settings, expected) in [
        ("", "issued"),
        ("valid_till_date = \"2026-11-21\"", "712"),
        ("valid_till_date = \"2026-11-22\"", "issued"),
        ("store_ids = [11]", "735"),
        ("store_ids = [10, 11]", "issued"),
        ("externally_managed = true", "777"),
        ("redemption_valid_from = \"2027-05-10\"", "712"),
        ("", "issued"),
        ("max_create = 1", "5001"),
        ("max_vouchers_per_user = 3", "730"),
        ("is_multiple_vouchers_per_user_allowed = false", "709"),
        ("do_not_resend_existing_voucher = false", "resent"),
        ("min_days_between_vouchers = 1", "709"),
        ("", "issued"),
    ] {
        apply(&app.connect, &small(&[repeatable_series(1, settings)])).await;
        assert_eq!(app.issue_one("c", 1).await, expected, "{settings}");
    }
    assert_eq!(app.issue_one("c", 2).await, "707");
    apply(&app.connect, &small(&[repeatable_series(2, "mutual_exclusive_series_ids = [1]")])).await;
    assert_eq!(app.issue_one("c", 2).await, "709");
    assert_eq!(app.issue_one("d", 2).await, "issued");
    assert_eq!(app.issue_one("d", 1).await, "709");
}

#[tokio::test]
async fn a_running_service_shows_new_texts_and_discounts_at_once() {
    let app = small_app(&[repeatable_series(1, "")]).await;
    app.issue("c", &[1]).await;
    let discount =
        repeatable_series(1, "coupon_prefix = \"NEW-\"").replace("discount_value = 500", "discount_value = 7");
    apply(&app.connect, &small(&[discount.replace("Series 1", "Renamed")])).await;
    let result = &app.issue("c", &[1]).await["response"][0]["result"];
    assert_eq!((&result["description"], &result["discountValue"]), (&json!("Renamed"), &json!(7)));
    assert!(result["code"].as_str().unwrap().starts_with("NEW-"), "{result}");
}

#[tokio::test]
async fn a_running_service_follows_another_time_zone_at_once() {
    let today = repeatable_series(1, "expiry_strategy_type = \"DAYS\"\nexpiry_strategy_value = 0");
    let app = small_app(std::slice::from_ref(&today)).await;
    for (zone, day, offset) in
        [("UTC", "22", "Z"), ("Pacific/Kiritimati", "23", "+14:00"), ("America/New_York", "22", "-05:00")]
    {
        let file = small(std::slice::from_ref(&today));
        apply(&app.connect, &file.replace("default_access", &format!("time_zone = \"{zone}\"\ndefault_access"))).await;
        let result = &app.issue("c", &[1]).await["response"][0]["result"];
        assert_eq!(result["validTill"], format!("2026-11-{day}T00:00:00{offset}"));
        assert_eq!(result["validTillDateTime"], format!("2026-11-{day}T23:59:59{offset}"));
    }
}

/// Requests a coupon of one series. Returns its outcome, or status and code if the request fails as a whole.
async fn request(app: &TestApp, series: i64, customer: &Value) -> String {
    let body = json!({"seriesIds": [series], "customer": customer}).to_string();
    let answer = app.post(body).send().await.unwrap();
    if answer.status() == 200 {
        return outcomes(&answer.json().await.unwrap()).concat();
    }
    let (status, code, message) = failure(answer).await;
    assert!(message.contains("customer"), "{message}");
    format!("{status} {code}")
}

#[tokio::test]
async fn an_organisation_of_registered_customers_issues_to_nobody_else() {
    let app = TestApp::start_with(&registered(), |_| {}).await;
    for (customer, expected) in [
        (json!({"id": "c1"}), "issued"),
        (json!({"mobile": "91-9900000001"}), "issued"),
        (json!({"email": "ONE@example.COM"}), "issued"),
        (json!({"externalId": "crm/1"}), "issued"),
        (json!({"id": "c1", "mobile": "919900000001", "email": "one@example.com", "externalId": "crm/1"}), "issued"),
        (json!({"id": "C1"}), "400 701"),
        (json!({"id": "c3"}), "400 701"),
        (json!({"id": "c3", "mobile": "919900000001"}), "400 701"),
        (json!({"mobile": "919900000003"}), "400 701"),
        (json!({"email": "three@example.com"}), "400 701"),
        (json!({"externalId": "CRM/1"}), "400 701"),
        (json!({"id": "c1", "mobile": "919900000002"}), "400 721"),
        (json!({"mobile": "919900000001", "email": "two@example.com"}), "400 721"),
    ] {
        assert_eq!(request(&app, 1, &customer).await, expected, "{customer}");
    }
    assert_eq!(app.count("select from coupon where customer_id = 'c1'").await, 5);
    assert_eq!(app.count("select from coupon").await, 5);
    assert_eq!(app.count("select from customer").await, 2);
}

#[tokio::test]
async fn a_running_service_follows_the_customer_policy_at_once() {
    let open = small(&[repeatable_series(1, "")]);
    let app = TestApp::start_with(&open, |_| {}).await;
    assert_eq!(request(&app, 1, &json!({"id": "c1"})).await, "issued");
    assert_eq!(request(&app, 1, &json!({"id": "c9", "mobile": "919900000009"})).await, "issued");

    let closed = registered();
    apply(&app.connect, &closed).await;
    for (customer, expected) in [
        (json!({"id": "c3"}), "400 701"),
        (json!({"id": "c1"}), "issued"),
        (json!({"mobile": "919900000009"}), "400 701"),
    ] {
        assert_eq!(request(&app, 1, &customer).await, expected, "{customer}");
    }

    // Listing a customer that a request created registers them. The identifier that the file leaves out stays.
    let report = apply(&app.connect, &format!("{closed}[[orgs.customers]]\nid = \"c9\"\n")).await;
    assert_eq!(report.changes, ["org 1 customer c9: created"]);
    assert_eq!(request(&app, 1, &json!({"mobile": "919900000009"})).await, "issued");

    apply(&app.connect, &open).await;
    assert_eq!(request(&app, 1, &json!({"id": "c3"})).await, "issued");
}

#[tokio::test]
async fn the_first_request_after_the_policy_changes_to_registered_creates_no_customer() {
    let app = small_app(&[repeatable_series(1, "")]).await;
    app.issue("c", &[1]).await;
    apply(&app.connect, &registered()).await;
    assert_eq!(request(&app, 1, &json!({"mobile": "919900000009"})).await, "400 701");
    assert_eq!(app.count("select from customer where not registered").await, 0);
}

#[tokio::test]
async fn an_unregistered_customer_is_701_even_for_an_unknown_series() {
    let app = small_app(&[repeatable_series(1, "")]).await;
    app.issue("c", &[1]).await;
    apply(&app.connect, &registered()).await;
    assert_eq!(request(&app, 999, &json!({"id": "c3"})).await, "400 701");
}

/// Batches lock organisations in the order of their ids. A file in another order must not cause a deadlock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_with_organisations_in_any_order_does_not_deadlock_with_requests() {
    let org = |id: i64, cap: i64| {
        let capped = repeatable_series(1, &format!("max_create = {cap}"));
        format!(
            "[[orgs]]\nid = {id}\nname = \"O\"\ndefault_access = \"write\"\n[[orgs.stores]]\nid = 10\nname = \"S\"\n\
             [[orgs.tills]]\nid = \"till-{id}\"\nstore_id = 10\npassword = \"p\"\n{capped}"
        )
    };
    let file = |cap: i64| format!("{}{}", org(2, cap), org(1, cap));
    let app = TestApp::start_with(&file(1_000_000), |settings| settings.writer.tasks = 4).await;
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..32)
        .map(|caller| {
            let (stop, client, url) = (stop.clone(), app.client().clone(), app.url("/v2/coupon/bulk/issue"));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let body = json!({"seriesIds": [1], "customer": {"id": "c"}});
                    let request = client.post(&url).basic_auth(format!("till-{}", 1 + caller % 2), Some("p"));
                    let answer: Value = request.json(&body).send().await.unwrap().json().await.unwrap();
                    assert_eq!(outcomes(&answer), ["issued"], "{answer}");
                }
            })
        })
        .collect();
    for round in 1..=60 {
        let report = provisioning::apply_text(&app.connect, &file(1_000_000 + round)).await.unwrap();
        assert_eq!(report.changes.len(), 2, "{report}");
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
}
