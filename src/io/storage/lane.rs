//! One lane on disk: its log, what waits to be written to it, and what the heart must hear of it.
//!
//! A log is **open**, **absent** (nothing was ever kept there: it is made when something is to be), or **unread** (it is
//! there, and the disk would not let us have it at the start: it is tried again until it does). Always true: a message
//! is in `waiting` or in the log until it is released or discarded; nothing is told as stored before a sync of its log
//! succeeded; while the log is unread the heart numbers its messages from far above, and nothing the heart releases
//! before it has heard of what the log held touches that.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use switchback_control::{Event, Lane as Number, Seq, Unreleased};

use super::age::{self, Look};
use super::{Found, tell_damage};
use crate::corridor::Body;
use crate::outbox::{AppendError, Disk, Limits, Outbox, Preparation};

/// What was released must not come back for long after a crash: the cursor is written this soon, and sooner when
/// nothing is left. While the cloud answers nothing is stored, so this costs nothing.
const FORGET_WITHIN: Duration = Duration::from_secs(1);
const FORGET_ALL_WITHIN: Duration = Duration::from_millis(50);

pub(super) enum Log<D: Disk> {
    Open(Box<Outbox<D>>),
    Absent,
    /// The heart's numbers of this lane begin behind this one.
    Unread {
        base: u64,
    },
}

pub(super) struct Lane<D: Disk> {
    disk: D,
    lane: Number,
    dir: PathBuf,
    limits: Limits,
    pub log: Log<D>,
    /// Asked for, and not yet in the log.
    waiting: VecDeque<Body>,
    highest_asked: u64,
    /// In the log, not yet durable: the highest, and since when.
    unsynced: Option<(u64, Instant)>,
    /// Stored messages were released since then, and the disk does not know.
    forgetting: Option<Instant>,
    released: u64,
    /// Released, and the disk knows.
    pub forgotten: u64,
    /// The heart was told that it is full, with this front.
    full: Option<Option<u64>>,
    /// What was recovered late begins here, and the heart has not answered.
    unheard: Option<u64>,
    look: Look,
    /// Something in its directory may turn out to be more than can be read now.
    doubtful: bool,
    /// When the oldest stored message was accepted.
    pub oldest: Option<u64>,
}

impl<D: Disk + Clone> Lane<D> {
    /// Opens the log in `dir`. One that is not there is not made, unless it `must` be.
    ///
    /// # Errors
    /// What waiting does not mend: see `is_final`.
    pub fn open(disk: D, lane: Number, dir: PathBuf, limits: Limits, must: bool) -> io::Result<(Lane<D>, Found)> {
        let listed = match disk.list(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
            listed => listed.map(|files| files.is_empty()),
        };
        let mut lane = Lane {
            disk,
            lane,
            dir,
            limits,
            log: Log::Absent,
            waiting: VecDeque::new(),
            highest_asked: 0,
            unsynced: None,
            forgetting: None,
            released: 0,
            forgotten: 0,
            full: None,
            unheard: None,
            look: Look::default(),
            doubtful: false,
            oldest: None,
        };
        let found = match listed {
            Ok(true) if !must => Ok(Found::default()),
            Ok(_) => lane.open_log(),
            Err(error) => Err(error),
        };
        let found = match found {
            Ok(found) => found,
            Err(error) if is_final(&error) => return Err(error),
            Err(error) => {
                log::error!("{error}; what waits there is sent when it can be read");
                let base = beyond_all();
                lane.log = Log::Unread { base };
                Found { unreleased: Unreleased { runs: Vec::new(), highest: base }, trouble: Some(error) }
            }
        };
        Ok((lane, found))
    }

    fn open_log(&mut self) -> io::Result<Found> {
        let (outbox, recovered) = Outbox::open_on(self.disk.clone(), &self.dir, self.limits)?;
        recovered.damaged.iter().for_each(tell_damage);
        self.doubtful = !recovered.damaged.is_empty();
        self.oldest = recovered.oldest_accepted;
        self.log = Log::Open(Box::new(outbox));
        let highest = recovered.highest_seq.unwrap_or(0);
        Ok(Found { unreleased: Unreleased { runs: recovered.ranges, highest }, trouble: None })
    }

    /// Opens a log that could not be read before; what it holds, less what `over` says is through already.
    ///
    /// # Errors
    /// It still cannot, or never can in this run.
    pub fn open_late(&mut self, over: &[u64]) -> io::Result<Option<Event>> {
        let Log::Unread { base } = self.log else { return Ok(None) };
        let mut found = self.open_log()?.unreleased;
        if found.highest > base {
            self.log = Log::Unread { base };
            let message = format!("{} holds higher numbers than this run gives out; restart", self.dir.display());
            return Err(io::Error::new(ErrorKind::InvalidData, message));
        }
        self.take_out(&mut found, over);
        self.unheard = found.runs.first().map(|first| *first.start());
        log::info!("outbox: {} can be read again", self.dir.display());
        Ok(Some(Event::Recovered { lane: self.lane, runs: found.runs, highest: found.highest }))
    }

    /// Takes messages that are through out of what was found.
    pub fn take_out(&mut self, found: &mut Unreleased, over: &[u64]) {
        for &number in over {
            let split = |run: &std::ops::RangeInclusive<u64>| {
                let (first, last) = (*run.start(), *run.end());
                let parts =
                    if run.contains(&number) { [first..number, number + 1..last + 1] } else { [first..last + 1, 0..0] };
                parts.into_iter().filter(|part| !part.is_empty()).map(|part| part.start..=part.end - 1)
            };
            found.runs = found.runs.iter().flat_map(split).collect();
        }
        let front = found.runs.first().map_or(found.highest, |first| first.start().saturating_sub(1));
        if !over.is_empty() {
            self.release(front, Instant::now());
        }
    }

    /// Makes its directory anew where that is gone.
    ///
    /// # Errors
    /// The disk's.
    pub fn renew(&mut self) -> io::Result<()> {
        let Log::Open(outbox) = &mut self.log else { return Ok(()) };
        if let Some(lost) = outbox.renew()? {
            let dir = self.dir.display();
            log::error!("outbox: {dir} was gone, and {lost} messages with it; it is made anew");
        }
        Ok(())
    }

    pub fn is_unread(&self) -> bool {
        matches!(self.log, Log::Unread { .. })
    }

    /// Nothing is in there, for sure.
    pub fn is_empty(&self) -> bool {
        !self.is_unread() && !self.doubtful && self.messages() == 0
    }

    /// Whether this message is in the log.
    pub fn holds(&mut self, number: u64) -> bool {
        let Log::Open(outbox) = &mut self.log else { return false };
        outbox.read(Seq(number)).is_ok_and(|record| record.is_some())
    }

    /// Takes a message; one that was asked for before is here already.
    pub fn ask(&mut self, body: Body) {
        let number = body.seq.number();
        if number > self.highest_asked {
            self.highest_asked = number;
            self.waiting.push_back(body);
        }
    }

    /// A message that is kept here; `None` when it was released or is lost.
    ///
    /// # Errors
    /// The disk cannot read it now.
    pub fn fetch(&mut self, seq: Seq) -> io::Result<Option<Body>> {
        if let Ok(place) = self.waiting.binary_search_by_key(&seq, |body| body.seq) {
            return Ok(self.waiting.get(place).cloned());
        }
        let Log::Open(outbox) = &mut self.log else { return Ok(None) };
        Ok(outbox.read(seq)?.map(Arc::new))
    }

    /// These will never be sent: what is not written yet need not be.
    pub fn discard(&mut self, from: u64, through: u64) {
        self.waiting.retain(|body| !(from..=through).contains(&body.seq.number()));
    }

    /// Everything up to here may be forgotten.
    pub fn release(&mut self, through: u64, now: Instant) {
        self.waiting.retain(|body| body.seq.number() > through);
        if let Some(first) = self.unheard {
            // What the heart said before it knew of these does not mean them; its answer lies below the first.
            if through >= first {
                return;
            }
            self.unheard = None;
        }
        self.released = self.released.max(through);
        let Log::Open(outbox) = &mut self.log else { return };
        let before = outbox.messages();
        outbox.release(Seq(through));
        if outbox.messages() < before {
            self.forgetting.get_or_insert(now);
        }
        if outbox.messages() == 0 {
            self.oldest = None;
        }
    }

    /// Writes what waits, as far as there is room.
    ///
    /// # Errors
    /// The disk's; a lane without room is none.
    pub fn append(&mut self, now: Instant, wall: u64, told: &mut Vec<Event>) -> io::Result<()> {
        while let Some(body) = self.waiting.front() {
            let outbox = match &mut self.log {
                Log::Open(outbox) => outbox,
                Log::Unread { .. } => return Ok(()),
                Log::Absent => {
                    self.open_log()?;
                    continue;
                }
            };
            let number = body.seq.number();
            match outbox.append(body) {
                Ok(()) => {
                    let since = self.unsynced.map_or(now, |(_, since)| since);
                    self.unsynced = Some((number, since));
                    self.oldest = self.oldest.or(Some(body.accepted));
                }
                Err(AppendError::Full) => {
                    self.tell_full(wall, told);
                    return Ok(());
                }
                Err(AppendError::Io(error)) => return Err(error),
                // Neither can happen: the corridor checks sizes, and numbers ascend. The cloud may still take it.
                Err(error @ (AppendError::TooLarge { .. } | AppendError::NotAscending { .. })) => {
                    log::error!("outbox: message {} is not stored: {error}", body.seq);
                }
            }
            self.waiting.pop_front();
        }
        if let (Some(_), Log::Open(outbox)) = (self.full, &self.log)
            && outbox.has_room()
        {
            self.full = None;
            told.push(Event::LaneRoomy { lane: self.lane });
        }
        Ok(())
    }

    /// There is no room; said again when the front is another one.
    fn tell_full(&mut self, wall: u64, told: &mut Vec<Event>) {
        let Log::Open(outbox) = &self.log else { return };
        let front = outbox.oldest_segment_end();
        if self.full.replace(front) != Some(front) {
            self.expire(wall, told);
            told.push(Event::LaneFull { through: self.lane_seq(front.unwrap_or(0)) });
        }
    }

    /// From now on every look goes on soon, until everything was looked at.
    pub fn look_through(&mut self) {
        self.look.look_through();
    }

    /// Tells which messages are too old, as far as one look sees; whether the next is due soon.
    pub fn expire(&mut self, wall: u64, told: &mut Vec<Event>) -> bool {
        let Log::Open(outbox) = &mut self.log else { return false };
        let (runs, more) = age::look(outbox, &mut self.look, wall);
        let lane = self.lane;
        let event = |(from, through)| Event::Expired {
            attempt: None,
            from: Seq::new(lane, from),
            through: Seq::new(lane, through),
        };
        told.extend(runs.into_iter().map(event));
        more
    }

    /// Makes everything in the log durable, and what was released.
    ///
    /// # Errors
    /// The disk's; everything is still here then, and tried again by the next call.
    pub fn sync(&mut self, told: &mut Vec<Event>) -> io::Result<()> {
        let Log::Open(outbox) = &mut self.log else { return Ok(()) };
        outbox.sync()?;
        self.forgotten = self.released;
        if self.forgetting.take().is_some()
            && let Ok(oldest) = outbox.next(0)
        {
            self.oldest = oldest.map(|record| record.accepted);
        }
        if let Some((through, _)) = self.unsynced.take() {
            told.push(Event::Stored { through: self.lane_seq(through) });
        }
        Ok(())
    }

    /// As `Outbox::preparation`.
    pub fn preparation(&mut self) -> Option<Preparation<D>> {
        match &mut self.log {
            Log::Open(outbox) => outbox.preparation(),
            Log::Absent | Log::Unread { .. } => None,
        }
    }

    /// Whether something waits that could be written.
    pub fn is_writing(&self) -> bool {
        !self.waiting.is_empty() && self.full.is_none() && !self.is_unread()
    }

    /// Whether something is written and not durable.
    pub fn is_unsynced(&self) -> bool {
        self.unsynced.is_some()
    }

    /// Until what is written must be durable.
    pub fn commit_in(&self, interval: Option<Duration>, now: Instant) -> Option<Duration> {
        let (_, since) = self.unsynced?;
        Some(interval.unwrap_or_default().saturating_sub(now.saturating_duration_since(since)))
    }

    /// Until the disk must know what was released.
    pub fn forget_in(&self, now: Instant) -> Option<Duration> {
        let within = if self.messages() == 0 { FORGET_ALL_WITHIN } else { FORGET_WITHIN };
        Some(within.saturating_sub(now.saturating_duration_since(self.forgetting?)))
    }

    /// Messages that are not released, in the log.
    pub fn messages(&self) -> u64 {
        match &self.log {
            Log::Open(outbox) => outbox.messages(),
            Log::Absent | Log::Unread { .. } => 0,
        }
    }

    /// Bytes of these.
    pub fn bytes(&self) -> u64 {
        match &self.log {
            Log::Open(outbox) => outbox.bytes(),
            Log::Absent | Log::Unread { .. } => 0,
        }
    }

    /// The largest message, by its record.
    pub fn record_limit(&self) -> u64 {
        self.limits.content_bytes()
    }

    /// Everything is written that can be.
    ///
    /// # Errors
    /// The disk's; what was not durable is lost then.
    pub fn close(self) -> io::Result<()> {
        match self.log {
            Log::Open(outbox) => outbox.close(),
            Log::Absent | Log::Unread { .. } => Ok(()),
        }
    }

    fn lane_seq(&self, number: u64) -> Seq {
        Seq::new(self.lane, number)
    }
}

/// Errors that waiting does not mend and a person must: the daemon says so and ends.
pub(super) fn is_final(error: &io::Error) -> bool {
    use ErrorKind::{InvalidInput, NotADirectory, PermissionDenied, ResourceBusy, Unsupported};
    matches!(error.kind(), InvalidInput | NotADirectory | PermissionDenied | ResourceBusy | Unsupported)
}

/// A number above all that a log which cannot be read may hold. Ordinary numbers count messages, and no card lives to
/// see 2^52 of them; those of an earlier run that began here are lower, because a microsecond is less than any message
/// takes. Where the clock was wrong in between, `open_late` notices.
fn beyond_all() -> u64 {
    let micros = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64);
    (1 << 52) + micros
}
