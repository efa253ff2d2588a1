//! The effective values as TOML again, and what they mean in seconds.
//!
//! What is written reads back as the same configuration. Secrets appear only as the names of their files. The worst
//! cases are computed from settings alone: nothing is measured.

use std::fmt::Write;
use std::time::Duration;

use switchback_control::{Class, Failback, Mode, Standby, Start, Uplink};

use super::text::{duration_text, size_text};
use super::{Config, Match, UplinkConfig};

/// How long a loss can go unseen on one uplink, and how long until the session lives on another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorstCase {
    /// A class or the name of an interface.
    pub uplink: String,
    /// Cable pulled, signal gone: the kernel says so within milliseconds.
    pub carrier_detected: Duration,
    /// Nothing comes back, and nothing is being sent: suspected, and the next uplink is opened.
    pub silence_suspected: Duration,
    /// The same, given up where no other uplink can take over (R-LV-4).
    pub silence_detected: Duration,
    /// Safety net of the kernel for data that nobody acknowledges (R-LV-2).
    pub send_limit: Duration,
    /// From a lost carrier to a session on the next uplink, if that one needs its whole connect limit.
    pub carrier_failover: Duration,
    /// The same from the first lost byte of a silent loss.
    pub silence_failover: Duration,
}

/// The worst cases of every class and every named interface.
pub fn worst_cases(config: &Config) -> Vec<WorstCase> {
    let classes = Class::ALL.iter().zip(&config.settings.classes).zip(&config.classes);
    let classes = classes.map(|((class, uplink), adapter)| (class.to_string(), Some(*class), uplink, adapter));
    let named = config.settings.named.iter().zip(&config.named);
    let named = named.map(|((name, uplink), (_, adapter))| (name.to_string(), None, uplink, adapter));
    classes
        .chain(named)
        .map(|(name, class, uplink, adapter)| {
            let others = Class::ALL.iter().zip(&config.settings.classes).filter(|(other, _)| Some(**other) != class);
            let next = others.map(|(_, other)| other.connect_timeout).max().unwrap_or(uplink.connect_timeout);
            worst_case(name, uplink, adapter, next)
        })
        .collect()
}

fn worst_case(uplink_name: String, uplink: &Uplink, adapter: &UplinkConfig, next: Duration) -> WorstCase {
    let [first, second] = uplink.ping_limits;
    let suspected = uplink.ping_after.unwrap_or(uplink.keep_alive) + first;
    WorstCase {
        uplink: uplink_name,
        carrier_detected: Duration::ZERO,
        silence_suspected: suspected,
        silence_detected: suspected + second,
        send_limit: adapter.socket.user_timeout,
        carrier_failover: next,
        silence_failover: suspected + next,
    }
}

/// The effective values as TOML.
pub fn show(config: &Config) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut out, config);
    out
}

fn write(out: &mut String, config: &Config) -> std::fmt::Result {
    let (cloud, settings) = (&config.cloud, &config.settings);
    writeln!(out, "[cloud]")?;
    let servers: Vec<String> = cloud.servers.iter().map(ToString::to_string).collect();
    writeln!(out, "servers = {}", list(&servers))?;
    writeln!(out, "client_id = {}", quoted(&cloud.client_id))?;
    let files = [("ca_file", &cloud.ca_file), ("cert_file", &cloud.cert_file), ("key_file", &cloud.key_file)];
    for (key, file) in files.into_iter().chain([("password_file", &cloud.password_file)]) {
        if let Some(file) = file {
            writeln!(out, "{key} = {}", quoted(&file.to_string_lossy()))?;
        }
    }
    if let Some(username) = &cloud.username {
        writeln!(out, "username = {}", quoted(username))?;
    }
    writeln!(out, "base = {}", quoted(&cloud.base))?;
    writeln!(out, "fleet_size = {}", settings.fleet_size)?;
    let start = match settings.start {
        Start::Connect => "connect",
        Start::Disconnected => "disconnected",
        Start::Idle => "idle",
    };
    writeln!(out, "start = \"{start}\"")?;
    let (mode, linger) = match settings.mode {
        Mode::Auto => ("auto", None),
        Mode::OnDemand { linger } => ("on-demand", Some(linger)),
        Mode::Manual => ("manual", None),
    };
    writeln!(out, "mode = \"{mode}\"")?;
    if let Some(linger) = linger {
        writeln!(out, "linger = {}", time(linger))?;
    }
    writeln!(out, "grace = {}", time(settings.grace))?;
    writeln!(out, "session_expiry = {}", time(cloud.session_expiry))?;

    writeln!(out, "\n[failover]")?;
    let order: Vec<String> = settings.order.iter().map(ToString::to_string).collect();
    writeln!(out, "order = {}", list(&order))?;
    let failback = match settings.failback {
        Failback::Auto => "auto",
        Failback::Manual => "manual",
        Failback::Never => "never",
    };
    writeln!(out, "failback = \"{failback}\"")?;
    writeln!(out, "hold_down = {}", time(settings.hold_down))?;
    writeln!(out, "manage_routes = {}", settings.manage_routes)?;

    for ((class, up), adapter) in Class::ALL.iter().zip(&settings.classes).zip(&config.classes) {
        uplink(out, class.as_str(), up, adapter, true)?;
    }
    for ((name, up), (_, adapter)) in settings.named.iter().zip(&config.named) {
        uplink(out, name.as_str(), up, adapter, false)?;
    }
    rest(out, config)
}

fn uplink(out: &mut String, name: &str, uplink: &Uplink, adapter: &UplinkConfig, class: bool) -> std::fmt::Result {
    // Interface names may hold characters that TOML wants quoted.
    let bare = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let name = if bare { name.to_string() } else { quoted(name) };
    writeln!(out, "\n[uplink.{name}]")?;
    if class {
        let pattern = |rule: &Match| match rule {
            Match::Name(pattern) => pattern.clone(),
            Match::Driver(pattern) => format!("driver:{pattern}"),
        };
        writeln!(out, "match = {}", list(&adapter.matches.iter().map(pattern).collect::<Vec<_>>()))?;
    }
    let metered = uplink.metered.map_or("\"auto\"".to_string(), |metered| metered.to_string());
    writeln!(out, "metered = {metered}")?;
    let standby = match uplink.standby {
        Standby::Off => "off",
        Standby::Up => "up",
        Standby::Warm => "warm",
    };
    writeln!(out, "standby = \"{standby}\"")?;
    writeln!(out, "warm_renew = {}", time(uplink.warm_renew))?;
    writeln!(out, "connect_timeout = {}", time(uplink.connect_timeout))?;
    writeln!(out, "keep_alive = {}", time(uplink.keep_alive))?;
    writeln!(out, "ping_after = {}", uplink.ping_after.map_or("\"off\"".into(), time))?;
    let [first, second] = uplink.ping_limits;
    writeln!(out, "ping_limits = [{}, {}]", time(first), time(second))?;

    let socket = &adapter.socket;
    writeln!(out, "[uplink.{name}.socket]")?;
    writeln!(out, "keepalive_idle = {}", time(socket.keepalive_idle))?;
    writeln!(out, "keepalive_interval = {}", time(socket.keepalive_interval))?;
    writeln!(out, "keepalive_count = {}", socket.keepalive_count)?;
    writeln!(out, "user_timeout = {}", time(socket.user_timeout))?;
    match socket.send_buffer {
        Some(bytes) => writeln!(out, "send_buffer = \"{}\"", size_text(bytes.into())),
        None => writeln!(out, "# send_buffer: the kernel's own"),
    }
}

fn rest(out: &mut String, config: &Config) -> std::fmt::Result {
    writeln!(out, "\n[outbox]")?;
    writeln!(out, "max_size = \"{}\"", size_text(config.outbox.max_size))?;
    match config.outbox.commit_interval {
        None => writeln!(out, "durability = \"every\"")?,
        Some(interval) => writeln!(out, "durability = \"batch\"\ncommit_interval = {}", time(interval))?,
    }
    writeln!(out, "late = {}", config.settings.late.map_or("\"auto\"".into(), time))?;
    writeln!(out, "window = {}", config.settings.window)?;

    if config.publish.is_empty() {
        writeln!(out, "\n# no [[publish]]: every local topic goes up unchanged, QoS 1")?;
    }
    for rule in &config.publish {
        writeln!(out, "\n[[publish]]\ntopic = {}\nqos = {}", quoted(&rule.topic), rule.qos)?;
        writeln!(out, "to = {}", quoted(&rule.to))?;
    }
    if config.subscribe.is_empty() {
        writeln!(out, "\n# no [[subscribe]]: nothing comes down")?;
    }
    for rule in &config.subscribe {
        writeln!(out, "\n[[subscribe]]\ntopic = {}\nqos = {}", quoted(&rule.topic), rule.qos)?;
        writeln!(out, "to = {}", quoted(&rule.to))?;
    }
    let address = |address: Option<std::net::SocketAddr>| address.map(|a| a.to_string()).unwrap_or_default();
    writeln!(out, "\n[local]\nmqtt = \"{}\"", address(config.local.mqtt))?;
    writeln!(out, "\n[status]\nlisten = \"{}\"", address(config.status_listen))
}

fn time(duration: Duration) -> String {
    format!("\"{}\"", duration_text(duration))
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_string()).to_string()
}

fn list(items: &[String]) -> String {
    format!("[{}]", items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", "))
}
