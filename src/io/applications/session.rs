//! One client's session: its subscriptions, what waits for it, what is on its way to it, and what it sent with QoS 2.
//!
//! It is long because all rules of the window and the queue stand here. Outlives its connection for as long as the client
//! asked, and the daemon too (`keeping`); holds no socket. The queue and the window are bounded in messages and bytes
//! whatever anyone does; what does not fit is counted, never waited for, except that a message from the cloud may
//! stand over the limit for a short time. Who sent a message is told only when this session has taken it or has it on
//! the disk (`Taken`). What is sent with QoS 2 is on the disk first, so that its identifier means the same afterwards.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use switchback_control::Version;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::ledger::{Key, Ledger, Soon};
use super::message::Message;
use super::{DOWNLINK_WAIT, OUTBOUND_MAX, QUEUE_MAX, RESTART_GRACE, TAKEN_WAIT};
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

/// The acknowledgement to who sent a message, shared by the sessions that have not taken it yet. Sent when the last
/// one releases it; never sent when it is only dropped.
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
    /// PUBREC was sent or may be; kept until PUBREL, and on the disk with write `kept` (0: in memory only).
    Accepted { kept: u64 },
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

/// A message for the client, waiting or on its way.
#[derive(Debug)]
pub struct Outgoing {
    /// Its place in the order; zero where it is not kept on disk.
    pub serial: u64,
    /// The packet identifier; zero with QoS 0.
    pub id: u16,
    /// `None` once PUBREC has come and only PUBCOMP is missing.
    pub delivery: Option<Delivery>,
    hold: Option<Hold>,
    /// The writes that make it durable, and its PUBREC; zero where there is none.
    pub kept: u64,
    pubrec_kept: u64,
    /// Read from the disk, which does not know whether it was ever sent.
    doubtful: bool,
}

/// An acknowledgement held back.
#[derive(Debug)]
struct Hold {
    taken: Arc<Taken>,
    since: Instant,
    /// The message stands over the queue's limit.
    over: bool,
}

impl Outgoing {
    pub fn new(serial: u64, id: u16, delivery: Option<Delivery>) -> Outgoing {
        Outgoing { serial, id, delivery, hold: None, kept: 0, pubrec_kept: 0, doubtful: false }
    }

    /// One that was read from disk, where write `kept` put it.
    pub fn read(serial: u64, id: u16, delivery: Option<Delivery>, kept: u64) -> Outgoing {
        Outgoing { kept, doubtful: true, ..Outgoing::new(serial, id, delivery) }
    }

    /// What it costs in memory, roughly.
    pub fn size(&self) -> usize {
        self.delivery.as_ref().map_or(0, |delivery| delivery.message.size())
    }

    /// PUBREC has come; this write makes it durable.
    pub fn note_pubrec(&mut self, kept: u64) {
        self.pubrec_kept = kept;
    }

    /// The write to wait for before it may be sent.
    fn gate(&self) -> u64 {
        match &self.delivery {
            Some(delivery) if delivery.qos < 2 => 0,
            Some(_) => self.kept,
            None => self.pubrec_kept,
        }
    }

    fn release(&mut self) {
        if let Some(hold) = self.hold.take() {
            hold.taken.release();
        }
    }
}

/// See the file's head.
#[derive(Debug)]
pub struct Session {
    pub peer: Peer,
    pub presence: Presence,
    /// Unlike that of any session with the same client identifier before or after it, since the daemon's start.
    pub epoch: u64,
    /// The daemon went, not the client: whoever comes back in time takes the will back.
    pub cut_off: bool,
    /// Only its will is left: it cannot be gone on with.
    pub ended: bool,
    /// The disk may know of it.
    pub on_disk: bool,
    /// How long it outlives its connection; `None` for ever.
    pub expiry: Option<Duration>,
    /// The will and its delay. A message only once it is published: its expiry counts from then.
    pub will: Option<(Publish, Duration)>,
    /// Whose it is.
    pub user: Option<String>,
    pub subscriptions: BTreeMap<String, Subscription>,
    pub received: BTreeMap<u16, Reception>,
    /// Receptions that an earlier connection's offer settled: PUBREC is due on this one, after a write.
    pub settled: Vec<(u16, u64)>,
    queue: VecDeque<Outgoing>,
    /// Nothing in the queue expires earlier.
    expires_first: Option<Instant>,
    /// Of the queue and the window.
    bytes: usize,
    /// Messages over the limit.
    over: usize,
    window: VecDeque<Outgoing>,
    /// Kept messages that are gone, for the ledger: their places, and the writes that made them durable.
    gone: Vec<(u64, u64)>,
    /// How many of the window this connection has sent.
    sent: usize,
    pub last_id: u16,
    /// Messages that found no room since the queue was last empty: said once, not each time.
    pub complained: bool,
}

impl Session {
    pub fn new(peer: Peer, link: Arc<Link>) -> Session {
        Session {
            peer,
            presence: Presence::Here(link),
            epoch: 0,
            cut_off: false,
            ended: false,
            on_disk: false,
            expiry: Some(Duration::ZERO),
            will: None,
            user: None,
            subscriptions: BTreeMap::new(),
            received: BTreeMap::new(),
            settled: Vec::new(),
            queue: VecDeque::new(),
            expires_first: None,
            bytes: 0,
            over: 0,
            window: VecDeque::new(),
            gone: Vec::new(),
            sent: 0,
            last_id: 0,
            complained: false,
        }
    }

    /// A session read from disk; its client says what it can when it comes back.
    pub fn away(now: Instant) -> Session {
        let peer = Peer { version: Version::V311, receive_max: 0, packet_max: 0 };
        let presence = Presence::Away { since: now, expires: None, will_due: None };
        Session { presence, ..Session::new(peer, Arc::default()) }
    }

    /// Whether it outlives its connection, and so the daemon.
    pub fn persistent(&self) -> bool {
        self.expiry != Some(Duration::ZERO)
    }

    /// Whether the disk must know of it: its will outlives the daemon too.
    pub fn kept(&self) -> bool {
        self.persistent() || self.will.is_some()
    }

    /// A message of QoS 2 from the client is ours: the write to wait for before PUBREC.
    pub fn accept(&mut self, id: &Arc<str>, packet: u16, ledger: &mut Ledger, now: Instant) -> u64 {
        if let Some(Reception::Accepted { kept }) = self.received.get(&packet) {
            return *kept;
        }
        let kept = if self.persistent() { ledger.mark(Key::Received(Arc::clone(id)), Soon::Now, now) } else { 0 };
        self.received.insert(packet, Reception::Accepted { kept });
        kept
    }

    /// The connection that serves it.
    pub fn link(&self) -> Option<&Arc<Link>> {
        match &self.presence {
            Presence::Here(link) => Some(link),
            Presence::Away { .. } => None,
        }
    }

    /// Its client has been away for so long, or has been cut off from us. Wills of the latter wait for it to come back, also
    /// where nothing else is left of the session.
    pub fn go_away(&mut self, ago: Duration, now: Instant) {
        let mut expires = self.expiry.map(|expiry| now + expiry.saturating_sub(ago));
        self.ended = expires.is_some_and(|expires| expires <= now);
        let will_due = self.will.as_ref().map(|(_, delay)| match self.cut_off {
            true => now + RESTART_GRACE.max(delay.saturating_sub(ago)),
            false => now + self.expiry.map_or(*delay, |expiry| expiry.min(*delay)).saturating_sub(ago),
        });
        if self.ended {
            expires = expires.max(will_due);
        }
        let since = now.checked_sub(ago).unwrap_or(now);
        self.presence = Presence::Away { since, expires, will_due };
    }

    /// Another connection serves it from now on: what was on its way goes out again.
    pub fn resume(&mut self, peer: Peer, link: Arc<Link>) {
        self.peer = peer;
        self.presence = Presence::Here(link);
        self.sent = 0;
        self.cut_off = false;
        // The client sends these again itself.
        self.settled.clear();
    }

    /// Puts a message in the queue, if there is room. `bytes_max` is what this queue may hold now.
    pub fn enqueue(&mut self, delivery: Delivery, taken: Option<&Arc<Taken>>, bytes_max: usize, now: Instant) -> Room {
        let here = self.link().is_some();
        if delivery.qos == 0 && !here {
            return Room::NotKept;
        }
        let size = delivery.message.size();
        if !self.has_room(size, bytes_max) && self.expires_first.is_some_and(|first| first <= now) {
            self.drop_expired(now);
        }
        let fits = self.has_room(size, bytes_max);
        let may_stand_over = here && delivery.qos > 0 && delivery.message.origin.is_none() && self.over < DOWNLINK_MAX;
        let room = fits || (taken.is_some() && may_stand_over);
        if !room {
            return Room::Full;
        }
        let hold = taken.filter(|_| delivery.qos > 0);
        let hold = hold.map(|taken| Hold { taken: Arc::clone(taken), since: now, over: !fits });
        let id = if delivery.qos == 0 { 0 } else { self.unused_id() };
        self.over += usize::from(!fits);
        self.bytes += size;
        self.expires_first = self.expires_first.into_iter().chain(delivery.message.expires).min();
        self.queue.push_back(Outgoing { hold, ..Outgoing::new(0, id, Some(delivery)) });
        if let Some(link) = self.link() {
            link.wake.notify_one();
        }
        if fits { Room::Queued } else { Room::Held }
    }

    fn has_room(&self, size: usize, bytes_max: usize) -> bool {
        // What was read from disk waits in the window.
        let waiting = self.queue.len() + self.window.len().saturating_sub(OUTBOUND_MAX);
        waiting < QUEUE_MAX && (self.bytes + size <= bytes_max || self.queue.is_empty())
    }

    /// What nobody would be sent any more makes room for what comes.
    fn drop_expired(&mut self, now: Instant) {
        self.expires_first = None;
        for outgoing in std::mem::take(&mut self.queue) {
            let expires = outgoing.delivery.as_ref().and_then(|delivery| delivery.message.expires);
            if outgoing.hold.is_none() && expires.is_some_and(|expires| expires <= now) {
                self.forget(outgoing);
            } else {
                let later = expires.filter(|expires| *expires > now);
                self.expires_first = self.expires_first.into_iter().chain(later).min();
                self.queue.push_back(outgoing);
            }
        }
    }

    /// The message queued last is kept on disk: its place, and the write that does it.
    pub fn keep_last(&mut self, serial: u64, kept: u64) {
        if let Some(last) = self.queue.back_mut() {
            (last.serial, last.kept) = (serial, kept);
        }
    }

    /// When a message has held back its acknowledgement long enough, while the client is here.
    pub fn patience_ends(&self) -> Option<Instant> {
        let over = self.over_since().map(|since| since + DOWNLINK_WAIT);
        // What is kept needs no patience: the disk answers, or says why not.
        let untaken = self.all().find_map(|outgoing| outgoing.hold.as_ref().filter(|_| outgoing.kept == 0));
        over.into_iter().chain(untaken.map(|hold| hold.since + TAKEN_WAIT)).min()
    }

    fn over_since(&self) -> Option<Instant> {
        let mut holds = self.queue.iter().filter_map(|outgoing| outgoing.hold.as_ref()).filter(|_| self.over > 0);
        holds.find(|hold| hold.over).map(|hold| hold.since)
    }

    /// Its patience has ended: releases what has been held too long. True when a message stood over the limit, so
    /// that the client must go.
    pub fn lose_patience(&mut self, now: Instant) -> bool {
        for outgoing in self.window.iter_mut().chain(&mut self.queue) {
            let late = |hold: &Hold| !hold.over && hold.since + TAKEN_WAIT <= now;
            if outgoing.kept == 0 && outgoing.hold.as_ref().is_some_and(late) {
                outgoing.release();
            }
        }
        self.over_since().is_some_and(|since| since + DOWNLINK_WAIT <= now)
    }

    /// Every message, oldest first.
    pub fn all(&self) -> impl Iterator<Item = &Outgoing> {
        self.window.iter().chain(&self.queue)
    }

    /// A message read from disk: it may have been sent before.
    pub fn restore(&mut self, outgoing: Outgoing) {
        if let Some(known) = self.window.iter_mut().find(|known| known.serial == outgoing.serial) {
            self.bytes = self.bytes.saturating_sub(known.size());
            self.bytes += outgoing.size();
            *known = outgoing;
        } else if self.window.len() < QUEUE_MAX + OUTBOUND_MAX + DOWNLINK_MAX {
            self.bytes += outgoing.size();
            self.window.push_back(outgoing);
        }
    }

    /// A message read from disk was done.
    pub fn restore_done(&mut self, serial: u64) {
        if let Some(index) = self.window.iter().position(|known| known.serial == serial) {
            self.bytes = self.bytes.saturating_sub(self.window.remove(index).map_or(0, |known| known.size()));
        }
    }

    /// Nobody waits for this session any more: it ends.
    pub fn release_holds(&mut self) {
        self.window.iter_mut().chain(&mut self.queue).for_each(Outgoing::release);
        self.over = 0;
    }

    /// Its connection is gone, but the session stays: only the disk is waited for now.
    pub fn rely_on_disk(&mut self, ledger: &Ledger) {
        for outgoing in self.window.iter_mut().chain(&mut self.queue) {
            if let Some(hold) = &mut outgoing.hold {
                hold.over = false;
            }
        }
        self.over = 0;
        self.release_kept(ledger);
    }

    /// A write has ended: who waits for what it made durable is told, and whoever may not wait for a failing disk.
    pub fn release_kept(&mut self, ledger: &Ledger) {
        for outgoing in self.window.iter_mut().chain(&mut self.queue) {
            let local = outgoing.delivery.as_ref().is_none_or(|delivery| delivery.message.origin.is_some());
            let safe = !ledger.on || (outgoing.kept > 0 && ledger.is_durable(outgoing.kept));
            let waits = outgoing.hold.as_ref().is_some_and(|hold| !hold.over);
            if waits && (safe || (local && ledger.failing)) {
                outgoing.release();
            }
        }
    }

    /// The next packet to send, encoded; `None` when there is none, the client's window is full, or the disk must
    /// have it first.
    pub fn next(&mut self, now: Instant, ledger: &Ledger) -> Option<Vec<u8>> {
        loop {
            if self.sent >= self.peer.receive_max.min(OUTBOUND_MAX) && !self.only_qos_0_next() {
                return None;
            }
            let next = self.window.get(self.sent).or(self.queue.front())?;
            if !ledger.may_go_on(next.gate()) {
                return None;
            }
            if self.sent < self.window.len() {
                if let Some(packet) = self.again(now) {
                    return Some(packet);
                }
                continue;
            }
            let mut outgoing = self.queue.pop_front()?;
            if let Some(hold) = &mut outgoing.hold {
                self.over = self.over.saturating_sub(usize::from(hold.over));
                hold.over = false;
            }
            if outgoing.kept > 0 && ledger.is_durable(outgoing.kept) {
                outgoing.release();
            }
            self.complained &= !self.queue.is_empty();
            if let Some(packet) = self.first_time(outgoing, now) {
                return Some(packet);
            }
        }
    }

    fn only_qos_0_next(&self) -> bool {
        self.sent >= self.window.len() && self.queue.front().is_some_and(|next| next.id == 0)
    }

    /// Sends the next item of the window on a new connection.
    fn again(&mut self, now: Instant) -> Option<Vec<u8>> {
        let outgoing = self.window.get(self.sent)?;
        let doubtful = outgoing.delivery.as_ref().filter(|_| outgoing.doubtful);
        let expired = doubtful.filter(|delivery| delivery.message.expired(now)).map(|delivery| delivery.qos);
        let id = outgoing.id;
        if expired == Some(2) {
            // The client may have it, and keeps the number until PUBREL.
            self.half_complete(id);
        }
        let outgoing = self.window.get(self.sent)?;
        let packet = match &outgoing.delivery {
            Some(_) if expired.is_some() => None,
            Some(delivery) => encode(&self.peer, delivery, Some(outgoing.id), true, now),
            None => Some(pubrel(outgoing.id)),
        };
        match packet {
            Some(packet) => {
                self.sent += 1;
                Some(packet)
            }
            None => {
                let outgoing = self.window.remove(self.sent);
                outgoing.into_iter().for_each(|outgoing| self.forget(outgoing));
                None
            }
        }
    }

    fn first_time(&mut self, outgoing: Outgoing, now: Instant) -> Option<Vec<u8>> {
        let delivery = outgoing.delivery.as_ref().filter(|delivery| !delivery.message.expired(now));
        let id = Some(outgoing.id).filter(|id| *id != 0);
        let packet = delivery.and_then(|delivery| encode(&self.peer, delivery, id, false, now));
        if packet.is_some() && id.is_some() {
            self.window.push_back(outgoing);
            self.sent += 1;
        } else {
            // Sent once and for all, expired, or larger than the client takes: as if it had been sent (section
            // 3.1.2.11.4).
            self.forget(outgoing);
        }
        packet
    }

    fn forget(&mut self, mut outgoing: Outgoing) {
        outgoing.release();
        self.bytes = self.bytes.saturating_sub(outgoing.size());
        if outgoing.serial > 0 {
            self.gone.push((outgoing.serial, outgoing.kept));
        }
    }

    /// Tells the ledger which kept messages are gone.
    pub fn note_gone(&mut self, id: &Arc<str>, ledger: &mut Ledger, now: Instant) {
        for (serial, kept) in self.gone.drain(..) {
            ledger.gone(Key::Message(Arc::clone(id), serial), kept, now);
        }
    }

    /// Messages are far fewer than the numbers, so this ends soon.
    fn unused_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if self.all().all(|outgoing| outgoing.id != self.last_id) {
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
        let outgoing = self.window.remove(index);
        outgoing.into_iter().for_each(|outgoing| self.forget(outgoing));
    }

    /// PUBREC: the client has the message, PUBREL is next. `None` where the identifier is unknown.
    pub fn half_complete(&mut self, id: u16) -> Option<&mut Outgoing> {
        let outgoing = self.window.iter_mut().find(|outgoing| outgoing.id == id)?;
        outgoing.release();
        self.bytes = self.bytes.saturating_sub(outgoing.size());
        outgoing.delivery = None;
        Some(outgoing)
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
        assert!(session.next(now, &Ledger::default()).is_some() && session.next(now, &Ledger::default()).is_some());
        assert_eq!(session.next(now, &Ledger::default()), None);
        session.complete(1);
        assert!(session.next(now, &Ledger::default()).is_some() && session.next(now, &Ledger::default()).is_some());
        assert_eq!(session.next(now, &Ledger::default()), None);
        assert!(session.half_complete(2).is_some() && session.half_complete(77).is_none());
        session.complete(2);
        session.complete(3);
        assert_eq!((session.bytes, session.backlog(), session.sent), (0, 0, 0));
    }

    #[test]
    fn what_was_on_its_way_goes_out_again_with_its_number() {
        let (mut session, now) = (session(10), Instant::now());
        session.enqueue(delivery(1, 1), None, QUEUE_BYTES_MAX, now);
        session.enqueue(delivery(2, 1), None, QUEUE_BYTES_MAX, now);
        session.next(now, &Ledger::default());
        session.next(now, &Ledger::default());
        session.half_complete(2);
        session.presence = away();
        session.enqueue(delivery(1, 1), None, QUEUE_BYTES_MAX, now);
        assert_eq!(session.enqueue(delivery(0, 1), None, QUEUE_BYTES_MAX, now), Room::NotKept);
        session.resume(Peer { version: Version::V311, ..session.peer }, Arc::default());
        assert_eq!(session.next(now, &Ledger::default()).unwrap(), [0x3a, 6, 0, 1, b't', 0, 1, b'x']);
        assert_eq!(session.next(now, &Ledger::default()).unwrap(), pubrel(2));
        assert_eq!(session.next(now, &Ledger::default()).unwrap(), [0x32, 6, 0, 1, b't', 0, 3, b'x']);
        assert_eq!(session.next(now, &Ledger::default()), None);
    }

    #[test]
    fn too_large_for_the_client_is_left_out() {
        let (mut session, now) = (session(1), Instant::now());
        session.enqueue(delivery(1, 2000), None, QUEUE_BYTES_MAX, now);
        session.enqueue(delivery(1, 1), None, QUEUE_BYTES_MAX, now);
        assert!(session.next(now, &Ledger::default()).unwrap().len() < 20);
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
            session.next(now, &Ledger::default());
            session.complete(id);
        }
        assert!(receiver.try_recv().is_err());
        session.next(now, &Ledger::default());
        assert!(receiver.try_recv().is_err());
        session.complete(QUEUE_MAX as u16 + 1);
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
