//! Finds out at the start what the outbox holds, and what it should hold but does not.
//!
//! Every segment is read once from end to end. What counts is `released` and `durable`: the largest any
//! whole frame or cursor slot states. A frame lives if its seq is above `released`. A frame that names a
//! predecessor nobody has found lies behind a **hole**: *lost* when records in it were durable, else
//! *unfinished*, the ordinary trace of a power cut in the middle of a write nobody relied on.
//!
//! Always true: no content of any file makes it panic or fail; a hole is reported once and remembered in the
//! cursor file; what it reports as found is durable, because frames of unknown durability are written again in
//! place and synced before it returns. It never removes or writes over a file it could not read.

use std::collections::VecDeque;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::cursor::{Condition, Cursor};
use super::disk::Disk;
use super::segment::{Segment, UNFINISHED, name, salt_of};
use super::survey::{Hole, Survey, Surveyor, join};

/// Evidence for the curious; more would only take room from messages.
const MAX_SET_ASIDE: usize = 4;
const SET_ASIDE: &str = ".damaged";
/// More seqs than files that could not be read can hold: new records must not share theirs.
const UNREAD_SEQS: u64 = 1 << 32;

/// What the outbox holds after a start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Runs of seqs not released, ascending, without gaps inside a run.
    pub ranges: Vec<RangeInclusive<u64>>,
    /// Number of messages not released.
    pub messages: u64,
    /// Their bytes on disk.
    pub bytes: u64,
    /// When the oldest message was accepted: milliseconds since the epoch.
    pub oldest_accepted: Option<u64>,
    /// The highest seq any file knows of, released or lost ones included, and some more when a file could not be read;
    /// new seqs must be higher. Seqs that never reached the disk are not covered.
    pub highest_seq: Option<u64>,
    /// What was found damaged for the first time.
    pub damaged: Vec<Damage>,
}

/// One thing that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Where in it the damage begins, in bytes.
    pub offset: u64,
    /// The last seq before it that is whole or released; 0 if there is none.
    pub after: u64,
    /// The first whole record behind it; 0 if unknown. What is missing lies between the two.
    pub before: u64,
    /// Its meaning.
    pub why: Why,
}

/// What a damage means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Durable records are missing: the disk lost or changed them.
    Lost,
    /// A power cut interrupted the newest write, of which a later part survived. Nothing that was promised is missing
    /// (unless the disk damaged exactly the last write before the cut, which looks the same).
    Unfinished,
    /// The file holds nothing readable and was renamed to this name; at most four such files are kept.
    SetAside,
    /// The disk could not read the file, or parts of it. It is left alone, and what it holds is found by a later start
    /// that can read it, unless it is released by then. Without it released messages may come back.
    Unreadable(String),
    /// No slot of the cursor file is whole: released messages may be sent again.
    CursorLost,
}

/// The state an outbox starts with.
pub(super) struct Recovery<F> {
    pub cursor: Cursor<F>,
    pub live: VecDeque<Segment>,
    /// Everything in these is released.
    pub free: Vec<Segment>,
    /// To be removed.
    pub dead: Vec<Segment>,
    /// Room taken by files left alone.
    pub unread_bytes: u64,
    pub released: u64,
    /// The last seq in a segment.
    pub written: u64,
    pub durable: u64,
    pub highest: u64,
    pub report: Recovered,
}

pub(super) fn recover<D: Disk>(disk: &D, dir: &Path, segment_bytes: u64) -> io::Result<Recovery<D::File>> {
    let files = disk.list(dir)?;
    for (name, _) in files.iter().filter(|(name, _)| name == UNFINISHED || name == "cursor.new") {
        disk.remove(&dir.join(name))?;
    }
    let present = files.iter().any(|(name, _)| name == "cursor");
    let (mut cursor, condition) = Cursor::open(disk, dir, present)?;
    let mut surveyor = Surveyor::new(disk, dir);
    let sizes = files.iter().filter_map(|(name, size)| Some((salt_of(name)?, *size)));
    let segments = sizes.map(|(salt, size)| Segment::new(salt, size));
    let surveys: Vec<Survey> = segments.map(|segment| surveyor.survey(segment, cursor.released, u64::MAX)).collect();
    let lost = condition == Condition::Damaged || (condition == Condition::New && !surveys.is_empty());
    let released = surveys.iter().map(|survey| survey.released).fold(cursor.released, u64::max);
    let stated = surveys.iter().map(|survey| survey.durable).fold(cursor.durable, u64::max);
    let (chain, mut idle) = surveyor.untangle(surveys, released);
    let written = chain.last().and_then(|survey| survey.segment.last()).unwrap_or(released);
    let durable = written.max(released).max(stated);
    surveyor.make_durable(&chain, stated)?;

    let mut report = Recovered::new(&chain);
    report.damaged = unreadable(dir, &cursor, lost, chain.iter().chain(&idle));
    let unread = report.damaged.iter().any(|damage| matches!(damage.why, Why::Unreadable(_)));
    let highest = durable.saturating_add(if unread { UNREAD_SEQS } else { 0 });
    report.highest_seq = Some(highest).filter(|&highest| highest > 0);
    // With a file unread, what is missing may be in there: nothing is said, nor noted, until a start can read it all.
    if !unread && (durable > 0 || lost) {
        let holes = holes(&chain, released, cursor.durable);
        let fresh: Vec<&Hole> = holes.iter().filter(|hole| !cursor.known.contains(&hole.before)).collect();
        report.damaged.extend(fresh.iter().map(|hole| hole.damage(dir, stated)));
        if fresh.iter().any(|hole| hole.after < stated) {
            let kept = files.iter().filter(|(name, _)| name.ends_with(SET_ASIDE)).count();
            set_aside(disk, dir, &mut idle, MAX_SET_ASIDE.saturating_sub(kept), &mut report.damaged)?;
        }
        cursor.known = holes.iter().map(|hole| hole.before).collect();
        // Also when nothing is new: what the cursor file says may itself be in memory only.
        cursor.save(disk, released, durable)?;
    }
    // What is named, and what is not, must still be so after a power cut before seqs are given out again.
    disk.sync_dir(dir)?;

    let unread_bytes = idle.iter().filter(|survey| survey.error.is_some()).map(|survey| survey.segment.size).sum();
    let idle = idle.into_iter().filter(|survey| survey.error.is_none());
    let idle = idle.map(|survey| Segment { outlived: released, ..survey.segment });
    let (free, dead) = idle.partition(|segment| segment.size == segment_bytes && !segment.bad);
    let live = chain.into_iter().map(|survey| survey.segment).collect();
    Ok(Recovery { cursor, live, free, dead, unread_bytes, released, written, durable, highest, report })
}

impl Recovered {
    fn new(chain: &[Survey]) -> Self {
        let mut report = Self::default();
        for survey in chain {
            report.messages += survey.segment.records;
            report.bytes += survey.segment.bytes;
            report.oldest_accepted = report.oldest_accepted.or(survey.oldest);
            for range in &survey.ranges {
                join(&mut report.ranges, range.clone());
            }
        }
        report
    }
}

impl Hole {
    fn damage(&self, dir: &Path, durable: u64) -> Damage {
        let why = if self.after < durable { Why::Lost } else { Why::Unfinished };
        let file = if self.salt == 0 { dir.to_path_buf() } else { dir.join(name(self.salt)) };
        Damage { file, offset: self.at, after: self.after, before: self.before, why }
    }
}

/// Which files could not be read, and whether the cursor is lost.
fn unreadable<'a, F>(
    dir: &Path,
    cursor: &Cursor<F>,
    lost: bool,
    surveys: impl Iterator<Item = &'a Survey>,
) -> Vec<Damage> {
    let damage = |file, offset, why| Damage { file, offset, after: 0, before: 0, why };
    let lost = lost.then(|| damage(dir.join("cursor"), 0, Why::CursorLost));
    let slots = cursor.unread().map(|(offset, error)| damage(dir.join("cursor"), offset, Why::Unreadable(error)));
    let segments = surveys.filter_map(|survey| {
        let (offset, error) = survey.error.clone()?;
        Some(damage(survey.segment.path(dir), offset, Why::Unreadable(error)))
    });
    lost.into_iter().chain(slots).chain(segments).collect()
}

/// The places where frames that are not released are missing, in order.
fn holes(chain: &[Survey], released: u64, durable: u64) -> Vec<Hole> {
    let mut last = 0;
    let mut holes = Vec::new();
    for survey in chain {
        for hole in &survey.holes {
            let after = hole.after.max(last).max(released);
            if hole.previous > after {
                holes.push(Hole { after, ..*hole });
            }
        }
        last = survey.segment.last().unwrap_or(last);
    }
    let after = last.max(released);
    if durable > after {
        let (salt, at) = chain.last().map_or((0, 0), |survey| (survey.segment.salt, survey.segment.end));
        holes.push(Hole { salt, at, after, previous: durable, before: durable.saturating_add(1) });
    }
    holes
}

/// Gives up to `room` files that hold nothing but garbage another name.
fn set_aside<D: Disk>(
    disk: &D,
    dir: &Path,
    idle: &mut Vec<Survey>,
    room: usize,
    damaged: &mut Vec<Damage>,
) -> io::Result<()> {
    let (garbage, rest) = std::mem::take(idle).into_iter().partition(|survey| survey.garbage);
    *idle = rest;
    for (number, survey) in Vec::<Survey>::into_iter(garbage).enumerate() {
        if number >= room || survey.error.is_some() {
            idle.push(survey);
            continue;
        }
        let file = dir.join(name(survey.segment.salt) + SET_ASIDE);
        disk.rename(&survey.segment.path(dir), &file)?;
        damaged.push(Damage { file, offset: 0, after: 0, before: 0, why: Why::SetAside });
    }
    Ok(())
}
