//! Messages that the server will never take, with its reason: `rejected.jsonl` in the state directory (R-TX-13).
//!
//! One JSON object a line, the newest at the end; of the payload the beginning. Always true: the file stays below
//! `FILE_MAX`, the oldest lines go first, and a line torn by a power cut is not shown. While the disk takes nothing the
//! last few stay in memory.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::api::base64;
use crate::corridor::{Body, SetAside};
use crate::outbox::{Disk, replace_file_on};

/// Bytes of the file: some thousand small messages.
const FILE_MAX: usize = 1 << 20;
/// Bytes of a payload that are kept: enough to see what it was.
const PAYLOAD_MAX: usize = 4096;
/// Bytes of a reason that are kept; the server chooses it.
const WHY_MAX: usize = 512;
/// Lines kept in memory while the disk takes none.
const UNWRITTEN_MAX: usize = 64;

pub(super) struct SetAsides<D: Disk> {
    disk: D,
    path: PathBuf,
    unwritten: VecDeque<String>,
    told: bool,
}

impl<D: Disk> SetAsides<D> {
    pub fn new(disk: D, state_dir: &Path) -> SetAsides<D> {
        SetAsides { disk, path: state_dir.join("rejected.jsonl"), unwritten: VecDeque::new(), told: false }
    }

    /// Takes a message; `flush` writes it.
    pub fn add(&mut self, body: &Body, class: &str, why: &str, wall: u64) {
        let time = Timestamp::from_millisecond(wall.cast_signed()).unwrap_or_default().to_string();
        let payload = body.payload.get(..PAYLOAD_MAX).unwrap_or(&body.payload);
        let aside = SetAside {
            time,
            topic: body.topic.clone(),
            id: body.id.clone(),
            class: class.to_owned(),
            why: why.chars().take(WHY_MAX).collect(),
            bytes: body.payload.len() as u64,
            payload: base64::encode(payload),
        };
        // Strings and a number always serialise.
        self.unwritten.push_back(serde_json::to_string(&aside).unwrap_or_default() + "\n");
        if self.unwritten.len() > UNWRITTEN_MAX {
            self.unwritten.pop_front();
        }
    }

    pub fn is_unwritten(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// Writes what was added; durable when it succeeds. What fails is said once, and tried with the next one.
    pub fn flush(&mut self) {
        match self.write() {
            Ok(()) => {
                self.unwritten.clear();
                self.told = false;
            }
            Err(error) if !std::mem::replace(&mut self.told, true) => {
                log::error!("{error}; messages that the server rejected are not kept");
            }
            Err(_) => {}
        }
    }

    fn write(&self) -> io::Result<()> {
        let fresh: String = self.unwritten.iter().map(String::as_str).collect();
        let (mut old, length) = self.read()?;
        if old.len() + fresh.len() <= FILE_MAX && length > 0 {
            let file = self.disk.open(&self.path)?;
            self.disk.write_at(&file, fresh.as_bytes(), old.len() as u64)?;
            return self.disk.sync(&file);
        }
        // Half of it goes at once, so that this is rare.
        let over = (old.len() + fresh.len()).saturating_sub(FILE_MAX / 2).min(old.len());
        let over = if length > 0 {
            old.iter().skip(over).position(|byte| *byte == b'\n').map_or(old.len(), |at| over + at + 1)
        } else {
            0
        };
        old.drain(..over);
        old.extend_from_slice(fresh.as_bytes());
        replace_file_on(&self.disk, &self.path, &old)
    }

    /// All of them, the oldest first.
    pub fn list(&self) -> Vec<SetAside> {
        let old = self.read().map(|(old, _)| old).unwrap_or_default();
        let lines = old.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        let unwritten = self.unwritten.iter().filter_map(|line| serde_json::from_str(line).ok());
        lines.chain(unwritten).collect()
    }

    /// Forgets them all; whether that is durable.
    pub fn clear(&mut self) -> bool {
        self.unwritten.clear();
        match self.disk.remove(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => false,
            Ok(()) | Err(_) => self.path.parent().is_none_or(|dir| self.disk.sync_dir(dir).is_ok()),
        }
    }

    /// The whole lines of the file, and how long it is.
    fn read(&self) -> io::Result<(Vec<u8>, usize)> {
        let file = match self.disk.open(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok((Vec::new(), 0)),
            file => file?,
        };
        let mut bytes = vec![0; FILE_MAX];
        let length = self.disk.read_at(&file, &mut bytes, 0)?;
        bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1));
        Ok((bytes, length))
    }
}
