//! The effective values as TOML again.
//!
//! What is written reads back as the same configuration. Secrets appear only as the names of their files.

use std::fmt::Write;
use std::time::Duration;

use switchback_control::{Carriers, Class, Failback, Mode, Standby, Start, Uplink};

use super::text::{duration_text, size_text};
use super::{CloudLog, Config, LocalBroker, Match, MessageClass, UplinkConfig, overflow_word, uplinks_text};

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
    let log = match cloud.log {
        CloudLog::Off => "off",
        CloudLog::Warning => "warning",
        CloudLog::Info => "info",
    };
    writeln!(out, "log = \"{log}\"")?;
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
    writeln!(out, "standby = \"{}\"", standby_word(uplink.standby))?;
    writeln!(out, "warm_renew = {}", time(uplink.warm_renew))?;
    writeln!(out, "connect_timeout = {}", time(uplink.connect_timeout))?;
    writeln!(out, "keep_alive = {}", time(uplink.keep_alive))?;
    writeln!(out, "ping_after = {}", uplink.ping_after.map_or("\"off\"".into(), time))?;
    let [first, second] = uplink.ping_limits;
    writeln!(out, "ping_limits = [{}, {}]", time(first), time(second))?;

    match adapter.rate.bytes {
        Some(bytes) => writeln!(out, "max_rate = \"{}\"", size_text(bytes))?,
        None => writeln!(out, "# max_rate: no limit")?,
    }
    match adapter.rate.messages {
        Some(messages) => writeln!(out, "max_messages = {messages}")?,
        None => writeln!(out, "# max_messages: no limit")?,
    }
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

/// As it is written in `uplink.*.standby`.
pub fn standby_word(standby: Standby) -> &'static str {
    match standby {
        Standby::Off => "off",
        Standby::Up => "up",
        Standby::Warm => "warm",
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

    config.message_classes.iter().try_for_each(|class| message_class(out, class))?;
    if config.publish.is_empty() {
        writeln!(out, "\n# no [[publish]]: every local topic goes up unchanged, QoS 1")?;
    }
    for rule in &config.publish {
        writeln!(out, "\n[[publish]]\ntopic = {}\nqos = {}", quoted(&rule.topic), rule.qos)?;
        writeln!(out, "to = {}", quoted(&rule.to))?;
        let lane = usize::from(rule.lane.0);
        if let (Some(lane), Some(rules)) = (config.lanes.get(lane), config.settings.lanes.get(lane)) {
            writeln!(out, "class = {}\nuplinks = {}", quoted(&lane.class), carriers(&rules.carriers))?;
        }
        if let Some(age) = rule.max_age {
            writeln!(out, "max_age = {}", time(age))?;
        }
        writeln!(out, "offline = \"{}\"", if rule.online_only { "refuse" } else { "keep" })?;
        writeln!(out, "answer = \"{}\"", if rule.await_cloud { "cloud" } else { "kept" })?;
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
    let files = [("password_file", &config.local.password_file), ("acl_file", &config.local.acl_file)];
    for (key, file) in files {
        if let Some(file) = file {
            writeln!(out, "{key} = {}", quoted(&file.to_string_lossy()))?;
        }
    }
    if let Some(LocalBroker { server, username, password_file }) = &config.local.broker {
        writeln!(out, "broker = \"{server}\"")?;
        if let Some(username) = username {
            writeln!(out, "broker_username = {}", quoted(username))?;
        }
        if let Some(file) = password_file {
            writeln!(out, "broker_password_file = {}", quoted(&file.to_string_lossy()))?;
        }
    }
    writeln!(out, "\n[status]\nlisten = \"{}\"", address(config.status_listen))
}

fn message_class(out: &mut String, class: &MessageClass) -> std::fmt::Result {
    writeln!(out, "\n[class.{}]", class.name)?;
    writeln!(out, "priority = {}\nmax_size = \"{}\"", class.priority, size_text(class.max_size))?;
    match class.max_messages {
        u64::MAX => writeln!(out, "# max_messages: no limit")?,
        messages => writeln!(out, "max_messages = {messages}")?,
    }
    writeln!(out, "overflow = \"{}\"\nuplinks = {}", overflow_word(class.overflow), carriers(&class.carriers))?;
    match class.max_age {
        Some(age) => writeln!(out, "max_age = {}", time(age))?,
        None => writeln!(out, "# max_age: kept until the cloud has it")?,
    }
    match class.memory {
        true => writeln!(out, "durability = \"memory\"  # lost when the daemon ends"),
        false => writeln!(out, "durability = \"disk\""),
    }
}

fn carriers(carriers: &Carriers) -> String {
    match carriers {
        Carriers::Named(names) => list(&names.iter().map(ToString::to_string).collect::<Vec<_>>()),
        Carriers::Any | Carriers::Unmetered => quoted(&uplinks_text(carriers)),
    }
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
