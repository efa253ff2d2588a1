//! Flushes: operators waiting until everything is through (R-TX-8).
//!
//! True only when nothing waits, nothing is in flight, and the kernel's send queue is empty; false when the limit
//! passed, and then nothing else has happened.

use alloc::vec::Vec;
use core::time::Duration;

use crate::action::{Action, Outcome};
use crate::event::{Attempt, Command, Event, Request};
use crate::reason::Reason;
use crate::time::Instant;
use crate::turn::Turn;

/// Flushes open at once, at most.
const FLUSHES_MAX: usize = 16;
/// How often the kernel's queue is looked at while it is all that is left.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The open flushes.
#[derive(Debug, Default)]
pub struct Flushes {
    open: Vec<(Request, Instant)>,
    /// The kernel's queue was asked about, or is to be asked about again then.
    look_at: Option<Instant>,
}

impl Flushes {
    /// Takes the event in. `empty` when nothing waits or is in flight, `attempt` the open session's number.
    pub fn step(&mut self, turn: &mut Turn, event: &Event, empty: bool, attempt: Option<Attempt>) {
        if let Event::Asked(Command::Flush { request, limit }) = event {
            if self.open.len() < FLUSHES_MAX {
                self.open.push((*request, turn.now + *limit));
            } else {
                turn.ask(Action::Answer { request: *request, outcome: Outcome::Failed(Reason::TimeLimit) });
            }
        }
        if matches!(event, Event::Asked(Command::Stop)) {
            for (request, _) in self.open.drain(..) {
                turn.ask(Action::Answer { request, outcome: Outcome::Failed(Reason::Restart) });
            }
        }
        if self.open.is_empty() {
            self.look_at = None;
            return;
        }
        match (event, attempt) {
            (Event::Drained { attempt: a, empty: true }, Some(own)) if empty && *a == own => self.done(turn),
            (_, None) if empty => self.done(turn),
            (_, Some(attempt)) if empty && self.look_at.is_none_or(|at| turn.now >= at) => {
                self.look_at = Some(turn.now + LOOK_AGAIN);
                turn.ask(Action::Drain { attempt });
            }
            _ => {}
        }
        if !empty {
            self.look_at = None;
        }
        let now = turn.now;
        let (over, open) = self.open.drain(..).partition(|(_, until)| now >= *until);
        self.open = open;
        let over: Vec<(Request, Instant)> = over;
        for (request, _) in over {
            turn.ask(Action::Answer { request, outcome: Outcome::Failed(Reason::TimeLimit) });
        }
    }

    /// When a flush is over, or the kernel's queue is looked at again.
    pub fn deadline(&self) -> Option<Instant> {
        let over = self.open.iter().map(|(_, until)| *until).min()?;
        Some(self.look_at.map_or(over, |at| at.min(over)))
    }

    fn done(&mut self, turn: &mut Turn) {
        for (request, _) in self.open.drain(..) {
            turn.ask(Action::Answer { request, outcome: Outcome::Done });
        }
        self.look_at = None;
    }
}
