//! How much of what waits may be in the kernel: enough to keep the uplink busy, and little enough that what is urgent
//! does not stand behind seconds of the rest.
//!
//! What is written cannot be overtaken, so the bytes that the far end has not acknowledged are held to a budget: what the
//! uplink delivers in a round trip and a little. The rate is what the kernel says was acknowledged over a span of time;
//! while it still grows, and nothing queues yet, the budget is two round trips' worth, so that it doubles until the uplink
//! is full. Then `trim` finds out how much less would do. A configured limit works in the same place. Pure: time, counts
//! and answers. It only ever says how long to wait, and drops nothing.

mod meter;
mod trim;

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Rate;
use meter::Meter;
use trim::Trim;

/// The least budget, and the one before anything is known: half a TLS record. Less would cost more in headers than it
/// saves in time: 128 ms at 64 kB/s.
const LEAST: u64 = 8 * 1024;
/// The least in segments: a far end may acknowledge only every second one, and the last only after 40 ms (RFC 1122
/// section 4.2.3.2).
const LEAST_SEGMENTS: u64 = 3;
/// So many measurements in a row that were not a quarter higher than what was known: the uplink is full.
const FULL: u8 = 3;
/// Round trips that take this much longer than the shortest, and an eighth, stand in a queue.
const QUEUED: Duration = Duration::from_millis(10);
/// Beside the round trips: what our own waking up and the far end's acknowledging take.
const SLACK: Duration = Duration::from_millis(20);
/// The rate is measured over a round trip, and at least over this: acknowledgements come in bunches.
const SPAN: Duration = Duration::from_millis(50);
/// The highest of so many measurements counts: a stall shorter than three spans is no slower uplink.
const SPANS: usize = 3;
/// Timers are no finer than this.
const TICK: Duration = Duration::from_millis(1);
/// How long nothing may be looked at while the budget is used up: what is acknowledged may say so later than expected.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What the kernel says of the connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kernel {
    /// Bytes handed to it since the connection began.
    pub written: u64,
    /// Of these, bytes that the far end has not acknowledged.
    pub unacked: u64,
    /// The smallest round trip; zero where there was none yet.
    pub round_trip: Duration,
    /// What round trips take now, smoothed.
    pub lately: Duration,
    /// Bytes of payload in one segment.
    pub segment: u32,
}

/// Whether more of the applications' messages may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// So many bytes; one message may always go.
    Bytes(usize),
    /// Nothing before then.
    Wait(Instant, Why),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The uplink carries no more.
    Path,
    /// A configured limit.
    Limit,
}

#[derive(Debug)]
pub struct Pace {
    limit: Meter,
    /// Bytes a second in the last spans, the newest first; empty before the first.
    rates: [Option<u64>; SPANS],
    /// Measurements since one was a quarter higher than what was known.
    plateau: u8,
    /// When this span began, and the bytes acknowledged until then.
    span: Option<(Instant, u64)>,
    /// In this span we had less to send than was allowed: it says what the uplink can do at least, not what it can.
    idle: bool,
    trim: Trim,
}

impl Pace {
    pub fn new(rate: Rate) -> Pace {
        Pace {
            limit: Meter::new(rate),
            rates: [None; SPANS],
            plateau: 0,
            span: None,
            idle: false,
            trim: Trim::default(),
        }
    }

    /// What may be written now, at most `most` bytes.
    pub fn room(&mut self, now: Instant, kernel: Kernel, most: usize) -> Room {
        self.learn(now, kernel);
        if let Some(until) = self.limit.closed(now) {
            self.idle = true;
            return Room::Wait(until.max(now + TICK), Why::Limit);
        }
        let budget = self.budget(kernel);
        // Not a little at a time: each piece costs a TLS record and a segment.
        let start_below = budget - budget / 8;
        if kernel.unacked > start_below {
            let wait = match self.rate() {
                0 => kernel.round_trip / 4,
                rate => Duration::from_micros((kernel.unacked - start_below).saturating_mul(1_000_000) / rate),
            };
            let wait = wait.clamp(TICK, LOOK_AGAIN);
            return Room::Wait(now + wait, Why::Path);
        }
        Room::Bytes(usize::try_from(budget - kernel.unacked).unwrap_or(most).min(most))
    }

    /// A message of so many bytes goes out; false where a configured limit wants a pause before the next.
    pub fn spend(&mut self, now: Instant, bytes: usize) -> bool {
        self.limit.spend(now, bytes);
        self.limit.closed(now).is_none()
    }

    /// There was more room than messages that may go.
    pub fn starved(&mut self) {
        self.idle = true;
    }

    /// Bytes a second, for people; zero before anything is known.
    pub fn rate(&self) -> u64 {
        self.rates.iter().flatten().copied().max().unwrap_or(0)
    }

    fn learn(&mut self, now: Instant, kernel: Kernel) {
        let acked = kernel.written.saturating_sub(kernel.unacked);
        let Some((since, before)) = self.span else {
            self.span = Some((now, acked));
            return;
        };
        let elapsed = now.saturating_duration_since(since);
        if elapsed < kernel.round_trip.max(SPAN) {
            return;
        }
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).max(1);
        let seen = acked.saturating_sub(before).saturating_mul(1_000_000) / micros;
        if !self.idle || seen >= self.rate() {
            let known = self.rate().max(self.trim.full());
            let grown = seen > known + known / 4;
            self.plateau = if grown { 0 } else { self.plateau.saturating_add(1) };
            self.rates.rotate_right(1);
            if let Some(newest) = self.rates.first_mut() {
                *newest = Some(seen);
            }
        }
        match self.idle || self.plateau < FULL {
            true => self.trim.interrupt(),
            false => self.trim.learn(now, acked, kernel),
        }
        self.span = Some((now, acked));
        self.idle = false;
    }

    fn budget(&self, kernel: Kernel) -> u64 {
        let trip = kernel.round_trip;
        let full = self.plateau >= FULL;
        let span = if full || kernel.lately > trip + trip / 8 + QUEUED { trip + trip / 4 } else { trip * 2 } + SLACK;
        let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
        let budget = self.rate().saturating_mul(micros) / 1_000_000;
        let least = LEAST.max(LEAST_SEGMENTS.saturating_mul(u64::from(kernel.segment)));
        if full { self.trim.of(budget, kernel) } else { budget }.max(least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An uplink that delivers so many bytes a second after half a round trip, with acknowledgements another half later.
    struct Uplink {
        rate: u64,
        round_trip: Duration,
        /// What a radio adds to it at random, at most.
        jitter: Duration,
        lately: Duration,
        now: Instant,
        /// When the last byte written so far will have been acknowledged.
        free_at: Instant,
        written: u64,
        acked: u64,
        /// When what was written until then is acknowledged, and when that was.
        acks: std::collections::VecDeque<(Instant, u64, Instant)>,
    }

    impl Uplink {
        fn new(rate: u64, round_trip: u64) -> Uplink {
            let now = Instant::now();
            let round_trip = Duration::from_millis(round_trip);
            let (jitter, lately, acks) = (Duration::ZERO, Duration::ZERO, Default::default());
            Uplink { rate, round_trip, jitter, lately, now, free_at: now, written: 0, acked: 0, acks }
        }

        fn write(&mut self, bytes: usize) {
            // In segments, as they are acknowledged one by one.
            for piece in std::iter::repeat_n(1_400, bytes / 1_400).chain([bytes % 1_400]).filter(|piece| *piece > 0) {
                let start = self.free_at.max(self.now);
                self.free_at = start + Duration::from_micros(piece as u64 * 1_000_000 / self.rate);
                self.written += piece as u64;
                let jitter = self.jitter * (self.written.wrapping_mul(2_654_435_761) as u8).into() / 255;
                let last = self.acks.back().map_or(self.now, |(at, ..)| *at);
                let at = last.max(self.free_at + self.round_trip + jitter);
                self.acks.push_back((at, self.written, self.now));
            }
        }

        fn kernel(&mut self) -> Kernel {
            while let Some((at, upto, sent)) = self.acks.front().copied().filter(|(at, ..)| *at <= self.now) {
                self.acks.pop_front();
                self.acked = upto;
                self.lately = (self.lately * 7 + (at - sent)) / 8;
            }
            let unacked = self.written - self.acked;
            let Uplink { written, round_trip, lately, .. } = *self;
            Kernel { written, unacked, round_trip, lately, segment: 1_400 }
        }

        /// How long a byte written now would take to get there.
        fn delay(&self) -> Duration {
            self.free_at.saturating_duration_since(self.now) + self.round_trip / 2
        }

        /// Drains for so long; what was delivered, and the longest that a byte of it stood in the queue in the second half.
        fn drain(&mut self, pace: &mut Pace, time: Duration) -> (u64, Duration) {
            let (until, half, before) = (self.now + time, self.now + time / 2, self.written);
            let mut longest = Duration::ZERO;
            while self.now < until {
                match pace.room(self.now, self.kernel(), 16 * 1024) {
                    Room::Bytes(room) => {
                        self.write(room.max(300));
                        if self.now > half {
                            longest = longest.max(self.delay());
                        }
                    }
                    Room::Wait(at, why) => {
                        assert_eq!(why, Why::Path);
                        self.now = at;
                    }
                }
            }
            let waiting = self.free_at.saturating_duration_since(self.now).as_micros() as u64 * self.rate / 1_000_000;
            (self.written - before - waiting, longest)
        }
    }

    #[test]
    fn any_uplink_is_filled_and_no_byte_stands_in_the_queue_for_long() {
        for rate in [8_000, 64_000, 250_000, 2_000_000, 10_000_000] {
            for round_trip in [1, 20, 50, 300, 800] {
                let (mut uplink, mut pace) = (Uplink::new(rate, round_trip), Pace::new(Rate::default()));
                // Learning takes a few round trips.
                uplink.drain(&mut pace, Duration::from_secs(3) + uplink.round_trip * 24);
                let (delivered, longest) = uplink.drain(&mut pace, Duration::from_secs(20));
                assert!(delivered * 10 >= rate * 20 * 9, "{delivered} at {rate} and {round_trip} ms");
                let least = Duration::from_micros(LEAST * 1_000_000 / rate);
                let limit = uplink.round_trip * 3 / 4 + least + Duration::from_millis(30);
                assert!(longest <= limit, "{longest:?} at {rate} and {round_trip} ms");
            }
        }
    }

    #[test]
    fn a_radio_s_turns_are_no_queue_and_what_they_hide_is_found_again() {
        for (rate, round_trip, jitter) in [(250_000, 50, 25), (64_000, 100, 25), (1_000_000, 300, 40)] {
            let (mut uplink, mut pace) = (Uplink::new(rate, round_trip), Pace::new(Rate::default()));
            uplink.jitter = Duration::from_millis(jitter);
            uplink.drain(&mut pace, Duration::from_secs(20));
            let (delivered, _) = uplink.drain(&mut pace, Duration::from_secs(20));
            assert!(delivered * 10 >= rate * 20 * 9, "{delivered} at {rate} and {round_trip} ms");
            uplink.rate *= 4;
            uplink.drain(&mut pace, Duration::from_secs(15));
            let (delivered, _) = uplink.drain(&mut pace, Duration::from_secs(20));
            assert!(delivered * 10 >= rate * 4 * 20 * 9, "{delivered} at four times {rate} and {round_trip} ms");
        }
    }

    #[test]
    fn a_fast_path_is_fast_from_the_start() {
        let (mut uplink, mut pace) = (Uplink::new(100_000_000, 0), Pace::new(Rate::default()));
        let (first, _) = uplink.drain(&mut pace, Duration::from_millis(100));
        assert!(first > 100_000 * 13, "{first}");
        let (then, _) = uplink.drain(&mut pace, Duration::from_secs(1));
        assert!(then > 50_000_000, "{then}");
    }

    #[test]
    fn an_uplink_that_becomes_slow_is_noticed_and_one_that_stalls_for_a_moment_is_not() {
        let (mut uplink, mut pace) = (Uplink::new(2_000_000, 50), Pace::new(Rate::default()));
        uplink.drain(&mut pace, Duration::from_secs(3));
        let fast = pace.budget(uplink.kernel());
        uplink.free_at = uplink.now + Duration::from_millis(80);
        uplink.drain(&mut pace, Duration::from_millis(200));
        assert!(pace.budget(uplink.kernel()) > fast * 3 / 4);
        uplink.rate = 64_000;
        uplink.drain(&mut pace, Duration::from_secs(5));
        assert!(pace.budget(uplink.kernel()) < 12_000, "{}", pace.budget(uplink.kernel()));
        uplink.rate = 2_000_000;
        uplink.drain(&mut pace, Duration::from_secs(2));
        assert!(pace.budget(uplink.kernel()) > fast * 3 / 4);
    }

    #[test]
    fn what_trickles_teaches_nothing_that_slows_the_next_rush() {
        let (mut uplink, mut pace) = (Uplink::new(2_000_000, 50), Pace::new(Rate::default()));
        uplink.drain(&mut pace, Duration::from_secs(3));
        uplink.now += Duration::from_millis(500);
        let before = pace.budget(uplink.kernel());
        for _ in 0..100 {
            assert!(matches!(pace.room(uplink.now, uplink.kernel(), 16 * 1024), Room::Bytes(1_000..)));
            uplink.write(300);
            pace.starved();
            uplink.now += Duration::from_millis(40);
        }
        assert!(pace.budget(uplink.kernel()) >= before);
    }

    #[test]
    fn a_message_larger_than_the_budget_passes() {
        let mut pace = Pace::new(Rate::default());
        let (now, mut kernel) = (Instant::now(), Kernel { segment: 1_400, ..Kernel::default() });
        assert_eq!(pace.room(now, kernel, 1 << 20), Room::Bytes(LEAST as usize));
        (kernel.written, kernel.unacked) = (400_000, 400_000);
        assert!(matches!(pace.room(now, kernel, 1 << 20), Room::Wait(_, Why::Path)));
        kernel.unacked = 0;
        assert!(matches!(pace.room(now + SPAN, kernel, 1 << 20), Room::Bytes(_)));
    }

    #[test]
    fn a_limit_delays_by_bytes_and_by_messages() {
        for (rate, size, most) in [
            (Rate { bytes: Some(10_000), messages: None }, 500, 20),
            (Rate { bytes: None, messages: Some(5) }, 500, 5),
            (Rate { bytes: Some(1_000), messages: Some(50) }, 100, 10),
        ] {
            let (mut pace, begin) = (Pace::new(rate), Instant::now());
            let (mut now, mut sent) = (begin, 0);
            while now < begin + Duration::from_secs(10) {
                match pace.room(now, Kernel::default(), 16 * 1024) {
                    Room::Wait(until, why) => {
                        assert!(why == Why::Limit && until > now);
                        now = until;
                    }
                    Room::Bytes(_) => {
                        sent += 1;
                        pace.spend(now, size);
                    }
                }
            }
            assert!((most * 10..=most * 10 + most / 5 + 2).contains(&sent), "{sent} of {most} a second");
        }
    }

    #[test]
    fn a_large_message_is_paid_for_afterwards() {
        let mut pace = Pace::new(Rate { bytes: Some(1_000), messages: None });
        let now = Instant::now();
        assert!(!pace.spend(now, 400_000));
        let Room::Wait(until, Why::Limit) = pace.room(now, Kernel::default(), 1_000) else { panic!() };
        let wait = until - now;
        assert!(wait > Duration::from_secs(399) && wait <= Duration::from_secs(400), "{wait:?}");
    }
}
