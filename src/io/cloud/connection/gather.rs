//! What is written next: control packets, our own messages, the applications' as `queue` has them, up to a chunk.
//!
//! Waits for no disk: what does is put on the `shelf`, and its lane is held. It writes nothing.

use std::sync::atomic::Ordering;

use switchback_control::{Event, Seq};
use tokio::time::Instant;

use super::encode::Unsent;
use super::queue::{Lack, Order};
use super::shelf::{Batch, Shelf};
use super::{Connection, Desk, Place};
use crate::corridor::Body;
use crate::io::cloud::exchange::{Received, Step};
use crate::io::cloud::pace::{Kernel, Pace, Room, Why};
use crate::io::cloud::{Answer, speech};
use crate::io::packet::Publish;

/// Bytes gathered before they are written: one TLS record, and what the kernel takes unsent.
const CHUNK: usize = 16 * 1024;
/// What is written in one go, and what is done before and after.
#[derive(Default)]
pub(super) struct Chunk {
    pub bytes: Vec<u8>,
    /// Nothing is behind these bytes.
    pub last_words: bool,
    /// The messages in it, and whether that was all that is to be done for them.
    pub messages: Vec<(Seq, bool)>,
    /// What is not in it: messages of QoS 2 and what must not overtake them, and what must be durable before they go.
    pub exact: Batch,
    pub steps: Vec<Answer<bool>>,
    /// Once it was looked at, how long the chunk may become.
    room: Option<usize>,
    /// No message may go out before then.
    pub pause: Option<(Instant, Why)>,
}

impl Connection<'_> {
    /// Fills `chunk` with what is to be written next.
    pub(super) async fn gather(&self, chunk: &mut Chunk, shelf: &mut Shelf<'_>, pace: &mut Pace) {
        loop {
            let next = {
                let mut desk = self.desk();
                chunk.bytes.append(&mut desk.control);
                if let Some(goodbye) = desk.goodbye {
                    self.farewell(&mut desk, goodbye, &mut chunk.bytes);
                    chunk.last_words = true;
                    return;
                }
                if chunk.bytes.len() >= CHUNK {
                    return;
                }
                let full = desk.is_full();
                if let Some(own) = if full { None } else { desk.own.pop_front() } {
                    desk.in_flight += u16::from(own.qos > 0);
                    Next::Own(own)
                } else if desk.queue.len() > 0 && self.has_room(chunk, shelf, pace) {
                    match desk.next(full) {
                        Some(order) => Next::Message(order),
                        None if full && !desk.searched && !desk.resumed.is_empty() => Next::Search,
                        None => return pace.starved(),
                    }
                } else {
                    if desk.queue.len() == 0 {
                        pace.starved();
                    }
                    return;
                }
            };
            match next {
                Next::Own(publish) => match speech::publish(self.version, publish) {
                    Ok(bytes) => chunk.bytes.extend(bytes),
                    Err(problem) => log::warn!("our own message cannot be written: {problem}"),
                },
                Next::Search => self.search().await,
                Next::Message(order) => {
                    let before = chunk.len();
                    self.gather_message(order, chunk, shelf).await;
                    let size = chunk.len() - before;
                    if size > 0 && !pace.spend(Instant::now(), size) {
                        return;
                    }
                }
            }
        }
    }

    /// Whether one more of the applications' messages may go into this chunk.
    fn has_room(&self, chunk: &mut Chunk, shelf: &Shelf<'_>, pace: &mut Pace) -> bool {
        let facts = self.place.facts;
        let room = chunk.room.unwrap_or_else(|| {
            let path = facts.gauge.path().unwrap_or_default();
            let kernel = Kernel {
                written: facts.counts.sent.load(Ordering::Relaxed),
                unacked: facts.gauge.unacked().unwrap_or(0).into(),
                round_trip: path.least_round_trip,
                lately: path.round_trip,
                segment: path.segment,
            };
            match pace.room(Instant::now(), kernel, CHUNK) {
                Room::Bytes(room) => (chunk.len() + room).saturating_sub(shelf.bytes()),
                Room::Wait(at, why) => {
                    chunk.pause = Some((at, why));
                    0
                }
            }
        });
        chunk.room = Some(room);
        chunk.len() < room
    }

    async fn gather_message(&self, order: Order, chunk: &mut Chunk, shelf: &mut Shelf<'_>) {
        let Place { shared, voice, .. } = self.place;
        let (seq, attempt) = (order.seq, voice.attempt);
        if order.again && shared.memory.is_completed(seq) {
            self.desk().resumed.remove(&seq);
            return self.tell(Event::Completed { attempt, seq }).await;
        }
        let exchange = shared.memory.exchange(seq);
        let encoded = match exchange {
            Some(_) if self.desk().open.is_none() => Err(Unsent::Early),
            Some((_, Step::Received | Step::Released)) => {
                // The server has it, and is being told that it may go on.
                return shared.bodies.sent(seq);
            }
            Some((_, Step::Published)) | None => match self.body(seq, shelf) {
                Some(Some(body)) => self.encode(&body, order.again, exchange.map(|(id, _)| id)),
                Some(None) => Err(Unsent::Never("it is not in the outbox any more".to_owned())),
                None => {
                    let mut desk = self.desk();
                    desk.queue.put_back(order);
                    return desk.queue.hold(seq.lane(), Lack::Body);
                }
            },
        };
        let early = self.desk().open.is_none();
        match encoded {
            // What has no acknowledgement, or breaks a limit that may be old, waits for CONNACK, and all behind it.
            Ok((_, 0, _)) | Err(Unsent::Early | Unsent::Never(_)) if early => {
                let mut desk = self.desk();
                desk.queue.put_back(order);
                desk.limits = None;
            }
            Ok((bytes, qos, pledge)) => {
                if let (Some((id, _)), None, Some(generation)) = (exchange, pledge, self.generation()) {
                    // The server does not know QoS 2 any more.
                    shared.memory.refused(generation, id);
                    shared.bodies.redeem(id);
                }
                chunk.put(seq, bytes, qos == 0, pledge.is_some());
                chunk.steps.extend(pledge.map(|pledge| shared.bodies.pledge(pledge)));
                let mut desk = self.desk();
                match pledge {
                    Some(pledge) => desk.fly_exact(seq, pledge.id),
                    None if qos > 0 => {
                        desk.resumed.remove(&seq);
                        desk.in_flight = desk.in_flight.saturating_add(1);
                    }
                    None => {}
                }
                if early {
                    desk.early.push(seq);
                }
            }
            Err(Unsent::Expired) => {
                shared.memory.forget(seq);
                let attempt = Some(self.place.voice.attempt);
                self.tell(Event::Expired { attempt, from: seq, through: seq }).await;
            }
            Err(Unsent::NoIdentifier) => {
                self.desk().queue.put_back(order);
                self.desk().queue.hold(seq.lane(), Lack::Identifier);
                self.search().await;
            }
            Err(Unsent::Never(why)) => {
                shared.memory.forget(seq);
                if let Some((id, _)) = exchange {
                    self.abandon(seq, id);
                }
                log::warn!("message {seq} can never be sent: {why}");
                shared.bodies.rejected(seq, why);
                self.tell(Event::Rejected { attempt, seq }).await;
            }
            // CONNACK came meanwhile.
            Err(Unsent::Early) => self.desk().queue.put_back(order),
        }
    }

    /// The body of the message whose turn it is, `Some(None)` where there is none any more; `None` while it is read.
    fn body(&self, seq: Seq, shelf: &mut Shelf<'_>) -> Option<Option<Body>> {
        if let Some(held) = self.place.shared.bodies.held(seq) {
            return Some(Some(held));
        }
        let body = shelf.take(seq);
        let itself = body.is_none().then_some(seq);
        let desk = self.desk();
        shelf.read_on(seq.lane(), itself.into_iter().chain(desk.queue.upcoming(seq.lane())));
        body
    }

    /// Ends exchanges that a connection before this one began, and whose messages are no more: dropped while they waited
    /// to be sent again. Once for each connection, when their identifiers are missing.
    async fn search(&self) {
        let resumed = {
            let mut desk = self.desk();
            if std::mem::replace(&mut desk.searched, true) { Default::default() } else { desk.resumed.clone() }
        };
        for (seq, id) in resumed {
            let bodies = &self.place.shared.bodies;
            // What cannot be read now may yet be.
            if bodies.held(seq).is_none() && matches!(bodies.read(vec![seq]).await.as_slice(), [None]) {
                self.abandon(seq, id);
            }
        }
    }

    /// Ends an exchange whose message is not sent any more: PUBREL does, whether the server knows it or not.
    fn abandon(&self, seq: Seq, id: u16) {
        let Some(generation) = self.generation() else { return };
        if let Received::First(pledge) = self.place.shared.memory.received(generation, id) {
            self.desk().fly_exact(seq, id);
            let _ = self.releases.send(pledge);
        }
    }
}

impl Chunk {
    /// Its bytes and those it has had put off.
    fn len(&self) -> usize {
        self.bytes.len() + self.exact.bytes.len()
    }

    /// Nothing of a lane overtakes what of it waits for the disk.
    fn put(&mut self, seq: Seq, bytes: Vec<u8>, complete: bool, pledge: bool) {
        if pledge || self.exact.lanes.contains(&seq.lane()) {
            self.exact.lanes.insert(seq.lane());
            self.exact.bytes.extend(bytes);
            self.exact.messages.push((seq, complete));
        } else {
            self.bytes.extend(bytes);
            self.messages.push((seq, complete));
        }
    }
}

impl Desk {
    /// The message that goes next. While the window is full only what has its place there.
    fn next(&mut self, full: bool) -> Option<Order> {
        let Desk { queue, resumed, limits, in_flight, .. } = self;
        match limits {
            Some(_) if !full => queue.take(),
            Some(limits) if *in_flight < limits.window => queue.take_out(|seq| resumed.contains_key(&seq)),
            Some(_) | None => None,
        }
    }
}

enum Next {
    Own(Publish),
    Message(Order),
    /// The window is full of what nobody orders.
    Search,
}
