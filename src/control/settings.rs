//! What the configuration tells the heart: numbers that cannot be wrong any more.
//!
//! `src/config.rs` of the daemon makes these from TOML and has refused whatever is out of range. Sockets, names
//! and certificates are not here: the heart only says "through this interface, to server number two".

use alloc::vec::Vec;
use core::time::Duration;

use crate::name::{Class, Name, Selector};

/// Whether the daemon connects by itself (R-CL-3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Connected whenever it can be.
    Auto,
    /// Connected when there is something to send, and for `linger` after the last message.
    OnDemand { linger: Duration },
    /// Connected only when told, and not again by itself after a loss.
    Manual,
}

/// What the daemon does at its start (R-CL-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Connect,
    /// Uplinks are kept ready, the cloud is left alone until told.
    Disconnected,
    /// Nothing at all until told.
    Idle,
}

/// Whether traffic returns to a better interface (R-FB-7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failback {
    Auto,
    /// Only when told.
    Manual,
    Never,
}

impl core::fmt::Display for Failback {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(match self {
            Failback::Auto => "auto",
            Failback::Manual => "manual",
            Failback::Never => "never",
        })
    }
}

/// How ready an uplink is kept while another carries the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standby {
    /// Activated only when needed, and given back afterwards.
    Off,
    /// Activated, with an address.
    Up,
    /// And with a connection ready to speak.
    Warm,
}

/// What a lane does when it is full (R-SF-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// Forgets its oldest messages.
    DropOldest,
    /// Forgets the new one.
    DropNewest,
    /// Takes nothing, and says so.
    Refuse,
}

/// Which uplinks may carry a lane (R-FB-8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carriers {
    Any,
    Unmetered,
    Named(Vec<Selector>),
}

/// One queue of the outbox: what shares a class and the uplinks it may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneRules {
    /// Of what waits, the highest goes first.
    pub priority: u8,
    pub carriers: Carriers,
    pub overflow: Overflow,
    /// Messages held at once, in flight or not.
    pub max_messages: u64,
    /// `None` keeps its messages on disk, which has its own bound; else in memory only, at most so many bytes.
    pub memory_bytes: Option<u64>,
}

/// Lanes at most: each has a log of its own.
pub const LANES_MAX: usize = 16;

impl Default for LaneRules {
    /// What is not sorted: on disk, over anything, and full means full.
    fn default() -> LaneRules {
        LaneRules {
            priority: 5,
            carriers: Carriers::Any,
            overflow: Overflow::Refuse,
            max_messages: u64::MAX,
            memory_bytes: None,
        }
    }
}

/// The settings of one uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Costs money by the byte; `None` asks NetworkManager, then the class (cell costs).
    pub metered: Option<bool>,
    pub standby: Standby,
    /// Standby `warm`: a connection that waits to be used is renewed at this age, sooner where the server hangs up.
    pub warm_renew: Duration,
    /// Limit of one attempt from activation to CONNACK (R-CL-5).
    pub connect_timeout: Duration,
    /// MQTT keep alive (R-LV-3).
    pub keep_alive: Duration,
    /// Ping after this long without inbound bytes; `None` leaves it to the keep alive.
    pub ping_after: Option<Duration>,
    /// How long a ping may stay unanswered before it is repeated, and then before the session is dead (R-LV-4).
    pub ping_limits: [Duration; 2],
}

/// Everything the heart is told by the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub mode: Mode,
    pub start: Start,
    /// `failover.order`: used until a list is stored.
    pub order: Vec<Selector>,
    pub failback: Failback,
    pub hold_down: Duration,
    /// Silence after a loss before it is called an outage (R-CL-11).
    pub grace: Duration,
    /// Give the host's own traffic the uplink that carries the session.
    pub manage_routes: bool,
    /// Running with another configuration than the one that is written, or without one. Only shown.
    pub safe_mode: bool,
    /// How many servers `cloud.servers` names; none where nothing is configured yet.
    pub servers: u8,
    /// How many gateways share the server; 1 allows quick retries (R-CL-14).
    pub fleet_size: u32,
    /// Most messages in flight, whatever the server allows (R-TX-9).
    pub window: u16,
    /// `outbox.late`; `None` is "auto": two round trips, at least 100 ms, at most 1 s.
    pub late: Option<Duration>,
    /// The queues of the outbox; the first is where what is not sorted goes. 1 to `LANES_MAX`.
    pub lanes: Vec<LaneRules>,
    /// Settings by class, in the order of `Class::ALL`.
    pub classes: [Uplink; 3],
    /// Settings of single interfaces, whole: the class's with the interface's own laid over them.
    pub named: Vec<(Name, Uplink)>,
}

impl Uplink {
    /// The defaults of a class (R-CL-5, R-LV-3, R-LV-4).
    pub const fn of(class: Class) -> Uplink {
        let secs = Duration::from_secs;
        match class {
            Class::Ethernet | Class::Wifi => Uplink {
                metered: None,
                standby: Standby::Up,
                warm_renew: secs(60),
                connect_timeout: secs(60),
                keep_alive: secs(30),
                ping_after: Some(secs(10)),
                ping_limits: [secs(10), secs(15)],
            },
            Class::Cell => Uplink {
                metered: Some(true),
                standby: Standby::Up,
                warm_renew: secs(60),
                connect_timeout: secs(120),
                keep_alive: secs(240),
                ping_after: None,
                ping_limits: [secs(30), secs(30)],
            },
        }
    }
}

impl Settings {
    /// The settings of an interface: its own, else its class's.
    pub fn uplink(&self, name: Name, class: Class) -> &Uplink {
        let by_class = match class {
            Class::Ethernet => &self.classes[0],
            Class::Wifi => &self.classes[1],
            Class::Cell => &self.classes[2],
        };
        self.named.iter().find(|(n, _)| *n == name).map_or(by_class, |(_, uplink)| uplink)
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            mode: Mode::Auto,
            start: Start::Connect,
            order: Class::ALL.map(Selector::Class).into(),
            failback: Failback::Auto,
            hold_down: Duration::from_secs(30),
            grace: Duration::from_secs(60),
            manage_routes: false,
            safe_mode: false,
            servers: 1,
            fleet_size: 1,
            window: 256,
            late: None,
            lanes: alloc::vec![LaneRules::default()],
            classes: Class::ALL.map(Uplink::of),
            named: Vec::new(),
        }
    }
}
