//! The end of a session: by the kernel's word, the connection's, or its own silence; and what becomes of the walk.
//!
//! A spare that is under way carries on. Else the path's fault is answered at once over the next interface, and the
//! server's is spread (R-CL-14). Whether the old session was ended by our own move, or by somebody else who uses our
//! identity, is told apart here.

use core::time::Duration;

use crate::action::{Action, Goodbye, Outcome};
use crate::event::{Event, Request};
use crate::failover::{Failover, Intent, Walk};
use crate::ground::{Ground, Line};
use crate::reason::{Blame, Reason};
use crate::round::{Candidate, From, Round};
use crate::serving::{Serving, note_return};
use crate::session::{Due, Session};
use crate::settings::Mode;
use crate::spare::Spare;
use crate::suspicion::is_promising;
use crate::time::Instant;

/// A CONNECT that was given up may still reach the server this much later, and take our own session over.
const ECHO: Duration = Duration::from_secs(60);
/// A session that lived shorter than this is followed by a wait: what opens and closes at once would otherwise spin.
const SHORT_SESSION: Duration = Duration::from_secs(1);
/// That many sessions in a row, ended by the server without a reason within this time, mean that somebody else uses our
/// identity.
const TWIN_KICKS: u32 = 3;
const TWIN_SESSION: Duration = Duration::from_secs(10);

impl Failover {
    /// Whether the session has ended, by the kernel's word, the connection's, or its own silence.
    pub fn lost(&mut self, g: &mut Ground, serving: &mut Serving) -> Option<(Reason, bool)> {
        let now = g.turn.now;
        let session = &mut serving.session;
        session.count(now, g.flow.oldest_sent);
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
            Event::Measured { attempt, measure } if attempt == session.attempt => {
                if let Some(since) = session.measured(now, measure) {
                    g.reach.measured(session.interface, since);
                }
            }
            Event::AccessPointLost { interface } if interface == session.interface => session.doubt(),
            Event::Acked { attempt, .. } if attempt == session.attempt => {
                // No sign of life by itself: a message of QoS 0 counts as acknowledged when the kernel has it.
                if let Some(sample) = g.flow.sample {
                    session.acked(now, sample);
                }
            }
            _ => {}
        }
        if session.is_curious(now, g.flow.oldest_sent.is_some()) {
            g.turn.ask(Action::Measure { attempt: session.attempt });
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
            Due::Dead if !session.is_looked_at(now) => {
                if session.looks(now) {
                    g.turn.ask(Action::Measure { attempt: session.attempt });
                }
                None
            }
            Due::Dead => {
                g.turn.ask(Action::HangUp { attempt: session.attempt, goodbye: Goodbye::Abort });
                Some((Reason::KeepaliveLimit, false))
            }
        }
    }

    /// The session is lost; a spare that is under way carries on.
    pub fn lose(&mut self, g: &mut Ground, mut serving: Serving, reason: Reason, heard: bool) -> Walk {
        let now = g.turn.now;
        let name = serving.session.interface;
        let detection = match reason {
            Reason::KeepaliveLimit | Reason::AcknowledgementLimit => serving.session.owed(now, g.flow.oldest_sent),
            _ => Duration::ZERO,
        };
        let echo = self.abandoned.take().is_some_and(|at| now.since(at) < ECHO);
        // Our own CONNECT on the spare ends the old connection at the server, with or without a word; one that was
        // given up may have reached the server after all.
        let moving = matches!(serving.spare, Spare::Moving { .. }) && heard;
        let taken_over = matches!(reason, Reason::SessionTakenOver | Reason::ServerShutDown);
        let taken_by_us = moving || echo && taken_over;
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
        // Nor does a dial carry on that should have been through by now.
        let usable = usable
            && match spare {
                Spare::Dialling { interface, began, .. } if !is_promising(g, interface, began) => {
                    g.reach.trial_failed(now, interface, Reason::NoServer);
                    false
                }
                Spare::Dialling { .. } => true,
                Spare::None | Spare::Resting { .. } | Spare::Ready { .. } => true,
                Spare::Finishing { .. } | Spare::Moving { .. } => true,
            };
        let candidate = if usable { serving.candidate_of(g, &spare) } else { None };
        let spare_lives = candidate.as_ref().is_some_and(|(c, _)| g.interfaces.dead(c.interface).is_none());
        g.switches.began(g.turn, name, reason, detection, &g.flow);
        g.line = Some(Line::Shut);
        if serving.answer_leaving(g.turn, Outcome::Done) {
            // It was to be closed anyway; what was not flushed is kept.
            self.intent = Intent::Off;
        } else {
            let cause = if taken_by_us { Reason::InterfaceChange } else { reason };
            let covered = spare_lives || self.warm.any_ready();
            g.outages.began(g.turn, serving.session.last_inbound, cause, covered);
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
    pub fn carry_on(&mut self, g: &mut Ground, spare: Spare, mut candidate: Candidate, via: Option<Request>) -> Walk {
        g.outages.tried(candidate.interface);
        self.await_answer(g, &spare);
        let mut round = Round::plan(From::Next(candidate.interface), g.walk, g.interfaces);
        round.rest.retain(|name| *name != candidate.interface);
        round.via = via;
        if matches!(spare, Spare::Ready { .. } | Spare::Finishing { .. }) {
            self.say_connect(g, &mut candidate);
        } else if let Some(line) = self.early(&candidate) {
            g.line = Some(line);
        }
        Walk::Trying { candidate, round }
    }

    /// The session is lost: what comes next.
    pub fn after_loss(&mut self, g: &mut Ground, lost: &Session, reason: Reason, heard: bool) -> Walk {
        let now = g.turn.now;
        let from = lost.interface;
        let short = now.since(lost.opened) < SHORT_SESSION && g.interfaces.dead(from).is_none();
        if !short {
            self.backoff.accepted();
        }
        self.since = now;
        self.told = !matches!(g.turn.settings.mode, Mode::Manual);
        if !self.wants(g) {
            return Walk::Resting;
        }
        self.next = match reason.blame() {
            Blame::Path if !heard && reason != Reason::Reset => From::Next(from),
            Blame::Path | Blame::Server | Blame::Credentials | Blame::Identity | Blame::Ours => From::Current(from),
        };
        let wait_first = match reason.blame() {
            // Alone with the server, the first retry is at once; in a fleet it is spread.
            Blame::Server => g.turn.settings.fleet_size > 1 || short,
            Blame::Identity | Blame::Credentials => true,
            Blame::Path | Blame::Ours => short,
        };
        if wait_first {
            let wait = self.backoff.next(now, reason, g.turn.settings, g.turn.dice);
            return Walk::Waiting { until: now + wait, cause: reason };
        }
        self.begin(g)
    }

    /// Servers of MQTT 3.1.1, and some of 5, end the old connection without a word when another client takes the
    /// identity. Sessions that a healthy server ends again and again, each soon after it has opened, look just so
    /// (R-CS-5).
    pub fn suspect_twin(&mut self, now: Instant, lost: &Session, reason: Reason) -> Reason {
        let kicked = reason == Reason::ServerShutDown && now.since(lost.opened) < TWIN_SESSION;
        self.kicks = if kicked { self.kicks.saturating_add(1) } else { 0 };
        if self.kicks >= TWIN_KICKS { Reason::SessionTakenOver } else { reason }
    }
}
