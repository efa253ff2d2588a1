//! The way back up: a better interface is proved, and then the session moves, made before broken.
//!
//! A better interface must have held still for the hold-down and complete its handshakes in a row, while the session goes on
//! where it is. Then what is in flight is let finish, and CONNECT goes out on the new connection. An operator's visit goes the
//! same way. If any of it fails, the session has not been touched.

use alloc::vec::Vec;

use crate::action::{Action, Goodbye, Outcome};
use crate::attempt::CONNACK_LIMIT;
use crate::event::{Event, Request, Version};
use crate::failover::{Failover, Walk};
use crate::ground::{Ground, Line};
use crate::interfaces::Readiness;
use crate::name::Name;
use crate::reason::Reason;
use crate::serving::Serving;
use crate::settings::Failback;
use crate::spare::{FINISH_LIMIT, Purpose, SPARE_LIMIT, Spare};
use crate::suspicion::rescue_limit;

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
            Event::Dialled { attempt, .. } if Some(attempt) == own => self.spare_proved(g, serving),
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
    pub fn open_spare(&mut self, g: &mut Ground, serving: &mut Serving, interface: Name, purpose: Purpose) {
        let attempt = g.turn.number();
        g.turn.ask(Action::Dial { interface, server: serving.session.server, attempt });
        let limit = match &purpose {
            Purpose::Failback { .. } | Purpose::Visit { .. } => SPARE_LIMIT,
            Purpose::Rescue { .. } => rescue_limit(g.interfaces.class(interface)),
        };
        serving.spare = Spare::Dialling { interface, attempt, deadline: g.turn.now + limit, purpose };
    }

    pub fn spare_failed(&mut self, g: &mut Ground, serving: &mut Serving, name: Name, reason: Reason, hang_up: bool) {
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
    pub fn spare_proved(&mut self, g: &mut Ground, serving: &mut Serving) {
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
    pub fn switch(
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

    /// Tries a better interface once it has held still.
    pub fn failback(&mut self, g: &mut Ground, serving: &mut Serving) {
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
}
