//! The store on its own thread: the outbox's disk, and the small files beside it.
//!
//! ```text
//! STATE/outbox, outbox-CLASS, …   one log for each lane                     (see `lane`, and `crate::outbox`)
//!       pledges                   messages of QoS 2 on their way            (see `pledges`)
//!       rejected.jsonl            what the server will never take           (see `aside`)
//!       saved, starts             small values that are replaced whole      (see `saved`)
//! ```
//!
//! A slow card stops nothing but this thread, and a disk that fails, is full or read-only ends nothing, not even at the
//! start (R-SF-11): the loop is told, messages stay in memory, and it is tried again until it works.

mod age;
mod aside;
mod lane;
mod lanes;
mod pledges;
mod saved;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use switchback_control::{Lane as Number, Seq, Unreleased};

use super::Events;
use crate::config::{Config, LaneConfig};
use crate::corridor::{Corridor, Pledge, StoreJob};
use crate::outbox::{Damage, Disk, Limits, Local, Why, set_aside};
use lane::Lane;
use pledges::{Pledges, lane_key};
use worker::{Place, Worker};

pub use saved::SavedFile;

/// What displays show of the store.
#[derive(Debug, Default)]
pub struct StoreFigures {
    /// Bytes that the unreleased messages take on disk.
    pub bytes: AtomicU64,
    /// When the oldest unreleased stored message was accepted, milliseconds since the epoch; zero for none.
    pub oldest_accepted: AtomicU64,
    /// The same for each lane; zero where it lives in memory.
    pub lanes: Vec<LaneFigures>,
    /// Why the disk keeps nothing now, in words.
    trouble: Mutex<Option<String>>,
}

/// What displays show of one lane.
#[derive(Debug, Default)]
pub struct LaneFigures {
    pub bytes: AtomicU64,
    pub oldest_accepted: AtomicU64,
}

/// What opening found.
pub struct Opened {
    pub storage: Storage,
    /// Where the store is asked for things.
    pub jobs: Sender<StoreJob>,
    /// What the heart is told of each lane.
    pub unreleased: Vec<Unreleased>,
    /// Messages of QoS 2 that were on their way, for the cloud session; each is in its log.
    pub pledges: Vec<Pledge>,
    /// The largest record that each lane takes, for the corridor.
    pub record_limits: Vec<u64>,
}

/// The store before its thread is started.
pub struct Storage {
    worker: Worker<Local>,
    jobs: Receiver<StoreJob>,
}

/// Opens every lane below `state_dir`, and what an earlier configuration left there: such lanes are added to `config`.
///
/// # Errors
/// Only what waiting does not mend: another process uses it (`ResourceBusy`), we may not write there
/// (`PermissionDenied`), or it is no directory. Files of a newer version are set aside.
pub fn open(state_dir: &Path, config: &mut Config) -> io::Result<Opened> {
    let configured = config.lanes.len();
    match lanes::adopt(state_dir, config) {
        Err(error) if lane::is_final(&error) => return Err(error),
        Err(error) => log::error!("{}: {error}", state_dir.display()),
        Ok(()) => {}
    }
    let mut orphans = Vec::new();
    loop {
        let (worker, unreleased, mut pledges) =
            open_on(Local, state_dir, &config.lanes, config.outbox.commit_interval)?;
        orphans.extend_from_slice(worker.orphans());
        // What an earlier configuration left and holds nothing any more is cleared away; one that alone cannot be read is
        // left to a later start, since all would wait for it. The rest is opened again: a lane's number is its place.
        let mut left_behind = configured..config.lanes.len();
        let alone = |index: usize| worker.is_unread(index) && !worker.is_unread(0);
        if let Some(index) = left_behind.find(|index| worker.is_empty(*index) || alone(*index)) {
            let empty = worker.is_empty(index);
            worker.close();
            let lane = config.lanes.remove(index);
            config.settings.lanes.remove(index);
            if empty {
                remove(&state_dir.join(lane.directory));
            }
            continue;
        }
        // The server is told that it may forget those of messages that are gone; they are under a lane that there is not.
        let gone = |id: u16| Pledge { seq: Seq::new(Number(u8::MAX), id.into()), id, received: true };
        orphans.retain(|id| pledges.iter().all(|pledge| pledge.id != *id));
        pledges.extend(orphans.drain(..).map(gone));
        let (sender, jobs) = mpsc::channel();
        let record_limits = worker.record_limits();
        return Ok(Opened { storage: Storage { worker, jobs }, jobs: sender, unreleased, pledges, record_limits });
    }
}

impl Storage {
    /// The figures for displays, kept up to date by the thread.
    pub fn figures(&self) -> Arc<StoreFigures> {
        self.worker.figures()
    }

    /// Starts the thread. It ends, with everything synced, after `StoreJob::Finish`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(self, corridor: Corridor, events: Events) -> io::Result<JoinHandle<()>> {
        let Storage { worker, jobs } = self;
        std::thread::Builder::new().name("store".into()).spawn(move || worker.run(&jobs, &corridor, &events))
    }
}

/// What was found in a lane, and what was in the way.
#[derive(Default)]
struct Found {
    unreleased: Unreleased,
    trouble: Option<io::Error>,
}

fn open_on<D: Disk + Clone>(
    disk: D,
    state_dir: &Path,
    configured: &[LaneConfig],
    interval: Option<Duration>,
) -> io::Result<(Worker<D>, Vec<Unreleased>, Vec<Pledge>)> {
    let mut places = Vec::with_capacity(configured.len());
    let (mut unreleased, mut trouble) = (Vec::new(), None);
    for (index, config) in configured.iter().enumerate() {
        let number = Number(u8::try_from(index).unwrap_or(u8::MAX));
        let mut found = Found::default();
        let mut opened = None;
        if !config.directory.is_empty() {
            let dir = state_dir.join(&config.directory);
            // The first is always there: its lock keeps a second daemon out.
            let limits = Limits::of(config.max_size);
            let open = || Lane::open(disk.clone(), number, dir.clone(), limits, index == 0);
            let (lane, what) = match open() {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    set_aside(&dir, &format!("{error}; the messages in it wait for that version"));
                    open()?
                }
                opened => opened?,
            };
            (opened, found) = (Some(lane), what);
        }
        trouble = trouble.or(found.trouble);
        unreleased.push(found.unreleased);
        places.push(Place { lane: opened, key: lane_key(&config.directory), class: config.class.clone() });
    }
    let mut pledges = Pledges::open(disk.clone(), state_dir);
    let kept = pledges.settle(|key, number| {
        let lane = places.iter_mut().find(|place| place.key == key)?.lane.as_mut()?;
        if lane.is_unread() { None } else { Some(lane.holds(number)) }
    });
    for (place, found) in places.iter_mut().zip(&mut unreleased) {
        let over = pledges.over(place.key);
        if let Some(lane) = place.lane.as_mut().filter(|lane| !lane.is_unread()) {
            lane.take_out(found, &over);
        }
    }
    let place_of = |key| places.iter().position(|place| place.key == key).and_then(|index| u8::try_from(index).ok());
    let pledged = kept.into_iter().filter_map(|kept| {
        let seq = Seq::new(Number(place_of(kept.lane)?), kept.number);
        Some(Pledge { seq, id: kept.id, received: kept.received })
    });
    let pledged = pledged.collect();
    Ok((Worker::new(disk, state_dir, places, pledges, interval, trouble), unreleased, pledged))
}

/// Removes the directory of a lane that nobody uses any more; what was set aside in it is kept for the curious.
fn remove(dir: &Path) {
    let curious = |entry: io::Result<std::fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_name().to_string_lossy().ends_with(".damaged"))
    };
    let keep = std::fs::read_dir(dir).is_ok_and(|mut entries| entries.any(curious));
    if !keep && let Err(error) = std::fs::remove_dir_all(dir) {
        log::warn!("{} is empty and cannot be removed: {error}", dir.display());
    }
}

/// What the outbox found, in a sentence. The trace of a power cut is no loss.
fn tell_damage(damage: &Damage) {
    let (file, after, before) = (damage.file.display(), damage.after, damage.before);
    match &damage.why {
        Why::Unfinished => {
            log::info!("outbox: {file}: the last write was cut short; nothing that was promised is missing");
        }
        Why::Lost => log::error!("outbox: {file}: the disk lost messages between number {after} and {before}"),
        Why::SetAside => log::error!("outbox: {file} holds nothing readable and was set aside"),
        Why::Unreadable(why) => {
            log::error!("outbox: {file} cannot be read now ({why}); it is tried again at the next start");
        }
        Why::CursorLost => log::warn!("outbox: {file} was damaged; some messages may be sent again"),
    }
}

impl StoreFigures {
    /// Why the disk keeps nothing now, in words.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

/// Sets a figure that displays read; zero stands for none.
fn show(figure: &AtomicU64, value: Option<u64>) {
    figure.store(value.unwrap_or(0), Ordering::Relaxed);
}
