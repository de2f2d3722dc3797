//! A copy of Postgres' installation. A server that runs from it can lose its libraries, as in an upgrade of the package.

use std::path::{Path, PathBuf};
use std::process::Command;

use coupon_issuer::demo::find_binaries;

pub struct Installation {
    bin_dir: PathBuf,
    plpgsql: PathBuf,
}

impl Installation {
    /// Copies the machine's installation into this directory. An error explains why that is impossible.
    ///
    /// Postgres looks for its files relative to its executable, so the copy keeps the layout.
    pub fn copy_into(directory: &Path) -> Result<Self, String> {
        let sources = layout(&installed_bin_dir()?)?;
        let [bin_dir, share_dir, library_dir] = &sources;
        let root = bin_dir.ancestors().find(|root| sources.iter().all(|source| source.starts_with(root)));
        let root = root.ok_or("the directories of the installation have no common parent")?;
        let copy_of = |source: &Path| source.strip_prefix(root).map(|relative| directory.join(relative)).unwrap();
        for source in [bin_dir, share_dir, library_dir] {
            copy(source, &copy_of(source))?;
        }
        let bin_dir = copy_of(bin_dir);
        if let Some(outside) = layout(&bin_dir)?.iter().find(|found| !found.starts_with(directory)) {
            return Err(format!("the copy still uses {}", outside.display()));
        }
        let plpgsql = ["plpgsql.so", "plpgsql.dylib"].map(|name| copy_of(library_dir).join(name));
        let plpgsql = plpgsql.into_iter().find(|library| library.is_file()).ok_or("it has no library of PL/pgSQL")?;
        Ok(Self { bin_dir, plpgsql })
    }

    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    /// Replaces the library of PL/pgSQL by a file that is no library. Sessions that have loaded the library keep it.
    pub fn corrupt_plpgsql(&self) {
        let corrupt = self.plpgsql.with_extension("corrupt");
        std::fs::hard_link(&self.plpgsql, self.backup()).unwrap();
        std::fs::write(&corrupt, "of another version\n").unwrap();
        std::fs::rename(corrupt, &self.plpgsql).unwrap();
    }

    pub fn restore_plpgsql(&self) {
        std::fs::rename(self.backup(), &self.plpgsql).unwrap();
    }

    fn backup(&self) -> PathBuf {
        self.plpgsql.with_extension("backup")
    }
}

/// The real directory of the machine's programs: the directory in `PATH` may only have links to them.
fn installed_bin_dir() -> Result<PathBuf, String> {
    let postgres = find_binaries().map_err(|error| error.to_string())?.join("postgres");
    let postgres = postgres.canonicalize().map_err(|error| format!("{}: {error}", postgres.display()))?;
    postgres.parent().map(Path::to_path_buf).ok_or_else(|| "it is in no directory".to_owned())
}

/// The directories of the programs, the data and the libraries, as these programs report them.
fn layout(bin_dir: &Path) -> Result<[PathBuf; 3], String> {
    let pg_config = bin_dir.join("pg_config");
    let ask = |option: &str| {
        let unknown = |why: &str| format!("its layout is unknown: {} {option}: {why}", pg_config.display());
        let output = Command::new(&pg_config).arg(option).output().map_err(|error| unknown(&error.to_string()))?;
        let directory = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        if directory.is_dir() { Ok(directory) } else { Err(unknown("the output is not a directory")) }
    };
    Ok([ask("--bindir")?, ask("--sharedir")?, ask("--pkglibdir")?])
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    std::fs::create_dir_all(to).map_err(|error| error.to_string())?;
    let copied =
        Command::new("cp").arg("-R").arg(from.join(".")).arg(to).output().map_err(|error| error.to_string())?;
    if copied.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&copied.stderr).into_owned()) }
}
