//! The way back up: a better interface is proved, and then the session moves, made before broken.
//!
//! A better interface must have held still for the hold-down and complete its handshakes in a row, while the session goes on
//! where it is. Then what is in flight is let finish, and CONNECT goes out on the new connection. An operator's visit goes the
//! same way. If any of it fails, the session has not been touched.

use alloc::vec::Vec;
use core::time::Duration;

use crate::action::{Action, Goodbye, Outcome};
use crate::attempt::CONNACK_SOON;
use crate::event::{Event, FAILBACK_HOLDS_MAX, INHIBIT_MAX, Measure, Request, Version};
use crate::failover::{Failover, Walk};
use crate::ground::{Ground, Line, View};
use crate::interfaces::Readiness;
use crate::name::Name;
use crate::reason::Reason;
use crate::round::better_than;
use crate::serving::Serving;
use crate::settings::Failback;
use crate::spare::{FINISH_LIMIT, Proofs, Purpose, SPARE_LIMIT, Spare};
use crate::suspicion::rescue_limit;
use crate::time::Instant;

/// A dial that takes longer than its round trips by this was kept waiting.
const SLOW_DIAL: Duration = Duration::from_millis(300);
/// So many dials of a trial may find that too much gets lost before the trial has failed.
const PROOFS_FORGIVEN: u32 = 6;

/// A return that would cut off what is in flight is put off for so long, so often, and then made all the same: better uplinks
/// cost less.
const PUT_OFF: Duration = Duration::from_secs(30);
const PUT_OFF_MOST: u32 = 4;

/// What operators have said about the way back. All of it ends by itself: whoever forgets it must not pay for it for
/// ever.
#[derive(Clone, Copy, Debug, Default)]
pub struct WayBack {
    ordered: Option<(Failback, Instant)>,
    inhibited: Option<Instant>,
    /// A return was put off so often in a row because too much was in flight, and until when.
    put_off: u32,
    put_off_until: Instant,
}

impl WayBack {
    /// In place of the configuration's word, for so long.
    pub fn order(&mut self, now: Instant, failback: Failback, limit: Duration) {
        self.ordered = Some((failback, now + limit.min(FAILBACK_HOLDS_MAX)));
    }

    /// No planned move for so long; zero ends it.
    pub fn inhibit(&mut self, now: Instant, limit: Duration) {
        self.inhibited = Some(now + limit.min(INHIBIT_MAX)).filter(|_| !limit.is_zero());
    }

    /// Whether a return may be put off until less is in flight: what is cut off would be sent twice.
    fn may_wait(&self) -> bool {
        self.put_off < PUT_OFF_MOST
    }

    fn waits(&mut self, now: Instant) {
        self.put_off += 1;
        self.put_off_until = now + PUT_OFF;
    }

    /// A session is open: another return is another matter.
    pub fn moved(&mut self) {
        self.put_off = 0;
    }

    /// What holds, and until when where an operator said so.
    pub fn mode(&self, now: Instant, configured: Failback) -> (Failback, Option<Instant>) {
        match self.ordered {
            Some((failback, until)) if now < until => (failback, Some(until)),
            Some(_) | None => (configured, None),
        }
    }

    /// Until when planned moves are inhibited.
    pub fn inhibited(&self, now: Instant) -> Option<Instant> {
        self.inhibited.filter(|until| now < *until)
    }

    /// From when on traffic may return by itself; none if never.
    pub fn free_from(&self, now: Instant, configured: Failback) -> Option<Instant> {
        let (mode, until) = self.mode(now, configured);
        let free = match (mode, configured) {
            (Failback::Auto, _) => now,
            (Failback::Manual | Failback::Never, Failback::Auto) => until?,
            (Failback::Manual | Failback::Never, Failback::Manual | Failback::Never) => return None,
        };
        Some(self.inhibited(now).map_or(free, |until| free.max(until)).max(self.put_off_until))
    }
}

impl Failover {
    /// What the spare's own events and deadlines bring.
    pub fn spare_turn(&mut self, g: &mut Ground, serving: &mut Serving) -> Option<Walk> {
        let now = g.turn.now;
        let own = serving.spare.attempt();
        if let Some(name) = serving.spare.interface()
            && let Some(reason) = g.interfaces.dead(name)
        {
            self.spare_failed(g, serving, name, reason, true);
            return None;
        }
        match *g.event {
            Event::DialFailed { attempt, reason, .. } | Event::Closed { attempt, reason, .. }
                if Some(attempt) == own =>
            {
                let name = serving.spare.interface()?;
                self.spare_failed(g, serving, name, reason, false);
                return None;
            }
            Event::Dialled { attempt, measure } if Some(attempt) == own => self.spare_proved(g, serving, measure),
            _ => {}
        }
        match serving.spare.clone() {
            Spare::Resting { interface, until, proofs } if now >= until => {
                // Something else may have spoken against it meanwhile.
                let trusted = self.trusted_from(&g.view(), serving, interface).is_some_and(|at| now >= at);
                match g.interfaces.readiness(interface) {
                    Readiness::Ready if trusted => {
                        self.open_spare(g, serving, interface, Purpose::Failback { proofs, request: None })
                    }
                    Readiness::Ready | Readiness::Coming(_) | Readiness::Activatable | Readiness::Not(_) => {
                        serving.spare = Spare::None;
                    }
                }
                None
            }
            Spare::Dialling { interface, deadline, .. } if now >= deadline => {
                self.spare_failed(g, serving, interface, Reason::NoServer, true);
                None
            }
            Spare::Moving { interface, deadline, .. } if now >= deadline => {
                self.spare_failed(g, serving, interface, Reason::TimeLimit, true);
                None
            }
            Spare::Finishing { until, purpose: Purpose::Failback { request: None, .. }, .. }
                if !g.flow.quiet && now >= until && self.way_back.may_wait() =>
            {
                self.way_back.waits(now);
                serving.drop_spare(g, Reason::InterfaceChange);
                None
            }
            Spare::Finishing { interface, attempt, until, purpose } if g.flow.quiet || now >= until => {
                self.switch(g, serving, interface, attempt, purpose)
            }
            Spare::None
            | Spare::Resting { .. }
            | Spare::Dialling { .. }
            | Spare::Ready { .. }
            | Spare::Finishing { .. }
            | Spare::Moving { .. } => None,
        }
    }

    /// Opens a connection through `interface`, up to CONNECT.
    pub fn open_spare(&mut self, g: &mut Ground, serving: &mut Serving, interface: Name, purpose: Purpose) {
        let now = g.turn.now;
        let server = serving.session.server;
        let limit = match &purpose {
            Purpose::Failback { .. } | Purpose::Visit { .. } if !serving.suspected => SPARE_LIMIT,
            Purpose::Failback { .. } | Purpose::Visit { .. } | Purpose::Rescue { .. } => {
                rescue_limit(g.interfaces.class(interface))
            }
        };
        let attempt = g.turn.number();
        g.turn.ask(Action::Dial { interface, server, attempt });
        serving.spare = Spare::Dialling { interface, attempt, began: now, deadline: now + limit, purpose };
    }

    pub fn spare_failed(&mut self, g: &mut Ground, serving: &mut Serving, name: Name, reason: Reason, hang_up: bool) {
        let now = g.turn.now;
        let spare = core::mem::replace(&mut serving.spare, Spare::None);
        if let Some(attempt) = spare.attempt().filter(|_| hang_up) {
            g.turn.ask(Action::HangUp { attempt, goodbye: Goodbye::Abort });
        }
        g.reach.trial_failed(now, name, reason);
        g.abandoned |= hang_up && matches!(spare, Spare::Moving { .. });
        if let Spare::Dialling { purpose: Purpose::Rescue { mut tried }, .. } = spare {
            tried.push(name);
            if serving.suspected {
                self.rescue(g, serving, tried);
            }
        } else {
            serving.spare_ended(g, spare, reason);
            if serving.suspected {
                // It would have been the rescue as well: another is needed.
                self.rescue(g, serving, Vec::from([name]));
            }
        }
    }

    /// The spare's handshake is complete: the path behind it works, and may yet lose too much.
    pub fn spare_proved(&mut self, g: &mut Ground, serving: &mut Serving, measure: Measure) {
        let now = g.turn.now;
        let spare = core::mem::replace(&mut serving.spare, Spare::None);
        let Spare::Dialling { interface, attempt, began, purpose, .. } = spare else {
            serving.spare = spare;
            return;
        };
        g.reach.good(interface);
        g.reach.measured(interface, measure);
        let lossy = g.reach.quality(interface).is_lossy();
        let (needed, pause) = g.reach.proofs(interface, g.interfaces.metered(interface, g.turn.settings));
        let proofs = |proofs: Proofs| Proofs { dials: proofs.dials + 1, good: proofs.good + u32::from(!lossy) };
        serving.spare = match purpose {
            Purpose::Failback { proofs: past, request: None } if proofs(past).good < needed => {
                g.turn.ask(Action::HangUp { attempt, goodbye: Goodbye::Abort });
                if proofs(past).dials >= needed + PROOFS_FORGIVEN {
                    return g.reach.trial_failed(now, interface, Reason::Loss);
                }
                Spare::Resting { interface, until: now + pause, proofs: proofs(past) }
            }
            // Another uplink that loses as much is no rescue from one that loses too much.
            Purpose::Rescue { .. } if lossy && serving.session.flowing.is_browning_out(now) => {
                serving.spare = Spare::Dialling { interface, attempt, began, deadline: now, purpose };
                return self.spare_failed(g, serving, interface, Reason::Loss, true);
            }
            Purpose::Rescue { .. } => {
                // A handshake that took long may have waited for a server that answered nobody until now: then the suspect
                // has as long as an answer takes.
                let slow = now.since(began) > measure.round_trip * 2 + SLOW_DIAL;
                let grace = if slow { serving.session.round_trip.timeout() } else { Duration::ZERO };
                Spare::Ready { interface, attempt, trusted_from: now + grace, purpose }
            }
            Purpose::Failback { .. } | Purpose::Visit { .. } => {
                let ours = matches!(purpose, Purpose::Failback { request: None, .. });
                let why = if ours { Reason::InterfaceChange } else { Reason::User };
                g.switches.began(g.turn, serving.session.interface, why, Duration::ZERO, &g.flow);
                g.line = Some(Line::Finish);
                Spare::Finishing { interface, attempt, until: now + FINISH_LIMIT, purpose }
            }
        };
    }

    /// The planned move: CONNECT on the new connection. With MQTT 5 the old one stays until the new one is
    /// answered; with 3.1.1 it says goodbye first, or the server would publish the will (R-LV-9).
    pub fn switch(
        &mut self,
        g: &mut Ground,
        serving: &mut Serving,
        interface: Name,
        attempt: crate::event::Attempt,
        purpose: Purpose,
    ) -> Option<Walk> {
        let version = serving.session.version;
        let deadline = g.turn.now + CONNACK_SOON;
        if version == Version::V311 {
            let spare = Spare::Finishing { interface, attempt, until: deadline, purpose };
            let (candidate, via) = serving.candidate_of(g, &spare)?;
            serving.spare = Spare::None;
            g.turn.ask(Action::HangUp { attempt: serving.session.attempt, goodbye: Goodbye::Moving });
            g.outages.began(g.turn, g.turn.now, Reason::InterfaceChange, true);
            g.line = Some(Line::Shut);
            if via.is_none() {
                g.reach.returned(g.turn.now, interface);
            }
            return Some(self.carry_on(g, spare, candidate, via));
        }
        let keep_alive = g.uplink(interface).keep_alive;
        g.turn.ask(Action::Connect { attempt, version, keep_alive });
        // The server knows us: what waits goes out right behind (R-CS-4). What is still in flight on the old connection
        // must not go out there again if the move fails, so then everything waits for the answer.
        if g.flow.quiet {
            g.line = Some(Line::Open { attempt, interface, window: serving.session.window });
        }
        serving.spare = Spare::Moving { interface, attempt, deadline, purpose };
        None
    }

    /// Tries a better interface once it has held still.
    pub fn failback(&mut self, g: &mut Ground, serving: &mut Serving) {
        let quiet = serving.spare == Spare::None && !serving.suspected && serving.leaving.is_none();
        if !quiet || !self.wants(g) || !serving.session.settled {
            return;
        }
        if let Some((name, at)) = self.returns_at(&g.view(), serving)
            && g.turn.now >= at
        {
            self.open_spare(g, serving, name, Purpose::Failback { proofs: Proofs::default(), request: None });
        }
    }

    /// The better interface that is next to be tried, and from when on; none while nothing is to return by itself.
    pub fn returns_at(&self, view: &View, serving: &Serving) -> Option<(Name, Instant)> {
        let (name, at) = self.failback_target(view, serving)?;
        let free = self.way_back.free_from(view.now, view.settings.failback)?;
        Some((name, at.max(free)))
    }

    /// The better interface that is next to be trusted, and from when on.
    pub fn failback_target(&self, view: &View, serving: &Serving) -> Option<(Name, Instant)> {
        let trusted = |name: Name| Some((name, self.trusted_from(view, serving, name)?));
        let candidates: Vec<(Name, Instant)> =
            better_than(view.walk, serving.session.interface).into_iter().filter_map(trusted).collect();
        let now = candidates.iter().copied().find(|(_, at)| *at <= view.now);
        now.or_else(|| candidates.into_iter().min_by_key(|(_, at)| *at))
    }

    /// From when on an interface may carry the session again.
    fn trusted_from(&self, view: &View, serving: &Serving, name: Name) -> Option<Instant> {
        // An operator who asked for this interface has it for a while, and another list leaves the session alone as
        // long (R-IF-3).
        let visited = if serving.via { serving.session.opened } else { Instant::default() };
        let since = view.interfaces.ready_since(name)?.max(visited).max(self.list_set);
        let metered = view.interfaces.metered(name, view.settings);
        Some(view.reach.trusted_from(name, since, view.settings.hold_down, metered))
    }

    /// An operator wants traffic back on the best interface that is ready, whatever the hold-down says.
    pub fn return_now(&mut self, g: &mut Ground, request: Request) {
        let mut serving = match core::mem::replace(&mut self.walk, Walk::Resting) {
            Walk::Serving(serving) => serving,
            Walk::Resting => return g.turn.ask(Action::Answer { request, outcome: Outcome::Failed(Reason::User) }),
            // The session that opens next is over the best that works.
            other => {
                self.walk = other;
                return self.enqueue(g, request);
            }
        };
        let better = better_than(g.walk, serving.session.interface);
        let ready = better.iter().copied().find(|name| g.interfaces.readiness(*name) == Readiness::Ready);
        let outcome = match (ready, better.first(), &serving.spare) {
            _ if serving.leaving.is_some() => Some(Outcome::Failed(Reason::User)),
            // A move is under way: what it comes to is the answer.
            (_, _, Spare::Finishing { .. } | Spare::Moving { .. }) => {
                self.enqueue(g, request);
                None
            }
            _ if serving.suspected => Some(Outcome::Failed(Reason::AcknowledgementLimit)),
            (Some(name), _, _) => {
                serving.drop_spare(g, Reason::User);
                self.open_spare(
                    g,
                    &mut serving,
                    name,
                    Purpose::Failback { proofs: Proofs::default(), request: Some(request) },
                );
                None
            }
            (None, Some(best), _) => Some(Outcome::Failed(match g.interfaces.readiness(*best) {
                Readiness::Not(reason) => reason,
                Readiness::Ready | Readiness::Coming(_) | Readiness::Activatable => Reason::NoAddress,
            })),
            (None, None, _) => Some(Outcome::Done),
        };
        if let Some(outcome) = outcome {
            g.turn.ask(Action::Answer { request, outcome });
        }
        self.walk = Walk::Serving(serving);
    }

    /// An operator has said that nothing is to return by itself: a trial that nobody ordered ends, unless CONNECT is out.
    pub fn stop_returning(&mut self, g: &mut Ground) {
        let free = self.way_back.free_from(g.turn.now, g.turn.settings.failback).is_some_and(|at| at <= g.turn.now);
        if let Walk::Serving(serving) = &mut self.walk
            && !free
            && let Spare::Resting { .. }
            | Spare::Dialling { purpose: Purpose::Failback { request: None, .. }, .. }
            | Spare::Finishing { purpose: Purpose::Failback { request: None, .. }, .. } = &serving.spare
        {
            serving.drop_spare(g, Reason::User);
        }
    }

    /// CONNECT is out for this spare: whoever ordered it hears what becomes of the session.
    pub fn await_answer(&mut self, g: &mut Ground, spare: &Spare) {
        if let Some(Purpose::Failback { request: Some(request), .. }) = spare.purpose() {
            self.enqueue(g, *request);
        }
    }

    /// An operator asked for this interface, once (R-CL-8): made before the session is given up.
    pub fn visit(&mut self, g: &mut Ground, request: Request, name: Name) {
        let readiness = g.interfaces.readiness(name);
        let walk = core::mem::replace(&mut self.walk, Walk::Resting);
        self.walk = match walk {
            Walk::Serving(mut serving) => {
                match readiness {
                    Readiness::Ready => {
                        serving.drop_spare(g, Reason::User);
                        self.open_spare(g, &mut serving, name, Purpose::Visit { request });
                    }
                    Readiness::Not(reason) => {
                        g.turn.ask(Action::Answer { request, outcome: Outcome::Failed(reason) });
                    }
                    Readiness::Coming(_) | Readiness::Activatable => {
                        g.turn.ask(Action::Answer { request, outcome: Outcome::Failed(Reason::NoAddress) });
                    }
                }
                Walk::Serving(serving)
            }
            other => other,
        };
    }
}
