//! One client's messages on their way up: offered one after the other, acknowledged in the order they came.
//!
//! Several offers are open at a time; the next one is made as soon as the outbox has taken the one before, not when
//! it has accepted it. Answers leave in order (MQTT section 4.6), and not before the persistent sessions that want the
//! message too have it on disk; where a rule says so (R-TX-3, suspend), not before the cloud has it. Messages with QoS
//! 0, which have no answer, wait for none. A client with 3.1.1 that waits for the cloud with as many messages as it may have
//! open is not read any more, its pings included. Never acknowledges by itself, and never forgets a message while it lives:
//! what is left when a connection ends can be driven on to its end.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use switchback_control::Seq;
use tokio::sync::oneshot;

use super::{Offers, UPWARD_BYTES_MAX, UPWARD_MAX, UPWARDS_BYTES_MAX};
use crate::corridor::{Draft, Offer, Refusal};

/// What the client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// QoS 0.
    None,
    Puback(u16),
    Pubrec(u16),
}

/// How one message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Durable, or the cloud has it, or it only concerns local clients.
    Accepted,
    Refused(Refusal),
    /// Accepted, but the cloud will never have it, and its publisher waits for the cloud.
    GivenUp,
    /// Not something we take at all: MQTT 5's reason code.
    Invalid(u8),
}

/// What is left to do for one message before its answer.
pub enum Task {
    /// `await_cloud`: its answer comes when the cloud has it.
    Offer {
        draft: Draft,
        await_cloud: bool,
    },
    Answer(Verdict),
}

/// See the file's head.
pub struct Upward<O> {
    offers: O,
    waiting: VecDeque<(Item, Task)>,
    offering: Option<(Item, bool, Offering)>,
    /// Offered, and an answer is owed.
    open: VecDeque<(Item, Open)>,
    /// Offered, and nobody waits for an answer.
    silent: VecDeque<(Item, Open)>,
    /// Messages and bytes in all four.
    messages: usize,
    bytes: usize,
    owed: usize,
    pubacks_owed: usize,
    /// Bytes of every client together.
    all_bytes: Arc<AtomicUsize>,
}

struct Item {
    ack: Ack,
    size: usize,
    kept: Kept,
}

/// Resolves, with a value or without, when local sessions no longer hold the answer.
type Kept = Option<oneshot::Receiver<()>>;

type Offering = Pin<Box<dyn Future<Output = Offer> + Send>>;

enum Open {
    /// With what tells that the cloud has it, where that is waited for.
    Accepting(oneshot::Receiver<Result<Seq, Refusal>>, Option<oneshot::Receiver<()>>),
    Delivering(oneshot::Receiver<()>),
    Settled(Verdict),
}

/// A message with QoS 2 that the cloud has yet to get, and whose connection is gone.
pub struct Suspended {
    pub id: u16,
    open: Open,
}

impl<O: Offers> Upward<O> {
    pub fn new(offers: O, all_bytes: Arc<AtomicUsize>) -> Upward<O> {
        Upward {
            offers,
            waiting: VecDeque::new(),
            offering: None,
            open: VecDeque::new(),
            silent: VecDeque::new(),
            messages: 0,
            bytes: 0,
            owed: 0,
            pubacks_owed: 0,
            all_bytes,
        }
    }

    pub fn push(&mut self, ack: Ack, task: Task) {
        self.push_kept(ack, task, None);
    }

    pub fn push_kept(&mut self, ack: Ack, task: Task, kept: Kept) {
        let size = match &task {
            Task::Offer { draft, .. } => draft.payload.len() + draft.topic.len() + draft.properties.len(),
            Task::Answer(_) => 0,
        };
        self.messages += 1;
        self.bytes += size;
        self.all_bytes.fetch_add(size, Ordering::Relaxed);
        self.owed += usize::from(ack != Ack::None);
        self.pubacks_owed += usize::from(matches!(ack, Ack::Puback(_)));
        self.waiting.push_back((Item { ack, size, kept }, task));
    }

    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Whether another message may be taken: one always may, more as long as this client and all together are
    /// within their limits. What is held back here is let go by this client's own answers.
    pub fn has_room(&self) -> bool {
        let all = self.all_bytes.load(Ordering::Relaxed);
        let bytes_fit = self.bytes < UPWARD_BYTES_MAX && all < UPWARDS_BYTES_MAX;
        self.messages < UPWARD_MAX && (self.bytes == 0 || bytes_fit)
    }

    /// How many PUBACKs and PUBRECs are owed.
    pub fn owed(&self) -> usize {
        self.owed
    }

    pub fn pubacks_owed(&self) -> usize {
        self.pubacks_owed
    }

    /// The next answer, in order. Waits for ever while there is nothing to wait for. Safe to cancel.
    pub async fn next(&mut self) -> (Ack, Verdict) {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The next answer if it is there already.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<(Ack, Verdict)> {
        self.poll_offers(cx);
        let ended = poll_front(&mut self.silent, cx).or_else(|| poll_front(&mut self.open, cx));
        let Some((item, verdict)) = ended else { return Poll::Pending };
        self.account_for(&item);
        Poll::Ready((item.ack, verdict))
    }

    /// Its client is gone, and everything is offered first: nobody waits any more for the cloud to have a message with
    /// QoS 1. Those with QoS 2 are given back, because a session may still wait.
    pub async fn part(&mut self) -> Vec<Suspended> {
        poll_fn(|cx| {
            self.poll_offers(cx);
            if self.waiting.is_empty() && self.offering.is_none() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let mut suspended = Vec::new();
        for (item, open) in std::mem::take(&mut self.open) {
            match (item.ack, open) {
                (Ack::Pubrec(id), open @ (Open::Accepting(_, Some(_)) | Open::Delivering(_))) => {
                    self.account_for(&item);
                    suspended.push(Suspended { id, open });
                }
                (_, Open::Accepting(accepted, _)) => self.open.push_back((item, Open::Accepting(accepted, None))),
                (_, Open::Delivering(_)) => self.open.push_back((item, Open::Settled(Verdict::Accepted))),
                (_, open @ Open::Settled(_)) => self.open.push_back((item, open)),
            }
        }
        suspended
    }

    fn account_for(&mut self, item: &Item) {
        self.messages -= 1;
        self.bytes -= item.size;
        self.all_bytes.fetch_sub(item.size, Ordering::Relaxed);
        self.owed -= usize::from(item.ack != Ack::None);
        self.pubacks_owed -= usize::from(matches!(item.ack, Ack::Puback(_)));
    }

    fn poll_offers(&mut self, cx: &mut Context<'_>) {
        loop {
            if let Some((item, await_cloud, future)) = &mut self.offering {
                let Poll::Ready(offer) = future.as_mut().poll(cx) else { return };
                let await_cloud = *await_cloud && item.ack != Ack::None;
                if await_cloud {
                    // It may stay for days, and the outbox counts it: it must not use up what all clients share.
                    self.bytes -= item.size;
                    self.all_bytes.fetch_sub(item.size, Ordering::Relaxed);
                    item.size = 0;
                }
                let open = Open::Accepting(offer.accepted, await_cloud.then_some(offer.delivered));
                if let Some((item, ..)) = self.offering.take() {
                    self.queue_for(item.ack).push_back((item, open));
                }
            }
            match self.waiting.pop_front() {
                None => return,
                Some((item, Task::Answer(verdict))) => {
                    self.queue_for(item.ack).push_back((item, Open::Settled(verdict)));
                }
                Some((item, Task::Offer { draft, await_cloud })) => {
                    let offers = self.offers.clone();
                    let future = Box::pin(async move { offers.offer(draft).await });
                    self.offering = Some((item, await_cloud, future));
                }
            }
        }
    }

    fn queue_for(&mut self, ack: Ack) -> &mut VecDeque<(Item, Open)> {
        if ack == Ack::None { &mut self.silent } else { &mut self.open }
    }
}

/// Takes the first message out if it has come to its end.
fn poll_front(queue: &mut VecDeque<(Item, Open)>, cx: &mut Context<'_>) -> Option<(Item, Verdict)> {
    let (item, open) = queue.front_mut()?;
    let Poll::Ready(verdict) = open.poll(cx) else { return None };
    let kept = item.kept.as_mut().filter(|_| verdict == Verdict::Accepted);
    if kept.is_some_and(|kept| Pin::new(kept).poll(cx).is_pending()) {
        return None;
    }
    queue.pop_front().map(|(item, _)| (item, verdict))
}

impl Open {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Verdict> {
        loop {
            *self = match self {
                Open::Settled(verdict) => return Poll::Ready(*verdict),
                Open::Accepting(accepted, delivered) => match Pin::new(accepted).poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(Ok(_))) => match delivered.take() {
                        Some(delivered) => Open::Delivering(delivered),
                        None => Open::Settled(Verdict::Accepted),
                    },
                    Poll::Ready(Ok(Err(refusal))) => Open::Settled(Verdict::Refused(refusal)),
                    // Who should have answered is gone: nothing was promised.
                    Poll::Ready(Err(_)) => Open::Settled(Verdict::Refused(Refusal::Stopping)),
                },
                Open::Delivering(delivered) => match Pin::new(delivered).poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(())) => Open::Settled(Verdict::Accepted),
                    Poll::Ready(Err(_)) => Open::Settled(Verdict::GivenUp),
                },
            };
        }
    }
}

impl Suspended {
    /// What becomes of it in the end.
    pub async fn verdict(&mut self) -> Verdict {
        poll_fn(|cx| self.open.poll(cx)).await
    }
}

impl<O> Drop for Upward<O> {
    fn drop(&mut self) {
        self.all_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
