//! The numbers by which the heart decides, as far as `config check` forecasts from them what they mean for a
//! configuration. All others stand where they decide.

use core::time::Duration;

/// Beyond the estimate: when silence is suspicious, and when a proved spare takes over. Measured: 0 to 2 false
/// suspicions per 150 s at 5 % loss each way, none at the second (facts 7).
pub const SUSPECT_MARGIN: Duration = Duration::from_millis(300);
pub const MOVE_MARGIN: Duration = Duration::from_millis(500);
/// The most the margins grow on a path that loses packets or was suspected in vain (R-LV-6).
pub const MARGIN_MAX: Duration = Duration::from_secs(4);
/// How long an answer is expected to take before the first sample (RFC 6298, 2.1).
pub const RTO_FIRST: Duration = Duration::from_secs(1);
/// Handshakes in a row that a better interface must complete before traffic moves (R-FB-2).
pub const PROOFS: u32 = 2;
/// Spares opened on suspicion over metered interfaces: each costs a handshake, of 3 kB or so.
pub const METERED_RESCUES: Budget = Budget { at_once: 12, every: Duration::from_secs(900) };
/// Spares opened over metered interfaces before there is a suspicion. Together with the rescues at most 11 MB a month
/// (R-FX-14 allows 15).
pub const METERED_RACES: Budget = Budget { at_once: 3, every: Duration::from_secs(3600) };
/// The same where bytes cost nothing: the server's patience is the limit.
pub const RACES: Budget = Budget { at_once: 60, every: Duration::from_secs(60) };

/// How often something may be done: so many times at once, and once more after each such time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub at_once: u32,
    pub every: Duration,
}

/// After how long without saying anything a connection with this keep alive says something. MQTT's servers close it after
/// one and a half; of the sixteenth that is left an answer needs less.
pub fn speaks_after(keep_alive: Duration) -> Duration {
    keep_alive * 15 / 16
}
