//! One client's messages on their way up: offered one after the other, acknowledged in the order they came.
//!
//! Several offers are open at a time; the next one is made as soon as the outbox has taken the one before, not when
//! it has accepted it. Answers leave in order (MQTT section 4.6), and not before the persistent sessions that want the
//! message too have it on disk. Never acknowledges by itself, and never forgets a
//! message while it lives: what is left when a connection ends can be driven on to its end.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

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
    /// Not something we take at all: MQTT 5's reason code.
    Invalid(u8),
}

/// What is left to do for one message before its answer.
pub enum Task {
    Offer(Draft),
    Answer(Verdict),
}

/// See the file's head.
pub struct Upward<O> {
    offers: O,
    waiting: VecDeque<(Ack, usize, Task, Kept)>,
    offering: Option<(Ack, usize, Offering, Kept)>,
    open: VecDeque<(Ack, usize, Open, Kept)>,
    /// Messages and bytes in all three.
    messages: usize,
    bytes: usize,
    owed: usize,
    pubacks_owed: usize,
    /// Bytes of every client together.
    all_bytes: Arc<AtomicUsize>,
}

/// Resolves, with a value or without, when local sessions no longer hold the answer.
type Kept = Option<oneshot::Receiver<()>>;

type Offering = Pin<Box<dyn Future<Output = Offer> + Send>>;

enum Open {
    Accepting(oneshot::Receiver<Result<switchback_control::Seq, Refusal>>),
    Settled(Verdict),
}

impl<O: Offers> Upward<O> {
    pub fn new(offers: O, all_bytes: Arc<AtomicUsize>) -> Upward<O> {
        Upward {
            offers,
            waiting: VecDeque::new(),
            offering: None,
            open: VecDeque::new(),
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
            Task::Offer(draft) => draft.payload.len() + draft.topic.len() + draft.properties.len(),
            Task::Answer(_) => 0,
        };
        self.messages += 1;
        self.bytes += size;
        self.all_bytes.fetch_add(size, Ordering::Relaxed);
        self.owed += usize::from(ack != Ack::None);
        self.pubacks_owed += usize::from(matches!(ack, Ack::Puback(_)));
        self.waiting.push_back((ack, size, task, kept));
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
        let Some((ack, size, open, kept)) = self.open.front_mut() else { return Poll::Pending };
        let verdict = match open {
            Open::Settled(verdict) => *verdict,
            Open::Accepting(accepted) => match Pin::new(accepted).poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Ok(_))) => Verdict::Accepted,
                Poll::Ready(Ok(Err(refusal))) => Verdict::Refused(refusal),
                // Who should have answered is gone: nothing was promised.
                Poll::Ready(Err(_)) => Verdict::Refused(Refusal::Stopping),
            },
        };
        *open = Open::Settled(verdict);
        if verdict == Verdict::Accepted && kept.as_mut().is_some_and(|kept| Pin::new(kept).poll(cx).is_pending()) {
            return Poll::Pending;
        }
        let answer = (*ack, verdict);
        self.messages -= 1;
        self.bytes -= *size;
        self.all_bytes.fetch_sub(*size, Ordering::Relaxed);
        self.owed -= usize::from(answer.0 != Ack::None);
        self.pubacks_owed -= usize::from(matches!(answer.0, Ack::Puback(_)));
        self.open.pop_front();
        Poll::Ready(answer)
    }

    fn poll_offers(&mut self, cx: &mut Context<'_>) {
        loop {
            if let Some((ack, size, future, kept)) = &mut self.offering {
                let Poll::Ready(offer) = future.as_mut().poll(cx) else { return };
                self.open.push_back((*ack, *size, Open::Accepting(offer.accepted), kept.take()));
                self.offering = None;
            }
            match self.waiting.pop_front() {
                None => return,
                Some((ack, size, Task::Answer(verdict), kept)) => {
                    self.open.push_back((ack, size, Open::Settled(verdict), kept));
                }
                Some((ack, size, Task::Offer(draft), kept)) => {
                    let offers = self.offers.clone();
                    self.offering = Some((ack, size, Box::pin(async move { offers.offer(draft).await }), kept));
                }
            }
        }
    }
}

impl<O> Drop for Upward<O> {
    fn drop(&mut self) {
        self.all_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
