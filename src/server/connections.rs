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

/// Takes connections while fewer than the maximum are open.
#[derive(Clone)]
pub(super) struct Connections {
    slots: Arc<Semaphore>,
    most: usize,
    write_timeout: Duration,
    refused: Counter,
}

impl Connections {
    /// Takes up to so many. One that takes nothing of its answers for so long is cut.
    #[must_use]
    pub(super) fn new(most: usize, write_timeout: Duration) -> Self {
        let refused = counter!(metric::TURNED_AWAY.name, "reason" => "connections");
        Self { slots: Arc::new(Semaphore::new(most)), most, write_timeout, refused }
    }

    /// How many there are, and how many there may be.
    #[must_use]
    pub(super) fn use_now(&self) -> (usize, usize) {
        (self.most.saturating_sub(self.slots.available_permits()), self.most)
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
                tracing::warn!(suppressed, "connections were closed: there are too many (http.max_connections)");
            });
            return ready(Err(io::Error::other("too many connections")));
        };
        // An answer is small, and its caller waits for it.
        let no_delay = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.write_timeout));
        ready(no_delay.map(|()| (Connection { stream: Box::pin(stream), _slot: slot }, service)))
    }
}

/// A connection. Its slot is free again when it is dropped.
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

/// Open files besides callers' connections: those to the database, the listeners, the log.
const OTHER_FILES: usize = 200;

/// Raises the limit on open files, whose soft value is often a thousand by tradition, and returns the connections that it allows.
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
