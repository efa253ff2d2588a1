//! One connection: parked after its dial, then MQTT until it ends.
//!
//! Five loops share one task and one `Desk`: reading, writing, obeying, handing messages to the applications, and
//! acknowledging what they took. Reading never waits for writing or for applications. The server's Receive Maximum is
//! never exceeded, nothing is sent before CONNACK but CONNECT, and PUBACKs go out in the order in which the messages
//! came. The connection's own duty is MQTT's keep alive; whether the peer is alive is not judged here.

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::io;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use switchback_control::{Event, Goodbye, Name, Reason, Seq, Version};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::dial::{Ended, Transport, ended, verdict};
use super::documents;
use super::memory::{Generation, OWN};
use super::speech::{self, Heard, Limits, RECEIVE_MAX, Will};
use super::{FAREWELL_LIMIT, Facts, Order, Shared, Voice};
use crate::corridor::{Body, Downlink};
use crate::io::packet::{self, PACKET_MAX, Publish, properties_from_bytes, properties_to_bytes};
use crate::topics;

/// Bytes gathered before they are written: one TLS record, and what the kernel takes unsent.
const CHUNK: usize = 16 * 1024;
/// Bytes read at once.
const READ: usize = 16 * 1024;
/// Acknowledgements and pings waiting to be written; a server that makes us owe more does not read what it asks for.
const CONTROL_MAX: usize = 64 * 1024;
/// Messages and bytes from the cloud waiting for applications. With MQTT 5 `RECEIVE_MAX` is far below; 3.1.1 has no
/// such limit, and QoS 0 never had one.
const INBOUND_MAX: usize = 256;
const INBOUND_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Filters in one SUBSCRIBE, so that it stays small whatever the server's largest packet.
const FILTERS_MAX: usize = 16;
/// Taken off the server's window for our own messages: status and hello.
const OWN_RESERVE: u16 = 2;
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
    pub interface: Name,
}

/// Lives from the end of the dial to the end of the stream; `None` when hung up.
pub async fn live(
    place: Place<'_>,
    mut stream: Box<dyn Transport>,
    orders: &mut mpsc::UnboundedReceiver<Order>,
) -> Option<Ended> {
    let (version, keep_alive) = match park(&mut stream, orders).await {
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
    let (acks, taken) = mpsc::unbounded_channel();
    let connection = Connection {
        place,
        version,
        keep_alive,
        desk: Mutex::new(Desk { control: connect, ..Desk::default() }),
        wake: Notify::new(),
        arrived: Notify::new(),
        acks,
    };
    let (reading, writing) = tokio::io::split(stream);
    let read = connection.read(reading);
    tokio::pin!(read);
    tokio::select! {
        biased;
        ended = &mut read => Some(ended),
        ended = connection.write(writing) => Some(timeout(LAST_WORDS, read).await.unwrap_or(ended)),
        () = connection.obey(orders) => None,
        () = connection.deliver() => None,
        ended = connection.acknowledge(taken) => Some(ended),
    }
}

enum Parked {
    Connect { version: Version, keep_alive: Duration },
    HungUp,
    Ended(Ended),
}

/// Waits with an open stream and not a word, and notices when it ends. Reading also lets TLS keep the tickets that
/// servers send after the handshake.
async fn park(stream: &mut Box<dyn Transport>, orders: &mut mpsc::UnboundedReceiver<Order>) -> Parked {
    let mut byte = [0; 1];
    loop {
        tokio::select! {
            biased;
            order = orders.recv() => match order {
                Some(Order::Connect { version, keep_alive }) => return Parked::Connect { version, keep_alive },
                Some(Order::HangUp(_)) | None => return Parked::HungUp,
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
    /// Whether and as what CONNACK let us in.
    open: Option<Open>,
    /// What may still be sent before something is acknowledged.
    quota: u16,
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
}

struct Open {
    generation: Generation,
    limits: Limits,
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

    fn is_empty(&self) -> bool {
        !self.busy && self.control.is_empty() && self.own.is_empty() && self.queue.is_empty()
    }
}

// Reading.
impl Connection<'_> {
    async fn read(&self, mut half: impl AsyncRead + Unpin) -> Ended {
        let mut buffer = Vec::with_capacity(READ);
        loop {
            buffer.reserve(READ);
            match half.read_buf(&mut buffer).await {
                Ok(0) => return ended(Reason::ServerShutDown, true),
                Ok(_) => {}
                Err(error) => return self.broken(&error),
            }
            if let Err(ended) = self.understand(&mut buffer).await {
                return ended;
            }
            // After what the bytes said, so that a pong is still the answer to a ping when it is told.
            self.tell(Event::Heard { attempt: self.place.voice.attempt }).await;
            // What one large packet needed is given back.
            if buffer.is_empty() {
                buffer.shrink_to(READ);
            }
        }
    }

    async fn understand(&self, buffer: &mut Vec<u8>) -> Result<(), Ended> {
        if let Some(code) = self.old_refusal(buffer) {
            return Err(self.refused(Version::V311, code));
        }
        loop {
            let packet = match packet::take(buffer, self.version, PACKET_MAX) {
                Ok(Some(packet)) => packet,
                Ok(None) => return Ok(()),
                Err(problem) => {
                    log::debug!("the server sent a packet that is none: {problem:?}");
                    return Err(ended(Reason::Protocol, true));
                }
            };
            let heard = speech::understand(packet).map_err(|_| ended(Reason::Protocol, true))?;
            let open = self.desk().open.is_some();
            match heard {
                Heard::Connected { present, code: 0, limits } if !open => self.welcomed(present, limits).await,
                Heard::Connected { code, .. } if !open => return Err(self.refused(self.version, code)),
                Heard::Disconnected { code } => return Err(ended(speech::disconnected(code), true)),
                _ if !open => return Err(ended(Reason::Protocol, true)),
                Heard::Connected { .. } => return Err(ended(Reason::Protocol, true)),
                Heard::Pong => {
                    self.place.shared.count_ping(self.place.interface);
                    self.tell(Event::Ponged { attempt: self.place.voice.attempt }).await;
                }
                Heard::Acked { id, code } => self.acked(id, code).await,
                Heard::Subscribed { id, codes } => self.subscribed(id, &codes).await,
                Heard::Release { id } => {
                    self.place.shared.memory.released(id);
                    self.say(&speech::complete(id))?;
                }
                Heard::Publish(publish) => self.published(publish)?,
            }
        }
    }

    /// A server that knows 3.1.1 only refuses MQTT 5 in its own, shorter form.
    fn old_refusal(&self, buffer: &[u8]) -> Option<u8> {
        match (self.version, buffer) {
            (Version::V5, [0x20, 2, _, code, ..]) if *code != 0 && self.desk().open.is_none() => Some(*code),
            _ => None,
        }
    }

    fn refused(&self, version: Version, code: u8) -> Ended {
        let advice = speech::advice(version, code).unwrap_or("no advice");
        let reason = speech::refused(version, code);
        if speech::advice(version, code).is_some() {
            log::warn!("the server refuses the connection (code {code:#04x}): {advice}");
        } else {
            log::debug!("the server refuses the connection (code {code:#04x}): {reason}");
        }
        ended(reason, true)
    }

    async fn welcomed(&self, present: bool, limits: Limits) {
        let Place { shared, voice, .. } = self.place;
        let generation = shared.memory.begin(present);
        let keep_alive = limits.keep_alive.unwrap_or(self.keep_alive);
        let window = limits.window.saturating_sub(OWN_RESERVE).max(1);
        {
            let mut desk = self.desk();
            desk.quota = limits.window;
            desk.open = Some(Open { generation, limits, keep_alive });
            // Ours go first: they stand in the queue before the heart knows that it may send.
            self.greet(&mut desk);
        }
        self.tell(Event::Connected { attempt: voice.attempt, present, window, keep_alive }).await;
        self.wake.notify_one();
        self.settle().await;
    }

    /// Subscriptions where the server does not have them, status and hello.
    fn greet(&self, desk: &mut Desk) {
        let Place { shared, voice, .. } = self.place;
        let cloud = &shared.config.cloud;
        if !shared.memory.is_subscribed() {
            let mut filters: Vec<(String, u8)> = Vec::new();
            for rule in &shared.config.subscribe {
                if filters.iter().all(|(filter, _)| *filter != rule.topic) {
                    filters.push((rule.topic.clone(), rule.qos));
                }
            }
            for filters in filters.chunks(FILTERS_MAX) {
                let id = desk.own_id();
                match speech::subscribe(self.version, id, filters) {
                    Ok(bytes) => {
                        desk.control.extend(bytes);
                        let names = filters.iter().map(|(filter, _)| filter.clone()).collect();
                        desk.awaited.insert(id, Asked::Filters(names));
                    }
                    Err(problem) => log::warn!("SUBSCRIBE cannot be written: {problem}"),
                }
            }
        }
        if cloud.base.is_empty() {
            return;
        }
        let greeting = (shared.greet)();
        let status = (format!("{}/status", cloud.base), documents::status(true, voice.attempt, None), true);
        let hello = documents::hello(&greeting, &shared.config.hash, voice.attempt);
        for (topic, payload, retain) in [status, (format!("{}/hello", cloud.base), hello, false)] {
            if let Some(publish) = own_message(desk, topic, payload, retain) {
                desk.own.push_back(publish);
            }
        }
    }

    async fn acked(&self, id: u16, code: u8) {
        let Place { shared, voice, .. } = self.place;
        let failed = code >= 0x80;
        if OWN.contains(&id) {
            let asked = self.desk().awaited.remove(&id);
            if let Some(Asked::Publish(topic)) = asked {
                self.give_back();
                if failed {
                    log::warn!(
                        "the server refused our message to {topic} (code {code:#04x}): allow it, or set cloud.base = \"\""
                    );
                }
            }
            return self.settle().await;
        }
        let generation = self.desk().open.as_ref().map(|open| open.generation);
        let Some(seq) = generation.and_then(|generation| shared.memory.acknowledged(generation, id)) else { return };
        self.give_back();
        let attempt = voice.attempt;
        if failed {
            log::warn!("the server rejected message {} (code {code:#04x})", seq.0);
            self.tell(Event::Rejected { attempt, seq }).await;
        } else {
            self.tell(Event::Acked { attempt, seq }).await;
        }
    }

    /// One more may be sent.
    fn give_back(&self) {
        let mut desk = self.desk();
        let most = desk.open.as_ref().map_or(0, |open| open.limits.window);
        desk.quota = desk.quota.saturating_add(1).min(most);
        drop(desk);
        self.wake.notify_one();
    }

    async fn subscribed(&self, id: u16, codes: &[u8]) {
        let asked = self.desk().awaited.remove(&id);
        if let Some(Asked::Filters(filters)) = asked {
            for (filter, code) in filters.iter().zip(codes).filter(|(_, code)| **code >= 0x80) {
                self.desk().refused = true;
                log::warn!("the server refused the subscription to {filter} (code {code:#04x}); it goes on without");
            }
        }
        let memorable = {
            let desk = self.desk();
            let pending = desk.awaited.values().any(|asked| matches!(asked, Asked::Filters(_)));
            desk.open.as_ref().map(|open| open.generation).filter(|_| !pending && !desk.refused)
        };
        if let Some(generation) = memorable {
            self.place.shared.memory.subscribed(generation);
        }
        self.settle().await;
    }

    async fn settle(&self) {
        let settled = {
            let mut desk = self.desk();
            let settled = desk.awaited.is_empty() && !desk.settled;
            desk.settled |= settled;
            settled
        };
        if settled {
            self.tell(Event::Settled { attempt: self.place.voice.attempt }).await;
        }
    }

    /// A message for applications: kept in order until they have room.
    fn published(&self, publish: Publish) -> Result<(), Ended> {
        let owed = publish.id.filter(|_| publish.qos > 0).map(|id| Owed { qos: publish.qos, id });
        if let Some(Owed { qos: 2, id }) = owed
            && self.place.shared.memory.was_taken(id)
        {
            return self.say(&speech::taken(2, id));
        }
        let mut desk = self.desk();
        if owed.is_some() && self.version == Version::V5 && desk.owed >= usize::from(RECEIVE_MAX) {
            return Err(ended(Reason::Protocol, true));
        }
        if desk.inbound.len() + desk.owed >= INBOUND_MAX || desk.inbound_bytes >= INBOUND_BYTES_MAX {
            // Unacknowledged, a numbered one comes again with the next connection.
            log::warn!("applications are too slow for the cloud: a message to {} is not taken", publish.topic);
            return Ok(());
        }
        desk.owed += usize::from(owed.is_some());
        let local = self.local(publish);
        desk.inbound_bytes += local.as_ref().map_or(0, |publish| publish.payload.len());
        desk.inbound.push_back((owed, local));
        drop(desk);
        self.arrived.notify_one();
        Ok(())
    }

    /// The message under its local topic; `None` where no rule wants it.
    fn local(&self, mut publish: Publish) -> Option<Publish> {
        let rules = &self.place.shared.config.subscribe;
        let rule = rules.iter().find(|rule| topics::matches(unshared(&rule.topic), &publish.topic));
        let topic = rule.map(|rule| topics::mapped(&rule.to, unshared(&rule.topic), &publish.topic));
        match topic.filter(|topic| topics::valid_topic(topic)) {
            Some(topic) => {
                publish.topic = topic;
                Some(publish)
            }
            None => {
                log::debug!("no rule takes a message to {}", publish.topic);
                None
            }
        }
    }
}

/// The filter that messages match, without `$share/{group}/` in front (MQTT 5.0 section 4.8.2).
fn unshared(filter: &str) -> &str {
    filter.strip_prefix("$share/").and_then(|rest| rest.split_once('/')).map_or(filter, |(_, filter)| filter)
}

/// One of our own messages, numbered and awaited, as good as the server allows.
fn own_message(desk: &mut Desk, topic: String, payload: Vec<u8>, retain: bool) -> Option<Publish> {
    let (qos, may_retain) = desk.open.as_ref().map(|open| (open.limits.qos.min(1), open.limits.retain))?;
    let id = (qos > 0).then(|| desk.own_id());
    if let Some(id) = id {
        desk.awaited.insert(id, Asked::Publish(topic.clone()));
    }
    Some(Publish { topic, payload, qos, retain: retain && may_retain, dup: false, id, properties: Vec::new() })
}

// Writing.
impl Connection<'_> {
    async fn write(&self, mut half: impl AsyncWrite + Unpin) -> Ended {
        let mut last = Instant::now();
        loop {
            let mut chunk = Vec::new();
            let mut sent = Vec::new();
            let last_words = self.gather(&mut chunk, &mut sent).await;
            if chunk.is_empty() {
                self.idle(last).await;
                continue;
            }
            let written = async {
                half.write_all(&chunk).await?;
                half.flush().await
            };
            if let Err(error) = written.await {
                return self.broken(&error);
            }
            last = Instant::now();
            self.desk().busy = false;
            for seq in sent {
                self.tell(Event::Acked { attempt: self.place.voice.attempt, seq }).await;
            }
            if last_words {
                // The end of our stream; the server closes when it has read it, which ends the reading.
                let _ = half.shutdown().await;
                pending::<()>().await;
            }
        }
    }

    /// Waits for something to write, and pings when the keep alive is three quarters over (MQTT 5.0 section 3.1.2.10
    /// allows one and a half of it; the rest is for the way).
    async fn idle(&self, last: Instant) {
        let keep_alive = self.desk().open.as_ref().map(|open| open.keep_alive).filter(|keep| !keep.is_zero());
        let due = async {
            match keep_alive {
                Some(keep_alive) => sleep_until(last + keep_alive * 3 / 4).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = self.wake.notified() => {}
            () = due => self.ping(),
        }
    }

    fn ping(&self) {
        self.place.shared.count_ping(self.place.interface);
        self.desk().control.extend(speech::PING);
        self.wake.notify_one();
    }

    /// Fills `chunk` with what is to be written next and `sent` with what is done once it is; true when these are the
    /// last words.
    async fn gather(&self, chunk: &mut Vec<u8>, sent: &mut Vec<Seq>) -> bool {
        loop {
            let next = {
                let mut desk = self.desk();
                if !desk.control.is_empty() {
                    chunk.append(&mut desk.control);
                }
                if let Some(goodbye) = desk.goodbye {
                    desk.busy = true;
                    self.farewell(&mut desk, goodbye, chunk);
                    return true;
                }
                desk.busy = !chunk.is_empty();
                if desk.open.is_none() || desk.quota == 0 || chunk.len() >= CHUNK {
                    return false;
                }
                if let Some(own) = desk.own.pop_front() {
                    desk.quota -= u16::from(own.qos > 0);
                    Next::Own(own)
                } else if let Some((seq, again)) = desk.queue.pop_front() {
                    desk.busy = true;
                    Next::Message(seq, again)
                } else {
                    return false;
                }
            };
            match next {
                Next::Own(publish) => match speech::publish(self.version, publish) {
                    Ok(bytes) => chunk.extend(bytes),
                    Err(problem) => log::warn!("our own message cannot be written: {problem}"),
                },
                Next::Message(seq, again) => self.gather_message(seq, again, chunk, sent).await,
            }
        }
    }

    async fn gather_message(&self, seq: Seq, again: bool, chunk: &mut Vec<u8>, sent: &mut Vec<Seq>) {
        let Place { shared, voice, .. } = self.place;
        let encoded = match (shared.fetch)(seq).await {
            Some(body) => self.encode(&body, again),
            None => Err("it is not in the outbox any more".to_owned()),
        };
        match encoded {
            Ok((bytes, 0)) => {
                chunk.extend(bytes);
                sent.push(seq);
            }
            Ok((bytes, _)) => {
                chunk.extend(bytes);
                let mut desk = self.desk();
                desk.quota = desk.quota.saturating_sub(1);
            }
            Err(problem) => {
                shared.memory.forget(seq);
                log::warn!("message {} can never be sent: {problem}", seq.0);
                self.tell(Event::Rejected { attempt: voice.attempt, seq }).await;
            }
        }
    }

    /// The packet of a message and its quality, within what the server allows; an error where it can never be sent.
    fn encode(&self, body: &Body, again: bool) -> Result<(Vec<u8>, u8), String> {
        if !topics::valid_topic(&body.topic) {
            return Err(format!("\"{}\" is no topic", body.topic));
        }
        let limits = self.desk().open.as_ref().map(|open| open.limits.clone()).unwrap_or_default();
        let qos = body.qos.min(1).min(limits.qos);
        let mut properties = speech::portable(properties_from_bytes(&body.properties), self.version);
        if self.version == Version::V5 {
            properties.push(Property::UserProperty("sb-id".into(), body.id.clone()));
            properties.push(Property::UserProperty("sb-time".into(), documents::time(body.accepted)));
        }
        let (id, known) = match qos {
            0 => (None, false),
            _ => {
                let (id, known) = self.place.shared.memory.number(body.seq);
                (Some(id), known)
            }
        };
        let publish = Publish {
            topic: body.topic.clone(),
            payload: body.payload.clone(),
            qos,
            retain: body.retain && limits.retain,
            // A repetition only towards a server that may have the first under the same number.
            dup: again && known,
            id,
            properties,
        };
        let bytes = speech::publish(self.version, publish)?;
        if bytes.len() > limits.packet {
            return Err(format!("{} bytes are more than the server takes ({})", bytes.len(), limits.packet));
        }
        Ok((bytes, qos))
    }

    fn farewell(&self, desk: &mut Desk, goodbye: Goodbye, chunk: &mut Vec<u8>) {
        let Place { shared, voice, .. } = self.place;
        let base = &shared.config.cloud.base;
        if goodbye == Goodbye::Offline && desk.open.is_some() && !base.is_empty() {
            let payload = documents::status(false, voice.attempt, Some(Reason::User));
            let full = desk.quota == 0;
            let publish = own_message(desk, format!("{base}/status"), payload, true).map(|publish| match full {
                // One more numbered message would break the server's limit, and it the connection.
                true => Publish { qos: 0, id: None, ..publish },
                false => publish,
            });
            match publish.map(|publish| speech::publish(self.version, publish)) {
                Some(Ok(bytes)) => chunk.extend(bytes),
                Some(Err(problem)) => log::warn!("the offline status cannot be written: {problem}"),
                None => {}
            }
        }
        chunk.extend(speech::FAREWELL);
    }
}

enum Next {
    Own(Publish),
    Message(Seq, bool),
}

// Obeying, handing over, acknowledging.
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
            self.desk().owed -= 1;
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
