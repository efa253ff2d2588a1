//! The whole daemon under power cuts, from a trace of what it really wrote.
//!
//! The real switchbackd runs with a cloud that comes and goes and an application that publishes in several classes with
//! QoS 1 and 2; what it does to its state directory is written down, and when it told whom what. Then, for thousands of
//! points of that trace, the directory is built as it could look after a power cut there, and a new start must find
//! every message that was acknowledged and has not arrived, a failover list that is the old or the new one, and a start
//! number that was never used. From some of them the real daemon starts, and the cloud must get everything.
//!
//! `POWER_CUTS=N` how many points (150), `POWER_STARTS=N` real starts (2), `POWER_SECONDS=N` length of the recording (8),
//! `POWER_SEED=N` which points. A failure keeps its recording and says how to look at the same cut again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "power_cut/guest.rs"]
mod guest;
#[path = "power_cut/replay.rs"]
mod replay;
#[path = "power_cut/stage.rs"]
mod stage;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use replay::{Deed, Disk, Random, parsed};
use stage::{Application, Note, Stage};
use switchback::io::storage::SavedFile;
use switchback::outbox::{Limits, Outbox, Seq, Why};

const NAME: &str = "what_was_acknowledged_survives_a_power_cut_at_any_point_of_the_trace";
const LISTS: [&str; 3] = ["ethernet cell", "ethernet", "wifi ethernet cell"];
/// How long a start may take until the cloud has everything.
const ALL_SENT: Duration = Duration::from_secs(60);

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().expect("a number"))
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_at_any_point_of_the_trace() {
    if std::env::var_os("POWER_INSIDE").is_none() {
        return inside_a_namespace();
    }
    let base = Path::new("/dev/shm");
    let base = if base.is_dir() { base.to_owned() } else { std::env::temp_dir() };
    let work = tempfile::Builder::new().prefix("switchback-power-").tempdir_in(base).unwrap();
    let seed = number("POWER_SEED", 1);
    let recorded = match std::env::var_os("POWER_RECORDING") {
        Some(kept) => Recording::load(Path::new(&kept)),
        None => Recording::make(&work.path().join("live")),
    };
    let verdict = std::panic::catch_unwind(|| {
        check_cuts(&recorded, seed, &work.path().join("cut"));
        check_that_a_lying_disk_is_found_out(&recorded, seed, &work.path().join("lie"));
        check_starts(&recorded, seed, work.path());
    });
    if let Err(panic) = verdict {
        let kept = std::env::temp_dir().join(format!("power-recording-{}", std::process::id()));
        recorded.save(&kept);
        eprintln!("again: POWER_RECORDING={} POWER_SEED={seed} tests/power", kept.display());
        std::panic::resume_unwind(panic);
    }
}

/// Network namespaces need root, or a user namespace.
fn inside_a_namespace() {
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    let status = Command::new("unshare")
        .arg(if root { "-n" } else { "-rn" })
        .arg("--")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env("POWER_INSIDE", "1")
        .status();
    assert!(status.expect("unshare is there").success());
}

/// The trace and the notes.
struct Recording {
    root: PathBuf,
    trace: Vec<u8>,
    notes: Vec<(u64, Note)>,
}

impl Recording {
    fn make(dir: &Path) -> Recording {
        let mut stage = Stage::new(dir, None);
        let root = dir.join("state");
        let (counter, mut random) = (Arc::new(AtomicU64::new(1)), Random(number("POWER_SEED", 1)));
        let until = Instant::now() + Duration::from_secs(number("POWER_SECONDS", 8));
        let mut life = 0;
        while Instant::now() < until || life < 2 {
            life += 1;
            stage.start(&root, true);
            await_service(&mut stage);
            stage.notes.note(Note::Serves(life));
            let application = Application::start(&stage, counter.clone(), Duration::from_millis(3));
            for _ in 0..3 {
                stage.cloud.be(random.below(3) > 0, random.below(3) > 0);
                let list = LISTS[random.below(LISTS.len())];
                sleep(Duration::from_millis(400 + random.below(900) as u64));
                change_list(&stage, list);
            }
            stage.kill();
            drop(application);
        }
        let once = stage.cloud.once.lock().unwrap().clone();
        let again: Vec<&String> = once.iter().filter(|(_, count)| **count > 1).map(|(name, _)| name).collect();
        let story = again.first().map(|name| stage.cloud.story_of(name)).unwrap_or_default();
        assert!(again.is_empty(), "of {} with QoS 2 these came again: {again:?}; the first:\n{story}", once.len());
        let notes = stage.notes.all();
        let (acked, got) = notes.iter().fold((0, 0), |(acked, got), (_, note)| match note {
            Note::Acked(_) => (acked + 1, got),
            Note::Got(_) => (acked, got + 1),
            _ => (acked, got),
        });
        eprintln!(
            "power: {life} lives, {} published, {acked} acknowledged, {got} arrived, {} with QoS 2 once each",
            counter.load(Ordering::Relaxed) - 1,
            once.len()
        );
        assert!(acked > 100 && got > 20, "nothing happened:\n{}", stage.log());
        Recording { root, trace: fs::read(dir.join("trace")).unwrap(), notes }
    }

    fn save(&self, dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("trace"), &self.trace).unwrap();
        let mut text = format!("{}\n", self.root.display());
        for (at, note) in &self.notes {
            text += &format!("{at} {note}\n");
        }
        fs::write(dir.join("notes"), text).unwrap();
    }

    fn load(dir: &Path) -> Recording {
        let text = fs::read_to_string(dir.join("notes")).unwrap();
        let (root, notes) = text.split_once('\n').unwrap();
        let notes = notes.lines().map(|line| {
            let mut words = line.splitn(3, ' ');
            let mut next = || words.next().unwrap().to_owned();
            let (at, kind, rest) = (next().parse().unwrap(), next(), next());
            let note = match kind.as_str() {
                "acked" => Note::Acked(rest),
                "got" => Note::Got(rest),
                "asked" => Note::Asked(rest),
                "held" => Note::Held(rest),
                _ => Note::Serves(rest.parse().unwrap()),
            };
            (at, note)
        });
        Recording { root: root.into(), trace: fs::read(dir.join("trace")).unwrap(), notes: notes.collect() }
    }
}

fn await_service(stage: &mut Stage) {
    let until = Instant::now() + Duration::from_secs(20);
    while stage.ask(r#"{"verb":"status"}"#).is_err() {
        assert!(Instant::now() < until && stage.lives(), "the daemon does not serve:\n{}", stage.log());
        sleep(Duration::from_millis(10));
    }
}

fn change_list(stage: &Stage, list: &str) {
    let items: Vec<String> = list.split(' ').map(|item| format!("\"{item}\"")).collect();
    stage.notes.note(Note::Asked(list.into()));
    let answer = stage.ask(&format!(r#"{{"verb":"failover-set","list":[{}]}}"#, items.join(","))).unwrap();
    assert!(answer.contains("\"ok\":true"), "{answer}");
    stage.notes.note(Note::Held(list.into()));
}

/// What must be true after a cut when the trace had this length.
#[derive(Default)]
struct Truth {
    /// Acknowledged, and not at the cloud.
    owed: BTreeSet<String>,
    lists: Vec<String>,
    starts: u64,
}

fn truth(notes: &[(u64, Note)], at: u64) -> Truth {
    let mut truth = Truth { lists: vec![String::new()], ..Truth::default() };
    for (_, note) in notes.iter().filter(|(seen, _)| *seen <= at) {
        match note {
            Note::Acked(name) => drop(truth.owed.insert(name.clone())),
            Note::Got(_) => {}
            Note::Asked(list) => truth.lists.push(list.clone()),
            Note::Held(list) => truth.lists = vec![list.clone()],
            Note::Serves(life) => truth.starts = *life,
        }
    }
    // An arrival may be noted a little before its acknowledgement, or after it.
    for (_, note) in notes.iter().filter(|(seen, _)| *seen <= at) {
        if let Note::Got(name) = note {
            truth.owed.remove(name);
        }
    }
    // What was asked for may have been written before the note of the next moment.
    let next = notes.iter().find(|(seen, note)| *seen > at && matches!(note, Note::Asked(_) | Note::Held(_)));
    if let Some((_, Note::Asked(list) | Note::Held(list))) = next {
        truth.lists.push(list.clone());
    }
    truth
}

/// Builds the directory as it could look after a cut at deed `place`.
fn build(recorded: &Recording, deeds: &[(u64, Deed)], disk: &Disk, place: usize, seed: u64, into: &Path) -> u64 {
    let mut random = Random(seed.wrapping_mul(1_000_003) ^ place as u64);
    disk.cut(&mut random, deeds.get(place).map(|(_, deed)| deed), &recorded.root, into);
    place.checked_sub(1).map_or(0, |last| deeds[last].0)
}

/// Points of the trace: each that something hangs on, and others at random, in order.
fn points(deeds: &[(u64, Deed)], count: usize, random: &mut Random) -> Vec<usize> {
    let mut points: Vec<usize> = (0..count).map(|_| random.below(deeds.len() + 1)).collect();
    points.sort_unstable();
    points
}

fn check_cuts(recorded: &Recording, seed: u64, place: &Path) {
    let deeds = parsed(&recorded.trace);
    let began = Instant::now();
    let points = points(&deeds, number("POWER_CUTS", 150) as usize, &mut Random(seed));
    let (mut disk, mut done, mut owed, mut damaged) = (Disk::default(), 0, 0, 0);
    for (round, &point) in points.iter().enumerate() {
        deeds[done..point].iter().for_each(|(_, deed)| disk.perform(deed));
        done = point;
        let at = build(recorded, &deeds, &disk, point, seed.wrapping_add(round as u64), place);
        let truth = truth(&recorded.notes, at);
        let (found, lost) = contents(place);
        let missing: Vec<&String> = truth.owed.iter().filter(|name| !found.contains(*name)).collect();
        assert!(missing.is_empty(), "cut at deed {point}, round {round}: acknowledged and gone: {missing:?}; {lost:?}");
        assert!(lost.is_empty(), "cut at deed {point}, round {round}: {lost:?}");
        let saved = SavedFile::new(place, "");
        let list: Vec<String> = saved.load().list.iter().map(ToString::to_string).collect();
        assert!(truth.lists.contains(&list.join(" ")), "cut at deed {point}: {list:?}, not one of {:?}", truth.lists);
        assert!(!place.join("saved.damaged").exists(), "cut at deed {point}: the list is damaged");
        let start = saved.next_start();
        assert!(start > truth.starts, "cut at deed {point}: start {start} again, after {}", truth.starts);
        owed += truth.owed.len();
        damaged += usize::from(place.join("sessions.damaged").exists());
    }
    assert_eq!(damaged, 0, "the sessions of a power cut are no damage");
    eprintln!(
        "power: seed {seed}, {} cuts in {} deeds, {owed} messages owed and found, {:.1} s",
        points.len(),
        deeds.len(),
        began.elapsed().as_secs_f64()
    );
}

/// A disk on which no sync does anything must lose something, or all of this proves nothing.
fn check_that_a_lying_disk_is_found_out(recorded: &Recording, seed: u64, place: &Path) {
    let deeds = parsed(&recorded.trace);
    let points = points(&deeds, 100, &mut Random(seed));
    let (mut disk, mut done) = (Disk::default(), 0);
    for &point in &points {
        let honest = deeds[done..point].iter().filter(|(_, deed)| !matches!(deed, Deed::SyncBegins { .. }));
        honest.for_each(|(_, deed)| disk.perform(deed));
        done = point;
        let at = build(recorded, &deeds, &disk, point, seed, place);
        let (owed, (found, lost)) = (truth(&recorded.notes, at).owed, contents(place));
        if !lost.is_empty() || !owed.is_subset(&found) {
            return;
        }
    }
    panic!("a disk that forgets everything loses nothing");
}

/// The messages in all outboxes of a state directory, and what is worse than the trace of a power cut.
fn contents(state: &Path) -> (BTreeSet<String>, Vec<String>) {
    let (mut found, mut lost) = (BTreeSet::new(), Vec::new());
    for entry in fs::read_dir(state).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if !(name.starts_with("outbox") && entry.path().is_dir()) {
            continue;
        }
        let limits = Limits { max_bytes: 1 << 30, ..Limits::default() };
        let (mut outbox, report) = Outbox::open(&entry.path(), limits).expect("nothing on a disk is an error");
        for seq in report.ranges.iter().cloned().flatten() {
            let record = outbox.read(Seq(seq)).unwrap().expect("what is reported is there");
            found.insert(String::from_utf8_lossy(&record.payload).split(' ').next().unwrap().to_owned());
        }
        let worse = report.damaged.iter().filter(|damage| damage.why != Why::Unfinished);
        lost.extend(worse.map(|damage| format!("{name}: {damage:?}")));
    }
    (found, lost)
}

/// The real daemon starts after a cut, and sends all that it owes.
fn check_starts(recorded: &Recording, seed: u64, work: &Path) {
    let deeds = parsed(&recorded.trace);
    let mut random = Random(seed ^ 0x5747);
    // Where much is owed, a start has much to do.
    let owed = |point: &usize| truth(&recorded.notes, deeds[point.saturating_sub(1)].0).owed.len();
    let best = |_| points(&deeds, 6, &mut random).into_iter().max_by_key(owed);
    let mut points: Vec<usize> = (0..number("POWER_STARTS", 2)).filter_map(best).collect();
    points.sort_unstable();
    if points.is_empty() {
        return;
    }
    let (mut disk, mut done) = (Disk::default(), 0);
    let mut stage = Stage::new(&work.join("again"), None);
    for (round, &point) in points.iter().enumerate() {
        deeds[done..point].iter().for_each(|(_, deed)| disk.perform(deed));
        done = point;
        let place = work.join(format!("start-{round}"));
        let at = build(recorded, &deeds, &disk, point, seed.wrapping_add(round as u64), &place);
        let truth = truth(&recorded.notes, at);
        stage.cloud.forget();
        stage.start(&place, false);
        await_service(&mut stage);
        let until = Instant::now() + ALL_SENT;
        loop {
            let arrived = stage.cloud.arrived.lock().unwrap().clone();
            let missing: Vec<&String> = truth.owed.iter().filter(|name| !arrived.contains_key(*name)).collect();
            if missing.is_empty() {
                break;
            }
            assert!(
                Instant::now() < until && stage.lives(),
                "start after a cut at deed {point}: {} of {} do not arrive: {:?}\n{}",
                missing.len(),
                truth.owed.len(),
                &missing[..missing.len().min(5)],
                stage.log()
            );
            sleep(Duration::from_millis(20));
        }
        stage.kill();
        eprintln!("power: a start after a cut at deed {point}: {} owed, all arrived", truth.owed.len());
    }
}
