//! What can be asked of the daemon from outside, whatever it is asked through.
//!
//! The control socket, the D-Bus service and the status page all speak this: a verb with options as JSON goes in,
//! one JSON object comes out. Nothing here touches a socket or decides anything about networks.
//!
//! `verb` checks what comes in, `document` and `outbox` build what goes out.

pub mod base64;
mod document;
mod explain;
mod outbox;
mod verb;

pub use document::{
    Live, LiveOutbox, LiveSession, LiveUplink, PublishResult, WallClock, dropped_document, failback_document,
    failover_document, known_as, publish_document, result_document, rfc3339_ms, rfc3339_us, status_document,
};
pub use explain::{explain_document, in_words, record_in_words};
pub use outbox::{
    ClassFigures, LiveLane, classes, left_in_words, live_lanes, messages, outbox_document, size, thousands,
};
pub use verb::{
    DROP_ALL, DROP_REJECTED, EVENTS_MAX, FLUSH_TIMEOUT, LIST_MAX, PAYLOAD_MAX, PUBLISH_TIMEOUT, PublishStage,
    RETURN_TIMEOUT, Reset, Since, TIMEOUT_MAX, Verb,
};

use serde_json::{Map, Value};
use switchback_control::Reason;
use tokio::sync::{mpsc, oneshot};

/// One request: a verb of the contract and its options.
#[derive(Debug)]
pub struct Call {
    pub verb: String,
    pub options: Map<String, Value>,
    pub reply: oneshot::Sender<Reply>,
}

/// What a verb answers: its JSON keys, or why not.
pub type Reply = Result<Map<String, Value>, Failure>;

/// Why a verb did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit status of the command line: 1 the thing asked for did not happen, 2 wrong usage.
    pub code: u8,
    /// One sentence for people, with what to do.
    pub message: String,
    /// The reason word, where one applies.
    pub reason: Option<Reason>,
}

/// Where front doors put calls for the loop.
pub type Calls = mpsc::Sender<Call>;

/// Calls waiting for the loop; a front door that is ahead waits.
pub const CALLS_MAX: usize = 64;

impl Failure {
    /// Wrong usage (exit status 2).
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { code: 2, message: message.into(), reason: None }
    }

    /// The thing asked for did not happen (exit status 1).
    pub fn failed(message: impl Into<String>, reason: Option<Reason>) -> Failure {
        Failure { code: 1, message: message.into(), reason }
    }
}
