//! What is written down: every connectivity transition, once, in the words of the heart.
//!
//! The black box gets each event and each deed as a line of its own, and a sentence for people whenever the state, the
//! uplink or an outage changes; the log gets the sentences and, at debug, the lines. Message traffic is counted
//! elsewhere and never written here, so neither payloads nor secrets can get in.

use std::time::Duration;

use switchback_control::status::{State, Summary};
use switchback_control::{Action, Control, Event, Notice, Reason};

use crate::io::black_box::{BlackBox, Kind};
use crate::io::systemd;

/// The writer, and what it last wrote of.
#[derive(Debug, Default)]
pub struct Journal {
    last: Option<Summary>,
}

impl Journal {
    /// Writes down one turn; true when the state, the uplink or an outage changed by it.
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
        for deed in &deeds {
            to.note(Kind::Action, &deed.to_string());
            log::debug!("  {deed}");
            if let Action::Notify(notice) = deed {
                warn(*notice);
            }
        }
        let after = control.summary();
        let before = self.last.replace(after);
        if let Some(sentence) = sentence(before.as_ref(), &after) {
            to.note(Kind::Note, &sentence);
            say(&sentence, &after);
        }
        before != Some(after)
    }
}

/// Message events and signs of life come by the thousand; they are counted, and told only if something follows from
/// them.
fn tells_something(event: &Event, deeds: bool) -> bool {
    match event {
        Event::Heard { .. }
        | Event::Ponged { .. }
        | Event::Acked { .. }
        | Event::Offered { .. }
        | Event::Stored { .. }
        | Event::Drained { .. }
        | Event::DialProgressed { .. } => false,
        Event::DeadlineReached => deeds,
        Event::LinkChanged { .. }
        | Event::LinkGone { .. }
        | Event::AddressChanged { .. }
        | Event::DeviceSeen { .. }
        | Event::DeviceGone { .. }
        | Event::NetworkManagerChanged { .. }
        | Event::ActivationRefused { .. }
        | Event::Dialled { .. }
        | Event::DialFailed { .. }
        | Event::Connected { .. }
        | Event::Settled { .. }
        | Event::Closed { .. }
        | Event::Rejected { .. }
        | Event::StorageFailed { .. }
        | Event::StorageHealed
        | Event::Asked(_) => true,
    }
}

fn is_worth_a_line(action: &Action) -> bool {
    !action.is_message() && !matches!(action, Action::Ping { .. } | Action::Drain { .. })
}

/// What a person wants to read of a change.
fn sentence(before: Option<&Summary>, after: &Summary) -> Option<String> {
    let Some(before) = before else { return Some(after.state.to_string()) };
    let millis = |d: Duration| d.as_millis();
    if before.uplink != after.uplink {
        return Some(match (before.uplink, after.uplink) {
            (Some(old), Some(new)) => format!("uplink {old} -> {new}"),
            (None, Some(new)) => match after.outage.and_then(|o| Some((o, o.ended?))) {
                Some((outage, ended)) if before.outage.is_some_and(|o| o.ended.is_none()) => format!(
                    "connected over {new}: {}, detected after {} ms, silent for {} ms, {} attempts",
                    outage.first_cause,
                    millis(outage.began.since(outage.alive)),
                    millis(ended.since(outage.alive)),
                    outage.attempts,
                ),
                Some(_) | None => format!("connected over {new}"),
            },
            (Some(old), None) => match after.outage.filter(|o| o.ended.is_none()) {
                Some(outage) => format!("session over {old} ended: {}", outage.last_reason),
                None => format!("session over {old} ended"),
            },
            (None, None) => return None,
        });
    }
    (before.state != after.state).then(|| match (after.state, after.uplink) {
        (state @ (State::Online | State::OnlineOnBackup | State::Stalled), Some(uplink)) => {
            format!("{state} over {uplink}")
        }
        (state, _) => state.to_string(),
    })
}

fn say(sentence: &str, after: &Summary) {
    let uplink = after.uplink.map(|n| n.to_string()).unwrap_or_default();
    let reason = after.outage.map(|o| o.last_reason.as_str()).unwrap_or_default();
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
        log::warn!(SWITCHBACK_REASON = reason.as_str(); "{what}: {reason}");
    };
    match notice {
        Notice::Lost { reason } => lost("connection lost", reason),
        Notice::Outage { reason } => lost("outage", reason),
        Notice::Restored => log::info!("connection restored"),
    }
}
