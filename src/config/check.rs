//! From the merged tree to a `Config`: defaults, checks across keys, and what deserves a warning.
//!
//! Reading goes to the end whatever is wrong, so that every mistake is told at once; what could not be read keeps its
//! default, which is also what safe mode starts from (R-CF-4). Uplinks are laid in three layers: the class's
//! built-in values, `[uplink.CLASS]`, `[uplink.NAME]`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use switchback_control::{Class, Failback, Mode, Name, Selector, Settings, Standby, Start, Uplink};

use super::reader::{Reader, Section, Seen};
use super::text;
use super::tree::{At, Table};
use super::{Cloud, Config, Host, LocalConfig, Match, PublishRule, Server, SocketOptions, SubscribeRule, UplinkConfig};

/// Most servers: the heart counts them in a byte, and nobody walks more.
const SERVERS_MAX: usize = 16;

/// Below this a healthy but slow uplink is given up while it is still connecting (R-CF-3).
const CONNECT_SOON: Duration = Duration::from_secs(20);

/// Carrier networks forget an idle connection after 5 to 30 minutes; beyond the lower end a warning is due (R-LV-5).
const NAT_LIMIT: Duration = Duration::from_secs(300);

/// Below this a short stall ends a healthy session (R-CF-3).
const SEND_SOON: Duration = Duration::from_secs(5);

/// Takes everything that can be taken and notes the rest. `servers` may be empty when none was right.
pub fn check(tree: &Table, at: At, host: &Host) -> (Config, Reader) {
    let mut reader = Reader::default();
    let mut tree = tree.clone();
    eth_is_ethernet(&mut reader, &mut tree);
    reader.unknown(&tree, "", "");
    let top = Section::top(&tree, at);
    let mut config = Config::builtin();
    let names = cloud(&mut reader, &top, host, &mut config);
    failover(&mut reader, &top, &mut config.settings);
    uplinks(&mut reader, &top, &mut config);
    outbox(&mut reader, &top, &mut config);
    let names: Vec<(&str, &str)> = names.iter().map(|(name, value)| (*name, value.as_str())).collect();
    config.publish = top.sections("publish").iter().filter_map(|rule| publish(&mut reader, rule, &names)).collect();
    config.subscribe =
        top.sections("subscribe").iter().filter_map(|rule| subscribe(&mut reader, rule, &names)).collect();
    listeners(&mut reader, &top, &mut config);
    config.hash = digest(&super::show::show(&config));
    let mut seen = Vec::new();
    reader.errors.retain(|error| (!seen.contains(error)).then(|| seen.push(error.clone())).is_some());
    reader.errors.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    reader.warnings.dedup();
    (config, reader)
}

/// `[uplink.eth]` means `[uplink.ethernet]`, as in the failover list.
fn eth_is_ethernet(reader: &mut Reader, tree: &mut Table) {
    let Some((_, node)) = tree.get_mut("uplink") else { return };
    let super::tree::Value::Table(uplinks) = &mut node.value else { return };
    let Some((at, eth)) = uplinks.remove("eth") else { return };
    if uplinks.contains_key("ethernet") {
        reader.wrong(&at, "uplink.eth", "is the same as uplink.ethernet, which is there too; keep one".into());
    } else {
        uplinks.insert("ethernet".into(), (at, eth));
    }
}

/// `[cloud]`; answers with the placeholders that topics may use.
fn cloud(reader: &mut Reader, top: &Section<'_>, host: &Host, config: &mut Config) -> Vec<(&'static str, String)> {
    let section = &top.section("cloud", "cloud");
    let cloud = &mut config.cloud;
    cloud.servers = servers(reader, section);
    let mut names = Vec::new();
    names.extend(host.hostname.clone().map(|name| ("hostname", name)));
    names.extend(host.machine_id.clone().map(|id| ("machine-id", id)));
    if let Some(id) = client_id(reader, section, &names) {
        cloud.client_id = id;
    }
    names.push(("client_id", cloud.client_id.clone()));

    cloud.ca_file = reader.file(section, "ca_file", false).map(|seen| seen.value);
    let cert = reader.file(section, "cert_file", false);
    let key = reader.file(section, "key_file", true);
    let both = |section: &Section<'_>| ["cert_file", "key_file"].map(|name| section.names().contains(&name));
    match both(section) {
        [true, false] => reader.wrong(&section.at, "cloud.cert_file", "needs cloud.key_file as well".into()),
        [false, true] => reader.wrong(&section.at, "cloud.key_file", "needs cloud.cert_file as well".into()),
        [true, true] | [false, false] => {}
    }
    cloud.cert_file = cert.map(|seen| seen.value);
    cloud.key_file = key.map(|seen| seen.value);
    cloud.username = reader.text(section, "username").map(|seen| seen.value);
    let password = reader.file(section, "password_file", true);
    if let Some(seen) = &password
        && cloud.username.is_none()
    {
        reader.wrong(&seen.at, &seen.path, "needs cloud.username as well (MQTT 3.1.1 knows no password alone)".into());
    }
    cloud.password_file = password.map(|seen: Seen<PathBuf>| seen.value);
    clear_text(reader, section, cloud);

    let base = reader.text(section, "base");
    let at = base.as_ref().map_or(section.at.clone(), |seen| seen.at.clone());
    let written = base.map_or("switchback/{client_id}".to_string(), |seen| seen.value);
    if written.is_empty() {
        reader.warn(
            &at,
            "cloud.base",
            "is empty: no last will, so the cloud cannot see when the gateway is gone".into(),
        );
        cloud.base = String::new();
    } else {
        let names: Vec<(&str, &str)> = names.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let base = text::expand(&written, &names, &[])
            .map(|base| base.strip_suffix('/').unwrap_or(&base).to_string())
            .and_then(|base| text::topic(&base).map(|()| base));
        cloud.base = reader.checked(&at, "cloud.base", base).unwrap_or_default();
    }
    session(reader, section, config);
    names
}

fn servers(reader: &mut Reader, section: &Section<'_>) -> Vec<Server> {
    let example = "servers = [\"mqtts://broker.example.com:8883\"]";
    if !section.names().contains(&"servers") {
        let message = format!("is missing; write under [cloud]: {example}");
        reader.wrong(&section.at, "cloud.servers", message);
    }
    let Some(list) = reader.list(section, "servers", "[\"mqtts://broker.example.com:8883\"]") else {
        return Vec::new();
    };
    if list.value.is_empty() {
        reader.wrong(&list.at, &list.path, format!("is empty; write {example}"));
    }
    if list.value.len() > SERVERS_MAX {
        reader.wrong(&list.at, &list.path, format!("holds more than {SERVERS_MAX} servers"));
    }
    list.value
        .iter()
        .take(SERVERS_MAX)
        .filter_map(|seen| reader.checked(&seen.at, &seen.path, text::server(&seen.value)))
        .collect()
}

fn client_id(reader: &mut Reader, section: &Section<'_>, names: &[(&'static str, String)]) -> Option<String> {
    let seen = reader.text(section, "client_id");
    let at = seen.as_ref().map_or(section.at.clone(), |seen| seen.at.clone());
    let written = seen.map_or("{hostname}".to_string(), |seen| seen.value);
    let names: Vec<(&str, &str)> = names.iter().map(|(name, value)| (*name, value.as_str())).collect();
    for (name, source) in [("hostname", "the kernel has no host name"), ("machine-id", "there is no /etc/machine-id")] {
        if written.contains(&format!("{{{name}}}")) && !names.iter().any(|(known, _)| *known == name) {
            let message = format!("{{{name}}} is not known: {source}; write the identifier itself");
            reader.wrong(&at, "cloud.client_id", message);
            return None;
        }
    }
    let id = reader.checked(&at, "cloud.client_id", text::expand(&written, &names, &[]))?;
    if id.is_empty() || id.len() > text::MQTT_TEXT_MAX || id.chars().any(char::is_control) {
        let message = format!("must be 1 to {} bytes without control characters", text::MQTT_TEXT_MAX);
        reader.wrong(&at, "cloud.client_id", message);
        return None;
    }
    if id == "localhost" || id == "(none)" {
        let message = format!("is \"{id}\": two gateways with one identifier throw each other out; set a host name");
        reader.warn(&at, "cloud.client_id", message);
    }
    Some(id)
}

/// Passwords and messages on the open network deserve a warning.
fn clear_text(reader: &mut Reader, section: &Section<'_>, cloud: &Cloud) {
    let Some(server) = cloud.servers.iter().find(|server| !server.tls && !text::is_loopback(&server.host)) else {
        return;
    };
    let what = if cloud.password_file.is_some() { "the password and all messages" } else { "all messages" };
    let message = format!("mqtt://{} sends {what} unencrypted; write mqtts:// where the server can", server.host);
    reader.warn(&section.at, "cloud.servers", message);
}

fn session(reader: &mut Reader, section: &Section<'_>, config: &mut Config) {
    let settings = &mut config.settings;
    settings.servers = u8::try_from(config.cloud.servers.len()).unwrap_or(u8::MAX);
    if let Some(seen) = reader.integer(section, "fleet_size") {
        settings.fleet_size = u32::try_from(seen.value).unwrap_or(1);
    }
    if let Some(seen) = reader.word(section, "start", &[]) {
        settings.start = match seen.value.as_str() {
            "disconnected" => Start::Disconnected,
            "idle" => Start::Idle,
            _ => Start::Connect,
        };
    }
    let linger = reader.duration(section, "linger");
    let mode = reader.word(section, "mode", &[]).map(|seen| seen.value);
    settings.mode = match mode.as_deref() {
        Some("on-demand") => Mode::OnDemand { linger: linger.as_ref().map_or(super::LINGER, |seen| seen.value) },
        Some("manual") => Mode::Manual,
        _ => Mode::Auto,
    };
    if let Some(seen) = linger
        && !matches!(settings.mode, Mode::OnDemand { .. })
        && seen.value != super::LINGER
    {
        reader.warn(&seen.at, &seen.path, "has no effect without cloud.mode = \"on-demand\"".into());
    }
    if let Some(seen) = reader.duration(section, "grace") {
        settings.grace = seen.value;
    }
    config.cloud.will_delay = settings.grace;
    let expiry = reader.duration(section, "session_expiry");
    let at = expiry.as_ref().map_or(section.at.clone(), |seen| seen.at.clone());
    if let Some(seen) = expiry {
        config.cloud.session_expiry = seen.value;
    }
    if config.cloud.session_expiry <= settings.grace {
        let message = format!(
            "\"{}\" must be longer than cloud.grace (\"{}\"), or every longer outage loses the session",
            text::duration_text(config.cloud.session_expiry),
            text::duration_text(settings.grace)
        );
        reader.wrong(&at, "cloud.session_expiry", message);
    }
}

fn failover(reader: &mut Reader, top: &Section<'_>, settings: &mut Settings) {
    let section = &top.section("failover", "failover");
    if let Some(list) = reader.list(section, "order", "[\"ethernet\", \"wifi\", \"cell\"]") {
        settings.order.clear();
        for seen in list.value {
            match seen.value.parse::<Selector>() {
                Ok(selector) if settings.order.contains(&selector) => {}
                Ok(selector) => {
                    if let Selector::Name(name) = selector {
                        class_in_disguise(reader, &seen.at, &seen.path, name);
                    }
                    settings.order.push(selector);
                }
                Err(_) => {
                    let message =
                        format!("\"{}\" is no class (ethernet, wifi, cell) and no interface name", seen.value);
                    reader.wrong(&seen.at, &seen.path, message);
                }
            }
        }
    }
    if let Some(seen) = reader.word(section, "failback", &[]) {
        settings.failback = match seen.value.as_str() {
            "manual" => Failback::Manual,
            "never" => Failback::Never,
            _ => Failback::Auto,
        };
    }
    if let Some(seen) = reader.duration(section, "hold_down") {
        settings.hold_down = seen.value;
    }
}

/// A mistyped class is a valid interface name; nearly one, without any digit, is probably not meant as one.
fn class_in_disguise(reader: &mut Reader, at: &At, path: &str, name: Name) {
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
    standby: Option<Standby>,
    connect_timeout: Option<Seen<Duration>>,
    keep_alive: Option<Seen<Duration>>,
    ping_after: Option<Seen<Option<Duration>>>,
    ping_limits: Option<Seen<[Duration; 2]>>,
    idle: Option<Seen<Duration>>,
    interval: Option<Seen<Duration>>,
    count: Option<Seen<i64>>,
    user_timeout: Option<Seen<Option<Duration>>>,
    send_buffer: Option<u32>,
}

impl Given {
    /// This, with `below` wherever this says nothing.
    fn over(self, below: &Given) -> Given {
        let below = below.clone();
        Given {
            matches: self.matches,
            metered: self.metered.or(below.metered),
            standby: self.standby.or(below.standby),
            connect_timeout: self.connect_timeout.or(below.connect_timeout),
            keep_alive: self.keep_alive.or(below.keep_alive),
            ping_after: self.ping_after.or(below.ping_after),
            ping_limits: self.ping_limits.or(below.ping_limits),
            idle: self.idle.or(below.idle),
            interval: self.interval.or(below.interval),
            count: self.count.or(below.count),
            user_timeout: self.user_timeout.or(below.user_timeout),
            send_buffer: self.send_buffer.or(below.send_buffer),
        }
    }
}

fn uplinks(reader: &mut Reader, top: &Section<'_>, config: &mut Config) {
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

/// Which class's values a named interface starts from: a `match` rule's, else that of the kernel's usual names. What
/// NetworkManager says comes later and cannot be waited for.
fn class_of(name: Name, classes: &[UplinkConfig; 3]) -> Option<Class> {
    let fits = |rule: &Match| matches!(rule, Match::Name(pattern) if text::matches(pattern, name.as_str()));
    let by_rule = Class::ALL.into_iter().zip(classes).find(|(_, config)| config.matches.iter().any(fits));
    if let Some((class, _)) = by_rule {
        return Some(class);
    }
    let usual = [
        (Class::Cell, &["wwan", "ww", "cdc-wdm", "ppp", "rmnet", "ttyUSB", "ttyACM", "wwp"][..]),
        (Class::Wifi, &["wlan", "wl"][..]),
        (Class::Ethernet, &["eth", "en", "usb", "veth", "br", "bond", "lan"][..]),
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
        standby: reader.word(section, "standby", &["warm"]).map(|seen| match seen.value.as_str() {
            "off" => Standby::Off,
            _ => Standby::Up,
        }),
        connect_timeout: reader.duration(section, "connect_timeout"),
        keep_alive: reader.duration(section, "keep_alive"),
        ping_after: reader.duration_or_word(section, "ping_after"),
        ping_limits: reader.pair(section, "ping_limits"),
        idle: reader.duration(socket, "keepalive_idle"),
        interval: reader.duration(socket, "keepalive_interval"),
        count: reader.integer(socket, "keepalive_count"),
        user_timeout: reader.duration_or_word(socket, "user_timeout"),
        send_buffer: reader.size(socket, "send_buffer").and_then(|seen| u32::try_from(seen.value).ok()),
    }
}

/// Fills what nobody said, and looks at what only shows when all values of an uplink are together.
fn resolve(reader: &mut Reader, given: &Given, class: Class) -> (Uplink, UplinkConfig) {
    let default = Uplink::of(class);
    let value = |seen: &Option<Seen<Duration>>, default| seen.as_ref().map_or(default, |seen| seen.value);
    let keep_alive = value(&given.keep_alive, default.keep_alive);
    let uplink = Uplink {
        metered: given.metered.as_ref().map_or(default.metered, |seen| seen.value),
        standby: given.standby.unwrap_or(default.standby),
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
    (uplink, UplinkConfig { matches: given.matches.clone(), socket })
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

fn outbox(reader: &mut Reader, top: &Section<'_>, config: &mut Config) {
    let section = &top.section("outbox", "outbox");
    if let Some(seen) = reader.size(section, "max_size") {
        config.outbox.max_size = seen.value;
    }
    let interval = reader.duration(section, "commit_interval");
    let batch = reader.word(section, "durability", &[]).is_some_and(|seen| seen.value == "batch");
    config.outbox.commit_interval = batch.then(|| interval.as_ref().map_or(super::COMMIT_INTERVAL, |seen| seen.value));
    if let Some(seen) = interval
        && !batch
        && seen.value != super::COMMIT_INTERVAL
    {
        reader.warn(&seen.at, &seen.path, "has no effect without outbox.durability = \"batch\"".into());
    }
    config.settings.late = reader.duration_or_word(section, "late").and_then(|seen| seen.value);
    if let Some(seen) = reader.integer(section, "window") {
        config.settings.window = u16::try_from(seen.value).unwrap_or(config.settings.window);
    }
}

fn quality(reader: &mut Reader, section: &Section<'_>) -> u8 {
    reader.integer(section, "qos").and_then(|seen| u8::try_from(seen.value).ok()).unwrap_or(1)
}

fn needed_topic(reader: &mut Reader, section: &Section<'_>) -> Option<Seen<String>> {
    if !section.names().contains(&"topic") {
        let message = format!("is missing; each [[{}]] needs one, as in topic = \"a/#\"", section.shown);
        reader.wrong(&section.at, &format!("{}.topic", section.shown), message);
    }
    reader.text(section, "topic")
}

fn publish(reader: &mut Reader, section: &Section<'_>, names: &[(&str, &str)]) -> Option<PublishRule> {
    reader.only(section, "class", "normal");
    reader.only(section, "uplinks", "any");
    reader.later(section, "max_age", "messages are kept until the cloud has them");
    let qos = quality(reader, section);
    let to = reader.text(section, "to");
    let to = match to {
        None => Some("{topic}".to_string()),
        Some(seen) => {
            let to = text::expand(&seen.value, names, &["topic"]);
            let to = to.and_then(|to| text::topic(&to).map(|()| to));
            reader.checked(&seen.at, &seen.path, to)
        }
    };
    let topic = needed_topic(reader, section)?;
    let checked = if topic.value.starts_with('$') {
        Err("topics that begin with \"$\" never go up".to_string())
    } else {
        text::filter(&topic.value)
    };
    reader.checked(&topic.at, &topic.path, checked)?;
    Some(PublishRule { topic: topic.value, qos, to: to? })
}

fn subscribe(reader: &mut Reader, section: &Section<'_>, names: &[(&str, &str)]) -> Option<SubscribeRule> {
    let qos = quality(reader, section);
    let to = reader.text(section, "to");
    let topic = needed_topic(reader, section)?;
    let filter = text::expand(&topic.value, names, &[]).and_then(|filter| text::filter(&filter).map(|()| filter));
    let filter = reader.checked(&topic.at, &topic.path, filter)?;
    let to = match to {
        None => "{topic}".to_string(),
        Some(seen) if seen.value.contains("{rest}") && !filter.ends_with('#') => {
            let message = "{rest} is what the \"#\" at the end of the topic stands for, and there is none".into();
            reader.wrong(&seen.at, &seen.path, message);
            return None;
        }
        Some(seen) => {
            let to = text::expand(&seen.value, names, &["rest", "topic"]);
            let to = to.and_then(|to| text::topic(&to).map(|()| to));
            reader.checked(&seen.at, &seen.path, to)?
        }
    };
    Some(SubscribeRule { topic: filter, to, qos })
}

fn listeners(reader: &mut Reader, top: &Section<'_>, config: &mut Config) {
    let (local, status) = (top.section("local", "local"), top.section("status", "status"));
    let open = |reader: &mut Reader, seen: &Seen<Option<SocketAddr>>, what: &str| {
        if seen.value.is_some_and(|address| !address.ip().is_loopback()) {
            reader.warn(&seen.at, &seen.path, format!("everybody who reaches this address may {what}"));
        }
    };
    let mqtt = reader.address(&local, "mqtt");
    let page = reader.address(&status, "listen");
    if let Some(seen) = &mqtt {
        open(reader, seen, "publish through this gateway");
        config.local = LocalConfig { mqtt: seen.value };
    }
    if let Some(seen) = &page {
        open(reader, seen, "read the status page");
        config.status_listen = seen.value;
    }
    let at = page.as_ref().or(mqtt.as_ref()).map_or(top.at.clone(), |seen| seen.at.clone());
    if config.local.mqtt.is_some() && config.local.mqtt == config.status_listen {
        reader.wrong(&at, "status.listen", "is the same address as local.mqtt".into());
    }
    let Some(own) = config.local.mqtt else { return };
    if config.cloud.servers.iter().any(|server| text::is_loopback(&server.host) && server.port == own.port()) {
        let at = mqtt.map_or(top.section("cloud", "cloud").at, |seen| seen.at);
        let message =
            format!("port {} is also a server of cloud.servers on this machine; give one another port", own.port());
        reader.wrong(&at, "local.mqtt", message);
    }
}

/// FNV-1a, 64 bits: short, and the same in every version of the compiler.
fn digest(text: &str) -> String {
    let start = 0xcbf2_9ce4_8422_2325_u64;
    let hash = text.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::config::{schema, tree};

    #[test]
    fn every_key_of_the_schema_is_read() {
        let text = "[[publish]]\ntopic = \"a\"\n[[subscribe]]\ntopic = \"a\"\n[uplink.eth0]\n";
        let file: Arc<Path> = Arc::from(Path::new("/x.toml"));
        let table = tree::parse_text(text, file.clone()).unwrap();
        let host = Host { hostname: Some("gw".into()), machine_id: None };
        let (_, reader) = check(&table, At { file, line: None }, &host);
        let keys: std::collections::BTreeSet<&str> = schema::KEYS.iter().map(|key| key.path).collect();
        assert_eq!(reader.read, keys);
    }

    #[test]
    fn the_digest_is_the_published_one() {
        assert_eq!(digest(""), "cbf29ce484222325");
        assert_eq!(digest("a"), "af63dc4c8601ec8c");
    }
}
