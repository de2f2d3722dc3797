//! Settings of the real binary: what `config show` prints, how mistakes are reported, and that `serve` agrees.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use coupon_issuer::config::RANGES;
use proptest::prelude::*;
use proptest::sample::select;

use crate::lifecycle::{Running, serve};
use crate::oauth::pem;
use crate::support::{fresh_dir, new_database};

/// `config show` with this file, these variables and no others.
fn show(file: Option<&PathBuf>, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coupon-issuer"));
    command.args(["config", "show"]).env_clear().envs(variables.iter().copied());
    if let Some(file) = file {
        command.arg("--config").arg(file);
    }
    command.output().unwrap()
}

fn shown(file: Option<&PathBuf>, variables: &[(&str, &str)]) -> String {
    let output = show(file, variables);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty());
    String::from_utf8(output.stdout).unwrap()
}

/// The one line on standard error, without the program's name.
fn refusal(file: Option<&PathBuf>, variables: &[(&str, &str)]) -> String {
    let output = show(file, variables);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let error = String::from_utf8(output.stderr).unwrap();
    error.trim_end().strip_prefix("coupon-issuer: ").unwrap().to_owned()
}

fn written(name: &str, text: &str) -> PathBuf {
    let dir = fresh_dir(name);
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("settings.toml");
    std::fs::write(&file, text).unwrap();
    file
}

#[test]
fn every_setting_is_shown_with_its_origin() {
    let file =
        written("settings-origins", "[http]\nmax_series_ids = 50\ndrain_seconds = 0.5\n[log]\nformat = 'text'\n");
    let variables = [
        ("COUPON_ISSUER__HTTP__DRAIN_SECONDS", "1"),
        ("COUPON_ISSUER__HTTP__TRUSTED_PROXIES", "10.0.0.0/8, 192.168.0.0/16"),
        ("DATABASE_URL", "postgres://coupons@db/coupons"),
    ];
    let shown = shown(Some(&file), &variables);
    let at = file.display();
    for line in [
        "[http]\n".to_owned(),
        "listen = \"0.0.0.0:8080\"  # default\n".to_owned(),
        format!("max_series_ids = 50  # file {at}\n"),
        format!("format = \"text\"  # file {at}\n"),
        "drain_seconds = 1  # environment COUPON_ISSUER__HTTP__DRAIN_SECONDS\n".to_owned(),
        "trusted_proxies = [\"10.0.0.0/8\", \"192.168.0.0/16\"]  # environment COUPON_ISSUER__HTTP__TRUSTED_PROXIES\n"
            .to_owned(),
        "url = \"postgres://coupons@db/coupons\"  # environment DATABASE_URL\n".to_owned(),
    ] {
        assert!(shown.contains(&line), "{line}is not in\n{shown}");
    }
    // All keys, in the order of the documented defaults.
    let keys = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.starts_with('[') || line.starts_with(char::is_alphabetic));
        lines.map(|line| line.split(" =").next().unwrap().to_owned()).collect()
    };
    assert_eq!(keys(&shown), keys(include_str!("../../config/default.toml")));
}

#[test]
fn the_output_of_config_show_is_a_valid_settings_file() {
    let file = written("settings-again", "[http]\npublic_url = \"https://coupons.example.com\"\n");
    let first = shown(Some(&file), &[("COUPON_ISSUER__LOG__FILTER", "info,[span{key=\"value\"}]=debug")]);
    let values = |text: &str| text.parse::<toml::Table>().unwrap();
    let again = shown(Some(&written("settings-again-2", &first)), &[]);
    assert_eq!(values(&again), values(&first));
    assert_ne!(values(&first), values(&shown(None, &[])));
}

#[test]
fn config_show_prints_the_documented_defaults() {
    let documented: toml::Table = include_str!("../../config/default.toml").parse().unwrap();
    assert_eq!(shown(None, &[]).parse::<toml::Table>().unwrap(), documented);
}

#[test]
fn the_settings_file_of_the_image_is_valid() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config/production.toml");
    // The file names a secret that is mounted only in the container. A URL takes precedence over it.
    let shown = shown(Some(&file), &[("DATABASE_URL", "postgres://db/d")]);
    assert!(shown.contains("production.toml"), "{shown}");
}

#[test]
fn secrets_from_every_origin_are_masked() {
    let masked = |url: &str| {
        let shown = shown(None, &[("COUPON_ISSUER__DATABASE__URL", url)]);
        assert!(!shown.contains("hunter2"), "{shown}");
        shown.parse::<toml::Table>().unwrap()["database"]["url"].as_str().unwrap().to_owned()
    };
    assert_eq!(masked("postgres://u:hunter2@db:5432/d?sslmode=require"), "postgres://u:***@db:5432/d?sslmode=require");
    assert_eq!(masked("postgres://db/d?user=u&password=hunter2"), "postgres://db/d?user=u&password=***");
    assert_eq!(masked("postgres:///d"), "postgres:///d");
    for url in ["postgres:u:hunter2", "host=db password=hunter2"] {
        let refusal = refusal(None, &[("COUPON_ISSUER__DATABASE__URL", url)]);
        assert!(refusal.starts_with("the database URL is not valid") && !refusal.contains("hunter2"), "{refusal}");
    }
    let file =
        written("settings-secret", &format!("[auth]\nsigning_keys = '''\n{}'''\n[database]\nurl = 'hunter2'\n", pem()));
    let shown = shown(Some(&file), &[("DATABASE_URL", "postgres://u:hunter2@h/d")]);
    assert!(
        !shown.contains("hunter2")
            && !shown.contains("PRIVATE KEY")
            && shown.contains("signing_keys = \"***\"  # file "),
        "{shown}"
    );
}

#[test]
fn a_mistake_in_a_file_names_the_key_and_the_file() {
    for (number, (text, expected)) in [
        ("[http]\nlsten = 'x'", "http.lsten (FILE): there is no such setting; in [http] are: listen, max_body_bytes, "),
        ("[htp]\nlisten = 'x'", "htp (FILE): there is no such setting; here are: http, metrics, "),
        ("[http.listen]\nport = 1", "http.listen (FILE): is a setting, not a table of settings"),
        ("http = 'x'", "http (FILE): is a table of settings, not a setting"),
        ("[http]\nlisten = 'nowhere'", "http.listen (FILE): invalid socket address syntax"),
        ("[http]\nmax_body_bytes = '1'", "http.max_body_bytes (FILE): invalid type: string \"1\", expected usize"),
        ("[http]\nmax_body_bytes = -1", "http.max_body_bytes (FILE): must be from 1024 to 104857600"),
        ("[http]\nmax_connections = true", "http.max_connections (FILE): invalid type: boolean `true`, expected usize"),
        ("[http]\ntrusted_proxies = ['10.0.0.0/33']", "http.trusted_proxies (FILE): invalid IP address syntax"),
        ("[http]\nmax_series_ids = 0", "http.max_series_ids (FILE): must be from 1 to 10000"),
        ("[http]\npublic_url = 'coupons'", "http.public_url (FILE): must be a URL such as https://coupons.example.com"),
        ("[http]\ndrain_seconds = -1", "http.drain_seconds (FILE): must be from 0 to 3600"),
        ("[http]\ndrain_seconds = nan", "http.drain_seconds (FILE): must be from 0 to 3600"),
        ("[issuing]\ntimeout_seconds = 0", "issuing.timeout_seconds (FILE): must be from 0.001 to 3600"),
        ("[issuing]\nkeep_requests_hours = 23", "issuing.keep_requests_hours (FILE): must be from 24 to 8760"),
        ("[log]\nformat = 'xml'", "log.format (FILE): unknown variant `xml`, expected one of `auto`, `text`, `json`"),
        // The message must not repeat a secret, nor a line that contains one.
        ("[database]\nurl = ['hunter2']", "database.url (FILE): must be a string"),
        ("[http]\n[database]\nurl = 'hunter2", "FILE: line 3: invalid literal string, expected `'`"),
    ]
    .into_iter()
    .enumerate()
    {
        let file = written(&format!("settings-mistake-{number}"), text);
        let refusal = refusal(Some(&file), &[]);
        assert!(
            refusal.starts_with(&expected.replace("FILE", &format!("file {}", file.display()))),
            "{refusal}\nnot\n{expected}"
        );
        assert!(!refusal.contains("hunter2") && refusal.lines().count() == 1, "{refusal}");
    }
    let refusal = refusal(Some(&PathBuf::from("/nowhere.toml")), &[]);
    assert_eq!(refusal, "file /nowhere.toml: No such file or directory (os error 2)");
}

/// Earlier versions accepted such values, and then logged nothing, disabled a limit, waited for years or panicked.
#[test]
fn numbers_out_of_range_unknown_levels_and_missing_files_are_refused() {
    for (name, value, expected) in [
        (
            "LOG__FILTER",
            "warning",
            "\"warning\" is not a level: write warn; levels are off, error, warn, info, debug, trace",
        ),
        ("LOG__FILTER", "sqlx=debug", "shows no line of the service: begin with one of off, error"),
        ("WRITER__QUEUE", "9223372036854775807", "must be from 1 to 1000000"),
        ("WRITER__QUEUE", "1e300", "must be from 1 to 1000000"),
        ("DATABASE__MAX_CONNECTIONS", "4294967295", "must be from 1 to 1000"),
        ("DATABASE__STATEMENT_TIMEOUT_SECONDS", "0.0001", "must be from 0.001 to 3600"),
        ("RATE_LIMIT__PER_MINUTE", "0", "must be -1 (no limit), or from 1 to 1000000"),
        ("RATE_LIMIT__PER_MINUTE", "-5", "must be -1 (no limit), or from 1 to 1000000"),
        ("ISSUING__KEEP_REQUESTS_HOURS", "4294967295", "must be from 24 to 8760"),
        ("ACTIVITY__KEEP_HOURS", "4294967295", "must be from 2 to 8760"),
        ("TRACES__SAMPLE_RATIO", "nan", "must be from 0 to 1"),
        ("TRACES__OTLP_ENDPOINT", "http://", "must be a URL such as"),
        ("METRICS__LISTEN", "127.0.0.1:8080", "takes the port of http.listen: each needs one of its own"),
    ] {
        let variable = format!("COUPON_ISSUER__{name}");
        let key = name.to_lowercase().replace("__", ".");
        let refusal = refusal(None, &[(&variable, value)]);
        assert!(
            refusal.starts_with(&format!("{key} (environment {variable}): {expected}")),
            "{refusal}\nnot\n{expected}"
        );
    }
    let missing = "auth.signing_keys_file: /nowhere.pem: No such file";
    assert!(refusal(None, &[("COUPON_ISSUER__AUTH__SIGNING_KEYS_FILE", "/nowhere.pem")]).starts_with(missing));
    let missing = "database.url_file: /nowhere: No such file";
    assert!(refusal(None, &[("COUPON_ISSUER__DATABASE__URL_FILE", "/nowhere")]).starts_with(missing));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "postgres://localhost/a\npostgres://localhost/b\n").unwrap();
    let error = refusal(None, &[("COUPON_ISSUER__DATABASE__URL_FILE", file.path().to_str().unwrap())]);
    assert!(error.ends_with("the file is more than one line: it holds the URL and nothing else"), "{error}");
    let no_key = refusal(None, &[("COUPON_ISSUER__AUTH__SIGNING_KEYS", "hunter2")]);
    assert!(
        no_key.starts_with("auth.signing_keys holds no RSA private key") && !no_key.contains("hunter2"),
        "{no_key}"
    );

    let shown =
        shown(None, &[("COUPON_ISSUER__LOG__FILTER", "debug "), ("COUPON_ISSUER__RATE_LIMIT__PER_MINUTE", "-1")]);
    assert!(shown.contains("per_minute = -1  # environment "), "{shown}");
}

/// Table and name of every setting.
fn keys() -> Vec<(String, String)> {
    let defaults: toml::Table = include_str!("../../config/default.toml").parse().unwrap();
    let of = |(table, keys): (String, toml::Value)| {
        keys.as_table().unwrap().keys().map(|key| (table.clone(), key.clone())).collect::<Vec<_>>()
    };
    defaults.into_iter().flat_map(of).collect()
}

const VALUES: &[&str] = &[
    "-5",
    "-1",
    "0",
    "1",
    "2",
    "50",
    "1000",
    "4294967295",
    "9223372036854775807",
    "0.5",
    "1e-300",
    "1e308",
    "nan",
    "-inf",
    "true",
    "''",
    "'warning'",
    "'debug '",
    "'info,sqlx=debug'",
    "'/nowhere'",
    "'http://127.0.0.1:1/v1/traces'",
    "'json'",
    "'127.0.0.1:0'",
    "'postgres://127.0.0.1:1/d'",
    "[]",
    "['10.0.0.0/8']",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// `serve` either gets as far as the database, which does not exist, or fails with exactly the message of `config show`.
    #[test]
    fn config_show_and_serve_accept_and_refuse_the_same_files(lines in proptest::collection::vec((select(keys()), select(VALUES)), 0..3)) {
        let mut tables = std::collections::BTreeMap::<String, String>::new();
        for ((table, key), value) in lines {
            let text = tables.entry(table).or_default();
            if !text.contains(&format!("{key} = ")) {
                writeln!(text, "{key} = {value}").unwrap();
            }
        }
        let text = tables.into_iter().map(|(table, keys)| format!("[{table}]\n{keys}")).collect::<Vec<_>>().concat();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let run = |arguments: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_coupon-issuer"));
            command.args(arguments).arg("--config").arg(file.path()).env_clear();
            // Otherwise it would wait for the database, or need a fixed port.
            command.env("COUPON_ISSUER__DATABASE__ACQUIRE_TIMEOUT_SECONDS", "0.1");
            command.env("COUPON_ISSUER__DATABASE__STARTUP_TIMEOUT_SECONDS", "0");
            command.env("COUPON_ISSUER__HTTP__LISTEN", "127.0.0.1:0").env("COUPON_ISSUER__METRICS__LISTEN", "");
            command.env("COUPON_ISSUER__DATABASE__URL", "postgres://u:hunter2@127.0.0.1:1/d");
            let output = command.output().unwrap();
            (output.status.success(), String::from_utf8(output.stderr).unwrap())
        };
        let (is_good, error) = run(&["config", "show"]);
        let (_, served) = run(&["serve"]);
        prop_assert!(!error.contains("panicked") && !served.contains("panicked"), "{}\n{}{}", text, error, served);
        prop_assert!(!error.contains("hunter2") && !served.contains("hunter2"), "{}\n{}{}", text, error, served);
        if is_good {
            prop_assert!(served.contains("the database cannot be asked"), "{}\n{}", text, served);
        } else {
            prop_assert_eq!(error, served, "{}", text);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_starts_with_every_number_at_its_minimum_or_its_maximum() {
    let database = new_database().await;
    for at_maximum in [false, true] {
        let mut command = serve(&database);
        for (key, minimum, maximum) in RANGES {
            // The minimum of time-outs is a millisecond, in which no database answers.
            let number = if at_maximum || key.ends_with("timeout_seconds") { maximum } else { minimum };
            command.env(format!("COUPON_ISSUER__{}", key.to_uppercase().replace('.', "__")), number.to_string());
        }
        let running = Running::start(command.env("COUPON_ISSUER__DATABASE__STARTUP_TIMEOUT_SECONDS", "60"));
        let ready = reqwest::get(format!("http://{}/readyz", running.address)).await.unwrap();
        assert_eq!(ready.status(), 200);
        running.signal("-INT");
        assert_eq!(running.wait().code(), Some(0));
    }
}

#[test]
fn a_mistake_in_the_environment_names_the_variable() {
    for (name, value, expected) in [
        (
            "COUPON_ISSUER__HTTP__LSTEN",
            "x",
            "http.lsten (environment COUPON_ISSUER__HTTP__LSTEN): there is no such setting",
        ),
        ("COUPON_ISSUER__HTTP", "x", "http (environment COUPON_ISSUER__HTTP): is a table of settings, not a setting"),
        ("COUPON_ISSUER__", "x", " (environment COUPON_ISSUER__): there is no such setting"),
        (
            "COUPON_ISSUER_HTTP__LISTEN",
            "x",
            "environment COUPON_ISSUER_HTTP__LISTEN: a setting's variable begins with COUPON_ISSUER__, with two underscores",
        ),
        (
            "COUPON_ISSUER__WRITER__TASKS",
            "many",
            "writer.tasks (environment COUPON_ISSUER__WRITER__TASKS): invalid type: string \"many\", expected usize",
        ),
        (
            "COUPON_ISSUER__WRITER__TASKS",
            "0",
            "writer.tasks (environment COUPON_ISSUER__WRITER__TASKS): must be from 1 to 64",
        ),
    ] {
        let refusal = refusal(None, &[(name, value)]);
        assert!(refusal.starts_with(expected), "{refusal}\nnot\n{expected}");
    }
    // Kubernetes sets the first variable for a service of this name, and the second belongs to a command: neither is a setting.
    shown(None, &[("COUPON_ISSUER_PORT_8080_TCP_ADDR", "10.0.0.1"), ("COUPON_ISSUER_DEMO_LISTEN", "127.0.0.1:1")]);
}
