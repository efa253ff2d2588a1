//! The picture that displays show: the heart's status, and what the adapters know beside it.
//!
//! Gathers both into the status document (contract, "status --json") and hands the latest one to everybody who shows
//! it. Renewed at once when the state word or the uplink changes, otherwise a few times a second at most, and never
//! on anybody's demand but the loop's. It reads counters; it decides nothing.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Map, Value};
use switchback_control::status::{DeliveryStatus, State};
use switchback_control::{Control, Instant, Lane, Name, Reason, Status, Switch};
use tokio::sync::watch;

use crate::api::{self, ClassFigures, Live, LiveLane, LiveOutbox, LiveSession, LiveUplink, WallClock};
use crate::config::{Config, Server};
use crate::corridor::Draft;
use crate::daemon::Hands;
use crate::io::clock;
use crate::io::storage::StoreFigures;
use crate::standing::Standing;
use crate::uplinks::Uplinks;

/// Displays are renewed at most this often while nothing but numbers changes.
const RENEW_EVERY: Duration = Duration::from_millis(500);

/// Kinds of switches that are counted, at most: every reason between a handful of uplinks. What comes beyond, where
/// interfaces are renamed again and again, is not.
const SWITCH_KINDS_MAX: usize = 256;

/// A status document.
pub type Document = Arc<Map<String, Value>>;

/// Asks the local face what it counts.
pub type LocalFigures = Box<dyn Fn() -> Value + Send>;

/// Gathers and hands out the document.
pub struct Picture {
    config: Arc<Config>,
    uplinks: Uplinks,
    figures: Arc<StoreFigures>,
    local: LocalFigures,
    shown: watch::Sender<Document>,
    renewed: Instant,
    word: Option<State>,
    switches: BTreeMap<(Name, Name, Reason), u64>,
    /// What delivery had counted when the session was lost.
    lost: DeliveryStatus,
    /// What the daemon runs with, and why it was started.
    configuration: Value,
    start_reason: &'static str,
    set_aside: Vec<String>,
    /// The most that has waited since then.
    queued: u64,
}

impl Picture {
    /// A picture of nothing yet.
    pub fn new(config: Arc<Config>, uplinks: Uplinks, figures: Arc<StoreFigures>, local: LocalFigures) -> Picture {
        let shown = watch::Sender::new(Arc::default());
        let (renewed, switches) = (Instant::default(), BTreeMap::new());
        let lost = DeliveryStatus::default();
        let (configuration, start_reason) = (Value::Null, "");
        let queued = 0;
        let word = None;
        Picture {
            config,
            uplinks,
            figures,
            local,
            shown,
            renewed,
            word,
            switches,
            lost,
            configuration,
            start_reason,
            set_aside: Vec::new(),
            queued,
        }
    }

    /// Shows from now on what the daemon runs with, and why it was started.
    pub fn stand(&mut self, standing: &Standing, start_reason: &'static str, set_aside: Vec<String>) {
        (self.configuration, self.start_reason, self.set_aside) = (standing.document(), start_reason, set_aside);
    }

    /// What people must know of it, a sentence or null.
    pub fn remark(&self) -> Value {
        self.configuration.get("says").cloned().unwrap_or_default()
    }

    /// Counts a switch that has come about, under the names of the IP interfaces.
    pub fn count(&mut self, switch: &Switch) {
        let known_as = |name| self.uplinks.ip_interface(name);
        let kind = (known_as(switch.from), known_as(switch.to), switch.why);
        if self.switches.len() < SWITCH_KINDS_MAX || self.switches.contains_key(&kind) {
            *self.switches.entry(kind).or_default() += 1;
        }
    }

    /// Where the latest document is to be had.
    pub fn subscribe(&self) -> watch::Receiver<Document> {
        self.shown.subscribe()
    }

    /// Renews the document if something `changed` or it is time to, and the state file if the word changed.
    pub fn renew(&mut self, changed: bool, control: &Control, hands: &Hands, state_file: &Path) {
        let now = clock::now();
        if !changed && now.since(self.renewed) < RENEW_EVERY {
            return;
        }
        let word = control.summary().state;
        if self.word.replace(word) != Some(word) {
            write_word(state_file, word.as_str());
        }
        self.renewed = now;
        let status = control.status();
        if !status.connected {
            self.queued = self.queued.max(status.delivery.messages);
        }
        self.shown.send_replace(Arc::new(self.document_of(&status, hands)));
    }

    /// The document as of now.
    pub fn document(&self, control: &Control, hands: &Hands) -> Map<String, Value> {
        self.document_of(&control.status(), hands)
    }

    fn document_of(&self, status: &Status, hands: &Hands) -> Map<String, Value> {
        api::status_document(status, &self.live(status, hands), wall_clock())
    }

    /// The session was lost: what is given up from now on belongs to the outage.
    pub fn lost(&mut self, control: &Control) {
        self.lost = control.status().delivery;
        self.queued = self.lost.messages;
    }

    /// What the cloud is told of the outage that has just ended; nothing without `cloud.base`.
    pub fn outage_report(&self, control: &Control) -> Option<Draft> {
        let base = Some(&self.config.cloud.base).filter(|base| !base.is_empty())?;
        let status = control.status();
        let mut report = api::status_document(&status, &Live::default(), wall_clock()).remove("last_outage")?;
        let report = report.as_object_mut()?;
        report.insert("queued".into(), self.queued.into());
        let given_up = |delivery: &DeliveryStatus| delivery.dropped + delivery.expired;
        report.insert("dropped".into(), given_up(&status.delivery).saturating_sub(given_up(&self.lost)).into());
        let payload = serde_json::to_vec(report).ok()?;
        Some(Draft { topic: format!("{base}/outage"), payload, qos: 1, ..Draft::default() })
    }

    /// What waits, class by class.
    pub fn classes(&self, control: &Control, hands: &Hands) -> Vec<ClassFigures> {
        api::classes(&control.status(), &self.lanes(hands))
    }

    fn lanes(&self, hands: &Hands) -> Vec<LiveLane> {
        let mut lanes = api::live_lanes(&self.config);
        for (index, lane) in lanes.iter_mut().enumerate() {
            let (held, oldest_held) = hands.corridor.held_in(Lane(u8::try_from(index).unwrap_or(u8::MAX)));
            let (stored, oldest_stored) = self.stored(index);
            lane.bytes = if lane.memory { held } else { stored };
            lane.oldest_accepted = {
                let shown = oldest_stored.into_iter().chain(oldest_held).map(clock::shown);
                shown.min().map(u64::cast_signed)
            };
        }
        lanes
    }

    /// Bytes of a lane on disk, and when the oldest message there was accepted.
    fn stored(&self, lane: usize) -> (u64, Option<u64>) {
        let Some(figures) = self.figures.lanes.get(lane) else { return (0, None) };
        let oldest = figures.oldest_accepted.load(Ordering::Relaxed);
        (figures.bytes.load(Ordering::Relaxed), Some(oldest).filter(|at| *at != 0))
    }

    fn live(&self, status: &Status, hands: &Hands) -> Live {
        let facts = status.session.and_then(|s| hands.cloud.live(s.attempt));
        let mut uplinks = BTreeMap::new();
        for uplink in &status.uplinks {
            let details = self.uplinks.details(uplink.interface);
            let carries = status.uplink == Some(uplink.name);
            let facts = facts.as_ref().filter(|_| carries);
            let (bytes_up, bytes_down) = byte_counts(uplink.name);
            uplinks.insert(
                uplink.interface,
                LiveUplink {
                    signal: details.as_ref().and_then(|d| d.signal),
                    bytes_up,
                    bytes_down,
                    liveness_bytes: hands.cloud.liveness_bytes(uplink.interface),
                    spare_handshakes: hands.cloud.spare_handshakes(uplink.interface),
                    address: details.as_ref().and_then(|d| d.addresses.first().copied()),
                    send_buffer: facts.and_then(|f| f.send_buffer),
                },
            );
        }
        let session = status.session.map(|s| LiveSession {
            server: self.config.cloud.servers.get(usize::from(s.server)).map(server_name).unwrap_or_default(),
            tls: facts.as_ref().and_then(|f| f.tls.clone()),
            rtt_ms: facts.as_ref().and_then(|f| f.rtt_us).map(|us| f64::from(us) / 1000.0),
            unacked_bytes: facts.as_ref().map(|f| f.unacked),
            unsent_bytes: facts.as_ref().map(|f| f.unsent),
        });
        let lanes = self.lanes(hands);
        let outbox = LiveOutbox {
            bytes: lanes.iter().map(|lane| lane.bytes).sum(),
            oldest_accepted: lanes.iter().filter_map(|lane| lane.oldest_accepted).min(),
            lanes,
            trouble: self.figures.trouble(),
        };
        Live {
            uplinks,
            session,
            outbox,
            local: (self.local)(),
            configuration: self.configuration.clone(),
            start_reason: self.start_reason,
            set_aside: self.set_aside.clone(),
            switches: self.switches.clone(),
        }
    }
}

/// Both clocks at this moment.
pub fn wall_clock() -> WallClock {
    WallClock { now: clock::now(), wall_ms: clock::wall().as_millisecond() }
}

fn server_name(server: &Server) -> String {
    if server.host.contains(':') {
        format!("[{}]:{}", server.host, server.port)
    } else {
        format!("{}:{}", server.host, server.port)
    }
}

/// Bytes sent and received by an interface since it came up, by the kernel's count.
fn byte_counts(name: Name) -> (Option<u64>, Option<u64>) {
    let read = |what: &str| {
        let path = format!("/sys/class/net/{name}/statistics/{what}");
        std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok())
    };
    (read("tx_bytes"), read("rx_bytes"))
}

/// One word for scripts and LEDs, replaced whole, for everybody to read whatever the umask. On a runtime directory in memory: nothing to sync.
fn write_word(path: &Path, word: &str) {
    let new = path.with_extension("new");
    let readable = || std::fs::set_permissions(&new, Permissions::from_mode(0o644));
    let written = std::fs::write(&new, format!("{word}\n")).and_then(|()| readable());
    let written = written.and_then(|()| std::fs::rename(&new, path));
    if let Err(error) = written {
        log::debug!("{}: {error}", path.display());
    }
}
