//! Why: the status in sentences.
//!
//! One line for each uplink, one for the last switch, and one for what happens next and when (R-FX-15). Takes the heart's
//! status and nothing else, so it can say nothing that the heart does not know. Pure; the words for reasons are those of
//! the log.

use std::time::Duration;

use serde_json::{Map, Value};
use switchback_control::status::{FailbackStatus, State, Status, UplinkStatus};
use switchback_control::{Instant, Reason, Switch};

use super::{WallClock, known_as};
use crate::config::duration_text;

/// The document of `explain`: sentences, in the order of the walk, then the last switch, the plan last. `hold_down` as
/// configured.
pub fn explain_document(status: &Status, clock: WallClock, hold_down: Duration) -> Map<String, Value> {
    let now = clock.now;
    let carrier = status.uplink.and_then(|name| status.uplinks.iter().position(|u| u.name == name));
    let uplinks = status.uplinks.iter().enumerate().map(|(place, uplink)| about(status, now, uplink, place, carrier));
    let absent = status.absent.iter().map(|item| format!("{item} is in the list, but not present."));
    let uplinks: Vec<Value> = uplinks.chain(absent).map(Value::from).collect();
    let mut document = Map::new();
    document.insert("uplinks".into(), uplinks.into());
    let last = status.last_switch.as_ref().map(|switch| {
        let [from, to] = [switch.from, switch.to].map(|name| known_as(status, name));
        format!("Moved from {from} to {to} at {}: {}.", clock.words(switch.at), record_in_words(switch))
    });
    document.insert("last_switch".into(), last.into());
    document.insert("next".into(), next(status, clock, hold_down).into());
    document
}

/// The record of a switch, but for where and when.
pub fn record_in_words(switch: &Switch) -> String {
    let seen = match switch.why {
        Reason::InterfaceChange => "planned".into(),
        Reason::User => "ordered by an operator".into(),
        why if switch.detection.is_zero() => format!("{why} seen at once"),
        why => format!("{why} seen after {} ms", switch.detection.as_millis()),
    };
    let pause = switch
        .pause
        .map_or("no message held up".into(), |pause| format!("pause in the stream {} ms", pause.as_millis()));
    let count = |number: u32| if number == 0 { "none".into() } else { number.to_string() };
    let in_flight = match switch.in_flight {
        0 => "no messages in flight".into(),
        1 => "1 message in flight".into(),
        more => format!("{more} messages in flight"),
    };
    format!(
        "{seen}, moved in {} ms, {pause}, {in_flight}, {} repeated, {} refused",
        switch.switch.as_millis(),
        count(switch.repeated),
        count(switch.refused)
    )
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
    let failed = uplink.reason.map(|reason| failed(reason, uplink.loss));
    let waits = if uplink.warm { "; a connection waits there (warm)" } else { "" };
    match (uplink.usable, better, failed) {
        (false, _, _) => match uplink.reason.map(in_words) {
            Some(why) => format!("{who} cannot be used: {why}."),
            None => format!("{who} is not up: {}.", uplink.state),
        },
        (true, _, Some(failed)) if carrier.is_none() => format!("{who} is up, but {failed}."),
        (true, _, None) if carrier.is_none() => format!("{who} is ready."),
        (true, true, Some(failed)) => format!("{who} stands higher in the list, but {failed}{waits}."),
        (true, true, None) => format!("{who} stands higher in the list {}{waits}.", waiting(status, uplink)),
        (true, false, Some(failed)) => format!("{who} stands lower in the list; {failed}{waits}."),
        (true, false, None) if uplink.metered => {
            format!("{who} is ready, stands lower in the list, and costs money{waits}.")
        }
        (true, false, None) => format!("{who} is ready and stands lower in the list{waits}."),
    }
}

/// What came of an uplink that is up. One that loses too much works, and was left or not returned to all the same.
fn failed(reason: Reason, loss: Option<u16>) -> String {
    match (reason, loss) {
        (Reason::Loss, Some(permille)) => format!("{} % of what is sent gets lost there ({reason})", permille / 10),
        (Reason::Loss, None) => in_words(reason),
        (Reason::AcknowledgementLimit | Reason::KeepaliveLimit, _) => format!("it was left: {}", in_words(reason)),
        _ => format!("its last try failed: {}", in_words(reason)),
    }
}

/// Why traffic does not go to a better uplink at once.
fn waiting(status: &Status, uplink: &UplinkStatus) -> &'static str {
    let target = status.failback.filter(|failback| failback.target == uplink.name);
    match target.map(|failback| failback.held_because) {
        Some("never" | "manual") => "and would do, but nothing returns by itself",
        Some("inhibited") => "and would do, but moves are held off",
        Some("trial") => "and is being tried",
        Some(_) | None => "and has to hold still first",
    }
}

/// The next thing that will happen.
fn next(status: &Status, clock: WallClock, hold_down: Duration) -> String {
    let now = clock.now;
    if let Some(failback) = &status.failback {
        return return_planned(status, failback, clock, hold_down);
    }
    match (status.state, status.next_attempt) {
        (State::Off, _) => "Next: nothing, it was told to stay disconnected; `switchback connect` ends that.".into(),
        (State::Idle, _) => "Next: nothing until there is something to send, or `switchback connect`.".into(),
        (State::SafeMode, _) if !status.connected => "Next: nothing until the configuration names a server.".into(),
        (State::Step(step), _) if !status.connected => {
            format!("Next: the attempt under way has come to {}.", step.as_str())
        }
        (_, Some(at)) => format!("Next: another attempt in {}.", span(at.since(now))),
        (_, None) => "Next: nothing is planned; this goes on until something changes.".into(),
    }
}

/// When traffic returns to a better uplink, and what holds it until then.
fn return_planned(status: &Status, failback: &FailbackStatus, clock: WallClock, hold_down: Duration) -> String {
    let FailbackStatus { target, eligible_at, held_because } = *failback;
    let Some(at) = eligible_at else {
        let by = match status.failback_until {
            Some(until) => format!("by order until {}", clock.words(until)),
            None => "as configured".into(),
        };
        return format!(
            "Next: nothing by itself, failback is {held_because} {by}; `switchback failback now` moves traffic to {target}."
        );
    };
    let wait = at.since(clock.now);
    let tried = format!("Next: {target} is tried in {}", span(wait));
    let until = |until: Option<Instant>| until.map(|at| format!(" until {}", clock.words(at))).unwrap_or_default();
    match held_because {
        "trial" => format!("Next: {target} is being tried, while traffic stays where it is."),
        "inhibited" => {
            let until = until(status.inhibited_until);
            format!("{tried}: moves are held off{until}; `switchback inhibit 0s` ends that.")
        }
        "hold-down" if wait > hold_down => {
            let usual = duration_text(hold_down);
            format!("{tried} (hold-down, longer than the usual {usual}: it came and went, or a try of it failed).")
        }
        "hold-down" => format!("{tried}, if it holds still until then (hold-down)."),
        ordered => {
            let until = until(status.failback_until);
            format!("{tried}: failback is {ordered} by order{until}; `switchback failback auto` ends that.")
        }
    }
}

fn age(now: Instant, since: Instant) -> String {
    span(now.since(since))
}

/// Whole seconds are enough for people.
fn span(duration: Duration) -> String {
    let seconds = Duration::from_secs(duration.as_millis().div_ceil(1000) as u64);
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
        Reason::Refused => {
            "connection refused; unless the journal names the server's own words: does it run, is the port in cloud.servers right?"
        }
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
        Reason::Loss => "too much of what is sent gets lost",
        Reason::User => "taken down by an operator",
        other => return other.to_string(),
    };
    format!("{words} ({reason})")
}

#[cfg(test)]
mod tests {
    use switchback_control::{Class, Control, Device, Event, Failback, Name, Saved, Settings, Stage, status::Status};

    use super::*;

    const CLOCK: WallClock = WallClock { now: Instant::from_millis(100_000), wall_ms: 1_795_132_800_000 };
    const HOLD_DOWN: Duration = Duration::from_secs(30);

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    /// Two uplinks with an address.
    fn ready() -> Status {
        let mut control = Control::restore(Settings::default(), Saved::default(), &[], 0, 1, CLOCK.now);
        for (interface, class) in [("eth0", Class::Ethernet), ("wwan0", Class::Cell)] {
            let device = Device { class, ip_interface: None, stage: Stage::Activated, address: true, metered: None };
            control.step(CLOCK.now, &Event::DeviceSeen { interface: name(interface), device });
        }
        control.status()
    }

    /// The session is on the second, and the first is to be returned to.
    fn on_backup(held_because: &'static str, eligible_at: Option<u64>) -> Status {
        let mut status = ready();
        status.uplinks[0].state = State::Idle;
        let eligible_at = eligible_at.map(Instant::from_millis);
        let failback = FailbackStatus { target: name("eth0"), eligible_at, held_because };
        Status { state: State::OnlineOnBackup, uplink: Some(name("wwan0")), failback: Some(failback), ..status }
    }

    fn sentences(status: &Status) -> Vec<String> {
        let document = explain_document(status, CLOCK, HOLD_DOWN);
        let uplinks = document["uplinks"].as_array().unwrap().iter().chain([&document["next"]]);
        uplinks.map(|sentence| sentence.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn without_a_session_nothing_stands_higher_than_anything() {
        let sentences = sentences(&ready());
        assert_eq!(sentences[1], "wwan0 (cell) is ready.");
        assert_eq!(sentences[2], "Next: the attempt under way has come to resolving.");
    }

    #[test]
    fn the_last_switch_is_one_sentence_with_its_numbers() {
        let ms = Duration::from_millis;
        let switch = Switch {
            from: name("eth0"),
            to: name("wwan0"),
            why: Reason::NoLink,
            at: Instant::from_millis(40_000),
            detection: ms(0),
            switch: ms(42),
            pause: Some(ms(61)),
            in_flight: 3,
            repeated: 1,
            refused: 0,
        };
        let last = |switch| {
            let status = Status { last_switch: Some(switch), ..ready() };
            explain_document(&status, CLOCK, HOLD_DOWN)["last_switch"].as_str().unwrap().to_owned()
        };
        let moved = "Moved from eth0 to wwan0 at 2026-11-19 23:59:00Z: ";
        let rest = "no-link seen at once, moved in 42 ms, pause in the stream 61 ms, 3 messages in flight, 1 repeated, \
                    none refused.";
        assert_eq!(last(switch), format!("{moved}{rest}"));
        let switch = Switch { why: Reason::AcknowledgementLimit, detection: ms(560), pause: None, ..switch };
        assert!(last(switch).contains("acknowledgement-limit seen after 560 ms, moved in 42 ms, no message held up"));
        let switch = Switch { why: Reason::InterfaceChange, in_flight: 0, repeated: 0, ..switch };
        assert!(
            last(switch).contains(": planned, moved in 42 ms, no message held up, no messages in flight, none rep")
        );
        assert_eq!(explain_document(&ready(), CLOCK, HOLD_DOWN)["last_switch"], Value::Null);
    }

    #[test]
    fn what_holds_traffic_from_returning_is_said_with_how_to_end_it() {
        let (hour, day) = (Some(Instant::from_millis(3_700_000)), Some(Instant::from_millis(86_500_000)));
        let plan = |status: &Status| sentences(status).pop().unwrap();
        let hold = on_backup("hold-down", Some(120_000));
        assert_eq!(plan(&hold), "Next: eth0 is tried in 20s, if it holds still until then (hold-down).");
        let long = plan(&on_backup("hold-down", Some(400_000)));
        assert!(long.starts_with("Next: eth0 is tried in 300s (hold-down, longer than the usual 30s: "), "{long}");
        let inhibited = Status { inhibited_until: hour, ..on_backup("inhibited", Some(3_700_000)) };
        assert_eq!(
            plan(&inhibited),
            "Next: eth0 is tried in 1h: moves are held off until 2026-11-20 01:00:00Z; `switchback inhibit 0s` ends that."
        );
        let never = on_backup("never", Some(86_500_000));
        let never = Status { failback_mode: Failback::Never, failback_until: day, ..never };
        assert_eq!(
            plan(&never),
            "Next: eth0 is tried in 1d: failback is never by order until 2026-11-21 00:00:00Z; \
             `switchback failback auto` ends that."
        );
        assert_eq!(
            plan(&on_backup("manual", None)),
            "Next: nothing by itself, failback is manual as configured; `switchback failback now` moves traffic to eth0."
        );
        assert!(sentences(&never)[0].ends_with("higher in the list and would do, but nothing returns by itself."));
        assert!(sentences(&inhibited)[0].ends_with("higher in the list and would do, but moves are held off."));
    }

    #[test]
    fn loss_and_what_waits_warm_are_said_of_the_uplink() {
        let mut status = on_backup("hold-down", Some(120_000));
        (status.uplinks[0].reason, status.uplinks[0].loss) = (Some(Reason::Loss), Some(430));
        let lossy = "eth0 (ethernet) stands higher in the list, but 43 % of what is sent gets lost there (loss).";
        assert_eq!(sentences(&status)[0], lossy);
        let mut status = Status { uplink: Some(name("eth0")), failback: None, state: State::Online, ..status };
        (status.uplinks[1].state, status.uplinks[1].warm) = (State::Idle, true);
        let warm = "wwan0 (cell) is ready, stands lower in the list, and costs money; a connection waits there (warm).";
        assert_eq!(sentences(&status)[1], warm);
    }

    #[test]
    fn every_reason_ends_with_its_own_word_for_searching() {
        for reason in Reason::ALL {
            assert!(in_words(*reason).contains(reason.as_str()), "{reason}");
        }
    }
}
