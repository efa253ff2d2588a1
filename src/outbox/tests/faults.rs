//! A disk that fails at any call, once or for a while, and then works again.

use super::simulated::{EIO, ENOSPC, EROFS};
use super::*;

#[derive(Default)]
struct Promises {
    /// The highest seq used.
    appended: u64,
    pending: BTreeSet<u64>,
    synced: BTreeSet<u64>,
    released: u64,
    /// Released and, as far as a successful sync can tell, for good.
    forgotten: u64,
}

impl Promises {
    fn sync(&mut self) {
        self.synced.append(&mut self.pending);
        self.forgotten = self.released;
    }

    fn kept(&self) -> BTreeSet<u64> {
        self.synced.range(self.released + 1..).copied().collect()
    }
}

/// Lives with every error as the daemon would: says so, goes on, tries again.
fn live(disk: &Simulated, seed: u64, promises: &mut Promises, steps: u64) {
    let mut random = Random(seed);
    let mut open: Option<Outbox<Simulated>> = None;
    for _ in 0..steps {
        let Some(outbox) = &mut open else {
            if let Ok((outbox, found)) = Outbox::open_on(disk.clone(), Path::new(DIR), SMALL) {
                let told: BTreeSet<u64> = found.ranges.iter().cloned().flatten().collect();
                let unread = found.damaged.iter().any(|damage| matches!(damage.why, Why::Unreadable(_)));
                assert!(unread || told.is_superset(&promises.kept()), "lost some of {:?}", promises.kept());
                // An open that could not read all says what it knows; this daemon gives up and comes again.
                promises.appended = promises.appended.max(found.highest_seq.unwrap_or(0));
                promises.pending.clear();
                if unread {
                    continue;
                }
                // What came back must be released again.
                promises.released = told.first().map_or(promises.released, |first| promises.released.min(first - 1));
                assert!(promises.released >= promises.forgotten, "{:?} is back", told.first());
                promises.synced.extend(told);
                open = Some(outbox);
            }
            continue;
        };
        match random.below(12) {
            0..=5 => match outbox.append(&record(promises.appended + 1)) {
                Ok(()) => {
                    promises.appended += 1;
                    promises.pending.insert(promises.appended);
                }
                Err(AppendError::Full) => {
                    promises.released = promises.appended.min(promises.released + 10);
                    outbox.release(Seq(promises.released));
                }
                Err(AppendError::Io(_)) => {}
                Err(error) => panic!("{error}"),
            },
            6 | 7 => outbox.sync().map_or((), |()| promises.sync()),
            8 => {
                promises.released = promises.appended.min(promises.released + random.below(9));
                outbox.release(Seq(promises.released));
            }
            9..=10 if promises.appended > promises.released => {
                let seq = promises.released + 1 + random.below(promises.appended - promises.released);
                if let Ok(read) = outbox.read(Seq(seq)) {
                    assert!(read.is_none_or(|read| read == record(seq)));
                }
            }
            _ if random.below(12) == 0 => {
                let outbox = open.take().unwrap();
                if random.below(2) == 0 && outbox.close().is_ok() {
                    promises.sync();
                }
            }
            _ => {}
        }
    }
}

fn check(disk: &Simulated, promises: &Promises) {
    let (mut outbox, found) = reopen(disk);
    let seqs = contents(&mut outbox, &found);
    assert!(seqs.is_superset(&promises.kept()), "found {seqs:?}, promised {:?}", promises.kept());
    let back = seqs.iter().filter(|&&seq| seq <= promises.forgotten || seq > promises.appended);
    assert_eq!(back.collect::<Vec<_>>(), [] as [&u64; 0], "released and synced, and back, or from nowhere");
    let surprises = found.damaged.iter().filter(|damage| damage.why != Why::Unfinished);
    assert_eq!(surprises.collect::<Vec<_>>(), [] as [&Damage; 0]);
    // Healed: it takes and keeps again.
    outbox.release(Seq(promises.appended));
    let next = found.highest_seq.unwrap_or(0).max(promises.appended) + 1;
    outbox.append(&record(next)).unwrap();
    outbox.sync().unwrap();
    let (mut outbox, found) = reopen(&disk.cut(next));
    assert_eq!(contents(&mut outbox, &found), BTreeSet::from([next]));
}

#[test]
fn a_fault_at_any_call_loses_nothing_that_was_promised() {
    for_seeds(1, |seed| {
        let healthy = Simulated::default();
        live(&healthy, seed, &mut Promises::default(), 250);
        for call in 1..=healthy.calls() {
            for errno in [EIO, ENOSPC, EROFS] {
                for length in [1, 3, 40] {
                    eprintln!("call {call} errno {errno} length {length}");
                    let (disk, mut promises) = (Simulated::default(), Promises::default());
                    disk.fail(call..call + length, errno);
                    live(&disk, seed, &mut promises, 250);
                    disk.heal();
                    let again = seed ^ call << 8 ^ length;
                    if again % 2 == 0 {
                        check(&disk.cut(again), &promises);
                    }
                    check(&disk, &promises);
                }
            }
        }
    });
}

#[test]
fn faults_and_power_cuts_together_lose_nothing_that_was_promised() {
    for_seeds(200, |seed| {
        let mut random = Random(seed);
        let (mut disk, mut promises) = (Simulated::default(), Promises::default());
        for life in 0..6 {
            let call = disk.calls() + random.below(150);
            disk.fail(
                call..call + [1, 2, 9, 60][random.below(4) as usize],
                [EIO, ENOSPC, EROFS][random.below(3) as usize],
            );
            live(&disk, seed << 8 | life, &mut promises, 120);
            disk.heal();
            if random.below(2) == 0 {
                disk = disk.cut(random.next());
            }
        }
        check(&disk, &promises);
    });
}

#[test]
fn a_failed_sync_is_not_repeated_on_the_same_segment() {
    let disk = Simulated::default();
    let (mut outbox, _) = reopen(&disk);
    for seq in 1..3 {
        outbox.append(&record(seq)).unwrap();
        outbox.sync().unwrap();
    }
    let before = disk.paths().len();
    outbox.append(&record(3)).unwrap();
    disk.fail(disk.calls() + 2..disk.calls() + 3, EIO);
    outbox.sync().unwrap_err();
    assert_eq!(outbox.read(Seq(3)).unwrap(), Some(record(3)));
    outbox.sync().unwrap();
    assert_eq!(disk.paths().len(), before + 1);
    for seed in 0..50 {
        let (mut outbox, found) = reopen(&disk.cut(seed));
        assert_eq!(contents(&mut outbox, &found), (1..4).collect());
    }
}

#[test]
fn a_disk_without_room_is_told_apart_from_a_full_outbox() {
    let disk = Simulated::default();
    let (mut outbox, _) = reopen(&disk);
    disk.fail(0..u64::MAX, ENOSPC);
    let refused = outbox.append(&record(1));
    assert!(matches!(refused, Err(AppendError::Io(error)) if error.kind() == ErrorKind::StorageFull));
    assert_eq!(outbox.messages(), 0);
    disk.heal();
    outbox.append(&record(1)).unwrap();
    outbox.sync().unwrap();
    assert!(!disk.paths().iter().any(|path| path.to_str().unwrap().ends_with(".new")));
}

#[test]
fn a_read_only_file_system_is_an_error_one_can_show() {
    let disk = Simulated::default();
    disk.fail(0..u64::MAX, EROFS);
    let error = Outbox::open_on(disk.clone(), Path::new(DIR), SMALL).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn a_segment_that_cannot_be_read_is_left_alone_and_found_later() {
    let disk = Simulated::default();
    let (mut outbox, _) = reopen(&disk);
    for seq in 1..60 {
        outbox.append(&sized(seq, 60)).unwrap();
    }
    outbox.close().unwrap();
    for path in disk.paths().iter().filter(|path| !path.ends_with("cursor")) {
        disk.spoil(path);
        let (mut outbox, found) = reopen(&disk);
        assert!(matches!(found.damaged[..], [Damage { why: Why::Unreadable(_), .. }]), "{:?}", found.damaged);
        let seqs = contents(&mut outbox, &found);
        assert!(seqs.len() > 10 && seqs.len() < 59, "{seqs:?}");
        // A seq that the file may hold is not given out.
        let next = found.highest_seq.unwrap() + 1;
        assert!(next > 1 << 32);
        outbox.append(&record(next)).unwrap();
        outbox.close().unwrap();
        disk.heal();
        let (mut outbox, found) = reopen(&disk);
        assert_eq!(found.damaged, []);
        let seqs = contents(&mut outbox, &found);
        assert!(seqs.is_superset(&(1..60).collect()) && seqs.contains(&next));
    }
}

#[test]
fn what_a_failed_sync_left_on_disk_does_not_come_back_once_it_is_released() {
    for_seeds(50, |seed| {
        let disk = Simulated::default();
        let (mut outbox, _) = reopen(&disk);
        outbox.append(&record(1)).unwrap();
        disk.fail(disk.calls() + 2..disk.calls() + 3, EIO);
        outbox.sync().unwrap_err();
        outbox.release(Seq(1));
        outbox.sync().unwrap();
        assert_eq!(reopen(&disk.cut(seed)).1.messages, 0);
    });
}

#[test]
fn what_a_failed_sync_left_on_disk_never_stands_in_for_newer_records() {
    for_seeds(300, |seed| {
        let disk = Simulated::default();
        let (mut outbox, _) = reopen(&disk);
        let append = |outbox: &mut Outbox<Simulated>, seqs: std::ops::Range<u64>, size: usize| {
            seqs.for_each(|seq| outbox.append(&sized(seq, size)).unwrap());
        };
        append(&mut outbox, 1..3, 20);
        outbox.sync().unwrap();
        append(&mut outbox, 3..9, 20);
        disk.fail(disk.calls() + 2..disk.calls() + 3, EIO);
        outbox.sync().unwrap_err();
        outbox.sync().unwrap();
        append(&mut outbox, 9..12, 20);
        outbox.sync().unwrap();
        drop(outbox);
        let (mut outbox, found) = reopen(&disk);
        assert_eq!(contents(&mut outbox, &found), (1..12).collect());
        // The segment of the failed sync holds nothing any more that another does not.
        outbox.release(Seq(2));
        append(&mut outbox, 12..14, 1000);
        outbox.sync().unwrap();
        append(&mut outbox, 14..20, 30 + seed as usize % 100);
        append(&mut outbox, 20..21, 1000);
        disk.fail(disk.calls() + 2..disk.calls() + 3, EIO);
        let kept = if outbox.sync().is_ok() { 1..21 } else { 1..14 };
        let (mut outbox, found) = reopen(&disk.cut(seed));
        assert!(contents(&mut outbox, &found).is_superset(&kept.skip(2).collect()), "{:?}", found.ranges);
    });
}

#[test]
fn failing_saves_of_the_cursor_never_cost_what_it_said_before() {
    for_seeds(100, |seed| {
        let disk = Simulated::default();
        let (mut outbox, _) = reopen(&disk);
        (1..20).for_each(|seq| outbox.append(&sized(seq, 20)).unwrap());
        outbox.sync().unwrap();
        outbox.release(Seq(9));
        outbox.sync().unwrap();
        disk.fail(0..u64::MAX, ENOSPC);
        for seq in 10..16 {
            outbox.release(Seq(seq));
            outbox.sync().unwrap_err();
        }
        let (mut outbox, found) = reopen(&disk.cut(seed));
        let first = *contents(&mut outbox, &found).first().unwrap();
        assert!((10..=16).contains(&first), "{first} is back");
        disk.heal();
    });
}
