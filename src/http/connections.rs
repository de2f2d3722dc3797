//! Connections: how many there may be at once, and how long one may not take what it is sent.
//! Knows nothing of what is spoken over them.

use std::future::{Ready, ready};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;

use super::counts;
use crate::telemetry::throttle::Throttle;

static TOO_MANY: Throttle = Throttle::new();

/// Takes connections as long as there is a place for them.
#[derive(Debug, Clone)]
pub struct Connections {
    places: Arc<Semaphore>,
    most: usize,
    write_timeout: Duration,
}

impl Connections {
    /// Takes up to so many. One that takes nothing of its answers for so long is cut.
    #[must_use]
    pub fn new(most: usize, write_timeout: Duration) -> Self {
        Self { places: Arc::new(Semaphore::new(most)), most, write_timeout }
    }

    /// How many there are, and how many there may be.
    #[must_use]
    pub fn use_now(&self) -> (usize, usize) {
        (self.most.saturating_sub(self.places.available_permits()), self.most)
    }
}

impl<S> Accept<TcpStream, S> for Connections {
    type Stream = Connection;
    type Service = S;
    type Future = Ready<io::Result<(Connection, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            counts::TOO_MANY_CONNECTIONS.increment(1);
            TOO_MANY.log(|suppressed| {
                tracing::warn!(suppressed, "connections were closed: there are too many (http.max_connections)");
            });
            return ready(Err(io::Error::other("too many connections")));
        };
        // An answer is small, and its caller waits for it.
        let no_delay = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.write_timeout));
        ready(no_delay.map(|()| (Connection { stream: Box::pin(stream), _place: place }, service)))
    }
}

/// A connection, in its place.
#[derive(Debug)]
pub struct Connection {
    stream: Pin<Box<TimeoutStream<TcpStream>>>,
    _place: OwnedSemaphorePermit,
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
