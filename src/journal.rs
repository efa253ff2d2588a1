//! What is written down: every connectivity transition, once, in the words of the heart.
//!
//! The black box gets each event and each deed as a line of its own, and a sentence for people whenever the state, the
//! uplink or an outage changes, a switch has come about, or an attempt fails in a new way. The log gets the sentences, and the lines at debug. A
//! failure that repeats is said once in a while, not each time. Of message traffic only counts are written, so neither
//! payloads nor secrets can get in.
//!
//! `losses` finds the words for messages, `cloud_log` has what the cloud is told as well.

mod cloud_log;
mod losses;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cloud_log::CloudLines;
use log::Level;
use losses::{Circumstances, Losses};
use switchback_control::status::{State, Summary};
use switchback_control::{Action, Attempt, Command, Control, Event, Instant, Name, Notice, Reason, Switch};

use crate::api::{ClassFigures, in_words, known_as, record_in_words};
use crate::config::Config;
use crate::corridor::Draft;
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
    /// What people must know whatever else happens: safe mode, a refused reload.
    remark: Option<String>,
    losses: Losses,
    lines: CloudLines,
}

impl Journal {
    /// A journal that knows the servers' names.
    pub fn new(config: Arc<Config>) -> Journal {
        let (losses, lines) = (Losses::default(), CloudLines::new(&config.cloud));
        let attempts = BTreeMap::new();
        Journal { config, last: None, told: None, attempts, failure: None, remark: None, losses, lines }
    }

    /// Says what is not as it should be with what the daemon runs with, and goes on saying it in the line that
    /// `systemctl status` shows; `None` when it is as it should be again.
    pub fn remark(&mut self, to: &BlackBox, remark: Option<String>) {
        match &remark {
            Some(sentence) => {
                log::warn!("{sentence}");
                to.note(Kind::Note, sentence);
                self.for_cloud(Level::Warn, sentence);
            }
            None if self.remark.is_some() => log::info!("the configuration is in order again"),
            None => {}
        }
        self.remark = remark;
        if let Some(last) = &self.last {
            systemd::status(&self.line(&last.state.to_string(), last.state));
        }
    }

    /// The one line for `systemctl status`.
    fn line(&self, sentence: &str, state: State) -> String {
        match &self.remark {
            Some(remark) if state == State::SafeMode && sentence == state.as_str() => remark.clone(),
            Some(remark) => format!("{sentence}; {remark}"),
            None => sentence.to_owned(),
        }
    }

    /// Writes down what became of messages since it was last told: once a minute at most, and at the `end`.
    pub fn count(&mut self, to: &BlackBox, control: &Control, classes: &[ClassFigures], end: bool) {
        let summary = control.summary();
        let around = Circumstances {
            now: clock::now(),
            wall_ms: clock::wall().as_millisecond(),
            connected: summary.uplink.is_some(),
            reason: summary.outage.filter(|outage| outage.ended.is_none()).map(|outage| outage.last_reason.as_str()),
            own_lines: self.lines.offered(),
        };
        let look = if end { Losses::last_words } else { Losses::look };
        for said in look(&mut self.losses, classes, around) {
            to.note(Kind::Note, &said.text);
            log::log!(said.level, "{}", said.text);
            if !said.local {
                self.for_cloud(said.level, &said.text);
            }
        }
    }

    /// What was said since the last call and is for the cloud: each to be offered as a message.
    pub fn lines(&mut self) -> Vec<Draft> {
        self.lines.drafts()
    }

    fn for_cloud(&mut self, level: Level, sentence: &str) {
        self.lines.take(level, sentence, clock::now(), clock::wall());
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
                Action::Notify(notice) => {
                    let (level, sentence) = warn(*notice);
                    self.for_cloud(level, &sentence);
                }
                Action::Dial { interface, server, attempt } => self.remember(*attempt, *interface, *server),
                _ => {}
            }
        }
        let after = control.summary();
        let before = self.last.replace(after);
        if let Some(sentence) = self.sentence(before.as_ref(), &after) {
            to.note(Kind::Note, &sentence);
            self.say(&sentence, &after, after.outage.map(|o| o.last_reason.as_str()).unwrap_or_default());
            self.for_cloud(Level::Info, &sentence);
        }
        let mut changed = before != Some(after);
        for deed in &deeds {
            if let Action::Record(switch) = deed {
                let sentence = told_of(switch, control);
                to.note(Kind::Note, &sentence);
                self.say(&sentence, &after, switch.why.as_str());
                self.for_cloud(Level::Info, &sentence);
                changed = true;
            }
        }
        changed
    }

    fn say(&self, sentence: &str, after: &Summary, reason: &str) {
        let uplink = after.uplink.map(|n| n.to_string()).unwrap_or_default();
        log::info!(
            SWITCHBACK_STATE = after.state.as_str(),
            SWITCHBACK_UPLINK = uplink.as_str(),
            SWITCHBACK_REASON = reason;
            "{sentence}"
        );
        systemd::status(&self.line(sentence, after.state));
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
            Event::NetworkManagerChanged { running: false } => {
                let sentence = "NetworkManager is not running (try `systemctl start NetworkManager`); until then, interfaces \
                                that have an address are used as they are";
                log::warn!("{sentence}");
                self.for_cloud(Level::Warn, sentence);
            }
            // The store itself logs these, with what the disk said.
            Event::StorageFailed { full } => {
                let what = if *full { "the outbox's disk is full" } else { "the outbox's disk cannot be written" };
                let sentence = format!("{what}: messages are acknowledged only when the cloud has them");
                to.note(Kind::Note, &sentence);
                self.for_cloud(Level::Error, &sentence);
            }
            Event::StorageHealed => {
                let sentence = "the outbox's disk works again: messages are kept";
                to.note(Kind::Note, sentence);
                self.for_cloud(Level::Info, sentence);
            }
            Event::Asked(Command::Drop { .. }) => self.losses.operator_drops(),
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
        self.for_cloud(Level::Warn, &sentence);
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
        | Event::ClockSet
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

/// What it said, and how loud.
fn warn(notice: Notice) -> (Level, String) {
    let lost = |what: &str, reason: Reason| {
        let sentence = format!("{what}: {}", in_words(reason));
        log::warn!(SWITCHBACK_REASON = reason.as_str(); "{sentence}");
        (Level::Warn, sentence)
    };
    match notice {
        Notice::Lost { reason } => lost("no connection", reason),
        Notice::Outage { reason } => lost("outage", reason),
        Notice::Restored => {
            log::info!("connection is up");
            (Level::Info, "connection is up".into())
        }
    }
}
