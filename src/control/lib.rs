//! The heart of switchback: decides, never touches.
//!
//! It is told what happened and what time it is, and answers with one ordered list of things to do. It cannot fail:
//! a failure outside is a fact that comes in. It never looks at the world: this crate has no dependency and no
//! `std`, so there is no clock, socket, file, thread or random order to be had.
//!
//! **The staircase.** An event enters at the top and goes down once, never up:
//!
//! ```text
//! interfaces ─► activation ─► failover ─► delivery ─► flush ─► outage
//!                             │ command, attempt (no session yet)
//!                             └ serving: session, suspicion, failback (while one is open)
//! ```
//!
//! Each stair sees the event and what the stairs above concluded, keeps its own state, and writes actions on the
//! list. No stair calls another; `Control::step` does the calling.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod action;
pub mod bounds;
pub mod event;
pub mod name;
pub mod reason;
pub mod settings;
pub mod status;
pub mod switch;
pub mod time;

mod activation;
mod attempt;
mod backoff;
mod command;
mod delivery;
mod failback;
mod failover;
mod flush;
mod ground;
mod interfaces;
mod loss;
mod outage;
mod quality;
mod reachability;
mod round;
mod serving;
mod session;
mod spare;
mod stay;
mod suspicion;
mod turn;
mod warm;

pub use action::{Action, Goodbye, Notice, Outcome, Refusal, Saved};
pub use event::{
    Attempt, Command, Device, Event, Lane, Measure, Order, Parcel, Request, Seq, Stage, Step, Ticket, Version,
};
pub use name::{Class, Name, NotAName, Selector};
pub use reason::{Blame, Reason};
pub use settings::{Carriers, Failback, LaneRules, Mode, Overflow, Settings, Standby, Start, Uplink};
pub use status::Status;
pub use switch::Switch;
pub use time::Instant;

use alloc::vec::Vec;
use core::ops::RangeInclusive;
use core::time::Duration;

use activation::Activation;
use backoff::Dice;
use delivery::Delivery;
use failover::{Failover, Intent, Walk};
use flush::Flushes;
use ground::{Flow, Ground, Line, View};
use interfaces::{Interfaces, Readiness};
use outage::Outages;
use reachability::Reachability;
use round::better_than;
use switch::Switches;
use turn::Turn;

/// What the store found in a lane at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unreleased {
    /// Numbers of unreleased messages, in ascending runs.
    pub runs: Vec<RangeInclusive<u64>>,
    /// The highest number ever used.
    pub highest: u64,
}

/// The heart.
#[derive(Debug)]
pub struct Control {
    settings: Settings,
    dice: Dice,
    numbers: u64,
    now: Instant,
    /// The deadline last asked for.
    scheduled: Option<Instant>,
    interfaces: Interfaces,
    activation: Activation,
    reachability: Reachability,
    failover: Failover,
    delivery: Delivery,
    flushes: Flushes,
    outages: Outages,
    switches: Switches,
}

impl Control {
    /// Starts from what survived, by lane. `seed` spreads waits and is no secret; attempt numbers begin after
    /// `first_number`, so that they never repeat over restarts if the caller sees to it.
    pub fn restore(
        settings: Settings,
        saved: Saved,
        unreleased: &[Unreleased],
        first_number: u64,
        seed: u64,
        now: Instant,
    ) -> Control {
        let failover = Failover::restore(saved, settings.start, now);
        let delivery = Delivery::restore(&settings.lanes, unreleased);
        let mut control = Control {
            settings,
            dice: Dice::new(seed),
            numbers: first_number,
            now,
            scheduled: None,
            interfaces: Interfaces::default(),
            activation: Activation::default(),
            reachability: Reachability::default(),
            failover,
            delivery,
            flushes: Flushes::default(),
            outages: Outages::default(),
            switches: Switches::default(),
        };
        control.scheduled = Some(now);
        control
    }

    /// Takes one event in, and says what is to be done, in this order.
    pub fn step(&mut self, now: Instant, event: &Event) -> Vec<Action> {
        let mut actions = Vec::new();
        self.now = self.now.max(now);
        self.excuse_stall();
        let hope = self.interfaces.absorb(self.now, event);
        if let Event::DeviceGone { interface } = event {
            self.reachability.vanished(*interface);
        }
        for name in &hope {
            self.reachability.appeared(self.now, *name);
        }
        let (walk, _) = self.interfaces.walk(self.list());
        let flow = self.flow(event);
        let failback = self.failback_mode();
        let mut turn = Turn {
            now: self.now,
            settings: &self.settings,
            dice: &mut self.dice,
            numbers: &mut self.numbers,
            actions: &mut actions,
        };
        let hands_off = self.failover.intent == Intent::Idle;
        let needed = needed(&self.failover, &self.interfaces, &walk, failback);
        let settled = self.failover.is_settled();
        self.activation.step(&mut turn, event, &self.interfaces, settled, hands_off, |name| needed.contains(&name));
        let mut ground = Ground {
            turn: &mut turn,
            event,
            interfaces: &self.interfaces,
            walk: &walk,
            reach: &mut self.reachability,
            outages: &mut self.outages,
            switches: &mut self.switches,
            flow,
            hope: &hope,
            line: None,
            abandoned: false,
        };
        self.failover.step(&mut ground);
        let line = ground.line;
        self.delivery.set_late(self.settings.late, self.failover.session().and_then(|s| s.round_trip.smoothed()));
        self.delivery.answered(&mut turn, event);
        match line {
            Some(Line::Open { attempt, interface, window }) => {
                self.delivery.open(attempt, interface, window, self.settings.window);
            }
            Some(Line::Shut) => self.delivery.shut(),
            Some(Line::Finish) => self.delivery.finish(),
            None => {}
        }
        carry(&mut self.delivery, &self.interfaces, turn.settings);
        self.delivery.step(&mut turn, event);
        if turn.actions.iter().any(|a| matches!(a, Action::Transmit { .. }))
            && let Some(session) = self.failover.session_mut()
        {
            session.spoke(self.now);
        }
        let attempt = self.failover.session().map(|s| s.attempt);
        self.flushes.step(&mut turn, event, &self.delivery, attempt);
        self.outages.step(&mut turn);
        self.switches.step(&mut turn, event, attempt, &self.delivery.status());
        if matches!(event, Event::Asked(Command::Stop)) {
            self.delivery.keep_all(&mut turn);
            if self.settings.manage_routes {
                turn.ask(Action::Prefer { interface: None });
            }
            turn.ask(Action::Exit);
        }
        self.scheduled = self.deadline(&walk);
        actions
    }

    /// When the heart wants to be called again even if nothing happens (with `Event::DeadlineReached`).
    pub fn next_deadline(&self) -> Option<Instant> {
        self.scheduled
    }

    /// The failover list in force: the stored one, else the configured order.
    fn list(&self) -> &[Selector] {
        if self.failover.saved.list.is_empty() { &self.settings.order } else { &self.failover.saved.list }
    }

    /// What delivery will say once this event is counted.
    fn flow(&self, event: &Event) -> Flow {
        let session = self.failover.session().map(|s| s.attempt);
        let settled = self.delivery.settles(event);
        let sample = match event {
            Event::Acked { attempt, seq } => self.delivery.sample(self.now, *attempt, *seq),
            _ => None,
        };
        let status = self.delivery.status();
        Flow {
            oldest_sent: self.oldest_sent(),
            waits_since: session.and_then(|attempt| self.delivery.oldest_sent(attempt, Instant::default())),
            quiet: status.in_flight as usize <= settled,
            empty: self.delivery.work() <= settled && !matches!(event, Event::Offered { .. }),
            sample,
            tally: status,
        }
    }

    /// When the oldest message was sent that the server owes an answer to.
    fn oldest_sent(&self) -> Option<Instant> {
        let session = self.failover.session()?;
        self.delivery.oldest_sent(session.attempt, session.reached())
    }

    /// A deadline served far too late means that the whole process stood still.
    fn excuse_stall(&mut self) {
        let now = self.now;
        if let (Some(scheduled), Some(session)) = (self.scheduled, self.failover.session_mut()) {
            session.excuse(now, scheduled);
        }
    }

    fn deadline(&self, walk: &[Name]) -> Option<Instant> {
        let view = self.view(walk);
        let needed = needed(&self.failover, &self.interfaces, walk, self.failback_mode());
        let wanted = |name: Name| {
            let uplink = self.uplink(name);
            self.failover.intent != Intent::Idle && (uplink.standby != Standby::Off || needed.contains(&name))
        };
        let deadlines = [
            self.activation.deadline(&self.interfaces, wanted),
            self.failover.deadline(&view),
            self.delivery.deadline(),
            self.flushes.deadline(),
            self.outages.deadline(),
        ];
        // Whatever is due now has been done; what is asked for lies ahead.
        deadlines.into_iter().flatten().min().map(|at| at.max(self.now + Duration::from_millis(1)))
    }

    fn view<'a>(&'a self, walk: &'a [Name]) -> View<'a> {
        View {
            now: self.now,
            settings: &self.settings,
            interfaces: &self.interfaces,
            walk,
            reach: &self.reachability,
            oldest_sent: self.oldest_sent(),
        }
    }

    fn failback_mode(&self) -> Failback {
        self.failover.way_back.mode(self.now, self.settings.failback).0
    }

    fn uplink(&self, name: Name) -> &Uplink {
        let class = self.interfaces.class(name).unwrap_or(Class::Ethernet);
        self.settings.uplink(self.interfaces.spoken(name), class)
    }
}

/// Tells delivery which lanes may go out over the interface of the moment, or, without one, over any that may still come up.
fn carry(delivery: &mut Delivery, interfaces: &Interfaces, settings: &Settings) {
    let over = |rules: &LaneRules, name: Name| match &rules.carriers {
        Carriers::Any => true,
        Carriers::Unmetered => !interfaces.metered(name, settings),
        Carriers::Named(list) => list.iter().any(|selector| interfaces.answers(name, *selector)),
    };
    let hopeful = |name: &Name| !matches!(interfaces.readiness(*name), Readiness::Not(_));
    match delivery.interface() {
        Some(name) => delivery.set_carried(|rules| over(rules, name)),
        None => delivery.set_carried(|rules| {
            rules.carriers == Carriers::Any || interfaces.names().filter(hopeful).any(|name| over(rules, name))
        }),
    }
}

/// The interfaces that are wanted although their standby is off: the one in use and what is better, and, when nothing that is ready
/// leads to the cloud, all of them.
fn needed(failover: &Failover, interfaces: &Interfaces, walk: &[Name], failback: Failback) -> Vec<Name> {
    match (&failover.walk, failover.intent) {
        (Walk::Resting, _) | (_, Intent::Off | Intent::Idle) => Vec::new(),
        (Walk::Serving(serving), Intent::On) => {
            // What is better is needed as well, or traffic would never return to it.
            let better =
                if failback == Failback::Auto { better_than(walk, serving.session.interface) } else { Vec::new() };
            better.into_iter().chain([serving.session.interface]).collect()
        }
        (Walk::Waiting { .. } | Walk::Trying { .. }, Intent::On) => {
            let nothing = !walk.iter().any(|n| interfaces.readiness(*n) == Readiness::Ready);
            if nothing || failover.has_failed() { walk.to_vec() } else { failover.current().into_iter().collect() }
        }
    }
}
