//! A broker on this machine that serves the applications in place of our listener (`local.broker`): we are its bridge.
//!
//! One task, one MQTT 5 session of the broker's that outlives both sides. What applications publish is offered to the
//! outbox and acknowledged to the broker when it is accepted, never before; what comes from the cloud is published to the
//! broker, and counts as taken when the broker has it for good. Always true: what came from the cloud never goes up again;
//! what was received stays here until it is accepted, though the broker goes away; nobody waits for the broker. Unlike
//! other adapters it reconnects by itself, for ever: the heart knows uplinks and the cloud, and this is neither.
//!
//! Exactly once from applications (QoS 2) holds while the broker keeps its session, with one window: a message accepted
//! whose PUBREC the broker has not got when this process is killed is offered twice. The other way the window is a
//! message that the broker has and whose PUBCOMP we have not got.
//!
//! Below: `connection` speaks with the broker, `words` is what is said, `line` carries messages up in order, `down` those
//! from the cloud, `filters` chooses what to subscribe to, `tally` says what was given up.

mod connection;
mod down;
mod filters;
mod line;
mod tally;
mod words;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use self::down::Down;
use self::filters::Filters;
use self::line::Line;
use crate::config::{self, Config};
use crate::corridor::{Corridor, Downlink};

/// The first wait before another try, and the longest: the broker is on this machine, so a try costs next to nothing.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(5);
/// A connection that lived so long was a good one: the next try comes soon again.
const GOOD: Duration = Duration::from_secs(5);
/// How long our last words may take.
const FAREWELL_LIMIT: Duration = Duration::from_millis(500);

/// What the bridge has done and holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Figures {
    /// The broker is there and has our subscriptions.
    pub connected: bool,
    /// Messages of applications that the broker sent us, repeats not counted.
    pub received: u64,
    /// Those of them not yet acknowledged to the broker.
    pub held: usize,
    /// Those given up: too large, without a topic for the cloud, dropped by the rule of their class, or of QoS 0 when the
    /// outbox had no room.
    pub refused: u64,
    /// Messages from the cloud that the broker has not taken yet.
    pub downlinks_waiting: usize,
    /// Messages from the cloud that the broker will never take, or whose time was over before it could.
    pub downlinks_refused: u64,
}

/// Answers with the figures of the moment, for as long as anybody asks; clones ask the same bridge.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<Mutex<Figures>>);

impl Gauge {
    /// The figures of the moment.
    pub fn read(&self) -> Figures {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Figures> {
        // Nothing panics while the lock is held; a poisoned one still guards whole values.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The running bridge. Dropping it ends the connection at once, as `kill -9` would.
#[derive(Debug)]
pub struct LocalBroker {
    gauge: Gauge,
    task: JoinHandle<()>,
    stop: Option<oneshot::Sender<()>>,
}

impl LocalBroker {
    /// Connects to `broker` and stays with it. What it was last asked for is remembered in `state_dir`. Must be called
    /// within a tokio runtime.
    pub fn start(
        config: Arc<Config>,
        broker: config::LocalBroker,
        state_dir: &Path,
        corridor: Corridor,
        downlinks: mpsc::Receiver<Downlink>,
    ) -> LocalBroker {
        let gauge = Gauge::default();
        let (stop, stopped) = oneshot::channel();
        let bridge = Bridge {
            broker,
            client_id: format!("switchback-{}", config.cloud.client_id),
            filters: Filters::of(&config.publish, state_dir),
            line: Line::new(config, corridor),
            down: Down::default(),
            downlinks,
            gauge: gauge.clone(),
            said: Said::default(),
        };
        LocalBroker { gauge, task: tokio::spawn(bridge.run(stopped)), stop: Some(stop) }
    }

    /// Where status and metrics may ask at any time.
    pub fn gauge(&self) -> Gauge {
        self.gauge.clone()
    }

    /// Says goodbye; what is not acknowledged stays with the broker. Ends within `FAREWELL_LIMIT`.
    pub async fn stop(mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
            let _ = timeout(FAREWELL_LIMIT, &mut self.task).await;
        }
    }
}

impl Drop for LocalBroker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What outlives a connection.
struct Bridge {
    broker: config::LocalBroker,
    client_id: String,
    filters: Filters,
    line: Line,
    down: Down,
    downlinks: mpsc::Receiver<Downlink>,
    gauge: Gauge,
    said: Said,
}

/// Why there is no connection.
#[derive(Debug)]
enum End {
    /// We were told to stop.
    Stopped,
    /// Away, not there yet, or dead: it passes.
    Away(String),
    /// Somebody must do something, which this sentence says.
    Wrong(String),
}

/// What was said of this outage.
#[derive(Default)]
struct Said {
    away: bool,
    wrong: Option<String>,
}

impl Bridge {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let mut pause = RETRY_FIRST;
        loop {
            let began = Instant::now();
            let end = self.converse(&mut stopped).await;
            self.line.part();
            self.show(false);
            if began.elapsed() > GOOD {
                pause = RETRY_FIRST;
            }
            if matches!(end, End::Stopped) {
                return;
            }
            self.say(end);
            if self.meanwhile(&mut stopped, sleep(pause)).await.is_none() {
                return;
            }
            pause = (pause * 2).min(RETRY_MOST);
        }
    }

    /// Goes on with what needs no broker until this is done; `None` when told to stop.
    async fn meanwhile<T>(&mut self, stopped: &mut oneshot::Receiver<()>, done: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(done);
        loop {
            tokio::select! {
                done = &mut done => return Some(done),
                _ = &mut *stopped => return None,
                _ = self.line.next() => {}
                Some(downlink) = self.downlinks.recv(), if self.down.has_room() => self.down.push(downlink),
            }
            self.show(false);
        }
    }

    /// Once for each outage, and once more for each thing that somebody must put right.
    fn say(&mut self, end: End) {
        let server = &self.broker.server;
        match end {
            End::Away(why) if !self.said.away && self.said.wrong.is_none() => {
                log::warn!("local broker {server}: {why}; applications' messages wait there until it is back");
                self.said.away = true;
            }
            End::Wrong(why) if self.said.wrong.as_ref() != Some(&why) => {
                log::error!("local broker {server}: {why}");
                self.said.wrong = Some(why);
            }
            End::Away(_) | End::Wrong(_) | End::Stopped => {}
        }
    }

    /// Everything is in order.
    fn say_open(&mut self) {
        log::info!("local broker {}: connected", self.broker.server);
        self.said = Said::default();
    }

    fn show(&self, connected: bool) {
        *self.gauge.lock() = Figures {
            connected,
            received: self.line.received(),
            held: self.line.held(),
            refused: self.line.refused(),
            downlinks_waiting: self.down.waiting() + self.downlinks.len(),
            downlinks_refused: self.down.refused(),
        };
    }
}
