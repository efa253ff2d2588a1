//! Power cuts at every byte of what several lanes and the pledges write, and between any two of their syncs.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::outbox::tests::simulated::{Deed, EIO, ENOSPC, EROFS, Random, Replay};

const DISK_LANES: [u8; 3] = [0, 1, 3];

/// What was true after so many deeds.
#[derive(Clone, Default)]
struct Known {
    deeds: usize,
    appended: BTreeMap<u8, u64>,
    released: BTreeMap<u8, u64>,
    synced: BTreeMap<u8, u64>,
    stored: BTreeSet<Seq>,
    /// Answered, and not redeemed.
    pledged: BTreeMap<u16, (Seq, bool)>,
    /// Asked for since no exchange was open.
    asked: BTreeSet<(u16, Seq, bool)>,
    /// The exchange is over, whatever the disk knows.
    redeemed: BTreeSet<Seq>,
    /// It is over, and its identifier durably another's.
    over: BTreeSet<Seq>,
    /// Then the disk may not know that no exchange is open.
    disk_fails: bool,
}

/// One turn of a heart that keeps its rules: it pledges what is stored, and releases what is through, in order.
fn live(turned: &mut Turned, known: &mut Known, random: &mut Random) {
    let mut answers = Vec::new();
    for _ in 0..=random.below(5) {
        let lane = DISK_LANES[random.below(3) as usize];
        let id = *PLEDGED_HERE.start() + random.below(4) as u16;
        match random.below(12) {
            0..=4 => {
                let next = known.appended.entry(lane).or_default();
                *next += 1;
                turned.append(seq(lane, *next), random.below(300) as usize);
            }
            5..=7 => match known.pledged.get(&id).copied() {
                Some((seq, false)) => answers.push(((seq, id, true), turned.pledge(seq, id, true))),
                Some((seq, true)) => {
                    turned.take(StoreJob::Redeem(id));
                    known.redeemed.insert(seq);
                    known.pledged.remove(&id);
                }
                None if !answers.iter().any(|((_, asked, _), _)| *asked == id) => {
                    let busy = |seq: &Seq| {
                        known.redeemed.contains(seq)
                            || known.pledged.values().any(|(pledged, _)| pledged == seq)
                            || answers.iter().any(|((asked, ..), _)| asked == seq)
                    };
                    let free = known.stored.iter().filter(|seq| !busy(seq));
                    let Some(seq) = free.copied().nth(random.below(3) as usize) else { continue };
                    answers.push(((seq, id, false), turned.pledge(seq, id, false)));
                }
                None => {}
            },
            8..=9 => {
                let through = known.released.get(&lane).copied().unwrap_or(0) + random.below(4);
                let through = through.min(known.appended.get(&lane).copied().unwrap_or(0));
                let busy = |(pledged, _): &(Seq, bool)| pledged.lane().0 == lane && pledged.number() <= through;
                let asked = answers.iter().any(|((seq, ..), _)| seq.lane().0 == lane && seq.number() <= through);
                if asked || known.pledged.values().any(busy) {
                    continue;
                }
                turned.take(StoreJob::Release(seq(lane, through)));
                known.released.insert(lane, through);
                known.stored.retain(|seq| seq.lane().0 != lane || seq.number() > through);
            }
            10 if random.below(6) == 0 && answers.is_empty() => {
                turned.take(StoreJob::RedeemAll);
                known.pledged.clear();
                if !known.disk_fails {
                    known.asked.clear();
                }
            }
            _ => {}
        }
    }
    known.asked.extend(answers.iter().map(|((seq, id, received), _)| (*id, *seq, *received)));
    for event in turned.after(random.below(3) * 400) {
        let Event::Stored { through } = event else { continue };
        let synced = known.synced.insert(through.lane().0, through.number()).unwrap_or(0);
        let first = synced.max(known.released.get(&through.lane().0).copied().unwrap_or(0)) + 1;
        known.stored.extend((first..=through.number()).map(|number| Seq::new(through.lane(), number)));
    }
    for ((seq, id, received), mut told) in answers {
        if told.try_recv() != Ok(true) {
            // Only memory knows, and that will be gone.
            known.pledged.remove(&id);
            known.redeemed.insert(seq);
            continue;
        }
        known.pledged.insert(id, (seq, received));
        let earlier = known.asked.iter().filter(|(other, was, _)| *other == id && *was != seq && !known.disk_fails);
        known.over.extend(earlier.map(|(_, seq, _)| seq).filter(|seq| known.redeemed.contains(seq)));
    }
}

const PLEDGED_HERE: std::ops::RangeInclusive<u16> = crate::corridor::PLEDGED;

/// After a cut while what was `before` became what is `during`.
fn check(disk: &Simulated, before: &Known, during: &Known) {
    let mut turned = Turned::open(disk);
    let mut found = BTreeSet::new();
    for lane in DISK_LANES {
        let numbers = turned.runs(usize::from(lane));
        found.extend(numbers.into_iter().map(|number| seq(lane, number)));
    }
    for seq in &found {
        let read = turned.fetch(*seq).unwrap_or_else(|| panic!("{seq} was reported, and is missing"));
        assert_eq!(read, body(*seq, read.payload.len()));
        assert!(seq.number() <= during.appended[&seq.lane().0], "{seq} from nowhere");
        // What is through is not sent again; at most its last step is, which the server takes for what it is.
        let last_step = turned.pledges.iter().any(|pledge| pledge.seq == *seq && pledge.received);
        assert!(last_step || !before.over.contains(seq), "{seq} is through, and would be sent again");
    }
    let released = |seq: &Seq| seq.number() <= during.released.get(&seq.lane().0).copied().unwrap_or(0);
    let lost =
        before.stored.iter().filter(|seq| !found.contains(seq) && !released(seq) && !during.redeemed.contains(seq));
    assert_eq!(lost.collect::<Vec<_>>(), [] as [&Seq; 0], "told as stored, and lost");
    let pledges: BTreeMap<u16, (Seq, bool)> =
        turned.pledges.iter().map(|Pledge { seq, id, received }| (*id, (*seq, *received))).collect();
    for (id, (seq, received)) in &pledges {
        assert!(found.contains(seq), "a pledge without its message");
        let asked = |known: &Known| known.asked.contains(&(*id, *seq, *received));
        assert!(asked(before) || asked(during), "{id} {seq} was never pledged");
    }
    for (id, (seq, received)) in &before.pledged {
        let still = during.pledged.get(id).is_some_and(|(now, _)| now == seq);
        if still && found.contains(seq) {
            let (kept, step) = pledges.get(id).unwrap_or_else(|| panic!("{id} {seq} was pledged, and is lost"));
            assert!(kept == seq && step >= received, "{id}: {seq} {received}, and now {kept} {step}");
        }
    }
}

fn story(disk: &Simulated, seed: u64, turns: u64) -> Vec<Known> {
    let mut random = Random(seed);
    let mut known = Known::default();
    let mut history = vec![known.clone()];
    let mut turned = Turned::open(disk);
    known.deeds = disk.deeds();
    history.push(known.clone());
    for _ in 0..turns {
        live(&mut turned, &mut known, &mut random);
        known.deeds = disk.deeds();
        history.push(known.clone());
    }
    history
}

#[test]
fn nothing_promised_in_any_lane_is_lost_by_a_power_cut_at_any_byte() {
    let cuts = std::cell::Cell::new(0);
    for_seeds(1, |seed| {
        let disk = Simulated::default();
        let history = story(&disk, seed, 60);
        let mut replay = Replay::new(&disk, seed);
        let mut random = Random(seed);
        for number in 0..disk.deeds() {
            let place = history.partition_point(|known| known.deeds <= number);
            let (before, during) = (&history[place - 1], &history[place]);
            let mut try_cut = |begun: Option<(u64, u64, &[u8])>| {
                cuts.set(cuts.get() + 1);
                check(&replay.cut(&mut random, begun), before, during);
            };
            try_cut(None);
            let deed = disk.deed(number);
            if let Deed::Write { file, at, bytes } = &deed {
                let zeros = bytes.iter().all(|&byte| byte == 0);
                for end in (1..=bytes.len()).step_by(if zeros { 4096 } else { bytes.len().div_ceil(64) }) {
                    try_cut(Some((*file, *at, &bytes[..end])));
                }
            }
            replay.perform(&deed);
        }
    });
    eprintln!("{} cuts", cuts.get());
}

#[test]
fn nothing_promised_in_any_lane_is_lost_whatever_of_the_rest_is() {
    for_seeds(12, |seed| {
        let disk = Simulated::default();
        let history = story(&disk, seed, 150);
        let mut replay = Replay::new(&disk, seed);
        for number in 0..disk.deeds() {
            let place = history.partition_point(|known| known.deeds <= number);
            if number % 5 == seed as usize % 5 {
                let cut = replay.cut(&mut Random(seed << 32 | number as u64), None);
                check(&cut, &history[place - 1], &history[place]);
            }
            replay.perform(&disk.deed(number));
        }
    });
}

#[test]
fn nothing_promised_is_lost_when_calls_fail_and_then_power() {
    for_seeds(120, |seed| {
        let disk = Simulated::default();
        let mut random = Random(seed);
        let mut turned = Turned::open(&disk);
        let mut known = Known { disk_fails: true, ..Known::default() };
        for _ in 0..30 {
            if random.below(5) == 0 {
                let first = disk.calls() + random.below(12);
                let errno = [EIO, ENOSPC, EROFS][random.below(3) as usize];
                disk.fail(first..first + 1 + random.below(9), errno);
            }
            live(&mut turned, &mut known, &mut random);
        }
        let disk = disk.cut(seed);
        check(&disk, &known, &known);
    });
}

#[test]
fn a_kill_at_any_turn_loses_nothing_and_life_goes_on() {
    for_seeds(30, |seed| {
        let mut disk = Simulated::default();
        let mut random = Random(seed);
        for _ in 0..6 {
            let mut turned = Turned::open(&disk);
            let mut known = Known::default();
            for lane in DISK_LANES {
                let found = &turned.found[usize::from(lane)];
                known.appended.insert(lane, found.highest);
                known.synced.insert(lane, found.highest);
                known.released.insert(lane, found.runs.first().map_or(found.highest, |first| first.start() - 1));
                known.stored.extend(turned.runs(usize::from(lane)).into_iter().map(|number| seq(lane, number)));
            }
            for Pledge { seq, id, received } in turned.pledges.clone() {
                known.pledged.insert(id, (seq, received));
                known.asked.insert((id, seq, received));
            }
            for _ in 0..20 {
                live(&mut turned, &mut known, &mut random);
            }
            drop(turned);
            disk = if random.below(2) == 0 { disk.copy() } else { disk.cut(random.next()) };
            check(&disk.copy(), &known, &known);
        }
    });
}
