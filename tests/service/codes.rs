//! One code, one meaning: whatever `apply` and `codes import` are told, and whichever comes first, a code of an organisation is one
//! customer's or the generic one of one series. Upper and lower case are the same.

use coupon_issuer::model::OrgId;
use coupon_issuer::model::SeriesId;
use coupon_issuer::provisioning;
use std::io::Write as _;
use std::time::Duration;

use coupon_issuer::codes::{self, Event};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions};
use tempfile::NamedTempFile;

use crate::support::{TestApp, close, eventually, new_database, outcome, series};

const POOL: &str = "client_handling_type = \"DISC_CODE_PIN\"";

/// Organisations without a till, whose secret would be hashed each time.
fn org(id: i64, series: &[String]) -> String {
    format!("[[orgs]]\nid = {id}\nname = \"Test Retail\"\n{}", series.concat())
}

fn generic(code: &str) -> String {
    format!("client_handling_type = \"GENERIC\"\ngeneric_code = \"{code}\"")
}

async fn apply(connect: &PgConnectOptions, file: &str) {
    provisioning::apply_text(connect, file).await.unwrap();
}

async fn refused(connect: &PgConnectOptions, file: &str) -> String {
    provisioning::apply_text(connect, file).await.unwrap_err().to_string()
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// Uploads codes into a series of organisation 1: how many were taken, and the lines that were not. A dry run says the same before.
async fn import(connect: &PgConnectOptions, series: i64, codes: &str) -> (i64, Vec<String>) {
    let codes = file(codes);
    let (mut told, mut promised) = (Vec::new(), Vec::new());
    let dry_run =
        codes::dry_run(connect, OrgId(1), SeriesId(series), codes.path(), &mut |event| reject(event, &mut promised))
            .await;
    let done = codes::import(connect, OrgId(1), SeriesId(series), codes.path(), &mut |event| reject(event, &mut told))
        .await
        .unwrap();
    let counts = dry_run.unwrap().counts;
    assert_eq!(
        (counts.accepted, counts.duplicates, counts.malformed),
        (done.accepted, done.duplicates, done.malformed)
    );
    // In order of the lines; a dry run finds some of them at its end.
    promised.sort_by_key(|line| line.split(':').next().unwrap().parse::<i64>().unwrap());
    assert_eq!(promised, told);
    assert_eq!(i64::try_from(told.len()).unwrap(), done.duplicates);
    (done.accepted, told)
}

fn reject(event: Event, told: &mut Vec<String>) {
    if let Event::Rejected { line, reason } = event {
        told.push(format!("{line}: {reason}"));
    }
}

async fn execute(connect: &PgConnectOptions, statement: &str) {
    let mut connection = connect.connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut connection).await.unwrap();
    close(connection).await;
}

/// A coupon of series 1, as if it had been issued.
async fn issue(connect: &PgConnectOptions, code: &str) {
    let statement = format!(
        "insert into coupon (org_id, coupon_id, series_id, issued_at, series_version, origin_id, expires_on, customer_id, code)
         values (1, 1, 1, now(), 1, 1, '2027-05-09', 'c', '{code}')"
    );
    execute(connect, &statement).await;
}

#[tokio::test]
async fn a_generic_code_is_nothing_else() {
    let connect = new_database().await;
    let before = [
        series(1, POOL),
        series(2, &generic("old-spring")),
        series(3, &generic("SUMMER")),
        series(4, "coupon_prefix = \"X-\"\nrandom_code_length = 5\ncoupon_suffix = \"-z\""),
    ];
    apply(&connect, &org(1, &before)).await;
    apply(&connect, &org(1, &[series(2, &generic("Spring"))])).await;
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
        assert_eq!(refused(&connect, &org(1, &[series(9, &generic(code))])).await, format!("{key}{reason}"));
        // So for a series that had another one.
        assert_eq!(
            refused(&connect, &org(1, &[series(3, &generic("SUMMER")), series(9, &generic(code))]))
                .await
                .lines()
                .count(),
            1
        );
    }
    // All mistakes at once, of two organisations.
    let other = org(2, &[series(1, POOL), series(2, &generic("gift-e1"))]);
    apply(&connect, &other).await;
    let told = refused(&connect, &org(1, &[series(8, &generic("taken")), series(9, &generic("gift-e1"))])).await;
    assert_eq!(
        told.lines().map(|line| line.split(": ").nth(1).unwrap()).collect::<Vec<_>>(),
        ["orgs[1].series[1].generic_code", "orgs[1].series[2].generic_code",]
    );
    // A series may have its own again, and what is close to another's.
    apply(&connect, &org(1, &[series(2, &generic("old-spring")), series(9, &generic("x-ab2oc-z"))])).await;
    apply(&connect, &org(1, &[series(2, &generic("spring"))])).await;
}

#[tokio::test]
async fn a_shape_draws_no_code_that_is_there() {
    let connect = new_database().await;
    apply(&connect, &org(1, &[series(1, POOL), series(2, &generic("old-23456")), series(3, &generic("AB-ZZZZZ-X"))]))
        .await;
    apply(&connect, &org(1, &[series(2, &generic("new-23456"))])).await;
    let codes = "gift-e2345\nCARDE23456\nEND-22222-q\nlong-code-that-is-secret-22222\n1234567\n";
    assert_eq!(import(&connect, 1, codes).await, (5, vec![]));
    // What was uploaded stays so, whatever becomes of the series.
    apply(&connect, &org(1, &[series(1, "coupon_prefix = \"P\"")])).await;

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
        let told = refused(&connect, &org(1, &[series(9, settings)])).await;
        let (place, told) = told.split_once(".coupon_prefix: ").unwrap();
        assert!(place.starts_with("line ") && place.ends_with(": orgs[1].series[1]"), "{place}");
        assert_eq!(told, format!("{reason}{choose}"), "{settings}");
        // So for a series that had another one, which might be another series' own.
        assert!(provisioning::apply_text(&connect, &org(1, &[series(2, settings)])).await.is_err());
    }
    // Close to it, and another organisation's.
    for settings in [
        "coupon_prefix = \"gift_\"\nrandom_code_length = 5",
        "coupon_prefix = \"gift-\"\nrandom_code_length = 6",
        "coupon_prefix = \"gift-\"\nrandom_code_length = 5\nalpha_numeric = false",
        "coupon_prefix = \"gift-\"\nrandom_code_length = 5\ncoupon_suffix = \"X\"",
    ] {
        apply(&connect, &org(1, &[series(9, settings)])).await;
    }
    apply(&connect, &org(2, &[series(9, "random_code_length = 10")])).await;
}

#[tokio::test]
async fn an_upload_takes_no_code_that_is_there_or_may_come() {
    let connect = new_database().await;
    let settings = "coupon_prefix = \"gift-\"\nrandom_code_length = 5";
    apply(
        &connect,
        &org(1, &[series(1, POOL), series(2, POOL), series(3, &generic("old-spring")), series(4, settings)]),
    )
    .await;
    apply(&connect, &org(1, &[series(3, &generic("spring"))])).await;
    // Another organisation's are nothing to it.
    let others = [
        series(1, POOL),
        series(3, &generic("free-1")),
        series(4, "coupon_prefix = \"free-\"\nrandom_code_length = 5"),
    ];
    apply(&connect, &org(2, &others)).await;
    issue(&connect, "TAKEN").await;
    assert_eq!(import(&connect, 2, "Pooled\n").await, (1, vec![]));

    let exists = "the code has been uploaded or issued before";
    let drawable = "a series could draw this code";
    let codes = "gift-e1\nGIFT-E1\ntaken\nTaken\npooled\nspring\nOLD-spring\ngift-23456\ngift-2345o\nGift-abcde,c\nfree-1\nfree-23456\n";
    let told = [
        format!("2: {exists}"),
        format!("3: {exists}"),
        format!("4: {exists}"),
        format!("5: {exists}"),
        format!("6: {exists}"),
        format!("7: {exists}"),
        format!("8: {drawable}"),
        format!("10: {drawable}"),
    ];
    assert_eq!(import(&connect, 1, codes).await, (4, told.to_vec()));
}

/// What was uploaded in lower case is given out so, and is the same code in upper case for whoever comes next.
#[tokio::test]
async fn a_code_is_given_out_as_it_was_uploaded_and_collides_in_any_case() {
    let app = TestApp::start(&[series(1, POOL)]).await;
    assert_eq!(import(&app.connect, 1, "gift-e1\nGIFT-E2\n").await, (2, vec![]));
    let mut given = Vec::new();
    for _ in 0..2 {
        let entity = app.issue("c", &[1]).await["response"][0].clone();
        assert_eq!(outcome(&entity), "issued");
        given.push(entity["result"]["code"].as_str().unwrap().to_owned());
    }
    given.sort();
    assert_eq!(given, ["GIFT-E2", "gift-e1"]);
    assert_eq!(app.count("select from issued_coupon where code = 'gift-e1'").await, 1);
    let exists = "the code has been uploaded or issued before";
    let (accepted, told) = import(&app.connect, 1, "GIFT-E1\ngift-e2\n").await;
    assert_eq!((accepted, told), (0, vec![format!("1: {exists}"), format!("2: {exists}")]));
    for code in ["gift-E1", "gift-E2"] {
        let told = refused(&app.connect, &org(1, &[series(2, &generic(code))])).await;
        assert!(told.ends_with("generic_code: is also the code of a coupon of series 1"), "{told}");
    }
}

/// An `apply` that gives a code a meaning, and an upload of the same code at the same time: one of the two is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_apply_and_an_upload_at_once_one_has_the_code() {
    let connect = new_database().await;
    apply(&connect, &org(1, &[series(1, POOL)])).await;
    let (mut applied, mut uploaded) = (0, 0);
    for turn in 0..120_u32 {
        let (id, code) = (i64::from(turn) + 100, format!("t{turn}-e2345"));
        let settings = match turn % 3 {
            0 => generic(&code),
            1 => format!("coupon_prefix = \"t{turn}-\"\nrandom_code_length = 5"),
            _ => format!("coupon_prefix = \"t{turn}-e\"\nrandom_code_length = 5\nalpha_numeric = false")
                .replace("= 5", "= 5\ncoupon_suffix = \"\""),
        };
        let code = if turn % 3 == 2 { format!("T{turn}-E23456") } else { code };
        // Either is the first at times: both need some milliseconds.
        let head_start = Duration::from_micros(u64::from(turn % 12) * 1000);
        let applying = async {
            tokio::time::sleep(Duration::from_millis(4)).await;
            provisioning::apply_text(&connect, &org(1, &[series(id, &settings)]))
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
            (Err(told), 1) => {
                assert!(told.contains("an uploaded code of series 1"), "{told}");
                uploaded += 1;
            }
            both => panic!("turn {turn}: {both:?}"),
        }
    }
    assert!(applied > 0 && uploaded > 0, "{applied} applied, {uploaded} uploaded");
}

/// A coupon that is decided while the file is being checked draws the code, by the shape that the file takes away.
#[tokio::test]
async fn a_generic_code_is_none_that_was_drawn_a_moment_before() {
    let connect = new_database().await;
    let drawing = series(1, "coupon_prefix = \"A-\"\nrandom_code_length = 5");
    apply(&connect, &org(1, &[drawing])).await;
    // As a batch does until it is committed.
    let mut batch = connect.connect().await.unwrap();
    sqlx::raw_sql("select pg_advisory_lock_shared(20191, hashint8(1))").execute(&mut batch).await.unwrap();
    let file = org(1, &[series(1, &generic("a-23456"))]);
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
    let (told, ()) = tokio::join!(refused(&connect, &file), meanwhile);
    assert!(told.ends_with("generic_code: is also the code of a coupon of series 1"), "{told}");
    // Had it drawn another one, the file would be fine.
    apply(&connect, &file.replace("a-23456", "a-23457")).await;
}

/// Two uploads of the same codes in another order, into two series of an organisation: none waits for the other in a circle, and each code
/// is taken once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_uploads_at_once_one_has_the_code() {
    let connect = new_database().await;
    apply(&connect, &org(1, &[series(1, POOL), series(2, POOL)])).await;
    for turn in 0..10 {
        let uploads = [(1, false), (2, true)].map(|(series, is_reversed)| {
            let connect = connect.clone();
            tokio::spawn(async move {
                let mut codes: Vec<String> = (0..2000).map(|number| format!("{turn}-{number}\n")).collect();
                if is_reversed {
                    codes.reverse();
                }
                let codes = file(&codes.concat());
                codes::import(&connect, OrgId(1), SeriesId(series), codes.path(), &mut |_| {}).await.unwrap().accepted
            })
        });
        let [one, other] = uploads;
        assert_eq!(one.await.unwrap() + other.await.unwrap(), 2000, "turn {turn}");
    }
}
