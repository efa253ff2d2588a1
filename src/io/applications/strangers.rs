//! Connections that have not said who they are: few, cheap, and the oldest gives way.
//!
//! A stranger holds no place of a client. When there are too many, the one that has been silent longest is closed, so
//! that connections that never speak keep nobody out; who means to speak does so at once. Knows no socket and no MQTT.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::STRANGERS_MAX;

/// Everybody who has not been let in yet, oldest first.
#[derive(Debug, Default)]
pub struct Strangers(Mutex<VecDeque<Arc<Notify>>>);

/// One of them, for as long as this lives.
#[derive(Debug)]
pub struct Stranger {
    all: Arc<Strangers>,
    out: Arc<Notify>,
}

impl Strangers {
    /// Another one knocks; the oldest goes if there are too many.
    pub fn knock(self: &Arc<Strangers>) -> Stranger {
        let out = Arc::<Notify>::default();
        let mut waiting = self.lock();
        if waiting.len() >= STRANGERS_MAX
            && let Some(oldest) = waiting.pop_front()
        {
            oldest.notify_one();
        }
        waiting.push_back(Arc::clone(&out));
        Stranger { all: Arc::clone(self), out }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stranger {
    /// Resolves when it must give way.
    pub async fn shown_out(&self) {
        self.out.notified().await;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.all.lock().retain(|other| !Arc::ptr_eq(other, &self.out));
    }
}
