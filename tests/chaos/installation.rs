//! A copy of Postgres' installation. A server that runs from it can lose its libraries, as in an upgrade of the package.
//! Postgres finds its libraries by where its executable is, so a copy that keeps the layout uses its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use coupon_issuer::demo::private_postgres::find_binaries;

pub struct Installation {
    bin_dir: PathBuf,
    plpgsql: PathBuf,
}

impl Installation {
    /// Copies the machine's into this directory. An error says why that is impossible.
    ///
    /// Postgres looks for its files at the place that they have relative to its executable, so the copy keeps that layout.
    pub fn copy_into(directory: &Path) -> Result<Self, String> {
        let places = places(&programs()?)?;
        let [bin_dir, share_dir, library_dir] = &places;
        let root = bin_dir.ancestors().find(|root| places.iter().all(|place| place.starts_with(root)));
        let root = root.ok_or("its directories have none in common")?;
        let copy_of = |place: &Path| place.strip_prefix(root).map(|place| directory.join(place)).unwrap();
        for place in [bin_dir, share_dir, library_dir] {
            copy(place, &copy_of(place))?;
        }
        let bin_dir = copy_of(bin_dir);
        if let Some(elsewhere) = self::places(&bin_dir)?.iter().find(|place| !place.starts_with(directory)) {
            return Err(format!("from its copy, it still finds {}", elsewhere.display()));
        }
        let plpgsql = ["plpgsql.so", "plpgsql.dylib"].map(|name| copy_of(library_dir).join(name));
        let plpgsql = plpgsql.into_iter().find(|library| library.is_file()).ok_or("it has no library of PL/pgSQL")?;
        Ok(Self { bin_dir, plpgsql })
    }

    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    /// Puts a file that is no library in PL/pgSQL's place. Whoever has loaded the library keeps it.
    pub fn spoil(&self) {
        let (aside, spoilt) = (self.aside(), self.plpgsql.with_extension("spoilt"));
        std::fs::hard_link(&self.plpgsql, aside).unwrap();
        std::fs::write(&spoilt, "of another version\n").unwrap();
        std::fs::rename(spoilt, &self.plpgsql).unwrap();
    }

    /// Puts the library back.
    pub fn mend(&self) {
        std::fs::rename(self.aside(), &self.plpgsql).unwrap();
    }

    fn aside(&self) -> PathBuf {
        self.plpgsql.with_extension("aside")
    }
}

/// Where the machine's programs really are: in a directory of the path there may be no more than links to them.
fn programs() -> Result<PathBuf, String> {
    let postgres = find_binaries().map_err(|error| error.to_string())?.join("postgres");
    let postgres = postgres.canonicalize().map_err(|error| format!("{}: {error}", postgres.display()))?;
    postgres.parent().map(Path::to_path_buf).ok_or_else(|| "it is in no directory".to_owned())
}

/// Where the installation of these binaries has its programs, its data and its libraries.
fn places(bin_dir: &Path) -> Result<[PathBuf; 3], String> {
    let pg_config = bin_dir.join("pg_config");
    let ask = |what: &str| {
        let cannot = |why: &str| format!("its layout is unknown: {} {what}: {why}", pg_config.display());
        let output = Command::new(&pg_config).arg(what).output().map_err(|error| cannot(&error.to_string()))?;
        let place = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        if place.is_dir() { Ok(place) } else { Err(cannot("names no directory")) }
    };
    Ok([ask("--bindir")?, ask("--sharedir")?, ask("--pkglibdir")?])
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    std::fs::create_dir_all(to).map_err(|error| error.to_string())?;
    let copied =
        Command::new("cp").arg("-R").arg(from.join(".")).arg(to).output().map_err(|error| error.to_string())?;
    if copied.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&copied.stderr).into_owned()) }
}
