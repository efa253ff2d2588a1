//! Which stored messages are too old (R-SF-6).
//!
//! A message says itself how long it may wait, in its MQTT message expiry interval, counted from its acceptance. Always
//! true: a look costs a bounded number of records and begins at the oldest; how old something is, the clock says. What is
//! too old among much that is not is found by going on, look after look, where the last one ended, round and round.

use std::io;

use flowsdk::mqtt_serde::mqttv5::common::properties::Property;

use crate::io::clock;
use crate::io::packet::properties_from_bytes;
use crate::outbox::{Disk, Outbox, Record};

/// Records of one look, at most: some milliseconds.
const LOOK_MAX: usize = 1024;
/// After so many of the oldest that may stay, a look goes on where the last one ended: what is behind them is mostly younger.
const FRESH_MAX: usize = 64;

/// How far the looks have come.
#[derive(Default)]
pub(super) struct Look {
    /// Everything up to here was found too old.
    through: u64,
    /// The last look that left the oldest ended here; zero when it saw the end.
    at: u64,
    /// There is to be a look soon, until one sees the end.
    through_all: bool,
}

impl Look {
    /// Begins a round in which one look comes soon after the other.
    pub fn look_through(&mut self) {
        if !self.through_all {
            (self.through_all, self.at) = (true, 0);
        }
    }
}

/// Runs of numbers that are too old at this wall time (`clock::least_wall`), and whether the next look is due soon.
pub(super) fn look<D: Disk>(outbox: &mut Outbox<D>, look: &mut Look, wall: u64) -> (Vec<(u64, u64)>, bool) {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let (mut after, mut fresh) = (look.through, 0);
    for _ in 0..LOOK_MAX {
        let Some(record) = next(outbox, after) else {
            (look.at, look.through_all) = (0, false);
            return (runs, false);
        };
        after = record.seq.number();
        if !is_expired(&record, wall) {
            fresh += 1;
            if fresh == FRESH_MAX {
                after = after.max(look.at);
            }
            continue;
        }
        if fresh == 0 {
            look.through = after;
        }
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == after => *last = after,
            Some(_) | None => runs.push((after, after)),
        }
    }
    look.at = look.at.max(after);
    (runs, look.through_all || fresh < FRESH_MAX)
}

fn next<D: Disk>(outbox: &mut Outbox<D>, after: u64) -> Option<Record> {
    let trouble = |error: io::Error| log::debug!("outbox: ages cannot be looked at: {error}");
    outbox.next(after).map_err(trouble).ok().flatten()
}

fn is_expired(record: &Record, wall: u64) -> bool {
    if record.properties.is_empty() {
        return false;
    }
    let seconds = properties_from_bytes(&record.properties).into_iter().find_map(|property| match property {
        Property::MessageExpiryInterval(seconds) => Some(u64::from(seconds)),
        _ => None,
    });
    seconds.is_some_and(|seconds| clock::age_of(record.accepted, &record.id, wall) > seconds * 1000)
}
