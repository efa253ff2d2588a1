//! How long to wait before the next round, by cause (R-CL-14, R-CS-5, R-CS-10).
//!
//! A local cause waits little, a server's cause is spread with full jitter so that a fleet does not come back at
//! once, credentials and a stolen identity wait long. The wait is reset only by a minute of good session. It
//! counts failures and rolls dice; it never looks at interfaces.

use core::time::Duration;

use crate::reason::{Blame, Reason};
use crate::settings::Settings;
use crate::time::Instant;

/// A good session this long resets the wait.
pub const GOOD_SESSION: Duration = Duration::from_secs(60);
/// For a gateway alone with its server: how long a server's cause is answered by quick retries, and how quick.
pub const QUICK_PHASE: Duration = Duration::from_secs(10);
const QUICK_RETRY: Duration = Duration::from_millis(200);
/// No wait is shorter: two rounds may not melt into a busy loop.
const SHORTEST: Duration = Duration::from_millis(200);
const FIRST: Duration = Duration::from_secs(1);
const LONGEST_SERVER: Duration = Duration::from_secs(128);
/// Paths come back without telling; half a minute is what a silent recovery may cost.
const LONGEST_PATH: Duration = Duration::from_secs(30);
const FIRST_CREDENTIALS: Duration = Duration::from_secs(10);
const FIRST_IDENTITY: Duration = Duration::from_secs(30);
const LONGEST_SLOW: Duration = Duration::from_secs(3600);

/// Random numbers from a given seed (xorshift64*): for spreading only, never for secrets.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Any seed will do.
    pub fn new(seed: u64) -> Dice {
        Dice(seed ^ 0x9e37_79b9_7f4a_7c15 | 1)
    }

    /// A number below `bound`; zero when `bound` is zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11).checked_rem(bound).unwrap_or(0)
    }
}

/// What the waits have come to.
///
/// Each kind of cause has its own count: an hour without a network must not make the first refusal wait an hour.
#[derive(Debug, Default)]
pub struct Backoff {
    path: u32,
    server: u32,
    slow: u32,
    /// The server's first failure since the last good session, or since another kind of failure.
    server_since: Option<Instant>,
}

impl Backoff {
    /// A round failed for `reason`: how long to wait.
    pub fn next(&mut self, now: Instant, reason: Reason, settings: &Settings, dice: &mut Dice) -> Duration {
        let since = match reason.blame() {
            Blame::Server => *self.server_since.get_or_insert(now),
            Blame::Path | Blame::Ours | Blame::Credentials | Blame::Identity => {
                self.server_since = None;
                now
            }
        };
        let (count, first, longest) = match reason.blame() {
            Blame::Server if settings.fleet_size == 1 && now.since(since) < QUICK_PHASE => return QUICK_RETRY,
            Blame::Server => (&mut self.server, FIRST, LONGEST_SERVER),
            Blame::Path | Blame::Ours => (&mut self.path, FIRST, LONGEST_PATH),
            Blame::Credentials => (&mut self.slow, FIRST_CREDENTIALS, LONGEST_SLOW),
            Blame::Identity => (&mut self.slow, FIRST_IDENTITY, LONGEST_SLOW),
        };
        let ceiling = longest.min(first.saturating_mul(1 << (*count).min(16)));
        *count = count.saturating_add(1);
        match reason.blame() {
            // Slow retries keep their whole distance: the point is to be slow, not to be spread.
            Blame::Credentials | Blame::Identity => ceiling,
            Blame::Server | Blame::Path | Blame::Ours => {
                SHORTEST.max(Duration::from_millis(dice.below(ceiling.as_millis() as u64 + 1)))
            }
        }
    }

    /// A session has been good for `GOOD_SESSION`, or an operator wants a fresh start.
    pub fn reset(&mut self) {
        *self = Backoff::default();
    }

    /// A session has opened and held: the server refuses no more.
    pub fn accepted(&mut self) {
        self.server_since = None;
    }

    /// Since when the server has refused, and nothing else has happened.
    pub fn server_since(&self) -> Option<Instant> {
        self.server_since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(blame: Reason, settings: &Settings, from: u64, count: usize) -> alloc::vec::Vec<Duration> {
        let (mut backoff, mut dice, mut now) = (Backoff::default(), Dice::new(7), Instant::from_millis(from));
        (0..count)
            .map(|_| {
                let wait = backoff.next(now, blame, settings, &mut dice);
                now = now + wait;
                wait
            })
            .collect()
    }

    #[test]
    fn dice_stay_below_their_bound_and_do_not_repeat() {
        let mut dice = Dice::new(0);
        assert_eq!(dice.below(0), 0);
        let rolls: alloc::vec::Vec<u64> = (0..1000).map(|_| dice.below(10)).collect();
        assert!((0..10).all(|n| (60..140).contains(&rolls.iter().filter(|r| **r == n).count())));
    }

    #[test]
    fn alone_with_the_server_ten_seconds_are_quick() {
        let waits = waits(Reason::Refused, &Settings::default(), 0, 60);
        assert!(waits.iter().take(50).all(|w| *w == QUICK_RETRY));
        assert!(waits.iter().skip(50).any(|w| *w > QUICK_RETRY));
    }

    #[test]
    fn a_fleet_is_spread_from_the_first_failure_and_never_waits_longer_than_two_minutes() {
        let fleet = Settings { fleet_size: 1000, ..Settings::default() };
        let waits = waits(Reason::ServerShutDown, &fleet, 0, 40);
        assert!(waits.iter().all(|w| *w >= SHORTEST && *w <= LONGEST_SERVER));
        assert!(waits.iter().max() > Some(&Duration::from_secs(64)));
    }

    #[test]
    fn credentials_wait_their_whole_distance_up_to_an_hour() {
        let waits = waits(Reason::Authentication, &Settings::default(), 0, 12);
        assert_eq!(waits.first(), Some(&FIRST_CREDENTIALS));
        assert_eq!(waits.get(3), Some(&Duration::from_secs(80)));
        assert_eq!(waits.last(), Some(&LONGEST_SLOW));
    }

    #[test]
    fn another_kind_of_failure_begins_anew() {
        let (mut backoff, mut dice, now) = (Backoff::default(), Dice::new(7), Instant::default());
        let settings = Settings::default();
        for _ in 0..20 {
            backoff.next(now, Reason::NoServer, &settings, &mut dice);
        }
        assert_eq!(backoff.next(now, Reason::Authentication, &settings, &mut dice), FIRST_CREDENTIALS);
        assert_eq!(backoff.next(now, Reason::Refused, &settings, &mut dice), QUICK_RETRY);
    }
}
