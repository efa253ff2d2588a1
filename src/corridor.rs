//! The data corridor: message bodies on their way from an application to the cloud, and back.
//!
//! Control moves numbers; the bytes they stand for wait here, in memory while the cloud answers and on disk
//! when it does not. Nothing here decides when a message is sent, stored or forgotten.

use std::sync::Arc;

use switchback_control::Seq;
use tokio::sync::{mpsc, oneshot};

/// A message as an application offers it, topic already mapped to the cloud's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    pub topic: String,
    pub payload: Vec<u8>,
    /// Towards the cloud: 0 or 1.
    pub qos: u8,
    pub retain: bool,
    /// MQTT 5 properties as the protocol's bytes (`io::packet::properties_to_bytes`).
    pub properties: Vec<u8>,
}

/// Why an offer was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The outbox is full.
    Full,
    /// The daemon is stopping.
    Stopping,
}

/// What became of an offer: first `accepted`, later `delivered`.
pub struct Offer {
    /// Resolves when the message is durable or the cloud has it (R-SF-3), or is refused.
    pub accepted: oneshot::Receiver<Result<Seq, Refusal>>,
    /// Resolves when the cloud has acknowledged it; closed without a value when it never will.
    pub delivered: oneshot::Receiver<()>,
}

/// A message from the cloud for local applications, topic already mapped to the local one.
#[derive(Debug)]
pub struct Downlink {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
    pub properties: Vec<u8>,
    /// Told once every local subscriber with a session has it in its queue; then the cloud is acknowledged.
    pub taken: oneshot::Sender<()>,
}

/// Room for messages from the cloud that local applications have not taken; then the cloud waits.
pub const DOWNLINK_MAX: usize = 64;

/// Where the cloud session puts what came for local applications.
pub type Downlinks = mpsc::Sender<Downlink>;

/// A message as it is kept and sent.
pub type Body = Arc<crate::outbox::Record>;
