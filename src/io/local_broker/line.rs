//! Messages on their way up from the local broker: offered in order, acknowledged in order, kept until accepted.
//!
//! One line for the whole life of the bridge: when the connection ends, what was received goes on its way, and when the
//! broker sends it again it is known. A message that the outbox refuses for now waits, and with it those behind it of its
//! lane; it is offered again after a pause. Answers leave in the order of arrival (MQTT 5.0 section 4.6). A message is
//! given up only where offering it again is in vain, or where its class's rule or QoS 0 says so; each is counted.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use switchback_control::Lane;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until};

use super::down::is_from_cloud;
use super::tally::{Fate, Tally};
use super::words;
use crate::config::Config;
use crate::corridor::{Corridor, Draft, Offer, Refusal};
use crate::io::packet::{Publish, properties_from_bytes, properties_to_bytes};
use crate::sorting::{Local, Way, sort};

/// Messages and their bytes here at a time; then the broker is not read. The number is for brokers that do not keep to
/// `words::RECEIVE_MAX` and for bursts of QoS 0, the bytes are what a small gateway can spare.
const MESSAGES_MAX: usize = 1000;
const BYTES_MAX: usize = 8 * 1024 * 1024;

/// The wait before a refused message is offered again, doubled up to the second.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_MOST: Duration = Duration::from_secs(2);

/// See the file's head.
pub struct Line {
    config: Arc<Config>,
    corridor: Corridor,
    entries: VecDeque<Entry>,
    /// The one being offered: its serial number, and the offer to come.
    offering: Option<(u64, Offering)>,
    last: u64,
    bytes: usize,
    /// Done, by identifier, and the broker may send them again: QoS 2 before PUBREL, and what was accepted while the
    /// broker was away.
    done: HashMap<u16, Done>,
    /// When the first message that was refused is offered again, and what tells us.
    wake: Option<Instant>,
    alarm: Pin<Box<Sleep>>,
    received: u64,
    tally: Tally,
    /// Held and refused, as last told.
    told: (usize, u64),
}

type Offering = Pin<Box<dyn Future<Output = Offer> + Send>>;

struct Entry {
    serial: u64,
    arrived: Instant,
    qos: u8,
    /// The broker's; `None` with QoS 0 and once the broker has forgotten it.
    id: Option<u16>,
    /// Tells whether a message under the same identifier is the same.
    mark: u32,
    /// Sent on the present connection, so that it may be answered there.
    here: bool,
    /// What is refused together: a full lane, and what wants a session.
    queue: (Lane, bool),
    await_cloud: bool,
    /// Empty once it is not needed any more; `size` is what it costs.
    draft: Draft,
    size: usize,
    /// How often it was refused, as far as that matters for the next pause.
    refusals: u32,
    state: State,
}

enum State {
    /// To be offered; not before then.
    Waiting(Option<Instant>),
    Offering,
    Open(Offer),
    /// Accepted, and not answered before the cloud has it.
    Delivering(oneshot::Receiver<()>),
    Done,
    /// The daemon is stopping: never answered.
    Stopped,
}

#[derive(PartialEq, Eq)]
struct Done {
    qos: u8,
    mark: u32,
}

impl Line {
    pub fn new(config: Arc<Config>, corridor: Corridor) -> Line {
        Line {
            config,
            corridor,
            entries: VecDeque::new(),
            offering: None,
            last: 0,
            bytes: 0,
            done: HashMap::new(),
            wake: None,
            alarm: Box::pin(sleep_until(Instant::now())),
            received: 0,
            tally: Tally::default(),
            told: (0, 0),
        }
    }

    /// The broker says whether it knows our session: otherwise its identifiers mean something else from now on.
    pub fn begin(&mut self, present: bool) {
        if !present {
            self.entries.iter_mut().for_each(|entry| entry.id = None);
            self.done.clear();
        }
    }

    /// The connection has ended.
    pub fn part(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.here = false);
    }

    /// A message from the broker. The answer, where it is known already.
    pub fn take(&mut self, publish: Publish) -> Option<[u8; 4]> {
        let mark = crc32c::crc32c_append(crc32c::crc32c(publish.topic.as_bytes()), &publish.payload);
        let id = publish.id.filter(|_| publish.qos > 0);
        if let Some(id) = id {
            if publish.dup && self.is_known(id, publish.qos, mark) {
                return None;
            }
            if publish.dup && self.done.get(&id) == Some(&Done { qos: publish.qos, mark }) {
                if publish.qos == 1 {
                    self.done.remove(&id);
                }
                return Some(words::taken(publish.qos, id));
            }
            self.forget(id);
        }
        self.received += 1;
        self.push(publish, id, mark);
        None
    }

    /// PUBREL: this identifier is free.
    pub fn released(&mut self, id: u16) {
        self.done.remove(&id);
    }

    /// Whether more may be read.
    pub fn has_room(&self) -> bool {
        self.entries.len() < MESSAGES_MAX && self.bytes < BYTES_MAX
    }

    /// Says what was given up since it was last said.
    pub fn tell(&mut self) {
        self.tally.tell();
    }

    pub fn held(&self) -> usize {
        self.entries.len()
    }

    pub fn received(&self) -> u64 {
        self.received
    }

    pub fn refused(&self) -> u64 {
        self.tally.given_up()
    }

    /// The next answer for the broker, or none when only the counts have changed. Waits while there is neither, for ever if
    /// need be. Safe to cancel.
    pub async fn next(&mut self) -> Option<[u8; 4]> {
        poll_fn(|cx| {
            if let Poll::Ready(answer) = self.poll_answer(cx) {
                return Poll::Ready(Some(answer));
            }
            let counts = (self.held(), self.refused());
            if std::mem::replace(&mut self.told, counts) == counts { Poll::Pending } else { Poll::Ready(None) }
        })
        .await
    }

    fn is_known(&mut self, id: u16, qos: u8, mark: u32) -> bool {
        let same = |entry: &&mut Entry| entry.id == Some(id) && entry.qos == qos && entry.mark == mark;
        let entry = self.entries.iter_mut().find(same);
        entry.map(|entry| entry.here = true).is_some()
    }

    /// The broker uses this identifier for another message.
    fn forget(&mut self, id: u16) {
        self.done.remove(&id);
        self.entries.iter_mut().filter(|entry| entry.id == Some(id)).for_each(|entry| entry.id = None);
    }

    fn push(&mut self, publish: Publish, id: Option<u16>, mark: u32) {
        let Publish { topic, payload, qos, retain, properties, .. } = publish;
        let way = match properties.iter().any(is_from_cloud) {
            // Retained at the broker: No Local does not hold it back from a new subscription.
            true => Way::Local,
            false => sort(&self.config, Local { topic, payload, retain, properties }),
        };
        let (draft, await_cloud, fate) = match way {
            Way::Up { draft, await_cloud, unknown_class } => {
                (Some(draft), await_cloud, unknown_class.map(|_| Fate::UnknownClass))
            }
            Way::Local => (None, false, None),
            Way::Impossible => (None, false, Some(Fate::Impossible)),
            Way::Reserved => (None, false, Some(Fate::Reserved)),
        };
        fate.into_iter().for_each(|fate| self.tally.note(fate));
        let state = if draft.is_some() { State::Waiting(None) } else { State::Done };
        let draft = draft.unwrap_or_default();
        if qos == 0 && matches!(state, State::Done) {
            return;
        }
        self.last += 1;
        let size = draft.topic.len() + draft.payload.len() + draft.properties.len();
        self.bytes += size;
        let queue = (draft.lane, draft.online_only);
        let serial = self.last;
        self.entries.push_back(Entry {
            serial,
            arrived: Instant::now(),
            qos,
            id,
            mark,
            here: true,
            queue,
            await_cloud,
            draft,
            size,
            refusals: 0,
            state,
        });
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<[u8; 4]> {
        loop {
            self.poll_offering(cx);
            for index in 0..self.entries.len() {
                self.poll_entry(index, cx);
            }
            if let Some(answer) = self.pop_done() {
                return Poll::Ready(answer);
            }
            if self.offering.is_some() {
                return Poll::Pending;
            }
            if !self.offer_next() {
                break;
            }
        }
        let Some(next) = self.wake else { return Poll::Pending };
        self.alarm.as_mut().reset(next);
        if self.alarm.as_mut().poll(cx).is_ready() {
            // It came just now.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn poll_offering(&mut self, cx: &mut Context<'_>) {
        let Some((serial, offering)) = &mut self.offering else { return };
        let Poll::Ready(mut offer) = offering.as_mut().poll(cx) else { return };
        let serial = *serial;
        self.offering = None;
        let Some(index) = self.entries.iter().position(|entry| entry.serial == serial) else { return };
        let Some(entry) = self.entries.get_mut(index) else { return };
        if entry.qos > 0 {
            entry.state = State::Open(offer);
            return;
        }
        // Nobody waits for QoS 0 to be kept: once admitted it is on its way.
        let refused = offer.accepted.try_recv().ok().and_then(Result::err);
        self.finish(index, refused.map(|refusal| Fate::of(refusal).unwrap_or(Fate::Lost)));
    }

    /// Takes in what has become of one message.
    fn poll_entry(&mut self, index: usize, cx: &mut Context<'_>) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        if let State::Open(offer) = &mut entry.state {
            let Poll::Ready(answer) = Pin::new(&mut offer.accepted).poll(cx) else { return };
            match (answer, std::mem::replace(&mut entry.state, State::Stopped)) {
                (Ok(Ok(_)), State::Open(offer)) if entry.await_cloud => {
                    entry.state = State::Delivering(offer.delivered)
                }
                (Ok(Ok(_)), _) => return self.finish(index, None),
                (Ok(Err(Refusal::Stopping)) | Err(_), _) => {}
                (Ok(Err(refusal)), _) => match Fate::of(refusal) {
                    None => return self.hold(index),
                    fate => return self.finish(index, fate),
                },
            }
        }
        if let Some(Entry { state: State::Delivering(delivered), .. }) = self.entries.get_mut(index)
            && let Poll::Ready(delivered) = Pin::new(delivered).poll(cx)
        {
            // Dropped, expired or set aside on its way: decided and counted where it happened.
            self.finish(index, delivered.err().map(|_| Fate::Undelivered));
        }
    }

    /// Refused for now: it will be offered again.
    fn hold(&mut self, index: usize) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        let pause = (AGAIN_FIRST * 2u32.saturating_pow(entry.refusals)).min(AGAIN_MOST);
        entry.refusals = (entry.refusals + 1).min(16);
        entry.state = State::Waiting(Some(Instant::now() + pause));
        self.tally.note(Fate::Held);
    }

    /// Through, or given up.
    fn finish(&mut self, index: usize, given_up: Option<Fate>) {
        if let Some(fate) = given_up {
            self.tally.note(fate);
        }
        let Some(entry) = self.entries.get_mut(index) else { return };
        entry.state = State::Done;
        entry.draft = Draft::default();
        self.bytes = self.bytes.saturating_sub(std::mem::take(&mut entry.size));
        if entry.qos == 0 {
            // Nobody waits for an answer.
            self.entries.remove(index);
        }
    }

    /// The next answer in order.
    fn pop_done(&mut self) -> Option<[u8; 4]> {
        while let Some(Entry { state: State::Done, .. }) = self.entries.front() {
            let Some(Entry { qos, id: Some(id), mark, here, .. }) = self.entries.pop_front() else { continue };
            if !here || qos == 2 {
                self.done.insert(id, Done { qos, mark });
            }
            if here {
                return Some(words::taken(qos, id));
            }
        }
        None
    }

    /// Offers the next message whose queue takes something; whether there was one. Else `wake` is when to look again.
    fn offer_next(&mut self) -> bool {
        let now = Instant::now();
        let mut shut = Vec::new();
        self.wake = None;
        for index in 0..self.entries.len() {
            let Some(entry) = self.entries.get(index) else { break };
            let State::Waiting(until) = entry.state else { continue };
            if shut.contains(&entry.queue) {
                if entry.qos == 0 {
                    // Refused in effect, and nobody keeps QoS 0.
                    self.finish(index, Some(Fate::Lost));
                    return true;
                }
                continue;
            }
            let Some(until) = until.filter(|until| *until > now) else {
                self.offer(index);
                return true;
            };
            shut.push(entry.queue);
            self.wake = Some(self.wake.map_or(until, |wake| wake.min(until)));
        }
        false
    }

    fn offer(&mut self, index: usize) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        let mut draft = if entry.qos == 0 { std::mem::take(&mut entry.draft) } else { entry.draft.clone() };
        let waited = entry.arrived.elapsed();
        if waited >= Duration::from_secs(1) {
            let mut properties = properties_from_bytes(&draft.properties);
            if !words::age(&mut properties, waited) {
                return self.finish(index, Some(Fate::Expired));
            }
            draft.properties = properties_to_bytes(&properties);
        }
        let corridor = self.corridor.clone();
        entry.state = State::Offering;
        self.offering = Some((entry.serial, Box::pin(async move { corridor.offer_in_order(draft).await })));
    }
}
