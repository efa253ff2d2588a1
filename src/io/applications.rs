//! The local applications' face: an MQTT server, 3.1.1 and 5, on a TCP port and a Unix socket.
//!
//! A message that goes up is acknowledged when its offer is accepted, never before, and local subscribers get it at
//! once; what comes from the cloud goes to local subscribers and never up again. An application is read whatever the
//! network does, and none is ever waited for: every queue has a limit, and who does not keep up loses its own place
//! only. Persistent sessions and retained messages survive the daemon.
//!
//! `listener` accepts, `strangers`, `greeting` and `access` let in, `connection` runs one client, `conversation` knows
//! what its packets do, `answers` what a publisher is told, `upward` carries its messages to the outbox in order, `router` and `session` hold what outlives
//! a connection, `ledger` notes what of it the disk does not know yet, and `keeping` writes that with `store` and
//! `entry`.

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::access::{Access, Deed};
use self::entry::Moment;
pub use self::figures::{ApplicationFigures, Gauge};
use self::message::{Message, way_up};
use self::router::Shared;
use self::session::Taken;
use self::store::Store;
use self::strangers::Strangers;
use self::upward::{Ack, Task, Upward, Verdict};
use crate::config::Config;
use crate::corridor::{Downlink, Draft, Offer};
use crate::io::packet::{PACKET_MAX, Publish, properties_from_bytes};
use crate::outbox::Local;
use crate::sorting::Way;
use crate::topics;

pub(crate) mod access;
mod answers;
pub(crate) mod checks;
mod connection;
mod conversation;
pub(crate) mod entry;
mod figures;
pub(crate) mod greeting;
pub(crate) mod keeping;
mod ledger;
mod listener;
mod message;
#[cfg(test)]
mod rough_tests;
pub(crate) mod router;
mod session;
pub(crate) mod store;
mod strangers;
mod upward;

/// Clients at a time: more than a gateway has applications; each may cost a few hundred kilobytes.
pub const CLIENTS_MAX: usize = 64;

/// Clients at a time with those whose last messages are still on their way to the outbox. More wait, as strangers.
pub const CONNECTIONS_MAX: usize = CLIENTS_MAX + 32;

/// Connections that have not been let in yet. Each costs up to `CONNECT_MAX` and a kilobyte; a further one takes the
/// place of the oldest.
pub const STRANGERS_MAX: usize = 32;

/// Sessions, connected or away. The one away longest gives way.
pub const SESSIONS_MAX: usize = 256;

/// Filters of one client: every message is held against each.
pub const SUBSCRIPTIONS_MAX: usize = 128;

/// Longest filter in bytes, and its levels; topics in use are far shorter, and `+/+/+/…` costs a look at each level.
pub const FILTER_MAX: usize = 1024;
pub const LEVELS_MAX: usize = 64;

/// Retained messages, and their bytes. All of them fit into a queue, so that a subscriber to `#` gets them all.
pub const RETAINED_MAX: usize = 1000;
pub const RETAINED_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Messages that wait for one client, and their bytes with those on their way to it. The bytes hold nine of
/// the largest packets, the number a week of one command every ten minutes. A full queue keeps what it has, and what comes
/// is dropped, also what the cloud sent to a client that is away: it counts as taken, because the cloud's acknowledgements
/// are in order and one absent application must not hold up the commands of all. `commands_dropped` counts them. What has
/// expired makes room first: whoever sends commands to an application that may be away for long gives them an expiry.
pub const QUEUE_MAX: usize = 1000;
pub const QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes in all queues together; once they are used up, each queue still gets its share.
pub const QUEUES_BYTES_MAX: usize = 32 * 1024 * 1024;
pub const QUEUE_BYTES_SHARE: usize = 64 * 1024;

/// Messages with QoS 1 and 2 on their way to one client at a time.
pub const OUTBOUND_MAX: usize = 100;

/// Messages with QoS 1 and 2 of one client that are not acknowledged yet: MQTT 5's Receive Maximum.
pub const RECEIVE_MAX: u16 = 100;

/// Messages with QoS 2 of one session between PUBLISH and PUBREL, over all its connections: 3.1.1 has no such limit, and
/// whoever never sends PUBREL would fill the memory. A client that goes on regardless is disconnected.
pub const RECEPTIONS_MAX: usize = 1000;

/// How long after a start a client that was here before may take to come back until its will is published.
pub const RESTART_GRACE: Duration = Duration::from_secs(30);

/// Messages of one client on their way to the outbox, whatever their QoS, and their bytes; then it is not read.
pub const UPWARD_MAX: usize = 1000;
pub const UPWARD_BYTES_MAX: usize = 2 * PACKET_MAX;

/// The same bytes of all clients together; beyond them each has one message on its way.
pub const UPWARDS_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How long a message from the cloud may stand over a connected client's limit before that client is dropped.
pub const DOWNLINK_WAIT: Duration = Duration::from_secs(5);

/// How long a client that is here, with a session that ends with its connection, may leave a message from the cloud
/// unacknowledged until the cloud is told all the same. Longer protects commands that take long from a crash of the
/// application; the cloud's acknowledgements are in order, so all wait for the slowest.
pub const TAKEN_WAIT: Duration = Duration::from_secs(30);

/// How long a client may take to say who it is, and how large its greeting may be: until then it is a stranger.
pub const CONNECT_WAIT: Duration = Duration::from_secs(10);
pub const CONNECT_MAX: usize = 2560;

/// Largest packet that carries no message.
pub const CONTROL_MAX: usize = 64 * 1024;

/// How long a packet may take from its first byte to its last (R-RS-5).
pub const PACKET_WAIT: Duration = Duration::from_secs(30);

/// How long a client may not read what is sent to it (R-RS-5).
pub const STALL_MAX: Duration = Duration::from_secs(30);

/// How long our last words may take.
const GOODBYE_WAIT: Duration = Duration::from_millis(500);

/// How long the last write of the sessions may take.
const LAST_WRITE_WAIT: Duration = Duration::from_secs(5);

/// Room made in the input for each read.
const READ_CHUNK: usize = 16 * 1024;

/// Packets of one client before the others' turn, and how long they may take: many subscriptions make a message dear.
const PACKETS_PER_TURN: usize = 64;
const TURN_MAX: Duration = Duration::from_millis(2);

/// Output is filled up to the target from the queue; above the limit, which only answers can reach, nothing is read.
const OUTPUT_TARGET: usize = 64 * 1024;
const OUTPUT_MAX: usize = 256 * 1024;

/// Who takes an application's message: the loop, through the corridor.
pub trait Offers: Clone + Send + Sync + 'static {
    /// Takes a message; the answers come later. May wait, but then every client waits.
    fn offer(&self, draft: Draft) -> impl Future<Output = Offer> + Send;
}

/// The running face. Dropping it closes everything at once.
pub struct Applications {
    shared: Arc<Shared>,
    socket: PathBuf,
    tasks: Vec<AbortHandle>,
    keeper: JoinHandle<()>,
    finish: Option<oneshot::Sender<()>>,
}

impl fmt::Debug for Applications {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Applications").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// What every connection shares.
pub(crate) struct Doors<O> {
    config: Arc<Config>,
    offers: O,
    shared: Arc<Shared>,
    /// Makes client identifiers for those that bring none.
    assigned: AtomicU64,
    started: u64,
    /// Bytes of all clients on their way to the outbox.
    upward_bytes: Arc<AtomicUsize>,
    strangers: Arc<Strangers>,
    access: Arc<Access>,
    places: Arc<Semaphore>,
}

impl Applications {
    /// Binds what the configuration says, and `mqtt.sock` in the runtime directory; a place that is taken is logged
    /// once and tried again every few seconds while the rest works. Sessions are kept in `state_dir`; what of them
    /// cannot be read is logged and set aside. Must be called within a tokio runtime.
    pub fn start(
        config: Arc<Config>,
        runtime_dir: &Path,
        state_dir: &Path,
        offers: impl Offers,
        downlinks: mpsc::Receiver<Downlink>,
    ) -> Applications {
        let shared = Arc::<Shared>::default();
        let moment = Moment::current();
        let store = shared.with(|state| {
            let mut alike = keeping::Alike::default();
            let mut read = |body: &[u8]| keeping::read_frame(state, &mut alike, body, moment);
            let store = Store::open(Local, state_dir, &mut read);
            state.begin_keeping(moment.now);
            store
        });
        let access = Arc::new(Access::load(&config.local));
        shared.with(|state| {
            state.forget_wills(|user, id, topic| access.allows(user, id, Deed::Publish, topic));
        });
        let (finish, finished) = oneshot::channel();
        let keeper = tokio::spawn(keeping::keep(Arc::clone(&shared), store, finished));
        let started = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros() as u64);
        let address = config.local.mqtt;
        let doors = Arc::new(Doors {
            config,
            offers,
            shared: Arc::clone(&shared),
            assigned: AtomicU64::new(0),
            started,
            upward_bytes: Arc::default(),
            strangers: Arc::default(),
            access,
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        });
        let socket = runtime_dir.join("mqtt.sock");
        let mut tasks = vec![
            tokio::spawn(listener::listen_unix(socket.clone(), Arc::clone(&doors))).abort_handle(),
            tokio::spawn(bring_down(Arc::clone(&shared), downlinks)).abort_handle(),
            tokio::spawn(keep_time(Arc::clone(&doors))).abort_handle(),
        ];
        if let Some(address) = address {
            tasks.push(tokio::spawn(listener::listen_tcp(address, doors)).abort_handle());
        }
        Applications { shared, socket, tasks, keeper, finish: Some(finish) }
    }

    /// For status and metrics.
    pub fn figures(&self) -> ApplicationFigures {
        self.gauge().read()
    }

    /// The same for whoever shows them.
    pub fn gauge(&self) -> Gauge {
        Gauge::new(Arc::clone(&self.shared))
    }

    /// Accepts nobody any more, tells every client that the server shuts down, and writes what is to be kept. Ends
    /// within `GOODBYE_WAIT` and `LAST_WRITE_WAIT`.
    pub async fn stop(mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.shared.with(|state| state.close_all(checks::SHUTTING_DOWN));
        let deadline = Instant::now() + GOODBYE_WAIT;
        while self.figures().clients > 0 && Instant::now() < deadline {
            sleep(Duration::from_millis(5)).await;
        }
        if let Some(finish) = self.finish.take() {
            let _ = finish.send(());
            let _ = timeout(LAST_WRITE_WAIT, &mut self.keeper).await;
        }
    }
}

impl Drop for Applications {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.keeper.abort();
        self.shared.with(|state| state.close_all(checks::SHUTTING_DOWN));
        // A next daemon removes it too; this is for those who look for a server now.
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl<O> Doors<O> {
    /// An identifier for a client without one; unlike any of an earlier start, whose clients may come back.
    fn fresh_id(&self) -> String {
        format!("auto-{:x}-{}", self.started, self.assigned.fetch_add(1, Ordering::Relaxed))
    }

    /// Says that a client did not get in, once a minute: whoever guesses passwords must not fill the journal.
    fn tell_turned_away(&self, words: impl FnOnce() -> String) {
        if self.shared.with(|state| state.turned_away_said.may_speak(Instant::now())) {
            log::warn!("{} (said once a minute; others are counted)", words());
        }
    }
}

/// Puts what comes from the cloud into local queues. Never waits for a client: a queue without room holds back the
/// acknowledgement, not the next message.
async fn bring_down(shared: Arc<Shared>, mut downlinks: mpsc::Receiver<Downlink>) {
    while let Some(Downlink { topic, payload, qos, retain, properties, taken }) = downlinks.recv().await {
        if !topics::valid_topic(&topic) {
            // A `[[subscribe]]` rule made nonsense of it. Nobody could ever take it, so the cloud need not repeat it.
            log::warn!("a message from the cloud has no valid local topic: {topic:?}");
            let _ = taken.send(());
            continue;
        }
        let properties = properties_from_bytes(&properties);
        let publish = Publish { topic, payload, qos, retain, dup: false, id: None, properties };
        let now = Instant::now();
        let message = Arc::new(Message::new(publish, None, now));
        let taken = Taken::new(taken);
        // A command nobody waits for is over, as at any broker: the cloud would send it for ever. Whoever must not
        // miss one keeps a persistent session, which counts as a subscriber while its client is away.
        let unwanted = shared.with(|state| {
            let receivers = state.publish(&message, Some(&taken), now);
            state.figures.unwanted += u64::from(receivers == 0);
            (receivers == 0).then_some(state.figures.unwanted)
        });
        match unwanted {
            None => {}
            Some(1) => log::warn!(
                "no local client has subscribed to {:?}, which the cloud sent: dropped (said once; others are counted)",
                message.topic
            ),
            Some(_) => log::debug!("no local client has subscribed to {:?}, which the cloud sent", message.topic),
        }
        taken.release();
        shared.changed.notify_one();
    }
}

/// Ends sessions and publishes wills when their time has come.
async fn keep_time<O: Offers>(doors: Arc<Doors<O>>) {
    let mut upward = Upward::new(doors.offers.clone(), Arc::clone(&doors.upward_bytes));
    loop {
        let deadline = doors.shared.with(|state| state.next_deadline());
        tokio::select! {
            () = doors.shared.changed.notified() => {}
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
            (_, verdict) = upward.next(), if !upward.is_empty() => {
                let refused = u64::from(verdict != Verdict::Accepted);
                doors.shared.with(|state| state.figures.refused += refused);
            }
        }
        for will in doors.shared.with(|state| state.sweep(Instant::now())) {
            if let Way::Up { draft, await_cloud, .. } = way_up(&doors.config, &will) {
                upward.push(Ack::None, Task::Offer { draft, await_cloud });
            }
        }
    }
}
