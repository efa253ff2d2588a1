//! The outbox: what was promised survives a power cut at any byte.
//!
//! ```text
//! outbox/lock               held by the one process that uses the directory
//!        cursor             up to which seq everything may be forgotten        (see `cursor`)
//!        segment-SALT  …    records, one behind the other, mostly 1 MiB each   (see `segment`, `record`)
//!        segment-SALT.damaged   set aside, at most four                        (see `recover`)
//!
//! append ──► pending, in memory ──► sync: one write, one fdatasync ──► live segments ──► read
//!                                                                         │ release
//!                                     written again from the start ◄── free segments
//! ```
//!
//! It decides where bytes go and when they count as kept, and nothing else: what to send, when to sync and what to
//! give up is the caller's business. It holds the pending records (at most one segment), three stretches of 64 KiB
//! for reading and a mark for every 64 KiB on disk, however many messages wait. Of a `Seq` it looks at the number only:
//! each lane has an outbox of its own.
//!
//! Always true:
//! - After `sync` says `Ok`, every record appended before is found again until it is released.
//! - A record comes back after `release` only if no `sync` or `close` has succeeded since: a repeat, never a loss.
//! - At most one segment holds records that are not durable; the next is begun only when it is synced.
//! - A segment is written again only when the cursor file durably releases all it ever held.
//! - A failed sync is not tried again on the same pages: the segment is retired, and the records, still in memory, are
//!   written to another one by the next `sync`.
//! - The files never take more than `max_bytes`, not counting the cursor and the files set aside.
//!
//! It never starts threads, never looks at a clock, never deletes a record by itself, and does not shrink: filling a
//! segment with zeros again would cost the card more than the room is worth.

mod cache;
mod cursor;
mod disk;
mod limits;
mod pending;
mod record;
mod recover;
mod renew;
mod replace;
mod room;
mod segment;
mod survey;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use switchback_control::event::NUMBER_MAX;

use cache::Cache;
use cursor::Cursor;
use pending::Pending;
use record::{CHAIN_BYTES, Chain, HEAD_BYTES};
use recover::recover;
use room::Ahead;
use segment::Segment;

pub use cursor::can_read;
pub use disk::{Disk, Local};
pub use limits::{AppendError, Limits, MAX_RECORD, SEGMENT_BYTES};
pub use record::{Record, Seq};
pub use recover::{Damage, Recovered, Why};
pub use replace::{asides, is_aside, replace_file, replace_file_on, set_aside};
pub use room::Preparation;

/// The file whose lock keeps others out.
const LOCK: &str = "lock";

/// The durable store of messages. Dropping it without [`Outbox::close`] is a power cut without the cut: what was not
/// synced is gone.
pub struct Outbox<D: Disk = Local> {
    disk: D,
    dir: PathBuf,
    limits: Limits,
    cursor: Cursor<D::File>,
    /// In the order of their seqs; while `active` is open, the last one is being written.
    live: VecDeque<Segment>,
    active: Option<D::File>,
    free: Vec<Segment>,
    /// To be removed when the disk lets us.
    dead: Vec<Segment>,
    unread_bytes: u64,
    ahead: Ahead,
    pending: Pending,
    cache: Cache,
    released: u64,
    /// Up to where `messages` and `bytes` are without what is released: behind `released` when the disk could not read.
    counted: u64,
    /// Highest seq given to `append` or `release`, or found.
    highest: u64,
    /// Highest seq in a segment, and highest known to be durable.
    written: u64,
    durable: u64,
    /// Records on disk were released, and nothing durable says so yet.
    unstated: bool,
    /// A write of what is pending failed, and may yet turn up on disk.
    attempted: bool,
    messages: u64,
    bytes: u64,
    _lock: D::Lock,
}

impl Outbox {
    /// Opens the outbox in `dir`, creating it (mode 0700) if needed. Reads every segment once.
    ///
    /// # Errors
    /// `ResourceBusy` when another process uses it, `ReadOnlyFilesystem`, `StorageFull` (on the very first start),
    /// `Unsupported` for files of a newer version, `InvalidInput` for limits that cannot be, and what else the disk
    /// answers to a write. The content of files is no error: see [`Recovered::damaged`].
    pub fn open(dir: &Path, limits: Limits) -> io::Result<(Self, Recovered)> {
        Self::open_on(Local, dir, limits)
    }
}

impl<D: Disk> Outbox<D> {
    /// [`Outbox::open`] on a given disk.
    ///
    /// # Errors
    /// As [`Outbox::open`].
    pub fn open_on(disk: D, dir: &Path, limits: Limits) -> io::Result<(Self, Recovered)> {
        limits.check()?;
        disk.create_dir(dir)?;
        let lock = disk.lock(&dir.join(LOCK))?;
        let found = recover(&disk, dir, limits.segment_bytes)?;
        let open_end = |last: &&Segment| !last.bad && last.size == limits.segment_bytes;
        let active = match found.live.back().filter(open_end) {
            Some(last) => Some(disk.open(&last.path(dir))?),
            None => None,
        };
        let outbox = Self {
            disk,
            dir: dir.to_path_buf(),
            limits,
            unstated: false,
            cursor: found.cursor,
            live: found.live,
            active,
            free: found.free,
            dead: found.dead,
            unread_bytes: found.unread_bytes,
            ahead: Ahead::default(),
            pending: Pending::default(),
            cache: Cache::default(),
            released: found.released,
            counted: found.released,
            highest: found.highest,
            written: found.written,
            durable: found.durable,
            attempted: false,
            messages: found.report.messages,
            bytes: found.report.bytes,
            _lock: lock,
        };
        Ok((outbox, found.report))
    }

    /// Takes a record; it is durable after the next `sync`. Seqs must ascend, gaps are allowed. It touches the disk
    /// only when a segment is full: then it syncs what is pending and begins the next one.
    ///
    /// # Errors
    /// See [`AppendError`]; what was appended before stays as it was.
    pub fn append(&mut self, record: &Record) -> Result<(), AppendError> {
        let number = record.seq.number();
        if number <= self.highest || number == NUMBER_MAX {
            return Err(AppendError::NotAscending { highest: Seq(self.highest) });
        }
        let content = record::encode_content(record);
        let (bytes, frame) = (content.len() as u64, frame_limit(&content));
        let limit = self.limits.content_bytes();
        if bytes > limit {
            return Err(AppendError::TooLarge { bytes, limit });
        }
        self.make_room(frame)?;
        self.highest = number;
        self.pending.push(number, content);
        self.messages += 1;
        self.bytes += frame;
        Ok(())
    }

    /// Makes durable all that was appended and released so far: with one write and one fdatasync, or without any when
    /// nothing on disk would change. Appending records and releasing others costs no more than appending alone.
    ///
    /// # Errors
    /// What the disk answered, `StorageFull` too. What was appended since the last success is then **not** durable,
    /// stays readable, and is written to another segment by the next call.
    pub fn sync(&mut self) -> io::Result<()> {
        self.flush()?;
        if self.unstated { self.save_cursor() } else { Ok(()) }
    }

    /// The record `seq`: `None` when it was released, was never appended, or has become unreadable. A caller who knows
    /// that it was appended and not released counts `None` as lost. Reading upwards costs one read for 64 KiB.
    ///
    /// # Errors
    /// The disk could not read; trying again may help.
    pub fn read(&mut self, seq: Seq) -> io::Result<Option<Record>> {
        let number = seq.number();
        if number <= self.released {
            return Ok(None);
        }
        let record = match self.pending.get(number) {
            Some(content) => record::decode_content(number, content),
            None => match self.live.get(self.place(number)) {
                Some(segment) => self.cache.read(&self.disk, &self.dir, segment, number)?,
                None => None,
            },
        };
        Ok(record.map(|record| Record { seq, ..record }))
    }

    /// The first record behind this number that is not released; its lane is not put back.
    ///
    /// # Errors
    /// As [`Outbox::read`].
    pub fn next(&mut self, after: u64) -> io::Result<Option<Record>> {
        let after = after.max(self.released);
        for place in self.place(after + 1)..self.live.len() {
            let Some(segment) = self.live.get(place) else { break };
            let found = self.cache.next(&self.disk, &self.dir, segment, after)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(self.pending.next(after).and_then(|(number, content)| record::decode_content(number, content)))
    }

    /// Allows everything up to and including `through` to be forgotten. It writes nothing: the next `sync` that has
    /// something to write, or `close`, makes it durable. What is released before it was written is never written.
    pub fn release(&mut self, through: Seq) {
        let through = through.number();
        if through <= self.released {
            return;
        }
        self.released = through;
        self.highest = self.highest.max(through);
        let (records, bytes) = self.pending.release(through);
        self.unstated |= records > 0 && self.attempted;
        self.forget(records, bytes);
        while let Some(front) = self.live.front().filter(|front| front.last().is_some_and(|last| last <= through)) {
            let (records, bytes) = (front.records, front.bytes);
            self.unstated |= records > 0;
            self.forget(records, bytes);
            if self.live.len() == 1 && self.active.is_some() {
                self.live.iter_mut().for_each(|last| (last.records, last.bytes) = (0, 0));
                self.counted = through;
                return;
            }
            if let Some(front) = self.live.pop_front() {
                self.shelve(front);
            }
        }
        self.release_partly(through);
    }

    /// Number of messages not released, pending ones included.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Bytes the messages not released take on disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Syncs, and writes the cursor file if anything durable changed since it was written.
    ///
    /// # Errors
    /// As [`Outbox::sync`]; what was not durable is lost then.
    pub fn close(mut self) -> io::Result<()> {
        let flushed = self.flush();
        self.take_prepared();
        let untold = self.written > self.cursor.durable;
        let stated = if self.unstated || untold { self.save_cursor() } else { Ok(()) };
        Ok(flushed.and(stated.map_err(AppendError::Io))?)
    }

    /// Writes and syncs what is pending.
    fn flush(&mut self) -> Result<(), AppendError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        if self.active.is_none() {
            self.begin_segment(self.pending.bytes())?;
        }
        let (Some(file), Some(segment)) = (&self.active, self.live.back_mut()) else {
            return Err(AppendError::Io(io::Error::other("no segment to write to")));
        };
        let chain = Chain { previous: self.written, durable: self.durable, released: self.released };
        let (image, frames) = self.pending.seal(segment.salt, chain);
        let written = self.disk.write_at(file, &image, segment.end).and_then(|()| self.disk.sync(file));
        if let Err(error) = written {
            let error = disk::named(&segment.path(&self.dir), error);
            self.retire();
            return Err(AppendError::Io(error));
        }
        for (seq, bytes) in frames {
            segment.note(seq, segment.end, bytes);
            self.written = seq;
        }
        self.durable = self.written;
        self.bytes = self.bytes.saturating_sub(self.pending.bytes()) + image.len() as u64;
        self.pending = Pending::default();
        (self.unstated, self.attempted) = (false, false);
        Ok(())
    }

    /// The active segment failed: it is never written again, and removed when nothing in it is needed.
    fn retire(&mut self) {
        (self.active, self.attempted) = (None, true);
        let Some(mut segment) = self.live.pop_back() else { return };
        segment.bad = true;
        if segment.last().is_some_and(|last| last > self.released) {
            self.live.push_back(segment);
        } else {
            self.shelve(segment);
            self.remove_dead();
        }
    }

    /// The first segment that may hold this number.
    fn place(&self, number: u64) -> usize {
        self.live.partition_point(|segment| segment.last().is_some_and(|last| last < number))
    }

    fn save_cursor(&mut self) -> io::Result<()> {
        self.cursor.save(&self.disk, self.released, self.durable)?;
        self.unstated = false;
        Ok(())
    }

    /// Only the oldest segment can be released in part.
    fn release_partly(&mut self, through: u64) {
        let Some(front) = self.live.front_mut() else { return };
        let Ok((records, bytes)) = self.cache.measure(&self.disk, &self.dir, front, self.counted, through) else {
            self.unstated = true;
            return;
        };
        let (records, bytes) = (records.min(front.records), bytes.min(front.bytes));
        front.records -= records;
        front.bytes -= bytes;
        self.counted = through;
        self.unstated |= records > 0;
        self.forget(records, bytes);
    }

    fn forget(&mut self, records: u64, bytes: u64) {
        self.messages = self.messages.saturating_sub(records);
        self.bytes = self.bytes.saturating_sub(bytes);
        if self.messages == 0 {
            // Nothing is left to read.
            self.cache = Cache::default();
        }
    }
}

/// The most a frame with this content takes.
fn frame_limit(content: &[u8]) -> u64 {
    (HEAD_BYTES + CHAIN_BYTES + content.len()) as u64
}
