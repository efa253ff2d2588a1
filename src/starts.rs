//! How the starts before this one ended: why the daemon starts now (R-DG-9), and whether it is in a crash loop (R-PR-2).
//!
//! Two small files. In the runtime directory, in memory and gone with the boot, the moments of the last starts, taken away
//! by a good end: what is left over was a crash. In the state directory the boot and the version that ran last, written
//! only when one of them is another. Always true: a power cut is no crash, a file that makes no sense counts as none,
//! and neither is worth a sync. It decides nothing about what follows from it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use switchback_control::Instant;

/// So many starts within `LOOP_WITHIN`, all but this one badly ended, are a crash loop.
const LOOP_STARTS: usize = 5;
const LOOP_WITHIN: Duration = Duration::from_secs(30);

/// Why the daemon starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Boot,
    /// Another version, newer or older, ran last.
    Upgrade,
    Crash,
    /// An operator or a script, after a good end.
    Operator,
    /// The configuration is another one; the process is the same.
    Config,
}

/// This start.
#[derive(Debug)]
pub struct Starts {
    pub cause: Cause,
    pub crash_loop: bool,
    file: PathBuf,
}

impl Starts {
    /// Takes note of this start. A crash loop needs somebody who starts us again and again: only with `supervised` is it one,
    /// since elsewhere a person or a test stands behind each start.
    pub fn begin(runtime_dir: &Path, state_dir: &Path, boot: &str, now: Instant, supervised: bool) -> Starts {
        let file = runtime_dir.join("starts");
        let mut moments = read_moments(&file, boot, now);
        let crashed = !moments.is_empty();
        moments.push(now.as_millis());
        let last = moments.len().checked_sub(LOOP_STARTS).and_then(|index| moments.get(index));
        let crash_loop = supervised && last.is_some_and(|first| now.since(Instant::from_millis(*first)) <= LOOP_WITHIN);
        let text: String = moments.iter().rev().take(LOOP_STARTS).rev().map(|moment| format!(" {moment}")).collect();
        write(&file, &format!("{boot}{text}\n"));
        let cause = match cause_by(&state_dir.join("started"), boot) {
            Cause::Operator if crashed => Cause::Crash,
            cause => cause,
        };
        Starts { cause, crash_loop, file }
    }

    /// The end is a good one: nothing is left over of it.
    pub fn end_well(&self) {
        let _ = fs::remove_file(&self.file);
    }
}

impl Cause {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cause::Boot => "boot",
            Cause::Upgrade => "upgrade",
            Cause::Crash => "crash",
            Cause::Operator => "operator",
            Cause::Config => "config",
        }
    }
}

/// Milliseconds since this boot, of starts that did not end well; the oldest first.
fn read_moments(file: &Path, boot: &str, now: Instant) -> Vec<u64> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut words = text.split_whitespace();
    if boot.is_empty() || words.next() != Some(boot) {
        return Vec::new();
    }
    let moments = words.map_while(|word| word.parse().ok()).filter(|moment| *moment <= now.as_millis());
    moments.take(LOOP_STARTS).collect()
}

/// Boot, upgrade or neither, by what ran last; and notes what runs now.
fn cause_by(file: &Path, boot: &str) -> Cause {
    let version = env!("CARGO_PKG_VERSION");
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut words = text.split_whitespace();
    let cause = match (words.next(), words.next()) {
        (Some(_), Some(last)) if last != version => Cause::Upgrade,
        (Some(last), Some(_)) if last != boot => Cause::Boot,
        _ => Cause::Operator,
    };
    let now = format!("{boot} {version}\n");
    if text != now {
        write(file, &now);
    }
    cause
}

/// As good as it goes: what cannot be written makes the next cause a guess, and no more.
fn write(file: &Path, text: &str) {
    if let Err(error) = fs::write(file, text) {
        log::debug!("{}: {error}", file.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1000;

    struct Place(tempfile::TempDir, tempfile::TempDir);

    impl Place {
        fn new() -> Place {
            Place(tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap())
        }

        fn start(&self, boot: &str, at: u64) -> Starts {
            Starts::begin(self.0.path(), self.1.path(), boot, Instant::from_millis(at), true)
        }
    }

    #[test]
    fn the_fifth_start_within_thirty_seconds_is_a_crash_loop() {
        let place = Place::new();
        let first = place.start("b1", 5 * SECOND);
        assert_eq!((first.cause, first.crash_loop), (Cause::Operator, false));
        for at in [10, 15, 20] {
            let start = place.start("b1", at * SECOND);
            assert_eq!((start.cause, start.crash_loop), (Cause::Crash, false));
        }
        assert!(place.start("b1", 35 * SECOND).crash_loop);
        assert!(!place.start("b1", 41 * SECOND).crash_loop, "the last five took longer");
        assert!(place.start("b1", 42 * SECOND).crash_loop);
        assert!(fs::metadata(place.0.path().join("starts")).unwrap().len() < 100, "it does not grow");
    }

    #[test]
    fn a_good_end_another_boot_and_a_person_make_no_crash_loop() {
        let place = Place::new();
        for at in 0..20 {
            let start = place.start("b1", at * SECOND);
            assert_eq!((start.cause, start.crash_loop), (Cause::Operator, false));
            start.end_well();
        }
        for boot in 0..20 {
            let start = place.start(&format!("b{}", boot + 2), SECOND);
            assert_eq!((start.cause, start.crash_loop), (Cause::Boot, false));
        }
        for at in 0..20 {
            let now = Instant::from_millis(at * SECOND);
            assert!(!Starts::begin(place.0.path(), place.1.path(), "b1", now, false).crash_loop);
        }
    }

    #[test]
    fn another_version_is_an_upgrade() {
        let place = Place::new();
        place.start("b1", SECOND).end_well();
        fs::write(place.1.path().join("started"), "b1 0.0.1\n").unwrap();
        assert_eq!(place.start("b1", 2 * SECOND).cause, Cause::Upgrade);
        assert_eq!(place.start("b1", 3 * SECOND).cause, Cause::Crash);
    }

    #[test]
    fn anything_in_the_files_is_survived() {
        let place = Place::new();
        for text in ["", "\n", "b1", "b1 x", "b1 99999999999999999999", "b1 7000 8000 9000 9500 9999", "\0\0\0"] {
            fs::write(place.0.path().join("starts"), text).unwrap();
            fs::write(place.1.path().join("started"), text).unwrap();
            assert!(!place.start("b1", 5 * SECOND).crash_loop, "{text:?}");
        }
        let nowhere = Path::new("/proc/nowhere");
        let start = Starts::begin(nowhere, nowhere, "b1", Instant::from_millis(1), true);
        assert_eq!((start.cause, start.crash_loop), (Cause::Operator, false));
    }
}
