//! Outages: when one began, what it was blamed on, who has been told, when it ended.
//!
//! Two steps (R-CL-11): "lost" at once, "outage" after the grace, each once, and "restored" if anything was said. A
//! move to a spare that had proved itself is an outage of milliseconds: it is recorded, and "lost" is said only
//! if the move does not come about at once. The first connect counts as well (R-CL-12).

use alloc::vec::Vec;
use core::time::Duration;

use crate::action::{Action, Notice};
use crate::name::Name;
use crate::reason::{Blame, Reason};
use crate::status::OutageStatus;
use crate::time::Instant;
use crate::turn::Turn;

/// How long a proved spare has to take over before anybody is told; "lost" is promised within a second.
const COVERED: Duration = Duration::from_millis(500);
/// Interfaces counted as tried, at most.
const TRIED_MAX: usize = 32;

#[derive(Debug)]
struct Open {
    first_cause: Reason,
    last_reason: Reason,
    alive: Instant,
    began: Instant,
    lost_at: Option<Instant>,
    outage_at: Option<Instant>,
    told: bool,
    attempts: u32,
    tried: Vec<Name>,
}

/// The outage under way, and the last one.
#[derive(Debug, Default)]
pub struct Outages {
    open: Option<Open>,
    last: Option<OutageStatus>,
}

impl Outages {
    /// The session is lost; it was known to live at `alive`. `covered` when a proved spare takes over.
    pub fn began(&mut self, turn: &mut Turn, alive: Instant, reason: Reason, covered: bool) {
        let now = turn.now;
        match &mut self.open {
            Some(open) => open.last_reason = reason,
            None => {
                self.open = Some(Open {
                    first_cause: reason,
                    last_reason: reason,
                    alive,
                    began: now,
                    lost_at: Some(if covered { now + COVERED } else { now }),
                    outage_at: Some(now + turn.settings.grace),
                    told: false,
                    attempts: 0,
                    tried: Vec::new(),
                });
            }
        }
        self.step(turn);
    }

    /// Another try, through this interface.
    pub fn tried(&mut self, name: Name) {
        if let Some(open) = &mut self.open {
            open.attempts = open.attempts.saturating_add(1);
            if !open.tried.contains(&name) && open.tried.len() < TRIED_MAX {
                open.tried.push(name);
            }
        }
    }

    /// A try failed.
    pub fn failed(&mut self, reason: Reason) {
        if let Some(open) = &mut self.open {
            open.last_reason = reason;
        }
    }

    /// A connection is open again. Nobody heard of a loss that is over so soon; otherwise it is over once the session
    /// has settled (R-CL-10).
    pub fn reached(&mut self, turn: &mut Turn) {
        if self.open.as_ref().is_some_and(|open| !open.told) {
            self.ended(turn);
        }
    }

    /// A session is open again, and settled.
    pub fn ended(&mut self, turn: &mut Turn) {
        if let Some(open) = self.open.take() {
            // A planned move that came about at once was no outage.
            if open.told || open.first_cause.blame() != Blame::Ours {
                self.last = Some(open.status(Some(turn.now)));
            }
            if open.told {
                turn.ask(Action::Notify(Notice::Restored));
            }
        }
    }

    /// Nobody wants a session any more: the outage is over without an end.
    pub fn dropped(&mut self) {
        if let Some(open) = self.open.take() {
            self.last = Some(open.status(None));
        }
    }

    /// Tells whom it is time to tell.
    pub fn step(&mut self, turn: &mut Turn) {
        let Some(open) = &mut self.open else { return };
        if open.lost_at.is_some_and(|at| turn.now >= at) {
            open.lost_at = None;
            open.told = true;
            turn.ask(Action::Notify(Notice::Lost { reason: open.first_cause }));
        }
        if open.outage_at.is_some_and(|at| turn.now >= at) {
            open.outage_at = None;
            turn.ask(Action::Notify(Notice::Outage { reason: open.first_cause }));
        }
    }

    /// When somebody is next to be told.
    pub fn deadline(&self) -> Option<Instant> {
        let open = self.open.as_ref()?;
        open.lost_at.into_iter().chain(open.outage_at).min()
    }

    /// What the outage under way began with.
    pub fn first_cause(&self) -> Option<Reason> {
        self.open.as_ref().map(|open| open.first_cause)
    }

    /// The outage under way, else the last one.
    pub fn status(&self) -> Option<OutageStatus> {
        self.open.as_ref().map(|o| o.status(None)).or(self.last)
    }
}

impl Open {
    fn status(&self, ended: Option<Instant>) -> OutageStatus {
        OutageStatus {
            first_cause: self.first_cause,
            last_reason: self.last_reason,
            alive: self.alive,
            began: self.began,
            ended,
            attempts: self.attempts,
            uplinks_tried: self.tried.len() as u32,
        }
    }
}
