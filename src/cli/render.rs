//! Words for people: the documents of the daemon as one screen that can be read at three in the morning.
//!
//! Takes JSON as it comes: a key that is missing, because the daemon is older or newer, is shown as `-` and never an
//! error. Text from outside is stripped of control characters, so that no name can paint on a terminal. Colours mean
//! only: good, attention, bad. It is long, because the screens share their words.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

pub use crate::api::size;
use crate::config::duration_text;

const GOOD: &str = "\x1b[32m";
const ATTENTION: &str = "\x1b[33m";
const BAD: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";

/// `status`: `age` is how old the document is.
pub fn status(document: &Value, age: Duration, colours: bool) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| out += &format!("{name:<12}{text}\n");
    let state = plain(&document["state"]);
    line("state", format!("{}{}", painted(&state, colours), on_uplink(document)));
    let says = &document["configuration"]["says"];
    says.as_str().into_iter().for_each(|_| line("attention", plain(says)));
    line("since", since(&document["since"]));
    match document["next_attempt_ms"].as_u64() {
        Some(ms) => line("next try", format!("in {}", span(ms.saturating_sub(millis(age))))),
        None if document["connected"] == true => {}
        None => line("next try", "-".into()),
    }
    if let Some(ms) = document["last_inbound_ms"].as_u64() {
        line("last heard", format!("{} ago", span(ms.saturating_add(millis(age)))));
    }
    if document["session"].is_object() {
        line("session", session(&document["session"]));
    }
    line("outbox", waiting(&document["outbox"]));
    for (name, text) in super::outbox::lively_classes(&document["outbox"]["classes"]) {
        line(&format!("  {name}"), text);
    }
    if let Some(text) = local(&document["local"]) {
        line("local", text);
    }
    line("list", list_line(&document["failover"]));
    let way_back = &document["failback"];
    if way_back["target"].is_string() || way_back["until"].is_string() {
        line("failback", failback(way_back, age));
    }
    if let Some(until) = until(&document["inhibited_until"]) {
        line("inhibited", until);
    }
    line("last outage", outage(&document["last_outage"]));
    if document["last_switch"].is_object() {
        line("last switch", switch(&document["last_switch"]));
    }
    out.push('\n');
    out += &uplinks(document, colours);
    out
}

/// `explain`: its sentences as they are.
pub fn explain(document: &Value) -> String {
    let said = |key: &str| Some(&document[key]).filter(|said| said.is_string());
    let uplinks = said("configuration").into_iter().chain(document["uplinks"].as_array().into_iter().flatten());
    uplinks.chain(said("last_switch")).chain([&document["next"]]).map(|sentence| plain(sentence) + "\n").collect()
}

fn on_uplink(document: &Value) -> String {
    match document["uplink"].as_str() {
        Some(_) => format!(" over {} ({})", plain(&document["uplink"]), plain(&document["class"])),
        None => String::new(),
    }
}

fn painted(state: &str, colours: bool) -> String {
    let colour = match state {
        _ if !colours => return state.to_string(),
        "online" => GOOD,
        "off" | "idle" | "planned-offline" | "updating" => return state.to_string(),
        "online-on-backup" | "joining" | "addressing" | "sim" | "registering" | "bearer" | "resolving"
        | "connecting" | "handshake" => ATTENTION,
        _ => BAD,
    };
    format!("{colour}{state}{PLAIN}")
}

/// A time as people read it, and how long ago that is by this machine's clock.
fn since(value: &Value) -> String {
    let Some(at) = value.as_str().and_then(|text| text.parse::<Timestamp>().ok()) else { return "-".into() };
    let ago = Timestamp::now().as_millisecond().saturating_sub(at.as_millisecond());
    let ago = u64::try_from(ago).map(|ago| format!(" ({} ago)", span(ago))).unwrap_or_default();
    format!("{}{ago}", clock(at))
}

/// A time to come as people read it, and how long it is until then by this machine's clock.
fn until(value: &Value) -> Option<String> {
    let at = value.as_str()?.parse::<Timestamp>().ok()?;
    let left = at.as_millisecond().saturating_sub(Timestamp::now().as_millisecond());
    let left = u64::try_from(left).map(|left| format!(" (for {})", span(left))).unwrap_or_default();
    Some(format!("until {}{left}", clock(at)))
}

pub fn clock(at: Timestamp) -> String {
    format!("{at:.0}").replacen('T', " ", 1)
}

fn session(session: &Value) -> String {
    let mut parts = vec![plain(&session["server"]), format!("MQTT {}", plain(&session["protocol"]))];
    parts.push(session["tls"].as_str().map_or("no TLS".into(), |_| format!("TLS {}", plain(&session["tls"]))));
    parts.push(if session["present"] == true { "resumed".into() } else { "fresh".into() });
    if let Some(trip) = session["rtt_ms"].as_f64() {
        parts.push(format!("round trip {trip:.0} ms"));
    }
    parts.push(format!("number {}", plain(&session["id"])));
    parts.join(", ")
}

fn waiting(outbox: &Value) -> String {
    let mut parts = vec![count(outbox["messages"].as_u64().unwrap_or(0), "message")];
    if let Some(bytes) = outbox["bytes"].as_u64() {
        parts.push(size(bytes));
    }
    if let Some(seconds) = outbox["oldest_s"].as_u64() {
        parts.push(format!("oldest {}", span(seconds.saturating_mul(1000))));
    }
    parts.push(format!("{} in flight", outbox["in_flight"].as_u64().unwrap_or(0)));
    if let Some(dropped) = outbox["dropped"].as_u64().filter(|dropped| *dropped > 0) {
        parts.push(format!("{dropped} dropped"));
    }
    if outbox["trouble"].is_string() {
        parts.push(format!("kept in memory only, for the disk fails: {}", plain(&outbox["trouble"])));
    }
    parts.join(", ")
}

/// What is wrong between us and the applications; nothing where all is well.
fn local(local: &Value) -> Option<String> {
    let mut parts = Vec::new();
    if local["connected"] == false {
        parts.push("the local broker does not answer".to_string());
    }
    for (key, words) in [
        ("clients_refused", "clients turned away"),
        ("strangers_refused", "with a wrong password"),
        ("denied", "forbidden by the access list"),
        ("slow_dropped", "clients dropped for reading nothing"),
        ("dropped", "messages dropped from full queues"),
        ("unwanted", "from the cloud that nobody wanted"),
    ] {
        parts.extend(local[key].as_u64().filter(|count| *count > 0).map(|count| format!("{count} {words}")));
    }
    Some(parts.join(", ")).filter(|text| !text.is_empty())
}

fn list_line(failover: &Value) -> String {
    let stored = match words(&failover["stored"], " ") {
        stored if stored.is_empty() => "as configured".to_string(),
        stored => stored,
    };
    format!("{stored} -> {}", dash(words(&failover["walk"], " ")))
}

/// What traffic waits for to return, and what an operator said for a while.
fn failback(failback: &Value, age: Duration) -> String {
    let ordered = until(&failback["until"]).map(|until| format!("{} {until}", plain(&failback["mode"])));
    [awaited(failback, age), ordered].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn awaited(failback: &Value, age: Duration) -> Option<String> {
    let target = failback["target"].as_str().map(|_| plain(&failback["target"]))?;
    let why = plain(&failback["held_because"]);
    Some(match failback["eligible_in_ms"].as_u64() {
        Some(ms) => format!("to {target} in {} ({why})", span(ms.saturating_sub(millis(age)))),
        None => format!("to {target} ({why})"),
    })
}

fn switch(switch: &Value) -> String {
    let ms = |key: &str| switch[key].as_u64();
    let mut text = since(&switch["at"]);
    text += &format!(", {} to {}, {}", plain(&switch["from"]), plain(&switch["to"]), plain(&switch["why"]));
    if let Some(detected) = ms("detection_ms").filter(|ms| *ms > 0) {
        text += &format!(" seen after {}", span(detected));
    }
    if let Some(took) = ms("switch_ms") {
        text += &format!(", moved in {}", span(took));
    }
    if let Some(pause) = ms("pause_ms") {
        text += &format!(", pause {}", span(pause));
    }
    text
}

fn outage(outage: &Value) -> String {
    if !outage.is_object() {
        return "none since the start".into();
    }
    let mut text = since(&outage["began"]);
    match outage["gap_ms"].as_u64() {
        Some(ms) => text += &format!(", lasted {}", span(ms)),
        None => text += ", not over yet",
    }
    if let Some(ms) = outage["detected_ms"].as_u64() {
        text += &format!(", seen after {}", span(ms));
    }
    let (first, last) = (plain(&outage["first_cause"]), plain(&outage["last_reason"]));
    text += &format!(", {first}");
    if last != first {
        text += &format!(", then {last}");
    }
    text + &format!(", {}", count(outage["attempts"].as_u64().unwrap_or(0), "attempt"))
}

fn uplinks(document: &Value, colours: bool) -> String {
    let none = Vec::new();
    let uplinks = document["uplinks"].as_array().unwrap_or(&none);
    if uplinks.is_empty() {
        return "no uplink is present\n".into();
    }
    let head = [
        "", "UPLINK", "CLASS", "STEP", "SPARE", "REASON", "COST", "RTT", "LOSS", "SIGNAL", "UP", "DOWN", "LIVENESS",
        "ADDRESS",
    ];
    let mut table = Table::new(&head);
    for uplink in uplinks {
        let number = |key: &str| uplink[key].as_f64();
        let bytes = |key: &str| uplink[key].as_u64().map_or("-".into(), size);
        let active = document["uplink"].is_string() && document["uplink"] == uplink["name"];
        table.row(vec![
            if active { "*".into() } else { String::new() },
            plain(&uplink["name"]),
            plain(&uplink["class"]),
            plain(&uplink["step"]),
            if uplink["warm"] == true { "warm".into() } else { "-".into() },
            plain(&uplink["reason"]),
            if uplink["metered"] == true { "metered".into() } else { "free".into() },
            number("rtt_ms").map_or("-".into(), |ms| format!("{ms:.0} ms")),
            number("loss").map_or("-".into(), |share| format!("{:.0} %", share * 100.0)),
            number("signal").map_or("-".into(), |signal| format!("{signal:.0} %")),
            bytes("bytes_up"),
            bytes("bytes_down"),
            bytes("liveness_bytes"),
            plain(&uplink["address"]),
        ]);
    }
    table.text(colours)
}

/// `failover show`, `set` and `clear`.
pub fn failover(document: &Value) -> String {
    let stored = match words(&document["stored"], " ") {
        stored if stored.is_empty() => "nothing: failover.order of the configuration counts".to_string(),
        stored => stored,
    };
    let none = Vec::new();
    let walk = document["walk"].as_array().unwrap_or(&none);
    let tail = document["tail"].as_array().map_or(0, Vec::len);
    let index = document["index"].as_u64().and_then(|index| usize::try_from(index).ok());
    let mut out = format!("stored  {stored}\n");
    let mut table = Table::new(&["", "#", "UPLINK", ""]);
    for (at, name) in walk.iter().enumerate() {
        let mut notes = Vec::new();
        if document["active"].is_string() && document["active"] == *name {
            notes.push("active");
        }
        if at + tail >= walk.len() {
            notes.push("default tail");
        }
        let mark = if Some(at) == index { ">".to_string() } else { String::new() };
        table.row(vec![mark, at.to_string(), plain(name), notes.join(", ")]);
    }
    if walk.is_empty() {
        out += "walk    no uplink is present\n";
    } else {
        out += &table.text(false);
    }
    let absent = words(&document["absent"], " ");
    if !absent.is_empty() {
        out += &format!("absent  {absent}\n");
    }
    out
}

/// `failback` but for `now`, and `inhibit`: what holds.
pub fn way_back(document: &Value) -> String {
    let mode = plain(&document["mode"]);
    let mode = match until(&document["until"]) {
        Some(until) => format!("{mode} {until}; for good, set failover.failback"),
        None => format!("{mode}, as configured"),
    };
    let back = awaited(document, Duration::ZERO).unwrap_or_else(|| "no better uplink is ready".into());
    let inhibited = until(&document["inhibited_until"]).unwrap_or_else(|| "no".into());
    format!("failback   {mode}\nreturn     {back}\ninhibited  {inhibited}\n")
}

/// `failback now`.
pub fn returned(document: &Value) -> String {
    let uplink = plain(&document["uplink"]);
    match document["result"].as_str() {
        Some("moved") => format!("moved to {uplink}\n"),
        Some("nothing-better") => format!("stays on {uplink}: nothing better is there\n"),
        _ => result(document),
    }
}

/// `connect`, `disconnect`, `reconnect`, `flush`.
pub fn result(document: &Value) -> String {
    match document["uplink"].as_str() {
        Some(_) => format!("{} over {}\n", plain(&document["result"]), plain(&document["uplink"])),
        None => format!("{}\n", plain(&document["result"])),
    }
}

/// `publish`.
pub fn publish(document: &Value) -> String {
    let (result, stage) = (plain(&document["result"]), plain(&document["stage"]));
    match (result.as_str(), stage.as_str()) {
        ("accepted", _) => format!("{stage}\n"),
        (_, "-") => format!("{result}\n"),
        _ => format!("{result} (came as far as {stage})\n"),
    }
}

/// Why `publish` did not come as far as was asked; nothing where it did.
pub fn unpublished(document: &Value) -> Option<&'static str> {
    match (document["result"].as_str()?, document["stage"].as_str()) {
        ("would-block", _) => Some("not taken: its class is full, or the disk fails; see switchback status"),
        ("not-connected", _) => Some("not taken: its rule wants a session (offline = \"refuse\"), and there is none"),
        ("time-limit", None) => Some("not kept within the time given (--timeout); it may be yet, and goes up then"),
        ("time-limit", Some(_)) => Some("kept, and goes up when it can; the time given was over first (--timeout)"),
        ("lost", _) => Some("it will not arrive: dropped, too old, refused by the server, or the daemon ended"),
        _ => None,
    }
}

/// One line of the black box; deeds stand further in than what caused them.
pub fn event(event: &Value) -> String {
    let time = match event["time"].as_str() {
        Some(_) => plain(&event["time"]),
        None => format!("{:<27}", "-"),
    };
    let indent = if event["kind"] == "action" { "    " } else { "  " };
    format!("{time}{indent}{}\n", plain(&event["line"]))
}

/// `1 message`, `2 messages`.
pub fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn words(list: &Value, between: &str) -> String {
    list.as_array().map(|items| items.iter().map(plain).collect::<Vec<_>>().join(between)).unwrap_or_default()
}

fn dash(text: String) -> String {
    if text.is_empty() { "-".into() } else { text }
}

/// A value as a word without control characters; `-` for what is absent.
pub fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => dash(text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()),
        other => other.to_string(),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A span of time with as much precision as anyone wants to read.
pub fn span(ms: u64) -> String {
    let (seconds, minutes, hours) = (ms / 1000, ms / 60_000, ms / 3_600_000);
    match ms {
        0..1000 => duration_text(Duration::from_millis(ms)),
        1000..10_000 => format!("{}.{}s", seconds, ms % 1000 / 100),
        _ if seconds < 120 => format!("{seconds}s"),
        _ if minutes < 60 => format!("{minutes}min {}s", seconds % 60),
        _ if hours < 48 => format!("{hours}h {}min", minutes % 60),
        _ => format!("{}d {}h", hours / 24, hours % 24),
    }
}

/// Columns as wide as what stands in them; a column without content is left out.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(head: &[&str]) -> Table {
        Table { rows: vec![head.iter().map(ToString::to_string).collect()] }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Lines of text; with `colours`, states (the column STEP) are painted.
    pub fn text(&self, colours: bool) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_default();
        let width = |column| self.rows.iter().map(|row| cell(row, column).chars().count()).max().unwrap_or(0);
        // A column that only says "-" tells nobody anything.
        let silent = |column| self.rows.len() > 1 && self.rows.iter().skip(1).all(|row| cell(row, column) == "-");
        let shown: Vec<(usize, usize)> =
            (0..columns).filter(|column| !silent(*column)).map(|column| (column, width(column))).collect();
        let painted_column = self.rows.first().and_then(|head| head.iter().position(|name| name == "STEP"));
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, width) in &shown {
                let text = cell(row, *column);
                let pad = width.saturating_sub(text.chars().count()) + if *width > 0 { 2 } else { 0 };
                let paint = colours && Some(*column) == painted_column && text != "STEP";
                line += &painted(&text, paint);
                line += &" ".repeat(pad);
            }
            out += line.trim_end();
            out.push('\n');
        }
        out
    }
}
