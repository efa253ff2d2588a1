//! Everything that can happen, in the past tense.
//!
//! An event is a fact told by an adapter: it carries no opinion and asks for nothing. A late one is
//! recognised by its attempt number. Each prints as one line (`Display`), which is what the journal, the
//! black box and the scenario tests are made of. It is long, because the whole vocabulary stands in one place.

use core::fmt;
use core::time::Duration;

use crate::name::{Class, Name, Selector};
use crate::reason::Reason;
use crate::settings::Failback;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

/// The number of a try: activation, dial or session. Grows for ever, never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(pub u64);

/// The position of a message in the outbox: its lane in the highest eight bits, its number there below. Numbers grow for
/// ever, also over restarts; those of the first lane are written without it, others as `2:17`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

/// One queue of the outbox: what shares a class and the uplinks it may use. An index into `Settings::lanes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(pub u8);

/// The highest number in a lane.
pub const NUMBER_MAX: u64 = (1 << 56) - 1;

impl Seq {
    /// This number of this lane; higher numbers than there are become the highest.
    pub const fn new(lane: Lane, number: u64) -> Seq {
        let number = if number > NUMBER_MAX { NUMBER_MAX } else { number };
        Seq((lane.0 as u64) << 56 | number)
    }

    /// Its queue.
    pub const fn lane(self) -> Lane {
        Lane((self.0 >> 56) as u8)
    }

    /// Its number there.
    pub const fn number(self) -> u64 {
        self.0 & NUMBER_MAX
    }
}

/// What delivery must know of an offered message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parcel {
    pub lane: Lane,
    /// Bytes, with everything that is kept of it.
    pub size: u32,
    /// QoS 2: never sent before it is durable.
    pub exact: bool,
    /// Refused while no session is open (R-TX-2, not-connected).
    pub online_only: bool,
}

/// An application's message before it is ours: chosen by the adapter, unique while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// An operator's request that wants one final answer: chosen by the adapter, unique while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Request(pub u64);

/// What NetworkManager says of a device, as far as a decision needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    pub class: Class,
    /// The IP interface, where it differs from the device (a modem's `wwan0` beside `cdc-wdm0`).
    pub ip_interface: Option<Name>,
    pub stage: Stage,
    /// An IPv4 or IPv6 address (not link-local) is configured.
    pub address: bool,
    /// What NetworkManager believes about cost; `None` when it does not know.
    pub metered: Option<bool>,
}

/// How far NetworkManager is with a device (`NMDeviceState`, folded to what matters here).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// NetworkManager leaves it alone; whatever address it has was set by somebody else.
    Unmanaged,
    /// Cannot be activated now, and why (no carrier, no SIM, radio off).
    Unavailable(Reason),
    /// Could be activated; `profile` tells whether a stored profile fits it. `by_user` when an operator took it
    /// down, which we accept (R-IF-19).
    Disconnected { profile: bool, by_user: bool },
    /// Activation under way: link layer (joining, SIM, registering, bearer), then addressing.
    Activating(Step),
    /// Activated by NetworkManager's word.
    Activated,
    /// Activation failed, and why.
    Failed(Reason),
}

/// The furthest step of an attempt; each is also a state word of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Joining,
    Sim,
    Registering,
    Bearer,
    Addressing,
    Resolving,
    Connecting,
    Handshake,
}

/// What the kernel knows of one connection (`TCP_INFO` and `SIOCOUTQ`, tcp(7)). All zero where it cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measure {
    /// Smoothed round trip.
    pub round_trip: Duration,
    /// Segments sent, those sent again included.
    pub sent: u32,
    /// Segments sent again.
    pub again: u32,
    /// How long ago the far end last acknowledged anything.
    pub acked_ago: Duration,
    /// Bytes that it has not acknowledged.
    pub owed: u32,
}

/// The longest `inhibit` (R-FB-5): whoever forgets it must not pay for it for a day.
pub const INHIBIT_MAX: Duration = Duration::from_secs(3600);
/// How long `failback auto|never` holds unless told, and the longest it may: what is meant for ever belongs into the
/// configuration.
pub const FAILBACK_HOLDS: Duration = Duration::from_secs(24 * 3600);
pub const FAILBACK_HOLDS_MAX: Duration = Duration::from_secs(28 * 24 * 3600);

/// What an operator wants of the way back to a better interface (R-FB-7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Go back now, whatever the hold-down says.
    Now,
    /// Do so from now on, in place of what the configuration says, for this long.
    From(Failback, Duration),
}

/// MQTT's protocol versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V5,
    V311,
}

/// What an operator, an application or systemd asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Connect, or say so if connected. Over `via` only, once, when given. With `stay` for so long; then what was wanted
    /// before is wanted again.
    Connect { request: Request, via: Option<Name>, stay: Option<Duration> },
    /// Flush (limit 10 s), close cleanly, stay closed. `force` leaves out the flush and ends attempts under way.
    Disconnect { request: Request, force: bool },
    /// Close and connect again.
    Reconnect { request: Request },
    /// Answer when queue, window and kernel queue are empty, or the limit has passed.
    Flush { request: Request, limit: Duration },
    /// Forget what waits in one lane, or in all; what is in flight goes its way.
    Drop { request: Request, lane: Option<Lane> },
    /// Store another failover list; empty means the configured order.
    SetList { list: Vec<Selector> },
    /// What to do about better interfaces. `Now` is answered when traffic has moved, or why it has not.
    Failback { request: Request, order: Order },
    /// No planned move for this long, at most `INHIBIT_MAX`; zero ends it (R-FB-5).
    Inhibit { request: Request, limit: Duration },
    /// The daemon is asked to stop: flush is not waited for, the session is closed cleanly.
    Stop,
}

/// Everything that can happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The kernel: carrier and administrative state together.
    LinkChanged {
        interface: Name,
        up: bool,
    },
    /// The kernel: the interface is gone.
    LinkGone {
        interface: Name,
    },
    /// The kernel: whether a usable address is there.
    AddressChanged {
        interface: Name,
        present: bool,
    },
    /// NetworkManager: a device as it is now; also when it is new.
    DeviceSeen {
        interface: Name,
        device: Device,
    },
    /// NetworkManager: the device is gone.
    DeviceGone {
        interface: Name,
    },
    /// NetworkManager: the device has lost its access point, though it is still activated. A suspicion, no proof.
    AccessPointLost {
        interface: Name,
    },
    /// Somebody set the wall clock: what failed for the time it showed may not fail now.
    ClockSet,
    /// NetworkManager appeared on or vanished from the bus. Devices stay as last reported.
    NetworkManagerChanged {
        running: bool,
    },
    /// NetworkManager would not even start the activation.
    ActivationRefused {
        interface: Name,
        attempt: Attempt,
        reason: Reason,
    },

    /// A dial went on to its next step.
    DialProgressed {
        attempt: Attempt,
        step: Step,
    },
    /// TCP and, where asked for, TLS are ready; nothing of MQTT was sent. `measure` is of the handshake.
    Dialled {
        attempt: Attempt,
        measure: Measure,
    },
    /// The dial ended. `heard` when the server's address answered anything at all.
    DialFailed {
        attempt: Attempt,
        reason: Reason,
        heard: bool,
    },

    /// CONNACK said yes. `window` is the server's Receive Maximum (65,535 if it named none), `keep_alive` the
    /// interval in force (the server's, if it named one).
    Connected {
        attempt: Attempt,
        present: bool,
        window: u16,
        keep_alive: Duration,
    },
    /// Subscriptions are confirmed or resumed, and the hello message is acknowledged (R-CL-10).
    Settled {
        attempt: Attempt,
    },
    /// The connection ended, before or after CONNACK. `heard` as in `DialFailed`.
    Closed {
        attempt: Attempt,
        reason: Reason,
        heard: bool,
    },
    /// Bytes came in on this connection.
    Heard {
        attempt: Attempt,
    },
    /// The server answered our ping.
    Ponged {
        attempt: Attempt,
    },
    /// The server acknowledged a message.
    Acked {
        attempt: Attempt,
        seq: Seq,
    },
    /// A message is through without such an acknowledgement: written, at QoS 0, or all four steps of QoS 2 done. It
    /// says nothing about the round trip.
    Completed {
        attempt: Attempt,
        seq: Seq,
    },
    /// The server refused a message for good; it must not block those behind it (R-TX-13).
    Rejected {
        attempt: Attempt,
        seq: Seq,
    },
    /// What the kernel has counted on this connection, when `Measure` asked.
    Measured {
        attempt: Attempt,
        measure: Measure,
    },
    /// The kernel's send queue of this connection ran empty, or not, when a flush asked.
    Drained {
        attempt: Attempt,
        empty: bool,
    },

    /// An application offered a message.
    Offered {
        ticket: Ticket,
        parcel: Parcel,
    },
    /// Every appended message of this lane up to here is durable.
    Stored {
        through: Seq,
    },
    /// These messages of one lane are older than they may get: nobody wants them any more (R-SF-6). With an attempt they were
    /// to go out there and were not sent; without one they wait, and those in flight by now are not meant.
    Expired {
        attempt: Option<Attempt>,
        from: Seq,
        through: Seq,
    },
    /// This lane has reached its size on disk; forgetting its messages up to here would make room.
    LaneFull {
        through: Seq,
    },
    /// It has room again.
    LaneRoomy {
        lane: Lane,
    },
    /// The store of this lane could be read only now: what it held since an earlier start, in ascending runs of numbers,
    /// and the highest number ever used there. All lie below what was given out meanwhile; the heart answers with a
    /// `Release` below the first of them, and releases from before that must not touch them.
    Recovered {
        lane: Lane,
        runs: Vec<RangeInclusive<u64>>,
        highest: u64,
    },
    /// The disk cannot take more (full), or fails; appended messages not yet `Stored` stay in memory.
    StorageFailed {
        full: bool,
    },
    /// The store works again after `StorageFailed`.
    StorageHealed,

    Asked(Command),
    /// The deadline the heart asked for has come.
    DeadlineReached,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Version::V5 => "5.0",
            Version::V311 => "3.1.1",
        })
    }
}

impl Step {
    /// The state word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Step::Joining => "joining",
            Step::Sim => "sim",
            Step::Registering => "registering",
            Step::Bearer => "bearer",
            Step::Addressing => "addressing",
            Step::Resolving => "resolving",
            Step::Connecting => "connecting",
            Step::Handshake => "handshake",
        }
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lane() {
            Lane(0) => write!(f, "{}", self.number()),
            Lane(lane) => write!(f, "{lane}:{}", self.number()),
        }
    }
}

impl fmt::Display for Parcel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.size)?;
        if self.lane != Lane(0) {
            write!(f, " lane {}", self.lane.0)?;
        }
        f.write_str(if self.exact { " exact" } else { "" })?;
        f.write_str(if self.online_only { " online-only" } else { "" })
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stage::Unmanaged => f.write_str("unmanaged"),
            Stage::Unavailable(reason) => write!(f, "unavailable {reason}"),
            Stage::Disconnected { by_user: true, .. } => f.write_str("disconnected user"),
            Stage::Disconnected { profile: true, .. } => f.write_str("disconnected"),
            Stage::Disconnected { profile: false, .. } => f.write_str("disconnected no-profile"),
            Stage::Activating(step) => f.write_str(step.as_str()),
            Stage::Activated => f.write_str("activated"),
            Stage::Failed(reason) => write!(f, "failed {reason}"),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.class, self.stage)?;
        if self.address {
            f.write_str(" address")?;
        }
        if let Some(name) = self.ip_interface {
            write!(f, " ip {name}")?;
        }
        match self.metered {
            Some(true) => f.write_str(" metered"),
            Some(false) => f.write_str(" unmetered"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Measure::default() {
            return Ok(());
        }
        write!(f, " rtt {}us sent {} again {}", self.round_trip.as_micros(), self.sent, self.again)?;
        write!(f, " acked {}ms owed {}", self.acked_ago.as_millis(), self.owed)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Connect { via, stay, .. } => {
                f.write_str("asked connect")?;
                via.iter().try_for_each(|name| write!(f, " via {name}"))?;
                stay.iter().try_for_each(|stay| write!(f, " for {}s", stay.as_secs()))
            }
            Command::Disconnect { force: false, .. } => f.write_str("asked disconnect"),
            Command::Disconnect { force: true, .. } => f.write_str("asked disconnect force"),
            Command::Reconnect { .. } => f.write_str("asked reconnect"),
            Command::Flush { limit, .. } => write!(f, "asked flush {}ms", limit.as_millis()),
            Command::Drop { lane: Some(lane), .. } => write!(f, "asked drop lane {}", lane.0),
            Command::Drop { lane: None, .. } => f.write_str("asked drop"),
            Command::SetList { list } => {
                f.write_str("asked list")?;
                list.iter().try_for_each(|item| write!(f, " {item}"))
            }
            Command::Failback { order: Order::Now, .. } => f.write_str("asked failback now"),
            Command::Failback { order: Order::From(failback, limit), .. } => {
                write!(f, "asked failback {failback} for {}s", limit.as_secs())
            }
            Command::Inhibit { limit, .. } => write!(f, "asked inhibit {}s", limit.as_secs()),
            Command::Stop => f.write_str("asked stop"),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heard = |heard: &bool| if *heard { " heard" } else { "" };
        match self {
            Event::LinkChanged { interface, up } => write!(f, "link {interface} {}", if *up { "up" } else { "down" }),
            Event::LinkGone { interface } => write!(f, "link {interface} gone"),
            Event::AddressChanged { interface, present } => {
                write!(f, "address {interface} {}", if *present { "present" } else { "absent" })
            }
            Event::DeviceSeen { interface, device } => write!(f, "device {interface} {device}"),
            Event::DeviceGone { interface } => write!(f, "device {interface} gone"),
            Event::AccessPointLost { interface } => write!(f, "access point {interface} lost"),
            Event::ClockSet => f.write_str("clock set"),
            Event::NetworkManagerChanged { running } => {
                write!(f, "networkmanager {}", if *running { "running" } else { "gone" })
            }
            Event::ActivationRefused { interface, attempt, reason } => {
                write!(f, "activation {attempt} refused {interface} {reason}")
            }
            Event::DialProgressed { attempt, step } => write!(f, "dial {attempt} {}", step.as_str()),
            Event::Dialled { attempt, measure } => write!(f, "dialled {attempt}{measure}"),
            Event::DialFailed { attempt, reason, heard: h } => write!(f, "dial {attempt} failed {reason}{}", heard(h)),
            Event::Connected { attempt, present, window, keep_alive } => write!(
                f,
                "connected {attempt} {} window {window} keep-alive {}s",
                if *present { "resumed" } else { "fresh" },
                keep_alive.as_secs()
            ),
            Event::Settled { attempt } => write!(f, "settled {attempt}"),
            Event::Closed { attempt, reason, heard: h } => write!(f, "closed {attempt} {reason}{}", heard(h)),
            Event::Heard { attempt } => write!(f, "heard {attempt}"),
            Event::Ponged { attempt } => write!(f, "ponged {attempt}"),
            Event::Acked { attempt, seq } => write!(f, "acked {attempt} {seq}"),
            Event::Completed { attempt, seq } => write!(f, "completed {attempt} {seq}"),
            Event::Rejected { attempt, seq } => write!(f, "rejected {attempt} {seq}"),
            Event::Measured { attempt, measure } => write!(f, "measured {attempt}{measure}"),
            Event::Drained { attempt, empty } => {
                write!(f, "drained {attempt} {}", if *empty { "empty" } else { "not" })
            }
            Event::Offered { ticket, parcel } => write!(f, "offered {} {parcel}", ticket.0),
            Event::Stored { through } => write!(f, "stored {through}"),
            Event::Expired { attempt, from, through } => {
                f.write_str("expired")?;
                attempt.iter().try_for_each(|attempt| write!(f, " {attempt}"))?;
                if from == through { write!(f, " {from}") } else { write!(f, " {from} to {through}") }
            }
            Event::LaneFull { through } => write!(f, "lane full {through}"),
            Event::LaneRoomy { lane } => write!(f, "lane roomy {}", lane.0),
            Event::Recovered { lane, runs, highest } => {
                write!(f, "recovered lane {} highest {highest}", lane.0)?;
                runs.iter().try_for_each(|run| write!(f, " {}-{}", run.start(), run.end()))
            }
            Event::StorageFailed { full } => write!(f, "storage {}", if *full { "full" } else { "failed" }),
            Event::StorageHealed => f.write_str("storage healed"),
            Event::Asked(command) => command.fmt(f),
            Event::DeadlineReached => f.write_str("deadline"),
        }
    }
}
