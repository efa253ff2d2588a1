//! The configuration: TOML in, values that cannot be wrong out. It is long, because every section's values stand in one place.
//!
//! What stands here has been checked: every duration is in its range, every name is a name, `{hostname}` and
//! `{machine-id}` are expanded. Adapters take the part they need and read nothing else.
//!
//! Below: `tree` reads the files, `schema` lists the keys, `reader` takes typed values, `check`, `lanes`, `local` and `uplinks` fill the structs,
//! `show` writes them out again, `forecast` says what they mean. Every mistake is told at once, each with file, line, key
//! and what to write instead.

mod check;
mod forecast;
mod lanes;
mod local;
mod nearest;
mod reader;
mod rules;
mod schema;
mod show;
mod text;
mod tree;
mod uplinks;

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use switchback_control::{Class, Lane, Name, Settings};

pub use forecast::{BROWN_OUT, Cost, HANDSHAKE, HANDSHAKE_FULL, PING, WorstCase, costs, round_trips, worst_cases};
pub use lanes::{MessageClass, overflow_word, uplinks_text};
pub use nearest::nearest;
pub use show::{show, standby_word};
pub use text::{duration as parse_duration, duration_text, matches as pattern_matches, size_text};

/// Every key (`*` for the name of an uplink or a class) and its range as text: for the test of the shipped file.
pub fn keys() -> impl Iterator<Item = (&'static str, Option<String>)> {
    schema::KEYS.iter().map(|key| (key.path, key.kind.range()))
}

/// Where the configuration is, unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/switchback/switchback.toml";

/// How messages begin and end that ask for a first configuration.
const NO_FILE: &str = "no configuration at ";
const SERVERS_EXAMPLE: &str = "write under [cloud]: servers = [\"mqtts://broker.example.com:8883\"]";

/// The shipped file: every key with its default, unit, range and why.
pub const SHIPPED: &str = include_str!("../config/switchback.toml");

/// `cloud.linger`, where mode on-demand does not say.
const LINGER: Duration = Duration::from_secs(60);

/// `outbox.max_size`, unless told otherwise: bytes.
const OUTBOX_MAX_SIZE: u64 = 256 << 20;

/// `outbox.commit_interval`, where durability batch does not say.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What the heart is told.
    pub settings: Settings,
    pub cloud: Cloud,
    /// Sockets and match rules by class, in the order of `Class::ALL`.
    pub classes: [UplinkConfig; 3],
    /// The same for single interfaces, whole: the class's values with the interface's own laid over them.
    pub named: Vec<(Name, UplinkConfig)>,
    pub outbox: OutboxConfig,
    /// The classes of messages, built-in ones first.
    pub message_classes: Vec<MessageClass>,
    /// The queues of the outbox, as in `settings.lanes`; the first is class `normal` over any uplink.
    pub lanes: Vec<LaneConfig>,
    pub publish: Vec<PublishRule>,
    pub subscribe: Vec<SubscribeRule>,
    pub local: LocalConfig,
    /// `status.listen`; `None` turns the page off.
    pub status_listen: Option<SocketAddr>,
    /// A short stable digest of the effective values, for the hello message.
    pub hash: String,
}

/// `cloud.log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloudLog {
    Off,
    /// What somebody should look at, and worse.
    Warning,
    /// Every sentence of the journal.
    Info,
}

/// `[cloud]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cloud {
    /// Walked in order; empty only where nothing is configured yet.
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
    /// Which of our log's sentences go to `{base}/log`.
    pub log: CloudLog,
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
    /// How fast applications' messages may go out (R-TX-11).
    pub rate: Rate,
    pub socket: SocketOptions,
}

/// `uplink.X.max_rate` and `max_messages`: what is faster waits, and nothing is dropped. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Bytes a second, MQTT's own included.
    pub bytes: Option<u64>,
    /// Messages a second.
    pub messages: Option<u64>,
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

/// One lane of the outbox, beside its `LaneRules`: a class, on certain uplinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneConfig {
    /// Its class's name.
    pub class: String,
    /// Its directory below the state directory: tells class and uplinks, so that no change of the configuration strands
    /// what waits there. Empty for a lane that lives in memory.
    pub directory: String,
    /// Bytes on disk.
    pub max_size: u64,
    /// How old a message may get (R-SF-6); `None` keeps it.
    pub max_age: Option<Duration>,
}

/// `[[publish]]`: first match wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishRule {
    /// Local topic filter.
    pub topic: String,
    /// 0 to 2.
    pub qos: u8,
    /// Cloud topic with `{topic}` left in; the rest is expanded.
    pub to: String,
    /// Its class, on its uplinks.
    pub lane: Lane,
    /// How old a message may get; `None` keeps it.
    pub max_age: Option<Duration>,
    /// `offline = "refuse"`: nothing is taken while no session is open.
    pub online_only: bool,
    /// `answer = "cloud"`: the application is answered when the cloud has the message, and not before (R-TX-3, suspend).
    pub await_cloud: bool,
}

impl Default for PublishRule {
    /// What holds without any rule.
    fn default() -> PublishRule {
        PublishRule {
            topic: "#".into(),
            qos: 1,
            to: "{topic}".into(),
            lane: Lane(0),
            max_age: None,
            online_only: false,
            await_cloud: false,
        }
    }
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
    /// Users and hashes, as mosquitto_passwd writes them; `None` lets everybody in.
    pub password_file: Option<PathBuf>,
    /// Rules for topics, as in mosquitto; `None` allows all.
    pub acl_file: Option<PathBuf>,
    /// A broker on this machine that serves the applications in place of our listener.
    pub broker: Option<LocalBroker>,
}

/// `local.broker` and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalBroker {
    /// On a loopback address or a name of one; never TLS.
    pub server: Server,
    /// Default: none, for a broker that lets everybody in.
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
}

/// Why a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub file: PathBuf,
    /// From 1; `None` when the file as a whole is meant.
    pub line: Option<u32>,
    /// The whole key, `cloud.servers`; empty when no key is meant.
    pub key: String,
    /// One sentence for people, with the key and what to do.
    pub message: String,
    /// The nearest right key, where the key is unknown.
    pub nearest: Option<String>,
}

/// What is allowed and probably not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    pub file: PathBuf,
    pub line: Option<u32>,
    pub key: String,
    pub message: String,
}

/// What `{hostname}` and `{machine-id}` stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    pub hostname: Option<String>,
    pub machine_id: Option<String>,
}

impl Config {
    /// Reads `path` and `conf.d/*.toml` beside it (name order, later wins key by key).
    ///
    /// # Errors
    /// Everything that is wrong, in the order of files and lines.
    pub fn load(path: &Path) -> Result<(Config, Vec<Warning>), Vec<ConfigError>> {
        Config::load_as(path, &Host::read())
    }

    /// `load`, on a machine of this name.
    ///
    /// # Errors
    /// As `load`.
    pub fn load_as(path: &Path, host: &Host) -> Result<(Config, Vec<Warning>), Vec<ConfigError>> {
        let (config, warnings, errors) = examine(path, host);
        if errors.is_empty() { Ok((config, warnings)) } else { Err(errors) }
    }

    /// What is right in files that `load` refuses (R-CF-4), and the built-in values for the rest. `cloud.servers` may be
    /// empty.
    pub fn salvage(path: &Path) -> Config {
        examine(path, &Host::read()).0
    }

    /// The built-in values, on this machine. There is no default server: `cloud.servers` is empty.
    pub fn defaults() -> Config {
        let at = tree::At { file: std::sync::Arc::from(Path::new(DEFAULT_PATH)), line: None };
        check::check(&tree::Table::new(), at, &Host::read()).0
    }

    /// What the adapters need to know of an interface.
    pub fn uplink(&self, name: Name, class: Class) -> &UplinkConfig {
        let by_class = match class {
            Class::Ethernet => &self.classes[0],
            Class::Wifi => &self.classes[1],
            Class::Cell => &self.classes[2],
        };
        self.named.iter().find(|(n, _)| *n == name).map_or(by_class, |(_, uplink)| uplink)
    }

    /// The defaults before anything is read; the client identifier is a stand-in that `check` replaces.
    fn builtin() -> Config {
        let mut settings = Settings::default();
        let laid = lanes::builtin(OUTBOX_MAX_SIZE);
        settings.lanes = laid.rules;
        Config {
            cloud: Cloud {
                servers: Vec::new(),
                client_id: "switchback".into(),
                ca_file: None,
                cert_file: None,
                key_file: None,
                username: None,
                password_file: None,
                base: String::new(),
                log: CloudLog::Off,
                session_expiry: Duration::from_secs(86_400),
                will_delay: settings.grace,
            },
            classes: Class::ALL.map(|class| UplinkConfig {
                matches: Vec::new(),
                rate: Rate::default(),
                socket: SocketOptions::of(class, switchback_control::Uplink::of(class).keep_alive),
            }),
            settings,
            named: Vec::new(),
            outbox: OutboxConfig { max_size: OUTBOX_MAX_SIZE, commit_interval: None },
            message_classes: laid.classes,
            lanes: laid.lanes,
            publish: Vec::new(),
            subscribe: Vec::new(),
            local: LocalConfig {
                mqtt: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 1883))),
                password_file: None,
                acl_file: None,
                broker: None,
            },
            status_listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 8730))),
            hash: String::new(),
        }
    }
}

fn examine(path: &Path, host: &Host) -> (Config, Vec<Warning>, Vec<ConfigError>) {
    let (table, at, unread) = tree::read(path);
    let (config, reader) = check::check(&table, at, host);
    // Of files that could not be read, what they lack is not known.
    (config, reader.warnings, if unread.is_empty() { reader.errors } else { unread })
}

impl SocketOptions {
    /// The defaults (R-LV-1). On cell the kernel's keepalive waits until MQTT's own would have spoken, so that the
    /// two together do not cost more than one.
    pub fn of(class: Class, keep_alive: Duration) -> SocketOptions {
        let (idle, interval) = match class {
            Class::Ethernet | Class::Wifi => (Duration::from_secs(55), Duration::from_secs(17)),
            Class::Cell => (keep_alive + Duration::from_secs(20), Duration::from_secs(20)),
        };
        SocketOptions {
            keepalive_idle: idle,
            keepalive_interval: interval,
            keepalive_count: 3,
            user_timeout: idle + interval * 3,
            send_buffer: None,
        }
    }
}

impl Host {
    /// This machine.
    pub fn read() -> Host {
        let line = |path: &str| {
            let text = fs::read_to_string(path).ok()?;
            let text = text.trim();
            (!text.is_empty()).then(|| text.to_string())
        };
        Host {
            hostname: line("/proc/sys/kernel/hostname"),
            machine_id: line("/etc/machine-id").or_else(|| line("/var/lib/dbus/machine-id")),
        }
    }
}

impl ConfigError {
    fn at(at: &tree::At, key: &str, message: String) -> ConfigError {
        ConfigError { file: at.file.to_path_buf(), line: at.line, key: key.into(), message, nearest: None }
    }

    fn unknown(at: &tree::At, key: &str, nearest: Option<String>) -> ConfigError {
        let hint = nearest.as_ref().map(|near| format!("; did you mean \"{near}\"?")).unwrap_or_default();
        ConfigError { nearest, ..ConfigError::at(at, key, format!("unknown key \"{key}\"{hint}")) }
    }

    /// Nothing is written down yet, rather than something wrong.
    pub fn is_nothing_yet(&self) -> bool {
        self.message.starts_with(NO_FILE) || self.message.ends_with(SERVERS_EXAMPLE)
    }

    fn missing_file(file: &Path) -> ConfigError {
        let message = format!(
            "{NO_FILE}{}: write one (`switchback config default` prints every key; cloud.servers is enough), \
             or name another with --config FILE",
            file.display()
        );
        ConfigError { file: file.into(), line: None, key: String::new(), message, nearest: None }
    }
}

impl Warning {
    fn at(at: &tree::At, key: &str, message: String) -> Warning {
        Warning { file: at.file.to_path_buf(), line: at.line, key: key.into(), message }
    }
}

impl fmt::Display for Server {
    /// As in `cloud.servers`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]:{}", self.host, self.port),
            false => write!(f, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

fn located(f: &mut fmt::Formatter<'_>, file: &Path, line: Option<u32>, message: &str) -> fmt::Result {
    match line {
        Some(line) => write!(f, "{}:{line}: {message}", file.display()),
        None if message.starts_with(NO_FILE) => f.write_str(message),
        None => write!(f, "{}: {message}", file.display()),
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        located(f, &self.file, self.line, &self.message)
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        located(f, &self.file, self.line, &self.message)
    }
}
