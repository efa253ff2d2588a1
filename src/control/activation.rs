//! Which interfaces NetworkManager is asked to bring up.
//!
//! An interface with standby `up` is kept activated; one with standby `off` is activated while the walk needs it
//! and given back afterwards. Each request has its own limit, so that a NetworkManager that never answers is
//! asked again (R-CL-5), and failures are retried ever more slowly. What an operator took down stays down
//! (R-IF-19), and nothing is ever taken down because a list leaves it out (R-IF-6).

use alloc::collections::BTreeMap;
use core::time::Duration;

use crate::action::Action;
use crate::event::{Attempt, Event};
use crate::interfaces::{Interfaces, Readiness};
use crate::name::{Class, Name};
use crate::reason::Reason;
use crate::settings::{Standby, Uplink};
use crate::time::Instant;
use crate::turn::Turn;

/// NetworkManager's own autoconnect gets this long before we ask.
const FIRST_ASK: Duration = Duration::from_secs(1);
/// Waits between requests double from the first to the last; the last keeps R-FX-12 (15 s).
const RETRY_FIRST: Duration = Duration::from_secs(2);
const RETRY_LAST: Duration = Duration::from_secs(12);
/// The first cellular try after boot may have to search for a network (R-CL-5).
const FIRST_CELL: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug)]
enum State {
    /// To be asked for at this moment, if it is still needed then.
    Resting { until: Instant },
    /// Asked for; counts as failed at the deadline.
    Asked { attempt: Attempt, deadline: Instant },
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    state: State,
    failures: u32,
    /// We brought it up, so we may give it back.
    ours: bool,
}

/// What was asked of NetworkManager, by interface.
#[derive(Debug, Default)]
pub struct Activation {
    entries: BTreeMap<Name, Entry>,
}

impl Activation {
    /// Takes the event in and asks for what is due. `needed` tells whether the walk wants the interface although
    /// its standby is off; `settled` that it will not change its mind in a moment, so that what is not needed may be
    /// given back; `hands_off` keeps everything as it is (idle).
    pub fn step(
        &mut self,
        turn: &mut Turn,
        event: &Event,
        interfaces: &Interfaces,
        settled: bool,
        hands_off: bool,
        needed: impl Fn(Name) -> bool,
    ) {
        if let Event::ActivationRefused { interface, attempt, .. } = event {
            self.failed(turn.now, *interface, *attempt);
        }
        self.entries.retain(|name, _| interfaces.present(*name));
        for name in interfaces.names() {
            let Some(class) = interfaces.class(name) else { continue };
            let uplink = *turn.settings.uplink(interfaces.spoken(name), class);
            let wanted = !hands_off && (uplink.standby != Standby::Off || needed(name));
            let spare = !wanted && settled;
            self.tend(turn, name, class, &uplink, interfaces.readiness(name), wanted, spare);
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn tend(
        &mut self,
        turn: &mut Turn,
        name: Name,
        class: Class,
        uplink: &Uplink,
        readiness: Readiness,
        wanted: bool,
        spare: bool,
    ) {
        let now = turn.now;
        let entry = self.entries.entry(name).or_insert(Entry {
            state: State::Resting { until: now + FIRST_ASK },
            failures: 0,
            ours: false,
        });
        if matches!(entry.state, State::Resting { .. })
            && matches!(readiness, Readiness::Activatable | Readiness::Not(Reason::User | Reason::NoProfile))
        {
            // Somebody else took it down: whoever brings it up again, it is not ours any more.
            entry.ours = false;
        }
        match (readiness, entry.state) {
            (Readiness::Ready, _) if spare && entry.ours => {
                *entry = Entry { state: State::Resting { until: now }, failures: 0, ours: false };
                turn.ask(Action::Deactivate { interface: name });
            }
            (Readiness::Ready, State::Asked { .. }) => {
                *entry = Entry { state: State::Resting { until: now + FIRST_ASK }, failures: 0, ours: true };
            }
            (Readiness::Ready | Readiness::Not(_), State::Resting { .. }) => {
                // Whenever it can be activated again, NetworkManager goes first.
                entry.state = State::Resting { until: now + entry.pause() };
            }
            (_, State::Asked { deadline, .. }) if now >= deadline => entry.fail(now),
            (Readiness::Activatable, State::Resting { until }) if wanted && now >= until => {
                let limit =
                    if class == Class::Cell && entry.failures == 0 { FIRST_CELL } else { uplink.connect_timeout };
                let attempt = turn.number();
                entry.state = State::Asked { attempt, deadline: now + limit.max(uplink.connect_timeout) };
                turn.ask(Action::Activate { interface: name, attempt });
            }
            // It fell back: the request has failed, whatever was answered.
            (Readiness::Not(_), State::Asked { .. }) => entry.fail(now),
            (Readiness::Activatable | Readiness::Coming(_), _) => {}
        }
    }

    fn failed(&mut self, now: Instant, name: Name, attempt: Attempt) {
        if let Some(entry) = self.entries.get_mut(&name)
            && matches!(entry.state, State::Asked { attempt: a, .. } if a == attempt)
        {
            entry.fail(now);
        }
    }

    /// When something is next due.
    pub fn deadline(&self, interfaces: &Interfaces, wanted: impl Fn(Name) -> bool) -> Option<Instant> {
        let due = |(name, entry): (&Name, &Entry)| match entry.state {
            State::Asked { deadline, .. } => Some(deadline),
            State::Resting { until } => {
                (interfaces.readiness(*name) == Readiness::Activatable && wanted(*name)).then_some(until)
            }
        };
        self.entries.iter().filter_map(due).min()
    }
}

impl Entry {
    fn pause(&self) -> Duration {
        if self.failures == 0 {
            return FIRST_ASK;
        }
        RETRY_LAST.min(RETRY_FIRST.saturating_mul(1 << (self.failures - 1).min(8)))
    }

    fn fail(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.state = State::Resting { until: now + self.pause() };
    }
}
