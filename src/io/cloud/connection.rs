//! One connection: parked after its dial, then MQTT until it ends.
//!
//! Seven loops share one task and one `Desk`: reading, writing, obeying, handing messages to the applications,
//! acknowledging what they took, and the second halves of QoS 2 in both directions. Reading never waits for writing, for
//! applications or for a disk. The server's Receive Maximum is never exceeded, nothing is sent before CONNACK but CONNECT
//! and messages of QoS 1 within what the server last allowed (MQTT 5.0 section 3.1.4, R-CS-4), and PUBACKs go out in the
//! order in which the messages came. The connection's own duty is MQTT's keep alive; whether the peer is alive is not
//! judged here. `read` and `write` hold those two loops; `queue` has what waits, `gather` and `encode` make packets of it,
//! and `shelf` has what is under way between it and the disk. It is long, because the desk stands with the loops that
//! share it.

mod encode;
mod gather;
mod queue;
mod read;
mod shelf;
mod turned_away;
mod write;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::{pending, poll_fn};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard};
use std::task::Poll;
use std::time::Duration;

use switchback_control::{Event, Goodbye, Reason, Seq, Version};
use tokio::io::AsyncReadExt;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::dial::{Ended, Transport, ended, verdict};
use super::documents;
use super::memory::{Generation, OWN};
use super::speech::{self, Limits, Will};
use super::{Answer, FAREWELL_LIMIT, Facts, Order, Shared, Voice};
use crate::corridor::{Downlink, PLEDGED, Pledge};
use crate::io::packet::{Publish, properties_to_bytes};
use queue::{Lack, Queue};
use turned_away::TurnedAway;

/// Acknowledgements and pings waiting to be written; a server that makes us owe more does not read what it asks for.
const CONTROL_MAX: usize = 64 * 1024;
/// PUBRELs that wait for our disk to forget their messages; a server has no more messages of QoS 2 open than that.
const OWED_MAX: usize = 256;
/// When writing fails, what was received before is read for this long: the server may have said why.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How long a step of QoS 2 waits for its disk. Then it is taken all the same: a repetition after a kill or a power cut in
/// that moment is better than a session that stands still behind a dead card.
const PLEDGE_LIMIT: Duration = Duration::from_secs(5);
/// Messages of QoS 2 in flight towards a server of 3.1.1, which cannot say how many it takes: 20 with mosquitto's defaults,
/// 10 with other brokers', and what is more is lost without a word.
const EXACT_MAX: usize = 10;
/// The heart asks again and again while it waits for an answer to `Drain`; after this long without, it asks anew.
const DRAIN_MEMORY: Duration = Duration::from_secs(1);
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
    let (releases, received) = mpsc::unbounded_channel();
    let (completes, released) = mpsc::channel(OWED_MAX);
    let connection = Connection {
        place,
        version,
        keep_alive,
        desk: Mutex::new(Desk {
            control: connect,
            limits: place.shared.memory.limits(place.facts.server, version),
            queue: Queue::new(&place.shared.config.settings.lanes),
            ..Desk::default()
        }),
        wake: Notify::new(),
        arrived: Notify::new(),
        acks,
        releases,
        completes,
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
        ended = connection.release(received) => Some(ended),
        ended = connection.complete(released) => Some(ended),
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
    acks: mpsc::UnboundedSender<(Owed, oneshot::Receiver<()>)>,
    /// What the server has received with QoS 2, to be made durable and released. Holds no more than there are identifiers.
    releases: mpsc::UnboundedSender<Pledge>,
    /// What the server has released, to be forgotten and completed.
    completes: mpsc::Sender<u16>,
}

/// What the loops share.
#[derive(Default)]
struct Desk {
    /// Written before anything else: acknowledgements, pings, SUBSCRIBE.
    control: Vec<u8>,
    /// Our own messages.
    own: VecDeque<Publish>,
    /// Applications' messages.
    queue: Queue,
    /// What the server allows: before CONNACK what it last did. While `None`, no message goes out.
    limits: Option<Limits>,
    /// Whether and as what CONNACK let us in.
    open: Option<Open>,
    /// Messages that went out before CONNACK.
    early: Vec<Seq>,
    /// Numbered messages sent and not acknowledged, our own among them.
    in_flight: u16,
    /// Of these, those of QoS 2.
    exact: BTreeSet<u16>,
    /// Exchanges that a connection before this one began, and that were not ordered yet: the server may count them too.
    resumed: BTreeMap<Seq, u16>,
    /// They were searched for messages that are no more.
    searched: bool,
    /// What was written when `Drain` was first asked, and when it was last asked.
    drain: Option<(u64, Instant)>,
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
    rejected: String,
    turned_away: TurnedAway,
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

    /// No further numbered message may go out now; one that a connection before this one began has its place.
    fn is_full(&self) -> bool {
        self.limits.as_ref().is_none_or(|limits| self.in_flight + self.resumed.len() as u16 >= limits.window)
    }

    /// Whether this message may go as QoS 2 now, which a server of 3.1.1 has no word to bound.
    fn has_exact_room(&self, seq: Seq, version: Version) -> bool {
        let others = if self.resumed.contains_key(&seq) { 0 } else { self.resumed.len() };
        version == Version::V5 || self.exact.len() + others < EXACT_MAX
    }

    /// An exchange is under way on this connection.
    fn fly_exact(&mut self, seq: Seq, id: u16) {
        self.resumed.remove(&seq);
        if self.exact.insert(id) {
            self.in_flight = self.in_flight.saturating_add(1);
        }
    }

    /// A numbered message has had its answer: one more may be sent, and what lacked an identifier may have one.
    fn give_back(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.queue.resume_all(Lack::Identifier);
    }
}

impl Connection<'_> {
    /// Ends after a goodbye, once its limit has passed.
    async fn obey(&self, orders: &mut mpsc::UnboundedReceiver<Order>) {
        while let Some(order) = orders.recv().await {
            match order {
                Order::Transmit { seq, again } => {
                    self.desk().queue.push(seq, again, Instant::now());
                    self.wake.notify_one();
                }
                Order::Ping => self.ping(),
                Order::Measure => self.place.measure().await,
                Order::Drain => {
                    let empty = self.is_drained();
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

    /// Whether every byte that had been written when this was first asked has arrived. Under an unbroken load the kernel's
    /// queue is never empty, so what came later must not count.
    fn is_drained(&self) -> bool {
        let (now, facts) = (Instant::now(), self.place.facts);
        let written = facts.counts.sent.load(Ordering::Relaxed);
        let Ok(unacked) = facts.gauge.unacked() else { return false };
        let mut desk = self.desk();
        let fresh = desk.drain.filter(|(_, asked)| now.saturating_duration_since(*asked) < DRAIN_MEMORY);
        let mark = fresh.map_or(written, |(mark, _)| mark);
        let empty = written.saturating_sub(u64::from(unacked)) >= mark;
        desk.drain = (!empty).then_some((mark, now));
        empty
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
            let (taken, told) = oneshot::channel();
            match publish {
                Some(publish) => {
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
                }
                // Nobody wants it.
                None => drop(taken.send(())),
            }
            if let Some(owed) = owed {
                let told = if owed.qos == 2 { self.place.shared.taken.hand_over(owed.id, told) } else { told };
                // The receiver lives as long as this connection.
                let _ = self.acks.send((owed, told));
            }
        }
    }

    /// Tells the cloud what was taken, in the order in which it came.
    async fn acknowledge(&self, mut acks: mpsc::UnboundedReceiver<(Owed, oneshot::Receiver<()>)>) -> Ended {
        loop {
            let Some((Owed { qos, id }, taken)) = acks.recv().await else { pending().await };
            if taken.await.is_err() {
                // Not taken: it stays owed, and comes again with the next connection.
                continue;
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

    /// Releases what the server has received, once our disk knows: what comes together shares a sync.
    async fn release(&self, mut received: mpsc::UnboundedReceiver<Pledge>) -> Ended {
        let mut together = Vec::new();
        loop {
            if received.recv_many(&mut together, PLEDGED.len()).await == 0 {
                pending::<()>().await;
            }
            let bodies = &self.place.shared.bodies;
            let kept = together.iter().map(|pledge| bodies.pledge(*pledge)).collect();
            self.keep(kept).await;
            for pledge in together.drain(..) {
                self.place.shared.memory.release(pledge);
                if let Err(ended) = self.say(&speech::release(pledge.id)) {
                    return ended;
                }
            }
        }
    }

    /// Completes what the server has released, once our disk has forgotten it.
    async fn complete(&self, mut released: mpsc::Receiver<u16>) -> Ended {
        let mut together = Vec::new();
        loop {
            if released.recv_many(&mut together, OWED_MAX).await == 0 {
                pending::<()>().await;
            }
            self.place.shared.taken.release(&together).await;
            for id in together.drain(..) {
                if let Err(ended) = self.say(&speech::complete(id)) {
                    return ended;
                }
            }
        }
    }

    /// Waits until these steps of QoS 2 are durable. Goes on without where that cannot be, and says so.
    async fn keep(&self, mut steps: Vec<Answer<bool>>) {
        let mut all = true;
        let kept = poll_fn(|context| {
            steps.retain_mut(|step| match step.as_mut().poll(context) {
                Poll::Ready(kept) => {
                    all &= kept;
                    false
                }
                Poll::Pending => true,
            });
            if steps.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        let in_time = timeout(PLEDGE_LIMIT, kept).await.is_ok();
        let unkept = !(all && in_time);
        if unkept && !self.place.shared.said_unkept.swap(unkept, Ordering::Relaxed) {
            log::warn!(
                "the disk cannot keep how far messages of QoS 2 are: they go on, and may be repeated after a power cut"
            );
        } else if !unkept {
            self.place.shared.said_unkept.store(false, Ordering::Relaxed);
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
