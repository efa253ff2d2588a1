//! Which stored messages are too old (R-SF-6).
//!
//! A message says itself how long it may wait, in its MQTT message expiry interval, counted from its acceptance. Always
//! true: a look costs a bounded number of records and begins at the oldest; how old something is, the clock says.

use std::io;

use flowsdk::mqtt_serde::mqttv5::common::properties::Property;

use crate::io::clock;
use crate::io::packet::properties_from_bytes;
use crate::outbox::{Disk, Outbox, Record};

/// Records of one look, at most: some milliseconds.
const LOOK_MAX: usize = 1024;
/// A look ends after so many that may stay: what is behind them is younger, unless ages are very mixed.
const FRESH_MAX: usize = 64;

/// How far the looks have come.
#[derive(Default)]
pub(super) struct Look {
    /// Everything up to here was found too old.
    through: u64,
}

/// Runs of numbers that are too old at this wall time (`clock::least_wall`), and whether there may be more.
pub(super) fn look<D: Disk>(outbox: &mut Outbox<D>, look: &mut Look, wall: u64) -> (Vec<(u64, u64)>, bool) {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let (mut after, mut fresh) = (look.through, 0);
    for _ in 0..LOOK_MAX {
        let record = match next(outbox, after) {
            Some(record) => record,
            None => return (runs, false),
        };
        after = record.seq.number();
        if !is_expired(&record, wall) {
            fresh += 1;
            if fresh == FRESH_MAX {
                return (runs, false);
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
    (runs, true)
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
