//! What the binary reports: metrics, log lines and spans. None of them contains a secret, a code, a mobile or an e-mail.

use coupon_issuer::provisioning;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Executor};
use tokio::task::AbortHandle;

use crate::lifecycle::serve;
use crate::support::{ORG, close, eventually, new_database, outcomes, repeatable_series, wrap_writer};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const ALERTS: &str = include_str!("../../config/prometheus/alerts.yml");
const MOBILE: &str = "9877665544";
const EMAIL: &str = "somebody.private@example.com";

/// The running binary and its log.
struct Service {
    child: Child,
    address: String,
    metrics: String,
    log: Option<JoinHandle<Vec<String>>>,
}

impl Service {
    fn start(command: &mut Command) -> Self {
        command.env("COUPON_ISSUER__METRICS__LISTEN", "127.0.0.1:0").env("COUPON_ISSUER__LOG__FORMAT", "json");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut address_after = |message: &str| {
            let line = lines.find(|line| line.contains(message)).unwrap();
            serde_json::from_str::<Value>(&line).unwrap()["address"].as_str().unwrap().to_owned()
        };
        let metrics = address_after("\"serving metrics\"");
        let address = address_after("\"serving\"");
        let log = Some(std::thread::spawn(move || lines.collect()));
        Self { child, address, metrics, log }
    }

    /// The service over a database with a series of each kind.
    async fn with_series(change: impl FnOnce(&mut Command)) -> (Self, PgConnectOptions) {
        let database = new_database().await;
        let resent = "is_multiple_vouchers_per_user_allowed = false\ndo_not_resend_existing_voucher = false";
        let all = [
            repeatable_series(1, ""),
            repeatable_series(2, "max_create = 10"),
            repeatable_series(3, resent),
            repeatable_series(4, "client_handling_type = \"DISC_CODE_PIN\""),
        ];
        provisioning::apply_text(&database, &format!("{ORG}{}", all.concat())).await.unwrap();
        let mut command = serve(&database);
        change(&mut command);
        (Self::start(&mut command), database)
    }

    fn bare(&self, body: &Value) -> RequestBuilder {
        let url = format!("http://{}/v2/coupon/bulk/issue", self.address);
        reqwest::Client::new().post(url).json(body)
    }

    fn request(&self, body: &Value) -> RequestBuilder {
        self.bare(body).basic_auth("store.server", Some("server123"))
    }

    async fn issue(&self, body: Value) -> Value {
        self.request(&body).send().await.unwrap().json().await.unwrap()
    }

    async fn metrics(&self) -> String {
        reqwest::get(format!("http://{}/metrics", self.metrics)).await.unwrap().text().await.unwrap()
    }

    /// Waits until the metrics have this line.
    async fn assert_reports(&self, line: &str) {
        eventually(line, async || self.metrics().await.lines().any(|present| present == line)).await;
    }

    /// Stops the service as an operator does, and returns its log.
    fn stop(mut self) -> Vec<String> {
        assert!(Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap().success());
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        self.log.take().unwrap().join().unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The log lines of answered requests.
fn answered(log: &[String]) -> Vec<Value> {
    let lines = log.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["message"] == "answered").collect()
}

/// An alert rule on a missing metric never fires.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_of_the_alert_rules_exists_before_the_first_request() {
    let (service, _) = Service::with_series(|_| {}).await;
    service.assert_reports("coupon_issuer_ready 1").await;
    service.assert_reports(r#"coupon_issuer_series_remaining{kind="cap",org_id="1",series_id="2"} 10"#).await;
    let metrics = service.metrics().await;
    let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let named: BTreeSet<&str> =
        ALERTS.split(|c: char| !is_name(c)).filter(|word| word.starts_with("coupon_issuer_")).collect();
    assert!(named.len() > 10, "{named:?}");
    for name in named {
        assert!(metrics.lines().any(|line| line.starts_with(name)), "{name} is not in {metrics}");
    }
    for line in [
        r#"coupon_issuer_entities_total{outcome="pool_empty"} 0"#,
        r#"coupon_issuer_turned_away_total{reason="overload"} 0"#,
        r#"coupon_issuer_requests_total{route="/v2/coupon/bulk/issue",status="503"} 0"#,
        r#"coupon_issuer_authentications_total{scheme="basic",outcome="wrong"} 0"#,
        r#"coupon_issuer_coupon_writes_total{outcome="ordinal_taken"} 0"#,
        r#"coupon_issuer_key_claims_total{outcome="taken_over"} 0"#,
        "coupon_issuer_coupons_in_doubt_total 0",
        "coupon_issuer_database_up 1",
    ] {
        assert!(metrics.lines().any(|present| present == line), "{line} is not in {metrics}");
    }
    assert!(metrics.contains("process_resident_memory_bytes"), "{metrics}");
    let described = |name: &str| metrics.contains(&format!("# HELP {name} "));
    let types = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    assert_eq!(types.filter(|name| !described(name)).collect::<Vec<_>>(), Vec::<&str>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_and_the_log_line_of_a_request_count_each_outcome() {
    let (service, _) = Service::with_series(|command| {
        command.env("COUPON_ISSUER__WRITER__TASKS", "1");
    })
    .await;
    let body = json!({"seriesIds": [1, 2, 3], "customer": {"id": "c"}});
    for expected in ["issued", "issued"] {
        let answer = service.request(&body).header("Idempotency-Key", "k").send().await.unwrap();
        assert_eq!(outcomes(&answer.json().await.unwrap()), [expected; 3]);
    }
    let answer = service.issue(json!({"seriesIds": [3, 4, 999], "customer": {"id": "c"}})).await;
    assert_eq!(outcomes(&answer), ["resent", "5005", "707"]);
    let wrong = service.bare(&body).basic_auth("store.server", Some("hunter2")).send().await.unwrap();
    assert_eq!(wrong.status(), 401);
    for line in [
        r#"coupon_issuer_entities_total{outcome="issued"} 3"#,
        r#"coupon_issuer_entities_total{outcome="replayed"} 3"#,
        r#"coupon_issuer_entities_total{outcome="resent"} 1"#,
        r#"coupon_issuer_entities_refused_total{code="5005"} 1"#,
        r#"coupon_issuer_entities_refused_total{code="707"} 1"#,
        r#"coupon_issuer_coupon_writes_total{outcome="issued"} 3"#,
        r#"coupon_issuer_coupon_writes_total{outcome="key_not_claimed"} 3"#,
        r#"coupon_issuer_key_claims_total{outcome="acquired"} 1"#,
        r#"coupon_issuer_key_claims_total{outcome="complete"} 1"#,
        r#"coupon_issuer_authentications_total{scheme="basic",outcome="accepted"} 3"#,
        r#"coupon_issuer_authentications_total{scheme="basic",outcome="wrong"} 1"#,
        r#"coupon_issuer_requests_refused_total{route="/v2/coupon/bulk/issue",code="401",reason="the secret is wrong"} 1"#,
        r#"coupon_issuer_request_duration_seconds_count{route="/v2/coupon/bulk/issue"} 4"#,
        // One batch for the first request, one in which the retry learns that its key is used, and one in which the third request
        // learns that the customer has received a coupon, and that the pool is empty.
        r#"coupon_issuer_batch_duration_seconds_count{queue="coupons"} 3"#,
        r#"coupon_issuer_coupon_writes_total{outcome="has_received"} 1"#,
        r#"coupon_issuer_coupon_writes_total{outcome="pool_empty"} 1"#,
        "coupon_issuer_writer_connections 2",
        r#"coupon_issuer_limited_series{kind="pool",state="used_up"} 1"#,
    ] {
        service.assert_reports(line).await;
    }
    let lines = answered(&service.stop());
    let counters = |line: &Value| ["total", "issued", "resent", "replayed", "failures"].map(|key| line[key].as_u64());
    let counts: Vec<_> = lines.iter().map(counters).collect();
    assert_eq!(counts[..3], [[3, 3, 0, 0, 0], [3, 0, 0, 3, 0], [3, 0, 1, 0, 2]].map(|line| line.map(Some)));
    assert_eq!(lines[2]["refused"], "4:5005 999:707");
    assert_eq!(lines[0]["till_id"], "store.server");
    assert_eq!((&lines[0]["store_id"], lines[0].get("client"), lines[0].get("attributed")), (&json!(10), None, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_line_of_an_attributed_request_names_the_client_and_its_target() {
    let (service, _) = Service::with_series(|_| {}).await;
    let url = format!("http://{}/v3/oauth/token/generate", service.address);
    let pair = json!({"key": "crm", "secret": "crm-secret"});
    let token: Value = reqwest::Client::new().post(url).json(&pair).send().await.unwrap().json().await.unwrap();
    let token = token["data"]["accessToken"].as_str().unwrap().to_owned();
    for (target_type, code, expected) in [
        ("TILL", "", 200),
        ("TILL", "store.server", 200),
        ("STORE_CODE", "10", 200),
        ("TILL", "office.desk", 403),
        ("TILL", "nobody", 400),
    ] {
        let request = service.bare(&json!({"seriesIds": [1], "customer": {"id": "c"}})).bearer_auth(&token);
        let request = request.header("X-CAP-API-ATTRIBUTION-ENTITY-TYPE", target_type);
        let answer = request.header("X-CAP-API-ATTRIBUTION-ENTITY-CODE", code).send().await.unwrap();
        assert_eq!(answer.status(), expected, "{target_type} {code}");
    }
    let lines = answered(&service.stop());
    let caller = |line: &Value| json!([line["client"], line["till_id"], line["store_id"], line["attributed"]]);
    let lines: Vec<Value> = lines.iter().filter(|line| line["route"] == "/v2/coupon/bulk/issue").map(caller).collect();
    let expected = [
        json!(["crm", "store.server", 10, null]),
        json!(["crm", "store.server", 10, true]),
        json!(["crm", null, 10, true]),
        json!(["crm", "office.desk", 11, true]),
        json!(["crm", "store.server", 10, null]),
    ];
    assert_eq!(lines, expected);
}

/// Callers get 748 for both. Operators must know which of them may have stored a coupon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_distinguish_a_timed_out_coupon_from_one_in_doubt() {
    let (service, database) = Service::with_series(|command| {
        for (name, value) in
            [("WRITER__TASKS", "1"), ("WRITER__STATEMENT_TIMEOUT_SECONDS", "1"), ("ISSUING__TIMEOUT_SECONDS", "8")]
        {
            command.env(format!("COUPON_ISSUER__{name}"), value);
        }
    })
    .await;
    let mut connection = database.connect().await.unwrap();
    let mut stored = async || {
        sqlx::query("select from coupon where series_id in (1, 2)").fetch_all(&mut connection).await.unwrap().len()
    };
    let mut holder = database.connect().await.unwrap();
    holder.execute("select pg_advisory_lock(hashint8extended(2, 1))").await.unwrap();
    let late = service.issue(json!({"seriesIds": [2], "customer": {"id": "late"}})).await;
    assert_eq!(outcomes(&late), ["748"]);
    close(holder).await;
    for line in [
        r#"coupon_issuer_entities_total{outcome="timed_out"} 1"#,
        r#"coupon_issuer_entities_total{outcome="in_doubt"} 0"#,
        r#"coupon_issuer_entities_refused_total{code="748"} 1"#,
        "coupon_issuer_coupons_in_doubt_total 0",
    ] {
        service.assert_reports(line).await;
    }
    assert_eq!(stored().await, 0);

    // The coupon is stored, but then the connection breaks, and so does each connection of the recovery.
    let mut change = database.connect().await.unwrap();
    wrap_writer(&database, "begin ORIGINAL; perform pg_terminate_backend(pg_backend_pid()); end").await;
    let body = json!({"seriesIds": [1], "customer": {"id": "cut"}});
    let keyed = || service.request(&body).header("Idempotency-Key", "k").send();
    let cut: Value = keyed().await.unwrap().json().await.unwrap();
    assert_eq!(outcomes(&cut), ["748"]);
    for line in [
        r#"coupon_issuer_entities_total{outcome="timed_out"} 1"#,
        r#"coupon_issuer_entities_total{outcome="in_doubt"} 1"#,
        r#"coupon_issuer_entities_refused_total{code="748"} 2"#,
        r#"coupon_issuer_coupon_writes_total{outcome="timed_out"} 1"#,
        r#"coupon_issuer_coupon_writes_total{outcome="in_doubt"} 1"#,
        "coupon_issuer_coupons_in_doubt_total 1",
    ] {
        service.assert_reports(line).await;
    }
    assert_eq!(stored().await, 1);
    change.execute("drop procedure issue_coupons_1; alter procedure original rename to issue_coupons_1").await.unwrap();
    close(change).await;
    eventually("the retry returns the coupon", async || {
        let answer = keyed().await.unwrap();
        answer.status() == 200 && outcomes(&answer.json().await.unwrap()) == ["issued"]
    })
    .await;
    assert_eq!(stored().await, 1);
}

/// Issues coupons, and returns the values of the requests and answers that must not be in the log, the metrics or the spans.
async fn private_values(service: &Service) -> Vec<String> {
    let body = json!({"seriesIds": [1], "customer": {"mobile": MOBILE, "email": EMAIL}, "metadata": {"notes": "of a private nature"}});
    let answer =
        service.request(&body).header("Idempotency-Key", "private-key-4711").header("traceparent", parent()).send();
    let answer: Value = answer.await.unwrap().json().await.unwrap();
    assert_eq!(outcomes(&answer), ["issued"]);
    let code = answer["response"][0]["result"]["code"].as_str().unwrap().to_owned();
    let wrong = service.bare(&body).basic_auth("store.server", Some("hunter2-hunter2")).send().await.unwrap();
    assert_eq!(wrong.status(), 401);
    let url = format!("http://{}/v3/oauth/token/generate", service.address);
    let token =
        reqwest::Client::new().post(url).json(&json!({"key": "crm", "secret": "crm-secret"})).send().await.unwrap();
    let token: Value = token.json().await.unwrap();
    let token = token["data"]["accessToken"].as_str().unwrap().to_owned();
    let by_token = service.bare(&body).header("X-CAP-API-OAUTH-TOKEN", &token).send().await.unwrap();
    assert_eq!(by_token.status(), 200);
    let secrets =
        ["server123", "hunter2-hunter2", "crm-secret", MOBILE, EMAIL, "of a private nature", "private-key-4711"];
    secrets.map(str::to_owned).into_iter().chain([code, token]).collect()
}

fn parent() -> String {
    format!("00-{TRACE}-b7ad6b7169203331-01")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_and_the_metrics_contain_nothing_private() {
    // All that the service and the database driver can log.
    let verbose = |command: &mut Command| {
        command.env("COUPON_ISSUER__LOG__FILTER", "trace");
    };
    let (service, _) = Service::with_series(verbose).await;
    let private = private_values(&service).await;
    let metrics = service.metrics().await;
    let log = service.stop();
    let own: Vec<&String> = log.iter().filter(|line| !line.contains("\"target\"")).collect();
    for secret in &private {
        let found: Vec<_> = own.iter().filter(|line| line.contains(secret)).collect();
        assert!(found.is_empty() && !metrics.contains(secret), "{secret} is in {found:?}");
    }
    let lines = answered(&log);
    let line = lines.iter().find(|line| line["trace_id"] == TRACE).unwrap();
    assert_eq!((&line["status"], &line["issued"]), (&json!(200), &json!(1)));
    assert!(lines.iter().any(|line| line["client"] == "crm"), "{lines:?}");
}

/// A collector that keeps what it receives.
struct Collector {
    endpoint: String,
    bodies: Arc<Mutex<Vec<Bytes>>>,
    serving: AbortHandle,
}

impl Collector {
    async fn start() -> Self {
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let take = async |State(bodies): State<Arc<Mutex<Vec<Bytes>>>>, body: Bytes| bodies.lock().unwrap().push(body);
        let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&bodies));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await }).abort_handle();
        Self { endpoint, bodies, serving }
    }

    fn spans(&self) -> Vec<Span> {
        let bodies = self.bodies.lock().unwrap();
        let requests = bodies.iter().map(|body| ExportTraceServiceRequest::decode(body.clone()).unwrap());
        requests.flat_map(|one| one.resource_spans).flat_map(|one| one.scope_spans).flat_map(|one| one.spans).collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_spans_of_an_issuance_are_in_the_trace_of_the_caller() {
    let collector = Collector::start().await;
    let endpoint = collector.endpoint.clone();
    let (service, _) = Service::with_series(|command| {
        // At this ratio, only requests that the caller samples are traced. The endpoint may include the path.
        let endpoint = format!("{endpoint}/v1/traces");
        command.env("COUPON_ISSUER__TRACES__OTLP_ENDPOINT", endpoint).env("COUPON_ISSUER__TRACES__SAMPLE_RATIO", "0");
    })
    .await;
    let private = private_values(&service).await;
    let unsampled = format!("00-{}-b7ad6b7169203331-00", "1".repeat(32));
    let body = json!({"seriesIds": [2], "customer": {"id": "c"}});
    assert_eq!(service.request(&body).header("traceparent", unsampled).send().await.unwrap().status(), 200);
    let of_no_trace = service.request(&body).header("X-Request-Id", "of-no-trace").send().await.unwrap();
    assert_eq!(of_no_trace.status(), 200);
    let log = service.stop();

    let spans = collector.spans();
    let exported: Vec<_> = spans.iter().map(|span| (span.name.as_str(), hex(&span.trace_id))).collect();
    assert!(exported.iter().all(|(_, trace_id)| trace_id == TRACE), "{exported:#?}");
    let named =
        |name: &str| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{name}: {exported:?}"));
    let request = named("POST /v2/coupon/bulk/issue");
    assert_eq!(hex(&request.parent_span_id), "b7ad6b7169203331");
    for name in ["authenticate", "claim the key", "find the customer", "load the settings", "write"] {
        assert_eq!(named(name).parent_span_id, request.span_id, "{name}");
    }
    for name in ["wait in the queue", "write a batch"] {
        assert_eq!(named(name).parent_span_id, named("write").span_id, "{name}");
    }
    for secret in &private {
        let found = collector.bodies.lock().unwrap().iter().any(|body| String::from_utf8_lossy(body).contains(secret));
        assert!(!found && !log.iter().any(|line| line.contains(secret)), "{secret} is in a span or in the log");
    }
    // With a collector, the log lines are the same as without one.
    let line = answered(&log).into_iter().find(|line| line["trace_id"] == TRACE).unwrap();
    assert_eq!((&line["route"], &line["issued"]), (&json!("/v2/coupon/bulk/issue"), &json!(1)));
    let line = answered(&log).into_iter().find(|line| line["request_id"] == "of-no-trace").unwrap();
    assert_eq!(line["trace_id"], Value::Null, "a trace that was not exported is not logged");
}

/// From the trace of each request, operators find the batch that wrote it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_and_the_requests_in_it_link_to_each_other() {
    let collector = Collector::start().await;
    let endpoint = collector.endpoint.clone();
    let (service, database) = Service::with_series(|command| {
        command.env("COUPON_ISSUER__TRACES__OTLP_ENDPOINT", endpoint).env("COUPON_ISSUER__TRACES__SAMPLE_RATIO", "1");
        command.env("COUPON_ISSUER__WRITER__TASKS", "1");
    })
    .await;
    // While the first request waits for the lock, two others queue for one batch.
    let mut holder = sqlx::ConnectOptions::connect(&database).await.unwrap();
    sqlx::raw_sql("select pg_advisory_lock(hashint8extended(2, 1))").execute(&mut holder).await.unwrap();
    let issue = async |series: i64, customer: &str| {
        service.issue(json!({"seriesIds": [series], "customer": {"id": customer}})).await
    };
    let waiting = async |count: usize| service.assert_reports(&format!("coupon_issuer_queue_coupons {count}")).await;
    let (first, second, third, ()) = tokio::join!(
        issue(2, "a"),
        async {
            service.assert_reports("coupon_issuer_requests_running 1").await;
            issue(1, "b").await
        },
        async {
            service.assert_reports("coupon_issuer_requests_running 1").await;
            issue(1, "c").await
        },
        async {
            waiting(2).await;
            crate::support::close(holder).await;
        }
    );
    for answer in [first, second, third] {
        assert_eq!(outcomes(&answer), ["issued"]);
    }
    service.stop();
    let spans = collector.spans();
    let batches: Vec<&Span> = spans.iter().filter(|span| span.name == "write a batch").collect();
    let shared = batches.iter().find(|batch| !batch.links.is_empty()).unwrap_or_else(|| panic!("{spans:#?}"));
    let other = spans.iter().find(|span| span.name == "write" && span.span_id == shared.links[0].span_id).unwrap();
    assert_ne!(other.trace_id, shared.trace_id);
    assert_eq!(other.links[0].span_id, shared.span_id, "the request links to its batch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_or_unreachable_collector_delays_no_request() {
    // This collector accepts connections and never answers.
    let black_hole = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let unreachable = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for address in [black_hole.local_addr().unwrap(), unreachable] {
        let (service, _) = Service::with_series(|command| {
            command.env("COUPON_ISSUER__TRACES__OTLP_ENDPOINT", format!("http://{address}"));
            command.env("COUPON_ISSUER__TRACES__SAMPLE_RATIO", "1").env("OTEL_BSP_SCHEDULE_DELAY", "10");
            command.env("OTEL_BSP_MAX_QUEUE_SIZE", "20").env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10");
        })
        .await;
        for customer in 0..100 {
            let answer = service.issue(json!({"seriesIds": [1], "customer": {"id": customer.to_string()}})).await;
            assert_eq!(outcomes(&answer), ["issued"]);
        }
        let lines = answered(&service.stop());
        assert_eq!(lines.len(), 100);
        let slow = lines.iter().filter(|line| line["ms"].as_u64().unwrap() > 8_000).count();
        assert_eq!(slow, 0, "{lines:#?}");
    }
}
