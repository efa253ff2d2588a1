//! Which of the messages that may be sent is written next.
//!
//! The heart chooses what goes out on this connection; what it has chosen may stand here for seconds, because the uplink
//! is slow, and what is urgent must not stand behind the rest. Of what waits, the lane with the highest priority goes
//! first, those of one priority as they came. Always true: the order within a lane is kept, and no lane waits for ever
//! behind a busier one. Bounded by the heart's window.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use switchback_control::{Lane, LaneRules, Seq};
use tokio::time::Instant;

/// Of so many messages in a row that overtake others, the next one does not.
const SHARE: u32 = 16;

#[derive(Debug, Default)]
pub struct Queue {
    lanes: BTreeMap<Lane, Waiters>,
    arrivals: u64,
    /// Messages in a row that went out before an older one.
    overtaken: u32,
}

#[derive(Debug, Default)]
struct Waiters {
    priority: u8,
    waiting: VecDeque<Order>,
    /// What its first message lacks, or those before it.
    lacks: BTreeSet<Lack>,
}

/// What a lane waits for while others go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lack {
    /// An identifier of QoS 2.
    Identifier,
    /// Its body, which is read from the disk.
    Body,
    /// That the messages before it are pledged.
    Pledge,
}

/// A message that may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    pub seq: Seq,
    /// It may have been sent before.
    pub again: bool,
    /// When it was ordered.
    pub since: Instant,
    arrival: u64,
}

impl Queue {
    pub fn new(rules: &[LaneRules]) -> Queue {
        let waiters = |rules: &LaneRules| Waiters { priority: rules.priority, ..Waiters::default() };
        let lanes = (0..).map(Lane).zip(rules.iter().map(waiters));
        Queue { lanes: lanes.collect(), ..Queue::default() }
    }

    pub fn push(&mut self, seq: Seq, again: bool, since: Instant) {
        self.arrivals += 1;
        let order = Order { seq, again, since, arrival: self.arrivals };
        self.lane(seq.lane()).waiting.push_back(order);
    }

    /// What is written next.
    pub fn take(&mut self) -> Option<Order> {
        let fronts = || {
            let free = self.lanes.iter().filter(|(_, lane)| lane.lacks.is_empty());
            free.filter_map(|(lane, of)| of.waiting.front().map(|order| (*lane, of.priority, order.arrival)))
        };
        let (oldest, ..) = fronts().min_by_key(|(.., arrival)| *arrival)?;
        let (highest, ..) = fronts().min_by_key(|(_, priority, arrival)| (u8::MAX - priority, *arrival))?;
        let overtakes = highest != oldest && self.overtaken < SHARE;
        self.overtaken = if overtakes { self.overtaken + 1 } else { 0 };
        self.lanes.get_mut(if overtakes { &highest } else { &oldest })?.waiting.pop_front()
    }

    /// The first of any lane that satisfies, wherever it stands.
    pub fn take_out(&mut self, wanted: impl Fn(Seq) -> bool) -> Option<Order> {
        self.lanes.values_mut().filter(|lane| lane.lacks.is_empty()).find_map(|lane| {
            let place = lane.waiting.iter().position(|order| wanted(order.seq))?;
            lane.waiting.remove(place)
        })
    }

    /// It could not be written after all, and is the first of its lane again.
    pub fn put_back(&mut self, order: Order) {
        self.lane(order.seq.lane()).waiting.push_front(order);
    }

    /// It was written, and the server would not have it: it goes before those of its lane that came behind it.
    pub fn again(&mut self, seq: Seq, now: Instant) {
        let waiting = &mut self.lane(seq.lane()).waiting;
        let place = waiting.partition_point(|order| order.seq < seq);
        waiting.insert(place, Order { seq, again: false, since: now, arrival: 0 });
    }

    /// Nothing of this lane goes out before it has what it lacks.
    pub fn hold(&mut self, lane: Lane, lack: Lack) {
        self.lane(lane).lacks.insert(lack);
    }

    pub fn resume(&mut self, lane: Lane, lack: Lack) {
        self.lane(lane).lacks.remove(&lack);
    }

    /// Any lane that lacked this may have it now.
    pub fn resume_all(&mut self, lack: Lack) {
        for lane in self.lanes.values_mut() {
            lane.lacks.remove(&lack);
        }
    }

    /// Whether a lane waits for the disk.
    pub fn wants_disk(&self) -> bool {
        let disk = |lane: &Waiters| lane.lacks.contains(&Lack::Body) || lane.lacks.contains(&Lack::Pledge);
        self.lanes.values().any(disk)
    }

    /// What of this lane goes out next, in order.
    pub fn upcoming(&self, lane: Lane) -> impl Iterator<Item = Seq> {
        self.lanes.get(&lane).into_iter().flat_map(|lane| &lane.waiting).map(|order| order.seq)
    }

    pub fn len(&self) -> usize {
        self.lanes.values().map(|lane| lane.waiting.len()).sum()
    }

    /// Since when the longest has waited.
    pub fn oldest(&self) -> Option<Instant> {
        self.lanes.values().filter_map(|lane| lane.waiting.front()).map(|order| order.since).min()
    }

    /// A lane that no rule names goes last.
    fn lane(&mut self, lane: Lane) -> &mut Waiters {
        self.lanes.entry(lane).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> Queue {
        Queue::new(&[5, 9, 2, 5].map(|priority| LaneRules { priority, ..LaneRules::default() }))
    }

    fn push(queue: &mut Queue, lane: u8, numbers: std::ops::Range<u64>) {
        numbers.for_each(|number| queue.push(Seq::new(Lane(lane), number), false, Instant::now()));
    }

    fn take(queue: &mut Queue) -> Option<(u8, u64)> {
        queue.take().map(|order| (order.seq.lane().0, order.seq.number()))
    }

    #[test]
    fn a_critical_message_goes_before_all_that_wait() {
        let mut queue = queue();
        push(&mut queue, 2, 0..200);
        push(&mut queue, 1, 0..1);
        assert_eq!(take(&mut queue), Some((1, 0)));
        assert_eq!(take(&mut queue), Some((2, 0)));
        assert_eq!((take(&mut queue), queue.len()), (Some((2, 1)), 198));
    }

    #[test]
    fn lanes_of_one_priority_go_as_they_came() {
        let mut queue = queue();
        push(&mut queue, 3, 0..2);
        push(&mut queue, 0, 0..1);
        push(&mut queue, 3, 2..3);
        let all: Vec<_> = std::iter::from_fn(|| take(&mut queue)).collect();
        assert_eq!(all, [(3, 0), (3, 1), (0, 0), (3, 2)]);
    }

    #[test]
    fn a_lane_that_never_ends_starves_nobody_and_what_comes_now_and_then_is_never_late() {
        let mut queue = queue();
        push(&mut queue, 2, 0..10);
        push(&mut queue, 1, 0..100);
        let first: Vec<_> = (0..34).filter_map(|_| take(&mut queue)).filter(|(lane, _)| *lane == 2).collect();
        assert_eq!(first, [(2, 0), (2, 1)]);
        let mut queue = self::queue();
        push(&mut queue, 2, 0..200);
        for number in 0..100 {
            push(&mut queue, 1, number..number + 1);
            assert_eq!(take(&mut queue), Some((1, number)));
            assert_eq!(take(&mut queue), Some((2, number)));
        }
    }

    #[test]
    fn what_is_put_back_comes_first_and_a_held_lane_waits() {
        let mut queue = queue();
        push(&mut queue, 0, 0..2);
        push(&mut queue, 2, 0..1);
        let order = queue.take().unwrap();
        queue.put_back(order);
        queue.hold(Lane(0), Lack::Body);
        queue.hold(Lane(0), Lack::Pledge);
        assert_eq!((take(&mut queue), take(&mut queue)), (Some((2, 0)), None));
        queue.resume_all(Lack::Body);
        assert_eq!((take(&mut queue), queue.wants_disk()), (None, true));
        queue.resume(Lane(0), Lack::Pledge);
        assert_eq!((take(&mut queue), take(&mut queue)), (Some((0, 0)), Some((0, 1))));
    }

    #[test]
    fn a_lane_without_a_rule_goes_last() {
        let mut queue = queue();
        push(&mut queue, 200, 0..1);
        push(&mut queue, 2, 0..1);
        assert_eq!((take(&mut queue), take(&mut queue)), (Some((2, 0)), Some((200, 0))));
    }
}
