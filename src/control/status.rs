//! What the heart looks like from outside: the latest value only, for displays.
//!
//! Derived from the state of the stairs after a step; nothing is decided here and nothing reads it back. Times
//! are `Instant`s; the adapters turn them into wall time and ages.

use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use crate::event::{Attempt, Step, Version};
use crate::name::{Class, Name, Selector};
use crate::reason::Reason;
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
    /// `hold-down`, `trial`, `manual`.
    pub held_because: &'static str,
}

/// The outbox as delivery knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeliveryStatus {
    pub messages: u64,
    pub in_flight: u32,
    pub refused: u64,
    pub rejected: u64,
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
    pub last_outage: Option<OutageStatus>,
    pub failback: Option<FailbackStatus>,
    pub round_trip: Option<Duration>,
}
