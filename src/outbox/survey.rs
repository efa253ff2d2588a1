//! Reads what the segments hold at the start, and settles which of them holds what.
//!
//! Always true: the chain it makes is in the order of the seqs, no seq lies in two of its segments, and nothing that is
//! in any segment and not released is missing from it, except the worse of two copies. A segment that gave way to
//! another is never written again, lest its copy come back. It removes nothing, and writes only what it read.

use std::io;
use std::ops::RangeInclusive;
use std::path::Path;

use super::disk::{Disk, named};
use super::record::accepted;
use super::segment::{Scan, Segment};

/// A start holds one segment in memory; a file beyond this was not made by any sane configuration.
pub(super) const MAX_SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// What is read at a time where a whole segment cannot be read: the unit in which disks fail.
const BLOCK_BYTES: usize = 4096;

/// What one segment holds.
pub(super) struct Survey {
    pub segment: Segment,
    pub ranges: Vec<RangeInclusive<u64>>,
    /// Breaks in the chain; the first frame counts as one.
    pub holes: Vec<Hole>,
    /// The largest any frame states.
    pub released: u64,
    pub durable: u64,
    /// When the first record was accepted.
    pub oldest: Option<u64>,
    /// Bytes other than zero, and no frame of any lap.
    pub garbage: bool,
    /// Where and why it could not be read.
    pub error: Option<(u64, String)>,
    /// Another segment held the same records and gives way: this one must really have them.
    doubled: bool,
}

/// A place where frames may be missing: those behind `after` up to `previous`.
pub(super) struct Hole {
    pub salt: u64,
    pub at: u64,
    pub after: u64,
    pub previous: u64,
    pub before: u64,
}

impl Survey {
    fn new(segment: Segment) -> Self {
        let (ranges, holes) = (Vec::new(), Vec::new());
        let (garbage, doubled) = (false, false);
        Self { segment, ranges, holes, released: 0, durable: 0, oldest: None, garbage, doubled, error: None }
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

    /// Number of records in this range of seqs.
    fn count(&self, seqs: &RangeInclusive<u64>) -> u64 {
        let common = |range: &RangeInclusive<u64>| {
            let end = (*range.end()).min(*seqs.end()).saturating_add(1);
            end.saturating_sub((*range.start()).max(*seqs.start()))
        };
        self.ranges.iter().map(common).sum()
    }
}

/// Adds a range behind the others.
pub(super) fn join(ranges: &mut Vec<RangeInclusive<u64>>, range: RangeInclusive<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end().checked_add(1) == Some(*range.start()) => *last = *last.start()..=*range.end(),
        Some(_) | None => ranges.push(range),
    }
}

/// Reads segments, one at a time.
pub(super) struct Surveyor<'a, D> {
    disk: &'a D,
    dir: &'a Path,
    buffer: Vec<u8>,
}

impl<'a, D: Disk> Surveyor<'a, D> {
    pub fn new(disk: &'a D, dir: &'a Path) -> Self {
        Self { disk, dir, buffer: Vec::new() }
    }

    /// What the segment holds with a seq between `after` and `below`, both excluded.
    pub fn survey(&mut self, segment: Segment, after: u64, below: u64) -> Survey {
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
    pub fn untangle(&mut self, surveys: Vec<Survey>, released: u64) -> (Vec<Survey>, Vec<Survey>) {
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
        for mut survey in alive {
            let Some((first, last)) = survey.segment.span else { continue };
            // Two segments hold the same seqs when a sync failed and the records were written again elsewhere. Nothing
            // that was promised is in the failed one only, but any part of it may be there.
            while let Some(mut other) = chain.pop_if(|other| other.segment.last() >= Some(first)) {
                let end = other.segment.last().unwrap_or(first);
                let both = first..=end.min(last);
                if (other.count(&both), end) > (survey.count(&both), last) {
                    other.doubled = true;
                    survey = self.again(survey, end, u64::MAX);
                    survey.segment.bad = true;
                    chain.push(other);
                    break;
                }
                survey.doubled = true;
                other = self.again(other, released, first);
                other.segment.bad = true;
                if other.segment.span.is_none() { &mut idle } else { &mut chain }.push(other);
            }
            if survey.segment.span.is_none() { &mut idle } else { &mut chain }.push(survey);
        }
        (chain, idle)
    }

    fn again(&mut self, survey: Survey, after: u64, below: u64) -> Survey {
        let Segment { salt, size, bad, .. } = survey.segment;
        let mut again = self.survey(Segment::new(salt, size), after, below);
        again.segment.bad |= bad;
        again.doubled = survey.doubled;
        again.error = again.error.or(survey.error);
        again
    }

    /// Makes all that the chain holds durable, if it is not.
    pub fn make_durable(&mut self, chain: &[Survey], durable: u64) -> io::Result<()> {
        for survey in chain.iter().filter(|survey| survey.doubled) {
            self.write_again(&survey.segment, 0)?;
        }
        chain.last().map_or(Ok(()), |newest| self.write_again(&newest.segment, durable))
    }

    /// Writes the frames behind `durable` once more where they are, and syncs: a process that was killed, or whose
    /// sync failed, may have left them in memory only.
    fn write_again(&mut self, segment: &Segment, durable: u64) -> io::Result<()> {
        let Some((first, _)) = segment.span.filter(|&(_, last)| last > durable && !segment.bad) else {
            return Ok(());
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
            .map_err(|error| named(&path, error))
    }
}
