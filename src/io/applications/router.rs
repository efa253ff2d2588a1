//! Everything the connections share: sessions, retained messages, wills, and who gets what.
//!
//! Plain data behind one lock, never held over an await: the single thread makes it free of contention. Every
//! collection is bounded by a name in `applications.rs`. A client identifier has at most one connection; a
//! connection that lost its session can change nothing. Knows nothing of sockets or of the cloud.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::greeting::Greeting;
use super::message::Message;
use super::session::{Delivery, Link, Peer, Presence, Reception, Room, Session, Subscription, Taken};
use super::{
    CLIENTS_MAX, Counts, FILTER_MAX, QUEUE_BYTES_MAX, QUEUE_BYTES_SHARE, QUEUES_BYTES_MAX, RETAINED_BYTES_MAX,
    RETAINED_MAX, SESSIONS_MAX, SUBSCRIPTIONS_MAX, checks,
};
use crate::io::packet::Publish;
use crate::topics;

/// The lock and the bell.
#[derive(Debug, Default)]
pub struct Shared {
    state: Mutex<State>,
    /// Rung when `next_deadline` may have come closer.
    pub changed: Notify,
}

impl Shared {
    pub fn with<R>(&self, what: impl FnOnce(&mut State) -> R) -> R {
        what(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// See the file's head.
#[derive(Debug, Default)]
pub struct State {
    sessions: HashMap<Arc<str>, Session>,
    retained: BTreeMap<String, Arc<Message>>,
    retained_bytes: usize,
    retained_complained: bool,
    pub counts: Counts,
}

/// What a CONNECT got.
#[derive(Debug)]
pub struct Attached {
    pub link: Arc<Link>,
    /// There was a session to go on with.
    pub present: bool,
    /// Wills that became due by it; local subscribers have them already.
    pub due: Vec<Arc<Message>>,
}

/// All places are taken.
#[derive(Debug, PartialEq, Eq)]
pub struct NoPlace;

/// How a connection ended, as far as its session is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    pub keep_will: bool,
    /// The session expiry that DISCONNECT asked for instead of CONNECT's.
    pub expiry: Option<Option<Duration>>,
}

impl State {
    /// Gives `id` to a new connection, taking it from an older one.
    pub fn attach(&mut self, id: &Arc<str>, greeting: Greeting, now: Instant) -> Result<Attached, NoPlace> {
        let mut due = self.sweep(now);
        let here = self.sessions.values().filter(|session| session.link().is_some()).count();
        let replaces = self.sessions.get(id).is_some_and(|session| session.link().is_some());
        if here >= CLIENTS_MAX && !replaces {
            self.counts.clients_refused += 1;
            return Err(NoPlace);
        }
        due.extend(self.make_way(id, greeting.clean, now));
        let link = Arc::<Link>::default();
        let Greeting { version, receive_max, packet_max, expiry, will, .. } = greeting;
        let peer = Peer { version, receive_max, packet_max };
        let present = self.sessions.contains_key(id);
        if !present {
            self.make_room();
        }
        let session = self.sessions.entry(Arc::clone(id)).or_insert_with(|| Session::new(peer, Arc::clone(&link)));
        session.resume(peer, Arc::clone(&link));
        session.expiry = expiry;
        session.will = will;
        Ok(Attached { link, present, due })
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
        let ends = clean || (was_here && old.expiry == Some(Duration::ZERO));
        let will = old.will.take().filter(|(_, delay)| ends || (was_here && delay.is_zero()));
        old.release_holds();
        if ends {
            self.sessions.remove(id);
        }
        will.map(|(will, _)| self.publish_will(id, will, now))
    }

    fn publish_will(&mut self, id: &Arc<str>, will: Publish, now: Instant) -> Arc<Message> {
        let message = Arc::new(Message::new(will, Some(Arc::clone(id)), now));
        self.publish(&message, None, now);
        message
    }

    /// Forgets the session that has been away longest when there are too many. Connected ones are far fewer.
    fn make_room(&mut self) {
        if self.sessions.len() < SESSIONS_MAX {
            return;
        }
        let oldest = self.sessions.iter().filter_map(|(id, session)| match session.presence {
            Presence::Away { since, .. } => Some((since, Arc::clone(id))),
            Presence::Here(_) => None,
        });
        if let Some((_, id)) = oldest.min() {
            log::warn!("more than {SESSIONS_MAX} local MQTT sessions: that of {id:?}, away longest, is forgotten");
            self.sessions.remove(&id);
        }
    }

    /// The session of a connection, unless another connection has it now.
    pub fn owned(&mut self, id: &str, link: &Arc<Link>) -> Option<&mut Session> {
        self.sessions.get_mut(id).filter(|session| session.link().is_some_and(|owner| Arc::ptr_eq(owner, link)))
    }

    /// The connection is gone. Answers with the will, if it is due now; local subscribers have it already.
    pub fn detach(
        &mut self,
        id: &Arc<str>,
        link: &Arc<Link>,
        departure: Departure,
        now: Instant,
    ) -> Option<Arc<Message>> {
        let session = self.owned(id, link)?;
        session.release_holds();
        if !departure.keep_will {
            session.will = None;
        }
        if let Some(expiry) = departure.expiry {
            session.expiry = expiry;
        }
        let expires = session.expiry.map(|expiry| now + expiry);
        let ends = session.expiry == Some(Duration::ZERO);
        let delay = session.will.as_ref().map(|(_, delay)| *delay);
        let will_due = delay.map(|delay| expires.map_or(now + delay, |expires| expires.min(now + delay)));
        session.presence = Presence::Away { since: now, expires, will_due };
        let will = session.will.take_if(|(_, delay)| ends || delay.is_zero());
        if ends {
            self.sessions.remove(id);
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
        if (!known && session.subscriptions.len() >= SUBSCRIPTIONS_MAX) || filter.len() > FILTER_MAX {
            return checks::QUOTA;
        }
        session.subscriptions.insert(filter.to_owned(), subscription);
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
                let room = session.enqueue(delivery, None, bytes_max, now);
                self.counts.note(room, id, session);
            }
        }
        subscription.qos
    }

    /// A local client's message: kept if it asks for it, and put in the queue of whoever wants it.
    pub fn publish(&mut self, message: &Arc<Message>, taken: Option<&Arc<Taken>>, now: Instant) -> usize {
        if message.retain && message.origin.is_some() {
            self.retain(message, now);
        }
        let mut receivers = 0;
        let bytes_max = self.queue_bytes_max();
        for (id, session) in &mut self.sessions {
            let Some(delivery) = wanted(id, session, message) else { continue };
            receivers += 1;
            let room = session.enqueue(delivery, taken, bytes_max, now);
            self.counts.note(room, id, session);
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
        if message.payload.is_empty() {
            return;
        }
        let fits = |state: &State| {
            state.retained.len() < RETAINED_MAX && state.retained_bytes + message.size() <= RETAINED_BYTES_MAX
        };
        if !fits(self) {
            self.retained.retain(|_, kept| !kept.expired(now));
            self.retained_bytes = self.retained.values().map(|kept| kept.size()).sum();
        }
        if fits(self) {
            self.retained_bytes += message.size();
            self.retained.insert(message.topic.clone(), Arc::clone(message));
        } else {
            self.counts.retained_refused += 1;
            if !self.retained_complained {
                self.retained_complained = true;
                log::warn!("too many retained local messages: {:?} is delivered but not kept", message.topic);
            }
        }
    }

    /// What became of a QoS 2 message whose connection has ended.
    pub fn settle(&mut self, id: &str, packet_id: u16, accepted: bool) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        let Some(reception) = session.received.get_mut(&packet_id) else { return };
        if *reception != Reception::Waiting {
            return;
        }
        *reception = if accepted { Reception::Accepted } else { Reception::Refused };
        if accepted && session.link().is_some() {
            session.settled.push(packet_id);
        }
        match session.link() {
            Some(link) if accepted => link.wake.notify_one(),
            // Its PUBREC can never come on this connection; on the next one the client sends it again.
            Some(link) => link.close(checks::QUOTA),
            None => {}
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
                    log::warn!("local MQTT client {id:?} does not read what the cloud sent: disconnected");
                    self.counts.slow_dropped += 1;
                    link.close(checks::QUOTA);
                    session.release_holds();
                }
                Presence::Away { expires, will_due, .. } => {
                    if will_due.is_some_and(|due| due <= now) {
                        *will_due = None;
                        wills.extend(session.will.take().map(|(will, _)| (Arc::clone(id), will)));
                    }
                    if expires.is_some_and(|expires| expires <= now) {
                        ended.push(Arc::clone(id));
                    }
                }
            }
        }
        for id in ended {
            self.sessions.remove(&id);
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
    pub fn counts(&self) -> Counts {
        Counts {
            clients: self.sessions.values().filter(|session| session.link().is_some()).count(),
            sessions: self.sessions.len(),
            retained: self.retained.len(),
            queued: self.sessions.values().map(Session::backlog).sum(),
            ..self.counts.clone()
        }
    }
}

fn deadline(session: &Session) -> Option<Instant> {
    match session.presence {
        Presence::Here(_) => session.patience_ends(),
        Presence::Away { expires, will_due, .. } => expires.into_iter().chain(will_due).min(),
    }
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

impl Counts {
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
        }
    }

    fn publish(topic: &str, qos: u8, retain: bool) -> Publish {
        Publish { topic: topic.into(), payload: vec![1], qos, retain, dup: false, id: None, properties: vec![] }
    }

    fn message(topic: &str, origin: &str) -> Arc<Message> {
        Arc::new(Message::new(publish(topic, 1, true), Some(id(origin)), Instant::now()))
    }

    const STAYS: Departure = Departure { keep_will: true, expiry: None };

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
        assert_eq!((state.counts().retained, state.counts().sessions), (1, 1));
        state.sweep(now + minute);
        assert_eq!(state.counts().sessions, 0);
    }

    #[test]
    fn a_connection_that_lost_its_session_changes_nothing() {
        let (mut state, now, a) = (State::default(), Instant::now(), id("a"));
        let old = state.attach(&a, greeting(false, None), now).unwrap().link;
        let new = state.attach(&a, greeting(false, None), now).unwrap();
        assert!(new.present && old.farewell() == Some(checks::TAKEN_OVER));
        assert!(state.owned(&a, &old).is_none() && state.owned(&a, &new.link).is_some());
        state.detach(&a, &old, STAYS, now);
        assert_eq!(state.counts().clients, 1);
    }

    #[test]
    fn limits_hold_for_clients_sessions_subscriptions_and_retained() {
        let (mut state, now) = (State::default(), Instant::now());
        for number in 0..CLIENTS_MAX {
            state.attach(&id(&number.to_string()), greeting(true, None), now).unwrap();
        }
        assert_eq!(state.attach(&id("more"), greeting(true, None), now).unwrap_err(), NoPlace);
        assert!(state.attach(&id("0"), greeting(true, None), now).is_ok());
        for number in 0..SUBSCRIPTIONS_MAX {
            assert_eq!(state.subscribe(&id("0"), &number.to_string(), Subscription::default(), 0, now), 0);
        }
        assert_eq!(state.subscribe(&id("0"), "more", Subscription::default(), 0, now), checks::QUOTA);
        for number in 0..RETAINED_MAX + 5 {
            state.publish(&message(&number.to_string(), "0"), None, now);
        }
        assert_eq!((state.counts().retained, state.counts().retained_refused), (RETAINED_MAX, 5));
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
