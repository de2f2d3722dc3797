//! Operators look up why a caller was refused: docs/recipes/till-gets-401.md explains every value that `denied` has in the log.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const PAGE: &str = "docs/recipes/till-gets-401.md";
/// The values are literals inside these variants. There is no enum of them that a test could iterate over.
const VARIANTS: [&str; 6] =
    ["Invalid(", "BadCredentials(", "Forbidden(", "Denied(", "InvalidRequest(", "InvalidClient("];
/// Two literals of `TokenError` are in a variable of this name.
const VARIABLE: &str = "let what = \"";

fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push(text.split_once("#[cfg(test)]").map_or(&*text, |(code, _tests)| code).to_owned());
        }
    }
}

/// The string literals before the parenthesis that closes the one in front of `text`.
fn literals(text: &str) -> Vec<&str> {
    let (mut literals, mut depth) = (Vec::new(), 1);
    for (index, piece) in text.split('"').enumerate() {
        if index % 2 == 1 {
            literals.push(piece);
            continue;
        }
        for c in piece.chars() {
            depth += i32::from(c == '(') - i32::from(c == ')');
            if depth == 0 {
                return literals;
            }
        }
    }
    literals
}

#[test]
fn every_value_of_denied_is_explained() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut code = Vec::new();
    for room in ["src/auth", "src/http"] {
        sources(&root.join(room), &mut code);
    }
    let mut written = BTreeSet::new();
    for code in &code {
        for variant in VARIANTS {
            let uses = code.match_indices(variant).filter(|(at, _)| !code[..*at].ends_with(char::is_alphanumeric));
            written.extend(uses.flat_map(|(at, _)| literals(&code[at + variant.len()..])));
        }
        written.extend(code.split(VARIABLE).skip(1).filter_map(|rest| rest.split('"').next()));
    }
    // An example of a failure in the OpenAPI document, not a reason.
    written.remove("");
    let page = fs::read_to_string(root.join(PAGE)).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let explained: BTreeSet<&str> = rows.map(|(value, _)| value).collect();
    assert_eq!(written, explained, "the values in src/auth and src/http, and the rows of {PAGE}");
}
