//! How much the outbox takes, and how it says no.
//!
//! Always true: limits that pass [`Limits::check`] leave room for one segment in use while another is written. It
//! never touches a file.

use std::fmt;
use std::io::{self, ErrorKind};

use super::frame_limit;
use super::record::Seq;
use super::survey::MAX_SEGMENT_BYTES;

/// How much the outbox may hold, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// All segment files together; at least two segments. Default 256 MiB: a day of ten 300-byte messages a second.
    pub max_bytes: u64,
    /// One segment file, 4 KiB to 16 MiB; see [`SEGMENT_BYTES`].
    pub segment_bytes: u64,
    /// One record, with topic, properties and identity; one that is larger than a segment gets a larger segment, of half
    /// of `max_bytes` at most. See [`MAX_RECORD`].
    pub max_record: u64,
}

/// Default size of a segment: large enough that beginning one (a cursor slot, a sync) costs less than 1 % of what it
/// takes, small enough that room comes back soon and one damaged file is a small loss.
pub const SEGMENT_BYTES: u64 = 1024 * 1024;
/// Default limit of a record: twice the largest message the big cloud brokers take (128 to 256 KiB).
pub const MAX_RECORD: u64 = 512 * 1024;
/// The smallest that [`Limits::of`] gives: a sixteenth of a megabyte.
const SMALL_SEGMENT_BYTES: u64 = 64 * 1024;
const MIN_SEGMENT_BYTES: u64 = 4096;

impl Default for Limits {
    fn default() -> Self {
        Self { max_bytes: 256 * 1024 * 1024, segment_bytes: SEGMENT_BYTES, max_record: MAX_RECORD }
    }
}

impl Limits {
    /// Refuses limits that cannot be.
    pub(super) fn check(&self) -> io::Result<()> {
        let sane = (MIN_SEGMENT_BYTES..=MAX_SEGMENT_BYTES).contains(&self.segment_bytes);
        if sane && self.max_bytes / 2 >= self.segment_bytes {
            return Ok(());
        }
        let message = "an outbox takes segments of 4 KiB to 16 MiB, and at least two";
        Err(io::Error::new(ErrorKind::InvalidInput, message))
    }

    /// Limits that hold about so many bytes: small ones get small segments, so that room comes back soon all the same.
    pub fn of(max_bytes: u64) -> Limits {
        let max_bytes = max_bytes.max(2 * MIN_SEGMENT_BYTES);
        let segment = (max_bytes / 16).clamp(SMALL_SEGMENT_BYTES, SEGMENT_BYTES).min(max_bytes / 2);
        Limits { max_bytes, segment_bytes: segment / MIN_SEGMENT_BYTES * MIN_SEGMENT_BYTES, max_record: MAX_RECORD }
    }

    /// The largest content of a record.
    pub fn content_bytes(&self) -> u64 {
        let segment = self.max_bytes / 2 / MIN_SEGMENT_BYTES * MIN_SEGMENT_BYTES;
        self.max_record.min(segment.min(MAX_SEGMENT_BYTES) - frame_limit(&[]))
    }

    /// The size of a segment that begins with a frame of `bytes`.
    pub(super) fn segment_for(&self, bytes: u64) -> u64 {
        self.segment_bytes.max(bytes.next_multiple_of(MIN_SEGMENT_BYTES))
    }
}

/// Why a record was not taken. It is as if `append` had not been called.
#[derive(Debug)]
pub enum AppendError {
    /// `max_bytes` is reached; `release` makes room.
    Full,
    /// The record has `bytes`, more than the `limit`.
    TooLarge {
        /// Encoded size.
        bytes: u64,
        /// What would be taken.
        limit: u64,
    },
    /// Its seq is not above `highest`: used before, released, or zero. Or it is the largest number there is.
    NotAscending {
        /// The highest seq so far.
        highest: Seq,
    },
    /// The disk failed; `StorageFull` when the file system has no room for another segment.
    Io(io::Error),
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => write!(f, "the outbox is full"),
            Self::TooLarge { bytes, limit } => write!(f, "record of {bytes} bytes, at most {limit} are taken"),
            Self::NotAscending { highest } => write!(f, "seq must be above {highest}"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for AppendError {}

impl From<AppendError> for io::Error {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Io(error) => error,
            AppendError::Full => Self::new(ErrorKind::StorageFull, error),
            AppendError::TooLarge { .. } | AppendError::NotAscending { .. } => {
                Self::new(ErrorKind::InvalidInput, error)
            }
        }
    }
}

impl From<io::Error> for AppendError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
