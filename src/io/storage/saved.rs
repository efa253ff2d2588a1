//! The small files beside the outbox: what the heart saved, and the number of this start.
//!
//! Always true: a file is replaced whole or not at all, and one that makes no sense is set aside and reported. A disk that
//! takes nothing ends nothing here: reading gives the default, and the caller hears of a failed write.

use std::io;
use std::path::{Path, PathBuf};

use switchback_control::{Name, Saved, Selector};

use crate::outbox::{Disk, Local, replace_file, set_aside};

/// The saved value and its companions, small files that are replaced whole.
pub struct SavedFile {
    path: PathBuf,
    boot_id: String,
}

/// First line of the file, with the version; what begins so with another one is set aside for the program that wrote it.
const SAVED_NAME: &str = "switchback saved ";
const SAVED_HEADER: &str = "switchback saved 1";
/// Starts that could not be counted have numbers from here on: no gateway is started so often.
const DRAWN_STARTS: u64 = 1 << 32;

impl SavedFile {
    /// The file `saved` in `state_dir`. `boot_id` bounds what holds only until a reboot (R-CL-6).
    pub fn new(state_dir: &Path, boot_id: &str) -> SavedFile {
        SavedFile { path: state_dir.join("saved"), boot_id: boot_id.to_owned() }
    }

    /// What was saved last. A file that is not there is the default; one that makes no sense is set aside, reported,
    /// and the default is taken.
    pub fn load(&self) -> Saved {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Saved::default(),
            Err(error) => return self.set_aside(&error.to_string()),
        };
        match parse_saved(&text, &self.boot_id) {
            Some(saved) => saved,
            None if text.starts_with(SAVED_NAME) && !text.starts_with(SAVED_HEADER) => {
                set_aside(&self.path, "it is of a newer version; starting with the defaults");
                Saved::default()
            }
            None => self.set_aside("it is damaged"),
        }
    }

    fn set_aside(&self, why: &str) -> Saved {
        let aside = self.path.with_extension("damaged");
        let _ = std::fs::rename(&self.path, &aside);
        log::warn!(
            "{} is not used: {why}; kept as {}, starting with the defaults",
            self.path.display(),
            aside.display()
        );
        Saved::default()
    }

    /// Replaces the file; when this returns, the value survives a power cut.
    ///
    /// # Errors
    /// As the file system says; the old file is then still there.
    pub fn save(&self, saved: &Saved) -> io::Result<()> {
        replace_file(&self.path, print_saved(saved, &self.boot_id).as_bytes())
    }

    /// The number of this start, made durable before it is returned (R-SF-7). Where the disk does not take it, one drawn
    /// at random from far above: else identities would repeat.
    pub fn next_start(&self) -> u64 {
        let path = self.path.with_file_name("starts");
        let last = std::fs::read_to_string(&path).ok().and_then(|text| first_number(&text)).unwrap_or(0u64);
        let next = last.saturating_add(1);
        match replace_file(&path, format!("{next}\n").as_bytes()) {
            Ok(()) => next,
            Err(error) => {
                let drawn = DRAWN_STARTS + (Local.random() >> 32);
                log::warn!("this start cannot be counted ({error}); messages of this run are named by {drawn} instead");
                drawn
            }
        }
    }
}

/// Whatever a newer version may add behind it.
fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

fn print_saved(saved: &Saved, boot_id: &str) -> String {
    let list: Vec<String> = saved.list.iter().map(Selector::to_string).collect();
    let held = if saved.held { boot_id } else { "" };
    let last_good = saved.last_good.map(|n| n.to_string()).unwrap_or_default();
    let body = format!("{SAVED_HEADER}\nlist={}\nheld={held}\nlast-good={last_good}\n", list.join(" "));
    format!("{body}crc={:08x}\n", crc32c::crc32c(body.as_bytes()))
}

fn parse_saved(text: &str, boot_id: &str) -> Option<Saved> {
    let (body, crc) = text.split_at(text.find("crc=")?);
    let crc = u32::from_str_radix(crc.strip_prefix("crc=")?.trim_end(), 16).ok()?;
    if crc != crc32c::crc32c(body.as_bytes()) || body.lines().next() != Some(SAVED_HEADER) {
        return None;
    }
    let value = |key: &str| body.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let list: Result<Vec<Selector>, _> = value("list")?.split_whitespace().map(str::parse).collect();
    let last_good = value("last-good")?;
    Some(Saved {
        list: list.ok()?,
        held: value("held")? == boot_id && !boot_id.is_empty(),
        last_good: if last_good.is_empty() { None } else { Some(Name::new(last_good).ok()?) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use switchback_control::Class;

    fn some() -> Saved {
        let wwan0 = Name::new("wwan0").unwrap();
        let list = vec![Selector::Class(Class::Wifi), Selector::Name(wwan0)];
        Saved { list, held: true, last_good: Some(wwan0) }
    }

    #[test]
    fn what_is_saved_is_read_again() {
        assert_eq!(parse_saved(&print_saved(&some(), "b1"), "b1"), Some(some()));
        assert_eq!(parse_saved(&print_saved(&Saved::default(), "b1"), "b1"), Some(Saved::default()));
    }

    #[test]
    fn staying_disconnected_ends_with_the_boot() {
        let read = parse_saved(&print_saved(&some(), "b1"), "b2").unwrap();
        assert!(!read.held);
        assert_eq!(read.list, some().list);
    }

    #[test]
    fn a_file_cut_or_changed_at_any_byte_is_noticed() {
        let text = print_saved(&some(), "b1");
        for end in 0..text.len() - 1 {
            assert_eq!(parse_saved(&text[..end], "b1"), None, "cut at {end}");
        }
        for index in 0..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[index] ^= 1;
            if let Ok(changed) = String::from_utf8(bytes) {
                assert_ne!(parse_saved(&changed, "b1"), Some(Saved { held: false, ..some() }), "changed at {index}");
                if parse_saved(&changed, "b1").is_some() {
                    assert!(changed.eq_ignore_ascii_case(&text), "changed at {index}");
                }
            }
        }
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_the_default_taken() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("saved"), "rubbish").unwrap();
        let file = SavedFile::new(dir.path(), "b1");
        assert_eq!(file.load(), Saved::default());
        assert!(dir.path().join("saved.damaged").exists());
        file.save(&some()).unwrap();
        assert_eq!(file.load(), some());
    }

    #[test]
    fn a_file_of_a_newer_version_is_kept_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let newer = "switchback saved 2\nlist=satellite\n";
        std::fs::write(dir.path().join("saved"), newer).unwrap();
        std::fs::write(dir.path().join("starts"), "41 of a newer version\n").unwrap();
        let file = SavedFile::new(dir.path(), "b1");
        assert_eq!((file.load(), file.next_start()), (Saved::default(), 42));
        file.save(&some()).unwrap();
        assert_eq!(file.load(), some());
        assert_eq!(std::fs::read_to_string(dir.path().join("saved.aside")).unwrap(), newer);
    }

    #[test]
    fn every_start_has_a_higher_number() {
        let dir = tempfile::tempdir().unwrap();
        let file = SavedFile::new(dir.path(), "b1");
        assert_eq!((file.next_start(), file.next_start()), (1, 2));
    }

    #[test]
    fn a_start_that_cannot_be_counted_has_a_name_of_its_own() {
        let file = SavedFile::new(Path::new("/proc/nowhere"), "b1");
        let (one, other) = (file.next_start(), file.next_start());
        assert!(one >= DRAWN_STARTS && other >= DRAWN_STARTS && one != other);
    }
}
