//! The words of the journal, read back: settings and events from their text.
//!
//! Shared by the stories (`scenarios.rs`) and by the simulation, which writes the journal of a failed run as a
//! story. Reads exactly what `Display` of `Event` writes; `asked` lines carry no request number, so the reader
//! numbers them itself. Decides nothing.

#![allow(dead_code)] // Each test program uses its own part.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use switchback_control::{
    Attempt, Carriers, Class, Command, Device, Event, Failback, Lane, LaneRules, Measure, Mode, Name, Order, Overflow,
    Parcel, Reason, Request, Selector, Seq, Settings, Stage, Standby, Start, Step, Ticket,
};

/// Everything the settings line of a story can say.
#[derive(Clone, Debug)]
pub struct Heading {
    pub settings: Settings,
    /// Message events and actions are shown.
    pub messages: bool,
    /// The highest number that the store knows of at the start, in the first lane.
    pub highest: u64,
    pub seed: u64,
}

/// Reads `list wlan0 wwan0, hold-down 60s, …`.
pub fn heading(line: &str) -> Result<Heading, String> {
    let mut heading = Heading { settings: Settings::default(), messages: false, highest: 0, seed: 1 };
    let s = &mut heading.settings;
    let mut lanes = Vec::new();
    for part in line.split(',') {
        let words: Vec<&str> = part.split_whitespace().collect();
        match words.as_slice() {
            ["list", names @ ..] => s.order = names.iter().map(|n| parse(n)).collect::<Result<_, _>>()?,
            ["hold-down", d] => s.hold_down = duration(d)?,
            ["grace", d] => s.grace = duration(d)?,
            ["failback", "auto"] => s.failback = Failback::Auto,
            ["failback", "manual"] => s.failback = Failback::Manual,
            ["failback", "never"] => s.failback = Failback::Never,
            ["mode", "auto"] => s.mode = Mode::Auto,
            ["mode", "manual"] => s.mode = Mode::Manual,
            ["mode", "on-demand", d] => s.mode = Mode::OnDemand { linger: duration(d)? },
            ["start", "connect"] => s.start = Start::Connect,
            ["start", "disconnected"] => s.start = Start::Disconnected,
            ["start", "idle"] => s.start = Start::Idle,
            ["servers", n] => s.servers = parse(n)?,
            ["fleet", n] => s.fleet_size = parse(n)?,
            ["window", n] => s.window = parse(n)?,
            ["late", d] => s.late = Some(duration(d)?),
            ["standby", class, "off"] => s.classes[index(class)?].standby = Standby::Off,
            ["standby", class, "warm"] => s.classes[index(class)?].standby = Standby::Warm,
            ["safe-mode"] => s.safe_mode = true,
            ["routes"] => s.manage_routes = true,
            ["metered", class] => s.classes[index(class)?].metered = Some(true),
            ["unmetered", class] => s.classes[index(class)?].metered = Some(false),
            ["lane", rules @ ..] => lanes.push(lane(rules)?),
            ["highest", n] => heading.highest = parse(n)?,
            ["messages", "on"] => heading.messages = true,
            ["seed", n] => heading.seed = parse(n)?,
            _ => return Err(format!("unknown setting: {}", part.trim())),
        }
    }
    if !lanes.is_empty() {
        s.lanes = lanes;
    }
    Ok(heading)
}

/// `9`, its priority, and what differs from the default: `5 unmetered drop-oldest most 100 memory 4000`, `5 only wlan0`.
fn lane(words: &[&str]) -> Result<LaneRules, String> {
    let (priority, mut words) = words.split_first().ok_or("a priority")?;
    let mut rules = LaneRules { priority: parse(priority)?, ..LaneRules::default() };
    while let [word, rest @ ..] = words {
        words = match (*word, rest) {
            ("unmetered", rest) => {
                rules.carriers = Carriers::Unmetered;
                rest
            }
            ("drop-oldest", rest) => {
                rules.overflow = Overflow::DropOldest;
                rest
            }
            ("drop-newest", rest) => {
                rules.overflow = Overflow::DropNewest;
                rest
            }
            ("most", [messages, rest @ ..]) => {
                rules.max_messages = parse(messages)?;
                rest
            }
            ("memory", [bytes, rest @ ..]) => {
                rules.memory_bytes = Some(parse(bytes)?);
                rest
            }
            // The last, for it takes all names.
            ("only", names) => {
                rules.carriers = Carriers::Named(names.iter().map(|n| parse(n)).collect::<Result<_, _>>()?);
                &[]
            }
            _ => return Err(format!("a lane is not {word}")),
        };
    }
    Ok(rules)
}

fn lane_text(rules: &LaneRules) -> String {
    let mut text = format!("lane {}", rules.priority);
    match rules.overflow {
        Overflow::Refuse => {}
        Overflow::DropOldest => text += " drop-oldest",
        Overflow::DropNewest => text += " drop-newest",
    }
    if rules.max_messages != u64::MAX {
        text += &format!(" most {}", rules.max_messages);
    }
    if let Some(bytes) = rules.memory_bytes {
        text += &format!(" memory {bytes}");
    }
    match &rules.carriers {
        Carriers::Any => {}
        Carriers::Unmetered => text += " unmetered",
        Carriers::Named(names) => {
            text += " only";
            names.iter().for_each(|name| text += &format!(" {name}"));
        }
    }
    text
}

/// Writes the settings line.
pub fn heading_text(heading: &Heading) -> String {
    let s = &heading.settings;
    let mut parts = vec![format!("list{}", s.order.iter().map(|x| format!(" {x}")).collect::<String>())];
    parts.push(format!("hold-down {}", millis(s.hold_down)));
    parts.push(format!("grace {}", millis(s.grace)));
    match s.failback {
        Failback::Auto => {}
        Failback::Manual => parts.push("failback manual".into()),
        Failback::Never => parts.push("failback never".into()),
    }
    match s.mode {
        Mode::Auto => {}
        Mode::Manual => parts.push("mode manual".into()),
        Mode::OnDemand { linger } => parts.push(format!("mode on-demand {}", millis(linger))),
    }
    match s.start {
        Start::Connect => {}
        Start::Disconnected => parts.push("start disconnected".into()),
        Start::Idle => parts.push("start idle".into()),
    }
    parts.push(format!("servers {}, fleet {}, window {}", s.servers, s.fleet_size, s.window));
    if s.manage_routes {
        parts.push("routes".into());
    }
    if let Some(late) = s.late {
        parts.push(format!("late {}", millis(late)));
    }
    for (class, uplink) in Class::ALL.iter().zip(&s.classes) {
        match uplink.standby {
            Standby::Off => parts.push(format!("standby {class} off")),
            Standby::Up => {}
            Standby::Warm => parts.push(format!("standby {class} warm")),
        }
        match (uplink.metered, Settings::default().classes[*class as usize].metered) {
            (Some(true), None) => parts.push(format!("metered {class}")),
            (Some(false), _) => parts.push(format!("unmetered {class}")),
            _ => {}
        }
    }
    if s.lanes != [LaneRules::default()] {
        parts.extend(s.lanes.iter().map(lane_text));
    }
    if heading.messages {
        parts.push("messages on".into());
    }
    parts.push(format!("seed {}", heading.seed));
    parts.join(", ")
}

fn index(class: &str) -> Result<usize, String> {
    parse::<Class>(class).map(|c| c as usize)
}

fn parse<T: FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("cannot read {word:?}"))
}

/// `250ms`, `1.5s`, `60s`, `5min`, `2h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("not a duration: {text:?}");
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(unit_at);
    let scale = match unit {
        "us" => 0.001,
        "ms" => 1.0,
        "s" => 1000.0,
        "min" => 60_000.0,
        "h" => 3_600_000.0,
        _ => return Err(bad()),
    };
    let number: f64 = number.parse().map_err(|_| bad())?;
    Ok(Duration::from_micros((number * scale * 1000.0).round() as u64))
}

/// The shortest text of a number of milliseconds: `60s`, `1.5s`.
pub fn millis(duration: Duration) -> String {
    let ms = duration.as_millis();
    match (ms / 1000, ms % 1000) {
        (s, 0) => format!("{s}s"),
        (s, rest) => format!("{s}.{}s", format!("{rest:03}").trim_end_matches('0')),
    }
}

fn number(word: &str) -> Result<Attempt, String> {
    word.strip_prefix('#').and_then(|n| n.parse().ok()).map(Attempt).ok_or_else(|| format!("not an attempt: {word:?}"))
}

/// `17`, or `2:17` of another lane.
fn seq_of(word: &str) -> Result<Seq, String> {
    match word.split_once(':') {
        Some((lane, number)) => Ok(Seq::new(Lane(parse(lane)?), parse(number)?)),
        None => Ok(Seq::new(Lane(0), parse(word)?)),
    }
}

fn run_of(word: &str) -> Result<RangeInclusive<u64>, String> {
    let (from, through) = word.split_once('-').ok_or_else(|| format!("{word} is no run"))?;
    Ok(parse(from)?..=parse(through)?)
}

fn parcel(size: u32, words: &[&str]) -> Result<Parcel, String> {
    let mut parcel = Parcel { size, ..Parcel::default() };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "lane" => parcel.lane = Lane(parse(words.next().ok_or("which lane?")?)?),
            "exact" => parcel.exact = true,
            "online-only" => parcel.online_only = true,
            word => return Err(format!("{word} says nothing of a message")),
        }
    }
    Ok(parcel)
}

fn step(word: &str) -> Option<Step> {
    use Step::*;
    [Joining, Sim, Registering, Bearer, Addressing, Resolving, Connecting, Handshake]
        .into_iter()
        .find(|s| s.as_str() == word)
}

/// Reads events, numbering requests from 1.
#[derive(Default)]
pub struct Reader {
    requests: u64,
}

impl Reader {
    fn request(&mut self) -> Request {
        self.requests += 1;
        Request(self.requests)
    }

    /// The event whose `Display` is `text`.
    pub fn event(&mut self, text: &str) -> Result<Event, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let heard = |rest: &[&str]| match rest {
            [] => Ok(false),
            ["heard"] => Ok(true),
            _ => Err(format!("cannot read {text:?}")),
        };
        Ok(match words.as_slice() {
            ["link", name, "gone"] => Event::LinkGone { interface: parse(name)? },
            ["link", name, way @ ("up" | "down")] => Event::LinkChanged { interface: parse(name)?, up: *way == "up" },
            ["address", name, there @ ("present" | "absent")] => {
                Event::AddressChanged { interface: parse(name)?, present: *there == "present" }
            }
            ["device", name, "gone"] => Event::DeviceGone { interface: parse(name)? },
            ["device", name, class, rest @ ..] => {
                Event::DeviceSeen { interface: parse(name)?, device: device(class, rest)? }
            }
            ["clock", "set"] => Event::ClockSet,
            ["networkmanager", "running"] => Event::NetworkManagerChanged { running: true },
            ["networkmanager", "gone"] => Event::NetworkManagerChanged { running: false },
            ["activation", n, "refused", name, reason] => {
                Event::ActivationRefused { interface: parse(name)?, attempt: number(n)?, reason: parse(reason)? }
            }
            ["dial", n, "failed", reason, rest @ ..] => {
                Event::DialFailed { attempt: number(n)?, reason: parse(reason)?, heard: heard(rest)? }
            }
            ["dial", n, word] => Event::DialProgressed {
                attempt: number(n)?,
                step: step(word).ok_or_else(|| format!("not a step: {word:?}"))?,
            },
            ["dialled", n, rest @ ..] => Event::Dialled { attempt: number(n)?, measure: measure(rest)? },
            ["measured", n, rest @ ..] => Event::Measured { attempt: number(n)?, measure: measure(rest)? },
            ["access", "point", name, "lost"] => Event::AccessPointLost { interface: parse(name)? },
            ["connected", n, present @ ("resumed" | "fresh"), "window", w, "keep-alive", k] => Event::Connected {
                attempt: number(n)?,
                present: *present == "resumed",
                window: parse(w)?,
                keep_alive: duration(k)?,
            },
            ["settled", n] => Event::Settled { attempt: number(n)? },
            ["closed", n, reason, rest @ ..] => {
                Event::Closed { attempt: number(n)?, reason: parse(reason)?, heard: heard(rest)? }
            }
            ["heard", n] => Event::Heard { attempt: number(n)? },
            ["ponged", n] => Event::Ponged { attempt: number(n)? },
            ["acked", n, seq] => Event::Acked { attempt: number(n)?, seq: seq_of(seq)? },
            ["rejected", n, seq] => Event::Rejected { attempt: number(n)?, seq: seq_of(seq)? },
            ["drained", n, how @ ("empty" | "not")] => Event::Drained { attempt: number(n)?, empty: *how == "empty" },
            ["offered", ticket, size, rest @ ..] => {
                Event::Offered { ticket: Ticket(parse(ticket)?), parcel: parcel(parse(size)?, rest)? }
            }
            ["completed", n, seq] => Event::Completed { attempt: number(n)?, seq: seq_of(seq)? },
            ["expired", rest @ ..] => {
                let (attempt, rest) = match rest {
                    [n, rest @ ..] if n.starts_with('#') => (Some(number(n)?), rest),
                    rest => (None, rest),
                };
                match rest {
                    [seq] => Event::Expired { attempt, from: seq_of(seq)?, through: seq_of(seq)? },
                    [from, "to", through] => Event::Expired { attempt, from: seq_of(from)?, through: seq_of(through)? },
                    _ => return Err(format!("cannot read {text:?}")),
                }
            }
            ["lane", "full", seq] => Event::LaneFull { through: seq_of(seq)? },
            ["lane", "roomy", lane] => Event::LaneRoomy { lane: Lane(parse(lane)?) },
            ["recovered", "lane", lane, "highest", highest, runs @ ..] => {
                let runs = runs.iter().map(|run| run_of(run)).collect::<Result<_, _>>()?;
                Event::Recovered { lane: Lane(parse(lane)?), runs, highest: parse(highest)? }
            }
            ["stored", seq] => Event::Stored { through: seq_of(seq)? },
            ["storage", "full"] => Event::StorageFailed { full: true },
            ["storage", "failed"] => Event::StorageFailed { full: false },
            ["storage", "healed"] => Event::StorageHealed,
            ["asked", rest @ ..] => Event::Asked(self.command(rest)?),
            ["deadline"] => Event::DeadlineReached,
            _ => return Err(format!("cannot read {text:?}")),
        })
    }

    fn command(&mut self, words: &[&str]) -> Result<Command, String> {
        Ok(match words {
            ["connect"] => Command::Connect { request: self.request(), via: None, stay: None },
            ["connect", "via", name] => {
                Command::Connect { request: self.request(), via: Some(parse(name)?), stay: None }
            }
            ["connect", "for", stay] => {
                Command::Connect { request: self.request(), via: None, stay: Some(duration(stay)?) }
            }
            ["disconnect"] => Command::Disconnect { request: self.request(), force: false },
            ["disconnect", "force"] => Command::Disconnect { request: self.request(), force: true },
            ["reconnect"] => Command::Reconnect { request: self.request() },
            ["drop"] => Command::Drop { request: self.request(), lane: None },
            ["drop", "lane", n] => Command::Drop { request: self.request(), lane: Some(Lane(parse(n)?)) },
            ["flush", limit] => Command::Flush { request: self.request(), limit: duration(limit)? },
            ["list", items @ ..] => {
                Command::SetList { list: items.iter().map(|i| parse::<Selector>(i)).collect::<Result<_, _>>()? }
            }
            ["failback", "now"] => Command::Failback { request: self.request(), order: Order::Now },
            ["failback", word @ ("auto" | "never"), "for", limit] => {
                let failback = if *word == "auto" { Failback::Auto } else { Failback::Never };
                Command::Failback { request: self.request(), order: Order::From(failback, duration(limit)?) }
            }
            ["inhibit", limit] => Command::Inhibit { request: self.request(), limit: duration(limit)? },
            ["stop"] => Command::Stop,
            _ => return Err(format!("cannot read the command {words:?}")),
        })
    }
}

fn device(class: &str, words: &[&str]) -> Result<Device, String> {
    let (stage, mut rest) = match words {
        ["unmanaged", rest @ ..] => (Stage::Unmanaged, rest),
        ["unavailable", reason, rest @ ..] => (Stage::Unavailable(parse::<Reason>(reason)?), rest),
        ["disconnected", "user", rest @ ..] => (Stage::Disconnected { profile: true, by_user: true }, rest),
        ["disconnected", "no-profile", rest @ ..] => (Stage::Disconnected { profile: false, by_user: false }, rest),
        ["disconnected", rest @ ..] => (Stage::Disconnected { profile: true, by_user: false }, rest),
        ["activated", rest @ ..] => (Stage::Activated, rest),
        ["failed", reason, rest @ ..] => (Stage::Failed(parse::<Reason>(reason)?), rest),
        [word, rest @ ..] if step(word).is_some() => (Stage::Activating(step(word).unwrap_or(Step::Joining)), rest),
        _ => return Err(format!("cannot read the device {words:?}")),
    };
    let mut device = Device { class: parse(class)?, ip_interface: None, stage, address: false, metered: None };
    while !rest.is_empty() {
        rest = match rest {
            ["address", rest @ ..] => {
                device.address = true;
                rest
            }
            ["ip", name, rest @ ..] => {
                device.ip_interface = Some(parse::<Name>(name)?);
                rest
            }
            ["metered", rest @ ..] => {
                device.metered = Some(true);
                rest
            }
            ["unmetered", rest @ ..] => {
                device.metered = Some(false);
                rest
            }
            _ => return Err(format!("cannot read {rest:?}")),
        };
    }
    Ok(device)
}

fn measure(words: &[&str]) -> Result<Measure, String> {
    match words {
        [] => Ok(Measure::default()),
        ["rtt", rtt, "sent", sent, "again", again, "acked", acked, "owed", owed] => Ok(Measure {
            round_trip: duration(rtt)?,
            sent: parse(sent)?,
            again: parse(again)?,
            acked_ago: duration(acked)?,
            owed: parse(owed)?,
        }),
        _ => Err(format!("cannot read {words:?}")),
    }
}

/// Whether the event belongs to the message traffic, which stories show only on request.
pub fn is_message(event: &Event) -> bool {
    matches!(
        event,
        Event::Acked { .. }
            | Event::Completed { .. }
            | Event::Rejected { .. }
            | Event::Expired { .. }
            | Event::LaneFull { .. }
            | Event::LaneRoomy { .. }
            | Event::Offered { .. }
            | Event::Stored { .. }
            | Event::Heard { .. }
            | Event::Ponged { .. }
            | Event::Drained { .. }
            | Event::Measured { .. }
    )
}
