use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::{BIN_DIR_VARIABLE, OLDEST_VERSION, PrivatePostgresError, Result, cannot};

/// Where to look for an installation after the PATH. A `*` stands for a major version.
const INSTALL_DIRS: [&str; 8] = [
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/bin",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/opt/homebrew/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
];

/// Finds the directory with the programs that `PrivatePostgres::start` runs.
///
/// # Errors
///
/// When there is no usable installation.
pub fn find_binaries() -> Result<PathBuf> {
    if let Some(dir) = env::var_os(BIN_DIR_VARIABLE).filter(|dir| !dir.is_empty()) {
        return complete_installation(Path::new(&dir));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).filter(|dir| dir.is_absolute());
    let dirs = on_path.chain(INSTALL_DIRS.iter().flat_map(|pattern| expand(pattern)));
    first_recent(dirs, major_version).ok_or(PrivatePostgresError::NoBinaries)
}

/// Makes `dir` absolute, because our commands run in another directory, and checks that it holds an installation.
pub(super) fn complete_installation(dir: &Path) -> Result<PathBuf> {
    let dir = std::path::absolute(dir).map_err(cannot("resolve", dir))?;
    first_recent([dir.clone()], major_version).ok_or(PrivatePostgresError::WrongBinDir(dir))
}

/// The directories that match `pattern`, the highest version first.
fn expand(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else {
        return vec![pattern.into()];
    };
    let (parent, prefix) = before.rsplit_once('/').unwrap_or(("", before));
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let version = |name: &OsStr| name.to_str()?.strip_prefix(prefix)?.parse::<u32>().ok();
    let mut versions: Vec<_> = entries.filter_map(|entry| version(&entry.file_name())).collect();
    versions.sort_unstable();
    let dirs = versions.iter().rev();
    dirs.map(|version| format!("{before}{version}{after}").into()).collect()
}

fn first_recent(dirs: impl IntoIterator<Item = PathBuf>, version_of: impl Fn(&Path) -> Option<u32>) -> Option<PathBuf> {
    dirs.into_iter().find(|dir| version_of(dir).is_some_and(|version| version >= OLDEST_VERSION))
}

/// The version of the complete installation in `dir`. A client-only installation has no initdb.
fn major_version(dir: &Path) -> Option<u32> {
    if !dir.join("initdb").is_file() || !dir.join("pg_ctl").is_file() {
        return None;
    }
    let mut postgres = Command::new(dir.join("postgres"));
    let output = postgres.arg("--version").output().ok()?;
    parse_major_version(str::from_utf8(&output.stdout).ok()?)
}

/// Parses "postgres (`PostgreSQL`) 15.14 (Debian ...)" or "postgres (`PostgreSQL`) 19devel".
fn parse_major_version(printed: &str) -> Option<u32> {
    let (_, version) = printed.split_once(") ")?;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    numbers.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn parses_the_major_version() {
        let version = |text: &str| parse_major_version(&format!("postgres (PostgreSQL) {text}\n"));
        assert_eq!(version("15.14 (Debian 15.14-0+deb12u1)"), Some(15));
        assert_eq!(version("19devel"), Some(19));
        assert_eq!(parse_major_version("not found"), None);
    }

    #[test]
    fn takes_the_first_directory_that_is_recent_enough() {
        let version = |dir: &Path| dir.to_str()?.strip_prefix("/pg")?.parse().ok();
        let first = |dirs: &[&str]| first_recent(dirs.iter().map(PathBuf::from), version);
        assert_eq!(first(&["/none", "/pg13", "/pg14", "/pg18"]), first(&["/pg14"]));
        assert_eq!(first(&["/pg14"]), Some("/pg14".into()));
        assert_eq!(first(&["/none", "/pg13"]), None);
        assert_eq!(first_recent(["/nonexistent".into()], major_version), None);
    }

    #[test]
    fn lists_the_highest_version_first() -> io::Result<()> {
        let parent = tempfile::tempdir()?;
        for name in ["pgsql-9", "pgsql-16", "pgsql-9.6", "share"] {
            fs::create_dir(parent.path().join(name))?;
        }
        let found = expand(&format!("{}/pgsql-*/bin", parent.path().display()));
        let expected = ["pgsql-16/bin", "pgsql-9/bin"];
        assert_eq!(found, expected.map(|dir| parent.path().join(dir)));
        assert!(expand("/nonexistent/*/bin").is_empty());
        Ok(())
    }
}
