//! Settings as an operator meets them on the real binary: what `config show` prints, and how a mistake is told.
//! None of it asks a database.

use std::path::PathBuf;
use std::process::{Command, Output};

use crate::support::fresh_dir;

/// `config show`, of this file and these variables and nothing else.
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
fn every_setting_is_shown_with_where_it_comes_from() {
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
    // Every key there is, in the order in which the defaults document them.
    let keys = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.starts_with('[') || line.starts_with(char::is_alphabetic));
        lines.map(|line| line.split(" =").next().unwrap().to_owned()).collect()
    };
    assert_eq!(keys(&shown), keys(include_str!("../../config/default.toml")));
}

#[test]
fn what_is_shown_can_be_used_again() {
    let file = written("settings-again", "[http]\npublic_url = \"https://coupons.example.com\"\n");
    let first = shown(Some(&file), &[("COUPON_ISSUER__LOG__FILTER", "info,sqlx=\"debug\"")]);
    let values = |text: &str| text.parse::<toml::Table>().unwrap();
    let again = shown(Some(&written("settings-again-2", &first)), &[]);
    assert_eq!(values(&again), values(&first));
    assert_ne!(values(&first), values(&shown(None, &[])));
}

#[test]
fn the_defaults_are_shown_as_they_are_documented() {
    let documented: toml::Table = include_str!("../../config/default.toml").parse().unwrap();
    assert_eq!(shown(None, &[]).parse::<toml::Table>().unwrap(), documented);
}

#[test]
fn the_settings_of_the_image_are_good() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config/production.toml");
    let shown = shown(Some(&file), &[]);
    assert!(shown.contains("production.toml"), "{shown}");
}

#[test]
fn secrets_are_masked_wherever_they_come_from() {
    let masked = |url: &str| {
        let shown = shown(None, &[("COUPON_ISSUER__DATABASE__URL", url)]);
        assert!(!shown.contains("hunter2"), "{shown}");
        shown.parse::<toml::Table>().unwrap()["database"]["url"].as_str().unwrap().to_owned()
    };
    assert_eq!(masked("postgres://u:hunter2@db:5432/d?sslmode=require"), "postgres://u:***@db:5432/d?sslmode=require");
    assert_eq!(masked("postgres://db/d?user=u&password=hunter2"), "postgres://db/d?user=u&password=***");
    assert_eq!(masked("postgres:u:hunter2"), "***");
    assert_eq!(masked("host=db password=hunter2"), "***");
    assert_eq!(masked("postgres:///d"), "postgres:///d");
    let file = written("settings-secret", "[auth]\nsigning_keys = '''\nhunter2\n'''\n[database]\nurl = 'hunter2'\n");
    let shown = shown(Some(&file), &[("DATABASE_URL", "postgres://u:hunter2@h/d")]);
    assert!(!shown.contains("hunter2") && shown.contains("signing_keys = \"***\"  # file "), "{shown}");
}

#[test]
fn a_mistake_in_a_file_names_the_key_and_the_file() {
    for (number, (text, told)) in [
        ("[http]\nlsten = 'x'", "http.lsten (FILE): there is no such setting; in [http] are: listen, max_body_bytes, "),
        ("[htp]\nlisten = 'x'", "htp (FILE): there is no such setting; here are: http, metrics, "),
        ("[http.listen]\nport = 1", "http.listen (FILE): is a setting, not a table of settings"),
        ("http = 'x'", "http (FILE): is a table of settings, not a setting"),
        ("[http]\nlisten = 'nowhere'", "http.listen (FILE): invalid socket address syntax"),
        ("[http]\nmax_body_bytes = '1'", "http.max_body_bytes (FILE): invalid type: string \"1\", expected usize"),
        ("[http]\nmax_body_bytes = -1", "http.max_body_bytes (FILE): invalid value: integer `-1`, expected usize"),
        ("[http]\nmax_connections = true", "http.max_connections (FILE): invalid type: boolean `true`, expected usize"),
        ("[http]\ntrusted_proxies = ['10.0.0.0/33']", "http.trusted_proxies (FILE): invalid IP address syntax"),
        ("[http]\nmax_series_ids = 0", "http.max_series_ids (FILE): must be at least 1"),
        ("[http]\npublic_url = 'coupons'", "http.public_url (FILE): must be a URL such as https://coupons.example.com"),
        ("[http]\ndrain_seconds = -1", "http.drain_seconds (FILE): must be from 0 to 100000000 seconds"),
        ("[http]\ndrain_seconds = nan", "http.drain_seconds (FILE): must be from 0 to 100000000 seconds"),
        ("[issuing]\ntimeout_seconds = 0", "issuing.timeout_seconds (FILE): must be more than 0"),
        ("[issuing]\nkeep_requests_hours = 23", "issuing.keep_requests_hours (FILE): must be 24 or more"),
        ("[log]\nformat = 'xml'", "log.format (FILE): unknown variant `xml`, expected one of `auto`, `text`, `json`"),
        // What a secret is, or a line that holds one, is not told.
        ("[database]\nurl = ['hunter2']", "database.url (FILE): must be a string"),
        ("[http]\n[database]\nurl = 'hunter2", "FILE: line 3: invalid literal string, expected `'`"),
    ]
    .into_iter()
    .enumerate()
    {
        let file = written(&format!("settings-mistake-{number}"), text);
        let refusal = refusal(Some(&file), &[]);
        assert!(
            refusal.starts_with(&told.replace("FILE", &format!("file {}", file.display()))),
            "{refusal}\nnot\n{told}"
        );
        assert!(!refusal.contains("hunter2") && refusal.lines().count() == 1, "{refusal}");
    }
    let refusal = refusal(Some(&PathBuf::from("/nowhere.toml")), &[]);
    assert_eq!(refusal, "file /nowhere.toml: No such file or directory (os error 2)");
}

#[test]
fn a_mistake_in_the_environment_names_the_variable() {
    for (name, value, told) in [
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
            "writer.tasks (environment COUPON_ISSUER__WRITER__TASKS): must be at least 1",
        ),
    ] {
        let refusal = refusal(None, &[(name, value)]);
        assert!(refusal.starts_with(told), "{refusal}\nnot\n{told}");
    }
    // Neither a command's own variables nor what Kubernetes sets for a service of this name are settings.
    shown(None, &[("COUPON_ISSUER_PORT_8080_TCP_ADDR", "10.0.0.1"), ("COUPON_ISSUER_DEMO_LISTEN", "127.0.0.1:1")]);
}
