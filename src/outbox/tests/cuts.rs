//! Power cuts at every byte of everything the outbox writes.

use super::simulated::{Deed, Replay};
use super::*;

/// What was true after so many deeds.
#[derive(Clone, Copy, Default)]
struct Known {
    deeds: usize,
    appended: u64,
    synced: u64,
    /// Given to `release`, and followed by a successful sync.
    released: u64,
    forgotten: u64,
}

/// Appends, syncs and releases until the segments have gone around more than twice.
fn story(disk: &Simulated, seed: u64, records: u64) -> Vec<Known> {
    let mut random = Random(seed);
    let (mut outbox, _) = reopen(disk);
    let mut known = Known::default();
    let mut history = vec![known];
    while known.appended < records {
        match random.below(10) {
            0..=5 => {
                if outbox.append(&record(known.appended + 1)).is_ok() {
                    known.appended += 1;
                } else {
                    known.released = known.appended.min(known.released + 10);
                    outbox.release(Seq(known.released));
                }
            }
            6..=7 => {
                // Before: a cut in the middle may leave the release done or not.
                history.push(Known { deeds: disk.deeds(), ..known });
                outbox.sync().unwrap();
                (known.synced, known.forgotten) = (known.appended, known.released);
            }
            8 => {
                known.released = known.appended.min(known.released + random.below(9));
                outbox.release(Seq(known.released));
                outbox.preparation().into_iter().for_each(Preparation::make);
            }
            _ if random.below(8) == 0 => {
                outbox.close().unwrap();
                (known.synced, known.forgotten) = (known.appended, known.released);
                outbox = reopen(disk).0;
            }
            _ => {}
        }
        history.push(Known { deeds: disk.deeds(), ..known });
    }
    history
}

fn check(disk: &Simulated, known: Known, thoroughly: bool) {
    let (mut outbox, found) = reopen(disk);
    let seqs = contents(&mut outbox, &found);
    let kept = (known.released + 1..=known.synced).filter(|seq| !seqs.contains(seq));
    assert_eq!(kept.count(), 0, "synced, and lost");
    let back = seqs.iter().filter(|&&seq| seq <= known.forgotten || seq > known.appended + 1);
    assert_eq!(back.collect::<Vec<_>>(), [] as [&u64; 0], "released and synced, and back, or from nowhere");
    let surprises = found.damaged.iter().filter(|damage| damage.why != Why::Unfinished);
    assert_eq!(surprises.collect::<Vec<_>>(), [] as [&Damage; 0]);
    if !thoroughly {
        return;
    }
    // What was found is durable: another cut right away loses nothing. And life goes on from here.
    let after_cut = disk.cut(known.deeds as u64);
    assert_eq!(contents_of(&after_cut), seqs);
    let mut wanted = seqs;
    let next = found.highest_seq.unwrap_or(0) + 1;
    for seq in next..next + 40 {
        if outbox.append(&record(seq)).is_err() {
            let oldest = wanted.pop_first().unwrap();
            outbox.release(Seq(oldest));
        } else {
            wanted.insert(seq);
        }
    }
    outbox.sync().unwrap();
    drop(outbox);
    assert_eq!(contents_of(&disk.cut(1)), wanted);
}

/// What a new start finds, which must be without any new damage.
fn contents_of(disk: &Simulated) -> BTreeSet<u64> {
    let (mut outbox, found) = reopen(disk);
    assert_eq!(found.damaged, []);
    contents(&mut outbox, &found)
}

#[test]
fn everything_synced_is_recovered_after_a_power_cut_at_any_byte() {
    let cuts = std::cell::Cell::new(0);
    for_seeds(1, |seed| {
        let disk = Simulated::default();
        let history = story(&disk, seed, 85);
        let mut replay = Replay::new(&disk, seed);
        let mut random = Random(seed);
        for number in 0..disk.deeds() {
            let place = history.partition_point(|known| known.deeds <= number);
            // Deeds between two entries belong to the call that made the later one.
            let (before, during) = (history[place - 1], history[place]);
            let known = Known { appended: during.appended, released: during.released, ..before };
            let mut try_cut = |begun: Option<(u64, u64, &[u8])>| {
                cuts.set(cuts.get() + 1);
                check(&replay.cut(&mut random, begun), known, cuts.get() % 32 == 0);
            };
            try_cut(None);
            let deed = disk.deed(number);
            if let Deed::Write { file, at, bytes } = &deed {
                let zeros = bytes.iter().all(|&byte| byte == 0);
                for end in (1..=bytes.len()).step_by(if zeros { 512 } else { 1 }) {
                    try_cut(Some((*file, *at, &bytes[..end])));
                }
            }
            replay.perform(&deed);
        }
    });
    eprintln!("{} cuts", cuts.get());
}

#[test]
fn everything_synced_is_recovered_whatever_of_the_rest_is_lost() {
    for_seeds(60, |seed| {
        let disk = Simulated::default();
        let history = story(&disk, seed, 150);
        let mut replay = Replay::new(&disk, seed);
        for number in 0..disk.deeds() {
            let place = history.partition_point(|known| known.deeds <= number);
            let (before, during) = (history[place - 1], history[place]);
            let known = Known { appended: during.appended, released: during.released, ..before };
            if number % 7 == seed as usize % 7 {
                check(&replay.cut(&mut Random(seed << 32 | number as u64), None), known, number % 5 == 0);
            }
            replay.perform(&disk.deed(number));
        }
    });
}

#[test]
fn a_gateway_that_loses_power_again_and_again_does_not_fill_up() {
    for_seeds(20, |seed| {
        let mut disk = Simulated::default();
        let mut wanted = BTreeSet::new();
        for life in 0..60 {
            let (mut outbox, found) = reopen(&disk);
            let seqs = contents(&mut outbox, &found);
            assert!(seqs.is_superset(&wanted), "life {life}");
            wanted = seqs;
            let seq = found.highest_seq.unwrap_or(0) + 1;
            outbox.append(&sized(seq, 60)).unwrap();
            outbox.sync().unwrap();
            wanted.insert(seq);
            outbox.append(&sized(seq + 1, 700)).unwrap();
            drop(outbox);
            disk = disk.cut(seed << 32 | life);
        }
        let segments = disk.paths().iter().filter(|path| path.to_str().unwrap().contains("segment-")).count();
        assert!(segments <= 3, "{segments} segments for {} records", wanted.len());
    });
}
