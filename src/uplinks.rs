//! What is known about each interface beyond what a decision needs: for displays, lookups and sessions.
//!
//! Written by the NetworkManager adapter, read by the resolver (name servers), the sessions (the IP interface
//! to bind to), the kernel adapter (which names NetworkManager knows) and the displays. Always the latest
//! word; it stays when NetworkManager goes away, as the devices do. Nothing here decides or waits.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use switchback_control::{Class, Name};
use tokio::sync::watch;

/// One interface, as NetworkManager and ModemManager last described it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Details {
    /// Where packets go: `wwan0` or `ppp0` of a modem, the interface itself otherwise. What a socket is bound to.
    pub ip_interface: Name,
    pub class: Class,
    /// The kernel driver's name; empty when unknown.
    pub driver: String,
    /// Configured addresses, link-local ones included.
    pub addresses: Vec<IpAddr>,
    /// This uplink's own name servers, in NetworkManager's order, IPv4 first.
    pub name_servers: Vec<IpAddr>,
    /// 0 to 100: of the joined access point, or of the modem.
    pub signal: Option<u8>,
}

/// The shared table. Clones see the same table.
#[derive(Clone)]
pub struct Uplinks {
    table: Arc<Mutex<BTreeMap<Name, Details>>>,
    network_manager: Arc<watch::Sender<bool>>,
}

impl Uplinks {
    /// An empty table. NetworkManager counts as running until its adapter knows better, so that at start its
    /// word is waited for.
    pub fn new() -> Uplinks {
        Uplinks { table: Arc::default(), network_manager: Arc::new(watch::Sender::new(true)) }
    }

    /// What is known of an interface, by the name the adapters use (a modem's control port).
    pub fn details(&self, interface: Name) -> Option<Details> {
        self.lock().get(&interface).cloned()
    }

    /// Where packets of this interface go: the interface itself where nobody said otherwise.
    pub fn ip_interface(&self, interface: Name) -> Name {
        self.lock().get(&interface).map_or(interface, |details| details.ip_interface)
    }

    /// Everything known, for displays.
    pub fn all(&self) -> BTreeMap<Name, Details> {
        self.lock().clone()
    }

    /// Whether NetworkManager has spoken of this name, as a device or as the IP interface of one.
    pub fn knows(&self, name: Name) -> bool {
        self.lock().iter().any(|(interface, details)| *interface == name || details.ip_interface == name)
    }

    /// Whether NetworkManager is running, and when that changes.
    pub fn network_manager(&self) -> watch::Receiver<bool> {
        self.network_manager.subscribe()
    }

    /// Remembers what is known of an interface.
    pub fn set(&self, interface: Name, details: Details) {
        self.lock().insert(interface, details);
    }

    /// Forgets an interface that is gone.
    pub fn remove(&self, interface: Name) {
        self.lock().remove(&interface);
    }

    /// Notes whether NetworkManager is running; after its devices are in the table.
    pub fn set_network_manager(&self, running: bool) {
        self.network_manager.send_if_modified(|old| std::mem::replace(old, running) != running);
    }

    /// The table is whole after every single call, so a panic elsewhere cannot have left it half written.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, Details>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Uplinks {
    fn default() -> Uplinks {
        Uplinks::new()
    }
}
