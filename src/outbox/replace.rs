//! Replaces a small file so that a power cut leaves the old content or the new, never a mixture.
//!
//! ```text
//! FILE.new: written, synced ──► renamed to FILE ──► directory synced
//! ```
//!
//! Always true: when `Ok` comes back, the new content survives a power cut. It never leaves a half-written
//! file under the final name, and never keeps more than one temporary file beside it.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::disk::{Disk, Local, named, parent_of};

/// Puts `bytes` in place of the file at `path` (mode 0600), which need not exist.
///
/// # Errors
/// Whatever the file system answers, with the path. The old content is then still there, except when only
/// the last step failed: then the new content is there, but may not survive a power cut. Calling again is safe.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_file_on(&Local, path, bytes)
}

/// [`replace_file`] on a given disk.
///
/// # Errors
/// As [`replace_file`].
pub fn replace_file_on<D: Disk>(disk: &D, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let Some(parent) = parent_of(path) else {
        return Err(io::Error::new(ErrorKind::InvalidInput, format!("{}: not a file name", path.display())));
    };
    let fresh = fresh_name(path);
    let replaced = write_fresh(disk, &fresh, bytes).and_then(|()| disk.rename(&fresh, path));
    if let Err(error) = replaced {
        // Best effort: what stays behind is overwritten by the next call.
        let _ = disk.remove(&fresh);
        return Err(error);
    }
    disk.sync_dir(parent)
}

/// Names told of what stands aside.
const ASIDES_TOLD: usize = 16;
/// Copies of one file that are kept aside.
const ASIDE_MAX: u32 = 3;

/// Puts a file or directory aside that is not ours to read, under a name of its own beside it (`NAME.aside`, then `.aside-2`,
/// `.aside-3`; beyond that the oldest goes), and says so. What a newer version has written is thereby found again by it.
pub fn set_aside(path: &Path, why: &str) {
    let name = |number: u32| {
        let mut name = OsString::from(path);
        name.push(if number == 1 { ".aside".into() } else { format!(".aside-{number}") });
        PathBuf::from(name)
    };
    let free = (1..=ASIDE_MAX).find(|number| !name(*number).exists());
    if free.is_none() {
        let oldest = name(1);
        let _ = if oldest.is_dir() { std::fs::remove_dir_all(&oldest) } else { std::fs::remove_file(&oldest) };
        for number in 1..ASIDE_MAX {
            let _ = std::fs::rename(name(number + 1), name(number));
        }
    }
    let aside = name(free.unwrap_or(ASIDE_MAX));
    match std::fs::rename(path, &aside) {
        Ok(()) => log::error!("{} is not used: {why}; kept as {}", path.display(), aside.display()),
        Err(error) => log::error!("{} is not used: {why}; it cannot be put aside: {error}", path.display()),
    }
}

/// Whether this is the name of something that was put aside.
pub fn is_aside(name: &str) -> bool {
    name.rsplit_once(".aside").is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with('-'))
        || name.ends_with(".damaged")
}

/// What stands aside in `dir`, by name; the first few.
pub fn asides(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| is_aside(name));
    names.sort();
    names.truncate(ASIDES_TOLD);
    names
}

fn write_fresh<D: Disk>(disk: &D, fresh: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = disk.create(fresh)?;
    let written = disk.write_at(&file, bytes, 0).and_then(|()| disk.sync(&file));
    written.map_err(|error| named(fresh, error))
}

fn fresh_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".new");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_aside_is_kept_three_times_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("saved");
        for number in 0..5 {
            std::fs::write(&path, number.to_string()).unwrap();
            set_aside(&path, "test");
            assert!(!path.exists());
        }
        let names = ["saved.aside", "saved.aside-2", "saved.aside-3"];
        assert_eq!(asides(dir.path()), names);
        assert_eq!(names.map(|name| std::fs::read_to_string(dir.path().join(name)).unwrap()), ["2", "3", "4"]);
        let name = "outbox";
        std::fs::create_dir(dir.path().join(name)).unwrap();
        set_aside(&dir.path().join(name), "test");
        assert!(dir.path().join("outbox.aside").is_dir());
        assert!(!is_aside("aside") && !is_aside("outbox.asides") && is_aside("x.damaged"));
        set_aside(&dir.path().join("nothing"), "test");
    }
}
