//! What waits for the cloud, class by class: the numbers of the heart and of the store as one table.
//!
//! A class may have several lanes, one for each choice of uplinks; people think in classes, so sums are shown. Nothing
//! here asks an adapter; what has no figure is zero or absent.

use serde_json::{Map, Value, json};
use switchback_control::{Carriers, Status};

use super::{Live, WallClock};
use crate::config::{Config, uplinks_text};

/// What the configuration and the store know of one lane.
#[derive(Clone, Debug, PartialEq)]
pub struct LiveLane {
    pub class: String,
    pub priority: u8,
    pub carriers: Carriers,
    /// Lives in memory only.
    pub memory: bool,
    /// Bytes it may hold.
    pub max_size: u64,
    pub bytes: u64,
    /// When the oldest message was accepted: milliseconds since 1970.
    pub oldest_accepted: Option<i64>,
}

/// One class, all its lanes together. Counts are since the start of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassFigures {
    pub class: String,
    pub priority: u8,
    pub memory: bool,
    pub max_size: u64,
    pub messages: u64,
    pub bytes: u64,
    /// Milliseconds since 1970.
    pub oldest_accepted: Option<i64>,
    pub in_flight: u64,
    pub dropped: u64,
    pub expired: u64,
    pub refused: u64,
    pub rejected: u64,
    /// Of the messages, those that the present uplink may not carry, and which uplinks they wait for.
    pub held: u64,
    pub waits_for: Vec<String>,
}

/// The lanes as configured; what the store knows of them is to be filled in.
pub fn live_lanes(config: &Config) -> Vec<LiveLane> {
    let lanes = config.lanes.iter().zip(&config.settings.lanes);
    let live = lanes.map(|(lane, rules)| LiveLane {
        class: lane.class.clone(),
        priority: rules.priority,
        carriers: rules.carriers.clone(),
        memory: rules.memory_bytes.is_some(),
        max_size: lane.max_size,
        bytes: 0,
        oldest_accepted: None,
    });
    live.collect()
}

/// Adds the lanes up, class by class, in the order of the configuration.
pub fn classes(status: &Status, lanes: &[LiveLane]) -> Vec<ClassFigures> {
    let mut classes: Vec<ClassFigures> = Vec::new();
    for (lane, live) in status.lanes.iter().zip(lanes) {
        let at = classes.iter().position(|sum| sum.class == live.class).unwrap_or(classes.len());
        if at == classes.len() {
            let (class, priority, memory) = (live.class.clone(), live.priority, live.memory);
            classes.push(ClassFigures { class, priority, memory, ..ClassFigures::default() });
        }
        let Some(sum) = classes.get_mut(at) else { continue };
        sum.max_size = sum.max_size.saturating_add(live.max_size);
        sum.bytes += live.bytes;
        sum.oldest_accepted = sum.oldest_accepted.into_iter().chain(live.oldest_accepted).min();
        sum.messages += lane.messages;
        sum.in_flight += lane.in_flight;
        sum.dropped += lane.dropped;
        sum.expired += lane.expired;
        sum.refused += lane.refused;
        sum.rejected += lane.rejected;
        let waiting = lane.messages.saturating_sub(lane.in_flight);
        if !lane.carried && waiting > 0 {
            sum.held += waiting;
            sum.waits_for.push(uplinks(&live.carriers));
        }
    }
    classes
}

/// The key `outbox` of `status --json`.
pub fn outbox_document(status: &Status, live: &Live, clock: WallClock) -> Value {
    // A wall clock that was set meanwhile must not give a negative age.
    let age = |accepted: Option<i64>| accepted.map(|at| clock.wall_ms.saturating_sub(at).max(0) / 1000);
    let class = |sum: ClassFigures| {
        let figures = json!({
            "messages": sum.messages,
            "bytes": sum.bytes,
            "oldest_s": age(sum.oldest_accepted),
            "in_flight": sum.in_flight,
            "dropped": sum.dropped,
            "expired": sum.expired,
            "refused": sum.refused,
            "rejected": sum.rejected,
            "held": sum.held,
            "memory": sum.memory,
            "priority": sum.priority,
        });
        (sum.class, figures)
    };
    let classes = classes(status, &live.outbox.lanes);
    let held: u64 = classes.iter().map(|sum| sum.held).sum();
    let delivery = &status.delivery;
    json!({
        "messages": delivery.messages,
        "bytes": live.outbox.bytes,
        "oldest_s": age(live.outbox.oldest_accepted),
        "in_flight": delivery.in_flight,
        "dropped": delivery.dropped,
        "expired": delivery.expired,
        "refused": delivery.refused,
        "rejected": delivery.rejected,
        "held": held,
        "durable": live.outbox.trouble.is_none(),
        "trouble": live.outbox.trouble,
        "classes": classes.into_iter().map(class).collect::<Map<String, Value>>(),
    })
}

/// What is left after a flush that failed, and why, in words; empty when nothing is.
pub fn left_in_words(status: &Status, classes: &[ClassFigures]) -> String {
    let mut left = Vec::new();
    for sum in classes {
        let class = &sum.class;
        if sum.held > 0 {
            let (wait, which) = (waits(sum.held), sum.waits_for.join(" or "));
            left.push(format!("{} of class {class} {wait} for {which}", messages(sum.held)));
        }
        let rest = sum.messages.saturating_sub(sum.held);
        match (rest, status.connected) {
            (0, _) => {}
            (rest, false) => left.push(format!("{} of class {class} {} for a session", messages(rest), waits(rest))),
            (rest, true) => left.push(format!(
                "{} of class {class} {} for the cloud's answer ({} in flight)",
                messages(rest),
                waits(rest),
                thousands(sum.in_flight)
            )),
        }
    }
    left.join("; ")
}

/// `1,204 messages`.
pub fn messages(count: u64) -> String {
    format!("{} message{}", thousands(count), if count == 1 { "" } else { "s" })
}

fn waits(count: u64) -> &'static str {
    if count == 1 { "waits" } else { "wait" }
}

/// `1,204`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes with one digit behind the point: `2.9 MB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000)];
    match UNITS.into_iter().find(|(_, factor)| bytes >= *factor) {
        Some((unit, factor)) => format!("{}.{} {unit}", bytes / factor, bytes % factor * 10 / factor),
        None => format!("{bytes} B"),
    }
}

fn uplinks(carriers: &Carriers) -> String {
    match carriers {
        Carriers::Any => "any uplink".into(),
        Carriers::Unmetered => "an unmetered uplink".into(),
        Carriers::Named(_) => uplinks_text(carriers).replace('+', " or "),
    }
}

#[cfg(test)]
mod tests {
    use switchback_control::status::LaneStatus;
    use switchback_control::{Control, Instant, Saved, Settings};

    use super::*;

    fn status(lanes: Vec<LaneStatus>, connected: bool) -> Status {
        let control = Control::restore(Settings::default(), Saved::default(), &[], 0, 1, Instant::default());
        Status { lanes, connected, ..control.status() }
    }

    fn lane(class: &str, carriers: Carriers, bytes: u64, oldest_accepted: Option<i64>) -> LiveLane {
        LiveLane { class: class.into(), priority: 5, carriers, memory: false, max_size: 100, bytes, oldest_accepted }
    }

    #[test]
    fn lanes_of_one_class_are_added_up() {
        let held = LaneStatus { messages: 12, dropped: 3, carried: false, ..LaneStatus::default() };
        let gone = LaneStatus { messages: 1204, in_flight: 4, expired: 1, carried: true, ..LaneStatus::default() };
        let status = status(vec![LaneStatus::default(), held, gone], true);
        let lanes = [
            lane("normal", Carriers::Any, 0, None),
            lane("bulk", Carriers::Unmetered, 10, Some(50)),
            lane("bulk", Carriers::Any, 5, Some(70)),
        ];
        let sums = classes(&status, &lanes);
        assert_eq!(sums.len(), 2);
        let bulk = &sums[1];
        assert_eq!((bulk.messages, bulk.bytes, bulk.held, bulk.max_size), (1216, 15, 12, 200));
        assert_eq!((bulk.dropped, bulk.expired, bulk.oldest_accepted), (3, 1, Some(50)));
        assert_eq!(
            left_in_words(&status, &sums),
            "12 messages of class bulk wait for an unmetered uplink; 1,204 messages of class bulk wait for the cloud's \
             answer (4 in flight)"
        );
        let offline = Status { connected: false, ..status };
        assert!(left_in_words(&offline, &sums).ends_with("1,204 messages of class bulk wait for a session"));
    }

    #[test]
    fn numbers_have_their_thousands_apart() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
