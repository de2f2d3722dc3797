use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::account::SHELL;
use super::error::{Result, cannot};

pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Runs a program and sends it SIGINT (fast shutdown) when standard input closes: when our process closes it or dies.
///
/// A background reader waits for that and signals this shell. Only the shell waits for the program and signals it, so no signal
/// reaches a process that was given the same pid later, and the shell ends when the program ends. Arguments: the log file, the
/// command.
pub(super) const WATCHDOG: &str = r#"
log=$1; shift
exec 3<&0 >"$log" 2>&1
trap 'again=1; kill -INT "$program"' TERM
"$@" </dev/null 3<&- &
program=$!
(read -r line <&3; kill -TERM $$) &
reader=$! stopping=
exec 3<&-
while again=; wait "$program"; status=$?; [ "$again" ]; do stopping=1; done
[ "$stopping" ] || kill "$reader"
exit "$status"
"#;

/// A program under the watchdog. It ends when the pipe closes. The standard library marks the pipe close-on-exec, so no other
/// child process can keep it open.
#[derive(Debug)]
pub(super) struct Guarded {
    watchdog: Child,
    pipe: Option<ChildStdin>,
}

impl Guarded {
    /// Starts a command that runs [`WATCHDOG`].
    pub(super) fn spawn(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut watchdog = command.spawn().map_err(cannot("run", SHELL.as_ref()))?;
        let pipe = watchdog.stdin.take();
        Ok(Self { watchdog, pipe })
    }

    /// Has the watchdog stop the program.
    pub(super) fn stop(&mut self) {
        self.pipe = None;
    }

    /// The program's exit status, or `None` if it still runs after `timeout`.
    pub(super) fn wait(&mut self, timeout: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + timeout;
        loop {
            let exit = self.watchdog.try_wait();
            let exit = exit.map_err(cannot("wait for", SHELL.as_ref()))?;
            if exit.is_some() || Instant::now() >= deadline {
                return Ok(exit);
            }
            thread::sleep(POLL_INTERVAL);
        }
    }
}
