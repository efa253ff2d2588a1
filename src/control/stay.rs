//! How long a connection is wanted: `connect --for`, a connection for a while, and then what was before (R-CL-7); and the
//! time that one on demand lingers.
//!
//! Always true: nothing of this is stored, so that a restart finds what was before as well; what is on its way when the time
//! is over gets a little more.

use core::time::Duration;

use crate::action::{Goodbye, Outcome};
use crate::failover::{Failover, Intent};
use crate::ground::Ground;
use crate::reason::Reason;
use crate::settings::Mode;
use crate::time::Instant;

/// What is on its way at the end is waited for, as long as `disconnect` does.
const FLUSH_LIMIT: Duration = Duration::from_secs(10);

/// Until when, and what is wanted then.
#[derive(Clone, Copy, Debug)]
pub struct Stay {
    until: Instant,
    intent: Intent,
    told: bool,
}

impl Stay {
    /// When something is due.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        [self.until, self.until + FLUSH_LIMIT].into_iter().find(|at| *at > now)
    }
}

impl Failover {
    /// A connection is wanted for so long, whatever the mode.
    pub fn begin_stay(&mut self, now: Instant, limit: Duration) {
        let before = match self.stay {
            Some(stay) => (stay.intent, stay.told),
            None if self.saved.held => (Intent::Off, self.told),
            None => (self.intent, self.told),
        };
        self.stay = Some(Stay { until: now + limit, intent: before.0, told: before.1 });
        self.intent = Intent::On;
    }

    /// Once the time is over, all is as it was before.
    pub fn end_stay(&mut self, g: &mut Ground) {
        let now = g.turn.now;
        let over = |stay: &mut Stay| now >= stay.until && (g.flow.empty || now >= stay.until + FLUSH_LIMIT);
        let Some(Stay { intent, told, .. }) = self.stay.take_if(over) else { return };
        (self.intent, self.told) = (intent, told);
        if !self.wants(g) {
            self.answer_all(g, Outcome::Failed(Reason::User));
            self.quit(g, Goodbye::Offline, Reason::User);
        }
    }

    /// On demand: when an idle session is no longer wanted.
    pub fn linger_ends(&self, mode: Mode) -> Option<Instant> {
        match mode {
            Mode::OnDemand { linger } => Some(self.last_busy + linger),
            Mode::Auto | Mode::Manual => None,
        }
    }
}
