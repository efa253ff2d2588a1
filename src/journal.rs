//! What is written down: every connectivity transition, once, in the words of the heart.
//!
//! The black box gets each event and each deed as a line of its own, and a sentence for people whenever the state, the
//! uplink or an outage changes, a switch has come about, or an attempt fails in a new way. The log gets the sentences, and the lines at debug. A
//! failure that repeats is said once in a while, not each time. Message traffic is counted elsewhere and never
//! written here, so neither payloads nor secrets can get in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use switchback_control::status::{State, Summary};
use switchback_control::{Action, Attempt, Control, Event, Instant, Name, Notice, Reason, Switch};

use crate::api::{in_words, known_as, record_in_words};
use crate::config::Config;
use crate::io::black_box::{BlackBox, Kind};
use crate::io::{clock, systemd};

/// The same failure is said again after this long.
const SAY_AGAIN: Duration = Duration::from_secs(300);
/// Attempts remembered by interface and server: more than can be under way.
const ATTEMPTS_MAX: usize = 16;

/// The writer, and what it last wrote of.
#[derive(Debug)]
pub struct Journal {
    config: Arc<Config>,
    last: Option<Summary>,
    /// The state last told that was no mere step of an attempt.
    told: Option<State>,
    attempts: BTreeMap<Attempt, (Name, u8)>,
    failure: Option<(String, Instant)>,
}

impl Journal {
    /// A journal that knows the servers' names.
    pub fn new(config: Arc<Config>) -> Journal {
        Journal { config, last: None, told: None, attempts: BTreeMap::new(), failure: None }
    }

    /// Writes down one turn; true when the state, the uplink, an outage or the last switch changed by it.
    pub fn note(&mut self, to: &BlackBox, event: &Event, actions: &[Action], control: &Control) -> bool {
        let deeds: Vec<&Action> = actions.iter().filter(|a| is_worth_a_line(a)).collect();
        let told = tells_something(event, !deeds.is_empty());
        if !told && deeds.is_empty() {
            return false;
        }
        if told {
            to.note(Kind::Event, &event.to_string());
            log::debug!("{event}");
        }
        self.explain(to, event);
        for deed in &deeds {
            to.note(Kind::Action, &deed.to_string());
            log::debug!("  {deed}");
            match deed {
                Action::Notify(notice) => warn(*notice),
                Action::Dial { interface, server, attempt } => self.remember(*attempt, *interface, *server),
                _ => {}
            }
        }
        let after = control.summary();
        let before = self.last.replace(after);
        if let Some(sentence) = self.sentence(before.as_ref(), &after) {
            to.note(Kind::Note, &sentence);
            say(&sentence, &after, after.outage.map(|o| o.last_reason.as_str()).unwrap_or_default());
        }
        let mut changed = before != Some(after);
        for deed in &deeds {
            if let Action::Record(switch) = deed {
                let sentence = told_of(switch, control);
                to.note(Kind::Note, &sentence);
                say(&sentence, &after, switch.why.as_str());
                changed = true;
            }
        }
        changed
    }

    fn remember(&mut self, attempt: Attempt, interface: Name, server: u8) {
        self.attempts.insert(attempt, (interface, server));
        if self.attempts.len() > ATTEMPTS_MAX {
            self.attempts.pop_first();
        }
    }

    /// Says why an attempt failed, and what else people must know at once.
    fn explain(&mut self, to: &BlackBox, event: &Event) {
        match event {
            Event::NetworkManagerChanged { running: false } => log::warn!(
                "NetworkManager is not running (try `systemctl start NetworkManager`); until then, interfaces that have an address are used as they are"
            ),
            Event::DialFailed { attempt, reason, .. } | Event::Closed { attempt, reason, .. } => {
                let Some((interface, server)) = self.attempts.remove(attempt) else { return };
                let server =
                    self.config.cloud.servers.get(usize::from(server)).map(|s| s.to_string()).unwrap_or_default();
                self.say_failure(to, *attempt, *reason, format!("{interface}: {server}: {}", in_words(*reason)));
            }
            Event::Connected { attempt, .. } => {
                // From now on its end is the end of a session, which is told otherwise.
                self.attempts.remove(attempt);
                self.failure = None;
            }
            _ => {}
        }
    }

    fn say_failure(&mut self, to: &BlackBox, attempt: Attempt, reason: Reason, sentence: String) {
        let now = clock::now();
        let said = self.failure.as_ref().is_some_and(|(last, at)| *last == sentence && now.since(*at) < SAY_AGAIN);
        if said {
            return;
        }
        to.note(Kind::Note, &sentence);
        log::warn!(
            SWITCHBACK_REASON = reason.as_str(),
            SWITCHBACK_ATTEMPT = attempt.0;
            "{sentence}"
        );
        self.failure = Some((sentence, now));
    }

    /// What a person wants to read of a change.
    fn sentence(&mut self, before: Option<&Summary>, after: &Summary) -> Option<String> {
        let step = matches!(after.state, State::Step(_));
        let news = !step && self.told != Some(after.state);
        if !step {
            self.told = Some(after.state);
        }
        let old = before.and_then(|b| b.uplink);
        match (old, after.uplink) {
            (None, Some(new)) => Some(match ended_outage(before, after) {
                Some(outage) => format!("connected over {new}: {outage}"),
                None => format!("connected over {new}"),
            }),
            (Some(old), None) => {
                self.told = None;
                Some(match after.outage.filter(|o| o.ended.is_none()) {
                    Some(outage) => format!("session over {old} ended: {}", outage.last_reason),
                    None => format!("session over {old} ended"),
                })
            }
            (_, uplink) if news => Some(match uplink {
                Some(uplink) => format!("{} over {uplink}", after.state),
                None => after.state.to_string(),
            }),
            (Some(_), Some(_)) | (None, None) => None,
        }
    }
}

/// The record of a switch in one sentence.
fn told_of(switch: &Switch, control: &Control) -> String {
    let status = control.status();
    let [from, to] = [switch.from, switch.to].map(|name| known_as(&status, name));
    format!("moved from {from} to {to}: {}", record_in_words(switch))
}

/// The outage that this turn has ended, in numbers.
fn ended_outage(before: Option<&Summary>, after: &Summary) -> Option<String> {
    let open = before.and_then(|b| b.outage).filter(|o| o.ended.is_none())?;
    // A planned move leaves no outage behind; then this is an older one.
    let outage = after.outage.filter(|o| o.began == open.began)?;
    Some(format!(
        "{}, detected after {} ms, silent for {} ms, {} attempts",
        outage.first_cause,
        outage.began.since(outage.alive).as_millis(),
        outage.ended?.since(outage.alive).as_millis(),
        outage.attempts,
    ))
}

/// Message events and signs of life come by the thousand; they are counted, and told only if something follows from
/// them.
fn tells_something(event: &Event, deeds: bool) -> bool {
    match event {
        Event::Heard { .. }
        | Event::Ponged { .. }
        | Event::Acked { .. }
        | Event::Completed { .. }
        | Event::Expired { .. }
        | Event::LaneFull { .. }
        | Event::LaneRoomy { .. }
        | Event::Offered { .. }
        | Event::Stored { .. }
        | Event::Drained { .. }
        | Event::Measured { .. }
        | Event::DialProgressed { .. } => false,
        Event::DeadlineReached => deeds,
        Event::LinkChanged { .. }
        | Event::LinkGone { .. }
        | Event::AddressChanged { .. }
        | Event::DeviceSeen { .. }
        | Event::DeviceGone { .. }
        | Event::AccessPointLost { .. }
        | Event::NetworkManagerChanged { .. }
        | Event::ActivationRefused { .. }
        | Event::Dialled { .. }
        | Event::DialFailed { .. }
        | Event::Connected { .. }
        | Event::Settled { .. }
        | Event::Closed { .. }
        | Event::Rejected { .. }
        | Event::Recovered { .. }
        | Event::StorageFailed { .. }
        | Event::StorageHealed
        | Event::Asked(_) => true,
    }
}

fn is_worth_a_line(action: &Action) -> bool {
    !action.is_message() && !matches!(action, Action::Ping { .. } | Action::Measure { .. } | Action::Drain { .. })
}

fn say(sentence: &str, after: &Summary, reason: &str) {
    let uplink = after.uplink.map(|n| n.to_string()).unwrap_or_default();
    log::info!(
        SWITCHBACK_STATE = after.state.as_str(),
        SWITCHBACK_UPLINK = uplink.as_str(),
        SWITCHBACK_REASON = reason;
        "{sentence}"
    );
    systemd::status(sentence);
}

fn warn(notice: Notice) {
    let lost = |what: &str, reason: Reason| {
        log::warn!(SWITCHBACK_REASON = reason.as_str(); "{what}: {}", in_words(reason));
    };
    match notice {
        Notice::Lost { reason } => lost("connection lost", reason),
        Notice::Outage { reason } => lost("outage", reason),
        Notice::Restored => log::info!("connection restored"),
    }
}
