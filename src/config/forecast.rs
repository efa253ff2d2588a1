//! What the settings mean before anything is measured: seconds until a loss is seen and traffic has moved, and the bytes
//! and handshakes that readiness costs (R-CF-2).
//!
//! Computed from settings and from the heart's own bounds.

use std::time::Duration;

use switchback_control::bounds::{
    Budget, METERED_RACES, METERED_RESCUES, PROOFS, RTO_FIRST, SUSPECT_MARGIN, speaks_after,
};
use switchback_control::{Class, Standby, Uplink};

use super::{Config, UplinkConfig};

/// A path that works, and loses too much to be of use, is left within this: stalls are counted over a quarter of a
/// minute, and another path takes a few seconds to prove itself.
pub const BROWN_OUT: Duration = Duration::from_secs(30);

/// What is meant by a month.
pub const MONTH: Duration = Duration::from_secs(30 * 86_400);
/// Bytes on the wire of one MQTT ping with its answer, and of one TCP keepalive (measured: IPv4, TLS 1.3).
pub const PING: u64 = 204;
pub const KEEPALIVE: u64 = 104;
/// Bytes on the wire of connecting with TLS and a client certificate, resumed and in full (measured); less without.
pub const HANDSHAKE: u64 = 3_000;
pub const HANDSHAKE_FULL: u64 = 5_000;

/// How long a loss can go unseen on one uplink, and how long until the session lives on another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorstCase {
    /// A class or the name of an interface.
    pub uplink: String,
    /// Decides how fast it takes over from another, see `round_trips`.
    pub standby: Standby,
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
    let others =
        |class| Class::ALL.iter().zip(&config.settings.classes).filter(move |(other, _)| Some(**other) != class);
    let next = |class, uplink: &Uplink| {
        others(class).map(|(_, other)| other.connect_timeout).max().unwrap_or(uplink.connect_timeout)
    };
    uplinks(config)
        .map(|(name, class, uplink, adapter)| worst_case(name, uplink, adapter, next(class, uplink)))
        .collect()
}

/// Every class and every named interface; the latter without a class.
fn uplinks(config: &Config) -> impl Iterator<Item = (String, Option<Class>, &Uplink, &UplinkConfig)> {
    let classes = Class::ALL.iter().zip(&config.settings.classes).zip(&config.classes);
    let classes = classes.map(|((class, uplink), adapter)| (class.to_string(), Some(*class), uplink, adapter));
    let named = config.settings.named.iter().zip(&config.named);
    classes.chain(named.map(|((name, uplink), (_, adapter))| (name.to_string(), None, uplink, adapter)))
}

fn worst_case(uplink_name: String, uplink: &Uplink, adapter: &UplinkConfig, next: Duration) -> WorstCase {
    let asked = ping_period(uplink);
    let suspected = asked + RTO_FIRST + SUSPECT_MARGIN;
    WorstCase {
        uplink: uplink_name,
        standby: uplink.standby,
        carrier_detected: Duration::ZERO,
        silence_suspected: suspected,
        silence_detected: asked + uplink.ping_limits.iter().sum::<Duration>(),
        send_limit: adapter.socket.user_timeout,
        carrier_failover: next,
        silence_failover: suspected + next,
    }
}

/// How long an idle session waits before it asks for a sign of life.
fn ping_period(uplink: &Uplink) -> Duration {
    let by_keep_alive = speaks_after(uplink.keep_alive);
    uplink.ping_after.map_or(by_keep_alive, |after| after.min(by_keep_alive))
}

/// Round trips from the decision to the first message at the cloud over an uplink kept like this; none where it must be
/// activated first.
pub fn round_trips(standby: Standby) -> Option<f64> {
    match standby {
        Standby::Off => None,
        Standby::Up => Some(2.5),
        Standby::Warm => Some(0.5),
    }
}

/// What it costs in a month to be ready on one uplink. While it carries nothing and all is well, `off` and `up` cost
/// nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    /// A class or the name of an interface.
    pub uplink: String,
    /// As configured.
    pub standby: Standby,
    /// `None` where NetworkManager is asked.
    pub metered: Option<bool>,
    /// Bytes of an idle session on it: pings, and keepalives of the kernel between them.
    pub session: u64,
    /// Standby `up`: bytes of a return to it, and at most in a month of suspicion without end; unbounded where bytes
    /// cost nothing.
    pub up_return: u64,
    pub up_most: Option<u64>,
    /// Standby `warm`: bytes where the server resumes TLS sessions, and where it does not.
    pub warm: u64,
    pub warm_full: u64,
    /// Standby `warm`: handshakes a second at the server, of all gateways together.
    pub warm_handshakes: f64,
}

/// The costs of every class and every named interface.
pub fn costs(config: &Config) -> Vec<Cost> {
    let fleet = f64::from(config.settings.fleet_size);
    let cost = |(name, _, uplink, adapter): (String, Option<Class>, &Uplink, &UplinkConfig)| {
        let idle = adapter.socket.keepalive_idle;
        let most = |budget: Budget| u64::from(budget.at_once) + times(budget.every);
        let rescues = most(METERED_RESCUES) + most(METERED_RACES);
        Cost {
            uplink: name,
            standby: uplink.standby,
            metered: uplink.metered,
            session: session(ping_period(uplink), idle),
            up_return: u64::from(PROOFS) * HANDSHAKE,
            up_most: (uplink.metered == Some(true)).then_some(rescues * HANDSHAKE),
            warm: warm(uplink.warm_renew, idle, HANDSHAKE),
            warm_full: warm(uplink.warm_renew, idle, HANDSHAKE_FULL),
            warm_handshakes: fleet / uplink.warm_renew.as_secs_f64(),
        }
    };
    uplinks(config).map(cost).collect()
}

fn session(period: Duration, keepalive_idle: Duration) -> u64 {
    times(period) * (PING + KEEPALIVE * keepalives(period, keepalive_idle))
}

/// Bytes a month of a connection that waits, renewed at this age, each for so many bytes.
pub fn warm(renew: Duration, keepalive_idle: Duration, handshake: u64) -> u64 {
    times(renew) * (handshake + KEEPALIVE * keepalives(renew, keepalive_idle))
}

/// How often a connection that says nothing for so long is asked by the kernel.
fn keepalives(silent: Duration, idle: Duration) -> u64 {
    (silent.as_millis().saturating_sub(1) / idle.as_millis().max(1)) as u64
}

/// How often in a month.
fn times(every: Duration) -> u64 {
    (MONTH.as_millis() / every.as_millis().max(1)) as u64
}
