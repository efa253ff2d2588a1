//! The store against disks that lose power, fail, are read-only, and heal.
//!
//! Seeded tests print their seed when they fail; `STORE_SEED=N cargo test storage` runs only that seed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod cuts;
mod disk;
mod newer;
mod pledging;
mod rooms;

use std::path::PathBuf;
use std::time::Instant;

use switchback_control::Event;
use tokio::sync::oneshot;

use super::*;
use crate::corridor::Body;
use crate::outbox::tests::simulated::Simulated;
use crate::outbox::{Preparation, Record};

const STATE: &str = "/state";
/// 14 November 2026.
const WALL: u64 = 1_794_614_400_000;
const LANE_BYTES: u64 = 64 * 1024;

/// Three lanes on disk, and one in memory between them.
fn lanes() -> Vec<LaneConfig> {
    let lane = |class: &str, directory: &str| LaneConfig {
        class: class.into(),
        directory: directory.into(),
        max_size: LANE_BYTES,
        max_age: None,
    };
    vec![lane("normal", "outbox"), lane("critical", "outbox-critical"), lane("low", ""), lane("bulk", "outbox-bulk")]
}

fn seq(lane: u8, number: u64) -> Seq {
    Seq::new(Number(lane), number)
}

/// The one message that has this number, in all tests.
fn body(seq: Seq, size: usize) -> Body {
    Arc::new(Record {
        seq,
        accepted: WALL - 1000,
        topic: format!("plant/{}", seq.number() % 7),
        payload: vec![seq.number() as u8; size],
        qos: 2,
        retain: false,
        class: 0,
        id: format!("boot.7.{}.{}", seq.lane().0, seq.number()),
        properties: Vec::new(),
    })
}

/// A store that is turned by hand.
struct Turned {
    worker: Worker<Simulated>,
    found: Vec<Unreleased>,
    pledges: Vec<Pledge>,
    now: Instant,
    wall: u64,
}

impl Turned {
    fn open(disk: &Simulated) -> Turned {
        Turned::open_as(disk, &lanes())
    }

    fn open_as(disk: &Simulated, lanes: &[LaneConfig]) -> Turned {
        let (worker, found, pledges) = open_on(disk.clone(), Path::new(STATE), lanes, None).expect("open");
        Turned { worker, found, pledges, now: Instant::now(), wall: WALL }
    }

    fn take(&mut self, job: StoreJob) {
        self.worker.take(job, self.now);
    }

    fn append(&mut self, seq: Seq, size: usize) {
        self.take(StoreJob::Append(body(seq, size)));
    }

    fn pledge(&mut self, seq: Seq, id: u16, received: bool) -> oneshot::Receiver<bool> {
        let (answer, told) = oneshot::channel();
        self.take(StoreJob::Pledge(Pledge { seq, id, received }, answer));
        told
    }

    fn fetch(&mut self, seq: Seq) -> Option<Body> {
        let (answer, mut told) = oneshot::channel();
        self.take(StoreJob::Read(vec![seq], answer));
        told.try_recv().unwrap().pop().unwrap()
    }

    /// Does what is due at this moment; what the loop hears.
    fn turn(&mut self) -> Vec<Event> {
        self.worker.turn(self.now, self.wall);
        self.worker.preparations().for_each(Preparation::make);
        std::mem::take(&mut self.worker.told)
    }

    /// The same, later.
    fn after(&mut self, millis: u64) -> Vec<Event> {
        self.now += Duration::from_millis(millis);
        self.wall += millis;
        self.turn()
    }

    fn runs(&self, lane: usize) -> Vec<u64> {
        self.found[lane].runs.iter().cloned().flatten().collect()
    }
}

/// Runs `test` for many seeds, or for the one in `STORE_SEED`.
fn for_seeds(rounds: u64, test: impl Fn(u64)) {
    let one = std::env::var("STORE_SEED").ok().map(|text| text.parse::<u64>().expect("a number"));
    for seed in one.map_or(0..rounds, |seed| seed..seed + 1) {
        let test = std::panic::AssertUnwindSafe(|| test(seed));
        if let Err(panic) = std::panic::catch_unwind(test) {
            eprintln!("again with STORE_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

fn segments(disk: &Simulated, directory: &str) -> Vec<PathBuf> {
    let dir = Path::new(STATE).join(directory);
    let here = |path: &PathBuf| path.parent() == Some(&dir) && path.to_str().unwrap().contains("segment-");
    disk.paths().into_iter().filter(here).collect()
}
