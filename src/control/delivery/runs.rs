//! A set of numbers as ascending runs: a million waiting messages are one of them.
//!
//! Always true: runs are in order, none is empty, and neighbours are melted. Taking from the front, adding at the back and
//! cutting a stretch out cost no more than finding the place.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

#[derive(Debug, Default)]
pub struct Runs {
    runs: VecDeque<RangeInclusive<u64>>,
    count: u64,
}

impl Runs {
    /// Of runs as the store tells them: ascending, not overlapping; what is not so is left out.
    pub fn of(runs: &[RangeInclusive<u64>]) -> Runs {
        let mut all = Runs::default();
        for run in runs.iter().filter(|run| !run.is_empty()) {
            if all.last().is_none_or(|last| last < *run.start()) {
                all.push(run.clone());
            }
        }
        all
    }

    /// How many numbers there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn first(&self) -> Option<u64> {
        self.runs.front().map(|run| *run.start())
    }

    pub fn last(&self) -> Option<u64> {
        self.runs.back().map(|run| *run.end())
    }

    /// All of them, ascending.
    pub fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        self.runs.iter().cloned().flatten()
    }

    /// Adds a run behind all others.
    pub fn push(&mut self, run: RangeInclusive<u64>) {
        self.count += length(&run);
        match self.runs.back_mut() {
            Some(last) if last.end().checked_add(1) == Some(*run.start()) => *last = *last.start()..=*run.end(),
            Some(_) | None => self.runs.push_back(run),
        }
    }

    /// Adds a run wherever it belongs; none of its numbers may be there.
    pub fn insert(&mut self, run: RangeInclusive<u64>) {
        self.count += length(&run);
        let place = self.runs.partition_point(|other| other.end() < run.start());
        let before = place.checked_sub(1).and_then(|before| self.runs.get(before));
        let joins_before = before.is_some_and(|before| before.end().checked_add(1) == Some(*run.start()));
        let joins_behind = self.runs.get(place).is_some_and(|behind| run.end().checked_add(1) == Some(*behind.start()));
        let behind = if joins_behind { self.runs.remove(place) } else { None };
        let run = *run.start()..=behind.map_or(*run.end(), |behind| *behind.end());
        match self.runs.get_mut(place.wrapping_sub(1)).filter(|_| joins_before) {
            Some(before) => *before = *before.start()..=*run.end(),
            None => self.runs.insert(place, run),
        }
    }

    /// Takes the lowest number out.
    pub fn pop(&mut self) -> Option<u64> {
        let first = self.runs.front_mut()?;
        let number = *first.start();
        if number < *first.end() {
            *first = number + 1..=*first.end();
        } else {
            self.runs.pop_front();
        }
        self.count -= 1;
        Some(number)
    }

    /// Takes everything between these two out, both included: the runs that were there.
    pub fn take(&mut self, range: &RangeInclusive<u64>) -> Vec<RangeInclusive<u64>> {
        let from = self.runs.partition_point(|run| run.end() < range.start());
        let through = self.runs.partition_point(|run| run.start() <= range.end());
        let mut taken: Vec<_> = self.runs.drain(from..through.max(from)).collect();
        // What sticks out at either end stays.
        if let Some(last) = taken.last_mut().filter(|last| last.end() > range.end()) {
            self.runs.insert(from, *range.end() + 1..=*last.end());
            *last = *last.start()..=*range.end();
        }
        if let Some(first) = taken.first_mut().filter(|first| first.start() < range.start()) {
            self.runs.insert(from, *first.start()..=*range.start() - 1);
            *first = *range.start()..=*first.end();
        }
        self.count -= taken.iter().map(length).sum::<u64>();
        taken
    }

    #[cfg(test)]
    pub fn runs(&self) -> &VecDeque<RangeInclusive<u64>> {
        &self.runs
    }
}

pub fn length(run: &RangeInclusive<u64>) -> u64 {
    (run.end() - run.start()).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    #[test]
    fn runs_are_a_set_of_numbers_whatever_is_done_to_them() {
        let (mut runs, mut set) = (Runs::default(), BTreeSet::new());
        let mut dice = 1u64;
        let mut roll = |most: u64| {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) % most
        };
        for _ in 0..20_000 {
            let (from, length) = (roll(200), roll(9));
            let range = from..=from + length;
            match roll(3) {
                0 if range.clone().all(|n| !set.contains(&n)) => {
                    set.extend(range.clone());
                    runs.insert(range);
                }
                1 => {
                    let taken: Vec<u64> = runs.take(&range).into_iter().flatten().collect();
                    let expected: Vec<u64> = range.filter(|n| set.remove(n)).collect();
                    assert_eq!(taken, expected);
                }
                _ => assert_eq!(runs.pop(), set.pop_first()),
            }
            assert!(runs.numbers().eq(set.iter().copied()));
            assert_eq!(runs.count(), set.len() as u64);
            let neighbours = runs.runs().iter().zip(runs.runs().iter().skip(1));
            neighbours.for_each(|(a, b)| assert!(a.end() + 1 < *b.start()));
        }
    }
}
