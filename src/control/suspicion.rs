//! Suspicion: silence while an answer is owed.
//!
//! A suspect is asked for a sign of life, and a second path is opened at once; whichever proves itself first carries the
//! session. A suspect that answers is innocent: the spare is closed, and the path is suspected less readily for a while. So
//! slow is never punished, and dead is never waited for. On metered interfaces the spares are bounded.

use alloc::vec::Vec;
use core::time::Duration;

use crate::action::{Action, Goodbye};
use crate::bounds::{Budget, METERED_RACES, METERED_RESCUES, RACES};
use crate::event::Event;
use crate::failover::{Failover, Walk};
use crate::ground::{Ground, Line};
use crate::name::{Class, Name};
use crate::reason::Reason;
use crate::round::{From, Round};
use crate::serving::Serving;
use crate::session::Silence;
use crate::spare::{Purpose, Spare};
use crate::time::Instant;

/// A message is raced only over an interface whose dial would not fit between suspicion and move: two of these round trips
/// are as long.
const RACE_ROUND_TRIP: Duration = Duration::from_millis(90);

/// A suspect that is silent for so long is rescued over a metered interface whatever it has cost before.
const GRAVE: Duration = Duration::from_secs(6);

/// What of a budget is left.
#[derive(Clone, Copy, Debug)]
pub struct Purse {
    budget: Budget,
    left: u32,
    /// When the last whole unit came back, or began to.
    filled: Instant,
}

impl Purse {
    /// A full one.
    pub fn new(budget: Budget) -> Purse {
        Purse { budget, left: budget.at_once, filled: Instant::default() }
    }

    /// Nothing is left.
    fn is_empty(&mut self, now: Instant) -> bool {
        let back = now.since(self.filled).as_millis() / self.budget.every.as_millis().max(1);
        let back = u32::try_from(back).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(back).min(self.budget.at_once);
        if self.left == self.budget.at_once {
            self.filled = now;
        } else {
            self.filled = self.filled + self.budget.every * back;
        }
        self.left == 0
    }

    /// It was well spent, and does not count.
    fn refund(&mut self) {
        self.left = self.left.saturating_add(1).min(self.budget.at_once);
    }

    fn spend(&mut self) {
        self.left = self.left.saturating_sub(1);
    }
}

/// What may be spent on second paths.
#[derive(Clone, Copy, Debug)]
pub struct Purses {
    metered_rescues: Purse,
    metered_races: Purse,
    races: Purse,
}

impl Default for Purses {
    fn default() -> Purses {
        Purses {
            metered_rescues: Purse::new(METERED_RESCUES),
            metered_races: Purse::new(METERED_RACES),
            races: Purse::new(RACES),
        }
    }
}

impl Failover {
    /// Silence while an answer is owed.
    pub fn suspicion(&mut self, g: &mut Ground, serving: &mut Serving) -> Option<Walk> {
        let now = g.turn.now;
        if serving.leaving.is_some() {
            return None;
        }
        if matches!(g.event, Event::Acked { attempt, .. } if *attempt == serving.session.attempt) {
            // Whether bytes came in with it is told next.
            return None;
        }
        // What works and is of no use is left as what does not work.
        let (silence, reason) = match serving.session.silence(now, g.flow.oldest_sent) {
            _ if serving.session.flowing.is_browning_out(now) => (Silence::Guilty, Reason::Loss),
            silence => (silence, Reason::AcknowledgementLimit),
        };
        let judges = match silence {
            Silence::Innocent => false,
            Silence::Suspect => !serving.suspected,
            Silence::Guilty => !serving.suspected || matches!(serving.spare, Spare::Ready { .. }),
        };
        if judges && reason == Reason::AcknowledgementLimit && !serving.session.is_looked_at(now) {
            if serving.session.looks(now) {
                g.turn.ask(Action::Measure { attempt: serving.session.attempt });
            }
            return None;
        }
        match silence {
            Silence::Innocent => {
                if core::mem::take(&mut serving.suspected) {
                    self.acquit(g, serving);
                }
                self.race(g, serving);
                None
            }
            Silence::Suspect | Silence::Guilty if !serving.suspected => {
                serving.suspected = true;
                self.accuse(g, serving);
                None
            }
            // Every rescue failed, but another way has just come up, or it is time to try them all again.
            Silence::Suspect | Silence::Guilty
                if serving.spare == Spare::None
                    && (!g.hope.is_empty() || serving.sweep_due().is_some_and(|at| now >= at)) =>
            {
                self.rescue(g, serving, Vec::new());
                None
            }
            Silence::Guilty => match &serving.spare {
                Spare::Ready { trusted_from, .. } if now < *trusted_from => None,
                Spare::Ready { interface, .. } => {
                    if g.interfaces.metered(*interface, g.turn.settings) {
                        self.purses.metered_rescues.refund();
                    }
                    g.turn.ask(Action::HangUp { attempt: serving.session.attempt, goodbye: Goodbye::Abort });
                    let session = serving.session;
                    g.reach.bad(now, session.interface, reason);
                    let owed = match reason {
                        // It did say something now and then; what waited longest shows how bad it was.
                        Reason::Loss => g.flow.oldest_sent.map_or(Duration::ZERO, |sent| now.since(sent)),
                        _ => session.owed(now, g.flow.oldest_sent),
                    };
                    g.switches.began(g.turn, session.interface, reason, owed, &g.flow);
                    g.outages.began(g.turn, session.last_inbound, reason, true);
                    g.line = Some(Line::Shut);
                    let spare = core::mem::replace(&mut serving.spare, Spare::None);
                    let (candidate, via) = serving.candidate_of(g, &spare)?;
                    Some(self.carry_on(g, spare, candidate, via))
                }
                Spare::None
                | Spare::Resting { .. }
                | Spare::Dialling { .. }
                | Spare::Finishing { .. }
                | Spare::Moving { .. } => None,
            },
            Silence::Suspect => None,
        }
    }

    /// Opens a second path, and asks the session for a sign of life so that the dead limit runs.
    pub fn accuse(&mut self, g: &mut Ground, serving: &mut Serving) {
        if !serving.session.is_asked() {
            serving.session.asks(g.turn.now);
            g.turn.ask(Action::Ping { attempt: serving.session.attempt });
        }
        let now = g.turn.now;
        let spare = core::mem::replace(&mut serving.spare, Spare::None);
        match spare {
            Spare::None | Spare::Resting { .. } => self.rescue(g, serving, Vec::new()),
            // A trial that should have been through by now goes to an interface that is as dead: it is no rescue.
            Spare::Dialling { interface, attempt, began, .. } if !is_promising(g, interface, began) => {
                g.turn.ask(Action::HangUp { attempt, goodbye: Goodbye::Abort });
                g.reach.trial_failed(now, interface, Reason::NoServer);
                serving.spare_ended(g, spare, Reason::NoServer);
                self.rescue(g, serving, Vec::from([interface]));
            }
            Spare::Dialling {
                interface,
                attempt,
                began,
                deadline,
                purpose: Purpose::Failback { request: None, .. },
            } => {
                let purpose = Purpose::Rescue { tried: Vec::new() };
                let deadline = deadline.min(now + rescue_limit(g.interfaces.class(interface)));
                serving.spare = Spare::Dialling { interface, attempt, began, deadline, purpose };
            }
            // A planned move that is under way is the rescue.
            other => serving.spare = other,
        }
    }

    /// Dials the next interface that may rescue the session, if there is one.
    pub fn rescue(&mut self, g: &mut Ground, serving: &mut Serving, tried: Vec<Name>) {
        let spent = self.purses.metered_rescues.is_empty(g.turn.now);
        let round = Round::plan(From::Next(serving.session.interface), g.walk, g.interfaces);
        let costs = |name: Name| g.interfaces.metered(name, g.turn.settings);
        // So much silence is no whim of the path any more.
        let grave = serving.session.owed(g.turn.now, g.flow.oldest_sent) >= GRAVE;
        let fits = |name: &Name| {
            let affordable = !spent || grave || !costs(*name);
            *name != serving.session.interface && !tried.contains(name) && affordable
        };
        let Some(name) = round.rest.into_iter().find(fits) else {
            serving.swept = Some(g.turn.now);
            return;
        };
        if costs(name) {
            self.purses.metered_rescues.spend();
        }
        self.open_spare(g, serving, name, Purpose::Rescue { tried });
    }

    /// The first message after silence may find a path that has forgotten us, and an answer may be late because it never
    /// comes: a second path is opened before there is a suspicion, where opening one takes too long to begin then. It is
    /// closed when the answer comes.
    pub fn race(&mut self, g: &mut Ground, serving: &mut Serving) {
        let now = g.turn.now;
        if serving.session.risky_from(g.flow.oldest_sent).is_none_or(|from| now < from) {
            if core::mem::take(&mut serving.raced) {
                self.close_rescue(g, serving);
            }
            return;
        }
        if serving.races_from(g.flow.oldest_sent).is_none() {
            return;
        }
        serving.raced = true;
        let round = Round::plan(From::Next(serving.session.interface), g.walk, g.interfaces);
        let Some(name) = round.rest.into_iter().find(|name| *name != serving.session.interface) else { return };
        let metered = g.interfaces.metered(name, g.turn.settings);
        let purse = if metered { &mut self.purses.metered_races } else { &mut self.purses.races };
        let soon = g.reach.quality(name).round_trip.is_some_and(|r| r < RACE_ROUND_TRIP);
        if !soon && !purse.is_empty(now) {
            purse.spend();
            self.open_spare(g, serving, name, Purpose::Rescue { tried: Vec::new() });
        }
    }

    /// The suspect answered: the spare is closed, and this path is suspected less readily for a while.
    pub fn acquit(&mut self, g: &mut Ground, serving: &mut Serving) {
        let now = g.turn.now;
        g.reach.suspected_in_vain(now, serving.session.interface);
        serving.session.acquitted(g.reach.vain(now, serving.session.interface));
        self.close_rescue(g, serving);
    }

    fn close_rescue(&mut self, g: &mut Ground, serving: &mut Serving) {
        match serving.spare {
            Spare::Dialling { purpose: Purpose::Rescue { .. }, .. } | Spare::Ready { .. } => {
                serving.drop_spare(g, Reason::User);
            }
            Spare::None
            | Spare::Resting { .. }
            | Spare::Dialling { .. }
            | Spare::Finishing { .. }
            | Spare::Moving { .. } => {}
        }
    }
}

/// A dial that is as young as this may yet come through; an older one on a path that works would have.
pub fn is_promising(g: &Ground, interface: Name, began: Instant) -> bool {
    g.turn.now.since(began) <= rescue_limit(g.interfaces.class(interface)) / 4
}

/// How long a rescue may take before the next interface is tried: several may have died together.
pub fn rescue_limit(class: Option<Class>) -> Duration {
    match class {
        Some(Class::Cell) => Duration::from_secs(4),
        Some(Class::Ethernet | Class::Wifi) | None => Duration::from_secs(2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purse_is_spent_at_once_and_fills_again_one_by_one() {
        let mut purse = Purse::new(Budget { at_once: 2, every: Duration::from_secs(60) });
        let at = |seconds: u64| Instant::from_millis(seconds * 1000);
        for now in [at(1000), at(1001)] {
            assert!(!purse.is_empty(now));
            purse.spend();
        }
        assert!(purse.is_empty(at(1059)));
        assert!(!purse.is_empty(at(1060)));
        purse.spend();
        assert!(purse.is_empty(at(1119)));
        assert!(!purse.is_empty(at(1120)));
        assert!(!purse.is_empty(at(90_000)));
        assert_eq!(purse.left, 2);
    }
}
