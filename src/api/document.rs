//! The JSON documents of the contract, built from what the heart and the adapters know.
//!
//! Keys are never missing: what is absent is `null`. Times are RFC 3339 with milliseconds, ages and waits are
//! numbers whose key ends in `_ms` or `_s`, and waits count from now. Nothing here asks a clock or an adapter. The second
//! half of the file is the test that lists the contract's keys literally.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use switchback_control::status::{OutageStatus, Status, UplinkStatus};
use switchback_control::{Instant, Name, Reason, Switch};

use super::{LiveLane, PublishStage, outbox_document};

/// One reading of both clocks at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallClock {
    /// The heart's clock.
    pub now: Instant,
    /// Milliseconds since 1970 on the wall clock.
    pub wall_ms: i64,
}

/// What the adapters know and the heart does not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Live {
    /// By the name of the interface or of its IP interface.
    pub uplinks: BTreeMap<Name, LiveUplink>,
    /// While a session is open.
    pub session: Option<LiveSession>,
    pub outbox: LiveOutbox,
    /// What the local face counts; `Null` where nobody asked.
    pub local: Value,
    /// What the daemon runs with, and why; `Null` where nobody asked.
    pub configuration: Value,
    /// Files of the state directory that a newer version wrote or that were damaged.
    pub set_aside: Vec<String>,
    /// Why it was started; empty where nobody asked.
    pub start_reason: &'static str,
    /// How often traffic has moved since the daemon started: from, to, and why.
    pub switches: BTreeMap<(Name, Name, Reason), u64>,
}

/// What the adapters know of one interface.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LiveUplink {
    /// Wi-Fi or cellular signal, 0 to 100.
    pub signal: Option<u8>,
    /// Since the interface appeared, by the kernel's counters.
    pub bytes_up: Option<u64>,
    pub bytes_down: Option<u64>,
    /// Spent on pings and probes since the daemon started.
    pub liveness_bytes: u64,
    /// Connections dialled for a proof or to wait, and ended without CONNECT, since the daemon started.
    pub spare_handshakes: u64,
    pub address: Option<IpAddr>,
    /// Send buffer read back from the live socket, in bytes.
    pub send_buffer: Option<u32>,
}

/// What the adapters know of the session.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LiveSession {
    /// `host:port`.
    pub server: String,
    /// `1.3` or `1.2`; `None` without TLS.
    pub tls: Option<String>,
    pub rtt_ms: Option<f64>,
    /// Bytes in the kernel that the far end has not acknowledged, and those of them not even sent (R-TX-7).
    pub unacked_bytes: Option<u32>,
    pub unsent_bytes: Option<u32>,
}

/// What the storage knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LiveOutbox {
    pub bytes: u64,
    /// When the oldest waiting message was accepted: milliseconds since 1970.
    pub oldest_accepted: Option<i64>,
    /// By lane, as in the settings.
    pub lanes: Vec<LiveLane>,
    /// Why the disk keeps nothing now.
    pub trouble: Option<String>,
}

impl WallClock {
    /// The moment on the wall clock, in milliseconds since 1970.
    pub fn wall(&self, at: Instant) -> i64 {
        let now = i64::try_from(self.now.as_millis()).unwrap_or(i64::MAX);
        let at = i64::try_from(at.as_millis()).unwrap_or(i64::MAX);
        self.wall_ms.saturating_sub(now.saturating_sub(at))
    }

    /// To the second, as people read it: `2026-11-20 08:00:00Z`.
    pub fn words(&self, at: Instant) -> String {
        format!("{:.0}", timestamp(self.wall(at).saturating_mul(1000))).replacen('T', " ", 1)
    }

    fn text(&self, at: Instant) -> Value {
        rfc3339_ms(self.wall(at)).into()
    }

    fn age_ms(&self, at: Instant) -> Value {
        millis(self.now.since(at))
    }

    fn wait_ms(&self, at: Instant) -> Value {
        millis(at.since(self.now))
    }
}

/// Milliseconds since 1970 as `2026-11-20T08:00:00.123Z`; what no calendar holds is the nearest end of it.
pub fn rfc3339_ms(wall_ms: i64) -> String {
    format!("{:.3}", timestamp(wall_ms.saturating_mul(1000)))
}

/// Microseconds since 1970 as `2026-11-20T08:00:00.123456Z`, as black-box lines carry it.
pub fn rfc3339_us(wall_us: i64) -> String {
    format!("{:.6}", timestamp(wall_us))
}

fn timestamp(wall_us: i64) -> Timestamp {
    let end = if wall_us < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_microsecond(wall_us).unwrap_or(end)
}

fn millis(duration: Duration) -> Value {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).into()
}

/// With fractions: round trips are short.
fn in_ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Infinite and undefined numbers have no JSON; they are as absent.
fn number(value: Option<f64>) -> Value {
    value.and_then(serde_json::Number::from_f64).map_or(Value::Null, Value::Number)
}

fn words<T: ToString>(items: &[T]) -> Value {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().into()
}

/// As people know it: the IP interface of a modem's control port.
pub fn known_as(status: &Status, interface: Name) -> Name {
    status.uplinks.iter().find(|uplink| uplink.interface == interface).map_or(interface, |uplink| uplink.name)
}

fn known_walk(status: &Status) -> Vec<String> {
    status.walk.iter().map(|name| known_as(status, *name).to_string()).collect()
}

/// The document of `status --json`.
pub fn status_document(status: &Status, live: &Live, clock: WallClock) -> Map<String, Value> {
    let carrier = status.uplink.and_then(|name| status.uplinks.iter().find(|uplink| uplink.interface == name));
    let mut document = Map::new();
    let mut put = |key: &str, value: Value| {
        document.insert(key.into(), value);
    };
    put("state", status.state.as_str().into());
    put("connected", status.connected.into());
    put("uplink", status.uplink.map(|name| known_as(status, name).to_string()).into());
    put("class", carrier.map(|uplink| uplink.class.as_str()).into());
    put("since", clock.text(status.since));
    put("last_inbound_ms", status.last_inbound.map_or(Value::Null, |at| clock.age_ms(at)));
    put("next_attempt_ms", status.next_attempt.map_or(Value::Null, |at| clock.wait_ms(at)));
    put("session", session(status, live));
    put("failover", json!({ "stored": words(&status.stored), "walk": known_walk(status), "index": status.index }));
    put("uplinks", status.uplinks.iter().map(|uplink| self::uplink(uplink, live)).collect::<Vec<_>>().into());
    put("outbox", outbox_document(status, live, clock));
    put("local", live.local.clone());
    put("configuration", live.configuration.clone());
    put("set_aside", live.set_aside.clone().into());
    put("start_reason", live.start_reason.into());
    put("last_outage", status.last_outage.as_ref().map_or(Value::Null, |outage| self::outage(outage, clock)));
    put("last_switch", status.last_switch.as_ref().map_or(Value::Null, |last| switch(last, status, clock)));
    put("switches", live.switches.iter().map(switches).collect::<Vec<_>>().into());
    put("failback", failback(status, clock));
    put("inhibited_until", inhibited_until(status, clock));
    document
}

fn session(status: &Status, live: &Live) -> Value {
    let Some(session) = &status.session else { return Value::Null };
    let known = live.session.as_ref();
    let trip = status.round_trip.map(in_ms);
    json!({
        "id": session.attempt.0,
        "server": known.map(|live| live.server.clone()),
        "protocol": session.version.to_string(),
        "tls": known.and_then(|live| live.tls.clone()),
        "present": session.present,
        "rtt_ms": number(known.and_then(|live| live.rtt_ms).or(trip)),
        "unacked_bytes": known.and_then(|live| live.unacked_bytes),
        "unsent_bytes": known.and_then(|live| live.unsent_bytes),
    })
}

fn uplink(uplink: &UplinkStatus, live: &Live) -> Value {
    let known = live.uplinks.get(&uplink.name).or_else(|| live.uplinks.get(&uplink.interface));
    json!({
        "name": uplink.name.to_string(),
        "class": uplink.class.as_str(),
        "step": uplink.state.as_str(),
        "usable": uplink.usable,
        "reason": uplink.reason.map(|reason| reason.as_str()),
        "metered": uplink.metered,
        "rtt_ms": number(uplink.round_trip.map(in_ms)),
        "loss": number(uplink.loss.map(|permille| f64::from(permille) / 1000.0)),
        "signal": known.and_then(|live| live.signal),
        "bytes_up": known.and_then(|live| live.bytes_up),
        "bytes_down": known.and_then(|live| live.bytes_down),
        "liveness_bytes": known.map(|live| live.liveness_bytes),
        "spare_handshakes": known.map(|live| live.spare_handshakes),
        "warm": uplink.warm,
        "address": known.and_then(|live| live.address).map(|address| address.to_string()),
        "send_buffer": known.and_then(|live| live.send_buffer),
    })
}

fn outage(outage: &OutageStatus, clock: WallClock) -> Value {
    json!({
        "first_cause": outage.first_cause.as_str(),
        "last_reason": outage.last_reason.as_str(),
        "began": clock.text(outage.began),
        "ended": outage.ended.map_or(Value::Null, |at| clock.text(at)),
        "attempts": outage.attempts,
        "uplinks_tried": outage.uplinks_tried,
        "detected_ms": millis(outage.began.since(outage.alive)),
        "gap_ms": outage.ended.map_or(Value::Null, |at| millis(at.since(outage.alive))),
    })
}

/// The record of one switch (R-FX-15).
fn switch(switch: &Switch, status: &Status, clock: WallClock) -> Value {
    json!({
        "from": known_as(status, switch.from).to_string(),
        "to": known_as(status, switch.to).to_string(),
        "why": switch.why.as_str(),
        "at": clock.text(switch.at),
        "detection_ms": millis(switch.detection),
        "switch_ms": millis(switch.switch),
        "pause_ms": switch.pause.map(millis),
        "in_flight": switch.in_flight,
        "repeated": switch.repeated,
        "refused": switch.refused,
    })
}

fn switches(((from, to, why), count): (&(Name, Name, Reason), &u64)) -> Value {
    json!({ "from": from.to_string(), "to": to.to_string(), "why": why.as_str(), "count": count })
}

fn inhibited_until(status: &Status, clock: WallClock) -> Value {
    status.inhibited_until.map_or(Value::Null, |at| clock.text(at))
}

/// Always an object: on the best uplink there is no target.
fn failback(status: &Status, clock: WallClock) -> Value {
    let failback = status.failback.as_ref();
    json!({
        "mode": status.failback_mode.to_string(),
        "until": status.failback_until.map(|at| clock.text(at)),
        "target": failback.map(|f| known_as(status, f.target).to_string()),
        "eligible_in_ms": failback.and_then(|f| f.eligible_at).map_or(Value::Null, |at| clock.wait_ms(at)),
        "held_because": failback.map(|f| f.held_because),
    })
}

/// The document of `failover show`, `set` and `clear`: the list as stored, as walked with the default tail, where the
/// walk stands, which uplink is in use, and what is absent.
pub fn failover_document(status: &Status) -> Map<String, Value> {
    let walk = known_walk(status);
    let tail: Vec<String> = walk.iter().skip(status.listed).cloned().collect();
    let mut document = Map::new();
    document.insert("stored".into(), words(&status.stored));
    document.insert("walk".into(), walk.into());
    document.insert("tail".into(), tail.into());
    document.insert("index".into(), status.index.into());
    document.insert("active".into(), status.uplink.map(|name| known_as(status, name).to_string()).into());
    document.insert("absent".into(), words(&status.absent));
    document
}

/// What `publish` came to (R-TX-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishResult {
    Accepted,
    NotConnected,
    TimeLimit,
    Lost,
    WouldBlock,
}

impl PublishResult {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            PublishResult::Accepted => "accepted",
            PublishResult::NotConnected => "not-connected",
            PublishResult::TimeLimit => "time-limit",
            PublishResult::Lost => "lost",
            PublishResult::WouldBlock => "would-block",
        }
    }
}

/// The document of `failback` (show and set) and `inhibit`: what holds and until when an operator said so, what traffic
/// waits for to return, and until when planned moves are held off.
pub fn failback_document(status: &Status, clock: WallClock) -> Map<String, Value> {
    let mut document = match failback(status, clock) {
        Value::Object(document) => document,
        _ => Map::new(),
    };
    document.insert("inhibited_until".into(), inhibited_until(status, clock));
    document
}

/// The document of `publish`: the furthest stage reached (`null` for none) and the result. Anything but `accepted`
/// makes the command line exit 1.
pub fn publish_document(stage: Option<PublishStage>, result: PublishResult) -> Map<String, Value> {
    let mut document = Map::new();
    document.insert("stage".into(), stage.map(PublishStage::as_str).into());
    document.insert("result".into(), result.as_str().into());
    document
}

/// The document of `outbox drop` and `reset`: how many messages were given up, and how many are in flight and go their way.
pub fn dropped_document(result: &str, messages: u64, in_flight: u64) -> Map<String, Value> {
    let mut document = Map::new();
    document.insert("result".into(), result.into());
    document.insert("messages".into(), messages.into());
    document.insert("in_flight".into(), in_flight.into());
    document
}

/// The document of `connect`, `disconnect`, `reconnect`, `flush` and `failback now`: `connecting`, `connected`,
/// `disconnected`, `flushed`, `moved` or `nothing-better`, and the uplink where there is one.
pub fn result_document(result: &str, uplink: Option<Name>) -> Map<String, Value> {
    let mut document = Map::new();
    document.insert("result".into(), result.into());
    document.insert("uplink".into(), uplink.map(|name| name.to_string()).into());
    document
}

#[cfg(test)]
mod tests {
    use switchback_control::status::{DeliveryStatus, FailbackStatus, LaneStatus, SessionStatus, State};
    use switchback_control::{Attempt, Carriers, Class, Reason, Selector, Version};

    use super::*;

    const CLOCK: WallClock = WallClock { now: Instant::from_millis(100_000), wall_ms: 1_795_132_800_000 };

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn online() -> Status {
        let at = Instant::from_millis;
        let uplink = |interface, shown, class, state, usable, reason| UplinkStatus {
            interface: name(interface),
            name: name(shown),
            class,
            state,
            usable,
            reason,
            metered: class == Class::Cell,
            round_trip: Some(Duration::from_micros(48_500)),
            loss: (class == Class::Wifi).then_some(430),
            warm: class == Class::Cell,
        };
        Status {
            state: State::OnlineOnBackup,
            connected: true,
            uplink: Some(name("cdc-wdm0")),
            since: at(40_000),
            last_inbound: Some(at(99_588)),
            next_attempt: None,
            session: Some(SessionStatus {
                attempt: Attempt(17),
                server: 0,
                version: Version::V5,
                present: true,
                settled: true,
            }),
            stored: vec![Selector::Class(Class::Wifi), Selector::Class(Class::Cell)],
            walk: vec![name("wlan0"), name("cdc-wdm0"), name("eth0")],
            index: 1,
            listed: 2,
            absent: vec![Selector::Name(name("eth9"))],
            uplinks: vec![
                uplink("wlan0", "wlan0", Class::Wifi, State::NoInternet, false, Some(Reason::NoServer)),
                uplink("cdc-wdm0", "wwan0", Class::Cell, State::Online, true, None),
            ],
            delivery: DeliveryStatus { messages: 3, in_flight: 2, rejected: 1, ..DeliveryStatus::default() },
            lanes: vec![LaneStatus { messages: 3, in_flight: 2, rejected: 1, carried: true, ..LaneStatus::default() }],
            last_outage: Some(OutageStatus {
                first_cause: Reason::NoLink,
                last_reason: Reason::NoServer,
                alive: at(39_000),
                began: at(39_500),
                ended: Some(at(40_000)),
                attempts: 2,
                uplinks_tried: 2,
            }),
            failback_mode: switchback_control::Failback::Auto,
            failback_until: None,
            inhibited_until: Some(at(160_000)),
            last_switch: Some(Switch {
                from: name("wlan0"),
                to: name("cdc-wdm0"),
                why: Reason::NoServer,
                at: at(39_500),
                detection: Duration::from_millis(560),
                switch: Duration::from_millis(42),
                pause: None,
                in_flight: 3,
                repeated: 1,
                refused: 0,
            }),
            failback: Some(FailbackStatus {
                target: name("wlan0"),
                eligible_at: Some(at(130_000)),
                held_because: "hold-down",
            }),
            round_trip: Some(Duration::from_millis(31)),
        }
    }

    /// The keys of the contract, literally.
    const KEYS: &str = "state connected uplink class since last_inbound_ms next_attempt_ms session failover uplinks \
                        outbox local configuration set_aside start_reason last_outage last_switch switches failback inhibited_until";
    const SESSION: &str = "id server protocol tls present rtt_ms unacked_bytes unsent_bytes";
    const FAILOVER: &str = "stored walk index";
    const UPLINK: &str = "name class step usable reason metered rtt_ms loss signal bytes_up bytes_down liveness_bytes \
                          spare_handshakes warm address send_buffer";
    const OUTBOX: &str = "messages bytes oldest_s in_flight dropped expired refused rejected held \
                          durable trouble classes";
    const CLASS: &str = "messages bytes oldest_s in_flight dropped expired refused rejected held memory priority";
    const OUTAGE: &str = "first_cause last_reason began ended attempts uplinks_tried detected_ms gap_ms";
    const SWITCH: &str = "from to why at detection_ms switch_ms pause_ms in_flight repeated refused";
    const FAILBACK: &str = "mode until target eligible_in_ms held_because";

    fn assert_keys(value: &Value, keys: &str) {
        let mut have: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let mut want: Vec<&str> = keys.split_whitespace().collect();
        have.sort_unstable();
        want.sort_unstable();
        assert_eq!(have, want);
    }

    #[test]
    fn status_has_exactly_the_keys_of_the_contract() {
        for live in [Live::default(), live()] {
            let document = Value::Object(status_document(&online(), &live, CLOCK));
            assert_keys(&document, KEYS);
            assert_keys(&document["session"], SESSION);
            assert_keys(&document["failover"], FAILOVER);
            assert_eq!(document["uplinks"].as_array().unwrap().len(), 2);
            document["uplinks"].as_array().unwrap().iter().for_each(|uplink| assert_keys(uplink, UPLINK));
            assert_keys(&document["outbox"], OUTBOX);
            let classes = document["outbox"]["classes"].as_object().unwrap();
            assert_eq!(classes.len(), live.outbox.lanes.len());
            classes.values().for_each(|class| assert_keys(class, CLASS));
            assert_keys(&document["last_outage"], OUTAGE);
            assert_keys(&document["last_switch"], SWITCH);
            assert_keys(&document["failback"], FAILBACK);
            let failback = Value::Object(failback_document(&online(), CLOCK));
            assert_keys(&failback, &format!("{FAILBACK} inhibited_until"));
        }
    }

    fn bulk() -> LiveLane {
        LiveLane {
            class: "bulk".into(),
            priority: 2,
            carriers: Carriers::Any,
            memory: false,
            max_size: 1000,
            bytes: 600,
            oldest_accepted: Some(CLOCK.wall_ms - 12_999),
        }
    }

    fn live() -> Live {
        let uplink = LiveUplink {
            signal: Some(71),
            bytes_up: Some(10),
            bytes_down: Some(20),
            liveness_bytes: 408,
            spare_handshakes: 2,
            address: Some("192.0.2.7".parse().unwrap()),
            send_buffer: Some(65_536),
        };
        Live {
            local: Value::Null,
            configuration: Value::Null,
            start_reason: "boot",
            set_aside: vec!["saved.aside".into()],
            uplinks: BTreeMap::from([(name("wwan0"), uplink)]),
            session: Some(LiveSession {
                server: "broker.example.com:8883".into(),
                tls: Some("1.3".into()),
                rtt_ms: Some(f64::NAN),
                unacked_bytes: Some(0),
                unsent_bytes: Some(0),
            }),
            outbox: LiveOutbox {
                bytes: 600,
                oldest_accepted: Some(CLOCK.wall_ms - 12_999),
                lanes: vec![bulk()],
                trouble: None,
            },
            switches: BTreeMap::from([((name("wlan0"), name("wwan0"), Reason::NoServer), 2)]),
        }
    }

    #[test]
    fn times_are_wall_times_and_waits_count_from_now() {
        let document = Value::Object(status_document(&online(), &live(), CLOCK));
        assert_eq!(document["since"], "2026-11-19T23:59:00.000Z");
        assert_eq!(document["last_inbound_ms"], 412);
        assert_eq!(document["next_attempt_ms"], Value::Null);
        assert_eq!(document["failback"]["eligible_in_ms"], 30_000);
        assert_eq!(document["inhibited_until"], "2026-11-20T00:01:00.000Z");
        assert_eq!(document["outbox"]["oldest_s"], 12);
        assert_eq!(document["outbox"]["classes"]["bulk"]["oldest_s"], 12);
        let outage = &document["last_outage"];
        assert_eq!((&outage["detected_ms"], &outage["gap_ms"]), (&json!(500), &json!(1000)));
        assert_eq!(outage["ended"], "2026-11-19T23:59:00.000Z");
    }

    #[test]
    fn a_modem_is_shown_under_the_name_of_its_ip_interface() {
        let document = Value::Object(status_document(&online(), &live(), CLOCK));
        assert_eq!((&document["uplink"], &document["class"]), (&json!("wwan0"), &json!("cell")));
        assert_eq!(document["failover"]["walk"], json!(["wlan0", "wwan0", "eth0"]));
        assert_eq!(document["uplinks"][1]["address"], "192.0.2.7");
        assert_eq!(document["uplinks"][0]["reason"], "no-server");
        let failover = Value::Object(failover_document(&online()));
        assert_eq!(
            failover,
            json!({ "stored": ["wifi", "cell"], "walk": ["wlan0", "wwan0", "eth0"], "tail": ["eth0"], "index": 1,
                    "active": "wwan0", "absent": ["eth9"] })
        );
    }

    #[test]
    fn a_switch_is_told_by_the_names_people_know_and_counted_by_its_reason() {
        let document = Value::Object(status_document(&online(), &live(), CLOCK));
        let switch = &document["last_switch"];
        assert_eq!((&switch["to"], &switch["at"]), (&json!("wwan0"), &json!("2026-11-19T23:58:59.500Z")));
        assert_eq!((&switch["detection_ms"], &switch["pause_ms"]), (&json!(560), &Value::Null));
        assert_eq!(document["switches"], json!([{"from": "wlan0", "to": "wwan0", "why": "no-server", "count": 2}]));
    }

    #[test]
    fn loss_is_a_fraction_and_a_round_trip_keeps_its_fraction() {
        let document = Value::Object(status_document(&online(), &live(), CLOCK));
        let [wifi, cell] = [0, 1].map(|at| &document["uplinks"][at]);
        assert_eq!((&wifi["loss"], &cell["loss"]), (&json!(0.43), &Value::Null));
        assert_eq!((&wifi["rtt_ms"], &cell["warm"]), (&json!(48.5), &json!(true)));
    }

    #[test]
    fn what_is_absent_is_null() {
        let mut status = online();
        (status.uplink, status.session, status.last_outage, status.failback) = (None, None, None, None);
        (status.last_switch, status.inhibited_until, status.last_inbound) = (None, None, None);
        status.next_attempt = Some(Instant::from_millis(100_250));
        let document = Value::Object(status_document(&status, &Live::default(), CLOCK));
        for key in ["uplink", "class", "session", "last_outage", "last_inbound_ms", "last_switch", "inhibited_until"] {
            assert_eq!(document[key], Value::Null, "{key}");
        }
        assert_eq!(document["next_attempt_ms"], 250);
        assert_eq!(document["outbox"]["oldest_s"], Value::Null);
    }

    #[test]
    fn clocks_far_off_give_times_all_the_same() {
        let clock = WallClock { now: Instant::from_millis(u64::MAX), wall_ms: i64::MIN };
        let document = status_document(&online(), &live(), clock);
        assert!(document["since"].as_str().unwrap().ends_with('Z'));
        assert_eq!(rfc3339_us(1_795_132_800_000_001), "2026-11-20T00:00:00.000001Z");
    }
}
