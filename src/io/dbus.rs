//! Our own service on the system bus: `org.switchback.Switchback1` (contract, "D-Bus").
//!
//! Properties are the keys of `status --json`, methods are the verbs, signals are what changed and what applications
//! are told. A property is read from the latest status document; the two that grow with time are asked of the loop. A
//! method becomes a `Call` and waits for its reply. Who may call what is the bus's business
//! (`packaging/org.switchback.Switchback1.conf`), so that one file answers for it. Without a bus, or when our name is
//! refused, it says so once and tries again every ten seconds; nothing else ever waits for it.
//! (Long because every property and verb is written out once, with the sentence that introspection shows.)
//!
//! It is long because the interface is spelled out property by property, as it is introspected.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use switchback_control::Notice;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, broadcast, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use zbus::connection::Builder;
use zbus::names::InterfaceName;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, DBusError, Variant, fdo, interface};

use crate::api::{Call, Calls};

pub(crate) mod values;

use values::{Dict, dict, dicts, flag, text, to_dict, to_json};

/// Our name on the bus.
pub const NAME: &str = "org.switchback.Switchback1";
/// The one object.
pub const PATH: &str = "/org/switchback/Switchback1";
const INTERFACE: InterfaceName<'static> = InterfaceName::from_static_str_unchecked("org.switchback.Switchback1");

/// How often a missing bus is looked for.
const RETRY_EVERY: Duration = Duration::from_secs(10);
/// How long the bus may take to greet us; a frozen one counts as missing.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// `PropertiesChanged` at most this often: a bus wakes up every listener for each.
const GATHER: Duration = Duration::from_millis(200);
/// Verbs under way for callers on the bus; one more is told to come back. Keeps a hasty caller from filling the
/// loop's door, which others use too.
const CALLS_OPEN_MAX: usize = 16;
/// How long the loop may take to tell an age; then the older document serves.
const FRESH_LIMIT: Duration = Duration::from_secs(1);

/// The latest status document, as the loop shows it.
type Document = watch::Receiver<Arc<Map<String, Value>>>;

/// Serves the system bus for as long as the loop shows a status. Reaches the bus as every D-Bus program does
/// (`DBUS_SYSTEM_BUS_ADDRESS`).
pub async fn serve(status: Document, notices: broadcast::Receiver<Notice>, calls: Calls) {
    serve_on(None, status, notices, calls).await;
}

/// `serve` on the bus at `address` (D-Bus specification, "Server Addresses"); `None` is the system bus.
pub async fn serve_on(address: Option<&str>, status: Document, notices: broadcast::Receiver<Notice>, calls: Calls) {
    let open = Arc::new(Semaphore::new(CALLS_OPEN_MAX));
    let mut told = false;
    while status.has_changed().is_ok() {
        let service = Service { status: status.clone(), calls: calls.clone(), open: open.clone() };
        let ended = match timeout(CONNECT_LIMIT, connect(address, service)).await {
            Ok(Ok(connection)) => {
                if told {
                    log::info!("D-Bus: {NAME} is on the bus again");
                }
                told = false;
                // What was told while the bus was away is old news.
                announce(&connection, status.clone(), notices.resubscribe()).await
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(zbus::Error::Failure("the bus does not answer".into())),
        };
        let Err(error) = ended else { return };
        if !told {
            told = true;
            log::warn!("D-Bus: {}; trying again every {} s", explain(&error), RETRY_EVERY.as_secs());
        }
        sleep(RETRY_EVERY).await;
    }
}

async fn connect(address: Option<&str>, service: Service) -> zbus::Result<Connection> {
    let builder = match address {
        Some(address) => Builder::address(address),
        None => Builder::system(),
    };
    // The object is there before the name is, and nobody else may take the name from us.
    let builder = builder.serve_at(PATH, service).name(NAME);
    builder.allow_name_replacements(false).replace_existing_names(false).build().await
}

/// One sentence for people, with what to do.
fn explain(error: &zbus::Error) -> String {
    match error {
        zbus::Error::NameTaken => format!("another program owns {NAME}; is a second switchbackd running?"),
        zbus::Error::FDO(error) if matches!(**error, fdo::Error::AccessDenied(_)) => {
            format!("the bus does not let this user own {NAME}; install its policy file in /usr/share/dbus-1/system.d")
        }
        error => format!("no system bus ({error}); switchback works without its D-Bus service"),
    }
}

/// Tells the bus what changes, until the bus goes away (an error) or the daemon stops.
async fn announce(
    connection: &Connection,
    mut status: Document,
    mut notices: broadcast::Receiver<Notice>,
) -> zbus::Result<()> {
    let emitter = SignalEmitter::new(connection, PATH)?;
    let mut seen = status.borrow_and_update().clone();
    let mut sent = seen.clone();
    let mut sent_at: Option<Instant> = None;
    let mut due: Option<Instant> = None;
    loop {
        tokio::select! {
            () = connection.closed() => return Err(zbus::Error::Failure("the bus closed the connection".into())),
            changed = status.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let now = status.borrow_and_update().clone();
                tell_moves(&emitter, &seen, &now).await?;
                seen = now;
                let soonest = sent_at.map_or_else(Instant::now, |at| at + GATHER);
                due.get_or_insert(soonest);
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                due = None;
                let changed = changed(&sent, &seen);
                if !changed.is_empty() {
                    fdo::Properties::properties_changed(&emitter, INTERFACE, changed, (&[][..]).into()).await?;
                    sent_at = Some(Instant::now());
                }
                sent = seen.clone();
            }
            notice = notices.recv() => match notice {
                Ok(Notice::Lost { reason }) => Service::lost(&emitter, reason.as_str()).await?,
                Ok(Notice::Outage { reason }) => Service::outage(&emitter, reason.as_str()).await?,
                Ok(Notice::Restored) => Service::restored(&emitter).await?,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Ok(()),
            },
        }
    }
}

/// `StateChanged` and `UplinkChanged`, at once.
async fn tell_moves(
    emitter: &SignalEmitter<'_>,
    old: &Map<String, Value>,
    new: &Map<String, Value>,
) -> zbus::Result<()> {
    let state = text(new, "state");
    if text(old, "state") != state {
        Service::state_moved(emitter, &state, &reason(new)).await?;
    }
    let uplink = text(new, "uplink");
    if text(old, "uplink") != uplink {
        Service::uplink_moved(emitter, &uplink).await?;
    }
    Ok(())
}

/// Why there is no session: the last reason of the outage that is not over; "" while all is well.
fn reason(document: &Map<String, Value>) -> String {
    let outage = document.get("last_outage").and_then(Value::as_object);
    outage
        .filter(|outage| outage.get("ended").is_none_or(Value::is_null))
        .map_or_else(String::new, |o| text(o, "last_reason"))
}

/// The properties that announce themselves, by key; the ages do not, they change always.
fn changed<'v>(old: &Map<String, Value>, new: &Map<String, Value>) -> HashMap<&'static str, Variant<'v>> {
    let differs = |key: &str| old.get(key) != new.get(key);
    let mut changed = HashMap::new();
    for (key, name) in [
        ("state", "State"),
        ("uplink", "Uplink"),
        ("class", "Class"),
        ("since", "Since"),
        ("inhibited_until", "InhibitedUntil"),
        ("start_reason", "StartReason"),
    ] {
        if differs(key) {
            changed.insert(name, Variant::from(text(new, key)));
        }
    }
    if differs("connected") {
        changed.insert("Connected", Variant::from(flag(new, "connected")));
    }
    for (key, name) in [
        ("session", "Session"),
        ("failover", "Failover"),
        ("outbox", "Outbox"),
        ("last_outage", "LastOutage"),
        ("last_switch", "LastSwitch"),
        ("configuration", "Configuration"),
        ("failback", "Failback"),
    ] {
        if differs(key) {
            changed.insert(name, Variant::from(dict(new, key)));
        }
    }
    for (key, name) in [("uplinks", "Uplinks"), ("switches", "Switches")] {
        if differs(key) {
            changed.insert(name, Variant::from(dicts(new, key)));
        }
    }
    changed
}

/// What stands on the bus.
struct Service {
    status: Document,
    calls: Calls,
    open: Arc<Semaphore>,
}

/// What a method fails with.
#[derive(Debug, DBusError)]
#[zbus(prefix = "org.switchback.Switchback1.Error")]
enum Error {
    /// The thing asked for did not happen.
    Failed(String),
    /// The call itself was wrong.
    Usage(String),
}

impl Service {
    /// Puts a verb to the loop and waits for its answer.
    async fn ask(&self, verb: &str, options: Dict) -> Result<Dict, Error> {
        let options = to_json(&options).map_err(Error::Usage)?;
        let Ok(_permit) = self.open.try_acquire() else {
            return Err(Error::Failed(format!("{CALLS_OPEN_MAX} calls are under way; wait for one to end")));
        };
        let stopping = || Error::Failed("the daemon is stopping".into());
        let (reply, answer) = oneshot::channel();
        let call = Call { verb: verb.into(), options, reply };
        self.calls.send(call).await.map_err(|_| stopping())?;
        match answer.await.map_err(|_| stopping())? {
            Ok(keys) => Ok(to_dict(keys)),
            Err(failure) => {
                let reason = failure.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
                let message = failure.message + &reason;
                Err(if failure.code == 2 { Error::Usage(message) } else { Error::Failed(message) })
            }
        }
    }

    /// A number that grows by itself, fresh from the loop; -1 when absent.
    async fn age(&self, key: &str) -> i64 {
        let asked = timeout(FRESH_LIMIT, self.ask("status", Dict::new())).await;
        match asked {
            Ok(Ok(keys)) => keys.get(key).and_then(|value| i64::try_from(value).ok()).unwrap_or(-1),
            Ok(Err(_)) | Err(_) => self.status.borrow().get(key).and_then(Value::as_i64).unwrap_or(-1),
        }
    }
}

/// Holds the cloud connection of this gateway over whichever uplink works.
///
/// Properties are the keys of `switchback status --json`. Every method takes the options of the command line's verb
/// and returns its JSON keys. What is absent is a missing key, or "" or -1 in a property.
#[interface(name = "org.switchback.Switchback1")]
impl Service {
    /// The whole status; no options.
    async fn status(&self, options: Dict) -> Result<Dict, Error> {
        self.ask("status", options).await
    }

    /// Why this uplink and not another, in sentences; no options.
    async fn explain(&self, options: Dict) -> Result<Dict, Error> {
        self.ask("explain", options).await
    }

    /// The failover list as stored and as walked; no options.
    async fn failover_show(&self, options: Dict) -> Result<Dict, Error> {
        self.ask("failover-show", options).await
    }

    /// Stores another failover list: `list` (as).
    async fn failover_set(&self, options: Dict) -> Result<Dict, Error> {
        self.ask("failover-set", options).await
    }

    /// Forgets the stored list; the configured order holds again.
    async fn failover_clear(&self, options: Dict) -> Result<Dict, Error> {
        self.ask("failover-clear", options).await
    }

    /// Whether and when traffic returns to a better uplink, and what holds it; no options.
    async fn failback_show(&self, options: Dict) -> Result<Dict, Error> {
        self.ask("failback-show", options).await
    }

    /// Goes back to the best uplink that is ready: `timeout` (s).
    async fn failback_now(&self, options: Dict) -> Result<Dict, Error> {
        self.ask("failback-now", options).await
    }

    /// In place of the configuration's word, for a while: `mode` (s: auto or never), `for` (s).
    async fn failback_set(&self, options: Dict) -> Result<Dict, Error> {
        self.ask("failback-set", options).await
    }

    /// No planned move for a while: `for` (s), at most an hour.
    async fn inhibit(&self, options: Dict) -> Result<Dict, Error> {
        self.ask("inhibit", options).await
    }

    /// Connects: `via` (s), `timeout` (s).
    async fn connect(&self, options: Dict) -> Result<Dict, Error> {
        self.ask("connect", options).await
    }

    /// Disconnects and stays so: `force` (b).
    async fn disconnect(&self, options: Dict) -> Result<Dict, Error> {
        self.ask("disconnect", options).await
    }

    /// Closes the session and opens it again.
    async fn reconnect(&self, options: Dict) -> Result<Dict, Error> {
        self.ask("reconnect", options).await
    }

    /// Puts a message into the outbox: `topic` (s), `payload` (s or ay), `class` (s), `qos`, `retain`, `wait` (s: stored,
    /// sent or acked), `timeout` (s).
    async fn publish(&self, options: Dict) -> Result<Dict, Error> {
        self.ask("publish", options).await
    }

    /// Waits until outbox, window and kernel queue are empty: `timeout` (s).
    async fn flush(&self, options: Dict) -> Result<Dict, Error> {
        self.ask("flush", options).await
    }

    /// What waits, class by class, and what the server will never take; no options.
    async fn outbox_show(&self, options: Dict) -> Result<Dict, Error> {
        self.ask("outbox-show", options).await
    }

    /// Gives up what waits: `class` (s: a class, all or rejected).
    async fn outbox_drop(&self, options: Dict) -> Result<Dict, Error> {
        self.ask("outbox-drop", options).await
    }

    /// Forgets what waits, the stored list, or both: `what` (s: outbox, failover or all).
    async fn reset(&self, options: Dict) -> Result<Dict, Error> {
        self.ask("reset", options).await
    }

    /// Lines of the black box: `since` (s), `boot` (b), `limit`.
    async fn events(&self, options: Dict) -> Result<Dict, Error> {
        self.ask("events", options).await
    }

    /// One word, see the documentation.
    #[zbus(property)]
    fn state(&self) -> String {
        text(&self.status.borrow(), "state")
    }

    /// Whether the cloud answers.
    #[zbus(property)]
    fn connected(&self) -> bool {
        flag(&self.status.borrow(), "connected")
    }

    /// The interface that carries the session.
    #[zbus(property)]
    fn uplink(&self) -> String {
        text(&self.status.borrow(), "uplink")
    }

    /// ethernet, wifi or cell.
    #[zbus(property)]
    fn class(&self) -> String {
        text(&self.status.borrow(), "class")
    }

    /// Since when the state holds, RFC 3339.
    #[zbus(property)]
    fn since(&self) -> String {
        text(&self.status.borrow(), "since")
    }

    /// Milliseconds since the cloud was last heard.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn last_inbound_ms(&self) -> i64 {
        self.age("last_inbound_ms").await
    }

    /// Milliseconds until the next attempt.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn next_attempt_ms(&self) -> i64 {
        self.age("next_attempt_ms").await
    }

    /// The session, while one is open.
    #[zbus(property)]
    fn session(&self) -> Dict {
        dict(&self.status.borrow(), "session")
    }

    /// The failover list as stored and as walked.
    #[zbus(property)]
    fn failover(&self) -> Dict {
        dict(&self.status.borrow(), "failover")
    }

    /// Every uplink.
    #[zbus(property)]
    fn uplinks(&self) -> Vec<Dict> {
        dicts(&self.status.borrow(), "uplinks")
    }

    /// What waits for the cloud.
    #[zbus(property)]
    fn outbox(&self) -> Dict {
        dict(&self.status.borrow(), "outbox")
    }

    /// The last outage, over or not.
    #[zbus(property)]
    fn last_outage(&self) -> Dict {
        dict(&self.status.borrow(), "last_outage")
    }

    /// The record of the last move to another uplink.
    #[zbus(property)]
    fn last_switch(&self) -> Dict {
        dict(&self.status.borrow(), "last_switch")
    }

    /// What the daemon runs with, whether that is safe mode, and what is wrong with the files.
    #[zbus(property)]
    fn configuration(&self) -> Dict {
        dict(&self.status.borrow(), "configuration")
    }

    /// Files of the state directory that a newer version wrote or that were damaged.
    #[zbus(property)]
    fn set_aside(&self) -> Vec<String> {
        let status = self.status.borrow();
        let names = status.get("set_aside").and_then(Value::as_array).into_iter().flatten();
        names.filter_map(|name| name.as_str().map(str::to_owned)).collect()
    }

    /// Why the daemon was started: boot, upgrade, crash, operator or config.
    #[zbus(property)]
    fn start_reason(&self) -> String {
        text(&self.status.borrow(), "start_reason")
    }

    /// How often traffic moved since the start, by from, to and reason.
    #[zbus(property)]
    fn switches(&self) -> Vec<Dict> {
        dicts(&self.status.borrow(), "switches")
    }

    /// What keeps traffic from returning to a better uplink.
    #[zbus(property)]
    fn failback(&self) -> Dict {
        dict(&self.status.borrow(), "failback")
    }

    /// Until when planned moves are held off, RFC 3339.
    #[zbus(property)]
    fn inhibited_until(&self) -> String {
        text(&self.status.borrow(), "inhibited_until")
    }

    // The Rust names differ because the macro makes a `state_changed` of its own for the property.
    /// The state word changed; `reason` is "" while all is well.
    #[zbus(signal, name = "StateChanged")]
    async fn state_moved(emitter: &SignalEmitter<'_>, state: &str, reason: &str) -> zbus::Result<()>;

    /// Another interface carries the session, or none ("").
    #[zbus(signal, name = "UplinkChanged")]
    async fn uplink_moved(emitter: &SignalEmitter<'_>, uplink: &str) -> zbus::Result<()>;

    /// The session was lost, just now.
    #[zbus(signal)]
    async fn lost(emitter: &SignalEmitter<'_>, reason: &str) -> zbus::Result<()>;

    /// The session was lost and did not come back within the grace period.
    #[zbus(signal)]
    async fn outage(emitter: &SignalEmitter<'_>, reason: &str) -> zbus::Result<()>;

    /// The session is back after `Lost`.
    #[zbus(signal)]
    async fn restored(emitter: &SignalEmitter<'_>) -> zbus::Result<()>;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn only_what_differs_is_announced() {
        let old = object(json!({"state": "online", "last_inbound_ms": 1, "uplinks": [{"name": "eth0"}]}));
        let new = object(json!({"state": "stalled", "last_inbound_ms": 9, "uplinks": [{"name": "eth0"}]}));
        let names: Vec<_> = changed(&old, &new).into_keys().collect();
        assert_eq!(names, ["State"]);
    }

    #[test]
    fn the_reason_is_that_of_the_outage_while_it_lasts() {
        let with = |ended: Value| object(json!({"last_outage": {"last_reason": "no-link", "ended": ended}}));
        assert_eq!(reason(&with(Value::Null)), "no-link");
        assert_eq!(reason(&with(json!("2026-11-20T10:00:00Z"))), "");
        assert_eq!(reason(&Map::new()), "");
    }
}
