//! A configured limit of an uplink, in bytes and in messages a second.
//!
//! Pure: time and counts. It only ever says until when nothing more goes, and saves up no more than a moment.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Rate;

/// What may go out at once under a configured limit, in time.
const BURST: Duration = Duration::from_millis(100);

/// A configured limit in bytes and messages a second (R-TX-11). Each has a moment before which nothing more goes, which
/// every message moves on by what it costs.
#[derive(Debug)]
pub struct Meter {
    rate: Rate,
    bytes: Option<Instant>,
    messages: Option<Instant>,
}

impl Meter {
    pub fn new(rate: Rate) -> Meter {
        Meter { rate, bytes: None, messages: None }
    }

    /// Until when nothing may go.
    pub fn closed(&self, now: Instant) -> Option<Instant> {
        self.bytes.max(self.messages).filter(|until| *until > now)
    }

    pub fn spend(&mut self, now: Instant, bytes: usize) {
        let cost =
            |amount: u64, a_second: u64| Duration::from_micros(amount.saturating_mul(1_000_000) / a_second.max(1));
        // What was not used a while ago is not saved up.
        let from = |before: Option<Instant>| {
            let earliest = now.checked_sub(BURST).unwrap_or(now);
            before.map_or(earliest, |before| before.max(earliest))
        };
        if let Some(rate) = self.rate.bytes {
            self.bytes = Some(from(self.bytes) + cost(bytes as u64, rate));
        }
        if let Some(rate) = self.rate.messages {
            self.messages = Some(from(self.messages) + cost(1, rate));
        }
    }
}
