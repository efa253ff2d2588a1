//! Messages: admitted, in flight, acknowledged, kept, released.
//!
//! Decides when a message is ours, when it is sent, when it must be made durable, and when it may be forgotten.
//! An application is told "kept" only when the store or the cloud has the message (R-SF-3); a message is
//! released only after the cloud acknowledged it and everything before it. It moves numbers, never payloads, and its
//! memory is bounded by the window and by what is not yet kept: what waits on disk is a few ranges of numbers.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::RangeInclusive;
use core::time::Duration;

use crate::action::Action;
use crate::event::{Attempt, Event, Seq, Ticket};
use crate::status::DeliveryStatus;
use crate::time::Instant;
use crate::turn::Turn;

/// Messages and bytes that may wait for "kept" at once. More means that neither store nor cloud keeps up, and
/// the application must hear of it.
const UNKEPT_MAX: usize = 8192;
const UNKEPT_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Bounds of the automatic `outbox.late` (R-TX-1).
const LATE_LEAST: Duration = Duration::from_millis(100);
const LATE_MOST: Duration = Duration::from_secs(1);
/// After a message was late the next ones wait no longer than the least, for this long: an application that may have so many
/// open would otherwise be read only so often a second (R-TX-1).
const SLOW_KEPT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
struct Sent {
    seq: Seq,
    at: Instant,
    again: bool,
}

#[derive(Clone, Copy, Debug)]
struct Unkept {
    seq: Seq,
    ticket: Ticket,
    size: u32,
    at: Instant,
    appended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// No session.
    Shut,
    /// Messages go out here, at most `window` at once.
    Open { attempt: Attempt, window: usize },
    /// A planned move is near: what is in flight is let finish, nothing new goes out.
    Finishing { attempt: Attempt, window: usize },
}

impl Line {
    fn attempt(self) -> Option<Attempt> {
        match self {
            Line::Shut => None,
            Line::Open { attempt, .. } | Line::Finishing { attempt, .. } => Some(attempt),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    Works,
    Full,
    Fails,
}

/// The state of all messages.
#[derive(Debug)]
pub struct Delivery {
    next: u64,
    /// Numbers up to here may have been sent before: sent again, they carry the mark.
    sent_through: u64,
    released_through: u64,
    line: Line,
    store: Store,
    /// Waiting to be sent, ascending; neighbours are melted.
    backlog: VecDeque<RangeInclusive<u64>>,
    /// How many that is.
    waiting: u64,
    /// In flight, in the order of sending.
    window: VecDeque<Sent>,
    /// Not yet kept, ascending.
    unkept: VecDeque<Unkept>,
    unkept_bytes: u64,
    refused: u64,
    rejected: u64,
    /// Messages sent that may have been sent before.
    repeated: u64,
    late: Duration,
    /// The cloud is late again and again until then: what comes meanwhile need not wait as long to learn it.
    slow_until: Instant,
}

impl Delivery {
    /// Starts with what the store found: unreleased numbers in ascending runs, and the highest number ever used.
    pub fn restore(unreleased: &[RangeInclusive<u64>], highest: u64) -> Delivery {
        let backlog: VecDeque<_> = unreleased.iter().filter(|r| !r.is_empty()).cloned().collect();
        let last = backlog.back().map_or(0, |r| *r.end()).max(highest);
        let first = backlog.front().map_or(last + 1, |r| *r.start());
        Delivery {
            next: last + 1,
            sent_through: last,
            released_through: first.saturating_sub(1),
            line: Line::Shut,
            store: Store::Works,
            waiting: backlog.iter().map(count).sum(),
            backlog,
            window: VecDeque::new(),
            unkept: VecDeque::new(),
            unkept_bytes: 0,
            refused: 0,
            rejected: 0,
            repeated: 0,
            late: LATE_MOST,
            slow_until: Instant::default(),
        }
    }

    /// Takes an answer of the server in, before anything becomes of its connection: an answer that ends the waiting for
    /// a move or a farewell counts all the same.
    pub fn answered(&mut self, turn: &mut Turn, event: &Event) {
        match event {
            Event::Acked { attempt, seq } if self.awaits(*attempt, *seq) => self.acked(turn, *seq),
            Event::Rejected { attempt, seq } if self.awaits(*attempt, *seq) => {
                self.rejected += 1;
                turn.ask(Action::SetAside { seq: *seq });
                self.acked(turn, *seq);
            }
            _ => {}
        }
    }

    /// Takes the event in; `late` is how long the cloud may take before a message goes to the store.
    pub fn step(&mut self, turn: &mut Turn, event: &Event) {
        match event {
            Event::Offered { ticket, size } => self.offered(turn, *ticket, *size),
            Event::Stored { through } => self.stored(turn, *through),
            Event::StorageFailed { full } => self.store = if *full { Store::Full } else { Store::Fails },
            Event::StorageHealed => {
                self.store = Store::Works;
                self.unkept.iter_mut().for_each(|u| u.appended = false);
            }
            _ => {}
        }
        self.pump(turn);
        self.keep(turn);
    }

    /// Messages go out on this connection from now on: what was in flight on another is sent again, then what waits. On
    /// the one they go out on already, this only tells the window, and ends `finish`.
    pub fn open(&mut self, turn: &mut Turn, attempt: Attempt, window: u16) {
        if !self.on_line(attempt) {
            self.shut();
        }
        self.line = Line::Open { attempt, window: usize::from(window.min(turn.settings.window).max(1)) };
        self.pump(turn);
    }

    /// No session any more: what was in flight waits again, in front.
    pub fn shut(&mut self) {
        self.line = Line::Shut;
        self.unsend();
    }

    /// Lets what is in flight finish and sends nothing new.
    pub fn finish(&mut self) {
        if let Line::Open { attempt, window } = self.line {
            self.line = Line::Finishing { attempt, window };
        }
    }

    /// How long the cloud may take before a message goes to the store, from the session's round trip.
    pub fn set_late(&mut self, configured: Option<Duration>, round_trip: Option<Duration>) {
        let auto = round_trip.map_or(LATE_MOST, |r| r.saturating_mul(2).clamp(LATE_LEAST, LATE_MOST));
        self.late = configured.unwrap_or(auto);
    }

    /// Everything that is not kept goes to the store now: the daemon is stopping.
    pub fn keep_all(&mut self, turn: &mut Turn) {
        for unkept in self.unkept.iter_mut().filter(|u| !u.appended) {
            unkept.appended = true;
            turn.ask(Action::Append { seq: unkept.seq });
        }
    }

    /// Whether an answer for this message on this connection counts: it is in flight there.
    pub fn awaits(&self, attempt: Attempt, seq: Seq) -> bool {
        self.on_line(attempt) && self.window.iter().any(|s| s.seq == seq)
    }

    /// When the oldest message in flight on this connection that was sent after this moment was sent.
    pub fn oldest_sent(&self, attempt: Attempt, after: Instant) -> Option<Instant> {
        if !self.on_line(attempt) {
            return None;
        }
        self.window.iter().map(|s| s.at).find(|at| *at > after)
    }

    /// The round trip that an acknowledgement of `seq` would show now; none for a message sent twice (Karn).
    pub fn sample(&self, now: Instant, attempt: Attempt, seq: Seq) -> Option<Duration> {
        self.window.iter().find(|s| s.seq == seq && !s.again && self.on_line(attempt)).map(|s| now.since(s.at))
    }

    /// Nothing waits and nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.waiting == 0 && self.window.is_empty()
    }

    /// When a message is next late.
    pub fn deadline(&self) -> Option<Instant> {
        match (self.store, self.line) {
            (Store::Works, Line::Open { .. } | Line::Finishing { .. }) => {
                self.unkept.iter().find(|u| !u.appended).map(|u| u.at + self.patience(u.at))
            }
            (Store::Works | Store::Full | Store::Fails, _) => None,
        }
    }

    /// The numbers for displays.
    pub fn status(&self) -> DeliveryStatus {
        DeliveryStatus {
            messages: self.waiting + self.window.len() as u64,
            in_flight: self.window.len() as u32,
            refused: self.refused,
            rejected: self.rejected,
            repeated: self.repeated,
        }
    }

    fn on_line(&self, attempt: Attempt) -> bool {
        self.line.attempt() == Some(attempt)
    }

    fn offered(&mut self, turn: &mut Turn, ticket: Ticket, size: u32) {
        // With the store out of order only the cloud can keep a message (R-SF-11).
        let nobody_keeps = self.store != Store::Works && self.line == Line::Shut;
        let too_many = self.unkept.len() >= UNKEPT_MAX || self.unkept_bytes >= UNKEPT_BYTES_MAX;
        if nobody_keeps || too_many {
            self.refused += 1;
            return turn.ask(Action::Refuse { ticket });
        }
        let seq = Seq(self.next);
        self.next += 1;
        self.unkept.push_back(Unkept { seq, ticket, size, at: turn.now, appended: false });
        self.unkept_bytes += u64::from(size);
        self.wait_last(seq);
        turn.ask(Action::Admit { ticket, seq });
    }

    fn acked(&mut self, turn: &mut Turn, seq: Seq) {
        let Some(index) = self.window.iter().position(|s| s.seq == seq) else { return };
        self.window.remove(index);
        if let Ok(index) = self.unkept.binary_search_by_key(&seq, |u| u.seq)
            && let Some(kept) = self.unkept.remove(index)
        {
            self.unkept_bytes = self.unkept_bytes.saturating_sub(u64::from(kept.size));
            turn.ask(Action::Accept { ticket: kept.ticket });
        }
        self.release(turn);
    }

    fn stored(&mut self, turn: &mut Turn, through: Seq) {
        while let Some(first) = self.unkept.front().copied() {
            if first.seq > through || !first.appended {
                break;
            }
            self.unkept.pop_front();
            self.unkept_bytes = self.unkept_bytes.saturating_sub(u64::from(first.size));
            turn.ask(Action::Accept { ticket: first.ticket });
        }
    }

    fn release(&mut self, turn: &mut Turn) {
        let in_flight = self.window.iter().map(|s| s.seq.0).min();
        let waiting = self.backlog.front().map(|r| *r.start());
        let oldest = in_flight.into_iter().chain(waiting).min().unwrap_or(self.next);
        let through = oldest.saturating_sub(1);
        if through > self.released_through {
            self.released_through = through;
            turn.ask(Action::Release { through: Seq(through) });
        }
    }

    fn pump(&mut self, turn: &mut Turn) {
        let Line::Open { attempt, window } = self.line else { return };
        while self.window.len() < window {
            let Some(seq) = self.wait_first() else { return };
            let again = seq.0 <= self.sent_through;
            self.sent_through = self.sent_through.max(seq.0);
            self.repeated += u64::from(again);
            self.window.push_back(Sent { seq, at: turn.now, again });
            turn.ask(Action::Transmit { attempt, seq, again });
        }
    }

    fn keep(&mut self, turn: &mut Turn) {
        if self.store != Store::Works {
            return;
        }
        let away = self.line == Line::Shut;
        for at in 0..self.unkept.len() {
            let Some(unkept) = self.unkept.get(at).copied().filter(|u| !u.appended) else { continue };
            let late = turn.now >= unkept.at + self.patience(unkept.at);
            if !away && !late {
                break;
            }
            if !away {
                self.slow_until = turn.now + SLOW_KEPT;
            }
            if let Some(unkept) = self.unkept.get_mut(at) {
                unkept.appended = true;
            }
            turn.ask(Action::Append { seq: unkept.seq });
        }
    }

    /// How long a message that came then may wait for the cloud.
    fn patience(&self, at: Instant) -> Duration {
        if at < self.slow_until { self.late.min(LATE_LEAST) } else { self.late }
    }

    fn wait_last(&mut self, seq: Seq) {
        self.waiting += 1;
        match self.backlog.back_mut() {
            Some(last) if *last.end() + 1 == seq.0 => *last = *last.start()..=seq.0,
            Some(_) | None => self.backlog.push_back(seq.0..=seq.0),
        }
    }

    fn wait_first(&mut self) -> Option<Seq> {
        let first = self.backlog.front_mut()?;
        let seq = *first.start();
        if seq < *first.end() {
            *first = seq + 1..=*first.end();
        } else {
            self.backlog.pop_front();
        }
        self.waiting = self.waiting.saturating_sub(1);
        Some(Seq(seq))
    }

    fn unsend(&mut self) {
        let mut seqs: Vec<u64> = self.window.drain(..).map(|s| s.seq.0).collect();
        seqs.sort_unstable();
        self.waiting += seqs.len() as u64;
        for seq in seqs.into_iter().rev() {
            match self.backlog.front_mut() {
                Some(first) if seq + 1 == *first.start() => *first = seq..=*first.end(),
                Some(_) | None => self.backlog.push_front(seq..=seq),
            }
        }
    }
}

fn count(range: &RangeInclusive<u64>) -> u64 {
    (range.end() - range.start()).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backoff::Dice;
    use crate::settings::Settings;
    use alloc::vec;

    /// What a turn at this moment asks for.
    fn turn(at: u64, deed: impl FnOnce(&mut Turn)) -> Vec<Action> {
        let (mut actions, mut numbers) = (Vec::new(), 0);
        let (settings, mut dice) = (Settings { window: 3, ..Settings::default() }, Dice::new(1));
        deed(&mut Turn {
            now: Instant::from_millis(at),
            settings: &settings,
            dice: &mut dice,
            numbers: &mut numbers,
            actions: &mut actions,
        });
        actions
    }

    fn sent(actions: &[Action]) -> Vec<(u64, bool)> {
        let number = |a: &Action| match a {
            Action::Transmit { seq, again, .. } => Some((seq.0, *again)),
            _ => None,
        };
        actions.iter().filter_map(number).collect()
    }

    #[test]
    fn what_the_store_kept_is_sent_first_in_order_over_its_gaps_and_marked() {
        let mut delivery = Delivery::restore(&[3..=4, 9..=9], 12);
        assert_eq!(delivery.status().messages, 3);
        let actions = turn(0, |t| delivery.open(t, Attempt(1), 100));
        assert_eq!(sent(&actions), [(3, true), (4, true), (9, true)]);
        let actions = turn(1, |t| delivery.step(t, &Event::Offered { ticket: Ticket(1), size: 1 }));
        assert_eq!(actions, [Action::Admit { ticket: Ticket(1), seq: Seq(13) }]);
        let actions = turn(2, |t| delivery.answered(t, &Event::Acked { attempt: Attempt(1), seq: Seq(4) }));
        assert_eq!(actions, []);
        let actions = turn(3, |t| delivery.answered(t, &Event::Acked { attempt: Attempt(1), seq: Seq(3) }));
        assert_eq!(actions, [Action::Release { through: Seq(8) }]);
    }

    #[test]
    fn what_was_in_flight_waits_in_front_again_whatever_was_answered_between() {
        let mut delivery = Delivery::restore(&[1..=5], 5);
        turn(0, |t| delivery.open(t, Attempt(1), 100));
        turn(1, |t| delivery.answered(t, &Event::Acked { attempt: Attempt(1), seq: Seq(2) }));
        delivery.shut();
        assert_eq!(delivery.backlog, [1..=1, 3..=5]);
        assert_eq!((delivery.waiting, delivery.status().messages), (4, 4));
        let actions = turn(2, |t| delivery.open(t, Attempt(2), 2));
        assert_eq!(sent(&actions), [(1, true), (3, true)]);
    }

    #[test]
    fn an_answer_for_another_connection_or_for_nothing_counts_for_nothing() {
        let mut delivery = Delivery::restore(&[1..=1], 1);
        turn(0, |t| delivery.open(t, Attempt(2), 1));
        for event in [
            Event::Acked { attempt: Attempt(1), seq: Seq(1) },
            Event::Acked { attempt: Attempt(2), seq: Seq(7) },
            Event::Rejected { attempt: Attempt(2), seq: Seq(7) },
        ] {
            assert_eq!(turn(1, |t| delivery.answered(t, &event)), []);
        }
        assert!(!delivery.is_empty());
    }

    #[test]
    fn after_one_late_answer_the_next_messages_are_kept_sooner_for_a_while() {
        let mut delivery = Delivery::restore(&[], 0);
        turn(0, |t| delivery.open(t, Attempt(1), 10));
        let offer = |delivery: &mut Delivery, at: u64| {
            turn(at, |t| delivery.step(t, &Event::Offered { ticket: Ticket(at), size: 1 }));
        };
        let kept = |delivery: &mut Delivery, at: u64| {
            turn(at, |t| delivery.step(t, &Event::DeadlineReached)).iter().any(|a| matches!(a, Action::Append { .. }))
        };
        offer(&mut delivery, 0);
        assert_eq!((kept(&mut delivery, 999), kept(&mut delivery, 1_000)), (false, true));
        offer(&mut delivery, 1_500);
        assert_eq!((kept(&mut delivery, 1_599), kept(&mut delivery, 1_600)), (false, true));
        offer(&mut delivery, 7_000);
        assert_eq!((kept(&mut delivery, 7_999), kept(&mut delivery, 8_000)), (false, true));
    }

    #[test]
    fn more_than_may_wait_for_keeping_is_refused() {
        let mut delivery = Delivery::restore(&[], 0);
        let size = u32::try_from(UNKEPT_BYTES_MAX / 2).unwrap_or(u32::MAX);
        let offer = |delivery: &mut Delivery, ticket| {
            turn(ticket, |t| delivery.step(t, &Event::Offered { ticket: Ticket(ticket), size }))
        };
        assert!(offer(&mut delivery, 1).contains(&Action::Append { seq: Seq(1) }));
        assert!(offer(&mut delivery, 2).contains(&Action::Append { seq: Seq(2) }));
        assert_eq!(offer(&mut delivery, 3), [Action::Refuse { ticket: Ticket(3) }]);
        let stored = turn(9, |t| delivery.step(t, &Event::Stored { through: Seq(1) }));
        assert_eq!(stored, vec![Action::Accept { ticket: Ticket(1) }]);
        assert!(offer(&mut delivery, 4).contains(&Action::Append { seq: Seq(3) }));
    }
}
