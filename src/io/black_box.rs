//! The black box: the last ten megabytes of what happened, on disk, through reboots and power cuts (R-DG-4).
//!
//! Two files in the state directory, `black-box.jsonl` and the one before it, `black-box.1.jsonl`; one JSON object a
//! line: `{"time","uptime_ms","boot","kind","line"}`. A thread of its own owns them. The loop hands a line over and
//! goes on: when the disk is behind, lines are dropped and counted, and the count becomes a line. Lines reach the file
//! within a second and the disk within five more; an idle box never wakes up. A line torn by a power cut is skipped
//! when read. When the disk is full or read-only the last thousand lines stay in memory, said once, and are written
//! when it takes them again. Nothing here knows what a line means; callers never pass a secret or a payload.
//! (Longer than most: the file is written and read in one place, so that the two cannot differ.)
//!
//! It is long because the ring, its reader and what happens without a disk only make sense side by side.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, oneshot};

use super::clock;

/// Bytes in one of the two files; together they are the ten megabytes of R-DG-4.
pub const FILE_BYTES_MAX: u64 = 5_000_000;
/// Bytes of one line's own text; longer ones are cut. An event is some hundred bytes.
pub const LINE_BYTES_MAX: usize = 4096;
/// Lines on their way to the thread: some seconds of the worst storm. Beyond it they are dropped and counted. The room
/// is taken at once, so a larger number costs memory always.
const QUEUE_MAX: usize = 1024;
/// Lines kept in memory while the disk takes none.
const MEMORY_LINES_MAX: usize = 1000;
/// Lines gathered before they are written without waiting for `WRITE_AFTER`; keeps one write under a file's size.
const GATHER_MAX: usize = 256;
/// A line is in the file (safe from a crash of the daemon) at the latest after this.
const WRITE_AFTER: Duration = Duration::from_millis(800);
/// What was written is on the disk (safe from a power cut) at the latest after this. Shorter wears out the card.
const SYNC_AFTER: Duration = Duration::from_secs(5);
/// How often a disk that took nothing is asked again, and only while there is something to write.
const HEAL_AFTER: Duration = Duration::from_secs(60);
/// How long `close` waits for a slow disk.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// Lines a follower may be behind before it misses some; it is told how many.
const FOLLOW_MAX: usize = 256;
/// The longest line of a file that is read back: the text, escaped at worst sixfold, and what is around it.
const READ_LINE_MAX: u64 = (LINE_BYTES_MAX * 6 + 512) as u64;

const CURRENT: &str = "black-box.jsonl";
const BEFORE: &str = "black-box.1.jsonl";

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Something happened.
    Event,
    /// The daemon did something about it.
    Action,
    /// Everything else worth keeping: starts, policy and bytes on a failure, what the box says of itself.
    Note,
}

/// Which lines to read: the newest `limit` of those that fit.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// Only lines of this wall time or later, by the clock as it was when they were written.
    pub since: Option<Timestamp>,
    /// Only lines of this boot.
    pub boot_only: bool,
    /// At most so many.
    pub limit: usize,
}

/// The hand that writes to the box. Cheap to clone; the box is closed when the last one is dropped or by `close`.
#[derive(Clone)]
pub struct BlackBox {
    orders: SyncSender<Order>,
    dropped: Arc<AtomicU64>,
    followers: broadcast::Sender<Arc<str>>,
    boot: Arc<str>,
}

enum Order {
    Line(Arc<str>),
    Read(Query, oneshot::Sender<Vec<String>>),
    Close(SyncSender<()>),
}

impl BlackBox {
    /// Opens the box in `dir` and starts its thread. Never fails: without a disk it keeps what it can in memory.
    pub fn open(dir: &Path) -> BlackBox {
        BlackBox::open_sized(dir, FILE_BYTES_MAX)
    }

    /// `open` with files of another size, for tests.
    #[doc(hidden)]
    pub fn open_sized(dir: &Path, file_bytes: u64) -> BlackBox {
        let (orders, inbox) = mpsc::sync_channel(QUEUE_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let followers = broadcast::Sender::new(FOLLOW_MAX);
        let boot: Arc<str> = clock::boot_id().into();
        let mut ring = Ring::new(dir, file_bytes, boot.clone(), dropped.clone(), followers.clone());
        let started = thread::Builder::new().name("black-box".into()).spawn(move || ring.run(&inbox));
        if let Err(error) = started {
            log::warn!("black box: no thread ({error}); nothing is recorded");
        }
        BlackBox { orders, dropped, followers, boot }
    }

    /// Records one line, now. Never waits.
    pub fn note(&self, kind: Kind, line: &str) {
        let text = record(&self.boot, kind, line);
        // Nobody listening is no error.
        let _ = self.followers.send(text.clone());
        if self.orders.try_send(Order::Line(text)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Every line from now on, as JSON text. One that is read too slowly misses lines and is told how many.
    pub fn follow(&self) -> broadcast::Receiver<Arc<str>> {
        self.followers.subscribe()
    }

    /// The same for a front door that subscribes for each of its clients.
    pub fn lines(&self) -> broadcast::Sender<Arc<str>> {
        self.followers.clone()
    }

    /// The newest lines that fit, oldest first, as JSON texts; also those of earlier boots. Empty when the box is
    /// overrun or gone.
    pub async fn read(&self, query: Query) -> Vec<String> {
        let (reply, answer) = oneshot::channel();
        match self.orders.try_send(Order::Read(query, reply)) {
            Ok(()) => answer.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// Writes and syncs what is left; waits for it, but not longer than two seconds.
    pub fn close(&self) {
        let (done, wait) = mpsc::sync_channel(1);
        if self.orders.try_send(Order::Close(done)).is_ok() {
            let _ = wait.recv_timeout(CLOSE_LIMIT);
        }
    }
}

/// One line of the file, as written.
#[derive(Serialize)]
struct Record<'a> {
    time: &'a str,
    uptime_ms: u64,
    boot: &'a str,
    kind: Kind,
    line: &'a str,
}

/// One line of the file, as far as choosing among lines needs it.
#[derive(Deserialize)]
struct Stamp<'a> {
    time: &'a str,
    boot: &'a str,
}

fn record(boot: &str, kind: Kind, line: &str) -> Arc<str> {
    let line = cut(line);
    let time = format!("{:.6}", clock::wall());
    let record = Record { time: &time, uptime_ms: clock::now().as_millis(), boot, kind, line };
    // Strings and a number always serialise.
    serde_json::to_string(&record).unwrap_or_default().into()
}

/// As much of the line as fits, ending with a whole letter.
fn cut(line: &str) -> &str {
    let mut end = line.len().min(LINE_BYTES_MAX);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.get(..end).unwrap_or_default()
}

/// The thread's own: the files, and the lines that are not in them yet.
struct Ring {
    dir: PathBuf,
    file_bytes: u64,
    boot: Arc<str>,
    dropped: Arc<AtomicU64>,
    followers: broadcast::Sender<Arc<str>>,
    /// Open file and its length; `None` while the disk takes nothing.
    current: Option<(File, u64)>,
    /// Whether the trouble with the disk has been told.
    told: bool,
    /// The same for a failed sync, once for ever.
    sync_told: bool,
    /// Lines that are in no file yet: for a second while all is well, the last thousand while it is not.
    pending: VecDeque<Arc<str>>,
    /// Lines that memory could not hold, while the disk took none.
    forgotten: u64,
    write_at: Option<Instant>,
    sync_at: Option<Instant>,
}

impl Ring {
    fn new(
        dir: &Path,
        file_bytes: u64,
        boot: Arc<str>,
        dropped: Arc<AtomicU64>,
        followers: broadcast::Sender<Arc<str>>,
    ) -> Ring {
        Ring {
            dir: dir.to_owned(),
            file_bytes,
            boot,
            dropped,
            followers,
            current: None,
            told: false,
            sync_told: false,
            pending: VecDeque::new(),
            forgotten: 0,
            write_at: None,
            sync_at: None,
        }
    }

    fn run(&mut self, inbox: &mpsc::Receiver<Order>) {
        loop {
            match self.next(inbox) {
                Ok(Order::Line(line)) => self.take(line),
                Ok(Order::Read(query, reply)) => {
                    self.write();
                    let _ = reply.send(self.read(query));
                }
                Ok(Order::Close(done)) => {
                    self.write();
                    self.sync();
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.confess();
            let now = Instant::now();
            if self.write_at.is_some_and(|at| at <= now) {
                self.write();
            }
            if self.sync_at.is_some_and(|at| at <= now) {
                self.sync();
            }
        }
        self.write();
        self.sync();
    }

    /// The next order, or the next thing due; without anything due it sleeps for as long as it takes.
    fn next(&self, inbox: &mpsc::Receiver<Order>) -> Result<Order, RecvTimeoutError> {
        match [self.write_at, self.sync_at].into_iter().flatten().min() {
            Some(due) => inbox.recv_timeout(due.saturating_duration_since(Instant::now())),
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    fn take(&mut self, line: Arc<str>) {
        if self.pending.len() >= MEMORY_LINES_MAX {
            self.pending.pop_front();
            self.forgotten += 1;
        }
        self.pending.push_back(line);
        if self.pending.len() >= GATHER_MAX && !self.told {
            self.write();
        } else if self.write_at.is_none() {
            self.write_at = Some(Instant::now() + WRITE_AFTER);
        }
    }

    /// Tells how many lines never arrived here because this thread was behind.
    fn confess(&mut self) {
        match self.dropped.swap(0, Ordering::Relaxed) {
            0 => {}
            count => self.say(&format!("black box {count} lines dropped, the disk is slow")),
        }
    }

    fn say(&mut self, line: &str) {
        let text = record(&self.boot, Kind::Note, line);
        let _ = self.followers.send(text.clone());
        self.take(text);
    }

    /// Writes what is pending. On trouble the rest stays in memory and the disk is asked again later.
    fn write(&mut self) {
        self.write_at = None;
        if self.pending.is_empty() {
            return;
        }
        match self.write_pending() {
            Ok(()) if self.told => {
                self.told = false;
                log::info!("black box: {} takes lines again", self.dir.display());
                let forgotten = std::mem::take(&mut self.forgotten);
                self.say(&format!("black box on disk again, {forgotten} lines forgotten"));
            }
            Ok(()) => {}
            Err(error) => {
                self.current = None;
                self.write_at = Some(Instant::now() + HEAL_AFTER);
                if !self.told {
                    self.told = true;
                    log::warn!(
                        "black box: cannot write in {} ({error}); the last {MEMORY_LINES_MAX} lines stay in memory",
                        self.dir.display()
                    );
                }
            }
        }
    }

    fn write_pending(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            let count = self.pending.len().min(GATHER_MAX);
            let mut block = Vec::new();
            for line in self.pending.iter().take(count) {
                block.extend_from_slice(line.as_bytes());
                block.push(b'\n');
            }
            self.make_room(block.len() as u64)?;
            let Some((file, length)) = &mut self.current else {
                return Err(io::ErrorKind::NotFound.into());
            };
            let (written, result) = write_counted(file, &block);
            *length += written as u64;
            if written > 0 && self.sync_at.is_none() {
                self.sync_at = Some(Instant::now() + SYNC_AFTER);
            }
            self.forget_written(written);
            result?;
        }
        Ok(())
    }

    /// Opens the file if it is not open, and starts a new one if the block does not fit.
    fn make_room(&mut self, block: u64) -> io::Result<()> {
        if self.current.is_none() {
            self.current = Some(open_current(&self.dir)?);
        }
        let full = self.current.as_ref().is_some_and(|(_, length)| *length > 0 && length + block > self.file_bytes);
        if full {
            self.sync();
            self.current = None;
            fs::rename(self.dir.join(CURRENT), self.dir.join(BEFORE))?;
            self.current = Some(open_current(&self.dir)?);
            // The names are safe only when the directory is (fsync(2)).
            File::open(&self.dir)?.sync_all()?;
        }
        Ok(())
    }

    /// Takes the lines that are wholly in the file off the pending ones. One that went in halfway is written again
    /// whole; its torn half is skipped by the reader.
    fn forget_written(&mut self, mut written: usize) {
        while let Some(line) = self.pending.front() {
            let Some(left) = written.checked_sub(line.len() + 1) else { break };
            written = left;
            self.pending.pop_front();
        }
    }

    fn sync(&mut self) {
        if self.sync_at.take().is_none() {
            return;
        }
        if let Some((file, _)) = &self.current
            && let Err(error) = file.sync_data()
        {
            // What a failed sync threw away is gone (fsync(2)); what comes is written to a file opened afresh.
            self.current = None;
            if !self.sync_told {
                self.sync_told = true;
                log::warn!("black box: syncing failed ({error}); some lines may not survive a power cut");
            }
        }
    }

    fn read(&self, query: Query) -> Vec<String> {
        let mut found = VecDeque::new();
        let mut keep = |line: &str| {
            if query.limit > 0 && fits(line, &query, &self.boot) {
                if found.len() >= query.limit {
                    found.pop_front();
                }
                found.push_back(line.to_owned());
            }
        };
        for name in [BEFORE, CURRENT] {
            // A file that is not there, or cannot be read further, has no more lines.
            if let Ok(file) = File::open(self.dir.join(name)) {
                let _ = each_line(file, &mut keep);
            }
        }
        self.pending.iter().for_each(|line| keep(line));
        found.into()
    }
}

/// Whether the line is whole, and one of those asked for.
fn fits(line: &str, query: &Query, boot: &str) -> bool {
    let Ok(stamp) = serde_json::from_str::<Stamp>(line) else { return false };
    let late = |since| stamp.time.parse::<Timestamp>().is_ok_and(|time| time >= since);
    (!query.boot_only || stamp.boot == boot) && query.since.is_none_or(late)
}

/// Calls `keep` with each line, whatever the file holds.
fn each_line(file: File, keep: &mut impl FnMut(&str)) -> io::Result<()> {
    let mut file = BufReader::new(file);
    let mut line = Vec::new();
    while file.by_ref().take(READ_LINE_MAX).read_until(b'\n', &mut line)? > 0 {
        if let Ok(text) = str::from_utf8(&line) {
            keep(text.trim_end_matches('\n'));
        }
        line.clear();
    }
    Ok(())
}

/// Opens or makes the current file for appending, ends a torn last line, and tells its length.
fn open_current(dir: &Path) -> io::Result<(File, u64)> {
    let options = || OpenOptions::new().read(true).append(true).create(true).mode(0o640).clone();
    let mut file = options().open(dir.join(CURRENT))?;
    let mut length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    if last != [b'\n'] {
        file.write_all(b"\n")?;
        length += 1;
    }
    Ok((file, length))
}

/// Writes as much as goes, and tells how much that was.
fn write_counted(file: &mut File, block: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while let Some(rest) = block.get(written..).filter(|rest| !rest.is_empty()) {
        match file.write(rest) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}
