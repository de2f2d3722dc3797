use std::future::{Ready, ready};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum_server::accept::Accept;
use metrics::{Counter, counter};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;

use crate::telemetry::metrics as metric;
use crate::telemetry::throttle::Throttle;

static TOO_MANY: Throttle = Throttle::new();

/// Accepts connections while fewer than the maximum are open.
#[derive(Clone)]
pub(super) struct Connections {
    slots: Arc<Semaphore>,
    max: usize,
    write_timeout: Duration,
    refused: Counter,
}

impl Connections {
    /// Closes a connection whose caller reads nothing of its answer for `write_timeout`.
    #[must_use]
    pub(super) fn new(max: usize, write_timeout: Duration) -> Self {
        let refused = counter!(metric::TURNED_AWAY.name, "reason" => "connections");
        Self { slots: Arc::new(Semaphore::new(max)), max, write_timeout, refused }
    }

    /// How many connections are open, and how many may be open.
    #[must_use]
    pub(super) fn usage(&self) -> (usize, usize) {
        (self.max.saturating_sub(self.slots.available_permits()), self.max)
    }
}

impl<S> Accept<TcpStream, S> for Connections {
    type Stream = Connection;
    type Service = S;
    type Future = Ready<io::Result<(Connection, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            self.refused.increment(1);
            TOO_MANY.log(|suppressed| {
                tracing::warn!(suppressed, "connections were closed: http.max_connections is reached");
            });
            return ready(Err(io::Error::other("too many connections")));
        };
        // Answers are small, and callers wait for them: send them without delay.
        let no_delay = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.write_timeout));
        ready(no_delay.map(|()| (Connection { stream: Box::pin(stream), _slot: slot }, service)))
    }
}

/// A connection. Dropping it frees its slot.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Pin<Box<TimeoutStream<TcpStream>>>,
    _slot: OwnedSemaphorePermit,
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }
}

/// Open files besides callers' connections: database connections, listeners, the log.
const OTHER_FILES: usize = 200;

/// Raises the soft limit on open files, which is often only 1024, and returns how many connections the limit allows.
pub(super) fn raise_fd_limit(wanted: usize) -> usize {
    let needed = u64::try_from(wanted + OTHER_FILES).unwrap_or(u64::MAX);
    let had = rlimit::increase_nofile_limit(needed).unwrap_or(needed);
    if had >= needed {
        return wanted;
    }
    let allowed = usize::try_from(had).unwrap_or(usize::MAX).saturating_sub(OTHER_FILES).max(1);
    tracing::warn!(
        allowed,
        wanted,
        "the limit on open files (ulimit -n) allows fewer connections than http.max_connections"
    );
    allowed
}
