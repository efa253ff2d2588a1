//! Applications that publish and operators that ask.

use std::collections::BTreeMap;
use std::time::Duration;

use switchback_control::{Command, Event, Failback, Lane, Mode, Order, Parcel, Request, Ticket};

use super::plan::{self, Profile};
use super::store::Body;
use super::{Source, What, World};

#[derive(Clone, Copy, Debug)]
pub enum Change {
    Mood,
    Publish(u64),
    Operator,
    Connect,
    /// Traffic that does not pause, and a flush in the middle of it.
    Flood,
    Flush,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Idle,
    Slow,
    Steady,
    Fast,
}

#[derive(Debug)]
pub struct People {
    tickets: u64,
    requests: u64,
    mood: Mood,
    moods: u64,
    /// Unanswered: when each was asked, and by when it must be answered.
    pub open: BTreeMap<u64, (u64, u64)>,
    heard: u64,
    /// Bodies of messages that nobody has answered for.
    pub offered: BTreeMap<u64, Body>,
    /// The flush that must come true.
    pub must_flush: Option<u64>,
    /// Whether the operator wants a connection, as he last said.
    pub off: bool,
}

impl Default for People {
    fn default() -> People {
        People {
            tickets: 0,
            requests: 0,
            mood: Mood::Idle,
            moods: 0,
            open: BTreeMap::new(),
            heard: 0,
            offered: BTreeMap::new(),
            must_flush: None,
            off: false,
        }
    }
}

impl People {
    /// The daemon has read the request: its limits run from now.
    pub fn heard(&mut self, now: u64, command: &Command) {
        let request = match command {
            Command::Connect { request, .. }
            | Command::Disconnect { request, .. }
            | Command::Reconnect { request }
            | Command::Failback { request, .. }
            | Command::Inhibit { request, .. }
            | Command::Drop { request, .. }
            | Command::Flush { request, .. } => request,
            Command::SetList { .. } | Command::Stop => return,
        };
        self.heard = self.heard.max(request.0);
        if let Some((asked, by)) = self.open.get_mut(&request.0) {
            *by = now + (*by - *asked);
            *asked = now;
        }
    }

    /// Whoever waited for a process that is gone has been told so by his socket.
    pub fn crash(&mut self) {
        self.open.clear();
        self.offered.clear();
        self.must_flush = None;
    }
}

/// With one message in flight, over the slowest path, and a share of one in sixteen.
const FLUSH_LIMIT: u64 = 120_000;
/// An answer to `connect` may take as long as NetworkManager needs, and a round.
const CONNECT_LIMIT: u64 = 400_000;

impl World {
    pub fn start_people(&mut self) {
        self.after(100, What::People(Change::Mood));
        if !matches!(self.plan.profile, Profile::Rate(_)) {
            self.after(60_000, What::People(Change::Operator));
        }
    }

    pub fn people(&mut self, change: Change) {
        match change {
            Change::Mood => self.mood(),
            Change::Publish(mood) => self.publish(mood),
            Change::Operator => self.operator(),
            Change::Connect => {
                let via = None;
                let request = self.request(CONNECT_LIMIT);
                self.people.off = false;
                self.ask(Command::Connect { request, via, stay: None });
            }
            Change::Flood => {
                self.people.moods += 1;
                self.people.mood = Mood::Steady;
                let number = self.people.moods;
                self.after(1, What::People(Change::Publish(number)));
            }
            Change::Flush => self.must_flush(),
        }
    }

    /// In the calm, with traffic that does not pause: if everything may go over this uplink, it gets through.
    fn must_flush(&mut self) {
        let Some(status) = self.control().map(|control| control.status()) else { return };
        let well = status.connected && status.lanes.iter().all(|lane| lane.carried);
        if well && self.plan.settings.mode == Mode::Auto {
            let request = self.request(FLUSH_LIMIT + 1_000);
            self.people.must_flush = Some(request.0);
            self.ask(Command::Flush { request, limit: Duration::from_millis(FLUSH_LIMIT) });
        }
    }

    fn mood(&mut self) {
        self.people.moods += 1;
        let steady = matches!(self.plan.profile, Profile::Lossy | Profile::Rate(_));
        self.people.mood = match self.dice.between(0, 99) {
            _ if steady => Mood::Steady,
            0..=39 => Mood::Idle,
            40..=84 => Mood::Slow,
            85..=96 => Mood::Steady,
            _ => Mood::Fast,
        };
        let length = match self.people.mood {
            Mood::Idle => self.dice.spread(60_000, 3_600_000),
            Mood::Slow => self.dice.spread(60_000, 3_600_000),
            Mood::Steady if steady => 60_000,
            Mood::Steady => self.dice.spread(20_000, 300_000),
            Mood::Fast => self.dice.spread(1_000, 20_000),
        };
        let number = self.people.moods;
        self.after(length, What::People(Change::Mood));
        if self.people.mood != Mood::Idle {
            self.after(1, What::People(Change::Publish(number)));
        }
    }

    fn publish(&mut self, mood: u64) {
        if mood != self.people.moods {
            return;
        }
        let (next, count) = match self.people.mood {
            Mood::Idle => return,
            Mood::Slow => (self.dice.spread(5_000, 60_000), 1),
            Mood::Steady => (500, 1),
            Mood::Fast => (self.dice.between(5, 500), self.dice.between(1, 10)),
        };
        // Somebody empties his own queue.
        let burst = self.plan.has_lanes && self.lots.chance(4) && !self.calm;
        let count = if burst { self.lots.spread(20, 9_000) } else { count };
        let lane = self.any_lane();
        for _ in 0..count {
            let lane = if burst && self.lots.chance(900) { lane } else { self.any_lane() };
            self.offer(lane);
        }
        self.after(next, What::People(Change::Publish(mood)));
    }

    fn any_lane(&mut self) -> Lane {
        Lane(self.lots.between(0, self.plan.settings.lanes.len() as u64 - 1) as u8)
    }

    fn offer(&mut self, lane: Lane) {
        // The last minutes are quiet, so that the account can be closed.
        let closing = self.now + 300_000 > self.plan.rough_ms + self.plan.calm_ms;
        if !self.running() || closing {
            return;
        }
        self.people.tickets += 1;
        let mut parcel = Parcel { size: self.dice.spread(20, 4000) as u32, lane, ..Parcel::default() };
        let mut expires = None;
        if self.plan.has_lanes {
            parcel.exact = self.lots.chance(150);
            parcel.online_only = self.lots.chance(50);
            expires = self.lots.chance(150).then(|| self.now + self.lots.spread(50, 3_600_000));
        }
        let body = Body { size: parcel.size, exact: parcel.exact, expires };
        self.people.offered.insert(self.people.tickets, body);
        let event = Event::Offered { ticket: Ticket(self.people.tickets), parcel };
        self.tell(Source::Local, 0, event);
    }

    fn request(&mut self, limit: u64) -> Request {
        self.people.requests += 1;
        let request = self.people.requests;
        if self.running() {
            self.people.open.insert(request, (self.now, self.now + limit));
        }
        Request(request)
    }

    pub fn ask(&mut self, command: Command) {
        self.tell(Source::Local, 0, Event::Asked(command));
    }

    fn operator(&mut self) {
        if self.calm {
            return;
        }
        let every = match self.plan.profile {
            Profile::Lossy | Profile::Cloud | Profile::Rate(_) => return,
            Profile::Mixed | Profile::Paths | Profile::Flapping | Profile::Store => 900_000,
        };
        let next = self.dice.spread(5_000, every * 2);
        self.after(next, What::People(Change::Operator));
        if !self.running() {
            return;
        }
        if self.plan.has_lanes && self.lots.chance(50) {
            let lane = if self.lots.chance(500) { Some(self.any_lane()) } else { None };
            let request = self.request(1_000);
            return self.ask(Command::Drop { request, lane });
        }
        if self.dice.chance(300) {
            return self.order_the_way_back();
        }
        match self.dice.between(0, 99) {
            0..=19 => {
                let list = plan::list(&mut self.dice);
                self.ask(Command::SetList { list });
            }
            20..=34 => {
                let request = self.request(CONNECT_LIMIT);
                self.people.off = false;
                self.ask(Command::Connect { request, via: None, stay: None });
            }
            35..=49 => {
                let net = self.dice.between(0, self.nets.len() as u64 - 1) as usize;
                let via = Some(self.nets[net].spoken());
                let request = self.request(CONNECT_LIMIT);
                self.ask(Command::Connect { request, via, stay: None });
            }
            50..=64 => {
                let limit = self.dice.spread(50, 30_000);
                let request = self.request(limit + 1_000);
                self.ask(Command::Flush { request, limit: Duration::from_millis(limit) });
            }
            65..=79 => {
                let request = self.request(CONNECT_LIMIT);
                self.people.off = false;
                self.ask(Command::Reconnect { request });
            }
            80..=94 => {
                let force = self.dice.chance(300);
                let request = self.request(11_000);
                self.people.off = true;
                self.ask(Command::Disconnect { request, force });
                let back = self.dice.spread(100, 600_000);
                self.after(back, What::People(Change::Connect));
            }
            _ => self.ask(Command::Stop),
        }
    }

    /// What to do about better interfaces: now, always, never, not for a while.
    fn order_the_way_back(&mut self) {
        let command = match self.dice.between(0, 9) {
            0..=3 => Command::Failback { request: self.request(CONNECT_LIMIT), order: Order::Now },
            4..=6 => {
                let failback = *self.dice.pick(&[Failback::Auto, Failback::Never, Failback::Never]);
                let limit = Duration::from_millis(self.dice.spread(10_000, 24 * 3_600_000));
                Command::Failback { request: self.request(1_000), order: Order::From(failback, limit) }
            }
            _ => {
                let limit = if self.dice.chance(200) { 0 } else { self.dice.spread(1_000, 2 * 3_600_000) };
                Command::Inhibit { request: self.request(1_000), limit: Duration::from_millis(limit) }
            }
        };
        self.ask(command);
    }

    /// Whatever an operator has said about the way back is over.
    pub fn free_the_way_back(&mut self) {
        let request = self.request(1_000);
        self.ask(Command::Inhibit { request, limit: Duration::ZERO });
        let request = self.request(1_000);
        let order = Order::From(self.plan.settings.failback, Duration::from_secs(24 * 3600));
        self.ask(Command::Failback { request, order });
    }

    pub fn account_people(&self) {
        self.account_requests();
        if let Some(ticket) = self.oracle.mail.open_ticket() {
            self.broken(&format!("offer {ticket} was never answered"));
        }
    }

    pub fn account_requests(&self) {
        if let Some((request, _)) = self.people.open.range(..=self.people.heard).next() {
            self.broken(&format!("request {request} was never answered"));
        }
    }
}
