//! What stands between the queue and the wire because of the disk: bodies read before their turn, and messages of QoS 2
//! that go out once they are pledged.
//!
//! A disk that syncs answers late, and then to all it was asked at once. So a lane asks for many messages together and
//! before it needs them, and waits alone: the others go on. Always true: batches leave in the order in which they came,
//! and a lane has at most two readings here and one batch. It writes nothing and decides no order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use switchback_control::{Lane, Seq};
use tokio::time::sleep;

use crate::corridor::Body;
use crate::io::cloud::Answer;
use crate::io::cloud::bodies::AnyBodies;

/// Messages that one reading asks for.
pub const READ_TOGETHER: usize = 64;
/// So many are left when the next are asked for.
const READ_AGAIN: usize = READ_TOGETHER / 2;
/// How often a message that the disk cannot read now is tried, and how long lies in between; then it counts as lost.
const TRIES: u32 = 30;
const PAUSE: Duration = Duration::from_secs(1);

pub struct Shelf<'a> {
    bodies: &'a dyn AnyBodies,
    readings: BTreeMap<Lane, Reading>,
    batches: VecDeque<Pledged<'a>>,
}

#[derive(Default)]
struct Reading {
    /// `None` for what is released or lost.
    read: BTreeMap<Seq, Option<Body>>,
    asked: Option<Asked>,
    /// The disk could not read the first that was asked for so often.
    failed: u32,
}

/// What is read, and the answer to come, in that order.
type Asked = (Vec<Seq>, Answer<Vec<Option<Body>>>);

/// Messages that go out together, and the lanes that wait for it.
#[derive(Default)]
pub struct Batch {
    pub bytes: Vec<u8>,
    /// With whether that was all that is to be done for them.
    pub messages: Vec<(Seq, bool)>,
    pub lanes: BTreeSet<Lane>,
}

struct Pledged<'a> {
    batch: Batch,
    kept: Kept<'a>,
    durable: bool,
}

/// Resolves when a batch may go out.
pub type Kept<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

impl<'a> Shelf<'a> {
    pub fn new(bodies: &'a dyn AnyBodies) -> Shelf<'a> {
        Shelf { bodies, readings: BTreeMap::new(), batches: VecDeque::new() }
    }

    /// The body of the message whose turn it is, `Some(None)` where there is none any more; `None` while it is not read.
    /// What its lane had before it is not wanted any more.
    pub fn take(&mut self, seq: Seq) -> Option<Option<Body>> {
        let reading = self.readings.get_mut(&seq.lane())?;
        reading.read = reading.read.split_off(&seq);
        reading.read.remove(&seq)
    }

    /// Reads on in a lane, if it is time: those of the `next` that memory does not have.
    pub fn read_on(&mut self, lane: Lane, next: impl Iterator<Item = Seq>) {
        let reading = self.readings.entry(lane).or_default();
        if reading.asked.is_some() || reading.read.len() > READ_AGAIN {
            return;
        }
        let missing = |seq: &Seq| !reading.read.contains_key(seq) && self.bodies.held(*seq).is_none();
        let seqs: Vec<Seq> = next.take(READ_TOGETHER).filter(missing).collect();
        if !seqs.is_empty() {
            reading.asked = Some((seqs.clone(), self.bodies.read(seqs)));
        }
    }

    /// Has a batch go out once `kept` resolves.
    pub fn put(&mut self, batch: Batch, kept: Kept<'a>) {
        self.batches.push_back(Pledged { batch, kept, durable: false });
    }

    /// The next batch that may go out.
    pub fn next_durable(&mut self) -> Option<Batch> {
        self.batches.front().filter(|first| first.durable)?;
        self.batches.pop_front().map(|pledged| pledged.batch)
    }

    /// Bytes that will go out whatever else does.
    pub fn bytes(&self) -> usize {
        self.batches.iter().map(|pledged| pledged.batch.bytes.len()).sum()
    }

    /// Hears the disk out. Ready when a batch may go out, or with the lanes that have something to go on with.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Vec<Lane>> {
        let mut lanes = Vec::new();
        for (lane, reading) in &mut self.readings {
            let Some((_, answer)) = &mut reading.asked else { continue };
            if let Poll::Ready(bodies) = answer.as_mut().poll(context) {
                reading.arrive(bodies, self.bodies);
                match &mut reading.asked {
                    // It has to be heard of a second time.
                    Some(_) => context.waker().wake_by_ref(),
                    None => lanes.push(*lane),
                }
            }
        }
        for pledged in self.batches.iter_mut().filter(|pledged| !pledged.durable) {
            pledged.durable = pledged.kept.as_mut().poll(context).is_ready();
        }
        let ready = !lanes.is_empty() || self.batches.front().is_some_and(|first| first.durable);
        if ready { Poll::Ready(lanes) } else { Poll::Pending }
    }
}

impl Reading {
    /// What a reading brought, maybe less than was asked for, and nothing where the disk cannot read the first.
    fn arrive(&mut self, bodies: Vec<Option<Body>>, store: &dyn AnyBodies) {
        let Some((seqs, _)) = self.asked.take() else { return };
        if !bodies.is_empty() {
            self.failed = 0;
            return self.read.extend(seqs.into_iter().zip(bodies));
        }
        self.failed += 1;
        if self.failed < TRIES {
            let again = store.read(seqs.clone());
            let later = Box::pin(async move {
                sleep(PAUSE).await;
                again.await
            });
            self.asked = Some((seqs, later));
        } else {
            self.failed = 0;
            self.read.extend(seqs.first().map(|seq| (*seq, None)));
        }
    }
}
