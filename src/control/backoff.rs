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
