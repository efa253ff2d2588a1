//! Everything that can be asked of the world, in the imperative.
//!
//! Actions are performed in the order of the list. Only `Save` is waited for (with a limit); everything else
//! is handed over and answers later as an event. Each prints as one line, as events do.

use core::fmt;
use core::time::Duration;

use alloc::vec::Vec;

use crate::event::{Attempt, Lane, Request, Seq, Ticket, Version};
use crate::name::{Name, Selector};
use crate::reason::Reason;
use crate::switch::Switch;

/// The one value that survives a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// The failover list as set by the operator; empty means the configured order.
    pub list: Vec<Selector>,
    /// Told to stay disconnected; holds until `connect` or reboot (R-CL-6).
    pub held: bool,
    /// The last interface over which the cloud was reached in the ordinary way (R-CF-6).
    pub last_good: Option<Name>,
}

/// How a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goodbye {
    /// Publish the offline status in place of the will, then DISCONNECT: the gateway goes away on purpose.
    Offline,
    /// DISCONNECT without the will: the session goes on over another connection (3.1.1 planned move).
    Moving,
    /// End the socket at once; nobody is there to read a farewell.
    Abort,
}

/// Something applications and operators are told, each once per outage (R-CL-11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    Lost { reason: Reason },
    Outage { reason: Reason },
    Restored,
}

/// Why an offered message is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No room, and nobody to keep it.
    Full,
    /// No room, and its lane drops what comes last.
    Dropped,
    /// It asked for a session, and there is none.
    NotConnected,
}

/// What a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Failed(Reason),
}

/// Everything that can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make this the value found after the next start, whatever happens meanwhile.
    Save(Saved),
    /// Have NetworkManager activate the best stored profile of the interface.
    Activate {
        interface: Name,
        attempt: Attempt,
    },
    /// Have NetworkManager deactivate what we activated.
    Deactivate {
        interface: Name,
    },
    /// Resolve, connect and shake hands with server number `server` through `interface`; stop before CONNECT.
    Dial {
        interface: Name,
        server: u8,
        attempt: Attempt,
    },
    /// Send CONNECT on a dialled connection and speak MQTT on it from now on.
    /// The keep alive is the uplink's own (R-LV-3); the server may answer with another.
    Connect {
        attempt: Attempt,
        version: Version,
        keep_alive: Duration,
    },
    /// End a dial or a connection. Its number is dead: nothing of it is reported any more.
    HangUp {
        attempt: Attempt,
        goodbye: Goodbye,
    },
    /// Ask the server for a sign of life.
    Ping {
        attempt: Attempt,
    },
    /// Report what the kernel has counted on this connection.
    Measure {
        attempt: Attempt,
    },
    /// Report whether the kernel's send queue is empty.
    Drain {
        attempt: Attempt,
    },

    /// The offered message is now ours, under this number.
    Admit {
        ticket: Ticket,
        seq: Seq,
    },
    /// Hand the message to the connection; `again` when it may have been sent before. On a session that is resumed this
    /// may come before CONNACK: the message goes out right behind CONNECT (R-CS-4).
    Transmit {
        attempt: Attempt,
        seq: Seq,
        again: bool,
    },
    /// Make the message durable.
    Append {
        seq: Seq,
    },
    /// Tell the application: kept.
    Accept {
        ticket: Ticket,
    },
    /// Tell the application: not taken, and why.
    Refuse {
        ticket: Ticket,
        refusal: Refusal,
    },
    /// These messages of one lane will never be sent: dropped by the rule of their lane, expired, or at an operator's
    /// word. Their room comes back with `Release`.
    Discard {
        from: Seq,
        through: Seq,
    },
    /// Everything of this lane up to here may be forgotten.
    Release {
        through: Seq,
    },
    /// Tell which messages of this lane are too old, in the whole of it: it has as many as it may.
    FindExpired {
        lane: Lane,
    },
    /// Put a message the server rejected aside, with its reason, and forget it.
    SetAside {
        seq: Seq,
    },

    /// Give the host's own traffic this interface too, by the lowest route metric (`manage_routes`); none gives every
    /// route back as the profiles say.
    Prefer {
        interface: Option<Name>,
    },
    /// Traffic has moved to another interface: the one record of it (R-FX-15).
    Record(Switch),
    Answer {
        request: Request,
        outcome: Outcome,
    },
    Notify(Notice),
    /// Everything is closed; the process may end.
    Exit,
}

/// The longest list one step may return, besides message actions, which the window bounds. A longer one is a defect;
/// the simulation checks it.
pub const CONNECTIVITY_ACTIONS_MAX: usize = 32;

/// How long the loop waits for a `Save` before it goes on without.
pub const SAVE_LIMIT: Duration = Duration::from_secs(2);

impl Action {
    /// Whether this belongs to the message traffic, which is counted rather than logged.
    pub fn is_message(&self) -> bool {
        match self {
            Action::Admit { .. }
            | Action::Transmit { .. }
            | Action::Append { .. }
            | Action::Accept { .. }
            | Action::Refuse { .. }
            | Action::Discard { .. }
            | Action::Release { .. }
            | Action::FindExpired { .. } => true,
            Action::Save(_)
            | Action::Activate { .. }
            | Action::Deactivate { .. }
            | Action::Dial { .. }
            | Action::Connect { .. }
            | Action::HangUp { .. }
            | Action::Ping { .. }
            | Action::Measure { .. }
            | Action::Drain { .. }
            | Action::SetAside { .. }
            | Action::Prefer { .. }
            | Action::Record(_)
            | Action::Answer { .. }
            | Action::Notify(_)
            | Action::Exit => false,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Refusal::Full => "full",
            Refusal::Dropped => "dropped",
            Refusal::NotConnected => "not-connected",
        })
    }
}

impl fmt::Display for Saved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("list")?;
        self.list.iter().try_for_each(|item| write!(f, " {item}"))?;
        if self.held {
            f.write_str(", held")?;
        }
        match self.last_good {
            Some(name) => write!(f, ", last good {name}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Save(saved) => write!(f, "save {saved}"),
            Action::Activate { interface, attempt } => write!(f, "activate {interface} {attempt}"),
            Action::Deactivate { interface } => write!(f, "deactivate {interface}"),
            Action::Dial { interface, server, attempt } => write!(f, "dial {interface} server {server} {attempt}"),
            Action::Connect { attempt, version, keep_alive } => {
                write!(f, "connect {attempt} mqtt {version} keep-alive {}s", keep_alive.as_secs())
            }
            Action::HangUp { attempt, goodbye } => write!(
                f,
                "hang up {attempt} {}",
                match goodbye {
                    Goodbye::Offline => "offline",
                    Goodbye::Moving => "moving",
                    Goodbye::Abort => "abort",
                }
            ),
            Action::Ping { attempt } => write!(f, "ping {attempt}"),
            Action::Measure { attempt } => write!(f, "measure {attempt}"),
            Action::Prefer { interface: Some(name) } => write!(f, "prefer {name}"),
            Action::Prefer { interface: None } => f.write_str("prefer none"),
            Action::Record(switch) => write!(f, "record {switch}"),
            Action::Drain { attempt } => write!(f, "drain {attempt}"),
            Action::Admit { ticket, seq } => write!(f, "admit {} as {seq}", ticket.0),
            Action::Transmit { attempt, seq, again } => {
                write!(f, "transmit {attempt} {seq}{}", if *again { " again" } else { "" })
            }
            Action::Append { seq } => write!(f, "append {seq}"),
            Action::Accept { ticket } => write!(f, "accept {}", ticket.0),
            Action::Refuse { ticket, refusal: Refusal::Full } => write!(f, "refuse {}", ticket.0),
            Action::Refuse { ticket, refusal } => write!(f, "refuse {} {refusal}", ticket.0),
            Action::Discard { from, through } if from == through => write!(f, "discard {from}"),
            Action::Discard { from, through } => write!(f, "discard {from} to {through}"),
            Action::Release { through } => write!(f, "release {through}"),
            Action::FindExpired { lane } => write!(f, "find expired lane {}", lane.0),
            Action::SetAside { seq } => write!(f, "set aside {seq}"),
            Action::Answer { request: _, outcome: Outcome::Done } => f.write_str("answer done"),
            Action::Answer { request: _, outcome: Outcome::Failed(reason) } => write!(f, "answer failed {reason}"),
            Action::Notify(Notice::Lost { reason }) => write!(f, "notify lost {reason}"),
            Action::Notify(Notice::Outage { reason }) => write!(f, "notify outage {reason}"),
            Action::Notify(Notice::Restored) => f.write_str("notify restored"),
            Action::Exit => f.write_str("exit"),
        }
    }
}
