//! Files that a newer version wrote: nothing of them is destroyed, and that version finds them again.

use std::fs;
use std::path::Path;

use super::*;
use crate::outbox::Outbox;

/// Gives every slot of the log's cursor this format, checks and all.
fn rewrite(dir: &Path, format: u8) {
    let mut bytes = fs::read(dir.join("cursor")).unwrap();
    for slot in bytes.chunks_mut(4096).filter(|slot| slot[0] != 0) {
        slot[6] = format;
        let count = u32::from_le_bytes(slot[12..16].try_into().unwrap()) as usize;
        let check = crc32c::crc32c_append(crc32c::crc32c(&slot[..8]), &slot[12..40 + 8 * count]);
        slot[8..12].copy_from_slice(&check.to_le_bytes());
    }
    fs::write(dir.join("cursor"), bytes).unwrap();
}

fn waiting(opened: &Opened) -> Vec<u64> {
    let count = |found: &Unreleased| found.runs.iter().map(|run| run.end() - run.start() + 1).sum();
    opened.unreleased.iter().map(count).collect()
}

#[test]
fn a_log_of_a_newer_version_is_set_aside_whole_and_sent_by_that_version_later() {
    let state = tempfile::tempdir().unwrap();
    let (dir, aside) = (state.path().join("outbox"), state.path().join("outbox.aside"));
    let (mut log, _) = Outbox::open_on(Local, &dir, Limits::of(1 << 20)).unwrap();
    for number in 1..=3 {
        log.append(&body(seq(0, number), 100)).unwrap();
    }
    log.sync().unwrap();
    drop(log);
    rewrite(&dir, 2);
    let before = fs::read(dir.join("cursor")).unwrap();

    let opened = open(state.path(), &mut Config::defaults()).unwrap();
    assert_eq!(waiting(&opened), [0, 0, 0, 0], "it starts, with empty queues");
    assert_eq!(fs::read(aside.join("cursor")).unwrap(), before);
    drop(opened);
    let again = open(state.path(), &mut Config::defaults()).unwrap();
    assert_eq!((waiting(&again).len(), again.storage.worker.is_unread(0)), (4, false), "left alone from then on");
    drop(again);

    // The version that can read it is back.
    rewrite(&aside, 1);
    let mut config = Config::defaults();
    let back = open(state.path(), &mut config).unwrap();
    assert_eq!(waiting(&back), [0, 0, 0, 0, 3]);
    assert_eq!(config.lanes[4].class, "normal");
}

#[test]
fn pledges_of_a_newer_version_are_set_aside() {
    let state = tempfile::tempdir().unwrap();
    let newer = b"switchback pledges 2\n".repeat(100);
    fs::write(state.path().join("pledges"), &newer).unwrap();
    let opened = open(state.path(), &mut Config::defaults()).unwrap();
    assert!(opened.pledges.is_empty());
    assert_eq!(fs::read(state.path().join("pledges.aside")).unwrap(), newer);
}
