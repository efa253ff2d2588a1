//! One client's session: its subscriptions, what waits for it, what is on its way to it, and what it sent with QoS 2.
//!
//! Outlives its connection for as long as the client asked, and holds no socket, so that issue 4 can keep it over a
//! restart of the daemon. The queue and the window are bounded in messages and bytes whatever anyone does; what does
//! not fit is counted, never waited for, except that a message from the cloud may stand over the limit for a short
//! time while its acknowledgement to the cloud is held back (`Taken`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use switchback_control::Version;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::message::Message;
use super::{DOWNLINK_WAIT, OUTBOUND_MAX, QUEUE_MAX};
use crate::corridor::DOWNLINK_MAX;
use crate::io::packet::Publish;

/// A subscription's options (MQTT 5 section 3.8.3.1); 3.1.1 has only the QoS.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subscription {
    pub qos: u8,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub identifier: Option<u32>,
}

/// How a session reaches the connection that serves it.
#[derive(Debug, Default)]
pub struct Link {
    /// Something waits for the connection.
    pub wake: Notify,
    /// The reason code to close with; 0 while it may stay.
    farewell: AtomicU8,
}

impl Link {
    /// Asks the connection to close; the first reason stands.
    pub fn close(&self, reason: u8) {
        let _ = self.farewell.compare_exchange(0, reason, Ordering::Relaxed, Ordering::Relaxed);
        self.wake.notify_one();
    }

    pub fn farewell(&self) -> Option<u8> {
        Some(self.farewell.load(Ordering::Relaxed)).filter(|reason| *reason != 0)
    }
}

/// The cloud's acknowledgement, shared by the sessions whose queue has no room yet. Sent when the last one releases
/// it; never sent when it is only dropped.
#[derive(Debug)]
pub struct Taken(Mutex<Option<oneshot::Sender<()>>>);

impl Taken {
    pub fn new(sender: oneshot::Sender<()>) -> Arc<Taken> {
        Arc::new(Taken(Mutex::new(Some(sender))))
    }

    /// This holder has it.
    pub fn release(self: Arc<Taken>) {
        if let Some(Taken(sender)) = Arc::into_inner(self)
            && let Some(sender) = sender.into_inner().unwrap_or_else(PoisonError::into_inner)
        {
            // The cloud session may have ended meanwhile; then the cloud sends the message again.
            let _ = sender.send(());
        }
    }
}

/// What the client said of itself in CONNECT.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub version: Version,
    pub receive_max: usize,
    pub packet_max: usize,
}

/// Whether a connection serves the session.
#[derive(Debug)]
pub enum Presence {
    Here(Arc<Link>),
    Away {
        since: Instant,
        /// When the session ends; `None` for never.
        expires: Option<Instant>,
        /// When the will is due, if one is left.
        will_due: Option<Instant>,
    },
}

/// A message with QoS 2 from the client, by its packet identifier (section 4.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reception {
    /// Offered; PUBREC follows when it is accepted.
    Waiting,
    /// PUBREC was sent or may be; kept until PUBREL.
    Accepted,
    /// Local subscribers have it, the outbox refused it; a client that cannot be told sends it again.
    Refused,
}

/// Whether a message found room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Queued,
    /// Over the limit, held for `DOWNLINK_WAIT` at most.
    Held,
    /// Nobody is there for it, and QoS 0 is not kept.
    NotKept,
    /// The queue is full: dropped.
    Full,
}

/// How a session takes a routed message.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub message: Arc<Message>,
    pub qos: u8,
    pub retain: bool,
    pub identifiers: Vec<u32>,
}

#[derive(Debug)]
struct Queued {
    delivery: Delivery,
    hold: Option<(Arc<Taken>, Instant)>,
}

#[derive(Debug)]
struct Outgoing {
    id: u16,
    /// `None` once PUBREC has come and only PUBCOMP is missing.
    delivery: Option<Delivery>,
}

/// See the file's head.
#[derive(Debug)]
pub struct Session {
    pub peer: Peer,
    pub presence: Presence,
    /// How long it outlives its connection; `None` for ever.
    pub expiry: Option<Duration>,
    /// The will and its delay. A message only once it is published: its expiry counts from then.
    pub will: Option<(Publish, Duration)>,
    pub subscriptions: BTreeMap<String, Subscription>,
    pub received: BTreeMap<u16, Reception>,
    /// Receptions that an earlier connection's offer settled: PUBREC is due on this one.
    pub settled: Vec<u16>,
    queue: VecDeque<Queued>,
    /// Of the queue and the window.
    bytes: usize,
    held: usize,
    window: VecDeque<Outgoing>,
    /// How many of the window this connection has sent.
    sent: usize,
    last_id: u16,
    /// Messages that found no room since the queue was last empty: said once, not each time.
    pub complained: bool,
}

impl Session {
    pub fn new(peer: Peer, link: Arc<Link>) -> Session {
        Session {
            peer,
            presence: Presence::Here(link),
            expiry: Some(Duration::ZERO),
            will: None,
            subscriptions: BTreeMap::new(),
            received: BTreeMap::new(),
            settled: Vec::new(),
            queue: VecDeque::new(),
            bytes: 0,
            held: 0,
            window: VecDeque::new(),
            sent: 0,
            last_id: 0,
            complained: false,
        }
    }

    /// The connection that serves it.
    pub fn link(&self) -> Option<&Arc<Link>> {
        match &self.presence {
            Presence::Here(link) => Some(link),
            Presence::Away { .. } => None,
        }
    }

    /// Another connection serves it from now on: what was on its way goes out again.
    pub fn resume(&mut self, peer: Peer, link: Arc<Link>) {
        self.peer = peer;
        self.presence = Presence::Here(link);
        self.sent = 0;
        // The client sends these again itself.
        self.settled.clear();
        self.release_holds();
    }

    /// Puts a message in the queue, if there is room. `bytes_max` is what this queue may hold now.
    pub fn enqueue(&mut self, delivery: Delivery, taken: Option<&Arc<Taken>>, bytes_max: usize, now: Instant) -> Room {
        let here = self.link().is_some();
        if delivery.qos == 0 && !here {
            return Room::NotKept;
        }
        let size = delivery.message.size();
        let fits = self.queue.len() < QUEUE_MAX && (self.bytes + size <= bytes_max || self.queue.is_empty());
        let hold = match taken {
            _ if fits => None,
            Some(taken) if here && delivery.qos > 0 && self.held < DOWNLINK_MAX => Some((Arc::clone(taken), now)),
            _ => return Room::Full,
        };
        let room = if hold.is_some() { Room::Held } else { Room::Queued };
        self.held += usize::from(hold.is_some());
        self.bytes += size;
        self.queue.push_back(Queued { delivery, hold });
        if let Some(link) = self.link() {
            link.wake.notify_one();
        }
        room
    }

    /// When the oldest message over the limit has waited long enough.
    pub fn patience_ends(&self) -> Option<Instant> {
        if self.held == 0 {
            return None;
        }
        self.queue.iter().find_map(|queued| queued.hold.as_ref().map(|(_, since)| *since + DOWNLINK_WAIT))
    }

    /// Nobody waits for this session any more: it went away, or it ends.
    pub fn release_holds(&mut self) {
        for queued in &mut self.queue {
            if let Some((taken, _)) = queued.hold.take() {
                taken.release();
            }
        }
        self.held = 0;
    }

    /// The next packet to send, encoded; `None` when there is none or the client's window is full.
    pub fn next(&mut self, now: Instant) -> Option<Vec<u8>> {
        loop {
            if self.sent >= self.peer.receive_max.min(OUTBOUND_MAX) && !self.only_qos_0_next() {
                return None;
            }
            if self.sent < self.window.len() {
                if let Some(packet) = self.again(now) {
                    return Some(packet);
                }
                continue;
            }
            let Queued { delivery, hold } = self.queue.pop_front()?;
            if let Some((taken, _)) = hold {
                self.held = self.held.saturating_sub(1);
                taken.release();
            }
            self.complained &= !self.queue.is_empty();
            if let Some(packet) = self.first_time(delivery, now) {
                return Some(packet);
            }
        }
    }

    fn only_qos_0_next(&self) -> bool {
        self.sent >= self.window.len() && self.queue.front().is_some_and(|queued| queued.delivery.qos == 0)
    }

    /// Sends the next item of the window on a new connection.
    fn again(&mut self, now: Instant) -> Option<Vec<u8>> {
        let outgoing = self.window.get(self.sent)?;
        let packet = match &outgoing.delivery {
            Some(delivery) => encode(&self.peer, delivery, Some(outgoing.id), true, now),
            None => Some(pubrel(outgoing.id)),
        };
        match packet {
            Some(packet) => {
                self.sent += 1;
                Some(packet)
            }
            None => {
                self.window.remove(self.sent).and_then(|outgoing| outgoing.delivery).inspect(|d| self.forget(d));
                None
            }
        }
    }

    fn first_time(&mut self, delivery: Delivery, now: Instant) -> Option<Vec<u8>> {
        if delivery.message.expired(now) {
            self.forget(&delivery);
            return None;
        }
        let id = if delivery.qos == 0 { None } else { Some(self.unused_id()) };
        let packet = encode(&self.peer, &delivery, id, false, now);
        match (id, &packet) {
            (Some(id), Some(_)) => {
                self.window.push_back(Outgoing { id, delivery: Some(delivery) });
                self.sent += 1;
            }
            // Sent once and for all, or larger than the client takes: as if it had been sent (section 3.1.2.11.4).
            (None, _) | (_, None) => self.forget(&delivery),
        }
        packet
    }

    fn forget(&mut self, delivery: &Delivery) {
        self.bytes = self.bytes.saturating_sub(delivery.message.size());
    }

    /// The window is far smaller than the numbers, so this ends soon.
    fn unused_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if self.window.iter().all(|outgoing| outgoing.id != self.last_id) {
                return self.last_id;
            }
        }
    }

    /// PUBACK, PUBCOMP, or a PUBREC that refuses: the client is done with this message.
    pub fn complete(&mut self, id: u16) {
        let Some(index) = self.window.iter().position(|outgoing| outgoing.id == id) else { return };
        if index < self.sent {
            self.sent -= 1;
        }
        if let Some(delivery) = self.window.remove(index).and_then(|outgoing| outgoing.delivery) {
            self.forget(&delivery);
        }
    }

    /// PUBREC: the client has the message, PUBREL is next. False where the identifier is unknown.
    pub fn half_complete(&mut self, id: u16) -> bool {
        let Some(outgoing) = self.window.iter_mut().find(|outgoing| outgoing.id == id) else { return false };
        if let Some(delivery) = outgoing.delivery.take() {
            self.forget(&delivery);
        }
        true
    }

    /// Bytes waiting or on their way.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Messages waiting or on their way.
    pub fn backlog(&self) -> usize {
        self.queue.len() + self.window.len()
    }
}

fn encode(peer: &Peer, delivery: &Delivery, id: Option<u16>, dup: bool, now: Instant) -> Option<Vec<u8>> {
    let message = &delivery.message;
    let mut properties = Vec::new();
    if peer.version == Version::V5 {
        properties = message.properties_at(now);
        properties.extend(delivery.identifiers.iter().map(|id| Property::SubscriptionIdentifier(*id)));
    }
    let publish = Publish {
        topic: message.topic.clone(),
        payload: message.payload.clone(),
        qos: delivery.qos,
        retain: delivery.retain,
        dup,
        id,
        properties,
    };
    publish.into_packet(peer.version).to_bytes().ok().filter(|packet| packet.len() <= peer.packet_max)
}

/// PUBREL, the same in both versions (section 3.6).
pub fn pubrel(id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    vec![0x62, 2, high, low]
}

#[cfg(test)]
mod tests {
    use super::super::QUEUE_BYTES_MAX;
    use super::*;

    fn session(receive_max: usize) -> Session {
        let peer = Peer { version: Version::V5, receive_max, packet_max: 1000 };
        Session::new(peer, Arc::default())
    }

    fn delivery(qos: u8, payload: usize) -> Delivery {
        let message = Message {
            topic: "t".into(),
            payload: vec![b'x'; payload],
            qos,
            retain: false,
            properties: Vec::new(),
            expires: None,
            origin: None,
        };
        Delivery { message: Arc::new(message), qos, retain: false, identifiers: Vec::new() }
    }

    fn away() -> Presence {
        Presence::Away { since: Instant::now(), expires: None, will_due: None }
    }

    #[test]
    fn the_clients_window_holds_back_what_comes_after() {
        let (mut session, now) = (session(2), Instant::now());
        for qos in [1, 2, 1, 0] {
            assert_eq!(session.enqueue(delivery(qos, 1), None, QUEUE_BYTES_MAX, now), Room::Queued);
        }
        assert!(session.next(now).is_some() && session.next(now).is_some());
        assert_eq!(session.next(now), None);
        session.complete(1);
        assert!(session.next(now).is_some() && session.next(now).is_some());
        assert_eq!(session.next(now), None);
        assert!(session.half_complete(2) && !session.half_complete(77));
        session.complete(2);
        session.complete(3);
        assert_eq!((session.bytes, session.backlog(), session.sent), (0, 0, 0));
    }

    #[test]
    fn what_was_on_its_way_goes_out_again_with_its_number() {
        let (mut session, now) = (session(10), Instant::now());
        session.enqueue(delivery(1, 1), None, QUEUE_BYTES_MAX, now);
        session.enqueue(delivery(2, 1), None, QUEUE_BYTES_MAX, now);
        session.next(now);
        session.next(now);
        session.half_complete(2);
        session.presence = away();
        session.enqueue(delivery(1, 1), None, QUEUE_BYTES_MAX, now);
        assert_eq!(session.enqueue(delivery(0, 1), None, QUEUE_BYTES_MAX, now), Room::NotKept);
        session.resume(Peer { version: Version::V311, ..session.peer }, Arc::default());
        assert_eq!(session.next(now).unwrap(), [0x3a, 6, 0, 1, b't', 0, 1, b'x']);
        assert_eq!(session.next(now).unwrap(), pubrel(2));
        assert_eq!(session.next(now).unwrap(), [0x32, 6, 0, 1, b't', 0, 3, b'x']);
        assert_eq!(session.next(now), None);
    }

    #[test]
    fn too_large_for_the_client_is_left_out() {
        let (mut session, now) = (session(1), Instant::now());
        session.enqueue(delivery(1, 2000), None, QUEUE_BYTES_MAX, now);
        session.enqueue(delivery(1, 1), None, QUEUE_BYTES_MAX, now);
        assert!(session.next(now).unwrap().len() < 20);
        assert_eq!(session.window.len(), 1);
    }

    #[test]
    fn a_full_queue_drops_local_messages_and_holds_back_the_cloud() {
        let (mut session, now) = (session(1), Instant::now());
        for _ in 0..QUEUE_MAX {
            assert_eq!(session.enqueue(delivery(1, 1), None, QUEUE_BYTES_MAX, now), Room::Queued);
        }
        assert_eq!(session.enqueue(delivery(1, 1), None, QUEUE_BYTES_MAX, now), Room::Full);
        let (sender, mut receiver) = oneshot::channel();
        let taken = Taken::new(sender);
        assert_eq!(session.enqueue(delivery(1, 1), Some(&taken), QUEUE_BYTES_MAX, now), Room::Held);
        assert_eq!(session.enqueue(delivery(0, 1), Some(&taken), QUEUE_BYTES_MAX, now), Room::Full);
        taken.release();
        assert_eq!(session.patience_ends(), Some(now + DOWNLINK_WAIT));
        assert!(receiver.try_recv().is_err());
        for id in 1..=QUEUE_MAX as u16 {
            session.next(now);
            session.complete(id);
        }
        assert!(receiver.try_recv().is_err());
        session.next(now);
        assert!(receiver.try_recv().is_ok() && session.patience_ends().is_none());
    }

    #[test]
    fn a_session_that_goes_away_holds_nobody() {
        let (mut session, now) = (session(1), Instant::now());
        session.enqueue(delivery(1, QUEUE_BYTES_MAX), None, QUEUE_BYTES_MAX, now);
        let (sender, mut receiver) = oneshot::channel();
        let taken = Taken::new(sender);
        assert_eq!(session.enqueue(delivery(1, 1), Some(&taken), QUEUE_BYTES_MAX, now), Room::Held);
        taken.release();
        session.release_holds();
        assert!(receiver.try_recv().is_ok());
        session.presence = away();
        let (sender, _receiver) = oneshot::channel();
        assert_eq!(session.enqueue(delivery(1, 1), Some(&Taken::new(sender)), QUEUE_BYTES_MAX, now), Room::Full);
    }
}
