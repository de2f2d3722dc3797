//! The way from the services to Postgres: a TCP port that passes everything on to Postgres' socket, in whatever weather
//! the test asks for. Knows nothing of what it carries.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::sleep;

/// How long each piece is under way in [`Weather::Slow`].
const DELAY: Duration = Duration::from_millis(40);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    Clear,
    /// Every connection is cut, and none can be made.
    Cut,
    /// Every connection there is or that is made is dead for ever, and nobody is told: what is sent is lost.
    BlackHole,
    /// Nothing arrives for now; what was sent arrives later.
    Stalled,
    /// Everything arrives late.
    Slow,
}

pub struct Network {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
}

impl Network {
    /// Carries to this socket for as long as the runtime lives.
    pub async fn start(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (weather, watched) = watch::channel(Weather::Clear);
        tokio::spawn(async move {
            loop {
                if let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(carry(client, socket.clone(), watched.clone()));
                }
            }
        });
        Self { address, weather }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn turn(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

/// Carries one connection until either end closes it, or the weather ends it.
async fn carry(mut client: TcpStream, socket: PathBuf, weather: watch::Receiver<Weather>) {
    let (mut cut, mut hole) = (weather.clone(), weather.clone());
    // Held here, so that Postgres is not told either when the connection dies.
    let mut server = None;
    tokio::select! {
        biased;
        _ = cut.wait_for(|now| *now == Weather::Cut) => return,
        _ = hole.wait_for(|now| *now == Weather::BlackHole) => {}
        () = both_ways(&mut client, &mut server, socket, &weather) => return,
    }
    tokio::select! {
        () = swallow(&mut client, weather) => {}
        _ = cut.wait_for(|now| *now == Weather::Cut) => {}
    }
    drop(server);
}

async fn both_ways(
    client: &mut TcpStream,
    server: &mut Option<UnixStream>,
    socket: PathBuf,
    weather: &watch::Receiver<Weather>,
) {
    let Ok(connected) = UnixStream::connect(socket).await else { return };
    let server = server.insert(connected);
    let _ = client.set_nodelay(true);
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::select! {
        () = pass(from_client, to_server, weather.clone()) => {}
        () = pass(from_server, to_client, weather.clone()) => {}
    }
}

/// Loses what the client sends, until it gives up. That it has is learnt at the other end once the hole is no more.
async fn swallow(client: &mut TcpStream, mut weather: watch::Receiver<Weather>) {
    let _ = tokio::io::copy(client, &mut tokio::io::sink()).await;
    let _ = weather.wait_for(|now| *now != Weather::BlackHole).await;
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut weather: watch::Receiver<Weather>,
) {
    let mut bytes = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut bytes).await.unwrap_or(0);
        if weather.wait_for(|now| *now != Weather::Stalled).await.is_err() {
            return;
        }
        if *weather.borrow() == Weather::Slow {
            sleep(DELAY).await;
        }
        if read == 0 || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
