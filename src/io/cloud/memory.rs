//! What outlives a connection: which message has which packet identifier, what the server's session knows of us, and
//! what each server allows.
//!
//! Shared by all connections of the process, because one client identity has one session whatever it runs over. An
//! identifier is never given to a second message while the first is unacknowledged; when the server has forgotten its
//! session, everything here of it is forgotten too, and acknowledgements of the time before count no more. Only what the
//! new connection itself has sent before it learned so stays: the server took that as new.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use switchback_control::{Seq, Version};

use super::exchange::{Exchanges, Received, Step};
use super::speech::Limits;
use crate::corridor::Pledge;

/// The last identifier for applications' messages of QoS 1. Above stand those of QoS 2 (`corridor::PLEDGED`) and our own,
/// so that no two kinds ever meet.
const LAST: u16 = 64_000;

/// The identifiers of our own packets on one connection: more than are ever open at once.
pub const OWN: std::ops::RangeInclusive<u16> = 65_000..=65_535;

/// So many connections in a row that ended after early messages and without CONNACK, and the server gets no more of
/// them: the standard allows them, some servers hang up. One may have had another cause.
const HANG_UPS_MAX: u8 = 2;

/// Counts how often the server's session began anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generation(u64);

#[derive(Debug)]
pub struct Memory(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    generation: Generation,
    last: u16,
    ids: BTreeMap<Seq, u16>,
    seqs: HashMap<u16, Seq>,
    /// Messages of quality 2.
    exchanges: Exchanges,
    subscribed: bool,
    servers: Vec<Known>,
}

/// A server as one version of MQTT shows it.
#[derive(Debug)]
struct Known {
    server: u8,
    version: Version,
    /// From its last CONNACK.
    limits: Limits,
    hang_ups: u8,
}

impl Memory {
    /// Goes on with the exchanges that were open at the last stop.
    pub fn new(pledges: &[Pledge]) -> Memory {
        Memory(Mutex::new(Inner {
            generation: Generation::default(),
            last: 0,
            ids: BTreeMap::new(),
            seqs: HashMap::new(),
            exchanges: Exchanges::restore(pledges),
            subscribed: false,
            servers: Vec::new(),
        }))
    }

    /// A CONNACK came; `present` as it said, `early` what was sent before it on its connection.
    pub fn begin(&self, present: bool, early: &[Seq]) -> Generation {
        let mut inner = self.lock();
        if !present {
            let ids: BTreeMap<Seq, u16> =
                early.iter().filter_map(|seq| inner.ids.get(seq).map(|id| (*seq, *id))).collect();
            inner.generation = Generation(inner.generation.0 + 1);
            inner.seqs = ids.iter().map(|(seq, id)| (*id, *seq)).collect();
            inner.ids = ids;
            inner.exchanges.forget();
            inner.subscribed = false;
        }
        inner.generation
    }

    /// What may be counted on before CONNACK: what the server last allowed. `None` where it has said nothing yet, or
    /// does not bear messages before CONNACK.
    pub fn limits(&self, server: u8, version: Version) -> Option<Limits> {
        let mut inner = self.lock();
        let known = inner.known(server, version).filter(|known| known.hang_ups < HANG_UPS_MAX);
        known.map(|known| known.limits.clone())
    }

    /// A CONNACK allows this; `early` when messages went before it.
    pub fn allowed(&self, server: u8, version: Version, limits: Limits, early: bool) {
        let mut inner = self.lock();
        match inner.known(server, version) {
            Some(known) => {
                known.limits = limits;
                known.hang_ups = if early { 0 } else { known.hang_ups };
            }
            None => inner.servers.push(Known { server, version, limits, hang_ups: 0 }),
        }
    }

    /// The server hung up after CONNECT and before CONNACK; `early` when messages were the reason that it could have
    /// had. Without them it has other reasons.
    pub fn hung_up(&self, server: u8, version: Version, early: bool) {
        if let Some(known) = self.lock().known(server, version) {
            known.hang_ups = if early { known.hang_ups.saturating_add(1) } else { 0 };
        }
    }

    /// The identifier of a message, and whether it had it before.
    pub fn number(&self, seq: Seq) -> (u16, bool) {
        let mut inner = self.lock();
        if let Some(id) = inner.ids.get(&seq) {
            return (*id, true);
        }
        // The window is far below the number of identifiers. Were it not, the oldest message would lose its own: it is
        // the one most likely set aside.
        if inner.ids.len() >= usize::from(LAST)
            && let Some((_, id)) = inner.ids.pop_first()
        {
            inner.seqs.remove(&id);
        }
        let mut id = inner.last;
        loop {
            id = if id >= LAST { 1 } else { id + 1 };
            if !inner.seqs.contains_key(&id) {
                break;
            }
        }
        inner.last = id;
        inner.ids.insert(seq, id);
        inner.seqs.insert(id, seq);
        (id, false)
    }

    /// Takes an acknowledgement that came on a connection of `generation`; `None` for one that means nothing.
    pub fn acknowledged(&self, generation: Generation, id: u16) -> Option<Seq> {
        let mut inner = self.lock();
        if inner.generation != generation {
            return None;
        }
        let seq = inner.seqs.remove(&id)?;
        inner.ids.remove(&seq);
        Some(seq)
    }

    /// The message will not be sent after all.
    pub fn forget(&self, seq: Seq) {
        let mut inner = self.lock();
        if let Some(id) = inner.ids.remove(&seq) {
            inner.seqs.remove(&id);
        }
    }

    /// The exchange of this message of quality 2.
    pub fn exchange(&self, seq: Seq) -> Option<(u16, Step)> {
        self.lock().exchanges.of(seq)
    }

    /// All of them, in the order of their messages.
    pub fn exchanges(&self) -> Vec<(u16, Seq, Step)> {
        let mut open: Vec<_> = self.lock().exchanges.open().collect();
        open.sort_unstable_by_key(|(_, seq, _)| *seq);
        open
    }

    pub fn is_open(&self, id: u16) -> bool {
        self.lock().exchanges.open().any(|(other, ..)| other == id)
    }

    /// Begins one; `None` while no identifier is free.
    pub fn begin_exchange(&self, seq: Seq) -> Option<u16> {
        self.lock().exchanges.begin(seq)
    }

    /// PUBREC came on a connection of `generation`, or the exchange is to end as if it had.
    pub fn received(&self, generation: Generation, id: u16) -> Received {
        self.of(generation).map_or(Received::Unknown, |mut inner| inner.exchanges.received(id))
    }

    /// It is durable that the server has this one, or it never will be.
    pub fn release(&self, pledge: Pledge) {
        self.lock().exchanges.released(pledge);
    }

    /// PUBCOMP came; `None` where it means nothing.
    pub fn completed(&self, generation: Generation, id: u16) -> Option<Seq> {
        self.of(generation)?.exchanges.completed(id)
    }

    /// A PUBREC refused the message, or it is not sent under this identifier after all.
    pub fn refused(&self, generation: Generation, id: u16) -> Option<Seq> {
        self.of(generation)?.exchanges.refused(id)
    }

    /// PUBCOMP came not long ago.
    pub fn is_completed(&self, seq: Seq) -> bool {
        self.lock().exchanges.is_done(seq)
    }

    /// Whether the server's session is known to hold all our subscriptions.
    pub fn is_subscribed(&self) -> bool {
        self.lock().subscribed
    }

    /// All subscriptions were confirmed on a connection of `generation`.
    pub fn subscribed(&self, generation: Generation) {
        let mut inner = self.lock();
        if inner.generation == generation {
            inner.subscribed = true;
        }
    }

    fn of(&self, generation: Generation) -> Option<MutexGuard<'_, Inner>> {
        Some(self.lock()).filter(|inner| inner.generation == generation)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while the lock is held; a poisoned one still guards whole values.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn known(&mut self, server: u8, version: Version) -> Option<&mut Known> {
        self.servers.iter_mut().find(|known| known.server == server && known.version == version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_keeps_its_identifier_until_it_is_acknowledged() {
        let memory = Memory::new(&[]);
        let generation = memory.begin(true, &[]);
        assert_eq!(memory.number(Seq(7)), (1, false));
        assert_eq!(memory.number(Seq(8)), (2, false));
        assert_eq!(memory.number(Seq(7)), (1, true));
        assert_eq!(memory.acknowledged(generation, 1), Some(Seq(7)));
        assert_eq!(memory.acknowledged(generation, 1), None);
        assert_eq!(memory.number(Seq(7)), (3, false));
    }

    #[test]
    fn after_the_server_forgot_old_acknowledgements_count_no_more() {
        let memory = Memory::new(&[]);
        let before = memory.begin(true, &[]);
        let (id, _) = memory.number(Seq(1));
        memory.subscribed(before);
        let after = memory.begin(false, &[]);
        assert!(!memory.is_subscribed());
        memory.subscribed(before);
        assert!(!memory.is_subscribed());
        assert_eq!(memory.acknowledged(before, id), None);
        let (id, known) = memory.number(Seq(1));
        assert!(!known);
        assert_eq!(memory.acknowledged(before, id), None);
        assert_eq!(memory.acknowledged(after, id), Some(Seq(1)));
    }

    #[test]
    fn what_was_sent_before_the_server_said_that_it_forgot_keeps_its_identifier() {
        let memory = Memory::new(&[]);
        memory.begin(true, &[]);
        let [(early, _), (late, _)] = [Seq(1), Seq(2)].map(|seq| memory.number(seq));
        let generation = memory.begin(false, &[Seq(1)]);
        assert_eq!(memory.acknowledged(generation, late), None);
        assert_eq!(memory.acknowledged(generation, early), Some(Seq(1)));
        assert_eq!(memory.acknowledged(generation, early), None);
    }

    #[test]
    fn a_server_that_hangs_up_on_early_messages_twice_gets_no_more_of_them() {
        let memory = Memory::new(&[]);
        let knows = |version| memory.limits(0, version).is_some();
        assert!(!knows(Version::V5));
        memory.allowed(0, Version::V5, Limits::default(), false);
        assert!(knows(Version::V5) && !knows(Version::V311));
        memory.hung_up(0, Version::V5, true);
        // An answer to early messages, or a hang-up without any: it was something else.
        memory.allowed(0, Version::V5, Limits::default(), true);
        memory.hung_up(0, Version::V5, true);
        memory.hung_up(0, Version::V5, false);
        memory.hung_up(0, Version::V5, true);
        memory.allowed(0, Version::V5, Limits::default(), false);
        assert!(knows(Version::V5));
        memory.hung_up(0, Version::V5, true);
        assert!(!knows(Version::V5));
        memory.begin(false, &[]);
        memory.allowed(0, Version::V5, Limits::default(), false);
        assert!(!knows(Version::V5));
    }

    #[test]
    fn identifiers_go_round_without_meeting_open_ones_or_our_own() {
        let memory = Memory::new(&[]);
        let generation = memory.begin(true, &[]);
        let (kept, _) = memory.number(Seq(0));
        for seq in 1..200_000 {
            let (id, _) = memory.number(Seq(seq));
            assert!(id != 0 && id != kept && !OWN.contains(&id));
            assert_eq!(memory.acknowledged(generation, id), Some(Seq(seq)));
        }
    }

    #[test]
    fn more_open_messages_than_identifiers_do_not_hang() {
        let memory = Memory::new(&[]);
        memory.begin(true, &[]);
        for seq in 0..u64::from(LAST) + 10 {
            memory.number(Seq(seq));
        }
    }
}
