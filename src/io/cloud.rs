//! The cloud's MQTT server: dials and connections, each under its attempt number.
//!
//! One task per attempt: it dials, waits without a word until told to connect, speaks MQTT, and ends when told or when
//! the connection does. Always true: methods hand over and return at once; after `hang_up` nothing of that attempt is
//! reported; a body is fetched only when it can be written. It never dials by itself, never repeats a message on a live
//! connection and never chooses a server or interface: those are the heart's actions.
//!
//! Below: `bodies` are the messages of applications, `dial` makes the stream, `connection` speaks on it, `speech` knows both versions of MQTT, `memory` is what
//! outlives a connection and `exchange` and `taken` what of it belongs to QoS 2, `pace` how much may be in the kernel, `age` when a
//! message is too old, `documents` are our own messages, `costs` counts what liveness costs.

mod age;
mod bodies;
mod connection;
mod costs;
mod dial;
mod documents;
mod exchange;
mod memory;
mod pace;
pub(crate) mod speech;
mod taken;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use switchback_control::{Attempt, Class, Event, Goodbye, Measure, Name, Reason, Seq, Version};
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::config::{Config, UplinkConfig};
use crate::corridor::{Downlinks, Pledge};
use crate::io::Events;
use crate::io::resolver::Resolver;
use crate::io::socket::{Gauge, PathInfo, Readback};
use crate::io::tls::Tls;
use crate::uplinks::Uplinks;

pub use bodies::Bodies;
use bodies::{Answer, AnyBodies};
pub use dial::verdict;
pub use documents::Greeting;

/// Longest goodbye: publishing the offline status and DISCONNECT, until the server has closed. Two round trips on the
/// slowest uplink; a stop or a move must not wait longer.
pub const FAREWELL_LIMIT: Duration = Duration::from_secs(2);

/// Asked at each new session for what only the loop knows.
pub type Greet = Arc<dyn Fn() -> Greeting + Send + Sync>;

/// What is known of the server's session from before this start.
#[derive(Clone, Debug, Default)]
pub struct Before {
    /// Exchanges of QoS 2 towards the cloud that were open.
    pub pledges: Vec<Pledge>,
    /// The file for what of the cloud's own messages of QoS 2 was taken; `None` keeps that in memory.
    pub taken: Option<PathBuf>,
}

/// What is known of a connection right now, for displays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    pub peer: SocketAddr,
    /// "1.3" or "1.2"; `None` without TLS.
    pub tls: Option<String>,
    /// The TLS handshake was shortened by an earlier one.
    pub resumed: bool,
    /// Smoothed round trip by the kernel, microseconds; `None` before the first sample.
    pub rtt_us: Option<u32>,
    /// Its mean deviation, microseconds.
    pub rtt_variance_us: Option<u32>,
    /// Segments sent again since the connection began.
    pub retransmits: u32,
    /// `SO_SNDBUF` as the kernel has it (doubled), in bytes.
    pub send_buffer: Option<u32>,
    /// Keepalive and user timeout as the kernel has them.
    pub options: Readback,
    /// On the wire, TLS included, TCP and IP not.
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// In the kernel: sent and not acknowledged together with not sent; and the latter alone.
    pub unacked: u32,
    pub unsent: u32,
}

/// The handle: dials, connections and what is known of them. Clones are the same cloud.
#[derive(Clone)]
pub struct Cloud(Arc<Shared>);

/// What every task shares.
struct Shared {
    config: Arc<Config>,
    uplinks: Uplinks,
    bodies: Box<dyn AnyBodies>,
    downlinks: Downlinks,
    events: Events,
    greet: Greet,
    resolver: Resolver,
    tls: Tls,
    memory: memory::Memory,
    taken: Arc<taken::Taken>,
    lines: Mutex<HashMap<Attempt, Line>>,
    costs: costs::Costs,
    /// Said once: a message of QoS 2 goes as QoS 1; a step of QoS 2 is not durable.
    said_downgraded: AtomicBool,
    said_unkept: AtomicBool,
    /// Tasks that have not ended, and a call when one has.
    running: AtomicU64,
    ended: Notify,
}

/// One attempt as the handle knows it.
struct Line {
    /// Not bounded here: the heart hands over at most a window of messages and one of anything else at a time.
    orders: mpsc::UnboundedSender<Order>,
    dead: Arc<AtomicBool>,
    task: AbortHandle,
    /// From the end of the dial on.
    facts: Option<Arc<Facts>>,
}

/// What is known of a dialled connection.
struct Facts {
    interface: Name,
    server: u8,
    gauge: Gauge,
    counts: Arc<dial::Counts>,
    peer: SocketAddr,
    tls: Option<&'static str>,
    resumed: bool,
    /// CONNECT is on its way: from here on this is a session's connection.
    spoke: AtomicBool,
}

impl Facts {
    fn measure(&self) -> Measure {
        let path = self.gauge.path().unwrap_or_default();
        Measure {
            round_trip: path.round_trip,
            sent: path.sent,
            again: path.retransmits,
            acked_ago: path.acked_ago,
            // Unknown counts as something: only a known zero speaks for the path.
            owed: self.gauge.unacked().unwrap_or(1),
        }
    }
}

/// What a connection is told.
enum Order {
    Connect { version: Version, keep_alive: Duration },
    HangUp(Goodbye),
    Ping,
    Measure,
    Drain,
    Transmit { seq: Seq, again: bool },
}

/// Reports for one attempt, until it is hung up.
struct Voice {
    attempt: Attempt,
    events: Events,
    dead: Arc<AtomicBool>,
}

impl Voice {
    /// Hung up: what happens now is of no interest any more.
    fn is_silent(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Waits while the loop is behind. A closed channel means that nobody wants to know any more.
    async fn report(&self, event: Event) {
        if let Ok(room) = self.events.reserve().await
            && !self.is_silent()
        {
            room.send(event);
        }
    }
}

impl Cloud {
    /// Nothing is dialled yet. Certificates are read now, so that a wrong path is said at the start.
    pub fn start(
        config: Arc<Config>,
        uplinks: Uplinks,
        bodies: impl Bodies,
        downlinks: Downlinks,
        events: Events,
        greet: Greet,
        before: Before,
    ) -> Cloud {
        Cloud(Arc::new(Shared {
            tls: Tls::new(&config.cloud),
            config,
            uplinks,
            bodies: Box::new(Arc::new(bodies)),
            downlinks,
            events,
            greet,
            resolver: Resolver::default(),
            memory: memory::Memory::new(&before.pledges),
            taken: Arc::new(taken::Taken::load(before.taken)),
            lines: Mutex::default(),
            costs: costs::Costs::default(),
            said_downgraded: AtomicBool::new(false),
            said_unkept: AtomicBool::new(false),
            running: AtomicU64::new(0),
            ended: Notify::new(),
        }))
    }

    /// `Action::Dial`. Must be called inside the runtime.
    pub fn dial(&self, interface: Name, server: u8, attempt: Attempt) {
        let (orders, inbox) = mpsc::unbounded_channel();
        let dead = Arc::new(AtomicBool::new(false));
        let voice = Voice { attempt, events: self.0.events.clone(), dead: dead.clone() };
        self.0.running.fetch_add(1, Ordering::AcqRel);
        let presence = Presence { shared: self.0.clone(), attempt, facts: None };
        // Held over the spawn, so that the task finds its line whatever the runtime.
        let mut lines = self.0.lines();
        let task = tokio::spawn(run(presence, voice, interface, server, inbox)).abort_handle();
        lines.insert(attempt, Line { orders, dead, task, facts: None });
    }

    /// `Action::Connect`: CONNECT goes out as soon as the dial has come to its end.
    pub fn connect(&self, attempt: Attempt, version: Version, keep_alive: Duration) {
        self.order(attempt, Order::Connect { version, keep_alive });
    }

    /// `Action::HangUp`. A goodbye goes on in the background, for at most `FAREWELL_LIMIT`; see `finished`.
    pub fn hang_up(&self, attempt: Attempt, goodbye: Goodbye) {
        let Some(line) = self.0.lines().remove(&attempt) else { return };
        line.dead.store(true, Ordering::Release);
        match (goodbye, &line.facts) {
            (Goodbye::Offline | Goodbye::Moving, Some(_)) => drop(line.orders.send(Order::HangUp(goodbye))),
            (Goodbye::Abort, Some(facts)) => {
                facts.gauge.forget_unsent();
                line.task.abort();
            }
            (Goodbye::Offline | Goodbye::Moving | Goodbye::Abort, None) => line.task.abort(),
        }
    }

    /// `Action::Ping`.
    pub fn ping(&self, attempt: Attempt) {
        self.order(attempt, Order::Ping);
    }

    /// `Action::Drain`: answered at once by `Event::Drained`. Empty says that the far end has acknowledged every byte that
    /// had been written when this was first asked; what was written since is the matter of the next question.
    pub fn drain(&self, attempt: Attempt) {
        self.order(attempt, Order::Drain);
    }

    /// `Action::Measure`: answered at once by `Event::Measured`, on a parked connection too.
    pub fn measure(&self, attempt: Attempt) {
        self.order(attempt, Order::Measure);
    }

    /// `Action::Transmit`. The body is fetched when it can be written, of all that wait the highest lane first: before
    /// CONNACK only where the server's limits are known, and only messages of QoS 1 in front of all others.
    pub fn transmit(&self, attempt: Attempt, seq: Seq, again: bool) {
        self.order(attempt, Order::Transmit { seq, again });
    }

    /// What is known of a connection at this moment; `None` before its dial has ended and after its end.
    pub fn live(&self, attempt: Attempt) -> Option<Live> {
        let facts = self.0.lines().get(&attempt)?.facts.clone()?;
        let path = facts.gauge.path().unwrap_or_default();
        let options = facts.gauge.readback();
        let micros = |duration: Duration| u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
        let sampled = path != PathInfo::default() && !path.round_trip.is_zero();
        Some(Live {
            peer: facts.peer,
            tls: facts.tls.map(str::to_owned),
            resumed: facts.resumed,
            rtt_us: sampled.then(|| micros(path.round_trip)),
            rtt_variance_us: sampled.then(|| micros(path.variance)),
            retransmits: path.retransmits,
            send_buffer: Some(options.send_buffer).filter(|size| *size != 0),
            options,
            bytes_sent: facts.counts.sent.load(Ordering::Relaxed),
            bytes_received: facts.counts.received.load(Ordering::Relaxed),
            unacked: facts.gauge.unacked().unwrap_or(0),
            unsent: facts.gauge.unsent().unwrap_or(0),
        })
    }

    /// Bytes that MQTT pings and connections without CONNECT have cost through an interface since the start, as they
    /// count at the IP layer (R-LV-12).
    pub fn liveness_bytes(&self, interface: Name) -> u64 {
        self.0.costs.of(interface).bytes
    }

    /// Connections that were dialled through an interface since the start and ended without CONNECT: spares and proofs
    /// (R-FX-14).
    pub fn spare_handshakes(&self, interface: Name) -> u64 {
        self.0.costs.of(interface).spare_handshakes
    }

    /// Waits until every goodbye is said, at most `FAREWELL_LIMIT`; for the end of the process, after the last
    /// `hang_up`.
    pub async fn finished(&self) {
        let all = async {
            loop {
                let ended = self.0.ended.notified();
                if self.0.running.load(Ordering::Acquire) == 0 {
                    return;
                }
                ended.await;
            }
        };
        // Past the limit the process ends, and the kernel says what it can.
        let _ = timeout(FAREWELL_LIMIT, all).await;
    }

    fn order(&self, attempt: Attempt, order: Order) {
        if let Some(line) = self.0.lines().get(&attempt) {
            // A task that has just ended has reported so.
            let _ = line.orders.send(order);
        }
    }
}

impl Shared {
    /// What is configured for an interface. A modem may be named by its control port or by the interface its packets take.
    fn uplink(&self, interface: Name) -> &UplinkConfig {
        let class = self.uplinks.details(interface).map_or(Class::Ethernet, |details| details.class);
        let by_port = self.config.named.iter().any(|(name, _)| *name == interface);
        self.config.uplink(if by_port { interface } else { self.uplinks.ip_interface(interface) }, class)
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<Attempt, Line>> {
        lock(&self.lines)
    }
}

/// Nothing panics while one of these locks is held; a poisoned one still guards whole values.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the attempt off the list and adds up its costs when its task ends, however it ends.
struct Presence {
    shared: Arc<Shared>,
    attempt: Attempt,
    /// From the end of the dial on.
    facts: Option<Arc<Facts>>,
}

impl Drop for Presence {
    fn drop(&mut self) {
        if let Some(facts) = self.facts.take().filter(|facts| !facts.spoke.load(Ordering::Relaxed)) {
            self.shared.costs.spare(&facts);
        }
        self.shared.lines().remove(&self.attempt);
        self.shared.running.fetch_sub(1, Ordering::AcqRel);
        self.shared.ended.notify_waiters();
    }
}

/// The whole life of an attempt.
async fn run(
    mut presence: Presence,
    voice: Voice,
    interface: Name,
    server: u8,
    mut orders: mpsc::UnboundedReceiver<Order>,
) {
    let (shared, attempt) = (&*presence.shared.clone(), voice.attempt);
    let dialled = match shared.config.cloud.servers.get(usize::from(server)) {
        Some(named) => dial::dial(shared, &voice, interface, named).await,
        None => Err(dial::ended(Reason::NoServer, false)),
    };
    let dial::Dialled { stream, gauge, counts, peer, tls, resumed } = match dialled {
        Ok(dialled) => dialled,
        Err(dial::Ended { reason, heard }) => {
            return voice.report(Event::DialFailed { attempt, reason, heard }).await;
        }
    };
    let facts = Arc::new(Facts { interface, server, gauge, counts, peer, tls, resumed, spoke: AtomicBool::new(false) });
    presence.facts = Some(facts.clone());
    if let Some(line) = shared.lines().get_mut(&attempt) {
        line.facts = Some(facts.clone());
    }
    voice.report(Event::Dialled { attempt, measure: facts.measure() }).await;
    let place = connection::Place { shared, voice: &voice, facts: &facts };
    if let Some(dial::Ended { reason, heard }) = connection::live(place, stream, &mut orders).await {
        voice.report(Event::Closed { attempt, reason, heard }).await;
    }
}
