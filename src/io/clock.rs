//! The kernel's clocks, read here and nowhere else.
//!
//! Three of them: `CLOCK_BOOTTIME` (milliseconds since boot, suspend included), which is the only time a decision is
//! ever made with; the wall clock, which is only shown and may be wrong or jump; and the boot ID, which tells whose
//! milliseconds those are. Reading a clock never fails and never waits. `tokio`'s own timers stand still in suspend,
//! so the loop's deadline is an [`Alarm`], which does not; [`Steps`] tells when somebody sets the wall clock, which is
//! never done here. What is known of the wall clock ([`eras`]) is one for the whole process, as the clock is one for the
//! machine; a process that does not `begin` takes the clock as it is.

pub mod eras;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use eras::{Eras, Evidence, Found, Reading};

use jiff::Timestamp;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};
use switchback_control::Instant;
use tokio::io::unix::AsyncFd;

/// Where the kernel says which boot this is (`random(4)`).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// 1 January 2026, milliseconds since the epoch: a clock that shows less has not been set.
pub const SET_SINCE: u64 = 1_767_225_600_000;

/// The file in the state directory with what is known of the clock.
const FILE: &str = "clock";
/// There once a time server has answered in this boot (systemd-timesyncd).
const SYNCHRONISED: &str = "/run/systemd/timesync/synchronized";
/// Clock chips; the kernel sets the clock from one at the boot.
const CHIPS: &str = "/sys/class/rtc";

static KNOWN: Mutex<Option<Eras>> = Mutex::new(None);

/// Reads what earlier starts knew of the clock, and looks at it. A file of a newer version is set aside.
pub fn begin(state_dir: &Path) -> Found {
    let boot = boot_id();
    let path = state_dir.join(FILE);
    let eras = fs::read_to_string(&path).ok().and_then(|text| {
        let read = Eras::read(&text, &boot);
        if read.is_none() {
            crate::outbox::set_aside(&path, "it is damaged or of a newer version");
        }
        read
    });
    *known() = Some(eras.unwrap_or_else(|| Eras::of_boot(&boot)));
    look(false)
}

/// Looks whether the clock is set; `stepped`: somebody has just set it.
pub fn look(stepped: bool) -> Found {
    let evidence = match stepped {
        true => Evidence::Stepped,
        false if is_set() => Evidence::None,
        false if Path::new(SYNCHRONISED).exists() || has_chip() => Evidence::Steady,
        false => Evidence::None,
    };
    known().as_mut().map_or(Found::Nothing, |eras| eras.look(reading(), evidence))
}

/// Whether the wall clock can be believed.
pub fn is_set() -> bool {
    let now = reading();
    known().as_ref().map_or(now.wall >= SET_SINCE, Eras::is_set)
}

/// Writes down what is known, for the next start.
///
/// # Errors
/// The file system's.
pub fn keep(state_dir: &Path) -> io::Result<()> {
    let text = known().as_mut().map(|eras| eras.write(reading()));
    text.map_or(Ok(()), |text| crate::outbox::replace_file(&state_dir.join(FILE), text.as_bytes()))
}

/// What a message that is accepted now is stamped with: milliseconds of the wall clock, or since boot while that is not set
/// (then below `SET_SINCE`).
pub fn stamp() -> u64 {
    let now = reading();
    known().as_mut().map_or(now.wall, |eras| eras.stamp(now))
}

/// When a message was accepted, milliseconds since the epoch, as well as that is known by now; see [`Eras::time`].
pub fn time_of(accepted: u64, id: &str) -> Option<u64> {
    let now = reading();
    match known().as_mut() {
        Some(eras) => {
            eras.notice_if_unset(now);
            eras.time(accepted, id, now)
        }
        None => Eras::default().time(accepted, id, now),
    }
}

/// A stamp as displays show it: the best guess for one that is not yet known.
pub fn shown(accepted: u64) -> u64 {
    if accepted >= eras::UP_MAX {
        return accepted;
    }
    u64::try_from(wall_at(Instant::from_millis(accepted).min(now())).as_millisecond()).unwrap_or(0)
}

/// How long ago a message was accepted at least, in milliseconds; `wall` as of [`least_wall`].
pub fn age_of(accepted: u64, id: &str, wall: u64) -> u64 {
    let now = reading();
    match known().as_ref() {
        Some(eras) => eras.age(accepted, id, wall, now),
        None => Eras::default().age(accepted, id, wall, now),
    }
}

/// The wall clock, for ages: the least that it may be.
pub fn least_wall() -> u64 {
    let now = reading();
    known().as_ref().map_or(now.wall, |eras| eras.least_wall(now))
}

fn known() -> MutexGuard<'static, Option<Eras>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn reading() -> Reading {
    Reading { wall: u64::try_from(wall().as_millisecond()).unwrap_or(0), up: now().as_millis() }
}

fn has_chip() -> bool {
    let chips = fs::read_dir(CHIPS).into_iter().flatten().flatten();
    let sets =
        |chip: fs::DirEntry| fs::read_to_string(chip.path().join("hctosys")).is_ok_and(|text| text.trim() == "1");
    chips.into_iter().any(sets)
}

/// Milliseconds since boot, suspend included (`CLOCK_BOOTTIME`, `clock_gettime(2)`).
pub fn now() -> Instant {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let millis = u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000;
    Instant::from_millis(seconds.saturating_mul(1000).saturating_add(millis))
}

/// What the wall clock says now. Wrong until somebody has set it, and it may jump: for people to read, never to
/// decide with.
pub fn wall() -> Timestamp {
    Timestamp::now()
}

/// The wall time of a moment, past or to come, by what the wall clock says now; so a moment before the clock was set
/// gets the right time afterwards (R-PR-6). Ends of time are clamped.
pub fn wall_at(moment: Instant) -> Timestamp {
    at(wall(), now(), moment)
}

/// The kernel's identity of this boot, 36 characters; empty where `/proc` is missing.
pub fn boot_id() -> String {
    std::fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Rings once at a moment of `CLOCK_BOOTTIME` (`timerfd_create(2)`): when the moment passes in suspend, it rings at
/// the resume, where a `tokio` timer would be late by the whole sleep. One wake-up, no polling.
pub struct Alarm {
    timer: AsyncFd<OwnedFd>,
}

impl Alarm {
    /// A silent alarm. Must be made inside the runtime.
    ///
    /// # Errors
    /// The kernel is out of descriptors.
    #[expect(deprecated, reason = "the replacement is unsafe; what it guards against, an fd not owned, is not ours")]
    pub fn new() -> io::Result<Alarm> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
        Ok(Alarm { timer: AsyncFd::new(timer)? })
    }

    /// Sets the moment, or silences it. Replaces what was set; a moment that has passed rings at once.
    ///
    /// # Errors
    /// None that a valid timer can give; told for completeness.
    pub fn set(&self, moment: Option<Instant>) -> io::Result<()> {
        let value = moment.map_or(Timespec { tv_sec: 0, tv_nsec: 0 }, |moment| {
            // Zero would silence it: the first nanosecond after boot is as good.
            let nanos = (moment.as_millis() % 1000) * 1_000_000;
            let seconds = moment.as_millis() / 1000;
            Timespec { tv_sec: seconds.min(i64::MAX as u64) as _, tv_nsec: nanos.max(u64::from(seconds == 0)) as _ }
        });
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::ABSTIME, &once)?;
        Ok(())
    }

    /// Waits until it rings. Safe to drop and call again: a ring is kept until somebody has heard it or `set` is
    /// called.
    pub async fn rung(&self) {
        loop {
            let Ok(mut ready) = self.timer.readable().await else {
                // The runtime is shutting down; nothing will ring any more.
                return std::future::pending().await;
            };
            let mut count = [0_u8; 8];
            // An interrupted read, or one that would block (then `try_io` clears the readiness), waits again.
            if let Ok(Ok(_)) = ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut count)?)) {
                return;
            }
        }
    }
}

/// Tells when somebody sets the wall clock (`TFD_TIMER_CANCEL_ON_SET`, `timerfd_create(2)`). No polling.
pub struct Steps {
    timer: AsyncFd<OwnedFd>,
}

impl Steps {
    /// Must be made inside the runtime.
    ///
    /// # Errors
    /// The kernel is out of descriptors.
    #[expect(deprecated, reason = "as in `Alarm::new`")]
    pub fn new() -> io::Result<Steps> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Realtime, flags)?;
        let never = Timespec { tv_sec: (i32::MAX - 1).into(), tv_nsec: 0 };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: never };
        timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &once)?;
        Ok(Steps { timer: AsyncFd::new(timer)? })
    }

    /// Waits until it is set. Also returns after a suspend; safe to drop and call again.
    pub async fn next(&self) {
        loop {
            let Ok(mut ready) = self.timer.readable().await else {
                return std::future::pending().await;
            };
            let mut count = [0_u8; 8];
            // A read that would block clears the readiness; the one after a step is told that the timer was cancelled.
            match ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut count)?)) {
                Ok(Err(error)) if error.raw_os_error() == Some(rustix::io::Errno::CANCELED.raw_os_error()) => return,
                Ok(_) => ready.clear_ready(),
                Err(_) => {}
            }
        }
    }
}

fn at(wall: Timestamp, now: Instant, moment: Instant) -> Timestamp {
    let (ahead, behind) = (moment.since(now), now.since(moment));
    let far = Duration::from_secs(400 * 366 * 86_400);
    let moved = if ahead.is_zero() { wall.checked_sub(behind.min(far)) } else { wall.checked_add(ahead.min(far)) };
    moved.unwrap_or(if ahead.is_zero() { Timestamp::MIN } else { Timestamp::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_agrees_with_the_kernels_uptime() {
        let text = std::fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = text.split(' ').next().unwrap().parse().unwrap();
        let now = now().as_millis() as f64 / 1000.0;
        assert!((now - uptime).abs() < 1.0, "{now} {uptime}");
    }

    #[test]
    fn a_moment_has_a_wall_time_before_and_after_now() {
        let wall: Timestamp = "2026-11-20T10:00:00Z".parse().unwrap();
        let now = Instant::from_millis(100_000);
        let text = |millis| format!("{:.3}", at(wall, now, Instant::from_millis(millis)));
        assert_eq!(text(99_750), "2026-11-20T09:59:59.750Z");
        assert_eq!(text(100_000), "2026-11-20T10:00:00.000Z");
        assert_eq!(text(160_000), "2026-11-20T10:01:00.000Z");
        assert!(at(wall, now, Instant::from_millis(u64::MAX)) > wall);
    }

    #[test]
    fn the_boot_id_is_a_uuid() {
        assert_eq!(boot_id().len(), 36);
    }

    #[tokio::test]
    async fn an_alarm_rings_once_at_its_moment_and_can_be_moved_and_silenced() {
        let alarm = Alarm::new().unwrap();
        let start = now();
        alarm.set(Some(start + Duration::from_secs(3600))).unwrap();
        alarm.set(Some(start + Duration::from_millis(50))).unwrap();
        alarm.rung().await;
        let late = now().since(start).as_millis();
        assert!((50..500).contains(&late), "{late}");
        let silent = tokio::time::timeout(Duration::from_millis(50), alarm.rung()).await;
        assert!(silent.is_err(), "rang twice");
        alarm.set(Some(Instant::from_millis(0))).unwrap();
        alarm.rung().await;
        alarm.set(Some(start + Duration::from_millis(1))).unwrap();
        alarm.set(None).unwrap();
        let silent = tokio::time::timeout(Duration::from_millis(50), alarm.rung()).await;
        assert!(silent.is_err(), "rang although silenced");
    }
}
