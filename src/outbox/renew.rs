//! A directory that was taken from under a running outbox: another card, a late mount, somebody who tidied up.
//!
//! Always true: what was not durable is kept and written again by the next `sync`; what was durable is gone with its files,
//! and a later start says so. It makes no directory above its own: where that is missing, what belongs there is yet to come.

use std::collections::{HashSet, VecDeque};
use std::io::{self, ErrorKind};

use super::cache::Cache;
use super::cursor::Cursor;
use super::disk::{Disk, parent_of};
use super::segment::{Segment, name};
use super::{LOCK, Outbox, cursor};

impl<D: Disk> Outbox<D> {
    /// Makes directory, lock and cursor file anew if they are gone, and forgets the segments that went with them. Answers
    /// with the number of messages that are lost by that, if it had to.
    ///
    /// # Errors
    /// What the disk answered, `NotFound` too while the directory above is missing; trying again may help.
    pub fn renew(&mut self) -> io::Result<Option<u64>> {
        let here: HashSet<String> = match self.disk.list(&self.dir) {
            Ok(files) => files.into_iter().map(|(name, _)| name).collect(),
            Err(error) if error.kind() == ErrorKind::NotFound => HashSet::new(),
            Err(error) => return Err(error),
        };
        if here.contains(cursor::NAME) {
            return Ok(None);
        }
        parent_of(&self.dir).map_or(Ok(()), |parent| self.disk.list(parent).map(drop))?;
        self.disk.create_dir(&self.dir)?;
        if !here.contains(LOCK) {
            self._lock = self.disk.lock(&self.dir.join(LOCK))?;
        }
        self.cursor = Cursor::open(&self.disk, &self.dir, false)?.0;
        let is_here = |segment: &Segment| here.contains(&name(segment.salt));
        if !self.live.back().is_some_and(is_here) {
            self.active = None;
        }
        let (kept, gone): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.live).into_iter().partition(is_here);
        self.live = kept;
        let messages = self.messages;
        gone.iter().for_each(|gone| self.forget(gone.records, gone.bytes));
        self.free.retain(is_here);
        self.dead.retain(is_here);
        self.cache = Cache::default();
        self.unstated = true;
        Ok(Some(messages - self.messages))
    }
}
