//! One of the two services as seen from this connection: who owns its name, what it has, when to ask it.
//!
//! Always true: without an owner the mirror is empty and nothing is asked; `whole` only while the mirror holds
//! everything and follows the signals. Never sends anything itself.

use std::time::Duration;

use tokio::time::Instant;

use super::mirror::{Mirror, Wanted};

/// How soon a service that owns its name but has no objects yet is asked again.
const LIST_AGAIN: Duration = Duration::from_millis(100);
/// Each time in vain that pause doubles, at most this often: to 3.2 s.
const LIST_DOUBLINGS: u32 = 5;

/// The two services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    NetworkManager,
    ModemManager,
}

impl Service {
    pub const ALL: [Service; 2] = [Service::NetworkManager, Service::ModemManager];

    pub const fn name(self) -> &'static str {
        match self {
            Service::NetworkManager => "org.freedesktop.NetworkManager",
            Service::ModemManager => "org.freedesktop.ModemManager1",
        }
    }

    /// Where its `ObjectManager` is.
    pub const fn root(self) -> &'static str {
        match self {
            Service::NetworkManager => "/org/freedesktop",
            Service::ModemManager => "/org/freedesktop/ModemManager1",
        }
    }
}

/// What is known of one service on this connection.
pub struct Peer {
    /// Its unique name while it runs. A signal of a former owner means nothing.
    pub owner: Option<String>,
    pub mirror: Mirror,
    /// The objects are listed and the mirror follows the signals.
    pub whole: bool,
    /// When to ask for the list (again), and how often that was in vain.
    pub list_at: Option<Instant>,
    in_vain: u32,
}

impl Peer {
    pub fn new(wanted: Wanted) -> Peer {
        Peer { owner: None, mirror: Mirror::new(wanted), whole: false, list_at: None, in_vain: 0 }
    }

    /// Another process has the name, or none.
    pub fn owned_by(&mut self, owner: Option<String>) {
        self.list_at = owner.is_some().then(Instant::now);
        self.owner = owner;
        self.mirror.clear();
        self.whole = false;
        self.in_vain = 0;
    }

    /// Its objects are in the mirror.
    pub fn listed(&mut self) {
        self.whole = true;
        self.list_at = None;
        self.in_vain = 0;
    }

    /// It would not list its objects, or has none yet.
    pub fn again_later(&mut self) {
        let pause = LIST_AGAIN * (1 << self.in_vain.min(LIST_DOUBLINGS));
        self.in_vain = self.in_vain.saturating_add(1);
        self.list_at = self.owner.is_some().then(|| Instant::now() + pause);
    }
}
