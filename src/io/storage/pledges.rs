//! The pledges of QoS 2 on disk: which message is on its way under which identifier, and how far (MQTT 5.0, section 4.3.3).
//!
//! ```text
//! pledges   slot │ slot │ … 1,024 of 64 bytes, written before they are used
//! slot      check u32 │ turn u64 │ lane u64 │ number u64 │ id u16 │ step u8 │ zeros          (CRC32C, little endian)
//! ```
//!
//! The next word about a message goes to another slot than the last one, so that a torn write leaves the last one
//! standing; the one with the highest turn counts. A slot is used again when something newer is durable, or when its
//! message is durably gone from its log: a pledge without its message is none. An identifier that has gone to another
//! message means that the earlier one is through; that is kept for as long as the log still has it, since a message that
//! is through must not be sent again. Lanes are named by their directory, since their places change.
//!
//! Always true: after `flush` says `Ok`, a start finds what was pledged. After a failed call the file is written anew.
//! Nothing of its content makes a start fail.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::corridor::PLEDGED;
use crate::outbox::{Disk, replace_file_on, set_aside};

const SLOT_BYTES: usize = 64;
/// Each identifier may need two slots at once, and as many messages may be through before an older one that keeps them in
/// their log.
const SLOTS: usize = 1024;

/// More torn slots than this, and not a whole one: not a file of ours.
const TORN_MAX: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Sent = 1,
    Received = 2,
    /// Through: the identifier is free, and the message is not to be sent again.
    Over = 3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    turn: u64,
    lane: u64,
    number: u64,
    id: u16,
    step: Step,
    /// A newer slot says more, once it is durable.
    outdated: bool,
}

impl Slot {
    fn is_of(&self, lane: u64, number: u64) -> bool {
        (self.lane, self.number) == (lane, number)
    }

    fn is_open(&self) -> bool {
        self.step != Step::Over && !self.outdated
    }
}

/// A pledge as the file has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub lane: u64,
    pub number: u64,
    pub id: u16,
    pub received: bool,
}

pub(super) struct Pledges<D: Disk> {
    disk: D,
    path: PathBuf,
    /// `None`: the next flush writes it anew.
    file: Option<D::File>,
    /// As many as were ever needed at once.
    slots: Vec<Option<Slot>>,
    turn: u64,
    unwritten: BTreeSet<usize>,
    /// What the file says must not stand there any longer.
    wrong: bool,
    orphans: Vec<u16>,
}

impl<D: Disk> Pledges<D> {
    /// Reads what is there. Never fails: what cannot be read is reported, and holds no pledge.
    pub fn open(disk: D, state_dir: &Path) -> Pledges<D> {
        let path = state_dir.join("pledges");
        let (slots, unwritten) = (Vec::new(), BTreeSet::new());
        let mut pledges =
            Pledges { disk, path, file: None, slots, turn: 0, unwritten, wrong: false, orphans: Vec::new() };
        match pledges.read() {
            Ok(0) => {}
            // Cut short are at most the words of one flush; and then others stand, or nothing was pledged before.
            Ok(torn) if torn > TORN_MAX && pledges.slots.is_empty() => {
                pledges.file = None;
                set_aside(
                    &pledges.path,
                    "it is damaged or of a newer version; messages of QoS 2 that were on their way may arrive twice",
                );
            }
            Ok(torn) => log::warn!(
                "{}: {torn} steps of QoS 2 were cut short; nothing that was promised is missing",
                pledges.path.display()
            ),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => log::error!("{error}; messages of QoS 2 that were on their way may arrive twice"),
        }
        pledges
    }

    /// How many slots are damaged.
    fn read(&mut self) -> io::Result<usize> {
        let file = self.disk.open(&self.path)?;
        let mut bytes = vec![0; SLOTS * SLOT_BYTES];
        let whole = self.disk.read_at(&file, &mut bytes, 0)? == bytes.len();
        let is_torn = |bytes: &&[u8]| decode(bytes).is_none() && bytes.iter().any(|&byte| byte != 0);
        let torn = bytes.chunks(SLOT_BYTES).filter(is_torn).count();
        self.slots = bytes.chunks(SLOT_BYTES).map(decode).collect();
        self.file = Some(file).filter(|_| whole);
        self.turn = self.slots.iter().flatten().map(|slot| slot.turn).max().unwrap_or(0);
        self.sort_out();
        Ok(torn)
    }

    /// Of each identifier and each message the newest word counts; an identifier's earlier messages are through.
    fn sort_out(&mut self) {
        let mut order: Vec<usize> = (0..SLOTS).filter(|place| self.slot(*place).is_some()).collect();
        order.sort_by_key(|place| std::cmp::Reverse(self.slot(*place).map_or(0, |slot| slot.turn)));
        let (mut ids, mut messages) = (BTreeSet::new(), BTreeSet::new());
        for place in order {
            let Some(slot) = self.slots.get_mut(place) else { continue };
            let Some(found) = slot else { continue };
            let taken = !ids.insert(found.id);
            if !messages.insert((found.lane, found.number)) {
                *slot = None;
            } else if taken {
                found.step = Step::Over;
            }
        }
        while self.slots.pop_if(|last| last.is_none()).is_some() {}
        self.slots.shrink_to_fit();
    }

    /// Forgets the pledges whose message is not there, and says which hold. `is_there` answers for a message of a lane,
    /// or `None` where its log is unread: what is through may be in there, and of the rest nobody can make use.
    pub fn settle(&mut self, mut is_there: impl FnMut(u64, u64) -> Option<bool>) -> Vec<Kept> {
        for place in &mut self.slots {
            let keep = |slot: Slot| is_there(slot.lane, slot.number).unwrap_or(slot.step == Step::Over);
            if !place.is_none_or(keep) {
                self.orphans.extend(place.take().filter(Slot::is_open).map(|slot| slot.id));
                // Numbers may be used again where a whole log was deleted: then this must not stand in the file.
                self.wrong = true;
            }
        }
        let open = self.slots.iter().flatten().filter(|slot| slot.is_open());
        let kept = |slot: &Slot| Kept {
            lane: slot.lane,
            number: slot.number,
            id: slot.id,
            received: slot.step == Step::Received,
        };
        open.map(kept).collect()
    }

    /// Identifiers that the server may still hold for a message that was gone at the start: a new message under one of
    /// them would be taken for its repetition.
    pub fn orphans(&self) -> &[u16] {
        &self.orphans
    }

    /// The messages of a lane that are through, though its log has them.
    pub fn over(&self, lane: u64) -> Vec<u64> {
        let over = self.slots.iter().flatten().filter(|slot| slot.lane == lane && slot.step == Step::Over);
        over.map(|slot| slot.number).collect()
    }

    /// Notes a step; `flush` makes it durable.
    pub fn pledge(&mut self, new: Kept) {
        let Kept { lane, number, id, received } = new;
        if !PLEDGED.contains(&id) {
            return;
        }
        let step = if received { Step::Received } else { Step::Sent };
        let same = |slot: &Slot| slot.id == id && slot.is_of(lane, number) && slot.step == step;
        if self.slots.iter().flatten().any(|slot| slot.is_open() && same(slot)) {
            return;
        }
        self.redeem_unless(id, lane, number);
        for slot in self.slots.iter_mut().flatten().filter(|slot| slot.is_of(lane, number)) {
            slot.outdated = true;
        }
        self.turn += 1;
        let place = self.free_place();
        if let Some(free) = self.slots.get_mut(place) {
            *free = Some(Slot { turn: self.turn, lane, number, id, step, outdated: false });
            self.unwritten.insert(place);
        }
    }

    /// The exchange under this identifier is over.
    pub fn redeem(&mut self, id: u16) {
        for slot in self.slots.iter_mut().flatten().filter(|slot| slot.id == id) {
            slot.step = Step::Over;
        }
    }

    fn redeem_unless(&mut self, id: u16, lane: u64, number: u64) {
        let others = self.slots.iter_mut().flatten().filter(|slot| slot.id == id && !slot.is_of(lane, number));
        others.for_each(|slot| slot.step = Step::Over);
    }

    /// No exchange is open any more; what is through stays so.
    pub fn redeem_all(&mut self) {
        for slot in &mut self.slots {
            if slot.is_some_and(|slot| slot.step != Step::Over) {
                *slot = None;
                self.wrong = true;
            }
        }
    }

    /// These messages are durably gone from their log.
    pub fn forget(&mut self, lane: u64, through: u64) {
        for (place, slot) in self.slots.iter_mut().enumerate() {
            if slot.is_some_and(|slot| slot.lane == lane && slot.number <= through) {
                *slot = None;
                self.unwritten.remove(&place);
            }
        }
    }

    /// Whether a flush has something to do.
    pub fn is_unwritten(&self) -> bool {
        self.wrong || !self.unwritten.is_empty()
    }

    /// Makes every step durable.
    ///
    /// # Errors
    /// The disk's; the next call writes the whole file anew.
    pub fn flush(&mut self) -> io::Result<()> {
        if !self.is_unwritten() {
            return Ok(());
        }
        let written = match self.file.take().filter(|_| !self.wrong) {
            Some(file) => self.write_slots(&file).map(|()| file),
            None => self.write_all(),
        };
        self.file = Some(written?);
        self.wrong = false;
        self.unwritten.clear();
        for slot in &mut self.slots {
            slot.take_if(|slot| slot.outdated);
        }
        Ok(())
    }

    fn write_slots(&self, file: &D::File) -> io::Result<()> {
        for &place in &self.unwritten {
            let bytes = encode(self.slot(place));
            self.disk.write_at(file, &bytes, (place * SLOT_BYTES) as u64)?;
        }
        self.disk.sync(file)
    }

    fn write_all(&mut self) -> io::Result<D::File> {
        for slot in &mut self.slots {
            slot.take_if(|slot| slot.outdated);
        }
        let image: Vec<u8> = (0..SLOTS).flat_map(|place| encode(self.slot(place))).collect();
        replace_file_on(&self.disk, &self.path, &image)?;
        self.disk.open(&self.path)
    }

    fn slot(&self, place: usize) -> Option<Slot> {
        self.slots.get(place).copied().flatten()
    }

    /// A place that says nothing; where there is none, that of the oldest exchange that is through, which may then be
    /// repeated after a crash.
    fn free_place(&mut self) -> usize {
        if self.slots.len() < SLOTS && self.slots.iter().all(Option::is_some) {
            self.slots.push(None);
        }
        let oldest = || {
            let turn =
                |place: &usize| self.slot(*place).filter(|slot| !slot.is_open()).map_or(u64::MAX, |slot| slot.turn);
            (0..SLOTS).min_by_key(turn).unwrap_or(0)
        };
        self.slots.iter().position(Option::is_none).unwrap_or_else(oldest)
    }
}

/// The name of a lane in a slot: FNV-1a of its directory's.
pub(super) fn lane_key(directory: &str) -> u64 {
    directory.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn encode(slot: Option<Slot>) -> [u8; SLOT_BYTES] {
    let mut bytes = [0; SLOT_BYTES];
    let Some(slot) = slot else { return bytes };
    let fields = [slot.turn, slot.lane, slot.number].into_iter().flat_map(u64::to_le_bytes);
    let fields = fields.chain(slot.id.to_le_bytes()).chain([slot.step as u8]);
    bytes.iter_mut().skip(4).zip(fields).for_each(|(to, from)| *to = from);
    let check = crc32c::crc32c(bytes.get(4..).unwrap_or_default()).to_le_bytes();
    bytes.iter_mut().zip(check).for_each(|(to, from)| *to = from);
    bytes
}

fn decode(bytes: &[u8]) -> Option<Slot> {
    let (check, rest) = bytes.split_first_chunk::<4>()?;
    if crc32c::crc32c(rest) != u32::from_le_bytes(*check) {
        return None;
    }
    let (turn, rest) = rest.split_first_chunk::<8>()?;
    let (lane, rest) = rest.split_first_chunk::<8>()?;
    let (number, rest) = rest.split_first_chunk::<8>()?;
    let (id, rest) = rest.split_first_chunk::<2>()?;
    let step = match rest.first()? {
        1 => Step::Sent,
        2 => Step::Received,
        3 => Step::Over,
        _ => return None,
    };
    let id = Some(u16::from_le_bytes(*id)).filter(|id| PLEDGED.contains(id))?;
    let [turn, lane, number] = [turn, lane, number].map(|bytes| u64::from_le_bytes(*bytes));
    // Turns are counted up from here; one at the end of all turns was not written by us.
    (turn < u64::MAX / 2).then_some(Slot { turn, lane, number, id, step, outdated: false })
}
