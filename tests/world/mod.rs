//! A rough world around the heart: interfaces, NetworkManager, paths, a cloud, a store, people, faults, and a clock.
//!
//! One `World` is one gateway for some hours. Everything in it happens in the order of (time, number), and every
//! choice comes from the seed, so a run replays to the bit. The world is rougher than the configuration: each of
//! its delays sometimes exceeds the deadline that guards it, so answers come late, stale or never. Events go
//! through one channel, as in the daemon: what an adapter reported before it was told to stop is still delivered.
//! After every step `oracle` holds the heart to the invariants of the design.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use switchback_control::status::State;
use switchback_control::{Action, Attempt, Control, Event, Failback, Instant, LaneRules, Mode, Name, Notice, Saved};

use crate::story::{self, Heading};

pub mod cloud;
pub mod faults;
pub mod messages;
pub mod network;
pub mod oracle;
pub mod people;
pub mod plan;
pub mod store;

use cloud::{Broker, Conn, Down, Up};
use network::{Manager, Net};
use oracle::Oracle;
use people::People;
use plan::{Plan, Profile};
use store::{Body, Store};

/// Random numbers of the world (splitmix64): other than the heart's own dice.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    /// From `low` to `high`, evenly on a logarithmic scale: short ones are as likely as long ones.
    pub fn spread(&mut self, low: u64, high: u64) -> u64 {
        let (l, h) = ((low.max(1) as f64).ln(), (high.max(1) as f64).ln());
        let unit = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        (l + (h - l) * unit).exp().round() as u64
    }

    /// True so many times in a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.next() % 1000 < per_mille
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[(self.next() % of.len() as u64) as usize]
    }
}

/// What happens in the world at some moment.
#[derive(Clone, Debug)]
pub enum What {
    /// An adapter of this life of the daemon puts an event into the channel.
    Emit(u32, Event),
    /// An adapter performs an action.
    Perform(u32, Action),
    /// The loop goes on after it stood still.
    Wake,
    Start,
    Network(network::Change),
    ArriveUp(u64, Up),
    ArriveDown(u64, Down),
    Retry(u64, bool),
    KernelAcks(u64, u64, u32),
    KernelAcked(u64, u64),
    Broker(cloud::Change),
    DialLimit(u64, u8),
    Sweep,
    Ack(u64, u64),
    Sync(u32),
    StoreHeals,
    LookForExpired,
    People(people::Change),
    Fault,
    Flap(usize),
    Undo(faults::Undo),
}

struct Entry {
    at: u64,
    number: u64,
    what: What,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// Where an event comes from: within one source the order is kept.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    Kernel,
    NetworkManager,
    Cloud,
    Store,
    Local,
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub hours: f64,
    pub steps: u64,
    pub faults: u64,
    pub dials: u64,
    pub sessions: u64,
    pub accepted: u64,
    pub arrived: u64,
    pub again: u64,
    pub refused: u64,
    pub moves: u64,
    pub online_ms: u64,
    /// Of a `Profile::Rate`: when the lossy path was left for another, when its session was lost otherwise, and every
    /// silence while an answer was owed.
    pub left: Vec<u64>,
    pub dropped: Vec<u64>,
    pub silences: Vec<u32>,
}

pub struct World {
    pub plan: Plan,
    pub dice: Dice,
    /// For what is drawn of messages and lanes: the rest of the world is the same with and without them.
    pub lots: Dice,
    pub now: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    numbers: u64,
    control: Option<Control>,
    life: u32,
    channel: VecDeque<Event>,
    busy_until: u64,
    performed: u64,
    dialled: u64,
    /// The latest CONNECT, and when the adapter gets round to it.
    connects: (Attempt, u64),
    told: [u64; 5],
    saved: Saved,
    last_attempt: u64,
    /// The highest number given out in each lane.
    highest: Vec<u64>,
    /// What has to be had of every message that is not released.
    pub bodies: BTreeMap<u64, Body>,
    pub nets: Vec<Net>,
    pub manager: Manager,
    pub conns: BTreeMap<u64, Conn>,
    pub broker: Broker,
    pub store: Store,
    pub people: People,
    pub oracle: Oracle,
    pub calm: bool,
    pub summary: Summary,
    journal: Option<Vec<String>>,
}

/// Happenings in one millisecond, at most.
const AT_ONCE_MAX: u32 = 100_000;
/// Lines of journal kept when a run is recorded.
const JOURNAL_MAX: usize = 2_000_000;

impl World {
    pub fn new(plan: Plan, record: bool) -> World {
        let mut dice = Dice::new(plan.seed);
        let nets = network::nets(&plan, &mut dice);
        let mut world = World {
            oracle: Oracle::new(&plan),
            broker: Broker::new(&plan, &mut dice),
            dice,
            now: 1000,
            queue: BinaryHeap::new(),
            numbers: 0,
            control: None,
            life: 0,
            channel: VecDeque::new(),
            busy_until: 0,
            performed: 0,
            dialled: 0,
            connects: (Attempt(0), 0),
            told: [0; 5],
            saved: Saved::default(),
            last_attempt: 0,
            highest: vec![0; plan.settings.lanes.len()],
            bodies: BTreeMap::new(),
            lots: Dice::new(plan.seed ^ 0x6c6f_7473),
            nets,
            manager: Manager::default(),
            conns: BTreeMap::new(),
            store: Store::new(&plan.limits),
            people: People::default(),
            calm: false,
            summary: Summary::default(),
            journal: record.then(Vec::new),
            plan,
        };
        world.note(|w| {
            let heading = Heading { settings: w.plan.settings.clone(), messages: true, highest: 0, seed: w.plan.seed };
            format!("# seed {} profile {:?}\n{}", w.plan.seed, w.plan.profile, story::heading_text(&heading))
        });
        world.start_network();
        world.after(0, What::Start);
        world.after(10_000, What::Sweep);
        world.start_people();
        world.start_faults();
        if world.plan.has_lanes {
            world.after(60_000, What::LookForExpired);
        }
        world
    }

    /// Rough hours, then calm ones, then the account.
    pub fn run(&mut self) -> Summary {
        let rough = self.plan.rough_ms;
        let calm = self.plan.calm_ms;
        self.run_until(1000 + rough);
        self.become_calm();
        self.run_until(1000 + rough + calm);
        self.final_account();
        self.summary.hours = (rough + calm) as f64 / 3_600_000.0;
        self.summary.clone()
    }

    /// The rough hours alone, without an account at the end: for what is only counted.
    pub fn run_rough(&mut self) -> Summary {
        self.run_until(1000 + self.plan.rough_ms);
        self.summary.hours = self.plan.rough_ms as f64 / 3_600_000.0;
        self.summary.clone()
    }

    pub fn after(&mut self, delay: u64, what: What) {
        self.at(self.now + delay, what);
    }

    pub fn at(&mut self, at: u64, what: What) {
        self.numbers += 1;
        self.queue.push(Reverse(Entry { at, number: self.numbers, what }));
    }

    /// An adapter reports, after a while; within one source in order.
    pub fn tell(&mut self, source: Source, delay: u64, event: Event) {
        let at = self.told[source as usize].max(self.now + delay);
        self.told[source as usize] = at;
        let life = self.life;
        self.at(at, What::Emit(life, event));
    }

    /// The daemon runs.
    pub fn running(&self) -> bool {
        self.control.is_some()
    }

    pub fn control(&self) -> Option<&Control> {
        self.control.as_ref()
    }

    pub fn life(&self) -> u32 {
        self.life
    }

    fn run_until(&mut self, end: u64) {
        let (mut at_once, mut before) = (0, 0);
        loop {
            at_once = if self.now == before { at_once + 1 } else { 0 };
            before = self.now;
            if at_once > AT_ONCE_MAX {
                self.broken("time does not go on");
            }
            let next = self.queue.peek().map_or(u64::MAX, |Reverse(e)| e.at);
            let deadline = self.deadline().unwrap_or(u64::MAX);
            if next.min(deadline) > end {
                self.now = end;
                return;
            }
            if deadline < next {
                self.now = deadline;
                self.step(Event::DeadlineReached);
                continue;
            }
            let Some(Reverse(entry)) = self.queue.pop() else { return };
            self.now = self.now.max(entry.at);
            self.happen(entry.what);
        }
    }

    /// When the loop will serve the heart's deadline.
    fn deadline(&self) -> Option<u64> {
        let control = self.control.as_ref()?;
        // While the loop stands still it serves nothing; `Wake` comes then.
        (self.busy_until <= self.now).then(|| control.next_deadline())?.map(|at| at.as_millis().max(self.now))
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Emit(life, event) if life == self.life => {
                self.channel.push_back(event);
                self.drain();
            }
            What::Perform(life, action) if life == self.life => self.perform(action),
            What::Emit(..) | What::Perform(..) => {}
            What::Wake => self.wake(),
            What::Start => self.start(),
            What::Network(change) => self.network(change),
            What::ArriveUp(conn, packet) => self.arrive_up(conn, packet),
            What::ArriveDown(conn, packet) => self.arrive_down(conn, packet),
            What::Retry(conn, up) => self.retry(conn, up),
            What::KernelAcks(id, arrived, tries) => self.kernel_acks(id, arrived, tries),
            What::KernelAcked(id, arrived) => self.kernel_acked(id, arrived),
            What::Broker(change) => self.broker(change),
            What::DialLimit(conn, kind) => self.dial_limit(conn, kind),
            What::Sweep => self.sweep(),
            What::Ack(conn, seq) => self.ack(conn, seq),
            What::Sync(life) => self.sync(life),
            What::StoreHeals => self.store_heals(),
            What::LookForExpired => self.look_for_expired(),
            What::People(change) => self.people(change),
            What::Fault => self.fault(),
            What::Flap(net) => self.flap(net),
            What::Undo(undo) => self.undo(undo),
        }
    }

    fn drain(&mut self) {
        while self.busy_until <= self.now
            && self.control.is_some()
            && let Some(event) = self.channel.pop_front()
        {
            self.step(event);
        }
    }

    /// The loop stands still for a while: nothing is served, everything waits.
    pub fn stall(&mut self, length: u64) {
        self.busy_until = self.busy_until.max(self.now + length);
        self.oracle.stalled(self.now, self.busy_until);
        self.at(self.busy_until, What::Wake);
    }

    fn wake(&mut self) {
        if self.busy_until > self.now {
            return;
        }
        // Which of the two the loop sees first is chance.
        let due = self.control.as_ref().and_then(|c| c.next_deadline()).is_some_and(|at| at.as_millis() <= self.now);
        if due && self.dice.chance(500) {
            self.step(Event::DeadlineReached);
        }
        self.drain();
    }

    fn start(&mut self) {
        if self.control.is_some() {
            return;
        }
        self.life += 1;
        self.channel.clear();
        self.told = [self.now; 5];
        self.performed = self.now;
        self.dialled = self.now;
        let unreleased = self.store.found(&self.highest);
        let first = self.last_attempt + self.dice.between(0, 3);
        let control = Control::restore(
            self.plan.settings.clone(),
            self.saved.clone(),
            &unreleased,
            first,
            self.plan.seed ^ u64::from(self.life),
            Instant::from_millis(self.now),
        );
        self.note(|w| format!("{}  restart", stamp(w.now)));
        self.control = Some(control);
        self.oracle.started(self.now, &self.saved);
        let (found, later) = (self.store.durable(true), self.store.durable(false));
        let bodies = &self.bodies;
        let highest: Vec<u64> = unreleased.iter().map(|found| found.highest).collect();
        self.oracle.mail.started(&highest, &found, &later, |seq| bodies.get(&seq).is_some_and(|body| body.exact));
        self.store_starts();
        self.tell_everything();
    }

    /// The process dies, with everything that was only in memory.
    pub fn crash(&mut self, pause: u64) {
        if self.control.take().is_none() {
            return;
        }
        self.life += 1;
        self.channel.clear();
        self.busy_until = 0;
        self.store.crash();
        self.people.crash();
        self.hang_up_everything();
        self.oracle.crashed(self.now);
        self.after(pause, What::Start);
    }

    fn step(&mut self, event: Event) {
        let Some(mut control) = self.control.take() else { return };
        self.summary.steps += 1;
        self.note(|w| format!("{}  {event}", stamp(w.now)));
        let actions = control.step(Instant::from_millis(self.now), &event);
        self.note(|_| actions.iter().map(|a| format!("      {a}")).collect::<Vec<_>>().join("\n"));
        self.control = Some(control);
        self.check(&event, &actions);
        if actions.contains(&Action::Exit) {
            // Everybody who waited has been answered.
            self.account_requests();
            // Nothing is heard after that; what was asked before it is done.
            self.performed = self.now;
            for action in actions {
                self.count(&action);
                self.perform(action);
            }
            return;
        }
        // Most of the time the adapters are quick.
        let rate = matches!(self.plan.profile, Profile::Rate(_));
        let delay = if !rate && self.dice.chance(20) { self.dice.spread(1, 30) } else { 0 };
        self.performed = self.performed.max(self.now + delay);
        // What makes and ends connections is slower now and then: then late answers come.
        let delay = if !rate && self.dice.chance(80) { self.dice.spread(1, 6000) } else { 0 };
        self.dialled = self.dialled.max(self.performed).max(self.now + delay);
        for action in actions {
            self.count(&action);
            if let Action::Save(saved) = action {
                // The one thing that is waited for.
                self.saved = saved;
                continue;
            }
            let at = match action {
                Action::Dial { .. } | Action::HangUp { .. } => self.dialled,
                Action::Connect { attempt, .. } => {
                    self.connects = (attempt, self.dialled);
                    self.dialled
                }
                // Never before the CONNECT that it goes behind.
                Action::Transmit { attempt, .. } if attempt == self.connects.0 => self.performed.max(self.connects.1),
                _ => self.performed,
            };
            let behind = matches!(action, Action::Transmit { .. }) && at == self.connects.1;
            if at <= self.now && !behind {
                self.perform(action);
            } else {
                let life = self.life;
                self.at(at, What::Perform(life, action));
            }
        }
    }

    fn count(&mut self, action: &Action) {
        match action {
            Action::Dial { attempt, .. } => {
                self.summary.dials += 1;
                self.last_attempt = attempt.0;
            }
            Action::Activate { attempt, .. } => self.last_attempt = attempt.0,
            Action::Admit { ticket, seq } => {
                self.highest[seq.lane().0 as usize] = seq.number();
                if let Some(body) = self.people.offered.remove(&ticket.0) {
                    self.bodies.insert(seq.0, body);
                }
            }
            Action::Transmit { again: true, .. } => self.summary.again += 1,
            Action::Accept { .. } => self.summary.accepted += 1,
            Action::Refuse { .. } => self.summary.refused += 1,
            _ => {}
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Activate { interface, attempt } => self.activate(interface, attempt),
            Action::Deactivate { interface } => self.deactivate(interface),
            Action::Dial { interface, server, attempt } => self.dial(interface, server, attempt),
            Action::Connect { attempt, version, keep_alive } => self.connect(attempt, version, keep_alive),
            Action::HangUp { attempt, goodbye } => self.hang_up(attempt, goodbye),
            Action::Ping { attempt } => self.send(attempt.0, Up::Ping),
            Action::Measure { attempt } => self.measure(attempt),
            Action::Drain { attempt } => self.look_at_queue(attempt),
            Action::Transmit { attempt, seq, again: _ } => self.transmit(attempt.0, seq),
            Action::Append { seq } => self.append(seq),
            Action::Release { through } => self.release(through),
            Action::Discard { from, through } => self.discard(from, through),
            Action::Exit => {
                let pause = self.dice.spread(200, 30_000);
                self.exit(pause);
            }
            Action::Admit { .. }
            | Action::Accept { .. }
            | Action::FindExpired { .. }
            | Action::Refuse { .. }
            | Action::SetAside { .. }
            | Action::Answer { .. }
            | Action::Prefer { .. }
            | Action::Record(_)
            | Action::Notify(Notice::Lost { .. } | Notice::Outage { .. } | Notice::Restored)
            | Action::Save(_) => {}
        }
    }

    /// A clean stop waits for the store; then as a crash.
    fn exit(&mut self, pause: u64) {
        self.sync_now();
        self.crash(pause);
    }

    pub fn note(&mut self, line: impl FnOnce(&World) -> String) {
        if self.journal.is_none() {
            return;
        }
        let line = line(self);
        if let Some(journal) = &mut self.journal
            && journal.len() < JOURNAL_MAX
            && !line.is_empty()
        {
            journal.push(line);
        }
    }

    /// Takes the journal out, as a story.
    pub fn journal(&mut self) -> Vec<String> {
        self.journal.take().unwrap_or_default()
    }

    /// A broken invariant ends the run.
    pub fn broken(&self, what: &str) -> ! {
        panic!("seed {} at {}: {what}", self.plan.seed, stamp(self.now))
    }

    fn final_account(&mut self) {
        let Some(control) = self.control.as_ref() else { self.broken("no daemon after the calm") };
        let status = control.status();
        let idle = status.state == State::Idle && matches!(self.plan.settings.mode, Mode::OnDemand { .. });
        if !status.connected && !idle {
            self.broken(&format!("not connected after an hour of calm: {:?}", status.state));
        }
        let (mail, settings) = (&self.oracle.mail, &self.plan.settings);
        let carried = |rules: &LaneRules| status.uplink.is_some_and(|name| mail.carries(rules, name, settings));
        for (lane, rules) in status.lanes.iter().zip(&settings.lanes).filter(|(_, rules)| carried(rules)) {
            if lane.messages > 0 || !lane.carried {
                self.broken(&format!("an hour of calm, and {lane:?} of {rules:?}"));
            }
        }
        let lost = mail.lost(carried);
        if !lost.is_empty() {
            self.broken(&format!("accepted and never arrived: {lost:?}"));
        }
        self.account_people();
        if self.plan.settings.failback == Failback::Auto && !idle {
            let best = status.walk.first().copied();
            if status.uplink != best {
                self.broken(&format!("uplink {:?} is not the best, {best:?}", status.uplink));
            }
        }
        self.summary.arrived = self.broker.received.len() as u64;
    }
}

/// A moment as the stories write it, to the millisecond.
pub fn stamp(now: u64) -> String {
    story::millis(Duration::from_millis(now))
}

/// A name the world itself chose.
pub fn name(text: &str) -> Name {
    Name::new(text).expect("a name of the world's own")
}
