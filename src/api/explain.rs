//! Why: the status in sentences.
//!
//! One line for each uplink, and one for what happens next and when (R-FX-15). Takes the heart's status and nothing
//! else, so it can say nothing that the heart does not know. Pure; the words for reasons are those of the log.

use serde_json::{Map, Value};
use switchback_control::status::{State, Status, UplinkStatus};
use switchback_control::{Instant, Reason};

use crate::config::duration_text;

/// The document of `explain`: sentences, in the order of the walk, the plan last.
pub fn explain_document(status: &Status, now: Instant) -> Map<String, Value> {
    let carrier = status.uplink.and_then(|name| status.uplinks.iter().position(|u| u.name == name));
    let uplinks = status.uplinks.iter().enumerate().map(|(place, uplink)| about(status, now, uplink, place, carrier));
    let absent = status.absent.iter().map(|item| format!("{item} is in the list, but not present."));
    let uplinks: Vec<Value> = uplinks.chain(absent).map(Value::from).collect();
    let mut document = Map::new();
    document.insert("uplinks".into(), uplinks.into());
    document.insert("next".into(), next(status, now).into());
    document
}

/// What is told of one uplink; `carrier` is the place of the one that carries the session.
fn about(status: &Status, now: Instant, uplink: &UplinkStatus, place: usize, carrier: Option<usize>) -> String {
    let who = format!("{} ({})", uplink.name, uplink.class);
    if carrier == Some(place) {
        let since = age(now, status.since);
        let best = if place == 0 { "the first of the list" } else { "the best that works" };
        return match status.state {
            State::Stalled => {
                format!("{who} carries the session, but an answer is overdue; another way is being tried.")
            }
            _ => format!("{who} carries the session since {since}: it is {best}."),
        };
    }
    let better = carrier.is_none_or(|at| place < at);
    let why_not = uplink.reason.map(in_words);
    match (uplink.usable, better, why_not) {
        (false, _, Some(why)) => format!("{who} cannot be used: {why}."),
        (false, _, None) => format!("{who} is not up: {}.", uplink.state),
        (true, _, Some(why)) if carrier.is_none() => format!("{who} is up, but its last try failed: {why}."),
        (true, _, None) if carrier.is_none() => format!("{who} is ready."),
        (true, true, Some(why)) => format!("{who} stands higher in the list, but its last try failed: {why}."),
        (true, true, None) => format!("{who} stands higher in the list and has to hold still first."),
        (true, false, Some(why)) => format!("{who} stands lower in the list; its last try failed: {why}."),
        (true, false, None) if uplink.metered => format!("{who} is ready, stands lower in the list, and costs money."),
        (true, false, None) => format!("{who} is ready and stands lower in the list."),
    }
}

/// The next thing that will happen.
fn next(status: &Status, now: Instant) -> String {
    if let Some(failback) = status.failback {
        return match (failback.eligible_at, failback.held_because) {
            (None, why) => format!("Next: nothing by itself; the return to {} is {why}.", failback.target),
            (Some(_), "trial") => format!("Next: {} is being tried, while traffic stays where it is.", failback.target),
            (Some(at), why) => format!("Next: {} is tried in {} ({why}).", failback.target, span(at.since(now))),
        };
    }
    match (status.state, status.next_attempt) {
        (State::Off, _) => "Next: nothing, it was told to stay disconnected; `switchback connect` ends that.".into(),
        (State::Idle, _) => "Next: nothing until there is something to send, or `switchback connect`.".into(),
        (State::Step(step), _) if !status.connected => {
            format!("Next: the attempt under way has come to {}.", step.as_str())
        }
        (_, Some(at)) => format!("Next: another attempt in {}.", span(at.since(now))),
        (_, None) => "Next: nothing is planned; this goes on until something changes.".into(),
    }
}

fn age(now: Instant, since: Instant) -> String {
    span(now.since(since))
}

/// Whole seconds are enough for people.
fn span(duration: std::time::Duration) -> String {
    let seconds = std::time::Duration::from_secs(duration.as_millis().div_ceil(1000) as u64);
    duration_text(seconds)
}

/// A reason in words, with what to do about it where people can do something, and the word itself for searching.
pub fn in_words(reason: Reason) -> String {
    let words = match reason {
        Reason::NoLink => "no carrier",
        Reason::NoAddress => "no address",
        Reason::NoProfile => "NetworkManager has no profile for it that fits now",
        Reason::NoCredentials => "the network refused the key, or none is stored",
        Reason::Dns => "the name servers of this uplink do not answer or do not know the name",
        Reason::NoServer => "no answer",
        Reason::NoRoute => "the server cannot be reached from there",
        Reason::Refused => "connection refused; does the server run, and is the port in cloud.servers right?",
        Reason::Reset => "the connection was reset",
        Reason::ServerShutDown => "the server closed the connection",
        Reason::TimeLimit => "it answered, but did not finish in time",
        Reason::Tls => "the TLS handshake failed; is cloud.ca_file the authority that signed the server's certificate?",
        Reason::ClockWrong => "the server's certificate is not valid yet; the clock of this machine is wrong",
        Reason::CaptivePortal => "a captive portal answers in its place",
        Reason::Authentication => {
            "the server refused our credentials; check cloud.username, password_file, cert_file and key_file"
        }
        Reason::SessionTakenOver => "another client uses our cloud.client_id",
        Reason::Version => "the server speaks another version of MQTT",
        Reason::AcknowledgementLimit => "answers stayed away while another way worked",
        Reason::KeepaliveLimit => "silent for too long",
        Reason::User => "taken down by an operator",
        other => return other.to_string(),
    };
    format!("{words} ({reason})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_session_nothing_stands_higher_than_anything() {
        use switchback_control::{Class, Control, Device, Event, Name, Saved, Settings, Stage};
        let start = Instant::from_millis(0);
        let unreleased = switchback_control::Unreleased::default();
        let mut control = Control::restore(Settings::default(), Saved::default(), &unreleased, 0, 1, start);
        let device = Device {
            class: Class::Ethernet,
            ip_interface: None,
            stage: Stage::Activated,
            address: true,
            metered: None,
        };
        let interface = Name::new("eth0").unwrap();
        control.step(start, &Event::DeviceSeen { interface, device });
        let document = explain_document(&control.status(), start);
        assert_eq!(document["uplinks"][0], "eth0 (ethernet) is ready.");
        assert_eq!(document["next"], "Next: the attempt under way has come to resolving.");
    }

    #[test]
    fn every_reason_ends_with_its_own_word_for_searching() {
        for reason in Reason::ALL {
            assert!(in_words(*reason).contains(reason.as_str()), "{reason}");
        }
    }
}
