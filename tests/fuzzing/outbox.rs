//! The outbox's files as a start finds them: cursor slots and segments with anything in them.
//!
//! The input is the cursor file, if there are that many bytes, and then segments, each behind the eight bytes of its
//! name. Checks are made right again by the format's picture (`outbox::record`, `outbox::cursor`), written here a second
//! time, so that frames with impossible numbers get as far as a frame can.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::mutate::Random;
use super::{Shape, Target, shape_of};
use switchback_control::event::NUMBER_MAX;

use crate::outbox::{AppendError, Disk, Limits, Outbox, Record, Seq, Why};

pub const TARGET: Target = Target {
    name: "outbox",
    examples,
    words: &[b"SBCURS\x01\0", &[0; 20], &[0xff; 8], &[0x80; 10]],
    repair,
    read,
    // Each record found costs a range, a mark and a place in the checks below.
    memory: (64, 1024 * 1024),
};

const SEGMENT: usize = 4096;
const CURSOR: usize = 4 * 4096;
const LIMITS: Limits = Limits { max_bytes: 4 * 4096, segment_bytes: 4096, max_record: 3000 };
const DIR: &str = "/outbox";

/// Files in memory; whatever is written stays.
#[derive(Clone, Default)]
pub struct Memory(Rc<RefCell<Files>>);

#[derive(Default)]
struct Files {
    contents: BTreeMap<PathBuf, Rc<RefCell<Vec<u8>>>>,
    given: u64,
}

impl Memory {
    pub fn put(&self, path: PathBuf, bytes: &[u8]) {
        self.0.borrow_mut().contents.insert(path, Rc::new(RefCell::new(bytes.to_vec())));
    }

    pub fn names(&self) -> Vec<PathBuf> {
        self.0.borrow().contents.keys().cloned().collect()
    }

    pub fn get(&self, path: &Path) -> Option<Vec<u8>> {
        self.0.borrow().contents.get(path).map(|bytes| bytes.borrow().clone())
    }
}

impl Disk for Memory {
    type File = Rc<RefCell<Vec<u8>>>;
    type Lock = ();

    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, _: &Path) -> io::Result<Vec<(String, u64)>> {
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        Ok(self.0.borrow().contents.iter().map(|(path, bytes)| (name(path), bytes.borrow().len() as u64)).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Self::File> {
        let file = Self::File::default();
        self.0.borrow_mut().contents.insert(path.to_owned(), file.clone());
        Ok(file)
    }

    fn open(&self, path: &Path) -> io::Result<Self::File> {
        self.0.borrow().contents.get(path).cloned().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn read_at(&self, file: &Self::File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let bytes = file.borrow();
        let found = bytes.get(at as usize..).unwrap_or_default();
        let count = found.len().min(buffer.len());
        buffer[..count].copy_from_slice(&found[..count]);
        Ok(count)
    }

    fn write_at(&self, file: &Self::File, bytes: &[u8], at: u64) -> io::Result<()> {
        let (mut content, end) = (file.borrow_mut(), at as usize + bytes.len());
        let size = content.len().max(end);
        content.resize(size, 0);
        content[at as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self, _: &Self::File) -> io::Result<()> {
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = self.0.borrow_mut();
        let file = files.contents.remove(from).ok_or(ErrorKind::NotFound)?;
        files.contents.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.borrow_mut().contents.remove(path).map(drop).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn random(&self) -> u64 {
        let mut files = self.0.borrow_mut();
        files.given += 1;
        Random(files.given).next()
    }
}

fn record(seq: u64, size: usize) -> Record {
    Record {
        seq: Seq(seq),
        accepted: 1_700_000_000_000 + seq,
        topic: format!("plant/{}/t", seq % 7),
        payload: vec![seq as u8; size],
        qos: (seq % 3) as u8,
        retain: seq % 2 == 1,
        class: (seq % 4) as u8,
        id: format!("boot.7.{seq}"),
        properties: vec![2, 0, 0, 0, seq as u8],
    }
}

fn examples() -> Vec<Vec<u8>> {
    let made = |rounds: u64, size: usize, close: bool| {
        let disk = Memory::default();
        let (mut outbox, _) = Outbox::open_on(disk.clone(), Path::new(DIR), LIMITS).unwrap();
        let mut oldest = 0;
        for seq in 1..=rounds {
            while outbox.append(&record(seq, size)).is_err() {
                oldest += 3;
                outbox.release(Seq(oldest));
            }
            if seq % 5 == 0 {
                outbox.sync().unwrap();
            }
        }
        if close {
            outbox.close().unwrap();
        } else {
            outbox.sync().unwrap();
        }
        packed(&disk)
    };
    vec![made(0, 0, true), made(6, 20, false), made(30, 300, true), made(120, 90, false), made(60, 700, true)]
}

fn packed(disk: &Memory) -> Vec<u8> {
    let mut out = disk.get(&Path::new(DIR).join("cursor")).unwrap();
    for path in disk.names() {
        let name = path.file_name().unwrap().to_str().unwrap();
        if let Some(salt) = name.strip_prefix("segment-") {
            out.extend(u64::from_str_radix(salt, 16).unwrap().to_le_bytes());
            out.extend(disk.get(&path).unwrap());
        }
    }
    out
}

fn unpacked(input: &[u8]) -> Memory {
    let disk = Memory::default();
    // Numbers that no example's file has: a name that is taken would be written over.
    disk.0.borrow_mut().given = 1 << 32;
    let (cursor, segments) = input.split_at(input.len().min(CURSOR));
    if cursor.len() == CURSOR {
        disk.put(Path::new(DIR).join("cursor"), cursor);
    }
    for chunk in segments.chunks(8 + SEGMENT) {
        let (salt, bytes) = chunk.split_at(chunk.len().min(8));
        let salt = salt.iter().rev().fold(0_u64, |salt, byte| salt << 8 | u64::from(*byte));
        disk.put(Path::new(DIR).join(format!("segment-{salt:016x}")), bytes);
    }
    disk
}

fn repair(input: &mut Vec<u8>) {
    let end = input.len().min(CURSOR);
    let (cursor, segments) = input.split_at_mut(end);
    for slot in cursor.chunks_mut(4096).filter(|slot| slot.starts_with(b"SBCURS") && slot.len() >= 40) {
        let count = u32::from_le_bytes(slot[12..16].try_into().unwrap()) as usize;
        let end = (40 + 8 * count.min(64)).min(slot.len());
        let check = crc32c::crc32c_append(crc32c::crc32c(&slot[..8]), &slot[12..end]);
        slot[8..12].copy_from_slice(&check.to_le_bytes());
    }
    for chunk in segments.chunks_mut(8 + SEGMENT).filter(|chunk| chunk.len() > 28) {
        let (salt, bytes) = chunk.split_at_mut(8);
        let salt = u64::from_le_bytes((&*salt).try_into().unwrap());
        let mut at = 0;
        while let Some(head) = bytes.get(at..at + 20) {
            let length = u32::from_le_bytes(head[8..12].try_into().unwrap()) as usize;
            let Some(body) = bytes.get(at + 20..at + 20 + length).filter(|body| !body.is_empty()) else { break };
            let check = crc32c::crc32c_append(salt as u32, body);
            bytes[at + 4..at + 8].copy_from_slice(&check.to_le_bytes());
            let check = crc32c::crc32c_append((salt >> 32) as u32, &bytes[at + 4..at + 20]);
            bytes[at..at + 4].copy_from_slice(&check.to_le_bytes());
            at += 20 + length;
        }
    }
}

fn read(input: &[u8]) -> Shape {
    let disk = unpacked(input);
    let opened = Outbox::open_on(disk.clone(), Path::new(DIR), LIMITS);
    let (mut outbox, found) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "the content of files is no error: {error}");
            return shape_of(&error.kind());
        }
    };
    let seqs: Vec<u64> = found.ranges.iter().cloned().flatten().take(input.len()).collect();
    assert_eq!(found.messages, seqs.len() as u64);
    assert_eq!((outbox.messages(), outbox.bytes()), (found.messages, found.bytes));
    assert!(seqs.is_sorted_by(|a, b| a < b) && found.highest_seq >= seqs.last().copied());
    let mut readable = 0;
    for &seq in &seqs {
        // A record that is whole and makes no sense was written by nobody: it is given up, and may be.
        if let Some(record) = outbox.read(Seq(seq)).expect("memory can be read") {
            assert_eq!(record.seq, Seq(seq));
            readable += 1;
        }
    }
    for (one, next) in seqs.iter().zip(seqs.iter().skip(1)).filter(|(one, next)| **next > **one + 1) {
        assert!(outbox.read(Seq(one + 1)).unwrap().is_none(), "between {one} and {next} there was nothing");
    }
    drop(outbox);

    let (mut outbox, again) = Outbox::open_on(disk.clone(), Path::new(DIR), LIMITS).expect("what opened opens again");
    assert_eq!((&again.ranges, &again.oldest_accepted), (&found.ranges, &found.oldest_accepted));
    assert_eq!(again.damaged, [], "damage is told once");
    assert!(again.highest_seq >= found.highest_seq, "numbers would be given twice");
    // Life goes on: what is taken is found again, beside what was there or after making room.
    let next = again.highest_seq.unwrap_or(0).saturating_add(1);
    let mut expected = seqs.clone();
    match outbox.append(&record(next, 100)) {
        Ok(()) => expected.push(next),
        Err(AppendError::Full) => {
            outbox.release(Seq(next - 1));
            expected.clear();
            match outbox.append(&record(next, 100)) {
                Ok(()) => expected.push(next),
                // Files of another size, and damaged ones, leave only when something is written.
                Err(AppendError::Full) => {}
                Err(error) => panic!("{error}"),
            }
        }
        Err(AppendError::NotAscending { .. }) if next >= NUMBER_MAX => {}
        Err(error) => panic!("{error}"),
    }
    outbox.close().expect("memory can be written");
    let (mut outbox, last) = Outbox::open_on(disk, Path::new(DIR), LIMITS).expect("what was closed opens");
    let kept: Vec<u64> = last.ranges.iter().cloned().flatten().collect();
    assert_eq!(kept, expected);
    if let Some(new) = expected.last().filter(|seq| **seq == next) {
        assert_eq!(outbox.read(Seq(*new)).unwrap().as_ref(), Some(&record(next, 100)));
    }
    let why = |why: &Why| match why {
        Why::Lost => 1,
        Why::Unfinished => 2,
        Why::SetAside => 3,
        Why::Unreadable(_) => 4,
        Why::CursorLost => 5,
    };
    let damage: Vec<u8> = found.damaged.iter().map(|damage| why(&damage.why)).collect();
    let few = |count: usize| count.min(6);
    shape_of(&(few(found.ranges.len()), few(seqs.len()), few(readable), damage, expected.len() > seqs.len()))
}
