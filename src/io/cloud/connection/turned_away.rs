//! Messages that the server would not take just then: a quota is used up, or it gives no reason.
//!
//! Each is tried again after a pause that doubles, and only when the server has had its time does it count as one that it
//! will never take. Those behind it go on (R-TX-13). Bounded by the window: whoever is here has a place in it.

use std::collections::BTreeMap;
use std::time::Duration;

use switchback_control::Seq;
use tokio::time::Instant;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct TurnedAway {
    cases: BTreeMap<Seq, Case>,
}

#[derive(Debug)]
struct Case {
    since: Instant,
    pause: Duration,
    /// `None` while it is tried.
    due: Option<Instant>,
}

impl TurnedAway {
    /// Takes a message that was turned away; false where this has gone on for as long as it is worth trying.
    pub fn take(&mut self, seq: Seq, worth: Duration, now: Instant) -> bool {
        let case = self.cases.entry(seq).or_insert(Case { since: now, pause: FIRST_PAUSE, due: None });
        if now.saturating_duration_since(case.since) >= worth {
            self.cases.remove(&seq);
            return false;
        }
        case.due = Some(now + case.pause);
        case.pause = (case.pause * 2).min(LONGEST_PAUSE);
        true
    }

    /// The server has taken it.
    pub fn forget(&mut self, seq: Seq) {
        self.cases.remove(&seq);
    }

    /// When the next is to be tried.
    pub fn next(&self) -> Option<Instant> {
        self.cases.values().filter_map(|case| case.due).min()
    }

    /// Those that are tried now, in order.
    pub fn due(&mut self, now: Instant) -> Vec<Seq> {
        let due = self.cases.iter_mut().filter(|(_, case)| case.due.is_some_and(|due| due <= now));
        due.map(|(seq, case)| {
            case.due = None;
            *seq
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pauses_double_and_the_time_is_over_at_last() {
        let (mut away, seq, begin) = (TurnedAway::default(), Seq(7), Instant::now());
        let hour = Duration::from_secs(3600);
        let mut now = begin;
        let mut pauses = Vec::new();
        while away.take(seq, hour, now) {
            assert_eq!(away.due(now), []);
            let next = away.next().unwrap();
            pauses.push((next - now).as_secs());
            now = next;
            assert_eq!((away.due(now), away.next()), (vec![seq], None));
        }
        assert_eq!(pauses[..8], [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(now - begin >= hour && away.cases.is_empty());
        assert!(!away.take(seq, Duration::ZERO, now));
    }
}
