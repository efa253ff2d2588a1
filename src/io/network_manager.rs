//! NetworkManager and ModemManager, over the system bus.
//!
//! Keeps a mirror of both services' objects by their own signals, and after every change tells what became
//! different of a device. Asks NetworkManager to activate or deactivate, and never waits for the outcome: it
//! comes as the device's next stage, or as a refusal. Where it is asked to, it also keeps the host's routes with one
//! device (see `routes`). Always true: a device is told once per difference; its
//! table entry is written before its event; while NetworkManager is away its devices stay as last reported.
//! Never decides which device to activate, and never tries an activation again.
//!
//! One mirror instead of a proxy for each device: one call and one stream of signals give a picture that is
//! whole and in order, where proxies need some ten calls a device and can miss a change between them.

mod device;
mod ledger;
mod mirror;
mod peer;
mod routes;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use log::warn;
use switchback_control::{Attempt, Name};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::config::Config;
use crate::io::Events;
use crate::uplinks::{Details, Uplinks};
use watch::Watch;

/// Requests waiting for the task: more than there are interfaces on any gateway.
const REQUESTS_MAX: usize = 64;
/// How long the end of the process waits for routes to be given back: NetworkManager answers within milliseconds.
const FINISH_LIMIT: Duration = Duration::from_secs(1);

/// Which bus to speak on.
#[derive(Clone, Debug)]
pub enum Bus {
    /// The system bus, found as every D-Bus program finds it (`DBUS_SYSTEM_BUS_ADDRESS`).
    System,
    /// The bus at this address; for tests.
    Address(String),
}

/// The handle: everything is handed over at once.
#[derive(Clone)]
pub struct NetworkManager {
    requests: mpsc::Sender<Request>,
    uplinks: Uplinks,
}

enum Request {
    Activate {
        interface: Name,
        attempt: Attempt,
    },
    Deactivate {
        interface: Name,
    },
    Prefer {
        interface: Option<Name>,
    },
    Compare,
    /// The sender is dropped once nothing about routes is under way.
    Finish(oneshot::Sender<()>),
}

/// Starts watching and obeying. What is known of each interface goes into `uplinks`. Ends when every handle is
/// dropped.
pub fn start(config: Arc<Config>, uplinks: Uplinks, events: Events) -> NetworkManager {
    start_on(Bus::System, config, uplinks, events)
}

/// The same on another bus.
pub fn start_on(bus: Bus, config: Arc<Config>, uplinks: Uplinks, events: Events) -> NetworkManager {
    let (requests, inbox) = mpsc::channel(REQUESTS_MAX);
    let handle = NetworkManager { requests, uplinks: uplinks.clone() };
    tokio::spawn(Watch::new(config, uplinks, events).run(bus, inbox));
    handle
}

impl NetworkManager {
    /// Has NetworkManager activate the best stored profile. Answers as `DeviceSeen`, or as `ActivationRefused` with
    /// this number. NetworkManager takes a device that is active down first.
    pub fn activate(&self, interface: Name, attempt: Attempt) {
        self.ask(Request::Activate { interface, attempt });
    }

    /// Has NetworkManager take down what is active on the interface; it may activate it again when asked.
    pub fn deactivate(&self, interface: Name) {
        self.ask(Request::Deactivate { interface });
    }

    /// `Action::Prefer`: from now on the host's IPv4 routes over this device come first; `None` gives every device the
    /// place back that its profile says. Until it is first called routes are left alone, later it holds over
    /// activations and restarts of NetworkManager. A failure is a warning; it is tried again at the next preference or
    /// activation.
    pub fn prefer(&self, interface: Option<Name>) {
        self.ask(Request::Prefer { interface });
    }

    /// Waits until what `prefer` asked for is done, at most `FINISH_LIMIT`; for the end of the process.
    pub async fn finished(&self) {
        let (done, waiting) = oneshot::channel();
        self.ask(Request::Finish(done));
        let _ = timeout(FINISH_LIMIT, waiting).await;
    }

    /// Compares with what both services say now and tells the differences (R-CL-17).
    pub fn compare(&self) {
        self.ask(Request::Compare);
    }

    /// What is known of an interface.
    pub fn details(&self, interface: Name) -> Option<Details> {
        self.uplinks.details(interface)
    }

    /// A full queue means a stuck task; every attempt has its own limit, so nothing waits for ever.
    fn ask(&self, request: Request) {
        if self.requests.try_send(request).is_err() {
            warn!("NetworkManager: too many requests are waiting, one is dropped");
        }
    }
}
