//! Keeps sessions and retained messages on disk, and brings them back.
//!
//! One task writes what the ledger says differs, as soon as somebody waits for it; nothing is written while nothing
//! that is kept changes. A disk that fails is said once and asked again every few seconds, then with everything:
//! meanwhile sessions live in memory, local clients go on, and only the cloud's messages for clients that are away stay
//! unacknowledged.
//!
//! Wills are kept too. When the daemon stops or dies its clients have not, so nobody's will is published then (MQTT 5
//! section 3.1.2.5 leaves that to the next start; mosquitto publishes all at a stop and none after a kill). The next start
//! gives them `RESTART_GRACE`, or the will's own delay where that is longer: who is not back by then is gone. A session's
//! time runs on while the daemon is away; of one that ended meanwhile only the will is left.
//!
//! What a kill or a power cut may still do, always in the direction of a repetition:
//! - A client's QoS 2 message, in a session that is kept: it is ours first, then its identifier is on disk (one write
//!   later), then PUBREC leaves. A kill in between lets the client send it again and it goes up twice. The other order would
//!   lose it. The same write says both where it goes to local sessions only. Where a rule waits for the cloud, that is the
//!   time until the cloud has it.
//! - PUBCOMP leaves when the disk has forgotten the identifier, so that the next message under it is never taken for the
//!   last one.
//! - A QoS 2 message to a client is on disk with its identifier before it leaves, so the client knows a repetition.
//! - A command from the cloud is on disk for every kept session before the cloud is told. A kill between the two makes the
//!   cloud send it again, and each session gets it twice: its packet identifier is the cloud session's, not known here.
//! - A will is on disk a second after CONNECT; until then a kill forgets it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use super::entry::{Entry, Moment, decode, encode};
use super::ledger::{Key, Ledger, Soon};
use super::message::Message;
use super::router::{Shared, State, fits};
use super::session::{Outgoing, Presence, Reception, Session};
use super::store::Store;
use super::{RECEPTIONS_MAX, RETAINED_BYTES_MAX, RETAINED_MAX, SESSIONS_MAX, SUBSCRIPTIONS_MAX};
use crate::io::clock::SET_SINCE;
use crate::outbox::Disk;
use crate::topics;

/// How soon a disk that failed is asked again.
const WRITE_AGAIN: Duration = Duration::from_secs(5);

/// A frame is closed once it is this long: what a power cut may take of a write that nobody relied on.
const FRAME_TARGET: usize = 256 * 1024;

/// The number of the write that what was read counts as.
const READ: u64 = 1;

/// Messages that were read: each is kept for every session that it waits for, and in memory they share it again.
#[derive(Default)]
pub struct Alike(HashMap<u64, Weak<Message>>);

impl Alike {
    fn share(&mut self, message: &mut Arc<Message>) {
        let mut hasher = DefaultHasher::new();
        (&message.topic, &message.payload).hash(&mut hasher);
        let known = self.0.entry(hasher.finish()).or_default();
        match known.upgrade().filter(|known| known == message) {
            Some(known) => *message = known,
            None => *known = Arc::downgrade(message),
        }
    }
}

/// Takes what a frame of the file says; false where it makes no sense.
pub fn read_frame(state: &mut State, alike: &mut Alike, mut body: &[u8], moment: Moment) -> bool {
    while !body.is_empty() {
        let Some(mut entry) = decode(&mut body, moment) else { return false };
        if let Entry::Queued { delivery: Some(delivery), .. } = &mut entry {
            alike.share(&mut delivery.message);
        }
        state.restore(entry, moment);
    }
    true
}

/// What one write says.
struct Writing {
    number: u64,
    whole: bool,
    bodies: Vec<Vec<u8>>,
}

/// Writes when something is due, until `finish` comes; then once more.
pub async fn keep<D>(shared: Arc<Shared>, mut store: Store<D>, mut finish: oneshot::Receiver<()>)
where
    D: Disk + Send + 'static,
    D::File: Send,
{
    let mut complained = false;
    let mut last = false;
    while !last {
        let due = shared.with(|state| state.ledger.due());
        tokio::select! {
            biased;
            _ = &mut finish => last = true,
            () = shared.due.notified() => continue,
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
        let writing = shared.with(|state| state.write_down(&store, Moment::current()));
        let number = writing.number;
        let written = spawn_blocking(move || {
            let result = match (writing.whole, writing.bodies.is_empty()) {
                (false, true) => Ok(()),
                (false, false) => store.append(&writing.bodies),
                (true, _) => store.replace(&writing.bodies),
            };
            (store, result)
        });
        let Ok((back, result)) = written.await else { return };
        store = back;
        shared.with(|state| {
            match &result {
                Ok(()) => state.ledger.written(number),
                Err(_) => state.ledger.failed(Instant::now() + WRITE_AGAIN),
            }
            state.write_ended();
        });
        match result {
            Ok(()) if complained => {
                complained = false;
                log::info!("local MQTT sessions are kept on disk again");
            }
            Err(error) if !complained => {
                complained = true;
                log::error!("cannot keep local MQTT sessions: {error}; they live in memory, and it is tried again");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

impl State {
    /// What was read is on disk; from now on changes are written.
    pub fn begin_keeping(&mut self, now: Instant) {
        self.ledger = Ledger::beginning_after(READ, std::mem::take(&mut self.ledger));
        let over = self.sessions.extract_if(|_, session| session.ended && session.will.is_none());
        over.for_each(|(id, _)| self.ledger.end(&id, now));
        for (id, session) in &self.sessions {
            if matches!(session.presence, Presence::Away { since, .. } if since == now) {
                // It was here when the daemon ended, so the disk does not know since when it is away.
                self.ledger.mark(Key::Session(Arc::clone(id)), Soon::Retained, now);
            }
        }
    }

    fn write_down<D: Disk>(&mut self, store: &Store<D>, moment: Moment) -> Writing {
        let (number, ended, keys) = self.ledger.take();
        let nothing = ended.is_empty() && keys.is_empty();
        let whole = store.wants_all(self.live_bytes()) && !(nothing && self.is_empty() && !self.ledger.failing);
        let mut frames = Frames { bodies: Vec::new(), moment };
        if whole {
            self.sessions.iter().for_each(|(id, session)| frames.session(id, session));
            let retained = self.retained.values();
            retained.for_each(|message| frames.push(&Entry::Retained { message: Arc::clone(message) }));
        } else {
            ended.into_iter().for_each(|id| frames.push(&Entry::Ended { id }));
            keys.into_iter().filter_map(|key| self.entry(key, moment)).for_each(|entry| frames.push(&entry));
        }
        Writing { number, whole, bodies: frames.bodies }
    }

    fn is_empty(&self) -> bool {
        self.retained.is_empty() && !self.sessions.values().any(Session::kept)
    }

    /// Roughly what a whole file would hold.
    fn live_bytes(&self) -> u64 {
        let sessions = self.sessions.values().filter(|session| session.kept());
        let filters = |session: &Session| session.subscriptions.keys().map(|filter| filter.len() + 64).sum::<usize>();
        let bytes: usize = sessions.map(|session| 128 + session.bytes() + filters(session)).sum();
        (bytes + self.retained_bytes) as u64
    }

    /// How something is now.
    fn entry(&self, key: Key, moment: Moment) -> Option<Entry> {
        let kept = |id: &Arc<str>| self.sessions.get(id).filter(|session| session.persistent());
        match key {
            Key::Session(id) => {
                let session = self.sessions.get(&id).filter(|session| session.kept());
                session.map(|session| session_entry(&id, session, moment))
            }
            Key::Received(id) => kept(&id).map(|session| received_entry(&id, session)),
            Key::Subscription(id, filter) => Some(match kept(&id)?.subscriptions.get(&filter) {
                Some(subscription) => Entry::Subscribed { id, filter, subscription: *subscription },
                None => Entry::Unsubscribed { id, filter },
            }),
            Key::Message(id, serial) => Some(match kept(&id)?.all().find(|outgoing| outgoing.serial == serial) {
                Some(outgoing) => message_entry(&id, outgoing),
                None => Entry::Done { id, serial },
            }),
            Key::Retained(topic) => Some(match self.retained.get(&topic) {
                Some(message) => Entry::Retained { message: Arc::clone(message) },
                None => Entry::Cleared { topic },
            }),
        }
    }

    /// Takes what was read. The limits hold for it as for everybody.
    fn restore(&mut self, entry: Entry, moment: Moment) {
        match entry {
            Entry::Session { id, user, expiry, away_since, last_id, cut_off, will } => {
                if self.sessions.len() >= SESSIONS_MAX && !self.sessions.contains_key(&id) {
                    return;
                }
                let session = self.sessions.entry(id).or_insert_with(|| Session::away(moment.now));
                session.user = user;
                session.expiry = expiry;
                session.last_id = last_id;
                session.cut_off = cut_off || away_since.is_none();
                session.will = will;
                session.on_disk = true;
                // Where only the daemon knew since when, or by a clock that was not set, it counts from now.
                let known = away_since.filter(|since| *since >= SET_SINCE);
                let ago = known.map_or(0, |since| moment.wall.saturating_sub(since));
                session.go_away(Duration::from_millis(ago), moment.now);
            }
            Entry::Received { id, packets } => {
                let Some(session) = self.sessions.get_mut(&id) else { return };
                let packets = packets.into_iter().take(RECEPTIONS_MAX);
                session.received = packets.map(|packet| (packet, Reception::Accepted { kept: READ })).collect();
            }
            Entry::Ended { id } => drop(self.sessions.remove(&id)),
            Entry::Subscribed { id, filter, subscription } => {
                let Some(session) = self.sessions.get_mut(&id) else { return };
                let room = session.subscriptions.len() < SUBSCRIPTIONS_MAX && fits(&filter);
                if room && topics::valid_filter(&filter) {
                    session.subscriptions.insert(filter, subscription);
                }
            }
            Entry::Unsubscribed { id, filter } => {
                self.sessions.get_mut(&id).map(|session| session.subscriptions.remove(&filter));
            }
            Entry::Queued { id, serial, packet, delivery } => {
                self.ledger.saw_serial(serial);
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.restore(Outgoing::read(serial, packet, delivery, READ));
                }
            }
            Entry::Done { id, serial } => {
                self.ledger.saw_serial(serial);
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.restore_done(serial);
                }
            }
            Entry::Retained { message } => {
                let old = self.retained.remove(&message.topic).map_or(0, |old| old.size());
                self.retained_bytes = self.retained_bytes.saturating_sub(old);
                let bytes = self.retained_bytes + message.size();
                if self.retained.len() < RETAINED_MAX && bytes <= RETAINED_BYTES_MAX {
                    self.retained_bytes = bytes;
                    self.retained.insert(message.topic.clone(), message);
                }
            }
            Entry::Cleared { topic } => {
                let old = self.retained.remove(&topic).map_or(0, |old| old.size());
                self.retained_bytes = self.retained_bytes.saturating_sub(old);
            }
        }
    }
}

fn session_entry(id: &Arc<str>, session: &Session, moment: Moment) -> Entry {
    let away_since = match session.presence {
        Presence::Here(_) => None,
        Presence::Away { since, .. } => Some(moment.to_wall(since)),
    };
    Entry::Session {
        id: Arc::clone(id),
        user: session.user.clone(),
        expiry: session.expiry,
        away_since,
        last_id: session.last_id,
        cut_off: session.cut_off,
        will: session.will.clone(),
    }
}

fn received_entry(id: &Arc<str>, session: &Session) -> Entry {
    let accepted = |reception: &Reception| matches!(reception, Reception::Accepted { .. });
    let packets = session.received.iter().filter(|(_, reception)| accepted(reception)).map(|(packet, _)| *packet);
    Entry::Received { id: Arc::clone(id), packets: packets.collect() }
}

fn message_entry(id: &Arc<str>, outgoing: &Outgoing) -> Entry {
    let (serial, packet, delivery) = (outgoing.serial, outgoing.id, outgoing.delivery.clone());
    Entry::Queued { id: Arc::clone(id), serial, packet, delivery }
}

struct Frames {
    bodies: Vec<Vec<u8>>,
    moment: Moment,
}

impl Frames {
    fn push(&mut self, entry: &Entry) {
        match self.bodies.last_mut() {
            Some(body) if body.len() < FRAME_TARGET => encode(body, entry, self.moment),
            Some(_) | None => {
                let mut body = Vec::new();
                encode(&mut body, entry, self.moment);
                self.bodies.push(body);
            }
        }
    }

    fn session(&mut self, id: &Arc<str>, session: &Session) {
        if session.kept() {
            self.push(&session_entry(id, session, self.moment));
        }
        if !session.persistent() {
            return;
        }
        for (filter, subscription) in &session.subscriptions {
            let (id, filter) = (Arc::clone(id), filter.clone());
            self.push(&Entry::Subscribed { id, filter, subscription: *subscription });
        }
        for outgoing in session.all().filter(|outgoing| outgoing.serial > 0) {
            self.push(&message_entry(id, outgoing));
        }
        if !session.received.is_empty() {
            self.push(&received_entry(id, session));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::session::Delivery;
    use super::*;

    #[test]
    fn sessions_share_a_message_after_a_restart_as_they_did_before() {
        let moment = Moment::current();
        let mut body = Vec::new();
        let session = |id: &str| Entry::Session {
            id: Arc::from(id),
            user: None,
            expiry: Some(Duration::from_secs(1000)),
            away_since: Some(moment.wall),
            last_id: 0,
            cut_off: false,
            will: None,
        };
        let queued = |id: &str, serial: u64, payload: &str| {
            let (topic, payload) = ("q/x".to_owned(), payload.into());
            let (properties, expires, origin) = (Vec::new(), None, None);
            let message = Arc::new(Message { topic, payload, qos: 1, retain: false, properties, expires, origin });
            let delivery = Some(Delivery { message, qos: 1, retain: false, identifiers: Vec::new() });
            Entry::Queued { id: Arc::from(id), serial, packet: 1, delivery }
        };
        for (id, serial) in [("a", 1), ("b", 3)] {
            for entry in [session(id), queued(id, serial, "same"), queued(id, serial + 1, id)] {
                encode(&mut body, &entry, moment);
            }
        }
        let (mut state, mut alike) = (State::default(), Alike::default());
        assert!(read_frame(&mut state, &mut alike, &body, moment));
        let of = |id: &str| -> Vec<Arc<Message>> {
            state.sessions[id].all().filter_map(|outgoing| Some(outgoing.delivery.as_ref()?.message.clone())).collect()
        };
        let (a, b) = (of("a"), of("b"));
        assert!(Arc::ptr_eq(&a[0], &b[0]) && !Arc::ptr_eq(&a[1], &b[1]), "{a:?} {b:?}");
        assert_eq!((a[0].payload.as_slice(), b[1].payload.as_slice()), (&b"same"[..], &b"b"[..]));
    }
}
