//! What comes in on a connection: welcome, acknowledgements, messages, farewell.
//!
//! Waits for the loop to take events, and for nothing else: whatever must be said in return is left on the desk.

use switchback_control::{Event, Reason, Seq, Version};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::Instant;

use super::{Asked, Connection, Desk, Open, Owed, Place, own_message};
use crate::corridor::Pledge;
use crate::io::cloud::dial::{Ended, ended};
use crate::io::cloud::documents;
use crate::io::cloud::exchange::{Received, Step};
use crate::io::cloud::memory::{Generation, OWN};
use crate::io::cloud::speech::{self, Heard, Limits, Rejection};
use crate::io::packet::{self, PACKET_MAX, Publish};
use crate::topics;

/// Bytes read at once.
const READ: usize = 16 * 1024;
/// Messages and bytes from the cloud waiting for applications. `speech::RECEIVE_MAX` is far below, but 3.1.1 has no such
/// limit, QoS 0 never had one, and mosquitto 2.0 with `max_inflight_messages 0` does not keep it.
const INBOUND_MAX: usize = 256;
const INBOUND_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Filters in one SUBSCRIBE, so that it stays small whatever the server's largest packet.
const FILTERS_MAX: usize = 16;
/// Taken off the server's window for our own messages: status and hello.
const OWN_RESERVE: u16 = 2;

impl Connection<'_> {
    pub(super) async fn read(&self, mut half: impl AsyncRead + Unpin) -> Ended {
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
                    self.place.shared.costs.ping(self.place.facts.interface);
                    self.tell(Event::Ponged { attempt: self.place.voice.attempt }).await;
                }
                Heard::Acked { id, refused } => self.acked(id, refused).await,
                Heard::Received { id, refused } => self.received(id, refused).await?,
                Heard::Completed { id } => self.completed(id).await,
                Heard::Subscribed { id, codes } => self.subscribed(id, &codes).await,
                Heard::Release { id } => {
                    self.completes.try_send(id).map_err(|_| ended(Reason::Protocol, true))?;
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
        let Place { shared, voice, facts } = self.place;
        let keep_alive = limits.keep_alive.unwrap_or(self.keep_alive);
        let window = limits.window.saturating_sub(OWN_RESERVE).max(1);
        if limits.qos == 0 {
            log::warn!("the server takes QoS 0 only: messages count as delivered once they are on their way");
        }
        if !limits.retain {
            log::warn!("the server retains nothing: messages go without that mark");
        }
        if !present {
            shared.bodies.redeem_all();
            shared.taken.forget();
        }
        {
            let mut desk = self.desk();
            let generation = shared.memory.begin(present, &desk.early);
            shared.memory.allowed(facts.server, self.version, limits.clone(), !desk.early.is_empty());
            desk.limits = Some(limits);
            desk.open = Some(Open { generation, keep_alive });
            self.resume(&mut desk);
            // Ours go first: they stand in the queue before the heart knows that it may send.
            self.greet(&mut desk);
        }
        self.tell(Event::Connected { attempt: voice.attempt, present, window, keep_alive }).await;
        self.wake.notify_one();
        self.settle().await;
    }

    /// Exchanges of QoS 2 that the server's session may know: what it has received is released now, in the order of the
    /// messages, since many servers hand a message on when it is released; the rest is sent again when it is ordered. Each
    /// keeps its place in the window.
    fn resume(&self, desk: &mut Desk) {
        let exchanges = self.place.shared.memory.exchanges();
        // The disk may not know of some, as the connection ended then; those behind them wait with them.
        let unkept = exchanges.iter().any(|(.., step)| *step == Step::Received);
        for (id, seq, step) in exchanges {
            match step {
                Step::Published => {
                    desk.resumed.insert(seq, id);
                    continue;
                }
                Step::Received | Step::Released if unkept => {
                    // The receiver lives as long as this connection.
                    let _ = self.releases.send(Pledge { seq, id, received: true });
                }
                Step::Received | Step::Released => desk.control.extend(speech::release(id)),
            }
            desk.fly_exact(seq, id);
        }
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

    async fn acked(&self, id: u16, refused: Option<Rejection>) {
        let Place { shared, voice, .. } = self.place;
        if OWN.contains(&id) {
            let asked = self.desk().awaited.remove(&id);
            if let Some(Asked::Publish(topic)) = asked {
                self.give_back();
                if let Some(Rejection { why, .. }) = refused {
                    log::warn!("the server refused our message to {topic}: {why}; allow it, or set cloud.base = \"\"");
                }
            }
            return self.settle().await;
        }
        if voice.is_silent() {
            // Nobody is told, so it will be sent again, and should then carry its number and the mark.
            return;
        }
        let generation = self.generation();
        let Some(seq) = generation.and_then(|generation| shared.memory.acknowledged(generation, id)) else { return };
        self.give_back();
        match refused {
            Some(rejection) => self.rejected(seq, rejection).await,
            None => {
                self.desk().turned_away.forget(seq);
                self.tell(Event::Acked { attempt: voice.attempt, seq }).await;
            }
        }
    }

    /// PUBREC. An unknown one is answered as well, so that the server can come to an end with it.
    async fn received(&self, id: u16, refused: Option<Rejection>) -> Result<(), Ended> {
        let Place { shared, voice, .. } = self.place;
        let Some(generation) = self.generation().filter(|_| !voice.is_silent()) else { return Ok(()) };
        if let Some(rejection) = refused {
            if let Some(seq) = shared.memory.refused(generation, id) {
                shared.bodies.redeem(id);
                self.land(id);
                self.rejected(seq, rejection).await;
            }
            return Ok(());
        }
        match shared.memory.received(generation, id) {
            Received::First(pledge) => drop(self.releases.send(pledge)),
            Received::Pending => {}
            Received::Again => self.say(&speech::release(id))?,
            Received::Unknown => self.say(&speech::release_unknown(self.version, id))?,
        }
        Ok(())
    }

    /// PUBCOMP.
    async fn completed(&self, id: u16) {
        let Place { shared, voice, .. } = self.place;
        // As with PUBACK: told to nobody, it would be sent again as new.
        let Some(generation) = self.generation().filter(|_| !voice.is_silent()) else { return };
        let completed = shared.memory.completed(generation, id);
        if !shared.memory.is_open(id) {
            // Perhaps by what came on the connection before.
            self.land(id);
        }
        if let Some(seq) = completed {
            shared.bodies.redeem(id);
            self.desk().turned_away.forget(seq);
            self.tell(Event::Completed { attempt: voice.attempt, seq }).await;
        }
    }

    /// An exchange is over on this connection.
    fn land(&self, id: u16) {
        if self.desk().exact.remove(&id) {
            self.give_back();
        }
    }

    /// The server does not take this message: now, or at all.
    async fn rejected(&self, seq: Seq, Rejection { why, worth }: Rejection) {
        let Place { shared, voice, .. } = self.place;
        {
            let mut desk = self.desk();
            let again = desk.turned_away.take(seq, worth, Instant::now());
            let said = if again { format!("{why}; it is tried again") } else { why.clone() };
            if desk.rejected != said {
                log::warn!("the server rejects message {seq}: {said}");
                desk.rejected = said;
            }
            if again {
                return self.wake.notify_one();
            }
        }
        shared.bodies.rejected(seq, why);
        self.tell(Event::Rejected { attempt: voice.attempt, seq }).await;
    }

    pub(super) fn generation(&self) -> Option<Generation> {
        self.desk().open.as_ref().map(|open| open.generation)
    }

    /// One more may be sent.
    pub(super) fn give_back(&self) {
        self.desk().give_back();
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
        if let Some(owed @ Owed { qos: 2, id }) = owed {
            let taken = &self.place.shared.taken;
            if taken.has(id, publish.dup) {
                return self.say(&speech::taken(2, id));
            }
            if let Some(told) = taken.join(id) {
                self.desk().owed += 1;
                // As in `deliver`.
                let _ = self.acks.send((owed, told));
                return Ok(());
            }
        }
        let mut desk = self.desk();
        if desk.inbound.len() + desk.owed >= INBOUND_MAX || desk.inbound_bytes >= INBOUND_BYTES_MAX {
            // Unacknowledged, a numbered one comes again with the next connection. Said once: more would follow.
            if !std::mem::replace(&mut desk.overrun, true) {
                log::warn!("applications are too slow for the cloud: a message to {} is not taken", publish.topic);
            }
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
