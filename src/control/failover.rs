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
//! makes it go on at once. What happens while a session is open is in `serving`. Nothing here touches messages. It is long, because the states share their ways out.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use crate::action::{Action, Outcome, Saved};
use crate::attempt::hopeful;
use crate::backoff::Backoff;
use crate::event::{Event, Request, Version};
use crate::failback::WayBack;
use crate::ground::{Ground, Line, View};
use crate::interfaces::Readiness;
use crate::name::Name;
use crate::reason::Reason;
use crate::round::{Candidate, From, Round};
use crate::serving::Serving;
use crate::session::Session;
use crate::settings::{Mode, Start};
use crate::stay::Stay;
use crate::suspicion::Purses;
use crate::time::Instant;
use crate::warm::Warm;

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
    pub told: bool,
    /// Told to connect for a while.
    pub stay: Option<Stay>,
    /// Where the next round starts.
    pub next: From,
    /// An operator set another list: the next round starts at its top (R-IF-3).
    pub list_changed: bool,
    /// When.
    pub list_set: Instant,
    pub backoff: Backoff,
    pub failed_rounds: u32,
    /// The last round failed, and not by the server's word.
    pub all_paths_failed: bool,
    pub last_full: Option<Instant>,
    pub last_hope: Option<Instant>,
    /// What became ready since the last round began.
    pub hoped: Vec<Name>,
    pub started: Instant,
    /// The version that a server is known to speak: it said yes to it, or no to the other.
    pub versions: BTreeMap<u8, Version>,
    /// Since when that is only a guess.
    pub guessed: BTreeMap<u8, Instant>,
    /// Sessions in a row that the server ended soon after they had opened.
    pub kicks: u32,
    /// The Receive Maximum that a server last named: what it holds a session of ours for.
    pub windows: BTreeMap<u8, u16>,
    /// The server tried first: the one that carried the last session.
    pub server: u8,
    /// Whoever waits for a connection, and until when.
    pub requests: Vec<(Request, Instant)>,
    /// Since when the current state has held, for displays.
    pub since: Instant,
    /// What may be spent on second paths.
    pub purses: Purses,
    /// When a CONNECT was last given up without an answer.
    pub abandoned: Option<Instant>,
    /// What an operator has said about better interfaces, and what holds until when.
    pub way_back: WayBack,
    /// Connections that wait on uplinks with standby `warm`.
    pub warm: Warm,
    /// On demand: the last moment there was something to send.
    pub last_busy: Instant,
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
            stay: None,
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
            guessed: BTreeMap::new(),
            windows: BTreeMap::new(),
            kicks: 0,
            server: 0,
            requests: Vec::new(),
            since: now,
            last_busy: now,
            purses: Purses::default(),
            abandoned: None,
            way_back: WayBack::default(),
            warm: Warm::default(),
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
        self.end_stay(g);
        self.answer_overdue(g);
        self.warm_news(g);
        let walk = core::mem::replace(&mut self.walk, Walk::Resting);
        self.walk = match walk {
            Walk::Resting if self.wants(g) => self.begin(g),
            Walk::Resting => Walk::Resting,
            Walk::Waiting { until, cause } => self.waiting(g, until, cause),
            Walk::Trying { candidate, round } => self.trying(g, candidate, round),
            Walk::Serving(serving) => self.serving(g, serving),
        };
        self.tend_warm(g);
        if g.abandoned {
            self.abandoned = Some(g.turn.now);
        }
        if matches!(self.walk, Walk::Resting) {
            // Nobody waits for a session: what was missed is no outage any more.
            g.outages.dropped();
            g.switches.abandoned();
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
        let requests = self.requests.iter().map(|(_, until)| *until);
        let warm = self.keeps_warm().and_then(|_| self.warm.deadline());
        let stay = self.stay.and_then(|stay| stay.deadline(view.now));
        walk.into_iter().chain(requests).chain(warm).chain(stay).min()
    }

    /// Whether a session is wanted now.
    pub fn wants(&self, g: &Ground) -> bool {
        match (self.intent, g.turn.settings.mode) {
            (Intent::Off | Intent::Idle, _) => false,
            (Intent::On, _) if self.stay.is_some() => true,
            (Intent::On, Mode::Auto) => true,
            (Intent::On, Mode::Manual) => self.told,
            (Intent::On, Mode::OnDemand { linger }) => {
                !self.requests.is_empty() || !g.flow.empty || g.turn.now < self.last_busy + linger
            }
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

    pub fn waiting(&mut self, g: &mut Ground, until: Instant, cause: Reason) -> Walk {
        let now = g.turn.now;
        if !self.wants(g) {
            return Walk::Resting;
        }
        // The certificate that was not valid yet, or no more, may be now.
        if matches!(g.event, Event::ClockSet) && matches!(cause, Reason::ClockWrong | Reason::Tls) {
            self.backoff.reset();
            return self.begin(g);
        }
        let until = if !g.hope.is_empty() && hopeful(cause) { until.min(self.hope_at(now, cause)) } else { until };
        if now >= until { self.begin(g) } else { Walk::Waiting { until, cause } }
    }

    pub fn hope_at(&mut self, now: Instant, cause: Reason) -> Instant {
        // Waiting for the first interface after the start is not a back-off: nothing is cut short.
        if cause == Reason::Restart {
            return now;
        }
        let at = self.last_hope.map_or(now, |last| now.max(last + HOPE_EVERY));
        self.last_hope = Some(at);
        at
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
    pub fn nothing_ready(&mut self, g: &mut Ground) -> Reason {
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

    pub fn better_is_coming(&self, g: &Ground, round: &Round) -> bool {
        let Some(first) = round.rest.front() else { return false };
        g.walk.iter().take_while(|n| *n != first).any(|name| match g.interfaces.readiness(*name) {
            Readiness::Coming(_) | Readiness::Activatable => true,
            Readiness::Ready | Readiness::Not(_) => false,
        })
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
        self.spoke(candidate, g.turn.now);
        self.windows.insert(candidate.server, window);
        self.server = candidate.server;
        self.failed_rounds = 0;
        self.all_paths_failed = false;
        self.last_full = None;
        self.way_back.moved();
        self.told = true;
        self.next = From::Current(candidate.interface);
        self.since = g.turn.now;
        g.reach.good(candidate.interface);
        g.outages.reached(g.turn);
        g.switches.reached(g.turn, candidate.interface, candidate.attempt);
        if g.turn.settings.manage_routes {
            g.turn.ask(Action::Prefer { interface: Some(candidate.interface) });
        }
        g.line = Some(Line::Open { attempt: candidate.attempt, interface: candidate.interface, window });
        if let Some(request) = via {
            // The operator wanted this connection: it is held as one that `connect` asked for.
            self.end_hold(g);
            g.turn.ask(Action::Answer { request, outcome: Outcome::Done });
        }
        Walk::Serving(Box::new(Serving::open(
            g,
            candidate,
            candidate.version,
            present,
            window,
            keep_alive,
            via.is_some(),
        )))
    }
}
