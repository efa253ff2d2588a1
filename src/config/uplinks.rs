//! `[uplink.X]`: three layers become one set of values for every class and every named interface.
//!
//! The class's built-in values lie below, then `[uplink.CLASS]`, then `[uplink.NAME]`; each layer says only what it was
//! given. Checks across keys are made when all layers are together. Which interfaces exist is not known here.

use std::time::Duration;

use switchback_control::{Class, Name, Standby, Uplink};

use super::reader::{Reader, Section, Seen};
use super::tree::At;
use super::{Config, Match, Rate, SocketOptions, UplinkConfig};
use super::{forecast, text};

/// Below this a healthy but slow uplink is given up while it is still connecting (R-CF-3).
const CONNECT_SOON: Duration = Duration::from_secs(20);

/// Carrier networks forget an idle connection after 5 to 30 minutes; beyond the lower end a warning is due (R-LV-5).
const NAT_LIMIT: Duration = Duration::from_secs(300);

/// Below this a short stall ends a healthy session (R-CF-3).
const SEND_SOON: Duration = Duration::from_secs(5);

/// Fills the settings of the heart and of the adapters.
pub fn uplinks(reader: &mut Reader, top: &Section<'_>, config: &mut Config) {
    let all = &top.section("uplink", "uplink");
    let classes = Class::ALL.map(|class| {
        let section = all.section("*", class.as_str());
        let given = given(reader, &section);
        (class, given, section)
    });
    let resolved = classes.each_ref().map(|(class, given, _)| resolve(reader, given, *class));
    config.settings.classes = resolved.each_ref().map(|(uplink, _)| *uplink);
    config.classes = resolved.map(|(_, uplink)| uplink);

    for text in all.names() {
        if text.parse::<Class>().is_ok() {
            continue;
        }
        let section = all.section("*", text);
        let Ok(name) = Name::new(text) else {
            let message = "is neither a class (ethernet, wifi, cell) nor an interface name".into();
            reader.wrong(&section.at, &section.shown, message);
            continue;
        };
        class_in_disguise(reader, &section.at, &section.shown, name);
        let own = given(reader, &section);
        if section.names().contains(&"match") {
            reader.wrong(
                &section.at,
                &format!("{}.match", section.shown),
                "belongs to a class, not to one name".into(),
            );
        }
        let Some(class) = class_of(name, &config.classes) else {
            let message = format!(
                "which class \"{name}\" belongs to is not known; add match = [\"{name}\"] under [uplink.ethernet], \
                 [uplink.wifi] or [uplink.cell]"
            );
            reader.wrong(&section.at, &section.shown, message);
            continue;
        };
        let below = classes.iter().find(|(c, _, _)| *c == class).map(|(_, given, _)| given.clone()).unwrap_or_default();
        let (uplink, adapter) = resolve(reader, &own.over(&below), class);
        config.settings.named.push((name, uplink));
        config.named.push((name, adapter));
    }
}

/// A mistyped class is a valid interface name; nearly one, without any digit, is probably not meant as one.
pub fn class_in_disguise(reader: &mut Reader, at: &At, path: &str, name: Name) {
    let name = name.as_str();
    if name.bytes().any(|byte| byte.is_ascii_digit()) {
        return;
    }
    if let Some(class) = super::nearest::nearest(name, Class::ALL.map(Class::as_str)) {
        reader.warn(at, path, format!("\"{name}\" is taken for an interface name; did you mean \"{class}\"?"));
    }
}

/// What one `[uplink.X]` says itself.
#[derive(Clone, Default)]
struct Given {
    matches: Vec<Match>,
    metered: Option<Seen<Option<bool>>>,
    standby: Option<Seen<Standby>>,
    warm_renew: Option<Seen<Duration>>,
    connect_timeout: Option<Seen<Duration>>,
    keep_alive: Option<Seen<Duration>>,
    ping_after: Option<Seen<Option<Duration>>>,
    ping_limits: Option<Seen<[Duration; 2]>>,
    idle: Option<Seen<Duration>>,
    interval: Option<Seen<Duration>>,
    count: Option<Seen<i64>>,
    user_timeout: Option<Seen<Option<Duration>>>,
    send_buffer: Option<u32>,
    rate: Rate,
}

impl Given {
    /// This, with `below` wherever this says nothing.
    fn over(self, below: &Given) -> Given {
        let below = below.clone();
        Given {
            matches: self.matches,
            metered: self.metered.or(below.metered),
            standby: self.standby.or(below.standby),
            warm_renew: self.warm_renew.or(below.warm_renew),
            connect_timeout: self.connect_timeout.or(below.connect_timeout),
            keep_alive: self.keep_alive.or(below.keep_alive),
            ping_after: self.ping_after.or(below.ping_after),
            ping_limits: self.ping_limits.or(below.ping_limits),
            idle: self.idle.or(below.idle),
            interval: self.interval.or(below.interval),
            count: self.count.or(below.count),
            user_timeout: self.user_timeout.or(below.user_timeout),
            send_buffer: self.send_buffer.or(below.send_buffer),
            rate: Rate {
                bytes: self.rate.bytes.or(below.rate.bytes),
                messages: self.rate.messages.or(below.rate.messages),
            },
        }
    }
}

/// Which class's values a named interface starts from: a `match` rule's, else that of the kernel's usual names. What
/// NetworkManager says comes later and cannot be waited for.
fn class_of(name: Name, classes: &[UplinkConfig; 3]) -> Option<Class> {
    let fits = |rule: &Match| matches!(rule, Match::Name(pattern) if text::matches(pattern, name.as_str()));
    let by_rule = Class::ALL.into_iter().zip(classes).find(|(_, config)| config.matches.iter().any(fits));
    if let Some((class, _)) = by_rule {
        return Some(class);
    }
    let usual = [
        (Class::Cell, &["ww", "cdc-wdm", "ppp", "rmnet", "ttyUSB", "ttyACM"][..]),
        (Class::Wifi, &["wl"][..]),
        (Class::Ethernet, &["eth", "en", "usb", "veth", "br", "bond", "lan", "wan"][..]),
    ];
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.as_str().starts_with(prefix));
    usual.into_iter().find(|(_, prefixes)| begins(prefixes)).map(|(class, _)| class)
}

fn given(reader: &mut Reader, section: &Section<'_>) -> Given {
    let socket = &section.section("socket", "socket");
    let patterns = reader.list(section, "match", "[\"usb*\", \"driver:rndis_host\"]");
    let matches = patterns
        .map(|list| list.value)
        .unwrap_or_default()
        .iter()
        .filter_map(|seen| reader.checked(&seen.at, &seen.path, text::pattern(&seen.value)))
        .collect();
    Given {
        matches,
        metered: reader.flag(section, "metered"),
        standby: reader.word(section, "standby", &[]).map(|Seen { value, at, path }| {
            let value = match value.as_str() {
                "off" => Standby::Off,
                "warm" => Standby::Warm,
                _ => Standby::Up,
            };
            Seen { value, at, path }
        }),
        warm_renew: reader.duration(section, "warm_renew"),
        connect_timeout: reader.duration(section, "connect_timeout"),
        keep_alive: reader.duration(section, "keep_alive"),
        ping_after: reader.duration_or_word(section, "ping_after"),
        ping_limits: reader.pair(section, "ping_limits"),
        idle: reader.duration(socket, "keepalive_idle"),
        interval: reader.duration(socket, "keepalive_interval"),
        count: reader.integer(socket, "keepalive_count"),
        user_timeout: reader.duration_or_word(socket, "user_timeout"),
        send_buffer: reader.size(socket, "send_buffer").and_then(|seen| u32::try_from(seen.value).ok()),
        rate: Rate {
            bytes: reader.size(section, "max_rate").map(|seen| seen.value),
            messages: reader.integer(section, "max_messages").and_then(|seen| u64::try_from(seen.value).ok()),
        },
    }
}

/// Fills what nobody said, and looks at what only shows when all values of an uplink are together.
fn resolve(reader: &mut Reader, given: &Given, class: Class) -> (Uplink, UplinkConfig) {
    let default = Uplink::of(class);
    let value = |seen: &Option<Seen<Duration>>, default| seen.as_ref().map_or(default, |seen| seen.value);
    let keep_alive = value(&given.keep_alive, default.keep_alive);
    let uplink = Uplink {
        metered: given.metered.as_ref().map_or(default.metered, |seen| seen.value),
        standby: given.standby.as_ref().map_or(default.standby, |seen| seen.value),
        warm_renew: value(&given.warm_renew, default.warm_renew),
        connect_timeout: value(&given.connect_timeout, default.connect_timeout),
        keep_alive,
        // The built-in ping gives way to a shorter keep alive; one that was asked for is an error below.
        ping_after: match &given.ping_after {
            Some(seen) => seen.value,
            None => default.ping_after.map(|after| after.min(keep_alive)),
        },
        ping_limits: given.ping_limits.as_ref().map_or(default.ping_limits, |seen| seen.value),
    };
    let builtin = SocketOptions::of(class, keep_alive);
    let idle = value(&given.idle, builtin.keepalive_idle);
    let interval = value(&given.interval, builtin.keepalive_interval);
    let count = given.count.as_ref().and_then(|seen| u32::try_from(seen.value).ok()).unwrap_or(builtin.keepalive_count);
    let asked = given.user_timeout.as_ref().and_then(|seen| seen.value);
    let socket = SocketOptions {
        keepalive_idle: idle,
        keepalive_interval: interval,
        keepalive_count: count,
        user_timeout: asked.unwrap_or(idle + interval * count),
        send_buffer: given.send_buffer,
    };
    together(reader, given, class, &uplink, &socket);
    (uplink, UplinkConfig { matches: given.matches.clone(), rate: given.rate, socket })
}

fn together(reader: &mut Reader, given: &Given, class: Class, uplink: &Uplink, socket: &SocketOptions) {
    let show = text::duration_text;
    if let Some(Seen { value: Some(after), at, path }) = &given.ping_after
        && *after > uplink.keep_alive
    {
        let message = format!("\"{}\" is longer than keep_alive (\"{}\")", show(*after), show(uplink.keep_alive));
        reader.wrong(at, path, message);
    }
    if let Some(Seen { value, at, path }) = &given.connect_timeout
        && *value < CONNECT_SOON
    {
        let message = format!("\"{}\" gives up on slow but healthy uplinks; 20s or more is safer", show(*value));
        reader.warn(at, path, message);
    }
    if let Some(Seen { value: Standby::Warm, at, path }) = &given.standby
        && uplink.metered == Some(true)
    {
        let bytes = forecast::warm(uplink.warm_renew, socket.keepalive_idle, forecast::HANDSHAKE);
        let message = format!(
            "\"warm\" costs about {} MB a month on a metered uplink (a handshake every {}); \"up\" costs nothing while \
             all is well, and a longer warm_renew less",
            bytes / 1_000_000,
            show(uplink.warm_renew)
        );
        reader.warn(at, path, message);
    }
    let period = uplink.ping_after.unwrap_or(uplink.keep_alive);
    if let Some(Seen { at, path, .. }) = &given.keep_alive
        && period > NAT_LIMIT
    {
        let message = format!(
            "with \"{}\" between signs of life, {} on the way may forget the connection (many do after 5 min)",
            show(period),
            if class == Class::Cell { "the carrier's network" } else { "a router" }
        );
        reader.warn(at, path, message);
    }
    let Some(Seen { value: Some(limit), at, path }) = &given.user_timeout else { return };
    let dead = uplink.ping_limits.iter().sum::<Duration>();
    if socket.user_timeout < SEND_SOON {
        let message = format!("\"{}\" lets the kernel end a healthy session after a short stall", show(*limit));
        reader.warn(at, path, message);
    } else if socket.user_timeout < dead {
        let message = format!("\"{}\" ends a stalled session before its ping limits ({}) do", show(*limit), show(dead));
        reader.warn(at, path, message);
    }
}
