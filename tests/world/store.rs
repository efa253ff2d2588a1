//! The store: a log for each lane on disk, appended, synced after a while, released; it can be slow, full, broken,
//! unreadable at the start, and heal.
//!
//! What is durable survives a crash; what was only appended does not. A log is made of segments, and only a whole one makes
//! room. A release may be lost in a crash: then the message is sent again, which is allowed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;

use switchback_control::{Event, Lane, Seq, Unreleased};

use super::{Dice, Source, What, World};

/// A body that somebody has to have, as far as the world is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Body {
    pub size: u32,
    pub exact: bool,
    /// When nobody wants it any more.
    pub expires: Option<u64>,
}

/// Segments in a full log.
const SEGMENTS: u64 = 4;
/// How far above everything a lane is numbered whose store cannot be read.
const FAR: u64 = 1 << 24;

#[derive(Debug, Default)]
pub struct Log {
    limit: u64,
    /// Numbers and sizes of what is durable.
    durable: BTreeMap<u64, u64>,
    /// The last number and the bytes of each segment, oldest first.
    segments: VecDeque<(u64, u64)>,
    /// Appended, and not yet durable.
    pending: VecDeque<u64>,
    /// Released in memory, and what a crash leaves of that.
    released: u64,
    kept_release: u64,
    /// The front at which `LaneFull` was last told.
    full: Option<u64>,
    /// It cannot be read; or it could be read only now, and releases from before do not count up to the first number.
    unreadable: bool,
    fence: Option<u64>,
}

#[derive(Debug, Default)]
pub struct Store {
    logs: Vec<Log>,
    syncing: bool,
    /// `Some(full)` while it fails.
    pub failing: Option<bool>,
    told: bool,
    pub slow: bool,
    /// The next start finds it unreadable.
    pub spoiled: bool,
}

impl Log {
    fn used(&self) -> u64 {
        self.segments.iter().map(|(_, bytes)| bytes).sum()
    }

    fn last(&self) -> u64 {
        self.durable.keys().next_back().copied().unwrap_or(0)
    }

    /// Writes one message, if there is room.
    fn write(&mut self, number: u64, size: u64) -> bool {
        if self.used() + size > self.limit {
            return false;
        }
        let part = self.limit / SEGMENTS;
        match self.segments.back_mut() {
            Some((last, bytes)) if *bytes + size <= part => (*last, *bytes) = (number, *bytes + size),
            _ => self.segments.push_back((number, size)),
        }
        self.durable.insert(number, size);
        true
    }

    fn release(&mut self, through: u64, kept: bool) {
        if self.unreadable {
            return;
        }
        if let Some(first) = self.fence {
            if through >= first {
                return;
            }
            self.fence = None;
        }
        self.released = self.released.max(through);
        // What the cloud has acknowledged meanwhile need not be written any more.
        while self.pending.front().is_some_and(|number| *number <= self.released) {
            self.pending.pop_front();
        }
        while self.segments.front().is_some_and(|(last, _)| *last <= self.released) {
            self.segments.pop_front();
        }
        if kept {
            self.kept_release = self.released;
            self.durable = self.durable.split_off(&(self.released + 1));
        }
    }

    fn crash(&mut self) {
        self.pending.clear();
        self.full = None;
        self.fence = None;
        self.released = self.kept_release;
        // What comes back with a lost release has its place in one segment.
        let known = self.segments.front().map_or(u64::MAX, |(last, _)| *last);
        let lost: u64 = self.durable.range(..=self.last()).map(|(_, size)| size).sum();
        if lost > self.used() {
            self.segments.push_front((known.min(self.last()), lost - self.used()));
        }
    }

    fn runs(&self) -> Vec<RangeInclusive<u64>> {
        let mut runs: Vec<RangeInclusive<u64>> = Vec::new();
        for &number in self.durable.keys() {
            match runs.last_mut() {
                Some(run) if *run.end() + 1 == number => *run = *run.start()..=number,
                _ => runs.push(number..=number),
            }
        }
        runs
    }
}

impl Store {
    pub fn new(limits: &[u64]) -> Store {
        let log = |limit: &u64| Log { limit: *limit, ..Log::default() };
        Store { logs: limits.iter().map(log).collect(), ..Store::default() }
    }

    pub fn has(&self, seq: Seq) -> bool {
        let log = &self.logs[seq.lane().0 as usize];
        log.durable.contains_key(&seq.number()) || seq.number() <= log.released
    }

    /// What a starting daemon finds in each lane, of which so much was ever used.
    pub fn found(&mut self, highest: &[u64]) -> Vec<Unreleased> {
        let spoiled = std::mem::take(&mut self.spoiled);
        let found = |(log, highest): (&mut Log, &u64)| {
            log.unreadable = spoiled;
            // What was released was used, even if no message had that number.
            let highest = log.released.max(*highest);
            match spoiled {
                true => Unreleased { runs: Vec::new(), highest: highest + FAR },
                false => Unreleased { runs: log.runs(), highest },
            }
        };
        self.logs.iter_mut().zip(highest).map(found).collect()
    }

    /// Numbers and sizes in each lane that can be read, and in each that cannot.
    pub fn durable(&self, readable: bool) -> Vec<BTreeMap<u64, u64>> {
        let of = |log: &Log| if log.unreadable == readable { BTreeMap::new() } else { log.durable.clone() };
        self.logs.iter().map(of).collect()
    }

    pub fn is_unreadable(&self) -> bool {
        self.logs.iter().any(|log| log.unreadable)
    }

    pub fn crash(&mut self) {
        self.logs.iter_mut().for_each(Log::crash);
        self.syncing = false;
        self.told = false;
    }
}

impl World {
    fn size_of(&self, seq: Seq) -> u64 {
        self.bodies.get(&seq.0).map_or(0, |body| u64::from(body.size))
    }

    pub fn append(&mut self, seq: Seq) {
        if self.store.failing.is_some() && self.store.told {
            return;
        }
        self.store.logs[seq.lane().0 as usize].pending.push_back(seq.number());
        self.sync_soon();
    }

    fn sync_soon(&mut self) {
        if !self.store.syncing {
            self.store.syncing = true;
            let delay = match self.dice.between(0, 99) {
                _ if self.store.slow => self.dice.spread(500, 20_000),
                0 => self.dice.spread(50, 5_000),
                _ => self.dice.between(1, 20),
            };
            let life = self.life();
            self.after(delay, What::Sync(life));
        }
    }

    pub fn sync(&mut self, life: u32) {
        if life != self.life() || !self.store.syncing {
            return;
        }
        self.store.syncing = false;
        if self.store.failing.is_some() {
            return self.store_fails();
        }
        self.write_pending(true);
    }

    fn store_fails(&mut self) {
        let Some(full) = self.store.failing else { return };
        self.store.logs.iter_mut().for_each(|log| log.pending.clear());
        if !std::mem::replace(&mut self.store.told, true) {
            self.tell(Source::Store, 0, Event::StorageFailed { full });
        }
    }

    /// Writes what there is room for, in every lane, and says so.
    fn write_pending(&mut self, telling: bool) {
        for index in 0..self.store.logs.len() {
            let lane = Lane(index as u8);
            let mut written = None;
            while let Some(number) = self.store.logs[index].pending.front().copied() {
                let size = self.size_of(Seq::new(lane, number));
                if !self.store.logs[index].write(number, size) {
                    break;
                }
                self.store.logs[index].pending.pop_front();
                written = Some(number);
            }
            if let Some(number) = written.filter(|_| telling) {
                self.tell(Source::Store, 0, Event::Stored { through: Seq::new(lane, number) });
            }
            if telling {
                self.tell_room(lane);
            }
        }
    }

    /// Says that a lane has reached its size, again for every part that went and was not enough; or that it has room again.
    fn tell_room(&mut self, lane: Lane) {
        let log = &mut self.store.logs[lane.0 as usize];
        if log.pending.is_empty() {
            if log.full.take().is_some() {
                self.tell(Source::Store, 0, Event::LaneRoomy { lane });
            }
            return;
        }
        let Some((front, _)) = log.segments.front().copied() else { return };
        if log.full.replace(front) != Some(front) {
            self.tell(Source::Store, 0, Event::LaneFull { through: Seq::new(lane, front) });
        }
    }

    pub fn store_heals(&mut self) {
        self.store.failing = None;
        self.store.slow = false;
        if !self.store.told || !self.running() {
            return;
        }
        self.store.told = false;
        // Which it says first is chance.
        let healed_first = self.lots.chance(500);
        if healed_first {
            self.tell(Source::Store, 0, Event::StorageHealed);
        }
        for index in 0..self.store.logs.len() {
            let log = &mut self.store.logs[index];
            // What was full is found out anew.
            let full = log.full.take().is_some();
            let lane = Lane(index as u8);
            let found = std::mem::take(&mut log.unreadable).then(|| {
                log.fence = log.durable.keys().next().copied();
                (log.runs(), log.last().max(log.released))
            });
            if full {
                self.tell(Source::Store, 0, Event::LaneRoomy { lane });
            }
            if let Some((runs, highest)) = found.filter(|_| self.plan.settings.lanes[index].memory_bytes.is_none()) {
                self.tell(Source::Store, 0, Event::Recovered { lane, runs, highest });
            }
        }
        if !healed_first {
            self.tell(Source::Store, 0, Event::StorageHealed);
        }
    }

    /// It is found out at the start that the store cannot be read.
    pub fn store_starts(&mut self) {
        if self.store.is_unreadable() {
            self.store.failing = Some(false);
            self.store_fails();
        }
    }

    pub fn release(&mut self, through: Seq) {
        let kept = !self.dice.chance(50);
        self.store.logs[through.lane().0 as usize].release(through.number(), kept);
        // Bodies that a lost release brings back are still asked for their age.
        let log = &self.store.logs[through.lane().0 as usize];
        if self.store.failing.is_none() && (!log.pending.is_empty() || log.full.is_some()) {
            self.sync_soon();
        }
    }

    /// They will never be sent: what was not written yet need not be.
    pub fn discard(&mut self, from: Seq, through: Seq) {
        let log = &mut self.store.logs[from.lane().0 as usize];
        log.pending.retain(|number| !(from.number()..=through.number()).contains(number));
        if log.pending.is_empty() && log.full.is_some() {
            self.tell_room(from.lane());
        }
    }

    /// A clean stop waits for the store.
    pub fn sync_now(&mut self) {
        if self.store.failing.is_none() {
            self.write_pending(false);
        }
    }

    /// The store looks its messages over for such as are too old, in some of its lanes; what it says may be late.
    pub fn look_for_expired(&mut self) {
        let delay = self.lots.spread(5_000, 300_000);
        self.after(delay, What::LookForExpired);
        if !self.running() || self.store.failing.is_some() {
            return;
        }
        for index in 0..self.store.logs.len() {
            let lane = Lane(index as u8);
            let old = |number: &&u64| {
                let body = self.bodies.get(&Seq::new(lane, **number).0);
                body.and_then(|body| body.expires).is_some_and(|at| at <= self.now)
            };
            let found: BTreeSet<u64> = self.store.logs[index].durable.keys().filter(old).copied().collect();
            let mut runs: Vec<(u64, u64)> = Vec::new();
            for number in found {
                match runs.last_mut() {
                    Some((_, last)) if *last + 1 == number => *last = number,
                    _ => runs.push((number, number)),
                }
            }
            for (from, through) in runs.into_iter().take(20) {
                let late = if self.lots.chance(200) { self.lots.spread(1, 5_000) } else { 0 };
                let (from, through) = (Seq::new(lane, from), Seq::new(lane, through));
                self.tell(Source::Store, late, Event::Expired { attempt: None, from, through });
            }
        }
    }
}

/// How many bytes each lane's log may have: small enough to be reached in a quarter of an hour, or never.
pub fn limits(lanes: usize, rough: bool, dice: &mut Dice) -> Vec<u64> {
    let limit = |_| if rough && dice.chance(600) { dice.spread(20_000, 2_000_000) } else { 1 << 40 };
    (0..lanes).map(limit).collect()
}
