//! A segment file: frames one behind the other in blocks that exist already.
//!
//! ```text
//! segment-SALT   frame │ frame │ frame │ zeros, or frames of an earlier lap        (1 MiB)
//!                └── this lap: seq grows ──┘ └ smaller seqs: not ours any more ┘
//! ```
//!
//! A file is filled with zeros once, synced and only then named, so that every later sync finds its blocks
//! allocated and needs no journal commit. When all its records are released it is written again from the
//! start. No header tells the laps apart: seqs never repeat, so what an earlier lap left has smaller ones, and
//! the outbox reuses a segment only after the cursor file durably says that all it held is released.
//!
//! Always true: a [`Scan`] yields whole frames of growing seq only, whatever the bytes, in time linear in
//! them. It never takes a payload for a frame (see `record`), and never writes into a finished lap.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::disk::{Disk, named};
use super::record::{Frame, HEAD_BYTES, frame};

/// Distance of two marks: 16 marks for a segment of 1 MiB, 4,096 for a full outbox of 256 MiB, 64 KiB in all.
/// It is also what one read from the file brings.
pub(super) const MARK_BYTES: u64 = 64 * 1024;
const PREFIX: &str = "segment-";
/// A file being filled with zeros; what is left of one is removed at the next start.
pub(super) const UNFINISHED: &str = "segment.new";

/// Where a record begins; about every [`MARK_BYTES`] there is one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    pub seq: u64,
    pub at: u64,
}

#[derive(Debug)]
pub(super) struct Segment {
    /// The file's own number: its name, and part of every check in it.
    pub salt: u64,
    /// Length of the file.
    pub size: u64,
    /// Where the next frame goes.
    pub end: u64,
    /// First and last seq of this lap.
    pub span: Option<(u64, u64)>,
    /// Records not released, and their frames' bytes.
    pub records: u64,
    pub bytes: u64,
    /// The highest seq of any frame in the file, as far as it may not come back: the file is written again only when
    /// the cursor file durably releases it.
    pub outlived: u64,
    /// Never written again: a sync failed, or it could not be read completely.
    pub bad: bool,
    pub marks: Vec<Mark>,
}

impl Segment {
    pub fn new(salt: u64, size: u64) -> Self {
        Self { salt, size, end: 0, span: None, records: 0, bytes: 0, outlived: 0, bad: false, marks: Vec::new() }
    }

    pub fn last(&self) -> Option<u64> {
        self.span.map(|(_, last)| last)
    }

    pub fn path(&self, dir: &Path) -> PathBuf {
        dir.join(name(self.salt))
    }

    /// Notes a frame of this lap at `at`, behind all others.
    pub fn note(&mut self, seq: u64, at: u64, bytes: u64) {
        if self.marks.last().is_none_or(|mark| at - mark.at >= MARK_BYTES) {
            self.marks.push(Mark { seq, at });
        }
        self.span = Some((self.span.map_or(seq, |(first, _)| first), seq));
        self.outlived = self.outlived.max(seq);
        self.end = at + bytes;
        self.records += 1;
        self.bytes += bytes;
    }

    /// The stretch between two marks in which `seq` lies if it is here at all.
    pub fn stretch(&self, seq: u64) -> Option<Range<u64>> {
        let next = self.marks.partition_point(|mark| mark.seq <= seq);
        let mark = self.marks.get(next.checked_sub(1)?)?;
        Some(mark.at..self.marks.get(next).map_or(self.end, |next| next.at))
    }

    /// The first marked seq behind `seq`.
    pub fn next_mark(&self, seq: u64) -> Option<u64> {
        self.marks.get(self.marks.partition_point(|mark| mark.seq <= seq)).map(|mark| mark.seq)
    }
}

/// The file name of the segment with this salt.
pub(super) fn name(salt: u64) -> String {
    format!("{PREFIX}{salt:016x}")
}

/// The salt in a segment's file name; `None` for other names.
pub(super) fn salt_of(file_name: &str) -> Option<u64> {
    let digits = file_name.strip_prefix(PREFIX)?;
    let salt = u64::from_str_radix(digits, 16).ok()?;
    (name(salt) == file_name).then_some(salt)
}

/// Creates a segment of `size` zeros, durable with its name.
pub(super) fn create<D: Disk>(disk: &D, dir: &Path, size: u64) -> io::Result<(Segment, D::File)> {
    let segment = Segment::new(disk.random(), size);
    let (unfinished, finished) = (dir.join(UNFINISHED), segment.path(dir));
    let created = fill(disk, &unfinished, size).and_then(|file| {
        disk.rename(&unfinished, &finished)?;
        disk.sync_dir(dir)?;
        Ok(file)
    });
    match created {
        Ok(file) => Ok((segment, file)),
        Err(error) => {
            // Best effort: on a full disk the room must not stay taken by a file nobody uses.
            let _ = disk.remove(&unfinished);
            let _ = disk.remove(&finished);
            Err(error)
        }
    }
}

fn fill<D: Disk>(disk: &D, path: &Path, size: u64) -> io::Result<D::File> {
    let file = disk.create(path)?;
    let zeros = vec![0; MARK_BYTES as usize];
    let mut at = 0;
    while at < size {
        let part = zeros.get(..(size - at) as usize).unwrap_or(&zeros);
        disk.write_at(&file, part, at).map_err(|error| named(path, error))?;
        at += part.len() as u64;
    }
    disk.sync(&file).map_err(|error| named(path, error))?;
    Ok(file)
}

/// A frame and where it begins.
pub(super) struct Found<'a> {
    pub at: usize,
    pub frame: Frame<'a>,
}

/// Walks through bytes of a segment from frame to frame; through damage from byte to byte.
pub(super) struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
    salt: u64,
    after: u64,
    below: u64,
    /// Whole frames passed, wanted or not.
    pub seen: u64,
}

impl<'a> Scan<'a> {
    /// Frames from offset `at` on whose seq lies between `after` and `below`, both excluded.
    pub fn new(bytes: &'a [u8], at: usize, salt: u64, after: u64, below: u64) -> Self {
        Self { bytes, at, salt, after, below, seen: 0 }
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = Found<'a>;

    fn next(&mut self) -> Option<Found<'a>> {
        loop {
            let rest = self.bytes.get(self.at..).filter(|rest| rest.len() > HEAD_BYTES)?;
            let at = self.at;
            let Some(frame) = frame(rest, self.salt) else {
                self.at += step(rest);
                continue;
            };
            self.at += frame.bytes;
            self.seen += 1;
            if frame.seq > self.after && frame.seq < self.below {
                self.after = frame.seq;
                return Some(Found { at, frame });
            }
        }
    }
}

/// How far to the next place where a frame could begin: its length, at byte 8, is not zero.
fn step(rest: &[u8]) -> usize {
    let zeros = rest.iter().skip(1).position(|&byte| byte != 0);
    zeros.map_or(rest.len(), |zeros| zeros.saturating_sub(11) + 1)
}
