//! The hands: one file per thing outside, named for that thing.
//!
//! Each adapter turns what its thing says into an `Event` and an `Action` into what its thing understands. None
//! retries by itself, decides which interface, or reads another adapter.

use switchback_control::Event;
use tokio::sync::mpsc;

/// Where every adapter reports. Bounded: an adapter that is ahead of the loop waits.
pub type Events = mpsc::Sender<Event>;

/// Room for facts between two turns of the loop: more than all windows together, so that only a stuck loop
/// makes an adapter wait.
pub const EVENTS_MAX: usize = 4096;

pub mod applications;
pub mod black_box;
pub mod clock;
pub mod cloud;
pub mod control_socket;
pub mod dbus;
pub mod local_broker;
pub mod network_manager;
pub mod packet;
pub mod resolver;
pub mod rtnetlink;
pub mod socket;
pub mod stagger;
pub mod status_page;
pub mod storage;
pub mod systemd;
pub mod tls;
