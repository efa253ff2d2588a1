//! The cursor file: up to which seq everything may be forgotten.
//!
//! ```text
//! file   slot 0 │ slot 1 │ slot 2 │ slot 3                       (4096 bytes each, written in turn)
//! slot   "SBCURS" │ format u16 │ check u32 │ count u32 │ turn u64 │ released u64 │ durable u64 │ count × known u64
//! ```
//!
//! `released` and `durable` only grow, so the largest value of any whole slot is the right one. `known` names
//! the holes already reported: for each the seq of the record behind it. The check is CRC32C over the rest.
//!
//! Always true: the slot that was last made durable is not written over until another one is. It never
//! retries a failed sync: the next save goes to another slot.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

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
        let path = dir.join("cursor");
        if !present {
            let mut image = encode(&Slot { turn: 0, released: 0, durable: 0, known: Vec::new() });
            image.resize(SLOT_BYTES * SLOTS as usize, 0);
            replace_file_on(disk, &path, &image)?;
        }
        let file = disk.open(&path)?;
        let (mut newest, mut good) = (Slot { turn: 0, released: 0, durable: 0, known: Vec::new() }, None);
        for number in 0..SLOTS {
            let Some(slot) = read_slot(disk, &file, &path, number)? else { continue };
            newest.released = newest.released.max(slot.released);
            newest.durable = newest.durable.max(slot.durable);
            if slot.turn >= newest.turn {
                (newest.turn, newest.known, good) = (slot.turn, slot.known, Some(number));
            }
        }
        let condition = match (present, good) {
            (false, _) => Condition::New,
            (true, Some(_)) => Condition::Whole,
            (true, None) => Condition::Damaged,
        };
        let Slot { turn, released, durable, known } = newest;
        Ok((Self { file, path, turn, good, released, durable, known }, condition))
    }

    /// Makes `released` and `durable` durable, with the holes known.
    pub fn save<D: Disk<File = F>>(&mut self, disk: &D, released: u64, durable: u64) -> io::Result<()> {
        self.turn += 1;
        if self.good == Some(self.turn % SLOTS) {
            self.turn += 1;
        }
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

fn read_slot<D: Disk>(disk: &D, file: &D::File, path: &Path, number: u64) -> io::Result<Option<Slot>> {
    let mut bytes = [0; SLOT_BYTES];
    // A slot that cannot be read counts as damaged; the others tell nearly as much.
    if disk.read_at(file, &mut bytes, number * SLOT_BYTES as u64).is_err() {
        return Ok(None);
    }
    match decode(&bytes) {
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
    // The turn is counted up from here; a slot at the end of all turns was not written by us.
    (turn < u64::MAX / 2).then_some((format, Slot { turn, released, durable, known }))
}
