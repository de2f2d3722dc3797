//! Who may import whom: reads the sources and fails on an import that the layout does not allow.
//!
//! The table is the architecture; a change of it belongs into README, "The walk of a request", as well.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A room, and the rooms it may import. What is in `lib.rs` or begins a path in it is not a room.
const ROOMS: [(&str, &[&str]); 17] = [
    ("main", &["app", "cli", "config", "output", "telemetry", "private_postgres"]),
    ("cli", &["config"]),
    ("output", &[]),
    (
        "app",
        &[
            "activity",
            "verify",
            "auth",
            "config",
            "http",
            "issuance",
            "model",
            "codes",
            "provisioning",
            "db",
            "telemetry",
            "watch",
        ],
    ),
    ("watch", &["http", "issuance", "model", "db", "telemetry"]),
    ("http", &["activity", "auth", "issuance", "model", "telemetry"]),
    ("issuance", &["activity", "db", "model", "telemetry"]),
    ("activity", &["db", "model"]),
    ("auth", &["db", "model", "telemetry"]),
    ("provisioning", &["auth", "issuance", "db", "model"]),
    ("codes", &["db", "model"]),
    ("verify", &["db", "model"]),
    ("db", &["model", "telemetry"]),
    ("model", &[]),
    ("config", &[]),
    ("telemetry", &["config"]),
    ("private_postgres", &[]),
];

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The room a source file is in: the folder below `src`, or the file itself.
fn room(path: &Path) -> String {
    let below = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    let first = below.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The rooms that a source file names, wherever it does: in a `use` or in a path.
fn named(source: &str) -> BTreeSet<String> {
    let code: String =
        source.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut named = BTreeSet::new();
    for prefix in ["crate::", "coupon_issuer::"] {
        for (at, _) in code.match_indices(prefix) {
            let rest = &code[at + prefix.len()..];
            // `use crate::{a, b::c}` names several at once.
            let group = rest.strip_prefix('{').map_or(rest, |group| group.split('}').next().unwrap());
            let list = if rest.starts_with('{') { group } else { rest.split([';', ',', ')', '(']).next().unwrap() };
            for path in list.split(',') {
                let first: String = path.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                named.insert(first);
            }
        }
    }
    named
}

#[test]
fn every_import_points_the_right_way() {
    let mut wrong = Vec::new();
    for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let room = room(&path);
        if room == "lib" {
            continue;
        }
        let allowed = ROOMS.iter().find(|(name, _)| *name == room).map(|(_, allowed)| *allowed);
        let allowed = allowed.unwrap_or_else(|| panic!("{room} is a room without a row in the table"));
        let source = fs::read_to_string(&path).unwrap();
        let rooms = named(&source).into_iter().filter(|name| ROOMS.iter().any(|(room, _)| room == name));
        for import in rooms.filter(|import| *import != room && !allowed.contains(&import.as_str())) {
            wrong.push(format!("{}: {room} may not import {import}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn sql_is_in_db_alone() {
    let mut wrong = Vec::new();
    for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let source = fs::read_to_string(&path).unwrap();
        if room(&path) != "db" && ["sqlx::query", "raw_sql"].iter().any(|sql| source.contains(sql)) {
            wrong.push(path.display().to_string());
        }
    }
    assert!(wrong.is_empty(), "SQL outside db: {wrong:?}");
}
