//! What has changed since it was last written, and what the disk has for sure.
//!
//! The sessions themselves are the truth; this only names what in them differs from the disk, so a message that came
//! and was taken in between is never written at all. Each write has a number: what is marked now is durable once the
//! write `next` is. Holds no bytes, knows no file and no clock. Without a store (`on` is false) everything counts as
//! durable.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// How long a message may wait for the acknowledgement of a client that is here before it is written. A larger value
/// spares the card where clients are slow, and lets the cloud wait longer.
const TAKING_WAIT: Duration = Duration::from_millis(50);

/// How long what only spares a repetition after a power cut may wait: that a message is done.
const DONE_WAIT: Duration = Duration::from_secs(1);

/// How long a retained message may wait for company; a power cut brings back the one before.
const RETAINED_WAIT: Duration = Duration::from_secs(30);

/// Something that may differ from the disk. In the order in which it is written: what of it a power cut leaves is never an
/// identifier without the copies of its message.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Session(Arc<str>),
    Subscription(Arc<str>, String),
    /// By its place in the session's order.
    Message(Arc<str>, u64),
    /// The client's messages of QoS 2 between PUBREC and PUBREL.
    Received(Arc<str>),
    Retained(String),
}

/// How soon something must be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Soon {
    /// Somebody waits for it.
    Now,
    /// A client that is here may make it needless.
    Taking,
    Done,
    Retained,
}

/// See the file's head.
#[derive(Debug, Default)]
pub struct Ledger {
    pub on: bool,
    /// The last write failed: nothing waits for the disk but the cloud's acknowledgements.
    pub failing: bool,
    dirty: BTreeSet<Key>,
    ended: BTreeSet<Arc<str>>,
    due: Option<Instant>,
    /// The number of the last write begun, and of the last that succeeded.
    begun: u64,
    durable: u64,
    serial: u64,
}

impl Ledger {
    /// A ledger whose store holds all that write `number` said.
    pub fn beginning_after(number: u64, read: Ledger) -> Ledger {
        Ledger { on: true, begun: number, durable: number, serial: read.serial, ..Ledger::default() }
    }

    /// Notes a change; answers with the number of the write that makes it durable.
    pub fn mark(&mut self, key: Key, soon: Soon, now: Instant) -> u64 {
        if !self.on {
            return 0;
        }
        self.dirty.insert(key);
        self.hurry(soon, now);
        self.begun + 1
    }

    pub fn hurry(&mut self, soon: Soon, now: Instant) {
        let due = match soon {
            Soon::Now => now,
            Soon::Taking => now + TAKING_WAIT,
            Soon::Done => now + DONE_WAIT,
            Soon::Retained => now + RETAINED_WAIT,
        };
        // A failing disk is asked again when its time comes, whatever happens meanwhile.
        if self.on && !self.failing && !self.is_clean() {
            self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
        }
    }

    /// A message is gone, which was to be durable with write `kept`: what was never written need not be now.
    pub fn gone(&mut self, key: Key, kept: u64, now: Instant) {
        if kept > self.begun {
            self.dirty.remove(&key);
            if self.is_clean() && !self.failing {
                self.due = None;
            }
        } else if kept > 0 {
            self.mark(key, Soon::Done, now);
        }
    }

    /// A whole session is gone.
    pub fn end(&mut self, id: &Arc<str>, now: Instant) {
        if !self.on {
            return;
        }
        self.dirty.retain(|key| match key {
            Key::Session(of) | Key::Subscription(of, _) | Key::Message(of, _) | Key::Received(of) => of != id,
            Key::Retained(_) => true,
        });
        self.ended.insert(Arc::clone(id));
        self.hurry(Soon::Done, now);
    }

    /// Nothing differs from the disk.
    pub fn is_clean(&self) -> bool {
        self.dirty.is_empty() && self.ended.is_empty()
    }

    /// The write that makes everything durable that was marked so far.
    pub fn next_write(&self) -> u64 {
        if self.is_clean() { 0 } else { self.begun + 1 }
    }

    /// A place in a session's order.
    pub fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// Serials go on behind one that was read.
    pub fn saw_serial(&mut self, serial: u64) {
        self.serial = self.serial.max(serial);
    }

    /// When the next write is due.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Begins a write: its number, and what it must say.
    pub fn take(&mut self) -> (u64, BTreeSet<Arc<str>>, BTreeSet<Key>) {
        self.begun += 1;
        self.due = None;
        (self.begun, std::mem::take(&mut self.ended), std::mem::take(&mut self.dirty))
    }

    pub fn written(&mut self, number: u64) {
        self.failing = false;
        self.durable = self.durable.max(number);
    }

    /// Nothing of it is durable; the next write says everything.
    pub fn failed(&mut self, again: Instant) {
        self.failing = true;
        self.due = Some(again);
    }

    /// Whether what was marked for this write is on the disk.
    pub fn is_durable(&self, kept: u64) -> bool {
        kept <= self.durable
    }

    /// The same, or nobody can wait for it because the disk fails.
    pub fn may_go_on(&self, kept: u64) -> bool {
        self.failing || self.is_durable(kept)
    }
}
