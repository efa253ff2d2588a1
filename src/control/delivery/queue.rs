//! One lane of the outbox: what waits there, what is not yet kept, and what has become of the rest.
//!
//! Knows nothing of connections and of the other lanes. Always true: numbers are given out ascending, what waits is a
//! few ranges of them whatever their count, and a message leaves `unkept` exactly once, with one answer for its
//! application.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use crate::action::{Action, Refusal};
use crate::event::{Lane, Parcel, Seq, Ticket};
use crate::status::LaneStatus;
use crate::time::Instant;
use crate::turn::Turn;

/// A message whose application has not been answered.
#[derive(Clone, Copy, Debug)]
pub struct Unkept {
    pub number: u64,
    pub ticket: Ticket,
    pub size: u32,
    pub at: Instant,
    pub exact: bool,
}

#[derive(Debug)]
pub struct Queue {
    lane: Lane,
    next: u64,
    /// Numbers up to here may have been sent before: sent again, they carry the mark.
    sent_through: u64,
    released_through: u64,
    /// Waiting to be sent, ascending; neighbours are melted.
    backlog: VecDeque<RangeInclusive<u64>>,
    /// How many that is.
    waiting: u64,
    pub in_flight: u64,
    /// Not yet kept, ascending; the first `appended` of them are with the store.
    pub unkept: VecDeque<Unkept>,
    pub appended: usize,
    /// The store said that this lane has reached its size.
    pub full: bool,
    /// Sizes of everything held, ascending, where that is bounded here: in a lane that lives in memory.
    sizes: VecDeque<(u64, u32)>,
    pub bytes: u64,
    pub refused: u64,
    pub rejected: u64,
    pub dropped: u64,
    pub expired: u64,
}

impl Queue {
    /// Starts with what the store found: unreleased numbers in ascending runs, and the highest number ever used.
    pub fn restore(lane: Lane, unreleased: &[RangeInclusive<u64>], highest: u64) -> Queue {
        let backlog: VecDeque<_> = unreleased.iter().filter(|r| !r.is_empty()).cloned().collect();
        let last = backlog.back().map_or(0, |r| *r.end()).max(highest);
        let first = backlog.front().map_or(last + 1, |r| *r.start());
        Queue {
            lane,
            next: last + 1,
            sent_through: last,
            released_through: first.saturating_sub(1),
            waiting: backlog.iter().map(count).sum(),
            backlog,
            in_flight: 0,
            unkept: VecDeque::new(),
            appended: 0,
            full: false,
            sizes: VecDeque::new(),
            bytes: 0,
            refused: 0,
            rejected: 0,
            dropped: 0,
            expired: 0,
        }
    }

    /// Messages here, waiting or in flight.
    pub fn held(&self) -> u64 {
        self.waiting + self.in_flight
    }

    pub fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Every number below this one is released.
    pub fn released_below(&self) -> u64 {
        self.released_through.saturating_add(1)
    }

    /// The number that the next message gets.
    pub fn next(&self) -> u64 {
        self.next
    }

    pub fn status(&self, carried: bool) -> LaneStatus {
        LaneStatus {
            messages: self.held(),
            in_flight: self.in_flight,
            refused: self.refused,
            rejected: self.rejected,
            dropped: self.dropped,
            expired: self.expired,
            carried,
        }
    }

    /// Takes a message in, behind all others.
    pub fn admit(&mut self, turn: &mut Turn, ticket: Ticket, parcel: Parcel, sized: bool) {
        let number = self.next;
        self.next += 1;
        self.unkept.push_back(Unkept { number, ticket, size: parcel.size, at: turn.now, exact: parcel.exact });
        if sized {
            self.sizes.push_back((number, parcel.size));
            self.bytes += u64::from(parcel.size);
        }
        self.waiting += 1;
        match self.backlog.back_mut() {
            Some(last) if *last.end() + 1 == number => *last = *last.start()..=number,
            Some(_) | None => self.backlog.push_back(number..=number),
        }
        turn.ask(Action::Admit { ticket, seq: self.seq(number) });
    }

    /// The number that waits longest.
    pub fn first(&self) -> Option<u64> {
        self.backlog.front().map(|r| *r.start())
    }

    /// What waits longest may not go before it is durable.
    pub fn is_first_held(&self) -> bool {
        let unkept = self.first().and_then(|first| self.find(first)).and_then(|index| self.unkept.get(index));
        unkept.is_some_and(|unkept| unkept.exact)
    }

    /// What waits longest is in flight from now on; and whether it may have been sent before.
    pub fn send_first(&mut self) -> Option<(Seq, bool)> {
        let number = self.take_first()?;
        let again = number <= self.sent_through;
        self.sent_through = self.sent_through.max(number);
        self.in_flight += 1;
        Some((self.seq(number), again))
    }

    /// What was in flight waits again, in front; `numbers` ascending.
    pub fn unsend(&mut self, numbers: &[u64]) {
        self.waiting += numbers.len() as u64;
        self.in_flight = self.in_flight.saturating_sub(numbers.len() as u64);
        for &number in numbers.iter().rev() {
            match self.backlog.front_mut() {
                Some(first) if number + 1 == *first.start() => *first = number..=*first.end(),
                Some(_) | None => self.backlog.push_front(number..=number),
            }
        }
    }

    /// Everything appended up to here is durable: the applications are told.
    pub fn stored(&mut self, turn: &mut Turn, through: u64) -> u64 {
        let mut bytes = 0;
        while self.appended > 0
            && let Some(first) = self.unkept.pop_front_if(|first| first.number <= through)
        {
            self.appended -= 1;
            bytes += u64::from(first.size);
            turn.ask(Action::Accept { ticket: first.ticket });
        }
        bytes
    }

    /// The message is through or given up: its application gets the answer it still waits for. How many bytes that is.
    pub fn settle(&mut self, turn: &mut Turn, number: u64, refusal: Option<Refusal>) -> u64 {
        if let Ok(index) = self.sizes.binary_search_by_key(&number, |(n, _)| *n)
            && let Some((_, size)) = self.sizes.remove(index)
        {
            self.bytes = self.bytes.saturating_sub(u64::from(size));
        }
        let Some(index) = self.find(number) else { return 0 };
        let Some(Unkept { ticket, size, .. }) = self.unkept.remove(index) else { return 0 };
        self.appended -= usize::from(index < self.appended);
        turn.ask(match refusal {
            None => Action::Accept { ticket },
            Some(refusal) => Action::Refuse { ticket, refusal },
        });
        u64::from(size)
    }

    /// Memory has it, which is all that its lane promises. How many bytes no longer wait for that.
    pub fn keep_in_memory(&mut self, turn: &mut Turn, number: u64) -> u64 {
        let Some(Unkept { ticket, size, .. }) = self.find(number).and_then(|index| self.unkept.remove(index)) else {
            return 0;
        };
        turn.ask(Action::Accept { ticket });
        u64::from(size)
    }

    /// Those of this run whose applications have not been answered.
    pub fn unkept_in(&self, run: &RangeInclusive<u64>) -> Vec<u64> {
        let from = self.unkept.partition_point(|unkept| unkept.number < *run.start());
        let through = self.unkept.partition_point(|unkept| unkept.number <= *run.end());
        self.unkept.range(from..through.max(from)).map(|unkept| unkept.number).collect()
    }

    /// These numbers take no memory any more.
    pub fn forget_sizes(&mut self, run: &RangeInclusive<u64>) {
        let from = self.sizes.partition_point(|(number, _)| *number < *run.start());
        let through = self.sizes.partition_point(|(number, _)| *number <= *run.end());
        let gone: u64 = self.sizes.drain(from..through.max(from)).map(|(_, size)| u64::from(size)).sum();
        self.bytes = self.bytes.saturating_sub(gone);
    }

    /// Takes waiting numbers out of the queue for good; what was in flight stays. Returns the runs that were there.
    pub fn take_out(&mut self, range: &RangeInclusive<u64>) -> Vec<RangeInclusive<u64>> {
        let (from, through) = (*range.start(), *range.end());
        let mut out = Vec::new();
        let mut rest = VecDeque::with_capacity(self.backlog.len() + 1);
        for run in self.backlog.drain(..) {
            let common = from.max(*run.start())..=through.min(*run.end());
            if common.is_empty() {
                rest.push_back(run);
                continue;
            }
            let (before, after) = (*run.start()..*common.start(), common.end() + 1..=*run.end());
            if !before.is_empty() {
                rest.push_back(before.start..=before.end - 1);
            }
            if !after.is_empty() {
                rest.push_back(after);
            }
            self.waiting = self.waiting.saturating_sub(count(&common));
            out.push(common);
        }
        self.backlog = rest;
        out
    }

    /// Says what may be forgotten; `in_flight` is the oldest number of this lane that is.
    pub fn release(&mut self, turn: &mut Turn, in_flight: Option<u64>) {
        let oldest = in_flight.into_iter().chain(self.first()).min().unwrap_or(self.next);
        let through = oldest.saturating_sub(1);
        if through > self.released_through {
            self.released_through = through;
            turn.ask(Action::Release { through: self.seq(through) });
        }
    }

    /// The store found older messages after all. Nothing of them may be forgotten before they are sent, whatever was
    /// released meanwhile.
    pub fn recovered(&mut self, turn: &mut Turn, runs: &[RangeInclusive<u64>], highest: u64) {
        self.next = self.next.max(highest.saturating_add(1));
        let front = self.first().unwrap_or(self.next);
        let older: Vec<_> = runs.iter().filter(|run| !run.is_empty() && *run.end() < front).cloned().collect();
        if let Some(first) = older.first() {
            self.released_through = first.start().saturating_sub(1);
            turn.ask(Action::Release { through: self.seq(self.released_through) });
        }
        self.sent_through = self.sent_through.max(highest);
        for run in older.into_iter().rev() {
            self.waiting += count(&run);
            self.backlog.push_front(run);
        }
    }

    pub fn seq(&self, number: u64) -> Seq {
        Seq::new(self.lane, number)
    }

    fn find(&self, number: u64) -> Option<usize> {
        self.unkept.binary_search_by_key(&number, |u| u.number).ok()
    }

    fn take_first(&mut self) -> Option<u64> {
        let first = self.backlog.front_mut()?;
        let number = *first.start();
        if number < *first.end() {
            *first = number + 1..=*first.end();
        } else {
            self.backlog.pop_front();
        }
        self.waiting = self.waiting.saturating_sub(1);
        Some(number)
    }

    #[cfg(test)]
    pub fn backlog(&self) -> &VecDeque<RangeInclusive<u64>> {
        &self.backlog
    }
}

fn count(range: &RangeInclusive<u64>) -> u64 {
    (range.end() - range.start()).saturating_add(1)
}
