//! Switches: the one record that each leaves (R-FX-15).
//!
//! A switch is traffic going on over another interface than before, planned or not. Its record says what was seen, how
//! long that took, how long the switch took, and what the cloud saw of it. It decides nothing.

use core::fmt;
use core::time::Duration;

use crate::action::Action;
use crate::event::{Attempt, Event};
use crate::ground::Flow;
use crate::name::Name;
use crate::reason::Reason;
use crate::status::DeliveryStatus;
use crate::time::Instant;
use crate::turn::Turn;

/// What one switch came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    pub from: Name,
    pub to: Name,
    /// What was seen; `interface-change` and `user` for planned moves.
    pub why: Reason,
    /// When it was decided.
    pub at: Instant,
    /// How long an answer had been owed when it was decided; zero with positive evidence, and for planned moves.
    pub detection: Duration,
    /// From the decision to the server's word on the new connection.
    pub switch: Duration,
    /// How long the oldest message waited that the switch held up, until its answer; none if it held up no message.
    pub pause: Option<Duration>,
    /// Messages in flight when it was decided.
    pub in_flight: u32,
    /// Messages sent again on the new connection: at most these were repeated at the cloud.
    pub repeated: u32,
    /// Offers of applications refused meanwhile. What is not refused is kept, so nothing else can be lost.
    pub refused: u32,
}

/// A switch under way.
#[derive(Debug)]
struct Open {
    from: Name,
    why: Reason,
    at: Instant,
    detection: Duration,
    /// The counts when it was decided.
    before: DeliveryStatus,
    /// Since when the oldest message has waited that it holds up.
    held_up: Option<Instant>,
    /// Where it has come to, on which connection, and when.
    reached: Option<(Name, Attempt, Instant)>,
}

/// The switch under way, and the last one.
#[derive(Debug, Default)]
pub struct Switches {
    open: Option<Open>,
    last: Option<Switch>,
}

impl Switches {
    /// The session on `from` is to be left, or is lost. What is under way already goes on under its first reason.
    pub fn began(&mut self, turn: &mut Turn, from: Name, why: Reason, detection: Duration, flow: &Flow) {
        self.record(turn, false, &flow.tally);
        let (before, held_up) = (flow.tally, flow.waits_since);
        self.open.get_or_insert(Open { from, why, at: turn.now, detection, before, held_up, reached: None });
    }

    /// It did not come about, or nobody wants a session any more.
    pub fn abandoned(&mut self) {
        self.open = None;
    }

    /// A session is open on `to`. Over the same interface as before it was no switch.
    pub fn reached(&mut self, turn: &Turn, to: Name, attempt: Attempt) {
        self.open = self.open.take().filter(|open| open.from != to);
        if let Some(open) = &mut self.open {
            open.reached = Some((to, attempt, turn.now));
        }
    }

    /// Takes the event in, once delivery has. `session` is the number of the open session, `counts` those of delivery.
    pub fn step(&mut self, turn: &mut Turn, event: &Event, session: Option<Attempt>, counts: &DeliveryStatus) {
        let Some(open) = &mut self.open else { return };
        if open.reached.is_none() && matches!(event, Event::Offered { .. }) {
            open.held_up.get_or_insert(turn.now);
        }
        let Some((_, attempt, _)) = open.reached else { return };
        let answered = matches!(event, Event::Acked { attempt: a, .. } if *a == attempt);
        let idle = open.held_up.is_none() && matches!(event, Event::Settled { attempt: a } if *a == attempt);
        if answered || idle || session != Some(attempt) {
            self.record(turn, answered, counts);
        }
    }

    /// Writes the record of a switch that has come about.
    fn record(&mut self, turn: &mut Turn, answered: bool, counts: &DeliveryStatus) {
        let Some((to, _, reached)) = self.open.as_ref().and_then(|open| open.reached) else { return };
        let Some(Open { from, why, at, detection, before, held_up, .. }) = self.open.take() else { return };
        let since = |now: u64, then: u64| u32::try_from(now.saturating_sub(then)).unwrap_or(u32::MAX);
        let switch = Switch {
            from,
            to,
            why,
            at,
            detection,
            switch: reached.since(at),
            pause: held_up.filter(|_| answered).map(|since| turn.now.since(since)),
            in_flight: before.in_flight,
            repeated: since(counts.repeated, before.repeated),
            refused: since(counts.refused, before.refused),
        };
        self.last = Some(switch);
        turn.ask(Action::Record(switch));
    }

    /// The last one that came about.
    pub fn last(&self) -> Option<Switch> {
        self.last
    }
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Switch { from, to, why, detection, switch, in_flight, repeated, refused, .. } = self;
        write!(f, "switch {from} to {to} {why}, detection {}ms, ", detection.as_millis())?;
        write!(f, "switch {}ms, ", switch.as_millis())?;
        if let Some(pause) = self.pause {
            write!(f, "pause {}ms, ", pause.as_millis())?;
        }
        write!(f, "in flight {in_flight}, repeated {repeated}, refused {refused}")
    }
}
