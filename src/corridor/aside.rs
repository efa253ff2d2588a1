//! Messages that the server will never take: out of the way, and kept for people (R-TX-13).

use serde::{Deserialize, Serialize};
use switchback_control::Seq;
use tokio::sync::oneshot;

use super::{Corridor, StoreJob};

/// A message that the server will never take, as it is kept for people (R-TX-13).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAside {
    /// When it was set aside, RFC 3339.
    pub time: String,
    pub topic: String,
    pub id: String,
    pub class: String,
    /// In the server's words.
    pub why: String,
    /// Bytes of the payload.
    pub bytes: u64,
    /// Its beginning, in base 64.
    pub payload: String,
}

impl Corridor {
    /// The server will never take this message, and says why; the heart is told by an event.
    pub fn rejected(&self, seq: Seq, why: String) {
        self.lock().rejected.insert(seq, why);
    }

    /// `Action::SetAside`: the server will never take it; whoever waits for its delivery waits in vain.
    pub fn set_aside(&self, seq: Seq) {
        let mut bodies = self.lock();
        bodies.delivered.remove(&seq);
        let why = bodies.rejected.remove(&seq).unwrap_or_default();
        let body = bodies.held.get(&seq).cloned();
        let _ = self.0.store.send(StoreJob::SetAside(seq, body, why));
    }

    /// All that were set aside, the oldest first.
    pub async fn set_asides(&self) -> Vec<SetAside> {
        let (answer, list) = oneshot::channel();
        let _ = self.0.store.send(StoreJob::SetAsides(answer));
        list.await.unwrap_or_default()
    }

    /// Forgets all that were set aside; whether that is durable.
    pub async fn clear_set_asides(&self) -> bool {
        let (answer, done) = oneshot::channel();
        let _ = self.0.store.send(StoreJob::ClearSetAsides(answer));
        done.await.unwrap_or(false)
    }
}
