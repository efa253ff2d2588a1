//! One dial: resolve, connect, shake hands; and what each failure on the way is called.
//!
//! Ends with a stream on which nothing of MQTT was sent. It tries every address once and never a second time; whether
//! to dial again is not decided here. `heard` is true where the answer could only come from the far end: a refusal, a
//! reset, bytes.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use switchback_control::{Event, Name, Reason, Step};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Shared, Voice};
use crate::config::Server;
use crate::io::socket::{self, Gauge};
use crate::io::{stagger, tls};

/// The next address is tried when one is silent this long (RFC 8305 section 5).
const ADDRESS_DELAY: Duration = Duration::from_millis(250);
/// Longest wait for all addresses, and for TLS after that. The heart has its own deadline for the whole attempt and
/// hangs up; these only keep a forgotten dial from staying for ever.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(60);

/// Why a dial or a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub reason: Reason,
    pub heard: bool,
}

pub const fn ended(reason: Reason, heard: bool) -> Ended {
    Ended { reason, heard }
}

/// A stream that MQTT can be spoken on, plain or protected.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// What a dial came to.
pub struct Dialled {
    pub stream: Box<dyn Transport>,
    pub gauge: Gauge,
    pub counts: Arc<Counts>,
    pub peer: SocketAddr,
    /// "1.3" or "1.2"; `None` without TLS.
    pub tls: Option<&'static str>,
    /// The handshake was shortened by what was remembered of an earlier one.
    pub resumed: bool,
}

/// Bytes of a connection on the wire, without TCP's own.
#[derive(Debug, Default)]
pub struct Counts {
    pub received: AtomicU64,
    pub sent: AtomicU64,
}

pub async fn dial(shared: &Shared, voice: &Voice, interface: Name, server: &Server) -> Result<Dialled, Ended> {
    let details = shared.uplinks.details(interface);
    let through = shared.uplinks.ip_interface(interface);
    let name_servers = details.map(|details| details.name_servers).unwrap_or_default();

    voice.report(Event::DialProgressed { attempt: voice.attempt, step: Step::Resolving }).await;
    let addresses = shared.resolver.lookup(&server.host, through, &name_servers).await;
    if addresses.is_empty() {
        return Err(ended(Reason::Dns, false));
    }

    voice.report(Event::DialProgressed { attempt: voice.attempt, step: Step::Connecting }).await;
    let options = &shared.uplink(interface).socket;
    let tries = addresses.into_iter().map(|address| {
        let (to, options) = (SocketAddr::new(address, server.port), options.clone());
        async move { socket::connect(to, through, &options).await.map(|stream| (stream, to)) }
    });
    let connected = timeout(CONNECT_LIMIT, stagger::first(tries.collect::<Vec<_>>(), ADDRESS_DELAY)).await;
    let (stream, peer) = match connected {
        Ok(Ok(connected)) => connected,
        Ok(Err(failures)) => {
            log::debug!("{} through {through}: {failures:?}", server.host);
            shared.resolver.doubt(&server.host, through);
            return Err(most_telling(&failures));
        }
        Err(_) => {
            shared.resolver.doubt(&server.host, through);
            return Err(ended(Reason::NoServer, false));
        }
    };
    shared.resolver.worked(&server.host, through, peer.ip());
    let gauge = Gauge::of(&stream).map_err(|error| verdict(&error))?;
    let wire = Wire { stream, counts: Arc::default(), first: First::default() };
    let counts = wire.counts.clone();
    if !server.tls {
        return Ok(Dialled { stream: Box::new(wire), gauge, counts, peer, tls: None, resumed: false });
    }

    voice.report(Event::DialProgressed { attempt: voice.attempt, step: Step::Handshake }).await;
    let first = wire.first.clone();
    match timeout(HANDSHAKE_LIMIT, shared.tls.connect(&server.host, wire)).await {
        Err(_) => Err(ended(Reason::TimeLimit, false)),
        Ok(Err(tls::Failure::Files(problem))) => {
            shared.tls.say(problem);
            Err(ended(Reason::Tls, false))
        }
        Ok(Err(tls::Failure::Handshake(error))) => Err(failed(shared, &server.host, &error, &first)),
        Ok(Ok(stream)) => {
            let (_, session) = stream.get_ref();
            let tls = match session.protocol_version() {
                Some(rustls::ProtocolVersion::TLSv1_3) => "1.3",
                _ => "1.2",
            };
            let resumed = session.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
            Ok(Dialled { stream: Box::new(stream), gauge, counts, peer, tls: Some(tls), resumed })
        }
    }
}

fn failed(shared: &Shared, host: &str, error: &io::Error, first: &First) -> Ended {
    // Only what is certainly not the server counts as a portal: a page in answer to a TLS greeting.
    if tls::is_foreign(error) && first.is_http() {
        return ended(Reason::CaptivePortal, false);
    }
    if tls::reason(error).is_some() {
        shared.tls.say(shared.tls.explain(host, error));
    }
    verdict(error)
}

/// What the end of a stream is called, at any time of its life.
pub fn verdict(error: &io::Error) -> Ended {
    if let Some(reason) = tls::reason(error) {
        return ended(reason, true);
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => ended(Reason::Refused, true),
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
            ended(Reason::Reset, true)
        }
        // Also TLS without a farewell: brokers just close.
        io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero => ended(Reason::ServerShutDown, true),
        io::ErrorKind::TimedOut => ended(Reason::KeepaliveLimit, false),
        _ => match error.raw_os_error() {
            Some(
                libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ENETDOWN
                | libc::EHOSTDOWN
                | libc::ENODEV
                | libc::ENXIO
                | libc::EADDRNOTAVAIL
                | libc::EAFNOSUPPORT
                | libc::EACCES
                | libc::EPERM,
            ) => ended(Reason::NoRoute, false),
            _ => ended(Reason::Reset, false),
        },
    }
}

/// Of several addresses' failures, the one that says most of the server; silence says more than a missing route, as a
/// machine without IPv6 has no route to half of the addresses.
fn most_telling(failures: &[io::Error]) -> Ended {
    let weight = |ended: &Ended| match ended.reason {
        Reason::Refused => 3,
        Reason::Reset => 2,
        Reason::NoServer => 1,
        _ => 0,
    };
    let silent = |failure: &io::Error| match verdict(failure) {
        Ended { reason: Reason::KeepaliveLimit, .. } => ended(Reason::NoServer, false),
        other => other,
    };
    failures.iter().map(silent).max_by_key(weight).unwrap_or(ended(Reason::NoServer, false))
}

/// The first bytes the peer sent, to tell a web page from a broken TLS record.
#[derive(Clone, Debug, Default)]
struct First(Arc<AtomicU64>);

impl First {
    /// Keeps the first eight bytes, if they come in one piece, which a status line does.
    fn note(&self, bytes: &[u8]) {
        if let Some(head) = bytes.first_chunk::<8>() {
            // Fails where something was noted before.
            let _ = self.0.compare_exchange(0, u64::from_be_bytes(*head), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    fn is_http(&self) -> bool {
        self.0.load(Ordering::Relaxed).to_be_bytes().starts_with(b"HTTP/")
    }
}

/// The TCP stream with its bytes counted.
struct Wire {
    stream: TcpStream,
    counts: Arc<Counts>,
    first: First,
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let new = buf.filled().get(before..).unwrap_or_default();
        if self.counts.received.fetch_add(new.len() as u64, Ordering::Relaxed) < 8 {
            self.first.note(buf.filled());
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.counts.sent.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_telling_failure_of_several_addresses_wins() {
        let error = io::Error::from_raw_os_error;
        assert_eq!(most_telling(&[]), ended(Reason::NoServer, false));
        assert_eq!(most_telling(&[error(libc::ENETUNREACH)]), ended(Reason::NoRoute, false));
        assert_eq!(most_telling(&[error(libc::ENETUNREACH), error(libc::ETIMEDOUT)]), ended(Reason::NoServer, false));
        assert_eq!(most_telling(&[error(libc::ECONNREFUSED), error(libc::ETIMEDOUT)]), ended(Reason::Refused, true));
    }

    #[test]
    fn a_web_page_is_told_from_a_broken_record() {
        let first = First::default();
        first.note(b"HTTP/1.1 302 Found");
        first.note(b"\x16\x03\x01\0\0\0\0\0");
        assert!(first.is_http());
        assert!(!First::default().is_http());
    }
}
