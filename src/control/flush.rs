//! Flushes: operators waiting until everything offered so far is through (R-TX-8).
//!
//! True only when every message that was admitted before the question is through, and the kernel has handed over the
//! bytes it then held: its queue is empty, or something sent later was answered. What comes later is waited for by nobody.
//! False when the limit passed, and then nothing else has happened.

use alloc::vec::Vec;
use core::time::Duration;

use crate::action::{Action, Outcome};
use crate::delivery::Delivery;
use crate::event::{Attempt, Command, Event, Request};
use crate::reason::Reason;
use crate::time::Instant;
use crate::turn::Turn;

/// Flushes open at once, at most.
const FLUSHES_MAX: usize = 16;
/// How often the kernel's queue is looked at while it is all that is left.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct Flush {
    request: Request,
    until: Instant,
    /// Where each lane stood when it was asked for.
    marks: Vec<u64>,
    /// Since when everything before is through.
    through: Option<Instant>,
}

/// The open flushes.
#[derive(Debug, Default)]
pub struct Flushes {
    open: Vec<Flush>,
    /// The kernel's queue was asked about, or is to be asked about again then.
    look_at: Option<Instant>,
}

impl Flushes {
    /// Takes the event in; `attempt` is the open session's number.
    pub fn step(&mut self, turn: &mut Turn, event: &Event, delivery: &Delivery, attempt: Option<Attempt>) {
        if let Event::Asked(Command::Flush { request, limit }) = event {
            if self.open.len() < FLUSHES_MAX {
                let (until, marks) = (turn.now + *limit, delivery.marks());
                self.open.push(Flush { request: *request, until, marks, through: None });
            } else {
                turn.ask(Action::Answer { request: *request, outcome: Outcome::Failed(Reason::TimeLimit) });
            }
        }
        if matches!(event, Event::Asked(Command::Stop)) {
            self.answer(turn, Outcome::Failed(Reason::Restart), |_| true);
        }
        for flush in &mut self.open {
            flush.through = flush.through.or_else(|| delivery.is_through(&flush.marks).then_some(turn.now));
        }
        let drained = matches!(event, Event::Drained { attempt: a, empty: true } if Some(*a) == attempt);
        self.answer(turn, Outcome::Done, |flush| {
            // Under a load that never pauses the kernel's queue is never empty; an answer to what came later says as much.
            let arrived = |since| attempt.is_none_or(|attempt| drained || delivery.has_arrived(attempt, since));
            flush.through.is_some_and(arrived)
        });
        match attempt.filter(|_| self.open.iter().any(|flush| flush.through.is_some())) {
            Some(attempt) if self.look_at.is_none_or(|at| turn.now >= at) => {
                self.look_at = Some(turn.now + LOOK_AGAIN);
                turn.ask(Action::Drain { attempt });
            }
            Some(_) => {}
            None => self.look_at = None,
        }
        let now = turn.now;
        self.answer(turn, Outcome::Failed(Reason::TimeLimit), |flush| now >= flush.until);
    }

    /// When a flush is over, or the kernel's queue is looked at again.
    pub fn deadline(&self) -> Option<Instant> {
        let over = self.open.iter().map(|flush| flush.until).min()?;
        Some(self.look_at.map_or(over, |at| at.min(over)))
    }

    fn answer(&mut self, turn: &mut Turn, outcome: Outcome, which: impl Fn(&Flush) -> bool) {
        for flush in self.open.extract_if(.., |flush| which(flush)) {
            turn.ask(Action::Answer { request: flush.request, outcome });
        }
    }
}
