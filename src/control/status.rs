//! What the heart looks like from outside: the latest value only, for displays.
//!
//! Derived from the state of the stairs after a step; nothing is decided here and nothing reads it back. Times
//! are `Instant`s; the adapters turn them into wall time and ages.

use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::Control;
use crate::event::{Attempt, Step, Version};
use crate::failover::{Intent, Walk};
use crate::interfaces::Readiness;
use crate::name::{Class, Name, Selector};
use crate::reason::{Blame, Reason};
use crate::serving::Serving;
use crate::session::Silence;
use crate::settings::Failback;
use crate::spare::Spare;
use crate::switch::Switch;
use crate::time::Instant;

/// One word for the whole (the states of the contract).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Told to stay disconnected.
    Off,
    /// Nothing to do: idle start, on-demand without demand, manual after a loss.
    Idle,
    /// An attempt is under way and has come this far.
    Step(Step),
    Online,
    OnlineOnBackup,
    /// The session is open but nothing comes in.
    Stalled,
    NoInternet,
    CaptivePortal,
    NoCloud,
    AuthError,
    ClockWrong,
    /// Nothing is wrong with the connection, but with what the daemon runs with: stands in the place of `online`,
    /// `online-on-backup` and `idle`.
    SafeMode,
}

impl State {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Off => "off",
            State::Idle => "idle",
            State::Step(step) => step.as_str(),
            State::Online => "online",
            State::OnlineOnBackup => "online-on-backup",
            State::Stalled => "stalled",
            State::NoInternet => "no-internet",
            State::CaptivePortal => "captive-portal",
            State::NoCloud => "no-cloud",
            State::AuthError => "auth-error",
            State::ClockWrong => "clock-wrong",
            State::SafeMode => "safe-mode",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The session, while one is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    pub attempt: Attempt,
    pub server: u8,
    pub version: Version,
    pub present: bool,
    pub settled: bool,
}

/// One interface of the walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UplinkStatus {
    /// As the adapters know it (a modem's control port).
    pub interface: Name,
    /// As people know it: the IP interface where there is one.
    pub name: Name,
    pub class: Class,
    /// Where it stands: the furthest step, or `online`, `idle` (ready), `no-internet`…
    pub state: State,
    pub usable: bool,
    /// Why it is not usable, or why the last attempt through it failed.
    pub reason: Option<Reason>,
    pub metered: bool,
    /// The round trip to the cloud through it, as last measured.
    pub round_trip: Option<Duration>,
    /// Of a thousand segments sent lately, how many had to be sent again.
    pub loss: Option<u16>,
    /// A connection through it waits to be used (standby `warm`).
    pub warm: bool,
}

/// One outage, over or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutageStatus {
    pub first_cause: Reason,
    pub last_reason: Reason,
    /// The last moment the session was known to live.
    pub alive: Instant,
    /// When the loss was noticed.
    pub began: Instant,
    pub ended: Option<Instant>,
    pub attempts: u32,
    pub uplinks_tried: u32,
}

/// What keeps traffic from returning to a better interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailbackStatus {
    pub target: Name,
    pub eligible_at: Option<Instant>,
    /// `hold-down`, `trial`, `manual`, `never`, `inhibited`.
    pub held_because: &'static str,
}

/// The outbox as delivery knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeliveryStatus {
    pub messages: u64,
    pub in_flight: u32,
    pub refused: u64,
    pub rejected: u64,
    /// Given up by the rule of their lane, or at an operator's word.
    pub dropped: u64,
    /// Older than they may get.
    pub expired: u64,
    /// Sent again on another connection.
    pub repeated: u64,
}

/// One lane of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneStatus {
    pub messages: u64,
    pub in_flight: u64,
    pub refused: u64,
    pub rejected: u64,
    pub dropped: u64,
    pub expired: u64,
    /// The uplink of the moment may carry it; without one, any that is there.
    pub carried: bool,
}

/// What makes a line in the journal when it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub state: State,
    pub uplink: Option<Name>,
    pub outage: Option<OutageStatus>,
}

/// The whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub state: State,
    pub connected: bool,
    /// The interface that carries the session.
    pub uplink: Option<Name>,
    pub since: Instant,
    pub last_inbound: Option<Instant>,
    pub next_attempt: Option<Instant>,
    pub session: Option<SessionStatus>,
    pub stored: Vec<Selector>,
    pub walk: Vec<Name>,
    pub index: usize,
    /// How many items of `walk` come from the list; the rest is the default tail.
    pub listed: usize,
    pub absent: Vec<Selector>,
    pub uplinks: Vec<UplinkStatus>,
    pub delivery: DeliveryStatus,
    /// By lane, as in the settings.
    pub lanes: Vec<LaneStatus>,
    pub last_outage: Option<OutageStatus>,
    pub failback: Option<FailbackStatus>,
    /// What holds now, and until when where an operator said so.
    pub failback_mode: Failback,
    pub failback_until: Option<Instant>,
    pub inhibited_until: Option<Instant>,
    pub last_switch: Option<Switch>,
    pub round_trip: Option<Duration>,
}

impl Control {
    /// The latest picture.
    pub fn status(&self) -> Status {
        let (walk, listed) = self.interfaces.walk(self.list());
        let serving = match &self.failover.walk {
            Walk::Resting | Walk::Waiting { .. } | Walk::Trying { .. } => None,
            Walk::Serving(serving) => Some(serving),
        };
        let current = self.failover.current();
        let index = current.and_then(|name| walk.iter().position(|n| *n == name)).unwrap_or(0);
        Status {
            state: self.word(index),
            connected: serving.is_some_and(|s| s.session.settled),
            uplink: serving.map(|s| self.interfaces.spoken(s.session.interface)),
            since: self.failover.since,
            last_inbound: serving.map(|s| s.session.last_inbound),
            // While an attempt is under way, the next one is now (R-CL-1).
            next_attempt: match &self.failover.walk {
                Walk::Waiting { until, .. } => Some(*until),
                Walk::Trying { .. } => Some(self.now),
                Walk::Resting | Walk::Serving(_) => None,
            },
            session: serving.map(|s| SessionStatus {
                attempt: s.session.attempt,
                server: s.session.server,
                version: s.session.version,
                present: s.session.present,
                settled: s.session.settled,
            }),
            stored: self.failover.saved.list.clone(),
            index,
            listed,
            absent: self.interfaces.absent(&self.failover.saved.list),
            uplinks: walk.iter().map(|name| self.uplink_status(*name, index)).collect(),
            walk: walk.iter().map(|name| self.interfaces.spoken(*name)).collect(),
            delivery: self.delivery.status(),
            lanes: self.delivery.lanes(),
            last_outage: self.outages.status(),
            failback: serving.and_then(|s| self.failback_status(&walk, s)),
            failback_mode: self.failback_mode(),
            failback_until: self.failover.way_back.mode(self.now, self.settings.failback).1,
            inhibited_until: self.failover.way_back.inhibited(self.now),
            last_switch: self.switches.last(),
            round_trip: serving.and_then(|s| s.session.round_trip.smoothed()),
        }
    }

    /// The little that the journal compares after every step.
    pub fn summary(&self) -> Summary {
        let current = self.failover.current();
        let index = match current {
            // The walk is only made for the interface that matters.
            Some(name) => self.interfaces.walk(self.list()).0.iter().position(|n| *n == name).unwrap_or(0),
            None => 0,
        };
        let uplink = self.failover.session().map(|s| self.interfaces.spoken(s.interface));
        Summary { state: self.word(index), uplink, outage: self.outages.status() }
    }

    fn word(&self, index: usize) -> State {
        match self.state(index) {
            State::Online | State::OnlineOnBackup | State::Idle if self.settings.safe_mode => State::SafeMode,
            state => state,
        }
    }

    fn state(&self, index: usize) -> State {
        match &self.failover.walk {
            Walk::Resting => match self.failover.intent {
                Intent::Off => State::Off,
                Intent::Idle | Intent::On => State::Idle,
            },
            Walk::Waiting { cause, .. } => self.waiting_state(*cause),
            Walk::Trying { candidate, .. } => State::Step(candidate.step),
            Walk::Serving(serving) if !serving.session.settled => State::Step(Step::Handshake),
            Walk::Serving(serving) => match serving.session.silence(self.now, self.oldest_sent()) {
                Silence::Guilty => State::Stalled,
                Silence::Innocent | Silence::Suspect if index > 0 => State::OnlineOnBackup,
                Silence::Innocent | Silence::Suspect => State::Online,
            },
        }
    }

    /// What a wait is called: an interface that is coming up says more than the last failure.
    fn waiting_state(&self, cause: Reason) -> State {
        let coming = self.interfaces.names().find_map(|name| match self.interfaces.readiness(name) {
            Readiness::Coming(step) => Some(step),
            Readiness::Ready | Readiness::Activatable | Readiness::Not(_) => None,
        });
        match (cause.blame(), coming) {
            (Blame::Path | Blame::Ours, Some(step)) => State::Step(step),
            (Blame::Credentials, _) => State::AuthError,
            (Blame::Server | Blame::Identity, _) => State::NoCloud,
            (Blame::Path | Blame::Ours, None) => match cause {
                // The first moments: nothing is known yet, and nothing has failed.
                Reason::Restart => State::Step(Step::Joining),
                Reason::CaptivePortal => State::CaptivePortal,
                Reason::ClockWrong => State::ClockWrong,
                Reason::Tls => State::NoCloud,
                _ => State::NoInternet,
            },
        }
    }

    fn uplink_status(&self, name: Name, index: usize) -> UplinkStatus {
        let readiness = self.interfaces.readiness(name);
        let failure = self.reachability.last_failure(name);
        let quality = self.reachability.quality(name);
        let (state, usable, reason) = match (&self.failover.walk, readiness) {
            (Walk::Serving(s), _) if s.session.interface == name => (self.state(index), true, None),
            (Walk::Trying { candidate, .. }, _) if candidate.interface == name => {
                (State::Step(candidate.step), true, failure)
            }
            (_, Readiness::Ready) if failure.is_some_and(|r| r.blame() == Blame::Path) => {
                (State::NoInternet, true, failure)
            }
            (_, Readiness::Ready) => (State::Idle, true, failure),
            (_, Readiness::Coming(step)) => (State::Step(step), false, failure),
            (_, Readiness::Activatable) => (State::Idle, false, failure),
            (_, Readiness::Not(reason)) => (State::Off, false, Some(reason)),
        };
        UplinkStatus {
            interface: name,
            name: self.interfaces.spoken(name),
            class: self.interfaces.class(name).unwrap_or(Class::Ethernet),
            state,
            usable,
            reason,
            metered: self.interfaces.metered(name, &self.settings),
            round_trip: quality.round_trip,
            loss: quality.loss,
            warm: self.failover.warm.is_ready(name),
        }
    }

    fn failback_status(&self, walk: &[Name], serving: &Serving) -> Option<FailbackStatus> {
        let (target, at) = self.failover.failback_target(&self.view(walk), serving)?;
        let inhibited = self.failover.way_back.inhibited(self.now);
        let free = self.failover.way_back.free_from(self.now, self.settings.failback);
        let eligible_at = free.map(|free| free.max(at));
        let held_because = match (self.failback_mode(), &serving.spare) {
            (Failback::Manual, _) => "manual",
            (Failback::Never, _) => "never",
            (Failback::Auto, _) if inhibited.is_some_and(|until| until > at) => "inhibited",
            (Failback::Auto, Spare::None) => "hold-down",
            (Failback::Auto, _) => "trial",
        };
        Some(FailbackStatus { target: self.interfaces.spoken(target), eligible_at, held_because })
    }
}
