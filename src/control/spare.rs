//! The second connection: made and proved while the first carries the traffic.
//!
//! It exists for three reasons: a better interface is tried (failback), the session is suspect (rescue), or an
//! operator wants another interface once (visit). It goes up to, but not including, CONNECT; one client identity has
//! one session, so CONNECT is the switch itself. At most one spare exists. What becomes of the session is decided
//! in `serving`.

use alloc::vec::Vec;
use core::time::Duration;

use crate::event::{Attempt, Request};
use crate::name::Name;
use crate::time::Instant;

/// A spare that is not ready by then has failed.
pub const SPARE_LIMIT: Duration = Duration::from_secs(10);
/// How long what is in flight may take to finish before a planned move goes on regardless.
pub const FINISH_LIMIT: Duration = Duration::from_secs(1);

/// How often a better interface has been dialled in this trial, and how often that spoke for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proofs {
    pub dials: u32,
    pub good: u32,
}

/// Why there is a spare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A better interface is being proved; or an operator wants traffic to return now.
    Failback { proofs: Proofs, request: Option<Request> },
    /// The session is suspect. Interfaces already tried for it.
    Rescue { tried: Vec<Name> },
    /// An operator asked for this interface.
    Visit { request: Request },
}

/// The spare, if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spare {
    None,
    /// Between two proofs of a better interface.
    Resting {
        interface: Name,
        until: Instant,
        proofs: Proofs,
    },
    Dialling {
        interface: Name,
        attempt: Attempt,
        began: Instant,
        deadline: Instant,
        purpose: Purpose,
    },
    /// Proved. Only a rescue waits here: for the session to answer, or to be found guilty.
    Ready {
        interface: Name,
        attempt: Attempt,
        /// From when on it may take over from a suspect.
        trusted_from: Instant,
        purpose: Purpose,
    },
    /// A planned move: what is in flight finishes on the old connection.
    Finishing {
        interface: Name,
        attempt: Attempt,
        until: Instant,
        purpose: Purpose,
    },
    /// A planned move: CONNECT is out on the new connection, the old one is still there.
    Moving {
        interface: Name,
        attempt: Attempt,
        deadline: Instant,
        purpose: Purpose,
    },
}

impl Spare {
    /// The number of its connection.
    pub fn attempt(&self) -> Option<Attempt> {
        match self {
            Spare::None | Spare::Resting { .. } => None,
            Spare::Dialling { attempt, .. }
            | Spare::Ready { attempt, .. }
            | Spare::Finishing { attempt, .. }
            | Spare::Moving { attempt, .. } => Some(*attempt),
        }
    }

    /// Why there is one.
    pub fn purpose(&self) -> Option<&Purpose> {
        match self {
            Spare::None | Spare::Resting { .. } => None,
            Spare::Dialling { purpose, .. }
            | Spare::Ready { purpose, .. }
            | Spare::Finishing { purpose, .. }
            | Spare::Moving { purpose, .. } => Some(purpose),
        }
    }

    /// The interface it uses.
    pub fn interface(&self) -> Option<Name> {
        match self {
            Spare::None => None,
            Spare::Resting { interface, .. }
            | Spare::Dialling { interface, .. }
            | Spare::Ready { interface, .. }
            | Spare::Finishing { interface, .. }
            | Spare::Moving { interface, .. } => Some(*interface),
        }
    }

    /// From when on it may take over from a suspect.
    pub fn trusted_from(&self) -> Option<Instant> {
        match self {
            Spare::Ready { trusted_from, .. } => Some(*trusted_from),
            Spare::None
            | Spare::Resting { .. }
            | Spare::Dialling { .. }
            | Spare::Finishing { .. }
            | Spare::Moving { .. } => None,
        }
    }

    /// When it has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Spare::None | Spare::Ready { .. } => None,
            Spare::Resting { until, .. } | Spare::Finishing { until, .. } => Some(*until),
            Spare::Dialling { deadline, .. } | Spare::Moving { deadline, .. } => Some(*deadline),
        }
    }
}
