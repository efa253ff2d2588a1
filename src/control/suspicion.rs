//! Suspicion: silence while an answer is owed.
//!
//! A suspect is asked for a sign of life, and a second path is opened at once; whichever proves itself first carries the
//! session. A suspect that answers is innocent: the spare is closed, and the path is suspected less readily for a while. So
//! slow is never punished, and dead is never waited for. On metered interfaces the spares are bounded by the hour.

use alloc::vec::Vec;
use core::time::Duration;

use crate::action::{Action, Goodbye};
use crate::event::Event;
use crate::failover::{Failover, Walk};
use crate::ground::{Ground, Line};
use crate::name::{Class, Name};
use crate::reason::Reason;
use crate::round::{From, Round};
use crate::serving::Serving;
use crate::session::Silence;
use crate::settings::Standby;
use crate::spare::{Purpose, Spare};
use crate::time::Instant;

/// Spares opened on suspicion over metered interfaces, at most per hour: each costs a handshake.
const METERED_RESCUES: u32 = 12;
/// A message is raced over an interface whose dial would not fit between suspicion and move: two
/// of these round trips are as long. At most so many an hour: each costs a handshake (R-FX-14: 3 kB each, 6 MB a month).
const RACE_ROUND_TRIP: Duration = Duration::from_millis(90);
const RACES: u32 = 60;
const METERED_RACES: u32 = 3;
const HOUR: Duration = Duration::from_secs(3600);

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
                Spare::Ready { .. } => {
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
        match core::mem::replace(&mut serving.spare, Spare::None) {
            Spare::None | Spare::Resting { .. } => self.rescue(g, serving, Vec::new()),
            Spare::Dialling { interface, attempt, deadline, purpose: Purpose::Failback { request: None, .. } } => {
                let purpose = Purpose::Rescue { tried: Vec::new() };
                serving.spare = Spare::Dialling { interface, attempt, deadline, purpose };
            }
            // A planned move that is under way is the rescue.
            other => serving.spare = other,
        }
    }

    /// Dials the next interface that may rescue the session, if there is one.
    pub fn rescue(&mut self, g: &mut Ground, serving: &mut Serving, tried: Vec<Name>) {
        self.count_by_the_hour(g.turn.now);
        let spent = self.rescues >= METERED_RESCUES;
        let round = Round::plan(From::Next(serving.session.interface), g.walk, g.interfaces);
        let costs = |name: Name| g.interfaces.metered(name, g.turn.settings) && !self.warm.is_ready(name);
        let fits =
            |name: &Name| *name != serving.session.interface && !tried.contains(name) && !(spent && costs(*name));
        let Some(name) = round.rest.into_iter().find(fits) else {
            serving.swept = Some(g.turn.now);
            return;
        };
        self.rescues += u32::from(costs(name));
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
        self.count_by_the_hour(now);
        let round = Round::plan(From::Next(serving.session.interface), g.walk, g.interfaces);
        let Some(name) = round.rest.into_iter().find(|name| *name != serving.session.interface) else { return };
        let most = if g.interfaces.metered(name, g.turn.settings) { METERED_RACES } else { RACES };
        let soon = g.reach.quality(name).round_trip.is_some_and(|r| r < RACE_ROUND_TRIP);
        if !soon && !self.warm.is_ready(name) && self.races < most {
            self.races += 1;
            self.open_spare(g, serving, name, Purpose::Rescue { tried: Vec::new() });
        }
    }

    fn count_by_the_hour(&mut self, now: Instant) {
        let begun = *self.rescues_since.get_or_insert(now);
        if now.since(begun) > HOUR {
            self.rescues = 0;
            self.races = 0;
            self.rescues_since = Some(now);
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
            Spare::Ready { interface, attempt, since, .. } if g.uplink(interface).standby == Standby::Warm => {
                serving.spare = Spare::None;
                self.warm.give(interface, serving.session.server, attempt, since, g.uplink(interface).warm_renew);
            }
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

/// How long a rescue may take before the next interface is tried: several may have died together.
pub fn rescue_limit(class: Option<Class>) -> Duration {
    match class {
        Some(Class::Cell) => Duration::from_secs(4),
        Some(Class::Ethernet | Class::Wifi) | None => Duration::from_secs(2),
    }
}
