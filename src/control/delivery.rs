//! Messages: admitted, in flight, acknowledged, kept, released, given up.
//!
//! Decides when a message is ours, when and in which order it is sent, when it must be made durable, and when it may be
//! forgotten. An application is told "kept" only when the store or the cloud has the message (R-SF-3), or its lane lives
//! in memory by its own rule; a message is released only after the cloud acknowledged it or its lane's rule gave it up,
//! and the same is true of everything before it in its lane. It moves numbers, never payloads, and its memory is bounded
//! by the window and by what is not yet kept: what waits on disk is a few runs of numbers. What a single lane knows is in
//! `queue`. It is long, because the window, keeping and the choice between lanes are one set of rules.

mod queue;
mod runs;

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::cmp::Reverse;
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
/// How long an application waits for "kept" while neither store nor cloud can keep its message; then it is refused, or
/// what it has open would block it for a week (R-TX-1, R-TX-10).
const KEPT_LIMIT: Duration = Duration::from_secs(30);

/// The store is asked what of a lane is too old at most this often: a look costs it some milliseconds.
const SEEK_EVERY: Duration = Duration::from_secs(1);

/// Of so many messages sent while a higher lane has more, one comes from a lower lane: none is starved.
const SHARE: u64 = 16;
/// This part of the window, and of what may wait for "kept", is for the highest lanes alone: what others have there does
/// not make them wait.
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
    Fails,
}

/// How long a message waits for the cloud before it goes to the store.
#[derive(Clone, Copy, Debug)]
struct Patience {
    late: Duration,
    /// The cloud is late again and again until then: what comes meanwhile need not wait as long to learn it.
    slow_until: Instant,
}

impl Patience {
    /// When a message that came then is late.
    fn ends(self, at: Instant) -> Instant {
        at + if at < self.slow_until { self.late.min(LATE_LEAST) } else { self.late }
    }
}

/// The state of all messages.
#[derive(Debug)]
pub struct Delivery {
    line: Line,
    store: Store,
    patience: Patience,
    /// In the order of the rules.
    queues: Vec<Queue>,
    /// The priority of the highest.
    highest: u8,
    /// In flight, in the order of sending.
    window: VecDeque<Sent>,
    /// When the latest of those was sent whose answer has come: what went out before has arrived.
    arrived: Instant,
    /// Messages sent that may have been sent before.
    repeated: u64,
    /// Messages sent at all.
    turns: u64,
    /// Messages sent since one of a lower lane was passed over and none has had its turn.
    overtakes: u64,
}

impl Delivery {
    /// Starts with what the store found in each lane.
    pub fn restore(rules: &[LaneRules], found: &[Unreleased]) -> Delivery {
        let (fallback, nothing) = ([LaneRules::default()], Unreleased::default());
        let rules = if rules.is_empty() { &fallback } else { rules };
        let lane = |(index, rules): (usize, &LaneRules)| {
            Queue::restore(Lane(index as u8), rules.clone(), found.get(index).unwrap_or(&nothing))
        };
        let queues: Vec<Queue> = rules.iter().take(LANES_MAX).enumerate().map(lane).collect();
        Delivery {
            line: Line::Shut,
            store: Store::Works,
            patience: Patience { late: LATE_MOST, slow_until: Instant::default() },
            highest: queues.iter().map(|queue| queue.rules.priority).max().unwrap_or(0),
            queues,
            window: VecDeque::new(),
            arrived: Instant::default(),
            repeated: 0,
            turns: 0,
            overtakes: 0,
        }
    }

    /// How many messages in flight this event settles.
    pub fn settles(&self, event: &Event) -> usize {
        match event {
            Event::Acked { attempt, seq } | Event::Completed { attempt, seq } | Event::Rejected { attempt, seq } => {
                usize::from(self.awaits(*attempt, *seq))
            }
            Event::Expired { attempt: Some(attempt), from, through } => self.awaited(*attempt, *from, *through).count(),
            _ => 0,
        }
    }

    /// Takes an answer of the server in, before anything becomes of its connection: an answer that ends the waiting for
    /// a move or a farewell counts all the same.
    pub fn answered(&mut self, turn: &mut Turn, event: &Event) {
        match event {
            Event::Acked { attempt, seq } => self.through(turn, *attempt, *seq, true, Queue::through),
            Event::Completed { attempt, seq } => self.through(turn, *attempt, *seq, false, Queue::through),
            Event::Rejected { attempt, seq } => {
                self.through(turn, *attempt, *seq, true, |queue, turn, number, in_flight| {
                    queue.rejected += 1;
                    turn.ask(Action::SetAside { seq: queue.seq(number) });
                    queue.through(turn, number, in_flight);
                });
            }
            Event::Expired { attempt: Some(attempt), from, through } => {
                let unsent: Vec<Seq> = self.awaited(*attempt, *from, *through).collect();
                for seq in unsent {
                    self.through(turn, *attempt, seq, false, Queue::expire_in_flight);
                }
            }
            _ => {}
        }
    }

    /// Takes the event in.
    pub fn step(&mut self, turn: &mut Turn, event: &Event) {
        match event {
            Event::Offered { ticket, parcel } => self.offered(turn, *ticket, *parcel),
            Event::Stored { through } => {
                self.queue(through.lane()).into_iter().for_each(|queue| queue.stored(turn, through.number()));
            }
            Event::StorageFailed { full: _ } => self.store = Store::Fails,
            Event::StorageHealed => {
                self.store = Store::Works;
                self.queues.iter_mut().for_each(Queue::append_anew);
            }
            // What is in flight was sent, whatever its age by now.
            Event::Expired { attempt: _, from, through } => {
                let in_flight = self.oldest_in_flight(from.lane());
                if let Some(queue) = self.queue(from.lane()) {
                    queue.expire(turn, &(from.number()..=through.number()), in_flight);
                }
            }
            Event::LaneFull { through } => {
                self.queue(through.lane()).into_iter().for_each(|queue| queue.full = Some(through.number()));
            }
            Event::LaneRoomy { lane } => self.queue(*lane).into_iter().for_each(|queue| queue.full = None),
            Event::Recovered { lane, runs, highest } => {
                self.queue(*lane).into_iter().for_each(|queue| queue.recovered(turn, runs, *highest));
            }
            Event::Asked(Command::Drop { request, lane }) => {
                let lanes = (0..self.queues.len()).map(|index| Lane(index as u8));
                lanes.filter(|own| lane.is_none_or(|lane| lane == *own)).for_each(|own| {
                    self.drop_waiting(turn, own, NUMBER_MAX);
                });
                turn.ask(Action::Answer { request: *request, outcome: Outcome::Done });
            }
            _ => {}
        }
        self.make_room(turn);
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

    /// No session any more: what was in flight waits again, where it stood.
    pub fn shut(&mut self) {
        self.line = Line::Shut;
        self.arrived = Instant::default();
        for Sent { seq, .. } in self.window.drain(..) {
            if let Some(queue) = self.queues.get_mut(usize::from(seq.lane().0)) {
                queue.unsend(seq.number());
            }
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
        self.queues.iter_mut().for_each(|queue| queue.carried = carried(&queue.rules));
    }

    /// How long the cloud may take before a message goes to the store, from the session's round trip.
    pub fn set_late(&mut self, configured: Option<Duration>, round_trip: Option<Duration>) {
        let auto = round_trip.map_or(LATE_MOST, |r| r.saturating_mul(2).clamp(LATE_LEAST, LATE_MOST));
        self.patience.late = configured.unwrap_or(auto);
    }

    /// Everything that is not kept goes to the store now: the daemon is stopping.
    pub fn keep_all(&mut self, turn: &mut Turn) {
        for queue in &mut self.queues {
            if queue.in_memory() {
                queue.keep_in_memory(turn, |_| true)
            } else {
                queue.append(turn, |_| true)
            };
        }
    }

    /// Whether an answer for this message on this connection counts: it is in flight there.
    pub fn awaits(&self, attempt: Attempt, seq: Seq) -> bool {
        self.awaited(attempt, seq, seq).next().is_some()
    }

    /// When the oldest message in flight on this connection that was sent after this moment was sent.
    pub fn oldest_sent(&self, attempt: Attempt, after: Instant) -> Option<Instant> {
        if !self.on_line(attempt) {
            return None;
        }
        self.window.iter().map(|s| s.at).find(|at| *at > after)
    }

    /// Everything that went out before this moment has arrived: what went out later was answered.
    pub fn has_arrived(&self, attempt: Attempt, before: Instant) -> bool {
        self.on_line(attempt) && self.arrived > before
    }

    /// The round trip that an acknowledgement of `seq` would show now; none for a message sent twice (Karn).
    pub fn sample(&self, now: Instant, attempt: Attempt, seq: Seq) -> Option<Duration> {
        self.window.iter().find(|s| s.seq == seq && !s.again && self.on_line(attempt)).map(|s| now.since(s.at))
    }

    /// Messages in flight, and those that could be.
    pub fn work(&self) -> usize {
        let waiting = self.queues.iter().filter(|queue| queue.carried).map(Queue::waiting).sum::<u64>();
        usize::try_from(waiting).unwrap_or(usize::MAX).saturating_add(self.window.len())
    }

    /// Where each lane stands: what is admitted from now on lies behind it.
    pub fn marks(&self) -> Vec<u64> {
        self.queues.iter().map(Queue::next).collect()
    }

    /// Whether everything before these marks is through.
    pub fn is_through(&self, marks: &[u64]) -> bool {
        self.queues.iter().zip(marks).all(|(queue, mark)| queue.released_below() >= *mark)
    }

    /// When a message is next late, or waits in vain.
    pub fn deadline(&self) -> Option<Instant> {
        let next = |queue: &Queue| {
            let fresh = queue.fresh_since().filter(|_| self.keeps(queue) && !self.is_away(queue));
            self.in_vain_from(queue).or(fresh.map(|at| self.patience.ends(at)))
        };
        self.queues.iter().filter_map(next).min()
    }

    /// The numbers for displays.
    pub fn status(&self) -> DeliveryStatus {
        let sum = |count: fn(&Queue) -> u64| self.queues.iter().map(count).sum();
        DeliveryStatus {
            messages: sum(Queue::held),
            in_flight: self.window.len() as u32,
            refused: sum(|queue| queue.refused),
            rejected: sum(|queue| queue.rejected),
            dropped: sum(Queue::dropped),
            expired: sum(Queue::expired),
            repeated: self.repeated,
        }
    }

    /// The same for each lane.
    pub fn lanes(&self) -> Vec<LaneStatus> {
        self.queues.iter().map(Queue::status).collect()
    }

    fn on_line(&self, attempt: Attempt) -> bool {
        self.line.attempt() == Some(attempt)
    }

    fn queue(&mut self, lane: Lane) -> Option<&mut Queue> {
        self.queues.get_mut(usize::from(lane.0))
    }

    /// What is in flight on this connection between these two of one lane.
    fn awaited(&self, attempt: Attempt, from: Seq, through: Seq) -> impl Iterator<Item = Seq> {
        let window = self.window.iter().filter(move |_| self.on_line(attempt));
        window.map(|sent| sent.seq).filter(move |seq| (from..=through).contains(seq))
    }

    fn oldest_in_flight(&self, lane: Lane) -> Option<u64> {
        self.window.iter().map(|sent| sent.seq).filter(|seq| seq.lane() == lane).map(Seq::number).min()
    }

    /// Nothing of this lane can go out now.
    fn is_away(&self, queue: &Queue) -> bool {
        self.line == Line::Shut || !queue.carried
    }

    /// Memory keeps what its lane admits; a disk only while it works.
    fn keeps(&self, queue: &Queue) -> bool {
        queue.in_memory() || self.store == Store::Works
    }

    /// Neither the cloud nor the store will keep what comes now (R-SF-11).
    fn is_stuck(&self, queue: &Queue) -> bool {
        let full = queue.full.is_some() && queue.rules.overflow != Overflow::DropOldest;
        self.is_away(queue) && (full || !self.keeps(queue))
    }

    /// When what waits for "kept" in such a lane has waited long enough; what is in flight the cloud may still keep.
    fn in_vain_from(&self, queue: &Queue) -> Option<Instant> {
        let stuck = self.is_stuck(queue) && queue.in_flight() == 0;
        queue.unkept_since().filter(|_| stuck).map(|at| at + KEPT_LIMIT)
    }

    fn offered(&mut self, turn: &mut Turn, ticket: Ticket, parcel: Parcel) {
        let lane = if usize::from(parcel.lane.0) < self.queues.len() { parcel.lane } else { Lane(0) };
        let verdict = self.room_for(turn, lane, parcel);
        let Some(queue) = self.queue(lane) else { return };
        match verdict {
            Ok(()) => queue.admit(turn, ticket, parcel),
            Err(refusal) => queue.refuse(turn, ticket, refusal),
        }
    }

    /// Whether one more is taken, where necessary for an older one.
    fn room_for(&mut self, turn: &mut Turn, lane: Lane, parcel: Parcel) -> Result<(), Refusal> {
        let Some(queue) = self.queues.get(usize::from(lane.0)) else { return Err(Refusal::Full) };
        if parcel.online_only && self.line == Line::Shut {
            return Err(Refusal::NotConnected);
        }
        if self.is_crowded(queue) || !self.keeps(queue) && self.is_stuck(queue) {
            return Err(Refusal::Full);
        }
        if self.is_stuck(queue) {
            return Err(queue.no_room());
        }
        match queue.room_behind(parcel.size) {
            Some(0) => Ok(()),
            Some(through) if queue.rules.overflow == Overflow::DropOldest => {
                self.drop_waiting(turn, lane, through);
                Ok(())
            }
            Some(_) | None => {
                let refusal = queue.no_room();
                self.find_expired(turn, lane);
                Err(refusal)
            }
        }
    }

    /// One was turned away: what nobody wants any more must not stand in the way of the next. Of what lives in memory the age
    /// is looked at when it is sent.
    fn find_expired(&mut self, turn: &mut Turn, lane: Lane) {
        let Some(queue) = self.queue(lane).filter(|queue| !queue.in_memory()) else { return };
        if queue.sought.is_none_or(|at| turn.now.since(at) >= SEEK_EVERY) {
            queue.sought = Some(turn.now);
            turn.ask(Action::FindExpired { lane });
        }
    }

    /// So much waits for "kept" that no more of this lane is taken.
    fn is_crowded(&self, queue: &Queue) -> bool {
        let all = self.queues.iter().map(Queue::unkept);
        let (messages, bytes) = all.fold((0, 0), |(m, b), (messages, bytes)| (m + messages, b + bytes));
        let parts = if queue.rules.priority == self.highest { RESERVE } else { RESERVE - 1 };
        messages >= UNKEPT_MAX / RESERVE * parts || bytes >= UNKEPT_BYTES_MAX / RESERVE as u64 * parts as u64
    }

    /// Gives up what waits up to this number.
    fn drop_waiting(&mut self, turn: &mut Turn, lane: Lane, through: u64) {
        let in_flight = self.oldest_in_flight(lane);
        self.queue(lane).into_iter().for_each(|queue| queue.drop_waiting(turn, &(0..=through), in_flight));
    }

    /// Drops the oldest of lanes that have reached their size on disk, also what was still in flight when they did.
    fn make_room(&mut self, turn: &mut Turn) {
        for index in 0..self.queues.len() {
            let Some(queue) = self.queues.get(index) else { continue };
            let through = queue.full.filter(|_| queue.rules.overflow == Overflow::DropOldest);
            if let Some(through) = through.filter(|through| queue.first().is_some_and(|first| first <= *through)) {
                self.drop_waiting(turn, Lane(index as u8), through);
            }
        }
    }

    /// In flight there, and now settled in this way. An answer of the server also says that it arrived.
    fn through(
        &mut self,
        turn: &mut Turn,
        attempt: Attempt,
        seq: Seq,
        answer: bool,
        settle: impl FnOnce(&mut Queue, &mut Turn, u64, Option<u64>),
    ) {
        if !self.on_line(attempt) {
            return;
        }
        let Some(sent) = self.window.iter().position(|s| s.seq == seq).and_then(|place| self.window.remove(place))
        else {
            return;
        };
        if answer {
            self.arrived = self.arrived.max(sent.at);
        }
        let in_flight = self.oldest_in_flight(seq.lane());
        if let Some(queue) = self.queue(seq.lane()) {
            settle(queue, turn, seq.number(), in_flight);
        }
    }

    fn pump(&mut self, turn: &mut Turn) {
        let Line::Open { attempt, window, .. } = self.line else { return };
        while self.window.len() < window
            && let Some((index, passed_over)) = self.next_lane(window)
            && let Some(queue) = self.queues.get_mut(index)
            && let Some((seq, again)) = queue.send_first()
        {
            self.turns += 1;
            queue.served = self.turns;
            self.overtakes = if passed_over { self.overtakes + 1 } else { 0 };
            self.repeated += u64::from(again);
            self.window.push_back(Sent { seq, at: turn.now, again });
            turn.ask(Action::Transmit { attempt, seq, again });
        }
    }

    /// Whose turn it is, and whether lower ones are passed over: the highest lane that has something to send, now and then a
    /// lower one; of several the one that has waited longest. Part of the window is for the highest of all.
    fn next_lane(&self, window: usize) -> Option<(usize, bool)> {
        let reserve = if window < 4 { 0 } else { (window / RESERVE).max(1) };
        let others = self.queues.iter().filter(|queue| queue.rules.priority < self.highest);
        let crowded = others.map(Queue::in_flight).sum::<u64>() as usize + reserve >= window;
        let ready = |queue: &Queue| {
            let may = queue.rules.priority == self.highest || !crowded;
            let held = self.store == Store::Works && queue.is_first_exact();
            may && queue.waiting() > 0 && !self.is_away(queue) && !held
        };
        let ready = || self.queues.iter().enumerate().filter(|(_, queue)| ready(queue));
        let (first, queue) = ready().min_by_key(|(_, queue)| (Reverse(queue.rules.priority), queue.served))?;
        let lower = ready().filter(|(_, lower)| lower.rules.priority < queue.rules.priority);
        match lower.min_by_key(|(_, queue)| queue.served) {
            Some((lower, _)) if self.overtakes + 1 >= SHARE => Some((lower, false)),
            lower => Some((first, lower.is_some())),
        }
    }

    /// What the cloud has not acknowledged in time goes to the store; what lives in memory is kept by being here.
    fn keep(&mut self, turn: &mut Turn) {
        for index in 0..self.queues.len() {
            let Some(queue) = self.queues.get(index) else { continue };
            let (away, patience, now) = (self.is_away(queue), self.patience, turn.now);
            let (keeps, in_vain) = (self.keeps(queue), self.in_vain_from(queue).is_some_and(|from| now >= from));
            let Some(queue) = self.queues.get_mut(index) else { continue };
            let due = |at: Instant| away || now >= patience.ends(at);
            let late = match (queue.in_memory(), keeps) {
                (true, _) => queue.keep_in_memory(turn, due),
                (false, true) => queue.append(turn, due),
                (false, false) => 0,
            };
            if late > 0 && !away {
                self.patience.slow_until = now + SLOW_KEPT;
            }
            if in_vain {
                let refusal = if keeps { queue.no_room() } else { Refusal::Full };
                queue.refuse_unkept(turn, now.before(KEPT_LIMIT), refusal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backoff::Dice;
    use crate::settings::Settings;
    use alloc::vec;
    use core::ops::RangeInclusive;

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
        assert_eq!(*delivery.queues[0].runs(), [1..=1, 3..=5]);
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
    fn a_lane_with_all_it_may_have_is_searched_for_what_is_too_old_once_a_second() {
        let rules = LaneRules { max_messages: 2, ..LaneRules::default() };
        let mut delivery = Delivery::restore(&[rules], &[Unreleased { runs: vec![1..=2], highest: 2 }]);
        let mut offer =
            |at: u64| turn(at, |t| delivery.step(t, &Event::Offered { ticket: Ticket(at), parcel: parcel(1) }));
        let refused = |at| Action::Refuse { ticket: Ticket(at), refusal: Refusal::Full };
        let search = Action::FindExpired { lane: Lane(0) };
        assert_eq!(offer(5_000), [search.clone(), refused(5_000)]);
        assert_eq!(offer(5_999), [refused(5_999)]);
        assert_eq!(offer(6_000), [search, refused(6_000)]);
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
