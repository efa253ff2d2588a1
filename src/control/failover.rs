//! The walk down the list: resting, waiting, trying, serving.
//!
//! ```text
//!            wanted                 a candidate is ready
//!  Resting ─────────► (round) ───────────────────────────► Trying ──── connected ───► Serving
//!     ▲                  ▲                                   │ │                         │
//!     │ not wanted       │ the wait is over, or new hope     │ └─ failed: the next ──┐   │ lost
//!     │                  └──────────── Waiting ◄── all failed ┘      ▲             │   │
//!     └──────────────────────────────────────────────────────────────┴─────────────┴───┘
//! ```
//!
//! Always true: while a session is wanted and there is none, a deadline exists; a candidate is dialled only when
//! link and address are there; a fault of the server never makes the walk cycle (R-IF-10), a fault of the path
//! makes it go on at once. What happens while a session is open is in `serving`. Nothing here touches messages.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use crate::action::{Action, Goodbye, Outcome, Saved};
use crate::backoff::{Backoff, QUICK_PHASE};
use crate::event::{Attempt, Command, Event, Request, Step, Version};
use crate::interfaces::{Interfaces, Readiness};
use crate::name::{Class, Name};
use crate::outage::Outages;
use crate::reachability::Reachability;
use crate::reason::{Blame, Reason};
use crate::round::{Candidate, From, Round, dial_limit};
use crate::serving::Serving;
use crate::session::Session;
use crate::settings::{Mode, Settings, Start, Uplink};
use crate::time::Instant;
use crate::turn::Turn;

/// From CONNECT to CONNACK; the path has already proved itself, so this is the server's time.
pub const CONNACK_LIMIT: Duration = Duration::from_secs(10);
/// New hope cuts a wait short at most this often (R-CL-15).
const HOPE_EVERY: Duration = Duration::from_secs(5);
/// With nothing ready, the world is looked at again after this long even if nothing happens.
const NOTHING_READY: Duration = Duration::from_secs(5);
/// At the start a better interface that is still coming up is waited for this long.
const START_PATIENCE: Duration = Duration::from_secs(2);
/// NetworkManager lists its devices one by one, and the best need not be the first: how long the list may take.
const START_LISTING: Duration = Duration::from_millis(300);
/// While every path is silent, the whole list is walked this often; between that only the best is tried.
const FULL_WALK_PATH: Duration = Duration::from_secs(30);
/// While the server itself refuses, other paths are tried only this often: they lead to the same server.
const FULL_WALK_SERVER: Duration = Duration::from_secs(300);
/// A server that hangs up without a word is asked in the other version once in so many rounds.
const OTHER_VERSION_EVERY: u32 = 2;
/// A session that lived shorter than this is followed by a wait: what opens and closes at once would otherwise spin.
const SHORT_SESSION: Duration = Duration::from_secs(1);
/// How long `connect` waits for interfaces that are coming up before it is answered: a cellular attempt.
const CONNECT_PATIENCE: Duration = Duration::from_secs(120);
/// That many sessions in a row, ended by the server without a reason within this time, mean that somebody else uses our
/// identity.
const TWIN_KICKS: u32 = 3;
const TWIN_SESSION: Duration = Duration::from_secs(10);
/// Operators waiting for the result of `connect`, at most.
const REQUESTS_MAX: usize = 16;

/// What delivery says of the messages, this event already counted.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// When the oldest message in flight was sent.
    pub oldest_sent: Option<Instant>,
    /// Nothing is in flight.
    pub quiet: bool,
    /// Nothing waits either.
    pub empty: bool,
    /// The round trip that this event's acknowledgement shows.
    pub sample: Option<Duration>,
}

/// What the walk concludes for delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    Open { attempt: Attempt, window: u16 },
    Shut,
    Finish,
    Resume,
}

/// What the walk may use during one turn.
pub struct Ground<'a, 't> {
    pub turn: &'a mut Turn<'t>,
    pub event: &'a Event,
    pub interfaces: &'a Interfaces,
    pub walk: &'a [Name],
    pub reach: &'a mut Reachability,
    pub outages: &'a mut Outages,
    pub flow: Flow,
    /// Interfaces that became ready through this event.
    pub hope: &'a [Name],
    pub line: Option<Line>,
}

/// What a deadline is computed from.
pub struct View<'a> {
    pub now: Instant,
    pub settings: &'a Settings,
    pub interfaces: &'a Interfaces,
    pub walk: &'a [Name],
    pub reach: &'a Reachability,
    pub oldest_sent: Option<Instant>,
}

impl Ground<'_, '_> {
    /// The same, to look at only.
    pub fn view(&self) -> View<'_> {
        View {
            now: self.turn.now,
            settings: self.turn.settings,
            interfaces: self.interfaces,
            walk: self.walk,
            reach: self.reach,
            oldest_sent: self.flow.oldest_sent,
        }
    }

    /// The settings of an interface.
    pub fn uplink(&self, name: Name) -> Uplink {
        let class = self.interfaces.class(name).unwrap_or(Class::Ethernet);
        *self.turn.settings.uplink(self.interfaces.spoken(name), class)
    }

    /// The interface an operator means: by its name, or the first of a class, those that are ready first.
    pub fn named(&self, name: Name) -> Option<Name> {
        let class: Option<Class> = name.as_str().parse().ok();
        let of_class = || self.walk.iter().copied().filter(|n| class.is_some() && self.interfaces.class(*n) == class);
        let ready = || of_class().find(|n| self.interfaces.readiness(*n) == Readiness::Ready);
        self.interfaces.find(name).or_else(ready).or_else(|| of_class().next())
    }

    /// Interfaces that could be dialled through now.
    pub fn ready_count(&self) -> usize {
        self.walk.iter().filter(|n| self.interfaces.readiness(**n) == Readiness::Ready).count()
    }
}

/// What the operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// The mode decides.
    On,
    /// Stay disconnected until told.
    Off,
    /// Do nothing until told.
    Idle,
}

#[derive(Debug)]
pub enum Walk {
    /// No session is wanted.
    Resting,
    /// The next round begins at `until`.
    Waiting {
        until: Instant,
        cause: Reason,
    },
    Trying {
        candidate: Candidate,
        round: Round,
    },
    Serving(Box<Serving>),
}

/// The walk, and what outlives its states.
#[derive(Debug)]
pub struct Failover {
    pub walk: Walk,
    pub intent: Intent,
    pub saved: Saved,
    /// Manual mode: told to connect, and not lost since.
    told: bool,
    /// Where the next round starts.
    next: From,
    /// An operator set another list: the next round starts at its top (R-IF-3).
    list_changed: bool,
    /// When.
    pub list_set: Instant,
    pub backoff: Backoff,
    failed_rounds: u32,
    /// The last round failed, and not by the server's word.
    all_paths_failed: bool,
    last_full: Option<Instant>,
    last_hope: Option<Instant>,
    /// What became ready since the last round began.
    hoped: Vec<Name>,
    started: Instant,
    /// The version that a server is known to speak: it said yes to it, or no to the other.
    versions: BTreeMap<u8, Version>,
    /// Sessions in a row that the server ended soon after they had opened.
    kicks: u32,
    /// The server tried first: the one that carried the last session.
    server: u8,
    /// Whoever waits for a connection, and until when.
    pub requests: Vec<(Request, Instant)>,
    /// Since when the current state has held, for displays.
    pub since: Instant,
    /// Spares opened over metered interfaces on suspicion, and since when they are counted.
    pub rescues: u32,
    pub rescues_since: Option<Instant>,
    /// When a CONNECT was last given up without an answer.
    pub abandoned: Option<Instant>,
    /// On demand: the last moment there was something to send.
    last_busy: Instant,
}

impl Failover {
    /// Starts at rest; the first step sets it going.
    pub fn restore(saved: Saved, start: Start, now: Instant) -> Failover {
        let intent = match start {
            _ if saved.held => Intent::Off,
            Start::Connect => Intent::On,
            Start::Disconnected => Intent::Off,
            Start::Idle => Intent::Idle,
        };
        Failover {
            walk: Walk::Resting,
            intent,
            saved,
            told: true,
            next: From::First,
            list_changed: false,
            list_set: Instant::default(),
            backoff: Backoff::default(),
            failed_rounds: 0,
            all_paths_failed: false,
            last_full: None,
            last_hope: None,
            hoped: Vec::new(),
            started: now,
            versions: BTreeMap::new(),
            kicks: 0,
            server: 0,
            requests: Vec::new(),
            since: now,
            last_busy: now,
            rescues: 0,
            rescues_since: None,
            abandoned: None,
        }
    }

    /// Takes the event in.
    pub fn step(&mut self, g: &mut Ground) {
        if !g.flow.empty {
            self.last_busy = g.turn.now;
        }
        if matches!(self.walk, Walk::Resting | Walk::Waiting { .. }) {
            let new = g.hope.iter().filter(|name| !self.hoped.contains(name)).copied();
            self.hoped.extend(new.collect::<Vec<_>>());
        }
        if let Event::Asked(command) = g.event {
            self.command(g, command);
        }
        self.answer_overdue(g);
        let walk = core::mem::replace(&mut self.walk, Walk::Resting);
        self.walk = match walk {
            Walk::Resting if self.wants(g) => self.begin(g),
            Walk::Resting => Walk::Resting,
            Walk::Waiting { until, cause } => self.waiting(g, until, cause),
            Walk::Trying { candidate, round } => self.trying(g, candidate, round),
            Walk::Serving(serving) => self.serving(g, serving),
        };
        if matches!(self.walk, Walk::Resting) {
            // Nobody waits for a session: what was missed is no outage any more.
            g.outages.dropped();
        }
    }

    /// When the walk next has something to do.
    pub fn deadline(&self, view: &View) -> Option<Instant> {
        let walk = match &self.walk {
            Walk::Resting => None,
            Walk::Waiting { until, .. } => Some(*until),
            Walk::Trying { candidate, .. } => Some(candidate.deadline),
            Walk::Serving(serving) => Some(self.serving_deadline(view, serving)),
        };
        walk.into_iter().chain(self.requests.iter().map(|(_, until)| *until)).min()
    }

    /// Whether a session is wanted now.
    pub fn wants(&self, g: &Ground) -> bool {
        match (self.intent, g.turn.settings.mode) {
            (Intent::Off | Intent::Idle, _) => false,
            (Intent::On, Mode::Auto) => true,
            (Intent::On, Mode::Manual) => self.told,
            (Intent::On, Mode::OnDemand { linger }) => {
                !self.requests.is_empty() || !g.flow.empty || g.turn.now < self.last_busy + linger
            }
        }
    }

    /// On demand: when an idle session is no longer wanted.
    pub fn linger_ends(&self, mode: Mode) -> Option<Instant> {
        match mode {
            Mode::OnDemand { linger } => Some(self.last_busy + linger),
            Mode::Auto | Mode::Manual => None,
        }
    }

    /// The interface that carries the session, or is being tried.
    pub fn current(&self) -> Option<Name> {
        match &self.walk {
            Walk::Resting | Walk::Waiting { .. } => None,
            Walk::Trying { candidate, .. } => Some(candidate.interface),
            Walk::Serving(serving) => Some(serving.session.interface),
        }
    }

    /// The open session.
    pub fn session(&self) -> Option<&Session> {
        match &self.walk {
            Walk::Resting | Walk::Waiting { .. } | Walk::Trying { .. } => None,
            Walk::Serving(serving) => Some(&serving.session),
        }
    }

    /// The open session, to be told of.
    pub fn session_mut(&mut self) -> Option<&mut Session> {
        match &mut self.walk {
            Walk::Resting | Walk::Waiting { .. } | Walk::Trying { .. } => None,
            Walk::Serving(serving) => Some(&mut serving.session),
        }
    }

    /// A session is open, or none is wanted: which interfaces are needed will not change in a moment.
    pub fn is_settled(&self) -> bool {
        match &self.walk {
            Walk::Resting => true,
            Walk::Waiting { .. } | Walk::Trying { .. } => false,
            Walk::Serving(serving) => serving.session.settled,
        }
    }

    /// A whole round has failed since the last session.
    pub fn has_failed(&self) -> bool {
        self.failed_rounds > 0
    }

    fn command(&mut self, g: &mut Ground, command: &Command) {
        match command {
            Command::Connect { request, via } => self.connect(g, *request, *via),
            Command::Reconnect { request } => {
                self.end_hold(g);
                self.told = true;
                self.enqueue(g, *request);
                if let Walk::Serving(serving) = &self.walk {
                    let name = serving.session.interface;
                    self.quit(g, Goodbye::Moving, Reason::User);
                    g.outages.began(g.turn, g.turn.now, Reason::User, true);
                    self.next = From::Current(name);
                }
                self.backoff.reset();
                self.cut_short(g.turn.now);
            }
            Command::Disconnect { request, force } => self.disconnect(g, *request, *force),
            Command::SetList { list } => {
                self.saved.list.clone_from(list);
                self.list_changed = true;
                self.list_set = g.turn.now;
                g.turn.ask(Action::Save(self.saved.clone()));
            }
            Command::Stop => {
                self.intent = Intent::Idle;
                self.quit(g, Goodbye::Offline, Reason::Restart);
                self.answer_all(g, Outcome::Failed(Reason::Restart));
            }
            // Delivery's own.
            Command::Flush { .. } => {}
        }
    }

    fn connect(&mut self, g: &mut Ground, request: Request, via: Option<Name>) {
        let stays = match &mut self.walk {
            // Whoever disconnects and connects again while it still flushes stays connected.
            Walk::Serving(serving) => serving.answer_leaving(g.turn, Outcome::Failed(Reason::User)),
            Walk::Resting | Walk::Waiting { .. } | Walk::Trying { .. } => false,
        };
        if stays || via.is_none() {
            self.end_hold(g);
        }
        self.told = true;
        match (via.map(|name| g.named(name).ok_or(())), &mut self.walk) {
            (Some(Err(())), _) => {
                g.turn.ask(Action::Answer { request, outcome: Outcome::Failed(Reason::NoLink) });
            }
            (Some(Ok(name)), Walk::Serving(serving)) if serving.session.interface == name => {
                g.turn.ask(Action::Answer { request, outcome: Outcome::Done });
            }
            (Some(Ok(name)), Walk::Serving(_)) => self.visit(g, request, name),
            (Some(Ok(name)), _) => self.begin_via(g, request, name),
            (None, Walk::Serving(serving)) if serving.session.settled => {
                g.turn.ask(Action::Answer { request, outcome: Outcome::Done });
            }
            (None, _) => {
                self.enqueue(g, request);
                self.cut_short(g.turn.now);
            }
        }
    }

    /// Told to connect: what `disconnect` ordered is over.
    fn end_hold(&mut self, g: &mut Ground) {
        self.intent = Intent::On;
        if core::mem::take(&mut self.saved.held) {
            g.turn.ask(Action::Save(self.saved.clone()));
        }
    }

    /// An operator's wish ends a wait at once.
    fn cut_short(&mut self, now: Instant) {
        if let Walk::Waiting { until, .. } = &mut self.walk {
            *until = now;
        }
    }

    fn enqueue(&mut self, g: &mut Ground, request: Request) {
        if self.requests.len() < REQUESTS_MAX {
            self.requests.push((request, g.turn.now + CONNECT_PATIENCE));
        } else {
            g.turn.ask(Action::Answer { request, outcome: Outcome::Failed(Reason::TimeLimit) });
        }
    }

    fn answer_overdue(&mut self, g: &mut Ground) {
        let now = g.turn.now;
        for (request, _) in self.requests.extract_if(.., |(_, until)| now >= *until) {
            g.turn.ask(Action::Answer { request, outcome: Outcome::Failed(Reason::TimeLimit) });
        }
    }

    /// One final answer for everybody who asked for a connection.
    pub fn answer_all(&mut self, g: &mut Ground, outcome: Outcome) {
        for (request, _) in self.requests.drain(..) {
            g.turn.ask(Action::Answer { request, outcome });
        }
    }

    fn disconnect(&mut self, g: &mut Ground, request: Request, force: bool) {
        if !self.saved.held {
            self.saved.held = true;
            g.turn.ask(Action::Save(self.saved.clone()));
        }
        self.answer_all(g, Outcome::Failed(Reason::User));
        if let Walk::Serving(serving) = &mut self.walk
            && !force
            && !g.flow.empty
        {
            // What can be flushed goes out over this session; nothing else is begun.
            serving.drop_spare(g, Reason::User);
            return serving.leave(g.turn, request);
        }
        self.intent = Intent::Off;
        self.quit(g, Goodbye::Offline, Reason::User);
        g.turn.ask(Action::Answer { request, outcome: Outcome::Done });
    }

    /// Ends whatever is under way and rests.
    pub fn quit(&mut self, g: &mut Ground, goodbye: Goodbye, reason: Reason) {
        match core::mem::replace(&mut self.walk, Walk::Resting) {
            Walk::Resting | Walk::Waiting { .. } => {}
            Walk::Trying { candidate, round } => {
                g.turn.ask(Action::HangUp { attempt: candidate.attempt, goodbye: Goodbye::Abort });
                if let Some(request) = round.via {
                    g.turn.ask(Action::Answer { request, outcome: Outcome::Failed(reason) });
                }
            }
            Walk::Serving(mut serving) => {
                serving.drop_spare(g, reason);
                g.turn.ask(Action::HangUp { attempt: serving.session.attempt, goodbye });
                serving.answer_leaving(g.turn, Outcome::Done);
                g.line = Some(Line::Shut);
            }
        }
        self.since = g.turn.now;
    }

    fn waiting(&mut self, g: &mut Ground, until: Instant, cause: Reason) -> Walk {
        let now = g.turn.now;
        if !self.wants(g) {
            return Walk::Resting;
        }
        let until = if !g.hope.is_empty() && hopeful(cause) { until.min(self.hope_at(now, cause)) } else { until };
        if now >= until { self.begin(g) } else { Walk::Waiting { until, cause } }
    }

    fn hope_at(&mut self, now: Instant, cause: Reason) -> Instant {
        // Waiting for the first interface after the start is not a back-off: nothing is cut short.
        if cause == Reason::Restart {
            return now;
        }
        let at = self.last_hope.map_or(now, |last| now.max(last + HOPE_EVERY));
        self.last_hope = Some(at);
        at
    }

    fn begin_via(&mut self, g: &mut Ground, request: Request, name: Name) {
        if let Walk::Trying { candidate, round } = core::mem::replace(&mut self.walk, Walk::Resting) {
            g.turn.ask(Action::HangUp { attempt: candidate.attempt, goodbye: Goodbye::Abort });
            if let Some(earlier) = round.via {
                g.turn.ask(Action::Answer { request: earlier, outcome: Outcome::Failed(Reason::User) });
            }
        }
        let round = Round::only(name, request);
        self.walk = match g.interfaces.readiness(name) {
            Readiness::Ready => self.next_candidate(g, round),
            Readiness::Not(reason) => self.fail_via(g, request, reason),
            Readiness::Coming(_) | Readiness::Activatable => self.fail_via(g, request, Reason::NoAddress),
        };
    }

    fn fail_via(&mut self, g: &mut Ground, request: Request, reason: Reason) -> Walk {
        g.turn.ask(Action::Answer { request, outcome: Outcome::Failed(reason) });
        if self.wants(g) { self.begin(g) } else { Walk::Resting }
    }

    /// Begins a round.
    pub fn begin(&mut self, g: &mut Ground) -> Walk {
        let now = g.turn.now;
        let from = match core::mem::take(&mut self.list_changed) {
            true => From::First,
            false => core::mem::replace(&mut self.next, From::First),
        };
        let mut round = Round::plan(from, g.walk, g.interfaces);
        let starting = now < self.started + START_PATIENCE && self.failed_rounds == 0;
        if round.rest.is_empty() {
            // The first thing to become ready ends the start; until then nothing has failed.
            let cause = if starting { Reason::Restart } else { self.nothing_ready(g) };
            self.next = from;
            return Walk::Waiting { until: now + NOTHING_READY, cause };
        }
        let listed = g.interfaces.listing_until(START_LISTING).unwrap_or(now);
        if starting && now < listed {
            return Walk::Waiting { until: listed, cause: Reason::Restart };
        }
        if starting && self.better_is_coming(g, &round) {
            return Walk::Waiting { until: self.started + START_PATIENCE, cause: Reason::Restart };
        }
        let hoped = core::mem::take(&mut self.hoped);
        round.admit(&hoped, g.walk);
        if self.all_paths_failed && hoped.is_empty() {
            if self.last_full.is_some_and(|at| now < at + FULL_WALK_PATH) {
                round.rest.truncate(1);
            } else {
                self.last_full = Some(now);
            }
        }
        self.next_candidate(g, round)
    }

    /// Why there is nothing to dial through: what the first of the walk lacks.
    fn nothing_ready(&mut self, g: &mut Ground) -> Reason {
        let lacks = |name: &Name| match g.interfaces.readiness(*name) {
            Readiness::Not(reason) => Some(reason),
            Readiness::Coming(_) | Readiness::Activatable => Some(Reason::NoAddress),
            Readiness::Ready => None,
        };
        let reason = g.walk.iter().find_map(lacks).unwrap_or(Reason::NoLink);
        g.outages.began(g.turn, self.started, reason, false);
        g.outages.failed(reason);
        let coming = |name: &Name| match g.interfaces.readiness(*name) {
            Readiness::Coming(_) | Readiness::Activatable => true,
            Readiness::Ready | Readiness::Not(_) => false,
        };
        if !g.walk.iter().any(coming) {
            self.answer_all(g, Outcome::Failed(reason));
        }
        reason
    }

    fn better_is_coming(&self, g: &Ground, round: &Round) -> bool {
        let Some(first) = round.rest.front() else { return false };
        g.walk.iter().take_while(|n| *n != first).any(|name| match g.interfaces.readiness(*name) {
            Readiness::Coming(_) | Readiness::Activatable => true,
            Readiness::Ready | Readiness::Not(_) => false,
        })
    }

    fn next_candidate(&mut self, g: &mut Ground, mut round: Round) -> Walk {
        while let Some(interface) = round.rest.pop_front() {
            if g.interfaces.readiness(interface) == Readiness::Ready {
                let servers_left = g.turn.settings.servers.saturating_sub(1);
                return self.dial(g, round, interface, self.server, servers_left, None);
            }
        }
        self.round_failed(g, round)
    }

    fn dial(
        &mut self,
        g: &mut Ground,
        round: Round,
        interface: Name,
        server: u8,
        servers_left: u8,
        other_version: Option<Version>,
    ) -> Walk {
        let attempt = g.turn.number();
        let limit = self.dial_limit(g, interface);
        g.outages.tried(interface);
        g.turn.ask(Action::Dial { interface, server, attempt });
        let candidate = Candidate {
            interface,
            server,
            servers_left,
            attempt,
            born: g.turn.now,
            deadline: g.turn.now + limit,
            step: Step::Resolving,
            connecting: false,
            version: other_version.unwrap_or(self.version(server)),
            other_version: other_version.is_some(),
        };
        Walk::Trying { candidate, round }
    }

    fn dial_limit(&self, g: &Ground, interface: Name) -> Duration {
        let class = g.interfaces.class(interface).unwrap_or(Class::Ethernet);
        let alone = g.ready_count() < 2;
        dial_limit(class, alone, self.failed_rounds, g.uplink(interface).connect_timeout)
    }

    fn trying(&mut self, g: &mut Ground, mut candidate: Candidate, mut round: Round) -> Walk {
        let own = candidate.attempt;
        if !g.hope.is_empty() && round.via.is_none() {
            // What has just become ready is tried in this round, and this candidate is alone no more.
            round.admit(g.hope, g.walk);
            if !candidate.connecting {
                candidate.deadline = candidate.deadline.min(candidate.born + self.dial_limit(g, candidate.interface));
            }
        }
        if let Some(reason) = g.interfaces.dead(candidate.interface) {
            if candidate.connecting {
                self.abandoned = Some(g.turn.now);
            }
            g.turn.ask(Action::HangUp { attempt: own, goodbye: Goodbye::Abort });
            return self.candidate_failed(g, candidate, round, reason);
        }
        let ended = match *g.event {
            Event::DialFailed { attempt, .. } | Event::Closed { attempt, .. } => attempt == own,
            _ => false,
        };
        if round.via.is_none() && !ended && !self.wants(g) {
            g.turn.ask(Action::HangUp { attempt: own, goodbye: Goodbye::Abort });
            return Walk::Resting;
        }
        match *g.event {
            Event::DialProgressed { attempt, step } if attempt == own => candidate.step = step,
            Event::Dialled { attempt } if attempt == own && !candidate.connecting => {
                g.reach.good(candidate.interface);
                self.say_connect(g, &mut candidate);
            }
            Event::DialFailed { attempt, reason, .. } | Event::Closed { attempt, reason, .. } if attempt == own => {
                return self.candidate_failed(g, candidate, round, reason);
            }
            Event::Connected { attempt, present, window, keep_alive } if attempt == own && candidate.connecting => {
                return self.connected(g, &candidate, round.via, present, window, keep_alive);
            }
            _ => {}
        }
        if g.turn.now >= candidate.deadline {
            if candidate.connecting {
                self.abandoned = Some(g.turn.now);
            }
            g.turn.ask(Action::HangUp { attempt: own, goodbye: Goodbye::Abort });
            let (reason, _) = candidate.timed_out();
            return self.candidate_failed(g, candidate, round, reason);
        }
        Walk::Trying { candidate, round }
    }

    /// Sends CONNECT on a dialled connection.
    pub fn say_connect(&mut self, g: &mut Ground, candidate: &mut Candidate) {
        candidate.connecting = true;
        candidate.step = Step::Handshake;
        candidate.deadline = g.turn.now + CONNACK_LIMIT;
        g.turn.ask(Action::Connect {
            attempt: candidate.attempt,
            version: candidate.version,
            keep_alive: g.uplink(candidate.interface).keep_alive,
        });
    }

    /// The version that a server is known to speak, else 5.
    fn version(&self, server: u8) -> Version {
        self.versions.get(&server).copied().unwrap_or(Version::V5)
    }

    fn candidate_failed(&mut self, g: &mut Ground, candidate: Candidate, mut round: Round, reason: Reason) -> Walk {
        let now = g.turn.now;
        g.reach.bad(now, candidate.interface, reason);
        if self.wants(g) {
            g.outages.began(g.turn, self.started, reason, false);
        }
        g.outages.failed(reason);
        if reason == Reason::Refused {
            // Nobody listened for a moment: it was a restart, and no twin.
            self.kicks = 0;
        }
        round.note(reason);
        // A server that knows only 3.1.1 says so, or hangs up without a word. One that has said yes before and hangs
        // up is being stopped, unless it goes on so.
        let turn = if self.versions.contains_key(&candidate.server) { OTHER_VERSION_EVERY - 1 } else { 0 };
        let silent_refusal = candidate.connecting
            && reason == Reason::ServerShutDown
            && self.failed_rounds % OTHER_VERSION_EVERY == turn;
        let other = match candidate.version {
            Version::V5 => Version::V311,
            Version::V311 => Version::V5,
        };
        if reason == Reason::Version {
            self.versions.insert(candidate.server, other);
        }
        if (reason == Reason::Version || silent_refusal) && !candidate.other_version {
            let Candidate { interface, server, servers_left, .. } = candidate;
            return self.dial(g, round, interface, server, servers_left, Some(other));
        }
        let blame = reason.blame();
        if candidate.servers_left > 0 && matches!(blame, Blame::Path | Blame::Server) {
            let server = (candidate.server + 1) % g.turn.settings.servers.max(1);
            let left = candidate.servers_left - 1;
            if g.interfaces.readiness(candidate.interface) == Readiness::Ready {
                return self.dial(g, round, candidate.interface, server, left, None);
            }
        }
        let walk_on = match blame {
            Blame::Path | Blame::Ours => true,
            Blame::Server => self.other_paths_due(now) || round.only_fresh(),
            Blame::Credentials | Blame::Identity => false,
        };
        if walk_on { self.next_candidate(g, round) } else { self.round_failed(g, round) }
    }

    /// The server refuses: whether it is time to see if it refuses over other paths as well. A firewall that
    /// refuses in its name looks the same.
    fn other_paths_due(&mut self, now: Instant) -> bool {
        let long_enough = self.backoff.server_since().is_some_and(|since| now.since(since) >= QUICK_PHASE);
        let due = long_enough && self.last_full.is_none_or(|at| now >= at + FULL_WALK_SERVER);
        if due {
            self.last_full = Some(now);
        }
        due
    }

    fn round_failed(&mut self, g: &mut Ground, round: Round) -> Walk {
        let now = g.turn.now;
        let reason = round.verdict().unwrap_or(Reason::NoLink);
        if let Some(request) = round.via {
            return self.fail_via(g, request, reason);
        }
        self.failed_rounds = self.failed_rounds.saturating_add(1);
        self.server = 0;
        self.answer_all(g, Outcome::Failed(reason));
        let by_path = reason.blame() == Blame::Path;
        if by_path && !self.all_paths_failed {
            self.last_full = Some(now);
        }
        self.all_paths_failed = by_path;
        let wait = self.backoff.next(now, reason, g.turn.settings, g.turn.dice);
        self.told = false;
        self.since = now;
        if !self.wants(g) {
            return Walk::Resting;
        }
        Walk::Waiting { until: now + wait, cause: reason }
    }

    /// CONNACK: the session is open.
    pub fn connected(
        &mut self,
        g: &mut Ground,
        candidate: &Candidate,
        via: Option<Request>,
        present: bool,
        window: u16,
        keep_alive: Duration,
    ) -> Walk {
        let version = candidate.version;
        self.versions.insert(candidate.server, version);
        self.server = candidate.server;
        self.failed_rounds = 0;
        self.all_paths_failed = false;
        self.told = true;
        self.next = From::Current(candidate.interface);
        self.since = g.turn.now;
        g.reach.good(candidate.interface);
        g.outages.reached(g.turn);
        g.line = Some(Line::Open { attempt: candidate.attempt, window });
        if let Some(request) = via {
            // The operator wanted this connection: it is held as one that `connect` asked for.
            self.end_hold(g);
            g.turn.ask(Action::Answer { request, outcome: Outcome::Done });
        }
        Walk::Serving(Box::new(Serving::open(g, candidate, version, present, keep_alive, via.is_some())))
    }

    /// Servers of MQTT 3.1.1, and some of 5, end the old connection without a word when another client takes the
    /// identity. Sessions that a healthy server ends again and again, each soon after it has opened, look just so
    /// (R-CS-5).
    pub fn suspect_twin(&mut self, now: Instant, lost: &Session, reason: Reason) -> Reason {
        let kicked = reason == Reason::ServerShutDown && now.since(lost.opened) < TWIN_SESSION;
        self.kicks = if kicked { self.kicks.saturating_add(1) } else { 0 };
        if self.kicks >= TWIN_KICKS { Reason::SessionTakenOver } else { reason }
    }

    /// The session is lost: what comes next.
    pub fn after_loss(&mut self, g: &mut Ground, lost: &Session, reason: Reason, heard: bool) -> Walk {
        let now = g.turn.now;
        let from = lost.interface;
        let short = now.since(lost.opened) < SHORT_SESSION && g.interfaces.dead(from).is_none();
        if !short {
            self.backoff.accepted();
        }
        self.since = now;
        self.told = !matches!(g.turn.settings.mode, Mode::Manual);
        if !self.wants(g) {
            return Walk::Resting;
        }
        self.next = match reason.blame() {
            Blame::Path if !heard && reason != Reason::Reset => From::Next(from),
            Blame::Path | Blame::Server | Blame::Credentials | Blame::Identity | Blame::Ours => From::Current(from),
        };
        let wait_first = match reason.blame() {
            // Alone with the server, the first retry is at once; in a fleet it is spread.
            Blame::Server => g.turn.settings.fleet_size > 1 || short,
            Blame::Identity | Blame::Credentials => true,
            Blame::Path | Blame::Ours => short,
        };
        if wait_first {
            let wait = self.backoff.next(now, reason, g.turn.settings, g.turn.dice);
            return Walk::Waiting { until: now + wait, cause: reason };
        }
        self.begin(g)
    }
}

/// Whether a new interface gives hope: it does unless the server itself does not believe us.
fn hopeful(cause: Reason) -> bool {
    match cause.blame() {
        // A firewall that refuses in the server's name is passed by over another interface.
        Blame::Path | Blame::Ours | Blame::Server => true,
        Blame::Credentials | Blame::Identity => false,
    }
}
