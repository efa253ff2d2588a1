//! A disk that fails at any call, once or for a while, and then works again.

use super::simulated::{EIO, ENOSPC, EROFS};
use super::*;

#[derive(Default)]
struct Promises {
    appended: u64,
    synced: u64,
    released: u64,
    /// Released and, as far as a successful sync can tell, for good.
    forgotten: u64,
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
                let lost = (promises.released + 1..=promises.synced).filter(|seq| !told.contains(seq)).count();
                assert!(unread || lost == 0, "{lost} lost");
                // An open that could not read all says what it knows; this daemon gives up and comes again.
                promises.appended = promises.appended.max(found.highest_seq.unwrap_or(0));
                open = (!unread).then_some(outbox);
            }
            continue;
        };
        match random.below(12) {
            0..=5 => match outbox.append(&record(promises.appended + 1)) {
                Ok(()) => promises.appended += 1,
                Err(AppendError::Full) => {
                    promises.released = promises.synced.min(promises.released + 10);
                    outbox.release(Seq(promises.released));
                }
                Err(AppendError::Io(_)) => {}
                Err(error) => panic!("{error}"),
            },
            6..=7 => {
                if outbox.sync().is_ok() {
                    (promises.synced, promises.forgotten) = (promises.appended, promises.released);
                }
            }
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
                    (promises.synced, promises.forgotten) = (promises.appended, promises.released);
                }
            }
            _ => {}
        }
    }
}

fn check(disk: &Simulated, promises: &Promises) {
    let (mut outbox, found) = reopen(disk);
    let seqs = contents(&mut outbox, &found);
    let lost = (promises.released + 1..=promises.synced).filter(|seq| !seqs.contains(seq));
    assert_eq!(lost.count(), 0, "synced, and lost");
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
    for_seeds(2, |seed| {
        let healthy = Simulated::default();
        live(&healthy, seed, &mut Promises::default(), 250);
        for call in 1..=healthy.calls() {
            for errno in [EIO, ENOSPC, EROFS] {
                for length in [1, 3, 40] {
                    let (disk, mut promises) = (Simulated::default(), Promises::default());
                    disk.fail(call..call + length, errno);
                    live(&disk, seed, &mut promises, 250);
                    disk.fail(0..0, 0);
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
    for_seeds(400, |seed| {
        let mut random = Random(seed);
        let (mut disk, mut promises) = (Simulated::default(), Promises::default());
        for life in 0..6 {
            let call = disk.calls() + random.below(150);
            disk.fail(
                call..call + [1, 2, 9, 60][random.below(4) as usize],
                [EIO, ENOSPC, EROFS][random.below(3) as usize],
            );
            live(&disk, seed << 8 | life, &mut promises, 120);
            disk.fail(0..0, 0);
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
    disk.fail(0..0, 0);
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
fn a_block_that_cannot_be_read_loses_no_other_block() {
    let disk = Simulated::default();
    let (mut outbox, _) = reopen(&disk);
    for seq in 1..20 {
        outbox.append(&sized(seq, 60)).unwrap();
    }
    outbox.close().unwrap();
    // Every read of the first segment fails; the file stays, and the next start finds all of it.
    let start = disk.calls();
    let segment = (1..40).find(|call| {
        disk.fail(start + call..start + call + 2, EIO);
        let copy = disk.copy();
        copy.fail(*call..call + 2, EIO);
        let opened = Outbox::open_on(copy.clone(), Path::new(DIR), SMALL);
        opened.is_ok_and(|(_, found)| {
            let unread = found.damaged.iter().any(|damage| matches!(damage.why, Why::Unreadable(_)));
            unread && found.messages == 0 && contents_after(&copy) == 19
        })
    });
    assert!(segment.is_some());
}

fn contents_after(disk: &Simulated) -> u64 {
    disk.fail(0..0, 0);
    reopen(disk).1.messages
}
