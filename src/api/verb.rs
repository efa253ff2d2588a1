//! Verbs: a name and JSON options in, one typed request out.
//!
//! Everything a client may write is checked here, once, for all front doors: unknown verbs and options, wrong types,
//! numbers out of range. What comes out can be done or fails for reasons outside. Nothing is looked up here.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value};
use switchback_control::event::{FAILBACK_HOLDS, FAILBACK_HOLDS_MAX, INHIBIT_MAX};
use switchback_control::{Failback, Name, Selector};

use super::{Failure, base64};
use crate::config::{nearest, parse_duration};
use crate::io::packet::PACKET_MAX;

/// Longest wait a client may ask for: an operator's patience, not a subscription.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// Bounds of `connect --for`: the least is as exact as its line in the black box, and for more than a day nobody means a while.
const STAY_LEAST: Duration = Duration::from_secs(1);
const STAY_MAX: Duration = Duration::from_secs(86_400);

/// How long `publish` waits for its stage, unless told: the acknowledgement limit (R-TX-10).
pub const PUBLISH_TIMEOUT: Duration = Duration::from_secs(30);

/// How long `flush` waits, unless told (R-CL-6).
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// How long `failback now` waits, unless told: a dial, what is in flight, and the server's yes, each to its limit, with
/// room.
pub const RETURN_TIMEOUT: Duration = Duration::from_secs(30);

/// Most items in a failover list: more than any gateway has interfaces.
pub const LIST_MAX: usize = 64;

/// Longest text of a duration that is read: what is wrong with it is quoted back.
const DURATION_TEXT_MAX: usize = 60;

/// Largest payload of `publish`: a packet less its topic and header.
pub const PAYLOAD_MAX: usize = PACKET_MAX - 66 * 1024;

/// Most lines `events` answers with, and how many unless told.
pub const EVENTS_MAX: usize = 5000;

/// How far a published message must have come before `publish` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PublishStage {
    /// Durable here, or already at the cloud.
    Stored,
    /// Handed to the kernel on an open session.
    Sent,
    /// Acknowledged by the cloud.
    Acked,
}

/// From when on `events` are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// Milliseconds since 1970.
    Wall(i64),
    /// This long before now.
    Ago(Duration),
}

/// What `reset` forgets; the session goes on in any case (R-CF-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The stored list.
    Failover,
    /// Everything that waits or was set aside.
    Outbox,
    All,
}

/// `outbox drop` of every class, and of what was set aside: no class has these names.
pub const DROP_ALL: &str = "all";
pub const DROP_REJECTED: &str = "rejected";

/// One request, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    Status,
    Explain,
    FailoverShow,
    /// Without duplicates, the first mention stays; empty means `failover.order`.
    FailoverSet {
        list: Vec<Selector>,
    },
    FailoverClear,
    FailbackShow,
    /// Answered when traffic has moved, or with why it has not.
    FailbackNow {
        timeout: Duration,
    },
    /// In place of the configuration's word, for this long; zero gives it back.
    FailbackSet {
        mode: Failback,
        limit: Duration,
    },
    /// No planned move for this long, zero ends it; without, only asks.
    Inhibit {
        limit: Option<Duration>,
    },
    /// `wait`: answer with the outcome, or after this long; without, answer at once. `stay`: for so long, and then what was
    /// before.
    Connect {
        via: Option<Name>,
        stay: Option<Duration>,
        wait: Option<Duration>,
    },
    Disconnect {
        force: bool,
    },
    Reconnect {
        wait: Option<Duration>,
    },
    /// `topic` is a local one: the `[[publish]]` rules apply.
    Publish {
        topic: String,
        payload: Vec<u8>,
        /// In place of what the rules say.
        class: Option<String>,
        qos: Option<u8>,
        retain: bool,
        wait: PublishStage,
        timeout: Duration,
    },
    Flush {
        timeout: Duration,
    },
    /// What waits, class by class, and what was set aside.
    OutboxShow,
    /// Give up what waits of a class, of `DROP_ALL`, or what was set aside (`DROP_REJECTED`).
    OutboxDrop {
        class: String,
    },
    Reset(Reset),
    /// The last `limit` lines of the black box that are young enough; of this boot only with `boot`.
    Events {
        since: Option<Since>,
        boot: bool,
        limit: usize,
    },
}

/// Verbs with their options, for messages and checks. `status` also takes `watch` and `events` takes `follow` where
/// the front door can stream.
const VERBS: &[(&str, &[&str])] = &[
    ("status", &[]),
    ("explain", &[]),
    ("failover", &[]),
    ("failover-show", &[]),
    ("failover-set", &["list"]),
    ("failover-clear", &[]),
    ("failback", &[]),
    ("failback-show", &[]),
    ("failback-now", &["timeout"]),
    ("failback-set", &["mode", "for"]),
    ("inhibit", &["for"]),
    ("connect", &["via", "for", "timeout"]),
    ("disconnect", &["force"]),
    ("reconnect", &["timeout"]),
    ("publish", &["topic", "payload", "payload_base64", "class", "qos", "retain", "wait", "timeout"]),
    ("flush", &["timeout"]),
    ("outbox", &[]),
    ("outbox-show", &[]),
    ("outbox-drop", &["class"]),
    ("reset", &["what"]),
    ("events", &["since", "boot", "limit"]),
];

impl PublishStage {
    /// The word users write and read.
    pub const fn as_str(self) -> &'static str {
        match self {
            PublishStage::Stored => "stored",
            PublishStage::Sent => "sent",
            PublishStage::Acked => "acked",
        }
    }
}

impl Verb {
    /// Checks one request.
    ///
    /// # Errors
    /// Code 2, with what to write instead.
    pub fn parse(verb: &str, options: &Map<String, Value>) -> Result<Verb, Failure> {
        let unknown = || Failure::usage(format!("unknown verb \"{}\"", shortened(verb)));
        let (_, known) = VERBS.iter().find(|(name, _)| *name == verb).ok_or_else(unknown)?;
        if let Some(name) = options.keys().find(|name| !known.contains(&name.as_str())) {
            let near = nearest(name, known.iter().copied()).map(|near| format!("; did you mean \"{near}\"?"));
            let name = shortened(name);
            return Err(Failure::usage(format!("unknown option \"{name}\" for {verb}{}", near.unwrap_or_default())));
        }
        let options = Options(options);
        match verb {
            "status" => Ok(Verb::Status),
            "explain" => Ok(Verb::Explain),
            "failover" | "failover-show" => Ok(Verb::FailoverShow),
            "failover-set" => Ok(Verb::FailoverSet { list: options.list("list")? }),
            "failover-clear" => Ok(Verb::FailoverClear),
            "failback" | "failback-show" => Ok(Verb::FailbackShow),
            "failback-now" => Ok(Verb::FailbackNow { timeout: options.timeout()?.unwrap_or(RETURN_TIMEOUT) }),
            "failback-set" => Ok(Verb::FailbackSet { mode: options.failback()?, limit: options.failback_holds()? }),
            "inhibit" => Ok(Verb::Inhibit { limit: options.inhibit()? }),
            "connect" => options.connect(),
            "disconnect" => Ok(Verb::Disconnect { force: options.flag("force")? }),
            "reconnect" => Ok(Verb::Reconnect { wait: options.timeout()? }),
            "publish" => options.publish(),
            "flush" => Ok(Verb::Flush { timeout: options.timeout()?.unwrap_or(FLUSH_TIMEOUT) }),
            "outbox" | "outbox-show" => Ok(Verb::OutboxShow),
            "outbox-drop" => match options.text("class")? {
                Some(class) if !class.is_empty() => Ok(Verb::OutboxDrop { class: class.to_string() }),
                Some(_) | None => Err(wrong("class", "must be a class, \"all\" or \"rejected\"")),
            },
            "reset" => match options.text("what")? {
                Some("failover") => Ok(Verb::Reset(Reset::Failover)),
                Some("outbox") => Ok(Verb::Reset(Reset::Outbox)),
                Some("all") => Ok(Verb::Reset(Reset::All)),
                Some(_) | None => Err(wrong("what", "must be one of \"failover\", \"outbox\", \"all\"")),
            },
            "events" => Ok(Verb::Events {
                since: options.since()?,
                boot: options.flag("boot")?,
                limit: options.number("limit", 1, EVENTS_MAX as u64)?.map_or(EVENTS_MAX, |n| n as usize),
            }),
            _ => Err(unknown()),
        }
    }
}

/// Typed access to options; `null` counts as absent.
struct Options<'o>(&'o Map<String, Value>);

impl Options<'_> {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn text(&self, name: &str) -> Result<Option<&str>, Failure> {
        self.get(name).map(|value| value.as_str().ok_or_else(|| wrong(name, "must be text"))).transpose()
    }

    fn flag(&self, name: &str) -> Result<bool, Failure> {
        let Some(value) = self.get(name) else { return Ok(false) };
        value.as_bool().ok_or_else(|| wrong(name, "must be true or false"))
    }

    fn number(&self, name: &str, min: u64, max: u64) -> Result<Option<u64>, Failure> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.as_u64().filter(|number| (min..=max).contains(number));
        number.map(Some).ok_or_else(|| wrong(name, &format!("must be a number from {min} to {max}")))
    }

    /// A duration; `longer` tells what is wrong with more than `max`.
    fn duration(&self, name: &str, max: Duration, longer: &str) -> Result<Option<Duration>, Failure> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        if text.len() > DURATION_TEXT_MAX {
            return Err(wrong(name, &format!("\"{}…\" is no duration", shortened(text))));
        }
        let duration = parse_duration(text).map_err(|message| wrong(name, &message))?;
        match duration <= max {
            true => Ok(Some(duration)),
            false => Err(wrong(name, &format!("\"{}\" is longer than {longer}", shortened(text)))),
        }
    }

    fn timeout(&self) -> Result<Option<Duration>, Failure> {
        self.duration("timeout", TIMEOUT_MAX, "an hour")
    }

    fn failback(&self) -> Result<Failback, Failure> {
        match self.text("mode")? {
            Some("auto") => Ok(Failback::Auto),
            Some("never") => Ok(Failback::Never),
            Some("manual") => Err(wrong(
                "mode",
                "\"manual\" belongs into the configuration (failover.failback); for a while, \"never\" does the same",
            )),
            Some(_) | None => Err(wrong("mode", "must be one of \"auto\", \"never\"")),
        }
    }

    fn failback_holds(&self) -> Result<Duration, Failure> {
        let longer = "28 days; what is to hold for good belongs into the configuration (failover.failback)";
        Ok(self.duration("for", FAILBACK_HOLDS_MAX, longer)?.unwrap_or(FAILBACK_HOLDS))
    }

    fn inhibit(&self) -> Result<Option<Duration>, Failure> {
        let longer = "an hour, the most there is; `switchback failback never` keeps traffic where it is for longer";
        self.duration("for", INHIBIT_MAX, longer)
    }

    fn connect(&self) -> Result<Verb, Failure> {
        let (via, stay) = (self.name("via")?, self.duration("for", STAY_MAX, "a day; without, the connection stays")?);
        match stay {
            Some(stay) if stay < STAY_LEAST => Err(wrong("for", "is less than a second")),
            Some(_) if via.is_some() => Err(wrong("for", "does not go with via, which tries one uplink once")),
            stay => Ok(Verb::Connect { via, stay, wait: self.timeout()? }),
        }
    }

    fn name(&self, name: &str) -> Result<Option<Name>, Failure> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let not = |_| wrong(name, &format!("\"{}\" is not an interface name", shortened(text)));
        Name::new(text).map(Some).map_err(not)
    }

    fn list(&self, name: &str) -> Result<Vec<Selector>, Failure> {
        let items = self.get(name).and_then(Value::as_array);
        let items = items.ok_or_else(|| wrong(name, "must be a list of names"))?;
        if items.len() > LIST_MAX {
            return Err(wrong(name, &format!("holds more than {LIST_MAX} names")));
        }
        let mut list = Vec::new();
        for item in items {
            let text = item.as_str().ok_or_else(|| wrong(name, "must be a list of names"))?;
            let selector = text.parse::<Selector>().map_err(|_| {
                let text = shortened(text);
                wrong(name, &format!("\"{text}\" is no class (ethernet, wifi, cell) and no interface name"))
            })?;
            if !list.contains(&selector) {
                list.push(selector);
            }
        }
        Ok(list)
    }

    fn since(&self) -> Result<Option<Since>, Failure> {
        let Some(text) = self.text("since")? else { return Ok(None) };
        if let Ok(ago) = parse_duration(text) {
            return Ok(Some(Since::Ago(ago)));
        }
        // A day or a moment without a zone is taken as UTC, which is what `events` prints.
        let forms =
            [text.to_string(), format!("{text}Z"), format!("{text}T00:00:00Z"), text.replacen(' ', "T", 1) + "Z"];
        let at = forms.iter().find_map(|form| form.parse::<Timestamp>().ok());
        let at = at.map(|at| Some(Since::Wall(at.as_millisecond())));
        at.ok_or_else(|| {
            let text = shortened(text);
            wrong("since", &format!("\"{text}\" is no time; write for example \"2h\" or \"2026-11-20T08:00:00Z\""))
        })
    }

    fn publish(&self) -> Result<Verb, Failure> {
        let topic = self.text("topic")?.ok_or_else(|| wrong("topic", "is missing"))?;
        if topic.is_empty() || topic.len() > usize::from(u16::MAX) {
            return Err(wrong("topic", "must be 1 to 65535 bytes"));
        }
        if topic.contains(['+', '#']) || topic.chars().any(char::is_control) {
            return Err(wrong("topic", "must be without \"+\", \"#\" and control characters"));
        }
        if topic.starts_with('$') {
            return Err(wrong("topic", "must not begin with \"$\": such topics never go up"));
        }
        let wait = match self.text("wait")? {
            None | Some("stored") => PublishStage::Stored,
            Some("sent") => PublishStage::Sent,
            Some("acked") => PublishStage::Acked,
            Some(_) => return Err(wrong("wait", "must be one of \"stored\", \"sent\", \"acked\"")),
        };
        Ok(Verb::Publish {
            topic: topic.to_string(),
            payload: self.payload()?,
            class: self.text("class")?.map(str::to_string),
            qos: self.number("qos", 0, 2)?.and_then(|qos| u8::try_from(qos).ok()),
            retain: self.flag("retain")?,
            wait,
            timeout: self.timeout()?.unwrap_or(PUBLISH_TIMEOUT),
        })
    }

    fn payload(&self) -> Result<Vec<u8>, Failure> {
        let payload = match (self.text("payload")?, self.text("payload_base64")?) {
            (Some(_), Some(_)) => return Err(wrong("payload", "stands beside payload_base64; write one of them")),
            (Some(text), None) => text.as_bytes().to_vec(),
            (None, Some(text)) => base64::decode(text).ok_or_else(|| wrong("payload_base64", "is not base 64"))?,
            (None, None) => Vec::new(),
        };
        match payload.len() <= PAYLOAD_MAX {
            true => Ok(payload),
            false => Err(wrong("payload", &format!("is larger than {PAYLOAD_MAX} bytes"))),
        }
    }
}

fn wrong(option: &str, message: &str) -> Failure {
    Failure::usage(format!("{option}: {message}"))
}

/// What a message quotes of a client's words: enough to recognise, never a megabyte.
fn shortened(text: &str) -> String {
    text.chars().take(60).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(verb: &str, options: Value) -> Result<Verb, String> {
        Verb::parse(verb, options.as_object().unwrap()).map_err(|failure| {
            assert_eq!((failure.code, failure.reason), (2, None));
            failure.message
        })
    }

    #[test]
    fn every_verb_is_read() {
        let wlan0 = Name::new("wlan0").unwrap();
        assert_eq!(parse("status", json!({})), Ok(Verb::Status));
        assert_eq!(parse("failover", json!({})), Ok(Verb::FailoverShow));
        assert_eq!(parse("failover-clear", json!({})), Ok(Verb::FailoverClear));
        assert_eq!(parse("failback", json!({})), Ok(Verb::FailbackShow));
        assert_eq!(parse("failback-now", json!({})), Ok(Verb::FailbackNow { timeout: RETURN_TIMEOUT }));
        let never = |limit| Ok(Verb::FailbackSet { mode: Failback::Never, limit });
        assert_eq!(parse("failback-set", json!({"mode": "never"})), never(FAILBACK_HOLDS));
        assert_eq!(parse("failback-set", json!({"mode": "never", "for": "28d"})), never(FAILBACK_HOLDS_MAX));
        assert_eq!(parse("inhibit", json!({})), Ok(Verb::Inhibit { limit: None }));
        assert_eq!(parse("inhibit", json!({"for": "1h"})), Ok(Verb::Inhibit { limit: Some(INHIBIT_MAX) }));
        assert_eq!(parse("connect", json!({"via": null})), Ok(Verb::Connect { via: None, stay: None, wait: None }));
        let wait = Some(Duration::from_secs(5));
        let connect = Verb::Connect { via: Some(wlan0), stay: None, wait };
        assert_eq!(parse("connect", json!({"via": "wlan0", "timeout": "5s"})), Ok(connect));
        assert_eq!(parse("disconnect", json!({"force": true})), Ok(Verb::Disconnect { force: true }));
        assert_eq!(parse("reconnect", json!({"timeout": "5s"})), Ok(Verb::Reconnect { wait }));
        assert_eq!(parse("flush", json!({})), Ok(Verb::Flush { timeout: FLUSH_TIMEOUT }));
        assert_eq!(parse("outbox", json!({})), Ok(Verb::OutboxShow));
        assert_eq!(parse("outbox-drop", json!({"class": "bulk"})), Ok(Verb::OutboxDrop { class: "bulk".into() }));
        assert_eq!(parse("reset", json!({"what": "all"})), Ok(Verb::Reset(Reset::All)));
        let events = |since, boot, limit| Ok(Verb::Events { since, boot, limit });
        assert_eq!(parse("events", json!({})), events(None, false, EVENTS_MAX));
        let ago = Some(Since::Ago(Duration::from_secs(7200)));
        assert_eq!(parse("events", json!({"since": "2h", "boot": true, "limit": 5})), events(ago, true, 5));
        for text in ["2026-11-20T00:00:00Z", "2026-11-20", "2026-11-20 00:00:00", "2026-11-20T01:00:00+01:00"] {
            let since = Some(Since::Wall(1_795_132_800_000));
            assert_eq!(parse("events", json!({ "since": text })), events(since, false, EVENTS_MAX), "{text}");
        }
    }

    #[test]
    fn a_list_keeps_the_first_mention_and_takes_eth() {
        let list: Vec<Selector> = ["ethernet", "wwan0"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(
            parse("failover-set", json!({"list": ["eth", "wwan0", "ethernet", "wwan0"]})),
            Ok(Verb::FailoverSet { list })
        );
        assert_eq!(parse("failover-set", json!({"list": []})), Ok(Verb::FailoverSet { list: vec![] }));
    }

    #[test]
    fn a_payload_is_text_or_base64() {
        let publish = |payload: &[u8]| Verb::Publish {
            topic: "a".into(),
            payload: payload.to_vec(),
            class: None,
            qos: None,
            retain: false,
            wait: PublishStage::Stored,
            timeout: PUBLISH_TIMEOUT,
        };
        assert_eq!(parse("publish", json!({"topic": "a"})), Ok(publish(b"")));
        assert_eq!(parse("publish", json!({"topic": "a", "payload": "ü"})), Ok(publish("ü".as_bytes())));
        assert_eq!(parse("publish", json!({"topic": "a", "payload_base64": "/wA="})), Ok(publish(&[255, 0])));
    }

    #[test]
    fn every_wrong_request_says_what_is_wrong() {
        let long = "x".repeat(PAYLOAD_MAX + 1);
        for (verb, options, hint) in [
            ("simulate", json!({}), "unknown verb \"simulate\""),
            ("", json!({}), "unknown verb"),
            ("connect", json!({"vai": "x"}), "unknown option \"vai\" for connect; did you mean \"via\"?"),
            ("status", json!({"watch": true}), "unknown option \"watch\""),
            ("connect", json!({"for": "0s"}), "less than a second"),
            ("connect", json!({"for": "2d"}), "longer than a day"),
            ("connect", json!({"for": "5s", "via": "wlan0"}), "does not go with via"),
            ("connect", json!({"via": 1}), "via: must be text"),
            ("connect", json!({"via": "a b"}), "not an interface name"),
            ("connect", json!({"timeout": "5"}), "write for example \"5s\""),
            ("connect", json!({"timeout": 5}), "timeout: must be text"),
            ("connect", json!({"timeout": "2h"}), "longer than an hour"),
            ("failback-set", json!({}), "mode: must be one of \"auto\", \"never\""),
            ("failback-set", json!({"mode": "manual"}), "belongs into the configuration (failover.failback)"),
            ("failback-set", json!({"mode": "auto", "for": "29d"}), "for: \"29d\" is longer than 28 days"),
            ("failback-set", json!({"mode": "auto", "fro": "1h"}), "did you mean \"for\"?"),
            ("inhibit", json!({"for": "61min"}), "for: \"61min\" is longer than an hour, the most there is"),
            ("inhibit", json!({"for": "5"}), "write for example \"5s\""),
            ("disconnect", json!({"force": "yes"}), "must be true or false"),
            ("failover-set", json!({}), "must be a list"),
            ("failover-set", json!({"list": [1]}), "must be a list"),
            ("failover-set", json!({"list": ["wi fi"]}), "no class (ethernet, wifi, cell)"),
            ("failover-set", json!({"list": vec!["a"; LIST_MAX + 1]}), "more than 64"),
            ("publish", json!({}), "topic: is missing"),
            ("publish", json!({"topic": ""}), "1 to 65535"),
            ("publish", json!({"topic": "a/#"}), "without"),
            ("publish", json!({"topic": "$SYS"}), "never go up"),
            ("publish", json!({"topic": "a", "qos": 3}), "qos: must be a number from 0 to 2"),
            ("publish", json!({"topic": "a", "class": 1}), "class: must be text"),
            ("outbox-drop", json!({}), "class: must be a class, \"all\" or \"rejected\""),
            ("reset", json!({"what": "everything"}), "what: must be one of \"failover\", \"outbox\", \"all\""),
            ("publish", json!({"topic": "a", "wait": "soon"}), "one of"),
            ("publish", json!({"topic": "a", "payload": "x", "payload_base64": ""}), "write one of them"),
            ("publish", json!({"topic": "a", "payload_base64": "x"}), "not base 64"),
            ("publish", json!({"topic": "a", "payload": long}), "larger than"),
            ("events", json!({"since": "yesterday"}), "is no time"),
            ("events", json!({"limit": 0}), "from 1 to"),
        ] {
            let message = parse(verb, options.clone()).unwrap_err();
            assert!(message.contains(hint), "{verb}: {message}");
        }
    }
}
