//! Where local clients knock: a TCP port and a Unix socket.
//!
//! Binds, accepts, and hands each connection to its own task. A place that cannot be had is said once and tried again
//! every few seconds, for ever; nothing else waits for it. Knows no MQTT.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::time::sleep;

use super::connection::serve;
use super::{Doors, Offers};

/// How soon a place that was taken is tried again: soon enough after someone stopped the other broker.
const BIND_AGAIN: Duration = Duration::from_secs(3);

/// Connections the kernel holds until it is our turn.
const BACKLOG: u32 = 128;

/// How long to leave a listener alone that cannot accept, for want of file descriptors for instance.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// Something that accepts connections.
trait Listener {
    type Stream: AsyncRead + AsyncWrite + Send + 'static;
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        let (stream, _) = TcpListener::accept(self).await?;
        // Neither is worth a client: without them answers are a little later, and a dead peer is found later.
        let _ = stream.set_nodelay(true);
        let keepalive = TcpKeepalive::new().with_time(super::STALL_MAX);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        Ok(stream)
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        UnixListener::accept(self).await.map(|(stream, _)| stream)
    }
}

/// Serves MQTT on a TCP address for ever.
pub async fn listen_tcp<O: Offers>(address: SocketAddr, doors: Arc<Doors<O>>) {
    let advice = "is another broker running? stop it, or set local.mqtt to another address or to \"\"";
    let listener = bound(|| bind_tcp(address), &address.to_string(), advice).await;
    accept_from(listener, doors).await;
}

/// Serves MQTT on a Unix socket for ever.
pub async fn listen_unix<O: Offers>(path: PathBuf, doors: Arc<Doors<O>>) {
    let advice = "does the runtime directory exist, and may the daemon write there?";
    let listener = bound(|| bind_unix(&path), &path.display().to_string(), advice).await;
    accept_from(listener, doors).await;
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        // Left behind by a daemon that was killed. The runtime directory is ours alone.
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    // Whoever may not write to the directory's group may not publish (unix(7)).
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

async fn bound<L>(bind: impl Fn() -> io::Result<L>, place: &str, advice: &str) -> L {
    let mut complained = false;
    loop {
        match bind() {
            Ok(listener) => {
                if complained {
                    log::info!("local MQTT: now listening on {place}");
                }
                return listener;
            }
            Err(error) => {
                if !complained {
                    log::warn!("local MQTT: cannot listen on {place}: {error}; {advice}. Trying again until it works");
                }
                complained = true;
                sleep(BIND_AGAIN).await;
            }
        }
    }
}

async fn accept_from<L: Listener, O: Offers>(listener: L, doors: Arc<Doors<O>>) {
    let mut complained = false;
    loop {
        match listener.accept().await {
            Ok(stream) => {
                complained = false;
                let stranger = doors.strangers.knock();
                tokio::spawn(serve(stream, Arc::clone(&doors), stranger));
            }
            Err(error) => {
                if !complained {
                    log::warn!("local MQTT: cannot accept a client: {error}");
                }
                complained = true;
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}
