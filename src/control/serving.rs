//! While a session is open: is it alive, is there something better, is it time to go?
//!
//! Decides four things, in this order each turn: whether the session is lost; whether a suspicion calls for a
//! spare, and whether the spare takes over; whether a better interface has held still long enough to be tried, and
//! whether traffic moves to it; whether nobody needs the session any more. Only positive evidence of death drops
//! the session: carrier or address gone, the connection ended, or silence while an answer is owed and another path
//! has proved itself, or silence beyond the dead limit. Slow is not dead.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use crate::action::{Action, Goodbye, Outcome};
use crate::backoff::GOOD_SESSION;
use crate::event::{Event, Request, Step, Version};
use crate::failover::{CONNACK_LIMIT, Failover, Ground, Intent, Line, View, Walk};
use crate::interfaces::Readiness;
use crate::name::{Class, Name};
use crate::reason::{Blame, Reason};
use crate::round::{Candidate, From, Round, better_than};
use crate::session::{Due, Session, Silence};
use crate::settings::Failback;
use crate::spare::{FINISH_LIMIT, Purpose, SPARE_LIMIT, Spare};
use crate::time::Instant;
use crate::turn::Turn;

/// How long `disconnect` may flush (R-CL-6).
const FLUSH_LIMIT: Duration = Duration::from_secs(10);
/// A CONNECT that was given up may still reach the server this much later, and take our own session over.
const ECHO: Duration = Duration::from_secs(60);
/// A suspect that nothing could rescue: how soon everything is tried again.
const SWEEP_AGAIN: Duration = Duration::from_secs(5);
/// Spares opened on suspicion over metered interfaces, at most per hour: each costs a handshake.
const METERED_RESCUES: u32 = 12;
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug)]
struct Leaving {
    request: Request,
    until: Instant,
}

/// The open session and what goes on around it.
#[derive(Debug)]
pub struct Serving {
    pub session: Session,
    pub spare: Spare,
    /// An operator's visit: it proves nothing about the ordinary way (R-CF-6).
    via: bool,
    leaving: Option<Leaving>,
    /// The back-off was reset by this session.
    good: bool,
    /// Suspicion raised, and not yet answered.
    suspected: bool,
    /// When the last interface that might have rescued it had failed.
    swept: Option<Instant>,
}

impl Serving {
    /// A session that opened now on this candidate.
    pub fn open(
        g: &mut Ground,
        candidate: &Candidate,
        version: Version,
        present: bool,
        keep_alive: Duration,
        via: bool,
    ) -> Serving {
        let now = g.turn.now;
        let uplink = g.uplink(candidate.interface);
        let mut session = Session::open(
            now,
            candidate.attempt,
            candidate.interface,
            candidate.server,
            version,
            present,
            keep_alive,
            &uplink,
            g.reach.vain(now, candidate.interface),
            g.reach.lateness(candidate.interface),
        );
        // CONNACK is the first answer, and the first sample: an idle session has no other when it is first used.
        session.round_trip.sample(CONNACK_LIMIT.saturating_sub(candidate.deadline.since(now)));
        Serving { session, spare: Spare::None, via, leaving: None, good: false, suspected: false, swept: None }
    }

    /// When the interfaces that failed to rescue a suspect are tried again.
    fn sweep_due(&self) -> Option<Instant> {
        self.swept.filter(|_| self.suspected && self.spare == Spare::None).map(|at| at + SWEEP_AGAIN)
    }

    /// `disconnect` without force: leaves once everything is through, or after the limit.
    pub fn leave(&mut self, turn: &mut Turn, request: Request) {
        self.answer_leaving(turn, Outcome::Failed(Reason::User));
        self.leaving = Some(Leaving { request, until: turn.now + FLUSH_LIMIT });
    }

    /// Tells the operator who asked to disconnect.
    /// Says whether there was one.
    pub fn answer_leaving(&mut self, turn: &mut Turn, outcome: Outcome) -> bool {
        let leaving = self.leaving.take();
        if let Some(leaving) = leaving {
            turn.ask(Action::Answer { request: leaving.request, outcome });
        }
        leaving.is_some()
    }

    /// Ends the spare, if there is one.
    pub fn drop_spare(&mut self, g: &mut Ground, reason: Reason) {
        let spare = core::mem::replace(&mut self.spare, Spare::None);
        if let Some(attempt) = spare.attempt() {
            g.turn.ask(Action::HangUp { attempt, goodbye: Goodbye::Abort });
        }
        self.spare_ended(g, spare, reason);
    }

    /// The spare is no more: tell whoever waited for it, and let traffic flow if it had been stopped for it.
    fn spare_ended(&self, g: &mut Ground, spare: Spare, reason: Reason) {
        let (purpose, stopped) = match spare {
            Spare::None | Spare::Resting { .. } => return,
            Spare::Dialling { purpose, .. } | Spare::Ready { purpose, .. } => (purpose, false),
            Spare::Finishing { purpose, .. } | Spare::Moving { purpose, .. } => (purpose, true),
        };
        if stopped {
            g.line = Some(Line::Resume);
        }
        if let Purpose::Visit { request } = purpose {
            g.turn.ask(Action::Answer { request, outcome: Outcome::Failed(reason) });
        }
    }

    /// The same connection, looked at as a candidate of the walk.
    fn candidate_of(&self, g: &mut Ground, spare: &Spare) -> Option<(Candidate, Option<Request>)> {
        let (interface, attempt, deadline, connecting, purpose) = match spare {
            Spare::None | Spare::Resting { .. } => return None,
            Spare::Dialling { interface, attempt, deadline, purpose } => {
                (interface, attempt, *deadline, false, purpose)
            }
            Spare::Ready { interface, attempt, purpose } | Spare::Finishing { interface, attempt, purpose, .. } => {
                (interface, attempt, g.turn.now + SPARE_LIMIT, false, purpose)
            }
            Spare::Moving { interface, attempt, deadline, purpose } => (interface, attempt, *deadline, true, purpose),
        };
        let via = match purpose {
            Purpose::Visit { request } => Some(*request),
            Purpose::Failback { .. } | Purpose::Rescue { .. } => None,
        };
        let candidate = Candidate {
            interface: *interface,
            server: self.session.server,
            servers_left: 0,
            attempt: *attempt,
            born: g.turn.now,
            deadline,
            step: if connecting { Step::Handshake } else { Step::Connecting },
            connecting,
            version: self.session.version,
            other_version: false,
        };
        Some((candidate, via))
    }
}

impl Failover {
    /// One turn while a session is open.
    pub fn serving(&mut self, g: &mut Ground, mut serving: Box<Serving>) -> Walk {
        if let Some((reason, heard)) = self.lost(g, &mut serving) {
            return self.lose(g, *serving, reason, heard);
        }
        if let Some(walk) = self.moved(g, &mut serving) {
            return walk;
        }
        self.settle(g, &mut serving);
        if let Some(walk) = self.spare_turn(g, &mut serving).or_else(|| self.suspicion(g, &mut serving)) {
            return walk;
        }
        self.failback(g, &mut serving);
        self.leave_if_due(g, serving)
    }

    /// When something is next due while serving.
    pub fn serving_deadline(&self, view: &View, serving: &Serving) -> Instant {
        let mut deadline = serving.session.deadline(view.now, view.oldest_sent);
        let mut consider = |at: Option<Instant>| deadline = at.map_or(deadline, |at| deadline.min(at));
        consider(serving.spare.deadline());
        consider(serving.leaving.map(|l| l.until));
        consider(serving.sweep_due().filter(|at| *at > view.now));
        consider((!serving.good).then_some(serving.session.opened + GOOD_SESSION));
        consider(self.linger_ends(view.settings.mode).filter(|at| *at > view.now));
        if serving.spare == Spare::None && serving.session.settled {
            consider(self.failback_target(view, serving).map(|(_, at)| at).filter(|at| *at > view.now));
        }
        deadline
    }

    /// The better interface that is next to be tried, and from when on.
    pub fn failback_target(&self, view: &View, serving: &Serving) -> Option<(Name, Instant)> {
        let hold_down = view.settings.hold_down;
        // An operator who asked for this interface has it for a while, and another list leaves the session alone as
        // long (R-IF-3).
        let visited = if serving.via { serving.session.opened } else { Instant::default() };
        let calm_since = visited.max(self.list_set);
        let trusted = |name: Name| {
            let since = view.interfaces.ready_since(name)?.max(calm_since);
            let metered = view.interfaces.metered(name, view.settings);
            Some((name, view.reach.trusted_from(name, since, hold_down, metered)))
        };
        let candidates: Vec<(Name, Instant)> =
            better_than(view.walk, serving.session.interface).into_iter().filter_map(trusted).collect();
        let now = candidates.iter().copied().find(|(_, at)| *at <= view.now);
        now.or_else(|| candidates.into_iter().min_by_key(|(_, at)| *at))
    }

    /// Whether the session has ended, by the kernel's word, the connection's, or its own silence.
    fn lost(&mut self, g: &mut Ground, serving: &mut Serving) -> Option<(Reason, bool)> {
        let now = g.turn.now;
        let session = &mut serving.session;
        if let Some(reason) = g.interfaces.dead(session.interface) {
            g.turn.ask(Action::HangUp { attempt: session.attempt, goodbye: Goodbye::Abort });
            return Some((reason, false));
        }
        match *g.event {
            Event::Closed { attempt, reason, heard } if attempt == session.attempt => return Some((reason, heard)),
            Event::Heard { attempt } if attempt == session.attempt => session.heard(now),
            Event::Ponged { attempt } if attempt == session.attempt => {
                session.ponged(now);
                session.heard(now);
            }
            Event::Acked { attempt, .. } if attempt == session.attempt => {
                // No sign of life by itself: a message of QoS 0 counts as acknowledged when the kernel has it.
                if let Some(sample) = g.flow.sample {
                    session.acked(now, sample);
                }
            }
            _ => {}
        }
        if session.lateness != g.reach.lateness(session.interface) {
            g.reach.late(session.interface, session.lateness);
        }
        if matches!(
            g.event,
            Event::Dialled { .. } | Event::DialFailed { .. } | Event::Connected { .. } | Event::Closed { .. }
        ) {
            // News of the spare are taken in first; the session's own clock can wait a moment.
            return None;
        }
        match session.due(now) {
            Due::Nothing => None,
            Due::Ping => {
                session.asks(now);
                g.turn.ask(Action::Ping { attempt: session.attempt });
                None
            }
            Due::Dead => {
                g.turn.ask(Action::HangUp { attempt: session.attempt, goodbye: Goodbye::Abort });
                Some((Reason::KeepaliveLimit, false))
            }
        }
    }

    /// The session is lost; a spare that is under way carries on.
    fn lose(&mut self, g: &mut Ground, mut serving: Serving, reason: Reason, heard: bool) -> Walk {
        let now = g.turn.now;
        let name = serving.session.interface;
        let echo = self.abandoned.take().is_some_and(|at| now.since(at) < ECHO);
        // Our own CONNECT on the spare ends the old connection at the server, with or without a word; one that was
        // given up may have reached the server after all.
        let moving = matches!(serving.spare, Spare::Moving { .. }) && heard;
        let taken_by_us = moving || reason == Reason::SessionTakenOver && echo;
        let reason = if taken_by_us && !moving { Reason::InterfaceChange } else { reason };
        let reason = if taken_by_us { reason } else { self.suspect_twin(now, &serving.session, reason) };
        if !taken_by_us {
            g.reach.bad(now, name, reason);
        }
        let spare = core::mem::replace(&mut serving.spare, Spare::None);
        if taken_by_us && moving {
            // The server's word on the old connection came before its answer on the new one.
            note_return(g, &spare);
        }
        // A spare of another's making dies with the reason: somebody else has our identity.
        let usable = reason.blame() != Blame::Identity || taken_by_us;
        let candidate = if usable { serving.candidate_of(g, &spare) } else { None };
        let spare_lives = candidate.as_ref().is_some_and(|(c, _)| g.interfaces.dead(c.interface).is_none());
        g.line = Some(Line::Shut);
        if serving.answer_leaving(g.turn, Outcome::Done) {
            // It was to be closed anyway; what was not flushed is kept.
            self.intent = Intent::Off;
        } else {
            let cause = if taken_by_us { Reason::InterfaceChange } else { reason };
            g.outages.began(g.turn, serving.session.last_inbound, cause, spare_lives);
        }
        match candidate {
            Some((candidate, via)) if spare_lives && self.wants(g) => self.carry_on(g, spare, candidate, via),
            Some(_) | None => {
                serving.spare = spare;
                serving.drop_spare(g, reason);
                g.line = Some(Line::Shut);
                self.after_loss(g, &serving.session, reason, heard)
            }
        }
    }

    /// The spare becomes the walk's candidate; behind it come the interfaces after it.
    fn carry_on(&mut self, g: &mut Ground, spare: Spare, mut candidate: Candidate, via: Option<Request>) -> Walk {
        g.outages.tried(candidate.interface);
        let mut round = Round::plan(From::Next(candidate.interface), g.walk, g.interfaces);
        round.rest.retain(|name| *name != candidate.interface);
        round.via = via;
        if matches!(spare, Spare::Ready { .. } | Spare::Finishing { .. }) {
            self.say_connect(g, &mut candidate);
        }
        Walk::Trying { candidate, round }
    }

    /// A planned move came about: the new connection is the session now.
    fn moved(&mut self, g: &mut Ground, serving: &mut Serving) -> Option<Walk> {
        let Event::Connected { attempt, present, window, keep_alive } = *g.event else { return None };
        let Spare::Moving { attempt: own, .. } = serving.spare else { return None };
        if attempt != own {
            return None;
        }
        let spare = core::mem::replace(&mut serving.spare, Spare::None);
        let (candidate, via) = serving.candidate_of(g, &spare)?;
        g.turn.ask(Action::HangUp { attempt: serving.session.attempt, goodbye: Goodbye::Abort });
        note_return(g, &spare);
        Some(self.connected(g, &candidate, via, present, window, keep_alive))
    }

    /// What a good session settles: the waiting operators, the last good interface, the back-off.
    fn settle(&mut self, g: &mut Ground, serving: &mut Serving) {
        let name = serving.session.interface;
        if matches!(g.event, Event::Settled { attempt } if *attempt == serving.session.attempt) {
            serving.session.settled = true;
            g.outages.ended(g.turn);
            self.answer_all(g, Outcome::Done);
            if !serving.via && self.saved.last_good != Some(name) {
                self.saved.last_good = Some(name);
                g.turn.ask(Action::Save(self.saved.clone()));
            }
        }
        if !serving.good && g.turn.now >= serving.session.opened + GOOD_SESSION {
            serving.good = true;
            self.backoff.reset();
        }
    }

    /// What the spare's own events and deadlines bring.
    fn spare_turn(&mut self, g: &mut Ground, serving: &mut Serving) -> Option<Walk> {
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
            Event::Dialled { attempt } if Some(attempt) == own => self.spare_proved(g, serving),
            _ => {}
        }
        match serving.spare.clone() {
            Spare::Resting { interface, until, proofs } if now >= until => {
                match g.interfaces.readiness(interface) {
                    Readiness::Ready => self.open_spare(g, serving, interface, Purpose::Failback { proofs }),
                    Readiness::Coming(_) | Readiness::Activatable | Readiness::Not(_) => serving.spare = Spare::None,
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
    fn open_spare(&mut self, g: &mut Ground, serving: &mut Serving, interface: Name, purpose: Purpose) {
        let attempt = g.turn.number();
        g.turn.ask(Action::Dial { interface, server: serving.session.server, attempt });
        let limit = match &purpose {
            Purpose::Failback { .. } | Purpose::Visit { .. } => SPARE_LIMIT,
            Purpose::Rescue { .. } => rescue_limit(g.interfaces.class(interface)),
        };
        serving.spare = Spare::Dialling { interface, attempt, deadline: g.turn.now + limit, purpose };
    }

    fn spare_failed(&mut self, g: &mut Ground, serving: &mut Serving, name: Name, reason: Reason, hang_up: bool) {
        let now = g.turn.now;
        let spare = core::mem::replace(&mut serving.spare, Spare::None);
        if let Some(attempt) = spare.attempt().filter(|_| hang_up) {
            g.turn.ask(Action::HangUp { attempt, goodbye: Goodbye::Abort });
        }
        g.reach.trial_failed(now, name, reason);
        if matches!(spare, Spare::Moving { .. }) && hang_up {
            self.abandoned = Some(now);
        }
        if let Spare::Dialling { purpose: Purpose::Rescue { mut tried }, .. } = spare {
            tried.push(name);
            self.rescue(g, serving, tried);
        } else {
            serving.spare_ended(g, spare, reason);
            if serving.suspected {
                // It would have been the rescue as well: another is needed.
                self.rescue(g, serving, Vec::from([name]));
            }
        }
    }

    /// The spare's handshake is complete: the path behind it is good.
    fn spare_proved(&mut self, g: &mut Ground, serving: &mut Serving) {
        let now = g.turn.now;
        let spare = core::mem::replace(&mut serving.spare, Spare::None);
        let Spare::Dialling { interface, attempt, purpose, .. } = spare else {
            serving.spare = spare;
            return;
        };
        g.reach.good(interface);
        let (needed, pause) = g.reach.proofs(interface, g.interfaces.metered(interface, g.turn.settings));
        serving.spare = match purpose {
            Purpose::Failback { proofs } if proofs + 1 < needed => {
                g.turn.ask(Action::HangUp { attempt, goodbye: Goodbye::Abort });
                Spare::Resting { interface, until: now + pause, proofs: proofs + 1 }
            }
            Purpose::Rescue { .. } => Spare::Ready { interface, attempt, purpose },
            Purpose::Failback { .. } | Purpose::Visit { .. } => {
                g.line = Some(Line::Finish);
                Spare::Finishing { interface, attempt, until: now + FINISH_LIMIT, purpose }
            }
        };
    }

    /// The planned move: CONNECT on the new connection. With MQTT 5 the old one stays until the new one is
    /// answered; with 3.1.1 it says goodbye first, or the server would publish the will (R-LV-9).
    fn switch(
        &mut self,
        g: &mut Ground,
        serving: &mut Serving,
        interface: Name,
        attempt: crate::event::Attempt,
        purpose: Purpose,
    ) -> Option<Walk> {
        let version = serving.session.version;
        let deadline = g.turn.now + CONNACK_LIMIT;
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
        serving.spare = Spare::Moving { interface, attempt, deadline, purpose };
        None
    }

    /// Silence while an answer is owed.
    fn suspicion(&mut self, g: &mut Ground, serving: &mut Serving) -> Option<Walk> {
        let now = g.turn.now;
        if serving.leaving.is_some() {
            return None;
        }
        if matches!(g.event, Event::Acked { attempt, .. } if *attempt == serving.session.attempt) {
            // Whether bytes came in with it is told next.
            return None;
        }
        match serving.session.silence(now, g.flow.oldest_sent) {
            Silence::Innocent => {
                if core::mem::take(&mut serving.suspected) {
                    self.acquit(g, serving);
                }
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
                    g.reach.bad(now, session.interface, Reason::AcknowledgementLimit);
                    g.outages.began(g.turn, session.last_inbound, Reason::AcknowledgementLimit, true);
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
    fn accuse(&mut self, g: &mut Ground, serving: &mut Serving) {
        if !serving.session.is_asked() {
            serving.session.asks(g.turn.now);
            g.turn.ask(Action::Ping { attempt: serving.session.attempt });
        }
        match core::mem::replace(&mut serving.spare, Spare::None) {
            Spare::None | Spare::Resting { .. } => self.rescue(g, serving, Vec::new()),
            Spare::Dialling { interface, attempt, deadline, purpose: Purpose::Failback { .. } } => {
                let purpose = Purpose::Rescue { tried: Vec::new() };
                serving.spare = Spare::Dialling { interface, attempt, deadline, purpose };
            }
            // A planned move that is under way is the rescue.
            other => serving.spare = other,
        }
    }

    /// Dials the next interface that may rescue the session, if there is one.
    fn rescue(&mut self, g: &mut Ground, serving: &mut Serving, tried: Vec<Name>) {
        let now = g.turn.now;
        let begun = *self.rescues_since.get_or_insert(now);
        if now.since(begun) > HOUR {
            self.rescues = 0;
            self.rescues_since = Some(now);
        }
        let spent = self.rescues >= METERED_RESCUES;
        let round = Round::plan(From::Next(serving.session.interface), g.walk, g.interfaces);
        let fits = |name: &Name| {
            *name != serving.session.interface
                && !tried.contains(name)
                && !(spent && g.interfaces.metered(*name, g.turn.settings))
        };
        let Some(name) = round.rest.into_iter().find(fits) else {
            serving.swept = Some(now);
            return;
        };
        if g.interfaces.metered(name, g.turn.settings) {
            self.rescues += 1;
        }
        self.open_spare(g, serving, name, Purpose::Rescue { tried });
    }

    /// The suspect answered: the spare is closed, and this path is suspected less readily for a while.
    fn acquit(&mut self, g: &mut Ground, serving: &mut Serving) {
        let now = g.turn.now;
        g.reach.suspected_in_vain(now, serving.session.interface);
        serving.session.acquitted(g.reach.vain(now, serving.session.interface));
        match &serving.spare {
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

    /// Tries a better interface once it has held still.
    fn failback(&mut self, g: &mut Ground, serving: &mut Serving) {
        let quiet = serving.spare == Spare::None && !serving.suspected && serving.leaving.is_none();
        if !quiet || !self.wants(g) || !serving.session.settled || g.turn.settings.failback != Failback::Auto {
            return;
        }
        if let Some((name, at)) = self.failback_target(&g.view(), serving)
            && g.turn.now >= at
        {
            self.open_spare(g, serving, name, Purpose::Failback { proofs: 0 });
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

    /// Leaves when an operator's flush is through, or when nobody needs the session any more.
    fn leave_if_due(&mut self, g: &mut Ground, mut serving: Box<Serving>) -> Walk {
        let leaving = serving.leaving.is_some_and(|l| g.flow.empty || g.turn.now >= l.until);
        if leaving {
            self.intent = Intent::Off;
        }
        if self.wants(g) {
            return Walk::Serving(serving);
        }
        serving.drop_spare(g, Reason::User);
        g.turn.ask(Action::HangUp { attempt: serving.session.attempt, goodbye: Goodbye::Offline });
        serving.answer_leaving(g.turn, Outcome::Done);
        g.line = Some(Line::Shut);
        self.since = g.turn.now;
        Walk::Resting
    }
}

/// Traffic goes back to a better interface: its record counts from now.
fn note_return(g: &mut Ground, spare: &Spare) {
    if let Spare::Moving { interface, purpose: Purpose::Failback { .. }, .. } = spare {
        g.reach.returned(g.turn.now, *interface);
    }
}

/// How long a rescue may take before the next interface is tried: several may have died together.
fn rescue_limit(class: Option<Class>) -> Duration {
    match class {
        Some(Class::Cell) => Duration::from_secs(4),
        Some(Class::Ethernet | Class::Wifi) | None => Duration::from_secs(2),
    }
}
