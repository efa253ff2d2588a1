//! The cursor file: up to which seq everything may be forgotten.
//!
//! ```text
//! file   slot 0 │ slot 1 │ slot 2 │ slot 3                       (4096 bytes each, written in turn)
//! slot   "SBCURS" │ format u16 │ check u32 │ count u32 │ turn u64 │ released u64 │ durable u64 │ count × known u64
//! ```
//!
//! `released` and `durable` only grow, so the slot with the largest is the right one. `known` names
//! the holes already reported: for each the seq of the record behind it. The check is CRC32C over the rest.
//!
//! Always true: the slot that was last made durable is not written over until another one is. It never
//! retries a failed sync: the next save goes to another slot.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use switchback_control::event::NUMBER_MAX;

use super::disk::{Disk, named};
use super::record::take_array;
use super::replace::replace_file_on;

/// One block of the file system, so that a torn write damages one slot only.
const SLOT_BYTES: usize = 4096;
/// Two would do; four spread the wear and leave three when one goes bad.
const SLOTS: u64 = 4;
/// More holes than a disk worth keeping has; what does not fit is reported again at the next start.
const MAX_KNOWN: usize = 64;
/// Bytes of a slot without the known holes.
const FIXED_BYTES: usize = 40;
const MAGIC: &[u8; 6] = b"SBCURS";
const FORMAT: u16 = 1;
/// The file.
pub(super) const NAME: &str = "cursor";

pub(super) struct Cursor<F> {
    file: F,
    path: PathBuf,
    turn: u64,
    /// The slot holding what is durable, if any.
    good: Option<u64>,
    /// What the file durably says.
    pub released: u64,
    pub durable: u64,
    /// Holes already reported, to be kept by the next save.
    pub known: Vec<u64>,
    /// Slots that could not be read, and why; they may hold something newer.
    unread: Vec<(u64, String)>,
}

/// What opening found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    New,
    Whole,
    Damaged,
}

struct Slot {
    turn: u64,
    released: u64,
    durable: u64,
    known: Vec<u64>,
}

impl<F> Cursor<F> {
    /// Opens the cursor file of the outbox in `dir`, creating it if `present` is false.
    pub fn open<D: Disk<File = F>>(disk: &D, dir: &Path, present: bool) -> io::Result<(Self, Condition)> {
        let path = dir.join(NAME);
        if !present {
            let mut image = encode(&Slot { turn: 0, released: 0, durable: 0, known: Vec::new() });
            image.resize(SLOT_BYTES * SLOTS as usize, 0);
            replace_file_on(disk, &path, &image)?;
        }
        let file = disk.open(&path)?;
        let mut newest = Slot { turn: 0, released: 0, durable: 0, known: Vec::new() };
        let (mut turn, mut good, mut unread) = (0, None, Vec::new());
        for number in 0..SLOTS {
            let mut bytes = [0; SLOT_BYTES];
            if let Err(error) = disk.read_at(&file, &mut bytes, number * SLOT_BYTES as u64) {
                unread.push((number, named(&path, error)));
                continue;
            }
            let Some(slot) = read_slot(&bytes, &path)? else { continue };
            turn = slot.turn.max(turn);
            if good.is_none()
                || (slot.released, slot.durable, slot.turn) > (newest.released, newest.durable, newest.turn)
            {
                (newest, good) = (slot, Some(number));
            }
        }
        if good.is_none()
            && let Some((_, error)) = unread.pop()
        {
            return Err(error);
        }
        let condition = match (present, good) {
            (false, _) => Condition::New,
            (true, Some(_)) => Condition::Whole,
            (true, None) => Condition::Damaged,
        };
        let Slot { released, durable, known, .. } = newest;
        let unread = unread.into_iter().map(|(number, error)| (number, error.to_string())).collect();
        Ok((Self { file, path, turn, good, released, durable, known, unread }, condition))
    }

    /// Offset and reason of each slot that could not be read.
    pub fn unread(&self) -> impl Iterator<Item = (u64, String)> {
        self.unread.iter().map(|(number, error)| (number * SLOT_BYTES as u64, error.clone()))
    }

    /// Makes `released` and `durable` durable, with the holes known.
    pub fn save<D: Disk<File = F>>(&mut self, disk: &D, released: u64, durable: u64) -> io::Result<()> {
        let unread = |number| self.unread.iter().any(|(unread, _)| *unread == number);
        let next = (self.turn + 1..=self.turn + SLOTS).filter(|turn| self.good != Some(turn % SLOTS));
        // An unread slot is written over only where there is no other.
        self.turn = next.min_by_key(|turn| (unread(turn % SLOTS), *turn)).unwrap_or(self.turn + 1);
        self.known.retain(|&before| before > released);
        let surplus = self.known.len().saturating_sub(MAX_KNOWN);
        self.known.drain(..surplus);
        let slot = encode(&Slot { turn: self.turn, released, durable, known: self.known.clone() });
        let number = self.turn % SLOTS;
        disk.write_at(&self.file, &slot, number * SLOT_BYTES as u64)
            .and_then(|()| disk.sync(&self.file))
            .map_err(|error| named(&self.path, error))?;
        (self.good, self.released, self.durable) = (Some(number), released, durable);
        Ok(())
    }
}

/// Whether the log in this directory is of a version that is read here.
pub fn can_read(dir: &Path) -> bool {
    let mut head = [0; 8];
    let read = std::fs::File::open(dir.join("cursor")).and_then(|mut file| io::Read::read_exact(&mut file, &mut head));
    let [name @ .., low, high] = head;
    read.is_ok() && name == *MAGIC && u16::from_le_bytes([low, high]) == FORMAT
}

fn read_slot(bytes: &[u8], path: &Path) -> io::Result<Option<Slot>> {
    match decode(bytes) {
        Some((FORMAT, slot)) => Ok(Some(slot)),
        Some((format, _)) => {
            let message = format!("{}: format {format} of a newer version", path.display());
            Err(io::Error::new(ErrorKind::Unsupported, message))
        }
        None => Ok(None),
    }
}

fn encode(slot: &Slot) -> Vec<u8> {
    let mut head = MAGIC.to_vec();
    head.extend(FORMAT.to_le_bytes());
    let mut rest = (slot.known.len() as u32).to_le_bytes().to_vec();
    for number in [slot.turn, slot.released, slot.durable].iter().chain(&slot.known) {
        rest.extend(number.to_le_bytes());
    }
    let check = crc32c::crc32c_append(crc32c::crc32c(&head), &rest);
    [head, check.to_le_bytes().to_vec(), rest].concat()
}

fn decode(bytes: &[u8]) -> Option<(u16, Slot)> {
    let mut fields = bytes;
    if &take_array::<6>(&mut fields)? != MAGIC {
        return None;
    }
    let format = u16::from_le_bytes(take_array(&mut fields)?);
    let check = u32::from_le_bytes(take_array(&mut fields)?);
    let checked = fields;
    let count = u32::from_le_bytes(take_array(&mut fields)?) as usize;
    let checked = checked.get(..FIXED_BYTES - 12 + 8 * Some(count).filter(|&count| count <= MAX_KNOWN)?)?;
    if crc32c::crc32c_append(crc32c::crc32c(bytes.get(..8)?), checked) != check {
        return None;
    }
    let mut number = || Some(u64::from_le_bytes(take_array(&mut fields)?));
    let (turn, released, durable) = (number()?, number()?, number()?);
    let known = (0..count).map(|_| number()).collect::<Option<_>>()?;
    // All three are counted up from here; a slot at the end of all numbers was not written by us.
    (turn < u64::MAX / 2 && released.max(durable) < NUMBER_MAX)
        .then_some((format, Slot { turn, released, durable, known }))
}
