use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::error::{PrivatePostgresError, Result};

pub(super) const SHELL: &str = "/bin/sh";

/// The account that runs the server: the current user or, with a `gid`, the account that root switches to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: Option<u32>,
}

impl Account {
    pub(super) fn choose() -> Result<Self> {
        let by_name = |name: &&str| {
            let gid = Some(id(&["-g", name])?);
            id(&["-u", name]).map(|uid| Self { uid, gid })
        };
        let account = match id(&["-u"]) {
            Some(0) => ["postgres", "nobody"].iter().find_map(by_name),
            own => own.map(|uid| Self { uid, gid: None }),
        };
        account.ok_or(PrivatePostgresError::NoAccount)
    }

    /// A command that this account runs, in a process group of its own so that the terminal's Ctrl-C does not reach it, and with
    /// English messages, because we search them.
    pub(super) fn command(self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").current_dir("/").stdin(Stdio::null()).process_group(0);
        if let Some(gid) = self.gid {
            command.uid(self.uid).gid(gid);
        }
        command
    }

    /// Runs `script`. The arguments that the caller adds are its `$1` and so on.
    pub(super) fn shell(self, script: &str) -> Command {
        let mut command = self.command(SHELL);
        command.args(["-c", script, "sh"]);
        command
    }

    /// The path that `script` prints, if it prints one.
    pub(super) fn path_from(self, script: &str, argument: impl AsRef<OsStr>) -> Option<PathBuf> {
        let output = self.shell(script).arg(argument).output().ok()?;
        let path = output.stdout.trim_ascii_end();
        (!path.is_empty()).then(|| OsStr::from_bytes(path).into())
    }
}

/// Runs the `id` command, which needs no unsafe code and knows every source of accounts.
fn id(args: &[&str]) -> Option<u32> {
    let output = Command::new("id").args(args).output().ok()?;
    str::from_utf8(&output.stdout).ok()?.trim().parse().ok()
}
