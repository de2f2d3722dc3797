//! Keeps the documentation true: links and anchors, metrics, alerts, log messages, and the size of README.md.
//!
//! In the documentation, log followed by a code span quotes a log message: log `not ready`. The span must be a string literal of
//! `src`, so whoever rewords a message finds the page that tells operators to search for it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use coupon_issuer::telemetry::metrics::ALL;

/// Folders with Markdown files of other projects.
const FOREIGN: [&str; 3] = ["target", "node_modules", "generated"];
/// May quote log messages of earlier versions.
const CHANGELOG: &str = "CHANGELOG.md";
const PROMETHEUS: [&str; 2] = ["config/prometheus/alerts.yml", "config/prometheus/alerts.test.yml"];
const DASHBOARD: &str = "config/grafana/dashboards/coupon-issuer.json";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files with this extension below a folder, relative to the root.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(folder)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = folder.join(&name);
        if entry.file_type().unwrap().is_dir() {
            if !FOREIGN.contains(&name.as_str()) && (!name.starts_with('.') || name == ".github") {
                found.extend(files(&path, extension));
            }
        } else if path.extension().is_some_and(|its| its == extension) {
            found.push(path);
        }
    }
    found
}

fn pages() -> Vec<PathBuf> {
    files(Path::new(""), "md")
}

/// The lines outside of fenced code, with their numbers.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut fence = None;
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        let marker = ["```", "~~~"].into_iter().find(|marker| trimmed.starts_with(marker));
        match (fence, marker) {
            (None, Some(_)) => fence = marker,
            (Some(open), Some(marker)) if open == marker => fence = None,
            (None, None) => lines.push((index + 1, line)),
            _ => {}
        }
    }
    lines
}

/// A line without its code spans.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

/// The targets of inline links, images and link definitions.
fn links(line: &str) -> Vec<String> {
    let line = without_code(line);
    let definition = line.trim_start().strip_prefix('[').and_then(|rest| rest.split_once("]: "));
    let inline = line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let targets = inline.chain(definition.map(|(_, target)| target));
    targets.filter_map(|target| target.split_whitespace().next()).map(str::to_owned).collect()
}

/// A heading as a reader sees it, with the text of links but not their targets.
fn visible(heading: &str) -> String {
    let mut text = String::new();
    let mut rest = heading;
    while let Some((before, after)) = rest.split_once("](") {
        text.push_str(before);
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    text + rest
}

/// The anchor that GitHub gives a heading.
fn slug(heading: &str) -> String {
    let kept = |c: char| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        _ => c.is_alphanumeric().then_some(c),
    };
    visible(heading).trim().to_lowercase().chars().filter_map(kept).collect()
}

fn headings(text: &str) -> Vec<&str> {
    let is_heading = |line: &&str| line.starts_with('#') && line.trim_start_matches('#').starts_with(' ');
    let lines = prose(text).into_iter().map(|(_, line)| line);
    lines.filter(is_heading).map(|line| line.trim_start_matches('#').trim()).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    let mut anchors = BTreeSet::new();
    for heading in headings(text) {
        let slug = slug(heading);
        let before = times.entry(slug.clone()).or_default();
        anchors.insert(if *before == 0 { slug } else { format!("{slug}-{before}") });
        *before += 1;
    }
    anchors
}

/// What is wrong with a link in a file, if anything.
fn broken(from: &Path, target: &str) -> Option<String> {
    let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
    let file = if path.is_empty() { from.to_owned() } else { resolved(&from.parent()?.join(path))? };
    if !root().join(&file).exists() {
        return Some(format!("{target}: there is no {}", file.display()));
    }
    let anchor = anchor.filter(|_| file.extension().is_some_and(|extension| extension == "md"))?;
    (!anchors(&read(&file)).contains(anchor)).then(|| format!("{target}: {} has no such heading", file.display()))
}

/// Resolves `..` as a browser does. The file system would fail on `missing/..`.
fn resolved(path: &Path) -> Option<PathBuf> {
    let mut resolved = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => resolved.push(name),
            Component::ParentDir if !resolved.pop() => return None,
            _ => {}
        }
    }
    Some(resolved)
}

fn is_relative(target: &str) -> bool {
    !target.contains("://") && !target.starts_with("mailto:")
}

fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn every_link_resolves() {
    let mut complaints = Vec::new();
    for page in pages() {
        for (number, line) in prose(&read(&page)) {
            for target in links(line).iter().filter(|target| is_relative(target)) {
                let complaint = broken(&page, target);
                complaints.extend(complaint.map(|what| format!("{}:{number}: {what}", page.display())));
            }
        }
    }
    for path in PROMETHEUS {
        let text = read(path);
        let urls = text.lines().filter_map(|line| line.trim().strip_prefix("runbook_url: "));
        for url in urls.map(|url| url.trim_matches('"')) {
            // Relative to the root of the repository.
            complaints.extend(broken(Path::new(CHANGELOG), url).map(|what| format!("{path}: {what}")));
        }
    }
    assert_none(&complaints);
}

/// The words that look like metrics of this service.
fn named_metrics(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("coupon_issuer_") && !word.ends_with('_')).collect()
}

#[test]
fn documented_metrics_are_those_of_the_code() {
    let table = read("docs/observability.md");
    let mut names = BTreeSet::new();
    let mut complaints = Vec::new();
    for metric in ALL {
        // The kind is private, but Debug shows it.
        let shown = format!("{metric:?}");
        let kind = ["counter", "gauge", "histogram"]
            .into_iter()
            .find(|kind| shown.to_lowercase().contains(&format!("kind: {kind}")))
            .unwrap();
        if kind == "histogram" {
            names.extend(["_bucket", "_sum", "_count"].map(|suffix| format!("{}{suffix}", metric.name)));
        }
        names.insert(metric.name.to_owned());
        let row = format!("| `{}` | {kind} |", metric.name);
        if !table.lines().any(|line| line.starts_with(&row)) {
            complaints.push(format!("docs/observability.md has no row that begins with {row}"));
        }
    }
    let pages = pages().into_iter().filter(|page| page.starts_with("docs") || page == Path::new("README.md"));
    let others = PROMETHEUS.iter().chain([&DASHBOARD]).map(PathBuf::from);
    for path in pages.chain(others) {
        let text = read(&path);
        let unknown = named_metrics(&text).into_iter().filter(|name| !names.contains(*name));
        complaints.extend(unknown.map(|name| format!("{}: {name} is not a metric of the code", path.display())));
    }
    assert_none(&complaints);
}

#[test]
fn every_alert_is_in_the_runbook() {
    let (rules, runbook) = (read(PROMETHEUS[0]), read("docs/runbook.md"));
    let alerts: BTreeSet<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let explained = headings(&runbook).into_iter().filter(|heading| heading.starts_with("CouponIssuer")).collect();
    assert!(!alerts.is_empty());
    assert_eq!(alerts, explained, "the alerts of {} and the headings of docs/runbook.md", PROMETHEUS[0]);
}

/// The code spans that follow the word log, which may be on the line before.
fn quoted_messages(text: &str) -> Vec<String> {
    let lines: Vec<&str> = prose(text).into_iter().map(|(_, line)| line.trim()).collect();
    let text = lines.join(" ");
    let mut quoted = Vec::new();
    let mut before = "";
    for (index, piece) in text.split('`').enumerate() {
        if index % 2 == 0 {
            before = piece;
        } else if before == "log " || before.ends_with(" log ") {
            quoted.push(piece.to_owned());
        }
    }
    quoted
}

#[test]
fn quoted_log_messages_are_those_of_the_code() {
    let sources: String = files(Path::new("src"), "rs").iter().map(read).collect();
    let mut count = 0;
    let mut complaints = Vec::new();
    for page in pages().into_iter().filter(|page| page != Path::new(CHANGELOG)) {
        for message in quoted_messages(&read(&page)) {
            count += 1;
            if !sources.contains(&format!("\"{message}\"")) {
                complaints.push(format!("{}: nothing in src logs \"{message}\"", page.display()));
            }
        }
    }
    assert!(count > 0, "the documentation quotes no log message: has its form changed?");
    assert_none(&complaints);
}

#[test]
fn the_readme_stays_short() {
    let readme = read("README.md");
    let (lines, bytes) = (readme.lines().count(), readme.len());
    assert!(lines <= 200 && bytes <= 14 * 1024, "README.md has {lines} lines and {bytes} bytes");
}

#[test]
fn anchors_are_those_of_github() {
    assert_eq!(slug("At 3 a.m."), "at-3-am");
    assert_eq!(slug("`codes import` and [links](a.md)"), "codes-import-and-links");
    assert_eq!(slug("Backup & restore"), "backup--restore");
    let twice = anchors("# A\n\n```sh\n# no heading\n```\n## A\n");
    assert_eq!(twice.into_iter().collect::<Vec<_>>(), ["a", "a-1"]);
}
