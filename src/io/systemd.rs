//! systemd: the log, and what the service manager is told.
//!
//! Lines go to the journal with their fields when systemd connected our standard error to it, and as plain lines to
//! standard error otherwise. A thread of its own writes them, so that a journal stuck behind a slow card holds up
//! nobody; when it is far behind, lines are dropped and counted. Readiness, status and watchdog follow `sd_notify(3)`
//! and do nothing outside systemd. Nothing here decides whether the daemon is well: the loop feeds the watchdog by
//! being alive.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

use log::kv::{self, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};
use sd_notify::NotifyState;
use systemd_journal_logger::{JournalLog, connected_to_journal};

/// The environment's word for how much is logged: `error`, `warn`, `info` (default) or `debug`.
pub const LEVEL_VARIABLE: &str = "SWITCHBACK_LOG";
/// The journal's fields of a connectivity line (contract), for `log`'s key-values.
pub const STATE: &str = "SWITCHBACK_STATE";
pub const UPLINK: &str = "SWITCHBACK_UPLINK";
pub const REASON: &str = "SWITCHBACK_REASON";
pub const ATTEMPT: &str = "SWITCHBACK_ATTEMPT";

/// Lines waiting for a slow journal; beyond them they are dropped and counted.
const QUEUE_MAX: usize = 256;
/// How long `flush` waits for a slow journal.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);
/// Fields of one line that are kept; ours have four.
const FIELDS_MAX: usize = 16;
/// Letters of a status text; systemd shows one line.
const STATUS_LETTERS_MAX: usize = 512;

/// Sets up the log for the whole process. Call it once and first; `log::logger().flush()` before the process ends on
/// its own, or the last lines may be lost.
///
/// An unknown word in `SWITCHBACK_LOG` is said and taken as `info`.
pub fn start_log() {
    let asked = std::env::var(LEVEL_VARIABLE).unwrap_or_default();
    let level = level(&asked);
    let journal = if connected_to_journal() { JournalLog::new().ok() } else { None };
    let (orders, inbox) = mpsc::sync_channel(QUEUE_MAX);
    let started = thread::Builder::new().name("log".into()).spawn(move || write_lines(&inbox, journal.as_ref()));
    if started.is_err() || log::set_boxed_logger(Box::new(Queue { orders, dropped: AtomicU64::new(0) })).is_err() {
        // Without a thread, or with a logger already there (a test), there is nothing to set up.
        return;
    }
    log::set_max_level(level.unwrap_or(LevelFilter::Info));
    if level.is_none() {
        log::warn!("{LEVEL_VARIABLE}={asked} is not a level; use error, warn, info or debug (now: info)");
    }
}

/// Tells systemd that the daemon is up (`READY=1`).
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    let line: String = text.lines().next().unwrap_or_default().chars().take(STATUS_LETTERS_MAX).collect();
    tell(&[NotifyState::Status(&line)]);
}

/// Tells systemd that the configuration is being read again (`RELOADING=1`); `ready` ends that.
pub fn reloading() {
    // Newer versions insist on the moment.
    let since = NotifyState::monotonic_usec_now();
    match since {
        Ok(since) => tell(&[NotifyState::Reloading, since]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// Tells systemd that the daemon is going down (`STOPPING=1`).
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Whether somebody starts us again when we end.
pub fn is_supervised() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// How often to call `feed`: half of what the unit allows; `None` without a watchdog.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2).filter(|interval| !interval.is_zero())
}

/// The loop has turned: one more `WatchdogSec` to live (`WATCHDOG=1`). To be called by the loop and nobody else.
pub fn feed() {
    tell(&[NotifyState::Watchdog]);
}

fn tell(state: &[NotifyState]) {
    // A service manager that does not listen changes nothing for the cloud.
    if let Err(error) = sd_notify::notify(state) {
        log::debug!("systemd did not take a message: {error}");
    }
}

fn level(word: &str) -> Option<LevelFilter> {
    match word {
        "" | "info" => Some(LevelFilter::Info),
        "error" => Some(LevelFilter::Error),
        "warn" => Some(LevelFilter::Warn),
        "debug" => Some(LevelFilter::Debug),
        _ => None,
    }
}

/// One line on its way to the writing thread.
struct Line {
    level: Level,
    target: String,
    text: String,
    fields: Vec<(String, String)>,
}

enum Order {
    Line(Line),
    Flush(SyncSender<()>),
}

/// The process's logger: hands lines over and goes on.
struct Queue {
    orders: SyncSender<Order>,
    dropped: AtomicU64,
}

impl Log for Queue {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries may only speak up when something is wrong; their debugging is not ours.
        let ours = metadata.target().starts_with("switchback");
        metadata.level() <= log::max_level() && (ours || metadata.level() <= Level::Warn)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            self.hand_over(
                Line::new(Level::Warn, &format!("{dropped} log lines dropped, the journal is slow")),
                dropped,
            );
        }
        let mut fields = Fields(Vec::new());
        // The visitor never fails.
        let _ = record.key_values().visit(&mut fields);
        let line = Line {
            level: record.level(),
            target: record.target().to_owned(),
            text: record.args().to_string(),
            fields: fields.0,
        };
        self.hand_over(line, 1);
    }

    fn flush(&self) {
        let (done, wait) = mpsc::sync_channel(1);
        if self.orders.try_send(Order::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(FLUSH_LIMIT);
        }
    }
}

impl Queue {
    /// `worth` is how many lines are lost if this one is.
    fn hand_over(&self, line: Line, worth: u64) {
        if self.orders.try_send(Order::Line(line)).is_err() {
            self.dropped.fetch_add(worth, Ordering::Relaxed);
        }
    }
}

impl Line {
    fn new(level: Level, text: &str) -> Line {
        Line { level, target: module_path!().to_owned(), text: text.to_owned(), fields: Vec::new() }
    }
}

/// Collects the key-values of a record.
struct Fields(Vec<(String, String)>);

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        if self.0.len() < FIELDS_MAX {
            self.0.push((key.as_str().to_owned(), value.to_string()));
        }
        Ok(())
    }
}

/// The writing thread: until the logger is gone.
fn write_lines(inbox: &Receiver<Order>, journal: Option<&JournalLog>) {
    while let Ok(order) = inbox.recv() {
        match order {
            Order::Line(line) => write_line(&line, journal, &mut io::stderr()),
            Order::Flush(done) => drop(done.send(())),
        }
    }
}

/// To the journal; to standard error where there is none, or when it does not take the line.
fn write_line(line: &Line, journal: Option<&JournalLog>, stderr: &mut impl Write) {
    let fields: Vec<(&str, &str)> = line.fields.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let sent = journal.is_some_and(|journal| {
        let mut record = Record::builder();
        record.level(line.level).target(&line.target).key_values(&fields);
        journal.journal_send(&record.args(format_args!("{}", line.text)).build()).is_ok()
    });
    if !sent {
        let prefix = match line.level {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            Level::Info => "",
            Level::Debug | Level::Trace => "debug: ",
        };
        // A closed standard error is no reason to fail.
        let _ = writeln!(stderr, "{prefix}{}", line.text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_on_standard_error_is_plain() {
        let written = |level| {
            let mut bytes = Vec::new();
            write_line(&Line::new(level, "online wlan0"), None, &mut bytes);
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(written(Level::Info), "online wlan0\n");
        assert_eq!(written(Level::Warn), "warning: online wlan0\n");
        assert_eq!(written(Level::Error), "error: online wlan0\n");
    }

    #[test]
    fn the_level_is_one_of_four_words() {
        assert_eq!(level(""), Some(LevelFilter::Info));
        assert_eq!(level("debug"), Some(LevelFilter::Debug));
        assert_eq!(level("loud"), None);
    }

    #[test]
    fn a_stuck_journal_drops_lines_and_counts_them() {
        let (orders, inbox) = mpsc::sync_channel(2);
        let queue = Queue { orders, dropped: AtomicU64::new(0) };
        let record = |text: &str| queue.hand_over(Line::new(Level::Info, text), 1);
        (0..5).for_each(|_| record("line"));
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 3);
        assert_eq!(inbox.try_iter().count(), 2);
    }

    #[test]
    fn key_values_become_fields() {
        let mut fields = Fields(Vec::new());
        let given: &[(&str, u64)] = &[(ATTEMPT, 17)];
        kv::Source::visit(&given, &mut fields).unwrap();
        assert_eq!(fields.0, [(ATTEMPT.to_owned(), "17".to_owned())]);
    }
}
