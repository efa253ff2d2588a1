//! What a trace says, and how the directory could look after a power cut at any point of it.
//!
//! Kept is what a sync that had ended covers. Of everything else the disk keeps what it likes: for each file nothing,
//! all, the beginning, or any of its 512-byte sectors; of the names a beginning of what happened to them in each
//! directory since it was synced. This is rougher than ext4, which ties names to contents, and as rough as POSIX allows.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Numbers by a seed (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit.max(1) as u64) as usize
    }
}

/// One thing that was done; `inode` and `path` as the trace names them.
#[derive(Debug)]
pub enum Deed {
    Create { inode: u64, path: PathBuf },
    Write { inode: u64, at: usize, bytes: Vec<u8> },
    Length { inode: u64, length: usize },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
    MakeDir { path: PathBuf },
    SyncBegins { inode: u64, id: u64 },
    DirSyncBegins { path: PathBuf, id: u64 },
    SyncEnds { id: u64, result: i32 },
}

/// Deeds, each with the trace's length once it was written down.
pub fn parsed(trace: &[u8]) -> Vec<(u64, Deed)> {
    let (mut deeds, mut at) = (Vec::new(), 0);
    while let Some(end) = trace[at..].iter().position(|byte| *byte == b'\n') {
        let line = std::str::from_utf8(&trace[at..at + end]).expect("a line");
        at += end + 1;
        let (kind, rest) = line.split_at(2);
        let words: Vec<&str> = rest.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        let path = |at: usize| PathBuf::from(words[at]);
        let deed = match kind.trim() {
            "C" => Deed::Create { inode: number(0), path: path(1) },
            "W" => {
                let length = number(2) as usize;
                // A killed process may leave half a line; nothing was done then that anybody was told of.
                let Some(bytes) = trace.get(at..at + length) else { break };
                at += length;
                Deed::Write { inode: number(0), at: number(1) as usize, bytes: bytes.to_vec() }
            }
            "T" => Deed::Length { inode: number(0), length: number(1) as usize },
            "R" => {
                let (from, to) = rest.split_once('\t').expect("two names");
                Deed::Rename { from: from.into(), to: to.into() }
            }
            "U" => Deed::Remove { path: path(0) },
            "M" => Deed::MakeDir { path: path(0) },
            "B" => Deed::SyncBegins { inode: number(0), id: number(1) },
            "D" => Deed::DirSyncBegins { path: path(0), id: number(1) },
            "E" => Deed::SyncEnds { id: number(0), result: words[1].parse().expect("a number") },
            other => panic!("a trace does not say {other:?}"),
        };
        deeds.push((at as u64, deed));
    }
    deeds
}

#[derive(Clone, Debug)]
enum Change {
    Write { at: usize, bytes: Rc<[u8]> },
    Length(usize),
}

/// One file: what is durable, and what happened since.
#[derive(Clone, Debug, Default)]
struct Content {
    durable: Rc<Vec<u8>>,
    since: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Naming {
    Set(PathBuf, u64),
    Unset(PathBuf),
}

/// The disk at a point of the trace.
#[derive(Clone, Default)]
pub struct Disk {
    files: BTreeMap<u64, Content>,
    /// Which file an inode of the trace is now; numbers come again.
    inodes: BTreeMap<u64, u64>,
    given: u64,
    /// As everybody sees them, and as they are durable.
    names: BTreeMap<PathBuf, u64>,
    durable: BTreeMap<PathBuf, u64>,
    /// By directory, in order.
    since: BTreeMap<PathBuf, Vec<Naming>>,
    dirs: Vec<PathBuf>,
    /// What a sync under way will cover: the file or directory, and how many changes.
    syncs: BTreeMap<u64, (Option<u64>, PathBuf, usize)>,
}

fn parent(path: &Path) -> PathBuf {
    path.parent().expect("a file is in a directory").to_owned()
}

fn apply(content: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { at, bytes } => {
            let size = content.len().max(at + bytes.len());
            content.resize(size, 0);
            content[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        Change::Length(length) => content.resize(*length, 0),
    }
}

impl Disk {
    pub fn perform(&mut self, deed: &Deed) {
        match deed {
            Deed::Create { inode, path } => {
                self.given += 1;
                self.inodes.insert(*inode, self.given);
                self.files.insert(self.given, Content::default());
                self.call(path, Some(self.given));
            }
            Deed::Write { inode, at, bytes } => {
                self.change(*inode, Change::Write { at: *at, bytes: bytes.as_slice().into() });
            }
            Deed::Length { inode, length } => self.change(*inode, Change::Length(*length)),
            Deed::Rename { from, to } => {
                // One step in one directory: `replay` splits nothing that rename(2) does not split.
                let file = self.names.get(from).copied();
                self.call(to, file);
                self.call(from, None);
            }
            Deed::Remove { path } => self.call(path, None),
            // The test makes the state directory and its parents; a directory below it counts as there once made.
            Deed::MakeDir { path } => self.dirs.push(path.clone()),
            Deed::SyncBegins { inode, id } => {
                let file = self.inodes.get(inode).copied();
                let covered = file.and_then(|file| self.files.get(&file)).map_or(0, |content| content.since.len());
                self.syncs.insert(*id, (file, PathBuf::new(), covered));
            }
            Deed::DirSyncBegins { path, id } => {
                let covered = self.since.get(path).map_or(0, Vec::len);
                self.syncs.insert(*id, (None, path.clone(), covered));
            }
            Deed::SyncEnds { id, result } => {
                let Some((file, path, covered)) = self.syncs.remove(id) else { return };
                if *result != 0 {
                    return;
                }
                if let Some(content) = file.and_then(|file| self.files.get_mut(&file)) {
                    for change in content.since.drain(..covered.min(content.since.len())) {
                        apply(Rc::make_mut(&mut content.durable), &change);
                    }
                } else if let Some(since) = self.since.get_mut(&path) {
                    for naming in since.drain(..covered.min(since.len())) {
                        rename(&mut self.durable, &naming);
                    }
                }
            }
        }
    }

    fn change(&mut self, inode: u64, change: Change) {
        let content = self.inodes.get(&inode).and_then(|file| self.files.get_mut(file));
        content.expect("a file that was created").since.push(change);
    }

    fn call(&mut self, path: &Path, file: Option<u64>) {
        let naming = match file {
            Some(file) => Naming::Set(path.to_owned(), file),
            None => Naming::Unset(path.to_owned()),
        };
        rename(&mut self.names, &naming);
        self.since.entry(parent(path)).or_default().push(naming);
    }

    /// Writes into `place` how `root` could look after a cut now, in the middle of `begun`.
    pub fn cut(&self, random: &mut Random, begun: Option<&Deed>, root: &Path, place: &Path) {
        let mut disk = self.clone();
        match begun {
            Some(Deed::Write { inode, at, bytes }) => {
                let part = bytes[..random.below(bytes.len() + 1)].into();
                disk.change(*inode, Change::Write { at: *at, bytes: part });
            }
            Some(deed @ (Deed::Rename { .. } | Deed::Remove { .. } | Deed::Create { .. })) if random.below(2) == 0 => {
                disk.perform(deed);
            }
            _ => {}
        }
        let mut names = disk.durable.clone();
        for since in disk.since.values() {
            let mut kept = random.below(since.len() + 1);
            // A rename is one step: its two halves are both there or not.
            if let (Some(Naming::Set(_, _)), Some(Naming::Unset(_))) =
                (kept.checked_sub(1).map(|k| &since[k]), since.get(kept))
            {
                kept += 1;
            }
            since[..kept].iter().for_each(|naming| rename(&mut names, naming));
        }
        let _ = fs::remove_dir_all(place);
        fs::create_dir_all(place).unwrap();
        for dir in &self.dirs {
            fs::create_dir_all(place.join(dir.strip_prefix(root).unwrap())).unwrap();
        }
        for (path, file) in names {
            let content = &disk.files[&file];
            let mut bytes = content.durable.to_vec();
            keep_some(&mut bytes, &content.since, random);
            fs::write(place.join(path.strip_prefix(root).unwrap()), bytes).unwrap();
        }
    }
}

fn rename(names: &mut BTreeMap<PathBuf, u64>, naming: &Naming) {
    match naming {
        Naming::Set(path, file) => drop(names.insert(path.clone(), *file)),
        Naming::Unset(path) => drop(names.remove(path)),
    }
}

/// For each file at random: nothing of it, all, its beginning, or any of its sectors.
fn keep_some(content: &mut Vec<u8>, since: &[Change], random: &mut Random) {
    let manner = random.below(4);
    let whole = random.below(since.len() + 1);
    for (number, change) in since.iter().enumerate() {
        match (manner, change) {
            (0, _) => {}
            (1, change) => apply(content, change),
            (2, change) if number < whole => apply(content, change),
            (2, Change::Write { at, bytes }) if number == whole => {
                let part = bytes[..random.below(bytes.len() + 1)].into();
                apply(content, &Change::Write { at: *at, bytes: part });
            }
            (2, _) => {}
            (_, Change::Length(_)) if random.below(2) == 0 => {}
            (_, change @ Change::Length(_)) => apply(content, change),
            (_, Change::Write { at, bytes }) => {
                let mut from = 0;
                while from < bytes.len() {
                    let to = (from + 512 - (at + from) % 512).min(bytes.len());
                    if random.below(2) == 0 {
                        apply(content, &Change::Write { at: at + from, bytes: bytes[from..to].into() });
                    }
                    from = to;
                }
            }
        }
    }
}
