//! What operators ask of the walk: connect, reconnect, disconnect, another list, stop.
//!
//! Each request gets exactly one final answer (R-CL-4). A list leaves the session alone (R-IF-3), a disconnect flushes
//! first and holds until told otherwise or until reboot (R-CL-6), a visit to one interface changes nothing that is
//! stored (R-CL-8). Flushes are not here: they ask nothing of the walk.

use core::time::Duration;

use crate::action::{Action, Goodbye, Outcome};
use crate::event::{Command, Order, Request};
use crate::failover::{Failover, Intent, Walk};
use crate::ground::{Ground, Line};
use crate::interfaces::Readiness;
use crate::name::Name;
use crate::reason::Reason;
use crate::round::{From, Round};
use crate::time::Instant;

/// How long `connect` waits for interfaces that are coming up before it is answered: a cellular attempt.
const CONNECT_PATIENCE: Duration = Duration::from_secs(120);
/// Operators waiting for the result of `connect`, at most.
const REQUESTS_MAX: usize = 16;

impl Failover {
    pub fn command(&mut self, g: &mut Ground, command: &Command) {
        match command {
            Command::Connect { request, via, stay } => self.connect(g, *request, *via, *stay),
            Command::Reconnect { request } => {
                self.end_hold(g);
                self.told = true;
                self.enqueue(g, *request);
                if let Walk::Serving(serving) = &self.walk {
                    let name = serving.session.interface;
                    g.switches.began(g.turn, name, Reason::User, Duration::ZERO, &g.flow);
                    self.quit(g, Goodbye::Moving, Reason::User);
                    g.outages.began(g.turn, g.turn.now, Reason::User, true);
                    self.next = From::Current(name);
                }
                self.backoff.reset();
                self.cut_short(g.turn.now);
            }
            Command::Disconnect { request, force } => self.disconnect(g, *request, *force),
            Command::SetList { list } => {
                self.saved.list.clone_from(list);
                self.list_changed = true;
                self.list_set = g.turn.now;
                g.turn.ask(Action::Save(self.saved.clone()));
            }
            Command::Stop => {
                (self.intent, self.stay) = (Intent::Idle, None);
                self.quit(g, Goodbye::Offline, Reason::Restart);
                self.answer_all(g, Outcome::Failed(Reason::Restart));
            }
            Command::Failback { request, order: Order::Now } => self.return_now(g, *request),
            Command::Failback { request, order: Order::From(failback, limit) } => {
                self.way_back.order(g.turn.now, *failback, *limit);
                self.stop_returning(g);
                g.turn.ask(Action::Answer { request: *request, outcome: Outcome::Done });
            }
            Command::Inhibit { request, limit } => {
                self.way_back.inhibit(g.turn.now, *limit);
                self.stop_returning(g);
                g.turn.ask(Action::Answer { request: *request, outcome: Outcome::Done });
            }
            // Delivery's own.
            Command::Flush { .. } | Command::Drop { .. } => {}
        }
    }

    pub fn connect(&mut self, g: &mut Ground, request: Request, via: Option<Name>, stay: Option<Duration>) {
        let stays = match &mut self.walk {
            // Whoever disconnects and connects again while it still flushes stays connected.
            Walk::Serving(serving) => serving.answer_leaving(g.turn, Outcome::Failed(Reason::User)),
            Walk::Resting | Walk::Waiting { .. } | Walk::Trying { .. } => false,
        };
        match stay {
            Some(limit) => self.begin_stay(g.turn.now, limit),
            None if stays || via.is_none() => self.end_hold(g),
            None => {}
        }
        self.told = true;
        match (via.map(|name| g.named(name).ok_or(())), &mut self.walk) {
            (Some(Err(())), _) => {
                g.turn.ask(Action::Answer { request, outcome: Outcome::Failed(Reason::NoLink) });
            }
            (Some(Ok(name)), Walk::Serving(serving)) if serving.session.interface == name => {
                g.turn.ask(Action::Answer { request, outcome: Outcome::Done });
            }
            (Some(Ok(name)), Walk::Serving(_)) => self.visit(g, request, name),
            (Some(Ok(name)), _) => self.begin_via(g, request, name),
            (None, Walk::Serving(serving)) if serving.session.settled => {
                g.turn.ask(Action::Answer { request, outcome: Outcome::Done });
            }
            (None, _) => {
                self.enqueue(g, request);
                self.cut_short(g.turn.now);
            }
        }
    }

    /// Told to connect: what `disconnect` ordered is over.
    pub fn end_hold(&mut self, g: &mut Ground) {
        (self.intent, self.stay) = (Intent::On, None);
        if core::mem::take(&mut self.saved.held) {
            g.turn.ask(Action::Save(self.saved.clone()));
        }
    }

    /// An operator's wish ends a wait at once.
    pub fn cut_short(&mut self, now: Instant) {
        if let Walk::Waiting { until, .. } = &mut self.walk {
            *until = now;
        }
    }

    pub fn enqueue(&mut self, g: &mut Ground, request: Request) {
        if self.requests.len() < REQUESTS_MAX {
            self.requests.push((request, g.turn.now + CONNECT_PATIENCE));
        } else {
            g.turn.ask(Action::Answer { request, outcome: Outcome::Failed(Reason::TimeLimit) });
        }
    }

    pub fn answer_overdue(&mut self, g: &mut Ground) {
        let now = g.turn.now;
        for (request, _) in self.requests.extract_if(.., |(_, until)| now >= *until) {
            g.turn.ask(Action::Answer { request, outcome: Outcome::Failed(Reason::TimeLimit) });
        }
    }

    /// One final answer for everybody who asked for a connection.
    pub fn answer_all(&mut self, g: &mut Ground, outcome: Outcome) {
        for (request, _) in self.requests.drain(..) {
            g.turn.ask(Action::Answer { request, outcome });
        }
    }

    pub fn disconnect(&mut self, g: &mut Ground, request: Request, force: bool) {
        if !self.saved.held {
            self.saved.held = true;
            g.turn.ask(Action::Save(self.saved.clone()));
        }
        self.stay = None;
        self.answer_all(g, Outcome::Failed(Reason::User));
        if let Walk::Serving(serving) = &mut self.walk
            && !force
            && !g.flow.empty
        {
            // What can be flushed goes out over this session; nothing else is begun.
            serving.drop_spare(g, Reason::User);
            return serving.leave(g.turn, request);
        }
        self.intent = Intent::Off;
        self.quit(g, Goodbye::Offline, Reason::User);
        g.turn.ask(Action::Answer { request, outcome: Outcome::Done });
    }

    /// Ends whatever is under way and rests.
    pub fn quit(&mut self, g: &mut Ground, goodbye: Goodbye, reason: Reason) {
        match core::mem::replace(&mut self.walk, Walk::Resting) {
            Walk::Resting | Walk::Waiting { .. } => {}
            Walk::Trying { candidate, round } => {
                g.turn.ask(Action::HangUp { attempt: candidate.attempt, goodbye: Goodbye::Abort });
                g.abandoned |= candidate.connecting;
                g.line = Some(Line::Shut);
                if let Some(request) = round.via {
                    g.turn.ask(Action::Answer { request, outcome: Outcome::Failed(reason) });
                }
            }
            Walk::Serving(mut serving) => {
                serving.drop_spare(g, reason);
                g.turn.ask(Action::HangUp { attempt: serving.session.attempt, goodbye });
                serving.answer_leaving(g.turn, Outcome::Done);
                g.line = Some(Line::Shut);
            }
        }
        self.since = g.turn.now;
    }

    pub fn begin_via(&mut self, g: &mut Ground, request: Request, name: Name) {
        if let Walk::Trying { candidate, round } = core::mem::replace(&mut self.walk, Walk::Resting) {
            g.turn.ask(Action::HangUp { attempt: candidate.attempt, goodbye: Goodbye::Abort });
            g.abandoned |= candidate.connecting;
            g.line = Some(Line::Shut);
            if let Some(earlier) = round.via {
                g.turn.ask(Action::Answer { request: earlier, outcome: Outcome::Failed(Reason::User) });
            }
        }
        let round = Round::only(name, request);
        self.walk = match g.interfaces.readiness(name) {
            Readiness::Ready => self.next_candidate(g, round),
            Readiness::Not(reason) => self.fail_via(g, request, reason),
            Readiness::Coming(_) | Readiness::Activatable => self.fail_via(g, request, Reason::NoAddress),
        };
    }

    pub fn fail_via(&mut self, g: &mut Ground, request: Request, reason: Reason) -> Walk {
        g.turn.ask(Action::Answer { request, outcome: Outcome::Failed(reason) });
        if self.wants(g) { self.begin(g) } else { Walk::Resting }
    }
}
