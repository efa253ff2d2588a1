//! The configuration: TOML in, values that cannot be wrong out.
//!
//! What stands here has been checked: every duration is in its range, every name is a name, `{hostname}` and
//! `{machine-id}` are expanded. Adapters take the part they need and read nothing else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use switchback_control::{Class, Name, Settings};

/// Everything.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the heart is told.
    pub settings: Settings,
    pub cloud: Cloud,
    /// Sockets and match rules by class, in the order of `Class::ALL`.
    pub classes: [UplinkConfig; 3],
    /// The same for single interfaces, whole: the class's values with the interface's own laid over them.
    pub named: Vec<(Name, UplinkConfig)>,
    pub outbox: OutboxConfig,
    pub publish: Vec<PublishRule>,
    pub subscribe: Vec<SubscribeRule>,
    pub local: LocalConfig,
    /// `status.listen`; `None` turns the page off.
    pub status_listen: Option<SocketAddr>,
    /// A short stable digest of the effective values, for the hello message.
    pub hash: String,
}

/// `[cloud]`.
#[derive(Clone, Debug)]
pub struct Cloud {
    /// Walked in order; never empty.
    pub servers: Vec<Server>,
    /// Expanded; 1 to 65,535 bytes.
    pub client_id: String,
    /// Default: the system's roots.
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    /// Where our own messages go, expanded, without a trailing slash; empty for none.
    pub base: String,
    /// MQTT 5 session expiry asked for; longer than the grace.
    pub session_expiry: Duration,
    /// MQTT 5 will delay: the grace (R-LV-9).
    pub will_delay: Duration,
}

/// One item of `cloud.servers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// A name or an address literal, without brackets.
    pub host: String,
    pub port: u16,
    /// `mqtts` rather than `mqtt`.
    pub tls: bool,
}

/// What the adapters need of `[uplink.X]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkConfig {
    /// What else belongs to this class; only for classes.
    pub matches: Vec<Match>,
    pub socket: SocketOptions,
}

/// One `match` rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// A shell pattern (`*`, `?`) against the interface name.
    Name(String),
    /// `driver:PATTERN` against the kernel driver's name.
    Driver(String),
}

/// `[uplink.X.socket]`, see `tcp(7)` and `socket(7)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    pub keepalive_idle: Duration,
    pub keepalive_interval: Duration,
    pub keepalive_count: u32,
    /// `"auto"` is idle + interval × count (R-LV-2).
    pub user_timeout: Duration,
    /// Bytes; `None` leaves the kernel's own.
    pub send_buffer: Option<u32>,
}

/// `[outbox]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxConfig {
    /// Bytes on disk.
    pub max_size: u64,
    /// Sync as soon as needed (`None`), or gather for this long (`durability = "batch"`).
    pub commit_interval: Option<Duration>,
}

/// `[[publish]]`: first match wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishRule {
    /// Local topic filter.
    pub topic: String,
    /// 0 or 1.
    pub qos: u8,
    /// Cloud topic with `{topic}` left in; the rest is expanded.
    pub to: String,
}

/// `[[subscribe]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscribeRule {
    /// Cloud topic filter, expanded.
    pub topic: String,
    /// Local topic with `{rest}` (what the trailing `#` matched) and `{topic}` left in.
    pub to: String,
    pub qos: u8,
}

/// `[local]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalConfig {
    /// `None` turns the TCP listener off.
    pub mqtt: Option<SocketAddr>,
}

impl Config {
    /// What the adapters need to know of an interface.
    pub fn uplink(&self, name: Name, class: Class) -> &UplinkConfig {
        let by_class = match class {
            Class::Ethernet => &self.classes[0],
            Class::Wifi => &self.classes[1],
            Class::Cell => &self.classes[2],
        };
        self.named.iter().find(|(n, _)| *n == name).map_or(by_class, |(_, uplink)| uplink)
    }
}
