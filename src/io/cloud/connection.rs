//! One connection: parked after its dial, then MQTT until it ends.
//!
//! Five loops share one task and one `Desk`: reading, writing, obeying, handing messages to the applications, and
//! acknowledging what they took. Reading never waits for writing or for applications. The server's Receive Maximum is
//! never exceeded, nothing is sent before CONNACK but CONNECT and messages of QoS 1 within what the server last allowed
//! (MQTT 5.0 section 3.1.4, R-CS-4), and PUBACKs go out in the order in which the messages came. The connection's own
//! duty is MQTT's keep alive; whether the peer is alive is not judged here. `read` and `write` hold those two loops.

mod read;
mod write;

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use switchback_control::{Event, Goodbye, Reason, Seq, Version};
use tokio::io::AsyncReadExt;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::dial::{Ended, Transport, ended, verdict};
use super::documents;
use super::memory::{Generation, OWN};
use super::speech::{self, Limits, Will};
use super::{FAREWELL_LIMIT, Facts, Order, Shared, Voice};
use crate::corridor::Downlink;
use crate::io::packet::{Publish, properties_to_bytes};

/// Acknowledgements and pings waiting to be written; a server that makes us owe more does not read what it asks for.
const CONTROL_MAX: usize = 64 * 1024;
/// When writing fails, what was received before is read for this long: the server may have said why.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Largest password file, in bytes: a length on the wire is two bytes.
const PASSWORD_MAX: usize = 65_535;

/// Where a connection stands.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub shared: &'a Shared,
    pub voice: &'a Voice,
    pub facts: &'a Facts,
}

impl Place<'_> {
    async fn measure(&self) {
        let (attempt, measure) = (self.voice.attempt, self.facts.measure());
        self.voice.report(Event::Measured { attempt, measure }).await;
    }
}

/// Lives from the end of the dial to the end of the stream; `None` when hung up.
pub async fn live(
    place: Place<'_>,
    mut stream: Box<dyn Transport>,
    orders: &mut mpsc::UnboundedReceiver<Order>,
) -> Option<Ended> {
    let (version, keep_alive) = match park(place, &mut stream, orders).await {
        Parked::Connect { version, keep_alive } => (version, keep_alive),
        Parked::HungUp => return None,
        Parked::Ended(ended) => return Some(ended),
    };
    let connect = match first_words(place, version, keep_alive) {
        Ok(connect) => connect,
        Err(problem) => {
            log::warn!("{problem}");
            return Some(ended(Reason::Authentication, false));
        }
    };
    place.facts.spoke.store(true, Ordering::Relaxed);
    let (acks, taken) = mpsc::unbounded_channel();
    let connection = Connection {
        place,
        version,
        keep_alive,
        desk: Mutex::new(Desk {
            control: connect,
            limits: place.shared.memory.limits(place.facts.server, version),
            ..Desk::default()
        }),
        wake: Notify::new(),
        arrived: Notify::new(),
        acks,
    };
    let (reading, writing) = tokio::io::split(stream);
    let read = connection.read(reading);
    tokio::pin!(read);
    let ended = tokio::select! {
        biased;
        ended = &mut read => Some(ended),
        // Before writing, so that messages ordered together with CONNECT go out in one piece with it.
        () = connection.obey(orders) => None,
        ended = connection.write(writing) => Some(timeout(LAST_WORDS, read).await.unwrap_or(ended)),
        () = connection.deliver() => None,
        ended = connection.acknowledge(taken) => Some(ended),
    };
    let desk = connection.desk();
    if let Some(Ended { reason: Reason::ServerShutDown | Reason::Reset | Reason::Protocol, heard: true }) = ended
        && desk.open.is_none()
    {
        place.shared.memory.hung_up(place.facts.server, version, !desk.early.is_empty());
    }
    ended
}

enum Parked {
    Connect { version: Version, keep_alive: Duration },
    HungUp,
    Ended(Ended),
}

/// Waits with an open stream and not a word, and notices when it ends. Reading also lets TLS keep the tickets that
/// servers send after the handshake.
async fn park(
    place: Place<'_>,
    stream: &mut Box<dyn Transport>,
    orders: &mut mpsc::UnboundedReceiver<Order>,
) -> Parked {
    let mut byte = [0; 1];
    loop {
        tokio::select! {
            biased;
            order = orders.recv() => match order {
                Some(Order::Connect { version, keep_alive }) => return Parked::Connect { version, keep_alive },
                Some(Order::HangUp(_)) | None => return Parked::HungUp,
                Some(Order::Measure) => place.measure().await,
                Some(Order::Ping | Order::Drain | Order::Transmit { .. }) => {}
            },
            read = stream.read(&mut byte) => return Parked::Ended(match read {
                Ok(0) => ended(Reason::ServerShutDown, true),
                // A server speaks second.
                Ok(_) => ended(Reason::Protocol, true),
                Err(error) => verdict(&error),
            }),
        }
    }
}

/// CONNECT, or what is wrong with our files.
fn first_words(place: Place<'_>, version: Version, keep_alive: Duration) -> Result<Vec<u8>, String> {
    let cloud = &place.shared.config.cloud;
    let password = match &cloud.password_file {
        None => None,
        Some(path) => {
            let mut password = std::fs::read(path)
                .map_err(|error| format!("cloud.password_file: cannot read {}: {error}", path.display()))?;
            // Editors end a file with a line break; nobody's password does.
            while password.last().is_some_and(|byte| *byte == b'\n' || *byte == b'\r') {
                password.pop();
            }
            if password.len() > PASSWORD_MAX {
                return Err(format!("cloud.password_file: {} is too long to be a password", path.display()));
            }
            Some(password)
        }
    };
    let will = (!cloud.base.is_empty()).then(|| Will {
        topic: format!("{}/status", cloud.base),
        payload: documents::status(false, place.voice.attempt, Some(Reason::KeepaliveLimit)),
    });
    speech::connect(version, cloud, password, keep_alive, will)
        .map_err(|error| format!("CONNECT cannot be written with this configuration: {error}"))
}

struct Connection<'a> {
    place: Place<'a>,
    version: Version,
    /// As asked for.
    keep_alive: Duration,
    desk: Mutex<Desk>,
    /// There is something to write.
    wake: Notify,
    /// There is something for applications.
    arrived: Notify,
    /// What the cloud must be told once it resolves, in order. Holds no more than `Desk::owed` counts.
    acks: mpsc::UnboundedSender<(Owed, Option<oneshot::Receiver<()>>)>,
}

/// What the loops share.
#[derive(Default)]
struct Desk {
    /// Written before anything else: acknowledgements, pings, SUBSCRIBE.
    control: Vec<u8>,
    /// Our own messages.
    own: VecDeque<Publish>,
    /// Applications' messages.
    queue: VecDeque<(Seq, bool)>,
    /// Bytes are between here and the kernel.
    busy: bool,
    /// What the server allows: before CONNACK what it last did. While `None`, no message goes out.
    limits: Option<Limits>,
    /// Whether and as what CONNACK let us in.
    open: Option<Open>,
    /// Messages that went out before CONNACK.
    early: Vec<Seq>,
    /// Numbered messages sent and not acknowledged, our own among them.
    in_flight: u16,
    /// Our own packets that wait for their answer, and what they were; the session is settled once none does.
    awaited: BTreeMap<u16, Asked>,
    settled: bool,
    /// A filter was refused.
    refused: bool,
    last_own: u16,
    goodbye: Option<Goodbye>,
    /// From the cloud, for applications.
    inbound: VecDeque<(Option<Owed>, Option<Publish>)>,
    inbound_bytes: usize,
    /// Numbered messages of the cloud that we have not acknowledged.
    owed: usize,
    /// Applications were too slow, and that was said.
    overrun: bool,
    /// Why the server last rejected a message; the same is not said twice in a row.
    rejected: u8,
}

struct Open {
    generation: Generation,
    keep_alive: Duration,
}

enum Asked {
    /// SUBSCRIBE, with its filters.
    Filters(Vec<String>),
    /// PUBLISH to this topic.
    Publish(String),
}

/// A message of the cloud that waits for our word.
#[derive(Clone, Copy)]
struct Owed {
    qos: u8,
    id: u16,
}

impl Desk {
    fn own_id(&mut self) -> u16 {
        self.last_own =
            if OWN.contains(&self.last_own) && self.last_own < *OWN.end() { self.last_own + 1 } else { *OWN.start() };
        self.last_own
    }

    /// No further numbered message may go out now.
    fn is_full(&self) -> bool {
        self.limits.as_ref().is_none_or(|limits| self.in_flight >= limits.window)
    }

    fn is_empty(&self) -> bool {
        !self.busy && self.control.is_empty() && self.own.is_empty() && self.queue.is_empty()
    }
}

impl Connection<'_> {
    /// Ends after a goodbye, once its limit has passed.
    async fn obey(&self, orders: &mut mpsc::UnboundedReceiver<Order>) {
        while let Some(order) = orders.recv().await {
            match order {
                Order::Transmit { seq, again } => {
                    self.desk().queue.push_back((seq, again));
                    self.wake.notify_one();
                }
                Order::Ping => self.ping(),
                Order::Measure => self.place.measure().await,
                Order::Drain => {
                    let empty = self.desk().is_empty() && matches!(self.place.facts.gauge.unacked(), Ok(0));
                    self.tell(Event::Drained { attempt: self.place.voice.attempt, empty }).await;
                }
                Order::HangUp(goodbye) => {
                    self.desk().goodbye = Some(goodbye);
                    self.wake.notify_one();
                    break;
                }
                // Said once already.
                Order::Connect { .. } => {}
            }
        }
        sleep(FAREWELL_LIMIT).await;
        self.place.facts.gauge.forget_unsent();
    }

    /// Hands messages to the applications as they have room. Never ends.
    async fn deliver(&self) {
        loop {
            let next = {
                let mut desk = self.desk();
                let next = desk.inbound.pop_front();
                if let Some((_, Some(publish))) = &next {
                    desk.inbound_bytes = desk.inbound_bytes.saturating_sub(publish.payload.len());
                }
                next
            };
            let Some((owed, publish)) = next else {
                self.arrived.notified().await;
                continue;
            };
            let taken = match publish {
                Some(publish) => {
                    let (taken, told) = oneshot::channel();
                    let downlink = Downlink {
                        topic: publish.topic,
                        payload: publish.payload,
                        qos: publish.qos,
                        retain: publish.retain,
                        properties: properties_to_bytes(&speech::portable(publish.properties, Version::V5)),
                        taken,
                    };
                    if self.place.shared.downlinks.send(downlink).await.is_err() {
                        // No applications any more: the daemon is stopping.
                        pending::<()>().await;
                    }
                    Some(told)
                }
                None => None,
            };
            if let Some(owed) = owed {
                // The receiver lives as long as this connection.
                let _ = self.acks.send((owed, taken));
            }
        }
    }

    /// Tells the cloud what was taken, in the order in which it came.
    async fn acknowledge(&self, mut acks: mpsc::UnboundedReceiver<(Owed, Option<oneshot::Receiver<()>>)>) -> Ended {
        loop {
            let Some((Owed { qos, id }, taken)) = acks.recv().await else { pending().await };
            if let Some(taken) = taken
                && taken.await.is_err()
            {
                // Not taken: it stays owed, and comes again with the next connection.
                continue;
            }
            if qos == 2 {
                self.place.shared.memory.taken(id);
            }
            {
                let mut desk = self.desk();
                desk.owed = desk.owed.saturating_sub(1);
            }
            if let Err(ended) = self.say(&speech::taken(qos, id)) {
                return ended;
            }
        }
    }

    /// Has an acknowledgement written as soon as may be.
    fn say(&self, bytes: &[u8]) -> Result<(), Ended> {
        let mut desk = self.desk();
        if desk.control.len() >= CONTROL_MAX {
            return Err(ended(Reason::Protocol, true));
        }
        desk.control.extend(bytes);
        drop(desk);
        self.wake.notify_one();
        Ok(())
    }

    async fn tell(&self, event: Event) {
        self.place.voice.report(event).await;
    }

    /// What the stream's end is called. A refused certificate comes this late with TLS 1.3, and says what to do.
    fn broken(&self, error: &io::Error) -> Ended {
        let ended = verdict(error);
        if ended.reason == Reason::Authentication {
            let shared = self.place.shared;
            shared.tls.say(shared.tls.explain("the server", error));
        }
        ended
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        super::lock(&self.desk)
    }
}

/// One of our own messages, numbered and awaited, as good as the server allows.
fn own_message(desk: &mut Desk, topic: String, payload: Vec<u8>, retain: bool) -> Option<Publish> {
    let (qos, may_retain) = desk.limits.as_ref().map(|limits| (limits.qos.min(1), limits.retain))?;
    let id = (qos > 0).then(|| desk.own_id());
    if let Some(id) = id {
        desk.awaited.insert(id, Asked::Publish(topic.clone()));
    }
    Some(Publish { topic, payload, qos, retain: retain && may_retain, dup: false, id, properties: Vec::new() })
}
