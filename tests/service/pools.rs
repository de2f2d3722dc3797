//! Uploaded codes: what `codes import` accepts and refuses, how it resumes, and what `codes status` shows. That concurrent callers
//! never get the same code is in races.rs.

use coupon_issuer::model::OrgId;
use coupon_issuer::model::SeriesId;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use coupon_issuer::codes::{self, ImportEvent, ImportState};
use coupon_issuer::config::Settings;
use coupon_issuer::db::{Db, LimitKind};
use coupon_issuer::model::Clock;
use serde_json::Value;
use sqlx::ConnectOptions;
use tempfile::NamedTempFile;

use crate::support::{TestApp, close, outcome, repeatable_series};

const POOL: &str = "client_handling_type = \"DISC_CODE_PIN\"";

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// Codes `{prefix}0` to below `{prefix}{count}`, one a line.
fn many(prefix: &str, count: usize) -> NamedTempFile {
    let mut text = String::new();
    for number in 0..count {
        writeln!(text, "{prefix}{number}").unwrap();
    }
    file(&text)
}

/// Accepted, duplicates, malformed.
fn counts(state: &ImportState) -> (i64, i64, i64) {
    (state.accepted, state.duplicates, state.malformed)
}

/// Uploads a file, and returns the counts and the rejected lines.
async fn import(app: &TestApp, series: i64, file: &NamedTempFile) -> ((i64, i64, i64), Vec<String>) {
    let mut rejected = Vec::new();
    let mut on_event = |event| {
        if let ImportEvent::Rejected { line, reason } = event {
            rejected.push(format!("{line}: {reason}"));
        }
    };
    let done = codes::import(&app.connect, OrgId(1), SeriesId(series), file.path(), &mut on_event).await.unwrap();
    assert!(done.is_finished);
    (counts(&done), rejected)
}

async fn status(app: &TestApp) -> String {
    let now = app.clock.now();
    codes::status(&app.connect, None, None, now).await.unwrap().to_string()
}

async fn code(app: &TestApp, customer: &str, series: i64) -> String {
    let entity = app.issue(customer, &[series]).await["response"][0].clone();
    match &entity["result"]["code"] {
        Value::String(code) => code.clone(),
        _ => outcome(&entity),
    }
}

#[tokio::test]
async fn uploaded_codes_are_issued_unchanged_and_bound_ones_only_to_their_customer() {
    let app = TestApp::start(&[repeatable_series(1, POOL)]).await;
    assert_eq!(code(&app, "c", 1).await, "5005");
    assert_eq!(
        import(&app, 1, &file("code,customer\nGift-1a\n\"A+/.b_\"\nfor-c,c\nfor-d,d\n")).await,
        ((4, 0, 0), vec![])
    );

    // First the code bound to the customer, then shared ones, never one bound to somebody else.
    assert_eq!(code(&app, "c", 1).await, "for-c");
    let mut rest = [code(&app, "c", 1).await, code(&app, "c", 1).await];
    rest.sort();
    assert_eq!(rest, ["A+/.b_", "Gift-1a"]);
    assert_eq!(code(&app, "c", 1).await, "5005");
    assert_eq!(code(&app, "d", 1).await, "for-d");
    assert_eq!(app.count("select from pool_code").await, 0);
}

#[tokio::test]
async fn duplicates_and_malformed_lines_are_reported_by_line() {
    let generic = "client_handling_type = \"GENERIC\"\ngeneric_code = \"SPRING\"";
    let app = TestApp::start(&[
        repeatable_series(1, POOL),
        repeatable_series(2, POOL),
        repeatable_series(3, generic),
        repeatable_series(4, ""),
    ])
    .await;
    let generated = code(&app, "c", 4).await;
    assert_eq!(import(&app, 2, &file("other\n")).await.0, (1, 0, 0));
    assert_eq!(import(&app, 1, &file("given")).await.0, (1, 0, 0));
    assert_eq!(code(&app, "c", 1).await, "given");

    let text = format!("new\ngiven\nother\nnew\n\nno code\nSPRING\n{generated}\nlast,x,y\nlast\n");
    let before = "the code has been uploaded or issued before";
    let expected = [
        format!("2: {before}"),
        format!("3: {before}"),
        format!("4: {before}"),
        "6: the code has a space or a control character in it".to_owned(),
        format!("7: {before}"),
        "8: a series could draw this code".to_owned(),
        "9: there is more than a code and a customer".to_owned(),
    ];
    assert_eq!(import(&app, 1, &file(&text)).await, ((2, 5, 2), expected.to_vec()));
    assert_eq!(app.count("select from pool_code where series_id = 1 and code in ('NEW', 'LAST')").await, 2);
    assert_eq!(app.count("select from pool_code where series_id = 1").await, 2);
}

/// Earlier versions took each of these lines for a code, or bound the code to the wrong customer.
#[tokio::test]
async fn separators_and_headers_are_understood() {
    let app = TestApp::start(&[repeatable_series(1, POOL)]).await;
    for (text, customer, expected) in [
        ("GIFT-A1;566881933\n", "566881933", "GIFT-A1"),
        ("code;customer\nGIFT-A2;566881934\n", "566881934", "GIFT-A2"),
        ("customer,code\n566881935,GIFT-A3\n", "566881935", "GIFT-A3"),
        ("\u{feff}sep=;\r\nCode;Customer ID\r\nGIFT-A4;566881936\r\n", "566881936", "GIFT-A4"),
        ("Customer_Id\tVoucher Code\n566881937\tGIFT-A5\n", "566881937", "GIFT-A5"),
    ] {
        assert_eq!(import(&app, 1, &file(text)).await, ((1, 0, 0), vec![]), "{text}");
        assert_eq!(code(&app, customer, 1).await, expected, "{text}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_understood_is_refused_as_a_whole() {
    let app = TestApp::start(&[repeatable_series(1, POOL)]).await;
    for (text, reason) in [
        ("\u{200b}\nA1\n", "line 1 cannot be parsed, so the whole file is refused: the code has U+200B"),
        ("=\"00077\"\nA1\n", "=\"00077\" is a formula"),
        ("code,amount\nA1,5\n", "a header with the unknown column \"amount\""),
        ("A1,c\nA2,d\n\u{feff}customer,code\ne,A3\n", "line 3 cannot be parsed"),
    ] {
        let codes = file(text);
        for dry_run in [false, true] {
            let refused = if dry_run {
                codes::dry_run(&app.connect, OrgId(1), SeriesId(1), codes.path(), &mut |_| {}).await.unwrap_err()
            } else {
                codes::import(&app.connect, OrgId(1), SeriesId(1), codes.path(), &mut |_| {}).await.unwrap_err()
            };
            let refused = refused.to_string();
            assert!(refused.starts_with(codes.path().to_str().unwrap()) && refused.contains(reason), "{refused}");
        }
    }
    assert_eq!(app.count("select from pool_code").await, 0);
    assert_eq!(app.count("select from code_import").await, 0);
}

#[tokio::test]
async fn a_dry_run_predicts_the_upload_and_stores_nothing() {
    let generic = "client_handling_type = \"GENERIC\"\ngeneric_code = \"SPRING\"";
    let app = TestApp::start(&[repeatable_series(1, POOL), repeatable_series(2, generic)]).await;
    import(&app, 1, &file("given")).await;
    assert_eq!(code(&app, "c", 1).await, "given");
    import(&app, 1, &file("waiting")).await;

    let codes = file("new\ngiven\nnew\n\nno code\nSPRING\nwaiting,c\nlast,c\n");
    let mut rejected = Vec::new();
    let mut on_event = |event| {
        if let ImportEvent::Rejected { line, reason } = event {
            rejected.push(format!("{line}: {reason}"));
        }
    };
    let dry_run = codes::dry_run(&app.connect, OrgId(1), SeriesId(1), codes.path(), &mut on_event).await.unwrap();
    assert_eq!(dry_run.layout.unwrap().to_string(), "separator comma, no header: the first code is new");
    assert_eq!(app.count("select from pool_code").await, 1);
    assert_eq!(app.count("select from code_import").await, 2);

    let done = import(&app, 1, &codes).await;
    rejected.sort();
    assert_eq!((counts(&dry_run.counts), rejected), done);
    let again = codes::dry_run(&app.connect, OrgId(1), SeriesId(1), codes.path(), &mut |_| {}).await.unwrap();
    assert!(again.counts.is_finished);
    assert_eq!(counts(&again.counts), done.0);
}

#[tokio::test]
async fn uploading_a_file_again_changes_nothing() {
    let app = TestApp::start(&[repeatable_series(1, POOL), repeatable_series(2, POOL)]).await;
    let codes = file("one\ntwo\n");
    assert_eq!(import(&app, 1, &codes).await, ((2, 0, 0), vec![]));
    code(&app, "c", 1).await;
    // The same content in another file: the upload changes nothing and returns the counts of the first.
    assert_eq!(import(&app, 1, &file("one\ntwo\n")).await, ((2, 0, 0), vec![]));
    assert_eq!(app.count("select from pool_code").await, 1);
    // To another series, it is another upload, in which each code is a duplicate.
    assert_eq!(import(&app, 2, &codes).await.0, (0, 2, 0));
}

/// The test interrupts the upload twice, by a panic in its callback.
#[tokio::test]
async fn an_interrupted_upload_resumes_where_it_stopped() {
    let app = TestApp::start(&[repeatable_series(1, POOL)]).await;
    let codes = many("C", 170_000);
    let path = codes.path().to_owned();
    for resumes_at in [0, 50_000] {
        let (connect, path) = (app.connect.clone(), path.clone());
        let interrupted = tokio::spawn(async move {
            let mut on_event = |event: ImportEvent| match event {
                ImportEvent::Started(state) => assert_eq!(state.lines_done, resumes_at),
                ImportEvent::Rejected { .. } => unreachable!("all are new"),
                ImportEvent::Progress { .. } => std::panic::resume_unwind(Box::new("interrupted")),
            };
            codes::import(&connect, OrgId(1), SeriesId(1), &path, &mut on_event).await
        });
        assert!(interrupted.await.unwrap_err().is_panic());
    }
    // Postgres may need a moment to notice that the interrupted upload is gone.
    let done = loop {
        let mut resumes_at = 0;
        let mut on_event = |event| {
            if let ImportEvent::Started(state) = event {
                resumes_at = state.lines_done;
            }
        };
        match codes::import(&app.connect, OrgId(1), SeriesId(1), &path, &mut on_event).await {
            Ok(done) => {
                assert_eq!(resumes_at, 100_000);
                break done;
            }
            Err(error) => assert!(error.to_string().contains("another process"), "{error:#}"),
        }
    };
    assert_eq!((counts(&done), done.lines_done), ((170_000, 0, 0), 170_000));
    assert_eq!(app.count("select from pool_code").await, 170_000);
}

/// Codes are issued during the uploads. Later files contain them again, and must not bring them back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_code_is_issued_twice_while_files_are_uploaded() {
    let app = std::sync::Arc::new(TestApp::start(&[repeatable_series(1, POOL)]).await);
    let callers: Vec<_> = (0..8)
        .map(|caller| {
            let app = app.clone();
            tokio::spawn(async move {
                let mut issued_codes = Vec::new();
                for _ in 0..60 {
                    issued_codes.push(code(&app, &format!("c{caller}"), 1).await);
                }
                issued_codes
            })
        })
        .collect();
    for extra in ["", "one-more\n", "two-more\n"] {
        let mut text = std::fs::read_to_string(many("C", 400).path()).unwrap();
        text.push_str(extra);
        import(&app, 1, &file(&text)).await;
    }
    let mut issued_codes: Vec<String> = Vec::new();
    for caller in callers {
        issued_codes.extend(caller.await.unwrap().into_iter().filter(|code| code != "5005"));
    }
    loop {
        match code(&app, "last", 1).await {
            empty if empty == "5005" => break,
            code => issued_codes.push(code),
        }
    }
    let distinct: std::collections::BTreeSet<&String> = issued_codes.iter().collect();
    assert_eq!((distinct.len(), issued_codes.len()), (402, 402));
}

/// The coupon commits after the upload has read the pool. The code must neither return to the pool nor get lost.
#[tokio::test]
async fn a_code_issued_during_an_upload_does_not_return_to_the_pool() {
    let app = TestApp::start(&[repeatable_series(1, POOL)]).await;
    import(&app, 1, &file("one\ntwo\n")).await;
    let mut issuing = app.connect.connect().await.unwrap();
    sqlx::raw_sql(
        "begin; delete from pool_code where code = 'ONE';
         insert into coupon (org_id, coupon_id, series_id, issued_at, series_version, origin_id, expires_on, customer_id, code)
         values (1, 4711, 1, now(), 1, 1, '2027-05-09', 'c', 'ONE')",
    )
    .execute(&mut issuing)
    .await
    .unwrap();
    assert_eq!(import(&app, 1, &file("one\nthree\none\n")).await.0, (1, 2, 0));
    sqlx::raw_sql("commit").execute(&mut issuing).await.unwrap();
    close(issuing).await;
    assert_eq!(import(&app, 1, &file("four\nOne\n")).await.0, (1, 1, 0));
    assert_eq!(app.count("select from pool_code where code in ('TWO', 'THREE', 'FOUR')").await, 3);
    assert_eq!(app.count("select from pool_code").await, 3);
}

#[tokio::test]
async fn only_a_series_of_uploaded_codes_accepts_an_upload() {
    let app = TestApp::start(&[repeatable_series(1, "")]).await;
    let codes = file("one\n");
    for (org, series, expected) in [
        (1, 1, "--series 1: its codes are not uploaded (client_handling_type is not DISC_CODE_PIN)"),
        (1, 9, "--series 9: organisation 1 has no such series"),
        (2, 1, "--series 1: organisation 2 has no such series"),
    ] {
        let refused =
            codes::import(&app.connect, OrgId(org), SeriesId(series), codes.path(), &mut |_| {}).await.unwrap_err();
        assert_eq!(refused.to_string(), expected);
    }
}

#[tokio::test]
async fn status_counts_codes_and_forecasts_when_the_pool_is_empty() {
    let app = TestApp::start(&[repeatable_series(1, POOL), repeatable_series(2, POOL), repeatable_series(3, "")]).await;
    import(&app, 1, &many("C", 20)).await;
    import(&app, 1, &file("own,z\n")).await;
    app.clock.set("2026-11-20T10:00:00Z");
    code(&app, "c", 1).await;
    app.clock.set("2026-11-22T09:00:00Z");
    for _ in 0..4 {
        code(&app, "c", 1).await;
    }
    app.clock.set("2026-11-22T10:00:00Z");
    let expected = "\
org  series  total  issued  remaining  for one  last 24 h  empty in        description
1    1       21     5       16         1        4          about 4.0 days  Series 1
1    2       0      0       0          0        0          is empty        Series 2";
    assert_eq!(status(&app).await, expected);
}

#[tokio::test]
async fn status_escapes_control_characters_of_a_description() {
    let gift = repeatable_series(1, POOL).replace("\"Series 1\"", r#""Gift\u001b[2J\n\u202ecard""#);
    let app = TestApp::start(&[gift]).await;
    let status = status(&app).await;
    assert!(status.ends_with("  Gift\\u{1b}[2J\\u{a}\\u{202e}card"), "{status}");
}

fn binary(app: &TestApp, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coupon-issuer"));
    command.args(arguments).env("DATABASE_URL", app.connect.to_url_lossy().as_str());
    command.output().unwrap()
}

#[tokio::test]
async fn the_commands_print_what_they_did() {
    let app = TestApp::start(&[repeatable_series(1, POOL)]).await;
    let codes = file("one\ntwo\none\nno code\n");
    let path = codes.path().to_str().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();

    let output = binary(&app, &["codes", "import", "--org", "1", "--series", "1", path]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(output.stdout), "codes accepted: 2, duplicates: 1, malformed lines: 1\n");
    let expected = format!(
        "line 3: the code has been uploaded or issued before\n\
         line 4: the code has a space or a control character in it\n\
         coupon-issuer: {path} has malformed lines\n"
    );
    assert_eq!(text(output.stderr), expected);

    let clean = file("three\n");
    let output = binary(&app, &["codes", "import", "--org", "1", "--series", "1", clean.path().to_str().unwrap()]);
    assert_eq!((output.status.code(), text(output.stderr)), (Some(0), String::new()));
    let again = binary(&app, &["codes", "import", "--org", "1", "--series", "1", clean.path().to_str().unwrap()]);
    let expected = "this file has been imported before\ncodes accepted: 1, duplicates: 0, malformed lines: 0\n";
    assert_eq!((again.status.code(), text(again.stdout)), (Some(0), expected.to_owned()));

    let missing = binary(&app, &["codes", "import", "--org", "1", "--series", "1", "/nowhere/codes.txt"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(missing.stderr).starts_with("coupon-issuer: /nowhere/codes.txt: No such file"));

    let more = file("sep=;\ncustomer;code\n7;four\n;five six\n");
    let dry = ["codes", "import", "--dry-run", "--org", "1", "--series", "1", more.path().to_str().unwrap()];
    let output = binary(&app, &dry);
    let expected = format!(
        "dry run, nothing is stored; {} has separator semicolon, header customer, code\n\
         codes accepted: 1, duplicates: 0, malformed lines: 1\n",
        more.path().display()
    );
    assert_eq!((output.status.code(), text(output.stdout)), (Some(1), expected));
    assert!(text(output.stderr).starts_with("line 4: the code has a space or a control character in it\n"));

    let status = text(binary(&app, &["codes", "status", "--org", "1"]).stdout);
    assert!(
        status.contains("1    1       3      0       3          0        0          none issued lately  Series 1"),
        "{status}"
    );
    assert_eq!(text(binary(&app, &["codes", "status", "--org", "2"]).stdout), "no series gives out uploaded codes\n");
}

/// To open a pipe must not wait for somebody to write to it.
#[tokio::test]
async fn a_pipe_or_a_directory_is_refused_with_its_reason() {
    let app = TestApp::start(&[repeatable_series(1, POOL)]).await;
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for (path, reason) in [
        (fifo.to_str().unwrap(), "this is a pipe or a device"),
        ("-", "this is a pipe or a device"),
        ("/dev/stdin", "this is a pipe or a device"),
        (directory.path().to_str().unwrap(), "this is a directory"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coupon-issuer"));
        command.args(["codes", "import", "--org", "1", "--series", "1", path]);
        command.env("DATABASE_URL", app.connect.to_url_lossy().as_str()).stdin(Stdio::piped());
        let refused = command.output().unwrap();
        let error = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{path}");
        assert!(error.starts_with(&format!("coupon-issuer: {path}: {reason}")), "{error}");
    }
}

/// The query of the metrics: the series with the least remaining come first, and exhausted series do not crowd them out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metrics_list_the_series_with_the_least_remaining() {
    let app = TestApp::start(&[
        repeatable_series(1, "max_create = 10"),
        repeatable_series(2, "max_create = 4"),
        repeatable_series(3, "max_create = 1"),
        repeatable_series(4, "max_create = 1000"),
        repeatable_series(5, POOL),
        repeatable_series(6, &format!("{POOL}\nmax_create = 5")),
        repeatable_series(7, POOL),
        repeatable_series(8, "max_create = 1\nvalid_till_date = \"2026-11-20\""),
        repeatable_series(9, ""),
    ])
    .await;
    import(&app, 5, &many("A", 20)).await;
    import(&app, 7, &file("code,customer\nOWN,somebody\n")).await;
    for customer in ["a", "b", "c"] {
        app.issue(customer, &[1, 2, 3, 5]).await;
    }
    let db = Db::new(app.connect.clone(), &Settings::load(None).unwrap().database);
    let remaining = async |limit| {
        let rows = db.series_remaining("2026-11-21".parse().unwrap(), limit).await.unwrap();
        let select = |kind, is_used_up: bool| {
            let of = rows.iter().filter(|one| one.kind == kind && (one.remaining == 0) == is_used_up);
            of.map(|one| (one.series_id.0, one.remaining, one.total, one.series)).collect::<Vec<_>>()
        };
        [(LimitKind::Cap, false), (LimitKind::Cap, true), (LimitKind::Pool, false), (LimitKind::Pool, true)]
            .map(|(kind, is_used_up)| select(kind, is_used_up))
    };
    let [caps, used_up, pools, empty] = remaining(20).await;
    assert_eq!(caps, [(2, 1, 4, 4), (1, 7, 10, 4), (6, 5, 5, 4), (4, 1000, 1000, 4)]);
    assert_eq!(used_up, [(3, 0, 1, 1)], "without the expired series");
    assert_eq!(pools, [(5, 17, 20, 1)]);
    assert_eq!(empty, [(6, 0, 0, 1)], "without the series that has only a bound code");
    let [caps, used_up, ..] = remaining(1).await;
    assert_eq!((caps, used_up), (vec![(2, 1, 4, 4)], vec![(3, 0, 1, 1)]), "the limit does not change the totals");
    db.close().await;
}
