//! Everything the connections share: sessions, retained messages, wills, and who gets what.
//!
//! It is long because every change to what is shared stands here, beside the ledger that notes it. Plain data behind one lock, never held over an await: the single thread makes it free of contention. Every
//! collection is bounded by a name in `applications.rs`. A client identifier has at most one connection; a
//! connection that lost its session can change nothing. Knows nothing of sockets or of the cloud.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::greeting::Greeting;
use super::ledger::{Key, Ledger, Soon};
use super::message::Message;
use super::session::{Delivery, Link, Peer, Presence, Reception, Room, Session, Subscription, Taken};
use super::{
    ApplicationFigures, CLIENTS_MAX, FILTER_MAX, LEVELS_MAX, QUEUE_BYTES_MAX, QUEUE_BYTES_SHARE, QUEUES_BYTES_MAX,
    RETAINED_BYTES_MAX, RETAINED_MAX, SESSIONS_MAX, SUBSCRIPTIONS_MAX, checks,
};
use crate::io::packet::Publish;
use crate::topics;

/// The lock and the bell.
#[derive(Debug, Default)]
pub struct Shared {
    state: Mutex<State>,
    /// Rung when `next_deadline` may have come closer.
    pub changed: Notify,
    /// Rung when the ledger's next write has come closer.
    pub due: Notify,
}

impl Shared {
    pub fn with<R>(&self, what: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.ledger.due();
        let result = what(&mut state);
        if state.ledger.due().is_some_and(|due| before.is_none_or(|before| due < before)) {
            self.due.notify_one();
        }
        result
    }
}

/// See the file's head.
#[derive(Debug, Default)]
pub struct State {
    pub(super) sessions: HashMap<Arc<str>, Session>,
    pub(super) retained: BTreeMap<String, Arc<Message>>,
    pub(super) retained_bytes: usize,
    pub ledger: Ledger,
    retained_complained: bool,
    pub figures: ApplicationFigures,
    unknown_class_said: Minutely,
    reserved_said: Minutely,
    /// Clients that did not get in.
    pub turned_away_said: Minutely,
    epochs: u64,
}

/// Something that is said once a minute at most.
#[derive(Debug, Default)]
pub struct Minutely(Option<Instant>);

impl Minutely {
    pub fn may_speak(&mut self, now: Instant) -> bool {
        let may = self.0.is_none_or(|last| last + Duration::from_secs(60) <= now);
        if may {
            self.0 = Some(now);
        }
        may
    }
}

/// What a CONNECT got.
#[derive(Debug)]
pub struct Attached {
    pub link: Arc<Link>,
    /// The session's.
    pub epoch: u64,
    /// There was a session to go on with.
    pub present: bool,
    /// Wills that became due by it; local subscribers have them already.
    pub due: Vec<Arc<Message>>,
}

/// Why a client that said who it is gets no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnedAway {
    /// All places are taken.
    NoPlace,
    /// Another user is here with the same client identifier.
    NotYours,
}

impl TurnedAway {
    /// MQTT 5's reason code.
    pub fn reason(self) -> u8 {
        match self {
            TurnedAway::NoPlace => checks::QUOTA,
            TurnedAway::NotYours => checks::NOT_AUTHORIZED,
        }
    }
}

impl fmt::Display for TurnedAway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TurnedAway::NoPlace => write!(f, "there are {CLIENTS_MAX} clients already"),
            TurnedAway::NotYours => f.write_str("another user is here with this client identifier"),
        }
    }
}

/// How a connection ended, as far as its session is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    pub keep_will: bool,
    /// The session expiry that DISCONNECT asked for instead of CONNECT's.
    pub expiry: Option<Option<Duration>>,
    /// It is we who go.
    pub cut_off: bool,
}

impl Departure {
    /// Without a word.
    pub const BROKEN: Departure = Departure { keep_will: true, expiry: None, cut_off: false };
}

impl State {
    /// Gives `id` to a new connection, taking it from an older one.
    pub fn attach(&mut self, id: &Arc<str>, greeting: Greeting, now: Instant) -> Result<Attached, TurnedAway> {
        let mut due = self.sweep(now);
        let here = self.sessions.values().filter(|session| session.link().is_some()).count();
        let replaces = self.sessions.get(id).is_some_and(|session| session.link().is_some());
        if here >= CLIENTS_MAX && !replaces {
            self.figures.clients_refused += 1;
            return Err(TurnedAway::NoPlace);
        }
        // What waits in a session is for the user who made it.
        let user = greeting.credentials.user.clone();
        let foreign = self.sessions.get(id).is_some_and(|session| session.user != user);
        if foreign && replaces {
            return Err(TurnedAway::NotYours);
        }
        if let Some(session) = self.sessions.get_mut(id).filter(|_| foreign) {
            // It is not the one who was cut off that comes.
            session.cut_off = false;
        }
        due.extend(self.make_way(id, greeting.clean || foreign, now));
        let link = Arc::<Link>::default();
        let Greeting { version, receive_max, packet_max, expiry, will, .. } = greeting;
        let peer = Peer { version, receive_max, packet_max };
        let present = self.sessions.contains_key(id);
        if !present {
            self.make_room(now);
        }
        let session = self.sessions.entry(Arc::clone(id)).or_insert_with(|| Session::new(peer, Arc::clone(&link)));
        session.resume(peer, Arc::clone(&link));
        if !present {
            self.epochs += 1;
            session.epoch = self.epochs;
        }
        session.expiry = expiry;
        session.will = will;
        session.user = user;
        let epoch = session.epoch;
        if session.kept() {
            session.on_disk = self.ledger.on;
            self.ledger.mark(Key::Session(Arc::clone(id)), Soon::Done, now);
        } else if std::mem::take(&mut session.on_disk) {
            self.ledger.end(id, now);
        }
        Ok(Attached { link, epoch, present, due })
    }

    /// Ends the connection that has `id`, and with a clean start its session; answers with the will that is due.
    fn make_way(&mut self, id: &Arc<str>, clean: bool, now: Instant) -> Option<Arc<Message>> {
        let old = self.sessions.get_mut(id)?;
        let was_here = match &old.presence {
            Presence::Here(link) => {
                log::info!("local MQTT client {id:?} connected again: its older connection is closed");
                link.close(checks::TAKEN_OVER);
                true
            }
            Presence::Away { .. } => false,
        };
        let ends = clean || old.ended || (was_here && old.expiry == Some(Duration::ZERO));
        // Who was cut off by us was never gone.
        let will = old.will.take();
        let will = will.filter(|(_, delay)| !old.cut_off && (ends || (was_here && delay.is_zero())));
        if ends {
            self.end(id, now);
        } else {
            old.rely_on_disk(&self.ledger);
        }
        will.map(|(will, _)| self.publish_will(id, will, now))
    }

    /// Forgets a session, here and on disk; nobody waits for it any more.
    fn end(&mut self, id: &Arc<str>, now: Instant) {
        if let Some(mut session) = self.sessions.remove(id) {
            session.release_holds();
            if session.on_disk {
                self.ledger.end(id, now);
            }
        }
    }

    fn publish_will(&mut self, id: &Arc<str>, will: Publish, now: Instant) -> Arc<Message> {
        let message = Arc::new(Message::new(will, Some(Arc::clone(id)), now));
        self.publish(&message, None, now);
        message
    }

    /// Forgets the session that has been away longest when there are too many. Connected ones are far fewer.
    fn make_room(&mut self, now: Instant) {
        if self.sessions.len() < SESSIONS_MAX {
            return;
        }
        let oldest = self.sessions.iter().filter_map(|(id, session)| match session.presence {
            Presence::Away { since, .. } => Some((since, Arc::clone(id))),
            Presence::Here(_) => None,
        });
        if let Some((_, id)) = oldest.min() {
            log::warn!("more than {SESSIONS_MAX} local MQTT sessions: that of {id:?}, away longest, is forgotten");
            self.end(&id, now);
        }
    }

    /// The session of a connection, unless another connection has it now; with the ledger that its changes must be noted in.
    pub fn parts(&mut self, id: &str, link: &Arc<Link>) -> Option<(&mut Session, &mut Ledger)> {
        let session = self.sessions.get_mut(id);
        let session = session.filter(|session| session.link().is_some_and(|owner| Arc::ptr_eq(owner, link)))?;
        Some((session, &mut self.ledger))
    }

    /// The connection is gone. Answers with the will, if it is due now; local subscribers have it already.
    pub fn detach(
        &mut self,
        id: &Arc<str>,
        link: &Arc<Link>,
        departure: Departure,
        now: Instant,
    ) -> Option<Arc<Message>> {
        let (session, ledger) = self.parts(id, link)?;
        if !departure.keep_will {
            session.will = None;
        }
        if let Some(expiry) = departure.expiry {
            session.expiry = expiry;
        }
        let expires = session.expiry.map(|expiry| now + expiry);
        if departure.cut_off && session.kept() {
            session.cut_off = true;
            session.go_away(Duration::ZERO, now);
            session.rely_on_disk(ledger);
            ledger.mark(Key::Session(Arc::clone(id)), Soon::Now, now);
            return None;
        }
        let ends = session.expiry == Some(Duration::ZERO);
        let delay = session.will.as_ref().map(|(_, delay)| *delay);
        let will_due = delay.map(|delay| expires.map_or(now + delay, |expires| expires.min(now + delay)));
        session.presence = Presence::Away { since: now, expires, will_due };
        let will = session.will.take_if(|(_, delay)| ends || delay.is_zero());
        if ends {
            self.end(id, now);
        } else if let Some(session) = self.sessions.get_mut(id) {
            session.on_disk = self.ledger.on;
            session.rely_on_disk(&self.ledger);
            self.ledger.mark(Key::Session(Arc::clone(id)), Soon::Done, now);
            // Nobody is here any more who could make a write needless.
            self.ledger.hurry(Soon::Now, now);
        }
        will.map(|(will, _)| self.publish_will(id, will, now))
    }

    /// Adds a subscription and queues the retained messages it asks for. Answers with the reason code of SUBACK.
    pub fn subscribe(
        &mut self,
        id: &Arc<str>,
        filter: &str,
        subscription: Subscription,
        retain_handling: u8,
        now: Instant,
    ) -> u8 {
        if filter.starts_with("$share/") {
            return checks::NO_SHARED_SUBSCRIPTIONS;
        }
        if !topics::valid_filter(filter) {
            return checks::FILTER_INVALID;
        }
        let bytes_max = self.queue_bytes_max();
        let Some(session) = self.sessions.get_mut(id) else { return checks::UNSPECIFIED };
        let known = session.subscriptions.contains_key(filter);
        if (!known && session.subscriptions.len() >= SUBSCRIPTIONS_MAX) || !fits(filter) {
            return checks::QUOTA;
        }
        session.subscriptions.insert(filter.to_owned(), subscription);
        let keeps = session.persistent();
        if keeps {
            self.ledger.mark(Key::Subscription(Arc::clone(id), filter.to_owned()), Soon::Now, now);
        }
        let wanted = match retain_handling {
            0 => true,
            1 => !known,
            _ => false,
        };
        if wanted {
            let kept = self.retained.values().filter(|message| {
                let own = subscription.no_local && message.origin.as_ref() == Some(id);
                !own && !message.expired(now) && topics::matches(filter, &message.topic)
            });
            for message in kept {
                let delivery = Delivery {
                    message: Arc::clone(message),
                    qos: message.qos.min(subscription.qos),
                    retain: true,
                    identifiers: subscription.identifier.into_iter().collect(),
                };
                let room = queue(id, session, delivery, None, bytes_max, &mut self.ledger, now);
                self.figures.note(room, id, session);
                if room == Room::Full {
                    break;
                }
            }
        }
        subscription.qos
    }

    /// Takes a subscription back; false where there was none.
    pub fn unsubscribe(&mut self, id: &Arc<str>, filter: &str, now: Instant) -> bool {
        let Some(session) = self.sessions.get_mut(id) else { return false };
        let gone = session.subscriptions.remove(filter).is_some();
        if gone && session.persistent() {
            self.ledger.mark(Key::Subscription(Arc::clone(id), filter.to_owned()), Soon::Now, now);
        }
        gone
    }

    /// PUBREC has come: the write to wait for before PUBREL; `None` where the identifier is unknown.
    pub fn pubrec(&mut self, id: &Arc<str>, packet_id: u16, now: Instant) -> Option<u64> {
        let outgoing = self.sessions.get_mut(id)?.half_complete(packet_id)?;
        if outgoing.serial == 0 {
            return Some(0);
        }
        let kept = self.ledger.mark(Key::Message(Arc::clone(id), outgoing.serial), Soon::Now, now);
        outgoing.note_pubrec(kept);
        Some(kept)
    }

    /// A write has ended: whoever waited for it goes on.
    pub fn write_ended(&mut self) {
        for session in self.sessions.values_mut() {
            session.release_kept(&self.ledger);
            if let Some(link) = session.link() {
                link.wake.notify_one();
            }
        }
    }

    /// A local client's message. What comes back resolves once every persistent session that wants it has it on disk
    /// or its client has taken it; `None` where that is so already.
    pub fn publish_local(&mut self, message: &Arc<Message>, now: Instant) -> Option<oneshot::Receiver<()>> {
        let may_wait = message.qos > 0 && self.ledger.on && !self.ledger.failing;
        if !may_wait || !self.sessions.values().any(Session::persistent) {
            self.publish(message, None, now);
            return None;
        }
        let (sender, kept) = oneshot::channel();
        let taken = Taken::new(sender);
        self.publish(message, Some(&taken), now);
        taken.release();
        Some(kept)
    }

    /// Keeps a local client's message if it asks for it, and puts it in the queue of whoever wants it. `taken` is held
    /// by those who do not have it for sure: of local messages, only by persistent sessions.
    pub fn publish(&mut self, message: &Arc<Message>, taken: Option<&Arc<Taken>>, now: Instant) -> usize {
        if message.retain && message.origin.is_some() {
            self.retain(message, now);
        }
        let mut receivers = 0;
        let bytes_max = self.queue_bytes_max();
        for (id, session) in &mut self.sessions {
            let Some(delivery) = wanted(id, session, message) else { continue };
            receivers += 1;
            let taken = taken.filter(|_| message.origin.is_none() || session.persistent());
            let room = queue(id, session, delivery, taken, bytes_max, &mut self.ledger, now);
            let from_cloud = message.origin.is_none() && room == Room::Full;
            self.figures.commands_dropped += u64::from(from_cloud);
            self.figures.note(room, id, session);
        }
        receivers
    }

    /// What one queue may hold: much while all together hold little, and its share otherwise.
    fn queue_bytes_max(&self) -> usize {
        let all: usize = self.sessions.values().map(Session::bytes).sum();
        if all < QUEUES_BYTES_MAX { QUEUE_BYTES_MAX } else { QUEUE_BYTES_SHARE }
    }

    fn retain(&mut self, message: &Arc<Message>, now: Instant) {
        if let Some(old) = self.retained.remove(&message.topic) {
            self.retained_bytes = self.retained_bytes.saturating_sub(old.size());
        }
        self.ledger.mark(Key::Retained(message.topic.clone()), Soon::Retained, now);
        if message.payload.is_empty() {
            return;
        }
        let fits = |state: &State| {
            state.retained.len() < RETAINED_MAX && state.retained_bytes + message.size() <= RETAINED_BYTES_MAX
        };
        if !fits(self) {
            for (topic, _) in self.retained.extract_if(.., |_, kept| kept.expired(now)) {
                self.ledger.mark(Key::Retained(topic), Soon::Retained, now);
            }
            self.retained_bytes = self.retained.values().map(|kept| kept.size()).sum();
        }
        if fits(self) {
            self.retained_bytes += message.size();
            self.retained.insert(message.topic.clone(), Arc::clone(message));
        } else {
            self.figures.retained_refused += 1;
            if !self.retained_complained {
                self.retained_complained = true;
                log::warn!("too many retained local messages: {:?} is delivered but not kept", message.topic);
            }
        }
    }

    /// What became of a QoS 2 message whose connection has ended.
    pub fn settle(&mut self, id: &Arc<str>, epoch: u64, packet_id: u16, accepted: bool, now: Instant) {
        let session = self.sessions.get_mut(id).filter(|session| session.epoch == epoch);
        let Some(session) = session else { return };
        if session.received.get(&packet_id) != Some(&Reception::Waiting) {
            return;
        }
        if accepted {
            let kept = session.accept(id, packet_id, &mut self.ledger, now);
            if session.link().is_some() {
                session.settled.push((packet_id, kept));
            }
        } else {
            session.received.insert(packet_id, Reception::Refused);
        }
        match session.link() {
            Some(link) if accepted => link.wake.notify_one(),
            // Its PUBREC can never come on this connection; on the next one the client sends it again.
            Some(link) => link.close(checks::QUOTA),
            None => {}
        }
    }

    /// PUBREL has come: the write to wait for before PUBCOMP.
    pub fn end_reception(&mut self, id: &Arc<str>, packet_id: u16, now: Instant) -> u64 {
        let Some(session) = self.sessions.get_mut(id) else { return 0 };
        match session.received.remove(&packet_id) {
            Some(Reception::Accepted { kept: 1.. }) if session.persistent() => {
                self.ledger.mark(Key::Received(Arc::clone(id)), Soon::Now, now)
            }
            _ => 0,
        }
    }

    /// Counts a message whose own class is none; how many there were, when it is time to say so.
    pub fn note_unknown_class(&mut self, now: Instant) -> Option<u64> {
        self.figures.unknown_class += 1;
        self.unknown_class_said.may_speak(now).then_some(self.figures.unknown_class)
    }

    /// The same for one that would be taken for a word of the daemon itself.
    pub fn note_reserved(&mut self, now: Instant) -> Option<u64> {
        self.figures.reserved += 1;
        self.reserved_said.may_speak(now).then_some(self.figures.reserved)
    }

    /// Wills of an earlier start that the rules allow no more are forgotten.
    pub fn forget_wills(&mut self, allowed: impl Fn(Option<&str>, &str, &str) -> bool) {
        for (id, session) in &mut self.sessions {
            session.will.take_if(|(will, _)| !allowed(session.user.as_deref(), id, &will.topic));
        }
    }

    /// When `sweep` has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.sessions.values().filter_map(deadline).min()
    }

    /// Ends what has expired and drops who takes too long; answers with the wills that are due.
    pub fn sweep(&mut self, now: Instant) -> Vec<Arc<Message>> {
        let (mut wills, mut ended) = (Vec::new(), Vec::new());
        for (id, session) in &mut self.sessions {
            if deadline(session).is_none_or(|deadline| deadline > now) {
                continue;
            }
            match &mut session.presence {
                Presence::Here(link) => {
                    let link = Arc::clone(link);
                    if session.lose_patience(now) {
                        log::warn!("local MQTT client {id:?} does not read what the cloud sent: disconnected");
                        self.figures.slow_dropped += 1;
                        link.close(checks::QUOTA);
                        session.rely_on_disk(&self.ledger);
                        if !session.persistent() {
                            session.release_holds();
                        }
                    }
                }
                Presence::Away { expires, will_due, .. } => {
                    if will_due.is_some_and(|due| due <= now) {
                        *will_due = None;
                        wills.extend(session.will.take().map(|(will, _)| (Arc::clone(id), will)));
                        self.ledger.mark(Key::Session(Arc::clone(id)), Soon::Done, now);
                    }
                    if expires.is_some_and(|expires| expires <= now) {
                        ended.push(Arc::clone(id));
                    }
                }
            }
        }
        for id in ended {
            self.end(&id, now);
        }
        wills.into_iter().map(|(id, will)| self.publish_will(&id, will, now)).collect()
    }

    /// Asks every connection to close with this reason.
    pub fn close_all(&self, reason: u8) {
        for link in self.sessions.values().filter_map(Session::link) {
            link.close(reason);
        }
    }

    /// The counters, with what can be counted now.
    pub fn figures(&self) -> ApplicationFigures {
        ApplicationFigures {
            clients: self.sessions.values().filter(|session| session.link().is_some()).count(),
            sessions: self.sessions.len(),
            retained: self.retained.len(),
            queued: self.sessions.values().map(Session::backlog).sum(),
            queued_bytes: self.sessions.values().map(Session::bytes).sum(),
            ..self.figures.clone()
        }
    }
}

/// Whether a filter is within its limits.
pub fn fits(filter: &str) -> bool {
    filter.len() <= FILTER_MAX && filter.split('/').count() <= LEVELS_MAX
}

fn deadline(session: &Session) -> Option<Instant> {
    match session.presence {
        Presence::Here(_) => session.patience_ends(),
        Presence::Away { expires, will_due, .. } => expires.into_iter().chain(will_due).min(),
    }
}

/// Puts a message in a session's queue and notes it in the ledger.
fn queue(
    id: &Arc<str>,
    session: &mut Session,
    delivery: Delivery,
    taken: Option<&Arc<Taken>>,
    bytes_max: usize,
    ledger: &mut Ledger,
    now: Instant,
) -> Room {
    let keeps = delivery.qos > 0 && session.persistent() && ledger.on;
    // With QoS 2 even a client that is here waits for the disk.
    let soon = if session.link().is_some() && delivery.qos < 2 { Soon::Taking } else { Soon::Now };
    let room = session.enqueue(delivery, taken, bytes_max, now);
    if keeps && matches!(room, Room::Queued | Room::Held) {
        let serial = ledger.serial();
        session.keep_last(serial, ledger.mark(Key::Message(Arc::clone(id), serial), soon, now));
    }
    room
}

/// One copy for a session, whatever number of its filters match: the highest QoS, every identifier (section 3.3.4).
fn wanted(id: &Arc<str>, session: &Session, message: &Arc<Message>) -> Option<Delivery> {
    let own = message.origin.as_ref() == Some(id);
    let mut delivery: Option<Delivery> = None;
    for (filter, subscription) in &session.subscriptions {
        if (own && subscription.no_local) || !topics::matches(filter, &message.topic) {
            continue;
        }
        let delivery = delivery.get_or_insert_with(|| Delivery {
            message: Arc::clone(message),
            qos: 0,
            retain: false,
            identifiers: Vec::new(),
        });
        delivery.qos = delivery.qos.max(subscription.qos.min(message.qos));
        delivery.retain |= subscription.retain_as_published && message.retain;
        delivery.identifiers.extend(subscription.identifier);
    }
    delivery
}

impl ApplicationFigures {
    fn note(&mut self, room: Room, id: &str, session: &mut Session) {
        match room {
            Room::Queued | Room::NotKept => {}
            Room::Held => self.held += 1,
            Room::Full => {
                self.dropped += 1;
                if !session.complained {
                    session.complained = true;
                    log::warn!("the queue of local MQTT client {id:?} is full: messages for it are dropped");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use switchback_control::Version;

    use super::*;

    fn id(text: &str) -> Arc<str> {
        Arc::from(text)
    }

    fn greeting(clean: bool, expiry: Option<Duration>) -> Greeting {
        Greeting {
            version: Version::V5,
            id: String::new(),
            clean,
            keep_alive: Duration::ZERO,
            expiry,
            receive_max: 10,
            packet_max: 10_000,
            will: None,
            wants_words: true,
            credentials: Default::default(),
        }
    }

    fn publish(topic: &str, qos: u8, retain: bool) -> Publish {
        Publish { topic: topic.into(), payload: vec![1], qos, retain, dup: false, id: None, properties: vec![] }
    }

    fn message(topic: &str, origin: &str) -> Arc<Message> {
        Arc::new(Message::new(publish(topic, 1, true), Some(id(origin)), Instant::now()))
    }

    const STAYS: Departure = Departure::BROKEN;

    #[test]
    fn one_copy_with_the_highest_qos_and_every_identifier() {
        let (mut state, now, a) = (State::default(), Instant::now(), id("a"));
        state.attach(&a, greeting(true, Some(Duration::ZERO)), now).unwrap();
        for (number, filter) in ["x/#", "x/y", "z"].into_iter().enumerate() {
            let identifier = Some(number as u32 + 1);
            let subscription = Subscription { qos: number as u8, identifier, ..Subscription::default() };
            assert_eq!(state.subscribe(&a, filter, subscription, 0, now), number as u8);
        }
        let delivery = wanted(&a, &state.sessions[&a], &message("x/y", "b")).unwrap();
        assert_eq!((delivery.qos, delivery.identifiers, delivery.retain), (1, vec![1, 2], false));
    }

    #[test]
    fn no_local_keeps_a_clients_own_messages_from_it() {
        let (mut state, now, a) = (State::default(), Instant::now(), id("a"));
        state.attach(&a, greeting(true, Some(Duration::ZERO)), now).unwrap();
        state.subscribe(&a, "#", Subscription { no_local: true, ..Subscription::default() }, 0, now);
        assert_eq!(state.publish(&message("t", "a"), None, now), 0);
        assert_eq!(state.publish(&message("t", "b"), None, now), 1);
    }

    #[test]
    fn a_delayed_will_waits_for_the_client_to_come_back() {
        let (mut state, now, a) = (State::default(), Instant::now(), id("a"));
        let minute = Duration::from_secs(60);
        let with_will = || Greeting {
            will: Some((publish("w", 0, true), Duration::from_secs(10))),
            ..greeting(false, Some(minute))
        };
        let link = state.attach(&a, with_will(), now).unwrap().link;
        assert!(state.detach(&a, &link, STAYS, now).is_none());
        assert_eq!(state.next_deadline(), Some(now + Duration::from_secs(10)));
        let again = state.attach(&a, with_will(), now + Duration::from_secs(5)).unwrap();
        assert!(again.present && again.due.is_empty());
        state.detach(&a, &again.link, STAYS, now);
        assert_eq!(state.sweep(now + Duration::from_secs(10)).len(), 1);
        assert_eq!((state.figures().retained, state.figures().sessions), (1, 1));
        state.sweep(now + minute);
        assert_eq!(state.figures().sessions, 0);
    }

    #[test]
    fn a_connection_that_lost_its_session_changes_nothing() {
        let (mut state, now, a) = (State::default(), Instant::now(), id("a"));
        let old = state.attach(&a, greeting(false, None), now).unwrap().link;
        let new = state.attach(&a, greeting(false, None), now).unwrap();
        assert!(new.present && old.farewell() == Some(checks::TAKEN_OVER));
        assert!(state.parts(&a, &old).is_none() && state.parts(&a, &new.link).is_some());
        state.detach(&a, &old, STAYS, now);
        assert_eq!(state.figures().clients, 1);
    }

    #[test]
    fn limits_hold_for_clients_sessions_subscriptions_and_retained() {
        let (mut state, now) = (State::default(), Instant::now());
        for number in 0..CLIENTS_MAX {
            state.attach(&id(&number.to_string()), greeting(true, None), now).unwrap();
        }
        assert_eq!(state.attach(&id("more"), greeting(true, None), now).unwrap_err(), TurnedAway::NoPlace);
        assert!(state.attach(&id("0"), greeting(true, None), now).is_ok());
        for number in 0..SUBSCRIPTIONS_MAX {
            assert_eq!(state.subscribe(&id("0"), &number.to_string(), Subscription::default(), 0, now), 0);
        }
        assert_eq!(state.subscribe(&id("0"), "more", Subscription::default(), 0, now), checks::QUOTA);
        for number in 0..RETAINED_MAX + 5 {
            state.publish(&message(&number.to_string(), "0"), None, now);
        }
        assert_eq!((state.figures().retained, state.figures().retained_refused), (RETAINED_MAX, 5));
        let link = state.attach(&id("0"), greeting(false, None), now).unwrap().link;
        state.detach(&id("0"), &link, STAYS, now);
        for number in 0..SESSIONS_MAX * 2 {
            let (name, at) = (id(&format!("s{number}")), now + Duration::from_secs(number as u64));
            let link = state.attach(&name, greeting(true, None), at).unwrap().link;
            state.detach(&name, &link, STAYS, at);
        }
        assert!(state.sessions.len() <= SESSIONS_MAX);
        assert!(!state.sessions.contains_key("s0") && state.sessions.contains_key("s511"));
    }

    #[test]
    fn shared_and_broken_filters_are_refused_with_their_code() {
        let (mut state, now, a) = (State::default(), Instant::now(), id("a"));
        state.attach(&a, greeting(true, Some(Duration::ZERO)), now).unwrap();
        assert_eq!(state.subscribe(&a, "$share/g/t", Subscription::default(), 0, now), 0x9e);
        assert_eq!(state.subscribe(&a, "a/#/b", Subscription::default(), 0, now), 0x8f);
    }
}
