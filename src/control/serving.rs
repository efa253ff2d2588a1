//! While a session is open: is it alive, is there something better, is it time to go?
//!
//! Decides four things, in this order each turn: whether the session is lost; whether a suspicion calls for a
//! spare, and whether the spare takes over; whether a better interface has held still long enough to be tried, and
//! whether traffic moves to it; whether nobody needs the session any more. Only positive evidence of death drops
//! the session: carrier or address gone, the connection ended, or silence while an answer is owed and another path
//! has proved itself, or silence beyond the dead limit. Slow is not dead.

use alloc::boxed::Box;
use core::time::Duration;

use crate::action::{Action, Goodbye, Outcome};
use crate::attempt::CONNACK_LIMIT;
use crate::backoff::GOOD_SESSION;
use crate::event::{Event, Request, Step, Version};
use crate::failover::{Failover, Intent, Walk};
use crate::ground::{Ground, Line, View};
use crate::reason::Reason;
use crate::round::Candidate;
use crate::session::Session;
use crate::spare::{Purpose, SPARE_LIMIT, Spare};
use crate::suspicion::rescue_limit;
use crate::time::Instant;
use crate::turn::Turn;

/// How long `disconnect` may flush (R-CL-6).
const FLUSH_LIMIT: Duration = Duration::from_secs(10);
/// A suspect that nothing could rescue: how soon everything is tried again.
const SWEEP_AGAIN: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
pub struct Leaving {
    pub request: Request,
    pub until: Instant,
}

/// The open session and what goes on around it.
#[derive(Debug)]
pub struct Serving {
    pub session: Session,
    pub spare: Spare,
    /// An operator's visit: it proves nothing about the ordinary way (R-CF-6).
    pub via: bool,
    pub leaving: Option<Leaving>,
    /// The back-off was reset by this session.
    pub good: bool,
    /// Suspicion raised, and not yet answered.
    pub suspected: bool,
    /// When the last interface that might have rescued it had failed.
    pub swept: Option<Instant>,
    /// A spare was raced for what is unanswered, or need not be.
    pub raced: bool,
}

impl Serving {
    /// A session that opened now on this candidate.
    pub fn open(
        g: &mut Ground,
        candidate: &Candidate,
        version: Version,
        present: bool,
        window: u16,
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
            window,
            keep_alive,
            &uplink,
            g.reach.vain(now, candidate.interface),
            g.reach.lateness(candidate.interface),
        );
        // The handshake has shown a round trip, if the kernel counts.
        if let Some(round_trip) = g.reach.quality(candidate.interface).round_trip {
            session.sample(round_trip);
        }
        // CONNACK is the first answer: an idle session has no other sample when it is first used.
        session.sample(CONNACK_LIMIT.saturating_sub(candidate.deadline.since(now)));
        Serving {
            session,
            spare: Spare::None,
            via,
            leaving: None,
            good: false,
            suspected: false,
            swept: None,
            raced: false,
        }
    }

    /// From when on a second path may be opened although nothing is suspect.
    pub fn races_from(&self, oldest_sent: Option<Instant>) -> Option<Instant> {
        let free = self.spare == Spare::None && !self.raced && !self.suspected && self.leaving.is_none();
        self.session.risky_from(oldest_sent).filter(|_| free && self.session.settled)
    }

    /// When the interfaces that failed to rescue a suspect are tried again.
    pub fn sweep_due(&self) -> Option<Instant> {
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
            g.abandoned |= matches!(spare, Spare::Moving { .. });
        }
        self.spare_ended(g, spare, reason);
    }

    /// The spare is no more: tell whoever waited for it, and let traffic flow if it had been stopped for it.
    pub fn spare_ended(&self, g: &mut Ground, spare: Spare, reason: Reason) {
        let (purpose, stopped) = match spare {
            Spare::None | Spare::Resting { .. } => return,
            Spare::Dialling { purpose, .. } | Spare::Ready { purpose, .. } => (purpose, false),
            Spare::Finishing { purpose, .. } | Spare::Moving { purpose, .. } => (purpose, true),
        };
        if stopped {
            g.switches.abandoned();
            let Session { attempt, interface, window, .. } = self.session;
            g.line = Some(Line::Open { attempt, interface, window });
        }
        if let Purpose::Visit { request } | Purpose::Failback { request: Some(request), .. } = purpose {
            g.turn.ask(Action::Answer { request, outcome: Outcome::Failed(reason) });
        }
    }

    /// The same connection, looked at as a candidate of the walk.
    pub fn candidate_of(&self, g: &mut Ground, spare: &Spare) -> Option<(Candidate, Option<Request>)> {
        let now = g.turn.now;
        let (interface, attempt, deadline, connecting, purpose) = match spare {
            Spare::None | Spare::Resting { .. } => return None,
            Spare::Dialling { interface, attempt, deadline, purpose, .. } => {
                let limit = rescue_limit(g.interfaces.class(*interface));
                (interface, attempt, (now + limit).min(*deadline), false, purpose)
            }
            Spare::Ready { interface, attempt, purpose, .. } | Spare::Finishing { interface, attempt, purpose, .. } => {
                (interface, attempt, now + SPARE_LIMIT, false, purpose)
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
            born: now,
            deadline,
            step: if connecting { Step::Handshake } else { Step::Connecting },
            connecting,
            version: self.session.version,
            other_version: false,
            waited: false,
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
        consider(serving.spare.trusted_from().filter(|at| *at > view.now));
        consider(serving.leaving.map(|l| l.until));
        consider(serving.races_from(view.oldest_sent));
        consider(serving.sweep_due().filter(|at| *at > view.now));
        consider((!serving.good).then_some(serving.session.opened + GOOD_SESSION));
        consider(self.linger_ends(view.settings.mode).filter(|at| *at > view.now));
        if serving.spare == Spare::None && serving.session.settled {
            consider(self.returns_at(view, serving).map(|(_, at)| at).filter(|at| *at > view.now));
        }
        deadline
    }

    /// A planned move came about: the new connection is the session now.
    pub fn moved(&mut self, g: &mut Ground, serving: &mut Serving) -> Option<Walk> {
        let Event::Connected { attempt, present, window, keep_alive } = *g.event else { return None };
        let Spare::Moving { attempt: own, .. } = serving.spare else { return None };
        if attempt != own {
            return None;
        }
        let spare = core::mem::replace(&mut serving.spare, Spare::None);
        let (candidate, via) = serving.candidate_of(g, &spare)?;
        g.turn.ask(Action::HangUp { attempt: serving.session.attempt, goodbye: Goodbye::Abort });
        note_return(g, &spare);
        self.await_answer(g, &spare);
        Some(self.connected(g, &candidate, via, present, window, keep_alive))
    }

    /// What a good session settles: the waiting operators, the last good interface, the back-off.
    pub fn settle(&mut self, g: &mut Ground, serving: &mut Serving) {
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

    /// Leaves when an operator's flush is through, or when nobody needs the session any more.
    pub fn leave_if_due(&mut self, g: &mut Ground, mut serving: Box<Serving>) -> Walk {
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
pub fn note_return(g: &mut Ground, spare: &Spare) {
    if let Spare::Moving { interface, purpose: Purpose::Failback { .. }, .. } = spare {
        g.reach.returned(g.turn.now, *interface);
    }
}
