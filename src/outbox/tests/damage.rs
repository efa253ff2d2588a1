//! Files whose content is not what was written.

use std::path::PathBuf;

use super::record::seal;
use super::segment::{Scan, salt_of};
use super::*;

type Frames = Vec<(u64, usize, usize)>;

/// A closed outbox that went around twice; what it holds, and the frames of each file: seq, begin, end.
fn filled(seed: u64) -> (Simulated, BTreeSet<u64>, Vec<(PathBuf, Frames)>) {
    let disk = Simulated::default();
    let (mut outbox, _) = reopen(&disk);
    let (mut random, mut oldest) = (Random(seed), 1);
    for seq in 1..=120 {
        while outbox.append(&record(seq)).is_err() {
            oldest += 5;
            outbox.release(Seq(oldest - 1));
        }
        if random.below(4) == 0 {
            outbox.sync().unwrap();
        }
    }
    outbox.close().unwrap();
    let mut files = Vec::new();
    for path in disk.paths() {
        let salt = salt_of(path.file_name().unwrap().to_str().unwrap());
        let mut frames = Vec::new();
        disk.change(&path, |bytes| {
            let scan = salt.map(|salt| Scan::new(bytes, 0, salt, oldest - 1, u64::MAX));
            let found =
                scan.into_iter().flatten().map(|found| (found.frame.seq, found.at, found.at + found.frame.bytes));
            frames = found.collect();
        });
        files.push((path, frames));
    }
    (disk, (oldest..=120).collect(), files)
}

#[test]
fn damage_loses_only_the_records_it_touches_and_is_reported_once() {
    for_seeds(500, |seed| {
        let mut random = Random(seed);
        let (disk, wanted, files) = filled(seed % 5);
        let mut touched = BTreeSet::new();
        let segments: Vec<_> = files.iter().filter(|(_, frames)| !frames.is_empty()).collect();
        for _ in 0..=random.below(3) {
            let (path, frames) = segments[random.below(segments.len() as u64) as usize];
            disk.change(path, |bytes| {
                let from = random.below(bytes.len() as u64) as usize;
                let length = [1, 1, 4, 64, 512, 4096][random.below(6) as usize];
                for at in from..bytes.len().min(from + length) {
                    let old = bytes[at];
                    bytes[at] = if seed % 2 == 0 { 0 } else { random.next() as u8 };
                    let frame = frames.iter().find(|&&(_, begin, end)| (begin..end).contains(&at) && bytes[at] != old);
                    touched.extend(frame.map(|&(seq, ..)| seq));
                }
            });
        }
        let (mut outbox, found) = reopen(&disk);
        let seqs = contents(&mut outbox, &found);
        let lost: BTreeSet<u64> = wanted.difference(&seqs).copied().collect();
        assert!(seqs.is_subset(&wanted), "{:?} came from nowhere", seqs.difference(&wanted));
        assert!(lost.is_subset(&touched), "{lost:?} lost, {touched:?} touched");
        for seq in lost {
            let told = |damage: &Damage| damage.why == Why::Lost && damage.after < seq && seq < damage.before;
            assert!(found.damaged.iter().any(told), "{seq} is lost in silence: {:?}", found.damaged);
        }
        outbox.append(&record(found.highest_seq.unwrap() + 1)).map_or_else(|_| (), |()| outbox.sync().unwrap());
        drop(outbox);
        let (mut outbox, again) = reopen(&disk);
        assert_eq!(again.damaged, []);
        assert!(contents(&mut outbox, &again).is_superset(&seqs));
    });
}

#[test]
fn no_content_of_any_file_makes_it_panic_or_invent_records() {
    for_seeds(500, |seed| {
        let mut random = Random(seed);
        let (disk, wanted, files) = filled(seed % 5);
        let cursor = random.below(2) == 0;
        for (path, _) in files.iter().filter(|(path, _)| cursor || !path.ends_with("cursor")) {
            disk.change(path, |bytes| match random.below(6) {
                0 => bytes.truncate(random.below(bytes.len() as u64 + 1) as usize),
                1 => bytes.fill_with(|| random.next() as u8),
                2 => bytes.fill(0),
                3 => bytes.rotate_left(8),
                4 => {
                    for _ in 0..64 {
                        let place = random.below(bytes.len() as u64) as usize;
                        bytes[place] = random.next() as u8;
                    }
                }
                _ => {}
            });
        }
        match Outbox::open_on(disk.clone(), Path::new(DIR), SMALL) {
            Ok((mut outbox, found)) => {
                let seqs = contents(&mut outbox, &found);
                assert!(cursor || seqs.is_subset(&wanted), "{:?} came from nowhere", seqs.difference(&wanted));
                outbox.release(Seq(found.highest_seq.unwrap_or(0)));
                assert_eq!((outbox.messages(), outbox.bytes()), (0, 0));
                outbox.append(&record(outbox.highest + 1)).unwrap();
                outbox.close().unwrap();
            }
            Err(error) => panic!("{error}"),
        }
    });
}

#[test]
fn records_of_an_earlier_lap_stay_forgotten_when_all_of_the_newest_lap_is_gone() {
    for seed in 0..5 {
        let (disk, wanted, files) = filled(seed);
        let mut gone = 0;
        for (path, frames) in &files {
            disk.change(path, |bytes| frames.iter().for_each(|&(_, begin, _)| bytes[begin] ^= 0x55));
            gone += frames.len();
        }
        assert_eq!(gone, wanted.len());
        let (mut outbox, found) = reopen(&disk);
        assert_eq!(contents(&mut outbox, &found), BTreeSet::new());
        assert_eq!(found.highest_seq, Some(120));
        assert!(found.damaged.iter().any(|damage| damage.why == Why::Lost && damage.before == 121));
    }
}

#[test]
fn a_lost_cursor_file_is_reported_and_costs_repeats_only() {
    for remove in [false, true] {
        let (disk, wanted, _) = filled(1);
        let path = Path::new(DIR).join("cursor");
        if remove {
            disk.remove(&path).unwrap()
        } else {
            disk.change(&path, |bytes| bytes.fill(7))
        }
        let (mut outbox, found) = reopen(&disk);
        assert!(contents(&mut outbox, &found).is_superset(&wanted));
        assert_eq!(found.damaged[0].why, Why::CursorLost);
        drop(outbox);
        assert_eq!(reopen(&disk).1.damaged, []);
    }
}

#[test]
fn any_single_slot_of_the_cursor_file_may_be_lost() {
    let (disk, wanted, _) = filled(2);
    for slot in 0..4 {
        let copy = disk.copy();
        copy.change(&Path::new(DIR).join("cursor"), |bytes| bytes[slot * 4096..][..4096].fill(0xff));
        let (mut outbox, found) = reopen(&copy);
        assert!(contents(&mut outbox, &found).is_superset(&wanted));
        assert!(found.damaged.iter().all(|damage| damage.why != Why::CursorLost));
    }
}

#[test]
fn files_of_a_newer_version_are_left_alone() {
    let (disk, ..) = filled(3);
    disk.change(&Path::new(DIR).join("cursor"), |bytes| {
        for slot in bytes.chunks_mut(4096).filter(|slot| slot[0] != 0) {
            slot[6] = 2;
            let count = u32::from_le_bytes(slot[12..16].try_into().unwrap()) as usize;
            let check = crc32c::crc32c_append(crc32c::crc32c(&slot[..8]), &slot[12..40 + 8 * count]);
            slot[8..12].copy_from_slice(&check.to_le_bytes());
        }
    });
    let deeds = disk.deeds();
    let error = Outbox::open_on(disk.clone(), Path::new(DIR), SMALL).err().unwrap();
    assert_eq!((error.kind(), disk.deeds()), (ErrorKind::Unsupported, deeds));
}

#[test]
fn a_missing_segment_is_reported_with_what_is_missing() {
    let (disk, wanted, files) = filled(4);
    let (path, frames) =
        files.iter().find(|(_, frames)| frames.len() > 2 && frames[0].0 > wanted.len() as u64).unwrap();
    disk.remove(path).unwrap();
    let (mut outbox, found) = reopen(&disk);
    let left: BTreeSet<u64> =
        wanted.iter().copied().filter(|seq| !frames.iter().any(|frame| frame.0 == *seq)).collect();
    assert_eq!(contents(&mut outbox, &found), left);
    let damage = &found.damaged[0];
    assert_eq!((damage.after, damage.before), (frames[0].0 - 1, frames.last().unwrap().0 + 1));
}

#[test]
fn unreadable_segments_are_set_aside_and_a_bounded_number_is_kept() {
    let (mut disk, _, _) = filled(0);
    for _ in 0..4 {
        for path in disk.paths().iter().filter(|path| path.to_str().unwrap().contains("segment-")) {
            disk.change(path, |bytes| bytes.fill(0xaa));
        }
        let (mut outbox, found) = reopen(&disk);
        assert!(found.damaged.iter().any(|damage| damage.why == Why::Lost));
        let aside =
            disk.paths().into_iter().filter(|path| path.extension().is_some_and(|end| end == "damaged")).count();
        assert_eq!(aside, 4);
        let next = found.highest_seq.unwrap() + 1;
        for seq in next..next + 40 {
            outbox.append(&sized(seq, 60)).unwrap();
        }
        outbox.close().unwrap();
        disk = disk.copy();
    }
}

#[test]
fn a_frame_inside_a_payload_is_never_taken_for_a_record() {
    let disk = Simulated::default();
    let (mut outbox, _) = reopen(&disk);
    let mut bait = Vec::new();
    let chain = Chain { previous: 1, durable: 1, released: 0 };
    for salt in [0, 1, u64::MAX] {
        seal(&mut bait, salt, 9_000_000, chain, &record::encode_content(&record(9_000_000)));
    }
    for seq in 1..4 {
        outbox.append(&Record { payload: bait.clone(), ..record(seq) }).unwrap();
    }
    outbox.close().unwrap();
    for path in disk.paths() {
        disk.change(&path, |bytes| {
            let scan = salt_of(path.file_name().unwrap().to_str().unwrap()).map(|salt| Scan::new(bytes, 0, salt, 0, 9));
            let second = scan.into_iter().flatten().nth(1).map(|found| found.at);
            second.into_iter().for_each(|at| bytes[at] ^= 1);
        });
    }
    assert_eq!(reopen(&disk).1.ranges, [1..=1, 3..=3]);
}
