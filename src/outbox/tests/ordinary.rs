//! What the outbox does when nothing goes wrong, on a real file system.

use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use super::*;

fn open(dir: &Path, limits: Limits) -> (Outbox, Recovered) {
    Outbox::open(dir, limits).unwrap()
}

#[test]
fn what_is_synced_is_there_after_a_restart_and_what_is_released_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("state/outbox");
    let (mut outbox, found) = open(&dir, Limits::default());
    assert_eq!(found, Recovered::default());
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    for seq in [3, 4, 5, 9] {
        outbox.append(&record(seq)).unwrap();
    }
    assert_eq!(outbox.read(Seq(4)).unwrap(), Some(record(4)), "readable before it is durable");
    outbox.sync().unwrap();
    outbox.release(Seq(3));
    outbox.close().unwrap();
    let (mut outbox, found) = open(&dir, Limits::default());
    assert_eq!((found.ranges.clone(), found.highest_seq), (vec![4..=5, 9..=9], Some(9)));
    assert_eq!(found.oldest_accepted, Some(record(4).accepted));
    assert_eq!(found.damaged, []);
    contents(&mut outbox, &found);
    assert_eq!(outbox.bytes(), found.bytes);
    for seq in [0, 3, 6, 10, u64::MAX] {
        assert_eq!(outbox.read(Seq(seq)).unwrap(), None, "{seq}");
    }
    outbox.release(Seq(9));
    assert_eq!((outbox.messages(), outbox.bytes()), (0, 0));
}

#[test]
fn two_daemons_cannot_share_it() {
    let dir = tempfile::tempdir().unwrap();
    let (first, _) = open(dir.path(), SMALL);
    let second = Outbox::open(dir.path(), SMALL).err().unwrap();
    assert_eq!(second.kind(), ErrorKind::ResourceBusy);
    first.close().unwrap();
    open(dir.path(), SMALL);
}

#[test]
fn a_full_outbox_refuses_and_accepts_again_after_a_release() {
    let dir = tempfile::tempdir().unwrap();
    let (mut outbox, _) = open(dir.path(), SMALL);
    let (mut seq, mut oldest, mut refusals) = (1, 1, 0);
    while refusals < 20 {
        match outbox.append(&sized(seq, 200)) {
            Ok(()) => seq += 1,
            Err(AppendError::Full) => {
                refusals += 1;
                assert!(outbox.messages() >= 40, "{} messages of 300 bytes fill 16 KiB", outbox.messages());
                oldest += 20;
                outbox.release(Seq(oldest - 1));
            }
            Err(error) => panic!("{error}"),
        }
        assert_eq!(outbox.messages(), seq - oldest);
    }
    outbox.sync().unwrap();
    let room: u64 = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name() != "cursor")
        .map(|entry| entry.metadata().unwrap().len())
        .sum();
    assert_eq!(room, SMALL.max_bytes);
    for seq in oldest..seq {
        assert_eq!(outbox.read(Seq(seq)).unwrap(), Some(sized(seq, 200)));
    }
}

#[test]
fn what_cannot_be_taken_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (mut outbox, _) = open(dir.path(), SMALL);
    assert!(matches!(outbox.append(&record(0)), Err(AppendError::NotAscending { highest: Seq(0) })));
    assert!(matches!(outbox.append(&sized(1, 3000)), Err(AppendError::TooLarge { limit: 3000, .. })));
    assert!(matches!(
        outbox.append(&Record { seq: Seq(u64::MAX), ..record(1) }),
        Err(AppendError::NotAscending { .. })
    ));
    outbox.append(&record(1)).unwrap();
    assert!(matches!(outbox.append(&record(1)), Err(AppendError::NotAscending { highest: Seq(1) })));
    outbox.release(Seq(7));
    assert!(matches!(outbox.append(&record(7)), Err(AppendError::NotAscending { highest: Seq(7) })));
    let limits = Limits { max_bytes: 8191, ..SMALL };
    assert_eq!(Outbox::open(&dir.path().join("other"), limits).err().unwrap().kind(), ErrorKind::InvalidInput);
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(Outbox::open(&file, SMALL).is_err());
}

#[test]
fn a_record_larger_than_a_segment_gets_one_that_fits_and_gives_the_room_back() {
    let disk = Simulated::default();
    let limits = Limits { max_record: 8000, ..SMALL };
    let open = |disk: &Simulated| Outbox::open_on(disk.clone(), Path::new(DIR), limits).unwrap();
    let (mut outbox, _) = open(&disk);
    let room = |disk: &Simulated| disk.list(Path::new(DIR)).unwrap().iter().map(|(_, size)| size).sum::<u64>();
    for turn in 0..20 {
        let seq = turn * 10;
        (1..5).for_each(|more| outbox.append(&sized(seq + more, 700)).unwrap());
        outbox.append(&sized(seq + 5, 7500)).unwrap();
        outbox.sync().unwrap();
        assert_eq!(outbox.read(Seq(seq + 5)).unwrap(), Some(sized(seq + 5, 7500)));
        assert!(room(&disk) <= SMALL.max_bytes + 16384, "{}", room(&disk));
        if turn % 3 == 0 {
            drop(outbox);
            let found;
            (outbox, found) = open(&disk);
            assert_eq!(contents(&mut outbox, &found), (seq + 1..=seq + 5).collect());
        }
        outbox.release(Seq(seq + 5));
    }
}

#[test]
fn a_segment_made_ahead_is_waited_for_and_one_given_up_is_made_when_needed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut outbox, _) = open(dir.path(), Limits { max_bytes: 3 * 4096, ..SMALL });
    let files = || std::fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.file_name());
    let segments = || files().filter(|name| name.to_str().unwrap().contains("segment-")).count();
    outbox.append(&sized(1, 1000)).unwrap();
    outbox.sync().unwrap();
    assert!(outbox.preparation().is_none(), "long before the first is full");
    outbox.append(&sized(2, 1500)).unwrap();
    outbox.sync().unwrap();
    let preparation = outbox.preparation().unwrap();
    assert!(outbox.preparation().is_none(), "asked once");
    let maker = std::thread::spawn(|| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        preparation.make();
    });
    outbox.append(&sized(3, 2500)).unwrap();
    assert_eq!(segments(), 2);
    maker.join().unwrap();
    outbox.sync().unwrap();
    drop(outbox.preparation().unwrap());
    outbox.append(&sized(4, 2500)).unwrap();
    outbox.sync().unwrap();
    assert_eq!((segments(), outbox.preparation().is_none()), (3, true), "there is no room for a fourth");
}

#[test]
fn a_lane_s_numbers_are_kept_and_its_lane_comes_back_with_the_question() {
    use switchback_control::Lane;
    let disk = Simulated::default();
    let (mut outbox, _) = reopen(&disk);
    let seq = |number| Seq::new(Lane(3), number);
    for number in 1..=3 {
        outbox.append(&Record { seq: seq(number), ..record(number) }).unwrap();
    }
    outbox.sync().unwrap();
    outbox.release(seq(1));
    drop(outbox);
    let (mut outbox, found) = reopen(&disk);
    assert_eq!((found.ranges, found.highest_seq), (vec![1..=3], Some(3)));
    assert_eq!(outbox.read(seq(2)).unwrap().unwrap().seq, seq(2));
    outbox.release(seq(2));
    assert_eq!(outbox.next(0).unwrap().unwrap().seq, Seq(3));
    assert_eq!(outbox.oldest_segment_end(), Some(3));
}

#[test]
fn nothing_is_written_while_nothing_waits() {
    let disk = Simulated::default();
    let (mut outbox, _) = reopen(&disk);
    let before = disk.deeds();
    for seq in 1..100 {
        outbox.append(&record(seq)).unwrap();
        if seq == 1 {
            continue;
        }
        outbox.release(Seq(seq));
        outbox.sync().unwrap();
    }
    // The first append begins a segment; no record is ever written, and no cursor.
    let written: Vec<_> = (before..disk.deeds()).map(|number| disk.deed(number)).collect();
    let records = |deed: &&simulated::Deed| matches!(deed, simulated::Deed::Write { at, .. } if *at > 0);
    assert_eq!(written.iter().filter(records).count(), 0, "{} deeds", written.len());
    assert_eq!(disk.written(), 16384 + 4096);
    outbox.close().unwrap();
    assert_eq!(disk.written(), 16384 + 4096);
}

#[test]
fn segments_of_another_size_are_read_and_then_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut outbox, _) = open(dir.path(), SMALL);
    for seq in 1..40 {
        outbox.append(&record(seq)).unwrap();
    }
    outbox.sync().unwrap();
    drop(outbox);
    let larger = Limits { segment_bytes: 8192, max_bytes: 65536, ..SMALL };
    let (mut outbox, found) = open(dir.path(), larger);
    assert_eq!(contents(&mut outbox, &found), (1..40).collect());
    outbox.append(&record(40)).unwrap();
    outbox.release(Seq(39));
    outbox.sync().unwrap();
    for seq in 41..100 {
        outbox.append(&record(seq)).unwrap();
    }
    outbox.sync().unwrap();
    drop(outbox);
    let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap());
    let segments = names.filter(|entry| entry.file_name().to_str().unwrap().starts_with("segment-"));
    segments.for_each(|entry| assert_eq!(entry.metadata().unwrap().len(), 8192));
    let (mut outbox, found) = open(dir.path(), larger);
    assert_eq!(contents(&mut outbox, &found), (40..100).collect());
}

#[test]
fn a_hundred_thousand_waiting_records_are_found_and_stream_in_linear_time() {
    let dir = tempfile::tempdir().unwrap();
    let (mut outbox, _) = open(dir.path(), Limits::default());
    for seq in 1..=100_000 {
        outbox.append(&sized(seq, 100)).unwrap();
        if seq % 1000 == 0 {
            outbox.sync().unwrap();
        }
    }
    drop(outbox);
    let start = Instant::now();
    let (mut outbox, found) = open(dir.path(), Limits::default());
    eprintln!("recovered {} messages, {} bytes in {:?}", found.messages, found.bytes, start.elapsed());
    assert_eq!((found.messages, found.ranges, found.damaged), (100_000, vec![1..=100_000], vec![]));
    let mut quarters = Vec::new();
    for quarter in 0..4 {
        let start = Instant::now();
        for seq in quarter * 25_000 + 1..=(quarter + 1) * 25_000 {
            assert_eq!(outbox.read(Seq(seq)).unwrap().unwrap().id, format!("boot.7.{seq}"));
            if seq > 64 {
                outbox.release(Seq(seq - 64));
            }
        }
        quarters.push(start.elapsed());
    }
    eprintln!("read and released 25,000 at a time in {quarters:?}");
    assert_eq!(outbox.messages(), 64);
    assert!(quarters[3] < quarters[0] * 4, "{quarters:?}");
}

#[test]
fn a_small_file_is_replaced_whole_or_not_at_all() {
    for_seeds(300, |seed| {
        let disk = Simulated::default();
        let path = Path::new("/state/list");
        let mut ends = vec![];
        for turn in 1..5u8 {
            replace_file_on(&disk, path, &vec![turn; 700 * usize::from(turn)]).unwrap();
            ends.push(disk.deeds());
        }
        let mut replay = simulated::Replay::new(&disk, seed);
        let mut random = Random(seed);
        for number in 0..disk.deeds() {
            let cut = replay.cut(&mut random, None);
            let promised = ends.iter().filter(|&&end| end <= number).count() as u8;
            match cut.open(path) {
                Ok(file) => {
                    let mut bytes = [0; 4000];
                    let count = cut.read_at(&file, &mut bytes, 0).unwrap();
                    assert!(bytes[0] >= promised && count == 700 * usize::from(bytes[0]));
                    assert!(bytes[..count].iter().all(|&byte| byte == bytes[0]));
                }
                Err(_) => assert_eq!(promised, 0),
            }
            replay.perform(&disk.deed(number));
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("list");
    replace_file(&path, b"one").unwrap();
    replace_file(&path, b"two").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"two");
    assert!(replace_file(&dir.path().join("none/list"), b"x").is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
