//! What goes out on a connection: CONNECT and acknowledgements first, then our own messages, then the applications', as
//! `queue` has them.
//!
//! One chunk at a time is gathered, written and flushed before the next is looked at, so that a dead uplink strands
//! little and what was not yet written can still be sent elsewhere. Applications' messages go no faster than `pace`
//! allows, and of QoS 2 none is written before its identifier is durable; a disk holds up nothing else but their chunk.

use std::future::pending;
use std::sync::atomic::Ordering;
use std::time::Duration;

use switchback_control::{Event, Goodbye, Reason, Seq};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};

use super::encode::Unsent;
use super::queue::Order;
use super::{Connection, Desk, Place, own_message};
use crate::io::cloud::dial::Ended;
use crate::io::cloud::exchange::{Received, Step};
use crate::io::cloud::pace::{Kernel, Pace, Room, Why};
use crate::io::cloud::{Answer, documents, speech};
use crate::io::packet::Publish;

/// Bytes gathered before they are written: one TLS record, and what the kernel takes unsent.
const CHUNK: usize = 16 * 1024;
/// A message that has waited this long to be written is delayed, which is said, and again no sooner than this (R-TX-12).
const DELAYED: Duration = Duration::from_secs(2);
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// What is written in one go, and what is done before and after.
#[derive(Default)]
struct Chunk {
    bytes: Vec<u8>,
    /// Nothing is behind these bytes.
    last_words: bool,
    /// The messages in it, and whether that was all that is to be done for them.
    messages: Vec<(Seq, bool)>,
    /// What must be durable before.
    steps: Vec<Answer<bool>>,
    /// Once it was looked at, how long the chunk may become.
    room: Option<usize>,
    /// No message may go out before then.
    pause: Option<(Instant, Why)>,
}

impl Connection<'_> {
    pub(super) async fn write(&self, mut half: impl AsyncWrite + Unpin) -> Ended {
        let Place { shared, voice, facts } = self.place;
        let mut pace = Pace::new(shared.uplink(facts.interface).rate);
        let (mut last, mut said) = (Instant::now(), None);
        loop {
            let mut chunk = Chunk::default();
            self.gather(&mut chunk, &mut pace).await;
            self.tell_delay(&chunk, &pace, &mut said);
            if chunk.bytes.is_empty() {
                self.idle(last, chunk.pause, said).await;
                continue;
            }
            let written = async {
                self.keep_first(std::mem::take(&mut chunk.steps), &mut half).await?;
                half.write_all(&chunk.bytes).await?;
                half.flush().await
            };
            if let Err(error) = written.await {
                return self.broken(&error);
            }
            last = Instant::now();
            for (seq, complete) in chunk.messages {
                shared.bodies.sent(seq);
                if complete {
                    self.tell(Event::Completed { attempt: voice.attempt, seq }).await;
                }
            }
            if chunk.last_words {
                // The end of our stream; the server closes when it has read it, which ends the reading.
                let _ = half.shutdown().await;
                pending::<()>().await;
            }
        }
    }

    /// Waits for something to write, and pings when the keep alive is three quarters over (MQTT 5.0 section 3.1.2.10
    /// allows one and a half of it; the rest is for the way).
    async fn idle(&self, last: Instant, pause: Option<(Instant, Why)>, said: Option<Instant>) {
        let (keep_alive, oldest) = {
            let desk = self.desk();
            (desk.open.as_ref().map(|open| open.keep_alive).filter(|keep| !keep.is_zero()), desk.queue.oldest())
        };
        let until = |at: Option<Instant>| async move {
            match at {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        let delayed = oldest.map(|since| (since + DELAYED).max(said.map_or(since, |said| said + SAY_AGAIN)));
        tokio::select! {
            () = self.wake.notified() => {}
            () = until(pause.map(|(at, _)| at)) => {}
            () = until(delayed) => {}
            () = until(keep_alive.map(|keep_alive| last + keep_alive * 3 / 4)) => self.ping(),
        }
    }

    pub(super) fn ping(&self) {
        self.place.shared.costs.ping(self.place.facts.interface);
        self.desk().control.extend(speech::PING);
        self.wake.notify_one();
    }

    /// Says once a minute that messages wait, and for what (R-TX-12).
    fn tell_delay(&self, chunk: &Chunk, pace: &Pace, said: &mut Option<Instant>) {
        let now = Instant::now();
        let (waiting, oldest, full) = {
            let desk = self.desk();
            if desk.open.is_none() {
                return;
            }
            (desk.queue.len(), desk.queue.oldest(), desk.is_full().then_some(desk.in_flight))
        };
        let Some(waited) = oldest.map(|since| now.saturating_duration_since(since)) else { return };
        if waited < DELAYED || said.is_some_and(|said| now.saturating_duration_since(said) < SAY_AGAIN) {
            return;
        }
        let interface = self.place.facts.interface;
        let why = match (full, chunk.pause) {
            (Some(count), _) => format!("the server has not acknowledged {count} before them"),
            (None, Some((_, Why::Limit))) => format!("the limit of uplink {interface} is reached"),
            (None, _) => format!("{interface} carries {} bytes a second", pace.rate()),
        };
        *said = Some(now);
        let kernel = self.place.facts.gauge.unacked().unwrap_or(0);
        log::info!(
            "{waiting} messages wait to be sent, the oldest for {} s, with {kernel} bytes on their way: {why}",
            waited.as_secs()
        );
    }

    /// Waits until these steps of QoS 2 are durable, and lets acknowledgements and pings go meanwhile.
    async fn keep_first(&self, steps: Vec<Answer<bool>>, half: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
        if steps.is_empty() {
            return Ok(());
        }
        let kept = self.keep(steps);
        tokio::pin!(kept);
        loop {
            tokio::select! {
                biased;
                () = &mut kept => return Ok(()),
                () = self.wake.notified() => {}
            }
            let control = std::mem::take(&mut self.desk().control);
            if !control.is_empty() {
                half.write_all(&control).await?;
                half.flush().await?;
            }
        }
    }

    /// Fills `chunk` with what is to be written next.
    async fn gather(&self, chunk: &mut Chunk, pace: &mut Pace) {
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
                } else if desk.queue.len() > 0 && self.has_room(chunk, pace) {
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
                    let before = chunk.bytes.len();
                    self.gather_message(order, chunk).await;
                    let size = chunk.bytes.len() - before;
                    if size > 0 && !pace.spend(Instant::now(), size) {
                        return;
                    }
                }
            }
        }
    }

    /// Whether one more of the applications' messages may go into this chunk.
    fn has_room(&self, chunk: &mut Chunk, pace: &mut Pace) -> bool {
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
                Room::Bytes(room) => chunk.bytes.len() + room,
                Room::Wait(at, why) => {
                    chunk.pause = Some((at, why));
                    0
                }
            }
        });
        chunk.room = Some(room);
        chunk.bytes.len() < room
    }

    async fn gather_message(&self, order: Order, chunk: &mut Chunk) {
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
            Some((_, Step::Published)) | None => match shared.bodies.fetch(seq).await {
                Some(body) => self.encode(&body, order.again, exchange.map(|(id, _)| id)),
                None => Err(Unsent::Never("it is not in the outbox any more".to_owned())),
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
                chunk.bytes.extend(bytes);
                chunk.messages.push((seq, qos == 0));
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
                self.desk().queue.hold(seq.lane());
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

    /// Ends exchanges that a connection before this one began, and whose messages are no more: dropped while they waited
    /// to be sent again. Once for each connection, when their identifiers are missing.
    async fn search(&self) {
        let resumed = {
            let mut desk = self.desk();
            if std::mem::replace(&mut desk.searched, true) { Default::default() } else { desk.resumed.clone() }
        };
        for (seq, id) in resumed {
            if self.place.shared.bodies.fetch(seq).await.is_none() {
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

    fn farewell(&self, desk: &mut Desk, goodbye: Goodbye, chunk: &mut Vec<u8>) {
        let Place { shared, voice, .. } = self.place;
        let base = &shared.config.cloud.base;
        if goodbye == Goodbye::Offline && desk.open.is_some() && !base.is_empty() {
            let payload = documents::status(false, voice.attempt, Some(Reason::User));
            let full = desk.is_full();
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
