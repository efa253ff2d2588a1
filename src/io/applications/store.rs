//! The file that keeps local sessions over a restart: `sessions` in the state directory.
//!
//! ```text
//! file     "switchback sessions 1\n" │ frame │ frame │ …
//! frame    head check u32 │ length u32 │ body check u32 │ entries       (CRC32C, little endian)
//! ```
//!
//! Frames are only ever added behind the last one, with one sync for all that came together; the head check is over
//! the eight bytes behind it. When the file has grown to several times what it says, it is replaced as a whole. A
//! power cut leaves a frame or does not: an unfinished one at the end is not read, and nothing in it was promised.
//! After a failed call nothing is added any more: the next write replaces the file. Never fails a start: what cannot
//! be read is set aside as `sessions.damaged`, one of a newer version as `sessions.aside`, and what stood before the damage counts. Decides nothing about what to
//! keep or when.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::outbox::{Disk, replace_file_on, set_aside};

const MAGIC: &[u8] = b"switchback sessions 1\n";
/// What files of every version begin with.
const NAME: &[u8] = b"switchback sessions ";
const HEAD_BYTES: usize = 12;

/// Largest body read: several of the largest messages. More than this is damage.
const FRAME_MAX: usize = 4 * 1024 * 1024;

/// The file may grow to this, or to `GROWTH` times what it says, before it is replaced.
const GROWN_MIN: u64 = 256 * 1024;
const GROWTH: u64 = 3;

/// See the file's head.
#[derive(Debug)]
pub struct Store<D: Disk> {
    disk: D,
    path: PathBuf,
    file: Option<D::File>,
    /// Where the next frame goes.
    end: u64,
    /// Only a whole new file may be written.
    broken: bool,
}

impl<D: Disk> Store<D> {
    /// Opens the file in `dir` and gives every frame's body to `take`, in order; false from it means damage.
    pub fn open(disk: D, dir: &Path, take: &mut dyn FnMut(&[u8]) -> bool) -> Store<D> {
        let path = dir.join("sessions");
        let mut store = Store { disk, path, file: None, end: 0, broken: true };
        match store.read(take) {
            Ok(Found::Whole) => store.broken = false,
            Ok(Found::Nothing) => {}
            Ok(Found::Unfinished) => {
                log::info!(
                    "{}: the last write was cut short; nothing that was promised is missing",
                    store.path.display()
                );
            }
            Ok(Found::Newer) => {
                set_aside(
                    &store.path,
                    "it is of a newer version; local MQTT sessions and retained messages begin anew",
                );
            }
            Ok(Found::Damaged) => {
                store.set_aside("is damaged: local MQTT sessions and retained messages may be missing");
            }
            Err(error) => store.set_aside(&format!("cannot be read ({error}): local MQTT sessions are lost")),
        }
        store
    }

    /// Whether the next write must be the whole: after trouble, or because the file has grown far beyond `live` bytes.
    pub fn wants_all(&self, live: u64) -> bool {
        self.broken || self.end > GROWN_MIN.max(live.saturating_mul(GROWTH))
    }

    /// Adds frames; durable on return.
    ///
    /// # Errors
    /// Whatever the disk says; then only `replace` helps.
    pub fn append(&mut self, bodies: &[Vec<u8>]) -> io::Result<()> {
        let mut bytes = Vec::new();
        bodies.iter().for_each(|body| frame(&mut bytes, body));
        let wrote = self.write(&bytes);
        self.broken |= wrote.is_err();
        wrote
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::new(ErrorKind::InvalidData, "an earlier write failed"));
        }
        let file = match self.file.take() {
            Some(file) => file,
            None => self.disk.open(&self.path)?,
        };
        self.disk.write_at(&file, bytes, self.end)?;
        self.disk.sync(&file)?;
        self.file = Some(file);
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Puts a whole new file in place; durable on return.
    ///
    /// # Errors
    /// Whatever the disk says. What stood there before, or the new content, stands there then.
    pub fn replace(&mut self, bodies: &[Vec<u8>]) -> io::Result<()> {
        let mut bytes = MAGIC.to_vec();
        bodies.iter().for_each(|body| frame(&mut bytes, body));
        self.file = None;
        self.broken = true;
        replace_file_on(&self.disk, &self.path, &bytes)?;
        self.end = bytes.len() as u64;
        self.broken = false;
        Ok(())
    }

    fn read(&mut self, take: &mut dyn FnMut(&[u8]) -> bool) -> io::Result<Found> {
        let file = match self.disk.open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(error),
        };
        let mut magic = [0; MAGIC.len()];
        if self.disk.read_at(&file, &mut magic, 0)? < MAGIC.len() || magic != MAGIC {
            return Ok(if magic.starts_with(NAME) { Found::Newer } else { Found::Damaged });
        }
        self.end = MAGIC.len() as u64;
        loop {
            let mut head = [0; HEAD_BYTES];
            match self.disk.read_at(&file, &mut head, self.end)? {
                0 => {
                    self.file = Some(file);
                    return Ok(Found::Whole);
                }
                HEAD_BYTES => {}
                _ => return Ok(Found::Unfinished),
            }
            let Some((length, check)) = read_head(&head) else { return Ok(Found::Damaged) };
            // One byte more tells whether this is the last frame.
            let mut body = vec![0; length + 1];
            let got = self.disk.read_at(&file, &mut body, self.end + HEAD_BYTES as u64)?;
            let last = got <= length;
            body.truncate(length);
            if got < length || crc32c::crc32c(&body) != check {
                return Ok(if last { Found::Unfinished } else { Found::Damaged });
            }
            if !take(&body) {
                return Ok(Found::Damaged);
            }
            self.end += (HEAD_BYTES + length) as u64;
        }
    }

    fn set_aside(&self, what: &str) {
        let mut name = self.path.clone().into_os_string();
        name.push(".damaged");
        let kept = match self.disk.rename(&self.path, Path::new(&name)) {
            Ok(()) => "it was set aside as sessions.damaged",
            Err(_) => "it could not be set aside either",
        };
        log::warn!("{} {what}; {kept}", self.path.display());
    }
}

enum Found {
    Nothing,
    Whole,
    /// A power cut in the last write.
    Unfinished,
    Damaged,
    Newer,
}

fn frame(out: &mut Vec<u8>, body: &[u8]) {
    let mut head = [0; 8];
    let fields = (body.len() as u32).to_le_bytes().into_iter().chain(crc32c::crc32c(body).to_le_bytes());
    head.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
    out.extend(crc32c::crc32c(&head).to_le_bytes());
    out.extend(head);
    out.extend_from_slice(body);
}

fn read_head(head: &[u8; HEAD_BYTES]) -> Option<(usize, u32)> {
    let (check, rest) = head.split_first_chunk::<4>()?;
    let (length, body) = rest.split_first_chunk::<4>()?;
    let right = crc32c::crc32c(rest) == u32::from_le_bytes(*check);
    let length = u32::from_le_bytes(*length) as usize;
    (right && length <= FRAME_MAX).then_some((length, u32::from_le_bytes(body.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::Local;

    fn read(dir: &Path) -> (Vec<Vec<u8>>, Store<Local>) {
        let mut bodies = Vec::new();
        let store = Store::open(Local, dir, &mut |body| {
            bodies.push(body.to_vec());
            true
        });
        (bodies, store)
    }

    #[test]
    fn a_cut_at_every_byte_leaves_whole_frames_only_and_writing_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sessions");
        let (_, mut store) = read(dir.path());
        assert!(store.wants_all(0));
        store.replace(&[b"one".to_vec()]).unwrap();
        store.append(&[b"two".to_vec(), b"three".to_vec()]).unwrap();
        let bytes = std::fs::read(&file).unwrap();
        let ends = [MAGIC.len(), 37, 52, bytes.len()];
        for cut in MAGIC.len()..=bytes.len() {
            std::fs::write(&file, &bytes[..cut]).unwrap();
            let (bodies, mut store) = read(dir.path());
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            assert_eq!(bodies, [&b"one"[..], b"two", b"three"][..whole], "cut at {cut}");
            assert_eq!(store.wants_all(0), !ends.contains(&cut));
            assert!(!dir.path().join("sessions.damaged").exists());
            if store.wants_all(0) {
                store.replace(&bodies).unwrap();
            }
            store.append(&[b"more".to_vec()]).unwrap();
            assert_eq!(read(dir.path()).0.len(), whole + 1);
        }
    }

    #[test]
    fn a_changed_byte_sets_the_file_aside_and_what_stood_before_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sessions");
        read(dir.path()).1.replace(&[b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]).unwrap();
        let bytes = std::fs::read(&file).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            std::fs::write(&file, &changed).unwrap();
            let (bodies, store) = read(dir.path());
            assert!(bodies.len() < 3 && store.wants_all(0), "byte {at}");
            let in_last_body = at >= bytes.len() - 5;
            assert_eq!(file.exists(), in_last_body, "byte {at}: the trace of a power cut is no damage");
        }
    }

    #[test]
    fn it_is_replaced_once_it_has_grown() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mut store) = read(dir.path());
        store.replace(&[]).unwrap();
        for _ in 0..3 {
            store.append(&[vec![0; 100_000]]).unwrap();
        }
        assert!(store.wants_all(50_000) && !store.wants_all(200_000));
    }
}
