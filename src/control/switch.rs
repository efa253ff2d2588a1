//! Switches: the one record that each leaves (R-FX-15).
//!
//! A switch is traffic going on over another interface than before, planned or not. Its record says what was seen, how
//! long that took, how long the switch took, and what the cloud saw of it. It decides nothing.

use core::fmt;
use core::time::Duration;

use crate::name::Name;
use crate::reason::Reason;
use crate::time::Instant;

/// What one switch came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    pub from: Name,
    pub to: Name,
    /// What was seen; `interface-change` and `user` for planned moves.
    pub why: Reason,
    /// When it was decided.
    pub at: Instant,
    /// How long an answer had been owed when it was decided; zero with positive evidence, and for planned moves.
    pub detection: Duration,
    /// From the decision to the server's word on the new connection.
    pub switch: Duration,
    /// From the last acknowledgement before it to the first after it; none if no message went out meanwhile.
    pub pause: Option<Duration>,
    /// Messages in flight when it was decided.
    pub in_flight: u32,
    /// Messages sent again on the new connection: at most these were repeated at the cloud.
    pub repeated: u32,
    /// Offers of applications refused meanwhile. What is not refused is kept, so nothing else can be lost.
    pub refused: u32,
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Switch { from, to, why, detection, switch, in_flight, repeated, refused, .. } = self;
        write!(f, "switch {from} to {to} {why}, detection {}ms, ", detection.as_millis())?;
        write!(f, "switch {}ms, ", switch.as_millis())?;
        if let Some(pause) = self.pause {
            write!(f, "pause {}ms, ", pause.as_millis())?;
        }
        write!(f, "in flight {in_flight}, repeated {repeated}, refused {refused}")
    }
}
