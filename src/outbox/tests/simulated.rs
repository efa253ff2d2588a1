//! A disk in memory that remembers every write and sync, loses power at any byte, and fails at any call.
//!
//! What a power cut may do: each write not synced is kept, lost, torn at a byte, or kept in any of its sectors. Names
//! changed since the directory was synced are kept in their order up to any point, as a journal keeps them. A failed
//! sync throws away any part of what it should have written, and no later sync brings it back.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::Disk;

/// splitmix64.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

#[derive(Clone, Debug)]
pub enum Deed {
    Create { file: u64, path: PathBuf },
    Write { file: u64, at: u64, bytes: Vec<u8> },
    Sync { file: u64 },
    SyncFailed { file: u64 },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
    SyncDir { dir: PathBuf },
}

#[derive(Clone, Default)]
pub struct Simulated(Rc<RefCell<State>>);

#[derive(Clone, Default)]
struct State {
    files: BTreeMap<u64, Vec<u8>>,
    names: BTreeMap<PathBuf, u64>,
    deeds: Vec<Deed>,
    /// What lay on the disk before the first deed.
    before: (BTreeMap<u64, Vec<u8>>, BTreeMap<PathBuf, u64>),
    calls: u64,
    failing: Option<(std::ops::Range<u64>, i32)>,
    failed: bool,
    unreadable: Option<u64>,
    given: u64,
}

impl Simulated {
    /// `given` goes on from disk to disk: a salt that comes twice would be a fault no real disk has.
    fn holding(files: BTreeMap<u64, Vec<u8>>, names: BTreeMap<PathBuf, u64>, given: u64) -> Self {
        let before = (files.clone(), names.clone());
        Self(Rc::new(RefCell::new(State { files, names, before, given, ..State::default() })))
    }

    /// Calls with a number in this range answer with this error.
    pub fn fail(&self, calls: std::ops::Range<u64>, errno: i32) {
        self.0.borrow_mut().failing = Some((calls, errno));
    }

    /// Reading this file fails.
    pub fn spoil(&self, path: &Path) {
        let state = &mut *self.0.borrow_mut();
        state.unreadable = state.names.get(path).copied();
    }

    /// All calls work from now on.
    pub fn heal(&self) {
        let state = &mut *self.0.borrow_mut();
        (state.failing, state.failed, state.unreadable) = (None, false, None);
    }

    /// Whether a call has failed since `heal`.
    pub fn failed(&self) -> bool {
        self.0.borrow().failed
    }

    pub fn calls(&self) -> u64 {
        self.0.borrow().calls
    }

    pub fn deeds(&self) -> usize {
        self.0.borrow().deeds.len()
    }

    pub fn deed(&self, number: usize) -> Deed {
        self.0.borrow().deeds[number].clone()
    }

    /// Bytes written so far.
    pub fn written(&self) -> usize {
        let deeds = &self.0.borrow().deeds;
        deeds.iter().map(|deed| if let Deed::Write { bytes, .. } = deed { bytes.len() } else { 0 }).sum()
    }

    pub fn paths(&self) -> Vec<PathBuf> {
        self.0.borrow().names.keys().cloned().collect()
    }

    /// Changes the content of a file behind everyone's back.
    pub fn change(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let state = &mut *self.0.borrow_mut();
        change(state.files.get_mut(&state.names[path]).unwrap());
    }

    /// A second disk with the same content.
    pub fn copy(&self) -> Self {
        let state = self.0.borrow();
        Self::holding(state.files.clone(), state.names.clone(), state.given)
    }

    /// What a power cut now leaves.
    pub fn cut(&self, seed: u64) -> Self {
        let mut replay = Replay::new(self, seed);
        (0..self.deeds()).for_each(|number| replay.perform(&self.deed(number)));
        replay.cut(&mut Random(seed), None)
    }

    fn call(&self, changes: bool) -> io::Result<std::cell::RefMut<'_, State>> {
        let mut state = self.0.borrow_mut();
        state.calls += 1;
        let fails =
            |(calls, errno): &(std::ops::Range<u64>, i32)| calls.contains(&state.calls) && (changes || *errno == EIO);
        match state.failing.clone().filter(fails) {
            Some((_, errno)) => {
                state.failed = true;
                Err(io::Error::from_raw_os_error(errno))
            }
            None => Ok(state),
        }
    }
}

pub const EIO: i32 = 5;
pub const ENOSPC: i32 = 28;
pub const EROFS: i32 = 30;

fn missing() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

fn write(content: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let end = at as usize + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[at as usize..end].copy_from_slice(bytes);
}

impl Disk for Simulated {
    type File = u64;
    type Lock = ();

    fn create_dir(&self, _: &Path) -> io::Result<()> {
        self.call(true).map(|_| ())
    }

    fn lock(&self, _: &Path) -> io::Result<()> {
        self.call(true).map(|_| ())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>> {
        let state = self.call(false)?;
        let here = state.names.iter().filter(|(path, _)| path.parent() == Some(dir));
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_string();
        Ok(here.map(|(path, file)| (name(path), state.files[file].len() as u64)).collect())
    }

    fn create(&self, path: &Path) -> io::Result<u64> {
        let mut state = self.call(true)?;
        state.given += 1;
        let file = state.given;
        state.files.insert(file, Vec::new());
        state.names.insert(path.to_path_buf(), file);
        state.deeds.push(Deed::Create { file, path: path.to_path_buf() });
        Ok(file)
    }

    fn open(&self, path: &Path) -> io::Result<u64> {
        self.call(false)?.names.get(path).copied().ok_or_else(missing)
    }

    fn read_at(&self, file: &u64, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let state = self.call(false)?;
        if state.unreadable == Some(*file) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let content = state.files[file].get(at as usize..).unwrap_or_default();
        let count = content.len().min(buffer.len());
        buffer[..count].copy_from_slice(&content[..count]);
        Ok(count)
    }

    fn write_at(&self, file: &u64, bytes: &[u8], at: u64) -> io::Result<()> {
        let (error, bytes) = match self.call(true) {
            Ok(_) => (None, bytes),
            // A failed write may have written a part.
            Err(error) => (Some(error), &bytes[..bytes.len() * (at as usize % 3) / 2 % (bytes.len() + 1)]),
        };
        let mut state = self.0.borrow_mut();
        write(state.files.get_mut(file).unwrap(), at, bytes);
        state.deeds.push(Deed::Write { file: *file, at, bytes: bytes.to_vec() });
        error.map_or(Ok(()), Err)
    }

    fn sync(&self, file: &u64) -> io::Result<()> {
        let error = self.call(true).map(|_| ()).err();
        let file = *file;
        let deed = if error.is_some() { Deed::SyncFailed { file } } else { Deed::Sync { file } };
        self.0.borrow_mut().deeds.push(deed);
        error.map_or(Ok(()), Err)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.call(true)?;
        let file = state.names.remove(from).ok_or_else(missing)?;
        state.names.insert(to.to_path_buf(), file);
        state.deeds.push(Deed::Rename { from: from.to_path_buf(), to: to.to_path_buf() });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.call(true)?;
        state.names.remove(path).ok_or_else(missing)?;
        state.deeds.push(Deed::Remove { path: path.to_path_buf() });
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.call(true)?;
        state.deeds.push(Deed::SyncDir { dir: dir.to_path_buf() });
        Ok(())
    }

    fn random(&self) -> u64 {
        let mut state = self.0.borrow_mut();
        state.given += 1;
        Random(state.given).next()
    }
}

/// Performs recorded deeds again, knowing what of them is durable.
pub struct Replay {
    files: BTreeMap<u64, Vec<u8>>,
    names: BTreeMap<PathBuf, u64>,
    waiting: BTreeMap<u64, Vec<(u64, Vec<u8>)>>,
    renamed: Vec<Deed>,
    random: Random,
    given: u64,
}

impl Replay {
    pub fn new(disk: &Simulated, seed: u64) -> Self {
        let State { before: (files, names), given, .. } = disk.0.borrow().clone();
        Self { files, names, waiting: BTreeMap::new(), renamed: Vec::new(), random: Random(!seed), given }
    }

    pub fn perform(&mut self, deed: &Deed) {
        match deed {
            Deed::Create { file, .. } => {
                self.files.insert(*file, Vec::new());
                self.renamed.push(deed.clone());
            }
            Deed::Write { file, at, bytes } => self.waiting.entry(*file).or_default().push((*at, bytes.clone())),
            Deed::Sync { file } => {
                for (at, bytes) in self.waiting.remove(file).unwrap_or_default() {
                    write(self.files.get_mut(file).unwrap(), at, &bytes);
                }
            }
            Deed::SyncFailed { file } => {
                for (at, bytes) in self.waiting.remove(file).unwrap_or_default() {
                    keep_some(self.files.get_mut(file).unwrap(), at, &bytes, &mut self.random);
                }
            }
            Deed::Rename { .. } | Deed::Remove { .. } => self.renamed.push(deed.clone()),
            Deed::SyncDir { dir } => {
                let renamed = std::mem::take(&mut self.renamed);
                let (here, elsewhere): (Vec<_>, _) = renamed.into_iter().partition(|deed| is_in(dir, deed));
                here.iter().for_each(|deed| rename(&mut self.names, deed));
                self.renamed = elsewhere;
            }
        }
    }

    /// What a power cut leaves here, or in the middle of a write.
    pub fn cut(&self, random: &mut Random, begun: Option<(u64, u64, &[u8])>) -> Simulated {
        let (mut files, mut names) = (self.files.clone(), self.names.clone());
        for (file, writes) in &self.waiting {
            for (at, bytes) in writes {
                keep_some(files.get_mut(file).unwrap(), *at, bytes, random);
            }
        }
        if let Some((file, at, bytes)) = begun {
            write(files.get_mut(&file).unwrap(), at, bytes);
        }
        let kept = random.below(self.renamed.len() as u64 + 1) as usize;
        self.renamed[..kept].iter().for_each(|deed| rename(&mut names, deed));
        let used: Vec<u64> = names.values().copied().collect();
        files.retain(|file, _| used.contains(file));
        Simulated::holding(files, names, self.given)
    }
}

fn keep_some(content: &mut Vec<u8>, at: u64, bytes: &[u8], random: &mut Random) {
    match random.below(4) {
        0 => {}
        1 => write(content, at, bytes),
        2 => write(content, at, &bytes[..random.below(bytes.len() as u64 + 1) as usize]),
        _ => {
            let sector = 512 - at as usize % 512;
            let mut from = 0;
            let mut to = sector.min(bytes.len());
            while from < bytes.len() {
                if random.below(2) == 0 {
                    write(content, at + from as u64, &bytes[from..to]);
                }
                (from, to) = (to, (to + 512).min(bytes.len()));
            }
        }
    }
}

/// A name is always changed within one directory.
fn is_in(dir: &Path, deed: &Deed) -> bool {
    let (Deed::Create { path, .. } | Deed::Rename { to: path, .. } | Deed::Remove { path }) = deed else {
        return false;
    };
    path.parent() == Some(dir)
}

fn rename(names: &mut BTreeMap<PathBuf, u64>, deed: &Deed) {
    match deed {
        Deed::Create { file, path } => drop(names.insert(path.clone(), *file)),
        Deed::Rename { from, to } => {
            let file = names.remove(from).unwrap();
            names.insert(to.clone(), file);
        }
        Deed::Remove { path } => drop(names.remove(path)),
        Deed::Write { .. } | Deed::Sync { .. } | Deed::SyncFailed { .. } | Deed::SyncDir { .. } => {}
    }
}
