//! The outbox against disks that lose power, fail, and lie.
//!
//! Seeded tests print their seed when they fail; `OUTBOX_SEED=N cargo test outbox` runs only that seed.
//! `OUTBOX_ROUNDS=N` multiplies their rounds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod cuts;
mod damage;
mod faults;
mod model;
mod ordinary;
pub mod simulated;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use super::*;
use simulated::{Random, Simulated};

/// Small segments, so that a short story goes around several times.
const SMALL: Limits = Limits { max_bytes: 4 * 4096, segment_bytes: 4096, max_record: 3000 };
const DIR: &str = "/outbox";

/// The one record that has this seq, in all tests.
fn record(seq: u64) -> Record {
    let mut random = Random(seq);
    let size = match random.below(10) {
        0 => 0,
        1 => random.below(1500),
        _ => random.below(200),
    };
    sized(seq, size as usize)
}

fn sized(seq: u64, size: usize) -> Record {
    let mut random = Random(seq ^ 0xfeed);
    Record {
        seq: Seq(seq),
        accepted: 1_700_000_000_000 + seq,
        topic: format!("plant/{}/temperature", random.below(40)),
        payload: (0..size).map(|_| random.next() as u8).collect(),
        qos: random.below(3) as u8,
        retain: random.below(2) == 1,
        class: random.below(3) as u8,
        id: format!("boot.7.{seq}"),
        properties: (0..random.below(9)).map(|_| random.next() as u8).collect(),
    }
}

/// Every record of the ranges, after checking that it reads as it was written.
fn contents<D: Disk>(outbox: &mut Outbox<D>, found: &Recovered) -> BTreeSet<u64> {
    let seqs: BTreeSet<u64> = found.ranges.iter().cloned().flatten().collect();
    for &seq in &seqs {
        let read = outbox.read(Seq(seq)).expect("read").unwrap_or_else(|| panic!("{seq} was reported, and is missing"));
        assert!(read == sized(seq, read.payload.len()), "{seq} reads differently");
    }
    assert_eq!(found.messages, seqs.len() as u64, "messages reported");
    assert_eq!(outbox.messages(), seqs.len() as u64, "messages counted");
    seqs
}

fn reopen(disk: &Simulated) -> (Outbox<Simulated>, Recovered) {
    Outbox::open_on(disk.clone(), Path::new(DIR), SMALL).expect("open")
}

/// Runs `test` for many seeds, or for the one in `OUTBOX_SEED`.
fn for_seeds(rounds: u64, test: impl Fn(u64)) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = number("OUTBOX_SEED").map_or(0..rounds * number("OUTBOX_ROUNDS").unwrap_or(1), |seed| seed..seed + 1);
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(seed))) {
            eprintln!("again with OUTBOX_SEED={seed}");
            resume_unwind(panic);
        }
    }
}
