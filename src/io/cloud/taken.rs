//! The cloud's messages of QoS 2 that were taken and not yet released, in memory and on disk (MQTT 5.0 section 4.3.3).
//!
//! A repetition of one of them is none, also after a restart. The file is a line for each identifier; it is durable before
//! PUBREC is said and again before PUBCOMP is, since from then on the server may give the identifier to another message.
//! What remains: killed between the moment at which the last local subscriber had the message and the file being written,
//! subscribers get it once more. A disk that fails holds nothing up; then a restart knows less. What was found at the
//! start counts only for what is marked as a repetition: anything else is certainly new.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::timeout;

use super::lock;
use crate::outbox::replace_file;

/// Identifiers noted at once: far above `speech::RECEIVE_MAX`, for servers of 3.1.1, which know no such limit.
const TAKEN_MAX: usize = 256;
/// How long a slow disk is waited for.
const SAVE_LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Taken {
    path: Option<PathBuf>,
    known: Mutex<Known>,
    /// One writes at a time, so that the last one writes what is true.
    writing: tokio::sync::Mutex<()>,
    said: AtomicBool,
}

#[derive(Debug, Default)]
struct Known {
    now: HashSet<u16>,
    /// Found at the start.
    before: HashSet<u16>,
}

impl Taken {
    /// With what is noted at `path`; nowhere else is known than in memory without one.
    pub fn load(path: Option<PathBuf>) -> Taken {
        let text = path.as_ref().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        let before = text.lines().filter_map(|line| line.parse().ok()).take(TAKEN_MAX).collect();
        let known = Mutex::new(Known { before, ..Known::default() });
        Taken { path, known, writing: tokio::sync::Mutex::default(), said: AtomicBool::new(false) }
    }

    /// Whether this message was taken before.
    pub fn has(&self, id: u16, dup: bool) -> bool {
        let known = lock(&self.known);
        known.now.contains(&id) || (dup && known.before.contains(&id))
    }

    /// It was taken: its repetition is none.
    pub async fn note(&self, id: u16) {
        {
            let mut known = lock(&self.known);
            if known.now.len() < TAKEN_MAX {
                known.now.insert(id);
            }
            known.before.remove(&id);
        }
        self.save().await;
    }

    /// The server will not repeat these any more.
    pub async fn release(&self, ids: &[u16]) {
        let changed = {
            let mut known = lock(&self.known);
            let count = known.now.len() + known.before.len();
            for id in ids {
                known.now.remove(id);
                known.before.remove(id);
            }
            count != known.now.len() + known.before.len()
        };
        if changed {
            self.save().await;
        }
    }

    /// The server has forgotten its session. On disk this stands with the next note; until then it harms nobody, as what
    /// a new session repeats was noted in it.
    pub fn forget(&self) {
        *lock(&self.known) = Known::default();
    }

    async fn save(&self) {
        let Some(path) = self.path.clone() else { return };
        let _writing = self.writing.lock().await;
        let text: String = {
            let known = lock(&self.known);
            known.now.union(&known.before).map(|id| format!("{id}\n")).collect()
        };
        let written = tokio::task::spawn_blocking(move || replace_file(&path, text.as_bytes()));
        let problem = match timeout(SAVE_LIMIT, written).await {
            Ok(Ok(Ok(()))) => return self.said.store(false, Ordering::Relaxed),
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(_)) | Err(_) => "the disk takes too long".to_owned(),
        };
        if !self.said.swap(true, Ordering::Relaxed) {
            log::warn!(
                "which messages of QoS 2 were taken cannot be noted ({problem}): some may come twice after a restart"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_taken_is_known_after_a_restart_until_it_is_released() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        let taken = Taken::load(Some(path.clone()));
        taken.note(7).await;
        taken.note(8).await;
        assert!(taken.has(7, false) && !taken.has(9, true));
        let taken = Taken::load(Some(path.clone()));
        // Not marked as a repetition, it is another message.
        assert!(taken.has(7, true) && !taken.has(7, false));
        taken.release(&[7, 9]).await;
        let taken = Taken::load(Some(path.clone()));
        assert!(!taken.has(7, true) && taken.has(8, true));
        taken.forget();
        assert!(!taken.has(8, true));
        taken.note(1).await;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n");
        std::fs::write(&path, b"\xff\xfe").unwrap();
        assert!(!Taken::load(Some(path)).has(1, true));
    }

    #[tokio::test]
    async fn a_disk_that_fails_and_a_server_without_measure_hold_nothing_up() {
        let taken = Taken::load(Some("/nowhere/at/all".into()));
        for id in 1..=300 {
            taken.note(id).await;
        }
        assert!(taken.has(256, false) && !taken.has(257, false));
    }
}
