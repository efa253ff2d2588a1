//! The data corridor: message bodies on their way from an application to the cloud, and back.
//!
//! Control moves numbers; the bytes they stand for wait here, in memory while the cloud answers and in the store
//! when it does not. A body is here from its offer until it is released, refused, or safe in the store. Nothing
//! here decides when a message is sent, stored or forgotten.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use switchback_control::{Event, Seq, Ticket};
use tokio::sync::{mpsc, oneshot};

use crate::outbox::{MAX_RECORD, Record};

/// A message as an application offers it, topic already mapped to the cloud's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    pub topic: String,
    pub payload: Vec<u8>,
    /// Towards the cloud: 0 or 1.
    pub qos: u8,
    pub retain: bool,
    /// MQTT 5 properties as the protocol's bytes (`io::packet::properties_to_bytes`).
    pub properties: Vec<u8>,
}

/// Why an offer was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The outbox is full or its disk fails, and the cloud is away.
    Full,
    /// Larger than a record of the outbox may be.
    TooLarge,
    /// The daemon is stopping.
    Stopping,
}

/// What became of an offer: first `accepted`, later `delivered`.
pub struct Offer {
    /// Resolves when the message is durable or the cloud has it (R-SF-3), or is refused.
    pub accepted: oneshot::Receiver<Result<Seq, Refusal>>,
    /// Resolves when the cloud has acknowledged it; closed without a value when it never will.
    pub delivered: oneshot::Receiver<()>,
}

/// A message from the cloud for local applications, topic already mapped to the local one.
#[derive(Debug)]
pub struct Downlink {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
    pub properties: Vec<u8>,
    /// Told once every local subscriber has acknowledged it or has it on disk for its persistent session, or nobody
    /// wants it; then the cloud is acknowledged. Dropped where that never happens: the cloud sends it again.
    pub taken: oneshot::Sender<()>,
}

/// Room for messages from the cloud that local applications have not taken; then the cloud waits.
pub const DOWNLINK_MAX: usize = 64;

/// Where the cloud session puts what came for local applications.
pub type Downlinks = mpsc::Sender<Downlink>;

/// A message as it is kept and sent.
pub type Body = Arc<Record>;

/// What the store is asked for.
pub enum StoreJob {
    Append(Body),
    Fetch(Seq, oneshot::Sender<Option<Body>>),
    Release(Seq),
    /// Write what is left and end.
    Finish,
}

/// What a record needs besides topic, payload and properties: identity, numbers and flags.
const RECORD_OVERHEAD: usize = 256;

struct Offered {
    draft: Draft,
    accepted: oneshot::Sender<Result<Seq, Refusal>>,
    delivered: oneshot::Sender<()>,
}

#[derive(Default)]
struct Bodies {
    next_ticket: u64,
    /// Offered, and not yet ours.
    offered: HashMap<Ticket, Offered>,
    /// Ours, and the application not yet told.
    unkept: HashMap<Ticket, (Seq, oneshot::Sender<Result<Seq, Refusal>>)>,
    /// In memory: not in the store, or not yet for sure.
    held: BTreeMap<Seq, Body>,
    /// Who waits for the cloud's acknowledgement; those who do not have dropped their end.
    delivered: BTreeMap<Seq, oneshot::Sender<()>>,
}

struct Inner {
    bodies: Mutex<Bodies>,
    events: mpsc::Sender<Event>,
    store: std::sync::mpsc::Sender<StoreJob>,
    /// `boot.start`, the front of every identity (R-SF-7).
    identity: String,
    refused: AtomicU64,
}

/// A handle on the corridor; clones are the same corridor.
#[derive(Clone)]
pub struct Corridor(Arc<Inner>);

impl Corridor {
    /// A corridor that reports offers to `events`, keeps what must be kept through `store`, and names messages
    /// `identity.number`.
    pub fn new(events: mpsc::Sender<Event>, store: std::sync::mpsc::Sender<StoreJob>, identity: String) -> Corridor {
        let bodies = Mutex::new(Bodies::default());
        Corridor(Arc::new(Inner { bodies, events, store, identity, refused: AtomicU64::new(0) }))
    }

    /// An application offers a message.
    pub async fn offer(&self, draft: Draft) -> Offer {
        let (accept, accepted) = oneshot::channel();
        let (deliver, delivered) = oneshot::channel();
        let offer = Offer { accepted, delivered };
        let size = draft.topic.len() + draft.payload.len() + draft.properties.len() + RECORD_OVERHEAD;
        if size as u64 > MAX_RECORD {
            let _ = accept.send(Err(Refusal::TooLarge));
            return offer;
        }
        let ticket = {
            let mut bodies = self.lock();
            bodies.next_ticket += 1;
            let ticket = Ticket(bodies.next_ticket);
            bodies.offered.insert(ticket, Offered { draft, accepted: accept, delivered: deliver });
            ticket
        };
        if self.0.events.send(Event::Offered { ticket, size: size as u32 }).await.is_err() {
            self.refuse(ticket, Refusal::Stopping);
        }
        offer
    }

    /// The body of an admitted message; `None` when it was released or cannot be read any more.
    pub async fn fetch(&self, seq: Seq) -> Option<Body> {
        if let Some(body) = self.lock().held.get(&seq) {
            return Some(body.clone());
        }
        let (answer, body) = oneshot::channel();
        self.0.store.send(StoreJob::Fetch(seq, answer)).ok()?;
        body.await.ok().flatten()
    }

    /// `Action::Admit`: the message is ours, under this number, from this moment on.
    pub fn admit(&self, ticket: Ticket, seq: Seq) {
        let mut bodies = self.lock();
        let Some(offered) = bodies.offered.remove(&ticket) else { return };
        let draft = offered.draft;
        let body = Record {
            seq,
            accepted: wall_millis(),
            topic: draft.topic,
            payload: draft.payload,
            qos: draft.qos,
            retain: draft.retain,
            class: 0,
            id: format!("{}.{}", self.0.identity, seq.0),
            properties: draft.properties,
        };
        bodies.held.insert(seq, Arc::new(body));
        bodies.unkept.insert(ticket, (seq, offered.accepted));
        if !offered.delivered.is_closed() {
            bodies.delivered.insert(seq, offered.delivered);
        }
    }

    /// `Action::Append`: into the store.
    pub fn append(&self, seq: Seq) {
        let body = self.lock().held.get(&seq).cloned();
        if let Some(body) = body {
            let _ = self.0.store.send(StoreJob::Append(body));
        }
    }

    /// `Action::Accept`: tell the application.
    pub fn accept(&self, ticket: Ticket) {
        if let Some((seq, told)) = self.lock().unkept.remove(&ticket) {
            let _ = told.send(Ok(seq));
        }
    }

    /// `Action::Refuse`: tell the application.
    pub fn refuse(&self, ticket: Ticket, refusal: Refusal) {
        if let Some(offered) = self.lock().offered.remove(&ticket) {
            self.0.refused.fetch_add(1, Ordering::Relaxed);
            let _ = offered.accepted.send(Err(refusal));
        }
    }

    /// `Action::Release`: everything up to here may be forgotten.
    pub fn release(&self, through: Seq) {
        let mut bodies = self.lock();
        bodies.held = bodies.held.split_off(&Seq(through.0.saturating_add(1)));
        let later = bodies.delivered.split_off(&Seq(through.0.saturating_add(1)));
        for (_, told) in std::mem::replace(&mut bodies.delivered, later) {
            let _ = told.send(());
        }
        let _ = self.0.store.send(StoreJob::Release(through));
    }

    /// `Action::SetAside`: the server will never take it; whoever waits for its delivery waits in vain.
    pub fn set_aside(&self, seq: Seq) {
        self.lock().delivered.remove(&seq);
    }

    /// The store has everything up to here: it need not be held in memory as well.
    pub fn stored(&self, through: Seq) {
        let mut bodies = self.lock();
        bodies.held = bodies.held.split_off(&Seq(through.0.saturating_add(1)));
    }

    /// The daemon is stopping: the store writes what it was asked to write, and ends.
    pub fn close(&self) {
        let _ = self.0.store.send(StoreJob::Finish);
    }

    /// When the oldest message in memory was accepted: milliseconds since the epoch.
    pub fn oldest_held(&self) -> Option<u64> {
        self.lock().held.values().next().map(|b| b.accepted)
    }

    /// Offers refused since the start.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Bodies> {
        // Nothing panics while the lock is held; a poisoned one still guards whole values.
        self.0.bodies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Milliseconds since the epoch by the wall clock; zero before it.
fn wall_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
