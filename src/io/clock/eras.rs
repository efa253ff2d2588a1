//! What is known of the wall clock: since when it shows what, over boots, and what that says of a message's age (R-PR-6).
//!
//! ```text
//! not set ── shows more than ever before, and nobody merely put back what was saved; or is set before our eyes ──► set
//! ```
//!
//! A Pi without a clock chip boots in the past, or at the time of its last shutdown. A message that is accepted before the
//! clock is set is stamped with milliseconds since boot; one accepted later with the wall clock. Each time the clock is
//! found set or stepped begins an era, and from the eras of its boot a message gets its right time whenever that is
//! known, even after a reboot. Ages within this boot are counted by the boot clock alone. Always true: a clock that jumps
//! makes nothing old, and of two readings the younger one counts. Pure: no clock is read here, and none is ever set.

use std::fmt::Write;

use super::SET_SINCE;

/// First line of the file; another version is not ours to read.
pub const HEADER: &str = "switchback clock 1";
/// Eras remembered, over all boots: the oldest go first, and with them the times of what was accepted before its clock was set.
const ERAS_MAX: usize = 32;
/// A step of the clock smaller than this is none: clocks are set to the second by hand, and slewed below that.
const STEP_MS: u64 = 1_000;
/// How long ago a step may have been that has just been noticed.
const NOTICED_MS: u64 = 2_000;
/// A clock that shows less than this above the last known time right at a boot may have been put back to what was saved at the
/// shutdown: programs that do so save every hour.
const RESTORED_MS: u64 = 2 * 3_600_000;
/// Stamps below this are milliseconds since boot: no machine runs for ten years. What lies between this and `SET_SINCE` is from
/// a version that took an unset clock at its word: shown as it is, and never old.
pub const UP_MAX: u64 = 10 * 365 * 86_400_000;
/// Letters of a boot ID in an identity.
const BOOT_LETTERS: usize = 8;

/// From `from` on (milliseconds since boot), the wall clock is `offset` milliseconds ahead of the boot clock.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Era {
    boot: String,
    from: u64,
    offset: u64,
}

/// Both clocks at one moment, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    pub wall: u64,
    pub up: u64,
}

/// Where a reading's trust may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Nothing but the number itself.
    None,
    /// The kernel set it from a clock chip at this boot, or a time server is known to have answered in it.
    Steady,
    /// Somebody has set it just now.
    Stepped,
}

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    /// It was not set, and is.
    Set,
    /// It was set, and is set otherwise.
    Moved,
    /// It was set, and shows a time that has been.
    Lost,
}

/// What is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Eras {
    boot: String,
    /// The newest last.
    eras: Vec<Era>,
    /// The latest time ever seen on a set clock; zero for none.
    floor: u64,
    set: bool,
    /// What the last look told.
    told: bool,
}

impl Eras {
    /// What an earlier run wrote down; `None` where it makes no sense.
    pub fn read(text: &str, boot: &str) -> Option<Eras> {
        let mut lines = text.lines();
        if lines.next() != Some(HEADER) {
            return None;
        }
        let mut eras = Eras::of_boot(boot);
        for line in lines.take(ERAS_MAX + 1) {
            match line.split(' ').collect::<Vec<_>>().as_slice() {
                ["last", floor] => eras.floor = floor.parse().ok()?,
                ["era", boot, from, offset] => {
                    let (from, offset) = (from.parse().ok()?, offset.parse().ok()?);
                    eras.eras.push(Era { boot: (*boot).to_owned(), from, offset });
                }
                _ => return None,
            }
        }
        Some(eras)
    }

    /// Nothing known yet.
    pub fn of_boot(boot: &str) -> Eras {
        Eras { boot: boot.chars().take(BOOT_LETTERS).collect(), ..Eras::default() }
    }

    /// To be read by a later start.
    pub fn write(&mut self, now: Reading) -> String {
        if self.set {
            self.floor = self.floor.max(now.wall);
        }
        let mut text = format!("{HEADER}\nlast {}\n", self.floor);
        for era in &self.eras {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "era {} {} {}", era.boot, era.from, era.offset);
        }
        text
    }

    pub fn is_set(&self) -> bool {
        self.set
    }

    /// Looks at the clocks, and tells what has changed since the last look.
    pub fn look(&mut self, now: Reading, evidence: Evidence) -> Found {
        let begun = self.notice(now, evidence);
        match (std::mem::replace(&mut self.told, self.set), self.set) {
            (false, true) => Found::Set,
            (true, false) => Found::Lost,
            (true, true) if begun => Found::Moved,
            (true, true) | (false, false) => Found::Nothing,
        }
    }

    /// Takes note of what the clocks show; whether that begins an era.
    fn notice(&mut self, now: Reading, evidence: Evidence) -> bool {
        let offset = now.wall.saturating_sub(now.up);
        let last = self.eras.last().filter(|era| era.boot == self.boot);
        let known = last.is_some_and(|era| era.offset.abs_diff(offset) < STEP_MS);
        let possible = now.wall >= SET_SINCE;
        let grown = now.wall >= self.floor;
        let restored = self.floor > 0 && last.is_none() && offset < self.floor.saturating_add(RESTORED_MS);
        let believed = possible
            && match evidence {
                Evidence::None => grown && !restored,
                Evidence::Steady => grown,
                // Who sets it back means it: what was known was wrong.
                Evidence::Stepped => true,
            };
        if believed && !grown {
            self.floor = now.wall;
        }
        self.set = possible && (believed || known || (self.set && grown));
        let begins = self.set && !known;
        if begins {
            self.eras.push(Era { boot: self.boot.clone(), from: now.up, offset });
            if self.eras.len() > ERAS_MAX {
                self.eras.remove(0);
            }
        }
        begins
    }

    /// What a message is stamped with now.
    pub fn stamp(&mut self, now: Reading) -> u64 {
        self.notice_if_unset(now);
        if self.set { now.wall } else { now.up }
    }

    /// A message need not wait for the next look.
    pub fn notice_if_unset(&mut self, now: Reading) {
        if !self.set {
            self.notice(now, Evidence::None);
        }
    }

    /// When a message was accepted, milliseconds since the epoch, as well as that is known by now; `None` where it is not.
    /// `id` is its identity, which begins with its boot.
    pub fn time(&self, accepted: u64, id: &str, now: Reading) -> Option<u64> {
        let own = self.is_own(id);
        let boot = if own { self.boot.as_str() } else { id.split('.').next().unwrap_or_default() };
        let last = self.eras.iter().rev().find(|era| era.boot == boot);
        let up = if accepted < UP_MAX { Some(accepted) } else { self.moment(accepted, boot, own.then_some(now.up)) };
        match (up, last) {
            (Some(up), Some(last)) => Some(last.offset.saturating_add(up)),
            (None, _) | (Some(_), None) => Some(accepted).filter(|accepted| *accepted >= UP_MAX),
        }
    }

    /// How long ago a message was accepted at least, in milliseconds. `wall` is what the clock shows, or `least_wall`.
    pub fn age(&self, accepted: u64, id: &str, wall: u64, now: Reading) -> u64 {
        let own = self.is_own(id);
        let moment = || self.moment(accepted, &self.boot, Some(now.up));
        let up = if accepted < UP_MAX { Some(accepted) } else { moment() };
        if let Some(up) = up.filter(|_| own) {
            return now.up.saturating_sub(up);
        }
        match self.time(accepted, id, now) {
            Some(time) if wall >= SET_SINCE && time >= SET_SINCE => {
                wall.saturating_sub(time).min(if own { now.up } else { u64::MAX })
            }
            // It was here before this boot; more is not known.
            None => now.up,
            Some(_) => 0,
        }
    }

    /// What the wall clock shows, but never more than it showed at any time of this boot with what has passed since.
    pub fn least_wall(&self, now: Reading) -> u64 {
        let shown = self.eras.iter().filter(|era| era.boot == self.boot).map(|era| era.offset.saturating_add(now.up));
        shown.fold(now.wall, u64::min)
    }

    /// Whether a message is of this boot.
    fn is_own(&self, id: &str) -> bool {
        !self.boot.is_empty() && id.split('.').next() == Some(self.boot.as_str())
    }

    /// The moment since its boot that a wall clock's stamp stands for; where the clock was set back and two would fit, the later.
    fn moment(&self, accepted: u64, boot: &str, now: Option<u64>) -> Option<u64> {
        let mut until = now.unwrap_or(u64::MAX);
        for era in self.eras.iter().rev().filter(|era| era.boot == boot) {
            let up = accepted.checked_sub(era.offset);
            if let Some(up) = up.filter(|up| *up <= until && up.saturating_add(NOTICED_MS) >= era.from) {
                return Some(up);
            }
            until = era.from;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000;
    const HOUR: u64 = 3_600 * SECOND;
    /// A day in November 2026.
    const TODAY: u64 = SET_SINCE + 320 * 24 * HOUR;
    const ID: &str = "aaaaaaaa.1.7";

    fn at(wall: u64, up: u64) -> Reading {
        Reading { wall, up }
    }

    #[test]
    fn a_clock_that_shows_1970_is_not_set_and_messages_get_their_time_when_it_is() {
        let mut eras = Eras::of_boot("aaaaaaaa-1111");
        assert_eq!(eras.look(at(20 * SECOND, 20 * SECOND), Evidence::None), Found::Nothing);
        let stamp = eras.stamp(at(25 * SECOND, 25 * SECOND));
        assert_eq!((stamp, eras.time(stamp, ID, at(26 * SECOND, 26 * SECOND))), (25 * SECOND, None));
        assert_eq!(eras.look(at(TODAY, 60 * SECOND), Evidence::Stepped), Found::Set);
        let now = at(TODAY + 5 * SECOND, 65 * SECOND);
        assert_eq!(eras.time(stamp, ID, now), Some(TODAY - 35 * SECOND));
        assert_eq!(eras.age(stamp, ID, now.wall, now), 40 * SECOND);
        assert_eq!(eras.stamp(now), now.wall);
        assert_eq!(eras.look(now, Evidence::None), Found::Nothing);
    }

    #[test]
    fn times_are_corrected_after_a_reboot_too_if_the_clock_of_their_boot_was_ever_set() {
        let mut eras = Eras::of_boot("aaaaaaaa");
        eras.look(at(20 * SECOND, 20 * SECOND), Evidence::None);
        let lost = Eras::read(&eras.write(at(30 * SECOND, 30 * SECOND)), "bbbbbbbb").unwrap();
        eras.look(at(TODAY, 60 * SECOND), Evidence::Stepped);
        let mut known = Eras::read(&eras.write(at(TODAY, 60 * SECOND)), "bbbbbbbb").unwrap();
        let now = at(TODAY + 3 * HOUR, 10 * SECOND);
        assert_eq!(known.look(now, Evidence::None), Found::Set);
        assert_eq!(known.time(25 * SECOND, ID, now), Some(TODAY - 35 * SECOND));
        assert_eq!(known.age(25 * SECOND, ID, now.wall, now), 3 * HOUR + 35 * SECOND);
        assert_eq!(lost.time(25 * SECOND, ID, now), None);
        assert_eq!(lost.age(25 * SECOND, ID, now.wall, now), 10 * SECOND, "this boot is all that is known");
    }

    #[test]
    fn a_clock_put_back_to_the_last_shutdown_is_not_set_until_somebody_sets_it() {
        let mut eras = Eras::of_boot("aaaaaaaa");
        assert_eq!(eras.look(at(TODAY, HOUR), Evidence::None), Found::Set, "nothing speaks against the first one");
        let saved = eras.write(at(TODAY + HOUR, 2 * HOUR));
        let boots = |wall, evidence| Eras::read(&saved, "bbbbbbbb").unwrap().look(at(wall, 10 * SECOND), evidence);
        assert_eq!(boots(TODAY + HOUR + 15 * SECOND, Evidence::None), Found::Nothing);
        assert_eq!(boots(TODAY + HOUR + 15 * SECOND, Evidence::Steady), Found::Set, "a clock chip is believed");
        assert_eq!(boots(TODAY + 4 * HOUR, Evidence::None), Found::Set, "nobody saved that");
        for evidence in [Evidence::None, Evidence::Steady] {
            assert_eq!(boots(TODAY - HOUR, evidence), Found::Nothing, "it was later before");
        }
        assert_eq!(boots(TODAY - HOUR, Evidence::Stepped), Found::Set, "who sets it back means it");
        let mut again = Eras::read(&saved, "aaaaaaaa").unwrap();
        assert_eq!(again.look(at(TODAY + HOUR + SECOND, 2 * HOUR + SECOND), Evidence::None), Found::Set, "same boot");
    }

    #[test]
    fn a_clock_that_jumps_makes_nothing_old() {
        let mut eras = Eras::of_boot("aaaaaaaa");
        eras.look(at(TODAY, HOUR), Evidence::Stepped);
        let year = 365 * 24 * HOUR;
        let stamp = eras.stamp(at(TODAY + 10 * SECOND, HOUR + 10 * SECOND));
        assert_eq!(eras.look(at(TODAY + year, HOUR + 20 * SECOND), Evidence::Stepped), Found::Moved);
        let now = at(TODAY + year + 10 * SECOND, HOUR + 30 * SECOND);
        assert_eq!(eras.age(stamp, ID, now.wall, now), 20 * SECOND);
        assert_eq!(eras.time(stamp, ID, now), Some(now.wall - 20 * SECOND), "by the clock as it was set last");
        let old = eras.age(TODAY - 5 * HOUR, "bbbbbbbb.1.1", eras.least_wall(now), now);
        assert_eq!(old, 5 * HOUR + 30 * SECOND, "of another boot: by what the clock showed first");
        assert_eq!(eras.look(at(TODAY + 40 * SECOND, HOUR + 40 * SECOND), Evidence::Stepped), Found::Moved);
        let now = at(TODAY + 50 * SECOND, HOUR + 50 * SECOND);
        assert_eq!(eras.age(stamp, ID, now.wall, now), 40 * SECOND, "and back again");
        assert_eq!(eras.time(stamp, ID, now), Some(TODAY + 10 * SECOND));
    }

    #[test]
    fn without_knowing_anything_a_stamp_is_what_it_says() {
        let eras = Eras::default();
        let now = at(TODAY, HOUR);
        assert_eq!(eras.time(TODAY - 5, "x", now), Some(TODAY - 5));
        assert_eq!(eras.age(TODAY - 5, "x", now.wall, now), 5);
        assert_eq!(eras.age(TODAY + 5, "x", now.wall, now), 0);
        assert_eq!(eras.age(TODAY, "x", 7, now), 0, "a clock that is not set makes nothing old");
        assert_eq!(eras.least_wall(now), TODAY);
        let before = SET_SINCE - 24 * HOUR;
        assert_eq!((eras.time(before, "x", now), eras.age(before, "x", TODAY, now)), (Some(before), 0));
    }

    #[test]
    fn the_file_is_small_and_anything_in_it_is_survived() {
        let mut eras = Eras::of_boot("aaaaaaaa");
        for step in 1..100 {
            eras.look(at(TODAY + step * HOUR, step * SECOND), Evidence::Stepped);
        }
        let text = eras.write(at(TODAY + 100 * HOUR, 100 * SECOND));
        assert!(text.len() < 2_000, "{}", text.len());
        assert_eq!(Eras::read(&text, "aaaaaaaa").unwrap().eras, eras.eras);
        for end in 0..text.len() {
            let _ = Eras::read(&text[..end], "x");
        }
        for text in ["", "switchback clock 2\nlast 5\n", "switchback clock 1\nlast x\n", "switchback clock 1\nera a\n"]
        {
            assert_eq!(Eras::read(text, "x"), None, "{text:?}");
        }
        let most = u64::MAX;
        let mut eras =
            Eras::read(&format!("{HEADER}\nlast {most}\nera b {most} {most}\nera x 0 {most}\n"), "x").unwrap();
        for now in [at(0, 0), at(most, 0), at(0, most), at(most, most), at(TODAY, HOUR)] {
            for evidence in [Evidence::None, Evidence::Steady, Evidence::Stepped] {
                eras.look(now, evidence);
                for stamp in [0, 5, TODAY, most] {
                    for id in ["x.1.1", "b.1.1", "", "."] {
                        let _ = (eras.time(stamp, id, now), eras.age(stamp, id, now.wall, now), eras.least_wall(now));
                    }
                }
            }
        }
    }
}
