//! The store on its own thread: the outbox's disk, and the small files beside it.
//!
//! A slow card stops nothing but this thread. Jobs are taken in order, as many as wait at once, and share one sync.
//! What could not be written stays here, in memory and in order, and is tried again every second and after every
//! release, until it is written or released; the loop is told of the first failure and of the recovery. Nothing is
//! ever reported as stored before `fdatasync(2)` has returned.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use switchback_control::{Event, Name, Saved, Selector, Seq, Unreleased};

use super::Events;
use crate::config::OutboxConfig;
use crate::corridor::{Body, Corridor, StoreJob};
use crate::outbox::{AppendError, Limits, Outbox, Recovered, replace_file};

/// How often a failing store is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// What was released must not come back for long after a crash: the cursor is written this soon, and sooner when
/// nothing is left. While the cloud answers nothing is stored, so this costs nothing.
const FORGET_WITHIN: Duration = Duration::from_secs(1);
const FORGET_ALL_WITHIN: Duration = Duration::from_millis(50);
/// Jobs that share one sync, at most, so that the first of them does not wait for ever.
const TOGETHER_MAX: usize = 1024;

/// What displays show of the store.
#[derive(Debug, Default)]
pub struct StoreFigures {
    /// Bytes that the unreleased messages take on disk.
    pub bytes: AtomicU64,
    /// When the oldest unreleased stored message was accepted, milliseconds since the epoch; zero for none.
    pub oldest_accepted: AtomicU64,
}

/// The store before its thread is started: what was found, and the ends of its channel.
pub struct Storage {
    outbox: Outbox,
    jobs: Receiver<StoreJob>,
    commit_interval: Option<Duration>,
    figures: Arc<StoreFigures>,
}

/// Opens the outbox below `state_dir`; returns it with what it found, and the sender of jobs.
///
/// # Errors
/// As `Outbox::open`.
pub fn open(state_dir: &Path, config: &OutboxConfig) -> io::Result<(Storage, Recovered, mpsc::Sender<StoreJob>)> {
    let limits = Limits { max_bytes: config.max_size, ..Limits::default() };
    let (outbox, recovered) = Outbox::open(&state_dir.join("outbox"), limits)?;
    let (sender, jobs) = mpsc::channel();
    let figures = Arc::new(StoreFigures::default());
    figures.bytes.store(outbox.bytes(), Ordering::Relaxed);
    figures.oldest_accepted.store(recovered.oldest_accepted.unwrap_or(0), Ordering::Relaxed);
    let storage = Storage { outbox, jobs, commit_interval: config.commit_interval, figures };
    Ok((storage, recovered, sender))
}

/// What the heart is told of the recovery.
pub fn unreleased(recovered: &Recovered) -> Unreleased {
    Unreleased { runs: recovered.ranges.clone(), highest: recovered.highest_seq.unwrap_or(0) }
}

impl Storage {
    /// The figures for displays, kept up to date by the thread.
    pub fn figures(&self) -> Arc<StoreFigures> {
        self.figures.clone()
    }

    /// Starts the thread. It ends, with everything synced, after `StoreJob::Finish`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(self, corridor: Corridor, events: Events) -> io::Result<JoinHandle<()>> {
        let worker = Worker {
            outbox: self.outbox,
            waiting: VecDeque::new(),
            highest_asked: Seq(0),
            unsynced: None,
            released: None,
            failing: None,
            finishing: false,
            corridor,
            events,
            figures: self.figures,
        };
        let (jobs, interval) = (self.jobs, self.commit_interval);
        std::thread::Builder::new().name("store".into()).spawn(move || worker.run(&jobs, interval))
    }
}

struct Worker {
    outbox: Outbox,
    /// Asked for, and not yet in the outbox.
    waiting: VecDeque<Body>,
    highest_asked: Seq,
    /// In the outbox, not yet durable: the highest, and since when.
    unsynced: Option<(Seq, Instant)>,
    /// Stored messages were released since then, and the disk does not know.
    released: Option<Instant>,
    /// The store fails; whether because it is full.
    failing: Option<bool>,
    finishing: bool,
    corridor: Corridor,
    events: Events,
    figures: Arc<StoreFigures>,
}

impl Worker {
    fn run(mut self, jobs: &Receiver<StoreJob>, interval: Option<Duration>) {
        while !self.finishing {
            self.gather(jobs, interval);
            self.append();
            if self.sync_due(interval) {
                self.sync();
            }
            self.figures.bytes.store(self.outbox.bytes(), Ordering::Relaxed);
        }
        self.append();
        self.sync();
        if let Err(error) = self.outbox.close() {
            log::error!("outbox: the last messages could not be written: {error}");
        }
    }

    /// Waits for a job, or until something is due, and takes all that wait with it.
    fn gather(&mut self, jobs: &Receiver<StoreJob>, interval: Option<Duration>) {
        let first = match self.patience(interval) {
            None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(patience) => jobs.recv_timeout(patience),
        };
        match first {
            Ok(job) => self.take(job),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.finishing = true,
        }
        for job in jobs.try_iter().take(TOGETHER_MAX) {
            self.take(job);
        }
    }

    fn patience(&self, interval: Option<Duration>) -> Option<Duration> {
        if self.failing.is_some() {
            return Some(RETRY);
        }
        let commit = self.unsynced.map(|(_, since)| interval.unwrap_or_default().saturating_sub(since.elapsed()));
        let forget = self.released.map(|since| self.forget_within().saturating_sub(since.elapsed()));
        commit.into_iter().chain(forget).min()
    }

    fn forget_within(&self) -> Duration {
        if self.outbox.messages() == 0 { FORGET_ALL_WITHIN } else { FORGET_WITHIN }
    }

    fn take(&mut self, job: StoreJob) {
        match job {
            StoreJob::Append(body) => {
                let seq = body.seq;
                // Asked for again after a failure: it is still here.
                if seq > self.highest_asked {
                    self.highest_asked = seq;
                    self.waiting.push_back(body);
                }
            }
            StoreJob::Fetch(seq, answer) => {
                let _ = answer.send(self.fetch(seq));
            }
            StoreJob::SetAside(..) | StoreJob::Redeem(_) | StoreJob::RedeemAll => {}
            StoreJob::Pledge(_, answer) => drop(answer.send(false)),
            StoreJob::Finish => self.finishing = true,
            StoreJob::Release(through) => {
                self.waiting.retain(|body| body.seq > through);
                let before = self.outbox.messages();
                self.outbox.release(through);
                if self.outbox.messages() < before {
                    self.released.get_or_insert_with(Instant::now);
                }
                if self.outbox.messages() == 0 {
                    self.figures.oldest_accepted.store(0, Ordering::Relaxed);
                }
            }
        }
    }

    fn fetch(&mut self, seq: Seq) -> Option<Body> {
        if let Some(body) = self.waiting.iter().find(|body| body.seq == seq) {
            return Some(body.clone());
        }
        match self.outbox.read(seq) {
            Ok(record) => {
                let body = record.map(Arc::new)?;
                self.figures.oldest_accepted.store(body.accepted, Ordering::Relaxed);
                Some(body)
            }
            Err(error) => {
                log::error!("outbox: message {} cannot be read: {error}", seq.0);
                None
            }
        }
    }

    fn append(&mut self) {
        while let Some(body) = self.waiting.front() {
            let seq = body.seq;
            match self.outbox.append(body) {
                Ok(()) => {
                    let since = self.unsynced.map_or_else(Instant::now, |(_, since)| since);
                    self.unsynced = Some((seq, since));
                    if self.figures.oldest_accepted.load(Ordering::Relaxed) == 0 {
                        self.figures.oldest_accepted.store(body.accepted, Ordering::Relaxed);
                    }
                }
                Err(AppendError::Full) => return self.fail(true, &AppendError::Full),
                Err(AppendError::Io(error)) => {
                    let full = error.kind() == io::ErrorKind::StorageFull;
                    return self.fail(full, &error);
                }
                // Neither can happen: the corridor checks sizes, and numbers ascend. The message stays in memory
                // and the cloud may still take it.
                Err(error @ (AppendError::TooLarge { .. } | AppendError::NotAscending { .. })) => {
                    log::error!("outbox: message {} is not stored: {error}", seq.0);
                }
            }
            self.waiting.pop_front();
        }
    }

    fn sync_due(&self, interval: Option<Duration>) -> bool {
        let forget = self.released.is_some_and(|since| since.elapsed() >= self.forget_within());
        match (self.unsynced, interval) {
            _ if forget => true,
            (None, _) => self.failing.is_some(),
            (Some((_, since)), Some(interval)) => since.elapsed() >= interval,
            (Some(_), None) => true,
        }
    }

    fn sync(&mut self) {
        if let Err(error) = self.outbox.sync() {
            return self.fail(error.kind() == io::ErrorKind::StorageFull, &error);
        }
        self.released = None;
        if let Some((through, _)) = self.unsynced.take() {
            self.corridor.stored(through);
            self.tell(Event::Stored { through });
        }
        if self.waiting.is_empty() && self.failing.take().is_some() {
            log::info!("outbox: writes again");
            self.tell(Event::StorageHealed);
        }
    }

    fn fail(&mut self, full: bool, error: &dyn std::fmt::Display) {
        if self.failing != Some(full) {
            self.failing = Some(full);
            log::error!("outbox: {error}; messages are acknowledged only when the cloud has them");
            self.tell(Event::StorageFailed { full });
        }
    }

    fn tell(&self, event: Event) {
        // The loop is gone: the daemon is ending, and nobody needs to know.
        let _ = self.events.blocking_send(event);
    }
}

/// The saved value and its companions, small files that are replaced whole.
pub struct SavedFile {
    path: PathBuf,
    boot_id: String,
}

/// First line of the file; another version is set aside and reported.
const SAVED_HEADER: &str = "switchback saved 1";

impl SavedFile {
    /// The file `saved` in `state_dir`. `boot_id` bounds what holds only until a reboot (R-CL-6).
    pub fn new(state_dir: &Path, boot_id: &str) -> SavedFile {
        SavedFile { path: state_dir.join("saved"), boot_id: boot_id.to_owned() }
    }

    /// What was saved last. A file that is not there is the default; one that makes no sense is set aside, reported,
    /// and the default is taken.
    pub fn load(&self) -> Saved {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Saved::default(),
            Err(error) => return self.set_aside(&error.to_string()),
        };
        match parse_saved(&text, &self.boot_id) {
            Some(saved) => saved,
            None => self.set_aside("it is damaged or of a newer version"),
        }
    }

    fn set_aside(&self, why: &str) -> Saved {
        let aside = self.path.with_extension("damaged");
        let _ = std::fs::rename(&self.path, &aside);
        log::warn!(
            "{} is not used: {why}; kept as {}, starting with the defaults",
            self.path.display(),
            aside.display()
        );
        Saved::default()
    }

    /// Replaces the file; when this returns, the value survives a power cut.
    ///
    /// # Errors
    /// As the file system says; the old file is then still there.
    pub fn save(&self, saved: &Saved) -> io::Result<()> {
        replace_file(&self.path, print_saved(saved, &self.boot_id).as_bytes())
    }

    /// The number of this start, made durable before it is returned (R-SF-7).
    ///
    /// # Errors
    /// When it could not be made durable: identities would repeat.
    pub fn next_start(&self) -> io::Result<u64> {
        let path = self.path.with_file_name("starts");
        let last = std::fs::read_to_string(&path).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0u64);
        let next = last.saturating_add(1);
        replace_file(&path, format!("{next}\n").as_bytes())?;
        Ok(next)
    }
}

fn print_saved(saved: &Saved, boot_id: &str) -> String {
    let list: Vec<String> = saved.list.iter().map(Selector::to_string).collect();
    let held = if saved.held { boot_id } else { "" };
    let last_good = saved.last_good.map(|n| n.to_string()).unwrap_or_default();
    let body = format!("{SAVED_HEADER}\nlist={}\nheld={held}\nlast-good={last_good}\n", list.join(" "));
    format!("{body}crc={:08x}\n", crc32c::crc32c(body.as_bytes()))
}

fn parse_saved(text: &str, boot_id: &str) -> Option<Saved> {
    let (body, crc) = text.split_at(text.find("crc=")?);
    let crc = u32::from_str_radix(crc.strip_prefix("crc=")?.trim_end(), 16).ok()?;
    if crc != crc32c::crc32c(body.as_bytes()) || body.lines().next() != Some(SAVED_HEADER) {
        return None;
    }
    let value = |key: &str| body.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let list: Result<Vec<Selector>, _> = value("list")?.split_whitespace().map(str::parse).collect();
    let last_good = value("last-good")?;
    Some(Saved {
        list: list.ok()?,
        held: value("held")? == boot_id && !boot_id.is_empty(),
        last_good: if last_good.is_empty() { None } else { Some(Name::new(last_good).ok()?) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use switchback_control::Class;

    fn some() -> Saved {
        let wwan0 = Name::new("wwan0").unwrap();
        let list = vec![Selector::Class(Class::Wifi), Selector::Name(wwan0)];
        Saved { list, held: true, last_good: Some(wwan0) }
    }

    #[test]
    fn what_is_saved_is_read_again() {
        assert_eq!(parse_saved(&print_saved(&some(), "b1"), "b1"), Some(some()));
        assert_eq!(parse_saved(&print_saved(&Saved::default(), "b1"), "b1"), Some(Saved::default()));
    }

    #[test]
    fn staying_disconnected_ends_with_the_boot() {
        let read = parse_saved(&print_saved(&some(), "b1"), "b2").unwrap();
        assert!(!read.held);
        assert_eq!(read.list, some().list);
    }

    #[test]
    fn a_file_cut_or_changed_at_any_byte_is_noticed() {
        let text = print_saved(&some(), "b1");
        for end in 0..text.len() - 1 {
            assert_eq!(parse_saved(&text[..end], "b1"), None, "cut at {end}");
        }
        for index in 0..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[index] ^= 1;
            if let Ok(changed) = String::from_utf8(bytes) {
                assert_ne!(parse_saved(&changed, "b1"), Some(Saved { held: false, ..some() }), "changed at {index}");
                if parse_saved(&changed, "b1").is_some() {
                    assert!(changed.eq_ignore_ascii_case(&text), "changed at {index}");
                }
            }
        }
    }

    #[test]
    fn a_damaged_file_is_set_aside_and_the_default_taken() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("saved"), "rubbish").unwrap();
        let file = SavedFile::new(dir.path(), "b1");
        assert_eq!(file.load(), Saved::default());
        assert!(dir.path().join("saved.damaged").exists());
        file.save(&some()).unwrap();
        assert_eq!(file.load(), some());
    }

    #[test]
    fn every_start_has_a_higher_number() {
        let dir = tempfile::tempdir().unwrap();
        let file = SavedFile::new(dir.path(), "b1");
        assert_eq!((file.next_start().unwrap(), file.next_start().unwrap()), (1, 2));
    }
}
