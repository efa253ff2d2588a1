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
use super::disk::{Disk, named};
use super::record::accepted;
use super::segment::{Scan, Segment, UNFINISHED, name, salt_of};

/// Evidence for the curious; more would only take room from messages.
const MAX_SET_ASIDE: usize = 4;
/// Recovery holds one segment in memory; a file beyond this was not made by any sane configuration.
pub(super) const MAX_SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// What is read at a time where a whole segment cannot be read: the unit in which disks fail.
const BLOCK_BYTES: usize = 4096;
const SET_ASIDE: &str = ".damaged";

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
    /// The highest seq any file knows of, released or lost ones included; new seqs must be higher. Seqs that never
    /// reached the disk are not covered.
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
    /// The disk could not read the file, or parts of it. It is left alone and read again at the next start.
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
    pub highest: u64,
    pub report: Recovered,
}

pub(super) fn recover<D: Disk>(disk: &D, dir: &Path, segment_bytes: u64) -> io::Result<Recovery<D::File>> {
    let files = disk.list(dir)?;
    for (name, _) in files.iter().filter(|(name, _)| name == UNFINISHED || name == "cursor.new") {
        disk.remove(&dir.join(name))?;
    }
    let present = files.iter().any(|(name, _)| name == "cursor");
    let (cursor, condition) = Cursor::open(disk, dir, present)?;
    let mut surveyor = Surveyor { disk, dir, buffer: Vec::new() };
    let sizes = files.iter().filter_map(|(name, size)| Some((salt_of(name)?, *size)));
    let surveys: Vec<Survey> =
        sizes.map(|(salt, size)| surveyor.survey(Segment::new(salt, size), cursor.released, u64::MAX)).collect();

    let mut report = Recovered::default();
    if condition == Condition::Damaged || (condition == Condition::New && !surveys.is_empty()) {
        let file = dir.join("cursor");
        report.damaged.push(Damage { file, offset: 0, after: 0, before: 0, why: Why::CursorLost });
    }
    report.damaged.extend(surveys.iter().filter_map(|survey| survey.unreadable(dir)));
    let released = surveys.iter().map(|survey| survey.released).fold(cursor.released, u64::max);
    let durable = surveys.iter().map(|survey| survey.durable).fold(cursor.durable, u64::max);
    let (chain, mut idle) = surveyor.untangle(surveys, released);

    let written = chain.last().and_then(|survey| survey.segment.last()).unwrap_or(released);
    let highest = written.max(released).max(durable);
    for survey in &chain {
        report.add(survey);
    }
    report.highest_seq = Some(highest).filter(|&highest| highest > 0);
    let holes = holes(&chain, released, cursor.durable);
    let fresh: Vec<&Hole> = holes.iter().filter(|hole| !cursor.known.contains(&hole.before)).collect();
    report.damaged.extend(fresh.iter().map(|hole| hole.damage(dir, durable)));
    if fresh.iter().any(|hole| hole.after < durable) {
        let kept = files.iter().filter(|(name, _)| name.ends_with(SET_ASIDE)).count();
        set_aside(disk, dir, &mut idle, MAX_SET_ASIDE.saturating_sub(kept), &mut report.damaged)?;
    }

    let mut recovery = Recovery {
        cursor,
        live: VecDeque::new(),
        free: Vec::new(),
        dead: Vec::new(),
        unread_bytes: idle.iter().filter(|survey| survey.error.is_some()).map(|survey| survey.segment.size).sum(),
        released,
        written,
        highest,
        report,
    };
    let healed = chain.last().map_or(Ok(false), |survey| surveyor.make_durable(&survey.segment, durable))?;
    recovery.cursor.known = holes.iter().map(|hole| hole.before).collect();
    if healed || !fresh.is_empty() || condition == Condition::Damaged {
        recovery.cursor.save(disk, released, highest)?;
    }
    // What is named, and what is not, must still be so after a power cut before seqs are given out again.
    disk.sync_dir(dir)?;
    recovery.live = chain.into_iter().map(|survey| survey.segment).collect();
    let idle = idle.into_iter().filter(|survey| survey.error.is_none());
    let idle = idle.map(|survey| Segment { outlived: released, ..survey.segment });
    (recovery.free, recovery.dead) = idle.partition(|segment| segment.size == segment_bytes && !segment.bad);
    Ok(recovery)
}

/// What one segment holds.
struct Survey {
    segment: Segment,
    ranges: Vec<RangeInclusive<u64>>,
    /// Breaks in the chain; the first frame counts as one.
    holes: Vec<Hole>,
    released: u64,
    durable: u64,
    oldest: Option<u64>,
    /// Bytes other than zero, and no frame of any lap.
    garbage: bool,
    /// Where and why it could not be read.
    error: Option<(u64, String)>,
}

/// A place where frames may be missing: those up to `previous` that `after` is not.
struct Hole {
    salt: u64,
    at: u64,
    after: u64,
    previous: u64,
    before: u64,
}

impl Hole {
    fn damage(&self, dir: &Path, durable: u64) -> Damage {
        let why = if self.after < durable { Why::Lost } else { Why::Unfinished };
        let file = if self.salt == 0 { dir.to_path_buf() } else { dir.join(name(self.salt)) };
        Damage { file, offset: self.at, after: self.after, before: self.before, why }
    }
}

impl Survey {
    fn new(segment: Segment) -> Self {
        let (ranges, holes) = (Vec::new(), Vec::new());
        Self { segment, ranges, holes, released: 0, durable: 0, oldest: None, garbage: false, error: None }
    }

    fn read(&mut self, bytes: &[u8], after: u64, below: u64) {
        let mut scan = Scan::new(bytes, 0, self.segment.salt, after, below);
        for found in scan.by_ref() {
            let (seq, chain, at) = (found.frame.seq, found.frame.chain, found.at as u64);
            let last = self.segment.last();
            if last.is_none_or(|last| chain.previous > last) {
                let (salt, previous) = (self.segment.salt, chain.previous);
                let hole = Hole { salt, at: self.segment.end, after: last.unwrap_or(0), previous, before: seq };
                self.holes.push(hole);
            }
            if last.is_none() {
                self.oldest = accepted(found.frame.content);
            }
            self.released = self.released.max(chain.released);
            self.durable = self.durable.max(chain.durable);
            self.segment.note(seq, at, found.frame.bytes as u64);
            join(&mut self.ranges, seq..=seq);
        }
        self.garbage = scan.seen == 0 && bytes.iter().any(|&byte| byte != 0);
    }

    fn unreadable(&self, dir: &Path) -> Option<Damage> {
        let (offset, error) = self.error.clone()?;
        let file = self.segment.path(dir);
        Some(Damage { file, offset, after: 0, before: 0, why: Why::Unreadable(error) })
    }
}

impl Recovered {
    fn add(&mut self, survey: &Survey) {
        self.messages += survey.segment.records;
        self.bytes += survey.segment.bytes;
        self.oldest_accepted = self.oldest_accepted.or(survey.oldest);
        for range in &survey.ranges {
            join(&mut self.ranges, range.clone());
        }
    }
}

fn join(ranges: &mut Vec<RangeInclusive<u64>>, range: RangeInclusive<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end().checked_add(1) == Some(*range.start()) => *last = *last.start()..=*range.end(),
        Some(_) | None => ranges.push(range),
    }
}

/// Reads segments, one at a time.
struct Surveyor<'a, D> {
    disk: &'a D,
    dir: &'a Path,
    buffer: Vec<u8>,
}

impl<D: Disk> Surveyor<'_, D> {
    fn survey(&mut self, segment: Segment, after: u64, below: u64) -> Survey {
        let mut survey = Survey::new(segment);
        survey.error = self.load(&survey.segment).err();
        survey.segment.bad = survey.error.is_some();
        survey.read(&self.buffer, after, below);
        survey
    }

    /// Brings the file into the buffer; what cannot be read is zeros there.
    fn load(&mut self, segment: &Segment) -> Result<(), (u64, String)> {
        self.buffer.clear();
        if segment.size > MAX_SEGMENT_BYTES {
            return Err((0, format!("{} bytes are no segment", segment.size)));
        }
        let file = self.disk.open(&segment.path(self.dir)).map_err(|error| (0, error.to_string()))?;
        self.buffer.resize(segment.size as usize, 0);
        if self.disk.read_at(&file, &mut self.buffer, 0).is_ok() {
            return Ok(());
        }
        let mut result = Ok(());
        for (number, block) in self.buffer.chunks_mut(BLOCK_BYTES).enumerate() {
            let at = (number * BLOCK_BYTES) as u64;
            if let Err(error) = self.disk.read_at(&file, block, at) {
                block.fill(0);
                result = result.and(Err((at, error.to_string())));
            }
        }
        result
    }

    /// The surveys in the order of their seqs, none twice, and those that hold nothing alive.
    fn untangle(&mut self, surveys: Vec<Survey>, released: u64) -> (Vec<Survey>, Vec<Survey>) {
        let mut idle = Vec::new();
        let mut alive = Vec::new();
        for mut survey in surveys {
            if survey.segment.span.is_some_and(|(first, _)| first <= released) {
                survey = self.again(survey, released, u64::MAX);
            }
            if survey.segment.span.is_some() { &mut alive } else { &mut idle }.push(survey);
        }
        alive.sort_by_key(|survey| survey.segment.span);
        let mut chain: Vec<Survey> = Vec::new();
        for survey in alive {
            let Some((first, last)) = survey.segment.span else { continue };
            // Two segments hold the same seqs when a sync failed and the records were written again elsewhere. The
            // older of the two then ends earlier, and what it holds of them was never promised.
            while let Some(older) = chain.pop_if(|older| older.segment.last() >= Some(first)) {
                let mut older = older;
                if older.segment.last() <= Some(last) {
                    older = self.again(older, released, first);
                    older.segment.bad = true;
                    if older.segment.span.is_none() { &mut idle } else { &mut chain }.push(older);
                } else {
                    chain.push(older);
                    break;
                }
            }
            let doubled = chain.last().is_some_and(|older| older.segment.last() >= Some(first));
            if doubled {
                let mut empty = Segment::new(survey.segment.salt, survey.segment.size);
                empty.bad = true;
                idle.push(Survey { error: survey.error, ..Survey::new(empty) });
            } else {
                chain.push(survey);
            }
        }
        (chain, idle)
    }

    fn again(&mut self, survey: Survey, after: u64, below: u64) -> Survey {
        let Segment { salt, size, bad, .. } = survey.segment;
        let mut again = self.survey(Segment::new(salt, size), after, below);
        again.segment.bad |= bad;
        again.error = again.error.or(survey.error);
        again
    }

    /// Writes the frames behind `durable` once more where they are, and syncs: a process that was killed, or whose
    /// sync failed, may have left them in memory only. Answers whether there were any.
    fn make_durable(&mut self, segment: &Segment, durable: u64) -> io::Result<bool> {
        let Some((first, _)) = segment.span.filter(|&(_, last)| last > durable && !segment.bad) else {
            return Ok(false);
        };
        let path = segment.path(self.dir);
        let at = segment.stretch(durable.max(first)).map_or(0, |stretch| stretch.start);
        let file = self.disk.open(&path)?;
        self.buffer.clear();
        self.buffer.resize((segment.end - at) as usize, 0);
        self.disk
            .read_at(&file, &mut self.buffer, at)
            .and_then(|_| self.disk.write_at(&file, &self.buffer, at))
            .and_then(|()| self.disk.sync(&file))
            .map_err(|error| named(&path, error))?;
        Ok(true)
    }
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
