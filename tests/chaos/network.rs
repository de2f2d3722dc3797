//! The network between the services and Postgres: a TCP port that forwards every byte to Postgres' socket, and can fail.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::sleep;

/// The delay of each read in [`NetworkState::Slow`].
const DELAY: Duration = Duration::from_millis(40);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkState {
    Healthy,
    /// Closes every connection, and every new one at once.
    Cut,
    /// Loses everything that is sent, without closing a connection. A connection that was open during this state stays dead.
    BlackHole,
    /// Delivers nothing. What was sent meanwhile arrives when the state ends.
    Stalled,
    /// Delivers everything late.
    Slow,
}

pub struct Network {
    address: SocketAddr,
    state: watch::Sender<NetworkState>,
}

impl Network {
    /// Forwards to this socket until the runtime ends.
    pub async fn start(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, watched) = watch::channel(NetworkState::Healthy);
        tokio::spawn(async move {
            loop {
                if let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(forward(client, socket.clone(), watched.clone()));
                }
            }
        });
        Self { address, state }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn set(&self, state: NetworkState) {
        self.state.send_replace(state);
    }
}

/// Forwards one connection until either end closes it, or the state does.
async fn forward(mut client: TcpStream, socket: PathBuf, state: watch::Receiver<NetworkState>) {
    let (mut cut, mut hole) = (state.clone(), state.clone());
    // Kept open while the black hole lasts, so that Postgres does not notice either that the connection is dead.
    let mut server = None;
    tokio::select! {
        biased;
        _ = cut.wait_for(|now| *now == NetworkState::Cut) => return,
        _ = hole.wait_for(|now| *now == NetworkState::BlackHole) => {}
        () = forward_both_ways(&mut client, &mut server, socket, &state) => return,
    }
    tokio::select! {
        () = swallow(&mut client, state) => {}
        _ = cut.wait_for(|now| *now == NetworkState::Cut) => {}
    }
    drop(server);
}

async fn forward_both_ways(
    client: &mut TcpStream,
    server: &mut Option<UnixStream>,
    socket: PathBuf,
    state: &watch::Receiver<NetworkState>,
) {
    let Ok(connected) = UnixStream::connect(socket).await else { return };
    let server = server.insert(connected);
    let _ = client.set_nodelay(true);
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::select! {
        () = pipe(from_client, to_server, state.clone()) => {}
        () = pipe(from_server, to_client, state.clone()) => {}
    }
}

/// Drops what the client sends until it closes the connection. Postgres learns of that only when the black hole ends.
async fn swallow(client: &mut TcpStream, mut state: watch::Receiver<NetworkState>) {
    let _ = tokio::io::copy(client, &mut tokio::io::sink()).await;
    let _ = state.wait_for(|now| *now != NetworkState::BlackHole).await;
}

async fn pipe(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<NetworkState>,
) {
    let mut bytes = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut bytes).await.unwrap_or(0);
        if state.wait_for(|now| *now != NetworkState::Stalled).await.is_err() {
            return;
        }
        if *state.borrow() == NetworkState::Slow {
            sleep(DELAY).await;
        }
        if read == 0 || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
