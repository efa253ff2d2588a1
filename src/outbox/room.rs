//! Which segment is written next, and whether there is one.
//!
//! Making one takes as long as several syncs, for which a message in the middle of a rush would have to wait. So the next
//! one may be made while the last is still written, by somebody else: see [`Preparation`]. Always true: a segment is
//! written again, or removed, only when the cursor file durably releases all it ever held, and the files never take more
//! than the limit. It never touches a record.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::mpsc;

use super::segment::{self, Segment};
use super::{AppendError, Disk, Outbox};

/// A segment to be made ahead, on any thread. Where it is dropped instead, the outbox makes one itself when it must.
pub struct Preparation<D: Disk> {
    disk: D,
    dir: PathBuf,
    size: u64,
    made: mpsc::Sender<io::Result<Segment>>,
}

impl<D: Disk> Preparation<D> {
    /// Makes it. An error is not told: the outbox will meet it again, unless it has gone by then.
    pub fn make(self) {
        let made = segment::create(&self.disk, &self.dir, self.size);
        let _ = self.made.send(made.map(|(segment, _)| segment));
    }
}

/// Whether the segment behind the active one is being made ahead; asked for once for each active one.
#[derive(Default)]
pub(super) enum Ahead {
    #[default]
    Unasked,
    Asked(mpsc::Receiver<io::Result<Segment>>),
}

impl<D: Disk> Outbox<D> {
    /// What should be made now, so that the next segment is there when the active one is full. Until it is made, or
    /// dropped, whoever needs that segment waits for it.
    pub fn preparation(&mut self) -> Option<Preparation<D>>
    where
        D: Clone,
    {
        let active = self.live.back().filter(|_| self.active.is_some())?;
        let half = active.end >= active.size / 2;
        let size = self.limits.segment_bytes;
        let wanted = half && self.free.is_empty() && matches!(self.ahead, Ahead::Unasked);
        if !wanted || self.used() + size > self.limits.max_bytes {
            return None;
        }
        let (made, coming) = mpsc::channel();
        self.ahead = Ahead::Asked(coming);
        Some(Preparation { disk: self.disk.clone(), dir: self.dir.clone(), size, made })
    }

    /// Takes what was made ahead, and waits until it is.
    pub(super) fn take_prepared(&mut self) {
        if let Ahead::Asked(coming) = std::mem::take(&mut self.ahead)
            && let Ok(Ok(segment)) = coming.recv()
        {
            self.free.push(segment);
        }
    }

    /// Releasing up to this number would empty the oldest segment.
    pub fn oldest_segment_end(&self) -> Option<u64> {
        self.live.front().and_then(Segment::last)
    }

    /// Whether another segment could be begun without a release.
    pub fn has_room(&self) -> bool {
        let emptied = |last: &Segment| last.last().is_none_or(|last| last <= self.released);
        let emptied = self.pending.is_empty() && self.live.back().is_some_and(emptied);
        let used = self.live.iter().map(|segment| segment.size).sum::<u64>() + self.unread_bytes;
        emptied || !self.free.is_empty() || used + self.limits.segment_bytes <= self.limits.max_bytes
    }

    /// Makes the active segment one with room for a frame of `bytes` beside what is pending.
    pub(super) fn make_room(&mut self, bytes: u64) -> Result<(), AppendError> {
        if self.fits(bytes) {
            return Ok(());
        }
        // Also where a failed sync left no active segment: then this finds another.
        self.flush()?;
        if self.fits(bytes) { Ok(()) } else { self.begin_segment(bytes) }
    }

    fn fits(&self, bytes: u64) -> bool {
        let last = self.live.back().filter(|_| self.active.is_some());
        last.is_some_and(|last| last.end + self.pending.bytes() + bytes <= last.size)
    }

    /// Takes the next segment, with room for `bytes`: a free one, else a new one. Without either, the active one stays.
    pub(super) fn begin_segment(&mut self, bytes: u64) -> Result<(), AppendError> {
        if self.live.back().is_some_and(|last| last.last().is_none_or(|last| last <= self.released)) {
            self.active = None;
            let last = self.live.pop_back();
            last.into_iter().for_each(|last| self.shelve(last));
        }
        self.remove_dead();
        self.take_prepared();
        let (segment, file) = match self.free.pop_if(|free| free.size >= bytes) {
            Some(segment) => self.reuse(segment)?,
            None => self.create_segment(self.limits.segment_for(bytes))?,
        };
        self.live.push_back(segment);
        self.active = Some(file);
        Ok(())
    }

    fn create_segment(&mut self, size: u64) -> Result<(Segment, D::File), AppendError> {
        if self.used() + size > self.limits.max_bytes {
            // Only a record larger than a segment comes here while others are free: it takes their room.
            self.dead.append(&mut self.free);
            self.remove_dead();
        }
        if self.used() + size > self.limits.max_bytes {
            return Err(AppendError::Full);
        }
        Ok(segment::create(&self.disk, &self.dir, size)?)
    }

    /// Bytes that the files take.
    fn used(&self) -> u64 {
        let segments = self.live.iter().chain(&self.dead).chain(&self.free);
        segments.map(|segment| segment.size).sum::<u64>() + self.unread_bytes
    }

    fn reuse(&mut self, segment: Segment) -> io::Result<(Segment, D::File)> {
        if let Err(error) = self.state_release_of(segment.outlived) {
            self.free.push(segment);
            return Err(error);
        }
        match self.disk.open(&segment.path(&self.dir)) {
            Ok(file) => {
                self.cache.forget(segment.salt);
                Ok((Segment::new(segment.salt, segment.size), file))
            }
            Err(error) => {
                self.dead.push(segment);
                Err(error)
            }
        }
    }

    /// Before what is at `seq` can vanish, the cursor file must say that it may: else it would be missed.
    fn state_release_of(&mut self, seq: u64) -> io::Result<()> {
        if seq > self.cursor.released { self.save_cursor() } else { Ok(()) }
    }

    /// Everything in `segment` is released.
    pub(super) fn shelve(&mut self, segment: Segment) {
        let reusable = !segment.bad && segment.size == self.limits.segment_bytes;
        if reusable { &mut self.free } else { &mut self.dead }.push(segment);
    }

    /// What cannot be removed now is tried again with the next segment.
    pub(super) fn remove_dead(&mut self) {
        for segment in std::mem::take(&mut self.dead) {
            let removed = self.state_release_of(segment.outlived);
            match removed.and_then(|()| self.disk.remove(&segment.path(&self.dir))) {
                Err(error) if error.kind() != ErrorKind::NotFound => self.dead.push(segment),
                Ok(()) | Err(_) => {}
            }
        }
    }
}
