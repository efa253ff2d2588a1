//! The status document as OpenMetrics text (OpenMetrics 1.0).
//!
//! One list says which key becomes which metric. A value that is absent has no sample; a metric without any sample is
//! still declared, so that a scraper always sees the same families. Nothing here reads anything but the document.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// The content type.
pub const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Every state word of the contract: a state set has a sample for each, so that a graph shows zeros.
const STATES: [&str; 21] = [
    "off",
    "idle",
    "joining",
    "addressing",
    "sim",
    "registering",
    "bearer",
    "resolving",
    "connecting",
    "handshake",
    "online",
    "online-on-backup",
    "stalled",
    "no-internet",
    "captive-portal",
    "no-cloud",
    "auth-error",
    "clock-wrong",
    "planned-offline",
    "updating",
    "safe-mode",
];

/// A metric: its family, its unit, what it counts.
struct Metric {
    /// In the document.
    key: &'static str,
    /// Without `switchback_`; ends with the unit.
    family: &'static str,
    kind: Kind,
    unit: &'static str,
    help: &'static str,
    /// How many of the document's units make one of the metric's.
    per: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
}

const fn gauge(key: &'static str, family: &'static str, help: &'static str) -> Metric {
    Metric { key, family, kind: Kind::Gauge, unit: "", help, per: 1.0 }
}

const fn counter(key: &'static str, family: &'static str, help: &'static str) -> Metric {
    Metric { key, family, kind: Kind::Counter, unit: "", help, per: 1.0 }
}

impl Metric {
    const fn bytes(self) -> Metric {
        Metric { unit: "bytes", ..self }
    }

    /// Seconds, of which the document has `per` parts.
    const fn seconds(self, per: f64) -> Metric {
        Metric { unit: "seconds", per, ..self }
    }
}

const MILLI: f64 = 1000.0;

const TOP: [Metric; 3] = [
    gauge("connected", "connected", "Whether the cloud answers."),
    gauge("last_inbound_ms", "last_inbound_seconds", "How long ago the cloud was last heard.").seconds(MILLI),
    gauge("next_attempt_ms", "next_attempt_seconds", "How long until the next attempt.").seconds(MILLI),
];

const SESSION: [Metric; 1] = [gauge("rtt_ms", "session_rtt_seconds", "Round trip to the server.").seconds(MILLI)];

const UPLINK: [Metric; 10] = [
    gauge("usable", "uplink_usable", "Whether the uplink can carry the session."),
    gauge("metered", "uplink_metered", "Whether its bytes cost money."),
    gauge("rtt_ms", "uplink_rtt_seconds", "Round trip through the uplink.").seconds(MILLI),
    gauge("loss", "uplink_loss", "Share of what was lost, as in the status."),
    gauge("signal", "uplink_signal", "Signal of the radio, as in the status."),
    counter("bytes_up", "uplink_sent_bytes", "Bytes sent through the interface, by the kernel.").bytes(),
    counter("bytes_down", "uplink_received_bytes", "Bytes received through the interface, by the kernel.").bytes(),
    counter("liveness_bytes", "uplink_liveness_bytes", "Bytes spent on knowing that the path lives.").bytes(),
    counter("spare_handshakes", "uplink_spare_handshakes", "Connections dialled for a proof or to wait, and not used."),
    gauge("warm", "uplink_warm", "Whether a connection waits there to be used."),
];

const OUTBOX: [Metric; 10] = [
    gauge("messages", "outbox_messages", "Messages waiting for the cloud's acknowledgement."),
    gauge("bytes", "outbox_bytes", "Bytes of the waiting messages.").bytes(),
    gauge("oldest_s", "outbox_oldest_seconds", "Age of the oldest waiting message.").seconds(1.0),
    gauge("in_flight", "outbox_in_flight", "Messages sent and not yet acknowledged."),
    gauge("held", "outbox_held", "Messages that the present uplink may not carry."),
    gauge("durable", "outbox_durable", "Whether the disk keeps messages."),
    counter("dropped", "outbox_dropped", "Messages given up where their class was full, or by an operator."),
    counter("expired", "outbox_expired", "Messages that became older than they may."),
    counter("refused", "outbox_refused", "Messages that were not taken."),
    counter("rejected", "outbox_rejected", "Messages that the server will never take."),
];

/// The same by class, in families of their own, so that sums over a family are right.
const CLASS: [Metric; 9] = [
    gauge("messages", "class_messages", "Messages of the class waiting for the cloud's acknowledgement."),
    gauge("bytes", "class_bytes", "Bytes of the class's waiting messages.").bytes(),
    gauge("oldest_s", "class_oldest_seconds", "Age of the class's oldest waiting message.").seconds(1.0),
    gauge("in_flight", "class_in_flight", "Messages of the class sent and not yet acknowledged."),
    gauge("held", "class_held", "Messages of the class that the present uplink may not carry."),
    counter("dropped", "class_dropped", "Messages of the class given up where it was full, or by an operator."),
    counter("expired", "class_expired", "Messages of the class that became older than they may."),
    counter("refused", "class_refused", "Messages of the class that were not taken."),
    counter("rejected", "class_rejected", "Messages of the class that the server will never take."),
];

/// What the local face counts: our listener, or the broker that serves in its place.
const LOCAL: [Metric; 15] = [
    gauge("clients", "local_clients", "Applications that are connected."),
    gauge("sessions", "local_sessions", "Sessions of applications, connected or not."),
    gauge("queued", "local_queued", "Messages that wait for applications."),
    gauge("queued_bytes", "local_queued_bytes", "Their bytes.").bytes(),
    gauge("connected", "local_broker_connected", "Whether the local broker is there."),
    gauge("downlinks_waiting", "local_downlinks_waiting", "Messages of the cloud that the local broker has not taken."),
    counter("received", "local_received", "Messages of applications that the local broker sent."),
    counter("dropped", "local_dropped", "Messages for applications whose queue was full."),
    counter("commands_dropped", "local_commands_dropped", "Those of them that came from the cloud."),
    counter("unwanted", "local_unwanted", "Messages of the cloud that no application has subscribed to."),
    counter("slow_dropped", "local_slow_dropped", "Applications dropped because they took nothing."),
    counter("clients_refused", "local_clients_refused", "Applications turned away because all places were taken."),
    counter("strangers_refused", "local_strangers_refused", "Applications with a wrong user or password."),
    counter("denied", "local_denied", "Messages and subscriptions that the access list forbids."),
    counter("unknown_class", "local_unknown_class", "Messages that name a class that there is not."),
];

const OUTAGE: [Metric; 2] = [
    gauge("detected_ms", "last_outage_detected_seconds", "How long the last loss went unnoticed.").seconds(MILLI),
    gauge("gap_ms", "last_outage_gap_seconds", "How long the last outage was.").seconds(MILLI),
];

/// How often traffic moved, by from, to and reason.
const SWITCHES: [Metric; 1] = [counter("count", "switches", "Moves of the session to another uplink.")];

const LAST_SWITCH: [Metric; 3] = [
    gauge("detection_ms", "last_switch_detection_seconds", "How long an answer had been owed before the last switch.")
        .seconds(MILLI),
    gauge("switch_ms", "last_switch_seconds", "How long the last switch took.").seconds(MILLI),
    gauge("pause_ms", "last_switch_pause_seconds", "How long the last switch held up a message.").seconds(MILLI),
];

/// The whole exposition, with its end mark.
pub fn text(document: &Map<String, Value>) -> String {
    let mut out = String::new();
    state(&mut out, document);
    let _ = writeln!(out, "# TYPE switchback_build info\n# HELP switchback_build The running daemon.");
    let _ = writeln!(out, "switchback_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    let here = |key: &str| document.get(key).and_then(Value::as_object).map(|object| (String::new(), object));
    families(&mut out, &TOP, &[(String::new(), document)]);
    families(&mut out, &SESSION, here("session").as_slice());
    families(&mut out, &UPLINK, &each(document, "uplinks", &[("uplink", "name"), ("class", "class")]));
    families(&mut out, &OUTBOX, here("outbox").as_slice());
    families(&mut out, &CLASS, &classes(document));
    families(&mut out, &LOCAL, here("local").as_slice());
    families(&mut out, &OUTAGE, here("last_outage").as_slice());
    families(&mut out, &SWITCHES, &each(document, "switches", &[("from", "from"), ("to", "to"), ("reason", "why")]));
    families(&mut out, &LAST_SWITCH, here("last_switch").as_slice());
    out.push_str("# EOF\n");
    out
}

fn state(out: &mut String, document: &Map<String, Value>) {
    let now = document.get("state").and_then(Value::as_str).unwrap_or_default();
    out.push_str("# TYPE switchback_state stateset\n# HELP switchback_state One word for the whole.\n");
    for word in STATES {
        let _ = writeln!(out, "switchback_state{{switchback_state=\"{word}\"}} {}", u8::from(word == now));
    }
}

fn families(out: &mut String, metrics: &[Metric], sources: &[(String, &Map<String, Value>)]) {
    for Metric { key, family, kind, unit, help, per } in metrics {
        let (kind, suffix) = match kind {
            Kind::Gauge => ("gauge", ""),
            Kind::Counter => ("counter", "_total"),
        };
        let _ = writeln!(out, "# TYPE switchback_{family} {kind}");
        if !unit.is_empty() {
            let _ = writeln!(out, "# UNIT switchback_{family} {unit}");
        }
        let _ = writeln!(out, "# HELP switchback_{family} {help}");
        for (labels, source) in sources {
            if let Some(value) = source.get(*key).and_then(number) {
                let _ = writeln!(out, "switchback_{family}{suffix}{labels} {}", value / per);
            }
        }
    }
}

fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_bool().map(|flag| f64::from(u8::from(flag)))).filter(|number| number.is_finite())
}

/// The classes of the outbox, each with its label.
fn classes(document: &Map<String, Value>) -> Vec<(String, &Map<String, Value>)> {
    let classes = document.get("outbox").and_then(|outbox| outbox.get("classes")).and_then(Value::as_object);
    let labelled = |(name, class): (&String, _)| (format!("{{class=\"{}\"}}", escaped(name)), class);
    let objects = classes.into_iter().flatten().filter_map(|(name, class)| Some((name, class.as_object()?)));
    objects.map(labelled).collect()
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The objects of a list, each with its labels: name and key of each.
fn each<'d>(
    document: &'d Map<String, Value>,
    key: &str,
    names: &[(&str, &str)],
) -> Vec<(String, &'d Map<String, Value>)> {
    let items = document.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let label = |item: &Map<String, Value>, (name, key): &(&str, &str)| {
        let text = item.get(*key).and_then(Value::as_str).unwrap_or_default();
        format!("{name}=\"{}\"", escaped(text))
    };
    let labels = |item| format!("{{{}}}", names.iter().map(|pair| label(item, pair)).collect::<Vec<_>>().join(","));
    items.iter().filter_map(Value::as_object).map(|item| (labels(item), item)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_status_becomes_openmetrics() {
        let document = json!({
            "state": "online", "connected": true, "last_inbound_ms": 412, "next_attempt_ms": null,
            "uplinks": [{"name": "wlan0", "class": "wifi", "usable": true, "rtt_ms": 31.0, "bytes_up": 9_000_000_000_u64}],
            "outbox": {"messages": 3, "oldest_s": 2, "dropped": 0,
                       "classes": {"bulk": {"messages": 2, "oldest_s": null, "held": 2, "expired": 7, "memory": false}}},
            "switches": [{"from": "eth0", "to": "wlan0", "why": "no-link", "count": 2}],
            "last_switch": {"detection_ms": 0, "switch_ms": 42, "pause_ms": null},
        });
        let text = text(document.as_object().unwrap());
        let has = |line: &str| assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        has("switchback_state{switchback_state=\"online\"} 1");
        has("switchback_state{switchback_state=\"off\"} 0");
        has("switchback_connected 1");
        has("switchback_last_inbound_seconds 0.412");
        has("switchback_uplink_rtt_seconds{uplink=\"wlan0\",class=\"wifi\"} 0.031");
        has("switchback_uplink_sent_bytes_total{uplink=\"wlan0\",class=\"wifi\"} 9000000000");
        has("switchback_outbox_dropped_total 0");
        has("switchback_class_messages{class=\"bulk\"} 2");
        has("switchback_class_held{class=\"bulk\"} 2");
        has("switchback_class_expired_total{class=\"bulk\"} 7");
        assert!(!text.contains("switchback_class_oldest_seconds{"), "nothing waits there");
        has("switchback_switches_total{from=\"eth0\",to=\"wlan0\",reason=\"no-link\"} 2");
        has("switchback_last_switch_seconds 0.042");
        assert!(!text.contains("\nswitchback_last_switch_pause_seconds "), "no message was held up");
        assert!(!text.contains("\nswitchback_next_attempt_seconds "), "absent values have no sample");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_strange_name_cannot_break_the_text() {
        let document = json!({"uplinks": [{"name": "a\"b\\c\nd", "class": null, "usable": false}]});
        let text = text(document.as_object().unwrap());
        assert!(text.contains(r#"switchback_uplink_usable{uplink="a\"b\\c\nd",class=""} 0"#), "{text}");
    }
}
