//! Messages: admitted, in flight, acknowledged, kept, released, given up. It is long, because the window, keeping and the
//! choice between lanes are one set of rules over the same numbers; what a single lane knows is in `queue`.
//!
//! Decides when a message is ours, when and in which order it is sent, when it must be made durable, and when it may be
//! forgotten. An application is told "kept" only when the store or the cloud has the message (R-SF-3), or its lane lives
//! in memory by its own rule; a message is released only after the cloud acknowledged it or its lane's rule gave it up,
//! and the same is true of everything before it in its lane. It moves numbers, never payloads, and its memory is bounded
//! by the window and by what is not yet kept: what waits on disk is a few ranges of numbers.

mod queue;

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ops::RangeInclusive;
use core::time::Duration;

use crate::Unreleased;
use crate::action::{Action, Outcome, Refusal};
use crate::event::{Attempt, Command, Event, Lane, NUMBER_MAX, Parcel, Seq, Ticket};
use crate::name::Name;
use crate::settings::{LANES_MAX, LaneRules, Overflow};
use crate::status::{DeliveryStatus, LaneStatus};
use crate::time::Instant;
use crate::turn::Turn;
use queue::Queue;

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

/// Of so many messages sent while a higher lane has more, one comes from a lower lane: none is starved.
const SHARE: u64 = 16;
/// The part of the window that only the highest lanes may fill, so that a backlog in flight does not make them wait.
const RESERVE: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Sent {
    seq: Seq,
    at: Instant,
    again: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// No session.
    Shut,
    /// Messages go out here, at most `window` at once.
    Open { attempt: Attempt, interface: Name, window: usize },
    /// A planned move is near: what is in flight is let finish, nothing new goes out.
    Finishing { attempt: Attempt, interface: Name, window: usize },
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
    line: Line,
    store: Store,
    rules: Vec<LaneRules>,
    /// In the order of the rules.
    queues: Vec<Queue>,
    /// The lanes as they go first.
    ranking: Vec<usize>,
    /// Whether the uplink of the moment may carry the lane, or, without one, any that is there.
    carried: Vec<bool>,
    /// In flight, in the order of sending.
    window: VecDeque<Sent>,
    unkept: usize,
    unkept_bytes: u64,
    /// Messages sent that may have been sent before.
    repeated: u64,
    /// Messages sent at all.
    turns: u64,
    late: Duration,
    /// The cloud is late again and again until then: what comes meanwhile need not wait as long to learn it.
    slow_until: Instant,
}

impl Delivery {
    /// Starts with what the store found in each lane.
    pub fn restore(rules: &[LaneRules], found: &[Unreleased]) -> Delivery {
        let mut rules: Vec<LaneRules> = rules.iter().take(LANES_MAX).cloned().collect();
        if rules.is_empty() {
            rules.push(LaneRules::default());
        }
        let nothing = Unreleased::default();
        let queue = |index: usize| {
            let found = found.get(index).unwrap_or(&nothing);
            Queue::restore(Lane(index as u8), &found.runs, found.highest)
        };
        let mut ranking: Vec<usize> = (0..rules.len()).collect();
        ranking.sort_by_key(|index| core::cmp::Reverse(rules.get(*index).map_or(0, |rules| rules.priority)));
        Delivery {
            line: Line::Shut,
            store: Store::Works,
            queues: (0..rules.len()).map(queue).collect(),
            carried: rules.iter().map(|_| true).collect(),
            ranking,
            rules,
            window: VecDeque::new(),
            unkept: 0,
            unkept_bytes: 0,
            repeated: 0,
            turns: 0,
            late: LATE_MOST,
            slow_until: Instant::default(),
        }
    }

    /// Takes an answer of the server in, before anything becomes of its connection: an answer that ends the waiting for
    /// a move or a farewell counts all the same.
    pub fn answered(&mut self, turn: &mut Turn, event: &Event) {
        match event {
            Event::Acked { attempt, seq } | Event::Completed { attempt, seq } if self.awaits(*attempt, *seq) => {
                self.through(turn, *seq);
            }
            Event::Rejected { attempt, seq } if self.awaits(*attempt, *seq) => {
                if let Some(queue) = self.queue(seq.lane()) {
                    queue.rejected += 1;
                }
                turn.ask(Action::SetAside { seq: *seq });
                self.through(turn, *seq);
            }
            _ => {}
        }
    }

    /// Takes the event in.
    pub fn step(&mut self, turn: &mut Turn, event: &Event) {
        match event {
            Event::Offered { ticket, parcel } => self.offered(turn, *ticket, *parcel),
            Event::Stored { through } => self.stored(turn, *through),
            Event::StorageFailed { full } => self.store = if *full { Store::Full } else { Store::Fails },
            Event::StorageHealed => {
                self.store = Store::Works;
                self.queues.iter_mut().for_each(|queue| queue.appended = 0);
            }
            Event::Expired { from, through } => self.expired(turn, *from, *through),
            Event::LaneFull { through } => self.lane_full(turn, *through),
            Event::LaneRoomy { lane } => self.queue(*lane).into_iter().for_each(|queue| queue.full = false),
            Event::Recovered { lane, runs, highest } => {
                if let Some(queue) = self.queue(*lane) {
                    queue.recovered(turn, runs, *highest);
                }
            }
            Event::Asked(Command::Drop { request, lane }) => {
                for index in
                    (0..self.queues.len()).filter(|index| lane.is_none_or(|lane| usize::from(lane.0) == *index))
                {
                    self.drop_waiting(turn, index, NUMBER_MAX);
                }
                turn.ask(Action::Answer { request: *request, outcome: Outcome::Done });
            }
            _ => {}
        }
        self.pump(turn);
        self.keep(turn);
    }

    /// Messages go out on this connection from now on: what was in flight on another is sent again, then what waits. On
    /// the one they go out on already, this only tells the window, and ends `finish`.
    pub fn open(&mut self, attempt: Attempt, interface: Name, window: u16, window_max: u16) {
        if !self.on_line(attempt) {
            self.shut();
        }
        self.line = Line::Open { attempt, interface, window: usize::from(window.min(window_max).max(1)) };
    }

    /// No session any more: what was in flight waits again, in front.
    pub fn shut(&mut self) {
        self.line = Line::Shut;
        let sent: Vec<Seq> = self.window.drain(..).map(|sent| sent.seq).collect();
        for (index, queue) in self.queues.iter_mut().enumerate() {
            let own = sent.iter().filter(|seq| usize::from(seq.lane().0) == index);
            let mut numbers: Vec<u64> = own.map(|seq| seq.number()).collect();
            numbers.sort_unstable();
            queue.unsend(&numbers);
        }
    }

    /// Lets what is in flight finish and sends nothing new.
    pub fn finish(&mut self) {
        if let Line::Open { attempt, interface, window } = self.line {
            self.line = Line::Finishing { attempt, interface, window };
        }
    }

    /// The interface that messages go out through.
    pub fn interface(&self) -> Option<Name> {
        match self.line {
            Line::Shut => None,
            Line::Open { interface, .. } | Line::Finishing { interface, .. } => Some(interface),
        }
    }

    /// Which lanes may go out now, or could without a session.
    pub fn set_carried(&mut self, carried: impl Fn(&LaneRules) -> bool) {
        for (may, rules) in self.carried.iter_mut().zip(&self.rules) {
            *may = carried(rules);
        }
    }

    /// How long the cloud may take before a message goes to the store, from the session's round trip.
    pub fn set_late(&mut self, configured: Option<Duration>, round_trip: Option<Duration>) {
        let auto = round_trip.map_or(LATE_MOST, |r| r.saturating_mul(2).clamp(LATE_LEAST, LATE_MOST));
        self.late = configured.unwrap_or(auto);
    }

    /// Everything that is not kept goes to the store now: the daemon is stopping.
    pub fn keep_all(&mut self, turn: &mut Turn) {
        for index in 0..self.queues.len() {
            self.append(turn, index, |_| true);
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

    /// Messages in flight, and those that could be.
    pub fn work(&self) -> u64 {
        let waiting = self.queues.iter().zip(&self.carried).filter(|(_, carried)| **carried);
        waiting.map(|(queue, _)| queue.waiting()).sum::<u64>() + self.window.len() as u64
    }

    /// Where each lane stands: what is admitted from now on lies behind it.
    pub fn marks(&self) -> Vec<u64> {
        self.queues.iter().map(Queue::next).collect()
    }

    /// Whether everything before these marks is through.
    pub fn is_through(&self, marks: &[u64]) -> bool {
        self.queues.iter().zip(marks).all(|(queue, mark)| queue.released_below() >= *mark)
    }

    /// When a message is next late.
    pub fn deadline(&self) -> Option<Instant> {
        let lanes = self.queues.iter().enumerate().filter(|(index, _)| self.keeps(*index) && !self.is_away(*index));
        let next = lanes.filter_map(|(_, queue)| queue.unkept.get(queue.appended));
        next.map(|unkept| unkept.at + self.patience(unkept.at)).min()
    }

    /// The numbers for displays.
    pub fn status(&self) -> DeliveryStatus {
        let sum = |count: fn(&Queue) -> u64| self.queues.iter().map(count).sum();
        DeliveryStatus {
            messages: sum(Queue::held),
            in_flight: self.window.len() as u32,
            refused: sum(|queue| queue.refused),
            rejected: sum(|queue| queue.rejected),
            dropped: sum(|queue| queue.dropped),
            expired: sum(|queue| queue.expired),
            repeated: self.repeated,
        }
    }

    /// The same for each lane.
    pub fn lanes(&self) -> Vec<LaneStatus> {
        self.queues.iter().zip(&self.carried).map(|(queue, carried)| queue.status(*carried)).collect()
    }

    fn on_line(&self, attempt: Attempt) -> bool {
        self.line.attempt() == Some(attempt)
    }

    fn queue(&mut self, lane: Lane) -> Option<&mut Queue> {
        self.queues.get_mut(usize::from(lane.0))
    }

    /// Nothing of this lane can go out now.
    fn is_away(&self, index: usize) -> bool {
        self.line == Line::Shut || !self.carried.get(index).copied().unwrap_or(false)
    }

    /// Memory keeps what its lane admits; a disk only while it works.
    fn keeps(&self, index: usize) -> bool {
        self.in_memory(index) || self.store == Store::Works
    }

    fn in_memory(&self, index: usize) -> bool {
        self.rules.get(index).is_some_and(|rules| rules.memory_bytes.is_some())
    }

    fn offered(&mut self, turn: &mut Turn, ticket: Ticket, parcel: Parcel) {
        let lane = usize::from(parcel.lane.0);
        let index = if lane < self.queues.len() { lane } else { 0 };
        let verdict = self.room_for(turn, index, parcel);
        let sized = self.in_memory(index);
        let Some(queue) = self.queues.get_mut(index) else { return };
        if let Err(refusal) = verdict {
            match refusal {
                Refusal::Dropped => queue.dropped += 1,
                Refusal::Full | Refusal::NotConnected => queue.refused += 1,
            }
            return turn.ask(Action::Refuse { ticket, refusal });
        }
        queue.admit(turn, ticket, parcel, sized);
        self.unkept += 1;
        self.unkept_bytes += u64::from(parcel.size);
    }

    /// Whether one more is taken, where necessary for an older one.
    fn room_for(&mut self, turn: &mut Turn, index: usize, parcel: Parcel) -> Result<(), Refusal> {
        if parcel.online_only && self.line == Line::Shut {
            return Err(Refusal::NotConnected);
        }
        if self.unkept >= UNKEPT_MAX || self.unkept_bytes >= UNKEPT_BYTES_MAX {
            return Err(Refusal::Full);
        }
        let Some(overflow) = self.rules.get(index).map(|rules| rules.overflow) else { return Err(Refusal::Full) };
        let newest = if overflow == Overflow::DropNewest { Refusal::Dropped } else { Refusal::Full };
        // With the store out of order only the cloud can keep a message (R-SF-11).
        if !self.keeps(index) && self.is_away(index) {
            return Err(Refusal::Full);
        }
        let full = self.queues.get(index).is_some_and(|queue| queue.full);
        if full && self.is_away(index) && overflow != Overflow::DropOldest {
            return Err(newest);
        }
        while self.is_over(index, parcel.size) {
            let oldest = self.queues.get(index).and_then(Queue::first).filter(|_| overflow == Overflow::DropOldest);
            match oldest {
                Some(oldest) => self.drop_waiting(turn, index, oldest),
                None => return Err(newest),
            }
        }
        Ok(())
    }

    /// One more message of this size is more than the lane's bounds allow.
    fn is_over(&self, index: usize, size: u32) -> bool {
        let (Some(queue), Some(rules)) = (self.queues.get(index), self.rules.get(index)) else { return true };
        let bytes = rules.memory_bytes.is_some_and(|most| queue.bytes + u64::from(size) > most);
        queue.held() >= rules.max_messages || bytes
    }

    /// Gives up what waits up to this number.
    fn drop_waiting(&mut self, turn: &mut Turn, index: usize, through: u64) {
        let dropped = self.give_up(turn, index, &(0..=through), Some(Refusal::Dropped));
        self.queues.get_mut(index).into_iter().for_each(|queue| queue.dropped += dropped);
    }

    fn lane_full(&mut self, turn: &mut Turn, through: Seq) {
        let index = usize::from(through.lane().0);
        let Some(queue) = self.queues.get_mut(index) else { return };
        queue.full = true;
        if self.rules.get(index).is_some_and(|rules| rules.overflow == Overflow::DropOldest) {
            self.drop_waiting(turn, index, through.number());
        }
    }

    fn expired(&mut self, turn: &mut Turn, from: Seq, through: Seq) {
        let index = usize::from(from.lane().0);
        let range = from.number()..=through.number();
        let sent = |sent: &Sent| sent.seq.lane() == from.lane() && range.contains(&sent.seq.number());
        let flying: Vec<Seq> = self.window.iter().filter(|s| sent(s)).map(|s| s.seq).collect();
        for seq in &flying {
            turn.ask(Action::Discard { from: *seq, through: *seq });
            self.through(turn, *seq);
        }
        let waiting = self.give_up(turn, index, &range, None);
        self.queues.get_mut(index).into_iter().for_each(|queue| queue.expired += waiting + flying.len() as u64);
    }

    /// Takes what waits in this range out for good, and answers for it; how many that were.
    fn give_up(&mut self, turn: &mut Turn, index: usize, range: &RangeInclusive<u64>, refusal: Option<Refusal>) -> u64 {
        let Some(queue) = self.queues.get_mut(index) else { return 0 };
        let mut count = 0;
        for run in queue.take_out(range) {
            let (from, through) = (queue.seq(*run.start()), queue.seq(*run.end()));
            let unkept = queue.unkept_in(&run);
            self.unkept = self.unkept.saturating_sub(unkept.len());
            for number in unkept {
                self.unkept_bytes = self.unkept_bytes.saturating_sub(queue.settle(turn, number, refusal));
            }
            queue.forget_sizes(&run);
            count += run.end() - run.start() + 1;
            turn.ask(Action::Discard { from, through });
        }
        if count > 0 {
            self.release(turn, index);
        }
        count
    }

    /// In flight, and now through, whatever that means.
    fn through(&mut self, turn: &mut Turn, seq: Seq) {
        let Some(place) = self.window.iter().position(|s| s.seq == seq) else { return };
        self.window.remove(place);
        let index = usize::from(seq.lane().0);
        let Some(queue) = self.queues.get_mut(index) else { return };
        queue.in_flight = queue.in_flight.saturating_sub(1);
        let unkept = queue.unkept.len();
        self.unkept_bytes = self.unkept_bytes.saturating_sub(queue.settle(turn, seq.number(), None));
        self.unkept = self.unkept.saturating_sub(unkept - queue.unkept.len());
        self.release(turn, index);
    }

    fn stored(&mut self, turn: &mut Turn, through: Seq) {
        let Some(queue) = self.queues.get_mut(usize::from(through.lane().0)) else { return };
        let unkept = queue.unkept.len();
        self.unkept_bytes = self.unkept_bytes.saturating_sub(queue.stored(turn, through.number()));
        self.unkept = self.unkept.saturating_sub(unkept - queue.unkept.len());
    }

    fn release(&mut self, turn: &mut Turn, index: usize) {
        let own = self.window.iter().map(|s| s.seq).filter(|seq| usize::from(seq.lane().0) == index);
        let oldest = own.map(Seq::number).min();
        self.queues.get_mut(index).into_iter().for_each(|queue| queue.release(turn, oldest));
    }

    fn pump(&mut self, turn: &mut Turn) {
        let Line::Open { attempt, window, .. } = self.line else { return };
        while self.window.len() < window
            && let Some((seq, again)) =
                self.next_lane(window).and_then(|index| self.queues.get_mut(index)?.send_first())
        {
            self.turns += 1;
            self.repeated += u64::from(again);
            self.window.push_back(Sent { seq, at: turn.now, again });
            turn.ask(Action::Transmit { attempt, seq, again });
        }
    }

    /// Whose turn it is: the highest lane that has something to send, now and then a lower one, those of one rank in
    /// turn. The last places of the window are for the highest of all.
    fn next_lane(&self, window: usize) -> Option<usize> {
        let rank = |index: usize| self.rules.get(index).map_or(0, |rules| rules.priority);
        let highest = self.ranking.first().map_or(0, |index| rank(*index));
        let reserve = if window < 4 { 0 } else { (window / RESERVE).max(1) };
        let crowded = self.window.len() + reserve >= window;
        let ready = |index: &usize| {
            let queue = self.queues.get(*index);
            let waits = queue.is_some_and(|q| q.waiting() > 0 && (self.store != Store::Works || !q.is_first_held()));
            waits && !self.is_away(*index) && !(crowded && rank(*index) < highest)
        };
        let mut lanes = self.ranking.iter().copied().filter(ready);
        let first = lanes.next()?;
        let Some(second) = lanes.next() else { return Some(first) };
        let lanes: Vec<usize> = [first, second].into_iter().chain(lanes).collect();
        let equal = lanes.iter().take_while(|index| rank(**index) == rank(first)).count();
        let turn = self.turns as usize;
        let lower = lanes.len() - equal;
        let place = match self.turns % SHARE {
            0 if lower > 0 => equal + (turn / SHARE as usize) % lower,
            _ => turn % equal,
        };
        lanes.get(place).copied()
    }

    fn keep(&mut self, turn: &mut Turn) {
        for index in 0..self.queues.len() {
            if !self.keeps(index) {
                continue;
            }
            let (away, now, patient) = (self.is_away(index), turn.now, self.late);
            let slow_until = self.slow_until;
            let late = |at: Instant| now >= at + patience(at, patient, slow_until);
            let appended = self.append(turn, index, |unkept| away || late(unkept.at));
            if appended > 0 && !away {
                self.slow_until = turn.now + SLOW_KEPT;
            }
        }
    }

    /// Has the store keep what is due, and everything before it and before whatever may not go out otherwise; how many
    /// were due. What lives in memory is kept by being here.
    fn append(&mut self, turn: &mut Turn, index: usize, due: impl Fn(&queue::Unkept) -> bool) -> usize {
        let memory = self.in_memory(index);
        let Some(queue) = self.queues.get_mut(index) else { return 0 };
        let fresh = || queue.unkept.iter().enumerate().skip(queue.appended);
        let late = fresh().take_while(|(_, unkept)| due(unkept)).count();
        if memory {
            let kept: Vec<u64> = queue.unkept.iter().take(late).map(|unkept| unkept.number).collect();
            for number in kept {
                self.unkept_bytes = self.unkept_bytes.saturating_sub(queue.keep_in_memory(turn, number));
                self.unkept = self.unkept.saturating_sub(1);
            }
            return late;
        }
        let exact = fresh().filter(|(_, unkept)| unkept.exact).last().map_or(0, |(place, _)| place + 1);
        let through = exact.max(queue.appended + late);
        for unkept in queue.unkept.range(queue.appended..through) {
            turn.ask(Action::Append { seq: queue.seq(unkept.number) });
        }
        queue.appended = through;
        late
    }

    /// How long a message that came then may wait for the cloud.
    fn patience(&self, at: Instant) -> Duration {
        patience(at, self.late, self.slow_until)
    }
}

fn patience(at: Instant, late: Duration, slow_until: Instant) -> Duration {
    if at < slow_until { late.min(LATE_LEAST) } else { late }
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

    fn restore(runs: &[RangeInclusive<u64>], highest: u64) -> Delivery {
        Delivery::restore(&[LaneRules::default()], &[Unreleased { runs: runs.to_vec(), highest }])
    }

    fn parcel(size: u32) -> Parcel {
        Parcel { size, ..Parcel::default() }
    }

    fn open(delivery: &mut Delivery, at: u64, attempt: Attempt, window: u16) -> Vec<Action> {
        turn(at, |t| {
            delivery.open(attempt, Name::new("eth0").unwrap(), window, t.settings.window);
            delivery.step(t, &Event::DeadlineReached);
        })
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
        let mut delivery = restore(&[3..=4, 9..=9], 12);
        assert_eq!(delivery.status().messages, 3);
        let actions = open(&mut delivery, 0, Attempt(1), 100);
        assert_eq!(sent(&actions), [(3, true), (4, true), (9, true)]);
        let actions = turn(1, |t| delivery.step(t, &Event::Offered { ticket: Ticket(1), parcel: parcel(1) }));
        assert_eq!(actions, [Action::Admit { ticket: Ticket(1), seq: Seq(13) }]);
        let actions = turn(2, |t| delivery.answered(t, &Event::Acked { attempt: Attempt(1), seq: Seq(4) }));
        assert_eq!(actions, []);
        let actions = turn(3, |t| delivery.answered(t, &Event::Acked { attempt: Attempt(1), seq: Seq(3) }));
        assert_eq!(actions, [Action::Release { through: Seq(8) }]);
    }

    #[test]
    fn what_was_in_flight_waits_in_front_again_whatever_was_answered_between() {
        let mut delivery = restore(&[1..=5], 5);
        open(&mut delivery, 0, Attempt(1), 100);
        turn(1, |t| delivery.answered(t, &Event::Acked { attempt: Attempt(1), seq: Seq(2) }));
        delivery.shut();
        assert_eq!(*delivery.queues[0].backlog(), [1..=1, 3..=5]);
        assert_eq!((delivery.queues[0].waiting(), delivery.status().messages), (4, 4));
        let actions = open(&mut delivery, 2, Attempt(2), 2);
        assert_eq!(sent(&actions), [(1, true), (3, true)]);
    }

    #[test]
    fn an_answer_for_another_connection_or_for_nothing_counts_for_nothing() {
        let mut delivery = restore(&[1..=1], 1);
        open(&mut delivery, 0, Attempt(2), 1);
        for event in [
            Event::Acked { attempt: Attempt(1), seq: Seq(1) },
            Event::Acked { attempt: Attempt(2), seq: Seq(7) },
            Event::Rejected { attempt: Attempt(2), seq: Seq(7) },
        ] {
            assert_eq!(turn(1, |t| delivery.answered(t, &event)), []);
        }
        assert_eq!(delivery.work(), 1);
    }

    #[test]
    fn after_one_late_answer_the_next_messages_are_kept_sooner_for_a_while() {
        let mut delivery = restore(&[], 0);
        open(&mut delivery, 0, Attempt(1), 10);
        let offer = |delivery: &mut Delivery, at: u64| {
            turn(at, |t| delivery.step(t, &Event::Offered { ticket: Ticket(at), parcel: parcel(1) }));
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
        let mut delivery = restore(&[], 0);
        let size = u32::try_from(UNKEPT_BYTES_MAX / 2).unwrap_or(u32::MAX);
        let offer = |delivery: &mut Delivery, ticket| {
            turn(ticket, |t| delivery.step(t, &Event::Offered { ticket: Ticket(ticket), parcel: parcel(size) }))
        };
        assert!(offer(&mut delivery, 1).contains(&Action::Append { seq: Seq(1) }));
        assert!(offer(&mut delivery, 2).contains(&Action::Append { seq: Seq(2) }));
        assert_eq!(offer(&mut delivery, 3), [Action::Refuse { ticket: Ticket(3), refusal: Refusal::Full }]);
        let stored = turn(9, |t| delivery.step(t, &Event::Stored { through: Seq(1) }));
        assert_eq!(stored, vec![Action::Accept { ticket: Ticket(1) }]);
        assert!(offer(&mut delivery, 4).contains(&Action::Append { seq: Seq(3) }));
    }
}
