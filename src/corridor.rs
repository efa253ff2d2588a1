//! The data corridor: message bodies on their way from an application to the cloud, and back.
//!
//! Control moves numbers; the bytes they stand for wait here, in memory while the cloud answers and in the store
//! when it does not. A body is here from its offer until it is released, refused, or safe in the store. Nothing
//! here decides when a message is sent, stored or forgotten.

mod aside;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use switchback_control::{Event, Lane, Parcel, Seq, Ticket};
use tokio::sync::{mpsc, oneshot};

use crate::io::clock;
use crate::outbox::{MAX_RECORD, Record};

pub use aside::SetAside;

/// A message as an application offers it, topic already mapped to the cloud's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Draft {
    pub topic: String,
    pub payload: Vec<u8>,
    /// Towards the cloud: 0 to 2. What is 2 is never sent before it is durable.
    pub qos: u8,
    pub retain: bool,
    /// MQTT 5 properties as the protocol's bytes (`io::packet::properties_to_bytes`). A message expiry interval among
    /// them is how long it may wait here and at the server together, from its acceptance on (R-SF-6).
    pub properties: Vec<u8>,
    /// The queue it waits in.
    pub lane: Lane,
    /// Not taken while no session is open (R-TX-2).
    pub online_only: bool,
}

/// Why an offer was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The outbox is full or its disk fails, and the cloud is away.
    Full,
    /// Its class is full and drops what comes last, or it was the oldest where the oldest goes.
    Dropped,
    /// It asked for a session, and there is none.
    NotConnected,
    /// Larger than a record of the outbox may be.
    TooLarge,
    /// The daemon is stopping.
    Stopping,
}

impl From<switchback_control::Refusal> for Refusal {
    fn from(refusal: switchback_control::Refusal) -> Refusal {
        match refusal {
            switchback_control::Refusal::Full => Refusal::Full,
            switchback_control::Refusal::Dropped => Refusal::Dropped,
            switchback_control::Refusal::NotConnected => Refusal::NotConnected,
        }
    }
}

/// What became of an offer: first `accepted`, later `delivered`.
pub struct Offer {
    /// Resolves when the message is durable or the cloud has it (R-SF-3), or is refused.
    pub accepted: oneshot::Receiver<Result<Seq, Refusal>>,
    /// Resolves when its last byte was handed to the kernel; closed without a value when it never will be.
    pub sent: oneshot::Receiver<()>,
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

/// One message of QoS 2 on its way (MQTT 5.0 section 4.3.3): durable in front of each step that cannot be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pledge {
    pub seq: Seq,
    /// Packet identifier, one of `PLEDGED`.
    pub id: u16,
    /// PUBREC came: from now on only PUBREL may be sent.
    pub received: bool,
}

/// Bytes of payload that one reading of the store brings, and one message more.
pub const READ_MAX: usize = 64 * 1024;

/// The identifiers of messages of QoS 2, one place on disk for each: as many as may be on their way at once.
pub const PLEDGED: std::ops::RangeInclusive<u16> = 64_001..=64_256;

/// What the store is asked for.
pub enum StoreJob {
    Append(Body),
    /// Read these, of one lane and ascending; told as `Corridor::read` tells it.
    Read(Vec<Seq>, oneshot::Sender<Vec<Option<Body>>>),
    /// Everything of its lane up to here may be forgotten.
    Release(Seq),
    /// These will never be sent: what of them is not written yet need not be.
    Discard(Seq, Seq),
    /// Tell which messages of this lane are too old, in the whole of it.
    FindExpired(Lane),
    /// Keep this message and why the server will never take it, beside the outbox. Without a body, that of the store.
    SetAside(Seq, Option<Body>, String),
    /// Tell all that were set aside.
    SetAsides(oneshot::Sender<Vec<SetAside>>),
    /// Forget them; told whether that is durable.
    ClearSetAsides(oneshot::Sender<bool>),
    /// Make it durable that this message has this identifier, or that the server has received it; told whether it is.
    Pledge(Pledge, oneshot::Sender<bool>),
    /// The exchange under this identifier is over. It may then be pledged for another message; that alone says as much.
    Redeem(u16),
    /// The server has forgotten its session: no exchange is open.
    RedeemAll,
    /// Write what is left and end.
    Finish,
}

/// What a record needs besides topic, payload and properties: identity, numbers and flags.
const RECORD_OVERHEAD: usize = 256;

struct Offered {
    draft: Draft,
    accepted: oneshot::Sender<Result<Seq, Refusal>>,
    sent: oneshot::Sender<()>,
    delivered: oneshot::Sender<()>,
    /// Dropped with this, so that whoever waits learns that the message is admitted or refused.
    decided: Option<oneshot::Sender<()>>,
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
    /// Who waits for the last byte to leave, and for the cloud's acknowledgement; those who do not have dropped their end.
    sent: BTreeMap<Seq, oneshot::Sender<()>>,
    delivered: BTreeMap<Seq, oneshot::Sender<()>>,
    /// Why the server rejected a message that is not yet set aside.
    rejected: BTreeMap<Seq, String>,
    /// The last part of the identity that was given out.
    named: u64,
}

struct Inner {
    bodies: Mutex<Bodies>,
    events: mpsc::Sender<Event>,
    store: std::sync::mpsc::Sender<StoreJob>,
    /// `boot.start`, the front of every identity (R-SF-7).
    identity: String,
    /// The largest record of each lane.
    record_limits: OnceLock<Vec<u64>>,
    refused: AtomicU64,
}

/// A handle on the corridor; clones are the same corridor.
#[derive(Clone)]
pub struct Corridor(Arc<Inner>);

impl Corridor {
    /// A corridor that reports offers to `events`, keeps what must be kept through `store`, and names messages
    /// `identity.number`.
    pub fn new(events: mpsc::Sender<Event>, store: std::sync::mpsc::Sender<StoreJob>, identity: String) -> Corridor {
        let (bodies, record_limits, refused) = (Mutex::default(), OnceLock::new(), AtomicU64::new(0));
        Corridor(Arc::new(Inner { bodies, events, store, identity, record_limits, refused }))
    }

    /// Takes no message from now on that is larger than its lane's log takes: it would never be durable.
    pub fn limit_records(&self, by_lane: Vec<u64>) {
        let _ = self.0.record_limits.set(by_lane);
    }

    /// An application offers a message.
    pub async fn offer(&self, draft: Draft) -> Offer {
        self.put(draft, None).await
    }

    /// As `offer`, and comes back once the message is admitted or refused: who offers the next one only then can offer a
    /// refused one again without changing the order.
    pub async fn offer_in_order(&self, draft: Draft) -> Offer {
        let (decided, decision) = oneshot::channel();
        let offer = self.put(draft, Some(decided)).await;
        let _ = decision.await;
        offer
    }

    async fn put(&self, draft: Draft, decided: Option<oneshot::Sender<()>>) -> Offer {
        let (accept, accepted) = oneshot::channel();
        let (send, sent) = oneshot::channel();
        let (deliver, delivered) = oneshot::channel();
        let offer = Offer { accepted, sent, delivered };
        let size = draft.topic.len() + draft.payload.len() + draft.properties.len() + RECORD_OVERHEAD;
        let limits = self.0.record_limits.get();
        let limit = limits.and_then(|limits| limits.get(usize::from(draft.lane.0))).copied().unwrap_or(MAX_RECORD);
        if size as u64 > limit {
            let _ = accept.send(Err(Refusal::TooLarge));
            return offer;
        }
        let parcel =
            Parcel { lane: draft.lane, size: size as u32, exact: draft.qos == 2, online_only: draft.online_only };
        let ticket = {
            let mut bodies = self.lock();
            bodies.next_ticket += 1;
            let ticket = Ticket(bodies.next_ticket);
            bodies.offered.insert(ticket, Offered { draft, accepted: accept, sent: send, delivered: deliver, decided });
            ticket
        };
        if self.0.events.send(Event::Offered { ticket, parcel }).await.is_err() {
            self.refuse(ticket, Refusal::Stopping);
        }
        offer
    }

    /// The body of an admitted message, where memory has it.
    pub fn held(&self, seq: Seq) -> Option<Body> {
        self.lock().held.get(&seq).cloned()
    }

    /// The bodies of these messages of one lane out of the store, from the first on; `None` for one that is released or
    /// lost. Fewer than asked for where the rest is much (`READ_MAX`) or cannot be read now, and none where the first
    /// cannot.
    pub async fn read(&self, seqs: Vec<Seq>) -> Vec<Option<Body>> {
        let (answer, bodies) = oneshot::channel();
        if self.0.store.send(StoreJob::Read(seqs, answer)).is_err() {
            return Vec::new();
        }
        bodies.await.unwrap_or_default()
    }

    /// `Action::Admit`: the message is ours, under this number, from this moment on.
    pub fn admit(&self, ticket: Ticket, seq: Seq) {
        let mut bodies = self.lock();
        let Some(offered) = bodies.offered.remove(&ticket) else { return };
        drop(offered.decided);
        let draft = offered.draft;
        bodies.named += 1;
        let body = Record {
            seq,
            accepted: clock::stamp(),
            topic: draft.topic,
            payload: draft.payload,
            qos: draft.qos,
            retain: draft.retain,
            class: 0,
            id: format!("{}.{}", self.0.identity, bodies.named),
            properties: draft.properties,
        };
        bodies.held.insert(seq, Arc::new(body));
        bodies.unkept.insert(ticket, (seq, offered.accepted));
        if !offered.sent.is_closed() {
            bodies.sent.insert(seq, offered.sent);
        }
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

    /// `Action::Refuse`: tell the application. An admitted message may be refused as well, when it is given up before it
    /// was kept.
    pub fn refuse(&self, ticket: Ticket, refusal: Refusal) {
        let mut bodies = self.lock();
        let offered = bodies.offered.remove(&ticket).map(|offered| offered.accepted);
        let told = offered.or_else(|| bodies.unkept.remove(&ticket).map(|(_, told)| told));
        if let Some(told) = told {
            self.0.refused.fetch_add(1, Ordering::Relaxed);
            let _ = told.send(Err(refusal));
        }
    }

    /// `Action::Discard`: these messages of one lane will never be sent; whoever waits for that waits in vain.
    pub fn discard(&self, from: Seq, through: Seq) {
        let mut bodies = self.lock();
        cut(&mut bodies.held, from, through);
        cut(&mut bodies.sent, from, through);
        cut(&mut bodies.delivered, from, through);
        cut(&mut bodies.rejected, from, through);
        let _ = self.0.store.send(StoreJob::Discard(from, through));
    }

    /// `Action::Release`: everything of this lane up to here may be forgotten.
    pub fn release(&self, through: Seq) {
        let mut bodies = self.lock();
        let first = Seq::new(through.lane(), 0);
        cut(&mut bodies.held, first, through);
        cut(&mut bodies.sent, first, through);
        for (_, told) in cut(&mut bodies.delivered, first, through) {
            let _ = told.send(());
        }
        let _ = self.0.store.send(StoreJob::Release(through));
    }

    /// `Action::FindExpired`: tell which messages of this lane are too old.
    pub fn find_expired(&self, lane: Lane) {
        let _ = self.0.store.send(StoreJob::FindExpired(lane));
    }

    /// The last byte of this message was handed to the kernel.
    pub fn sent(&self, seq: Seq) {
        if let Some(told) = self.lock().sent.remove(&seq) {
            let _ = told.send(());
        }
    }

    /// Makes one step of QoS 2 durable; false when the disk cannot, and then only memory knows.
    pub async fn pledge(&self, pledge: Pledge) -> bool {
        let (answer, kept) = oneshot::channel();
        self.0.store.send(StoreJob::Pledge(pledge, answer)).is_ok() && kept.await.unwrap_or(false)
    }

    /// The exchange under this identifier is over.
    pub fn redeem(&self, id: u16) {
        let _ = self.0.store.send(StoreJob::Redeem(id));
    }

    /// The server has forgotten its session: no exchange is open.
    pub fn redeem_all(&self) {
        let _ = self.0.store.send(StoreJob::RedeemAll);
    }

    /// The store has everything of this lane up to here: it need not be held in memory as well.
    pub fn stored(&self, through: Seq) {
        cut(&mut self.lock().held, Seq::new(through.lane(), 0), through);
    }

    /// The daemon is stopping: the store writes what it was asked to write, and ends.
    pub fn close(&self) {
        let _ = self.0.store.send(StoreJob::Finish);
    }

    /// Bytes of a lane's messages in memory, and when the oldest of them was accepted.
    pub fn held_in(&self, lane: Lane) -> (u64, Option<u64>) {
        let bodies = self.lock();
        let of_lane = bodies.held.range(Seq::new(lane, 0)..=Seq::new(lane, u64::MAX));
        of_lane.fold((0, None), |(bytes, oldest), (_, body)| {
            let size = body.topic.len() + body.payload.len() + body.properties.len();
            (bytes + size as u64, Some(oldest.map_or(body.accepted, |oldest: u64| oldest.min(body.accepted))))
        })
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

/// Takes out what lies between these two, both included.
fn cut<V>(map: &mut BTreeMap<Seq, V>, from: Seq, through: Seq) -> BTreeMap<Seq, V> {
    let mut out = map.split_off(&from);
    map.append(&mut out.split_off(&Seq(through.0.saturating_add(1))));
    out
}
