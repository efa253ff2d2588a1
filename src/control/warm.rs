//! Warm spares: connections that wait, dialled up to CONNECT, on uplinks with standby `warm`.
//!
//! While a session is open, each such interface that is ready and does not carry it holds one connection. Servers hang
//! up on a connection that says nothing, and networks on the way forget it, so it is renewed: at the configured age, and
//! sooner once a server has shown how long it waits. When the session is lost, the walk takes what waits; it is taken as it
//! is, and may prove stale. A suspicion does not take it: it says nothing of whether the server answers now.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use crate::action::{Action, Goodbye};
use crate::event::{Attempt, Event};
use crate::failover::{Failover, Walk};
use crate::ground::Ground;
use crate::interfaces::Readiness;
use crate::name::Name;
use crate::reason::Blame;
use crate::serving::Serving;
use crate::settings::Standby;
use crate::spare::SPARE_LIMIT;
use crate::time::Instant;

/// However soon a server hangs up, a connection is made no more often than this: beyond it, warm costs more than it
/// saves.
const RENEW_LEAST: Duration = Duration::from_secs(5);
/// Waits after a dial that failed double from the first to the last.
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_LAST: Duration = Duration::from_secs(300);

/// A connection taken over from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub attempt: Attempt,
    /// When its handshake was complete; none while it is being dialled.
    pub since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be dialled then.
    Resting {
        until: Instant,
    },
    Dialling {
        attempt: Attempt,
        server: u8,
        deadline: Instant,
    },
    Ready {
        attempt: Attempt,
        server: u8,
        since: Instant,
    },
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    state: State,
    failures: u32,
    /// The age at which it is renewed: what the server has taught, at most what is configured.
    renew: Duration,
}

impl Entry {
    fn attempt(&self) -> Option<Attempt> {
        match self.state {
            State::Resting { .. } => None,
            State::Dialling { attempt, .. } | State::Ready { attempt, .. } => Some(attempt),
        }
    }

    fn server(&self) -> Option<u8> {
        match self.state {
            State::Resting { .. } => None,
            State::Dialling { server, .. } | State::Ready { server, .. } => Some(server),
        }
    }

    fn fail(&mut self, now: Instant) {
        let pause = RETRY_FIRST.saturating_mul(1 << self.failures.min(8)).min(RETRY_LAST);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Resting { until: now + pause };
    }

    fn deadline(&self) -> Instant {
        match self.state {
            State::Resting { until } => until,
            State::Dialling { deadline, .. } => deadline,
            State::Ready { since, .. } => since + self.renew,
        }
    }
}

/// The connections that wait, by interface.
#[derive(Debug, Default)]
pub struct Warm {
    entries: BTreeMap<Name, Entry>,
}

impl Warm {
    /// Gives the connection through `interface` to `server` away.
    pub fn take(&mut self, interface: Name, server: u8) -> Option<Taken> {
        let taken = match self.entries.get(&interface)?.state {
            State::Dialling { attempt, server: s, .. } if s == server => Taken { attempt, since: None },
            State::Ready { attempt, server: s, since } if s == server => Taken { attempt, since: Some(since) },
            State::Resting { .. } | State::Dialling { .. } | State::Ready { .. } => return None,
        };
        self.entries.remove(&interface);
        Some(taken)
    }

    /// Whether a connection waits there.
    pub fn is_ready(&self, interface: Name) -> bool {
        self.entries.get(&interface).is_some_and(|e| matches!(e.state, State::Ready { .. }))
    }

    /// Whether one waits anywhere.
    pub fn any_ready(&self) -> bool {
        self.entries.values().any(|e| matches!(e.state, State::Ready { .. }))
    }

    /// When something is next due.
    pub fn deadline(&self) -> Option<Instant> {
        self.entries.values().map(Entry::deadline).min()
    }

    /// Takes the news of its own connections in. Says over which interface a dial has come to its end.
    fn hear(&mut self, now: Instant, event: &Event) -> Option<Name> {
        let of = match event {
            Event::Dialled { attempt, .. } | Event::DialFailed { attempt, .. } | Event::Closed { attempt, .. } => {
                attempt
            }
            _ => return None,
        };
        let (name, entry) = self.entries.iter_mut().find(|(_, e)| e.attempt() == Some(*of))?;
        match (entry.state, event) {
            (State::Dialling { attempt, server, .. }, Event::Dialled { .. }) => {
                entry.failures = 0;
                entry.state = State::Ready { attempt, server, since: now };
                return Some(*name);
            }
            // The server does not wait longer than this.
            (State::Ready { since, .. }, Event::Closed { heard: true, .. }) => {
                entry.renew = (now.since(since) * 4 / 5).max(RENEW_LEAST);
                entry.state = State::Resting { until: now.max(since + RENEW_LEAST) };
            }
            (State::Dialling { .. }, _) => {
                entry.fail(now);
                return Some(*name);
            }
            _ => entry.fail(now),
        }
        None
    }
}

impl Failover {
    /// The session beside which connections are kept waiting. One that has not settled keeps none and ends none: what
    /// waits may be wanted in a moment.
    pub fn keeps_warm(&self) -> Option<&Serving> {
        match &self.walk {
            Walk::Serving(serving) if serving.session.settled && serving.leaving.is_none() => Some(serving),
            Walk::Serving(_) | Walk::Trying { .. } | Walk::Resting | Walk::Waiting { .. } => None,
        }
    }

    /// Before the walk: what has become of the connections that wait.
    pub fn warm_news(&mut self, g: &mut Ground) {
        let Some(name) = self.warm.hear(g.turn.now, g.event) else { return };
        match *g.event {
            Event::Dialled { measure, .. } => {
                g.reach.good(name);
                g.reach.measured(name, measure);
            }
            Event::DialFailed { reason, .. } if reason.blame() == Blame::Path => {
                g.reach.trial_failed(g.turn.now, name, reason);
            }
            _ => {}
        }
    }

    /// After the walk: as many connections wait as are wanted, and no more.
    pub fn tend_warm(&mut self, g: &mut Ground) {
        let now = g.turn.now;
        let serving = match (self.keeps_warm(), &self.walk) {
            (None, Walk::Serving(_) | Walk::Trying { .. }) => return,
            (serving, _) => serving,
        };
        let wanted = |name: Name| {
            let Some(serving) = serving else { return false };
            name != serving.session.interface
                && g.uplink(name).standby == Standby::Warm
                && g.interfaces.readiness(name) == Readiness::Ready
                && g.interfaces.dead(name).is_none()
        };
        let wanted: Vec<Name> = g.walk.iter().copied().filter(|name| wanted(*name)).collect();
        let server = serving.map_or(0, |s| s.session.server);
        self.warm.entries.retain(|name, entry| {
            let stays = wanted.contains(name);
            if let Some(attempt) = entry.attempt().filter(|_| !stays) {
                g.turn.ask(Action::HangUp { attempt, goodbye: Goodbye::Abort });
            }
            stays
        });
        for name in wanted {
            let renew = g.uplink(name).warm_renew;
            let first = Entry { state: State::Resting { until: now }, failures: 0, renew };
            let entry = self.warm.entries.entry(name).or_insert(first);
            if now < entry.deadline() && entry.server().is_none_or(|of| of == server) {
                continue;
            }
            if let Some(attempt) = entry.attempt() {
                g.turn.ask(Action::HangUp { attempt, goodbye: Goodbye::Abort });
            }
            if matches!(entry.state, State::Dialling { .. }) {
                entry.fail(now);
                continue;
            }
            let attempt = g.turn.number();
            g.turn.ask(Action::Dial { interface: name, server, attempt });
            entry.state = State::Dialling { attempt, server, deadline: now + SPARE_LIMIT };
        }
    }
}
