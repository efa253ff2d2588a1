//! What was given up or had to wait, counted, and said once a minute at most.

use std::time::Duration;

use tokio::time::Instant;

use crate::corridor::Refusal;

const SAY_EVERY: Duration = Duration::from_secs(60);

/// What became of a message that did not simply go up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Impossible,
    Reserved,
    TooLarge,
    Dropped,
    /// Its time was over before the outbox took it.
    Expired,
    /// Of QoS 0, and the outbox took nothing.
    Lost,
    /// To be answered when the cloud has it, which never will.
    Undelivered,
    /// Offered in vain; it stays.
    Held,
    /// Goes up, in the class of its rule.
    UnknownClass,
}

impl Fate {
    const ALL: [Fate; 9] = [
        Fate::Impossible,
        Fate::Reserved,
        Fate::TooLarge,
        Fate::Dropped,
        Fate::Expired,
        Fate::Lost,
        Fate::Undelivered,
        Fate::Held,
        Fate::UnknownClass,
    ];

    /// What a refusal means for good; `None` where it may pass.
    pub fn of(refusal: Refusal) -> Option<Fate> {
        match refusal {
            Refusal::TooLarge => Some(Fate::TooLarge),
            Refusal::Dropped => Some(Fate::Dropped),
            Refusal::Full | Refusal::NotConnected | Refusal::Stopping => None,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Fate::Impossible => "given up, as a [[publish]] rule makes no valid topic of theirs",
            Fate::Reserved => {
                "given up, as the cloud would take them for our own: they go to where only the daemon speaks"
            }
            Fate::TooLarge => "given up, as they are too large for the outbox",
            Fate::Dropped => "dropped by the rule of their class",
            Fate::Expired => "given up, as their time was over before the outbox took them",
            Fate::Lost => "of QoS 0 lost, as the outbox takes nothing",
            Fate::Undelivered => "given up on their way to the cloud",
            Fate::Held => "offered again, as the outbox takes nothing: the broker keeps what follows",
            Fate::UnknownClass => "name a class that there is not: the class of their rule counts",
        }
    }
}

/// The counts.
#[derive(Debug, Default)]
pub struct Tally {
    counts: [u64; Fate::ALL.len()],
    /// How many of each kind were last said, and when.
    said: [(u64, Option<Instant>); Fate::ALL.len()],
}

impl Tally {
    /// One more.
    pub fn note(&mut self, fate: Fate) {
        if let Some(count) = self.counts.get_mut(fate as usize) {
            *count += 1;
        }
        self.tell();
    }

    /// Says what has come since it was last said, where that is long enough ago.
    pub fn tell(&mut self) {
        for ((fate, count), (said, at)) in Fate::ALL.iter().zip(self.counts).zip(&mut self.said) {
            if count > *said && at.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
                log::warn!("messages from the local broker: {} {}", count - *said, fate.as_str());
                (*said, *at) = (count, Some(Instant::now()));
            }
        }
    }

    /// All that will not go up.
    pub fn given_up(&self) -> u64 {
        let counts = Fate::ALL.iter().zip(self.counts);
        counts.filter(|(fate, _)| !matches!(fate, Fate::Held | Fate::UnknownClass)).map(|(_, count)| count).sum()
    }
}
