//! Reads the sources, and fails on an import that docs/architecture.md, "Rooms", does not allow, and on any import circle.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::Visit;
use syn::{Attribute, ItemMod, UseTree, Visibility};

/// Each room, and the rooms it may import.
const ROOMS: [(&str, &[&str]); 15] = [
    ("main", &["cli"]),
    (
        "cli",
        &["auth", "codes", "config", "db", "demo", "http", "model", "provisioning", "server", "telemetry", "verify"],
    ),
    ("demo", &[]),
    ("server", &["activity", "auth", "config", "db", "http", "issuance", "model", "telemetry"]),
    ("http", &["activity", "auth", "config", "issuance", "model", "telemetry"]),
    ("issuance", &["activity", "config", "db", "model", "telemetry"]),
    ("activity", &["config", "db", "model"]),
    ("auth", &["config", "db", "model", "telemetry"]),
    ("provisioning", &["auth", "db", "issuance", "model"]),
    ("codes", &["db", "model"]),
    ("verify", &["db", "model"]),
    ("db", &["config", "model", "telemetry"]),
    ("telemetry", &["config"]),
    ("model", &[]),
    ("config", &[]),
];

/// A module by its path below `src`: `["db", "writer", "batch"]`. A room's `mod.rs` is `["db"]`.
type Module = Vec<String>;

#[derive(Default)]
struct Sources {
    /// What each module names by a path that begins with `crate`, `super`, `self` or `coupon_issuer`.
    paths: BTreeMap<Module, BTreeSet<Module>>,
    /// The names that a module re-exports, each with what it stands for.
    exports: BTreeMap<Module, BTreeMap<String, Module>>,
}

impl Sources {
    fn read() -> Self {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut sources = Self::default();
        for path in files(&src) {
            let module = module(path.strip_prefix(&src).unwrap());
            if module == ["lib"] {
                continue;
            }
            let mut reader = Reader { module: module.clone(), paths: BTreeSet::new(), exports: BTreeMap::new() };
            reader.visit_file(&syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap());
            sources.paths.insert(module.clone(), reader.paths);
            sources.exports.insert(module, reader.exports);
        }
        sources
    }

    /// The module that defines what a path names. `None`: no module of this crate.
    fn definer(&self, path: &[String]) -> Option<Module> {
        let end = (1..=path.len()).rev().find(|end| self.paths.contains_key(&path[..*end]))?;
        let (module, rest) = path.split_at(end);
        match rest.first().and_then(|name| self.exports[module].get(name)) {
            Some(exported) => self.definer(exported),
            None => Some(module.to_vec()),
        }
    }

    fn imports(&self) -> BTreeMap<&Module, BTreeSet<Module>> {
        let of = |(module, paths)| {
            let paths: &BTreeSet<Module> = paths;
            let definers = paths.iter().filter_map(|path| self.definer(path));
            (module, definers.filter(|definer| definer != module).collect())
        };
        self.paths.iter().map(of).collect()
    }
}

/// Collects the paths that a module names, apart from its tests.
struct Reader {
    module: Module,
    paths: BTreeSet<Module>,
    exports: BTreeMap<String, Module>,
}

impl Reader {
    /// A path from the root of the crate; `None` if it leads into another crate.
    fn absolute(&self, path: &[String]) -> Option<Module> {
        let mut base = match path.first()?.as_str() {
            "crate" | "coupon_issuer" => Module::new(),
            "self" | "super" => self.module.clone(),
            // `use child::Name` in the module that declares the child.
            name if self.declares(name) => [self.module.clone(), vec![name.to_owned()]].concat(),
            _ => return None,
        };
        for part in path.iter().take_while(|part| *part == "super") {
            assert_eq!(part, "super");
            base.pop();
        }
        let rest = path.iter().skip(1).skip_while(|part| *part == "super");
        Some(base.into_iter().chain(rest.cloned()).collect())
    }

    fn declares(&self, name: &str) -> bool {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let child = self.module.iter().fold(src, |path, part| path.join(part)).join(name);
        child.with_extension("rs").exists() || child.join("mod.rs").exists()
    }

    fn add_use(&mut self, tree: &UseTree, prefix: &[String], is_export: bool) {
        let with = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.add_use(&path.tree, &with(&path.ident), is_export),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_use(tree, prefix, is_export)),
            UseTree::Glob(_) => self.add(prefix, None, is_export),
            UseTree::Name(name) if name.ident == "self" => self.add(prefix, prefix.last().cloned(), is_export),
            UseTree::Name(name) => self.add(&with(&name.ident), Some(name.ident.to_string()), is_export),
            UseTree::Rename(rename) if rename.ident == "self" => {
                self.add(prefix, Some(rename.rename.to_string()), is_export);
            }
            UseTree::Rename(rename) => self.add(&with(&rename.ident), Some(rename.rename.to_string()), is_export),
        }
    }

    fn add(&mut self, path: &[String], name: Option<String>, is_export: bool) {
        let Some(path) = self.absolute(path) else { return };
        match name {
            Some(name) if is_export => drop(self.exports.insert(name, path)),
            _ => drop(self.paths.insert(path)),
        }
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let is_export = !matches!(item.vis, Visibility::Inherited);
        self.add_use(&item.tree, &[], is_export);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if ["crate", "coupon_issuer", "super"].contains(&names[0].as_str()) {
            self.add(&names, None, false);
        }
        syn::visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if !item.attrs.iter().any(is_test) {
            syn::visit::visit_item_mod(self, item);
        }
    }

    /// `pub(super)` imports nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}
}

fn is_test(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Ident>().is_ok_and(|flag| flag == "test")
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn module(path: &Path) -> Module {
    let mut module: Module = path.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    module
}

#[test]
fn every_import_points_down() {
    let sources = Sources::read();
    let mut wrong = Vec::new();
    for (module, imports) in &sources.paths {
        let room = &module[0];
        let allowed = ROOMS.iter().find(|(name, _)| name == room).map(|(_, allowed)| *allowed);
        let allowed = allowed.unwrap_or_else(|| panic!("{room} is a room without a row in the table"));
        let rooms = imports.iter().filter(|import| ROOMS.iter().any(|(name, _)| *name == import[0]));
        for import in rooms.filter(|import| import[0] != *room && !allowed.contains(&import[0].as_str())) {
            wrong.push(format!("{} may not import {}", module.join("::"), import.join("::")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Also inside a room: two files that need each other are one thing, or need a third.
#[test]
fn no_imports_form_a_circle() {
    let sources = Sources::read();
    let mut imports = sources.imports();
    // What imports nothing that is left is in no circle.
    loop {
        let left: BTreeSet<Module> = imports.keys().map(|module| (*module).clone()).collect();
        imports.retain(|_, imported| imported.iter().any(|import| left.contains(import)));
        if imports.len() == left.len() {
            break;
        }
    }
    // And what nobody in a circle imports is none of it.
    loop {
        let imported: BTreeSet<Module> = imports.values().flatten().cloned().collect();
        let before = imports.len();
        imports.retain(|module, _| imported.contains(*module));
        if imports.len() == before {
            break;
        }
    }
    let circles: Vec<String> = imports
        .iter()
        .map(|(module, imported)| {
            let within: Vec<String> =
                imported.iter().filter(|import| imports.contains_key(import)).map(|import| import.join("::")).collect();
            format!("{} imports {}", module.join("::"), within.join(", "))
        })
        .collect();
    assert!(circles.is_empty(), "these import each other in a circle:\n{}", circles.join("\n"));
}

#[test]
fn sql_is_in_db_alone() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    for path in files(&src) {
        let source = fs::read_to_string(&path).unwrap();
        let module = module(path.strip_prefix(&src).unwrap());
        if module[0] != "db" && ["sqlx::query", "raw_sql"].iter().any(|sql| source.contains(sql)) {
            wrong.push(module.join("::"));
        }
    }
    assert!(wrong.is_empty(), "SQL outside db: {wrong:?}");
}
