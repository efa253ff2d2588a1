//! The outbox against a plain map, with any order of calls, kills, power cuts and failing calls.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::simulated::EIO;
use super::*;

/// Records may be larger than a segment here.
const LIMITS: Limits = Limits { max_record: 7000, ..SMALL };

fn reopen(disk: &Simulated) -> (Outbox<Simulated>, Recovered) {
    Outbox::open_on(disk.clone(), Path::new(DIR), LIMITS).expect("open")
}

#[derive(Clone, Debug)]
enum Step {
    Append {
        gap: u64,
        size: usize,
    },
    Sync,
    /// Somebody makes the next segment ahead, or does not come to it.
    Prepare {
        made: bool,
    },
    Release {
        part: u8,
    },
    Read {
        part: u8,
    },
    Close,
    Kill,
    Cut {
        seed: u64,
    },
    Fail {
        calls: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (prop_oneof![5 => Just(1), 1 => 2..1000u64], prop_oneof![15 => 0..600usize, 1 => 3900..6800usize])
            .prop_map(|(gap, size)| Step::Append { gap, size }),
        4 => Just(Step::Sync),
        2 => any::<bool>().prop_map(|made| Step::Prepare { made }),
        2 => any::<u8>().prop_map(|part| Step::Release { part }),
        3 => any::<u8>().prop_map(|part| Step::Read { part }),
        1 => Just(Step::Close),
        1 => Just(Step::Kill),
        1 => any::<u64>().prop_map(|seed| Step::Cut { seed }),
        1 => (1..5u64).prop_map(|calls| Step::Fail { calls }),
    ]
}

#[derive(Default)]
struct Model {
    records: BTreeMap<u64, Record>,
    highest: u64,
    synced: u64,
    released: u64,
    forgotten: u64,
}

impl Model {
    /// A place in what waits: 0 is before the oldest, 255 the newest.
    fn place(&self, part: u8) -> u64 {
        let waiting = self.records.range(self.released + 1..).map(|(seq, _)| *seq);
        let number = self.records.range(self.released + 1..).count() * usize::from(part) / 255;
        number.checked_sub(1).and_then(|number| waiting.clone().nth(number)).unwrap_or(self.released)
    }

    fn waiting(&self) -> u64 {
        self.records.range(self.released + 1..).count() as u64
    }

    /// After a loss of memory: all that was promised is there, and nothing else but what was appended.
    fn take(&mut self, outbox: &mut Outbox<Simulated>, found: &Recovered) {
        let seqs: BTreeSet<u64> = found.ranges.iter().cloned().flatten().collect();
        for seq in self.records.keys().filter(|&&seq| seq > self.released && seq <= self.synced) {
            assert!(seqs.contains(seq), "{seq} was synced, and is lost");
        }
        for seq in &seqs {
            assert!(*seq > self.forgotten, "{seq} was forgotten, and is back");
            assert_eq!(outbox.read(Seq(*seq)).unwrap().as_ref(), self.records.get(seq), "{seq} reads differently");
        }
        self.records.retain(|seq, _| seqs.contains(seq));
        self.released = seqs.first().map_or(self.released, |first| (first - 1).min(self.released));
        self.synced = self.highest;
        assert_eq!(found.messages, self.waiting());
        assert!(found.highest_seq.unwrap_or(0) <= self.highest);
        assert!(found.damaged.iter().all(|damage| damage.why == Why::Unfinished), "{:?}", found.damaged);
    }
}

/// `salts` are drawn before: which of two files comes first must not matter.
fn run(salts: u64, steps: Vec<Step>) {
    let (mut disk, mut model) = (Simulated::default(), Model::default());
    (0..salts).for_each(|_| _ = disk.random());
    let (mut outbox, _) = reopen(&disk);
    for step in steps {
        match step {
            Step::Append { gap, size } => {
                let record = sized(model.highest + gap, size);
                if outbox.append(&record).is_ok() {
                    model.highest += gap;
                    model.records.insert(model.highest, record);
                }
            }
            Step::Sync => {
                if outbox.sync().is_ok() {
                    (model.synced, model.forgotten) = (model.highest, model.released);
                }
            }
            Step::Prepare { made } => outbox.preparation().filter(|_| made).into_iter().for_each(Preparation::make),
            Step::Release { part } => {
                model.released = model.place(part);
                outbox.release(Seq(model.released));
            }
            Step::Read { part } => {
                let seq = model.place(part);
                let wanted = model.records.get(&seq).filter(|_| seq > model.released);
                let read = outbox.read(Seq(seq));
                assert!(read.is_err() || read.is_ok_and(|read| read.as_ref() == wanted));
                let next = model.records.range(seq.max(model.released) + 1..).next().map(|(_, record)| record);
                let read = outbox.next(seq);
                assert!(read.is_err() || read.is_ok_and(|read| read.as_ref() == next));
            }
            Step::Fail { calls } => disk.fail(disk.calls() + calls..disk.calls() + calls + 1, EIO),
            Step::Close | Step::Kill | Step::Cut { .. } => {
                disk.heal();
                // After a failed sync a full outbox has no other place for what is pending: that is a kill.
                if matches!(step, Step::Close) && outbox.close().is_ok() {
                    (model.synced, model.forgotten) = (model.highest, model.released);
                }
                if let Step::Cut { seed } = step {
                    disk = disk.cut(seed);
                }
                let found;
                (outbox, found) = reopen(&disk);
                model.take(&mut outbox, &found);
            }
        }
        // A release that could not read what it released counts it with a later one.
        let counted = outbox.messages() == model.waiting();
        assert!(counted || disk.failed() && outbox.messages() > model.waiting());
    }
    outbox.release(Seq(model.highest));
    assert_eq!((outbox.messages(), outbox.bytes()), (0, 0));
}

proptest! {
    // Nothing is left in the source tree; PROPTEST_RNG_SEED or the printed steps replay a failure.
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_calls_and_cuts_agrees_with_a_plain_map(steps in prop::collection::vec(step(), 1..250)) {
        run(0, steps);
    }
}

fn appends(sizes: &[usize]) -> impl Iterator<Item = Step> {
    sizes.iter().map(|&size| Step::Append { gap: 1, size })
}

#[test]
fn a_segment_that_is_only_in_memory_never_replaces_one_that_is_on_disk() {
    use Step::{Close, Cut, Fail, Release, Sync};
    for_seeds(100, |seed| {
        // The failed segment holds the same records as the one that took its place, and is not removed yet.
        let steps = appends(&[406]).chain([Sync]).chain(appends(&[508, 149]));
        let steps = steps.chain([Fail { calls: 2 }]).chain(appends(&[172, 573]));
        let steps = steps.chain([Sync, Sync, Release { part: 51 }, Close]);
        run(seed % 7, steps.chain(appends(&[18, 494, 300, 219, 560, 505])).chain([Cut { seed }]).collect());
    });
}

#[test]
fn a_segment_with_parts_of_a_failed_write_never_replaces_one_that_has_it_all() {
    use Step::{Close, Cut, Fail, Release, Sync};
    for_seeds(300, |seed| {
        let steps = appends(&[10, 340, 390, 544]).chain([Sync]).chain(appends(&[376, 538, 390]));
        let steps = steps.chain([Release { part: 110 }]).chain(appends(&[0]));
        let steps = steps.chain([Fail { calls: 2 }, Sync, Sync, Cut { seed }, Release { part: 51 }, Close]);
        run(seed % 7, steps.chain([Cut { seed: !seed }]).collect());
    });
}
