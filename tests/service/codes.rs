//! A code of an organisation has one meaning: it is the code of one coupon, or the generic code of one series. Neither `apply` nor
//! `codes import` can give it another, in whichever order they run. Upper and lower case are the same.

use std::io::Write as _;
use std::time::Duration;

use coupon_issuer::codes::{self, ImportEvent};
use coupon_issuer::model::OrgId;
use coupon_issuer::model::SeriesId;
use coupon_issuer::provisioning;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions};
use tempfile::NamedTempFile;

use crate::support::{TestApp, close, eventually, new_database, outcome, repeatable_series};

const POOL: &str = "client_handling_type = \"DISC_CODE_PIN\"";

/// An organisation without tills, since each `apply` hashes their passwords, and hashing is slow.
fn org(id: i64, series: &[String]) -> String {
    format!("[[orgs]]\nid = {id}\nname = \"Test Retail\"\n{}", series.concat())
}

fn generic(code: &str) -> String {
    format!("client_handling_type = \"GENERIC\"\ngeneric_code = \"{code}\"")
}

async fn apply(connect: &PgConnectOptions, file: &str) {
    provisioning::apply_text(connect, file).await.unwrap();
}

/// The error of a file that `apply` must reject.
async fn apply_error(connect: &PgConnectOptions, file: &str) -> String {
    provisioning::apply_text(connect, file).await.unwrap_err().to_string()
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// Imports codes into a series of organisation 1. Returns how many it accepted, and the rejected lines. Asserts that a dry run reports the
/// same before.
async fn import(connect: &PgConnectOptions, series: i64, codes: &str) -> (i64, Vec<String>) {
    let codes = file(codes);
    let (mut rejected, mut dry_rejected) = (Vec::new(), Vec::new());
    let dry_run = codes::dry_run(connect, OrgId(1), SeriesId(series), codes.path(), &mut |event| {
        push_rejected(event, &mut dry_rejected);
    })
    .await;
    let done = codes::import(connect, OrgId(1), SeriesId(series), codes.path(), &mut |event| {
        push_rejected(event, &mut rejected);
    })
    .await
    .unwrap();
    let counts = dry_run.unwrap().counts;
    assert_eq!(
        (counts.accepted, counts.duplicates, counts.malformed),
        (done.accepted, done.duplicates, done.malformed)
    );
    // A dry run reports some lines only at its end.
    dry_rejected.sort_by_key(|line| line.split(':').next().unwrap().parse::<i64>().unwrap());
    assert_eq!(dry_rejected, rejected);
    assert_eq!(i64::try_from(rejected.len()).unwrap(), done.duplicates);
    (done.accepted, rejected)
}

fn push_rejected(event: ImportEvent, rejected: &mut Vec<String>) {
    if let ImportEvent::Rejected { line, reason } = event {
        rejected.push(format!("{line}: {reason}"));
    }
}

async fn execute(connect: &PgConnectOptions, statement: &str) {
    let mut connection = connect.connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut connection).await.unwrap();
    close(connection).await;
}

/// Stores a coupon of series 1 with this code.
async fn issue(connect: &PgConnectOptions, code: &str) {
    let statement = format!(
        "insert into coupon (org_id, coupon_id, series_id, issued_at, series_version, origin_id, expires_on, customer_id, code)
         values (1, 1, 1, now(), 1, 1, '2027-05-09', 'c', '{code}')"
    );
    execute(connect, &statement).await;
}

#[tokio::test]
async fn a_generic_code_that_has_another_meaning_is_rejected() {
    let connect = new_database().await;
    let before = [
        repeatable_series(1, POOL),
        repeatable_series(2, &generic("old-spring")),
        repeatable_series(3, &generic("SUMMER")),
        repeatable_series(4, "coupon_prefix = \"X-\"\nrandom_code_length = 5\ncoupon_suffix = \"-z\""),
    ];
    apply(&connect, &org(1, &before)).await;
    apply(&connect, &org(1, &[repeatable_series(2, &generic("Spring"))])).await;
    assert_eq!(import(&connect, 1, "gift-e1\nGIVEN-1\n").await.0, 2);
    issue(&connect, "TAKEN").await;

    let key = "line 13: orgs[1].series[1].generic_code: ";
    for (code, reason) in [
        ("summer", "is, or was before, the generic code of series 3"),
        ("spring", "is, or was before, the generic code of series 2"),
        ("OLD-SPRING", "is, or was before, the generic code of series 2"),
        ("GIFT-E1", "is also an uploaded code of series 1"),
        ("gift-e1", "is also an uploaded code of series 1"),
        ("given-1", "is also an uploaded code of series 1"),
        ("taken", "is also the code of a coupon of series 1"),
        ("x-ab23c-Z", "could also be drawn for series 4: give one of them another length or a prefix"),
    ] {
        assert_eq!(
            apply_error(&connect, &org(1, &[repeatable_series(9, &generic(code))])).await,
            format!("{key}{reason}")
        );
        // The same for a file that also lists another series with a generic code.
        assert_eq!(
            apply_error(
                &connect,
                &org(1, &[repeatable_series(3, &generic("SUMMER")), repeatable_series(9, &generic(code))])
            )
            .await
            .lines()
            .count(),
            1
        );
    }
    // Both mistakes at once. The other organisation has its own codes.
    let other = org(2, &[repeatable_series(1, POOL), repeatable_series(2, &generic("gift-e1"))]);
    apply(&connect, &other).await;
    let error = apply_error(
        &connect,
        &org(1, &[repeatable_series(8, &generic("taken")), repeatable_series(9, &generic("gift-e1"))]),
    )
    .await;
    assert_eq!(
        error.lines().map(|line| line.split(": ").nth(1).unwrap()).collect::<Vec<_>>(),
        ["orgs[1].series[1].generic_code", "orgs[1].series[2].generic_code",]
    );
    // A series may return to an earlier code of its own. X-AB2OC-Z cannot be drawn, since no series draws an O.
    apply(
        &connect,
        &org(1, &[repeatable_series(2, &generic("old-spring")), repeatable_series(9, &generic("x-ab2oc-z"))]),
    )
    .await;
    apply(&connect, &org(1, &[repeatable_series(2, &generic("spring"))])).await;
}

#[tokio::test]
async fn settings_that_could_draw_an_existing_code_are_rejected() {
    let connect = new_database().await;
    apply(
        &connect,
        &org(
            1,
            &[
                repeatable_series(1, POOL),
                repeatable_series(2, &generic("old-23456")),
                repeatable_series(3, &generic("AB-ZZZZZ-X")),
            ],
        ),
    )
    .await;
    apply(&connect, &org(1, &[repeatable_series(2, &generic("new-23456"))])).await;
    let codes = "gift-e2345\nCARDE23456\nEND-22222-q\nlong-code-that-is-secret-22222\n1234567\n";
    assert_eq!(import(&connect, 1, codes).await, (5, vec![]));
    // Uploaded codes stay uploaded when their series changes its kind of code.
    apply(&connect, &org(1, &[repeatable_series(1, "coupon_prefix = \"P\"")])).await;

    let choose = ": choose another prefix or length";
    for (settings, reason) in [
        ("coupon_prefix = \"gift-\"\nrandom_code_length = 5", "could draw an uploaded code of series 1, GIFT…"),
        ("random_code_length = 10", "could draw an uploaded code of series 1, CARD…"),
        (
            "coupon_suffix = \"-Q\"\ncoupon_prefix = \"END-\"\nalpha_numeric = false\nrandom_code_length = 5",
            "could draw an uploaded code of series 1, END-…",
        ),
        (
            "coupon_prefix = \"12\"\nrandom_code_length = 5\nalpha_numeric = false",
            "could draw an uploaded code of series 1, 123…",
        ),
        (
            "coupon_prefix = \"new-\"\nrandom_code_length = 5",
            "could draw \"NEW-23456\", which is, or was before, the generic code of series 2",
        ),
        (
            "coupon_prefix = \"old-\"\nrandom_code_length = 5",
            "could draw \"OLD-23456\", which is, or was before, the generic code of series 2",
        ),
        (
            "coupon_prefix = \"ab-\"\nrandom_code_length = 5\ncoupon_suffix = \"-x\"",
            "could draw \"AB-ZZZZZ-X\", which is, or was before, the generic code of series 3",
        ),
    ] {
        let error = apply_error(&connect, &org(1, &[repeatable_series(9, settings)])).await;
        let (position, message) = error.split_once(".coupon_prefix: ").unwrap();
        assert!(position.starts_with("line ") && position.ends_with(": orgs[1].series[1]"), "{position}");
        assert_eq!(message, format!("{reason}{choose}"), "{settings}");
        // The same for series 2, even where the code in the way is its own generic code.
        assert!(provisioning::apply_text(&connect, &org(1, &[repeatable_series(2, settings)])).await.is_err());
    }
    // Similar settings, and the settings of another organisation, are no collision.
    for settings in [
        "coupon_prefix = \"gift_\"\nrandom_code_length = 5",
        "coupon_prefix = \"gift-\"\nrandom_code_length = 6",
        "coupon_prefix = \"gift-\"\nrandom_code_length = 5\nalpha_numeric = false",
        "coupon_prefix = \"gift-\"\nrandom_code_length = 5\ncoupon_suffix = \"X\"",
    ] {
        apply(&connect, &org(1, &[repeatable_series(9, settings)])).await;
    }
    apply(&connect, &org(2, &[repeatable_series(9, "random_code_length = 10")])).await;
}

#[tokio::test]
async fn an_upload_rejects_codes_that_exist_or_could_be_drawn() {
    let connect = new_database().await;
    let settings = "coupon_prefix = \"gift-\"\nrandom_code_length = 5";
    apply(
        &connect,
        &org(
            1,
            &[
                repeatable_series(1, POOL),
                repeatable_series(2, POOL),
                repeatable_series(3, &generic("old-spring")),
                repeatable_series(4, settings),
            ],
        ),
    )
    .await;
    apply(&connect, &org(1, &[repeatable_series(3, &generic("spring"))])).await;
    // The codes of another organisation do not count.
    let others = [
        repeatable_series(1, POOL),
        repeatable_series(3, &generic("free-1")),
        repeatable_series(4, "coupon_prefix = \"free-\"\nrandom_code_length = 5"),
    ];
    apply(&connect, &org(2, &others)).await;
    issue(&connect, "TAKEN").await;
    assert_eq!(import(&connect, 2, "Pooled\n").await, (1, vec![]));

    let exists = "the code has been uploaded or issued before";
    let drawable = "a series could draw this code";
    let codes = "gift-e1\nGIFT-E1\ntaken\nTaken\npooled\nspring\nOLD-spring\ngift-23456\ngift-2345o\nGift-abcde,c\nfree-1\nfree-23456\n";
    let rejected = [
        format!("2: {exists}"),
        format!("3: {exists}"),
        format!("4: {exists}"),
        format!("5: {exists}"),
        format!("6: {exists}"),
        format!("7: {exists}"),
        format!("8: {drawable}"),
        format!("10: {drawable}"),
    ];
    assert_eq!(import(&connect, 1, codes).await, (4, rejected.to_vec()));
}

#[tokio::test]
async fn a_code_is_issued_in_the_case_of_its_upload_and_collides_in_either_case() {
    let app = TestApp::start(&[repeatable_series(1, POOL)]).await;
    assert_eq!(import(&app.connect, 1, "gift-e1\nGIFT-E2\n").await, (2, vec![]));
    let mut issued = Vec::new();
    for _ in 0..2 {
        let entity = app.issue("c", &[1]).await["response"][0].clone();
        assert_eq!(outcome(&entity), "issued");
        issued.push(entity["result"]["code"].as_str().unwrap().to_owned());
    }
    issued.sort();
    assert_eq!(issued, ["GIFT-E2", "gift-e1"]);
    assert_eq!(app.count("select from issued_coupon where code = 'gift-e1'").await, 1);
    let exists = "the code has been uploaded or issued before";
    let (accepted, rejected) = import(&app.connect, 1, "GIFT-E1\ngift-e2\n").await;
    assert_eq!((accepted, rejected), (0, vec![format!("1: {exists}"), format!("2: {exists}")]));
    for code in ["gift-E1", "gift-E2"] {
        let error = apply_error(&app.connect, &org(1, &[repeatable_series(2, &generic(code))])).await;
        assert!(error.ends_with("generic_code: is also the code of a coupon of series 1"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_apply_and_an_upload_at_once_only_one_gets_the_code() {
    let connect = new_database().await;
    apply(&connect, &org(1, &[repeatable_series(1, POOL)])).await;
    let (mut applied, mut uploaded) = (0, 0);
    for round in 0..120_u32 {
        let (id, code) = (i64::from(round) + 100, format!("t{round}-e2345"));
        let settings = match round % 3 {
            0 => generic(&code),
            1 => format!("coupon_prefix = \"t{round}-\"\nrandom_code_length = 5"),
            _ => format!("coupon_prefix = \"t{round}-e\"\nrandom_code_length = 5\nalpha_numeric = false")
                .replace("= 5", "= 5\ncoupon_suffix = \"\""),
        };
        let code = if round % 3 == 2 { format!("T{round}-E23456") } else { code };
        // Both take some milliseconds. The head start varies, so that each of them is sometimes the first.
        let head_start = Duration::from_micros(u64::from(round % 12) * 1000);
        let applying = async {
            tokio::time::sleep(Duration::from_millis(4)).await;
            provisioning::apply_text(&connect, &org(1, &[repeatable_series(id, &settings)]))
                .await
                .map_err(|error| error.to_string())
        };
        let uploading = async {
            tokio::time::sleep(head_start).await;
            let codes = file(&format!("{code}\n"));
            codes::import(&connect, OrgId(1), SeriesId(1), codes.path(), &mut |_| {}).await.unwrap().accepted
        };
        let (outcome, accepted) = tokio::join!(applying, uploading);
        match (outcome, accepted) {
            (Ok(_), 0) => applied += 1,
            (Err(error), 1) => {
                assert!(error.contains("an uploaded code of series 1"), "{error}");
                uploaded += 1;
            }
            both => panic!("round {round}: {both:?}"),
        }
    }
    assert!(applied > 0 && uploaded > 0, "{applied} applied, {uploaded} uploaded");
}

/// A batch draws the code with the old settings of the series while `apply` checks the file.
#[tokio::test]
async fn a_generic_code_that_a_batch_has_just_drawn_is_rejected() {
    let connect = new_database().await;
    let drawing = repeatable_series(1, "coupon_prefix = \"A-\"\nrandom_code_length = 5");
    apply(&connect, &org(1, &[drawing])).await;
    // A batch holds this lock until it is committed.
    let mut batch = connect.connect().await.unwrap();
    sqlx::raw_sql("select pg_advisory_lock_shared(20191, hashint8(1))").execute(&mut batch).await.unwrap();
    let file = org(1, &[repeatable_series(1, &generic("a-23456"))]);
    let meanwhile = async {
        eventually("the apply waits for the batch", async || {
            let waits = "select exists (select from pg_locks l join pg_database d on d.oid = l.database
                          where d.datname = current_database() and l.locktype = 'advisory' and not l.granted)";
            let mut connection = connect.connect().await.unwrap();
            let waits: bool = sqlx::query_scalar(waits).fetch_one(&mut connection).await.unwrap();
            close(connection).await;
            waits
        })
        .await;
        issue(&connect, "A-23456").await;
        close(batch).await;
    };
    let (error, ()) = tokio::join!(apply_error(&connect, &file), meanwhile);
    assert!(error.ends_with("generic_code: is also the code of a coupon of series 1"), "{error}");
    // A code that the batch did not draw is accepted.
    apply(&connect, &file.replace("a-23456", "a-23457")).await;
}

/// The uploads list the same codes in opposite orders, and must not deadlock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_uploads_at_once_each_code_goes_to_one() {
    let connect = new_database().await;
    apply(&connect, &org(1, &[repeatable_series(1, POOL), repeatable_series(2, POOL)])).await;
    for round in 0..10 {
        let uploads = [(1, false), (2, true)].map(|(series, is_reversed)| {
            let connect = connect.clone();
            tokio::spawn(async move {
                let mut codes: Vec<String> = (0..2000).map(|number| format!("{round}-{number}\n")).collect();
                if is_reversed {
                    codes.reverse();
                }
                let codes = file(&codes.concat());
                codes::import(&connect, OrgId(1), SeriesId(series), codes.path(), &mut |_| {}).await.unwrap().accepted
            })
        });
        let [one, other] = uploads;
        assert_eq!(one.await.unwrap() + other.await.unwrap(), 2000, "round {round}");
    }
}
