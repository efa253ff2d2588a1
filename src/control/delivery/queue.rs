//! One lane of the outbox: its rules, what waits there, what is not yet kept, and what has become of the rest.
//!
//! Knows nothing of connections and of the other lanes. Always true: numbers are given out ascending, what waits is a
//! few runs of them whatever their count, and a message leaves `unkept` exactly once, with one answer for its
//! application. Nothing is released before which something waits or is in flight.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use super::runs::{Runs, length};
use crate::Unreleased;
use crate::action::{Action, Refusal};
use crate::event::{Lane, Parcel, Seq, Ticket};
use crate::settings::{LaneRules, Overflow};
use crate::status::LaneStatus;
use crate::time::Instant;
use crate::turn::Turn;

/// A message whose application has not been answered.
#[derive(Clone, Copy, Debug)]
struct Unkept {
    number: u64,
    ticket: Ticket,
    size: u32,
    at: Instant,
}

#[derive(Debug)]
pub struct Queue {
    lane: Lane,
    pub rules: LaneRules,
    /// The uplink of the moment may carry it, or, without one, any that is there.
    pub carried: bool,
    /// The store said that it has reached its size; up to here lies what would make room.
    pub full: Option<u64>,
    /// When the store was last asked for what is too old here.
    pub sought: Option<Instant>,
    next: u64,
    /// Lower numbers than this were never seen here.
    base: u64,
    /// Numbers up to here may have been sent before: sent again, they carry the mark.
    sent_through: u64,
    released_through: u64,
    waiting: Runs,
    in_flight: u64,
    /// Not yet kept, ascending; the first `appended` of them are with the store.
    unkept: VecDeque<Unkept>,
    unkept_bytes: u64,
    appended: usize,
    /// Of those, what may not go out before it is durable, ascending.
    exact: VecDeque<u64>,
    /// Sizes of everything held, ascending, where that is bounded here: in a lane that lives in memory.
    sizes: VecDeque<(u64, u32)>,
    bytes: u64,
    /// When something of it was last sent, counted in messages.
    pub served: u64,
    pub refused: u64,
    pub rejected: u64,
    dropped: u64,
    expired: u64,
}

impl Queue {
    /// Starts with what the store found.
    pub fn restore(lane: Lane, rules: LaneRules, found: &Unreleased) -> Queue {
        let waiting = Runs::of(&found.runs);
        let last = waiting.last().unwrap_or(0).max(found.highest);
        let base = waiting.first().unwrap_or(last + 1);
        Queue {
            lane,
            rules,
            carried: true,
            full: None,
            sought: None,
            next: last + 1,
            base,
            sent_through: last,
            released_through: base.saturating_sub(1),
            waiting,
            in_flight: 0,
            unkept: VecDeque::new(),
            unkept_bytes: 0,
            appended: 0,
            exact: VecDeque::new(),
            sizes: VecDeque::new(),
            bytes: 0,
            served: 0,
            refused: 0,
            rejected: 0,
            dropped: 0,
            expired: 0,
        }
    }

    /// Messages here, waiting or in flight.
    pub fn held(&self) -> u64 {
        self.waiting.count() + self.in_flight
    }

    pub fn waiting(&self) -> u64 {
        self.waiting.count()
    }

    /// The number that waits longest.
    pub fn first(&self) -> Option<u64> {
        self.waiting.first()
    }

    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// How many, and how many bytes, wait for being kept.
    pub fn unkept(&self) -> (usize, u64) {
        (self.unkept.len(), self.unkept_bytes)
    }

    pub fn in_memory(&self) -> bool {
        self.rules.memory_bytes.is_some()
    }

    /// Every number below this one is released.
    pub fn released_below(&self) -> u64 {
        self.released_through.saturating_add(1)
    }

    /// The number that the next message gets.
    pub fn next(&self) -> u64 {
        self.next
    }

    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    pub fn expired(&self) -> u64 {
        self.expired
    }

    pub fn status(&self) -> LaneStatus {
        LaneStatus {
            messages: self.held(),
            in_flight: self.in_flight,
            refused: self.refused,
            rejected: self.rejected,
            dropped: self.dropped,
            expired: self.expired,
            carried: self.carried,
        }
    }

    /// Takes a message in, behind all others.
    pub fn admit(&mut self, turn: &mut Turn, ticket: Ticket, parcel: Parcel) {
        let number = self.next;
        self.next += 1;
        self.unkept.push_back(Unkept { number, ticket, size: parcel.size, at: turn.now });
        self.unkept_bytes += u64::from(parcel.size);
        if self.in_memory() {
            self.sizes.push_back((number, parcel.size));
            self.bytes += u64::from(parcel.size);
        } else if parcel.exact {
            self.exact.push_back(number);
        }
        self.waiting.push(number..=number);
        turn.ask(Action::Admit { ticket, seq: self.seq(number) });
    }

    /// Answers the application of a message that is not taken.
    pub fn refuse(&mut self, turn: &mut Turn, ticket: Ticket, refusal: Refusal) {
        match refusal {
            Refusal::Dropped => self.dropped += 1,
            Refusal::Full | Refusal::NotConnected => self.refused += 1,
        }
        turn.ask(Action::Refuse { ticket, refusal });
    }

    /// Up to which number what waits must go so that one more of this size is within the bounds: 0 where nothing must,
    /// none where that would not help.
    pub fn room_behind(&self, size: u32) -> Option<u64> {
        let (mut messages, mut bytes, mut through) = (self.held(), self.bytes, 0);
        let most = self.rules.memory_bytes.unwrap_or(u64::MAX);
        let mut waiting = self.waiting.numbers();
        loop {
            if messages < self.rules.max_messages && bytes.saturating_add(u64::from(size)) <= most {
                return Some(through);
            }
            through = waiting.next()?;
            messages -= 1;
            bytes -= self.place_of_size(through).map_or(0, |(_, size)| u64::from(size));
        }
    }

    /// What waits longest may not go before it is durable.
    pub fn is_first_exact(&self) -> bool {
        self.waiting.first().is_some_and(|first| self.exact.binary_search(&first).is_ok())
    }

    /// What waits longest is in flight from now on; and whether it may have been sent before.
    pub fn send_first(&mut self) -> Option<(Seq, bool)> {
        let number = self.waiting.pop()?;
        let again = number <= self.sent_through;
        self.sent_through = self.sent_through.max(number);
        self.in_flight += 1;
        Some((self.seq(number), again))
    }

    /// What was in flight waits again, where it stood.
    pub fn unsend(&mut self, number: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.waiting.insert(number..=number);
    }

    /// What was in flight is through: its application gets the answer it may still wait for.
    pub fn through(&mut self, turn: &mut Turn, number: u64, in_flight: Option<u64>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.forget(number);
        if let Some(unkept) = self.take_unkept(number) {
            turn.ask(Action::Accept { ticket: unkept.ticket });
        }
        self.release(turn, in_flight);
    }

    /// The same for what was not sent after all, because it is too old.
    pub fn expire_in_flight(&mut self, turn: &mut Turn, number: u64, in_flight: Option<u64>) {
        self.expired += 1;
        turn.ask(Action::Discard { from: self.seq(number), through: self.seq(number) });
        self.through(turn, number, in_flight);
    }

    /// What waits in this range is too old.
    pub fn expire(&mut self, turn: &mut Turn, range: &RangeInclusive<u64>, in_flight: Option<u64>) {
        self.expired += self.give_up(turn, range, None, in_flight);
    }

    /// What waits in this range is given up by the rule of the lane, or at an operator's word.
    pub fn drop_waiting(&mut self, turn: &mut Turn, range: &RangeInclusive<u64>, in_flight: Option<u64>) {
        self.dropped += self.give_up(turn, range, Some(Refusal::Dropped), in_flight);
    }

    /// Whoever waits for being kept since this moment or longer waits in vain, and is told so; nothing is in flight.
    pub fn refuse_unkept(&mut self, turn: &mut Turn, since: Instant, refusal: Refusal) {
        let overdue = self.unkept.partition_point(|unkept| unkept.at <= since);
        let numbers: Vec<u64> = self.unkept.range(..overdue).map(|unkept| unkept.number).collect();
        for number in numbers {
            let count = self.give_up(turn, &(number..=number), Some(refusal), None);
            match refusal {
                Refusal::Dropped => self.dropped += count,
                Refusal::Full | Refusal::NotConnected => self.refused += count,
            }
        }
    }

    /// What an application is told for whose message there is no room.
    pub fn no_room(&self) -> Refusal {
        if self.rules.overflow == Overflow::DropNewest { Refusal::Dropped } else { Refusal::Full }
    }

    /// When the first message came that the store does not have, and the first that is not kept at all.
    pub fn fresh_since(&self) -> Option<Instant> {
        self.unkept.get(self.appended).map(|unkept| unkept.at)
    }

    pub fn unkept_since(&self) -> Option<Instant> {
        self.unkept.front().map(|unkept| unkept.at)
    }

    /// Memory has what is due, which is all that this lane promises; how many that were.
    pub fn keep_in_memory(&mut self, turn: &mut Turn, due: impl Fn(Instant) -> bool) -> usize {
        let kept = self.unkept.iter().take_while(|unkept| due(unkept.at)).count();
        for Unkept { ticket, size, .. } in self.unkept.drain(..kept) {
            self.unkept_bytes -= u64::from(size);
            turn.ask(Action::Accept { ticket });
        }
        kept
    }

    /// Has the store keep what is due, and everything before what may not go out otherwise; how many were due.
    pub fn append(&mut self, turn: &mut Turn, due: impl Fn(Instant) -> bool) -> usize {
        let late = self.unkept.range(self.appended..).take_while(|unkept| due(unkept.at)).count();
        let exact = self.exact.back().map_or(0, |last| self.unkept.partition_point(|unkept| unkept.number <= *last));
        let through = exact.max(self.appended + late);
        for unkept in self.unkept.range(self.appended..through) {
            turn.ask(Action::Append { seq: self.seq(unkept.number) });
        }
        self.appended = through;
        late
    }

    /// The store has forgotten what it had not made durable.
    pub fn append_anew(&mut self) {
        self.appended = 0;
    }

    /// Everything appended up to here is durable: the applications are told.
    pub fn stored(&mut self, turn: &mut Turn, through: u64) {
        while self.appended > 0
            && let Some(first) = self.unkept.front().filter(|first| first.number <= through).map(|first| first.number)
            && let Some(first) = self.take_unkept(first)
        {
            turn.ask(Action::Accept { ticket: first.ticket });
        }
    }

    /// The store found older messages after all: they wait in front, and nothing of them may be forgotten before they are
    /// through, whatever was released meanwhile.
    pub fn recovered(&mut self, turn: &mut Turn, runs: &[RangeInclusive<u64>], highest: u64) {
        self.next = self.next.max(highest.saturating_add(1));
        let older: Vec<_> = runs.iter().filter(|run| !run.is_empty() && *run.end() < self.base).cloned().collect();
        let Some(first) = older.first().map(|run| *run.start()) else { return };
        self.base = first;
        self.released_through = first.saturating_sub(1);
        turn.ask(Action::Release { through: self.seq(self.released_through) });
        older.into_iter().for_each(|run| self.waiting.insert(run));
    }

    pub fn seq(&self, number: u64) -> Seq {
        Seq::new(self.lane, number)
    }

    /// Takes what waits in this range out for good, and answers for it; how many that were.
    fn give_up(
        &mut self,
        turn: &mut Turn,
        range: &RangeInclusive<u64>,
        refusal: Option<Refusal>,
        in_flight: Option<u64>,
    ) -> u64 {
        let mut count = 0;
        for run in self.waiting.take(range) {
            count += length(&run);
            let from = self.unkept.partition_point(|unkept| unkept.number < *run.start());
            while let Some(number) = self.unkept.get(from).map(|u| u.number).filter(|number| *number <= *run.end())
                && let Some(Unkept { ticket, .. }) = self.take_unkept(number)
            {
                turn.ask(match refusal {
                    Some(refusal) => Action::Refuse { ticket, refusal },
                    None => Action::Accept { ticket },
                });
            }
            self.forget_sizes(&run);
            turn.ask(Action::Discard { from: self.seq(*run.start()), through: self.seq(*run.end()) });
        }
        self.release(turn, in_flight);
        count
    }

    /// Says what may be forgotten; `in_flight` is the oldest number of this lane that is.
    fn release(&mut self, turn: &mut Turn, in_flight: Option<u64>) {
        let oldest = in_flight.into_iter().chain(self.waiting.first()).min().unwrap_or(self.next);
        let through = oldest.saturating_sub(1);
        if through > self.released_through {
            self.released_through = through;
            turn.ask(Action::Release { through: self.seq(through) });
        }
    }

    fn take_unkept(&mut self, number: u64) -> Option<Unkept> {
        let index = self.unkept.binary_search_by_key(&number, |unkept| unkept.number).ok()?;
        let unkept = self.unkept.remove(index)?;
        self.unkept_bytes -= u64::from(unkept.size);
        self.appended -= usize::from(index < self.appended);
        if let Ok(index) = self.exact.binary_search(&number) {
            self.exact.remove(index);
        }
        Some(unkept)
    }

    fn place_of_size(&self, number: u64) -> Option<(usize, u32)> {
        let index = self.sizes.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        self.sizes.get(index).map(|(_, size)| (index, *size))
    }

    /// It takes no memory any more.
    fn forget(&mut self, number: u64) {
        if let Some((index, size)) = self.place_of_size(number) {
            self.sizes.remove(index);
            self.bytes -= u64::from(size);
        }
    }

    fn forget_sizes(&mut self, run: &RangeInclusive<u64>) {
        let from = self.sizes.partition_point(|(number, _)| *number < *run.start());
        let through = self.sizes.partition_point(|(number, _)| *number <= *run.end());
        self.bytes -= self.sizes.drain(from..through.max(from)).map(|(_, size)| u64::from(size)).sum::<u64>();
    }

    #[cfg(test)]
    pub fn runs(&self) -> &VecDeque<RangeInclusive<u64>> {
        self.waiting.runs()
    }
}
