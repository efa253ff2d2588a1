//! The store: appended, synced after a while, released; it can be slow, full, broken, and heal.
//!
//! What is durable survives a crash; what was only appended does not.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use switchback_control::{Event, Seq};

use super::{Source, What, World};

#[derive(Debug, Default)]
pub struct Store {
    pub durable: BTreeSet<u64>,
    pending: Vec<u64>,
    syncing: bool,
    /// `Some(full)` while it fails.
    pub failing: Option<bool>,
    told: bool,
    pub slow: bool,
}

impl Store {
    pub fn unreleased(&self) -> Vec<RangeInclusive<u64>> {
        let mut runs: Vec<RangeInclusive<u64>> = Vec::new();
        for &seq in &self.durable {
            match runs.last_mut() {
                Some(run) if *run.end() + 1 == seq => *run = *run.start()..=seq,
                _ => runs.push(seq..=seq),
            }
        }
        runs
    }

    pub fn crash(&mut self) {
        self.pending.clear();
        self.syncing = false;
        self.told = false;
    }

    pub fn sync_now(&mut self) {
        if self.failing.is_none() {
            self.durable.extend(self.pending.drain(..));
        }
    }
}

impl World {
    pub fn append(&mut self, seq: u64) {
        if self.store.failing.is_some() && self.store.told {
            return;
        }
        self.store.pending.push(seq);
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
        if let Some(full) = self.store.failing {
            self.store.pending.clear();
            if !self.store.told {
                self.store.told = true;
                self.tell(Source::Store, 0, Event::StorageFailed { full });
            }
            return;
        }
        let through = self.store.pending.iter().copied().max();
        self.store.durable.extend(self.store.pending.drain(..));
        if let Some(through) = through {
            self.tell(Source::Store, 0, Event::Stored { through: Seq(through) });
        }
    }

    pub fn store_heals(&mut self) {
        self.store.failing = None;
        self.store.slow = false;
        if self.store.told && self.running() {
            self.store.told = false;
            self.tell(Source::Store, 0, Event::StorageHealed);
        }
    }

    pub fn release(&mut self, through: u64) {
        // A release may be lost in a crash: then the message is sent again, which is allowed.
        if !self.dice.chance(50) {
            self.store.durable = self.store.durable.split_off(&(through + 1));
        }
    }
}
