//! How good a path is: round trip and loss, from what the kernel has counted on connections of ours.
//!
//! Loss is the share of segments that had to be sent again, smoothed over measures, so that one unlucky handshake says
//! little and a lossy path soon says much. A *stall* is a message unanswered for far longer than the path's round trip;
//! stalled time is counted over the last quarter of a minute. A path on which both come together is a brown-out: it
//! works, and is of no use. Slowness alone never is one, and neither is loss that TCP makes good in time.

use core::time::Duration;

use crate::event::Measure;
use crate::time::Instant;

/// Segments of which so many of a thousand are lost: what TCP still makes good (facts 7: 5 % loss each way is below one
/// tenth), and what it does not (50 % is above four tenths).
pub const LOSSY: u16 = 200;
/// The fewest segments between two measures that say anything.
const SEGMENTS_LEAST: u32 = 8;
/// A message unanswered for longer than the round trip and this stalls: two retransmissions of a short path.
const STALL_MARGIN: Duration = Duration::from_millis(500);
/// Stalled time is counted in so many stretches of this length; half of it all is a brown-out.
const STRETCHES: usize = 3;
const STRETCH: Duration = Duration::from_secs(5);
const WHOLE: Duration = Duration::from_secs(15);

/// Lateness is remembered for one to two of these: a path without loss for so long is suspected readily again (R-LV-6).
const LATENESS_HALF: Duration = Duration::from_secs(150);
/// The multiples of the worst lateness that are borne.
const ONCE_LATE: u32 = 4;
const OFTEN_LATE: u32 = 8;

/// What is known of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quality {
    pub round_trip: Option<Duration>,
    /// Of a thousand segments, how many had to be sent again.
    pub loss: Option<u16>,
}

impl Measure {
    /// Of a thousand segments, how many had to be sent again.
    fn lost(&self) -> u16 {
        (u64::from(self.again) * 1000 / u64::from(self.sent.max(1))).min(1000) as u16
    }
}

/// How late answers have come on a path that loses packets, in the last while. A packet that is lost again takes twice as
/// long, and the timer doubles each time: so a multiple of the worst that was seen must be borne, a larger one where losses
/// go on. Simulated at 2 messages a second on the kernel's own ladder of retransmissions: 0.1 false moves a day at 2 % loss
/// each way, 0.3 at 5 %.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lateness {
    began: Instant,
    now: Late,
    /// The half before `began`.
    before: Late,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Late {
    answers: u32,
    worst: Duration,
}

impl Lateness {
    /// An answer came so much later than expected.
    pub fn note(&mut self, now: Instant, by: Duration) {
        self.turn(now);
        self.now = Late { answers: self.now.answers.saturating_add(1), worst: self.now.worst.max(by) };
    }

    /// How much longer than expected an answer may take on this path.
    pub fn margin(mut self, now: Instant) -> Duration {
        self.turn(now);
        let factor = if self.now.answers.saturating_add(self.before.answers) > 1 { OFTEN_LATE } else { ONCE_LATE };
        self.now.worst.max(self.before.worst).saturating_mul(factor)
    }

    fn turn(&mut self, now: Instant) {
        let age = now.since(self.began);
        if age >= LATENESS_HALF {
            let before = if age < LATENESS_HALF * 2 { self.now } else { Late::default() };
            *self = Lateness { began: now, now: Late::default(), before };
        }
    }
}

impl Quality {
    /// Takes in what one handshake, or a while of a session, has shown.
    pub fn note(&mut self, measure: Measure) {
        if !measure.round_trip.is_zero() {
            self.round_trip = Some(measure.round_trip);
        }
        if measure.sent > 0 {
            let shown = measure.lost();
            self.loss = Some(self.loss.map_or(shown / 2, |known| known.midpoint(shown)));
        }
    }

    /// So many segments get lost that the path is of little use.
    pub fn is_lossy(&self) -> bool {
        self.loss.is_some_and(|loss| loss > LOSSY)
    }
}

/// The stalls and losses of the open session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flowing {
    /// Totals at the last measure that counted, and when that was.
    known: Measure,
    known_at: Instant,
    /// When the kernel was last asked.
    asked: Option<Instant>,
    /// Measures show that much gets lost, from the first of them in a row to the last.
    lossy: Option<(Instant, Instant)>,
    /// Segments sent again, as last told, and when they last grew.
    again: u32,
    grew: Instant,
    /// Up to when stalled time is counted.
    counted: Instant,
    /// Stalled milliseconds of the stretch under way and of those before it, youngest first.
    stalled: [u64; STRETCHES],
    stretch_began: Instant,
}

impl Flowing {
    /// A session that opened now.
    pub fn begin(now: Instant) -> Flowing {
        Flowing { known_at: now, counted: now, stretch_began: now, ..Flowing::default() }
    }

    /// It is time to ask the kernel again.
    pub fn asks(&mut self, now: Instant) -> bool {
        let due = self.asked.is_none_or(|at| now >= at + STRETCH);
        if due {
            self.asked = Some(now);
        }
        due
    }

    /// What the totals show since the last measure that counted; none while that is too little.
    pub fn measured(&mut self, now: Instant, totals: Measure) -> Option<Measure> {
        let Measure { sent, again, .. } = totals;
        if again > self.again {
            (self.again, self.grew) = (again, now);
        }
        let since = Measure {
            sent: sent.saturating_sub(self.known.sent),
            again: again.saturating_sub(self.known.again),
            ..totals
        };
        if since.sent < SEGMENTS_LEAST {
            return None;
        }
        // What was lost before a quiet while says nothing of now.
        let much = since.lost() > LOSSY && now.since(self.known_at) <= WHOLE;
        self.lossy = much.then(|| (self.lossy.map_or(self.known_at, |(first, _)| first), now));
        (self.known, self.known_at) = (totals, now);
        Some(since)
    }

    /// Counts up to now. `oldest` is when the oldest message in flight was sent, as it was until now.
    pub fn count(&mut self, now: Instant, oldest: Option<Instant>, round_trip: Duration) {
        while now >= self.stretch_began + STRETCH {
            let end = self.stretch_began + STRETCH;
            self.add(end, oldest, round_trip);
            self.stalled.rotate_right(1);
            self.stalled[0] = 0;
            self.stretch_began = end;
            if now.since(end) > WHOLE {
                // Nothing of it is young enough to count.
                (self.stalled, self.counted, self.stretch_began) = ([0; STRETCHES], now, now);
            }
        }
        self.add(now, oldest, round_trip);
    }

    /// What has passed until now was our own pause.
    pub fn skip(&mut self, now: Instant) {
        self.counted = self.counted.max(now);
    }

    /// It works, and is of no use: for half of the time something stalled, and much was lost in that time.
    pub fn is_browning_out(&self, now: Instant) -> bool {
        let stalling = Duration::from_millis(self.stalled.iter().sum()) * 2 >= WHOLE;
        // A moment's fault passes; and what was lost then says nothing of now.
        let losing = self.lossy.is_some_and(|(first, last)| last.since(first) >= STRETCH && now.since(last) <= WHOLE);
        stalling && losing && now.since(self.grew) <= WHOLE / 2
    }

    fn add(&mut self, until: Instant, oldest: Option<Instant>, round_trip: Duration) {
        if let Some(sent) = oldest {
            let stalls = (sent + round_trip + STALL_MARGIN).max(self.counted);
            self.stalled[0] += until.since(stalls).as_millis() as u64;
        }
        self.counted = self.counted.max(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn handshake(sent: u32, again: u32) -> Measure {
        Measure { round_trip: Duration::from_millis(20), sent, again, ..Measure::default() }
    }

    #[test]
    fn one_unlucky_handshake_says_little_and_three_say_much() {
        let mut quality = Quality::default();
        quality.note(handshake(4, 1));
        assert!(!quality.is_lossy());
        (0..3).for_each(|_| quality.note(handshake(6, 3)));
        assert!(quality.is_lossy());
        (0..3).for_each(|_| quality.note(handshake(4, 0)));
        assert!(!quality.is_lossy());
    }

    #[test]
    fn time_is_stalled_from_the_margin_on_until_the_answer() {
        let round_trip = Duration::from_millis(100);
        let mut flowing = Flowing::begin(at(0));
        flowing.count(at(1_000), None, round_trip);
        flowing.count(at(3_000), Some(at(1_000)), round_trip);
        assert_eq!(flowing.stalled, [1_400, 0, 0]);
        flowing.count(at(12_000), None, round_trip);
        assert_eq!(flowing.stalled, [0, 0, 1_400]);
        flowing.count(at(15_000), None, round_trip);
        assert_eq!(flowing.stalled, [0, 0, 0]);
    }

    #[test]
    fn half_of_a_quarter_of_a_minute_is_a_brown_out_and_a_long_pause_is_none() {
        let round_trip = Duration::from_millis(20);
        let mut flowing = Flowing::begin(at(0));
        for second in 1..8 {
            flowing.count(at(second * 1_000), Some(at(0)), round_trip);
            assert!(!flowing.is_browning_out(at(second * 1_000)));
        }
        flowing.count(at(8_100), Some(at(0)), round_trip);
        assert!(!flowing.is_browning_out(at(8_100)), "slow, and nothing lost");
        flowing.measured(at(4_000), handshake(20, 9));
        assert!(!flowing.is_browning_out(at(8_100)), "lost for a moment");
        flowing.measured(at(8_000), handshake(40, 19));
        assert!(flowing.is_browning_out(at(8_100)));
        flowing.count(at(600_000), Some(at(0)), round_trip);
        assert!(!flowing.is_browning_out(at(600_000)));
    }

    #[test]
    fn lateness_is_kept_while_answers_go_on_being_late_and_fades_when_they_do_not() {
        let (small, large) = (Duration::from_millis(100), Duration::from_millis(400));
        let mut lateness = Lateness::default();
        lateness.note(at(1_000_000), large);
        (0..30).for_each(|n| lateness.note(at(1_000_000 + n * 10_000), small));
        assert_eq!(lateness.margin(at(1_299_000)), large * 8);
        assert_eq!(lateness.margin(at(1_400_000)), small * 8);
        assert_eq!(lateness.margin(at(1_700_000)), Duration::ZERO);
        lateness.note(at(2_000_000), small);
        assert_eq!(lateness.margin(at(2_000_000)), small * 4);
    }

    #[test]
    fn a_few_segments_are_no_measure() {
        let mut flowing = Flowing::begin(at(0));
        assert_eq!(flowing.measured(at(1), handshake(7, 1)), None);
        assert_eq!(flowing.measured(at(1), handshake(12, 1)), Some(handshake(12, 1)));
        assert_eq!(flowing.measured(at(1), handshake(15, 1)), None);
        assert_eq!(flowing.measured(at(1), handshake(22, 6)), Some(handshake(10, 5)));
    }
}
