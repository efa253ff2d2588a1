//! The open session: is it alive, is it suspect, is it dead?
//!
//! Only inbound bytes count as life. Every acknowledgement and ping reply is a round-trip sample (RFC 6298, in
//! milliseconds). A *question* is anything the server owes an answer to: the oldest message in flight, or a ping.
//! Silence while a question is open makes the session suspect, long silence makes it dead. An idle session is
//! asked in time. What the far end's kernel acknowledges says that the path lives, whatever the server does: no judgement is
//! made without having asked for it. It decides nothing about other interfaces and sends nothing but pings.

use core::time::Duration;

use crate::bounds::{MARGIN_MAX, MOVE_MARGIN, RTO_FIRST, SUSPECT_MARGIN, speaks_after};
use crate::event::{Attempt, Measure, Version};
use crate::name::Name;
use crate::quality::{Flowing, Lateness};
use crate::settings::Uplink;
use crate::time::Instant;

/// What the adapter tells of one read arrives within this long.
const TOGETHER: Duration = Duration::from_millis(20);
/// An answer later than expected by less than this is no sign of loss.
const LATENESS_LEAST: Duration = Duration::from_millis(20);
/// What the kernel told is good for a judgement for so long; it is waited for this long, and then done without for a while.
const LOOK_FRESH: Duration = Duration::from_millis(100);
const LOOK_LIMIT: Duration = Duration::from_millis(50);
const LOOK_KEPT: Duration = Duration::from_secs(1);
/// After so long without a word from the server its next answer is waited for less: at most so much is granted for the
/// variation of the round trip, of which an idle session knows little.
const LONG_SILENCE: Duration = Duration::from_secs(3);
const VARIATION_AFTER_SILENCE: Duration = Duration::from_millis(150);
/// A deadline served this late means that we were stopped, not that the server was silent (R-LV-11).
const STALL: Duration = Duration::from_millis(200);
/// After a pause this long the session is asked at once whether it still lives (R-LV-11).
const LONG_STALL: Duration = Duration::from_secs(5);

/// The round-trip estimator of RFC 6298, in integer milliseconds scaled by 8 and 4. The RFC's guess at the variation, half
/// of the first sample, is given up faster than there, as fast as samples speak against it: on a long path it would cost
/// half a second of every early detection, and the margins bear what it guards against.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundTrip {
    srtt_x8: u64,
    rttvar_x4: u64,
    samples: u64,
}

impl RoundTrip {
    /// Takes a sample in.
    pub fn sample(&mut self, sample: Duration) {
        let r = sample.as_millis() as u64;
        self.samples += 1;
        if self.samples == 1 {
            (self.srtt_x8, self.rttvar_x4) = (r * 8, r * 2);
            return;
        }
        // The weight of a new deviation: a half, a third, and then the RFC's quarter.
        let share = self.samples.min(4);
        let error = r.abs_diff(self.srtt_x8 / 8);
        self.rttvar_x4 = self.rttvar_x4 - self.rttvar_x4 / share + error * 4 / share;
        self.srtt_x8 = self.srtt_x8 - self.srtt_x8 / 8 + r;
    }

    /// The smoothed round trip, once there was a sample.
    pub fn smoothed(&self) -> Option<Duration> {
        (self.samples > 0).then(|| Duration::from_millis(self.srtt_x8 / 8))
    }

    /// How long an answer may take: srtt + 4·rttvar.
    pub fn timeout(&self) -> Duration {
        if self.samples > 0 { Duration::from_millis(self.srtt_x8 / 8 + self.rttvar_x4) } else { RTO_FIRST }
    }
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    /// No ping is open.
    No,
    /// A ping is unanswered since then.
    Once(Instant),
    /// It was repeated then; the silence is as old as `first`.
    Twice { first: Instant, again: Instant },
}

/// What the session needs now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Nothing,
    /// Ask for a sign of life.
    Ping,
    /// The dead limit has passed (R-LV-4).
    Dead,
}

/// How silent it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// Nothing is owed, or not for long.
    Innocent,
    /// Owed for longer than the estimate and the first margin: open a spare.
    Suspect,
    /// Owed for longer than the second margin: a proved spare may take over.
    Guilty,
}

/// One MQTT connection from CONNACK to close.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    pub attempt: Attempt,
    pub interface: Name,
    pub server: u8,
    pub version: Version,
    pub present: bool,
    /// The server's Receive Maximum.
    pub window: u16,
    pub opened: Instant,
    /// Subscriptions and hello are through (R-CL-10).
    pub settled: bool,
    pub last_inbound: Instant,
    pub round_trip: RoundTrip,
    /// The smallest that the smoothed round trip has been.
    fastest: Option<Duration>,
    /// Stalls and losses.
    pub flowing: Flowing,
    /// Silence before this moment is forgiven: it was ours.
    excused: Instant,
    /// After a long pause: ask at once.
    check: bool,
    /// Something outside speaks against it: asked at once, and suspect until it answers.
    doubted: bool,
    asked: Asked,
    /// An acknowledgement that may have come from the server, or from our own kernel.
    acked: Option<(Instant, Duration)>,
    /// The oldest ping that is still unanswered.
    pinged: Option<Instant>,
    /// The server has answered a question asked then: what was sent before reached it, and is slow, not lost.
    reached: Instant,
    ping_after: Duration,
    /// The server closes a connection on which we say nothing for one and a half keep alives, whatever it sends.
    spoke: Instant,
    speak_after: Option<Duration>,
    ping_limits: [Duration; 2],
    extra_margin: Duration,
    /// How much later than expected the latest answer came in the last while, and when, with segments sent again.
    pub lateness: Lateness,
    /// An answer that came as late; whether segments were sent again is not known yet.
    late: Option<(Instant, Duration)>,
    /// Segments that were sent again, as last told.
    sent_again: u32,
    /// The far end's kernel is known to have lived then. It answers for a server that hangs, and while a large message
    /// crosses a slow link: the path is not dead.
    acknowledged: Instant,
    /// The same, with more of ours still on its way: nothing that the server has yet to answer.
    progressed: Instant,
    /// When the kernel was last asked before a judgement, and when it last answered.
    look: Option<Instant>,
    looked: Option<Instant>,
}

fn extra_margin(vain: u32) -> Duration {
    Duration::from_millis(250).saturating_mul((1u32 << vain.min(5)) - 1).min(MARGIN_MAX)
}

impl Session {
    /// A session that opened now. `keep_alive` is the one in force; `vain` how often this interface was
    /// suspected in vain lately.
    #[allow(clippy::too_many_arguments)]
    pub fn open(
        now: Instant,
        attempt: Attempt,
        interface: Name,
        server: u8,
        version: Version,
        present: bool,
        window: u16,
        keep_alive: Duration,
        uplink: &Uplink,
        vain: u32,
        lateness: Lateness,
    ) -> Session {
        let by_keep_alive = speaks_after(keep_alive);
        let ping_after = match uplink.ping_after {
            Some(after) if keep_alive.is_zero() => after,
            Some(after) => after.min(by_keep_alive),
            None if keep_alive.is_zero() => speaks_after(uplink.keep_alive),
            None => by_keep_alive,
        };
        Session {
            attempt,
            interface,
            server,
            version,
            present,
            window,
            opened: now,
            settled: false,
            last_inbound: now,
            round_trip: RoundTrip::default(),
            fastest: None,
            flowing: Flowing::begin(now),
            excused: now,
            check: false,
            doubted: false,
            asked: Asked::No,
            acked: None,
            pinged: None,
            reached: Instant::default(),
            ping_after,
            spoke: now,
            speak_after: (!keep_alive.is_zero()).then_some(by_keep_alive),
            ping_limits: uplink.ping_limits,
            extra_margin: extra_margin(vain),
            lateness,
            late: None,
            sent_again: 0,
            acknowledged: now,
            progressed: now,
            look: None,
            looked: None,
        }
    }

    /// A message was acknowledged after so long: a sample, if bytes turn out to have come in with it.
    pub fn acked(&mut self, now: Instant, sample: Duration) {
        let longest = self.acked.filter(|(at, _)| *at == now).map_or(sample, |(_, known)| known.max(sample));
        self.acked = Some((now, longest));
    }

    /// Bytes came in.
    pub fn heard(&mut self, now: Instant) {
        if let Some((at, sample)) = self.acked.take()
            && now.since(at) < TOGETHER
        {
            self.answered(now, sample);
        }
        self.last_inbound = now;
        self.asked = Asked::No;
        self.doubted = false;
    }

    /// Something outside speaks against it, and is no proof.
    pub fn doubt(&mut self) {
        self.doubted = true;
    }

    /// The ping was answered; to be told before `heard`.
    pub fn ponged(&mut self, now: Instant) {
        if let Some(at) = self.pinged.take() {
            self.reached = at;
        }
        match self.asked {
            Asked::No => {}
            Asked::Once(at) => self.answered(now, now.since(at)),
            // Which of the two was answered is not known; that the path is slow is.
            Asked::Twice { first, .. } if first >= self.excused => self.late(now, now.since(first)),
            Asked::Twice { .. } => {}
        }
    }

    /// An answer came after so long. One that is later than expected tells of loss (R-LV-6); one to a question from before a
    /// pause of our own tells nothing.
    fn answered(&mut self, now: Instant, sample: Duration) {
        if now.since(self.excused) < sample {
            return;
        }
        if self.round_trip.smoothed().is_some() {
            self.late(now, sample.saturating_sub(self.round_trip.timeout()));
        }
        self.sample(sample);
    }

    /// A round trip took so long.
    pub fn sample(&mut self, sample: Duration) {
        self.round_trip.sample(sample);
        self.fastest = self.fastest.into_iter().chain(self.round_trip.smoothed()).min();
    }

    /// Counts the time up to now as stalled or flowing. `oldest_sent` as it was until now.
    pub fn count(&mut self, now: Instant, oldest_sent: Option<Instant>) {
        self.flowing.count(now, oldest_sent, self.fastest.unwrap_or(RTO_FIRST));
    }

    /// How long an answer has been owed.
    pub fn owed(&self, now: Instant, oldest_sent: Option<Instant>) -> Duration {
        self.silent_since(oldest_sent).map_or(Duration::ZERO, |since| now.since(since))
    }

    /// From when on it is worth having a second path ready, before there is a suspicion: at once with a message that
    /// breaks a long silence, else once an answer is later than expected.
    pub fn risky_from(&self, oldest_sent: Option<Instant>) -> Option<Instant> {
        let sent = oldest_sent?;
        if sent.since(self.alive()) >= LONG_SILENCE {
            return Some(sent);
        }
        let margin = self.round_trip.smoothed().map_or(RTO_FIRST, |r| r / 8).max(LATENESS_LEAST);
        self.silent_since(oldest_sent).map(|since| since + self.patience(since, margin))
    }

    fn late(&mut self, now: Instant, by: Duration) {
        if by >= LATENESS_LEAST {
            self.late = self.late.max(Some((now, by)));
        }
    }

    /// Whether it matters now what the kernel has counted: to tell loss from slowness.
    pub fn is_curious(&mut self, now: Instant, busy: bool) -> bool {
        let late = self.late.is_some_and(|(at, _)| at == now);
        late || busy && self.flowing.asks(now)
    }

    /// What the kernel has counted. Lateness without a segment sent again is slowness, and no sign of loss. Says what the
    /// path has shown since it last counted.
    pub fn measured(&mut self, now: Instant, measure: Measure) -> Option<Measure> {
        self.looked = Some(now);
        if measure.sent == 0 {
            // This kernel does not tell: what is late may have been lost.
            if let Some((at, by)) = self.late.take() {
                self.lateness.note(at, by);
            }
            return None;
        }
        let acked = now.before(measure.acked_ago);
        self.acknowledged = self.acknowledged.max(if measure.owed == 0 { now } else { acked });
        if measure.owed > 0 {
            self.progressed = self.progressed.max(acked);
        }
        let lost = measure.again > self.sent_again;
        self.sent_again = measure.again;
        if let Some((at, by)) = self.late.take().filter(|_| lost) {
            self.lateness.note(at, by);
        }
        self.flowing.measured(now, measure)
    }

    /// What the kernel knows was told a moment ago, or it does not answer: a judgement may be made.
    pub fn is_looked_at(&self, now: Instant) -> bool {
        let unanswered = |at: Instant| (LOOK_LIMIT..LOOK_KEPT).contains(&now.since(at));
        self.looked.is_some_and(|at| now.since(at) <= LOOK_FRESH) || self.look.is_some_and(unanswered)
    }

    /// The kernel is to be asked before a judgement; false while it is being asked.
    pub fn looks(&mut self, now: Instant) -> bool {
        let under_way = self.look.is_some_and(|at| now.since(at) < LOOK_LIMIT);
        if !under_way {
            self.look = Some(now);
        }
        !under_way
    }

    /// It was suspected in vain, so often lately.
    pub fn acquitted(&mut self, vain: u32) {
        self.extra_margin = extra_margin(vain);
    }

    /// Messages sent up to then are known to have reached the server: they raise no suspicion.
    pub fn reached(&self) -> Instant {
        self.reached
    }

    /// A message goes out now.
    pub fn spoke(&mut self, now: Instant) {
        self.spoke = now;
    }

    /// A ping goes out now.
    pub fn asks(&mut self, now: Instant) {
        self.spoke = now;
        self.check = false;
        self.pinged.get_or_insert(now);
        self.asked = match self.asked {
            Asked::No => Asked::Once(now),
            Asked::Once(first) | Asked::Twice { first, .. } => Asked::Twice { first, again: now },
        };
    }

    /// A ping is unanswered.
    pub fn is_asked(&self) -> bool {
        match self.asked {
            Asked::No => false,
            Asked::Once(_) | Asked::Twice { .. } => true,
        }
    }

    /// A deadline that should have been served at `scheduled` is served now: forgive silence that was a pause of
    /// our own.
    pub fn excuse(&mut self, now: Instant, scheduled: Instant) {
        let pause = now.since(scheduled);
        if pause > STALL {
            self.excused = now;
            self.flowing.skip(now);
        }
        self.check |= pause > LONG_STALL;
    }

    /// What is due, given the moment the oldest message in flight was sent.
    pub fn due(&self, now: Instant) -> Due {
        match self.asked {
            Asked::No if self.check || self.doubted || now >= self.ping_at() => Due::Ping,
            Asked::Once(at) if now >= self.patient_since(at) + self.limit(0) => Due::Ping,
            Asked::Twice { again, .. } if now >= self.patient_since(again) + self.limit(1) => Due::Dead,
            Asked::No | Asked::Once(_) | Asked::Twice { .. } => Due::Nothing,
        }
    }

    /// How silent it is, given the moment the oldest message in flight was sent that is not known to have arrived.
    pub fn silence(&self, now: Instant, oldest_sent: Option<Instant>) -> Silence {
        match self.silent_since(oldest_sent) {
            Some(since) if now >= since + self.patience(since, MOVE_MARGIN) => Silence::Guilty,
            Some(since) if self.doubted || now >= since + self.patience(since, SUSPECT_MARGIN) => Silence::Suspect,
            Some(_) | None => Silence::Innocent,
        }
    }

    /// When `due` or `silence` will next say something else.
    pub fn deadline(&self, now: Instant, oldest_sent: Option<Instant>) -> Instant {
        let liveness = match self.asked {
            Asked::No => self.ping_at(),
            Asked::Once(at) => self.patient_since(at) + self.limit(0),
            Asked::Twice { again, .. } => self.patient_since(again) + self.limit(1),
        };
        let silence = self
            .silent_since(oldest_sent)
            .map(|since| [SUSPECT_MARGIN, MOVE_MARGIN].map(|margin| since + self.patience(since, margin)));
        let look = self.look.map(|at| at + LOOK_LIMIT);
        silence.into_iter().flatten().chain(look).filter(|at| *at > now).fold(liveness, Instant::min)
    }

    /// From when on an unanswered ping counts: what goes out before it may take long, and so may a pause of our own.
    fn patient_since(&self, asked: Instant) -> Instant {
        asked.max(self.excused).max(self.progressed)
    }

    fn ping_at(&self) -> Instant {
        let idle = self.alive() + self.ping_after;
        self.speak_after.map_or(idle, |after| idle.min(self.spoke + after))
    }

    fn alive(&self) -> Instant {
        self.last_inbound.max(self.excused)
    }

    fn silent_since(&self, oldest_sent: Option<Instant>) -> Option<Instant> {
        let ping = match self.asked {
            Asked::No => None,
            Asked::Once(at) | Asked::Twice { first: at, .. } => Some(at),
        };
        let question = match (ping, oldest_sent) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        question.map(|q| q.max(self.alive()).max(self.acknowledged))
    }

    /// How long silence since then is borne.
    fn patience(&self, since: Instant, margin: Duration) -> Duration {
        let measured = self.lateness.margin(since);
        let timeout = match self.round_trip.smoothed() {
            // What breaks a silence may meet a path that has forgotten us, and a second one is under way.
            Some(smoothed) if since.since(self.alive()) >= LONG_SILENCE => {
                self.round_trip.timeout().min(smoothed + VARIATION_AFTER_SILENCE)
            }
            Some(_) | None => self.round_trip.timeout(),
        };
        timeout + margin + self.extra_margin.max(measured).min(MARGIN_MAX)
    }

    fn limit(&self, index: usize) -> Duration {
        self.ping_limits.get(index).copied().unwrap_or(Duration::from_secs(15))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Class;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn session() -> Session {
        let name = Name::new("eth0").unwrap_or_else(|_| unreachable!());
        let uplink = Uplink::of(Class::Ethernet);
        let keep_alive = Duration::from_secs(30);
        Session::open(
            Instant::default(),
            Attempt(1),
            name,
            0,
            Version::V5,
            true,
            100,
            keep_alive,
            &uplink,
            0,
            Lateness::default(),
        )
    }

    #[test]
    fn the_estimator_follows_rfc_6298_but_for_its_first_guess() {
        let mut round_trip = RoundTrip::default();
        assert_eq!(round_trip.timeout(), RTO_FIRST);
        round_trip.sample(ms(100));
        assert_eq!((round_trip.smoothed(), round_trip.timeout()), (Some(ms(100)), ms(300)));
        round_trip.sample(ms(100));
        assert_eq!(round_trip.timeout(), ms(200));
        round_trip.sample(ms(180));
        assert_eq!(round_trip.smoothed(), Some(ms(110)));
        (0..100).for_each(|_| round_trip.sample(ms(20)));
        assert!(round_trip.timeout() < ms(60));
    }

    #[test]
    fn an_idle_session_is_asked_and_a_silent_one_is_dead_after_both_limits() {
        let mut session = session();
        let at = Instant::from_millis;
        assert_eq!((session.due(at(9_999)), session.due(at(10_000))), (Due::Nothing, Due::Ping));
        session.asks(at(10_000));
        assert_eq!((session.due(at(19_999)), session.due(at(20_000))), (Due::Nothing, Due::Ping));
        session.asks(at(20_000));
        assert_eq!((session.due(at(34_999)), session.due(at(35_000))), (Due::Nothing, Due::Dead));
    }

    #[test]
    fn silence_is_counted_from_the_question_or_from_the_last_byte() {
        let mut session = session();
        let at = Instant::from_millis;
        (0..50).for_each(|_| session.round_trip.sample(ms(20)));
        let patience = session.round_trip.timeout();
        let asked = Some(at(60_000));
        assert_eq!(session.silence(at(60_000) + patience, asked), Silence::Innocent);
        assert_eq!(session.silence(at(60_000) + patience + SUSPECT_MARGIN, asked), Silence::Suspect);
        assert_eq!(session.silence(at(60_000) + patience + MOVE_MARGIN, asked), Silence::Guilty);
        session.heard(at(60_100));
        assert_eq!(session.silence(at(60_000) + patience + MOVE_MARGIN, asked), Silence::Suspect);
        assert_eq!(session.silence(at(99_000), None), Silence::Innocent);
    }

    #[test]
    fn a_late_answer_after_a_loss_widens_the_margin_for_five_minutes() {
        let mut session = session();
        let at = Instant::from_millis;
        (0..50).for_each(|_| session.round_trip.sample(ms(20)));
        session.acked(at(60_000), ms(320));
        session.heard(at(60_000));
        assert!(session.is_curious(at(60_000), false));
        session.measured(at(60_000), Measure { sent: 60, again: 1, ..Measure::default() });
        let guilty = |s: &Session, sent: u64| {
            (0..6_000).find(|n| s.silence(at(sent + n), Some(at(sent))) == Silence::Guilty).unwrap_or(6_000)
        };
        assert!(guilty(&session, 61_000) > 1_500);
        (0..50).for_each(|_| session.round_trip.sample(ms(20)));
        assert!(guilty(&session, 400_000) < 700);
    }

    #[test]
    fn a_late_answer_without_a_segment_sent_again_was_slow_and_changes_nothing() {
        let mut session = session();
        let at = Instant::from_millis;
        (0..50).for_each(|_| session.round_trip.sample(ms(20)));
        session.acked(at(60_000), ms(320));
        session.heard(at(60_000));
        session.measured(at(60_000), Measure { sent: 60, again: 0, ..Measure::default() });
        assert_eq!(session.lateness.margin(at(60_000)), ms(0));
    }

    #[test]
    fn what_was_asked_before_a_pause_of_our_own_is_no_sample() {
        let mut session = session();
        let at = Instant::from_millis;
        (0..50).for_each(|_| session.round_trip.sample(ms(20)));
        session.excuse(at(17_000), at(10_000));
        session.acked(at(17_001), ms(7_000));
        session.heard(at(17_001));
        assert_eq!(session.round_trip.smoothed(), Some(ms(20)));
        session.acked(at(18_000), ms(28));
        session.heard(at(18_000));
        assert_eq!(session.round_trip.smoothed(), Some(ms(21)));
    }

    #[test]
    fn the_acknowledgement_of_our_own_kernel_is_no_sample() {
        let mut session = session();
        session.acked(Instant::from_millis(1_000), ms(0));
        session.heard(Instant::from_millis(5_000));
        assert_eq!(session.round_trip.smoothed(), None);
    }

    #[test]
    fn a_pause_of_our_own_is_forgiven_and_a_long_one_is_followed_by_a_question() {
        let mut session = session();
        let at = Instant::from_millis;
        session.excuse(at(12_000), at(10_000));
        assert_eq!(session.due(at(12_000)), Due::Nothing);
        session.excuse(at(82_000), at(22_000));
        assert_eq!(session.due(at(82_000)), Due::Ping);
    }
}
