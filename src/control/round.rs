//! One round of the walk: which interfaces are tried, in which order, each for how long.
//!
//! A round starts at the current interface, after it, or at the first of the list, goes on to the end and around
//! (R-IF-4), and holds only interfaces that are ready. Pure bookkeeping: the dialling is `failover`'s.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use crate::event::{Attempt, Request, Step, Version};
use crate::interfaces::{Interfaces, Readiness};
use crate::name::{Class, Name};
use crate::reason::{Blame, Reason};
use crate::time::Instant;

/// A dial may take this long while another interface is ready to be tried: three SYNs and a lost one. Doubles
/// with each round that failed, so that a slow network is not refused for ever.
const DIAL_FIRST: Duration = Duration::from_secs(4);
/// A cellular radio needs longer for its first packet.
const DIAL_FIRST_CELL: Duration = Duration::from_secs(8);
/// The longest a dial may take.
const DIAL_LONGEST: Duration = Duration::from_secs(30);

/// Where a round starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// At the first of the walk.
    First,
    /// At the interface that carried the session last.
    Current(Name),
    /// After it; it comes last.
    Next(Name),
}

/// The interface being tried.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub interface: Name,
    pub server: u8,
    /// Servers still to be tried through this interface.
    pub servers_left: u8,
    pub attempt: Attempt,
    pub born: Instant,
    /// When the attempt counts as failed.
    pub deadline: Instant,
    /// How far it has come; `Handshake` with `connecting` means that CONNECT is out.
    pub step: Step,
    pub connecting: bool,
    /// What will be, or was, said in CONNECT.
    pub version: Version,
    /// The other protocol version was already tried.
    pub other_version: bool,
    /// It waited for a while before it was needed, and may be stale.
    pub waited: bool,
}

impl Candidate {
    /// What to call it when its deadline passes.
    pub fn timed_out(&self) -> Reason {
        match self.step {
            Step::Resolving => Reason::Dns,
            Step::Connecting => Reason::NoServer,
            Step::Handshake | Step::Joining | Step::Sim | Step::Registering | Step::Bearer | Step::Addressing => {
                Reason::TimeLimit
            }
        }
    }
}

/// The interfaces still to be tried, and what the round has come to.
#[derive(Clone, Debug)]
pub struct Round {
    pub rest: VecDeque<Name>,
    /// An operator asked for this interface alone.
    pub via: Option<Request>,
    verdict: Option<Reason>,
    /// Became ready while the round was under way: tried even if the server refuses over the others.
    fresh: Vec<Name>,
}

impl Round {
    /// The ready interfaces of `walk` from `from` on and around.
    pub fn plan(from: From, walk: &[Name], interfaces: &Interfaces) -> Round {
        let position = |name: Name| walk.iter().position(|n| *n == name);
        let start = match from {
            From::First => 0,
            From::Current(name) => position(name).unwrap_or(0),
            From::Next(name) => position(name).map_or(0, |p| p + 1),
        };
        let (before, after) = walk.split_at(start.min(walk.len()));
        let ready = |name: &Name| interfaces.readiness(*name) == Readiness::Ready;
        let rest = after.iter().chain(before).copied().filter(ready).collect();
        Round { rest, via: None, verdict: None, fresh: Vec::new() }
    }

    /// This interface alone, once, because an operator asked for it.
    pub fn only(name: Name, request: Request) -> Round {
        Round { rest: [name].into(), via: Some(request), verdict: None, fresh: Vec::new() }
    }

    /// These became ready: they are tried in this round, once, each before what is worse.
    pub fn admit(&mut self, names: &[Name], walk: &[Name]) {
        let rank = |name: Name| walk.iter().position(|n| *n == name);
        for name in names.iter().copied().filter(|n| rank(*n).is_some()) {
            if self.fresh.contains(&name) {
                continue;
            }
            self.fresh.push(name);
            if !self.rest.contains(&name) {
                let at = self.rest.iter().position(|n| rank(*n) > rank(name)).unwrap_or(self.rest.len());
                self.rest.insert(at, name);
            }
        }
    }

    /// Goes on to what became ready meanwhile, and to nothing else. Says whether there is any.
    pub fn only_fresh(&mut self) -> bool {
        self.rest.retain(|n| self.fresh.contains(n));
        !self.rest.is_empty()
    }

    /// A try failed. What the server itself said weighs more than a silent path.
    pub fn note(&mut self, reason: Reason) {
        match self.verdict {
            Some(verdict) if reason.blame() == Blame::Path || verdict.blame() != Blame::Path => {}
            Some(_) | None => self.verdict = Some(reason),
        }
    }

    /// What the round has come to.
    pub fn verdict(&self) -> Option<Reason> {
        self.verdict
    }
}

/// How long a dial may take. `alone` when no other interface is ready.
pub fn dial_limit(class: Class, alone: bool, failed_rounds: u32, connect_timeout: Duration) -> Duration {
    let first = match class {
        Class::Cell => DIAL_FIRST_CELL,
        Class::Ethernet | Class::Wifi => DIAL_FIRST,
    };
    let limit = if alone { DIAL_LONGEST } else { first.saturating_mul(1 << failed_rounds.min(2)) };
    limit.min(DIAL_LONGEST).min(connect_timeout)
}

/// The interfaces of `walk` before `name`: what a return may choose from.
pub fn better_than(walk: &[Name], name: Name) -> Vec<Name> {
    walk.iter().copied().take_while(|n| *n != name).collect()
}
