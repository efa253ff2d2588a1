//! The kernel's sockets: how ours are made, and what the kernel says of them.
//!
//! Every socket made here is bound to one device (`SO_BINDTODEVICE`) before its first packet and to nothing
//! else, so that nobody's route change moves or cuts it (R-FX-1); what was asked for is read back from the
//! kernel. The only file with `unsafe`: three calls that no library offers. It decides nothing, keeps nothing and
//! never waits but for a connect.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use switchback_control::Name;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use crate::config::SocketOptions;

/// Most bytes the kernel takes from us that it has not sent (`TCP_NOTSENT_LOWAT`, tcp(7)): one TLS record. What lies
/// in the kernel is stranded when the uplink dies, so little may (R-TX-9); less than a record would only wake us
/// more often.
pub const NOT_SENT_MAX: u32 = 16 * 1024;

/// Connects to `to` through `device` and nothing else. Errors are the kernel's; there is no time limit here.
pub async fn connect(to: SocketAddr, device: Name, options: &SocketOptions) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(device.as_str().as_bytes()))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(options.keepalive_idle)
            .with_interval(options.keepalive_interval)
            .with_retries(options.keepalive_count),
    )?;
    socket.set_tcp_user_timeout(Some(options.user_timeout))?;
    socket.set_tcp_notsent_lowat(NOT_SENT_MAX)?;
    // Before connect, because the window scale is chosen from it. Unset leaves the kernel's autotuning on.
    if let Some(size) = options.send_buffer {
        socket.set_send_buffer_size(usize::try_from(size).unwrap_or(usize::MAX))?;
    }
    verify(&socket, device, options);
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

/// A datagram socket for talking to `to` only, on a source port the kernel picks at random. Bound to `device`,
/// except for loopback addresses, which lie behind no uplink.
pub async fn datagram(to: SocketAddr, device: Name) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    if !to.ip().is_loopback() {
        socket.bind_device(Some(device.as_str().as_bytes()))?;
    }
    socket.bind(&SocketAddr::new(any, 0).into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    // A connected socket takes datagrams from this address and port only, and learns of ICMP errors.
    socket.connect(to).await?;
    Ok(socket)
}

/// A plain stream to `to`, bound as `datagram` binds; for the rare answer that does not fit a datagram.
pub async fn stream(to: SocketAddr, device: Name) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if !to.ip().is_loopback() {
        socket.bind_device(Some(device.as_str().as_bytes()))?;
    }
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

/// What the kernel says it has set on a live socket (R-LV-1, R-TX-6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readback {
    /// Bytes; the kernel doubles what it is asked for, for its own bookkeeping (socket(7)).
    pub send_buffer: u32,
    pub keepalive_idle: Duration,
    pub keepalive_interval: Duration,
    pub keepalive_count: u32,
    pub user_timeout: Duration,
}

/// How the path looks to the kernel (`TCP_INFO`, tcp(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathInfo {
    /// Smoothed round trip; zero before the first sample.
    pub round_trip: Duration,
    /// Its mean deviation.
    pub variance: Duration,
    /// The smallest round trip of the last minutes; zero before the first sample.
    pub least_round_trip: Duration,
    /// Bytes of payload in one segment that we send.
    pub segment: u32,
    /// Segments sent since the connection began that ask for an acknowledgement (SYN and data, not mere
    /// acknowledgements), those sent again included.
    pub sent: u32,
    /// Of these, segments sent again.
    pub retransmits: u32,
    /// Every segment sent and received.
    pub segments: u32,
    /// Segments sent and not acknowledged.
    pub unacked_segments: u32,
    /// How long ago the peer last acknowledged anything.
    pub acked_ago: Duration,
}

/// A second handle on a connection's socket, for reading what the kernel knows while the first is busy.
///
/// The connection ends only when both are gone, so it is kept no longer than the connection.
#[derive(Debug)]
pub struct Gauge {
    socket: OwnedFd,
    /// SYNs sent, which the kernel counts among what was sent again, but not among what was sent.
    syns: u32,
}

impl Gauge {
    /// Of a stream that has connected and on which nothing was sent yet. Errors are the kernel's (out of descriptors).
    pub fn of(stream: &TcpStream) -> io::Result<Gauge> {
        let mut gauge = Gauge { socket: stream.as_fd().try_clone_to_owned()?, syns: 1 };
        gauge.syns += gauge.path().map_or(0, |path| path.retransmits);
        Ok(gauge)
    }

    /// The options in force; what cannot be read stays zero.
    pub fn readback(&self) -> Readback {
        readback(&SockRef::from(&self.socket))
    }

    /// Makes closing end the connection at once (`SO_LINGER` zero): the kernel forgets what it has not sent, instead
    /// of trying for minutes over an uplink that is dead or costs money.
    pub fn forget_unsent(&self) {
        if let Err(error) = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)) {
            log::debug!("cannot set SO_LINGER: {error}");
        }
    }

    /// Bytes the peer has not acknowledged (`SIOCOUTQ`, tcp(7)).
    pub fn unacked(&self) -> io::Result<u32> {
        self.queue(libc::TIOCOUTQ)
    }

    /// Bytes not even sent (`SIOCOUTQNSD`).
    pub fn unsent(&self) -> io::Result<u32> {
        self.queue(SIOCOUTQNSD)
    }

    fn queue(&self, request: libc::c_ulong) -> io::Result<u32> {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the descriptor is open as long as `self`, and both requests write exactly one int.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), request as _, &mut bytes) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(u32::try_from(bytes).unwrap_or(0)) }
    }

    /// Errors are the kernel's; `Unsupported` before Linux 4.6.
    pub fn path(&self) -> io::Result<PathInfo> {
        let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
        let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes, which is the size of `info`, and the descriptor is open.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &mut length,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // An older kernel writes a shorter structure; the other fields stand before this one.
        let needed = std::mem::offset_of!(libc::tcp_info, tcpi_data_segs_out) + size_of::<u32>();
        if usize::try_from(length).unwrap_or(0) < needed {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // SAFETY: every field is a plain integer, so the zeroes it began with are valid wherever nothing was written.
        let info = unsafe { info.assume_init() };
        Ok(PathInfo {
            round_trip: Duration::from_micros(u64::from(info.tcpi_rtt)),
            variance: Duration::from_micros(u64::from(info.tcpi_rttvar)),
            // All ones before the first sample.
            least_round_trip: Duration::from_micros(u64::from(info.tcpi_min_rtt.min(info.tcpi_rtt))),
            segment: info.tcpi_snd_mss,
            sent: info.tcpi_data_segs_out.saturating_add(self.syns),
            retransmits: info.tcpi_total_retrans,
            segments: info.tcpi_segs_out.saturating_add(info.tcpi_segs_in),
            unacked_segments: info.tcpi_unacked,
            acked_ago: Duration::from_millis(u64::from(info.tcpi_last_ack_recv)),
        })
    }
}

/// `SIOCOUTQNSD` of `linux/sockios.h`, which libc does not name.
const SIOCOUTQNSD: libc::c_ulong = 0x894b;

fn readback(socket: &SockRef<'_>) -> Readback {
    Readback {
        send_buffer: socket.send_buffer_size().ok().and_then(|size| u32::try_from(size).ok()).unwrap_or(0),
        keepalive_idle: socket.tcp_keepalive_time().unwrap_or_default(),
        keepalive_interval: socket.tcp_keepalive_interval().unwrap_or_default(),
        keepalive_count: socket.tcp_keepalive_retries().unwrap_or_default(),
        user_timeout: socket.tcp_user_timeout().ok().flatten().unwrap_or_default(),
    }
}

/// Says where the kernel has set something else than asked: it rounds to seconds and caps buffers silently.
fn verify(socket: &Socket, device: Name, options: &SocketOptions) {
    let found = readback(&SockRef::from(socket));
    log::debug!("socket on {device}: {found:?}");
    let asked = Readback {
        send_buffer: options.send_buffer.map_or(found.send_buffer, |size| size.saturating_mul(2)),
        keepalive_idle: options.keepalive_idle,
        keepalive_interval: options.keepalive_interval,
        keepalive_count: options.keepalive_count,
        user_timeout: options.user_timeout,
    };
    if found != asked {
        log::debug!("the kernel changed the socket options on {device}: asked for {asked:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    fn lo() -> Name {
        Name::new("lo").unwrap()
    }

    fn options() -> SocketOptions {
        SocketOptions {
            keepalive_idle: Duration::from_secs(55),
            keepalive_interval: Duration::from_secs(17),
            keepalive_count: 3,
            user_timeout: Duration::from_secs(106),
            send_buffer: Some(32 * 1024),
        }
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let options = options();
        let (ours, theirs) = tokio::join!(connect(to, lo(), &options), listener.accept());
        (ours.unwrap(), theirs.unwrap().0)
    }

    #[tokio::test]
    async fn what_was_asked_for_is_on_the_live_socket() {
        let (ours, _theirs) = pair().await;
        let found = Gauge::of(&ours).unwrap().readback();
        assert_eq!(found.keepalive_idle, Duration::from_secs(55));
        assert_eq!(found.keepalive_interval, Duration::from_secs(17));
        assert_eq!(found.keepalive_count, 3);
        assert_eq!(found.user_timeout, Duration::from_secs(106));
        assert_eq!(found.send_buffer, 64 * 1024);
        let socket = SockRef::from(&ours);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        assert_eq!(socket.device().unwrap().as_deref(), Some(&b"lo"[..]));
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), NOT_SENT_MAX);
    }

    #[tokio::test]
    async fn the_kernels_queue_is_seen_filling() {
        let (mut ours, theirs) = pair().await;
        let gauge = Gauge::of(&ours).unwrap();
        assert_eq!((gauge.unacked().unwrap(), gauge.unsent().unwrap()), (0, 0));
        // Nobody reads: the peer's window fills, then our queue.
        let full = tokio::time::timeout(Duration::from_millis(300), ours.write_all(&vec![0; 32 << 20])).await;
        assert!(full.is_err());
        assert!(gauge.unacked().unwrap() > 0 && gauge.unsent().unwrap() > 0);
        assert!(gauge.path().is_ok());
        drop(theirs);
    }

    #[tokio::test]
    async fn what_was_sent_again_is_counted_among_what_was_sent_from_the_first_packet_on() {
        let (mut ours, _theirs) = pair().await;
        let counted = |gauge: &Gauge| gauge.path().map(|path| (path.sent, path.retransmits)).unwrap();
        let gauge = Gauge::of(&ours).unwrap();
        assert_eq!(counted(&gauge), (1, 0));
        ours.write_all(b"x").await.unwrap();
        assert_eq!(counted(&gauge), (2, 0));

        // One waits to be accepted, so there is no room for a second, whose SYN goes unheard until there is.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let (to, options) = (listener.local_addr().unwrap(), options());
        let _first = connect(to, lo(), &options).await.unwrap();
        let room = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            listener.accept().await.unwrap()
        };
        let (second, _accepted) = tokio::join!(connect(to, lo(), &options), room);
        let mut second = second.unwrap();
        let gauge = Gauge::of(&second).unwrap();
        assert_eq!(counted(&gauge), (2, 1));
        second.write_all(b"x").await.unwrap();
        assert_eq!(counted(&gauge), (3, 1));
    }

    #[tokio::test]
    async fn a_forgotten_connection_ends_with_a_reset() {
        let (ours, mut theirs) = pair().await;
        let gauge = Gauge::of(&ours).unwrap();
        gauge.forget_unsent();
        drop((ours, gauge));
        let error = tokio::io::AsyncReadExt::read(&mut theirs, &mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_device_that_is_gone_is_an_error_and_nothing_else_is_used() {
        let gone = Name::new("none0").unwrap();
        let to = "127.0.0.1:1".parse().unwrap();
        assert_eq!(connect(to, gone, &options()).await.unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
