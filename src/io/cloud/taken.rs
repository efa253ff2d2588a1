//! The cloud's messages of QoS 2 that were taken and not yet released, in memory and on disk (MQTT 5.0 section 4.3.3).
//!
//! A repetition of one of them is none, also after a restart, and neither is one of what is still with the applications:
//! that outlives the connection on which it came. The file is a line for each identifier; it is durable before
//! PUBREC is said and again before PUBCOMP is, since from then on the server may give the identifier to another message.
//! What remains: killed between the moment at which the last local subscriber had the message and the file being written,
//! subscribers get it once more. A disk that fails holds nothing up; then a restart knows less. What was found at the
//! start counts only for what is marked as a repetition: anything else is certainly new.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::lock;
use crate::outbox::{replace_file, set_aside};

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
    /// With the applications: who waits to hear that they took it. In each session of the server anew.
    with_them: HashMap<u16, Vec<oneshot::Sender<()>>>,
    session: u64,
    /// Changes, and how many of them the file has.
    changes: u64,
    saved: u64,
}

impl Taken {
    /// With what is noted at `path`; nowhere else is known than in memory without one.
    pub fn load(path: Option<PathBuf>) -> Taken {
        let text = path.as_ref().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        if let Some(path) = path.as_ref().filter(|_| text.lines().any(|line| line.parse::<u16>().is_err())) {
            set_aside(path, "it is of a newer version or damaged; messages of QoS 2 from the cloud may come twice");
        }
        let before = text.lines().filter_map(|line| line.parse().ok()).take(TAKEN_MAX).collect();
        let known = Mutex::new(Known { before, ..Known::default() });
        Taken { path, known, writing: tokio::sync::Mutex::default(), said: AtomicBool::new(false) }
    }

    /// Whether this message was taken before.
    pub fn has(&self, id: u16, dup: bool) -> bool {
        let known = lock(&self.known);
        known.now.contains(&id) || (dup && known.before.contains(&id))
    }

    /// The applications have it now, and say on `told` that they took it; the answer comes when that is noted.
    pub fn hand_over(self: &Arc<Self>, id: u16, told: oneshot::Receiver<()>) -> oneshot::Receiver<()> {
        let (noted, answer) = oneshot::channel();
        let session = {
            let mut known = lock(&self.known);
            known.with_them.insert(id, vec![noted]);
            known.session
        };
        let taken = self.clone();
        tokio::spawn(async move {
            let told = told.await.is_ok();
            if told && lock(&taken.known).session == session {
                taken.note(id).await;
            }
            let waiting = {
                let mut known = lock(&taken.known);
                if known.session == session { known.with_them.remove(&id) } else { None }
            };
            // Where they never take it, whoever waits hears that as well.
            for noted in waiting.into_iter().flatten().filter(|_| told) {
                // Whoever asked may be gone with its connection.
                let _ = noted.send(());
            }
        });
        answer
    }

    /// The applications have this message already: the answer comes when they took it.
    pub fn join(&self, id: u16) -> Option<oneshot::Receiver<()>> {
        let (noted, answer) = oneshot::channel();
        lock(&self.known).with_them.get_mut(&id)?.push(noted);
        Some(answer)
    }

    /// It was taken: its repetition is none.
    async fn note(&self, id: u16) {
        {
            let mut known = lock(&self.known);
            if known.now.len() < TAKEN_MAX {
                known.now.insert(id);
            }
            known.before.remove(&id);
            known.changes += 1;
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
            let changed = count != known.now.len() + known.before.len();
            known.changes += u64::from(changed);
            changed
        };
        if changed {
            self.save().await;
        }
    }

    /// The server has forgotten its session. On disk this stands with the next note; until then it harms nobody, as what
    /// a new session repeats was noted in it.
    pub fn forget(&self) {
        let mut known = lock(&self.known);
        let (session, changes, saved) = (known.session + 1, known.changes + 1, known.saved);
        *known = Known { session, changes, saved, ..Known::default() };
    }

    async fn save(&self) {
        let Some(path) = self.path.clone() else { return };
        let _writing = self.writing.lock().await;
        let (text, changes): (String, u64) = {
            let known = lock(&self.known);
            // Whoever wrote while we waited may have written this as well.
            if known.saved == known.changes {
                return;
            }
            (known.now.union(&known.before).map(|id| format!("{id}\n")).collect(), known.changes)
        };
        let written = tokio::task::spawn_blocking(move || replace_file(&path, text.as_bytes()));
        let problem = match timeout(SAVE_LIMIT, written).await {
            Ok(Ok(Ok(()))) => {
                lock(&self.known).saved = changes;
                return self.said.store(false, Ordering::Relaxed);
            }
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
    async fn what_is_with_the_applications_is_not_handed_over_twice() {
        let taken = Arc::new(Taken::load(None));
        let (told, heard) = oneshot::channel();
        let first = taken.hand_over(7, heard);
        let second = taken.join(7).unwrap();
        // The connection of the first is gone.
        drop(first);
        told.send(()).unwrap();
        assert_eq!(second.await, Ok(()));
        assert!(taken.has(7, true) && taken.join(7).is_none());
        // Never taken, and of another session.
        let (told, heard) = oneshot::channel::<()>();
        let first = taken.hand_over(8, heard);
        drop(told);
        assert!(first.await.is_err() && taken.join(8).is_none() && !taken.has(8, true));
        let (told, heard) = oneshot::channel();
        let first = taken.hand_over(9, heard);
        taken.forget();
        told.send(()).unwrap();
        assert!(first.await.is_err() && !taken.has(9, true) && taken.join(9).is_none());
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
