//! The tables of settings in docs/configuration.md are generated from config/default.toml and the ranges. `UPDATE_DOCS=1` rewrites them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fmt::Write;
use std::fs;
use std::path::Path;

use coupon_issuer::config::RANGES;

const DEFAULTS: &str = include_str!("../config/default.toml");
const PAGE: &str = "docs/configuration.md";
const BEGIN: &str = "<!-- settings: begin -->\n";
const END: &str = "<!-- settings: end -->";

#[test]
fn the_tables_of_settings_are_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (current, after) = rest.split_once(END).unwrap();
    let expected = tables();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{before}{BEGIN}{expected}{END}{after}")).unwrap();
    } else {
        assert!(
            current == expected,
            "the tables in {PAGE} are out of date: UPDATE_DOCS=1 cargo test --test settings_table"
        );
    }
}

/// One table for each section of the file, one row for each key.
fn tables() -> String {
    let (mut tables, mut section) = (String::new(), "");
    let (mut comment, mut first_key) = (String::new(), None);
    for line in DEFAULTS.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
            let head = "| key | default | range | environment | meaning |\n|---|---|---|---|---|";
            let _ = write!(tables, "\n#### `[{section}]`\n\n{head}\n");
            comment.clear();
        } else if let Some(text) = line.strip_prefix('#') {
            // A comment may be about several keys: the first key after it begins a new one.
            if first_key.take().is_some() {
                comment.clear();
            }
            comment.push_str(text);
        } else if let Some((key, default)) = line.split_once(" = ") {
            let meaning = match first_key {
                None => comment.trim().replace('|', "\\|"),
                Some(first) => format!("see `{first}`"),
            };
            first_key = first_key.or(Some(key));
            let range = range(&format!("{section}.{key}"), default);
            let variable = format!("COUPON_ISSUER__{}__{}", section.to_uppercase(), key.to_uppercase());
            let _ = writeln!(tables, "| `{key}` | `{default}` | {range} | `{variable}` | {meaning} |");
        } else {
            comment.clear();
            first_key = None;
        }
    }
    tables.push('\n');
    tables
}

fn range(key: &str, default: &str) -> String {
    if let Some((_, minimum, maximum)) = RANGES.into_iter().find(|(name, ..)| *name == key) {
        let unlimited = if key == "rate_limit.per_minute" { "-1, or " } else { "" };
        return format!("{unlimited}{minimum} to {maximum}");
    }
    match default.chars().next() {
        Some('[') => "list of text".to_owned(),
        Some('"') => "text".to_owned(),
        _ if matches!(default, "true" | "false") => "true, false".to_owned(),
        _ => panic!("{key} = {default} has no range"),
    }
}
