//! A disk that is read-only, full or broken, at the start and later (R-SF-11).

use super::*;
use crate::outbox::tests::simulated::{EIO, ENOSPC, EROFS};

/// A disk on which each lane holds the messages 1 to 5.
fn filled() -> Simulated {
    let disk = Simulated::default();
    let mut turned = Turned::open(&disk);
    for lane in [0, 1, 3] {
        (1..=5).for_each(|number| turned.append(seq(lane, number), 100));
    }
    turned.turn();
    disk
}

#[test]
fn a_disk_that_is_read_only_at_the_start_ends_nothing_and_is_recovered_later() {
    let disk = filled();
    disk.fail(0..u64::MAX, EROFS);
    let mut turned = Turned::open(&disk);
    let base = turned.found[0].highest;
    assert!(base > 1 << 52 && turned.found[0].runs.is_empty());
    assert_eq!(turned.turn(), [Event::StorageFailed { full: false }]);
    let figures = turned.worker.figures();
    assert!(figures.trouble().is_some_and(|words| words.contains("os error 30")), "{:?}", figures.trouble());
    // The heart takes messages all the same, and has one of them through before the disk is back.
    turned.append(seq(0, base + 1), 10);
    turned.append(seq(0, base + 2), 10);
    assert_eq!(turned.fetch(seq(0, base + 2)), Some(body(seq(0, base + 2), 10)));
    turned.take(StoreJob::Release(seq(0, base + 1)));
    assert_eq!(turned.after(900), []);
    disk.heal();
    assert_eq!(turned.after(50), [], "it is tried once a second");
    let told = turned.after(1000);
    for lane in [0, 1, 3] {
        let recovered = Event::Recovered { lane: Number(lane), runs: vec![1..=5], highest: 5 };
        assert!(told.contains(&recovered), "{told:?}");
    }
    assert!(told.contains(&Event::Stored { through: seq(0, base + 2) }));
    assert_eq!((told.last(), figures.trouble()), (Some(&Event::StorageHealed), None));
    // What the heart said before it knew does not mean what was recovered; its answer comes below it.
    turned.take(StoreJob::Release(seq(0, base + 2)));
    turned.after(2000);
    assert_eq!(turned.fetch(seq(0, 3)), Some(body(seq(0, 3), 100)));
    turned.take(StoreJob::Release(seq(0, 0)));
    turned.take(StoreJob::Release(seq(0, 3)));
    turned.after(2000);
    drop(turned);
    let turned = Turned::open(&disk.cut(1));
    assert_eq!(turned.runs(0), [4, 5, base + 2]);
    assert_eq!(turned.found[0].highest, base + 2, "numbers go on from there");
}

#[test]
fn a_lane_whose_numbers_were_given_out_twice_is_left_to_the_next_start() {
    let disk = filled();
    let mut turned = Turned::open(&disk);
    turned.append(seq(1, 1 << 54), 10);
    turned.turn();
    disk.fail(0..u64::MAX, EIO);
    let mut turned = Turned::open(&disk);
    disk.heal();
    let told = turned.after(61_000);
    assert!(!told.iter().any(|event| matches!(event, Event::Recovered { lane: Number(1), .. })), "{told:?}");
    assert!(!told.contains(&Event::StorageHealed), "{told:?}");
    assert_eq!(Turned::open(&disk).runs(1), [1, 2, 3, 4, 5, 1 << 54]);
}

#[test]
fn a_full_disk_is_told_and_what_waits_is_stored_when_it_has_room() {
    let disk = Simulated::default();
    let mut turned = Turned::open(&disk);
    disk.fail(0..u64::MAX, ENOSPC);
    turned.append(seq(0, 1), 10);
    turned.append(seq(3, 1), 10);
    turned.append(seq(3, 2), 10);
    assert_eq!(turned.turn(), [Event::StorageFailed { full: true }]);
    // The heart gives one up, and asks for the others again when it may.
    turned.take(StoreJob::Discard(seq(3, 1), seq(3, 1)));
    assert_eq!(turned.fetch(seq(3, 1)), None);
    disk.heal();
    turned.append(seq(0, 1), 10);
    let told = turned.after(1000);
    let stored = |lane, number| Event::Stored { through: seq(lane, number) };
    assert_eq!(told, [stored(0, 1), stored(3, 2), Event::StorageHealed]);
    let turned = Turned::open(&disk.cut(1));
    assert_eq!((turned.runs(0), turned.runs(3)), (vec![1], vec![2]));
}

#[test]
fn a_fault_at_any_call_of_the_start_ends_nothing() {
    let count = {
        let disk = filled();
        let before = disk.calls();
        Turned::open(&disk);
        disk.calls() - before
    };
    for call in 0..count {
        for errno in [EIO, ENOSPC, EROFS] {
            let disk = filled();
            disk.fail(disk.calls() + call..disk.calls() + call + 1, errno);
            let mut turned = Turned::open(&disk);
            turned.turn();
            disk.heal();
            let told = turned.after(61_000);
            for lane in [0, 1, 3] {
                let late = |event: &Event| matches!(event, Event::Recovered { lane: Number(l), runs, .. } if *l == lane && *runs == [1..=5]);
                let there = turned.runs(usize::from(lane)) == [1, 2, 3, 4, 5] || told.iter().any(late);
                // A segment that could not be read is left alone, and found by the next start.
                assert!(there || errno == EIO && Turned::open(&disk).runs(usize::from(lane)).len() == 5, "call {call}");
            }
        }
    }
}

#[test]
fn only_what_a_person_must_mend_ends_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let open = |state: &Path| super::super::open(state, &mut Config::defaults());
    let opened = open(dir.path()).unwrap();
    assert_eq!(open(dir.path()).err().unwrap().kind(), io::ErrorKind::ResourceBusy);
    drop(opened);
    assert!(open(dir.path()).is_ok());
    std::fs::write(dir.path().join("file"), "").unwrap();
    assert_eq!(open(&dir.path().join("file")).err().unwrap().kind(), io::ErrorKind::NotADirectory);
    // A place where nothing can be made is no reason to stay away.
    let opened = open(Path::new("/proc/nowhere")).unwrap();
    assert!(opened.unreleased[0].highest > 1 << 52);
}

#[test]
fn a_directory_that_went_with_its_card_is_made_anew_when_the_state_directory_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let open = || open_on(crate::outbox::Local, &state, &lanes(), None).unwrap();
    let (mut worker, _, _) = open();
    let mut now = Instant::now();
    let mut after = |worker: &mut Worker<crate::outbox::Local>, millis: u64| {
        now += Duration::from_millis(millis);
        worker.turn(now, WALL);
        std::mem::take(&mut worker.told)
    };
    let append = |worker: &mut Worker<_>, seq| worker.take(StoreJob::Append(body(seq, 10)), Instant::now());
    let stored = |lane, number| Event::Stored { through: seq(lane, number) };
    for lane in [0, 3] {
        append(&mut worker, seq(lane, 1));
    }
    assert_eq!(after(&mut worker, 0), [stored(0, 1), stored(3, 1)]);
    std::fs::remove_dir_all(&state).unwrap();
    append(&mut worker, seq(0, 2));
    append(&mut worker, seq(3, 2));
    assert_eq!(after(&mut worker, 0), [Event::StorageFailed { full: false }]);
    append(&mut worker, seq(0, 3));
    assert_eq!(after(&mut worker, 1_000), []);
    assert!(!state.exists(), "whatever is to be mounted there is not there yet");
    std::fs::create_dir(&state).unwrap();
    assert_eq!(after(&mut worker, 1_000), [stored(0, 3), stored(3, 2), Event::StorageHealed]);
    let (answer, mut told) = oneshot::channel();
    worker.take(StoreJob::Read(vec![seq(0, 1), seq(0, 2)], answer), Instant::now());
    let read = told.try_recv().unwrap();
    assert_eq!((read[0].clone(), read[1].clone()), (None, Some(body(seq(0, 2), 10))));
    worker.close();
    let (_, found, _) = open();
    assert_eq!((found[0].runs.clone(), found[3].runs.clone()), (vec![2..=3], vec![2..=2]));
}
