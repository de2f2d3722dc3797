//! Commands about a till or client, as an operator runs them: what they store, record, print and reject.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use coupon_issuer::auth::{till_password, verify_secret};
use coupon_issuer::model::Clock;
use coupon_issuer::provisioning;
use coupon_issuer::provisioning::commands::{self, Holder, Invocation};
use jiff::Timestamp;
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

use crate::support::{NOW, ORG, close, eventually, new_database};

const PARTNER: &str = r#"
[[orgs.token_issuers]]
issuer = "https://login.example.com"
audience = "coupons"
[[orgs.oauth_clients]]
key = "partner"
token_issuer = "https://login.example.com"
till = "store.server"
access = "write"
"#;

/// A database with [`ORG`] and a client of an external issuer.
async fn database() -> PgConnectOptions {
    let connect = new_database().await;
    provisioning::apply_text(&connect, &format!("{ORG}{PARTNER}")).await.unwrap();
    connect
}

/// The binary, as ana runs it with `sudo`.
fn command(connect: &PgConnectOptions, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coupon-issuer"));
    command.args(arguments).env("DATABASE_URL", connect.to_url_lossy().as_str()).stdin(Stdio::null());
    command.env("SUDO_USER", "ana");
    command
}

/// Exit code, standard output and standard error.
fn result(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn run(connect: &PgConnectOptions, arguments: &[&str]) -> (i32, String, String) {
    result(command(connect, arguments).output().unwrap())
}

/// As [`run`], with this on standard input.
fn run_with_input(connect: &PgConnectOptions, arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut command = command(connect, arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that fails early does not read its input, so that this fails.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    result(child.wait_with_output().unwrap())
}

/// Replaces the name of this host.
fn here(text: &str) -> String {
    text.replace(&format!("@{}", whoami::hostname().unwrap()), "@here")
}

/// Asserts that the command succeeded and printed one line: the time, and this entry of the audit log.
fn assert_audited((code, printed, error): (i32, String, String), line: &str) {
    assert_eq!((code, error.as_str()), (0, ""), "{printed}");
    let (instant, rest) = printed.split_once(' ').unwrap();
    assert_eq!(here(rest), format!("audit: {line}\n"));
    assert!(instant.len() == NOW.len() && instant.parse::<Timestamp>().is_ok(), "{printed}");
}

async fn values(connect: &PgConnectOptions, query: &'static str) -> Vec<String> {
    let mut connection = connect.connect().await.unwrap();
    let values = sqlx::query_scalar(query).fetch_all(&mut connection).await.unwrap();
    close(connection).await;
    values
}

async fn audit_log(connect: &PgConnectOptions) -> Vec<String> {
    let entries = "select concat_ws(' | ', org_id, actor, action, subject) from audit_log order by entry_id";
    values(connect, entries).await.iter().map(|entry| here(entry)).collect()
}

const DISABLED: &str =
    "select till_id from till where disabled union all select client_key from oauth_client where disabled";

const TILL_HASH: &str = "select password_hash from till where till_id = 'store.server'";
const CLIENT_HASH: &str = "select secret_hash from oauth_client where client_key = 'crm'";

/// Every row that a command may change.
async fn everything(connect: &PgConnectOptions) -> Vec<String> {
    values(
        connect,
        "select t::text from till t union all select c::text from oauth_client c union all select a::text
           from audit_log a order by 1",
    )
    .await
}

#[tokio::test]
async fn a_till_and_a_client_are_disabled_and_enabled_with_an_entry_each() {
    let connect = database().await;
    assert_audited(
        run(&connect, &["till", "disable", "store.server"]),
        "till disable store.server (org 1) by ana@here",
    );
    assert_audited(run(&connect, &["client", "disable", "crm"]), "client disable crm (org 1) by ana@here");
    assert_eq!(values(&connect, DISABLED).await, ["store.server", "crm"]);
    assert_audited(run(&connect, &["till", "enable", "store.server"]), "till enable store.server (org 1) by ana@here");
    assert_eq!(values(&connect, DISABLED).await, ["crm"]);
    assert_audited(run(&connect, &["client", "enable", "crm"]), "client enable crm (org 1) by ana@here");
    assert_eq!(values(&connect, DISABLED).await, [""; 0]);
    assert_eq!(
        audit_log(&connect).await,
        [
            "1 | ana@here | till disable | store.server",
            "1 | ana@here | client disable | crm",
            "1 | ana@here | till enable | store.server",
            "1 | ana@here | client enable | crm",
        ]
    );
}

#[tokio::test]
async fn a_command_without_effect_succeeds_and_leaves_no_entry() {
    let connect = database().await;
    run(&connect, &["till", "disable", "store.server"]);
    run(&connect, &["client", "disable", "crm"]);
    for (arguments, line) in [
        (["till", "disable", "store.server"], "till store.server was disabled already\n"),
        (["client", "disable", "crm"], "client crm was disabled already\n"),
        (["till", "enable", "office.desk"], "till office.desk was enabled already\n"),
        (["client", "enable", "partner"], "client partner was enabled already\n"),
    ] {
        assert_eq!(run(&connect, &arguments), (0, line.to_owned(), String::new()));
    }
    assert_eq!(audit_log(&connect).await.len(), 2);
}

#[tokio::test]
async fn an_apply_does_not_enable_a_till_that_a_command_disabled() {
    let connect = database().await;
    run(&connect, &["till", "disable", "store.server"]);
    let report = provisioning::apply_text(&connect, &format!("{ORG}{PARTNER}")).await.unwrap();
    assert_eq!(report.to_string(), "no change");
    assert_eq!(values(&connect, DISABLED).await, ["store.server"]);
}

/// `apply` reads the tills first and writes them last, with slow hashing in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_till_that_is_disabled_during_an_apply_stays_disabled() {
    let connect = database().await;
    // Once `apply` waits for the first till, it has read everything, and has not written the second till.
    let mut holder = connect.connect().await.unwrap();
    sqlx::raw_sql("begin; select from till where till_id = 'store.server' for update")
        .execute(&mut holder)
        .await
        .unwrap();
    let moved = ORG.replace("store_id = 10", "store_id = 12").replace("store_id = 11", "store_id = 12");
    let (applied, ()) = tokio::join!(provisioning::apply_text(&connect, &moved), async {
        eventually("the apply waits", || async {
            let waiting =
                "select query from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
            !values(&connect, waiting).await.is_empty()
        })
        .await;
        assert_eq!(run(&connect, &["till", "disable", "office.desk"]).0, 0);
        close(holder).await;
    });
    assert_eq!(applied.unwrap().changes.len(), 2);
    assert_eq!(values(&connect, DISABLED).await, ["office.desk"]);
    let moved = "select till_id from till where store_id = 12 order by 1";
    assert_eq!(values(&connect, moved).await, ["office.desk", "store.server", "warehouse.gate"]);
}

#[tokio::test]
async fn a_tills_password_comes_from_standard_input_or_a_file_and_is_never_printed() {
    let connect = database().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "\u{feff}from a file\r\n").unwrap();
    let set = ["till", "set-password", "store.server"];
    let with_file = [&set[..], &["--password-file", file.path().to_str().unwrap()]].concat();
    for (arguments, input, password) in [
        (&set[..], "hunter2\n", "hunter2"),
        (&set[..], " spaces count \r\n", " spaces count "),
        (&set[..], "no line's end", "no line's end"),
        (&set[..], "8A16A6B70505EB1F1FF7CDC0CD5559A7\n", "server123"),
        (&with_file, "", "from a file"),
    ] {
        let done = run_with_input(&connect, arguments, input);
        assert!(!format!("{done:?}").contains(password.trim()), "{done:?}");
        assert_audited(done, "till set-password store.server (org 1) by ana@here");
        let hash = values(&connect, TILL_HASH).await.concat();
        assert!(verify_secret(&hash, &till_password(&password.into())).unwrap(), "{password}");
    }
    assert_eq!(audit_log(&connect).await, ["1 | ana@here | till set-password | store.server"; 5]);
}

#[tokio::test]
async fn a_clients_secret_comes_from_standard_input_or_a_file_and_is_never_printed() {
    let connect = database().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "from a file\n").unwrap();
    let set = ["client", "set-secret", "crm"];
    let with_file = [&set[..], &["--secret-file", file.path().to_str().unwrap()]].concat();
    for (arguments, input, secret) in [(&set[..], "hunter2\n", "hunter2"), (&with_file, "", "from a file")] {
        let done = run_with_input(&connect, arguments, input);
        assert!(!done.1.contains(secret) && !done.2.contains(secret), "{done:?}");
        assert_audited(done, "client set-secret crm (org 1) by ana@here");
        let hash = values(&connect, CLIENT_HASH).await.concat();
        assert!(verify_secret(&hash, &secret.into()).unwrap());
    }
    assert_eq!(audit_log(&connect).await, ["1 | ana@here | client set-secret | crm"; 2]);
}

#[tokio::test]
async fn an_empty_or_multi_line_secret_is_rejected() {
    let connect = database().await;
    let before = everything(&connect).await;
    for (input, reason) in [
        ("", "must not be empty"),
        ("\r\n", "must not be empty"),
        ("hunter2\nhunter3\n", "is more than one line: a secret is one line, and nothing else"),
    ] {
        for (arguments, word) in
            [(["till", "set-password", "store.server"], "password"), (["client", "set-secret", "crm"], "secret")]
        {
            let error = format!("coupon-issuer: the {word} {reason}\n");
            assert_eq!(run_with_input(&connect, &arguments, input), (1, String::new(), error));
        }
    }
    let missing = run(&connect, &["till", "set-password", "store.server", "--password-file", "/no/such"]);
    assert!(missing.0 == 1 && missing.2.starts_with("coupon-issuer: /no/such: No such file"), "{missing:?}");
    assert_eq!(everything(&connect).await, before);
}

#[tokio::test]
async fn a_secret_cannot_be_given_as_an_argument() {
    let connect = database().await;
    let before = everything(&connect).await;
    for arguments in [
        &["till", "set-password", "store.server", "hunter2"][..],
        &["till", "set-password", "store.server", "--password", "hunter2"],
        &["till", "set-password", "store.server", "--password=hunter2"],
        &["client", "set-secret", "crm", "hunter2"],
        &["client", "set-secret", "crm", "--secret", "hunter2"],
        &["client", "set-secret", "crm", "--secret=hunter2"],
    ] {
        assert_eq!(run_with_input(&connect, arguments, "hunter3\n").0, 2, "{arguments:?}");
    }
    assert_eq!(everything(&connect).await, before);
}

#[tokio::test]
async fn an_unknown_till_or_client_is_an_error() {
    let connect = database().await;
    let before = everything(&connect).await;
    for (arguments, named) in [
        (["till", "disable", "crm"], "till crm"),
        (["till", "enable", "till.9"], "till till.9"),
        (["till", "set-password", "till.9"], "till till.9"),
        (["client", "disable", "store.server"], "client store.server"),
        (["client", "enable", "nobody"], "client nobody"),
        (["client", "set-secret", "nobody"], "client nobody"),
        (["client", "revoke-tokens", "nobody"], "client nobody"),
    ] {
        let error = format!("coupon-issuer: there is no {named}\n");
        assert_eq!(run_with_input(&connect, &arguments, "hunter2\n"), (1, String::new(), error));
    }
    assert_eq!(everything(&connect).await, before);
}

#[tokio::test]
async fn a_client_of_an_external_issuer_gets_no_secret() {
    let connect = database().await;
    let before = everything(&connect).await;
    let error = "coupon-issuer: client partner has no secret here: its tokens come from https://login.example.com\n";
    let done = run_with_input(&connect, &["client", "set-secret", "partner"], "hunter2\n");
    assert_eq!(done, (1, String::new(), error.to_owned()));
    assert_eq!(everything(&connect).await, before);
}

/// A clock that always shows this instant.
struct At(&'static str);

impl Clock for At {
    fn now(&self) -> Timestamp {
        self.0.parse().unwrap()
    }

    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }
}

#[tokio::test]
async fn revoke_tokens_stores_the_time_of_the_command() {
    let connect = database().await;
    let tokens_from = "select client_key || ' ' || to_char(tokens_from at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')
           from oauth_client where tokens_from is not null order by 1";
    let order = || Invocation::now(&At("2026-11-22T10:00:00.123456Z"));
    let outcome = commands::revoke_tokens(&connect, "crm", order()).await.unwrap().to_string();
    assert!(outcome.starts_with("2026-11-22T10:00:00Z audit: client revoke-tokens crm (org 1) by "), "{outcome}");
    assert_eq!(values(&connect, tokens_from).await, ["crm 2026-11-22 10:00:00.123456"]);
    let at = "select to_char(at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') from audit_log";
    assert_eq!(values(&connect, at).await, ["2026-11-22 10:00:00.123456"]);

    let outcome =
        commands::set_disabled(&connect, &Holder::Till("store.server".to_owned()), true, order()).await.unwrap();
    assert!(outcome.to_string().starts_with("2026-11-22T10:00:00Z audit: till disable store.server (org 1) by "));

    let printed = "client revoke-tokens partner (org 1) by ana@here";
    assert_audited(run(&connect, &["client", "revoke-tokens", "partner"]), printed);
    assert_eq!(values(&connect, tokens_from).await.len(), 2);
    // An `apply` that changes the client does not make the tokens valid again.
    let changed = format!("{ORG}{PARTNER}").replace("token_ttl_seconds = 3600", "token_ttl_seconds = 60");
    assert_eq!(provisioning::apply_text(&connect, &changed).await.unwrap().changes.len(), 1);
    assert_eq!(values(&connect, tokens_from).await.len(), 2);
}

#[tokio::test]
async fn the_audit_log_names_the_user_who_gave_the_command() {
    let connect = database().await;
    let me = format!("{}@here", whoami::username().unwrap());
    for (sudo, expected) in [
        (Some("ana"), "ana@here"),
        (None, me.as_str()),
        (Some(""), me.as_str()),
        (Some("ana\n2026 audit: till enable"), "ana2026audit:tillenable@here"),
    ] {
        let mut command = command(&connect, &["client", "revoke-tokens", "crm"]);
        match sudo {
            Some(sudo) => command.env("SUDO_USER", sudo),
            None => command.env_remove("SUDO_USER"),
        };
        assert_audited(result(command.output().unwrap()), &format!("client revoke-tokens crm (org 1) by {expected}"));
        assert_eq!(audit_log(&connect).await.pop().unwrap(), format!("1 | {expected} | client revoke-tokens | crm"));
    }
}

#[tokio::test]
async fn each_change_notifies_running_services() {
    let connect = database().await;
    let mut listener = sqlx::postgres::PgListener::connect_with(
        &sqlx::postgres::PgPoolOptions::new().max_connections(1).connect_lazy_with(connect.clone()),
    )
    .await
    .unwrap();
    listener.listen("coupon_issuer_credentials").await.unwrap();
    for (arguments, input) in [
        (["till", "disable", "store.server"], ""),
        (["till", "set-password", "store.server"], "hunter2\n"),
        (["client", "disable", "crm"], ""),
        (["client", "set-secret", "crm"], "hunter2\n"),
        (["client", "revoke-tokens", "crm"], ""),
    ] {
        assert_eq!(run_with_input(&connect, &arguments, input).0, 0);
        let notification = tokio::time::timeout(Duration::from_secs(30), listener.recv()).await;
        assert_eq!(notification.unwrap().unwrap().channel(), "coupon_issuer_credentials", "{arguments:?}");
    }
}
