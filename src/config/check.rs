//! From the merged tree to a `Config`: defaults, checks across keys, and what deserves a warning.
//!
//! Reading goes to the end whatever is wrong, so that every mistake is told at once; what could not be read keeps its
//! default, which is also what safe mode starts from (R-CF-4). `[uplink]` has its own file.

use std::path::PathBuf;

use switchback_control::{Failback, Mode, Selector, Settings, Start};

use super::lanes::Lanes;
use super::local::listeners;
use super::reader::{Reader, Section, Seen};
use super::rules::rules;
use super::text;
use super::tree::{At, Table};
use super::uplinks::{class_in_disguise, uplinks};
use super::{Cloud, CloudLog, Config, Host, SERVERS_EXAMPLE, Server};

/// Most servers: the heart counts them in a byte, and nobody walks more.
const SERVERS_MAX: usize = 16;

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
    let mut lanes = Lanes::read(&mut reader, &top);
    let names: Vec<(&str, &str)> = names.iter().map(|(name, value)| (*name, value.as_str())).collect();
    (config.publish, config.subscribe) = rules(&mut reader, &top, &names, &mut lanes);
    let outbox = top.section("outbox", "outbox");
    let laid = lanes.lay(&mut reader, &outbox.at, config.outbox.max_size);
    (config.message_classes, config.settings.lanes, config.lanes) = (laid.classes, laid.rules, laid.lanes);
    listeners(&mut reader, &top, &mut config);
    config.hash = digest(&super::show::show(&config));
    // A class's mistake is seen again in every uplink that is laid over it.
    once(&mut reader.errors);
    once(&mut reader.warnings);
    reader.errors.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    (config, reader)
}

/// Keeps the first of equals.
fn once<T: PartialEq>(items: &mut Vec<T>) {
    let mut seen: Vec<T> = Vec::new();
    for item in items.drain(..) {
        if !seen.contains(&item) {
            seen.push(item);
        }
    }
    *items = seen;
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
    if let Some(seen) = reader.word(section, "log", &[]) {
        cloud.log = match seen.value.as_str() {
            "warning" => CloudLog::Warning,
            "info" => CloudLog::Info,
            _ => CloudLog::Off,
        };
        if cloud.log != CloudLog::Off && cloud.base.is_empty() {
            reader.warn(&seen.at, &seen.path, "has no effect without cloud.base: there is no topic for it".into());
        }
    }
    session(reader, section, config);
    names
}

fn servers(reader: &mut Reader, section: &Section<'_>) -> Vec<Server> {
    if !section.names().contains(&"servers") {
        let message = format!("is missing; {SERVERS_EXAMPLE}");
        reader.wrong(&section.at, "cloud.servers", message);
    }
    let Some(list) = reader.list(section, "servers", "[\"mqtts://broker.example.com:8883\"]") else {
        return Vec::new();
    };
    if list.value.is_empty() {
        reader.wrong(&list.at, &list.path, format!("is empty; {SERVERS_EXAMPLE}"));
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
    if let Some(seen) = reader.bool(section, "manage_routes") {
        settings.manage_routes = seen.value;
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
        let text = "[class.bulk]\n[[publish]]\ntopic = \"a\"\n[[subscribe]]\ntopic = \"a\"\n[uplink.eth0]\n";
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
