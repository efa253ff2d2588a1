//! The store's thread: takes jobs in order, as many as wait at once, and lets them share one sync of each log.
//!
//! What could not be written stays in memory and in order, and is tried again every second and after every release, until
//! it is written or released; the loop is told of the first failure and of the recovery. Always true: a pledge is answered
//! only when it and everything asked for before it is durable. Deeds take the moment as a value, and what the loop is to
//! hear is gathered in `told`: the tests turn it by hand.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use switchback_control::{Event, Seq};
use tokio::sync::oneshot;

use super::aside::SetAsides;
use super::lane::Lane;
use super::pledges::{Kept, Pledges};
use super::{Events, LaneFigures, StoreFigures, show};
use crate::corridor::{Body, Corridor, Pledge, READ_MAX, StoreJob};
use crate::io::clock;
use crate::outbox::{Disk, MAX_RECORD, Preparation};

/// How often a failing store is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Where trying takes long, because a large log is read, it is tried so much less often.
const RETRY_SHARE: u32 = 30;
/// How often ages are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Jobs that share one sync, at most, so that the first of them does not wait for ever.
const TOGETHER_MAX: usize = 1024;
/// Messages that come this close behind each other share one sync: it takes some milliseconds, and without waiting for
/// them the first of a hundred would have one for itself, and a block of the card with it. Never longer than the second.
const CLOSE: Duration = Duration::from_micros(100);
const CLOSE_TOGETHER: Duration = Duration::from_millis(1);
/// A few calls deep, with its buffer elsewhere.
const PREPARING_STACK: usize = 128 * 1024;

/// One lane of the configuration.
pub(super) struct Place<D: Disk> {
    /// `None` where it lives in memory.
    pub lane: Option<Lane<D>>,
    /// Its name in a pledge.
    pub key: u64,
    pub class: String,
}

pub(super) struct Worker<D: Disk> {
    places: Vec<Place<D>>,
    pledges: Pledges<D>,
    /// Who waits for the next flush of the pledges.
    pledging: Vec<oneshot::Sender<bool>>,
    asides: SetAsides<D>,
    interval: Option<Duration>,
    failing: Option<Failing>,
    /// When ages are looked at next.
    look_at: Option<Instant>,
    finishing: bool,
    /// What the loop is to hear.
    pub told: Vec<Event>,
    figures: Arc<StoreFigures>,
}

struct Failing {
    /// Whether because the disk is full.
    full: bool,
    try_at: Instant,
}

impl<D: Disk + Clone> Worker<D> {
    pub fn new(
        disk: D,
        state_dir: &Path,
        places: Vec<Place<D>>,
        pledges: Pledges<D>,
        interval: Option<Duration>,
        trouble: Option<io::Error>,
    ) -> Worker<D> {
        let lanes = places.iter().map(|_| LaneFigures::default()).collect();
        let mut worker = Worker {
            places,
            pledges,
            pledging: Vec::new(),
            asides: SetAsides::new(disk, state_dir),
            interval,
            failing: None,
            look_at: None,
            finishing: false,
            told: Vec::new(),
            figures: Arc::new(StoreFigures { lanes, ..StoreFigures::default() }),
        };
        if let Some(error) = trouble {
            worker.fail(&error, Instant::now(), Duration::ZERO);
        } else if let Err(error) = worker.pledges.flush() {
            log::error!("{error}");
        }
        worker.show();
        worker
    }

    /// As `Pledges::orphans`.
    pub fn orphans(&self) -> &[u16] {
        self.pledges.orphans()
    }

    pub fn figures(&self) -> Arc<StoreFigures> {
        self.figures.clone()
    }

    /// The largest record of each lane.
    pub fn record_limits(&self) -> Vec<u64> {
        self.places.iter().map(|place| place.lane.as_ref().map_or(MAX_RECORD, Lane::record_limit)).collect()
    }

    /// Nothing is in there, for sure.
    pub fn is_empty(&self, index: usize) -> bool {
        self.places.get(index).and_then(|place| place.lane.as_ref()).is_some_and(Lane::is_empty)
    }

    /// Its log cannot be read now.
    pub fn is_unread(&self, index: usize) -> bool {
        self.places.get(index).and_then(|place| place.lane.as_ref()).is_some_and(Lane::is_unread)
    }

    /// Works until `StoreJob::Finish`, or until nobody can ask any more.
    pub fn run(mut self, jobs: &Receiver<StoreJob>, corridor: &Corridor, events: &Events)
    where
        D: Send + 'static,
    {
        while !self.finishing {
            self.tell(corridor, events);
            self.preparations().for_each(prepare);
            self.gather(jobs);
            self.turn(Instant::now(), clock::least_wall());
        }
        self.tell(corridor, events);
        self.close();
    }

    /// Writes what is left and lets the files go.
    pub fn close(mut self) {
        self.finishing = true;
        self.turn(Instant::now(), clock::least_wall());
        for lane in self.places.into_iter().filter_map(|place| place.lane) {
            if let Err(error) = lane.close() {
                log::error!("outbox: the last messages could not be written: {error}");
            }
        }
    }

    fn tell(&mut self, corridor: &Corridor, events: &Events) {
        for event in self.told.drain(..) {
            if let Event::Stored { through } = event {
                corridor.stored(through);
            }
            // The loop is gone: the daemon is ending, and nobody needs to know.
            let _ = events.blocking_send(event);
        }
    }

    /// Files that somebody else should make meanwhile.
    pub fn preparations(&mut self) -> impl Iterator<Item = Preparation<D>> {
        self.places.iter_mut().filter_map(|place| place.lane.as_mut()?.preparation())
    }

    /// Waits for a job, or until something is due, and takes all that wait with it.
    fn gather(&mut self, jobs: &Receiver<StoreJob>) {
        let now = Instant::now();
        let first = match self.patience(now) {
            None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(patience) => jobs.recv_timeout(patience),
        };
        let now = Instant::now();
        match first {
            Ok(job) => self.take(job, now),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.finishing = true,
        }
        for _ in 0..TOGETHER_MAX {
            let writing = self.lanes().any(Lane::is_writing) && now.elapsed() < CLOSE_TOGETHER;
            let next = if writing { jobs.recv_timeout(CLOSE).ok() } else { jobs.try_recv().ok() };
            let Some(job) = next else { break };
            self.take(job, now);
        }
    }

    /// How long nothing is due; `None` for ever.
    pub fn patience(&self, now: Instant) -> Option<Duration> {
        let until = |at: Instant| at.saturating_duration_since(now);
        let look = self.look_at.map(until);
        let due = match &self.failing {
            Some(failing) => Some(until(failing.try_at)),
            None => {
                self.lanes().flat_map(|lane| [lane.commit_in(self.interval, now), lane.forget_in(now)]).flatten().min()
            }
        };
        look.into_iter().chain(due).min()
    }

    pub fn take(&mut self, job: StoreJob, now: Instant) {
        match job {
            StoreJob::Append(body) => {
                if let Some(lane) = self.lane(body.seq) {
                    lane.ask(body);
                }
            }
            StoreJob::Read(seqs, answer) => drop(answer.send(self.read(&seqs))),
            StoreJob::Discard(from, through) => {
                if let Some(lane) = self.lane(from) {
                    lane.discard(from.number(), through.number());
                }
            }
            StoreJob::FindExpired(lane) => {
                if let Some(lane) = self.lane(Seq::new(lane, 0)) {
                    lane.look_through();
                    self.look_at = Some(now);
                }
            }
            StoreJob::Release(through) => {
                if let Some(lane) = self.lane(through) {
                    lane.release(through.number(), now);
                }
                // A full disk may have room now.
                if let Some(failing) = self.failing.as_mut().filter(|failing| failing.full) {
                    failing.try_at = now;
                }
            }
            StoreJob::SetAside(seq, body, why) => self.set_aside(seq, body, &why),
            StoreJob::SetAsides(answer) => drop(answer.send(self.asides.list())),
            StoreJob::ClearSetAsides(answer) => drop(answer.send(self.asides.clear())),
            StoreJob::Pledge(pledge, answer) => self.pledge(pledge, answer),
            StoreJob::Redeem(id) => self.pledges.redeem(id),
            StoreJob::RedeemAll => self.pledges.redeem_all(),
            StoreJob::Finish => self.finishing = true,
        }
    }

    /// As `Corridor::read`.
    fn read(&mut self, seqs: &[Seq]) -> Vec<Option<Body>> {
        let (mut bodies, mut bytes) = (Vec::with_capacity(seqs.len()), 0);
        for seq in seqs {
            let Some(lane) = self.lane(*seq) else {
                bodies.push(None);
                continue;
            };
            match lane.fetch(*seq) {
                Ok(body) => {
                    bytes += body.as_ref().map_or(0, |body| body.payload.len());
                    bodies.push(body);
                }
                Err(error) => {
                    log::error!("outbox: message {seq} cannot be read: {error}");
                    break;
                }
            }
            if bytes >= READ_MAX {
                break;
            }
        }
        bodies
    }

    fn set_aside(&mut self, seq: Seq, body: Option<Body>, why: &str) {
        let body = body.or_else(|| self.lane(seq)?.fetch(seq).ok()?);
        let class = self.places.get(usize::from(seq.lane().0)).map_or("", |place| &place.class);
        match body {
            Some(body) => self.asides.add(&body, class, why, wall_millis()),
            None => log::error!("outbox: message {seq}, which the server rejected ({why}), cannot be read"),
        }
    }

    fn pledge(&mut self, pledge: Pledge, answer: oneshot::Sender<bool>) {
        let Some(place) = self.places.get(usize::from(pledge.seq.lane().0)) else { return };
        if place.lane.is_none() {
            // Its message is gone with this process, and so is what there is to keep of it.
            let _ = answer.send(true);
            return;
        }
        let Pledge { seq, id, received } = pledge;
        self.pledges.pledge(Kept { lane: place.key, number: seq.number(), id, received });
        self.pledging.push(answer);
    }

    /// Does what is due.
    pub fn turn(&mut self, now: Instant, wall: u64) {
        self.look(now, wall);
        if self.asides.is_unwritten() {
            self.asides.flush();
        }
        if self.failing.as_ref().is_none_or(|failing| failing.try_at <= now) || self.finishing {
            let began = Instant::now();
            match self.write(now, wall) {
                Ok(()) => self.heal(),
                Err(error) => self.fail(&error, now, began.elapsed()),
            }
        }
        // Durable by now, or not for a while.
        let kept = self.failing.is_none();
        for answer in self.pledging.drain(..) {
            let _ = answer.send(kept);
        }
        self.show();
    }

    /// Writes and syncs what is due, each log whatever becomes of the others.
    ///
    /// # Errors
    /// The first trouble with any of them.
    fn write(&mut self, now: Instant, wall: u64) -> io::Result<()> {
        let mut result = Ok(());
        for Place { lane, key, .. } in &mut self.places {
            let Some(lane) = lane else { continue };
            if self.failing.is_some() {
                result = result.and(lane.renew());
            }
            let late = if lane.is_unread() { lane.open_late(&self.pledges.over(*key)) } else { Ok(None) };
            result = result.and(late.map(|event| self.told.extend(event)));
            result = result.and(lane.append(now, wall, &mut self.told));
        }
        let zero = |due: Option<Duration>| due.is_some_and(|due| due.is_zero());
        let all = self.finishing || self.failing.is_some();
        let due = self.lanes().any(|lane| zero(lane.commit_in(self.interval, now)));
        let commit = all || due || self.pledges.is_unwritten();
        for Place { lane, key, .. } in &mut self.places {
            let Some(lane) = lane else { continue };
            if commit && lane.is_unsynced() || lane.forget_in(now).is_some_and(|due| all || due.is_zero()) {
                result = result.and(lane.sync(&mut self.told));
                self.pledges.forget(*key, lane.forgotten);
            }
        }
        result.and_then(|()| self.pledges.flush())
    }

    fn heal(&mut self) {
        if self.failing.take().is_some() {
            log::info!("outbox: writes again");
            self.figures.set_trouble(None);
            self.told.push(Event::StorageHealed);
        }
    }

    fn fail(&mut self, error: &io::Error, now: Instant, took: Duration) {
        let full = error.kind() == io::ErrorKind::StorageFull;
        if self.failing.as_ref().is_none_or(|failing| failing.full != full) {
            log::error!("outbox: {error}; messages are acknowledged only when the cloud has them");
            self.figures.set_trouble(Some(error.to_string()));
            self.told.push(Event::StorageFailed { full });
        }
        self.failing = Some(Failing { full, try_at: now + RETRY.max(took * RETRY_SHARE) });
    }

    /// Looks once a minute, while anything is stored, what is too old, and in a full lane until all was looked at.
    fn look(&mut self, now: Instant, wall: u64) {
        let stored = self.lanes().any(|lane| lane.messages() > 0);
        let look_at = *self.look_at.get_or_insert(now + LOOK_EVERY);
        if look_at <= now {
            let mut more = false;
            for lane in self.places.iter_mut().filter_map(|place| place.lane.as_mut()) {
                more |= lane.expire(wall, &mut self.told);
            }
            self.look_at = Some(now + if more { RETRY } else { LOOK_EVERY });
        }
        if !stored {
            self.look_at = None;
        }
    }

    fn show(&self) {
        let lanes = || self.places.iter().map(|place| place.lane.as_ref());
        for (figures, lane) in self.figures.lanes.iter().zip(lanes()) {
            show(&figures.bytes, lane.map(Lane::bytes));
            show(&figures.oldest_accepted, lane.and_then(|lane| lane.oldest));
        }
        show(&self.figures.bytes, Some(lanes().flatten().map(Lane::bytes).sum()));
        show(&self.figures.oldest_accepted, lanes().flatten().filter_map(|lane| lane.oldest).min());
    }

    fn lanes(&self) -> impl Iterator<Item = &Lane<D>> {
        self.places.iter().filter_map(|place| place.lane.as_ref())
    }

    fn lane(&mut self, seq: Seq) -> Option<&mut Lane<D>> {
        self.places.get_mut(usize::from(seq.lane().0))?.lane.as_mut()
    }
}

/// Makes a file on a thread of its own, which ends with it: once for some thousand messages, while the logs fill for the
/// first time. Without a thread the store makes it when it must.
fn prepare<D: Disk + Send + 'static>(preparation: Preparation<D>) {
    let thread = std::thread::Builder::new().name("segment".into()).stack_size(PREPARING_STACK);
    if let Err(error) = thread.spawn(move || preparation.make()) {
        log::debug!("outbox: no thread for the next segment: {error}");
    }
}

/// Milliseconds since the epoch by the wall clock; zero before it.
fn wall_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
