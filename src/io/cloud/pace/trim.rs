//! How much less than the whole budget keeps a full uplink full.
//!
//! How long an acknowledgement takes beside the way, no clock of ours says: a radio has its turns, and a far end its habits.
//! So a little less is tried for as long as the uplink delivers what it did with the whole budget; where it does not,
//! there is more again. What this saves is the queue in front of the uplink, in which what is urgent would stand. Always
//! true: the answer is between half of the budget and all of it, and all where nothing queues.

use std::time::Duration;

use tokio::time::Instant;

use super::Kernel;

/// All of the budget.
const WHOLE: u64 = 1024;
/// How long each trial lasts at least, in time, in round trips and in segments: one more or less is then no difference.
const TRIAL: Duration = Duration::from_millis(400);
const TRIAL_TRIPS: u32 = 4;
const TRIAL_SEGMENTS: u64 = 64;
/// Hundredths of what the whole budget delivered: with so many less is as good, and with so many it is another uplink by now.
const AS_GOOD: u64 = 97;
const FASTER: u64 = 104;
/// Round trips that take no longer than this above the shortest, and a sixteenth: nothing stands in a queue, and the uplink
/// may have become faster.
const EMPTY: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub struct Trim {
    part: u64,
    /// The most bytes a second that were delivered since the whole budget was tried.
    full: u64,
    /// When this trial began, and the bytes acknowledged until then.
    trial: Option<(Instant, u64)>,
}

impl Default for Trim {
    fn default() -> Trim {
        Trim { part: WHOLE, full: 0, trial: None }
    }
}

impl Trim {
    /// What of this budget is needed.
    pub fn of(&self, budget: u64, kernel: Kernel) -> u64 {
        let trip = kernel.round_trip;
        let empty = kernel.lately <= trip + trip / 16 + EMPTY;
        if empty { budget } else { budget.saturating_mul(self.part) / WHOLE }
    }

    /// Bytes a second that the uplink is known to deliver; zero before the first trial.
    pub fn full(&self) -> u64 {
        self.full
    }

    /// So many bytes are acknowledged, and all the time there was more to send than was allowed.
    pub fn learn(&mut self, now: Instant, acked: u64, kernel: Kernel) {
        let Some((since, before)) = self.trial else {
            self.trial = Some((now, acked));
            return;
        };
        let elapsed = now.saturating_duration_since(since);
        let delivered = acked.saturating_sub(before);
        let least = u64::from(kernel.segment) * TRIAL_SEGMENTS;
        if elapsed < TRIAL.max(kernel.round_trip * TRIAL_TRIPS) || delivered < least {
            return;
        }
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).max(1);
        let seen = delivered.saturating_mul(1_000_000) / micros;
        let hundredths = seen.saturating_mul(100);
        self.part = match self.part {
            part if part < WHOLE && hundredths > self.full.saturating_mul(FASTER) => WHOLE,
            part if part == WHOLE || hundredths >= self.full.saturating_mul(AS_GOOD) => {
                (part - part / 16).max(WHOLE / 2)
            }
            part => (part + part / 8).min(WHOLE),
        };
        self.full = if self.part == WHOLE { seen } else { self.full.max(seen) };
        self.trial = Some((now, acked));
    }

    /// This trial says nothing.
    pub fn interrupt(&mut self) {
        self.trial = None;
    }
}
