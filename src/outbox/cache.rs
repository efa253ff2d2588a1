//! Reads records out of segments, a stretch of about 64 KiB at a time.
//!
//! Reading upwards costs one read and one check of every byte, whatever the number of records; no record has
//! an entry in memory outside the stretches kept. Always true: what it hands out passed its checks when it was
//! read. It keeps at most [`MAX_STRETCHES`], and never writes.

use std::io;
use std::path::Path;

use super::disk::{Disk, named};
use super::record::{self, Record};
use super::segment::{Scan, Segment};

/// Two places are read in turn when a backlog drains beside fresh messages, and releases follow a little
/// behind the older one.
const MAX_STRETCHES: usize = 3;

#[derive(Default)]
pub(super) struct Cache {
    /// The one used last is at the end.
    stretches: Vec<Stretch>,
}

struct Stretch {
    salt: u64,
    at: u64,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

struct Entry {
    seq: u64,
    at: usize,
    bytes: usize,
}

impl Cache {
    /// The record `seq` of this segment, unless it is missing or unreadable.
    pub fn read<D: Disk>(&mut self, disk: &D, dir: &Path, segment: &Segment, seq: u64) -> io::Result<Option<Record>> {
        let Some(stretch) = self.stretch(disk, dir, segment, seq)? else { return Ok(None) };
        let Ok(number) = stretch.entries.binary_search_by_key(&seq, |entry| entry.seq) else { return Ok(None) };
        Ok(stretch.record(number))
    }

    /// The first record of this segment behind `after`.
    pub fn next<D: Disk>(&mut self, disk: &D, dir: &Path, segment: &Segment, after: u64) -> io::Result<Option<Record>> {
        let mut place = segment.span.map(|(first, _)| first.max(after));
        while let Some(seq) = place {
            if let Some(stretch) = self.stretch(disk, dir, segment, seq)? {
                let number = stretch.entries.partition_point(|entry| entry.seq <= after);
                if let Some(record) = stretch.record(number) {
                    return Ok(Some(record));
                }
            }
            place = segment.next_mark(seq);
        }
        Ok(None)
    }

    /// How many records of this segment lie in `(after, through]`, and their bytes.
    pub fn measure<D: Disk>(
        &mut self,
        disk: &D,
        dir: &Path,
        segment: &Segment,
        after: u64,
        through: u64,
    ) -> io::Result<(u64, u64)> {
        let (mut records, mut bytes) = (0, 0);
        let mut seq = Some(after.max(segment.span.map_or(0, |(first, _)| first)));
        while let Some(place) = seq.filter(|&place| place <= through) {
            if let Some(stretch) = self.stretch(disk, dir, segment, place)? {
                let from = stretch.entries.partition_point(|entry| entry.seq <= after);
                let to = stretch.entries.partition_point(|entry| entry.seq <= through);
                let among = stretch.entries.get(from..to).unwrap_or_default();
                records += among.len() as u64;
                bytes += among.iter().map(|entry| entry.bytes as u64).sum::<u64>();
            }
            seq = segment.next_mark(place);
        }
        Ok((records, bytes))
    }

    /// Forgets what was read of a segment that is about to be written again.
    pub fn forget(&mut self, salt: u64) {
        self.stretches.retain(|stretch| stretch.salt != salt);
    }

    fn stretch<D: Disk>(&mut self, disk: &D, dir: &Path, segment: &Segment, seq: u64) -> io::Result<Option<&Stretch>> {
        let Some(range) = segment.stretch(seq) else { return Ok(None) };
        let same = |kept: &Stretch| kept.salt == segment.salt && kept.at == range.start;
        let kept = self.stretches.iter().position(same);
        let mut stretch = match kept {
            Some(place) => self.stretches.remove(place),
            None => Stretch { salt: segment.salt, at: range.start, bytes: Vec::new(), entries: Vec::new() },
        };
        if self.stretches.len() >= MAX_STRETCHES {
            self.stretches.remove(0);
        }
        stretch.extend(disk, dir, segment, range.end)?;
        self.stretches.push(stretch);
        Ok(self.stretches.last())
    }
}

impl Stretch {
    fn record(&self, number: usize) -> Option<Record> {
        let entry = self.entries.get(number)?;
        let frame = record::frame(self.bytes.get(entry.at..)?, self.salt)?;
        record::decode_content(entry.seq, frame.content)
    }

    /// Reads on to offset `end` of the file.
    fn extend<D: Disk>(&mut self, disk: &D, dir: &Path, segment: &Segment, end: u64) -> io::Result<()> {
        let old = self.bytes.len();
        let wanted = (end - self.at) as usize;
        if wanted <= old {
            return Ok(());
        }
        let path = segment.path(dir);
        let file = disk.open(&path)?;
        self.bytes.reserve_exact(wanted - old);
        self.bytes.resize(wanted, 0);
        let part = self.bytes.get_mut(old..).unwrap_or_default();
        let read = disk.read_at(&file, part, self.at + old as u64);
        // Zeros stand for what a file cut short no longer has.
        read.map_err(|error| named(&path, error))?;
        let (from, after) = self.entries.last().map_or((0, 0), |entry| (entry.at + entry.bytes, entry.seq));
        let below = segment.last().map_or(0, |last| last.saturating_add(1));
        let scan = Scan::new(&self.bytes, from, self.salt, after, below);
        let found = scan.map(|found| Entry { seq: found.frame.seq, at: found.at, bytes: found.frame.bytes });
        self.entries.extend(found);
        Ok(())
    }
}
