//! Bad input: the caller gets the contract's status and code, and a message that names the field. A refused request stores
//! nothing, and no input causes a 500.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{ORG, TestApp, failure, only_error, outcomes, repeatable_series};

const GOOD: &str = r#"{"seriesIds":[101],"customer":{"id":"c"}}"#;

async fn start() -> TestApp {
    TestApp::start(&[repeatable_series(101, "")]).await
}

fn with_ids(ids: &str) -> String {
    format!(r#"{{"seriesIds":{ids},"customer":{{"id":"c"}}}}"#)
}

fn with_customer(customer: &str) -> String {
    format!(r#"{{"seriesIds":[101],"customer":{customer}}}"#)
}

fn with_metadata(metadata: &str) -> String {
    format!(r#"{{"seriesIds":[101],"customer":{{"id":"c"}},"metadata":{metadata}}}"#)
}

/// Each body must get a 400 with this code and a message with its words, and store nothing.
async fn assert_refused<B: Into<reqwest::Body> + Clone>(app: &TestApp, code: u64, rows: &[(B, &str)]) {
    for (row, (body, words)) in rows.iter().enumerate() {
        let (status, got, message) = failure(app.post(body.clone()).send().await.unwrap()).await;
        assert_eq!((status, got), (400, code), "row {row}, {words}: {message}");
        assert!(message.contains(words), "row {row}, {words}: {message}");
    }
    assert_nothing_stored(app).await;
}

async fn assert_nothing_stored(app: &TestApp) {
    assert_eq!(app.count("select from coupon").await, 0);
    assert_eq!(app.count("select from customer").await, 0);
}

/// Each body must be accepted, and its one coupon issued.
async fn assert_issued(app: &TestApp, bodies: &[String]) {
    for body in bodies {
        let answer = app.post(body.clone()).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{body}");
        assert_eq!(outcomes(&answer.json().await.unwrap()), ["issued"], "{body}");
    }
}

/// Sends these bytes over a new connection, and returns head and body of what comes back until it is closed.
async fn exchange(app: &TestApp, request: &[u8]) -> (String, String) {
    let (mut read, mut write) = TcpStream::connect(app.address).await.unwrap().into_split();
    let mut answer = Vec::new();
    // The service may answer and close the connection before it has read the whole request: a failed write is no failure.
    let _ = tokio::join!(write.write_all(request), read.read_to_end(&mut answer));
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_ascii_lowercase(), body.to_owned())
}

/// The head of a raw request by the till, with these further header lines.
fn head(version: &str, lines: &str) -> String {
    format!(
        "POST /v2/coupon/bulk/issue {version}\r\nHost: till\r\nConnection: close\r\n\
         Authorization: Basic c3RvcmUuc2VydmVyOnNlcnZlcjEyMw==\r\nContent-Type: application/json\r\n{lines}\r\n\r\n"
    )
}

#[tokio::test]
async fn a_body_must_be_one_json_object() {
    let app = start().await;
    let object = "expected an object";
    let rows: Vec<(Vec<u8>, &str)> = vec![
        (b"".to_vec(), "not JSON"),
        (b" \n".to_vec(), "not JSON"),
        (b"seriesIds=101&customer=c".to_vec(), "not JSON"),
        (b"{'seriesIds':[101],'customer':{'id':'c'}}".to_vec(), "not JSON"),
        (GOOD.as_bytes()[..GOOD.len() - 1].to_vec(), "not JSON"),
        (br#"{"seriesIds":[101,],"customer":{"id":"c"}}"#.to_vec(), "not JSON"),
        (br#"{"seriesIds":[0101],"customer":{"id":"c"}}"#.to_vec(), "not JSON"),
        (br#"{"seriesIds":[NaN],"customer":{"id":"c"}}"#.to_vec(), "not JSON"),
        (format!("{GOOD} x").into_bytes(), "goes on after its JSON object"),
        (format!("{GOOD}{GOOD}").into_bytes(), "goes on after its JSON object"),
        (br#"[[101],{"id":"c"},null]"#.to_vec(), object),
        (b"101".to_vec(), object),
        (br#""text""#.to_vec(), object),
        (b"true".to_vec(), object),
        (b"null".to_vec(), object),
    ];
    assert_refused(&app, 400, &rows).await;
}

#[tokio::test]
async fn a_body_must_be_utf_8() {
    let app = start().await;
    let rows: Vec<(Vec<u8>, &str)> = vec![
        (b"{\"seriesIds\":[101],\"customer\":{\"id\":\"\xff\"}}".to_vec(), ""),
        (b"{\"seriesIds\":[101],\"customer\":{\"id\":\"c\xc3\"}}".to_vec(), ""),
        (b"{\"seriesIds\":[101],\"customer\":{\"id\":\"c\"},\"unknownField\":\"\xff\"}".to_vec(), ""),
        (b"\xff\xfe{\0}\0".to_vec(), "not JSON"),
    ];
    assert_refused(&app, 400, &rows).await;
}

#[tokio::test]
async fn series_ids_must_be_integers() {
    let app = start().await;
    let rows = [
        (r#"{"customer":{"id":"c"}}"#.to_owned(), "seriesIds"),
        (with_ids("null"), "seriesIds"),
        (with_ids("[]"), "seriesIds"),
        (with_ids("101"), "seriesIds"),
        (with_ids(r#""101""#), "seriesIds"),
        (with_ids(r#""surrogate, hex escape""#), "expected a sequence"),
        (with_ids(r#"{"0":101}"#), "seriesIds"),
        (with_ids(r#"["101.0"]"#), "seriesIds[0]"),
        (with_ids(r#"["+101"]"#), "seriesIds[0]"),
        (with_ids(r#"["-101"]"#), "seriesIds[0]"),
        (with_ids(r#"[" 101"]"#), "seriesIds[0]"),
        (with_ids(r#"[""]"#), "seriesIds[0]"),
        (with_ids(r#"["١٠١"]"#), "seriesIds[0]"),
        (with_ids(r#"["9223372036854775808"]"#), "seriesIds[0]"),
        (with_ids("[101,null]"), "seriesIds[1]"),
        (with_ids("[101,101,1.5]"), "seriesIds[2]"),
        (with_ids("[9007199254740993.0]"), "seriesIds[0]"),
        (with_ids("[[101]]"), "seriesIds[0]"),
        (with_ids("[9223372036854775808]"), "seriesIds[0]"),
        (with_ids("[-9223372036854775809]"), "seriesIds[0]"),
    ];
    assert_refused(&app, 400, &rows).await;
}

#[tokio::test]
async fn a_number_out_of_range_is_reported_with_its_field() {
    let app = start().await;
    let rows = [(with_ids("[101,1e400]"), "seriesIds[1]"), (with_customer(r#"{"id":-1e400}"#), "customer.id")];
    assert_refused(&app, 400, &rows).await;
}

#[tokio::test]
async fn a_request_may_list_at_most_100_series() {
    let app = start().await;
    let ids = |count: i64| json!((900..900 + count).collect::<Vec<_>>()).to_string();
    assert_refused(&app, 1060, &[(with_ids(&ids(101)), "seriesIds"), (with_ids(&ids(5000)), "seriesIds")]).await;

    let answer: Value = app.post(with_ids(&ids(100))).send().await.unwrap().json().await.unwrap();
    assert_eq!((&answer["totalCount"], &answer["failureCount"]), (&json!(100), &json!(100)));
    let extremes = with_ids("[0,-1,9223372036854775807,-9223372036854775808,101,101]");
    let answer = app.post(extremes).send().await.unwrap().json().await.unwrap();
    assert_eq!(outcomes(&answer), ["707", "707", "707", "707", "issued", "issued"]);
}

#[tokio::test]
async fn a_customer_must_be_an_object() {
    let app = start().await;
    let rows = [
        (r#"{"seriesIds":[101]}"#.to_owned(), "customer"),
        (with_customer("null"), "customer"),
        (with_customer(r#""c""#), "customer"),
        (with_customer("566881933"), "customer"),
        (with_customer(r#"["c",null,null,null]"#), "customer"),
        (with_customer(r#"[{"id":"c"}]"#), "customer"),
    ];
    assert_refused(&app, 400, &rows).await;
}

#[tokio::test]
async fn a_customer_must_have_an_identifier() {
    let app = start().await;
    let rows = [
        "{}",
        r#"{"name":"c"}"#,
        r#"{"id":""}"#,
        r#"{"id":null}"#,
        r#"{"id":"","mobile":"","email":"","externalId":""}"#,
        r#"{"id":" ","mobile":"\t","email":"\n","externalId":"  "}"#,
        r#"{"id":null,"mobile":null,"email":null,"externalId":null}"#,
    ];
    assert_refused(&app, 701, &rows.map(|customer| (with_customer(customer), "customer"))).await;
}

#[tokio::test]
async fn an_identifier_of_a_wrong_type_or_length_is_refused() {
    let app = start().await;
    let long = |field: &str, length: usize| format!(r#"{{"{field}":"{}"}}"#, "x".repeat(length));
    let rows = [
        (r#"{"id":1.5}"#.to_owned(), "customer.id"),
        (r#"{"id":18446744073709551616}"#.to_owned(), "customer.id"),
        (r#"{"id":true}"#.to_owned(), "customer.id"),
        (r#"{"id":{"value":"c"}}"#.to_owned(), "customer.id"),
        (r#"{"id":["c"]}"#.to_owned(), "customer.id"),
        (r#"{"mobile":-919900000001}"#.to_owned(), "customer.mobile"),
        (r#"{"mobile":919900000001.5}"#.to_owned(), "customer.mobile"),
        (r#"{"mobile":123456789012345678901}"#.to_owned(), "customer.mobile"),
        (r#"{"mobile":["919900000001"]}"#.to_owned(), "customer.mobile"),
        (r#"{"id":"Zoe \ud83d"}"#.to_owned(), "customer.id"),
        (r#"{"email":"\ud83d\n@example.com"}"#.to_owned(), "customer.email"),
        (r#"{"externalId":"\udc00"}"#.to_owned(), "customer.externalId"),
        (r#"{"mobile":"91 99000 O0001"}"#.to_owned(), "customer.mobile"),
        (r#"{"mobile":"+"}"#.to_owned(), "customer.mobile"),
        (r#"{"mobile":"٩١٩٩٠٠"}"#.to_owned(), "customer.mobile"),
        (r#"{"mobile":"123456789012345678901"}"#.to_owned(), "customer.mobile"),
        (r#"{"id":"c","mobile":"letters"}"#.to_owned(), "customer.mobile"),
        (r#"{"email":["a@example.com"]}"#.to_owned(), "customer.email"),
        (r#"{"externalId":7}"#.to_owned(), "customer.externalId"),
        (long("id", 256), "customer.id"),
        (long("mobile", 256), "customer.mobile"),
        (long("externalId", 256), "customer.externalId"),
        (long("email", 255), "customer.email"),
    ];
    assert_refused(&app, 400, &rows.map(|(customer, words)| (with_customer(&customer), words))).await;
}

#[tokio::test]
async fn one_identifier_of_any_kind_is_enough() {
    let app = start().await;
    let longest = "𝟙".repeat(255);
    let customers = [
        r#"{"id":"c"}"#,
        r#"{"id":566881933}"#,
        r#"{"id":-1}"#,
        r#"{"id":18446744073709551615}"#,
        r#"{"id":null,"mobile":"+91 99000-00001"}"#,
        r#"{"id":"","mobile":"12345678901234567890"}"#,
        r#"{"mobile":" ","email":"A@example.com"}"#,
        r#"{"externalId":"crm/7"}"#,
        &format!(r#"{{"id":"{longest}"}}"#),
        &format!(r#"{{"externalId":"{longest}"}}"#),
    ];
    assert_issued(&app, &customers.map(with_customer)).await;
}

/// JSON has one type of number, and some libraries write each number with a fraction.
#[tokio::test]
async fn a_whole_number_may_be_written_with_a_fraction_of_zero() {
    let app = start().await;
    let bodies = [with_ids("[101.0]"), with_ids("[1.01e2]"), with_customer(r#"{"id":2251799813685247.0}"#)];
    assert_issued(&app, &bodies).await;
    assert_eq!(app.count("select from coupon where series_id = 101 and customer_id = 'c'").await, 2);
    assert_eq!(app.count("select from coupon where customer_id = '2251799813685247'").await, 1);
    // 2^53 and 2^53 + 1 are the same floating-point number, so the service cannot know which one is meant. The others are not whole.
    for id in ["9007199254740992.0", "9007199254740990.6", "4503599627370497.2", "1e-1", "1.00000000000000000001"] {
        let answer = app.post(with_customer(&format!(r#"{{"id":{id}}}"#))).send().await.unwrap();
        let (status, _, message) = failure(answer).await;
        assert!(status == 400 && message.contains("customer.id"), "{id}: {message}");
    }
}

/// Public clients of the platform write them like this.
#[tokio::test]
async fn a_series_id_may_be_a_string_and_a_mobile_a_number() {
    let app = start().await;
    let bodies = [with_ids(r#"["101"]"#), with_ids(r#"["0101"]"#), with_customer(r#"{"mobile":919900000001}"#)];
    assert_issued(&app, &bodies).await;
    assert_eq!(app.count("select from customer where mobile = '919900000001'").await, 1);
    let formatted = with_customer(r#"{"mobile":"+91 99000-00001"}"#);
    assert_issued(&app, &[formatted, with_customer(r#"{"mobile":919900000001.0}"#)]).await;
    assert_eq!(app.count("select from customer").await, 1);
    assert_eq!(app.count("select from coupon where series_id = 101").await, 5);
}

/// People and address books write these separators. The message names a character that is none of them.
#[tokio::test]
async fn separators_in_a_mobile_are_ignored_and_other_characters_refused() {
    let app = start().await;
    let written = [
        "+91/99000-00001",
        "+91\u{a0}99000\u{a0}00001",
        "+91 99000\u{2013}00001",
        "\u{202a}+919900000001\u{202c}",
        "\u{feff}919900000001",
        "\u{ff0b}91 (99000) 0.0.0.0.1",
    ];
    assert_issued(&app, &written.map(|mobile| with_customer(&json!({"mobile": mobile}).to_string()))).await;
    assert_eq!(app.count("select from customer").await, 1);
    for (mobile, words) in
        [("91 9900O00001", "'O', U+004F"), ("9199\u{7}", "U+0007"), ("٩١", "U+0669"), ("+", "no digit")]
    {
        let (status, _, message) =
            failure(app.post(with_customer(&json!({"mobile": mobile}).to_string())).send().await.unwrap()).await;
        assert!(status == 400 && message.contains("customer.mobile") && message.contains(words), "{message}");
    }
}

#[tokio::test]
async fn the_message_names_a_wrong_encoding() {
    let app = start().await;
    let utf_16: Vec<u8> = GOOD.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let with_mark = [b"\xff\xfe".to_vec(), utf_16.clone()].concat();
    let rows = [
        (format!("\u{feff}{GOOD}").into_bytes(), "byte order mark"),
        (utf_16, "UTF-16"),
        (with_mark, "UTF-16"),
        (GOOD.encode_utf16().flat_map(u16::to_be_bytes).collect(), "UTF-16"),
        (b"{\"seriesIds\":[101],\"customer\":{\"id\":\"Zo\xeb\"}}".to_vec(), "no UTF-8"),
    ];
    assert_refused(&app, 400, &rows).await;
    let request = app.client().post(app.url("/v2/coupon/bulk/issue?accountId=%ff")).body(GOOD);
    let request = request.basic_auth("store.server", Some("server123")).header("Content-Type", "application/json");
    let (status, _, message) = failure(request.send().await.unwrap()).await;
    assert!(status == 400 && message.contains("accountId") && message.contains("UTF-8"), "{message}");
    assert_nothing_stored(&app).await;
}

/// A person with a browser looks for a page. A program that asks for data at `/` gets 404.
#[tokio::test]
async fn a_browser_is_redirected_from_the_root_to_the_docs() {
    let app = start().await;
    let browser = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let get =
        async |accept: &str, path: &str| browser.get(app.url(path)).header("Accept", accept).send().await.unwrap();
    let answer = get("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8", "/").await;
    assert_eq!((answer.status().as_u16(), &answer.headers()["location"]), (303, &"/docs".parse().unwrap()));
    for (accept, path) in [("*/*", "/"), ("application/json", "/"), ("text/html", "/nowhere"), ("text/html", "//")] {
        assert_eq!(get(accept, path).await.status(), 404, "{accept} {path}");
    }
    let without =
        TestApp::start_with(&format!("{ORG}{}", repeatable_series(101, "")), |settings| settings.http.docs = false)
            .await;
    let answer = browser.get(without.url("/")).header("Accept", "text/html").send().await.unwrap();
    assert_eq!(answer.status(), 404);
}

#[tokio::test]
async fn irrelevant_headers_and_query_parameters_are_ignored() {
    let app = start().await;
    for query in ["format=json", "source=instore&x=1&x=2", "format=json&source=Instore"] {
        let request = app.client().post(app.url(&format!("/v2/coupon/bulk/issue?{query}"))).body(GOOD);
        let request = request.basic_auth("store.server", Some("server123")).header("Content-Type", "application/json");
        let request = request.header("Cookie", "JSESSIONID=1; a").header("Accept-Charset", "utf-8");
        let answer = request.header("Accept-Language", "fr").header("Accept", "text/xml").send().await.unwrap();
        assert_eq!(outcomes(&answer.json().await.unwrap()), ["issued"], "{query}");
    }
    assert_eq!(app.count("select from issued_coupon where source = 'INSTORE'").await, 3);
}

#[tokio::test]
async fn unknown_fields_are_ignored() {
    let app = start().await;
    let bodies = [
        r#"{"unknownField":null,"seriesIds":[101],"customer":{"id":"c"}}"#,
        r#"{"seriesIds":[101],"customer":{"id":"c","name":["C"],"id2":7}}"#,
        r#"{"seriesIds":[101],"customer":{"id":"c"},"metadata":{"sourceTypes":[1]}}"#,
        r#"{"seriesids":"x","seriesIds":[101],"Customer":1,"customer":{"id":"c"}}"#,
        "\n\t {\"seriesIds\" : [ 101 ] , \"customer\" : { \"id\" : \"c\" } } \r\n",
    ];
    assert_issued(&app, &bodies.map(str::to_owned)).await;
}

#[tokio::test]
async fn deep_nesting_is_ignored_in_unknown_fields_and_refused_in_known_ones() {
    let app = start().await;
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let unknown =
        |levels| format!(r#"{{"unknownField":{},"seriesIds":[101],"customer":{{"id":"c"}}}}"#, nested(levels));
    assert_refused(
        &app,
        400,
        &[
            (with_ids(&nested(200)), "seriesIds[0]"),
            (with_customer(&nested(200)), "customer"),
            (with_customer(&format!(r#"{{"id":{}}}"#, nested(100_000))), "customer.id"),
        ],
    )
    .await;
    assert_issued(&app, &[unknown(50), unknown(200), unknown(100_000)]).await;
}

#[tokio::test]
async fn a_duplicate_key_is_refused() {
    let app = start().await;
    let rows = [
        (r#"{"seriesIds":[101],"seriesIds":[102],"customer":{"id":"c"}}"#, "seriesIds"),
        (r#"{"seriesIds":[101],"customer":{"id":"c"},"customer":{"id":"d"}}"#, "customer"),
        (r#"{"seriesIds":[101],"customer":{"id":"c","id":"d"}}"#, "id"),
        (r#"{"seriesIds":[101],"customer":{"mobile":"1","mobile":"2"}}"#, "mobile"),
        (r#"{"seriesIds":[101],"customer":{"id":"c"},"metadata":{"notes":"a","notes":"b"}}"#, "notes"),
    ];
    assert_refused(&app, 400, &rows).await;
}

#[tokio::test]
async fn metadata_must_be_an_object_of_short_strings() {
    let app = start().await;
    let rows = [
        (r#"["POS"]"#.to_owned(), "metadata"),
        (r#""POS""#.to_owned(), "metadata"),
        ("7".to_owned(), "metadata"),
        (r#"{"sourceType":7}"#.to_owned(), "metadata.sourceType"),
        (r#"{"notes":["a"]}"#.to_owned(), "metadata.notes"),
        (json!({"sourceType": "é".repeat(51)}).to_string(), "metadata.sourceType"),
        (json!({"sourceId": "é".repeat(51)}).to_string(), "metadata.sourceId"),
        (json!({"sourceActivity": "é".repeat(51)}).to_string(), "metadata.sourceActivity"),
        (json!({"notes": "☕".repeat(251)}).to_string(), "metadata.notes"),
        (json!({"reason": "☕".repeat(251)}).to_string(), "metadata.reason"),
    ];
    assert_refused(&app, 400, &rows.map(|(metadata, words)| (with_metadata(&metadata), words))).await;

    let (short, long) = ("é".repeat(50), "☕".repeat(250));
    let full = json!({"sourceType": short, "sourceId": short, "sourceActivity": short, "notes": long, "reason": long});
    let bodies = ["null", "{}", r#"{"notes":null}"#, r#"{"notes":""}"#, &full.to_string()].map(with_metadata);
    assert_issued(&app, &bodies).await;
}

/// Postgres cannot store U+0000 in a text.
#[tokio::test]
async fn a_nul_character_is_refused_with_the_name_of_its_field() {
    let app = start().await;
    let rows = [
        (with_customer(r#"{"id":"a\u0000b"}"#), "customer.id"),
        (with_customer(r#"{"id":"\u0000"}"#), "customer.id"),
        (with_customer(r#"{"mobile":"1\u00002"}"#), "customer.mobile"),
        (with_customer(r#"{"externalId":"a\u0000"}"#), "customer.externalId"),
        (with_customer(r#"{"email":"\u0000a@example.com"}"#), "customer.email"),
        (with_metadata(r#"{"sourceType":"\u0000"}"#), "metadata.sourceType"),
        (with_metadata(r#"{"notes":"a\u0000b"}"#), "metadata.notes"),
    ];
    assert_refused(&app, 400, &rows).await;
}

#[tokio::test]
async fn the_query_may_have_one_known_source_and_one_account() {
    let app = start().await;
    let send = async |query: &str| {
        let request = app.client().post(app.url(&format!("/v2/coupon/bulk/issue?{query}")));
        let request = request.basic_auth("store.server", Some("server123"));
        request.header("Content-Type", "application/json").body(GOOD).send().await.unwrap()
    };
    let long = format!("accountId={}", "x".repeat(256));
    for (query, words) in [
        ("source=BOGUS", "source"),
        ("source=INSTORE%20", "source"),
        ("source=%FF%00", "source"),
        ("source=INSTORE&source=LINE", "source"),
        ("accountId=a%00b", "accountId"),
        ("accountId=a&accountId=b", "accountId"),
        (&long, "accountId"),
    ] {
        let (status, code, message) = failure(send(query).await).await;
        assert_eq!((status, code), (400, 400), "{query}: {message}");
        assert!(message.contains(words), "{query}: {message}");
    }
    assert_nothing_stored(&app).await;

    for source in [
        "FACEBOOK",
        "WEB_ENGAGE",
        "WECHAT",
        "INSTORE",
        "MARTJACK",
        "TMALL",
        "TAOBAO",
        "JD",
        "ECOMMERCE",
        "WEBSITE",
        "LINE",
        "MOBILE_APP",
        "Facebook",
        "mobile_app",
    ] {
        assert_eq!(send(&format!("source={source}")).await.status(), 200, "{source}");
    }
    assert_eq!(send("").await.status(), 200);
    assert_eq!(app.count("select distinct source from issued_coupon").await, 12);
    assert_eq!(app.count("select from issued_coupon where source = 'INSTORE'").await, 2);
}

#[tokio::test]
async fn only_uncompressed_json_is_accepted() {
    let app = start().await;
    let send = async |headers: &[(&str, &str)]| {
        let mut request = app.bare(GOOD).basic_auth("store.server", Some("server123"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    };
    let json = ("Content-Type", "application/json");
    for headers in [
        &[][..],
        &[("Content-Type", "")],
        &[("Content-Type", "text/plain")],
        &[("Content-Type", "text/json")],
        &[("Content-Type", "application/x-www-form-urlencoded")],
        &[("Content-Type", "application/jsonx")],
        &[("Content-Type", "application/merge-patch+json")],
        &[json, ("Content-Type", "text/plain")],
        &[json, ("Content-Encoding", "gzip")],
        &[json, ("Content-Encoding", "br")],
        &[json, ("Content-Encoding", "identity, gzip")],
    ] {
        let (status, code, message) = failure(send(headers).await).await;
        assert_eq!((status, code), (415, 415), "{headers:?}: {message}");
        assert!(message.contains("Content-"), "{headers:?}: {message}");
    }
    assert_nothing_stored(&app).await;

    for headers in [
        &[json][..],
        &[("Content-Type", "application/json; charset=utf-8")],
        &[("Content-Type", "APPLICATION/JSON")],
        &[("Content-Type", "application/json ;charset=\"UTF-8\"")],
        &[json, ("Content-Encoding", "identity")],
    ] {
        assert_eq!(send(headers).await.status(), 200, "{headers:?}");
    }
}

#[tokio::test]
async fn a_wrong_method_is_405_with_the_allowed_ones() {
    let app = start().await;
    for (method, path, allowed) in [
        (Method::GET, "/v2/coupon/bulk/issue", "POST"),
        (Method::PUT, "/v2/coupon/bulk/issue", "POST"),
        (Method::DELETE, "/v2/coupon/bulk/issue", "POST"),
        (Method::PATCH, "/v2/coupon/bulk/issue", "POST"),
        (Method::OPTIONS, "/v2/coupon/bulk/issue", "POST"),
        (Method::GET, "/v3/oauth/token/generate", "POST"),
        (Method::POST, "/healthz", "GET,HEAD"),
        (Method::POST, "/readyz", "GET,HEAD"),
    ] {
        let request = app.client().request(method.clone(), app.url(path));
        let request = request.basic_auth("store.server", Some("server123")).header("Content-Type", "application/json");
        let answer = request.body(GOOD).send().await.unwrap();
        assert_eq!(answer.headers()["allow"], allowed, "{method} {path}");
        let (status, code, message) = failure(answer).await;
        assert_eq!((status, code), (405, 405), "{method} {path}: {message}");
    }
    assert_nothing_stored(&app).await;
}

#[tokio::test]
async fn an_unknown_path_is_404() {
    let app = start().await;
    for path in [
        "/",
        "/v2/coupon/bulk",
        "/v2/coupon/bulk/issue/",
        "/v2/coupon/bulk/issue/101/2",
        "/V2/coupon/bulk/issue",
        "/v2/coupon/bulk/issue%00",
        "/metrics",
    ] {
        for request in [app.client().get(app.url(path)), app.client().post(app.url(path)).body(GOOD)] {
            let request = request.basic_auth("store.server", Some("server123"));
            let (status, code, message) = failure(request.send().await.unwrap()).await;
            assert_eq!((status, code), (404, 404), "{path}: {message}");
        }
    }
    assert_nothing_stored(&app).await;
}

#[tokio::test]
async fn a_body_may_have_at_most_one_mebibyte() {
    let app = start().await;
    let padded = |size: usize| format!("{GOOD}{}", " ".repeat(size - GOOD.len()));
    assert_eq!(app.post(padded(1 << 20)).send().await.unwrap().status(), 200);
    assert_eq!(app.count("select from coupon").await, 1);

    for size in [(1 << 20) + 1, 2 << 20] {
        let body = padded(size);
        let with_length = head("HTTP/1.1", &format!("Content-Length: {size}")) + &body;
        let chunked = head("HTTP/1.1", "Transfer-Encoding: chunked") + &format!("{size:x}\r\n{body}\r\n0\r\n\r\n");
        for request in [with_length, chunked] {
            let (head, body) = exchange(&app, request.as_bytes()).await;
            assert!(head.starts_with("http/1.1 413 "), "{head}");
            assert_eq!(only_error(&body).0, 413);
        }
    }
    assert_eq!(app.count("select from coupon").await, 1);
}

#[tokio::test]
async fn chunked_bodies_and_http_1_0_are_accepted() {
    let app = start().await;
    let (first, second) = GOOD.split_at(20);
    let chunks = format!("{:x}\r\n{first}\r\n{:x};ext=1\r\n{second}\r\n0\r\n\r\n", first.len(), second.len());
    for request in [
        head("HTTP/1.0", &format!("Content-Length: {}", GOOD.len())) + GOOD,
        head("HTTP/1.1", "Transfer-Encoding: chunked") + &chunks,
    ] {
        let (head, body) = exchange(&app, request.as_bytes()).await;
        assert_eq!(head.split(' ').nth(1), Some("200"), "{head}");
        assert_eq!(outcomes(&serde_json::from_str(&body).unwrap()), ["issued"]);
    }
}

#[tokio::test]
async fn a_slow_body_is_408() {
    let file = format!("{ORG}{}", repeatable_series(101, ""));
    let app = TestApp::start_with(&file, |settings| settings.http.body_timeout = Duration::from_millis(100)).await;
    let half = &GOOD[..GOOD.len() / 2];
    for request in [
        head("HTTP/1.1", &format!("Content-Length: {}", GOOD.len())) + half,
        head("HTTP/1.1", &format!("Content-Length: {}", GOOD.len())),
        head("HTTP/1.1", "Transfer-Encoding: chunked") + &format!("{:x}\r\n{half}\r\n", half.len()),
    ] {
        let (head, body) = exchange(&app, request.as_bytes()).await;
        assert!(head.starts_with("http/1.1 408 "), "{head}");
        assert!(head.contains("\r\nx-cap-request-id: ") && head.contains("\r\nx-request-id: "), "{head}");
        assert_eq!(only_error(&body).0, 408);
    }
    assert_nothing_stored(&app).await;
}

#[tokio::test]
async fn a_message_does_not_repeat_a_long_value() {
    let app = start().await;
    let long = format!("\"{}\"", "x".repeat(100 << 10));
    let key = format!(r#"{{"seriesIds":[101],"customer":{{"id":"c"}},{long}}}"#);
    for body in [
        with_ids(&long),
        with_ids(&format!("[{long}]")),
        with_ids(&format!("[{}]", "9".repeat(100 << 10))),
        with_customer(&long),
        with_customer(&format!(r#"{{"id":{long}}}"#)),
        with_customer(&format!(r#"{{"mobile":{long}}}"#)),
        with_metadata(&long),
        with_metadata(&format!(r#"{{"notes":{long}}}"#)),
        key,
        long,
    ] {
        let answer = app.post(body.clone()).send().await.unwrap();
        let (status, code, message) = failure(answer).await;
        assert_eq!((status, code), (400, 400), "{message}");
        assert!(message.len() < 1000, "{}", message.len());
    }
    let query = format!("/v2/coupon/bulk/issue?source={}", "x".repeat(8 << 10));
    let request = app.client().post(app.url(&query)).basic_auth("store.server", Some("server123"));
    let (status, _, message) = failure(request.json(&json!({})).send().await.unwrap()).await;
    assert!(status == 400 && message.len() < 1000, "{status} {message}");
    assert_nothing_stored(&app).await;
}

#[tokio::test]
async fn a_well_formed_request_id_is_kept_and_any_other_replaced() {
    let app = start().await;
    let longest = "x".repeat(128);
    let send = async |headers: &[(&str, &str)]| {
        let mut request = app.post(GOOD);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        let [one, other, third] = ["x-cap-request-id", "x-request-id", "x-cap-requestid"].map(|name| {
            let values: Vec<_> = answer.headers().get_all(name).iter().collect();
            assert_eq!(values.len(), 1, "{headers:?}");
            values[0].to_str().unwrap().to_owned()
        });
        assert_eq!([&one, &one], [&other, &third]);
        one
    };
    for id in ["till-7/000123", "0", &longest] {
        for name in ["X-CAP-REQUEST-ID", "X-Request-Id", "X-Cap-RequestID"] {
            assert_eq!(send(&[(name, id)]).await, id);
        }
    }
    assert_eq!(send(&[("X-Request-Id", "b"), ("X-CAP-REQUEST-ID", "a")]).await, "a");

    let too_long = "x".repeat(129);
    let mut replacements = std::collections::BTreeSet::new();
    for id in ["", "two words", "tab\there", "quote\"", "<b>", "näive", &too_long] {
        let replacement = send(&[("X-CAP-REQUEST-ID", id)]).await;
        assert!(!replacement.is_empty() && replacement != id && replacement.len() <= 128, "{id}: {replacement}");
        replacements.insert(replacement);
    }
    assert_eq!(replacements.len(), 7);
}

#[tokio::test]
async fn a_refused_request_keeps_its_request_id() {
    let app = start().await;
    let requests = [
        app.post("{}"),
        app.bare(GOOD),
        app.bare(GOOD).basic_auth("store.server", Some("wrong")),
        app.bare(GOOD).basic_auth("office.desk", Some("office123")),
        app.bare(GOOD).basic_auth("store.server", Some("server123")),
        app.client().get(app.url("/v2/coupon/bulk/issue")).basic_auth("store.server", Some("server123")),
        app.client().get(app.url("/nowhere")),
    ];
    let mut statuses = Vec::new();
    for request in requests {
        let answer = request.header("X-Request-Id", "till-7/000123").send().await.unwrap();
        assert_eq!(answer.headers()["x-request-id"], "till-7/000123");
        statuses.push(failure(answer).await.0);
    }
    assert_eq!(statuses, [400, 401, 401, 403, 415, 405, 404]);
}
