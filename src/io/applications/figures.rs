//! What the local face counts, for status and metrics.
//!
//! Totals since the start only grow; what is held is counted when somebody asks. Decides nothing.

use std::sync::Arc;

use super::router::Shared;

/// What the local face holds, and what it has done since the start. Cheap to ask for: it looks at each session once.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ApplicationFigures {
    /// Clients that are connected (at most `CLIENTS_MAX`).
    pub clients: usize,
    /// Sessions, of clients that are connected and of those that are away (at most `SESSIONS_MAX`).
    pub sessions: usize,
    /// Retained messages (at most `RETAINED_MAX`).
    pub retained: usize,
    /// Messages that wait for clients or are on their way to them.
    pub queued: usize,
    /// Their bytes in memory, roughly.
    pub queued_bytes: usize,
    /// Messages with QoS 0 that the outbox did not take: their senders cannot be told.
    pub refused: u64,
    /// Messages whose senders waited for the cloud, which will never have them: too old, dropped by their class, or set
    /// aside.
    pub given_up: u64,
    /// Messages for a client whose queue was full, from other clients and from the cloud.
    pub dropped: u64,
    /// Those of them that came from the cloud: its client was away, or took none for long.
    pub commands_dropped: u64,
    /// Messages from the cloud that nobody here has subscribed to.
    pub unwanted: u64,
    /// Messages from the cloud whose acknowledgement had to wait for a client.
    pub held: u64,
    /// Clients dropped because they did not take what the cloud sent.
    pub slow_dropped: u64,
    /// Clients turned away because all places were taken.
    pub clients_refused: u64,
    /// Clients that were not let in: no such user, or another password.
    pub strangers_refused: u64,
    /// Messages and subscriptions that no rule of the access list allows.
    pub denied: u64,
    /// Messages to where only the daemon itself may speak in the cloud.
    pub reserved: u64,
    /// Messages that name a class that there is not: the class of their rule counted.
    pub unknown_class: u64,
    /// Retained messages that were delivered but not kept.
    pub retained_refused: u64,
}

/// Answers with the figures of the moment, for as long as anybody asks; clones ask the same face.
#[derive(Clone, Debug)]
pub struct Gauge(Arc<Shared>);

impl Gauge {
    pub(super) fn new(shared: Arc<Shared>) -> Gauge {
        Gauge(shared)
    }

    /// The figures of the moment.
    pub fn read(&self) -> ApplicationFigures {
        self.0.with(|state| state.figures())
    }
}
