//! What becomes of the pledges of QoS 2.

use super::*;
use crate::outbox::tests::simulated::Random;

fn kept(mut answer: oneshot::Receiver<bool>) -> bool {
    answer.try_recv().unwrap()
}

fn pledge(seq: Seq, id: u16, received: bool) -> Pledge {
    Pledge { seq, id, received }
}

/// A store that holds the messages 1 to 5 in lanes 0 and 3.
fn filled(disk: &Simulated) -> Turned {
    let mut turned = Turned::open(disk);
    for lane in [0, 3] {
        (1..=5).for_each(|number| turned.append(seq(lane, number), 100));
    }
    turned.turn();
    turned
}

#[test]
fn a_pledge_is_answered_when_it_is_durable_and_found_by_the_next_start() {
    let disk = Simulated::default();
    let mut turned = filled(&disk);
    let mut first = turned.pledge(seq(0, 2), 64_001, false);
    let second = turned.pledge(seq(3, 1), 64_256, false);
    assert!(first.try_recv().is_err());
    turned.turn();
    assert!(kept(first) && kept(second));
    assert_eq!(
        Turned::open(&disk.cut(1)).pledges,
        [pledge(seq(0, 2), 64_001, false), pledge(seq(3, 1), 64_256, false)]
    );
    let received = turned.pledge(seq(3, 1), 64_256, true);
    turned.turn();
    assert!(kept(received));
    let pledged = Turned::open(&disk.cut(2)).pledges;
    assert!(pledged.contains(&pledge(seq(3, 1), 64_256, true)) && pledged.len() == 2, "{pledged:?}");
}

#[test]
fn what_was_asked_for_before_a_pledge_is_durable_with_it_even_where_commits_wait() {
    let disk = Simulated::default();
    let (worker, found, pledges) =
        open_on(disk.clone(), Path::new(STATE), &lanes(), Some(Duration::from_secs(10))).unwrap();
    let mut turned = Turned { worker, found, pledges, now: Instant::now(), wall: WALL };
    turned.append(seq(1, 1), 10);
    assert_eq!(turned.turn(), []);
    let answer = turned.pledge(seq(1, 1), 64_001, false);
    assert_eq!(turned.turn(), [Event::Stored { through: seq(1, 1) }]);
    assert!(kept(answer));
    assert_eq!(Turned::open(&disk.cut(1)).pledges.len(), 1);
}

#[test]
fn a_message_that_is_through_is_not_found_again_though_an_older_one_keeps_it_in_the_log() {
    let disk = Simulated::default();
    let mut turned = filled(&disk);
    for received in [false, true] {
        turned.pledge(seq(0, 2), 64_001, received);
        turned.turn();
    }
    turned.take(StoreJob::Redeem(64_001));
    turned.pledge(seq(0, 4), 64_001, false);
    turned.turn();
    let cut = disk.cut(1);
    let again = Turned::open(&cut);
    assert_eq!((again.runs(0), again.pledges.clone()), (vec![1, 3, 4, 5], vec![pledge(seq(0, 4), 64_001, false)]));
    // Also when the oldest one left is behind it, and over any number of starts.
    turned.take(StoreJob::Release(seq(0, 1)));
    turned.after(2000);
    assert_eq!(Turned::open(&disk.cut(2)).runs(0), [3, 4, 5]);
    drop(again);
    assert_eq!(Turned::open(&cut.cut(3)).runs(0), [1, 3, 4, 5]);
}

#[test]
fn a_pledge_without_its_message_is_none_and_does_not_come_back() {
    let disk = Simulated::default();
    let mut turned = filled(&disk);
    turned.pledge(seq(0, 1), 64_001, false);
    turned.pledge(seq(3, 1), 64_002, false);
    turned.turn();
    turned.take(StoreJob::Release(seq(0, 5)));
    turned.after(2000);
    let cut = disk.cut(1);
    assert_eq!(Turned::open(&cut).pledges, [pledge(seq(3, 1), 64_002, false)]);
    assert_eq!(Turned::open(&disk.cut(1)).worker.orphans(), [64_001], "the server may still hold it");
    // Where somebody deletes a log, its numbers are used again, but no pledge of another life is.
    for path in cut.paths().iter().filter(|path| path.starts_with("/state/outbox-bulk")) {
        crate::outbox::Disk::remove(&cut, path).unwrap();
    }
    let mut turned = Turned::open(&cut);
    assert_eq!(turned.pledges, []);
    turned.append(seq(3, 1), 10);
    turned.turn();
    assert_eq!(Turned::open(&cut.cut(2)).pledges, []);
}

#[test]
fn no_pledge_outlives_the_server_s_session() {
    let disk = Simulated::default();
    let mut turned = filled(&disk);
    turned.pledge(seq(0, 1), 64_001, false);
    turned.pledge(seq(0, 2), 64_002, false);
    turned.turn();
    turned.take(StoreJob::Redeem(64_002));
    turned.take(StoreJob::RedeemAll);
    turned.turn();
    let again = Turned::open(&disk.cut(1));
    assert_eq!((again.pledges.clone(), again.runs(0)), (vec![], vec![1, 3, 4, 5]));
    let answer = turned.pledge(seq(0, 3), 64_001, false);
    turned.turn();
    assert!(kept(answer));
    assert_eq!(Turned::open(&disk.cut(2)).pledges, [pledge(seq(0, 3), 64_001, false)]);
}

#[test]
fn a_lane_in_memory_pledges_without_a_disk() {
    let disk = Simulated::default();
    let mut turned = filled(&disk);
    let deeds = disk.deeds();
    let answer = turned.pledge(seq(2, 1), 64_001, false);
    turned.turn();
    assert!(kept(answer));
    assert_eq!(disk.deeds(), deeds);
}

#[test]
fn a_pledge_finds_its_lane_where_the_configuration_has_moved_it() {
    let disk = Simulated::default();
    let mut turned = filled(&disk);
    turned.pledge(seq(3, 2), 64_001, true);
    turned.turn();
    let mut other = lanes();
    other.swap(1, 3);
    assert_eq!(Turned::open_as(&disk.cut(1), &other).pledges, [pledge(seq(1, 2), 64_001, true)]);
    other.remove(1);
    assert_eq!(Turned::open_as(&disk.cut(2), &other).pledges, []);
}

#[test]
fn no_content_of_the_file_makes_it_panic_or_invent_pledges() {
    let disk = Simulated::default();
    let mut turned = filled(&disk);
    for number in 1..=5 {
        turned.pledge(seq(0, number), 64_000 + number as u16, number % 2 == 0);
    }
    turned.turn();
    let path = Path::new(STATE).join("pledges");
    let was = Turned::open(&disk.copy()).pledges;
    assert_eq!(was.len(), 5);
    let mut random = Random(1);
    for turn in 0..400 {
        let copy = disk.copy();
        copy.change(&path, |bytes| match turn % 4 {
            0 => bytes.truncate(random.below(400) as usize),
            1 => bytes.iter_mut().for_each(|byte| *byte = random.next() as u8),
            2 => bytes[random.below(320) as usize] ^= 1 << random.below(8),
            _ => bytes.clear(),
        });
        let mut turned = Turned::open(&copy);
        assert!(turned.pledges.iter().all(|pledge| was.contains(pledge)));
        let answer = turned.pledge(seq(3, 5), 64_200, false);
        turned.turn();
        assert!(kept(answer));
        assert!(Turned::open(&copy.cut(turn)).pledges.contains(&pledge(seq(3, 5), 64_200, false)));
    }
}

#[test]
fn many_exchanges_go_around_in_a_bounded_file() {
    let disk = Simulated::default();
    let mut turned = Turned::open(&disk);
    for round in 0..40u64 {
        let numbers = round * 100 + 1..=round * 100 + 100;
        numbers.clone().for_each(|number| turned.append(seq(0, number), 10));
        turned.turn();
        for received in [false, true] {
            for number in numbers.clone() {
                turned.pledge(seq(0, number), 64_001 + (number % 256) as u16, received);
            }
            turned.turn();
        }
        numbers.clone().for_each(|number| turned.take(StoreJob::Redeem(64_001 + (number % 256) as u16)));
        turned.take(StoreJob::Release(seq(0, *numbers.end())));
        turned.after(2000);
        assert_eq!(Turned::open(&disk.copy()).pledges, []);
    }
    let size = crate::outbox::Disk::list(&disk, Path::new(STATE)).unwrap();
    assert_eq!(size, [("pledges".to_owned(), 65_536)]);
}
