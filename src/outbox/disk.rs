//! What the outbox asks of a disk, and the real one.
//!
//! It decides nothing. The trait is kept as small as the outbox allows, so that the tests can put a disk in
//! its place that loses power at any byte and fails at any call. Always true: a returned error names the
//! path. It never retries a failed call, and never syncs by itself except where a method says so.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The calls the outbox makes on a file system. Offsets and sizes are in bytes.
pub trait Disk {
    /// An open file.
    type File;
    /// Held for as long as the directory is ours.
    type Lock;

    /// Creates `dir` and its parents (mode 0700) if they are missing; durable on return.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the lock file at `path`, creating it; `ResourceBusy` when another process holds it.
    fn lock(&self, path: &Path) -> io::Result<Self::Lock>;
    /// Names and sizes of the plain files in `dir`, in any order.
    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>>;
    /// Creates or empties a file (mode 0600) for reading and writing.
    fn create(&self, path: &Path) -> io::Result<Self::File>;
    /// Opens an existing file for reading and writing; only for reading where the file system is read-only.
    fn open(&self, path: &Path) -> io::Result<Self::File>;
    /// Fills `buffer` from `at`; the answer is smaller than the buffer only at the end of the file.
    fn read_at(&self, file: &Self::File, buffer: &mut [u8], at: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `at`; not durable.
    fn write_at(&self, file: &Self::File, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Makes the file's content durable (fdatasync). After an error what was written may be gone.
    fn sync(&self, file: &Self::File) -> io::Result<()>;
    /// Gives `from` the name `to`, replacing what is there; durable after `sync_dir`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file; durable after `sync_dir`.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// A number nobody can guess.
    fn random(&self) -> u64;
}

/// The real file system.
#[derive(Debug, Default, Clone, Copy)]
pub struct Local;

impl Disk for Local {
    type File = File;
    type Lock = File;

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        if let Some(parent) = parent_of(dir) {
            self.create_dir(parent)?;
        }
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(named(dir, error)),
            Ok(()) | Err(_) => {}
        }
        parent_of(dir).map_or(Ok(()), |parent| self.sync_dir(parent))
    }

    fn lock(&self, path: &Path) -> io::Result<File> {
        let file = private().create(true).open(path).map_err(|error| named(path, error))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                let message = format!("{}: another process uses this outbox", path.display());
                Err(io::Error::new(ErrorKind::ResourceBusy, message))
            }
            Err(TryLockError::Error(error)) => Err(named(path, error)),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(|error| named(dir, error))? {
            let entry = entry.map_err(|error| named(dir, error))?;
            let metadata = entry.metadata().map_err(|error| named(&entry.path(), error))?;
            if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
                files.push((name, metadata.len()));
            }
        }
        Ok(files)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        private().create(true).truncate(true).open(path).map_err(|error| named(path, error))
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        let opened = match private().open(path) {
            // What it holds can be used all the same; a write is an error later.
            Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => File::open(path),
            opened => opened,
        };
        opened.map_err(|error| named(path, error))
    }

    fn read_at(&self, file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, at + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        file.write_all_at(bytes, at)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()?;
        // A file that somebody deleted keeps nothing, however well it is synced.
        match file.metadata()?.nlink() {
            0 => Err(io::Error::new(ErrorKind::NotFound, "the file was deleted")),
            _ => Ok(()),
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to).map_err(|error| named(from, error))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path).map_err(|error| named(path, error))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| named(dir, error))
    }

    fn random(&self) -> u64 {
        // The standard library seeds each RandomState from the operating system.
        RandomState::new().hash_one(0u8)
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

/// The directory a path lies in; the current one for a bare name.
pub(super) fn parent_of(path: &Path) -> Option<&Path> {
    path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

/// The error, with the path in its text and its kind kept.
pub(super) fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
