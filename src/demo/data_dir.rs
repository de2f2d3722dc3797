use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use super::account::Account;
use super::error::{PrivatePostgresError, Result, cannot};

pub(super) const SOCKET_NAME: &str = ".s.PGSQL.5432";
const LOCK_NAME: &str = "coupon-issuer.lock";
/// The lowest limit on a socket's path: that of macOS. Linux allows 107.
const MAX_SOCKET_PATH: usize = 103;

/// Returns the directory to use for `requested`, owned by `account`. That changes its owner and mode, so a home directory given by
/// mistake must be refused: the lock file marks a directory as ours.
pub(super) fn usable_data_dir(requested: &Path, account: Account) -> Result<PathBuf> {
    fs::create_dir_all(requested).map_err(cannot("create", requested))?;
    let mut dir = requested.canonicalize().map_err(cannot("resolve", requested))?;
    let mut entries = fs::read_dir(&dir).map_err(cannot("read", &dir))?;
    if entries.next().is_some() && !dir.join(LOCK_NAME).is_file() {
        return Err(PrivatePostgresError::NotOurs(dir));
    }
    let parent = dir.parent().unwrap_or(&dir);
    if account.gid.is_some() && account.path_from(r#"cd "$1" && pwd"#, parent).is_none() {
        let used = short_name_for(&dir, "/var/tmp");
        tracing::warn!(
            requested = %dir.display(),
            used = %used.display(),
            "the account that runs Postgres cannot reach the data directory: another directory is used"
        );
        dir = used;
    }
    private_dir(&dir, account)?;
    Ok(dir)
}

/// Makes a directory that only the account can enter. Refuses a directory that another user made: in a shared parent such as /tmp
/// it may be a trap.
pub(super) fn private_dir(dir: &Path, account: Account) -> Result<()> {
    let created = DirBuilder::new().mode(0o700).create(dir);
    if let Err(error) = created
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(cannot("create", dir)(error));
    }
    let found = fs::symlink_metadata(dir).map_err(cannot("look at", dir))?;
    let is_roots = account.gid.is_some() && found.uid() == 0;
    if !found.is_dir() || !(found.uid() == account.uid || is_roots) {
        return Err(PrivatePostgresError::NotOurs(dir.to_owned()));
    }
    if is_roots {
        lchown(dir, Some(account.uid), account.gid).map_err(cannot("give away", dir))?;
    }
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(cannot("protect", dir))
}

pub(super) fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(LOCK_NAME);
    // Without truncating: if the account put a link there, root must not empty the link's target.
    let file = File::options().append(true).create(true).open(&path);
    let file = file.map_err(cannot("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(PrivatePostgresError::InUse(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(cannot("lock", &path)(error)),
    }
}

/// A directory below the data directory if its path is short enough and has no character that separates or quotes names in a list
/// of hosts. Otherwise a directory in /tmp, with the same name in every run.
pub(super) fn socket_dir_for(data_dir: &Path) -> PathBuf {
    let inside = data_dir.join("socket");
    let fits = inside.to_str().is_some_and(|path| {
        path.len() + "/".len() + SOCKET_NAME.len() <= MAX_SOCKET_PATH && !path.contains([',', '"'])
    });
    if fits { inside } else { short_name_for(data_dir, "/tmp") }
}

/// A name for `dir` that is the same in every run and build: its FNV-1a hash.
fn short_name_for(dir: &Path, parent: &str) -> PathBuf {
    let bytes = dir.as_os_str().as_bytes().iter();
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    Path::new(parent).join(format!("coupon-issuer-{hash:016x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_path_is_never_too_long() {
        let short = socket_dir_for(Path::new("/data"));
        assert_eq!(short, Path::new("/data/socket"));
        for name in ["x".repeat(90), "a,b".to_owned()] {
            let dir = socket_dir_for(&Path::new("/data").join(name));
            assert!(dir.starts_with("/tmp"), "{}", dir.display());
            assert!(dir.join(SOCKET_NAME).as_os_str().len() <= MAX_SOCKET_PATH);
        }
    }
}
