//! Every key there is, with its kind and range: the one list that the reader, the search for the nearest key and the
//! test of the shipped file share.
//!
//! `*` in a path stands for the name of an uplink or a class of messages. `publish` and `subscribe` are lists of sections. A key that is
//! not here is an error for the user, and a key that is here but never read fails a test.

use std::time::Duration;

use super::nearest::distance;
use super::text::{duration_text, size_text};

/// One key.
#[derive(Debug)]
pub struct Key {
    pub path: &'static str,
    pub kind: Kind,
}

/// What a key takes, with both ends of its range included.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Text,
    /// A whole path to a file that exists.
    File,
    Integer {
        min: i64,
        max: i64,
    },
    /// Milliseconds; `whole` when the protocol or the kernel counts seconds. `word` is taken in place of a duration.
    Duration {
        min: u64,
        max: u64,
        whole: bool,
        word: Option<&'static str>,
    },
    /// Two durations.
    Pair {
        min: u64,
        max: u64,
    },
    /// Bytes.
    Size {
        min: u64,
        max: u64,
    },
    Word(&'static [&'static str]),
    /// `true` or `false`.
    Bool,
    /// `true`, `false` or `"auto"`.
    Flag,
    List,
    /// `address:port`, or empty for none.
    Address,
    /// `"any"`, `"unmetered"` or a list of names.
    Carriers,
}

const MS: u64 = 1;
const S: u64 = 1000;
const MIN: u64 = 60 * S;
const H: u64 = 60 * MIN;
const D: u64 = 24 * H;

const fn key(path: &'static str, kind: Kind) -> Key {
    Key { path, kind }
}

const fn time(min: u64, max: u64) -> Kind {
    Kind::Duration { min, max, whole: false, word: None }
}

const fn seconds(min: u64, max: u64) -> Kind {
    Kind::Duration { min, max, whole: true, word: None }
}

const fn time_or(word: &'static str, min: u64, max: u64) -> Kind {
    Kind::Duration { min, max, whole: false, word: Some(word) }
}

/// MQTT counts the expiry of a message in 32 bits of seconds; a year is plenty.
const AGE: Kind = seconds(S, 365 * D);

/// Every key, in the order of the shipped file.
pub const KEYS: &[Key] = &[
    key("cloud.servers", Kind::List),
    key("cloud.client_id", Kind::Text),
    key("cloud.ca_file", Kind::File),
    key("cloud.cert_file", Kind::File),
    key("cloud.key_file", Kind::File),
    key("cloud.username", Kind::Text),
    key("cloud.password_file", Kind::File),
    key("cloud.base", Kind::Text),
    key("cloud.log", Kind::Word(&["off", "warning", "info"])),
    key("cloud.fleet_size", Kind::Integer { min: 1, max: 10_000_000 }),
    key("cloud.start", Kind::Word(&["connect", "disconnected", "idle"])),
    key("cloud.mode", Kind::Word(&["auto", "on-demand", "manual"])),
    key("cloud.linger", time(S, D)),
    key("cloud.grace", seconds(S, H)),
    // MQTT counts the session expiry in 32 bits of seconds; a year is plenty.
    key("cloud.session_expiry", seconds(MIN, 365 * D)),
    key("failover.order", Kind::List),
    key("failover.failback", Kind::Word(&["auto", "manual", "never"])),
    key("failover.hold_down", time(0, H)),
    key("failover.manage_routes", Kind::Bool),
    key("uplink.*.match", Kind::List),
    key("uplink.*.metered", Kind::Flag),
    key("uplink.*.standby", Kind::Word(&["off", "up", "warm"])),
    // Shorter is a storm at the broker; longer outlives what most networks on the way remember.
    key("uplink.*.warm_renew", time(5 * S, 5 * MIN)),
    key("uplink.*.connect_timeout", time(5 * S, H)),
    // MQTT counts the keep alive in 16 bits of seconds, but no path stays open that long.
    key("uplink.*.keep_alive", seconds(5 * S, 2 * H)),
    key("uplink.*.ping_after", time_or("off", S, 2 * H)),
    key("uplink.*.ping_limits", Kind::Pair { min: S, max: 10 * MIN }),
    // Below a kilobyte a second not even one large message would ever be through.
    key("uplink.*.max_rate", Kind::Size { min: 1 << 10, max: 1 << 30 }),
    key("uplink.*.max_messages", Kind::Integer { min: 1, max: 1_000_000 }),
    // The kernel's own limits: MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL, MAX_TCP_KEEPCNT.
    key("uplink.*.socket.keepalive_idle", seconds(S, 32_767 * S)),
    key("uplink.*.socket.keepalive_interval", seconds(S, 32_767 * S)),
    key("uplink.*.socket.keepalive_count", Kind::Integer { min: 1, max: 127 }),
    key("uplink.*.socket.user_timeout", time_or("auto", S, 24 * H)),
    // The kernel caps it at net.core.wmem_max and doubles it for its own bookkeeping.
    key("uplink.*.socket.send_buffer", Kind::Size { min: 4 << 10, max: 16 << 20 }),
    key("outbox.max_size", Kind::Size { min: 4 << 20, max: 64 << 30 }),
    key("outbox.durability", Kind::Word(&["every", "batch"])),
    key("outbox.commit_interval", time(10 * MS, MIN)),
    key("outbox.late", time_or("auto", 10 * MS, MIN)),
    key("outbox.window", Kind::Integer { min: 1, max: 1024 }),
    key("class.*.priority", Kind::Integer { min: 0, max: 9 }),
    // The store's segments are a sixteenth of it, and at least 4 KiB.
    key("class.*.max_size", Kind::Size { min: 64 << 10, max: 64 << 30 }),
    key("class.*.max_messages", Kind::Integer { min: 1, max: 1_000_000_000 }),
    key("class.*.overflow", Kind::Word(&["drop-oldest", "drop-newest", "refuse"])),
    key("class.*.uplinks", Kind::Carriers),
    key("class.*.max_age", AGE),
    key("class.*.durability", Kind::Word(&["disk", "memory"])),
    key("publish.topic", Kind::Text),
    key("publish.class", Kind::Text),
    key("publish.qos", Kind::Integer { min: 0, max: 2 }),
    key("publish.to", Kind::Text),
    key("publish.uplinks", Kind::Carriers),
    key("publish.max_age", AGE),
    key("publish.offline", Kind::Word(&["keep", "refuse"])),
    key("publish.answer", Kind::Word(&["kept", "cloud"])),
    key("subscribe.topic", Kind::Text),
    key("subscribe.to", Kind::Text),
    key("subscribe.qos", Kind::Integer { min: 0, max: 2 }),
    key("local.mqtt", Kind::Address),
    key("local.password_file", Kind::File),
    key("local.acl_file", Kind::File),
    key("local.broker", Kind::Text),
    key("local.broker_username", Kind::Text),
    key("local.broker_password_file", Kind::File),
    key("status.listen", Kind::Address),
];

impl Kind {
    /// The range as text, where there is one.
    pub fn range(self) -> Option<String> {
        let time = |min, max| {
            format!("{} to {}", duration_text(Duration::from_millis(min)), duration_text(Duration::from_millis(max)))
        };
        match self {
            Kind::Integer { min, max } => Some(format!("{min} to {max}")),
            Kind::Duration { min, max, word: None, .. } | Kind::Pair { min, max } => Some(time(min, max)),
            Kind::Duration { min, max, word: Some(word), .. } => Some(format!("{} or \"{word}\"", time(min, max))),
            Kind::Size { min, max } => Some(format!("{} to {}", size_text(min), size_text(max))),
            Kind::Word(words) => Some(words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")),
            Kind::Bool => Some("true, false".into()),
            Kind::Carriers => Some("\"any\", \"unmetered\"".into()),
            Kind::Flag => Some("true, false, \"auto\"".into()),
            Kind::Text | Kind::File | Kind::List | Kind::Address => None,
        }
    }
}

/// The key with this path, `*` for the uplink's name.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// What stands directly below a section (`""` for the top): names of keys and of further sections.
pub fn children(section: &str) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = KEYS
        .iter()
        .filter_map(|key| match section {
            "" => Some(key.path),
            _ => key.path.strip_prefix(section)?.strip_prefix('.'),
        })
        .filter_map(|rest| rest.split('.').next())
        .collect();
    names.dedup();
    names
}

/// The whole path nearest to an unknown one: in the same section first, then any key of the same name elsewhere.
pub fn nearest(section: &str, shown: &str, name: &str) -> Option<String> {
    let join = |name: &str| if shown.is_empty() { name.to_string() } else { format!("{shown}.{name}") };
    let here = children(section).into_iter().filter(|child| *child != "*");
    if let Some(child) = super::nearest::nearest(name, here) {
        return Some(join(child));
    }
    let last = |key: &Key| key.path.rsplit('.').next().unwrap_or("");
    let limit = name.chars().count() / 4;
    KEYS.iter()
        .map(|key| (distance(name, last(key)), key.path))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, path)| path.replace('*', "NAME"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_knows_its_children() {
        assert_eq!(
            children(""),
            ["cloud", "failover", "uplink", "outbox", "class", "publish", "subscribe", "local", "status"]
        );
        assert_eq!(children("uplink"), ["*"]);
        assert!(children("uplink.*").contains(&"socket"));
    }

    #[test]
    fn the_nearest_key_is_looked_for_here_then_elsewhere() {
        assert_eq!(nearest("cloud", "cloud", "severs"), Some("cloud.servers".into()));
        assert_eq!(nearest("", "", "clod"), Some("cloud".into()));
        assert_eq!(nearest("uplink.*", "uplink.cell", "keepalive"), Some("uplink.cell.keep_alive".into()));
        assert_eq!(nearest("", "", "servers"), Some("cloud.servers".into()));
        assert_eq!(nearest("cloud", "cloud", "keepalive"), Some("uplink.NAME.keep_alive".into()));
        assert_eq!(nearest("cloud", "cloud", "zzzzzz"), None);
    }
}
