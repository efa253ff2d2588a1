//! What goes out on a connection: CONNECT and acknowledgements first, then our own messages, then the applications', as
//! `queue` has them.
//!
//! One chunk at a time is gathered, written and flushed before the next is looked at, so that a dead uplink strands
//! little and what was not yet written can still be sent elsewhere. Applications' messages go no faster than `pace`
//! allows, and of QoS 2 none is written before its identifier is durable. Writing never waits for the disk: what does
//! stands in `shelf`, and its lane with it.

use std::future::{pending, poll_fn};
use std::task::Poll;
use std::time::Duration;

use switchback_control::{Event, Goodbye, Lane, Reason};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};

use super::gather::Chunk;
use super::queue::Lack;
use super::shelf::Shelf;
use super::{Connection, Desk, Place, own_message};
use crate::io::cloud::dial::Ended;
use crate::io::cloud::pace::{Pace, Why};
use crate::io::cloud::{documents, speech};
use crate::io::packet::Publish;

/// A message that has waited this long to be written is delayed, which is said, and again no sooner than this (R-TX-12).
const DELAYED: Duration = Duration::from_secs(2);
const SAY_AGAIN: Duration = Duration::from_secs(60);

impl Connection<'_> {
    pub(super) async fn write(&self, mut half: impl AsyncWrite + Unpin) -> Ended {
        let Place { shared, voice, facts } = self.place;
        let mut pace = Pace::new(shared.uplink(facts.interface).rate);
        let mut shelf = Shelf::new(shared.bodies.as_ref());
        let (mut last, mut said) = (Instant::now(), None);
        loop {
            let mut chunk = Chunk::default();
            self.clear(&mut shelf, &mut chunk).await;
            self.gather(&mut chunk, &mut shelf, &mut pace).await;
            self.put_off(&mut chunk, &mut shelf);
            self.tell_delay(&chunk, &pace, &mut said);
            if chunk.bytes.is_empty() {
                self.idle(last, chunk.pause, said, &mut shelf).await;
                continue;
            }
            let written = async {
                half.write_all(&chunk.bytes).await?;
                half.flush().await
            };
            if let Err(error) = written.await {
                return self.broken(&error);
            }
            last = Instant::now();
            for (seq, complete) in chunk.messages {
                shared.bodies.sent(seq);
                if complete {
                    self.tell(Event::Completed { attempt: voice.attempt, seq }).await;
                }
            }
            if chunk.last_words {
                // The end of our stream; the server closes when it has read it, which ends the reading.
                let _ = half.shutdown().await;
                pending::<()>().await;
            }
        }
    }

    /// Waits for something to write, and pings when the keep alive is three quarters over (MQTT 5.0 section 3.1.2.10
    /// allows one and a half of it; the rest is for the way).
    async fn idle(&self, last: Instant, pause: Option<(Instant, Why)>, said: Option<Instant>, shelf: &mut Shelf<'_>) {
        let (keep_alive, oldest, again) = {
            let desk = self.desk();
            let keep_alive = desk.open.as_ref().map(|open| open.keep_alive).filter(|keep| !keep.is_zero());
            (keep_alive, desk.queue.oldest(), desk.turned_away.next())
        };
        let until = |at: Option<Instant>| async move {
            match at {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        let delayed = oldest.map(|since| (since + DELAYED).max(said.map_or(since, |said| said + SAY_AGAIN)));
        tokio::select! {
            () = self.wake.notified() => {}
            lanes = poll_fn(|context| shelf.poll(context)) => self.resume_reading(&lanes),
            () = until(pause.map(|(at, _)| at)) => {}
            () = until(delayed.into_iter().chain(again).min()) => {}
            () = until(keep_alive.map(|keep_alive| last + keep_alive * 3 / 4)) => self.ping(),
        }
    }

    pub(super) fn ping(&self) {
        self.place.shared.costs.ping(self.place.facts.interface);
        self.desk().control.extend(speech::PING);
        self.wake.notify_one();
    }

    /// Says once a minute that messages wait, and for what (R-TX-12).
    fn tell_delay(&self, chunk: &Chunk, pace: &Pace, said: &mut Option<Instant>) {
        let now = Instant::now();
        let (waiting, oldest, full, disk) = {
            let desk = self.desk();
            if desk.open.is_none() {
                return;
            }
            (desk.queue.len(), desk.queue.oldest(), desk.is_full().then_some(desk.in_flight), desk.queue.wants_disk())
        };
        let Some(waited) = oldest.map(|since| now.saturating_duration_since(since)) else { return };
        if waited < DELAYED || said.is_some_and(|said| now.saturating_duration_since(said) < SAY_AGAIN) {
            return;
        }
        let interface = self.place.facts.interface;
        let why = match (full, chunk.pause) {
            (Some(count), _) => format!("the server has not acknowledged {count} before them"),
            (None, Some((_, Why::Limit))) => format!("the limit of uplink {interface} is reached"),
            (None, None) if disk => "the disk is slow".to_owned(),
            (None, _) => format!("{interface} carries {} bytes a second", pace.rate()),
        };
        *said = Some(now);
        let kernel = self.place.facts.gauge.unacked().unwrap_or(0);
        log::info!(
            "{waiting} messages wait to be sent, the oldest for {} s, with {kernel} bytes on their way: {why}",
            waited.as_secs()
        );
    }

    /// Begins a chunk: with what was said meanwhile, and with what the disk has made durable.
    async fn clear(&self, shelf: &mut Shelf<'_>, chunk: &mut Chunk) {
        if let Poll::Ready(lanes) = poll_fn(|context| Poll::Ready(shelf.poll(context))).await {
            self.resume_reading(&lanes);
        }
        let (mut desk, now) = (self.desk(), Instant::now());
        desk.turned_away.due(now).into_iter().for_each(|seq| desk.queue.again(seq, now));
        chunk.bytes.append(&mut desk.control);
        while let Some(batch) = shelf.next_durable() {
            chunk.bytes.extend(batch.bytes);
            chunk.messages.extend(batch.messages);
            batch.lanes.into_iter().for_each(|lane| desk.queue.resume(lane, Lack::Pledge));
        }
    }

    fn resume_reading(&self, lanes: &[Lane]) {
        let mut desk = self.desk();
        lanes.iter().for_each(|lane| desk.queue.resume(*lane, Lack::Body));
    }

    /// Leaves what must be durable before it goes to the disk, and its lanes with it.
    fn put_off<'a>(&'a self, chunk: &mut Chunk, shelf: &mut Shelf<'a>) {
        if chunk.steps.is_empty() {
            return;
        }
        let (batch, steps) = (std::mem::take(&mut chunk.exact), std::mem::take(&mut chunk.steps));
        let mut desk = self.desk();
        batch.lanes.iter().for_each(|lane| desk.queue.hold(*lane, Lack::Pledge));
        shelf.put(batch, Box::pin(self.keep(steps)));
    }

    pub(super) fn farewell(&self, desk: &mut Desk, goodbye: Goodbye, chunk: &mut Vec<u8>) {
        let Place { shared, voice, .. } = self.place;
        let base = &shared.config.cloud.base;
        if goodbye == Goodbye::Offline && desk.open.is_some() && !base.is_empty() {
            let payload = documents::status(false, voice.attempt, Some(Reason::User));
            let full = desk.is_full();
            let publish = own_message(desk, format!("{base}/status"), payload, true).map(|publish| match full {
                // One more numbered message would break the server's limit, and it the connection.
                true => Publish { qos: 0, id: None, ..publish },
                false => publish,
            });
            match publish.map(|publish| speech::publish(self.version, publish)) {
                Some(Ok(bytes)) => chunk.extend(bytes),
                Some(Err(problem)) => log::warn!("the offline status cannot be written: {problem}"),
                None => {}
            }
        }
        chunk.extend(speech::FAREWELL);
    }
}
