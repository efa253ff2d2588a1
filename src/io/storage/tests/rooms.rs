//! Room: lanes that are made, full, roomy again, too old, left behind; and what is set aside.

use flowsdk::mqtt_serde::mqttv5::common::properties::Property;

use super::*;
use crate::corridor::SetAside;
use crate::io::packet::properties_to_bytes;

#[test]
fn a_lane_is_made_when_something_is_to_be_kept_there() {
    let disk = Simulated::default();
    let mut turned = Turned::open(&disk);
    assert!(disk.paths().iter().all(|path| path.starts_with("/state/outbox")), "{:?}", disk.paths());
    assert_eq!(turned.worker.record_limits(), [28_672 + 4046, 28_672 + 4046, MAX_RECORD_BYTES, 28_672 + 4046]);
    turned.append(seq(3, 1), 100);
    assert_eq!(turned.turn(), [Event::Stored { through: seq(3, 1) }]);
    assert_eq!(segments(&disk, "outbox-bulk").len(), 1);
    assert_eq!(segments(&disk, "outbox-critical").len(), 0);
    assert_eq!(Turned::open(&disk.cut(1)).runs(3), [1]);
}

const MAX_RECORD_BYTES: u64 = crate::outbox::MAX_RECORD;

#[test]
fn a_full_lane_is_told_again_for_each_new_front_and_stops_no_other() {
    let disk = Simulated::default();
    let mut turned = Turned::open(&disk);
    let mut number = 0;
    let through = loop {
        number += 1;
        turned.append(seq(1, number), 1000);
        let told = turned.after(10);
        if let Some(Event::LaneFull { through }) = told.last() {
            break *through;
        }
        assert_eq!(told, [Event::Stored { through: seq(1, number) }]);
    };
    assert!(through.lane() == Number(1) && through.number() > 25 && through.number() < number - 25, "{through}");
    turned.append(seq(1, number + 1), 1000);
    turned.append(seq(0, 1), 1000);
    assert_eq!(turned.after(10), [Event::Stored { through: seq(0, 1) }], "said once, and others go on");
    // A part of the oldest segment is no room.
    turned.take(StoreJob::Release(seq(1, through.number() - 1)));
    assert_eq!(turned.after(10), []);
    turned.take(StoreJob::Release(through));
    assert_eq!(turned.after(10), [Event::Stored { through: seq(1, number + 1) }]);
    // It is roomy when yet another segment could be begun.
    turned.take(StoreJob::Release(seq(1, number - 1)));
    let roomy = Event::LaneRoomy { lane: Number(1) };
    let told = turned.after(10);
    assert_eq!(told, [roomy]);
    turned.after(2000);
    let turned = Turned::open(&disk.cut(1));
    assert_eq!(turned.runs(1), [number, number + 1]);
}

#[test]
fn what_is_too_old_is_told_once_a_minute_and_not_by_a_wrong_clock() {
    let disk = Simulated::default();
    let mut turned = Turned::open(&disk);
    for (number, seconds) in [(1, Some(30)), (2, Some(40)), (3, None), (4, Some(30)), (5, Some(3000))] {
        let properties = seconds.map(Property::MessageExpiryInterval).into_iter().collect();
        let record = Record { properties: properties_to_bytes(&properties), ..(*body(seq(3, number), 10)).clone() };
        turned.take(StoreJob::Append(Arc::new(record)));
    }
    turned.turn();
    turned.wall = 1_000;
    assert_eq!(turned.after(61_000), [], "a clock that was not set");
    turned.wall = WALL;
    assert_eq!(turned.worker.patience(turned.now), Some(Duration::from_secs(60)));
    let expired = |from, through| Event::Expired { attempt: None, from: seq(3, from), through: seq(3, through) };
    assert_eq!(turned.after(60_000), [expired(1, 2), expired(4, 4)]);
    turned.take(StoreJob::Release(seq(3, 2)));
    // The fourth stays in the log behind the third, and saying it again does no harm.
    assert_eq!(turned.after(60_000), [expired(4, 4)]);
    turned.take(StoreJob::Release(seq(3, 5)));
    turned.after(60_000);
    assert_eq!(turned.after(60_000), []);
    assert_eq!(turned.worker.patience(turned.now), None, "nothing is stored: nothing wakes it");
}

/// A message that may wait so many seconds, or for ever.
fn aged(seq: Seq, seconds: Option<u32>) -> StoreJob {
    let properties = seconds.map(Property::MessageExpiryInterval).into_iter().collect();
    let record = Record { properties: properties_to_bytes(&properties), ..(*body(seq, 1)).clone() };
    StoreJob::Append(Arc::new(record))
}

#[test]
fn what_is_too_old_is_found_behind_much_that_may_stay() {
    let disk = Simulated::default();
    let lanes = [LaneConfig { max_size: 4 << 20, ..lanes().swap_remove(0) }];
    let mut turned = Turned::open_as(&disk, &lanes);
    (1..=4000).for_each(|number| turned.take(aged(seq(0, number), None)));
    (4001..=4010).for_each(|number| turned.take(aged(seq(0, number), Some(30))));
    turned.turn();
    turned.after(0);
    let found = Event::Expired { attempt: None, from: seq(0, 4001), through: seq(0, 4010) };
    let looks = (1..=9).find(|_| turned.after(60_000).contains(&found));
    assert_eq!(looks, Some(5), "each goes on where the last one ended");
    assert_eq!((1..=9).find(|_| turned.after(60_000).contains(&found)), Some(5), "and round again");
    // In a full lane nobody waits so long.
    turned.after(60_000);
    turned.take(StoreJob::FindExpired(Number(0)));
    let looks = (1..=9).find(|look| turned.after(if *look == 1 { 0 } else { 1_000 }).contains(&found));
    assert_eq!(looks, Some(5), "a second apart, from the first on");
    assert_eq!(turned.worker.patience(turned.now), Some(Duration::from_secs(60)), "and then it is over");
}

#[test]
fn figures_tell_each_lane_and_all() {
    let disk = Simulated::default();
    let mut turned = Turned::open(&disk);
    (1..=9).for_each(|number| turned.append(seq(3, number), 100));
    turned.append(seq(0, 1), 100);
    turned.turn();
    let figures = turned.worker.figures();
    let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
    let bytes: Vec<u64> = figures.lanes.iter().map(|lane| read(&lane.bytes)).collect();
    assert!(bytes[3] > 1000 && bytes[0] > 100 && bytes[1] == 0 && bytes[2] == 0, "{bytes:?}");
    assert_eq!(read(&figures.bytes), bytes.iter().sum::<u64>());
    assert_eq!((read(&figures.oldest_accepted), read(&figures.lanes[1].oldest_accepted)), (WALL - 1000, 0));
    turned.take(StoreJob::Release(seq(0, 1)));
    turned.take(StoreJob::Release(seq(3, 9)));
    turned.after(10);
    assert_eq!((read(&figures.bytes), read(&figures.oldest_accepted)), (0, 0));
}

fn set_asides(turned: &mut Turned) -> Vec<SetAside> {
    let (answer, mut told) = oneshot::channel();
    turned.take(StoreJob::SetAsides(answer));
    told.try_recv().unwrap()
}

#[test]
fn what_the_server_rejected_is_kept_with_its_reason_until_it_is_cleared() {
    let disk = Simulated::default();
    let mut turned = Turned::open(&disk);
    turned.append(seq(3, 1), 9000);
    turned.turn();
    turned.take(StoreJob::SetAside(seq(3, 1), None, "quota exceeded".into()));
    turned.take(StoreJob::SetAside(seq(0, 7), Some(body(seq(0, 7), 3)), "not authorized".into()));
    turned.take(StoreJob::SetAside(seq(0, 8), None, "nobody has it".into()));
    turned.turn();
    let mut turned = Turned::open(&disk.cut(1));
    let list = set_asides(&mut turned);
    assert_eq!(list.len(), 2);
    let SetAside { topic, id, class, why, bytes, payload, .. } = &list[0];
    assert_eq!((topic.as_str(), id.as_str(), class.as_str()), ("plant/1", "boot.7.3.1", "bulk"));
    assert_eq!((why.as_str(), *bytes, payload.len()), ("quota exceeded", 9000, 4096_usize.div_ceil(3) * 4));
    assert_eq!((list[1].why.as_str(), list[1].payload.as_str()), ("not authorized", "BwcH"));
    for number in 1..1000 {
        turned.take(StoreJob::SetAside(seq(1, number), Some(body(seq(1, number), 4000)), "no".into()));
        if number % 7 == 0 {
            turned.turn();
        }
    }
    let list = set_asides(&mut turned);
    assert!(list.len() > 90 && list.len() < 200, "{}", list.len());
    assert_eq!(list.last().unwrap().id, "boot.7.1.999");
    let (answer, mut told) = oneshot::channel();
    turned.take(StoreJob::ClearSetAsides(answer));
    assert_eq!((told.try_recv(), set_asides(&mut turned)), (Ok(true), vec![]));
}

#[test]
fn what_an_earlier_configuration_left_is_sent_and_then_cleared_away() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let mut config = Config::defaults();
        let opened = super::super::open(dir.path(), &mut config).unwrap();
        (opened, config)
    };
    let names = || {
        let entries =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = entries.collect();
        names.sort();
        names
    };
    let old = dir.path().join("outbox-old@unmetered");
    for seq in [1, 2] {
        let (mut outbox, found) = crate::outbox::Outbox::open(&old, Limits::of(LANE_BYTES)).unwrap();
        assert_eq!(found.messages, seq - 1);
        outbox.append(&body(Seq(seq), 10)).unwrap();
        outbox.close().unwrap();
    }
    let (opened, config) = open();
    assert_eq!((config.lanes.len(), config.settings.lanes.len()), (5, 5));
    assert_eq!((config.lanes[4].class.as_str(), opened.unreleased[4].runs.clone()), ("old", vec![1..=2]));
    let mut worker = opened.storage.worker;
    worker.take(StoreJob::Release(seq(4, 2)), Instant::now());
    worker.close();
    assert_eq!(names(), ["outbox", "outbox-old@unmetered"]);
    let (opened, config) = open();
    assert_eq!((config.lanes.len(), config.settings.lanes.len(), opened.unreleased.len()), (4, 4, 4));
    assert_eq!(names(), ["outbox"]);
    drop(opened);
    // One that cannot be read holds up nobody, and stays.
    let (mut outbox, _) = crate::outbox::Outbox::open(&old, Limits::of(LANE_BYTES)).unwrap();
    outbox.append(&body(Seq(1), 10)).unwrap();
    outbox.close().unwrap();
    std::fs::remove_file(old.join("cursor")).unwrap();
    std::fs::create_dir(old.join("cursor")).unwrap();
    let (opened, config) = open();
    assert_eq!((config.lanes.len(), opened.unreleased[0].highest), (4, 0));
    assert_eq!(names(), ["outbox", "outbox-old@unmetered"]);
}
