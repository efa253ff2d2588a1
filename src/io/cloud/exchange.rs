//! Messages of QoS 2 on their way to the cloud: which has which identifier, and how far it is (MQTT 5.0 section 4.3.3).
//!
//! An exchange begins before its PUBLISH is written, and ends with PUBCOMP or a PUBREC that refuses. In between nothing
//! ends it but a server that has forgotten its session: an identifier given to another message too early would make the
//! server take that one for a repetition, and lose it. Pure; that each step is durable in time is the connection's duty.

use std::collections::{BTreeMap, VecDeque};

use switchback_control::Seq;

use crate::corridor::{PLEDGED, Pledge};

/// So many completed messages are remembered. Of one that was completed when its connection was given up, the heart may
/// not have heard and orders it again; more events cannot be on their way to it.
const DONE_MAX: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The server may have it.
    Published,
    /// The server has it, and our disk does not know yet.
    Received,
    /// From now on only PUBREL is said.
    Released,
}

#[derive(Debug)]
pub struct Exchanges {
    open: BTreeMap<u16, (Seq, Step)>,
    /// Given out last.
    last: u16,
    done: VecDeque<Seq>,
}

/// What a PUBREC means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// To be made durable, then released.
    First(Pledge),
    /// Being made durable.
    Pending,
    /// PUBREL was said before; it may be said again.
    Again,
    /// No such exchange.
    Unknown,
}

impl Exchanges {
    /// Goes on with what was open at the last stop.
    pub fn restore(pledges: &[Pledge]) -> Exchanges {
        let step = |pledge: &Pledge| if pledge.received { Step::Released } else { Step::Published };
        let known = pledges.iter().filter(|pledge| PLEDGED.contains(&pledge.id));
        let open: BTreeMap<u16, (Seq, Step)> = known.map(|pledge| (pledge.id, (pledge.seq, step(pledge)))).collect();
        Exchanges { open, last: *PLEDGED.end(), done: VecDeque::new() }
    }

    /// The exchange of this message.
    pub fn of(&self, seq: Seq) -> Option<(u16, Step)> {
        self.open.iter().find(|(_, (other, _))| *other == seq).map(|(id, (_, step))| (*id, *step))
    }

    pub fn open(&self) -> impl Iterator<Item = (u16, Seq, Step)> {
        self.open.iter().map(|(id, (seq, step))| (*id, *seq, *step))
    }

    /// An identifier for this message; they go round, so that each rests. None while all are taken.
    pub fn begin(&mut self, seq: Seq) -> Option<u16> {
        let after = (self.last.saturating_add(1)..=*PLEDGED.end()).chain(PLEDGED);
        let id = after.into_iter().find(|id| !self.open.contains_key(id))?;
        self.last = id;
        self.open.insert(id, (seq, Step::Published));
        Some(id)
    }

    /// PUBREC came, or the exchange is to end as if it had: PUBREL ends it whether the server knows it or not.
    pub fn received(&mut self, id: u16) -> Received {
        match self.open.get_mut(&id) {
            None => Received::Unknown,
            Some((_, Step::Released)) => Received::Again,
            Some((_, Step::Received)) => Received::Pending,
            Some((seq, step @ Step::Published)) => {
                *step = Step::Received;
                Received::First(Pledge { seq: *seq, id, received: true })
            }
        }
    }

    /// Our disk knows that the server has it, or cannot.
    pub fn released(&mut self, pledge: Pledge) {
        if let Some((seq, step @ Step::Received)) = self.open.get_mut(&pledge.id)
            && *seq == pledge.seq
        {
            *step = Step::Released;
        }
    }

    /// PUBCOMP came; the message is through, unless nobody had released it.
    pub fn completed(&mut self, id: u16) -> Option<Seq> {
        let seq = self.end(id, Step::Released)?;
        self.done.push_back(seq);
        if self.done.len() > DONE_MAX {
            self.done.pop_front();
        }
        Some(seq)
    }

    /// PUBREC refused it.
    pub fn refused(&mut self, id: u16) -> Option<Seq> {
        self.end(id, Step::Published)
    }

    pub fn is_done(&self, seq: Seq) -> bool {
        self.done.contains(&seq)
    }

    /// The server has forgotten all of them.
    pub fn forget(&mut self) {
        self.open.clear();
    }

    fn end(&mut self, id: u16, at: Step) -> Option<Seq> {
        let (seq, _) = *self.open.get(&id).filter(|(_, step)| *step == at)?;
        self.open.remove(&id);
        Some(seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_exchange_goes_through_its_steps_once() {
        let mut exchanges = Exchanges::restore(&[]);
        let id = exchanges.begin(Seq(1)).unwrap();
        assert_eq!(exchanges.completed(id), None);
        assert_eq!(exchanges.received(id), Received::First(Pledge { seq: Seq(1), id, received: true }));
        assert_eq!((exchanges.received(id), exchanges.completed(id)), (Received::Pending, None));
        exchanges.released(Pledge { seq: Seq(1), id, received: true });
        assert_eq!((exchanges.received(id), exchanges.refused(id)), (Received::Again, None));
        assert_eq!((exchanges.completed(id), exchanges.completed(id)), (Some(Seq(1)), None));
        assert!(exchanges.is_done(Seq(1)) && exchanges.received(id) == Received::Unknown);
    }

    #[test]
    fn what_was_open_at_the_last_stop_is_open() {
        let pledge = |seq, id, received| Pledge { seq: Seq(seq), id, received };
        let exchanges = Exchanges::restore(&[pledge(1, 64_001, false), pledge(2, 64_100, true), pledge(3, 7, true)]);
        assert_eq!(exchanges.of(Seq(1)), Some((64_001, Step::Published)));
        assert_eq!(exchanges.of(Seq(2)), Some((64_100, Step::Released)));
        assert_eq!(exchanges.of(Seq(3)), None);
    }

    #[test]
    fn an_identifier_rests_as_long_as_may_be_and_there_is_an_end_of_them() {
        let mut exchanges = Exchanges::restore(&[]);
        let ids: Vec<u16> = (0..256).map(|n| exchanges.begin(Seq(n)).unwrap()).collect();
        assert_eq!((ids[0], ids[255]), (*PLEDGED.start(), *PLEDGED.end()));
        assert_eq!(exchanges.begin(Seq(256)), None);
        for id in [ids[3], ids[1]] {
            exchanges.refused(id);
        }
        assert_eq!([256, 257].map(|n| exchanges.begin(Seq(n)).unwrap()), [ids[1], ids[3]]);
    }

    proptest! {
        /// Whatever the server says and whenever.
        #[test]
        fn no_identifier_has_two_messages_and_no_message_ends_twice(
            words in prop::collection::vec((0..5u8, 0..8u16), 0..400)
        ) {
            let mut exchanges = Exchanges::restore(&[]);
            let (mut next, mut ended) = (0, std::collections::HashSet::new());
            for (word, place) in words {
                let known = exchanges.open().map(|(id, ..)| id).nth(usize::from(place));
                let id = known.unwrap_or(*PLEDGED.start() + place);
                let over = match word {
                    0 => {
                        let taken: Vec<u16> = exchanges.open().map(|(id, ..)| id).collect();
                        next += 1;
                        let id = exchanges.begin(Seq(next)).unwrap();
                        prop_assert!(!taken.contains(&id));
                        None
                    }
                    1 => {
                        exchanges.received(id);
                        None
                    }
                    2 => {
                        let seq = exchanges.open().find(|(other, ..)| *other == id).map_or(Seq(0), |(_, seq, _)| seq);
                        exchanges.released(Pledge { seq, id, received: true });
                        None
                    }
                    3 => exchanges.completed(id),
                    _ => exchanges.refused(id),
                };
                if let Some(seq) = over {
                    prop_assert!(ended.insert(seq) && exchanges.of(seq).is_none());
                }
                prop_assert_eq!(exchanges.open().count() + ended.len(), next as usize);
                if exchanges.open().count() == 200 {
                    break;
                }
            }
        }
    }
}
